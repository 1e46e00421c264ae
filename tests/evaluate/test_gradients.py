"""Gradient estimators against quadrature and enumeration, and the laboratory that measures them."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import gradients, objectives, terms
from vaejax.distributions import Bernoulli, Normal
from vaejax.model import Model, draw
from vaejax.types import Batch

SAMPLES = 100_000
X = np.array([0.8, -1.1])


@cache
def gaussian_latent():
    """z ~ N(m, 1), x|z ~ N(w sin z + a, s^2), q = N(b x + c, t^2): (model, params)."""
    params = {"encoder": [0.4, 0.3, -0.1], "decoder": [1.3, -0.2, -0.4], "prior": 0.2}
    params = {name: jnp.array(value, jnp.float64) for name, value in params.items()}

    def encode(params, x, c=(), *, key=None):
        slope, shift, log_scale = params["encoder"]
        return Normal(slope * x + shift, jnp.exp(log_scale))

    def decode(params, z, c=(), *, key=None):
        weight, shift, log_scale = params["decoder"]
        return Normal(weight * jnp.sin(z) + shift, jnp.exp(log_scale))

    def prior(params, c=()):
        return Normal(params["prior"], 1.0)

    return Model(None, prior, encode, decode), params


@cache
def binary_latents():
    """Two coins z with learned odds, x|z ~ N(w z + a, 0.6^2), q of two coins: (model, params)."""
    params = {
        "encoder": [[0.5, -0.8], [0.2, 0.4]],
        "decoder": [1.2, -0.7, 0.1],
        "prior": [0.3, -0.5],
    }
    params = {name: jnp.array(value, jnp.float64) for name, value in params.items()}

    def encode(params, x, c=(), *, key=None):
        return Bernoulli(params["encoder"][0] * x + params["encoder"][1])

    def decode(params, z, c=(), *, key=None):
        return Normal(params["decoder"][:2] @ z + params["decoder"][2], 0.6)

    def prior(params, c=()):
        return Bernoulli(params["prior"])

    return Model(None, prior, encode, decode), params


def log_weights_at(model, params, x, z):
    """log w of given codes, and log q."""
    q, pz = model.encode(params, x), model.prior(params)
    log_p = jax.vmap(lambda z: model.decode(params, z).log_prob(x) + pz.log_prob(z))(z)
    log_q = jax.vmap(q.log_prob)(z)
    return log_p - log_q, log_q


def log_mean_exp(log_w):
    return jax.nn.logsumexp(log_w) - np.log(log_w.size)


@cache
def quadrature(objective, particles):
    """Gradient of -E[objective(log w_1..K)] for `gaussian_latent`, the draws' noise on a grid."""
    model, params = gaussian_latent()
    noise = jnp.linspace(-8.5, 8.5, 241)
    p = jnp.exp(-0.5 * noise**2)
    p = p / p.sum()  # spectrally accurate for a smooth integrand that has died out at the ends

    def value(params, x):
        q = model.encode(params, x)
        log_w = log_weights_at(model, params, x, q.loc + q.scale * noise)[0]
        grid = jnp.stack(jnp.meshgrid(*[log_w] * particles, indexing="ij"), -1)
        mass = jnp.prod(jnp.stack(jnp.meshgrid(*[p] * particles, indexing="ij"), -1), -1)
        values = jax.vmap(objective)(grid.reshape(-1, particles))
        return jnp.sum(mass.ravel() * values)

    return exact_gradient(value, params)


@cache
def enumeration(objective, particles):
    """Gradient of -E[objective(log w_1..K)] for `binary_latents`, summed over K-tuples of z."""
    model, params = binary_latents()
    codes = jnp.array(list(itertools.product([0.0, 1.0], repeat=2)))
    tuples = jnp.array(list(itertools.product(range(4), repeat=particles)))

    def value(params, x):
        log_w, log_q = log_weights_at(model, params, x, codes)
        return jnp.sum(jnp.exp(log_q[tuples].sum(1)) * jax.vmap(objective)(log_w[tuples]))

    return exact_gradient(value, params)


def exact_gradient(value, params):
    def loss(params):
        return -jnp.mean(jax.vmap(partial(value, params))(jnp.asarray(X)))

    return gradients.exactly(jax.jit(jax.grad(loss))(params))


def measured(loss, params, key, reference):
    found = gradients.compare(
        {"it": loss},
        params,
        key,
        Batch(jnp.asarray(X)),
        samples=SAMPLES,
        reference=reference,
        chunk=5000,
    )
    return found["it"]


def renyi_half(log_w):
    return 2 * log_mean_exp(0.5 * log_w)


