from __future__ import annotations

import errno
import json
import math
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from bayes_bench.errors import DataError, StorageError, UsageError
from bayes_bench.host import files
from bayes_bench.results import folder as store
from bayes_bench.results import lock, schema

KEY = "ab" * 32


def record(**changes: Any) -> dict[str, Any]:
    names = {"suite": "s", "task": "t", "label": "l", "method": "m", "variant": "v", "kind": "classification"}
    empty = {"ood": {}, "validation_ood": {}, "missing_ood": {}, "notes": [], "standardiser": {}}
    task = {
        "likelihood": "Categorical(4)",
        "prior": {"std": 1.0},
        "network": {"spec": {"name": "mlp"}, "input_shape": [2], "outputs": 4},
        "data": {"checksum": "c", "n_train": 5, "n_validation": 0, "n_test": 3, "classes": list("abcd"), **empty},
        "task_spec": {"name": "t"},
    }
    measured = {"networks": 2, "budget": {"total": 9}, "fit": {"seconds": 0.1}}
    return {"key": KEY, "status": "ok", "seed": 3, "value": 1.5, **names, **task, **measured, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return store.job_folder(tmp_path, "t", "l", 3, KEY)


def write(folder: Path, **changes: Any) -> dict[str, Any]:
    def save_posterior(path: Path) -> None:
        path.write_bytes(b"weights")

    arrays = {"test/log_probs": np.full((2, 3, 4), -1.5, np.float16), "test/y": np.arange(3)}
    return store.write_job(folder, record(**changes), predictions=arrays, save_posterior=save_posterior, log="hello\n")


def test_what_is_written_is_read(folder: Path) -> None:
    written = write(folder, spread=math.nan, array=np.arange(2), pair=(1, Path("a")))
    assert folder.parts[-4:] == ("jobs", "t", "l", "seed-3-abababab")
    assert written["files"].keys() == {"predictions.safetensors", "posterior.safetensors", "log.txt"}
    assert written["files"]["posterior.safetensors"]["bytes"] == 7
    assert (written["spread"], written["array"], written["pair"]) == (None, [0, 1], [1, "a"])
    assert store.job_state(folder, KEY) == store.JobState("finished", written)
    arrays = store.load_predictions(folder)
    assert arrays["test/log_probs"].dtype == np.float16
    np.testing.assert_array_equal(arrays["test/log_probs"], np.full((2, 3, 4), -1.5))
    np.testing.assert_array_equal(arrays["test/y"], [0, 1, 2])
    assert store.read_records(folder.parents[3]) == ([(folder, written)], [])
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "old")

    def crash(self: Path, target: Path) -> Path:
        assert self.read_text(encoding="utf-8") == "new"  # complete before it takes the place
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            files.write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("step", ["save_predictions", "write_checked", "file_facts"])
def test_a_job_that_was_not_written_to_the_end_is_unfinished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write(folder)

    def crash(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, step, crash)
        with pytest.raises(KeyboardInterrupt):
            write(folder, value=2.5)
    # Never the old record with new files.
    assert store.job_state(folder, KEY).kind == "none"
    assert write(folder, value=2.5)["value"] == 2.5
    assert store.job_state(folder, KEY).kind == "finished"


def test_leftovers_of_a_killed_process_are_removed(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / ".record.json.0a1b2c3d.tmp").write_text("half")
    (folder / "posterior.safetensorsxyz.tmp").write_text("half")
    write(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "log.txt",
        "posterior.safetensors",
        "predictions.safetensors",
        "record.json",
    ]


def test_a_failed_record_has_no_files_of_an_earlier_success(folder: Path) -> None:
    write(folder)
    failed = store.write_job(folder, record(status="failed"), log="traceback\n")
    assert failed["files"].keys() == {"log.txt"}
    assert sorted(path.name for path in folder.iterdir()) == ["log.txt", "record.json"]
    assert store.job_state(folder, KEY).kind == "failed"
    with pytest.raises(DataError, match="no predictions"):
        store.load_predictions(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 1, "key": "x"}', "\udce4"])
def test_a_damaged_record_is_noticed(folder: Path, content: str) -> None:
    write(folder)
    (folder / store.RECORD).write_bytes(content.encode("utf-8", "surrogateescape"))
    state = store.job_state(folder, KEY)
    assert state.kind == "damaged"
    assert "record.json is damaged" in state.problem
    records, problems = store.read_records(folder.parents[3])
    assert records == []
    assert problems == [state.problem]


def test_every_changed_bit_of_a_record_is_noticed(folder: Path) -> None:
    write(folder)
    path = folder / store.RECORD
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(DataError):
                schema.read_record(path)


@pytest.mark.parametrize("cut", [1, 3, 60, 100, 500])
def test_a_cut_or_longer_record_is_noticed(folder: Path, cut: int) -> None:
    write(folder)
    path = folder / store.RECORD
    content = path.read_bytes()
    for changed in (content[:-cut], content + bytes(cut), content + b"\n"):
        path.write_bytes(changed)
        with pytest.raises(DataError, match="damaged"):
            schema.read_record(path)


