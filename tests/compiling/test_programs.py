"""What a second run of the same mathematics compiles: nothing; and of another one, anew."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import train
from vaejax.compiling import _programs
from vaejax.data import sources
from vaejax.types import Batch

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
SCALE = 1.0


def loss_of(target):
    def loss(params, key, batch, step):
        noise = jax.random.normal(key, batch.x.shape)
        mean = SCALE * params["mean"] + target
        return jnp.mean((batch.x + noise - mean[None]) ** 2), {}

    return loss


@pytest.fixture
def compiled(monkeypatch):
    """The number of programs that XLA has made since the last time that it was asked."""
    monkeypatch.setattr(_programs, "_KEPT", type(_programs._KEPT)())
    found = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: found.append(name))

    def count():
        number = sum(name.endswith("backend_compile_duration") for name in found)
        found.clear()
        return number

    yield count
    jax.monitoring.clear_event_listeners()


def run(loss, optimizer=None, data=X, **how):
    how = {"epochs": 2, "batch_size": 4, "progress": False, "key": jax.random.key(1), **how}
    start = {"mean": jnp.zeros(3)}
    return train.fit(loss, optimizer or optax.sgd(0.1), start, data, **how).params["mean"]


def test_a_second_run_compiles_nothing_and_gives_the_same_bits(compiled):
    first = run(loss_of(2.0))
    assert compiled() > 0
    again = run(loss_of(2.0))  # a function of its own, and an optimizer of its own
    assert compiled() == 0
    np.testing.assert_array_equal(first, again)
    source = sources.in_memory(Batch(X))
    streamed = run(loss_of(2.0), data=source)
    compiled()
    np.testing.assert_array_equal(run(loss_of(2.0), data=source), streamed)
    assert compiled() == 0


def test_another_number_anywhere_is_another_program(monkeypatch, compiled):
    first = run(loss_of(2.0))
    table = np.full(3, 2.0, np.float32)
    same = run(loss_of(table))
    others = [run(loss_of(2.5)), run(loss_of(2.0), optax.sgd(0.2))]
    table += 1.0  # the function is the same object in each of these
    others.append(run(loss_of(table)))
    monkeypatch.setitem(globals(), "SCALE", 0.5)
    others.append(run(loss_of(2.0)))
    np.testing.assert_allclose(same, first, rtol=1e-6)
    assert all(np.abs(other - first).max() > 0.01 for other in others)
    monkeypatch.undo()
    np.testing.assert_array_equal(run(loss_of(np.full(3, 2.0, np.float32))), same)
    np.testing.assert_array_equal(run(loss_of(np.full(3, 3.0, np.float32))), others[2])


def test_the_same_program_of_other_trees_is_another_one():
    """A chain with a stage that does nothing has another state, and a metric another name."""

    def named(name):
        def loss(params, key, batch, step):
            return jnp.mean((batch.x - params["mean"][None]) ** 2), {name: jnp.float32(0)}

        return loss

    how = {"key": jax.random.key(1), "epochs": 1, "batch_size": 4, "progress": False}
    start = {"mean": jnp.zeros(3)}
    once, twice = optax.sgd(0.1), optax.chain(optax.sgd(0.1), optax.identity())
    for optimizer, name in ((once, "a"), (twice, "a"), (once, "b")):
        fitted = train.fit(named(name), optimizer, start, X, **how)
        assert name in fitted.history
        expected = jax.tree.structure(optimizer.init(start))
        assert jax.tree.structure(fitted.state.opt_state) == expected


def test_few_programs_are_kept(compiled):
    for target in range(9):
        run(loss_of(float(target)), epochs=1)
    gc.collect()
    assert len(_programs._KEPT) == _programs.MOST
