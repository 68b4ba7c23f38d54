"""Tasks: a ``TaskSpec`` made concrete: tensors, network, likelihood, prior, out-of-distribution sets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bayes_bench import data
from bayes_bench.data.spec import OODSpec
from bayes_bench.errors import DataError, UsageError
from bayes_bench.posterior.augmentation import Augmentation
from bayes_bench.posterior.examples import Examples, FitData, StoredInputs
from bayes_bench.posterior.likelihood import Categorical, Gaussian, HeteroscedasticGaussian, Likelihood
from bayes_bench.posterior.prior import GaussianPrior
from bayes_bench.results.sets import kind_of, set_name
from bayes_bench.tasks.check import check_task, task_kind
from bayes_bench.tasks.spec import CurveSpec, GaussianSpec, HeteroscedasticSpec, TaskSpec

MOST_OFFSET = 8.0
"""Standard deviations between zero and a mean up to which single precision, of 24 bits, keeps 20 for the spread."""
FEWEST_STEPS = 64
"""Steps of its type, at its size, that a standard deviation must have: with fewer, rounding would be a part of it."""


@dataclass(frozen=True)
class Standardiser:
    """How raw inputs and regression targets become what the network sees, from training statistics only.

    ``x_mean`` and ``x_std`` broadcast against one input (per channel, per feature, or one number);
    ``y_mean`` and ``y_std`` are ``[D]`` for regression and empty for classification.
    """

    x_mean: np.ndarray
    x_std: np.ndarray
    y_mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    y_std: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def inputs(self, x: np.ndarray, what: str = "the inputs", columns: Sequence[str] = ()) -> Tensor:
        """Raw inputs ``[N, ...]`` as the network sees them, float32; made in blocks, as float64 takes twice that.

        Args:
            what: what they are, for the sentence.
            columns: names of the values of an input, where they have names.

        Raises:
            DataError: a standardised value is beyond single precision; names row and column.
        """
        done = np.empty(x.shape, dtype=np.float32)
        start = 0
        for block in data.blocks(x):
            with np.errstate(over="ignore"):  # looked for below
                done[start : start + len(block)] = (np.asarray(block, dtype=np.float64) - self.x_mean) / self.x_std
            start += len(block)
        found = torch.from_numpy(done)
        if (row := first_row_not_finite(found)) is not None:
            scaled = (np.asarray(x[row : row + 1], dtype=np.float64) - self.x_mean) / self.x_std
            raise DataError(f"{what}: {farthest(scaled[0], row, columns)}, which is no number any more; remove the row")
        return found

    def inputs_of(self, part: data.Arrays, what: str, columns: Sequence[str] = ()) -> Tensor | StoredInputs:
        """``inputs`` of a part of a split; what is in a file stays there, and the same is made of every row."""
        if isinstance(part.x, data.StoredRows):
            return StoredInputs(torch.Size(part.x.shape), partial(_read, part.x, self))
        return self.inputs(part.x, what, columns)

    def targets(self, y: np.ndarray) -> Tensor:
        """Class indices as they are (int64 ``[N]``); regression targets ``[N, D]`` standardised, float32."""
        if self.y_mean.size == 0:
            return torch.from_numpy(np.ascontiguousarray(y, dtype=np.int64))
        return _tensor((np.asarray(y, dtype=np.float64) - self.y_mean) / self.y_std)

    @property
    def input_type(self) -> np.dtype:
        """Of raw inputs that were made of standardised ones: the smallest that says as much."""
        return _carrying(self.x_mean, self.x_std)

    @property
    def target_type(self) -> np.dtype:
        """Of raw targets that were made of standardised ones: the smallest that says as much."""
        return _carrying(self.y_mean, self.y_std)


def _carrying(mean: np.ndarray, std: np.ndarray) -> np.dtype:
    """Single precision, unless a mean is so large beside its spread that the spread would lose digits."""
    return np.dtype(np.float32 if (np.abs(mean) <= MOST_OFFSET * std).all() else np.float64)


def first_row_not_finite(values: Tensor) -> int | None:
    """The first row of ``[N, ...]`` with NaN or infinity; looked for in blocks, as a mask of all would be large."""
    step = max(1, data.BLOCK // max(1, math.prod(values.shape[1:])))
    for start in range(0, len(values), step):
        part = values[start : start + step]
        good = torch.isfinite(part).reshape(len(part), -1).all(1)
        if not good.all():
            return start + int((~good).nonzero()[0, 0])
    return None


def farthest(scaled: np.ndarray, row: int, columns: Sequence[str] = ()) -> str:
    """Of one standardised input ``[...]`` the value that lies farthest out, in words.

    Args:
        row: its number.
        columns: names of the values, where they have names.
    """
    flat = np.nan_to_num(np.abs(scaled), nan=np.inf).reshape(-1)
    place = int(flat.argmax())
    name = repr(columns[place]) if columns else str([int(i) for i in np.unravel_index(place, scaled.shape)])
    return f"the value {name} of row {row} lies {flat[place]:.3g} training standard deviations from the training mean"


@dataclass(frozen=True)
class EvaluationSet:
    """Examples that predictions are stored of: inputs ``[N, ...]``, and their targets where these are known."""

    x: Tensor | StoredInputs
    y: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def inputs(self) -> Tensor:
        """All inputs as one tensor; where they are stored, that reads the whole file."""
        return self.x if isinstance(self.x, Tensor) else self.x[:]


@dataclass(frozen=True)
class Task:
    """Everything a job needs. Inputs and regression targets are standardised; ``standardiser`` undoes it.

    Attributes:
        build_network: a fresh network initialised from the given seed; global random state untouched.
        sets: all that is evaluated, by the names of ``results.sets``, in its order; standardised with the *training*
            statistics. ``curve`` is the grid ``[P, 1]`` of a 1-D regression.
        classes: names of the classes, empty for regression.
        features: names of the input columns of a table, else empty.
        columns: names of the values of an input, which the columns of a table became, else empty.
        preparation: how they did, where they are not taken as they are.
        ranges: lowest and highest training value, raw; of the shape of the units of the inputs.
        missing_ood: why an optional out-of-distribution set is not in ``sets``, by name.
        checksum: SHA-256 over all arrays, part of every job's key.
    """

    spec: TaskSpec
    fit_data: FitData
    sets: Mapping[str, EvaluationSet]
    build_network: Callable[[int], nn.Module]
    likelihood: Likelihood
    prior: GaussianPrior
    standardiser: Standardiser
    classes: tuple[str, ...]
    checksum: str
    notes: tuple[str, ...] = ()
    """Things a reader of the report must know about the data (a missing set, a stand-in)."""
    features: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    preparation: data.Preparation | None = None
    ranges: tuple[np.ndarray, np.ndarray] | None = None
    missing_ood: Mapping[str, str] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.fit_data.train.x.shape[1:])

    @property
    def test(self) -> EvaluationSet:
        """The test examples."""
        return self.sets["test"]

    @property
    def ood(self) -> dict[str, Tensor]:
        """Inputs of the reported out-of-distribution sets, by name."""
        return {name: part.inputs() for name, part in self.sets_of("ood").items()}

    @property
    def validation_ood(self) -> dict[str, Tensor]:
        """Inputs of the out-of-distribution sets that tuning may use, by name."""
        return {name: part.inputs() for name, part in self.sets_of("validation_ood").items()}

    @property
    def curve_x(self) -> Tensor | None:
        """The curve's grid, or None."""
        return self.sets["curve"].inputs() if "curve" in self.sets else None

    def sets_of(self, kind: str) -> dict[str, EvaluationSet]:
        """The sets of a kind by their own names: ``sets_of("ood")["letters"]`` is ``sets["ood/letters"]``."""
        return {name.partition("/")[2]: part for name, part in self.sets.items() if kind_of(name) == kind}


