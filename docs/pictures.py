"""Make the pictures of the documentation: ``python docs/pictures.py [NAME]...`` (a minute on one core for all).

Nothing is drawn by hand: posteriors are fitted, numbers are those of ``bayes_bench.metrics`` or the reference results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.datasets import make_moons
from torch import nn

from bayes_bench import Categorical, Gaussian, HyperGAN
from bayes_bench.metrics import ece
from bayes_bench.metrics.pairs import disagreement
from bayes_bench.report.charts.base import COLOURS, INK, MARKERS, MUTED, STYLE

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"


def many_functions() -> Figure:
    """Networks of one posterior on a line: alike where there are data, apart where there are none."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(-4, 4, 20))
    y = x**3 + 3 * rng.normal(size=20)
    scale = float(y.std())
    network = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1))
    posterior = HyperGAN(network, Gaussian(3 / scale))
    data = torch.tensor(x[:, None] / 4, dtype=torch.float32), torch.tensor(y[:, None] / scale, dtype=torch.float32)
    posterior.fit(data, budget=100_000, seed=0)
    grid = torch.linspace(-1.5, 1.5, 121)[:, None]
    weights = posterior.sample(100, seed=1)
    with torch.no_grad():
        lines = posterior.outputs(grid, weights)[..., 0].numpy() * scale
    places = 4 * grid[:, 0].numpy()
    mean, std = lines.mean(0), lines.std(0)
    figure, (left, right) = _panels(2)
    left.plot(places, lines[:30].T, color=COLOURS[0], linewidth=0.7, alpha=0.5)
    left.set_title("30 networks of one posterior", fontsize=9, loc="left")
    right.fill_between(places, mean - 2 * std, mean + 2 * std, color=COLOURS[0], alpha=0.25, linewidth=0)
    right.plot(places, mean, color=COLOURS[0])
    right.set_title("what 100 of them say: mean ± 2 std", fontsize=9, loc="left")
    for axes in (left, right):
        axes.plot(places, places**3, color=INK, linewidth=0.9, linestyle=(0, (4, 2.5)))
        axes.scatter(x, y, s=10, color=INK, zorder=3)
        axes.set(ylim=(-230, 230), xlabel="x")
    return figure


def two_uncertainties() -> Figure:
    """Entropy and mutual information over the plane of two moons."""
    points, labels = make_moons(300, noise=0.25, random_state=0)
    network = nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 2))
    posterior = HyperGAN(network, Categorical(2))
    posterior.fit((torch.tensor(points, dtype=torch.float32), torch.tensor(labels)), budget=150_000, seed=0)
    side = np.linspace(-3, 4, 71)
    plane = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    found = posterior.predict(torch.tensor(plane, dtype=torch.float32), posterior.sample(100, seed=1))
    figure, panels = _panels(2, height=3.0)
    for axes, name, title in zip(
        panels,
        ("entropy", "mutual_information"),
        ("all uncertainty: entropy of the mean", "from disagreement: mutual information"),
        strict=True,
    ):
        values = getattr(found, name).numpy().reshape(len(side), -1)
        shown = axes.contourf(
            side, side, values, levels=np.linspace(0, 0.7 if name == "entropy" else 0.35, 8), cmap="Blues"
        )
        axes.scatter(*points.T, c=np.where(labels, COLOURS[1], COLOURS[2]), s=5, linewidths=0)
        axes.set_title(title, fontsize=9, loc="left")
        axes.grid(visible=False)
        figure.colorbar(shown, ax=axes, label="nats", shrink=0.8)
    return figure


