"""``main``: the commands put together, expected errors in one sentence, and exit codes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from bayes_bench.cli import look_again, look_up, run, tune, use  # noqa: F401 (each adds its commands)
from bayes_bench.cli.group import cli
from bayes_bench.errors import BayesBenchError, UsageError, named, printable

INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point: expected errors are one sentence on stderr and an exit code, never a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # a service or ``>&-`` has closed it
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (until the end)
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            # In an encoding that lacks a character (ASCII, cp1252) a question mark, not an error after the work.
            stream.reconfigure(errors="replace")
    try:
        code = cli.main(args=None if args is None else list(args), prog_name="bayes-bench", standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted; the same command continues", INTERRUPTED)
    except click.ClickException as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(error.format_message())
            sys.exit(error.exit_code)
        _fail(error.format_message(), error.exit_code)
    except BayesBenchError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader (``| head``) has gone; closing stderr keeps Python from complaining at exit.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        # A path that no part of the program could look at: too long a name, a folder above it without permission.
        _fail(f"cannot use {error.filename or 'a file'}: {error.strerror or error}", UsageError.exit_code)
    except (MemoryError, RuntimeError) as error:
        from bayes_bench.jobs.memory import ran_out

        if not ran_out(error):
            raise
        # Outside of jobs: where data are read, networks are built to be looked at, or the page is made.
        _fail(f"memory ran out ({named(error)}); use fewer examples or a smaller network", UsageError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> NoReturn:
    click.echo(f"Error: {' '.join(printable(sentence).split())}", err=True)
    sys.exit(code)
