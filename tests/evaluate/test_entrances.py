"""What every measure checks before it measures: its arguments, shapes, trees and Sources."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import (
    annealing,
    anomaly,
    autoencoder,
    bounds,
    contraction,
    decomposition,
    diagnostics,
    evaluate,
    exact,
    heads,
    inference,
    sources,
    sparsity,
    stacked,
)
from vaejax.distributions import Bernoulli, Distribution, Normal, distribution
from vaejax.evaluate import _each
from vaejax.model import Model
from vaejax.types import Batch

PRIOR = Normal(jnp.zeros(2), jnp.ones(2))
MODEL = autoencoder(heads.Normal(2), heads.Bernoulli((4, 3)), PRIOR)
PARAMS = MODEL.init(jax.random.key(0), jnp.zeros((4, 3)))
X = np.random.default_rng(2).integers(0, 2, (10, 4, 3)).astype(np.float32)
KEY = jax.random.key(1)

MEASURES = [
    evaluate.codes,
    evaluate.elbo_terms,
    evaluate.reconstructions,
    evaluate.squared_error,
    partial(evaluate.log_likelihood, particles=2),
    anomaly.reconstruction_error,
    anomaly.scores,
    partial(annealing.ais, temperatures=3),
    partial(annealing.reverse_ais, posterior=np.zeros((10, 1, 2))),
    bounds.ladder,
    bounds.sandwich,
    contraction.squared_norms,
    decomposition.decompose,
    diagnostics.active_units,
    diagnostics.implied_beta,
    diagnostics.inference_report,
    diagnostics.rate_per_dimension,
    exact.converged_quadrature,
    partial(exact.grid_posterior, draws=1),
    partial(exact.gauss_hermite, points=3),
    partial(exact.quadrature, spacing=1.0),
    inference.inference_gap,
    inference.refine,
    sparsity.firing,
    partial(sparsity.threshold, k=1),
]


def name_of(measure):
    return getattr(measure, "func", measure).__name__


@pytest.mark.parametrize("measure", MEASURES, ids=name_of)
def test_examples_of_another_shape_are_refused_by_every_measure(measure):
    """An encoder that flattens takes them all, and x less its reconstruction broadcasts."""
    for shape, fix in [
        ((10, 12), r"x.reshape\(-1, 4, 3\)"),
        ((10, 3, 4), r"x.reshape\(-1, 4, 3\)"),
        ((10, 1, 4, 3), "reshape"),
        ((10, 5), "give x the decoder's shape"),
    ]:
        x = np.resize(X, shape)
        expected = rf"{name_of(measure)}: data: got examples .*expected \(4, 3\), as p\(x\|z\).*"
        with pytest.raises(ValueError, match=expected + fix):
            measure(MODEL, PARAMS, jax.random.clone(KEY), x)


def test_what_the_transform_makes_of_an_example_counts_and_not_how_it_is_stored():
    flat = X.reshape(10, 12)
    found = evaluate.codes(
        MODEL, PARAMS, KEY, flat, transform=lambda key, x: jnp.reshape(x, (4, 3))
    )
    np.testing.assert_array_equal(found, evaluate.codes(MODEL, PARAMS, jax.random.clone(KEY), X))


def test_a_classifier_whose_decoder_tells_nothing_of_x_has_codes():
    labels = stacked.classifier(MODEL, 3)
    params = labels.init(jax.random.key(3), X[0])
    assert evaluate.codes(labels, params, KEY, X).shape == (10, 2)


def test_arguments_in_another_order_are_named():
    order = r"the order is codes\(model, params, key, data\)"
    for args, words in [
        ((PARAMS, MODEL, KEY, X), r"codes: model: got .* expected a Model; " + order),
        ((MODEL, MODEL, KEY, X), r"codes: params: got Model, expected the model's param.*" + order),
        ((MODEL, Batch(X), KEY, PARAMS), r"codes: params: got Batch.*" + order),
        ((MODEL, X, KEY, PARAMS), r"codes: x: got parameters of a model, .*params, key, data"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            evaluate.codes(*args)
    with pytest.raises(TypeError, match=r"mean_loss: loss: got 1 number.*a loss; the order"):
        evaluate.mean_loss({"x": 1}, PARAMS, KEY, X)


def test_what_is_missing_is_said_with_the_right_call():
    call = r"call squared_error\(model, params, jax.random.key\(0\), data\)"
    with pytest.raises(
        TypeError, match=r"squared_error: key: got f.*10, 4, 3\].*one PRNG.*" + call
    ):
        evaluate.squared_error(MODEL, PARAMS, X)
    with pytest.raises(TypeError, match=r"squared_error: key: got nothing.*" + call):
        evaluate.squared_error(MODEL, PARAMS, data=X)
    with pytest.raises(TypeError, match=r"squared_error: key and data: got nothing.*" + call):
        evaluate.squared_error(MODEL, PARAMS)
    with pytest.raises(TypeError, match=r"squared_error: data: got nothing.*" + call):
        evaluate.squared_error(MODEL, PARAMS, KEY)
    with pytest.raises(TypeError, match="required keyword-only argument: 'particles'"):
        evaluate.log_likelihood(MODEL, PARAMS, KEY, X)


def test_a_fitted_run_is_not_its_parameters():
    from vaejax.train import TrainState

    state = TrainState(PARAMS, (), KEY, 0)
    with pytest.raises(TypeError, match=r"codes: params: got a TrainState.*pass its \.params"):
        evaluate.codes(MODEL, state, KEY, X)


def test_results_print_what_they_are_and_no_whole_arrays():
    found = evaluate.log_likelihood(MODEL, PARAMS, KEY, X, particles=2)
    assert str(found) == repr(found) == "Likelihood(log_px=f32[10], ess=f32[10])"
    grid = exact.quadrature(MODEL, PARAMS, jax.random.clone(KEY), X, spacing=0.5)
    assert repr(grid).startswith("Quadrature(log_px=f32[10], coarse=f32[10], ")


@distribution
class Pair(Distribution):
    """An event of two arrays, by name; its `event_shape` says nothing."""

    colour: Any
    coins: Any

    def sample(self, key):
        one, other = jax.random.split(key)
        return {"colour": self.colour.sample(one), "coins": self.coins.sample(other)}

    def log_prob(self, x):
        return self.colour.log_prob(x["colour"]) + self.coins.log_prob(x["coins"])

    @property
    def mean(self):
        return {"colour": self.colour.mean, "coins": self.coins.mean}


W = np.random.default_rng(3).normal(size=(5, 2)).astype(np.float32)
TREES = Model(
    init=lambda key, x, c=(): {"W": jnp.asarray(W)},
    prior=lambda params, c=(): PRIOR,
    encode=lambda params, x, c=(), *, key=None: Normal(
        x["colour"] @ params["W"][:2] + x["coins"] @ params["W"][2:], jnp.full(2, 0.5)
    ),
    decode=lambda params, z, c=(), *, key=None: Pair(
        Normal(params["W"][:2] @ z, jnp.ones(())), Bernoulli(params["W"][2:] @ z)
    ),
)
TREE = {
    "colour": np.random.default_rng(4).normal(size=(7, 2)).astype(np.float32),
    "coins": np.random.default_rng(5).integers(0, 2, (7, 3)).astype(np.float32),
}


def test_an_example_may_be_a_tree_of_arrays():
    params = TREES.init(KEY, TREE)
    z = TREE["colour"] @ W[:2] + TREE["coins"] @ W[2:]
    rebuilt = {"colour": z @ W[:2].T, "coins": 1 / (1 + np.exp(-z @ W[2:].T))}
    clone = partial(jax.random.clone, KEY)
    np.testing.assert_allclose(evaluate.codes(TREES, params, clone(), TREE), z, rtol=1e-5)
    found = evaluate.reconstructions(TREES, params, clone(), Batch(TREE))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, rebuilt)
    errors = sum(np.sum((TREE[name] - rebuilt[name]) ** 2, axis=1) for name in TREE)
    measured = evaluate.squared_error(TREES, params, clone(), TREE)
    np.testing.assert_allclose(measured, errors, rtol=1e-4)
    terms = evaluate.elbo_terms(TREES, params, clone(), TREE)
    likely = evaluate.log_likelihood(TREES, params, clone(), TREE, particles=3)
    assert terms["elbo"].shape == likely.log_px.shape == (7,)
    grid = exact.quadrature(TREES, params, clone(), TREE, spacing=0.25)
    assert np.all(grid.log_px > terms["elbo"] - 3)
    with pytest.raises(ValueError, match=r"codes: data: got examples \{'coins': \(3,\), 'colour'"):
        evaluate.codes(TREES, params, clone(), TREE | {"colour": TREE["coins"]})
    renamed = {"a": TREE["colour"], "b": TREE["coins"]}  # as many numbers, in another structure
    flat = np.concatenate([TREE["coins"], TREE["colour"]], axis=1)
    for wrong in ({"coins": TREE["coins"]}, TREE["coins"], renamed, flat):
        with pytest.raises(ValueError, match="squared_error: data: got examples .*as p"):
            evaluate.squared_error(TREES, params, clone(), wrong)
    broken = TREE | {"coins": np.where(np.arange(7)[:, None] == 4, np.nan, TREE["coins"])}
    with pytest.raises(ValueError, match="reconstructions: .* for example 4"):
        evaluate.reconstructions(TREES, params, clone(), broken)


class Reader:
    """A Source, and the most rows that were read at once."""

    def __init__(self, batch):
        self.inner, self.most = sources.in_memory(batch), 0
        self.source = self.inner._replace(read=self.read)

    def read(self, rows):
        self.most = max(self.most, len(rows))
        return self.inner.read(rows)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(_each, "PART", 4 * X[0].nbytes)  # four rows, without weights


def test_a_source_is_measured_a_part_at_a_time_as_if_it_were_in_memory(small_parts):
    def flip(key, x):
        return jnp.where(jax.random.bernoulli(key, 0.3, x.shape), 1 - x, x)

    for call in (
        evaluate.elbo_terms,
        evaluate.codes,
        evaluate.squared_error,
        partial(evaluate.log_likelihood, particles=3),
    ):
        reader, options = Reader(Batch(X)), {"batch_size": 2, "transform": flip}
        key = jax.random.key(7)
        found = call(MODEL, PARAMS, key, reader.source, **options)
        expected = call(MODEL, PARAMS, jax.random.clone(key), X, **options)
        assert 2 <= reader.most <= 4
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, expected)

    def loss(params, key, batch, step):
        return jnp.mean(batch.x), {}

    reader = Reader(Batch(X))
    found = evaluate.mean_loss(loss, {}, KEY, reader.source, batch_size=3)
    assert found["loss"] == pytest.approx(X.mean(), rel=1e-5) and reader.most <= 3


def test_an_example_of_a_source_that_is_not_finite_is_named_unless_it_is_masked(small_parts):
    x = np.where(np.arange(10)[:, None, None] == 8, np.nan, X).astype(np.float32)
    with pytest.raises(ValueError, match="codes: the sum of the code is nan for example 8 "):
        evaluate.codes(MODEL, PARAMS, KEY, sources.in_memory(Batch(x)))
    masked = Batch(x, weight=(np.arange(10) != 8).astype(np.float32))
    found = evaluate.codes(MODEL, PARAMS, jax.random.clone(KEY), sources.in_memory(masked))
    assert np.isfinite(found[:8]).all() and np.isnan(found[8]).all()


def test_a_measure_that_needs_all_examples_reads_a_source_whole_where_it_fits(monkeypatch):
    source = sources.in_memory(Batch(X))
    found = diagnostics.active_units(MODEL, PARAMS, KEY, source)
    expected = diagnostics.active_units(MODEL, PARAMS, jax.random.clone(KEY), X)
    np.testing.assert_array_equal(found.variance, expected.variance)
    with pytest.raises(ValueError, match=r"active_units: data: got examples \(12,\)"):
        flat = sources.in_memory(Batch(X.reshape(10, 12)))
        diagnostics.active_units(MODEL, PARAMS, KEY, flat)
    monkeypatch.setattr(_each, "MOST", 100)
    with pytest.raises(ValueError, match=r"active_units: data: got a Source of 10.*source\.read"):
        diagnostics.active_units(MODEL, PARAMS, KEY, source)
    with pytest.raises(ValueError, match="codes: expected examples >= 1, got 0"):
        evaluate.codes(MODEL, PARAMS, KEY, source._replace(size=0))
