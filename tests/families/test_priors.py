"""Learned priors: scipy's densities, log p(x) by quadrature, and what a batch costs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special, stats

from vaejax import Batch, exact, flows, heads, networks, objectives, terms
from vaejax.distributions import Mixture, Normal
from vaejax.families.posteriors import iaf_posterior
from vaejax.families.priors import flow_prior, mixture_prior, pseudo_inputs, vamp_prior
from vaejax.model import autoencoder, draw, generate

K, SIZE, LATENT = 5, 6, 2
X = np.float32(np.random.default_rng(9).random((8, SIZE)) < 0.4)


def base(hidden=()):
    return autoencoder(
        nn.Sequential([networks.MLP(hidden, nn.tanh), heads.Normal(LATENT)]),
        nn.Sequential([networks.MLP(hidden, nn.tanh), heads.Bernoulli(SIZE)]),
        Normal(np.zeros(LATENT, np.float32), np.ones(LATENT, np.float32)),
    )


MODELS = {
    "mixture": mixture_prior(base(), K),
    "vamp": vamp_prior(base(), K, start=X[:K]),
    "flow": flow_prior(base(), flows.coupling(LATENT, layers=2, hidden=(4,))),
}
every = pytest.mark.parametrize("name", list(MODELS))


def normals(shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def parameters():
    """Of every model, away from where they start."""
    return {name: at_random(model) for name, model in MODELS.items()}


def at_random(model):
    shapes = jax.eval_shape(model.init, jax.random.key(1), X[0])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: np.float32(0.4 * rng.normal(size=a.shape)), shapes)


def test_the_density_of_a_vamp_prior_is_the_mean_of_its_posteriors(parameters):
    """Checked against a parenthesis misplaced in the Gaussian: (log s^2 + (z - m)^2) / s^2."""
    model, params = MODELS["vamp"], parameters["vamp"]
    z = normals((4, LATENT))
    u = special.expit(params["prior"]["v"])
    q = jax.jit(jax.vmap(lambda u: model.encode(params, u)))(u)
    loc, scale = np.asarray(q.loc), np.asarray(q.scale)
    apart = z[:, None] - loc[None]
    logs = stats.norm.logpdf(apart, 0, scale).sum(axis=2)
    expected = special.logsumexp(logs, axis=1) - np.log(K)

    def check(log_p):
        np.testing.assert_allclose(log_p, expected, rtol=1e-5)

    found = np.asarray(jax.jit(jax.vmap(lambda z: model.prior(params).log_prob(z)))(z))
    misplaced = -0.5 * (np.log(scale**2) + apart**2) / scale**2 - 0.5 * np.log(2 * np.pi)
    misplaced = special.logsumexp(misplaced.sum(axis=2), axis=1) - np.log(K)
    summed = found + np.log(K)  # the other usual slip: a sum over components instead of a mean
    check(found)
    for mistaken in (misplaced, summed):
        with pytest.raises(AssertionError):
            check(mistaken)


def test_a_mixture_prior_is_scipys_and_with_one_component_a_normal(parameters):
    z = normals((4, LATENT))
    own = jax.tree.map(lambda a: np.asarray(a, float), parameters["mixture"]["prior"])
    scale = np.logaddexp(own["scale"], 0)
    logs = stats.norm.logpdf(z[:, None], own["loc"], scale).sum(axis=2)
    expected = special.logsumexp(logs + special.log_softmax(own["logits"]), axis=1)

    def log_prob(model, params):
        return jax.jit(jax.vmap(lambda z: model.prior(params).log_prob(z)))(z)

    found = log_prob(MODELS["mixture"], parameters["mixture"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    single = mixture_prior(base(), 1)
    params = single.init(jax.random.key(2), X[0])
    expected = stats.norm.logpdf(z, np.asarray(params["prior"]["loc"])[0], 1).sum(axis=1)
    np.testing.assert_allclose(log_prob(single, params), expected, rtol=1e-5)


@pytest.mark.statistics
@every
def test_draws_and_density_of_the_prior_give_one_log_px_and_the_bound_is_below(name, parameters):
    """p(x) = E_p(z)[p(x|z)] by draws of the prior, and by quadrature under its density."""
    model, params = MODELS[name], parameters[name]
    truth = exact.quadrature(model, params, jax.random.key(0), X, spacing=0.15, width=9.0)
    np.testing.assert_allclose(truth.log_px, truth.coarse, atol=1e-3)

    def measured(x, key):
        z = model.prior(params).sample(key)
        d = draw(model, params, jax.random.clone(key), x)
        return model.decode(params, z).log_prob(x), terms.log_weight(d)

    keys = jax.random.split(jax.random.key(1), 4000)
    over_keys = jax.vmap(measured, (None, 0))
    log_p, log_w = jax.jit(jax.vmap(over_keys, (0, None)))(X, keys)
    p = np.exp(np.asarray(log_p, float))
    error = p.std(axis=1) / 4000**0.5
    assert np.all(np.abs(p.mean(axis=1) - np.exp(truth.log_px)) < 4.5 * error)
    assert np.all(log_w.mean(axis=1) < truth.log_px)


@every
def test_training_reaches_the_prior_and_generation_draws_from_it(name, parameters):
    model, params = MODELS[name], parameters[name]
    loss = objectives.elbo(model)

    @jax.jit
    def both(params, key):
        gradient = jax.grad(lambda p: loss(p, jax.random.clone(key), Batch(X), 0)[0])(params)
        return gradient, jax.vmap(partial(generate, model, params))(jax.random.split(key, 200))

    gradient, drawn = both(params, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient["prior"]):
        assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)
    assert drawn.x.shape == (200, SIZE) and len(np.unique(drawn.z[:, 0])) == 200


def test_pseudo_inputs_start_at_the_examples_and_stay_in_the_range():
    model = vamp_prior(base(), K, start=2 * X[:K] - 1, bounds=(-1.0, 1.0))
    params = model.init(jax.random.key(0), X[0])
    v = np.asarray(params["prior"]["v"])
    inputs = jax.jit(lambda v: pseudo_inputs({"prior": {"v": v}}, bounds=(-1.0, 1.0)))
    np.testing.assert_allclose(inputs(v), 2 * X[:K] - 1, atol=0.041)
    assert np.abs(inputs(50.0 * v)).max() <= 1
    noise = np.asarray(vamp_prior(base(), K).init(jax.random.key(0), X[0])["prior"]["v"])
    assert inputs(noise).min() > -0.98 and len(np.unique(noise)) == K * SIZE


def test_the_pseudo_inputs_are_encoded_once_for_a_batch():
    """Counted in floating-point operations: encoded for each of 32 examples, they are 32-fold."""
    plain, components = base(hidden=(64,)), 64
    model = vamp_prior(plain, components)
    params = jax.eval_shape(model.init, jax.random.key(0), X[0])
    x = np.tile(X, (4, 1))
    encodings = components * 2 * sum(w.size for w in networks.kernels(params["encoder"]).values())

    def operations(model):
        loss = objectives.elbo(model)
        program = jax.jit(lambda p, x: loss(p, jax.random.key(1), Batch(x), 0)[0])
        return program.lower(params, x).cost_analysis()["flops"]

    of_plain = operations(plain)

    def check(model):
        assert operations(model) - of_plain < 4 * encodings

    def per_example(params, x, c=(), *, key=None):
        q = model.encode(params, x, c)
        pz = jax.vmap(lambda u: model.encode(params, u + 0 * x))(pseudo_inputs(params))
        return Normal(q.loc + 0 * Mixture(jnp.zeros(components), pz).mean, q.scale)

    check(model)
    with pytest.raises(AssertionError):
        check(model._replace(encode=per_example))


def test_a_flow_posterior_over_a_vamp_prior_is_drawn_and_scored():
    model = iaf_posterior(vamp_prior(base(), K, start=X[:K]), LATENT, hidden=(5,))
    params = at_random(model)
    assert set(params) == {"encoder", "decoder", "prior", "posterior"}
    rate = jax.jit(lambda p, key: terms.rate(draw(model, p, key, X[0])))(params, jax.random.key(1))
    assert np.isfinite(rate)


def test_bad_input_is_refused_with_the_fix():
    key = jax.random.key(0)
    for build in (mixture_prior, vamp_prior):
        with pytest.raises(ValueError, match="expected components >= 1, got 0"):
            build(base(), 0)
    with pytest.raises(ValueError, match=r"start: got shape \(3, 6\), expected 5 examples"):
        vamp_prior(base(), K, start=X[:3])
    with pytest.raises(ValueError, match=r"values in \[0, 255\].*expected \[0, 1\].*data.scale"):
        vamp_prior(base(), K, start=255 * X[:K])
    with pytest.raises(ValueError, match="low < high"):
        vamp_prior(base(), K, bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"start: got shape \(5, 4\).*transform them first"):
        vamp_prior(base(), K, start=X[:K, :4]).init(key, X[0])
    with pytest.raises(ValueError, match=r"flow: got size 3, expected codes \(2,\)"):
        flow_prior(base(), flows.coupling(3)).init(key, X[0])
