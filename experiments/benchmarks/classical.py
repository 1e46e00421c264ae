"""A convolutional VAE written with Flax alone, for a batch, to compare vaejax with."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from vaejax.types import Array, Batch, Key, Loss, Metrics, Params


class ClassicalVAE(nn.Module):
    """Strided and transposed convolutions of a batch of images.

    Takes images `[batch, height, width, 1]` and a key. Returns the logits of p(x|z) in the shape of
    the images, and the mean and the log-variance of q(z|x), each `[batch, latent]`.
    """

    latent: int

    @nn.compact
    def __call__(self, x: Array, key: Key) -> tuple[Array, Array, Array]:
        h = nn.relu(nn.Conv(32, (3, 3), strides=(2, 2))(x))
        h = nn.relu(nn.Conv(64, (3, 3), strides=(2, 2))(h))
        shape, h = h.shape, h.reshape(len(x), -1)
        loc, log_var = nn.Dense(self.latent)(h), nn.Dense(self.latent)(h)
        z = loc + jnp.exp(log_var / 2) * jax.random.normal(key, loc.shape)
        h = nn.relu(nn.Dense(h.shape[1])(z).reshape(shape))
        h = nn.relu(nn.ConvTranspose(32, (3, 3), strides=(2, 2))(h))
        return nn.ConvTranspose(1, (3, 3), strides=(2, 2))(h), loc, log_var


def classical_loss(net: ClassicalVAE) -> Loss:
    """The bound of `objectives.elbo` and its binary pixels, written for the batch."""

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        x_key, z_key = jax.random.split(key)
        x = (jax.random.uniform(x_key, batch.x.shape) * 255 < batch.x).astype(jnp.float32)
        logits, loc, log_var = net.apply(params, x, z_key)  # type: ignore[misc]
        distortion = optax.sigmoid_binary_cross_entropy(logits, x).sum((1, 2, 3))
        rate = 0.5 * (loc**2 + jnp.exp(log_var) - 1 - log_var).sum(1)
        return jnp.mean(distortion + rate), {}

    return loss
