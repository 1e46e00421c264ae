"""vaejax: autoencoders and variational autoencoders in JAX.

A model is four pure functions, an objective is written for one example and batched with `vmap`,
training is a scan of Optax updates, every random draw takes an explicit key, and every number of
probability is in nats.
"""

from vaejax import (
    annealing,
    anomaly,
    bounds,
    checkpoint,
    data,
    decomposition,
    diagnostics,
    distributions,
    evaluate,
    exact,
    gradients,
    heads,
    inference,
    linear,
    mixtures,
    networks,
    objectives,
    plot,
    representation,
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
from vaejax.types import Array, Batch, Estimate, Key, Loss, Metrics, Params, Transform

__version__ = "0.1.0"

__all__ = [
    "Array",
    "Batch",
    "Draw",
    "Estimate",
    "Generated",
    "Key",
    "Loss",
    "Metrics",
    "Model",
    "Params",
    "Transform",
    "annealing",
    "anomaly",
    "autoencoder",
    "batch_mean",
    "bounds",
    "checkpoint",
    "data",
    "decomposition",
    "deterministic",
    "diagnostics",
    "distributions",
    "draw",
    "evaluate",
    "exact",
    "generate",
    "gradients",
    "heads",
    "inference",
    "interpolate",
    "linear",
    "mixtures",
    "networks",
    "objectives",
    "over_batch",
    "over_examples",
    "plot",
    "reconstruct",
    "representation",
    "terms",
    "train",
]
