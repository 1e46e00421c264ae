"""Stacked autoencoders: against the same done by hand, level by level, and label by label."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vaejax import autoencoders, data, evaluate, heads, networks, stacked, train
from vaejax.distributions import Delta, Normal
from vaejax.evaluate import mean_loss
from vaejax.model import autoencoder, generate, reconstruct, tied
from vaejax.types import Batch

WIDTHS = 6, 4, 3
ADAM = optax.adam(1e-2)


def sigmoid_level(below, above):
    return autoencoder(heads.Code(above, nn.sigmoid), heads.Bernoulli(below))


LEVELS = [sigmoid_level(b, a) for b, a in zip((8, *WIDTHS[:-1]), WIDTHS, strict=True)]
DEEP = stacked.stack(LEVELS)
CLASSIFY = stacked.classifier(DEEP, 3)
CLASSIFICATION = stacked.classification(CLASSIFY)
CODES = jax.jit(jax.vmap(lambda params, x: DEEP.encode(params, x).mean, (None, 0)))
GRADIENT = jax.jit(jax.value_and_grad(CLASSIFICATION, has_aux=True))


def masked(key, x):
    return x * (jax.random.uniform(key, x.shape) >= 0.25)


def norm(model, params, key, x, c=()):
    """|df/dx|_F^2 by hand: the Jacobian of the mean code."""
    return jnp.sum(jax.jacrev(lambda one: model.encode(params, one, c).mean)(x) ** 2)


pretrain = partial(
    stacked.pretrain, loss=autoencoders.reconstruction, optimizer=ADAM, steps=20, batch_size=30
)


@pytest.fixture(scope="module")
def clusters():
    """Three classes of 8 grey values around three corners, far apart: x `[120, 8]`, y `[120]`."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    corners = np.array([[0.9] * 4 + [0.1] * 4, [0.1] * 4 + [0.9] * 4, [0.9, 0.1] * 4])
    x = np.clip(corners[y] + 0.08 * rng.normal(size=(120, 8)), 0, 1)
    return Batch(x.astype(np.float32), y=y.astype(np.int32))


@pytest.fixture(scope="module")
def pretrained(clusters):
    return pretrain(LEVELS, jax.random.key(0), clusters, steps=300)


@pytest.fixture(scope="module")
def start(clusters, pretrained):
    return CLASSIFY.init(jax.random.key(1), clusters.x[0]) | {"model": pretrained.params}


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


# The stack.


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


def test_a_stack_is_its_levels_one_after_the_other(clusters, pretrained):
    """Checked against decoders in the order of the encoders, and a decoder left out."""
    x = jnp.asarray(clusters.x[0])
    check_stack(stacked.stack, pretrained.params, x)

    def without_middle_decoder(levels):
        def decode(params, z, c=(), *, key=None):
            h = levels[2].decode(params[2], z).mean
            return levels[0].decode(params[0], jnp.pad(h, (0, 2)))

        return stacked.stack(levels)._replace(decode=decode)

    with pytest.raises(AssertionError):
        check_stack(without_middle_decoder, pretrained.params, x)


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


# Pretraining.


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
    square = sigmoid_level(8, 8)
    stored, key = jnp.asarray(np.round(255 * clusters.x), jnp.uint8), jax.random.key(4)
    found = pretrain([square, square], key, stored, transform=data.scale)
    hand = partial(by_hand, [square, square], x=stored, transform=data.scale)
    assert_equal(found.params, hand(key=jax.random.clone(key))[0])
    mistaken, _ = hand(key=jax.random.clone(key), transform_above=lambda key, x: x / 255)
    with pytest.raises(AssertionError):
        assert_equal(found.params, mistaken)


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


