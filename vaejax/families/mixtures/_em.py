"""The loop of EM: steps until the likelihood stops rising, and empty components placed anew."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.arrays import on_host
from vaejax.batch import as_batch, check_some_weight
from vaejax.distributions import Bernoulli, Mixture
from vaejax.errors import at_least_one, finite_values, wrong
from vaejax.families.mixtures._steps import (
    Expectation,
    check_mixture,
    choose,
    e_step,
    family_of,
    m_step,
    one_array,
)
from vaejax.types import Array, Batch

# Below half an example's worth a component is empty. One that was placed anew with success holds
# more (see `_reseeded`), so that it is not moved again at once.
EMPTY = 0.5
# What rounding may take from mean log p(x), nats, at a maximum. A step that loses more has failed.
ROUNDING = 1e-6
LOST = 0.05  # nats that the rounding of the result may move mean log p(x), without a warning
# Within `with double(True):` JAX computes in float64. Before jax 0.8 it was experimental.
_has_it: Any = jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")
double = _has_it.enable_x64


class Fitted(NamedTuple):
    """A mixture fitted by EM, and how it got there.

    Args:
      mixture: of the best restart.
      history: mean log p(x) of the data at the start and after each EM step, nats per example,
        float64, `[steps + 1]`. It never falls, up to rounding: a step that would lower it by more
        than 1e-6 is not taken, and ends the fit with a warning.
      reseeded: how many empty components were placed anew in each step, `[steps + 1]`.
      converged: whether the last step had no more to gain than the tolerance.
    """

    mixture: Mixture
    history: np.ndarray
    reseeded: np.ndarray
    converged: bool


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

    A component that holds less than half an example is empty, and EM alone never revives it. It is
    placed on an example that the mixture explains worst, with weight 1/n and the mean spread of all
    components, if the likelihood is higher so; else it stays. `history` holds the value after that.

    **The fit is computed in float64**, whatever the precision of the data and of JAX: in float32
    the covariance of columns that differ much in scale, or nearly repeat each other, is lost in
    the rounding, and a step then lowers the likelihood. The mixture is given back in the precision
    of JAX. A warning says so where this rounding moves the likelihood.

    Under weights v_n, n examples become sum_n v_n in units of the smallest weight above 0, and
    every mean is `sum_n v_n (...) / sum_n v_n`: whole weights give what repeated examples give.

    Args:
      start: of Bernoulli, Normal or MultivariateNormal components. Where it breaks `floor`, the
        nearest components that do not are the start.
      x: the data set, `[n, ...]`, or a Batch of it, whose weights count.
      floor: what keeps the likelihood finite, as in `fit_bernoulli` or `fit_gaussian`.
      iterations: EM steps at most.
      tolerance: EM stops once a step gains no more than this, nats per example.
      batch_size: examples that are held in memory at a time in the E step.
    Returns:
      The Fitted, nats per example.
    Raises:
      ValueError: where log p(x) of an example is not finite at the start, with its index; for
        counts below 1, a floor out of range, a tolerance of NaN, more components than examples that
        count.
      TypeError: for other components.
    Example:
      >>> import jax.numpy as jnp
      >>> from vaejax import mixtures
      >>> from vaejax.distributions import Bernoulli, Mixture
      >>> two = Bernoulli(jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
      >>> x = jnp.array([[1.0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]])
      >>> fitted = mixtures.fit(Mixture(jnp.zeros(2), two), x, iterations=5)
      >>> fitted.mixture.components.logits.shape
      (2, 3)
      >>> bool(fitted.history[-1] >= fitted.history[0])
      True
    """
    check_mixture("fit: start", start)
    top = 0.5 if isinstance(start.components, Bernoulli) else np.inf
    if not 0 < floor < top:
        raise wrong("fit: floor", floor, f"0 < floor < {top}", "the default is 1e-3")
    family = family_of(start)  # or TypeError
    x, share = counted("fit", as_batch(x, "fit"))
    at_least_one("fit", examples=len(x))
    check_enough("fit", jnp.size(start.logits), share)

    def allowed(points: Array, share: Array) -> list[Mixture]:
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, points.dtype), start)
        return [Mixture(wide.logits, family.allowed(wide.components, floor))]

    return best_of(
        "fit",
        allowed,
        x,
        share,
        floor=floor,
        iterations=iterations,
        tolerance=tolerance,
        batch_size=batch_size,
    )


