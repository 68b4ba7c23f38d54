"""A network from its specification in a suite, or a user's own."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from bayes_bench.errors import DataError, UsageError, unknown_name
from bayes_bench.host import machine, plugins, userfile
from bayes_bench.networks import convnet, mlp, resnet
from bayes_bench.tasks.spec import ConvNetSpec, CustomNetworkSpec, MLPSpec, NetworkSpec, ResNetSpec


def build_network(
    spec: NetworkSpec,
    input_shape: tuple[int, ...],
    outputs: int,
    seed: int,
    allow_code: Sequence[Path] = (),
    weights: Path | None = None,
) -> nn.Module:
    """A network for inputs ``[B, *input_shape]`` and ``outputs`` outputs, initialised from ``seed``.

    The global random state is left as it was.

    Args:
        weights: a safetensors file that replaces the initial values of parameters and buffers.

    Raises:
        UsageError: the specification does not fit the data, or it names Python code that was not allowed.
        PluginError: the named entry point cannot be imported.
        DataError: the file of weights is damaged, or of another network.
    """
    network = _initialised(spec, input_shape, outputs, seed, allow_code)
    if weights is not None:
        load_weights(network, weights)
    return network


def load_weights(network: nn.Module, path: Path) -> None:
    """Take over parameters and buffers from a safetensors file, by the names of ``state_dict``.

    Raises:
        DataError: it is damaged, or holds other names or shapes than the network has.
    """
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own type, OSError or ValueError
        raise DataError(
            f"cannot read the weights {path}: {error}; they are a safetensors file, "
            "safetensors.torch.save_file(network.state_dict(), FILE)"
        ) from error
    own = network.state_dict()
    for what, names in (("lacks", own.keys() - state.keys()), ("has unknown", state.keys() - own.keys())):
        if names:
            raise DataError(f"{path} holds weights of another network: it {what} {_first(names)}")
    for name, value in own.items():
        if state[name].shape != value.shape:
            raise DataError(
                f"{path} holds weights of another network: {name} has the shape {list(state[name].shape)}, the "
                f"network's has {list(value.shape)}"
            )
    network.load_state_dict(state)


def _first(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _initialised(
    spec: NetworkSpec, input_shape: tuple[int, ...], outputs: int, seed: int, allow_code: Sequence[Path]
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        if isinstance(spec, CustomNetworkSpec):
            function = _custom_network(spec, allow_code)
            torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would reseed every GPU
            return function(input_shape, outputs, **spec.options)
        _require_memory(spec, input_shape, outputs)
        torch.default_generator.manual_seed(seed)
        return _build(spec, input_shape, outputs)


def _build(spec: NetworkSpec, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    if isinstance(spec, MLPSpec):
        return mlp(math.prod(input_shape), spec.hidden, outputs, spec.activation)
    if len(input_shape) != 3:
        raise UsageError(
            f"network {spec.name!r} needs images [C, H, W], but an input has shape {list(input_shape)}; use 'mlp'"
        )
    image = (input_shape[0], input_shape[1], input_shape[2])
    if isinstance(spec, ResNetSpec):
        return resnet(image, outputs, width=spec.width, blocks=spec.blocks, stages=spec.stages, groups=spec.groups)
    assert isinstance(spec, ConvNetSpec)
    return convnet(
        image,
        spec.channels,
        outputs,
        kernel=spec.kernel,
        padding=spec.padding,
        pool=spec.pool,
        hidden=spec.hidden,
        activation=spec.activation,
    )


def _require_memory(spec: NetworkSpec, input_shape: tuple[int, ...], outputs: int) -> None:
    """Build the network without memory first: a suite or a record from elsewhere may ask for any size."""
    try:
        with torch.device("meta"):
            needed = sum(parameter.nbytes for parameter in _build(spec, input_shape, outputs).parameters())
    except (RuntimeError, OverflowError):
        needed = sys.maxsize  # more than PyTorch can count
    there = machine.memory_bytes()
    if there is not None and needed > there / 2:
        raise UsageError(
            f"network {spec.name!r}: its weights need {machine.size_in_words(needed)}; at most half of this machine's "
            f"{machine.size_in_words(there)} may be used; make it smaller"
        )


def _custom_network(spec: CustomNetworkSpec, allow_code: Sequence[Path]) -> Callable[..., nn.Module]:
    """The user's function ``f(input_shape, outputs, **options) -> nn.Module``."""
    if ".py:" not in spec.entry:
        function: Callable[..., nn.Module] | None = plugins.only(plugins.NETWORKS, spec.entry, "network", Callable)
        if function is None:
            raise UsageError(unknown_name("network entry point", spec.entry, plugins.by_name(plugins.NETWORKS)))
        return function
    file, _, name = spec.entry.rpartition(":")
    path = Path(file).resolve()
    if path not in [allowed.resolve() for allowed in allow_code]:
        remedy = f"if you trust it, add --allow-code {file}"
        if not path.is_file():
            remedy = f"there is no such file in {Path.cwd()}: run the command in the folder that {file} counts from"
        raise UsageError(f"the network is code from {file}; {remedy}")
    module = userfile.execute(path)
    if not callable(getattr(module, name, None)):
        raise UsageError(f"{file} has no function {name!r}")
    return getattr(module, name)  # type: ignore[no-any-return]
