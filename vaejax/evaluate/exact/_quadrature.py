"""log p(x) by quadrature: sums over points of latent space, and what says how good they are."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import size_of
from vaejax.distributions import MultivariateNormal, Normal
from vaejax.errors import finite_values, wrong
from vaejax.evaluate._each import checked_batch
from vaejax.evaluate.exact._batches import (
    Program,
    first,
    latent_size,
    log_px_given,
    measure_batches,
)
from vaejax.model import Model, deterministic
from vaejax.types import Array, Batch, Key, Params, Transform

MOST_POINTS = 10**8  # of a rule: beyond, decoding takes hours

Rule = tuple[Array, Array]  # the nodes of one dimension, and the log of what each counts


class Quadrature(NamedTuple):
    """log p(x) by a sum over points z_i of latent space, and what tells whether to trust it.

    Args:
      log_px: log p(x), nats, `[n]`.
      coarse: the same with half as many nodes per dimension, `[n]`: `log_px - coarse` is what the
        last halving of the spacing changed.
      edge: the posterior mass of the outermost points, `[n]`; large where the grid is too narrow.
      points: the effective number of points under the posterior, `1 / sum_i p(z_i|x)^2`, `[n]`;
        near 1 where the spacing is too wide to see the posterior.
      mean: E[z|x], `[n, latent]`.
      deviation: the standard deviation of each z given x, `[n, latent]`.
      spacing: of the grid, NaN where there is none.
    """

    log_px: Any
    coarse: Any
    edge: Any
    points: Any
    mean: Any
    deviation: Any
    spacing: Any = ()


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
    program = Program(_integrated, options, transform, batch_size)
    result = _integral(program, (params, rule), key, batch)
    return _measured(name, result, batch, spacing)


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
        expected_points = f"2 to {_most(latent)} per dimension"
        raise wrong(f"{name}: points", points, expected_points, "200 is usual")
    rule = grid_rule(name, 2 / points, 1.0, latent)
    # A posterior that one cell holds has deviation 0 on the grid: the cell is what is known of it.
    half = deviations * np.maximum(around.deviation, np.nan_to_num(around.spacing) / 2)
    if not np.all(half > 0):
        fix = "pass quadrature(...), whose spacing bounds it from below"
        raise wrong(f"{name}: around", "a deviation of 0", "> 0", fix)
    boxes = jnp.asarray(around.mean), jnp.asarray(half)
    options = model, on_its_own_grid, latent, chunk
    program = Program(_integrated, options, transform, 1)
    result = _integral(program, (params, rule), key, batch, boxes)
    return _measured(name, result, batch)


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
        fix = f"take points={_most(latent)}"
        raise wrong(f"{name}: points", f"{points**latent:.1e} in all", "at most 1e8", fix)
    options = model, under_the_prior, latent, chunk
    program = Program(_integrated, options, transform, batch_size)
    fine, coarse = (
        _integral(program, (params, _hermite(m)), key, batch) for m in (points, points // 2)
    )
    return _measured(name, fine._replace(coarse=coarse.log_px), batch)


def _integral(
    program: Program, shared: tuple[Params, Rule], key: Key, batch: Batch, boxes: Any = ()
) -> Quadrature:
    """The Quadrature of all images; boxes: of the images' own grids, or ()."""
    return measure_batches(program, shared, key, batch._replace(c=(batch.c, boxes)))


def _integrated(
    model: Model, place: Any, latent: int, chunk: int, shared: Any, keys: Key, x: Any, given: Any
) -> Quadrature:
    """The Quadrature of a batch; shared: params, the rule; given: c, the box."""
    model = deterministic(model)
    (params, rule), (c, box) = shared, given
    fold = partial(fold_points, model, place, latent, chunk, params, x, c, box, rule)
    return summed(fold, size_of(x), len(rule[0]), latent)


