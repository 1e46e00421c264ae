"""Anomaly scores against closed forms, AUROC against all pairs, its interval against simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from tests import oracles
from vaejax import anomaly, data, heads
from vaejax.distributions import Bernoulli, Normal
from vaejax.evaluate import _each, _measures, elbo_terms, log_likelihood
from vaejax.evaluate.anomaly import Auroc, auroc, one_class
from vaejax.model import autoencoder
from vaejax.types import Batch

MODEL, PARAMS = oracles.linear_gaussian(d=5, latent=2)
POOR = oracles.poor_posterior(MODEL)
RNG = np.random.default_rng(1)
X = RNG.normal(size=(37, 5)).astype(np.float32)
NLL = -oracles.linear_gaussian_log_px(PARAMS, X)


def linear_samples(n, seed=2):
    rng = np.random.default_rng(seed)
    noise = 0.5 * rng.normal(size=(n, 5))
    W, mu = np.asarray(PARAMS["W"]), np.asarray(PARAMS["mu"])
    return (rng.normal(size=(n, 2)) @ W.T + mu + noise).astype(np.float32)


# Rows of X, of the model, and far from it; 157 in chunks of 53 have a ragged end.
ROWS = np.concatenate([X, linear_samples(60, seed=5), 4 * linear_samples(60, seed=6)])
TRAIN = linear_samples(157)
SIZES = {"particles": 3, "samples": 400, "batch_size": 60}


def test_every_score_equals_its_closed_form_on_a_linear_gaussian_model(key):
    """With the exact posterior the bound is tight, so every score has an exact value.

    Checked against +log p returned as -log p, and against scores of the last or first batch only.
    """
    mean, sd = TRAIN.mean(axis=0), TRAIN.std(axis=0)
    background = anomaly.independent_pixels(Normal(jnp.asarray(mean), jnp.asarray(sd)))
    scored = anomaly.scores(MODEL, PARAMS, key, ROWS, train=TRAIN, background=background, **SIZES)
    assert all(score.shape == (157,) for score in scored.values())
    nll = -oracles.linear_gaussian_log_px(PARAMS, ROWS)
    np.testing.assert_allclose(scored["negative_log_px"], nll, rtol=1e-4, atol=1e-3)
    found = {name: score[:37] for name, score in scored.items()}
    typical = -oracles.linear_gaussian_log_px(PARAMS, TRAIN).mean()
    independent = stats.norm(mean, sd).logpdf(X).sum(axis=1)
    W, mu = np.asarray(PARAMS["W"], float), np.asarray(PARAMS["mu"], float)
    M = W.T @ W + 0.25 * np.eye(2)
    residual = X - mu - (X - mu) @ W @ np.linalg.inv(M) @ W.T
    reconstruction = (residual**2).sum(axis=1) / 0.5 + 2.5 * np.log(2 * np.pi * 0.25)
    # E_q ||x - W z - mu||^2 = ||residual||^2 + tr(W scale^2 M^-1 W^T)
    distortion = reconstruction + 0.5 * np.trace(W @ np.linalg.inv(M) @ W.T)
    expected = {
        "reconstruction": reconstruction,
        "negative_log_px": NLL,
        "typicality": np.abs(NLL - typical),
        "likelihood_ratio": independent + NLL,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=2e-3, err_msg=name)
    # Averages over 400 draws of z, whose spread per draw is taken from single draws.
    for name, exact in (("distortion", distortion), ("negative_elbo", NLL)):
        assert abs(np.mean(found[name] - exact)) < 0.1, name
    assert found.keys() == expected.keys() | {"distortion", "negative_elbo"}


def test_all_scores_judge_the_same_draw_of_binarised_pixels():
    """A model against itself as the background: the ratio is zero, whatever the transform drew."""
    model = autoencoder(heads.Normal(2), heads.Bernoulli((4, 3)), Normal(jnp.zeros(2), jnp.ones(2)))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((4, 3)))
    grey = RNG.integers(0, 256, (6, 4, 3), np.uint8)

    def ratio(transform, key):
        return anomaly.scores(
            model, params, key, grey, background=(model, params), particles=4, transform=transform
        )["likelihood_ratio"]

    np.testing.assert_array_equal(ratio(data.binarize, jax.random.key(1)), 0)
    # The exact log p of a background of independent pixels, against a loop over the same draws.
    px = Bernoulli(jnp.full((4, 3), 0.4))
    found = anomaly.scores(
        model,
        params,
        jax.random.key(2),
        grey,
        background=anomaly.independent_pixels(px),
        particles=4,
        transform=data.binarize,
    )
    data_key, _ = jax.random.split(jax.random.key(2))

    @jax.jit
    def one(i, image):
        x = data.binarize(jax.random.split(jax.random.fold_in(data_key, i))[0], image)
        q = model.encode(params, x)
        return px.log_prob(x), -model.decode(params, q.mean).log_prob(x)

    for i, image in enumerate(grey):
        log_p0, exact = one(i, image)
        ratio = log_p0 + found["negative_log_px"][i]
        assert found["likelihood_ratio"][i] == pytest.approx(float(ratio), abs=1e-4)
        assert found["reconstruction"][i] == pytest.approx(float(exact), rel=1e-5)


def test_scores_of_the_bound_are_those_of_evaluate_and_ordered(key):
    found = anomaly.scores(POOR, PARAMS, key, Batch(X), samples=50, particles=200)
    data_key, _ = jax.random.split(jax.random.clone(key))
    terms = elbo_terms(POOR, PARAMS, data_key, X, samples=50, batch_size=100)
    np.testing.assert_allclose(found["negative_elbo"], -terms["elbo"], rtol=1e-5)
    np.testing.assert_allclose(found["distortion"], terms["distortion"], rtol=1e-5)
    assert NLL.mean() < found["negative_log_px"].mean() < found["negative_elbo"].mean()
    again = jax.random.clone(data_key)
    expected = log_likelihood(POOR, PARAMS, again, X, particles=200, batch_size=100).log_px
    np.testing.assert_allclose(found["negative_log_px"], -expected, rtol=1e-5)


def test_a_deterministic_autoencoder_has_the_reconstruction_alone(key):
    model = autoencoder(heads.Code(2), heads.FixedNormal(5, 0.5**0.5))
    params = jax.jit(model.init)(key, X[0])
    found = anomaly.scores(model, params, jax.random.key(1), X)
    assert list(found) == ["reconstruction"]
    code = X @ params["encoder"]["params"]["code"]["kernel"]
    squared = np.sum((X - code @ params["decoder"]["params"]["loc"]["kernel"]) ** 2, axis=1)
    np.testing.assert_allclose(found["reconstruction"], squared + 2.5 * np.log(np.pi), rtol=1e-4)
    with pytest.raises(ValueError, match=r"scores: model: got a deterministic.*prior=\.\.\."):
        anomaly.scores(model, params, jax.random.key(1), X, train=X)


@pytest.mark.parametrize("batch_size", [1, 10])
def test_ragged_ends_and_chunk_sizes_change_nothing(batch_size, key):
    whole = anomaly.reconstruction_error(POOR, PARAMS, key, X)
    again = jax.random.clone(key)
    parts = anomaly.reconstruction_error(POOR, PARAMS, again, X, batch_size=batch_size)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_memory_is_bounded_by_the_batch():
    def peak(n):
        x = jax.ShapeDtypeStruct((n, 5), jnp.float32)
        arrays = PARAMS, jax.random.key(0), x, ()
        lowered = _each._loop.lower((_measures._minus_log_px, (POOR,), None, 10), *arrays)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert peak(10_000) <= peak(100) + 10_000 * 16


def tiled(model):
    """A model of an image beside itself, as independent copies."""

    def encode(params, x, c=(), *, key=None):
        return model.encode(params, x[:5])

    def decode(params, z, c=(), *, key=None):
        return Normal(jnp.tile(model.decode(params, z).loc, 2), jnp.full(10, 0.5))

    return model._replace(encode=encode, decode=decode)


TILED = tiled(MODEL)


def check_doubled_image(score):
    """An image beside itself, under a model of independent copies, has twice the distortion."""
    once = score(MODEL, PARAMS, jax.random.key(0), X)
    twice = score(TILED, PARAMS, jax.random.key(0), np.tile(X, 2))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-4)


def test_reconstruction_is_summed_over_pixels_not_averaged():
    """Checked against a mean over pixels beside quantities that are sums."""
    check_doubled_image(anomaly.reconstruction_error)

    def averaged(model, params, key, x):
        return anomaly.reconstruction_error(model, params, key, x) / x.shape[1]

    with pytest.raises(AssertionError):
        check_doubled_image(averaged)


def check_direction(score):
    """Examples far from the data are more anomalous than examples of the data."""
    assert auroc(score[37:97], score[97:]).low > 0.9


def test_higher_means_more_anomalous_for_every_score():
    """Checked against log p itself as the anomaly score."""
    wide = anomaly.independent_pixels(Normal(PARAMS["mu"], jnp.full(5, 10.0)))
    found = anomaly.scores(
        MODEL, PARAMS, jax.random.key(0), ROWS, train=TRAIN, background=wide, **SIZES
    )
    assert len(found) == 6
    for score in found.values():
        check_direction(score)
    with pytest.raises(AssertionError):
        check_direction(-found["negative_log_px"])


def check_too_probable(score):
    """Where all data lie far from the mode, an example at the mode is an anomaly."""
    train_nll = stats.chi2(400).rvs(1000, random_state=0) / 2
    found = score(np.array([0.0, 200.0, 400.0]), train_nll)
    assert found[0] > 10 * found[1] and found[2] > 10 * found[1]


def test_typicality_is_two_sided():
    """Checked against the signed difference, and against -log p alone."""
    check_too_probable(anomaly.typicality)
    for mistaken in (lambda nll, train: nll - train.mean(), lambda nll, train: nll):
        with pytest.raises(AssertionError):
            check_too_probable(mistaken)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mutate_replaces_the_share_that_it_is_told_with_uniform_levels(dtype, key):
    x = np.full((100, 300), 7 if dtype == np.uint8 else 2.0, dtype)  # 2 is no level
    mutated = np.asarray(anomaly.mutate(key, x, rate=0.3))
    assert mutated.dtype == dtype
    levels = mutated[mutated != x[0, 0]]
    share, top = levels.size / x.size, 256 if dtype == np.uint8 else 1
    expected = 0.3 * (255 / 256 if dtype == np.uint8 else 1)
    assert abs(share - expected) < 5 * np.sqrt(0.21 / x.size)
    assert abs(levels.mean() / top - 0.5) < 5 / np.sqrt(12 * levels.size) + 0.003
    np.testing.assert_array_equal(anomaly.mutate(jax.random.key(1), x, rate=0.0), x)


def all_pairs(normal, anomalous):
    wins = anomalous[:, None] > normal[None]
    return wins + 0.5 * (anomalous[:, None] == normal[None])


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_and_delong_equal_the_definition_over_all_pairs(ties):
    rng = np.random.default_rng(3)
    normal, anomalous = rng.normal(size=40), rng.normal(1.0, 1.5, size=25)
    if ties:
        normal, anomalous = np.round(normal), np.round(anomalous)
    found = auroc(normal, anomalous)
    pairs = all_pairs(normal, anomalous)
    assert found.value == pytest.approx(pairs.mean(), abs=1e-12)
    labels = np.repeat([0, 1], [40, 25])
    assert found.value == roc_auc_score(labels, np.concatenate([normal, anomalous]))
    variance = pairs.mean(axis=1).var(ddof=1) / 25 + pairs.mean(axis=0).var(ddof=1) / 40
    A = pairs.mean()
    half = 1.959964 * np.sqrt(variance) / (A * (1 - A))
    ends = [1 / (1 + (1 - A) / A * np.exp(sign * half)) for sign in (1, -1)]
    np.testing.assert_allclose(found[1:], ends, rtol=1e-6)
    assert 0 < found.low < found.value < found.high < 1
    narrow = auroc(normal, anomalous, level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


@pytest.mark.statistics
@pytest.mark.parametrize(("shift", "sd"), [(1.5, 2.0), (0.5, 1), (2.5, 1)])
def test_the_interval_covers_the_true_area_as_often_as_it_says(shift, sd):
    """Binormal scores, true area Phi(shift / sqrt(1 + sd^2)): 95 % of 1000 data sets, +-2.5 %."""
    rng = np.random.default_rng(4)
    truth = stats.norm.cdf(shift / np.hypot(1, sd))
    inside = [
        low <= truth <= high
        for _, low, high in (
            auroc(rng.normal(size=40), rng.normal(shift, sd, size=80)) for _ in range(1000)
        )
    ]
    assert 0.925 <= np.mean(inside) <= 0.975


def check_separated(interval):
    """Complete separation of few examples does not prove an area of 1: any of (1/2)^3 might."""
    found = interval(np.arange(3.0), np.arange(10.0, 14.0))
    assert found.value == 1 == found.high
    # If the area were `low`, three disjoint pairs would all be in order in 2.5 % of cases.
    assert found.low**3 == pytest.approx(0.025)


def test_complete_separation_still_has_an_interval():
    """Checked against a normal approximation, whose width is zero there."""
    check_separated(auroc)
    with pytest.raises(AssertionError):
        check_separated(lambda normal, anomalous: Auroc(1.0, 1.0, 1.0))
    reverse = auroc(np.arange(10.0, 14.0), np.arange(3.0))
    assert reverse.value == reverse.low == 0 and (1 - reverse.high) ** 3 == pytest.approx(0.025)
    constant = auroc(np.zeros(20), np.zeros(30))
    assert constant.value == 0.5 and constant.low < 0.3 and constant.high > 0.7


@pytest.mark.parametrize(
    ("normal", "anomalous", "message"),
    [
        ([1.0, 2.0], [], r"auroc: anomalous: got shape \(0,\), expected \[n\], not empty"),
        ([], [1.0, 2.0], "auroc: normal.*not empty"),
        ([1.0], [1.0, 2.0], "1 normal and 2 anomalous scores, expected at least 2 of each"),
        ([1.0, np.nan], [1.0, 2.0], r"auroc: normal: got nan at example 1 \(1 such of 2\)"),
        ([1.0, 0.0], [np.inf, 2.0], "auroc: anomalous: got inf at example 0"),
        ([[1.0, 0.0]], [1.0, 2.0], r"auroc: normal: got shape \(1, 2\)"),
    ],
)
def test_scores_that_cannot_be_judged_are_refused(normal, anomalous, message):
    with pytest.raises(ValueError, match=message):
        auroc(np.array(normal), np.array(anomalous))


def test_wrong_options_are_refused_by_name(key):
    for call, message in [
        (lambda: auroc(X[:, 0], X[:, 1], level=1.0), "level: got 1.0, expected a coverage"),
        (lambda: anomaly.mutate(key, X[0], rate=1.5), "mutate: rate: got 1.5"),
        (lambda: anomaly.typicality(NLL, []), r"typicality: train_nll: got shape \(0,\)"),
        (lambda: anomaly.likelihood_ratio(NLL, NLL[:5]), r"background_nll: got \(5,\)"),
        (lambda: anomaly.reconstruction_error(MODEL, PARAMS, key, X, batch_size=0), ">= 1, got 0"),
        (lambda: anomaly.scores(MODEL, PARAMS, key, X, particles=0), "expected particles >= 1"),
        (
            lambda: anomaly.reconstruction_error(MODEL, PARAMS, key, X * np.nan),
            r"-log p\(x\|z\) is nan for example 0",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_one_class_trains_on_one_class_and_tests_on_all():
    rng = np.random.default_rng(0)
    centres = np.array([-6.0, 0.0, 6.0])
    y_train, y_test = rng.integers(0, 3, 300), np.repeat([0, 1, 2], [30, 40, 50])
    x_train, x_test = (centres[y] + rng.normal(size=len(y)) for y in (y_train, y_test))
    seen = []

    def distance(label, x, tested):
        np.testing.assert_array_equal(x, x_train[y_train == label])
        np.testing.assert_array_equal(tested, x_test)
        seen.append(label)
        return {"distance": np.abs(tested - x.mean()), "value": tested}

    found = one_class(distance, x_train, y_train, x_test, y_test)
    assert seen == [0, 1, 2] and list(found) == ["distance", "value"]
    assert list(found["distance"].per_class) == [0, 1, 2] and found["distance"].mean > 0.98
    for label in range(3):
        normal = y_test == label
        assert found["value"].per_class[label] == auroc(x_test[normal], x_test[~normal])
    areas = [area.value for area in found["value"].per_class.values()]
    assert found["value"].mean == pytest.approx(np.mean(areas))
    assert areas[0] > 0.95 and areas[2] < 0.05  # a value alone cannot do all classes


@pytest.mark.parametrize(
    ("y_train", "y_test", "message"),
    [
        ([0, 0, 1], [0, 1, 1, 0], r"one_class: y_train: got \(3,\), expected \(4,\)"),
        ([0, 0, 1, 1], [0, 0, 0, 0], r"one_class: y_test: got \[0\], without \[1\]"),
        ([0, 0, 0, 0], [0, 0, 0, 0], r"y_test: got \[0\], expected.*at least two classes"),
        ([0, 0, 1, 2], [0, 1, 1, 0], r"y_test: got \[0, 1\], without \[2\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(y_train, y_test, message):
    with pytest.raises(ValueError, match=message):
        one_class(lambda label, x, t: {"s": t}, np.arange(4.0), y_train, np.arange(4.0), y_test)


def test_scores_of_another_length_are_refused():
    y = np.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"score 's': got \(3,\), expected \(4,\)"):
        one_class(lambda label, x, t: {"s": t[:3]}, np.arange(4.0), y, np.arange(4.0), y)
