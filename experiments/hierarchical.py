"""Two layers of latent variables (Burda et al., 2016, arXiv:1509.00519), by the ELBO and by IWAE.

    python -m experiments.hierarchical [preset] --particles K --objectives elbo iwae --seed S

h1 has 100 units behind 200-200, h2 has 50 behind 100-100, tanh throughout: q(h1|x) q(h2|h1), and
p(h2) p(h1|h2) p(x|h1). One network is trained once per objective, from the same parameters, on the
same batches. A top layer that says nothing, as the ELBO may leave it, is reported as collapsed.
With `--seeds N` and `--sweep learning_rate=...` each objective trains all runs at once.
Expected numbers and wall times: experiments/README.md. All figures in nats per image.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from flax import linen as nn

from experiments import common
from experiments.common import FEW_IMAGES, Trained, Trial, figures, image_vae, variations
from vaejax import data, heads, hierarchical, networks, objectives, plot
from vaejax.model import Model, autoencoder
from vaejax.types import Batch

Objective = Literal["elbo", "iwae"]


@dataclass(frozen=True)
class Config(common.Splits, common.SweepOptions):
    objectives: tuple[Objective, ...] = ("elbo", "iwae")  # each trains a model of its own
    particles: int = 5  # K: draws of z per image and step, for either objective
    hidden: tuple[int, int] = (200, 100)  # tanh units of the two hidden layers below and above h1
    latent: tuple[int, int] = (100, 50)  # units of h1 and h2
    epochs: int = 100  # passes over the training images, the step size falling along a cosine
    batch_size: int = 20  # images per step
    learning_rate: float = 1e-3  # Adam's step size at the start
    test_particles: int = 200  # importance samples per test image for -log p(x)
    evaluate_every: int = 5  # epochs between evaluations of the bound on the test split


DIGITS = Config()
PRESETS = {
    "digits": DIGITS,
    "mnist": replace(DIGITS, dataset="mnist", epochs=20, batch_size=50),
}


def network(config: Config, shape: tuple[int, ...], mean: Any) -> Model:
    """The model for images of `shape`; `mean`, in [0, 1], is where the pixels' biases start."""

    def layers(width: int, head: nn.Module) -> nn.Module:
        xavier = nn.initializers.xavier_uniform()
        return nn.Sequential([networks.MLP((width, width), nn.tanh, kernel_init=xavier), head])

    (below, above), (h1, h2) = config.hidden, config.latent
    pixels = heads.Bernoulli(shape, bias_init=heads.logit_of(mean))
    return hierarchical.layers(
        autoencoder(layers(below, heads.Normal(h1)), layers(below, pixels)),
        encoders=[layers(above, heads.Normal(h2))],
        decoders=[layers(above, heads.Normal(h1))],
        prior=image_vae.standard_normal(h2),
    )


def build(config: Config, images: tuple[Batch, Batch]) -> dict[str, Trial]:
    """One network, to be trained by every objective."""
    x = images[0].x
    model = network(config, x.shape[1:], common.mean_of(x))
    losses = {
        "elbo": objectives.elbo(model, samples=config.particles),
        "iwae": objectives.iwae(model, particles=config.particles),
    }
    adam = common.falling_adam(config, len(x), eps=1e-4)
    return variations.by_objective(config, images, model, jax.jit(model.init), losses, adam)


def measure(config: Config, images: tuple[Batch, Batch], trained: dict[str, Trained]) -> Any:
    """-log p(x), the bounds and the units in use of every model, on the same draws."""
    numbers: dict[str, Any] = {"particles": config.particles, "epochs": config.epochs}
    variances: dict[str, np.ndarray] = {}
    for name, one in trained.items():
        key, x = variations.keys_of_objectives(config)[2], images[1].x
        units = hierarchical.active_units(one.model, one.params, key, x, transform=data.binarize)
        found = {
            **variations.bounds(config, one, x),
            "test_nll_particles": config.test_particles,
            "active_units": [layer.active for layer in units],
            "collapsed_layers": [i for i, unit in enumerate(units, 1) if not unit.active],
        }
        numbers |= {f"{name}_{number}": value for number, value in found.items()}
        variances |= {f"{name}, h{i}": layer.variance for i, layer in enumerate(units, 1)}
    return numbers, variances


def draw(config: Config, images: Any, trained: dict[str, Trained], variances: Any) -> Any:
    """The bound on the test images in training, the activity of each unit, and samples."""
    curves = {name: one.history["eval/bound"] for name, one in trained.items()}
    title = f"test bound with K = {config.particles}"
    drawn = {
        "bounds": plot.curves(curves, ylabel="nats per test image", title=title),
        "active_units": figures.units(variances),
    }
    if not common.drawable(images[1].x):
        return drawn
    title = "trained by {}: mean of p(x|h1)"
    return drawn | figures.samples(trained, variations.keys_of_objectives(config)[3], title)


load = partial(common.both_splits, recipe="hierarchical", binarised=True)
NOTE = "nats per test image, binarised anew at every look"
SMOKE = {"epochs": 1, "batch_size": 16, "particles": 2, "test_particles": 4, **FEW_IMAGES}
SMOKE |= {"hidden": (16, 8), "latent": (6, 3)}
SWEPT = {"learning_rate"}
RECIPE = common.Recipe(
    "hierarchical", load, build, measure, draw, NOTE, SMOKE, SWEPT, image_vae.LABELS, curve="bound"
)
main = partial(common.main, RECIPE)
"""Train by either objective, measure both in the same way; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
