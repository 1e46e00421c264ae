"""Exact log p(x), for models small or simple enough: what estimators and bounds are tested against.

- latents of up to three dimensions: `quadrature` on a regular grid, with its signs of convergence;
  `converged_quadrature`, which halves the spacing; `local_quadrature`, on a grid of its own for
  each example; `gauss_hermite`; and draws from the posterior by `grid_posterior`;
- discrete latents: `enumerate_latents`;
- at any size, for the linear-Gaussian model: see `vaejax.linear`.

They take data as `evaluate.log_likelihood` does: for the same key and transform both see the same
images. Layer noise such as dropout is off, and an example's randomness depends on the key and its
index alone. Memory stays bounded; a grid point is decoded once for a whole batch of images.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import as_batch, example_at, size_of
from vaejax.distributions import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Laplace,
    MultivariateNormal,
    Normal,
)
from vaejax.errors import at_least_one, finite_values, wrong
from vaejax.model import Model, deterministic
from vaejax.types import Array, Key, Params, Transform

MOST_POINTS = 10**8  # of a rule: beyond, decoding takes hours
MOST_ELEMENTS = 2**24  # of log p(x|z) per pixel that are in memory at once
ELEMENTWISE = (ContinuousBernoulli, DiscretizedLogistic, Laplace, Normal)


class Quadrature(NamedTuple):
    """log p(x) by a sum over points z_i of latent space, and what tells whether to trust it.

    `log_px` `[n]`: nats; `coarse` `[n]`: the same with half as many nodes per dimension, so that
    `log_px - coarse` is what the last halving of the spacing changed; `edge` `[n]`: posterior mass
    of the outermost points, large where the grid is too narrow; `points` `[n]`: effective number of
    points under the posterior, `1 / sum_i p(z_i|x)^2`, near 1 where the spacing is too wide to see
    it; `mean` and `deviation` `[n, latent]`: E[z|x] and the standard deviation of each z given x;
    `spacing`: of the grid, NaN where there is none.
    """

    log_px: Any
    coarse: Any
    edge: Any
    points: Any
    mean: Any
    deviation: Any
    spacing: Any = ()


class GridPosterior(NamedTuple):
    """The posterior p(z|x) of every example, from a grid.

    `z` `[n, draws, latent]`: independent draws; `mean` `[n, latent]`; `covariance`
    `[n, latent, latent]`; `log_px` `[n]`: log p(x), nats.
    """

    z: Any
    mean: Any
    covariance: Any
    log_px: Any


class Enumeration(NamedTuple):
    """log p(x) by a sum over all values of a discrete latent.

    `log_px` `[n]`: nats; `posterior` `[n, v]`: p(z_v|x); `prior_mass` `[n]`: sum_v p(z_v), which is
    1 where no value is left out (below 1, `log_px` is a lower bound).
    """

    log_px: Any
    posterior: Any
    prior_mass: Any


def quadrature(
    model: Model,
    params: Params,
    data: Any,
    *,
    spacing: float = 0.02,
    width: float = 6.0,
    key: Key | None = None,
    transform: Transform | None = None,
    batch_size: int = 500,
    chunk: int = 2000,
) -> Quadrature:
    """log p(x) of every example by a regular grid over up to three latent dimensions.

    `log p(x) = log sum_i p(x|z_i) p(z_i) + d log(spacing)`, z_i on the grid of that spacing that
    fills [-width, width]^d. For a smooth integrand the error falls faster than any power of the
    spacing once that is below the posterior's standard deviation; for one with kinks, as relu
    layers make them, with its square (see `local_quadrature`).

    `data`: a Batch, or the x of one, `[n, ...]`, stored data if a `transform(key, x)` is given (it
    needs the `key`). The prior may be any density. A grid point is decoded once for `batch_size`
    examples, `chunk` points at a time; with conditions c, once for each example. Returns a
    `Quadrature`, nats. Raises ValueError for more than three dimensions or 10^8 points and where
    log p(x) is not finite, with the example's index; TypeError for a discrete prior.
    """
    batch, key = _checked("quadrature", data, key, transform, batch_size=batch_size, chunk=chunk)
    latent = _latent_size("quadrature", model, params, batch.c)
    rule = _grid("quadrature", spacing, width, latent)
    static = model, _on_the_grid, latent, transform, _width(batch, batch_size), chunk
    result = _integral(*static, params, key, batch.x, batch.c, (), *rule)
    return _measured("quadrature", result, batch, spacing)


def converged_quadrature(
    model: Model,
    params: Params,
    data: Any,
    *,
    tolerance: float = 1e-3,
    spacing: float = 0.08,
    width: float = 6.0,
    key: Key | None = None,
    transform: Transform | None = None,
    batch_size: int = 500,
    chunk: int = 2000,
) -> Quadrature:
    """`quadrature` with the spacing halved until that changes no example by `tolerance` nats.

    `spacing`: where to start; the other arguments as in `quadrature`. Returns a Quadrature, whose
    `spacing` is the last. Raises ValueError as `quadrature` does, which is how it ends when the
    grid would pass 10^8 points before it has converged, and where more than `tolerance` of an
    example's posterior, per unit of z, lies on the grid's edge.
    """
    if not tolerance > 0:
        raise wrong("converged_quadrature: tolerance", tolerance, "> 0, nats", "1e-3 is usual")
    while True:
        result = quadrature(
            model,
            params,
            data,
            spacing=spacing,
            width=width,
            key=key,
            transform=transform,
            batch_size=batch_size,
            chunk=chunk,
        )
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
    data: Any,
    around: Quadrature,
    *,
    points: int = 200,
    deviations: float = 12.0,
    key: Key | None = None,
    transform: Transform | None = None,
    chunk: int = 2000,
) -> Quadrature:
    """`quadrature` again, on a grid of its own for each example, where its posterior lies.

    The sum of `quadrature` over `points` nodes per dimension that fill
    `around.mean +- deviations around.deviation`. It settles narrow posteriors, and decoders with
    kinks, at a fraction of the cost of so fine a grid over the whole of latent space.

    `around`: the result of `quadrature` for the same data, key and transform, on a grid fine enough
    to find every mode: its `points` should not be near 1. The rest as in `quadrature`; every
    example decodes its own points. The sum leaves out what lies outside: where `edge` is not
    negligible, as with a second, distant mode, give more `deviations` and more points.
    Raises ValueError as `quadrature` does, and where `around` is of another number of examples.
    """
    name = "local_quadrature"
    batch, key = _checked(name, data, key, transform, points=points, chunk=chunk)
    latent = _latent_size(name, model, params, batch.c)
    expected = (size_of(batch.x), latent)
    if np.shape(around.mean) != expected:
        fix = "pass quadrature(model, params, data, ...) of the same data"
        raise wrong(f"{name}: around", np.shape(around.mean), f"means {expected}", fix)
    if not 0 < deviations < np.inf:
        raise wrong(f"{name}: deviations", deviations, "> 0", "12 is usual")
    if points < 2 or points**latent > MOST_POINTS:
        most = int(MOST_POINTS ** (1 / latent) + 1e-9)
        raise wrong(f"{name}: points", points, f"2 to {most} per dimension", "200 is usual")
    rule = _grid(name, 2 / points, 1.0, latent)
    # A posterior that one cell holds has deviation 0 on the grid: the cell is what is known of it.
    half = deviations * np.maximum(around.deviation, np.nan_to_num(around.spacing) / 2)
    if not np.all(half > 0):
        fix = "pass quadrature(...), whose spacing bounds it from below"
        raise wrong(f"{name}: around", "a deviation of 0", "> 0", fix)
    box = jnp.asarray(around.mean), jnp.asarray(half)
    static = model, _on_its_own_grid, latent, transform, 1, chunk
    return _measured(name, _integral(*static, params, key, batch.x, batch.c, box, *rule), batch)


def gauss_hermite(
    model: Model,
    params: Params,
    data: Any,
    *,
    points: int,
    key: Key | None = None,
    transform: Transform | None = None,
    batch_size: int = 500,
    chunk: int = 2000,
) -> Quadrature:
    """log p(x) of every example by Gauss-Hermite quadrature under a Gaussian prior.

    `log p(x) = log sum_i w_i p(x|loc + scale t_i)`, with the product of `points` nodes per
    dimension. It is exact where p(x|z) is a polynomial of degree below 2 `points` in z. The nodes
    follow the prior, not the posterior: where the posterior is much narrower, as on images, a grid
    of the same size does better; `points` in the result and `log_px - coarse` show it.

    The prior is a Normal or MultivariateNormal (else TypeError); the rest as in `quadrature`.
    """
    name = "gauss_hermite"
    batch, key = _checked(name, data, key, transform, batch_size=batch_size, chunk=chunk)
    latent = _latent_size(name, model, params, batch.c)
    pz = jax.eval_shape(model.prior, params, _first(batch.c))
    if not isinstance(pz, Normal | MultivariateNormal):
        fix = "use quadrature"
        raise wrong(f"{name}: prior", type(pz).__name__, "a Gaussian", fix, TypeError)
    if points < 2:
        raise wrong(f"{name}: points", points, "at least 2 per dimension", "100 is a start")
    if points**latent > MOST_POINTS:
        fix = f"take points={int(MOST_POINTS ** (1 / latent) + 1e-9)}"
        raise wrong(f"{name}: points", f"{points**latent:.1e} in all", "at most 1e8", fix)
    static = model, _under_the_prior, latent, transform, _width(batch, batch_size), chunk
    fine, coarse = (
        _integral(*static, params, key, batch.x, batch.c, (), *_hermite(m))
        for m in (points, points // 2)
    )
    return _measured(name, fine._replace(coarse=coarse.log_px), batch)


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
    as log p(x), which noise inside the cells would spoil.

    `draws`: per example; the other arguments and errors as in `quadrature`; check convergence
    there. Returns a `GridPosterior`. Two passes over the grid, whatever the number of draws.
    """
    counts = {"draws": draws, "batch_size": batch_size, "chunk": chunk}
    batch, key = _checked("grid_posterior", data, key, transform, **counts)
    latent = _latent_size("grid_posterior", model, params, batch.c)
    rule = _grid("grid_posterior", spacing, width, latent)
    static = model, latent, draws, transform, _width(batch, batch_size), chunk
    result = _grid_posterior(*static, params, key, batch.x, batch.c, *rule)
    finite_values("grid_posterior", "log p(x)", result.log_px, batch.x)
    return jax.tree.map(np.asarray, result)


