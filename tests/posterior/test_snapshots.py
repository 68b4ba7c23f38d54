from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_bench import (
    Categorical,
    Examples,
    FitData,
    GaussianPrior,
    Stateful,
    TensorState,
    TrainingLoop,
    WeightPosterior,
)
from bayes_bench.errors import DataError
from bayes_bench.host.stopping import Stop
from bayes_bench.methods import registry
from bayes_bench.posterior.augmentation import Augmentation
from bayes_bench.posterior.snapshots import Snapshots, _pack, _read, _unpack
from bayes_bench.testing import classification, images, regression

IDENTITY = {"job": "a", "code": {"core": "1"}}


class Countdown(Stop):
    """Asks to stop after it has been looked at so many times."""

    def __init__(self, looks: float):
        super().__init__()
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def snapshots(folder: Path, looks: float = math.inf, every: float = 0.0, **changes: Any) -> Snapshots:
    return Snapshots(folder, IDENTITY, every=every, stop=Countdown(looks), **changes)


# Files ----------------------------------------------------------------------------------------------------

STATE = {
    "weights": {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3, dtype=torch.int64)},
    "optimizer": {"state": {0: {"step": torch.tensor(2.0)}, 1: {}}, "param_groups": [{"betas": (0.9, 0.999)}]},
    "numbers": [1, 2.5, True, None, "x", math.inf, -math.inf, math.nan, [], {}],
    "generator": torch.Generator().manual_seed(3).get_state(),
    "half": torch.ones(2, dtype=torch.bfloat16),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def test_a_nested_state_is_the_same_after_a_round_trip(tmp_path: Path) -> None:
    kept = snapshots(tmp_path / "s")
    kept.save(1, STATE)
    assert same(snapshots(tmp_path / "s").load(1), STATE)
    assert kept.load(2) is None
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["part-1.snapshot"]


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    said: list[str] = []
    kept = snapshots(tmp_path, tell=said.append)
    kept.save(1, {"weights": torch.arange(3.0), "n": 7})
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert kept.load(1) is None, position
    for cut in (0, 1, 64, 65, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        assert kept.load(1) is None, cut
    path.write_bytes(content + b"x")
    assert kept.load(1) is None
    assert len(said) == len(content) + 7
    assert all("is damaged" in sentence for sentence in said)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"state": {"magic": 1}},
        {"state": {"tensor": ["9", "cpu"]}},
        {"state": {"tensor": ["0", "cuda:9"]}},
        {"state": {}},
    ],
)
def test_what_has_a_right_checksum_and_a_wrong_content_is_not_used(tmp_path: Path, change: dict[str, Any]) -> None:
    import hashlib

    from safetensors.torch import save

    kept = snapshots(tmp_path)
    kept.save(1, {"n": torch.ones(1)})
    about, tensors = _read(tmp_path / "part-1.snapshot")
    content = save(tensors, {"bayes_bench": json.dumps(about | change)})
    (tmp_path / "part-1.snapshot").write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    assert kept.load(1) is None


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    snapshots(tmp_path).save(1, {"n": 1})
    (tmp_path / ".part-1.snapshot.0123abcd.tmp").write_bytes(b"half")
    snapshots(tmp_path).begin()
    assert [path.name for path in tmp_path.iterdir()] == ["part-1.snapshot"]


def test_a_snapshot_is_not_read_through_a_link(tmp_path: Path) -> None:
    snapshots(tmp_path).save(1, STATE)
    path = tmp_path / "part-1.snapshot"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    told: list[str] = []
    assert snapshots(tmp_path, tell=told.append).load(1) is None
    assert told == [
        f"does not use its snapshot: {path} is a symbolic link, which such a folder must not hold; remove it"
    ]


def test_a_snapshot_of_something_else_is_not_used(tmp_path: Path) -> None:
    snapshots(tmp_path).save(1, {"n": 1})
    said: list[str] = []
    assert Snapshots(tmp_path, IDENTITY | {"code": {"core": "2"}}, tell=said.append).load(1) is None
    assert said == ["does not use its snapshot, which is of other code"]


