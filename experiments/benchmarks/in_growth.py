"""The process of one size of one curve of `growth`: ready to be timed, its memory measured."""

import ctypes
import gc
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import in_vaejax
from experiments.benchmarks.memory import peak_memory
from experiments.benchmarks.suite import Burst, Sizes, levels
from experiments.benchmarks.worker import device_peak
from vaejax import decomposition, disentanglement

VALUES = (3, 6, 40, 32, 32)  # of the factors of dSprites


def build(workload: str, variant: str, sizes: Sizes) -> Burst:
    """The burst; `mb` among its facts is what the process held at most while the burst ran.

    What compilation took and left free is given back before. With an accelerator it is the
    device's memory.
    """
    burst = made(workload, sizes)
    burst.run()
    give_back()
    began = perf_counter()
    with peak_memory() as peak:
        while perf_counter() - began < 0.2:  # it is read 50 times a second
            burst.run()
    on_device = device_peak()
    return burst._replace(facts=burst.facts | {"mb": peak() if on_device is None else on_device})


def tiny(sizes: Sizes) -> Sizes:
    """The same kind of work, of next to no size."""
    return replace(
        sizes,
        side=8,
        hidden=(8,),
        latent=3,
        particles=min(sizes.particles, 4),
        images=40,
        batch=5,
        chunk=2,
        steps=2,
        members=2,
    )


def made(workload: str, sizes: Sizes) -> Burst:
    """The burst, compiled or compiled by its first run."""
    if workload == "mig":
        return _gap(sizes)
    if workload == "decompose":
        return _decomposition(sizes)
    if workload == "population":
        return in_vaejax.build("W1-binary", "vaejax_population", sizes)
    return in_vaejax.build("W4" if workload == "likelihood" else "W1-binary", "vaejax", sizes)


def give_back() -> None:
    """Return memory that is free to the system, which the C library of Linux can do."""
    gc.collect()
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _decomposition(sizes: Sizes) -> Burst:
    """One `decompose` of `images` examples by `particles` draws, under parameters as they start."""
    model, x = in_vaejax.model_of(sizes), levels(sizes) / np.float32(255)
    params, images = model.init(jax.random.key(0), x[0]), jnp.asarray(x)
    del x

    def run() -> float:
        key = jax.random.key(1)
        found = decomposition.decompose(model, params, key, images, draws=sizes.particles)
        return found.rate.value

    return Burst(run, sizes.images, {})


def _gap(sizes: Sizes) -> Burst:
    """One `mig` of `images` codes and the factors of dSprites."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(sizes.images, sizes.latent))
    factors: Any = rng.integers(0, VALUES, size=(sizes.images, len(VALUES)))
    return Burst(lambda: disentanglement.mig(codes, factors).value, sizes.images, {})
