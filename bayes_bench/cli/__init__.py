"""The command ``bayes-bench``: thin, and every import of weight happens inside the command that needs it."""

from bayes_bench.cli.app import main
from bayes_bench.cli.group import cli

__all__ = ["cli", "main"]
