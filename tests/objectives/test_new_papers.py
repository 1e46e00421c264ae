"""Four papers that the library does not hold, written as a user would: at most 30 lines each.

The models come first, on the public names alone; then what is particular to each is checked
against closed forms, enumeration and scipy. If one of them gets longer or needs a private name,
the core is at fault. Tolerances were chosen before the numbers were seen.
"""

import ast
import inspect
import io
import textwrap
import tokenize
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import stats

from vaejax import heads
from vaejax.batch import batch_mean, over_batch
from vaejax.distributions import (
    MultivariateNormal,
    Normal,
    kl,
)
from vaejax.evaluate import log_likelihood
from vaejax.model import Model, autoencoder, draw, generate
from vaejax.model.terms import distortion, rate, sampled_rate
from vaejax.networks import MLP
from vaejax.objectives import elbo
from vaejax.train import fit, make_train
from vaejax.types import Batch

# ---------------------------------------------------------------- the user's models


def capacity_vae(model, *, gamma, nats):
    """D + gamma |R - C(step)|, C a schedule in nats (Burgess et al., 2018, arXiv:1804.03599)."""

    def example(params, key, x, c):
        d = draw(model, params, key, x, c)
        return distortion(d), rate(d)

    def loss(params, key, batch, step):
        D, R = batch_mean(over_batch(example, params, key, batch), batch.weight)
        C = nats(step)
        # abs of the mean: single examples may cost more or less than C.
        return D + gamma * abs(R - C), {"distortion": D, "rate": R, "capacity": C}

    return loss


def dip_vae(model, *, diagonal, off_diagonal):
    """D + R + the distance of Cov[E[z|x]] from 1 (DIP-VAE-I, Kumar et al., 2018, 1711.00848)."""

    def example(params, key, x, c):
        d = draw(model, params, key, x, c)
        return distortion(d), rate(d), d.q.mean

    def loss(params, key, batch, step):
        D, R, mu = over_batch(example, params, key, batch)
        D, R = batch_mean((D, R))
        far = jnp.cov(mu, rowvar=False, bias=True) - jnp.eye(mu.shape[1])
        on = jnp.sum(jnp.diag(far) ** 2)
        penalty = diagonal * on + off_diagonal * (jnp.sum(far**2) - on)
        return D + R + penalty, {"distortion": D, "rate": R, "penalty": penalty}

    return loss


def kernels(a, b):
    """The mean over all pairs of 2 n / (2 n + |a_i - b_j|^2), a and b [batch, n]."""
    squares = jnp.sum((a[:, None] - b[None]) ** 2, axis=2)
    return jnp.mean(1 / (1 + squares / (2 * a.shape[1])))


def info_vae(model, *, weight):
    """D + weight MMD^2(q(z), p(z)) (Zhao et al., 2019, arXiv:1706.02262, with alpha = 1)."""

    def example(params, key, x, c):
        draw_key, prior_key = jax.random.split(key)
        d = draw(model, params, draw_key, x, c)
        return distortion(d), d.z, d.pz.sample(prior_key)

    def loss(params, key, batch, step):
        D, z, prior = over_batch(example, params, key, batch)
        mmd = kernels(z, z) + kernels(prior, prior) - 2 * kernels(z, prior)
        return jnp.mean(D) + weight * mmd, {"distortion": jnp.mean(D), "mmd": mmd}

    return loss


def conditional_vae(shape, latent, width):
    """q(z|x, c), p(x|z, c) and a learned p(z|c) (Sohn, Lee and Yan, 2015, NeurIPS 28)."""
    encoder = nn.Sequential([MLP((width,)), heads.Normal(latent)])
    decoder = nn.Sequential([MLP((width,)), heads.Bernoulli(shape)])
    prior = nn.Sequential([MLP((width,)), heads.Normal(latent)])
    return autoencoder(encoder, decoder, prior)


MODELS = {
    "capacity": [capacity_vae],
    "disentangled inferred prior": [dip_vae],
    "information": [kernels, info_vae],
    "conditional": [conditional_vae],
}


