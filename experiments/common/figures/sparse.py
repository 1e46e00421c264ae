"""Figures of a sparse code: how often its units are active, and what they look for."""

from typing import Any

import numpy as np

from experiments.common.sparse_code import Code
from vaejax import plot

__all__ = ["filters", "units"]


def units(config: Code, z: np.ndarray) -> Any:
    """A histogram of the units by their mean activation, or by how often they are active."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
    by_mean = config.code in ("kl", "squared")
    axis = figure.add_subplot(
        xlabel="mean activation over the examples"
        if by_mean
        else "share of the examples in which the unit is active",
        ylabel="units",
        title=f"{config.latent} units",
    )
    values = z.mean(axis=0) if by_mean else (z != 0).mean(axis=0)
    axis.hist(values, bins=40, color="tab:blue")
    if by_mean:
        axis.axvline(config.rho, color="black", label=f"target rho = {config.rho:g}")
        axis.axvline(config.rho / 2, color="grey", linestyle=":", label="rho / 2 and 2 rho")
        axis.axvline(config.rho * 2, color="grey", linestyle=":")
        axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def filters(vectors: np.ndarray, z: np.ndarray, shape: Any, title: str) -> Any:
    """The 100 most active units' vectors `[latent, size]` as images; grey is 0, each to its own."""
    most = np.argsort(-np.abs(z).sum(axis=0))[:100]
    return plot.filters(vectors[most].reshape(-1, *shape), title=title)
