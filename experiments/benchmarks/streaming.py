"""Memory and speed of a sparse autoencoder trained on a file that is streamed.

    python -m experiments.benchmarks.streaming [--rows N] [--size D] [--folder DIR]

Writes `rows x size` float32 (3 GB by default, removed at the end) chunk by chunk, trains
experiments.activations on it in one pass, and reports the peak of anonymous memory, RssAnon. Pages
of the mapped file are not counted, since the system may drop them at any time. Figures to expect:
experiments/benchmarks/README.md.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import activations, common
from experiments.benchmarks.memory import peak_memory
from experiments.benchmarks.options import Options
from experiments.benchmarks.scratch import large_array


@dataclass(frozen=True)
class Config(Options):
    rows: int = 1_000_000  # of the file
    size: int = 768  # dimensions of each
    atoms: int = 1536  # of the dictionary that they are made of
    active: int = 16  # atoms in each row, with coefficients from Uniform[0.5, 1.5]
    noise: float = 0.1  # norm of the Gaussian noise added to a row
    latent: int = 1536  # units of the code
    k: int = 16  # active units
    batch_size: int = 512  # rows per step
    folder: Path = Path(tempfile.gettempdir())  # where the file is written


PRESETS = {"streaming": Config()}


def fill(config: Config, file: np.ndarray) -> None:
    """Write the rows, 10,000 at a time."""
    rng = np.random.default_rng(config.seed)
    atoms = rng.normal(size=(config.atoms, config.size)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    for start in range(0, config.rows, 10_000):
        part = file[start : start + 10_000]
        part[:] = rng.normal(size=part.shape) * config.noise / config.size**0.5
        for _ in range(config.active):
            coefficient = rng.uniform(0.5, 1.5, (len(part), 1)).astype(np.float32)
            part += coefficient * atoms[rng.integers(config.atoms, size=len(part))]


def main(config: Config) -> dict[str, Any]:
    """Write, train, report and remove; returns what the JSON file holds."""
    if config.smoke:
        config = replace(
            config, rows=3000, size=32, atoms=48, active=3, latent=48, k=3, batch_size=100
        )
    shape = config.rows, config.size
    with large_array("streaming", config.folder, shape, np.float32) as (path, file):
        fill(config, file)
        file.flush()
        options = activations.Config(
            dataset=path,
            latent=config.latent,
            k=config.k,
            batch_size=config.batch_size,
            seed=config.seed,
            out=path.parent / "run",
        )
        with peak_memory() as peak:
            summary = activations.main(options)
            sizes = {"file_gb": path.stat().st_size / 1e9, "rss_anon_peak_gb": peak() / 1e3}
            report = {**sizes, **summary, **common.circumstances()}
    print(
        "peak of anonymous memory {rss_anon_peak_gb:.2f} GB, file {file_gb:.2f} GB".format(**sizes)
    )
    if config.out is not None:
        common.write_json(config.out, report)
    return report


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
