from __future__ import annotations

from typing import Any, Literal

import pytest

from bayes_bench.errors import PluginError, UsageError
from bayes_bench.host import plugins
from bayes_bench.methods import registry
from bayes_bench.settings import MethodConfig, Range, setting
from entry_point import Point
from fake_methods import PairConfig, Tiny, TinyConfig


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    def replace(*points: Point) -> None:
        monkeypatch.setattr(plugins, "entry_points", lambda group: [point for point in points if point.group == group])

    return replace


def test_the_projects_own_methods_are_registered() -> None:
    found = registry.inspect_methods()
    assert {"hypergan", "map", "mcdropout", "ensemble"} <= found.keys()
    assert all(not method.error for name, method in found.items() if method.owner.startswith("bayes-bench"))


def test_method_and_settings_are_found_by_name(install) -> None:
    install(Point("tiny", Tiny))
    assert registry.method_class("tiny") is Tiny
    assert registry.config_class("tiny") is TinyConfig  # no entry in the group of settings: taken from the method
    assert registry.resolve_config("tiny", {"scale": 2}) == TinyConfig(scale=2.0)


def test_settings_come_from_their_own_group_without_importing_the_method(install) -> None:
    install(Point("tiny", RuntimeError("imported")), Point("tiny", TinyConfig, plugins.CONFIGS))
    assert registry.config_class("tiny") is TinyConfig
    with pytest.raises(PluginError, match=r"one 1\.0 is broken.*RuntimeError: imported"):
        registry.method_class("tiny")


def test_settings_of_another_owner_are_not_taken(install) -> None:
    install(Point("tiny", Tiny), Point("tiny", PairConfig, plugins.CONFIGS, "two"))
    assert registry.config_class("tiny") is TinyConfig


def test_a_name_registered_twice_is_an_error_naming_both_owners(install) -> None:
    install(Point("tiny", Tiny), Point("tiny", Tiny, owner="two"), Point("other", Tiny))
    for use in (registry.method_class, registry.config_class, lambda name: registry.resolve_config(name, {})):
        with pytest.raises(PluginError, match=r"registered twice, by one 1\.0 .* and two 1\.0"):
            use("tiny")
    assert "registered twice" in registry.methods()["tiny"].error
    assert registry.method_class("other") is Tiny  # the rest works


def test_the_same_registration_seen_twice_is_one(install) -> None:
    install(Point("tiny", Tiny), Point("tiny", Tiny))
    assert registry.method_class("tiny") is Tiny


def test_a_broken_plugin_is_listed_as_broken_and_the_rest_works(install) -> None:
    install(Point("bad", ImportError("no module named 'nix'")), Point("tiny", Tiny))
    found = registry.inspect_methods()
    assert "no module named 'nix'" in found["bad"].error
    assert "one 1.0" in found["bad"].error
    assert found["tiny"].error == ""
    with pytest.raises(PluginError, match="nix"):
        registry.resolve_config("bad", {})


def test_an_import_that_exits_is_a_broken_plugin(install) -> None:
    install(Point("bad", SystemExit(3)), Point("tiny", Tiny))
    found = registry.inspect_methods()
    assert "SystemExit: 3" in found["bad"].error
    assert found["tiny"].error == ""
    with pytest.raises(PluginError, match="mend or uninstall it, or choose others with --methods"):
        registry.method_class("bad")


def test_ctrl_c_in_the_import_of_a_compiled_module_is_no_broken_plugin(install) -> None:
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    install(Point("slow", error))
    with pytest.raises(KeyboardInterrupt):
        registry.method_class("slow")


@pytest.mark.parametrize(
    ("point", "sentence"),
    [
        (Point("odd", object()), "not a subclass of MethodConfig"),
        (Point("odd", type("NoConfig", (), {})), "not a subclass of MethodConfig"),
    ],
)
def test_something_else_than_a_method_is_refused(install, point: Point, sentence: str) -> None:
    install(point)
    with pytest.raises(PluginError, match=sentence):
        registry.config_class("odd")


def test_a_class_with_settings_that_is_no_posterior_is_refused(install) -> None:
    install(Point("odd", type("Odd", (), {"Config": TinyConfig})))
    with pytest.raises(PluginError, match="not a subclass of WeightPosterior"):
        registry.method_class("odd")


def test_two_different_settings_classes_are_refused(install) -> None:
    install(Point("tiny", Tiny), Point("tiny", PairConfig, plugins.CONFIGS))
    with pytest.raises(PluginError, match=r"TinyConfig.*PairConfig"):
        registry.method_class("tiny")


def test_unknown_names_get_suggestions(install) -> None:
    install(Point("tiny", Tiny))
    with pytest.raises(UsageError, match="unknown method 'tinny', did you mean 'tiny'"):
        registry.config_class("tinny")
    with pytest.raises(UsageError, match="unknown setting of method 'tiny': 'scalle', did you mean 'scale'"):
        registry.resolve_config("tiny", {"scalle": 1})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"scale": "wide"}, r"scale: .*number.*\(got 'wide'\)"), ({"scale": 0}, r"scale: .*greater than 0.*\(got 0\)")],
)
def test_wrong_values_name_the_setting_and_the_value(install, settings: dict[str, Any], sentence: str) -> None:
    install(Point("tiny", Tiny))
    with pytest.raises(UsageError, match="method 'tiny': " + sentence):
        registry.resolve_config("tiny", settings)


@pytest.mark.parametrize(
    ("given", "widths"), [("64,32", (64, 32)), ("64", (64,)), (64, (64,)), ("none", ()), ([64], (64,))]
)
def test_a_list_may_be_given_as_it_is_shown(given: Any, widths: tuple[int, ...]) -> None:
    assert registry.resolve_config("hypergan", {"mixer_hidden": given}).mixer_hidden == widths


def test_without_any_entry_point_the_error_says_to_install(install) -> None:
    install()
    with pytest.raises(UsageError, match="pip install"):
        registry.config_class("tiny")


def test_settings_are_described() -> None:
    class Documented(MethodConfig):
        """Doc."""

        rate: float | None = setting(0.5, "how fast", source="paper", tune=Range(1e-3, 1, log=True), gt=0, le=1)
        widths: tuple[int, ...] = setting((3, 4), "how wide", tune=[(3, 4), (5,)])
        mode: Literal["a", "b"] = setting("a", "which")
        on: bool = setting(True, "whether", tune=[True, False])

    rows = [tuple(vars(row).values()) for row in registry.describe_settings(Documented)]
    assert rows == [
        ("rate", "0.5", "number > 0 and ≤ 1 | none", "how fast", "paper", "0.001 to 1, logarithmic"),
        ("widths", "3, 4", "list of integer", "how wide", "", "3, 4 | 5"),
        ("mode", "a", "a | b", "which", "", ""),
        ("on", "true", "true | false", "whether", "", "true | false"),
    ]