def enumerate_latents(
    model: Model,
    params: Params,
    data: Any,
    values: Any,
    *,
    key: Key | None = None,
    transform: Transform | None = None,
    batch_size: int = 500,
    chunk: int = 2000,
) -> Enumeration:
    """log p(x) and the posterior of every example, for a discrete latent, by going through all z.

    `log p(x) = log sum_v p(x|z_v) p(z_v)`.

    `values`: all values of the latent, `[v, ...]` (see `binary_codes`); `data`, `key`, `transform`
    and the sizes as in `quadrature`. Returns an `Enumeration`, nats. Raises TypeError where the
    prior is a density; ValueError where the values' prior mass is above 1, since one is then given
    twice, and where log p(x) is not finite.
    """
    name = "enumerate_latents"
    batch, key = _checked(name, data, key, transform, batch_size=batch_size, chunk=chunk)
    pz = _prior(name, model, params, batch.c)
    if not pz.discrete:
        fix = "use quadrature, which multiplies by the volume of a cell"
        raise wrong(f"{name}: prior", type(pz).__name__, "a discrete one", fix, TypeError)
    values = jax.tree.map(jnp.asarray, values)
    at_least_one(name, values=size_of(values))
    static = model, transform, _width(batch, batch_size), min(chunk, size_of(values))
    result = _enumerate(*static, params, key, batch.x, batch.c, values)
    finite_values(name, "log p(x)", result.log_px, batch.x)
    mass = float(result.prior_mass.max())
    if mass > 1 + 1e-3:
        raise wrong(f"{name}: values", f"a prior mass of {mass:.6g}", "at most 1", "give each once")
    return jax.tree.map(np.asarray, result)


