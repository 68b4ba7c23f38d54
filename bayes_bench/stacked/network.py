"""``StackedNetwork``: S networks on B inputs in one call, in chunks that keep memory bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.checkpoint import checkpoint

from bayes_bench.errors import UsageError
from bayes_bench.stacked.operations import NotStackableError, Value
from bayes_bench.stacked.plan import Plan, make_plan

MEMORY_LIMIT = 512 * 2**20
"""Bytes that one call may use for intermediate values, where the caller sets nothing else."""
CACHE_BYTES = 8 * 2**20
"""Working set that a chunk of a forward pass aims at: larger ones were measured to be slower on CPUs."""
BATCH_CHUNK = 128
"""Examples per chunk of a forward pass."""


class StackedNetwork:
    """Evaluates one architecture for many weight samples.

    Args:
        network: in evaluation mode, a pure function of (weights, x). It is not changed.

    The way is chosen once: ``"plan"`` (stacked operations, layer by layer), else ``"vmap"``, else
    ``"loop"`` over ``torch.func.functional_call``; ``explain`` says which and why. Chunk sizes follow from
    shapes and the memory limit alone, so results repeat.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self._names = {name: p.shape for name, p in network.named_parameters()}
        self._plan: Plan | None = None
        self.method: Literal["plan", "vmap", "loop"] = "plan"
        self.reason = ""
        self._activations: dict[tuple[torch.Size, torch.dtype], tuple[int, int]] = {}
        try:
            self._plan = make_plan(network)
        except NotStackableError as error:
            self._fall_back(str(error))

    def explain(self) -> str:
        """The chosen way and, for a plan, its steps."""
        if self._plan is None:
            return f"{self.method}: {self.reason}"
        return "\n".join(["plan:", *(f"  {step.description}" for step in self._plan.steps)])

    def __call__(
        self,
        weights: Mapping[str, Tensor],
        x: Tensor,
        *,
        own_inputs: bool = False,
        memory_limit: int = MEMORY_LIMIT,
    ) -> Tensor:
        """Outputs of all networks, ``[S, B, K]``.

        Args:
            weights: name → ``[S, *shape]`` for every parameter of the network; entries of the likelihood
                are passed over. Expanded tensors (stride 0) are recognised as shared by the networks.
            x: ``[B, ...]`` for all networks, or with ``own_inputs`` ``[S, B, ...]``.
            memory_limit: bytes for intermediate values. Without gradients the chunks fit it; with gradients
                the chunks that do not fit are computed again in the backward pass.

        Raises:
            UsageError: a name is missing, or a shape does not fit.
        """
        own, networks = self._check(weights, x, own_inputs)
        if x.shape[1 if own_inputs else 0] == 0:
            raise UsageError("no inputs to evaluate; give at least one example")
        grad = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in own.values()))
        if self._plan is not None:
            try:
                return self._run_chunks(own, x, networks, own_inputs, memory_limit, grad)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if not isinstance(error, NotStackableError):
                    # The caller's mistake where the network itself fails on this input; else the plan's.
                    functional_call(
                        self._network, {name: w[0] for name, w in own.items()}, (x[0] if own_inputs else x,)
                    )
                self._plan = None
                self._fall_back(str(error).splitlines()[0])
        return self._run_generic(own, x, networks, own_inputs, memory_limit)

    # ------------------------------------------------------------------------------------------------------

    def _fall_back(self, reason: str) -> None:
        self.method, self.reason = "vmap", reason

    def _check(self, weights: Mapping[str, Tensor], x: Tensor, own_inputs: bool) -> tuple[dict[str, Tensor], int]:
        # functional_call would silently use the module's own tensor for a missing or misspelt name.
        if missing := self._names.keys() - weights.keys():
            raise UsageError(f"weights are missing for {sorted(missing)}; a sample names every parameter")
        own = {name: weights[name] for name in self._names}
        networks = next(iter(own.values())).shape[0]
        for name, value in own.items():
            if value.shape != (networks, *self._names[name]):
                expected = [networks, *self._names[name]]
                raise UsageError(f"weights for {name!r} have shape {list(value.shape)}, expected {expected}")
        if own_inputs and x.shape[0] != networks:
            raise UsageError(f"own_inputs: {x.shape[0]} sets of inputs for {networks} networks; give one each")
        return own, networks

    def _run_chunks(
        self,
        weights: dict[str, Tensor],
        x: Tensor,
        networks: int,
        own_inputs: bool,
        memory_limit: int,
        grad: bool,
    ) -> Tensor:
        plan = self._plan
        assert plan is not None
        # One entry where all networks share the weight: the operations see the sharing by the size 1.
        compact = {name: w[:1] if w.stride(0) == 0 and not w.requires_grad else w for name, w in weights.items()}
        shared = plan.shared_steps({name for name, w in compact.items() if w.shape[0] == 1}, own_inputs)
        batch = x.shape[1] if own_inputs else x.shape[0]
        example = x[0, :1] if own_inputs else x[:1]
        largest, total = self._activation_bytes(weights, example)
        if grad:
            size = max(1, memory_limit // max(1, total * batch))
            if size >= networks:
                return _spread(plan.run(compact, _value(x, own_inputs), {}), networks)
            pieces = [
                checkpoint(
                    self._piece,
                    compact,
                    x,
                    start,
                    min(start + size, networks),
                    own_inputs,
                    use_reentrant=False,
                )
                for start in range(0, networks, size)
            ]
            return torch.cat(pieces)
        rows = max(1, min(batch, BATCH_CHUNK, memory_limit // max(1, largest)))
        size = max(1, min(networks, min(CACHE_BYTES, memory_limit) // max(1, largest * rows)))
        out: Tensor | None = None
        for low in range(0, batch, rows):
            part = x[:, low : low + rows] if own_inputs else x[low : low + rows]
            memo: dict[str, Any] = {}
            for start in range(0, networks, size):
                stop = min(start + size, networks)
                inputs = part[start:stop] if own_inputs else part
                value = plan.run(_slice(compact, start, stop), _value(inputs, own_inputs), memo, shared)
                piece = _spread(value, stop - start)
                if out is None:
                    out = piece.new_empty(networks, batch, *piece.shape[2:])
                out[start:stop, low : low + rows] = piece
        assert out is not None
        return out

    def _piece(self, weights: dict[str, Tensor], x: Tensor, start: int, stop: int, own_inputs: bool) -> Tensor:
        assert self._plan is not None
        inputs = x[start:stop] if own_inputs else x
        value = self._plan.run(_slice(weights, start, stop), _value(inputs, own_inputs), {})
        return _spread(value, stop - start)

    def _activation_bytes(self, weights: Mapping[str, Tensor], example: Tensor) -> tuple[int, int]:
        """Bytes for one network and one example: the largest pair of neighbouring values, and all together."""
        key = (example.shape, example.dtype)
        if key not in self._activations:
            assert self._plan is not None
            memo: dict[str, Any] = {}
            every = frozenset(step.name for step in self._plan.steps)
            single = {name: w[:1].detach() for name, w in weights.items()}
            with torch.no_grad():
                self._plan.run(single, Value(example, stacked=False), memo, every)
            sizes = [
                value.tensor.numel() * value.tensor.element_size()
                for value in (Value(example, stacked=False), *memo.values())
                if isinstance(value, Value)
            ]
            pairs = [left + right for left, right in zip(sizes, sizes[1:] or [0], strict=False)]
            self._activations[key] = (max(pairs), sum(sizes))
        return self._activations[key]

    def _run_generic(
        self, weights: dict[str, Tensor], x: Tensor, networks: int, own_inputs: bool, memory_limit: int
    ) -> Tensor:
        """``vmap`` over the networks where that works, else one network after the other."""

        def one(w: dict[str, Tensor], inputs: Tensor) -> Tensor:
            out: Tensor = functional_call(self._network, w, (inputs,))
            return out

        if self.method == "vmap":
            # A chunk's intermediate values are unknown here; its weights and inputs are a floor to go by.
            floor = sum(w[0].numel() for w in weights.values()) + math.prod(x.shape[own_inputs:])
            chunk = max(1, min(networks, memory_limit // (64 * max(1, floor))))
            try:
                stacked: Tensor = vmap(one, in_dims=(0, 0 if own_inputs else None), chunk_size=chunk)(weights, x)
                return stacked
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                reason = str(error).splitlines()[0]
        outputs = torch.stack(
            [one({name: w[s] for name, w in weights.items()}, x[s] if own_inputs else x) for s in range(networks)]
        )
        if self.method == "vmap":  # the loop could do it, so the input was not to blame
            self.method = "loop"
            self.reason += f"; vmap: {reason}"
        return outputs


def _value(x: Tensor, own_inputs: bool) -> Value:
    # One network's own inputs are shared inputs: the plain operations are the faster ones.
    return Value(x[0], stacked=False) if own_inputs and x.shape[0] == 1 else Value(x, own_inputs)


def _slice(weights: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {name: w if w.shape[0] == 1 else w[start:stop] for name, w in weights.items()}


def _spread(value: Value, networks: int) -> Tensor:
    return value.as_stacked(networks)
