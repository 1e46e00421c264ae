"""vaejax: autoencoders and variational autoencoders in JAX.

A model is four pure functions, an objective is written for one example and batched with `vmap`,
training is a scan of Optax updates, every random draw takes an explicit key, and every number of
probability is in nats.
"""

from vaejax import data, distributions, evaluate, model, networks, objectives, plot, train
from vaejax._version import __version__
from vaejax.batch import batch_mean, over_batch, over_examples
from vaejax.compiling import install
from vaejax.data import corruption, feed, sources, sprites, text
from vaejax.evaluate import (
    annealing,
    anomaly,
    bounds,
    decomposition,
    diagnostics,
    disentanglement,
    exact,
    gradients,
    inference,
    representation,
)
from vaejax.families import (
    adversarial,
    autoencoders,
    conditional,
    disentangle,
    hierarchical,
    linear,
    mixtures,
    posteriors,
    priors,
    quantized,
    recurrent,
    semisupervised,
)
from vaejax.families.autoencoders import contraction, score, sparsity, stacked
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
    terms,
    tied,
)
from vaejax.networks import autoregressive, causal, flows, heads
from vaejax.sharing import portable, weights
from vaejax.train import checkpoint, devices, memory, population, precision
from vaejax.types import Array, Batch, Estimate, Key, Loss, Metrics, Params, Transform

install()

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
    "__version__",
    "adversarial",
    "annealing",
    "anomaly",
    "autoencoder",
    "autoencoders",
    "autoregressive",
    "batch_mean",
    "bounds",
    "causal",
    "checkpoint",
    "conditional",
    "contraction",
    "corruption",
    "data",
    "decomposition",
    "deterministic",
    "devices",
    "diagnostics",
    "disentangle",
    "disentanglement",
    "distributions",
    "draw",
    "evaluate",
    "exact",
    "feed",
    "flows",
    "generate",
    "gradients",
    "heads",
    "hierarchical",
    "inference",
    "interpolate",
    "linear",
    "memory",
    "mixtures",
    "model",
    "networks",
    "objectives",
    "over_batch",
    "over_examples",
    "plot",
    "population",
    "portable",
    "posteriors",
    "precision",
    "priors",
    "quantized",
    "reconstruct",
    "recurrent",
    "representation",
    "score",
    "semisupervised",
    "sources",
    "sparsity",
    "sprites",
    "stacked",
    "terms",
    "text",
    "tied",
    "train",
    "weights",
]