# ---------------------------------------------------------------- what a reader has to read


def code_lines(thing):
    """Lines of source without blank lines, comments and docstrings (decorators count)."""
    # Counted by tokens, since ast.unparse would join a statement that is broken over lines.
    source = textwrap.dedent(inspect.getsource(thing))
    doc = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            doc |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {
        line
        for token in tokens
        if token.type not in skip and token.string
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(lines - doc)


def six_lines(a):
    """One.

    Two.
    """
    # A comment, and a blank line.

    def inner(b):
        """Another docstring."""
        return (
            a + b  # three lines, one of them with a comment
        )

    return inner


def test_lines_are_counted_without_blank_lines_comments_and_docstrings():
    assert code_lines(six_lines) == 6


@pytest.mark.parametrize("name", MODELS)
def test_a_new_paper_is_at_most_30_lines(name):
    assert 5 <= sum(map(code_lines, MODELS[name])) <= 30


# ---------------------------------------------------------------- toy data and small models

LATENT, SIZE = 2, 8
STANDARD = Normal(np.zeros(LATENT, np.float32), np.ones(LATENT, np.float32))


def toy_data(key, n=256):
    """x [n, 8] = W z + noise of scale 0.3, from two factors."""
    w_key, z_key, noise_key = jax.random.split(key, 3)
    z = jax.random.normal(z_key, (n, LATENT))
    noise = 0.3 * jax.random.normal(noise_key, (n, SIZE))
    return z @ jax.random.normal(w_key, (LATENT, SIZE)) + noise


def small_vae(prior=STANDARD):
    encoder = nn.Sequential([MLP((16,)), heads.Normal(LATENT)])
    decoder = nn.Sequential([MLP((16,)), heads.FixedNormal(SIZE, 0.3)])
    return autoencoder(encoder, decoder, prior)


def identity_vae(scale):
    """By hand, with no parameters: z = x + scale noise, and x = z + noise."""

    def normal(params, x, c=(), *, key=None):
        return Normal(x, jnp.full(x.shape, scale))

    def prior(params, c=()):
        return STANDARD

    return Model(lambda key, x, c=(): {}, prior, normal, normal)


def run(loss, optimizer, params, data, key, *, steps, batch_size=64):
    """Final parameters and the history of a compiled run; the key is used up."""
    train = jax.jit(make_train(loss, optimizer, steps=steps, batch_size=batch_size))
    state, history = train(key, params, data)
    return state.params, jax.tree.map(np.asarray, history)


# ---------------------------------------------------------------- capacity


def test_capacity_penalises_the_distance_of_the_mean_rate_not_the_mean_distance(key):
    """Checked against the mean of |R_i - C|, which is 1 here where |mean R - C| is 0.

    A rate below the capacity costs as much as one above it: R - C alone would be a beta.
    """
    model = identity_vae(1.0)
    x = jnp.array([[0.0, 0.0], [2.0, 0.0]])  # KL(N(x, 1) || N(0, 1)) = |x|^2 / 2: 0 and 2 nats
    loss = capacity_vae(model, gamma=10.0, nats=optax.linear_schedule(0.0, 2.0, 20))
    compiled = jax.jit(loss)
    for i, (step, expected) in enumerate(((0, 10.0), (5, 5.0), (10, 0.0), (15, 5.0), (20, 10.0))):
        value, metrics = compiled({}, jax.random.fold_in(key, i), Batch(x), step)
        np.testing.assert_allclose(metrics["rate"], 1.0, rtol=1e-6)
        penalty = value - metrics["distortion"]
        np.testing.assert_allclose(penalty, expected, atol=1e-4)


@pytest.mark.statistics
def test_capacity_trains_the_rate_to_the_schedules_end(key):
    data_key, init_key, plain_key, train_key = jax.random.split(key, 4)
    x, model = toy_data(data_key), small_vae()
    params, optimizer = model.init(init_key, x[0]), optax.adam(5e-3)
    nats = optax.linear_schedule(0.0, 2.0, 200)
    _, history = run(
        capacity_vae(model, gamma=30.0, nats=nats), optimizer, params, x, train_key, steps=500
    )
    np.testing.assert_allclose(history["capacity"][[0, 100, 400]], [0, 1, 2], atol=1e-6)
    assert abs(np.mean(history["rate"][-50:]) - 2.0) < 1.0
    assert np.mean(history["distortion"][-50:]) < 0.7 * np.mean(history["distortion"][:5])
    # The same model without the capacity spends far more, so that 2 nats is the schedule's doing.
    _, plain = run(elbo(model), optimizer, params, x, plain_key, steps=500)
    assert np.mean(plain["rate"][-50:]) > 4.0


# ---------------------------------------------------------------- terms of the whole batch


def test_the_covariance_of_the_codes_is_that_of_numpy(key):
    """Checked against centring over the latents, no division by the batch, a scalar everywhere."""
    x = jax.random.normal(key, (64, LATENT)) @ jnp.array([[1.0, 0.8], [0.0, 0.6]]) + 3.0
    loss = dip_vae(identity_vae(0.5), diagonal=2.0, off_diagonal=5.0)
    value, metrics = jax.jit(loss)({}, jax.random.key(1), Batch(x), 0)
    mu = np.asarray(x, np.float64)

    def penalty(covariance):
        far = covariance - np.eye(LATENT)
        return 2.0 * np.sum(np.diag(far) ** 2) + 5.0 * np.sum((far - np.diag(np.diag(far))) ** 2)

    def check(covariance):
        np.testing.assert_allclose(metrics["penalty"], penalty(covariance), rtol=1e-4)

    check(np.cov(mu.T, bias=True))
    np.testing.assert_allclose(
        value, metrics["distortion"] + metrics["rate"] + metrics["penalty"], rtol=1e-6
    )
    within = mu - mu.mean(axis=1, keepdims=True)
    for mistaken in (
        within.T @ within / 64,
        np.cov(mu.T, bias=True) * 64,
        np.cov(mu.T, bias=True) + np.mean(np.cov(mu.T)),
    ):
        with pytest.raises(AssertionError):
            check(mistaken)


def test_the_kernels_mean_is_that_of_all_pairs_and_equal_samples_are_no_distance_apart(key):
    a, b = jax.random.normal(key, (2, 5, 3))
    pairs = [6 / (6 + np.sum((np.asarray(u) - np.asarray(v)) ** 2)) for u in a for v in b]
    np.testing.assert_allclose(jax.jit(kernels)(a, b), np.mean(pairs), rtol=1e-5)
    loss = jax.jit(info_vae(identity_vae(1e-4), weight=1.0))
    near, far = (
        loss({}, jax.random.key(1), Batch(x), 0)[1]["mmd"]
        for x in (jax.random.normal(jax.random.key(2), (1000, LATENT)), jnp.ones((1000, LATENT)))
    )
    assert 0 <= near < 0.01 and far > 0.1


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("objective", "term"),
    [
        (lambda m: dip_vae(m, diagonal=10.0, off_diagonal=10.0), "penalty"),
        (lambda m: info_vae(m, weight=100.0), "mmd"),
    ],
)
def test_a_batch_term_trains_with_the_rest(objective, term, key):
    data_key, init_key, train_key = jax.random.split(key, 3)
    x, model = toy_data(data_key), small_vae()
    params = model.init(init_key, x[0])
    _, history = run(objective(model), optax.adam(5e-3), params, x, train_key, steps=300)
    assert np.mean(history[term][-20:]) < 0.5 * np.mean(history[term][:5])
    assert np.mean(history["distortion"][-20:]) < 0.7 * np.mean(history["distortion"][:5])


