"""Penalties against closed forms, batch top-k by hand, thresholds and firing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import stats

from tests.families.autoencoders.shared import (
    CODES,
    LATENT,
    RELU,
    SIZE,
    UNIT,
    X,
    dying,
    encoded,
    largest_by_hand,
    model_of,
)
from vaejax import autoencoders, distributions, heads, sparsity, train
from vaejax.types import Batch

RHO = 0.2
Z = np.random.default_rng(0).uniform(0.05, 0.9, (6, 4)).astype(np.float32)
WEIGHT = np.array([1, 0, 2, 1, 0, 0.5], np.float32)
KL, SQUARED = sparsity.kl(RHO), sparsity.squared(RHO)


def test_l1_is_minus_the_log_of_a_laplace_prior_up_to_its_constant():
    lam = 3.0
    minus_log_prior = -np.mean(np.sum(stats.laplace.logpdf(Z, scale=1 / lam), axis=1))
    constant = -4 * np.log(lam / 2)
    l1 = jax.jit(sparsity.l1)
    assert lam * l1(Z) + constant == pytest.approx(minus_log_prior, rel=1e-5)
    assert l1(-Z) == l1(Z)


def test_kl_and_squared_are_their_closed_forms():
    m = Z.mean(axis=0, dtype=np.float64)
    kl, squared = jax.jit(KL), jax.jit(SQUARED)
    expected = sum(stats.entropy([RHO, 1 - RHO], [p, 1 - p]) for p in m)
    assert kl(Z) == pytest.approx(expected, rel=1e-5)
    assert squared(Z) == pytest.approx(np.sum((m - RHO) ** 2), rel=1e-5)
    at_target = np.full((6, 4), RHO, np.float32)
    assert abs(kl(at_target)) < 1e-6
    assert abs(squared(at_target)) < 1e-12


def test_gradients_are_their_closed_forms():
    m, n = Z.mean(axis=0), len(Z)
    gradients = {
        "l1": (sparsity.l1, np.ones(4) / n),
        "kl": (KL, ((1 - RHO) / (1 - m) - RHO / m) / n),
        "squared": (SQUARED, 2 * (m - RHO) / n),
    }
    for penalty, expected in gradients.values():
        got = jax.jit(jax.grad(penalty))(Z)
        np.testing.assert_allclose(got, np.tile(expected, (n, 1)), rtol=1e-4)


def check_over_the_batch(penalty):
    """A unit that is on for a fifth of the examples has the mean asked for: nothing to pay."""
    z = np.zeros((10, 3), np.float32)
    z[:2] = 1
    assert abs(jax.jit(penalty)(z)) < 1e-5


def test_the_mean_is_of_each_unit_over_the_batch():
    """Checked against the means over the units of an example, and against entries one by one."""

    def over_units(z, weight=()):
        return SQUARED(z.T)

    def entry_by_entry(z, weight=()):
        return jnp.mean(jnp.sum((z - RHO) ** 2, axis=1))

    check_over_the_batch(KL)
    check_over_the_batch(SQUARED)
    for mistaken in (over_units, entry_by_entry):
        with pytest.raises(AssertionError):
            check_over_the_batch(mistaken)


@pytest.mark.parametrize("penalty", [sparsity.l1, KL, SQUARED])
def test_masked_examples_are_left_out_and_others_count_by_weight(penalty):
    repeated = np.concatenate([Z[[0, 0, 2, 2, 2, 2, 3, 3]], Z[[5]]])
    masked = Z.copy()
    masked[[1, 4]] = np.nan
    penalty = jax.jit(penalty)
    assert penalty(masked, WEIGHT) == pytest.approx(float(penalty(repeated)), rel=1e-5)


def check_mends_units_at_the_ends(penalty):
    """In float32 a mean of exactly 0 or 1: a finite value, and a gradient that leads back."""
    both = jax.jit(jax.value_and_grad(penalty))
    for end, sign in ((0.0, -1), (1.0, 1)):
        value, gradient = both(np.full((4, 2), end, np.float32))
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
        assert np.all(sign * np.asarray(gradient) > 1)


def test_dead_and_stuck_units_have_a_finite_gradient_that_mends_them():
    """Checked against the formula as it is written, and against a clipped mean."""

    def written(z, weight=()):
        m = jnp.mean(z, axis=0)
        return jnp.sum(RHO * jnp.log(RHO / m) + (1 - RHO) * jnp.log((1 - RHO) / (1 - m)))

    def clipped(z, weight=()):
        eps = 1e-7
        m = jnp.clip(jnp.mean(z, axis=0), eps, 1 - eps)
        return jnp.sum(RHO * jnp.log(RHO / m) + (1 - RHO) * jnp.log((1 - RHO) / (1 - m)))

    check_mends_units_at_the_ends(KL)
    for mistaken in (written, clipped):
        with pytest.raises(AssertionError):
            check_mends_units_at_the_ends(mistaken)
    saturated = jax.jit(jax.grad(lambda a: KL(jax.nn.sigmoid(a))))(np.full((4, 2), -1e4, "f"))
    assert np.all(np.isfinite(saturated))


@pytest.mark.parametrize("rho", [0.0, 1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("penalty", [sparsity.kl, sparsity.squared])
def test_rho_outside_0_1_is_refused(penalty, rho):
    with pytest.raises(
        ValueError, match=r"rho: got .*, expected a mean activation inside \(0, 1\)"
    ):
        penalty(rho)


def test_rho_may_be_mapped_over_and_is_then_not_checked():
    for penalty in (sparsity.kl, sparsity.squared):
        mapped = jax.jit(jax.vmap(lambda rho, of=penalty: of(rho)(Z)))
        found = mapped(np.array([0.1, RHO], np.float32))
        expected = [jax.jit(penalty(rho))(Z) for rho in (0.1, RHO)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bfloat16_codes_have_means_and_divergence_in_float32():
    """Their eps of 2^-8 is no mean to squeeze into, nor may rounding make a negative divergence."""
    kl = jax.jit(jax.vmap(lambda rho, z: sparsity.kl(rho)(z)))
    squared = jax.jit(jax.vmap(lambda rho, z: sparsity.squared(rho)(z)))
    rho = np.array([0.01, 0.05], np.float32)
    at_target = np.tile(rho.astype(jnp.bfloat16)[:, None, None], (1, 64, 4))
    found = np.asarray(kl(rho, at_target))
    assert np.all((found >= 0) & (found < 1e-5))
    dead = np.zeros((2, 64, 4), np.float32)
    np.testing.assert_allclose(kl(rho, dead.astype(jnp.bfloat16)), kl(rho, dead), rtol=1e-6)
    expected = np.sum((at_target[:, 0].astype(np.float32) - rho[:, None]) ** 2, axis=1)
    np.testing.assert_allclose(squared(rho, at_target), expected, rtol=1e-3)
    rho = np.linspace(0.01, 0.99, 300, dtype=np.float32)
    values = np.asarray(kl(rho, np.tile(rho[:, None, None], (1, 3, 1))))
    assert np.all((values >= 0) & (values < 1e-6))


@pytest.mark.statistics
def test_sparse_trains_towards_rho():
    """Units driven by Adam from a mean near 1/2 to the target, on sigmoid codes."""
    model = model_of(heads.Code(LATENT, nn.sigmoid))
    start = jax.jit(model.init)(jax.random.key(0), X[0])
    loss = autoencoders.sparse(model, penalty=KL, weight=30.0)
    run = train.make_train(loss, optax.adam(0.03), steps=300, batch_size=20)
    state, history = jax.jit(run)(jax.random.key(1), start, X)
    means = np.mean(jax.vmap(lambda x: model.encode(state.params, x).mean)(X), axis=0)
    assert np.all(np.abs(means - RHO) < 0.05)
    assert history["penalty"][-1] < 0.1 * history["penalty"][0]


def test_top_k_keeps_exactly_k_of_equals_and_of_negatives():
    head = heads.TopK(6, 3)
    made = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros(6))
    identity = {"params": {"code": {"kernel": np.eye(6), "bias": np.zeros(6)}}}
    assert jax.tree.structure(made) == jax.tree.structure(identity)
    code = jax.jit(lambda h: head.apply(identity, h).mean)
    cases = {
        (3.0, -1, 5, 2, 4, 0): (3.0, 0, 5, 0, 4, 0),
        (1.0, 1, 1, 1, 1, 1): (1.0, 1, 1, 0, 0, 0),
        (-1.0, -2, -3, -4, -5, -6): (-1.0, -2, -3, 0, 0, 0),
    }
    for h, expected in cases.items():
        z = np.asarray(code(np.array(h, np.float32)))
        assert z.tolist() == list(expected)
        assert np.sum(z != 0) == 3
    for k in (0, 7):
        with pytest.raises(ValueError, match=r"TopK: k: got .*, expected 1 to 6, the code's size"):
            heads.TopK(6, k).init(jax.random.key(0), jnp.zeros(6))


@pytest.mark.parametrize("weight", [(), WEIGHT])
def test_the_batch_keeps_its_largest_and_ties_go_to_the_first(weight):
    z = np.round(4 * Z) / 4 - 0.25  # many equals, some below zero
    counted = np.ones(6) if isinstance(weight, tuple) else weight > 0
    for k in (1, 2, 4):
        kept = jax.jit(sparsity.largest, static_argnums=1)(z, k, weight)
        np.testing.assert_array_equal(kept, largest_by_hand(z, k, counted))
    for k in (0, 5):
        with pytest.raises(ValueError, match=r"batch_top_k: k: got .*, expected 1 to 4"):
            sparsity.largest(jnp.asarray(z), k, weight)


def batch_top_k_by_hand(params, x, k):
    z = np.asarray(CODES[RELU](params, x))
    kept = largest_by_hand(z, k, np.ones(len(x)))
    decoder = params["decoder"]["params"]["loc"]
    loc = kept @ np.asarray(decoder["kernel"]) + np.asarray(decoder["bias"])
    D = np.sum((x - loc) ** 2, axis=1) + 0.5 * SIZE * np.log(np.pi)  # a variance of 1/2
    return D.mean(), np.mean(kept != 0), kept[kept > 0].min()


def check_batch_top_k(loss, params):
    value, metrics = jax.jit(loss)(params, jax.random.key(0), Batch(X[:8]), 0)
    D, active, theta = batch_top_k_by_hand(params, X[:8], 2)
    assert value == pytest.approx(D, rel=1e-5)
    assert metrics["active"] == pytest.approx(active)
    assert metrics["threshold"] == pytest.approx(theta)


def test_batch_top_k_keeps_k_in_the_mean_of_the_batch(params):
    """Checked against k of each example, which is another code."""
    check_batch_top_k(autoencoders.batch_top_k(RELU, k=2), params)
    each = autoencoders.reconstruction(model_of(heads.TopK(LATENT, 2)))

    def mistaken(*arguments):
        value, metrics = each(*arguments)
        return value, metrics | {"active": 2 / LATENT, "threshold": 0.0}

    with pytest.raises(AssertionError):
        check_batch_top_k(mistaken, params)


def test_masked_examples_take_no_places_in_the_batch(params):
    loss = autoencoders.batch_top_k(RELU, k=2)
    weight = np.array([1.0, 0, 1, 1, 0, 0, 1, 1], np.float32)
    x = np.where(weight[:, None] > 0, X[:8], np.float32(np.nan))
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    masked = gradient(params, jax.random.key(0), Batch(x, weight=weight), 0)
    alone = gradient(params, jax.random.key(0), Batch(X[:8][weight > 0]), 0)
    for got, expected in zip(jax.tree.leaves(masked), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    dead = jax.tree.map(np.zeros_like, params)
    (_, metrics), _ = gradient(dead, jax.random.key(0), Batch(X[:8][weight > 0]), 0)
    assert metrics["threshold"] == 0


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_batch_top_k_gives_each_part_a_key_and_the_condition_and_codes_their_shape(part):
    """One part adds noise and the condition; the decoder wants the code as the encoder made it."""

    def added(where, value, c, key):
        noise = jax.random.normal(key, c.shape)  # no key, no noise: an error
        return value + (noise + c).reshape(value.shape) if where == part else value

    def encode(params, x, c=(), *, key=None):
        return distributions.Delta(added("encoder", x.reshape(2, 3), c, key))

    def decode(params, z, c=(), *, key=None):
        assert z.shape == (2, 3)
        return distributions.Normal(added("decoder", z, c, key).ravel(), jnp.ones(6))

    model = RELU._replace(encode=encode, decode=decode)
    loss = jax.jit(autoencoders.batch_top_k(model, k=6))
    x, c = Z[:, [0, 1, 2, 3, 0, 1]], np.ones((6, 6), np.float32)
    one = loss({}, jax.random.key(0), Batch(x, c), 0)[0]
    assert one != loss({}, jax.random.key(1), Batch(x, c), 0)[0]
    assert one != loss({}, jax.random.key(0), Batch(x, 2 * c), 0)[0]


def negated(key, x):
    return -x


def test_the_threshold_counts_by_weight_and_prepares_the_data(params, key):
    """Masked rows, whatever they hold, leave no trace; a batch of them alone does not count."""
    weight = np.repeat(np.array([1, 0], np.float32), 20)
    z = np.asarray(CODES[RELU](params, X))
    kept = [largest_by_hand(z[i : i + 8], 2, weight[i : i + 8]) for i in (0, 8, 16)]
    expected = np.mean([part[part > 0].min() for part in kept])
    for fill in (np.nan, 1e3):
        x = np.where(weight[:, None] > 0, X, np.float32(fill))
        theta = sparsity.threshold(RELU, params, key, Batch(x, weight=weight), k=2, batch_size=8)
        assert theta == pytest.approx(expected, rel=1e-5)
    options = {"k": 2, "batch_size": 8}
    turned = sparsity.threshold(RELU, params, key, X, transform=negated, **options)
    assert turned == pytest.approx(sparsity.threshold(RELU, params, key, -X, **options))
    assert turned != pytest.approx(sparsity.threshold(RELU, params, key, X, **options), rel=1e-2)
    with pytest.raises(ValueError, match="threshold: the sum of the code is nan for example 20 "):
        sparsity.threshold(RELU, params, key, x * np.where(weight, 1, np.nan)[:, None], **options)
    quiet = np.where(np.arange(40)[:, None] < 8, 0, X)  # one batch that counts and has no unit on
    with pytest.raises(ValueError, match="threshold: the codes: got a batch with none above zero"):
        sparsity.threshold(RELU, params, key, quiet, **options)
    with pytest.raises(ValueError, match="threshold: data.weight: got no weight above 0"):
        sparsity.threshold(RELU, params, key, Batch(X, weight=0 * weight), **options)
    with pytest.raises(TypeError, match=r"batch_top_k: k: got 2\.0, expected a whole number"):
        sparsity.largest(jnp.asarray(Z), 2.0)
    with pytest.raises(TypeError, match=r"l1: z: got None, expected codes \[batch, latent\]"):
        sparsity.l1(None)
    with pytest.raises(ValueError, match=r"squared: z: got shape \(4,\), expected codes"):
        sparsity.squared(0.1)(jnp.ones(4))


def test_the_threshold_keeps_as_many_of_examples_alone(params, key):
    theta = sparsity.threshold(RELU, params, key, X, k=2, batch_size=8)
    by_hand = [batch_top_k_by_hand(params, X[i : i + 8], 2)[2] for i in range(0, 40, 8)]
    assert theta == pytest.approx(np.mean(by_hand), rel=1e-5)
    alone = sparsity.thresholded(RELU, theta)
    z = np.asarray(CODES[RELU](params, X))
    kept = np.asarray(jax.jit(jax.vmap(partial(encoded, alone), (None, 0)))(params, X))
    np.testing.assert_allclose(kept, np.where(z > theta, z, 0), rtol=1e-6)
    assert np.mean(np.sum(kept != 0, axis=1)) == pytest.approx(2, abs=0.5)
    with pytest.raises(ValueError, match="threshold: the codes: got a batch with none above zero"):
        sparsity.threshold(RELU, jax.tree.map(np.zeros_like, params), key, X, k=2, batch_size=8)
    with pytest.raises(ValueError, match="k: got 8, expected 1 to 7"):
        sparsity.threshold(RELU, params, key, X, k=8)


def test_firing_counts_each_unit_over_the_data(unit_params, key):
    params = dying(unit_params, [2, 5])
    z = np.asarray(CODES[UNIT](params, X))
    expected = (z != 0).mean(axis=0)
    for batch_size in (7, 40):
        share = sparsity.firing(UNIT, params, key, X, batch_size=batch_size)
        np.testing.assert_allclose(share, expected, rtol=1e-5)
    assert np.flatnonzero(share == 0).tolist() == [2, 5]
    assert share.sum() == pytest.approx(2)
    weight = np.arange(40.0, dtype=np.float32)
    share = sparsity.firing(UNIT, params, key, Batch(X, weight=weight), batch_size=7)
    np.testing.assert_allclose(share, weight @ (z != 0) / weight.sum(), rtol=1e-5)


def test_firing_prepares_the_data_and_reports_what_is_not_finite(params, key):
    turned = sparsity.firing(RELU, params, key, X, transform=negated, batch_size=40)
    np.testing.assert_array_equal(turned, sparsity.firing(RELU, params, key, -X, batch_size=40))
    assert np.any(turned != sparsity.firing(RELU, params, key, X, batch_size=40))
    x, weight = X.copy(), np.ones(40, np.float32)
    x[[7, 30]], weight[[7, 30]] = np.nan, 0
    for batch_size in (7, 40):
        message = r"firing: the sum of the code is nan for example 7 \(2 such of 40\)"
        with pytest.raises(ValueError, match=message):
            sparsity.firing(RELU, params, key, x, batch_size=batch_size)
        masked = sparsity.firing(RELU, params, key, Batch(x, weight=weight), batch_size=batch_size)
        alone = np.mean(np.asarray(CODES[RELU](params, X))[weight > 0] != 0, axis=0)
        np.testing.assert_allclose(masked, alone, rtol=1e-5)
    with pytest.raises(ValueError, match="firing: data.weight: got no weight above 0"):
        sparsity.firing(RELU, params, key, Batch(X, weight=0 * weight))
