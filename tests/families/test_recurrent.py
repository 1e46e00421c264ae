"""Recurrent models against enumeration, the Kalman filter, and their definition step by step."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

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
from vaejax.distributions import Categorical, Normal, Steps, kl
from vaejax.model import Model
from vaejax.networks.autoregressive import Causal

# ---------------------------------------------------------------- the unit and the language model


def test_unit_is_the_gated_recurrent_unit_of_the_paper():
    """Against Flax's GRUCell, with its six matrices put into ours."""
    x = jax.random.normal(jax.random.key(0), (4, 3))
    h = jax.random.normal(jax.random.key(1), (5,))
    cell = nn.GRUCell(5)
    params = cell.init(jax.random.key(2), h, x[0])
    params = jax.tree.map(lambda a: a + 0.1, params)  # biases that are not zero
    p = params["params"]
    W = jnp.hstack([p[name]["kernel"] for name in ("ir", "iz", "in")])
    b = jnp.hstack([p[name]["bias"] for name in ("ir", "iz", "in")])
    ours = {
        "kernel": jnp.hstack([p[name]["kernel"] for name in ("hr", "hz", "hn")]),
        "bias": p["hn"]["bias"],
    }
    found = recurrent.GRU(5).apply({"params": ours}, x @ W + b[None], h)
    for one, row in zip(x, found, strict=True):
        h, _ = cell.apply(params, h, one)
        np.testing.assert_allclose(row, h, atol=1e-6)


def test_gates_start_orthogonal():
    kernel = recurrent.GRU(4).init(jax.random.key(0), jnp.zeros((1, 12)), jnp.zeros(4))
    for gate in jnp.split(kernel["params"]["kernel"], 3, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=1e-5)


SYMBOLS, LENGTH, END = 3, 3, 2
STRINGS = jnp.array(list(itertools.product(range(SYMBOLS), repeat=LENGTH)), jnp.int32)
Z = jnp.array([0.7, -1.2])


def language(*, end=None, word_dropout=0.0, length=LENGTH):
    net = recurrent.Language(SYMBOLS, 4, end=end, word_dropout=word_dropout)
    return Causal(net, (length,), jnp.int32)


@pytest.fixture(scope="module")
def params():
    """Parameters far from their start, so that every symbol before makes a difference."""
    params = language().init(jax.random.key(0), Z)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda leaf: leaf + jax.random.normal(next(keys), leaf.shape), params)


def unconditional(params):
    """The same without the layers that read a code, as `init` makes them where there is none."""
    layers = params["params"].items()
    return {"params": {name: layer for name, layer in layers if name not in ("first", "always")}}


def scored(network, params, strings, *given):
    return jax.jit(jax.vmap(lambda x: network.apply(params, *given).log_prob(x)))(strings)


@pytest.mark.parametrize("end", [None, END])
def test_probabilities_of_all_short_strings_sum_to_one(params, end):
    log_p = scored(language(end=end), params, STRINGS, Z)
    assert np.unique(np.round(np.asarray(log_p), 4)).size > 10
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1, atol=1e-5)
    if end is not None:
        ended = np.array([END in s and set(s[s.index(END) :]) != {END} for s in STRINGS.tolist()])
        assert np.all(np.asarray(log_p)[ended] == -np.inf)
        assert np.all(np.isfinite(np.asarray(log_p)[~ended]))


def test_mistake_19_the_target_is_seen(params):
    """Checked against a network that reads what it predicts: its numbers are no distribution."""

    params = unconditional(params)

    def check(score):
        np.testing.assert_allclose(jnp.exp(score(STRINGS)).sum(), 1, atol=1e-5)

    class Unshifted(recurrent.Language):
        def __call__(self, x, *given):
            h, shift = self.start(*given)
            return Categorical(self.logits(self.gru(self._projected(x) + shift[None], h)))

    mistaken = Causal(Unshifted(SYMBOLS, 4), (LENGTH,), jnp.int32)
    check(lambda strings: scored(language(), params, strings))
    with pytest.raises(AssertionError):
        check(lambda strings: scored(mistaken, params, strings))


