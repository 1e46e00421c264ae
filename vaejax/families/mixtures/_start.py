"""Fits that start at clusters of k-means, of Bernoullis and of Gaussians."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import as_batch, example_at, over_data
from vaejax.distributions import Mixture
from vaejax.errors import at_least_one, check_key, check_number, wrong
from vaejax.families.mixtures._bernoulli import BERNOULLI
from vaejax.families.mixtures._em import Fitted, best_of, check_enough, counted
from vaejax.families.mixtures._family import Family
from vaejax.families.mixtures._gaussian import DIAGONAL, FULL
from vaejax.families.mixtures._steps import e_step, m_step, one_array
from vaejax.types import Array, Key, Transform

DRAWN = 20  # clusterings for each restart, among which the starts are chosen
TRIED = 3  # steps of EM after which they are compared
KEPT = 3  # of the likeliest, for each restart
MOVES = 10  # of the centres of k-means, at most


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
    """A mixture of products of Bernoullis by EM, from clusters of k-means.

    `p(x) = sum_j w_j prod_i p_ji^x_i (1 - p_ji)^(1 - x_i)`.

    A start is the mixture of maximum likelihood for clusters of k-means, from k-means++ centres. Of
    20 clusterings for each restart EM starts at four: the three likeliest after a few steps, and
    another. Grey values in [0, 1] are taken as they are: the history is then minus a cross-entropy,
    not a likelihood.

    The fit is computed in float64, see `fit`.

    Args:
      data: a Batch or the x of one, `[n, ...]`, of values 0 and 1; or stored data with a transform.
        Its weights count, see `fit`.
      components: how many, 1 to n.
      key: of the transform and of the starts.
      transform: such as `data.binarize`, drawn once per example before the fit; by default none.
      floor: every probability stays in [floor, 1 - floor], so that log p(x) is finite for every x.
        The M step maximises under that constraint, and the likelihood still never falls.
      restarts: how often 20 clusterings are drawn; the likeliest of all fits is returned.
      iterations: EM steps at most.
      tolerance: EM stops once a step gains no more than this, nats per example.
      batch_size: examples that are held in memory at a time.
    Returns:
      The Fitted, nats per example.
    Raises:
      ValueError: for components below 1 or more than examples, values that are not finite or not in
        [0, 1], data without an event axis, weights that are all 0, and a floor outside (0, 1/4).
    References:
      Arthur and Vassilvitskii, 2007, k-means++: the advantages of careful seeding.
      Biernacki, Celeux and Govaert, 2003, Choosing starting values for the EM algorithm.
    """
    if not 0 < floor < 0.25:
        raise wrong("fit_bernoulli: floor", floor, "0 < floor < 1/4", "the default is 1e-3")
    return _fit(
        "fit_bernoulli",
        BERNOULLI,
        data,
        components,
        key=key,
        transform=transform,
        restarts=restarts,
        check=_check_bits,
        floor=floor,
        iterations=iterations,
        tolerance=tolerance,
        batch_size=batch_size,
    )


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
    """A mixture of diagonal Gaussians by EM, from clusters of k-means.

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
        without an event axis, weights that are all 0, and a floor that is not positive.
    """
    _check_scale("fit_gaussian", floor)
    return _fit(
        "fit_gaussian",
        DIAGONAL,
        data,
        components,
        key=key,
        transform=transform,
        restarts=restarts,
        check=None,
        floor=floor,
        iterations=iterations,
        tolerance=tolerance,
        batch_size=batch_size,
    )


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
    """A mixture of Gaussians with full covariances by EM, from clusters of k-means.

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
    _check_scale("fit_full_gaussian", floor)
    return _fit(
        "fit_full_gaussian",
        FULL,
        data,
        components,
        key=key,
        transform=transform,
        restarts=restarts,
        check=_check_vectors,
        floor=floor,
        iterations=iterations,
        tolerance=tolerance,
        batch_size=batch_size,
    )


