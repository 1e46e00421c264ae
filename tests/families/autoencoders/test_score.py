"""The score of a denoising autoencoder against closed forms, and Langevin's known bias.

Gaussian data: the trained reconstruction is mu + S (S + s^2 I)^-1 (x~ - mu). A mixture of Gaussians
in the plane, smoothed, is a mixture again, whose score is known.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vaejax import autoencoders, corruption, distributions, heads, networks, train
from vaejax.families.autoencoders.score import langevin, score
from vaejax.model import Model, autoencoder

MU = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
SCALE = 0.6  # of the noise; the data's standard deviations lie on both sides


def covariance():
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    return (axes * np.array([1.5, 0.8, 0.4, 0.2]) ** 2) @ axes.T


def linear(size=4):
    """An affine autoencoder whose code is as large as x: only the noise forces structure."""
    encoder = nn.Sequential([networks.MLP(()), heads.Code(size)])
    return autoencoder(
        encoder, nn.Sequential([networks.MLP(()), heads.FixedNormal(size, 0.5**0.5)])
    )


def trained(model, x, *, scale, steps, rate, batch_size, clean=None):
    """Parameters after a denoising run along a cosine, as one compiled program."""
    loss = autoencoders.denoising(model, corrupt=corruption.gaussian(scale))
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
    run = train.make_train(loss, adam, steps=steps, batch_size=batch_size, transform=clean)
    params = jax.jit(model.init)(jax.random.key(0), x[0])
    state, history = jax.jit(run)(jax.random.key(1), params, x)
    assert np.isfinite(history["loss"]).all()
    return state.params


@pytest.mark.statistics
def test_on_gaussian_data_the_trained_reconstruction_is_the_closed_form_optimum():
    """r* = mu + S (S + s^2 I)^-1 (x~ - mu), within 1 % of its map and of its values.

    Of values: root mean square of r - r* over that of r* - mu, on fresh noisy points.
    """
    S = covariance()
    root = np.linalg.cholesky(S).astype(np.float32)

    def fresh(key, x):  # of the distribution itself: a stored sample has a covariance of its own
        return MU + root @ jax.random.normal(key, (4,))

    model = linear()
    stored = np.zeros((1000, 4), np.float32)
    sizes = {"steps": 3000, "rate": 1e-2, "batch_size": 500}
    params = trained(model, stored, scale=SCALE, clean=fresh, **sizes)
    A = S @ np.linalg.inv(S + SCALE**2 * np.eye(4))
    rng = np.random.default_rng(1)
    noisy = MU + rng.multivariate_normal(np.zeros(4), S + SCALE**2 * np.eye(4), 2000)
    noisy = noisy.astype(np.float32)

    @jax.jit
    def reconstruct(x):
        return x + SCALE**2 * score(model, params, x, scale=SCALE)

    reconstructed = np.asarray(jax.vmap(reconstruct)(noisy))
    optimum = MU + (noisy - MU) @ A.T
    error = np.sqrt(np.mean((reconstructed - optimum) ** 2) / np.mean((optimum - MU) ** 2))
    learned = np.asarray(jax.jacfwd(reconstruct)(noisy[0]))
    of_map = np.linalg.norm(learned - A) / np.linalg.norm(A)
    print(f"relative error of the values {error:.4f}, of the map {of_map:.4f}")
    assert error <= 0.01
    assert of_map <= 0.01


def check_score(score):
    """At the closed-form optimum (r - x) / s^2 is the gradient of log N(x; mu, S + s^2 I)."""
    S = covariance()
    A = jnp.asarray(S @ np.linalg.inv(S + SCALE**2 * np.eye(4)), jnp.float32)
    model = Model(
        init=lambda key, x, c=(): (),
        prior=lambda params, c=(): None,
        encode=lambda params, x, c=(), *, key=None: distributions.Delta(A @ (x - MU)),
        decode=lambda params, z, c=(), *, key=None: distributions.Normal(z + MU, jnp.ones(())),
    )
    x = MU + np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    found = jax.jit(jax.vmap(lambda x: score(model, (), x, scale=SCALE)))(x)
    expected = -np.linalg.solve(S + SCALE**2 * np.eye(4), (x - MU).T).T
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_score_is_that_of_the_smoothed_density():
    """Checked against the score of the data's own density, and against x - r and 1 / scale."""
    check_score(score)
    S = covariance().astype(np.float32)

    def unsmoothed(model, params, x, *, scale):
        return -jnp.linalg.solve(S, x - MU)

    def downhill(model, params, x, *, scale):
        return -score(model, params, x, scale=scale)

    def by_scale(model, params, x, *, scale):
        return scale * score(model, params, x, scale=scale)

    for mistaken in (unsmoothed, downhill, by_scale):
        with pytest.raises(AssertionError):
            check_score(mistaken)


