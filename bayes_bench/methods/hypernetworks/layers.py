"""Multilayer perceptrons whose output has unit scale at the start; used by mixer, generators and discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def hidden_layers(inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """``[R, inputs]`` → ``[R, hidden[-1]]``, rows of length √hidden[-1]."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([inputs, *hidden]):
        layers += [nn.Linear(fan_in, fan_out), nn.LeakyReLU(0.2), nn.LayerNorm(fan_out)]
    return nn.Sequential(*layers)


def unit_scale_mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """``[R, inputs]`` → ``[R, outputs]``; outputs start with mean 0 and standard deviation 1 for any input.

    Layer norm, not batch norm: batch norm would couple the sampled networks and make a draw depend on the
    others drawn with it. The last layer norm gives its input length √width, so weights of variance
    1/width give outputs of variance 1.
    """
    layers = hidden_layers(inputs, hidden)
    head = nn.Linear([inputs, *hidden][-1], outputs)
    nn.init.normal_(head.weight, std=head.in_features**-0.5)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, head)
