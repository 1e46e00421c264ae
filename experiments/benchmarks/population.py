"""What a step of a population costs, against as many steps of its members alone.

    python -m experiments.benchmarks.population [--rounds N] [--out FILE.json]

The network is W1's, the data have MNIST's size. A batched step counter would compute a permutation
of the data at each step, and would show as a ratio far above 1. Figures to expect:
experiments/benchmarks/README.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, vae
from experiments.benchmarks import paired
from experiments.benchmarks.options import Timed
from experiments.common import image_vae
from vaejax import data, objectives, population, train
from vaejax.model import Model
from vaejax.types import Array, Loss

SHAPE = (28, 28, 1)


@dataclass(frozen=True)
class Config(Timed):
    members: tuple[int, ...] = (1, 4, 16)  # sizes of the populations
    examples: int = 60_000  # images of 28x28, made from a key
    batch_size: int = 128  # images per step of a member
    steps: int = 20  # steps of every variant in a round


PRESETS = {"mnist": Config()}


def programs(config: Config) -> dict[str, paired.Program]:
    """One run alone, and populations; each counts the images that all its members see."""
    model = image_vae.build(vae.PRESETS["mnist"], SHAPE, np.full(SHAPE, 0.5))
    images = jax.random.bits(jax.random.key(config.seed), (config.examples, *SHAPE), jnp.uint8)
    populations = {f"members_{n}": _together(config, model, images, n) for n in config.members}
    return {"alone": _alone(config, model, images), **populations}


def _made(model: Model, beta: Any) -> tuple[Loss, optax.GradientTransformation]:
    """Loss and optimizer of one member."""
    return objectives.elbo(model, beta=beta), optax.adam(vae.PRESETS["mnist"].learning_rate)


def _alone(config: Config, model: Model, images: Array) -> paired.Program:
    """One model by `train.make_scan`."""
    loss, adam = _made(model, 1.0)
    init, _ = train.make_step(loss, adam)
    order = train.shuffled(config.examples, config.batch_size)
    scan = train.make_scan(loss, adam, steps=config.steps, indices=order, transform=data.binarize)

    def start() -> train.TrainState:
        return init(jax.random.key(0), model.init(jax.random.key(1), images[0] / 255))

    return _compiled(scan, start, images, work=config.steps * config.batch_size)


def _together(config: Config, model: Model, images: Array, members: int) -> paired.Program:
    """`members` models by `population.make_scan`."""
    hyper = {"beta": jnp.linspace(0.5, 2.0, members)}
    order = train.shuffled(config.examples, config.batch_size)

    def make(hyper: Any) -> tuple[Loss, optax.GradientTransformation]:
        return _made(model, hyper["beta"])

    scan = population.make_scan(make, steps=config.steps, indices=order, transform=data.binarize)

    @jax.jit
    @jax.vmap
    def init(hyper: Any, key: Any, other: Any) -> train.TrainState:
        init_one, _ = train.make_step(*make(hyper))
        return init_one(key, model.init(other, jnp.zeros(SHAPE)))

    def start() -> train.TrainState:
        keys, others = (jax.vmap(jax.random.key)(jnp.arange(members)) for _ in range(2))
        return init(hyper, keys, others)

    first, work = jnp.zeros((), jnp.int32), members * config.steps * config.batch_size
    return _compiled(scan, start, hyper, first, images, work=work)


def _compiled(
    scan: Callable[..., Any], start: Callable[[], train.TrainState], *rest: Any, work: int
) -> paired.Program:
    """`scan(start(), *rest)`, compiled."""
    began = perf_counter()
    program = jax.jit(scan, donate_argnums=0).lower(start(), *rest).compile()
    facts = {"compile_seconds": perf_counter() - began}

    def go(state: train.TrainState) -> Array:
        return jnp.ravel(program(state, *rest)[1]["loss"])[-1]

    return paired.Program(start, go, work, facts)


def main(config: Config) -> dict[str, Any]:
    """Measure, print a table and write it; returns what the JSON file holds."""
    if config.smoke:
        config = replace(config, members=(2,), examples=64, batch_size=4, steps=2, rounds=2)
    return paired.measure(programs(config), config, unit="images", numerator="alone")


if __name__ == "__main__":
    main(common.parse(PRESETS, __doc__ or ""))
