"""A model as four pure functions, what one pass of it draws, and the terms of its objectives."""

from vaejax.model import terms
from vaejax.model._draws import (
    Draw,
    Generated,
    at_mean,
    draw,
    fixed,
    generate,
    interpolate,
    placed,
    reconstruct,
)
from vaejax.model._model import Model, autoencoder, check_model, compiled, deterministic, tied

__all__ = [
    "Draw",
    "Generated",
    "Model",
    "at_mean",
    "autoencoder",
    "check_model",
    "compiled",
    "deterministic",
    "draw",
    "fixed",
    "generate",
    "interpolate",
    "placed",
    "reconstruct",
    "terms",
    "tied",
]
