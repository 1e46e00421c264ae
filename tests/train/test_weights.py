"""Weights of examples: what is minimised, at any batch size, and what `history` is a mean of."""

import signal
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import Batch, evaluate, objectives, population, recurrent, sources, stacked, train
from vaejax.batch import batch_mean, mean_over
from vaejax.distributions import Categorical, Normal
from vaejax.model import Model
from vaejax.train import _loop as loop
from vaejax.train.memory import accumulate

RNG = np.random.default_rng(0)
N, EPOCHS, RATE, KEY = 24, 3, 0.2, 5
X = RNG.normal(size=(N, 2)).astype(np.float32)
WEIGHT = RNG.gamma(0.4, size=N).astype(np.float32)
WEIGHT[::5] = 0
DATA = Batch(X, weight=WEIGHT)
START = {"mean": np.ones(2, np.float32)}


def SQUARES(params, key, batch, step):
    """Half the squared distance from a mean, whose optimum is the weighted mean of the data."""
    values = 0.5 * jnp.sum((batch.x - params["mean"][None]) ** 2, axis=1)
    value = batch_mean(values, batch.weight)
    return value, {"distortion": value}


@cache
def rows_of(size):
    """The rows of all steps of `fit`, [steps, size], in one program."""
    steps = jnp.arange(EPOCHS * (N // size))
    order = jax.jit(jax.vmap(train.shuffled(N, size), (None, 0)))
    return np.asarray(order(train.key_for(jax.random.key(KEY), "order"), steps))


def by_hand(size, rate=RATE):
    """`fit` by numpy: the mean at the end, and each epoch's weighted mean of the loss."""
    mean, rows = START["mean"].astype(float), []
    for of_epoch in np.split(rows_of(size), EPOCHS):
        total = counted = 0.0
        for rows_of_step in of_epoch:
            x, w = X[rows_of_step].astype(float), WEIGHT[rows_of_step].astype(float)
            total += w @ (0.5 * ((x - mean) ** 2).sum(axis=1))
            counted += w.sum()
            # The sum over the batch, over the mean weight of ALL the data.
            mean = mean - rate * (w @ (mean - x)) / size / WEIGHT.mean()
        rows.append(total / counted)
    return mean, rows


def quiet_fit(data=DATA, loss=SQUARES, size=4, **options):
    settings = {"epochs": EPOCHS, "batch_size": size, "progress": False, **options}
    return train.fit(loss, optax.sgd(RATE), START, data, key=jax.random.key(KEY), **settings)


def check(mean, losses, size):
    expected, rows = by_hand(size)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses, rows, rtol=1e-5)


@pytest.fixture(scope="module")
def in_memory():
    return quiet_fit()


def test_fit_descends_the_weighted_mean_over_the_data(in_memory):
    check(in_memory.params["mean"], in_memory.history["loss"], 4)
    assert set(in_memory.history) == {"epoch", "step", "loss", "distortion"}


def test_a_source_gives_the_same_bits_and_parts_the_same_numbers(in_memory):
    streamed = quiet_fit(sources.in_memory(DATA))
    np.testing.assert_array_equal(streamed.params["mean"], in_memory.params["mean"])
    np.testing.assert_array_equal(streamed.history["loss"], in_memory.history["loss"])
    parted = quiet_fit(loss=accumulate(SQUARES, 2))
    check(parted.params["mean"], parted.history["loss"], 4)


def test_a_batch_of_one_example(in_memory):
    """Where a batch's own mean would not know a weight at all."""
    found = quiet_fit(size=1, epochs=1)
    assert np.abs(by_hand(1)[0] - START["mean"]).max() > 0.01
    mean = START["mean"].astype(float)
    for i in rows_of(1)[:N, 0]:
        mean = mean - RATE * WEIGHT[i] / WEIGHT.mean() * (mean - X[i])
    np.testing.assert_allclose(found.params["mean"], mean, rtol=1e-4, atol=1e-5)


def test_members_of_a_population_and_pure_programs_do_the_same():
    hyper = {"rate": np.array([RATE, 0.05], np.float32)}
    params = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), START)
    keys = jnp.stack([jax.random.key(KEY)] * 2)
    found = population.fit(
        lambda hyper: (SQUARES, optax.sgd(hyper["rate"])),
        hyper,
        params,
        DATA,
        keys=keys,
        epochs=EPOCHS,
        batch_size=4,
        progress=False,
    )
    check(found.params["mean"][0], found.history["loss"][:, 0], 4)
    np.testing.assert_allclose(found.params["mean"][1], by_hand(4, 0.05)[0], rtol=1e-5, atol=1e-6)
    run = train.make_train(SQUARES, optax.sgd(RATE), steps=EPOCHS * 6, batch_size=4)
    state, history = jax.jit(run)(jax.random.key(KEY), START, DATA)
    check(state.params["mean"], by_hand(4)[1], 4)
    assert history["batch_weight"].mean() == pytest.approx(WEIGHT.mean(), rel=1e-5)


