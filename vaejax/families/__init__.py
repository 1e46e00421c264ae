"""Families: models and objectives of particular papers; no family imports another.

| family | what it holds |
| --- | --- |
| `adversarial` | GAN, adversarial autoencoder, VAE-GAN |
| `autoencoders` | deterministic: denoising, contractive, sparse, stacked, score matching |
| `conditional` | conditions: one-hot classes, images completed from what is known |
| `disentangle` | total correlation: beta-TCVAE, FactorVAE |
| `hierarchical` | several layers of latent variables |
| `linear` | probabilistic PCA, in closed form |
| `mixtures` | mixtures fitted by expectation-maximisation |
| `posteriors` | flow posteriors: planar, inverse autoregressive |
| `priors` | learned priors: mixture, VampPrior, flow |
| `quantized` | VQ-VAE: codebooks, and priors over their indices |
| `recurrent` | GRU, language model, text encoder, VRNN |
| `semisupervised` | M2: learning from few labels |
"""

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

__all__ = [
    "adversarial",
    "autoencoders",
    "conditional",
    "disentangle",
    "hierarchical",
    "linear",
    "mixtures",
    "posteriors",
    "priors",
    "quantized",
    "recurrent",
    "semisupervised",
]