@pytest.mark.parametrize("given", [(), (Z,)])
def test_cached_steps_equal_the_full_pass(params, given):
    network = language(end=END)
    params = params if given else unconditional(params)
    px = network.apply(params, *given)

    def stepped(x):
        carry, total = px.carry, 0.0
        for i in range(LENGTH):
            carry, p = px.step(carry, x[i - 1] if i else jnp.int32(0), jnp.int32(i))
            total += p.log_prob(x[i])
        return total

    by_step = jax.jit(jax.vmap(stepped))(STRINGS)
    np.testing.assert_allclose(by_step, scored(network, params, STRINGS, *given), atol=1e-5)


def test_a_prefix_is_continued_by_the_right_conditional(params):
    params = unconditional(params)
    network, known, n = language(), 1, 4000
    x = jnp.array([1, 0, 0], jnp.int32)
    keys = jax.random.split(jax.random.key(3), n)
    drawn = jax.jit(jax.vmap(lambda k: network.apply(params).complete(k, x, known=known)))(keys)
    assert np.all(np.asarray(drawn[:, 0]) == 1)
    p = np.exp(np.asarray(scored(network, params, STRINGS)))
    p = np.where(np.asarray(STRINGS[:, 0]) == 1, p, 0)
    p /= p.sum()
    place = np.asarray(drawn) @ np.array([9, 3, 1])
    share = np.bincount(place, minlength=len(p)) / n
    np.testing.assert_allclose(share, p, atol=5 * np.sqrt(0.25 / n))


def test_parameters_serve_every_length_and_padding_changes_nothing(params):
    params = unconditional(params)
    short = jnp.array([[0, 1, 2], [1, 2, 2]], jnp.int32)
    long = jnp.pad(short, ((0, 0), (0, 3)), constant_values=END)

    def total(params, network, strings):
        return jax.vmap(lambda x: network.apply(params).log_prob(x))(strings).sum()

    compare = jax.jit(jax.value_and_grad(total), static_argnums=1)
    one = compare(params, language(end=END), short)
    other = compare(params, language(end=END, length=6), long)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), one, other)


def test_text_encoder_reads_up_to_the_end_and_no_further():
    encoder = recurrent.TextEncoder(SYMBOLS, 4, end=END)
    params = encoder.init(jax.random.key(0), jnp.array([0, 1], jnp.int32))
    read = jax.jit(lambda x: encoder.apply(params, x))
    one = read(jnp.array([0, 1, END], jnp.int32))
    np.testing.assert_allclose(read(jnp.array([0, 1, END, END, 0, 1], jnp.int32)), one, atol=1e-6)
    for other in ([0, 1, 1], [0, END, END], [1, 1, END]):
        assert np.abs(read(jnp.array(other, jnp.int32)) - one).max() > 1e-3


def test_word_dropout_hides_inputs_alone_and_only_under_a_key(params):
    params = unconditional(params)
    quiet, all_hidden = language(), language(word_dropout=1.0)
    rngs = {"dropout": jax.random.key(5)}
    x = jnp.array([0, 1, 2], jnp.int32)

    def logits(network, x, rngs=None):
        return network.apply(params, rngs=rngs).conditionals(x).logits

    np.testing.assert_array_equal(logits(all_hidden, x), logits(quiet, x))
    hidden = logits(all_hidden, x, rngs)
    np.testing.assert_allclose(hidden[0], logits(quiet, x)[0], atol=1e-6)
    for other in ([1, 2, 0], [2, 2, 2]):  # nothing of the inputs is left, so nothing changes
        np.testing.assert_array_equal(hidden, logits(all_hidden, jnp.array(other), rngs))
    assert np.abs(hidden - logits(quiet, x))[1:].max() > 1e-2
    half = jnp.zeros(1000, jnp.int32)
    network = language(word_dropout=0.25, length=1000)
    changed = np.abs(logits(network, half, rngs) - logits(network, half)).max(axis=1) > 1e-7
    assert changed[1:].any()
    assert not changed[0]


def test_sentence_vae_is_an_ordinary_autoencoder():
    """Word dropout acts in training and not in evaluation; the decoder sees its code."""
    model = autoencoder(
        nn.Sequential([recurrent.TextEncoder(SYMBOLS, 4, end=END), heads.Normal(2)]),
        language(end=END, word_dropout=0.5),
        Normal(jnp.zeros(2), jnp.ones(2)),
    )
    params = model.init(jax.random.key(0), STRINGS[0])
    loss = jax.jit(objectives.elbo(model, beta=lambda step: step / 10))
    value, metrics = loss(params, jax.random.key(1), Batch(STRINGS[:2]), jnp.int32(5))
    expected = metrics["distortion"] + 0.5 * metrics["rate"]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    measured = evaluate.elbo_terms(model, params, jax.random.key(2), STRINGS[:2], batch_size=2)
    assert np.all(measured["elbo"] < 0)
    at = jax.jit(lambda z: model.decode(params, z).log_prob(STRINGS[0]))
    assert at(Z) != at(-Z)


