"""The usual pictures of a trained VAE or autoencoder, by name."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax import plot
from vaejax.model import Model, generate, interpolate, reconstruct
from vaejax.types import Key, Params


def vae(model: Model, params: Params, key: Key, x: Any, y: Any = ()) -> dict[str, Any]:
    """Reconstructions, samples, interpolations, traversals and the latent space.

    `x` `[n, height, width, channels]` as the model sees it; `y` `[n]` labels or `()`. Decoded
    pictures show the mean of p(x|z). Latents are in order of the variance of their mean code over
    x: the ones that the model uses come first.
    """
    codes = jax.jit(jax.vmap(lambda one: model.encode(params, one).mean))(x)
    decode = jax.jit(jax.vmap(lambda z: model.decode(params, z).mean))
    samples = jax.jit(jax.vmap(partial(generate, model, params)))(jax.random.split(key, 64))
    pairs = min(6, len(x) // 2)
    paths = jax.jit(jax.vmap(partial(interpolate, model, params)))(x[:pairs], x[pairs : 2 * pairs])
    drawn = {
        "reconstructions": plot.reconstructions(
            x[:10], jax.jit(jax.vmap(partial(reconstruct, model, params)))(x[:10])
        ),
        "samples": plot.images(samples.mean, title="samples z ~ p(z), mean of p(x|z)"),
    }
    if pairs:
        drawn["interpolations"] = plot.interpolations(paths)
    if codes.shape[1] > 1:
        labels = None if isinstance(y, tuple) else y[:5000]
        drawn["latent"] = plot.latent(codes[:5000], labels)
    used = np.argsort(-np.var(np.asarray(codes), axis=0))[:8]
    values = jnp.linspace(-3, 3, 9)
    grid = jnp.stack([jnp.zeros((9, codes.shape[1])).at[:, i].set(values) for i in used])
    drawn["traversals"] = plot.traversals(
        jax.vmap(decode)(grid), values=values, labels=[f"z{i + 1}" for i in used]
    )
    if codes.shape[1] == 2:
        side = 20
        drawn["manifold"] = plot.manifold(decode(jnp.asarray(plot.manifold_grid(side))), side)
    return drawn


def autoencoder(model: Model, params: Params, key: Key, x: Any, y: Any = ()) -> dict[str, Any]:
    """Reconstructions, lines between two images, the latent space, and decoded random codes.

    `x` `[n, height, width, channels]` as the model sees it; `y` `[n]` labels or `()`. The random
    codes are drawn from the Normal with the mean and the covariance of the codes of x: what an
    autoencoder decodes between its codes, nothing in its training says.
    """
    x = jnp.asarray(x)
    codes = jax.jit(jax.vmap(lambda one: model.encode(params, one).mean))(x)
    decode = jax.jit(jax.vmap(lambda z: model.decode(params, z).mean))
    mean, covariance = codes.mean(axis=0), jnp.atleast_2d(jnp.cov(codes, rowvar=False))
    random = jax.random.multivariate_normal(key, mean, covariance, (64,), method="svd")
    pairs = min(6, len(x) // 2)
    paths = jax.jit(jax.vmap(partial(interpolate, model, params)))(x[:pairs], x[pairs : 2 * pairs])
    title = "decoded random codes (Normal with the codes' mean and covariance)"
    drawn = {
        "reconstructions": plot.reconstructions(x[:10], jnp.clip(decode(codes[:10]), 0, 1)),
        "random_codes": plot.images(jnp.clip(decode(random), 0, 1), title=title),
    }
    if pairs:
        drawn["interpolations"] = plot.interpolations(jnp.clip(paths, 0, 1))
    if codes.shape[1] > 1:
        labels = None if isinstance(y, tuple) else y[:5000]
        drawn["latent"] = plot.latent(codes[:5000], labels)
    return drawn


def filters(columns: np.ndarray, axes: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    """A linear decoder's `columns` `[d, count]` over PCA's `axes` `[count, d]`: one subspace."""
    count = min(16, len(axes))
    both = np.concatenate([columns.T[:count], axes[:count]]).reshape(-1, *shape)
    labels, title = ["decoder's columns", "PCA's axes"], "two bases of one subspace"
    return {"filters": plot.filters(both, columns=count, title=title, labels=labels)}
