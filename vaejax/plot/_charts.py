"""Numbers in charts: codes in the plane, training curves, bounds, rates and calibration."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vaejax.errors import wrong
from vaejax.plot._canvas import blank, numbers
from vaejax.types import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def latent(z: Any, y: Any = None) -> "Figure":
    """Scatter codes in the plane, coloured by class; more than two dimensions by principal axes.

    Args:
      z: codes, such as posterior means, `[n, latent]` with latent >= 2.
      y: integer labels, `[n]`, -1 for unlabelled (grey); by default none.
    Returns:
      A figure whose axes are z1 and z2, or the first two principal components with the share of the
      variance that each explains.
    Raises:
      ValueError: for other shapes, lengths or values.
    """
    z = numbers("latent: z", z, 2)
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
    figure = blank(5.6, 4.8)
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


def curves(
    history: Mapping[str, Any | Mapping[str, Any]],
    *,
    steps: Any = None,
    xlabel: str = "epoch",
    ylabel: str = "nats per example",
    title: str = "training curves",
) -> "Figure":
    """Draw named training curves over epochs or steps, in nats per example unless said otherwise.

    Args:
      history: name to `[time]`, for instance {"train": ..., "test": ...}; NaN is skipped, as before
        the first evaluation. Or, for panels side by side, the title of each to its curves:
        {"ELBO": {"train": ..., "test": ...}, "rate R": {...}}.
      steps: the place of each value, `[time]`; by default 1, 2, ...
      xlabel, ylabel: what the axes measure, with units.
      title: written above, if there is one panel; of several each has its own.
    Returns:
      A figure of one axis, or of one for each panel, with whole numbers along whole places.
    Raises:
      ValueError: for other ranks or lengths, infinities, or a curve of nothing but NaN.
    """
    if not isinstance(history, Mapping):
        fix = "such as {'train': losses}, or Fitted.history"
        raise wrong("curves: history", describe(history), "curves by name", fix, TypeError)
    if not history:
        raise wrong("curves: history", "no curve", "at least one", 'pass {"train": losses}')
    several = all(isinstance(part, Mapping) for part in history.values())
    panels = history if several else {title: history}
    figure = blank(3.4 * len(panels) + 0.6 if len(panels) > 1 else 6.0, 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
    for axis, (above, shown) in zip(axes, panels.items(), strict=True):
        axis.set(xlabel=xlabel, title=above)
        if not shown:
            raise wrong(f"curves: history[{above!r}]", "no curve", "at least one", "leave it out")
        _draw_curves(axis, shown, steps)
    axes[0].set_ylabel(ylabel)
    axes[0].legend(frameon=False)
    return figure


def _draw_curves(axis: Any, history: Mapping[str, Any], steps: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    whole = True
    for name, values in history.items():
        values = numbers(f"curves: history[{name!r}]", values, 1, nan=True)
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
        whole &= bool(np.all(places == np.rint(places)))
    if whole:  # there is no epoch 2.5
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    _plain(axis)


def sweep(
    hyper: Mapping[str, Any],
    numbers_of: Mapping[str, Any],
    *,
    labels: Mapping[str, str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw measured numbers against a swept value: the mean over seeds, and bars of one sd.

    It takes what `population.summarize` takes: `sweep(members.hyper, {"elbo": ...})`.

    Args:
      hyper: the settings, name to `[members]`: the first name other than "seed" is along the axis,
        logarithmic where it spans much; each setting of the others has a line of its own.
      numbers_of: what was measured, name to `[members]`: a panel each. NaN, as of a member that
        was frozen, is in no mean.
      labels: what axes say of a name, with units; by default the name.
      title: written above; by default what mean and bars are of, "" for none.
    Returns:
      A figure of one axis for each number. Bars are the standard deviation (n - 1) over seeds.
    Raises:
      ValueError: where nothing is swept, or is of another length or not finite.
    """
    labels = labels or {}
    own = {name: numbers(f"sweep: hyper[{name!r}]", v, 1) for name, v in hyper.items()}
    names = [name for name in own if name != "seed"]
    if not names or not numbers_of:
        got = "no swept name" if not names else "no numbers"
        fix = 'such as sweep({"beta": [1, 1, 4, 4]}, {"elbo": [...]})'
        raise wrong("sweep", got, "a name other than seed, and a number of each member", fix)
    found = {
        name: numbers(f"sweep: numbers_of[{name!r}]", v, 1, nan=True)
        for name, v in numbers_of.items()
    }
    for name, values in {**own, **found}.items():
        if len(values) != len(own[names[0]]):
            got, expected = f"{len(values)} values", f"{len(own[names[0]])}, one for each member"
            raise wrong(f"sweep: {name}", got, expected, "give one for each member")
    first, *rest = names
    places, each = own[first], list(zip(*(own[name].tolist() for name in rest), strict=True))
    each = each or [()] * len(places)
    settings = list(dict.fromkeys(each))
    columns = min(len(found), 2)
    rows = -(-len(found) // columns)
    figure = blank(4.6 * columns, 3.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    most = 1
    for axis, (name, values) in zip(axes, found.items(), strict=False):
        for setting, colour in zip(settings, _shades(len(settings), 0.85), strict=True):
            chosen = np.array([one == setting for one in each]) & ~np.isnan(values)
            at = np.unique(places[chosen])
            parts = [values[chosen & (places == place)] for place in at]
            sd = [np.std(part, ddof=1) if len(part) > 1 else 0.0 for part in parts]
            most = max([most, *map(len, parts)])
            said = ", ".join(f"{n} {value:g}" for n, value in zip(rest, setting, strict=True))
            mean, how = [part.mean() for part in parts], {"capsize": 3, "ms": 4, "fmt": "o-"}
            axis.errorbar(at, mean, sd, color=colour, label=said, **how)
        ticks = np.unique(places)
        if ticks[0] > 0 and ticks[-1] >= 5 * ticks[0]:
            axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{place:g}" for place in ticks])
        axis.minorticks_off()
        axis.set(xlabel=labels.get(first, first), ylabel=labels.get(name, name))
        _plain(axis)
    for axis in axes[len(found) :]:
        axis.remove()
    if rest:
        axes[0].legend(frameon=False, fontsize="small")
    said = f"mean and standard deviation over {most} seeds" if most > 1 else "one seed"
    figure.suptitle(said if title is None else title)
    return figure


def bound(
    parts: Mapping[str, Any],
    *,
    places: Sequence[Any],
    xlabel: str = "epoch",
    title: str = "log p(x) = bound + gap",
) -> "Figure":
    """Draw a bound and, stacked on it, the parts of its gap, up to log p(x).

    Args:
      parts: name to `[places]`, nats per example. The first is the bound, of either sign. The
        others are the parts of its gap, at least 0, whose sum with the bound is log p(x).
      places: a name for each bar.
      xlabel: what the places are.
      title: written above.
    Returns:
      A figure of one axis, cut below the lowest bound.
    Raises:
      ValueError: for fewer than two parts, other lengths, empty or non-finite input.
    """
    if len(parts) < 2:
        fix = 'pass {"ELBO": ..., "KL(q || posterior)": ...}'
        raise wrong("bound: parts", f"{len(parts)} parts", "the bound and its gap", fix)
    values = [numbers(f"bound: parts[{name!r}]", part, 1) for name, part in parts.items()]
    for name, part in zip(parts, values, strict=True):
        if len(part) != len(places):
            fix = "give one for each bar"
            raise wrong(f"bound: parts[{name!r}]", f"{len(part)} values", len(places), fix)
    rounding = 1e-5 * max(1.0, float(np.abs(values[0]).max()))
    for name, part in list(zip(parts, values, strict=True))[1:]:
        if part.min() < -rounding:
            fix = "if that is noise of few samples, take more of them"
            raise wrong(f"bound: parts[{name!r}]", part.min(), "at least 0", fix)
    figure = blank(7.2, 4.2)
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

    Args:
      rate, distortion: nats per example, `[points]`; D + R = -ELBO.
      labels: names of the points, such as their beta.
      errors: standard errors of both, `[points]` each; by default none.
    Returns:
      A figure of one axis; on the dashed line of slope -1 models are as good as the best.
    Raises:
      ValueError: for other shapes or counts, empty or non-finite input.
    References:
      Alemi et al., 2018, arXiv:1711.00464.
    """
    rate = numbers("rate_distortion: rate", rate, 1)
    distortion = numbers("rate_distortion: distortion", distortion, 1)
    for name, values in (("distortion", distortion), ("labels", labels)):
        if len(values) != len(rate):
            got, fix = f"{len(values)} of them", "give one for each point"
            raise wrong(f"rate_distortion: {name}", got, f"{len(rate)}, as rates", fix)
    figure = blank(5.6, 4.4)
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

    Args:
      rates: name to `[latent]`, nats per example, at least 0. Below 1e-4 nats it is drawn there.
      used: the level, in nats, from which a dimension counts as used, drawn as a line.
    Returns:
      A figure of one axis, logarithmic in the nats.
    Raises:
      ValueError: for other ranks, empty, non-finite or negative input.
    """
    if not rates:
        raise wrong("rates: rates", "no model", "at least one", 'pass {"beta 1": rates}')
    figure = blank(6.0, 4.0)
    labels = {"xlabel": "latent dimension, by its rate", "ylabel": "KL(q || p), nats per example"}
    axis = figure.add_subplot(**labels, yscale="log", title="rate of each latent dimension")
    colours = _shades(len(rates))
    for (name, values), colour in zip(rates.items(), colours, strict=True):
        values = numbers(f"rates: rates[{name!r}]", values, 1)
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

    Args:
      levels: nominal shares in (0, 1), `[levels]`.
      coverage: name to `[levels]`, observed shares.
      errors: name to `[levels]`, standard errors, drawn as 95% intervals; by default none.
    Returns:
      A figure of one axis: below the diagonal a decoder is too sure of itself, above it too
      cautious.
    Raises:
      ValueError: for other shapes, shares outside [0, 1], empty or non-finite input.
    """
    levels = numbers("calibration: levels", levels, 1)
    if not coverage:
        raise wrong("calibration: coverage", "no model", "at least one", 'pass {"test": coverage}')
    figure = blank(5.8, 4.6)
    labels = {"xlabel": "nominal share inside the interval", "ylabel": "observed share"}
    axis = figure.add_subplot(**labels, aspect="equal", title="calibration of p(x|z)")
    axis.plot([0, 1], [0, 1], "--", color="grey", label="calibrated")
    for (name, shares), colour in zip(coverage.items(), _shades(len(coverage)), strict=True):
        shares = numbers(f"calibration: coverage[{name!r}]", shares, 1)
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


def _colours(classes: np.ndarray) -> np.ndarray:
    """One colour [4] per class, grey for -1."""
    import matplotlib

    n = len(classes)
    name = "tab10" if n <= 10 else "tab20" if n <= 20 else "turbo"
    places = np.arange(n) if n <= 20 else np.linspace(0, 1, n)
    colours = matplotlib.colormaps[name](places)
    colours[classes == -1] = (0.75, 0.75, 0.75, 1)
    return colours


def _shades(n: int, last: float = 0.9) -> np.ndarray:
    """n colours in an order, for models that have one."""
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, last, n))


def _plain(axis: Any) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
