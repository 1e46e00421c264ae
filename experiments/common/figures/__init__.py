"""The usual pictures of a trained VAE or autoencoder, by name."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.recipe import Trained
from vaejax import diagnostics, plot
from vaejax.model import Model, generate, interpolate, reconstruct
from vaejax.types import Key, Params

__all__ = ["autoencoder", "clouds", "filters", "samples", "train_and_test", "units", "vae"]

SAMPLES = "{}: samples z ~ p(z), mean of p(x|z)"


def vae(model: Model, params: Params, key: Key, x: Any, y: Any = ()) -> dict[str, Any]:
    """Reconstructions, samples, interpolations, traversals and the latent space.

    `x` `[n, height, width, channels]` as the model sees it; `y` `[n]` labels or `()`. Decoded
    pictures show the mean of p(x|z). Latents are in order of their rate, where that is a sum over
    them, and else of the variance of their mean code over x: the ones that the model uses first.
    """
    x = np.asarray(x)
    codes = np.asarray(_mapped(lambda params, one: model.encode(params, one).mean)(params, x))
    decode = partial(_mapped(lambda params, z: model.decode(params, z).mean), params)
    samples = _mapped(partial(generate, model))(params, jax.random.split(key, 64))
    pairs = min(6, len(x) // 2)
    between = jax.jit(jax.vmap(partial(interpolate, model), (None, 0, 0)))
    paths = between(params, x[:pairs], x[pairs : 2 * pairs])
    drawn = {
        "reconstructions": plot.reconstructions(
            x[:10], _mapped(partial(reconstruct, model))(params, x[:10])
        ),
        "samples": plot.images(samples.mean, title="samples z ~ p(z), mean of p(x|z)"),
    }
    if pairs:
        ends = x[:pairs], x[pairs : 2 * pairs]
        drawn["interpolations"] = plot.interpolations(paths, originals=ends)
    if min(codes.shape) > 1:
        labels = None if isinstance(y, tuple) else y[:5000]
        drawn["latent"] = plot.latent(codes[:5000], labels)
    rates = _rates(model, params, x)
    used = np.argsort(-(np.var(codes, axis=0) if rates is None else rates), kind="stable")[:8]
    values = np.linspace(-3, 3, 9, dtype=codes.dtype)
    grid = values[None, :, None] * np.eye(codes.shape[1], dtype=codes.dtype)[used][:, None]
    means = np.asarray(decode(grid.reshape(-1, codes.shape[1])))
    drawn["traversals"] = plot.traversals(
        means.reshape(*grid.shape[:2], *means.shape[1:]),
        values=values,
        labels=[f"z{i + 1}" for i in used],
        rates=None if rates is None else rates[used],
    )
    if codes.shape[1] == 2:
        side = 20
        drawn["manifold"] = plot.manifold(decode(jnp.asarray(plot.manifold_grid(side))), side)
    return drawn


def _rates(model: Model, params: Params, x: Any) -> np.ndarray | None:
    """The KL of each latent dimension, nats; None where it is no sum over them."""
    try:
        return diagnostics.rate_per_dimension(model, params, jax.random.key(0), x)
    except (TypeError, ValueError):
        return None


def _mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(params, one)`, compiled for many."""
    return jax.jit(jax.vmap(function, (None, 0)))


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
        ends = np.clip(x[:pairs], 0, 1), np.clip(x[pairs : 2 * pairs], 0, 1)
        drawn["interpolations"] = plot.interpolations(jnp.clip(paths, 0, 1), originals=ends)
    if min(codes.shape) > 1:
        labels = None if isinstance(y, tuple) else y[:5000]
        drawn["latent"] = plot.latent(codes[:5000], labels)
    return drawn


