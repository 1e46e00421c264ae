"""Mixed precision: products in bfloat16, all that comes out in float32, the bound to half a nat."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax

from vaejax import (
    Batch,
    autoencoder,
    autoregressive,
    causal,
    conditional,
    data,
    evaluate,
    heads,
    hierarchical,
    networks,
    objectives,
    posteriors,
    quantized,
    recurrent,
    train,
)
from vaejax.distributions import Normal
from vaejax.train.precision import mixed_precision

SHAPE, LATENT = (4, 4, 1), 3
PRIOR = Normal(jnp.zeros(LATENT), jnp.ones(LATENT))
X = jax.random.uniform(jax.random.key(3), SHAPE)  # grey, so that rounding shows
CLASSES = (3 * X).astype(jnp.int32)
SYMBOLS = CLASSES[:, :, 0].ravel()


def mlp(head, **options):
    return nn.Sequential([networks.MLP((8,), **options), head])


def vae(encoder=None, decoder=None):
    encoder = encoder or mlp(heads.Normal(LATENT))
    return autoencoder(encoder, decoder or mlp(heads.Bernoulli(SHAPE)), PRIOR)


def convolutional():
    return vae(
        nn.Sequential([networks.ConvEncoder((4, 4)), nn.LayerNorm(), heads.Normal(LATENT)]),
        nn.Sequential([networks.ConvDecoder(SHAPE, (4, 4)), heads.Normal(SHAPE)]),
    )


def two_layers():
    return hierarchical.layers(
        vae(),
        encoders=[mlp(heads.Normal(2))],
        decoders=[mlp(heads.Normal(LATENT))],
        prior=Normal(jnp.zeros(2), jnp.ones(2)),
    )


def masked(classes=None, dtype=jnp.float32):
    return autoregressive.Causal(causal.MADE(SHAPE, (8,), classes=classes), SHAPE, dtype)


def pixels():
    return autoregressive.Causal(causal.GatedPixelCNN(SHAPE, features=4, layers=2), SHAPE)


def sentences():
    return vae(
        nn.Sequential([recurrent.TextEncoder(3, 8), heads.Normal(LATENT)]),
        autoregressive.Causal(recurrent.Language(3, 8), SYMBOLS.shape, jnp.int32),
    )


def completing():
    return vae(decoder=conditional.Completing(mlp(heads.Bernoulli(SHAPE))))


LEVELS = jnp.round(X * 255) / 255
HALF = jnp.zeros(SHAPE).at[:2].set(1.0)
FAMILIES = {
    "dense": (vae, X, ()),
    "conditional": (vae, X, jnp.eye(3)[1]),
    "levels": (lambda: vae(decoder=mlp(heads.DiscretizedLogistic(SHAPE))), LEVELS, ()),
    "convolutional": (convolutional, X, ()),
    "two_layers": (two_layers, X, ()),
    "iaf": (lambda: posteriors.iaf_posterior(vae(), LATENT, hidden=(8,)), X, ()),
    "completing": (completing, X, (HALF * X, HALF)),
    "made": (lambda: vae(decoder=masked()), jnp.round(X), ()),
    "made_of_classes": (lambda: vae(decoder=masked(3, jnp.int32)), CLASSES, ()),
    "pixelcnn": (lambda: vae(decoder=pixels()), jnp.round(X), ()),
    "language": (sentences, SYMBOLS, ()),
}
every = pytest.mark.parametrize("name", list(FAMILIES))


@functools.cache
def built(name):
    """A model, parameters that no zero hides, one example and its condition."""
    build, x, c = FAMILIES[name]
    model = build()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), x, c))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), s.dtype), shapes)
    return model, params, x, c


def product_types(jaxpr):
    """The types of the factors of every matrix product and convolution, in all that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield {variable.aval.dtype for variable in equation.invars}
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        )
        for one in inner:
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield from product_types(one)


def types_and_results(function, *args):
    """The types of the factors of its products, and the shapes and types that it returns."""
    jaxpr, results = jax.make_jaxpr(function, return_shape=True)(*args)
    found = list(product_types(jaxpr.jaxpr))
    assert found, "no product was seen"
    return set().union(*found), results


def encoded(model, params, key, x, c):
    """What the encoder's side computes: z, log q."""
    return model.encode(params, x, c).sample_and_log_prob(key)


