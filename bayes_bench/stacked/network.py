"""``StackedNetwork``: S networks on B inputs in one call, in blocks that keep memory bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from bayes_bench.errors import UsageError
from bayes_bench.stacked.blocks import Blocks, choose_blocks
from bayes_bench.stacked.operations import NotStackableError, Value
from bayes_bench.stacked.plan import Plan, make_plan
from bayes_bench.stacked.scaled import InputScaled

MEMORY_LIMIT = 512 * 2**20
"""Bytes that one call may use for intermediate values, where the caller sets nothing else."""

PerExample = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""(outputs ``[S, B, K]``, targets, weights) → loss of each network on each example ``[S, B]``."""


class StackedNetwork:
    """Evaluates one architecture for many weight samples.

    Args:
        network: in evaluation mode, a pure function of (weights, x). It is not changed.

    The way is chosen once: ``"plan"`` (stacked operations, layer by layer), else ``"vmap"``, else
    ``"loop"`` over ``torch.func.functional_call``; ``explain`` says which and why. Blocks follow from
    shapes, the device and the memory limit alone, so results repeat.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self._names = {name: p.shape for name, p in network.named_parameters()}
        self._plan: Plan | None = None
        self.method: Literal["plan", "vmap", "loop"] = "plan"
        self.reason = ""
        self._bytes: dict[tuple[Any, ...], tuple[int, int]] = {}
        try:
            self._plan = make_plan(network)
        except NotStackableError as error:
            self._fall_back(str(error))

    def explain(self, weights: Mapping[str, Tensor] | None = None, x: Tensor | None = None) -> str:
        """The chosen way and, for a plan, its steps; with weights ``[S, …]`` and inputs x ``[B, …]`` also how many
        networks and examples are evaluated at once without gradients, and what is computed once for all networks.
        """
        lines = ["plan:"] if self._plan else [f"{self.method}: {self.reason}"]
        shared: frozenset[str] = frozenset()
        if weights is not None and x is not None:
            own, networks = self._check(weights, x, own_inputs=False)
            compact = _compact(own)
            shared = self._shared_steps(compact, own_inputs=False)
            each, _ = self._measure(compact, x, False, shared)
            blocks = choose_blocks(networks, len(x), bytes_each=each, device=x.device.type, memory_limit=MEMORY_LIMIT)
            size = blocks.networks * blocks.examples * each / 2**20
            lines.append(f"  {networks} networks, {len(x)} examples")
            lines.append(f"  {blocks.networks} networks × {blocks.examples} examples at once, {size:.1f} MiB")
        once = " (once for all networks)"
        steps = self._plan.steps if self._plan else []
        lines += [f"  {step.description}{once if step.name in shared else ''}" for step in steps]
        return "\n".join(lines)

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
            memory_limit: bytes for intermediate values. Without gradients the blocks fit it; with gradients
                blocks that together do not fit are computed again in the backward pass (``mean_loss`` need not).

        Raises:
            UsageError: a name is missing, or a shape does not fit.
        """
        own, networks = self._check(weights, x, own_inputs)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *own.values())):
            return self._differentiable_outputs(own, x, networks, own_inputs, memory_limit)
        return self._plain_outputs(own, x, networks, own_inputs, memory_limit)

    def mean_loss(
        self,
        weights: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        per_example: PerExample,
        *,
        own_inputs: bool = False,
        memory_limit: int = MEMORY_LIMIT,
    ) -> Tensor:
        """Each network's mean loss over its examples, ``[S]``, differentiable once in weights and x.

        Where gradients are wanted they are computed block by block in this very pass, right after the block's
        forward: its intermediate values are still in the cache and are then forgotten, so that memory holds one block
        of them and not S, and nothing is computed twice.

        Args:
            weights, x, own_inputs, memory_limit: as for a call; entries of the likelihood go to ``per_example``.
            y: targets ``[B, ...]``, or with ``own_inputs`` ``[S, B, ...]``.
            per_example: independent for networks and examples.
        """
        _, networks = self._check(weights, x, own_inputs)
        tensors = [x, *weights.values()]
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
            outputs = self(weights, x, own_inputs=own_inputs, memory_limit=memory_limit)
            return per_example(outputs, y, weights).mean(1)

        def compute(x: Tensor, *values: Tensor) -> tuple[Tensor, list[Tensor | None]]:
            full = dict(zip(weights, values, strict=True))
            return self._losses_and_gradients(full, x, y, per_example, networks, own_inputs, memory_limit)

        losses: Tensor = _WithGradients.apply(compute, *tensors)
        return losses

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
        if x.shape[1 if own_inputs else 0] == 0:
            raise UsageError("no inputs to evaluate; give at least one example")
        return own, networks

    # Whole calls, block by block ------------------------------------------------------------------------------

    def _plain_outputs(
        self, weights: dict[str, Tensor], x: Tensor, networks: int, own_inputs: bool, memory_limit: int
    ) -> Tensor:
        compact = _compact(weights)
        shared = self._shared_steps(compact, own_inputs)
        largest, _ = self._measure(compact, x, own_inputs, shared)
        batch = x.shape[1] if own_inputs else x.shape[0]
        blocks = choose_blocks(networks, batch, bytes_each=largest, device=x.device.type, memory_limit=memory_limit)
        if blocks == Blocks(networks, batch):
            return self._block(compact, x, networks, own_inputs)
        out: Tensor | None = None
        for low, high in _spans(batch, blocks.examples):
            part = x[:, low:high] if own_inputs else x[low:high]
            memo: dict[str, Any] = {}
            for start, stop in _spans(networks, blocks.networks):
                inputs = part[start:stop] if own_inputs else part
                piece = self._block(_slice(compact, start, stop), inputs, stop - start, own_inputs, memo, shared)
                if out is None:
                    out = piece.new_empty(networks, batch, *piece.shape[2:])
                out[start:stop, low:high] = piece
        assert out is not None
        return out

    def _differentiable_outputs(
        self, weights: dict[str, Tensor], x: Tensor, networks: int, own_inputs: bool, memory_limit: int
    ) -> Tensor:
        compact = _compact(weights)
        _, total = self._measure(compact, x, own_inputs)
        batch = x.shape[1] if own_inputs else x.shape[0]
        # Gradients need all values of a network at once: examples are not cut here, networks are.
        rows = choose_blocks(
            networks,
            batch,
            bytes_each=total,
            device=x.device.type,
            memory_limit=max(memory_limit, total * batch),
            gradients=True,
        )
        recompute = total * batch * networks > memory_limit
        pieces = []
        split = {name: [w] if len(w) == 1 else w.split(rows.networks) for name, w in compact.items()}
        for index, (start, stop) in enumerate(_spans(networks, rows.networks)):
            part = {name: ws[index] if len(ws) > 1 else ws[0] for name, ws in split.items()}
            inputs = x[start:stop] if own_inputs else x
            if recompute and rows.networks < networks:
                # Stopping early works by an exception, which a block would take for a failing plan.
                with set_checkpoint_early_stop(False):
                    piece = checkpoint(self._block, part, inputs, stop - start, own_inputs, use_reentrant=False)
            else:
                piece = self._block(part, inputs, stop - start, own_inputs)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _losses_and_gradients(
        self,
        weights: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        per_example: PerExample,
        networks: int,
        own_inputs: bool,
        memory_limit: int,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Mean losses ``[S]``, and the gradient of their sum for x and each of the weights (None: not wanted)."""
        compact = _compact(weights)
        _, total = self._measure({name: compact[name] for name in self._names}, x, own_inputs)
        batch = x.shape[1] if own_inputs else x.shape[0]
        blocks = choose_blocks(
            networks, batch, bytes_each=total, device=x.device.type, memory_limit=memory_limit, gradients=True
        )
        whole = blocks == Blocks(networks, batch)
        gradients = [torch.empty_like(t) if t.requires_grad and not whole else None for t in (x, *weights.values())]
        losses: list[Tensor] = []
        for start, stop in _spans(networks, blocks.networks):
            parts: list[Tensor] = []
            for low, high in _spans(batch, blocks.examples):
                where = (slice(start, stop), slice(low, high)) if own_inputs else slice(low, high)
                leaves = [
                    tensor.detach().requires_grad_(original.requires_grad)
                    for tensor, original in zip(
                        (x[where], *_slice(compact, start, stop).values()), (x, *weights.values()), strict=True
                    )
                ]
                wanted = [leaf for leaf in leaves if leaf.requires_grad]
                part = dict(zip(weights, leaves[1:], strict=True))
                with torch.enable_grad():
                    own = {name: part[name] for name in self._names}
                    outputs = self._block(own, leaves[0], stop - start, own_inputs)
                    share = per_example(outputs, y[where], part).sum(1) / batch
                    found = iter(torch.autograd.grad(share.sum(), wanted, materialize_grads=True))
                parts.append(share.detach())
                results = [next(found) if leaf.requires_grad else None for leaf in leaves]
                if whole:
                    return parts[0], results
                for position, (total_gradient, result) in enumerate(zip(gradients, results, strict=True)):
                    if total_gradient is None or result is None:
                        continue
                    if position == 0:  # of the inputs, each block has its own
                        total_gradient[where] = result
                    elif low == 0:
                        total_gradient[start:stop] = result
                    else:
                        total_gradient[start:stop] += result
            losses.append(torch.stack(parts).sum(0))
        return torch.cat(losses), gradients

    # One block -----------------------------------------------------------------------------------------------

    def _block(
        self,
        weights: Mapping[str, Tensor],
        x: Tensor,
        networks: int,
        own_inputs: bool,
        memo: dict[str, Any] | None = None,
        shared: frozenset[str] = frozenset(),
    ) -> Tensor:
        """Outputs ``[n, b, K]`` of n networks; weights that they share have one entry."""
        if self._plan is not None:
            try:
                # One network's own inputs are shared inputs: the plain operations are the faster ones.
                value = Value(x[0], stacked=False) if own_inputs and networks == 1 else Value(x, own_inputs)
                memo = {} if memo is None else memo
                return self._plan.run(weights, value, memo, shared).as_stacked(networks)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if not isinstance(error, NotStackableError):
                    # The caller's mistake where the network itself fails on this input; else the plan's.
                    with torch.no_grad():
                        first = {name: w[0] for name, w in weights.items()}
                        functional_call(self._network, first, (x[0] if own_inputs else x,))
                self._plan = None
                self._fall_back(str(error).splitlines()[0])
        return self._generic(weights, x, networks, own_inputs)

    def _generic(self, weights: Mapping[str, Tensor], x: Tensor, networks: int, own_inputs: bool) -> Tensor:
        """``vmap`` over the networks where that works, else one network after the other."""

        def one(w: dict[str, Tensor], inputs: Tensor) -> Tensor:
            out: Tensor = functional_call(self._network, w, (inputs,))
            return out

        own = {name: w.expand(networks, *w.shape[1:]) for name, w in weights.items()}
        if self.method == "vmap":
            try:
                stacked: Tensor = vmap(one, in_dims=(0, 0 if own_inputs else None))(own, x)
                return stacked
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                reason = str(error).splitlines()[0]
        outputs = torch.stack(
            [one({name: w[s] for name, w in own.items()}, x[s] if own_inputs else x) for s in range(networks)]
        )
        if self.method == "vmap":  # the loop could do it, so the input was not to blame
            self.method = "loop"
            self.reason += f"; vmap: {reason}"
        return outputs

    def _shared_steps(self, compact: Mapping[str, Tensor], own_inputs: bool) -> frozenset[str]:
        if self._plan is None:
            return frozenset()
        return self._plan.shared_steps({name for name, w in compact.items() if len(w) == 1}, own_inputs)

    def _measure(
        self, weights: Mapping[str, Tensor], x: Tensor, own_inputs: bool, shared: frozenset[str] = frozenset()
    ) -> tuple[int, int]:
        """Bytes that one network needs for one example: the largest pair of neighbouring values, and all together;
        what all networks share is not counted.
        """
        example = (x[0, :1] if own_inputs else x[:1]).detach()
        key = (example.shape, example.dtype, self.method, shared)
        if key not in self._bytes:
            first, memo = _slice(weights, 0, 1), dict[str, Any]()
            with torch.no_grad():
                if shared:
                    self._block(first, example, 1, False, memo, shared)
                with _Allocations() as allocated:
                    self._block(first, example, 1, False, memo, shared)
            sizes = [example.numel() * example.element_size(), *allocated.sizes]
            self._bytes[key] = max((left + right for left, right in pairwise(sizes)), default=sizes[0]), sum(sizes)
        return self._bytes[key]


class _Allocations(TorchDispatchMode):
    """Sizes in bytes of the tensors that operations make, in order; views make none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []
        self._kept: dict[int, Tensor] = {}  # alive, so that no address is used twice

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument in args:
            if isinstance(argument, Tensor):
                self._kept[argument.untyped_storage().data_ptr()] = argument
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in self._kept:
            self._kept[out.untyped_storage().data_ptr()] = out
            self.sizes.append(out.numel() * out.element_size())
        return out


class _WithGradients(torch.autograd.Function):
    """Losses ``[S]`` whose gradients were computed together with them; each depends on its own slices alone."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[Tensor, list[Tensor | None]]], *tensors: Tensor) -> Tensor:
        losses, ctx.gradients = compute(*tensors)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        if outer.device.type == "cpu" and bool((outer == 1).all()):  # a sum of losses: nothing to scale
            return None, *ctx.gradients
        return None, *(g if g is None else g * outer.view(-1, *[1] * (g.dim() - 1)) for g in ctx.gradients)


def _spans(length: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, size):
        yield start, min(start + size, length)


def _compact(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One entry where all networks share a weight: the operations see the sharing by the size 1."""
    compact = {}
    for name, weight in weights.items():
        if isinstance(weight, InputScaled):
            compact[name] = weight if weight.factored else weight.product()
        else:
            compact[name] = weight[:1] if weight.stride(0) == 0 and not weight.requires_grad else weight
    return compact


def _slice(weights: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {
        name: w if len(w) == 1 else w.networks(start, stop) if isinstance(w, InputScaled) else w[start:stop]
        for name, w in weights.items()
    }
