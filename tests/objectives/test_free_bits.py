"""Free bits and the cyclical beta: closed forms, a run whose end is known, and the papers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from vaejax import objectives, terms
from vaejax.distributions import Bernoulli, Laplace, MultivariateNormal, Normal, Uniform
from vaejax.evaluate import mean_loss
from vaejax.model import Draw, Model
from vaejax.train import make_train
from vaejax.types import Batch

FREE = 0.5
START = {
    "loc": np.float32([0.1, 2.0, 0.0, -1.5]),
    "log_scale": np.float32([0.0, 0.3, -0.2, 0.0]),
}
"""Rates of 0.005, 2.11, 0.035 and 1.125 nats: two of them are free."""


def deaf_model():
    """A model whose decoder does not hear z: what moves q(z|x) is the rate alone."""

    def encode(params, x, c=(), *, key=None):
        return Normal(params["loc"] * x[0], jnp.exp(params["log_scale"]))

    return Model(
        init=lambda key, x, c=(): START,
        prior=lambda params, c=(): Normal(jnp.zeros(4), jnp.ones(4)),
        encode=encode,
        decode=lambda params, z, c=(), *, key=None: Normal(jnp.zeros(2), jnp.ones(2)),
    )


MODEL = deaf_model()
BATCH = Batch(np.float32([[1, 0], [-1, 2], [2, 1]]), weight=np.float32([1, 3, 0]))


def rates_by_hand(params, squares=1.0):
    """KL(N(m, s) || N(0, 1)) of each dimension, where x[0]^2 is 1 in the mean."""
    m, s = np.asarray(params["loc"], float), np.exp(np.asarray(params["log_scale"], float))
    return 0.5 * (s**2 + squares * m**2 - 1) - np.log(s)


def bits(**options):
    return objectives.elbo(MODEL, rate=terms.rate_per_dimension, **options)


def graded(loss, params=START, batch=BATCH, step=0):
    key = jax.random.key(0)
    found = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, key, batch, step)
    return jax.tree.map(np.asarray, found)


def test_each_group_costs_its_rate_or_what_is_free():
    """And its gradient is exactly zero below that, else that of the rate."""
    (value, metrics), grads = graded(bits(free_nats=FREE, beta=2.0))
    rates = rates_by_hand(START)
    distortion = -np.average(stats.norm.logpdf(BATCH.x).sum(axis=1), weights=BATCH.weight)
    paid = np.maximum(rates, FREE).sum()
    assert float(value) == pytest.approx(distortion + 2 * paid, rel=1e-6)
    assert float(metrics["elbo"]) == pytest.approx(-distortion - rates.sum(), rel=1e-6)
    assert float(metrics["rate"]) == pytest.approx(rates.sum(), rel=1e-6)
    assert metrics["free_nats"] == FREE and metrics["free_groups"] == 2
    whole = graded(bits(beta=2.0))[1]
    for name in START:
        np.testing.assert_array_equal(grads[name][[0, 2]], 0)
        np.testing.assert_allclose(grads[name][[1, 3]], whole[name][[1, 3]], rtol=1e-6)
        assert (np.abs(whole[name]) > 1e-3).any()


def test_a_rate_in_parts_costs_their_sum():
    for samples in (1, 3):
        parts = graded(bits(samples=samples))
        whole = graded(objectives.elbo(MODEL, samples=samples))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts, whole)


def test_a_rate_that_is_one_number_is_one_group():
    total = rates_by_hand(START).sum()
    free = objectives.elbo(MODEL, free_nats=total + 0.1)
    (value, metrics), grads = graded(free)
    assert float(value) == pytest.approx(float(metrics["distortion"] + total + 0.1), rel=1e-6)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))
    dear = graded(objectives.elbo(MODEL, free_nats=total - 0.1))
    whole = graded(objectives.elbo(MODEL))[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), dear[1], whole)


def test_what_is_free_may_follow_a_schedule():
    loss = bits(free_nats=optax.linear_schedule(0.0, 4.0, 4))
    found = [int(graded(loss, step=step)[0][1]["free_groups"]) for step in range(4)]
    assert found == [0, 2, 3, 4]


def test_a_group_comes_down_to_what_is_free_and_no_further():
    """A step of gradient descent moves a rate by at most 0.1 here; without free nats it is 0."""
    x = np.ones((4, 2), np.float32)

    def end(loss):
        run = make_train(loss, optax.sgd(0.02), steps=1500, batch_size=4)
        return jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(0), START, x)[0].params)

    free, plain = end(bits(free_nats=FREE)), end(bits())
    rates = rates_by_hand(free)
    for name in START:  # those that were below have not moved at all
        np.testing.assert_array_equal(free[name][[0, 2]], START[name][[0, 2]])
    assert (rates[[1, 3]] <= FREE).all() and (rates[[1, 3]] > FREE - 0.1).all()
    np.testing.assert_allclose(rates_by_hand(plain), 0, atol=1e-5)


def test_the_bound_of_free_bits_is_that_without():
    """Whatever the batches that data are evaluated in."""
    x = np.float32([[1, 0], [3, 2], [2, 1]])
    found = [
        mean_loss(loss, START, jax.random.key(0), x, batch_size=2)
        for loss in (bits(free_nats=FREE), bits())
    ]
    np.testing.assert_allclose(found[0]["elbo"], found[1]["elbo"], rtol=1e-6)


def test_the_rates_of_the_dimensions_add_up_to_the_rate():
    pairs = [
        (Normal(jnp.arange(6.0).reshape(2, 3), 0.5), Normal(jnp.zeros((2, 3)), 2.0)),
        (Laplace(jnp.arange(3.0), 0.5), Laplace(0.0, jnp.ones(3))),
        (Bernoulli(jnp.arange(3.0)), Bernoulli(jnp.zeros(3))),
        (Uniform(jnp.zeros(3), 1.0), Uniform(-jnp.arange(3.0), jnp.arange(1.0, 4.0))),
    ]

    @jax.jit
    def rates(pairs):
        draws = [Draw((), (), (), *pair, ()) for pair in pairs]
        return [(terms.rate_per_dimension(d), terms.rate(d)) for d in draws]

    for (q, _), (each, whole) in zip(pairs, rates(pairs), strict=True):
        assert each.shape == (math.prod(q.event_shape),) and whole > 0
        np.testing.assert_allclose(each.sum(), whole, rtol=1e-6)


def test_what_has_no_rate_per_dimension_is_refused():
    full = MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    standard = Normal(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(TypeError, match="got MultivariateNormal and Normal.*rate=terms.rate"):
        terms.rate_per_dimension(Draw((), (), (), full, standard, ()))
    with pytest.raises(ValueError, match="rate_per_dimension: a deterministic autoencoder"):
        terms.rate_per_dimension(Draw((), (), (), standard, None, ()))
    with pytest.raises(ValueError, match="elbo: free_nats: got -0.1, expected 0 nats or more"):
        bits(free_nats=-0.1)
    square = objectives.elbo(MODEL, rate=lambda d: jnp.zeros((2, 2)), free_nats=0.1)
    with pytest.raises(ValueError, match=r"elbo: rate: got shape \(2, 2\), expected one number"):
        graded(square)


# --- the cyclical schedule -----------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "cycles", "rising"), [(40, 4, 0.5), (30, 4, 1.0), (7, 1, 0.25)])
def test_the_cyclical_beta_is_that_of_its_paper(steps, cycles, rising):
    """tau = mod(t - 1, ceil(T / M)) / (T / M), beta = tau / R up to 1 (t counts from 1)."""
    beta = objectives.cyclical(3.0, steps=steps, cycles=cycles, rising=rising)
    length, T = math.ceil(steps / cycles), range(1, steps + 1)
    expected = [3 * min(1, ((t - 1) % length) / (steps / cycles) / rising) for t in T]
    found = jax.jit(jax.vmap(beta))(np.arange(steps + 5))
    np.testing.assert_allclose(found, expected + [3.0] * 5, rtol=1e-6)
    assert found[0] == 0 and float(beta(2**30)) == 3  # where losses are evaluated


def test_a_loss_follows_the_cycles_in_training():
    loss = objectives.elbo(MODEL, beta=objectives.cyclical(steps=8, cycles=2))
    run = make_train(loss, optax.sgd(0.0), steps=10, batch_size=2)
    _, history = jax.jit(run)(jax.random.key(0), START, np.ones((2, 2), np.float32))
    np.testing.assert_allclose(history["beta"], [0, 0.5, 1, 1, 0, 0.5, 1, 1, 1, 1], rtol=1e-6)


def test_other_cycles_are_refused():
    for wrong, message in (
        ({"rising": 0.0}, "rising: got 0.0, expected one number above 0"),
        ({"rising": 1.5}, "rising: got 1.5, expected a part of a cycle"),
        ({"cycles": 0}, "expected cycles >= 1"),
        ({"steps": 2.5}, "steps: got .*, expected a whole number"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            objectives.cyclical(**{"steps": 8, **wrong})
