"""Jobs on a Ray cluster: Ray's own of several nodes on this machine, and the parts that need none."""

from __future__ import annotations

import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bayes_bench import report
from bayes_bench.errors import UsageError
from bayes_bench.host.files import write_bytes
from bayes_bench.jobs import execute as execution
from bayes_bench.jobs import provenance
from bayes_bench.jobs.job import Conditions
from bayes_bench.jobs.plan import plan
from bayes_bench.results.folder import RECORD, SNAPSHOTS, job_state, write_files, write_job
from bayes_bench.runs import executors
from bayes_bench.runs.executors.base import Workers
from bayes_bench.tasks.task import Task, build_task
from rogue import rogue_plugin
from tiny_suites import CURVE, suite
from worker_runs import Seen, alive, go, log_of, number_in, rogue_entry, until, without_measurements

ray = pytest.importorskip("ray")
from bayes_bench.runs.executors import ray_cluster  # noqa: E402

SMALL = {"object_store_memory": 80 * 2**20}


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda run_dir: Path(run_dir) / "report.html")


@pytest.fixture
def entry(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    return partial(rogue_entry, tmp_path)


# A cluster ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head node that computes nothing, and whatever nodes the tests add."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        rogue_plugin(tmp_path_factory.mktemp("plugin") / "plugin", patch)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
        try:
            yield made
        finally:
            made.shutdown()


@pytest.fixture
def node(cluster: Any) -> Any:
    """The cluster, with a node for one job at least."""
    if not cluster.worker_nodes:
        cluster.add_node(num_cpus=1, **SMALL)
    return cluster


@pytest.mark.timeout(900)  # a busy machine starts Ray's processes slowly
def test_no_job_is_lost_with_its_node(
    cluster: Any, entry: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node is killed with a job in the middle of its fit, which goes on elsewhere where its last snapshot was."""
    entries = ["map", entry("other")]
    budget = 100_000
    victim = cluster.add_node(num_cpus=1, **SMALL)

    class Killer(Seen):
        def progress(self, *arguments: Any) -> None:
            super().progress(*arguments)
            arrived = list(tmp_path.glob("run/jobs/curve/map/*/snapshots/*"))
            if arrived and victim in cluster.worker_nodes:
                cluster.add_node(num_cpus=1, **SMALL)
                cluster.remove_node(victim, allow_graceful=False)

    address = {"executor": "ray", "address": cluster.address}
    result, records, seen = go(entries, tmp_path / "run", budget=budget, snapshot_every=0.2, seen=Killer(), **address)
    assert (result.finished, result.exit_code) == (2, 0)
    lost, continued = seen.messages
    assert lost == "curve/map seed 0: its machine was lost; the job runs again"
    assert continued.startswith("curve/map seed 0 goes on from a snapshot at ")
    assert records["map"]["fit"]["interruptions"] == 1
    assert sorted(seen.started_jobs) == ["map", "map", "other"]
    assert seen.values  # progress came through
    assert capsys.readouterr().out == ""  # Ray has much to say of a lost node
    assert not ray.is_initialized()
    go(entries, tmp_path / "serial", budget=budget)
    assert without_measurements(tmp_path / "run") == without_measurements(tmp_path / "serial")
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp" or path.name == "snapshots"]


@pytest.mark.slow
def test_failures_on_a_cluster(node: Any, entry: Callable[..., Any], tmp_path: Path) -> None:
    entries = [entry("dies", "dies"), entry("slow", "stubborn"), entry("bad", "crash"), entry("good")]
    result, records, _ = go(entries, tmp_path / "run", executor="ray", address=node.address, timeout=2)
    assert (result.finished, result.failed, result.exit_code) == (1, 3, 1)
    assert records["dies"]["error"].startswith("WorkerDied: its process died (2 times)")
    assert records["slow"]["error"] == "TimeoutError: not finished after 2 s; raise --timeout"
    assert records["bad"]["error"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in log_of(tmp_path / "run", "bad")
    until(lambda: not alive(number_in(tmp_path / "slow.mark")))


def test_ctrl_c_reaches_the_cluster(node: Any, entry: Callable[..., Any], tmp_path: Path) -> None:
    class Press(Seen):
        """Presses when the job is at work and the driver knows that it has started: news takes a moment."""

        def started(self, *arguments: Any) -> None:
            super().started(*arguments)
            number_in(tmp_path / "a.mark")
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    entries = [entry("a", "waits"), entry("b")]
    result, records, seen = go(entries, tmp_path / "run", seen=Press(), executor="ray", address=node.address)
    assert (result.finished, result.interrupted, result.exit_code) == (0, True, 130)
    assert records == {}
    assert seen.started_jobs == ["a"]
    assert signal.getsignal(signal.SIGTERM) is before
    until(lambda: not alive(number_in(tmp_path / "a.mark")))


def test_ctrl_c_brings_a_snapshot_back(node: Any, tmp_path: Path) -> None:
    class Press(Seen):
        def progress(self, *arguments: Any) -> None:
            super().progress(*arguments)
            if len(self.values) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    cluster = {"executor": "ray", "address": node.address}
    result, records, _ = go(["map"], tmp_path / "run", budget=10_000_000, seen=Press(), **cluster)
    assert (result.interrupted, result.exit_code, records) == (True, 130, {})
    assert [path.suffix for path in (tmp_path / "run").glob("jobs/curve/map/*/snapshots/*")] == [".snapshot"]


def test_an_error_on_a_machine_is_said_as_it_is(
    node: Any, entry: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "code_of", lambda *arguments: {"core": "another"})
    _, records, _ = go([entry("a")], tmp_path / "run", executor="ray", address=node.address)
    assert re.match(r"UsageError: \S+ has other code of bayes-bench or of the method", records["a"]["error"])
    log = log_of(tmp_path / "run", "a")
    assert "in _run" in log
    assert "\x1b" not in log


def test_what_no_machine_has_is_refused(node: Any, entry: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no machine .* has what a job reserves \(cores: 3\)"):
        go([entry("a")], tmp_path / "run", executor="ray", address=node.address, cpus_per_job=3)
    assert not ray.is_initialized()
    assert not (tmp_path / "run").exists()


# No cluster -----------------------------------------------------------------------------------------------


class Request:
    """The driver's request to stop, in this process."""

    def __init__(self) -> None:
        self._answer: Future[None] = Future()

    def future(self) -> Future[None]:
        return self._answer

    def ask(self) -> None:
        self._answer.set_result(None)


def parcel(tmp_path: Path, **changes: Any) -> tuple[ray_cluster.Parcel, Task]:
    """A job as the driver sends it."""
    task = CURVE | changes
    (job,) = plan([suite(task, methods=["map"], seeds=[0])])
    modules = tuple(tmp_path.glob("*.py"))
    conditions = Conditions("cpu", allow_code=modules)
    made = ray_cluster.Parcel(
        job, "ab" * 32, "v" * 64, conditions, provenance.code_of(job, modules),
        ray_cluster._module_of_network(job, modules), tuple(path.read_bytes() for path in modules),
        {"snapshots/part-1.snapshot": b"kept"}, Workers("ray"), cast("Any", Request()),
    )  # fmt: skip
    return made, build_task(job.task, allow_code=modules)


def delivered(sent: ray_cluster.Parcel, task: Task) -> tuple[ray_cluster.Delivery, list[ray_cluster.Letter]]:
    """Run the job in this process: what it delivers, and all that it has told."""
    *batches, delivery = ray_cluster.run_parcel(sent, pickle.loads(pickle.dumps(task)))
    return delivery, [letter for batch in batches for letter in batch]


@pytest.fixture
def _on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(ray_cluster.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray_cluster.ray, "nodes", lambda: [{"NodeID": "node", "Resources": {"CPU": 8.0}}])


@pytest.mark.usefixtures("_on_a_node")
def test_a_job_needs_no_file_of_the_driver(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(input_shape, outputs, width):\n"
        "    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, outputs))\n"
    )
    network = {"name": "custom", "entry": f"{tmp_path / 'net.py'}:make", "options": {"width": 3}}
    sent, task = parcel(tmp_path, network=network, reference=str(tmp_path / "reference.safetensors"))
    (tmp_path / "net.py").unlink()
    delivery, letters = delivered(sent, task)
    assert delivery.recorded
    record = write_files(tmp_path / "job", delivery.files)
    assert job_state(tmp_path / "job", "ab" * 32).kind == "finished"
    assert record["status"] == "ok"
    assert record["code"] == sent.code
    assert record["network"]["spec"]["entry"] == network["entry"]
    assert record["task_spec"]["reference"] is None  # compared by the driver, which has the file
    kinds = [kind for kind, *_ in letters]
    assert kinds[0] == "started"
    assert "progress" in kinds


def test_other_code_on_a_machine_of_the_cluster_is_refused(tmp_path: Path) -> None:
    sent, task = parcel(tmp_path)
    sent.code["core"] = "another"
    with pytest.raises(UsageError, match="has other code of bayes-bench"):
        delivered(sent, task)


@pytest.mark.usefixtures("_on_a_node")
@pytest.mark.parametrize("finished", [False, True])
def test_snapshots_travel_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool) -> None:
    def execute(item: Any, conditions: Any, watch: Any, stop: Any) -> None:
        folder = item.folder / SNAPSHOTS
        assert (folder / "part-1.snapshot").read_bytes() == b"kept"
        write_bytes(folder / "part-2.snapshot", b"new")
        (folder / ".part-3.snapshot.0a1b2c3d.tmp").touch()
        try:
            with stop.deferred():
                sent.request.ask()
                until(lambda: stop.requested, seconds=10)
            watch.message("stops")
        finally:
            if finished:
                write_bytes(item.folder / RECORD, b"{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "execute", execute)
    sent, task = parcel(tmp_path)
    delivery, letters = delivered(sent, task)
    snapshots = {"snapshots/part-1.snapshot": b"kept", "snapshots/part-2.snapshot": b"new"}
    assert delivery.recorded == finished
    assert delivery.files == snapshots | ({"record.json": b"{}"} if finished else {})
    assert ("snapshot", {"snapshots/part-2.snapshot": b"new"}) in letters
    assert ("message", "stops") in letters
    assert not any("part-1" in str(letter) for letter in letters)


@pytest.mark.usefixtures("_on_a_node")
def test_a_job_with_nothing_to_finish_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has kept comes back; its process is ended by the driver."""
    end = threading.Event()

    def execute(item: Any, conditions: Any, watch: Any, stop: Any) -> None:
        sent.request.ask()
        end.wait(60)

    monkeypatch.setattr(execution, "execute", execute)
    sent, task = parcel(tmp_path)
    telling = ray_cluster.run_parcel(sent, task)
    delivery = next(news for news in telling if isinstance(news, ray_cluster.Delivery))
    assert delivery == ray_cluster.Delivery(False, {"snapshots/part-1.snapshot": b"kept"})
    end.set()
    assert list(telling) == []


@pytest.mark.usefixtures("_on_a_node")
def test_a_job_tells_a_changed_snapshot_again_and_the_latest_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[Any] = []

    def execute(item: Any, conditions: Any, watch: Any, stop: Any) -> None:
        for content in (b"one", b"second"):
            snapshot = {"snapshots/part-2.snapshot": content}
            write_bytes(item.folder / "snapshots/part-2.snapshot", content)
            until(lambda snapshot=snapshot: ("snapshot", snapshot) in arrived)
        watch.progress(0.1, {})
        watch.progress(0.2, {})

    monkeypatch.setattr(execution, "execute", execute)
    sent, task = parcel(tmp_path)
    for news in ray_cluster.run_parcel(sent, task):
        arrived += news if isinstance(news, list) else []
    assert [letter for letter in arrived if letter[0] == "progress"][-1] == ("progress", 0.2, {})


@pytest.mark.usefixtures("_on_a_node")
@pytest.mark.parametrize(
    ("reserved", "share"),
    [
        ({}, 8),
        ({"cpus_per_job": 3}, 2),
        ({"jobs": 4}, 4),
        ({"cpus_per_job": 16}, 1),
        ({"gpus_per_job": 0.25}, 4),
        ({"gpus_per_job": 2}, 1),
    ],
)
def test_jobs_that_share_memory(reserved: dict[str, Any], share: int) -> None:
    assert ray_cluster._neighbours(Workers("ray", **reserved)) == share


def test_folders_of_killed_jobs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(ray_cluster.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("killed", "held", "new", "other"):
        (tmp_path / (ray_cluster.FOLDERS * (name != "other") + name)).mkdir()
    held = filelock.FileLock(tmp_path / f"{ray_cluster.FOLDERS}held" / ray_cluster.LOCK)
    with held:
        old = time.time() - 2 * ray_cluster.OLD_SECONDS
        for folder in tmp_path.iterdir():
            if not folder.name.endswith("new"):
                os.utime(folder, (old, old))
        ray_cluster._sweep()
    assert {folder.name.removeprefix(ray_cluster.FOLDERS) for folder in tmp_path.iterdir()} == {"held", "new", "other"}


def test_files_from_elsewhere_replace_what_was_there(tmp_path: Path) -> None:
    for name in ("snapshots/part-1.snapshot", "record.json", "posterior.safetensors"):
        write_bytes(tmp_path / name, b"old")
    names = {"suite": "s", "task": "t", "label": "l", "method": "m", "seed": 0}
    made = write_job(tmp_path / "there", {"key": "ab" * 32, "status": "failed", **names}, log="x")
    files = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    assert write_files(tmp_path, files) == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "record.json", "there"]


# Arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "gpus", "device"), [("auto", None, "cpu"), ("auto", 0.5, "cuda"), ("cuda", 1, "cuda"), ("cpu", 0, "cpu")]
)
def test_the_device_is_what_a_job_reserves(asked: str, gpus: float | None, device: str) -> None:
    assert Workers("ray", gpus_per_job=gpus).device(asked) == device


@pytest.mark.parametrize(("asked", "gpus", "remedy"), [("cuda", None, "add"), ("cpu", 1, "leave out")])
def test_a_device_that_no_job_reserves_is_refused(asked: str, gpus: float | None, remedy: str) -> None:
    with pytest.raises(UsageError, match=f"--device {asked} does not go .* {remedy} .*--gpus-per-job"):
        Workers("ray", gpus_per_job=gpus).device(asked)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_a_cluster_that_does_not_answer_is_said_at_once(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match=f"cannot reach the Ray cluster at {address} .*start one with: ray start"):
        go(["map"], tmp_path / "run", executor="ray", address=address)
    assert not (tmp_path / "run").exists()


def test_without_ray_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors.base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'ray>=2.9'"):
        Workers("ray").check()
