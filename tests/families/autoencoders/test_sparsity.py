"""Penalties against closed forms, batch top-k by hand, and dead units that live again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import stats

from vaejax import autoencoders, distributions, heads, networks, sparsity, train
from vaejax.model import autoencoder
from vaejax.types import Batch

RHO = 0.2
Z = np.random.default_rng(0).uniform(0.05, 0.9, (6, 4)).astype(np.float32)
WEIGHT = np.array([1, 0, 2, 1, 0, 0.5], np.float32)
SIZE, LATENT = 5, 7


def model_of(head, **options):
    return autoencoder(head, heads.FixedNormal(SIZE, 0.5**0.5, **options))


RELU = model_of(heads.Code(LATENT, nn.relu))
UNIT = sparsity.unit_columns(model_of(heads.TopK(LATENT, 2)))
X = np.random.default_rng(1).normal(size=(40, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return RELU.init(jax.random.key(0), X[0])


@pytest.fixture(scope="module")
def unit_params():
    return UNIT.init(jax.random.key(1), X[0])


# Penalties


def test_l1_is_minus_the_log_of_a_laplace_prior_up_to_its_constant():
    lam = 3.0
    prior = distributions.Laplace(jnp.zeros(4), jnp.full(4, 1 / lam))
    minus_log_prior = -np.mean([prior.log_prob(z) for z in Z])
    constant = -4 * np.log(lam / 2)
    assert lam * sparsity.l1(Z) + constant == pytest.approx(minus_log_prior, rel=1e-5)
    assert sparsity.l1(-Z) == sparsity.l1(Z)


def test_kl_and_squared_are_their_closed_forms():
    m = Z.mean(axis=0, dtype=np.float64)
    expected = sum(stats.entropy([RHO, 1 - RHO], [p, 1 - p]) for p in m)
    assert sparsity.kl(RHO)(Z) == pytest.approx(expected, rel=1e-5)
    assert sparsity.squared(RHO)(Z) == pytest.approx(np.sum((m - RHO) ** 2), rel=1e-5)
    at_target = jnp.full((6, 4), RHO)
    assert abs(sparsity.kl(RHO)(at_target)) < 1e-6
    assert abs(sparsity.squared(RHO)(at_target)) < 1e-12


def test_gradients_are_their_closed_forms():
    m, n = Z.mean(axis=0), len(Z)
    gradients = {
        "l1": (sparsity.l1, np.ones(4) / n),
        "kl": (sparsity.kl(RHO), ((1 - RHO) / (1 - m) - RHO / m) / n),
        "squared": (sparsity.squared(RHO), 2 * (m - RHO) / n),
    }
    for penalty, expected in gradients.values():
        got = jax.grad(penalty)(jnp.asarray(Z))
        np.testing.assert_allclose(got, np.tile(expected, (n, 1)), rtol=1e-4)


def check_over_the_batch(penalty):
    """A unit that is on for a fifth of the examples has the mean asked for: nothing to pay."""
    z = jnp.zeros((10, 3)).at[:2].set(1.0)
    assert abs(penalty(z)) < 1e-5


def test_the_mean_is_of_each_unit_over_the_batch():
    """Checked against the means over the units of an example, and against entries one by one."""

    def over_units(z, weight=()):
        return sparsity.squared(RHO)(z.T)

    def entry_by_entry(z, weight=()):
        return jnp.mean(jnp.sum((z - RHO) ** 2, axis=1))

    check_over_the_batch(sparsity.kl(RHO))
    check_over_the_batch(sparsity.squared(RHO))
    for mistaken in (over_units, entry_by_entry):
        with pytest.raises(AssertionError):
            check_over_the_batch(mistaken)


@pytest.mark.parametrize("penalty", [sparsity.l1, sparsity.kl(RHO), sparsity.squared(RHO)])
def test_masked_examples_are_left_out_and_others_count_by_weight(penalty):
    repeated = np.concatenate([Z[[0, 0, 2, 2, 2, 2, 3, 3]], Z[[5]]])
    masked = Z.copy()
    masked[[1, 4]] = np.nan
    assert penalty(masked, WEIGHT) == pytest.approx(float(penalty(repeated)), rel=1e-5)


def check_mends_units_at_the_ends(penalty):
    """In float32 a mean of exactly 0 or 1: a finite value, and a gradient that leads back."""
    for end, sign in ((0.0, -1), (1.0, 1)):
        value, gradient = jax.value_and_grad(penalty)(jnp.full((4, 2), end))
        assert jnp.isfinite(value)
        assert jnp.all(jnp.isfinite(gradient))
        assert jnp.all(sign * gradient > 1)


def test_dead_and_stuck_units_have_a_finite_gradient_that_mends_them():
    """Checked against the formula as it is written, and against a clipped mean."""

    def written(z, weight=()):
        m = jnp.mean(z, axis=0)
        return jnp.sum(RHO * jnp.log(RHO / m) + (1 - RHO) * jnp.log((1 - RHO) / (1 - m)))

    def clipped(z, weight=()):
        eps = 1e-7
        m = jnp.clip(jnp.mean(z, axis=0), eps, 1 - eps)
        return jnp.sum(RHO * jnp.log(RHO / m) + (1 - RHO) * jnp.log((1 - RHO) / (1 - m)))

    check_mends_units_at_the_ends(sparsity.kl(RHO))
    for mistaken in (written, clipped):
        with pytest.raises(AssertionError):
            check_mends_units_at_the_ends(mistaken)
    saturated = jax.grad(lambda a: sparsity.kl(RHO)(jax.nn.sigmoid(a)))(jnp.full((4, 2), -1e4))
    assert jnp.all(jnp.isfinite(saturated))


@pytest.mark.parametrize("rho", [0.0, 1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("penalty", [sparsity.kl, sparsity.squared])
def test_rho_outside_0_1_is_refused(penalty, rho):
    with pytest.raises(
        ValueError, match=r"rho: got .*, expected a mean activation inside \(0, 1\)"
    ):
        penalty(rho)


def test_rho_may_be_mapped_over_and_is_then_not_checked():
    for penalty in (sparsity.kl, sparsity.squared):
        mapped = jax.vmap(lambda rho, of=penalty: of(rho)(Z))(jnp.array([0.1, RHO]))
        np.testing.assert_allclose(mapped, [penalty(0.1)(Z), penalty(RHO)(Z)], rtol=1e-5)


def test_bfloat16_codes_have_means_and_divergence_in_float32():
    """Their eps of 2^-8 is no mean to squeeze into, nor may rounding make a negative divergence."""
    for rho in (0.01, 0.05):
        at_target = jnp.full((64, 4), rho, jnp.bfloat16)
        assert 0 <= sparsity.kl(rho)(at_target) < 1e-5
        exact = at_target[0].astype(jnp.float32)
        dead = sparsity.kl(rho)(jnp.zeros((64, 4), jnp.bfloat16))
        assert dead == pytest.approx(float(sparsity.kl(rho)(jnp.zeros((64, 4)))))
        assert sparsity.squared(rho)(at_target) == pytest.approx(
            float(jnp.sum((exact - rho) ** 2)), rel=1e-3
        )
    rho = jnp.linspace(0.01, 0.99, 300)
    values = jax.vmap(lambda r: sparsity.kl(r)(jnp.full((3, 1), r)))(rho)
    assert jnp.all((values >= 0) & (values < 1e-6))


def test_sparse_trains_towards_rho():
    """Units driven by Adam from a mean near 1/2 to the target, on sigmoid codes."""
    model = model_of(heads.Code(LATENT, nn.sigmoid))
    start = model.init(jax.random.key(0), X[0])
    loss = autoencoders.sparse(model, penalty=sparsity.kl(RHO), weight=30.0)
    run = train.make_train(loss, optax.adam(0.03), steps=300, batch_size=20)
    state, history = jax.jit(run)(jax.random.key(1), start, X)
    means = jax.vmap(lambda x: model.encode(state.params, x).mean)(X).mean(axis=0)
    assert np.all(np.abs(means - RHO) < 0.05)
    assert history["penalty"][-1] < 0.1 * history["penalty"][0]


# Top-k


def test_top_k_keeps_exactly_k_of_equals_and_of_negatives():
    head = heads.TopK(6, 3)
    made = head.init(jax.random.key(0), jnp.zeros(6))
    identity = {"params": {"code": {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}}}
    assert jax.tree.structure(made) == jax.tree.structure(identity)
    cases = {
        (3.0, -1, 5, 2, 4, 0): (3.0, 0, 5, 0, 4, 0),
        (1.0, 1, 1, 1, 1, 1): (1.0, 1, 1, 0, 0, 0),
        (-1.0, -2, -3, -4, -5, -6): (-1.0, -2, -3, 0, 0, 0),
    }
    for h, expected in cases.items():
        z = head.apply(identity, jnp.asarray(h)).mean
        assert z.tolist() == list(expected)
        assert jnp.sum(z != 0) == 3
    for k in (0, 7):
        with pytest.raises(ValueError, match=r"TopK: k: got .*, expected 1 to 6, the code's size"):
            heads.TopK(6, k).init(jax.random.key(0), jnp.zeros(6))


def largest_by_hand(z, k, counted):
    order = sorted(
        ((z[i, j], -i, -j) for i in np.flatnonzero(counted) for j in range(z.shape[1])),
        reverse=True,
    )
    kept = np.zeros_like(z)
    for value, i, j in order[: k * int(np.sum(counted))]:
        kept[-i, -j] = value
    return kept


@pytest.mark.parametrize("weight", [(), WEIGHT])
def test_the_batch_keeps_its_largest_and_ties_go_to_the_first(weight):
    z = np.round(4 * Z) / 4 - 0.25  # many equals, some below zero
    counted = np.ones(6) if isinstance(weight, tuple) else weight > 0
    for k in (1, 2, 4):
        kept = sparsity.largest(jnp.asarray(z), k, weight)
        np.testing.assert_array_equal(kept, largest_by_hand(z, k, counted))
    for k in (0, 5):
        with pytest.raises(ValueError, match=r"batch_top_k: k: got .*, expected 1 to 4"):
            sparsity.largest(jnp.asarray(z), k, weight)


def batch_top_k_by_hand(params, x, k):
    z = jax.vmap(lambda one: RELU.encode(params, one).mean)(x)
    kept = largest_by_hand(np.asarray(z), k, np.ones(len(x)))
    D = [-RELU.decode(params, z_i).log_prob(x_i) for x_i, z_i in zip(x, kept, strict=True)]
    return np.mean(D), np.mean(kept != 0), kept[kept > 0].min()


def check_batch_top_k(loss, params):
    value, metrics = loss(params, jax.random.key(0), Batch(X[:8]), 0)
    D, active, theta = batch_top_k_by_hand(params, X[:8], 2)
    assert value == pytest.approx(D, rel=1e-5)
    assert metrics["active"] == pytest.approx(active)
    assert metrics["threshold"] == pytest.approx(theta)


def test_batch_top_k_keeps_k_in_the_mean_of_the_batch(params):
    """Checked against k of each example, which is another code."""
    check_batch_top_k(jax.jit(autoencoders.batch_top_k(RELU, k=2)), params)
    each = autoencoders.reconstruction(model_of(heads.TopK(LATENT, 2)))

    def mistaken(*arguments):
        value, metrics = each(*arguments)
        return value, metrics | {"active": 2 / LATENT, "threshold": 0.0}

    with pytest.raises(AssertionError):
        check_batch_top_k(mistaken, params)


def test_masked_examples_take_no_places_in_the_batch(params):
    loss = autoencoders.batch_top_k(RELU, k=2)
    weight = jnp.array([1.0, 0, 1, 1, 0, 0, 1, 1])
    x = jnp.where(weight[:, None] > 0, X[:8], jnp.nan)
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    masked = gradient(params, jax.random.key(0), Batch(x, weight=weight), 0)
    alone = gradient(params, jax.random.key(0), Batch(X[:8][weight > 0]), 0)
    for got, expected in zip(jax.tree.leaves(masked), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    dead = jax.tree.map(jnp.zeros_like, params)
    assert loss(dead, jax.random.key(0), Batch(X[:8]), 0)[1]["threshold"] == 0


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
    loss = autoencoders.batch_top_k(model, k=6)
    x, c = Z[:, [0, 1, 2, 3, 0, 1]], jnp.ones((6, 6))
    one = loss({}, jax.random.key(0), Batch(x, c), 0)[0]
    assert one != loss({}, jax.random.key(1), Batch(x, c), 0)[0]
    assert one != loss({}, jax.random.key(0), Batch(x, 2 * c), 0)[0]


def negated(key, x):
    return -x


def test_the_threshold_counts_by_weight_and_prepares_the_data(params, key):
    """Masked rows, whatever they hold, leave no trace; a batch of them alone does not count."""
    weight = np.repeat(np.array([1, 0], np.float32), 20)
    z = np.array(jax.vmap(lambda x: RELU.encode(params, x).mean)(X))
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


def test_the_threshold_keeps_as_many_of_examples_alone(params, key):
    theta = sparsity.threshold(RELU, params, key, X, k=2, batch_size=8)
    by_hand = [batch_top_k_by_hand(params, X[i : i + 8], 2)[2] for i in range(0, 40, 8)]
    assert theta == pytest.approx(np.mean(by_hand), rel=1e-5)
    alone = sparsity.thresholded(RELU, theta)
    z = jax.vmap(lambda x: RELU.encode(params, x).mean)(X)
    kept = jax.vmap(lambda x: alone.encode(params, x).mean)(X)
    np.testing.assert_array_equal(kept, np.where(z > theta, z, 0))
    assert jnp.sum(kept != 0, axis=1).mean() == pytest.approx(2, abs=0.5)
    with pytest.raises(ValueError, match="threshold: the codes: got a batch with none above zero"):
        sparsity.threshold(RELU, jax.tree.map(jnp.zeros_like, params), key, X, k=2)
    with pytest.raises(ValueError, match="k: got 8, expected 1 to 7"):
        sparsity.threshold(RELU, params, key, X, k=8)


# Dictionaries


def kernel_scaled(params, c):
    def scale(path, leaf):
        return c * leaf if path[0].key == "decoder" and leaf.ndim == 2 else leaf

    return jax.tree_util.tree_map_with_path(scale, params)


def test_atoms_have_unit_norm_and_are_what_a_unit_adds(unit_params):
    atoms = sparsity.atoms(kernel_scaled(unit_params, 7.0))
    assert atoms.shape == (LATENT, SIZE)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, rtol=1e-5)

    def decoded(z):
        return UNIT.decode(kernel_scaled(unit_params, 7.0), z).mean

    for j in (0, 3):
        added = decoded(jnp.zeros(LATENT).at[j].set(2.0)) - decoded(jnp.zeros(LATENT))
        np.testing.assert_allclose(added, 2 * atoms[j], rtol=1e-4, atol=1e-6)
    (kernel,) = networks.kernels(unit_params["decoder"]).values()
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=1), 1, rtol=1e-5)


def test_no_gradient_goes_along_an_atom_or_is_lost_at_zero(unit_params):
    loss = autoencoders.reconstruction(UNIT)
    batch = Batch(X)

    @jax.jit
    def gradient(params):
        grads = jax.grad(loss, has_aux=True)(params, jax.random.key(0), batch, 0)[0]
        return next(iter(networks.kernels(grads["decoder"]).values()))

    along = jnp.sum(gradient(unit_params) * sparsity.atoms(unit_params), axis=1)
    assert jnp.max(jnp.abs(gradient(unit_params))) > 1e-2
    assert jnp.max(jnp.abs(along)) < 1e-5
    assert jnp.all(jnp.isfinite(gradient(kernel_scaled(unit_params, 0.0))))


def check_small_codes_do_not_pay(model, params):
    """Codes a hundredth as large and atoms a hundred times: the same picture must not come."""
    z = jnp.arange(1.0, LATENT + 1)
    plain = model.decode(params, z).mean
    cheated = model.decode(kernel_scaled(params, 100.0), z / 100).mean
    assert not np.allclose(plain, cheated, rtol=1e-3)


def test_under_a_penalty_the_dictionary_cannot_grow_instead(params, unit_params):
    """Checked against a dictionary of free norm, where l1 shrinks codes and changes nothing."""
    check_small_codes_do_not_pay(UNIT, unit_params)
    with pytest.raises(AssertionError):
        check_small_codes_do_not_pay(RELU, params)


def test_the_transposed_start_and_what_has_no_dictionary(unit_params, key):
    start = sparsity.transposed(unit_params)
    (kernel,) = networks.kernels(start["encoder"]).values()
    np.testing.assert_array_equal(kernel, sparsity.atoms(unit_params).T)
    deep = autoencoder(
        nn.Sequential([networks.MLP((6,)), heads.Code(LATENT)]),
        nn.Sequential([networks.MLP((6,)), heads.FixedNormal(SIZE, 1.0)]),
    )
    deep_params = deep.init(key, X[0])
    for function in (sparsity.atoms, sparsity.transposed):
        with pytest.raises(ValueError, match=r"got kernels \[.*, expected one dense layer"):
            function(deep_params)
    with pytest.raises(ValueError, match="unit_columns: the decoder"):
        sparsity.unit_columns(deep).init(jax.random.key(1), X[0])
    for function, name in ((sparsity.atoms, "atoms"), (sparsity.transposed, "transposed")):
        with pytest.raises(ValueError, match=f"{name}: params: got a tuple, .*of one autoencoder"):
            function((unit_params,))


# Units that never fire


def dying(params, dead):
    """The parameters with some units that can never be among the two largest."""
    bias = params["encoder"]["params"]["code"]["bias"].at[jnp.array(dead)].set(-1e3)
    code = params["encoder"]["params"]["code"] | {"bias": bias}
    return {**params, "encoder": {"params": {"code": code}}}


def test_firing_counts_each_unit_over_the_data(unit_params, key):
    params = dying(unit_params, [2, 5])
    z = np.stack([UNIT.encode(params, x).mean for x in X])
    expected = (z != 0).mean(axis=0)
    for batch_size in (7, 40, 500):
        share = sparsity.firing(UNIT, params, key, X, batch_size=batch_size)
        np.testing.assert_allclose(share, expected, rtol=1e-5)
    assert np.flatnonzero(share == 0).tolist() == [2, 5]
    assert share.sum() == pytest.approx(2)
    weight = np.arange(40.0, dtype=np.float32)
    share = sparsity.firing(UNIT, params, key, Batch(X, weight=weight), batch_size=7)
    np.testing.assert_allclose(share, weight @ (z != 0) / weight.sum(), rtol=1e-5)


def test_firing_prepares_the_data_and_reports_what_is_not_finite(params, key):
    turned = sparsity.firing(RELU, params, key, X, transform=negated)
    np.testing.assert_array_equal(turned, sparsity.firing(RELU, params, key, -X))
    assert np.any(turned != sparsity.firing(RELU, params, key, X))
    x, weight = X.copy(), np.ones(40, np.float32)
    x[[7, 30]], weight[[7, 30]] = np.nan, 0
    for batch_size in (9, 40):
        message = r"firing: the sum of the code is nan for example 7 \(2 such of 40\)"
        with pytest.raises(ValueError, match=message):
            sparsity.firing(RELU, params, key, x, batch_size=batch_size)
        masked = sparsity.firing(RELU, params, key, Batch(x, weight=weight), batch_size=batch_size)
        alone = sparsity.firing(RELU, params, key, X[weight > 0])
        np.testing.assert_allclose(masked, alone, rtol=1e-5)
    with pytest.raises(ValueError, match="firing: data.weight: got no weight above 0"):
        sparsity.firing(RELU, params, key, Batch(X, weight=0 * weight))


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.01)))
DEAD = [2, 5]


@pytest.fixture(scope="module")
def trained(unit_params):
    """A state with moments, after five steps in which two units were dead."""
    init, step = train.make_step(
        autoencoders.sparse(UNIT, penalty=sparsity.l1, weight=0.1), OPTIMIZER
    )
    step, state = jax.jit(step), init(jax.random.key(3), dying(unit_params, DEAD))
    for _ in range(5):
        state, _ = step(state, X)
    return state


def parts(params):
    """Kernels, and biases of the code, with one row per unit."""
    (w,), (v,) = (networks.kernels(params[p]).values() for p in ("encoder", "decoder"))
    return w.T, v, params["encoder"]["params"]["code"]["bias"][:, None]


def test_dead_units_start_anew_at_a_residual_and_the_others_stay(trained):
    hook = sparsity.revive(UNIT, OPTIMIZER, X, examples=40, scale=0.5)
    state = hook(trained)
    old, new = parts(trained.params), parts(state.params)
    alive = np.setdiff1d(np.arange(LATENT), DEAD)
    for before, after in zip(old, new, strict=True):
        np.testing.assert_array_equal(before[alive], after[alive])
    z = jax.vmap(lambda x: UNIT.encode(trained.params, x).mean)(X)
    residual = X - jax.vmap(lambda z: UNIT.decode(trained.params, z).mean)(z)
    residual /= jnp.linalg.norm(residual, axis=1, keepdims=True)
    nearest = jnp.argmax(new[1][jnp.array(DEAD)] @ residual.T, axis=1)
    assert nearest[0] != nearest[1]
    np.testing.assert_allclose(new[1][jnp.array(DEAD)], residual[nearest], atol=1e-5)
    norm = 0.5 * jnp.linalg.norm(old[0][alive], axis=1).mean()
    np.testing.assert_allclose(new[0][jnp.array(DEAD)], norm * residual[nearest], atol=1e-5)
    assert np.all(new[2][jnp.array(DEAD)] == 0)
    others = state.params["decoder"]["params"]["loc"]["bias"]
    np.testing.assert_array_equal(others, trained.params["decoder"]["params"]["loc"]["bias"])
    assert (state.step, state.key) == (trained.step, trained.key)


def test_their_moments_are_forgotten_and_no_others(trained):
    state = sparsity.revive(UNIT, OPTIMIZER, X, examples=40)(trained)
    old, new = (optax.tree_utils.tree_get(s.opt_state, "mu") for s in (trained, state))
    squares = optax.tree_utils.tree_get(state.opt_state, "nu")
    alive = np.setdiff1d(np.arange(LATENT), DEAD)
    for before, after, square in zip(parts(old), parts(new), parts(squares), strict=True):
        np.testing.assert_array_equal(before[alive], after[alive])
        assert np.all(after[jnp.array(DEAD)] == 0)
        assert np.all(square[jnp.array(DEAD)] == 0)
    assert jnp.any(parts(new)[0][alive] != 0)
    counts = [
        optax.tree_utils.tree_get_all_with_path(s.opt_state, "count") for s in (trained, state)
    ]
    assert [int(c) for _, c in counts[0]] == [int(c) for _, c in counts[1]] == [5, 5]


def test_revival_is_a_function_of_key_and_step_and_leaves_the_living_alone(trained):
    hook = sparsity.revive(UNIT, OPTIMIZER, X, examples=20)
    one, two = hook(trained), jax.jit(hook)(trained)
    later = hook(trained._replace(step=trained.step + 1))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not np.allclose(parts(one.params)[1], parts(later.params)[1])
    code = trained.params["encoder"]["params"]["code"] | {"bias": jnp.zeros(LATENT)}
    lively = {**trained.params, "encoder": {"params": {"code": code}}}
    share = sparsity.firing(UNIT, lively, jax.random.key(0), X)
    assert np.all(share > 0)
    again = sparsity.revive(UNIT, OPTIMIZER, X, examples=40)(trained._replace(params=lively))
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(lively), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_worst_example_is_chosen(trained):
    """One example is far worse than all others: the first dead unit, wherever it is, gets it."""
    x = np.tile(X[:1], (40, 1))
    x[17] += 30 * np.eye(SIZE, dtype=np.float32)[0]
    state = sparsity.revive(UNIT, OPTIMIZER, x, examples=40)(trained)
    z = UNIT.encode(trained.params, x[17]).mean
    residual = x[17] - UNIT.decode(trained.params, z).mean
    cosine = parts(state.params)[1] @ (residual / jnp.linalg.norm(residual))
    dead = np.flatnonzero(sparsity.firing(UNIT, trained.params, jax.random.key(0), x) == 0)
    assert jnp.argmax(cosine) == dead[0] > 0
    assert cosine[dead[0]] > 0.9999


def nearest_residuals(state, x):
    """Which rows the dead units' atoms are the residuals of, and the cosines."""
    z = jax.vmap(lambda x: UNIT.encode(state.params, x).mean)(X)
    residual = X - jax.vmap(lambda z: UNIT.decode(state.params, z).mean)(z)
    cosine = x @ (residual / jnp.linalg.norm(residual, axis=1, keepdims=True)).T
    return jnp.argmax(cosine, axis=1), jnp.max(cosine, axis=1)


