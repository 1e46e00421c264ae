"""Hamiltonian moves of one chain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vaejax.types import Array, Key


def leapfrog(
    log_f: Callable[[Array], Array], z: Array, momentum: Array, *, step: Any, count: int
) -> tuple[Array, Array, Array]:
    """Hamilton's equations for the energy `|momentum|^2 / 2 - log f(z)`: `count` leapfrog steps.

    Each is half a kick, `momentum += step/2 grad log f(z)`, a drift, `z += step momentum`, and half
    a kick. All are shears, so volume is kept, log|det J| = 0; and the same with the momentum
    reversed leads back.

    Args:
      log_f: log f(z) up to a constant, nats.
      z, momentum: arrays of one shape.
      step: a number, or one for each element of z.
      count: how many steps.
    Returns:
      The new z and momentum, and log f(new z) - log f(z), nats, `()`.
    References:
      Neal, 2011, MCMC using Hamiltonian dynamics, arXiv:1206.1901.
    """
    begin, gradient = jax.value_and_grad(log_f)(z)

    def one(_: Any, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        z, momentum, _, gradient = state
        momentum = momentum + 0.5 * step * gradient
        z = z + step * momentum
        end, gradient = jax.value_and_grad(log_f)(z)
        return z, momentum + 0.5 * step * gradient, end, gradient

    z, momentum, end, _ = lax.fori_loop(0, count, one, (z, momentum, begin, gradient))
    return z, momentum, end - begin


def hmc(
    log_f: Callable[[Array], Array], key: Key, z: Array, *, step: Any, count: int, scale: Any = 1.0
) -> tuple[Array, Array]:
    """One Hamiltonian Monte Carlo move of one chain, which leaves the density f as it is.

    Half of `step` to all of it is used, at random. A proposal whose energy is not a number is
    refused.

    Args:
      log_f: log f(z) up to a constant, nats.
      key: for the momentum, the step and the decision.
      z: where the chain is.
      step: the largest step size, in units of `scale`: a number, or an array of the shape of z.
      count: leapfrog steps.
      scale: the unit of the step, a number or an array of the shape of z.
    Returns:
      The new z, and the probability of acceptance, `()`.
    References:
      Neal, 2011, MCMC using Hamiltonian dynamics, arXiv:1206.1901.
    """
    momentum_key, step_key, accept_key = jax.random.split(key, 3)
    momentum = jax.random.normal(momentum_key, z.shape, z.dtype)
    # Trajectories that all have one length may turn in circles and end where they began.
    unit = (step * jax.random.uniform(step_key, minval=0.5, maxval=1.0) * scale).astype(z.dtype)
    new, reached, gained = leapfrog(log_f, z, momentum, step=unit, count=count)
    log_ratio = gained + 0.5 * (jnp.sum(momentum**2) - jnp.sum(reached**2))
    accepted = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    return jnp.where(jax.random.uniform(accept_key) < accepted, new, z), accepted
