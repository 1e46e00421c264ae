"""Losses of deterministic autoencoders: their values by hand, tied weights, PCA, and warnings."""

import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.special import expit
from sklearn.decomposition import PCA

from vaejax import (
    Batch,
    autoencoder,
    autoencoders,
    contraction,
    corruption,
    heads,
    networks,
    objectives,
    sparsity,
    tied,
    train,
)
from vaejax.distributions import Normal, SparseDelta
from vaejax.networks import MLP, kernels

SIZE, LATENT = 6, 3
SQUARED = heads.FixedNormal((SIZE,), 0.5**0.5)
CONSTANT = 0.5 * SIZE * np.log(np.pi)  # of -log p under variance 1/2: what is not the error
X = np.random.default_rng(7).normal(size=(5, SIZE)).astype(np.float32)


def linear(code=None):
    return autoencoder(code or heads.Code(LATENT), SQUARED)


def drawn(model, *example):
    """Parameters of the model with kernels by numpy and biases of 0."""
    rng = np.random.default_rng(0)
    made = jax.eval_shape(model.init, jax.random.key(0), *example)
    return jax.tree.map(
        lambda leaf: (0.5 * (leaf.ndim > 1) * rng.normal(size=leaf.shape)).astype(leaf.dtype), made
    )


MODEL = linear()
PARAMS = drawn(MODEL, X[0])


def value(loss, params, batch, step=0, seed=1):
    return program(loss)(params, jax.random.key(seed), batch, step)


program = cache(jax.jit)
RECONSTRUCTION = autoencoders.reconstruction(MODEL)


@partial(jax.jit, static_argnums=0)
def rebuilt(model, params, x):
    return jax.vmap(lambda one: model.decode(params, model.encode(params, one).mean).mean)(x)


def test_the_reconstruction_loss_is_the_squared_error_summed_over_the_event():
    loss, metrics = value(RECONSTRUCTION, PARAMS, Batch(X))
    errors = np.sum((X - rebuilt(MODEL, PARAMS, X)) ** 2, axis=1)
    np.testing.assert_allclose(loss, errors.mean() + CONSTANT, rtol=1e-5)
    assert metrics["distortion"] == loss


def test_masked_examples_leave_every_loss():
    """A weight of 0 takes an example out, whatever it holds, and out of mean activations too."""
    model = linear(heads.Code(LATENT, nn.sigmoid))
    ragged = Batch(X.copy(), weight=np.array([1, 1, 1, 0, 0], np.float32))
    ragged.x[3:] = np.nan

    def mean_activation(z, weight=()):
        mean = jnp.mean(z, axis=0) if isinstance(weight, tuple) else weight @ z / jnp.sum(weight)
        return jnp.sum((mean - 0.1) ** 2)

    losses = [
        autoencoders.reconstruction(model),
        autoencoders.sparse(model, penalty=mean_activation, weight=2.0),
        autoencoders.contractive(model, norm=finite_norm, weight=0.5),
    ]

    @jax.jit
    def gradients(params, keys, batch):
        return [
            jax.value_and_grad(loss, has_aux=True)(params, key, batch, 0)
            for loss, key in zip(losses, keys, strict=True)
        ]

    keys = [jax.random.key(i) for i in range(3)]
    whole, part = (gradients(PARAMS, keys, batch) for batch in (Batch(X[:3]), ragged))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), whole, part)


def finite_norm(model, params, key, x, c=(), *, shift=None):
    return jnp.sum(jax.jacrev(lambda v: model.encode(params, v).mean)(x) ** 2)


