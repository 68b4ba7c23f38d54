"""Data sources, one file each, NumPy only. A suite names one with its options; ``SOURCES`` says which exist.

Options are checked by ``check_spec`` without touching data; ``load_split`` and
``load_inputs`` read. Relative paths count from the data root (benchmark sets) or from the folder of the
suite's file (a user's own data; ``bayes_bench.tasks.suites`` resolves them).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from bayes_bench.data import (
    cifar,
    csv_file,
    cubic,
    digits,
    distorted,
    fashion_mnist,
    image_folder,
    kmnist,
    letters,
    mnist,
    notmnist,
    npy,
    npz,
    svhn,
)
from bayes_bench.data.base import Arrays, FractionOptions, Inputs, Kind, Source, Split, Stream
from bayes_bench.data.columns import Preparation
from bayes_bench.data.new_inputs import NewInputs, Reading, read_inputs
from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.data.stored import BLOCK, StoredRows, blocks
from bayes_bench.data.table import LARGEST, Layout
from bayes_bench.errors import BayesBenchError, DataError, PluginError, UsageError, named, unknown_name
from bayes_bench.host import plugins
from bayes_bench.settings import Settings, explain

__all__ = [
    "BLOCK",
    "SOURCES",
    "Arrays",
    "Inputs",
    "Layout",
    "NewInputs",
    "Preparation",
    "Reading",
    "Source",
    "Split",
    "StoredRows",
    "Stream",
    "blocks",
    "check_spec",
    "find_source",
    "load_inputs",
    "load_split",
    "read_inputs",
    "resolve_data_root",
]

_Made = TypeVar("_Made")

SOURCES: dict[str, Source] = {
    module.SOURCE.name: module.SOURCE
    for module in (
        *(digits, cubic, mnist, fashion_mnist, kmnist, cifar, svhn),
        *(letters, notmnist, distorted),
        *(csv_file, npz, npy, image_folder),
    )
}
"""Our own; ``find_source`` knows those of installed packages, too."""
MOST_DIMENSIONS = 16  # of one input; records hold no more
MAX_SHARED = 0.5  # part of an out-of-distribution set that may be equal to inputs of the task


def resolve_data_root(data_root: Path | str | None = None) -> Path:
    """Where benchmark data lie: the argument, else ``BAYES_BENCH_DATA``, else the user's cache folder.

    Raises:
        UsageError: it is a file, or in the home folder of nobody.
    """
    if chosen := data_root or os.environ.get("BAYES_BENCH_DATA"):
        try:
            root = Path(chosen).expanduser()
        except RuntimeError as error:
            raise UsageError(f"no home folder for the data root {chosen}; write the whole path") from error
        if root.exists() and not root.is_dir():
            raise UsageError(f"the data root {root} is a file; give the folder that holds the data sets")
        return root
    from platformdirs import user_cache_path

    return user_cache_path("bayes-bench", appauthor=False)


def find_source(name: str) -> Source | None:
    """A data source by its name: ours, or that of an installed package.

    Raises:
        PluginError: that package is broken.
    """
    found: Source | None = SOURCES.get(name) or plugins.only(plugins.DATA, name, "data source", Source)
    return found


def check_spec(spec: SourceSpec) -> Settings:
    """The validated options of a source; an ``OODSpec`` is checked as a source of inputs.

    Raises:
        UsageError: unknown source, a source that cannot play this part, unknown option or wrong value.
        PluginError: the source's package is broken.
    """
    inputs_only = isinstance(spec, OODSpec)
    source = find_source(spec.source)
    if source is None or (source.inputs if inputs_only else source.split) is None:
        part = "source of out-of-distribution inputs" if inputs_only else "data source"
        usable = [name for name, one in SOURCES.items() if (one.inputs if inputs_only else one.split)]
        raise UsageError(unknown_name(part, spec.source, [*usable, *plugins.by_name(plugins.DATA)]))
    model = source.InputOptions if inputs_only else source.SplitOptions
    where = f"data source {source.name!r}" + (f" of {spec.name!r}" if isinstance(spec, OODSpec) else "")
    for key in spec.options:
        if key not in model.model_fields:
            raise UsageError(f"{where}: {unknown_name('option', key, model.model_fields)}")
    try:
        return model.model_validate(spec.options)
    except ValidationError as error:
        raise explain(error, where, spec.options) from error


def source_of(spec: SourceSpec) -> Source:
    """Of a spec that was checked."""
    source = find_source(spec.source)
    assert source is not None
    return source


def _made(source: Source, kind: type[_Made], make: Callable[..., Any], *arguments: Any) -> _Made:
    """What a source makes; what others wrote fails with its name."""
    if source is SOURCES.get(source.name):
        own: _Made = make(*arguments)
        return own
    try:
        found = make(*arguments)
    except BayesBenchError:
        raise
    except Exception as error:
        raise PluginError(
            f"data source {source.name!r} of a plug-in failed: {named(error)}; mend or uninstall it"
        ) from error
    if not isinstance(found, kind):
        raise PluginError(f"data source {source.name!r} of a plug-in gave {type(found).__name__}, not {kind.__name__}")
    return found


def load_split(spec: SourceSpec, data_root: Path, kind: Kind | None = None) -> Split:
    """Training, validation and test examples of a source, always the same for the same options and files.

    ``kind`` is what the targets are taken for where the source and its options do not say it; the default is
    classification.

    Raises:
        UsageError: as ``check_spec``.
        DataError: missing or damaged data, missing values, empty parts.
    """
    options = check_spec(spec)
    source = source_of(spec)
    assert source.split is not None
    declared = source.kind or getattr(options, "kind", None)
    split = _made(source, Split, source.split, options, data_root, declared or kind or "classification")
    if len(split.input_shape) > MOST_DIMENSIONS:
        raise DataError(
            f"data source {spec.source!r}: an input has {len(split.input_shape)} dimensions, at most {MOST_DIMENSIONS} "
            "are possible; flatten it"
        )
    if 0 in split.input_shape:
        raise DataError(f"data source {spec.source!r}: an input of shape {list(split.input_shape)} holds no values")
    for part, arrays in (("training", split.train), ("validation", split.validation), ("test", split.test)):
        if len(arrays) == 0:
            raise DataError(f"data source {spec.source!r}: no {part} examples")
        _check_finite(arrays.x, f"data source {spec.source!r}: the {part} inputs", split.columns)
        _check_finite(arrays.y, f"data source {spec.source!r}: the {part} targets")
    repeated = _repeated(split) if isinstance(options, FractionOptions) else []
    return replace(split, notes=(*split.notes, *_unseen_classes(split), *repeated))


def _unseen_classes(split: Split) -> list[str]:
    """A note on the classes that no number about a part can speak of."""
    notes = []
    for part, arrays in (("validation", split.validation), ("test", split.test)):
        missing = [name for i, name in enumerate(split.classes) if not (arrays.y == i).any()]
        if missing:
            shown = ", ".join(map(repr, missing[:5])) + (" …" if len(missing) > 5 else "")
            plural = "es" if len(missing) > 1 else ""
            notes.append(f"no {part} example of the class{plural} {shown}: too few examples to set one apart")
    return notes


def _repeated(split: Split) -> list[str]:
    """A note on validation and test inputs of a user's data that training has, too: what is remembered looks known."""
    held_out = {"validation": list(_hashes(split.validation.x)), "test": list(_hashes(split.test.x))}
    wanted = {row for rows in held_out.values() for row in rows}
    seen = {row for row in _hashes(split.train.x) if row in wanted}
    counts = {part: sum(row in seen for row in rows) for part, rows in held_out.items()}
    return [
        f"{number:,} of {len(held_out[part]):,} {part} inputs are inputs of a training example, too: numbers about "
        f"{part} data speak of what was seen; remove the duplicates, or name test data of their own"
        for part, number in counts.items()
        if number
    ]