# ---------------------------------------------------------------- conditional


@pytest.fixture(scope="module")
def conditional():
    """(model, params, data): 6x6 images whose left or right half is lit, as c says."""
    c_key, x_key, init_key = jax.random.split(jax.random.key(4), 3)
    c = jax.nn.one_hot(jax.random.bernoulli(c_key, 0.5, (256,)).astype(int), 2)
    x = jax.random.bernoulli(x_key, lit(c)).astype(jnp.float32)
    model = conditional_vae((6, 6), LATENT, 16)
    return model, model.init(init_key, x[0], c[0]), Batch(x, c)


def lit(c):
    """P(x = 1 | c) [..., 6, 6]: 0.9 on the half that c [..., 2] names, 0.1 on the other."""
    return 0.1 + 0.8 * jnp.repeat(jnp.repeat(c, 3, -1)[..., None, :], 6, -2)


def test_condition_changes_prior_posterior_and_decode(conditional):
    model, params, data = conditional
    left, right = jnp.eye(2)
    z, x = jnp.array([0.5, -1.0]), data.x[0]
    for function in (
        lambda c: model.prior(params, c).mean,
        lambda c: model.encode(params, x, c).mean,
        lambda c: model.decode(params, z, c).mean,
    ):
        assert np.abs(function(left) - function(right)).max() > 1e-3


