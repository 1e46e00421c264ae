"""Images read from the disk while a VAE trains, beside the same training on images in memory.

    python -m experiments.benchmarks.feeding [--rows N] [--folder DIR]

Writes `rows` images of 28x28 uint8 (4 GB by default, removed at the end), streams `steps` batches
out of all of it, in the random order of training, through `vaejax.feed`, and reports the share of
the time that the device waited for input, and the peak of anonymous memory over what the process
held before; then times streaming and the scan over images in memory in turn (784-400-20-400-784,
Bernoulli, batch 128, Adam). Figures to expect: experiments/benchmarks/README.md.
"""

import shutil
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
from experiments.benchmarks.paired import Program, measure
from experiments.common import image_vae
from vaejax import data, feed, objectives, sources, train
from vaejax.errors import wrong


@dataclass(frozen=True)
class Config:
    rows: int = 5_200_000  # images of the file
    steps: int = 4000  # batches streamed while memory is watched
    batch_size: int = 128  # images per step
    resident: int = 60_000  # images that the scan holds in memory
    rounds: int = 9  # in which both are timed, one after the other
    timed: int = 200  # steps of each in a round
    workers: int = 4  # threads that read
    prefetch: int = 2  # batches on the device ahead of the steps
    folder: Path = Path(tempfile.gettempdir())  # where the file is written
    seed: int = 0  # of data and parameters
    out: Path | None = None  # JSON file to write
    smoke: bool = False  # shrink everything to seconds, to see that it runs


PRESETS = {"feeding": Config()}


def write(config: Config, path: Path) -> None:
    """The file, 100,000 images at a time."""
    rng = np.random.default_rng(config.seed)
    shape = config.rows, 28, 28
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, config.rows, 100_000):
        part = file[start : start + 100_000]
        part[:] = rng.integers(0, 256, part.shape, np.uint8)
    file.flush()


def problem(config: Config) -> tuple[Any, Any, Any]:
    """Loss, optimizer and parameters."""
    shape = (28, 28, 1)
    model = image_vae.build(vae.MNIST, shape, np.full(shape, 0.5))
    params = jax.jit(model.init)(jax.random.key(config.seed), jnp.zeros(shape))
    return objectives.elbo(model), optax.adam(1e-3), params


def streamed(config: Config, source: sources.Source, begin: Any, step: Any) -> Callable[..., Any]:
    """`steps -> (loss, seconds, seconds waited)` of a streamed run."""
    order_key = jax.random.fold_in(begin.key, 1)
    order = feed.in_order(train.shuffled(source.size, config.batch_size), order_key)

    def steps(count: int, start: int = 0) -> tuple[Any, float, float]:
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


def compare(config: Config, path: Path) -> dict[str, Any]:
    """Stream, watching memory; then time both."""
    loss, adam, params = problem(config)
    init, step = train.make_step(loss, adam, transform=data.binarize)
    begin = init(jax.random.key(config.seed), params)
    source = sources.open(path, "all")
    began = perf_counter()
    run_steps = streamed(config, source, begin, jax.jit(step, donate_argnums=0))
    run_steps(5)  # compiles
    step_seconds = perf_counter() - began
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
    copy = lambda: jax.tree.map(jnp.copy, begin)  # noqa: E731
    jax.block_until_ready(scan(copy(), resident))
    facts = {"compile_seconds": perf_counter() - began}
    work = config.timed * config.batch_size
    programs = {
        "streamed": Program(
            lambda: None,
            lambda _: run_steps(config.timed)[0],
            work,
            {"compile_seconds": step_seconds},
        ),
        "in_memory": Program(copy, lambda state: scan(state, resident)[1]["loss"][-1], work, facts),
    }
    timed = measure(programs, replace(config, out=None), unit="images", numerator="streamed")
    return memory | timed


def main(config: Config) -> dict[str, Any]:
    """Write, measure, report and remove."""
    if config.smoke:
        config = replace(config, rows=2000, steps=10, resident=500, rounds=2, timed=3)
    needed, free = config.rows * 784, shutil.disk_usage(config.folder).free
    if free < 1.1 * needed:
        got, fix = f"{free / 1e9:.1f} GB free", "name another --folder, or fewer --rows"
        raise wrong("feeding: --folder", got, f"{1.1 * needed / 1e9:.1f} GB", fix)
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        path = Path(folder, "images.npy")
        write(config, path)
        report = compare(config, path)
    if config.out is not None:
        common.write_json(config.out, report)
    return report


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
