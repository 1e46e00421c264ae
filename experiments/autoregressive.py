"""Autoregressive models of images: MADE (Germain et al., 2015, arXiv:1502.03509) and the gated
PixelCNN (van den Oord et al., 2016, arXiv:1606.05328).

    python -m experiments.autoregressive [preset] --dataset NAME|FILE.npz --order columns --seed S

The pixels are made discrete and modelled by the chain rule, one after the other. Samples are drawn
pixel by pixel, and half an image is completed. With `--seeds N` and `--sweep learning_rate=...` all
runs train at once. Expected numbers and wall times: experiments/README.md. All figures in nats per
image, and exact.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import optax

from experiments import common
from experiments.common import FEW_IMAGES, Trained, Trial, pixels
from vaejax import evaluate, objectives
from vaejax.errors import wrong
from vaejax.types import Batch, Key


@dataclass(frozen=True)
class Config(common.Splits, common.SweepOptions):
    levels: int = 2  # grey levels: 2 binarises anew at each step, more are rounded down to
    network: Literal["made", "pixelcnn"] = "made"  # dense layers; or convolutions
    order: Literal["raster", "columns", "random"] = "raster"  # of the pixels in the chain rule
    hidden: tuple[int, ...] = (300,)  # made: units of the hidden layers
    features: int = 16  # pixelcnn: channels
    layers: int = 4  # pixelcnn: gated layers
    kernel_size: int = 3  # pixelcnn: of every layer but the first
    first_kernel: int = 5  # pixelcnn: of the first
    epochs: int = 100  # passes over the training images
    batch_size: int = 50  # images per step
    learning_rate: float = 3e-3  # Adam's largest step size, which falls to 0 along a cosine
    evaluate_every: int = 5  # epochs between evaluations on the test split


DIGITS = Config()
MNIST = replace(
    DIGITS, dataset="mnist", hidden=(500,), epochs=50, batch_size=100, learning_rate=2e-3
)
PIXELCNN: dict[str, Any] = {"network": "pixelcnn", "first_kernel": 11, "learning_rate": 3e-3}
PRESETS = {
    "digits": DIGITS,
    "digits_pixelcnn": replace(DIGITS, network="pixelcnn", epochs=50),
    "digits_levels": replace(DIGITS, levels=17, network="pixelcnn", epochs=25),
    "mnist": MNIST,
    "mnist_pixelcnn": replace(MNIST, **PIXELCNN, epochs=3, batch_size=16, evaluate_every=1),
}


def keys_of(config: Config) -> Key:
    """Keys of the start, the training, the numbers, the images of both splits, the figures."""
    return jax.random.split(jax.random.key(config.seed), 6)


def load(config: Config) -> tuple[Batch, Batch]:
    """Grey images."""
    if config.levels < 2:
        raise wrong("autoregressive: --levels", config.levels, "2 or more", "2 binarises")
    images, test = common.both_splits(config, "autoregressive")
    if images.x.ndim != 4 or images.x.shape[-1] != 1:
        fix = "give images [n, height, width, 1]"
        raise wrong("autoregressive: --dataset", images.x.shape, "grey images", fix)
    return images, test


def build(config: Config, images: tuple[Batch, Batch]) -> Trial:
    """The network, ready to be trained by maximum likelihood."""
    x, few = images[0].x, images[1].x[:1000]
    network, transform = pixels.network_for(config, x), partial(pixels.discretise, config.levels)
    keys, steps = keys_of(config), len(x) // config.batch_size
    warmup = min(200, steps)
    rising = optax.linear_schedule(0.0, config.learning_rate, warmup)
    falling = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps - warmup)
    rate = optax.join_schedules([rising, falling], [warmup])
    log_prob = partial(evaluate.log_prob, network, transform=transform, batch_size=20)
    return Trial(
        network,
        partial(jax.jit(network.init), keys[0]),
        objectives.maximum_likelihood(network),
        optax.adam(rate),
        x,
        keys[1],
        transform,
        evaluate=lambda params, key: {"loss": -log_prob(params, key, few).mean()},
        checkpoint_every=config.evaluate_every,
    )


def measure(config: Config, images: tuple[Batch, Batch], one: Trained) -> tuple[Any, Any]:
    """-log p(x) of the test images, beside independent pixels and the least that is possible."""
    transform, keys, test = partial(pixels.discretise, config.levels), keys_of(config), images[1].x
    log_px = evaluate.log_prob(
        one.model, one.params, keys[2], test, transform=transform, batch_size=20
    )
    seen = [pixels.seen(config.levels, keys[3 + i], part.x) for i, part in enumerate(images)]
    numbers = {
        "test_nll_nats": (nats := float(-log_px.mean())),
        **common.measures.bits(nats, test),
        "test_nll_standard_error": float(log_px.std() / math.sqrt(len(test))),
        "train_nll_nats": -float(one.history["log_px"][-1]),
        "independent_pixels_nats": pixels.independent(config.levels, *seen),
        "test_images": len(test),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(one.params)),
    }
    if config.levels == 2:
        numbers["floor_nats"] = pixels.entropy_of_binarisation(test)
    return numbers, (numbers, seen[1][:8])


def draw(config: Config, images: Any, one: Trained, kept: Any) -> dict[str, Any]:
    """Samples, expected pixels and completions; -log p(x) in training."""
    numbers, seen = kept
    drawn = pixels.pictures(one.model, one.params, keys_of(config)[5], seen, config.levels)
    return {**drawn, "curves": pixels.course(config, one.history, numbers)}


SMALLEST = {"hidden": (20,), "features": 4, "layers": 2}
RECIPE = common.Recipe(
    "autoregressive",
    load,
    build,
    measure,
    draw,
    "nats per test image, exact; images of discrete pixels",
    smoke={"epochs": 2, "batch_size": 16, **SMALLEST, **FEW_IMAGES},
    swept={"learning_rate"},
    labels={"test_nll_nats": "-log p(x), nats per test image"},
)


main = partial(common.main, RECIPE)
"""Train, measure and draw; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
