"""Figures of a network that starts from pretrained parameters, and from scratch."""

from typing import Any

import numpy as np

from vaejax import data, networks, plot

__all__ = ["STARTS", "draw"]

STARTS = ("scratch", "pretrained")


def draw(config: Any, rows: list[dict[str, Any]], kept: dict[str, Any]) -> dict[str, Any]:
    """Errors by seed, filters of the first level, curves of pretraining and of fine-tuning."""
    errors = {name: [100 * row[f"{name}_test_error"] for row in rows] for name in STARTS}
    history = kept["pretrained"].history
    every = len(history[0]["loss"]) // config.epochs
    levels = {
        f"level {i + 1}": np.asarray(h["loss"]).reshape(config.epochs, every).mean(axis=1)
        for i, h in enumerate(history)
    }
    fine = {name: 100 * h["eval/error"] for name, h in kept["fine_tuning"].items()}
    seeds = [row["seed"] for row in rows]
    by_seed = plot.curves(
        errors,
        steps=seeds,
        title=f"test error with {config.labels} labels (dashed: mean)",
        xlabel="seed (of the labels and all else)",
        ylabel="test error, %",
    )
    (axis,) = by_seed.axes
    axis.set_xticks(seeds)
    for line, name, marker in zip(tuple(axis.lines), STARTS, "ox", strict=True):
        line.set(linestyle="", marker=marker, markersize=8)  # points: seeds have no order
        axis.axhline(float(np.mean(errors[name])), color=line.get_color(), linestyle="--")
    axis.legend(frameon=False)
    drawn = {
        "errors": by_seed,
        "pretraining": plot.curves(levels, title=f"pretraining, {config.level}, seed {seeds[0]}"),
        "fine_tuning": plot.curves(
            fine,
            title=f"fine-tuning with {config.labels} labels, seed {seeds[0]}",
            ylabel="validation error, %",
        ),
    }
    kernel = next(iter(networks.kernels(kept["pretrained"].params[0]["encoder"]).values()))
    shape = data.load(config.dataset, "test[:1]").x.shape[1:]
    filters = np.asarray(kernel).T.reshape(-1, *shape)[:64]
    title = f"filters of the first level, {config.level}"
    return drawn | {"filters": plot.filters(filters, title=title)}
