"""vaejax: autoencoders and variational autoencoders in JAX.

A model is four pure functions, an objective is written for one example and batched with `vmap`,
training is a scan of Optax updates, every random draw takes an explicit key, and every number of
probability is in nats.
"""

from vaejax import (
    checkpoint,
    data,
    distributions,
    evaluate,
    heads,
    networks,
    objectives,
    plot,
    terms,
    train,
)
from vaejax.batch import batch_mean, over_batch, over_examples
from vaejax.model import (
    Draw,
    Generated,
    Model,
    autoencoder,
    deterministic,
    draw,
    generate,
    interpolate,
    reconstruct,
)
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, Transform

__version__ = "0.1.0"

__all__ = [
    "Array",
    "Batch",
    "Draw",
    "Generated",
    "Key",
    "Loss",
    "Metrics",
    "Model",
    "Params",
    "Transform",
    "autoencoder",
    "batch_mean",
    "checkpoint",
    "data",
    "deterministic",
    "distributions",
    "draw",
    "evaluate",
    "generate",
    "heads",
    "interpolate",
    "networks",
    "objectives",
    "over_batch",
    "over_examples",
    "plot",
    "reconstruct",
    "terms",
    "train",
]
