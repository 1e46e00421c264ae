"""Posterior collapse: one VAE at several weights of the KL (Alemi et al., 2018, arXiv:1711.00464).

    python -m experiments.collapse [preset] --betas 0.5 1 4 20 --dataset NAME|FILE.npz --seed S

Trains a preset of experiments.vae at every beta, and draws the rate-distortion curve, the KL of
each latent dimension and, for a Normal likelihood, the calibration of its variance; reports.txt has
a report in plain words for each beta. Expected: D rises and R falls with beta, the ELBO is best at
beta = 1, every implied beta is the beta of the training, and a large one collapses. Figures in nats
per test image; numbers and wall times: experiments/README.md. It has no `--seeds`: a report in
words is of one run.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import optax

from experiments import common, vae
from experiments.common import FEW_IMAGES, Row, Trained, Trial, diagnoses, image_vae
from vaejax import diagnostics, objectives


@dataclass(frozen=True)
class Config(common.Options):
    # preset of experiments.vae: network, likelihood, batch and step size
    model: Literal["digits_density", "digits", "mnist", "burda", "conv", "gaussian"] = (
        "digits_density"
    )
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE
    betas: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0, 5.0, 20.0)  # weights of the KL
    epochs: int = 200  # passes over the training images, for each beta
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
    particles: int = 100  # importance samples per image for the gap above the ELBO


PRESETS = {
    "digits": Config(),
    "mnist": Config("mnist", "mnist", betas=(0.2, 0.5, 1.0, 2.0, 4.0, 10.0, 20.0), epochs=20),
}


def network_of(config: Config) -> vae.Config:
    """The preset of experiments.vae."""
    base = vae.PRESETS[config.model]
    return replace(base, batch_size=min(base.batch_size, 16)) if config.smoke else base


def load(config: Config) -> image_vae.Images:
    """The images, checked."""
    base, key = network_of(config), common.keys(config, 5)[0]
    images, test = common.both_splits(config, "collapse")
    common.check_batch(base, len(images.x))
    return image_vae.seen_as(base, images, test, key)


def trials(config: Config, images: image_vae.Images) -> dict[str, Trial]:
    """One VAE for each beta, with the same start, noise and draws: they differ by beta alone."""
    base, x = network_of(config), images.train.x
    _, start_key, train_key, *_ = common.keys(config, 5)
    model = image_vae.build(replace(base, levels=images.levels), x.shape[1:], images.mean)
    steps = config.epochs * (len(x) // base.batch_size)
    decay = optax.cosine_decay_schedule(base.learning_rate, steps)
    return {
        f"beta-{beta:g}": Trial(
            model,
            partial(model.init, jax.random.clone(start_key), images.first),
            objectives.elbo(model, beta=beta),
            optax.adam(decay, eps=base.adam_epsilon),
            x,
            jax.random.clone(train_key),
            images.transform,
            batch_size=base.batch_size,
            checkpoint_every=config.epochs,
        )
        for beta in config.betas
    }


def measure(config: Config, images: Any, trained: dict[str, Trained]) -> tuple[Row, Any]:
    """A report for each beta, and the calibration of a Normal likelihood."""
    *_, report_key, calibration_key = common.keys(config, 5)
    reports, calibrated = {}, {}
    for folder, one in trained.items():
        name, seen = folder.replace("-", " "), (one.model, one.params)
        reports[name] = diagnostics.inference_report(
            *seen,
            jax.random.clone(report_key),
            images.test.x,
            train=images.train.x,
            transform=images.transform,
            particles=config.particles,
        )
        print(f"\n{name}: {reports[name]}")
        if "normal" in network_of(config).likelihood:
            again = jax.random.clone(calibration_key)
            calibrated[name] = diagnostics.calibration(
                *seen, again, images.test.x, transform=images.transform
            )
    numbers = diagnoses.numbers_of(config, reports)
    return numbers, (numbers, reports, calibrated)


def draw(config: Config, images: Any, trained: Any, kept: Any) -> dict[str, Any]:
    """Rate against distortion, the KL of each dimension, and the calibration."""
    return diagnoses.draw(*kept)


NOTE = "nats per test image, in the order of the betas"
RECIPE = common.Recipe(
    "collapse", load, trials, measure, draw, NOTE, {"epochs": 2, "particles": 2, **FEW_IMAGES}
)


def main(config: Config) -> dict[str, Any]:
    """Train, report and draw; returns what summary.json holds: lists in the order of the betas."""
    return common.main(RECIPE, common.shrunk(config, betas=config.betas[-2:]))


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
