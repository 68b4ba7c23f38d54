"""Runs jobs: makes their tasks, asks what would fail, runs what is not finished, and renders the report."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bayes_bench.errors import BayesBenchError, DataError, MemoryLimitError, UsageError
from bayes_bench.host import machine
from bayes_bench.host.shipped import REFERENCE_SUFFIX
from bayes_bench.host.stopping import Stop, on_signals
from bayes_bench.jobs.execute import build_posterior, check_memory, default_threads, write_failure
from bayes_bench.jobs.job import Conditions, Job, PlacedJob
from bayes_bench.jobs.provenance import code_of, machine_facts, task_fields
from bayes_bench.jobs.renew import renewed
from bayes_bench.jobs.watch import Watch
from bayes_bench.methods import registry
from bayes_bench.metrics import references
from bayes_bench.results.folder import RUN, check_run_dir, clear_snapshots, job_folder, job_state
from bayes_bench.results.lock import check_not_in_use, locked
from bayes_bench.results.schema import FORMAT, write_checked
from bayes_bench.runs import executors
from bayes_bench.runs.clock import Clock
from bayes_bench.runs.executors.base import Executor, Outcome, Workers
from bayes_bench.runs.observer import Observer
from bayes_bench.tasks.spec import SuiteSpec
from bayes_bench.tasks.task import Task, build_task

CRASHES = 2
"""So often may a job's process die; then the job has failed."""
LOSSES = 20
"""So often may a job be lost with its machine, which is no fault of its own."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        finished, failed, skipped: jobs run to the end, failed, and found finished.
        report: the HTML file.
    """

    run_dir: Path
    finished: int
    failed: int
    skipped: int
    total: int
    interrupted: bool
    report: Path

    @property
    def exit_code(self) -> int:
        """0, or 1 with a failed job, or 130 after Ctrl-C."""
        return 130 if self.interrupted else int(self.failed > 0)


def run(
    jobs: Sequence[Job],
    run_dir: Path,
    conditions: Conditions | None = None,
    *,
    workers: Workers | None = None,
    suites: Sequence[SuiteSpec] = (),
    fresh: bool = False,
    command: Sequence[str] = (),
    observer: Observer | None = None,
) -> RunResult:
    """Run jobs into a run folder, and render its report.

    A job whose record is there and valid is skipped. A job that raises, takes too long or twice ends its process
    becomes a failed record, and the others go on. After Ctrl-C or SIGTERM the fits that run finish a snapshot, the
    finished jobs are rendered and the result says ``interrupted``.

    Args:
        jobs: from ``jobs.plan``, in the order they are run.
        run_dir: made where it is not; a run folder is continued.
        conditions: how the jobs are computed.
        workers: who computes them; default: this process, one after the other. Processes import the caller's main
            module, which must therefore be guarded by ``if __name__ == "__main__"``.
        suites: kept in ``run.json``, for readers.
        fresh: run finished jobs again.
        command: the command line, kept in ``run.json``.
        observer: told about progress.

    Raises:
        UsageError: no such device, tf32 without a GPU, workers that cannot be had, a folder that cannot be written or
            is in use, a budget too small for a method's settings, a reference that is missing or of another posterior;
            nothing was run.
        UnsupportedNetworkError: a method cannot treat a task's network; nothing was run.
        DataError: data are missing or damaged; nothing was written.
        PluginError: a method is broken; nothing was written.
        KeyboardInterrupt: Ctrl-C was pressed twice, or before the first job.
    """
    from bayes_bench import report

    observer, workers = observer or Observer(), workers or Workers()
    conditions, placed = prepare(jobs, run_dir, conditions or Conditions(), workers, observer)
    stop, books = Stop(), _Books(placed, conditions, observer, fresh)
    with executors.choose(workers, conditions, books.watch, stop) as executor, locked(run_dir):
        _write_plan(run_dir, placed, suites, command, conditions)
        with on_signals(stop, books.stopping):
            books.go(executor, stop)
        executor.close()
        if stop.insisted:
            raise KeyboardInterrupt
        for sentence in books.of_other_code(run_dir):
            observer.message(sentence)
        path = report.write(run_dir)
    counts = {kind: books.counts[kind] for kind in ("finished", "failed", "skipped")}
    return RunResult(run_dir, **counts, total=len(placed), interrupted=books.interrupted, report=path)


