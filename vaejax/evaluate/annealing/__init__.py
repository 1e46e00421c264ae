"""Annealed importance sampling: log p(x) from below, and from above with exact posterior draws.

`ais` anneals Hamiltonian chains from a start distribution to the posterior, a lower bound;
`reverse_ais` anneals exact posterior draws the other way, an upper bound; `bdmc` does both on data
simulated from the model, where an exact draw is at hand. `bounds.sandwich` puts them together.

With the same `key` and `transform` these functions, `bounds` and `evaluate` see the same drawn
examples (the same binarisation, say). An example's randomness depends on the key and its index
alone, so that `batch_size` changes nothing but speed and memory.
"""

from vaejax.evaluate.annealing._estimates import Simulated, ais, bdmc, reverse_ais
from vaejax.evaluate.annealing._moves import hmc, leapfrog
from vaejax.evaluate.annealing._run import Annealed, Start, sigmoidal

__all__ = [
    "Annealed",
    "Simulated",
    "Start",
    "ais",
    "bdmc",
    "hmc",
    "leapfrog",
    "reverse_ais",
    "sigmoidal",
]
