"""``predict``, ``check`` and ``new-method``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bayes_bench.cli.group import GroupedCommand, cli
from bayes_bench.cli.options import method_name
from bayes_bench.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    import numpy as np

    from bayes_bench.jobs.predict import FittedJob
    from bayes_bench.posterior.predictive import ClassPrediction, ValuePrediction


@cli.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  bayes-bench predict reports/runs/digits hypergan new.npz
  bayes-bench predict reports/runs/my-task ensemble new.csv --seed 1 --out answers.csv
""",
)
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("method")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--task", help="Which task's posterior; needed where the run has several for the method.")
@click.option("--seed", type=int, help="Which seed's posterior; default: the lowest.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="CSV file; default: standard output.")
@click.option(
    "--allow-code",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="A Python file that the network may come from; it is executed.",
)
def predict(
    run_dir: Path,
    method: str,
    file: Path,
    task: str | None,
    seed: int | None,
    out: Path | None,
    allow_code: tuple[Path, ...],
) -> None:
    """Predict new inputs, with uncertainty.

    Uses the very networks that the metrics of the finished job (RUN, METHOD) speak of. FILE holds raw inputs as
    the task's own: a table with its columns, an NPZ file with an array `x`, an NPY file, an image or a folder
    of images. The answer is CSV, a line per input: of images the file; the probability of every class, predictive
    entropy and mutual information (nats); or for a regression, in the units of the targets, the mean, the epistemic
    standard deviation (between networks) and the total one (with the noise). Last, of features, which share of them
    lies outside the range of the training examples: there a network may be confident of anything.
    """
    from bayes_bench.host.files import write_text
    from bayes_bench.results.folder import read_run

    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"cannot write {out}: no folder {out.parent}")
    read_run(run_dir)
    if not file.exists():
        raise DataError(f"cannot read {file}: no such file or folder")
    from bayes_bench import data
    from bayes_bench.jobs.predict import load

    fitted = load(run_dir, method_name(method), task=task, seed=seed, allow_code=allow_code)
    new = data.read_inputs(file, fitted.input_shape, fitted.reading)
    outside = fitted.outside(new.x)
    text = _prediction_csv(fitted, fitted.predict(new.x), new.files, outside)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_text(out, text)
    far = 0 if outside is None else int((outside > 0).sum())
    about = f"{far} of {len(new.x)} inputs have features outside the range of the training examples (column outside)"
    for note in (*new.notes, *([about] if far else [])):
        click.echo(f"note: {printable(note)}", err=True)
    if out is None:
        return
    record = fitted.record
    click.echo(
        f"{len(new.x)} predictions of {record['networks']} networks ({record['task']}/{record['label']}, "
        f"seed {record['seed']}) written to {out}",
        err=True,
    )


def _prediction_csv(
    fitted: FittedJob,
    prediction: ClassPrediction | ValuePrediction,
    files: Sequence[str],
    outside: np.ndarray | None,
) -> str:
    """The answer; every number with all its digits, as whoever measures it again must find what the record says."""
    import csv
    import io

    import numpy as np

    from bayes_bench.host.files import spreadsheet_safe
    from bayes_bench.posterior.predictive import ClassPrediction

    columns: dict[str, np.ndarray] = {"file": np.array(files, dtype=object)} if files else {}
    if isinstance(prediction, ClassPrediction):
        columns["label"] = np.array(fitted.classes, dtype=object)[prediction.label.numpy()]
        for index, name in enumerate(fitted.classes):
            columns[f"p({name})"] = prediction.mean[:, index].numpy()
        columns["entropy"] = prediction.entropy.numpy()
        columns["mutual_information"] = prediction.mutual_information.numpy()
    else:
        dimensions = prediction.mean.shape[1]
        for index in range(dimensions):
            suffix = f"_{index}" if dimensions > 1 else ""
            columns[f"mean{suffix}"] = prediction.mean[:, index].numpy()
            columns[f"epistemic_std{suffix}"] = prediction.epistemic_variance[:, index].sqrt().numpy()
            columns[f"total_std{suffix}"] = prediction.variance[:, index].sqrt().numpy()
    if outside is not None:
        columns["outside"] = outside
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(spreadsheet_safe, columns))
    for row in zip(*(values.tolist() for values in columns.values()), strict=True):
        writer.writerow([spreadsheet_safe(cell) if isinstance(cell, str) else repr(cell) for cell in row])
    return buffer.getvalue()


@cli.command()
@click.argument("method")
def check(method: str) -> int:
    """Run the conformance kit on METHOD.

    For authors of plug-ins: trains the method on tiny tasks, looks whether it keeps what every posterior
    promises, and says what to mend. Exit code 1 when a check fails.
    """
    from bayes_bench.methods import registry

    method = method_name(method)
    registry.config_class(method)
    cls = registry.method_class(method)
    import torch

    from bayes_bench.cli.console import stdout, table
    from bayes_bench.testing import conformance

    torch.set_num_threads(1)  # the kit's networks are tiny: more threads would only wait for each other
    results = conformance.check(cls)
    rows = [["passed" if result.passed else "FAILED", result.name, result.message] for result in results]
    stdout().print(table(["", "check", "what to do"], rows))
    failed = sum(not result.passed for result in results)
    click.echo(f"{method}: {len(results) - failed} of {len(results)} checks passed")
    return int(failed > 0)


@cli.command("new-method")
@click.argument("name")
@click.option(
    "--in",
    "parent",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="FOLDER",
    help="Where the package's folder is made; default: here.",
)
def new_method(name: str, parent: Path) -> None:
    """Write a package for a method of your own.

    Makes the folder bayes-bench-NAME with everything a plug-in needs: a method that works, to be changed, its
    settings, tests, and the entry point by which bayes-bench finds it.
    """
    import shlex

    from bayes_bench.methods import scaffold

    folder = scaffold.new_package(name, parent)
    click.echo(f"{folder}: the method is in {scaffold.module_of(name)}.py")
    click.echo(f"Next: pip install -e {shlex.quote(str(folder))} && bayes-bench check {name}")
