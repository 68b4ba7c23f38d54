"""APD: the student's view of weights, its critic's loss, and how near the student comes to its teacher."""

import pytest
import torch
from torch import nn

from bayes_bench import Examples, FitData, Gaussian, GaussianPrior, UsageError
from bayes_bench.testing import CHECKS, LinearRegression, classification, regression
from bayes_bench_baselines.distillation.apd import APD, Critic, Distillation, View
from bayes_bench_baselines.distillation.config import APDConfig


def networks(n=40, size=200, seed=0):
    """Vectors of very different scales, one coordinate of which never moves."""
    rng = torch.Generator().manual_seed(seed)
    vectors = 3 + torch.randn(n, size, generator=rng) * torch.logspace(-3, 2, size)
    vectors[:, 7] = 5.0
    return vectors


def distances(vectors):
    return torch.cdist(vectors.double(), vectors.double(), compute_mode="donot_use_mm_for_euclid_dist")


# The view ---------------------------------------------------------------------------------------------------


def test_coordinates_keep_all_distances_between_standardised_networks():
    vectors = networks()
    plain, rotated = View.of(vectors, rotate=False), View.of(vectors)
    assert rotated.basis is not None
    assert rotated.basis.shape == (39, 200)  # 40 centred vectors span 39 dimensions
    torch.testing.assert_close(rotated.basis @ rotated.basis.T, torch.eye(39), atol=1e-4, rtol=0)
    standardised = plain.coordinates(vectors)
    assert torch.isfinite(standardised).all()
    torch.testing.assert_close(standardised.mean(0), torch.zeros(200), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        distances(rotated.coordinates(vectors)), distances(standardised), rtol=1e-3, atol=1e-3, check_dtype=False
    )


def test_a_rotation_that_would_save_nothing_is_left_out():
    assert View.of(networks(n=300)).basis is None


def test_the_kept_student_is_the_trained_one_rotated_back():
    vectors = networks()
    view = View.of(vectors)
    pool = view.coordinates(vectors)
    rng = torch.Generator().manual_seed(0)
    distillation = Distillation(APDConfig(student_hidden=(16, 16), critic_hidden=(16,)), pool, rng)
    for _ in range(3):
        distillation.step(pool)
    student = distillation.student(view)
    noise = torch.randn(20, 32, generator=rng)
    drawn = student(noise)
    torch.testing.assert_close(view.coordinates(drawn), distillation._average(noise), rtol=1e-3, atol=1e-3)
    # It stays in the span of the teacher's networks, and where the teacher never moves it does not either.
    assert (drawn[:, 7] == 5.0).all()
    back = view.mean + view.std * (view.coordinates(drawn) @ view.basis)
    torch.testing.assert_close(drawn, back, rtol=1e-3, atol=1e-3)


def test_the_student_starts_with_the_teachers_spread():
    pool = torch.randn(500, 30, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 30)
    rng = torch.Generator().manual_seed(1)
    distillation = Distillation(APDConfig(), pool, rng)
    drawn = distillation._body(torch.randn(4000, 32, generator=rng)).detach()
    torch.testing.assert_close(drawn.std(0) / pool.std(0), torch.ones(30), atol=0.15, rtol=0)
    assert (drawn.mean(0) / pool.std(0)).abs().max() < 0.15


# The critic -------------------------------------------------------------------------------------------------


def test_the_critics_loss_is_that_of_the_paper():
    """The gradient penalty by plain differentiation at the points in between, values and gradients alike."""
    rng = torch.Generator().manual_seed(0)
    critic = Critic(12, (9, 8, 7)).double()
    real, fake = (torch.randn(5, 12, generator=rng, dtype=torch.float64) for _ in range(2))
    between = torch.rand(5, 1, generator=rng, dtype=torch.float64)
    points = (between * real + (1 - between) * fake).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    expected = critic(fake).mean() - critic(real).mean() + 10 * ((slopes.norm(dim=1) - 1) ** 2).mean()
    found = critic.loss(real, fake, between, 10.0)
    torch.testing.assert_close(found, expected)
    parameters = list(critic.parameters())[:-1]  # the last bias has no part in it
    for one, other in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other)


# Distillation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", ["offline", pytest.param("online", marks=pytest.mark.slow)])
def test_the_student_has_its_teachers_moments(training):
    problem = LinearRegression.make(2, examples=100, correlation=0.5)
    settings = {"step_size": 0.02, "chains": 20, "batch_size": 100, "samples": 4000, "buffer": 2000}
    settings |= {"student_learning_rate": 3e-3, "gradient_penalty": 1.0, "student_batch": 256, "student_steps": 1500}
    settings |= {"student_average": 0.998}
    posterior = problem.build(APD, APDConfig(training=training, **settings))
    kept = []
    report = posterior._report_gap
    posterior._report_gap = lambda teacher, *rest: (kept.append(teacher.clone()), report(teacher, *rest))
    posterior.fit(problem.data, budget=20 * 100 * 2500)
    teacher = kept[0].double()
    student = torch.as_tensor(problem.vectors(posterior.sample(5000, seed=0)))
    error = (student.mean(0) - teacher.mean(0)) / teacher.std(0)
    assert error.abs().max() < 0.1
    difference = torch.cov(student.T) - torch.cov(teacher.T)
    assert torch.linalg.norm(difference) < 0.15 * torch.linalg.norm(torch.cov(teacher.T))


