"""Stacked autoencoders: against the same done by hand, level by level."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.families.autoencoders.levels import (
    ADAM,
    CODES,
    DEEP,
    LEVELS,
    assert_equal,
    plain_level,
    pretrain,
    sigmoid_level,
)
from vaejax import autoencoders, data, evaluate, heads, networks, stacked, train
from vaejax.distributions import Delta, Normal
from vaejax.evaluate import mean_loss
from vaejax.model import autoencoder, generate, reconstruct, tied
from vaejax.types import Batch


def masked(key, x):
    return x * (jax.random.uniform(key, x.shape) >= 0.25)


def norm(model, params, key, x, c=()):
    """|df/dx|_F^2 by hand: the Jacobian of the mean code."""
    return jnp.sum(jax.jacrev(lambda one: model.encode(params, one, c).mean)(x) ** 2)


def check_stack(stack, params, x):
    """Up by each encoder's mean, down by each decoder's, and E[x|z] at the bottom."""
    deep = stack(LEVELS)

    @jax.jit
    def found(params, x):
        code = deep.encode(params, x).mean
        return code, deep.decode(params, code).mean, reconstruct(deep, params, x)

    @jax.jit
    def by_hand(params, x):
        code = x
        for level, own in zip(LEVELS, params, strict=True):
            code = level.encode(own, code).mean
        back = code
        for level, own in zip(LEVELS[::-1], params[::-1], strict=True):
            back = level.decode(own, back).mean
        return code, back, back

    for one, other in zip(found(params, x), by_hand(params, x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_stack_is_its_levels_one_after_the_other(clusters, deep_params):
    """Checked against a decoder left out."""
    x = jnp.asarray(clusters.x[0])
    check_stack(stacked.stack, deep_params, x)

    def without_middle_decoder(levels):
        def decode(params, z, c=(), *, key=None):
            h = levels[2].decode(params[2], z).mean
            return levels[0].decode(params[0], jnp.pad(h, (0, 2)))

        return stacked.stack(levels)._replace(decode=decode)

    with pytest.raises(AssertionError):
        check_stack(without_middle_decoder, deep_params, x)


def test_init_composes_and_a_stack_of_one_is_its_level(clusters):
    x = jnp.asarray(clusters.x[0])
    params = jax.eval_shape(DEEP.init, jax.random.key(0), x)
    shapes = [own["encoder"]["params"]["code"]["kernel"].shape for own in params]
    assert shapes == [(8, 6), (6, 4), (4, 3)]
    one = stacked.stack(LEVELS[:1])
    own = one.init(jax.random.key(0), x)
    alone = jax.eval_shape(LEVELS[0].init, jax.random.key(0), x)
    assert jax.tree.structure(own) == jax.tree.structure((alone,))
    assert_equal(jax.jit(one.encode)(own, x), jax.jit(LEVELS[0].encode)(own[0], x))
    assert DEEP.prior(params) is None


def test_any_model_is_a_level_convolutional_tied_conditioned_and_with_a_prior():
    """Convolutions below, a VAE on top; c goes to every level, and the prior is the top's."""
    image, c = jnp.linspace(0, 1, 36).reshape(6, 6, 1), jnp.ones(2)
    unit = Normal(jnp.zeros(2), jnp.ones(2))
    bottom = autoencoder(
        nn.Sequential([networks.ConvEncoder((2,)), heads.Code(5, nn.sigmoid)]),
        nn.Sequential([networks.ConvDecoder((6, 6, 1), (2, 2)), heads.Bernoulli((6, 6, 1))]),
    )
    dense = autoencoder(  # no c in its decoder: c is joined by the MLPs of both
        nn.Sequential([networks.MLP((4,)), heads.Code(4)]),
        nn.Sequential([networks.MLP((4,)), heads.FixedNormal(5, 1.0)]),
    )
    top = autoencoder(
        nn.Sequential([networks.MLP((3,)), heads.Normal(2)]),
        nn.Sequential([networks.MLP((3,)), heads.FixedNormal(4, 1.0)]),
        unit,
    )
    deep = stacked.stack([bottom, dense, top])
    params = deep.init(jax.random.key(0), image, c)
    encode = jax.jit(deep.encode)
    q = encode(params, image, c)
    assert isinstance(q, Normal) and q.event_shape == (2,)
    assert deep.prior(params, c) is unit
    sample = jax.jit(partial(generate, deep))(params, jax.random.key(1), c)
    assert sample.mean.shape == (6, 6, 1)
    other = encode(params, image, 2 * c).mean
    assert np.abs(other - q.mean).max() > 1e-4
    with pytest.raises(ValueError, match="with no c"):
        jax.eval_shape(deep.encode, params, image)

    mirrored = stacked.stack([tied(level) for level in LEVELS[:2]])
    own = jax.eval_shape(mirrored.init, jax.random.key(0), jnp.ones(8))
    assert own[1]["decoder"]["params"]["logits"]["kernel"] is None
    assert jax.eval_shape(partial(reconstruct, mirrored), own, jnp.ones(8)).shape == (8,)


