from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_bench import store
from bayes_bench.errors import DataError, UsageError

KEY = "ab" * 32


def record(**changes: Any) -> dict[str, Any]:
    names = {"suite": "s", "task": "t", "label": "l", "method": "m"}
    return {"key": KEY, "status": "ok", "seed": 3, "value": 1.5, **names, **changes}


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
    store.write_text(path, "old")

    def crash(self: Path, target: Path) -> Path:
        assert self.read_text(encoding="utf-8") == "new"  # complete before it takes the place
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            store.write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("step", ["save_predictions", "write_json", "file_facts"])
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


def test_a_record_of_a_newer_format_says_to_update(folder: Path) -> None:
    write(folder)
    content = json.loads((folder / store.RECORD).read_text(encoding="utf-8"))
    (folder / store.RECORD).write_text(json.dumps(content | {"format": 2}), encoding="utf-8")
    with pytest.raises(DataError, match="update bayes-bench"):
        store.read_record(folder / store.RECORD)


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
    assert store.job_state(folder, KEY).kind == "finished"  # looks at sizes only, to be fast
    with pytest.raises(DataError, match="checksum"):
        store.load_predictions(folder)


def test_another_key_with_the_same_eight_digits_is_another_job(folder: Path) -> None:
    write(folder)
    assert store.job_state(folder, KEY[:8] + "0" * 56).kind == "none"


def test_the_hash_is_canonical() -> None:
    assert store.canonical_hash({"a": 1, "b": (1.5, None)}) == store.canonical_hash({"b": [1.5, None], "a": 1})
    assert store.canonical_hash({"a": 1}) != store.canonical_hash({"a": "1"})


@pytest.mark.parametrize(
    ("name", "safe"), [("con", "_con"), ("Aux.x", "_Aux.x"), ("a.", "a._"), ("hypergan", "hypergan")]
)
def test_names_that_windows_reserves(name: str, safe: str) -> None:
    assert store.safe_name(name) == safe


def test_files_are_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    store.write_text(tmp_path / "a", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_second_process_is_told_that_the_folder_is_in_use(tmp_path: Path) -> None:
    with (
        store.locked(tmp_path / "run"),
        pytest.raises(UsageError, match="another bayes-bench run"),
        store.locked(tmp_path / "run"),
    ):
        pass
    with store.locked(tmp_path / "run"):
        pass  # released


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
