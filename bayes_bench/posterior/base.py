"""What a method is: a distribution over the weights of one network.

Letters: S weight samples, B batch, K outputs. A method writes ``_fit``, ``_sample``, ``_state`` and
``_load_state``; everything a caller uses is final here and checks what the method gives back.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, final

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bayes_bench.errors import (
    DataError,
    MemoryLimitError,
    PluginError,
    UnsupportedNetworkError,
    UsageError,
)
from bayes_bench.host import plugins
from bayes_bench.host.machine import memory_bytes, size_in_words
from bayes_bench.posterior.backbone import Backbone
from bayes_bench.posterior.checks import check_data, check_draw, digest, generator, resolve_device, writes_to_inputs
from bayes_bench.posterior.examples import Examples, FitData
from bayes_bench.posterior.export import DrawnNetworks
from bayes_bench.posterior.likelihood import HeteroscedasticGaussian, Likelihood
from bayes_bench.posterior.loaders import as_fit_data, as_inputs
from bayes_bench.posterior.predictive import (
    ClassPrediction,
    ClassReducer,
    ValuePrediction,
    ValueReducer,
    concatenate,
)
from bayes_bench.posterior.preparation import (
    BatchNorm,
    Bayesian,
    Start,
    is_batch_norm,
    last_layer,
    looks_trained,
    prepare_network,
    reset,
)
from bayes_bench.posterior.prior import GaussianPrior
from bayes_bench.posterior.snapshots import Snapshots
from bayes_bench.posterior.stacked.network import StackedNetwork, without_fast_path
from bayes_bench.posterior.stacked.scaled import take_networks
from bayes_bench.posterior.stored import (
    bounded_memory,
    likelihood_facts,
    likelihood_from,
    read_about,
    read_posterior,
    write_posterior,
)
from bayes_bench.posterior.training import FitSummary, Monitor, SnapshotMismatchError, TrainingLoop
from bayes_bench.posterior.validation import prediction_scores, weight_spreads
from bayes_bench.settings import MethodConfig, explain, fields_told


class Held(NamedTuple):
    """How many networks' weights are in memory at least; a fraction, where parts of them are shared.

    Attributes:
        fit: while training: with gradients, moments of the optimiser and the like.
        state: as long as the fitted posterior lives.
        draw: for a draw of networks, beside the state.
        drawing: while it is made, where that takes more: noise of a network's size, for example.
    """

    fit: float
    state: float
    draw: float
    drawing: float = 0


DEFAULTS = ("fresh", "all", None)
"""Of ``start``, ``bayesian`` and ``batch_norm``: a file does not name them."""

SETTLED = "network/"
"""Begins the names of tensors that a file holds of the network itself."""
WeightSamples = dict[str, Tensor]
"""Name → ``[S, *shape]``: names and shapes of ``network.named_parameters()``, and the likelihood's reserved entries."""


