"""Arrays in, a matplotlib `Figure` out: pictures of what a model reconstructs, draws and encodes.

Nothing is shown and no global state touched: a notebook displays the figure that a cell returns,
with or without `%matplotlib inline`; `figure.savefig(path)` writes it. Images have 1 or 3 channels,
or no channel axis; floats in [0, 1] go from black to white, uint8 levels 0..255. Needs matplotlib
(the extra `experiments`).
"""

from vaejax.plot._charts import bound, calibration, curves, latent, rate_distortion, rates
from vaejax.plot._pictures import (
    filters,
    images,
    interpolations,
    manifold,
    manifold_grid,
    reconstructions,
    traversals,
)

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
    "traversals",
]