def samples(trained: Mapping[str, Trained], key: Key, title: str = SAMPLES) -> dict[str, Any]:
    """Images of 64 draws from the prior of every model, all from one key, by `samples_NAME`.

    `title`: with `{}` for the name of the model.
    """
    drawn = {}
    for name, one in trained.items():
        many = jax.jit(jax.vmap(partial(generate, one.model, one.params)))
        found = many(jax.random.split(jax.random.clone(key), 64))
        drawn[f"samples_{name}"] = plot.images(found.mean, title=title.format(name))
    return drawn


def train_and_test(history: Mapping[str, Any], names: Sequence[str], ylabel: str) -> Any:
    """Metrics over the epochs, on the training and on the test examples."""
    curves = {
        f"{name}, {part}": history[prefix + name]
        for name in names
        for part, prefix in (("train", ""), ("test", "eval/"))
    }
    return plot.curves(curves, ylabel=ylabel)


def filters(columns: np.ndarray, axes: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    """A linear decoder's `columns` `[d, count]` over PCA's `axes` `[count, d]`: one subspace."""
    count = min(16, len(axes))
    both = np.concatenate([columns.T[:count], axes[:count]]).reshape(-1, *shape)
    labels, title = ["decoder's columns", "PCA's axes"], "two bases of one subspace"
    return {"filters": plot.filters(both, columns=count, title=title, labels=labels)}


def units(variances: Mapping[str, np.ndarray]) -> Any:
    """A_u of every unit, largest first, by name; at least 1e-5."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    labels = {"xlabel": "unit, by its activity", "ylabel": "A_u = Var_x(E_q[u|x])"}
    axis = figure.add_subplot(yscale="log", title="activity of each latent unit", **labels)
    for name, values in variances.items():
        shown = np.maximum(np.sort(values)[::-1], 1e-5)
        axis.plot(np.arange(1, len(shown) + 1), shown, marker=".", label=name)
    axis.axhline(1e-2, color="grey", linestyle="--", linewidth=1, label="active: above 0.01")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def clouds(models: dict[str, tuple[Model, Params]], key: Key, x: Any) -> Any:
    """Draws of q(z|x) over the density p(z|x), for each model (rows) and image (columns)."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(2.1 * len(x), 2.2 * len(models)), layout="constrained")
    axes = drawn.subplots(len(models), len(x), squeeze=False)
    side = jnp.linspace(-4.0, 4.0, 161)
    grid = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    for row, (name, (model, params)) in zip(axes, models.items(), strict=True):

        def joint(z: Any, one: Any, model: Model = model, params: Params = params) -> Any:
            return model.decode(params, z).log_prob(one) + model.prior(params).log_prob(z)

        def cloud(one: Any, key: Key, model: Model = model, params: Params = params) -> Any:
            return jax.vmap(model.encode(params, one).sample)(jax.random.split(key, 400))

        density = jax.jit(jax.vmap(jax.vmap(joint, (0, None)), (None, 0)))(grid, x)
        z = jax.jit(jax.vmap(cloud))(x, jax.random.split(jax.random.clone(key), len(x)))
        density = np.asarray(jax.nn.softmax(density, axis=1)).reshape(-1, 161, 161)
        for i, axis in enumerate(row):
            axis.contourf(side, side, density[i] / density[i].max(), levels=6, cmap="Greys")
            axis.scatter(z[i, :, 0], z[i, :, 1], s=2, color="tab:red", alpha=0.4, linewidths=0)
            centre, wide = np.median(z[i], axis=0), 1.3 * max(np.ptp(z[i], axis=0).max() / 2, 0.2)
            axis.set(xlim=centre[0] + [-wide, wide], ylim=centre[1] + np.array([-wide, wide]))
            axis.set_aspect("equal")
            axis.tick_params(labelsize=6)
            axis.set_xlabel("z1" if row is axes[-1] else "", fontsize=8)
        row[0].set_ylabel(f"{name}\nz2", fontsize=9)
    drawn.suptitle("draws of q(z|x) (red) over p(z|x) (grey) of the same model; test images")
    return drawn
