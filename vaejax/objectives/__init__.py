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

Which models they take. **Through the draws** are all losses of the first four rows, and of the
families those that draw z from q(z|x): `disentangle`, `semisupervised.m2`, `adversarial`,
`autoencoders`. **At fixed draws** are `score_function`, `vimco` and `reweighted_wake_sleep`. What
is refused is refused in one line while the loss is traced. Every prior is taken by all of them: a
learned one, a mixture, VampPrior, a flow, an autoregressive one.

| posterior | through the draws | at fixed draws |
| --- | --- | --- |
| Normal, diagonal or full | yes | yes |
| flow (planar, inverse autoregressive) | yes | yes |
| several layers, `hierarchical.Chain` | yes | yes |
| `recurrent.vrnn` | yes, with `draw=` | yes, with `draw=`; wake without sleep |
| Mixture with learned logits | refused: a sample has no derivative by them | yes |
| discrete: Bernoulli, Categorical, layers of them | refused, for the same reason | yes |
| VectorQuantized, straight through | yes | refused: a point has no score |
| point, of an autoencoder without a prior | reconstruction alone | refused |

`beta_tcvae` takes diagonal Normals alone, `vq_vae` quantised codes alone. Losses of `adversarial`
take the parts encoder, decoder and `posterior`, and no learned prior. A penalty of the encoder
itself (`contractive`, `batch_top_k`) needs a mean code, which flows, layers and a VRNN have not.

The refusal comes with the gradient: to evaluate such a loss is no fault. Parameters that are
constants, or held by `jax.lax.stop_gradient`, are not refused. It is found by tracing `sample`, so
that a Distribution of your own has nothing to declare (`Distribution.without_derivative`).

`players` joins the losses of several networks into one, and each moves its own parameters.
"""

from vaejax.objectives._cyclical import cyclical
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
    "cyclical",
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
