"""Heads: shapes, floors, starting values, and the covariance they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import distributions, heads

IMAGE = (4, 3, 2)
HEADS = [
    (heads.Code(IMAGE), distributions.Delta),
    (heads.Normal(IMAGE), distributions.Normal),
    (heads.Bernoulli(IMAGE), distributions.Bernoulli),
    (heads.ContinuousBernoulli(IMAGE), distributions.ContinuousBernoulli),
    (heads.FixedNormal(IMAGE, 0.3), distributions.Normal),
    (heads.SharedNormal(IMAGE), distributions.Normal),
    (heads.DiscretizedLogistic(IMAGE), distributions.DiscretizedLogistic),
    (heads.Categorical(IMAGE, 5), distributions.Categorical),
]
named = pytest.mark.parametrize("head, kind", HEADS, ids=lambda v: type(v).__name__)


@named
def test_every_head_gives_its_distribution_over_the_event(head, kind, key):
    h = jnp.ones(7)

    @jax.jit
    def used(init_key, sample_key):
        px, variables = head.init_with_output(init_key, h)
        sample = px.sample(sample_key)
        return px, sample, jax.grad(lambda v: head.apply(v, h).log_prob(sample))(variables)

    px, sample, gradient = used(*jax.random.split(key))
    assert isinstance(px, kind) and px.event_shape == sample.shape == IMAGE
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@named
def test_every_head_takes_features_that_are_a_map(head, kind, key):
    px, variables = jax.eval_shape(head.init_with_output, key, jnp.ones((4, 3, 6)))
    assert isinstance(px, kind) and px.event_shape == IMAGE
    layers = [layer for layer in variables["params"].values() if isinstance(layer, dict)]
    kernels = [layer["kernel"] for layer in layers]
    assert all(kernel.shape in ((6, 2), (6, 10)) for kernel in kernels)


def test_features_that_are_a_map_share_one_linear_map_per_pixel(key):
    h = np.random.default_rng(0).normal(size=(4, 3, 6)).astype(np.float32)
    px, variables = jax.jit(heads.Bernoulli(IMAGE).init_with_output)(key, h)
    kernel = variables["params"]["logits"]["kernel"]
    assert kernel.shape == (6, 2)
    np.testing.assert_allclose(px.logits, np.einsum("hwf,fc->hwc", h, kernel), atol=1e-5)


def test_classes_of_a_pixel_are_a_map_too(key):
    init = heads.Categorical((4, 3), 5).init_with_output
    px, variables = jax.eval_shape(init, key, jnp.ones((4, 3, 6)))
    assert px.event_shape == (4, 3) and px.logits.shape == (4, 3, 5)
    assert variables["params"]["logits"]["kernel"].shape == (6, 5)


def test_an_event_without_channels_takes_a_map_too(key):
    px, _ = jax.eval_shape(heads.Normal((4, 3)).init_with_output, key, jnp.ones((4, 3, 6)))
    assert px.loc.shape == px.scale.shape == (4, 3)


@pytest.mark.parametrize("head", [heads.Normal(3), heads.SharedNormal(3), heads.FullNormal(3)])
def test_scales_start_at_one_and_stay_above_their_floor(head, key):
    @jax.jit
    def start_and_bottom(key):
        zero, variables = head.init_with_output(key, jnp.zeros(4))
        sunk = jax.tree.map(lambda leaf: jnp.full_like(leaf, -1e4), variables)
        return zero, head.apply(sunk, jnp.ones(4))

    for q, expected, rtol in zip(start_and_bottom(key), (1.0, 1e-4), (1e-5, 1e-3), strict=True):
        scale = q.scale if hasattr(q, "scale") else np.diag(q.scale_tril)
        np.testing.assert_allclose(scale, expected, rtol=rtol)


def test_constant_pixels_do_not_send_the_density_to_infinity(key):
    """On data that never vary the best standard deviation is the floor, and log p is finite."""
    head = heads.Normal(1, floor=0.05)
    variables = jax.jit(head.init)(key, jnp.zeros(2))

    def loss(v):
        return -head.apply(v, jnp.ones(2)).log_prob(jnp.zeros(1))

    adam = optax.adam(1e-2)

    def step(carry, _):
        v, state = carry
        updates, state = adam.update(jax.grad(loss)(v), state)
        return (optax.apply_updates(v, updates), state), None

    start = variables, adam.init(variables)

    @jax.jit
    def trained(carry):
        (variables, _), _ = jax.lax.scan(step, carry, length=3000)
        return loss(variables)

    bound = 0.5 * np.log(2 * np.pi) + np.log(0.05)
    assert bound - 1e-6 < trained(start) < bound + 0.5


def test_full_covariance_is_b_times_b_transposed(key):
    """z = mu(x) + B(x) eps with B lower triangular: Sigma = B B^T, seen in the samples."""
    h = np.random.default_rng(0).normal(size=5).astype(np.float32)

    @jax.jit
    def drawn(init_key, z_key):
        q, _ = heads.FullNormal(3).init_with_output(init_key, h)
        return q, jax.vmap(q.sample)(jax.random.split(z_key, 100_000))

    q, z = drawn(*jax.random.split(key))
    B = np.asarray(q.scale_tril)
    np.testing.assert_array_equal(B, np.tril(B))
    assert np.abs(B[np.tril_indices(3, -1)]).min() > 0
    z = np.asarray(z)
    np.testing.assert_allclose(np.cov(z.T), B @ B.T, atol=0.05)
    np.testing.assert_allclose(z.mean(axis=0), q.loc, atol=0.02)


def test_the_covariance_depends_on_the_input(key):
    head = heads.FullNormal(2)

    @jax.jit
    def two(key):
        q, variables = head.init_with_output(key, jnp.zeros(3))
        return q, head.apply(variables, jnp.ones(3))

    q0, q1 = two(key)
    assert jnp.all(q0.scale_tril[1, 0] != q1.scale_tril[1, 0])


def test_bernoulli_starts_at_the_mean_image(key):
    mean = np.random.default_rng(0).uniform(0.1, 0.9, IMAGE)
    head = heads.Bernoulli(IMAGE, bias_init=heads.logit_of(mean))
    start = jax.jit(lambda key: head.init_with_output(key, jnp.zeros(7))[0].mean)(key)
    np.testing.assert_allclose(start, mean, rtol=1e-5)
    extreme = heads.logit_of(np.array([0.0, 1.0]))(None, (2,))
    np.testing.assert_allclose(jax.nn.sigmoid(extreme), [1e-3, 0.999], rtol=1e-4)
    with pytest.raises(ValueError, match="logit_of: expected a mean of 24 values, got 2"):
        heads.Bernoulli(IMAGE, bias_init=heads.logit_of([0.5, 0.5])).init(key, jnp.zeros(7))


def test_settings_that_make_no_sense_are_refused(key):
    with pytest.raises(ValueError, match="FixedNormal: scale: got 0"):
        heads.FixedNormal(3, 0.0).init(key, jnp.zeros(2))
    for head in (heads.Normal, heads.SharedNormal, heads.DiscretizedLogistic):
        with pytest.raises(ValueError, match=r"expected 0 <= floor < scale_init, got floor=2"):
            head(3, floor=2.0).init(key, jnp.zeros(2))


def test_a_code_whose_activation_has_no_derivative_is_refused_when_it_is_learned():
    """Nothing before it learns. Its use is no fault, nor is a gradient that is put in."""

    def code(kernel, activation):
        head = heads.Code(2, activation)
        return jnp.sum(head.apply({"params": {"code": kernel}}, jnp.ones(3)).value)

    kernel = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}

    def straight(h):
        return h + jax.lax.stop_gradient(jnp.sign(h) - h)

    for activation in (jnp.sign, jnp.round, lambda h: (h > 0).astype(float)):
        assert jax.eval_shape(lambda k, s=activation: code(k, s), kernel).shape == ()
        with pytest.raises(TypeError, match="heads.Code: activation: got .*straight through"):
            jax.eval_shape(jax.grad(lambda k, s=activation: code(k, s)), kernel)
    for activation in (jax.nn.relu, jax.nn.identity, straight, jnp.abs):
        jax.eval_shape(jax.grad(lambda k, s=activation: code(k, s)), kernel)
    held = jax.lax.stop_gradient(kernel)
    jax.eval_shape(jax.grad(lambda scale: scale * code(held, jnp.sign)), 2.0)
