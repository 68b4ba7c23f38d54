import pytest
import torch

from bayes_bench import (
    DataError,
    DivergenceError,
    Examples,
    TensorState,
    TrainingLoop,
    UsageError,
    cosine_decay,
)


def counting_loop(budget, **options):
    loop = TrainingLoop(budget)
    state = TensorState({"w": torch.zeros(())})

    def step():
        state["w"] += 1
        return {"loss": torch.tensor(1.0)}

    loop.run(step, {"state": state}, **options)
    return loop, state


def test_the_budget_pays_for_steps_and_validations():
    loop, state = counting_loop(1000, cost=10, validate=lambda: {"val_nll": 1.0}, validation_cost=7, validations=4)
    assert loop.spent <= 1000
    assert loop.spent == 10 * loop.steps + 7 * len(loop.history)
    assert 1000 - loop.spent < 10 + 7
    assert state["w"] == loop.steps
    assert 4 <= len(loop.history) <= 5


@pytest.mark.parametrize("budget", range(40, 400, 17))
@pytest.mark.parametrize("validation_cost", [1, 7, 25])
def test_the_budget_is_never_exceeded(budget, validation_cost):
    options = {"cost": 10, "validation_cost": validation_cost, "validations": 20}
    loop, _ = counting_loop(budget, validate=lambda: {"val_nll": 1.0}, **options)
    assert loop.spent <= budget
    assert loop.history[-1]["evaluations"] + validation_cost == loop.spent
    assert (len(loop.history) - 1) * validation_cost <= 0.2 * budget


def test_without_validation_everything_goes_into_steps():
    loop, _ = counting_loop(1005, cost=10)
    assert (loop.steps, loop.spent) == (100, 1000)
    assert loop.summary(parameters_stored=0).unspent == 5


def test_a_part_of_a_fit_can_have_a_number_of_steps_and_leave_budget_for_the_next():
    seen = []
    loop, state = counting_loop(
        1000, cost=10, steps=20, leave=500, schedule=seen.append, validate=lambda: {"val_nll": 1.0}, validation_cost=7
    )
    assert (state["w"], len(loop.history)) == (20, 20)
    assert loop.spent == 20 * 10 + 20 * 7
    assert seen == [step / 20 for step in range(20)]  # progress is that of the steps, not of the budget
    loop.run(
        lambda: {"loss": torch.tensor(0.0)}, {}, cost=0, steps=5, validate=dict, validation_cost=100, validations=5
    )
    assert (loop.steps, loop.spent) == (25, 840)


def test_what_is_left_for_later_is_not_spent():
    loop, _ = counting_loop(1000, cost=10, leave=505)
    assert loop.spent == 490
    with pytest.raises(UsageError, match="at least 1,010 are needed"):
        counting_loop(1000, cost=10, leave=1000)


def test_a_budget_too_small_for_one_step_is_an_error():
    with pytest.raises(UsageError, match="at least 17"):
        counting_loop(16, cost=10, validate=lambda: {"val_nll": 1.0}, validation_cost=7)


def scores(values):
    iterator = iter(values)
    return lambda: {"val_nll": next(iterator)}


def test_keep_best_restores_the_best_snapshot():
    values = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    loop, state = counting_loop(100, cost=10, validate=scores(values), validations=5, keep_best=True)
    best = loop.history[1]["evaluations"]
    assert state["w"] == best / 10
    _, last = counting_loop(100, cost=10, validate=scores(values), validations=5, keep_best=False)
    assert last["w"] == 10


def test_patience_stops_early_and_leaves_the_rest_unspent():
    loop, _ = counting_loop(100, cost=1, validate=scores([3.0, 1.0] + [2.0] * 20), validations=20, patience=3)
    assert loop.stopped == "early"
    assert len(loop.history) == 5
    assert loop.summary(parameters_stored=0).unspent > 50


def test_divergence_is_noticed():
    loop = TrainingLoop(10_000)
    with pytest.raises(DivergenceError, match="loss is nan"):
        loop.run(lambda: {"loss": torch.tensor(float("nan"))}, {}, cost=1)


def test_divergence_in_the_last_steps_is_noticed():
    loop = TrainingLoop(3)
    with pytest.raises(DivergenceError):
        loop.run(lambda: {"loss": torch.tensor(float("inf"))}, {}, cost=1)


