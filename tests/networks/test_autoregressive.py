"""The chain rule as a Distribution, with a network written out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from vaejax import evaluate, objectives
from vaejax.distributions import Bernoulli, Categorical, Normal
from vaejax.networks.autoregressive import Autoregressive, Causal
from vaejax.types import Batch


class Walk(nn.Module):
    """A random walk: u_i ~ Normal(slope u_{i-1} + c, 1), whose joint density is a Gaussian's."""

    @nn.compact
    def __call__(self, u, c=0.0):
        slope = self.param("slope", nn.initializers.constant(0.7), ())
        before = jnp.concatenate([jnp.zeros(1), u.ravel()[:-1]])
        return Normal((slope * before + c).reshape(u.shape), jnp.ones(u.shape))


SHAPE, ORDER = (2, 2), (2, 0, 3, 1)
NETWORK = Causal(Walk(), SHAPE, order=ORDER)


@pytest.fixture(scope="module")
def walk():
    params = NETWORK.init(jax.random.key(0))
    # u = A u + e: a Gaussian with this covariance, of the entries in the order.
    factor = np.linalg.inv(np.eye(4) - 0.7 * np.eye(4, k=-1))
    place = np.argsort(ORDER)  # of each entry in the order
    return NETWORK.apply(params), (factor @ factor.T)[np.ix_(place, place)]


complete = jax.jit(lambda px, key, x, known: px.complete(key, x, known=known))


def test_log_prob_is_the_joint_density(walk):
    px, covariance = walk
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    expected = stats.multivariate_normal(np.zeros(4), covariance).logpdf(np.ravel(x))
    np.testing.assert_allclose(jax.jit(px.log_prob)(x), expected, rtol=1e-5)


def test_samples_and_completions_have_the_joint_moments(walk):
    """Means and covariances of 20,000 draws within five standard errors of the exact ones."""
    px, covariance = walk
    n, given = 20_000, jnp.array([[1.0, 9.0], [2.0, 9.0]])  # entries 2 and 0 come first
    keys = jax.random.split(jax.random.key(2), n)
    draw = jax.jit(jax.vmap(lambda key, known: px.complete(key, given, known=known), (0, None)))
    drawn = np.asarray(draw(keys, jnp.asarray(0))).reshape(n, 4)
    error = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / n)
    assert (np.abs(np.cov(drawn.T) - covariance) < 5 * error).all()

    kept = np.asarray(draw(jax.random.clone(keys), jnp.asarray(2))).reshape(n, 4)
    assert (kept[:, [0, 2]] == [1.0, 2.0]).all()
    a, b = np.ix_([1, 3], [0, 2]), np.ix_([0, 2], [0, 2])
    gain = covariance[a] @ np.linalg.inv(covariance[b])
    left = covariance[np.ix_([1, 3], [1, 3])] - gain @ covariance[a].T
    error = np.sqrt(np.diag(left) / n)
    assert (np.abs(kept[:, [1, 3]].mean(0) - gain @ [1.0, 2.0]) < 5 * error).all()
    np.testing.assert_allclose(np.cov(kept[:, [1, 3]].T), left, atol=0.1)


def test_what_is_not_given_is_not_looked_at(walk):
    px, _ = walk
    x, key = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jax.random.key(3)
    other = x.at[1, 1].set(jnp.nan).at[0, 1].set(-7.0)
    first, second = complete(px, key, x, 2), complete(px, jax.random.clone(key), other, 2)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(complete(px, jax.random.clone(key), x, 4), x)


def test_no_gradient_through_a_sample():
    slope = jax.jit(jax.grad(lambda p: NETWORK.apply(p).sample(jax.random.key(4)).sum()))
    assert slope({"params": {"slope": jnp.array(0.7)}})["params"]["slope"] == 0