def combined(log_w):
    return 0.3 * jnp.mean(log_w) + 0.7 * log_mean_exp(log_w)


ELBO, IWAE = (jnp.mean, 1), (log_mean_exp, 2)
PATHWISE = {
    "elbo, closed rate": (partial(objectives.elbo, samples=1), ELBO),
    "elbo, sampled rate": (partial(objectives.elbo, rate=terms.sampled_rate), ELBO),
    "stl": (partial(objectives.stl, particles=1), ELBO),
    "iwae": (partial(objectives.iwae, particles=2), IWAE),
    "dreg": (partial(objectives.dreg, particles=2), IWAE),
    "dreg of one": (partial(objectives.dreg, particles=1), ELBO),
    "miwae": (partial(objectives.miwae, outer=3, inner=2), IWAE),
    "ciwae": (partial(objectives.ciwae, particles=2, beta=0.3), (combined, 2)),
    "renyi": (partial(objectives.renyi, alpha=0.5, particles=2), (renyi_half, 2)),
    "vimco": (partial(objectives.vimco, particles=2), IWAE),
}
BASELINES = {
    "none": jnp.zeros_like,
    "a constant": lambda signal: jnp.full_like(signal, -2.0),
}


@pytest.mark.statistics
@pytest.mark.parametrize("name", PATHWISE)
def test_mean_gradient_is_that_of_quadrature(name, x64, key):
    model, params = gaussian_latent()
    build, (objective, particles) = PATHWISE[name]
    found = measured(build(model), params, key, quadrature(objective, particles))
    assert {group: one.worst for group, one in found.items() if one.worst > 4} == {}
    assert found["encoder"].norm > 50 * found["encoder"].bias_error  # there is something to miss


@pytest.mark.statistics
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("latent", ["gaussian", "binary"])
def test_score_function_mean_gradient_is_exact(latent, samples, x64, key):
    model, params = gaussian_latent() if latent == "gaussian" else binary_latents()
    exactly = quadrature if latent == "gaussian" else enumeration
    reference = exactly(*ELBO)
    loss = objectives.score_function(model, samples=samples)
    found = measured(loss, params, key, reference)
    assert {group: one.worst for group, one in found.items() if one.worst > 4} == {}


@pytest.mark.statistics
@pytest.mark.parametrize("name", BASELINES)
def test_score_function_takes_any_baseline_that_does_not_see_its_own_draw(name, x64, key):
    model, params = binary_latents()
    reference = enumeration(*ELBO)
    loss = objectives.score_function(model, samples=2, baseline=BASELINES[name])
    found = measured(loss, params, key, reference)
    assert max(one.worst for one in found.values()) < 4


@pytest.mark.statistics
def test_a_baseline_that_sees_its_own_draw_is_found_out(x64, key):
    model, params = binary_latents()
    reference = enumeration(*ELBO)
    loss = objectives.score_function(model, samples=2, baseline=jnp.copy)
    found = measured(loss, params, key, reference)
    assert found["encoder"].worst > 20 and found["decoder"].worst < 4


@pytest.mark.statistics
def test_vimco_is_exact_for_discrete_latents(x64, key):
    model, params = binary_latents()
    reference = enumeration(*IWAE)
    found = measured(objectives.vimco(model, particles=2), params, key, reference)
    assert max(one.worst for one in found.values()) < 4


@pytest.mark.statistics
def test_leave_one_out_lowers_the_variance(x64, key):
    model, params = binary_latents()
    losses = {
        "none": objectives.score_function(model, samples=4, baseline=jnp.zeros_like),
        "others": objectives.score_function(model, samples=4),
    }
    batch = Batch(jnp.asarray(X))
    found = gradients.compare(losses, params, key, batch, samples=20_000, chunk=5000)
    assert found["others"]["encoder"].variance < 0.5 * found["none"]["encoder"].variance


@pytest.mark.statistics
def test_piwae_gives_each_player_the_exact_gradient_of_its_own_bound(x64, key):
    model, params = gaussian_latent()
    two, one = (quadrature(*objective) for objective in (IWAE, ELBO))
    reference = gradients.exactly({**two.mean, "encoder": one.mean["encoder"]})
    found = measured(objectives.piwae(model, outer=2, inner=1), params, key, reference)
    assert max(one.worst for one in found.values()) < 4


@pytest.mark.statistics
def test_sticking_the_landing_with_several_particles_is_biased_for_q_alone(x64, key):
    model, params = gaussian_latent()
    reference = quadrature(*IWAE)
    found = measured(objectives.stl(model, particles=2), params, key, reference)
    assert found["encoder"].worst > 20
    assert found["decoder"].worst < 4 and found["prior"].worst < 4


