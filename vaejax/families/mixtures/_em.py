"""The loop of EM: steps until the likelihood stops rising, and empty components placed anew."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import as_batch
from vaejax.distributions import Bernoulli, Mixture
from vaejax.errors import at_least_one, finite_values, wrong
from vaejax.families.mixtures._steps import Expectation, choose, e_step, family_of, m_step
from vaejax.types import Array, describe

# Below half an example's worth a component is empty. One that was placed anew with success holds
# more (see `_reseeded`), so that it is not moved again at once.
EMPTY = 0.5


class Fitted(NamedTuple):
    """A mixture fitted by EM, and how it got there.

    Args:
      mixture: of the best restart.
      history: mean log p(x) of the data at the start and after each EM step, nats per example,
        `[steps + 1]`.
      reseeded: how many empty components were placed anew in each step, `[steps + 1]`.
      converged: whether the last step gained less than the tolerance.
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

    Args:
      start: of Bernoulli, Normal or MultivariateNormal components; it has to respect `floor` for
        the first step not to lose anything.
      x: the data set, `[n, ...]`, or a Batch of it.
      floor: what keeps the likelihood finite, as in `fit_bernoulli` or `fit_gaussian`.
      iterations: EM steps at most.
      tolerance: EM stops once a step gains less than this, nats per example.
      batch_size: examples that are held in memory at a time in the E step.
    Returns:
      The Fitted, nats per example.
    Raises:
      ValueError: where log p(x) of an example is not finite at the start, with its index; for
        counts below 1, a floor out of range, a tolerance of NaN, more components than examples.
      TypeError: for other components.
      FloatingPointError: where mean log p(x) becomes NaN or infinite.
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
    x = as_batch(x).x
    x = jnp.asarray(x, jnp.result_type(x, 1.0))
    if not isinstance(start, Mixture):
        fix = "such as Mixture(logits, Bernoulli(...)), or take fit_bernoulli"
        raise wrong("fit: start", describe(start), "a Mixture", fix, TypeError)
    top = 0.5 if isinstance(start.components, Bernoulli) else np.inf
    if not 0 < floor < top:
        raise wrong("fit: floor", floor, f"0 < floor < {top}", "the default is 1e-3")
    if np.isnan(tolerance):
        raise wrong("fit: tolerance", tolerance, "a number, nats per example", "take 1e-3")
    at_least_one("fit", iterations=iterations, batch_size=batch_size, examples=len(x))
    check_enough("fit", jnp.size(start.logits), len(x))
    family_of(start)  # or TypeError
    first = e_step(start, x, batch_size=batch_size)
    finite_values("fit", "log p(x)", first.log_px, x)
    batch_size = min(batch_size, len(x))
    end = _loop(start, x, first, floor, tolerance, iterations, batch_size)
    history, reseeded = (np.asarray(rows)[: int(end.step) + 1] for rows in end[2:4])
    if not np.isfinite(history).all():
        raise FloatingPointError(f"fit: mean log p(x) became {history[-1]} after step {end.step}")
    return Fitted(end.mixture, history, reseeded, bool(end.converged))


def check_enough(where: str, components: int, examples: int) -> None:
    """Refuse more components than examples.

    Args:
      where: the function, for the message.
      components, examples: how many there are.
    Raises:
      ValueError: where there are more components than examples.
    """
    if components > examples:
        fix = "take fewer components or more data"
        raise wrong(f"{where}: components", components, f"at most the {examples} examples", fix)


class _State(NamedTuple):
    step: Array
    mixture: Mixture
    history: Array
    reseeded: Array
    converged: Array
    expectation: Expectation | None


@partial(jax.jit, static_argnums=(5, 6))
def _loop(
    start: Mixture,
    x: Array,
    first: Expectation,
    floor: float,
    tolerance: float,
    iterations: int,
    batch_size: int,
) -> _State:
    """EM steps until one gains less than the tolerance; without the last expectation."""

    def unfinished(state: _State) -> Array:
        return (state.step < iterations) & ~state.converged

    def step(state: _State) -> _State:
        before: Any = state.expectation
        mixture = m_step(state.mixture, x, before.responsibilities, floor=floor)
        mixture, expectation, moved = _checked(mixture, x, floor, batch_size)
        # The mean of the differences: a small gain would drown in the rounding of two means.
        gain = jnp.mean(expectation.log_px - before.log_px)
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
    return lax.while_loop(unfinished, step, state)._replace(expectation=None)


def _checked(
    mixture: Mixture, x: Array, floor: float, batch_size: int
) -> tuple[Mixture, Expectation, Array]:
    """The mixture, its empty components placed anew if that is better; and how many were."""
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

    return lax.cond(jnp.any(empty), reseed, keep)


def _reseeded(mixture: Mixture, x: Array, log_px: Array, empty: Array, floor: float) -> Mixture:
    """The mixture with its empty components on the examples that it explains worst.

    Each gets the weight 1/n. The others' weights fall by a factor 1 - 1/n, one nat over all
    examples. So where one such move gains at all, the new component explains the example at least
    e - 1 times as well as the others do, which gives it 0.63 of that example.
    """
    _, worst = lax.top_k(-log_px, len(empty))
    at = worst[jnp.where(empty, jnp.cumsum(empty) - 1, 0)]
    placed = family_of(mixture).around(x[at], _spread(mixture), floor)
    components = choose(empty, placed, mixture.components)
    logits = jnp.where(empty, -jnp.log(float(len(x))), jax.nn.log_softmax(mixture.logits))
    return Mixture(logits.astype(x.dtype), components)


def _spread(mixture: Mixture) -> Array:
    """The variance of an element within a component, averaged over elements and components: ()."""
    variance = family_of(mixture).variance(mixture.components)
    each = variance.reshape(len(mixture.logits), -1).mean(axis=1)
    return jnp.dot(jax.nn.softmax(mixture.logits), each)


__all__ = ["Fitted", "check_enough", "fit"]
