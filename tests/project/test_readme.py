"""What the README says is what works."""

import re

import pytest

from places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(snippet):
    exec(compile(snippet, "README.md", "exec"), {})


def test_there_is_a_snippet_of_ten_lines():
    lines = [line for line in SNIPPETS[0].splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10


def test_the_two_commands_are_there_and_ci_runs_the_second():
    assert "pip install . && bayes-bench run --methods hypergan,mcdropout" in README
    assert "pip install -e '.[test]' && pytest" in README
    assert "-e '.[test]' && pytest" in (ROOT / ".ci" / "run").read_text()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
