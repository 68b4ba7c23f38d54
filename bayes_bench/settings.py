"""Validated, frozen settings; imports no torch, so that help and errors in arguments are instant."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from bayes_bench.errors import UNPRINTABLE, UsageError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"  # also a safe file name
DEEPEST = 40
"""Levels of lists and tables within each other."""
LARGEST_INTEGER, LARGEST_NUMBER = 2**63 - 1, 1e100
"""Beyond these, sums of squares and axes of figures would overflow."""
LONGEST_SHOWN = 200
"""Characters of a wrong value in a message."""

COLLAPSE_THRESHOLD = 0.01
"""Mean total variation between two networks on out-of-distribution data below which a draw is collapsed."""
SNAPSHOT_SECONDS = 60.0
"""Between two snapshots of a fit."""


class Settings(BaseModel):
    """Frozen, and unknown keys are errors. The base of everything a user can write in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_as_a_number(cls, values: Any) -> Any:
        """Pydantic would take true for 1."""
        for name, info in cls.model_fields.items():
            if info.annotation in (int, float) and isinstance(values, Mapping) and isinstance(values.get(name), bool):
                raise ValueError(f"{name} is a number, not {str(values[name]).lower()}")
        return values


@dataclass(frozen=True)
class Range:
    """What ``bayes-bench tune`` may try of a number: from ``low`` to ``high``, both included.

    ``log`` searches evenly on a logarithmic scale, for learning rates and the like.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(f"{self}: low must be below high, both finite")
        if self.log and self.low <= 0:
            raise UsageError(f"{self}: a logarithmic scale starts above 0")


Space = Range | tuple[Any, ...]
"""What may be tried of one setting: a range, or choices as JSON has them."""


@dataclass(frozen=True)
class Diagnostic:
    """A number that a method reports about its own fit, as a column of the report.

    Attributes:
        name: as ``loop.diagnose`` is given it.
        text: the column's header.
        group: header over several columns that stand side by side.
    """

    name: str
    text: str
    group: str = ""


@dataclass(frozen=True)
class DiagnosticTable:
    """A table of the report for what methods say of their fits; those that declare one of the same title share it.

    Attributes:
        remarks: sentences below it, on how to read it.
    """

    title: str
    columns: tuple[Diagnostic, ...]
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, kind in (("columns", Diagnostic), ("remarks", str)):
            values = getattr(self, what)
            if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
                raise UsageError(f"table {self.title!r}: {what} must be a tuple of {kind.__name__}, got {values!r}")


class MethodConfig(Settings):
    """Settings of one method. The docstring of a subclass is what ``bayes-bench show METHOD`` prints first.

    ``reference`` names the paper. ``revision`` is part of every job's key: raise it when a change of the
    method changes its results, so that old results are not taken for new ones. ``requires`` names modules of optional
    packages that the method cannot do without, and for each what to give ``pip install``. ``diagnostics`` are the
    tables that the report has for what the method says of its own fit.
    """

    reference: ClassVar[str] = ""
    revision: ClassVar[int] = 1
    requires: ClassVar[Mapping[str, str]] = {}
    diagnostics: ClassVar[tuple[DiagnosticTable, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        search_space(cls)  # what cannot be tried is an error where it is written
        tables = cls.diagnostics
        if not isinstance(tables, tuple) or not all(isinstance(table, DiagnosticTable) for table in tables):
            raise UsageError(f"{cls.__name__}: diagnostics must be a tuple of DiagnosticTable, got {tables!r}")


def setting(
    default: Any,
    meaning: str,
    *,
    source: str = "",
    tune: Range | Sequence[Any] | None = None,
    memory: bool = False,
    identity: Literal["", "elsewhere", "none", "added"] = "",
    **constraints: Any,
) -> Any:
    """A documented field: its default, what it means and where the value comes from; the rest as in pydantic.

    ``tune`` is what ``bayes-bench tune`` may try: choices, or a ``Range`` of numbers. The default need not be in it.
    ``memory`` says that a lower value lowers what a job holds at once: an error for want of memory names the setting.
    ``identity`` is for keys of a task: ``"none"`` says that it changes no result, ``"elsewhere"`` that what a job is
    told by has it in another form (the checksum of the data, the job's own budget), ``"added"`` that a job is not told
    by it at its default, which is what earlier versions did.
    """
    told = {"source": source, "memory": memory, "identity": identity}
    extra: dict[str, Any] = {name: value for name, value in told.items() if value}
    if tune is not None:
        extra["tune"] = asdict(tune) if isinstance(tune, Range) else list(tune)
    return Field(default, description=meaning, json_schema_extra=cast(Any, extra or None), **constraints)


def fields_told(cls: type[Settings], what: str, value: Any) -> list[str]:
    """The names of the fields of which ``setting`` was told this, in their order."""
    extras = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
    return [name for name, extra in extras.items() if isinstance(extra, dict) and extra.get(what) == value]


def search_space(cls: type[MethodConfig]) -> dict[str, Space]:
    """What may be tried of a method's settings, by name; without those that declare nothing.

    Raises:
        UsageError: a value that the setting would refuse, a range of something that is no number, or fewer than
            two choices.
    """
    found: dict[str, Space] = {}
    for name, info in cls.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        if "tune" in extra:
            try:
                found[name] = _space(info, cast(Any, extra["tune"]))
            except ValidationError as error:
                raise explain(error, f"{cls.__name__}.{name}: tune") from error
            except UsageError as error:
                raise UsageError(f"{cls.__name__}.{name}: tune: {error}") from error
    return found


def _space(info: FieldInfo, tune: dict[str, Any] | list[Any]) -> Space:
    """The values as the field holds them: of its type and within its constraints, then as JSON has them."""
    annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    field: TypeAdapter[Any] = TypeAdapter(annotation)

    def held(value: Any) -> Any:
        return field.dump_python(field.validate_python(value), mode="json")

    if isinstance(tune, dict):
        low, high = held(tune["low"]), held(tune["high"])
        if isinstance(low, bool) or not isinstance(low, int | float):
            raise UsageError("a range is for numbers; give the choices")
        return Range(low, high, tune["log"])
    choices = tuple(held(value) for value in tune)
    if len({json.dumps(choice) for choice in choices}) < max(2, len(choices)):
        raise UsageError("give at least two choices, each once")
    if None in choices and info.default is not None:
        raise UsageError("none cannot be a choice where it is not the default: a suite file has no word for it")
    return choices


def check_values(content: Any) -> None:
    """No value in JSON or TOML that a reader could stumble over, wherever it stands.

    Raises:
        UsageError: nested too deeply, a number that is not finite or too large, or a text that is not printable.
    """
    for loc, objection in _objections(content, ()):
        place = _place(loc, content)
        raise UsageError(f"{place}: {objection}" if place else objection)


def _objections(value: Any, loc: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    if len(loc) > DEEPEST:
        yield loc[:3], f"nested more than {DEEPEST} levels deep"
    elif isinstance(value, str) and UNPRINTABLE.search(value):
        yield loc, "it holds control characters"
    elif isinstance(value, float) and not abs(value) <= LARGEST_NUMBER:
        yield loc, f"it is a number that is not finite or beyond {LARGEST_NUMBER:g}"
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        yield loc, "it is an integer beyond 64 bits"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _objections(key, loc)
            yield from _objections(item, (*loc, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _objections(item, (*loc, index))


def parse_toml(text: str) -> dict[str, Any]:
    """TOML from anywhere.

    Raises:
        UsageError: not valid, or with values that ``check_values`` refuses.
    """
    try:
        content = tomllib.loads(text)
    except RecursionError as error:
        raise UsageError("not valid TOML: nested too deeply") from error
    except ValueError as error:  # also an integer of more digits than Python reads
        raise UsageError(f"not valid TOML: {error}") from error
    check_values(content)
    return content


def explain(error: ValidationError, where: str, content: Any = None) -> UsageError:
    """Turn pydantic's report into one sentence: where, which key, what is wrong, what was given.

    With the ``content`` that was checked, things in lists are called by their names, ``tasks['digits']``, and what is
    wrong with one value by every type that it could have had is one problem.
    """
    found: list[Any] = error.errors(include_url=False)
    problems: dict[str, list[Any]] = {}
    for problem in found:
        loc = problem["loc"]
        # A list without its wrong entries may be too short, which is nobody's mistake.
        if problem["type"] != "too_short" or not any(
            other["loc"][: len(loc)] == loc != other["loc"] for other in found
        ):
            problems.setdefault(_place(problem["loc"], content, missing=problem["type"] == "missing"), []).append(
                problem
            )
    key, first = next(iter(problems.items()))
    messages = list(dict.fromkeys(_message(problem) for problem in first))
    given = "" if first[0]["type"] in ("missing", "extra_forbidden") else f" (got {_shown(first[0]['input'])})"
    more = len(problems) - 1
    tail = f"; and {more} more problem{'s' if more > 1 else ''}" if more else ""
    return UsageError(f"{where}: {key + ': ' if key else ''}{', or: '.join(messages)}{given}{tail}")


def _place(loc: Sequence[Any], content: Any, missing: bool = False) -> str:
    """The path of keys to a value, without the parts by which pydantic tells the types of one value apart.

    ``missing``: the last key is none of the content's.
    """
    path = ""
    for position, part in enumerate(loc):
        if isinstance(content, dict) and part in content:
            content = content[part]
        elif isinstance(content, list | tuple) and isinstance(part, int) and part < len(content):
            content = content[part]
            name = content.get("name", content.get("label")) if isinstance(content, dict) else None
            if isinstance(name, str):
                path += f"[{_shown(name)}]"
                continue
        elif content is not None and not (missing and position == len(loc) - 1):
            continue
        path += f".{part}" if path else str(part)
    return path


def _message(problem: Any) -> str:
    if problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"] == NAME_PATTERN:
        return "a name has letters, digits, '_', '-' and '.', at most 64, and starts with a letter or a digit"
    return str(problem["msg"]).removeprefix("Value error, ")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
