"""Transforms of one stored example into what the model sees, drawn anew at each training step."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vaejax.arrays import numbers
from vaejax.errors import at_least, check_key, wrong
from vaejax.types import Array, Key


def binarize(key: Key, x: ArrayLike) -> Array:
    """Draw x ~ Bernoulli(level / 255), anew at each call: dynamic binarisation.

    Floats are taken for probabilities. A float outside [0, 1] is none and gives NaN, which training
    and evaluation report.

    Args:
      key: of the draw.
      x: one example `[...]`: uint8 levels 0..255, or floats in [0, 1].
    Returns:
      float32 `[...]` of 0 and 1. Level 0 always gives 0, and level 255 always gives 1.
    Raises:
      TypeError: for other types.
    Example:
      >>> import jax
      >>> import numpy as np
      >>> from vaejax import data
      >>> data.binarize(jax.random.key(0), np.array([0, 255], np.uint8)).tolist()
      [0.0, 1.0]

    References:
      Salakhutdinov and Murray, 2008, "On the quantitative analysis of deep belief networks", drew
      binary images once; Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519, draw them anew.
    """
    check_key("binarize", key)
    levels = _is_levels("binarize", x)
    # Flat: the same bits as in an image's axes, compiled in half the time.
    flat, top = jnp.ravel(jnp.asarray(x, jnp.float32)), 255.0 if levels else 1.0
    # u * 255 < x and not u < x / 255: compilers turn division by a constant into a product with
    # its rounded reciprocal, and level 255 must stay certain.
    drawn = (jax.random.uniform(key, flat.shape) * top < flat).astype(jnp.float32)
    if not levels:
        drawn = jnp.where((flat >= 0) & (flat <= 1), drawn, jnp.nan)
    return drawn.reshape(jnp.shape(x))


def scale(key: Key, x: ArrayLike) -> Array:
    """Divide uint8 levels by 255, giving float32 in [0, 1]; floats pass through unchanged.

    A density that is fitted to scaled levels can grow without bound at the levels. Use `dequantize`
    for likelihoods.

    Args:
      key: not used.
      x: one example `[...]`: uint8 levels 0..255, or floats in [0, 1].
    Returns:
      float32 `[...]`.
    Raises:
      TypeError: for other types.
    """
    top = 255.0 if _is_levels("scale", x) else 1.0
    return jnp.asarray(x, jnp.float32) / top


def quantize(key: Key, x: ArrayLike, *, levels: int) -> Array:
    """Round to the nearest of `levels` levels, k / (levels - 1) in [0, 1].

    They are the grid of a DiscretizedLogistic with as many levels: 17 for the digits, whose scans
    count 0 to 16; 32 for images of 5 bits. Stored images that have exactly so many levels, spread
    over 0..255, lose nothing. As a transform: `functools.partial(data.quantize, levels=17)`, made
    once.

    Args:
      key: not used.
      x: one example `[...]`: uint8 levels 0..255, or floats in [0, 1].
      levels: how many, 2 or more.
    Returns:
      float32 `[...]`.
    Raises:
      ValueError: for fewer than two levels.
      TypeError: for other types of x.
    """
    at_least(2, "quantize", levels=levels)
    top = 255.0 if _is_levels("quantize", x) else 1.0
    return jnp.round(jnp.asarray(x, jnp.float32) * ((levels - 1) / top)) / (levels - 1)


def dequantize(key: Key, x: ArrayLike) -> Array:
    """Spread each level over its bin: (x + u) / 256 with u ~ Uniform[0, 1), anew at each call.

    The mean log-density of the result, per unit of the scale [0, 1], bounds the probability of the
    levels from below: for an example of D values, in nats, `log p_levels = log p - D log 256`.

    Args:
      key: of the draw.
      x: one example `[...]`, uint8 levels 0..255.
    Returns:
      float32 `[...]` in [0, 1). `floor(256 * result)` is exactly x.
    Raises:
      TypeError: for anything else.
    References:
      Theis, van den Oord and Bethge, 2016, arXiv:1511.01844.
    """
    check_key("dequantize", key)
    if not _is_levels("dequantize", x):
        fix = "floats have no levels to spread: leave the transform out"
        raise wrong("dequantize: x", jnp.result_type(x), "uint8 levels 0..255", fix, TypeError)
    # Sixteen random bits: with the level they fit float32, so that no sum rounds up to the next.
    u = jax.random.bits(key, (jnp.size(x),), jnp.uint16).astype(jnp.float32) / 65536.0
    return ((jnp.ravel(jnp.asarray(x, jnp.float32)) + u) / 256.0).reshape(jnp.shape(x))


def _is_levels(function: str, x: ArrayLike) -> bool:
    """Whether x is uint8 levels, and not floats; TypeError for other types."""
    dtype = jnp.result_type(numbers(f"{function}: x", x, "one example"))
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        expected, fix = "uint8 levels 0..255 or floats in [0, 1]", "read it with vaejax.data.load"
        raise wrong(f"{function}: x", dtype, expected, fix, TypeError)
    return dtype == jnp.uint8
