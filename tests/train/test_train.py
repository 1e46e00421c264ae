"""Chunks, order, early stopping, resume after any stop, and errors that lose nothing."""

import errno
import resource
import shutil
import signal
import tempfile
import threading
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import some_slow
from vaejax import autoencoders, checkpoint, data, heads, sources, sparsity, train
from vaejax.batch import as_batch
from vaejax.distributions import Normal
from vaejax.model import autoencoder
from vaejax.objectives import elbo
from vaejax.train import _loop as loop

MODEL = autoencoder(heads.Normal(2), heads.Bernoulli((4, 3)), Normal(jnp.zeros(2), jnp.ones(2)))
LOSS = elbo(MODEL)
ADAM = optax.adam(1e-2)
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(7), jnp.zeros((4, 3)))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, without_keys(a), without_keys(b))


def without_keys(tree):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def quiet_fit(params, *, images=IMAGES, seed=3, **options):
    settings = {"epochs": 4, "batch_size": 16, "transform": data.binarize, **options}
    return train.fit(
        LOSS, ADAM, params, images, key=jax.random.key(seed), progress=False, **settings
    )


# --- the pure programs ---------------------------------------------------------------------------


def test_any_cutting_into_chunks_gives_the_same_bits(params):
    init, _ = train.make_step(LOSS, ADAM)
    order = train.shuffled(50, 16)
    scan = partial(train.make_scan, LOSS, ADAM, indices=order, transform=data.binarize)

    def run(*chunks):
        state = init(jax.random.key(1), params)
        losses = []
        for steps in chunks:
            state, history = jax.jit(scan(steps=steps))(state, IMAGES)
            losses.append(history["loss"])
        return state, np.concatenate(losses)

    whole, losses = run(70)
    for chunks in [(10,) * 7, (10, 60)]:
        state, pieces = run(*chunks)
        equal(whole, state)
        np.testing.assert_array_equal(losses, pieces)


def test_make_train_is_pure_and_maps_over_keys(params):
    run = train.make_train(LOSS, ADAM, steps=5, batch_size=16, transform=data.binarize)
    keys = jax.random.split(jax.random.key(0), 3)
    states, history = jax.jit(jax.vmap(run, (0, None, None)))(keys, params, IMAGES)
    assert history["loss"].shape == (3, 5)
    assert len(np.unique(np.asarray(history["loss"][:, 0]))) == 3
    alone, _ = jax.jit(run)(jax.random.clone(keys[1]), params, IMAGES)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        jax.tree.map(lambda leaf: leaf[1], states.params),
        alone.params,
    )