MEANS = np.array([[0.0, 2.0], [-1.8, -1.0], [1.8, -1.0]], np.float32)
LOGITS = np.log([0.5, 0.3, 0.2]).astype(np.float32)


def mixture(variance):
    scales = jnp.full((3, 2), variance**0.5, jnp.float32)
    return distributions.Mixture(LOGITS, distributions.Normal(MEANS, scales))


@pytest.mark.statistics
def test_on_a_mixture_the_learned_field_points_along_the_true_score_of_the_smoothed_density():
    """Cosine of at least 0.95 in the mean over noisy points, so weighted by their density."""
    scale = 0.5
    layers = partial(networks.MLP, (64,), activation=nn.tanh)
    encoder = nn.Sequential([layers(), heads.Code(2)])
    model = autoencoder(encoder, nn.Sequential([layers(), heads.FixedNormal(2, 0.5**0.5)]))

    def clean(key, x):
        return mixture(0.3**2).sample(key)

    stored = np.zeros((500, 2), np.float32)
    sizes = {"steps": 1000, "rate": 1e-2, "batch_size": 250}
    params = trained(model, stored, scale=scale, clean=clean, **sizes)
    smoothed = mixture(0.3**2 + scale**2)
    sample = jax.jit(lambda key: jax.vmap(smoothed.sample)(jax.random.split(key, 4000)))
    x = sample(jax.random.key(3))
    found = np.asarray(jax.jit(jax.vmap(partial(score, model, params, scale=scale)))(x))
    true = np.asarray(jax.jit(jax.vmap(jax.grad(smoothed.log_prob)))(x))
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(true, axis=1)
    cosine = np.mean(np.sum(found * true, axis=1) / norms)
    error = np.mean(np.sum((found - true) ** 2, axis=1)) / np.mean(np.sum(true**2, axis=1))
    print(f"cosine {cosine:.4f}, relative squared error {error:.4f}")
    assert cosine >= 0.95
    assert error <= 0.1  # of the right length too


def exact_score(x):
    """Of N(mu, diag(1, 4))."""
    return -(x - jnp.array([1.0, -2.0])) / jnp.array([1.0, 4.0])


@partial(jax.jit, static_argnums=(0, 3, 4))
def chains(langevin, key, x, steps, step_size):
    walk = partial(langevin, exact_score, step_size=step_size, steps=steps)
    return jax.vmap(walk)(jax.random.split(key, len(x)), x)


def check_langevin(langevin):
    """Mean and variance within 4 standard errors of v / (1 - step_size / 4v), the biased ones.

    The step is large enough that the data's own variance, and the mean of a walk that has not yet
    arrived, are told apart from it.
    """
    n, step_size = 20_000, 0.8
    found = np.asarray(chains(langevin, jax.random.key(7), jnp.full((n, 2), 4.0), 100, step_size))
    v = np.array([1.0, 4.0])
    biased = v / (1 - step_size / (4 * v))
    assert np.all(np.abs(found.mean(axis=0) - [1, -2]) <= 4 * np.sqrt(biased / n))
    assert np.all(np.abs(found.var(axis=0) / biased - 1) <= 4 * np.sqrt(2 / n))
    assert abs(np.corrcoef(found.T)[0, 1]) <= 4 / np.sqrt(n)


@pytest.mark.statistics
def test_langevin_reaches_a_gaussian_with_the_known_bias_of_its_step():
    """Checked against a drift without its half, noise without its root, and one noise for all."""
    check_langevin(langevin)

    def walk(drift, spread, score, key, x, *, step_size, steps, again=False):
        def step(x, i):
            noise = jax.random.normal(jax.random.fold_in(key, 0 if again else i), x.shape)
            return x + drift * step_size * score(x) + spread(step_size) * noise, None

        return jax.lax.scan(step, x, jnp.arange(steps))[0]

    check_langevin(partial(walk, 0.5, jnp.sqrt))  # the same, written out
    for mistaken in (
        partial(walk, 1.0, jnp.sqrt),
        partial(walk, 0.5, lambda h: h),
        partial(walk, 0.5, jnp.sqrt, again=True),
    ):
        with pytest.raises(AssertionError):
            check_langevin(mistaken)


