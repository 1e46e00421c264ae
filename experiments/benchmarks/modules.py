"""The networks of W1 as a user of NNX or Equinox would write them."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vaejax import distributions, heads, networks
from vaejax.model import Model, autoencoder


def nnx_layers(sizes: Sequence[int]) -> Callable[..., Any]:
    """Dense layers with relu between them and behind them."""

    def make(rngs: nnx.Rngs) -> nnx.Module:
        layers: list[Any] = [lambda x: x.ravel()]
        for inputs, outputs in pairwise(sizes):
            layers += [nnx.Linear(inputs, outputs, rngs=rngs), nnx.relu]
        return nnx.Sequential(*layers)

    return make


def equinox_layers(sizes: Sequence[int]) -> Callable[..., Any]:
    """The same in Equinox."""
    import equinox as eqx

    def make(key: Any) -> Any:
        layers: list[Any] = [eqx.nn.Lambda(jnp.ravel)]
        keys = jax.random.split(key, len(sizes) - 1)
        for (inputs, outputs), own in zip(pairwise(sizes), keys, strict=True):
            layers += [eqx.nn.Linear(inputs, outputs, key=own), eqx.nn.Lambda(jax.nn.relu)]
        return eqx.nn.Sequential(layers)

    return make


def model(layers: Callable[..., Any], side: int, hidden: Sequence[int], latent: int) -> Model:
    """The VAE of W1 with these layers, under the library's heads."""
    pixels, prior = side * side, distributions.Normal(jnp.zeros(latent), jnp.ones(latent))
    encoder = networks.sequential(layers((pixels, *hidden)), heads.Normal(latent))
    likelihood = heads.Bernoulli((side, side, 1))
    decoder = networks.sequential(layers((latent, *reversed(hidden))), likelihood)
    return autoencoder(encoder, decoder, prior)
