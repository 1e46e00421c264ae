"""Options that several benchmarks share."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Options of every benchmark that is not a comparison of libraries."""

    seed: int = 0  # of data, parameters and noise
    out: Path | None = None  # JSON file to write
    smoke: bool = False  # shrink everything to seconds, to see that it runs


@dataclass(frozen=True)
class Timed(Options):
    """Options of a benchmark that times its programs in turn."""

    rounds: int = 11  # times that the programs are run, in turn
