"""Weights and labels of a Batch: what they mean to a mean, and what is refused where they enter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import Batch, evaluate, objectives, population, sources, train
from vaejax.batch import as_batch, batch_mean, mean_over, mean_weight_of, over_batches
from vaejax.distributions import Normal
from vaejax.train.memory import accumulate
from vaejax.types import Weighted

N = 6
X = np.arange(N, dtype=np.float32)[:, None]
WEIGHT = np.array([0.5, 2, 0, 1, 1, 3], np.float32)


class Net:
    """p(x) = N(mean, 1)."""

    def init(self, key):
        return {"mean": jnp.zeros(1)}

    def apply(self, params, rngs=None):
        return Normal(params["mean"], jnp.ones(1))


LOSS = objectives.maximum_likelihood(Net())
PARAMS = Net().init(None)


def fit(data):
    options = {"key": jax.random.key(0), "epochs": 1, "batch_size": 2, "progress": False}
    return train.fit(LOSS, optax.sgd(0.1), PARAMS, data, **options)


def populate(data):
    return population.fit(
        lambda hyper: (LOSS, optax.sgd(0.1)),
        {"seed": np.arange(2)},
        {"mean": jnp.zeros((2, 1))},
        data,
        keys=jax.random.split(jax.random.key(0)),
        epochs=1,
        batch_size=2,
        progress=False,
    )


def streamed(data):
    """A Source, whose labels and weights are not looked at before they are read."""
    read = sources.in_memory(Batch(X)).read
    rows = lambda i: jax.tree.map(lambda leaf: leaf[i], data)  # noqa: E731
    return fit(sources.Source(N, lambda i: rows(i)._replace(x=read(i).x), "", mean_weight=1.0))


ENTRANCES = {
    "as_batch": as_batch,
    "loss": lambda batch: LOSS(PARAMS, jax.random.key(0), batch, 0),
    "fit": fit,
    "population.fit": populate,
    "Source.read": streamed,
    "evaluate.log_prob": lambda b: evaluate.log_prob(Net(), PARAMS, jax.random.key(0), b),
    "evaluate.mean_loss": lambda b: evaluate.mean_loss(LOSS, PARAMS, jax.random.key(0), b),
    "population.mean_loss": lambda b: population.mean_loss(lambda hyper: (LOSS, None), b),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_weights_and_labels_that_are_none_are_refused_wherever_they_enter(entrance):
    """In the words of the field that is wrong, and with the line that mends it."""

    def refuses(message, **fields):
        with pytest.raises(ValueError, match=message):
            ENTRANCES[entrance](Batch(X, **fields))

    refuses(r"weight: got float32 of shape \(\d, 1\).*w\[:, 0\]", weight=WEIGHT[:, None])
    last = np.arange(N) == N - 1
    refuses(r"weight: got -3.0 for example \d \(1 such\).*from 0 on", weight=WEIGHT - 6 * last)
    refuses(r"weight: got inf for example \d", weight=np.where(last, np.inf, 1))
    if entrance != "loss":  # which does not look at labels
        refuses(r"y: got float64 of shape \(\d,\).*astype\(int\)", y=np.ones(N))
        refuses(r"y: got -2 for example \d", y=np.where(last, -2, -1))
    if entrance not in ("as_batch", "loss", "Source.read"):
        refuses(r"weight: got no weight above 0", weight=np.zeros(N))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": WEIGHT[:5]}, r"weight: got float32 of shape \(5,\), expected one number for"),
        ({"weight": [1.0] * (N - 1)}, r"weight: got float64 of shape \(5,\)"),
        ({"weight": ((1.0,),) * N}, r"weight: got float64 of shape \(6, 1\)"),
        ({"weight": WEIGHT.astype(complex)}, r"weight: got an array of complex128"),
        ({"weight": np.where(X[:, 0] == 4, np.nan, 1)}, r"weight: got nan for example 4"),
        ({"y": np.array([2**40] * N)}, r"y: got 1099511627776 for example 0"),
        ({"y": [0.0, np.nan] * (N // 2)}, r"y: got float64.*; np.where\(np.isnan\(y\), -1, y\)"),
        ({"y": np.eye(N)}, r"y: got float64 .*one-hot rows: y.argmax\(axis=1\)"),
        ({"y": np.zeros((N - 1, 2), int)}, r"y: got int64 of shape \(5, 2\)"),
    ],
)
def test_other_companions_that_are_none(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        as_batch(Batch(X, **fields))


def test_what_has_a_meaning_passes():
    """Masks of bool, whole numbers, several labels of one example, a batch in which none counts."""
    for fields in (
        {"weight": WEIGHT > 1},
        {"weight": np.arange(N)},
        {"weight": jnp.zeros(N, jnp.bfloat16)},
        {"y": np.zeros((N, 5), np.int8)},
        {"y": np.arange(N, dtype=np.uint8)},
    ):
        assert as_batch(Batch(X, **fields))[0] is X


def test_inside_jit_the_shape_is_looked_at():
    loss = jax.jit(LOSS)
    with pytest.raises(ValueError, match=r"weight: got float32 of shape \(6, 1\)"):
        loss(PARAMS, jax.random.key(0), Batch(X, weight=WEIGHT[:, None]), 0)
    with pytest.raises(ValueError, match=r"batch_mean: weight: got shape \(6, 1\).*w\[:, 0\]"):
        batch_mean(jnp.ones(N), WEIGHT[:, None])


def test_a_source_with_weights_has_to_say_their_mean():
    source = sources.in_memory(Batch(X, weight=WEIGHT))
    assert source.mean_weight == mean_weight_of(Batch(X, weight=WEIGHT)) == 1.25
    for mean in (None, 0.0, np.nan):
        with pytest.raises(ValueError, match="fit: Source.mean_weight: .*mean_weight=weights.mean"):
            fit(source._replace(mean_weight=mean))
    assert sources.in_memory(Batch(X)).mean_weight is None


def test_where_nothing_counts_a_mean_is_zero_and_so_is_its_gradient():
    """Whatever lies under the weights: NaN here, of values and of derivatives."""
    batch = Batch(np.full((N, 1), np.nan, np.float32), weight=np.zeros(N, np.float32))

    def roots(params, key, batch, step):
        value, metrics = LOSS(params, key, batch, step)
        return value, metrics

    gradient = jax.value_and_grad(roots, has_aux=True)
    (value, metrics), grads = gradient(PARAMS, jax.random.key(0), batch, 0)
    assert value == 0 and grads["mean"] == 0 and all(v == 0 for v in metrics.values())
    assert batch_mean(jnp.full(N, jnp.nan), np.zeros(N)) == 0
    found = mean_over(jnp.full(N, jnp.inf), np.zeros(N, bool))
    assert found.value == found.weight == 0


def test_means_over_some_and_over_batches_are_those_of_all_together():
    """Two batches of three, of which the metric concerns two and one, as one batch of six."""
    values, some = jnp.asarray(X[:, 0]), np.array([1, 1, 0, 0, 0, 1], bool)
    whole = mean_over(values, some, WEIGHT)
    assert float(whole) == pytest.approx(np.average(X[some, 0], weights=WEIGHT[some]))
    assert whole.weight == pytest.approx(WEIGHT[some].sum() / WEIGHT.sum())
    halves = [mean_over(values[s], some[s], WEIGHT[s]) for s in (slice(3), slice(3, 6))]
    means = [batch_mean(values[s], WEIGHT[s]) for s in (slice(3), slice(3, 6))]
    stacked = {"some": jax.tree.map(lambda *v: jnp.stack(v), *halves), "all": jnp.stack(means)}
    found = over_batches(stacked, jnp.stack([WEIGHT[:3].sum(), WEIGHT[3:].sum()]))
    np.testing.assert_allclose(found["some"].value, whole.value, rtol=1e-6)
    np.testing.assert_allclose(found["some"].weight, whole.weight, rtol=1e-6)
    np.testing.assert_allclose(found["all"], batch_mean(values, WEIGHT), rtol=1e-6)


def test_weights_of_few_bits_do_not_overflow():
    """Six of 60,000 in float16, whose largest number is 65,504."""
    weight = np.full(N, 6e4, np.float16)
    assert batch_mean(jnp.full(N, 3.0), weight) == 3
    data, key = Batch(X, weight=weight), jax.random.key(0)
    alike = float(LOSS(PARAMS, key, Batch(X), 0)[0])
    parted = accumulate(LOSS, 2)(PARAMS, jax.random.clone(key), data, 0)[0]
    whole = evaluate.mean_loss(LOSS, PARAMS, jax.random.clone(key), data)["loss"]
    np.testing.assert_allclose([parted, whole], alike, rtol=1e-6)


def test_a_weighted_metric_is_its_value_as_a_number_and_as_an_array():
    metric = Weighted(np.array([1.0, 2.0]), np.array([0.5, 0.0]))
    np.testing.assert_array_equal(np.asarray(metric), [1, 2])
    assert np.asarray(metric, int).dtype == int
    assert float(Weighted(3.5, 0.1)) == 3.5
