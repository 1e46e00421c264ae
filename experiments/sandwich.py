"""The interval around log p(x) of a VAE with two latents, whose exact value a grid gives.

    python -m experiments.sandwich [preset] --chains N --temperatures T --seed S

Importance weighting for several K and annealed importance sampling (Neal, 2001; Wu et al., 2017,
arXiv:1611.04273) from below, reverse annealing (Grosse et al., 2015, arXiv:1511.02543) from above:
from exact draws of the grid's posterior, and on data simulated from the model. Expected numbers and
wall times: experiments/README.md. All figures in nats per image.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import common, vae
from experiments.common import image_vae
from vaejax import bounds, checkpoint, data, exact, objectives, plot, train
from vaejax.errors import at_least_one


@dataclass(frozen=True)
class Config(common.Options):
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


def main(config: Config) -> dict[str, Any]:
    """Train, measure exactly, bound from both sides; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=1,
            particles=(1, 4),
            chains=2,
            temperatures=(5, 8),
            spacing=0.2,
            train_split="train[:64]",
            test_split="test[:6]",
        )
    at_least_one("sandwich", epochs=config.epochs, chains=config.chains)
    images = data.load(config.dataset, config.train_split).x
    test = data.load(config.dataset, config.test_split).x
    train.shuffled(len(images), config.batch_size)  # refuses a batch larger than the data
    init_key, fit_key, key = jax.random.split(jax.random.key(config.seed), 3)
    like = vae.PRESETS["mnist"]  # binarised pixels: log p(x) is at most 0
    # Smooth in z: at the kinks of a relu a grid converges slowly.
    network = replace(like, hidden=config.hidden, latent=2, activation="tanh")
    transform = image_vae.transform_for(network, images)
    mean = images.mean(axis=0) / (255 if images.dtype == np.uint8 else 1)
    model = image_vae.build(network, images.shape[1:], mean)
    params = model.init(init_key, data.scale(init_key, images[0]))
    folder = common.open_folder(config, name=f"sandwich-{Path(config.dataset).stem}")
    if config.params is not None:
        params = checkpoint.load(config.params, like=params)
    else:
        steps = config.epochs * (len(images) // config.batch_size)
        adam = optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps))
        params = common.fit(
            config,
            folder,
            objectives.elbo(model),
            adam,
            params,
            images,
            key=fit_key,
            epochs=config.epochs,
            batch_size=config.batch_size,
            transform=transform,
        ).params

    # One key on purpose: it binarises the same images for all of them.
    again = partial(jax.random.clone, key)
    grid: Any = {"transform": transform, "spacing": config.spacing, "width": config.width}
    truth = exact.quadrature(model, params, again(), test, **grid)
    draws = exact.grid_posterior(model, params, again(), test, draws=config.chains, **grid).z
    gaps = {}
    for count in sorted(config.temperatures):
        last = count == max(config.temperatures)
        began = time.perf_counter()
        found: Any = bounds.sandwich(
            model,
            params,
            again(),
            test,
            posterior=draws,
            transform=transform,
            particles=config.particles if last else (1,),
            chains=config.chains,
            temperatures=count,
            leapfrog_steps=config.leapfrog_steps,
            simulations=len(test) if last else 0,
        )
        seconds = time.perf_counter() - began
        lower, upper, ladder, simulated = found[:4]
        gaps[count] = lower.log_px - truth.log_px, upper.log_px - truth.log_px
    short = truth.log_px - ladder.log_px[-1]
    worst = int(short.argmax())
    summary = {
        "exact_log_px_nats": truth.log_px.mean(),
        "exact_changed_by_last_halving_nats": np.abs(truth.log_px - truth.coarse).max(),
        "ais_log_px_nats": lower.log_px.mean(),
        "reverse_ais_log_px_nats": upper.log_px.mean(),
        "ais_minus_exact_nats": gaps[count][0].mean(),
        "reverse_ais_minus_exact_nats": gaps[count][1].mean(),
        "ais_ess_median": np.median(lower.ess),
        "ais_acceptance": lower.acceptance.mean(),
        "bdmc_gap_nats": simulated.gap.mean(),
        "importance_log_px_nats": ladder.log_px[-1].mean(),
        "importance_gap_mean_nats": short.mean(),
        "importance_gap_worst_nats": short.max(),
        "importance_worst_image": worst,
        "importance_worst_image_ess": ladder.ess[-1, worst],
        "particles": config.particles[-1],
        "chains": config.chains,
        "temperatures": count,
        "converged": found.converged,
        "seconds_sandwich": seconds,
    }
    summary = {
        name: value if isinstance(value, int) else float(value) for name, value in summary.items()
    }
    common.write_json(folder / "summary.json", summary)
    K = config.particles[-1]
    values = {
        f"importance weighting, K = {K}": ladder.log_px[-1],
        "AIS": lower.log_px,
        "reverse AIS from exact draws": upper.log_px,
    }
    common.save_figures(
        folder,
        {
            "images": images_figure(values, truth.log_px),
            "ladder": ladder_figure(found, truth.log_px),
            "temperatures": temperatures_figure(gaps),
        },
    )
    print(ladder, found, sep="\n\n")
    common.report(folder, summary, f"nats per image, mean over {len(test)} images where not said")
    return summary


