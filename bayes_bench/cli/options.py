"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bayes_bench.cli.group import option
from bayes_bench.errors import UsageError
from bayes_bench.host.machine import MEMORY_LIMIT_MB, MOST_THREADS

if TYPE_CHECKING:
    from bayes_bench.jobs.plan import Override

MAX_SEEDS = 10_000
WHAT, HOW, WHERE, CLUSTER = "What to run", "How", "Input and output", "On several machines"
set_option = option(
    WHAT,
    "--set",
    "settings",
    multiple=True,
    metavar="METHOD.KEY=VALUE",
    help="Change one setting of a method; may be repeated.",
)
quick_option = option(WHAT, "--quick", is_flag=True, help="The suite's quick variant, SUITE-quick: minutes on 2 cores.")
budget_scale_option = option(
    WHAT,
    "--budget-scale",
    type=float,
    default=1.0,
    metavar="FACTOR",
    help="Multiply every budget, e.g. 0.1 for a quick look.",
)
device_option = option(
    HOW,
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where networks are trained.",
)
threads_option = option(
    HOW,
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    help="CPU threads; default: one for small networks, else the physical cores.",
)
memory_limit_option = option(
    HOW,
    "--memory-limit",
    "memory_limit_mb",
    type=click.IntRange(min=1),
    metavar="MB",
    default=MEMORY_LIMIT_MB,
    show_default=True,
    help="For the intermediate values of one evaluation of networks; part of a job's key.",
)
data_root_option = option(
    WHERE,
    "--data-root",
    type=click.Path(path_type=Path),
    help="Folder of data sets; default: $BAYES_BENCH_DATA, else the user's cache folder.",
)
allow_code_option = option(
    WHERE,
    "--allow-code",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="A Python file that a suite may take its network from; it is executed.",
)


def gathered(argument: str, place: str, *options: str, **renamed: str) -> Callable[[Callable[..., int]], Any]:
    """Hands several options to a command as one object.

    Args:
        argument: of the command.
        place: the object's class, ``"module:Class"``; imported when the command runs.
        options: its arguments, called as the options.
        renamed: others, and the options that they come from.
    """

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @wraps(command)
        def called(**values: Any) -> int:
            module, _, name = place.partition(":")
            given = {own: values.pop(option) for own, option in ({o: o for o in options} | renamed).items()}
            return command(**values, **{argument: getattr(import_module(module), name)(**given)})

        return called

    return decorate


def split_names(option: str, text: str | None, example: str = "hypergan,mcdropout") -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UsageError(f"{option} {text!r}: write names separated by commas, e.g. {example}")
    return names


def method_name(name: str) -> str:
    """A method's name; of ``FILE.py:CLASS`` the name under which it is taken from the file, which is executed."""
    if name.endswith(".py"):
        raise UsageError(f"name the class as well: {name}:CLASS")
    if ".py:" not in name:
        return name
    from bayes_bench.methods import registry

    return registry.add_file(name)


def parse_override(text: str) -> Override:
    """``"hypergan.adversarial_weight=0.5"``; the value is read as TOML, and as plain text where it is none.

    Raises:
        UsageError: not of the form METHOD.KEY=VALUE.
    """
    from bayes_bench.jobs.plan import Override
    from bayes_bench.settings import parse_toml

    path, equals, value = text.partition("=")
    target, dot, key = path.strip().rpartition(".")
    if not (equals and dot and target and key):
        raise UsageError(f"--set {text!r}: write METHOD.KEY=VALUE, e.g. hypergan.adversarial_weight=0.5")
    try:
        parsed = parse_toml(f"value = {value}")
    except UsageError:
        return Override(target, key, value.strip())
    if parsed.keys() != {"value"}:
        raise UsageError(f"--set {text!r}: one value per --set, please")
    return Override(target, key, parsed["value"])


def parse_seeds(text: str) -> tuple[int, ...]:
    """``"0-4"``, ``"0,1,2"`` or ``"0-2,7"`` as a tuple without repeats.

    Raises:
        UsageError: anything else.
    """
    from bayes_bench.tasks.spec import LARGEST_SEED

    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds {text!r}: write a list such as 0,1,2 or a range such as 0-4")
        if max(len(first), len(last)) > len(str(LARGEST_SEED)):
            raise UsageError(f"--seeds: a seed is at most {LARGEST_SEED}")
        low, high = int(first), int(last) if dash else int(first)
        if low > high:
            raise UsageError(f"--seeds {text!r}: the range {low}-{high} is empty; write {high}-{low}")
        if high - low >= MAX_SEEDS:
            raise UsageError(f"--seeds {text!r}: more than {MAX_SEEDS:,} seeds")
        if high > LARGEST_SEED:
            raise UsageError(f"--seeds {text!r}: a seed is at most {LARGEST_SEED}")
        seeds += range(low, high + 1)
    return tuple(dict.fromkeys(seeds))
