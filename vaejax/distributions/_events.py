"""What distributions do with events and parameters: checks, types, and sums over an event."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.arrays import numbers
from vaejax.distributions._base import Distribution
from vaejax.errors import wrong
from vaejax.types import Array, describe


def dtype_of(distribution: Distribution) -> Any:
    """The floating dtype of the parameters; the default one where they are Python numbers."""
    return jnp.result_type(*jax.tree.leaves(distribution), 1.0)


def as_float(parameter: Any) -> Array:
    """A parameter as a floating array, where integers or Python numbers were given too."""
    return jnp.asarray(parameter, jnp.result_type(parameter, 1.0))


def to_event(distribution: Distribution, value: Any) -> Array:
    """A value in the shape of the event and the dtype of the parameters."""
    return jnp.broadcast_to(jnp.asarray(value, dtype_of(distribution)), distribution.event_shape)


def one_event(distribution: Distribution, x: Any) -> Array:
    """x as an array, after checking that it is exactly one event."""
    x = numbers(f"{type(distribution).__name__}.log_prob: x", x, "one event")
    expected, got = _event_shape(distribution), np.shape(x)
    if got != expected:
        batched = len(got) > len(expected) and got[len(got) - len(expected) :] == expected
        fix = "map it: jax.vmap(q.log_prob)(x)" if batched else "reshape x, or map: jax.vmap(...)"
        raise ValueError(
            f"{type(distribution).__name__}.log_prob: expected one event of shape {expected}, "
            f"got {got}; {fix}"
        )
    return jnp.asarray(x)


def fields_of(distribution: Distribution) -> list[Any]:
    """All fields as arrays; Python's numbers stay, since they widen no type.

    TypeError where one is no array of numbers: a string, a function, nothing, a list.
    """
    name, expected = type(distribution).__name__, "parameters of numbers"
    fields = list(vars(distribution).values())
    for field in fields:
        if isinstance(field, list | tuple):  # JAX takes its entries for parameters of their own
            raise wrong(
                name, describe(field), expected, "pass an array: jnp.asarray(...)", TypeError
            )
    return [f if isinstance(f, int | float) else numbers(name, f, expected) for f in fields]


def flat(distribution: Distribution, x: Any) -> list[Array]:
    """x, checked to be one event, and the fields, as vectors; scalars stay scalars.

    On CPU, XLA computes and sums over `[28, 28, 1]` many times slower than over `[784]`.
    """
    parameters = fields_of(distribution)
    shape = _event_shape(distribution)
    whole = [p if np.ndim(p) == 0 else jnp.broadcast_to(p, shape) for p in parameters]
    return [jnp.ravel(v) if np.ndim(v) else v for v in (one_event(distribution, x), *whole)]


def _event_shape(distribution: Distribution) -> tuple[int, ...]:
    try:
        return distribution.event_shape
    except ValueError as error:
        if not str(error).startswith("shape mismatch"):  # its own words
            raise
        name = type(distribution).__name__
        got = f"shapes {[np.shape(leaf) for leaf in jax.tree.leaves(distribution)]}"
        fix = "give all of them the shape of the event, or numbers"
        raise wrong(name, got, "parameters of one shape", fix) from error


def sum_inside(x: Array, outside: Array, log_p: Array) -> Array:
    """Sum of log_p over the elements: -inf where one is outside, NaN where an x is NaN."""
    # Three sums rather than one of a choice per element: those that depend on x alone are then
    # taken once, however many parameters x is scored under.
    log_p = jnp.sum(jnp.broadcast_to(log_p, x.shape))
    log_p = jnp.where(jnp.any(outside), -jnp.inf, log_p)
    return jnp.where(jnp.any(x != x), jnp.nan, log_p)
