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
@pytest.mark.parametrize("features", [(7,), (4, 3, 6)], ids=["vector", "map"])
def test_every_head_gives_its_distribution_over_the_event(head, kind, features, key):
    init_key, sample_key = jax.random.split(key)
    px, variables = head.init_with_output(init_key, jnp.ones(features))
    assert isinstance(px, kind) and px.event_shape == IMAGE
    sample = px.sample(sample_key)
    assert sample.shape == IMAGE
    gradient = jax.grad(lambda v: head.apply(v, jnp.ones(features)).log_prob(sample))(variables)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_features_that_are_a_map_share_one_linear_map_per_pixel(key):
    init_key, x_key = jax.random.split(key)
    h = jax.random.normal(x_key, (4, 3, 6))
    px, variables = heads.Bernoulli(IMAGE).init_with_output(init_key, h)
    kernel = variables["params"]["logits"]["kernel"]
    assert kernel.shape == (6, 2)
    np.testing.assert_allclose(px.logits, jnp.einsum("hwf,fc->hwc", h, kernel), atol=1e-5)


def test_classes_of_a_pixel_are_a_map_too(key):
    px, variables = heads.Categorical((4, 3), 5).init_with_output(key, jnp.ones((4, 3, 6)))
    assert px.event_shape == (4, 3) and px.logits.shape == (4, 3, 5)
    assert variables["params"]["logits"]["kernel"].shape == (6, 5)


def test_an_event_without_channels_takes_a_map_too(key):
    px, _ = heads.Normal((4, 3)).init_with_output(key, jnp.ones((4, 3, 6)))
    assert px.loc.shape == px.scale.shape == (4, 3)


@pytest.mark.parametrize("head", [heads.Normal(3), heads.SharedNormal(3), heads.FullNormal(3)])
def test_scales_start_at_one_and_stay_above_their_floor(head, key):
    zero, variables = head.init_with_output(key, jnp.zeros(4))
    scale = zero.scale if hasattr(zero, "scale") else jnp.diag(zero.scale_tril)
    np.testing.assert_allclose(scale, 1.0, rtol=1e-5)
    sunk = jax.tree.map(lambda leaf: jnp.full_like(leaf, -1e4), variables)
    low = head.apply(sunk, jnp.ones(4))
    scale = low.scale if hasattr(low, "scale") else jnp.diag(low.scale_tril)
    np.testing.assert_allclose(scale, 1e-4, rtol=1e-3)


def test_constant_pixels_do_not_send_the_density_to_infinity(key):
    """On data that never vary the best standard deviation is the floor, and log p is finite."""
    head = heads.Normal(1, floor=0.05)
    _, variables = head.init_with_output(key, jnp.zeros(2))

    def loss(v):
        return -head.apply(v, jnp.ones(2)).log_prob(jnp.zeros(1))

    adam = optax.adam(1e-2)

    def step(carry, _):
        v, state = carry
        updates, state = adam.update(jax.grad(loss)(v), state)
        return (optax.apply_updates(v, updates), state), None

    start = variables, adam.init(variables)
    (variables, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=3000))(start)
    bound = 0.5 * np.log(2 * np.pi) + np.log(0.05)
    assert bound - 1e-6 < loss(variables) < bound + 0.5


def test_full_covariance_is_b_times_b_transposed(key):
    """z = mu(x) + B(x) eps with B lower triangular: Sigma = B B^T, seen in the samples."""
    init_key, h_key, z_key = jax.random.split(key, 3)
    h = jax.random.normal(h_key, (5,))
    q, _ = heads.FullNormal(3).init_with_output(init_key, h)
    B = np.asarray(q.scale_tril)
    np.testing.assert_array_equal(B, np.tril(B))
    assert np.abs(B[np.tril_indices(3, -1)]).min() > 0
    z = jax.vmap(q.sample)(jax.random.split(z_key, 100_000))
    np.testing.assert_allclose(np.cov(np.asarray(z).T), B @ B.T, atol=0.05)
    np.testing.assert_allclose(z.mean(axis=0), q.loc, atol=0.02)


def test_the_covariance_depends_on_the_input(key):
    q0, variables = heads.FullNormal(2).init_with_output(key, jnp.zeros(3))
    q1 = heads.FullNormal(2).apply(variables, jnp.ones(3))
    assert jnp.all(q0.scale_tril[1, 0] != q1.scale_tril[1, 0])


def test_bernoulli_starts_at_the_mean_image(key):
    mean = np.random.default_rng(0).uniform(0.1, 0.9, IMAGE)
    head = heads.Bernoulli(IMAGE, bias_init=heads.logit_of(mean))
    px, _ = head.init_with_output(key, jnp.zeros(7))
    np.testing.assert_allclose(px.mean, mean, rtol=1e-5)
    extreme = heads.logit_of(np.array([0.0, 1.0]))(None, (2,))
    np.testing.assert_allclose(jax.nn.sigmoid(extreme), [1e-3, 0.999], rtol=1e-4)
    with pytest.raises(ValueError, match="logit_of: expected a mean of 24 values, got 2"):
        heads.Bernoulli(IMAGE, bias_init=heads.logit_of([0.5, 0.5])).init(key, jnp.zeros(7))


def test_settings_that_make_no_sense_are_refused(key):
    with pytest.raises(ValueError, match="FixedNormal: expected scale > 0, got 0"):
        heads.FixedNormal(3, 0.0).init(key, jnp.zeros(2))
    for head in (heads.Normal, heads.SharedNormal, heads.DiscretizedLogistic):
        with pytest.raises(ValueError, match=r"expected 0 <= floor < scale_init, got floor=2"):
            head(3, floor=2.0).init(key, jnp.zeros(2))
