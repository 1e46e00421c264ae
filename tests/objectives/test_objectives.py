"""Bounds against models whose log p(x) is known; weights, samples, schedules, scale, mistakes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests import oracles
from tests.conftest import optimised
from vaejax import distributions, heads, networks, objectives, terms
from vaejax.batch import over_examples
from vaejax.distributions import Normal
from vaejax.evaluate import mean_loss
from vaejax.model import Model, autoencoder, draw
from vaejax.objectives import elbo
from vaejax.train import make_train
from vaejax.types import Batch


def compiled(model, **options):
    return jax.jit(elbo(model, **options))


def draws_of_elbo(model, params, key, x, rate):
    d = draw(model, params, key, x)
    return -terms.distortion(d) - rate(d)


def test_every_draw_equals_log_px_at_the_exact_posterior(x64, key):
    model, params = oracles.linear_gaussian()
    x = np.random.default_rng(1).normal(size=(20, 5))
    bound = jax.vmap(partial(draws_of_elbo, model, params, rate=terms.sampled_rate))
    for draw_key in jax.random.split(key, 3):
        values = bound(jax.random.split(draw_key, 20), x)
        np.testing.assert_allclose(values, oracles.linear_gaussian_log_px(params, x), atol=1e-9)


def test_closed_and_sampled_rate_agree_in_the_mean_and_lie_below_log_px(x64, key):
    model, params = oracles.linear_gaussian()
    model = oracles.poor_posterior(model)
    x = jnp.asarray(np.random.default_rng(1).normal(size=5))
    keys = jax.random.split(key, 20_000)
    closed, sampled = (
        jax.vmap(lambda k, rate=rate: draws_of_elbo(model, params, k, x, rate))(
            jax.random.clone(keys)
        )
        for rate in (terms.rate, terms.sampled_rate)
    )
    error = jnp.std(closed - sampled) / jnp.sqrt(len(keys))
    assert abs(jnp.mean(closed - sampled)) < 5 * error
    assert jnp.mean(closed) < oracles.linear_gaussian_log_px(params, x)


def test_trained_linear_vae_reaches_the_closed_form_of_ppca(x64, key):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)) * np.linspace(2, 0.2, 8) + 1.0
    encoder, decoder = heads.Normal(3), heads.SharedNormal(8)
    model = autoencoder(encoder, decoder, Normal(jnp.zeros(3), jnp.ones(3)))
    init_key, train_key, test_key = jax.random.split(key, 3)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(init_key, jnp.asarray(x[0])))
    loss = elbo(model, samples=2)
    rate = optax.cosine_decay_schedule(0.05, 15_000)
    train = make_train(loss, optax.adam(rate), steps=15_000, batch_size=300)
    state, _ = optimised(train, train_key, params, jnp.asarray(x))
    # At the optimum the sampled rate leaves no variance: the estimate is as good as exact.
    bound = elbo(model, samples=500, rate=terms.sampled_rate)
    reached = mean_loss(bound, state.params, test_key, x, batch_size=300)
    exact = oracles.ppca_log_likelihood(x, 3)
    assert abs(reached["elbo"] - exact) < 1e-3
    W = state.params["decoder"]["params"]["loc"]["kernel"]
    gram = np.asarray(W @ W.T)
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 0.02 * np.diag(gram).max()


@pytest.fixture(scope="module")
def small():
    model = autoencoder(
        nn.Sequential([networks.MLP((8,)), heads.Normal(2)]),
        nn.Sequential([networks.MLP((8,)), heads.Bernoulli((3, 2))]),
        Normal(jnp.zeros(2), jnp.ones(2)),
    )
    return model, model.init(jax.random.key(1), jnp.zeros((3, 2)))


def images(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2, (n, 3, 2)), jnp.float32)


def test_loss_is_distortion_plus_beta_times_rate_and_elbo_ignores_beta(small, key):
    model, params = small
    batch = Batch(images(6))
    value, metrics = compiled(model, beta=4.0)(params, key, batch, 0)
    plain, plain_metrics = compiled(model)(params, jax.random.clone(key), batch, 0)
    np.testing.assert_allclose(value, metrics["distortion"] + 4 * metrics["rate"], rtol=1e-6)
    np.testing.assert_allclose(plain, -plain_metrics["elbo"], rtol=1e-6)
    np.testing.assert_allclose(metrics["elbo"], plain_metrics["elbo"], rtol=1e-6)


def test_beta_may_be_a_schedule_of_the_step(small, key):
    model, params = small
    loss = compiled(model, beta=optax.linear_schedule(0.0, 1.0, 10))
    betas = [loss(params, key, Batch(images(2)), step)[1]["beta"] for step in (0, 5, 20)]
    np.testing.assert_allclose(betas, [0.0, 0.5, 1.0])


def test_several_samples_lower_the_variance_and_keep_the_mean(small, key):
    model, params = small
    batch = Batch(images(1))
    one, many = (
        jax.jit(jax.vmap(lambda k, s=s: elbo(model, samples=s)(params, k, batch, 0)[0]))(keys)
        for s, keys in zip((1, 16), jax.random.split(key, (2, 2000)), strict=True)
    )
    ratio = jnp.var(one) / jnp.var(many)
    assert 12 < ratio < 21  # 16 up to sampling error
    assert abs(jnp.mean(one) - jnp.mean(many)) < 5 * jnp.std(one) / jnp.sqrt(2000.0)


def test_tiling_the_image_doubles_the_distortion(key):
    """Checked against a mean over pixels beside a sum over latents."""

    def of_size(n):
        d = heads.FixedNormal((n,), 1.0)
        model = autoencoder(heads.Normal(2), d, Normal(jnp.zeros(2), jnp.ones(2)))
        params = model.init(jax.random.key(3), jnp.zeros(n))
        zeros = jax.tree.map(jnp.zeros_like, params["decoder"])
        return compiled(model)({**params, "decoder": zeros}, key, Batch(jnp.ones((4, n))), 0)[1]

    np.testing.assert_allclose(of_size(12)["distortion"], 2 * of_size(6)["distortion"], rtol=1e-6)


def test_weights_mask_examples_and_their_order_is_the_only_thing_keys_depend_on(small, key):
    model, params = small
    x = images(5)
    loss = compiled(model)
    three, _ = loss(params, key, Batch(x[:3]), 0)
    spoilt = x.at[3:].set(jnp.nan)
    masked, metrics = loss(params, key, Batch(spoilt, weight=jnp.array([1.0, 1, 1, 0, 0])), 0)
    np.testing.assert_allclose(masked, three, rtol=1e-6)
    assert all(jnp.isfinite(value) for value in metrics.values())


def test_masked_examples_leave_no_trace_in_the_gradient(small, key):
    model, params = small
    x = images(5)
    gradient = jax.jit(jax.grad(elbo(model), has_aux=True))
    three, _ = gradient(params, key, Batch(x[:3]), 0)
    spoilt = x.at[3:].set(jnp.nan)
    weight = jnp.array([1.0, 1, 1, 0, 0])
    masked, _ = gradient(params, jax.random.clone(key), Batch(spoilt, weight=weight), 0)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), masked, three)


def test_rows_get_different_noise(small, key):
    """Checked against libraries whose batched samples give every row the same noise."""
    model, params = small
    x = jnp.zeros((4, 3, 2))
    z = jax.vmap(lambda k, one: draw(model, params, k, one).z)(jax.random.split(key, 4), x)
    assert len(np.unique(np.asarray(z)[:, 0])) == 4


def test_bad_numbers_of_samples_are_refused(small):
    with pytest.raises(ValueError, match="elbo: expected samples >= 1, got 0"):
        elbo(small[0], samples=0)


def test_a_deterministic_autoencoder_has_no_rate(key):
    model = autoencoder(heads.Code(2), heads.FixedNormal(3, 1.0))
    init_key, draw_key = jax.random.split(key)
    params = model.init(init_key, jnp.zeros(3))
    with pytest.raises(ValueError, match="deterministic autoencoder has no prior"):
        terms.rate(draw(model, params, draw_key, jnp.zeros(3)))


def log_mean_exp(log_w):
    return np.logaddexp.reduce(log_w) - np.log(len(log_w))


WEIGHTED = {  # everything that is a function of importance weights, at 6 draws where it has many
    "iwae": lambda model: objectives.iwae(model, particles=6),
    "stl": lambda model: objectives.stl(model, particles=6),
    "dreg": lambda model: objectives.dreg(model, particles=6),
    "miwae": lambda model: objectives.miwae(model, outer=2, inner=3),
    "piwae": lambda model: objectives.piwae(model, outer=2, inner=3),
    "ciwae": lambda model: objectives.ciwae(model, particles=6, beta=0.3),
    "renyi": lambda model: objectives.renyi(model, particles=6, alpha=0.4),
    "vr-max": lambda model: objectives.renyi(model, particles=6, alpha=-np.inf),
    "score_function": lambda model: objectives.score_function(model, samples=6),
    "vimco": lambda model: objectives.vimco(model, particles=6),
    "wake-sleep": lambda model: objectives.reweighted_wake_sleep(model, particles=6),
}


def linear(posterior=oracles.poor_posterior, n=3):
    model, params = oracles.linear_gaussian(d=3, latent=1)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(n, 3)))
    return posterior(model), params, x


@pytest.mark.parametrize("name", WEIGHTED)
def test_every_bound_is_log_px_at_the_exact_posterior(name, x64, key):
    """All weights are equal then: whatever is made of them is log p(x), at every draw."""
    model, params, x = linear(posterior=lambda model: model)
    exact = oracles.linear_gaussian_log_px(params, x).mean()
    loss = WEIGHTED[name](model)
    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params, key, Batch(x), 0
    )
    np.testing.assert_allclose(value, -exact, atol=1e-9)
    np.testing.assert_allclose([metrics["bound"], metrics["elbo"]], exact, atol=1e-9)
    np.testing.assert_allclose(metrics["ess"], 3 if name == "miwae" else 6, rtol=1e-9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", WEIGHTED)
def test_masked_examples_leave_no_trace_in_any_objective(name, key):
    model, params, x = linear(n=5)
    weight = jnp.array([1.0, 1, 1, 0, 0])
    gradient = jax.jit(jax.value_and_grad(WEIGHTED[name](model), has_aux=True))
    clean = gradient(params, key, Batch(x.at[3:].set(0.5), weight=weight), 0)
    spoilt = Batch(x.at[3:].set(jnp.nan), weight=weight)
    masked = gradient(params, jax.random.clone(key), spoilt, 0)
    jax.tree.map(np.testing.assert_array_equal, clean, masked)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(masked))


def uniform_likelihood():
    """z ~ N(0, 1) and x|z uniform on z +- w: many weights are zero."""

    def decode(params, z, c=(), *, key=None):
        half = jnp.exp(params["log_half"])
        return distributions.Uniform(z - half, z + half)

    def encode(params, x, c=(), *, key=None):
        return Normal(params["loc"], jnp.ones(1))

    params = {"log_half": jnp.zeros(()), "loc": jnp.zeros(1)}
    return Model(None, lambda params, c=(): Normal(jnp.zeros(1), 1.0), encode, decode), params


@pytest.mark.parametrize("name", ["iwae", "stl", "dreg", "piwae", "renyi", "vimco", "wake-sleep"])
def test_zero_weights_leave_a_finite_gradient_and_all_zero_an_honest_value(name, key):
    model, params = uniform_likelihood()
    gradient = jax.jit(jax.value_and_grad(WEIGHTED[name](model), has_aux=True))
    (value, metrics), found = gradient(params, key, Batch(jnp.array([[0.5]])), 0)
    assert metrics["elbo"] == -np.inf and np.isfinite(value)  # some weights are zero, not all
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    (value, metrics), found = gradient(params, jax.random.clone(key), Batch(jnp.array([[50.0]])), 0)
    assert value == np.inf and metrics["bound"] == -np.inf and metrics["ess"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_bounds_rise_with_the_particles_and_stay_below_log_px(x64, key):
    model, params = oracles.linear_gaussian()
    model = oracles.poor_posterior(model)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(50, 5)))
    exact = oracles.linear_gaussian_log_px(params, x).mean()
    values = {}
    for particles in (1, 5, 50, 500):
        loss = jax.jit(jax.vmap(objectives.iwae(model, particles=particles), (None, 0, None, None)))
        values[particles] = -loss(params, jax.random.split(key, 100), Batch(x), 0)[0]
        key = jax.random.fold_in(key, particles)
    elbo_keys = jax.random.split(key, 400)
    bounds = jax.jit(jax.vmap(elbo(model), (None, 0, None, None)))(params, elbo_keys, Batch(x), 0)
    means = [-bounds[0].mean(), *(v.mean() for v in values.values())]
    errors = [bounds[0].std() / 20, *(v.std() / 10 for v in values.values())]
    assert abs(means[0] - means[1]) < 4 * np.hypot(errors[0], errors[1])  # L_1 is the ELBO
    for i in (1, 2, 3):
        assert means[i + 1] - means[i] > 4 * np.hypot(errors[i], errors[i + 1])
    # At K = 500 what is left of the gap is smaller than these draws can show.
    assert -4 * errors[4] < exact - means[4] < 0.02


def test_reported_values_are_those_of_the_weights_that_were_drawn(x64, key):
    model, params, x = linear(n=1)
    expected = {
        "iwae": log_mean_exp,
        "miwae": lambda w: np.mean([log_mean_exp(w[:3]), log_mean_exp(w[3:])]),
        "piwae": log_mean_exp,
        "ciwae": lambda w: 0.3 * w.mean() + 0.7 * log_mean_exp(w),
        "renyi": lambda w: log_mean_exp(0.6 * w) / 0.6,
        "vr-max": np.max,
    }
    options = {
        "iwae": {"particles": 6},
        "miwae": {"outer": 2, "inner": 3},
        "piwae": {"outer": 2, "inner": 3},
        "ciwae": {"particles": 6, "beta": 0.3},
        "renyi": {"particles": 6, "alpha": 0.4},
        "vr-max": {"particles": 6, "alpha": -np.inf},
    }
    log_w = np.asarray(weights_of(model, params, key, x[0], 6))
    for name, value in expected.items():
        build = getattr(objectives, "renyi" if name == "vr-max" else name)
        loss, metrics = jax.jit(build(model, **options[name]))(
            params, jax.random.clone(key), Batch(x), 0
        )
        np.testing.assert_allclose(loss, -value(log_w), rtol=1e-10, err_msg=name)
        ess = np.exp(log_w).sum() ** 2 / np.exp(2 * log_w).sum()
        if name != "miwae":
            np.testing.assert_allclose(metrics["ess"], ess, rtol=1e-10)


def weights_of(model, params, key, x, particles):
    """The log-weights that a batch of this one example draws, `[particles]`."""
    keys = jax.random.split(jax.random.fold_in(jax.random.clone(key), 0), particles)
    return jax.vmap(lambda k: terms.log_weight(draw(model, params, k, x)))(keys)


@pytest.mark.parametrize("alpha", [0.999999, 1.000001])
def test_renyi_near_one_is_the_elbo_in_single_precision(alpha, key):
    """Checked against log 1/K sum w^(1 - alpha) / (1 - alpha) as written: off by tenths of nats."""
    model, params, x = linear()
    near, one = (
        jax.jit(objectives.renyi(model, particles=6, alpha=a))(
            params, jax.random.clone(key), Batch(x), 0
        )[0]
        for a in (alpha, 1.0)
    )
    np.testing.assert_allclose(near, one, rtol=1e-4)


def test_renyi_falls_with_alpha_from_vr_max_over_iwae_to_the_elbo(key):
    model, params, x = linear()
    values = {}
    for alpha in (-np.inf, -1.0, 0.0, 0.5, 1.0, 2.0, np.inf):
        loss = jax.jit(objectives.renyi(model, particles=6, alpha=alpha))
        value, metrics = loss(params, jax.random.clone(key), Batch(x), 0)
        values[alpha] = -float(value)
    assert list(values.values()) == sorted(values.values(), reverse=True)
    np.testing.assert_allclose(values[0.0], metrics["bound"], rtol=1e-6)
    np.testing.assert_allclose(values[1.0], metrics["elbo"], rtol=1e-6)


def test_ciwae_takes_a_schedule(key):
    model, params, x = linear()
    loss = jax.jit(objectives.ciwae(model, particles=3, beta=optax.linear_schedule(1.0, 0.0, 10)))
    for step, bound in ((0, "elbo"), (10, "iwae")):
        _, metrics = loss(params, jax.random.clone(key), Batch(x), step)
        np.testing.assert_allclose(metrics["bound"], metrics[bound], rtol=1e-6)


def test_counts_and_shares_out_of_range_are_refused():
    model = linear()[0]
    for name in ("iwae", "stl", "dreg", "reweighted_wake_sleep"):
        with pytest.raises(ValueError, match=f"{name}: expected particles >= 1, got 0"):
            getattr(objectives, name)(model, particles=0)
    for name in ("miwae", "piwae"):
        with pytest.raises(ValueError, match=f"{name}: expected inner >= 1, got 0"):
            getattr(objectives, name)(model, outer=2, inner=0)
    with pytest.raises(ValueError, match="score_function: expected samples >= 1, got 0"):
        objectives.score_function(model, samples=0)
    with pytest.raises(ValueError, match="vimco: particles: got 1, expected 2 or more"):
        objectives.vimco(model, particles=1)
    with pytest.raises(ValueError, match="renyi: expected particles >= 1, got 0"):
        objectives.renyi(model, particles=0, alpha=0.5)
    with pytest.raises(ValueError, match="renyi: alpha: got nan"):
        objectives.renyi(model, particles=2, alpha=float("nan"))
    with pytest.raises(ValueError, match="ciwae: expected particles >= 1, got 0"):
        objectives.ciwae(model, particles=0, beta=0.5)
    with pytest.raises(ValueError, match="ciwae: beta: got 1.5"):
        objectives.ciwae(model, particles=2, beta=1.5)
    with pytest.raises(ValueError, match="reweighted_wake_sleep: sleep: got 2"):
        objectives.reweighted_wake_sleep(model, particles=2, sleep=2)


# The mistakes: each is written out, and the check that passes on ours has to fail on it.


def from_log_weights(value):
    """An objective as `example(log_w [K]) -> scalar to be maximised`, at K draws per example."""

    def build(model, *, particles):
        def loss(params, key, batch, step):
            def one(k, x):
                keys = jax.random.split(k, particles)
                return value(jax.vmap(lambda k: terms.log_weight(draw(model, params, k, x)))(keys))

            values = over_examples(one, key, batch.x)
            return -jnp.mean(values), {"bound": jnp.mean(values)}

        return loss

    return build


def check_value_is_a_lower_bound(build, key):
    model, params, x = linear(n=200)
    loss = jax.jit(build(model, particles=200))
    bound = -loss(params, jax.random.clone(key), Batch(x), 0)[0]
    # Importance weights have a known mean: log-mean-exp is below within its small noise.
    assert bound <= oracles.linear_gaussian_log_px(params, x).mean() + 0.02


def test_mistake_1_the_gradient_s_surrogate_reported_as_the_bound(x64, key):
    """Checked against sum(w~ log w), whose gradient is right and whose value is too good."""
    check_value_is_a_lower_bound(objectives.iwae, key)

    def surrogate(log_w):
        return jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(log_w)) * log_w)

    with pytest.raises(AssertionError):
        check_value_is_a_lower_bound(from_log_weights(surrogate), key)


def gradient_of(loss, params, key, x):
    return jax.jit(jax.grad(loss, has_aux=True))(params, jax.random.clone(key), Batch(x), 0)[0]


def check_axes(build, key):
    """One bound of six draws is IWAE's with six; six bounds of one draw are the ELBO's."""
    model, params, x = linear()
    assert_close = partial(np.testing.assert_allclose, rtol=1e-9)
    for outer, inner, same in (
        (1, 6, objectives.iwae(model, particles=6)),
        (6, 1, elbo(model, samples=6, rate=terms.sampled_rate)),
    ):
        ours = gradient_of(build(model, outer=outer, inner=inner), params, key, x)
        jax.tree.map(assert_close, ours, gradient_of(same, params, key, x))


def test_mistake_2_swapped_axes_of_bounds_and_draws(x64, key):
    """Checked against the mean over the draws and the log-mean-exp over the bounds."""
    check_axes(objectives.miwae, key)

    def swapped(model, *, outer, inner):
        return objectives.miwae(model, outer=inner, inner=outer)

    with pytest.raises(AssertionError):
        check_axes(swapped, key)


def two_networks():
    """A linear-Gaussian model whose q has parameters of its own."""
    model, params = oracles.linear_gaussian(d=3, latent=1)

    def encode(params, x, c=(), *, key=None):
        return Normal(params["A"] @ x, jnp.exp(params["log_scale"]))

    params = {**params, "A": jnp.ones((1, 3)) / 4, "log_scale": jnp.zeros(1)}
    return model._replace(encode=encode), params, linear()[2]


def check_players(build, key):
    model, params, x = two_networks()
    both = gradient_of(build(model, outer=2, inner=3), params, key, x)
    p_alone = gradient_of(objectives.iwae(model, particles=6), params, key, x)
    q_alone = gradient_of(objectives.miwae(model, outer=2, inner=3), params, key, x)
    for name in params:
        alone = q_alone if name in ("A", "log_scale") else p_alone
        np.testing.assert_allclose(both[name], alone[name], rtol=1e-9, err_msg=name)


def test_mistake_3_one_player_s_gradient_leaks_into_the_other(x64, key):
    """Checked against the plain sum of both players' losses."""
    check_players(objectives.piwae, key)

    def leaking(model, *, outer, inner):
        parts = (
            objectives.iwae(model, particles=outer * inner),
            objectives.miwae(model, outer=outer, inner=inner),
        )

        def loss(params, key, batch, step):
            values = [part(params, jax.random.clone(key), batch, step)[0] for part in parts]
            return sum(values), {}

        return loss

    with pytest.raises(AssertionError):
        check_players(leaking, key)


