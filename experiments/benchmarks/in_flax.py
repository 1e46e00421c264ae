"""Flax and Optax by hand, in the style of Flax's VAE example: one jitted step per batch."""

from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.benchmarks.classical import ClassicalVAE, classical_loss
from experiments.benchmarks.suite import Burst, Sizes, levels
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params


class DenseVAE(nn.Module):
    """Dense layers on a batch of images `[batch, pixels]`, with a key.

    Returns the logits of p(x|z), z, the noise that z was made of, and the mean and the log-variance
    of q(z|x). With several particles z and noise are `[batch, particles, latent]`.
    """

    sizes: Sizes

    @nn.compact
    def __call__(self, x: Array, key: Key) -> tuple[Array, ...]:
        sizes = self.sizes
        activation: Any = getattr(nn, sizes.activation)
        h = x
        for width in sizes.hidden:
            h = activation(nn.Dense(width)(h))
        loc, log_var = nn.Dense(sizes.latent)(h), nn.Dense(sizes.latent)(h)
        shape: tuple[int, ...] = (len(x), sizes.latent)
        if sizes.particles > 1:
            loc, log_var = loc[:, None], log_var[:, None]
            shape = (len(x), sizes.particles, sizes.latent)
        noise = jax.random.normal(key, shape)
        z = h = loc + jnp.exp(log_var / 2) * noise
        for width in sizes.hidden[::-1]:
            h = activation(nn.Dense(width)(h))
        return nn.Dense(x.shape[1])(h), z, noise, loc, log_var


def dense_loss(net: DenseVAE) -> Loss:
    """Minus the ELBO or the importance-weighted bound, written for the batch."""

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        x_key, z_key = jax.random.split(key)
        x = batch.x / 255
        if net.sizes.pixels == "binary":
            x = (jax.random.uniform(x_key, x.shape) < x).astype(jnp.float32)
        logits, z, noise, loc, log_var = net.apply(params, x, z_key)  # type: ignore[misc]
        if net.sizes.particles == 1:
            distortion = optax.sigmoid_binary_cross_entropy(logits, x).sum(1)
            rate = 0.5 * (loc**2 + jnp.exp(log_var) - 1 - log_var).sum(1)
            return jnp.mean(distortion + rate), {}
        log_px = -optax.sigmoid_binary_cross_entropy(logits, x[:, None]).sum(2)
        log_w = log_px + 0.5 * (noise**2 - z**2 + log_var).sum(2)
        bound = jax.nn.logsumexp(log_w, axis=1) - jnp.log(log_w.shape[1])
        return -jnp.mean(bound), {}

    return loss


def build(workload: str, variant: str, sizes: Sizes) -> Burst:
    """One jitted step per batch. The step gathers its batch from grey levels on the device.

    Of all losses only the last is fetched.
    """
    grey, key = levels(sizes), jax.random.key(0)
    init_key, run_key = jax.random.split(key)
    net: Any
    if sizes.network == "mlp":
        images, net = jnp.asarray(grey.reshape(sizes.images, -1)), DenseVAE(sizes)
        loss = dense_loss(net)
    else:
        images, net = jnp.asarray(grey), ClassicalVAE(sizes.latent)
        loss = classical_loss(net)
    began = perf_counter()
    params = jax.block_until_ready(jax.jit(net.init)(init_key, images[:1] / 255, jax.random.key(1)))
    init_seconds, adam = perf_counter() - began, optax.adam(1e-3)

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, key: Key, images: Array, chosen: Array) -> tuple[Any, Array]:
        params, opt_state = state
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, _), grads = gradient(params, key, Batch(images[chosen]), 0)
        updates, opt_state = adam.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    state = (params, adam.init(params))
    rng, chosen = np.random.default_rng(0), jnp.arange(sizes.batch)
    began = perf_counter()
    program = train_step.lower(state, run_key, images, chosen).compile()
    facts = {
        "init_seconds": init_seconds,
        "compile_seconds": perf_counter() - began,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }
    split, orders = jax.jit(jax.random.split), _orders(rng, sizes)

    def run() -> float:
        nonlocal state, run_key
        for _ in range(sizes.steps):
            run_key, step_key = split(run_key)
            state, value = program(state, step_key, images, next(orders))
        return float(value)

    return Burst(run, sizes.steps * sizes.batch, facts)


def _orders(rng: np.random.Generator, sizes: Sizes) -> Iterator[np.ndarray]:
    """The indices of each batch, in a new random order every epoch."""
    while True:
        order = rng.permutation(sizes.images)
        for i in range(sizes.images // sizes.batch):
            yield order[i * sizes.batch : (i + 1) * sizes.batch].astype(np.int32)
