"""Numbers that are not finite: which term, step and example is said, and nothing good is lost."""

import errno
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.runs import (
    ADAM,
    DISTANCE,
    IMAGES,
    MEAN,
    elbo_fit,
    equal,
    failing_at,
    quiet_fit,
    size_of_mean,
)
from vaejax import autoencoder, autoencoders, checkpoint, data, errors, heads, sparsity, train


def test_values_outside_the_support_stop_at_the_first_step_and_say_so(params):
    with pytest.raises(
        train.NonFiniteError, match="distortion.*step 0.*distortion = inf"
    ) as caught:
        elbo_fit(params, images=np.full((20, 4, 3), 200.0), transform=None)
    assert "lies in [200, 200], with no transform" in str(caught.value)
    assert "have to be divided (x / 255)" in str(caught.value)
    assert caught.value.step == 0 and caught.value.terms["distortion"] == np.inf
    assert caught.value.checkpoint is None


@pytest.mark.parametrize(("shift", "said"), [(0, True), (0.5, False), (-300, False)])
def test_levels_that_are_floats_are_said_to_be_unscaled(shift, said):
    """But not numbers that cannot be levels: fractions, or below zero."""
    images = IMAGES.astype(np.float32) + np.float32(shift)
    assert ("have to be divided (x / 255)" in errors.unscaled(images)) == said


def test_a_divergence_names_term_step_and_last_good_checkpoint(tmp_path):
    loss = failing_at(7, DISTANCE, "distortion")
    with pytest.raises(
        train.NonFiniteError, match="distortion, loss not finite at step 7"
    ) as caught:
        quiet_fit(loss=loss, directory=tmp_path)
    assert caught.value.step == 7
    assert caught.value.checkpoint == tmp_path / "6"
    assert f"Last good checkpoint: {tmp_path / '6'}" in str(caught.value)
    # Up to there nothing is lost: the state before the step, in the middle of the third epoch.
    good = caught.value.fitted.state
    order = train.shuffled(50, 16)
    scan = train.make_scan(DISTANCE, ADAM, steps=7, indices=order, transform=data.scale)
    state = train.make_step(DISTANCE, ADAM)[0](jax.random.key(3), MEAN)
    equal(good, jax.jit(scan)(state, IMAGES)[0])
    assert caught.value.examples == ()  # each of them has the NaN


def test_the_example_to_blame_is_named_and_its_steps_can_be_left_out():
    """One example is not finite for the loss, though the data are finite."""
    images = (IMAGES > 127).astype(np.float32)
    images[31, 2, 1] = 200.0

    def loss(params, key, batch, step):
        value, metrics = DISTANCE(params, key, batch, step)
        outside = jnp.any(batch.x > 100, axis=(1, 2))
        counted = outside & (True if isinstance(batch.weight, tuple) else batch.weight > 0)
        return value + jnp.where(jnp.any(counted), jnp.inf, 0.0), metrics

    settings = {"loss": loss, "images": images, "transform": None, "batch_size": 10}
    with pytest.raises(train.NonFiniteError, match="Example 31 of the data by itself") as caught:
        quiet_fit(**settings)
    assert caught.value.examples == (31,)
    order = np.asarray(train.shuffled(50, 10)(jax.random.fold_in(jax.random.key(3), 1), 0))
    assert caught.value.step < 5 and (31 in order) == (caught.value.step == 0)
    skipped = quiet_fit(skip=3, epochs=3, **settings)  # once in each of three epochs
    np.testing.assert_array_equal(skipped.history["skipped"], [1, 1, 1])
    assert np.isfinite(skipped.history["loss"]).all() and int(skipped.state.step) == 15
    assert int(skipped.state.opt_state[0].count) == 12
    with pytest.raises(train.NonFiniteError, match="loss") as caught:
        quiet_fit(skip=2, epochs=3, **settings)
    assert caught.value.step >= 10 and len(caught.value.fitted.history["loss"]) == 2


def test_an_example_outside_the_likelihoods_support_is_named(params):
    """By the loss of a model, too, in which an example that does not count is replaced."""
    images = (IMAGES > 127).astype(np.float32)
    images[31, 2, 1] = 200.0
    with pytest.raises(train.NonFiniteError, match="Example 31 of the data by itself") as caught:
        elbo_fit(params, images=images, transform=None, batch_size=50, epochs=1)
    assert caught.value.examples == (31,)


def test_parameters_that_are_not_finite_are_never_kept_as_good(tmp_path):
    """A finite loss with a gradient that is not: the epoch's checkpoint is not written."""

    def loss(params, key, batch, step):
        value, metrics = DISTANCE(params, key, batch, step)
        # Of value 0 and gradient NaN, at one step only.
        root = lambda mean: jnp.sqrt(jnp.sum(0 * mean))  # noqa: E731
        bad = jax.lax.cond(step == 5, root, lambda mean: 0 * jnp.sum(mean), params["mean"])
        return value + bad, metrics

    with pytest.raises(train.NonFiniteError, match="gradient of .*mean.* not finite at step 5"):
        quiet_fit(loss=loss, directory=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"3"}


