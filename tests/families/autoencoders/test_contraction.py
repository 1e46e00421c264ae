"""Norms of an encoder's Jacobian against each other, finite differences and known truths."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import expit

from vaejax import autoencoders, contraction, heads
from vaejax.families.autoencoders.contraction import closed_form, exact, hutchinson
from vaejax.families.autoencoders.stacked import stack
from vaejax.model import autoencoder, tied
from vaejax.networks import MLP, Conv, ConvEncoder
from vaejax.types import Batch

SHAPE = (2, 3)


def identity(a):
    return a


ACTIVATIONS = {"sigmoid": nn.sigmoid, "relu": nn.relu, "tanh": nn.tanh, "identity": identity}


def autoencoder_of(encoder, shape=SHAPE, *, tie=False):
    """A model, its parameters (biases too are not zero) and three examples."""
    model = autoencoder(encoder, heads.Bernoulli(shape))
    model = tied(model) if tie else model
    rng, dtype = np.random.default_rng(0), jax.dtypes.canonicalize_dtype(float)
    x = rng.normal(size=(3, *shape)).astype(dtype)
    made = jax.eval_shape(model.init, jax.random.key(0), x[0])
    scales = {"bias": 0.3, "kernel": 0.8}

    def drawn(path, leaf):
        return (scales[path[-1].key] * rng.normal(size=leaf.shape)).astype(dtype)

    return model, jax.tree.map_with_path(drawn, made), x


@cache
def encoder_of(activation, size):
    return heads.Code(size, activation)


def one_layer(activation=nn.sigmoid, size=4, **options):
    return autoencoder_of(encoder_of(activation, size), **options)


@partial(jax.jit, static_argnums=(0, 1))
def flat_codes(model, shape, params, rows):
    return jax.vmap(lambda v: jnp.ravel(model.encode(params, v.reshape(shape)).mean))(rows)


def finite_differences(model, params, x, step=1e-5):
    """df/dx `[size of z, size of x]` by central differences; needs double precision."""
    steps = step * np.eye(x.size)
    rows = np.ravel(x)[None] + np.concatenate([steps, -steps])
    ahead, behind = np.split(np.asarray(flat_codes(model, x.shape, params, rows)), 2)
    return (ahead - behind).T / (2 * step)


@partial(jax.jit, static_argnums=(0, 1))
def norms(norm, model, params, x, shift=None):
    """The norm of every example, as a loss would compute it."""
    keys = jax.random.split(jax.random.key(1), len(x))
    return jax.vmap(lambda key, x: norm(model, params, key, x, shift=shift))(keys, x)


@partial(jax.jit, static_argnums=0)
def jacobian(model, params, x, c=()):
    """df/dx `[size of z, size of x]` by JAX."""
    J = jax.jacrev(lambda v: jnp.ravel(model.encode(params, v, c).mean))(x)
    return J.reshape(len(J), -1)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_closed_form_exact_and_finite_differences_agree(x64, name):
    model, params, x = one_layer(ACTIVATIONS[name], tie=name == "sigmoid")
    truth = [np.sum(finite_differences(model, params, one) ** 2) for one in x]
    assert np.ptp(truth) > 1e-3 or name == "identity"  # examples differ, or nothing is tested
    for norm in (closed_form, exact):
        np.testing.assert_allclose(norms(norm, model, params, x), truth, 1e-6)


ENCODERS = {  # codes larger and smaller than x, so that the Jacobian is made from either side
    "deep": (SHAPE, nn.Sequential([MLP((7,), nn.tanh), heads.Code(9, nn.sigmoid)])),
    "convolutional": ((4, 2, 1), nn.Sequential([ConvEncoder((3,), nn.tanh), heads.Code(3)])),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_exact_and_hutchinson_of_deep_and_convolutional_encoders(x64, name):
    shape, encoder = ENCODERS[name]
    model, params, x = autoencoder_of(encoder, shape)
    J = finite_differences(model, params, x[0])
    assert len(J) != x[0].size
    truth = np.sum(J**2)
    found = jax.jit(partial(exact, model))(params, jax.random.key(2), x[0])
    assert found == pytest.approx(float(truth), rel=1e-6)
    check_unbiased(hutchinson(2), model, params, x[0], truth, J)


def check_unbiased(norm, model, params, x, truth, J, shift=None):
    @jax.jit
    def estimates(key):
        keys = jax.random.split(key, 2000)
        return jax.vmap(lambda key: norm(model, params, key, x, shift=shift))(keys)

    found = np.asarray(estimates(jax.random.key(3)))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - truth) < 4 * error
    assert error < 0.05 * truth
    JJ = J @ J.T
    variance = 2 / 2 * (np.sum(JJ**2) - np.sum(np.diag(JJ) ** 2))  # of two probes
    assert np.var(found) == pytest.approx(variance, rel=0.25)


def test_hutchinson_is_exact_where_the_rows_are_orthogonal(key):
    model, params, x = one_layer(identity)
    (orthogonal, _) = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 4)))
    params["encoder"]["params"]["code"]["kernel"] = 3 * orthogonal.astype(np.float32)
    found = jax.jit(partial(hutchinson(1), model))(params, key, x[0])
    assert found == pytest.approx(9 * 4, rel=1e-5)


def test_checked_against_slopes_not_squared_means_for_sums_and_rows_for_columns():
    """Input and code are of one size, so that rows and columns can be confused."""
    model, params, x = one_layer(size=6)
    truth = norms(exact, model, params, x)

    def check(norm):
        np.testing.assert_allclose(norms(norm, model, params, x), truth, rtol=1e-5)

    def by_hand(power, total, axis):
        def norm(model, params, key, x, c=(), *, shift=None):
            kernel = params["encoder"]["params"]["code"]["kernel"]
            z = model.encode(params, x).mean
            return total((z * (1 - z)) ** power * jnp.sum(kernel**2, axis=axis))

        return norm

    check(closed_form)
    check(by_hand(2, jnp.sum, 0))
    for mistake in (1, jnp.sum, 0), (2, jnp.mean, 0), (2, jnp.sum, 1):
        with pytest.raises(AssertionError):
            check(by_hand(*mistake))


@pytest.mark.parametrize("tie", [False, True], ids=["free", "tied"])
def test_gradients_of_the_loss_agree_and_are_finite_differences(x64, tie):
    """Of closed form and exact; and along a random direction of all parameters."""
    model, params, x = one_layer(tie=tie)
    batch = Batch(expit(x), weight=np.array([1.0, 2.0, 0.5]))
    found = []
    for norm in (closed_form, exact):
        loss = autoencoders.contractive(model, norm=norm, weight=5.0)
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, metrics), grads = gradient(params, jax.random.key(0), batch, 0)
        assert set(metrics) == {"distortion", f"jacobian_{norm.__name__}"}
        found.append(grads)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-12), *found)
    direction = jax.tree.map(lambda p: np.cos(np.arange(p.size) + 0.5).reshape(p.shape), params)

    def moved(step):
        near = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return gradient(near, jax.random.key(0), batch, 0)[0][0]

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    along = sum(jax.tree.leaves(jax.tree.map(np.vdot, found[1], direction)))
    np.testing.assert_allclose(along, slope, rtol=1e-7)


def test_the_norm_of_a_difference_of_jacobians(x64):
    shift = 0.5 * np.cos(np.arange(6.0)).reshape(SHAPE)
    model, params, x = one_layer()
    J = [finite_differences(model, params, one) for one in (x[0], x[0] + shift)]
    truth = np.sum((J[0] - J[1]) ** 2)
    assert truth < 0.5 * np.sum(J[0] ** 2) + np.sum(J[1] ** 2)
    for norm in (closed_form, exact):
        assert norms(norm, model, params, x, shift)[0] == pytest.approx(float(truth), rel=1e-6)
    check_unbiased(hutchinson(2), model, params, x[0], truth, J[0] - J[1], shift)


def higher_order_metrics(norm, *, seeds=400, scale=1e-2, samples=1, **options):
    """The loss and its metrics on one example, each averaged over keys."""
    model, params, x = one_layer(nn.tanh, size=2)
    loss = autoencoders.higher_order_contractive(
        model, norm=norm, scale=scale, samples=samples, **options
    )
    batch = Batch(expit(x[:1]))

    @jax.jit
    def values(key):
        keys = jax.random.split(key, seeds)
        return jax.vmap(lambda key: loss(params, key, batch, 0))(keys)

    value, metrics = jax.tree.map(np.asarray, values(jax.random.key(4)))
    return params, batch, (value, metrics)


@pytest.mark.parametrize("norm", [closed_form, exact, hutchinson(1)], ids=lambda n: n.__name__)
def test_curvature_is_the_squared_hessian_for_small_noise(x64, norm):
    """Checked against an expectation that is not over the noise, or of its norm unsquared."""
    options = {"weight": 0.5, "curvature": 3.0}
    params, batch, (value, metrics) = higher_order_metrics(norm, **options)
    names = [f"jacobian_{norm.__name__}", f"curvature_{norm.__name__}"]
    assert set(metrics) == {"distortion", *names}
    D, J, H = (metrics[name] for name in ("distortion", *names))
    np.testing.assert_allclose(value, D + 0.5 * J + 3.0 * H, rtol=1e-12)
    code = params["encoder"]["params"]["code"]
    t = np.tanh(np.ravel(batch.x[0]) @ code["kernel"] + code["bias"])  # tanh'' = -2 t (1 - t^2)
    squared_hessian = np.sum((2 * t * (1 - t**2)) ** 2 * np.sum(code["kernel"] ** 2, axis=0) ** 2)
    truth, error = 1e-2**2 * squared_hessian, np.std(H) / np.sqrt(len(H))
    assert abs(np.mean(H) - truth) < 4 * error + 1e-3 * truth  # the next order is scale^2 smaller
    assert error < 0.1 * truth
    squares = (1 - t**2) ** 2 @ np.sum(code["kernel"] ** 2, axis=0)
    assert np.mean(J) == pytest.approx(squares, rel=0.1)


def test_more_samples_of_the_noise_average_and_weights_may_be_schedules():
    schedules = {"weight": lambda step: 0.0 * step, "curvature": lambda step: 2.0 + step}
    *_, (value, one) = higher_order_metrics(closed_form, **schedules)
    *_, (_, four) = higher_order_metrics(closed_form, samples=4, **schedules)
    np.testing.assert_allclose(value, one["distortion"] + 2.0 * one["curvature_closed_form"], 1e-5)
    ratio = np.var(one["curvature_closed_form"]) / np.var(four["curvature_closed_form"])
    assert 2.5 < ratio < 6.5  # 4, and 400 draws


def test_closed_form_multiplies_by_the_kernel_once_and_squares_it_once_per_batch():
    model, params, x = one_layer()
    jaxpr = str(jax.make_jaxpr(partial(norms, closed_form, model))(params, x))
    assert jaxpr.count("dot_general[") == 2  # W x, and the slopes with the squared columns
    assert "f32[3,6,4]" not in jaxpr
    assert "f32[3,4,6]" in str(jax.make_jaxpr(partial(norms, exact, model))(params, x))


@partial(jax.jit, static_argnums=0)
def spectra_and_tangents(model, params, x):
    """Of every example."""
    spectra = jax.vmap(partial(contraction.singular_values, model, params))(x)
    return spectra, jax.vmap(partial(contraction.tangents, model, params, count=4))(x)


def test_spectrum_and_tangents_of_a_linear_code_are_those_of_its_matrix():
    for size in (4, 8):
        model, params, x = one_layer(identity, size=size)
        W = np.asarray(params["encoder"]["params"]["code"]["kernel"]).T
        _, s, V = np.linalg.svd(W, full_matrices=False)
        spectrum, found = spectra_and_tangents(model, params, x)
        np.testing.assert_allclose(spectrum, np.tile(s, (3, 1)), rtol=1e-4)
        assert found.shape == (3, 4, *SHAPE)
        cosines = np.abs(np.sum(found.reshape(3, 4, 6) * V[None, :4], axis=-1))
        np.testing.assert_allclose(cosines, 1, rtol=1e-4)


def test_a_step_along_a_tangent_changes_the_code_by_its_singular_value(x64):
    model, params, x = one_layer()
    s, T = (np.asarray(found[0]) for found in spectra_and_tangents(model, params, x))
    T = T.reshape(4, 6)
    np.testing.assert_allclose(T @ T.T, np.eye(4), atol=1e-12)
    rows = np.ravel(x[0])[None] + 1e-5 * np.concatenate([T, -T])
    ahead, behind = np.split(np.asarray(flat_codes(model, SHAPE, params, rows)), 2)
    changes = np.linalg.norm(ahead - behind, axis=1) / 2e-5
    np.testing.assert_allclose(changes, s, rtol=1e-6)
    truth = norms(exact, model, params, x)[0]
    np.testing.assert_allclose(np.sum(s**2), truth, rtol=1e-12)


def test_saturation_counts_units_near_either_end():
    z = np.array([[0.01, 0.99, 0.5, 0.06], [0.94, 0.951, 0.049, 0.0]])
    assert contraction.saturation(z) == 5 / 8
    assert contraction.saturation(z, margin=0.1) == 7 / 8
    for bad in (z + 0.1, z * np.nan, z[:0]):
        with pytest.raises(ValueError, match=r"saturation: z: got .* codes in \[0, 1\]"):
            contraction.saturation(bad)
    for margin in (0.0, 0.5):
        with pytest.raises(ValueError, match=r"saturation: margin: got .* inside \(0, 0.5\)"):
            contraction.saturation(z, margin=margin)


def test_norms_of_a_data_set_whatever_the_chunks(key):
    model, params, x = one_layer()
    data = np.tile(x, (3, 1, 1))[:7]

    def transform(key, one):
        return one + jax.random.normal(key, one.shape)

    plain = contraction.squared_norms(model, params, key, data, norm=closed_form)
    np.testing.assert_allclose(plain[:3], norms(exact, model, params, x), rtol=1e-5)
    np.testing.assert_array_equal(plain[:3], plain[3:6])
    noisy = [
        contraction.squared_norms(
            model, params, key, Batch(data), transform=transform, batch_size=size
        )
        for size in (2, 100)
    ]
    np.testing.assert_allclose(noisy[0], noisy[1], rtol=1e-6)
    assert len(np.unique(noisy[0])) == 7
    broken = np.where(np.arange(7)[:, None, None] == 4, np.float32(np.nan), data)
    with pytest.raises(ValueError, match=r"df/dx\|_F\^2 is nan for example 4"):
        contraction.squared_norms(model, params, key, broken, norm=closed_form)
    with pytest.raises(ValueError, match="batch_size >= 1"):
        contraction.squared_norms(model, params, key, data, batch_size=0)


def test_a_row_whose_derivatives_are_lost_in_nan_is_named_unless_masked(key):
    """Checked against the norm alone, which is 0 there: relu'(NaN) = 0."""
    model, params, x = one_layer(nn.relu)
    broken = np.where(np.arange(3)[:, None, None] == 1, np.float32(np.nan), x)
    for norm in (exact, closed_form):
        options = {"norm": norm}
        found = norms(norm, model, params, broken)
        assert found[1] == 0
        with pytest.raises(ValueError, match=r"df/dx\|_F\^2 is nan for example 1"):
            contraction.squared_norms(model, params, key, broken, **options)
        masked = Batch(broken, weight=np.array([1, 0, 1], np.float32))
        counted = contraction.squared_norms(model, params, key, masked, **options)
        np.testing.assert_allclose(counted[::2], found[::2], rtol=1e-6)


