"""The house is as docs/architecture.md says: who imports whom, what needs PyTorch, what the core must not know."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import bayes_bench
from places import ROOT

CORE = ROOT / "bayes_bench"
BASELINES = ROOT / "baselines" / "bayes_bench_baselines"
SCRIPTS = [
    path for name in ("benchmarks", "docs", "examples", "reports") for path in sorted((ROOT / name).rglob("*.py"))
]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in [*CORE.rglob("*.py"), *BASELINES.rglob("*.py")]}


def table() -> dict[str, tuple[set[str], str]]:
    """Part → the parts that it may import, and which of its modules may import PyTorch; in the order of the page."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\| ([^|]+) \|$", page, re.MULTILINE)
    return {part: (set(re.findall(r"`(\w+)`", imports)), torch) for part, imports, torch in lines}


PARTS = table()


def imported(tree: ast.Module) -> set[str]:
    """Dotted names of all that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def parts_imported(own: str) -> set[str]:
    names = {
        name
        for path, tree in TREES.items()
        if path.is_relative_to(CORE) and part(path) == own
        for name in imported(tree)
    }
    assert not any(name.startswith("bayes_bench_baselines") for name in names), "the core never imports the baselines"
    words = [name.split(".") for name in names if name.startswith("bayes_bench.")]
    return {other for _, other, *_ in words if other != own}


def module_of(path: Path) -> str:
    top = CORE if path.is_relative_to(CORE) else BASELINES
    return ".".join(path.relative_to(top.parent).with_suffix("").parts).removesuffix(".__init__")


def test_the_page_names_every_part() -> None:
    there = {part(path) for path in TREES if path.is_relative_to(CORE)}
    assert there - {"__init__", "__main__"} == PARTS.keys()


def test_a_part_imports_only_what_stands_above_it() -> None:
    order = list(PARTS)
    for own, (allowed, _) in PARTS.items():
        assert allowed <= set(order[: order.index(own)]), f"{own} must not import what stands below it"


@pytest.mark.parametrize("own", PARTS)
def test_a_part_imports_what_the_page_says_and_nothing_else(own: str) -> None:
    assert parts_imported(own) == PARTS[own][0]


def test_no_two_modules_import_each_other() -> None:
    """Nor any longer way round, and imports for types count."""
    modules = {module_of(path): tree for path, tree in TREES.items()}
    arrows = {name: {full if full in modules else full.rpartition(".")[0] for full in imported(tree)} & modules.keys()
              for name, tree in modules.items()}  # fmt: skip
    finished: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " → ".join([*way, name])
        if name not in finished:
            for other in arrows[name] - {name}:
                visit(other, [*way, name])
            finished.add(name)

    for name in modules:
        visit(name, [])


@pytest.mark.parametrize(
    "path",
    [path for path in TREES if path.is_relative_to(BASELINES)],
    ids=lambda path: str(path.relative_to(BASELINES)),
)
def test_baselines_import_public_names_only(path: Path) -> None:
    for name in imported(TREES[path]):
        words = name.split(".")
        if words[0] == "bayes_bench":
            assert len(words) == 2, f"{name} is not a public name"
            assert words[1] in bayes_bench.__all__, f"{name} is not a public name"


WITHOUT_TORCH = """
import importlib, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ImportError("torch is blocked")

sys.meta_path.insert(0, Blocked())
needing = []
for name in json.loads(sys.stdin.read()):
    try:
        importlib.import_module(name)
    except ImportError as error:
        assert "torch is blocked" in str(error), (name, error)
        needing.append(name)
print(json.dumps(needing))
"""


def needs_torch(path: Path) -> bool:
    """Whether the page says so. No face does."""
    if path.name == "__init__.py":
        return False
    if path.is_relative_to(BASELINES):
        return path.name != "config.py"
    within = ".".join(path.relative_to(CORE).with_suffix("").parts[1:])
    yes, _, no = PARTS[part(path)][1].partition(" but ")
    patterns = ["*"] if yes == "all" else re.findall(r"`([^`]+)`", yes)
    return any(fnmatch(within, it) for it in patterns) and not any(
        fnmatch(within, it) for it in re.findall(r"`([^`]+)`", no)
    )


def test_torch_is_imported_where_the_page_says_and_nowhere_else() -> None:
    # The module for Ray needs Ray, which may import whatever is there.
    paths = sorted(path for path in TREES if path.name not in ("__main__.py", "ray_cluster.py"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input=json.dumps([module_of(path) for path in paths]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [module_of(path) for path in paths if needs_torch(path)]


def test_every_public_name_can_be_imported() -> None:
    for name in bayes_bench.__all__:
        assert getattr(bayes_bench, name) is not None
    with pytest.raises(AttributeError, match="attribute nothing"):
        _ = bayes_bench.nothing


@pytest.mark.parametrize("face", ["tasks", "analysis", "testing", "metrics", "data"])
def test_every_name_that_a_face_hands_on_can_be_imported(face: str) -> None:
    module = importlib.import_module(f"bayes_bench.{face}")
    assert module.__all__
    for name in module.__all__:
        assert not (CORE / face / f"{name}.py").exists(), f"importing the module {name} would replace the name"
        assert getattr(module, name) is not None


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_scripts_import_of_the_package_is_there(path: Path) -> None:
    for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        module, _, attribute = name.rpartition(".")
        if name.partition(".")[0] in ("bayes_bench", "bayes_bench_baselines") and module:
            found = importlib.import_module(module)
            assert hasattr(found, attribute) or importlib.util.find_spec(name), name


NAMES_ALLOWED = {
    "sklearn.py": {"hypergan"},
    "posterior/snapshots.py": {"map"},
}  # an estimator's default; a mapping's tag


def test_the_core_knows_no_method_by_name() -> None:
    ours = {
        point.name
        for point in entry_points(group="bayes_bench.methods")
        if (point.dist and point.dist.name) == "bayes-bench"
    }
    assert len(ours) > 8
    for path, tree in TREES.items():
        where = str(path.relative_to(CORE)) if path.is_relative_to(CORE) else ""
        if where and not where.startswith("methods/hypergan/"):
            said = {
                node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert said & ours <= NAMES_ALLOWED.get(where, set()), where