def test_a_step_alone_normalises_its_batch_unless_it_is_told_the_mean_weight():
    """So that weights of 0 and 1, the masks of ragged ends, are a mean over what counts."""
    batch = Batch(X[:4], weight=np.array([2.0, 0, 0, 6], np.float32))
    gradient = 1 - (2 * X[0] + 6 * X[3]) / 8
    for mean_weight, scale in ((None, 1.0), (8.0, 0.25)):
        init, step = train.make_step(SQUARES, optax.sgd(1.0), mean_weight=mean_weight)
        state, metrics = jax.jit(step)(init(jax.random.key(0), START), batch)
        np.testing.assert_allclose(state.params["mean"], 1 - scale * gradient, rtol=1e-5)
        assert float(metrics["batch_weight"]) == 2


def test_what_is_the_same_at_every_step_is_so_in_the_history_too(in_memory):
    """A schedule's value, whatever the batches weigh; and without weights the plain mean."""

    def scheduled(params, key, batch, step):
        value, _ = SQUARES(params, key, batch, step)
        return value, {"beta": jnp.asarray(0.3)}

    np.testing.assert_allclose(quiet_fit(loss=scheduled).history["beta"], 0.3, rtol=1e-6)
    plain = quiet_fit(X)
    np.testing.assert_array_equal(plain.history["loss"], plain.history["distortion"])


def test_a_weighted_run_resumes_in_the_middle_of_an_epoch(in_memory, tmp_path, monkeypatch):
    gather = loop.Run.gather

    def signalled(run, history):
        gather(run, history)
        if (run.epoch, run.done) == (1, 4):
            signal.raise_signal(signal.SIGTERM)

    options = {"directory": tmp_path, "chunk": 2}
    monkeypatch.setattr(loop.Run, "gather", signalled)
    with pytest.raises(train.Terminated):
        quiet_fit(**options)
    monkeypatch.undo()
    resumed = quiet_fit(resume=True, **options)
    np.testing.assert_array_equal(resumed.params["mean"], in_memory.params["mean"])
    np.testing.assert_array_equal(resumed.history["loss"], in_memory.history["loss"])


# --- metrics of some of the examples -------------------------------------------------------------


def labelled_error(params, key, batch, step):
    """A loss with a metric of the labelled examples alone: the mean of their first number."""
    value, _ = SQUARES(params, key, batch, step)
    return value, {"first": mean_over(batch.x[:, 0], batch.y != -1, batch.weight)}


Y = np.where(np.arange(N) < 5, 1, -1)
LABELLED = DATA._replace(y=Y)
OF_LABELLED = np.average(X[:5, 0], weights=WEIGHT[:5])


@pytest.fixture(scope="module")
def of_labelled():
    return quiet_fit(LABELLED, labelled_error)


def test_a_metric_of_few_examples_is_their_mean_in_history_and_over_data(of_labelled):
    """Though most batches of 4 have none of the 5."""
    np.testing.assert_allclose(of_labelled.history["first"], OF_LABELLED, rtol=1e-5)
    streamed = quiet_fit(sources.in_memory(LABELLED), labelled_error)
    np.testing.assert_array_equal(streamed.history["first"], of_labelled.history["first"])
    unweighted = quiet_fit(LABELLED._replace(weight=()), labelled_error)
    np.testing.assert_allclose(unweighted.history["first"], X[:5, 0].mean(), rtol=1e-5)
    arguments = labelled_error, START, jax.random.key(0), LABELLED
    for size in (4, 24):
        found = evaluate.mean_loss(*arguments, batch_size=size)
        assert found["first"] == pytest.approx(OF_LABELLED, rel=1e-5)
    evaluated = population.mean_loss(lambda hyper: (labelled_error, None), LABELLED, batch_size=5)
    found = jax.jit(evaluated)((), START, jax.random.key(0))
    assert float(found["first"]) == pytest.approx(OF_LABELLED, rel=1e-5)


def test_parts_of_a_batch_keep_the_mean_over_those_it_concerns():
    batch = jax.tree.map(lambda leaf: leaf[:8], LABELLED)
    whole, parted = (
        jax.jit(one)(START, jax.random.key(0), batch, 0)[1]["first"]
        for one in (labelled_error, accumulate(labelled_error, 4))
    )
    np.testing.assert_allclose(parted, whole, rtol=1e-5)
    np.testing.assert_allclose(parted.weight, whole.weight, rtol=1e-5)


