"""The vector field that a denoising autoencoder learns in the plane (Alain and Bengio, 2014).

    python -m experiments.score_field [mixture|moons|spiral|ring] --scale S --seed N

(r(x) - x) / scale^2 beside the true score of the smoothed data, whose zeros are maxima, minima and
saddles of the density; and Langevin samples along it. Expected numbers: experiments/README.md.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from flax import linen as nn

from experiments import common
from experiments.common import measures, planes
from experiments.common.figures import planes as figures
from vaejax import autoencoders, corruption, heads, networks, score
from vaejax.errors import wrong
from vaejax.model import autoencoder


@dataclass(frozen=True)
class Config:
    density: Literal["mixture", "moons", "spiral", "ring"] = "mixture"  # where the data lie
    scale: float = 0.4  # standard deviation of the noise; the data are some 3 wide
    points: int = 5000  # data to train on
    hidden: tuple[int, ...] = (128, 128)  # units of the encoder's layers, mirrored in the decoder
    code: int = 32  # units of the code; more than the plane has, since the noise forces structure
    steps: int = 6000  # steps of training
    batch_size: int = 500  # points per step
    learning_rate: float = 3e-3  # Adam's step size, falling to 0 along a cosine
    chains: int = 2000  # Langevin chains, from places even over the picture
    walk: int = 2000  # steps of each
    step_share: float = 0.1  # Langevin's step size, in units of scale^2
    seed: int = 0  # of every random number in the run
    out: Path | None = None  # folder of the run; by default a new one under runs/
    smoke: bool = False  # shrink everything to seconds, to see that it runs
    resume: ClassVar[bool] = False  # a minute long: there is nothing to continue


PRESETS = {
    "mixture": Config(),
    "moons": Config("moons", scale=0.2),
    "spiral": Config("spiral", scale=0.2),
    "ring": Config("ring", scale=0.4),
}


def main(config: Config) -> dict[str, Any]:
    """Train, compare with the true score, walk and draw; returns what summary.json holds."""
    config = common.shrunk(
        config, steps=3, batch_size=20, points=200, chains=20, walk=3, hidden=(8,)
    )
    if config.chains < 2:
        raise wrong("score_field: --chains", 1, "2 or more", "their distances are compared")
    common.check_batch(config, config.points)
    rng, keys = np.random.default_rng(config.seed), jax.random.split(jax.random.key(config.seed), 4)
    x, new = (
        planes.sample(config.density, n, rng) for n in (config.points, max(config.chains, 4000))
    )
    layers = partial(networks.MLP, activation=nn.tanh)
    model = autoencoder(
        nn.Sequential([layers(config.hidden), heads.Code(config.code)]),
        nn.Sequential([layers(config.hidden[::-1]), heads.FixedNormal(2, 0.5**0.5)]),
    )
    corrupt = corruption.gaussian(config.scale)
    fit = common.whole_run(
        "score_field",
        autoencoders.denoising(model, corrupt=corrupt),
        config.learning_rate,
        config.steps,
        config.batch_size,
    )
    folder = common.open_folder(config, name=f"score_field-{config.density}")
    params = fit(keys[0], model.init(keys[1], x[0]), x)
    learned = partial(score.score, model, params, scale=config.scale)
    true = jax.grad(planes.smoothed(config.density, config.scale, x).log_prob)
    fields = {"learned: (r(x) - x) / scale^2": learned, "true, of the smoothed density": true}

    noisy = np.asarray(jax.vmap(corrupt)(jax.random.split(keys[2], len(new)), new))
    half = np.ptp(x, axis=0).max() / 2 + 2.5 * config.scale
    box = (x.min(axis=0) + x.max(axis=0)) / 2 + half * np.array([[-1.0], [1.0]])
    start = rng.uniform(box[0], box[1], (config.chains, 2)).astype(np.float32)
    walk = partial(
        score.langevin, learned, step_size=config.step_share * config.scale**2, steps=config.walk
    )
    ends = np.asarray(jax.jit(jax.vmap(walk))(jax.random.split(keys[3], config.chains), start))

    def values(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found, exact = (np.asarray(jax.jit(jax.vmap(field))(points)) for field in (learned, true))
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
        return found, exact, np.sum(found * exact, axis=1) / lengths

    found, exact, cosine = values(noisy)
    summary: dict[str, Any] = {
        "cosine": cosine.mean(),
        "cosine_even_over_picture": values(planes.grid(box, 60))[2].mean(),
        "relative_squared_error": np.sum((found - exact) ** 2) / np.sum(exact**2),
        "energy_distance_langevin_to_noisy_data": measures.energy_distance(ends, noisy),
        "energy_distance_langevin_to_data": measures.energy_distance(ends, new),
    }
    marks = None
    if config.density == "mixture":
        marks = {name: planes.zeros(field, box) for name, field in fields.items()}
        mine, theirs = marks.values()
        for kind in planes.KINDS:
            summary[f"zeros_{kind}_learned"] = len(mine[kind])
            summary[f"zeros_{kind}_true"] = len(theirs[kind])
            gaps = np.linalg.norm(theirs[kind][:, None] - mine[kind], axis=2)
            summary[f"zeros_{kind}_distance"] = gaps.min(axis=1).max() if gaps.size else None
        first, last = (
            np.linalg.norm(p[:, None] - planes.MEANS, axis=2).argmin(1) for p in (start, ends)
        )
        summary["mode_shares_true"] = planes.WEIGHTS.tolist()
        summary["mode_shares_start"] = (np.bincount(first, minlength=3) / len(start)).tolist()
        summary["mode_shares_end"] = (np.bincount(last, minlength=3) / len(ends)).tolist()
        summary["share_still_in_the_mode_of_the_start"] = (first == last).mean()
    summary = {k: float(v) if isinstance(v, np.generic) else v for k, v in summary.items()}
    noise, walked = f"data with noise, scale {config.scale:g}", f"{config.walk} Langevin steps"
    points = {"data": new, noise: noisy, walked: ends}
    drawn = {
        "field": figures.picture(fields, x, box, marks),
        "langevin": figures.clouds(points, box, config.chains),
    }
    note = "cosine with the true score: mean over noisy points"
    return common.finish(folder, summary, drawn, note)


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
