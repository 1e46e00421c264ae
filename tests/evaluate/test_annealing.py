"""Annealed importance sampling against exact values, in both directions; Hamiltonian moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from tests import oracles
from vaejax import data, evaluate
from vaejax.distributions import Bernoulli, Normal
from vaejax.evaluate.annealing import _run, ais, bdmc, hmc, leapfrog, reverse_ais, sigmoidal
from vaejax.model import Model
from vaejax.types import Batch

MODEL, PARAMS = oracles.linear_gaussian(d=5, latent=2)
CHAINS, N = 16, 24
BETAS = sigmoidal(300)
# As many temperatures, so that nothing is compiled again, and nearly all of them at the end.
POOR_BETAS = np.concatenate([[0.0], np.linspace(0.999, 1.0, 299)])


def simulated(n=N):
    rng = np.random.default_rng(0)
    W, mu = (np.asarray(PARAMS[name], float) for name in ("W", "mu"))
    x = rng.normal(size=(n, 2)) @ W.T + mu + 0.5 * rng.normal(size=(n, 5))
    return x.astype(np.float32)


X = simulated()
EXACT = oracles.linear_gaussian_log_px(PARAMS, X)


def posterior_draws(key, chains=CHAINS):
    keys = jax.random.split(key, (N, chains))
    return _posterior_draws(keys)


@jax.jit
def _posterior_draws(keys):
    each = jax.vmap(lambda x, keys: jax.vmap(MODEL.encode(PARAMS, x).sample)(keys))
    return each(X, keys)


def both_ways(betas, repeats=4):
    """Errors of the two bounds, and log w - log p(x) of every chain, over several keys, in nats."""
    bounds, chains = [], []
    for seed in range(repeats):
        forward_key, draws_key, reverse_key = jax.random.split(jax.random.key(seed), 3)
        lower = ais(MODEL, PARAMS, forward_key, X, temperatures=betas)
        draws = posterior_draws(draws_key)
        upper = reverse_ais(MODEL, PARAMS, reverse_key, X, draws, temperatures=betas)
        bounds.append([lower.log_px - EXACT, upper.log_px - EXACT])
        chains.append([run.log_weights - EXACT[:, None] for run in (lower, upper)])
    return np.array(bounds), np.array(chains)


def mean_and_error(values):
    return values.mean(), values.std(ddof=1) / np.sqrt(values.size)


def test_a_run_that_has_not_converged_prints_no_number():
    n, chains = 5, 16
    log_w = np.random.default_rng(3).normal(size=(n, chains)) * 0.1
    good = _run.Annealed(
        log_px=np.full(n, -7.25),
        error=np.full(n, 0.1),
        ess=np.full(n, 14.0),
        log_weights=log_w,
        acceptance=np.full((n, 3), 0.6),
        step_size=np.ones((n, 3)),
    )
    assert "-7.250 (0.045)" in str(good) and repr(good).startswith("Annealed(log_px=f64[5], ")
    for change, why in [
        ({"error": np.full(n, 0.9), "ess": np.full(n, 1.1)}, "has an ESS of 1.1 of 16"),
        ({"acceptance": np.full((n, 3), 0.02)}, "accepts 0.02 of its moves, give a smaller step"),
        ({"log_weights": log_w[:, :1], "error": np.full(n, np.nan)}, "a single chain shows no"),
    ]:
        said = str(good._replace(**change))
        assert "not converged: " in said and why in said and "-7.250" not in said


@pytest.fixture(scope="module")
def annealed():
    return both_ways(BETAS)


@pytest.mark.statistics
def test_weights_are_unbiased_in_both_directions(annealed):
    """E[w] = p(x) of every forward chain, and E[1/w] = 1/p(x) of every reverse one."""
    forward, reverse = np.moveaxis(annealed[1], 1, 0)
    for ratio in (np.exp(forward), np.exp(-reverse)):
        mean, error = mean_and_error(ratio)
        assert error < 0.1 and abs(mean - 1) < 4 * error


@pytest.mark.statistics
def test_the_exact_value_lies_between_the_bounds(annealed):
    """Interval of the means narrower than 0.1 nats; lower below and upper above within error."""
    lower, upper = (mean_and_error(bound) for bound in np.moveaxis(annealed[0], 1, 0))
    assert lower[0] < 3 * lower[1] and upper[0] > -3 * upper[1]
    assert abs(upper[0] - lower[0]) < 0.1


@pytest.mark.statistics
def test_a_poor_schedule_leaves_the_bounds_apart_on_their_own_sides():
    """By the bound of a single chain: E log w <= log p(x), and the other way round in reverse."""
    _, chains = both_ways(POOR_BETAS, repeats=1)
    lower, upper = (mean_and_error(log_w) for log_w in np.moveaxis(chains, 1, 0))
    assert lower[0] < -1 - 3 * lower[1] and upper[0] > 1 + 3 * upper[1]
    simulated_too = bdmc(MODEL, PARAMS, jax.random.key(1), examples=N, temperatures=POOR_BETAS)
    assert simulated_too.gap.mean() > 0.5 and simulated_too.gap.shape == (N,)


@pytest.mark.parametrize(("chains", "temperatures"), [(3, 4), (1, 2)])
def test_from_the_exact_posterior_every_weight_is_the_exact_value(chains, temperatures):
    """log p(x, z) - log p(z|x) = log p(x) wherever the chains go; no moves with 2 temperatures."""
    settings = {"temperatures": temperatures, "start": "posterior"}
    lower = ais(MODEL, PARAMS, jax.random.key(0), X, chains=chains, **settings)
    draws = posterior_draws(jax.random.key(1), chains)
    upper = reverse_ais(MODEL, PARAMS, jax.random.key(2), X, draws, **settings)
    for run in (lower, upper):
        assert run.acceptance.shape == run.step_size.shape == (N, temperatures - 2)
        np.testing.assert_allclose(run.log_weights, EXACT[:, None] * np.ones(chains), atol=2e-3)
        np.testing.assert_allclose(run.log_px, EXACT, atol=2e-3)
        np.testing.assert_allclose(run.ess, chains, rtol=1e-3)
        assert run.error.max() < 0.05 if chains > 1 else np.isnan(run.error).all()


def curved():
    """z ~ N(0, 1), x|z ~ N(z^2, 0.5^2): a posterior with two modes, its integral and its draws.

    The latent is a matrix of one element, since a latent may have any shape.
    """
    standard = Normal(jnp.zeros((1, 1)), jnp.ones((1, 1)))
    model = Model(
        lambda key, x, c=(): {},
        lambda params, c=(): standard,
        lambda params, x, c=(), *, key=None: Normal(jnp.zeros(2), jnp.ones(2)),
        lambda params, z, c=(), *, key=None: Normal(z[0] ** 2, jnp.full(1, 0.5)),
    )

    def joint(z, x=2.0):
        return stats.norm.pdf(z) * stats.norm.pdf(x, z**2, 0.5)

    grid = np.linspace(-5, 5, 20_001)
    cdf = np.cumsum(joint(grid))
    z = np.interp((np.arange(512) + 0.5) / 512, cdf / cdf[-1], grid).astype(np.float32)
    return model, np.log(integrate.quad(joint, -6, 6)[0]), z.reshape(1, 512, 1, 1)


@pytest.mark.statistics
def test_two_modes_against_quadrature():
    model, exact, draws = curved()
    x = np.array([[2.0]], np.float32)
    lower = ais(model, {}, jax.random.key(0), x, chains=512, temperatures=400)
    upper = reverse_ais(model, {}, jax.random.key(1), x, draws, temperatures=400)
    for run in (lower, upper):
        assert run.error[0] < 0.06
        assert abs(run.log_px[0] - exact) < 4 * run.error[0]
        assert run.ess[0] == pytest.approx(1 / (run.error[0] ** 2 + 1 / 512), rel=1e-3)
    with pytest.raises(ValueError, match="encoder and prior must share z"):
        ais(model, {}, jax.random.key(0), x, start="posterior")


def check_leapfrog(implementation):
    """log|det J| = 0 and reversible, on a curved density, for a coarse step of unequal lengths."""

    def log_f(z):
        return -0.25 * jnp.sum(z**4) - 0.5 * z[0] * z[1] ** 2

    def flow(state):
        z, momentum, gained = implementation(
            log_f, state[:2], state[2:], step=jnp.array([0.3, 0.2]), count=7
        )
        end = jnp.concatenate([z, momentum])
        return end, (end, gained)

    flowing = jax.jit(jax.jacfwd(flow, has_aux=True))
    start = jnp.array([0.7, -0.4, 0.3, 1.1])
    jacobian, (end, gained) = flowing(start)
    _, log_det = np.linalg.slogdet(jacobian)
    assert abs(log_det) < 1e-9
    back = flowing(np.concatenate([end[:2], -end[2:]]))[1][0]
    np.testing.assert_allclose(np.concatenate([back[:2], -back[2:]]), start, atol=1e-9)
    assert np.abs(end - start).max() > 0.1
    assert gained == pytest.approx(float(log_f(end[:2]) - log_f(start[:2])), abs=1e-9)


def test_leapfrog_keeps_volume(x64):
    """Checked against steps that do not keep volume: Euler's, and momenta scaled on the way."""
    check_leapfrog(leapfrog)

    def euler(log_f, z, momentum, *, step, count):
        begin = log_f(z)
        for _ in range(count):  # both from the old state
            z, momentum = z + step * momentum, momentum + step * jax.grad(log_f)(z)
        return z, momentum, log_f(z) - begin

    def tempered(log_f, z, momentum, *, step, count):
        z, momentum, gained = leapfrog(log_f, z, momentum, step=step, count=count)
        return z, 0.9 * momentum, gained

    for mistaken in (euler, tempered):
        with pytest.raises(AssertionError):
            check_leapfrog(mistaken)