def binary_codes(n: int, dtype: Any = float) -> Array:
    """All codes of n binary units, counting up, the last unit fastest: `[2^n, n]`, zeros and ones.

    Raises ValueError for n outside 1..24.
    """
    if not 1 <= n <= 24:
        fix = "estimate log p(x) instead of enumerating"
        raise wrong("binary_codes: n", n, "1 to 24 units", fix)
    return (jnp.arange(2**n)[:, None] >> jnp.arange(n)[::-1][None] & 1).astype(dtype)


def _checked(
    function: str, data: Any, key: Key | None, transform: Any, **counts: int
) -> tuple[Any, Key]:
    """The data as a Batch and a key, which only a transform and draws need."""
    batch = as_batch(data)
    at_least_one(function, **counts, examples=size_of(batch.x))
    if transform is not None and key is None:
        fix = "pass key=jax.random.key(0), the same as to evaluate.log_likelihood"
        raise wrong(f"{function}: key", None, "a key for the transform", fix)
    return batch, jax.random.key(0) if key is None else key


def _first(c: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], c)


def _width(batch: Any, batch_size: int) -> int:
    """How many examples share a decoded point: one where each has a condition of its own."""
    return 1 if jax.tree.leaves(batch.c) else batch_size


def _prior(function: str, model: Model, params: Params, c: Any) -> Any:
    pz = model.prior(params, _first(c))
    if pz is None:
        fix = "give autoencoder(..., prior=...)"
        raise wrong(f"{function}: model", "no prior", "p(z) to integrate over", fix)
    return pz