def fold_points(
    model: Model,
    place: Callable[..., tuple[Array, Array]],
    latent: int,
    chunk: int,
    params: Params,
    x: Any,
    c: Any,
    box: Any,
    rule: Rule,
    add: Callable[..., Any],
    start: Any,
) -> Any:
    """`carry = add(carry, z, index, log_joint)` over the product rule, `chunk` points at a time.

    `z [chunk, latent]`, `index [chunk, latent]` of their nodes, `log_joint [chunk, n]`: the log of
    each point's share of p(x), -inf past the last point. `place`: one of the three below.
    """
    nodes, log_w = rule
    count = len(nodes) ** latent
    chunk = min(chunk, count)
    pz = model.prior(params, c)

    def step(i: Array, carry: Any) -> Any:
        flat = i * chunk + jnp.arange(chunk)
        index = jnp.stack(jnp.unravel_index(jnp.minimum(flat, count - 1), (len(nodes),) * latent))
        z, weight = jax.vmap(partial(place, pz, box))(nodes[index.T], log_w[index.T])
        weight = jnp.where(flat < count, weight, -jnp.inf)
        return add(carry, z, index.T, weight[:, None] + log_px_given(model, params, z, x, c))

    return lax.fori_loop(0, -(-count // chunk), step, start)


def on_the_grid(pz: Any, box: Any, node: Array, log_w: Array) -> tuple[Array, Array]:
    """z and the log of what it counts in sum_i exp(log_weight_i) p(x|z_i): p(z) and its cell."""
    return node, jnp.sum(log_w) + pz.log_prob(node)


def on_its_own_grid(pz: Any, box: Any, node: Array, log_w: Array) -> tuple[Array, Array]:
    """The same on a grid in [-1, 1]^d that is moved to the example's box (centre, half-widths)."""
    centre, half = box
    z = centre + half * node
    return z, jnp.sum(log_w + jnp.log(half)) + pz.log_prob(z)


def under_the_prior(pz: Any, box: Any, node: Array, log_w: Array) -> tuple[Array, Array]:
    """z and the log of its weight, of a node for the standard normal moved to the prior."""
    if isinstance(pz, Normal):
        return pz.loc + pz.scale * node, jnp.sum(log_w)
    return pz.loc + jnp.tril(pz.scale_tril) @ node, jnp.sum(log_w)


def summed(fold: Any, n: int, nodes: int, latent: int) -> Quadrature:
    """The Quadrature of n images by one `fold`, with that number of nodes per dimension."""

    def add(carry: Any, z: Array, index: Array, log_joint: Array) -> Any:
        top, sums, squares = carry
        new = jnp.maximum(top, jnp.max(log_joint, axis=0))
        # While every share so far is zero the maximum is -inf: count from 0 instead.
        shift = jnp.where(jnp.isneginf(new), 0.0, new)
        w, old = jnp.exp(log_joint - shift[None]), jnp.exp(top - shift)
        edge = jnp.any((index == 0) | (index == nodes - 1), axis=1)
        even = jnp.all(index % 2 == 0, axis=1) * 2.0**latent  # the grid of twice the spacing
        parts = jnp.column_stack([jnp.ones_like(even), even, edge, z, z**2])
        added = jnp.matmul(w.T, parts, precision=lax.Precision.HIGHEST)
        return new, sums * old[:, None] + added, squares * old**2 + jnp.sum(w**2, axis=0)

    start = jnp.full(n, -jnp.inf), jnp.zeros((n, 3 + 2 * latent)), jnp.zeros(n)
    top, sums, squares = fold(add, start)
    total, even, edge = sums[:, 0], sums[:, 1], sums[:, 2]
    mean, square = jnp.split(sums[:, 3:] / total[:, None], 2, axis=1)
    return Quadrature(
        log_px=top + jnp.log(total),
        coarse=top + jnp.log(even),
        edge=edge / total,
        points=total**2 / squares,
        mean=mean,
        deviation=jnp.sqrt(jnp.maximum(square - mean**2, 0)),
    )


def grid_rule(function: str, spacing: float, width: float, latent: int) -> Rule:
    """Nodes of one dimension, symmetric around 0, and the log of the length each stands for."""
    if not 0 < spacing <= width < np.inf:
        got = f"spacing={spacing}, width={width}"
        raise wrong(f"{function}: grid", got, "0 < spacing <= width", "width is a half-width")
    number = round(2 * width / spacing)
    if number**latent > MOST_POINTS:
        enough = 2 * width / _most(latent)
        fix = f"take spacing={np.ceil(enough * 1e4) / 1e4:g} or narrow the width"
        got = f"{number}^{latent} = {number**latent:.1e} points"
        raise wrong(f"{function}: spacing", got, f"at most {MOST_POINTS:.0e}", fix)
    nodes = (np.arange(number) - (number - 1) / 2) * spacing
    return jnp.asarray(nodes, float), jnp.full(number, np.log(spacing), float)


def _hermite(points: int) -> tuple[Array, Array]:
    """Nodes and log-weights of one dimension under N(0, 1)."""
    from scipy import special

    nodes, weights = special.roots_hermitenorm(points)
    with np.errstate(divide="ignore"):  # the outermost of many weights are 0 in double precision
        log_w = np.log(weights) - 0.5 * np.log(2 * np.pi)
    return jnp.asarray(nodes, float), jnp.asarray(log_w, float)


def _most(latent: int) -> int:
    """How many nodes per dimension a rule may have."""
    return int(MOST_POINTS ** (1 / latent) + 1e-9)


def _measured(function: str, result: Quadrature, batch: Any, spacing: float = np.nan) -> Quadrature:
    finite_values(function, "log p(x)", result.log_px, batch.x)
    return jax.tree.map(np.asarray, result)._replace(spacing=spacing)