@pytest.mark.statistics
def test_small_steps_lose_the_bias_and_too_large_ones_diverge():
    """From step_size = 4 v on, v of the narrowest direction, there is no variance to settle in."""
    start = jnp.full((4000, 2), 1.0)
    small = np.asarray(chains(langevin, jax.random.key(1), start, 600, 0.05))
    assert abs(small[:, 0].var() - 1) <= 0.0127 + 4 * np.sqrt(2 / 4000)
    diverged = np.asarray(chains(langevin, jax.random.key(2), start, 100, 4.4))
    assert np.abs(diverged[:, 0]).max() > 1e6 and diverged[:, 1].var() < 100


def test_one_step_is_the_equation_and_chains_are_independent(key):
    x = np.array([0.5, 0.5], np.float32)

    @jax.jit
    def steps(key):
        keys = jax.random.split(key, 200)
        return jax.vmap(lambda k: langevin(exact_score, k, x, step_size=0.2, steps=1))(keys)

    drift = -(x - np.array([1.0, -2.0])) / np.array([1.0, 4.0])
    residual = (np.asarray(steps(key)) - (x + 0.1 * drift)) / 0.2**0.5
    assert len(np.unique(residual)) == residual.size
    assert abs(residual.mean()) <= 4 / np.sqrt(400)
    assert abs(residual.var() - 1) <= 4 * np.sqrt(2 / 400)


def test_bad_input_is_refused(key):
    model = linear()
    params = jax.jit(model.init)(key, MU)
    for scale in (0.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="score: scale.*positive number.*noise in training"):
            score(model, params, MU, scale=scale)
    with pytest.raises(ValueError, match="encode: expected one example"):
        score(model, params, np.stack([MU, MU]), scale=1.0)
    with pytest.raises(ValueError, match=r"score: x: got shape \(1, 4\), expected \(4,\).*vmap"):
        score(model, params, MU[None], scale=1.0)
    walk = partial(langevin, exact_score, jax.random.key(3), jnp.zeros(2))
    with pytest.raises(ValueError, match="steps >= 1, got 0"):
        walk(step_size=0.1, steps=0)
    for step_size in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="langevin: step_size.*positive"):
            walk(step_size=step_size, steps=2)
    with pytest.raises(ValueError, match=r"langevin: score: got shape \(\), expected \(2,\)"):
        langevin(jnp.sum, jax.random.key(4), jnp.zeros(2), step_size=0.1, steps=2)


def test_the_condition_reaches_the_model(key):
    encoder = nn.Sequential([networks.MLP(()), heads.Code(2)])
    decoder = nn.Sequential([networks.MLP(()), heads.FixedNormal(2, 1.0)])
    model = autoencoder(encoder, decoder)
    x, c = np.ones(2, np.float32), np.eye(3, dtype=np.float32)
    params = jax.jit(model.init)(key, x, c[0])
    found = jax.jit(lambda c: score(model, params, x, scale=0.5, c=c))
    first, second = found(c[0]), found(c[1])

    @jax.jit
    def reconstruct(c):
        return model.decode(params, model.encode(params, x, c).mean, c).mean

    expected = (reconstruct(c[1]) - x) / 0.25
    np.testing.assert_allclose(second, expected, rtol=1e-6)
    assert not np.allclose(first, second)


def test_a_walk_keeps_the_type_of_its_start_and_begins_anywhere():
    def ascend(x):
        return -x.astype(jnp.float32)

    walk = jax.jit(partial(langevin, ascend, steps=3))
    key = jax.random.key(0)
    for start, dtype in (
        (np.zeros(2, jnp.bfloat16), jnp.bfloat16),
        (np.zeros(2, int), jnp.float32),
    ):
        end = walk(jax.random.clone(key), start, step_size=0.1)
        assert end.dtype == jnp.dtype(dtype) and np.isfinite(np.asarray(end, float)).all()
    ends = jax.vmap(lambda size: walk(jax.random.clone(key), np.zeros(2, int), step_size=size))
    assert ends(np.array([0.1, 0.2], np.float32)).shape == (2, 2)  # a step may be mapped over
    with pytest.raises(ValueError, match="step_size: got inf"):
        langevin(ascend, key, jnp.zeros(2), step_size=float("inf"), steps=3)
