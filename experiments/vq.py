"""Vector-quantised autoencoder, sampled through a PixelCNN over its codes (arXiv:1711.00937).

    python -m experiments.vq [preset] --dataset NAME|tfds:NAME|FILE.npz --entries K --seed S

Two stages (van den Oord et al., 2017): a convolutional autoencoder whose code is a map of indices
into a codebook of K entries, learned by moving averages; then a gated PixelCNN p(code). Together
they bound log p(x) of the binarised images: -log p(x) <= -log p(code) - log p(x|code). Expected
numbers and wall times: experiments/README.md. All figures in nats per image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import common
from vaejax import (
    autoregressive,
    causal,
    data,
    evaluate,
    heads,
    networks,
    objectives,
    plot,
    quantized,
    train,
)
from vaejax.errors import wrong
from vaejax.model import Model, autoencoder, generate, reconstruct


@dataclass(frozen=True)
class Config(common.Options):
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
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
PRESETS = {
    "digits": DIGITS,
    "mnist": replace(
        DIGITS,
        dataset="mnist",
        features=(16, 32, 64),
        entries=128,
        epochs=8,
        prior_epochs=5,
        batch_size=128,
    ),
}


class Encoder(nn.Module):
    """Strided convolutions: an image to a map of features, halved by each layer, rounding up."""

    features: Sequence[int]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in self.features:
            x = nn.relu(networks.Conv(width, stride=2)(x))
        return x


class Decoder(nn.Module):
    """The way back, from a map of codes to one of the image's height and width, by sub-pixels."""

    shape: tuple[int, ...]
    features: Sequence[int]

    @nn.compact
    def __call__(self, z: Any) -> Any:
        sizes = [self.shape[:2]]
        for _ in self.features[1:]:
            sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
        h = nn.relu(networks.Conv(self.features[-1])(z))
        for (height, width), channels in zip(sizes[::-1], (*self.features[-2::-1], 8), strict=True):
            h = networks.depth_to_space(networks.Conv(4 * channels)(h))
            h = nn.relu(h[:height, :width])
        return h


