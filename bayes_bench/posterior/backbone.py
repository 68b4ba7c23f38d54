"""The part of a network before its last layer, where that layer alone is random: its outputs are computed once."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from bayes_bench.errors import UnsupportedNetworkError
from bayes_bench.posterior.examples import Examples, FitData, StoredInputs

FEATURE_BYTES = 2**30
"""Features of a set of examples that are held in memory; more of them go into a temporary file."""
BLOCK_BYTES = 2**23
"""Inputs that see the backbone together, on a CPU at most so many bytes of them."""


class Head(nn.Module):
    """One layer of a network as a network of its own, whose parameters keep their names."""

    def __init__(self, path: str, layer: nn.Module):
        super().__init__()
        self._path = path
        owner: nn.Module = self
        *folders, name = path.split(".")
        for folder in folders:
            child = nn.Module()
            owner.add_module(folder, child)
            owner = child
        owner.add_module(name, layer)

    def forward(self, features: Tensor) -> Tensor:
        return cast("Tensor", self.get_submodule(self._path)(features))


class Backbone(nn.Module):
    """What a network computes of its inputs before its last layer.

    Args:
        network: in evaluation mode.
        path: of the layer; all that follows it must leave its outputs as they are.
    """

    def __init__(self, network: nn.Module, path: str):
        super().__init__()
        self.network, self.path = network, path

    def head(self) -> Head:
        """The last layer, sharing its parameters with the network."""
        return Head(self.path, self.network.get_submodule(self.path))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, …]`` of inputs x ``[B, …]``.

        Raises:
            UnsupportedNetworkError: the network does not end with the layer.
        """
        seen: list[tuple[Tensor, Tensor]] = []
        layer = self.network.get_submodule(self.path)
        hook = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        try:
            outputs = self.network(x.clone())  # it may work in place
        finally:
            hook.remove()
        # By shape and values: a reshape of the outputs changes nothing, anything else would be lost.
        if len(seen) != 1 or seen[0][1].shape != outputs.shape or not torch.equal(seen[0][1], outputs):
            raise UnsupportedNetworkError(
                f"the network does not end with its last layer {self.path!r}: its outputs are changed afterwards, or "
                "the layer is used more than once; name the random parameters instead, e.g. "
                f"bayesian=[{self.path!r}]"
            )
        return seen[0][0]

    def features(self, inputs: Tensor | StoredInputs, device: torch.device) -> Tensor | StoredInputs:
        """Of all inputs ``[N, …]``, on ``device``; where they are many, in a temporary file until the process ends."""
        rows = max(1, BLOCK_BYTES // (4 * math.prod(inputs.shape[1:])))
        blocks: Iterator[Tensor] = (
            self(inputs[start : start + rows].to(device)) for start in range(0, len(inputs), rows)
        )
        first = next(blocks)
        if first[:1].nbytes * len(inputs) > FEATURE_BYTES:
            return _stored(first, blocks, len(inputs), device)
        return torch.cat([first, *blocks])

    def outer(self) -> nn.Module:
        """The network with its last layer left out: what exporters see instead of this module, which looks inside."""
        outer = copy.deepcopy(self.network)
        folder, _, name = self.path.rpartition(".")
        setattr(outer.get_submodule(folder), name, nn.Identity())
        return outer

    def probe(self, data: FitData) -> FitData:
        """Examples of the kind that ``fit_data`` gives, at no cost: all have the features of the first."""
        one = self(data.train.x[:1].to(next(self.network.parameters()).device))

        def mapped(part: Examples) -> Examples:
            return Examples(one.expand(len(part), *one.shape[1:]), part.y)

        return FitData(mapped(data.train), mapped(data.validation) if data.validation else None)

    def fit_data(self, data: FitData, device: torch.device) -> FitData:
        """The examples with features in place of their inputs."""

        def mapped(part: Examples) -> Examples:
            return Examples(self.features(part.x, device), part.y.to(device))

        return FitData(mapped(data.train), mapped(data.validation) if data.validation else None)


def _stored(first: Tensor, blocks: Iterator[Tensor], number: int, device: torch.device) -> StoredInputs:
    # The file has no name by the time that anybody else could look for it; the array holds it open.
    with tempfile.NamedTemporaryFile(suffix=".features") as file:
        shape = (number, *first.shape[1:])
        values = np.memmap(Path(file.name), first.cpu().numpy().dtype, "w+", shape=shape)
    start = 0
    for block in (first, *blocks):
        values[start : start + len(block)] = block.cpu().numpy()
        start += len(block)
    return StoredInputs(torch.Size(shape), lambda rows: torch.from_numpy(np.array(values[rows])), device)
