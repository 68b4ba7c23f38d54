"""The command and its help: commands under headings, options under headings, near names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from bayes_bench.errors import UsageError, unknown_name

_Function = TypeVar("_Function", bound=Callable[..., Any])
SECTIONS = {
    "Compare methods": ("run", "report", "tune", "reference"),
    "Look again": ("compare", "verify", "rerun"),
    "Look up": ("list", "show", "data"),
    "Use and extend": ("predict", "check", "new-method"),
}


class HelpfulGroup(click.Group):
    """Suggests near names."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise UsageError(unknown_name("command", args[0], self.commands))
        return super().resolve_command(ctx, args)


class SectionedGroup(HelpfulGroup):
    """Lists commands under the headings of ``SECTIONS``."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in SECTIONS.items():
            rows = [(name, self.commands[name].get_short_help_str(80)) for name in names]
            with formatter.section(heading):
                formatter.write_dl(rows)


class _Option(click.Option):
    def __init__(self, *args: Any, heading: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.heading = heading


def option(heading: str, *names: str, **attributes: Any) -> Callable[[_Function], _Function]:
    """``click.option`` under a heading of the help of a ``GroupedCommand``."""
    return click.option(*names, cls=_Option, heading=heading, **attributes)


class GroupedCommand(click.Command):
    """Lists options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and isinstance(parameter, click.Option):
                headings.setdefault(getattr(parameter, "heading", "Options"), []).append(row)
        for heading, rows in headings.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


@click.group(
    cls=SectionedGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  bayes-bench run                                         seven methods on digits and a 1-D regression
  bayes-bench run digits --methods hypergan,mcdropout     two methods, 3 seeds
  bayes-bench run digits --set hypergan.adversarial_weight=0 --out reports/runs/no-discriminator
  bayes-bench tune hypergan digits                        search for better settings, on validation data
  bayes-bench show hypergan                               its settings and where they come from
  bayes-bench predict reports/runs/digits hypergan new.csv --out answers.csv
""",
)
@click.version_option(package_name="bayes-bench", message="%(prog)s %(version)s")
def cli() -> None:
    """Compare Bayesian neural networks: which posterior over weights should I use, and what does it cost?

    Every method gets the same network, data, likelihood, prior and budget, and the result is one page.
    """
