"""Networks of NNX and Equinox for the suite of all families: one of each nature."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx

from vaejax import networks
from vaejax.distributions import Bernoulli


class NNXFeatures(nnx.Module):
    """Dense layers with a norm and dropout."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.first, self.last = (
            nnx.Linear(inputs, 16, rngs=rngs),
            nnx.Linear(16, outputs, rngs=rngs),
        )
        self.norm, self.dropout = nnx.LayerNorm(16, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x.ravel())))))


class NNXConvolution(nnx.Module):
    """Two convolutions of an image of one channel."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.last = nnx.Conv(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(nnx.relu(self.first(x))).ravel()


class NNXCell(nnx.Module):
    """A step of a recurrent network."""

    def __init__(self, inputs: int, features: int, rngs: nnx.Rngs) -> None:
        self.gru = nnx.GRUCell(inputs, features, rngs=rngs)

    def __call__(self, h: Any, x: Any, z: Any) -> Any:
        return self.gru(h, networks.join(x, z))[0]


def causal_logits(weights: Any, x: Any) -> Bernoulli:
    """A logistic regression of each pixel on those before it."""
    return Bernoulli((jnp.tril(weights, -1) @ x.ravel()).reshape(x.shape))


class NNXCausal(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weights = nnx.Param(0.1 * jax.random.normal(rngs.params(), (16, 16)))

    def __call__(self, x: Any) -> Bernoulli:
        return causal_logits(self.weights[...], x)


class EquinoxFeatures(eqx.Module):
    """Dense layers with a norm and dropout."""

    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, inputs: int, outputs: int, key: Any) -> None:
        one, other = jax.random.split(key)
        self.first = eqx.nn.Linear(inputs, 16, key=one)
        self.last = eqx.nn.Linear(16, outputs, key=other)
        self.norm, self.dropout = eqx.nn.LayerNorm(16), eqx.nn.Dropout(0.1)

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        h = jax.nn.relu(self.norm(self.first(x.ravel())))
        return self.last(self.dropout(h, key=key))


class EquinoxConvolution(eqx.Module):
    """Two convolutions of an image of one channel, which Equinox wants first."""

    first: eqx.nn.Conv2d
    last: eqx.nn.Conv2d

    def __init__(self, key: Any) -> None:
        one, other = jax.random.split(key)
        self.first = eqx.nn.Conv2d(1, 4, 3, stride=2, padding=1, key=one)
        self.last = eqx.nn.Conv2d(4, 4, 3, padding=1, key=other)

    def __call__(self, x: Any) -> Any:
        return self.last(jax.nn.relu(self.first(x.transpose(2, 0, 1)))).ravel()


class EquinoxCell(eqx.Module):
    gru: eqx.nn.GRUCell

    def __init__(self, inputs: int, features: int, key: Any) -> None:
        self.gru = eqx.nn.GRUCell(inputs, features, key=key)

    def __call__(self, h: Any, x: Any, z: Any) -> Any:
        return self.gru(networks.join(x, z), h)


class EquinoxCausal(eqx.Module):
    weights: Any

    def __init__(self, key: Any) -> None:
        self.weights = 0.1 * jax.random.normal(key, (16, 16))

    def __call__(self, x: Any) -> Bernoulli:
        return causal_logits(self.weights, x)
