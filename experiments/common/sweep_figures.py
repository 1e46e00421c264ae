"""The figure of many runs in training: curves with a band over the seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vaejax.train.population import Population

__all__ = ["drawn_curves"]


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
