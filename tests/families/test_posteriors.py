"""Flow posteriors: their importance weights against the exact log p(x), and what they can fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from tests import oracles
from vaejax import Batch, evaluate, heads, objectives, train
from vaejax.distributions import Normal
from vaejax.families.posteriors import iaf_posterior, planar_posterior
from vaejax.model import autoencoder, draw
from vaejax.networks.flows import Transformed

BUILD = {
    "planar": lambda model: planar_posterior(model, 2, layers=3),
    "iaf": lambda model: iaf_posterior(model, 2, layers=2, hidden=(8,)),
}
every = pytest.mark.parametrize("name", list(BUILD))


@pytest.fixture(scope="module")
def gaussian():
    """A linear-Gaussian model with a poor diagonal posterior, its parameters, data, log p(x)."""
    exact, params = oracles.linear_gaussian(latent=2)
    rng = np.random.default_rng(1)
    z = rng.normal(size=(6, 2))
    x = z @ np.asarray(params["W"]).T + np.asarray(params["mu"]) + 0.5 * rng.normal(size=(6, 5))
    x = x.astype(np.float32)
    return oracles.poor_posterior(exact), params, x, oracles.linear_gaussian_log_px(params, x)


def with_flow(name, model, x):
    """The model with flow parameters far from the start."""
    found = BUILD[name](model)
    params = found.init(jax.random.key(0), x[0])
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda a: a + 0.3 * rng.normal(size=a.shape), params["posterior"])
    return found, {**params, "posterior": shaken}


@pytest.mark.statistics
@every
def test_the_bound_is_below_log_px_and_the_weights_average_to_px(name, gaussian):
    """Checked against a log q(z|x) without the log-determinant of the flow."""
    base, _, x, log_px = gaussian
    model, params = with_flow(name, base, x)

    def weights(one, key):
        q = model.encode(params, one)
        z, log_q = q.sample_and_log_prob(key)
        _, without = q.base.sample_and_log_prob(jax.random.clone(key))
        joint = model.decode(params, z).log_prob(one) + model.prior(params).log_prob(z)
        return joint - log_q, joint - without

    def check(log_w):
        log_w = np.asarray(log_w, float)
        assert np.all(log_w.mean(axis=1) < log_px)
        found = special.logsumexp(log_w, axis=1) - np.log(log_w.shape[1])
        np.testing.assert_allclose(found, log_px, atol=0.15)

    keys = jax.random.split(jax.random.key(1), (len(x), 4000))
    log_w, mistaken = jax.jit(jax.vmap(jax.vmap(weights, (None, 0))))(x, keys)
    check(log_w)
    with pytest.raises(AssertionError):
        check(mistaken)


@pytest.mark.statistics
def test_an_inverse_autoregressive_posterior_learns_the_correlation_that_a_diagonal_cannot(
    gaussian,
):
    """The best diagonal Normal misses log p(x) by 1/2 (sum log L_jj + log det S), L = S^-1."""
    base, params, x, log_px = gaussian
    W = np.asarray(params["W"])
    precision = np.eye(2) + W.T @ W / 0.5**2
    best = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    model = iaf_posterior(base, 2, layers=1, hidden=(8,))

    def only_posterior(p):
        return {**jax.lax.stop_gradient(p), "posterior": p["posterior"], "shift": p["shift"]}

    def encode(p, x, c=(), *, key=None):  # the base may move and narrow too, one for all
        q = model.encode(p, x, c)
        own = Normal(q.base.loc + p["shift"][0], q.base.scale * jnp.exp(p["shift"][1]))
        return Transformed(own, q.flow)

    free = model._replace(encode=encode)
    bound = objectives.elbo(free, samples=8)

    def loss(p, key, batch, step):
        return bound(only_posterior(p), key, batch, step)

    start = {**model.init(jax.random.key(0), x[0]), "shift": jnp.zeros((2, 2))}
    init, step = train.make_step(loss, optax.adam(optax.cosine_decay_schedule(2e-2, 500)))
    state = init(jax.random.key(1), start)
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 500, lambda _, s: step(s, Batch(x))[0], s))(
        state
    )
    terms = evaluate.elbo_terms(free, state.params, jax.random.key(2), x, samples=500)
    gap = float(np.mean(log_px - terms["elbo"]))
    assert best > 0.05, "or there is nothing to learn"
    assert gap < 0.5 * best, (gap, best)


def test_the_flow_knows_the_example_and_trains_with_the_encoder():
    model = iaf_posterior(small(), 2, hidden=(6,))
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    params = model.init(jax.random.key(1), x[0])
    assert set(params) == {"encoder", "decoder", "posterior"}
    loss = objectives.elbo(model)

    @jax.jit
    def measured(params, key):
        gradient = jax.grad(lambda p: loss(p, jax.random.clone(key), Batch(x), 0)[0])(params)
        d = draw(model, params, key, x[0])
        return gradient, d.log_q, d.q.log_prob(d.z)

    gradient, own, again = measured(params, jax.random.key(2))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient["posterior"]):
        assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)
    np.testing.assert_allclose(own, again, atol=1e-4)


def small(head=None):
    return autoencoder(
        heads.Normal(2) if head is None else head,
        heads.FixedNormal(3, 1.0),
        Normal(np.zeros(2, np.float32), np.ones(2, np.float32)),
    )


def test_bad_input_is_refused_with_the_fix():
    x, key = np.zeros(3, np.float32), jax.random.key(0)
    with pytest.raises(ValueError, match=r"flow: got size 4, expected codes \(2,\)"):
        planar_posterior(small(), 4).init(key, x)
    twice = planar_posterior(planar_posterior(small(), 2), 2)
    with pytest.raises(ValueError, match=r"a posterior with a flow.*more layers"):
        twice.init(key, x)
    with pytest.raises(TypeError, match=r"got Delta, expected a density.*heads.Normal"):
        planar_posterior(small(heads.Code(2)), 2).init(key, x)
    with pytest.raises(ValueError, match="expected layers >= 1, got 0"):
        iaf_posterior(small(), 2, layers=0)
