"""The vector field that a denoising autoencoder learns in the plane (Alain and Bengio, 2014).

    python -m experiments.score_field [mixture|moons|spiral|ring] --scale S --seed N

(r(x) - x) / scale^2 beside the true score of the smoothed data, whose zeros are maxima, minima and
saddles of the density; and Langevin samples along it. Expected numbers: experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import common
from vaejax import autoencoders, corruption, distributions, heads, networks, score, train
from vaejax.errors import at_least_one, wrong
from vaejax.model import autoencoder

MEANS = 1.6 * np.array([[0, 1], [-(0.75**0.5), -0.5], [0.75**0.5, -0.5]], np.float32)
WEIGHTS, SPREAD = np.array([0.5, 0.3, 0.2]), 0.3  # of the mixture
KINDS = {"maximum": ("o", "tab:red"), "saddle": ("P", "tab:orange"), "minimum": ("X", "tab:blue")}


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


def sample(density: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Data `[n, 2]`: of three Gaussians, or evenly along curves without any thickness."""
    t, side = rng.uniform(size=n), rng.integers(2, size=n)
    if density == "mixture":
        x = MEANS[rng.choice(3, n, p=WEIGHTS)] + SPREAD * rng.normal(size=(n, 2))
    elif density == "moons":
        half = np.stack([np.cos(np.pi * t) - 0.5, np.sin(np.pi * t) - 0.25], 1)
        x = 1.2 * np.where(side[:, None] == 0, half, -half)
    elif density == "spiral":
        angle = 3 * np.pi * np.sqrt(t + 0.05)  # arcs of equal length are about as likely
        x = 0.2 * angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    else:
        x = 1.5 * np.stack([np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)], 1)
    return x.astype(np.float32)


def smoothed(config: Config, x: np.ndarray) -> distributions.Mixture:
    """The data's density convolved with N(0, scale^2 I): known, or that of the points in x."""
    if config.density == "mixture":
        scales = jnp.full((3, 2), (SPREAD**2 + config.scale**2) ** 0.5)
        return distributions.Mixture(jnp.log(WEIGHTS), distributions.Normal(MEANS, scales))
    scales = jnp.full(x.shape, config.scale)
    return distributions.Mixture(jnp.zeros(len(x)), distributions.Normal(x, scales))


def zeros(field: Any, box: np.ndarray) -> dict[str, np.ndarray]:
    """Zeros `[k, 2]` of a field inside a box, by Newton's method from a grid, by their kind."""
    starts = grid(box, 25)
    jacobian = jax.jacfwd(field)

    def newton(x: Any, _: None) -> Any:
        step = jnp.linalg.solve(jacobian(x) + 1e-6 * jnp.eye(2), field(x))
        return x - step * jnp.minimum(1, 0.2 / (jnp.linalg.norm(step) + 1e-9)), None

    def one(x: Any) -> Any:
        x, _ = jax.lax.scan(newton, x, length=100)
        J = jacobian(x)
        return x, jnp.linalg.norm(field(x)), jnp.linalg.eigvalsh(J + J.T)

    ends, lengths, slopes = (np.asarray(v) for v in jax.jit(jax.vmap(one))(starts))
    good = (lengths < 1e-3) & np.all((ends > box[0]) & (ends < box[1]), axis=1)
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for end, slope in zip(ends[good], slopes[good], strict=True):
        kind = found[("maximum", "saddle", "minimum")[int((slope > 0).sum())]]
        if all(np.linalg.norm(end - other) > 0.05 for other in kind):
            kind.append(end)
    return {kind: np.reshape(places, (-1, 2)) for kind, places in found.items()}


def grid(box: np.ndarray, n: int) -> np.ndarray:
    """An n x n grid of points of the box, `[n * n, 2]`."""
    return np.stack(np.meshgrid(*np.linspace(box[0], box[1], n).T), -1).reshape(-1, 2)


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """`2 E|X - Y| - E|X - X'| - E|Y - Y'|`, unbiased: 0 in the mean for equal distributions."""
    from scipy.spatial.distance import cdist

    own = (cdist(a, a).sum() / (len(a) * (len(a) - 1)) for a in (x, y))
    return float(2 * cdist(x, y).mean() - sum(own))


