"""The arrows between packages point one way, and light modules stay light."""

import ast
import subprocess
import sys

import pytest

from places import ROOT

CORE = ROOT / "bayes_bench"
BASELINES = ROOT / "baselines" / "bayes_bench_baselines"

# module (or package) → the modules of ours it may import; what is not listed may import anything below it
LAYERS = [
    "errors stopping",
    "settings userfile plugins",
    "suite",
    "augmentation chains likelihood metrics data machine records",
    "examples",
    "prior predictive networks store snapshots threads training",
    "stacked",
    "posterior reference registry jobs",
    "conjugate hypergan tasks testing",
    "scaffold sklearn",
    "measure restore analysis ranking memory gallery",
    "report execution clock changes merging",
    "executors",
    "runner tuning verification",
    "repeat",
    "terminal",
    "cli",
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
ALLOWED_UPWARD = {("suite", "data")}  # a suite's data options are checked by the sources, lazily


def imports(path):
    """Names of modules that a file imports, anywhere in it (relative imports are not used)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path):
    return path.relative_to(CORE).parts[0].removesuffix(".py")


FILES = sorted(path for path in CORE.rglob("*.py") if part(path) not in ("__init__", "__main__"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_arrows_point_one_way(path):
    own = part(path)
    assert own in RANK, f"say in LAYERS where {own} stands"
    for name in imports(path):
        words = name.split(".")
        assert words[0] != "bayes_bench_baselines", "the core never imports the baselines"
        if words[0] != "bayes_bench" or len(words) < 2:
            continue
        other = words[1]
        if other in RANK and other != own and (own, other) not in ALLOWED_UPWARD:
            assert RANK[other] <= RANK[own], f"{own} must not import {other}"


@pytest.mark.parametrize("path", sorted(BASELINES.glob("*.py")), ids=lambda path: path.name)
def test_baselines_import_public_names_only(path):
    import bayes_bench

    for name in imports(path):
        words = name.split(".")
        if words[0] == "bayes_bench":
            assert len(words) == 2, f"{name} is not a public name"
            assert words[1] in bayes_bench.__all__, f"{name} is not a public name"


@pytest.mark.parametrize(
    "module",
    [
        "bayes_bench",
        "bayes_bench.errors",
        "bayes_bench.settings",
        "bayes_bench.userfile",
        "bayes_bench.chains",
        "bayes_bench.suite",
        "bayes_bench.registry",
        "bayes_bench.records",
        "bayes_bench.store",
        "bayes_bench.executors",
        "bayes_bench.executors.worker",
        "bayes_bench.jobs",
        "bayes_bench.scaffold",
        "bayes_bench.tuning",
        "bayes_bench.verification",
        "bayes_bench.repeat",
        "bayes_bench.metrics",
        "bayes_bench.reference",
        "bayes_bench.analysis",
        "bayes_bench.report",
        "bayes_bench.cli",
        "bayes_bench.data",
        "bayes_bench.data.catalogue",
        "bayes_bench.hypergan.config",
        "bayes_bench_baselines.configs",
    ],
)
def test_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_imported():
    import bayes_bench

    for name in bayes_bench.__all__:
        assert getattr(bayes_bench, name) is not None
    with pytest.raises(AttributeError, match="attribute nothing"):
        _ = bayes_bench.nothing
