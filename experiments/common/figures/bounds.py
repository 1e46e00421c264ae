"""Figures of bounds on log p(x) beside its exact value."""

from typing import Any

import numpy as np

from vaejax import plot

__all__ = ["images", "ladder", "temperatures"]


def images(most: int, found: Any, truth: np.ndarray) -> Any:
    """Every bound less the exact value, image by image; `most`: particles of the last rung."""
    values = {
        f"importance weighting, K = {most}": found.ladder.log_px[-1],
        "AIS": found.lower.log_px,
        "reverse AIS from exact draws": found.upper.log_px,
    }
    order = np.argsort(truth)
    figure = plot.curves(
        {name: (log_px - truth)[order] for name, log_px in values.items()},
        xlabel="image, from the least to the most probable",
        ylabel="bound - exact log p(x), nats",
        title="bounds of every image",
    )
    axis = figure.axes[0]
    for line, marker in zip(axis.get_lines(), ".^v", strict=False):
        line.set(linestyle="", marker=marker, markersize=4)
    axis.axhline(0, color="black", linewidth=0.8)
    if max(np.abs(log_px - truth).max() for log_px in values.values()) > 3:
        axis.set_yscale("symlog", linthresh=1)
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
    return figure


def ladder(found: Any, truth: np.ndarray) -> Any:
    """The importance-weighted bound over K, rising towards the interval of AIS."""
    figure = plot.curves(
        {"importance weighting": found.ladder.log_px.mean(axis=1)},
        steps=found.ladder.particles,
        xlabel="K, importance samples per image",
        ylabel="log p(x), mean nats per image",
        title="the ladder and the interval",
    )
    axis = figure.axes[0]
    low, high = (side.log_px.mean() for side in (found.lower, found.upper))
    noise = [2 * np.sqrt(np.sum(side.error**2)) / len(truth) for side in (found.lower, found.upper)]
    axis.axhspan(
        low - noise[0],
        high + noise[1],
        color="tab:green",
        alpha=0.4,
        label="AIS to reverse AIS, with 2 standard errors",
    )
    axis.axhline(truth.mean(), color="black", linewidth=0.8, linestyle="--", label="exact (grid)")
    axis.set_xscale("log")
    axis.legend(frameon=False)
    return figure


def temperatures(gaps: dict[int, tuple[np.ndarray, np.ndarray]]) -> Any:
    """What the annealed bounds miss in the mean over images, over the number of temperatures."""
    names, counts = ["AIS", "reverse AIS from exact draws"], list(gaps)
    errors = np.array(list(gaps.values()))  # [temperatures, 2, images]
    means, spread = errors.mean(axis=2), 2 * errors.std(axis=2) / np.sqrt(errors.shape[2])
    figure = plot.curves(
        dict(zip(names, means.T, strict=True)),
        steps=counts,
        xlabel="temperatures",
        ylabel="bound - exact log p(x), nats",
        title="mean over images, with 2 standard errors",
    )
    axis = figure.axes[0]
    for line, side in zip(axis.get_lines(), (0, 1), strict=True):
        axis.errorbar(counts, means[:, side], spread[:, side], color=line.get_color(), capsize=3)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    return figure