@pytest.mark.statistics
def test_conditional_model_trains_and_draws_what_the_condition_names(conditional, key):
    model, params, data = conditional
    fit_key, sample_key = jax.random.split(key)
    # fit is the loop for people: conditions in the Batch reach it like any data.
    fitted = fit(
        elbo(model),
        optax.adam(1e-2),
        params,
        data,
        key=fit_key,
        epochs=60,
        batch_size=64,
        progress=False,
    )
    prior_before, prior_after = params["prior"], fitted.params["prior"]
    moved = optax.tree.norm(optax.tree.sub(prior_after, prior_before))
    assert moved > 1e-2  # p(z|c) is learned
    assert fitted.history["loss"][-1] < 0.8 * fitted.history["loss"][0]
    means = jax.jit(
        jax.vmap(lambda k, c: generate(model, fitted.params, k, c).mean, in_axes=(0, None))
    )
    for c, c_key in zip(jnp.eye(2), jax.random.split(sample_key), strict=True):
        mean = means(jax.random.split(c_key, 200), c)
        # 128 training images of a class: a pixel's frequency alone has an sd of 0.027.
        np.testing.assert_allclose(mean.mean(axis=0), lit(c), atol=0.15)


A, B = np.array([[0.8], [-0.4]], np.float32), np.array([[0.3], [1.0], [-0.6]], np.float32)
W = np.array([[1.0, 0.2], [-0.5, 0.7], [0.3, 0.9]], np.float32)
TAU, SIGMA = 0.7, 0.5


def linear_gaussian():
    """z|c ~ N(A c, tau^2), x|z, c ~ N(W z + B c, sigma^2), and q the exact posterior."""
    covariance = np.linalg.inv(np.eye(2) / TAU**2 + W.T @ W / SIGMA**2)
    factor = np.linalg.cholesky(covariance).astype(np.float32)
    gain = (covariance @ W.T / SIGMA**2).astype(np.float32)

    def prior(params, c=()):
        return Normal(A @ c, jnp.full(2, TAU))

    def encode(params, x, c=(), *, key=None):
        return MultivariateNormal(A @ c + gain @ (x - W @ (A @ c) - B @ c), factor)

    def decode(params, z, c=(), *, key=None):
        return Normal(W @ z + B @ c, jnp.full(3, SIGMA))

    return Model(lambda key, x, c=(): {}, prior, encode, decode)