def check_leaves_the_density(implementation):
    """Exact draws of a Gaussian with unequal scales have its moments after ten coarse moves."""
    sd = jnp.array([1.0, 0.2])

    def log_f(z):
        return -0.5 * jnp.sum((z / sd) ** 2)

    def chain(key):
        start_key, key = jax.random.split(key)
        move = lambda i, z: implementation(  # noqa: E731
            log_f, jax.random.fold_in(key, i), z, step=1.6, count=3, scale=sd
        )[0]
        return jax.lax.fori_loop(0, 10, move, sd * jax.random.normal(start_key, (2,)))

    z = np.asarray(
        jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 20_000))
    ) / np.asarray(sd)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=4 / np.sqrt(20_000))
    np.testing.assert_allclose((z**2).mean(axis=0), 1, atol=4 * np.sqrt(2 / 20_000))


@pytest.mark.statistics
def test_hamiltonian_moves_leave_the_density_as_it_is():
    """Checked against a move that accepts every proposal, and one that forgets the momenta."""
    check_leaves_the_density(hmc)

    def proposal(log_f, key, z, step, count, scale):
        momentum_key, accept_key = jax.random.split(key)
        momentum = jax.random.normal(momentum_key, z.shape)
        return *leapfrog(log_f, z, momentum, step=step * scale, count=count), accept_key

    def always(log_f, key, z, *, step, count, scale):
        return proposal(log_f, key, z, step, count, scale)[0], 1.0

    def forgetful(log_f, key, z, *, step, count, scale):
        new, _, gained, accept_key = proposal(log_f, key, z, step, count, scale)
        accept = jax.random.uniform(accept_key) < jnp.exp(gained)
        return jnp.where(accept, new, z), gained

    for mistaken in (always, forgetful):
        with pytest.raises(AssertionError):
            check_leaves_the_density(mistaken)


