"""Chains and layered models against closed forms and quadrature."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from vaejax import evaluate, heads, hierarchical, networks, objectives
from vaejax.distributions import Bernoulli, MultivariateNormal, Normal
from vaejax.model import Model, autoencoder, draw, generate, reconstruct, terms
from vaejax.types import Batch

STANDARD = Normal(np.zeros(1, np.float32), np.ones(1, np.float32))


def curved(h):
    """A link that is not linear, over one variable."""
    return Normal(jnp.sin(2 * h), 0.4 + 0.3 * h**2)


CURVED = jax.tree_util.Partial(curved)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_chain_adds_the_log_probs_of_its_links(backwards):
    difference = jax.tree_util.Partial(lambda h: Normal(h[:1] - h[1:], 0.5))
    first = Normal(np.float32([0.5, -1.0]), np.float32([1.0, 2.0]))
    chain = hierarchical.Chain(first, (difference, CURVED), backwards)
    parts = np.array([0.3, 0.8]), np.array([-0.2]), np.array([0.7])
    expected = stats.norm([0.5, -1], [1, 2]).logpdf(parts[0]).sum()
    expected += stats.norm(-0.5, 0.5).logpdf(-0.2)
    expected += stats.norm(np.sin(-0.4), 0.4 + 0.3 * 0.04).logpdf(0.7)
    event = np.concatenate(parts[::-1] if backwards else parts).astype(np.float32)
    assert chain.event_shape == (4,) and chain.discrete is False

    @jax.jit
    def measured(key):
        drawn, log_p = chain.sample_and_log_prob(key)
        again = chain.sample(jax.random.clone(key))
        scores = chain.log_prob(event), log_p, chain.log_prob(drawn)
        return scores, chain.split(event), (drawn, again)

    (log_prob, log_p, rescored), split, (drawn, again) = measured(jax.random.key(0))
    assert log_prob == pytest.approx(expected, rel=1e-5)
    for part, found in zip(parts, split, strict=True):
        np.testing.assert_allclose(found, part, rtol=1e-6)
    assert rescored == pytest.approx(float(log_p), rel=1e-5)
    np.testing.assert_array_equal(again, drawn)
    with pytest.raises(NotImplementedError, match="Chain has no mean in closed form"):
        _ = chain.mean


def test_a_chain_over_two_numbers_integrates_to_one():
    grid = np.linspace(-9, 9, 361)
    first, second = np.meshgrid(grid, grid, indexing="ij")
    points = np.stack([first.ravel(), second.ravel()], axis=1).astype(np.float32)
    for backwards in (False, True):
        chain = hierarchical.Chain(STANDARD, (CURVED,), backwards)
        density = np.exp(np.asarray(jax.jit(jax.vmap(chain.log_prob))(points), float))
        assert density.sum() * (grid[1] - grid[0]) ** 2 == pytest.approx(1, abs=1e-4)


@pytest.mark.statistics
def test_samples_have_the_moments_of_a_linear_chain_and_means_are_unbiased():
    """h1 ~ N(1, 0.5^2), h2 = 3 h1 + N(0, 0.2^2)."""
    link = jax.tree_util.Partial(lambda h: Normal(3 * h, 0.2))
    chain = hierarchical.Chain(Normal(jnp.ones(1), 0.5), (link,))
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(jax.jit(jax.vmap(chain.sample))(keys), float)
    variance = np.array([[0.25, 0.75], [0.75, 9 * 0.25 + 0.04]])
    np.testing.assert_allclose(drawn.mean(axis=0), [1, 3], atol=5 * np.sqrt(2.29 / 20_000))
    np.testing.assert_allclose(np.cov(drawn.T), variance, rtol=0.06)
    keys = jax.random.split(jax.random.key(1), 20_000)
    means = np.asarray(jax.jit(jax.vmap(chain.link_means))(keys), float)
    np.testing.assert_allclose(means[:, 0], 1)
    assert means[:, 1].mean() == pytest.approx(3, abs=5 * 1.5 / np.sqrt(20_000))


def test_a_sample_is_differentiable_through_every_link():
    def second(loc):
        chain = hierarchical.Chain(
            Normal(jnp.full(1, loc), 0.5), (jax.tree_util.Partial(lambda h: Normal(3 * h, 0.2)),)
        )
        return chain.sample(jax.random.key(0))[1]

    assert jax.jit(jax.grad(second))(0.7) == pytest.approx(3, rel=1e-5)


class Affine(NamedTuple):
    """A hand-written network: N(A h + b, covariance L L^T), all of them parameters."""

    A: np.ndarray
    b: np.ndarray
    tril: np.ndarray

    def init(self, key, h):
        return {"A": jnp.asarray(self.A), "b": jnp.asarray(self.b), "tril": jnp.asarray(self.tril)}

    def apply(self, params, h, rngs=None):
        return MultivariateNormal(params["A"] @ h + params["b"], params["tril"])


def conditional(mean, cov, given, wanted):
    """p(wanted | given) of a Gaussian: as an Affine network."""
    gain = cov[np.ix_(wanted, given)] @ np.linalg.inv(cov[np.ix_(given, given)])
    rest = cov[np.ix_(wanted, wanted)] - gain @ cov[np.ix_(given, wanted)]
    return Affine(gain, mean[wanted] - gain @ mean[given], np.linalg.cholesky(rest))


def linear_gaussian():
    """h2 ~ N(0, I_2), h1|h2 and x|h1 affine (3 and 4 numbers), with exact posteriors."""
    rng = np.random.default_rng(0)
    up = Affine(rng.normal(size=(3, 2)), rng.normal(size=3), 0.6 * np.eye(3))
    out = Affine(rng.normal(size=(4, 3)), rng.normal(size=4), 0.5 * np.eye(4))
    # (h2, h1, x) jointly: each is an affine function of the noise of all three.
    mean = np.concatenate([np.zeros(2), up.b, out.A @ up.b + out.b])
    h2 = np.hstack([np.eye(2), np.zeros((2, 7))])
    h1 = up.A @ h2 + np.hstack([np.zeros((3, 2)), up.tril, np.zeros((3, 4))])
    x = out.A @ h1 + np.hstack([np.zeros((4, 5)), out.tril])
    factor = np.vstack([h2, h1, x])
    cov = factor @ factor.T
    top, middle, data = np.arange(2), np.arange(2, 5), np.arange(5, 9)
    model = hierarchical.layers(
        autoencoder(conditional(mean, cov, data, middle), out),
        encoders=[conditional(mean, cov, middle, top)],
        decoders=[up],
        prior=Normal(jnp.zeros(2), jnp.ones(2)),
    )
    return model, stats.multivariate_normal(mean[data], cov[np.ix_(data, data)])


def test_with_exact_posteriors_every_weight_is_log_px(x64):
    """Where the chain's posterior is exact, log p(x, h1, h2) - log q is log p(x) at every draw."""
    model, px = linear_gaussian()
    x = jnp.asarray(px.rvs(6, random_state=1))
    params = model.init(jax.random.key(0), x[0])

    def parts(key, x):
        d = draw(model, params, key, x)
        return terms.log_weight(d), -terms.distortion(d) - terms.rate(d)

    for estimate in jax.jit(jax.vmap(parts))(jax.random.split(jax.random.key(1), 6), x):
        np.testing.assert_allclose(estimate, px.logpdf(x), rtol=1e-9)
    found = evaluate.log_likelihood(model, params, jax.random.key(2), x, particles=3)
    np.testing.assert_allclose(found.log_px, px.logpdf(x), rtol=1e-9)
    np.testing.assert_allclose(found.ess, 3, rtol=1e-9)
    drawn = jax.jit(jax.vmap(lambda k: generate(model, params, k).x))(
        jax.random.split(jax.random.key(3), 5000)
    )
    error = np.sqrt(np.diag(px.cov_object.covariance) / 5000)
    assert (np.abs(drawn.mean(axis=0) - px.mean) < 5 * error).all()


