"""Vector quantisation against brute force, enumeration, and moving averages by hand."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vaejax import evaluate, heads, networks, objectives, quantized, train
from vaejax.distributions import Bernoulli, Categorical, Delta, Normal
from vaejax.model import Model, autoencoder, generate, reconstruct
from vaejax.types import Batch

ENTRIES, SIZE, PLACES, SHAPE = 4, 3, (2, 1), (3, 2, 1)
GAMMA = 0.9


def plain(code=None):
    return autoencoder(
        nn.Sequential([networks.MLP(()), code or heads.Code((*PLACES, SIZE))]),
        nn.Sequential([networks.MLP(()), heads.Bernoulli(SHAPE)]),
    )


MODEL = quantized.quantize(plain(), entries=ENTRIES)
LOSS = quantized.vq_vae(MODEL, beta=0.5)


class Independent(nn.Module):
    """A prior of independent indices: the simplest network over a map of codes."""

    shape: tuple[int, ...] = PLACES
    classes: int = ENTRIES

    @nn.compact
    def __call__(self):
        shape = (*self.shape, self.classes)
        return Categorical(self.param("logits", nn.initializers.normal(1.0), shape))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).integers(2, size=(12, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def start(x):
    return MODEL.init(jax.random.key(2), x[0])


@pytest.fixture(scope="module")
def features(start, x):
    return np.asarray(jax.jit(jax.vmap(lambda one: MODEL.encode(start, one).features))(x))


@pytest.fixture(scope="module")
def params(start, features):
    """With a codebook near some of the encodings, so that its entries are used."""
    near = features.reshape(-1, SIZE)[[0, 5, 11, 17]]
    noise = 0.1 * np.random.default_rng(2).normal(size=near.shape)
    return {**start, "codebook": np.float32(near + noise)}


GRADIENT = jax.jit(jax.value_and_grad(LOSS, has_aux=True))


def nearest(features, codebook):
    """By all distances, in double precision."""
    apart = np.asarray(features, float)[..., None, :] - np.asarray(codebook, float)
    return (apart**2).sum(axis=-1).argmin(axis=-1)


def test_each_place_takes_the_nearest_entry_exactly(params, x, features):
    q = jax.jit(jax.vmap(partial(MODEL.encode, params)))(x)
    index = nearest(features, params["codebook"])
    assert len(np.unique(index)) > 1
    np.testing.assert_array_equal(q.index, index)
    np.testing.assert_array_equal(q.value, np.asarray(params["codebook"])[index])
    np.testing.assert_array_equal(quantized.indices(MODEL, params, jax.random.key(0), x), index)

    @jax.jit
    def of_one(x):
        q = MODEL.encode(params, x)
        log_q = q.log_prob(q.sample(jax.random.key(0)))
        return q, log_q, MODEL.decode(params, q.value).mean, reconstruct(MODEL, params, x)

    one, log_q, decoded, made = of_one(x[0])
    assert one.event_shape == (*PLACES, SIZE) and one.index.dtype == np.int32
    assert log_q == 0
    np.testing.assert_allclose(made, decoded, rtol=1e-6)


def test_the_loss_is_its_three_terms(params, x, features):
    (value, metrics), _ = GRADIENT(params, jax.random.key(3), Batch(x), 0)
    codebook = np.asarray(params["codebook"], float)
    index = nearest(features, codebook)
    px = jax.jit(jax.vmap(lambda z, x: MODEL.decode(params, z).log_prob(x)))
    distortion = -float(px(params["codebook"][index], x).mean())
    commitment = ((features - codebook[index]) ** 2).sum(axis=(1, 2, 3)).mean()
    means = {k: features[index == k].mean(axis=0) for k in np.unique(index)}
    term = 0.5 * sum(((codebook[k] - m) ** 2).sum() for k, m in means.items())
    share = np.bincount(index.ravel(), minlength=ENTRIES) / index.size
    entropy = -sum(s * np.log(s) for s in share if s > 0)
    expected = [distortion, commitment, term, np.exp(entropy)]
    names = ["distortion", "commitment", "codebook", "perplexity"]
    np.testing.assert_allclose([metrics[n] for n in names], expected, rtol=1e-5)
    np.testing.assert_allclose(value, distortion + 0.5 * commitment + term, rtol=1e-5)


def test_each_parameter_hears_of_its_own_terms_alone(params, x):
    """The encoder of distortion and commitment, the decoder of the distortion, the codebook of its
    own term; compared with losses that have nothing else in them.
    """
    key, batch = jax.random.key(3), Batch(x)
    _, found = GRADIENT(params, key, batch, 0)
    held = jax.lax.stop_gradient

    def both(part, codebook):
        of_model = LOSS({"model": part, "codebook": held(codebook)}, key, batch, 0)[1]
        of_codebook = LOSS({"model": held(part), "codebook": codebook}, key, batch, 0)[1]
        own = of_model["distortion"] + 0.5 * of_model["commitment"]
        return own + of_codebook["codebook"]  # each of these moves its own part alone

    own = jax.jit(jax.grad(both, argnums=(0, 1)))(params["model"], params["codebook"])
    own = {"model": own[0], "codebook": own[1]}
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert np.any(np.asarray(own["codebook"]) != 0)


def test_the_commitment_draws_the_encoder_to_its_entries_and_leaves_them(params, x, features):
    """Its gradient is that of the squared distance to entries that are numbers.

    Checked against a value that is the same while the gradient is stopped at z_e, which drives z_e
    away from its entry (straight through), or nowhere, which does nothing.
    """
    codebook = np.asarray(params["codebook"])
    entry = codebook[nearest(features, codebook)]

    def commitment(params):
        return LOSS(params, jax.random.key(3), Batch(x), 0)[1]["commitment"]

    def apart(params):
        z = jax.vmap(lambda one: MODEL.encode(params, one).features)(x)
        return jnp.sum((z - entry) ** 2) / len(x)

    found, expected = jax.jit(lambda p: (jax.grad(commitment)(p), jax.grad(apart)(p)))(params)
    close(found["model"], expected["model"], rtol=1e-4, atol=1e-6)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected["model"])) > 1e-2
    np.testing.assert_array_equal(found["codebook"], 0)


def test_a_codebook_s_term_of_one_s_own_does_not_move_the_encoder(params, x):
    """The features that it is given are numbers, whether it stops their gradient or not."""

    def unstopped(codebook, features, index, weight):
        return jnp.sum((features - codebook[index]) ** 2)

    @jax.jit
    def gradients(params):
        terms = unstopped, lambda *_: jnp.zeros(())
        losses = [quantized.vq_vae(MODEL, learn=learn) for learn in terms]
        both = [jax.grad(f, has_aux=True)(params, jax.random.key(3), Batch(x), 0) for f in losses]
        return [found for found, _ in both]

    with_term, without = gradients(params)
    close(with_term["model"], without["model"], rtol=1e-5, atol=1e-6)
    assert np.abs(with_term["codebook"]).max() > 1e-2


def test_a_step_of_plain_sgd_is_the_moving_average_of_each_entry(params, x, features):
    """e_k <- gamma e_k + (1 - gamma) mean of its codes, by numpy, for several steps; entries that
    no code chose stay to the last bit.
    """
    codebook = params["codebook"]
    far = np.concatenate([codebook[:-1], np.full((1, SIZE), 50.0, np.float32)])
    state = {**params, "codebook": far}
    optimizer = optax.partition(
        {"model": optax.set_to_zero(), "codebook": optax.sgd(1 - GAMMA)},
        {"model": "model", "codebook": "codebook"},
    )
    opt_state, expected = optimizer.init(state), far.astype(float)

    @jax.jit
    def moved(state, opt_state, grads):
        updates, opt_state = optimizer.update(grads, opt_state, state)
        return optax.apply_updates(state, updates), opt_state

    for step in range(3):
        index = nearest(features, expected)
        for k in np.unique(index):
            expected[k] = GAMMA * expected[k] + (1 - GAMMA) * features[index == k].mean(axis=0)
        _, grads = GRADIENT(state, jax.random.key(step), Batch(x), step)
        state, opt_state = moved(state, opt_state, grads)
    np.testing.assert_allclose(state["codebook"], expected, rtol=1e-5)
    np.testing.assert_array_equal(state["codebook"][-1], far[-1])
    assert np.abs(expected[:-1] - far[:-1]).max() > 0.05


def test_the_plain_codebook_loss_has_its_gradient(params, x, features):
    codebook = np.asarray(params["codebook"], float)
    index = nearest(features, codebook)
    rows, flat = features.reshape(len(x), -1, SIZE), index.reshape(len(x), -1)
    weight = np.ones(len(x), np.float32)
    gradient = jax.jit(jax.value_and_grad(quantized.codebook_loss))
    value, slope = gradient(params["codebook"], rows, flat, weight)
    apart = codebook[index] - features
    np.testing.assert_allclose(value, (apart**2).sum() / len(x), rtol=1e-5)
    expected = np.stack([2 * apart[index == k].sum(axis=0) / len(x) for k in range(ENTRIES)])
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


def summed_over_the_batch(codebook, features, index, weight):
    """The mistake: the codes' distances added up, over examples too."""
    return 0.5 * jnp.sum((codebook[index] - jax.lax.stop_gradient(features)) ** 2)


