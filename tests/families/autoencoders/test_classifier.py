"""A classifier on a stack: against the same done by hand, label by label."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.families.autoencoders.levels import (
    CLASSIFICATION,
    CLASSIFY,
    CODES,
    GRADIENT,
    assert_equal,
    conditional,
    plain_level,
    pretrain,
)
from vaejax import autoencoders, heads, stacked, train
from vaejax.types import Batch


def test_conditions_reach_every_level_the_classifier_and_its_draw(clusters):
    """Checked against c left out above the first level and with one draw for another."""
    levels = [plain_level(8, 3, 3), plain_level(3, 2, 3)]
    x, c = clusters.x, np.eye(3, dtype=np.float32)[clusters.y[::-1]]
    trained = pretrain(levels, jax.random.key(0), Batch(x, c), steps=2)
    classify = stacked.classifier(stacked.stack(levels), 3)
    params = classify.init(jax.random.key(1), x[0], c[0]) | {"model": trained.params}

    def nats_and_errors(x, c, y):
        for level, own in zip(levels, trained.params, strict=True):
            x = level.encode(own, x, c).mean
        logits = x @ params["classes"]["kernel"] + params["classes"]["bias"]
        return -jax.nn.log_softmax(logits)[y], jnp.argmax(logits) != y

    by_hand = jax.jit(jax.vmap(nats_and_errors))
    zeroed = autoencoders.corrupted(lambda key, x: 0 * x)
    for seen, option in ((x, {}), (0 * x, {"draw": zeroed})):
        loss = stacked.classification(classify, **option)
        value, metrics = jax.jit(loss)(params, jax.random.key(2), Batch(x, c, clusters.y), 0)
        nats, errors = by_hand(seen, c, clusters.y)
        np.testing.assert_allclose(value, np.mean(nats), rtol=1e-5)
        np.testing.assert_allclose(metrics["error"], np.mean(errors), rtol=1e-5)
        data = Batch(seen, c, clusters.y)
        rate = stacked.error_rate(classify, params, jax.random.key(3), data)
        assert rate == pytest.approx(np.mean(errors))


def logits_by_hand(params, x):
    layer = jax.tree.map(np.asarray, params["classes"])
    return np.asarray(CODES(params["model"], x)) @ layer["kernel"] + layer["bias"]


def test_the_loss_is_the_cross_entropy_of_the_softmax(clusters, start):
    from scipy.special import log_softmax

    (value, metrics), _ = GRADIENT(start, jax.random.key(0), clusters, 0)
    logits = logits_by_hand(start, clusters.x)
    nats = -log_softmax(logits, axis=1)[np.arange(120), clusters.y]
    np.testing.assert_allclose(value, nats.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], nats.mean(), rtol=1e-5)
    error = np.mean(logits.argmax(axis=1) != clusters.y)
    np.testing.assert_allclose(metrics["error"], error, rtol=1e-6)
    measured = stacked.error_rate(CLASSIFY, start, jax.random.key(0), clusters)
    np.testing.assert_allclose(measured, error, rtol=1e-6)


def test_fine_tuning_reaches_every_encoder_and_no_decoder(clusters, start):
    """The decoders' parameters may be anything: no number depends on them, and none changes."""
    _, grads = GRADIENT(start, jax.random.key(0), clusters, 0)
    for own in grads["model"]:
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own["encoder"]))
        assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(own["decoder"]))
    broken = tuple(
        own | {"decoder": jax.tree.map(lambda leaf: leaf * jnp.nan, own["decoder"])}
        for own in start["model"]
    )
    (value, _), without = GRADIENT(start | {"model": broken}, jax.random.key(0), clusters, 0)
    assert np.isfinite(value)
    assert_equal(grads, without)


@pytest.mark.statistics
def test_fine_tuning_separates_what_is_separable(clusters, pretrained, start):
    start = start | {"model": pretrained.params}
    program = train.make_train(CLASSIFICATION, optax.adam(3e-2), steps=200, batch_size=30)
    state, history = jax.jit(program)(jax.random.key(2), start, clusters)
    assert stacked.error_rate(CLASSIFY, state.params, jax.random.key(0), clusters) == 0.0
    cross_entropy = history["cross_entropy"]
    assert np.nanmean(cross_entropy[-20:]) < 0.2 * cross_entropy[0]
    for before, after in zip(start["model"], state.params["model"], strict=True):
        assert_equal(before["decoder"], after["decoder"])
        old, new = (own["encoder"]["params"]["code"]["kernel"] for own in (before, after))
        assert np.abs(old - new).max() > 1e-3


def check_masking(gradient, params, clusters):
    """Unlabelled rows, of any x, change neither the loss nor its gradient nor its metrics."""
    x, y = clusters.x.copy(), clusters.y.copy()
    x[12:], y[12:] = np.nan, -1
    found = gradient(params, jax.random.key(0), Batch(x, y=y), 0)
    known = jax.tree.map(lambda leaf: leaf[:12], clusters)
    expected = GRADIENT(params, jax.random.key(0), known, 0)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    ((value, metrics), grads), ((known_value, known_metrics), known_grads) = found, expected
    jax.tree.map(close, (value, grads), (known_value, known_grads))
    for name, metric in metrics.items():  # of a smaller share of the batch
        close(float(metric), float(known_metrics[name]))
        close(metric.weight, 12 / len(clusters.y))


