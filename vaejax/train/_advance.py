"""How `fit` takes a state some steps on: over data on the device, or over batches that it reads."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from vaejax.arrays import on_host
from vaejax.compiling import kept
from vaejax.data import feed
from vaejax.data.examples import Examples
from vaejax.data.sources import Source
from vaejax.train import devices
from vaejax.train._state import TrainState
from vaejax.train._step import Step, scan_of
from vaejax.types import Array, Batch, Key, Metrics, StepOrder

Advance: TypeAlias = Callable[[TrainState, int, int], tuple[TrainState, Metrics]]


@contextlib.contextmanager
def advancing(
    examples: Examples,
    step: Step,
    order: StepOrder,
    order_key: Key,
    *,
    quick: Step,
    stop: int,
    state: TrainState,
    mesh: Mesh | None,
) -> Iterator[Advance]:
    """`advance(state, start, count) -> (state, history)`: `count` steps, each on its examples.

    Args:
      examples: what the steps see.
      step: one update.
      quick: the same, unless the gradient is steep: then it may leave the state as it is.
      order, order_key: `order(order_key, number)` are the examples of a step.
      stop: the number of steps of the whole run, beyond which nothing is read.
      state: the first state, whose place on the devices later ones keep.
      mesh: several devices, over which each batch is split, or None.
    """
    if examples.arrays is not None:
        yield _scanned(step, quick, order, examples.arrays, state, mesh)
        return
    batches = feed.in_order(order, order_key)
    with _streamed(step, examples.source, batches, stop, state, mesh) as advance:
        yield advance


def _scanned(
    step: Step, quick: Step, order: StepOrder, data: Batch, state: TrainState, mesh: Mesh | None
) -> Advance:
    """Steps on data that lie on the device, a chunk of them by one program.

    They are quick ones, until one leaves the state as it is.
    """
    if mesh is not None:
        data, order = devices.put(data, devices.copied(mesh)), devices.splitting(order, mesh)
    data = jax.tree.map(jnp.asarray, data)
    options = {"donate_argnums": 0, "out_shardings": _as_before(state, mesh)}
    programs: dict[tuple[Step, int], Callable[..., Any]] = {}
    current = quick

    def run(state: TrainState, count: int) -> tuple[TrainState, Metrics]:
        which = current, count
        if which not in programs:
            programs[which] = kept(scan_of(current, order, count), state, data, **options)
        state, history = programs[which](state, data)
        return state, on_host(history)

    def advance(state: TrainState, start: int, count: int) -> tuple[TrainState, Metrics]:
        nonlocal current
        state, history = run(state, count)
        made = int(state.step) - start
        if made == count or current is step:
            return state, history
        current = step
        state, more = run(state, count - made)
        joined = jax.tree.map(lambda a, b: np.concatenate([a[:made], b]), history, more)
        return state, joined

    return advance


@contextlib.contextmanager
def _streamed(
    step: Step,
    source: Source,
    batches: feed.StepsToRows,
    stop: int,
    state: TrainState,
    mesh: Mesh | None,
) -> Iterator[Advance]:
    """Steps on batches that are read while the steps before are computed, until `stop`.

    `history` gets `waiting`, the share of time in which the device waited for its input. Where a
    batch cannot be read the steps before it are returned, and the next call raises. Reading ends
    with the context.
    """
    options = {"donate_argnums": 0, "out_shardings": _as_before(state, mesh)}
    run_step: Callable[..., Any] | None = None
    place = jax.device_put if mesh is None else partial(devices.put, sharding=devices.split(mesh))
    reading: feed.Feed | None = None
    failed: Exception | None = None

    def advance(state: TrainState, start: int, count: int) -> tuple[TrainState, Metrics]:
        nonlocal reading, failed, run_step
        if reading is None:  # now it is known where the run goes on
            reading = feed.feed(source, batches, start=start, stop=stop, place=place)
        if failed is not None:
            raise failed
        began, waited = perf_counter(), reading.waited
        histories: list[Metrics] = []
        for number in range(start, start + count):
            try:
                batch = next(reading)
            except Exception as error:
                if not histories or jax.process_count() > 1:  # together or not at all
                    raise
                failed = error
                break
            if run_step is None:
                run_step = kept(_numbered(step), state, batch, np.int32(number), **options)
            state, metrics = run_step(state, batch, np.int32(number))
            reading.dispatched(metrics)
            histories.append(metrics)
        found = on_host(histories)
        history: Metrics = jax.tree.map(lambda *steps: np.array(steps), *found)
        share = (reading.waited - waited) / (perf_counter() - began)
        return state, {**history, "waiting": np.full(len(histories), min(share, 1.0))}

    try:
        yield advance
    finally:
        if reading is not None:
            reading.close()


def _numbered(
    step: Step,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """A step that leaves the state alone unless the batch is that of the state's next step."""

    def numbered(state: TrainState, batch: Batch, number: Array) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch)
        # Once a step was not made the run stands still: the batches after it are not for it.
        keyless = new._replace(key=()), state._replace(key=())
        kept = lax.cond(state.step == number, lambda a, b: a, lambda a, b: b, *keyless)
        return kept._replace(key=state.key), metrics

    return numbered


def _as_before(state: TrainState, mesh: Mesh | None) -> Any:
    """Where a program's results lie: the state where it lay."""
    return None if mesh is None else (jax.tree.map(lambda leaf: leaf.sharding, state), None)