def check_against_its_own_value(build, key):
    """The gradient by q's and p's parameters is that of log-mean-exp of log p - log q."""
    model, params, x = two_networks()

    def value(params):
        noise = jax.vmap(lambda i: draws_noise(model, params, key, x, i))(jnp.arange(len(x)))
        q = jax.vmap(partial(model.encode, params))(x)
        z = q.loc[:, None] + q.scale[:, None] * noise

        def log_w(q, x, z):
            return (
                model.decode(params, z).log_prob(x)
                + model.prior(params).log_prob(z)
                - q.log_prob(z)
            )

        all_w = jax.vmap(jax.vmap(log_w, (None, None, 0)))(q, x, z)
        return -jnp.mean(jax.nn.logsumexp(all_w, axis=1) - jnp.log(4.0))

    right = jax.jit(jax.grad(value))(params)
    ours = gradient_of(build(model, particles=4), params, key, x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8), ours, right)


def draws_noise(model, params, key, x, index):
    """The standard normal noise behind an example's four draws, `[4, latent]`."""
    q = model.encode(params, x[0])

    def one(k):
        z_key = jax.random.split(k, 3)[1]
        return (q.sample(z_key) - q.loc) / q.scale

    return jax.vmap(one)(jax.random.split(jax.random.fold_in(jax.random.clone(key), index), 4))


