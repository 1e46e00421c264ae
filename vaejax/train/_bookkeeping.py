"""How long a run goes on, what it compares, and what it leaves on the disk."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vaejax.errors import at_least_one, wrong
from vaejax.types import describe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bookkeeping:
    """Everything about a run that changes none of its steps.

    Args:
      function: what the user called, for messages.
      epochs: how many the run has.
      chunk: steps of one compiled call, at most.
      evaluate_every: epochs between two evaluations.
      monitor: the name of the number, among those evaluated, that is compared.
      maximize: whether it is to be maximised; else it is minimised.
      patience: evaluations without a better one after which the run stops; None for never.
      directory: where checkpoints go; None for nowhere.
      keep: how many checkpoints stay.
      checkpoint_every: epochs between two checkpoints.
      resume: whether to go on from the newest checkpoint in the directory.
      hook: changes the state after each epoch; None for no change.
      log: takes the numbers of each epoch; None for nobody.
      log_step: takes the numbers of each step; None for nobody.
      progress: whether to show a progress bar.
    """

    function: str
    epochs: int
    chunk: int
    evaluate_every: int
    monitor: str
    maximize: bool
    patience: int | None
    directory: str | Path | None
    keep: int
    checkpoint_every: int
    resume: bool
    hook: Callable[[Any], Any] | None
    log: Callable[[dict[str, Any]], None] | None
    log_step: Callable[[dict[str, Any]], None] | None
    progress: bool

    def check(self, evaluate: Any) -> None:
        """Raise ValueError for counts below 1, and for options that would do nothing.

        `evaluate`: what the run is evaluated by, or None.
        """
        at_least_one(
            self.function,
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
            raise wrong(f"{self.function}: patience", self.patience, "evaluate beside it", fix)
        if (self.maximize or self.monitor != "loss") and evaluate is None:
            got = f"monitor={self.monitor!r}, maximize={self.maximize}"
            raise wrong(self.function, got, "evaluate beside it", "give evaluate=...")
        if self.resume and self.directory is None:
            fix = "give directory=..."
            where = f"{self.function}: resume"
            raise wrong(where, self.resume, "a directory to resume from", fix)
        where = f"{self.function}: monitor"
        if not isinstance(self.monitor, str):
            fix = "one of those that evaluate returns"
            raise wrong(where, describe(self.monitor), "the name of a number", fix, TypeError)
        check_direction(where, self.monitor, self.maximize)

    def piece(self, steps: int) -> int:
        """Steps of a call in an epoch of `steps`: an even part where there is one, at most `chunk`.

        Calls that are all alike need one compiled program.
        """
        parts = -(-steps // self.chunk)
        if parts <= 1:
            return steps
        even = (n for n in range(parts, min(2 * parts, steps) + 1) if steps % n == 0)
        return steps // next(even, parts)


def check_direction(where: str, name: str, maximize: bool) -> None:
    """Raise ValueError where a number is to be minimised that is good where it is high.

    Args:
      where: the function and its argument, for the message.
      name: of the number, such as "loss" or "eval/elbo".
      maximize: whether it is to be maximised.
    """
    last = name.rsplit("/", 1)[-1]
    if last in ("elbo", "log_likelihood", "log_prob", "accuracy") and not maximize:
        raise wrong(where, f"{name!r}, minimised", "it to be maximised", "add maximize=True")
    if last == "loss" and maximize:
        fix = "leave out maximize=True"
        raise wrong(where, f"{name!r}, maximised", "it to be minimised", fix)
