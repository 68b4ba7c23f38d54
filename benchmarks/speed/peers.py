"""How long other packages take for work that bayes-bench does too: ratios of times, paired in one process.

    python benchmarks/speed/peers.py --out reports/runs/speed

MC dropout, deep ensembles (prediction and training) and predictions from Gaussian weights; what is compared
and how is in ``peer_worker.py``. Every peer lives in an environment of its own below ``--work``, which sees
this interpreter's packages (above all torch) and this checkout, so that bayes-bench never depends on a peer
and only what is missing is downloaded. A peer that cannot be installed or imported gets a row with the reason.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("peer_worker.py")
WORK = Path(tempfile.gettempdir()) / "bayes-bench-peers"
REQUIREMENTS = {
    "torch-uncertainty": "torch-uncertainty[cpu]",  # without the extra it cannot be imported: Lightning is missing
    "posteriors": "posteriors",
    "laplace-torch": "laplace-torch",
    "bayesian-torch": "bayesian-torch",
}
COLUMNS = ["peer", "version", "work", "network", "batch", "samples", "peer_ms", "ours_ms", "ratio", "pairs", "note"]
SHARED = ("torch", "torchvision", "numpy")
"""Kept at this interpreter's versions: both sides use the same ones, and nothing large is downloaded again."""


class PeerError(Exception):
    """A peer cannot be installed or run; the message is the reason for its row."""


def run(command: Sequence[str | Path], failure: str) -> None:
    """Raise PeerError with ``failure`` and the last line of the command's errors where it fails."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise PeerError(f"{failure}: {lines[-1].strip() if lines else f'exit status {done.returncode}'}")


def environment(folder: Path, requirement: str) -> tuple[Path, list[str]]:
    """The Python interpreter of a peer's environment and where its packages lie; made first where it is missing."""
    paths = sysconfig.get_paths("venv", vars={"base": str(folder), "platbase": str(folder)})
    python, packages = Path(paths["scripts"]) / Path(sys.executable).name, Path(paths["purelib"])
    if not python.exists():
        run([sys.executable, "-m", "venv", folder], "no environment")
    own = sysconfig.get_paths()["purelib"]
    (packages / "this_interpreter.pth").write_text(f"{ROOT}\n{ROOT / 'baselines'}\n{own}\n")
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={metadata.version(name)}\n" for name in SHARED))
    run([python, "-m", "pip", "install", "--constraint", constraints, requirement], "cannot be installed")
    return python, [str(packages), own]


def run_peer(peer: str, work: Path, quick: bool) -> list[dict[str, Any]]:
    """All rows of one peer, and one more with the reason where it went wrong."""
    measured, version, reason = work / f"{peer}.jsonl", "", ""
    measured.unlink(missing_ok=True)
    try:
        python, packages = environment(work / peer, REQUIREMENTS[peer])
        version = next((found.version for found in metadata.distributions(name=peer, path=packages)), "")
        # Warnings are the peers' own affair here, and some print pages of them.
        run([python, "-W", "ignore", WORKER, peer, measured, *(["--quick"] if quick else [])], "cannot be run")
    except PeerError as error:
        reason = str(error)
    rows = [json.loads(line) for line in measured.read_text().splitlines()] if measured.exists() else []
    if reason:
        rows.append({"note": reason})
    return [dict.fromkeys(COLUMNS, "") | {"peer": peer, "version": version} | row for row in rows]


def run_peers(work: Path = WORK, only: Sequence[str] = (), quick: bool = False) -> Iterator[dict[str, Any]]:
    """Rows with the keys ``COLUMNS``, empty where unknown; ratio > 1: bayes-bench is faster."""
    work.mkdir(parents=True, exist_ok=True)
    for peer in only or REQUIREMENTS:
        print(f"{peer} …", file=sys.stderr, flush=True)
        yield from run_peer(peer, work, quick)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [
        COLUMNS,
        *([f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in COLUMNS] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/runs/speed"), help="folder for peers.csv")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for the peers' environments (kept)")
    parser.add_argument("--only", nargs="+", choices=REQUIREMENTS, default=[], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a few rows and pairs, to see that all works")
    arguments = parser.parse_args()
    rows = list(run_peers(arguments.work, arguments.only, arguments.quick))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "peers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