def small(h1=1, h2=1, size=3, hidden=(4,), **changes):
    def network(head):
        return nn.Sequential([networks.MLP(hidden, nn.tanh), head])

    parts = {
        "encoders": [network(heads.Normal(h2))],
        "decoders": [network(heads.Normal(h1))],
        "prior": Normal(jnp.zeros(h2), jnp.ones(h2)),
    }
    bottom = autoencoder(network(heads.Normal(h1)), network(heads.Bernoulli((size,))))
    return hierarchical.layers(bottom, **(parts | changes))


def quadrature(model, params, x):
    """log p(x) by a sum over a grid of (h1, h2), double the prior's reach."""
    grid = jnp.linspace(-12.0, 12.0, 481)
    first, second = jnp.meshgrid(grid, grid, indexing="ij")
    z = jnp.stack([first.ravel(), second.ravel()], axis=1)
    log_pz = jax.vmap(model.prior(params).log_prob)(z)
    log_px = jax.vmap(lambda h: model.decode(params, jnp.stack([h, h])).log_prob(x))(grid)
    log_step = jnp.log(grid[1] - grid[0])
    return jax.nn.logsumexp(log_pz.reshape(481, 481) + log_px[:, None]) + 2 * log_step


def without_the_prior_of_h1(d):
    """The mistake: log p(h1|h2) left out of the weight."""
    h2 = d.q.split(d.z)[1]
    return d.px.log_prob(d.x) + jnp.sum(STANDARD.log_prob(h2)) - d.log_q