def decoded(model, params, z, x, c):
    return model.decode(params, z, c).log_prob(x)


@every
def test_every_product_is_of_bfloat16_and_what_comes_out_float32(name, key):
    model, params, x, c = built(name)
    mixed = mixed_precision(model)

    def encoder_side(params, key):
        q = mixed.encode(params, x, c)
        return q, q.sample_and_log_prob(key)

    def decoder_side(params, z):
        px = mixed.decode(params, z, c)
        return px, px.log_prob(x)

    types, (q, (z, log_q)) = types_and_results(encoder_side, params, key)
    assert types == {jnp.dtype(jnp.bfloat16)}
    types, (px, log_px) = types_and_results(decoder_side, params, jnp.ones(z.shape, z.dtype))
    assert types == {jnp.dtype(jnp.bfloat16)}
    results = jax.tree.leaves((q, z, log_q, px, log_px))
    floats = [leaf for leaf in results if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {z.dtype, log_q.dtype, log_px.dtype}
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", ["levels", "convolutional", "iaf"])
def test_numbers_and_gradients_are_those_of_float32_to_rounding(name):
    model, params, x, c = built(name)

    def bound(model, params, key):
        z, log_q = encoded(model, params, key, x, c)
        return decoded(model, params, z, x, c) - log_q + model.prior(params, c).log_prob(z)

    of = [
        jax.jit(jax.value_and_grad(partial(bound, m)))(params, jax.random.key(5))
        for m in (model, mixed_precision(model))
    ]
    (value, grads), (mixed_value, mixed_grads) = of
    # 16 entries, each to about 1/256 of itself; 0.03 of it for the steep ones.
    np.testing.assert_allclose(mixed_value, value, rtol=0.03, atol=0.1)
    flat, mixed_flat = (
        np.concatenate([np.ravel(g) for g in jax.tree.leaves(tree)])
        for tree in (grads, mixed_grads)
    )
    assert mixed_flat.dtype == np.float32 and np.isfinite(mixed_flat).all()
    cosine = flat @ mixed_flat / np.linalg.norm(flat) / np.linalg.norm(mixed_flat)
    assert cosine > 0.99


def test_it_is_the_model_at_rounded_parameters_and_inputs():
    model, params, x, _ = built("dense")
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, x))
    # Not compiled: compilers may leave a rounding out.
    by_hand, mixed = model.encode(*low), mixed_precision(model).encode(params, x)
    np.testing.assert_array_equal(by_hand.loc.astype(jnp.float32), mixed.loc)
    whole = jax.jit(model.encode)(params, x)
    assert jnp.any(mixed.loc != whole.loc)
    same = jax.jit(mixed_precision(model, jnp.float32).encode)(params, x)  # changes nothing
    jax.tree.map(np.testing.assert_array_equal, whole, same)


def test_known_pixels_are_handed_through_and_not_rounded():
    """A completed image has the density of its hidden pixels, which another known pixel ends."""
    model, params, x, c = built("completing")
    z = jnp.ones(LATENT)
    px, whole = (jax.jit(m.decode)(params, z, c) for m in (mixed_precision(model), model))
    np.testing.assert_array_equal(px.x, c[0])
    np.testing.assert_allclose(px.log_prob(x), whole.log_prob(x), rtol=0.02)
    assert np.isneginf(px.log_prob(x + 1e-3 * HALF))


def test_a_network_in_a_distribution_keeps_its_parameters_and_its_structure(key):
    model, params, x, _ = built("made")
    mixed = mixed_precision(model)
    px = mixed.decode(params, jnp.ones(LATENT))
    held = [leaf for leaf in jax.tree.leaves(px.conditionals) if leaf.ndim == 2]
    kernels = [leaf for leaf in jax.tree.leaves(params["decoder"]) if leaf.ndim == 2]
    assert len(held) == len(kernels)
    jax.tree.map(np.testing.assert_array_equal, held, kernels)
    other = mixed.decode(params, jnp.zeros(LATENT))
    assert jax.tree.structure(px) == jax.tree.structure(other)
    carried, log_p = lax.scan(lambda p, _: (p, p.log_prob(x)), px, length=2)
    np.testing.assert_array_equal(log_p, jnp.broadcast_to(px.log_prob(x), 2))
    # Step by step in float32: its sums have a term for every entry.
    types, _ = types_and_results(lambda p, key: p.sample(key), carried, key)
    assert types == {jnp.dtype(jnp.float32)}
    assert set(np.unique(jax.jit(lambda p, key: p.sample(key))(px, key))) <= {0.0, 1.0}
    assert px.discrete and px.event_shape == SHAPE