# ---------------------------------------------------------------- the VRNN


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


def smoothed(model, params, key, x, c=()):
    """The exact posterior: q sees what all the steps from t on say about z_t."""

    def back(message, x):
        precision, weighted = message
        share = 1 + NOISE**2 * precision
        own_precision, own = of_x(x)
        message = A**2 * precision / share + own_precision, A * weighted / share + own
        return message, jnp.stack(message)

    nothing = jnp.zeros(()), jnp.zeros(())
    _, messages = jax.lax.scan(back, nothing, x, reverse=True)
    return SMOOTHER.draw(model, params, key, x, c, given=messages)


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

    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), len(x))
        np.testing.assert_allclose(jax.jit(jax.vmap(weight))(keys, x), truth, atol=1e-9)
    # The bound in closed-form rates is the same in expectation, and differs draw by draw.
    loss = jax.jit(objectives.elbo(SMOOTHER.model, samples=4000, draw=smoothed))
    _, metrics = loss(LINEAR_PARAMS, jax.random.key(9), Batch(x), 0)
    np.testing.assert_allclose(metrics["elbo"], np.mean(truth), atol=0.02)


def test_generated_sequences_have_the_covariance_of_the_state_space():
    n, steps = 4000, 3
    keys = jax.random.split(jax.random.key(0), n)
    generate = partial(FILTER.generate, LINEAR_PARAMS, steps=steps)
    made = jax.jit(jax.vmap(generate))(keys)
    assert made.x.shape == made.mean.shape == (n, steps, 2)
    of_z = np.zeros((steps, steps))
    for i, j in itertools.product(range(steps), repeat=2):
        early, late = min(i, j), max(i, j)
        of_z[i, j] = A ** (late - early) * NOISE**2 * sum(A ** (2 * k) for k in range(early + 1))
    expected = np.kron(of_z, np.outer(MIX, MIX)) + BLUR**2 * np.eye(2 * steps)
    found = np.cov(np.asarray(made.x).reshape(n, -1).T)
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(2 / n) * expected.max())
    np.testing.assert_allclose(made.mean, made.z * MIX[None, None], atol=1e-6)


LATENT, WIDTH = 2, 4


def small(prior=None, latent=LATENT, size=3):
    return recurrent.vrnn(
        autoencoder(
            nn.Sequential([networks.MLP((8,)), heads.Normal(latent)]),
            nn.Sequential([networks.MLP((8,)), heads.Normal(size)]),
            prior or nn.Sequential([networks.MLP((8,)), heads.Normal(latent)]),
        ),
        recurrent.Cell(WIDTH),
        features=WIDTH,
    )


VRNN = small()


@pytest.fixture(scope="module")
def vrnn_params():
    return VRNN.model.init(jax.random.key(0), jnp.ones((2, 3)))


def test_mistake_12_terms_are_sums_over_the_steps(vrnn_params):
    """Step by step in Python at the drawn path; checked against the mean over the steps of px."""
    model, p = VRNN.model, vrnn_params
    x = jax.random.normal(jax.random.key(1), (4, 3))

    @jax.jit
    def by_hand(z):
        h, totals = jnp.zeros(WIDTH), jnp.zeros(4)
        for x_t, z_t in zip(x, z, strict=True):
            q, pz, px = model.encode(p, x_t, h), model.prior(p, h), model.decode(p, z_t, h)
            log_q, log_p = q.log_prob(z_t), pz.log_prob(z_t)
            totals += jnp.stack([-px.log_prob(x_t), kl(q, pz), log_q - log_p, log_q])
            h = recurrent.Cell(WIDTH).apply(p["cell"], h, x_t, z_t)
        return totals

    def check(distortion):
        def measured(key):
            d = VRNN.draw(model, p, key, x)
            return d.z, (distortion(d), terms.rate(d), terms.sampled_rate(d), d.log_q)

        z, found = jax.jit(measured)(jax.random.key(2))
        assert z.shape == (4, LATENT)
        np.testing.assert_allclose(jnp.stack(found), by_hand(z), rtol=1e-4)
        return z

    one = check(terms.distortion)
    with pytest.raises(AssertionError):
        check(lambda d: terms.distortion(d) / len(d.x))
    other = jax.jit(lambda key: VRNN.draw(model, p, key, x).z)(jax.random.key(3))
    assert np.abs(other - one).min() > 1e-6


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
    x = jax.random.normal(jax.random.key(1), (4, 3))
    make = partial(VRNN.generate, vrnn_params, steps=6, x=x)
    made = jax.jit(jax.vmap(partial(make, known=2)))(jax.random.split(jax.random.key(2), 2))
    np.testing.assert_array_equal(made.x[:, :2], jnp.stack([x[:2]] * 2))
    assert np.abs(made.x[:, 2:4] - x[None, 2:]).min() > 1e-6
    assert np.abs(made.x[0, 2:] - made.x[1, 2:]).min() > 1e-6
    with pytest.raises(ValueError, match="generate: known: got 5"):
        make(jax.random.key(0), known=5)


