from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_bench import cli
from bayes_bench.cli.group import SECTIONS
from bayes_bench.results.folder import load_predictions, read_records, read_run, write_record
from bayes_bench.results.schema import read_record
from tiny_suites import register_fakes

TASK = """
[[tasks]]
name = "curve"
budget = 200
data = {source = "cubic"}
network = {name = "mlp", hidden = [5]}
likelihood = {name = "gaussian", noise_std = 3.0}
curve = {low = -6, high = 6, points = 7, inside = [[-4, 4]]}
"""


class Outcome:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The command in this process, with the fake methods, in an empty folder."""
    register_fakes(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        captured = capsys.readouterr()
        return Outcome(ended.value.code, captured.out, captured.err)  # type: ignore[arg-type]

    return run


@pytest.fixture
def suite_file(tmp_path: Path) -> str:
    (tmp_path / "my.toml").write_text('name = "my"\nmethods = ["tiny", "pair"]\nseeds = [0, 1]\n' + TASK)
    return "my.toml"


def separate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which then says whether it imported torch."""
    code = (
        "import sys, atexit\n"
        "from bayes_bench.cli import main\n"
        "atexit.register(lambda: print('TORCH', 'torch' in sys.modules, file=sys.stderr))\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_output_without_our_characters_ends_no_work(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "my.toml").write_text('name = "my"\nmethods = ["map"]\nseeds = [0]\n' + TASK, encoding="utf-8")
    told = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = separate("run", str(tmp_path / "my.toml"), "--out", str(tmp_path / "run"), **told)
    assert done.returncode == 0, done.stderr
    assert "Report:" in done.stdout
    for arguments in (("list", "suites"), ("list", "methods"), ("show", "hypergan"), ("verify", str(tmp_path / "run"))):
        done = separate(*arguments, **told)
        assert done.returncode == 0, done.stderr


# Speed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["run", "--help"], 0),
        (["list", "methods"], 0),
        (["list", "suites"], 0),
        (["list", "metrics"], 0),
        (["show", "hypergan"], 0),
        (["show", "hypergann"], 2),
        (["run", "digit"], 2),
        (["run", "--methods", "hypergann"], 2),
        (["run", "--set", "hypergan.learning_rat=1"], 2),
        (["run", "--set", "hypergan.learning_rate=fast"], 2),
        (["run", "--seeds", "x"], 2),
        (["run", "--gpus-per-job", "1"], 2),
        (["run", "--out", __file__], 2),
        (["tune", "--help"], 0),
        (["tune", "mapp", "cubic"], 2),
        (["tune", "map", "cubic", "--seeds", "0"], 2),
        (["tune", "map", "cubic", "--out", __file__], 2),
        (["report", "."], 2),
        (["verify", "."], 2),
        (["rerun", "."], 2),
        (["predict", ".", "map", __file__], 2),
        (["check", "hypergann"], 2),
        (["reference", ".", "map", "--out", "x.safetensors"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_torch_is_not_imported_for_help_lists_and_errors_in_arguments(arguments: list[str], code: int) -> None:
    done = separate(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "TORCH False"


def test_closed_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["list", "suites"])
    assert ended.value.code == 0


def test_help_takes_no_more_than_half_a_second() -> None:
    durations = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "bayes_bench", "--help"], check=True, capture_output=True)
        durations.append(time.perf_counter() - started)
    assert min(durations) < 0.5


# Help and lists -------------------------------------------------------------------------------------------


def test_help_lists_every_command_under_a_heading(call) -> None:
    outcome = call("--help")
    assert outcome.code == 0
    assert {name for names in SECTIONS.values() for name in names} == set(cli.cli.commands)
    for heading, names in SECTIONS.items():
        assert heading + ":" in outcome.out
        assert all(f"\n  {name} " in outcome.out for name in names)


def test_lists_and_show(call) -> None:
    methods = call("list", "methods").out
    assert "tiny" in methods
    assert "fakes 1.0" in methods
    assert "digits" in call("list", "suites").out
    assert "ood_auroc/<set>" in call("list", "metrics").out
    shown = call("show", "tiny").out
    assert "For tests only." in shown
    assert "number > 0" in shown
    assert "made up" in shown
    assert "bayes-bench tune" not in shown
    assert "0.001 to 0.01, logarithmic" in call("show", "map").out


def test_a_broken_plugin_is_listed_as_broken(call, monkeypatch: pytest.MonkeyPatch) -> None:
    from bayes_bench.host import plugins
    from tiny_suites import point

    before = plugins.entry_points
    broken = point("bad", type("Bad", (), {}))
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: [*before(group=group), *[broken] * (group == plugins.METHODS)]
    )
    outcome = call("list", "methods")
    assert outcome.code == 0
    assert "BROKEN" in outcome.out
    assert "hypergan" in outcome.out


