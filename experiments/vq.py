"""Vector-quantised autoencoder, sampled through a PixelCNN over its codes (arXiv:1711.00937).

    python -m experiments.vq [preset] --dataset NAME|tfds:NAME|FILE.npz --entries K --seed S

There are two stages (van den Oord et al., 2017). A convolutional autoencoder has a map of indices
as its code, into a codebook of K entries that moving averages learn. Then a gated PixelCNN learns
p(code). Together they bound log p(x) of the binarised images: -log p(x) <= -log p(code) -
log p(x|code). There is no `--seeds`: the second stage trains on the codes of the first. Expected
numbers and wall times: experiments/README.md. All figures in nats per image.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.common import FEW_IMAGES, codebook
from vaejax import data, evaluate, objectives, quantized
from vaejax.errors import wrong
from vaejax.model import Model
from vaejax.train import Fitted
from vaejax.types import Batch


@dataclass(frozen=True)
class Config(common.Splits, common.Options):
    features: tuple[int, ...] = (32,)  # channels of the encoder's layers, each of which halves
    size: int = 8  # numbers in an entry of the codebook
    entries: int = 32  # of the codebook
    beta: float = 0.25  # weight of the commitment
    gamma: float = 0.99  # decay of the codebook's moving average
    revive: bool = True  # give dead entries a new start after an epoch, in the first two thirds
    epochs: int = 60  # passes over the training images, the step size falling along a cosine
    prior_features: int = 32  # channels of the PixelCNN over the codes
    prior_layers: int = 4  # its layers
    prior_epochs: int = 30  # passes over the training images' codes
    batch_size: int = 32  # images per step, in either stage
    learning_rate: float = 3e-3  # Adam's step size at the start, in either stage


DIGITS = Config()
MNIST = replace(DIGITS, dataset="mnist", features=(16, 32, 64), entries=128)
PRESETS = {
    "digits": DIGITS,
    "mnist": replace(MNIST, epochs=8, prior_epochs=5, batch_size=128),
}


SMALLEST = {"features": (4,), "entries": 8, "size": 2, "prior_features": 4, "prior_layers": 1}
SMOKE = {"epochs": 2, "prior_epochs": 1, "batch_size": 16, **SMALLEST, **FEW_IMAGES}


def load(config: Config) -> tuple[Batch, Batch]:
    """Images, checked."""
    images, test = common.both_splits(config, "vq", binarised=True)
    if images.x.ndim != 4:
        got = f"examples {images.x.shape[1:]}"
        raise wrong("vq: --dataset", got, "images", "give [n, h, w, c]")
    return images, test


def falling(config: Config, epochs: int, images: Any) -> optax.GradientTransformation:
    """Adam, its step size falling along a cosine over the epochs of a stage."""
    return common.falling_adam(replace(config, epochs=epochs), len(images))


def first_stage(config: Config, folder: Path, model: Model, images: Any) -> Fitted:
    """The autoencoder and its codebook, trained."""
    keys = common.keys(config, 9)
    params = jax.jit(model.init)(keys[0], data.scale(keys[1], images[0]))
    params = quantized.from_data(model, params, keys[2], images, transform=data.binarize)
    optimizer = optax.partition(
        {"model": falling(config, config.epochs, images), "codebook": optax.sgd(1 - config.gamma)},
        {"model": "model", "codebook": "codebook"},
    )
    return common.fit(
        config,
        folder,
        quantized.vq_vae(model, beta=config.beta),
        optimizer,
        params,
        images,
        key=keys[3],
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=data.binarize,
        hook=codebook.reviving(config, model, images),
    )


def main(config: Config) -> dict[str, Any]:
    """Train both stages, measure and draw; returns what summary.json holds."""
    config = common.shrunk(config, **SMOKE)
    images, test = (part.x for part in load(config))
    keys = list(common.keys(config, 9))
    model, network = codebook.networks_of(config, images.shape[1:], common.mean_of(images))
    folder = common.open_folder(config, name=f"vq-{Path(config.dataset).stem}")
    fitted = first_stage(config, folder / "autoencoder", model, images)
    maps = quantized.indices(model, fitted.params, keys[4], images, transform=data.binarize)
    # The second stage: one binarisation of each image, coded once, by an encoder that is done.
    priors = common.fit(
        config,
        folder / "prior",
        objectives.maximum_likelihood(network),
        falling(config, config.prior_epochs, images),
        jax.jit(network.init)(keys[5]),
        maps,
        key=keys[6],
        epochs=config.prior_epochs,
        batch_size=config.batch_size,
    )

    full, params = quantized.with_prior(model, network), {**fitted.params, "prior": priors.params}
    measured = evaluate.elbo_terms(full, params, keys[7], test, transform=data.binarize)
    again = jax.random.clone(keys[7])
    found = quantized.indices(model, params, again, test, transform=data.binarize)
    used, places = quantized.usage(found, config.entries), np.prod(found.shape[1:])
    summary = {
        "test_perplexity": float(quantized.perplexity(jnp.asarray(used))),
        "entries": config.entries,
        "dead_entries": int(np.sum(quantized.usage(maps, config.entries) == 0)),
        "codes_per_image": int(places),
        "test_distortion_nats": float(measured["distortion"].mean()),
        "test_code_nats": float(measured["rate"].mean()),
        "test_uniform_code_nats": float(places * np.log(config.entries)),
        "test_nll_bound_nats": -float(measured["elbo"].mean()),
        "test_commitment": float(fitted.history["commitment"][-1]),
        "seconds_autoencoder": common.seconds(folder / "autoencoder"),
        "seconds_prior": common.seconds(folder / "prior"),
    }
    drawn = codebook.pictures(full, params, keys[8], test, used, fitted.history)
    note = "nats per binarised test image; entries: dead on training images"
    return common.finish(folder, summary, drawn, note)


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
