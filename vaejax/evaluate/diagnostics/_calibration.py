"""Whether the decoder's standard deviations are right."""

from collections.abc import Sequence
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.batch import example_at
from vaejax.distributions import Normal
from vaejax.errors import finite_values, wrong
from vaejax.evaluate._each import measure, measure_each
from vaejax.evaluate.decomposition import checked
from vaejax.evaluate.diagnostics._units import standard_error
from vaejax.model import Model, deterministic, draw
from vaejax.types import Array, Estimate, Key, Params, Transform, describe_fields


@describe_fields
class Calibration(NamedTuple):
    """What `calibration` returns.

    Args:
      levels: nominal shares of x inside central intervals, `[levels]`.
      coverage: the observed shares, `[levels]`.
      error: the standard error of the coverage over examples, `[levels]`.
      mean_square: of the standardised residuals, 1 for a calibrated decoder, more for one that is
        too sure of itself.
    """

    levels: np.ndarray
    coverage: np.ndarray
    error: np.ndarray
    mean_square: Estimate

    def __str__(self) -> str:
        rows = zip(self.levels, self.coverage, self.error, strict=True)
        lines = [f"{level:6.1%} interval holds {got:.1%} ({se:.1%})" for level, got, se in rows]
        return "\n".join([*lines, f"mean squared z-score {self.mean_square}, expected 1"])


@measure
def calibration(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
    samples: int = 1,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> Calibration:
    """Whether the decoder's standard deviations are right: coverage of its central intervals.

        r = (x - loc(z)) / scale(z),  z ~ q(z|x);   coverage(level) = share of |r| < quantile

    Under data from the model itself and the exact posterior every r is standard normal, whatever
    the model. With an approximate posterior a lack of coverage may be the encoder's fault too.

    Args:
      model, params: a Model whose p(x|z) is Normal, and its parameters.
      key: for the draws and the `transform`.
      data: two examples or more, `[n, ...]`.
      levels: nominal coverages in (0, 1).
      samples: draws of z per example.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      A Calibration: shares over all elements of all x, standard errors over examples.
    Raises:
      ValueError: for fewer than two examples, weights, samples < 1, levels outside (0, 1), examples
        of another shape than p(x|z), and residuals that are not finite.
      TypeError: unless p(x|z) is Normal.
    References:
      Kuleshov, Fenner and Ermon, 2018, arXiv:1807.00263.
    """
    batch = checked("calibration", key, data, batch_size=batch_size, samples=samples)
    nominal = np.asarray(levels, float)
    if nominal.ndim != 1 or not nominal.size or not ((nominal > 0) & (nominal < 1)).all():
        raise wrong("calibration: levels", levels, "numbers in (0, 1)", "for instance (0.5, 0.9)")
    x, c, rest = jax.eval_shape(
        partial(example_at, key, transform, jnp.zeros((), int)), batch.x, batch.c
    )
    seen = jax.eval_shape(partial(draw, model), params, rest, x, c).px
    if not isinstance(seen, Normal):
        name, fix = type(seen).__name__, "only a Normal decoder predicts a variance"
        raise wrong("calibration: likelihood", name, "Normal", fix, TypeError)
    bounds = jnp.asarray([NormalDist().inv_cdf((1 + level) / 2) for level in nominal])
    options, shared = (model, samples), (params, bounds)
    inside, square = measure_each(_residuals, options, transform, batch_size, shared, key, batch)
    square = np.asarray(finite_values("calibration", "a residual", square, batch.x), float)
    inside = np.asarray(inside, float)
    squares = Estimate(float(square.mean()), float(standard_error(square)))
    # A share seen in all or in none of N examples is still uncertain by about 1/N.
    error = np.hypot(standard_error(inside), 1 / len(inside))
    return Calibration(nominal, inside.mean(axis=0), error, squares)


def _residuals(
    model: Model, samples: int, shared: tuple[Params, Array], key: Key, x: Any, c: Any
) -> tuple[Array, Array]:
    """Share of |r| below each bound `[bounds]`, and the mean of r^2; shared: params, bounds."""
    model = deterministic(model)
    params, bounds = shared

    def one(z_key: Key) -> tuple[Array, Array]:
        px = draw(model, params, z_key, x, c).px
        r = jnp.abs((x - px.loc) / px.scale)
        return jax.vmap(lambda bound: jnp.mean(r < bound))(bounds), jnp.mean(r**2)

    found = jax.vmap(one)(jax.random.split(key, samples))
    return jax.tree.map(lambda values: jnp.mean(values, axis=0), found)
