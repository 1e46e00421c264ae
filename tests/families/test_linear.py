"""The linear-Gaussian model against scipy, its own ELBO, and the published optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import oracles
from vaejax import data, evaluate
from vaejax.families.linear import linear_gaussian, linear_gaussian_log_px, ppca
from vaejax.model import draw
from vaejax.model.terms import distortion, rate, sampled_rate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)) @ RNG.normal(size=(6, 6)) + 3.0


def log_px_of(params, x):
    return jax.jit(linear_gaussian_log_px)(params, x)


def check_log_px(log_px, sizes):
    """log N(x; loc, W W^T + s^2 I) per row, 0.7 for s."""
    for size, latent in sizes:
        rng = np.random.default_rng(latent)
        W, loc = rng.normal(size=(size, latent)), rng.normal(size=size)
        params = {"W": W, "loc": loc, "log_scale": np.log(0.7)}
        exact = stats.multivariate_normal(loc, W @ W.T + 0.49 * np.eye(size)).logpdf(X[:, :size])
        found = jax.jit(log_px)(params, X[:, :size])
        np.testing.assert_allclose(found, exact, atol=1e-9, rtol=0)


def test_log_px_is_the_gaussian_density(x64):
    """For fewer and for more latents than dimensions.

    Checked against a misplaced parenthesis in the Gaussian log-density, and a lost log det.
    """
    check_log_px(linear_gaussian_log_px, [(6, 2), (6, 1), (3, 5)])

    def misplaced(params, x):
        W, s2 = params["W"], jnp.exp(2 * params["log_scale"])
        S = W @ W.T + s2 * jnp.eye(len(W))
        r = x - params["loc"][None]
        squares = jnp.sum(r @ jnp.linalg.inv(S) * r, axis=1)
        return -0.5 * (len(W) * jnp.log(2 * jnp.pi) + jnp.linalg.slogdet(S)[1]) + squares

    def no_prior_part(params, x):
        W = params["W"]
        return linear_gaussian_log_px(params, x) + len(W.T) * params["log_scale"]

    for mistaken in (misplaced, no_prior_part):
        with pytest.raises(AssertionError):
            check_log_px(mistaken, [(6, 2)])


def test_init_draws_the_weights_and_takes_the_scale(key):
    params = jax.jit(linear_gaussian(6, 400, scale=0.7).init)(key, jnp.zeros(6))
    assert float(np.var(params["W"])) == pytest.approx(1 / 400, rel=4 * (2 / 2400) ** 0.5)
    assert np.all(params["loc"] == 0)
    assert float(params["log_scale"]) == pytest.approx(np.log(0.7))


def test_every_draw_of_the_bound_equals_log_px_and_so_does_the_bound_in_the_mean(x64):
    model = linear_gaussian(6, 2, scale=0.3)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(6))
    exact = np.asarray(log_px_of(params, X))

    def bound(key, x):
        d = draw(model, params, key, x)
        return -distortion(d) - sampled_rate(d), -distortion(d) - rate(d)

    @jax.jit
    def bounds(key, x):
        keys = jax.random.split(key, 2000)
        return jax.vmap(jax.vmap(bound, (0, None)), (None, 0))(keys, x)

    single, closed = map(np.asarray, bounds(jax.random.key(1), X))
    np.testing.assert_allclose(single, np.tile(exact[:, None], 2000), atol=1e-8)
    error = closed.std(axis=1) / np.sqrt(2000)
    assert np.all(np.abs(closed.mean(axis=1) - exact) < 4.5 * error)


def test_the_optimum_has_the_closed_form_likelihood_and_no_neighbour_beats_it(x64):
    params = jax.tree.map(np.asarray, ppca(X, 2))
    mean = jax.jit(jax.value_and_grad(lambda p: linear_gaussian_log_px(p, X).mean()))
    value, gradient = mean(params)
    assert float(value) == pytest.approx(oracles.ppca_log_likelihood(X, 2), abs=1e-10)
    assert max(float(np.abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-9
    rng = np.random.default_rng(0)
    for _ in range(5):
        near = jax.tree.map(lambda v: v + 0.05 * rng.normal(size=v.shape), params)
        assert mean(near)[0] < value
    columns = params["W"].T @ params["W"]
    np.testing.assert_allclose(columns, np.diag(np.diagonal(columns)), atol=1e-9)


def test_more_dimensions_than_examples(x64):
    """The Gram matrix gives what the covariance gives; thousands of dimensions take no time."""
    wide = RNG.normal(size=(12, 30)) * np.linspace(3, 0.1, 30)
    mean = np.mean(log_px_of(ppca(wide, 3), wide))
    assert mean == pytest.approx(oracles.ppca_log_likelihood(wide, 3), abs=1e-9)
    wide = RNG.normal(size=(12, 5000))
    log_px = log_px_of(ppca(wide, 3), wide)
    assert log_px.shape == (12,) and np.isfinite(log_px).all()


def test_single_precision_and_the_library_evaluation_agree_with_it():
    model, params = linear_gaussian(6, 2), ppca(X, 2)
    x = X.astype(np.float32)
    exact = log_px_of(params, x)
    measured = evaluate.log_likelihood(model, params, jax.random.key(0), x, particles=1)
    np.testing.assert_allclose(measured.log_px, exact, atol=2e-4)
    assert np.mean(exact) == pytest.approx(oracles.ppca_log_likelihood(X, 2), abs=2e-4)


def test_bad_input_is_refused_in_words():
    with pytest.raises(ValueError, match="ppca: latent: got 6, expected 1 to 5"):
        ppca(X, 6)
    with pytest.raises(ValueError, match="leaves no variance unexplained"):
        ppca(np.outer(np.arange(9.0), np.ones(4)), 1)
    with pytest.raises(ValueError, match="flatten images"):
        ppca(np.zeros((9, 4, 4)), 1)
    with pytest.raises(ValueError, match="not finite"):
        ppca(np.full((9, 4), np.nan), 1)
    with pytest.raises(ValueError, match="linear_gaussian_log_px: data: got .3, 5."):
        linear_gaussian_log_px(ppca(X, 2), X[:3, :5])
    with pytest.raises(ValueError, match="latent >= 1"):
        linear_gaussian(3, 0)
    with pytest.raises(ValueError, match="scale: got 0"):
        linear_gaussian(3, 2, scale=0)


@pytest.mark.statistics
def test_published_likelihood_of_mnist(mnist_prepared):
    """507.905 nats per training image with 50 components, pixels in [0, 1]."""
    x = data.load("mnist", "train").x.reshape(60000, -1) / np.float32(255)
    params = ppca(x, 50)
    means = [np.mean(log_px_of(params, part)) for part in np.split(x, 10)]
    assert np.mean(means) == pytest.approx(507.905, abs=0.01)