def test_dropout_of_each_level_takes_a_key_of_its_own():
    """Checked against one key for all levels; without a key no level has any."""
    seen = []

    def echo(params, x, c=(), *, key=None):
        seen.append(key)
        return Delta(x)

    level = LEVELS[0]._replace(encode=echo, decode=echo)
    deep, x = stacked.stack([level] * 3), jnp.ones(2)
    for up_or_down in (deep.encode, deep.decode):
        seen.clear()
        up_or_down(((), (), ()), x, key=jax.random.key(1))
        assert len({tuple(jax.random.key_data(key).tolist()) for key in seen}) == 3
        seen.clear()
        up_or_down(((), (), ()), x)
        assert seen == [None] * 3


def test_dropout_is_on_with_a_key_and_off_without():
    noisy = nn.Sequential([networks.MLP((16,), dropout=0.5), heads.Code(16)])
    level = autoencoder(noisy, heads.FixedNormal(16, 1.0))
    deep, x = stacked.stack([level, level]), np.ones(16, np.float32)
    params = deep.init(jax.random.key(0), x)

    @jax.jit
    def codes(keys):
        plain = level.encode(params[1], level.encode(params[0], x).mean).mean
        return *(deep.encode(params, x, key=key).mean for key in keys), plain

    one, two, plain = map(np.asarray, codes([jax.random.key(k) for k in (1, 2)]))
    assert min(np.abs(a - b).max() for a, b in ((one, two), (one, plain))) > 1e-3
    np.testing.assert_allclose(jax.jit(deep.encode)(params, x).mean, plain, rtol=1e-6)


@cache
def program(level, transform):
    loss = autoencoders.reconstruction(level)
    return jax.jit(train.make_train(loss, ADAM, steps=20, batch_size=30, transform=transform))


def by_hand(levels, key, x, *, transform=None, transform_above=None):
    """What `pretrain` says it does: make_train on x, then on the codes of what was trained."""
    params = []
    for i, level in enumerate(levels):
        init_key, see_key, train_key, codes_key = jax.random.split(jax.random.fold_in(key, i), 4)
        seen = x[0] if transform is None else transform(see_key, x[0])
        state, history = program(level, transform)(train_key, level.init(init_key, seen), x)
        params.append(state.params)
        x = evaluate.codes(level, state.params, codes_key, x, transform=transform)
        transform = transform_above
    return tuple(params), history


def test_one_level_is_make_train_bit_for_bit(clusters):
    x = jnp.asarray(clusters.x)
    found = pretrain(LEVELS[:1], jax.random.key(3), clusters)
    params, history = by_hand(LEVELS[:1], jax.random.key(3), x)
    assert_equal(found.params, params)
    assert_equal(found.history, (history,))


def test_the_transform_is_for_stored_data_alone(clusters):
    """Checked against the codes transformed again; one Model twice is two levels all the same."""
    square = plain_level(8, 8)
    stored, key = jnp.asarray(np.round(255 * clusters.x), jnp.uint8), jax.random.key(4)
    found = pretrain([square, square], key, stored, transform=data.scale)
    hand = partial(by_hand, [square, square], x=stored, transform=data.scale)
    assert_equal(found.params, hand(key=jax.random.clone(key))[0])
    mistaken, _ = hand(key=jax.random.clone(key), transform_above=lambda key, x: x / 255)
    with pytest.raises(AssertionError):
        assert_equal(found.params, mistaken)


@pytest.mark.statistics
def test_every_level_learns_from_the_codes_of_the_one_below(clusters, pretrained):
    """Each level's loss falls, and is, at the end, that level's on the codes below."""
    x = clusters.x
    for i, (level, own, history) in enumerate(zip(LEVELS, *pretrained, strict=True)):
        assert history["loss"].shape == (300,)
        assert history["loss"][-20:].mean() < history["loss"][:5].mean()
        if i < 2:
            measured = mean_loss(autoencoders.reconstruction(level), own, jax.random.key(0), x)
            np.testing.assert_allclose(measured["loss"], history["loss"][-4:].mean(), rtol=0.02)
            x = evaluate.codes(level, own, jax.random.key(0), x)


@pytest.mark.statistics
def test_a_level_may_be_denoising_and_another_contractive(clusters):
    loss = (
        partial(autoencoders.denoising, corrupt=masked),
        partial(autoencoders.contractive, norm=norm, weight=0.1),
    )
    _, history = pretrain(LEVELS[:2], jax.random.key(5), clusters.x, loss=loss, steps=120)
    for one in history:
        assert one["loss"][-20:].mean() < one["loss"][:5].mean()
    assert ["jacobian_norm" in one for one in history] == [False, True]