def test_as_a_model_of_its_own():
    """The loss and the measure are the mean of -log p(x|c), for each example under its own c."""
    x = np.random.default_rng(5).normal(size=(5, *SHAPE)).astype(np.float32)
    c = np.arange(5, dtype=np.float32)
    params = NETWORK.init(jax.random.key(6), c[0])
    one = jax.jit(lambda c, x: NETWORK.apply(params, c).log_prob(x))
    each = [one(c[i], x[i]) for i in range(5)]
    loss = jax.jit(objectives.maximum_likelihood(NETWORK))
    loss, metrics = loss(params, jax.random.key(7), Batch(x, c), 0)
    np.testing.assert_allclose([loss, -metrics["log_px"]], -np.mean(each), rtol=1e-5)
    measured = evaluate.log_prob(NETWORK, params, jax.random.key(8), Batch(x, c))
    np.testing.assert_allclose(measured, each, rtol=1e-5)


def test_steps_see_what_was_drawn(walk):
    """`step` in place of the network: the same draws as by hand, and its carry goes along."""

    def step(carry, previous, i):
        ones = carry + previous
        return ones, Bernoulli(jnp.where(i == ones, 50.0, -50.0))

    px = Autoregressive(lambda u: Bernoulli(u), (), step, jnp.zeros(()), (3,))
    np.testing.assert_array_equal(px.sample(jax.random.key(9)), [1, 1, 1])
    given = jnp.array([0.0, 1.0, 0.0])
    np.testing.assert_array_equal(px.complete(jax.random.key(10), given, known=2), [0, 1, 0])
    ordered = dataclasses.replace(px, order=jnp.array([2, 0, 1]))
    given = jnp.array([0.0, 0.0, 1.0])  # entry 2 is the first of the order, and is given
    np.testing.assert_array_equal(ordered.complete(jax.random.key(11), given, known=1), [1, 1, 1])


@pytest.mark.parametrize("known", [-1, 5])
def test_refuses_more_than_there_is(walk, known):
    with pytest.raises(ValueError, match=rf"complete: known: got {known}, expected 0 to 4"):
        walk[0].complete(jax.random.key(0), jnp.zeros(SHAPE), known=known)


def test_refuses_other_shapes(walk):
    for function in (walk[0].log_prob, lambda x: walk[0].complete(jax.random.key(0), x, known=1)):
        with pytest.raises(ValueError, match=r"got \(3, 2, 2\), expected \(2, 2\); map a batch"):
            function(jnp.zeros((3, *SHAPE)))


@pytest.mark.parametrize("order", [np.array(ORDER), list(ORDER)])
def test_refuses_an_order_or_a_shape_that_is_no_tuple(order):
    with pytest.raises(TypeError, match=r"Causal: order: got .*a tuple; give tuple\(order\)"):
        Causal(Walk(), SHAPE, order=order).init(jax.random.key(0))
    with pytest.raises(TypeError, match="Causal: shape: got list"):
        Causal(Walk(), list(SHAPE)).apply({"params": {"slope": jnp.array(0.7)}})


@pytest.mark.parametrize("given", [[7, 0], [-1, 0], [0.9, 0.0]])
def test_refuses_given_entries_that_are_none(given):
    px = Autoregressive(lambda u: Categorical(jnp.zeros((2, 3))), shape=(2,), dtype=jnp.int32)
    with pytest.raises(ValueError, match="complete: x: got 1 entries in .* probability above 0"):
        px.complete(jax.random.key(0), jnp.array(given), known=1)
    px.complete(jax.random.key(0), jnp.array([2, 7]), known=1)  # the other is not looked at


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 1, 2, 2), (1, 2, 3, 4), (0, 1, 2, 3, 4)])
def test_refuses_an_order_that_is_no_permutation(order):
    network = Causal(Walk(), SHAPE, order=order)
    with pytest.raises(ValueError, match="Causal: order: got .*each of 0 to 3 once"):
        network.init(jax.random.key(0))
    with pytest.raises(ValueError, match="Causal: order"):
        network.apply({"params": {"slope": jnp.array(0.7)}})
