"""Arrays in, a matplotlib `Figure` out: pictures of what a model reconstructs, draws and encodes.

Nothing is shown and no global state touched: a notebook displays the figure that a cell returns,
with or without `%matplotlib inline`; `figure.savefig(path)` writes it. Images have 1 or 3 channels,
or no channel axis; floats in [0, 1] go from black to white, uint8 levels 0..255. Needs matplotlib
(`pip install "vaejax[experiments]"`).
"""

import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from vaejax.errors import wrong

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def reconstructions(originals: Any, reconstructed: Any) -> "Figure":
    """Draw a row of originals over the row of their reconstructions, for comparison by eye.

    Args: originals, reconstructed: images `[n, height, width, channels]` or `[n, height, width]`,
    as many and as large in both; about ten fit.
    Returns: a figure of one axis. Raises: ValueError for other shapes, empty or non-finite input.
    """
    rows = [_images("reconstructions: originals", originals, 4)]
    rows.append(_images("reconstructions: reconstructed", reconstructed, 4))
    if rows[0].shape != rows[1].shape:
        expected = f"the shape of the originals, {rows[0].shape}"
        fix = "pass the reconstructions of exactly these examples"
        raise wrong("reconstructions: reconstructed", rows[1].shape, expected, fix)
    figure, axis = _mosaic(np.stack(rows), xlabel="example", title="reconstructions")
    count = [str(i + 1) for i in range(len(rows[0]))]
    _ticks(axis, ["original", "reconstruction"], count)
    return figure