def steep_at(step, slope=1e25):
    """A loss of finite value and gradient, `slope` at one step: its square overflows float32."""

    def steep(params, key, batch, number):
        value, metrics = DISTANCE(params, key, batch, number)
        slopes = jnp.where(number == step, slope, 0.0)
        far = params["mean"] - jax.lax.stop_gradient(params["mean"])
        return value + slopes * jnp.sum(far), metrics

    return steep


STEEP = {"loss": steep_at(4), "chunk": 2}


def test_a_gradient_whose_square_overflows_leaves_the_optimizers_state_whole(tmp_path):
    """Adam would divide by infinity from then on, and never move again."""
    with pytest.raises(
        train.NonFiniteError, match=r"optimizer's state would not be finite after step 4.*mean"
    ) as caught:
        quiet_fit(directory=tmp_path, **STEEP)
    assert "reaches 1e+25" in str(caught.value) and caught.value.step == 4
    good = caught.value.fitted.state
    assert int(good.step) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good.opt_state))
    skipped = quiet_fit(skip=1, **STEEP)
    assert skipped.history["skipped"].tolist() == [0, 1, 0, 0]
    assert int(skipped.state.opt_state[0].count) == 11
    moved = skipped.state.params["mean"] - good.params["mean"]
    assert np.abs(moved).min() > 1e-3  # it still learns
    half = optax.adam(1e-2, mu_dtype=np.float16)  # which holds 65504 and no more
    spared = quiet_fit(optimizer=half, skip=1, loss=steep_at(4, 1e6), chunk=2)
    assert spared.history["skipped"].tolist() == [0, 1, 0, 0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(spared.state.opt_state))


def test_a_huge_gradient_that_the_optimizer_can_take_is_legal():
    """Clipped entry by entry it is a step like any other; so it is for plain descent."""
    clipped = quiet_fit(optimizer=optax.chain(optax.clip(1.0), ADAM), **STEEP)
    assert int(clipped.state.step) == 12
    plain = quiet_fit(optimizer=optax.sgd(1e-26), **STEEP)
    assert int(plain.state.step) == 12
    # In one chunk, of which the steps before the steep one are not made twice, or one by one.
    whole, single = (
        quiet_fit(optimizer=optax.sgd(1e-26), **{**STEEP, "chunk": chunk}) for chunk in (12, 1)
    )
    for one, other in ((whole, plain), (single, plain)):
        jax.tree.map(np.testing.assert_array_equal, one.history, other.history)
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    plateau = optax.chain(ADAM, watching_the_best())
    assert np.isinf(quiet_fit(optimizer=plateau, **{**STEEP, "loss": DISTANCE}).state.opt_state[1])
    with pytest.raises(train.NonFiniteError, match="optimizer's state would not be"):
        quiet_fit(optimizer=plateau, **STEEP)


def watching_the_best():
    """An optimizer whose state begins with infinity on purpose, and keeps it."""
    return optax.GradientTransformation(
        lambda params: jnp.asarray(jnp.inf), lambda updates, state, params=None: (updates, state)
    )


def test_a_state_that_an_optimizer_spoils_by_itself_is_named_after_the_chunk():
    def update(updates, state, params=None):
        return updates, jnp.where(state > 3, jnp.inf, state + 1)

    ruin = optax.GradientTransformation(lambda params: jnp.zeros(()), update)
    optimizer = optax.chain(optax.sgd(0.01), ruin)
    with pytest.raises(train.NonFiniteError, match=r"the optimizer's \[1\] is not finite after"):
        quiet_fit(optimizer=optimizer)


def test_an_optimizer_that_ruins_the_parameters_is_named():
    def update(updates, state, params):
        return jax.tree.map(lambda g: jnp.where(state > 3, jnp.nan, g), updates), state + 1

    ruin = optax.GradientTransformation(lambda params: jnp.zeros(()), update)
    with pytest.raises(train.NonFiniteError, match=r"not finite after step 4.*every loss"):
        quiet_fit(optimizer=ruin, batch_size=8, images=IMAGES[:40], chunk=5)


def test_an_evaluation_that_is_not_finite_stops_the_run():
    with pytest.raises(train.NonFiniteError, match="'loss' is monitored and not finite"):
        quiet_fit(evaluate=lambda params, key: {"loss": np.nan})


def test_a_penalty_that_is_not_finite_points_at_the_codes(key):
    model = autoencoder(heads.Code(2), heads.FixedNormal(12, 1.0))
    params = jax.jit(model.init)(key, jnp.zeros(12))
    loss = autoencoders.sparse(model, penalty=sparsity.kl(0.1), weight=1.0)
    x = -np.abs(IMAGES.reshape(50, 12) / np.float32(255))
    kernel = {"params": {"code": {"kernel": jnp.ones((12, 2)), "bias": jnp.zeros(2)}}}
    with pytest.raises(train.NonFiniteError, match="penalty.* check that the codes lie where"):
        quiet_fit(params | {"encoder": kernel}, loss=loss, images=x, transform=None)


