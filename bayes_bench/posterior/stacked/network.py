"""``StackedNetwork``: S networks on B inputs in one call, in blocks that keep memory bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from bayes_bench.errors import UsageError
from bayes_bench.host.machine import MEMORY_LIMIT_MB
from bayes_bench.posterior.stacked.blocks import Blocks, choose_blocks
from bayes_bench.posterior.stacked.operations import NotStackableError, Value
from bayes_bench.posterior.stacked.plan import Plan, make_plan
from bayes_bench.posterior.stacked.scaled import InputScaled, take

MEMORY_LIMIT = MEMORY_LIMIT_MB * 2**20
"""Bytes that one call may use for intermediate values, where nothing else is set."""

SAME = 1e-3
"""Of the largest output: by so much two ways of computing it may differ by rounding."""
PROBED = 4
"""Examples by which it is seen whether a network looks at them one by one."""

PerExample = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""(outputs ``[S, B, K]``, targets, weights) → loss of each network on each example ``[S, B]``."""


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Within it, attention is computed by operations that can be differentiated and stacked; PyTorch's inference path
    for it can be neither.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def examples_apart(network: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a network gives the examples of a batch x ``[B, …]`` what it gives to parts of it, up to rounding."""
    half = len(x) // 2
    if half == 0:
        return True
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            whole = network(x.clone())
            parts = torch.cat([network(x[:half].clone()), network(x[half:].clone())])
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return _same(parts, whole)


def _same(found: Tensor, expected: Tensor) -> bool:
    scale = float(expected.nan_to_num(0, 0, 0).abs().max()) + 1.0
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=SAME * scale, equal_nan=True)


class StackedNetwork:
    """Evaluates one architecture for many weight samples.

    Args:
        network: in evaluation mode, a pure function of (weights, x). It is not changed.
        memory_limit: bytes that one call may use for intermediate values, where the call itself sets nothing else;
            an attribute, which may be changed.

    The way is chosen once: ``"plan"`` (stacked operations, layer by layer), else ``"vmap"``, else
    ``"loop"`` over ``torch.func.functional_call``; ``explain`` says which and why. Blocks follow from
    shapes, the device and the memory limit alone, so results repeat.
    """

    def __init__(self, network: nn.Module, *, memory_limit: int = MEMORY_LIMIT):
        self._network = network
        self.memory_limit = memory_limit
        self._names = {name: p.shape for name, p in network.named_parameters()}
        self._plan: Plan | None = None
        self.method: Literal["plan", "vmap", "loop"] = "plan"
        self.reason = ""
        self._needs: dict[tuple[Any, ...], _Needs] = {}
        self._apart: bool | None = None
        """Whether examples may be evaluated apart, where there is no plan; None: not known yet."""
        try:
            self._plan = make_plan(network)
        except NotStackableError as error:
            self._fall_back(str(error))

    def __reduce__(self) -> tuple[Any, ...]:
        # The plan is made of functions, which cannot be copied or pickled; it follows from the network.
        return partial(StackedNetwork, memory_limit=self.memory_limit), (self._network,)

    def explain(self, weights: Mapping[str, Tensor] | None = None, x: Tensor | None = None) -> str:
        """The chosen way and, for a plan, its steps; with weights ``[S, …]`` and inputs x ``[B, …]`` also how many
        networks and examples are evaluated at once without gradients, and what is computed once for all networks.
        """
        shared: frozenset[str] = frozenset()
        details = []
        if weights is not None and x is not None:
            own, networks = self._check(weights, x, own_inputs=False)
            compact = _compact(own)
            shared = self._shared_steps(compact, own_inputs=False)
            each = self._measure(compact, x, False, shared).largest  # may find that the plan does not serve
            blocks = self._blocks(networks, x, False, each, self.memory_limit)
            size = blocks.networks * blocks.examples * each / 2**20
            details.append(f"  {networks} networks, {len(x)} examples")
            details.append(f"  {blocks.networks} networks × {blocks.examples} examples at once, {size:.1f} MiB")
        once = " (once for all networks)"
        steps = self._plan.steps if self._plan else []
        return "\n".join(
            [
                "plan:" if self._plan else f"{self.method}: {self.reason}",
                *details,
                *(f"  {step.description}{once if step.name in shared else ''}" for step in steps),
            ]
        )

    def __call__(
        self,
        weights: Mapping[str, Tensor],
        x: Tensor,
        *,
        own_inputs: bool = False,
        memory_limit: int | None = None,
    ) -> Tensor:
        """Outputs of all networks, ``[S, B, K]``.

        Args:
            weights: name → ``[S, *shape]`` for every parameter of the network; entries of the likelihood
                are passed over. Expanded tensors (stride 0) are recognised as shared by the networks.
            x: ``[B, ...]`` for all networks, or with ``own_inputs`` ``[S, B, ...]``.
            memory_limit: bytes for intermediate values; default: the attribute. Without gradients the blocks fit it;
                with gradients blocks that together do not fit are computed again in the backward pass (``mean_loss``
                need not).

        Raises:
            UsageError: a name is missing, or a shape does not fit.
        """
        own, networks = self._check(weights, x, own_inputs)
        memory_limit = self.memory_limit if memory_limit is None else memory_limit
        if _examples(x, own_inputs) == 0:
            some = x.new_zeros([max(1, size) for size in x.shape])
            return self(weights, some, own_inputs=own_inputs)[:, :0]
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
        memory_limit: int | None = None,
    ) -> Tensor:
        """Each network's mean loss over its examples, ``[S]``, differentiable once.

        Where gradients are wanted they are computed block by block in this very pass, right after the block's
        forward: its intermediate values are still in the cache and are then forgotten, so that memory holds one block
        of them and not S, and nothing is computed twice.

        Args:
            weights, x, own_inputs, memory_limit: as for a call; entries of the likelihood go to ``per_example``.
            y: targets ``[B, ...]``, or with ``own_inputs`` ``[S, B, ...]``.
            per_example: independent for networks and examples; sees the weights of some networks at a time, one
                entry where all share a weight.

        Raises:
            UsageError: as for a call, or the targets are not one for each example.
        """
        _, networks = self._check(weights, x, own_inputs)
        _check_targets(x, y, own_inputs)
        tensors = [x, *weights.values()]
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        # What inputs that all share owe to each network cannot be told from the sum over networks.
        if not wanted or (x.requires_grad and not own_inputs):
            outputs = self(weights, x, own_inputs=own_inputs, memory_limit=memory_limit)
            return per_example(outputs, y, weights).mean(1)
        blocks = self._gradient_blocks(weights, x, networks, own_inputs, memory_limit)
        if blocks == Blocks(networks, _examples(x, own_inputs)):
            return self._losses_at_once(weights, x, y, per_example, networks, own_inputs)

        def compute(x: Tensor, *values: Tensor) -> tuple[Tensor, list[Tensor | None]]:
            full = dict(zip(weights, values, strict=True))
            gradients = [torch.empty_like(t) if t.requires_grad else None for t in (x, *values)]
            return self._losses_and_gradients(full, x, y, per_example, blocks, own_inputs, gradients), gradients

        losses: Tensor = _WithGradients.apply(compute, *tensors)
        return losses

    def losses_to_grad(
        self,
        weights: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        per_example: PerExample,
        *,
        own_inputs: bool = False,
        memory_limit: int | None = None,
    ) -> Tensor:
        """``mean_loss``, with the gradients of the sum of all losses written into the weights' ``grad``.

        For weights that an optimiser updates themselves, as members of an ensemble or chains of a sampler. What
        ``grad`` held is overwritten; where it is large its memory is used again in every step, since a new one would
        take new pages from the system each time.

        Args:
            weights: leaf tensors ``[S, *shape]``, or such that need no gradient.
            x, y, per_example, own_inputs, memory_limit: as for ``mean_loss``.

        Returns:
            The losses ``[S]``, detached.
        """
        _, networks = self._check(weights, x, own_inputs)
        _check_targets(x, y, own_inputs)
        blocks = self._gradient_blocks(weights, x, networks, own_inputs, memory_limit)
        if blocks == Blocks(networks, _examples(x, own_inputs)):  # small: nothing to save by writing in place
            for weight in weights.values():
                weight.grad = None
            with torch.enable_grad():
                losses = self._losses_at_once(weights, x, y, per_example, networks, own_inputs)
            if losses.requires_grad:
                losses.sum().backward()
            for weight in weights.values():
                if weight.requires_grad and weight.grad is None:  # has no part in the losses
                    weight.grad = torch.zeros_like(weight)
            return losses.detach()
        gradients: list[Tensor | None] = [None]
        for weight in weights.values():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.empty_like(weight)
            gradients.append(weight.grad if weight.requires_grad else None)
        return self._losses_and_gradients(weights, x.detach(), y, per_example, blocks, own_inputs, gradients)

    def block_bytes(self, networks: int, x: Tensor, device: str) -> int:
        """Intermediate values that are held at once when so many networks see x ``[B, …]`` on a device of that type.

        In bytes, without gradients; computes one network on one example to find out.
        """
        one = {name: p.detach().unsqueeze(0) for name, p in self._network.named_parameters()}
        each = self._measure(one, x, False).largest
        blocks = self._blocks(networks, x, False, each, self.memory_limit, device=device)
        return each * blocks.networks * blocks.examples

    def _fall_back(self, reason: str) -> None:
        self._plan = None
        self.method, self.reason = "vmap", reason
        if any(getattr(module, "padding_idx", None) is not None for module in self._network.modules()):
            # vmap leaves out the gradient of the padding's row in the first network alone.
            self.method, self.reason = "loop", f"{reason}; vmap does not know padding_idx"

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
        if networks == 0:
            raise UsageError("no networks to evaluate; draw at least one")
        return own, networks

    # Whole calls, block by block ------------------------------------------------------------------------------

    def _plain_outputs(
        self, weights: dict[str, Tensor], x: Tensor, networks: int, own_inputs: bool, memory_limit: int
    ) -> Tensor:
        compact = _compact(weights)
        shared = self._shared_steps(compact, own_inputs)
        largest = self._measure(compact, x, own_inputs, shared).largest
        batch = _examples(x, own_inputs)
        blocks = self._blocks(networks, x, own_inputs, largest, memory_limit)
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
        total = self._measure(compact, x, own_inputs).total
        batch = _examples(x, own_inputs)
        # Gradients need all values of a network at once: examples are not cut here, networks are.
        rows = self._blocks(networks, x, own_inputs, total, max(memory_limit, total * batch), gradients=True)
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

    def _losses_at_once(
        self,
        weights: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        per_example: PerExample,
        networks: int,
        own_inputs: bool,
    ) -> Tensor:
        outputs = self._block(_compact({name: weights[name] for name in self._names}), x, networks, own_inputs)
        return per_example(outputs, y, weights).mean(1)

    def _losses_and_gradients(
        self,
        weights: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        per_example: PerExample,
        blocks: Blocks,
        own_inputs: bool,
        gradients: Sequence[Tensor | None],
    ) -> Tensor:
        """Mean losses ``[S]``; writes the gradients of their sum for x and each of the weights (None: not wanted)."""
        compact = _compact(weights)
        networks, batch = len(next(iter(weights.values()))), _examples(x, own_inputs)
        losses: list[Tensor] = []
        for start, stop in _spans(networks, blocks.networks):
            parts: list[Tensor] = []
            for low, high in _spans(batch, blocks.examples):
                where = (slice(start, stop), slice(low, high)) if own_inputs else slice(low, high)
                leaves = [
                    tensor.detach().requires_grad_(gradient is not None)
                    for tensor, gradient in zip(
                        (x[where], *_slice(compact, start, stop).values()), gradients, strict=True
                    )
                ]
                wanted = [leaf for leaf in leaves if leaf.requires_grad]
                part = dict(zip(weights, leaves[1:], strict=True))
                with torch.enable_grad():
                    own = {name: part[name] for name in self._names}
                    outputs = self._block(own, leaves[0], stop - start, own_inputs)
                    share = per_example(outputs, y[where], part).sum(1) / batch
                    joint = share.sum()
                if wanted and share.requires_grad:
                    found = iter(torch.autograd.grad(joint, wanted, materialize_grads=True))
                else:  # nothing that was computed depends on what gradients are wanted for
                    found = iter([torch.zeros_like(leaf) for leaf in wanted])
                parts.append(share.detach())
                for position, total in enumerate(gradients):
                    if total is None:
                        continue
                    if position == 0:  # of the inputs, each block has its own
                        total[where] = next(found)
                    elif low == 0:
                        total[start:stop] = next(found)
                    else:
                        total[start:stop] += next(found)
            losses.append(parts[0] if len(parts) == 1 else torch.stack(parts).sum(0))
        return losses[0] if len(losses) == 1 else torch.cat(losses)

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
                # The caller's mistake where the network itself fails on this input; else the plan's.
                self._run_first(weights, x, own_inputs)
                self._fall_back(_first_line(error))
        return self._generic(weights, x, networks, own_inputs)

    def _run_first(self, weights: Mapping[str, Tensor], x: Tensor, own_inputs: bool) -> Tensor:
        """Outputs of the first network as it is, or the error that it raises."""
        first = {name: take(w, 0, 1)[0] for name, w in weights.items()}
        with torch.no_grad():
            out: Tensor = functional_call(self._network, first, ((x[0] if own_inputs else x).clone(),))
        return out

    def _generic(self, weights: Mapping[str, Tensor], x: Tensor, networks: int, own_inputs: bool) -> Tensor:
        """``vmap`` over the networks where that works, else one network after the other."""

        def one(w: dict[str, Tensor], inputs: Tensor) -> Tensor:
            # A copy: the network may work in place, and the inputs are the caller's and the other networks'.
            out: Tensor = functional_call(self._network, w, (inputs.clone(),))
            return out

        own = {name: w.expand(networks, *w.shape[1:]) for name, w in weights.items()}
        if self.method == "vmap":
            try:
                stacked: Tensor = vmap(one, in_dims=(0, 0 if own_inputs else None))(own, x)
                return stacked
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                reason = _first_line(error)
        outputs = torch.stack(
            [one({name: w[s] for name, w in own.items()}, x[s] if own_inputs else x) for s in range(networks)]
        )
        if self.method == "vmap":  # the loop could do it, so the input was not to blame
            self.method = "loop"
            self.reason += f"; vmap: {reason}"
        return outputs

    def _examples_apart(self, weights: Mapping[str, Tensor], x: Tensor) -> bool:
        first = {name: take(w, 0, 1)[0] for name, w in weights.items()}
        return examples_apart(lambda part: functional_call(self._network, first, (part,)), x)

    def _check_plan(self, first: Mapping[str, Tensor], x: Tensor) -> None:
        """Give the plan up where it does not compute what the network does, whatever the reason may be."""
        if self._plan is not None:
            with torch.no_grad():
                found = self._block(first, x, 1, False)[0]
            if not _same(found, self._run_first(first, x, False)):
                self._fall_back("the plan's outputs are not the network's")

    def _shared_steps(self, compact: Mapping[str, Tensor], own_inputs: bool) -> frozenset[str]:
        if self._plan is None:
            return frozenset()
        return self._plan.shared_steps({name for name, w in compact.items() if len(w) == 1}, own_inputs)

    def _blocks(
        self,
        networks: int,
        x: Tensor,
        own_inputs: bool,
        bytes_each: int,
        memory_limit: int,
        gradients: bool = False,
        weight_bytes: int = 0,
        device: str = "",
    ) -> Blocks:
        batch = _examples(x, own_inputs)
        options: dict[str, Any] = {
            "device": device or x.device.type,
            "memory_limit": memory_limit,
            "gradients": gradients,
            "weight_bytes": weight_bytes,
        }
        if self._plan is None and not self._apart:  # a network that joins examples: they stay together
            return Blocks(choose_blocks(networks, 1, bytes_each=bytes_each * batch, **options).networks, batch)
        return choose_blocks(networks, batch, bytes_each=bytes_each, **options)

    def _gradient_blocks(
        self, weights: Mapping[str, Tensor], x: Tensor, networks: int, own_inputs: bool, memory_limit: int | None
    ) -> Blocks:
        memory_limit = self.memory_limit if memory_limit is None else memory_limit
        own = _compact({name: weights[name] for name in self._names})
        total = self._measure(own, x, own_inputs).total
        weight_bytes = sum(self._names[name].numel() * own[name].element_size() for name in self._names)
        return self._blocks(networks, x, own_inputs, total, memory_limit, gradients=True, weight_bytes=weight_bytes)

    def _measure(
        self, weights: Mapping[str, Tensor], x: Tensor, own_inputs: bool, shared: frozenset[str] = frozenset()
    ) -> _Needs:
        """What one network needs for one example; what all networks share is not counted."""
        examples = (x[0] if own_inputs else x).detach()
        if self._plan is None and self._apart is None and len(examples) > 1:
            self._apart = self._examples_apart(weights, examples[:PROBED])
        if self._plan is not None or self._apart:
            examples = examples[:1]
        kinds = tuple((w.dtype, isinstance(w, InputScaled)) for w in weights.values())
        key = (examples.shape, examples.dtype, kinds, self.method, shared)
        if key not in self._needs:
            first, memo = _slice(weights, 0, 1), dict[str, Any]()
            try:
                self._check_plan(first, examples)
                with torch.no_grad():
                    if shared:
                        self._block(first, examples, 1, False, memo, shared)
                    with _Allocations() as plain:
                        self._block(first, examples, 1, False, memo, shared)
                leaves = {n: w if isinstance(w, InputScaled) else w.detach().requires_grad_() for n, w in first.items()}
                with torch.enable_grad(), _Allocations() as kept:
                    self._block(leaves, examples, 1, False)
            except Exception:
                self._run_first(weights, x, own_inputs)  # the caller's mistake is told of the caller's own inputs
                raise
            size = examples.numel() * examples.element_size()
            largest = max(left + right for left, right in pairwise([size, *plain.sizes, 0]))
            count = len(examples)
            self._needs[key] = _Needs(math.ceil(largest / count), math.ceil((size + sum(kept.sizes)) / count))
        return self._needs[key]


class _Needs(NamedTuple):
    """Bytes for one network and one example: the largest pair of neighbouring values; all that a gradient needs."""

    largest: int
    total: int


class _Allocations(TorchDispatchMode):
    """Sizes in bytes of the tensors that operations make, in order; views make none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []
        self._kept: dict[int, Tensor] = {}  # alive, so that no address is used twice

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument in tree_leaves(args):
            if isinstance(argument, Tensor):
                self._kept[argument.untyped_storage().data_ptr()] = argument
        out = function(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in self._kept:
                self._kept[made.untyped_storage().data_ptr()] = made
                self.sizes.append(made.numel() * made.element_size())
        return out


class _WithGradients(torch.autograd.Function):
    """Losses ``[S]`` whose gradients were computed together with them; each depends on its own slices alone."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[Tensor, list[Tensor | None]]], *tensors: Tensor) -> Tensor:
        losses, gradients = compute(*tensors)
        # As saved tensors they are gone after the backward pass, or guarded against writing where the graph is kept.
        ctx.save_for_backward(*gradients)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if outer.device.type == "cpu" and bool((outer == 1).all()):  # a sum of losses: nothing to scale
            return None, *gradients
        return None, *(g if g is None else g * outer.view(-1, *[1] * (g.dim() - 1)) for g in gradients)


def _check_targets(x: Tensor, y: Tensor, own_inputs: bool) -> None:
    leading = 2 if own_inputs else 1
    if y.shape[:leading] != x.shape[:leading]:
        raise UsageError(
            f"targets of shape {list(y.shape)} for inputs of shape {list(x.shape)}; give one for each example"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _examples(x: Tensor, own_inputs: bool) -> int:
    return x.shape[1 if own_inputs else 0]


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
    return {name: w if len(w) == 1 else take(w, start, stop) for name, w in weights.items()}
