"""Total correlation, and the losses that press on it."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import stats

from tests.oracles import linear_gaussian, poor_posterior
from vaejax import decomposition, disentangle, objectives, terms, train
from vaejax.batch import over_batch
from vaejax.distributions import MultivariateNormal, Normal
from vaejax.model import Model, draw
from vaejax.types import Batch

CORRELATION = np.array([[1.0, 0.6, 0.2], [0.6, 1.0, -0.3], [0.2, -0.3, 1.0]])
TRUTH = -0.5 * np.log(np.linalg.det(CORRELATION))  # 0.413 nats
SCALE = 0.4


def posteriors(seed, n, correlation=CORRELATION):
    """Diagonal posteriors and a draw of each, whose q(z) is N(0, correlation): z, loc, scale."""
    rng = np.random.default_rng(seed)
    d = len(correlation)
    loc = rng.multivariate_normal(np.zeros(d), correlation - SCALE**2 * np.eye(d), n)
    z = loc + SCALE * rng.normal(size=(n, d))
    return [jnp.asarray(one, jnp.float32) for one in (z, loc, np.full((n, d), SCALE))]


def exact(z, loc, scale):
    """TC of q(z), the mixture of all rows, at one draw from each, by scipy and loops."""
    z, loc, scale = (np.asarray(one, float) for one in (z, loc, scale))
    total = 0.0
    for one in z:
        each = stats.norm(loc, scale).pdf(one)
        total += np.log(each.prod(axis=1).mean()) - np.log(each.mean(axis=0)).sum()
    return total / len(z)


TC = jax.jit(disentangle.total_correlation, static_argnames="size")


def model_of(latent=3):
    """A linear encoder, q(z|x) = N(W x, SCALE^2 I), and p(x|z) = N(z + b, I)."""

    def encode(params, x, c=(), *, key=None):
        return Normal(params["W"] @ x, jnp.full(latent, SCALE))

    def decode(params, z, c=(), *, key=None):
        return Normal(params["b"] + z, jnp.ones(latent))

    prior = Normal(np.zeros(latent, np.float32), np.ones(latent, np.float32))
    params = {"W": np.eye(latent, dtype=np.float32) + 0.1, "b": np.zeros(latent, np.float32)}
    return Model(lambda key, x, c=(): params, lambda params, c=(): prior, encode, decode), params


CRITIC = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(1)])


@pytest.fixture(scope="module")
def two_players():
    """(loss, params, batch) of a FactorVAE, gamma = 3."""
    model, params = model_of()
    both = {"model": params, "critic": jax.jit(CRITIC.init)(jax.random.key(1), params["b"])}
    return disentangle.factor_vae(model, CRITIC, gamma=3.0), both, Batch(posteriors(0, 16)[1])


@pytest.mark.statistics
def test_total_correlation_of_correlated_gaussians():
    estimate = jax.jit(jax.vmap(disentangle.total_correlation))
    stratified = jax.jit(jax.vmap(lambda *q: disentangle.total_correlation(*q, size=1_000_000)))
    batches = [posteriors(seed, 1000) for seed in range(4)]
    stacked = [jnp.stack(part) for part in zip(*batches, strict=True)]
    for found in (estimate(*stacked), stratified(*stacked)):
        assert float(jnp.mean(found)) == pytest.approx(TRUTH, abs=0.05)


def test_the_whole_data_as_one_batch_is_the_full_sum():
    z, loc, scale = posteriors(1, 6)
    for size in (None, 6):
        found = TC(z, loc, 0.3 * scale, size=size)
        assert float(found) == pytest.approx(exact(z, loc, 0.3 * scale), rel=1e-5)


@pytest.mark.statistics
def test_it_agrees_with_the_decomposition_of_a_data_set(key):
    model, params = linear_gaussian()
    model, x = poor_posterior(model), jnp.asarray(np.random.default_rng(0).normal(size=(30, 5)))
    parts = decomposition.decompose(model, params, key, x, draws=600)
    q = jax.vmap(lambda one: model.encode(params, one))(x)
    noise = jax.random.normal(jax.random.key(3), (200, *q.loc.shape))

    def at(noise):
        return disentangle.total_correlation(q.loc + q.scale * noise, q.loc, q.scale)

    found = jax.jit(jax.vmap(at))(noise)
    error = np.hypot(float(jnp.std(found)) / 200**0.5, parts.total_correlation.error)
    assert abs(float(jnp.mean(found)) - parts.total_correlation.value) < 4 * error


def test_the_own_weight_is_on_the_diagonal():
    """Checked against the weight 1/N in the first column: q(z) has to be unbiased."""

    def check(log_weights, batch=3, size=5):
        # Example 0 with every choice of the others: each of the N has 1/N of q(z) on average.
        totals, choices = np.zeros(size), list(combinations(range(1, size), batch - 1))
        for others in choices:
            for place in range(batch):
                members = [*others[:place], 0, *others[place:]]
                row = np.exp(np.asarray(log_weights(batch, (), size)))[place]
                assert row.sum() == pytest.approx(1)
                np.add.at(totals, members, row / (len(choices) * batch))
        np.testing.assert_allclose(totals, 1 / size, rtol=1e-5)

    def first_column(batch, weight, size):
        others = (size - 1) / size / (batch - 1)
        return np.log(np.full((batch, batch), others) + (1 / size - others) * np.eye(batch)[[0]])

    check(disentangle._log_weights)
    with pytest.raises(AssertionError):
        check(first_column)


def test_total_correlation_of_independent_codes_is_zero():
    """Checked against the estimator as it stands in the paper: (d - 1) log N too high."""

    def check(estimate):
        z = np.asarray(posteriors(0, 1000)[0])  # collapsed: one q(z) = N(0, I) whatever x
        assert float(estimate(z, 0 * z, 0 * z + 1)) == pytest.approx(0, abs=1e-5)
        assert float(estimate(*posteriors(2, 1000, np.eye(3)))) == pytest.approx(0, abs=0.05)

    def with_constant(z, loc, scale):
        return TC(z, loc, scale) + (z.shape[1] - 1) * np.log(60_000)

    check(TC)
    check(partial(TC, size=60_000))
    with pytest.raises(AssertionError):
        check(with_constant)


def test_a_weight_counts_once_in_the_joint():
    """Checked against log-weights added to each dimension and then summed: counted d times."""

    def check(estimate):
        q = posteriors(1, 6)
        assert float(estimate(*q)) == pytest.approx(exact(*q), rel=1e-5)

    def per_dimension(z, loc, scale):
        pairs = jax.vmap(lambda one: jax.scipy.stats.norm.logpdf(one[None], loc, scale))(z)
        weighed = pairs - np.log(len(z))
        joint = jax.nn.logsumexp(weighed.sum(axis=-1), axis=1)
        return jnp.mean(joint - jax.nn.logsumexp(weighed, axis=1).sum(axis=-1))

    check(TC)
    with pytest.raises(AssertionError):
        check(jax.jit(per_dimension))


@pytest.mark.parametrize("size", [None, 40])
def test_masked_examples_leave_no_trace(size):
    q = [np.asarray(one) for one in posteriors(4, 8)]
    weight = np.float16([6e4, 6e4, 0, 6e4, 0, 6e4, 6e4, 0])  # two have a sum beyond float16
    kept = [one[weight > 0] for one in q]

    def value(loc, rest, weight=()):
        return disentangle.total_correlation(rest[0], loc, rest[1], weight, size=size)

    gradient = jax.jit(jax.value_and_grad(value))
    masked = gradient(q[1], (q[0], q[2]), weight)
    whole = gradient(kept[1], (kept[0], kept[2]))
    np.testing.assert_allclose(masked[0], whole[0], rtol=1e-5)
    slope = np.asarray(masked[1])
    np.testing.assert_allclose(slope[weight > 0], whole[1], atol=1e-6)
    assert (slope[weight == 0] == 0).all()


def test_at_beta_1_beta_tcvae_is_the_elbo(key):
    model, params = model_of()
    batch = Batch(posteriors(0, 16)[1])
    tc = disentangle.beta_tcvae(model, beta=optax.linear_schedule(1.0, 6.0, 10))

    def plain(params, key, batch, step):
        def example(params, key, x, c):
            d = draw(model, params, key, x, c)
            return terms.distortion(d) + terms.rate(d)

        return jnp.mean(over_batch(example, params, key, batch)), ()

    def both(params, key, step):
        return [
            jax.value_and_grad(loss, has_aux=True)(params, jax.random.clone(key), batch, step)
            for loss in (tc, plain, objectives.elbo(model))
        ]

    both = jax.jit(both)
    ((value, metrics), gradient), ((bound, _), expected), ((_, of_elbo), _) = both(params, key, 0)
    assert float(value) == pytest.approx(float(bound), rel=1e-6)
    assert float(value) == pytest.approx(-float(metrics["elbo"]), rel=1e-6)
    # Its draws are its own, but the rate is a closed form.
    assert float(metrics["rate"]) == pytest.approx(float(of_elbo["rate"]), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected)

    (value, metrics), _ = both(params, jax.random.clone(key), 5)[0]
    assert float(metrics["beta"]) == pytest.approx(3.5)
    expected = -metrics["elbo"] + 2.5 * metrics["total_correlation"]
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    assert abs(float(metrics["total_correlation"])) > 0.01


@pytest.mark.statistics
def test_beta_tcvae_takes_apart_what_is_entangled(key):
    """From codes turned by 45 degrees; q(z) of a linear encoder is Gaussian, its TC known."""
    model, params = model_of(2)
    turned = jnp.array([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    x = jnp.asarray(np.random.default_rng(0).normal(size=(512, 2)) * [2.0, 0.7], jnp.float32)

    def of_gaussian(W):
        covariance = np.asarray(W @ jnp.diag(jnp.array([4.0, 0.49])) @ W.T) + SCALE**2 * np.eye(2)
        scale = np.sqrt(np.diag(covariance))
        return -0.5 * np.log(np.linalg.det(covariance / np.outer(scale, scale)))

    loss = disentangle.beta_tcvae(model, beta=10.0)
    run = train.make_train(loss, optax.adam(0.02), steps=150, batch_size=128)
    state, history = jax.jit(run)(key, {**params, "W": turned}, x)
    assert of_gaussian(state.params["W"]) < 0.02 < 0.3 < of_gaussian(turned)
    estimates = np.asarray(history["total_correlation"])
    assert estimates[0] == pytest.approx(of_gaussian(turned), abs=0.2)
    assert estimates[-20:].mean() == pytest.approx(of_gaussian(state.params["W"]), abs=0.05)


def test_each_player_has_the_gradient_of_its_own_loss(two_players, key):
    """Checked against the two losses added up, where one leaks into the other."""
    loss, params, batch = two_players
    model, _ = model_of()

    def drawn(model_params, key):
        draw_key, permute_key = jax.random.split(key)

        def example(params, key, x, c):
            d = draw(model, params, key, x, c)
            return terms.distortion(d) + terms.rate(d), d.z

        return *over_batch(example, model_params, draw_key, batch), permute_key

    def f(critic, z):
        return jax.vmap(lambda one: CRITIC.apply(critic, one)[0])(z)

    def model_loss(model_params, critic, key):
        bound, z, _ = drawn(model_params, key)
        return jnp.mean(bound) + 3.0 * jnp.mean(f(critic, z))

    def critic_loss(critic, model_params, key):
        _, z, permute_key = drawn(model_params, key)
        permuted = disentangle.permute_dimensions(permute_key, z)
        true, false = jax.nn.log_sigmoid(f(critic, z)), jax.nn.log_sigmoid(-f(critic, permuted))
        return -0.5 * jnp.mean(true + false)

    def leaking(params, key, batch, step):
        again = jax.random.clone(key)
        own = model_loss(params["model"], params["critic"], key)
        return own + critic_loss(params["critic"], params["model"], again), {}

    @jax.jit
    def gradients(params, key):  # one program, in which what they share is compiled once
        own, critic = params["model"], params["critic"]
        expected = {
            "model": jax.grad(model_loss)(own, critic, jax.random.clone(key)),
            "critic": jax.grad(critic_loss)(critic, own, jax.random.clone(key)),
        }
        both = (loss, leaking)
        found = [jax.grad(f, has_aux=True)(params, jax.random.clone(key), batch, 0) for f in both]
        return expected, *(gradient for gradient, _ in found)

    expected, found, mistaken = gradients(params, key)

    def check(found):
        for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            assert np.abs(other).max() > 1e-3
            np.testing.assert_allclose(one, other, atol=1e-6)

    check(found)
    with pytest.raises(AssertionError):
        check(mistaken)


def test_the_model_pulls_each_code_against_the_critic(key):
    """By gamma alone, a code moves where the critic takes it less for one of q(z): cosine -1."""
    model, own = model_of(4)
    # One-hot examples: the columns of W are the codes, and so are those of its gradient.
    batch = Batch(np.eye(4, dtype=np.float32))
    critic = jax.jit(CRITIC.init)(jax.random.key(2), np.zeros(4, np.float32))
    loss = disentangle.factor_vae(model, CRITIC, gamma=lambda step: 2.0 * step)

    @jax.jit
    def gradient(key, step):
        both = {"model": own, "critic": critic}
        return jax.grad(loss, has_aux=True)(both, key, batch, step)[0]["model"]["W"]

    adversarial = gradient(key, 1.0) - gradient(jax.random.clone(key), 0.0)

    def critics(W):
        draw_key, _ = jax.random.split(jax.random.clone(key))

        def f(params, key, x, c):
            return CRITIC.apply(critic, draw(model, params, key, x, c).z)[0]

        return jnp.mean(jax.nn.softplus(-over_batch(f, {**own, "W": W}, draw_key, batch)))

    wanted = jax.jit(jax.grad(critics))(own["W"])
    one, other = np.asarray(adversarial), np.asarray(wanted)
    lengths = np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0)
    cosine = np.sum(one * other, axis=0) / lengths
    np.testing.assert_allclose(cosine, -1, atol=1e-4)


def test_the_best_critic_estimates_the_total_correlation(key):
    class Best:
        """log q(z) - sum_j log q(z_j) of N(0, CORRELATION)."""

        def init(self, key, z):
            return {}

        def apply(self, params, z):
            joint = MultivariateNormal(jnp.zeros(3), jnp.linalg.cholesky(jnp.asarray(CORRELATION)))
            return joint.log_prob(z) - Normal(jnp.zeros(3), jnp.ones(3)).log_prob(z)

    model, params = model_of()
    both = {"model": {**params, "W": jnp.eye(3)}, "critic": {}}
    batch = Batch(posteriors(5, 4000)[1])
    best = jax.jit(disentangle.factor_vae(model, Best(), gamma=1.0))
    value, metrics = best(both, key, batch, 0)
    deviation = np.sqrt(np.sum((CORRELATION - np.eye(3)) ** 2) / 2)  # of f over q(z), nats
    error = deviation / 4000**0.5
    assert float(metrics["total_correlation"]) == pytest.approx(TRUTH, abs=4 * error)
    assert 0.5 < float(metrics["critic/loss"]) < np.log(2) - 0.02
    assert 0.55 < float(metrics["critic_accuracy"]) < 0.8
    expected = -metrics["elbo"] + metrics["total_correlation"] + metrics["critic/loss"]
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_permuting_keeps_the_marginals_and_ends_the_dependence(key):
    """Checked against a permutation of the dimensions within each row."""

    def check(permute):
        z = np.random.default_rng(0).normal(size=(2000, 1)) * [1.0, 3.0, 9.0]
        permuted = jax.jit(permute)(jax.random.clone(key), jnp.asarray(z, jnp.float32))
        found = np.asarray(permuted)
        np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(np.float32(z), axis=0))
        assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 4 / 2000**0.5

    def within_rows(key, z):
        return jax.vmap(jax.random.permutation)(jax.random.split(key, len(z)), z)

    check(disentangle.permute_dimensions)
    with pytest.raises(AssertionError):
        check(within_rows)


def test_masked_examples_reach_no_other_and_the_others_are_permuted(key):
    z, permute = (
        np.arange(20, dtype=np.float32).reshape(10, 2),
        jax.jit(disentangle.permute_dimensions),
    )
    counted = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1], bool)
    for one, weight in zip(jax.random.split(key, 3), (1.0, 0.1, 3.0), strict=True):
        found = np.asarray(permute(one, z, np.float32(weight * counted)))
        np.testing.assert_array_equal(np.sort(found[counted], axis=0), z[counted])
        assert not np.array_equal(found[counted], z[counted])


def test_weighted_marginals_are_kept(key):
    """Checked against a permutation of all that count, whatever their weights."""
    z = np.repeat(np.eye(6, 1, dtype=np.float32), 2, axis=1)  # row 0 against the others
    weight = np.float32([4.0, 1.0, 0.5, 0.25, 0.0, 0.25])

    def blindly(key, z, weight):
        order = jnp.argsort(jnp.where(weight > 0, 0, 9) + jax.random.uniform(key, weight.shape))
        return jnp.zeros_like(z).at[jnp.argsort(weight == 0)].set(z[order])

    def check(permute):
        keys = jax.random.split(jax.random.clone(key), 3000)
        found = np.asarray(jax.jit(jax.vmap(permute, (0, None, None)))(keys, z, weight))
        means = np.tensordot(found, np.asarray(weight) / 6, ((1,), (0,)))  # [draws, 2]
        error = means.std(axis=0) / 3000**0.5
        assert (np.abs(means.mean(axis=0) - 4 / 6) < 5 * error).all()

    check(disentangle.permute_dimensions)
    with pytest.raises(AssertionError):
        check(blindly)


def test_bad_input_is_refused(key, two_players):
    model, params = model_of()
    loss, both, batch = two_players
    one = Batch(batch.x[:1])
    q = posteriors(0, 8)
    oracle, oracle_params = linear_gaussian()  # its posterior has full covariance
    wide = disentangle.factor_vae(model, nn.Dense(2), gamma=1.0)
    wide_params = {**both, "critic": {"params": {"kernel": jnp.ones((3, 2)), "bias": q[0][0, :2]}}}

    def traced(loss, params, batch):
        return jax.eval_shape(loss, params, key, batch, 0)

    for call, error, message in (
        (
            lambda: disentangle.total_correlation(*(a[:1] for a in q)),
            ValueError,
            "total_correlation: batch: got 1 example, expected 2 or more; raise the batch size",
        ),
        (
            lambda: disentangle.total_correlation(q[0][0], *q[1:]),
            ValueError,
            r"z, loc, scale: got .*expected \[batch, latent\]",
        ),
        (lambda: disentangle.total_correlation(*q, size=7), ValueError, "size: got 7, expected 8"),
        (
            lambda: traced(disentangle.beta_tcvae(model, beta=4.0), params, one),
            ValueError,
            "got 1 example, expected 2 or more",
        ),
        (
            lambda: traced(
                disentangle.beta_tcvae(oracle, beta=4.0), oracle_params, Batch(jnp.zeros((4, 5)))
            ),
            TypeError,
            "beta_tcvae: posterior: got MultivariateNormal, expected Normal.*factor_vae",
        ),
        (lambda: traced(loss, both, one), ValueError, "permute_dimensions: batch: got 1 ex"),
        (lambda: traced(loss, params, batch), ValueError, "players: params"),
        (
            lambda: traced(wide, wide_params, batch),
            TypeError,
            r"factor_vae: critic: got an output of shape \(16, 2\).*nn.Dense\(1\)",
        ),
        (lambda: disentangle.permute_dimensions(key, q[0][0]), ValueError, r"shape \(3,\)"),
    ):
        with pytest.raises(error, match=message):
            call()
