"""Validated, frozen settings; imports no torch, so that help and errors in arguments are instant."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from bayes_bench.errors import UsageError


class Settings(BaseModel):
    """Frozen, and unknown keys are errors. The base of everything a user can write in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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


class MethodConfig(Settings):
    """Settings of one method. The docstring of a subclass is what ``bayes-bench show METHOD`` prints first.

    ``reference`` names the paper. ``revision`` is part of every job's key: raise it when a change of the
    method changes its results, so that old results are not taken for new ones.
    """

    reference: ClassVar[str] = ""
    revision: ClassVar[int] = 1

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        search_space(cls)  # what cannot be tried is an error where it is written


def setting(
    default: Any, meaning: str, *, source: str = "", tune: Range | Sequence[Any] | None = None, **constraints: Any
) -> Any:
    """A documented field: its default, what it means and where the value comes from; the rest as in pydantic.

    ``tune`` is what ``bayes-bench tune`` may try: choices, or a ``Range`` of numbers. The default need not be in it.
    """
    extra: dict[str, Any] = {"source": source} if source else {}
    if tune is not None:
        extra["tune"] = asdict(tune) if isinstance(tune, Range) else list(tune)
    return Field(default, description=meaning, json_schema_extra=cast(Any, extra or None), **constraints)


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


def explain(error: ValidationError, where: str) -> UsageError:
    """Turn pydantic's report into one sentence: where, which key, what is wrong, what was given."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "extra_forbidden") else f" (got {first['input']!r})"
    more = error.error_count() - 1
    tail = f"; and {more} more problem{'s' if more > 1 else ''}" if more else ""
    return UsageError(f"{where}: {key + ': ' if key else ''}{message}{given}{tail}")
