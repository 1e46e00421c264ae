"""A model as four pure functions, what one pass of it draws, and the terms of its objectives."""

from vaejax.model import terms
from vaejax.model._draws import Draw, Generated, draw, generate, interpolate, reconstruct
from vaejax.model._model import Model, autoencoder, check_model, compiled, deterministic, tied

__all__ = [
    "Draw",
    "Generated",
    "Model",
    "autoencoder",
    "check_model",
    "compiled",
    "deterministic",
    "draw",
    "generate",
    "interpolate",
    "reconstruct",
    "terms",
    "tied",
]
