"""The Kullback-Leibler divergence between two distributions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.distributions._base import Distribution
from vaejax.distributions._composed import Steps
from vaejax.distributions._continuous import (
    Laplace,
    MultivariateNormal,
    Normal,
    Uniform,
    log_abs_det,
    solve_lower,
)
from vaejax.distributions._discrete import Bernoulli, Categorical, Delta
from vaejax.distributions._events import as_float
from vaejax.distributions._pathwise import pathwise
from vaejax.errors import wrong
from vaejax.types import Array, describe


def kl(q: Distribution, p: Distribution, *, sample: tuple[Array, Array] | None = None) -> Array:
    """KL(q || p) = E_q[log q(x) - log p(x)], summed over the event.

    It is exact for pairs of Gaussians (Normal or MultivariateNormal), Laplace, Bernoulli,
    Categorical and Uniform (inf where q leaves the support of p), and for a Delta against a
    discrete distribution. For any other pair it is the unbiased estimate log q(z) - log p(z) from
    one draw z ~ q.

    Args:
      q: the distribution over which the expectation is taken.
      p: the other one, over events of the same shape.
      sample: `(z, log_q) = q.sample_and_log_prob(key)`, for pairs without a closed form; it is not
        looked at where there is one.
    Returns:
      The divergence, nats, `()`.
    Raises:
      ValueError: where the events differ in shape.
      TypeError: where one of the two is discrete and the other a density (a Delta against a Normal,
        say), for which KL is not defined; or where there is no closed form and `sample` is None.
    Example:
      >>> import jax.numpy as jnp
      >>> from vaejax.distributions import Normal, kl
      >>> print(kl(Normal(jnp.ones(3), 1.0), Normal(jnp.zeros(3), 1.0)))
      1.5
    """
    check_comparable("kl", q, p)
    match q, p:
        case Normal(), Normal():
            # In the units of p: a Gaussian of this scale and shift against the standard one.
            scale, shift = q.scale / p.scale, (q.loc - p.loc) / p.scale
            return jnp.sum(0.5 * (scale**2 - 1 + shift**2) - jnp.log(scale))
        case ((MultivariateNormal() | Normal()), (MultivariateNormal() | Normal())):
            scale, shift = _whitened(q, p)
            squares = jnp.sum(scale**2) - shift.size + jnp.sum(shift**2)
            return 0.5 * squares - log_abs_det(scale)
        case Laplace(), Laplace():
            scale, shift = q.scale / p.scale, jnp.abs(q.loc - p.loc) / q.scale
            return jnp.sum(scale * (jnp.expm1(-shift) + shift) + (scale - 1 - jnp.log(scale)))
        case Bernoulli(), Bernoulli():
            # Each outcome's own log-ratio: the shorter x l - softplus(l) cancels at large logits.
            one = jax.nn.softplus(-p.logits) - jax.nn.softplus(-q.logits)
            zero = jax.nn.softplus(p.logits) - jax.nn.softplus(q.logits)
            return jnp.sum(jax.nn.sigmoid(q.logits) * one + jax.nn.sigmoid(-q.logits) * zero)
        case Categorical(), Categorical():
            return _of_categoricals(q, p)
        case Uniform(), Uniform():
            leaves = (q.low < p.low) | (q.high > p.high)
            ratio = jnp.log((p.high - p.low) / (q.high - q.low))
            return jnp.sum(jnp.where(leaves, jnp.inf, ratio))
        case Steps(), Steps():
            return _of_steps(q, p, sample)
        case Delta(), _:
            return -p.log_prob(q.value)
    if sample is None:
        raise TypeError(
            f"kl: there is no closed form for KL({type(q).__name__} || {type(p).__name__}); for "
            "the one-sample estimate pass sample=q.sample_and_log_prob(key)"
        )
    z, log_q = sample
    return pathwise(q, z, log_q - p.log_prob(z))


def check_comparable(function: str, q: Distribution, p: Distribution) -> None:
    """Raise unless log q - log p means something: one event shape, both densities or both discrete.

    A probability and a density do not have the same unit, so their logarithms do not subtract.

    Args:
      function: the name of the caller, for the message.
      q, p: two distributions.
    Raises:
      ValueError: where the events differ in shape.
      TypeError: where one of the two is discrete and the other a density.
    """
    for name, one in (("q", q), ("p", p)):
        if not isinstance(one, Distribution):
            fix = "for instance Normal(jnp.zeros(2), jnp.ones(2))"
            raise wrong(f"{function}: {name}", describe(one), "a Distribution", fix, TypeError)
    name_q, name_p = type(q).__name__, type(p).__name__
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"{function}: expected two distributions over events of one shape, got {name_q} over "
            f"{q.event_shape} and {name_p} over {p.event_shape}; map batches: jax.vmap(kl)(q, p)"
        )
    if q.discrete != p.discrete:
        kinds = "discrete and {} is a density" if q.discrete else "a density and {} is discrete"
        raise TypeError(
            f"{function}: {name_q} is {kinds.format(name_p)}, so KL(q || p) is not defined: a "
            "probability and a density do not have the same unit. A deterministic encoder (Delta) "
            "has no rate under a continuous prior: leave the term out, or let the encoder return "
            "a density such as Normal"
        )


def _of_categoricals(q: Categorical, p: Categorical) -> Array:
    if np.shape(q.logits) != np.shape(p.logits):
        raise ValueError(
            "kl: expected two Categoricals over as many classes, got logits of shape "
            f"{np.shape(q.logits)} and {np.shape(p.logits)}"
        )
    log_q, log_p = map(jax.nn.log_softmax, (as_float(q.logits), as_float(p.logits)))
    # 0 log 0 = 0 for classes that q rules out.
    ratio = jnp.where(log_q == -jnp.inf, 0, log_q - log_p)
    return jnp.sum(jnp.exp(log_q) * ratio)


def _of_steps(q: Steps, p: Steps, sample: tuple[Array, Array] | None) -> Array:
    """The sum of the divergences of the steps, each estimated where there is a sample."""
    if sample is None:
        return q.sum(jax.vmap(kl)(q.each, p.each))

    def of_step(q: Distribution, p: Distribution, z: Array) -> Array:
        return kl(q, p, sample=(z, q.log_prob(z)))

    return q.sum(jax.vmap(of_step)(q.each, p.each, sample[0]))


def _whitened(q: Any, p: Any) -> tuple[Array, Array]:
    """Two Gaussians over `[n]` where p is standard: q's factor `[n, n]` and its mean `[n]`."""
    n = q.event_shape
    factor = jnp.diag(jnp.broadcast_to(q.scale, n)) if isinstance(q, Normal) else q.scale_tril
    factor, shift = jnp.tril(factor), jnp.broadcast_to(q.loc - p.loc, n)
    if isinstance(p, Normal):
        scale = jnp.broadcast_to(p.scale, n)
        return factor / scale[:, None], shift / scale
    return solve_lower(p.scale_tril, factor), solve_lower(p.scale_tril, shift)
