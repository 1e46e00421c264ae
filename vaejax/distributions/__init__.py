"""Distributions: frozen pytrees whose event is the whole array, and `kl` between them."""

from vaejax.distributions._base import Distribution, distribution
from vaejax.distributions._composed import Mixture, Steps
from vaejax.distributions._continuous import (
    ContinuousBernoulli,
    Laplace,
    MultivariateNormal,
    Normal,
    Uniform,
)
from vaejax.distributions._discrete import (
    Bernoulli,
    Categorical,
    Delta,
    DiscretizedLogistic,
    SparseDelta,
)
from vaejax.distributions._divergence import check_comparable, kl
from vaejax.distributions._pathwise import pathwise, refusing

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "Delta",
    "DiscretizedLogistic",
    "Distribution",
    "Laplace",
    "Mixture",
    "MultivariateNormal",
    "Normal",
    "SparseDelta",
    "Steps",
    "Uniform",
    "check_comparable",
    "distribution",
    "kl",
    "pathwise",
    "refusing",
]