def test_the_penalties_are_added_with_their_weights_and_named():
    D, _ = value(RECONSTRUCTION, PARAMS, Batch(X))
    (W,) = kernels(PARAMS["encoder"]).values()
    z = X @ W
    top_k = linear(heads.TopK(6, 3))
    half = autoencoders.sparse(top_k, penalty=lambda z, weight: 0.0, weight=1.0)
    assert value(half, drawn(top_k, X[0]), Batch(X))[1]["active"] == 0.5
    each = autoencoders.sparse(MODEL, penalty=lambda z, weight: jnp.mean(z, axis=1), weight=1.0)
    with pytest.raises(ValueError, match=r"sparse: penalty: got shape \(5,\), expected one number"):
        value(each, PARAMS, Batch(X))
    l1 = autoencoders.sparse(
        MODEL, penalty=lambda z, weight: jnp.mean(jnp.sum(abs(z), axis=1)), weight=lambda s: 0.1 * s
    )
    for step in (0, 3):  # the weight may be a schedule
        loss, metrics = value(l1, PARAMS, Batch(X), step)
        np.testing.assert_allclose(loss, D + 0.1 * step * np.abs(z).sum(1).mean(), rtol=1e-5)
    assert metrics["active"] == 1.0 and metrics["distortion"] == D
    np.testing.assert_allclose(metrics["activation"], np.mean(z), rtol=1e-4)
    contractive = autoencoders.contractive(MODEL, norm=finite_norm, weight=0.5)
    loss, metrics = value(contractive, PARAMS, Batch(X))
    np.testing.assert_allclose(metrics["jacobian_finite_norm"], np.sum(np.square(W)), rtol=1e-5)
    np.testing.assert_allclose(loss, D + 0.5 * np.sum(np.square(W)), rtol=1e-5)


def test_denoising_compares_with_the_clean_example():
    """The code sees the corrupted example and nothing else; the target is the clean one."""
    denoising = autoencoders.denoising(MODEL, corrupt=lambda key, x: x + 1.0)
    loss, _ = value(denoising, PARAMS, Batch(X))
    found = rebuilt(MODEL, PARAMS, X + 1)
    errors = np.sum((X - found) ** 2, axis=1)
    np.testing.assert_allclose(loss, errors.mean() + CONSTANT, rtol=1e-5)
    targets = np.sum((X + 1 - found) ** 2, axis=1)
    assert abs(loss - targets.mean() - CONSTANT) > 0.1  # a corrupted target is another loss


def test_corruption_is_drawn_anew_for_every_example_and_step(key):
    def noise(key, x):
        return x + jax.random.normal(key, x.shape)

    loss = autoencoders.denoising(MODEL, corrupt=noise)
    assert value(loss, PARAMS, Batch(X), seed=1)[0] != value(loss, PARAMS, Batch(X), seed=2)[0]
    draw = autoencoders.corrupted(noise)

    @jax.jit
    def codes(key):
        keys = jax.random.split(key, 4)
        return jax.vmap(lambda key: draw(MODEL, PARAMS, key, X[0]).z)(keys)

    assert len(np.unique(np.asarray(codes(key))[:, 0])) == 4


def test_a_corrupted_draw_serves_the_elbo_too():
    model = autoencoder(heads.Normal(2), SQUARED, Normal(np.zeros(2, "f"), np.ones(2, "f")))
    params, plain = drawn(model, X[0]), objectives.elbo(model)
    draw = autoencoders.corrupted(lambda key, x: jnp.zeros_like(x))
    clean = value(plain, params, Batch(X))[1]
    blind = value(objectives.elbo(model, draw=draw), params, Batch(X))[1]
    nothing = value(plain, params, Batch(np.zeros_like(X)))[1]
    assert blind["rate"] == nothing["rate"] != clean["rate"]


def test_a_corrupted_example_of_another_shape_is_refused():
    loss = autoencoders.denoising(MODEL, corrupt=lambda key, x: x[:-1])
    with pytest.raises(ValueError, match=r"corrupt\(key, x\): got shape \(5,\), expected \(6,\)"):
        value(loss, PARAMS, Batch(X))


