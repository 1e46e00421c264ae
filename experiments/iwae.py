"""Importance-weighted autoencoder (Burda et al., 2016, arXiv:1509.00519) beside the ELBO and DReG.

    python -m experiments.iwae [preset] --particles K --objectives elbo iwae dreg --seed S

One network is trained once per objective, from the same parameters, on the same batches. With
`--seeds N` and `--sweep NAME=...` (learning_rate, adam_epsilon) each trains all runs at once.
Expected numbers and wall times: experiments/README.md. All figures in nats per image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from experiments import common, vae
from experiments.common import FEW_IMAGES, Trained, Trial, figures, image_vae, variations
from vaejax import objectives, plot
from vaejax.model import Model
from vaejax.types import Batch, Loss

Objective = Literal["elbo", "iwae", "dreg"]


@dataclass(frozen=True)
class Config(common.Splits, common.SweepOptions):
    objectives: tuple[Objective, ...] = ("elbo", "iwae", "dreg")  # each trains a model of its own
    particles: int = 5  # K: draws of z per image and step, for every objective
    hidden: tuple[int, ...] = (200, 200)  # tanh units of the encoder's layers
    latent: int = 50  # latent dimensions
    epochs: int = 100  # passes over the training images, the step size falling along a cosine
    batch_size: int = 20  # images per step
    learning_rate: float = 1e-3  # Adam's step size at the start
    adam_epsilon: float = 1e-4  # Adam's epsilon
    test_particles: int = 1000  # importance samples per test image for -log p(x)
    evaluate_every: int = 5  # epochs between evaluations of the bound on the test split


DIGITS = Config()
PRESETS = {"digits": DIGITS, "mnist": replace(DIGITS, dataset="mnist", epochs=30)}

LOSSES: dict[str, Callable[[Model, int], Loss]] = {
    "elbo": lambda model, particles: objectives.elbo(model, samples=particles),
    "iwae": lambda model, particles: objectives.iwae(model, particles=particles),
    "dreg": lambda model, particles: objectives.dreg(model, particles=particles),
}


def build(config: Config, images: tuple[Batch, Batch]) -> dict[str, Trial]:
    """One network, to be trained by every objective."""
    x = images[0].x
    network = replace(vae.PRESETS["burda"], hidden=config.hidden, latent=config.latent)
    model = image_vae.build(network, x.shape[1:], common.mean_of(x))
    losses = {name: loss(model, config.particles) for name, loss in LOSSES.items()}
    adam = common.falling_adam(config, len(x), eps=config.adam_epsilon)
    return variations.by_objective(config, images, model, model.init, losses, adam)


def measure(config: Config, images: tuple[Batch, Batch], trained: dict[str, Trained]) -> Any:
    """-log p(x) and the bounds of every model, on the same draws."""
    numbers: dict[str, Any] = {"particles": config.particles, "epochs": config.epochs}
    for name, one in trained.items():
        found = variations.bounds(config, one, images[1].x)
        numbers |= {f"{name}_{number}": value for number, value in found.items()}
    return numbers, None


def draw(config: Config, images: Any, trained: dict[str, Trained], _: None) -> dict[str, Any]:
    """Samples of every model, and the bound on the test images in training."""
    if images[1].x.ndim != 4:
        return {}
    curves = {name: one.history["eval/bound"] for name, one in trained.items()}
    label = f"L_{config.particles} of the test images, nats per image"
    return {
        **figures.samples(trained, variations.keys_of_objectives(config)[3]),
        "bounds": plot.curves(curves, ylabel=label),
    }


def note(config: Config, _: dict[str, Any]) -> str:
    """What the numbers are."""
    return f"nats per test image; -log p(x) with K = {config.test_particles}"


load = partial(common.both_splits, recipe="iwae", binarised=True)
SMOKE = {"epochs": 2, "batch_size": 16, "test_particles": 4, "particles": 2, **FEW_IMAGES}
SWEPT = {"learning_rate", "adam_epsilon"}
RECIPE = common.Recipe(
    "iwae", load, build, measure, draw, note, SMOKE, SWEPT, image_vae.LABELS, curve="bound"
)
main = partial(common.main, RECIPE)
"""Train by every objective, measure each in the same way; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