def counted(where: str, batch: Batch) -> tuple[Any, np.ndarray]:
    """The examples of a batch, and each one's share of the sum of the weights.

    An example of weight 0 may hold anything, NaN too: one that counts stands in its place.

    Args:
      where: the function, for the message.
      batch: the data, with weights or without.
    Returns:
      The examples `[n, ...]`, and the shares `[n]`, float64, which sum to 1.
    Raises:
      ValueError: where no weight is above 0.
    """
    x = np.asarray(on_host(one_array(where, batch)))
    if isinstance(batch.weight, tuple):
        return x, np.full(len(x), 1 / max(len(x), 1))
    weight = np.asarray(batch.weight, np.float64)
    counts = weight > 0
    check_some_weight(where, batch)
    if not counts.all():
        x = x[np.where(counts, np.arange(len(x)), np.argmax(counts))]
    return x, weight / weight.sum()


def check_enough(where: str, components: int, share: np.ndarray) -> None:
    """Refuse more components than examples that count.

    Args:
      where: the function, for the message.
      components: how many there are.
      share: of each example, `[n]`.
    Raises:
      ValueError: where there are more components than examples.
    """
    examples = int(np.sum(share > 0))
    if components > examples:
        fix = "take fewer components or more data"
        raise wrong(f"{where}: components", components, f"at most the {examples} examples", fix)


def best_of(
    where: str,
    starts: Callable[[Array, Array], Iterable[Mixture]],
    x: Any,
    share: np.ndarray,
    *,
    floor: float,
    iterations: int,
    tolerance: float,
    batch_size: int,
) -> Fitted:
    """The likeliest of the fits from several starts, computed in float64.

    Args:
      where: the function that the user called, for messages.
      starts: a function of the data and the shares, in float64, to the starts.
      x, share: of `counted`.
      floor, iterations, tolerance, batch_size: as in `fit`.
    Returns:
      The Fitted, whose mixture is in the precision of JAX.
    """
    if np.isnan(tolerance):
        raise wrong(f"{where}: tolerance", tolerance, "a number, nats per example", "take 1e-3")
    at_least_one(where, iterations=iterations, batch_size=batch_size)
    batch_size = min(batch_size, len(x))
    precision = jnp.promote_types(jnp.result_type(x, 1.0), jnp.float32)
    best: _State | None = None
    with double(True):
        points, shares = jnp.asarray(x, float), jnp.asarray(share)
        for first in starts(points, shares):
            expected = e_step(first, points, batch_size=batch_size)
            finite_values(where, "log p(x)", expected.log_px, x)
            end = _loop(first, points, shares, expected, floor, tolerance, iterations, batch_size)
            if best is None or end.history[end.step] > best.history[best.step]:
                best = end
        assert best is not None
        mixture = jax.tree.map(lambda leaf: leaf.astype(precision), best.mixture)
        # What is returned, in exact arithmetic on data of its precision.
        wide = jax.tree.map(lambda leaf: leaf.astype(float), (mixture, points.astype(precision)))
        rounded = _mean(shares, e_step(*wide, batch_size=batch_size))
        mixture, best, rounded = jax.device_get((mixture, best, rounded))
    taken = int(best.step) + 1
    history, reseeded = np.asarray(best.history)[:taken], np.asarray(best.reseeded)[:taken]
    if not best.lost <= ROUNDING:
        warnings.warn(
            f"{where}: after {history[-1]:.4g} nats per example a step would lose {best.lost:.3g}, "
            "which rounding alone does; the mixture before it is returned, and is no maximum; "
            "bring the columns of x to one scale, or raise floor",
            stacklevel=3,
        )
    if not abs(history[-1] - rounded) < LOST:
        warnings.warn(
            f"{where}: mean log p(x) is {history[-1]:.4g} nats, but {rounded:.4g} with the mixture "
            f"and x rounded to {precision}, in which both are used; subtract the mean of each "
            'column from x, or call jax.config.update("jax_enable_x64", True) before all else',
            stacklevel=3,
        )
    mixture = jax.tree.map(jnp.asarray, mixture)
    return Fitted(mixture, history, reseeded, bool(best.converged))


class _State(NamedTuple):
    step: Array
    mixture: Mixture
    history: Array
    reseeded: Array
    converged: Array
    lost: Array  # by the last step, nats; it was not taken if that is more than rounding
    expectation: Expectation | None


