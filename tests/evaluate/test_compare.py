"""Two models on the same examples, in numbers and words; bits per dimension; bars."""

import io
from contextlib import redirect_stderr

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import annealing, autoencoder, bounds, evaluate, heads, linear, sources
from vaejax.distributions import Normal
from vaejax.evaluate import _progress
from vaejax.types import Batch

KEY = jax.random.key(3)
MODEL = linear.linear_gaussian(3, latent=1)
X = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
PARAMS = MODEL.init(jax.random.key(0), X[0])


def test_a_difference_is_of_pairs_and_its_error_that_of_their_mean():
    rng = np.random.default_rng(1)
    common, extra = rng.normal(size=(2, 10_000)) * [[50.0], [0.1]]
    found = evaluate.compare(common + 1.5 + extra, common, names=("flow", "plain"))
    assert found.difference == pytest.approx(1.5 + extra.mean(), abs=1e-9)
    assert found.se == pytest.approx(extra.std(ddof=1) / 100, rel=1e-6)
    assert found.n == 10_000 and found.higher == 1.0
    assert str(found).startswith("flow is 1.499 nats per example above plain, s.e. 0.00")
    swapped = evaluate.compare(common, common + 1.5 + extra)
    assert swapped.difference == -found.difference and swapped.se == pytest.approx(found.se)
    assert swapped.standard_errors == pytest.approx(-found.standard_errors)
    assert "a is 1.499 nats per example below b" in str(swapped)


def test_what_cannot_be_told_apart_is_said_so():
    assert str(evaluate.compare(X[:, 0], X[:, 0])) == "a equals b over 23 examples"
    assert evaluate.compare(X[:, 0], X[:, 0]).higher == 0.5
    noise = [1.0, -1.1, 0.9, -0.9]
    assert "too few examples to tell them apart" in str(evaluate.compare(noise, [0.0] * 4))
    alone = evaluate.compare([2.0], [1.0], unit="bits")
    assert np.isnan(alone.se) and "1 bits per example above b; a single example" in str(alone)
    assert evaluate.compare([2.0, 3.0], [1.0, 2.0]).standard_errors == np.inf


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0, 2.0], [1.0], "compare: b: got 1 examples, expected 2, as in a"),
        ([1.0, np.nan], [1.0, 2.0], "compare: a: got nan for example 1 .1 such of 2."),
        ([1.0, 2.0], [-np.inf, 2.0], "compare: b: got -inf for example 0"),
        (1.0, 2.0, "compare: a: got shape .*not its mean"),
        (X, X, r"compare: a: got shape \(23, 3\)"),
        ({"rate": X[:, 0]}, X[:, 0], r"got numbers named rate.*name one: a\[...\]"),
        ({"elbo": X[:, 0]}, evaluate.Likelihood(X[:, 0], X[:, 0]), "log p.x. beside an ELBO"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        evaluate.compare(a, b)


def test_two_models_are_compared_through_one_measure():
    other = jax.tree.map(lambda leaf: leaf + 0.5, PARAMS)
    pairs = (MODEL, PARAMS), (MODEL, other)
    how = {"particles": 8}
    found = evaluate.compare_models(evaluate.log_likelihood, *pairs, KEY, X, **how)
    each = [
        evaluate.log_likelihood(*pair, jax.random.clone(KEY), X, particles=8).log_px
        for pair in pairs
    ]
    assert found == evaluate.compare(*each)
    by_bound = evaluate.compare_models(evaluate.elbo_terms, pairs[0], pairs[0], KEY, X)
    assert (by_bound.difference, by_bound.se) == (0, 0), "the same key gives the same draws"
    with pytest.raises(TypeError, match=r"compare_models: b: .*give \(model, params\)"):
        evaluate.compare_models(evaluate.elbo_terms, pairs[0], MODEL, KEY, X)
    with pytest.raises(ValueError, match="weights"):
        weighted = Batch(X, weight=np.ones(23, np.float32))
        evaluate.compare_models(evaluate.elbo_terms, *pairs, KEY, weighted)


def test_a_density_and_a_probability_do_not_compare():
    prior = Normal(jnp.zeros(1), jnp.ones(1))
    coin = autoencoder(heads.Normal(1), heads.Bernoulli(3), prior)
    pair = coin, coin.init(jax.random.key(0), X[0])
    with pytest.raises(ValueError, match="got a probability of x, expected a density, as a has"):
        evaluate.compare_models(evaluate.elbo_terms, (MODEL, PARAMS), pair, KEY, X)


def test_bits_per_dimension_of_a_uniform_code_are_log2_of_the_levels():
    for size, levels in ((7, 2), ((8, 8, 1), 17), ((4, 4, 3), 256)):
        nats = np.full(5, -np.prod(size) * np.log(levels))
        bits = evaluate.bits_per_dim(nats, size)
        np.testing.assert_allclose(bits, np.log2(levels), rtol=1e-12)
        # A uniform density on [0, 1] is that code, of levels dequantised.
        assert evaluate.bits_per_dim(0.0, size, levels=levels) == np.log2(levels)
    for shape in ((), 0, (3, 0)):
        with pytest.raises(ValueError, match="bits_per_dim: shape"):
            evaluate.bits_per_dim(-1.0, shape)


@pytest.mark.parametrize("size", [7, 23])
def test_a_bar_changes_no_number(size, monkeypatch):
    monkeypatch.setattr(_progress, "PARTS", 2)  # parts of several batches, and a ragged end
    measures = {
        "log_likelihood": lambda x: evaluate.log_likelihood(
            MODEL, PARAMS, KEY, x, particles=5, batch_size=4
        ),
        "codes": lambda x: evaluate.codes(MODEL, PARAMS, KEY, x, batch_size=4),
    }
    if size == 23:
        measures["ais"] = lambda x: annealing.ais(
            MODEL, PARAMS, KEY, x, temperatures=4, chains=2, batch_size=4
        )
    for measure in measures.values():
        plain = measure(X[:size])
        with evaluate.progress():
            shown = measure(X[:size])
        for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(shown), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_bar_says_the_measure_and_counts_the_examples(monkeypatch):
    bars = []

    class Bar:
        def __init__(self, **options):
            self.options, self.done = options, []
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def update(self, count):
            self.done.append(count)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    with evaluate.progress():
        bounds.ladder(MODEL, PARAMS, KEY, X, particles=(1, 4), batch_size=10)
        source = sources.open(X, "train[:20]")
        evaluate.codes(MODEL, PARAMS, KEY, source)
        with evaluate.progress(False):
            evaluate.codes(MODEL, PARAMS, KEY, source)
    evaluate.codes(MODEL, PARAMS, KEY, source)
    found = [(bar.options["desc"], bar.options["total"], bar.done) for bar in bars]
    shown = [one for one, bar in zip(found, bars, strict=True) if not bar.options["disable"]]
    assert shown == [("ladder", 23, [8, 8, 7]), ("codes", 20, [20])]


def test_bars_go_to_the_error_stream_and_short_ones_are_not_seen():
    said = io.StringIO()
    with redirect_stderr(said), evaluate.progress():
        evaluate.codes(MODEL, PARAMS, KEY, X)
    assert said.getvalue() == ""
