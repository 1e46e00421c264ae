"""Models that are trained on the images of one class, and their anomaly scores."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.common.image_vae import XAVIER
from experiments.common.training import whole_run
from vaejax import anomaly, heads, networks, objectives
from vaejax.distributions import Normal
from vaejax.model import Model, autoencoder, draw

__all__ = ["blurred", "build", "corrupted_draw", "pca_error", "scorer", "trainer"]


def build(hidden: tuple[int, ...], code: Any, shape: Any, scale: float, prior: Any = None) -> Model:
    """An autoencoder of dense layers with a Normal likelihood; linear where none is hidden."""
    layers = partial(networks.MLP, kernel_init=XAVIER)
    decoder = nn.Sequential([layers(hidden[::-1]), heads.FixedNormal(shape, scale)])
    return autoencoder(nn.Sequential([layers(hidden), code]), decoder, prior)


def trainer(config: Any, loss: Any, init: Any, rate: float) -> Any:
    """`(key, x) -> params`, compiled once for all classes."""
    run = whole_run("anomaly", loss, rate, config.steps, config.batch_size)

    def fit(key: Any, x: Any) -> Any:
        init_key, train_key = jax.random.split(key)
        return run(train_key, init(init_key, x[0]), x)

    return fit


def corrupted_draw(noise: float) -> Any:
    """A Draw of x with z from x + noise * eps: a denoising autoencoder (Vincent et al., 2008)."""

    def from_corrupted(model: Model, params: Any, key: Any, x: Any, c: Any) -> Any:
        noise_key, draw_key = jax.random.split(key)
        given = x + noise * jax.random.normal(noise_key, x.shape)
        return draw(model, params, draw_key, x, c, given=given)

    return from_corrupted


def pca_error(components: int, x: Any, x_test: Any) -> np.ndarray:
    """Squared error of the reconstruction from the first principal components, `[n]`."""
    from sklearn.decomposition import PCA

    x, x_test = (images.reshape(len(images), -1) for images in (x, x_test))
    pca = PCA(components, svd_solver="full").fit(x)
    return np.sum((x_test - pca.inverse_transform(pca.transform(x_test))) ** 2, axis=1)


def blurred(x: np.ndarray, sd: float) -> np.ndarray:
    """Images `[n, height, width, channels]` under a Gaussian blur; anything as it is at 0."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (0, sd, sd, 0)) if sd else x


def scorer(config: Any, shape: Any, size: int, x_test: Any) -> Any:
    """What `anomaly.one_class` calls for each class; `size`: images to which a class is cycled."""
    squared = 0.5**0.5  # the scale under which -log p is the squared error
    linear = build((), heads.Code(config.components), shape, squared)
    dae = build(config.hidden, heads.Code(config.code), shape, squared)
    prior = Normal(jnp.zeros(config.latent), jnp.ones(config.latent))
    model = build(config.hidden, heads.Normal(config.latent), shape, config.scale, prior)
    # A deterministic autoencoder has no rate: its loss is the distortion alone.
    error = partial(objectives.elbo, rate=lambda d: jnp.zeros(()))
    denoising = error(dae, draw=corrupted_draw(config.noise))
    fit_linear = trainer(config, error(linear), linear.init, config.linear_rate)
    fit_dae = trainer(config, denoising, dae.init, config.learning_rate)
    fit_vae = trainer(config, objectives.elbo(model), model.init, config.learning_rate)
    smooth_test, draws = blurred(x_test, config.blur), jax.random.key(config.seed)

    def fit_and_score(label: int, x: Any, x_test: Any) -> dict[str, Any]:
        smooth = blurred(x, config.blur)
        # Of one size for every class, cycled where there are fewer: compiled once.
        cycled, smooth_cycled = (np.resize(i, (size, *shape)) for i in (x, smooth))
        keys = jax.random.split(jax.random.fold_in(draws, label), 6)
        found = {
            "pca": pca_error(config.components, x, x_test),
            "linear_ae": anomaly.reconstruction_error(
                linear, fit_linear(keys[0], cycled), keys[1], x_test
            ),
            "pca_blurred": pca_error(config.components, smooth, smooth_test),
            "dae_reconstruction": anomaly.reconstruction_error(
                dae, fit_dae(keys[2], smooth_cycled), keys[3], smooth_test
            ),
        }
        background = Normal(smooth.mean(axis=0), np.maximum(smooth.std(axis=0), config.scale))
        by_vae = anomaly.scores(
            model,
            fit_vae(keys[4], smooth_cycled),
            keys[5],
            smooth_test,
            train=smooth_cycled[:1000],
            background=anomaly.independent_pixels(background),
            samples=config.samples,
            particles=config.particles,
        )
        return found | {f"vae_{name}": score for name, score in by_vae.items()}

    return fit_and_score
