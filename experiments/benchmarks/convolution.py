"""Training speed of the `conv` preset, by kind of convolution and by kind of loop.

    python -m experiments.benchmarks.convolution [--rounds N] [--out FILE.json]

What is compared, and the figures to expect: experiments/benchmarks/README.md.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, vae
from experiments.benchmarks import paired
from experiments.benchmarks.classical import ClassicalVAE, classical_loss
from experiments.benchmarks.options import Timed
from experiments.common import image_vae
from vaejax import data, networks, objectives, train
from vaejax.types import Array, Batch, Key, Loss, Params, Transform


@dataclass(frozen=True)
class Config(Timed):
    size: tuple[int, int] = (28, 28)  # height and width of the images, multiples of 4
    batch_size: int = 128  # images per step
    steps: int = 10  # steps of every variant in a round


PRESETS = {"conv": Config()}


class Variant(NamedTuple):
    """What one of the programs trains, and how.

    loss, params, transform: of the model, as in `train.make_step`.
    convolve: the function that `networks.conv` is while the program is traced.
    scan: whether all steps are one program; else each step is a call of its own.
    """

    loss: Loss
    params: Params
    transform: Transform | None
    convolve: Callable[..., Array]
    scan: bool


def programs(config: Config) -> dict[str, paired.Program]:
    """The variants, compiled: each trains `config.steps` steps from the start on the same data."""
    preset = vae.PRESETS["conv"]
    data_key, init_key, net_key, order_key, key = jax.random.split(jax.random.key(config.seed), 5)
    shape, n = (*config.size, 1), config.steps * config.batch_size
    images = jax.random.bits(data_key, (n, *shape), jnp.uint8)
    adam = optax.adam(preset.learning_rate)
    model, net = image_vae.build(preset, shape, np.full(shape, 0.5)), ClassicalVAE(preset.latent)
    params = model.init(init_key, images[0] / 255)
    net_params = jax.jit(net.init)(net_key, images[:1] / 255, jax.random.key(config.seed))
    elbo, native = objectives.elbo(model), networks.conv_native
    variants = {
        "scan_product": Variant(elbo, params, data.binarize, networks.conv, True),
        "step_native": Variant(elbo, params, data.binarize, native, False),
        "scan_native": Variant(elbo, params, data.binarize, native, True),
        "step_flax": Variant(classical_loss(net), net_params, None, native, False),
    }
    return {
        name: _compiled(config, variant, adam, images, order_key, key)
        for name, variant in variants.items()
    }


def _compiled(
    config: Config,
    variant: Variant,
    adam: optax.GradientTransformation,
    images: Array,
    order_key: Key,
    key: Key,
) -> paired.Program:
    """One variant, ready to run."""
    loss, params, transform = variant.loss, variant.params, variant.transform
    shuffled = train.shuffled(len(images), config.batch_size)
    init, update = train.make_step(loss, adam, transform=transform)
    # A loop of single steps gets the very batches that the scan chooses, ready made on the device.
    batches: list[Any] = []
    if variant.scan:
        update = train.make_scan(
            loss,
            adam,
            steps=config.steps,
            transform=transform,
            indices=lambda _, step: shuffled(order_key, step),
        )
    else:
        steps = range(config.steps)
        batches = [Batch(images[shuffled(order_key, jnp.asarray(i))]) for i in steps]

    def start() -> train.TrainState:  # a copy, since the program takes over its buffers
        return init(jax.random.clone(key), jax.tree.map(jnp.copy, params))

    state, began = start(), perf_counter()
    traced = jax.jit(update, donate_argnums=0)
    # The layers of `networks` call `conv` by its name in their own file.
    with mock.patch.object(inspect.getmodule(networks.Conv), "conv", variant.convolve):
        compiled = traced.lower(state, images if variant.scan else batches[0]).compile()

    def train_all(state: train.TrainState) -> Array:
        if variant.scan:
            return compiled(state, images)[1]["loss"][-1]
        for batch in batches:  # nothing is fetched on the way
            state, metrics = compiled(state, batch)
        return metrics["loss"]

    facts = {
        "compile_seconds": perf_counter() - began,
        "native_convolution": " convolution(" in (compiled.as_text() or ""),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }
    return paired.Program(start, train_all, len(images), facts)


def main(config: Config) -> dict[str, Any]:
    """Measure, print a table and write it; returns what the JSON file holds."""
    if config.smoke:
        config = replace(config, size=(8, 4), batch_size=4, steps=2, rounds=2)
    return paired.measure(programs(config), config, unit="images", numerator="scan_product")


if __name__ == "__main__":
    main(common.parse(PRESETS, __doc__ or ""))
