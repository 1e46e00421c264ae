"""Many runs as one compiled program: seeds, and hyperparameters that are arrays, side by side.

`make(hyper) -> (loss, optimizer)` makes a member from its own hyperparameters: numbers (a beta, a
learning rate) or arrays (a mask of latents). `fit` trains all members at once, each to the
parameters that it would reach alone, up to the order of floating-point sums.
"""

from vaejax.train.population._fit import Make, Population, fit, make_scan
from vaejax.train.population._grid import grid, summarize, table
from vaejax.train.population._mean_loss import mean_loss

__all__ = ["Make", "Population", "fit", "grid", "make_scan", "mean_loss", "summarize", "table"]
