"""Objectives: what is minimised, written for one example."""

from vaejax.objectives._games import players
from vaejax.objectives._pathwise import (
    Schedule,
    ciwae,
    dreg,
    elbo,
    iwae,
    leave_one_out,
    maximum_likelihood,
    miwae,
    piwae,
    renyi,
    reweighted_wake_sleep,
    schedule,
    score_function,
    stl,
    vimco,
)

__all__ = [
    "Schedule",
    "ciwae",
    "dreg",
    "elbo",
    "iwae",
    "leave_one_out",
    "maximum_likelihood",
    "miwae",
    "piwae",
    "players",
    "renyi",
    "reweighted_wake_sleep",
    "schedule",
    "score_function",
    "stl",
    "vimco",
]
