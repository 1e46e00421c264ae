"""Ctrl-C and SIGTERM while a run goes on: collected, and heeded between two compiled calls."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


@contextlib.contextmanager
def collected() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM instead of raising; a second Ctrl-C raises at once.

    What was not heeded inside is raised at the end. Outside the main thread, where Python allows no
    handlers, the list stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handler(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        with contextlib.suppress(RuntimeError):  # it came while something else was printed
            print(f"\nstopping after the steps under way{again}", file=sys.stderr)

    previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
    for unheeded in caught:  # while the last checkpoint was written, say: the run is done
        signal.raise_signal(unheeded)


def agreed(signals: list[int]) -> list[int]:
    """The signals that any process of the run has had: all stop at the same step."""
    if jax.process_count() == 1:
        return list(signals)  # one that comes from now on is for the next look
    from jax.experimental import multihost_utils

    mine = np.array([signal.SIGINT in signals, signal.SIGTERM in signals])
    had: Any = np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, 2).any(axis=0)
    found = {signal.SIGINT: had[0], signal.SIGTERM: had[1]}
    return [int(number) for number, yes in found.items() if yes]