class WeightPosterior(ABC):
    """A distribution over the weights of one network.

    Args:
        network: any ``nn.Module`` that in evaluation mode is a pure function of (weights, x). It is copied, never
            changed.
        likelihood: what the outputs mean.
        prior: Gaussian over the weights; methods that ignore it say so in ``uses_prior``.
        config: the method's settings; defaults when left out.
        start: where a fit begins: ``"fresh"`` at new initial weights, ``"given"`` at those of the network.
        bayesian: which parameters are random: ``"all"``; ``"last"``, those of the last layer, for which what the
            network computes before it is computed once for all networks; or patterns of names, such as
            ``["layer4.*", "fc"]``. The others stay as they are given.
        batch_norm: what batch normalisation becomes: ``"frozen"``, an affine map by its running statistics (the
            default with given weights), or ``"group"``, group normalisation (the default for a fresh start).

    Raises:
        UnsupportedNetworkError: the network normalises over the batch, or the method cannot handle a layer.
        UsageError: an option has no such value, or no parameter is called so.
    """

    Config: ClassVar[type[MethodConfig]]
    former_names: ClassVar[tuple[str, ...]] = ()
    """What files that were saved before the class moved call it, ``module:Class``; they load as well."""
    uses_prior: bool
    _memory_remedy = ""
    """What lowers the memory of a fit, where it is not the settings that say so."""

    def __init__(
        self,
        network: nn.Module,
        likelihood: Likelihood,
        prior: GaussianPrior | None = None,
        config: MethodConfig | None = None,
        *,
        start: Start = "fresh",
        bayesian: Bayesian = "all",
        batch_norm: BatchNorm | None = None,
    ):
        if config is not None and not isinstance(config, self.Config):
            raise UsageError(f"{type(self).__name__} needs a {self.Config.__name__}, got {type(config).__name__}")
        self.start, self.bayesian, self.batch_norm = start, bayesian, batch_norm
        whole = prepare_network(network, start=start, batch_norm=batch_norm, bayesian=bayesian)
        self.backbone = Backbone(whole, last_layer(whole)) if bayesian == "last" else None
        """What comes before the last layer, where that alone is random: ``network`` is then the last layer."""
        self._fitting = False
        self._guard: Any = None
        """Where the network works in place on its inputs: what gives it copies."""
        self.network = self.backbone.head() if self.backbone else whole
        self._norms_replaced = sum(map(is_batch_norm, network.modules())) - sum(map(is_batch_norm, whole.modules()))
        self.likelihood = likelihood
        self.prior = prior or GaussianPrior()
        self.config: Any = config or self.Config()
        self.stacked = StackedNetwork(self.network)
        self.device = torch.device("cpu")
        self.fitted = False
        parameters = dict(self.network.named_parameters())
        self.frozen = {name: p.detach().clone() for name, p in parameters.items() if not p.requires_grad}
        """Parameters with ``requires_grad=False``: point-estimated, the same in every sample."""
        self.initial = {
            **{name: p.detach().clone() for name, p in parameters.items() if p.requires_grad},
            **likelihood.initial_parameters(),
        }
        """Starting value of every parameter that a method treats, by name."""
        known = {**self.initial, **self.frozen, **self._backbone_parameters()}
        self.shapes = {name: value.shape for name, value in known.items()}
        if not self.initial:
            raise UnsupportedNetworkError("the network has no trainable parameter; set requires_grad on some")

    # What a method writes ---------------------------------------------------------------------------------

    @property
    def support(self) -> int | None:
        """How many distinct networks the method can give; None is unlimited."""
        return None

    def _check_fit(self, data: FitData, budget: int) -> None:  # noqa: B027 (optional)
        """Refuse, before anything is trained, what would fail later: raise with one sentence that names the remedy.

        The runner calls it for every job before the first one starts, and ``fit`` before ``_fit``.
        """

    def _networks_held(self, drawn: int, data: FitData, budget: int) -> Held:
        """What a fit on ``data`` and a draw of ``drawn`` networks will hold, for the estimate before a job starts.

        Never more than is true: a job that needs more than there is does not start. A method whose networks share
        weights says so here; one that knows more than its support, for example of its training, may say more.
        """
        if self.support is None:
            return Held(0, 0, drawn)
        return Held(self.support, self.support, min(drawn, self.support))

    @abstractmethod
    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        """Train by driving ``loop``; all randomness comes from the CPU generator ``rng``."""

    @abstractmethod
    def _sample(self, n: int, rng: torch.Generator) -> WeightSamples:
        """Draw ``n`` (at most ``support``) networks: copies of the entries of ``initial``; frozen ones are added."""

    @abstractmethod
    def _state(self) -> dict[str, Tensor]:
        """All that ``_sample`` needs, as named tensors."""

    @abstractmethod
    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``_state`` gave."""

    # What a caller uses -----------------------------------------------------------------------------------

    @property
    def memory_limit(self) -> int:
        """Bytes that one evaluation of networks may use for intermediate values; may be set, also before ``fit``."""
        return self.stacked.memory_limit

    @memory_limit.setter
    def memory_limit(self, limit: int) -> None:
        if limit < 1:
            raise UsageError(f"a memory limit of {limit} bytes leaves nothing to compute in; give at least 1")
        self.stacked.memory_limit = limit

    @final
    def fit(
        self,
        data: FitData | Examples | tuple[Any, Any] | Dataset[Any] | DataLoader[Any],
        *,
        budget: int,
        validation: Examples | tuple[Any, Any] | Dataset[Any] | DataLoader[Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        monitor: Monitor | None = None,
        snapshots: Snapshots | str | os.PathLike[str] | None = None,
    ) -> FitSummary:
        """Train on ``data`` within ``budget`` network-example gradient evaluations.

        Args:
            data: training and validation examples together, or training examples alone: a pair ``(x, y)`` of tensors or
                arrays, a map-style ``Dataset`` of such pairs, or a ``DataLoader`` of one. A dataset is read once, and
                what makes a batch follows from ``seed``, not from the loader.
            validation: examples for early stopping and the log, as ``data``; default: none.
            budget: one network, one example, forward and backward = 1; forward only = 1/3.
            seed: of everything random in training. The global random state is neither read nor changed.
            snapshots: a folder: a fit that was interrupted goes on from what it has left there, to the same networks.
                What another fit has left there, on other data for example, is not used.

        Raises:
            DataError: the data do not fit the network or the likelihood.
            UsageError: the budget is not positive or too small for the settings, or the device is not there.
            UnsupportedNetworkError: the method cannot treat a layer of the network.
            DivergenceError: the loss or the weights became NaN or infinite.
        """
        data = as_fit_data(data, validation)
        resolved = resolve_device(device)
        self.check_fit(data, budget)
        self.fitted = False  # a fit that fails leaves no half-trained posterior behind
        self._to_device(resolved)
        notes = self._notes(data)
        data = self.backbone.fit_data(data, resolved) if self.backbone else data.to(resolved)
        if isinstance(snapshots, str | os.PathLike):
            about = {"seed": seed, "budget": budget, "device": str(resolved), "torch": torch.__version__}
            snapshots = Snapshots(Path(snapshots), self._identity(data) | about)
        self._fitting = True
        try:
            loop = self._run_fit(data, budget, seed, monitor, snapshots, notes)
        finally:
            self._fitting = False
        # The draw proves that the method works and that its weights are finite before anything is stored.
        self._draw(8, seed)
        self.fitted = True
        return loop.summary(parameters_stored=sum(value.numel() for value in self._state().values()))

    def _identity(self, data: FitData) -> dict[str, Any]:
        """All that a fit on ``data`` follows from, beside what ``fit`` is given."""
        parts = [data.train, *([data.validation] if data.validation else [])]
        return {
            "posterior": self.fingerprint(),
            "method": self._about(),
            "prior": repr(self.prior),
            "memory limit": self.memory_limit,
            "initial weights": digest(self.initial.values()),
            "data": digest(tensor for part in parts for block in part.blocks() for tensor in block),
            "augmentation": repr(data.train.augment),
        }

    def _run_fit(
        self,
        data: FitData,
        budget: int,
        seed: int,
        monitor: Monitor | None,
        snapshots: Snapshots | None,
        notes: list[str],
    ) -> TrainingLoop:
        if snapshots is not None:
            snapshots.begin()
        while True:
            rng = generator(seed)
            loop = TrainingLoop(budget, monitor, rng=rng, snapshots=snapshots)
            loop.notes += notes
            try:
                with without_fast_path(), self._ending("a fit"):
                    self._fit(data, loop, rng)
            except SnapshotMismatchError:
                assert snapshots is not None
                snapshots.clear("starts again: its snapshot is not one of this fit")
            else:
                return loop

    @final
    def check_fit(self, data: FitData, budget: int) -> None:
        """Whether ``fit`` could start: returns, or raises what ``fit`` would raise before training."""
        if budget < 1:
            raise UsageError(f"the budget must be at least 1 gradient evaluation, got {budget}")
        with without_fast_path():
            seen = self.as_seen(data)
            check_data(self.network, self.likelihood, seen)
            if writes_to_inputs(self.network, seen.train.x[:1]) and self._guard is None:
                self._guard = self.network.register_forward_pre_hook(_on_copies)
            self._check_fit(seen, budget)
            self._check_memory(seen, budget)

    def _check_memory(self, data: FitData, budget: int) -> None:
        """Refuse a fit that holds more than there is, before it takes the machine down with it."""
        held = self._networks_held(1, data, budget)
        needed, there = max(held.fit, held.state + held.draw) * self.network_bytes, memory_bytes()
        if there is None or needed <= there:
            return
        names = fields_told(self.Config, "memory", True)
        lower = f"lower {' or '.join(names)}, or " if names else ""
        raise MemoryLimitError(
            f"{type(self).__name__} would hold {needed / self.network_bytes:,.0f} times the network's "
            f"{size_in_words(self.network_bytes)}, {size_in_words(needed)} in all, of this machine's "
            f"{size_in_words(there)}; {self._memory_remedy or lower + 'choose a smaller network'}"
        )

    @final
    def as_seen(self, data: FitData) -> FitData:
        """Examples of the kind that a fit on ``data`` sees, at no cost: where they are features, all are the same."""
        return self.backbone.probe(data) if self.backbone else data

    def _notes(self, data: FitData) -> list[str]:
        """What the record says of how the network is taken."""
        notes = ["starts at the weights of the given network"] if self.start == "given" else []
        if self.start == "fresh" and (names := looks_trained(self.network, self._initialised())):
            notes.append(
                f"the given network was trained, or initialised by hand ({', '.join(names[:3])}"
                f"{' …' if len(names) > 3 else ''}): a fresh start replaces its weights; start='given' keeps them"
            )
            warnings.warn(notes[-1], UserWarning, stacklevel=3)
        whole = self.backbone.network if self.backbone else self.network
        if norms := sum(map(is_batch_norm, whole.modules())):
            notes.append(f"{norms} layers of batch normalisation are frozen at their running statistics")
        if self._norms_replaced:
            notes.append(f"{self._norms_replaced} layers of batch normalisation were replaced by group normalisation")
        if self.bayesian != "all":
            chosen = sum(value.numel() for value in self.initial.values())
            every = sum(shape.numel() for shape in self.shapes.values())
            notes.append(f"{chosen:,} of {every:,} parameters are random; the others stay as they are given")
        if self.backbone and data.train.augment is not None:
            notes.append("training inputs are not augmented: what the last layer sees of them is computed once")
        return notes

    def _initialised(self) -> nn.Module:
        """A copy of the network with other initial weights, wherever its layers can make them."""
        network = copy.deepcopy(self.network).cpu()
        with self.seeded(torch.Generator().manual_seed(0)):
            reset(network)
        return network

    def _backbone_parameters(self) -> dict[str, Tensor]:
        """Parameters of the backbone: the same in every sample, and seen by no method."""
        if self.backbone is None:
            return {}
        own = {name for name, _ in self.network.named_parameters()}
        return {name: p.detach() for name, p in self.backbone.network.named_parameters() if name not in own}

    @final
    @torch.no_grad()
    def sample(self, n: int, *, seed: int) -> WeightSamples:
        """Draw networks: name → ``[S, *shape]`` with S = n, or ``support`` where that is less.

        The same seed gives the same networks on any device, and for a method of unlimited support
        ``sample(k)`` is the start of ``sample(n)``, k ≤ n. The global random state is not touched.

        Raises:
            UsageError: n < 1, or the posterior was neither fitted nor loaded.
            PluginError: the method returned wrong names or shapes.
            DivergenceError: the drawn weights are not finite.
        """
        if n < 1:
            raise UsageError(f"cannot sample {n} networks; ask for at least 1")
        if not self.fitted:
            raise UsageError(f"{type(self).__name__} has no weights yet; call fit or load first")
        return self._draw(n, seed)

    @final
    def iter_samples(self, n: int, *, seed: int, chunk: int | None = None) -> Iterator[WeightSamples]:
        """The networks of ``sample(n, seed=seed)``, ``chunk`` at a time: memory follows the chunk, not n.

        Args:
            chunk: networks at once; by default as many as fit an eighth of the memory limit.

        Raises:
            As ``sample``, before the first draw.
        """
        if n < 1 or (chunk is not None and chunk < 1):
            raise UsageError(f"cannot sample {n} networks, {chunk} at a time; ask for at least 1")
        if not self.fitted:
            raise UsageError(f"{type(self).__name__} has no weights yet; call fit or load first")
        size = n if self.support is None else min(n, self.support)
        bytes_each = sum(value.numel() * value.element_size() for value in (self.initial | self.frozen).values())
        return self._chunks(size, seed, chunk or max(1, self.memory_limit // (8 * bytes_each)))

    def _chunks(self, size: int, seed: int, chunk: int) -> Iterator[WeightSamples]:
        rng = generator(seed)
        # A method of finite support holds all its networks anyway, and chooses among them once.
        chosen = None if self.support is None else self._draw(size, seed)
        for start in range(0, size, chunk):
            if chosen is not None:
                yield {name: value[start : start + chunk] for name, value in chosen.items()}
            else:
                with torch.no_grad():  # ends before the caller goes on
                    part = self._sampled(min(chunk, size - start), rng)
                yield part

    @torch.no_grad()
    def _draw(self, n: int, seed: int) -> WeightSamples:
        size = n if self.support is None else min(n, self.support)
        return self._sampled(size, generator(seed))

    def _sampled(self, n: int, rng: torch.Generator) -> WeightSamples:
        with self._ending("a draw"):
            return self._checked(self._sample(n, rng), n)

    @contextmanager
    def _ending(self, where: str) -> Iterator[None]:
        """Within it, a library that ends the process raises an error instead."""
        try:
            yield
        except SystemExit as error:
            raise PluginError(
                f"what {type(self).__name__} uses asked to end the process in the middle of {where} (exit code "
                f"{error.code}); its library may not take such data or numbers"
            ) from error

    def _checked(self, weights: WeightSamples, size: int) -> WeightSamples:
        if not isinstance(weights, Mapping) or not weights:
            what = "an empty mapping" if isinstance(weights, Mapping) else type(weights).__name__
            raise PluginError(f"{type(self).__name__}._sample gave {what}; return a mapping of names to [n, *shape]")
        weights = self.complete(weights)
        weights |= {name: value.expand(size, *value.shape) for name, value in self._backbone_parameters().items()}
        check_draw(type(self).__name__, self.shapes, weights, size)
        return {name: weights[name] for name in self.shapes}

    @final
    @torch.no_grad()
    def outputs(self, x: Tensor, weights: Mapping[str, Tensor], *, memory_limit: int | None = None) -> Tensor:
        """Outputs ``[S, B, K]`` of the networks ``weights`` on shared inputs x ``[B, ...]``, in bounded memory.

        Args:
            memory_limit: bytes for intermediate values; default: the posterior's ``memory_limit``.
        """
        return self.stacked(weights, self.features(x.to(self.device)), memory_limit=memory_limit)

    @final
    def features(self, x: Tensor) -> Tensor:
        """What the random part of the network sees of inputs x ``[B, ...]``: themselves, or the backbone's outputs."""
        if self.backbone is None or self._fitting:  # within a fit the examples are features already
            return x
        return self.backbone.features(x, self.device)[:]

    @final
    @torch.no_grad()
    def predict(
        self,
        x: Any,
        weights: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]],
        *,
        memory_limit: int | None = None,
    ) -> ClassPrediction | ValuePrediction:
        """Mean, entropy and mutual information, or the variances of a regression, of the mixture on x ``[B, ...]``.

        x is a tensor or an array, or a ``Dataset`` or ``DataLoader``, whose targets are passed over.
        ``weights`` is a draw, or several one after the other, such as ``iter_samples`` gives: then no more networks
        are held at once than one of them has.
        """
        draws = [weights] if isinstance(weights, Mapping) else weights
        x = self.features(as_inputs(x))
        memory_limit = self.memory_limit if memory_limit is None else memory_limit
        classes = self.likelihood.kind == "classification"
        chunks: tuple[Tensor, ...] = ()
        reducers: list[Any] = []
        most = 0
        for draw in draws:
            networks = next(iter(draw.values())).shape[0]
            if not chunks:
                # In chunks of examples: the outputs of a draw are held, in float64, for one chunk alone.
                chunks = x.split(max(1, memory_limit // (64 * max(1, networks) * self.likelihood.output_width)))
                reducers = [ClassReducer() if classes else ValueReducer() for _ in chunks]
                most = networks
            for start in range(0, networks, most):
                part = take_networks(draw, start, min(start + most, networks))
                for chunk, reducer in zip(chunks, reducers, strict=True):
                    outputs = self.stacked(part, chunk.to(self.device), memory_limit=memory_limit)
                    reducer.add(**self.likelihood.predict(outputs, part))
        if not reducers:
            raise UsageError("no networks to predict with; draw at least one")
        return concatenate([reducer.result() for reducer in reducers])

    @final
    def export(self, x: Tensor, n: int, *, seed: int = 0) -> nn.Module:
        """``n`` drawn networks as a plain module: inputs ``[B, ...]`` → mean, entropy and mutual information, or the
        parts of a regression's variance, as ``predict`` gives them, in float32.

        It needs nothing of this package's posteriors, and goes through ``torch.export`` and ONNX.

        Args:
            x: some inputs ``[B, ...]``, on which the module is compared with ``predict``.

        Raises:
            PluginError: they differ by more than rounding.
        """
        weights = self.sample(n, seed=seed)
        network = copy.deepcopy(self.network)
        for name, value in self.frozen.items():
            network.get_parameter(name).data.copy_(value)
        before = copy.deepcopy(self.backbone.outer()) if self.backbone else None
        module = DrawnNetworks(network, before, self.likelihood, weights).eval()
        with torch.no_grad():
            mean, expected = module(x.to(self.device)).mean, self.predict(x, weights).mean
        if not torch.allclose(mean.double().cpu(), expected.cpu(), rtol=1e-3, atol=1e-4):
            raise PluginError(f"the exported networks of {type(self).__name__} predict otherwise than its posterior")
        return module

    @final
    def state_dict(self) -> dict[str, Tensor]:
        """Named tensors that, with the same network, likelihood and config, restore this posterior."""
        return {name: value.detach().cpu() for name, value in self._state().items()}

    @final
    def load_state_dict(self, state: Mapping[str, Tensor], *, device: str | torch.device = "cpu") -> None:
        """Take over what ``state_dict`` gave, onto ``device``."""
        self._to_device(resolve_device(device))
        self._load_state({name: value.to(self.device) for name, value in state.items()})
        self.fitted = True

    @final
    def save(self, path: str | os.PathLike[str], *, note: Mapping[str, Any] | None = None) -> None:
        """Write a safetensors file with the network's fingerprint, the method and its settings; atomic.

        Parameters that are not random, and buffers, such as statistics of batch normalisation, are in the file as well.

        Args:
            note: what else is to be in the file, as JSON; ``read_note`` gives it back.
        """
        about = {"format": 1, **self._about(), "fingerprint": self.fingerprint()}
        about |= likelihood_facts(self.likelihood)
        if note is not None:
            about["note"] = note
        settled = {f"{SETTLED}{name}": value for name, value in self._settled().items()}
        write_posterior(Path(path), self.state_dict() | settled, about)

    def _settled(self) -> dict[str, Tensor]:
        """Of the whole network what is the same in every sample: parameters that are not random, and buffers."""
        whole = self.backbone.network if self.backbone else self.network
        return {name: value for name, value in whole.state_dict().items() if name not in self.initial}

    def _settle(self, values: Mapping[str, Tensor]) -> None:
        """Take over what ``_settled`` gave."""
        own = self._settled()
        if values.keys() != own.keys() or any(values[name].shape != value.shape for name, value in own.items()):
            raise UsageError("its parameters and buffers are others")
        for name, value in own.items():
            value.copy_(values[name])
            if name in self.frozen:
                self.frozen[name].copy_(values[name])

    @final
    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        network: nn.Module,
        likelihood: Likelihood | None = None,
        prior: GaussianPrior | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Read what ``save`` wrote, for the same network architecture.

        ``WeightPosterior.load`` finds the method by the name that the file has of it.

        Args:
            network: of the architecture; its weights do not matter.
            likelihood: default: as the file says.

        The file may come from anybody: what it says of itself cannot make the method take much more memory than the
        file and the network have.

        Raises:
            DataError: the file is damaged, of another method, or of another network.
        """
        about, state = read_posterior(path)
        if cls is WeightPosterior:
            return _registered(about, path).load(path, network, likelihood, prior, device=device)  # type: ignore[return-value]
        likelihood = likelihood or likelihood_from(about, path)
        if "likelihood" not in about and isinstance(likelihood, HeteroscedasticGaussian):
            likelihood = HeteroscedasticGaussian(likelihood.dimensions, "exp")  # a file of version 0.1
        expected = cls._names()[0]
        if about.get("method") not in cls._names():
            raise DataError(f"{path} holds a posterior of {about.get('method', 'no known method')}, not {expected}")
        try:
            config = cls.Config(**about.get("config", {}))
        except ValidationError as error:
            raise DataError(f"{path}: {explain(error, 'its settings')}; was it written by another version?") from error
        try:
            posterior = cls(network, likelihood, prior, config, **_options(about))
        except (TypeError, UsageError) as error:
            raise DataError(f"{path} does not say how to take the network: {error}") from error
        settled = {name.removeprefix(SETTLED): state.pop(name) for name in list(state) if name.startswith(SETTLED)}
        try:
            if settled:  # files of version 0.1 have none
                posterior._settle(settled)
        except UsageError as error:
            raise DataError(f"{path} was fitted to another network: {error}") from error
        if about.get("fingerprint") != posterior.fingerprint():
            raise DataError(f"{path} was fitted to another network or likelihood; build those that it was saved with")
        held = [*state.values(), *posterior.initial.values()]
        try:
            with bounded_memory(sum(value.nbytes for value in held)):
                posterior.load_state_dict(state, device=device)
            drawn = posterior._draw(1, 0)
            if any(drawn[name].dtype != value.dtype for name, value in posterior.initial.items()):
                raise TypeError("its weights are of another type than the network's")
        except Exception as error:  # whatever a method makes of a state that it did not write
            raise DataError(f"{path} does not hold all that {expected} needs: {error}") from error
        return posterior

    @final
    @classmethod
    def read_about(cls, path: str | os.PathLike[str]) -> dict[str, Any]:
        """What a file of this method says of itself, beside its tensors: the method is called as it is now.

        Raises:
            DataError: the file is damaged.
        """
        about = read_about(path)
        return about | {"method": cls._names()[0]} if about.get("method") in cls._names() else about

    @final
    def fingerprint(self) -> str:
        """SHA-256 over the network's printed form, names and shapes, frozen values and buffers, and the likelihood."""
        shapes = [(name, tuple(shape)) for name, shape in self.shapes.items()]
        digest = hashlib.sha256(f"{self.network!r} {shapes} {self.likelihood!r}".encode())
        whole = self.backbone.network if self.backbone else self.network
        for value in (*self.frozen.values(), *self._backbone_parameters().values(), *whole.buffers()):
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _about(self) -> dict[str, Any]:
        options = {"start": self.start, "bayesian": self.bayesian, "batch_norm": self.batch_norm}
        given = {name: value for name, value in options.items() if value not in DEFAULTS}
        about = {"method": self._names()[0], "config": json.loads(self.config.model_dump_json())}
        return about | ({"network": given} if given else {})

    @classmethod
    def _names(cls) -> list[str]:
        """What stored posteriors may call this method: first its registered name, which outlives a moved module."""
        return [
            *plugins.names_of(plugins.METHODS, cls),
            f"{cls.__module__}:{cls.__qualname__}",
            *vars(cls).get("former_names", ()),
        ]

    # Help for methods -------------------------------------------------------------------------------------

    @final
    @contextmanager
    def seeded(self, rng: torch.Generator) -> Iterator[None]:
        """Within it, PyTorch's global generator follows ``rng``; afterwards it is as it was before.

        For module initialisers, which take no generator.
        """
        with torch.random.fork_rng(devices=[]):
            # The CPU's generator alone: torch.manual_seed would reseed every GPU as well.
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=rng)))
            yield

    @final
    def initial_weights(self, n: int, rng: torch.Generator, loop: TrainingLoop) -> WeightSamples:
        """``n`` independent initialisations, name → ``[n, *shape]``, by each layer's own ``reset_parameters``.

        Parameters of modules without that method start at the values they had in the user's network, from the second
        network on with noise as wide as they are spread: chains and members that start at one point would look as if
        they had met. The record of the fit names them. With ``start="given"`` all do, and the n networks are the same.
        """
        if self.start == "given":
            return {name: value.expand(n, *value.shape).clone() for name, value in self.initial.items()}
        network = copy.deepcopy(self.network).cpu()
        draws = []
        with self.seeded(rng):
            for _ in range(n):
                made = reset(network)
                draws.append({name: p.detach().clone() for name, p in network.named_parameters()})
            for draw in draws[1:]:
                for name in sorted(self.initial.keys() & draw.keys() - made):
                    draw[name] += _spread(draw[name]) * torch.randn_like(draw[name])
        if same := sorted(self.initial.keys() & draws[0].keys() - made):
            loop.note(f"no reset_parameters for {', '.join(same)}: they start at the values of the given network")
        return {
            name: (
                torch.stack([draw[name] for draw in draws]).to(self.device)
                if name in draws[0]
                else value.expand(n, *value.shape).clone()
            )
            for name, value in self.initial.items()
        }

    @final
    def complete(self, weights: Mapping[str, Tensor]) -> WeightSamples:
        """Add the frozen parameters to weights ``[S, ...]`` of the others, expanded and not copied."""
        size = next(iter(weights.values())).shape[0]
        # A copy, expanded: the stacked engine sees the sharing, and who overwrites a sample harms nothing else.
        return {**weights, **{name: value.clone().expand(size, *value.shape) for name, value in self.frozen.items()}}

    @final
    def losses(
        self,
        weights: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        *,
        own_inputs: bool = False,
        stabilised: bool = False,
    ) -> Tensor:
        """Mean NLL of each network, ``[S]``, on the same examples or with ``own_inputs`` on its own ``[S, B, ...]``.

        For training steps: the gradients are computed in the same pass, network by network, so that memory does
        not grow with S. ``stabilised`` takes gradients that train better where the likelihood has such
        (``training_nll``): not for a method that samples a posterior by them.
        """
        nll = self.likelihood.training_nll if stabilised else self.likelihood.nll
        return self.stacked.mean_loss(weights, x, y, nll, own_inputs=own_inputs)

    @final
    def losses_to_grad(
        self,
        weights: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        *,
        own_inputs: bool = False,
        stabilised: bool = False,
    ) -> Tensor:
        """``losses``, with the gradients of their sum written into ``grad`` of the weights, which are leaves.

        What ``grad`` held is overwritten, so no ``zero_grad`` before it; more may be added by ``backward`` after it.
        """
        nll = self.likelihood.training_nll if stabilised else self.likelihood.nll
        return self.stacked.losses_to_grad(weights, x, y, nll, own_inputs=own_inputs)

    @final
    def loss(self, outputs: Tensor, y: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Mean NLL per network, ``[S]``."""
        return self.likelihood.nll(outputs, y, weights).mean(1)

    @final
    def validation_scores(self, data: FitData, weights: WeightSamples) -> dict[str, float]:
        """Scores of a draw on the validation examples (or none): for early stopping and the log of a fit.

        ``val_nll`` is the NLL of the mixture; ``disagreement`` the mean over pairs of networks of the share of
        examples they classify differently, ``disagreement_normalised`` the same divided by the error of one network,
        ``mutual_information`` H(p̄) − mean H(p_s) in nats; ``epistemic_std`` their counterpart for regression;
        ``weight_spread`` the std/mean of the L2 norms of the whole weight vectors, and ``weight_spread/LAYER`` of a
        layer's without its bias.
        """
        scores = weight_spreads(self.network, weights)
        if data.validation is not None:
            scores |= prediction_scores(self.stacked, self.likelihood, data.validation, weights)
        return scores

    @final
    def validator(self, data: FitData, networks: int, rng: torch.Generator) -> Callable[[], dict[str, float]]:
        """What ``loop.run(validate=…)`` calls: ``validation_scores`` of so many networks of the fit as it is by then.

        The draw's seed comes from ``rng`` now: every validation draws with the same noise.
        """
        seed = int(torch.randint(2**62, (), generator=rng))

        def validate() -> dict[str, float]:
            with torch.no_grad():
                weights = self._sample(networks, torch.Generator().manual_seed(seed))
            return self.validation_scores(data, self.complete(weights))

        return validate

    @final
    def negative_log_prior(self, weights: Mapping[str, Tensor]) -> Tensor:
        """−log p(weights) per network, ``[S]``, up to a constant: the prior's part and that of a learned noise."""
        return self.prior.penalty(weights) - self.likelihood.log_prior(weights)

    @final
    def require_memory(self, networks: int, remedy: str, *, copies: int = 1, what: str = "networks") -> None:
        """Refuse to store more networks than half of the main memory holds; for ``_check_fit``.

        Args:
            copies: how many of each are held at once, at the most.
            what: what is counted, where it is something else of a network's size.

        Raises:
            MemoryLimitError: with the sizes and ``remedy`` ("lower samples").
        """
        each = self.network_bytes
        needed, there = networks * copies * each, memory_bytes()
        if there is not None and needed > there / 2:
            often = f", {copies} copies of each at times," if copies > 1 else ""
            raise MemoryLimitError(
                f"{networks:,} {what} of {each / 2**20:.3g} MB{often} need {needed / 2**30:,.1f} GB; at most half "
                f"of this machine's {there / 2**30:.3g} GB may be used; {remedy}"
            )

    @property
    @final
    def network_bytes(self) -> int:
        """Memory of one network's weights, without those that are frozen."""
        return sum(value.numel() * value.element_size() for value in self.initial.values())

    @final
    def trained_copies(self, data: FitData) -> int:
        """Of parameters that Adam trains, for ``_networks_held``: gradients, two moments, the best snapshot of all."""
        snapshot = data.validation is not None and getattr(self.config, "keep_best", False)
        return 4 + 3 * snapshot

    @final
    def validation_cost(self, data: FitData, networks: int) -> float:
        """Gradient evaluations that ``validation_scores`` of that many networks costs: forward only is 1/3."""
        return networks * len(data.validation) / 3 if data.validation else 0.0

    def _to_device(self, device: torch.device) -> None:
        self.device = device
        self.network.to(device)
        if self.backbone:
            self.backbone.to(device)
        self.initial = {name: value.to(self.device) for name, value in self.initial.items()}
        self.frozen = {name: value.to(self.device) for name, value in self.frozen.items()}


def _options(about: Mapping[str, Any]) -> dict[str, Any]:
    """How a saved posterior takes its network; a file from elsewhere may say anything."""
    options = about.get("network", {})
    if not isinstance(options, dict) or not options.keys() <= {"start", "bayesian", "batch_norm"}:
        raise UsageError("unknown options")
    return options


def _registered(about: Mapping[str, Any], path: str | os.PathLike[str]) -> type[WeightPosterior]:
    """The method that a file names.

    Raises:
        DataError: no installed package has it.
        PluginError: it cannot be imported.
    """
    name = about.get("method")
    found: type | None = plugins.only(plugins.METHODS, name, "method", type) if isinstance(name, str) else None
    if found is None:
        raise DataError(f"{path} holds a posterior of {name or 'no known method'}, which no installed package has")
    if not issubclass(found, WeightPosterior):
        raise PluginError(f"the method {name!r} is not a subclass of WeightPosterior")
    return found


def _on_copies(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)


def _spread(value: Tensor) -> float:
    """Of a parameter's numbers; of equal ones a tenth of their size, or of 1."""
    spread = float(value.std()) if value.numel() > 1 else 0.0
    return spread or 0.1 * (float(value.abs().max()) or 1.0)