def _latent_size(function: str, model: Model, params: Params, c: Any) -> int:
    pz = _prior(function, model, params, c)
    if pz.discrete:
        fix = "use enumerate_latents"
        raise wrong(f"{function}: prior", type(pz).__name__, "a density", fix, TypeError)
    shape = jax.tree.map(jnp.shape, jax.eval_shape(pz.sample, jax.random.key(0)))
    if not isinstance(shape, tuple) or len(shape) != 1 or not 1 <= shape[0] <= 3:
        fix = "estimate it: evaluate.log_likelihood"
        raise wrong(f"{function}: latent", f"shape {shape}", "(1,), (2,) or (3,)", fix)
    return shape[0]


def _grid(function: str, spacing: float, width: float, latent: int) -> tuple[Array, Array]:
    """Nodes of one dimension, symmetric around 0, and the log of the length each stands for."""
    if not 0 < spacing <= width < np.inf:
        got = f"spacing={spacing}, width={width}"
        raise wrong(f"{function}: grid", got, "0 < spacing <= width", "width is a half-width")
    number = round(2 * width / spacing)
    if number**latent > MOST_POINTS:
        enough = 2 * width / int(MOST_POINTS ** (1 / latent) + 1e-9)
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


def _on_the_grid(pz: Any, box: Any, node: Array, log_w: Array) -> tuple[Array, Array]:
    """z and the log of what it counts in sum_i exp(log_weight_i) p(x|z_i): p(z) and its cell."""
    return node, jnp.sum(log_w) + pz.log_prob(node)


def _on_its_own_grid(pz: Any, box: Any, node: Array, log_w: Array) -> tuple[Array, Array]:
    """The same on a grid in [-1, 1]^d that is moved to the example's box (centre, half-widths)."""
    centre, half = box
    z = centre + half * node
    return z, jnp.sum(log_w + jnp.log(half)) + pz.log_prob(z)