def analytic_rate(model, *, particles):
    def loss(params, key, batch, step):
        def one(k, x):
            def log_w(k):
                d = draw(model, params, k, x)
                return -terms.distortion(d) - terms.rate(d)

            return terms.log_mean_exp(jax.vmap(log_w)(jax.random.split(k, particles)))

        return -jnp.mean(over_examples(one, key, batch.x)), {}

    return loss


SEVENTH = {
    "softmax of the loss": from_log_weights(
        lambda w: jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(-w)) * w)
    ),
    "weights not stopped": from_log_weights(lambda w: jnp.sum(jax.nn.softmax(w) * w)),
    "analytic KL": analytic_rate,
}


@pytest.mark.parametrize("name", SEVENTH)
def test_mistake_7_weights_of_the_wrong_sign_not_stopped_or_of_another_rate(name, x64, key):
    """Checked against softmax of +loss, weights weights differentiated, a KL in closed form."""
    check_against_its_own_value(objectives.iwae, key)
    with pytest.raises(AssertionError):
        check_against_its_own_value(SEVENTH[name], key)


def check_scale(build, key):
    """An image tiled twice, beside a z it does not depend on, has twice the bound."""

    def bound(n):
        model = autoencoder(
            heads.Normal(2), heads.FixedNormal((n,), 1.0), Normal(jnp.zeros(2), jnp.ones(2))
        )
        params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(3), jnp.zeros(n)))
        prior = lambda params, c=(): model.encode(params, jnp.zeros(n))  # noqa: E731
        loss = jax.jit(build(model._replace(prior=prior), particles=3))
        return -loss(params, jax.random.clone(key), Batch(jnp.ones((4, n))), 0)[0]

    np.testing.assert_allclose(bound(12), 2 * bound(6), rtol=1e-6)


