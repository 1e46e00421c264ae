"""The pure programs: one step, a scan of steps, a whole run."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.runs import ADAM, DISTANCE, ELBO, IMAGES, MEAN, equal
from vaejax import Batch, data, train
from vaejax.batch import as_batch, mean_over


def test_any_cutting_into_chunks_gives_the_same_bits(params):
    init, _ = train.make_step(ELBO, ADAM)
    scan = partial(
        train.make_scan, ELBO, ADAM, indices=train.shuffled(50, 16), transform=data.binarize
    )
    programs = {steps: jax.jit(scan(steps=steps)) for steps in (10, 20, 30)}

    def run(*chunks):
        state = init(jax.random.key(1), params)
        losses = []
        for steps in chunks:
            state, history = programs[steps](state, IMAGES)
            losses.append(history["loss"])
        return state, np.concatenate(losses)

    whole, losses = run(30)
    for chunks in [(10,) * 3, (10, 20)]:
        state, pieces = run(*chunks)
        equal(whole, state)
        np.testing.assert_array_equal(losses, pieces)


def test_make_train_is_pure_and_maps_over_keys():
    run = train.make_train(DISTANCE, ADAM, steps=5, batch_size=16, transform=data.scale)
    keys = jax.random.split(jax.random.key(0), 3)
    states, history = jax.jit(jax.vmap(run, (0, None, None)))(keys, MEAN, IMAGES)
    assert history["loss"].shape == (3, 5)
    assert len(np.unique(np.asarray(history["loss"][:, 0]))) == 3
    alone, _ = jax.jit(run)(jax.random.clone(keys[1]), MEAN, IMAGES)
    np.testing.assert_allclose(states.params["mean"][1], alone.params["mean"], rtol=1e-4, atol=1e-6)


def test_a_history_holds_arrays_with_nan_where_a_batch_has_no_example_of_a_metric():
    def of_some(params, key, batch, step):
        errors = jnp.square(batch.x - params)
        return jnp.mean(errors), {"error": mean_over(errors, batch.y >= 0)}

    def each(key, step):  # one of the four examples after the other
        return jnp.reshape(step % 4, 1)

    run = train.make_train(of_some, optax.sgd(0.0), steps=4, indices=each)
    batch = Batch(np.float32([1, 2, 3, 4]), y=np.array([0, -1, 1, -1]))
    _, history = jax.jit(run)(jax.random.key(0), np.float32(0.0), batch)
    np.testing.assert_array_equal(history["error"], [1, np.nan, 9, np.nan])
    np.testing.assert_array_equal(history["loss"], [1, 4, 9, 16])


def test_a_step_uses_every_term_of_the_loss_before_the_update(params):
    init, step = train.make_step(ELBO, ADAM)
    batch = as_batch(jnp.ones((6, 4, 3)))
    new, metrics = jax.jit(step)(init(jax.random.key(0), params), batch)
    assert set(metrics) == {"loss", "elbo", "distortion", "rate", "beta"}
    assert int(new.step) == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(new.params, params)
    # One step of Adam by hand, with the key that the step says it uses.
    step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    loss_key = jax.random.split(step_key)[1]

    @jax.jit
    def by_hand(params):
        value, grads = jax.value_and_grad(lambda p: ELBO(p, loss_key, batch, 0)[0])(params)
        updates, _ = ADAM.update(grads, ADAM.init(params), params)
        return value, optax.apply_updates(params, updates)

    value, expected = by_hand(params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    chex.assert_trees_all_close(new.params, expected, rtol=1e-4)


def test_a_state_may_be_donated_without_taking_the_callers_parameters():
    mine = jax.tree.map(jnp.asarray, MEAN)
    state = train.make_step(DISTANCE, ADAM)[0](jax.random.key(0), mine)
    scan = train.make_scan(
        DISTANCE, ADAM, steps=1, indices=train.shuffled(50, 16), transform=data.scale
    )
    jax.jit(scan, donate_argnums=0)(state, IMAGES)
    assert not mine["mean"].is_deleted()


def test_floats_beyond_probabilities_are_not_silently_binarised(params):
    """The step sees that they are not finite, and does not make the update."""
    init, step = train.make_step(ELBO, ADAM, transform=data.binarize)
    state, step = init(jax.random.key(0), params), jax.jit(step)
    for bad in (200.0, -1.0):
        new, metrics = step(state, np.full((20, 4, 3), bad, np.float32))
        assert not np.isfinite(metrics["distortion"]) and int(new.step) == 0
    assert int(step(state, np.full((20, 4, 3), 0.5, np.float32))[0].step) == 1


@pytest.mark.parametrize("size", [2, 7, 64, 1000, 4097])
def test_the_order_of_an_epoch_is_a_permutation(size):
    permuted = jax.jit(train.permute, static_argnums=2)
    entries = permuted(jax.random.key(size), np.arange(size, dtype=np.int32), size)
    np.testing.assert_array_equal(np.sort(entries), np.arange(size))


def test_permutations_are_uniform_in_position_and_in_neighbours():
    """Each value at each place, and each value after each other one, as often as chance says."""

    @jax.jit
    def orders_of(key):
        keys = jax.random.split(key, 20_000)
        return jax.vmap(lambda key: train.permute(key, jnp.arange(10), 10))(keys)

    orders = np.asarray(orders_of(jax.random.key(0)))
    places = np.stack([np.bincount(orders[:, i], minlength=10) for i in range(10)])
    chi2 = ((places - 2000) ** 2 / 2000).sum()
    assert chi2 < 81 + 5 * np.sqrt(2 * 81)
    pairs = np.zeros((10, 10))
    np.add.at(pairs, (orders[:, :-1].ravel(), orders[:, 1:].ravel()), 1)
    expected = 20_000 * 9 / 90
    off = ~np.eye(10, dtype=bool)
    assert ((pairs - expected) ** 2 / expected)[off].sum() < 89 + 5 * np.sqrt(2 * 89)


def test_an_epoch_visits_each_example_once_and_epochs_differ():
    order = jax.jit(train.shuffled(48, 16))
    key = jax.random.key(0)
    epochs = [np.concatenate([order(key, np.int32(3 * e + i)) for i in range(3)]) for e in (0, 1)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(48))
    assert (epochs[0] != epochs[1]).any()
