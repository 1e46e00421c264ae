"""Figures of the plane: points and fields over one box, side by side."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.common.planes import KINDS, grid

__all__ = ["clouds", "panels", "picture"]


def panels(titles: list[str], box: np.ndarray) -> Any:
    """A figure with axes side by side, each over the same box of the plane."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(titles), 5.2), layout="constrained")
    axes = figure.subplots(1, len(titles), sharex=True, sharey=True)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlim=box[:, 0], ylim=box[:, 1], xlabel="x1", title=title, aspect="equal")
    axes[0].set_ylabel("x2")
    return figure, axes


def picture(fields: Mapping[str, Any], x: np.ndarray, box: np.ndarray, marks: Any) -> Any:
    """Arrows of each field over the data, cut at their median length, and marks at its zeros."""
    figure, axes = panels(list(fields), box)
    places = grid(box, 27)
    for axis, (name, field) in zip(axes, fields.items(), strict=True):
        arrows = np.asarray(jax.jit(jax.vmap(field))(places))
        length = np.linalg.norm(arrows, axis=1, keepdims=True)
        arrows = arrows / np.maximum(length, 1e-9) * np.minimum(length, np.quantile(length, 0.5))
        axis.scatter(*x[:1500].T, s=5, color="tab:green", alpha=0.35, linewidths=0, label="data")
        axis.quiver(*places.T, *arrows.T, angles="xy", color="0.25", width=0.0028)
        for kind, (marker, colour) in KINDS.items() if marks else ():
            style = {"s": 90, "color": colour, "edgecolors": "white", "zorder": 3}
            axis.scatter(*marks[name][kind].T, marker=marker, label=f"zero: {kind}", **style)
    title = "arrows longer than the median are cut to it"
    legend = {"loc": "outside lower center", "ncols": 4, "frameon": False, "title": title}
    figure.legend(*axes[-1].get_legend_handles_labels(), **legend)
    return figure


def clouds(points: Mapping[str, Any], box: np.ndarray, most: int) -> Any:
    """Points `[n, 2]` by title, side by side."""
    figure, axes = panels(list(points), box)
    for axis, each in zip(axes, points.values(), strict=True):
        axis.scatter(*each[:most].T, s=4, alpha=0.5, linewidths=0)
    return figure
