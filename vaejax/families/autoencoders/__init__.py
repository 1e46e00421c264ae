"""Deterministic autoencoders: their losses, and what belongs to each kind."""

from vaejax.families.autoencoders import contraction, dictionaries, score, sparsity, stacked
from vaejax.families.autoencoders._losses import (
    batch_top_k,
    contractive,
    corrupted,
    denoising,
    higher_order_contractive,
    reconstruction,
    sparse,
)

__all__ = [
    "batch_top_k",
    "contraction",
    "contractive",
    "corrupted",
    "denoising",
    "dictionaries",
    "higher_order_contractive",
    "reconstruction",
    "score",
    "sparse",
    "sparsity",
    "stacked",
]
