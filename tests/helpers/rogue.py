"""A method that does to its process what a process can suffer, as a plug-in that other processes find too."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from bayes_bench import FitData, MethodConfig, TrainingLoop, setting
from fake_methods import Tiny


class RogueConfig(MethodConfig):
    """Rogue: a danger to its process."""

    scale: float = setting(0.1, "standard deviation of the weights")
    trouble: str = setting("", "what it does to its process")
    mark: str = setting("", "a file that it leaves, with the number of its process")


class Rogue(Tiny):
    Config = RogueConfig

    def _fit(self, data: FitData, loop: TrainingLoop, rng: torch.Generator) -> None:
        mark = Path(self.config.mark)
        first = not mark.is_file()
        if self.config.mark:
            mark.write_text(str(os.getpid()))
        match self.config.trouble:
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "dies once" if first:
                os._exit(7)
            case "waits once" if first:
                time.sleep(600)
            case "waits":
                time.sleep(600)
            case "waits for the gate":
                while not mark.with_name("gate").exists():
                    time.sleep(0.05)
            case "leaves a thread":
                threading.Thread(target=time.sleep, args=(600,)).start()
            case "leaves a child" | "leaves a child and dies" as what:
                if (child := os.fork()) == 0:
                    time.sleep(600)
                mark.write_text(str(child))
                if what.endswith("dies"):
                    os.kill(os.getpid(), signal.SIGKILL)
            case "stubborn":
                while True:
                    try:
                        time.sleep(600)
                    except KeyboardInterrupt:
                        continue
        super()._fit(data, loop, rng)


def rogue_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register it as an installed package does, for this process and those that it starts."""
    about = folder / "rogue-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rogue\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[bayes_bench.methods]\nrogue = rogue:Rogue\n")
    monkeypatch.syspath_prepend(str(folder))
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), here, *filter(None, sys.path)]))
