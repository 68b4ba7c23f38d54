"""What is evaluated of a task, by name: tasks make these sets, jobs store predictions of them, metrics read them.

A set is called as its kind, or where a task may have several of a kind ``KIND/NAME``. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"


@dataclass(frozen=True)
class SetKind:
    """A kind of sets.

    Attributes:
        tasks: the kinds of tasks that have one.
        several: a task may have several, each with a name.
        targets: what is right is known, and stored beside the predictions.
        pictured: the images that are most and least uncertain are kept for the report.
    """

    tasks: tuple[str, ...] = ("classification", "regression")
    several: bool = False
    targets: bool = False
    pictured: bool = False


KINDS = {
    "test": SetKind(targets=True, pictured=True),
    "validation": SetKind(targets=True),
    "ood": SetKind(several=True, pictured=True),
    "validation_ood": SetKind(several=True),
    "curve": SetKind(tasks=("regression",)),
}
"""In the order in which they are evaluated."""


def set_name(kind: str, name: str = "") -> str:
    """The name of a set: its kind, or ``KIND/NAME``."""
    return f"{kind}/{name}" if KINDS[kind].several else kind


def kind_of(name: str) -> str:
    """The kind of a set, from its name."""
    return name.partition("/")[0]


def pattern(task: str) -> str:
    """A regular expression for the names of the sets that a kind of task has."""
    names = [f"{kind}/{NAME}" if about.several else kind for kind, about in KINDS.items() if task in about.tasks]
    return f"(?:{'|'.join(names)})"
