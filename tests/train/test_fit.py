"""`fit`: what it learns, records, evaluates and keeps; and the arguments that it refuses."""

import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.runs import (
    ADAM,
    DISTANCE,
    ELBO,
    IMAGES,
    MEAN,
    MODEL,
    elbo_fit,
    equal,
    quiet_fit,
    size_of_mean,
    stopped_after,
)
from vaejax import data, train
from vaejax.data.examples import as_examples
from vaejax.objectives import elbo
from vaejax.train import _loop as loop


def test_fit_learns_keeps_history_and_leaves_the_callers_parameters_alone(params):
    before = jax.tree.map(np.array, params)
    fitted = elbo_fit(params, epochs=30)
    equal(before, params)
    assert fitted.stopped == "epochs"
    np.testing.assert_array_equal(fitted.history["epoch"], np.arange(1, 31))
    assert fitted.history["step"][-1] == 90 == int(fitted.state.step)
    assert fitted.history["loss"][-5:].mean() < fitted.history["loss"][:2].mean() - 0.1
    equal(fitted.params, fitted.state.params)


@pytest.fixture(scope="module")
def watched():
    """A run of five epochs that are evaluated every second time, and what was seen of it."""
    seen = {"evaluated": [], "noise": [], "hooked": []}

    @chex.assert_max_traces(n=1)
    def loss(*arguments):
        return DISTANCE(*arguments)

    def evaluate(params, key):
        seen["evaluated"].append(np.array(params["mean"]))
        seen["noise"].append(jax.random.key_data(key).tolist())
        return {"loss": 1.0}

    def hook(state):
        seen["hooked"].append(int(state.step))
        return state._replace(params=MEAN)

    fitted = quiet_fit(loss=loss, epochs=5, evaluate=evaluate, evaluate_every=2, hook=hook)
    return fitted, seen


def test_one_trace_serves_all_epochs(watched):
    assert int(watched[0].state.step) == 15  # more traces than one would have been refused


def test_evaluation_every_few_epochs_and_after_the_last(watched):
    np.testing.assert_array_equal(np.isnan(watched[0].history["eval/loss"]), [1, 0, 1, 0, 0])


def test_every_evaluation_has_the_same_noise(watched):
    first, *others = watched[1]["noise"]
    assert len(others) == 2 and all(one == first for one in others)


def test_a_hook_changes_the_state_between_epochs_before_it_is_evaluated(watched):
    fitted, seen = watched
    assert seen["hooked"] == [3, 6, 9, 12, 15]
    equal(fitted.params, MEAN)
    for mean in seen["evaluated"]:
        np.testing.assert_array_equal(mean, MEAN["mean"])


def test_early_stopping_keeps_the_best_state():
    values = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    seen = []

    def evaluate(params, key):
        seen.append(np.array(params["mean"]))
        return {"loss": next(values)}

    fitted = quiet_fit(epochs=9, evaluate=evaluate, patience=2)
    assert fitted.stopped == "early" and len(seen) == 4
    equal(fitted.best.params["mean"], seen[1])
    assert int(fitted.best.step) == 6
    equal(fitted.best.opt_state[0].count, np.int32(6))  # its own optimizer state


def test_a_number_may_be_maximised(tmp_path):
    """The best is the highest, patience waits for a higher one, and a resume knows it."""
    values = iter([-3.0, -1.0, -2.0, -5.0, -0.5])
    options = {
        "evaluate": lambda params, key: {"elbo": next(values)},
        "monitor": "elbo",
        "maximize": True,
        "directory": tmp_path,
    }
    first = quiet_fit(epochs=3, patience=2, **options)
    assert first.stopped == "epochs" and int(first.best.step) == 6
    with pytest.raises(ValueError, match="(?s)fit: directory.*'error'.*by which the run chose"):
        quiet_fit(epochs=9, resume=True, **options | {"monitor": "error"})
    more = quiet_fit(epochs=9, patience=2, resume=True, **options)
    assert more.stopped == "early" and more.history["eval/elbo"].tolist() == [-3, -1, -2, -5]
    equal(more.best, first.best)


def test_best_is_the_last_state_until_something_was_compared():
    """At the first of two evaluations the run is stopped."""
    with pytest.raises(train.Interrupted) as caught:
        quiet_fit(epochs=9, evaluate=size_of_mean, evaluate_every=5, log=stopped_after(2))
    equal(caught.value.fitted.best, caught.value.fitted.state)


def test_fit_runs_outside_the_main_thread():
    done = []
    thread = threading.Thread(target=lambda: done.append(quiet_fit(epochs=1).stopped))
    thread.start()
    thread.join()
    assert done == ["epochs"]


