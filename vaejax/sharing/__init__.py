"""Sharing a trained model: parameters in a file, or the whole model as a program."""

from vaejax.sharing import portable, weights

__all__ = [
    "portable",
    "weights",
]