def test_a_record_of_format_1_has_no_checksum_and_is_read(folder: Path) -> None:
    written = write(folder)
    schema.write_json(folder / store.RECORD, written | {"format": 1})
    assert store.job_state(folder, KEY) == store.JobState("finished", written | {"format": 1})
    schema.write_json(folder / store.RECORD, written)
    with pytest.raises(DataError, match="its checksum is missing"):
        schema.read_record(folder / store.RECORD)


def test_what_steers_a_terminal_is_replaced_where_it_is_written(folder: Path) -> None:
    write(folder, error="\x1b]0;title\x07 \ud800 \u202e", note="x" * 30_000)
    written = schema.read_record(folder / store.RECORD)
    assert written["error"] == "\ufffd]0;title\ufffd \ufffd \ufffd"
    assert len(written["note"]) == 20_000
    assert written["note"].endswith("x…")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 1, "x": NaN}', "not finite"),
        ('{"format": 1, "x": 1e999}', "not finite"),
        ('{"format": 1, "x": -1.7e308}', "beyond 1e.100"),
        ('{"format": 1, "x": 99999999999999999999}', "beyond 64 bits"),
        ('{"format": 1, "x": "\\u001b"}', "control characters"),
        ('{"format": 1, "x": "\\ud800"}', "control characters"),
        ('{"format": 1, "x": ' + 50 * "[" + 50 * "]" + "}", "nested more than"),
        ('{"format": 1, "x": ' + 100_000 * "[" + 100_000 * "]" + "}", "recursion"),
        ('{"format": true}', "names no format"),
        ('{"format": 1, "x": ' + 5000 * "9" + "}", "digits"),
    ],
)
def test_json_that_readers_would_stumble_over_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"{path} is damaged: .*{said}"):
        schema.read_checked(path)


