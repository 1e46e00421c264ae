"""Terms: numbers in nats from a Draw, for one example. A Term never sees a Model.

The gradient of a Term is that of its mean over the draws. Where the sample of `d.q` has no
derivative by what is learned, a Term that depends on z refuses it (see `distributions.pathwise`).
"""

import jax
import jax.numpy as jnp

from vaejax.distributions import (
    Bernoulli,
    Distribution,
    Laplace,
    Normal,
    Uniform,
    check_comparable,
    kl,
    pathwise,
)
from vaejax.errors import wrong
from vaejax.model._draws import Draw
from vaejax.types import Array

_FACTORIAL = Normal, Laplace, Bernoulli, Uniform


def distortion(d: Draw) -> Array:
    """D = -log p(x|z) at the drawn z.

    Args:
      d: one Draw.
    Returns:
      D, nats, `()`: summed over the whole event, never averaged. Its derivative raises TypeError
      where the sample of q has none by what is learned.
    """
    return pathwise(d.q, d.z, -d.px.log_prob(d.x))


def rate(d: Draw) -> Array:
    """R = KL(q(z|x) || p(z)).

    It is in closed form where `kl` has one, else the one-sample estimate log q(z|x) - log p(z).
    Raises as `kl` does, and ValueError for a deterministic autoencoder, which has no prior.

    Args:
      d: one Draw.
    Returns:
      R, nats, `()`.
    """
    _has_prior("rate", d)
    return kl(d.q, d.pz, sample=(d.z, d.log_q))


def rate_per_dimension(d: Draw) -> Array:
    """R_j = KL(q(z_j|x) || p(z_j)) of each latent dimension, whose sum is the rate.

    Args:
      d: one Draw, whose posterior and prior are two diagonal Normals, or both Laplace, Bernoulli or
        Uniform.
    Returns:
      R_j, nats, `[latent]`.
    Raises:
      ValueError: for a deterministic autoencoder, which has no prior.
      TypeError: for any other pair, whose rate is no sum over dimensions.
    """
    _has_prior("rate_per_dimension", d)
    if type(d.q) is not type(d.pz) or not isinstance(d.q, _FACTORIAL):
        got = f"{type(d.q).__name__} and {type(d.pz).__name__}"
        fix = "rate=terms.rate takes the rate as a whole"
        expected = "a posterior and a prior that are both diagonal Normals"
        raise wrong("rate_per_dimension", got, expected, fix, TypeError)
    check_comparable("rate_per_dimension", d.q, d.pz)

    def dimensions(p: Distribution) -> Distribution:
        """One distribution per dimension, to be mapped over: leaves `[latent]`."""
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, p.event_shape).ravel(), p)

    return jax.vmap(kl)(dimensions(d.q), dimensions(d.pz))


def sampled_rate(d: Draw) -> Array:
    """log q(z|x) - log p(z) at the drawn z: an unbiased estimate of the KL, for every pair.

    With the exact posterior, `-distortion - sampled_rate` equals log p(x) at every draw. Raises as
    `rate` does: a point posterior has no rate under a density.

    Args:
      d: one Draw.
    Returns:
      The estimate, nats, `()`.
    """
    _has_prior("sampled_rate", d)
    check_comparable("sampled_rate", d.q, d.pz)
    return pathwise(d.q, d.z, d.log_q - d.pz.log_prob(d.z))


def log_weight(d: Draw) -> Array:
    """log w = log p(x|z) + log p(z) - log q(z|x) at the drawn z: a draw's importance weight.

    `E_q[w] = p(x)`. Raises as `sampled_rate` does.

    Args:
      d: one Draw.
    Returns:
      log w, nats, `()`.
    """
    return -distortion(d) - sampled_rate(d)


def log_mean_exp(log_w: Array) -> Array:
    """log 1/K sum_k w_k of log-weights.

    Args:
      log_w: log-weights, nats, `[K]`.
    Returns:
      The log of their mean, nats, `()`: -inf where every weight is zero.
    """
    return jax.nn.logsumexp(log_w) - jnp.log(float(log_w.size))


def effective_sample_size(log_w: Array) -> Array:
    """(sum_k w_k)^2 / sum_k w_k^2 of log-weights.

    Args:
      log_w: log-weights, nats, `[K]`.
    Returns:
      The effective number of draws, between 1 and K, `()`.
    """
    w = jnp.exp(log_w - jax.lax.stop_gradient(jnp.max(log_w)))
    return jnp.sum(w) ** 2 / jnp.sum(w**2)


def _has_prior(function: str, d: Draw) -> None:
    if d.pz is None:
        raise ValueError(
            f"{function}: a deterministic autoencoder has no prior, so no KL; use the distortion "
            "alone, or give autoencoder(..., prior=...)"
        )


__all__ = [
    "distortion",
    "effective_sample_size",
    "log_mean_exp",
    "log_weight",
    "rate",
    "rate_per_dimension",
    "sampled_rate",
]
