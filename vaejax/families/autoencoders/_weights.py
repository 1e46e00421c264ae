"""How much each example of a batch or a data set counts."""

from typing import Any

import jax.numpy as jnp

from vaejax.types import Array


def weights_of(size: int, weight: Any) -> Array:
    """The weights `[size]` as an array; where there are none, `()`, every example counts 1."""
    return jnp.ones(size) if isinstance(weight, tuple) else jnp.asarray(weight)
