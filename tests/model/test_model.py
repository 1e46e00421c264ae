"""Model, Draw and what runs them: structure, shapes, conditions, noise and errors."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from tests import oracles
from vaejax import (
    autoencoder,
    deterministic,
    distributions,
    draw,
    generate,
    heads,
    interpolate,
    networks,
    reconstruct,
    train,
)

STANDARD = distributions.Normal(jnp.zeros(2), jnp.ones(2))
SHAPE = (5, 3, 1)


def build(dropout=0.0, prior=STANDARD):
    return autoencoder(
        nn.Sequential([networks.MLP((8,), dropout=dropout), heads.Normal(2)]),
        nn.Sequential([networks.MLP((8,), dropout=dropout), heads.Bernoulli(SHAPE)]),
        prior,
    )


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(1), jnp.zeros(SHAPE))


def test_init_is_compiled_and_depends_on_the_key_alone(model, params):
    again = model.init(jax.random.key(1), jnp.ones(SHAPE))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    other = model.init(jax.random.key(2), jnp.zeros(SHAPE))
    kernels = [p["encoder"]["params"]["layers_0"]["Dense_0"]["kernel"] for p in (params, other)]
    assert jnp.any(kernels[0] != kernels[1])
    assert set(params) == {"encoder", "decoder"}


def test_a_draw_holds_one_pass_of_inference(model, params, key):
    x = jnp.ones(SHAPE)
    d = jax.jit(partial(draw, model, params))(key, x)
    chex.assert_shape([d.x, d.px.mean], SHAPE)
    chex.assert_shape([d.z, d.pz.mean, d.q.loc], (2,))
    np.testing.assert_allclose(d.log_q, d.q.log_prob(d.z), rtol=1e-5)
    np.testing.assert_allclose(d.px.logits, model.decode(params, d.z).logits, rtol=1e-4, atol=1e-6)


def test_given_is_what_the_encoder_sees_and_x_stays_the_target(model, params, key):
    clean, corrupted = jnp.ones(SHAPE), jnp.zeros(SHAPE)
    d = jax.jit(partial(draw, model))(params, key, clean, given=corrupted)
    np.testing.assert_array_equal(d.x, clean)
    np.testing.assert_allclose(d.q.loc, jax.jit(model.encode)(params, corrupted).loc, rtol=1e-6)


def test_every_function_of_one_example_maps_over_a_batch(model, params, key):
    x = np.random.default_rng(0).integers(0, 2, (4, *SHAPE)).astype(np.float32)

    @jax.jit
    def used(params, x, keys):
        rebuilt = jax.vmap(partial(reconstruct, model, params))(x)
        made = jax.vmap(partial(generate, model, params))(keys)
        return rebuilt, reconstruct(model, params, x[2]), made

    rebuilt, alone, made = used(params, x, jax.random.split(key, 4))
    chex.assert_shape(rebuilt, (4, *SHAPE))
    np.testing.assert_allclose(rebuilt[2], alone, rtol=1e-5)
    chex.assert_shape([made.x, made.mean], (4, *SHAPE))
    assert set(np.unique(made.x)) <= {0.0, 1.0}
    assert len(np.unique(np.asarray(made.z)[:, 0])) == 4


def test_generated_images_come_from_the_distribution_not_from_their_mean(model, params, key):
    """Checked against images drawn with softplus(logits) as a probability."""
    made = jax.jit(jax.vmap(partial(generate, model, params)))(jax.random.split(key, 20_000))
    off = np.asarray(made.x, float) - np.asarray(made.mean, float)
    assert (np.abs(off.mean(axis=0)) < 5 * off.std(axis=0) / 20_000**0.5).all()


def test_reconstruction_with_a_key_draws_from_the_posterior(model, params, key):
    one, two = jax.random.split(key)
    x = jnp.ones(SHAPE)
    rebuild = jax.jit(lambda key: reconstruct(model, params, x, key=key))
    drawn = [rebuild(k) for k in (one, two)]
    assert jnp.any(drawn[0] != drawn[1])


def test_interpolation_ends_at_both_reconstructions(model, params):
    x0, x1 = jnp.zeros(SHAPE), jnp.ones(SHAPE)
    path = jax.jit(lambda x0, x1: interpolate(model, params, x0, x1, steps=7))(x0, x1)
    chex.assert_shape(path, (7, *SHAPE))
    rebuild = jax.jit(partial(reconstruct, model, params))
    np.testing.assert_allclose(path[0], rebuild(x0), rtol=1e-5)
    np.testing.assert_allclose(path[-1], rebuild(x1), rtol=1e-5)
    with pytest.raises(ValueError, match="interpolate: expected steps >= 2, got 1"):
        interpolate(model, params, x0, x1, steps=1)


def test_dropout_follows_the_key_and_evaluation_is_quiet(key):
    model = build(dropout=0.5)
    init_key, one, two = jax.random.split(key, 3)
    params = model.init(init_key, jnp.zeros(SHAPE))
    x = jnp.ones(SHAPE)
    encode = jax.jit(lambda key: model.encode(params, x, key=key).loc)
    noisy = [encode(k) for k in (one, two)]
    assert jnp.any(noisy[0] != noisy[1])
    quiet = jax.jit(lambda key: deterministic(model).encode(params, x, key=key).loc)
    np.testing.assert_array_equal(quiet(jax.random.clone(one)), encode(None))


def test_a_learned_prior_depends_on_the_condition(key):
    model = autoencoder(
        nn.Sequential([networks.MLP((8,)), heads.Normal(2)]),
        nn.Sequential([networks.MLP((8,)), heads.Bernoulli(SHAPE)]),
        heads.Normal(2),
    )
    c = jnp.eye(3)
    params = model.init(key, jnp.zeros(SHAPE), c[0])
    assert set(params) == {"encoder", "decoder", "prior"}
    prior = jax.jit(lambda c: model.prior(params, c).loc)
    assert jnp.any(prior(c[0]) != prior(c[1]))


def test_a_deterministic_autoencoder_reconstructs_but_does_not_generate(key):
    model = autoencoder(heads.Code(2), heads.FixedNormal(SHAPE, 1.0))
    init_key, draw_key = jax.random.split(key)
    params = jax.eval_shape(model.init, init_key, jnp.zeros(SHAPE))
    rebuilt = jax.eval_shape(partial(reconstruct, model), params, jnp.zeros(SHAPE))
    assert rebuilt.shape == SHAPE
    with pytest.raises(ValueError, match="generate: a deterministic autoencoder has no prior"):
        generate(model, params, draw_key)


def test_state_outside_the_parameters_is_refused(key):
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.BatchNorm(use_running_average=False)(x.reshape(1, -1))
            return heads.Normal(2)(h)

    model = autoencoder(Normed(), heads.Bernoulli(SHAPE), STANDARD)
    with pytest.raises(ValueError, match=r"encoder keeps state.*batch_stats.*use LayerNorm"):
        model.init(key, jnp.zeros(SHAPE))


@pytest.mark.parametrize(
    "shape, fix",
    [
        ((7, *SHAPE), "no c; map a batch: jax.vmap"),
        ((6, 3, 1), "no c; another size needs"),
        ((28, 28), "no c; another size needs"),
    ],
)
def test_a_batch_or_another_size_is_named_with_the_fix(model, params, shape, fix):
    message = r"encode: expected one example.*\(5, 3, 1\).*got \(" + str(shape)[1:-1]
    with pytest.raises(ValueError, match=message + ".*" + fix):
        model.encode(params, jnp.zeros(shape))
    with pytest.raises(ValueError, match=r"got .*, \(2,\) with no c; labels .* Batch\(x, y="):
        model.encode(params, (jnp.zeros(SHAPE), jnp.zeros(2)))  # examples and labels as a pair


def test_init_from_a_batch_is_refused(model, key):
    with pytest.raises(ValueError, match=r"init: x: got a batch \(7, 5, 3, 1\).*pass x\[0\]"):
        model.init(key, jnp.zeros((7, *SHAPE)))


@pytest.mark.parametrize("shape", [(3,), (), (1,)])
def test_a_prior_over_other_codes_than_q_is_refused_before_training(shape, key):
    prior = distributions.Normal(jnp.zeros(shape), jnp.ones(shape))
    odd = autoencoder(heads.Normal(2), heads.Bernoulli(SHAPE), prior)
    message = r"init: prior: got Normal over events \(.*expected \(2,\), as of q"
    with pytest.raises(ValueError, match=message):
        odd.init(key, jnp.zeros(SHAPE))


def test_the_first_remedy_is_the_one_that_fits(model, params, key):
    """A batch without a condition: vmap. One image of a conditional model: its condition."""
    with pytest.raises(ValueError, match=r"got \(7, 5, 3, 1\) with no c; map a batch") as caught:
        model.encode(params, jnp.zeros((7, *SHAPE)))
    assert "conditional" not in str(caught.value)
    own = jax.eval_shape(model.init, key, jnp.zeros(SHAPE), jnp.zeros(4))
    with pytest.raises(ValueError, match="with no c; a conditional model needs the c"):
        jax.eval_shape(model.encode, own, jnp.zeros(SHAPE))


def test_codes_of_another_size_are_named(model, params):
    with pytest.raises(ValueError, match=r"decode: expected one code.*got \(3,\)"):
        model.decode(params, jnp.zeros(3))


def test_as_many_values_in_another_shape_are_refused_by_the_likelihood(model, params, key):
    with pytest.raises(ValueError, match=r"log_prob: expected one event of shape \(5, 3, 1\)"):
        jax.eval_shape(lambda x: draw(model, params, key, x).px.log_prob(x), jnp.zeros((3, 5, 1)))


def test_replacing_one_function_is_a_new_model(key):
    model, params = oracles.linear_gaussian()
    poor = oracles.poor_posterior(model)
    both = jax.jit(lambda x: [one.encode(params, x).loc for one in (poor, model)])
    shifted, exact = both(jnp.zeros(5))
    np.testing.assert_allclose(shifted, exact + 0.3)
    assert poor.decode is model.decode


def test_a_network_without_a_head_is_named(key):
    bare = networks.MLP((4,))
    for encoder, decoder in [(bare, heads.Bernoulli(SHAPE)), (heads.Normal(2), bare)]:
        with pytest.raises(TypeError, match="expected a Distribution; end it with a head"):
            autoencoder(encoder, decoder, STANDARD).init(jax.random.clone(key), jnp.zeros(SHAPE))


def test_a_key_that_is_none_is_refused(model, key):
    params = model.init(key, jnp.zeros(SHAPE))
    with pytest.raises(TypeError, match=r"init: key: got float32 \(5, 3, 1\), expected one PRNG"):
        model.init(jnp.zeros(SHAPE), key)
    with pytest.raises(TypeError, match=r"init: key: got 0, .*jax.random.key\(0\) makes one"):
        model.init(0, jnp.zeros(SHAPE))
    with pytest.raises(TypeError, match="generate: key: got 0"):
        generate(model, params, 0)
    with pytest.raises(TypeError, match=r"generate: key: got key<fry> \(2,\)"):
        generate(model, params, jax.random.split(jax.random.key(1)))
    older = model.init(jax.random.PRNGKey(0), jnp.zeros(SHAPE))
    chex.assert_trees_all_equal(params, older)  # the same key, as `jax.random.key(0)` is


def test_a_model_and_parameters_that_are_swapped_are_told_apart(model, params, key):
    x = jnp.zeros(SHAPE)
    for call, args in (
        (draw, (key, x)),
        (reconstruct, (x,)),
        (generate, (key,)),
        (interpolate, (x, x)),
    ):
        words = (
            rf"{call.__name__}: model: got .*expected a Model; the order is {call.__name__}\(model"
        )
        with pytest.raises(TypeError, match=words):
            call(params, model, *args)


def test_parameters_of_another_model_are_named_and_where_they_differ(params, key):
    x = jnp.zeros(SHAPE)

    def net(width, head):
        return nn.Sequential([networks.MLP((width,)), head])

    wider = autoencoder(net(9, heads.Normal(2)), net(8, heads.Bernoulli(SHAPE)), STANDARD)
    longer = autoencoder(net(8, heads.Normal(3)), net(8, heads.Bernoulli(SHAPE)), STANDARD)
    deeper = autoencoder(net(8, heads.FullNormal(2)), net(8, heads.Bernoulli(SHAPE)), STANDARD)
    larger = autoencoder(net(8, heads.Normal(2)), net(8, heads.Bernoulli((6, 3, 1))), STANDARD)
    for other, said in (
        (wider, r"layers_0/Dense_0/\w+ is .*8.*, not .*9"),
        (longer, r"layers_1/loc/\w+ is .*2.*, not .*3"),
        (deeper, "layers_1/"),
        (larger, r"decoder: .*layers_1/logits/\w+ is .*15.*, not .*18"),
    ):
        given = jnp.zeros((6, 3, 1)) if other is larger else x
        with pytest.raises(ValueError, match=rf"encode: params: got those of another.*{said}"):
            draw(other, params, jax.random.clone(key), given)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda p: p["encoder"], "got a dictionary of 'params', expected this model's"),
        (lambda p: None, "got None"),
        (lambda p: jax.tree.leaves(p), "got "),
        (lambda p: train.Fitted(train.TrainState(p, (), (), 0), (), {}, "epochs"), "its .params"),
    ],
)
def test_what_are_no_parameters_is_said_so(model, params, wrong, said):
    with pytest.raises(TypeError, match=rf"encode: params: .*{said}"):
        model.encode(wrong(params), jnp.zeros(SHAPE))


@pytest.mark.parametrize(
    "module, said",
    [
        (nnx.Linear, "the class Linear.*lambda rngs: Linear"),
        (networks.MLP, "the class MLP.*make one of it: MLP"),
        (jnp.tanh, "make it a layer: networks.sequential"),
        (None, "for instance networks.sequential"),
        ({"params": 1}, "init and apply"),
    ],
)
def test_what_is_no_module_is_refused_before_init(module, said):
    with pytest.raises(TypeError, match=rf"autoencoder: decoder: got .*{said}"):
        autoencoder(heads.Normal(2), module, STANDARD)


def test_what_is_no_model_is_refused_by_name(params, key):
    for wrong in (None, heads.Normal(2), params, 3):
        with pytest.raises(TypeError, match="draw: model: got .*, expected a Model"):
            draw(wrong, params, jax.random.clone(key), jnp.zeros(SHAPE))
