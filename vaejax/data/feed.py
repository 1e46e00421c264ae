"""Batches of a Source, put on the device before a step asks for them, in the trainer's order.

    order = feed.in_order(train.shuffled(source.size, batch_size), key)
    with feed.feed(source, order, start=0, stop=steps) as batches:
        for batch in batches:
            state, metrics = step(state, batch)
            batches.dispatched(metrics)
    share = batches.waited / seconds

Which examples a step sees depends on its number alone, never on threads or on where a run began. So
a streamed run trains on the same batches as a run on data in memory, and a stopped run goes on at
`start=state.step`. Where rows cost much one by one (HDF5, Zarr, slow disks), `data.stream` reads
them by blocks.
"""

import contextlib
import functools
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import check_companions
from vaejax.compiling import kept
from vaejax.data.sources import Source
from vaejax.errors import at_least, at_least_one, missing, wrong
from vaejax.types import Array, Batch, Key, StepOrder, describe

__all__ = ["Feed", "StepsToRows", "feed", "in_order"]

StepsToRows = Callable[[np.ndarray], Any]
_CHUNK = 256  # steps whose order is computed at a time
_TICK = 1e-3  # seconds between two looks at whether the device is idle
_END = object()


def feed(
    source: Source,
    indices: np.ndarray | StepsToRows,
    *,
    start: int,
    stop: int,
    workers: int = 4,
    prefetch: int = 2,
    place: Callable[[Batch], Any] = jax.device_put,
) -> "Feed":
    """The batches of the steps from `start` to `stop - 1`, read ahead in threads by Grain.

    Args:
      source: what is read, by one call of `source.read` for each batch.
      indices: which examples each step sees: integers `[steps, batch]`, one row for each step; or a
        function `steps [k] -> [k, batch]`, such as `in_order(indices, key)`, which is asked for
        some hundred steps at a time.
      start, stop: numbers of the first step, and of the one after the last.
      workers: threads that read, a batch each.
      prefetch: batches on the device, or on their way, while a step computes. Up to
        `workers + prefetch + 1` batches are held at any time.
      place: puts a numpy Batch on the device, for instance with a sharding:
        `lambda batch: jax.device_put(batch, sharding)`. One thread calls it, in the order of steps.
    Returns:
      A Feed, an iterator over the placed batches. An error of `source.read` or `place` is raised
      where its batch is due.
    Raises:
      ImportError: without Grain (the extra `streaming`).
      ValueError: for an order of another shape, or steps that it does not have.
    """
    if not isinstance(source, Source):
        fix = "make one: sources.open(path), sources.in_memory(batch)"
        raise wrong("feed: source", describe(source), "a Source", fix, TypeError)
    at_least_one("feed", workers=workers, prefetch=prefetch)
    workers = int(workers)  # grain takes no integer of numpy
    at_least(0, "feed", start=start, stop=stop)
    if not 0 <= start <= stop:
        raise wrong("feed: start, stop", f"{start}, {stop}", "0 <= start <= stop", "exchange them")
    grain, chosen = _grain(), _chosen(indices, stop)
    steps = grain.MapDataset.range(start, stop).map(lambda step: _read(source, chosen(step)))
    # Threads and not processes: memory maps and Pillow's decoders leave Python's lock alone, while
    # a process needs a Source that can be pickled (a pickled memory map holds the whole file), a
    # second import of the program, and a copy of each batch.
    reading = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers)
    return Feed(iter(steps.to_iter_dataset(reading)), place, prefetch)


def in_order(indices: StepOrder, key: Key) -> StepsToRows:
    """A trainer's order, `indices(key, step) -> [batch]`, as what `feed` takes.

    Some hundred steps are evaluated by one program. It is a loop over them, whose body is that of
    `train.make_scan`, and not `vmap`, under which some generators of random bits give others.

    Args:
      indices: the order of a trainer, such as `train.shuffled(size, batch_size)`.
      key: of the order, such as `train.key_for(key, "order")`.
    Returns:
      `steps [k] -> [k, batch]`, for steps that follow each other.
    """

    def chunk(key: Key, first: Array) -> Array:
        steps = first + jnp.arange(_CHUNK, dtype=jnp.int32)
        return lax.map(lambda step: indices(key, step), steps)

    program = kept(chunk, key, np.int32(0))
    return lambda steps: np.asarray(program(key, np.int32(steps[0])))[: len(steps)]


