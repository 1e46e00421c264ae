"""Dictionaries of unit norm, and dead units that live again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.families.autoencoders.shared import (
    CODES,
    DECODED,
    LATENT,
    RELU,
    SIZE,
    UNIT,
    X,
    dying,
)
from vaejax import autoencoders, heads, networks, sparsity, train
from vaejax.model import autoencoder
from vaejax.types import Batch


def kernel_scaled(params, c):
    def scale(path, leaf):
        return c * np.asarray(leaf) if path[0].key == "decoder" and leaf.ndim == 2 else leaf

    return jax.tree_util.tree_map_with_path(scale, params)


def test_atoms_have_unit_norm_and_are_what_a_unit_adds(unit_params):
    larger = kernel_scaled(unit_params, np.float32(7))
    atoms = np.asarray(sparsity.atoms(larger))
    assert atoms.shape == (LATENT, SIZE)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, rtol=1e-5)
    one_unit = np.vstack([np.zeros(LATENT), 2 * np.eye(LATENT)]).astype(np.float32)
    decoded = np.asarray(DECODED[UNIT](larger, one_unit))
    np.testing.assert_allclose(decoded[1:] - decoded[:1], 2 * atoms, rtol=1e-4, atol=1e-6)
    (kernel,) = networks.kernels(unit_params["decoder"]).values()
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=1), 1, rtol=1e-5)


def test_no_gradient_goes_along_an_atom_or_is_lost_at_zero(unit_params):
    loss = autoencoders.reconstruction(UNIT)
    batch = Batch(X)

    @jax.jit
    def gradient(params):
        grads = jax.grad(loss, has_aux=True)(params, jax.random.key(0), batch, 0)[0]
        return next(iter(networks.kernels(grads["decoder"]).values()))

    found = np.asarray(gradient(unit_params))
    along = np.sum(found * np.asarray(sparsity.atoms(unit_params)), axis=1)
    assert np.max(np.abs(found)) > 1e-2
    assert np.max(np.abs(along)) < 1e-5
    assert np.all(np.isfinite(gradient(kernel_scaled(unit_params, np.float32(0)))))


def check_small_codes_do_not_pay(model, params):
    """Codes a hundredth as large and atoms a hundred times: the same picture must not come."""
    z = np.arange(1.0, LATENT + 1, dtype=np.float32)[None]
    plain = DECODED[model](params, z)
    cheated = DECODED[model](kernel_scaled(params, np.float32(100)), z / 100)
    assert not np.allclose(plain, cheated, rtol=1e-3)


def test_under_a_penalty_the_dictionary_cannot_grow_instead(params, unit_params):
    """Checked against a dictionary of free norm, where l1 shrinks codes and changes nothing."""
    check_small_codes_do_not_pay(UNIT, unit_params)
    with pytest.raises(AssertionError):
        check_small_codes_do_not_pay(RELU, params)


def test_the_transposed_start_and_what_has_no_dictionary(unit_params, key):
    start = sparsity.transposed(unit_params)
    (kernel,) = networks.kernels(start["encoder"]).values()
    np.testing.assert_array_equal(kernel, np.asarray(sparsity.atoms(unit_params)).T)
    deep = autoencoder(
        nn.Sequential([networks.MLP((6,)), heads.Code(LATENT)]),
        nn.Sequential([networks.MLP((6,)), heads.FixedNormal(SIZE, 1.0)]),
    )
    deep_params = jax.eval_shape(deep.init, key, X[0])
    for function in (sparsity.atoms, sparsity.transposed):
        with pytest.raises(ValueError, match=r"got kernels \[.*, expected one dense layer"):
            function(deep_params)
    with pytest.raises(ValueError, match="unit_columns: the decoder"):
        jax.eval_shape(sparsity.unit_columns(deep).init, jax.random.key(1), X[0])
    for function, name in ((sparsity.atoms, "atoms"), (sparsity.transposed, "transposed")):
        with pytest.raises(ValueError, match=f"{name}: params: got a tuple, .*of one autoencoder"):
            function((unit_params,))


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.01)))
DEAD = [2, 5]
ALIVE = np.setdiff1d(np.arange(LATENT), DEAD)


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
    bias = params["encoder"]["params"]["code"]["bias"]
    return np.asarray(w).T, np.asarray(v), np.asarray(bias)[:, None]


def test_dead_units_start_anew_at_a_residual_and_the_others_stay(trained):
    hook = sparsity.revive(UNIT, OPTIMIZER, X, examples=40, scale=0.5)
    state = hook(trained)
    old, new = parts(trained.params), parts(state.params)
    for before, after in zip(old, new, strict=True):
        np.testing.assert_array_equal(before[ALIVE], after[ALIVE])
    residual = residuals(trained.params, X)
    nearest = np.argmax(new[1][DEAD] @ residual.T, axis=1)
    assert nearest[0] != nearest[1]
    np.testing.assert_allclose(new[1][DEAD], residual[nearest], atol=1e-5)
    norm = 0.5 * np.linalg.norm(old[0][ALIVE], axis=1).mean()
    np.testing.assert_allclose(new[0][DEAD], norm * residual[nearest], atol=1e-5)
    assert np.all(new[2][DEAD] == 0)
    others = state.params["decoder"]["params"]["loc"]["bias"]
    np.testing.assert_array_equal(others, trained.params["decoder"]["params"]["loc"]["bias"])
    assert (state.step, state.key) == (trained.step, trained.key)


def test_their_moments_are_forgotten_and_no_others(trained):
    state = sparsity.revive(UNIT, OPTIMIZER, X, examples=40)(trained)
    old, new = (optax.tree_utils.tree_get(s.opt_state, "mu") for s in (trained, state))
    squares = optax.tree_utils.tree_get(state.opt_state, "nu")
    for before, after, square in zip(parts(old), parts(new), parts(squares), strict=True):
        np.testing.assert_array_equal(before[ALIVE], after[ALIVE])
        assert np.all(after[DEAD] == 0)
        assert np.all(square[DEAD] == 0)
    assert np.any(parts(new)[0][ALIVE] != 0)
    counts = [
        optax.tree_utils.tree_get_all_with_path(s.opt_state, "count") for s in (trained, state)
    ]
    assert [int(c) for _, c in counts[0]] == [int(c) for _, c in counts[1]] == [5, 5]


def test_revival_is_a_function_of_key_and_step_and_leaves_the_living_alone(trained):
    hook = sparsity.revive(UNIT, OPTIMIZER, X, examples=40)
    one, two = hook(trained), jax.jit(hook)(trained)
    later = hook(trained._replace(step=trained.step + 1))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not np.allclose(parts(one.params)[1], parts(later.params)[1])
    code = trained.params["encoder"]["params"]["code"] | {"bias": np.zeros(LATENT, np.float32)}
    lively = {**trained.params, "encoder": {"params": {"code": code}}}
    assert np.all(np.any(np.asarray(CODES[UNIT](lively, X)) != 0, axis=0))
    again = hook(trained._replace(params=lively))
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(lively), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_worst_example_is_chosen(trained):
    """One example is far worse than all others: the first dead unit, wherever it is, gets it."""
    x = np.tile(X[:1], (40, 1))
    x[17] += 30 * np.eye(SIZE, dtype=np.float32)[0]
    state = sparsity.revive(UNIT, OPTIMIZER, x, examples=40)(trained)
    cosine = parts(state.params)[1] @ residuals(trained.params, x)[17]
    dead = np.flatnonzero(np.all(np.asarray(CODES[UNIT](trained.params, x)) == 0, axis=0))
    assert np.argmax(cosine) == dead[0] > 0
    assert cosine[dead[0]] > 0.9999


def residuals(params, x):
    """x - r(x), over its norm."""
    found = x - np.asarray(DECODED[UNIT](params, CODES[UNIT](params, x)))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_masked_rows_and_those_not_finite_are_never_a_start(trained):
    """In the rows 10 to 39: of weight 0 and large, or NaN, or infinite; or NaN and counted."""
    weight = np.repeat(np.array([1, 0], np.float32), [10, 30])
    rest = np.arange(40)[:, None] >= 10
    expected = residuals(trained.params, X)
    for fill, masked in ((1e3, True), (np.nan, True), (np.inf, True), (np.nan, False)):
        x = np.where(rest, np.float32(fill), X)
        hook = sparsity.revive(UNIT, OPTIMIZER, Batch(x, weight=weight if masked else ()))
        for step in range(3):
            new = hook(trained._replace(step=jnp.asarray(step))).params
            cosine = parts(new)[1][DEAD] @ expected.T
            rows = np.argmax(cosine, axis=1)
            assert np.all(rows < 10)
            assert rows[0] != rows[1]
            assert np.all(np.max(cosine, axis=1) > 0.9999)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(new))
            for old, after in zip(parts(trained.params), parts(new), strict=True):
                np.testing.assert_array_equal(old[ALIVE], after[ALIVE])


def test_units_for_which_no_example_is_left_stay(trained):
    few = sparsity.revive(UNIT, OPTIMIZER, Batch(X, weight=np.where(np.arange(40) < 5, 1.0, 0.0)))
    with pytest.raises(ValueError, match=r"revive: examples: got 5, expected at least 7.*weight"):
        few(trained)
    x = np.where(np.arange(40)[:, None] > 0, np.float32(np.nan), X)
    new = sparsity.revive(UNIT, OPTIMIZER, x)(trained).params
    changed = np.any(parts(new)[1] != parts(trained.params)[1], axis=1)
    dead = np.flatnonzero(np.asarray(CODES[UNIT](trained.params, X[:1]))[0] == 0)
    assert np.flatnonzero(changed).tolist() == [dead[0]]  # one example for five units


def negated(key, x):
    return -x


def known(params, bias):
    """A state whose residual is x, and whose unit j is active where 1e-3 x_0 + bias_j > 0."""
    kernel = np.zeros((SIZE, LATENT), np.float32)
    kernel[0] = 1e-3
    code = {"kernel": kernel, "bias": np.array(bias, np.float32)}
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    params = {**params, "encoder": {"params": {"code": code}}}
    init, _ = train.make_step(autoencoders.reconstruction(RELU), OPTIMIZER)
    return init(jax.random.key(3), params)


ON = 1.0
OFF = -1.0
HALVES = np.repeat(np.array([[0, 1, 0, 0, 0], [0, 0, 1.5, 0, 0]], np.float32), 20, axis=0)


def check_drawn_by_the_fourth_power(large, draws):
    """Of two sizes of residual, 1 and 3/2, equally many: within four standard errors."""
    p = 1.5**4 / (1 + 1.5**4)
    assert abs(large - p) < 4 * (p * (1 - p) / draws) ** 0.5


def test_a_start_is_drawn_with_the_fourth_power_of_the_residual(params):
    """One dead unit, 400 steps. Checked against the square, and against a draw regardless of it."""
    state = known(params, [ON, ON, ON, ON, OFF, ON, ON])
    hook = sparsity.revive(RELU, OPTIMIZER, HALVES)
    new = jax.vmap(lambda step: hook(state._replace(step=step)).params)(np.arange(400))
    atoms = np.asarray(new["decoder"]["params"]["loc"]["kernel"])
    assert np.flatnonzero(np.any(atoms != 0, axis=(0, 2))).tolist() == [4]
    large = np.mean(atoms[:, 4, 2] > 0.999)
    assert large + np.mean(atoms[:, 4, 1] > 0.999) == pytest.approx(1)
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
    shares = jax.vmap(lambda share: sparsity.revive(RELU, OPTIMIZER, x, share=share)(state).params)
    atoms = shares(np.array([0.05, 0.15], np.float32))["decoder"]["params"]["loc"]["kernel"]
    assert np.any(np.asarray(atoms) != 0, axis=2).sum(axis=1).tolist() == [1, 2]


def test_units_that_the_batch_never_keeps_are_dead(params):
    """Checked against the codes before the batch keeps its largest: there the unit is alive."""
    faint = np.where(np.arange(LATENT) == 3, np.float32(1e-4), 1)
    code = jax.tree.map(np.asarray, params["encoder"]["params"]["code"])
    code = {"kernel": code["kernel"] * faint[None, :], "bias": code["bias"] * faint}
    faint_params = {**params, "encoder": {"params": {"code": code}}}
    init, _ = train.make_step(autoencoders.batch_top_k(RELU, k=1), OPTIMIZER)
    state = init(jax.random.key(3), faint_params)

    def changed(**options):
        new = sparsity.revive(RELU, OPTIMIZER, X, examples=40, **options)(state).params
        return np.flatnonzero(np.any(parts(new)[1] != parts(faint_params)[1], axis=1)).tolist()

    kept = sparsity.largest(CODES[RELU](faint_params, X), 1)
    never = np.flatnonzero(np.all(np.asarray(kept) == 0, axis=0)).tolist()
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
        sparsity.revive(deep, OPTIMIZER, X)(init(key, jax.jit(deep.init)(key, X[0])))


def shifted(kind):
    """Rows whose mean is far from 0, or of very different scales, or of low rank."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(256, 12)).astype(np.float32)
    if kind == "several columns":
        x[:, [0, 5, 7]] += np.array([25, -12, 40], np.float32)
    elif kind == "rank 2":
        x = x[:, :2] @ x[:2] + 15 * x[2]
    elif kind == "all, scaled":
        x = 500 * (x + 4)
    elif kind == "scales":
        x = x * np.logspace(-2, 2, 12).astype(np.float32) + 30
    return x


