"""Importance-weighted autoencoder (Burda et al., 2016, arXiv:1509.00519) beside the ELBO and DReG.

    python -m experiments.iwae [preset] --particles K --objectives elbo iwae dreg --seed S

One network is trained once per objective, from the same parameters, on the same batches. Expected
numbers and wall times: experiments/README.md. All figures in nats per image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from experiments import run, vae
from vaejax import data, evaluate, objectives, plot, train
from vaejax.model import Model, generate
from vaejax.types import Loss

Objective = Literal["elbo", "iwae", "dreg"]


@dataclass(frozen=True)
class Config(run.Options):
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
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


def main(config: Config) -> dict[str, Any]:
    """Train by every objective, measure each in the same way; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            batch_size=16,
            test_particles=4,
            particles=2,
            train_split="train[:64]",
            test_split="test[:32]",
        )
    images = data.load(config.dataset, config.train_split).x
    test = data.load(config.dataset, config.test_split).x
    init_key, fit_key, test_key, sample_key = jax.random.split(jax.random.key(config.seed), 4)
    # Every objective gets the same keys on purpose: their differences are paired.
    train.shuffled(len(images), config.batch_size)  # refuses a batch larger than the data
    steps = len(images) // config.batch_size
    mean = images.mean(axis=0) / (255 if images.dtype == np.uint8 else 1)
    network = replace(vae.PRESETS["burda"], hidden=config.hidden, latent=config.latent)
    model = vae.build(network, images.shape[1:], mean)
    params = model.init(init_key, data.scale(init_key, images[0]))
    yardstick = objectives.iwae(model, particles=config.particles)
    folder = run.open_folder(config, name=f"iwae-{Path(config.dataset).stem}")
    cosine = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)

    summary: dict[str, Any] = {"particles": config.particles, "epochs": config.epochs}
    curves: dict[str, Any] = {}
    drawn: dict[str, Any] = {}
    for name in config.objectives:
        fitted = run.fit(
            config,
            folder / name,
            LOSSES[name](model, config.particles),
            optax.adam(cosine, eps=config.adam_epsilon),
            params,
            images,
            key=jax.random.clone(fit_key),
            epochs=config.epochs,
            batch_size=config.batch_size,
            transform=data.binarize,
            evaluate=partial(evaluate.mean_loss, yardstick, data=test, transform=data.binarize),
            evaluate_every=config.evaluate_every,
            checkpoint_every=config.evaluate_every,
        )
        likelihood = evaluate.log_likelihood(
            model,
            fitted.params,
            jax.random.clone(test_key),
            test,
            particles=config.test_particles,
            transform=data.binarize,
        )
        summary |= {
            f"{name}_test_nll_nats": -float(likelihood.log_px.mean()),
            f"{name}_test_ess_median": float(np.median(likelihood.ess)),
            f"{name}_test_bound_nats": float(fitted.history["eval/bound"][-1]),
            f"{name}_test_elbo_nats": float(fitted.history["eval/elbo"][-1]),
            f"{name}_seconds_train": run.seconds(folder / name),
        }
        curves[name] = fitted.history["eval/bound"]
        samples = jax.vmap(partial(generate, model, fitted.params))(
            jax.random.split(jax.random.clone(sample_key), 64)
        )
        drawn[f"samples_{name}"] = plot.images(
            samples.mean, title=f"{name}: samples z ~ p(z), mean of p(x|z)"
        )
    label = f"L_{config.particles} of the test images, nats per image"
    drawn["bounds"] = plot.curves(curves, ylabel=label)
    run.write_json(folder / "summary.json", summary)
    if images.ndim == 4:
        run.save_figures(folder, drawn)
    note = f"nats per test image; -log p(x) with K = {config.test_particles}"
    run.report(folder, summary, note)
    return summary


if __name__ == "__main__":
    run.command_line(main, PRESETS, __doc__ or "")
