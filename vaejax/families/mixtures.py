"""Mixtures fitted by expectation-maximisation: densities of their own, and the classical bound.

For any q over the components, log p(x) = ELBO(q) + KL(q || p(j|x)). The E step sets q to the
posterior, the responsibilities, and the bound is tight; the M step raises it at fixed q; so log
p(x) never falls. Dempster, Laird and Rubin, 1977, Maximum likelihood from incomplete data via the
EM algorithm; Neal and Hinton, 1998, A view of the EM algorithm that justifies incremental, sparse,
and other variants.

A fitted `distributions.Mixture` samples, scores and trains like any Distribution; over a whole data
set `e_step(mixture, x).log_px` is much faster than its mapped `log_prob`, and the same number.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import as_batch, example_at, over_data
from vaejax.distributions import Bernoulli, Distribution, Mixture, MultivariateNormal, Normal
from vaejax.errors import at_least_one, finite_values, wrong
from vaejax.types import Array, Key, Transform

# Below half an example's worth a component is empty. One that was re-seeded with success holds
# more (see `_reseeded`), so that it is not moved again at once.
EMPTY = 0.5


class Fitted(NamedTuple):
    """A mixture fitted by EM, and how it got there.

    `mixture`: of the best restart; `history` `[steps + 1]`: mean log p(x) of the data, nats per
    example, at the start and after each EM step; `reseeded` `[steps + 1]`: how many empty
    components were placed anew in that step; `converged`: whether the last step gained less than
    the tolerance.
    """

    mixture: Mixture
    history: np.ndarray
    reseeded: np.ndarray
    converged: bool


class Expectation(NamedTuple):
    """What the E step finds, for every example.

    `responsibilities` `[n, k]`: p(j|x), rows sum to 1; `log_px` `[n]`: log p(x), nats.
    """

    responsibilities: Array
    log_px: Array


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
    """A mixture of products of Bernoullis by EM: p(x) = sum_j w_j prod_i p_ji^x_i (1-p_ji)^(1-x_i).

    `data`: a Batch or the x of one, `[n, ...]`, values 0 and 1, or stored data with a
    `transform(key, x)` such as `data.binarize`, drawn once per example before the fit. Grey values
    in [0, 1] are taken as they are: the history is then minus a cross-entropy, not a likelihood.
    `floor`: every probability stays in [floor, 1 - floor], so that log p(x) is finite for every x;
    the M step maximises under that constraint, and the likelihood still never falls. `restarts`:
    fits from different starts, of which the likeliest is returned. The start is one component
    around each k-means++ centre. EM stops once a step gains less than `tolerance` nats per example,
    or after `iterations` steps.

    Returns Fitted, nats per example. Raises ValueError for components < 1 or more than examples,
    values that are not finite or not in [0, 1], and data without an event axis.
    Start: Arthur and Vassilvitskii, 2007, k-means++: the advantages of careful seeding.
    """
    if not 0 < floor < 0.25:
        raise wrong("fit_bernoulli: floor", floor, "0 < floor < 1/4", "the default is 1e-3")
    x, key = _seen("fit_bernoulli", data, components, transform, key, batch_size)
    bad = np.flatnonzero(jax.device_get(jnp.any((x < 0) | (x > 1), axis=tuple(range(1, x.ndim)))))
    if len(bad):
        got = f"values in [{x[bad[0]].min():.4g}, {x[bad[0]].max():.4g}] for example {bad[0]}"
        fix = "pass transform=data.binarize for stored grey levels"
        raise wrong("fit_bernoulli: data", got, "0 and 1, or [0, 1]", fix)
    family = Bernoulli(jnp.zeros((components, *x.shape[1:]), x.dtype))
    options = {"iterations": iterations, "tolerance": tolerance, "batch_size": batch_size}
    return _best_of(family, x, key, restarts=restarts, floor=floor, **options)


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
    """A mixture of diagonal Gaussians by EM: p(x) = sum_j w_j prod_i N(x_i; loc_ji, scale_ji^2).

    `data`: a Batch or the x of one, `[n, ...]`. `floor`: smallest standard deviation, in units of
    x. Without it the likelihood has no maximum, since a component on a single example, or on a
    coordinate that is constant, gains without end: where the floor binds, the number measures the
    floor. It is a constraint that the M step maximises under, so the likelihood never falls. The
    other arguments and the start are those of `fit_bernoulli`.

    Returns Fitted, nats per example. Raises ValueError for components < 1 or more than examples,
    values that are not finite, data without an event axis, and floor <= 0.
    """
    return _fit_gaussian(
        "fit_gaussian",
        data,
        components,
        key,
        transform,
        floor,
        restarts,
        iterations,
        tolerance,
        batch_size,
        lambda loc: Normal(loc, jnp.ones_like(loc)),
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
    """A mixture of Gaussians with full covariances by EM: p(x) = sum_j w_j N(x; loc_j, L_j L_j^T).

    `data`: a Batch or the x of one, vectors `[n, d]`. `floor`: smallest standard deviation in any
    direction, in units of x: eigenvalues of a covariance stay at its square or above. The rest is
    as in `fit_gaussian`. Raises ValueError as it does, and for examples that are not vectors.
    """
    event = jnp.shape(as_batch(data).x)[1:]
    if len(event) != 1:
        fix = "flatten: x.reshape(len(x), -1)"
        raise wrong("fit_full_gaussian: data", f"events {event}", "vectors [n, d]", fix)
    return _fit_gaussian(
        "fit_full_gaussian",
        data,
        components,
        key,
        transform,
        floor,
        restarts,
        iterations,
        tolerance,
        batch_size,
        lambda loc: MultivariateNormal(loc, jnp.zeros((*loc.shape, *event))),
    )


def fit(
    start: Mixture,
    x: Any,
    *,
    floor: float = 1e-3,
    iterations: int = 200,
    tolerance: float = 1e-3,
    batch_size: int = 1000,
) -> Fitted:
    """EM from a mixture of one's own, of Bernoullis or of Gaussians, to a maximum of mean log p(x).

    `x` `[n, ...]`; `floor`: as in `fit_bernoulli` or `fit_gaussian`, and `start` has to respect it
    for the first step not to lose anything.

    A component that holds less than half an example is empty, and EM alone never revives it. It is
    placed on an example that the mixture explains worst, with weight 1/n and the mean spread of all
    components, if the likelihood is higher so; else it stays. `history` holds the value after that.

    Returns Fitted, nats per example. Raises ValueError where log p(x) of an example is not finite
    at the start, with its index, and for counts < 1; TypeError for other components.
    """
    x = as_batch(x).x
    x = jnp.asarray(x, jnp.result_type(x, 1.0))
    top = 0.5 if isinstance(start.components, Bernoulli) else np.inf
    if not 0 < floor < top:
        raise wrong("fit: floor", floor, f"0 < floor < {top}", "the default is 1e-3")
    if np.isnan(tolerance):
        raise wrong("fit: tolerance", tolerance, "a number, nats per example", "take 1e-3")
    at_least_one("fit", iterations=iterations, batch_size=batch_size, examples=len(x))
    _enough("fit", jnp.size(start.logits), len(x))
    _check_family(start)
    first = e_step(start, x, batch_size=batch_size)
    finite_values("fit", "log p(x)", first.log_px, x)
    count, *found = _em(start, x, first, floor, tolerance, iterations, min(batch_size, len(x)))
    mixture, history, reseeded, converged = found
    history, reseeded = (np.asarray(rows)[: int(count) + 1] for rows in (history, reseeded))
    if not np.isfinite(history).all():
        raise FloatingPointError(f"fit: mean log p(x) became {history[-1]} after step {count}")
    return Fitted(mixture, history, reseeded, bool(converged))


def log_joint(mixture: Mixture, x: Any) -> Array:
    """log p(x, j) = log w_j + log p_j(x) of one example and each component: `[k]`, nats."""
    expected, got = mixture.event_shape, jnp.shape(x)
    if got != expected:
        fix = "map it: jax.vmap(...), or take e_step, which expects a data set"
        raise wrong("log_joint: x", f"shape {got}", f"one event {expected}", fix)
    match mixture.components:
        case Bernoulli(logits):
            # Over many examples one matrix product, where log_prob would be mapped pixel by pixel.
            flat, one = logits.reshape(len(logits), -1), jnp.ravel(x)
            log_p = jnp.matmul(flat, one, precision="highest") - jax.nn.softplus(flat).sum(axis=1)
            log_p = jnp.where(jnp.any((one < 0) | (one > 1)), -jnp.inf, log_p)
        case MultivariateNormal(loc, scale_tril):
            # Inverted once, and again a matrix product: a solve for every example is far slower.
            eye = jnp.eye(x.shape[-1], dtype=jnp.result_type(scale_tril))
            solve = partial(jax.scipy.linalg.solve_triangular, lower=True)
            inverse = jax.vmap(solve, (0, None))(scale_tril, eye)
            z = jnp.einsum("kij,kj->ki", inverse, x[None] - loc, precision="highest")
            log_det = jnp.log(jnp.abs(jnp.diagonal(inverse, axis1=1, axis2=2))).sum(axis=1)
            log_p = log_det - 0.5 * jnp.sum(z**2, axis=1) - 0.5 * x.size * np.log(2 * np.pi).item()
        case components:
            log_p = jax.vmap(lambda component: component.log_prob(x))(components)
    return jax.nn.log_softmax(mixture.logits) + log_p


def responsibilities(mixture: Mixture, x: Any) -> Array:
    """The posterior over the components of one example, p(j|x) = p(x, j) / p(x): `[k]`."""
    return jax.nn.softmax(log_joint(mixture, x))


@partial(jax.jit, static_argnames="batch_size")
def e_step(mixture: Mixture, x: Any, *, batch_size: int = 1000) -> Expectation:
    """q_nj = p(j|x_n), at which the bound is tight, and log p(x_n), for a data set `[n, ...]`.

    Any Mixture; memory is that of `batch_size` examples beside the result, of shape `[n, k]` and
    `[n]`, nats.
    """
    at_least_one("e_step", batch_size=batch_size, examples=len(x))

    def example(index: Array) -> Expectation:
        joint = log_joint(mixture, x[index])
        return Expectation(jax.nn.softmax(joint), jax.nn.logsumexp(joint))

    return over_data(example, len(x), batch_size)


@partial(jax.jit, static_argnames="batch_size")
def elbo(mixture: Mixture, q: Any, x: Any, *, batch_size: int = 1000) -> Array:
    """The bound of every example at any q: sum_j q_nj (log w_j + log p_j(x_n) - log q_nj), nats.

    `q` `[n, k]`: rows of probabilities, 0 log 0 = 0; `x` `[n, ...]`; returns `[n]`. It equals
    log p(x_n) - KL(q_n || p(j|x_n)), so it is log p(x_n) after the E step and never above it.
    Raises ValueError for a q of another shape.
    """
    at_least_one("elbo", batch_size=batch_size, examples=len(x))
    if jnp.shape(q) != (len(x), jnp.size(mixture.logits)):
        expected = f"{(len(x), jnp.size(mixture.logits))}, a row for each example"
        raise wrong("elbo: q", jnp.shape(q), expected, "take e_step(...).responsibilities")

    def example(index: Array) -> Array:
        joint, one = log_joint(mixture, x[index]), q[index]
        inside = one > 0
        return jnp.sum(jnp.where(inside, one * (joint - jnp.log(jnp.where(inside, one, 1))), 0))

    return over_data(example, len(x), batch_size)


@jax.jit
def m_step(mixture: Mixture, x: Any, q: Any, *, floor: Any = 1e-3) -> Mixture:
    """The mixture of the same family that maximises the mean bound over the data at fixed q.

    w_j = N_j / n with N_j = sum_n q_nj; every component's parameters are those of maximum
    likelihood on the data weighted by q_nj: the weighted mean, and for Gaussians the weighted
    (co)variance about it. `floor` bounds probabilities, standard deviations, or the square roots of
    eigenvalues; the weighted likelihood has a single peak in each, so the nearest allowed value is
    the constrained maximum. A component that no example claims keeps its parameters.

    `x` `[n, ...]`; `q` `[n, k]`. Raises TypeError for components other than Bernoulli, Normal and
    MultivariateNormal.
    """
    _check_family(mixture)
    flat = jnp.asarray(x, jnp.result_type(x, 1.0)).reshape(len(x), -1)
    counts = q.sum(axis=0)
    claimed = counts > 1e-30
    share = (q / jnp.where(claimed, counts, 1)[None]).T  # [k, n], rows sum to 1
    means = jnp.matmul(share, flat, precision="highest")

    # About the mean itself: E[x^2] - mean^2 would lose its digits far from the origin.
    def scale(share_and_mean: tuple[Array, Array]) -> Array:
        one, mean = share_and_mean
        return jnp.sqrt(jnp.maximum(one @ (flat - mean[None]) ** 2, floor**2))

    def scale_tril(share_and_mean: tuple[Array, Array]) -> Array:
        one, mean = share_and_mean
        far = flat - mean[None]
        covariance = jnp.matmul((one[:, None] * far).T, far, precision="highest")
        values, vectors = jnp.linalg.eigh(covariance)
        root = vectors * jnp.sqrt(jnp.maximum(values, floor**2))[None]
        upper = jnp.linalg.qr(root.T, mode="r")  # root root^T = R^T R
        return (upper * jnp.sign(jnp.diagonal(upper))[:, None]).T

    components: Distribution
    match mixture.components:
        case Bernoulli():
            p = jnp.clip(means, floor, 1 - floor)
            components = Bernoulli(jnp.log(p) - jnp.log1p(-p))
        case Normal():
            components = Normal(means, lax.map(scale, (share, means)))
        case MultivariateNormal():
            components = MultivariateNormal(means, lax.map(scale_tril, (share, means)))
    kept = jax.tree.map(
        lambda new, old: _choose(claimed, new.reshape(jnp.shape(old)), old),
        components,
        mixture.components,
    )
    return Mixture(jnp.log(jnp.maximum(counts, 1e-30) / len(x)), kept)


class _State(NamedTuple):
    step: Array
    mixture: Mixture
    history: Array
    reseeded: Array
    converged: Array
    expectation: Expectation


@partial(jax.jit, static_argnums=(5, 6))
def _em(
    start: Mixture,
    x: Array,
    first: Expectation,
    floor: Any,
    tolerance: Any,
    iterations: int,
    batch_size: int,
) -> tuple[Any, ...]:
    def unfinished(state: _State) -> Array:
        return (state.step < iterations) & ~state.converged

    def step(state: _State) -> _State:
        mixture = m_step(state.mixture, x, state.expectation.responsibilities, floor=floor)
        expectation = e_step(mixture, x, batch_size=batch_size)
        empty = expectation.responsibilities.sum(axis=0) < EMPTY

        def reseed() -> tuple[Mixture, Expectation, Array]:
            other = _reseeded(mixture, x, expectation.log_px, empty, floor)
            found = e_step(other, x, batch_size=batch_size)
            better = jnp.mean(found.log_px - expectation.log_px) > 0
            chosen = jax.tree.map(
                lambda a, b: jnp.where(better, a, b), (other, found), (mixture, expectation)
            )
            return *chosen, jnp.where(better, empty.sum(), 0)

        def keep() -> tuple[Mixture, Expectation, Array]:
            return mixture, expectation, jnp.zeros_like(empty.sum())

        mixture, expectation, moved = lax.cond(jnp.any(empty), reseed, keep)
        # The mean of the differences: a small gain would drown in the rounding of two means.
        gain = jnp.mean(expectation.log_px - state.expectation.log_px)
        i = state.step + 1
        return _State(
            i,
            mixture,
            state.history.at[i].set(expectation.log_px.mean()),
            state.reseeded.at[i].set(moved),
            gain < tolerance,
            expectation,
        )

    history = jnp.full(iterations + 1, jnp.nan).at[0].set(first.log_px.mean())
    reseeded = jnp.zeros(iterations + 1, int)
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), start)
    state = _State(jnp.array(0), start, history, reseeded, jnp.array(False), first)
    return lax.while_loop(unfinished, step, state)[:-1]


def _reseeded(mixture: Mixture, x: Array, log_px: Array, empty: Array, floor: Any) -> Mixture:
    """The mixture with its empty components on the examples that it explains worst.

    With weight 1/n each. The others' weights fall by a factor 1 - 1/n, one nat over all examples;
    so where one such move gains at all, the example is explained at least e - 1 times as well by
    the new component as by the others, which gives it 0.63 of that example.
    """
    _, worst = lax.top_k(-log_px, len(empty))
    at = worst[jnp.where(empty, jnp.cumsum(empty) - 1, 0)]
    placed = _around(mixture.components, x[at], _spread(mixture), floor)
    components = jax.tree.map(partial(_choose, empty), placed, mixture.components)
    logits = jnp.where(empty, -jnp.log(float(len(x))), jax.nn.log_softmax(mixture.logits))
    return Mixture(logits.astype(x.dtype), components)


def _around(family: Any, centres: Array, spread: Array, floor: Any) -> Distribution:
    """A component of the family at each centre `[k, ...]`, of variance `spread` in each element."""
    scale = jnp.maximum(jnp.sqrt(spread), floor)
    match family:
        case Bernoulli():
            # The centre with some values flipped; more than 1/4, and all would be much the same.
            flipped = jnp.clip(spread, floor, 0.25)
            p = flipped + (1 - 2 * flipped) * centres
            return Bernoulli(jnp.log(p) - jnp.log1p(-p))
        case Normal():
            return Normal(centres, jnp.full_like(centres, scale))
        case _:
            eye = jnp.eye(centres.shape[-1], dtype=centres.dtype)
            return MultivariateNormal(centres, jnp.tile(scale * eye, (len(centres), 1, 1)))


def _spread(mixture: Mixture) -> Array:
    """The variance of an element within a component, averaged over elements and components: ()."""
    match mixture.components:
        case Bernoulli(logits):
            variance = jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits)
        case Normal(_, scale):
            variance = jnp.asarray(scale) ** 2
        case _:
            variance = jnp.sum(jnp.tril(mixture.components.scale_tril) ** 2, axis=-1)
    each = variance.reshape(len(mixture.logits), -1).mean(axis=1)
    return jnp.dot(jax.nn.softmax(mixture.logits), each)


@jax.jit
def _start(family: Any, x: Array, key: Key, floor: Any) -> Mixture:
    """Equal components around k-means++ centres, as wide as the data lie from the nearest one."""
    flat = x.reshape(len(x), -1)
    k = len(jax.tree.leaves(family)[0])
    first_key, rest = jax.random.split(key)

    def squares(index: Array) -> Array:
        return jnp.sum((flat - flat[index][None]) ** 2, axis=1)

    def add(nearest: Array, choice_key: Key) -> tuple[Array, Array]:
        index = jax.random.categorical(choice_key, jnp.log(nearest))
        return jnp.minimum(nearest, squares(index)), index

    first = jax.random.randint(first_key, (), 0, len(x))
    nearest, others = lax.scan(add, squares(first), jax.random.split(rest, k - 1))
    centres = x[jnp.concatenate([first[None], others])]
    spread = nearest.mean() / flat.shape[1]
    return Mixture(jnp.zeros(k, x.dtype), _around(family, centres, spread, floor))


def _best_of(
    family: Any, x: Array, key: Key, *, restarts: int, floor: float, **options: Any
) -> Fitted:
    at_least_one("fit", restarts=restarts)
    best: Fitted | None = None
    for start_key in jax.random.split(key, restarts):
        found = fit(_start(family, x, start_key, floor), x, floor=floor, **options)
        best = found if best is None or found.history[-1] > best.history[-1] else best
    assert best is not None
    return best


def _fit_gaussian(
    where: str,
    data: Any,
    components: int,
    key: Key,
    transform: Transform | None,
    floor: float,
    restarts: int,
    iterations: int,
    tolerance: float,
    batch_size: int,
    around: Any,
) -> Fitted:
    if not floor > 0:
        fix = "it is a standard deviation in units of x; without one the likelihood has no maximum"
        raise wrong(f"{where}: floor", floor, "floor > 0", fix)
    x, key = _seen(where, data, components, transform, key, batch_size)
    family = around(jnp.zeros((components, *x.shape[1:]), x.dtype))
    options = {"iterations": iterations, "tolerance": tolerance, "batch_size": batch_size}
    return _best_of(family, x, key, restarts=restarts, floor=floor, **options)


def _seen(
    where: str, data: Any, components: int, transform: Any, key: Key, batch_size: int
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
    _enough(where, components, len(x))
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
def _transformed(transform: Any, batch_size: int, key: Key, x: Any) -> Array:
    return over_data(lambda i: example_at(key, transform, i, x, ())[0], len(x), batch_size)


def _enough(where: str, components: int, examples: int) -> None:
    if components > examples:
        fix = "take fewer components or more data"
        raise wrong(f"{where}: components", components, f"at most the {examples} examples", fix)


def _check_family(mixture: Mixture) -> None:
    components = mixture.components
    if not isinstance(components, Bernoulli | Normal | MultivariateNormal):
        expected = "components Bernoulli, Normal or MultivariateNormal"
        fix = "fit others by gradient: maximise Mixture.log_prob"
        raise wrong("m_step: mixture", type(components).__name__, expected, fix, TypeError)


def _choose(condition: Array, new: Array, old: Array) -> Array:
    """Per component: `new` where the condition `[k]` holds, else `old`, both `[k, ...]`."""
    return jnp.where(condition.reshape(-1, *[1] * (new.ndim - 1)), new, old)


__all__ = [
    "Expectation",
    "Fitted",
    "e_step",
    "elbo",
    "fit",
    "fit_bernoulli",
    "fit_full_gaussian",
    "fit_gaussian",
    "log_joint",
    "m_step",
    "responsibilities",
]