def _fit(
    where: str,
    family: Family,
    data: Any,
    components: int,
    *,
    key: Key,
    transform: Transform | None,
    restarts: int,
    check: Callable[[str, np.ndarray], None] | None,
    floor: float,
    iterations: int,
    tolerance: float,
    batch_size: int,
) -> Fitted:
    """Data as the mixture sees them, checked, and the best of the fits from as many starts."""
    batch = as_batch(data, where)
    shape = jnp.shape(one_array(where, batch))
    if len(shape) < 2 or 0 in shape:
        got = f"shape {shape}"
        fix = "numbers need an axis of their own: x[:, None]"
        raise wrong(f"{where}: data", got, "[n, ...] with an event axis", fix)
    at_least_one(where, components=components, batch_size=batch_size, restarts=restarts)
    check_key(where, key)
    x, share = counted(where, batch)
    batch_size = min(batch_size, len(x))
    check_enough(where, components, share)
    transform_key, rest = jax.random.split(key)
    if transform is not None:
        x = np.asarray(_transformed(transform, batch_size, transform_key, x))
    bad = np.flatnonzero(~np.isfinite(x).all(axis=tuple(range(1, x.ndim))))
    if len(bad):
        got = f"NaN or infinite values in {len(bad)} of {len(x)} examples, the first at {bad[0]}"
        raise wrong(f"{where}: data", got, "finite values", "drop or fill these examples")
    if check is not None:
        check(where, x)
    return best_of(
        where,
        partial(_starts, family, components, rest, restarts, floor, batch_size),
        x,
        share,
        floor=floor,
        iterations=iterations,
        tolerance=tolerance,
        batch_size=batch_size,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _transformed(transform: Transform, batch_size: int, key: Key, x: Array) -> Array:
    return over_data(lambda i: example_at(key, transform, i, x, ())[0], len(x), batch_size)


def _starts(
    family: Family,
    components: int,
    key: Key,
    restarts: int,
    floor: float,
    batch_size: int,
    x: Array,
    share: Array,
) -> Iterator[Mixture]:
    """Mixtures of maximum likelihood for clusters of k-means, all different.

    Where EM ends depends on where it starts, and often shows after a few steps. So most starts are
    the likeliest of many after those. One for each restart is as it comes: where the optima are
    close to each other, the first steps say little.
    """

    def start(key: Key) -> Mixture:
        wide, q = _clusters(family, components, x, share, key, floor)
        return m_step(wide, x, q, floor=floor, weight=share)

    def promise(key: Key) -> float:
        mixture = start(key)
        found = e_step(mixture, x, batch_size=batch_size)
        for _ in range(TRIED):
            mixture = m_step(mixture, x, found.responsibilities, floor=floor, weight=share)
            found = e_step(mixture, x, batch_size=batch_size)
        value = float(jnp.dot(share, found.log_px))
        return -np.inf if np.isnan(value) else round(value, 9)

    if components == 1:
        yield start(key)
        return
    drawn: dict[float, Key] = {}  # by promise: the same clusters may come in another order
    for one in jax.random.split(key, DRAWN * restarts):
        drawn.setdefault(promise(jax.random.clone(one)), one)
    likeliest = sorted(drawn, reverse=True)[: KEPT * restarts]
    others = [value for value in drawn if value not in likeliest][:restarts]
    for value in likeliest + others:
        yield start(drawn[value])


@partial(jax.jit, static_argnums=(0, 1))
def _clusters(
    family: Family, components: int, x: Array, share: Array, key: Key, floor: float
) -> tuple[Mixture, Array]:
    """Clusters of k-means as responsibilities `[n, k]`; and wide components, one in each."""
    flat = x.reshape(len(x), -1)
    flat = flat - jnp.dot(share, flat)[None]  # distances stay, and keep their digits

    def distances(centres: Array) -> Array:
        """Squared, but for the square of the point, which is alike for all centres: `[n, k]`."""
        products = jnp.matmul(flat, centres.T, precision="highest")
        return jnp.sum(centres**2, axis=1)[None] - 2 * products

    def move(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        step, centres, cluster, _ = state
        member = jax.nn.one_hot(cluster, components, dtype=x.dtype) * share[:, None]
        mass = member.sum(axis=0)[:, None]
        means = jnp.matmul(member.T, flat, precision="highest") / jnp.where(mass > 0, mass, 1)
        centres = jnp.where(mass > 0, means, centres)
        found = jnp.argmin(distances(centres), axis=1)
        return step + 1, centres, found, jnp.any(found != cluster)

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        return state[3] & (state[0] < MOVES)

    centres = _seeds(components, flat, share, key)
    cluster = jnp.argmin(distances(centres), axis=1)
    first = (jnp.array(0), centres, cluster, jnp.array(True))
    _, centres, cluster, _ = lax.while_loop(unfinished, move, first)
    spread = jnp.dot(share, jnp.mean((flat - centres[cluster]) ** 2, axis=1))
    about = x[jnp.argmin(distances(centres), axis=0)]  # an example each: for those without any
    wide = Mixture(jnp.zeros(components, x.dtype), family.around(about, spread, floor))
    q = jax.nn.one_hot(cluster, components, dtype=x.dtype)
    return wide, q


def _seeds(components: int, x: Array, share: Array, key: Key) -> Array:
    """Centres of k-means++: examples, each drawn by its squared distance from those before."""

    def drawn(key: Key, mass: Array) -> Array:
        # By its place on a line, not by noise for each example: so an example of weight 2 is drawn
        # where two of weight 1 would be.
        ends = jnp.cumsum(mass)
        place = jax.random.uniform(key, (), x.dtype) * ends[-1]
        return jnp.minimum(jnp.searchsorted(ends, place, side="right"), len(x) - 1)

    def squares(index: Array) -> Array:
        return jnp.sum((x - x[index][None]) ** 2, axis=1)

    def add(nearest: Array, choice_key: Key) -> tuple[Array, Array]:
        index = drawn(choice_key, share * nearest)
        return jnp.minimum(nearest, squares(index)), index

    first_key, rest = jax.random.split(key)
    first = drawn(first_key, share)
    _, others = lax.scan(add, squares(first), jax.random.split(rest, components - 1))
    return x[jnp.concatenate([first[None], others])]


def _check_scale(where: str, floor: float) -> None:
    check_number(f"{where}: floor", floor)
    if not floor > 0:
        fix = "it is a standard deviation in units of x; without one the likelihood has no maximum"
        raise wrong(f"{where}: floor", floor, "floor > 0", fix)


def _check_bits(where: str, x: np.ndarray) -> None:
    bad = np.flatnonzero(((x < 0) | (x > 1)).any(axis=tuple(range(1, x.ndim))))
    if len(bad):
        got = f"values in [{x[bad[0]].min():.4g}, {x[bad[0]].max():.4g}] for example {bad[0]}"
        fix = "pass transform=data.binarize for stored grey levels"
        raise wrong(f"{where}: data", got, "0 and 1, or [0, 1]", fix)


def _check_vectors(where: str, x: np.ndarray) -> None:
    if x.ndim != 2:
        fix = "flatten: x.reshape(len(x), -1)"
        raise wrong(f"{where}: data", f"events {x.shape[1:]}", "vectors [n, d]", fix)


__all__ = ["fit_bernoulli", "fit_full_gaussian", "fit_gaussian"]
