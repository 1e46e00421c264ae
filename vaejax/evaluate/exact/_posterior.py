"""The posterior p(z|x) on a grid: draws, mean and covariance."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.batch import size_of
from vaejax.errors import finite_values
from vaejax.evaluate._each import checked_batch
from vaejax.evaluate.exact._batches import Program, latent_size, measure_batches
from vaejax.evaluate.exact._quadrature import fold_points, grid_rule, on_the_grid, summed
from vaejax.model import Model, deterministic
from vaejax.types import Array, Key, Params, Transform


class GridPosterior(NamedTuple):
    """The posterior p(z|x) of every example, from a grid.

    Args:
      z: independent draws, `[n, draws, latent]`.
      mean: E[z|x], `[n, latent]`.
      covariance: Cov[z|x], `[n, latent, latent]`.
      log_px: log p(x), nats, `[n]`.
    """

    z: Any
    mean: Any
    covariance: Any
    log_px: Any


def grid_posterior(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    draws: int,
    spacing: float = 0.02,
    width: float = 6.0,
    transform: Transform | None = None,
    batch_size: int = 500,
    chunk: int = 2000,
) -> GridPosterior:
    """Draws from the exact posterior p(z|x) of every example, and its mean and covariance.

    `p(z_i|x) = p(x|z_i) p(z_i) / sum_j p(x|z_j) p(z_j)`, over the grid of `quadrature`. The draws
    are points of the grid: expectations of functions that are smooth at this spacing are as exact
    as log p(x), which noise inside the cells would spoil. It takes two passes over the grid,
    whatever the number of draws. `quadrature` shows whether the grid has converged.

    Args:
      model, params: a Model with a density over one to three latents, and its parameters.
      key: for the draws and the `transform`.
      data: a Batch, or the x of one, `[n, ...]`.
      draws: of z for each example.
      spacing: of the grid.
      width: the grid fills [-width, width] in every dimension.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: for how many examples a grid point is decoded once; with conditions c, for one.
      chunk: how many grid points are decoded at a time.
    Returns:
      A GridPosterior.
    Raises:
      TypeError, ValueError: as `quadrature` does, and for draws < 1.
    """
    name = "grid_posterior"
    counts = {"draws": draws, "batch_size": batch_size, "chunk": chunk}
    batch = checked_batch(name, key, data, **counts)
    latent = latent_size(name, model, params, batch.c)
    options = model, latent, draws, chunk
    shared = params, grid_rule(name, spacing, width, latent)
    program = Program(_drawn, options, transform, batch_size)
    result = measure_batches(program, shared, key, batch)
    finite_values(name, "log p(x)", result.log_px, batch.x)
    return jax.tree.map(np.asarray, result)


def _drawn(
    model: Model, latent: int, draws: int, chunk: int, shared: Any, keys: Key, x: Any, c: Any
) -> GridPosterior:
    """The GridPosterior of a batch; shared: params, the rule's nodes and log-weights."""
    model = deterministic(model)
    params, rule = shared
    fold = partial(fold_points, model, on_the_grid, latent, chunk, params, x, c, (), rule)
    n = size_of(x)
    whole = summed(fold, n, len(rule[0]), latent)
    # By the inverse of the distribution function along the flattened grid, in (0, 1].
    u = 1 - jax.vmap(lambda key: jax.random.uniform(key, (draws,)))(keys)

    def add(carry: Any, z: Array, index: Array, log_joint: Array) -> Any:
        below, drawn, covariance = carry
        p = jnp.exp(log_joint - whole.log_px[None])
        cdf = below[:, None] + jnp.cumsum(p.T, axis=1)
        # What rounding leaves above the last value belongs to the last point that has mass.
        level = jnp.minimum(u, cdf[:, -1:])
        here = z[jax.vmap(jnp.searchsorted)(cdf, level)]
        drawn = jnp.where((level > below[:, None])[..., None], here, drawn)
        away = z[:, None] - whole.mean[None]
        covariance += jnp.einsum("in,ind,ine->nde", p, away, away)
        return cdf[:, -1], drawn, covariance

    start = jnp.zeros(n), jnp.zeros((n, draws, latent)), jnp.zeros((n, latent, latent))
    _, z, covariance = fold(add, start)
    return GridPosterior(z, whole.mean, covariance, whole.log_px)
