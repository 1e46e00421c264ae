"""Values and gradients of the weighted objectives, each against a mistake that is written out.

The check that ours pass has to fail on the mistake.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from vaejax import heads, objectives, terms
from vaejax.batch import over_examples
from vaejax.distributions import Normal
from vaejax.model import autoencoder, draw
from vaejax.objectives import elbo
from vaejax.types import Batch


def from_log_weights(value):
    """An objective as `example(log_w [K]) -> scalar to be maximised`, at K draws per example."""

    def build(model, *, particles):
        def loss(params, key, batch, step):
            def one(k, x):
                keys = jax.random.split(k, particles)
                return value(jax.vmap(lambda k: terms.log_weight(draw(model, params, k, x)))(keys))

            values = over_examples(one, key, batch.x)
            return -jnp.mean(values), {"bound": jnp.mean(values)}

        return loss

    return build


def gradient_of(loss, params, key, batch):
    return jax.jit(jax.grad(loss, has_aux=True))(params, jax.random.clone(key), batch, 0)[0]


def check_same(one, other):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), one, other)


@pytest.fixture
def two_networks(x64, linear):
    """A linear-Gaussian model whose q has parameters of its own, its parameters, and x `[3, 3]`."""
    model, params, x = linear(posterior=lambda model: model)

    def encode(params, x, c=(), *, key=None):
        return Normal(params["A"] @ x, jnp.exp(params["log_scale"]))

    params = {**params, "A": jnp.ones((1, 3)) / 4, "log_scale": jnp.zeros(1)}
    return model._replace(encode=encode), params, x


def test_the_value_of_iwae_is_a_lower_bound(x64, linear, key):
    """Checked against sum(w~ log w), whose gradient is right and whose value is too good."""
    model, params, x = linear(n=200)

    def surrogate(log_w):
        return jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(log_w)) * log_w)

    @jax.jit
    def bounds(params, key, batch):
        return [
            -build(model, particles=200)(params, jax.random.clone(key), batch, 0)[0]
            for build in (objectives.iwae, from_log_weights(surrogate))
        ]

    # Importance weights have a known mean: log-mean-exp is below within its small noise.
    highest = oracles.linear_gaussian_log_px(params, x).mean() + 0.02
    ours, mistaken = bounds(params, key, Batch(x))
    assert ours <= highest
    assert mistaken > highest


def test_miwae_averages_over_bounds_and_not_over_draws(x64, linear, key):
    """One bound of six draws is IWAE's with six; six bounds of one draw are the ELBO's.

    Checked against the mean over the draws and the log-mean-exp over the bounds.
    """
    model, params, x = linear()
    one_bound, six_bounds, iwae, plain = (
        gradient_of(loss, params, key, Batch(x))
        for loss in (
            objectives.miwae(model, outer=1, inner=6),
            objectives.miwae(model, outer=6, inner=1),
            objectives.iwae(model, particles=6),
            elbo(model, samples=6, rate=terms.sampled_rate),
        )
    )
    check_same(one_bound, iwae)
    check_same(six_bounds, plain)
    for mistaken, right in ((six_bounds, iwae), (one_bound, plain)):
        with pytest.raises(AssertionError):
            check_same(mistaken, right)


def test_each_player_of_piwae_has_the_gradient_of_its_own_loss(two_networks, key):
    """Checked against the plain sum of both players' losses."""
    model, params, x = two_networks
    both, p_alone, q_alone = (
        gradient_of(loss, params, key, Batch(x))
        for loss in (
            objectives.piwae(model, outer=2, inner=3),
            objectives.iwae(model, particles=6),
            objectives.miwae(model, outer=2, inner=3),
        )
    )

    def check(found):
        for name in params:
            alone = q_alone if name in ("A", "log_scale") else p_alone
            np.testing.assert_allclose(found[name], alone[name], rtol=1e-9, err_msg=name)

    check(both)
    with pytest.raises(AssertionError):
        check(jax.tree.map(jnp.add, p_alone, q_alone))


def draws_noise(model, params, key, x, index):
    """The standard normal noise behind an example's four draws, `[4, latent]`."""
    q = model.encode(params, x[0])

    def one(k):
        z_key = jax.random.split(k, 3)[1]
        return (q.sample(z_key) - q.loc) / q.scale

    return jax.vmap(one)(jax.random.split(jax.random.fold_in(jax.random.clone(key), index), 4))


