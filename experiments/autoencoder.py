"""Autoencoders forced by the size of their code: linear (= PCA), deep, convolutional, tied.

    python -m experiments.autoencoder [preset] --dataset NAME|tfds:NAME|FILE.npz --epochs N --seed S

Hinton and Salakhutdinov, 2006; Baldi and Hornik, 1989 (the linear one). Errors are squared errors
summed over the pixels of an image, white = 1, beside those of PCA with as many components.
`--seeds N` and `--sweep learning_rate=...` train many at once. Expected numbers and wall times:
experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import linen as nn

from experiments import common
from experiments.common import FEW_IMAGES, Row, Trained, Trial, figures, measures
from vaejax import autoencoders, data, evaluate, heads, networks
from vaejax.errors import wrong
from vaejax.model import Model, autoencoder, tied
from vaejax.types import Batch, Params


@dataclass(frozen=True)
class Config(common.Splits, common.SweepOptions):
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
    if config.tie and config.network == "conv":
        raise wrong("autoencoder: --tie", "--network conv", "dense layers", "leave one out")
    if config.network == "conv":
        encoder: list[Any] = [networks.ConvEncoder(config.hidden)]
        decoder: list[Any] = [networks.ConvDecoder(shape, (*config.hidden[::-1], 16))]
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


def trial(config: Config, images: tuple[Batch, Batch]) -> Trial:
    """The autoencoder, ready to be trained."""
    init_key, fit_key, _ = common.keys(config, 3)
    x, test = (part.x for part in images)
    model = build(config, x.shape[1:])
    loss, adam = autoencoders.reconstruction(model), common.falling_adam(config, len(x))

    def start() -> Params:
        return model.init(init_key, jnp.asarray(common.scaled(images[0])[0]))

    return Trial(model, start, loss, adam, x, fit_key, data.scale, test=test)


def measure(config: Config, images: tuple[Batch, Batch], one: Trained) -> tuple[Row, Any]:
    """The squared error beside PCA's, and what a probe and neighbours find in the codes."""
    x, x_test = (common.scaled(part) for part in images)
    flat, flat_test = (part.reshape(len(part), -1) for part in (x, x_test))
    axes, mean = measures.principal_axes(flat, config.latent)
    unused = jax.random.key(0)  # evaluation draws nothing here
    encode = partial(evaluate.codes, one.model, one.params)
    errors = evaluate.squared_error(one.model, one.params, unused, x_test)
    numbers: Row = {
        "test_squared_error": float(errors.mean()),
        "pca_squared_error": measures.principal_error(flat_test, axes, mean),
        "latent": config.latent,
    }
    columns = None
    if config.network == "linear":  # the span of the decoder's columns is that of PCA's axes
        (kernel,) = networks.kernels(one.params["encoder" if config.tie else "decoder"]).values()
        columns = np.asarray(kernel if config.tie else kernel.T, np.float64)
        numbers["principal_angle_rad"] = float(scipy.linalg.subspace_angles(columns, axes.T).max())
    labels, test_labels = (part.y for part in images)
    if isinstance(test_labels, np.ndarray):
        some = slice(config.probe_images)
        codes, test_codes = (encode(jax.random.clone(unused), part) for part in (x[some], x_test))
        found = measures.probed(codes, labels[some], test_codes, test_labels)
        numbers["probe_accuracy"], numbers["retrieval_accuracy"] = found
    return numbers, (columns, axes)


def draw(config: Config, images: tuple[Batch, Batch], one: Trained, bases: Any) -> Row:
    """What the autoencoder makes of images and codes; of a linear one its columns beside PCA's."""
    test = images[1]
    if not common.drawable(test.x):
        return {}
    columns, axes = bases
    drawn = {} if columns is None else figures.filters(columns, axes, test.x.shape[1:])
    key = common.keys(config, 3)[2]
    return drawn | figures.autoencoder(one.model, one.params, key, common.scaled(test), test.y)


load = partial(common.both_splits, recipe="autoencoder", bounded=True)
NOTE = "squared error summed over pixels, white = 1, per test image"
SMOKE = {"epochs": 2, "batch_size": 16, "latent": 4, "probe_images": 64, **FEW_IMAGES}
LABELS = common.LABELS | {
    "test_squared_error": NOTE,
    "probe_accuracy": "share that a probe gets right",
}
RECIPE = common.Recipe(
    "autoencoder", load, trial, measure, draw, NOTE, SMOKE, swept={"learning_rate"}, labels=LABELS
)


main = partial(common.main, RECIPE)
"""Train, compare with PCA, and draw; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