class Feed(Iterator[Any]):
    """An iterator over batches on the device, which measures how long the device waited for them.

    `feed` makes it. Call `dispatched(result)` after each step. Its threads end when it is closed:
    by `with`, by `close()`, or when it is collected as garbage.

    `waited`: seconds in which no step was on the device because no batch was there, the first batch
    included, to a millisecond a step. Without calls of `dispatched`, all seconds in which the
    caller was kept waiting.
    """

    waited: float = 0.0

    def __init__(self, host: Any, place: Callable[[Batch], Any], prefetch: int):
        self._ready: queue.Queue[Any] = queue.Queue(prefetch)
        self._closed = threading.Event()
        self._latest: Any = ()
        # The thread must not hold this object, or it would never be collected.
        arguments = host, place, self._ready, self._closed
        self._thread = threading.Thread(target=_fill, args=arguments, name="vaejax-feed")
        self._thread.start()
        weakref.finalize(self, self._closed.set)

    def __next__(self) -> Any:
        if self._closed.is_set():
            raise StopIteration
        batch, error = self._take()
        if batch is not _END:
            return batch
        self.close()
        raise error

    def _take(self) -> tuple[Any, Any]:
        """The next batch, counting the looks at whose end the device was idle."""
        with contextlib.suppress(queue.Empty):
            return self._ready.get_nowait()
        item = None
        while item is None and not self._closed.is_set():
            began = perf_counter()
            with contextlib.suppress(queue.Empty):
                item = self._ready.get(timeout=_TICK)
            if _is_ready(self._latest):
                self.waited += perf_counter() - began
        return item or (_END, StopIteration())

    def dispatched(self, result: Any) -> None:
        """Say that the step on the latest batch is under way; wait until the one before is done.

        So no more than two steps are in flight.

        Args:
          result: arrays that the step returns and nobody deletes, such as its metrics. A state that
            the next step takes as donated will not do.
        """
        previous, self._latest = self._latest, result
        jax.block_until_ready(previous)

    def close(self) -> None:
        """End the threads, after the batch that each is at; idempotent."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _fill(
    host: Any, place: Callable[[Batch], Any], ready: queue.Queue[Any], closed: threading.Event
) -> None:
    """Read and place batches until there are no more, one fails, or nobody wants them."""

    def put(item: tuple[Any, BaseException | None]) -> bool:
        # A program may end without closing the feed, and waits for this thread when it does.
        while not closed.is_set() and threading.main_thread().is_alive():
            try:
                ready.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    try:
        while put((place(next(host)), None)):
            pass
    except BaseException as error:
        put((_END, error))
    finally:
        host.close()


def _chosen(indices: np.ndarray | StepsToRows, stop: int) -> Callable[[int], np.ndarray]:
    """`step -> [batch]`, from any thread."""
    if not callable(indices):
        order = _order(indices, stop)
        return lambda step: order[step]
    lock = threading.Lock()

    @functools.lru_cache(maxsize=2)
    def chunk(number: int) -> np.ndarray:
        steps = np.arange(number * _CHUNK, min((number + 1) * _CHUNK, stop))
        return _order(indices(steps), len(steps))

    def chosen(step: int) -> np.ndarray:
        with lock:  # computed by one, needed by all
            return chunk(step // _CHUNK)[step % _CHUNK]

    return chosen


def _read(source: Source, rows: np.ndarray) -> Batch:
    """A batch, whose labels and weights are checked: they need not be right in every row."""
    batch = source.read(rows)
    check_companions("Source.read", batch)
    return batch


def _order(indices: Any, steps: int) -> np.ndarray:
    """An order as an array of integers `[steps, batch]`; ValueError for other shapes and types."""
    order = np.asarray(indices)
    if order.ndim != 2 or len(order) < steps or order.dtype.kind not in "iu":
        got = f"{order.dtype} of shape {order.shape}"
        fix = "give the examples of every step, or in_order(indices, key)"
        raise wrong("feed: indices", got, f"integers [{steps} steps, batch]", fix)
    return order


def _is_ready(result: Any) -> bool:
    """Whether every array of a result is computed."""
    leaves: list[Any] = [x for x in jax.tree.leaves(result) if isinstance(x, jax.Array)]
    return all(leaf.is_ready() for leaf in leaves)


def _grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise missing("feed", "grain", "streaming") from error
    return grain
