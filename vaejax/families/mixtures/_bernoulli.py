"""Components that are products of Bernoullis."""

import jax
import jax.numpy as jnp

from vaejax.distributions import Bernoulli
from vaejax.families.mixtures._family import Family
from vaejax.types import Array


def _log_probs(components: Bernoulli, x: Array) -> Array:
    # Over many examples one matrix product, where log_prob would be mapped pixel by pixel.
    logits = components.logits
    flat, one = logits.reshape(len(logits), -1), jnp.ravel(x)
    log_p = jnp.matmul(flat, one, precision="highest") - jax.nn.softplus(flat).sum(axis=1)
    return jnp.where(jnp.any((one < 0) | (one > 1)), -jnp.inf, log_p)


def _fitted(share: Array, x: Array, floor: float, _: Bernoulli) -> Bernoulli:
    means = jnp.matmul(share, x, precision="highest")
    return _of(jnp.clip(means, floor, 1 - floor))


def _allowed(components: Bernoulli, floor: float) -> Bernoulli:
    most = jnp.log1p(-floor) - jnp.log(floor)
    return Bernoulli(jnp.clip(components.logits, -most, most))


def _around(centres: Array, spread: Array, floor: float) -> Bernoulli:
    # The centre with some values flipped; more than 1/4, and all would be much the same.
    flipped = jnp.clip(spread, floor, 0.25)
    return _of(flipped + (1 - 2 * flipped) * centres)


def _variance(components: Bernoulli) -> Array:
    return jax.nn.sigmoid(components.logits) * jax.nn.sigmoid(-components.logits)


def _of(p: Array) -> Bernoulli:
    return Bernoulli(jnp.log(p) - jnp.log1p(-p))


BERNOULLI = Family(_log_probs, _fitted, _allowed, _around, _variance)

__all__ = ["BERNOULLI"]