def _hashes(x: np.ndarray | StoredRows) -> Iterator[int]:
    """One for each row, the same for the same numbers in single and in double precision."""
    for block in blocks(x):
        for row in block:
            yield hash((row.astype(np.float64) + 0.0).tobytes())  # −0 is 0


def load_inputs(spec: OODSpec, data_root: Path, split: Split) -> Inputs:
    """Inputs of an out-of-distribution set, in the raw units and the shape of the split's inputs.

    Raises:
        UsageError: as ``check_spec``.
        DataError: missing or damaged data, another shape, or mostly the split's own inputs.
    """
    options = check_spec(spec)
    source = source_of(spec)
    assert source.inputs is not None
    if spec.optional and source.files and source.files.found(data_root).state == "missing":
        # Every process that builds the task would try in vain to download it.
        raise DataError(
            f"{source.files.title} is missing: nothing of it in {data_root / source.files.folder}; "
            f"bayes-bench data fetch {source.name} gets it"
        )
    found = _made(source, Inputs, source.inputs, options, data_root, split)
    if tuple(found.x.shape[1:]) != split.input_shape:
        raise DataError(
            f"the out-of-distribution set {spec.name!r} has inputs of shape {tuple(found.x.shape[1:])}, "
            f"the task's have {split.input_shape}"
        )
    if len(found.x) == 0:
        raise DataError(f"the out-of-distribution set {spec.name!r} is empty")
    _check_finite(found.x, f"the out-of-distribution set {spec.name!r}", split.columns)
    rows = list(_hashes(found.x))
    wanted = set(rows)
    known = {row for part in (split.train, split.validation, split.test) for row in _hashes(part.x) if row in wanted}
    shared = sum(row in known for row in rows) / len(rows)
    if shared > MAX_SHARED:
        raise DataError(
            f"{shared:.0%} of the out-of-distribution set {spec.name!r} are inputs of the task itself; "
            "name data from elsewhere"
        )
    return found


def _check_finite(values: np.ndarray | StoredRows, what: str, columns: Sequence[str] = ()) -> None:
    """Refuse what single precision has no number for, whatever it is stored in.

    Raises:
        DataError: names the first row, and its column where it has a name.
    """
    if not np.issubdtype(values.dtype, np.floating):
        return
    start = 0
    for block in blocks(values):
        flat = np.abs(block.reshape(len(block), -1))
        good = flat <= LARGEST
        if not good.all():
            row, column = (int(place[0]) for place in np.nonzero(~good))
            named = f", column {columns[column]!r}" if columns else ""
            wrong = f"numbers beyond ±{LARGEST:.2g}" if np.isfinite(flat[row, column]) else "NaN or infinity"
            raise DataError(f"{what} contain {wrong} (first in example {start + row}{named}); remove or impute these")
        start += len(block)