def test_masked_steps_leave_no_trace_whatever_they_hold(vrnn_params):
    """Value and gradient: padding by NaN equals the sequence alone, and a gap one step fewer."""
    x = np.asarray(jax.random.normal(jax.random.key(1), (3, 3)))
    nothing = np.full((2, 3), np.nan, np.float32)
    padded = np.concatenate([x, nothing])
    gap = np.concatenate([x[:1], nothing, x[1:]])
    masks = jnp.array([[1, 1, 1, 0, 0], [1, 0, 0, 1, 1]], bool)
    rows = jnp.stack([padded, gap])

    def measured(params, x):
        # The steps of a gap use other random numbers: a draw at the mean makes no use of them.
        sharp = VRNN.model._replace(encode=partial(_sharp, VRNN.model))
        at_mean = VRNN.draw(sharp, params, jax.random.key(0), x)
        d = VRNN.draw(VRNN.model, params, jax.random.key(1), x)
        drawn = terms.distortion(d), terms.rate(d), terms.sampled_rate(d), d.log_q
        return terms.distortion(at_mean) + terms.rate(at_mean), drawn

    measured = jax.jit(jax.value_and_grad(measured, has_aux=True))
    (bound, drawn), gradient = measured(vrnn_params, jnp.asarray(x))
    for row, mask in zip(rows, masks, strict=True):
        (masked, masked_drawn), masked_gradient = measured(vrnn_params, (row, mask))
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
        jax.tree.map(close, (masked, masked_gradient), (bound, gradient))
        if not mask[-1]:  # the same draws, and with them every term
            jax.tree.map(close, masked_drawn, drawn)


def test_what_is_masked_is_not_seen_by_q_nor_known(vrnn_params):
    x = jax.random.normal(jax.random.key(1), (4, 3))
    mask = jnp.array([True, True, False, True])
    nan = x.at[2].set(jnp.nan)

    def bound(params, given):
        d = VRNN.draw(VRNN.model, params, jax.random.key(0), (nan, mask), given=given)
        return terms.distortion(d) + terms.rate(d)

    expected = jax.grad(bound)(vrnn_params, x)
    found = jax.grad(bound)(vrnn_params, nan)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)
    made = VRNN.generate(vrnn_params, jax.random.key(0), steps=4, x=(nan, mask), known=4).x
    np.testing.assert_array_equal(made[mask], x[mask])
    assert np.abs(made[2] - x[0]).min() > 1e-6 and np.isfinite(made).all()


@pytest.mark.parametrize(
    "module", [recurrent.TextEncoder(3, 4), recurrent.Language(3, 4)], ids=["encoder", "language"]
)
def test_a_condition_forgotten_is_refused(module):
    x = jnp.array([0, 1])
    params = module.init(jax.random.key(0), x, jnp.ones(2))
    with pytest.raises(ValueError, match="c: got none, expected the condition"):
        module.apply(params, x)
    with pytest.raises(
        ValueError, match=r"c: got shapes .*\(5,\).* expected 2 numbers, as at init"
    ):
        module.apply(params, x, jnp.ones(5))
    without = module.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"c: got shapes .*\(2,\).* expected none, as at init"):
        module.apply(without, x, jnp.ones(2))


