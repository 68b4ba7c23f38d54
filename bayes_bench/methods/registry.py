"""Methods by name, found through entry points. Imports no torch until a method itself is asked for.

A plug-in registers a ``WeightPosterior`` in the group ``bayes_bench.methods`` and, so that help and errors
in arguments are instant, its ``MethodConfig`` under the same name in ``bayes_bench.configs``. A method that is being
written may also come from a file: ``add_file``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bayes_bench.errors import PluginError, UsageError, unknown_name
from bayes_bench.host import userfile
from bayes_bench.host.plugins import CONFIGS, METHODS, by_name, load, owner, twice
from bayes_bench.settings import NAME_PATTERN, MethodConfig, Range, Space, explain, parse_toml, search_space

if TYPE_CHECKING:
    from bayes_bench.posterior.base import WeightPosterior

REMEDY = "mend or uninstall it, or choose others with --methods"

_from_files: dict[str, tuple[str, type[WeightPosterior]]] = {}
"""Methods of files that this process was told of, by the name of their class: ``PATH:CLASS`` and the class."""


@dataclass(frozen=True)
class RegisteredMethod:
    """One registered name.

    Attributes:
        owner: distribution and version that registered it, e.g. ``"bayes-bench 0.1.0"``.
        value: the object the entry point names, ``"module:Class"``.
        error: why the method cannot be used; empty where nothing is known to be wrong.
        needs: an optional package that is not installed, as ``pip install`` takes it; empty where all is there.
    """

    name: str
    owner: str
    value: str
    error: str = ""
    needs: str = ""


@dataclass(frozen=True)
class SettingDoc:
    """One setting of a method, in words for tables."""

    name: str
    default: str
    allowed: str
    meaning: str
    source: str
    tuned: str = ""


def methods() -> dict[str, RegisteredMethod]:
    """All registered methods by name, sorted, without importing them, and those of files that were given.

    A name that two distributions register is listed with an error that names both; so using it fails and
    every other method still works.
    """
    found = {name: _registered(name, points) for name, points in by_name(METHODS).items()}
    found |= {name: RegisteredMethod(name, place.rpartition(":")[0], place) for name, (place, _) in _from_files.items()}
    return dict(sorted(found.items()))


def add_file(place: str) -> str:
    """Execute a Python file and take a method from it, under the name of its class, as long as this process lives.

    Args:
        place: ``"FILE.py:CLASS"``.

    Returns:
        The name.

    Raises:
        UsageError: no such file or class, it cannot be imported, it is no method, or another method has the name.
    """
    from bayes_bench.posterior.base import WeightPosterior

    file, _, name = place.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            f"{name!r} cannot name a method; give the class a name of at most 64 letters a to z, A to Z, digits"
        )
    content = vars(userfile.execute(path))
    classes = {key for key, value in content.items() if isinstance(value, type) and issubclass(value, WeightPosterior)}
    if name not in content:
        raise UsageError(unknown_name(f"class of {file}:", name, classes - {"WeightPosterior"}))
    if name not in classes:
        raise UsageError(f"{place} is not a subclass of WeightPosterior")
    config = getattr(content[name], "Config", None)
    if not isinstance(config, type) or not issubclass(config, MethodConfig):
        raise UsageError(f"{place}: its Config is not a subclass of MethodConfig; write one and set Config to it")
    taken = methods().get(name)
    if taken is not None and taken.owner != str(path):
        raise UsageError(f"{place}: there is a method {name!r} already, from {taken.owner}; rename the class")
    _from_files[name] = f"{path}:{name}", content[name]
    return name


def files_of(names: Iterable[str]) -> tuple[str, ...]:
    """What ``add_file`` has to be told in another process, so that it knows these methods as well."""
    return tuple(_from_files[name][0] for name in sorted(names) if name in _from_files)


def inspect_methods() -> dict[str, RegisteredMethod]:
    """Like ``methods``, but imports the settings of each, so that broken plug-ins are found and listed as such."""
    found = {}
    for name, entry in methods().items():
        error, needs = entry.error, ""
        if not error:
            try:
                needs = _missing(config_class(name))
            except PluginError as problem:
                error = str(problem)
        found[name] = RegisteredMethod(name, entry.owner, entry.value, error, needs)
    return found


def method_class(name: str) -> type[WeightPosterior]:
    """The class registered under ``name``. Imports torch.

    Raises:
        UsageError: no such method.
        PluginError: it is registered twice, cannot be imported, is not a method, or needs what is not installed.
    """
    from bayes_bench.posterior.base import WeightPosterior

    if name in _from_files:
        return _from_files[name][1]
    point = _entry(name)
    # Before the method is imported, which may need what is not there.
    if point.name in by_name(CONFIGS) and (package := _missing(config_class(name))):
        raise PluginError(f"method {name!r} needs a package that is not installed: pip install {package!r}")
    loaded = load(point, f"method {name!r}", REMEDY)
    if not (isinstance(loaded, type) and issubclass(loaded, WeightPosterior)):
        raise PluginError(f"method {name!r}: {point.value} ({owner(point)}) is not a subclass of WeightPosterior")
    declared = config_class(name)
    if loaded.Config is not declared:
        raise PluginError(
            f"method {name!r}: {point.value}.Config is {loaded.Config.__name__}, "
            f"but the group {CONFIGS} names {declared.__name__}; make both the same"
        )
    return loaded


def _missing(config: type[MethodConfig]) -> str:
    """The first package that a method requires and that is not installed."""
    return next((package for module, package in config.requires.items() if find_spec(module) is None), "")


def config_class(name: str) -> type[MethodConfig]:
    """The settings class of a method; without an entry in ``bayes_bench.configs`` the method is imported for it.

    Raises:
        UsageError: no such method.
        PluginError: it is registered twice, cannot be imported, or its settings are not a ``MethodConfig``.
    """
    if name in _from_files:
        return _from_files[name][1].Config
    point = _entry(name)
    of_same_owner = [entry for entry in by_name(CONFIGS).get(name, []) if owner(entry) == owner(point)]
    if of_same_owner:
        loaded, where = load(of_same_owner[0], f"settings of method {name!r}", REMEDY), of_same_owner[0].value
    else:
        loaded, where = getattr(load(point, f"method {name!r}", REMEDY), "Config", None), f"{point.value}.Config"
    if not (isinstance(loaded, type) and issubclass(loaded, MethodConfig)):
        raise PluginError(f"method {name!r}: {where} ({owner(point)}) is not a subclass of MethodConfig")
    return loaded


def diagnostic_tables(name: str) -> list[dict[str, Any]]:
    """The tables that a method declares for what it says of its fits, as JSON; none where it is not to be had."""
    try:
        return [asdict(table) for table in config_class(name).diagnostics]
    except (UsageError, PluginError):
        return []


def resolve_config(name: str, settings: Mapping[str, Any]) -> MethodConfig:
    """The full, validated settings of a method from those given.

    Raises:
        UsageError: no such method, unknown setting (with the nearest name), or a value of the wrong type or range.
        PluginError: the method's settings cannot be imported.
    """
    cls = config_class(name)
    for key in settings:
        if key not in cls.model_fields:
            raise UsageError(unknown_name(f"setting of method {name!r}:", key, cls.model_fields))
    given = {key: _as_list(cls.model_fields[key].annotation, value) for key, value in settings.items()}
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        raise explain(error, f"method {name!r}", given) from error


def _as_list(annotation: Any, value: Any) -> Any:
    """What ``--set METHOD.KEY=64,64`` gives, text or a single number, as the list that the setting is."""
    if get_origin(annotation) not in (tuple, list) or isinstance(value, list | tuple):
        return value
    if not isinstance(value, str):
        return [value]
    if value in ("", "none"):
        return []
    try:
        listed: list[Any] = parse_toml(f"value = [{value}]")["value"]
    except UsageError:
        return [part.strip() for part in value.split(",")]
    return listed


def describe_settings(cls: type[MethodConfig]) -> list[SettingDoc]:
    """The table that ``bayes-bench show METHOD`` prints: a row per setting, in the order of the class."""
    rows = []
    spaces = search_space(cls)
    for name, info in cls.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        default = info.get_default(call_default_factory=True, validated_data={})
        rows.append(
            SettingDoc(
                name=name,
                default="required" if default is PydanticUndefined else _plain(default),
                allowed=_allowed(info),
                meaning=info.description or "",
                source=str(extra.get("source", "")),
                tuned=_tuned(spaces[name]) if name in spaces else "",
            )
        )
    return rows


def _registered(name: str, points: list[EntryPoint]) -> RegisteredMethod:
    owners = " and ".join(map(owner, points))
    return RegisteredMethod(name, owners, points[0].value, twice(points, "method"))


def _entry(name: str) -> EntryPoint:
    found = by_name(METHODS)
    if name not in found:
        hint = "" if found else "; the package is not installed: run pip install . first"
        raise UsageError(unknown_name("method", name, found) + hint)
    if error := _registered(name, found[name]).error:
        raise PluginError(error)
    return found[name][0]


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple | list):
        return ", ".join(_plain(part) for part in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _tuned(space: Space) -> str:
    """In words what tuning may try, e.g. ``0.001 to 0.01, logarithmic``, ``16 | 32 | 64``."""
    if isinstance(space, Range):
        return f"{space.low:g} to {space.high:g}" + ", logarithmic" * space.log
    return " | ".join(_plain(choice) for choice in space)


def _allowed(info: FieldInfo) -> str:
    """Type and range in words, e.g. ``number > 0``, ``integer in [1, 10]``, ``joint | layer``."""
    bounds = []
    for constraint in info.metadata:
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if (limit := getattr(constraint, attribute, None)) is not None:
                bounds.append(f"{sign} {limit}")
    words = _type_words(info.annotation)
    if not bounds:
        return words
    base = words.removesuffix(" | none")
    return f"{base} {' and '.join(bounds)}{words[len(base) :]}"


def _type_words(annotation: Any) -> str:
    simple = {int: "integer", float: "number", str: "text", bool: "true | false", type(None): "none"}
    if annotation in simple:
        return simple[annotation]
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " | ".join(_plain(argument) for argument in arguments)
    if get_origin(annotation) in (tuple, list):
        inner = [argument for argument in arguments if argument is not Ellipsis]
        return "list of " + (_type_words(inner[0]) if inner else "values")
    if hasattr(annotation, "__metadata__"):
        return _type_words(arguments[0])
    if arguments:
        return " | ".join(_type_words(argument) for argument in arguments)
    return getattr(annotation, "__name__", str(annotation))