@pytest.mark.statistics
def test_the_mean_gradient_at_fixed_samples_is_biased_for_q_alone(x64, key):
    """Checked against "differentiate inside the expectation": the draws move with q too."""
    model, params = gaussian_latent()

    def fixed(*args):
        d = draw(*args)
        z = jax.lax.stop_gradient(d.z)
        return d._replace(z=z, log_q=d.q.log_prob(z))

    loss = objectives.iwae(model, particles=1, draw=fixed)
    found = measured(loss, params, key, quadrature(*ELBO))
    assert found["encoder"].worst > 20
    assert found["decoder"].worst < 4 and found["prior"].worst < 4


def posterior_fit(model, params):
    """Gradient of -E_{p(z|x)}[log q(z|x)] for q's parameters, on a grid of z."""
    z = jnp.linspace(-9, 9, 1001)

    def value(params, x):
        log_w, log_q = log_weights_at(model, jax.lax.stop_gradient(params), x, z)
        q = model.encode(params, x)
        return jnp.sum(jax.nn.softmax(log_w + log_q) * jax.vmap(q.log_prob)(z))

    return exact_gradient(value, params).mean["encoder"]


def dream_fit(model, params):
    """Gradient of -E_{p(x, z)}[log q(z|x)] for q's parameters, on a grid of z and x."""
    z, x = jnp.linspace(-9, 9, 201), jnp.linspace(-8, 8, 201)

    def loss(encoder):
        held = jax.lax.stop_gradient(params)
        log_p = jax.vmap(
            lambda z: model.prior(held).log_prob(z) + jax.vmap(model.decode(held, z).log_prob)(x)
        )(z)
        p = jnp.exp(log_p)
        moving = {**params, "encoder": encoder}
        log_q = jax.vmap(lambda z: jax.vmap(lambda x: model.encode(moving, x).log_prob(z))(x))(z)
        return -jnp.sum(p * log_q) / jnp.sum(p)

    return jax.jit(jax.grad(loss))(params["encoder"])


@pytest.mark.statistics
def test_wake_updates_p_without_bias_and_q_with_one_that_shrinks(x64, key):
    model, params = gaussian_latent()
    bound = quadrature(*IWAE).mean
    towards = gradients.exactly({**bound, "encoder": posterior_fit(model, params)})
    biases = {}
    for particles, one_key in zip((2, 16), jax.random.split(key), strict=True):
        loss = objectives.reweighted_wake_sleep(model, particles=particles, sleep=0.0)
        biases[particles] = measured(loss, params, one_key, towards)
    assert biases[2]["decoder"].worst < 4 and biases[2]["prior"].worst < 4
    assert biases[2]["encoder"].worst > 20
    assert biases[16]["encoder"].bias < 0.5 * biases[2]["encoder"].bias


@pytest.mark.statistics
def test_wake_at_one_particle_teaches_q_nothing(x64, key):
    model, params = gaussian_latent()
    nothing = {**quadrature(*ELBO).mean}
    nothing["encoder"] = jax.tree.map(jnp.zeros_like, params["encoder"])
    loss = objectives.reweighted_wake_sleep(model, particles=1, sleep=0.0)
    found = measured(loss, params, key, gradients.exactly(nothing))
    assert max(one.worst for one in found.values()) < 4


@pytest.mark.statistics
def test_sleep_fits_q_to_dreams_without_bias(x64, key):
    model, params = gaussian_latent()
    bound = quadrature(*ELBO).mean
    reference = gradients.exactly({**bound, "encoder": dream_fit(model, params)})
    loss = objectives.reweighted_wake_sleep(model, particles=1, sleep=1.0)
    found = measured(loss, params, key, reference)
    assert max(one.worst for one in found.values()) < 4


def noisy(offset, scale):
    """A loss whose gradient is N(offset, scale^2) in each coordinate, by construction."""

    def loss(params, key, batch, step):
        noise = scale * jax.random.normal(key, params["a"].shape)
        return jnp.sum(params["a"] * (offset + noise)) + 0 * jnp.sum(params["dead"]), {}

    return loss


