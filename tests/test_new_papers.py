"""Five papers that the library does not hold, written as a user would: at most 30 lines each.

The models come first, on the public names alone; then what is particular to each is checked
against closed forms, enumeration and scipy. If one of them gets longer or needs a private name,
the core is at fault. Tolerances were chosen before the numbers were seen.
"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax
from jax.tree_util import Partial
from scipy import special, stats

from vaejax import heads
from vaejax.batch import batch_mean, over_batch
from vaejax.distributions import (
    Bernoulli,
    Distribution,
    Mixture,
    MultivariateNormal,
    Normal,
    distribution,
    kl,
)
from vaejax.evaluate import log_likelihood
from vaejax.model import Model, autoencoder, draw, generate
from vaejax.networks import MLP
from vaejax.objectives import elbo
from vaejax.terms import distortion, rate, sampled_rate
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


def vamp_prior(model, components):
    """p(z) = 1/K sum_k q(z|u_k), u_k learned (Tomczak and Welling, 2018, arXiv:1705.07120)."""

    def init(key, x, c=()):
        model_key, pseudo_key = jax.random.split(key)
        u = jax.random.normal(pseudo_key, (components, *x.shape))
        return {**model.init(model_key, x, c), "pseudo_inputs": u}

    def prior(params, c=()):
        q = jax.vmap(lambda u: model.encode(params, u, c))(params["pseudo_inputs"])
        return Mixture(jnp.zeros(components), q)

    return model._replace(init=init, prior=prior)


def permute_dimensions(key, z):
    """Each column of z [batch, latent] in an order of its own: from q(z) to prod_j q(z_j)."""
    keys = jax.random.split(key, z.shape[1])
    return jax.vmap(jax.random.permutation, (0, 1), 1)(keys, z)


def factor_vae(model, critic, *, gamma):
    """D + R + gamma TC, TC from a critic's logits (Kim and Mnih, 2018, arXiv:1802.05983)."""
    score = jax.vmap(critic.apply, (None, 0))
    stop = lax.stop_gradient

    def example(params, key, x, c):
        d = draw(model, params, key, x, c)
        return distortion(d), rate(d), d.z

    def loss(params, key, batch, step):
        example_key, permute_key = jax.random.split(key)
        D, R, z = over_batch(example, params["model"], example_key, batch)
        D, R, TC = batch_mean((D, R, score(stop(params["critic"]), z)))
        # The paper's two batches are the two halves of one.
        joint, other = jnp.split(stop(z), 2)
        joint = score(params["critic"], joint)
        product = score(params["critic"], permute_dimensions(permute_key, other))
        cross_entropy = 0.5 * jnp.mean(nn.softplus(-joint) + nn.softplus(product))
        metrics = {"distortion": D, "rate": R, "tc": TC, "critic": cross_entropy}
        return D + R + gamma * TC + cross_entropy, metrics

    return loss


class CausalNet(nn.Module):
    """Logits of x_i from x_{<i} and z: L x + f(z), L strictly lower triangular (FVSBN, 1998)."""

    pixels: int

    @nn.compact
    def __call__(self, x, z):
        w = self.param("w", nn.initializers.normal(0.5), (self.pixels, self.pixels))
        return jnp.tril(w, -1) @ x + nn.Dense(self.pixels)(MLP((16,))(z))


@distribution
class ChainRule(Distribution):
    """p(x|z) = prod_i p(x_i|x_{<i}, z), binary x (Larochelle and Murray, 2011, NADE)."""

    net: Any
    z: Any
    pixels: Any = dataclasses.field(metadata={"static": True})
    discrete = True
    event_shape = property(lambda self: (self.pixels,))

    def log_prob(self, x):
        return Bernoulli(self.net(x, self.z)).log_prob(x)

    def sample(self, key):
        # The same coins at every turn: after turn i the first i pixels are final.
        def turn(_, x):
            return Bernoulli(self.net(x, self.z)).sample(jax.random.clone(key))

        return lax.fori_loop(0, self.pixels, turn, jnp.zeros(self.pixels))

    @property
    def mean(self):
        # No closed form: the sum over all images, for a few pixels.
        x = np.indices((2,) * self.pixels).reshape(self.pixels, -1).T
        return jnp.exp(jax.vmap(self.log_prob)(x)) @ x


class CausalDecoder(NamedTuple):
    """From z to p(x|z) that holds the network: what `autoencoder` asks of a module."""

    net: CausalNet

    def init(self, key, z):
        return self.net.init(key, jnp.zeros(self.net.pixels), z)

    def apply(self, params, z, rngs=None):
        return ChainRule(Partial(self.net.apply, params), z, self.net.pixels)


