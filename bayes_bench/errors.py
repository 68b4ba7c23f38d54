"""Errors that a user can mend: one clear sentence each, naming the thing and the remedy.

The command line prints the sentence without a traceback and exits with ``exit_code``.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1b\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters that could steer a terminal, marks that turn the direction of writing, halves of characters."""


class BayesBenchError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 2


class UsageError(BayesBenchError, ValueError):
    """An argument, a setting or a suite file is wrong."""


class StorageError(UsageError):
    """A file cannot be written: no space, no permission, a folder that is read-only, or a disk that fails."""


class MemoryLimitError(UsageError):
    """Something cannot fit into memory, known before it is tried; a run's other jobs go on."""


class DataError(BayesBenchError):
    """Data are missing, damaged, or not what they are said to be."""


class UnsupportedNetworkError(BayesBenchError, TypeError):
    """The network is not a pure function of (weights, x), or a method cannot handle one of its layers."""


class PluginError(BayesBenchError):
    """A plug-in could not be imported or breaks the contract of its entry point."""


class DivergenceError(BayesBenchError):
    """Training produced a loss or weights that are not finite."""

    exit_code = 1


def named(error: BaseException) -> str:
    """Any exception as one line: ``DivergenceError: the loss is nan``."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else name


def printable(text: str) -> str:
    """A text from anywhere without what could steer a terminal or break a page."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def counted(n: int, noun: str) -> str:
    """``1 task``, ``3 tasks``."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a registry: did-you-mean, and the whole list."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    return f"unknown {kind} {name!r}{hint} known: {', '.join(names) or 'none'}"
