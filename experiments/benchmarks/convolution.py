"""Training speed of the `conv` preset, by how it is convolved and by how the loop is run.

    python -m experiments.benchmarks.convolution [--rounds N] [--out FILE.json]

What is compared, and the figures to expect: experiments/benchmarks/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, vae
from experiments.benchmarks import paired
from experiments.benchmarks.classical import ClassicalVAE, classical_loss
from experiments.common import image_vae
from vaejax import data, networks, objectives, train
from vaejax.types import Batch, Loss, Params


@dataclass(frozen=True)
class Config:
    size: tuple[int, int] = (28, 28)  # height and width of the images, multiples of 4
    batch_size: int = 128  # images per step
    steps: int = 10  # steps of every variant in a round
    rounds: int = 11  # times that the variants are run, in turn
    seed: int = 0  # of images, parameters and noise
    out: Path | None = None  # JSON file to write
    smoke: bool = False  # shrink everything to seconds, to see that it runs


PRESETS = {"conv": Config()}


def programs(config: Config) -> dict[str, paired.Program]:
    """The variants, compiled: each trains `config.steps` steps from the start on the same data."""
    preset, steps = vae.PRESETS["conv"], config.steps
    data_key, init_key, net_key, order_key, key = jax.random.split(jax.random.key(config.seed), 5)
    shape, n = (*config.size, 1), steps * config.batch_size
    images = jax.random.bits(data_key, (n, *shape), jnp.uint8)
    shuffled, adam = train.shuffled(n, config.batch_size), optax.adam(preset.learning_rate)
    # The loops by hand get the very batches that the scan chooses, ready made, on the device.
    batches = [Batch(images[shuffled(order_key, jnp.asarray(i))]) for i in range(steps)]

    def program(params: Params, loss: Loss, transform: Any, means: Any, *, scan: bool) -> Any:
        init, update = train.make_step(loss, adam, transform=transform)
        if scan:
            update = train.make_scan(
                loss,
                adam,
                steps=steps,
                transform=transform,
                indices=lambda _, step: shuffled(order_key, step),
            )

        def start() -> train.TrainState:  # a copy, since the program takes over its buffers
            return init(jax.random.clone(key), jax.tree.map(jnp.copy, params))

        def train_all(state: train.TrainState) -> Any:
            if scan:
                return compiled(state, images)[1]["loss"][-1]
            for batch in batches:  # nothing is fetched on the way
                state, metrics = compiled(state, batch)
            return metrics["loss"]

        state, began = start(), perf_counter()
        with mock.patch.object(networks, "conv", means):  # while tracing, which is when it counts
            traced = jax.jit(update, donate_argnums=0).lower(state, images if scan else batches[0])
        compiled = traced.compile()
        facts = {
            "compile_seconds": perf_counter() - began,
            "native_convolution": " convolution(" in (compiled.as_text() or ""),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        }
        return paired.Program(start, train_all, n, facts)

    model, net = image_vae.build(preset, shape, np.full(shape, 0.5)), ClassicalVAE(preset.latent)
    params, native = model.init(init_key, images[0] / 255), networks.conv_native
    net_params = jax.jit(net.init)(net_key, images[:1] / 255, jax.random.key(config.seed))
    ours = partial(program, params, objectives.elbo(model), data.binarize)
    return {
        "scan_product": ours(networks.conv, scan=True),
        "step_native": ours(native, scan=False),
        "scan_native": ours(native, scan=True),
        "step_flax": program(net_params, classical_loss(net), None, native, scan=False),
    }


def main(config: Config) -> dict[str, Any]:
    """Measure, print a table and write it; returns what the JSON file holds."""
    if config.smoke:
        config = replace(config, size=(8, 4), batch_size=4, steps=2, rounds=2)
    return paired.measure(programs(config), config, unit="images", numerator="scan_product")


if __name__ == "__main__":
    main(common.parse(PRESETS, __doc__ or ""))