def test_codes_are_the_means_one_by_one_whatever_the_chunks(clusters, deep_params):
    key = jax.random.key(6)
    whole = evaluate.codes(DEEP, deep_params, key, clusters, transform=data.binarize)
    parts = evaluate.codes(
        DEEP,
        deep_params,
        jax.random.clone(key),
        clusters.x,
        transform=data.binarize,
        batch_size=7,
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    assert whole.shape == (120, 3)
    plain = evaluate.codes(DEEP, deep_params, jax.random.clone(key), clusters)
    expected = CODES(deep_params, clusters.x)
    np.testing.assert_allclose(plain, expected, rtol=1e-6)
    assert np.abs(whole - plain).max() > 1e-3


def test_masked_rows_leave_no_trace_in_pretraining(clusters):
    """NaN in rows of weight 0 goes up as NaN of weight 0, and no further."""
    levels = [plain_level(8, 6), plain_level(6, 4)]
    weight = (np.arange(120) % 2).astype(np.float32)
    found = []
    for hidden in (0.5, np.nan):
        x = np.where(weight[:, None] > 0, clusters.x, hidden).astype(np.float32)
        found.append(pretrain(levels, jax.random.key(0), Batch(x, weight=weight), steps=3))
    assert_equal(*found)


@pytest.mark.statistics
def test_the_deep_autoencoder_is_fine_tuned_as_a_whole(clusters, pretrained):
    loss = autoencoders.reconstruction(DEEP)
    program = train.make_train(loss, optax.adam(3e-3), steps=200, batch_size=30)
    state, _ = jax.jit(program)(jax.random.key(0), pretrained.params, clusters)
    before, after = (
        mean_loss(loss, params, jax.random.key(0), clusters)["loss"]
        for params in (pretrained.params, state.params)
    )
    assert after < before


def test_no_level_and_wrong_counts_are_refused(clusters):
    run = partial(pretrain, key=jax.random.key(0), data=clusters)
    with pytest.raises(ValueError, match="stack: expected levels >= 1"):
        stacked.stack([])
    with pytest.raises(ValueError, match="pretrain: expected levels >= 1"):
        run([])
    with pytest.raises(ValueError, match="expected steps >= 1"):
        run(LEVELS, steps=0)
    with pytest.raises(ValueError, match="expected batch_size >= 1"):
        run(LEVELS, batch_size=0)
    with pytest.raises(ValueError, match="batch_size: got 121, expected 1 to 120"):
        run(LEVELS, batch_size=121)
    with pytest.raises(ValueError, match="got 2 losses, expected 3, one a level"):
        run(LEVELS, loss=[autoencoders.reconstruction] * 2)
    with pytest.raises(ValueError, match="codes: expected batch_size >= 1"):
        evaluate.codes(DEEP, (), jax.random.key(0), clusters, batch_size=0)
    with pytest.raises(ValueError, match="classifier: classes: got 1, expected 2 or more"):
        stacked.classifier(DEEP, 1)
    with pytest.raises(ValueError, match=r"classifier: classes: got 3.5, .* an integer"):
        stacked.classifier(DEEP, 3.5)


def test_levels_that_do_not_fit_are_named(clusters):
    wrong = [LEVELS[0], sigmoid_level(5, 4)]
    message = r"level 1: got a decoder to \(5,\), expected \(6,\), the code of level 0"
    with pytest.raises(ValueError, match=message):
        stacked.stack(wrong).init(jax.random.key(0), jnp.ones(8))
    with pytest.raises(ValueError, match="pretrain: " + message):
        pretrain(wrong, jax.random.key(0), clusters, steps=2)


def test_a_level_that_diverges_is_named(clusters):
    outside = clusters._replace(x=clusters.x + 1)  # no probability: a Bernoulli's support ends at 1
    with pytest.raises(train.NonFiniteError, match=r"level 0: .*'loss': inf.* at step 0"):
        pretrain(LEVELS[:1], jax.random.key(0), outside)


def test_a_model_alone_or_a_loss_in_place_of_its_function_is_refused():
    with pytest.raises(TypeError, match=r"stack: levels: got one Model.*\[model\]"):
        stacked.stack(LEVELS[0])
    run = partial(pretrain, key=jax.random.key(0), data=np.zeros((4, 8)), batch_size=2)
    with pytest.raises(TypeError, match="pretrain: levels: got one Model"):
        run(LEVELS[0], loss=autoencoders.reconstruction)
    with pytest.raises(TypeError, match="pretrain: loss: got loss"):
        run(LEVELS[:1], loss=autoencoders.reconstruction(LEVELS[0]))