def images(
    x: Any, *, columns: int | None = None, title: str = "", labels: Sequence[str] | None = None
) -> "Figure":
    """Draw images in a grid, for instance samples from the prior or a look at the data.

    Args: x: images `[n, height, width, channels]` or `[n, height, width]`; columns: images in a
    row, by default about the square root of n; title: written above; labels: names of the rows,
    for instance one per model compared, by default none.
    Returns: a figure of one axis. Raises: ValueError for other shapes or counts, empty or
    non-finite input.
    """
    x = _images("images: x", x, 4)
    columns = min(columns or math.ceil(math.sqrt(len(x))), len(x))
    if columns < 1:
        raise wrong("images: columns", columns, "1 or more", "leave it out for a square")
    rows = math.ceil(len(x) / columns)
    if labels is not None and len(labels) != rows:
        raise wrong("images: labels", f"{len(labels)} names", rows, "name every row")
    blank = np.ones((rows * columns - len(x), *x.shape[1:]), np.float32)  # no image: white
    grid = np.concatenate([x, blank]).reshape(rows, columns, *x.shape[1:])
    figure, axis = _mosaic(grid, title=title)
    axis.set_xticks([])
    if labels is None:
        axis.set_yticks([])
    else:
        _ticks(axis, list(labels))
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

    Args: weights: `[n, height, width, channels]` or `[n, height, width]`, of any sign and size;
    the rest as for `images`. Returns and raises as `images` does.
    """
    weights = _numbers("filters: weights", weights, 3, 4)
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    largest = np.where(largest == 0, 1.0, largest).reshape(-1, *[1] * (weights.ndim - 1))
    return images(0.5 + 0.5 * weights / largest, columns=columns, title=title, labels=labels)


def interpolations(x: Any) -> "Figure":
    """Draw decoded paths between pairs of examples, one path in each row, its ends at the sides.

    Args: x: images `[rows, steps, height, width, channels]` or `[rows, steps, height, width]`.
    Returns: a figure of one axis, whose x axis is the fraction of the way from the first example to
    the second. Raises: ValueError for other shapes, empty or non-finite input.
    """
    x = _images("interpolations: x", x, 5)
    label = "fraction of the way from the first example to the second"
    figure, axis = _mosaic(x, xlabel=label, title="interpolations in the latent space")
    fractions = [f"{f:.2f}" for f in np.linspace(0, 1, x.shape[1])]
    _ticks(axis, [f"pair {i + 1}" for i in range(len(x))], fractions)
    return figure


def traversals(x: Any, *, values: Any = None, labels: Sequence[str] | None = None) -> "Figure":
    """Draw what each latent dimension does alone: one row per dimension, decoded at given values.

    Args: x: images `[dimensions, steps, height, width, channels]` (or without channels); values:
    `[steps]`, where the dimension was set, in standard deviations of the prior; labels: names of
    the rows, by default z1, z2, ...
    Returns: a figure of one axis. Raises: ValueError for other shapes or counts, empty or
    non-finite input. Reference: Higgins et al., 2017, "beta-VAE", ICLR.
    """
    x = _images("traversals: x", x, 5)
    names = [f"z{i + 1}" for i in range(len(x))] if labels is None else list(labels)
    if len(names) != len(x):
        raise wrong("traversals: labels", f"{len(names)} names", len(x), "name every row")
    unit, columns = "step", [str(i + 1) for i in range(x.shape[1])]
    if values is not None:
        values = _numbers("traversals: values", values, 1)
        if len(values) != x.shape[1]:
            expected, fix = f"{x.shape[1]}, one per column", "pass the values that were decoded"
            raise wrong("traversals: values", f"{len(values)} values", expected, fix)
        unit, columns = "value (standard deviations of the prior)", [f"{v:g}" for v in values]
    figure, axis = _mosaic(x, xlabel=unit, ylabel="latent dimension", title="latent traversals")
    _ticks(axis, names, columns)
    return figure


def latent(z: Any, y: Any = None) -> "Figure":
    """Scatter codes in the plane, coloured by class; more than two dimensions by principal axes.

    Args: z `[n, latent]` with latent >= 2: codes, such as posterior means; y `[n]`: integer
    labels, -1 for unlabelled (grey), or None.
    Returns: a figure whose axes are z1 and z2, or the first two principal components with the share
    of the variance that each explains. Raises: ValueError for other shapes, lengths or values.
    """
    z = _numbers("latent: z", z, 2)
    if z.shape[1] < 2 or (z.shape[1] > 2 and len(z) < 2):
        fix = "plot a single dimension as a histogram: axis.hist(z[:, 0])"
        raise wrong("latent: z", z.shape, "[n, latent], both at least 2", fix)
    names = ["z1", "z2"]
    if z.shape[1] > 2:
        z = z - z.mean(axis=0)
        u, s, _ = np.linalg.svd(z, full_matrices=False)
        share = s**2 / max(float(np.sum(s**2)), np.finfo(np.float64).tiny)
        z = (u * s)[:, :2]
        order = ("first", share[0]), ("second", share[1])
        names = [f"{nth} principal component ({part:.0%} of variance)" for nth, part in order]
    figure = _figure(5.6, 4.8)
    axis = figure.add_subplot(aspect="equal", adjustable="datalim")
    axis.set(xlabel=names[0], ylabel=names[1], title=f"codes of {len(z)} examples")
    size = float(np.clip(12000 / len(z), 3, 24))
    if y is None:
        axis.scatter(z[:, 0], z[:, 1], s=size, linewidths=0)
        return figure
    y = np.asarray(y)
    if y.shape != (len(z),) or y.dtype.kind not in "iub":
        expected, fix = f"integer labels of shape ({len(z)},)", "pass the labels of these codes"
        raise wrong("latent: y", f"{y.dtype} of shape {y.shape}", expected, fix)
    colours = _colours(classes := np.unique(y))
    # One call, in the order of the data: drawn class by class, the last would hide the others.
    axis.scatter(z[:, 0], z[:, 1], s=size, c=colours[np.searchsorted(classes, y)], linewidths=0)
    if len(classes) <= 20:
        for label, colour in zip(classes, colours, strict=True):
            name = "unlabelled" if label == -1 else str(int(label))
            axis.scatter([], [], s=30, color=colour, label=name)
        figure.legend(title="class", loc="outside right upper", frameon=False)
    else:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import BoundaryNorm, ListedColormap

        norm = BoundaryNorm(np.arange(len(classes) + 1) - 0.5, len(classes))
        bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axis, label="class")
        ticks = list(range(0, len(classes), math.ceil(len(classes) / 10)))
        bar.set_ticks(ticks, labels=[str(classes[i]) for i in ticks])
    return figure


def manifold_grid(n: int) -> np.ndarray:
    """Codes of an n x n grid that is even in the probability of a standard normal prior.

    Coordinates are the inverse normal distribution function at (i + 1/2) / n, in standard
    deviations of the prior; the first row is at the largest z2, as `manifold` draws it.

    Args: n: codes along each side, at least 1. Returns: float32 `[n * n, 2]`, row after row, of
    (z1, z2). Raises: ValueError for n < 1.
    Reference: Kingma and Welling, 2014, arXiv:1312.6114 (appendix A).
    """
    if n < 1:
        raise wrong("manifold_grid: n", n, "at least 1", "about 20 make a good picture")
    ticks = _quantiles(n)
    z1, z2 = np.meshgrid(ticks, ticks[::-1])
    return np.stack([z1.ravel(), z2.ravel()], axis=1).astype(np.float32)


def manifold(x: Any, n: int) -> "Figure":
    """Draw the images decoded at `manifold_grid(n)` as one canvas, over the plane of two latents.

    Args: x: images `[n * n, height, width, channels]` or `[n * n, height, width]`, decoded means in
    the order of `manifold_grid(n)`; n: images along each side.
    Returns: a figure with axes z1 and z2, in standard deviations of the prior. Raises: ValueError
    for other shapes or counts, empty or non-finite input.
    Reference: Kingma and Welling, 2014, arXiv:1312.6114 (appendix A).
    """
    x = _images("manifold: x", x, 4)
    if len(x) != n * n:
        fix = "decode all of manifold_grid(n)"
        raise wrong("manifold: x", f"{len(x)} images", f"{n * n}, n x n of n = {n}", fix)
    unit, grid = "(standard deviations of the prior)", x.reshape(n, n, *x.shape[1:])
    title = "decoded means over the prior"
    figure, axis = _mosaic(grid, gap=0, xlabel=f"z1 {unit}", ylabel=f"z2 {unit}", title=title)
    ticks = [f"{t:.1f}" for t in _quantiles(n)]
    _ticks(axis, ticks[::-1], ticks)
    return figure


def curves(
    history: Mapping[str, Any],
    *,
    steps: Any = None,
    xlabel: str = "epoch",
    ylabel: str = "nats per example",
    title: str = "training curves",
) -> "Figure":
    """Draw named training curves over epochs or steps, in nats per example unless said otherwise.

    Args: history: name to `[time]`, for instance {"train": ..., "test": ...}; NaN is skipped, as
    before the first evaluation; steps: `[time]`, the place of each value, by default 1, 2, ...;
    xlabel, ylabel: what the axes measure, with units; title: written above.
    Returns: a figure of one axis. Raises: ValueError for other ranks or lengths, infinities, or a
    curve of nothing but NaN.
    """
    if not history:
        raise wrong("curves: history", "no curve", "at least one", 'pass {"train": losses}')
    figure = _figure(6.0, 3.8)
    axis = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, title=title)
    for name, values in history.items():
        values = _numbers(f"curves: history[{name!r}]", values, 1, nan=True)
        known = ~np.isnan(values)
        if not known.any():
            fix = "leave it out, or look for where training diverged"
            raise wrong(f"curves: history[{name!r}]", "only NaN", "some finite value", fix)
        places = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
        if places.shape != values.shape:
            fix = f"draw {name!r} in a figure of its own"
            raise wrong("curves: steps", f"shape {places.shape}", f"{values.shape}", fix)
        marker = "." if known.sum() <= 50 else ""  # a single point has no line
        axis.plot(places[known], values[known], marker=marker, label=name)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def bound(
    parts: Mapping[str, Any],
    *,
    places: Sequence[Any],
    xlabel: str = "epoch",
    title: str = "log p(x) = bound + gap",
) -> "Figure":
    """Draw a bound and, stacked on it, the parts of its gap, up to log p(x).

    Args: parts: name to `[places]`, nats per example: the bound first, of either sign, then what is
    missing, at least 0, whose sum with it is log p(x); places: a name for each bar; xlabel, title.
    Returns: a figure of one axis, cut below the lowest bound. Raises: ValueError for fewer than two
    parts, other lengths, empty or non-finite input.
    """
    if len(parts) < 2:
        fix = 'pass {"ELBO": ..., "KL(q || posterior)": ...}'
        raise wrong("bound: parts", f"{len(parts)} parts", "the bound and its gap", fix)
    values = [_numbers(f"bound: parts[{name!r}]", part, 1) for name, part in parts.items()]
    for name, part in zip(parts, values, strict=True):
        if len(part) != len(places):
            fix = "give one for each bar"
            raise wrong(f"bound: parts[{name!r}]", f"{len(part)} values", len(places), fix)
    rounding = 1e-5 * max(1.0, float(np.abs(values[0]).max()))
    for name, part in list(zip(parts, values, strict=True))[1:]:
        if part.min() < -rounding:
            fix = "if that is noise of few samples, take more of them"
            raise wrong(f"bound: parts[{name!r}]", part.min(), "at least 0", fix)
    figure = _figure(7.2, 4.2)
    axis = figure.add_subplot(xlabel=xlabel, ylabel="nats per example (axis cut)", title=title)
    at, top = np.arange(len(places)), np.sum(values, axis=0)
    low = values[0].min() - 0.1 * (top.max() - values[0].min() + 1e-9)
    bottom = np.full(len(at), low)
    for name, part in zip(parts, [values[0] - low, *values[1:]], strict=True):
        axis.bar(at, part, 0.8, bottom, label=name)
        bottom = bottom + part
    axis.plot(at, top, "k_", markersize=14, label="log p(x)")
    axis.set_xticks(at, [str(place) for place in places])
    axis.set_ylim(low, top.max() + 0.5 * (values[0].min() - low))
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(parts) + 1)
    return figure


def rate_distortion(
    rate: Any, distortion: Any, labels: Sequence[str], *, errors: tuple[Any, Any] | None = None
) -> "Figure":
    """Draw models in the plane of rate and distortion, and the line of the best bound among them.

    Args: rate, distortion: `[points]`, nats per example, D + R = -ELBO; labels: names of the
    points, such as their beta; errors: standard errors of both, `[points]` each.
    Returns: a figure of one axis; the dashed line of slope -1 is where models are as good as the
    best. Raises: ValueError for other shapes or counts, empty or non-finite input.
    Reference: Alemi et al., 2018, arXiv:1711.00464.
    """
    rate = _numbers("rate_distortion: rate", rate, 1)
    distortion = _numbers("rate_distortion: distortion", distortion, 1)
    for name, values in (("distortion", distortion), ("labels", labels)):
        if len(values) != len(rate):
            got, fix = f"{len(values)} of them", "give one for each point"
            raise wrong(f"rate_distortion: {name}", got, f"{len(rate)}, as rates", fix)
    figure = _figure(5.6, 4.4)
    units = {"xlabel": "rate R, nats per example", "ylabel": "distortion D, nats per example"}
    axis = figure.add_subplot(**units, title="rate and distortion")
    order = np.argsort(rate)
    axis.plot(rate[order], distortion[order], color="tab:blue", alpha=0.5)
    error = (None, None) if errors is None else errors
    axis.errorbar(rate, distortion, xerr=error[0], yerr=error[1], fmt="o", color="tab:blue")
    best = np.min(rate + distortion)
    ends = np.array([0.0, max(rate.max(), 1e-3)]) * 1.05
    axis.plot(ends, best - ends, "--", color="grey", label=f"ELBO = {-best:.1f} nats, the best")
    for x, y, label in zip(rate, distortion, labels, strict=True):
        axis.annotate(label, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def rates(rates: Mapping[str, Any], *, used: float = 0.1) -> "Figure":
    """Draw the KL of every latent dimension, largest first, for one or several models.

    Args: rates: name to `[latent]`, nats per example, at least 0; used: the level, in nats, from
    which a dimension counts as used, drawn as a line. What is below 1e-4 nats is drawn there.
    Returns: a figure of one axis, logarithmic in the nats. Raises: ValueError for other ranks,
    empty, non-finite or negative input.
    """
    if not rates:
        raise wrong("rates: rates", "no model", "at least one", 'pass {"beta 1": rates}')
    figure = _figure(6.0, 4.0)
    labels = {"xlabel": "latent dimension, by its rate", "ylabel": "KL(q || p), nats per example"}
    axis = figure.add_subplot(**labels, yscale="log", title="rate of each latent dimension")
    colours = _shades(len(rates))
    for (name, values), colour in zip(rates.items(), colours, strict=True):
        values = _numbers(f"rates: rates[{name!r}]", values, 1)
        # Closed forms of nearly equal Gaussians round to just below 0.
        if values.min() < -1e-3:
            fix = "give the KL of each dimension, averaged over examples"
            raise wrong(f"rates: rates[{name!r}]", values.min(), "at least 0", fix)
        places = np.arange(1, len(values) + 1)
        shown = np.maximum(np.sort(values)[::-1], 1e-4)
        axis.plot(places, shown, marker=".", color=colour, label=name)
    axis.axhline(used, color="grey", linestyle="--", linewidth=1, label=f"used: {used:g} nats")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def calibration(
    levels: Any, coverage: Mapping[str, Any], *, errors: Mapping[str, Any] | None = None
) -> "Figure":
    """Draw how much of x lies inside central intervals against how much should: a diagonal.

    Args: levels: `[levels]`, nominal shares in (0, 1); coverage: name to `[levels]`, observed
    shares; errors: name to `[levels]`, standard errors, drawn as 95% intervals.
    Returns: a figure of one axis: below the diagonal a decoder is too sure of itself, above it too
    cautious. Raises: ValueError for other shapes, shares outside [0, 1], empty or non-finite input.
    """
    levels = _numbers("calibration: levels", levels, 1)
    if not coverage:
        raise wrong("calibration: coverage", "no model", "at least one", 'pass {"test": coverage}')
    figure = _figure(5.8, 4.6)
    labels = {"xlabel": "nominal share inside the interval", "ylabel": "observed share"}
    axis = figure.add_subplot(**labels, aspect="equal", title="calibration of p(x|z)")
    axis.plot([0, 1], [0, 1], "--", color="grey", label="calibrated")
    for (name, shares), colour in zip(coverage.items(), _shades(len(coverage)), strict=True):
        shares = _numbers(f"calibration: coverage[{name!r}]", shares, 1)
        if shares.shape != levels.shape or shares.min() < 0 or shares.max() > 1:
            got = f"shape {shares.shape} in [{shares.min():g}, {shares.max():g}]"
            expected, fix = f"{levels.shape} in [0, 1]", "give a share for each level"
            raise wrong(f"calibration: coverage[{name!r}]", got, expected, fix)
        spread = 0 if errors is None else 1.96 * np.asarray(errors[name])
        axis.errorbar(levels, shares, yerr=spread, marker=".", color=colour, label=name)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _numbers(where: str, x: Any, *ranks: int, nan: bool = False) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim not in ranks or not x.size:
        expected = f"an array of rank {' or '.join(map(str, ranks))}, not empty"
        raise wrong(where, f"shape {x.shape}", expected, "check its axes")
    x = x.astype(np.float64)
    bad = np.argwhere(~(np.isfinite(x) | (nan & np.isnan(x))))
    if len(bad):
        got = f"{len(bad)} values not finite, the first at {bad[0].tolist()}"
        raise wrong(where, got, "finite values", "drop them, or look for where they arise")
    return x


def _images(where: str, x: Any, rank: int) -> np.ndarray:
    x = np.asarray(x)
    values = _numbers(where, x, rank - 1, rank) / (255 if x.dtype == np.uint8 else 1)
    values = values[..., None] if x.ndim == rank - 1 else values
    if values.shape[-1] not in (1, 3):
        fix = "for grey images add the axis: x[..., None]"
        raise wrong(where, f"shape {x.shape}", "1 or 3 channels in the last axis", fix)
    return values.astype(np.float32)


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        fix = 'pip install "vaejax[experiments]"'
        raise ImportError(f"vaejax.plot needs matplotlib, not installed; {fix}") from error
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    # IPython shows a Figure as a picture only once pyplot is imported, which we do not do.
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: "Figure") -> bytes:
    """What a notebook shows and stores: not wider than its column, and small in bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90, bbox_inches="tight")
    return file.getvalue()