@pytest.mark.statistics
@pytest.mark.parametrize("step_size", [30.0, 0.03])
def test_step_sizes_find_the_target_acceptance(step_size):
    run = ais(MODEL, PARAMS, jax.random.key(0), X, temperatures=BETAS, step_size=step_size)
    assert run.acceptance.shape == run.step_size.shape == (N, 298)
    np.testing.assert_allclose(run.step_size[:, 0], step_size, rtol=1e-6)
    assert abs(run.acceptance[:, 150:].mean() - 0.65) < 0.1
    # The posterior is several times narrower than the prior, and so is the step.
    assert 0.1 < run.step_size[:, -1].mean() < 2.0


# The same shapes in several tests, so that little is compiled.
FEW = {"chains": 1, "temperatures": 22}


def test_frozen_steps_know_nothing_of_the_chains_that_count():
    """Another chain beside the first one changes neither its steps nor its path."""
    one, two = (
        ais(MODEL, PARAMS, jax.random.key(3), X[:2], **(FEW | {"chains": chains}))
        for chains in (1, 2)
    )
    np.testing.assert_array_equal(one.step_size, two.step_size)
    np.testing.assert_allclose(one.log_weights, two.log_weights[:, :1], rtol=1e-5)


def test_an_example_depends_on_the_key_and_its_index_alone():
    run = ais(MODEL, PARAMS, jax.random.key(5), X[:2], **FEW)
    twice = ais(MODEL, PARAMS, jax.random.key(5), X[[0, 0]], **FEW)
    np.testing.assert_allclose(run.log_weights[0], twice.log_weights[0], rtol=1e-5)
    assert len(np.unique(twice.log_weights)) == 2