def prepare(
    jobs: Sequence[Job], run_dir: Path, conditions: Conditions, workers: Workers, observer: Observer
) -> tuple[Conditions, list[PlacedJob]]:
    """All that a run does before its first job but to write: tasks are made, and what would fail is refused.

    Returns:
        The conditions with the device that there is, and the jobs with their tasks, keys and folders.

    Raises:
        As ``run``.
    """
    workers.check()
    check_run_dir(run_dir)
    check_not_in_use(run_dir)
    conditions = _settled(conditions, workers, {job.method for job in jobs})
    placed = _placed(jobs, run_dir, conditions)
    _preflight(placed, conditions, observer, here=workers.executor == "local")
    _check_references(placed, observer)
    _check_threads(placed, conditions.threads, workers, observer)
    return conditions, placed


def _settled(conditions: Conditions, workers: Workers, methods: set[str]) -> Conditions:
    """What the user asked for, with the device that there is and the methods that come from files.

    Raises:
        UsageError: no such device, tf32 without a GPU, or a method's file that a cluster does not have.
        PluginError: a method is broken.
    """
    place = workers.device(conditions.device)
    if conditions.precision == "tf32" and place != "cuda":
        raise UsageError("precision tf32 is a GPU's; run without --precision, or with --device cuda")
    for method in methods:
        registry.method_class(method)
    files = registry.files_of(methods)
    if files and workers.executor == "ray":
        raise UsageError(
            f"{files[0]} lies on this machine alone; for a cluster make a package of it: bayes-bench new-method"
        )
    return replace(conditions, device=place, parallel_jobs=workers.jobs or 1, method_files=files)


class _Books:
    """The jobs of a run: which wait, how those ended that did, and all that the observer is told.

    Attributes:
        counts: jobs ``finished``, ``failed`` and ``skipped``.
        interrupted: there are jobs without a record, because of Ctrl-C.
    """

    def __init__(self, placed: Sequence[PlacedJob], conditions: Conditions, observer: Observer, fresh: bool):
        self.counts: Counter[str] = Counter()
        self._outdated: Counter[str] = Counter()
        self.interrupted = False
        self._waiting = deque(placed)
        self._numbers = {item.folder: number for number, item in enumerate(placed, start=1)}
        self._running: dict[Path, PlacedJob] = {}
        self._begun: set[Path] = set()
        self._troubles: Counter[tuple[Path, str]] = Counter()
        self._conditions, self._observer, self._fresh = conditions, observer, fresh
        self._clock = Clock([item.job for item in placed])

    def go(self, executor: Executor, stop: Stop) -> None:
        """Run all jobs that are not finished, or those that end before the user stops it."""
        if self._fresh:
            for item in self._waiting:
                clear_snapshots(item.folder)
        self._clock.slots = executor.slots
        try:
            while True:
                while self._waiting and not (stop.requested or self.interrupted) and executor.room():
                    item = self._waiting.popleft()
                    if not self._found_finished(item):
                        self._running[item.folder] = item
                        executor.submit(item)
                if not self._running:
                    break
                for outcome in executor.wait():
                    self._take(outcome, stop)
        except KeyboardInterrupt:
            self.interrupted = True
        self.interrupted |= bool(self._waiting or self._running)

    def of_other_code(self, run_dir: Path) -> list[str]:
        """Sentences about the finished jobs that were skipped although their code has changed."""
        remedies = {
            "run": "--fresh runs them again",
            "measured": f"bayes-bench report {run_dir} --recompute measures them anew",
        }
        return [
            f"the code has changed since {number} of the finished jobs were {what}; {remedies[what]}"
            for what, number in self._outdated.items()
        ]

    def stopping(self) -> None:
        """Say that a request to stop has been heard. Called by a signal, so at any moment."""
        with suppress(RuntimeError):  # in the middle of another message: then this one is left out
            self._observer.message("stopping after a snapshot of what runs; press Ctrl-C again to stop at once")

    # What jobs tell ------------------------------------------------------------------------------------------

    def watch(self, item: PlacedJob) -> _JobWatch:
        """Who listens to a job."""
        return _JobWatch(self, item)

    def started(self, item: PlacedJob) -> None:
        self._begun.add(item.folder)
        self._clock.begin(item.job)
        left = self._clock.left()
        self._observer.started(item.job, self._numbers[item.folder], len(self._numbers), left)

    def progress(self, item: PlacedJob, fraction: float, values: Mapping[str, float]) -> None:
        if item.folder not in self._begun:  # a cluster may lose what was said before
            self.started(item)
        self._clock.progress(item.job, fraction)
        self._observer.progress(item.job, fraction, values, self._clock.left())

    def message(self, item: PlacedJob, sentence: str) -> None:
        self._observer.message(f"{item.job.name} {sentence}")

    # What became of a job ------------------------------------------------------------------------------------

    def _found_finished(self, item: PlacedJob) -> bool:
        state = job_state(item.folder, item.key)
        if state.kind == "damaged":
            self._observer.message(f"{state.problem}; the job runs again")
        if state.kind != "finished" or self._fresh:
            return False
        assert state.record is not None
        then, now = state.record.get("code") or {}, code_of(item.job, self._conditions.allow_code)
        if changed := {name for name in {**then, **now} if then.get(name) != now.get(name)}:
            self._outdated["measured" if changed == {"metrics"} else "run"] += 1
        record = _compared_as_now(item, state.record, self._observer)
        self._clock.skip(item.job)
        self._enter(item, "skipped", record, None)
        return True

    def _take(self, outcome: Outcome, stop: Stop) -> None:
        item = outcome.item
        del self._running[item.folder]
        began = item.folder in self._begun
        self._begun.discard(item.folder)
        seconds = self._clock.end(item.job, counts=outcome.kind == "recorded") if began else 0.0
        if outcome.kind == "recorded":
            assert outcome.record is not None
            if outcome.record["status"] == "ok":
                # On a cluster the file of a reference is not where the job is, and it is compared here.
                self._enter(item, "finished", _compared_as_now(item, outcome.record, self._observer), seconds)
            else:
                self._enter(item, "failed", outcome.record, seconds)
        elif outcome.kind == "failed":
            self._fail(item, outcome.error, outcome.log, seconds)
        elif outcome.kind == "interrupted" or stop.requested:
            self.interrupted = True
            self._waiting.appendleft(item)
        else:
            self._try_again(outcome, seconds)

    def _try_again(self, outcome: Outcome, seconds: float) -> None:
        """A job whose process died runs once more, one whose machine was lost as often as it takes."""
        item, job = outcome.item, outcome.item.job
        self._troubles[item.folder, outcome.kind] += 1
        times, limit = self._troubles[item.folder, outcome.kind], CRASHES if outcome.kind == "crashed" else LOSSES
        if times < limit:
            self._observer.message(f"{job.name}: {outcome.error}; the job runs again")
            # Last, so that it has the memory for itself more likely.
            self._waiting.append(item)
            return
        what = f"{outcome.error} ({times} times)"
        remedy = "; mostly it is memory: run fewer jobs at once (--jobs)" if outcome.kind == "crashed" else ""
        self._fail(item, f"WorkerDied: {what}{remedy}", f"{outcome.log}\n{what}{remedy}".lstrip(), seconds)

    def _fail(self, item: PlacedJob, error: str, log: str, seconds: float) -> None:
        self._enter(item, "failed", write_failure(item, self._conditions, error, log), seconds)

    def _enter(self, item: PlacedJob, kind: str, record: Mapping[str, Any], seconds: float | None) -> None:
        self.counts[kind] += 1
        done, total = self.counts.total(), len(self._numbers)
        self._observer.finished(item.job, done, total, record, seconds, self._clock.left())


