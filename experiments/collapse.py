"""Posterior collapse: one VAE at several weights of the KL (Alemi et al., 2018, arXiv:1711.00464).

    python -m experiments.collapse [preset] --betas 0.5 1 4 20 --dataset NAME|FILE.npz --seed S

Trains a preset of experiments.vae at every beta, and draws the rate-distortion curve, the KL of
each latent dimension and, for a Normal likelihood, the calibration of its variance; reports.txt has
a report in plain words for each beta. Expected: D rises and R falls with beta, the ELBO is best at
beta = 1, every implied beta is the beta of the training, and a large one collapses. Figures in nats
per test image; numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from experiments import common, vae
from experiments.common import image_vae
from vaejax import data, diagnostics, objectives, plot, train
from vaejax.errors import at_least_one


@dataclass(frozen=True)
class Config(common.Options):
    # preset of experiments.vae: network, likelihood, batch and step size
    model: Literal["digits", "mnist", "burda", "conv", "gaussian"] = "digits"
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


def main(config: Config) -> dict[str, Any]:
    """Train, report and draw; returns what summary.json holds: lists in the order of the betas."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            particles=2,
            betas=config.betas[-2:],
            train_split="train[:64]",
            test_split="test[:32]",
        )
    at_least_one("collapse", epochs=config.epochs, betas=len(config.betas))
    base = vae.PRESETS[config.model]
    base = replace(base, batch_size=min(base.batch_size, 16) if config.smoke else base.batch_size)
    images = data.load(config.dataset, config.train_split).x
    test = data.load(config.dataset, config.test_split).x
    image_vae.check_images(base, images)
    transform = image_vae.transform_for(base, images)
    keys = jax.random.split(jax.random.key(config.seed), 5)
    seen_key, start_key, train_key, report_key, calibration_key = keys
    as_seen = jax.vmap(transform)(jax.random.split(seen_key, len(images[:2000])), images[:2000])
    model = image_vae.build(base, images.shape[1:], np.asarray(as_seen.mean(axis=0)))
    start = model.init(start_key, as_seen[0])
    train.shuffled(len(images), base.batch_size)  # refuses a batch larger than the data
    steps = len(images) // base.batch_size
    folder = common.open_folder(config, name=f"collapse-{Path(config.dataset).stem}")

    decay = optax.cosine_decay_schedule(base.learning_rate, config.epochs * steps)
    reports, calibrated = {}, {}
    for beta in config.betas:
        name = f"beta {beta:g}"
        # The same start, noise and draws at every beta: they differ by beta alone.
        params = common.fit(
            config,
            folder / name.replace(" ", "-"),
            objectives.elbo(model, beta=beta),
            optax.adam(decay, eps=base.adam_epsilon),
            start,
            images,
            key=jax.random.clone(train_key),
            epochs=config.epochs,
            batch_size=base.batch_size,
            transform=transform,
            checkpoint_every=config.epochs,
        ).params
        reports[name] = diagnostics.inference_report(
            model,
            params,
            jax.random.clone(report_key),
            test,
            train=images,
            transform=transform,
            particles=config.particles,
        )
        print(f"\n{name}: {reports[name]}")
        if "normal" in base.likelihood:
            calibrated[name] = diagnostics.calibration(
                model, params, jax.random.clone(calibration_key), test, transform=transform
            )

    text = "\n\n".join(f"{n}: {r}" for n, r in reports.items())
    common.write_text(folder / "reports.txt", text + "\n")
    summary = _summary(config, reports)
    common.write_json(folder / "summary.json", summary)
    rates = {
        name: [part.value for part in report.decomposition.dimension_rate or []]
        for name, report in reports.items()
    }
    drawn = {
        "rate_distortion": plot.rate_distortion(
            summary["rate_nats"], summary["distortion_nats"], list(reports)
        ),
        "rates": plot.rates(rates),
    }
    if calibrated:
        coverage = {name: found.coverage for name, found in calibrated.items()}
        levels = next(iter(calibrated.values())).levels
        errors = {name: found.error for name, found in calibrated.items()}
        drawn["calibration"] = plot.calibration(levels, coverage, errors=errors)
    common.save_figures(folder, drawn)
    common.report(folder, summary, "nats per test image, in the order of the betas")
    return summary


def _summary(config: Config, reports: dict[str, Any]) -> dict[str, Any]:
    every = list(reports.values())
    parts = [report.decomposition for report in every]
    return {
        "betas": list(config.betas),
        "verdicts": [" and ".join(report.verdicts) for report in every],
        "elbo_nats": [part.elbo.value for part in parts],
        "distortion_nats": [part.distortion.value for part in parts],
        "rate_nats": [part.rate.value for part in parts],
        "information_nats": [part.information.value for part in parts],
        "aggregated_kl_nats": [part.aggregated_kl.value for part in parts],
        "cap_nats": parts[0].cap,
        "active_units": [report.units.active for report in every],
        "used_units": [report.used for report in every],
        "implied_betas": [
            None if "collapsed" in report.verdicts else report.implied_beta.value
            for report in every
        ],
        "gap_nats": [report.gap.value for report in every],
        "gap_particles": config.particles,
        "epochs": config.epochs,
    }


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
