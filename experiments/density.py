"""A coupling flow (Dinh et al., 2017, arXiv:1605.08803) as a density of the plane.

    python -m experiments.density [preset] --shape moons|rings --layers L --steps N --seed S

The data are drawn from a known density, many narrow Normals along two curves, so that the nats of
the flow stand beside the least that any model can reach, the entropy. Expected numbers and wall
times: experiments/README.md. All figures in nats per point.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from vaejax import evaluate, flows, objectives, plot
from vaejax.distributions import Mixture, MultivariateNormal, Normal
from vaejax.errors import at_least_one, wrong


@dataclass(frozen=True)
class Config(common.Options):
    shape: Literal["moons", "rings"] = "moons"  # the curves along which the data lie
    noise: float = 0.1  # standard deviation of the data around them
    layers: int = 8  # coupling flows
    hidden: tuple[int, ...] = (64,)  # tanh units of each conditioner
    examples: int = 20_000  # points to train on, and half as many to test on
    batch_size: int = 200  # points per step
    epochs: int = 40  # passes over the points, the step size falling along a cosine
    learning_rate: float = 2e-3  # Adam's step size at the start
    spacing: float = 0.02  # of the grid on which the density is integrated
    width: float = 4.0  # half the side of that grid


MOONS = Config()
PRESETS = {"moons": MOONS, "rings": replace(MOONS, shape="rings")}


def truth(shape: str, noise: float, *, points: int = 200) -> Mixture:
    """The density that the data come from: as many Normals along each of two curves."""
    if shape == "moons":
        t = np.linspace(0, np.pi, points)
        upper = np.stack([np.cos(t) - 0.5, np.sin(t) - 0.25], axis=1)
        centres = np.concatenate([upper, -upper])
    else:
        t = np.linspace(0, 2 * np.pi, points, endpoint=False)
        circle = np.stack([np.cos(t), np.sin(t)], axis=1)
        centres = np.concatenate([0.8 * circle, 2 * circle])
    normals = Normal(jnp.asarray(centres, jnp.float32), jnp.full((2 * points, 1), noise))
    return Mixture(jnp.zeros(2 * points), normals)


def drawn(panels: dict[str, Any], side: Any) -> Any:
    """Points `[n, 2]` and densities `[side, side]` in panels of one size, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    top = max(values.max() for values in panels.values() if values.shape[1] > 2)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        if values.shape[1] == 2:
            axis.scatter(values[:, 0], values[:, 1], s=1, linewidths=0)
        else:
            extent = side[0], side[-1], side[0], side[-1]
            shown = axis.imshow(
                values, origin="lower", extent=extent, vmin=0, vmax=top, cmap="viridis"
            )
        axis.set(title=title, xlabel="x1", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal")
    axes[0].set_ylabel("x2")
    figure.colorbar(shown, ax=axes[-1], label="density, 1 / unit²", shrink=0.7)
    return figure


def main(config: Config) -> dict[str, Any]:
    """Train, measure against the truth, integrate and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config, layers=2, hidden=(8,), examples=200, batch_size=50, epochs=2, spacing=0.1
        )
    at_least_one("density", layers=config.layers, epochs=config.epochs)
    if not config.noise > 0:
        raise wrong("density: --noise", config.noise, "> 0", "a curve without width has no density")
    folder = common.open_folder(config, name=f"density-{config.shape}")
    data_key, init_key, fit_key, test_key, sample_key = jax.random.split(
        jax.random.key(config.seed), 5
    )
    p = truth(config.shape, config.noise)
    sample = jax.jit(lambda keys: jax.vmap(p.sample)(keys))
    points = np.asarray(sample(jax.random.split(data_key, config.examples + config.examples // 2)))
    x, test = points[: config.examples], points[config.examples :]

    network = flows.Density(flows.coupling(2, layers=config.layers, hidden=config.hidden))
    steps = config.epochs * (len(x) // config.batch_size)
    fitted = common.fit(
        config,
        folder,
        objectives.maximum_likelihood(network),
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps)),
        network.init(init_key),
        x,
        key=fit_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        checkpoint_every=config.epochs,
    )
    q = network.apply(fitted.params)
    side = np.arange(-config.width, config.width, config.spacing) + config.spacing / 2
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(np.float32)
    normal = MultivariateNormal(x.mean(axis=0), np.linalg.cholesky(np.cov(x.T)))

    def each(distribution: Any, at: Any) -> Any:
        return np.asarray(jax.jit(lambda at: jax.vmap(distribution.log_prob)(at))(at), float)

    found = {
        "flow": -evaluate.log_prob(network, fitted.params, test_key, test),
        "truth": -each(p, test),
        "one_normal": -each(normal, test),
    }
    density = np.exp(each(q, grid)).reshape(len(side), -1)
    excess = found["flow"] - found["truth"]
    summary = {f"{name}_test_nats": float(np.mean(values)) for name, values in found.items()} | {
        "kl_nats": float(excess.mean()),
        "kl_error_nats": float(excess.std(ddof=1) / len(excess) ** 0.5),
        "integral": float(density.sum() * config.spacing**2),
        "test_points": len(test),
        "seconds_train": common.seconds(folder),
    }
    common.write_json(folder / "summary.json", summary)
    flow_sample = jax.jit(lambda keys: jax.vmap(q.sample)(keys))
    panels = {
        "data": test[:3000],
        "true density": np.exp(each(p, grid)).reshape(len(side), -1),
        f"flow: density, integral {summary['integral']:.4f}": density,
        "flow: samples": flow_sample(jax.random.split(sample_key, min(3000, len(test)))),
    }
    curve = {
        "flow": -fitted.history["loss"],
        "truth": np.full(config.epochs, np.mean(-found["truth"])),
    }
    common.save_figures(
        folder,
        {
            "density": drawn(panels, side),
            "curves": plot.curves(curve, ylabel="log p(x), nats per point"),
        },
    )
    common.report(
        folder, summary, "nats per point; the truth's is the least that any density reaches"
    )
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