@pytest.mark.parametrize("training", ["offline", "online"])
def test_the_record_compares_student_and_teacher(training):
    problem = classification()
    settings = APDConfig(training=training, samples=200, buffer=50, student_steps=60)
    posterior = APD(problem.network, problem.likelihood, GaussianPrior(), settings)
    summary = posterior.fit(problem.data, budget=30_000)
    assert summary.spent <= 30_000
    for name in ("accuracy", "nll", "entropy", "disagreement", "weight_spread"):
        assert {f"teacher_{name}", f"student_{name}"} <= set(summary.diagnostics)
    assert "temperature_excess" in summary.diagnostics
    assert 0 < summary.diagnostics["projected_ks"] < (0.5 if training == "offline" else 1)
    assert posterior.support is None
    if training == "offline":
        assert "rhat_predictions" in summary.diagnostics
        assert len([row for row in summary.history if "critic_loss" in row]) == 5


def test_online_the_buffer_holds_the_latest_networks():
    problem = classification()
    settings = APDConfig(training="online", samples=203, chains=1, buffer=50, student_steps=3)
    posterior = APD(problem.network, problem.likelihood, GaussianPrior(), settings)
    pushed, kept = [], []
    flatten, report = posterior._flatten, posterior._report_gap
    posterior._flatten = lambda weights: (pushed.append(flatten(weights).clone()), pushed[-1])[1]
    posterior._report_gap = lambda teacher, *rest: kept.append((teacher.clone(), len(pushed)))
    posterior.fit(problem.data, budget=30_000)
    (teacher, count), networks = kept[0], torch.cat(pushed)
    assert count == 203
    torch.testing.assert_close(teacher.sort(0).values, networks[153:203].sort(0).values, rtol=0, atol=0)
    posterior._report_gap = report


@pytest.mark.parametrize("training", ["offline", "online"])
def test_learning_rates_fall_to_zero(training):
    problem = classification()
    settings = APDConfig(training=training, samples=100, buffer=50, student_steps=40)
    posterior = APD(problem.network, problem.likelihood, GaussianPrior(), settings)
    started = []
    start = posterior._start_distillation
    posterior._start_distillation = lambda *rest: (started.append(start(*rest)), started[-1])[1]
    posterior.fit(problem.data, budget=30_000)
    (distillation,) = started
    for optimizer in distillation._optimizers:
        assert optimizer.param_groups[0]["lr"] < 0.01 * settings.student_learning_rate


def test_nothing_of_the_untrained_student_is_kept():
    pool = networks(n=60, size=20)
    distillation = Distillation(APDConfig(student_average=0.999), pool, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in distillation._average.parameters():
            parameter.fill_(1e6)
    for _ in range(300):
        distillation._update_average()
    for average, parameter in zip(distillation._average.parameters(), distillation._body.parameters(), strict=True):
        torch.testing.assert_close(average, parameter, atol=1e-3, rtol=0)


def test_networks_of_double_precision():
    problem = classification()
    data = FitData(Examples(problem.data.train.x.double(), problem.data.train.y))
    settings = APDConfig(samples=100, student_steps=20)
    posterior = APD(problem.network.double(), problem.likelihood, GaussianPrior(), settings)
    posterior.fit(data, budget=20_000)
    assert posterior.sample(2, seed=0)["1.weight"].dtype == torch.float64


def test_a_budget_that_validations_use_up_is_named_as_the_user_gave_it():
    problem = classification()
    posterior = APD(problem.network, problem.likelihood)
    with pytest.raises(UsageError, match=r"^50 gradient evaluations, less .* for validations, pay for 0 steps"):
        posterior.fit(problem.data, budget=50)


def test_regression_without_validation_data_is_compared_on_the_training_data():
    problem = regression()
    posterior = APD(problem.network, problem.likelihood, GaussianPrior(), APDConfig(samples=100, student_steps=30))
    summary = posterior.fit(FitData(problem.data.train), budget=20_000)
    assert {"teacher_rmse", "student_rmse"} <= set(summary.diagnostics)


def test_a_buffer_larger_than_the_chain_is_refused_before_training():
    posterior = APD(nn.Linear(1, 1), Gaussian(1.0), config=APDConfig(training="online", samples=100, buffer=101))
    with pytest.raises(UsageError, match="a buffer of 101 networks is larger than the chain of 100; lower buffer"):
        posterior.fit(FitData(Examples(torch.randn(100, 1), torch.randn(100, 1))), budget=100_000)


def test_a_buffer_that_the_budget_does_not_fill_is_refused_before_training():
    problem = classification()
    posterior = APD(problem.network, problem.likelihood, config=APDConfig(training="online", buffer=500))
    with pytest.raises(UsageError, match=r"larger than the \d+ that 10,000 gradient evaluations let the chains store"):
        posterior.fit(problem.data, budget=10_000)


def test_a_generator_larger_than_memory_is_refused_before_training():
    posterior = APD(nn.Linear(1000, 1000), Gaussian(1.0, 1000), config=APDConfig(student_hidden=(10**8,)))
    with pytest.raises(UsageError, match=r"100,000,100 units of student and critic .*lower student_hidden"):
        posterior.fit(FitData(Examples(torch.randn(4, 1000), torch.randn(4, 1000))), budget=10**9)


class OnlineConfig(APDConfig):
    """Online by default, for the kit."""

    training: str = "online"
    samples: int = 100
    buffer: int = 50
    student_steps: int = 50


class Online(APD):
    Config = OnlineConfig


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance_online(check):
    if check.__name__ == "check_settings_are_documented":
        return  # the class above has no use for descriptions
    check(Online)
