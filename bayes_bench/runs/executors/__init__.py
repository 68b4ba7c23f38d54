"""Where the jobs of a run are computed: in this process, in worker processes, or on a Ray cluster. Imports no torch.

An executor takes jobs while it has room and tells what became of them. What is tried again, counted, recorded and said
is the runner's business, the same for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bayes_bench.host.stopping import Stop
from bayes_bench.runs.executors.base import Executor, Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from bayes_bench.jobs.job import Conditions, PlacedJob
    from bayes_bench.jobs.watch import Watch


def choose(workers: Workers, conditions: Conditions, watch: Callable[[PlacedJob], Watch], stop: Stop) -> Executor:
    """The executor that ``workers`` asks for.

    Raises:
        UsageError: there is no such cluster.
    """
    if workers.executor == "ray":
        from bayes_bench.runs.executors.ray_cluster import RayCluster

        return RayCluster(workers, conditions, watch, stop)
    if workers.jobs is None and workers.timeout is None:
        from bayes_bench.runs.executors.here import Here

        return Here(conditions, watch, stop)
    from bayes_bench.runs.executors.processes import Processes

    return Processes(workers.jobs or 1, workers.timeout, conditions, watch, stop)
