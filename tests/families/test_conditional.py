"""Conditional models against a linear-Gaussian one in closed form; completion by enumeration."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special, stats

from vaejax import conditional, corruption, evaluate, heads, networks, objectives, terms
from vaejax.distributions import Bernoulli, Categorical, Mixture, MultivariateNormal, Normal
from vaejax.model import Model, autoencoder, draw, generate
from vaejax.types import Batch

RNG = np.random.default_rng(0)
D, LATENT, CLASSES, S = 4, 2, 3, 0.6
X, Y = RNG.normal(size=(6, D)), np.array([0, 1, 2, 2, 0, 1])


def linear_conditional():
    """`z|c ~ N(A c, L L^T)`, `x|z, c ~ N(W z + B c, s^2 I)`, exact posterior: (model, params)."""
    shapes = {"A": (LATENT, CLASSES), "W": (D, LATENT), "B": (D, CLASSES)}
    params = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in shapes.items()}
    params["L"] = jnp.asarray([[0.8, 0.0], [0.5, 1.3]])

    def prior(params, c=()):
        return MultivariateNormal(params["A"] @ c, params["L"])

    def encode(params, x, c=(), *, key=None):
        precision = jnp.linalg.inv(params["L"] @ params["L"].T)
        covariance = jnp.linalg.inv(precision + params["W"].T @ params["W"] / S**2)
        shift = params["W"].T @ (x - params["B"] @ c) / S**2
        loc = covariance @ (precision @ params["A"] @ c + shift)
        return MultivariateNormal(loc, jnp.linalg.cholesky(covariance))

    def decode(params, z, c=(), *, key=None):
        return Normal(params["W"] @ z + params["B"] @ c, jnp.asarray(S))

    return Model(lambda key, x, c=(): params, prior, encode, decode), params


def exact_log_px(params, x, y):
    """log p(x|c) = log N(x; (W A + B) c, W L L^T W^T + s^2 I) per row, nats."""
    A, W, B, L = (np.asarray(params[name]) for name in "AWBL")
    covariance = W @ L @ L.T @ W.T + S**2 * np.eye(D)
    means = (W @ A + B).T[y]
    return np.array(
        [stats.multivariate_normal(m, covariance).logpdf(v) for m, v in zip(means, x, strict=True)]
    )


def check_log_px(alter):
    """Every draw of the bound, and `log_likelihood`, against the closed form of log p(x|c)."""
    model, params = linear_conditional()
    model = alter(model)
    c = np.eye(CLASSES)[Y]
    keys = jax.random.split(jax.random.key(1), (len(X), 5))

    def weight(key, x, c):
        return terms.log_weight(draw(model, params, key, x, c))

    exact = exact_log_px(params, X, Y)
    found = jax.jit(jax.vmap(jax.vmap(weight, (0, None, None))))(keys, X, c)
    np.testing.assert_allclose(found, np.repeat(exact[:, None], 5, 1), atol=1e-9, rtol=0)
    likelihood = evaluate.log_likelihood(
        model, params, jax.random.key(2), Batch(X, c=c), particles=3
    )
    np.testing.assert_allclose(likelihood.log_px, exact, atol=1e-9, rtol=0)


def test_log_px_given_c_under_a_learned_prior(x64):
    """Checked against a bound that takes N(0, I) for the prior p(z|c) that the model has."""
    check_log_px(lambda model: model)
    standard = Normal(jnp.zeros(LATENT), jnp.ones(LATENT))
    with pytest.raises(AssertionError):
        check_log_px(lambda model: model._replace(prior=lambda params, c=(): standard))


def check_prior_gradient(alter):
    """For A the gradient of the loss is the mean over examples of -S^-1 (m(x) - A c) c^T."""
    model, params = linear_conditional()
    fixed = jax.lax.stop_gradient(params)
    held = model._replace(encode=lambda _, x, c=(), *, key=None: model.encode(fixed, x, c))
    c = np.eye(CLASSES)[Y]
    loss = objectives.elbo(alter(held))
    batch = Batch(X, c=c)
    grads = jax.jit(jax.grad(lambda p: loss(p, jax.random.key(0), batch, 0)[0]))(params)
    precision = np.linalg.inv(np.asarray(params["L"] @ params["L"].T))
    means = np.asarray(jax.jit(jax.vmap(lambda x, c: model.encode(params, x, c).loc))(X, c))
    expected = np.zeros((LATENT, CLASSES))
    for m, one in zip(means, c, strict=True):
        expected -= np.outer(precision @ (m - np.asarray(params["A"]) @ one), one) / len(X)
    np.testing.assert_allclose(grads["A"], expected, atol=1e-9, rtol=0)


def test_the_gradient_of_the_rate_reaches_the_prior(x64):
    """Checked against a prior that is held fixed in the KL."""
    check_prior_gradient(lambda model: model)

    def stopped(model):
        return model._replace(prior=lambda p, c=(): jax.lax.stop_gradient(model.prior(p, c)))

    with pytest.raises(AssertionError):
        check_prior_gradient(stopped)


def test_one_hot_rows_and_what_is_no_class():
    rows = conditional.one_hot(np.array([[0, 2]], np.uint8), 3)
    np.testing.assert_array_equal(rows, [[[1, 0, 0], [0, 0, 1]]])
    for y, index in ([[0, 3]], "0, 1"), ([1, -1], "1"):
        with pytest.raises(ValueError, match=rf"one_hot: y: got label -?\d at index {index}, exp"):
            conditional.one_hot(np.array(y), 3)
    with pytest.raises(ValueError, match="got label 5, expected 0 to 2"):
        conditional.one_hot(5, 3)
    with pytest.raises(TypeError, match="integer labels; convert them"):
        conditional.one_hot(np.array([0.0, 1.0]), 3)
    with pytest.raises(ValueError, match="classes >= 1"):
        conditional.one_hot(np.array([0]), 0)
    traced = jax.jit(lambda y: conditional.one_hot(y, 3))(jnp.array([1, 3]))
    assert np.isfinite(traced[0]).all() and np.isnan(traced[1]).all()


IMAGE = (2, 2, 1)
GREY = RNG.random((5, *IMAGE)).astype(np.float32)


def test_conditions_are_made_from_each_example_anew_at_each_draw():
    def loss(params, key, batch, step):
        return jnp.zeros(()), {"x": batch.x, "known_x": batch.c[0], "known": batch.c[1]}

    hide = conditional.observed(corruption.masking(0.5))
    made = jax.jit(conditional.conditioned(loss, hide))
    seen = [made((), jax.random.key(i), Batch(GREY), 0)[1] for i in range(2)]
    seen = jax.tree.map(np.asarray, seen)
    for one in seen:
        assert set(np.unique(one["known"])) == {0, 1}
        np.testing.assert_array_equal(one["known_x"], one["known"] * one["x"])
        np.testing.assert_array_equal(one["x"], GREY)
    masks = seen[0]["known"]
    assert (masks != seen[1]["known"]).any() and (masks != masks[:1]).any()
    with pytest.raises(ValueError, match="conditioned: batch.c: got .*leave c out"):
        made((), jax.random.key(0), Batch(GREY, c=GREY), 0)


def test_what_does_not_erase_is_no_mask():
    """Noise, or softened pixels, would else pass as a mask of numbers between 0 and 1."""
    condition = jax.jit(conditional.observed(corruption.gaussian(0.1)))
    seen, known = condition(jax.random.key(0), GREY[0])
    assert np.isnan(seen).all() and np.isnan(known).all()


def enumerated():
    return np.float32(list(itertools.product((0, 1), repeat=4))).reshape(-1, *IMAGE)


def check_completed(log_prob):
    """Over all images that agree with what is known it sums to 1, and is the product of hidden."""
    logits = np.float32(RNG.normal(size=IMAGE))
    x, known = np.zeros(IMAGE, np.float32), np.ones(IMAGE, np.float32)
    x[0], known[0, 0], known[1, 1] = 1, 0, 0
    px = conditional.Completed(Bernoulli(logits), x, known)
    found = np.asarray(jax.jit(jax.vmap(lambda one: log_prob(px, one)))(enumerated()))
    assert float(np.exp(found).sum()) == pytest.approx(1, abs=1e-6)
    agree = np.all((known == 0) | (enumerated() == x), axis=(1, 2, 3))
    assert np.isneginf(found[~agree]).all() and agree.sum() == 4
    p = special.expit(logits)[[0, 1], [0, 1], 0]
    hidden = enumerated()[agree][:, [0, 1], [0, 1], 0]
    expected = np.log(np.where(hidden == 1, p, 1 - p)).sum(axis=1)
    np.testing.assert_allclose(found[agree], expected, atol=1e-6)


def test_completed_is_the_distribution_of_what_is_hidden():
    """Checked against scoring the known entries too, which are given."""
    check_completed(lambda px, x: px.log_prob(x))
    with pytest.raises(AssertionError):
        check_completed(lambda px, x: px.px.log_prob(x))


def test_completed_keeps_what_is_known():
    x, known = GREY[0], np.float32([[[1], [0]], [[0], [1]]])
    px = conditional.Completed(Normal(np.full(IMAGE, 5, np.float32), np.float32(0.1)), x, known)
    hole = np.where(np.arange(4).reshape(IMAGE) == 0, np.nan, x)

    @jax.jit
    def measured(key):
        return px.sample(key), px.mean, px.log_prob(x), px.log_prob(hole)

    sample, mean, log_p, of_hole = (np.asarray(one) for one in measured(jax.random.key(0)))
    for filled in (sample, mean):
        np.testing.assert_array_equal(filled[known == 1], x[known == 1])
        assert (filled[known == 0] > 4).all()
    assert px.event_shape == IMAGE and not px.discrete
    expected = stats.norm(5, 0.1).logpdf(x[known == 0]).sum()
    assert float(log_p) == pytest.approx(expected, rel=1e-5)
    assert np.isnan(of_hole)
    with pytest.raises(ValueError, match=r"Completed.log_prob: x: got \(5, 2, 2, 1\)"):
        px.log_prob(GREY)
    with pytest.raises(ValueError, match="an entry for every entry of x, channels included"):
        conditional.Completed(px.px, x, known[..., 0]).log_prob(x)
    pair = Normal(np.zeros((2, 3)), np.ones((2, 3)))
    for other in (
        Categorical(np.zeros((*IMAGE, 3))),
        Categorical(np.zeros((2, 5))),
        Mixture(np.zeros(2), pair),
    ):
        x, known = np.zeros(other.event_shape), np.ones(other.event_shape)
        with pytest.raises(TypeError, match="independent entries"):
            conditional.Completed(other, x, known).log_prob(x)


@pytest.fixture(scope="module")
def completing():
    decoder = conditional.Completing(nn.Sequential([networks.MLP(()), heads.Bernoulli(IMAGE)]))
    encoder, prior = (nn.Sequential([networks.MLP(()), heads.Normal(2)]) for _ in range(2))
    model = autoencoder(encoder, decoder, prior)
    hide = jax.jit(conditional.observed(corruption.erased_block(1)))
    c = hide(jax.random.key(0), GREY[0])
    return model, model.init(jax.random.key(1), GREY[0], c)


def test_several_completions_of_one_image(completing):
    model, params = completing
    known = np.array([[[True], [False]], [[False], [True]]])
    x = np.where(known, [[[1.0], [np.nan]], [[np.nan], [0.0]]], np.nan).astype(np.float32)
    complete = jax.jit(lambda key: conditional.complete(model, params, key, x, known, draws=16))
    found = jax.tree.map(np.asarray, complete(jax.random.key(0)))
    assert found.x.shape == found.mean.shape == (16, *IMAGE) and found.z.shape == (16, 2)
    for filled in (found.x, found.mean):
        np.testing.assert_array_equal(filled[:, known], np.tile(x[known], (16, 1)))
        assert np.isfinite(filled).all()
    assert found.mean[:, ~known].std(axis=0).min() > 0  # the latents tell them apart
    assert set(np.unique(found.x[:, ~known])) == {0, 1}


def test_masks_and_conditions_that_complete_nothing(completing):
    model, params = completing
    key, x = jax.random.key(0), GREY[0]  # nothing comes to be drawn
    with pytest.raises(ValueError, match=r"complete: known: got \(2, 2\), expected the shape of x"):
        conditional.complete(model, params, key, x, jnp.ones((2, 2)), draws=1)
    with pytest.raises(ValueError, match="expected 0 and 1 alone; .*known = probability > 0.5"):
        conditional.complete(model, params, key, x, jnp.full(IMAGE, 0.3), draws=1)
    with pytest.raises(ValueError, match="draws >= 1"):
        conditional.complete(model, params, key, x, jnp.ones(IMAGE), draws=0)
    with pytest.raises(ValueError, match="Completing: c: got .*conditional.observed"):
        model.init(key, x, jnp.ones(3))


@pytest.mark.parametrize("learned", [False, True])
def test_a_condition_forgotten_or_of_another_shape(learned):
    gaussian = [networks.MLP((4,)), heads.Normal(2)]
    prior = nn.Sequential(gaussian) if learned else Normal(np.zeros(2), np.ones(2))
    decoder = nn.Sequential([networks.MLP((4,)), heads.Bernoulli(IMAGE)])
    model = autoencoder(nn.Sequential(gaussian), decoder, prior)
    keys = iter(jax.random.split(jax.random.key(0), 8))
    params = jax.eval_shape(model.init, next(keys), GREY[0], np.zeros(3, np.float32))
    loss = objectives.elbo(model)
    with pytest.raises(ValueError, match=r"condition c: got the class number .*one_hot"):
        jax.eval_shape(loss, params, next(keys), Batch(GREY, c=np.arange(5)), 0)
    for wrong in ((), np.arange(5, dtype=np.float32), np.ones((5, 4), np.float32)):
        with pytest.raises(ValueError, match=r"encode: .* a conditional model needs the c"):
            jax.eval_shape(loss, params, next(keys), Batch(GREY, c=wrong), 0)
    with pytest.raises(ValueError, match="condition" if learned else "conditional model needs"):
        jax.eval_shape(partial(generate, model), params, next(keys))
    if learned:
        message = "prior: c: got none, expected a condition"
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.prior, params)
        with pytest.raises(ValueError, match=message):
            model.init(next(keys), GREY[0])
        with pytest.raises(ValueError, match=r"prior: .*got \(4,\); map a batch"):
            jax.eval_shape(model.prior, params, np.ones(4, np.float32))