# --- data that stay on the disk ------------------------------------------------------------------


def test_a_streamed_run_stands_still_before_a_step_that_is_not_finite(on_disk):
    """Batches were read ahead; and reading ends with the run."""

    def run(images):
        with pytest.raises(train.NonFiniteError, match="loss not finite at step 7") as caught:
            quiet_fit(loss=failing_at(7), images=images)
        return caught.value

    equal(run(on_disk).fitted.state, run(IMAGES).fitted.state)
    assert not [thread for thread in threading.enumerate() if thread.name == "vaejax-feed"]


def test_what_fails_between_steps_loses_none_of_them(on_disk, tmp_path):
    """One run whose disk, evaluation, log and hook fail one after another, each resumed."""
    seen = [0]
    fourth = np.asarray(train.shuffled(50, 10)(jax.random.fold_in(jax.random.key(3), 1), 3))

    def failing(what=None, epoch=0, **given):
        def fails(name, now):
            if (name, now) == (what, epoch):
                raise OSError(errno.EIO, f"{name} failed")

        def read(indices):
            fails("read", 1 if np.array_equal(indices, fourth) else 0)
            return on_disk.read(indices)

        def evaluate(params, key):
            fails("evaluate", seen[-1] + 1)
            return size_of_mean(params, key)

        def hook(state):
            fails("hook", int(state.step) // 5)
            return state._replace(params={"mean": 1.001 * state.params["mean"]})

        def log(row):
            fails("log", row["epoch"])
            seen.append(row["epoch"])

        return quiet_fit(
            images=on_disk._replace(read=read),
            epochs=3,
            batch_size=10,
            evaluate=evaluate,
            evaluate_every=2,
            checkpoint_every=100,
            hook=hook,
            log=log,
            **given,
        )

    whole = failing()
    for what, epoch, saved in [
        ("read", 1, {"3"}),  # in the middle of a chunk
        ("hook", 1, {"3", "5"}),
        ("evaluate", 2, {"5", "10"}),
        ("log", 3, {"10", "15"}),
    ]:
        with pytest.raises(OSError, match=f"{what} failed") as caught:
            failing(what, epoch, directory=tmp_path, resume=True)
        assert {path.name for path in tmp_path.iterdir()} == saved
        step = max(map(int, saved))
        note = f"fit: saved before step {step}; resume=True goes on there"
        assert caught.value.__notes__[-1] == note
    assert seen == [0, 1, 2, 3, 1, 2]  # of the whole run first
    resumed = failing(directory=tmp_path, resume=True)
    assert seen[6:] == [3]  # what failed is made up for
    for history in (whole.history, resumed.history):
        assert history.pop("waiting").shape == (3,)
    equal((whole.state, whole.best, whole.history), (resumed.state, resumed.best, resumed.history))
    equal(checkpoint.load(tmp_path, like=MEAN), whole.params)
    equal(checkpoint.load(tmp_path, like=MEAN, best=True), whole.best.params)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"epochs": 2.5}, "fit: epochs: got 2.5, expected a whole number >= 1"),
        ({"epochs": True}, "fit: epochs: got True"),
        ({"skip": 1.5}, "fit: skip: got 1.5"),
        ({"skip": -3}, "expected skip >= 0, got -3"),
        ({"chunk": "9"}, "fit: chunk: got '9'"),
        ({"batch_size": 0}, "fit: expected batch_size >= 1, got 0"),
        ({"batch_size": 51}, "fit: batch_size: got 51, expected 1 to 50"),
        ({"images": IMAGES[:0]}, "fit: expected examples >= 1, got 0"),
        ({"images": {"params": MEAN}}, "fit: x: got parameters of a model"),
        ({"images": "photos"}, "fit: x: got 'photos'.*data.load"),
        ({"params": IMAGES}, "fit: params: got .*expected parameters"),
        ({"loss": lambda p, k, b, s: p["mean"].sum()}, "fit: loss: got .*return value, {}"),
        ({"loss": lambda p, k, b, s: (b.x[:, 0, 0] + p["mean"][0, 0], {})}, "a value of shape"),
    ],
)
def test_what_fit_cannot_mean_is_refused_by_its_name(options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        quiet_fit(**options)


def test_fitted_in_place_of_its_parameters_is_said_so():
    state = train.TrainState(MEAN, (), (), 0)
    with pytest.raises(TypeError, match="fit: params: got a Fitted.*pass its .params"):
        quiet_fit(train.Fitted(state, state, {}, "epochs"))


def test_a_list_of_rows_trains_as_their_array():
    whole, rows = (
        quiet_fit(epochs=1),
        quiet_fit(
            images=[one.tolist() for one in IMAGES], epochs=1, transform=lambda key, x: x / 255.0
        ),
    )
    np.testing.assert_allclose(whole.params["mean"], rows.params["mean"], rtol=1e-5)
