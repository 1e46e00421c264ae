"""Conditional VAE p(x|c) (Sohn, Lee and Yan, 2015): images of a class, or filled in where hidden.

    python -m experiments.cvae [preset] --condition class|block --prior fixed|learned

Classes: samples of every class, which a classifier that was trained apart tries to recognise.
Blocks: c is the image with a square hidden at a place drawn anew, and its mask; several draws for
one input, and their average. A network p(x|c) without latents is trained beside it. With
`--seeds N` and `--sweep NAME=...` (learning_rate, beta) all runs train at once. All figures in nats
per image (of the hidden pixels alone, for blocks). Numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from flax import linen as nn

from experiments import common
from experiments.common import FEW_IMAGES, Trained, Trial, conditions, image_vae
from experiments.common.conditions import Images
from vaejax import conditional, data, evaluate, heads, networks, objectives, plot
from vaejax.model import Model, autoencoder
from vaejax.types import Key, Params


@dataclass(frozen=True)
class Config(common.Splits, common.SweepOptions):
    condition: Literal["class", "block"] = "class"  # c: the class, or what a hidden block leaves
    block: int = 5  # side of the hidden block, pixels
    prior: Literal["fixed", "learned"] = "fixed"  # N(0, I), or p(z|c) by a network
    hidden: tuple[int, ...] = (200,)  # units of the encoder's, decoder's and prior's layers
    latent: int = 8  # latent dimensions
    beta: float = 1.0  # weight of the KL in training; 1 is the bound, which is what is reported
    epochs: int = 200  # passes over the training images
    batch_size: int = 64  # images per step
    learning_rate: float = 2e-3  # Adam's step size, falling to 0 along a cosine
    particles: int = 100  # importance samples per image for -log p(x|c)
    samples: int = 1000  # images to be recognised, as many of each class
    evaluate_every: int = 20  # epochs between evaluations on the test split
    checkpoint_every: int = 50  # epochs between checkpoints


DIGITS = Config()
MNIST = replace(DIGITS, dataset="mnist", block=16, hidden=(400,), latent=5, learning_rate=1e-3)
MNIST = replace(MNIST, epochs=20, batch_size=128, evaluate_every=5, checkpoint_every=5)
PRESETS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "digits_learned": replace(DIGITS, prior="learned"),
    "mnist_learned": replace(MNIST, prior="learned", beta=2.0),
    "digits_completion": replace(DIGITS, condition="block", prior="learned"),
    "mnist_completion": replace(MNIST, condition="block", prior="learned", latent=20, epochs=10),
}


def keys_of(config: Config) -> Key:
    """Keys of the test images, of what is hidden, of two starts, the training, three numbers."""
    return jax.random.split(jax.random.key(config.seed), 8)


def load(config: Config) -> Images:
    """Images with their condition."""
    return conditions.load(config, keys_of(config)[:2])


def networks_of(config: Config, shape: tuple[int, ...], mean: Any) -> tuple[Model, nn.Module]:
    """The model, and a network p(x|c) of the same decoder without latents."""
    layers = partial(networks.MLP, config.hidden)
    pixels = heads.Bernoulli(shape, bias_init=heads.logit_of(mean))
    plain: nn.Module = nn.Sequential([layers(), pixels])
    if config.condition == "block":
        plain = conditional.Completing(plain)
    gaussian, prior = heads.Normal(config.latent), image_vae.standard_normal(config.latent)
    learned = nn.Sequential([layers(), gaussian]) if config.prior == "learned" else prior
    return autoencoder(nn.Sequential([layers(), gaussian]), plain, learned), plain


def build(config: Config, images: Images) -> Trial:
    """Both networks, each of which is trained as if alone, since Adam goes entry by entry."""
    x, keys = images.train.x, keys_of(config)
    model, plain = networks_of(config, x.shape[1:], common.mean_of(x))
    elbo = objectives.elbo(model, beta=config.beta)
    likelihood = objectives.maximum_likelihood(plain)
    losses = {
        "model": lambda params, *rest: elbo(params["model"], *rest),
        "plain": lambda params, *rest: likelihood(params["plain"], *rest),
    }
    both = loss = objectives.players(losses)
    if config.condition == "block":
        loss = conditional.conditioned(both, conditions.hide(config.block))

    def start() -> Params:
        first = jax.tree.map(lambda leaf: leaf[0], images.test)
        params = {"model": model.init(keys[2], first.x, first.c)}
        return params | {"plain": jax.jit(plain.init)(keys[3], first.c)}

    adam = common.falling_adam(config, len(x))
    judged = partial(evaluate.mean_loss, both, data=images.test)
    return Trial(model, start, loss, adam, images.train, keys[4], data.binarize, evaluate=judged)


def measure(config: Config, images: Images, trained: Trained) -> tuple[dict[str, Any], Any]:
    """The bound and -log p(x|c), with and without latents; samples that are recognised."""
    model, params, keys = trained.model, trained.params["model"], keys_of(config)
    one = trained._replace(params=params)
    numbers = image_vae.measured(one, keys[5:7], images.test, config.particles)
    numbers["posterior_collapsed"] = numbers["test_rate_nats"] < 0.1
    if "eval/log_px" in trained.history:  # not of many runs at once
        numbers["test_nll_without_latents_nats"] = -float(trained.history["eval/log_px"][-1])
    if config.condition == "block":
        numbers["hidden_pixels"] = float(np.mean(np.sum(1 - images.test.c[1], axis=(1, 2, 3))))
        return numbers, None
    found, samples = conditions.recognised(config, model, params, keys[7], images.classes)
    return numbers | found, samples


def draw(config: Config, images: Images, trained: Trained, samples: Any) -> dict[str, Any]:
    """A row of samples of every class, or completions; and the bound in training."""
    curves = {"train": trained.history["elbo"], "test": trained.history["eval/elbo"]}
    drawn = {"curves": plot.curves(curves, ylabel="ELBO, nats per image")}
    if config.condition == "class":
        title = "samples of each class: z ~ p(z|c), mean of p(x|z, c)"
        return drawn | {"samples": conditions.class_rows(samples, title)}
    one = trained.model, trained.params["model"], keys_of(config)[7]
    return drawn | {"completions": conditions.completions(*one, images.test)}


SMALLEST = {"hidden": (16,), "particles": 4, "samples": 20, "train_split": "train[:128]"}
RECIPE = common.Recipe(
    "cvae",
    load,
    build,
    measure,
    draw,
    "nats per test image, a bound or estimate of -log p(x|c)",
    smoke={"epochs": 2, "batch_size": 16, "evaluate_every": 2, **FEW_IMAGES, **SMALLEST},
    labels=image_vae.LABELS,
    swept={"learning_rate", "beta"},
    curve="elbo",
)


main = partial(common.main, RECIPE)
"""Train, measure and draw; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
