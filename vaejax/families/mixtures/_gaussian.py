"""Components that are Gaussians, with diagonal or with full covariances."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.distributions import MultivariateNormal, Normal
from vaejax.families.mixtures._family import Family
from vaejax.types import Array


def _log_probs(components: Normal, x: Array) -> Array:
    return jax.vmap(lambda component: component.log_prob(x))(components)


def _fitted(share: Array, x: Array, floor: float) -> Normal:
    means = jnp.matmul(share, x, precision="highest")

    # About the mean itself: E[x^2] - mean^2 would lose its digits far from the origin.
    def scale(share_and_mean: tuple[Array, Array]) -> Array:
        one, mean = share_and_mean
        return jnp.sqrt(jnp.maximum(one @ (x - mean[None]) ** 2, floor**2))

    return Normal(means, lax.map(scale, (share, means)))


def _around(centres: Array, spread: Array, floor: float) -> Normal:
    scale = jnp.maximum(jnp.sqrt(spread), floor)
    return Normal(centres, jnp.full_like(centres, scale))


def _variance(components: Normal) -> Array:
    return jnp.asarray(components.scale) ** 2


def _full_log_probs(components: MultivariateNormal, x: Array) -> Array:
    # Inverted once, and again a matrix product: a solve for every example is far slower.
    eye = jnp.eye(x.shape[-1], dtype=jnp.result_type(components.scale_tril))
    solve = partial(jax.scipy.linalg.solve_triangular, lower=True)
    inverse = jax.vmap(solve, (0, None))(components.scale_tril, eye)
    z = jnp.einsum("kij,kj->ki", inverse, x[None] - components.loc, precision="highest")
    log_det = jnp.log(jnp.abs(jnp.diagonal(inverse, axis1=1, axis2=2))).sum(axis=1)
    return log_det - 0.5 * jnp.sum(z**2, axis=1) - 0.5 * x.size * np.log(2 * np.pi).item()


def _full_fitted(share: Array, x: Array, floor: float) -> MultivariateNormal:
    means = jnp.matmul(share, x, precision="highest")

    def scale_tril(share_and_mean: tuple[Array, Array]) -> Array:
        one, mean = share_and_mean
        far = x - mean[None]
        covariance = jnp.matmul((one[:, None] * far).T, far, precision="highest")
        values, vectors = jnp.linalg.eigh(covariance)
        root = vectors * jnp.sqrt(jnp.maximum(values, floor**2))[None]
        upper = jnp.linalg.qr(root.T, mode="r")  # root root^T = R^T R
        return (upper * jnp.sign(jnp.diagonal(upper))[:, None]).T

    return MultivariateNormal(means, lax.map(scale_tril, (share, means)))


def _full_around(centres: Array, spread: Array, floor: float) -> MultivariateNormal:
    scale = jnp.maximum(jnp.sqrt(spread), floor)
    eye = jnp.eye(centres.shape[-1], dtype=centres.dtype)
    return MultivariateNormal(centres, jnp.tile(scale * eye, (len(centres), 1, 1)))


def _full_variance(components: MultivariateNormal) -> Array:
    return jnp.sum(jnp.tril(components.scale_tril) ** 2, axis=-1)


DIAGONAL = Family(_log_probs, _fitted, _around, _variance)
FULL = Family(_full_log_probs, _full_fitted, _full_around, _full_variance)

__all__ = ["DIAGONAL", "FULL"]