def test_codes_are_the_means_one_by_one_whatever_the_chunks(clusters, pretrained):
    key = jax.random.key(6)
    whole = evaluate.codes(DEEP, pretrained.params, key, clusters, transform=data.binarize)
    parts = evaluate.codes(
        DEEP,
        pretrained.params,
        jax.random.clone(key),
        clusters.x,
        transform=data.binarize,
        batch_size=7,
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    assert whole.shape == (120, 3)
    plain = evaluate.codes(DEEP, pretrained.params, jax.random.clone(key), clusters)
    expected = CODES(pretrained.params, clusters.x)
    np.testing.assert_allclose(plain, expected, rtol=1e-6)
    assert np.abs(whole - plain).max() > 1e-3


def conditional(below, above, encoder=None):
    encoder = encoder or nn.Sequential([networks.MLP((4,), nn.tanh), heads.Code(above)])
    decoder = nn.Sequential([networks.MLP((4,), nn.tanh), heads.FixedNormal(below, 1.0)])
    return autoencoder(encoder, decoder)


def test_conditions_reach_every_level_the_classifier_and_its_draw(clusters):
    """Checked against c left out above the first level and with one draw for another."""
    levels = [conditional(8, 3), conditional(3, 2)]
    x, c = clusters.x, np.eye(3, dtype=np.float32)[clusters.y[::-1]]
    trained = pretrain(levels, jax.random.key(0), Batch(x, c), steps=2)
    classify = stacked.classifier(stacked.stack(levels), 3)
    params = classify.init(jax.random.key(1), x[0], c[0]) | {"model": trained.params}

    def nats_and_errors(x, c, y):
        for level, own in zip(levels, trained.params, strict=True):
            x = level.encode(own, x, c).mean
        logits = x @ params["classes"]["kernel"] + params["classes"]["bias"]
        return -jax.nn.log_softmax(logits)[y], jnp.argmax(logits) != y

    by_hand = jax.jit(jax.vmap(nats_and_errors))
    zeroed = autoencoders.corrupted(lambda key, x: 0 * x)
    for seen, option in ((x, {}), (0 * x, {"draw": zeroed})):
        loss = stacked.classification(classify, **option)
        value, metrics = jax.jit(loss)(params, jax.random.key(2), Batch(x, c, clusters.y), 0)
        nats, errors = by_hand(seen, c, clusters.y)
        np.testing.assert_allclose(value, np.mean(nats), rtol=1e-5)
        np.testing.assert_allclose(metrics["error"], np.mean(errors), rtol=1e-5)
        data = Batch(seen, c, clusters.y)
        rate = stacked.error_rate(classify, params, jax.random.key(3), data)
        assert rate == pytest.approx(np.mean(errors))


def test_masked_rows_leave_no_trace_in_pretraining(clusters):
    """NaN in rows of weight 0 goes up as NaN of weight 0, and no further."""
    weight = (np.arange(120) % 2).astype(np.float32)
    found = []
    for hidden in (0.5, np.nan):
        x = np.where(weight[:, None] > 0, clusters.x, hidden).astype(np.float32)
        found.append(pretrain(LEVELS[:2], jax.random.key(0), Batch(x, weight=weight), steps=3))
    assert_equal(*found)


# The classifier.


def logits_by_hand(params, x):
    layer = jax.tree.map(np.asarray, params["classes"])
    return np.asarray(CODES(params["model"], x)) @ layer["kernel"] + layer["bias"]


def test_the_loss_is_the_cross_entropy_of_the_softmax(clusters, start):
    from scipy.special import log_softmax

    (value, metrics), _ = GRADIENT(start, jax.random.key(0), clusters, 0)
    logits = logits_by_hand(start, clusters.x)
    nats = -log_softmax(logits, axis=1)[np.arange(120), clusters.y]
    np.testing.assert_allclose(value, nats.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], nats.mean(), rtol=1e-5)
    error = np.mean(logits.argmax(axis=1) != clusters.y)
    np.testing.assert_allclose(metrics["error"], error, rtol=1e-6)
    measured = stacked.error_rate(CLASSIFY, start, jax.random.key(0), clusters)
    np.testing.assert_allclose(measured, error, rtol=1e-6)


