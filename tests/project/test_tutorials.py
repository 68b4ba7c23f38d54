"""Every tutorial is executed, block by block, in an empty folder. Slow: two minutes; CI runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r'^```(python|bash|toml)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", sorted(path.name for path in TUTORIALS.glob("*.md")))
def test_a_tutorial_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = BLOCK.findall((TUTORIALS / page).read_text(encoding="utf-8"))
    assert len(blocks) > 2
    for language, title, text in blocks:
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, page, "exec"), names)
        else:
            for line in text.splitlines():
                command = shlex.split(line)
                assert command[0] == "bayes-bench"
                arguments = [sys.executable, "-m", "bayes_bench", *command[1:]]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