def _under_the_prior(pz: Any, box: Any, node: Array, log_w: Array) -> tuple[Array, Array]:
    """z and the log of its weight, of a node for the standard normal moved to the prior."""
    if isinstance(pz, Normal):
        return pz.loc + pz.scale * node, jnp.sum(log_w)
    return pz.loc + jnp.tril(pz.scale_tril) @ node, jnp.sum(log_w)


def _log_px(model: Model, params: Params, z: Any, x: Any, c: Any) -> Array:
    """log p(x_j|z_i, c) for every pair, `[points, n]`; each z_i is decoded once."""
    px = jax.eval_shape(model.decode, params, jax.tree.map(lambda leaf: leaf[0], z), c)
    if type(px) is Bernoulli:
        return _log_coins(jax.vmap(lambda one: model.decode(params, one, c).logits)(z), x)
    flat = type(px) in ELEMENTWISE and len(px.event_shape) > 1
    if flat:
        # On CPU a sum over [28, 28, 1] is about a hundred times as slow as one over [784].
        _check_event(x, px.event_shape)
        x = x.reshape(len(x), -1)

    def point(one: Any) -> Array:
        # What decode makes stays in here: vmap would copy a network in it for every point.
        px = model.decode(params, one, c)
        return jax.vmap((_flattened(px) if flat else px).log_prob)(x)

    together = max(1, MOST_ELEMENTS // max(1, sum(leaf.size for leaf in jax.tree.leaves(x))))
    return lax.map(point, z, batch_size=min(together, size_of(z)))


def _log_coins(logits: Array, x: Array) -> Array:
    """log p(x_j|logits_i) of Bernoullis, `[points, n]`: `sum x l - softplus(l)` by one product.

    About ten times as fast as pair by pair, where softplus is computed again for every image.
    """
    _check_event(x, logits.shape[1:])
    logits, x = logits.reshape(len(logits), -1), x.reshape(len(x), -1).astype(logits.dtype)
    outside = jnp.any((x < 0) | (x > 1), axis=1)
    products = jnp.matmul(logits, x.T, precision=lax.Precision.HIGHEST)
    log_px = products - jnp.sum(jax.nn.softplus(logits), axis=1)[:, None]
    return jnp.where(outside[None], -jnp.inf, log_px)


def _flattened(px: Any) -> Any:
    """A distribution of independent elements over the event as one vector."""
    event = px.event_shape
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, event).reshape(-1) if jnp.ndim(leaf) else leaf, px
    )


def _check_event(x: Any, event: tuple[int, ...]) -> None:
    if jnp.shape(x)[1:] != event:
        fix = "reshape the data"
        raise wrong("exact: data", jnp.shape(x), f"examples {event}, as decode makes them", fix)