class _JobWatch(Watch):
    """Enters what a job tells into the books of its run."""

    def __init__(self, books: _Books, item: PlacedJob):
        self._books, self._item = books, item

    def started(self) -> None:
        self._books.started(self._item)

    def progress(self, fraction: float, values: Mapping[str, float]) -> None:
        self._books.progress(self._item, fraction, values)

    def message(self, sentence: str) -> None:
        self._books.message(self._item, sentence)


def _preflight(placed: Sequence[PlacedJob], conditions: Conditions, observer: Observer, *, here: bool) -> None:
    """What methods would refuse is refused before the first job trains: all of it at once.

    What cannot fit into memory is only told: such a job will fail at once, and the others go on.

    Args:
        here: the jobs run on this machine, so that its memory is the one that counts.

    Raises:
        BayesBenchError: of the type of the first refusal.
    """
    answers: dict[str, BayesBenchError | None] = {}
    refused: dict[tuple[str, str], BayesBenchError] = {}
    for item in placed:
        if item.variant not in answers:
            answers[item.variant] = _refusal(item, conditions)
        if error := answers[item.variant]:
            refused.setdefault((item.job.task.name, item.job.label), error)
    for (task, label), error in refused.items():
        if here and isinstance(error, MemoryLimitError):
            observer.message(f"{task}/{label} will fail: {error}")
    refused = {place: error for place, error in refused.items() if not isinstance(error, MemoryLimitError)}
    if not refused:
        return
    sentences: dict[str, str] = {}
    for (task, label), error in refused.items():
        sentences.setdefault(str(error), f"{task}/{label}: {error}")
    unfit = {label for _, label in refused}
    others = [label for label in dict.fromkeys(item.job.label for item in placed) if label not in unfit]
    remedy = f" (without {', '.join(sorted(unfit))}: --methods {','.join(others)})" if others else ""
    first = next(iter(refused.values()))
    raise type(first)("; ".join(sentences.values()) + remedy) from first