def test_a_key_makes_the_same_layer_noise(key):
    model = autoencoder(mlp(heads.Normal(2), dropout=0.5), mlp(heads.Bernoulli(SHAPE)))
    params = model.init(key, X)

    @jax.jit
    def codes(noise):
        same, mixed = jax.random.clone(noise), mixed_precision(model)
        q = model.encode(params, X, key=noise), mixed.encode(params, X, key=same)
        return *(one.loc for one in q), mixed.encode(params, X).loc

    expected, noisy, quiet = codes(jax.random.key(9))
    assert jnp.any(jnp.abs(noisy - quiet) > 0.1)
    np.testing.assert_allclose(noisy, expected, atol=0.05)


def test_gradients_of_large_batches_do_not_stall():
    """A bfloat16 sum of ones, one by one, ends at 256."""
    model = mixed_precision(autoencoder(heads.Code(1), heads.FixedNormal((1,), 1.0)))
    params = model.init(jax.random.key(1), jnp.zeros(1))

    def total(params, x):
        return jnp.sum(jax.vmap(lambda one: model.encode(params, one).mean[0])(x))

    grads = jax.jit(jax.grad(total))(params, jnp.ones((4096, 1)))
    assert {float(g.ravel()[0]) for g in jax.tree.leaves(grads["encoder"])} == {4096.0}


def test_what_it_does_not_do_is_refused(key):
    model = vae()
    with pytest.raises(ValueError, match="float16.*expected bfloat16 or float32.*loss scaling"):
        mixed_precision(model, jnp.float16)
    with pytest.raises(ValueError, match="int8, expected bfloat16"):
        mixed_precision(model, jnp.int8)
    point = autoencoder(mlp(heads.Code((2, 2))), mlp(heads.FixedNormal(SHAPE, 0.5)))
    outside = quantized.quantize(mixed_precision(point), entries=4)
    params = outside.init(key, X)
    with pytest.raises(ValueError, match="mixed_precision: model: got one made by quantize"):
        jax.eval_shape(mixed_precision(quantized.quantize(point, entries=4)).encode, params, X)
    q = jax.jit(outside.encode)(params, X)
    np.testing.assert_allclose(q.value, params["codebook"][q.index], atol=1e-6)


@pytest.mark.statistics
def test_the_bound_on_digits_is_within_half_a_nat_trained_either_way():
    """200 steps on scikit-learn's scans, measured by both; and the same steps in bfloat16."""
    images, test = data.load("digits").x, data.load("digits", "test").x
    shape = images.shape[1:]
    model = autoencoder(
        nn.Sequential([networks.MLP((32,)), heads.Normal(8)]),
        nn.Sequential([networks.MLP((32,)), heads.Bernoulli(shape)]),
        Normal(jnp.zeros(8), jnp.ones(8)),
    )
    mixed = mixed_precision(model)
    start = model.init(jax.random.key(1), jnp.zeros(shape))

    def trained(model):
        program = train.make_train(
            objectives.elbo(model),
            optax.adam(1e-2),
            steps=200,
            batch_size=64,
            transform=data.binarize,
        )
        return jax.jit(program)(jax.random.key(2), start, images)[0].params

    def measured(model, params):
        terms = evaluate.elbo_terms(
            model, params, jax.random.key(4), Batch(test), transform=data.binarize
        )
        return np.mean(terms["elbo"])

    params, mixed_params = trained(model), trained(mixed)
    assert {leaf.dtype for leaf in jax.tree.leaves(mixed_params)} == {jnp.dtype(jnp.float32)}
    whole = measured(model, params)
    assert abs(measured(mixed, params) - whole) < 0.5
    assert abs(measured(mixed, mixed_params) - whole) < 0.5
    # That it learned: the data's own entropy by pixel means lies below.
    assert whole > measured(model, start) + 5
