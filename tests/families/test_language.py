"""The GRU, the language model and the text encoder, against Flax's unit and enumeration."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vaejax import Batch, autoencoder, heads, objectives, recurrent
from vaejax.distributions import Categorical, Normal
from vaejax.networks.autoregressive import Causal


def test_unit_is_the_gated_recurrent_unit_of_the_paper():
    """Against Flax's GRUCell, with its six matrices put into ours."""
    rng = np.random.default_rng(0)
    x, h = (rng.normal(size=s).astype(np.float32) for s in ((4, 3), 5))
    cell = nn.GRUCell(5)
    shapes = jax.eval_shape(cell.init, jax.random.key(2), h, x[0])
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes)
    p = params["params"]
    W = np.hstack([p[name]["kernel"] for name in ("ir", "iz", "in")])
    b = np.hstack([p[name]["bias"] for name in ("ir", "iz", "in")])
    ours = {
        "kernel": np.hstack([p[name]["kernel"] for name in ("hr", "hz", "hn")]),
        "bias": p["hn"]["bias"],
    }
    found = jax.jit(recurrent.GRU(5).apply)({"params": ours}, x @ W + b[None], h)
    step = jax.jit(cell.apply)
    for one, row in zip(x, found, strict=True):
        h, _ = step(params, h, one)
        np.testing.assert_allclose(row, h, atol=1e-6)


def test_gates_start_orthogonal():
    start = jax.jit(recurrent.GRU(4).init)
    params = start(jax.random.key(0), np.zeros((1, 12), np.float32), np.zeros(4, np.float32))
    for gate in np.split(np.asarray(params["params"]["kernel"]), 3, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=1e-5)


SYMBOLS, LENGTH, END = 3, 3, 2
STRINGS = np.array(list(itertools.product(range(SYMBOLS), repeat=LENGTH)), np.int32)
Z = np.array([0.7, -1.2], np.float32)


def language(*, end=None, word_dropout=0.0, length=LENGTH):
    net = recurrent.Language(SYMBOLS, 4, end=end, word_dropout=word_dropout)
    return Causal(net, (length,), jnp.int32)


@pytest.fixture(scope="module")
def params():
    """Parameters far from their start, so that every symbol before makes a difference."""
    params = jax.jit(language().init)(jax.random.key(0), Z)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: np.float32(a + rng.normal(size=a.shape)), params)


def unconditional(params):
    """The same without the layers that read a code, as `init` makes them where there is none."""
    layers = params["params"].items()
    return {"params": {name: layer for name, layer in layers if name not in ("first", "always")}}


@partial(jax.jit, static_argnums=0)
def scored(network, params, strings, *given):
    return jax.vmap(lambda x: network.apply(params, *given).log_prob(x))(strings)


@pytest.mark.parametrize("end", [None, END])
def test_probabilities_of_all_short_strings_sum_to_one(params, end):
    log_p = np.asarray(scored(language(end=end), params, STRINGS, Z))
    assert np.unique(np.round(log_p, 4)).size > 10
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-5)
    if end is not None:
        ended = np.array([END in s and set(s[s.index(END) :]) != {END} for s in STRINGS.tolist()])
        assert np.all(log_p[ended] == -np.inf)
        assert np.all(np.isfinite(log_p[~ended]))


def test_no_symbol_is_predicted_from_itself(params):
    """Checked against a network that reads what it predicts: its numbers are no distribution."""
    params = unconditional(params)

    def check(score):
        np.testing.assert_allclose(np.exp(score(STRINGS)).sum(), 1, atol=1e-5)

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

    def stepped(x):
        px = network.apply(params, *given)
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
    x = np.array([1, 0, 0], np.int32)

    def complete(key):
        px, keys = network.apply(params), jax.random.split(key, n)
        return jax.vmap(lambda k: px.complete(k, x, known=known))(keys)

    drawn = np.asarray(jax.jit(complete)(jax.random.key(3)))
    assert np.all(drawn[:, 0] == 1)
    p = np.exp(np.asarray(scored(network, params, STRINGS)))
    p = np.where(STRINGS[:, 0] == 1, p, 0)
    p /= p.sum()
    place = drawn @ np.array([9, 3, 1])
    share = np.bincount(place, minlength=len(p)) / n
    np.testing.assert_allclose(share, p, atol=5 * np.sqrt(0.25 / n))


def test_parameters_serve_every_length_and_padding_changes_nothing(params):
    params = unconditional(params)
    short = np.array([[0, 1, 2], [1, 2, 2]], np.int32)
    long = np.pad(short, ((0, 0), (0, 3)), constant_values=END)

    def total(params, network, strings):
        return jax.vmap(lambda x: network.apply(params).log_prob(x))(strings).sum()

    compare = jax.jit(jax.value_and_grad(total), static_argnums=1)
    one = compare(params, language(end=END), short)
    other = compare(params, language(end=END, length=6), long)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), one, other)


