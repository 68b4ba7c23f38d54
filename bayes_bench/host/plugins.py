"""What installed packages add to ours, by the entry points that they declare. Imports nothing of them until asked to.

| group | an entry point names |
| --- | --- |
| ``bayes_bench.methods`` | a ``WeightPosterior`` |
| ``bayes_bench.configs`` | its ``MethodConfig``, under the same name |
| ``bayes_bench.networks`` | a function that builds a network |
| ``bayes_bench.suites`` | the ``Path`` of a TOML file |
| ``bayes_bench.data`` | a ``bayes_bench.data.Source`` |
| ``bayes_bench.metrics`` | a ``bayes_bench.metrics.Metric``, or several in a tuple |
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bayes_bench.errors import PluginError, named

METHODS, CONFIGS, NETWORKS = "bayes_bench.methods", "bayes_bench.configs", "bayes_bench.networks"
SUITES, DATA, METRICS = "bayes_bench.suites", "bayes_bench.data", "bayes_bench.metrics"


def by_name(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group; several under one name where several packages register it."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        # The same registration seen twice (a checkout on the path beside its installation) is one.
        if not any(owner(other) == owner(point) and other.value == point.value for other in found.get(point.name, [])):
            found.setdefault(point.name, []).append(point)
    return found


def names_of(group: str, cls: type) -> list[str]:
    """The names under which packages register a class, sorted; imports nothing."""

    def is_of(point: EntryPoint) -> bool:
        if point.value == f"{cls.__module__}:{cls.__qualname__}":
            return True
        # Another module may hand it on.
        module, _, attribute = point.value.partition(":")
        return getattr(sys.modules.get(module), attribute, None) is cls

    return sorted(name for name, points in by_name(group).items() if any(map(is_of, points)))


def by_attribute(groups: Sequence[str], name: str) -> Any:
    """What an entry point of one of the groups names ``MODULE:NAME``, or None; ours go before those of others.

    Raises:
        PluginError: it cannot be imported.
    """
    if name.startswith("_"):
        return None
    points = [point for group in groups for several in by_name(group).values() for point in several]
    found = [point for point in points if point.value.rpartition(":")[2] == name]
    return load(min(found, key=lambda point: not owner(point).startswith("bayes-bench ")), name) if found else None


def twice(points: list[EntryPoint], what: str) -> str:
    """Why a name that several packages register cannot be used; empty where one does."""
    if len(points) == 1:
        return ""
    owners = " and ".join(f"{owner(point)} ({point.value})" for point in points)
    return f"the {what} name {points[0].name!r} is registered twice, by {owners}; uninstall or rename one"


def owner(point: EntryPoint) -> str:
    """Distribution and version, e.g. ``my-package 1.0``."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def load(point: EntryPoint, what: str, remedy: str = "mend or uninstall it") -> Any:
    """What an entry point names.

    Args:
        what: it is, for the message.
        remedy: for the message.

    Raises:
        PluginError: it cannot be imported, whatever the reason.
    """
    # A plug-in can fail in any way at import; whatever it is becomes one sentence naming its owner.
    # Even sys.exit, which is no Exception.
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C, which compiled modules turn into an ImportError
            raise KeyboardInterrupt from error
        raise PluginError(
            f"{what} of {owner(point)} is broken: cannot import {point.value} ({named(error)}); {remedy}"
        ) from error


def only(group: str, name: str, what: str, kind: Any) -> Any:
    """The object of one name in a group, or None where no package registers it.

    Args:
        what: it is, for messages.
        kind: for ``isinstance``.

    Raises:
        PluginError: several packages do, it cannot be imported, or it is no ``kind``.
    """
    points = by_name(group).get(name)
    if points is None:
        return None
    if problem := twice(points, what):
        raise PluginError(problem)
    found = load(points[0], f"{what} {name!r}")
    if not isinstance(found, kind):
        raise PluginError(
            f"{what} {name!r}: {points[0].value} ({owner(points[0])}) is no {getattr(kind, '__name__', kind)}"
        )
    return found