def test_a_transform_draws_the_image_that_evaluate_sees():
    """With the exact posterior both give the exact value of whatever image they have drawn."""

    def noisy(key, x):
        return x + jax.random.normal(key, x.shape)

    seen = evaluate.log_likelihood(
        MODEL, PARAMS, jax.random.key(6), X, particles=1, transform=noisy
    )
    run = ais(
        MODEL,
        PARAMS,
        jax.random.key(6),
        X,
        chains=1,
        temperatures=2,
        start="posterior",
        transform=noisy,
    )
    assert np.abs(seen.log_px - EXACT).mean() > 1
    np.testing.assert_allclose(run.log_px, seen.log_px, atol=5e-3)


def test_simulated_data_have_their_bounds_in_order_under_conditions_too():
    """x = W z + mu + c + noise: exact posterior as the start, so both bounds are log p(x - c)."""
    model = oracles.shifted_by_condition(MODEL)
    c = 10.0 * np.arange(8, dtype=np.float32)[:, None]
    result = bdmc(
        model,
        PARAMS,
        jax.random.key(0),
        examples=8,
        c=c,
        chains=1,
        temperatures=4,
        start="posterior",
    )
    np.testing.assert_allclose(result.gap, 0, atol=5e-3)
    # Typical values of log p at data of its own: the entropy is that of N(0, W W^T + s^2 I).
    W = np.asarray(PARAMS["W"], float)
    entropy = stats.multivariate_normal(np.zeros(5), W @ W.T + 0.25 * np.eye(5)).entropy()
    assert abs(result.lower.log_px.mean() + entropy) < 4 * np.sqrt(5 / 2 / 8)


@pytest.mark.statistics
def test_double_precision(x64):
    run = ais(MODEL, PARAMS, jax.random.key(0), X[:2], chains=1, temperatures=4)
    assert np.isfinite(run.log_px).all()


def test_schedule_rises_from_0_to_1_with_its_ends_dense():
    b = sigmoidal(101)
    assert b[0] == 0 and b[-1] == 1 and len(b) == 101 and np.all(np.diff(b) > 0)
    expected = (stats.logistic.cdf(4 * (2 * 0.3 - 1)) - stats.logistic.cdf(-4)) / (
        stats.logistic.cdf(4) - stats.logistic.cdf(-4)
    )
    assert b[30] == pytest.approx(expected) and np.diff(b)[0] < 0.2 * np.diff(b)[50]


def test_memory_does_not_grow_with_images():
    model, params = oracles.linear_gaussian(d=500)

    def peak(n):
        some = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), n))
        shared = params, some(6), some()
        own = some(n, 500), (), some(n, 2), keys, some(n, 4, 2), some(n, 4)
        lowered = _run._walks.lower(model, "prior", 2, 10, shared, own)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # Some numbers for each image, of which 500 are its x, 2 its z and 6 its steps.
    assert peak(1000) < peak(20) + 1000 * 4 * 40


