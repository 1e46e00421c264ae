"""Figures of the Jacobian of an encoder: spectra, tangent directions, and the filters behind."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from vaejax import contraction, plot
from vaejax.model import Model
from vaejax.networks import kernels
from vaejax.types import Params

__all__ = ["draw"]


def draw(model: Model, trained: Mapping[str, Params], x: Any) -> dict[str, Any]:
    """Spectra over 20 images, tangent directions at five, and the filters of the largest norms."""
    spectrum = jax.jit(jax.vmap(partial(contraction.singular_values, model), (None, 0)))
    tangents = jax.jit(jax.vmap(partial(contraction.tangents, model, count=7), (None, 0)))
    curves = plot.curves(
        {method: spectrum(params, x[:20]).mean(axis=0) for method, params in trained.items()},
        xlabel="index",
        ylabel="singular value of df/dx (white = 1)",
        title="mean spectrum over 20 test images",
    )
    curves.axes[0].set_yscale("log")
    shown, filters = [], []
    for params in trained.values():
        shown.append(np.concatenate([x[:5, None], tangents(params, x[:5])], axis=1))
        (W,) = (np.asarray(kernel).T for kernel in kernels(params["encoder"]).values())
        filters.append(W[np.argsort(-np.sum(W**2, axis=1))[:12]].reshape(-1, *x.shape[1:]))
    title = "test images, and the directions in which their codes change most"
    drawn = {
        f"tangents_{method}": plot.filters(
            rows.reshape(-1, *x.shape[1:]), columns=8, title=f"{method}: {title}"
        )
        for method, rows in zip(trained, shown, strict=True)
    }
    title, names = "filters of the largest norms", list(trained)
    rows = np.concatenate(filters)
    drawn["filters"] = plot.filters(rows, columns=len(filters[0]), labels=names, title=title)
    return {"spectrum": curves, **drawn}
