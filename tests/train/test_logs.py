"""What is said of single steps: the norms of gradient and update, and the log of each step."""

import itertools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.runs import ADAM, DISTANCE, IMAGES, MEAN, equal, failing_at, quiet_fit
from vaejax import Batch, data, population, train
from vaejax.batch import mean_over
from vaejax.train import _loop as loop
from vaejax.train._step import norm


@pytest.fixture(scope="module")
def logged():
    """The run of 4 epochs of 3 steps with norms; its rows, of steps and of epochs, in order."""
    rows = []
    fitted = quiet_fit(norms=True, log=rows.append, log_step=rows.append)
    return fitted, [row for row in rows if row not in epochs_of(rows)], rows


def epochs_of(rows):
    """The rows of epochs: each follows that of its last step."""
    return [row for before, row in itertools.pairwise(rows) if before["step"] == row["step"]]


def test_each_step_is_logged_and_an_epoch_is_the_mean_of_its_steps(logged):
    fitted, steps, rows = logged
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12, 12]
    assert [row["epoch"] for row in steps] == pytest.approx(np.arange(1, 13) / 3, abs=1e-12)
    for name in ("loss", "distortion", "gradient_norm", "update_norm"):
        values = np.array([row[name] for row in steps]).reshape(4, 3)
        np.testing.assert_allclose(values.mean(axis=1), fitted.history[name], rtol=1e-12)
        np.testing.assert_array_equal([row[name] for row in epochs_of(rows)], fitted.history[name])


