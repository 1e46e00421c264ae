"""How long a run goes on, what it compares, and what it leaves on the disk."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vaejax.errors import at_least_one, wrong


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bookkeeping:
    """Everything about a run that changes none of its steps.

    Args:
      epochs: how many the run has.
      chunk: steps of one compiled call, at most.
      evaluate_every: epochs between two evaluations.
      monitor: the name of the number, among those evaluated, that is to be minimised.
      patience: evaluations without a lower one after which the run stops; None for never.
      directory: where checkpoints go; None for nowhere.
      keep: how many checkpoints stay.
      checkpoint_every: epochs between two checkpoints.
      resume: whether to go on from the newest checkpoint in the directory.
      hook: changes the state after each epoch; None for no change.
      log: takes the numbers of each epoch; None for nobody.
      progress: whether to show a progress bar.
    """

    epochs: int
    chunk: int
    evaluate_every: int
    monitor: str
    patience: int | None
    directory: str | Path | None
    keep: int
    checkpoint_every: int
    resume: bool
    hook: Callable[[Any], Any] | None
    log: Callable[[dict[str, Any]], None] | None
    progress: bool

    def check(self, evaluate: Any) -> None:
        """Raise ValueError for counts below 1, and for options that would do nothing.

        `evaluate`: what the run is evaluated by, or None.
        """
        at_least_one(
            "fit",
            ("patience",),
            epochs=self.epochs,
            patience=self.patience,
            evaluate_every=self.evaluate_every,
            checkpoint_every=self.checkpoint_every,
            keep=self.keep,
            chunk=self.chunk,
        )
        if self.patience is not None and evaluate is None:
            fix = "give evaluate=..."
            raise wrong("fit: patience", self.patience, "evaluate beside it", fix)
        if self.resume and self.directory is None:
            fix = "give directory=..."
            raise wrong("fit: resume", self.resume, "a directory to resume from", fix)
        if self.monitor == "elbo":
            fix = "monitor 'loss', its negative"
            raise wrong("fit: monitor", "'elbo'", "what is minimised", fix)

    def piece(self, steps: int) -> int:
        """Steps of a call in an epoch of `steps`: an even part where there is one, at most `chunk`.

        Calls that are all alike need one compiled program.
        """
        parts = -(-steps // self.chunk)
        if parts <= 1:
            return steps
        even = (n for n in range(parts, min(2 * parts, steps) + 1) if steps % n == 0)
        return steps // next(even, parts)
