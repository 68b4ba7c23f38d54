"""Bad input: is every wrong command, file and folder refused in one sentence?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bad_inputs import BadInput, generated, hand_written, refusal

GENERATED = 500


@dataclass(frozen=True)
class Result:
    """How many inputs of a kind were tried, and how many refused with the right exit code and one sentence."""

    kind: str
    tried: int
    refused: int

    @property
    def passed(self) -> bool:
        return self.refused == self.tried


def try_all(kind: str, cases: Iterable[BadInput], folder: Path) -> Result:
    tried = refused = 0
    for number, case in enumerate(cases):
        own = folder / f"{kind}-{number}"
        own.mkdir(parents=True)
        wrong = refusal(case, own)
        if wrong:
            print(wrong, flush=True)
        tried, refused = tried + 1, refused + (not wrong)
    return Result(kind, tried, refused)


def measure(folder: Path, seed: int) -> list[Result]:
    return [
        try_all("by hand", hand_written(), folder),
        try_all("generated", generated(seed, GENERATED), folder),
    ]