def _refusal(item: PlacedJob, conditions: Conditions) -> BayesBenchError | None:
    try:
        build_posterior(item.job, item.task).check_fit(item.task.fit_data, item.job.budget)
        check_memory(item.job, item.task, conditions)
    except BayesBenchError as error:
        return error
    except Exception:
        return None  # a mistake in the method: its job will fail and be a row of the report
    return None


def _check_references(placed: Sequence[PlacedJob], observer: Observer) -> None:
    """What a task names as its reference must be one of its posterior, and is looked at before the first job trains.

    A shipped reference may differ in the data alone where an installation renders or reads them differently: then
    its metrics are n/a and the run goes on.
    """
    for task in {item.job.task.model_dump_json(): item.task for item in placed}.values():
        name = task.spec.reference
        if name is None:
            continue
        fields = task_fields(task)
        try:
            found = references.load(name)
            shipped_elsewhere = not name.endswith(REFERENCE_SUFFIX) and references.differences(found, fields) == [
                "data"
            ]
            if not shipped_elsewhere:
                references.check(found, fields)
        except (UsageError, DataError) as error:
            raise type(error)(
                f"task {task.spec.name!r}: {error}; make it with a run without the task's key 'reference', then: "
                f"bayes-bench reference RUN METHOD --task {task.spec.name} --out FILE"
            ) from error
        if shipped_elsewhere:
            observer.message(
                f"task {task.spec.name!r}: no distances to the reference {name!r}, whose data are not exactly those of "
                "this installation"
            )


def _check_threads(placed: Sequence[PlacedJob], threads: int | None, workers: Workers, observer: Observer) -> None:
    """Threads are a setting of the run, whatever the number of workers: results do not depend on it, but time does."""
    tasks = {id(item.task): item.task for item in placed}.values()
    most = threads or max(default_threads(task) for task in tasks)
    at_once = min(workers.jobs or 1, len(placed))
    cores = machine.physical_cores()
    if workers.executor == "local" and at_once > 1 and most > 1 and at_once * most > cores:
        observer.message(
            f"{at_once} jobs at once with {most} threads each get in each other's way on {cores} cores; "
            f"--threads {max(1, cores // at_once)} is faster and may change the last digits"
        )


def _compared_as_now(item: PlacedJob, record: dict[str, Any], observer: Observer) -> dict[str, Any]:
    """The record of a finished job, with what its task is compared with now; no key speaks of that."""
    compared = item.job.task.model_dump(mode="json", include={"reference", "collapse_threshold", "published"})
    try:
        return renewed(item.folder, record, compared)
    except DataError as error:
        observer.message(f"{item.job.name} is not measured anew, although its suite has changed: {error}")
        return record


def build_tasks(jobs: Sequence[Job], data_root: Path | None = None, allow_code: Sequence[Path] = ()) -> dict[str, Task]:
    """Every task once, by the JSON of its specification."""
    tasks: dict[str, Task] = {}
    for job in jobs:
        name = job.task.model_dump_json()
        if name not in tasks:
            tasks[name] = build_task(job.task, data_root, tuple(allow_code))
    return tasks


def _placed(jobs: Sequence[Job], run_dir: Path, conditions: Conditions) -> list[PlacedJob]:
    tasks = build_tasks(jobs, conditions.data_root, conditions.allow_code)
    found = []
    for job in jobs:
        task = tasks[job.task.model_dump_json()]
        place = (task.checksum, conditions.device_class, conditions.memory_limit_mb)
        key = job.key(*place)
        folder = job_folder(run_dir, job.task.name, job.label, job.seed, key)
        found.append(PlacedJob(job, task, key, job.variant(*place), folder))
    return found


def _write_plan(
    run_dir: Path,
    placed: Sequence[PlacedJob],
    suites: Sequence[SuiteSpec],
    command: Sequence[str],
    conditions: Conditions,
) -> None:
    plan = {
        "format": FORMAT,
        "command": list(command),
        "suites": [suite.model_dump(mode="json") for suite in suites],
        "methods": list(dict.fromkeys(item.job.label for item in placed)),
        "seeds": list(dict.fromkeys(item.job.seed for item in placed)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": machine.versions(""),
        "machine": machine_facts(conditions),
        "jobs": [
            {
                "key": item.key,
                "suite": item.job.suite,
                "task": item.job.task.name,
                "label": item.job.label,
                "seed": item.job.seed,
                "folder": item.folder.relative_to(run_dir).as_posix(),
            }
            for item in placed
        ],
    }
    write_checked(run_dir / RUN, plan)