def test_progress_is_reported():
    seen = []

    class Recorder:
        def progress(self, spent, budget, values):
            seen.append((spent, budget, dict(values)))

    loop = TrainingLoop(120, Recorder())
    loop.run(lambda: {"loss": torch.tensor(2.0)}, {}, cost=1)
    assert [spent for spent, _, _ in seen] == [50, 100, 120]
    assert seen[0][1:] == (120, {"loss": 2.0})


def test_cosine_decay_goes_from_the_rate_to_its_floor():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    schedule = cosine_decay(optimizer, floor=0.5)
    rates = []
    for progress in (0.0, 0.5, 1.0):
        schedule(progress)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.4, 0.3, 0.2])


def generator():
    return torch.Generator().manual_seed(0)


def test_every_pass_visits_each_example_once():
    examples = Examples(torch.arange(10.0), torch.arange(10))
    batches = examples.minibatches(4, generator())
    seen = torch.cat([next(batches)[1] for _ in range(5)])
    assert seen[:10].sort().values.tolist() == list(range(10))
    assert seen[10:].sort().values.tolist() == list(range(10))


def test_every_network_has_its_own_order():
    examples = Examples(torch.arange(10.0), torch.arange(10))
    x, y = next(examples.minibatches(10, generator(), networks=3))
    assert x.shape == (3, 10)
    assert all(row.sort().values.tolist() == list(range(10)) for row in y)
    assert not torch.equal(y[0], y[1])
    assert torch.equal(x.long(), y)


def test_independent_batches_are_drawn_anew_with_replacement():
    batches = Examples(torch.arange(10.0), torch.arange(10)).minibatches(10, generator(), networks=2, independent=True)
    drawn = torch.stack([next(batches)[1] for _ in range(400)])
    assert drawn.shape == (400, 2, 10)
    assert (drawn[:, 0] != drawn[:, 1]).any()
    repeats = torch.tensor([len(batch.unique()) < 10 for batch in drawn.flatten(0, 1)])
    assert repeats.double().mean() > 0.99  # a permutation would be luck: 10!/10^10
    shares = drawn.flatten().bincount() / drawn.numel()
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=4 * (0.09 / drawn.numel()) ** 0.5, rtol=0)


def test_a_batch_larger_than_the_data_repeats_them():
    x, _ = next(Examples(torch.arange(3.0), torch.arange(3)).minibatches(7, generator()))
    assert sorted(x.tolist())[:6:2] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2), torch.zeros(3), "2 inputs but 3 targets"),
        (torch.zeros(0), torch.zeros(0), "no examples"),
        (torch.tensor([float("nan")]), torch.zeros(1), "inputs contain NaN"),
        (torch.zeros(1), torch.tensor([float("inf")]), "targets contain NaN"),
    ],
)
def test_bad_examples_are_refused(x, y, message):
    with pytest.raises(DataError, match=message):
        Examples(x, y)


def diverse_loop(diversities, key="disagreement_normalised", **options):
    """A loop whose validation likelihood is best at once; its validations report these diversities in turn."""
    rows = iter([{"val_nll": 1.0, key: value} for value in diversities])
    return counting_loop(1000, cost=10, validate=lambda: next(rows), validation_cost=1, **options)[0]


@pytest.mark.parametrize("key", ["disagreement_normalised", "epistemic_std"])
def test_patience_waits_until_diversity_has_fallen_by_its_share(key):
    loop = diverse_loop([0.5, 0.8, 0.7, 0.5, 0.39, 0.3], key, patience=2, diversity_fall=0.5)
    assert loop.stopped == "early"
    assert [row[key] for row in loop.history] == [0.5, 0.8, 0.7, 0.5, 0.39]


def test_without_a_fall_of_diversity_training_goes_on():
    loop = diverse_loop([0.5] * 21, patience=2, diversity_fall=0.1)
    assert loop.stopped == "budget"


def test_a_fall_of_diversity_alone_stops_nothing():
    rows = iter([{"val_nll": 1.0 / n, "disagreement_normalised": 1.0 / n} for n in range(1, 30)])
    loop, _ = counting_loop(
        1000, cost=10, validate=lambda: next(rows), validation_cost=1, patience=2, diversity_fall=0.5
    )
    assert loop.stopped == "budget"


def test_a_diversity_that_is_undefined_has_not_fallen():
    rows = iter([{"val_nll": 1.0, "disagreement_normalised": 0.8}, *({"val_nll": 1.0} for _ in range(30))])
    loop, _ = counting_loop(
        1000, cost=10, validate=lambda: next(rows), validation_cost=1, patience=2, diversity_fall=0.5
    )
    assert loop.stopped == "budget"
