"""Ranks across tasks: against published tables and by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from bayes_bench.analysis.ranking import MIN_SEEDS, MIN_TASKS, nemenyi, ranking

# Demšar (2006), table 5 (a): critical values of the two-tailed Nemenyi test at 0.05.
CRITICAL = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


def frame_of(values: dict[tuple[str, int, str], float], higher: bool = False) -> pd.DataFrame:
    rows = [("s", task, method, seed, "nll", value, higher) for (task, seed, method), value in values.items()]
    return pd.DataFrame(rows, columns=["suite", "task", "method", "seed", "metric", "value", "higher_is_better"])


def test_too_few_tasks_and_seeds_are_not_ranked() -> None:
    found = ranking(frame_of({(t, s, m): s + len(m) for t in ("x", "y") for s in range(3) for m in ("a", "bb")}))
    assert found.table.empty
    assert not found.tested
    assert "2 tasks and 3 seeds" in found.declined
    one = ranking(frame_of({("x", s, "a"): 1.0 for s in range(9)}))
    assert "fewer than two methods" in one.declined


def test_seeds_of_few_tasks_are_ranked_but_not_tested() -> None:
    values = {(t, s, m): s + len(m) for t in ("x", "y") for s in range(MIN_SEEDS) for m in ("a", "bb", "cc")}
    found = ranking(frame_of(values))
    assert found.declined == ""
    assert found.table[["method", "rank", "blocks"]].to_numpy().tolist() == [
        ["a", 1, 10],
        ["bb", 2.5, 10],
        ["cc", 2.5, 10],
    ]
    assert found.over == "10 results (seeds of 2 tasks)"
    assert not found.tested
    assert math.isnan(found.critical_difference)
    assert found.groups == ()


def test_only_what_all_methods_finished_counts() -> None:
    values = {("x", s, m): s + len(m) for s in range(6) for m in ("a", "bb")}
    del values["x", 5, "a"]
    assert ranking(frame_of(values)).table["blocks"].tolist() == [5, 5]


@pytest.mark.parametrize(("methods", "critical"), CRITICAL.items())
def test_critical_differences_are_those_of_the_published_table(methods: int, critical: float) -> None:
    assert nemenyi(methods, 1) == pytest.approx(critical * math.sqrt(methods * (methods + 1) / 6), rel=5e-4)
    assert nemenyi(methods, 100) == pytest.approx(nemenyi(methods, 1) / 10)


def test_the_example_of_the_publication() -> None:
    """Section 3.2.3: four classifiers on 14 data sets."""
    assert nemenyi(4, 14) == pytest.approx(1.25, abs=0.005)


def clear(tasks: int) -> dict[tuple[str, int, str], float]:
    rng = np.random.default_rng(0)
    return {
        (f"t{t}", s, m): level + rng.normal(0, 0.01) + (0.5 * rng.normal() if m in ("c", "d") else 0)
        for t in range(tasks)
        for s in range(2)
        for m, level in (("a", 1.0), ("b", 2.0), ("c", 9.0), ("d", 9.0))
    }


def test_groups_join_what_cannot_be_told_apart() -> None:
    found = ranking(frame_of(clear(30)))
    assert found.over == "30 tasks"
    assert found.groups == (("c", "d"),) or found.groups == (("d", "c"),)
    few = ranking(frame_of(clear(MIN_TASKS)))
    assert few.tested
    assert few.p_value < 0.05
    assert len(few.groups) == 2


def test_equal_methods_are_one_group() -> None:
    same = ranking(frame_of({(f"t{t}", 0, m): float(t) for t in range(8) for m in "abc"}))
    assert same.p_value == 1
    assert same.groups == (("a", "b", "c"),)


def test_two_methods_are_compared_by_signs() -> None:
    values = {(f"t{t}", 0, m): t + (0.1 + 0.01 * t) * (m == "b") for t in range(12) for m in "ab"}
    found = ranking(frame_of(values))
    assert (found.test, found.p_value) == ("Sign test", pytest.approx(2 / 2**12))
    assert math.isnan(found.critical_difference)
    assert found.groups == ()
    values |= {(f"t{t}", 0, "b"): t - 1.0 for t in range(5)}
    assert ranking(frame_of(values)).groups == (("a", "b"),)


def test_the_same_data_at_other_budgets_are_one_task() -> None:
    values = clear(8)
    data = {f"t{t}": "digits" for t in range(5)}
    found = ranking(frame_of(values), data=data)
    assert found.tasks == 4
    assert not found.tested
    assert "4 tasks and 2 seeds" in found.declined
    more = ranking(frame_of(clear(12)), data=data)
    assert more.tasks == 8
    assert set(more.table["blocks"]) == {8}


def test_a_method_of_one_task_is_left_out_and_named() -> None:
    values = clear(8) | {("t0", 0, "rare"): 0.0, ("t0", 1, "rare"): 0.0}
    found = ranking(frame_of(values))
    assert found.left_out == ("rare",)
    assert found.tasks == 8
    assert "rare" not in set(found.table["method"])


def test_the_test_has_its_level() -> None:
    """Of 400 draws without any difference about 5 % are called different; the standard error is 1.1 %."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(400):
        draws = rng.normal(size=(7, 6))
        values = {(f"t{t}", 0, f"m{m}"): draws[t, m] for t in range(7) for m in range(6)}
        alarms += ranking(frame_of(values)).p_value < 0.05
    assert alarms / 400 == pytest.approx(0.05, abs=4 * 0.011)
