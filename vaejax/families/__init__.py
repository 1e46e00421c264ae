"""Families: models and objectives of particular papers; none of them imports another."""

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
