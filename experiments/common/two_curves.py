"""A known density of the plane along two curves; grids, and pictures of densities."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.distributions import Distribution, Mixture, Normal

__all__ = ["grid", "log_probs", "panels", "truth"]


def truth(shape: str, noise: float, *, points: int = 200) -> Mixture:
    """A density along two curves, "moons" or "rings": `points` Normals along each of them.

    `noise`: the standard deviation of each Normal.
    """
    if shape == "moons":
        t = np.linspace(0, np.pi, points)
        upper = np.stack([np.cos(t) - 0.5, np.sin(t) - 0.25], axis=1)
        centres = np.concatenate([upper, -upper])
    else:
        t = np.linspace(0, 2 * np.pi, points, endpoint=False)
        circle = np.stack([np.cos(t), np.sin(t)], axis=1)
        centres = np.concatenate([0.8 * circle, 2 * circle])
    normals = Normal(jnp.asarray(centres, jnp.float32), jnp.full((2 * points, 1), noise))
    return Mixture(jnp.zeros(2 * points), normals)


def grid(width: float, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Places `[side]` along a side of the square [-width, width]^2, and all its points.

    The points are float32 `[side * side, 2]`, each in the middle of a cell of the grid.
    """
    side = np.arange(-width, width, spacing) + spacing / 2
    return side, np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(np.float32)


def log_probs(distribution: Distribution, points: Any) -> np.ndarray:
    """log p of points `[n, 2]`, nats, `[n]` float64."""
    each = jax.jit(lambda points: jax.vmap(distribution.log_prob)(points))
    return np.asarray(each(points), float)


def panels(shown: Mapping[str, Any], side: np.ndarray) -> Any:
    """A figure of points `[n, 2]` and densities `[side, side]` by title, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(shown), 3.8), layout="constrained")
    axes = figure.subplots(1, len(shown), sharex=True, sharey=True)
    top = max(values.max() for values in shown.values() if values.shape[1] > 2)
    for axis, (title, values) in zip(axes, shown.items(), strict=True):
        if values.shape[1] == 2:
            axis.scatter(values[:, 0], values[:, 1], s=1, linewidths=0)
        else:
            extent = side[0], side[-1], side[0], side[-1]
            image = axis.imshow(
                values, origin="lower", extent=extent, vmin=0, vmax=top, cmap="viridis"
            )
        axis.set(title=title, xlabel="x1", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal")
    axes[0].set_ylabel("x2")
    figure.colorbar(image, ax=axes[-1], label="density, 1 / unit²", shrink=0.7)
    return figure
