"""The E step, the M step and the bound that both raise."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vaejax.arrays import numbers
from vaejax.batch import as_batch, over_data
from vaejax.distributions import Bernoulli, Distribution, Mixture, MultivariateNormal, Normal
from vaejax.errors import at_least_one, wrong
from vaejax.families.mixtures._bernoulli import BERNOULLI
from vaejax.families.mixtures._family import Family
from vaejax.families.mixtures._gaussian import DIAGONAL, FULL
from vaejax.types import Array, Batch, describe


class Expectation(NamedTuple):
    """What the E step finds, for every example.

    Args:
      responsibilities: p(j|x), `[n, k]`; each row sums to 1.
      log_px: log p(x), nats, `[n]`.
    """

    responsibilities: Array
    log_px: Array


def log_joint(mixture: Mixture, x: Array) -> Array:
    """The joint log-density of one example and each component.

    `log p(x, j) = log w_j + log p_j(x)`.

    Args:
      mixture: any Mixture, of k components.
      x: one example, of the mixture's event shape.
    Returns:
      log p(x, j), nats, `[k]`.
    Raises:
      ValueError: where x has another shape.
    """
    check_mixture("log_joint: mixture", mixture)
    return _log_joint("log_joint", mixture, x)


def responsibilities(mixture: Mixture, x: Array) -> Array:
    """The posterior over the components of one example, p(j|x) = p(x, j) / p(x).

    Args:
      mixture: any Mixture, of k components.
      x: one example, of the mixture's event shape.
    Returns:
      p(j|x), `[k]`, which sums to 1.
    """
    check_mixture("responsibilities: mixture", mixture)
    return jax.nn.softmax(_log_joint("responsibilities", mixture, x))


def e_step(mixture: Mixture, x: Any, *, batch_size: int = 1000) -> Expectation:
    """The E step: q_nj = p(j|x_n), at which the bound is tight, and log p(x_n).

    Args:
      mixture: any Mixture, of k components.
      x: the data set, `[n, ...]`, or a Batch of it.
      batch_size: examples that are held in memory at a time, beside the result.
    Returns:
      The Expectation: responsibilities `[n, k]`, and log p(x), nats, `[n]`.
    """
    check_mixture("e_step: mixture", mixture)
    x = one_array("e_step", as_batch(x, "e_step"))
    at_least_one("e_step", batch_size=batch_size, examples=len(x))
    return _e_step(mixture, x, batch_size=batch_size)


def elbo(mixture: Mixture, q: Array, x: Any, *, batch_size: int = 1000) -> Array:
    """The bound on log p(x) of every example, at any q over the components.

    `ELBO_n = sum_j q_nj (log w_j + log p_j(x_n) - log q_nj) = log p(x_n) - KL(q_n || p(j|x_n))`.

    So it is log p(x_n) after the E step, and never above it.

    Args:
      mixture: any Mixture, of k components.
      q: a row of probabilities for each example, `[n, k]`; 0 log 0 counts as 0.
      x: the data set, `[n, ...]`.
      batch_size: examples that are held in memory at a time.
    Returns:
      The bound, nats, `[n]`.
    Raises:
      ValueError: where q has another shape.
    """
    check_mixture("elbo: mixture", mixture)
    x = one_array("elbo", as_batch(x, "elbo"))
    q = numbers("elbo: q", q)
    at_least_one("elbo", batch_size=batch_size, examples=len(x))
    if jnp.shape(q) != (len(x), jnp.size(mixture.logits)):
        expected = f"{(len(x), jnp.size(mixture.logits))}, a row for each example"
        raise wrong("elbo: q", jnp.shape(q), expected, "take e_step(...).responsibilities")
    return _elbo(mixture, q, x, batch_size=batch_size)


def m_step(mixture: Mixture, x: Any, q: Array, *, floor: float = 1e-3, weight: Any = ()) -> Mixture:
    """The mixture of the same family that maximises the mean bound over the data at fixed q.

    `w_j = N_j / n`, `N_j = sum_n q_nj`; under weights v, `w_j = N_j / sum_n v_n` and
    `N_j = sum_n v_n q_nj`.

    Each component's parameters are those of maximum likelihood on the data weighted by q_nj, or by
    v_n q_nj: the weighted mean, and for Gaussians the weighted (co)variance about it. The weighted
    likelihood has a single peak in each parameter that `floor` bounds, so the nearest allowed value
    is the constrained maximum. A component that no example claims keeps its parameters.

    Args:
      mixture: of k Bernoulli, Normal or MultivariateNormal components.
      x: the data set, `[n, ...]`, or a Batch of it, whose weights count.
      q: a row of probabilities for each example, `[n, k]`.
      floor: Bernoulli: probabilities stay in [floor, 1 - floor]. Normal: the smallest standard
        deviation. MultivariateNormal: the smallest square root of an eigenvalue of the covariance.
      weight: how much each example counts, `[n]`; by default, `()`, all count alike.
    Returns:
      The mixture.
    Raises:
      TypeError: for components of another kind.
    """
    check_mixture("m_step: mixture", mixture)
    given = x if isinstance(x, Batch) else Batch(x)
    batch = as_batch(
        given if isinstance(weight, tuple) else given._replace(weight=weight), "m_step"
    )
    x = one_array("m_step", batch)
    return _m_step(mixture, x, numbers("m_step: q", q), floor=floor, weight=batch.weight)


def check_mixture(where: str, mixture: Any) -> None:
    """Raise TypeError unless a value is a Mixture.

    Args:
      where: the function and its argument, for the message.
      mixture: the value.
    Raises:
      TypeError: for what is none.
    """
    if isinstance(mixture, Mixture):
        return
    fix = "such as Mixture(logits, Bernoulli(...)), or take fit_bernoulli"
    if isinstance(getattr(mixture, "mixture", None), Mixture):
        fix = "pass its .mixture"
    raise wrong(where, describe(mixture), "a Mixture", fix, TypeError)


def one_array(where: str, batch: Batch) -> Any:
    """The examples of a batch.

    Args:
      where: the function, for the message.
      batch: the data.
    Returns:
      The array, `[n, ...]`.
    Raises:
      ValueError: where they are a tree of arrays, such as a pair of examples and labels.
    """
    if hasattr(batch.x, "dtype"):
        return batch.x
    fix = "labels and weights go beside it: Batch(x, y=..., weight=...)"
    raise wrong(f"{where}: data", describe(batch.x), "one array [n, ...]", fix)


def _log_joint(where: str, mixture: Mixture, x: Array) -> Array:
    expected, got = mixture.event_shape, jnp.shape(x)
    if got != expected:
        fix = "pass what has the shape of the data that it was fitted to"
        if got[1:] == expected:
            fix = "map it: jax.vmap(...), or take e_step, which expects a data set"
        raise wrong(f"{where}: x", f"shape {got}", f"one event {expected}", fix)
    family = _family_of(mixture.components)
    if family is None:
        log_p = jax.vmap(lambda component: component.log_prob(x))(mixture.components)
    else:
        log_p = family.log_probs(mixture.components, x)
    return jax.nn.log_softmax(mixture.logits) + log_p


@partial(jax.jit, static_argnames="batch_size")
def _e_step(mixture: Mixture, x: Array, *, batch_size: int) -> Expectation:
    def example(index: Array) -> Expectation:
        joint = _log_joint("e_step", mixture, x[index])
        return Expectation(jax.nn.softmax(joint), jax.nn.logsumexp(joint))

    return over_data(example, len(x), batch_size)


@partial(jax.jit, static_argnames="batch_size")
def _elbo(mixture: Mixture, q: Array, x: Array, *, batch_size: int) -> Array:
    def example(index: Array) -> Array:
        joint, one = _log_joint("elbo", mixture, x[index]), q[index]
        inside = one > 0
        return jnp.sum(jnp.where(inside, one * (joint - jnp.log(jnp.where(inside, one, 1))), 0))

    return over_data(example, len(x), batch_size)


@jax.jit
def _m_step(mixture: Mixture, x: Array, q: Array, *, floor: Any, weight: Any) -> Mixture:
    family = family_of(mixture)
    flat = jnp.asarray(x, jnp.result_type(x, 1.0)).reshape(len(x), -1)
    total: Any = len(x)
    if not isinstance(weight, tuple):
        q, total = q * weight[:, None], jnp.sum(weight)
    counts = q.sum(axis=0)
    claimed = counts > 1e-30
    share = (q / jnp.where(claimed, counts, 1)[None]).T  # [k, n], rows sum to 1
    old = mixture.components
    new = family.fitted(share, flat, floor, old)
    new = jax.tree.map(lambda leaf, like: leaf.reshape(jnp.shape(like)), new, old)
    return Mixture(jnp.log(jnp.maximum(counts, 1e-30) / total), choose(claimed, new, old))


def family_of(mixture: Mixture) -> Family:
    """What EM has to know about the components of a mixture.

    Args:
      mixture: of Bernoulli, Normal or MultivariateNormal components.
    Returns:
      Their Family.
    Raises:
      TypeError: for components of another kind.
    """
    family = _family_of(mixture.components)
    if family is None:
        got = type(mixture.components).__name__
        expected = "components Bernoulli, Normal or MultivariateNormal"
        fix = "fit others by gradient: maximise Mixture.log_prob"
        raise wrong("m_step: mixture", got, expected, fix, TypeError)
    return family


def choose(condition: Array, new: Distribution, old: Distribution) -> Distribution:
    """The components `new` where the condition holds, else `old`.

    Args:
      condition: `[k]`, one for each component.
      new, old: components of one shape.
    Returns:
      The components.
    """

    def one(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(one, new, old)


def _family_of(components: Distribution) -> Family | None:
    match components:
        case Bernoulli():
            return BERNOULLI
        case Normal():
            return DIAGONAL
        case MultivariateNormal():
            return FULL
        case _:
            return None


__all__ = [
    "Expectation",
    "check_mixture",
    "choose",
    "e_step",
    "elbo",
    "family_of",
    "log_joint",
    "m_step",
    "one_array",
    "responsibilities",
]
