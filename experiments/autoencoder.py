"""Autoencoders forced by the size of their code: linear (= PCA), deep, convolutional, tied.

    python -m experiments.autoencoder [preset] --dataset NAME|tfds:NAME|FILE.npz --epochs N --seed S

Hinton and Salakhutdinov, 2006; Baldi and Hornik, 1989 (the linear one). Errors are squared errors
summed over the pixels of an image, white = 1, beside those of PCA with as many components.
Expected numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
from flax import linen as nn

from experiments import common
from experiments.common import figures
from vaejax import autoencoders, data, evaluate, heads, networks, representation
from vaejax.errors import wrong
from vaejax.model import Model, autoencoder, tied


@dataclass(frozen=True)
class Config(common.Options):
    # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE of images
    dataset: str = "digits"
    train_split: str = "train"  # images to train on, for instance train or train[:50000]
    test_split: str = "test"  # images to report on
    network: Literal["linear", "mlp", "conv"] = "mlp"  # no hidden layer; dense layers; convolutions
    hidden: tuple[int, ...] = (256, 128)  # units (mlp) or channels (conv) of the encoder's layers
    latent: int = 16  # entries of the code
    # p(x|z): squared error, or the Bernoulli's cross-entropy with grey targets
    likelihood: Literal["squared_error", "bernoulli"] = "squared_error"
    tie: bool = False  # the decoder's weights are the encoder's, transposed (linear and mlp)
    epochs: int = 200  # passes over the training images
    batch_size: int = 64  # images per step
    learning_rate: float = 1e-3  # Adam's step size, which falls to 0 along a cosine
    probe_images: int = 10_000  # training images of the linear probe and of the retrieval
    evaluate_every: int = 5  # epochs between evaluations on the test split
    checkpoint_every: int = 10  # epochs between checkpoints


DIGITS = Config()
DEEP = replace(DIGITS, dataset="mnist", hidden=(512, 256), latent=32, batch_size=128, epochs=50)
LINEAR = replace(DEEP, network="linear", hidden=(), epochs=20, learning_rate=1e-2)
PRESETS = {
    "digits": DIGITS,
    "linear": LINEAR,
    "tied": replace(LINEAR, tie=True),
    "deep": DEEP,
    "deep_bernoulli": replace(DEEP, likelihood="bernoulli"),
    "conv": replace(DEEP, network="conv", hidden=(32, 64), epochs=10),
}


def build(config: Config, shape: tuple[int, ...]) -> Model:
    """The autoencoder for data of `shape`; squared error is a Normal of variance 1/2."""
    encoder: list[Any]
    decoder: list[Any]
    if config.network == "conv":
        encoder = [networks.ConvEncoder(config.hidden)]
        decoder = [networks.ConvDecoder(shape, (*config.hidden[::-1], 16))]
    elif config.network == "mlp":
        layers = partial(networks.MLP, kernel_init=nn.initializers.he_normal())
        encoder, decoder = [layers(config.hidden)], [layers(config.hidden[::-1])]
    else:
        encoder, decoder = [], []
    likelihood = {
        "squared_error": heads.FixedNormal(shape, 0.5**0.5),
        "bernoulli": heads.Bernoulli(shape),
    }[config.likelihood]
    model = autoencoder(
        nn.Sequential([*encoder, heads.Code(config.latent)]),
        nn.Sequential([*decoder, likelihood]),
    )
    return tied(model) if config.tie else model


def main(config: Config) -> dict[str, Any]:
    """Train, compare with PCA, and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            batch_size=16,
            latent=4,
            probe_images=64,
            train_split="train[:64]",
            test_split="test[:32]",
        )
    init_key, fit_key, draw_key = jax.random.split(jax.random.key(config.seed), 3)
    images = data.load(config.dataset, config.train_split)
    test = data.load(config.dataset, config.test_split)
    x, x_test = (np.asarray(data.scale(draw_key, part.x)) for part in (images, test))
    if not 0 <= x.min() <= x.max() <= 1:
        got = f"floats in [{x.min():.4g}, {x.max():.4g}]"
        raise wrong(
            "autoencoder: --dataset", got, "[0, 1]", "store uint8, or divide by the maximum"
        )
    model = build(config, x.shape[1:])
    params = model.init(init_key, jnp.asarray(x[0]))
    folder = common.open_folder(config, name=f"autoencoder-{Path(config.dataset).stem}")
    loss = autoencoders.reconstruction(model)
    steps = config.epochs * (len(x) // config.batch_size)
    fitted = common.fit(
        config,
        folder,
        loss,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps)),
        params,
        images.x,
        key=fit_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=data.scale,
        evaluate=partial(evaluate.mean_loss, loss, data=test.x, transform=data.scale),
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
    )

    unused = jax.random.key(0)  # evaluation draws nothing here
    errors = evaluate.squared_error(model, fitted.params, unused, x_test)
    flat, flat_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    axes, mean = principal_axes(flat, config.latent)
    centred = flat_test - mean
    summary: dict[str, Any] = {
        "test_squared_error": float(errors.mean()),
        "pca_squared_error": float(np.sum((centred - centred @ axes.T @ axes) ** 2) / len(centred)),
        "latent": config.latent,
        "epochs": len(fitted.history["epoch"]),
        "seconds_train": common.seconds(folder),
    }
    drawn = {}
    if config.network == "linear":  # the span of the decoder's columns is that of PCA's axes
        (kernel,) = networks.kernels(fitted.params["encoder" if config.tie else "decoder"]).values()
        columns = np.asarray(kernel if config.tie else kernel.T, np.float64)
        summary["principal_angle_rad"] = float(scipy.linalg.subspace_angles(columns, axes.T).max())
        drawn = figures.filters(columns, axes, x.shape[1:]) if x.ndim == 4 else {}
    if isinstance(test.y, np.ndarray):
        seen, labels = x[: config.probe_images], images.y[: config.probe_images]
        codes, test_codes = (
            evaluate.codes(model, fitted.params, jax.random.clone(unused), part)
            for part in (seen, x_test)
        )
        labelled = codes, labels, test_codes, test.y
        summary["probe_accuracy"] = representation.linear_probe(*labelled)
        summary["retrieval_accuracy"] = representation.nearest_neighbours(*labelled)
    common.write_json(folder / "summary.json", summary)
    if x.ndim == 4 and x.shape[-1] in (1, 3):
        drawn |= figures.autoencoder(model, fitted.params, draw_key, x_test, test.y)
        common.save_figures(folder, drawn)
    common.report(folder, summary, "squared error summed over pixels, white = 1, per test image")
    return summary


def principal_axes(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first principal axes of `x` `[n, d]`, orthonormal rows `[count, d]`, and its mean."""
    from sklearn.decomposition import PCA

    pca = PCA(count, svd_solver="covariance_eigh").fit(x.astype(np.float64))
    return pca.components_, pca.mean_


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