def panels(titles: list[str], box: np.ndarray) -> Any:
    """A figure with axes side by side, each over the same box of the plane."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(titles), 5.2), layout="constrained")
    axes = figure.subplots(1, len(titles), sharex=True, sharey=True)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlim=box[:, 0], ylim=box[:, 1], xlabel="x1", title=title, aspect="equal")
    axes[0].set_ylabel("x2")
    return figure, axes


def picture(fields: dict[str, Any], x: np.ndarray, box: np.ndarray, marks: Any) -> Any:
    """Arrows of each field over the data, cut at their median length, and marks at its zeros."""
    figure, axes = panels(list(fields), box)
    places = grid(box, 27)
    for axis, (name, field) in zip(axes, fields.items(), strict=True):
        arrows = np.asarray(jax.jit(jax.vmap(field))(places))
        length = np.linalg.norm(arrows, axis=1, keepdims=True)
        arrows = arrows / np.maximum(length, 1e-9) * np.minimum(length, np.quantile(length, 0.5))
        axis.scatter(*x[:1500].T, s=5, color="tab:green", alpha=0.35, linewidths=0, label="data")
        axis.quiver(*places.T, *arrows.T, angles="xy", color="0.25", width=0.0028)
        for kind, (marker, colour) in KINDS.items() if marks else ():
            style = {"s": 90, "color": colour, "edgecolors": "white", "zorder": 3}
            axis.scatter(*marks[name][kind].T, marker=marker, label=f"zero: {kind}", **style)
    title = "arrows longer than the median are cut to it"
    legend = {"loc": "outside lower center", "ncols": 4, "frameon": False, "title": title}
    figure.legend(*axes[-1].get_legend_handles_labels(), **legend)
    return figure


def main(config: Config) -> dict[str, Any]:
    """Train, compare with the true score, walk and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(config, steps=3, batch_size=20, points=200, chains=20, walk=3, hidden=(8,))
    sizes = {"chains": config.chains - 1, "points": config.points, "batch_size": config.batch_size}
    at_least_one("score_field", steps=config.steps, walk=config.walk, **sizes)
    rng, keys = np.random.default_rng(config.seed), jax.random.split(jax.random.key(config.seed), 4)
    x, new = (sample(config.density, n, rng) for n in (config.points, max(config.chains, 4000)))
    layers = partial(networks.MLP, activation=nn.tanh)
    model = autoencoder(
        nn.Sequential([layers(config.hidden), heads.Code(config.code)]),
        nn.Sequential([layers(config.hidden[::-1]), heads.FixedNormal(2, 0.5**0.5)]),
    )
    corrupt = corruption.gaussian(config.scale)
    adam = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    fit = train.make_train(
        autoencoders.denoising(model, corrupt=corrupt),
        adam,
        steps=config.steps,
        batch_size=config.batch_size,
    )
    folder = common.open_folder(config, name=f"score_field-{config.density}")
    state, history = jax.jit(fit)(keys[0], model.init(keys[1], x[0]), x)
    if not np.isfinite(history["loss"]).all():
        raise wrong("score_field: training", "a loss not finite", "finite", "lower --learning-rate")
    learned = partial(score.score, model, state.params, scale=config.scale)
    true = jax.grad(smoothed(config, x).log_prob)
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
        "cosine_even_over_picture": values(grid(box, 60))[2].mean(),
        "relative_squared_error": np.sum((found - exact) ** 2) / np.sum(exact**2),
        "energy_distance_langevin_to_noisy_data": energy_distance(ends, noisy),
        "energy_distance_langevin_to_data": energy_distance(ends, new),
    }
    marks = None
    if config.density == "mixture":
        marks = {name: zeros(field, box) for name, field in fields.items()}
        mine, theirs = marks.values()
        for kind in KINDS:
            summary[f"zeros_{kind}_learned"] = len(mine[kind])
            summary[f"zeros_{kind}_true"] = len(theirs[kind])
            gaps = np.linalg.norm(theirs[kind][:, None] - mine[kind], axis=2)
            summary[f"zeros_{kind}_distance"] = gaps.min(axis=1).max() if gaps.size else None
        first, last = (np.linalg.norm(p[:, None] - MEANS, axis=2).argmin(1) for p in (start, ends))
        summary["mode_shares_true"] = WEIGHTS.tolist()
        summary["mode_shares_start"] = (np.bincount(first, minlength=3) / len(start)).tolist()
        summary["mode_shares_end"] = (np.bincount(last, minlength=3) / len(ends)).tolist()
        summary["share_still_in_the_mode_of_the_start"] = (first == last).mean()
    summary = {k: float(v) if isinstance(v, np.generic) else v for k, v in summary.items()}
    common.write_json(folder / "summary.json", summary)
    figure, axes = panels(
        ["data", f"data with noise, scale {config.scale:g}", f"{config.walk} Langevin steps"], box
    )
    for axis, each in zip(axes, (new, noisy, ends), strict=True):
        axis.scatter(*each[: config.chains].T, s=4, alpha=0.5, linewidths=0)
    common.save_figures(folder, {"field": picture(fields, x, box, marks), "langevin": figure})
    common.report(folder, summary, "cosine with the true score: mean over noisy points")
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