def build_task(spec: TaskSpec, data_root: Path | None = None, allow_code: Sequence[Path] = ()) -> Task:
    """Read a task's data, standardise them with training statistics, and make likelihood, prior and network.

    Args:
        spec: the task, as a suite has it.
        data_root: folder of the benchmark data; default ``BAYES_BENCH_DATA``, else the user's cache folder.
        allow_code: Python files that a network may come from.

    Raises:
        UsageError: options, network or likelihood do not fit each other or the data.
        DataError: data are missing (and not ``optional``), damaged, or not what they are said to be.
    """
    check_task(spec)
    root = data.resolve_data_root(data_root)
    try:
        return _build(spec, root, tuple(allow_code))
    except (DataError, UsageError) as error:
        raise type(error)(f"task {spec.name!r}: {error}") from error


def _build(spec: TaskSpec, root: Path, allow_code: tuple[Path, ...]) -> Task:
    split = data.load_split(spec.data, root, task_kind(spec))
    notes = list(split.notes)
    missing: dict[str, str] = {}
    raw_ood = _out_of_distribution(spec.ood, root, split, notes, missing)
    raw_validation_ood = _out_of_distribution(spec.validation_ood, root, split, notes, missing)
    if spec.examples is not None:
        split, raw_ood, raw_validation_ood = _fewer(spec.examples, split, raw_ood, raw_validation_ood, notes)
    units = input_units(split.train.x, split.columns)
    likelihood, standardiser = _likelihood(spec, split, units)
    arrays: dict[str, np.ndarray | data.StoredRows] = {
        f"{part}/{name}": values
        for part, examples in (("train", split.train), ("validation", split.validation), ("test", split.test))
        for name, values in (("x", examples.x), ("y", examples.y))
    }
    arrays |= {set_name("ood", name): x for name, x in raw_ood.items()}
    arrays |= {set_name("validation_ood", name): x for name, x in raw_validation_ood.items()}

    augment = Augmentation(spec.augmentation.shift, spec.augmentation.flip) if spec.augmentation else None

    def examples(what: str, part: data.Arrays, augment: Augmentation | None = None) -> Examples:
        inputs = standardiser.inputs_of(part, f"the {what} inputs", split.columns)
        return Examples(inputs, standardiser.targets(part.y), augment)

    def apart(name: str, x: np.ndarray) -> EvaluationSet:
        return EvaluationSet(standardiser.inputs(x, f"the out-of-distribution set {name!r}", split.columns))

    from bayes_bench.tasks.network import build_network

    make = partial(
        build_network,
        spec.network,
        split.input_shape,
        likelihood.output_width,
        allow_code=allow_code,
        weights=spec.weights,
    )
    fit_data = FitData(examples("training", split.train, augment), examples("validation", split.validation))
    test = examples("test", split.test)
    sets = {"test": EvaluationSet(test.x, test.y)}
    if fit_data.validation:
        sets["validation"] = EvaluationSet(fit_data.validation.x, fit_data.validation.y)
    sets |= {set_name("ood", name): apart(name, x) for name, x in raw_ood.items()}
    for name, x in raw_validation_ood.items():
        sets[set_name("validation_ood", name)] = apart(name, x)
    if spec.curve:
        sets["curve"] = EvaluationSet(_curve(spec.curve, split, standardiser))
    task = Task(
        spec=spec,
        fit_data=fit_data,
        sets=sets,
        build_network=make,
        likelihood=likelihood,
        prior=GaussianPrior(spec.prior.std, spec.prior.scaling),
        standardiser=standardiser,
        classes=split.classes,
        checksum=_checksum(arrays, make(0) if spec.start == "given" else None),
        notes=tuple(dict.fromkeys(notes)),
        features=split.features,
        columns=split.columns,
        preparation=split.preparation,
        ranges=(units.low, units.high),
        missing_ood=missing,
    )
    _check_network(task)
    return task


