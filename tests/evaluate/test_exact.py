"""Quadrature and enumeration against closed forms, brute force in numpy, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from tests import oracles
from vaejax import distributions, evaluate
from vaejax.evaluate.exact import (
    binary_codes,
    converged_quadrature,
    enumerate_latents,
    gauss_hermite,
    grid_posterior,
    local_quadrature,
    quadrature,
)
from vaejax.model import Model
from vaejax.types import Batch

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 5)).astype(np.float32)
LINEAR, PARAMS = oracles.linear_gaussian(d=5, latent=2)
EXACT = oracles.linear_gaussian_log_px(PARAMS, X)
EVENT = (2, 3, 1)
WEIGHT, BIAS = RNG.normal(size=(2, 6)) * 2, RNG.normal(size=6)
COINS = RNG.integers(0, 2, size=(7, *EVENT)).astype(np.float32)
FINE = {"spacing": 0.1, "width": 6.0}


def small(likelihood, prior=None) -> Model:
    """A model of images with two latents; its decoder is one layer with a tanh."""
    if prior is None:
        prior = distributions.Normal(jnp.zeros(2), jnp.ones(2))

    def decode(params, z, c=(), *, key=None):
        shift = jnp.zeros(2) if isinstance(c, tuple) else c
        return likelihood((jnp.tanh(z + shift) @ params + jnp.asarray(BIAS, float)).reshape(EVENT))

    return Model(lambda *_: None, lambda params, c=(): prior, lambda *_: None, decode)


BERNOULLI = small(distributions.Bernoulli)
W = jnp.asarray(WEIGHT, float)


def coins_joint(spacing, width, x, shift=0.0):
    """The grid in numpy, double precision: z [points, 2] and log p(x, z) + log cell [points]."""
    number = round(2 * width / spacing)
    nodes = (np.arange(number) - (number - 1) / 2) * spacing
    z = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    logits = np.tanh(z + shift) @ WEIGHT + BIAS
    log_px = stats.bernoulli(special.expit(logits)).logpmf(x.reshape(-1)).sum(axis=1)
    return z, log_px + stats.norm.logpdf(z).sum(axis=1) + 2 * np.log(spacing)


@pytest.mark.parametrize(
    ("latent", "options"),
    [(1, {"spacing": 0.1}), (2, FINE), (3, {"spacing": 0.2, "width": 5.0})],
)
def test_a_grid_gives_the_closed_form_in_one_two_and_three_dimensions(latent, options):
    # Posteriors wider than twice the widest spacing, so that even the coarse sum has converged.
    model, params = oracles.linear_gaussian(latent, d=5, latent=latent, scale=2.0)
    widths = 2 / np.sqrt(np.linalg.eigvalsh(params["W"].T @ params["W"]) + 4)
    assert widths.min() > 2 * options["spacing"]
    result = quadrature(model, params, jax.random.key(0), X, **options)
    exact = oracles.linear_gaussian_log_px(params, X, scale=2.0)
    np.testing.assert_allclose(result.log_px, exact, atol=2e-4)
    np.testing.assert_allclose(result.coarse, exact, atol=2e-4)
    assert result.edge.max() < 1e-4 and result.points.min() > 3
    q = jax.jit(jax.vmap(lambda x: model.encode(params, x)))(X)
    np.testing.assert_allclose(result.mean, q.loc, atol=1e-4)
    covariance = q.scale_tril @ jnp.swapaxes(q.scale_tril, 1, 2)
    variance = jnp.diagonal(covariance, axis1=1, axis2=2)
    np.testing.assert_allclose(result.deviation, jnp.sqrt(variance), rtol=2e-3)


def test_every_number_equals_a_brute_force_sum_over_the_grid():
    """Of 7 images in batches of 3 and 256 points in chunks of 50, so that both ends are ragged.

    Checked against dropping the images, or the points, of the last incomplete chunk.
    """
    result = quadrature(
        BERNOULLI, W, jax.random.key(0), COINS, spacing=0.25, width=2.0, chunk=50, batch_size=3
    )
    for i, x in enumerate(COINS):
        z, log_joint = coins_joint(0.25, 2.0, x)
        log_px = special.logsumexp(log_joint)
        p = np.exp(log_joint - log_px)
        index = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"), -1)
        even = (index % 2 == 0).all(-1).reshape(-1)
        edge = ((index == 0) | (index == 15)).any(-1).reshape(-1)
        np.testing.assert_allclose(result.log_px[i], log_px, atol=1e-5)
        coarse = special.logsumexp(log_joint[even]) + np.log(4)
        np.testing.assert_allclose(result.coarse[i], coarse, atol=1e-5)
        np.testing.assert_allclose(result.edge[i], p[edge].sum(), rtol=1e-4)
        np.testing.assert_allclose(result.points[i], 1 / np.sum(p**2), rtol=1e-4)
        np.testing.assert_allclose(result.mean[i], p @ z, atol=1e-5)
        spread = np.sqrt(p @ z**2 - (p @ z) ** 2)
        np.testing.assert_allclose(result.deviation[i], spread, atol=1e-5)


def check_large_logits(log_coin):
    """log p(x) of a coin with logits of +-1e4: 0 where it is certain, -1e4 where it is wrong."""
    logits = jnp.asarray([1e4, -1e4, 1e4, -1e4])
    x = jnp.asarray([1.0, 0.0, 0.0, 1.0])
    measured = [
        float(log_coin(logit[None], one[None])) for logit, one in zip(logits, x, strict=True)
    ]
    np.testing.assert_allclose(measured, [0, 0, -1e4, -1e4], atol=1e-2)


def test_a_coin_that_is_certain_has_a_finite_likelihood():
    """Checked against log(-expm1(log_sigmoid)), which is NaN at label 1 and a large logit."""

    def decode(params, z, c=(), *, key=None):
        return distributions.Bernoulli(params + 0 * z)

    prior = distributions.Normal(jnp.zeros(1), jnp.ones(1))
    model = Model(lambda *_: None, lambda *_: prior, lambda *_: None, decode)

    def ours(logits, x):
        return quadrature(model, logits, jax.random.key(0), x[None], spacing=0.1).log_px[0]

    def mistaken(logits, x):
        log_p = jax.nn.log_sigmoid(logits)
        return jnp.sum(x * log_p + (1 - x) * jnp.log(-jnp.expm1(log_p)))

    check_large_logits(ours)
    with pytest.raises(AssertionError):
        check_large_logits(mistaken)


def test_halving_the_spacing_converges_and_the_signs_say_when_it_has_not():
    result = converged_quadrature(LINEAR, PARAMS, jax.random.key(0), X, spacing=1.6, tolerance=1e-4)
    np.testing.assert_allclose(result.log_px, EXACT, atol=2e-4)
    assert result.spacing < 0.8
    wide = quadrature(LINEAR, PARAMS, jax.random.key(0), X, spacing=1.6)
    assert np.abs(wide.log_px - EXACT).max() > 0.1
    assert np.abs(wide.log_px - wide.coarse).max() > 0.1 and wide.points.min() < 1.5
    narrow = quadrature(LINEAR, PARAMS, jax.random.key(0), X, spacing=0.1, width=0.5)
    assert np.all((narrow.edge > 0.01) | (np.abs(narrow.log_px - EXACT) < 0.1))
    assert narrow.edge.max() > 0.1
    with pytest.raises(ValueError, match="on the edge, expected at most 0.001; widen it"):
        converged_quadrature(LINEAR, PARAMS, jax.random.key(0), X, spacing=0.1, width=0.5)


def test_a_grid_of_its_own_settles_a_narrow_posterior():
    """Posteriors a fifth of the spacing wide: the local grid is exact, the global one is not."""
    model, params = oracles.linear_gaussian(d=20, latent=2, scale=0.1)
    z = RNG.normal(size=(5, 2))
    mean = z @ np.asarray(params["W"]).T + np.asarray(params["mu"])
    x = np.asarray(mean + 0.1 * RNG.normal(size=(5, 20)), np.float32)
    exact = oracles.linear_gaussian_log_px(params, x, scale=0.1)
    rough = quadrature(model, params, jax.random.key(0), x, spacing=0.1, width=5.0)
    assert np.abs(rough.log_px - exact).max() > 0.1
    local = local_quadrature(model, params, jax.random.key(0), x, rough, points=120)
    np.testing.assert_allclose(local.log_px, exact, atol=1e-3)
    np.testing.assert_allclose(local.coarse, exact, atol=1e-3)
    with pytest.raises(ValueError, match=r"around: got .5, 2., expected means .4, 2."):
        local_quadrature(model, params, jax.random.key(0), x[:4], rough)


def test_gauss_hermite_is_exact_for_wide_posteriors_and_shows_when_it_is_not():
    wide, params = oracles.linear_gaussian(d=5, latent=2, scale=2.0)
    result = gauss_hermite(wide, params, jax.random.key(0), X, points=30)
    exact = oracles.linear_gaussian_log_px(params, X, scale=2.0)
    np.testing.assert_allclose(result.log_px, exact, atol=1e-4)
    np.testing.assert_allclose(result.coarse, exact, atol=1e-2)
    narrow, params = oracles.linear_gaussian(d=20, latent=2, scale=0.05)
    x = X @ RNG.normal(size=(5, 20)).astype(np.float32)
    poor = gauss_hermite(narrow, params, jax.random.key(0), x, points=20)
    assert np.abs(poor.log_px - oracles.linear_gaussian_log_px(params, x, scale=0.05)).min() > 1
    assert poor.points.max() < 1.5 and np.abs(poor.log_px - poor.coarse).min() > 1


@pytest.mark.parametrize(
    "prior",
    [
        distributions.Normal(jnp.array([0.5, -1.0]), jnp.array([1.5, 0.4])),
        distributions.MultivariateNormal(
            jnp.array([0.5, -1.0]), jnp.array([[1.2, 0], [-0.8, 0.5]])
        ),
    ],
)
def test_gauss_hermite_follows_the_prior(prior):
    model = small(distributions.Bernoulli, prior)
    grid = quadrature(model, W, jax.random.key(0), COINS, spacing=0.1, width=9.0)
    np.testing.assert_allclose(
        gauss_hermite(model, W, jax.random.key(0), COINS, points=60).log_px, grid.log_px, atol=2e-3
    )


@pytest.mark.parametrize(
    ("likelihood", "x"),
    [
        (lambda v: distributions.Normal(v, jnp.exp(0.1 * v)), COINS + 0.3),
        (lambda v: distributions.Normal(v, 0.7), COINS + 0.3),
        (lambda v: distributions.Laplace(v, jnp.array([[[0.5], [0.6], [0.7]]])), COINS + 0.3),
        (distributions.ContinuousBernoulli, 0.1 + 0.7 * COINS),
        (lambda v: distributions.DiscretizedLogistic(v, jnp.asarray(0.2), levels=4), COINS),
        (lambda v: distributions.Categorical(jnp.stack([v, -v], -1)), COINS.astype(int)),
    ],
)
def test_every_likelihood_is_summed_as_its_own_log_prob(likelihood, x):
    """Against the sum of joint densities at every grid point, one pair at a time."""
    model = small(likelihood)
    result = quadrature(model, W, jax.random.key(0), x[:3], spacing=1.0, width=2.0)
    nodes = np.array([-1.5, -0.5, 0.5, 1.5])
    z = jnp.asarray(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2), float)
    pz = model.prior(W)

    @jax.jit
    def one(x):
        return jax.vmap(lambda z: pz.log_prob(z) + model.decode(W, z).log_prob(x))(z)

    for i in range(3):
        joint = one(jnp.asarray(x[i]))
        np.testing.assert_allclose(result.log_px[i], special.logsumexp(joint), rtol=1e-5)


@pytest.mark.statistics
def test_draws_from_the_grid_have_the_moments_of_the_exact_posterior(key):
    draws = 4000
    result = grid_posterior(LINEAR, PARAMS, key, X, draws=draws, **FINE)
    q = jax.jit(jax.vmap(lambda x: LINEAR.encode(PARAMS, x)))(X)
    covariance = np.asarray(q.scale_tril @ jnp.swapaxes(q.scale_tril, 1, 2))
    np.testing.assert_allclose(result.mean, q.loc, atol=1e-4)
    np.testing.assert_allclose(result.covariance, covariance, atol=1e-4)
    np.testing.assert_allclose(result.log_px, EXACT, atol=2e-4)
    assert result.z.shape == (7, draws, 2)
    # Standardised by the exact posterior, the draws are standard normal.
    e = np.stack(
        [
            np.linalg.solve(L, (z - np.asarray(m)).T)
            for L, z, m in zip(q.scale_tril, result.z, q.loc, strict=True)
        ]
    )
    moments = np.einsum("nid,njd->nij", e, e) / draws
    assert np.abs(e.mean(axis=-1)).max() < 4.5 / np.sqrt(draws)
    assert np.abs(moments - np.eye(2)).max() < 4.5 * np.sqrt(2 / draws)


def test_draws_depend_on_the_key_and_the_index_alone(key):
    options = {"draws": 3, "spacing": 0.3, "width": 4.0}
    clone = jax.random.clone
    one = grid_posterior(BERNOULLI, W, key, COINS, **options).z
    other = grid_posterior(BERNOULLI, W, clone(key), COINS, **options, batch_size=3, chunk=50).z
    assert np.mean(one == other) > 0.9  # apart from rounding at the border of two cells
    twice = grid_posterior(BERNOULLI, W, clone(key), COINS[[0, 0, 2, 3, 4, 5, 6]], **options).z
    np.testing.assert_array_equal(np.delete(one, 1, axis=0), np.delete(twice, 1, axis=0))
    assert len(np.unique(np.concatenate(one), axis=0)) > 15
    assert np.any(twice[0] != twice[1])


@pytest.mark.statistics
def test_the_frequencies_of_draws_are_the_posterior_of_the_cells(key):
    """A chi-squared test over a 4 x 4 grid, in chunks that do not divide it."""
    draws = 20000
    options = {"spacing": 1.0, "width": 2.0, "chunk": 5}
    z = grid_posterior(BERNOULLI, W, key, COINS[:2], draws=draws, **options).z
    for drawn, x in zip(z, COINS, strict=False):
        points, log_joint = coins_joint(1.0, 2.0, x)
        expected = draws * special.softmax(log_joint)
        found = np.array([np.all(drawn == point, axis=1).sum() for point in points])
        kept = expected > 5
        assert found.sum() == draws
        lumped = (
            np.append(found[kept], found[~kept].sum()),
            np.append(expected[kept], expected[~kept].sum() + 1e-9),
        )
        assert (
            np.sum((lumped[0] - lumped[1]) ** 2 / lumped[1]) < stats.chi2(kept.sum()).isf(1e-4) + 1
        )


def test_conditions_are_each_examples_own():
    c = RNG.normal(size=(7, 2)).astype(np.float32)
    result = quadrature(BERNOULLI, W, jax.random.key(0), Batch(COINS, c), spacing=0.25, width=3.0)
    for i, x in enumerate(COINS):
        exact = special.logsumexp(coins_joint(0.25, 3.0, x, c[i])[1])
        np.testing.assert_allclose(result.log_px[i], exact, atol=1e-5)


def test_stored_data_are_transformed_as_log_likelihood_does(key):
    """With the exact posterior one particle gives log p(x): image by image the same number."""

    def noisy(key, x):
        return x + jax.random.normal(key, x.shape)

    estimate = evaluate.log_likelihood(LINEAR, PARAMS, key, X, particles=1, transform=noisy)
    options = {"transform": noisy, **FINE}
    clone = jax.random.clone(key)
    result = quadrature(LINEAR, PARAMS, clone, X, batch_size=3, **options)
    np.testing.assert_allclose(result.log_px, estimate.log_px, rtol=1e-4)
    assert np.abs(result.log_px - EXACT).min() > 1e-3
    drawn = grid_posterior(LINEAR, PARAMS, jax.random.clone(key), X, draws=1, **options)
    np.testing.assert_allclose(drawn.log_px, estimate.log_px, rtol=1e-4)
    with pytest.raises(TypeError, match="quadrature: key: got None, expected one PRNG key"):
        quadrature(LINEAR, PARAMS, None, X, transform=noisy)


def coin_model(n: int) -> Model:
    """n binary latents with unequal prior probabilities, six pixels."""
    logits = jnp.linspace(-1.0, 1.0, n)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(n, 6)), float)

    def decode(params, z, c=(), *, key=None):
        return distributions.Bernoulli((z @ weight).reshape(EVENT))

    prior = distributions.Bernoulli(logits)
    return Model(lambda *_: None, lambda *_: prior, lambda *_: None, decode)


def test_enumeration_sums_to_one_over_images_and_obeys_bayes():
    model = coin_model(3)
    every = np.asarray(binary_codes(6)).reshape(64, *EVENT)
    result = enumerate_latents(
        model, {}, jax.random.key(0), every, binary_codes(3), batch_size=20, chunk=3
    )
    assert np.exp(result.log_px.astype(float)).sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(result.posterior.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(result.prior_mass, 1, atol=1e-5)
    # The posterior averaged over the model's own images is the prior.
    pz = np.exp(jax.vmap(model.prior().log_prob)(binary_codes(3)))
    np.testing.assert_allclose(np.exp(result.log_px) @ result.posterior, pz, atol=1e-5)
    for i, v in [(5, 2), (63, 7)]:
        z = binary_codes(3)[v]
        joint = model.prior().log_prob(z) + model.decode({}, z).log_prob(every[i])
        found = np.log(result.posterior[i, v]) + result.log_px[i]
        assert found == pytest.approx(float(joint), abs=1e-4)


def test_enumeration_of_a_mixture_of_gaussians():
    """A Categorical latent: log p(x) is the mixture's density; integers as values."""
    loc = RNG.normal(size=(4, 5))

    def decode(params, z, c=(), *, key=None):
        return distributions.Normal(jnp.asarray(loc, float)[z], 0.8)

    prior = distributions.Categorical(jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4])))
    model = Model(lambda *_: None, lambda *_: prior, lambda *_: None, decode)
    result = enumerate_latents(model, {}, jax.random.key(0), X, jnp.arange(4))
    parts = stats.norm(loc, 0.8).logpdf(X[:, None]).sum(-1) + np.log([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(result.log_px, special.logsumexp(parts, axis=1), rtol=1e-5)
    np.testing.assert_allclose(result.posterior, special.softmax(parts, axis=1), atol=1e-5)


def test_values_left_out_or_given_twice_are_noticed():
    model, codes = coin_model(3), binary_codes(3)
    some = enumerate_latents(model, {}, jax.random.key(0), COINS, codes[:-1])
    whole = enumerate_latents(model, {}, jax.random.key(0), COINS, codes)
    assert np.all(some.log_px < whole.log_px)
    left_out = float(jnp.exp(model.prior().log_prob(codes[-1])))
    np.testing.assert_allclose(some.prior_mass, 1 - left_out, atol=1e-5)
    with pytest.raises(ValueError, match="prior mass of 1.* expected at most 1; give each once"):
        enumerate_latents(model, {}, jax.random.key(0), COINS, jnp.concatenate([codes, codes[:1]]))


def test_binary_codes_count_up():
    np.testing.assert_array_equal(binary_codes(2), [[0, 0], [0, 1], [1, 0], [1, 1]])
    values = binary_codes(10).astype(int) @ 2 ** np.arange(10)[::-1]
    np.testing.assert_array_equal(values, np.arange(1024))
    for n in (0, 25):
        with pytest.raises(ValueError, match=f"binary_codes: n: got {n}"):
            binary_codes(n)


def with_prior(shape) -> Model:
    prior = distributions.Normal(jnp.zeros(shape), jnp.ones(shape))
    return LINEAR._replace(prior=lambda params, c=(): prior)


def test_what_no_grid_can_hold_is_refused_in_words():
    with pytest.raises(ValueError, match=r"latent: got shape .4,., expected .1,., .2,. or .3,."):
        quadrature(with_prior(4), PARAMS, jax.random.key(0), X)
    with pytest.raises(ValueError, match="evaluate.log_likelihood"):
        gauss_hermite(with_prior((2, 2)), PARAMS, jax.random.key(0), X, points=3)
    with pytest.raises(ValueError, match=r"600\^3 = 2.2e\+08 points, .* take spacing=0.0259"):
        quadrature(with_prior(3), PARAMS, jax.random.key(0), X)
    with pytest.raises(ValueError, match="take points=464"):
        gauss_hermite(with_prior(3), PARAMS, jax.random.key(0), X, points=500)
    with pytest.raises(ValueError, match="0 < spacing <= width"):
        quadrature(LINEAR, PARAMS, jax.random.key(0), X, spacing=0.0)
    with pytest.raises(ValueError, match="no prior"):
        quadrature(LINEAR._replace(prior=lambda *_: None), PARAMS, jax.random.key(0), X)
    with pytest.raises(ValueError, match="draws >= 1"):
        grid_posterior(LINEAR, PARAMS, jax.random.key(0), X, draws=0)
    with pytest.raises(ValueError, match="points: got 1"):
        gauss_hermite(LINEAR, PARAMS, jax.random.key(0), X, points=1)
    with pytest.raises(ValueError, match="tolerance: got 0"):
        converged_quadrature(LINEAR, PARAMS, jax.random.key(0), X, tolerance=0)


def test_priors_of_the_wrong_kind_and_data_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="use enumerate_latents"):
        quadrature(coin_model(2), {}, jax.random.key(0), COINS)
    with pytest.raises(TypeError, match="use quadrature"):
        enumerate_latents(BERNOULLI, W, jax.random.key(0), COINS, binary_codes(2))
    laplace = small(distributions.Bernoulli, distributions.Laplace(jnp.zeros(2), jnp.ones(2)))
    with pytest.raises(TypeError, match="prior: got Laplace, expected a Gaussian"):
        gauss_hermite(laplace, W, jax.random.key(0), COINS, points=4)
    with pytest.raises(ValueError, match=r"got examples .6,., expected .2, 3, 1."):
        quadrature(BERNOULLI, W, jax.random.key(0), COINS.reshape(7, 6), spacing=1.0)
    with pytest.raises(ValueError, match="log p.x. is -inf for example 2"):
        outside = np.where(np.arange(7)[:, None, None, None] == 2, 2.0, COINS)
        quadrature(BERNOULLI, W, jax.random.key(0), outside, spacing=1.0)
    with pytest.raises(ValueError, match="log p.x. is nan for example 1"):
        missing = np.where(np.arange(7)[:, None, None, None] == 1, np.nan, COINS)
        quadrature(BERNOULLI, W, jax.random.key(0), missing, spacing=1.0)


def test_a_grid_that_misses_the_posterior_prints_no_number():
    """Posteriors of deviation about 0.2: a spacing of 1, a width of 0.2, and a grid that does."""
    truth = f"{EXACT.mean():.3f} ("
    for spacing, width, why in [
        (1.0, 6.0, "a single point holds the posterior"),
        (0.05, 0.2, "lies on the edge"),
        (0.1, 6.0, ""),
    ]:
        found = quadrature(LINEAR, PARAMS, jax.random.key(0), X, spacing=spacing, width=width)
        assert found.converged == (not why)
        assert why in str(found) and ("not converged: " in str(found)) == bool(why)
        assert (truth in str(found)) == (not why)
    with pytest.raises(ValueError, match=r"values: got values of shape .3,., expected .2,., as of"):
        coins = coin_model(2)
        enumerate_latents(coins, {}, jax.random.key(0), COINS, binary_codes(3))
