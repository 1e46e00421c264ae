"""The moving average of parameters: its recursion, checkpoints, members, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.runs import ADAM, DISTANCE, IMAGES, MEAN, equal, quiet_fit, size_of_mean
from vaejax import checkpoint, data, population, train

AVERAGED = train.averaging(ADAM, 0.9)


def mean_by_hand(values, decay):
    """sum_s d^(t-s) p_s / sum_s d^(t-s), in double precision."""
    values = np.asarray(values, float)
    weights = float(decay) ** np.arange(len(values))[::-1]
    return np.tensordot(weights / weights.sum(), values, 1)


@pytest.mark.parametrize("traced", [False, True])
def test_the_average_is_the_weighted_mean_of_the_parameters_after_each_update(traced):
    """For decays near 1 too, where 1 - d^t cancels, and a start far away, which is forgotten."""
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)) + 1, jnp.float32)

    def run(decay):
        optimizer = train.averaging(optax.sgd(0.3), decay)

        def step(carry, grad):
            params, state = carry
            updates, state = optimizer.update({"w": grad}, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params["w"], state.average["w"])

        params = {"w": jnp.full(3, 100.0)}
        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]

    decays = np.float32([0.0, 0.5, 0.999, 0.99999])
    if traced:
        params, averages = jax.jit(jax.vmap(run))(decays)
    else:
        params, averages = jax.jit(
            lambda: jax.tree.map(lambda *a: jnp.stack(a), *map(run, decays))
        )()
    for decay, steps, found in zip(decays, params, averages, strict=True):
        expected = [mean_by_hand(steps[: t + 1], decay) for t in range(20)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_numbers_of_16_bits_are_averaged_in_32():
    """The share of a step, 1 in 300, would be lost beside 1 in bfloat16."""
    optimizer = train.averaging(optax.sgd(1.0), 0.9999)
    start = jnp.zeros((), jnp.bfloat16)

    def step(carry, grad):
        params, state = carry
        updates, state = optimizer.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    grads = jnp.where(jnp.arange(300) == 150, -1.0, 0.0).astype(jnp.bfloat16)
    (params, state), _ = jax.jit(
        lambda: jax.lax.scan(step, (start, optimizer.init(start)), grads)
    )()
    expected = mean_by_hand(np.arange(300) >= 150, 0.9999)
    np.testing.assert_allclose(state.average, expected, rtol=1e-5)
    found = train.average(train.TrainState(params, state, (), state.updates))
    assert found.dtype == jnp.bfloat16 and found == expected.astype(jnp.bfloat16)


@pytest.fixture(scope="module")
def averaged():
    """The run of 4 epochs, with an average."""
    return quiet_fit(optimizer=AVERAGED, evaluate=size_of_mean, monitor="average/loss")


def test_training_is_the_same_and_both_are_evaluated(averaged, whole):
    np.testing.assert_allclose(averaged.params["mean"], whole.params["mean"], rtol=1e-6)
    for name in ("loss", "eval/loss"):
        np.testing.assert_allclose(averaged.history[name], whole.history[name], rtol=1e-6)
    reached = [size_of_mean(p, None)["loss"] for p in (averaged.params, averaged.average)]
    assert averaged.history["eval/loss"][-1] == reached[0]
    assert averaged.history["eval/average/loss"][-1] == reached[1]
    assert 0 < reached[1] < reached[0]  # the mean moves away from 0, and its average behind it
    assert int(averaged.best.step) == 3  # the monitored number is that of the average


def test_the_average_of_a_run_is_that_of_its_steps():
    seen = []

    def hook(state):  # after each step: an epoch has one
        seen.append(np.array(state.params["mean"]))
        return state

    fitted = quiet_fit(epochs=12, batch_size=50, hook=hook, optimizer=AVERAGED)
    np.testing.assert_allclose(fitted.average["mean"], mean_by_hand(seen, 0.9), rtol=1e-6)


def test_a_checkpoint_holds_the_average_and_a_resume_goes_on_with_it(averaged, tmp_path):
    options = {
        "optimizer": AVERAGED,
        "evaluate": size_of_mean,
        "monitor": "average/loss",
        "directory": tmp_path,
    }
    quiet_fit(epochs=2, **options)
    resumed = quiet_fit(resume=True, **options)
    equal((averaged.state, averaged.best), (resumed.state, resumed.best))
    equal(averaged.history, resumed.history)
    equal(checkpoint.load(tmp_path, like=MEAN), averaged.params)
    equal(checkpoint.load(tmp_path, like=MEAN, average=True), averaged.average)
    best = checkpoint.load(tmp_path, like=MEAN, best=True, average=True)
    equal(best, train.average(averaged.best))
    with pytest.raises(ValueError, match=r"(?s)another optimizer|optimizer: checkpoint"):
        quiet_fit(epochs=5, resume=True, **options | {"optimizer": train.averaging(ADAM, 0.99)})


def test_an_average_around_whole_updates_of_several_steps(tmp_path):
    """Inside of MultiSteps it is found too: in the state, and in a checkpoint."""
    several = optax.MultiSteps(train.averaging(ADAM, 0.9), 3)
    fitted = quiet_fit(optimizer=several, epochs=1, directory=tmp_path)
    np.testing.assert_allclose(fitted.average["mean"], fitted.params["mean"], rtol=1e-6)
    equal(checkpoint.load(tmp_path, like=MEAN, average=True), fitted.average)


def test_members_of_a_population_have_averages_by_decays_of_their_own(averaged):
    hyper = {"decay": np.float32([0.0, 0.9])}

    found = population.fit(
        lambda hyper: (DISTANCE, train.averaging(ADAM, hyper["decay"])),
        hyper,
        {"mean": np.zeros((2, 4, 3), np.float32)},
        IMAGES,
        keys=jnp.stack([jax.random.key(3)] * 2),
        epochs=4,
        batch_size=16,
        transform=data.scale,
        evaluate=lambda hyper, params, key: {"loss": jnp.abs(params["mean"]).sum()},
        progress=False,
    )
    np.testing.assert_allclose(found.average["mean"][0], found.params["mean"][0], rtol=1e-6)
    np.testing.assert_allclose(found.average["mean"][1], averaged.average["mean"], rtol=1e-5)
    for name in ("eval/loss", "eval/average/loss"):
        np.testing.assert_allclose(found.history[name][:, 1], averaged.history[name], rtol=1e-5)
    equal(train.average(found.member(1)), jax.tree.map(lambda a: a[1], found.average))


def test_what_keeps_no_average_or_none_of_all_parameters_is_refused(whole, tmp_path):
    with pytest.raises(ValueError, match="average: got 0 averages.*train.averaging"):
        _ = whole.average
    quiet_fit(epochs=1, directory=tmp_path)
    with pytest.raises(ValueError, match="load: average: got 0 averages"):
        checkpoint.load(tmp_path, like=MEAN, average=True)
    for decay in (1.0, -0.1, 2):
        with pytest.raises(ValueError, match="averaging: decay: got .*, expected 0 <= decay < 1"):
            train.averaging(ADAM, decay)
    with pytest.raises(TypeError, match="averaging: optimizer: got .*, expected an Optax"):
        train.averaging(optax.adam, 0.9)
    part = optax.partition({"a": AVERAGED, "b": ADAM}, {"x": "a", "y": "b"})
    with pytest.raises(ValueError, match="some of the parameters alone.*around the whole"):
        part.init({"x": jnp.zeros(2), "y": jnp.zeros(2)})
    with pytest.raises(ValueError, match="no parameters, expected them beside the gradient"):
        AVERAGED.update(MEAN, AVERAGED.init(MEAN))