def calibration() -> Figure:
    """The same predictions as they are, and sharpened: as accurate, no longer honest."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.05, 0.95, 5000)
    y = (rng.uniform(size=5000) < truth).astype(int)
    figure, panels = _panels(3)
    for axes, power, title in zip(
        panels, (1.0, 2.5, 0.4), ("calibrated", "overconfident", "underconfident"), strict=True
    ):
        odds = (truth / (1 - truth)) ** power
        probs = np.stack([1 / (1 + odds), odds / (1 + odds)], axis=-1)
        confidence, correct = probs.max(-1), probs.argmax(-1) == y
        index = np.minimum((confidence * 20).astype(int), 19)
        full = np.unique(index)
        mean = [[values[index == b].mean() for b in full] for values in (confidence, correct)]
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.plot(*mean, color=COLOURS[0], marker="o")
        axes.set(xlabel="confidence", ylim=(0.45, 1.02))
        axes.set_title(f"{title}, ECE {ece(probs, y):.2f}", fontsize=9, loc="left")
    panels[0].set_ylabel("accuracy")
    return figure


def spread_misleads() -> Figure:
    """Two sets of networks: one with a spread of norms and no diversity, one the other way round."""
    points, labels = make_moons(300, noise=0.25, random_state=0)
    x = torch.tensor(points, dtype=torch.float32)
    members = []
    for seed in range(5):
        torch.manual_seed(seed)
        members.append(_trained(x, torch.tensor(labels)))
    rescaled = []
    for factor in np.linspace(0.5, 1.5, 5):
        copy = [w.clone() for w in members[0]]
        copy[0], copy[1], copy[2] = copy[0] * factor, copy[1] * factor, copy[2] / factor  # ReLU: the same function
        rescaled.append(copy)
    figure, panels = _panels(2)
    sets = {"one network, rescaled": rescaled, "five trained networks": members}
    norms = [
        np.array([float(torch.cat([w.flatten() for w in one]).norm()) for one in several]) for several in sets.values()
    ]
    spread = [values.std() / values.mean() for values in norms]
    apart = [
        disagreement(np.stack([_forward(one, x).argmax(-1).numpy() for one in several]), 2).mean()
        for several in sets.values()
    ]
    for axes, values, title in zip(
        panels, (spread, apart), ("norm spread: std / mean of L2 norms", "disagreement of predictions"), strict=True
    ):
        axes.barh(list(sets), values, color=[COLOURS[1], COLOURS[0]], height=0.5)
        axes.set_title(title, fontsize=9, loc="left")
        axes.margins(x=0.15)
        for i, value in enumerate(values):
            axes.text(value, i, f"  {value:.3f}", va="center", fontsize=8)
    panels[1].set_yticklabels([])
    return figure


def through_training() -> Figure:
    """Diversity against training for HyperGAN without one part at a time, from the reference results."""
    history = pd.read_csv(ROOT / "reports" / "reference" / "ablation" / "history.csv")
    history = history[history["task"] == "mnist-5000"]
    rows = ("hypergan", "no-discriminator", "no-mixer", "no-repulsion", "paper-objective")
    titles = {
        "disagreement": "disagreement, validation data",
        "weight_spread": "norm spread of all weights",
        "val_accuracy": "validation error, mean prediction",
    }
    figure, panels = _panels(3, height=2.7)
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for i, row in enumerate(rows):
            chosen = history[history["method"] == row]
            chosen = chosen.assign(check=chosen.groupby("seed").cumcount())
            mean = chosen.groupby("check")[["evaluations", column]].mean()
            values = 1 - mean[column] if column == "val_accuracy" else mean[column]
            axes.plot(mean["evaluations"], values, color=COLOURS[i], marker=MARKERS[i], label=row)
        if column != "weight_spread":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set(xlabel="gradient evaluations")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else "")
        axes.set_title(title, fontsize=9, loc="left")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _trained(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    network = nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 2))
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(400):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    return [w.detach() for w in network.parameters()]


def _forward(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ weights[0].T + weights[1]) @ weights[2].T + weights[3]


def _panels(count: int, height: float = 2.5) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.6 * count, height), layout="constrained")
    return figure, [figure.add_subplot(1, count, i + 1) for i in range(count)]


PICTURES: dict[str, Callable[[], Figure]] = {
    picture.__name__.replace("_", "-"): picture
    for picture in (many_functions, two_uncertainties, calibration, spread_misleads, through_training)
}


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    IMAGES.mkdir(exist_ok=True)
    for name in names or PICTURES:
        with mpl.rc_context(STYLE | {"figure.facecolor": "white", "axes.facecolor": "white"}):
            path = IMAGES / f"{name}.png"
            PICTURES[name]().savefig(path, dpi=130)
        print(path.relative_to(IMAGES.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
