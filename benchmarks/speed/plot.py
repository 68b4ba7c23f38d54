"""The pictures of a benchmark run: ratios over the loop, shares of the limit, growth with S."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

COLOURS = {"mlp": "#4477aa", "mnist": "#ee6677", "cifar": "#228833", "resnet": "#ccbb44"}


def plot_cells(rows: pd.DataFrame, path: Path) -> None:
    """Bars: how many times faster than the loop (above), and share of the limit (below), for each cell."""
    works = [work for work in ("forward", "training step") if work in set(rows["work"])]
    figure, axes = plt.subplots(
        2, len(works), figsize=(6.5 * len(works), 6.4), sharey="row", sharex="col", squeeze=False
    )
    for column, work in enumerate(works):
        own = rows[rows["work"] == work].reset_index(drop=True)
        above, below = axes[:, column]
        above.bar(own.index, own["loop_ratio"], color=own["network"].map(COLOURS), width=0.8)
        above.axhline(1, color="black", linewidth=0.8)
        above.set_title(work)
        below.bar(own.index, 100 * own["share_of_limit"], color=own["network"].map(COLOURS), width=0.8)
        for i, limit in enumerate(own["limit"]):
            if limit == "memory":
                below.text(i, 100 * own["share_of_limit"][i] + 1, "m", ha="center", fontsize=7, color="#555555")
        below.set_xticks(
            own.index, [f"{s}·{b}" for s, b in zip(own["S"], own["B"], strict=True)], rotation=90, fontsize=7
        )
        below.set_xlabel("networks · examples")
    axes[0, 0].set_ylabel("time of the loop / ours")
    axes[1, 0].set_ylabel("% of the limit\n(matrix products; m: memory)")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in COLOURS if name in set(rows["network"])]
    axes[0, -1].legend(handles, [n for n in COLOURS if n in set(rows["network"])], frameon=False, loc="upper right")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", linewidth=0.4, alpha=0.6)
        axis.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_growth(rows: pd.DataFrame, path: Path) -> None:
    """Time and memory of predicting 10,000 digits against the number of networks."""
    own = rows[rows["width"] == 1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    left.plot(own["S"], own["seconds"], "o-", color="#4477aa")
    left.set(xscale="log", yscale="log", xlabel="networks S", ylabel="seconds", title="time")
    right.plot(own["S"], own["extra_mb"], "o-", color="#4477aa", label="measured")
    right.plot(own["S"], own["all_outputs_mb"], "--", color="#999999", label="all outputs at once (float64)")
    right.set(xscale="log", xlabel="networks S", ylabel="MB above the start", title="memory")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(linewidth=0.4, alpha=0.6)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_peers(rows: pd.DataFrame, path: Path) -> None:
    """A point for each comparison with another package: above 1, bayes-bench is faster."""
    own = rows[pd.to_numeric(rows["ratio"], errors="coerce").notna()].copy()
    own["ratio"] = own["ratio"].astype(float)
    own["label"] = own["peer"] + ", " + own["work"]
    labels = list(dict.fromkeys(own["label"]))
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(labels) + 1.4))
    for network, marker in zip(dict.fromkeys(own["network"]), "os^", strict=False):
        part = own[own["network"] == network]
        axis.plot(part["ratio"], [labels.index(label) for label in part["label"]], marker, label=network, alpha=0.7)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="time of the other package / ours", yticks=range(len(labels)), yticklabels=labels)
    ticks = [t for t in (0.25, 0.5, 1, 2, 3, 5, 10, 20) if 0.8 * own["ratio"].min() <= t <= 1.3 * own["ratio"].max()]
    axis.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axis.set_xticks([], minor=True)
    axis.invert_yaxis()
    axis.legend(frameon=False, loc="best", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", linewidth=0.4, alpha=0.6)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
