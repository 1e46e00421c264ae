"""A stack of three levels, a classifier on top of it, and programs, which several files share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from vaejax import autoencoders, heads, networks, stacked
from vaejax.distributions import Delta, Normal
from vaejax.model import Model, autoencoder

WIDTHS = 6, 4, 3
ADAM = optax.adam(1e-2)


def sigmoid_level(below, above):
    return autoencoder(heads.Code(above, nn.sigmoid), heads.Bernoulli(below))


def plain_level(below, above, conditions=0):
    """A level of plain functions, which is traced faster; it cannot do without its condition."""

    def init(key, x, c=()):
        up, down = (jax.random.normal(k, (above, below)) for k in jax.random.split(key))
        return {"up": up.T, "down": down, "c": jnp.ones((conditions, above))}

    def encode(params, x, c=(), *, key=None):
        shift = c @ params["c"] if conditions else 0.0
        return Delta(jnp.tanh(x @ params["up"] + shift))

    def decode(params, z, c=(), *, key=None):
        shift = jnp.sum(c @ params["c"]) if conditions else 0.0
        return Normal(z @ params["down"] + shift, jnp.ones(below))

    return Model(jax.jit(init), lambda params, c=(): None, encode, decode)


LEVELS = [sigmoid_level(b, a) for b, a in zip((8, *WIDTHS[:-1]), WIDTHS, strict=True)]
DEEP = stacked.stack(LEVELS)
CLASSIFY = stacked.classifier(DEEP, 3)
CLASSIFICATION = stacked.classification(CLASSIFY)
CODES = jax.jit(jax.vmap(lambda params, x: DEEP.encode(params, x).mean, (None, 0)))
GRADIENT = jax.jit(jax.value_and_grad(CLASSIFICATION, has_aux=True))


pretrain = partial(
    stacked.pretrain, loss=autoencoders.reconstruction, optimizer=ADAM, steps=20, batch_size=30
)


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def conditional(below, above, encoder=None):
    encoder = encoder or nn.Sequential([networks.MLP((4,), nn.tanh), heads.Code(above)])
    decoder = nn.Sequential([networks.MLP((4,), nn.tanh), heads.FixedNormal(below, 1.0)])
    return autoencoder(encoder, decoder)