def test_mistake_12_mean_over_pixels_beside_a_sum_over_latents(key):
    """Checked against a reconstruction averaged over pixels, in the weights of every draw."""
    for build in (objectives.iwae, objectives.dreg, objectives.vimco):
        check_scale(build, key)

    def averaged(model, *, particles):
        def mean_over_pixels(*args):
            d = draw(*args)
            return d._replace(px=PerPixel(d.px))

        return objectives.iwae(model, particles=particles, draw=mean_over_pixels)

    with pytest.raises(AssertionError):
        check_scale(averaged, key)


class PerPixel:
    def __init__(self, px):
        self.px = px

    def log_prob(self, x):
        return self.px.log_prob(x) / x.size


def test_mistake_14_as_many_draws_as_were_asked_for(x64, key):
    """Checked against a number of draws that is fixed inside: equal weights count themselves."""

    def check(build):
        model, params, x = linear(posterior=lambda model: model)
        for particles in (1, 4):
            loss = jax.jit(build(model, particles=particles))
            ess = loss(params, jax.random.clone(key), Batch(x), 0)[1]["ess"]
            np.testing.assert_allclose(ess, particles, rtol=1e-9)

    check(objectives.iwae)
    check(objectives.dreg)
    with pytest.raises(AssertionError):
        check(lambda model, particles: objectives.iwae(model, particles=3))