@partial(jax.jit, static_argnums=(6, 7))
def _loop(
    start: Mixture,
    x: Array,
    share: Array,
    first: Expectation,
    floor: float,
    tolerance: float,
    iterations: int,
    batch_size: int,
) -> _State:
    """EM steps until one gains no more than the tolerance; without the last expectation."""

    def unfinished(state: _State) -> Array:
        return (state.step < iterations) & ~state.converged & (state.lost <= ROUNDING)

    def step(state: _State) -> _State:
        before: Any = state.expectation
        mixture = m_step(state.mixture, x, before.responsibilities, floor=floor, weight=share)
        mixture, expectation, moved = _checked(mixture, x, share, floor, batch_size)
        old = (state.mixture, before, state.history[state.step], 0)
        new = (mixture, expectation, _mean(share, expectation), moved)
        gain = new[2] - old[2]
        mixture, expectation, value, moved = jax.tree.map(
            lambda a, b: jnp.where(gain >= -ROUNDING, a, b), new, old
        )
        i = state.step + 1
        return _State(
            i,
            mixture,
            state.history.at[i].set(value),
            state.reseeded.at[i].set(moved),
            (gain <= tolerance) & (gain >= -ROUNDING),
            -gain,
            expectation,
        )

    history = jnp.full(iterations + 1, jnp.nan).at[0].set(_mean(share, first))
    reseeded = jnp.zeros(iterations + 1, int)
    state = _State(jnp.array(0), start, history, reseeded, jnp.array(False), jnp.array(0.0), first)
    return lax.while_loop(unfinished, step, state)._replace(expectation=None)


def _mean(share: Array, expectation: Expectation) -> Array:
    """Mean log p(x), nats, `()`."""
    return jnp.dot(share, expectation.log_px, precision="highest")


def _checked(
    mixture: Mixture, x: Array, share: Array, floor: float, batch_size: int
) -> tuple[Mixture, Expectation, Array]:
    """The mixture, its empty components placed anew if that is better; and how many were."""
    expectation = e_step(mixture, x, batch_size=batch_size)
    one = jnp.min(jnp.where(share > 0, share, 1))  # the least that an example counts
    held = jnp.dot(share, expectation.responsibilities, precision="highest")
    empty = held < EMPTY * one

    def reseed() -> tuple[Mixture, Expectation, Array]:
        log_px = jnp.where(share > 0, expectation.log_px, jnp.inf)
        other = _reseeded(mixture, x, log_px, empty, one, floor)
        found = e_step(other, x, batch_size=batch_size)
        better = _mean(share, found) > _mean(share, expectation)
        chosen = jax.tree.map(
            lambda a, b: jnp.where(better, a, b), (other, found), (mixture, expectation)
        )
        return *chosen, jnp.where(better, empty.sum(), 0)

    def keep() -> tuple[Mixture, Expectation, Array]:
        return mixture, expectation, jnp.zeros_like(empty.sum())

    return lax.cond(jnp.any(empty), reseed, keep)


def _reseeded(
    mixture: Mixture, x: Array, log_px: Array, empty: Array, one: Array, floor: float
) -> Mixture:
    """The mixture with its empty components on the examples that it explains worst.

    Each gets the weight of one example, `one` = 1/n. The others' weights fall by a factor 1 - 1/n,
    one nat over all examples. So where one such move gains at all, the new component explains the
    example at least e - 1 times as well as the others do, which gives it 0.63 of that example.
    """
    _, worst = lax.top_k(-log_px, len(empty))
    at = worst[jnp.where(empty, jnp.cumsum(empty) - 1, 0)]
    placed = family_of(mixture).around(x[at], _spread(mixture), floor)
    components = choose(empty, placed, mixture.components)
    logits = jnp.where(empty, jnp.log(one), jax.nn.log_softmax(mixture.logits))
    return Mixture(logits, components)


def _spread(mixture: Mixture) -> Array:
    """The variance of an element within a component, averaged over elements and components: ()."""
    variance = family_of(mixture).variance(mixture.components)
    each = variance.reshape(len(mixture.logits), -1).mean(axis=1)
    return jnp.dot(jax.nn.softmax(mixture.logits), each)


__all__ = ["Fitted", "best_of", "check_enough", "counted", "double", "fit"]
