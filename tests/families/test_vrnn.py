"""The VRNN against the Kalman filter, and against its definition step by step."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from vaejax import (
    Batch,
    autoencoder,
    distributions,
    evaluate,
    heads,
    networks,
    objectives,
    recurrent,
    terms,
)
from vaejax.distributions import Normal, Steps, kl
from vaejax.model import Model

A, NOISE, BLUR = 0.8, 0.6, 0.5  # z_t = A z_{t-1} + NOISE e,  x_t = MIX z_t + BLUR e
MIX = np.array([1.0, -0.7])


class Remember:
    """A recurrence that remembers z alone, so that the VRNN is a linear-Gaussian state space."""

    def init(self, key, h, x, z):
        return {}

    def apply(self, params, h, x, z):
        return z


def linear(information):
    """The state space as a VRNN; `information(seen)`: precision and weighted mean of z_t's factor.

    `q(z_t|h) is N(A h, NOISE^2)` times `exp(-precision z^2 / 2 + weighted z)`.
    """

    def prior(params, c=()):
        return Normal(A * c, jnp.full(1, NOISE))

    def encode(params, seen, c=(), *, key=None):
        precision, weighted = information(seen)
        total = NOISE**-2 + precision
        return Normal((A * c / NOISE**2 + weighted) / total, jnp.full(1, total**-0.5))

    def decode(params, z, c=(), *, key=None):
        return Normal(jnp.asarray(MIX) * z, jnp.full(2, BLUR))

    step = Model(lambda key, x, c=(): {}, prior, encode, decode)
    return recurrent.vrnn(step, Remember(), features=1)


def of_x(x):
    return MIX @ MIX / BLUR**2, jnp.asarray(MIX) @ x / BLUR**2


FILTER, SMOOTHER = linear(of_x), linear(lambda message: (message[0], message[1]))
LINEAR_PARAMS = {"cell": {}}


def smoothed(model, params, key, x, c=(), *, z=None):
    """The exact posterior: q sees what all the steps from t on say about z_t."""

    def back(message, x):
        precision, weighted = message
        share = 1 + NOISE**2 * precision
        own_precision, own = of_x(x)
        message = A**2 * precision / share + own_precision, A * weighted / share + own
        return message, jnp.stack(message)

    nothing = jnp.zeros(()), jnp.zeros(())
    _, messages = jax.lax.scan(back, nothing, x, reverse=True)
    return SMOOTHER.draw(model, params, key, x, c, given=messages, z=z)


def kalman(x):
    """log p(x) of one sequence by the Kalman filter, nats."""
    mean, variance, total = 0.0, 0.0, 0.0
    for one in np.asarray(x, float):
        mean, variance = A * mean, A**2 * variance + NOISE**2
        S = variance * np.outer(MIX, MIX) + BLUR**2 * np.eye(2)
        off = one - MIX * mean
        total -= 0.5 * (off @ np.linalg.solve(S, off) + np.log(np.linalg.det(2 * np.pi * S)))
        gain = variance * MIX @ np.linalg.inv(S)
        mean, variance = mean + gain @ off, variance - gain @ MIX * variance
    return total


def sequences(n, steps, seed=0):
    rng = np.random.default_rng(seed)
    z, rows = np.zeros(n), []
    for _ in range(steps):
        z = A * z + NOISE * rng.normal(size=n)
        rows.append(MIX[None] * z[:, None] + BLUR * rng.normal(size=(n, 2)))
    return np.stack(rows, axis=1)


@pytest.mark.statistics
def test_bound_stays_below_the_kalman_likelihood_and_importance_weights_close_it():
    x = sequences(24, 6)
    truth = np.mean([kalman(one) for one in x])
    model, draw = FILTER.model, FILTER.draw
    x = jnp.asarray(x, jnp.float32)
    measured = evaluate.elbo_terms(
        model, LINEAR_PARAMS, jax.random.key(0), x, samples=100, draw=draw, batch_size=24
    )
    found = [
        evaluate.log_likelihood(
            model, LINEAR_PARAMS, jax.random.key(1), x, particles=k, draw=draw, batch_size=24
        ).log_px.mean()
        for k in (5, 400)
    ]
    assert measured["elbo"].mean() < found[0] - 0.1
    assert found[0] < found[1] < truth + 0.02
    assert found[1] > truth - 0.05
    loss = jax.jit(objectives.iwae(model, particles=50, draw=draw))
    _, metrics = loss(LINEAR_PARAMS, jax.random.key(2), Batch(x), 0)
    assert measured["elbo"].mean() < metrics["bound"] < truth + 0.05


def test_with_the_exact_posterior_every_draw_weighs_as_much_as_the_kalman_likelihood(x64):
    x = jnp.asarray(sequences(4, 6))
    truth = [kalman(one) for one in x]

    def weight(key, x):
        d = smoothed(SMOOTHER.model, LINEAR_PARAMS, key, x)
        return terms.log_weight(d)

    weights = jax.jit(jax.vmap(weight))
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), len(x))
        np.testing.assert_allclose(weights(keys, x), truth, atol=1e-9)


@pytest.mark.statistics
def test_with_the_exact_posterior_the_bound_in_closed_form_rates_is_the_kalman_likelihood():
    """In expectation: draw by draw it differs."""
    x = sequences(4, 6)
    truth = [kalman(one) for one in x]
    loss = jax.jit(objectives.elbo(SMOOTHER.model, samples=4000, draw=smoothed))
    _, metrics = loss(LINEAR_PARAMS, jax.random.key(9), Batch(jnp.asarray(x, jnp.float32)), 0)
    np.testing.assert_allclose(metrics["elbo"], np.mean(truth), atol=0.02)


def test_generated_sequences_have_the_covariance_of_the_state_space():
    n, steps = 4000, 3
    generate = partial(FILTER.generate, LINEAR_PARAMS, steps=steps)
    made = jax.jit(jax.vmap(generate))(jax.random.split(jax.random.key(0), n))
    made = jax.tree.map(np.asarray, made)
    assert made.x.shape == made.mean.shape == (n, steps, 2)
    of_z = np.zeros((steps, steps))
    for i, j in itertools.product(range(steps), repeat=2):
        early, late = min(i, j), max(i, j)
        of_z[i, j] = A ** (late - early) * NOISE**2 * sum(A ** (2 * k) for k in range(early + 1))
    expected = np.kron(of_z, np.outer(MIX, MIX)) + BLUR**2 * np.eye(2 * steps)
    found = np.cov(made.x.reshape(n, -1).T)
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(2 / n) * expected.max())
    np.testing.assert_allclose(made.mean, made.z * MIX[None, None], atol=1e-6)


LATENT, WIDTH = 2, 4


def normals(shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def linear_network(size):
    """A Normal that is linear in all that it is given."""
    return nn.Sequential([networks.MLP(()), heads.Normal(size)])


VRNN = recurrent.vrnn(
    autoencoder(linear_network(LATENT), linear_network(3), linear_network(LATENT)),
    recurrent.Cell(WIDTH),
    features=WIDTH,
)


@pytest.fixture(scope="module")
def vrnn_params():
    return VRNN.model.init(jax.random.key(0), np.ones((2, 3), np.float32))


def test_terms_are_sums_over_the_steps(vrnn_params):
    """Step by step in Python at the drawn path; checked against the mean over the steps of px."""
    model, p = VRNN.model, vrnn_params
    x = normals((3, 3))

    @jax.jit
    def by_hand(z):
        h, totals = jnp.zeros(WIDTH), jnp.zeros(4)
        for x_t, z_t in zip(x, z, strict=True):
            q, pz, px = model.encode(p, x_t, h), model.prior(p, h), model.decode(p, z_t, h)
            log_q, log_p = q.log_prob(z_t), pz.log_prob(z_t)
            totals += jnp.stack([-px.log_prob(x_t), kl(q, pz), log_q - log_p, log_q])
            h = recurrent.Cell(WIDTH).apply(p["cell"], h, x_t, z_t)
        return totals

    @jax.jit
    def measured(key):
        d = VRNN.draw(model, p, key, x)
        D = terms.distortion(d)
        found = [
            jnp.stack([D_, terms.rate(d), terms.sampled_rate(d), d.log_q]) for D_ in (D, D / len(x))
        ]
        return d.z, *found

    z, sums, mistaken = measured(jax.random.key(2))
    assert z.shape == (3, LATENT)
    expected = by_hand(z)
    np.testing.assert_allclose(sums, expected, rtol=1e-4)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(mistaken, expected, rtol=1e-4)
    other, *_ = measured(jax.random.key(3))
    assert np.abs(np.asarray(other) - np.asarray(z)).min() > 1e-6


def test_the_gradient_of_the_bound_is_that_of_its_value_through_the_drawn_path(vrnn_params, x64):
    """By finite differences at the same noise, along a random direction of each part.

    Checked against a cell that sees z without its gradient: the same value, and another gradient.
    """
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3)))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), vrnn_params)
    loss = objectives.elbo(VRNN.model, draw=VRNN.draw)
    value = jax.jit(jax.value_and_grad(lambda p: loss(p, jax.random.key(1), Batch(x), 0)[0]))
    rng = np.random.default_rng(1)
    _, gradient = value(params)
    for name, part in params.items():
        along = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), part)
        ends = [
            value({**params, name: jax.tree.map(lambda a, b, t=t: a + t * b, part, along)})[0]
            for t in (1e-5, -1e-5)
        ]
        products = jax.tree.map(lambda a, b: np.sum(a * b), gradient[name], along)
        slope = sum(jax.tree.leaves(products))
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_one_outer_bound_of_piwae_is_iwae_for_the_cell_too(vrnn_params, x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3)))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), vrnn_params)
    losses = (
        objectives.piwae(VRNN.model, outer=1, inner=2, draw=VRNN.draw),
        objectives.iwae(VRNN.model, particles=2, draw=VRNN.draw),
    )

    @jax.jit
    def gradients(params, key):
        return [
            jax.grad(lambda p, loss=loss: loss(p, jax.random.clone(key), Batch(x), 0)[0])(params)
            for loss in losses
        ]

    one, other = gradients(params, jax.random.key(1))
    assert set(one) == {"encoder", "decoder", "prior", "cell"}
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_sequence_is_continued_from_its_first_steps(vrnn_params):
    x = normals((4, 3))
    make = partial(VRNN.generate, vrnn_params, steps=6, x=x)
    made = jax.jit(jax.vmap(partial(make, known=2)))(jax.random.split(jax.random.key(2), 2))
    found = np.asarray(made.x)
    np.testing.assert_array_equal(found[:, :2], np.stack([x[:2]] * 2))
    assert np.abs(found[:, 2:4] - x[None, 2:]).min() > 1e-6
    assert np.abs(found[0, 2:] - found[1, 2:]).min() > 1e-6
    with pytest.raises(ValueError, match="generate: known: got 5"):
        make(jax.random.key(0), known=5)


def test_masked_steps_leave_no_trace_whatever_they_hold(vrnn_params):
    """Value and gradient: padding by NaN equals the sequence alone, and a gap one step fewer."""
    x = normals((3, 3))
    nothing = np.full((2, 3), np.nan, np.float32)
    padded = np.concatenate([x, nothing])
    gap = np.concatenate([x[:1], nothing, x[1:]])
    masks = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 1, 1]], bool)
    rows = np.stack([padded, gap])

    def measured(params, x):
        # The steps of a gap use other random numbers: a draw at the mean makes no use of them.
        sharp = VRNN.model._replace(encode=partial(_sharp, VRNN.model))
        at_mean = VRNN.draw(sharp, params, jax.random.key(0), x)
        d = VRNN.draw(VRNN.model, params, jax.random.key(1), x)
        drawn = terms.distortion(d), terms.rate(d), terms.sampled_rate(d), d.log_q
        return terms.distortion(at_mean) + terms.rate(at_mean), drawn

    measured = jax.jit(jax.value_and_grad(measured, has_aux=True))
    (bound, drawn), gradient = measured(vrnn_params, x)
    for row, mask in zip(rows, masks, strict=True):
        (masked, masked_drawn), masked_gradient = measured(vrnn_params, (row, mask))
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
        jax.tree.map(close, (masked, masked_gradient), (bound, gradient))
        if not mask[-1]:  # the same draws, and with them every term
            jax.tree.map(close, masked_drawn, drawn)


def test_what_is_masked_is_not_seen_by_q_nor_known(vrnn_params):
    x, nan = normals((4, 3)), normals((4, 3))
    mask = np.array([True, True, False, True])
    nan[2] = np.nan

    @jax.jit
    @jax.grad
    def slope(params, given):
        d = VRNN.draw(VRNN.model, params, jax.random.key(0), (nan, mask), given=given)
        return terms.distortion(d) + terms.rate(d)

    expected, found = slope(vrnn_params, x), slope(vrnn_params, nan)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)
    generate = jax.jit(partial(VRNN.generate, steps=4, x=(nan, mask), known=4))
    made = np.asarray(generate(vrnn_params, jax.random.key(0)).x)
    np.testing.assert_array_equal(made[mask], x[mask])
    assert np.abs(made[2] - x[0]).min() > 1e-6 and np.isfinite(made).all()


def _sharp(model, params, x, c=(), *, key=None):
    """A posterior so narrow that its draw is its mean."""
    q = model.encode(params, x, c)
    return Normal(q.loc, jnp.full_like(q.loc, 1e-6))


def test_a_condition_of_the_sequence_joins_the_past():
    rows = np.ones((2, 4, 3), np.float32)
    batch = Batch(rows, c=np.eye(2, dtype=np.float32))
    params = VRNN.model.init(jax.random.key(0), rows[0], batch.c[0])
    loss = jax.jit(objectives.elbo(VRNN.model, draw=VRNN.draw))
    value, _ = loss(params, jax.random.key(1), batch, 0)
    other, _ = loss(params, jax.random.key(1), batch._replace(c=batch.c[::-1]), 0)
    assert np.isfinite(value)
    assert value != other
    made = jax.eval_shape(
        lambda c: VRNN.generate(params, jax.random.key(2), c, steps=5), batch.c[0]
    )
    assert made.x.shape == (5, 3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda p, x: VRNN.model.init(jax.random.key(0), x[:0]), ValueError, "1 step or more"),
        (lambda p, x: drawn(p, (x, np.zeros(4, bool))), ValueError, "no step that counts"),
        (lambda p, x: drawn(p, (x, np.ones(3, bool))), ValueError, r"got shape \(3,\)"),
        (lambda p, x: VRNN.model.encode(p, x[0]), TypeError, "pass draw=vrnn.draw"),
        (
            lambda p, x: evaluate.log_likelihood(
                VRNN.model, p, jax.random.key(0), x[None], particles=2
            ),
            TypeError,
            "pass draw=vrnn.draw",
        ),
        (lambda p, x: no_prior(p, x), ValueError, "got a step without a prior"),
        (lambda p, x: VRNN.generate(p, jax.random.key(0), steps=0), ValueError, "steps >= 1"),
        (lambda p, x: recurrent.padded([x, x[:0]]), ValueError, "padded: sequence 1: got shape"),
        (lambda p, x: recurrent.padded([]), ValueError, "expected sequences >= 1"),
    ],
)
def test_bad_input_is_refused_with_the_fix(vrnn_params, call, kind, message):
    with pytest.raises(kind, match=message):
        call(vrnn_params, np.ones((4, 3), np.float32))


def drawn(params, x):
    return VRNN.draw(VRNN.model, params, jax.random.key(0), x)


def no_prior(params, x):
    model = VRNN.model._replace(prior=lambda params, c=(): None)
    return VRNN.draw(model, params, jax.random.key(1), x)


def test_padded_puts_sequences_side_by_side():
    values, mask = recurrent.padded([np.ones((2, 3)), 2 * np.ones((4, 3))])
    assert values.shape == (2, 4, 3)
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(values[0, 2:], 0)
    np.testing.assert_array_equal(values[1], 2)


# ---------------------------------------------------------------- a distribution of each step


def test_steps_sum_what_counts_and_nothing_else():
    loc, mask = np.arange(6.0, dtype=np.float32).reshape(3, 2), np.array([True, False, True])
    each, other = Normal(loc, np.ones((3, 2))), Normal(0 * loc, 2 * np.ones((3, 2)))
    x = np.full((3, 2), 0.3, np.float32)
    whole, part = Steps(each), Steps(each, mask)
    assert whole.event_shape == (3, 2)
    assert not whole.discrete

    @jax.jit
    def measured(key):
        drawn = whole.sample(key)
        return whole.log_prob(x), part.log_prob(x), kl(part, Steps(other, mask)), whole.mean, drawn

    of_whole, of_part, divergence, mean, drawn = measured(jax.random.key(0))
    log_p = stats.norm(loc, 1).logpdf(x)
    np.testing.assert_allclose(of_whole, log_p.sum(), rtol=1e-6)
    np.testing.assert_allclose(of_part, log_p[mask].sum(), rtol=1e-6)
    expected = np.log(2) + (1 + loc[mask] ** 2) / 8 - 0.5
    np.testing.assert_allclose(divergence, expected.sum(), rtol=1e-6)
    np.testing.assert_array_equal(mean, loc)
    assert np.unique(np.asarray(drawn - loc).round(5)).size == 6


def test_steps_estimate_a_divergence_without_closed_form():
    q = Steps(Normal(np.zeros((2, 1)), np.ones((2, 1))))
    p = Steps(distributions.Laplace(np.zeros((2, 1)), np.ones((2, 1))))
    with pytest.raises(TypeError, match="no closed form"):
        kl(q, p)

    @jax.jit
    def estimated(key):
        z, log_q = q.sample_and_log_prob(key)
        return kl(q, p, sample=(z, log_q)), log_q - p.log_prob(z)

    np.testing.assert_allclose(*estimated(jax.random.key(0)), rtol=1e-5)
