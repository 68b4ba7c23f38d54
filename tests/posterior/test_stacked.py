"""Stacked evaluation equals the plain loop over ``functional_call``, forward and backward, for every layer type."""

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn
from torch.func import functional_call

from bayes_bench import InputScaled, StackedNetwork, UsageError
from bayes_bench.networks import convnet, mlp, resnet
from bayes_bench.posterior.stacked.blocks import EXAMPLES, Blocks, choose_blocks


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x):
        h = F.relu(self.first(x))
        h = h + torch.tanh(self.second(h)) * 0.5
        return torch.cat([h, self.first(x)], dim=1)


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(12, 2)

    def forward(self, x):
        h = F.max_pool2d(F.leaky_relu(self.conv(x), 0.1), 2)
        return self.head(h.view(h.size(0), -1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).relu())


class Direct(nn.Module):
    """Uses a parameter outside a layer: no stacked rule, so the fallback must serve."""

    def __init__(self):
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(3)), nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) * self.scale


class Branching(nn.Module):
    """Python control flow on values: neither traceable nor mappable, so the loop must serve."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        out = self.layer(x)
        return out if out.sum() > 0 else -out


class SizeArithmetic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(48, 2)

    def forward(self, x):
        h = self.conv(x)
        return self.head(h.view(h.size(0), h.size(1) * h.size(2) * h.size(3)))


class InPlaceOfABranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        h = self.layer(x)
        return F.relu(h.flatten(1), inplace=True) + h  # twice the activation: h was overwritten through its view


class JoinsExamples(nn.Module):
    """No function of one example at a time, and traceable only in part: nobody may cut the batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        h = self.layer(x)
        return h - h.mean(0)


