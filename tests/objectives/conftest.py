"""Small models whose log p(x) is known, shared by the tests of objectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests import oracles
from vaejax import heads, networks
from vaejax.distributions import Normal
from vaejax.model import autoencoder


@pytest.fixture(scope="module")
def small():
    """A VAE of images 3 x 2, and its parameters."""
    model = autoencoder(
        nn.Sequential([networks.MLP((8,)), heads.Normal(2)]),
        nn.Sequential([networks.MLP((8,)), heads.Bernoulli((3, 2))]),
        Normal(jnp.zeros(2), jnp.ones(2)),
    )
    return model, model.init(jax.random.key(1), jnp.zeros((3, 2)))


@pytest.fixture
def linear():
    """`linear(posterior, n)`: a linear-Gaussian model, its parameters, and x `[n, 3]`.

    In the precision of the test: ask for x64 before it.
    """

    def build(posterior=oracles.poor_posterior, n=3):
        model, params = oracles.linear_gaussian(d=3, latent=1)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(n, 3)))
        return posterior(model), params, x

    return build
