"""Small models of one layer, their data, and programs, which several files share."""

from functools import partial

import jax
import numpy as np
from flax import linen as nn

from vaejax import heads, sparsity
from vaejax.model import autoencoder

SIZE, LATENT = 5, 7
X = np.random.default_rng(1).normal(size=(40, SIZE)).astype(np.float32)


def model_of(head, **options):
    return autoencoder(head, heads.FixedNormal(SIZE, 0.5**0.5, **options))


RELU = model_of(heads.Code(LATENT, nn.relu))
UNIT = sparsity.unit_columns(model_of(heads.TopK(LATENT, 2)))


def encoded(model, params, x):
    return model.encode(params, x).mean


def decoded(model, params, z):
    return model.decode(params, z).mean


# Of many examples: `CODES[RELU](params, x)`.
CODES = {model: jax.jit(jax.vmap(partial(encoded, model), (None, 0))) for model in (RELU, UNIT)}
DECODED = {model: jax.jit(jax.vmap(partial(decoded, model), (None, 0))) for model in (RELU, UNIT)}


def largest_by_hand(z, k, counted):
    """The codes of which the batch keeps its k largest entries per example, ties to the first."""
    order = sorted(
        ((z[i, j], -i, -j) for i in np.flatnonzero(counted) for j in range(z.shape[1])),
        reverse=True,
    )
    kept = np.zeros_like(z)
    for value, i, j in order[: k * int(np.sum(counted))]:
        kept[-i, -j] = value
    return kept


def dying(params, dead):
    """The parameters of UNIT with some units that can never be among the two largest."""
    code = params["encoder"]["params"]["code"]
    bias = np.array(code["bias"])
    bias[dead] = -1e3
    return {**params, "encoder": {"params": {"code": {**code, "bias": bias}}}}