def _fold(
    model: Model,
    place: Any,
    latent: int,
    chunk: int,
    params: Any,
    x: Any,
    c: Any,
    box: Any,
    nodes: Array,
    log_w: Array,
    add: Any,
    start: Any,
) -> Any:
    """`carry = add(carry, z, index, log_joint)` over the product rule, `chunk` points at a time.

    `z [chunk, latent]`, `index [chunk, latent]` of their nodes, `log_joint [chunk, n]`: the log of
    each point's share of p(x), -inf past the last point.
    """
    count = len(nodes) ** latent
    chunk = min(chunk, count)
    pz = model.prior(params, c)

    def step(i: Array, carry: Any) -> Any:
        flat = i * chunk + jnp.arange(chunk)
        index = jnp.stack(jnp.unravel_index(jnp.minimum(flat, count - 1), (len(nodes),) * latent))
        z, weight = jax.vmap(partial(place, pz, box))(nodes[index.T], log_w[index.T])
        weight = jnp.where(flat < count, weight, -jnp.inf)
        return add(carry, z, index.T, weight[:, None] + _log_px(model, params, z, x, c))

    return lax.fori_loop(0, -(-count // chunk), step, start)


def _sums(fold: Any, n: int, nodes: int, latent: int) -> Quadrature:
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


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _integral(
    model: Model,
    place: Any,
    latent: int,
    transform: Any,
    batch_size: int,
    chunk: int,
    params: Any,
    key: Key,
    x: Any,
    c: Any,
    boxes: Any,
    nodes: Array,
    log_w: Array,
) -> Quadrature:
    model = deterministic(model)

    def batch(x: Any, given: Any, keys: Key) -> Quadrature:
        c, box = given
        fold = partial(_fold, model, place, latent, chunk, params, x, c, box, nodes, log_w)
        return _sums(fold, size_of(x), len(nodes), latent)

    return _over_batches(batch, key, transform, x, (c, boxes), batch_size)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _grid_posterior(
    model: Model,
    latent: int,
    draws: int,
    transform: Any,
    batch_size: int,
    chunk: int,
    params: Any,
    key: Key,
    x: Any,
    c: Any,
    nodes: Array,
    log_w: Array,
) -> GridPosterior:
    model = deterministic(model)

    def batch(x: Any, c: Any, keys: Key) -> GridPosterior:
        fold = partial(_fold, model, _on_the_grid, latent, chunk, params, x, c, (), nodes, log_w)
        n = size_of(x)
        whole = _sums(fold, n, len(nodes), latent)
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

    return _over_batches(batch, key, transform, x, c, batch_size)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _enumerate(
    model: Model,
    transform: Any,
    batch_size: int,
    chunk: int,
    params: Any,
    key: Key,
    x: Any,
    c: Any,
    values: Any,
) -> Enumeration:
    model = deterministic(model)
    count = size_of(values)

    def batch(x: Any, c: Any, keys: Key) -> Enumeration:
        pz = model.prior(params, c)

        def some(indices: Array) -> tuple[Array, Array]:
            z = jax.tree.map(lambda leaf: leaf[indices], values)
            log_pz = jax.vmap(pz.log_prob)(z)
            return log_pz, log_pz[:, None] + _log_px(model, params, z, x, c)

        chunks = -(-count // chunk)
        indices = jnp.minimum(jnp.arange(chunks * chunk), count - 1).reshape(chunks, chunk)
        log_pz, joint = lax.map(some, indices)
        joint = joint.reshape(-1, size_of(x))[:count]
        log_px = jax.nn.logsumexp(joint, axis=0)
        mass = jnp.sum(jnp.exp(log_pz.reshape(-1)[:count]))
        posterior = jnp.exp(joint - log_px[None]).T
        return Enumeration(log_px, posterior, jnp.full(size_of(x), mass))

    return _over_batches(batch, key, transform, x, c, batch_size)


def _over_batches(function: Any, key: Key, transform: Any, x: Any, c: Any, batch_size: int) -> Any:
    """`function(x [b, ...], c, keys [b])` over all examples, as one compiled loop over batches.

    c is one condition for the batch, so a batch is one example where there are conditions.
    """
    size = size_of(x)
    batches = -(-size // batch_size)
    width = -(-size // batches)

    def one(indices: Array) -> Any:
        seen, given, keys = jax.vmap(lambda index: example_at(key, transform, index, x, c))(indices)
        return function(seen, _first(given), keys)

    # The last example counts again in the ragged end, rather than compiling a second program.
    indices = jnp.minimum(jnp.arange(batches * width), size - 1).reshape(batches, width)
    result = lax.map(one, indices)
    return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:])[:size], result)


def _measured(function: str, result: Quadrature, batch: Any, spacing: float = np.nan) -> Quadrature:
    finite_values(function, "log p(x)", result.log_px, batch.x)
    return jax.tree.map(np.asarray, result)._replace(spacing=spacing)


__all__ = [
    "Enumeration",
    "GridPosterior",
    "Quadrature",
    "binary_codes",
    "converged_quadrature",
    "enumerate_latents",
    "gauss_hermite",
    "grid_posterior",
    "local_quadrature",
    "quadrature",
]