def test_unlabelled_examples_leave_no_trace(clusters, start):
    """Checked against label -1 counted as a class, and against a mean over all rows."""
    check_masking(GRADIENT, start, clusters)

    def mean_over_all(params, key, batch, step):
        value, metrics = CLASSIFICATION(params, key, batch, step)
        return value * jnp.mean(batch.y >= 0), metrics

    def counted_as_first_class(params, key, batch, step):
        y, x = jnp.maximum(batch.y, 0), jnp.nan_to_num(batch.x)
        return CLASSIFICATION(params, key, Batch(x, y=y), step)

    for mistaken in (mean_over_all, counted_as_first_class):
        with pytest.raises(AssertionError):
            check_masking(jax.jit(jax.value_and_grad(mistaken, has_aux=True)), start, clusters)


def test_weights_count_and_a_batch_without_labels_moves_nothing(clusters, start):
    few = jax.tree.map(lambda leaf: leaf[:12], clusters)
    weight = jnp.asarray([1.0] * 3 + [0.0] * 9)
    (weighed, _), _ = GRADIENT(start, jax.random.key(0), few._replace(weight=weight), 0)
    three = few._replace(y=np.where(np.arange(12) < 3, few.y, -1))
    (labelled, _), _ = GRADIENT(start, jax.random.key(0), three, 0)
    np.testing.assert_allclose(weighed, labelled, rtol=1e-6)
    unknown = few._replace(y=np.full(12, -1, np.int32))
    (value, metrics), grads = GRADIENT(start, jax.random.key(0), unknown, 0)
    assert value == float(metrics["error"]) == float(metrics["error"].weight) == 0.0
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(grads))


class Direction(nn.Module):
    """x and c over their norm, of which the derivative at zero is NaN."""

    @nn.compact
    def __call__(self, x, c):
        h = jnp.concatenate([x, c])
        return heads.Code(3)(h / jnp.linalg.norm(h))


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_a_batch_without_labels_moves_nothing_whatever_it_holds(bad):
    """Checked against the gradient of what was left out, which is NaN."""
    model = stacked.classifier(conditional(2, 3, Direction()), 3)
    x, c = np.full((4, 2), bad, np.float32), np.full((4, 1), bad, np.float32)
    params = model.init(jax.random.key(0), np.ones(2, "f"), np.ones(1, "f"))
    gradient = jax.jit(jax.grad(stacked.classification(model), has_aux=True))

    def check(y, weight):
        grads, metrics = gradient(params, jax.random.key(0), Batch(x, c, y, weight), 0)
        for leaf in jax.tree.leaves((grads, metrics)):
            np.testing.assert_array_equal(leaf, 0)

    unknown = np.full(4, -1, np.int32)
    for y, weight in ((unknown, np.ones(4)), (0 * unknown, np.zeros(4))):
        check(y, weight)
    with pytest.raises(AssertionError):
        check(0 * unknown, np.ones(4))


def test_weights_and_unlabelled_rows_leave_no_trace_in_the_error_rate(clusters, start):
    """Checked by rows of weight 0 that hold NaN, wrong labels and labels that are no class."""
    rate = partial(stacked.error_rate, CLASSIFY, start, jax.random.key(0))
    x = clusters.x.copy()
    right = np.argmax(logits_by_hand(start, x), axis=1).astype(np.int32)
    y, weight = right.copy(), np.ones(120, np.float32)
    y[:3], weight[:3] = (right[:3] + 1) % 3, 2.0  # errors, each counted twice
    assert rate(Batch(x, y=y, weight=weight)) == pytest.approx(6 / 123)
    y[60:], weight[60:] = (right[60:] + 1) % 3, 0.0
    assert rate(Batch(x, y=y, weight=weight)) == pytest.approx(6 / 63)
    x[100:], y[100] = np.nan, 7
    assert rate(Batch(x, y=y, weight=weight)) == pytest.approx(6 / 63)
    x[50:60], y[50:60] = np.nan, -1
    assert rate(Batch(x, y=y, weight=weight)) == pytest.approx(6 / 53)
    with pytest.raises(ValueError, match="largest logit is nan for example 50"):
        rate(Batch(x, y=right, weight=np.maximum(weight, 1)))
    with pytest.raises(ValueError, match="no label but -1"):
        rate(Batch(x, y=y, weight=weight * (y == -1)))


def test_the_error_rate_is_of_labelled_examples(clusters, start):
    """Half of the labels hidden: the rate of the other half, whatever the chunks."""
    half = np.where(np.arange(120) % 2 == 0, -1, clusters.y)
    found = stacked.error_rate(
        CLASSIFY, start, jax.random.key(0), clusters._replace(y=half), batch_size=50
    )
    wrong = np.argmax(logits_by_hand(start, clusters.x), axis=1) != clusters.y
    expected = np.mean(wrong[1::2])
    assert found == pytest.approx(expected) and found > 0


def test_labels_outside_the_classes_and_none_are_refused(clusters, start):
    rate = partial(stacked.error_rate, CLASSIFY, start, jax.random.key(0))
    far = clusters._replace(y=np.where(np.arange(120) == 7, 3, clusters.y).astype(np.int32))
    with pytest.raises(ValueError, match="got 3 at example 7, expected 0 to 2"):
        rate(far)
    with pytest.raises(ValueError, match="no label but -1"):
        rate(clusters._replace(y=np.full(120, -1, np.int32)))
    with pytest.raises(ValueError, match="error_rate: y: got no labels"):
        rate(Batch(clusters.x))
    one_hot = Batch(clusters.x, y=np.eye(3, dtype=np.int32)[clusters.y])
    with pytest.raises(ValueError, match=r"classification: y: got int32\(120, 3\)"):
        CLASSIFICATION(start, jax.random.key(0), one_hot, 0)
    (value, metrics), _ = GRADIENT(start, jax.random.key(0), far, 0)
    assert value == float(metrics["cross_entropy"]) == np.inf  # what fit refuses to go on from
