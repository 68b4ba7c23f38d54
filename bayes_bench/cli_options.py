"""x"""

from __future__ import annotations

from bayes_bench.errors import UsageError
from bayes_bench.jobs.plan import Override
from bayes_bench.settings import parse_toml
from bayes_bench.tasks.spec import LARGEST_SEED

MAX_SEEDS = 10_000


def parse_override(text: str) -> Override:
    """``"hypergan.adversarial_weight=0.5"``; the value is read as TOML, and as plain text where it is none.

    Raises:
        UsageError: not of the form METHOD.KEY=VALUE.
    """
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
