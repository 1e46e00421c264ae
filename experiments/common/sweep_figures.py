"""The figures of many runs: numbers over what was swept, and curves with a band over the seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.training import Row
from vaejax.train.population import Population

__all__ = ["drawn_curves", "drawn_sweep"]


def drawn_sweep(
    swept: list[str], rows: list[Row], numbers: Sequence[str], labels: Mapping[str, str]
) -> Any:
    """Every number against the first swept hyperparameter, one line for each setting of the rest.

    Bars: standard deviation over the seeds.
    """
    from matplotlib.figure import Figure

    name, *rest = swept
    columns = min(len(numbers), 2)
    height = -(-len(numbers) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False).ravel()
    settings = list(dict.fromkeys(tuple(row[n] for n in rest) for row in rows))
    places = [row[name] for row in rows]
    for axis, number in zip(axes, numbers, strict=False):
        for setting, colour in zip(settings, _colours(len(settings)), strict=True):
            line = [row for row in rows if tuple(row[n] for n in rest) == setting and row["finite"]]
            line.sort(key=lambda row: row[name])
            x, y, sd = ([row[n] for row in line] for n in (name, number, f"{number}_sd"))
            axis.errorbar(
                x,
                y,
                np.nan_to_num(sd),
                fmt="o-",
                ms=4,
                capsize=3,
                color=colour,
                label=_named(rest, setting),
            )
        if min(places) > 0 and max(places) >= 5 * min(places):
            axis.set_xscale("log")
        axis.set_xticks(sorted(set(places)), [f"{place:g}" for place in sorted(set(places))])
        axis.minorticks_off()
        axis.set(xlabel=labels.get(name, name), ylabel=labels.get(number, number))
        _plain(axis)
    for axis in axes[len(numbers) :]:
        axis.remove()
    if rest:
        axes[0].legend(frameon=False, fontsize="small")
    most = max(row["members"] for row in rows)
    figure.suptitle(f"mean and standard deviation over {most} seeds" if most > 1 else "one seed")
    return figure


def drawn_curves(
    hyper: Mapping[str, np.ndarray], found: Population, curve: str, labels: Mapping[str, str]
) -> Any:
    """A metric over the epochs, in training and on the test split: mean over the seeds, and a band
    of one standard deviation, for each setting; frozen members are left out.
    """
    from matplotlib.figure import Figure

    swept = [name for name in hyper if name != "seed"]
    each = list(zip(*(hyper[name].tolist() for name in swept), strict=True))
    each = each or [()] * len(found.frozen)
    settings = list(dict.fromkeys(each))
    panels = {
        title: found.history[name]
        for title, name in (("training", curve), ("test split", f"eval/{curve}"))
        if name in found.history
    }
    figure = Figure(figsize=(4.8 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        for setting, colour in zip(settings, _colours(len(settings)), strict=True):
            chosen = [i for i, one in enumerate(each) if one == setting and found.frozen[i] < 0]
            if not chosen:
                continue
            lines = values[:, chosen]
            known = ~np.isnan(lines).any(axis=1)
            x, mean = found.history["epoch"][known], lines[known].mean(axis=1)
            sd = lines[known].std(axis=1, ddof=int(len(chosen) > 1))
            marker = "." if known.sum() <= 50 else ""
            axis.plot(x, mean, color=colour, marker=marker, label=_named(swept, setting))
            axis.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="epoch", title=title)
        _plain(axis)
    axes[0].set_ylabel(labels.get(curve, curve))
    if swept and len(settings) <= 16:
        axes[0].legend(frameon=False, fontsize="small")
    return figure


def _named(names: Sequence[str], setting: Sequence[Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in zip(names, setting, strict=True))


def _colours(count: int) -> Any:
    """From dark to light, in the order of the settings."""
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.85, count))


def _plain(axis: Any) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