def conditional_vae(shape, latent, width):
    """q(z|x, c), p(x|z, c) and a learned p(z|c) (Sohn, Lee and Yan, 2015, NeurIPS 28)."""
    encoder = nn.Sequential([MLP((width,)), heads.Normal(latent)])
    decoder = nn.Sequential([MLP((width,)), heads.Bernoulli(shape)])
    prior = nn.Sequential([MLP((width,)), heads.Normal(latent)])
    return autoencoder(encoder, decoder, prior)


MODELS = {
    "capacity": [capacity_vae],
    "vamp": [vamp_prior],
    "factor": [permute_dimensions, factor_vae],
    "autoregressive decoder": [CausalNet, ChainRule, CausalDecoder],
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
    """Checked against the mean of |R_i - C|, which is 1 here where |mean R - C| is 0."""
    model = identity_vae(1.0)
    x = jnp.array([[0.0, 0.0], [2.0, 0.0]])  # KL(N(x, 1) || N(0, 1)) = |x|^2 / 2: 0 and 2 nats
    loss = capacity_vae(model, gamma=10.0, nats=optax.linear_schedule(0.0, 1.0, 10))
    compiled = jax.jit(loss)
    for i, step in enumerate((0, 5, 10)):
        value, metrics = compiled({}, jax.random.fold_in(key, i), Batch(x), step)
        np.testing.assert_allclose(metrics["rate"], 1.0, rtol=1e-6)
        penalty = value - metrics["distortion"]
        np.testing.assert_allclose(penalty, 10.0 * (1 - step / 10), atol=1e-4)


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


# ---------------------------------------------------------------- VampPrior


@pytest.fixture(scope="module")
def vamp():
    """(model, params, x): four pseudo-inputs, untrained."""
    data_key, init_key = jax.random.split(jax.random.key(1))
    x = toy_data(data_key)
    model = vamp_prior(small_vae(prior=None), components=4)
    return model, model.init(init_key, x[0]), x


def test_vamp_prior_is_the_mixture_of_posteriors_at_the_pseudo_inputs(vamp):
    model, params, _ = vamp
    assert params["pseudo_inputs"].shape == (4, SIZE)
    pz = jax.jit(model.prior)(params)
    components = [jax.jit(model.encode)(params, u) for u in params["pseudo_inputs"]]
    for z in np.array([[0.0, 0.0], [1.5, -0.5], [-4.0, 3.0]]):
        each = [stats.norm.logpdf(z, q.loc, q.scale).sum() for q in components]
        expected = special.logsumexp(each) - np.log(4)
        np.testing.assert_allclose(pz.log_prob(jnp.asarray(z)), expected, rtol=1e-5)


def test_vamp_gradient_reaches_each_pseudo_input_by_its_responsibility(vamp):
    """d log p(z) / d u_k = r_k d log q(z|u_k) / d u_k, with r_k the posterior of component k."""
    model, params, _ = vamp
    z = jnp.array([0.5, -0.3])
    gradient = jax.jit(jax.grad(lambda p: model.prior(p).log_prob(z)))(params)

    def log_q(u):
        return model.encode(params, u).log_prob(z)

    each, slopes = jax.jit(jax.vmap(jax.value_and_grad(log_q)))(params["pseudo_inputs"])
    expected = jax.nn.softmax(each)[:, None] * slopes
    np.testing.assert_allclose(gradient["pseudo_inputs"], expected, rtol=1e-4, atol=1e-6)
    assert np.all(np.linalg.norm(expected, axis=1) > 1e-4)
    # The prior trains the encoder, and has nothing to say to the decoder.
    assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(gradient["encoder"]))
    assert all(np.all(g == 0) for g in jax.tree.leaves(gradient["decoder"]))


def test_vamp_rate_is_sampled_because_a_mixture_has_no_closed_form(vamp, key):
    model, params, x = vamp
    with pytest.raises(TypeError, match="no closed form"):
        jax.eval_shape(lambda p: kl(model.encode(p, x[0]), model.prior(p)), params)

    def rates(key):
        d = draw(model, params, key, x[0])
        return rate(d), d.log_q - d.pz.log_prob(d.z)

    R, expected = jax.jit(jax.vmap(rates))(jax.random.split(key, 8))
    np.testing.assert_allclose(R, expected, rtol=1e-6)
    assert np.std(R) > 1e-3  # from draw to draw, as an exact KL would not


def test_vamp_trains_its_pseudo_inputs(vamp, key):
    model, params, x = vamp
    trained, history = run(elbo(model), optax.adam(5e-3), params, x, key, steps=100)
    moved = np.abs(trained["pseudo_inputs"] - params["pseudo_inputs"]).max(axis=1)
    assert np.all(moved > 0.01)
    assert np.mean(history["loss"][-10:]) < 0.7 * np.mean(history["loss"][:10])


# ---------------------------------------------------------------- FactorVAE