def test_an_installed_plugin_that_exits_does_not_end_the_command(tmp_path: Path) -> None:
    about = tmp_path / "bad-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[bayes_bench.methods]\nbad = bad_plugin:Bad\n")
    (tmp_path / "bad_plugin.py").write_text("import sys\nsys.exit(3)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    listed = separate("list", "methods", PYTHONPATH=path)
    assert listed.returncode == 0
    assert "BROKEN: method 'bad' of bad 1.0" in listed.stdout
    assert "hypergan" in listed.stdout
    asked = separate("run", "cubic", "--methods", "bad", PYTHONPATH=path)
    assert asked.returncode == 2
    assert "cannot import bad_plugin:Bad (SystemExit: 3); mend or uninstall it" in asked.stderr


# Bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["frob"], "unknown command 'frob'"),
        (["rum"], "did you mean 'run'"),
        (["run", "--nix"], "No such option"),
        (["run", "digit"], "unknown suite 'digit', did you mean 'digits'"),
        (["run", "nowhere.toml"], "cannot read the suite nowhere.toml"),
        (["run", "--methods", "tinny"], "unknown method 'tinny', did you mean 'tiny'"),
        (["run", "--methods", "tiny,"], "--methods"),
        (["run", "--set", "tiny"], "METHOD.KEY=VALUE"),
        (["run", "--set", "tinny.scale=1"], "unknown method 'tinny'"),
        (["run", "--methods", "tiny", "--set", "map.batch_size=4"], "'map' is not among the methods run (tiny)"),
        (["run", "--methods", "tiny", "--set", "tiny.scalle=1"], "did you mean 'scale'"),
        (["run", "--methods", "tiny", "--set", "tiny.scale=x"], "scale: Input should be a valid number"),
        (["run", "--seeds", "3-1"], "write 1-3"),
        (["run", "--budget-scale", "0"], "--budget-scale"),
        (["run", "--threads", "0"], "--threads"),
        (["run", "--threads", "100000"], "--threads"),
        (["run", "--snapshot-every", "nan"], "--snapshot-every must be a positive number of seconds, got nan"),
        (["run", "--jobs", "0"], "--jobs"),
        (["run", "--timeout", "0"], "--timeout"),
        (["run", "--executor", "slurm"], "--executor"),
        (["run", "--address", "head:1"], "--address is an option of a cluster; add --executor ray"),
        (["run", "--device", "tpu"], "--device"),
        (["run", "--out", "file/run"], "is a file"),
        (["run", "--out", "full"], "not a run folder"),
        (["run", "--allow-code", "nix.py"], "nix.py"),
        (["tune", "map"], "Missing argument"),
        (["tune", "tinny", "cubic"], "did you mean 'tiny'"),
        (["tune", "tiny", "cubic"], "'tiny' declares nothing to tune"),
        (["tune", "map", "cubic", "--trials", "0"], "--trials"),
        (["tune", "map", "cubic", "--seeds", "2,100"], "2 is a seed of the suite 'cubic'"),
        (["tune", "map", "cubic", "--task", "cubik"], "did you mean 'cubic'"),
        (["tune", "map", "cubic", "--set", "map.batch_sise=4"], "did you mean 'batch_size'"),
        (["tune", "map", "cubic", "--out", "full"], "not a tuning folder"),
        (["list", "nothing"], "nothing"),
        (["list"], "methods"),
        (["show", "tinny"], "did you mean 'tiny'"),
        (["report", "nowhere"], "not a run folder"),
        (["verify", "nowhere"], "not a run folder"),
        (["rerun", "nowhere"], "nowhere is not a job"),
        (["rerun", "file"], "file is not a job"),
        (["run", "--memory-limit", "0"], "--memory-limit"),
        (["predict", "nowhere", "tiny", "file"], "not a run folder"),
        (["predict", "nowhere", "tiny"], "Missing argument"),
        (["predict", "nowhere", "tiny", "file", "--out", "no/where.csv"], "no folder no"),
        (["check", "tinny"], "did you mean 'tiny'"),
        (["reference", "nowhere", "tiny", "--out", "x.safetensors"], "not a run folder"),
        (["reference", "nowhere", "tiny", "--out", "x.npz"], "a reference is a file *.safetensors, got x.npz"),
        (["reference", "nowhere", "tiny"], "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    call, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    outcome = call(*arguments)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name = \n[[tasks]]", ["my.toml", "line 1"]),
        ('name = "x"\ntasks = []', ["my.toml", "tasks"]),
        ('name = "my"\nmehtods = []' + TASK, ["my.toml", "mehtods"]),
        ('name = "my"' + TASK.replace("hidden = [5]", "hidden = [-5]"), ["my.toml", "hidden", "-5"]),
        ('name = "my"' + TASK.replace('"cubic"', '"cubik"'), ["my.toml", "did you mean 'cubic'"]),
    ],
)
def test_a_wrong_suite_names_file_and_place(call, tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "my.toml").write_text(text)
    outcome = call("run", "my.toml")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert all(part in outcome.err for part in parts), outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["my.toml"]


