"""Densities of the plane: data from them, the density with noise on it, zeros of a field."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax import distributions

__all__ = ["KINDS", "MEANS", "WEIGHTS", "grid", "sample", "smoothed", "zeros"]

MEANS = 1.6 * np.array([[0, 1], [-(0.75**0.5), -0.5], [0.75**0.5, -0.5]], np.float32)
WEIGHTS, SPREAD = np.array([0.5, 0.3, 0.2]), 0.3  # of the mixture
KINDS = {"maximum": ("o", "tab:red"), "saddle": ("P", "tab:orange"), "minimum": ("X", "tab:blue")}


def sample(density: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Data `[n, 2]`: of three Gaussians, or evenly along curves without any thickness."""
    t, side = rng.uniform(size=n), rng.integers(2, size=n)
    if density == "mixture":
        x = MEANS[rng.choice(3, n, p=WEIGHTS)] + SPREAD * rng.normal(size=(n, 2))
    elif density == "moons":
        half = np.stack([np.cos(np.pi * t) - 0.5, np.sin(np.pi * t) - 0.25], 1)
        x = 1.2 * np.where(side[:, None] == 0, half, -half)
    elif density == "spiral":
        angle = 3 * np.pi * np.sqrt(t + 0.05)  # arcs of equal length are about as likely
        x = 0.2 * angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    else:
        x = 1.5 * np.stack([np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)], 1)
    return x.astype(np.float32)


def smoothed(density: str, scale: float, x: np.ndarray) -> distributions.Mixture:
    """The data's density convolved with N(0, scale^2 I): known, or that of the points in x."""
    if density == "mixture":
        scales = jnp.full((3, 2), (SPREAD**2 + scale**2) ** 0.5)
        return distributions.Mixture(jnp.log(WEIGHTS), distributions.Normal(MEANS, scales))
    scales = jnp.full(x.shape, scale)
    return distributions.Mixture(jnp.zeros(len(x)), distributions.Normal(x, scales))


def zeros(field: Any, box: np.ndarray) -> dict[str, np.ndarray]:
    """Zeros `[k, 2]` of a field inside a box, by Newton's method from a grid, by their kind."""
    starts = grid(box, 25)
    jacobian = jax.jacfwd(field)

    def newton(x: Any, _: None) -> Any:
        step = jnp.linalg.solve(jacobian(x) + 1e-6 * jnp.eye(2), field(x))
        return x - step * jnp.minimum(1, 0.2 / (jnp.linalg.norm(step) + 1e-9)), None

    def one(x: Any) -> Any:
        x, _ = jax.lax.scan(newton, x, length=100)
        J = jacobian(x)
        return x, jnp.linalg.norm(field(x)), jnp.linalg.eigvalsh(J + J.T)

    ends, lengths, slopes = (np.asarray(v) for v in jax.jit(jax.vmap(one))(starts))
    good = (lengths < 1e-3) & np.all((ends > box[0]) & (ends < box[1]), axis=1)
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for end, slope in zip(ends[good], slopes[good], strict=True):
        kind = found[("maximum", "saddle", "minimum")[int((slope > 0).sum())]]
        if all(np.linalg.norm(end - other) > 0.05 for other in kind):
            kind.append(end)
    return {kind: np.reshape(places, (-1, 2)) for kind, places in found.items()}


def grid(box: np.ndarray, n: int) -> np.ndarray:
    """An n x n grid of points of the box, `[n * n, 2]`."""
    return np.stack(np.meshgrid(*np.linspace(box[0], box[1], n).T), -1).reshape(-1, 2)
