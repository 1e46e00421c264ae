"""Corruptions: their rates and means within four standard errors, independence, and refusals.

Every corruption is a pure function of (key, x), so that each statistic is of thousands of draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vaejax import autoencoders, corruption, heads, networks
from vaejax.model import autoencoder
from vaejax.types import Batch

N, SHAPE = 4000, (6, 5, 1)
X = np.linspace(0.2, 0.9, 30, dtype=np.float32).reshape(SHAPE)  # no entry is 0 or 1
ALL = {
    "masking": corruption.masking(0.3),
    "gaussian": corruption.gaussian(0.7),
    "salt_and_pepper": corruption.salt_and_pepper(0.3),
    "erased_block": corruption.erased_block(2),
    "low_resolution": corruption.low_resolution(4),
}
each = pytest.mark.parametrize("name", ALL)


def many(corrupt, x=X, n=N, seed=0):
    """`n` corruptions of one x, `[n, ...]`, in numpy."""
    keys = jax.random.split(jax.random.key(seed), n)
    return np.asarray(jax.jit(jax.vmap(corrupt, (0, None)))(keys, x))


def check_rate(hits, rate):
    """The share of hits `[n, ...]`, overall and for each entry, within 4 standard errors.

    Of the entries' own shares the largest deviation is held to 5, there being dozens.
    """
    error = np.sqrt(rate * (1 - rate))
    assert abs(hits.mean() - rate) <= 4 * error / np.sqrt(hits.size)
    assert np.abs(hits.mean(axis=0) - rate).max() <= 5 * error / np.sqrt(len(hits))


def check_independent(hits):
    """No correlation between entries of an example, nor between the same entry of neighbours.

    Each correlation has a standard error of 1 / sqrt(n); the largest of some hundreds is held to 5.
    """
    rows = hits.reshape(len(hits), -1).astype(float)
    between = np.corrcoef(rows.T)[np.triu_indices(rows.shape[1], 1)]
    assert np.abs(between).max() <= 5 / np.sqrt(len(rows))
    z = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    assert np.abs((z[1:] * z[:-1]).mean(axis=0)).max() <= 5 / np.sqrt(len(rows))


def check_masking(masking):
    """Entries are zero at the rate nu, independently, and else exactly what they were."""
    found = many(masking(0.3))
    zero = found == 0
    assert np.array_equal(found, np.where(zero, 0, X))
    check_rate(zero, 0.3)
    check_independent(zero)


def test_masking_rescales_nothing():
    """Checked against dropout, which divides what it keeps by 1 - nu."""
    check_masking(corruption.masking)

    def dropout(nu):
        return lambda key, x: jnp.where(jax.random.bernoulli(key, nu, x.shape), 0, x / (1 - nu))

    with pytest.raises(AssertionError):
        check_masking(dropout)


def test_every_example_and_every_entry_is_masked_by_itself():
    """Checked against a key that is the same for all examples, and one draw for all pixels."""
    shared = jax.random.key(5)

    def one_mask(nu):
        return lambda key, x: x * jax.random.bernoulli(jax.random.clone(shared), 1 - nu, x.shape)

    def whole_image(nu):
        return lambda key, x: x * jax.random.bernoulli(key, 1 - nu)

    for mistaken in (one_mask, whole_image):
        with np.errstate(invalid="ignore"), pytest.raises(AssertionError):
            check_masking(mistaken)


def test_gaussian_noise_has_its_mean_scale_and_independence():
    noise = many(corruption.gaussian(0.7)) - X
    assert abs(noise.mean()) <= 4 * 0.7 / np.sqrt(noise.size)
    assert abs(noise.var() / 0.49 - 1) <= 4 * np.sqrt(2 / noise.size)
    assert abs(((noise / 0.7) ** 4).mean() - 3) <= 4 * np.sqrt(96 / noise.size)  # var of eps^4: 96
    check_independent(noise)
    assert noise.min() < -0.9 and (noise + X).max() > 1.9  # nothing is clipped


def test_salt_and_pepper_is_even_and_leaves_the_rest():
    found = many(corruption.salt_and_pepper(0.3))
    salt, pepper = found == 1, found == 0
    assert np.array_equal(found, np.where(salt, 1, np.where(pepper, 0, X)))
    for hits, rate in ((salt, 0.15), (pepper, 0.15), (salt | pepper, 0.3)):
        check_rate(hits, rate)
        check_independent(hits)


@pytest.mark.parametrize("corrupt", [corruption.masking, corruption.salt_and_pepper])
def test_probabilities_0_and_1_are_certain(corrupt):
    assert np.array_equal(many(corrupt(0), n=50), np.broadcast_to(X, (50, *SHAPE)))
    assert not np.isin(X, many(corrupt(1.0), n=50)).any()


def test_an_erased_block_is_one_square_evenly_placed_in_all_channels():
    x = np.stack([X[..., 0], X[..., 0] + 2], axis=-1)
    found = many(corruption.erased_block(2), x)
    gone = found == 0
    assert np.array_equal(found, np.where(gone, 0, x)) and np.array_equal(
        gone[..., 0], gone[..., 1]
    )
    gone = gone[..., 0]
    assert (gone.sum(axis=(1, 2)) == 4).all()
    top, left = gone.any(axis=2).argmax(axis=1), gone.any(axis=1).argmax(axis=1)
    inside = [one[i : i + 2, j : j + 2].all() for one, i, j in zip(gone, top, left, strict=True)]
    assert all(inside)
    check_rate(np.stack([(top == i) & (left == j) for i in range(5) for j in range(4)], 1), 1 / 20)


@pytest.mark.parametrize("shape, side", [((3, 5), 3), ((4, 4, 3), 4), ((1, 7, 1), 1)])
def test_blocks_up_to_the_images_smaller_side(shape, side, key):
    erased = jax.jit(corruption.erased_block(side))(key, jnp.ones(shape))
    assert (erased == 0).sum() == side**2 * np.prod(shape[2:], dtype=int)


@pytest.mark.parametrize(
    "shape, factor",
    [((6, 4), 1), ((6, 4), 2), ((7, 5, 2), 2), ((7, 5, 2), 4), ((1, 9, 1), 4), ((3, 3, 3), 20)],
)
def test_low_resolution_is_the_mean_of_each_cell(shape, factor, key):
    """Against a loop over the cells, ragged edges included; doing it twice changes nothing."""
    x_key, one, other = jax.random.split(key, 3)
    x = jax.random.normal(x_key, shape)
    corrupt = jax.jit(corruption.low_resolution(factor))
    expected = np.array(x)
    for i in range(0, shape[0], factor):
        for j in range(0, shape[1], factor):
            cell = expected[i : i + factor, j : j + factor]
            cell[:] = cell.mean(axis=(0, 1))
    found = corrupt(one, x)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(corrupt(other, found), found, atol=1e-6)


@each
def test_same_key_same_draw_under_jit_and_vmap_in_any_shape(name, key):
    corrupt = ALL[name]
    for x in (X[..., 0], X.astype(jnp.bfloat16)):
        found = jax.eval_shape(corrupt, key, x)
        assert found.shape == x.shape and found.dtype == x.dtype
    keys = jax.random.split(key, 3)
    batched = jax.jit(jax.vmap(corrupt))(jax.random.clone(keys), np.stack([X, X + 1, X + 2]))
    alone = corrupt(keys[2], X + 2)
    np.testing.assert_allclose(batched[2], alone, rtol=1e-6)


@pytest.mark.parametrize("name", ["masking", "gaussian", "salt_and_pepper"])
def test_vectors_and_scalars_and_leaves_of_a_tree_with_noise_of_their_own(name, key):
    x = {"image": X, "table": (X.ravel(), np.float32(0.5))}
    found = jax.jit(ALL[name])(key, x)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, x)
    assert not np.array_equal(found["image"].ravel(), found["table"][0])


def test_what_is_masked_may_be_nan_or_whole_numbers(key):
    nan = jax.jit(corruption.masking(1.0))(jax.random.clone(key), jnp.full(3, jnp.nan))
    assert np.array_equal(nan, np.zeros(3))
    assert jax.eval_shape(corruption.masking(0.5), key, jnp.arange(4)).dtype == jnp.int32


@pytest.mark.parametrize("corrupt", [corruption.masking, corruption.salt_and_pepper])
@pytest.mark.parametrize("nu", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(corrupt, nu):
    with pytest.raises(ValueError, match=f"{corrupt.__name__}: nu.*probability in .0, 1.*share"):
        corrupt(nu)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: corruption.gaussian(0.0), "gaussian: scale.*positive"),
        (lambda: corruption.gaussian(float("nan")), "gaussian: scale.*positive"),
        (lambda: corruption.gaussian(float("inf")), "gaussian: scale.*positive"),
        (lambda: corruption.erased_block(0), "erased_block: side.*1 or more"),
        (lambda: corruption.erased_block(1.5), "erased_block: side.*whole number"),
        (lambda: corruption.low_resolution(0), "low_resolution: factor.*1 or more"),
    ],
)
def test_impossible_settings_are_refused_at_once(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_images_that_do_not_fit_are_refused(key):
    with pytest.raises(ValueError, match=r"erased_block: side.*got 6.*1 to 5, the image being 6 x"):
        corruption.erased_block(6)(key, X)
    for corrupt in (corruption.erased_block(1), corruption.low_resolution(2)):
        with pytest.raises(ValueError, match=r"one image.*reshape a vector"):
            corrupt(jax.random.key(1), X.ravel())
        with pytest.raises(ValueError, match=r"one image.*map a batch"):
            corrupt(jax.random.key(2), X[None])


@pytest.mark.parametrize("name", ["gaussian", "salt_and_pepper", "low_resolution"])
def test_stored_levels_are_refused(name, key):
    with pytest.raises(TypeError, match=f"{name}: x.*uint8.*floating point.*data.scale"):
        ALL[name](key, jnp.ones((4, 4, 1), jnp.uint8))


@pytest.fixture(scope="module")
def autoencoding():
    """A linear autoencoder and its parameters."""
    encoder = nn.Sequential([networks.MLP(()), heads.Code(4)])
    decoder = nn.Sequential([networks.MLP(()), heads.FixedNormal(SHAPE, 1.0)])
    model = autoencoder(encoder, decoder)
    return model, model.init(jax.random.key(4), X)


BATCH = Batch(np.stack([X, X / 2, X**2]))


@each
def test_each_serves_the_denoising_loss(name, autoencoding, key):
    model, params = autoencoding
    loss = autoencoders.denoising(model, corrupt=ALL[name])
    value, metrics = jax.jit(loss)(params, key, BATCH, 0)
    assert np.isfinite(value) and metrics["distortion"] == value


def test_the_denoising_loss_leaves_its_target_clean(autoencoding, key):
    """D of the clean x given the code of a corrupted one, which is not D of either alone."""
    model, params = autoencoding

    def blank(key, x):
        return jnp.zeros_like(x)

    # Of nothing, the decoder makes its bias: the target alone is left in the loss.
    value, _ = jax.jit(autoencoders.denoising(model, corrupt=blank))(params, key, BATCH, 0)
    expected = np.mean([np.sum(x**2) / 2 + 15 * np.log(2 * np.pi) for x in BATCH.x])
    assert value == pytest.approx(expected, rel=1e-5)


def test_a_corruption_of_another_shape_is_refused(autoencoding, key):
    model, params = autoencoding
    loss = autoencoders.denoising(model, corrupt=lambda key, x: x[:3])
    with pytest.raises(ValueError, match=r"denoising: corrupt.*\(3, 5, 1\).*\(6, 5, 1\).*shape"):
        loss(params, key, Batch(X[None]), 0)


def test_strengths_may_be_traced_and_types_are_kept():
    """A population is mapped over its hyperparameters; a strong scalar widens no half precision."""
    key, x = jax.random.key(0), jnp.full((64,), 0.5)
    for make in (corruption.masking, corruption.gaussian, corruption.salt_and_pepper):
        strengths = jnp.array([0.1, 0.7])
        both = jax.vmap(lambda s, f=make: f(s)(jax.random.clone(key), x))(strengths)
        for strength, found in zip(strengths, both, strict=True):
            np.testing.assert_array_equal(found, make(float(strength))(jax.random.clone(key), x))
    half = x.astype(jnp.bfloat16)
    found = jax.eval_shape(corruption.gaussian(np.float32(0.5)), key, half)
    assert found.dtype == jnp.bfloat16


@pytest.mark.parametrize("count", [float("nan"), float("inf"), 2.5, True, "2"])
def test_counts_of_pixels_are_whole(count):
    for make in (corruption.erased_block, corruption.low_resolution):
        with pytest.raises(ValueError, match="expected a whole number of pixels"):
            make(count)
