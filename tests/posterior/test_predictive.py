import math

import pytest
import torch

from bayes_bench import UsageError, summarise_classes, summarise_values
from bayes_bench.posterior.predictive import ClassReducer, ValueReducer, log_mixture_nll


def test_by_hand():
    probs = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]], dtype=torch.float64)
    summary = summarise_classes(probs.log())
    torch.testing.assert_close(summary.mean, torch.full((2, 2), 0.5, dtype=torch.float64))
    assert summary.entropy.tolist() == pytest.approx([math.log(2)] * 2)
    # The first input divides the networks completely (ln S), the second leaves both undecided (0).
    assert summary.mutual_information.tolist() == pytest.approx([math.log(2), 0.0])
    assert summary.networks == 2


def test_probabilities_are_averaged_not_logits():
    logits = torch.tensor([[[10.0, 0.0]], [[0.0, 0.0]]])
    expected = (torch.softmax(logits[0].double(), -1) + 0.5) / 2
    torch.testing.assert_close(summarise_classes(logits.log_softmax(-1)).mean, expected, rtol=1e-6, atol=1e-8)


def test_mutual_information_is_never_negative():
    log_probs = torch.randn(1, 200, 10).log_softmax(-1).expand(30, -1, -1)
    information = summarise_classes(log_probs).mutual_information
    assert (information >= 0).all()
    assert information.max() < 1e-6


def test_mixture_moments():
    mean, noise = torch.randn(6, 5, 2), torch.rand(6, 5, 2) + 0.1
    summary = summarise_values(mean, noise)
    second = (noise.double() ** 2 + mean.double() ** 2).mean(0)
    torch.testing.assert_close(summary.variance, second - mean.double().mean(0) ** 2)
    alone = summarise_values(mean[:1], noise[:1])
    torch.testing.assert_close(alone.variance, noise[0].double() ** 2)  # one member: its own variance, squared


def test_mixture_nll_survives_improbable_targets():
    nll = torch.tensor([[2000.0, 1.0], [3000.0, 2.0]])
    found = log_mixture_nll(nll)
    assert found[0] == pytest.approx(2000 + math.log(2))
    assert found[1] == pytest.approx(-math.log((math.exp(-1) + math.exp(-2)) / 2))


@pytest.mark.parametrize("parts", [[1, 4, 2], [7], [1] * 7])
def test_networks_may_come_in_parts(parts):
    rng = torch.Generator().manual_seed(0)
    log_probs = torch.log_softmax(3 * torch.randn(7, 5, 4, generator=rng), -1)
    # Far from 0 and close together: summing squares in one pass would lose all digits of the variance.
    mean = 1e6 + torch.randn(7, 5, 2, generator=rng, dtype=torch.float64)
    noise = torch.rand(7, 5, 2, generator=rng)
    classes, values = ClassReducer(), ValueReducer()
    for part in log_probs.split(parts):
        classes.add(part)
    for own_mean, own_noise in zip(mean.split(parts), noise.split(parts), strict=True):
        values.add(own_mean, own_noise)
    found, expected = classes.result(), summarise_classes(log_probs)
    for name in ("mean", "entropy", "mutual_information"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    summary = values.result()
    torch.testing.assert_close(summary.mean, mean.mean(0))
    torch.testing.assert_close(summary.epistemic_variance, mean.var(0, correction=0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(summary.aleatoric_variance, (noise.double() ** 2).mean(0))
    assert found.networks == summary.networks == 7


def test_nothing_to_summarise_is_an_error():
    for reducer in (ClassReducer(), ValueReducer()):
        with pytest.raises(UsageError, match="no networks"):
            reducer.result()


def test_a_certain_network_has_no_entropy():
    log_probs = torch.tensor([[[0.0, -math.inf]]], dtype=torch.float64)
    summary = summarise_classes(log_probs)
    assert summary.entropy.tolist() == [0.0]
    assert summary.mutual_information.tolist() == [0.0]
    assert log_probs[0, 0, 1] == -math.inf, "the caller's tensor is not written to"
