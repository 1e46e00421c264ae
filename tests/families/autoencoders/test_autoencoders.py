"""Losses of deterministic autoencoders: their values by hand, tied weights, PCA, and warnings."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
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
X = jax.random.normal(jax.random.key(7), (5, SIZE))


def linear(code=None):
    return autoencoder(code or heads.Code(LATENT), SQUARED)


def value(loss, params, batch, step=0, seed=1):
    return jax.jit(loss)(params, jax.random.key(seed), batch, step)


def rebuilt(model, params, x):
    encode = jax.vmap(lambda one: model.decode(params, model.encode(params, one).mean).mean)
    return encode(x)


def test_the_reconstruction_loss_is_the_squared_error_summed_over_the_event(key):
    model = linear()
    params = model.init(key, X[0])
    loss, metrics = value(autoencoders.reconstruction(model), params, Batch(X))
    errors = np.sum((np.asarray(X) - rebuilt(model, params, X)) ** 2, axis=1)
    np.testing.assert_allclose(loss, errors.mean() + CONSTANT, rtol=1e-5)
    assert metrics["distortion"] == loss


def test_masked_examples_leave_every_loss(key):
    """A weight of 0 takes an example out, whatever it holds, and out of mean activations too."""
    model = linear(heads.Code(LATENT, nn.sigmoid))
    params = model.init(key, X[0])
    ragged = Batch(X.at[3:].set(jnp.nan), weight=jnp.array([1.0, 1, 1, 0, 0]))

    def mean_activation(z, weight=()):
        mean = jnp.mean(z, axis=0) if isinstance(weight, tuple) else weight @ z / jnp.sum(weight)
        return jnp.sum((mean - 0.1) ** 2)

    losses = [
        autoencoders.reconstruction(model),
        autoencoders.sparse(model, penalty=mean_activation, weight=2.0),
        autoencoders.contractive(model, norm=finite_norm, weight=0.5),
    ]
    for loss in losses:
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        whole = gradient(params, jax.random.key(1), Batch(X[:3]), 0)
        part = gradient(params, jax.random.key(1), ragged, 0)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, part
        )


def finite_norm(model, params, key, x, c=(), *, shift=None):
    return jnp.sum(jax.jacrev(lambda v: model.encode(params, v).mean)(x) ** 2)


def test_the_penalties_are_added_with_their_weights_and_named(key):
    model = linear()
    params = model.init(key, X[0])
    D, _ = value(autoencoders.reconstruction(model), params, Batch(X))
    z = jax.vmap(lambda x: model.encode(params, x).mean)(X)
    half = autoencoders.sparse(linear(heads.TopK(6, 3)), penalty=lambda z, weight: 0.0, weight=1.0)
    top_k = linear(heads.TopK(6, 3)).init(jax.random.key(5), X[0])
    assert value(half, top_k, Batch(X))[1]["active"] == 0.5
    each = autoencoders.sparse(model, penalty=lambda z, weight: jnp.mean(z, axis=1), weight=1.0)
    with pytest.raises(ValueError, match=r"sparse: penalty: got shape \(5,\), expected one number"):
        value(each, params, Batch(X))
    l1 = autoencoders.sparse(
        model, penalty=lambda z, weight: jnp.mean(jnp.sum(abs(z), axis=1)), weight=lambda s: 0.1 * s
    )
    for step in (0, 3):  # the weight may be a schedule
        loss, metrics = value(l1, params, Batch(X), step)
        np.testing.assert_allclose(loss, D + 0.1 * step * np.abs(z).sum(1).mean(), rtol=1e-5)
    assert metrics["active"] == 1.0 and metrics["distortion"] == D
    np.testing.assert_allclose(metrics["activation"], np.mean(z), rtol=1e-4)
    contractive = autoencoders.contractive(model, norm=finite_norm, weight=0.5)
    loss, metrics = value(contractive, params, Batch(X))
    (W,) = kernels(params["encoder"]).values()
    np.testing.assert_allclose(metrics["jacobian_finite_norm"], np.sum(np.square(W)), rtol=1e-5)
    np.testing.assert_allclose(loss, D + 0.5 * np.sum(np.square(W)), rtol=1e-5)


def test_denoising_compares_with_the_clean_example(key):
    """The code sees the corrupted example and nothing else; the target is the clean one."""
    model = linear()
    params = model.init(key, X[0])
    denoising = autoencoders.denoising(model, corrupt=lambda key, x: x + 1.0)
    loss, _ = value(denoising, params, Batch(X))
    errors = np.sum((np.asarray(X) - rebuilt(model, params, X + 1.0)) ** 2, axis=1)
    np.testing.assert_allclose(loss, errors.mean() + CONSTANT, rtol=1e-5)
    targets = np.sum((np.asarray(X) + 1 - rebuilt(model, params, X + 1.0)) ** 2, axis=1)
    assert abs(loss - targets.mean() - CONSTANT) > 0.1  # a corrupted target is another loss


def test_corruption_is_drawn_anew_for_every_example_and_step(key):
    def noise(key, x):
        return x + jax.random.normal(key, x.shape)

    init_key, draw_key = jax.random.split(key)
    model = linear()
    params = model.init(init_key, X[0])
    loss = autoencoders.denoising(model, corrupt=noise)
    assert value(loss, params, Batch(X), seed=1)[0] != value(loss, params, Batch(X), seed=2)[0]
    same = jnp.tile(X[:1], (4, 1))
    d = autoencoders.corrupted(noise)
    z = jax.vmap(lambda k: d(model, params, k, same[0]).z)(jax.random.split(draw_key, 4))
    assert len(np.unique(np.asarray(z)[:, 0])) == 4


def test_a_corrupted_draw_serves_the_elbo_too(key):
    model = autoencoder(heads.Normal(2), SQUARED, Normal(jnp.zeros(2), jnp.ones(2)))
    params = model.init(key, X[0])
    clean = value(objectives.elbo(model), params, Batch(X))[1]
    draw = autoencoders.corrupted(lambda key, x: jnp.zeros_like(x))
    blind = value(objectives.elbo(model, draw=draw), params, Batch(X))[1]
    nothing = value(objectives.elbo(model), params, Batch(jnp.zeros_like(X)))[1]
    assert blind["rate"] == nothing["rate"] != clean["rate"]


def test_a_corrupted_example_of_another_shape_is_refused(key):
    model = linear()
    params = model.init(key, X[0])
    loss = autoencoders.denoising(model, corrupt=lambda key, x: x[:-1])
    with pytest.raises(ValueError, match=r"corrupt\(key, x\): got shape \(5,\), expected \(6,\)"):
        value(loss, params, Batch(X))


def test_an_overcomplete_code_without_a_regulariser_is_a_warning(key):
    """The identity is then a solution; what regularises it says nothing."""

    def run(loss, model):
        return value(loss, model.init(jax.random.clone(key), X[0]), Batch(X))

    wide = linear(heads.Code(SIZE + 1))
    with pytest.warns(UserWarning, match="7 entries for an x of 6 .* identity is a solution"):
        run(autoencoders.reconstruction(wide), wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_large, few = linear(heads.Code(SIZE)), linear(heads.TopK(SIZE + 1, 2))
        run(autoencoders.reconstruction(as_large), as_large)
        run(autoencoders.reconstruction(few), few)
        run(autoencoders.denoising(wide, corrupt=lambda key, x: 0.5 * x), wide)
        run(autoencoders.contractive(wide, norm=finite_norm, weight=1.0), wide)
    dense = linear(heads.TopK(SIZE + 2, SIZE + 1))
    with pytest.warns(UserWarning, match="7 entries"):
        run(autoencoders.reconstruction(dense), dense)


def test_top_k_keeps_exactly_the_k_largest(key):
    head = heads.TopK(7, 3)
    q, variables = head.init_with_output(key, X[0])
    (W,) = kernels(variables).values()
    for x in (X[0], -X[0], jnp.zeros(SIZE)):  # all equal in the last
        q = head.apply(variables, x)
        full = np.asarray(x @ W)
        kept = np.argsort(-full, kind="stable")[:3]
        expected = np.zeros(7)
        expected[kept] = full[kept]
        np.testing.assert_allclose(q.mean, expected, atol=1e-6)
        assert isinstance(q, SparseDelta) and q.active == 3
    moved = jax.tree.map(lambda leaf: leaf + (leaf.ndim == 1) * 0.5, variables)  # the bias
    assert np.sum(np.asarray(head.apply(moved, jnp.zeros(SIZE)).mean) != 0) == 3
    low = jax.tree.map(lambda leaf: leaf - (leaf.ndim == 1) * 5.0, variables)  # all below zero
    assert np.sum(np.asarray(head.apply(low, X[0]).mean) < 0) == 3
    gradient = jax.jacrev(
        lambda bias: head.apply({"params": {"code": {"kernel": W, "bias": bias}}}, X[0]).mean
    )(jnp.zeros(7))
    np.testing.assert_array_equal(
        np.diag(gradient), np.asarray(head.apply(variables, X[0]).mean) != 0
    )


@pytest.mark.parametrize("k", [0, 8])
def test_k_outside_the_code_is_refused(k, key):
    with pytest.raises(ValueError, match=f"heads.TopK: k: got {k}, expected 1 to 7"):
        heads.TopK(7, k).init(key, X[0])


def test_a_code_has_its_activation(key):
    for activation in (nn.sigmoid, nn.relu):
        q, variables = heads.Code(4, activation).init_with_output(key, X[0])
        (W,) = kernels(variables).values()
        np.testing.assert_allclose(q.mean, activation(X[0] @ W), rtol=1e-5, atol=1e-6)


def deep(widths=(5, 4), mirrored=(4, 5)):
    return autoencoder(
        nn.Sequential([MLP(widths), heads.Code(LATENT)]), nn.Sequential([MLP(mirrored), SQUARED])
    )


def test_tied_decoders_are_the_transposed_encoders(key):
    model = tied(deep())
    params = model.init(key, X[0])
    assert list(kernels(params["decoder"]).values()) == [None] * 3
    W = [np.asarray(k) for k in kernels(params["encoder"]).values()]
    assert [w.shape for w in W] == [(6, 5), (5, 4), (4, 3)]
    z = np.ones(LATENT)
    by_hand = np.maximum(np.maximum(z @ W[2].T, 0) @ W[1].T, 0) @ W[0].T
    np.testing.assert_allclose(model.decode(params, jnp.asarray(z)).mean, by_hand, rtol=1e-5)
    # The gradient of a shared matrix is the sum of both its uses.
    loss = autoencoders.reconstruction(model)
    shared = jax.grad(lambda p: value(loss, p, Batch(X))[0])(params)
    free = deep()
    separate = free.init(jax.random.key(2), X[0])
    decoder = [w.T for w in W[::-1]]
    leaves = dict(zip(kernels(separate["decoder"]), decoder, strict=True))
    separate = {
        **params,
        "decoder": unflatten_dict({**flatten_dict(separate["decoder"]), **leaves}),
    }
    both = jax.grad(lambda p: value(autoencoders.reconstruction(free), p, Batch(X))[0])(separate)
    ours = list(kernels(shared["encoder"]).values())
    encoder, decoder = (list(kernels(both[side]).values()) for side in ("encoder", "decoder"))
    for one, up, down in zip(ours, encoder, decoder[::-1], strict=True):
        np.testing.assert_allclose(one, up + down.T, rtol=1e-4, atol=1e-5)


def test_layers_that_are_no_mirror_image_cannot_be_tied(key):
    with pytest.raises(ValueError, match=r"tied: the decoder: got kernels .*expected \[\(3, 4\)"):
        tied(deep(mirrored=(5, 4))).init(key, X[0])
    two = autoencoder(heads.Code(LATENT), heads.Normal((SIZE,)))
    with pytest.raises(ValueError, match="tied: the decoder"):
        tied(two).init(jax.random.clone(key), X[0])


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
        tied(square).init(key, X[0])


def test_kernels_come_in_the_order_of_the_layers(key):
    network = nn.Sequential([MLP((i + 1,)) for i in range(11)])
    found = networks.kernels(jax.jit(network.init)(key, X[0]))
    assert [k.shape[1] for k in found.values()] == list(range(1, 12))


@pytest.mark.parametrize("tie", [False, True], ids=["free", "tied"])
def test_a_linear_autoencoder_finds_the_subspace_of_pca(tie, key):
    """Not its axes: their span, which the decoder's columns have. The data have a mean."""
    rng = np.random.default_rng(0)
    scales = np.array([3.0, 2.5, 2.0, 1.0, 0.9, 0.8])
    basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    x = (rng.normal(size=(500, SIZE)) * scales @ basis.T + 2.0).astype(np.float32)
    test = (rng.normal(size=(500, SIZE)) * scales @ basis.T + 2.0).astype(np.float32)
    model = tied(linear()) if tie else linear()
    params = model.init(key, jnp.asarray(x[0]))
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


def test_conditions_reach_encoder_and_decoder_under_every_loss(key):
    """Each half of the model sees c: a loss that loses it on the way cannot be evaluated."""
    conditional = autoencoder(
        nn.Sequential([MLP((5,)), heads.Code(LATENT)]), nn.Sequential([MLP((5,)), SQUARED])
    )
    c = jnp.eye(5)[:, :2]
    params = conditional.init(key, X[0], c[0])
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
