"""Random and hostile content, for the tests of whatever is read."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

import bad_inputs

FACTOR = int(os.environ.get("BAYES_BENCH_FUZZ", "1"))


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),  # shrinking a whole page would take minutes
        suppress_health_check=list(HealthCheck),
    )


TEXTS = st.text(max_size=12)


NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(-(2**70), 2**70))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def mutated(draw: Any, good: Any) -> Any:
    """A copy with one to three values replaced, removed, or put where none was."""
    content = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        paths = list(bad_inputs.nodes(content))
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        value = draw(JSON)
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.integers(0, 5)):
            case 0:
                del parent[path[-1]]
            case 1 if isinstance(parent, dict):
                parent[draw(TEXTS)] = value
            case 2 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[path[-1]]))
            case _:
                parent[path[-1]] = value
    return content


def forge(path: Path, content: Any) -> None:
    """A file whose checksum matches, with values that ``write_checked`` would not write."""
    import hashlib

    text = json.dumps({**content, "checksum": 64 * "0"}, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(text.replace(f'"checksum": "{64 * "0"}"', f'"checksum": "{digest}"'))
