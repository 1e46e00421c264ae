"""Adversarial autoencoders, VAE-GAN and a plain GAN on images, each with a critic of its own.

    python -m experiments.adversarial [preset] --dataset NAME|FILE.npz --epochs N --seed S

`digits`, `mnist`: an adversarial autoencoder (Makhzani et al., 2015, arXiv:1511.05644) with two
latent dimensions, its prior N(0, I), or with `_mixture` ten Gaussians on a ring; `_vae_gan`: the
critic's features as similarity (Larsen et al., 2016, arXiv:1512.09300); `_gan`: its limit without
an encoder (Goodfellow et al., 2014). An independent classifier says which classes 1000 samples
show. With `--seeds N` and `--sweep NAME=...` (learning_rate, critic_rate, weight, gamma) all runs
train at once. Expected numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from experiments import common
from experiments.common import FEW_IMAGES, Trained, Trial, game
from experiments.common.image_vae import Images
from vaejax import data, evaluate, plot
from vaejax.errors import wrong
from vaejax.model import generate
from vaejax.types import Params


@dataclass(frozen=True)
class Config(common.Splits, common.SweepOptions):
    family: Literal["aae", "vae_gan", "gan"] = "aae"  # what plays against the critic
    prior: Literal["normal", "ring"] = "normal"  # N(0, I); or ten Gaussians on a ring in 2-D
    latent: int = 2  # latent dimensions
    hidden: tuple[int, ...] = (256, 256)  # units of the encoder's layers; the decoder mirrors them
    critic: tuple[int, ...] = (256, 256)  # units (aae) or channels (of images) of the critic's
    weight: float = 2.0  # of the adversarial part beside the distortion in nats (aae)
    gamma: float = 1.0  # of the feature distortion beside the adversarial part (vae_gan)
    epochs: int = 100  # passes over the training images
    batch_size: int = 64  # images per step
    learning_rate: float = 1e-3  # Adam's step size for encoder and decoder, falling to 0
    critic_rate: float = 3e-3  # Adam's step size for the critic, falling to 0
    momentum: float = 0.5  # Adam's b1 for every player
    samples: int = 1000  # drawn for the classifier
    evaluate_every: int = 5  # epochs between evaluations on the test split


DIGITS = Config()
DIGITS_GAN = replace(
    DIGITS, family="gan", latent=10, critic=(16, 32), learning_rate=3e-3, momentum=0.0
)
MNIST = replace(DIGITS, dataset="mnist", hidden=(512, 512), weight=5.0, batch_size=128, epochs=20)
MNIST_GAN = replace(
    DIGITS_GAN, dataset="mnist", latent=16, hidden=(512, 256), epochs=12, critic_rate=1e-3
)
PRESETS = {
    "digits": DIGITS,
    "digits_mixture": replace(DIGITS, prior="ring"),
    "digits_vae_gan": replace(DIGITS_GAN, family="vae_gan"),
    "digits_gan": DIGITS_GAN,
    "mnist": MNIST,
    "mnist_mixture": replace(MNIST, prior="ring"),
    "mnist_vae_gan": replace(MNIST_GAN, family="vae_gan", momentum=0.5),
    "mnist_gan": MNIST_GAN,
}


def load(config: Config) -> Images:
    """Images: a Bernoulli sees binary pixels, a critic of images the grey ones."""
    images, test = common.both_splits(config, "adversarial", binarised=config.family == "aae")
    if config.prior == "ring" and config.latent != 2:
        got, fix = f"{config.latent} latent dimensions", "leave --latent at 2"
        raise wrong("adversarial: --prior ring", got, "2, the plane of the ring", fix)
    transform = data.binarize if config.family == "aae" else data.scale
    first = transform(common.keys(config, 7)[0], images.x[0])
    scaled = images.x[:2000] / (255 if images.x.dtype == np.uint8 else 1)
    return Images(images, test, transform, first, scaled.mean(axis=0))


def build(config: Config, images: Images) -> Trial:
    """All players, ready for the game."""
    x, keys = images.train.x, common.keys(config, 7)
    model, critic, loss = game.game_of(config, x.shape[1:], images.mean)

    def start() -> Params:
        params, judged = model.init(keys[1], images.first), images.first
        if config.family == "aae":
            judged = generate(model, params, keys[2]).z
        return {**params, "critic": jax.jit(critic.init)(keys[3], judged)}

    return Trial(
        model,
        start,
        loss,
        game.adam_for(config, config.epochs * (len(x) // config.batch_size)),
        x,
        keys[4],
        images.transform,
        test=images.test.x,
        checkpoint_every=max(1, config.epochs // 4),
    )


def measure(config: Config, images: Images, one: Trained) -> tuple[dict[str, Any], Any]:
    """The game's numbers on the test images, the classes that samples show, and the codes."""
    model, params, keys, test = one.model, one.params, common.keys(config, 7), images.test
    many = jax.jit(jax.vmap(partial(generate, model, params)))
    samples = many(jax.random.split(keys[5], config.samples))
    seen = np.clip(samples.mean, 0, 1)
    numbers = game.last(one.history)
    if not isinstance(test.y, tuple):
        numbers |= game.judged(config, seen, int(np.max(test.y)) + 1)
    if config.family == "gan":
        return numbers, (seen, None)
    codes_key, *_ = jax.random.split(keys[6], 3)
    z = evaluate.codes(model, params, codes_key, test.x, transform=images.transform)
    log_p = jax.vmap(model.prior(params).log_prob)
    numbers["codes_cross_entropy_nats"] = float(-np.mean(log_p(z)))  # -E log p(z), z ~ q(z)
    numbers["prior_entropy_nats"] = float(-np.mean(log_p(samples.z)))
    return numbers, (seen, z)


def draw(config: Config, images: Images, one: Trained, kept: Any) -> dict[str, Any]:
    """Samples and the game; with an encoder reconstructions, and codes beside the prior."""
    seen, z = kept
    samples = plot.images(seen[:100], columns=10, title="samples, z ~ p(z)")
    drawn = {"samples": samples, **game.curves(one.history)}
    keys = jax.random.split(common.keys(config, 7)[6], 3)[1:]
    return drawn if z is None else drawn | game.pictures(one, keys, images.test, z)


SMOKE = {"epochs": 2, "batch_size": 16, "samples": 50, "hidden": (8, 8), "critic": (4, 4)}
RECIPE = common.Recipe(
    "adversarial",
    load,
    build,
    measure,
    draw,
    game.note,
    smoke=SMOKE | FEW_IMAGES,
    swept=game.swept,
    labels={"test_critic_accuracy": "critic's share of right answers", "classes_shown": "classes"},
)


main = partial(common.main, RECIPE)
"""Train, measure and draw; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