CRITIC = nn.Sequential([MLP((32, 32)), nn.Dense(1), jnp.squeeze])


@pytest.fixture(scope="module")
def factor():
    """(model, loss, params, x): two players, untrained."""
    data_key, model_key, critic_key = jax.random.split(jax.random.key(2), 3)
    x, model = toy_data(data_key, n=64), small_vae()
    critic = CRITIC.init(critic_key, jnp.zeros(LATENT))
    params = {"model": model.init(model_key, x[0]), "critic": critic}
    return model, factor_vae(model, CRITIC, gamma=6.0), params, x


def test_factor_each_players_gradient_is_that_of_its_own_loss(factor, key):
    """Checked against the critic's loss reaching the encoder, and TC reaching the critic."""
    model, loss, params, x = factor

    def parts(model_params):
        """z, D, R with the noise that the loss uses, and the key of its permutation."""
        example_key, permute_key = jax.random.split(jax.random.clone(key))

        def example(params, key, x, c):
            d = draw(model, params, key, x, c)
            return d.z, distortion(d), rate(d)

        return *over_batch(example, model_params, example_key, Batch(x)), permute_key

    def score(critic, z):
        return jax.vmap(lambda one: CRITIC.apply(critic, one))(z)

    def model_alone(model_params):
        z, D, R, _ = parts(model_params)
        return jnp.mean(D + R + 6.0 * score(params["critic"], z))

    z, *_, permute_key = jax.jit(parts)(params["model"])
    joint, product = z[:32], permute_dimensions(permute_key, z[32:])

    def critic_alone(critic):
        log_p = jax.nn.log_sigmoid(score(critic, joint))
        log_not_p = jax.nn.log_sigmoid(-score(critic, product))
        return -jnp.mean(jnp.concatenate([log_p, log_not_p]))

    value, gradient = jax.jit(jax.value_and_grad(lambda p, k: loss(p, k, Batch(x), 0)[0]))(
        params, jax.random.clone(key)
    )
    model_value, model_gradient = jax.jit(jax.value_and_grad(model_alone))(params["model"])
    critic_value, critic_gradient = jax.jit(jax.value_and_grad(critic_alone))(params["critic"])
    np.testing.assert_allclose(value, model_value + critic_value, rtol=1e-5)
    close = {"rtol": 1e-4, "atol": 1e-5}
    chex.assert_trees_all_close(gradient["model"], model_gradient, **close)
    chex.assert_trees_all_close(gradient["critic"], critic_gradient, **close)
    assert optax.tree.norm(critic_gradient) > 1e-2
    # TC has a part in it: without one the first comparison would prove little.
    tc_gradient = jax.jit(jax.grad(lambda p: jnp.mean(score(params["critic"], parts(p)[0]))))
    assert optax.tree.norm(tc_gradient(params["model"])) > 1e-2


def test_permuting_keeps_each_marginal_and_destroys_the_dependence(key):
    """Checked against permuting the dimensions of each row, which keeps the sum of a row."""
    noise_key, permute_key = jax.random.split(key)
    first = jax.random.normal(noise_key, (400,))
    z = jnp.stack([first, 0.1 + first, -first], axis=1)
    permuted = permute_dimensions(permute_key, z)
    np.testing.assert_array_equal(np.sort(permuted, axis=0), np.sort(z, axis=0))
    correlation = np.corrcoef(permuted.T)[np.triu_indices(3, 1)]
    assert np.all(np.abs(correlation) < 4.5 / np.sqrt(400))  # it was 1 or -1


def test_factor_trains_both_players_each_with_its_own_optimizer(factor, key):
    _, loss, params, x = factor
    optimizer = optax.partition(
        {
            "model": optax.adam(3e-3),
            "critic": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
        },
        {"model": "model", "critic": "critic"},
    )
    trained, history = run(loss, optimizer, params, x, key, steps=60, batch_size=32)
    for player in params:
        moved = optax.tree.norm(optax.tree.sub(trained[player], params[player]))
        assert 1e-2 < moved < np.inf
    assert np.mean(history["distortion"][-10:]) < 0.7 * np.mean(history["distortion"][:10])


def test_factor_critic_finds_the_total_correlation_of_a_known_code(key):
    """Correlated Gaussians: TC = -log(1 - rho^2) / 2 = 0.830 nats at rho = 0.9."""
    rho = 0.9
    data_key, critic_key, train_key = jax.random.split(key, 3)
    covariance = jnp.array([[1.0, rho], [rho, 1.0]])
    x = jax.random.multivariate_normal(data_key, jnp.zeros(LATENT), covariance, (4096,))
    params = {"model": {}, "critic": CRITIC.init(critic_key, x[0])}
    loss = factor_vae(identity_vae(1e-3), CRITIC, gamma=6.0)
    _, history = run(loss, optax.adam(3e-3), params, x, train_key, steps=600, batch_size=256)
    np.testing.assert_allclose(np.mean(history["tc"][-100:]), -0.5 * np.log1p(-(rho**2)), atol=0.2)


