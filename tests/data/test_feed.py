"""A streamed run is the run in memory bit for bit, wherever it begins; threads, waiting, errors."""

import queue
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import data, feed, heads, sources, train
from vaejax.distributions import Normal
from vaejax.model import autoencoder
from vaejax.objectives import elbo
from vaejax.types import Batch

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 6, 5, 1)).astype(np.uint8)
BATCH = 16
STEPS = 2 * (270 // BATCH)  # two epochs of the train split
MODEL = autoencoder(heads.Normal(2), heads.Bernoulli((6, 5, 1)), Normal(jnp.zeros(2), jnp.ones(2)))
LOSS, ADAM = elbo(MODEL), optax.adam(1e-2)
KEY = jax.random.key(3)
ORDER_KEY = train.key_for(jax.random.key(3), "order")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("feed") / "images.npy"
    np.save(path, IMAGES)
    return path


@pytest.fixture(scope="module")
def in_memory(path):
    """The state after two epochs of `make_scan` on the data in memory."""
    images = data.load(path).x
    order = train.shuffled(len(images), BATCH)
    scan = train.make_scan(LOSS, ADAM, steps=STEPS, indices=order, transform=data.binarize)
    init, _ = train.make_step(LOSS, ADAM)
    params = MODEL.init(jax.random.key(7), jnp.zeros((6, 5, 1)))
    begin = init(KEY, params)
    return begin, *jax.jit(scan)(begin, images)


@pytest.fixture(scope="module")
def step():
    return jax.jit(train.make_step(LOSS, ADAM, transform=data.binarize)[1])


def ordered(source, key=ORDER_KEY):
    return feed.in_order(train.shuffled(source.size, BATCH), key)


def run(step, state, source, **options):
    """Steps from the state's own number to `stop`: the new state and the losses."""
    losses = []
    options = {"stop": STEPS} | options
    with feed.feed(source, ordered(source), start=int(state.step), **options) as batches:
        for batch in batches:
            state, metrics = step(state, batch)
            batches.dispatched(metrics)
            losses.append(metrics["loss"])
    return state, losses


def equal(a, b):
    a, b = (tree._replace(key=jax.random.key_data(tree.key)) for tree in (a, b))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def ended():
    """Whether no thread of a feed is left, after the moment that a reader may still need."""
    until = time.monotonic() + 10
    while any("grain-prefetch" in t.name or "vaejax-feed" in t.name for t in threading.enumerate()):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("workers", [1, 3])
def test_a_streamed_run_is_the_run_in_memory_bit_for_bit(workers, in_memory, step, path):
    """Two epochs at once; and stopped within the first, and begun again by another feed."""
    begin, whole, history = in_memory
    source = sources.open(path)
    streamed, losses = run(step, begin, source, workers=workers)
    equal(streamed, whole)
    np.testing.assert_array_equal(losses, history["loss"])
    half, before = run(step, begin, source, stop=11, workers=workers, prefetch=1)
    again, after = run(step, half, sources.open(path), workers=workers)
    assert (int(half.step), int(again.step)) == (11, STEPS)
    equal(again, whole)
    np.testing.assert_array_equal(before + after, history["loss"])
    other, _ = run(step, begin, sources.open(path, "train[:200]"), workers=workers)
    with pytest.raises(AssertionError):
        equal(other, whole)


def test_each_batch_is_read_by_one_call_in_the_order_of_the_trainer():
    """Over the bounds at which the order is computed anew, and with a generator of other bits."""
    size, calls, first = 1000, [], 250
    key = jax.random.key(1, impl="rbg")

    def read(indices):
        calls.append(np.array(indices))
        return Batch(indices[:, None].astype(np.float32), y=indices)

    source = sources.Source(size, read, "")
    order = jax.jit(train.shuffled(size, 100))
    with feed.feed(source, feed.in_order(order, key), start=first, stop=520) as batches:
        seen = [np.asarray(batch.y) for batch in batches]
    expected = [np.asarray(order(key, jnp.int32(i))) for i in [*range(first, 262), 511, 512, 519]]
    assert len(seen) == len(calls) == 520 - first
    np.testing.assert_array_equal([*seen[:12], seen[261], seen[262], seen[269]], expected)
    assert sorted(map(tuple, calls)) == sorted(map(tuple, seen))
    table = np.arange(60).reshape(6, 10)
    with feed.feed(source, table, start=2, stop=5, workers=1, prefetch=5) as batches:
        np.testing.assert_array_equal([b.y for b in batches], table[2:5])
    with feed.feed(source, table, start=6, stop=6) as batches:
        assert list(batches) == []


def test_place_is_called_in_order_and_what_it_returns_is_given(path):
    source, placed = sources.open(path), []

    def place(batch):
        assert isinstance(batch.x, np.ndarray)
        placed.append(threading.current_thread().name)
        return len(placed), jax.device_put(batch, jax.devices()[0])

    with feed.feed(source, ordered(source), start=0, stop=20, place=place, workers=3) as batches:
        for i, (number, batch) in enumerate(batches, 1):
            assert number == i
            assert isinstance(batch.x, jax.Array)
    assert len(set(placed)) == 1


def test_little_is_read_ahead(path):
    """Whatever the number of steps: a batch for each thread, those on the device, one in hand."""
    source, calls = sources.open(path), []
    counted = source._replace(read=lambda i: calls.append(1) or source.read(i))
    with feed.feed(
        counted, ordered(source), start=0, stop=10_000, workers=2, prefetch=3
    ) as batches:
        next(batches)
        while len(calls) < 1 + 2 + 3 + 1:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(calls) == 1 + 2 + 3 + 1


def test_an_error_is_raised_where_its_batch_is_due_and_ends_the_threads(path):
    source = sources.open(path)
    order = np.arange(160).reshape(10, 16)

    def read(indices):
        if 70 in indices:
            raise ValueError("row 70 of file nine is damaged")
        return source.read(indices)

    for workers in (1, 3):
        batches = feed.feed(source._replace(read=read), order, start=0, stop=10, workers=workers)
        for i in range(4):
            np.testing.assert_array_equal(next(batches).x, source.read(order[i]).x)
        with pytest.raises(ValueError, match="row 70 of file nine is damaged"):
            next(batches)
        assert ended()
        assert list(batches) == []
    batches = feed.feed(source, order, start=0, stop=10, place=lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(batches)
    assert ended()


def test_threads_end_when_a_feed_is_closed_left_or_forgotten(path):
    source = sources.open(path)
    start = lambda: feed.feed(source, ordered(source), start=0, stop=10_000)  # noqa: E731
    batches = start()
    next(batches)
    batches.close()
    batches.close()
    assert ended()
    with pytest.raises(KeyError), start() as batches:
        raise KeyError
    assert ended()
    batches = start()
    next(batches)
    assert not batches._closed.is_set()
    del batches
    assert ended()


class Scripted:
    """A queue whose batch comes after `ticks` looks, and a step that is done after `done` looks."""

    def __init__(self, ticks, done):
        self.ticks, self.done, self.looks = ticks, done, 0

    def get_nowait(self):
        if self.ticks:
            raise queue.Empty
        return "batch", None

    def get(self, timeout):
        self.looks += 1
        if self.looks < self.ticks:
            raise queue.Empty
        return "batch", None

    def is_ready(self, result):
        return self.looks >= self.done


@pytest.mark.parametrize(
    ("ticks", "done", "waited"), [(0, 0, 0), (8, 0, 8), (8, 9, 0), (8, 3, 6), (1, 0, 1)]
)
def test_waiting_counts_only_while_no_step_is_on_the_device(ticks, done, waited, monkeypatch):
    """Under a clock that a look moves by one: when a batch is there at once, none is needed."""
    script = Scripted(ticks, done)
    monkeypatch.setattr(feed, "perf_counter", lambda: script.looks)
    monkeypatch.setattr(feed, "_is_ready", script.is_ready)
    with feed.feed(sources.Source(9, None, ""), np.zeros((9, 1), int), start=9, stop=9) as batches:
        batches._ready = script
        assert next(batches) == "batch"
        assert batches.waited == waited


def test_a_result_is_ready_when_all_of_it_is(monkeypatch):
    done = jax.block_until_ready({"a": jnp.zeros(3), "b": jnp.ones(())})
    assert feed._is_ready(done) and feed._is_ready(())
    array = type(done["a"])
    monkeypatch.setattr(array, "is_ready", lambda leaf: leaf.ndim == 1)
    assert not feed._is_ready(done)


def test_two_steps_are_in_flight_at_most(path, monkeypatch):
    waited_for = []
    monkeypatch.setattr(feed.jax, "block_until_ready", waited_for.append)
    source = sources.open(path)
    with feed.feed(source, ordered(source), start=0, stop=4) as batches:
        for i, _ in enumerate(batches):
            batches.dispatched(i)
    assert waited_for == [(), 0, 1, 2]


def test_wrong_orders_and_counts_are_refused(path, monkeypatch):
    source = sources.open(path)
    for order, got in (
        (np.zeros((3, 4)), r"float64 of shape \(3, 4\)"),
        (np.zeros(4, int), r"int64 of shape \(4,\)"),
        (np.zeros((3, 4), int), r"int64 of shape \(3, 4\), expected integers \[4 steps, batch\]"),
    ):
        with pytest.raises(ValueError, match=f"feed: indices: got {got}"):
            feed.feed(source, order, start=0, stop=4)
    with pytest.raises(ValueError, match="feed: indices"):
        list(feed.feed(source, lambda steps: steps, start=0, stop=4))
    with pytest.raises(IndexError, match="got 0 to 270, expected 0 to 269, the examples"):
        list(feed.feed(source, np.array([[0, 270]]), start=0, stop=1))
    with pytest.raises(ValueError, match="feed: expected workers >= 1, got 0"):
        feed.feed(source, np.zeros((3, 4), int), start=0, stop=3, workers=0)
    with pytest.raises(ValueError, match="feed: start, stop: got 3, 2"):
        feed.feed(source, np.zeros((3, 4), int), start=3, stop=2)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r'feed: grain is not .* -e "\.\[streaming\]"'):
        feed.feed(source, np.zeros((3, 4), int), start=0, stop=3)
    assert ended()