MEANS = ["several columns", "rank 2", "all, scaled", "scales", "none"]


@pytest.mark.parametrize("code", ["relu", "top_k", "batch_top_k"])
def test_units_that_start_anew_never_cost_much_whatever_the_mean_of_the_data(code):
    """With the bias at 0 and the residual as it is, the error of most of these grew many times."""
    head = heads.TopK(40, k=3) if code == "top_k" else heads.Code(40, nn.relu)
    model = sparsity.unit_columns(autoencoder(head, heads.FixedNormal(12, 0.5**0.5)))
    keep = partial(sparsity.largest, k=3) if code == "batch_top_k" else lambda z: z
    init, _ = train.make_step(autoencoders.reconstruction(model), OPTIMIZER)
    params = sparsity.transposed(model.init(jax.random.key(0), np.zeros(12, np.float32)))
    dead = np.arange(40) % 2 == 0  # half of them
    bias = np.where(dead, np.float32(-1e6), 0)
    code_params = params["encoder"]["params"]["code"] | {"bias": bias}
    state = init(jax.random.key(1), {**params, "encoder": {"params": {"code": code_params}}})

    @jax.jit
    def error(params, x):
        z = keep(jax.vmap(lambda x: model.encode(params, x).mean)(x))
        r = jax.vmap(lambda z: model.decode(params, z).mean)(z)
        return jnp.sum((x - r) ** 2), jnp.sum(jnp.any(z != 0, axis=0))

    for kind in MEANS:
        x = shifted(kind)
        new = sparsity.revive(model, OPTIMIZER, x, keep=keep)(state).params
        (before, alive), (after, lively) = error(state.params, x), error(new, x)
        assert after <= 1.51 * before, kind
        assert lively >= alive, kind
        changed = np.any(parts(new)[1] != parts(state.params)[1], axis=1)
        assert changed[dead].all(), kind