def test_moments_are_those_of_numpy_and_do_not_depend_on_the_chunk(x64, key):
    params = {"a": jnp.arange(50.0), "dead": jnp.zeros(3)}
    loss, batch = noisy(1.0, 2.0), Batch(jnp.asarray(X))

    def gradient(index):
        return jax.grad(loss, has_aux=True)(params, jax.random.fold_in(key, index), batch, 0)[0]

    drawn = jax.jit(jax.vmap(gradient))(jnp.arange(23))
    close = partial(np.testing.assert_allclose, rtol=1e-10)
    for chunk in (5, 100):
        found = gradients.moments(
            loss, params, jax.random.clone(key), batch, samples=23, chunk=chunk
        )
        means = jax.tree.map(partial(np.mean, axis=0), drawn)
        variances = jax.tree.map(partial(np.var, axis=0, ddof=1), drawn)
        jax.tree.map(close, (found.mean, found.variance), (means, variances))


def test_the_numbers_are_those_of_a_gradient_with_known_distribution(key):
    params = {"a": jnp.zeros(50), "dead": jnp.zeros(3)}
    losses = {"unbiased": noisy(1.0, 2.0), "biased": noisy(1.5, 2.0)}
    known = gradients.exactly({"a": jnp.ones(50), "dead": jnp.zeros(3)})
    found = gradients.compare(
        losses, params, key, Batch(jnp.zeros(1)), samples=4000, reference=known, chunk=500
    )
    one, other = found["unbiased"]["a"], found["biased"]["a"]
    assert 0.5 < one.bias / one.bias_error < 1.5 and one.worst < 4
    assert other.bias == pytest.approx(0.5 * 50**0.5, rel=0.05) and other.worst > 10
    assert one.bias_error == pytest.approx(2.0 * (50 / 4000) ** 0.5, rel=0.02)
    assert one.variance == pytest.approx(50 * 4.0, rel=0.02)
    assert one.snr == pytest.approx(0.5, rel=0.02)
    assert one.norm_snr == pytest.approx(0.5, rel=0.02)
    assert one.norm == pytest.approx(50**0.5, rel=0.02)
    assert found["unbiased"]["dead"].worst == 0 and np.isnan(found["unbiased"]["dead"].snr)


def test_pure_noise_has_the_floor_for_its_ratio_and_none_as_a_vector(key):
    params = {"a": jnp.zeros(2000), "dead": jnp.zeros(1)}
    batch, losses = Batch(jnp.zeros(1)), {"noise": noisy(0.0, 1.0)}
    found = gradients.compare(losses, params, key, batch, samples=100)["noise"]["a"]
    assert found.snr == pytest.approx(found.snr_floor, rel=0.1)
    assert found.norm_snr < 0.3 * found.snr_floor


def test_the_reference_s_own_error_counts(key):
    params = {"a": jnp.zeros(50), "dead": jnp.zeros(3)}
    batch = Batch(jnp.zeros(1))
    found = gradients.compare(
        {"one": noisy(1.0, 2.0)}, params, key, batch, samples=400, reference_samples=100
    )["one"]["a"]
    assert found.bias_error == pytest.approx(2.0 * (50 / 400 + 50 / 100) ** 0.5, rel=0.1)
    assert found.worst < 4


def test_groups_by_a_prefix_of_the_tree(x64, key):
    model, params = gaussian_latent()
    losses = {"iwae": objectives.iwae(model, particles=2)}
    groups = {"encoder": "phi", "decoder": "theta", "prior": "theta"}
    batch = Batch(jnp.asarray(X))
    run = partial(gradients.compare, losses, params, batch=batch, samples=50)
    by_name, by_prefix = run(key=key), run(key=jax.random.clone(key), groups=groups)
    assert set(by_prefix["iwae"]) == {"theta", "phi"}
    assert by_prefix["iwae"]["phi"] == by_name["iwae"]["encoder"]
    parts = by_name["iwae"]["decoder"].variance + by_name["iwae"]["prior"].variance
    assert by_prefix["iwae"]["theta"].variance == pytest.approx(parts)


def test_bad_input_is_refused(x64, key):
    model, params = gaussian_latent()
    loss, batch = objectives.iwae(model, particles=2), Batch(jnp.asarray(X))
    with pytest.raises(ValueError, match="moments: samples: got 1, expected 2 or more"):
        gradients.moments(loss, params, key, batch, samples=1)
    with pytest.raises(ValueError, match="compare: expected losses >= 1, got 0"):
        gradients.compare({}, params, key, batch, samples=10)
    with pytest.raises(ValueError, match="compare: groups: got .*prefix"):
        gradients.compare(
            {"it": loss},
            params,
            key,
            batch,
            samples=10,
            groups={"encoder": "phi"},
            reference=gradients.exactly(params),
        )
    spoilt = {**params, "prior": jnp.array(jnp.nan)}
    with pytest.raises(ValueError, match=r"moments: gradient.*'decoder'.*NaN or inf"):
        gradients.moments(loss, spoilt, jax.random.clone(key), batch, samples=4)
