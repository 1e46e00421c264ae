"""What a step of a population costs, against as many steps of its members alone.

    python -m experiments.benchmarks.population [--rounds N] [--out FILE.json]

W1's network and data of MNIST's size: a permutation of the data computed at each step, as a batched
step counter would bring, shows as a ratio far below 1. Figures to expect:
experiments/benchmarks/README.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, vae
from experiments.benchmarks import paired
from experiments.common import image_vae
from vaejax import data, objectives, population, train
from vaejax.types import Array


@dataclass(frozen=True)
class Config:
    members: tuple[int, ...] = (1, 4, 16)  # sizes of the populations
    examples: int = 60_000  # images of 28x28, made from a key
    batch_size: int = 128  # images per step of a member
    steps: int = 20  # steps of every variant in a round
    rounds: int = 11  # times that the variants are run, in turn
    seed: int = 0  # of images, parameters and noise
    out: Path | None = None  # JSON file to write
    smoke: bool = False  # shrink everything to seconds, to see that it runs


PRESETS = {"mnist": Config()}


def programs(config: Config) -> dict[str, paired.Program]:
    """One run alone, and populations; each counts the images that all its members see."""
    preset, steps, batch = vae.PRESETS["mnist"], config.steps, config.batch_size
    shape = (28, 28, 1)
    images = jax.random.bits(jax.random.key(config.seed), (config.examples, *shape), jnp.uint8)
    model = image_vae.build(preset, shape, np.full(shape, 0.5))
    order = train.shuffled(config.examples, batch)

    def make(hyper: Any) -> Any:
        return objectives.elbo(model, beta=hyper["beta"]), optax.adam(preset.learning_rate)

    def seeds(members: int) -> Array:
        return jax.vmap(jax.random.key)(jnp.arange(members))

    def compiled(traced: Any, make_state: Any, *rest: Any, work: int) -> paired.Program:
        began = perf_counter()
        program = traced.lower(make_state(), *rest).compile()
        facts = {"compile_seconds": perf_counter() - began}

        def go(state: Any) -> Array:
            return jnp.ravel(program(state, *rest)[1]["loss"])[-1]

        return paired.Program(make_state, go, work, facts)

    def alone() -> paired.Program:
        loss, adam = make({"beta": 1.0})
        init, _ = train.make_step(loss, adam)
        scan = train.make_scan(loss, adam, steps=steps, indices=order, transform=data.binarize)

        def start() -> train.TrainState:
            return init(jax.random.key(0), model.init(jax.random.key(1), images[0] / 255))

        return compiled(jax.jit(scan, donate_argnums=0), start, images, work=steps * batch)

    def together(members: int) -> paired.Program:
        hyper = {"beta": jnp.linspace(0.5, 2.0, members)}
        scan = population.make_scan(make, steps=steps, indices=order, transform=data.binarize)

        @jax.jit
        @jax.vmap
        def init(hyper: Any, key: Any, other: Any) -> train.TrainState:
            state, _ = train.make_step(*make(hyper))
            return state(key, model.init(other, jnp.zeros(shape)))

        def start() -> train.TrainState:
            return init(hyper, seeds(members), seeds(members))

        first = jnp.zeros((), jnp.int32)
        work = members * steps * batch
        return compiled(jax.jit(scan, donate_argnums=0), start, hyper, first, images, work=work)

    return {"alone": alone(), **{f"members_{n}": together(n) for n in config.members}}


def main(config: Config) -> dict[str, Any]:
    """Measure, print a table and write it; returns what the JSON file holds."""
    if config.smoke:
        config = replace(config, members=(2,), examples=64, batch_size=4, steps=2, rounds=2)
    return paired.measure(programs(config), config, unit="images", numerator="alone")


if __name__ == "__main__":
    main(common.parse(PRESETS, __doc__ or ""))
