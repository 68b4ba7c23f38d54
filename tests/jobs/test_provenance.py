"""Which code a job's results come from: no change goes unnoticed, and nothing else counts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bayes_bench.host import shipped
from bayes_bench.jobs import provenance
from bayes_bench.jobs.provenance import CORE, code_of
from bayes_bench.methods import code, registry
from bayes_bench.metrics import measure

JOB = """
import json, sys
from pathlib import Path
from bayes_bench.jobs.execute import execute
from bayes_bench.jobs.job import Conditions, PlacedJob
from bayes_bench.jobs.plan import Override, plan
from bayes_bench.tasks import SuiteSpec, build_task

task = {"name": "digits", "data": {"source": "digits"}, "network": {"name": "mlp", "hidden": [3]}, "budget": 2000,
        "examples": 10, "ood": [{"name": "letters", "source": "letters", "letters": "A-J"}]}
(job,) = plan([SuiteSpec.model_validate({"name": "s", "tasks": [task], "methods": ["hypergan"], "seeds": [0]})],
              overrides=[Override("hypergan", "pretrain_steps", 1)])
item = PlacedJob(job, build_task(job.task), "ab" * 32, "ab" * 32, Path(sys.argv[1]))
record = execute(item, Conditions("cpu", threads=1))
assert record["status"] == "ok", record["error"]
print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "bayes_bench" and m.__file__]))
"""
NO_NUMBERS = ("host", "results", "data", "errors.py", "settings.py", "__init__.py")
"""Parts that a job runs through and that give it no number: its data are told by their checksum."""


def job(method: str = "mcdropout") -> SimpleNamespace:
    return SimpleNamespace(method=method, task=SimpleNamespace(network=None))


def hashed(method: str) -> list[Path]:
    parts = [shipped.PACKAGE / part for part in (*CORE, "metrics")]
    return [*parts, *code.code_of_method(registry.method_class(method))]


def test_all_that_a_job_runs_is_hashed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", JOB, str(tmp_path)], capture_output=True, text=True, check=True)
    loaded = [Path(file) for file in json.loads(done.stdout.splitlines()[-1])]
    assert len(loaded) > 60
    known = [*hashed("hypergan"), *(shipped.PACKAGE / part for part in NO_NUMBERS)]
    known += [shipped.PACKAGE / "methods" / name for name in ("__init__.py", "registry.py", "code.py")]
    assert [file for file in loaded if not any(file.is_relative_to(part) for part in known)] == []


def test_a_change_of_any_of_its_files_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = shutil.copytree(shipped.PACKAGE, tmp_path / "bayes_bench", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", package)
    monkeypatch.setattr(measure, "PACKAGE", package)
    before = code_of(job(), ())
    files = [file for part in (*CORE, "metrics") for file in [package / part, *(package / part).rglob("*.py")]]
    files = [file for file in files if file.is_file()]
    names = {file.name for file in files}
    assert {"augmentation.py", "predictive.py", "chains.py", "likelihood.py", "predictions.py", "network.py"} <= names
    for file in files:
        text = file.read_text(encoding="utf-8")
        file.write_text(text + "# changed\n", encoding="utf-8")
        now = code_of(job(), ())
        part = "metrics" if file.is_relative_to(package / "metrics") else "core"
        assert {name for name in now if now[name] != before[name]} == {part}, file
        file.write_text(text, encoding="utf-8")
    assert code_of(job(), ()) == before


def test_a_file_that_is_renamed_or_missing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = shutil.copytree(shipped.PACKAGE, tmp_path / "bayes_bench", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", package)
    before = code_of(job(), ())["core"]
    (package / "posterior" / "prior.py").rename(package / "tasks" / "prior.py")
    assert code_of(job(), ())["core"] != before
    (package / "networks.py").unlink()
    with pytest.raises(FileNotFoundError):
        code_of(job(), ())


@pytest.mark.parametrize(
    ("method", "families"),
    [
        ("mcdropout", {"dropout"}),
        ("map", {"ensembles"}),
        ("sgld", {"chains"}),
        ("apd", {"chains", "distillation"}),  # its teacher is a Langevin chain
        ("laplace", {"ensembles", "laplace"}),  # around a trained network
        ("hypergan", {"hypergan", "hypernetworks"}),
    ],
)
def test_a_method_is_its_family_and_those_that_it_imports(method: str, families: set[str]) -> None:
    assert {part.name for part in code.code_of_method(registry.method_class(method))} == families


def test_the_code_of_another_family_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One comment in ``apd.py`` must not make the jobs of MC dropout "changed", one in the chains must those of APD."""
    import bayes_bench_baselines

    there = Path(bayes_bench_baselines.__file__).parent
    here = shutil.copytree(there, tmp_path / there.name, ignore=shutil.ignore_patterns("__pycache__"))
    real = code._file
    monkeypatch.setattr(code, "_file", lambda cls: Path(str(real(cls)).replace(str(there), str(here))))
    code.code_of_method.cache_clear()
    try:
        methods = ["mcdropout", "map", "ensemble", "sgld", "hmc", "apd", "mnf"]
        before = {method: code_of(job(method), ())["method"] for method in methods}
        for file, changed in (
            ("distillation/apd.py", {"apd"}),
            ("chains/langevin.py", {"apd", "sgld", "hmc"}),
            ("dropout/mcdropout.py", {"mcdropout"}),
            ("ensembles/members.py", {"map", "ensemble"}),
        ):
            text = (here / file).read_text(encoding="utf-8")
            (here / file).write_text(text + "# a comment\n", encoding="utf-8")
            now = {method: code_of(job(method), ())["method"] for method in methods}
            assert {method for method in methods if now[method] != before[method]} == changed
            (here / file).write_text(text, encoding="utf-8")
    finally:
        code.code_of_method.cache_clear()


def package(folder: Path, name: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    for path, text in files.items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return folder / name


def test_a_plug_in_is_all_of_its_package_or_its_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "__init__.py": "from bayes_bench import HyperGAN\nclass Here(HyperGAN): ...\n",
        "flat.py": "class Flat: ...\n",
        "one/__init__.py": "",
        "one/method.py": "from ..two import helper\nfrom three_plug_in.four.deep import inner\nclass One: ...\n",
        "two/__init__.py": "",
        "two/helper.py": "import three_plug_in.flat\n",
        "four/__init__.py": "",
        "four/deep/__init__.py": "",
        "four/deep/inner.py": "",
        "five/__init__.py": "",
    }
    root = package(tmp_path, "three_plug_in", files, monkeypatch)
    import three_plug_in.flat
    from three_plug_in.one import method

    generators = {"hypergan", "hypernetworks"}
    assert code.code_of_method(three_plug_in.flat.Flat) == (root,)
    assert {part.name for part in code.code_of_method(three_plug_in.Here)} == {"three_plug_in", *generators}
    found = code.code_of_method(method.One)
    assert {part.relative_to(root).as_posix() for part in found} == {"one", "two", "four", "flat.py"}