def test_masked_rows_and_those_not_finite_are_never_a_start(trained):
    """In the rows 10 to 39: of weight 0 and large, or NaN, or infinite; or NaN and counted."""
    weight = np.repeat(np.array([1, 0], np.float32), [10, 30])
    rest = np.full((40, 1), True)
    rest[:10] = False
    for fill, masked in ((1e3, True), (np.nan, True), (np.inf, True), (np.nan, False)):
        x = np.where(rest, np.float32(fill), X)
        hook = sparsity.revive(UNIT, OPTIMIZER, Batch(x, weight=weight if masked else ()))
        for step in range(3):
            new = hook(trained._replace(step=jnp.asarray(step))).params
            rows, cosine = nearest_residuals(trained, sparsity.atoms(new)[jnp.array(DEAD)])
            assert jnp.all(rows < 10)
            assert rows[0] != rows[1]
            assert jnp.all(cosine > 0.9999)
            assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(new))
            alive = np.setdiff1d(np.arange(LATENT), DEAD)
            for old, after in zip(parts(trained.params), parts(new), strict=True):
                np.testing.assert_array_equal(old[alive], after[alive])
    few = sparsity.revive(UNIT, OPTIMIZER, Batch(X, weight=np.where(np.arange(40) < 5, 1.0, 0.0)))
    with pytest.raises(ValueError, match=r"revive: examples: got 5, expected at least 7.*weight"):
        few(trained)
    none_left = sparsity.revive(UNIT, OPTIMIZER, np.where(np.arange(40)[:, None] > 0, np.nan, X))
    new = none_left(trained).params
    changed = np.any(parts(new)[1] != parts(trained.params)[1], axis=1)
    dead = np.flatnonzero(UNIT.encode(trained.params, X[0]).mean == 0)
    assert np.flatnonzero(changed).tolist() == [dead[0]]  # one example for five units