@pytest.mark.statistics
def test_the_elbo_is_below_the_weighted_bounds_and_these_below_log_px():
    """ELBO <= L_4 <= L_64 <= log p(x), by the same draws, on parameters at random."""
    model = small()
    x = np.float32([1.0, 0.0, 1.0])
    params = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), model.init(jax.random.key(3), x))
    exact = float(jax.jit(partial(quadrature, model))(params, x))

    @jax.jit
    @jax.vmap
    def weights(key):
        d = draw(model, params, key, x)
        return terms.log_weight(d), without_the_prior_of_h1(d)

    def check(log_w):
        log_w = np.asarray(log_w, float)
        bounds = [np.log(np.exp(log_w.reshape(-1, k)).mean(axis=1)) for k in (1, 4, 64)]
        means = [b.mean() for b in bounds]
        error = bounds[-1].std() / np.sqrt(len(bounds[-1]))
        assert means[0] < means[1] < means[2] < exact + 4 * error
        assert exact - means[0] > 0.02
        assert means[2] == pytest.approx(exact, abs=0.1 * (exact - means[0]) + 4 * error)

    log_w, mistaken = weights(jax.random.split(jax.random.key(4), 64 * 300))
    check(log_w)
    with pytest.raises(AssertionError):
        check(mistaken)


class Top(nn.Module):
    """A learned p(h2)."""

    @nn.compact
    def __call__(self):
        return Normal(self.param("loc", nn.initializers.zeros, (2,)), jnp.ones(2))


WIDE = small(h1=3, h2=2, hidden=(), prior=Top())


@pytest.fixture(scope="module")
def wide():
    return WIDE.init(jax.random.key(0), np.ones(3, np.float32))


def test_the_losses_are_in_order_and_every_parameter_learns(wide):
    rng = np.random.default_rng(0)
    x = rng.integers(2, size=(50, 3)).astype(np.float32)

    @jax.jit
    def both(params, key):
        iwae = jax.value_and_grad(objectives.iwae(WIDE, particles=20), has_aux=True)
        elbo = objectives.elbo(WIDE, samples=20)(params, jax.random.clone(key), Batch(x), 0)[0]
        (loss, _), slope = iwae(params, key, Batch(x), 0)
        return elbo, loss, slope

    for key in jax.random.split(jax.random.key(1), 3):
        params = jax.tree.map(lambda a: np.float32(a + rng.normal(size=a.shape)), wide)
        elbo, loss, slope = both(params, key)
        assert loss < elbo
        for leaf in jax.tree.leaves(jax.tree.map(np.asarray, slope)):
            assert np.isfinite(leaf).all() and np.any(leaf != 0)