def test_cuda_without_a_gpu(call, suite_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = call("run", suite_file, "--device", "cuda")
    assert outcome.code == 2
    assert "finds no GPU" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["my.toml"]


def test_missing_data(call, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder belongs")
    outcome = call("run", "mnist-5000", "--methods", "tiny", "--data-root", "data")
    assert outcome.code == 2
    assert "the data root data is a file; give the folder" in outcome.err
    assert outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# Runs -----------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_knows_what_is_finished(call, suite_file: str, tmp_path: Path) -> None:
    outcome = call("run", suite_file, "--dry-run", "--budget-scale", "0.5")
    assert outcome.code == 0
    assert "4 of 4 jobs to run into reports/runs/my; one after the other, by a few steps of each" in outcome.out
    assert "unknown" not in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["my.toml"]
    assert call("run", suite_file, "--seeds", "0", "--budget-scale", "0.5", "--quiet").code == 0
    again = call("run", suite_file, "--dry-run", "--budget-scale", "0.5")
    assert "2 of 4 jobs to run" in again.out
    assert "1 of 2" in again.out
    assert "4 of 4" in call("run", suite_file, "--dry-run").out  # another budget, other jobs
    assert "4 of 4" in call("run", suite_file, "--dry-run", "--budget-scale", "0.5", "--fresh").out


def test_a_dry_run_of_a_suite_of_ones_own_reads_its_data(call, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'name = "own"\nmethods = ["map"]\nseeds = [0]\n[[tasks]]\nname = "own"\nbudget = 1000\n'
        'data = { source = "csv", path = "wine.csv", target = "colour" }\n'
        'network = { name = "mlp", hidden = [5] }\nlikelihood = { name = "categorical" }\n'
    )
    outcome = call("run", "own.toml", "--dry-run")
    assert (outcome.code, "wine.csv" in outcome.err) == (2, True)
    (tmp_path / "wine.csv").write_text("a,color\n" + "1,red\n2,blue\n" * 20)
    outcome = call("run", "own.toml", "--dry-run")
    assert (outcome.code, "colour" in outcome.err) == (2, True)
    (tmp_path / "wine.csv").write_text("a,colour\n" + "1,red\n2,blue\n" * 20)
    assert call("run", "own.toml", "--dry-run").code == 0


TOO_DEEP = """
name = "deep"
methods = ["tiny"]
seeds = [0]

[[tasks]]
name = "digits"
budget = 1000
data = {source = "digits"}
network = {name = "convnet", channels = [3, 3, 3, 3], kernel = 3}
"""


@pytest.mark.parametrize(
    ("suite", "options", "said"),
    [
        (TOO_DEEP, (), "image is too small"),
        (TOO_DEEP.replace("[3, 3, 3, 3]", "[3]"), ("--set", "tiny.trouble=refuse"), "cannot treat layer '1'"),
        (TOO_DEEP.replace("[3, 3, 3, 3]", "[3]"), ("--set", "tiny.trouble=refuse by budget"), "needs a budget of 7"),
        (TOO_DEEP.replace("[3, 3, 3, 3]", "[3]") + 'reference = "cubic"', (), "the reference"),
        (TOO_DEEP.replace("digits", "mnist"), ("--data-root", "nowhere"), "nowhere"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(
    call, tmp_path: Path, suite: str, options: tuple[str, ...], said: str
) -> None:
    (tmp_path / "s.toml").write_text(suite)
    real = call("run", "s.toml", *options)
    assert (real.code, said in real.err) == (2, True), real.err
    left = sorted(tmp_path.iterdir())
    dry = call("run", "s.toml", "--dry-run", *options)
    assert (dry.code, dry.err, dry.out) == (2, real.err, "")
    assert sorted(tmp_path.iterdir()) == left


def test_the_quick_variant_is_a_suite_of_its_own(call, suite_file: str, tmp_path: Path) -> None:
    quick = "quick = {budget_scale = 0.25, seeds = [7]}\n"
    (tmp_path / "my.toml").write_text(quick + (tmp_path / "my.toml").read_text())
    planned = call("run", suite_file, "--quick", "--dry-run")
    assert planned.code == 0
    assert f"2 of 2 jobs to run into {Path('reports/runs/my-quick')}; " in planned.out
    assert call("run", suite_file, "--quick", "--methods", "pair", "--threads", "1").code == 0
    (record,) = [record for _, record in read_records(tmp_path / "reports/runs/my-quick")[0]]
    assert (record["suite"], record["seed"], record["budget"]["total"]) == ("my-quick", 7, 50)
    page = (tmp_path / "reports/runs/my-quick/report.html").read_text(encoding="utf-8")
    assert "a quarter of the suite" in page
    again = call("run", suite_file, "--quick", "--budget-scale", "0.1", "--seeds", "1", "--dry-run").out
    assert " 5 " in again
    assert call("tune", "map", suite_file, "--quick", "--seeds", "7").err.startswith("Error: --seeds: 7 is a seed of")


def test_a_suite_without_a_quick_variant_is_one_sentence(call, suite_file: str) -> None:
    outcome = call("run", suite_file, "--quick")
    assert outcome.code == 2
    assert outcome.err.startswith("Error: the suite 'my' has no quick variant")


def test_a_collapsed_method_raises_the_alarm_everywhere(call, suite_file: str, tmp_path: Path) -> None:
    arguments = ("run", suite_file, "--methods", "tiny", "--seeds", "0", "--threads", "1", "--out", "run")
    outcome = call(*arguments, "--set", "tiny.scale=1e-6")
    (record,) = [record for _, record in read_records(tmp_path / "run")[0]]
    measured = record["collapse"]["total_variation"]["the curve outside the data"]
    assert measured < record["collapse"]["threshold"] == 0.01
    said = f"by a mean total variation of {measured:.2g} (threshold 0.01)"
    assert "ALARM curve, tiny, seed 0: collapse: 100 networks were drawn" in outcome.out
    assert said in " ".join(outcome.out.split())
    assert said in " ".join(outcome.err.split())
    assert said in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    # Another figure is no reason to train again.
    text = (tmp_path / "my.toml").read_text()
    (tmp_path / "my.toml").write_text(text + "collapse_threshold = 0\n")
    outcome = call(*arguments, "--set", "tiny.scale=1e-6")
    assert "already finished" in outcome.err
    (record,) = [record for _, record in read_records(tmp_path / "run")[0]]
    assert (record["collapse"]["threshold"], record["alarms"]) == (0, [])
    assert "ALARM" not in outcome.out


def test_published_numbers_stand_beside_ours(call, suite_file: str, tmp_path: Path) -> None:
    arguments = ("run", suite_file, "--methods", "tiny", "--seeds", "0,1", "--threads", "1", "--out", "run")
    assert "claims" not in call(*arguments).out
    with (tmp_path / "my.toml").open("a") as file:
        for method, value in (("tiny", 3.5), ("vi", 2.5)):
            file.write(f'[[tasks.published]]\nmethod = "{method}"\nmetric = "rmse"\nvalue = {value}\nsource = "Them"\n')
        file.write('note = "recalled"\n')
    outcome = call(*arguments)
    assert "already finished" in outcome.err
    assert "curve beside published numbers (claims)" in outcome.out
    assert outcome.out.count("Them") == outcome.out.count("Them¹") + 1
    assert "¹ recalled" in outcome.out
    ours, theirs = list(csv.DictReader((tmp_path / "run/published.csv").open()))
    values = [
        row["value"] for _, r in read_records(tmp_path / "run")[0] for row in r["metrics"] if row["name"] == "rmse"
    ]
    assert float(ours["difference"]) == pytest.approx(sum(values) / 2 - 3.5)
    assert (ours["seeds"], theirs["method"], theirs["seeds"], theirs["mean"]) == ("2", "vi", "0", "")


def test_a_run_from_start_to_page_and_its_continuation(call, suite_file: str, tmp_path: Path) -> None:
    outcome = call("run", suite_file, "--threads", "1", "--set", "tiny.scale=0.2")
    assert outcome.code == 0, outcome.err
    run_dir = Path("reports/runs/my")
    assert outcome.out.endswith(f"Report: {run_dir / 'report.html'}\n")
    assert "RMSE" in outcome.out
    assert "[4/4] curve/pair seed 1: " in outcome.err
    files = sorted(path.name for path in run_dir.iterdir() if path.name != ".lock")
    tables = ["history.csv", "published.csv", "results.csv", "summary.csv"]
    assert files == sorted(["jobs", "report.html", "run.json", *tables])
    with (run_dir / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["suite"], row["task"], row["method"], row["seed"]) for row in rows} == {
        ("my", "curve", method, seed) for method in ("tiny", "pair") for seed in "01"
    }
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "tiny" in page
    assert read_run(run_dir)["command"][0] == "bayes-bench"
    assert read_records(run_dir)[0][-1][1]["settings"] == {"scale": 0.2}
    # The same command finds everything finished.
    again = call("run", suite_file, "--threads", "1", "--set", "tiny.scale=0.2")
    assert again.err.count("already finished") == 4
    # The page can be made anew at any time.
    (run_dir / "report.html").unlink()
    rendered = call("report", str(run_dir), "--recompute")
    assert rendered.code == 0
    assert "measured 4 jobs anew" in rendered.err
    assert (run_dir / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize("error", [MemoryError("12 GB"), RuntimeError("can't allocate memory: 12 GB")])
def test_memory_that_runs_out_outside_of_jobs_is_a_sentence(
    call, suite_file: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("bayes_bench.data.load_split", load)
    failed = call("run", suite_file)
    assert failed.code == 2
    assert failed.err.startswith("Error: memory ran out (")
    assert failed.err.endswith("12 GB); use fewer examples or a smaller network\n")


def test_a_run_is_verified_and_a_job_run_again(call, suite_file: str, tmp_path: Path) -> None:
    assert call("run", suite_file, "--threads", "1", "--memory-limit", "9", "--quiet").code == 0
    run_dir = Path("reports/runs/my")
    agrees = call("verify", str(run_dir))
    assert (agrees.code, agrees.err) == (0, "")
    assert agrees.out.startswith("4 jobs, ")
    assert agrees.out.endswith(" metrics: all agree\n")
    folder = next((run_dir / "jobs/curve/tiny").glob("seed-0-*"))
    again = call("rerun", str(folder / "record.json"), "--out", "again")
    assert (again.code, again.out) == (0, "the same, bit for bit\n")
    assert again.err == "curve/tiny seed 0 again\n"
    assert {path.name for path in (tmp_path / "again").iterdir()} == {path.name for path in folder.iterdir()}
    no_folder = call("rerun", str(folder), "--out", f"{suite_file}/again")
    assert (no_folder.code, no_folder.out) == (2, "")
    assert "my.toml is a file; choose another --out" in no_folder.err
    assert "seed 0 again" not in no_folder.err
    (tmp_path / "interrupted" / "snapshots").mkdir(parents=True)
    assert call("rerun", str(folder), "--out", "interrupted").out == "the same, bit for bit\n"
    refused = call("rerun", str(folder), "--out", "again")
    assert (refused.code, refused.err) == (2, "Error: again is not an empty folder; choose another --out\n")
    # A record that says something else, and is valid otherwise.
    record = read_record(folder / "record.json")
    write_record(folder, record | {"config": record["config"] | {"scale": 0.2}})
    other = call("rerun", str(folder))
    assert other.code == 1
    assert "test/mean" in other.out
    assert "arrays and" in other.out.splitlines()[-1]
    (folder / "posterior.safetensors").unlink()
    damaged = call("verify", str(run_dir))
    assert damaged.code == 1
    assert "posterior.safetensors" in damaged.out
    assert "differences" in damaged.out.splitlines()[-1] or "1 difference" in damaged.out.splitlines()[-1]


def test_a_reference_from_a_long_run_to_the_page(call, suite_file: str, tmp_path: Path) -> None:
    assert call("run", suite_file, "--quiet").code == 0
    made = call("reference", "reports/runs/my", "tiny", "--out", "curve.safetensors")
    assert made.code == 0, made.err
    assert "curve: tiny, 200 networks of seeds 0, 1" in made.out
    assert "curve/mean 200 × 7 × 1" in " ".join(made.out.split())
    assert "reference_tv/outside" in made.out
    assert "Reference: curve.safetensors" in made.out
    assert "tiny ignores the prior" in made.err
    named = (tmp_path / suite_file).read_text().replace("[[tasks]]", '[[tasks]]\nreference = "curve.safetensors"')
    (tmp_path / suite_file).write_text(named)
    again = call("run", suite_file, "--quiet")
    assert again.code == 0, again.err
    records = [record for _, record in read_records(Path("reports/runs/my"))[0]]
    assert all(record["reference"]["label"] == "tiny" for record in records)
    page = (tmp_path / "reports/runs/my/report.html").read_text(encoding="utf-8")
    assert "Distance to the reference posterior" in page
    # The file that a task names is looked at before anything is run.
    (tmp_path / suite_file).write_text(named.replace("noise_std = 3.0", "noise_std = 2.0"))
    refused = call("run", suite_file, "--out", "other")
    assert refused.code == 2
    assert "is of another posterior: likelihood differs; make it with a run without" in refused.err
    assert "bayes-bench reference RUN METHOD --task curve --out FILE" in refused.err
    (tmp_path / "curve.safetensors").unlink()
    assert "curve.safetensors does not exist; make it" in call("run", suite_file, "--out", "other").err
    assert not (tmp_path / "other").exists()


def test_a_failed_job_is_said_and_in_the_exit_code(call, suite_file: str) -> None:
    outcome = call("run", suite_file, "--set", "tiny.trouble=diverge", "--quiet", "--seeds", "0")
    assert outcome.code == 1
    assert "curve/tiny seed 0" in outcome.err
    assert "training diverged" in outcome.err
    assert "1 of 2 jobs failed" in outcome.err
    assert outcome.out.count("\n") == 1  # --quiet: the path of the report
    with Path("reports/runs/my/results.csv").open(newline="", encoding="utf-8") as file:
        failed = [row for row in csv.DictReader(file) if row["status"] == "failed"]
    assert [row["method"] for row in failed] == ["tiny"]
    assert "training diverged" in failed[0]["error"]


def test_ctrl_c_says_how_to_continue(call, suite_file: str) -> None:
    outcome = call("run", suite_file, "--methods", "pair,tiny", "--set", "tiny.trouble=interrupt")
    assert outcome.code == 130
    assert "Interrupted after 1 of 4 jobs; the same command continues." in outcome.err
    assert "Traceback" not in outcome.err
    assert Path("reports/runs/my/report.html").is_file()


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_a_real_ctrl_c_in_a_real_fit(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(
        'name = "long"\nmethods = ["map"]\nseeds = [0]\n' + TASK.replace("200", "200_000_000")
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "bayes_bench", "run", "long.toml", "--snapshot-every", "0.2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    run_dir = tmp_path / "reports/runs/long"
    try:
        deadline = time.monotonic() + 60
        while not list(run_dir.glob("jobs/*/*/*/snapshots/*.snapshot")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "stopping after a snapshot of what runs; press Ctrl-C again to stop at once" in err
    assert "Interrupted after 0 of 1 jobs; the same command continues." in err
    files = [path.name for path in run_dir.glob("jobs/*/*/*/**/*") if path.is_file()]
    assert files == ["part-1.snapshot"]
    assert (run_dir / "report.html").is_file()


def test_check_prints_a_table_and_fails_with_the_method(call, monkeypatch: pytest.MonkeyPatch) -> None:
    from bayes_bench.testing import conformance

    results = [conformance.CheckResult("names", True, ""), conformance.CheckResult("seeds", False, "use the rng")]
    monkeypatch.setattr(conformance, "check", lambda method: results)
    outcome = call("check", "tiny")
    assert outcome.code == 1
    assert "use the rng" in outcome.out
    assert "tiny: 1 of 2 checks passed" in outcome.out
    monkeypatch.setattr(conformance, "check", lambda method: results[:1])
    assert call("check", "tiny").code == 0


# Predictions for new inputs -------------------------------------------------------------------------------


def read(text: str) -> dict[str, np.ndarray]:
    rows = list(csv.DictReader(text.splitlines()))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_predict_a_regression(call, suite_file: str, tmp_path: Path) -> None:
    call("run", suite_file, "--quiet")
    (tmp_path / "new.csv").write_text("x\n" + "".join(f"{x}\n" for x in np.linspace(-6, 6, 7)))
    outcome = call("predict", "reports/runs/my", "tiny", "new.csv", "--seed", "1")
    assert outcome.code == 0, outcome.err
    columns = {name: values.astype(float) for name, values in read(outcome.out).items()}
    assert list(columns) == ["mean", "epistemic_std", "total_std", "outside"]
    folder = next(Path("reports/runs/my/jobs/curve/tiny").glob("seed-1-*"))
    curve = load_predictions(folder)["curve/mean"].astype(np.float64)[..., 0]
    np.testing.assert_allclose(columns["mean"], curve.mean(0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(columns["epistemic_std"], curve.std(0), rtol=1e-3)
    np.testing.assert_allclose(columns["total_std"], np.hypot(curve.std(0), 3.0), rtol=1e-3)
    assert columns["outside"].tolist() == [1, 1, 0, 0, 0, 1, 1]  # training inputs lie within (−4, 4)
    to_file = call("predict", "reports/runs/my", "tiny", "new.csv", "--seed", "1", "--out", "answers.csv")
    assert to_file.out == ""
    assert "7 predictions of 100 networks (curve/tiny, seed 1) written to answers.csv" in to_file.err
    assert (tmp_path / "answers.csv").read_text(encoding="utf-8") == outcome.out


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_predict_classes_from_a_users_own_table(call, tmp_path: Path, delimiter: str) -> None:
    rng = np.random.default_rng(0)
    lines = ["width,height,kind"]
    for kind, centre in (("cat", 0.0), ("dog", 3.0)):
        lines += [f"{x:.3f},{y:.3f},{kind}" for x, y in rng.normal(centre, 1, (60, 2))]
    (tmp_path / "train.csv").write_text("\n".join(lines).replace(",", delimiter) + "\n")
    (tmp_path / "pets.toml").write_text(
        'name = "pets"\nmethods = ["pair"]\nseeds = [0]\n[[tasks]]\nname = "pets"\nbudget = 100\n'
        'data = {source = "csv", path = "train.csv", target = "kind", '
        f'delimiter = "{delimiter}"}}\n'
        'network = {name = "mlp", hidden = [4]}\n'
    )
    outcome = call("run", "pets.toml", "--quiet")
    assert outcome.code == 0, outcome.err
    (tmp_path / "new.csv").write_text("note,height,width\na,0,0\nb,9,9\n".replace(",", delimiter))
    columns = read(call("predict", "reports/runs/pets", "pair", "new.csv").out)
    assert list(columns) == ["label", "p(cat)", "p(dog)", "entropy", "mutual_information", "outside"]
    probs = np.stack([columns["p(cat)"], columns["p(dog)"]], 1).astype(float)
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(columns["label"], np.array(["cat", "dog"])[probs.argmax(1)])
    entropy = -(probs * np.log(probs)).sum(1)
    np.testing.assert_allclose(columns["entropy"].astype(float), entropy, atol=1e-4)
    assert (columns["mutual_information"].astype(float) <= columns["entropy"].astype(float) + 1e-6).all()
    np.save(tmp_path / "swapped.npy", np.zeros((2, 3)))
    for file, sentence in (("nix.csv", "no such file"), ("swapped.npy", "shape")):
        refused = call("predict", "reports/runs/pets", "pair", file)
        assert refused.code == 2
        assert sentence in refused.err
        assert refused.err.count("\n") == 1


def test_a_network_from_a_file_needs_permission(call, suite_file: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(input_shape, outputs, width):\n"
        "    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, outputs))\n"
    )
    custom = '{name = "custom", entry = "net.py:make", options = {width = 3}}'
    text = (tmp_path / suite_file).read_text().replace('{name = "mlp", hidden = [5]}', custom)
    (tmp_path / "my.toml").write_text(text)
    refused = call("run", suite_file)
    assert refused.code == 2
    assert "--allow-code" in refused.err
    assert not (tmp_path / "reports").exists()
    allowed: list[Any] = ["--allow-code", "net.py"]
    assert call("run", suite_file, "--seeds", "0", "--quiet", *allowed).code == 0
    (tmp_path / "new.csv").write_text("x\n1\n")
    assert "--allow-code" in call("predict", "reports/runs/my", "tiny", "new.csv").err
    assert call("predict", "reports/runs/my", "tiny", "new.csv", *allowed).code == 0