def test_an_epoch_without_such_examples_has_no_mean_of_them():
    none = LABELLED._replace(y=np.full(N, -1))
    assert np.isnan(quiet_fit(none, labelled_error, epochs=1).history["first"]).all()


# --- losses of the library -----------------------------------------------------------------------


class Still(NamedTuple):
    """A cell whose state stays as it is."""

    def init(self, key, h, x, z):
        return ()

    def apply(self, params, h, x, z):
        return h


def ignoring_its_code():
    """p(x|z) = N(mean, 1) whatever z, and q(z|x) = p(z): each draw's weight is exactly p(x)."""

    def unit(*_, **__):
        return Normal(jnp.zeros(1), jnp.ones(1))

    def decode(params, z, c=(), *, key=None):
        return Normal(params["mean"], jnp.ones(2))

    return Model(lambda key, x, c=(): START, unit, unit, decode)


MODEL = ignoring_its_code()
VRNN = recurrent.vrnn(MODEL, Still(), features=1)
SEQUENCES = RNG.normal(size=(N, 3, 2)).astype(np.float32)
MASK = np.arange(3)[None] <= np.arange(N)[:, None] % 3
PARTS = {
    "iwae": (objectives.iwae(MODEL, particles=2), DATA),
    "vrnn": (
        objectives.elbo(MODEL, draw=VRNN.draw),
        DATA._replace(x=(SEQUENCES, MASK)),
    ),
    "classification": (
        stacked.classification(
            MODEL._replace(decode=lambda params, z, c=(), *, key=None: Categorical(params["mean"]))
        ),
        DATA._replace(y=np.where(np.arange(N) < 18, np.arange(N) % 2, -1)),
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_updates_of_all_batches_are_on_average_that_of_all_the_data(name):
    """Exactly, for every partition: so the expectation over batches is the gradient of the whole.

    Checked against batches that are normalised alone.
    """
    loss, data = PARTS[name]
    data = jax.tree.map(jnp.asarray, data)
    params = {**START, "cell": ()}
    batches = jax.tree.map(lambda leaf: leaf.reshape(6, 4, *leaf.shape[1:]), data)
    counted = WEIGHT if name != "classification" else WEIGHT * (np.arange(N) < 18)

    def update(mean_weight, batch):
        init, step = train.make_step(loss, optax.sgd(1.0), mean_weight=mean_weight)
        return step(init(jax.random.key(0), params), batch)[0].params["mean"] - START["mean"]

    @jax.jit
    def updates(mean_weight):
        return jax.vmap(partial(update, mean_weight))(batches)

    alone = jax.jit(lambda: update(None, data))()
    share = counted.mean() / WEIGHT.mean()  # of the labelled ones, in the loss of all
    found = updates(WEIGHT.mean()).mean(axis=0)
    np.testing.assert_allclose(found, share * alone, rtol=1e-5, atol=1e-6)
    apart = jax.jit(jax.vmap(partial(update, None)))(batches).mean(axis=0)
    assert not np.allclose(apart, alone, rtol=1e-2)


@pytest.mark.statistics
@pytest.mark.parametrize("name", ["iwae", "vrnn", "population"])
def test_training_ends_at_the_weighted_optimum_of_the_data(name):
    """Within 1 % at a batch of 4, where the batches' own means would end elsewhere."""
    loss, data = PARTS["iwae" if name == "population" else name]
    far = jax.tree.map(lambda leaf: leaf + 3 if leaf.dtype == np.float32 else leaf, data.x)
    data = data._replace(x=far)
    steps = np.ones((N, 1)) if name != "vrnn" else MASK
    values = far[:, None] if name != "vrnn" else far[0]
    counts = (WEIGHT[:, None] * steps)[..., None]
    optimum = (counts * values).sum(axis=(0, 1)) / counts.sum()
    optimizer = optax.sgd(optax.cosine_decay_schedule(0.1, 6 * 300))
    options = {"epochs": 300, "batch_size": 4, "progress": False}
    if name == "population":
        found = population.fit(
            lambda hyper: (loss, optimizer),
            {"seed": np.arange(1)},
            {"mean": np.ones((1, 2), np.float32)},
            data,
            keys=jax.random.key(KEY)[None],
            **options,
        ).params["mean"][0]
    else:
        params = {**START, "cell": ()}
        fitted = train.fit(loss, optimizer, params, data, key=jax.random.key(KEY), **options)
        found = fitted.params["mean"]
    np.testing.assert_allclose(found, optimum, rtol=0.01)
    plain = values.mean(axis=(0, 1))
    assert not np.allclose(plain, optimum, rtol=0.02)
