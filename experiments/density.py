"""A coupling flow (Dinh et al., 2017, arXiv:1605.08803) as a density of the plane.

    python -m experiments.density [preset] --shape moons|rings --layers L --epochs N --seed S

The data are drawn from a known density, many narrow Normals along two curves. So the nats of the
flow can be compared with the least that any model can reach, the entropy. With `--seeds N` and
`--sweep learning_rate=...` all runs train at once, on the points of the first seed. Expected
numbers and wall times: experiments/README.md. All figures in nats per point.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import common
from experiments.common import Trained, Trial, two_curves
from vaejax import evaluate, flows, objectives, plot
from vaejax.distributions import Mixture, MultivariateNormal
from vaejax.errors import wrong
from vaejax.types import Key


@dataclass(frozen=True)
class Config(common.SweepOptions):
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


class Points(NamedTuple):
    """The density that the points come from, and points `[n, 2]` to train and to test on."""

    truth: Mixture
    train: np.ndarray
    test: np.ndarray


def keys_of(config: Config) -> Key:
    """Keys of the data, the start, the training, the numbers and the samples."""
    return jax.random.split(jax.random.key(config.seed), 5)


def load(config: Config) -> Points:
    """Points drawn from the truth."""
    if not config.noise > 0:
        raise wrong("density: --noise", config.noise, "> 0", "a curve without width has no density")
    common.check_batch(config, config.examples)
    p, count = two_curves.truth(config.shape, config.noise), config.examples + config.examples // 2
    sample = jax.jit(lambda keys: jax.vmap(p.sample)(keys))
    points = np.asarray(sample(jax.random.split(keys_of(config)[0], count)))
    return Points(p, points[: config.examples], points[config.examples :])


def build(config: Config, points: Points) -> Trial:
    """The flow, ready to be trained."""
    network = flows.Density(flows.coupling(2, layers=config.layers, hidden=config.hidden))
    keys = keys_of(config)
    return Trial(
        network,
        partial(network.init, keys[1]),
        objectives.maximum_likelihood(network),
        common.falling_adam(config, len(points.train)),
        points.train,
        keys[2],
        checkpoint_every=config.epochs,
    )


def measure(config: Config, points: Points, flow: Trained) -> tuple[dict[str, Any], Any]:
    """Nats of the flow, of the truth and of one Normal; the mass of the flow on the grid."""
    x, (side, grid) = points.train, two_curves.grid(config.width, config.spacing)
    normal = MultivariateNormal(x.mean(axis=0), np.linalg.cholesky(np.cov(x.T)))
    found = {
        "flow": -evaluate.log_prob(flow.model, flow.params, keys_of(config)[3], points.test),
        "truth": -two_curves.log_probs(points.truth, points.test),
        "one_normal": -two_curves.log_probs(normal, points.test),
    }
    density = np.exp(two_curves.log_probs(flow.model.apply(flow.params), grid)).reshape(
        len(side), -1
    )
    excess = found["flow"] - found["truth"]
    numbers = {f"{name}_test_nats": float(np.mean(values)) for name, values in found.items()} | {
        "kl_nats": float(excess.mean()),
        "kl_error_nats": float(excess.std(ddof=1) / len(excess) ** 0.5),
        "integral": float(density.sum() * config.spacing**2),
        "test_points": len(points.test),
    }
    return numbers, (density, numbers)


def draw(config: Config, points: Points, flow: Trained, kept: Any) -> dict[str, Any]:
    """The density beside the truth, samples, and the likelihood in training."""
    (density, numbers), (side, grid) = kept, two_curves.grid(config.width, config.spacing)
    q, count = flow.model.apply(flow.params), min(3000, len(points.test))
    samples = jax.jit(lambda keys: jax.vmap(q.sample)(keys))
    panels = {
        "data": points.test[:3000],
        "true density": np.exp(two_curves.log_probs(points.truth, grid)).reshape(len(side), -1),
        f"flow: density, integral {numbers['integral']:.4f}": density,
        "flow: samples": samples(jax.random.split(keys_of(config)[4], count)),
    }
    least = np.full(config.epochs, -numbers["truth_test_nats"])
    curve = {"flow": -flow.history["loss"], "truth": least}
    return {
        "density": two_curves.panels(panels, side),
        "curves": plot.curves(curve, ylabel="log p(x), nats per point"),
    }


SMALLEST = {"layers": 2, "hidden": (8,), "examples": 200, "spacing": 0.1}
RECIPE = common.Recipe(
    "density",
    load,
    build,
    measure,
    draw,
    "nats per point; the truth's is the least that any density reaches",
    smoke={**SMALLEST, "batch_size": 50, "epochs": 2},
    swept={"learning_rate"},
    labels={"flow_test_nats": "-log p(x), nats per test point", "kl_nats": "KL, nats per point"},
    dataset="shape",
)


main = partial(common.main, RECIPE)
"""Train, measure against the truth, integrate and draw; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
