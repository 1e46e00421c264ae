"""Gradient estimators measured: variance, bias, and the signal-to-noise ratio over the particles.

    python -m experiments.gradients [preset] --particles K1 K2 ... --samples N --seed S

Rainforth et al., 2018, arXiv:1802.04537 (the encoder's ratio falls as K^-1/2 under IWAE while the
decoder's rises as K^1/2) and Tucker et al., 2018, arXiv:1810.04152 (under DReG it rises too). All
at one point, so that there are no `--seeds`: `toy` is a Gaussian model close to its optimum, the
others a network trained by the ELBO. The exponents are of large K: where few of the draws carry the
weight, they are not reached.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from experiments import common, vae
from experiments.common import image_vae, measures
from experiments.common.estimators import elbos, toy, trained, weighted
from experiments.common.figures import gradients as figures
from experiments.common.images import split_of
from vaejax import gradients
from vaejax.errors import wrong
from vaejax.types import Batch, Key, Params


@dataclass(frozen=True)
class Config:
    # toy; or images to train on: digits, mnist, fashion_mnist, tfds:NAME or a FILE.npz
    dataset: str = "toy"
    hidden: tuple[int, ...] = (50,)  # units of the encoder's layers
    latent: int = 20  # latent dimensions
    epochs: int = 50  # passes of training by the ELBO before anything is measured
    images: int = 8  # images in the batch whose gradient is measured
    particles: tuple[int, ...] = (2, 8, 32, 128)  # K of the importance-weighted estimators
    draws: tuple[int, ...] = (1, 4, 16)  # K of the ELBO's, pathwise and score function
    dimensions: tuple[int, ...] = (1, 4, 16, 64)  # latents of the toy beside that
    samples: int = 5000  # gradients drawn for each number
    seed: int = 0  # of every random number in the run
    out: Path | None = None  # folder of the run; by default a new one under runs/
    resume: bool = False  # not for this experiment: it is short
    smoke: bool = False  # shrink everything to seconds, to see that it runs


TOY = Config()
PRESETS = {
    "toy": TOY,
    "digits": replace(TOY, dataset="digits", latent=10, samples=1000),
    "mnist": replace(
        TOY, dataset="mnist", hidden=(200, 200), latent=50, epochs=3, images=4, samples=400
    ),
}


def load(config: Config) -> tuple[vae.Config, Any] | None:
    """The VAE's options and the images to train it on, checked; None for the toy."""
    if config.dataset == "toy":
        return None
    preset = vae.PRESETS["digits_density" if config.dataset == "digits" else "burda"]
    network = replace(preset, hidden=config.hidden, latent=config.latent)
    images = split_of(config, "train[:640]" if config.smoke else "train").x
    image_vae.check_images(network, images)
    return network, images


def main(config: Config) -> dict[str, Any]:
    """Measure every estimator at one point; returns what summary.json holds."""
    config = common.shrunk(
        config, epochs=1, images=2, samples=20, particles=(2, 4), draws=(2,), dimensions=(2,)
    )
    if len(set(config.particles)) < 2:
        raise wrong("gradients: --particles", config.particles, "two values of K", "add another")
    loaded = load(config)
    folder = common.open_folder(config, name=f"gradients-{Path(config.dataset).stem}")
    point_key, small_key, weighted_key, elbo_key, toy_key = common.keys(config, 5)
    if loaded is None:
        model, params, x = toy(point_key, config.latent, config.images)
    else:
        model, params, x = trained(config, *loaded, point_key)
    found: dict[str, Any] = {"particles": {}, "draws": {}, "dimensions": {}}

    def measure(what: str, at: int, losses: Any, params: Params, key: Key, x: Any) -> None:
        found[what][at] = gradients.compare(
            losses,
            params,
            jax.random.fold_in(key, at),
            Batch(x),
            samples=config.samples,
            reference_samples=2 * config.samples,
            groups={name: "encoder" if name == "encoder" else "decoder" for name in params},
        )

    def over(what: str, number: str, group: str = "encoder") -> dict[str, dict[int, float]]:
        names = dict.fromkeys(name for one in found[what].values() for name in one)
        return {
            name: {
                at: getattr(one[name][group], number)
                for at, one in found[what].items()
                if name in one
            }
            for name in names
        }

    for k in config.particles:
        measure("particles", k, weighted(model, k), params, weighted_key, x)
    for k in config.draws:
        measure("draws", k, elbos(model, k), params, elbo_key, x)
    for d in config.dimensions:
        small, near, point = toy(jax.random.fold_in(small_key, d), d, 1)
        near["encoder"]["b"] += 0.5  # close to the optimum the score function has no noise either
        measure("dimensions", d, elbos(small, 4), near, toy_key, point)
    common.write_json(
        folder / "measurements.json",
        jax.tree.map(
            lambda one: one._asdict(), found, is_leaf=lambda one: isinstance(one, gradients.Quality)
        ),
    )

    summary: dict[str, Any] = {"samples": config.samples}
    for group in ("encoder", "decoder"):
        for name, line in over("particles", "snr", group).items():
            summary[f"slope_{group}_{name}"] = measures.slope(list(line), list(line.values()))
    last = found["draws"][config.draws[-1]]
    for name in ("score function", "score function, leave-one-out"):
        ratio = last[name]["encoder"].variance / last["pathwise"]["encoder"].variance
        summary[f"variance_{name.replace(', ', '_').replace(' ', '_')}_to_pathwise"] = ratio
    floor = {k: one["iwae"]["encoder"].snr_floor for k, one in found["particles"].items()}
    note = "slopes: exponents of K in the signal-to-noise ratio"
    return common.finish(folder, summary, figures.draw(over, floor), note)


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
