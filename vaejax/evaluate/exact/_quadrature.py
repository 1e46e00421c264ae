"""log p(x) by quadrature: sums over points of latent space, and what says how good they are."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.batch import size_of
from vaejax.distributions import MultivariateNormal, Normal
from vaejax.errors import finite_values, wrong
from vaejax.evaluate._each import checked_batch, measure
from vaejax.evaluate.exact._batches import (
    Program,
    first,
    latent_size,
    measure_batches,
)
from vaejax.evaluate.exact._points import (
    MOST_POINTS,
    Quadrature,
    Rule,
    fold_points,
    grid_rule,
    hermite_rule,
    integrated,
    most_nodes,
    on_its_own_grid,
    on_the_grid,
    summed,
    under_the_prior,
)
from vaejax.model import Model, deterministic
from vaejax.types import Array, Batch, Key, Params, Transform, describe_fields


@measure
def quadrature(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    spacing: float = 0.02,
    width: float = 6.0,
    transform: Transform | None = None,
    batch_size: int = 500,
    chunk: int = 2000,
) -> Quadrature:
    """log p(x) of every example by a regular grid over up to three latent dimensions.

    `log p(x) = log sum_i p(x|z_i) p(z_i) + d log(spacing)`, z_i on the grid of that spacing that
    fills [-width, width]^d. For a smooth integrand the error falls faster than any power of the
    spacing once that is below the posterior's standard deviation. For one with kinks, as relu
    layers make them, it falls with the square of the spacing (see `local_quadrature`).

    Args:
      model, params: a Model with any density over one to three latents, and its parameters.
      key: for the `transform` alone.
      data: a Batch, or the x of one, `[n, ...]`.
      spacing: of the grid.
      width: the grid fills [-width, width] in every dimension.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: for how many examples a grid point is decoded once; with conditions c, for one.
      chunk: how many grid points are decoded at a time.
    Returns:
      A Quadrature, nats.
    Raises:
      ValueError: for more than three dimensions or 10^8 points, no prior, and where log p(x) is not
        finite, with the example's index.
      TypeError: for a discrete prior.
    Example:
      >>> import jax
      >>> from vaejax import exact, linear
      >>> model = linear.linear_gaussian(3, latent=1)
      >>> params = model.init(jax.random.key(0), jax.numpy.zeros(3))
      >>> x = jax.numpy.ones((4, 3))
      >>> found = exact.quadrature(model, params, jax.random.key(1), x, spacing=0.1)
      >>> found.log_px.shape, found.mean.shape
      ((4,), (4, 1))
    """
    name = "quadrature"
    batch = checked_batch(name, key, data, batch_size=batch_size, chunk=chunk)
    latent = latent_size(name, model, params, batch.c)
    options = model, on_the_grid, latent, chunk
    rule = grid_rule(name, spacing, width, latent)
    program = Program(integrated, options, transform, batch_size)
    result = _integral(program, (params, rule), key, batch)
    return _measured(name, result, batch, spacing)


@measure
def converged_quadrature(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    tolerance: float = 1e-3,
    spacing: float = 0.08,
    width: float = 6.0,
    transform: Transform | None = None,
    batch_size: int = 500,
    chunk: int = 2000,
) -> Quadrature:
    """`quadrature` with the spacing halved until that changes no example by `tolerance` nats.

    Args:
      model, params, key, data, width, transform, batch_size, chunk: as in `quadrature`.
      tolerance: what the last halving may change at most, nats; and how much of an example's
        posterior, per unit of z, may lie on the edge of the grid.
      spacing: where to start.
    Returns:
      A Quadrature, whose `spacing` is the last.
    Raises:
      ValueError: for tolerance <= 0; where more of a posterior lies on the grid's edge; and as
        `quadrature` does, which is how it ends when the grid would pass 10^8 points before it has
        converged.
      TypeError: for a discrete prior.
    """
    if not tolerance > 0:
        raise wrong("converged_quadrature: tolerance", tolerance, "> 0, nats", "1e-3 is usual")
    options: dict[str, Any] = {"width": width, "transform": transform}
    options |= {"batch_size": batch_size, "chunk": chunk}
    while True:
        again = jax.random.clone(key)  # the same images at every spacing
        result = quadrature(model, params, again, data, spacing=spacing, **options)
        # Per unit of z, so that it is the same at every spacing and bounds what lies outside where
        # the posterior falls by more than a factor e over one unit.
        outside = result.edge / spacing
        worst = int(np.argmax(outside))
        if outside[worst] > tolerance:
            got = f"{outside[worst]:.2g} of the posterior of example {worst} on the edge"
            raise wrong("converged_quadrature: width", got, f"at most {tolerance}", "widen it")
        if np.abs(result.log_px - result.coarse).max() < tolerance:
            return result
        spacing = spacing / 2


@measure
def local_quadrature(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    around: Quadrature,
    *,
    points: int = 200,
    deviations: float = 12.0,
    transform: Transform | None = None,
    chunk: int = 2000,
) -> Quadrature:
    """`quadrature` again, on a grid of its own for each example, where its posterior lies.

    The sum of `quadrature` over `points` nodes per dimension that fill
    `around.mean +- deviations around.deviation`. It settles narrow posteriors, and decoders with
    kinks, at a fraction of the cost of so fine a grid over the whole of latent space. Every example
    decodes its own points. The sum leaves out what lies outside: where `edge` is not negligible, as
    with a second, distant mode, give more `deviations` and more points.

    Args:
      model, params, key, data, transform, chunk: as in `quadrature`.
      around: the result of `quadrature` for the same data, key and transform, on a grid fine enough
        to find every mode: its `points` should not be near 1.
      points: how many nodes per dimension.
      deviations: how far the grid reaches from the mean, in standard deviations.
    Returns:
      A Quadrature, nats, whose `spacing` is NaN.
    Raises:
      ValueError: as `quadrature` does; where `around` is of another number of examples; for
        deviations <= 0, points < 2, and more than 10^8 points in all.
      TypeError: for a discrete prior.
    """
    name = "local_quadrature"
    batch = checked_batch(name, key, data, points=points, chunk=chunk)
    latent = latent_size(name, model, params, batch.c)
    expected = (size_of(batch.x), latent)
    if np.shape(around.mean) != expected:
        fix = "pass quadrature(model, params, key, data, ...) of the same data"
        raise wrong(f"{name}: around", np.shape(around.mean), f"means {expected}", fix)
    if not 0 < deviations < np.inf:
        raise wrong(f"{name}: deviations", deviations, "> 0", "12 is usual")
    if points < 2 or points**latent > MOST_POINTS:
        expected_points = f"2 to {most_nodes(latent)} per dimension"
        raise wrong(f"{name}: points", points, expected_points, "200 is usual")
    rule = grid_rule(name, 2 / points, 1.0, latent)
    # A posterior that one cell holds has deviation 0 on the grid: the cell is what is known of it.
    half = deviations * np.maximum(around.deviation, np.nan_to_num(around.spacing) / 2)
    if not np.all(half > 0):
        fix = "pass quadrature(...), whose spacing bounds it from below"
        raise wrong(f"{name}: around", "a deviation of 0", "> 0", fix)
    boxes = jnp.asarray(around.mean), jnp.asarray(half)
    options = model, on_its_own_grid, latent, chunk
    program = Program(integrated, options, transform, 1)
    result = _integral(program, (params, rule), key, batch, boxes)
    return _measured(name, result, batch)


@measure
def gauss_hermite(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    points: int,
    transform: Transform | None = None,
    batch_size: int = 500,
    chunk: int = 2000,
) -> Quadrature:
    """log p(x) of every example by Gauss-Hermite quadrature under a Gaussian prior.

    `log p(x) = log sum_i w_i p(x|loc + scale t_i)`, with the product of `points` nodes per
    dimension. It is exact where p(x|z) is a polynomial of degree below 2 `points` in z. The nodes
    follow the prior, not the posterior: where the posterior is much narrower, as on images, a grid
    of the same size does better. `points` in the result and `log_px - coarse` show it.

    Args:
      model, params, key, data, transform, batch_size, chunk: as in `quadrature`; the prior is a
        Normal or a MultivariateNormal.
      points: how many nodes per dimension, 2 or more.
    Returns:
      A Quadrature, nats, whose `spacing` is NaN.
    Raises:
      TypeError: for another prior.
      ValueError: as `quadrature` does, for points < 2, and for more than 10^8 points in all.
    """
    name = "gauss_hermite"
    batch = checked_batch(name, key, data, batch_size=batch_size, chunk=chunk)
    latent = latent_size(name, model, params, batch.c)
    pz = jax.eval_shape(model.prior, params, first(batch.c))
    if not isinstance(pz, Normal | MultivariateNormal):
        fix = "use quadrature"
        raise wrong(f"{name}: prior", type(pz).__name__, "a Gaussian", fix, TypeError)
    if points < 2:
        raise wrong(f"{name}: points", points, "at least 2 per dimension", "100 is a start")
    if points**latent > MOST_POINTS:
        fix = f"take points={most_nodes(latent)}"
        raise wrong(f"{name}: points", f"{points**latent:.1e} in all", "at most 1e8", fix)
    options = model, under_the_prior, latent, chunk
    program = Program(integrated, options, transform, batch_size)
    fine, coarse = (
        _integral(program, (params, hermite_rule(m)), key, batch) for m in (points, points // 2)
    )
    return _measured(name, fine._replace(coarse=coarse.log_px), batch)


def _integral(
    program: Program, shared: tuple[Params, Rule], key: Key, batch: Batch, boxes: Any = ()
) -> Quadrature:
    """The Quadrature of all images; boxes: of the images' own grids, or ()."""
    return measure_batches(program, shared, key, batch._replace(c=(batch.c, boxes)))


def _measured(function: str, result: Quadrature, batch: Any, spacing: float = np.nan) -> Quadrature:
    finite_values(function, "log p(x)", result.log_px, batch.x)
    return jax.tree.map(np.asarray, result)._replace(spacing=spacing)


@describe_fields
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


@measure
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
      model, params, data, spacing, width, transform, batch_size, chunk: as in `quadrature`.
      key: for the draws and the `transform`.
      draws: of z for each example.
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