def known(params, bias):
    """A state whose residual is x, and whose unit j is active where 1e-3 x_0 + bias_j > 0."""
    code = {"kernel": jnp.zeros((SIZE, LATENT)).at[0].set(1e-3), "bias": jnp.asarray(bias)}
    params = jax.tree.map(jnp.zeros_like, params)
    params = {**params, "encoder": {"params": {"code": code}}}
    return train.make_step(autoencoders.reconstruction(RELU), OPTIMIZER)[0](
        jax.random.key(3), params
    )


ON, OFF = 1.0, -1.0
HALVES = np.repeat(np.eye(SIZE, dtype=np.float32)[[1, 2]] * np.array([[1.0], [1.5]]), 20, axis=0)
HALVES = HALVES.astype(np.float32)


def check_drawn_by_the_fourth_power(large, draws):
    """Of two sizes of residual, 1 and 3/2, equally many: within four standard errors."""
    p = 1.5**4 / (1 + 1.5**4)
    assert abs(large - p) < 4 * (p * (1 - p) / draws) ** 0.5


def test_a_start_is_drawn_with_the_fourth_power_of_the_residual(params):
    """One dead unit, 400 steps. Checked against the square, and against a draw regardless of it."""
    state = known(params, [ON, ON, ON, ON, OFF, ON, ON])
    hook = sparsity.revive(RELU, OPTIMIZER, HALVES)
    new = jax.vmap(lambda step: hook(state._replace(step=step)).params)(jnp.arange(400))
    atoms = new["decoder"]["params"]["loc"]["kernel"]
    assert np.flatnonzero(np.any(atoms != 0, axis=(0, 2))).tolist() == [4]
    large = float(jnp.mean(atoms[:, 4, 2] > 0.999))
    assert large + jnp.mean(atoms[:, 4, 1] > 0.999) == pytest.approx(1)
    check_drawn_by_the_fourth_power(large, 400)
    for mistaken in (1.5**2 / (1 + 1.5**2), 0.5):
        with pytest.raises(AssertionError):
            check_drawn_by_the_fourth_power(mistaken, 400)


