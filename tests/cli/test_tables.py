from __future__ import annotations

import errno
import io
from typing import Any

import pytest
from rich.console import Console

from bayes_bench.cli.console import stdout, table
from bayes_bench.cli.progress import LiveProgress, PlainProgress
from bayes_bench.jobs.plan import plan
from tiny_suites import CURVE, register_fakes, suite

RECORD: dict[str, Any] = {"status": "failed", "error": "too bad"}


def test_every_job_that_runs_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    register_fakes(monkeypatch)
    one, two, three = plan([suite(CURVE, methods=["tiny"], seeds=[0, 1, 2])])
    live, screen = LiveProgress(), io.StringIO()
    live._progress.live.console = Console(file=screen)

    def bars() -> dict[str, float]:
        return {task.description: task.completed for task in live._progress.tasks}

    live.started(one, 1, 3, None)
    live.started(two, 2, 3, None)
    live.progress(one, 0.5, {"loss": 2.0}, 60.0)
    live.progress(two, 0.25, {}, 60.0)
    assert bars() == {
        "0 of 3 jobs": pytest.approx(0.25), "curve/tiny seed 0": 0.5, "curve/tiny seed 1": 0.25,
    }  # fmt: skip
    live.finished(two, 1, 3, RECORD, 1.0, 30.0)
    live.started(one, 1, 3, None)  # again, after its worker has died
    assert bars() == {"1 of 3 jobs": pytest.approx(1 / 3), "curve/tiny seed 0": 0.0}
    live.finished(three, 2, 3, RECORD, None, 30.0)  # found, never started
    live.finished(one, 3, 3, RECORD, 1.0, 0.0)
    assert bars() == {"writing the report": 1.0}
    lines = screen.getvalue().splitlines()
    assert [line for line in lines if "✗" in line] == [
        "✗ curve/tiny seed 1: 1.0 s; failed: too bad",
        "✗ curve/tiny seed 2: already finished; failed: too bad",
        "✗ curve/tiny seed 0: 1.0 s; failed: too bad",
    ]


@pytest.mark.parametrize("kind", [PlainProgress, LiveProgress])
def test_a_reader_that_has_gone_ends_no_run(kind: type[PlainProgress], monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    register_fakes(monkeypatch)
    (job,) = plan([suite(CURVE, methods=["tiny"], seeds=[0])])
    monkeypatch.setattr("sys.stderr", Gone())
    progress = kind()
    progress.message("anything")
    progress.finished(job, 1, 1, RECORD, 1.0, None)


def test_a_cell_from_anywhere_is_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    stdout().print(table(["what"], [["[red]:x:[/] \x1b[31m\x1b]0;title\x07"]]))
    assert "[red]:x:[/] \ufffd[31m\ufffd]0;title\ufffd" in capsys.readouterr().out