def _out_of_distribution(
    specs: Sequence[OODSpec], root: Path, split: data.Split, notes: list[str], missing: dict[str, str]
) -> dict[str, np.ndarray]:
    found = {}
    for spec in specs:
        try:
            inputs = data.load_inputs(spec, root, split)
        except DataError as error:
            if not spec.optional:
                raise
            missing[spec.name] = str(error)
            notes.append(f"the out-of-distribution set {spec.name!r} is left out: {error}")
            continue
        found[spec.name] = inputs.x
        notes += [f"{spec.name}: {note}" for note in inputs.notes]
    return found


def _fewer(
    most: int,
    split: data.Split,
    ood: Mapping[str, np.ndarray],
    validation_ood: Mapping[str, np.ndarray],
    notes: list[str],
) -> tuple[data.Split, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All that is evaluated, cut to ``most`` examples: a random subset of each set that is always the same."""

    def kept(name: str, n: int) -> np.ndarray:
        if n <= most:
            return np.arange(n)
        notes.append(f"{name}: a fixed random {most:,} of the {n:,} examples")
        return np.sort(data.Stream(("examples", name)).permutation(n)[:most])

    fewer = replace(
        split,
        validation=split.validation[kept("validation", len(split.validation))],
        test=split.test[kept("test", len(split.test))],
    )
    return (
        fewer,
        {name: x[kept(name, len(x))] for name, x in ood.items()},
        {name: x[kept(name, len(x))] for name, x in validation_ood.items()},
    )


def _likelihood(spec: TaskSpec, split: data.Split, inputs: Units) -> tuple[Likelihood, Standardiser]:
    """The likelihood in the units the network is trained in, and the units themselves."""
    x = inputs.mean, inputs.std
    if task_kind(spec) == "classification":
        if len(split.classes) < 2:
            raise DataError(f"classification needs at least 2 classes, the data have {len(split.classes)}")
        return Categorical(len(split.classes)), Standardiser(*x)
    targets = target_units(split.train.y)
    y_mean, y_std = targets.mean, targets.std
    dimensions = len(y_mean)
    if isinstance(spec.likelihood, HeteroscedasticSpec):
        return HeteroscedasticGaussian(dimensions, spec.likelihood.scale), Standardiser(*x, y_mean, y_std)
    assert isinstance(spec.likelihood, GaussianSpec)
    noise = spec.likelihood.noise_std
    if isinstance(noise, str):
        return Gaussian("learned", dimensions), Standardiser(*x, y_mean, y_std)
    # One known noise for all target dimensions stays one only if all are divided by the same number.
    y_std = np.full(dimensions, np.sqrt(np.mean(y_std**2)))
    return Gaussian(noise / float(y_std[0]), dimensions), Standardiser(*x, y_mean, y_std)


@dataclass(frozen=True)
class Units:
    """Mean, standard deviation, lowest and highest value, float64.

    Per channel ``[C, 1, 1]`` of images, per column ``[F]`` of a table, else of all values ``[]``.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray


def input_units(x: np.ndarray | data.StoredRows, columns: Sequence[str] = ()) -> Units:
    """The units of raw inputs ``[N, ...]``; a constant feature keeps its scale: it is only centred.

    Args:
        columns: names of the values of an input, where they have names.

    Raises:
        DataError: a feature varies by less than its type carries beside its size.
    """
    return _units(x, {4: "channel", 2: "feature"}.get(x.ndim, "input"), columns)


def target_units(y: np.ndarray) -> Units:
    """The units of regression targets ``[N, D]``; a constant one keeps its scale.

    Raises:
        DataError: as ``input_units``.
    """
    return _units(y, "target")


def _units(x: np.ndarray | data.StoredRows, noun: str, columns: Sequence[str] = ()) -> Units:
    """In two passes over blocks, in float64.

    Of float64 a third corrects the mean: the sum of many large numbers is off by more than their spread may be.
    """
    axes = {4: (0, 2, 3), 2: (0,)}.get(x.ndim)
    values = len(x) * math.prod(x.shape[1:]) / (x.shape[1] if axes else 1)

    def apart(block: np.ndarray) -> np.ndarray:
        distances: np.ndarray = block - (mean[:, None, None] if x.ndim == 4 else mean)
        return distances

    def squares(block: np.ndarray) -> np.ndarray:
        distances = apart(block)
        product: np.ndarray = np.multiply(distances, distances, out=distances)
        return product

    def total(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        sums = [np.sum(of(block), axis=axes, dtype=np.float64) for block in data.blocks(x)]
        return np.stack(sums).sum(0)  # type: ignore[no-any-return]

    found = [(np.sum(b, axis=axes, dtype=np.float64), b.min(axis=axes), b.max(axis=axes)) for b in data.blocks(x)]
    sums, lows, highs = (np.stack(part) for part in zip(*found, strict=True))
    low, high = lows.min(0).astype(np.float64), highs.max(0).astype(np.float64)
    mean = np.asarray(sums.sum(0) / values)
    if x.dtype == np.float64:
        mean = mean + total(apart) / values
    std = np.asarray(np.sqrt(total(squares) / values))
    _refuse_rounded(low, high, std, x.dtype, noun, columns)
    constant = low == high
    mean, std = np.where(constant, low, mean), np.where(constant, 1.0, std)
    return Units(*((part[:, None, None] if x.ndim == 4 else part) for part in (mean, std, low, high)))


def _refuse_rounded(
    low: np.ndarray, high: np.ndarray, std: np.ndarray, kind: np.dtype, noun: str, columns: Sequence[str]
) -> None:
    """Refuse values whose spread is of the size of what their type rounds away.

    Raises:
        DataError: names the first feature or target.
    """
    precise = kind if np.issubdtype(kind, np.floating) else np.dtype(np.float64)
    size, spread = np.maximum(np.abs(low), np.abs(high)).reshape(-1), std.reshape(-1)
    lost = (low < high).reshape(-1) & (spread < FEWEST_STEPS * np.finfo(precise).eps * size)
    if lost.any():
        place = int(lost.argmax())
        name = f"{noun} {columns[place] if columns else place!r}" if len(size) > 1 or columns else f"the {noun}"
        remedy = "before it is saved, or save it as float64" if precise == np.float32 else "or leave it out"
        raise DataError(
            f"{name} varies by {spread[place]:.2g} (standard deviation) among numbers of {size[place]:.2g}: that is "
            f"lost in the rounding of {precise}; subtract a constant from it {remedy}"
        )


def _curve(curve: CurveSpec, split: data.Split, standardiser: Standardiser) -> Tensor:
    if split.input_shape != (1,) or split.train.y.shape[1:] != (1,):
        raise UsageError(
            f"a curve needs one feature and one target, but inputs have shape {list(split.input_shape)} "
            f"and targets {list(split.train.y.shape[1:])}"
        )
    return standardiser.inputs(np.linspace(curve.low, curve.high, curve.points)[:, None], "the curve")


def _checksum(arrays: Mapping[str, np.ndarray | data.StoredRows], given: nn.Module | None = None) -> str:
    """SHA-256 over the names, types, shapes and values of all raw arrays, and of a network that fits start at."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        little = values.dtype.newbyteorder("<")
        digest.update(f"{name} {little.str} {values.shape}\n".encode())
        for block in data.blocks(values):
            digest.update(np.ascontiguousarray(block, dtype=little).data)
    for name, value in sorted(given.state_dict().items()) if given else ():
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_network(task: Task) -> None:
    """Try the network on two examples, so that a misfit is an error before any work, not in the middle."""
    network = task.build_network(0).eval()
    try:
        with torch.no_grad():
            outputs = network(task.fit_data.train.x[:2].clone())
    except (RuntimeError, ValueError, TypeError) as error:
        shape = list(task.fit_data.train.x.shape[1:])
        raise UsageError(f"the network does not take inputs of shape {shape}: {error}") from error
    wanted = (min(2, len(task.fit_data.train)), task.likelihood.output_width)
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != wanted:
        given = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UsageError(
            f"the network gives {given} for {wanted[0]} inputs, but {task.likelihood!r} needs {list(wanted)}"
        )


def _read(rows: data.StoredRows, units: Standardiser, numbers: np.ndarray) -> Tensor:
    return units.inputs(rows[numbers])


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