@pytest.fixture(scope="module")
def read():
    """A text encoder as a function of several sequences."""
    encoder = recurrent.TextEncoder(SYMBOLS, 4, end=END)
    params = jax.jit(encoder.init)(jax.random.key(0), np.array([0, 1], np.int32))
    program = jax.jit(jax.vmap(lambda x: encoder.apply(params, x)))
    return lambda rows: np.asarray(program(np.array(rows, np.int32)))


def test_text_encoder_reads_up_to_the_end_and_no_further(read):
    one, *others = read([[0, 1, END], [0, 1, 1], [0, END, END], [1, 1, END]])
    np.testing.assert_allclose(read([[0, 1, END, END, 0, 1]])[0], one, atol=1e-6)
    for other in others:
        assert np.abs(other - one).max() > 1e-3


def test_a_symbol_that_is_read_and_unknown_gives_nan(read):
    found = read([[0, END, 0], [0, END, 9], [3, END, 0], [-1, END, 0]])
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, False, True, True])
    np.testing.assert_array_equal(found[0], found[1])


def test_word_dropout_hides_inputs_alone_and_only_under_a_key(params):
    params = unconditional(params)
    quiet, all_hidden = language(), language(word_dropout=1.0)
    rngs = {"dropout": jax.random.key(5)}
    x = np.array([0, 1, 2], np.int32)

    @partial(jax.jit, static_argnums=0)
    def program(network, x, rngs):
        return network.apply(params, rngs=rngs).conditionals(x).logits

    def logits(network, x, rngs=None):
        return np.asarray(program(network, x, rngs))

    np.testing.assert_array_equal(logits(all_hidden, x), logits(quiet, x))
    hidden = logits(all_hidden, x, rngs)
    np.testing.assert_allclose(hidden[0], logits(quiet, x)[0], atol=1e-6)
    for other in ([1, 2, 0], [2, 2, 2]):  # nothing of the inputs is left, so nothing changes
        np.testing.assert_array_equal(hidden, logits(all_hidden, np.array(other, np.int32), rngs))
    assert np.abs(hidden - logits(quiet, x))[1:].max() > 1e-2
    half = np.zeros(1000, np.int32)
    network = language(word_dropout=0.25, length=1000)
    changed = np.abs(logits(network, half, rngs) - logits(network, half)).max(axis=1) > 1e-7
    assert changed[1:].any()
    assert not changed[0]


def test_sentence_vae_is_an_ordinary_autoencoder():
    """With a schedule of beta as for any other; its decoder sees the code."""
    model = autoencoder(
        nn.Sequential([recurrent.TextEncoder(SYMBOLS, 4, end=END), heads.Normal(2)]),
        language(end=END, word_dropout=0.5),
        Normal(np.zeros(2, np.float32), np.ones(2, np.float32)),
    )
    params = model.init(jax.random.key(0), STRINGS[0])
    loss = objectives.elbo(model, beta=lambda step: step / 10)

    @jax.jit
    def measured(key):
        both = jax.vmap(lambda z: model.decode(params, z).log_prob(STRINGS[0]))(np.stack([Z, -Z]))
        return loss(params, key, Batch(STRINGS[:2]), 5), both

    (value, metrics), (one, other) = measured(jax.random.key(1))
    expected = metrics["distortion"] + 0.5 * metrics["rate"]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert one != other


@pytest.mark.parametrize(
    "module", [recurrent.TextEncoder(3, 4), recurrent.Language(3, 4)], ids=["encoder", "language"]
)
def test_a_condition_forgotten_is_refused(module):
    x, key = np.array([0, 1], np.int32), jax.random.key(0)
    c, longer = np.ones(2, np.float32), np.ones(5, np.float32)
    params = jax.eval_shape(module.init, key, x, c)
    without = jax.eval_shape(module.init, key, x)
    for made, given, message in (
        (params, (), "c: got none, expected the condition"),
        (params, (longer,), r"c: got shapes .*\(5,\).* expected 2 numbers, as at init"),
        (without, (c,), r"c: got shapes .*\(2,\).* expected none, as at init"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(module.apply, made, x, *given)


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (np.zeros(0, np.int32), ValueError, r"got shape \(0,\)"),
        (np.zeros((2, 3), np.int32), ValueError, "map a batch"),
        (np.zeros(3, np.float32), TypeError, "expected integer symbols"),
    ],
)
def test_what_is_no_sequence_of_symbols_is_refused(x, kind, message):
    with pytest.raises(kind, match=message):
        recurrent.Language(SYMBOLS, 4).init(jax.random.key(0), x)
