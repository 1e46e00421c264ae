"""Images read from the disk while a VAE trains, beside the same training on images in memory.

    python -m experiments.benchmarks.feeding [--rows N] [--folder DIR]

Writes `rows` images of 28x28 uint8 (4 GB by default, removed at the end). Then `vaejax.feed`
streams `steps` batches out of all of them, in the random order of training. Reported are the share
of the time that the device waited for input, and the peak of anonymous memory over what the process
held before. Then streaming and the scan over images in memory are timed in turn
(784-400-20-400-784, Bernoulli, batch 128, Adam). Figures to expect:
experiments/benchmarks/README.md.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, vae
from experiments.benchmarks.memory import peak_memory
from experiments.benchmarks.options import Timed
from experiments.benchmarks.paired import Program, measure
from experiments.benchmarks.scratch import large_array
from experiments.common import image_vae
from vaejax import data, feed, objectives, sources, train
from vaejax.types import Array, Batch, Loss, Metrics, Params

SHAPE = (28, 28, 1)
Step = Callable[[train.TrainState, Batch], tuple[train.TrainState, Metrics]]


@dataclass(frozen=True)
class Config(Timed):
    rows: int = 5_200_000  # images of the file
    steps: int = 4000  # batches streamed while memory is watched
    batch_size: int = 128  # images per step
    resident: int = 60_000  # images that the scan holds in memory
    rounds: int = 9  # in which both are timed, one after the other
    timed: int = 200  # steps of each in a round
    workers: int = 4  # threads that read
    prefetch: int = 2  # batches on the device ahead of the steps
    folder: Path = Path(tempfile.gettempdir())  # where the file is written


PRESETS = {"feeding": Config()}


def fill(config: Config, file: np.ndarray) -> None:
    """Write the images, 100,000 at a time."""
    rng = np.random.default_rng(config.seed)
    for start in range(0, config.rows, 100_000):
        part = file[start : start + 100_000]
        part[:] = rng.integers(0, 256, part.shape, np.uint8)


def problem(config: Config) -> tuple[Loss, optax.GradientTransformation, Params]:
    """Loss, optimizer and parameters."""
    model = image_vae.build(vae.MNIST, SHAPE, np.full(SHAPE, 0.5))
    params = jax.jit(model.init)(jax.random.key(config.seed), jnp.zeros(SHAPE))
    return objectives.elbo(model), optax.adam(1e-3), params


def streamed(
    config: Config, source: sources.Source, begin: train.TrainState, step: Step
) -> Callable[..., tuple[Array, float, float]]:
    """Streams `count` steps: a function `(count, start=0) -> (loss, seconds, seconds waited)`."""
    order_key = jax.random.fold_in(begin.key, 1)
    order = feed.in_order(train.shuffled(source.size, config.batch_size), order_key)

    def steps(count: int, start: int = 0) -> tuple[Array, float, float]:
        state, began, stop = jax.tree.map(jnp.copy, begin), perf_counter(), start + count
        with feed.feed(
            source,
            order,
            start=start,
            stop=stop,
            workers=config.workers,
            prefetch=config.prefetch,
        ) as batches:
            for batch in batches:
                state, metrics = step(state, batch)
                batches.dispatched(metrics)
            jax.block_until_ready(metrics)
        return metrics["loss"], perf_counter() - began, batches.waited

    return steps


def watched(config: Config, path: Path, run_steps: Callable[..., Any]) -> dict[str, float]:
    """What `config.steps` streamed steps say: memory, rate, and share of the time waited."""
    with peak_memory() as before:
        sleep(0.2)
        held = before()
    with peak_memory() as peak:
        _, seconds, waited = run_steps(config.steps, start=100)
        memory = {
            "file_gb": path.stat().st_size / 1e9,
            "anonymous_gb": (peak() - held) / 1e3,
            "images_per_second": config.steps * config.batch_size / seconds,
            "waited_share": waited / seconds,
        }
    print("{file_gb:.2f} GB streamed in {anonymous_gb:.3f} GB of memory".format(**memory))
    print("{images_per_second:.0f} images/s, waiting {waited_share:.1%}".format(**memory))
    return memory


def compare(config: Config, path: Path) -> dict[str, Any]:
    """Stream while memory is watched; then time streaming and the scan in turn."""
    loss, adam, params = problem(config)
    init, step = train.make_step(loss, adam, transform=data.binarize)
    begin = init(jax.random.key(config.seed), params)
    source = sources.open(path, "all")
    began = perf_counter()
    run_steps = streamed(config, source, begin, jax.jit(step, donate_argnums=0))
    run_steps(5)  # compiles
    step_seconds = perf_counter() - began
    memory = watched(config, path, run_steps)

    began = perf_counter()
    resident = jax.device_put(source.read(np.arange(config.resident)))
    scan = jax.jit(
        train.make_scan(
            loss,
            adam,
            steps=config.timed,
            transform=data.binarize,
            indices=train.shuffled(config.resident, config.batch_size),
        ),
        donate_argnums=0,
    )

    def fresh() -> train.TrainState:  # a copy, since the scan takes over its buffers
        return jax.tree.map(jnp.copy, begin)

    jax.block_until_ready(scan(fresh(), resident))
    scan_seconds = perf_counter() - began
    work = config.timed * config.batch_size
    programs = {
        "streamed": Program(
            lambda: None,
            lambda _: run_steps(config.timed)[0],
            work,
            {"compile_seconds": step_seconds},
        ),
        "in_memory": Program(
            fresh,
            lambda state: scan(state, resident)[1]["loss"][-1],
            work,
            {"compile_seconds": scan_seconds},
        ),
    }
    timed = measure(programs, replace(config, out=None), unit="images", numerator="streamed")
    return memory | timed


def main(config: Config) -> dict[str, Any]:
    """Write, measure, report and remove; returns what the JSON file holds."""
    if config.smoke:
        config = replace(config, rows=2000, steps=10, resident=500, rounds=2, timed=3)
    shape = config.rows, 28, 28
    with large_array("feeding", config.folder, shape, np.uint8) as (path, file):
        fill(config, file)
        file.flush()
        report = compare(config, path)
    if config.out is not None:
        common.write_json(config.out, report)
    return report


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
