"""Samples have the moments, probabilities and gradients of their distribution, and own noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.laws import (
    LOC,
    LOGITS,
    NAMES,
    SCALE,
    TRIL,
    build,
    compiled_mean,
    draws,
    many_draws,
    scores,
    within,
)
from vaejax import distributions as vd


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_mean_and_their_log_prob(name):
    x, log_p = many_draws(name)
    within(np.eye(4)[x] if name == "categorical" else x, compiled_mean(build(name)))
    assert np.isfinite(log_p).all()
    np.testing.assert_allclose(log_p[:8], scores(build(name), x[:8]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("normal", SCALE**2),
        ("multivariate", np.diag(TRIL @ TRIL.T)),
        ("laplace", 2 * SCALE**2),
        ("uniform", SCALE**2 / 12),
        ("bernoulli", scipy.special.expit(LOGITS) * scipy.special.expit(-LOGITS)),
    ],
)
def test_samples_have_the_variance(name, variance):
    within((many_draws(name)[0] - np.asarray(compiled_mean(build(name)))) ** 2, variance)


def test_multivariate_normal_samples_are_correlated():
    x = many_draws("multivariate")[0] - LOC.astype(np.float32)
    within(x[:, :, None] * x[:, None, :], TRIL @ TRIL.T)


def test_samples_have_the_probabilities(key):
    q = vd.DiscretizedLogistic(jnp.asarray(0.3), jnp.asarray(0.2), levels=5)
    grid = np.arange(5, dtype=np.float32) / 4
    p = np.exp(scores(q, grid))
    within(draws(q, jax.random.split(key, 40_000))[0][:, None] == grid, p)
    np.testing.assert_allclose((p * grid).sum(), compiled_mean(q), rtol=1e-5)


def test_bernoulli_samples_with_the_sigmoid():
    """Checked against: softplus(logits) used as a probability when images are drawn."""
    x = many_draws("bernoulli")[0]
    assert set(np.unique(x)) == {0.0, 1.0}
    within(x, scipy.special.expit(LOGITS))
    low = vd.Bernoulli(jnp.full((50_000,), -6.0, jnp.bfloat16))
    low = jax.jit(low.sample)(jax.random.key(1))
    assert low.dtype == jnp.bfloat16
    within(np.asarray(low).astype(float), scipy.special.expit(-6.0))


def test_a_class_ruled_out_is_never_drawn(key):
    q = vd.Categorical(jnp.array([0.0, -jnp.inf, 0.0]))
    assert 1 not in draws(q, jax.random.split(key, 200))[0]


@jax.jit
def continuous_bernoulli(logit, keys):
    """Samples and their slopes in the logit; the mean and the variance."""

    def draw(v, key):
        return vd.ContinuousBernoulli(v).sample(key)

    x, slope = jax.vmap(jax.value_and_grad(draw), (None, 0))(logit, keys)
    mean, variance = jax.value_and_grad(lambda v: vd.ContinuousBernoulli(v).mean)(logit)
    return x, slope, mean, variance


@pytest.mark.parametrize("logit", [-1e4, -40.0, -0.011, -0.009, 0.0, 0.009, 0.011, 40.0, 1e4])
def test_continuous_bernoulli_samples(logit, key):
    """Mean and pathwise gradient of the samples, around the switch of formulas and far out."""
    x, slope, mean, variance = continuous_bernoulli(logit, jax.random.split(key, 20_000))
    assert x.min() >= 0 and x.max() <= 1
    within(x, mean)
    within(slope, variance)


def test_pathwise_gradients_of_samples(key):
    """d E[x^2] / d parameters through the samples, against the closed form."""
    cases = [
        (vd.Normal, (0.5, 0.8), (2 * 0.5, 2 * 0.8)),
        (vd.Laplace, (0.5, 0.8), (2 * 0.5, 4 * 0.8)),
        (vd.Uniform, (0.5, 2.0), ((2 * 0.5 + 2.0) / 3, (0.5 + 2 * 2.0) / 3)),
    ]
    keys = jax.random.split(key, (3, 20_000))

    @jax.jit
    def slopes(keys):
        found = []
        for (kind, at, _), own in zip(cases, keys, strict=True):
            slope = jax.grad(lambda ab, key, kind=kind: kind(*ab).sample(key) ** 2)
            found.append(jax.vmap(slope, (None, 0))(tuple(map(jnp.asarray, at)), own))
        return found

    for found, (_, _, truth) in zip(slopes(list(keys)), cases, strict=True):
        for slope, expected in zip(found, truth, strict=True):
            within(slope, expected)


@jax.jit
def mapped_and_looped(q, keys, again):
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 64), q)
    mapped = jax.vmap(lambda q, key: q.sample_and_log_prob(key))(batch, keys)
    return mapped, [q.sample_and_log_prob(again[i]) for i in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_the_loop_and_rows_have_their_own_noise(name, key):
    """Checked against: a batched distribution whose rows all received the same noise."""
    keys = jax.random.split(key, 64)
    (x, log_p), looped = mapped_and_looped(build(name), keys, jax.random.clone(keys))
    for i, (own, own_log_p) in enumerate(looped):
        np.testing.assert_allclose(x[i], own, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(log_p[i], own_log_p, rtol=1e-5, atol=1e-6)
    different = {"bernoulli": 4, "categorical": 12, "discretized_logistic": 12}
    rows = len(np.unique(np.asarray(x), axis=0))
    assert rows == 1 if name == "delta" else rows >= different.get(name, 64)


def test_uniform_samples_stay_inside_for_any_rounding(key, monkeypatch):
    ends = np.sort(np.random.default_rng(5).normal(size=(2, 2000)).astype(np.float32) ** 3, axis=0)
    q = vd.Uniform(*map(jnp.asarray, ends))
    for noise in (0.0, 1 - 2.0**-23):  # the least and the greatest that jax.random.uniform gives
        monkeypatch.setattr(
            jax.random, "uniform", lambda key, shape, dtype, u=noise: jnp.full(shape, u, dtype)
        )
        sampled = jax.jit(lambda q, key: q.log_prob(q.sample(key)))  # anew, or it would be cached
        assert np.isfinite(sampled(q, jax.random.clone(key)))


def test_multivariate_normal_reads_the_lower_triangle_only(key):
    lower = build("multivariate")
    full = vd.MultivariateNormal(lower.loc, lower.scale_tril + np.triu(np.ones((3, 3)), 1))

    @jax.jit
    def measured(q, key, other):
        x = q.sample(key)
        return x, q.log_prob(x), vd.kl(q, other)

    x, log_p, divergence = measured(full, key, lower)
    x_lower, log_p_lower, other = measured(lower, jax.random.clone(key), full)
    np.testing.assert_array_equal(x, x_lower)
    np.testing.assert_array_equal(log_p, log_p_lower)
    assert abs(divergence) < 1e-6 and abs(other) < 1e-6