def test_dreg_weighs_each_example_by_itself(x64, key):
    """Checked against weights that mix over the batch: with a far neighbour nothing may change."""
    model, params, x = two_networks()
    alone = gradient_of(objectives.dreg(model, particles=4), params, key, x[:1])
    weight = jnp.array([1.0, 0.0])
    beside = jax.jit(jax.grad(objectives.dreg(model, particles=4), has_aux=True))(
        params, jax.random.clone(key), Batch(x[:2], weight=weight), 0
    )[0]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), alone, beside)
    two = gradient_of(objectives.dreg(model, particles=4), params, key, x[:2])
    other = jax.jit(jax.grad(objectives.dreg(model, particles=4), has_aux=True))(
        params, jax.random.clone(key), Batch(x[:2], weight=1 - weight), 0
    )[0]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, alone, other)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), two, mean)


def test_masked_conditions_leave_no_trace(key):
    """A NaN in the condition of a masked example is as harmless as one in its x."""
    model = autoencoder(
        heads.Normal(2), heads.FixedNormal(3, 1.0), Normal(jnp.zeros(2), jnp.ones(2))
    )
    of_c = model._replace(
        encode=lambda params, x, c=(), *, key=None: model.encode(params, x),
        decode=lambda params, z, c=(), *, key=None: Normal(model.decode(params, z).loc + c, 1.0),
    )
    params = model.init(jax.random.key(1), jnp.zeros(3))
    c = jnp.array([[0.0] * 3, [jnp.nan] * 3])
    batch = Batch(jnp.ones((2, 3)), c, weight=jnp.array([1.0, 0.0]))
    assert jnp.isfinite(elbo(of_c)(params, key, batch, 0)[0])