class Keywords(nn.Module):
    """Spellings that the plan does not know must fall back, not crash."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        h = self.layer(x)
        return torch.cat([h, h], axis=1)


PLANNED = {
    "sizes multiplied": (SizeArithmetic(), (2, 6, 6)),
    "linear": (nn.Linear(4, 3), (4,)),
    "linear without bias": (nn.Linear(4, 3, bias=False), (4,)),
    "linear on sequences": (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (5, 4)),
    "mlp": (mlp(4, [8, 7], 3), (4,)),
    "convnet": (convnet((1, 12, 12), [3, 4], 5, kernel=3), (1, 12, 12)),
    "conv2d options": (
        nn.Sequential(nn.Conv2d(4, 8, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=2), nn.SiLU()),
        (4, 9, 9),
    ),
    "conv2d same padding, no bias": (nn.Conv2d(2, 3, 3, padding="same", bias=False), (2, 6, 6)),
    "conv1d": (
        nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.GELU(), nn.AvgPool1d(2), nn.Flatten()),
        (3, 8),
    ),
    "conv3d": (nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(2 * 27, 2)), (1, 4, 4, 4)),
    "grouped second convolution": (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4)),
        (2, 7, 7),
    ),
    "pools": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.MaxPool2d(2),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 2, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        (1, 14, 14),
    ),
    "layer norm": (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2)), (4,)),
    "layer norm first": (nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 2)), (3, 4)),
    "group norm": (nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.ELU(), nn.Flatten()), (2, 5, 5)),
    "group norm first": (nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3), nn.Flatten()), (4, 5, 5)),
    "layer norm without affine": (
        nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)),
        (4,),
    ),
    "dropout in evaluation mode": (nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 2)), (4,)),
    "resnet": (resnet((3, 8, 8), 5, width=8, stages=2), (3, 8, 8)),
    "residual and concatenation": (Residual(), (4,)),
    "views and functions": (Views(), (2, 6, 6)),
    "tied weights": (Tied(), (4,)),
    "in-place activations": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2)),
        (1, 8, 8),
    ),
}
FALLBACKS = {
    "keyword spelling": (Keywords(), (4,)),
    "pooling without channels": (nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(3, 1, 1), nn.Linear(4, 2)), (4,)),
    "direct parameter": (Direct(), (4,)),
    "examples joined": (JoinsExamples(), (4,)),
    "in-place activation of what is read again": (InPlaceOfABranch(), (4,)),
    "circular padding": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "softmax": (nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=-1)), (4,)),
    "value-dependent branch": (Branching(), (4,)),
}


def draw(network, networks, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        name: (0.4 * torch.randn(networks, *p.shape, generator=rng)).requires_grad_()
        for name, p in network.named_parameters()
    }


def looped(network, weights, x, own_inputs):
    networks = next(iter(weights.values())).shape[0]
    return torch.stack(
        [
            functional_call(network, {name: w[s] for name, w in weights.items()}, (x[s] if own_inputs else x,))
            for s in range(networks)
        ]
    )


@pytest.mark.parametrize("memory_limit", [2**30, 3000], ids=["whole", "in chunks"])
@pytest.mark.parametrize("own_inputs", [False, True], ids=["shared inputs", "own inputs"])
@pytest.mark.parametrize("networks", [1, 5])
@pytest.mark.parametrize(("network", "shape"), (PLANNED | FALLBACKS).values(), ids=(PLANNED | FALLBACKS).keys())
def test_equals_the_loop_forward_and_backward(network, shape, networks, own_inputs, memory_limit):
    network = network.eval()
    weights = draw(network, networks)
    x = torch.randn(*([networks] if own_inputs else []), 6, *shape, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    leaves = [*weights.values(), x]
    expected = looped(network, weights, x, own_inputs)
    stacked = StackedNetwork(network)
    with torch.no_grad():
        torch.testing.assert_close(
            stacked(weights, x, own_inputs=own_inputs, memory_limit=memory_limit),
            expected,
            rtol=1e-4,
            atol=1e-5,
        )
    found = stacked(weights, x, own_inputs=own_inputs, memory_limit=memory_limit)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad((found * probe).sum(), leaves)
    references = torch.autograd.grad((expected * probe).sum(), leaves)
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PLANNED)
def test_supported_layers_are_planned(name):
    stacked = StackedNetwork(PLANNED[name][0].eval())
    assert stacked.method == "plan", stacked.reason
    assert stacked.explain().startswith("plan:")


@pytest.mark.parametrize("name", FALLBACKS)
def test_unsupported_layers_say_why(name):
    network, shape = FALLBACKS[name]
    stacked = StackedNetwork(network.eval())
    stacked(draw(network, 2), torch.randn(3, *shape))
    assert stacked.method == ("loop" if isinstance(network, Branching) else "vmap")
    assert stacked.reason


def test_a_network_that_joins_examples_gets_them_all():
    network = JoinsExamples().eval()
    weights, x = draw(network, 3), torch.randn(300, 4)
    with torch.no_grad():
        found = StackedNetwork(network)(weights, x, memory_limit=1000)
    torch.testing.assert_close(found, looped(network, weights, x, False))


def test_hooks_are_not_lost():
    network = nn.Sequential(nn.Linear(4, 3)).eval()
    network[0].register_forward_hook(lambda module, inputs, output: output * 2)
    weights, x = draw(network, 3), torch.randn(2, 4)
    torch.testing.assert_close(StackedNetwork(network)(weights, x), looped(network, weights, x, False))


def test_a_subclass_of_a_known_layer_is_not_taken_for_it():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    network = nn.Sequential(Doubled(4, 3)).eval()
    weights, x = draw(network, 3), torch.randn(2, 4)
    torch.testing.assert_close(StackedNetwork(network)(weights, x), looped(network, weights, x, False))


@pytest.mark.parametrize("memory_limit", [2**30, 3000])
def test_expanded_weights_are_recognised_as_shared(memory_limit):
    network, shape = convnet((1, 8, 8), [3, 4], 5, kernel=3, padding=1).eval(), (1, 8, 8)
    weights = {name: w.detach() for name, w in draw(network, 6).items()}
    last = [name for name in weights if name.endswith("weight")][-1]
    mixed = {name: w if name == last else w[:1].expand_as(w) for name, w in weights.items()}
    x = torch.randn(7, *shape)
    calls = []
    original = F.conv2d

    def counting(*args, **kwargs):
        calls.append(kwargs.get("groups", 1))
        return original(*args, **kwargs)

    stacked = StackedNetwork(network)
    stacked(mixed, x)  # sizes are measured on the first call
    F.conv2d = counting
    try:
        found = stacked(mixed, x, memory_limit=memory_limit)
    finally:
        F.conv2d = original
    torch.testing.assert_close(found, looped(network, mixed, x, False), rtol=1e-4, atol=1e-5)
    rows = 1 if memory_limit == 2**30 else len(x)
    assert calls == [1] * len(calls), "shared convolutions must not be grouped"
    assert len(calls) <= 2 * rows, "the shared prefix must be computed once, not once for every chunk of networks"


@pytest.mark.parametrize("name", ["linear", "softmax"])
def test_a_callers_mistake_changes_no_plan(name):
    network, shape = (PLANNED | FALLBACKS)[name]
    stacked = StackedNetwork(network.eval())
    before, weights = stacked.method, draw(network, 3)
    with pytest.raises(RuntimeError):
        stacked(weights, torch.randn(2, shape[0] + 1))
    assert stacked.method == before
    torch.testing.assert_close(
        stacked(weights, torch.ones(2, *shape)), looped(network, weights, torch.ones(2, *shape), False)
    )


@pytest.mark.parametrize(
    ("network", "good", "bad"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(4), nn.Flatten()), (2, 1, 8, 8), (2, 1, 2, 2)),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)), (2, 1, 6, 6), (5, 6, 6)),
    ],
    ids=["too small to pool", "no channels"],
)
def test_inputs_that_the_network_itself_refuses(network, good, bad):
    network = network.eval()
    stacked, weights = StackedNetwork(network), draw(network, 3)
    with pytest.raises(RuntimeError) as own:
        network(torch.zeros(*bad))
    with pytest.raises(RuntimeError) as found:
        stacked(weights, torch.zeros(*bad))
    assert str(found.value).splitlines()[0] == str(own.value).splitlines()[0]
    assert stacked.method == "plan"
    stacked(weights, torch.zeros(*good))


def test_missing_or_misshapen_weights_are_errors():
    network = mlp(4, [3], 2).eval()
    stacked, weights, x = StackedNetwork(network), draw(network, 3), torch.randn(2, 4)
    missing = dict(weights)
    missing["1.wieght"] = missing.pop("1.weight")
    with pytest.raises(UsageError, match=r"1\.weight"):
        stacked(missing, x)
    with pytest.raises(UsageError, match="shape"):
        stacked(weights | {"1.bias": torch.zeros(3, 9)}, x)
    with pytest.raises(UsageError, match="own_inputs"):
        stacked(weights, torch.randn(2, 5, 4), own_inputs=True)
    assert stacked(weights, torch.randn(0, 4)).shape == (3, 0, 2)
    assert stacked(weights, torch.randn(3, 0, 4), own_inputs=True).shape == (3, 0, 2)
    with pytest.raises(UsageError, match="no networks"):
        stacked({name: w[:0] for name, w in weights.items()}, x)


def test_the_network_keeps_its_weights_and_the_caller_its_inputs():
    network = convnet((1, 8, 8), [3], 2, kernel=3).eval()
    before = [p.detach().clone() for p in network.parameters()]
    x = torch.randn(3, 1, 8, 8)
    copy = x.clone()
    StackedNetwork(network)(draw(network, 4), x)
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    assert torch.equal(x, copy)


def test_repeats_bitwise():
    network = convnet((1, 12, 12), [4, 4], 3, kernel=3).eval()
    stacked, weights, x = StackedNetwork(network), draw(network, 9), torch.randn(20, 1, 12, 12)
    with torch.no_grad():
        assert torch.equal(stacked(weights, x), stacked(weights, x))


@pytest.mark.parametrize(
    "network",
    [
        convnet((1, 16, 16), [8], 2, kernel=3),
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.GroupNorm(2, 8), nn.Flatten()),
    ],
    ids=["convnet", "norms"],
)
def test_memory_stays_bounded_by_the_limit(network):
    """The largest tensor any operation makes is far below what all networks and examples at once would need."""
    network = network.eval()
    weights, x = draw(network, 40), torch.randn(64, 1, 16, 16)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel() * out.element_size())
            return out

    limit = 2**20
    stacked = StackedNetwork(network)
    outputs = 40 * 64 * network(x[:1]).shape[1] * 4
    with torch.no_grad(), Watch():
        stacked(weights, x, memory_limit=limit)
    everything = 40 * 64 * 8 * 14 * 14 * 4
    assert everything > 10 * limit
    assert max(size for size in sizes if size != outputs) <= limit
    assert 2 * stacked._needs[next(iter(stacked._needs))].largest >= 8 * 14 * 14 * 4, "norms and pools count"


# Gradients in the same pass ---------------------------------------------------------------------------------------


def squared(outputs, y, weights):
    return ((outputs - y) ** 2).flatten(2).sum(2) * weights.get("loss_scale", torch.ones(len(outputs))).view(-1, 1)


@pytest.mark.parametrize("memory_limit", [2**30, 3000], ids=["whole", "in blocks"])
@pytest.mark.parametrize("own_inputs", [False, True], ids=["shared inputs", "own inputs"])
@pytest.mark.parametrize("name", [*PLANNED, *FALLBACKS])
def test_mean_loss_equals_the_loop_with_its_gradients(name, own_inputs, memory_limit):
    network, shape = (PLANNED | FALLBACKS)[name]
    network, networks = network.eval(), 4
    weights = draw(network, networks) | {"loss_scale": torch.rand(networks).requires_grad_()}
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(*([networks] if own_inputs else []), 6, *shape, generator=rng)
    x.requires_grad_(own_inputs)
    expected_outputs = looped(network, {key: w for key, w in weights.items() if key != "loss_scale"}, x, own_inputs)
    y = torch.randn(expected_outputs.shape[0 if own_inputs else 1 :], generator=rng)
    expected = squared(expected_outputs, y, weights).mean(1)
    found = StackedNetwork(network).mean_loss(weights, x, y, squared, own_inputs=own_inputs, memory_limit=memory_limit)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # Each network's loss is weighed differently: no gradient may leak from one into another.
    outer = torch.arange(1.0, networks + 1)
    leaves = [*weights.values(), *([x] if own_inputs else [])]
    gradients = torch.autograd.grad((found * outer).sum(), leaves)
    references = torch.autograd.grad((expected * outer).sum(), leaves)
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("memory_limit", [2**30, 3000], ids=["whole", "in blocks"])
@pytest.mark.parametrize("own_inputs", [False, True], ids=["shared inputs", "own inputs"])
def test_losses_to_grad_overwrites_grad_with_the_gradients_of_the_sum(own_inputs, memory_limit):
    network = convnet((1, 12, 12), [3, 4], 5, kernel=3).eval()
    weights, stacked = draw(network, 4), StackedNetwork(network)
    frozen = next(iter(weights))
    weights[frozen] = weights[frozen].detach()[:1].expand_as(weights[frozen])
    rng = torch.Generator().manual_seed(0)
    memory = {}
    for _ in range(2):
        x = torch.randn(*([4] if own_inputs else []), 6, 1, 12, 12, generator=rng)
        y = torch.randn(*([4] if own_inputs else []), 6, 5, generator=rng)
        options = {"own_inputs": own_inputs, "memory_limit": memory_limit}
        losses = stacked.losses_to_grad(weights, x, y, squared, **options)
        assert not losses.requires_grad
        wanted = [w for name, w in weights.items() if name != frozen]
        expected = squared(looped(network, weights, x, own_inputs), y, weights).mean(1)
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-4, atol=1e-4)
        for weight, reference in zip(wanted, torch.autograd.grad(expected.sum(), wanted), strict=True):
            torch.testing.assert_close(weight.grad, reference, rtol=1e-3, atol=1e-3)
            if memory_limit < 2**30:
                assert memory.setdefault(id(weight), weight.grad.data_ptr()) == weight.grad.data_ptr()
    assert weights[frozen].grad is None


def test_mean_loss_lets_frozen_weights_alone():
    network = mlp(4, [5], 2).eval()
    weights = draw(network, 3)
    frozen = next(iter(weights))
    weights[frozen] = weights[frozen].detach()[:1].expand_as(weights[frozen])
    losses = StackedNetwork(network).mean_loss(weights, torch.randn(6, 4), torch.randn(6, 2), squared)
    losses.sum().backward()
    assert weights[frozen].grad is None
    assert all(w.grad is not None for name, w in weights.items() if name != frozen)


def test_mean_loss_gives_its_gradients_again_where_the_graph_is_kept():
    network = mlp(4, [5], 2).eval()
    weights, x = draw(network, 3), torch.randn(3, 6, 4).requires_grad_()
    losses = StackedNetwork(network).mean_loss(weights, x, torch.randn(3, 6, 2), squared, own_inputs=True)
    (first,) = torch.autograd.grad(losses.sum(), x, retain_graph=True)
    (2 * losses).sum().backward()
    torch.testing.assert_close(x.grad, 2 * first)


@pytest.mark.parametrize("memory_limit", [2**30, 300])
def test_mean_loss_has_gradients_for_inputs_that_all_share(memory_limit):
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
    weights, x, y = draw(network, 4), torch.randn(6, 3).requires_grad_(), torch.randn(6, 2)
    outer = torch.arange(1.0, 5)
    found = StackedNetwork(network).mean_loss(weights, x, y, squared, memory_limit=memory_limit)
    expected = squared(looped(network, weights, x, False), y, weights).mean(1)
    leaves = [x, *weights.values()]
    for gradient, reference in zip(
        torch.autograd.grad((outer * found).sum(), leaves),
        torch.autograd.grad((outer * expected).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(gradient, reference)


def test_mean_loss_guards_its_gradients_where_the_graph_is_kept():
    network = mlp(4, [5], 2).eval()
    weights = draw(network, 3)
    losses = StackedNetwork(network).mean_loss(weights, torch.randn(6, 4), torch.randn(6, 2), squared, memory_limit=300)
    (given,) = torch.autograd.grad(losses.sum(), weights["1.weight"], retain_graph=True)
    given.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_mean_loss_needs_a_target_for_each_example():
    network = mlp(4, [5], 2).eval()
    stacked, weights = StackedNetwork(network), draw(network, 3)
    with pytest.raises(UsageError, match="one for each example"):
        stacked.mean_loss(weights, torch.randn(6, 4), torch.randn(3, 6, 2), squared)
    with pytest.raises(UsageError, match="one for each example"):
        stacked.mean_loss(weights, torch.randn(3, 6, 4), torch.randn(6, 2), squared, own_inputs=True)


@pytest.mark.parametrize("memory_limit", [2**30, 300], ids=["whole", "in blocks"])
def test_losses_to_grad_without_a_part_in_the_loss_has_zero_gradients(memory_limit):
    network = mlp(4, [5], 2).eval()
    weights = {name: w.detach() for name, w in draw(network, 3).items()} | {"unused": torch.ones(3).requires_grad_()}
    stacked = StackedNetwork(network)
    stacked.losses_to_grad(weights, torch.randn(6, 4), torch.randn(6, 2), squared, memory_limit=memory_limit)
    assert weights["unused"].grad.tolist() == [0, 0, 0]


def test_mean_loss_keeps_the_plan_where_the_loss_is_at_fault():
    network = mlp(4, [5], 2).eval()
    stacked = StackedNetwork(network)
    with pytest.raises(RuntimeError):
        stacked.mean_loss(draw(network, 3), torch.randn(6, 4), torch.randn(6, 7), squared)
    assert stacked.method == "plan"


# Weights in factors -----------------------------------------------------------------------------------------------


def in_factors(network, networks, names, seed=0):
    """Weights of which some are shared up to scales of their inputs, and the same as plain tensors."""
    rng = torch.Generator().manual_seed(seed)
    weights = {name: w.detach() for name, w in draw(network, networks, seed).items()}
    plain = {name: w.clone() for name, w in weights.items()}
    for name in names:
        base, scale = weights[name][0], torch.rand(networks, weights[name].shape[2], generator=rng)
        weights[name] = InputScaled(base, scale)
        plain[name] = torch.einsum("oi...,si->soi...", base, scale)
    return weights, plain


@pytest.mark.parametrize("memory_limit", [2**30, 3000], ids=["whole", "in blocks"])
@pytest.mark.parametrize("networks", [1, 5])
@pytest.mark.parametrize("shared_rest", [False, True])
@pytest.mark.parametrize(
    ("network", "shape", "names"),
    [
        (mlp(4, [8, 7], 3), (4,), ["3.weight", "5.weight"]),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (5, 4), ["0.weight", "2.weight"]),
        (convnet((1, 12, 12), [3, 4], 5, kernel=3), (1, 12, 12), ["0.weight", "3.weight", "7.weight"]),
        (nn.Sequential(nn.Conv1d(3, 6, 3), nn.Tanh(), nn.Conv1d(6, 2, 3), nn.Flatten()), (3, 8), ["2.weight"]),
    ],
    ids=["mlp", "sequences", "convnet", "conv1d"],
)
def test_factors_give_what_their_product_gives(network, shape, names, networks, shared_rest, memory_limit):
    network = network.eval()
    weights, plain = in_factors(network, networks, names)
    if shared_rest:
        for name in weights.keys() - set(names):
            weights[name] = plain[name] = plain[name][:1].expand_as(plain[name])
    stacked, x = StackedNetwork(network), torch.randn(7, *shape)
    expected = looped(network, plain, x, False)
    torch.testing.assert_close(stacked(weights, x, memory_limit=memory_limit), expected, rtol=1e-4, atol=1e-5)
    assert stacked.method == "plan", stacked.reason
    assert all(weights[name]._product is None for name in names), "the product was made for nothing"


def test_factors_serve_where_there_is_no_plan():
    network = Direct().eval()
    weights, plain = in_factors(network, 3, ["layer.weight"])
    x = torch.randn(5, 4)
    torch.testing.assert_close(StackedNetwork(network)(weights, x), looped(network, plain, x, False))


def test_factors_are_a_tensor_to_others(tmp_path):
    weights, plain = in_factors(nn.Linear(4, 3), 5, ["weight"])
    scaled, product = weights["weight"], plain["weight"]
    assert isinstance(scaled, torch.Tensor)
    assert scaled.shape == (5, 3, 4)
    for found in (
        scaled + 0, scaled.clone(), scaled.contiguous(), scaled.double().float(), torch.from_numpy(scaled.numpy()),
        torch.tensor(scaled.tolist()), copy.deepcopy(scaled), pickle.loads(pickle.dumps(scaled)), scaled[:],
        torch.stack(list(scaled)), scaled.detach().cpu().requires_grad_().data,
    ):  # fmt: skip
        assert torch.equal(found, product)
    torch.save(scaled, tmp_path / "weights.pt")
    assert torch.equal(torch.load(tmp_path / "weights.pt"), product)
    assert "InputScaled" in repr(scaled)


def test_factors_are_given_up_where_the_product_is_written_to():
    network = nn.Linear(4, 3)
    weights, plain = in_factors(network, 5, ["weight"])
    weights["weight"].sum()
    assert weights["weight"].factored
    weights["weight"][1, 2] = plain["weight"][1, 2] = 7.0
    assert not weights["weight"].factored
    x = torch.randn(2, 4)
    torch.testing.assert_close(StackedNetwork(network)(weights, x), looped(network, plain, x, False))


@pytest.mark.parametrize(
    "write",
    [lambda w: w.data.zero_(), lambda w: w.numpy().fill(0), lambda w: setattr(w, "data", torch.zeros(5, 3, 4))],
    ids=["data", "numpy", "data set"],
)
def test_factors_are_given_up_where_memory_is_given_out(write):
    network = nn.Linear(4, 3)
    weights, plain = in_factors(network, 5, ["weight"])
    write(weights["weight"])
    plain["weight"].zero_()
    x = torch.randn(2, 4)
    torch.testing.assert_close(StackedNetwork(network)(weights, x), looped(network, plain, x, False))


def test_factors_in_inference_mode():
    network = nn.Linear(4, 3)
    weights, plain = in_factors(network, 5, ["weight"])
    x = torch.randn(2, 4)
    with torch.inference_mode():
        weights["weight"].sum()
        torch.testing.assert_close(StackedNetwork(network)(weights, x), looped(network, plain, x, False))


def test_factors_of_a_grouped_convolution():
    network = nn.Sequential(nn.Conv2d(8, 4, 3, groups=2), nn.Flatten()).eval()
    weights, plain = in_factors(network, 3, ["0.weight"])
    stacked, x = StackedNetwork(network), torch.randn(5, 8, 6, 6)
    torch.testing.assert_close(stacked(weights, x), looped(network, plain, x, False), rtol=1e-4, atol=1e-5)
    assert stacked.method == "plan", stacked.reason


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="float64"):
        InputScaled(torch.zeros(3, 4), torch.zeros(5, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="no inputs for a scale"):
        InputScaled(torch.zeros(3, 4), torch.zeros(5, 3))


# Plans --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "swapped"),
    [(nn.ReLU(), True), (nn.LeakyReLU(0.2), True), (nn.Tanh(), True), (nn.LeakyReLU(-0.2), False), (nn.GELU(), False)],
)
def test_pooling_comes_before_activations_that_increase(activation, swapped):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), activation, nn.MaxPool2d(2), nn.Flatten()).eval()
    order = [step.name for step in StackedNetwork(network)._plan.steps]
    pooling = next(i for i, name in enumerate(order) if name.endswith("_2"))
    assert (pooling == 1) is swapped
    weights, x = draw(network, 3), torch.randn(4, 1, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(StackedNetwork(network)(weights, x), looped(network, weights, x, False))


def test_an_activation_that_others_read_stays_before_the_pooling():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x):
            h = F.relu(self.conv(x))
            return torch.cat([F.max_pool2d(h, 2).flatten(1), h.flatten(1)], 1)

    network = Both().eval()
    weights, x = draw(network, 3), torch.randn(4, 1, 8, 8)
    stacked = StackedNetwork(network)
    torch.testing.assert_close(stacked(weights, x), looped(network, weights, x, False))
    assert stacked.method == "plan", stacked.reason


class InPlaceThenPooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.activation, self.pool = nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 1, 1)

    def forward(self, x):
        h = self.conv(x)
        return (self.pool(self.activation(h)) + h).flatten(1)  # h was overwritten


class FunctionalPooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.activation = nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        return F.max_pool2d(F.elu(self.activation(self.conv(x)), inplace=True), 2).flatten(1)


@pytest.mark.parametrize(
    ("network", "shape", "planned"),
    [
        (InPlaceThenPooled(), (1, 8, 8), False),
        (FunctionalPooling(), (1, 8, 8), True),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(threshold=0.1), nn.MaxPool2d(2), nn.Flatten()), (1, 8, 8), True),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1, 1, 3), nn.Flatten()),
            (1, 2, 2),
            True,
        ),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d([2, 2], [2, 1]), nn.Flatten()), (1, 8, 8), True),
    ],
    ids=["in place, read again", "functional", "softplus jumps", "padding alone in a window", "lists"],
)
def test_corners_of_pooling_after_activations(network, shape, planned):
    network = network.eval()
    weights, x = draw(network, 3), torch.randn(4, *shape)
    stacked = StackedNetwork(network)
    with torch.no_grad():
        torch.testing.assert_close(stacked(weights, x), looped(network, weights, x, False))
    assert (stacked.method == "plan") is planned, stacked.reason


@pytest.mark.parametrize("options", [{"stride": 1}, {"stride": (2, 3)}, {"padding": 1}, {"ceil_mode": True}, {}])
@pytest.mark.parametrize("kernel", [2, 3, (2, 3)])
def test_max_pooling_as_maxima_of_shifts(kernel, options, monkeypatch):
    monkeypatch.setattr("bayes_bench.posterior.stacked.operations.SMALL_IMAGES", 0)
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.MaxPool2d(kernel, **options), nn.Flatten()).eval()
    weights, x = draw(network, 3), torch.randn(4, 1, 9, 8)
    x[0, 0, 0, 0] = torch.nan  # spreads as it does in PyTorch's own
    with torch.no_grad():
        for networks in (1, 3):
            part = {name: w[:networks] for name, w in weights.items()}
            torch.testing.assert_close(
                StackedNetwork(network)(part, x), looped(network, part, x, False), equal_nan=True
            )


@st.composite
def architectures(draw_from):
    """Random networks for images ``[C, H, W]``, of all kinds of layers that have a stacked rule."""
    channels, height, width = draw_from(st.sampled_from([(1, 8, 9), (3, 7, 7), (2, 10, 8)]))
    shape, layers = (channels, height, width), []
    activations = st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU])
    for _ in range(draw_from(st.integers(0, 3))):
        out = draw_from(st.sampled_from([2, 4, 6]))
        groups = draw_from(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
        convolution = nn.Conv2d(
            channels,
            out,
            draw_from(st.integers(1, 3)),
            stride=draw_from(st.integers(1, 2)),
            padding=draw_from(st.integers(0, 2)),
            dilation=draw_from(st.integers(1, 2)),
            groups=groups,
            bias=draw_from(st.booleans()),
        )
        layers.append(convolution)
        channels = out
        extra = draw_from(st.sampled_from(["none", "group norm", "max", "average"]))
        order = [draw_from(activations)()]
        if extra == "group norm":
            order.insert(0, nn.GroupNorm(2, channels))
        elif extra == "max":
            order.append(nn.MaxPool2d(2, stride=draw_from(st.integers(1, 2)), padding=draw_from(st.integers(0, 1))))
        elif extra == "average":
            order.append(nn.AvgPool2d(2, padding=1))
        layers += order
    if draw_from(st.booleans()):
        layers.append(nn.AdaptiveAvgPool2d(2))
    layers.append(nn.Flatten())
    try:
        with torch.no_grad():
            features = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    except RuntimeError:  # the image became too small
        layers, features = [nn.Flatten()], shape[0] * height * width
    if draw_from(st.booleans()):
        hidden = draw_from(st.integers(2, 6))
        layers += [nn.Linear(features, hidden), draw_from(activations)(), nn.LayerNorm(hidden)]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, 3)).eval(), shape


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    architecture=architectures(),
    networks=st.sampled_from([1, 2, 5]),
    batch=st.integers(1, 5),
    own_inputs=st.booleans(),
    memory_limit=st.sampled_from([2**29, 5000]),
)
def test_random_architectures_equal_the_loop(architecture, networks, batch, own_inputs, memory_limit):
    network, shape = architecture
    weights = draw(network, networks)
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(*([networks] if own_inputs else []), batch, *shape, generator=rng)
    y = torch.randn(*([networks] if own_inputs else []), batch, 3, generator=rng)
    stacked, options = StackedNetwork(network), {"own_inputs": own_inputs, "memory_limit": memory_limit}
    expected = looped(network, weights, x, own_inputs)
    reference = squared(expected, y, weights).mean(1)
    with torch.no_grad():
        torch.testing.assert_close(stacked(weights, x, **options), expected, rtol=1e-4, atol=1e-4)
    leaves = list(weights.values())
    expected_gradients = torch.autograd.grad(reference.sum(), leaves)
    found = stacked(weights, x, **options)
    losses = stacked.mean_loss(weights, x, y, squared, **options)
    torch.testing.assert_close(losses, reference, rtol=1e-4, atol=1e-4)
    assert stacked.method == "plan", stacked.reason
    for gradients in (
        torch.autograd.grad(squared(found, y, weights).mean(1).sum(), leaves),
        torch.autograd.grad(losses.sum(), leaves),
    ):
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-3)


# Blocks -------------------------------------------------------------------------------------------------------------


@given(
    networks=st.integers(1, 2000),
    examples=st.integers(1, 20_000),
    bytes_each=st.integers(0, 2**34),
    memory_limit=st.integers(1, 2**36),
    gradients=st.booleans(),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_blocks_fit_the_limit_and_the_work(networks, examples, bytes_each, memory_limit, gradients, device):
    blocks = choose_blocks(
        networks, examples, bytes_each=bytes_each, device=device, memory_limit=memory_limit, gradients=gradients
    )
    assert 1 <= blocks.networks <= networks
    assert 1 <= blocks.examples <= examples
    assert blocks == Blocks(1, 1) or blocks.networks * blocks.examples * bytes_each <= memory_limit


def test_blocks_on_a_cpu_and_on_a_gpu():
    def blocks(device, examples, **options):
        return choose_blocks(100, examples, bytes_each=100_000, device=device, memory_limit=2**40, **options)

    assert blocks("cpu", 1000) == Blocks(1, EXAMPLES), "one network alone is work enough"
    assert blocks("cpu", 1).networks > 10, "small work shares operations"
    assert blocks("cpu", 1000, gradients=True) == Blocks(1, 1000), "examples are cut by memory alone"
    assert blocks("cuda", 1000) == Blocks(100, 1000), "a GPU gets all that fits"


def test_explain_tells_blocks_and_what_is_shared():
    network = convnet((1, 12, 12), [4, 4], 3, kernel=3).eval()
    weights = {name: w.detach() for name, w in draw(network, 20).items()}
    weights["0.weight"] = weights["0.weight"][:1].expand_as(weights["0.weight"])
    weights["0.bias"] = weights["0.bias"][:1].expand_as(weights["0.bias"])
    stacked = StackedNetwork(network)
    plain, detailed = stacked.explain(), stacked.explain(weights, torch.zeros(30, 1, 12, 12))
    assert "once for all networks" not in plain
    assert "20 networks, 30 examples" in detailed
    assert "at once" in detailed
    first, second = (next(line for line in detailed.splitlines() if f" {i}: Conv2d" in line) for i in (0, 3))
    assert "once for all networks" in first
    assert "once for all networks" not in second
