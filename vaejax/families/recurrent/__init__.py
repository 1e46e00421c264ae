"""Recurrent networks and models: a GRU, a language model, a text encoder, the VRNN.

    network = autoregressive.Causal(recurrent.Language(65, 256), shape=(128,), dtype=jnp.int32)
    loss = objectives.maximum_likelihood(network)              # next-character prediction
    longer = network._replace(shape=(1000,))                   # parameters know no length
    longer.apply(params).complete(key, prefix, known=n)        # continues a text

    vrnn = recurrent.vrnn(autoencoder(encoder, decoder, prior), recurrent.Cell(64), features=64)
    params = vrnn.model.init(key, x)                           # x [steps, ...], one sequence
    loss = objectives.elbo(vrnn.model, draw=vrnn.draw)

Parameters serve sequences of any length. Every function takes one sequence; `vmap` batches it, and
turns the matrix-vector products of a step into one matrix product.
"""

from vaejax.families.recurrent._networks import GRU, Cell, Language, TextEncoder
from vaejax.families.recurrent._vrnn import Recurrent, padded, vrnn

__all__ = ["GRU", "Cell", "Language", "Recurrent", "TextEncoder", "padded", "vrnn"]