def test_wrong_settings_are_refused():
    key = jax.random.key(0)
    for settings, message in [
        ({"chains": 0}, "ais: expected chains >= 1, got 0"),
        ({"temperatures": 1}, "ais: temperatures: got 1, expected 2 or more"),
        ({"temperatures": [0.0, 0.6, 0.5, 1.0]}, "numbers that rise from 0 to 1"),
        ({"temperatures": [0.1, 1.0]}, "numbers that rise from 0 to 1"),
        ({"leapfrog_steps": 0}, "ais: expected leapfrog_steps >= 1, got 0"),
        ({"step_size": 0.0}, "ais: step_size: got 0.0"),
        ({"start": "uniform"}, "ais: start: got 'uniform'"),
        ({"batch_size": 0}, "ais: expected batch_size >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ais(MODEL, PARAMS, key, X, **settings)
    with pytest.raises(ValueError, match="sigmoidal: temperatures: got 1"):
        sigmoidal(1)
    with pytest.raises(ValueError, match="bdmc: expected examples >= 1, got 0"):
        bdmc(MODEL, PARAMS, key, examples=0)


def test_draws_of_another_shape_are_refused():
    draws = np.zeros((N, 3, 2), np.float32)
    for wrong in (draws[:5], draws[:, 0], draws[..., :1], draws[:, :0]):
        with pytest.raises(ValueError, match=f"reverse_ais: posterior: .* n = {N} and latent"):
            reverse_ais(MODEL, PARAMS, jax.random.key(0), X, wrong)
    draws[7, 1] = np.nan
    with pytest.raises(ValueError, match="not finite for example 7"):
        reverse_ais(MODEL, PARAMS, jax.random.key(0), X, draws)


def test_models_that_cannot_be_annealed_are_refused():
    coins = MODEL._replace(prior=lambda params, c=(): Bernoulli(jnp.zeros(2)))
    with pytest.raises(TypeError, match="ais: the prior Bernoulli is discrete"):
        ais(coins, PARAMS, jax.random.key(0), X)
    plain = MODEL._replace(prior=lambda params, c=(): None)
    with pytest.raises(ValueError, match="bdmc: a deterministic autoencoder has no p"):
        bdmc(plain, PARAMS, jax.random.key(1))


def test_chains_that_never_accept_are_an_error():
    with pytest.raises(
        ValueError, match="chains never accept .* step size is .* smaller step_size"
    ):
        ais(MODEL, PARAMS, jax.random.key(0), X[:2], **FEW, step_size=1e6)


def test_data_that_are_not_finite_are_named():
    x = X[:2].copy()
    x[1, 0] = np.nan
    with pytest.raises(ValueError, match="ais: log p.x. is nan for example 1"):
        ais(MODEL, PARAMS, jax.random.key(0), x, **FEW)


def test_each_call_compiles_once():
    before = _run._walks._cache_size()
    for seed in range(3):
        ais(MODEL, PARAMS, jax.random.key(seed), X[:2], chains=1, temperatures=sigmoidal(22))
    assert _run._walks._cache_size() <= before + 1


def test_the_posterior_is_given_by_its_draws(key):
    class GridPosterior:
        z = jnp.zeros((3, 2, 2))

    with pytest.raises(
        TypeError, match=r"reverse_ais: posterior: got GridPosterior.*its draws, .z"
    ):
        reverse_ais(MODEL, PARAMS, key, X[:3], GridPosterior())


@pytest.mark.statistics
def test_stored_images_and_batches_are_taken():
    prior = Normal(jnp.zeros(2), jnp.ones(2))
    model = Model(
        None,
        lambda params, c=(): prior,
        lambda params, x, c=(), *, key=None: prior,
        lambda params, z, c=(), *, key=None: Bernoulli(params + z[0] + jnp.zeros((3, 2))),
    )
    images = Batch(np.full((3, 3, 2), 128, np.uint8))
    options = {"chains": 1, "temperatures": 4, "transform": data.binarize}
    run = ais(model, jnp.zeros(()), jax.random.key(1), images, **options)
    assert run.log_px.shape == (3,) and (run.log_px < 0).all()
