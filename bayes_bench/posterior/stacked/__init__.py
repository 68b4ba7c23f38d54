"""Many networks at once: weights ``[S, …]`` on inputs ``[B, …]``. Imported by methods and the runner.

``StackedNetwork`` is the interface; ``plan`` turns a module into stacked operations, ``operations`` says
how each kind of layer is evaluated for S networks in one call.
"""

from bayes_bench.posterior.stacked.network import MEMORY_LIMIT, StackedNetwork
from bayes_bench.posterior.stacked.scaled import InputScaled, take, take_networks

__all__ = ["MEMORY_LIMIT", "InputScaled", "StackedNetwork", "take", "take_networks"]