def test_an_overcomplete_code_without_a_regulariser_is_a_warning(key):
    """The identity is then a solution; what regularises it says nothing."""

    def trace(loss, model):
        jax.eval_shape(loss, drawn(model, X[0]), key, Batch(X), 0)

    wide = linear(heads.Code(SIZE + 1))
    with pytest.warns(UserWarning, match="7 entries for an x of 6 .* identity is a solution"):
        trace(autoencoders.reconstruction(wide), wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_large, few = linear(heads.Code(SIZE)), linear(heads.TopK(SIZE + 1, 2))
        trace(autoencoders.reconstruction(as_large), as_large)
        trace(autoencoders.reconstruction(few), few)
        trace(autoencoders.denoising(wide, corrupt=lambda key, x: 0.5 * x), wide)
        trace(autoencoders.contractive(wide, norm=finite_norm, weight=1.0), wide)
    dense = linear(heads.TopK(SIZE + 2, SIZE + 1))
    with pytest.warns(UserWarning, match="7 entries"):
        trace(autoencoders.reconstruction(dense), dense)


def test_top_k_says_how_many_are_active_and_has_their_gradient_alone():
    head, rng = heads.TopK(7, 3), np.random.default_rng(0)
    W = rng.normal(size=(SIZE, 7)).astype(np.float32)

    def code(bias, x):
        return head.apply({"params": {"code": {"kernel": W, "bias": bias}}}, x)

    mean = jax.jit(lambda bias, x: code(bias, x).mean)
    zero = np.zeros(7, np.float32)
    for bias, x in ((zero, X[0]), (zero, -X[0]), (zero + 0.5, 0 * X[0]), (zero - 9, X[0])):
        full = x @ W + bias
        kept = np.argsort(-full, kind="stable")[:3]
        np.testing.assert_allclose(
            mean(bias, x), np.where(np.isin(np.arange(7), kept), full, 0), rtol=1e-6, atol=1e-6
        )
    q = jax.eval_shape(code, zero, X[0])
    assert isinstance(q, SparseDelta) and q.active == 3
    gradient = jax.jit(jax.jacrev(mean))(zero, X[0])
    np.testing.assert_array_equal(np.diag(gradient), np.asarray(mean(zero, X[0])) != 0)


def test_a_code_has_its_activation():
    W = np.random.default_rng(0).normal(size=(SIZE, 4)).astype(np.float32)
    variables = {"params": {"code": {"kernel": W, "bias": np.zeros(4, np.float32)}}}
    for activation, expected in ((nn.sigmoid, expit), (nn.relu, lambda a: np.maximum(a, 0))):
        head = heads.Code(4, activation)
        mean = jax.jit(lambda x, head=head: head.apply(variables, x).mean)(X[0])
        np.testing.assert_allclose(mean, expected(X[0] @ W), rtol=1e-5, atol=1e-6)


def deep(widths=(5, 4), mirrored=(4, 5)):
    return autoencoder(
        nn.Sequential([MLP(widths), heads.Code(LATENT)]), nn.Sequential([MLP(mirrored), SQUARED])
    )


def test_tied_decoders_are_the_transposed_encoders():
    """And the gradient of a shared matrix is the sum of both its uses."""
    free, model = deep(), tied(deep())
    params, separate = drawn(model, X[0]), drawn(free, X[0])
    assert list(kernels(params["decoder"]).values()) == [None] * 3
    W = list(kernels(params["encoder"]).values())
    assert [w.shape for w in W] == [(6, 5), (5, 4), (4, 3)]
    z = np.ones(LATENT, np.float32)
    by_hand = np.maximum(np.maximum(z @ W[2].T, 0) @ W[1].T, 0) @ W[0].T
    found = jax.jit(model.decode)(params, z).mean
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    decoder = [w.T for w in W[::-1]]
    leaves = dict(zip(kernels(separate["decoder"]), decoder, strict=True))
    separate = {
        **params,
        "decoder": unflatten_dict({**flatten_dict(separate["decoder"]), **leaves}),
    }

    def gradient(model, params):
        loss = autoencoders.reconstruction(model)
        return jax.jit(jax.grad(loss, has_aux=True))(params, jax.random.key(1), Batch(X), 0)[0]

    shared, both = gradient(model, params), gradient(free, separate)
    ours = list(kernels(shared["encoder"]).values())
    encoder, decoder = (list(kernels(both[side]).values()) for side in ("encoder", "decoder"))
    for one, up, down in zip(ours, encoder, decoder[::-1], strict=True):
        np.testing.assert_allclose(one, up + down.T, rtol=1e-4, atol=1e-5)


def test_layers_that_are_no_mirror_image_cannot_be_tied(key):
    with pytest.raises(ValueError, match=r"tied: the decoder: got kernels .*expected \[\(3, 4\)"):
        jax.eval_shape(tied(deep(mirrored=(5, 4))).init, key, X[0])
    two = autoencoder(heads.Code(LATENT), heads.Normal((SIZE,)))
    with pytest.raises(ValueError, match="tied: the decoder"):
        jax.eval_shape(tied(two).init, key, X[0])


class Compact(nn.Module):
    """Layers whose names, Dense_0 and Head_0, do not say which is first."""

    width: int
    head: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.head(nn.tanh(nn.Dense(self.width)(x)))


def test_layers_whose_order_is_not_in_their_names_cannot_be_tied(key):
    square = autoencoder(Compact(SIZE, heads.Code(SIZE)), Compact(SIZE, SQUARED))
    with pytest.raises(
        ValueError, match="tied: the encoder: got layers params/Dense_0/kernel and params/head/"
    ):
        jax.eval_shape(tied(square).init, key, X[0])


def test_kernels_come_in_the_order_of_the_layers(key):
    network = nn.Sequential([MLP((i + 1,)) for i in range(11)])
    found = networks.kernels(jax.eval_shape(network.init, key, X[0]))
    assert [k.shape[1] for k in found.values()] == list(range(1, 12))


@pytest.mark.statistics
@pytest.mark.parametrize("tie", [False, True], ids=["free", "tied"])
def test_a_linear_autoencoder_finds_the_subspace_of_pca(tie, key):
    """Not its axes: their span, which the decoder's columns have. The data have a mean."""
    rng = np.random.default_rng(0)
    scales = np.array([3.0, 2.5, 2.0, 1.0, 0.9, 0.8])
    basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    x = (rng.normal(size=(500, SIZE)) * scales @ basis.T + 2.0).astype(np.float32)
    test = (rng.normal(size=(500, SIZE)) * scales @ basis.T + 2.0).astype(np.float32)
    model = tied(linear()) if tie else linear()
    params = jax.jit(model.init)(key, x[0])
    rate = optax.cosine_decay_schedule(3e-2, 1500)
    run = train.make_train(
        autoencoders.reconstruction(model), optax.adam(rate), steps=1500, batch_size=500
    )
    state, _ = jax.jit(run)(jax.random.key(1), params, jnp.asarray(x))
    pca = PCA(LATENT).fit(x)
    side = "encoder" if tie else "decoder"
    (kernel,) = kernels(state.params[side]).values()
    columns = kernel if tie else kernel.T
    assert scipy.linalg.subspace_angles(np.asarray(columns), pca.components_.T).max() < 0.02
    error = np.sum((test - np.asarray(rebuilt(model, state.params, test))) ** 2, axis=1).mean()
    theirs = np.sum((test - pca.inverse_transform(pca.transform(test))) ** 2, axis=1).mean()
    np.testing.assert_allclose(error, theirs, rtol=5e-3)


def test_conditions_reach_encoder_and_decoder_under_every_loss():
    """Each half of the model sees c: a loss that loses it on the way cannot be evaluated."""
    conditional = autoencoder(
        nn.Sequential([MLP((5,)), heads.Code(LATENT)]), nn.Sequential([MLP((5,)), SQUARED])
    )
    c = np.eye(5, dtype=np.float32)[:, :2]
    params = drawn(conditional, X[0], c[0])
    losses = [
        autoencoders.denoising(conditional, corrupt=lambda key, x: 0.5 * x),
        autoencoders.sparse(conditional, penalty=lambda z, w: jnp.mean(z**2), weight=1.0),
        autoencoders.contractive(conditional, norm=conditional_norm, weight=1.0),
    ]
    for loss in losses:
        assert value(loss, params, Batch(X, c))[0] != value(loss, params, Batch(X, 1 - c))[0]
        with pytest.raises(ValueError, match="with no c"):
            value(loss, params, Batch(X))


def conditional_norm(model, params, key, x, c=(), *, shift=None):
    return jnp.sum(jax.jacrev(lambda v: model.encode(params, v, c).mean)(x) ** 2)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda m: autoencoders.denoising(m, corrupt=corruption.masking),
            "denoising: corrupt: got",
        ),
        (lambda m: autoencoders.denoising(m, corrupt=0.5), "got float, expected a function"),
        (lambda m: autoencoders.sparse(m, penalty=sparsity.kl, weight=1.0), "call it: sparsity.kl"),
        (lambda m: autoencoders.sparse(m, penalty=lambda z: 0.0, weight=1.0), r"\(z, weight\)"),
        (
            lambda m: autoencoders.contractive(m, norm=contraction.hutchinson, weight=1.0),
            r"norm: got hutchinson\(probes.*call it",
        ),
    ],
)
def test_functions_of_another_signature_are_refused_when_the_loss_is_made(make, message):
    with pytest.raises(TypeError, match=message):
        make(linear())
    autoencoders.sparse(linear(), penalty=sparsity.kl(0.1), weight=1.0)
    autoencoders.contractive(linear(), norm=partial(contraction.exact), weight=1.0)
