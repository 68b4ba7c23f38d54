"""Stacked evaluation equals the plain loop over ``functional_call``, forward and backward, for every layer type."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from bayes_bench import StackedNetwork, UsageError
from bayes_bench.networks import convnet, mlp, resnet


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
}
FALLBACKS = {
    "keyword spelling": (Keywords(), (4,)),
    "pooling without channels": (nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(3, 1, 1), nn.Linear(4, 2)), (4,)),
    "direct parameter": (Direct(), (4,)),
    "in-place activation": (nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)), (4,)),
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
    with pytest.raises(UsageError, match="at least one example"):
        stacked(weights, torch.randn(0, 4))


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


def test_memory_stays_bounded_by_the_limit():
    """The largest tensor any operation makes is far below what all networks and examples at once would need."""
    network = convnet((1, 16, 16), [8], 2, kernel=3).eval()
    weights, x = draw(network, 40), torch.randn(64, 1, 16, 16)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel() * out.element_size())
            return out

    limit = 2**20
    with torch.no_grad(), Watch():
        StackedNetwork(network)(weights, x, memory_limit=limit)
    everything = 40 * 64 * 8 * 14 * 14 * 4
    assert everything > 10 * limit
    assert max(sizes) <= limit