def test_fine_tuning_reaches_every_encoder_and_no_decoder(clusters, start):
    """The decoders' parameters may be anything: no number depends on them, and none changes."""
    _, grads = GRADIENT(start, jax.random.key(0), clusters, 0)
    for own in grads["model"]:
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own["encoder"]))
        assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(own["decoder"]))
    broken = tuple(
        own | {"decoder": jax.tree.map(lambda leaf: leaf * jnp.nan, own["decoder"])}
        for own in start["model"]
    )
    (value, _), without = GRADIENT(start | {"model": broken}, jax.random.key(0), clusters, 0)
    assert np.isfinite(value)
    assert_equal(grads, without)


@pytest.mark.statistics
def test_fine_tuning_separates_what_is_separable(clusters, start):
    program = train.make_train(CLASSIFICATION, optax.adam(3e-2), steps=200, batch_size=30)
    state, history = jax.jit(program)(jax.random.key(2), start, clusters)
    assert stacked.error_rate(CLASSIFY, state.params, jax.random.key(0), clusters) == 0.0
    assert history["cross_entropy"][-20:].mean() < 0.2 * history["cross_entropy"][0]
    for before, after in zip(start["model"], state.params["model"], strict=True):
        assert_equal(before["decoder"], after["decoder"])
        old, new = (own["encoder"]["params"]["code"]["kernel"] for own in (before, after))
        assert np.abs(old - new).max() > 1e-3


def check_masking(gradient, params, clusters):
    """Unlabelled rows, of any x, change neither the loss nor its gradient nor its metrics."""
    x, y = clusters.x.copy(), clusters.y.copy()
    x[12:], y[12:] = np.nan, -1
    found = gradient(params, jax.random.key(0), Batch(x, y=y), 0)
    known = jax.tree.map(lambda leaf: leaf[:12], clusters)
    expected = GRADIENT(params, jax.random.key(0), known, 0)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, found, expected)


def test_unlabelled_examples_leave_no_trace(clusters, start):
    """Checked against label -1 counted as a class, and against a mean over all rows."""
    check_masking(GRADIENT, start, clusters)

    def mean_over_all(params, key, batch, step):
        value, metrics = CLASSIFICATION(params, key, batch, step)
        return value * jnp.mean(batch.y >= 0), metrics

    def counted_as_first_class(params, key, batch, step):
        y, x = jnp.maximum(batch.y, 0), jnp.nan_to_num(batch.x)
        return CLASSIFICATION(params, key, Batch(x, y=y), step)

    for mistaken in (mean_over_all, counted_as_first_class):
        with pytest.raises(AssertionError):
            check_masking(jax.jit(jax.value_and_grad(mistaken, has_aux=True)), start, clusters)


def test_weights_count_and_a_batch_without_labels_moves_nothing(clusters, start):
    few = jax.tree.map(lambda leaf: leaf[:12], clusters)
    weight = jnp.asarray([1.0] * 3 + [0.0] * 9)
    (weighed, _), _ = GRADIENT(start, jax.random.key(0), few._replace(weight=weight), 0)
    three = few._replace(y=np.where(np.arange(12) < 3, few.y, -1))
    (labelled, _), _ = GRADIENT(start, jax.random.key(0), three, 0)
    np.testing.assert_allclose(weighed, labelled, rtol=1e-6)
    unknown = few._replace(y=np.full(12, -1, np.int32))
    (value, metrics), grads = GRADIENT(start, jax.random.key(0), unknown, 0)
    assert value == metrics["error"] == 0.0
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(grads))


class Direction(nn.Module):
    """x and c over their norm, of which the derivative at zero is NaN."""

    @nn.compact
    def __call__(self, x, c):
        h = jnp.concatenate([x, c])
        return heads.Code(3)(h / jnp.linalg.norm(h))


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_a_batch_without_labels_moves_nothing_whatever_it_holds(bad):
    """Checked against the gradient of what was left out, which is NaN."""
    model = stacked.classifier(conditional(2, 3, Direction()), 3)
    x, c = np.full((4, 2), bad, np.float32), np.full((4, 1), bad, np.float32)
    params = model.init(jax.random.key(0), np.ones(2, "f"), np.ones(1, "f"))
    gradient = jax.jit(jax.grad(stacked.classification(model), has_aux=True))

    def check(y, weight):
        grads, metrics = gradient(params, jax.random.key(0), Batch(x, c, y, weight), 0)
        for leaf in jax.tree.leaves((grads, metrics)):
            np.testing.assert_array_equal(leaf, 0)

    unknown = np.full(4, -1, np.int32)
    for y, weight in ((unknown, np.ones(4)), (0 * unknown, np.zeros(4))):
        check(y, weight)
    with pytest.raises(AssertionError):
        check(0 * unknown, np.ones(4))