def test_a_folder_that_cannot_be_written_costs_the_snapshot_and_not_the_fit(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    kept = snapshots(tmp_path / "file", tell=said.append)
    kept.begin()
    kept.save(1, {"n": 1})
    kept.save(1, {"n": 2})
    assert len(said) == 1
    assert "has no new snapshot" in said[0]
    kept = snapshots(tmp_path / "s", tell=said.append)
    kept.save(1, {"n": {1, 2}})
    assert "cannot hold set" in said[1]
    kept = snapshots(tmp_path / "s", tell=said.append)
    kept.save(1, {"n": torch.ones(2, 2).to_sparse()})
    assert "has no new snapshot" in said[2]


def test_values_that_a_snapshot_cannot_hold_are_named() -> None:
    with pytest.raises(TypeError, match="cannot hold object"):
        _pack([object()], {})
    with pytest.raises(KeyError):
        _unpack({"unknown": 1}, {})
    with pytest.raises(DataError):
        _read(Path("nowhere"))


def test_time_between_snapshots_and_the_end_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bayes_bench.posterior import snapshots as module

    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    kept = snapshots(tmp_path, every=60.0)
    now[0] = 4.0
    assert not kept.worthwhile()
    now[0] = 6.0
    assert (kept.worthwhile(), kept.due()) == (True, False)
    now[0] = 60.0
    assert kept.due()
    save = module.safetensors_bytes

    def slow(*arguments: Any) -> bytes:
        now[0] += 3.0
        return save(*arguments)

    monkeypatch.setattr(module, "safetensors_bytes", slow)
    kept.save(1, {"n": 1})
    now[0] += 149.0
    assert not kept.due()  # fifty times as long as it took to write
    now[0] += 2.0
    assert kept.due()


# Fits -----------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "hypergan": {"networks": 2, "pretrain_steps": 10, "keep_best": True, "patience": 3},
    "hypergan-repulsion": {
        "networks": 2, "pretrain_steps": 10, "repulsion_weight": 0.3, "patience": 3, "diversity_fall": 0.05,
        "final_learning_rate": 1.0,
    },
    "map": {"keep_best": True},
    "ensemble": {"members": 2},
    "ensemble-adversarial": {"members": 2, "adversarial_epsilon": 0.01},
    "mcdropout": {},
    "mnf": {},
    "sgld": {"chains": 2, "samples": 20},
    "sgld-psgld": {"chains": 2, "samples": 20, "algorithm": "psgld", "batches": "independent"},
    "sgld-sghmc": {"chains": 2, "samples": 20, "algorithm": "sghmc", "schedule": "cyclical", "cycles": 2},
    "apd": {"chains": 2, "samples": 20, "student_steps": 30, "student_hidden": (8,), "critic_hidden": (8,)},
    "apd-online": {
        "chains": 2, "samples": 20, "buffer": 10, "student_steps": 30, "student_hidden": (8,), "critic_hidden": (8,),
        "training": "online",
    },
    "hmc": {"chains": 2, "samples": 20},
}  # fmt: skip


def build(name: str, kind: str = "classification") -> tuple[WeightPosterior, FitData, int]:
    problem = {"classification": classification, "regression": regression}.get(kind, images)()
    data = problem.data
    if kind == "augmented":
        data = replace(data, train=replace(data.train, augment=Augmentation(shift=1, flip=True)))
    method = name.partition("-")[0]
    config = registry.resolve_config(method, SETTINGS[name])
    posterior = registry.method_class(method)(problem.network, problem.likelihood, None, config)
    return posterior, data, 12_000


def fitted(name: str, kind: str, kept: Snapshots | None) -> tuple[dict[str, Tensor], Any]:
    posterior, data, budget = build(name, kind)
    summary = posterior.fit(data, budget=budget, seed=5, snapshots=kept)
    return posterior.sample(20, seed=1), summary


CASES = [(name, kind) for name in SETTINGS for kind in ("classification", "regression")]


@pytest.mark.parametrize(("name", "kind"), [*CASES, ("map", "augmented"), ("hypergan-repulsion", "augmented")])
def test_an_interrupted_fit_ends_with_the_same_networks(tmp_path: Path, name: str, kind: str) -> None:
    expected, straight = fitted(name, kind, None)
    untouched, summary = fitted(name, kind, snapshots(tmp_path / "every-step"))
    assert all(torch.equal(untouched[key], value) for key, value in expected.items())
    chance = random.Random(name + kind)
    interruptions = 0
    for _ in range(500):
        looks = chance.choice([0, 1, 3, 10, 40])
        try:
            resumed, summary = fitted(name, kind, snapshots(tmp_path / "s", looks, every=chance.choice([0.0, 1e9])))
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions > 1
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())
    # With several parts, one may be interrupted again in a part that is done again for the sake of the next.
    several = name.startswith(("apd", "hmc"))
    assert summary.interruptions == interruptions or (several and 0 < summary.interruptions < interruptions)
    different = ("seconds", "interruptions")
    assert {k: v for k, v in vars(summary).items() if k not in different} == {
        k: v for k, v in vars(straight).items() if k not in different
    }


def test_a_folder_is_enough(tmp_path: Path) -> None:
    posterior, data, budget = build("map")
    posterior.fit(data, budget=budget, seed=5, snapshots=tmp_path)
    first = posterior.state_dict()
    assert posterior.fit(data, budget=budget, seed=5, snapshots=tmp_path).interruptions == 0  # too short for snapshots
    for name, value in posterior.state_dict().items():
        assert torch.equal(value, first[name])


