"""The interval around log p(x) of a VAE with two latents, whose exact value a grid gives.

    python -m experiments.sandwich [preset] --chains N --temperatures T --seed S

Importance weighting for several K and annealed importance sampling (Neal, 2001; Wu et al., 2017,
arXiv:1611.04273) from below, reverse annealing (Grosse et al., 2015, arXiv:1511.02543) from above:
from exact draws of the grid's posterior, and on data simulated from the model. Expected numbers and
wall times: experiments/README.md. All figures in nats per image. `--seeds N` and
`--sweep learning_rate=...` train many at once.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from experiments import common, vae
from experiments.common import Row, Trained, Trial, image_vae
from experiments.common.figures import bounds as figures
from experiments.common.measures import bound_numbers
from vaejax import bounds, data, exact, objectives
from vaejax.types import Batch, Key


@dataclass(frozen=True)
class Config(common.SweepOptions):
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE
    train_split: str = "train"  # images to train on
    test_split: str = "test[:100]"  # images whose log p(x) is bounded
    hidden: tuple[int, ...] = (64,)  # units of the encoder's layers; two latents
    epochs: int = 60  # passes over the training images
    batch_size: int = 64  # images per step
    learning_rate: float = 2e-3  # Adam's step size, falling to 0 along a cosine
    params: Path | None = None  # checkpoints of a run with these options: no training
    particles: tuple[int, ...] = (1, 10, 100, 1000, 5000)  # rungs of the importance-weighted ladder
    chains: int = 16  # annealed per image, in either direction
    temperatures: tuple[int, ...] = (20, 60, 200, 600)  # rising; the last makes the interval
    leapfrog_steps: int = 5  # of each Hamiltonian move
    spacing: float = 0.02  # of the grid
    width: float = 7.0  # the grid fills [-width, width]^2


DIGITS = Config()
PRESETS = {
    "digits": DIGITS,
    "mnist": replace(
        DIGITS,
        dataset="mnist",
        hidden=(200, 200),
        epochs=25,
        batch_size=128,
        learning_rate=1e-3,
        temperatures=(200, 1000),
    ),
}


def trial(config: Config, images: tuple[Batch, Batch]) -> Trial:
    """The VAE, to be trained here or read from checkpoints."""
    init_key, fit_key, _ = common.keys(config, 3)
    x = images[0].x
    # Binarised pixels: log p(x) is at most 0. Smooth in z: at the kinks of a relu a grid converges
    # slowly.
    network = replace(vae.PRESETS["mnist"], hidden=config.hidden, latent=2, activation="tanh")
    model = image_vae.build(network, x.shape[1:], common.mean_of(x))
    return Trial(
        model,
        partial(model.init, init_key, data.scale(jax.random.key(0), x[0])),
        objectives.elbo(model),
        common.falling_adam(config, len(x)),
        x,
        fit_key,
        data.binarize,
        ready=common.stored("--params", config.params),
    )


def measure(config: Config, images: tuple[Batch, Batch], one: Trained) -> tuple[Row, Any]:
    """log p(x) by a grid, and its bounds from both sides, on the same binarised images."""
    x = images[1].x

    def again() -> Key:
        """One key for all, on purpose: it binarises the same images."""
        return common.keys(config, 3)[2]

    grid: Any = {"transform": data.binarize, "spacing": config.spacing, "width": config.width}
    model, params = one.model, one.params
    truth = exact.quadrature(model, params, again(), x, **grid)
    draws = exact.grid_posterior(model, params, again(), x, draws=config.chains, **grid).z
    gaps = {}
    for count in sorted(config.temperatures):
        last = count == max(config.temperatures)
        began = time.perf_counter()
        found: Any = bounds.sandwich(
            model,
            params,
            again(),
            x,
            posterior=draws,
            particles=config.particles if last else (1,),
            chains=config.chains,
            temperatures=count,
            leapfrog_steps=config.leapfrog_steps,
            simulations=len(x) if last else 0,
            transform=data.binarize,
        )
        seconds = time.perf_counter() - began
        gaps[count] = found.lower.log_px - truth.log_px, found.upper.log_px - truth.log_px
    print(found.ladder, found, sep="\n\n")
    numbers = {
        **bound_numbers(truth, found, gaps[count]),
        "particles": config.particles[-1],
        "chains": config.chains,
        "temperatures": count,
        "converged": found.converged,
        "seconds_sandwich": seconds,
    }
    kept = truth.log_px, found, gaps
    return {k: v if isinstance(v, int) else float(v) for k, v in numbers.items()}, kept


def draw(config: Config, images: Any, one: Trained, kept: Any) -> dict[str, Any]:
    """The bounds of every image, over K, and over the temperatures."""
    truth, found, gaps = kept
    return {
        "images": figures.images(config.particles[-1], found, truth),
        "ladder": figures.ladder(found, truth),
        "temperatures": figures.temperatures(gaps),
    }


NOTE = "nats per image, mean over the images where not said"
SMOKE: Row = {"epochs": 1, "particles": (1, 4), "chains": 2, "temperatures": (5, 8)}
SMOKE |= {"spacing": 0.2, "batch_size": 64, "train_split": "train[:64]", "test_split": "test[:6]"}
LABELS = common.LABELS | {"exact_log_px_nats": "exact log p(x), nats per image"}
load = partial(common.both_splits, recipe="sandwich", binarised=True)
RECIPE = common.Recipe(
    "sandwich", load, trial, measure, draw, NOTE, SMOKE, ["learning_rate"], LABELS
)
main = partial(common.main, RECIPE)
"""Train, measure exactly, bound from both sides; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
