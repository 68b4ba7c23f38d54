"""What a record, a run's description and stored predictions must be before anyone relies on them. Imports no torch.

A run folder may come from anybody. Every reader behind these checks may take names for safe file names, numbers for
finite and of a size that machines have, texts for printable, and arrays for the shapes and types of their record.
Letters: S networks drawn, N examples, C classes, D target dimensions, P points of a curve.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bayes_bench.errors import DataError, DivergenceError, printable
from bayes_bench.host.files import read_bytes, write_text
from bayes_bench.results.sets import KINDS, kind_of, pattern
from bayes_bench.settings import COLLAPSE_THRESHOLD, LARGEST_NUMBER, NAME_PATTERN, check_values

LONGEST_TEXT = 20_000
MOST_NETWORKS = 1000
"""Networks in a job's draw; jobs draw 100."""
LARGEST_IMAGE = 64
"""Pixels along a side of the images that a job keeps for its report."""
MEASURED = ("variant", "kind", "budget", "fit", "networks", "likelihood", "prior", "network", "data", "task_spec")
"""What the record of a finished job has."""

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Short = Annotated[str, Field(max_length=300)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Position = Annotated[float, Field(ge=-1e30, le=1e30)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Interval = Annotated[list[Position], Field(min_length=2, max_length=2)]
Table = dict[Short, Any]


class Part(BaseModel):
    """Checked as it is, without conversions; keys that are not listed are free."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class FileFacts(Part):
    sha256: Hash
    bytes: Count


class MetricRow(Part):
    name: Short
    value: float | None
    unit: Short
    higher_is_better: bool | None
    group: Short = ""
    reason: Text | None = None


class Budget(Part):
    total: Positive
    spent: float | None = None
    unspent: float | None = None


class DiagnosticColumn(Part):
    name: Short
    text: Short
    group: Short = ""


class DiagnosticsTable(Part):
    """As ``settings.DiagnosticTable``."""

    title: Short
    columns: list[DiagnosticColumn]
    remarks: list[Text] = []


class Fit(Part):
    seconds: float | None = None
    history: list[dict[Short, float | None]] = []
    diagnostics: dict[Short, float | None] | None = None
    tables: list[DiagnosticsTable] = []
    notes: list[Text] = []


class Network(Part):
    spec: Table
    input_shape: Annotated[list[Positive], Field(max_length=16)]
    outputs: Positive
    parameters: Count | None = None


class Data(Part):
    checksum: Short
    n_train: Count
    n_validation: Count
    n_test: Count
    classes: list[Text]
    features: list[Text] = []
    preparation: Table | None = None
    ranges: Table | None = None
    ood: dict[Name, Count]
    validation_ood: dict[Name, Count]
    missing_ood: dict[Name, Text]
    notes: list[Text]
    standardiser: Table


class Curve(Part):
    low: Position
    high: Position
    points: Annotated[int, Field(gt=1, le=1_000_000)]
    inside: list[Interval]
    gap: list[Interval] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Curve:
        if not self.low < self.high:
            raise ValueError("low is not below high")
        return self


class NamedSet(Part):
    name: Name


class ClaimSchema(Part):
    """A published number, as ``tasks.spec.PublishedSpec``."""

    method: Name
    metric: Short
    value: Position
    source: Short
    note: Text = ""


class TaskTable(Part):
    data: Table = {}
    network: Table = {}
    likelihood: Table = {}
    ood: list[NamedSet] = []
    validation_ood: list[NamedSet] = []
    curve: Curve | None = None
    budget: Positive | None = None
    reference: Text | None = None
    published: list[ClaimSchema] = []
    collapse_threshold: float = COLLAPSE_THRESHOLD


class Collapse(Part):
    threshold: float
    networks: Count
    total_variation: dict[Short, float]


class ReferenceFacts(Part):
    name: Text
    label: Short
    networks: Count
    seeds: list[Count]
    diagnostics: dict[Short, Pair]
    resolution: dict[Short, float]


class Record(Part):
    """The keys that readers rely on, of a job that failed or finished."""

    key: Hash
    status: Literal["ok", "failed"]
    error: Text | None = None
    suite: Name
    task: Name
    task_title: Text | None = None
    label: Name
    method: Short
    seed: Count
    seeds: dict[Short, Count] = {}
    variant: Short | None = None
    config: Table = {}
    settings: Table = {}
    kind: Literal["classification", "regression"] | None = None
    uses_prior: bool | None = None
    support: Positive | None = None
    budget: Budget | None = None
    fit: Fit | None = None
    cost: dict[Short, float | str | None] | None = None
    networks: Annotated[int, Field(gt=0, le=MOST_NETWORKS)] | None = None
    likelihood: Short | None = None
    prior: Table | None = None
    network: Network | None = None
    data: Data | None = None
    task_spec: TaskTable | None = None
    weight_layers: list[Short] = []
    weight_sizes: dict[Short, Count] = {}
    metrics: list[MetricRow] = []
    collapse: Collapse | None = None
    alarms: list[Text] = []
    reference: ReferenceFacts | None = None
    code: dict[Short, Short] | None = None
    versions: dict[Short, Any] | None = None
    machine: dict[Short, Any] | None = None
    started: Short | None = None
    finished: Short | None = None
    files: dict[Literal["predictions.safetensors", "posterior.safetensors", "log.txt"], FileFacts]

    @model_validator(mode="after")
    def _complete(self) -> Record:
        if len({row.name for row in self.metrics}) < len(self.metrics):
            raise ValueError("a metric is there twice")
        if self.status == "ok" and (missing := [name for name in MEASURED if getattr(self, name) is None]):
            raise ValueError(f"a finished job without {', '.join(missing)}")
        return self


class PlannedJob(Part):
    key: Hash
    task: Name
    label: Name
    seed: Count


class RunSchema(Part):
    """``run.json``."""

    jobs: list[PlannedJob]
    methods: list[Short] = []
    command: list[Text] = []
    versions: dict[Short, Any] | None = None
    machine: dict[Short, Any] | None = None


# Checks ---------------------------------------------------------------------------------------------------


def check_record(content: Mapping[str, Any]) -> None:
    """Is this a record?

    Raises:
        DataError: says which key is wrong.
    """
    check(Record, content)


def check_run(content: Mapping[str, Any]) -> None:
    """Is this the description of a run?

    Raises:
        DataError: says which key is wrong.
    """
    check(RunSchema, content)


def check(model: type[Part], content: Mapping[str, Any]) -> None:
    """Is a JSON object what a model describes?

    Raises:
        DataError: says which key is wrong.
    """
    try:
        model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{f'its {key} is wrong: ' if key else ''}{message[0].lower()}{message[1:]}") from error


def cleaned(content: Any) -> Any:
    """JSON as ``settings.check_values`` wants it: texts printable and not endless, numbers within bounds or null."""
    if isinstance(content, str):
        text = printable(content)
        return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
    if isinstance(content, Mapping):
        return {cleaned(key): cleaned(value) for key, value in content.items()}
    if isinstance(content, list):
        return [cleaned(value) for value in content]
    return None if isinstance(content, float) and not abs(content) <= LARGEST_NUMBER else content


# Predictions ----------------------------------------------------------------------------------------------

_OF_CLASSES = re.compile(rf"{pattern('classification')}/(?:log_probs|mean_intensity|y|images|image_index)\Z")
_OF_VALUES = re.compile(rf"(?:{pattern('regression')}/(?:mean|noise_std|y)|curve/x|train/x|train/y)\Z")
_GRAM = "weights/gram/"


def check_predictions(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Are these the arrays that a job with this record stores?

    Raises:
        DataError: an unknown name, or another type or shape than the record and the other arrays say.
        DivergenceError: NaN or infinity, but in log probabilities: ``metrics.normalise`` looks at these.
    """
    known = _OF_CLASSES if record["kind"] == "classification" else _OF_VALUES
    for name, array in arrays.items():
        if name.startswith(_GRAM):
            fits = array.dtype == np.float64 and array.shape == (record["networks"],) * 2
        elif known.match(name):
            fits = _fits(name, array, arrays, record)
        else:
            raise DataError(f"it holds an unknown array {name[:80]!a}")
        if not fits:
            raise DataError(f"its array {name[:80]!a}, {array.dtype} {list(array.shape)}, does not go with the rest")
        if array.dtype.kind == "f" and not name.endswith("/log_probs") and not np.isfinite(array).all():
            raise DivergenceError(f"the stored predictions contain NaN or infinity ({name})")


def _fits(name: str, array: np.ndarray, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> bool:
    """Has an array the type and the shape that the record and the group's other arrays say?"""
    group, _, what = name.rpartition("/")
    networks, classes = record["networks"], len(record["data"]["classes"])
    single = array.dtype in (np.float16, np.float32)
    values = single or array.dtype == np.float64  # in raw units, where a mean is large beside its spread
    outputs = arrays.get(f"{group}/log_probs", arrays.get(f"{group}/mean"))
    if outputs is None:
        return group == "train" and values and array.ndim in (1, 2) and array.size == arrays.get("train/x", array).size
    if outputs.ndim != 3 or outputs.shape[0] != networks:
        return False
    examples = outputs.shape[1]
    has_targets = not KINDS[kind_of(group)].targets or f"{group}/y" in arrays
    match what:
        case "log_probs":
            return single and array.shape[2] == classes and has_targets
        case "mean":
            has_noise = f"{group}/noise_std" in arrays and (group != "curve" or "curve/x" in arrays)
            return values and array.shape[2] > 0 and has_targets and has_noise
        case "noise_std":
            return (
                single and array.ndim == 3 and all(a in (1, b) for a, b in zip(array.shape, outputs.shape, strict=True))
            )
        case "mean_intensity":
            return single and array.shape == (examples,)
        case "images":
            return _are_images(array) and len(array) == len(arrays.get(f"{group}/image_index", ()))
        case "image_index":
            there = array.dtype == np.int64 and array.ndim == 1 and f"{group}/images" in arrays
            return there and bool(((array >= 0) & (array < examples)).all())
        case "x":
            return values and array.shape in ((examples,), (examples, 1)) and examples > 1 and bool(_curve(record))
        case "y" if record["kind"] == "classification":
            whole = array.dtype.kind in "iu" and array.shape == (examples,)
            return whole and bool(((array >= 0) & (array < classes)).all())
        case _:
            return values and array.shape in (outputs.shape[1:], (examples,)) and array.size == outputs[0].size


def _are_images(array: np.ndarray) -> bool:
    """Bytes ``[n, 1 or 3, h, w]``, no larger than jobs store them."""
    bytes_of_images = array.dtype == np.uint8 and array.ndim == 4 and array.shape[1] in (1, 3)
    return bytes_of_images and min(array.shape[2:]) > 0 and max(array.shape[2:]) <= LARGEST_IMAGE


def _curve(record: Mapping[str, Any]) -> Any:
    return record["task_spec"].get("curve")


FORMAT = 2
CHECKSUM = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\n\Z')
"""The end of a file that carries a checksum of its bytes, taken with zeros in the checksum's place."""
LARGEST_JSON = 64 * 2**20
"""Bytes of ``record.json`` or ``run.json``; no job comes near."""


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null, which JSON can hold."""
    write_text(path, _json(content))


def write_checked(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, its last key a checksum of the file's bytes, for ``read_checked``."""
    rest = {key: value for key, value in cleaned(plain(content)).items() if key != "checksum"}
    text = _json({**rest, "checksum": 64 * "0"})
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_text(path, text.removesuffix(f'{64 * "0"}"\n}}\n') + f'{digest}"\n}}\n')


def read_checked(path: Path) -> dict[str, Any]:
    """What ``write_checked`` wrote, without the checksum; every changed byte is noticed.

    A file of format 1 has no checksum.

    Raises:
        DataError: unreadable, damaged, or of a newer format.
    """
    try:
        raw = read_bytes(path, LARGEST_JSON + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > LARGEST_JSON:
        raise DataError(f"{path} is damaged: it has more than {LARGEST_JSON:,} bytes")
    try:
        return _checked(raw)
    except _NewerError as error:
        raise DataError(f"{path} has {error}; update bayes-bench") from None
    except (DataError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


class _NewerError(Exception):
    """A file of a format that a later version introduced."""


def _checked(raw: bytes) -> dict[str, Any]:
    end = CHECKSUM.search(raw, max(0, len(raw) - 100))
    if end is not None:
        digest = hashlib.sha256(raw[: end.start(1)] + 64 * b"0" + raw[end.end(1) :]).hexdigest()
        if digest.encode() != end[1]:
            raise DataError("its checksum differs")
    content = json.loads(raw.decode("utf-8"))
    written = content.get("format") if isinstance(content, dict) else None
    if not isinstance(written, int) or isinstance(written, bool):
        raise DataError("it names no format")
    if written > FORMAT:
        raise _NewerError(f"format {written}, this version reads up to {FORMAT}")
    if end is None and written > 1:
        raise DataError("its checksum is missing")
    check_values(content)
    return {key: value for key, value in content.items() if key != "checksum"}


def canonical_hash(content: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(plain(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _json(content: Any) -> str:
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Numpy numbers and arrays, tuples and paths as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def read_record(path: Path) -> dict[str, Any]:
    """A record, checked as far as every reader relies on it.

    Raises:
        DataError: unreadable, damaged, or of a newer format.
    """
    record = read_checked(path)
    try:
        check_record(record)
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    return record
