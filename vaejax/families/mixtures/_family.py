"""What EM has to know about one kind of component."""

from collections.abc import Callable
from typing import Any, NamedTuple

from vaejax.distributions import Distribution
from vaejax.types import Array


class Family(NamedTuple):
    """A kind of component, as four functions; `k` components are one Distribution with an axis.

    Args:
      log_probs: `(components, x)` to log p_j(x) of one example, `[k]`, nats.
      fitted: `(share, x, floor, before)` to the components of maximum likelihood; share `[k, n]`
        says how much each example counts, in rows that sum to 1, and x is flat, `[n, d]`. The
        components before may serve as units: they change nothing but the rounding.
      allowed: `(components, floor)` to the nearest components that the floor allows.
      around: `(centres, spread, floor)` to a component around each centre `[k, ...]`, of variance
        `spread`, `()`, in each element of x.
      variance: `(components)` to the variance of each element of x, `[k, ...]`.
    """

    log_probs: Callable[[Any, Array], Array]
    fitted: Callable[[Array, Array, Any, Any], Distribution]
    allowed: Callable[[Any, Any], Distribution]
    around: Callable[[Array, Array, Any], Distribution]
    variance: Callable[[Any], Array]


__all__ = ["Family"]