def analytic_rate(model, *, particles):
    def loss(params, key, batch, step):
        def one(k, x):
            def log_w(k):
                d = draw(model, params, k, x)
                return -terms.distortion(d) - terms.rate(d)

            return terms.log_mean_exp(jax.vmap(log_w)(jax.random.split(k, particles)))

        return -jnp.mean(over_examples(one, key, batch.x)), {}

    return loss


MISTAKEN = {
    "softmax of the loss": from_log_weights(
        lambda w: jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(-w)) * w)
    ),
    "weights not stopped": from_log_weights(lambda w: jnp.sum(jax.nn.softmax(w) * w)),
    "analytic KL": analytic_rate,
}


def test_the_gradient_of_iwae_is_that_of_its_value_written_out(two_networks, key):
    """By q's and p's parameters it is that of log-mean-exp of log p - log q, at the same noise.

    Checked against softmax of +loss, weights that are not stopped, and a KL in closed form.
    """
    model, params, x = two_networks

    def value(params):
        noise = jax.vmap(lambda i: draws_noise(model, params, key, x, i))(jnp.arange(len(x)))
        q = jax.vmap(partial(model.encode, params))(x)
        z = q.loc[:, None] + q.scale[:, None] * noise

        def log_w(q, x, z):
            return (
                model.decode(params, z).log_prob(x)
                + model.prior(params).log_prob(z)
                - q.log_prob(z)
            )

        all_w = jax.vmap(jax.vmap(log_w, (None, None, 0)))(q, x, z)
        return -jnp.mean(jax.nn.logsumexp(all_w, axis=1) - jnp.log(4.0))

    right = jax.jit(jax.grad(value))(params)

    def check(build):
        found = gradient_of(build(model, particles=4), params, key, Batch(x))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8), found, right)

    check(objectives.iwae)
    for mistaken in MISTAKEN.values():
        with pytest.raises(AssertionError):
            check(mistaken)


class PerPixel:
    def __init__(self, px):
        self.px = px

    def log_prob(self, x):
        return self.px.log_prob(x) / x.size


def averaged(model, *, particles):
    """IWAE with a reconstruction averaged over pixels."""

    def mean_over_pixels(*args):
        d = draw(*args)
        return d._replace(px=PerPixel(d.px))

    return objectives.iwae(model, particles=particles, draw=mean_over_pixels)


def test_an_image_tiled_twice_has_twice_the_bound(key):
    """Beside a z that it does not depend on.

    Checked against a reconstruction averaged over pixels, in the weights of every draw.
    """
    builds = (objectives.iwae, objectives.dreg, objectives.vimco, averaged)

    def bounds(n):
        model = autoencoder(
            heads.Normal(2), heads.FixedNormal((n,), 1.0), Normal(jnp.zeros(2), jnp.ones(2))
        )
        shapes = jax.eval_shape(model.init, jax.random.key(3), jnp.zeros(n))
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        prior = lambda params, c=(): model.encode(params, jnp.zeros(n))  # noqa: E731
        model = model._replace(prior=prior)

        @jax.jit
        def every(params, key, batch):
            return [
                b(model, particles=3)(params, jax.random.clone(key), batch, 0)[0] for b in builds
            ]

        return every(params, jax.random.clone(key), Batch(jnp.ones((4, n))))

    *ours, mistaken = zip(bounds(12), bounds(6), strict=True)
    for twice, once in ours:
        np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)
    assert not np.isclose(mistaken[0], 2 * mistaken[1], rtol=1e-2)


def test_dreg_weighs_each_example_by_itself(two_networks, key):
    """Checked against weights that mix over the batch: with a far neighbour nothing may change."""
    model, params, x = two_networks
    gradient = jax.jit(jax.grad(objectives.dreg(model, particles=4), has_aux=True))

    def of(*weight):
        batch = Batch(x[: len(weight)], weight=jnp.array(weight))
        return gradient(params, jax.random.clone(key), batch, 0)[0]

    first, second = of(1.0, 0.0), of(0.0, 1.0)
    check_same(of(1.0), first)
    check_same(of(1.0, 1.0), jax.tree.map(lambda a, b: (a + b) / 2, first, second))
