"""Images in grids: what a model reconstructs and draws, what it sees and how it interpolates."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vaejax.errors import at_least_one, is_whole, wrong
from vaejax.plot._canvas import as_images, mosaic, name_ticks, numbers, quantiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reconstructions(originals: Any, reconstructed: Any) -> "Figure":
    """Draw a row of originals over the row of their reconstructions, for comparison by eye.

    Args:
      originals, reconstructed: images `[n, height, width, channels]` or `[n, height, width]`, as
        many and as large in both; about ten fit.
    Returns:
      A figure of one axis.
    Raises:
      ValueError: for other shapes, empty or non-finite input.
    """
    rows = [as_images("reconstructions: originals", originals, 4)]
    rows.append(as_images("reconstructions: reconstructed", reconstructed, 4))
    if rows[0].shape != rows[1].shape:
        expected = f"the shape of the originals, {rows[0].shape}"
        fix = "pass the reconstructions of exactly these examples"
        raise wrong("reconstructions: reconstructed", rows[1].shape, expected, fix)
    figure, axis = mosaic(np.stack(rows), xlabel="example", title="reconstructions")
    count = [str(i + 1) for i in range(len(rows[0]))]
    name_ticks(axis, ["original", "reconstruction"], count)
    return figure


def images(
    x: Any, *, columns: int | None = None, title: str = "", labels: Sequence[str] | None = None
) -> "Figure":
    """Draw images in a grid, for instance samples from the prior or a look at the data.

    Args:
      x: images `[n, height, width, channels]` or `[n, height, width]`.
      columns: images in a row; by default about the square root of n.
      title: written above.
      labels: names of the rows, for instance one per model compared; by default none.
    Returns:
      A figure of one axis.
    Raises:
      ValueError: for other shapes or counts, empty or non-finite input.
    """
    x = as_images("images: x", x, 4)
    if is_whole(columns) and columns is not None and columns < 1:
        raise wrong("images: columns", columns, "1 or more", "leave it out for a square")
    at_least_one("images", ("columns",), columns=columns)
    columns = min(columns or math.ceil(math.sqrt(len(x))), len(x))
    rows = math.ceil(len(x) / columns)
    if labels is not None and len(labels) != rows:
        raise wrong("images: labels", f"{len(labels)} names", rows, "name every row")
    blank = np.ones((rows * columns - len(x), *x.shape[1:]), np.float32)  # no image: white
    grid = np.concatenate([x, blank]).reshape(rows, columns, *x.shape[1:])
    figure, axis = mosaic(grid, title=title)
    axis.set_xticks([])
    if labels is None:
        axis.set_yticks([])
    else:
        name_ticks(axis, list(labels))
    return figure


def filters(
    weights: Any,
    *,
    columns: int | None = None,
    title: str = "",
    labels: Sequence[str] | None = None,
) -> "Figure":
    """Draw weight vectors, or directions in the space of images, as images: zero is grey.

    Each is scaled by its own largest magnitude, so that white is that and black is minus that.
    Raises as `images` does.

    Args:
      weights: `[n, height, width, channels]` or `[n, height, width]`, of any sign and size.
      columns, title, labels: as for `images`.
    Returns:
      A figure of one axis.
    """
    weights = numbers("filters: weights", weights, 3, 4)
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    largest = np.where(largest == 0, 1.0, largest).reshape(-1, *[1] * (weights.ndim - 1))
    return images(0.5 + 0.5 * weights / largest, columns=columns, title=title, labels=labels)


def interpolations(x: Any, *, originals: tuple[Any, Any] | None = None) -> "Figure":
    """Draw decoded paths between pairs of examples, one path in each row, its ends at the sides.

    Args:
      x: images `[rows, steps, height, width, channels]` or `[rows, steps, height, width]`.
      originals: the first and the second examples themselves, `[rows, ...]` each, which are then
        drawn outside of the two ends; by default none.
    Returns:
      A figure of one axis, whose x axis is the fraction of the way from the first example to the
      second.
    Raises:
      ValueError: for other shapes, empty or non-finite input.
    """
    x = as_images("interpolations: x", x, 5)
    label = "fraction of the way from the first example to the second"
    names = [f"{f:.2f}" for f in np.linspace(0, 1, x.shape[1])]
    if originals is not None:
        ends = [as_images("interpolations: originals", end, 4)[:, None] for end in originals]
        expected = len(x), 1, *x.shape[2:]
        if len(ends) != 2 or any(end.shape != expected for end in ends):
            got, fix = [end[:, 0].shape for end in ends], "give the examples that x leads between"
            wanted = f"two arrays of shape {(len(x), *x.shape[2:])}"
            raise wrong("interpolations: originals", got, wanted, fix)
        x, names = np.concatenate([ends[0], x, ends[1]], axis=1), ["original", *names, "original"]
    figure, axis = mosaic(x, xlabel=label, title="interpolations in the latent space")
    name_ticks(axis, [f"pair {i + 1}" for i in range(len(x))], names, both_ends=True)
    return figure


def traversals(
    x: Any, *, values: Any = None, labels: Sequence[str] | None = None, rates: Any = None
) -> "Figure":
    """Draw what each latent dimension does alone: one row per dimension, decoded at given values.

    Args:
      x: images `[dimensions, steps, height, width, channels]` (or without channels).
      values: where the dimension was set, in standard deviations of the prior, `[steps]`; by
        default the steps are counted.
      labels: names of the rows; by default z1, z2, ...
      rates: the KL of each dimension, nats, `[dimensions]`, written beside its name, as from
        `diagnostics.rate_per_dimension`. Where they fall from row to row, the axis says so. By
        default none.
    Returns:
      A figure of one axis.
    Raises:
      ValueError: for other shapes or counts, empty or non-finite input.
    References:
      Higgins et al., 2017, "beta-VAE", ICLR.
    """
    x = as_images("traversals: x", x, 5)
    names = [f"z{i + 1}" for i in range(len(x))] if labels is None else list(labels)
    if len(names) != len(x):
        raise wrong("traversals: labels", f"{len(names)} names", len(x), "name every row")
    unit, columns = "step", [str(i + 1) for i in range(x.shape[1])]
    if values is not None:
        values = numbers("traversals: values", values, 1)
        if len(values) != x.shape[1]:
            expected, fix = f"{x.shape[1]}, one per column", "pass the values that were decoded"
            raise wrong("traversals: values", f"{len(values)} values", expected, fix)
        unit, columns = "value (standard deviations of the prior)", [f"{v:g}" for v in values]
    said = "latent dimension"
    if rates is not None:
        rates = numbers("traversals: rates", rates, 1)
        if len(rates) != len(x):
            expected, fix = f"{len(x)}, one per row", "pass the rates of the dimensions drawn"
            raise wrong("traversals: rates", f"{len(rates)} rates", expected, fix)
        names = [f"{name} ({rate:.2f})" for name, rate in zip(names, rates, strict=True)]
        falls = len(rates) > 1 and bool(np.all(np.diff(rates) <= 0))
        said += " (its rate, nats), largest first" if falls else " (its rate, nats)"
    figure, axis = mosaic(x, xlabel=unit, ylabel=said, title="latent traversals")
    name_ticks(axis, names, columns)
    return figure


def manifold_grid(n: int) -> np.ndarray:
    """Codes of an n x n grid that is even in the probability of a standard normal prior.

    Coordinates are the inverse normal distribution function at (i + 1/2) / n, in standard
    deviations of the prior; the first row is at the largest z2, as `manifold` draws it.

    Args:
      n: codes along each side, at least 1.
    Returns:
      (z1, z2) row after row, float32 `[n * n, 2]`.
    Raises:
      ValueError: for n < 1.
    References:
      Kingma and Welling, 2014, arXiv:1312.6114 (appendix A).
    """
    if n < 1:
        raise wrong("manifold_grid: n", n, "at least 1", "about 20 make a good picture")
    ticks = quantiles(n)
    z1, z2 = np.meshgrid(ticks, ticks[::-1])
    return np.stack([z1.ravel(), z2.ravel()], axis=1).astype(np.float32)


def manifold(x: Any, n: int) -> "Figure":
    """Draw the images decoded at `manifold_grid(n)` as one canvas, over the plane of two latents.

    Args:
      x: images `[n * n, height, width, channels]` or `[n * n, height, width]`, decoded means in the
        order of `manifold_grid(n)`.
      n: images along each side.
    Returns:
      A figure with axes z1 and z2, in standard deviations of the prior.
    Raises:
      ValueError: for other shapes or counts, empty or non-finite input.
    References:
      Kingma and Welling, 2014, arXiv:1312.6114 (appendix A).
    """
    x = as_images("manifold: x", x, 4)
    if len(x) != n * n:
        fix = "decode all of manifold_grid(n)"
        raise wrong("manifold: x", f"{len(x)} images", f"{n * n}, n x n of n = {n}", fix)
    unit, grid = "(standard deviations of the prior)", x.reshape(n, n, *x.shape[1:])
    title = "decoded means over the prior"
    figure, axis = mosaic(grid, gap=0, xlabel=f"z1 {unit}", ylabel=f"z2 {unit}", title=title)
    ticks = [f"{t:.1f}" for t in quantiles(n)]
    name_ticks(axis, ticks[::-1], ticks)
    return figure
