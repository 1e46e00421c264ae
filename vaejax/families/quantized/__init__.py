"""Vector-quantised autoencoders: a code is a map of indices into a learned codebook.

    model = quantize(autoencoder(encoder, decoder), entries=64)  # encoder: a Delta over [..., size]
    params = from_data(model, model.init(key, x[0]), key, x)  # the codebook: encodings of examples
    optimizer = optax.partition(
        {"model": optax.adam(1e-3), "codebook": optax.sgd(1 - 0.99)},  # moving averages, decay 0.99
        {"model": "model", "codebook": "codebook"},
    )
    fitted = train.fit(vq_vae(model), optimizer, params, x, key=key, epochs=10)

    prior = autoregressive.Causal(net, shape=(7, 7), dtype=jnp.int32)  # over the maps of indices
    objectives.maximum_likelihood(prior)  # the second stage, trained on indices(model, params, ...)
    full = with_prior(model, prior)  # generates; -log p(x) <= rate + distortion

The codebook is a parameter like any other, `params["codebook"]` `[entries, size]`; whoever trains
it by something else than `moving_average` gives it another optimizer.
"""

from vaejax.families.quantized._codebook import from_data, indices, perplexity, revive, usage
from vaejax.families.quantized._losses import codebook_loss, moving_average, vq_vae
from vaejax.families.quantized._model import Entries, VectorQuantized, quantize, with_prior

__all__ = [
    "Entries",
    "VectorQuantized",
    "codebook_loss",
    "from_data",
    "indices",
    "moving_average",
    "perplexity",
    "quantize",
    "revive",
    "usage",
    "vq_vae",
    "with_prior",
]