def test_z_is_h1_then_h2_and_the_likelihood_sees_h1_alone(wide):
    model, params = WIDE, wide
    assert set(params) == {"bottom", "encoders", "decoders", "prior"}
    x, z = np.ones(3, np.float32), np.arange(5, dtype=np.float32) / 5
    q, pz = jax.jit(lambda: (model.encode(params, x), model.prior(params)))()
    assert q.event_shape == pz.event_shape == (5,)
    np.testing.assert_array_equal(q.split(z)[0], z[:3])
    np.testing.assert_array_equal(pz.split(z)[-1], z[:3])
    logits = jax.jit(lambda z: model.decode(params, z).logits)
    other_top, other_h1 = np.append(z[:3], np.float32([9, 9])), np.append(np.float32(9), z[1:])
    np.testing.assert_array_equal(logits(z), logits(other_top))
    assert np.any(logits(z) != logits(other_h1))
    made = jax.eval_shape(lambda k: reconstruct(model, params, x, key=k), jax.random.key(1))
    assert made.shape == (3,)


def test_dropout_is_one_draw_per_key_for_sample_and_density():
    def network(head):
        return nn.Sequential([networks.MLP((8,), nn.tanh, dropout=0.5), head])

    model = small(h1=2, h2=2, hidden=(), encoders=[network(heads.Normal(2))])
    x = np.ones(3, np.float32)
    params = model.init(jax.random.key(0), x)

    @jax.jit
    def scores(key, draw_key):
        q = model.encode(params, x, key=key)
        z, log_q = q.sample_and_log_prob(draw_key)
        return log_q, q.log_prob(z), model.encode(params, x).log_prob(z)

    log_q, again, quiet = scores(*jax.random.split(jax.random.key(1)))
    assert again == pytest.approx(float(log_q), rel=1e-5)
    assert abs(float(quiet - log_q)) > 1e-3


def test_active_units_of_each_layer_are_those_that_move():
    """By hand: h1 = (x, 0) + noise, h2 = (h1_1, 0, 0) + noise: Var_x of the means is Var x and 0,
    though each h2 draw varies by the noise of h1.
    """
    link = jax.tree_util.Partial(lambda h: Normal(jnp.stack([h[0], 0 * h[1], 0 * h[1]]), 1.0))

    def encode(params, x, c=(), *, key=None):
        return hierarchical.Chain(Normal(jnp.concatenate([x, 0 * x]), 1.0), (link,))

    model = Model(None, None, encode, None)
    x = np.float32(0.5 * np.random.default_rng(0).normal(size=(2000, 1)))
    units = hierarchical.active_units(model, {}, jax.random.key(1), x, draws=2)
    assert [layer.active for layer in units] == [1, 1]
    variance = float(np.var(x))
    np.testing.assert_allclose(units[0].variance, [variance, 0], atol=1e-5)
    assert units[1].variance[0] == pytest.approx(variance, abs=5 * units[1].error[0])
    assert 1e-3 < units[1].error[0] < 0.05
    np.testing.assert_array_equal(units[1].variance[1:], 0)


def test_mismatches_are_refused(wide):
    model, params, x = WIDE, wide, np.ones(3, np.float32)
    with pytest.raises(ValueError, match="layers: got 1 encoders and 0 decoders, expected as many"):
        small(decoders=[])
    with pytest.raises(ValueError, match=r"layers: h_1: got a posterior over \(3,\) and a prior"):
        small(h1=3, decoders=[heads.Normal(2)]).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"layers: h_2: got a posterior over \(1,\) and a prior"):
        small(prior=Normal(jnp.zeros(2), 1.0)).init(jax.random.key(0), x)
    with pytest.raises(TypeError, match="layers: h_1: got posterior Normal and prior Bernoulli"):
        small(decoders=[heads.Bernoulli(1)]).init(jax.random.key(0), x)
    with pytest.raises(TypeError, match="layers: a network: got .* expected a Distribution"):
        small(encoders=[networks.MLP((1,))]).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"Chain: event: got shape \(2, 5\), expected \(5,\)"):
        model.prior(params).log_prob(jnp.zeros((2, 5)))
    mixed = hierarchical.Chain(STANDARD, (jax.tree_util.Partial(Bernoulli),))
    with pytest.raises(TypeError, match="Chain: links: got Normal and Bernoulli, expected all"):
        mixed.log_prob(jnp.zeros(2))
    with pytest.raises(TypeError, match="active_units: posterior: got Normal, expected a Chain"):
        plain = Model(None, None, lambda params, x, c: STANDARD, None)
        hierarchical.active_units(plain, {}, jax.random.key(1), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="active_units: data: got 1 example, expected two or more"):
        hierarchical.active_units(model, params, jax.random.key(0), x[None])
