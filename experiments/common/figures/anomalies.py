"""Figures of anomaly scores: AUROC by class, and the images at the ends of the ranking."""

from typing import Any

import numpy as np

from vaejax import anomaly, plot

__all__ = ["bars", "extremes"]


def bars(found: dict[str, anomaly.OneClass], names: list[str]) -> Any:
    """AUROC of every class by some scores, with 95 % intervals, and the mean in the legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.add_subplot(xlabel="class of the normal images", ylabel="AUROC (95 % interval)")
    for i, name in enumerate(names):
        labels, areas = zip(*found[name].per_class.items(), strict=True)
        value, low, high = np.transpose(areas)
        places = np.arange(len(labels)) + 0.8 * ((i + 0.5) / len(names) - 0.5)
        ends, legend = [value - low, high - value], f"{name}: mean {found[name].mean:.4f}"
        axis.errorbar(places, value, ends, fmt="o", ms=4, capsize=2, label=legend)
    axis.set_xticks(range(len(labels)), labels)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def extremes(x: Any, score: Any, normal: Any, label: int) -> Any:
    """Test images at the ends of the ranking, where the score is right and where it fails."""
    count = int(min(10, normal.sum(), (~normal).sum()))
    order = np.argsort(score)
    inside, outside = order[normal[order]], order[~normal[order]]
    rows = inside[:count], inside[-count:][::-1], outside[:count], outside[-count:][::-1]
    names = ["class, lowest", "class, highest", "others, lowest", "others, highest"]
    title = f"test images by anomaly score, trained on class {label}"
    return plot.images(x[np.concatenate(rows)], columns=count, title=title, labels=names)