# ---------------------------------------------------------------- autoregressive decoder

PIXELS = 6
EVERY_IMAGE = np.indices((2,) * PIXELS).reshape(PIXELS, -1).T.astype(np.float32)


def chains(key, n=512, stay=0.9):
    """Binary x [n, 6], each pixel equal to the one before with probability `stay`."""
    first_key, flip_key = jax.random.split(key)
    first = jax.random.bernoulli(first_key, 0.5, (n, 1))
    flips = jax.random.bernoulli(flip_key, 1 - stay, (n, PIXELS - 1))
    return (jnp.cumsum(jnp.hstack([first, flips]), axis=1) % 2).astype(jnp.float32)


@pytest.fixture(scope="module")
def causal():
    """(model, params, px): an untrained model and its p(x|z) at one z."""
    encoder = nn.Sequential([MLP((16,)), heads.Normal(LATENT)])
    model = autoencoder(encoder, CausalDecoder(CausalNet(PIXELS)), STANDARD)
    params = model.init(jax.random.key(3), jnp.zeros(PIXELS))
    return model, params, model.decode(params, jnp.array([1.0, -0.5]))


def test_causal_probabilities_of_all_images_sum_to_one(causal):
    *_, px = causal
    p = np.exp(jax.vmap(px.log_prob)(EVERY_IMAGE))
    np.testing.assert_allclose(p.sum(), 1.0, atol=1e-5)
    np.testing.assert_allclose(px.mean, p @ EVERY_IMAGE, atol=1e-5)
    assert p.std() > 1e-3  # not the uniform distribution, which sums to 1 without being causal


def test_causal_jacobian_of_the_logits_is_strictly_lower_triangular(causal):
    *_, px = causal
    jacobian = jax.jacobian(px.net)(jnp.full(PIXELS, 0.5), px.z)
    assert np.all(jacobian[np.triu_indices(PIXELS)] == 0)
    assert np.all(np.abs(jacobian[np.tril_indices(PIXELS, -1)]) > 1e-4)


def test_causal_samples_have_the_enumerated_frequencies(causal, key):
    *_, px = causal
    n = 4000
    x = np.asarray(jax.jit(jax.vmap(px.sample))(jax.random.split(key, n)))
    found = np.bincount((x @ 2 ** np.arange(PIXELS)[::-1]).astype(int), minlength=64) / n
    p = np.exp(jax.vmap(px.log_prob)(EVERY_IMAGE))
    assert np.all(np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / n) + 1 / n)


def test_causal_sampling_reaches_the_last_pixel(key):
    """Each pixel copies the one before, so that an image is all 0 or all 1."""

    def copy(x, z):
        return 40 * jnp.concatenate([jnp.zeros(1), x[:-1] - 0.5])

    px = ChainRule(Partial(copy), jnp.zeros(LATENT), PIXELS)
    x = jax.vmap(px.sample)(jax.random.split(key, 50))
    np.testing.assert_array_equal(x, np.broadcast_to(x[:, :1], x.shape))
    assert set(np.asarray(x[:, 0])) == {0.0, 1.0}
    np.testing.assert_allclose(px.mean, np.full(PIXELS, 0.5), atol=1e-5)


def test_causal_decoder_learns_the_dependence_between_pixels(causal, key):
    """The bound comes near the data's entropy, log 2 + 5 h(0.1) = 2.32 nats."""
    model, params, _ = causal
    data_key, train_key, sample_key, likelihood_key = jax.random.split(key, 4)
    x = chains(data_key)
    trained, history = run(elbo(model), optax.adam(2e-2), params, x, train_key, steps=200)
    h = stats.bernoulli.entropy(0.1)
    entropy = np.log(2) + (PIXELS - 1) * h
    assert np.mean(history["loss"][:5]) > 4.0
    # 512 examples leave an entropy of their own, within 5 sd of sum_i -log p.
    sd = np.sqrt((PIXELS - 1) * 0.09) * np.log(9) / np.sqrt(len(x))
    assert entropy - 5 * sd < np.mean(history["loss"][-50:]) < entropy + 0.3
    # The library runs it: importance-sampled likelihood, and ancestral samples.
    log_px, _ = log_likelihood(model, trained, likelihood_key, x[:32], particles=8)
    assert np.all(log_px < 0)
    sample = jax.jit(jax.vmap(lambda k: generate(model, trained, k).x))
    made = sample(jax.random.split(sample_key, 500))
    stayed = np.mean(made[:, 1:] == made[:, :-1])
    np.testing.assert_allclose(stayed, 0.9, atol=0.06)


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