def test_a_file_too_large_for_a_record_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with path.open("wb") as file:
        file.truncate(schema.LARGEST_JSON + 1)
    with pytest.raises(DataError, match="more than"):
        schema.read_checked(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems call it a lack of permission")
def test_a_folder_in_place_of_a_file_is_named(folder: Path) -> None:
    (folder / store.LOG).mkdir(parents=True)
    with pytest.raises(StorageError, match=f"cannot write {folder / store.LOG}: .*; remove the folder that is in its"):
        store.write_job(folder, record())


def test_a_record_that_is_a_pipe_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    os.mkfifo(folder / store.RECORD)
    found, (problem,) = store.read_records(tmp_path)
    assert (found, problem) == ([], f"{folder / store.RECORD} is not a file; remove it")


def test_a_folder_that_cannot_be_read_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_job(folder, record())
    listed, iterdir = folder.parent, Path.iterdir

    def refused(path: Path) -> Iterator[Path]:
        if path == listed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return iterdir(path)

    assert len(store.read_records(tmp_path)[0]) == 1
    monkeypatch.setattr(Path, "iterdir", refused)
    assert store.read_records(tmp_path) == ([], [f"cannot read {listed}: Permission denied"])


def test_snapshots_go_with_success_and_stay_with_failure(folder: Path) -> None:
    def snapshot() -> Path:
        (folder / store.SNAPSHOTS).mkdir(parents=True, exist_ok=True)
        (folder / store.SNAPSHOTS / "fit.snapshot").write_bytes(b"weights")
        return folder / store.SNAPSHOTS / "fit.snapshot"

    kept = snapshot()
    store.write_job(folder, record(status="failed"))
    assert kept.exists()
    assert store.job_state(folder, KEY).kind == "failed"
    write(folder)
    assert not kept.parent.exists()


@pytest.mark.parametrize("part", ["jobs", "jobs/t", "jobs/t/l", "folder", "record.json", "log.txt", "snapshots"])
def test_nothing_is_read_or_written_through_a_symbolic_link(folder: Path, tmp_path: Path, part: str) -> None:
    write(folder)
    path = {"folder": folder}.get(part, tmp_path / part if part.startswith("jobs") else folder / part)
    elsewhere = tmp_path / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.mkdir()
    path.symlink_to(elsewhere, target_is_directory=elsewhere.is_dir())
    before = {file: file.read_bytes() for file in elsewhere.rglob("*") if file.is_file()}
    for act in (store.job_state, lambda folder, _: write(folder), lambda folder, _: store.load_predictions(folder)):
        with pytest.raises(DataError, match=f"{path} is a symbolic link"):
            act(folder, KEY)
    assert {file: file.read_bytes() for file in elsewhere.rglob("*") if file.is_file()} == before
    found, problems = store.read_records(tmp_path)
    assert (len(found), len(problems)) == (0, 1)


@pytest.mark.parametrize("name", ["run.json", ".lock", "jobs"])
def test_a_run_folder_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    schema.write_checked(run / store.RUN, {"format": 2, "jobs": []})
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    for act in (store.read_run, store.check_run_dir):
        with pytest.raises(DataError, match=f"{name} is a symbolic link"):
            act(run)


def test_a_record_in_the_folder_of_another_job_is_damaged(folder: Path, tmp_path: Path) -> None:
    write(folder)
    folder.rename(folder.with_name("seed-4-abababab"))
    assert store.read_records(tmp_path)[0] == []
    assert "record of another job" in store.read_records(tmp_path)[1][0]


def test_a_record_of_a_newer_format_says_to_update(folder: Path) -> None:
    write(folder)
    schema.write_checked(folder / store.RECORD, record() | {"format": 3})
    with pytest.raises(DataError, match="update bayes-bench"):
        schema.read_record(folder / store.RECORD)


def test_a_missing_or_cut_file_is_noticed(folder: Path) -> None:
    write(folder)
    (folder / store.POSTERIOR).write_bytes(b"weigh")
    assert "has 5 bytes instead of 7" in store.job_state(folder, KEY).problem
    (folder / store.POSTERIOR).unlink()
    assert "is missing" in store.job_state(folder, KEY).problem


def test_predictions_with_a_flipped_bit_are_noticed(folder: Path) -> None:
    write(folder)
    path = folder / store.PREDICTIONS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    state = store.job_state(folder, KEY)
    assert (state.kind, state.problem) == ("damaged", f"{path} is damaged: its checksum differs")
    with pytest.raises(DataError, match="checksum"):
        store.load_predictions(folder)


def test_another_key_with_the_same_eight_digits_is_another_job(folder: Path) -> None:
    write(folder)
    assert store.job_state(folder, KEY[:8] + "0" * 56).kind == "none"


def test_the_hash_is_canonical() -> None:
    assert schema.canonical_hash({"a": 1, "b": (1.5, None)}) == schema.canonical_hash({"b": [1.5, None], "a": 1})
    assert schema.canonical_hash({"a": 1}) != schema.canonical_hash({"a": "1"})


@pytest.mark.parametrize(
    ("name", "safe"), [("con", "_con"), ("Aux.x", "_Aux.x"), ("a.", "a._"), ("hypergan", "hypergan")]
)
def test_names_that_windows_reserves(name: str, safe: str) -> None:
    assert store.safe_name(name) == safe


def test_files_are_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/bayes-bench", "run", "my suite.toml"])
    sentence = (
        rf"another bayes-bench run is writing to .*: process {os.getpid()} on {re.escape(socket.gethostname())} "
        r"since 20\d\d-.* \(bayes-bench run 'my suite.toml'\); wait for it or choose another --out"
    )
    with lock.locked(tmp_path / "run"):
        with pytest.raises(UsageError, match=sentence), lock.locked(tmp_path / "run"):
            pass
        with pytest.raises(UsageError, match=sentence):
            lock.check_not_in_use(tmp_path / "run")
        for damaged in ("{", "[]", '{"process": 1}', "[" * 10_000, "\0"):
            (tmp_path / "run" / lock.HOLDER).write_text(damaged)
            with pytest.raises(UsageError, match="run; wait for it"), lock.locked(tmp_path / "run"):
                pass
    with lock.locked(tmp_path / "run"):
        pass  # released
    for folder in ("run", "new"):
        lock.check_not_in_use(tmp_path / folder)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert not (tmp_path / "new").exists()


def test_a_pipe_in_place_of_the_holder_is_not_waited_for(tmp_path: Path) -> None:
    with lock.locked(tmp_path):
        (tmp_path / lock.HOLDER).unlink()
        os.mkfifo(tmp_path / lock.HOLDER)
        with pytest.raises(UsageError, match=r"is writing to [^:]+; wait for it"), lock.locked(tmp_path):
            pass


def test_the_holder_of_a_lock_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    about = {"process": 1, "host": "h\x1b]0;x\x07", "since": "now", "command": "a\nb"}
    with lock.locked(tmp_path):
        (tmp_path / lock.HOLDER).write_text(json.dumps(about))
        with pytest.raises(UsageError) as refused, lock.locked(tmp_path):
            pass
    assert "process 1 on h?]0;x? since now (a?b)" in str(refused.value)


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def acquire(self: Any) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    sentence = r"cannot lock .*run \((no flock|No locks available)\); choose an --out on a file system that has locks"
    with pytest.raises(UsageError, match=sentence), lock.locked(tmp_path / "run"):
        pass


def test_what_an_early_death_leaves_is_no_other_folder(tmp_path: Path) -> None:
    for name in (".lock", ".lock.json", ".run.json.0a1b2c3d.tmp"):
        (tmp_path / name).touch()
    store.check_run_dir(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"not a run folder \(it holds 'thesis.tex'\)"):
        store.check_run_dir(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        store.check_run_dir(tmp_path / "thesis.tex" / "run")
    store.check_run_dir(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="not a run folder"):
        store.read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"jobs": 3}')
    store.check_run_dir(tmp_path)
    with pytest.raises(DataError, match=r"run\.json is damaged"):
        store.read_run(tmp_path)