def _mosaic(x: np.ndarray, *, gap: float = 0.08, **labels: str) -> tuple["Figure", "Axes"]:
    """Images `[rows, columns, height, width, channels]` as one canvas, ticks at their centres."""
    rows, columns, height, width, channels = x.shape
    space = math.ceil(gap * min(height, width))
    x = np.pad(x, ((0, 0), (0, 0), (0, space), (0, space), (0, 0)), constant_values=1)
    canvas = x.swapaxes(1, 2).reshape(rows * (height + space), columns * (width + space), channels)
    canvas = np.clip(canvas[: len(canvas) - space, : canvas.shape[1] - space], 0, 1)
    # In inches: at most 7 each way and 0.9 for one image; room for the words beside it.
    scale = min(7 / canvas.shape[1], 7 / len(canvas), 0.9 / max(height, width))
    size = max(canvas.shape[1] * scale, 1.5) + 1.0, max(len(canvas) * scale, 0.5) + 0.6
    figure = _figure(*size)
    axis = figure.add_subplot(**labels)
    axis.imshow(canvas.squeeze(2) if channels == 1 else canvas, cmap="gray", vmin=0, vmax=1)
    axis.set_xticks(np.arange(columns) * (width + space) + (width - 1) / 2)
    axis.set_yticks(np.arange(rows) * (height + space) + (height - 1) / 2)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure, axis


def _ticks(axis: "Axes", rows: Sequence[str], columns: Sequence[str] | None = None) -> None:
    """Names of rows and columns; of very many only some, so that they do not overlap."""
    for which, names in ((axis.yaxis, rows), (axis.xaxis, columns)):
        if names is not None:
            every = math.ceil(len(names) / (24 if which is axis.yaxis else 11))
            which.set_ticks(which.get_ticklocs()[::every], labels=names[::every])


def _quantiles(n: int) -> np.ndarray:
    return np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])


def _colours(classes: np.ndarray) -> np.ndarray:
    """One colour [4] per class, grey for -1."""
    import matplotlib

    n = len(classes)
    name = "tab10" if n <= 10 else "tab20" if n <= 20 else "turbo"
    places = np.arange(n) if n <= 20 else np.linspace(0, 1, n)
    colours = matplotlib.colormaps[name](places)
    colours[classes == -1] = (0.75, 0.75, 0.75, 1)
    return colours


def _shades(n: int) -> np.ndarray:
    """n colours in an order, for models that have one."""
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, n))
