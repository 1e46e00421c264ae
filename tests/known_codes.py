"""Models whose codes are known: posteriors from a table."""

import jax.numpy as jnp
import numpy as np

from vaejax.distributions import Normal
from vaejax.model import Model


def table(q, prior, params):
    """A model whose posterior for x = [n] is `q` of the n-th row of every parameter."""

    def encode(params, x, c=(), *, key=None):
        return q(*(leaf[x[0].astype(int)] for leaf in params))

    def decode(params, z, c=(), *, key=None):
        return Normal(jnp.sum(z)[None], jnp.ones(1))

    return Model(lambda key, x, c=(): params, lambda params, c=(): prior, encode, decode)


def places(n):
    return np.arange(n, dtype=np.float32)[:, None]


STANDARD = Normal(jnp.zeros(2), jnp.ones(2))
LOC = np.random.default_rng(0).normal(size=(13, 2)) * np.array([1.5, 0.7])
LOC[:, 1] += 0.8 * LOC[:, 0]  # dependent dimensions
SCALE = np.random.default_rng(1).uniform(0.2, 0.9, size=(13, 2))
TABLE = jnp.asarray(LOC, jnp.float32), jnp.asarray(SCALE, jnp.float32)
NORMAL = table(Normal, STANDARD, TABLE)
