"""Losses: `(params, key, batch, step) -> (scalar, metrics)`, one function per paper.

Each loss is written for one example: sums over the event, one visible mean over the batch, nats
everywhere. The value is the negative bound (for `elbo` at beta = 1), whatever estimates its
gradient. A draw `z ~ q(z|x)` has the log-weight `log w = log p(x, z) - log q(z|x)`; normalised
weights are `w~_k = w_k / sum_j w_j`.

| loss | bound | gradient for q's parameters |
| --- | --- | --- |
| `elbo` | E[log w], the rate in closed form | pathwise |
| `iwae`, `miwae`, `ciwae`, `renyi` | E[log 1/K sum_k w_k] and relatives | pathwise |
| `stl`, `dreg` | that of `iwae` | pathwise, without (doubly, in `dreg`) the score |
| `piwae` | `iwae` with M K draws | that of `miwae` |
| `score_function`, `vimco` | those of `elbo` and `iwae` | f grad log q: discrete z too |
| `reweighted_wake_sleep` | that of `iwae` | its own, towards p(z\\|x): discrete z too |
| `maximum_likelihood` | log p(x) itself | there is no q |

`players` joins the losses of several networks into one, and each moves its own parameters.
"""

from vaejax.objectives._elbo import elbo
from vaejax.objectives._games import players
from vaejax.objectives._importance_weighted import ciwae, dreg, iwae, miwae, piwae, renyi, stl
from vaejax.objectives._likelihood import maximum_likelihood
from vaejax.objectives._log_weights import Schedule, schedule
from vaejax.objectives._score_function import (
    leave_one_out,
    reweighted_wake_sleep,
    score_function,
    vimco,
)

__all__ = [
    "Schedule",
    "ciwae",
    "dreg",
    "elbo",
    "iwae",
    "leave_one_out",
    "maximum_likelihood",
    "miwae",
    "piwae",
    "players",
    "renyi",
    "reweighted_wake_sleep",
    "schedule",
    "score_function",
    "stl",
    "vimco",
]
