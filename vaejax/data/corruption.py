"""What a denoising autoencoder is trained to undo: pure functions `corrupt(key, x) -> x~`.

Each function here makes one, for one example x as the model sees it: an array, or a pytree whose
leaves are corrupted independently. x~ has the shape and type of x. `autoencoders.denoising` draws
it anew at every step. A batch is `jax.vmap(corrupt)(keys, x)`.

| corruption | what remains to be done |
| --- | --- |
| `masking(nu)` | fill entries in |
| `gaussian(scale)` | remove noise; the reconstruction then holds a score, see `score` |
| `salt_and_pepper(nu)` | find the broken entries and fill them in |
| `erased_block(side)` | inpainting |
| `low_resolution(factor)` | super-resolution |
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.arrays import examples, numbers
from vaejax.errors import check_key, check_number, concrete, is_whole, wrong
from vaejax.types import Array, Key, describe

__all__ = ["erased_block", "gaussian", "low_resolution", "masking", "salt_and_pepper"]

Corrupt = Callable[[Key, Any], Any]


def masking(nu: float) -> Corrupt:
    """Each entry is zero with probability nu, independently, and else as it was.

    `x~_i = m_i x_i`, `m_i ~ Bernoulli(1 - nu)`. Nothing is rescaled (as dropout would), so that
    E[x~] = (1 - nu) x.

    Args:
      nu: the share of entries to corrupt, in [0, 1].
    Returns:
      `corrupt(key, x) -> x~`.
    Raises:
      ValueError: unless 0 <= nu <= 1.
    References:
      Vincent, Larochelle, Bengio and Manzagol, 2008, Extracting and composing robust features with
      denoising autoencoders.
    """
    _probability("masking", nu)

    def mask(key: Key, x: Array) -> Array:
        return jnp.where(jax.random.bernoulli(key, 1.0 * nu, x.shape), jnp.zeros_like(x), x)

    return _leaf_by_leaf(mask)


def gaussian(scale: float) -> Corrupt:
    """Normal noise is added: `x~ = x + scale eps`, `eps ~ N(0, I)`; nothing is clipped.

    Args:
      scale: standard deviation, in units of x.
    Returns:
      `corrupt(key, x) -> x~`, which raises TypeError where x is not floating point.
    Raises:
      ValueError: unless scale is positive and finite.
    References:
      Vincent et al., 2010, Stacked denoising autoencoders, JMLR 11.
    """
    if not isinstance(scale, int | float):
        check_number("gaussian: scale", scale)
    if concrete(scale) and not 0 < scale < np.inf:
        raise wrong("gaussian: scale", scale, "a positive number", "give a standard deviation")

    def add(key: Key, x: Array) -> Array:
        deviation = jnp.asarray(scale, _floats("gaussian", x).dtype)
        return x + deviation * jax.random.normal(key, x.shape, x.dtype)

    return _leaf_by_leaf(add)


def salt_and_pepper(nu: float) -> Corrupt:
    """Each entry is lost with probability nu, independently: then 0 or 1, evenly.

    `x~_i = 0` or `1` with probability nu / 2 each, else x_i. For x in [0, 1].

    Args:
      nu: the share of entries to corrupt, in [0, 1].
    Returns:
      `corrupt(key, x) -> x~`, which raises TypeError where x is not floating point.
    Raises:
      ValueError: unless 0 <= nu <= 1.
    References:
      Vincent et al., 2010, Stacked denoising autoencoders, JMLR 11.
    """
    _probability("salt_and_pepper", nu)

    def lose(key: Key, x: Array) -> Array:
        u = jax.random.uniform(key, _floats("salt_and_pepper", x).shape)
        return jnp.where(u < nu, (u < nu / 2).astype(x.dtype), x)

    return _leaf_by_leaf(lose)


def erased_block(side: int) -> Corrupt:
    """A square of side x side pixels is zero in all channels, at a place drawn evenly.

    Args:
      side: of the square, in pixels. The square lies inside the image.
    Returns:
      `corrupt(key, x) -> x~` of an image x, `[height, width]` or `[height, width, channels]`. It
      raises ValueError for x that is no image, or smaller than the square.
    Raises:
      ValueError: for a side that is no whole number from 1 on.
    References:
      Pathak et al., 2016, Context encoders: feature learning by inpainting, arXiv:1604.07379.
    """
    _whole("erased_block: side", side)

    def erase(key: Key, x: Array) -> Array:
        height, width = _image("erased_block", x)
        if side > min(height, width):
            expected = f"1 to {min(height, width)}, the image being {height} x {width}"
            raise wrong("erased_block: side", side, expected, "choose a smaller block")
        lowest, highest = jnp.zeros(2, jnp.int32), jnp.array([height - side, width - side])
        top, left = jax.random.randint(key, (2,), lowest, highest + 1)
        rows, columns = jnp.arange(height) - top, jnp.arange(width) - left
        inside = jnp.outer((rows >= 0) & (rows < side), (columns >= 0) & (columns < side))
        return jnp.where(inside.reshape(height, width, *[1] * (x.ndim - 2)), jnp.zeros_like(x), x)

    return _leaf_by_leaf(erase)


def low_resolution(factor: int) -> Corrupt:
    """Every pixel becomes the mean of its cell of factor x factor pixels, super-resolution's input.

    Cells are counted from the upper left corner. Those at the other edges are smaller where factor
    does not divide the image, and their mean is over the pixels that they have. Nothing is random:
    the key is not used.

    Args:
      factor: a cell's side, in pixels.
    Returns:
      `corrupt(key, x) -> x~` of an image x, `[height, width]` or `[height, width, channels]`. It
      raises ValueError for x that is no image, and TypeError where x is not floating point.
    Raises:
      ValueError: for a factor that is no whole number from 1 on.
    """
    _whole("low_resolution: factor", factor)

    def average(key: Key, x: Array) -> Array:
        sides = _image("low_resolution", _floats("low_resolution", x))
        rows, columns = (_cell_means(side, factor, x.dtype) for side in sides)
        return jnp.einsum("ih,hw...,jw->ij...", rows, x, columns, precision="highest")

    return _leaf_by_leaf(average)


def _cell_means(size: int, factor: int, dtype: Any) -> Array:
    """The matrix `[size, size]` that replaces each entry of a row by the mean of its cell."""
    cell = np.arange(size) // factor
    same = cell[:, None] == cell[None, :]
    return jnp.asarray(same / same.sum(axis=1, keepdims=True), dtype)


def _leaf_by_leaf(corrupt: Callable[[Key, Array], Array]) -> Corrupt:
    """The corruption of arrays as one of pytrees, each leaf with a key of its own."""

    def of_tree(key: Key, x: Any) -> Any:
        check_key("corruption", key)
        x = examples("corruption: x", x, "one example")
        leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, x))
        keys = jax.random.split(key, len(leaves))
        found = [corrupt(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, found)

    return of_tree


def _probability(function: str, nu: float) -> None:
    """Raise ValueError for a rate outside [0, 1]."""
    if not isinstance(nu, int | float):
        check_number(f"{function}: nu", nu)
    if concrete(nu) and not 0 <= nu <= 1:
        fix = "give the share of entries to corrupt, for instance 0.5"
        raise wrong(f"{function}: nu", nu, "a probability in [0, 1]", fix)


def _whole(where: str, count: int) -> None:
    """Raise ValueError for a count of pixels that is not whole or below 1."""
    if not is_whole(count) or count < 1:
        raise wrong(
            where, describe(count), "a whole number of pixels, 1 or more", "count in pixels"
        )


def _floats(function: str, x: Array) -> Array:
    """x, or TypeError where it is not floating point."""
    x = jnp.asarray(numbers(f"{function}: x", x, "one example"))
    if not jnp.issubdtype(x.dtype, jnp.floating):
        fix = "scale it first: transform=data.scale"
        raise wrong(f"{function}: x", x.dtype, "floating point", fix, TypeError)
    return x


def _image(function: str, x: Array) -> tuple[int, int]:
    """The height and width of an image, or ValueError for what is none."""
    if x.ndim not in (2, 3):
        expected = "one image [height, width] or [height, width, channels]"
        fix = "reshape a vector to its image; map a batch: jax.vmap(corrupt)(keys, x)"
        raise wrong(f"{function}: x", f"shape {x.shape}", expected, fix)
    return x.shape[0], x.shape[1]
