"""A weight of the rate that rises again and again."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vaejax.errors import at_least_one, check_number, wrong
from vaejax.types import Array


def cyclical(
    peak: float = 1.0, *, steps: int, cycles: int = 4, rising: float = 0.5
) -> Callable[[Any], Array]:
    """A schedule of beta in cycles: in each it rises from 0 to its peak, then stays there.

    `beta(step) = peak min(1, t / rising)`, with `t` from 0 to 1 the part of its cycle that is over,
    `t = (step mod ceil(S / M)) / (S / M)` for S steps in M cycles. One cycle of `rising=1` is a
    linear warm-up. From `steps` on the weight is `peak`, also where a loss is evaluated.

    Args:
      peak: the highest weight; 1 is the bound.
      steps: all cycles together, such as epochs times steps of an epoch.
      cycles: how many.
      rising: the part of a cycle in which the weight rises, above 0 and at most 1.
    Returns:
      `step -> beta`, a schedule as losses take them.
    Raises:
      TypeError, ValueError: for other numbers.
    Example:
      >>> from vaejax import objectives
      >>> beta = objectives.cyclical(steps=16, cycles=2)
      >>> print(*(f"{float(beta(step)):g}" for step in range(0, 20, 2)))
      0 0.5 1 1 0 0.5 1 1 1 1

    References:
      Fu et al., 2019, Cyclical Annealing Schedule, arXiv:1903.10145.
    """
    at_least_one("cyclical", steps=steps, cycles=cycles)
    check_number("cyclical: peak", peak)
    check_number("cyclical: rising", rising, above=0.0)
    if rising > 1:
        raise wrong("cyclical: rising", rising, "a part of a cycle, at most 1", "such as 0.5")
    length = -(-steps // cycles)

    def beta(step: Any) -> Array:
        step = jnp.asarray(step)
        part = jnp.where(step < steps, step % length / (steps / cycles), 1.0)
        return peak * jnp.minimum(1.0, part / rising)

    return beta