def test_a_folder_of_another_fit_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayes_bench.posterior.snapshots.WORTHWHILE", 0.0)  # the end of every fit leaves a snapshot
    _, data, budget = build("map")
    moved = FitData(Examples(data.train.x + 1, data.train.y), data.validation)

    def interruptions(data: FitData, prior: GaussianPrior | None = None, shift: float = 0.0) -> int:
        posterior, _, _ = build("map")
        network = posterior.network
        with torch.no_grad():
            next(network.parameters()).add_(shift)
        posterior = type(posterior)(network, posterior.likelihood, prior, posterior.config)
        return posterior.fit(data, budget=budget, seed=5, snapshots=tmp_path).interruptions

    interruptions(data)
    assert interruptions(data) == 1
    assert interruptions(moved) == 0
    assert interruptions(moved, GaussianPrior(0.5)) == 0
    assert interruptions(moved, GaussianPrior(0.5), shift=1.0) == 0


def test_a_snapshot_that_does_not_fit_the_method_is_left_aside(tmp_path: Path) -> None:
    expected, _ = fitted("map", "classification", None)
    with pytest.raises(KeyboardInterrupt):
        fitted("map", "classification", snapshots(tmp_path, looks=5))
    kept = snapshots(tmp_path)
    stored = kept.load(1)
    assert stored is not None
    stored["state"]["members"].pop("0.weight", None) or stored["state"]["members"].popitem()
    kept.save(1, stored)
    said: list[str] = []
    resumed, summary = fitted("map", "classification", snapshots(tmp_path, every=1e9, tell=said.append))
    assert summary.interruptions == 0
    assert said == ["starts again: its snapshot is not one of this fit"]
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())


def test_other_threads_after_an_interruption_are_noted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fitted("map", "classification", snapshots(tmp_path, looks=5))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        _, summary = fitted("map", "classification", snapshots(tmp_path))
    finally:
        torch.set_num_threads(before)
    sentence = f"begun with {before} CPU threads and went on with {before + 1}: the last digits depend on that"
    assert sentence in summary.notes


def test_the_time_before_an_interruption_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bayes_bench.posterior.training import time

    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def step() -> dict[str, Tensor]:
        now[0] += 1.0
        return {"loss": torch.zeros(())}

    state = {"w": TensorState({"w": torch.zeros(1)})}
    loop = TrainingLoop(10, snapshots=snapshots(tmp_path, looks=3))
    with pytest.raises(KeyboardInterrupt):
        loop.run(step, state, cost=1)
    now[0] = 1000.0
    loop = TrainingLoop(10, snapshots=snapshots(tmp_path))
    now[0] += 50.0  # what comes before the loop is done again, and not counted twice
    loop.run(step, state, cost=1)
    assert loop.seconds == 10.0


def test_a_step_may_report_tensors_that_have_gradients(tmp_path: Path) -> None:
    weights = nn.Linear(2, 1)
    loop = TrainingLoop(3, snapshots=snapshots(tmp_path))
    loop.run(lambda: {"loss": weights(torch.ones(2)).sum()}, {"weights": weights}, cost=1)
    assert loop.steps == 3


def test_without_state_a_part_starts_again_and_says_so(tmp_path: Path) -> None:
    def run(looks: float, said: list[str]) -> TrainingLoop:
        kept = snapshots(tmp_path / "s", looks, tell=said.append)
        kept.begin()
        loop = TrainingLoop(10, snapshots=kept)
        loop.run(lambda: {"loss": torch.zeros(())}, {}, cost=1)
        return loop

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(5, said)
    assert said == []
    assert run(math.inf, said).steps == 10
    assert said == ["was interrupted before its first snapshot and starts again"]


def test_attributes_of_an_object_are_its_state() -> None:
    class Counter(Stateful):
        STATE = ("n", "seen")

        def __init__(self) -> None:
            self.n, self.seen, self.other = 0, {"x": torch.zeros(2)}, 0

    one, other = Counter(), Counter()
    one.n, one.seen, one.other = 3, {"x": torch.ones(2)}, 9
    other.load_state_dict(one.state_dict())
    assert (other.n, other.other) == (3, 0)
    assert torch.equal(other.seen["x"], torch.ones(2))


def test_a_method_is_not_asked_twice_for_data_it_cannot_use(tmp_path: Path) -> None:
    posterior = registry.method_class("map")(nn.Linear(2, 3), Categorical(3))
    with pytest.raises(DataError):
        posterior.fit((torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)), budget=10, snapshots=tmp_path / "s")
    assert not (tmp_path / "s").exists()
