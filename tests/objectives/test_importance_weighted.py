"""Objectives of several importance weights: values against log p(x) and against the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import oracles
from vaejax import distributions, objectives, terms
from vaejax.distributions import Normal
from vaejax.model import Model, draw
from vaejax.objectives import elbo
from vaejax.types import Batch

WEIGHTED = {  # everything that is a function of importance weights, at 6 draws where it has many
    "iwae": lambda model: objectives.iwae(model, particles=6),
    "stl": lambda model: objectives.stl(model, particles=6),
    "dreg": lambda model: objectives.dreg(model, particles=6),
    "miwae": lambda model: objectives.miwae(model, outer=2, inner=3),
    "piwae": lambda model: objectives.piwae(model, outer=2, inner=3),
    "ciwae": lambda model: objectives.ciwae(model, particles=6, beta=0.3),
    "renyi": lambda model: objectives.renyi(model, particles=6, alpha=0.4),
    "vr-max": lambda model: objectives.renyi(model, particles=6, alpha=-np.inf),
    "score_function": lambda model: objectives.score_function(model, samples=6),
    "vimco": lambda model: objectives.vimco(model, particles=6),
    "wake-sleep": lambda model: objectives.reweighted_wake_sleep(model, particles=6),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_every_bound_is_log_px_at_the_exact_posterior_and_ignores_what_is_masked(
    name, x64, linear, key
):
    """All weights are equal then: whatever is made of them is log p(x), at every draw.

    Checked against a number of draws that is fixed inside: equal weights count themselves. A NaN in
    a masked example leaves the value and the gradient the same, bit for bit.
    """
    model, params, x = linear(posterior=lambda model: model, n=5)
    exact = oracles.linear_gaussian_log_px(params, x[:3]).mean()
    gradient = jax.jit(jax.value_and_grad(WEIGHTED[name](model), has_aux=True))
    weight = jnp.array([1.0, 1, 1, 0, 0])
    clean = gradient(params, key, Batch(x.at[3:].set(0.5), weight=weight), 0)
    spoilt = Batch(x.at[3:].set(jnp.nan), weight=weight)
    masked = gradient(params, jax.random.clone(key), spoilt, 0)
    jax.tree.map(np.testing.assert_array_equal, clean, masked)
    (value, metrics), found = masked
    np.testing.assert_allclose(value, -exact, atol=1e-9)
    np.testing.assert_allclose([metrics["bound"], metrics["elbo"]], exact, atol=1e-9)
    np.testing.assert_allclose(metrics["ess"], 3 if name == "miwae" else 6, rtol=1e-9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(("bound", "particles"), [("iwae", 1), ("iwae", 4), ("dreg", 4)])
def test_as_many_draws_are_made_as_were_asked_for(bound, particles, x64, linear, key):
    """At the exact posterior all weights are equal, so that their effective number is K."""
    model, params, x = linear(posterior=lambda model: model, n=2)
    loss = jax.jit(getattr(objectives, bound)(model, particles=particles))
    np.testing.assert_allclose(loss(params, key, Batch(x), 0)[1]["ess"], particles, rtol=1e-9)


def uniform_likelihood():
    """z ~ N(0, 1) and x|z uniform on z +- w: many weights are zero."""

    def decode(params, z, c=(), *, key=None):
        half = jnp.exp(params["log_half"])
        return distributions.Uniform(z - half, z + half)

    def encode(params, x, c=(), *, key=None):
        return Normal(params["loc"], jnp.ones(1))

    params = {"log_half": jnp.zeros(()), "loc": jnp.zeros(1)}
    return Model(None, lambda params, c=(): Normal(jnp.zeros(1), 1.0), encode, decode), params


@pytest.mark.parametrize("name", ["iwae", "stl", "dreg", "piwae", "renyi", "vimco", "wake-sleep"])
def test_zero_weights_leave_a_finite_gradient_and_all_zero_a_value_of_minus_infinity(name, key):
    model, params = uniform_likelihood()
    gradient = jax.jit(jax.value_and_grad(WEIGHTED[name](model), has_aux=True))
    (value, metrics), found = gradient(params, key, Batch(jnp.array([[0.5]])), 0)
    assert metrics["elbo"] == -np.inf and np.isfinite(value)  # some weights are zero, not all
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    (value, metrics), found = gradient(params, jax.random.clone(key), Batch(jnp.array([[50.0]])), 0)
    assert value == np.inf and metrics["bound"] == -np.inf and metrics["ess"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.statistics
def test_bounds_rise_with_the_particles_and_stay_below_log_px(x64, key):
    model, params = oracles.linear_gaussian()
    model = oracles.poor_posterior(model)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(50, 5)))
    exact = oracles.linear_gaussian_log_px(params, x).mean()
    values = {}
    for particles in (1, 5, 50, 500):
        loss = jax.jit(jax.vmap(objectives.iwae(model, particles=particles), (None, 0, None, None)))
        values[particles] = -loss(params, jax.random.split(key, 100), Batch(x), 0)[0]
        key = jax.random.fold_in(key, particles)
    elbo_keys = jax.random.split(key, 400)
    bounds = jax.jit(jax.vmap(elbo(model), (None, 0, None, None)))(params, elbo_keys, Batch(x), 0)
    means = [-bounds[0].mean(), *(v.mean() for v in values.values())]
    errors = [bounds[0].std() / 20, *(v.std() / 10 for v in values.values())]
    assert abs(means[0] - means[1]) < 4 * np.hypot(errors[0], errors[1])  # L_1 is the ELBO
    for i in (1, 2, 3):
        assert means[i + 1] - means[i] > 4 * np.hypot(errors[i], errors[i + 1])
    # At K = 500 what is left of the gap is smaller than these draws can show.
    assert -4 * errors[4] < exact - means[4] < 0.02


def log_mean_exp(log_w):
    return np.logaddexp.reduce(log_w) - np.log(len(log_w))


def test_reported_values_are_those_of_the_weights_that_were_drawn(x64, linear, key):
    model, params, x = linear(n=1)
    expected = {
        "iwae": log_mean_exp,
        "miwae": lambda w: np.mean([log_mean_exp(w[:3]), log_mean_exp(w[3:])]),
        "piwae": log_mean_exp,
        "ciwae": lambda w: 0.3 * w.mean() + 0.7 * log_mean_exp(w),
        "renyi": lambda w: log_mean_exp(0.6 * w) / 0.6,
        "vr-max": np.max,
    }

    @jax.jit
    def found(params, key, x):
        keys = jax.random.split(jax.random.fold_in(jax.random.clone(key), 0), 6)
        log_w = jax.vmap(lambda k: terms.log_weight(draw(model, params, k, x)))(keys)
        return log_w, {
            name: WEIGHTED[name](model)(params, jax.random.clone(key), Batch(x[None]), 0)
            for name in expected
        }

    log_w, values = found(params, key, x[0])
    log_w = np.asarray(log_w)
    ess = np.exp(log_w).sum() ** 2 / np.exp(2 * log_w).sum()
    for name, value in expected.items():
        loss, metrics = values[name]
        np.testing.assert_allclose(loss, -value(log_w), rtol=1e-10, err_msg=name)
        if name != "miwae":
            np.testing.assert_allclose(metrics["ess"], ess, rtol=1e-10)


ALPHAS = (-np.inf, -1.0, 0.0, 0.5, 0.999999, 1.0, 1.000001, 2.0, np.inf)


def test_renyi_falls_with_alpha_from_vr_max_over_iwae_to_the_elbo(linear, key):
    """In single precision.

    Checked against log 1/K sum w^(1 - alpha) / (1 - alpha) as written: off by tenths of nats where
    alpha is near 1.
    """
    model, params, x = linear()

    @jax.jit
    def found(params, key, x):
        losses = [objectives.renyi(model, particles=6, alpha=alpha) for alpha in ALPHAS]
        return [loss(params, jax.random.clone(key), Batch(x), 0) for loss in losses]

    all_found = found(params, key, x)
    values = {a: -float(value) for a, (value, _) in zip(ALPHAS, all_found, strict=True)}
    metrics = all_found[0][1]
    for near in (0.999999, 1.000001):
        np.testing.assert_allclose(values.pop(near), values[1.0], rtol=1e-4)
    assert list(values.values()) == sorted(values.values(), reverse=True)
    np.testing.assert_allclose(values[0.0], metrics["bound"], rtol=1e-6)
    np.testing.assert_allclose(values[1.0], metrics["elbo"], rtol=1e-6)


def test_ciwae_takes_a_schedule(linear, key):
    model, params, x = linear()
    loss = jax.jit(objectives.ciwae(model, particles=3, beta=optax.linear_schedule(1.0, 0.0, 10)))
    for step, bound in ((0, "elbo"), (10, "iwae")):
        _, metrics = loss(params, jax.random.clone(key), Batch(x), step)
        np.testing.assert_allclose(metrics["bound"], metrics[bound], rtol=1e-6)


def test_counts_and_shares_out_of_range_are_refused(linear):
    model = linear()[0]
    for name in ("iwae", "stl", "dreg", "reweighted_wake_sleep"):
        with pytest.raises(ValueError, match=f"{name}: expected particles >= 1, got 0"):
            getattr(objectives, name)(model, particles=0)
    for name in ("miwae", "piwae"):
        with pytest.raises(ValueError, match=f"{name}: expected inner >= 1, got 0"):
            getattr(objectives, name)(model, outer=2, inner=0)
    with pytest.raises(ValueError, match="score_function: expected samples >= 1, got 0"):
        objectives.score_function(model, samples=0)
    with pytest.raises(ValueError, match="vimco: particles: got 1, expected 2 or more"):
        objectives.vimco(model, particles=1)
    with pytest.raises(ValueError, match="renyi: expected particles >= 1, got 0"):
        objectives.renyi(model, particles=0, alpha=0.5)
    with pytest.raises(ValueError, match="renyi: alpha: got nan"):
        objectives.renyi(model, particles=2, alpha=float("nan"))
    with pytest.raises(ValueError, match="ciwae: expected particles >= 1, got 0"):
        objectives.ciwae(model, particles=0, beta=0.5)
    with pytest.raises(ValueError, match="ciwae: beta: got 1.5"):
        objectives.ciwae(model, particles=2, beta=1.5)
    with pytest.raises(ValueError, match="reweighted_wake_sleep: sleep: got 2"):
        objectives.reweighted_wake_sleep(model, particles=2, sleep=2)
