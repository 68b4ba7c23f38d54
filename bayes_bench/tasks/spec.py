"""Suites: TOML files validated into frozen objects that say what is run. Imports no torch.

A suite names tasks, methods, seeds and the budget. Which values a data source or a network accepts is
checked here as far as it needs no data; ``bayes_bench.tasks`` turns a ``TaskSpec`` into tensors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.errors import UsageError
from bayes_bench.host.shipped import REFERENCE_SUFFIX
from bayes_bench.settings import COLLAPSE_THRESHOLD, NAME_PATTERN, Settings, fields_told, setting

QUICK_SUFFIX = "-quick"
LARGEST_SEED = 2**63 - 1
RETIRED = {"seconds_per_job", "megabytes_per_job"}
"""Keys of a task that said something once: files and records that have them are still read."""
Width = Annotated[int, Field(gt=0, le=10_000_000)]
Widths = Annotated[tuple[Width, ...], Field(max_length=1000)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Activation = Literal["relu", "leaky_relu", "tanh", "gelu", "silu"]


class _Table(Settings):
    """A table that once had ``RETIRED`` keys."""

    @model_validator(mode="before")
    @classmethod
    def _without_retired(cls, content: Any) -> Any:
        return {k: v for k, v in content.items() if k not in RETIRED} if isinstance(content, dict) else content


class MLPSpec(Settings):
    """A multilayer perceptron; inputs are flattened."""

    name: Literal["mlp"] = "mlp"
    hidden: Widths = setting((100,), "widths of the hidden layers")
    activation: Activation = "relu"


class ConvNetSpec(Settings):
    """Convolutions, each followed by the activation and max-pooling, then linear layers."""

    name: Literal["convnet"] = "convnet"
    channels: Widths = setting((32, 32), "output channels of the convolutions")
    kernel: int = setting(5, "kernel size of every convolution", gt=0, le=10_000)
    padding: int = setting(0, "zero padding of every convolution", ge=0, le=10_000)
    pool: int = setting(2, "size of the max-pooling after every convolution", gt=0, le=10_000)
    hidden: Widths = setting((), "widths of the linear layers before the output")
    activation: Activation = "leaky_relu"


class ResNetSpec(Settings):
    """A small residual network with group normalisation (batch statistics would couple examples)."""

    name: Literal["resnet"] = "resnet"
    width: Width = setting(16, "channels of the first stage; doubled at each later stage")
    blocks: int = setting(1, "residual blocks per stage", gt=0, le=1000)
    stages: int = setting(3, "number of stages, each halving the resolution but the first", gt=0, le=16)
    groups: Width = setting(4, "groups of the group normalisation")


class CustomNetworkSpec(Settings):
    """A network written in Python: an entry point of the group ``bayes_bench.networks``, or ``--allow-code``."""

    name: Literal["custom"] = "custom"
    entry: str = setting(..., "entry point name, or 'FILE.py:FUNCTION' (needs --allow-code FILE.py)", min_length=1)
    options: dict[str, Any] = setting({}, "keyword arguments for the function")


NetworkSpec = Annotated[MLPSpec | ConvNetSpec | ResNetSpec | CustomNetworkSpec, Field(discriminator="name")]


class CategoricalSpec(Settings):
    name: Literal["categorical"] = "categorical"


class GaussianSpec(Settings):
    name: Literal["gaussian"] = "gaussian"
    noise_std: float | Literal["learned"] = setting(
        "learned", "known standard deviation of the noise in the units of the targets, or 'learned'"
    )

    @field_validator("noise_std")
    @classmethod
    def _positive(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and value <= 0:
            raise ValueError("the noise standard deviation must be positive")
        return value


class HeteroscedasticSpec(Settings):
    name: Literal["heteroscedastic"] = "heteroscedastic"
    scale: Literal["softplus", "exp"] = setting(
        "softplus", "how outputs become the noise's standard deviation; 'exp', as version 0.1 had it, runs away"
    )


LikelihoodSpec = Annotated[CategoricalSpec | GaussianSpec | HeteroscedasticSpec, Field(discriminator="name")]


class PriorSpec(Settings):
    """A zero-mean Gaussian over the weights."""

    std: float = setting(1.0, "standard deviation", gt=0)
    scaling: Literal["none", "fan_in"] = setting(
        "none", "'fan_in' divides the std of each weight matrix or kernel by the square root of its fan-in"
    )


Position = Annotated[float, Field(ge=-1e30, le=1e30)]


class CurveSpec(Settings):
    """For 1-D regression: the grid that curves are drawn on, and the regions their variance is averaged over."""

    low: Position
    high: Position
    points: int = Field(241, gt=1, le=1_000_000)
    inside: tuple[tuple[Position, Position], ...] = setting(..., "intervals with training data")
    gap: tuple[tuple[Position, Position], ...] = setting((), "intervals without training data between intervals with")

    @model_validator(mode="after")
    def _ordered(self) -> CurveSpec:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        for low, high in (*self.inside, *self.gap):
            if not self.low <= low < high <= self.high:
                raise ValueError(f"the interval [{low}, {high}] is not an interval within [{self.low}, {self.high}]")
        return self


class AugmentationSpec(Settings):
    """Random changes of training images, drawn anew whenever one is used; other images stay as they are."""

    shift: int = setting(
        0,
        "images are moved by up to so many pixels in each direction; what enters is reflected at the border",
        ge=0,
        le=1000,
    )
    flip: bool = setting(False, "every second time an image is mirrored left to right")


class PublishedSpec(Settings):
    """A number that somebody else has published for this task: a claim, shown beside what was measured here."""

    method: str = setting(..., "the label that it is shown beside", pattern=NAME_PATTERN)
    metric: str = setting(..., "name of the metric, as in results.csv", min_length=1, max_length=100)
    value: float = setting(..., "in the unit of the metric: 0.9931, not 99.31 %", ge=-1e30, le=1e30)
    source: str = setting(..., "who claims it, where", min_length=1, max_length=300)
    note: str = setting("", "in what it differs from the task here, or how sure it is", max_length=1000)


class TaskSpec(_Table):
    name: str = setting(..., "how the task is called in tables and folders", pattern=NAME_PATTERN)
    title: str = setting("", "one line for people", identity="none")
    data: SourceSpec = setting(..., "where its examples come from", identity="elsewhere")
    network: NetworkSpec
    likelihood: LikelihoodSpec = CategoricalSpec()
    prior: PriorSpec = PriorSpec()
    budget: int = setting(..., "network-example gradient evaluations per job", gt=0, identity="elsewhere")
    ood: tuple[OODSpec, ...] = setting(
        (), "reported out-of-distribution sets; never used for tuning", identity="elsewhere"
    )
    validation_ood: tuple[OODSpec, ...] = setting(
        (), "out-of-distribution sets that tuning may use", identity="elsewhere"
    )
    start: Literal["fresh", "given"] = setting(
        "fresh", "where fits begin: at new initial weights, or at those of `weights`", identity="added"
    )
    weights: Path | None = setting(
        None,
        "the network's weights and buffers, a safetensors file as of its state_dict; relative to the suite's file",
        identity="elsewhere",
    )
    bayesian: str | tuple[str, ...] = setting(
        "all", "parameters that are random: 'all', 'last' (the last layer's), or patterns of names", identity="added"
    )
    batch_norm: Literal["frozen", "group"] | None = setting(
        None,
        "what batch normalisation becomes: an affine map by its running statistics (where weights are given), or "
        "group normalisation (for a fresh start)",
        identity="added",
    )
    curve: CurveSpec | None = None
    augmentation: AugmentationSpec | None = None
    published: tuple[PublishedSpec, ...] = setting(
        (), "numbers of others, shown beside ours as claims", identity="none"
    )
    examples: int | None = setting(
        None,
        "validation, test and out-of-distribution sets are cut to so many examples, a fixed random subset",
        gt=0,
        identity="elsewhere",
    )
    collapse_threshold: float = setting(
        COLLAPSE_THRESHOLD,
        "mean total variation between two networks on out-of-distribution data below which the alarm is raised",
        ge=0,
        le=1,
        identity="none",
    )
    reference: str | None = setting(
        None,
        "predictions of the true posterior to measure distances to: a shipped one's name, or a file",
        identity="none",
    )
    settings: dict[str, dict[str, Any]] = setting(
        {}, "settings per method for this task, below those of --set", identity="none"
    )

    @field_validator("reference")
    @classmethod
    def _name_or_file(cls, value: str | None) -> str | None:
        if value is not None and not value.endswith(REFERENCE_SUFFIX) and not re.fullmatch(NAME_PATTERN, value):
            raise ValueError(f"a reference is the name of a shipped one or a file that ends in {REFERENCE_SUFFIX}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TaskSpec:
        names = [spec.name for spec in (*self.ood, *self.validation_ood)]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"out-of-distribution set named twice: {', '.join(sorted(repeated))}")
        if self.weights is not None and self.start == "fresh":
            raise ValueError('weights are given, but a fresh start would replace them; say start = "given"')
        if self.start == "given" and self.weights is None and not isinstance(self.network, CustomNetworkSpec):
            raise ValueError('start = "given" needs the network\'s weights: weights = "FILE.safetensors"')
        if self.curve and isinstance(self.likelihood, CategoricalSpec):
            raise ValueError("a curve needs a regression likelihood (gaussian or heteroscedastic)")
        return self


class MethodEntry(Settings):
    """A method as a suite lists it: several entries may run one method with different settings."""

    label: str = setting(..., "how the row is called in tables and folders", pattern=NAME_PATTERN)
    method: str = setting(..., "the method's registered name")
    settings: dict[str, Any] = setting({}, "settings that differ from the task's and the method's defaults")


class QuickSpec(_Table):
    """How a suite is cut down to a few minutes; networks, methods and settings stay."""

    budget_scale: float = setting(..., "factor on every budget", gt=0, le=1)
    seeds: tuple[Seed, ...] = setting((0,), "training seeds", min_length=1)
    examples: int | None = setting(None, "as the key of a task", gt=0)


class SuiteSpec(Settings):
    name: str = setting(..., "how the suite is called", pattern=NAME_PATTERN)
    description: str = ""
    budget_scale: float = setting(1.0, "factor on every task's budget", gt=0, le=1e6)
    quick: QuickSpec | None = setting(None, "what `--quick` runs instead")
    tasks: tuple[TaskSpec, ...] = Field(..., min_length=1)
    methods: tuple[MethodEntry, ...] = setting((), "run when the command line names no methods")
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_entries(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [{"label": entry, "method": entry} if isinstance(entry, str) else entry for entry in value]
        return value

    @model_validator(mode="after")
    def _unique(self) -> SuiteSpec:
        for kind, names in (
            ("task", [task.name for task in self.tasks]),
            ("method label", [entry.label for entry in self.methods]),
        ):
            if repeated := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{kind} named twice: {', '.join(sorted(repeated))}")
        if self.quick and not re.fullmatch(NAME_PATTERN, self.name + QUICK_SUFFIX):
            raise ValueError(f"the name is too long for a quick variant, which is called {self.name + QUICK_SUFFIX!r}")
        return self

    def quick_variant(self) -> SuiteSpec:
        """A suite of its own, ``NAME-quick``, that finishes in minutes.

        Where examples are left out, the data are others than those of a reference posterior, and there is none.

        Raises:
            UsageError: the suite does not say how it is cut down.
        """
        if self.quick is None:
            raise UsageError(
                f"the suite {self.name!r} has no quick variant; give it a table [quick], or use --budget-scale"
            )
        quick, tasks = self.quick, self.tasks
        if quick.examples is not None:
            tasks = tuple(
                task.model_copy(
                    update={"examples": min(quick.examples, task.examples or quick.examples), "reference": None}
                )
                for task in tasks
            )
        return self.model_copy(
            update={
                "name": self.name + QUICK_SUFFIX,
                "budget_scale": self.budget_scale * quick.budget_scale,
                "seeds": quick.seeds,
                "tasks": tasks,
                "quick": None,
            }
        )


CHANGES_NO_RESULT = {*fields_told(TaskSpec, "identity", "none"), *RETIRED}
"""Keys of a task that change no result by themselves: texts, and what results are only compared with."""
NOT_IN_KEY = {*CHANGES_NO_RESULT, *fields_told(TaskSpec, "identity", "elsewhere")}
"""Beside these, keys that a job's key has in another form: its own budget and settings, the checksum of its data. So a
file that has been moved changes no key."""
ADDED = fields_told(TaskSpec, "identity", "added")
"""Keys that later versions have added: in a job's key only where they are not at their defaults."""