def test_a_symbol_that_is_read_and_unknown_gives_nan():
    module = recurrent.TextEncoder(3, 4, end=2)
    params = module.init(jax.random.key(0), jnp.array([0, 2]))
    read = jax.jit(jax.vmap(lambda x: module.apply(params, x)))
    found = read(jnp.array([[0, 1, 2, 0], [0, 1, 2, 9], [0, 3, 2, 0], [-1, 1, 2, 0]]))
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, False, True, True])
    np.testing.assert_array_equal(found[0], found[1])


def _sharp(model, params, x, c=(), *, key=None):
    """A posterior so narrow that its draw is its mean."""
    q = model.encode(params, x, c)
    return Normal(q.loc, jnp.full_like(q.loc, 1e-6))


def test_a_condition_of_the_sequence_joins_the_past():
    rows = jnp.ones((2, 4, 3))
    batch = Batch(rows, c=jnp.eye(2))
    params = VRNN.model.init(jax.random.key(0), rows[0], batch.c[0])
    loss = jax.jit(objectives.elbo(VRNN.model, draw=VRNN.draw))
    value, _ = loss(params, jax.random.key(1), batch, 0)
    other, _ = loss(params, jax.random.key(1), batch._replace(c=batch.c[::-1]), 0)
    assert np.isfinite(value)
    assert value != other
    made = VRNN.generate(params, jax.random.key(2), batch.c[0], steps=5)
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
        (lambda p, x: score(jnp.zeros((0,), jnp.int32)), ValueError, r"got shape \(0,\)"),
        (lambda p, x: score(jnp.zeros((2, 3), jnp.int32)), ValueError, "map a batch"),
        (lambda p, x: score(jnp.zeros(3)), TypeError, "expected integer symbols"),
    ],
)
def test_bad_input_is_refused_with_the_fix(vrnn_params, call, kind, message):
    with pytest.raises(kind, match=message):
        call(vrnn_params, jnp.ones((4, 3)))


def drawn(params, x):
    return VRNN.draw(VRNN.model, params, jax.random.key(0), x)


def no_prior(params, x):
    model = VRNN.model._replace(prior=lambda params, c=(): None)
    return VRNN.draw(model, params, jax.random.key(1), x)


def score(x):
    return recurrent.Language(SYMBOLS, 4).init(jax.random.key(0), x)


def test_padded_puts_sequences_side_by_side():
    values, mask = recurrent.padded([np.ones((2, 3)), 2 * np.ones((4, 3))])
    assert values.shape == (2, 4, 3)
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(values[0, 2:], 0)
    np.testing.assert_array_equal(values[1], 2)


# ---------------------------------------------------------------- a distribution of each step


def test_steps_sum_what_counts_and_nothing_else():
    loc, mask = jnp.arange(6.0).reshape(3, 2), jnp.array([True, False, True])
    each = Normal(loc, jnp.ones((3, 2)))
    other = Normal(jnp.zeros((3, 2)), 2 * jnp.ones((3, 2)))
    x = jnp.full((3, 2), 0.3)
    whole, part = Steps(each), Steps(each, mask)
    assert whole.event_shape == (3, 2)
    assert not whole.discrete
    np.testing.assert_allclose(whole.log_prob(x), each.log_prob(x), rtol=1e-6)
    counted = Normal(loc[::2], 1.0)
    np.testing.assert_allclose(part.log_prob(x), counted.log_prob(x[::2]), rtol=1e-6)
    expected = kl(counted, Normal(0.0 * loc[::2], 2.0))
    np.testing.assert_allclose(kl(part, Steps(other, mask)), expected, rtol=1e-6)
    np.testing.assert_array_equal(whole.mean, loc)
    drawn = whole.sample(jax.random.key(0))
    assert np.unique(np.asarray(drawn - loc).round(5)).size == 6


def test_steps_estimate_a_divergence_without_closed_form():
    q = Steps(Normal(jnp.zeros((2, 1)), jnp.ones((2, 1))))
    p = Steps(distributions.Laplace(jnp.zeros((2, 1)), jnp.ones((2, 1))))
    with pytest.raises(TypeError, match="no closed form"):
        kl(q, p)
    z, log_q = q.sample_and_log_prob(jax.random.key(0))
    np.testing.assert_allclose(kl(q, p, sample=(z, log_q)), log_q - p.log_prob(z), rtol=1e-5)