class Joined(nn.Module):
    """One layer of both parts of x."""

    @nn.compact
    def __call__(self, x):
        return heads.Code(4, nn.sigmoid)(jnp.concatenate([x["a"].ravel(), x["b"]]))


def test_an_x_of_several_arrays_is_one_vector():
    """Against the same encoder of the arrays joined, for every quantity, shifts too."""
    model, params, x = one_layer()
    parts = [{"a": one[..., :2], "b": one[..., 2]} for one in (x, 0.1 * np.cos(x))]
    flat = [np.concatenate([part["a"].reshape(3, 4), part["b"]], axis=1) for part in parts]
    flat = [one.reshape(3, *SHAPE) for one in flat]
    several = autoencoder(Joined(), heads.Bernoulli(SHAPE))
    own = {**params, "encoder": {"params": {"Code_0": params["encoder"]["params"]}}}
    every = exact, closed_form, hutchinson(2)

    @partial(jax.jit, static_argnums=0)
    def quantities(model, params, x, shift):
        def one(x, shift):
            key = jax.random.key(1)
            found = [norm(model, params, key, x, shift=shift) for norm in every]
            return found, contraction.singular_values(model, params, x)

        return jax.vmap(one)(x, shift)

    whole, apart = quantities(model, params, *flat), quantities(several, own, *parts)
    np.testing.assert_allclose(apart[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(apart[1], whole[1], rtol=1e-4)
    _, expected = spectra_and_tangents(model, params, flat[0])
    _, found = spectra_and_tangents(several, own, parts[0])
    joined = np.concatenate([found["a"].reshape(3, 4, 4), found["b"]], axis=2)
    np.testing.assert_allclose(
        np.abs(np.sum(joined * expected.reshape(3, 4, 6), axis=2)), 1, rtol=1e-4
    )
    data = contraction.squared_norms(several, own, jax.random.key(0), parts[0])
    np.testing.assert_allclose(data, norms(exact, model, params, flat[0]), rtol=1e-5)


class NoBias(nn.Module):
    @nn.compact
    def __call__(self, x):
        return heads.distributions.Delta(nn.Dense(4, use_bias=False)(x.ravel()))


class ConvThenDense(nn.Module):
    """Its only matrix has the shape of a single layer's."""

    @nn.compact
    def __call__(self, x):
        return heads.Code(4)(Conv(1)(x[..., None]).ravel())


def test_closed_form_refuses_what_is_not_one_layer_and_names_the_other_norms(key):
    x = np.ones(SHAPE, np.float32)
    deep = nn.Sequential([MLP((6,)), heads.Code(4)])
    for encoder in (deep, NoBias(), ConvThenDense(), heads.Normal(4)):
        model = autoencoder(encoder, heads.Bernoulli(SHAPE))
        params = jax.eval_shape(model.init, key, x)
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
        match = (
            r"closed_form: .*one dense layer, kernel \(6, 4\).*contraction.exact or .*hutchinson"
        )
        with pytest.raises(ValueError, match=match):
            closed_form(model, params, key, x)
    with pytest.raises(ValueError, match=r"got a tuple without an encoder.*contraction.exact"):
        closed_form(stack([model]), (params,), key, x)


def test_conditions_reach_the_norms_of_data_sets_and_of_the_higher_order_loss(key):
    """And are not differentiated. Another example's condition gives another number."""
    encoder = nn.Sequential([MLP((5,), nn.tanh), heads.Code(4)])
    model = autoencoder(encoder, nn.Sequential([MLP((5,)), heads.Bernoulli(SHAPE)]))
    x = expit(np.random.default_rng(1).normal(size=(3, *SHAPE))).astype(np.float32)
    c = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    params = jax.jit(model.init)(key, x[0], c[0])
    truth = [np.sum(np.square(jacobian(model, params, *one))) for one in zip(x, c, strict=True)]
    assert np.ptp(truth) > 1e-3
    found = contraction.squared_norms(model, params, key, Batch(x, c))
    np.testing.assert_allclose(found, truth, rtol=1e-5)
    options = {"norm": exact, "weight": 1.0, "curvature": 1.0, "scale": 0.1}
    loss = jax.jit(autoencoders.higher_order_contractive(model, **options))
    metrics, others = (
        loss(params, jax.random.key(2), Batch(x, given), 0)[1] for given in (c, c[::-1])
    )
    np.testing.assert_allclose(metrics["jacobian_exact"], np.mean(truth), rtol=1e-5)
    assert abs(metrics["curvature_exact"] / others["curvature_exact"] - 1) > 1e-2


def test_bad_options_are_named(key):
    model, params, x = one_layer()
    for function in (contraction.singular_values, partial(contraction.tangents, count=1)):
        with pytest.raises(
            ValueError, match=r"(singular_values|tangents): x: got .*\(3, 2\), expected \(2, 3\)"
        ):
            function(model, params, x[0].T)
    with pytest.raises(ValueError, match="hutchinson: expected probes >= 1, got 0"):
        hutchinson(0)
    options = {"norm": exact, "weight": 1.0, "curvature": 1.0}
    with pytest.raises(ValueError, match="higher_order_contractive: scale: got -1.0"):
        autoencoders.higher_order_contractive(model, scale=-1.0, **options)
    with pytest.raises(ValueError, match="higher_order_contractive: expected samples >= 1"):
        autoencoders.higher_order_contractive(model, scale=1.0, samples=0, **options)
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"tangents: count: got {count}, expected 1 to 4"):
            jax.eval_shape(partial(contraction.tangents, model, params, count=count), x[0])
