"""MADE and the gated PixelCNN, against sums over every image that there is."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from vaejax import causal, distributions, heads, objectives
from vaejax.model import autoencoder
from vaejax.networks.autoregressive import Causal
from vaejax.types import Batch

SHAPE = (2, 3, 1)
SIZE = 6
ORDER = (4, 0, 5, 2, 1, 3)
NETWORKS = {
    "made": Causal(causal.MADE(SHAPE, (8,)), SHAPE),
    "made, two layers": Causal(causal.MADE(SHAPE, (9, 7)), SHAPE, order=ORDER),
    "made, not direct": Causal(
        causal.MADE(SHAPE, (8, 10, 9), direct=False, activation=nn.tanh), SHAPE, order=ORDER[::-1]
    ),
    "made, classes": Causal(causal.MADE((4,), (8, 8), classes=3), (4,), jnp.int32, (2, 0, 3, 1)),
    "pixelcnn": Causal(causal.GatedPixelCNN(SHAPE, 6, 2, first_kernel=3), SHAPE),
    "pixelcnn, classes": Causal(
        causal.GatedPixelCNN((2, 2), 3, 2, first_kernel=5, classes=3), (2, 2), jnp.int32
    ),
}


def events(network):
    """Every event, `[classes^n, *shape]`, the last entry the fastest."""
    size, classes = int(np.prod(network.shape)), network.net.classes or 2
    found = np.array(list(itertools.product(range(classes), repeat=size)))
    dtype = jnp.int32 if network.net.classes else jnp.zeros(()).dtype  # float64 in x64
    return jnp.asarray(found.reshape(-1, *network.shape), dtype)


def parameters(network, *given, members=()):
    """At random, far from the start, where most conditionals are near a half."""
    shapes = jax.eval_shape(network.init, jax.random.key(1), *given)
    rng = np.random.default_rng(2)
    draw = lambda leaf: jnp.asarray(rng.normal(size=(*members, *leaf.shape)), jnp.zeros(()).dtype)  # noqa: E731
    return jax.tree.map(draw, shapes)


def logits_of(px, u):
    """All logits in the order, `[n, classes or 1]`, in one pass."""
    return px.conditionals(u).logits.reshape(u.size, -1)


def stepped(px, u):
    """The same, one by one."""

    def one(carry, at):
        i, previous = at
        carry, p = px.step(carry, previous, i)
        return carry, jnp.ravel(p.logits)

    u = jnp.ravel(u)
    before = jnp.concatenate([jnp.zeros_like(u[:1]), u[:-1]])
    return jax.lax.scan(one, px.carry, (jnp.arange(u.size), before))[1]


def check_causal(logits, classes):
    """Entry i changes with every entry before it, and with no other, over all events."""
    size = logits.shape[1]
    grid = np.asarray(logits).reshape(*[classes] * size, size, -1)
    moved = np.stack([np.ptp(grid, axis=j).max((*range(size - 1), -1)) for j in range(size)], 1)
    assert (moved[np.triu_indices(size)] == 0).all(), moved
    assert (moved[np.tril_indices(size, -1)] > 1e-6).all(), moved


@pytest.mark.parametrize("name", NETWORKS)
def test_enumerated(name, x64):
    """Probabilities sum to 1, conditionals are strictly causal, and the steps are the pass."""
    network = NETWORKS[name]
    params, x = parameters(network), events(network)

    @jax.jit
    def measured(params, x):
        px = network.apply(params)
        of_each = lambda x: (px.log_prob(x), logits_of(px, x), stepped(px, x))  # noqa: E731
        return jax.vmap(of_each)(x)

    log_p, logits, one_by_one = measured(params, x)
    assert log_p.dtype == logits.dtype == float
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-12)
    check_causal(logits, network.net.classes or 2)
    np.testing.assert_allclose(one_by_one, logits, atol=1e-12)


def test_the_check_of_what_is_seen_sees_a_blind_spot():
    """The check of what is seen, checked against one stack of masked 3x3 convolutions."""

    class OneStack(nn.Module):
        @nn.compact
        def __call__(self, u):
            h = u
            for n in range(4):
                mask = jnp.array([[1, 1, 1], [1, float(n > 0), 0], [0, 0, 0]])[:, :, None, None]
                mask = jnp.broadcast_to(mask, (3, 3, h.shape[-1], 3))
                h = jnp.tanh(nn.Conv(3, (3, 3), mask=mask)(h[None])[0])
            return distributions.Bernoulli(nn.Dense(1)(h))

    network = Causal(OneStack(), SHAPE)
    px = network.apply(parameters(network))
    x = events(NETWORKS["pixelcnn"])
    logits = jax.jit(jax.vmap(partial(logits_of, px)))(x)
    with pytest.raises(AssertionError):
        check_causal(logits, 2)


def check_frequencies(draws, probabilities):
    """Numbers of draws against what is expected, by a chi-square that 1e-6 of all would exceed."""
    found = np.bincount(draws, minlength=len(probabilities))
    expected = len(draws) * probabilities
    assert expected.min() > 0.5
    statistic = ((found - expected) ** 2 / expected).sum()
    assert statistic < stats.chi2.ppf(1 - 1e-6, len(probabilities) - 1), statistic


@pytest.fixture(scope="module")
def ordered():
    """MADE in an order, its log-probabilities of all images, and those images."""
    network = NETWORKS["made, two layers"]
    params = jax.tree.map(lambda leaf: leaf / 2, parameters(network))
    px, x = network.apply(params), events(network)
    return px, np.asarray(jax.jit(jax.vmap(px.log_prob))(x), float), np.asarray(x)


@pytest.mark.parametrize("cached", [True, False])
def test_draws_and_completions_by_their_probabilities(ordered, cached):
    px, log_p, x = ordered
    px = px if cached else dataclasses.replace(px, step=(), carry=())
    given, known, n = jnp.asarray(x[38]), np.array([0, 3]), 20_000
    keys = jax.random.split(jax.random.key(3), n)
    completed = jax.vmap(lambda key, known: px.complete(key, given, known=known), (0, None))
    drawn = np.asarray(jax.jit(jax.vmap(completed, (None, 0)))(keys, jnp.asarray(known)))
    number = (drawn.reshape(2, n, SIZE) @ 2 ** np.arange(SIZE)[::-1]).astype(int)
    check_frequencies(number[0], np.exp(log_p))

    first, rest = list(ORDER[:3]), list(ORDER[3:])
    assert (drawn[1].reshape(n, SIZE)[:, first] == x[38].ravel()[first]).all()
    agree = (x.reshape(-1, SIZE)[:, first] == x[38].ravel()[first]).all(1)
    conditional = np.exp(log_p) * agree
    conditional /= conditional.sum()
    rows = np.flatnonzero(agree)
    check_frequencies(np.searchsorted(rows, number[1]), conditional[rows])
    # Checked against giving the first pixels of the raster where those of the order are meant.
    wrong = (x.reshape(-1, SIZE)[:, :3] == x[38].ravel()[:3]).all(1)
    assert rest != [3, 4, 5] and not (wrong == agree).all()


@pytest.mark.statistics
def test_classes_are_drawn_by_their_probabilities():
    network = NETWORKS["pixelcnn, classes"]
    px = network.apply(parameters(network))
    x = events(network)
    log_p = np.asarray(jax.jit(jax.vmap(px.log_prob))(x), float)
    drawn = jax.jit(jax.vmap(px.sample))(jax.random.split(jax.random.key(4), 30_000))
    assert drawn.dtype == jnp.int32 and drawn.shape[1:] == (2, 2) and px.discrete
    number = np.asarray(drawn).reshape(-1, 4) @ 3 ** np.arange(4)[::-1]
    kept = np.exp(log_p) > 1e-3  # those of fewer draws count as one
    groups = np.where(kept, np.cumsum(kept), 0)
    check_frequencies(groups[number], np.bincount(groups, np.exp(log_p)))


@pytest.mark.parametrize("name", ["made", "pixelcnn"])
def test_condition(name):
    """Every entry, the first too, hears c; a row of a batch of conditions is that one alone."""
    network, c = NETWORKS[name], np.random.default_rng(5).normal(size=(3, 2)).astype(np.float32)
    params = parameters(network, c[0])
    keys = jax.random.split(jax.random.key(6), 3)
    x = events(network)

    def of_one(params, c, key):
        px = network.apply(params, c)
        logits = jax.vmap(partial(logits_of, px))(x)[..., 0]
        log_p = jnp.where(x.reshape(-1, SIZE) == 1, 0, -logits) - jax.nn.softplus(-logits)
        return px.sample(key), log_p.sum(1), logits[9]

    @jax.jit
    def mapped_and_one(params, c, keys, again):
        alone = network.apply(params, c[1]).sample(again[1])
        return jax.vmap(of_one, (None, 0, 0))(params, c, keys), alone

    (drawn, log_p, logits), alone = mapped_and_one(params, c, keys, jax.random.clone(keys))
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, atol=1e-5)
    assert (np.abs(logits[0] - logits[1]) > 1e-3).all()
    np.testing.assert_array_equal(drawn[1], alone)
    assert drawn.dtype == network.dtype


@pytest.mark.parametrize("name", ["made", "pixelcnn"])
def test_a_condition_forgotten_is_refused(name):
    """Without it the network would be another distribution, and nothing would say so."""
    network = NETWORKS[name]
    params = parameters(network, jnp.ones(2))
    x = jnp.zeros((1, *network.shape), network.dtype)
    loss = objectives.maximum_likelihood(network)
    with pytest.raises(ValueError, match="c: got none, expected the condition"):
        jax.eval_shape(loss, params, jax.random.key(0), Batch(x), 0)
    with pytest.raises(ValueError, match="c: got none, expected the condition"):
        jax.eval_shape(lambda key: network.apply(params).sample(key), jax.random.key(0))
    other, without = jnp.ones((1, 5)), parameters(network)
    for own, message in (
        (params, "expected 2 numbers, as"),
        (without, "expected none, as at init"),
    ):
        with pytest.raises(ValueError, match=rf"c: got shapes .*\(5,\).* {message}"):
            jax.eval_shape(loss, own, jax.random.key(0), Batch(x, other), 0)


def test_an_ensemble_over_orders_averages_probabilities():
    """The average of probabilities sums to 1, checked against the average of logits, which peeks.

    The latter scores each entry by networks that have seen it come before.
    """
    network = NETWORKS["made"]
    orders = jnp.asarray([range(SIZE), ORDER, ORDER[::-1]])
    params = parameters(network, members=(3,))
    x = events(network)

    def member(params, order):
        return dataclasses.replace(network.apply(params), order=order)

    def check(log_prob):
        np.testing.assert_allclose(np.exp(jax.jit(jax.vmap(log_prob))(x)).sum(), 1, atol=1e-5)

    def ensemble():
        return distributions.Mixture(jnp.zeros(3), jax.vmap(member)(params, orders))

    check(lambda x: ensemble().log_prob(x))
    sampled = jax.eval_shape(lambda key: ensemble().sample(key), jax.random.key(8))
    assert sampled.shape == SHAPE

    def of_logits(x):
        def one(params, order):
            logits = logits_of(network.apply(params), x.ravel()[order].reshape(SHAPE))
            return jnp.zeros(SIZE).at[order].set(logits[:, 0])

        logits = jax.vmap(one)(params, orders).mean(0)
        return distributions.Bernoulli(logits.reshape(SHAPE)).log_prob(x)

    with pytest.raises(AssertionError):
        check(of_logits)


@pytest.mark.parametrize(
    ("net", "shape", "dtype", "error", "message"),
    [
        (causal.MADE(SHAPE), (6,), float, ValueError, r"MADE: x: got \(6,\), expected \(2, 3, 1\)"),
        (causal.MADE(SHAPE, ()), SHAPE, float, ValueError, "hidden: got"),
        (causal.MADE(SHAPE, (4, 0)), SHAPE, float, ValueError, "hidden: got"),
        (causal.MADE(SHAPE, classes=0), SHAPE, int, ValueError, "classes >= 1"),
        (causal.MADE(SHAPE, classes=2), SHAPE, float, TypeError, "integer classes; give Causal"),
        (causal.GatedPixelCNN((4,)), (4,), float, ValueError, r"shape: got \(4,\)"),
        (causal.GatedPixelCNN((4, 4, 3)), (4, 4, 3), float, ValueError, r"\[h, w, 1\]"),
        (causal.GatedPixelCNN(SHAPE, kernel_size=2), SHAPE, float, ValueError, "an odd number"),
        (causal.GatedPixelCNN(SHAPE, layers=0), SHAPE, float, ValueError, "layers >= 1"),
        (causal.GatedPixelCNN(SHAPE), (7, *SHAPE), float, ValueError, "map a batch"),
    ],
)
def test_refused(net, shape, dtype, error, message):
    dtype = jnp.int32 if dtype is int else jnp.float32
    with pytest.raises(error, match=message):
        jax.eval_shape(Causal(net, shape, dtype).init, jax.random.key(0))


def test_as_a_decoder():
    """Inside a VAE: p(x|z) = prod_i p(x_i | x_<i, z), where every parameter has its gradient."""
    encoder = nn.Sequential([lambda x: x.ravel(), heads.Normal(2)])
    model = autoencoder(
        encoder, NETWORKS["made, two layers"], distributions.Normal(*[jnp.ones(2)] * 2)
    )
    rng = np.random.default_rng(9)
    x = rng.integers(0, 2, (4, *SHAPE)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(10), x[0])
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    loss = objectives.elbo(model)
    gradient = jax.jit(jax.grad(lambda p: loss(p, jax.random.key(11), Batch(x), 0)[0]))(params)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    sample = lambda params, key: model.decode(params, jnp.ones(2)).sample(key)  # noqa: E731
    drawn = jax.eval_shape(sample, params, jax.random.key(12))
    assert drawn.shape == SHAPE
