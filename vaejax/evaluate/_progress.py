"""A bar for evaluations that take long: the loop over the examples in parts, on request."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np

PARTS = 100  # a bar moves this often, at most

_shown: ContextVar[bool] = ContextVar("shown", default=False)
_calls: ContextVar[tuple[str, ...]] = ContextVar("calls", default=())


@contextmanager
def progress(show: bool = True) -> Iterator[None]:
    """Show a bar for each measure inside that takes longer than a second.

    The loop over the examples then runs in up to 100 parts, each of whole batches. That is one
    program too, and the numbers are the same. The data move to the device once. A bar moves when
    some `batch_size` examples are done, so few examples with many particles move it seldom.

    Args:
      show: False shows none, also inside of another `progress`.
    Returns:
      What `with` takes. Measures inside return their arrays as numpy's.
    Example:
      >>> import jax
      >>> from vaejax import evaluate, linear
      >>> model = linear.linear_gaussian(3, latent=1)
      >>> x = jax.numpy.ones((4, 3))
      >>> params = model.init(jax.random.key(0), x[0])
      >>> with evaluate.progress():
      ...     found = evaluate.log_likelihood(model, params, jax.random.key(1), x, particles=8)
    """
    before = _shown.set(show)
    try:
        yield
    finally:
        _shown.reset(before)


@contextmanager
def called(name: str) -> Iterator[None]:
    """What the bars inside are named after: a measure, and the one that calls it."""
    before = _calls.set((*_calls.get(), name))
    try:
        yield
    finally:
        _calls.reset(before)


def is_shown() -> bool:
    """Whether a `progress` is open here."""
    return _shown.get()


@contextmanager
def bar(part: str, total: int) -> Iterator[Callable[[int], Any]]:
    """A bar of examples, of the measure that was called; yields what moves it on by so many.

    `part`: of the measure, or its name where it was not called by one.
    """
    from tqdm import tqdm  # lazily: importing the library stays light

    # A terminal redraws the line; a log file or a notebook gets a line now and then.
    often = 0.1 if sys.stderr.isatty() else 10.0
    hidden = not is_shown() or jax.process_index() != 0
    how = {"unit": " examples", "mininterval": often, "delay": 1.0, "disable": hidden}
    name = ": ".join(_calls.get())
    with tqdm(desc=", ".join(filter(None, (name, part))), total=total, **how) as shown:
        yield shown.update


def in_parts(name: str, part: Callable[[Any, int, int], Any], size: int, batch_size: int) -> Any:
    """A loop over examples in parts, with a bar: `[size]` on every leaf, numpy's.

    Args:
      name: as of a `bar`.
      part: `part(start, count, width)`: what is found of the examples from `start` on, `[count]`,
        `width` of them at a time; past the last example, of the last.
      size: how many examples there are.
      batch_size: how many are held in memory at a time, at most.
    """
    chunks = -(-size // batch_size)
    width = -(-size // chunks)  # as without a bar, so that the numbers are the same
    count = -(-chunks // PARTS) * width
    found = []
    with bar(name, size) as move:
        for start in range(0, size, count):
            found.append(jax.tree.map(np.asarray, part(np.int32(start), count, width)))
            move(min(count, size - start))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:size], *found)


__all__ = ["progress"]
