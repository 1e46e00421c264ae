"""Directions in the space of codes: who stands at their ends, and what changes along them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import stats

from vaejax import plot, representation

__all__ = ["along", "draw", "extremes_within_classes"]


def extremes_within_classes(values: Any, y: Any, share: float) -> representation.Extremes:
    """As `extremes`, for each class by itself: or thick and thin would mean eights and ones."""
    masks = np.zeros((2, len(y)), bool)
    for label in np.unique(y):
        masks[:, y == label] = representation.extremes(values[y == label], share=share)
    return representation.Extremes(*masks)


def along(
    decode: Callable[[Any], Any], codes: Any, step: Any, multiples: Any, measure: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Decoded images `[n, steps, ...]` along a direction, and how their measure rises with it."""
    decoded = np.stack([decode(jnp.asarray(codes + a * step, jnp.float32)) for a in multiples], 1)
    flat = np.maximum(decoded.reshape(-1, *decoded.shape[2:]), 0)  # a Normal's mean may be below 0
    values = measure(flat).reshape(decoded.shape[:2])
    order = [stats.spearmanr(multiples, row).statistic for row in values]
    rising = np.all(np.diff(values, axis=1) > 0, axis=1)
    return decoded, {
        "mean_along": [float(v) for v in values.mean(axis=0)],
        "rank_correlation": float(np.mean(order)),
        "share_rising_at_every_step": float(np.mean(rising)),
    }


def draw(name: str, unit: str, decoded: Any, multiples: Any, values: Any) -> dict[str, Any]:
    """Eight images decoded along a direction, and the mean of what is measured there."""
    shown = plot.traversals(decoded[:8], labels=[f"test image {i + 1}" for i in range(8)])
    shown.axes[0].set(
        title=f"decoded along the direction of {name}",
        ylabel="",
        xlabel="multiple of the direction (mean code of the top less of the bottom group)",
    )
    ticks = shown.axes[0].get_xticks()
    shown.axes[0].set_xticks(ticks, [f"{a:+.2g}" for a in multiples][: len(ticks)])
    measured = plot.curves(
        {"mean of the test images": values},
        steps=multiples,
        title=f"{name} measured along its direction",
        xlabel="multiple of the direction",
        ylabel=f"{name}, {unit}",
    )
    return {name: shown, f"{name}_measured": measured}
