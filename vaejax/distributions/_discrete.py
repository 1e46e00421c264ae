"""Discrete distributions, of which `log_prob` is the log of a probability, not of a density."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.distributions._base import Distribution, distribution
from vaejax.distributions._events import as_float, dtype_of, fields_of, flat, one_event, sum_inside
from vaejax.types import Array


@distribution
class Bernoulli(Distribution):
    """Independent coins, from logits: log p(x) = sum_i x_i logits_i - log(1 + exp(logits_i)).

    Samples are floats 0. and 1., without gradient. `log_prob` accepts grey targets, anything in [0,
    1]. It is then minus the cross-entropy, which ranks models but is not a likelihood; for such
    data `ContinuousBernoulli` is one. It is -inf outside [0, 1].

    Args:
      logits: in the shape of the event, finite. A logit of +-inf gives NaN; +-100 says as much.
    """

    logits: Any
    discrete = True

    def sample(self, key):
        dtype = dtype_of(self)
        # At least float32: in half precision the uniform numbers behind the coin are too coarse.
        logits = jnp.asarray(self.logits, jnp.promote_types(dtype, jnp.float32))
        return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(dtype)

    def log_prob(self, x):
        x, logits = flat(self, x)
        outside = (x < 0) | (x > 1)
        # The inner where keeps the gradient zero (and not inf - inf) where x is outside.
        log_p = jnp.where(outside, 0, x) * logits - _softplus(logits)
        return sum_inside(x, outside, log_p)

    @property
    def mean(self):
        return jax.nn.sigmoid(as_float(self.logits))


@distribution
class Categorical(Distribution):
    """Independent choices among k classes: log p(x) = sum_i log softmax(logits_i)[x_i].

    An event is integers in 0..k-1 of shape `[...]`, and int32 when sampled. The `mean` is that of
    the one-hot code: the probabilities `[..., k]`. `log_prob` is -inf outside the classes, and
    raises TypeError for anything but integers.

    Args:
      logits: `[..., k]`. A logit of -inf rules its class out.
    """

    logits: Any
    discrete = True

    def sample(self, key):
        return jax.random.categorical(key, as_float(self.logits)).astype(jnp.int32)

    def log_prob(self, x):
        (logits,) = fields_of(self)
        x = one_event(self, x)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(
                f"Categorical.log_prob: expected integer classes, got {x.dtype}; "
                "convert them: x.astype(jnp.int32), or jnp.argmax(x, -1) if x is one-hot"
            )
        outside = (x < 0) | (x >= np.shape(logits)[-1])
        log_p = jax.nn.log_softmax(as_float(logits))
        index = jnp.where(outside, 0, x)[..., None]
        return sum_inside(x, outside, jnp.take_along_axis(log_p, index, axis=-1)[..., 0])

    @property
    def mean(self):
        return jax.nn.softmax(as_float(self.logits))

    @property
    def event_shape(self):
        return np.shape(self.logits)[:-1]


@distribution
class Delta(Distribution):
    """All mass on one value: log p(x) = 0 where x equals `value`, -inf elsewhere.

    `sample` returns the value. The log-probability is against counting measure, so `kl` of a Delta
    with a density raises TypeError.

    Args:
      value: in the shape of the event.
    """

    value: Any
    discrete = True

    def sample(self, key):
        del key  # there is nothing random in it
        return jnp.asarray(self.value)

    def log_prob(self, x):
        value = fields_of(self)[0]
        x = one_event(self, x)
        known = jnp.where(value == value, x, value)  # NaN where either is NaN
        return sum_inside(known, x != value, jnp.zeros((), dtype_of(self)))

    @property
    def mean(self):
        return jnp.asarray(self.value)


@distribution
class SparseDelta(Delta):
    """A Delta at a value that is sparse.

    Args:
      value: in the shape of the event.
      active: how many entries of `value` are not zero, at most.
    """

    active: int = dataclasses.field(metadata={"static": True})


@distribution
class DiscretizedLogistic(Distribution):
    """Independent logistics rounded to the grid k / (levels - 1), k = 0..levels-1, in [0, 1].

    P(x) = sigmoid((x + w/2 - loc) / scale) - sigmoid((x - w/2 - loc) / scale), w = 1 / (levels-1);
    the first and the last level take the tails. It is -inf off the grid (beyond a thousandth of w,
    for rounding). Samples have no gradient. `mean` is exact: w sum_{k>=1} P(x >= k w), at the cost
    of `levels` sigmoids per element.

    Args:
      loc: the centre of the logistic, in the units of x; broadcasts to the shape of the event.
      scale: its width, above 0, in the units of x; broadcasts to the shape of the event.
      levels: points of the grid; 256 by default, for 8-bit images.
    References:
      Kingma et al., 2016, arXiv:1606.04934; Salimans et al., 2017, arXiv:1701.05517.
    """

    loc: Any
    scale: Any
    levels: int = dataclasses.field(default=256, metadata={"static": True})
    discrete = True

    def sample(self, key):
        noise = jax.random.logistic(key, self.event_shape, dtype_of(self))
        last = self.levels - 1
        return jnp.round(jnp.clip((self.loc + self.scale * noise) * last, 0, last)) / last

    def log_prob(self, x):
        loc, scale, levels = fields_of(self)
        x = as_float(one_event(self, x))  # first, or stored uint8 would wrap round below
        last = levels - 1
        level = jnp.round(x * last)
        # With 16-bit images a float32 cannot hold k / last to a thousandth of a bin.
        rounding = levels * float(jnp.finfo(x.dtype).eps)
        off_grid = jnp.abs(x * last - level) > min(max(1e-3, rounding), 0.25)
        outside = off_grid | (level < 0) | (level > last)
        level = jnp.where(outside, 0, level)
        upper = ((level + 0.5) / last - loc) / scale
        lower = ((level - 0.5) / last - loc) / scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): no difference of two
        # numbers near 0 or 1. A tail is the same with b or a at infinity, so factors drop out.
        inner = jnp.log(-jnp.expm1(-1 / (last * jnp.asarray(scale))))
        log_p = (
            jnp.where(level == last, 0, jax.nn.log_sigmoid(upper))
            + jnp.where(level == 0, 0, jax.nn.log_sigmoid(-lower))
            + jnp.where((level == 0) | (level == last), 0, inner)
        )
        return sum_inside(x, outside, log_p)

    @property
    def mean(self):
        edges = (jnp.arange(1, self.levels, dtype=dtype_of(self)) - 0.5) / (self.levels - 1)
        above = jax.vmap(lambda edge: jax.nn.sigmoid((self.loc - edge) / self.scale))(edges)
        return jnp.mean(above, axis=0)


@jax.custom_jvp
def _softplus(logits: Any) -> Array:
    """log(1 + exp(l)) = max(l, 0) + log1p(exp(-|l|)), with the gradient sigmoid(l).

    As `jax.nn.softplus` to the last bit or two, but without its branches for infinities, which keep
    compilers from vectorising: on CPU about 4 times faster in a Bernoulli's log_prob, and 6 times
    with its gradient.
    """
    return jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))


_softplus.defjvps(lambda tangent, _, logits: tangent * jax.nn.sigmoid(logits))
