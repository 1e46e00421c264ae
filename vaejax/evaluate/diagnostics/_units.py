"""Which dimensions of a code are used: active units, and the rate of each dimension."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.distributions import kl
from vaejax.errors import finite_values, wrong
from vaejax.evaluate._each import measure, measure_each
from vaejax.evaluate._measures import codes
from vaejax.evaluate.decomposition import (
    check_posterior,
    checked,
    dimensions_of,
    is_factorial,
    shapes_of,
)
from vaejax.model import Model, deterministic
from vaejax.types import Array, Key, Params, PerUnit, Transform, describe_fields


@describe_fields
class ActiveUnits(NamedTuple):
    """What `active_units` returns.

    Args:
      variance: A_u of each unit, in squared units of z, `[latent]`.
      error: its standard error as an estimate for the population that the examples are drawn from,
        `[latent]`.
      threshold: what A_u must exceed.
    """

    variance: PerUnit
    error: PerUnit
    threshold: float

    @property
    def active(self) -> int:
        """How many units are active."""
        return int(np.sum(self.variance > self.threshold))

    @property
    def interval(self) -> tuple[int, int]:
        """How many are active by 1.96 standard errors, and how many are not inactive by as much."""
        margin = 1.96 * self.error
        low, high = (self.variance + sign * margin > self.threshold for sign in (-1, 1))
        return int(np.sum(low)), int(np.sum(high))


@measure
def active_units(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    threshold: float = 1e-2,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> ActiveUnits:
    """The units whose mean code moves with the data: A_u = Var_x(E_q[u|x]) > threshold.

    That says that a unit reacts, not by how much: beside it read `rate_per_dimension`. A code that
    is a point has active units too.

    Args:
      model, params: a Model and its parameters.
      key: for the `transform` alone.
      data: two examples or more, `[n, ...]`.
      threshold: what A_u must exceed.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      A_u of each unit, its standard error, and the count `active`.
    Raises:
      ValueError: for fewer than two examples, for weights, and where a mean is not finite.
      TypeError: where the posterior has no mean in closed form.
    References:
      Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519.
    """
    batch = checked("active_units", key, data, batch_size=batch_size)
    q, _ = shapes_of(model, transform, params, key, batch)
    if not has_mean(q):
        fix = "average samples of it for every example and take their variance"
        name = type(q).__name__
        raise wrong("active_units: posterior", name, "one with a mean", fix, TypeError)
    found = codes(model, params, key, batch, transform=transform, batch_size=batch_size)
    shift = np.asarray(found, float).reshape(len(found), -1)
    finite_values("active_units", "a mean code", shift.sum(axis=1), batch.x)  # weights or not
    squares = (shift - shift.mean(axis=0)) ** 2
    return ActiveUnits(squares.mean(axis=0), standard_error(squares), threshold)


@measure
def rate_per_dimension(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> PerUnit:
    """R_j = E_x KL(q(z_j|x) || p(z_j)): the rate of each latent dimension.

    In closed form, for a diagonal Normal posterior and prior; the sum over j is the rate.

    Args:
      model, params: a Model with a prior, and its parameters.
      key: for the `transform` alone.
      data: two examples or more, `[n, ...]`.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      R_j, nats, `[latent]`.
    Raises:
      ValueError: for fewer than two examples, for weights, no prior, and a rate that is not finite.
      TypeError: for any other pair, whose rate is no sum over dimensions.
    """
    batch = checked("rate_per_dimension", key, data, batch_size=batch_size)
    q, pz = check_posterior("rate_per_dimension", model, transform, params, key, batch)
    if not is_factorial(q, pz):
        got = f"{type(q).__name__} and {type(pz).__name__}"
        fix = "decompose gives the rate as a whole"
        expected = "two diagonal Normals"
        where = "rate_per_dimension: posterior and prior"
        raise wrong(where, got, expected, fix, TypeError)
    rates = measure_each(_rates, (model,), transform, batch_size, params, key, batch)
    finite_values("rate_per_dimension", "the rate", jnp.sum(rates, axis=1), batch.x)
    return np.asarray(rates, float).mean(axis=0)


def _rates(model: Model, params: Params, key: Key, x: Any, c: Any) -> Array:
    """KL(q(z_j|x) || p(z_j)) of every dimension, `[latent]`, nats."""
    model = deterministic(model)
    q, pz = model.encode(params, x, c), model.prior(params, c)
    return jax.vmap(kl)(dimensions_of(q), dimensions_of(pz))


def standard_error(values: np.ndarray) -> Any:
    """Standard error of the mean over the leading axis."""
    return np.asarray(values, float).std(axis=0, ddof=1) / np.sqrt(len(values))


def has_mean(q: Any) -> bool:
    """Whether a posterior, given as shapes, has a mean in closed form."""
    try:
        jax.eval_shape(lambda one: one.mean, q)
    except NotImplementedError:
        return False
    return True
