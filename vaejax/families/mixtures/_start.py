"""Fits that start at k-means++ centres, of Bernoullis and of Gaussians."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import as_batch, example_at, over_data
from vaejax.distributions import Mixture
from vaejax.errors import at_least_one, check_key, wrong
from vaejax.families.mixtures._bernoulli import BERNOULLI
from vaejax.families.mixtures._em import Fitted, check_enough, fit
from vaejax.families.mixtures._family import Family
from vaejax.families.mixtures._gaussian import DIAGONAL, FULL
from vaejax.types import Array, Key, Transform


def fit_bernoulli(
    data: Any,
    components: int,
    *,
    key: Key,
    transform: Transform | None = None,
    floor: float = 1e-3,
    restarts: int = 1,
    iterations: int = 200,
    tolerance: float = 1e-3,
    batch_size: int = 1000,
) -> Fitted:
    """A mixture of products of Bernoullis by EM, from k-means++ centres.

    `p(x) = sum_j w_j prod_i p_ji^x_i (1 - p_ji)^(1 - x_i)`.

    The start is one component around each k-means++ centre. Grey values in [0, 1] are taken as they
    are: the history is then minus a cross-entropy, not a likelihood.

    Args:
      data: a Batch or the x of one, `[n, ...]`, of values 0 and 1; or stored data with a transform.
      components: how many, 1 to n.
      key: of the transform and of the starts.
      transform: such as `data.binarize`, drawn once per example before the fit; by default none.
      floor: every probability stays in [floor, 1 - floor], so that log p(x) is finite for every x.
        The M step maximises under that constraint, and the likelihood still never falls.
      restarts: fits from different starts, of which the likeliest is returned.
      iterations: EM steps at most.
      tolerance: EM stops once a step gains less than this, nats per example.
      batch_size: examples that are held in memory at a time.
    Returns:
      The Fitted, nats per example.
    Raises:
      ValueError: for components below 1 or more than examples, values that are not finite or not in
        [0, 1], data without an event axis or with weights, and a floor outside (0, 1/4).
    References:
      Arthur and Vassilvitskii, 2007, k-means++: the advantages of careful seeding.
    """
    if not 0 < floor < 0.25:
        raise wrong("fit_bernoulli: floor", floor, "0 < floor < 1/4", "the default is 1e-3")
    x, key = _seen("fit_bernoulli", data, components, transform, key, batch_size)
    bad = np.flatnonzero(jax.device_get(jnp.any((x < 0) | (x > 1), axis=tuple(range(1, x.ndim)))))
    if len(bad):
        got = f"values in [{x[bad[0]].min():.4g}, {x[bad[0]].max():.4g}] for example {bad[0]}"
        fix = "pass transform=data.binarize for stored grey levels"
        raise wrong("fit_bernoulli: data", got, "0 and 1, or [0, 1]", fix)
    options = {"iterations": iterations, "tolerance": tolerance, "batch_size": batch_size}
    return _best_of(BERNOULLI, components, x, key, restarts=restarts, floor=floor, **options)


def fit_gaussian(
    data: Any,
    components: int,
    *,
    key: Key,
    transform: Transform | None = None,
    floor: float = 1e-3,
    restarts: int = 1,
    iterations: int = 200,
    tolerance: float = 1e-3,
    batch_size: int = 1000,
) -> Fitted:
    """A mixture of diagonal Gaussians by EM, from k-means++ centres.

    `p(x) = sum_j w_j prod_i N(x_i; loc_ji, scale_ji^2)`.

    Without a floor the likelihood has no maximum: a component on a single example, or on a
    coordinate that is constant, gains without end. Where the floor binds, the number measures the
    floor.

    Args:
      data: a Batch or the x of one, `[n, ...]`.
      floor: the smallest standard deviation, in units of x. The M step maximises under that
        constraint, so the likelihood never falls.
      components, key, transform, restarts, iterations, tolerance, batch_size: as in
        `fit_bernoulli`.
    Returns:
      The Fitted, nats per example.
    Raises:
      ValueError: for components below 1 or more than examples, values that are not finite, data
        without an event axis or with weights, and a floor that is not positive.
    """
    _check_scale("fit_gaussian", floor)
    x, key = _seen("fit_gaussian", data, components, transform, key, batch_size)
    options = {"iterations": iterations, "tolerance": tolerance, "batch_size": batch_size}
    return _best_of(DIAGONAL, components, x, key, restarts=restarts, floor=floor, **options)


def fit_full_gaussian(
    data: Any,
    components: int,
    *,
    key: Key,
    transform: Transform | None = None,
    floor: float = 1e-3,
    restarts: int = 1,
    iterations: int = 200,
    tolerance: float = 1e-3,
    batch_size: int = 1000,
) -> Fitted:
    """A mixture of Gaussians with full covariances by EM, from k-means++ centres.

    `p(x) = sum_j w_j N(x; loc_j, L_j L_j^T)`.

    Args:
      data: a Batch or the x of one, vectors `[n, d]`.
      floor: the smallest standard deviation in any direction, in units of x: eigenvalues of a
        covariance stay at its square or above.
      components, key, transform, restarts, iterations, tolerance, batch_size: as in
        `fit_bernoulli`.
    Returns:
      The Fitted, nats per example.
    Raises:
      ValueError: as in `fit_gaussian`, and for examples that are not vectors.
    """
    event = jnp.shape(as_batch(data).x)[1:]
    if len(event) != 1:
        fix = "flatten: x.reshape(len(x), -1)"
        raise wrong("fit_full_gaussian: data", f"events {event}", "vectors [n, d]", fix)
    _check_scale("fit_full_gaussian", floor)
    x, key = _seen("fit_full_gaussian", data, components, transform, key, batch_size)
    options = {"iterations": iterations, "tolerance": tolerance, "batch_size": batch_size}
    return _best_of(FULL, components, x, key, restarts=restarts, floor=floor, **options)


def _seen(
    where: str, data: Any, components: int, transform: Transform | None, key: Key, batch_size: int
) -> tuple[Array, Key]:
    """The data as the mixture sees them, checked, as floats, and a key for the rest."""
    batch = as_batch(data)
    if not isinstance(batch.weight, tuple):
        fix = "choose them first, and leave weight=()"
        raise wrong(f"{where}: data.weight", "weights", "none: all examples count alike", fix)
    x = batch.x
    if jnp.ndim(x) < 2 or not jnp.size(x):
        fix = "numbers need an axis of their own: x[:, None]"
        raise wrong(f"{where}: data", f"shape {jnp.shape(x)}", "[n, ...] with an event axis", fix)
    at_least_one(where, components=components, batch_size=batch_size)
    check_enough(where, components, len(x))
    check_key(where, key)
    transform_key, rest = jax.random.split(key)
    if transform is not None:
        x = _transformed(transform, min(batch_size, len(x)), transform_key, x)
    x = jnp.asarray(x, jnp.result_type(x, 1.0))
    bad = np.flatnonzero(~jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))))
    if len(bad):
        got = f"NaN or infinite values in {len(bad)} of {len(x)} examples, the first at {bad[0]}"
        raise wrong(f"{where}: data", got, "finite values", "drop or fill these examples")
    return x, rest


@partial(jax.jit, static_argnums=(0, 1))
def _transformed(transform: Transform, batch_size: int, key: Key, x: Array) -> Array:
    return over_data(lambda i: example_at(key, transform, i, x, ())[0], len(x), batch_size)


def _best_of(
    family: Family,
    components: int,
    x: Array,
    key: Key,
    *,
    restarts: int,
    floor: float,
    **options: Any,
) -> Fitted:
    """The likeliest of several fits."""
    at_least_one("fit", restarts=restarts)
    best: Fitted | None = None
    for start_key in jax.random.split(key, restarts):
        start = _from_centres(family, components, x, start_key, floor)
        found = fit(start, x, floor=floor, **options)
        if best is None or found.history[-1] > best.history[-1]:
            best = found
    assert best is not None
    return best


@partial(jax.jit, static_argnums=(0, 1))
def _from_centres(family: Family, components: int, x: Array, key: Key, floor: float) -> Mixture:
    """Equal components around k-means++ centres, as wide as the data lie from the nearest one."""
    flat = x.reshape(len(x), -1)
    first_key, rest = jax.random.split(key)

    def squares(index: Array) -> Array:
        return jnp.sum((flat - flat[index][None]) ** 2, axis=1)

    def add(nearest: Array, choice_key: Key) -> tuple[Array, Array]:
        index = jax.random.categorical(choice_key, jnp.log(nearest))
        return jnp.minimum(nearest, squares(index)), index

    first = jax.random.randint(first_key, (), 0, len(x))
    nearest, others = lax.scan(add, squares(first), jax.random.split(rest, components - 1))
    centres = x[jnp.concatenate([first[None], others])]
    spread = nearest.mean() / flat.shape[1]
    return Mixture(jnp.zeros(components, x.dtype), family.around(centres, spread, floor))


def _check_scale(where: str, floor: float) -> None:
    if not floor > 0:
        fix = "it is a standard deviation in units of x; without one the likelihood has no maximum"
        raise wrong(f"{where}: floor", floor, "floor > 0", fix)


__all__ = ["fit_bernoulli", "fit_full_gaussian", "fit_gaussian"]
