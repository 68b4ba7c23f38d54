"""``InputScaled``: S copies of one weight, each with its inputs scaled, kept as two factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


class InputScaled(Tensor):
    """Weights ``[S, out, in, ...]`` = ``base [out, in, ...]`` × ``scale [S, in]``, as of dropout masks.

    A tensor like any other to whoever reads or writes it: an operation that does not know it gets the product,
    which is made when it is first needed and kept. ``StackedNetwork`` uses the factors: scaling a layer's inputs
    instead costs one product with ``base`` for all networks, and memory for one weight instead of S. Gradients do
    not pass.
    """

    base: Tensor
    scale: Tensor
    _product: Tensor | None
    _exposed: bool

    @staticmethod
    def __new__(cls, base: Tensor, scale: Tensor) -> InputScaled:
        if base.dim() < 2 or scale.dim() != 2 or scale.shape[1] != base.shape[1]:
            raise ValueError(f"InputScaled: base {list(base.shape)} has no inputs for a scale {list(scale.shape)}")
        if (base.dtype, base.device) != (scale.dtype, scale.device):
            raise ValueError(
                f"InputScaled: base is {base.dtype} on {base.device}, scale {scale.dtype} on {scale.device}"
            )
        # Not contiguous, so that whoever needs the memory itself asks for a tensor that is.
        self: InputScaled = Tensor._make_wrapper_subclass(
            cls,
            (len(scale), *base.shape),
            strides=(1, *(len(scale) * stride for stride in base.stride())),
            dtype=base.dtype,
            device=base.device,
        )
        self.base, self.scale = base.detach(), scale.detach()
        self._product, self._exposed = None, False
        return self

    def __init__(self, base: Tensor, scale: Tensor):
        super().__init__()

    @property
    def factored(self) -> bool:
        """Whether the factors still tell the values: not after someone wrote to the product, or to a view of it."""
        if self._product is None:
            return True
        # Inference tensors count no versions, and memory that was given out may be written to unseen.
        return not (self._exposed or self._product.is_inference()) and self._product._version == 0

    def product(self) -> Tensor:
        """The weights as a plain tensor ``[S, out, in, ...]``."""
        if self._product is None:
            self._product = self.base * self.scale.view(len(self.scale), 1, -1, *[1] * (self.base.dim() - 2))
        return self._product

    def networks(self, start: int, stop: int) -> InputScaled:
        """Those of networks ``start`` to ``stop``, still in factors."""
        return InputScaled(self.base, self.scale[start:stop])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _DESCRIBING:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        if function in _EXPOSING:
            for scaled in tree_leaves(args):
                if isinstance(scaled, InputScaled):
                    scaled._exposed = True
        args, kwargs = _tree_map_products((args, kwargs or {}))
        return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = _tree_map_products((args, kwargs or {}))
        return function(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.product().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.product().__reduce_ex__(protocol)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"InputScaled({list(self.shape)})"


_TENSOR: Any = Tensor  # whose properties' accessors its type stubs do not know
_DESCRIBING = {
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "grad")
} | {Tensor.dim, Tensor.size, Tensor.stride, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}
"""What needs no values."""
_EXPOSING = {_TENSOR.data.__get__, _TENSOR.data.__set__} | {
    getattr(Tensor, name)
    for name in ("numpy", "__array__", "set_", "data_ptr", "untyped_storage", "storage", "__dlpack__")
}
"""What gives out memory that can be written to without PyTorch's knowledge."""


def _tree_map_products(tree: Any) -> Any:
    return tree_map_only(InputScaled, InputScaled.product, tree)


def take(weight: Tensor, start: int, stop: int) -> Tensor:
    """A weight of networks ``start`` to ``stop``, not copied and still in factors where it is."""
    if isinstance(weight, InputScaled) and weight.factored:
        return weight.networks(start, stop)
    return weight[start:stop]


def take_networks(weights: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """The weights of networks ``start`` to ``stop``."""
    return {name: take(weight, start, stop) for name, weight in weights.items()}
