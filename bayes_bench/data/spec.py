"""How a suite names a source of examples. Imports no torch."""

from __future__ import annotations

from typing import Any

from bayes_bench.settings import NAME_PATTERN, Settings, setting


class SourceSpec(Settings):
    """Where examples come from; keys other than ``source`` belong to the source and are checked by it."""

    model_config = Settings.model_config | {"extra": "allow"}

    source: str = setting(..., "name of the data source")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class OODSpec(SourceSpec):
    name: str = setting(..., "how the set is called in tables", pattern=NAME_PATTERN)
    optional: bool = setting(False, "where its data are missing, go on without the set and say so")