def test_at_the_exact_posterior_every_draw_of_the_elbo_is_log_px_given_c(key):
    model = linear_gaussian()
    x = jnp.array([[0.5, -1.0, 2.0], [0.0, 0.3, -0.2], [0.5, -1.0, 2.0]])
    c = jnp.array([[1.0], [-0.5], [2.0]])  # the same x twice, under two conditions
    covariance = TAU**2 * W @ W.T + SIGMA**2 * np.eye(3)
    exact = np.array(
        [
            stats.multivariate_normal.logpdf(xi, (W @ A + B) @ ci, covariance)
            for xi, ci in zip(np.asarray(x), np.asarray(c), strict=True)
        ]
    )
    assert abs(exact[0] - exact[2]) > 1.0
    draw_key, likelihood_key, elbo_key = jax.random.split(key, 3)

    def one(params, key, x, c):
        d = draw(model, params, key, x, c)
        return -distortion(d) - sampled_rate(d)

    found = jax.jit(partial(over_batch, one, {}))(draw_key, Batch(x, c))
    np.testing.assert_allclose(found, exact, atol=2e-4)
    log_px, ess = log_likelihood(model, {}, likelihood_key, Batch(x, c), particles=3)
    np.testing.assert_allclose(log_px, exact, atol=2e-4)
    np.testing.assert_allclose(ess, 3.0, atol=1e-2)

    def closed(x, c):
        # E_q of the squared error is that at q's mean plus the trace of its spread W S W^T.
        q = model.encode({}, x, c)
        spread = jnp.sum((W @ q.scale_tril) ** 2) / (2 * SIGMA**2)
        D = spread - model.decode({}, q.mean, c).log_prob(x)
        return -(D + kl(q, model.prior({}, c)))

    np.testing.assert_allclose(jax.jit(jax.vmap(closed))(x, c), exact, atol=2e-4)
    value, _ = jax.jit(elbo(model, rate=sampled_rate))({}, elbo_key, Batch(x, c), 0)
    np.testing.assert_allclose(-value, exact.mean(), atol=2e-4)


# ---------------------------------------------------------------- a network of one's own


class Affine:
    """Written by hand: parameters are a dictionary of arrays, with no collection around them."""

    def init(self, key, x):
        return {"w": jax.random.normal(key, (LATENT, x.size)), "b": jnp.zeros(LATENT)}

    def apply(self, params, x, rngs=None):
        return Normal(params["w"] @ x.ravel() + params["b"], jnp.ones(LATENT))


def test_a_hand_written_network_is_a_module(key):
    init_key, draw_key = jax.random.split(key)
    decoder = nn.Sequential([MLP((4,)), heads.FixedNormal(SIZE, 0.3)])
    model = autoencoder(Affine(), decoder, STANDARD)
    params = model.init(init_key, jnp.ones(SIZE))
    assert set(params["encoder"]) == {"w", "b"}
    expected = params["encoder"]["w"] @ jnp.ones(SIZE)
    np.testing.assert_allclose(draw(model, params, draw_key, jnp.ones(SIZE)).q.loc, expected)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return heads.Normal(LATENT)(nn.BatchNorm(use_running_average=False)(x))


def test_state_outside_the_parameters_is_named(key):
    decoder = nn.Sequential([MLP((4,)), heads.FixedNormal(SIZE, 0.3)])
    model = autoencoder(Normalised(), decoder, STANDARD)
    with pytest.raises(ValueError, match=r"encoder keeps state outside.*batch_stats"):
        model.init(key, jnp.ones(SIZE))


def test_a_condition_left_out_or_batched_is_named(conditional, key):
    model, params, data = conditional
    for call in (model.encode, model.decode):
        with pytest.raises(ValueError, match="with no c"):
            call(params, jnp.zeros(LATENT))
    with pytest.raises(ValueError, match=r"prior: expected one condition.*\(256, 2\).*map"):
        model.prior(params, data.c)
    fixed = autoencoder(
        nn.Sequential([MLP((4,)), heads.Normal(LATENT)]),
        nn.Sequential([MLP((4,)), heads.Bernoulli((6, 6))]),
        STANDARD,
    )
    params = fixed.init(key, data.x[0], data.c[0])
    with pytest.raises(ValueError, match=r"at init, got .* with no c"):
        fixed.encode(params, data.x[0])
