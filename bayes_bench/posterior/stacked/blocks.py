"""How many networks and examples are evaluated at once. Pure arithmetic.

Blocks follow from shapes, the device and the memory limit, never from timings: results repeat. On a CPU a block's
intermediate values should stay in the cache, and one network with many examples is already enough work for one
operation; several networks share an operation only where one alone has so little to do that calling it would cost more
than computing it. A GPU wants as much at once as its memory allows.
"""

from __future__ import annotations

from dataclasses import dataclass

CACHE_BYTES = 2 * 2**20
"""Intermediate values that a block on a CPU aims at (benchmarks/speed/NOTES.md: larger and smaller were slower)."""
GRADIENT_CACHE_BYTES = 16 * 2**20
"""The same with gradients, for all that a block keeps until its backward pass."""
GRADIENT_BYTES = 4 * 2**20
"""Gradients of a block's weights on a CPU, at most, unless one network has more."""
EXAMPLES = 128
"""Examples in a block without gradients on a CPU, at most."""


@dataclass(frozen=True)
class Blocks:
    """One operation serves ``networks`` networks on ``examples`` examples; both ≥ 1."""

    networks: int
    examples: int


def choose_blocks(
    networks: int,
    examples: int,
    *,
    bytes_each: int,
    device: str,
    memory_limit: int,
    gradients: bool = False,
    weight_bytes: int = 0,
) -> Blocks:
    """Blocks for S networks on B examples.

    Args:
        bytes_each: what one network needs for one example while the block is computed, in bytes.
        device: the device's type, ``"cpu"`` or another.
        memory_limit: bytes that a block may take.
        gradients: whether a backward pass follows, which adds to the weights' gradients once per block of
            examples: these are cut by memory alone.
        weight_bytes: of one network's weights, where their gradients should stay in the cache until they are
            written to where they belong.
    """
    fitting = max(1, memory_limit // max(1, bytes_each))
    if device != "cpu":
        rows = min(examples, fitting)
        return Blocks(max(1, min(networks, fitting // rows)), rows)
    rows = min(examples, fitting) if gradients else min(examples, fitting, EXAMPLES)
    aim = GRADIENT_CACHE_BYTES if gradients else CACHE_BYTES
    wanted = min(aim, memory_limit) // max(1, bytes_each * rows)
    if weight_bytes:
        wanted = min(wanted, GRADIENT_BYTES // weight_bytes)
    return Blocks(max(1, min(networks, wanted)), rows)
