"""Densities over real numbers: Gaussians, Laplace, uniform and continuous Bernoulli."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.distributions._base import Distribution, distribution
from vaejax.distributions._events import (
    as_float,
    dtype_of,
    fields_of,
    flat,
    one_event,
    sum_inside,
    to_event,
)
from vaejax.types import Array


def _moved(d, standard, key):
    """loc + scale e, the entries of e independent draws of a standard distribution."""
    return d.loc + d.scale * standard(key, d.event_shape, dtype_of(d))


@distribution
class Normal(Distribution):
    """Independent Gaussians: log p(x) = sum_i -((x_i - loc_i) / scale_i)^2 / 2 - log(scale_i) - c.

    c = log(2 pi) / 2. Both parameters broadcast to the shape of the event. Samples are
    differentiable in both.

    Args:
      loc: the mean.
      scale: the standard deviation, not the variance, above 0.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax.distributions import Normal
      >>> q = Normal(jnp.zeros(3), jnp.ones(3))
      >>> q
      Normal(loc=f32[3], scale=f32[3])
      >>> x, log_p = q.sample_and_log_prob(jax.random.key(0))
      >>> x.shape, log_p.shape
      ((3,), ())
    """

    loc: Any
    scale: Any

    def sample(self, key):
        return _moved(self, jax.random.normal, key)

    def log_prob(self, x):
        x, loc, scale = flat(self, x)
        z = (x - loc) / scale
        return jnp.sum(-0.5 * z**2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi).item())

    @property
    def mean(self):
        return to_event(self, self.loc)


@distribution
class MultivariateNormal(Distribution):
    """A Gaussian with covariance L L^T: x = loc + L e, with e standard normal.

    log p(x) = -|L^-1 (x - loc)|^2 / 2 - log|det L| - n c with c = log(2 pi) / 2. Samples are
    differentiable in both parameters.

    Args:
      loc: the mean, `[n]`.
      scale_tril: L, `[n, n]`, lower triangular with a diagonal free of zeros. The entries above the
        diagonal are ignored.
    """

    loc: Any
    scale_tril: Any

    def sample(self, key):
        noise = jax.random.normal(key, self.event_shape, dtype_of(self))
        return self.loc + jnp.tril(self.scale_tril) @ noise

    def log_prob(self, x):
        loc, scale_tril = fields_of(self)
        x = one_event(self, x)
        z = solve_lower(scale_tril, x - loc)
        return (
            -0.5 * jnp.sum(z**2) - log_abs_det(scale_tril) - 0.5 * x.size * np.log(2 * np.pi).item()
        )

    @property
    def mean(self):
        return to_event(self, self.loc)

    @property
    def event_shape(self):
        return np.broadcast_shapes(np.shape(self.loc), np.shape(self.scale_tril)[-1:])


@distribution
class Laplace(Distribution):
    """Independent double exponentials: log p(x) = sum_i -|x_i - loc_i| / scale_i - log(2 scale_i).

    Both parameters broadcast to the shape of the event. Samples are differentiable in both.

    Args:
      loc: the mean, which is the median too.
      scale: above 0; the variance is 2 scale^2.
    """

    loc: Any
    scale: Any

    def sample(self, key):
        return _moved(self, jax.random.laplace, key)

    def log_prob(self, x):
        loc, scale = fields_of(self)
        x = one_event(self, x)
        return jnp.sum(-jnp.abs(x - loc) / scale - jnp.log(2 * scale))

    @property
    def mean(self):
        return to_event(self, self.loc)


@distribution
class Uniform(Distribution):
    """Independent uniforms on the closed intervals: log p(x) = -sum_i log(high_i - low_i).

    It is -inf where any x_i lies outside its interval. Both parameters broadcast to the shape of
    the event. Samples are differentiable in both.

    Args:
      low: the lower ends.
      high: the upper ends, each above its `low`.
    """

    low: Any
    high: Any

    def sample(self, key):
        noise = jax.random.uniform(key, self.event_shape, dtype_of(self))
        # The noise ends one unit of rounding below 1, so that no sample steps over the upper end.
        return self.low + (self.high - self.low) * noise

    def log_prob(self, x):
        low, high = fields_of(self)
        x = one_event(self, x)
        outside = (x < low) | (x > high)
        return sum_inside(x, outside, -jnp.log(high - low))

    @property
    def mean(self):
        return to_event(self, 0.5 * self.low + 0.5 * self.high)  # low + high may overflow


@distribution
class ContinuousBernoulli(Distribution):
    """The density on [0, 1] proportional to exp(logits x), for grey images.

    log p(x) = sum_i logits_i x_i - log((exp(logits_i) - 1) / logits_i), and -inf outside [0, 1].
    Samples are drawn by inverting the distribution function and are differentiable. The mean is not
    sigmoid(logits).

    Args:
      logits: in the shape of the event.
    References:
      Loaiza-Ganem and Cunningham, 2019, arXiv:1907.06845.
    """

    logits: Any

    def sample(self, key):
        logits, dtype = as_float(self.logits), dtype_of(self)
        # Away from 0, or a large logit would turn 1 - u = 1 into log(0).
        u = jax.random.uniform(key, logits.shape, dtype, minval=float(jnp.finfo(dtype).eps))
        near = jnp.abs(logits) < 0.01
        # x = log(1 - u + u exp(logits)) / logits, by symmetry with exponents that cannot overflow.
        steep = jnp.where(near, 1.0, jnp.abs(logits))
        falling = -jnp.log1p(jnp.where(logits < 0, u, 1 - u) * jnp.expm1(-steep)) / steep
        far_x = jnp.where(logits < 0, falling, 1 - falling)
        # Near 0 the first cumulants of a coin, since that logarithm generates them.
        small, v = jnp.where(near, logits, 0.0), u * (1 - u)
        near_x = u + small * (v / 2 + small * (v * (1 - 2 * u) / 6))
        return jnp.clip(jnp.where(near, near_x, far_x), 0, 1)

    def log_prob(self, x):
        (logits,) = fields_of(self)
        x = one_event(self, x)
        slope, rest = _log_normaliser(as_float(logits))
        outside = (x < 0) | (x > 1)
        # Not x logits - log_normaliser: the two cancel to few digits when the logit is large.
        return sum_inside(x, outside, (jnp.where(outside, 0, x) - slope) * logits - rest)

    @property
    def mean(self):
        # An exponential family: the mean is the gradient of the log-normaliser.
        rest, pull, slope = jax.vjp(
            lambda logits: _log_normaliser(logits)[::-1], as_float(self.logits), has_aux=True
        )
        return slope + pull(jnp.ones_like(rest))[0]


def _log_normaliser(logits: Array) -> tuple[Array, Array]:
    """(c, r) with log((exp(l) - 1) / l) = c l + r, where c is 0, 1/2 or 1 and r stays small.

    Near 0 it is c = 1/2 and r = log(sinh(l/2) / (l/2)) by its series, whose first term left out is
    below 1e-14 at 0.5; beyond, r = log((1 - exp(-|l|)) / |l|) loses no digits.
    """
    near = jnp.abs(logits) < 0.5
    steep = jnp.where(near, 1.0, jnp.abs(logits))
    far = jnp.log(-jnp.expm1(-steep) / steep)
    s = jnp.where(near, logits, 0.0) ** 2
    series = s * (1 / 24 + s * (-1 / 2880 + s * (1 / 181440 + s * (-1 / 9676800 + s / 479001600))))
    slope = jnp.where(near, 0.5, jnp.where(logits > 0, 1.0, 0.0))
    return slope.astype(logits.dtype), jnp.where(near, series, far)


def solve_lower(scale_tril: Any, b: Array) -> Array:
    """L^-1 b for a lower triangular L, of which the part above the diagonal is not read."""
    return jax.scipy.linalg.solve_triangular(scale_tril, b, lower=True)


def log_abs_det(scale_tril: Any) -> Array:
    """log|det L| of a lower triangular L, read off its diagonal."""
    return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(scale_tril))))
