"""Hooks, evaluations and logs: callable before a run starts, and checked in what they return."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.runs import ADAM, DISTANCE, IMAGES, MEAN, equal, quiet_fit, size_of_mean
from vaejax import checkpoint, data, population, train


@pytest.fixture
def before():
    return train.make_step(DISTANCE, ADAM)[0](jax.random.key(0), MEAN)


def hooked(hook, state, begun=frozenset()):
    from vaejax.train import _callbacks as callbacks

    return callbacks.hooked("fit", hook, state, 3, lambda: None, begun)


def test_a_hook_may_change_values_and_give_numpy_arrays(before):
    found = hooked(lambda state: state._replace(params={"mean": np.full((4, 3), 2.0)}), before)
    assert found.params["mean"].dtype == jnp.float32 and float(found.params["mean"][0, 0]) == 2
    equal((found.opt_state, found.key, found.step), (before.opt_state, before.key, before.step))
    best = before._replace(opt_state=(before.opt_state, jnp.float32(jnp.inf)))
    equal(hooked(lambda state: state, best, {"[1]"}), best)  # "the lowest so far" of an optimizer


@pytest.mark.parametrize(
    ("hook", "error", "message"),
    [
        (lambda s: None, TypeError, "fit: hook: got None returned, expected the TrainState"),
        (lambda s: s.params, TypeError, r"expected the TrainState .*return state._replace"),
        (lambda s: tuple(s), TypeError, "expected the TrainState"),
        (lambda s: s._replace(params={}), ValueError, r"mean'\]: returned absent, here float32"),
        (
            lambda s: s._replace(params={"mean": s.params["mean"][:3]}),
            ValueError,
            r"\[3, 3\], here",
        ),
        (
            lambda s: s._replace(params={"mean": np.zeros((4, 3), int)}),
            ValueError,
            "returned int32",
        ),
        (lambda s: s._replace(params={"mean": "no"}), ValueError, "returned str, here float32"),
        (lambda s: s._replace(opt_state=list(s.opt_state)), ValueError, "got the structure"),
        (
            lambda s: [s, jax.tree.map(lambda a: a.delete(), s.params)][0],
            ValueError,
            "got the parameters donated, expected them to stay",
        ),
        (lambda s: s._replace(step=s.step + 1), ValueError, "expected those of the state: 0 steps"),
        (lambda s: s._replace(key=jax.random.key(9)), ValueError, "or another key, expected those"),
        (
            lambda s: s._replace(opt_state=jax.tree.map(lambda a: a * jnp.nan, s.opt_state)),
            (ValueError, train.NonFiniteError),
            "returned",
        ),
        (
            lambda s: s._replace(
                opt_state=jax.tree.map(lambda a: (a + jnp.inf).astype(a.dtype), s.opt_state)
            ),
            train.NonFiniteError,
            r"hook returned \.opt_state\[0\]\.mu\['mean'\], \.opt_state",
        ),
    ],
)
def test_what_no_hook_may_return_is_refused(before, hook, error, message):
    with pytest.raises(error, match=message):
        hooked(hook, before)


def test_parameters_of_a_hook_that_are_not_finite_are_never_kept(tmp_path):
    """Neither as a checkpoint nor as the best, and the run before is in the error."""

    def hook(state):
        bad = jnp.where(state.step == 9, jnp.inf, 1.0)
        return state._replace(params={"mean": state.params["mean"].at[2, 1].mul(bad)})

    with pytest.raises(train.NonFiniteError, match="hook returned .*mean.*after step 9") as caught:
        quiet_fit(hook=hook, directory=tmp_path, evaluate=size_of_mean)
    assert caught.value.checkpoint == tmp_path / "6" and caught.value.step == 9
    assert {path.name for path in tmp_path.iterdir()} == {"3", "6"}
    fitted = caught.value.fitted
    for state in (fitted.state, fitted.best):
        assert np.isfinite(state.params["mean"]).all()
    assert int(fitted.state.step) == 9
    assert np.isfinite(checkpoint.load(tmp_path, like=MEAN, best=True)["mean"]).all()


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (None, TypeError, "fit: evaluate: got None returned, expected numbers by name; return a"),
        (1.5, TypeError, "expected numbers by name"),
        ([("loss", 1.0)], TypeError, "expected numbers by name"),
        ({"loss": 1.0, "figure": None}, TypeError, "fit: evaluate: 'figure': got None, expected a"),
        ({"loss": "1.0"}, TypeError, "'loss': got '1.0', expected a number"),
        ({"loss": 1.0, "rate": 2j}, TypeError, "'rate': got 2j"),
        ({"loss": [[1.0], [2.0, 3.0]]}, TypeError, "expected a number"),
        ({"loss": np.ones(3)}, ValueError, r"'loss': got shape \(3,\), expected one number"),
        ({"loss": jnp.ones((1,))}, ValueError, r"'loss': got shape \(1,\)"),
        ({"loss": np.ma.masked}, ValueError, "'loss': got a masked value"),
        ({1: 1.0}, TypeError, "the name 1, expected a string"),
        ({"rate": 1.0}, ValueError, "monitor='loss' is not among"),
        ({"loss": -jnp.inf}, train.NonFiniteError, "'loss' is monitored and not finite"),
    ],
    ids=str,
)
def test_what_no_evaluation_may_return_is_refused(found, error, message):
    with pytest.raises(error, match=message):
        quiet_fit(evaluate=lambda params, key: found, epochs=1)


def test_numbers_of_any_kind_are_taken_and_may_be_nan_where_nothing_depends_on_them():
    found = {"loss": jnp.bfloat16(0.5), "count": np.int64(3), "fine": True, "ratio": np.nan}
    fitted = quiet_fit(evaluate=lambda params, key: found, epochs=1)
    assert [float(fitted.history[f"eval/{n}"][0]) for n in ("loss", "count", "fine")] == [0.5, 3, 1]
    assert np.isnan(fitted.history["eval/ratio"][0])


def test_an_evaluation_that_takes_the_memory_of_the_parameters_is_refused():
    halved = jax.jit(lambda params: jax.tree.map(lambda a: a / 2, params), donate_argnums=0)
    with pytest.raises(ValueError, match="evaluate: got the parameters donated.*donate_argnums"):
        quiet_fit(evaluate=lambda params, key: size_of_mean(halved(params), key))


def test_what_a_log_does_to_its_row_changes_nothing(tmp_path):
    def log(row):
        row["extra"] = object()
        row.pop("loss")
        return "ignored"

    fitted = quiet_fit(log=log, directory=tmp_path, epochs=2)
    assert "extra" not in fitted.history and fitted.history["loss"].shape == (2,)


def test_callbacks_that_cannot_be_called_are_refused_before_any_work(tmp_path):
    folder = tmp_path / "run"
    for given, message in (
        ({"hook": 3}, "fit: hook: got int, expected a function of .state."),
        ({"hook": lambda: None}, "fit: hook: got <lambda>"),
        ({"log": {}}, "fit: log: got dict, expected a function of .row.; for instance print"),
        ({"log": lambda row, step: None}, "fit: log: got <lambda>"),
    ):
        with pytest.raises(TypeError, match=message):
            quiet_fit(directory=folder, **given)
    assert not folder.exists()


def test_a_population_checks_its_functions_and_what_they_return():
    hyper = {"seed": np.arange(2)}
    start = {"mean": np.zeros((2, 4, 3), np.float32)}

    def fit(make=lambda hyper: (DISTANCE, ADAM), **options):
        keys = jax.vmap(jax.random.key)(hyper["seed"])
        settings = {"epochs": 1, "batch_size": 16, "transform": data.scale, "progress": False}
        return population.fit(make, hyper, start, IMAGES, keys=keys, **settings | options)

    for given, message in (
        ({"make": 3}, "population.fit: make: got int, expected a function of .hyper."),
        ({"make": lambda hyper: DISTANCE}, r"population.fit: make: got .*, expected \(loss, optim"),
        ({"make": lambda hyper: (ADAM, DISTANCE)}, "population.fit: make: loss: got"),
        ({"make": lambda hyper: (DISTANCE, optax.adam)}, "make: optimizer: got adam"),
        ({"evaluate": size_of_mean}, "population.fit: evaluate: .*of .hyper, params, key."),
        ({"log": lambda: None}, "population.fit: log: "),
        ({"evaluate": lambda h, p, k: None}, "population.fit: evaluate: got None returned"),
        ({"evaluate": lambda h, p, k: {"loss": "low"}}, "evaluate: 'loss': got 'low', expected a"),
    ):
        with pytest.raises(TypeError, match=message):
            fit(**given)
    with pytest.raises(ValueError, match=r"population.fit: evaluate: 'loss': got shape \(4, 3\)"):
        fit(evaluate=lambda hyper, params, key: {"loss": params["mean"]})
    with pytest.raises(ValueError, match="population.fit: expected epochs >= 1"):
        fit(epochs=0)