def test_share_transform_and_all_units_dead(params):
    """Unit 3 is active in 4 of 40 examples, unit 5 in none."""
    x = HALVES + 0.5 * np.eye(SIZE, dtype=np.float32)[0] * (np.arange(40)[:, None] % 10 == 0)
    state = known(params, [ON, ON, ON, -1e-4, ON, OFF, ON])

    def new(state=state, data=x, **options):
        params = sparsity.revive(RELU, OPTIMIZER, data, **options)(state).params
        w, v, _ = parts(params)
        return w, v, np.flatnonzero(np.any(v != 0, axis=1)).tolist()

    assert new()[2] == [5]
    assert new(share=0.05)[2] == [5]
    assert new(share=0.15)[2] == [3, 5]
    assert new(transform=negated)[2] == [3, 5]
    assert np.all(new(transform=negated)[1] <= 0)
    all_dead = known(params, [OFF] * LATENT)
    w, v, changed = new(all_dead, scale=0.5)
    assert changed == list(range(LATENT))
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(w, axis=1), 0.5e-3, rtol=1e-5)
    assert new(data=0 * x)[2] == []  # without a residual there is nowhere to start
    shares = jax.vmap(
        lambda share: parts(sparsity.revive(RELU, OPTIMIZER, x, share=share)(state).params)[1]
    )(jnp.array([0.05, 0.15]))
    assert np.any(shares != 0, axis=2).sum(axis=1).tolist() == [1, 2]


