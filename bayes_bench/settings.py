"""Validated, frozen settings; imports no torch, so that help and errors in arguments are instant."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bayes_bench.errors import UsageError


class Settings(BaseModel):
    """Frozen, and unknown keys are errors. The base of everything a user can write in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MethodConfig(Settings):
    """Settings of one method. The docstring of a subclass is what ``bayes-bench show METHOD`` prints first.

    ``reference`` names the paper. ``revision`` is part of every job's key: raise it when a change of the
    method changes its results, so that old results are not taken for new ones.
    """

    reference: ClassVar[str] = ""
    revision: ClassVar[int] = 1


def setting(default: Any, meaning: str, *, source: str = "", **constraints: Any) -> Any:
    """A documented field: its default, what it means and where the value comes from; the rest as in pydantic."""
    extra = cast(Any, {"source": source}) if source else None
    return Field(default, description=meaning, json_schema_extra=extra, **constraints)


def explain(error: ValidationError, where: str) -> UsageError:
    """Turn pydantic's report into one sentence: where, which key, what is wrong, what was given."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "extra_forbidden") else f" (got {first['input']!r})"
    more = error.error_count() - 1
    tail = f"; and {more} more problem{'s' if more > 1 else ''}" if more else ""
    return UsageError(f"{where}: {key + ': ' if key else ''}{message}{given}{tail}")
