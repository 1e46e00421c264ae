"""Distributions: frozen pytrees whose event is the whole array, and `kl` between them."""

from vaejax.distributions._base import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Delta,
    DiscretizedLogistic,
    Distribution,
    Laplace,
    Mixture,
    MultivariateNormal,
    Normal,
    SparseDelta,
    Steps,
    Uniform,
    check_comparable,
    distribution,
    kl,
)

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
]