def test_the_norms_are_those_of_the_gradient_and_of_the_update(logged, whole):
    """By hand, from the gradient of each step and the updates of Adam; training is the same."""
    fitted, steps, _ = logged
    np.testing.assert_allclose(fitted.params["mean"], whole.params["mean"], rtol=1e-6)
    order = train.shuffled(50, 16)
    state = train.make_step(DISTANCE, ADAM)[0](jax.random.key(3), MEAN)

    @jax.jit
    def by_hand(state):
        chosen = order(train.key_for(state.key, "order"), state.step)
        batch = Batch(jnp.asarray(IMAGES)[chosen])
        grads, _, _ = train.gradient(DISTANCE, state, batch, transform=data.scale)
        updates, _ = ADAM.update(grads, state.opt_state, state.params)
        norms = [jnp.linalg.norm(tree["mean"]) for tree in (grads, updates)]
        return train.update(ADAM, state, grads), norms

    for row in steps:
        state, expected = by_hand(state)
        found = row["gradient_norm"], row["update_norm"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_norm_whose_squares_overflow_or_vanish_is_right():
    tree = {"a": jnp.float32([3e30, 0]), "b": jnp.full((1, 1), 4e30), "none": jnp.zeros((0, 3))}
    found = jax.jit(norm)
    assert float(found(tree)) == pytest.approx(5e30, rel=1e-6)
    small = jax.tree.map(lambda leaf: leaf / 1e30 * 1e-30, tree)
    assert float(found(small)) == pytest.approx(5e-30, rel=1e-6)
    assert float(norm({"a": jnp.zeros(3)})) == 0
    assert not np.isfinite(norm({"a": jnp.float32([1, jnp.nan]), "b": jnp.full(1, jnp.inf)}))


def test_what_is_not_asked_for_is_not_computed(whole):
    assert {"gradient_norm", "update_norm"}.isdisjoint(whole.history)


def test_a_loss_with_a_metric_of_that_name_is_refused():
    def loss(*arguments):
        value, metrics = DISTANCE(*arguments)
        return value, {**metrics, "update_norm": value}

    with pytest.raises(ValueError, match=r"fit: norms: got a loss with .*\['update_norm'\]"):
        quiet_fit(loss=loss, norms=True, epochs=1)


# --- stops and resumes ---------------------------------------------------------------------------


def steps_of(rows):
    return [row["step"] for row in rows]


def test_a_run_stopped_within_an_epoch_goes_on_with_the_next_step(logged, tmp_path):
    rows = []

    def log_step(row):
        rows.append(row)
        if row["step"] == 5:
            signal.raise_signal(signal.SIGTERM)

    options = {"norms": True, "directory": tmp_path}
    with pytest.raises(train.Terminated):
        quiet_fit(chunk=1, log_step=log_step, **options)
    assert steps_of(rows) == [1, 2, 3, 4, 5]
    resumed = quiet_fit(log_step=rows.append, resume=True, **options)
    assert rows == logged[1]
    equal((resumed.state, resumed.history), (logged[0].state, logged[0].history))


@pytest.mark.parametrize("fails", [5, 6])
def test_a_log_that_fails_gets_that_step_again_and_no_other_twice(fails, logged, tmp_path):
    """Within an epoch, and at its last step, after which there is still the epoch's own row."""
    rows, epochs = [], []

    def log_step(row):
        if row["step"] == fails:
            raise OSError("the network is away")
        rows.append(row)

    options = {"norms": True, "directory": tmp_path, "log": epochs.append}
    with pytest.raises(OSError, match="away") as caught:
        quiet_fit(log_step=log_step, **options)
    assert "saved before step 6" in caught.value.__notes__[0]
    assert steps_of(rows) == list(range(1, fails)) and steps_of(epochs) == [3]
    resumed = quiet_fit(log_step=rows.append, resume=True, **options)
    assert rows == logged[1] and steps_of(epochs) == [3, 6, 9, 12]
    equal((resumed.state, resumed.history), (logged[0].state, logged[0].history))


def test_the_steps_before_one_that_is_not_finite_are_logged():
    rows = []
    with pytest.raises(train.NonFiniteError, match="step 4"):
        quiet_fit(loss=failing_at(4), batch_size=5, log_step=rows.append)
    assert steps_of(rows) == [1, 2, 3, 4] and np.isfinite([row["loss"] for row in rows]).all()


def test_norms_that_a_resumed_run_measures_anew_are_unknown_of_its_epoch(tmp_path):
    """Not 0: the steps before were not without a gradient."""
    run = loop.Run(None)
    run.gather({"loss": np.array([1.0, 2.0])})
    run.gather({"loss": np.array([3.0]), "update_norm": np.array([5.0]), "skipped": np.array([0])})
    row = run.close_epoch()
    assert row["loss"] == 2 and np.isnan(row["update_norm"]) and row["skipped"] == 0
    run.gather({"loss": np.ones((1, 2)), "update_norm": np.ones((1, 2))})
    run.gather({"loss": np.ones((2, 2))})
    row = run.close_epoch()
    assert row["loss"] == [1, 1] and np.isnan(row["update_norm"]).tolist() == [True, True]


def test_a_metric_of_which_a_batch_has_no_example_is_nan_in_the_log_of_steps():
    rows = []

    def of_some(params, key, batch, step):
        errors = jnp.square(batch.x - params)
        return jnp.mean(errors), {"error": mean_over(errors, batch.y >= 0)}

    fitted = train.fit(
        of_some,
        optax.sgd(0.0),
        np.float32(0.0),
        Batch(np.float32([1, 2, 3, 4]), y=np.array([0, -1, 1, -1])),
        key=jax.random.key(0),
        epochs=1,
        batch_size=1,
        indices=lambda key, step: jnp.reshape(step % 4, 1),
        log_step=rows.append,
        progress=False,
    )
    np.testing.assert_array_equal([row["error"] for row in rows], [1, np.nan, 9, np.nan])
    assert fitted.history["error"].tolist() == [5]


def test_members_of_a_population_have_norms_and_rows_of_their_own(logged):
    rows = []
    found = population.fit(
        lambda hyper: (DISTANCE, optax.adam(hyper["rate"])),
        {"rate": np.float32([1e-2, 1e-3])},
        {"mean": np.zeros((2, 4, 3), np.float32)},
        IMAGES,
        keys=jnp.stack([jax.random.key(3)] * 2),
        epochs=1,
        batch_size=16,
        transform=data.scale,
        norms=True,
        log_step=rows.append,
        progress=False,
    )
    for name in ("loss", "gradient_norm", "update_norm"):
        values = np.array([row[name] for row in rows])
        assert values.shape == (3, 2)
        np.testing.assert_allclose(values[:, 0], [row[name] for row in logged[1][:3]], rtol=1e-4)
        np.testing.assert_allclose(values.mean(axis=0), found.history[name][0], rtol=1e-6)
    assert (values[:, 1] < 0.2 * values[:, 0]).all()  # a tenth of the step size


def test_what_is_no_log_of_steps_is_refused():
    with pytest.raises(TypeError, match="fit: log_step: got int, expected a function of"):
        quiet_fit(log_step=3)