def test_weights_and_unlabelled_rows_leave_no_trace_in_the_error_rate(clusters, start):
    """Checked by rows of weight 0 that hold NaN, wrong labels and labels that are no class."""
    rate = partial(stacked.error_rate, CLASSIFY, start, jax.random.key(0))
    x = clusters.x.copy()
    right = np.argmax(logits_by_hand(start, x), axis=1).astype(np.int32)
    y, weight = right.copy(), np.ones(120, np.float32)
    y[:3], weight[:3] = (right[:3] + 1) % 3, 2.0  # errors, each counted twice
    assert rate(Batch(x, y=y, weight=weight)) == pytest.approx(6 / 123)
    y[60:], weight[60:] = (right[60:] + 1) % 3, 0.0
    assert rate(Batch(x, y=y, weight=weight)) == pytest.approx(6 / 63)
    x[100:], y[100] = np.nan, 7
    assert rate(Batch(x, y=y, weight=weight)) == pytest.approx(6 / 63)
    x[50:60], y[50:60] = np.nan, -1
    assert rate(Batch(x, y=y, weight=weight)) == pytest.approx(6 / 53)
    with pytest.raises(ValueError, match="largest logit is nan for example 50"):
        rate(Batch(x, y=right, weight=np.maximum(weight, 1)))
    with pytest.raises(ValueError, match="no label but -1"):
        rate(Batch(x, y=y, weight=weight * (y == -1)))


def test_the_error_rate_is_of_labelled_examples(clusters, start):
    """Half of the labels hidden: the rate of the other half, whatever the chunks."""
    half = np.where(np.arange(120) % 2 == 0, -1, clusters.y)
    found = stacked.error_rate(
        CLASSIFY, start, jax.random.key(0), clusters._replace(y=half), batch_size=50
    )
    wrong = np.argmax(logits_by_hand(start, clusters.x), axis=1) != clusters.y
    expected = np.mean(wrong[1::2])
    assert found == pytest.approx(expected) and found > 0


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


# Bad input.


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


def test_labels_outside_the_classes_and_none_are_refused(clusters, start):
    rate = partial(stacked.error_rate, CLASSIFY, start, jax.random.key(0))
    far = clusters._replace(y=np.where(np.arange(120) == 7, 3, clusters.y).astype(np.int32))
    with pytest.raises(ValueError, match="got 3 at example 7, expected 0 to 2"):
        rate(far)
    with pytest.raises(ValueError, match="no label but -1"):
        rate(clusters._replace(y=np.full(120, -1, np.int32)))
    with pytest.raises(ValueError, match="error_rate: y: got no labels"):
        rate(Batch(clusters.x))
    one_hot = Batch(clusters.x, y=np.eye(3, dtype=np.int32)[clusters.y])
    with pytest.raises(ValueError, match=r"classification: y: got int32\(120, 3\)"):
        CLASSIFICATION(start, jax.random.key(0), one_hot, 0)
    (value, metrics), _ = GRADIENT(start, jax.random.key(0), far, 0)
    assert value == metrics["cross_entropy"] == np.inf  # what fit refuses to go on from


def test_a_model_alone_or_a_loss_in_place_of_its_function_is_refused():
    with pytest.raises(TypeError, match=r"stack: levels: got one Model.*\[model\]"):
        stacked.stack(LEVELS[0])
    run = partial(pretrain, key=jax.random.key(0), data=np.zeros((4, 8)), batch_size=2)
    with pytest.raises(TypeError, match="pretrain: levels: got one Model"):
        run(LEVELS[0], loss=autoencoders.reconstruction)
    with pytest.raises(TypeError, match="pretrain: loss: got loss"):
        run(LEVELS[:1], loss=autoencoders.reconstruction(LEVELS[0]))
