"""A stand-in for the entry points of installed packages."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from bayes_bench.host import plugins


@dataclass(frozen=True)
class Point:
    """What the registry uses of an ``importlib.metadata.EntryPoint``."""

    name: str
    loaded: Any
    group: str = plugins.METHODS
    owner: str = "one"

    @property
    def value(self) -> str:
        return f"{self.owner}_module:{getattr(self.loaded, '__name__', self.name)}"

    @property
    def dist(self) -> Any:
        return SimpleNamespace(name=self.owner, version="1.0")

    def load(self) -> Any:
        if isinstance(self.loaded, BaseException):
            raise self.loaded
        return self.loaded