def close(one, other, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_a_tiled_batch_has_the_same_loss(params, x):
    key, four = jax.random.key(0), Batch(np.tile(x, (4, 1, 1, 1)))
    one = GRADIENT(params, key, Batch(x), 0)
    close(one, GRADIENT(params, jax.random.clone(key), four, 0), rtol=1e-4, atol=1e-5)


def test_a_codebook_s_term_does_not_grow_with_the_batch(params, features):
    """Checked against distances that are summed over the examples too."""
    index = nearest(features, params["codebook"])

    def check(term):
        def at(times):
            rows = np.tile(features, (times, 1, 1, 1)).reshape(12 * times, -1, SIZE)
            places = np.tile(index, (times, 1, 1)).reshape(12 * times, -1)
            weight = np.ones(12 * times, np.float32)
            return gradient(params["codebook"], rows, places, weight)

        gradient = jax.jit(jax.value_and_grad(term))
        close(at(1), at(4), rtol=1e-4, atol=1e-5)

    check(quantized.codebook_loss)
    check(quantized.moving_average)
    with pytest.raises(AssertionError):
        check(summed_over_the_batch)


def test_masked_examples_count_for_nothing(params, x):
    key, holes = jax.random.key(0), np.full_like(x[:3], np.nan)
    batch = Batch(np.concatenate([x, holes]), weight=np.float32(np.arange(15) < 12))
    masked = GRADIENT(params, key, batch, 0)
    without = GRADIENT(params, jax.random.clone(key), Batch(x), 0)
    close(masked, without, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def full(params, x):
    """The model with a prior over its codes, and its parameters."""
    model = quantized.with_prior(MODEL, Independent())
    prior = model.init(jax.random.key(5), x[0])["prior"]
    return model, {**params, "prior": prior}


def enumerated(params):
    """Every code: its entries `[codes, ...]`, and log p(code) by hand."""
    logits = np.asarray(params["prior"]["params"]["logits"], float)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    maps = np.array(list(product(range(ENTRIES), repeat=2))).reshape(-1, *PLACES)
    prior = np.array([sum(log_p[i, 0, k[i, 0]] for i in range(PLACES[0])) for k in maps])
    return params["codebook"][maps], prior


def test_the_prior_over_entries_is_that_of_their_indices(full):
    model, params = full
    values, expected = enumerated(params)
    pz = model.prior(params)
    events = np.concatenate([values, values[:1] + np.float32(1e-3)])
    *log_p, beside = np.asarray(jax.jit(jax.vmap(pz.log_prob))(events), float)
    np.testing.assert_allclose(log_p, expected, rtol=1e-5)
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-5)
    assert beside == -np.inf
    drawn = jax.jit(jax.vmap(pz.sample))(jax.random.split(jax.random.key(0), 4000))
    first = (np.asarray(drawn)[:, None] == values[None]).all(axis=(2, 3, 4))
    assert (first.sum(axis=1) == 1).all()
    error = np.sqrt(np.exp(expected) / 4000)
    assert (np.abs(first.mean(axis=0) - np.exp(expected)) < 5 * error).all()
    made = jax.jit(partial(generate, model, params))(jax.random.key(1))
    assert made.x.shape == SHAPE
    assert np.any(np.all(np.asarray(made.z)[None] == values, axis=(1, 2, 3)))
    with pytest.raises(ValueError, match=r"Entries.log_prob: x: got \(16, 2, 1, 3\)"):
        pz.log_prob(values)


def test_the_code_length_bounds_log_px(full, x):
    """-log p(code) + distortion against log p(x), summed over all codes."""
    model, params = full
    values, prior = enumerated(params)
    each = jax.vmap(lambda z, x: model.decode(params, z).log_prob(x), (0, None))
    decoded = np.asarray(jax.jit(jax.vmap(each, (None, 0)))(values, x), float)
    log_px = np.log(np.exp(decoded + prior).sum(axis=1))
    found = evaluate.elbo_terms(model, params, jax.random.key(0), x)
    index = np.asarray(quantized.indices(model, params, jax.random.key(0), x))
    place = (values[None] == params["codebook"][index][:, None]).all(axis=(2, 3, 4))
    np.testing.assert_allclose(found["rate"], -prior[place.argmax(axis=1)], rtol=1e-5)
    assert (found["elbo"] < log_px + 1e-5).all()
    assert (log_px - found["elbo"]).mean() > 0.1


def test_the_codebook_starts_at_different_encodings(params, x, features):
    program = jax.jit(lambda params, key: quantized.from_data(MODEL, params, key, x))
    start = program(params, jax.random.key(0))
    rows = features.reshape(-1, SIZE)
    apart = np.abs(np.asarray(start["codebook"])[:, None] - rows[None]).max(axis=2)
    assert (apart.min(axis=1) < 1e-6).all()
    assert len(np.unique(apart.argmin(axis=1))) == ENTRIES
    jax.tree.map(np.testing.assert_array_equal, start["model"], params["model"])


def test_dead_entries_revive_at_encodings_and_the_others_stay(params, x, features):
    far = params["codebook"].copy()
    far[1], far[3] = 40, -40
    state = state_of({**params, "codebook": far})
    hook = quantized.revive(MODEL, x, examples=8)
    revived = np.asarray(hook(state).params["codebook"])
    alive = np.isin(np.arange(ENTRIES), nearest(features, far))
    assert alive.sum() == 2 and not alive[1] and not alive[3]
    np.testing.assert_array_equal(revived[alive], far[alive])
    apart = np.abs(revived[~alive][:, None] - features.reshape(-1, SIZE)[None])
    assert (apart.max(axis=2).min(axis=1) < 1e-6).all()
    assert np.any(revived[1] != revived[3])
    np.testing.assert_array_equal(hook(state).params["codebook"], revived)
    rare = quantized.revive(MODEL, x, examples=8, share=0.99)(state).params["codebook"]
    assert (np.asarray(rare) != far).any(axis=1).all()


def state_of(params):
    return train.TrainState(params, (), jax.random.key(0), np.zeros((), np.int32))


def test_rows_of_weight_0_give_no_entries(params, x):
    masked = Batch(
        np.where(np.arange(12)[:, None, None, None] < 3, x, np.nan),
        weight=(np.arange(12) < 3).astype(np.float32),
    )
    start = jax.jit(lambda params, key: quantized.from_data(MODEL, params, key, masked))
    assert np.isfinite(start(params, jax.random.key(0))["codebook"]).all()
    state = state_of({**params, "codebook": params["codebook"] + 40})
    revived = np.asarray(quantized.revive(MODEL, masked)(state).params["codebook"])
    assert np.isfinite(revived).all() and (np.abs(revived).max(axis=1) < 30).sum() == ENTRIES - 1
    one = masked._replace(weight=np.eye(12)[0])
    with pytest.raises(ValueError, match="a codebook of 4 entries for 2 codes"):
        quantized.from_data(MODEL, params, jax.random.key(0), one)


def fitted(x):
    params = quantized.from_data(MODEL, MODEL.init(jax.random.key(0), x[0]), jax.random.key(1), x)
    optimizer = optax.partition(
        {"model": optax.adam(1e-2), "codebook": optax.sgd(1 - GAMMA)},
        {"model": "model", "codebook": "codebook"},
    )
    return train.fit(
        LOSS,
        optimizer,
        params,
        x,
        key=jax.random.key(2),
        epochs=60,
        batch_size=6,
        progress=False,
        hook=quantized.revive(MODEL, x),
    )


@pytest.mark.statistics
def test_training_in_two_stages(x):
    first = fitted(x)
    assert first.history["distortion"][-1] < 0.8 * first.history["distortion"][0]
    maps = quantized.indices(MODEL, first.params, jax.random.key(3), x)
    network = Independent()
    second = train.fit(
        objectives.maximum_likelihood(network),
        optax.adam(0.1),
        network.init(jax.random.key(4)),
        maps,
        key=jax.random.key(5),
        epochs=80,
        batch_size=12,
        progress=False,
    )
    share = np.stack([np.bincount(np.asarray(maps)[:, i, 0], minlength=ENTRIES) for i in (0, 1)])
    entropy = -sum(s * np.log(s) for s in (share / len(x)).ravel() if s > 0)
    assert -second.history["log_px"][-1] == pytest.approx(entropy, abs=0.05)
    full = quantized.with_prior(MODEL, network)
    params = {**first.params, "prior": second.params}
    bound = evaluate.log_likelihood(full, params, jax.random.key(6), x, particles=1)
    parts = evaluate.elbo_terms(full, params, jax.random.key(7), x)
    np.testing.assert_allclose(bound.log_px, parts["elbo"], rtol=1e-5)


@pytest.mark.parametrize(
    "code, message",
    [
        (heads.Normal((2, SIZE)), r"quantize: the encoder: got Normal over \(2, 3\), expected a D"),
        (heads.Code(()), r"quantize: the encoder: got Delta over \(\)"),
    ],
)
def test_encoders_that_give_no_vectors_are_refused(code, message, x):
    with pytest.raises(TypeError, match=message):
        quantized.quantize(plain(code), entries=2).init(jax.random.key(0), x[0])


def test_bad_codebooks_are_refused(params, x):
    with pytest.raises(ValueError, match="quantize: entries: got 1, expected 2 or more"):
        quantized.quantize(plain(), entries=1)
    with pytest.raises(ValueError, match=r"params\['codebook'\]: got \(4, 2\), expected \(4, 3\)"):
        jax.eval_shape(MODEL.encode, {**params, "codebook": np.ones((4, 2), np.float32)}, x[0])
    large = quantized.quantize(plain(), entries=25)
    many = {**params, "codebook": np.ones((25, SIZE), np.float32)}
    message = "from_data: data: got a codebook of 25 entries for 24 codes, expected no more"
    with pytest.raises(ValueError, match=message):
        quantized.from_data(large, many, jax.random.key(0), x)
    spoilt = np.array(x)
    spoilt[2] = np.inf
    with pytest.raises(ValueError, match="indices: the encoder's output is nan for example 2"):
        quantized.indices(MODEL, params, jax.random.key(1), spoilt)
    with pytest.raises(ValueError, match="from_data: the encoder's output is nan for example"):
        quantized.from_data(MODEL, params, jax.random.key(2), spoilt)
    with pytest.raises(TypeError, match="usage: index: got float64, expected codes, whole numbers"):
        quantized.usage([0.0, 2.5], 3)
    with pytest.raises(ValueError, match="revive: data: got a codebook of 25 entries for 24 codes"):
        quantized.revive(large, x)(state_of(many))
    with pytest.raises(ValueError, match=r"revive: share: got 1.0, expected a share in \[0, 1\)"):
        quantized.revive(MODEL, x, share=1.0)
    with pytest.raises(TypeError, match=r"vq_vae: q\(z\|x\): got Delta, expected VectorQuantized"):
        loss = quantized.vq_vae(plain())
        jax.eval_shape(loss, params["model"], jax.random.key(0), Batch(x), 0)


class Other(nn.Module):
    """A prior of whatever distribution."""

    p: object

    @nn.compact
    def __call__(self):
        self.param("unused", nn.initializers.zeros, ())
        return self.p


@pytest.mark.parametrize(
    "network, error, message",
    [
        (Independent((1, 2)), ValueError, r"with_prior: network: got shape \(1, 2\), expected"),
        (Independent(classes=5), ValueError, "got another number of classes, expected 4"),
        (Independent(classes=3), ValueError, "got another number of classes, expected 4"),
        (Other(Normal(jnp.zeros(PLACES), 1.0)), TypeError, "with_prior: network: got Normal"),
    ],
)
def test_priors_over_something_else_are_refused(network, error, message, x):
    with pytest.raises(error, match=message):
        quantized.with_prior(MODEL, network).init(jax.random.key(0), x[0])


def test_one_code_for_the_whole_example_and_a_condition():
    """A code without a map, by hand: z_e = c - x, entries -1, 0 and 1, p(x|z) by the entry."""
    plain = Model(
        lambda key, x, c: {"scale": jnp.ones(())},
        lambda params, c=(): None,
        lambda params, x, c, *, key=None: Delta(params["scale"] * (c - x)),
        lambda params, z, c, *, key=None: Bernoulli(z + c),
    )
    model = quantized.quantize(plain, entries=3)
    x, c = np.zeros((4, 1), np.float32), np.full((4, 1), 0.8, np.float32)
    params = model.init(jax.random.key(0), x[0], c[0])
    params["codebook"] = np.float32([[-1], [0], [1]])
    q = jax.jit(model.encode)(params, x[0], c[0])
    assert (q.index.shape, int(q.index)) == ((), 2)
    np.testing.assert_array_equal(q.value, [1.0])
    batch = Batch(x, c)
    value, metrics = jax.jit(quantized.vq_vae(model))(params, jax.random.key(1), batch, 0)
    assert metrics["commitment"] == pytest.approx(0.04, rel=1e-4)
    assert value == pytest.approx(np.log1p(np.exp(1.8)) + 0.25 * 0.04 + 0.5 * 0.04, rel=1e-5)


def test_single_precision_is_no_warning_where_doubles_are_on(x64):
    """Traced alone; a warning would be an error."""
    arrays = jnp.ones((3, 2), jnp.float32), jnp.ones((4, 1, 2), jnp.float32)
    index, weight = jnp.zeros((4, 1), jnp.int32), jnp.ones(4)
    assert weight.dtype == jnp.float64
    assert jax.eval_shape(quantized.moving_average, *arrays, index, weight).shape == ()