def build(config: Config, shape: tuple[int, ...], mean: Any) -> tuple[Model, Any]:
    """The autoencoder for images of `shape`, and the network of the prior over its codes."""
    places = tuple(-(-n // 2 ** len(config.features)) for n in shape[:2])
    pixels = heads.Bernoulli(shape, bias_init=heads.logit_of(mean.mean(axis=(0, 1))))
    plain = autoencoder(
        nn.Sequential([Encoder(config.features), heads.Code((*places, config.size))]),
        nn.Sequential([Decoder(shape, config.features), pixels]),
    )
    net = causal.GatedPixelCNN(
        places, config.prior_features, config.prior_layers, first_kernel=5, classes=config.entries
    )
    prior = autoregressive.Causal(net, places, jnp.int32)
    return quantized.quantize(plain, entries=config.entries), prior


def main(config: Config) -> dict[str, Any]:
    """Train both stages, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            prior_epochs=1,
            batch_size=16,
            features=(4,),
            entries=8,
            size=2,
            prior_features=4,
            prior_layers=1,
            train_split="train[:64]",
            test_split="test[:32]",
        )
    images = data.load(config.dataset, config.train_split).x
    test = data.load(config.dataset, config.test_split).x
    if images.ndim != 4:
        raise wrong("vq: --dataset", f"examples {images.shape[1:]}", "images", "give [n, h, w, c]")
    keys = list(jax.random.split(jax.random.key(config.seed), 9))
    train.shuffled(len(images), config.batch_size)  # refuses a batch larger than the data
    steps = len(images) // config.batch_size
    mean = images.mean(axis=0) / (255 if images.dtype == np.uint8 else 1)
    model, network = build(config, images.shape[1:], mean)
    params = jax.jit(model.init)(keys[0], data.scale(keys[1], images[0]))
    params = quantized.from_data(model, params, keys[2], images, transform=data.binarize)
    folder = common.open_folder(config, name=f"vq-{Path(config.dataset).stem}")

    def adam(epochs: int) -> Any:
        return optax.adam(optax.cosine_decay_schedule(config.learning_rate, epochs * steps))

    optimizer = optax.partition(
        {"model": adam(config.epochs), "codebook": optax.sgd(1 - config.gamma)},
        {"model": "model", "codebook": "codebook"},
    )
    loss = quantized.vq_vae(model, beta=config.beta)
    fitted = common.fit(
        config,
        folder / "autoencoder",
        loss,
        optimizer,
        params,
        images,
        key=keys[3],
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=data.binarize,
        hook=reviving(config, model, images, steps),
    )
    maps = quantized.indices(model, fitted.params, keys[4], images, transform=data.binarize)
    # The second stage: one binarisation of each image, coded once, by an encoder that is done.
    start = jax.jit(network.init)(keys[5])
    priors = common.fit(
        config,
        folder / "prior",
        objectives.maximum_likelihood(network),
        adam(config.prior_epochs),
        start,
        maps,
        key=keys[6],
        epochs=config.prior_epochs,
        batch_size=config.batch_size,
    )

    full = quantized.with_prior(model, network)
    params = {**fitted.params, "prior": priors.params}
    measured = evaluate.elbo_terms(full, params, keys[7], test, transform=data.binarize)
    found = quantized.indices(
        model, params, jax.random.clone(keys[7]), test, transform=data.binarize
    )
    used = quantized.usage(found, config.entries)
    summary = {
        "test_perplexity": float(quantized.perplexity(jnp.asarray(used))),
        "entries": config.entries,
        "dead_entries": int(np.sum(quantized.usage(maps, config.entries) == 0)),
        "codes_per_image": int(np.prod(found.shape[1:])),
        "test_distortion_nats": float(measured["distortion"].mean()),
        "test_code_nats": float(measured["rate"].mean()),
        "test_uniform_code_nats": float(np.prod(found.shape[1:]) * np.log(config.entries)),
        "test_nll_bound_nats": -float(measured["elbo"].mean()),
        "test_commitment": float(fitted.history["commitment"][-1]),
        "seconds_autoencoder": common.seconds(folder / "autoencoder"),
        "seconds_prior": common.seconds(folder / "prior"),
    }
    common.write_json(folder / "summary.json", summary)
    common.save_figures(folder, figures(full, params, keys[8], test, used, fitted.history))
    common.report(
        folder, summary, "nats per binarised test image; entries: dead on training images"
    )
    return summary


def reviving(config: Config, model: Model, x: Any, steps: int) -> Callable[[Any], Any] | None:
    """A hook that revives dead entries in the first two thirds of the epochs, or None."""
    if not config.revive:
        return None
    hook = quantized.revive(model, x, transform=data.binarize)
    last = 2 * config.epochs * steps // 3
    return lambda state: hook(state) if int(state.step) <= last else state


def figures(
    model: Model, params: Any, key: Any, test: Any, used: np.ndarray, history: Any
) -> dict[str, Any]:
    """Reconstructions, samples through the prior, how often each entry is used, perplexity."""
    from matplotlib.figure import Figure

    sample_key, seen_key = jax.random.split(key)
    seen = jax.vmap(data.binarize)(jax.random.split(seen_key, 10), test[:10])
    rebuilt = jax.jit(jax.vmap(partial(reconstruct, model, params)))(seen)
    many = jax.jit(jax.vmap(partial(generate, model, params)))
    samples = many(jax.random.split(sample_key, 64)).mean
    usage = Figure(figsize=(6.0, 3.4), layout="constrained")
    labels = {"xlabel": "entry, by its use", "ylabel": "share of the codes"}
    axis = usage.add_subplot(title="use of the codebook on test images", **labels)
    axis.bar(np.arange(1, len(used) + 1), np.sort(used)[::-1], label="entries")
    axis.axhline(1 / len(used), color="grey", linestyle="--", label="all alike")
    axis.legend(frameon=False)
    curve = {"of a batch": history["perplexity"]}
    drawn = {
        "usage": usage,
        "perplexity": plot.curves(
            curve, ylabel="entries", title="perplexity of the codebook's use"
        ),
    }
    if test.shape[-1] in (1, 3):
        title = "codes drawn from the prior, mean of p(x|z)"
        drawn["reconstructions"] = plot.reconstructions(seen, rebuilt)
        drawn["samples"] = plot.images(samples, title=title)
    return drawn


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
