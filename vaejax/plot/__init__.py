"""Arrays in, a matplotlib `Figure` out: pictures of what a model reconstructs, draws and encodes.

Nothing is shown and no global state touched: a notebook displays the figure that a cell returns,
with or without `%matplotlib inline`; `save` writes it for print, as PDF or SVG. Images have 1 or 3
channels, or no channel axis; floats in [0, 1] go from black to white, uint8 levels 0..255. Needs
matplotlib (the extra `experiments`).
"""

from vaejax.plot._charts import bound, calibration, curves, latent, rate_distortion, rates, sweep
from vaejax.plot._pictures import (
    filters,
    images,
    interpolations,
    manifold,
    manifold_grid,
    reconstructions,
    traversals,
)
from vaejax.plot._save import save

__all__ = [
    "bound",
    "calibration",
    "curves",
    "filters",
    "images",
    "interpolations",
    "latent",
    "manifold",
    "manifold_grid",
    "rate_distortion",
    "rates",
    "reconstructions",
    "save",
    "sweep",
    "traversals",
]
