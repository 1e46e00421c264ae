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


def _fitted(share: Array, x: Array, floor: float, _: Normal) -> Normal:
    means = jnp.matmul(share, x, precision="highest")

    # About the mean itself: E[x^2] - mean^2 would lose its digits far from the origin.
    def scale(share_and_mean: tuple[Array, Array]) -> Array:
        one, mean = share_and_mean
        return jnp.sqrt(jnp.maximum(one @ (x - mean[None]) ** 2, floor**2))

    return Normal(means, lax.map(scale, (share, means)))


def _allowed(components: Normal, floor: float) -> Normal:
    return Normal(components.loc, jnp.maximum(components.scale, floor))


def _around(centres: Array, spread: Array, floor: float) -> Normal:
    scale = jnp.maximum(jnp.sqrt(spread), floor)
    return Normal(centres, jnp.full_like(centres, scale))


def _variance(components: Normal) -> Array:
    return jnp.asarray(components.scale) ** 2


def _full_log_probs(components: MultivariateNormal, x: Array) -> Array:
    # Inverted once, and again a matrix product: a solve for every example is far slower.
    inverse = jax.vmap(_inverse)(components.scale_tril)
    z = jnp.einsum("kij,kj->ki", inverse, x[None] - components.loc, precision="highest")
    log_det = jnp.log(jnp.abs(jnp.diagonal(inverse, axis1=1, axis2=2))).sum(axis=1)
    return log_det - 0.5 * jnp.sum(z**2, axis=1) - 0.5 * x.size * np.log(2 * np.pi).item()


def _full_fitted(
    share: Array, x: Array, floor: float, old: MultivariateNormal
) -> MultivariateNormal:
    means = jnp.matmul(share, x, precision="highest")

    # In units of the component before, whose covariance is then about the identity: a covariance
    # in units of x holds squares, in which small directions are lost in the rounding of large ones.
    def scale_tril(one: tuple[Array, Array, Array]) -> Array:
        share, mean, before = one
        z = jnp.matmul(x - mean[None], _inverse(before).T, precision="highest")
        covariance = jnp.matmul((share[:, None] * z).T, z, precision="highest")
        scale = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance), jnp.finfo(x.dtype).tiny))
        size = len(mean)
        correlation = covariance / scale[:, None] / scale[None]
        correlation += size * jnp.finfo(x.dtype).eps * jnp.eye(size, dtype=x.dtype)
        root = scale[:, None] * _root(correlation)
        return _raised(jnp.matmul(jnp.tril(before), root, precision="highest"), floor)

    return MultivariateNormal(means, lax.map(scale_tril, (share, means, old.scale_tril)))


def _full_allowed(components: MultivariateNormal, floor: float) -> MultivariateNormal:
    raised = lax.map(partial(_raised, floor=floor), jnp.tril(components.scale_tril))
    return MultivariateNormal(components.loc, raised)


def _raised(root: Array, floor: float) -> Array:
    """A triangular root of R R^T, R triangular, with its singular values at the floor or above."""

    def raised() -> Array:
        vectors, values, _ = jnp.linalg.svd(root)
        return _triangular(vectors, jnp.maximum(values, floor))

    # The smallest is 1 / |R^-1| or more, which is found much faster.
    return lax.cond(jnp.linalg.norm(_inverse(root)) * floor <= 1, lambda: root, raised)


def _root(correlation: Array) -> Array:
    """A triangular root of a correlation matrix, whose rounding may have left it indefinite."""

    def least() -> Array:  # examples on a line, or all alike: what is lost is far below the floor
        values, vectors = jnp.linalg.eigh(correlation)
        eps = jnp.finfo(correlation.dtype).eps
        return _triangular(vectors, jnp.sqrt(jnp.maximum(values, eps * jnp.max(values))))

    root = jnp.linalg.cholesky(correlation)
    return lax.cond(jnp.all(jnp.isfinite(root)), lambda: root, least)


def _triangular(vectors: Array, values: Array) -> Array:
    """The lower triangular root of V diag(values^2) V^T with a positive diagonal."""
    upper = jnp.linalg.qr(values[:, None] * vectors.T, mode="r")
    return (upper * jnp.where(jnp.diagonal(upper) < 0, -1, 1)[:, None]).T


def _inverse(root: Array) -> Array:
    eye = jnp.eye(len(root), dtype=jnp.result_type(root))
    return jax.scipy.linalg.solve_triangular(root, eye, lower=True)


def _full_around(centres: Array, spread: Array, floor: float) -> MultivariateNormal:
    scale = jnp.maximum(jnp.sqrt(spread), floor)
    eye = jnp.eye(centres.shape[-1], dtype=centres.dtype)
    return MultivariateNormal(centres, jnp.tile(scale * eye, (len(centres), 1, 1)))


def _full_variance(components: MultivariateNormal) -> Array:
    return jnp.sum(jnp.tril(components.scale_tril) ** 2, axis=-1)


DIAGONAL = Family(_log_probs, _fitted, _allowed, _around, _variance)
FULL = Family(_full_log_probs, _full_fitted, _full_allowed, _full_around, _full_variance)

__all__ = ["DIAGONAL", "FULL"]