def test_units_that_the_batch_never_keeps_are_dead(params):
    """Checked against the codes before the batch keeps its largest: there the unit is alive."""
    faint = jnp.ones(LATENT).at[3].set(1e-4)
    code = params["encoder"]["params"]["code"]
    code = {"kernel": code["kernel"] * faint[None, :], "bias": code["bias"] * faint}
    faint_params = {**params, "encoder": {"params": {"code": code}}}
    init, _ = train.make_step(autoencoders.batch_top_k(RELU, k=1), OPTIMIZER)
    state = init(jax.random.key(3), faint_params)

    def changed(**options):
        new = sparsity.revive(RELU, OPTIMIZER, X, examples=40, **options)(state).params
        return np.flatnonzero(np.any(parts(new)[1] != parts(faint_params)[1], axis=1)).tolist()

    z = jax.vmap(lambda x: RELU.encode(faint_params, x).mean)(X)
    never = np.flatnonzero(np.all(sparsity.largest(z, 1) == 0, axis=0)).tolist()
    assert 3 in never
    assert changed(keep=partial(sparsity.largest, k=1)) == never
    assert changed() == []


def test_revival_refuses_what_it_cannot_do(trained, params, key):
    with pytest.raises(ValueError, match="revive: examples: got 5, expected at least 7"):
        sparsity.revive(UNIT, OPTIMIZER, X, examples=5)(trained)
    for options, message in (
        ({"share": 7}, r"revive: share: got 7, expected a share in \[0, 1\)"),
        ({"share": -0.1}, r"revive: share: got -0\.1"),
        ({"scale": 0.0}, r"revive: scale: got 0\.0, expected above 0"),
        ({"scale": float("nan")}, "revive: scale: got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsity.revive(UNIT, OPTIMIZER, X, **options)
    with pytest.raises(ValueError, match="revive: optimizer: got one of another kind"):
        sparsity.revive(UNIT, optax.sgd(0.1), X)(trained)
    with pytest.raises(ValueError, match="revive: params: got a tuple"):
        sparsity.revive(UNIT, OPTIMIZER, X)(trained._replace(params=(trained.params,)))
    deep = autoencoder(
        nn.Sequential([networks.MLP((6,)), heads.Code(LATENT)]), heads.FixedNormal(SIZE, 1.0)
    )
    init, _ = train.make_step(autoencoders.reconstruction(deep), OPTIMIZER)
    with pytest.raises(ValueError, match="revive: the encoder: got kernels"):
        sparsity.revive(deep, OPTIMIZER, X)(init(key, deep.init(key, X[0])))
