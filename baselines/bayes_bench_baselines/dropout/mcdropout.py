"""MC dropout (Gal & Ghahramani 2016) as a distribution over weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from bayes_bench import (
    FitData,
    Held,
    InputScaled,
    TensorState,
    TrainingLoop,
    UnsupportedNetworkError,
    WeightPosterior,
    WeightSamples,
    cosine_decay,
)
from bayes_bench_baselines.dropout.config import MCDropoutConfig

MASKED_LAYERS = "masked_layers"
MASKED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class MCDropout(WeightPosterior):
    """Bernoulli masks on the inputs of layers.

    In training every example has its own masks; a weight sample is one mask per layer for all inputs. Both
    are "inverted": kept units are scaled by 1/(1 − p), so the mean network has the trained weights.

    With prior precision 1/σ² and drop rate p, the weight decay on the mean NLL is ‖θ‖²/(2σ²N(1 − p)) for
    masked weights, since E‖mask·θ‖² = ‖θ‖²/(1 − p), and ‖θ‖²/(2σ²N) for all other parameters (Gal &
    Ghahramani 2016, section 3, written for inverted masks).
    """

    Config = MCDropoutConfig
    former_names = ("bayes_bench_baselines.mcdropout:MCDropout",)
    uses_prior = True
    config: MCDropoutConfig

    _weights: dict[str, Tensor]
    _masked: list[str]

    def _find_layers(self, x: Tensor) -> list[str]:
        """Names of the layers whose inputs are masked, in the order in which the network uses them.

        Raises:
            UnsupportedNetworkError: none is left, or a layer is used twice or shares its weight, so that no
                one mask belongs to it.
        """
        modules = dict(self.network.named_modules())
        candidates = {name: layer for name, layer in modules.items() if type(layer) in MASKED}
        seen = [name for name, layer in modules.items() if any(p.dim() >= 2 for p in layer.parameters(recurse=False))]
        order: list[str] = []
        handles = [
            modules[name].register_forward_pre_hook(lambda _, __, name=name: order.append(name)) for name in seen
        ]
        try:
            with torch.no_grad():
                self.network(x.clone())  # it may work in place
        finally:
            for handle in handles:
                handle.remove()
        calls = [name for name in order if name in candidates]
        # The first layer's input is the data, unless they are features, or another kind of layer came before.
        names = calls if self.backbone or order[:1] != calls[:1] else calls[1:]
        if self.config.where == "linear":
            names = [name for name in names if isinstance(candidates[name], nn.Linear)]
        elif self.config.where == "last":
            names = names[-1:]
        names = [name for name in names if _weight(name) not in self.frozen]  # point-estimated: no mask
        if not names:
            raise UnsupportedNetworkError(
                f"mcdropout finds no layer to mask with where={self.config.where!r}: it needs a trainable Linear or "
                "Conv layer after the first one"
            )
        for name in names:
            if calls.count(name) > 1 or _weight(name) not in self.initial:
                raise UnsupportedNetworkError(f"mcdropout cannot mask {name!r}: its weight is used more than once")
        owners = [self.network.get_submodule(name).weight for name in candidates]
        for name in names:
            if sum(weight is self.network.get_submodule(name).weight for weight in owners) > 1:
                raise UnsupportedNetworkError(f"mcdropout cannot mask {name!r}: its weight is tied to another layer's")
        return names

    def _layers(self) -> dict[str, nn.Module]:
        return {name: self.network.get_submodule(name) for name in self._masked}

    def _check_fit(self, data: FitData, budget: int) -> None:
        self._find_layers(data.train.x[:1].to(next(self.network.parameters()).device))

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        # Masks are factors of a draw; for their Gram matrix the products of one layer at a time are made.
        masked = [self.initial[_weight(name)] for name in self._find_layers(data.train.x[:1])]
        share = max(w.numel() * w.element_size() for w in masked) / self.network_bytes
        return Held(self.trained_copies(data), 1, 1 + drawn * share)

    # Fit --------------------------------------------------------------------------------------------------

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        config = self.config
        self._masked = self._find_layers(data.train.x[:1])
        layers = self._layers()
        trained = TensorState({name: value[0] for name, value in self.initial_weights(1, rng, loop).items()})
        self._weights = trained
        optimizer = torch.optim.Adam(
            [w.requires_grad_() for w in trained.values()], lr=config.learning_rate, fused=True
        )
        batch_size = min(config.batch_size, len(data.train))
        batches = data.train.minibatches(batch_size, rng)
        masked = {_weight(name) for name in layers}
        keep = 1 - config.drop_rate
        n = len(data.train)

        def step() -> Mapping[str, Tensor]:
            x, y = next(batches)
            weights = {name: value.unsqueeze(0) for name, value in self._weights.items()}
            with self._masked_inputs(layers, rng):
                outputs = torch.func.functional_call(self.network, self._network_weights(), (x,))
            nll = self.loss(outputs.unsqueeze(0), y, weights).mean()
            scaled = {name: w / keep**0.5 if name in masked else w for name, w in weights.items()}
            penalty = self.prior.penalty(scaled) - self.likelihood.log_prior(weights)
            optimizer.zero_grad()
            (nll + penalty.mean() / n).backward()
            optimizer.step()
            return {"loss": nll.detach()}

        loop.run(
            step,
            {"weights": trained, "optimizer": optimizer, "batches": batches},
            cost=batch_size,
            schedule=cosine_decay(optimizer, config.final_learning_rate),
            validate=self.validator(data, config.validation_networks, rng),
            validation_cost=self.validation_cost(data, config.validation_networks),
            keep_best=config.keep_best,
            patience=config.patience,
        )
        self._weights = {name: value.detach() for name, value in self._weights.items()}

    def _network_weights(self) -> dict[str, Tensor]:
        names = dict(self.network.named_parameters())
        return {name: value for name, value in self._weights.items() if name in names} | self.frozen

    @contextlib.contextmanager
    def _masked_inputs(self, layers: Mapping[str, nn.Module], rng: torch.Generator) -> Iterator[None]:
        """Within it, every example's inputs to the layers are masked, by hooks that are gone afterwards."""

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            x = inputs[0]
            if isinstance(layer, nn.Linear):  # one mask per example, also for all positions of a sequence
                mask = self._mask((len(x), *[1] * (x.dim() - 2), x.shape[-1]), rng)
            else:  # whole channels
                mask = self._mask(x.shape[:2], rng).view(*x.shape[:2], *[1] * (x.dim() - 2))
            return (x * mask,)

        handles = [layer.register_forward_pre_hook(hook) for layer in layers.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mask(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        keep = 1 - self.config.drop_rate
        return torch.empty(shape).bernoulli_(keep, generator=rng).div_(keep).to(self.device)

    # Sample -----------------------------------------------------------------------------------------------

    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        # Expanded, not copied: the stacked engine sees that these are shared by all networks.
        weights = {name: value.clone().expand(n, *value.shape) for name, value in self._weights.items()}
        layers = self._layers()
        # Network by network, so that a draw of k is the start of a draw of n.
        masks = [{name: self._mask((_inputs(layer),), rng) for name, layer in layers.items()} for _ in range(n)]
        for name, layer in layers.items():
            weight = weights[_weight(name)][0]
            columns = torch.stack([mask[name] for mask in masks]).to(weight.dtype)
            # In factors: evaluating it scales the layer's inputs and shares the weight.
            weights[_weight(name)] = (
                InputScaled(weight, columns)
                if getattr(layer, "groups", 1) == 1
                else weight * _as_columns(columns, cast("nn.Conv2d", layer))
            )
        return weights

    # State ------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        # Which layers are masked follows from data that a loaded posterior does not have.
        names = [name for name, _ in self.network.named_modules()]
        return {**self._weights, MASKED_LAYERS: torch.tensor([names.index(name) for name in self._masked])}

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        names = [name for name, _ in self.network.named_modules()]
        self._masked = [names[position] for position in state[MASKED_LAYERS].tolist()]
        self._weights = {name: value for name, value in state.items() if name != MASKED_LAYERS}


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _inputs(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else cast("nn.Conv2d", layer).in_channels


def _as_columns(mask: Tensor, layer: nn.Conv2d) -> Tensor:
    """Masks of a grouped convolution's input channels ``[S, in]`` in the shape that multiplies its weight: an output
    channel sees the inputs of its own group only.
    """
    per_group: Tensor = mask.unflatten(1, (layer.groups, -1))
    per_output = per_group.repeat_interleave(layer.out_channels // layer.groups, dim=1)
    return per_output.view(*per_output.shape, *[1] * (layer.weight.dim() - 2))
