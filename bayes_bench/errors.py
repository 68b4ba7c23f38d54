"""Errors that a user can mend: one clear sentence each, naming the thing and the remedy.

The command line prints the sentence without a traceback and exits with ``exit_code``.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class BayesBenchError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 2


class UsageError(BayesBenchError, ValueError):
    """An argument, a setting or a suite file is wrong."""


class DataError(BayesBenchError):
    """Data are missing, damaged, or not what they are said to be."""


class UnsupportedNetworkError(BayesBenchError, TypeError):
    """The network is not a pure function of (weights, x), or a method cannot handle one of its layers."""


class PluginError(BayesBenchError):
    """A plug-in could not be imported or breaks the contract of its entry point."""


class DivergenceError(BayesBenchError):
    """Training produced a loss or weights that are not finite."""

    exit_code = 1


def named(error: Exception) -> str:
    """Any exception as one line: ``DivergenceError: the loss is nan``."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else name


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a registry: did-you-mean, and the whole list."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    return f"unknown {kind} {name!r}{hint} known: {', '.join(names) or 'none'}"