def test_a_step_uses_every_term_of_the_loss_before_the_update(params):
    init, step = train.make_step(LOSS, ADAM)
    state = init(jax.random.key(0), params)
    new, metrics = jax.jit(step)(state, as_batch(jnp.ones((6, 4, 3))))
    assert set(metrics) == {"loss", "elbo", "distortion", "rate", "beta"}
    assert int(new.step) == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(new.params, params)
    # One step of Adam by hand, with the key that the step says it uses.
    step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    loss_key = jax.random.split(step_key)[1]
    batch = as_batch(jnp.ones((6, 4, 3)))
    value, grads = jax.value_and_grad(lambda p: LOSS(p, loss_key, batch, 0)[0])(params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    updates, _ = ADAM.update(grads, ADAM.init(params), params)
    chex.assert_trees_all_close(new.params, optax.apply_updates(params, updates), rtol=1e-4)


def test_one_trace_for_all_epochs(params):
    count = chex.assert_max_traces(n=1)

    @count
    def loss(*arguments):
        return LOSS(*arguments)

    train.fit(
        loss,
        ADAM,
        params,
        IMAGES,
        key=jax.random.key(0),
        epochs=3,
        batch_size=16,
        transform=data.binarize,
        progress=False,
    )


@pytest.mark.parametrize("size", [2, 7, 64, 1000, 4097])
def test_the_order_of_an_epoch_is_a_permutation(size):
    entries = train.permute(jax.random.key(size), jnp.arange(size), size)
    np.testing.assert_array_equal(np.sort(entries), np.arange(size))


def test_permutations_are_uniform_in_position_and_in_neighbours():
    """Each value at each place, and each value after each other one, as often as chance says."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    orders = np.asarray(jax.jit(jax.vmap(lambda key: train.permute(key, jnp.arange(10), 10)))(keys))
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
    epochs = [
        np.concatenate([order(key, jnp.asarray(3 * e + i)) for i in range(3)]) for e in (0, 1)
    ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(48))
    assert (epochs[0] != epochs[1]).any()


# --- fit -----------------------------------------------------------------------------------------


def test_fit_learns_keeps_history_and_leaves_the_callers_parameters_alone(params):
    before = jax.tree.map(np.array, params)
    fitted = quiet_fit(params, epochs=30)
    equal(before, params)
    assert fitted.stopped == "epochs"
    np.testing.assert_array_equal(fitted.history["epoch"], np.arange(1, 31))
    assert fitted.history["step"][-1] == 90 == int(fitted.state.step)
    assert fitted.history["loss"][-5:].mean() < fitted.history["loss"][:2].mean() - 0.1
    equal(fitted.params, fitted.state.params)


def test_evaluation_every_few_epochs_and_after_the_last(params):
    fitted = quiet_fit(params, epochs=5, evaluate=lambda p, key: {"loss": 1.0}, evaluate_every=2)
    np.testing.assert_array_equal(np.isnan(fitted.history["eval/loss"]), [1, 0, 1, 0, 0])


def test_early_stopping_keeps_the_best_state(params):
    values = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    seen = []

    def evaluate(p, key):
        seen.append(jax.tree.map(np.array, p))
        return {"loss": next(values)}

    fitted = quiet_fit(params, epochs=9, evaluate=evaluate, patience=2)
    assert fitted.stopped == "early" and len(seen) == 4
    equal(fitted.best.params, seen[1])
    assert int(fitted.best.step) == 6
    equal(fitted.best.opt_state[0].count, np.int32(6))  # its own optimizer state


def test_every_evaluation_has_the_same_noise(params):
    draws = []
    quiet_fit(
        params,
        epochs=2,
        evaluate=lambda p, key: {"loss": draws.append(jax.random.normal(key)) or 0},
    )
    assert draws[0] == draws[1]


def test_a_hook_changes_the_state_between_epochs(params):
    frozen = jax.tree.map(np.array, params)
    fitted = quiet_fit(params, epochs=2, hook=lambda s: s._replace(params=params))
    equal(fitted.params, frozen)


# --- resume --------------------------------------------------------------------------------------


def some_evaluation(p, key):
    return {"loss": float(jnp.abs(p["decoder"]["params"]["logits"]["bias"]).sum())}


def stopped_after(epoch):
    def log(row):
        if row["epoch"] == epoch:
            signal.raise_signal(signal.SIGINT)

    return log


@pytest.mark.parametrize("checkpoint_every", some_slow([1, 100], [100]))
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(params, tmp_path, checkpoint_every):
    """Everything: parameters, optimizer, best state, history, and when early stopping strikes."""

    def evaluate(p, key):  # falls, then rises, so that patience runs out
        return {"loss": abs(some_evaluation(p, key)["loss"] - 0.35)}

    options = {
        "evaluate": evaluate,
        "evaluate_every": 2,
        "patience": 3,
        "epochs": 40,
        "hook": lambda s: s._replace(params=jax.tree.map(lambda a: 1.001 * a, s.params)),
    }
    whole = quiet_fit(params, **options)
    assert whole.stopped == "early" and int(whole.best.step) < int(whole.state.step)
    at = int(whole.history["epoch"][-1]) - 3  # while it waits
    with pytest.raises(train.Interrupted):
        quiet_fit(
            params,
            directory=tmp_path,
            log=stopped_after(at),
            checkpoint_every=checkpoint_every,
            **options,
        )
    resumed = quiet_fit(params, directory=tmp_path, resume=True, **options)
    equal((whole.state, whole.best), (resumed.state, resumed.best))
    assert whole.history.keys() == resumed.history.keys()
    equal(whole.history, resumed.history)
    assert resumed.stopped == "early"


def test_a_longer_run_is_the_same_as_one_planned_longer(params, tmp_path):
    options = {"evaluate": some_evaluation, "evaluate_every": 2, "patience": 3}
    whole = quiet_fit(params, epochs=7, **options)
    quiet_fit(params, epochs=3, directory=tmp_path, **options)
    longer = quiet_fit(params, epochs=7, directory=tmp_path, resume=True, **options)
    equal((whole.state, whole.best), (longer.state, longer.best))


def test_more_patience_continues_a_run_that_stopped_early(params, tmp_path):
    options = {"evaluate": lambda p, key: {"loss": 1.0}, "directory": tmp_path, "epochs": 9}
    assert quiet_fit(params, patience=1, **options).history["epoch"][-1] == 2
    assert quiet_fit(params, patience=4, resume=True, **options).history["epoch"][-1] == 5


def test_ctrl_c_leaves_a_checkpoint_and_all_there_was(params, tmp_path):
    log, before = stopped_after(2), signal.getsignal(signal.SIGINT)
    with pytest.raises(train.Interrupted, match="stopped by Ctrl-C after epoch 2") as caught:
        quiet_fit(params, epochs=5, directory=tmp_path, checkpoint_every=100, log=log)
    assert len(caught.value.fitted.history["loss"]) == 2
    resumed = quiet_fit(params, epochs=5, directory=tmp_path, resume=True)
    equal(resumed.state, quiet_fit(params, epochs=5).state)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (signal.SIGTERM, "SIGTERM"),
        pytest.param(signal.SIGINT, "Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_the_middle_of_an_epoch_is_heeded_after_the_chunk(
    params, tmp_path, monkeypatch, number, kind
):
    """Preempted jobs have seconds: the epoch need not end, and nothing of it is lost."""
    gather = loop.Run.gather

    def signalled(run, history):
        gather(run, history)
        if run.epoch == 1 and run.done == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(loop.Run, "gather", signalled)
    options = {"batch_size": 6, "chunk": 2}  # 8 steps an epoch
    expected = train.Terminated if number == signal.SIGTERM else train.Interrupted
    before = signal.getsignal(number)
    with pytest.raises(expected, match=rf"by {kind} in epoch 2 \(step 2 of 8\)") as caught:
        quiet_fit(params, directory=tmp_path, checkpoint_every=100, **options)
    assert signal.getsignal(number) is before
    assert int(caught.value.fitted.state.step) == 10
    assert {path.name for path in tmp_path.iterdir()} == {"10"}
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    monkeypatch.undo()
    resumed = quiet_fit(params, directory=tmp_path, resume=True, **options)
    whole = quiet_fit(params, batch_size=6)
    equal((whole.state, whole.history), (resumed.state, resumed.history))


def test_fit_runs_outside_the_main_thread(params):
    done = []
    thread = threading.Thread(target=lambda: done.append(quiet_fit(params, epochs=1).stopped))
    thread.start()
    thread.join()
    assert done == ["epochs"]


# --- data that stay on the disk ------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, IMAGES)
    return sources.in_memory(as_batch(np.load(path, mmap_mode="r")))


def test_a_streamed_run_is_the_run_in_memory_and_either_continues_the_other(
    params, on_disk, tmp_path
):
    whole = quiet_fit(params, evaluate=some_evaluation)
    streamed = quiet_fit(params, images=on_disk, evaluate=some_evaluation)
    equal((whole.state, whole.best), (streamed.state, streamed.best))
    waiting = streamed.history.pop("waiting")
    assert waiting.shape == (4,) and (waiting >= 0).all() and (waiting <= 1).all()
    equal(whole.history, streamed.history)
    for first, second, folder in ((IMAGES, on_disk, "a"), (on_disk, IMAGES, "b")):
        quiet_fit(params, images=first, epochs=2, directory=tmp_path / folder)
        resumed = quiet_fit(params, images=second, directory=tmp_path / folder, resume=True)
        equal(resumed.state, whole.state)


def test_a_streamed_run_stands_still_before_a_step_that_is_not_finite(params, on_disk):
    """Batches were read ahead; and reading ends with the run."""

    def loss(p, key, batch, step):
        value, metrics = LOSS(p, key, batch, step)
        return value + jnp.where(step == 7, jnp.nan, 0.0), metrics

    def run(images):
        with pytest.raises(train.NonFiniteError, match="loss not finite at step 7") as caught:
            train.fit(
                loss,
                ADAM,
                params,
                images,
                key=jax.random.key(0),
                epochs=9,
                batch_size=16,
                transform=data.binarize,
                progress=False,
            )
        return caught.value

    equal(run(on_disk).fitted.state, run(IMAGES).fitted.state)
    assert not [thread for thread in threading.enumerate() if thread.name == "vaejax-feed"]


# --- errors that lose nothing --------------------------------------------------------------------


def test_values_outside_the_support_stop_at_the_first_step_and_say_so(params):
    with pytest.raises(
        train.NonFiniteError, match="distortion.*step 0.*distortion = inf"
    ) as caught:
        quiet_fit(params, images=np.full((20, 4, 3), 200.0), transform=None)
    assert "lies in [200, 200], with no transform" in str(caught.value)
    assert caught.value.step == 0 and caught.value.terms["distortion"] == np.inf
    assert caught.value.checkpoint is None


def test_a_divergence_names_term_step_and_last_good_checkpoint(params, tmp_path):
    def loss(p, key, batch, step):
        value, metrics = LOSS(p, key, batch, step)
        bad = jnp.where(step == 7, jnp.nan, 0.0)
        return value + bad, {**metrics, "rate": metrics["rate"] + bad}

    with pytest.raises(train.NonFiniteError, match="loss, rate not finite at step 7") as caught:
        train.fit(
            loss,
            ADAM,
            params,
            IMAGES,
            key=jax.random.key(0),
            epochs=9,
            batch_size=16,
            transform=data.binarize,
            directory=tmp_path,
            progress=False,
        )
    assert caught.value.step == 7
    assert caught.value.checkpoint == tmp_path / "6"
    assert f"Last good checkpoint: {tmp_path / '6'}" in str(caught.value)
    # Up to there nothing is lost: the state before the step, in the middle of the third epoch.
    good = caught.value.fitted.state
    scan = train.make_scan(
        LOSS, ADAM, steps=7, indices=train.shuffled(50, 16), transform=data.binarize
    )
    state = train.make_step(LOSS, ADAM)[0](jax.random.key(0), params)
    equal(good, jax.jit(scan)(state, IMAGES)[0])
    assert caught.value.examples == ()  # each of them has the NaN


def test_the_example_to_blame_is_named(params):
    """One example outside the likelihood's support; then a run that leaves its steps out."""
    images = (IMAGES > 127).astype(np.float32)
    images[31, 2, 1] = 200.0
    with pytest.raises(train.NonFiniteError, match="Example 31 of the data by itself") as caught:
        quiet_fit(params, images=images, transform=None, batch_size=10)
    assert caught.value.examples == (31,)
    order = np.asarray(train.shuffled(50, 10)(jax.random.fold_in(jax.random.key(3), 1), 0))
    assert caught.value.step < 5 and (31 in order) == (caught.value.step == 0)
    settings = {"images": images, "transform": None, "batch_size": 10}
    skipped = quiet_fit(params, skip=4, **settings)  # once in each of four epochs
    np.testing.assert_array_equal(skipped.history["skipped"], [1, 1, 1, 1])
    assert np.isfinite(skipped.history["loss"]).all() and int(skipped.state.step) == 20
    assert int(skipped.state.opt_state[0].count) == 16
    with pytest.raises(train.NonFiniteError, match="distortion") as caught:
        quiet_fit(params, skip=3, **settings)
    assert caught.value.step >= 15 and len(caught.value.fitted.history["loss"]) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_are_not_finite_are_refused_before_training(params, bad):
    images = np.zeros((20, 4, 3))
    images[[4, 9]] = bad
    with pytest.raises(ValueError, match="NaN or infinite values in 2 of 20.*first at index 4"):
        quiet_fit(params, images=images)


def test_a_batch_larger_than_the_data_is_refused(params):
    with pytest.raises(ValueError, match="batch_size: got 64, expected 1 to 50"):
        quiet_fit(params, batch_size=64)


@pytest.mark.parametrize(
    ("first", "size", "batch_size", "message"),
    [
        (0, 64, 64, "batch_size: got 64, expected 1 to 50"),
        (0, 5, 10, r"fit: indices: got shape \(5,\), expected \(10,\)"),
        (46, 5, 5, "fit: indices: got 46 to 50, expected 0 to 49"),
        (-1, 5, 5, "fit: indices: got -1 to 3"),
    ],
)
def test_indices_of_other_data_or_batches_are_refused(params, first, size, batch_size, message):
    """Past the end JAX would show the last example again; no whole batch would be no step."""
    with pytest.raises(ValueError, match=message):
        quiet_fit(params, batch_size=batch_size, indices=lambda key, step: first + jnp.arange(size))


def test_images_of_another_size_are_refused_by_name(params):
    with pytest.raises(ValueError, match=r"encode: expected one example.*\(4, 3\).*got \(5, 3\)"):
        quiet_fit(params, images=np.zeros((20, 5, 3), np.uint8))


def test_a_directory_with_another_run_is_not_overwritten(params, tmp_path):
    quiet_fit(params, directory=tmp_path, epochs=1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="already holds a run; pass resume=True"):
        quiet_fit(params, directory=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="(?s)checkpoint of another run.*key"):
        quiet_fit(params, directory=tmp_path, resume=True, seed=4)
    with pytest.raises(ValueError, match="batch_size: checkpoint 16, here 10"):
        quiet_fit(params, directory=tmp_path, resume=True, batch_size=10)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_model_is_refused_with_the_difference(params, tmp_path):
    quiet_fit(params, directory=tmp_path, epochs=1)
    three = Normal(jnp.zeros(3), jnp.ones(3))
    other = autoencoder(heads.Normal(3), heads.Bernoulli((4, 3)), three)
    wide = other.init(jax.random.key(0), jnp.zeros((4, 3)))
    with pytest.raises(
        ValueError, match=r"(?s)another model.*float32\[12, 2\], here float32\[12, 3\]"
    ):
        quiet_fit(wide, directory=tmp_path, resume=True)


def test_a_truncated_checkpoint_is_set_aside_and_the_one_before_serves(params, tmp_path):
    quiet_fit(params, directory=tmp_path, epochs=3)
    largest = max((tmp_path / "9").rglob("*"), key=lambda path: path.stat().st_size)
    stored = largest.read_bytes()
    largest.write_bytes(stored[: len(stored) // 2])
    with pytest.warns(UserWarning, match="9 is damaged.*renamed damaged-9.*from the one before"):
        resumed = quiet_fit(params, directory=tmp_path, resume=True)
    equal(resumed.state, quiet_fit(params).state)
    assert {path.name for path in tmp_path.iterdir()} == {"damaged-9", "9", "12"}
    equal(checkpoint.load(tmp_path, like=params), resumed.params)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(params, tmp_path):
    whole = quiet_fit(params, directory=tmp_path, epochs=1).state
    refused = 0
    for path in [p for p in (tmp_path / "3" / "arrays").rglob("*") if p.is_file()]:
        stored = path.read_bytes()
        if len(stored) < 200:
            continue
        flipped = bytearray(stored)
        flipped[len(stored) // 2] ^= 16
        path.write_bytes(bytes(flipped))
        try:
            equal(quiet_fit(params, directory=tmp_path, resume=True, epochs=1).state, whole)
        except ValueError as error:
            assert "damaged" in str(error) and "no other is good" in str(error)
            refused += 1
        path.write_bytes(stored)
    assert refused >= 1


def test_a_disk_that_is_full_stops_the_run_which_goes_on_once_there_is_room(params, tmp_path):
    """The system refuses to write: what was written before stays whole, what is half goes."""
    whole = quiet_fit(params)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(row):
        if row["epoch"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    try:
        with pytest.raises(
            checkpoint.SaveError, match="could not be written.*MB are free"
        ) as caught:
            quiet_fit(params, directory=tmp_path, log=full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"Last good checkpoint: {tmp_path / '6'}" in str(caught.value)
    assert len(caught.value.fitted.history["loss"]) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"3", "6"}
    equal(quiet_fit(params, directory=tmp_path, resume=True).state, whole.state)


def test_what_fails_between_steps_loses_none_of_them(on_disk, tmp_path):
    """One run whose disk, evaluation, log and hook fail one after another, each resumed."""
    params = jnp.zeros((4, 3))

    def loss(p, key, batch, step):
        return jnp.sum((batch.x.mean(axis=0) - p + jax.random.normal(key, (4, 3))) ** 2), {}

    seen = [0]
    fourth = np.asarray(train.shuffled(50, 10)(jax.random.fold_in(jax.random.key(3), 1), 3))

    def failing(what=None, epoch=0, **given):
        def fails(name, now):
            if (name, now) == (what, epoch):
                raise OSError(errno.EIO, f"{name} failed")

        def read(indices):
            fails("read", 1 if np.array_equal(indices, fourth) else 0)
            return on_disk.read(indices)

        def evaluate(p, key):
            fails("evaluate", seen[-1] + 1)
            return {"loss": float(p.sum())}

        def hook(state):
            fails("hook", int(state.step) // 5)
            return state._replace(params=1.001 * state.params)

        def log(row):
            fails("log", row["epoch"])
            seen.append(row["epoch"])

        return train.fit(
            loss,
            optax.sgd(0.1, 0.9),
            params,
            on_disk._replace(read=read),
            key=jax.random.key(3),
            epochs=3,
            batch_size=10,
            transform=data.scale,
            evaluate=evaluate,
            evaluate_every=2,
            checkpoint_every=100,
            hook=hook,
            log=log,
            progress=False,
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
    equal(checkpoint.load(tmp_path, like=params), whole.params)
    equal(checkpoint.load(tmp_path, like=params, best=True), whole.best.params)


def test_a_folder_without_permission_or_space_is_refused_before_any_work(
    params, tmp_path, monkeypatch
):
    worked = []

    def run(match):
        with pytest.raises(OSError, match=match):
            quiet_fit(params, directory=tmp_path / "run", log=worked.append)

    with monkeypatch.context() as patch:
        tiny = shutil.disk_usage(tmp_path)._replace(free=100)
        patch.setattr(shutil, "disk_usage", lambda path: tiny)
        run("0 MB free, expected .* MB for a checkpoint; make room, or use another directory")
    shutil.rmtree(tmp_path / "run")
    file = tmp_path / "run"
    file.write_text("")
    run("expected directory to be a folder, got the file")
    file.unlink()

    def refused(**options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)  # root may write everywhere
    run("nothing can be written to directory .*Permission denied.*change its permissions")
    assert not worked


def test_a_checkpoint_of_another_format_is_refused_in_words(params, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FORMAT", 1)
    quiet_fit(params, directory=tmp_path, epochs=1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"(?s)another run; .*format: checkpoint 1, here \d"):
        quiet_fit(params, directory=tmp_path, resume=True)


def test_a_monitor_that_is_not_measured_is_refused(params):
    with pytest.raises(ValueError, match=r"monitor='rate' is not among.*\['loss'\]"):
        quiet_fit(params, evaluate=some_evaluation, monitor="rate")


def test_an_evaluation_that_is_not_finite_stops_the_run(params):
    with pytest.raises(train.NonFiniteError, match="'loss' is monitored and not finite"):
        quiet_fit(params, evaluate=lambda p, key: {"loss": np.nan})


@pytest.mark.parametrize(
    "name", ["epochs", "evaluate_every", "checkpoint_every", "patience", "keep", "chunk"]
)
def test_counts_below_one_are_refused(params, name):
    with pytest.raises(ValueError, match=f"fit: expected {name} >= 1, got 0"):
        quiet_fit(params, **{name: 0})


def test_parameters_that_are_not_finite_are_never_kept_as_good(params, tmp_path):
    """A finite loss with a gradient that is not: the epoch's checkpoint is not written."""

    def loss(p, key, batch, step):
        value, metrics = LOSS(p, key, batch, step)
        bias = p["decoder"]["params"]["logits"]["bias"]
        # Of value 0 and gradient NaN, at one step only.
        root = lambda b: jnp.sqrt(jnp.sum(0 * b))  # noqa: E731
        bad = jax.lax.cond(step == 5, root, lambda b: 0 * jnp.sum(b), bias)
        return value + bad, metrics

    with pytest.raises(train.NonFiniteError, match="gradient of .*bias.* not finite at step 5"):
        train.fit(
            loss,
            ADAM,
            params,
            IMAGES,
            key=jax.random.key(0),
            epochs=9,
            batch_size=16,
            transform=data.binarize,
            directory=tmp_path,
            progress=False,
        )
    assert {path.name for path in tmp_path.iterdir()} == {"3"}


def test_an_optimizer_that_ruins_the_parameters_is_named(params):
    def update(updates, state, params):
        return jax.tree.map(lambda g: jnp.where(state > 3, jnp.nan, g), updates), state + 1

    ruin = optax.GradientTransformation(lambda params: jnp.zeros(()), update)
    with pytest.raises(train.NonFiniteError, match=r"not finite after step 4.*every loss"):
        train.fit(
            LOSS,
            ruin,
            params,
            IMAGES[:48],
            key=jax.random.key(0),
            epochs=9,
            batch_size=8,
            transform=data.binarize,
            chunk=5,
            progress=False,
        )


def test_best_is_the_last_state_until_something_was_compared(params):
    with pytest.raises(train.Interrupted) as caught:
        quiet_fit(
            params, epochs=9, evaluate=some_evaluation, evaluate_every=5, log=stopped_after(2)
        )
    equal(caught.value.fitted.best, caught.value.fitted.state)


def test_parameters_of_numpy_resume_too(params, tmp_path):
    arrays = jax.tree.map(np.array, params)
    quiet_fit(arrays, epochs=1, directory=tmp_path)
    resumed = quiet_fit(arrays, epochs=2, directory=tmp_path, resume=True)
    equal(resumed.state, quiet_fit(params, epochs=2).state)


def test_other_data_of_the_same_size_are_refused(params, tmp_path):
    quiet_fit(params, epochs=1, directory=tmp_path)
    with pytest.raises(ValueError, match="(?s)another run.*data: checkpoint"):
        quiet_fit(params, images=255 - IMAGES, directory=tmp_path, resume=True)


def test_what_cannot_be_monitored_or_logged_is_refused(params):
    with pytest.raises(ValueError, match="fit: monitor: got 'elbo', expected what is minimised"):
        quiet_fit(params, evaluate=some_evaluation, monitor="elbo")

    def loss(p, key, batch, step):
        value, metrics = LOSS(p, key, batch, step)
        return value, {**metrics, "means": jnp.zeros(3)}

    with pytest.raises(ValueError, match=r"metric 'means': got shape \(3,\), expected a scalar"):
        train.fit(
            loss,
            ADAM,
            params,
            IMAGES,
            key=jax.random.key(0),
            epochs=1,
            batch_size=16,
            transform=data.binarize,
            progress=False,
        )


def test_a_state_may_be_donated_without_taking_the_callers_parameters(params):
    state = train.make_step(LOSS, ADAM)[0](jax.random.key(0), params)
    scan = train.make_scan(
        LOSS, ADAM, steps=1, indices=train.shuffled(50, 16), transform=data.binarize
    )
    jax.jit(scan, donate_argnums=0)(state, IMAGES)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("bad", [200.0, -1.0])
def test_floats_beyond_probabilities_are_not_silently_binarised(params, bad):
    with pytest.raises(train.NonFiniteError, match="distortion"):
        quiet_fit(params, images=np.full((20, 4, 3), bad, np.float32), epochs=1)


def test_options_that_would_do_nothing_are_refused(params):
    with pytest.raises(ValueError, match="fit: patience: got 3, expected evaluate beside it"):
        quiet_fit(params, patience=3)
    with pytest.raises(ValueError, match="fit: resume: got True, expected a directory"):
        quiet_fit(params, resume=True)


def test_parameters_load_without_the_run(params, tmp_path):
    values = [{"loss": value} for value in (3.0, 1.0, 2.0, 4.0)]
    fitted = quiet_fit(params, directory=tmp_path, evaluate=lambda p, key: values.pop())
    equal(checkpoint.load(tmp_path, like=params), fitted.params)
    equal(checkpoint.load(tmp_path, like=params, best=True), fitted.best.params)
    three = Normal(jnp.zeros(3), jnp.ones(3))
    other = autoencoder(heads.Normal(3), heads.Bernoulli((4, 3)), three)
    wide = other.init(jax.random.key(0), jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="another model"):
        checkpoint.load(tmp_path, like=wide)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.load(tmp_path / "typo", like=params)


class Pair(NamedTuple):
    second: Any
    first: Any


def test_parameters_in_named_tuples_lists_and_by_number_load_too(tmp_path):
    """In the order of the model's own leaves, not in that of the names in the checkpoint."""
    arrays = iter(np.arange(30, dtype=np.float32).reshape(15, 2))
    params = {
        "pair": Pair(next(arrays), next(arrays)),
        "numbered": {i: next(arrays) for i in range(11)},
        "listed": [next(arrays), (next(arrays),)],
        "none": None,
    }

    def loss(params, key, batch, step):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), {}

    fitted = train.fit(
        loss,
        optax.sgd(0.1),
        params,
        IMAGES / 255.0,
        epochs=1,
        batch_size=50,
        key=jax.random.key(0),
        directory=tmp_path,
        progress=False,
    )
    found = checkpoint.load(tmp_path, like=params)
    assert isinstance(found["pair"], Pair)
    equal(found, fitted.params)
    with pytest.raises(ValueError, match=r"(?s)another model.*pair/first: .*\[2\], here .*\[3\]"):
        checkpoint.load(tmp_path, like=params | {"pair": Pair(np.zeros(2), np.zeros(3))})


def test_a_damaged_checkpoint_is_not_loaded(params, tmp_path):
    fitted = quiet_fit(params, directory=tmp_path, epochs=1)
    files = [path for path in (tmp_path / "3" / "arrays").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    stored, refused = largest.read_bytes(), 0
    for place in range(50, len(stored), len(stored) // 8):
        flipped = bytearray(stored)
        flipped[place] ^= 16
        largest.write_bytes(bytes(flipped))
        try:
            equal(checkpoint.load(tmp_path, like=params), fitted.params)
        except ValueError:
            refused += 1
    assert refused >= 1


def test_skip_may_differ_between_a_run_and_its_continuation(params, tmp_path, monkeypatch):
    """Within an epoch too: its steps so far count as not skipped."""
    images = (IMAGES > 127).astype(np.float32)
    order = np.stack(
        [train.shuffled(50, 5)(jax.random.fold_in(jax.random.key(3), 1), i) for i in range(10)]
    )
    images[order[6, 0]] = 200.0  # seen in the seventh of ten steps
    settings = {"images": images, "transform": None, "batch_size": 5, "chunk": 2, "epochs": 1}
    whole = quiet_fit(params, skip=1, **settings)
    gather = loop.Run.gather

    def signalled(run, history):
        gather(run, history)
        if run.done == 4:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "gather", signalled)
    with pytest.raises(train.Terminated):
        quiet_fit(params, directory=tmp_path, **settings)
    monkeypatch.undo()
    with pytest.raises(train.NonFiniteError, match="step 6"):
        quiet_fit(params, directory=tmp_path, resume=True, **settings)
    resumed = quiet_fit(params, directory=tmp_path, resume=True, skip=1, **settings)
    equal((resumed.state, resumed.history), (whole.state, whole.history))


def test_levels_without_a_transform_are_a_warning(key):
    """uint8 images would be trained on as numbers up to 255."""
    model = autoencoder(heads.Code(2), heads.FixedNormal((4, 3), 1.0))
    params = model.init(key, jnp.zeros((4, 3)))
    loss = autoencoders.reconstruction(model)

    def run(images, **options):
        train.fit(
            loss,
            optax.sgd(1e-9),
            params,
            images,
            key=jax.random.key(1),
            epochs=1,
            batch_size=25,
            progress=False,
            **options,
        )

    with pytest.warns(UserWarning, match="uint8 levels 0..255 and there is no transform"):
        run(IMAGES)
    run(IMAGES, transform=data.scale)
    run(IMAGES / np.float32(255))


def test_a_penalty_that_is_not_finite_points_at_the_codes(key):
    model = autoencoder(heads.Code(2), heads.FixedNormal(12, 1.0))
    params = model.init(key, jnp.zeros(12))
    loss = autoencoders.sparse(model, penalty=sparsity.kl(0.1), weight=1.0)
    x = -np.abs(IMAGES.reshape(50, 12) / np.float32(255))
    kernel = {"params": {"code": {"kernel": jnp.ones((12, 2)), "bias": jnp.zeros(2)}}}
    with pytest.raises(train.NonFiniteError, match="penalty.* check that the codes lie where"):
        train.fit(
            loss,
            optax.sgd(0.1),
            {**params, "encoder": kernel},
            x,
            key=jax.random.key(1),
            epochs=1,
            batch_size=25,
            progress=False,
        )


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
def test_what_is_no_loss_optimizer_or_key_is_refused_before_any_work(
    params, tmp_path, wrong, message
):
    given = {
        "loss": LOSS,
        "optimizer": optax.adam(1e-3),
        "params": params,
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


@pytest.mark.parametrize(("shift", "said"), [(0, True), (0.5, False), (-300, False)])
def test_levels_that_are_floats_are_said_to_be_unscaled(params, shift, said):
    """But not numbers that cannot be levels: fractions, or below zero."""
    images = IMAGES.astype(np.float32) + np.float32(shift)
    with pytest.raises(train.NonFiniteError) as caught:
        train.fit(
            LOSS,
            optax.adam(1e-3),
            params,
            images,
            batch_size=8,
            key=jax.random.key(0),
            epochs=1,
            progress=False,
            transform=data.scale,
        )
    assert ("have to be divided (x / 255)" in str(caught.value)) == said
