"""What all figures share: checked numbers, a blank figure, and images side by side."""

import io
import math
from collections.abc import Sequence
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from vaejax.arrays import numbers as numbers_of
from vaejax.errors import missing, wrong

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def numbers(where: str, x: Any, *ranks: int, nan: bool = False) -> np.ndarray:
    x = np.asarray(numbers_of(where, x))
    if x.ndim not in ranks or not x.size:
        expected = f"an array of rank {' or '.join(map(str, ranks))}, not empty"
        raise wrong(where, f"shape {x.shape}", expected, "check its axes")
    x = x.astype(np.float64)
    bad = np.argwhere(~(np.isfinite(x) | (nan & np.isnan(x))))
    if len(bad):
        got = f"{len(bad)} values not finite, the first at {bad[0].tolist()}"
        raise wrong(where, got, "finite values", "drop them, or look for where they arise")
    return x


def as_images(where: str, x: Any, rank: int) -> np.ndarray:
    x = np.asarray(numbers_of(where, x))
    values = numbers(where, x, rank - 1, rank) / (255 if x.dtype == np.uint8 else 1)
    values = values[..., None] if x.ndim == rank - 1 else values
    if values.shape[-1] not in (1, 3):
        fix = "for grey images add the axis: x[..., None]"
        raise wrong(where, f"shape {x.shape}", "1 or 3 channels in the last axis", fix)
    return values.astype(np.float32)


def blank(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing("plot", "matplotlib", "experiments") from error
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    # IPython shows a Figure as a picture only once pyplot is imported, which we do not do.
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: "Figure") -> bytes:
    """What a notebook shows and stores: not wider than its column, and small in bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90, bbox_inches="tight")
    return file.getvalue()


def mosaic(x: np.ndarray, *, gap: float = 0.08, **labels: str) -> tuple["Figure", "Axes"]:
    """Images `[rows, columns, height, width, channels]` as one canvas, ticks at their centres."""
    rows, columns, height, width, channels = x.shape
    space = math.ceil(gap * min(height, width))
    x = np.pad(x, ((0, 0), (0, 0), (0, space), (0, space), (0, 0)), constant_values=1)
    canvas = x.swapaxes(1, 2).reshape(rows * (height + space), columns * (width + space), channels)
    canvas = np.clip(canvas[: len(canvas) - space, : canvas.shape[1] - space], 0, 1)
    # In inches: at most 7 each way, 0.9 for one image and 1/16 for a pixel, since the eye sees
    # large squares and not what they show; room for the words beside it.
    scale = min(7 / canvas.shape[1], 7 / len(canvas), 0.9 / max(height, width), 1 / 16)
    size = max(canvas.shape[1] * scale, 1.5) + 1.0, max(len(canvas) * scale, 0.5) + 0.6
    figure = blank(*size)
    axis = figure.add_subplot(**labels)
    axis.imshow(canvas.squeeze(2) if channels == 1 else canvas, cmap="gray", vmin=0, vmax=1)
    axis.set_xticks(np.arange(columns) * (width + space) + (width - 1) / 2)
    axis.set_yticks(np.arange(rows) * (height + space) + (height - 1) / 2)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure, axis


def name_ticks(
    axis: "Axes",
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    both_ends: bool = False,
) -> None:
    """Names of rows and columns; of very many only some, so that they do not overlap.

    `both_ends`: the last column is among them.
    """
    for which, names in ((axis.yaxis, rows), (axis.xaxis, columns)):
        if names is not None:
            every = math.ceil(len(names) / (24 if which is axis.yaxis else 11))
            shown = list(range(0, len(names), every))
            if both_ends and which is axis.xaxis and shown[-1] != len(names) - 1:
                shown[-1] = len(names) - 1
            which.set_ticks(which.get_ticklocs()[shown], labels=[names[i] for i in shown])


def quantiles(n: int) -> np.ndarray:
    return np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
