"""Sprites: images of one shape whose five factors are known, drawn on the device.

The factors are independent, so that a code which follows them one by one is possible, and how near
another comes can be measured (`disentanglement.mig`). After the dSprites data set (Matthey,
Higgins, Hassabis and Lerchner, 2017), at any size and on any grid.

| factor | value |
| --- | --- |
| shape | 0 a square, 1 an ellipse of axes 2 to 1, 2 a heart; of equal area at equal scale |
| scale | of length, 1 for an area of 9 % of the image |
| rotation | radians, from the x axis towards the y axis; 0 is upright |
| x, y | of the centre of area, to the right and down; 0 to 1 is half of the image's width |
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from vaejax.batch import keys_of
from vaejax.errors import at_least_one, check_key, concrete, wrong
from vaejax.types import Array, Batch, Key

__all__ = ["FACTORS", "GRID", "SHAPES", "draw", "every", "grid", "sample", "values"]

FACTORS = ("shape", "scale", "rotation", "x", "y")
SHAPES = ("square", "ellipse", "heart")


def draw(factors: ArrayLike, *, size: int = 32) -> Array:
    """One sprite, white on black: each pixel is the share of it that the shape covers.

    `x_ij = clip(1/2 - d(u_ij), 0, 1)`, where d is the signed distance of a pixel's centre from the
    outline, in pixels. The edges are smooth: the image changes when its factors move it by less
    than a pixel.

    Args:
      factors: shape, scale, rotation, x, y, `[5]`, see above. The first is rounded. Whole sprites
        need a scale in (0, 1] and x, y in [0, 1].
      size: pixels along a side.
    Returns:
      `[size, size, 1]` in [0, 1]. Under a trace, a shape other than 0, 1 and 2 gives an image of
      NaN, since there are no values to look at.
    Raises:
      ValueError: for another shape of `factors`, such as a batch, which is mapped:
        jax.vmap(sprites.draw); and for a shape other than 0, 1 and 2.
    """
    at_least_one("sprites.draw", size=size)
    if np.shape(factors) != (len(FACTORS),):
        fix = "map a batch: jax.vmap(sprites.draw)(factors)"
        raise wrong("sprites.draw: factors", f"shape {np.shape(factors)}", (len(FACTORS),), fix)
    shape, scale, rotation, x, y = jnp.asarray(factors, float)
    which = jnp.round(shape).astype(int)
    inside = (which >= 0) & (which < len(SHAPES))
    if concrete(inside) and not inside:
        raise wrong("sprites.draw: shape", shape, f"0 to {len(SHAPES) - 1}", f"they are {SHAPES}")
    centres = (2 * jnp.arange(size) + 1) / size - 1  # of the pixels, in [-1, 1]
    u, v = jnp.meshgrid(centres - (x - 0.5), centres - (y - 0.5))
    cos, sin = jnp.cos(rotation), jnp.sin(rotation)
    u, v = cos * u + sin * v, cos * v - sin * u
    half = 0.3 * scale  # the square's half side; the others are as large in area
    outlines = jnp.stack([_square(u, v, half), _ellipse(u, v, half), _heart(u, v, half)])
    distance = jnp.where(inside, outlines[which], jnp.nan)
    return jnp.clip(0.5 - distance * size / 2, 0, 1)[..., None]


def grid(
    *,
    shapes: int = 3,
    scales: int = 6,
    rotations: int = 40,
    positions: int = 32,
    turn: float = 2 * np.pi,
) -> tuple[np.ndarray, ...]:
    """The values that each factor takes, in the order of `FACTORS`; by default those of dSprites.

    **Not every image says its rotation**: a quarter turn leaves a square as it was, a half turn an
    ellipse, and no code can then follow that factor. With `turn=np.pi / 2` no two sets of factors
    have the same image.

    Args:
      shapes: how many of `SHAPES`, from the first on.
      scales: how many values from 0.5 to 1.
      rotations: how many values from 0 up to, without, `turn`.
      positions: how many values from 0 to 1, for x and for y.
      turn: where the rotations end, in radians.
    Returns:
      Five arrays, one for each factor.
    Raises:
      ValueError: for counts below 1, or shapes above 3.
    """
    at_least_one("sprites.grid", scales=scales, rotations=rotations, positions=positions)
    if not 1 <= shapes <= len(SHAPES):
        raise wrong("sprites.grid: shapes", shapes, f"1 to {len(SHAPES)}", f"they are {SHAPES}")
    places = np.linspace(0, 1, positions)
    return (
        np.arange(shapes, dtype=float),
        np.linspace(0.5, 1, scales),
        turn * np.arange(rotations) / rotations,
        places,
        places,
    )


GRID = grid()


def sample(
    key: Key, n: int, *, grid: Sequence[ArrayLike] = GRID, size: int = 32, batch_size: int = 1000
) -> Batch:
    """n sprites with factors drawn uniformly from a grid, each independent of the others.

    An example depends on the key and its index alone (its pixels, to the rounding of float32, on
    `batch_size` too).

    Args:
      key: of the draw.
      n: how many sprites.
      grid: the values of each factor, see `grid`; by default those of dSprites.
      size: pixels along a side.
      batch_size: sprites drawn at a time.
    Returns:
      A Batch of x `[n, size, size, 1]` in [0, 1], float32, and y `[n, 5]`, int32: which of its
      grid's values each factor has (`values` looks them up).
    Raises:
      ValueError: for n below 1, or a grid of other than five factors, or one without values.
    """
    check_key("sprites.sample", key)
    at_least_one("sprites.sample", n=n, size=size, batch_size=batch_size)
    choices = _choices("sprites.sample", grid)

    index = _uniform(key, n, tuple(len(have) for have in choices))
    return _drawn(size, batch_size, index, choices)


def every(*, grid: Sequence[ArrayLike] = GRID, size: int = 32, batch_size: int = 1000) -> Batch:
    """Every sprite of a grid once, the last factor changing first: what `sample` draws from.

    Args:
      grid: the values of each factor, see `grid`; by default those of dSprites, which make 737,280
        sprites, 3 GB at 32 x 32.
      size: pixels along a side.
      batch_size: sprites drawn at a time.
    Returns:
      A Batch as `sample` returns it, with n the product of the numbers of values.
    Raises:
      ValueError: for a grid of other than five factors, or one without values.
    """
    at_least_one("sprites.every", size=size, batch_size=batch_size)
    choices = _choices("sprites.every", grid)
    index = np.indices([len(have) for have in choices], np.int32).reshape(len(choices), -1).T
    return _drawn(size, batch_size, jnp.asarray(index), choices)


def values(index: ArrayLike, grid: Sequence[ArrayLike] = GRID) -> Array:
    """The factors at places of a grid: what `draw` takes.

    Args:
      index: which of its grid's values each factor has, whole numbers `[..., 5]`.
      grid: the values of each factor, see `grid`; by default those of dSprites.
    Returns:
      `[..., 5]`.
    Raises:
      ValueError: for a last axis other than 5, or where a place is outside the grid (not seen while
        tracing).
    """
    choices = _choices("sprites.values", grid)
    if np.shape(index)[-1:] != (len(FACTORS),):
        got = f"shape {np.shape(index)}"
        raise wrong("sprites.values: index", got, "[..., 5]", f"the factors are {FACTORS}")
    if not isinstance(index, jax.core.Tracer):
        places, sizes = np.asarray(index), np.array([len(one) for one in choices])
        if (places < 0).any() or (places >= sizes).any():
            got = f"places {places.reshape(-1, 5).max(axis=0).tolist()}"
            fix = "count from 0, with the grid that they were sampled from"
            raise wrong("sprites.values: index", got, f"0 to {(sizes - 1).tolist()}", fix)
    index = jnp.asarray(index)
    return jnp.stack([have[index[..., j]] for j, have in enumerate(choices)], axis=-1)


@partial(jax.jit, static_argnums=(1, 2))
def _uniform(key: Key, n: int, sizes: tuple[int, ...]) -> Array:
    """n times a place on a grid of these sizes, `[n, 5]`, int32."""

    def place(key: Key) -> Array:
        keys = zip(jax.random.split(key, len(sizes)), sizes, strict=True)
        return jnp.stack([jax.random.randint(one, (), 0, size) for one, size in keys])

    return jax.vmap(place)(keys_of(key, jnp.arange(n))).astype(jnp.int32)


@partial(jax.jit, static_argnums=(0, 1))
def _drawn(size: int, batch_size: int, index: Array, grid: tuple[Array, ...]) -> Batch:
    """The sprites at places of a grid, `batch_size` at a time."""

    def example(one: Array) -> Array:
        return draw(values(one, grid), size=size).astype(jnp.float32)

    return Batch(lax.map(example, index, batch_size=min(batch_size, len(index))), y=index)


def _square(u: Array, v: Array, half: Array) -> Array:
    """Signed distance from a square of side 2 `half`, negative inside."""
    over_u, over_v = jnp.abs(u) - half, jnp.abs(v) - half
    outside = jnp.hypot(jnp.maximum(over_u, 0), jnp.maximum(over_v, 0))
    return outside + jnp.minimum(jnp.maximum(over_u, over_v), 0)


def _ellipse(u: Array, v: Array, half: Array) -> Array:
    """The same of an ellipse of axes 2 to 1, to first order: level over slope."""
    axis = half * np.sqrt(8 / np.pi).item()  # pi axis (axis / 2) = (2 half)^2
    level = jnp.hypot(u / axis, v / (axis / 2))
    slope = jnp.hypot(u / axis**2, v / (axis / 2) ** 2)
    # At the centre both vanish; as far inside as the short axis goes is near enough.
    return jnp.where(slope > 0, level * (level - 1) / jnp.where(slope > 0, slope, 1), -axis / 2)


def _heart(u: Array, v: Array, half: Array) -> Array:
    """The same of a square on its corner with discs on its upper sides, about its centroid."""
    a = half * 2 / np.sqrt(4 + np.pi).item()  # half a side, and the discs' radius: 4 a^2 + pi a^2
    v = v - a * (np.pi / np.sqrt(2) * (1 + 4 / (3 * np.pi)) / (4 + np.pi)).item()
    middle = a / np.sqrt(2).item()
    discs = jnp.hypot(jnp.abs(u) - middle, v + middle) - a
    diagonal = np.sqrt(0.5).item()
    return jnp.minimum(_square(diagonal * (u + v), diagonal * (v - u), a), discs)


def _choices(function: str, grid: Sequence[ArrayLike]) -> tuple[Array, ...]:
    """The values of each factor as arrays `[values]`."""
    choices = tuple(jnp.asarray(have, float) for have in grid)
    shapes = [have.shape for have in choices]
    if len(choices) != len(FACTORS) or any(have.ndim != 1 or not have.size for have in choices):
        fix = "make it with sprites.grid"
        raise wrong(f"{function}: grid", f"arrays {shapes}", f"values of {FACTORS}", fix)
    return choices