def images_figure(values: dict[str, np.ndarray], truth: np.ndarray) -> Any:
    """Every bound less the exact value, image by image."""
    order = np.argsort(truth)
    figure = plot.curves(
        {name: (log_px - truth)[order] for name, log_px in values.items()},
        xlabel="image, from the least to the most probable",
        ylabel="bound - exact log p(x), nats",
        title="bounds of every image",
    )
    axis = figure.axes[0]
    for line, marker in zip(axis.get_lines(), ".^v", strict=False):
        line.set(linestyle="", marker=marker, markersize=4)
    axis.axhline(0, color="black", linewidth=0.8)
    if max(np.abs(log_px - truth).max() for log_px in values.values()) > 3:
        axis.set_yscale("symlog", linthresh=1)
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
    return figure


def ladder_figure(found: Any, truth: np.ndarray) -> Any:
    """The importance-weighted bound over K, rising towards the interval of AIS."""
    figure = plot.curves(
        {"importance weighting": found.ladder.log_px.mean(axis=1)},
        steps=found.ladder.particles,
        xlabel="K, importance samples per image",
        ylabel="log p(x), mean nats per image",
        title="the ladder and the interval",
    )
    axis = figure.axes[0]
    low, high = (run.log_px.mean() for run in (found.lower, found.upper))
    noise = [2 * np.sqrt(np.sum(run.error**2)) / len(truth) for run in (found.lower, found.upper)]
    axis.axhspan(
        low - noise[0],
        high + noise[1],
        color="tab:green",
        alpha=0.4,
        label="AIS to reverse AIS, with 2 standard errors",
    )
    axis.axhline(truth.mean(), color="black", linewidth=0.8, linestyle="--", label="exact (grid)")
    axis.set_xscale("log")
    axis.legend(frameon=False)
    return figure


def temperatures_figure(gaps: dict[int, tuple[np.ndarray, np.ndarray]]) -> Any:
    """What the annealed bounds miss in the mean over images, over the number of temperatures."""
    names, counts = ["AIS", "reverse AIS from exact draws"], list(gaps)
    errors = np.array(list(gaps.values()))  # [temperatures, 2, images]
    means, spread = errors.mean(axis=2), 2 * errors.std(axis=2) / np.sqrt(errors.shape[2])
    figure = plot.curves(
        dict(zip(names, means.T, strict=True)),
        steps=counts,
        xlabel="temperatures",
        ylabel="bound - exact log p(x), nats",
        title="mean over images, with 2 standard errors",
    )
    axis = figure.axes[0]
    for line, side in zip(axis.get_lines(), (0, 1), strict=True):
        axis.errorbar(counts, means[:, side], spread[:, side], color=line.get_color(), capsize=3)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    return figure


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