def test_an_epoch_is_cut_into_equal_calls_where_there_are_any():
    """So that one program serves; a prime number of steps needs a second, shorter one."""
    settings = dict.fromkeys(loop.Bookkeeping.__dataclass_fields__)
    for steps, chunk, piece in [(12, 500, 12), (12, 5, 4), (12, 1, 1), (7, 5, 3), (500, 499, 250)]:
        assert loop.Bookkeeping(**settings | {"chunk": chunk}).piece(steps) == piece


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["epochs", "evaluate_every", "checkpoint_every", "patience", "keep", "chunk"]
)
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"fit: expected {name} >= 1, got 0"):
        quiet_fit(**{name: 0})


def test_options_that_would_do_nothing_are_refused():
    with pytest.raises(ValueError, match="fit: patience: got 3, expected evaluate beside it"):
        quiet_fit(patience=3)
    with pytest.raises(ValueError, match="fit: resume: got True, expected a directory"):
        quiet_fit(resume=True)


def test_what_cannot_be_monitored_or_logged_is_refused():
    with pytest.raises(ValueError, match="fit: monitor: got 'elbo', minimised.*maximize=True"):
        quiet_fit(evaluate=size_of_mean, monitor="elbo")
    with pytest.raises(ValueError, match="fit: monitor: got 'loss', maximised.*leave out"):
        quiet_fit(evaluate=size_of_mean, maximize=True)
    with pytest.raises(ValueError, match="got monitor='rate', maximize=False, expected evaluate"):
        quiet_fit(monitor="rate")
    with pytest.raises(ValueError, match=r"monitor='rate' is not among.*\['loss'\]"):
        quiet_fit(evaluate=size_of_mean, monitor="rate")

    def loss(*arguments):
        value, metrics = DISTANCE(*arguments)
        return value, {**metrics, "means": jnp.zeros(3)}

    with pytest.raises(ValueError, match=r"metric 'means': got shape \(3,\), expected a scalar"):
        quiet_fit(loss=loss)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_are_not_finite_are_refused_before_training(bad):
    images = np.zeros((20, 4, 3))
    images[[4, 9]] = bad
    with pytest.raises(ValueError, match="NaN or infinite values in 2 of 20.*first at index 4"):
        quiet_fit(images=images)
    with pytest.raises(ValueError, match=r"^population.fit: data\.x holds NaN"):
        as_examples("population.fit", images, None)


@pytest.mark.parametrize(
    ("first", "size", "batch_size", "message"),
    [
        (None, 64, 64, "batch_size: got 64, expected 1 to 50"),
        (0, 64, 64, "batch_size: got 64, expected 1 to 50"),
        (0, 5, 10, r"fit: indices: got shape \(5,\), expected \(10,\)"),
        (46, 5, 5, "fit: indices: got 46 to 50, expected 0 to 49"),
        (-1, 5, 5, "fit: indices: got -1 to 3"),
    ],
)
def test_batches_and_indices_of_other_data_are_refused(first, size, batch_size, message):
    """Past the end JAX would show the last example again; no whole batch would be no step."""
    indices = None if first is None else lambda key, step: first + np.arange(size)
    with pytest.raises(ValueError, match=message):
        quiet_fit(batch_size=batch_size, indices=indices)


def test_images_of_another_size_are_refused_by_name(params):
    with pytest.raises(ValueError, match=r"encode: expected one example.*\(4, 3\).*got \(5, 3\)"):
        elbo_fit(params, images=np.zeros((20, 5, 3), np.uint8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": elbo}, r"fit: loss: got elbo\(model, .*for instance objectives.elbo\(model\)"),
        ({"loss": MODEL}, "fit: loss: got Model.*for instance objectives.elbo"),
        ({"optimizer": optax.adam}, r"fit: optimizer: got adam.*for instance optax.adam\(1e-3\)"),
        ({"transform": lambda x: x}, r"fit: transform: got <lambda>\(x\).*function of \(key, x\)"),
        ({"evaluate": lambda params: {}}, r"fit: evaluate: .*function of \(params, key\)"),
        ({"key": 0}, r"fit: key: got 0, expected one PRNG key; jax.random.key\(0\)"),
        ({"data": jax.random.key(0)}, "the key comes before the data"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_no_loss_optimizer_or_key_is_refused_before_any_work(tmp_path, wrong, message):
    given = {
        "loss": ELBO,
        "optimizer": ADAM,
        "params": MEAN,
        "data": IMAGES,
        "key": jax.random.key(0),
        "epochs": 1,
        "batch_size": 8,
        "progress": False,
        "transform": data.scale,
        "directory": tmp_path / "run",
        **wrong,
    }
    with pytest.raises(TypeError, match=message):
        train.fit(**given)
    assert not (tmp_path / "run").exists()


def test_levels_without_a_transform_are_a_warning(recwarn):
    """uint8 images would be trained on as numbers up to 255. All other warnings are errors."""
    with pytest.warns(UserWarning, match="uint8 levels 0..255 and there is no transform") as said:
        quiet_fit(transform=None, epochs=1)
    assert said[0].filename == quiet_fit.__code__.co_filename  # the line that called fit
    quiet_fit(images=IMAGES / np.float32(255), transform=None, epochs=1)
