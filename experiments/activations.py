"""A sparse autoencoder of any matrix in a file, such as the activations of a network's layer.

    python -m experiments.activations --dataset FILE.npy --latent 4096 --k 32

FILE.npy holds rows `[n, size]` (float16, 32 or 64) and is streamed from the disk in a random order,
never read whole: memory does not grow with n. Rows are centred and scaled by some 8000 of them; a
top-k code, a dictionary of unit norm, dead units revived. Leaves parameters in parameters.npz, the
share of the variance that is missed, how often each unit fires, and curves. The proof that memory
stays bounded at 10^6 rows of 768: experiments/benchmarks/streaming.py.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from experiments import common
from experiments.common import sparse_code
from experiments.common.figures import sparse as figures
from vaejax import data, plot, train
from vaejax.errors import wrong


@dataclass(frozen=True)
class Config(sparse_code.Code):
    latent: int = 1536  # units of the code
    k: int = 32  # active units of top_k, in the mean over the batch of batch_top_k
    learning_rate: float = 1e-3  # Adam's step size, falling to 0 over the last half
    batch_size: int = 512  # rows per step
    dataset: Path = Path("activations.npy")  # rows [n, size]
    epochs: int = 1  # passes over the rows
    sample: int = 8192  # rows in memory: for the scale, dead units and the final numbers
    every: int = 200  # steps between rows of metrics.jsonl, and between looks for dead units
    seed: int = 0  # of every random number in the run
    out: Path | None = None  # folder of the run; by default a new one under runs/
    smoke: bool = False  # shrink everything to seconds, to see that it runs
    resume = False  # a pass starts anew; data.stream(start=...) would continue one


PRESETS = {"activations": Config()}


def sampled(config: Config, key: Any) -> np.ndarray:
    """The first rows of the stream in another order than training's."""
    batches = data.stream(config.dataset, key=key, batch_size=256)
    first = islice(batches, -(-config.sample // 256))
    # The last batch of the file is filled up with rows of weight 0.
    rows = [b.x if isinstance(b.weight, tuple) else b.x[b.weight > 0] for b in first]
    return np.concatenate(rows)[: config.sample]


def main(config: Config) -> dict[str, Any]:
    """Train in passes over the file, measure and draw; returns what summary.json holds."""
    common.shrunk(config)  # checks; --smoke cuts the steps
    sample_key, init_key, fit_key, order_key, theta_key = jax.random.split(
        jax.random.key(config.seed), 5
    )
    sample = sampled(config, sample_key)
    if sample.ndim != 2:
        got, fix = f"rows of shape {sample.shape[1:]}", "write it as rows.reshape(len(rows), -1)"
        raise wrong("activations: --dataset", got, "a matrix [n, size]", fix)
    mean = sample.mean(axis=0)
    norm = np.sqrt(np.mean(np.sum((sample - mean) ** 2, axis=1)))

    def transform(key: Any, x: Any) -> Any:
        return (x - mean) / norm

    model = sparse_code.build(config, sample.shape[1:])
    params = sparse_code.begin(config, model, init_key, jnp.zeros(sample.shape[1:]))
    folder = common.open_folder(config, name=f"activations-{config.dataset.stem}")
    rows = len(np.load(config.dataset, mmap_mode="r"))
    steps = config.epochs * -(-rows // config.batch_size)
    loss, adam = sparse_code.loss_for(config, model), sparse_code.adam_for(config, steps)
    hook = sparse_code.reviving(
        config, model, adam, sample, steps, between=config.every, transform=transform
    )
    init, step = train.make_step(loss, adam, transform=transform)
    step, log, history = jax.jit(step, donate_argnums=0), common.logger(folder), []
    state = init(fit_key, params)
    began = perf_counter()
    batches = data.stream(
        config.dataset, key=order_key, batch_size=config.batch_size, epochs=config.epochs
    )
    for i, batch in enumerate(islice(batches, 20) if config.smoke else batches, 1):
        state, metrics = step(state, batch)
        if i % (5 if config.smoke else config.every) == 0 or i == steps:
            row = {"epoch": i * config.epochs / steps, "step": float(i)}
            history.append(row | {name: float(value) for name, value in metrics.items()})
            log(history[-1])
            state = state if hook is None else hook(state)
    seconds = perf_counter() - began

    final, seen = state.params, np.asarray((sample - mean) / norm)
    summary: dict[str, Any] = {
        "rows": rows,
        "steps": i,
        "rows_per_second": i * config.batch_size / seconds,
    }
    model, found = sparse_code.at_threshold(config, model, final, theta_key, seen)
    summary |= found
    z, r = sparse_code.codes(model, final, seen)
    summary |= sparse_code.measured(config, z, seen, r, name="squared_error") | {
        "seconds_train": seconds
    }
    arrays: Any = {"/".join(path): a for path, a in flatten_dict(final).items()}
    np.savez(folder / "parameters.npz", mean=mean, norm=norm, **arrays)
    missed = [row["distortion"] - seen[0].size * np.log(np.pi) / 2 for row in history]
    drawn = {
        "curves": plot.curves(
            {"batch": missed},
            steps=[row["step"] for row in history],
            xlabel="step",
            ylabel="share of the variance missed",
        ),
        "units": figures.units(config, z),
    }
    note = f"over {len(seen)} rows, which were also trained on"
    return common.finish(folder, summary, drawn, note)


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
