"""The speed benchmark: one command, CSV files and pictures.

    python benchmarks/speed/run.py --out reports/runs/speed

Needs an idle machine. Parts: ``cells`` (forward passes and training steps against the loop, ``vmap`` and the
machine's limits), ``hypergan`` (its step, and with MNIST in the data root the time to 98 %), ``growth`` (time and
memory with S) and ``peers`` (other packages, each installed into an environment of its own).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cells
import growth
import hypergan
import pandas as pd
import peers
import plot
import torch

from bayes_bench import FitData
from bayes_bench.data import load_split
from bayes_bench.data.spec import SourceSpec
from bayes_bench.host import machine

PARTS = ("cells", "hypergan", "growth", "peers")


def write(rows: Iterable[dict[str, Any]], path: Path, columns: list[str]) -> pd.DataFrame:
    """Rows to CSV, one by one as they are measured: what is done stays when the run is ended."""
    kept = []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
            file.flush()
            kept.append(row)
    table = pd.DataFrame(kept, columns=columns)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"), flush=True)
    return table


def mnist_rows(device: torch.device, seeds: Iterable[int]) -> Iterable[dict[str, Any]]:
    from bayes_bench.posterior.examples import Examples

    found = load_split(SourceSpec(source="mnist", validation=1000), Path(os.environ["BAYES_BENCH_DATA"]))
    train, validation = (
        Examples(torch.from_numpy(part.x), torch.from_numpy(part.y)) for part in (found.train, found.validation)
    )
    for seed in seeds:
        yield hypergan.time_to_accuracy(FitData(train, validation), device, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("reports/runs/speed"), help="folder for CSV files and pictures"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each cell")
    parser.add_argument("--threads", type=int, default=machine.physical_cores())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that all works")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, out, quick = torch.device(arguments.device), arguments.out, arguments.quick
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "processor": machine.processor(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": arguments.threads,
        "memory_gb": machine.memory_gb(),
        "versions": machine.versions("bayes-bench"),
    }
    (out / "machine.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if "cells" in arguments.only:
        table = write(cells.measure(cells.cells(quick), device, arguments.seconds), out / "cells.csv", cells.COLUMNS)
        plot.plot_cells(table, out / "cells.png")
    if "hypergan" in arguments.only:
        write(hypergan.steps(device, arguments.seconds, quick), out / "hypergan.csv", hypergan.COLUMNS)
        if "BAYES_BENCH_DATA" in os.environ and not quick:
            columns = ["seed", "target", "seconds", "evaluations", "accuracy"]
            write(mnist_rows(device, range(3)), out / "mnist98.csv", columns)
    if "growth" in arguments.only:
        table = write(growth.points(quick), out / "growth.csv", growth.COLUMNS)
        plot.plot_growth(table, out / "growth.png")
    if "peers" in arguments.only:
        table = write(peers.run_peers(quick=quick), out / "peers.csv", peers.COLUMNS)
        plot.plot_peers(table, out / "peers.png")


if __name__ == "__main__":
    main()
