"""M2 against sums over classes written out, and against a model whose posteriors are exact."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import special, stats

from vaejax import evaluate, heads, networks, semisupervised, stacked, terms, train
from vaejax.distributions import Categorical, MultivariateNormal, Normal
from vaejax.model import Draw, Model, autoencoder
from vaejax.types import Batch

RNG = np.random.default_rng(0)
D, LATENT, CLASSES, S = 4, 2, 3, 0.6
X = RNG.normal(size=(6, D))
Y = np.array([0, -1, 2, -1, 1, -1])
PY = np.array([0.2, -0.5, 0.9])
ALPHA = 3.0


def gaussian_classes(shift: float = 0.0, widen: float = 1.0):
    """`z|y ~ N(A y, I)`, `x|z, y ~ N(W z, s^2 I)`, with q(z|x, y) exact or shifted and widened."""
    shapes = {"A": (LATENT, CLASSES), "W": (D, LATENT)}
    rng = np.random.default_rng(1)
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}

    def prior(params, c=()):
        return Normal(params["A"] @ c, jnp.ones(LATENT))

    def encode(params, x, c=(), *, key=None):
        W = params["W"]
        covariance = jnp.linalg.inv(jnp.eye(LATENT) + W.T @ W / S**2)
        loc = covariance @ (params["A"] @ c + W.T @ x / S**2)
        return MultivariateNormal(loc + shift, widen * jnp.linalg.cholesky(covariance))

    def decode(params, z, c=(), *, key=None):
        return Normal(params["W"] @ z, jnp.asarray(S))

    return Model(lambda key, x, c=(): params, prior, encode, decode), params


def exact_log_pxy(params, x):
    """log p(x, y) = log p(y) + log N(x; W A y, W W^T + s^2 I), `[n, classes]`, nats."""
    A, W = np.asarray(params["A"]), np.asarray(params["W"])
    covariance = W @ W.T + S**2 * np.eye(D)
    means, log_py = (W @ A).T, special.log_softmax(PY)
    return np.stack(
        [
            log_py[k] + stats.multivariate_normal(means[k], covariance).logpdf(x)
            for k in range(CLASSES)
        ],
        axis=1,
    )


class Linear(NamedTuple):
    """A hand-written q(y|x): `init` and `apply` are all that is asked of one."""

    def init(self, key, x):
        return {"V": jax.random.normal(key, (CLASSES, D))}

    def apply(self, params, x, rngs=None):
        return Categorical(params["V"] @ x)


class Exact(NamedTuple):
    """p(y|x) of `gaussian_classes`, from its parameters."""

    def init(self, key, x):
        return gaussian_classes()[1]

    def apply(self, params, x, rngs=None):
        A, W = params["A"], params["W"]
        precision = jnp.linalg.inv(W @ W.T + S**2 * jnp.eye(D))
        residual = x[:, None] - W @ A
        fits = -0.5 * jnp.sum(residual * (precision @ residual), axis=0)
        return Categorical(jax.nn.log_softmax(jnp.asarray(PY)) + fits)


def at_the_mean(model, params, key, x, c=()):
    """A draw without noise, so that another code path can follow it."""
    q = model.encode(params, x, c)
    z = q.mean
    return Draw(x, z, q.log_prob(z), q, model.prior(params, c), model.decode(params, z, c))


def poor():
    """A joint model with a poor q(z|x, y) and a q(y|x) of its own, and parameters."""
    model, own = gaussian_classes(shift=0.3, widen=1.5)
    joint = semisupervised.Joint(model, Linear(), Categorical(jnp.asarray(PY)))
    V = np.random.default_rng(5).normal(size=(CLASSES, D))
    return joint, {"model": own, "classifier": {"V": V}}


def by_hand(joint, params, x, y, alpha):
    """The loss of one example by loops over classes and dimensions, nothing mapped."""
    own, V = params["model"], params["classifier"]["V"]
    scores = [sum(V[k, i] * x[i] for i in range(D)) for k in range(CLASSES)]
    log_q = [s - jnp.log(sum(jnp.exp(t) for t in scores)) for s in scores]
    log_py = [p - np.log(sum(np.exp(PY))) for p in PY]
    L = []
    for k in range(CLASSES):
        c = jnp.eye(CLASSES)[k]
        q = joint.model.encode(own, x, c)
        z, root, m = q.loc, q.scale_tril, own["A"][:, k]
        log_px = sum(
            -0.5 * ((x[i] - own["W"][i] @ z) / S) ** 2 - np.log(S * np.sqrt(2 * np.pi))
            for i in range(D)
        )
        kl = sum(
            0.5 * (root[i] @ root[i] + (z[i] - m[i]) ** 2 - 1) - jnp.log(root[i, i])
            for i in range(LATENT)
        )
        L.append(log_px - kl + log_py[k])
    if y >= 0:
        return -L[y] - alpha * log_q[y]
    return -sum(jnp.exp(log_q[k]) * (L[k] - log_q[k]) for k in range(CLASSES))


def test_the_bound_is_the_sum_over_classes_written_out(x64):
    """Value and gradient, of labelled and unlabelled examples.

    Checked against leaving out H(q(y|x)), leaving out log p(y), and holding q(y|x) fixed.
    """
    joint, params = poor()
    batch = Batch(X[:2], y=Y[:2])  # one of each kind

    def library(params, joint=joint):
        loss = semisupervised.m2(joint, alpha=ALPHA, draw=at_the_mean)
        return loss(params, jax.random.key(0), batch, 0)[0]

    def without_entropy(params):
        qs = jax.vmap(lambda x: joint.classifier.apply(params["classifier"], x))(batch.x)
        entropy = -jnp.sum(qs.mean * jnp.log(qs.mean), axis=1)
        return library(params) + jnp.mean(jnp.where(batch.y == -1, entropy, 0))

    def without_py(params):
        return library(params, joint._replace(py=Categorical(jnp.zeros(CLASSES))))

    def held(params):
        return library({**params, "classifier": jax.lax.stop_gradient(params["classifier"])})

    def written_out(params):
        # One of two is labelled, so that its classification loss counts as 1, not as 1/2.
        return sum(by_hand(joint, params, X[i], Y[i], 2 * ALPHA) for i in range(2)) / 2

    @jax.jit
    def gradients(params):  # one program, in which what they share is compiled once
        losses = (written_out, library, without_entropy, without_py, held)
        return [jax.value_and_grad(loss)(params) for loss in losses]

    expected, found, *mistaken = gradients(params)

    def check(found):
        for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9, rtol=0)

    check(found)
    for other in mistaken:
        with pytest.raises(AssertionError):
            check(other)


def test_with_exact_posteriors_every_draw_of_the_bound_is_log_p(x64):
    model, own = gaussian_classes()
    joint = semisupervised.Joint(model, Exact(), Categorical(jnp.asarray(PY)))
    params = {"model": own, "classifier": own}
    loss = jax.jit(semisupervised.m2(joint, alpha=0.0, rate=terms.sampled_rate))
    exact = exact_log_pxy(own, X)
    for i, seed in itertools.product(range(3), range(2)):
        for y, expected in ((-1, special.logsumexp(exact[i])), (i, exact[i, i])):
            batch = Batch(X[i : i + 1], y=np.array([y]))
            found = loss(params, jax.random.key(seed), batch, 0)[1]["elbo"]
            assert float(found) == pytest.approx(expected, abs=1e-9)


def test_beta_weighs_the_rate_of_the_classes_alone(x64):
    joint, params = poor()
    batch = Batch(X, y=Y)
    loss = semisupervised.m2(joint, alpha=ALPHA, beta=3.0, draw=at_the_mean)
    value, metrics = jax.jit(loss)(params, jax.random.key(0), batch, 0)
    V = np.asarray(params["classifier"]["V"])
    q, py = special.softmax(X @ V.T, axis=1), special.softmax(PY)
    rate = np.where(Y == -1, np.sum(q * np.log(q / py), axis=1), 0).mean()
    assert float(metrics["rate_y"]) * np.mean(Y == -1) == pytest.approx(rate, abs=1e-9)
    bound = ALPHA * float(metrics["cross_entropy"]) - float(metrics["elbo"])
    assert float(value) == pytest.approx(bound + 2 * rate, abs=1e-9)


class Written(NamedTuple):
    """What the loss of any batch is made of, by numpy: each example's bound and -log q(y|x)."""

    bounds: np.ndarray
    nats: np.ndarray

    def loss(self, chosen, y, weight=None):
        """mean of -bound over all, and ALPHA times the mean of -log q(y|x) over the labelled."""
        weight = np.ones(len(chosen)) if weight is None else weight
        known = weight * (y[chosen] != -1)
        value = -np.average(self.bounds[chosen], weights=weight)
        some = known.any()
        return value + (ALPHA * np.average(self.nats[chosen], weights=known) if some else 0.0)


def loss_of(joint, params, **options):
    """The loss of the examples chosen, with labels y: `(chosen, y, weight) -> (value, metrics)`."""
    program = jax.jit(semisupervised.m2(joint, alpha=ALPHA, draw=at_the_mean, **options))

    def loss(chosen, y, weight=()):
        batch = Batch(X[chosen], y=y[chosen], weight=weight)
        value, metrics = program(params, jax.random.key(0), batch, 0)
        return float(value), metrics

    return loss


def written(loss, params, y):
    """`Written`, with the bounds from batches of one example and its copies."""
    logits = X @ np.asarray(params["classifier"]["V"]).T
    nats = -special.log_softmax(logits, axis=1)[np.arange(len(X)), np.maximum(y, 0)]
    bounds = np.array([float(loss([i] * 4, y)[1]["elbo"]) for i in range(len(X))])
    return Written(bounds, nats)


def test_alpha_weighs_the_mean_over_the_labelled_whatever_their_share(x64):
    """Checked against a mean over all of what the labelled alone have."""
    joint, params = poor()
    loss = loss_of(joint, params)
    by_numpy = written(loss, params, Y)
    mixtures = [[0, 1, 2, 3], [0, 0, 2, 4], [1, 3, 5, 5], [0, 1, 3, 5]]

    def check(value_of):
        for chosen in mixtures:
            assert value_of(chosen) == pytest.approx(by_numpy.loss(chosen, Y), abs=1e-9)

    check(lambda chosen: loss(chosen, Y)[0])
    for chosen in mixtures:
        assert float(loss(chosen, Y)[1]["labelled"]) == pytest.approx(np.mean(Y[chosen] != -1))

    def over_all(chosen):
        known = np.mean(Y[chosen] != -1)
        spread = by_numpy._replace(nats=by_numpy.nats * known)
        return spread.loss(chosen, Y)

    with pytest.raises(AssertionError):
        check(over_all)


def test_told_the_shares_batches_average_to_the_loss_of_the_data(x64):
    """Of every partition into batches some of which have no label, and of a fixed ratio.

    Checked against the loss that is told nothing.
    """
    joint, params = poor()
    y = np.array([0, 1, -1, -1, -1, -1])
    plain = loss_of(joint, params)
    whole = written(plain, params, y).loss(np.arange(6), y)

    def mean(loss, batches):
        return np.mean([loss(chosen, y)[0] for chosen in batches])

    shuffled, ratio = [[0, 1, 2], [3, 4, 5]], [[0, 2, 3], [1, 4, 5]]
    told = loss_of(joint, params, labelled=1 / 3)
    assert mean(told, shuffled) == pytest.approx(whole, abs=1e-9)
    assert mean(told, [np.arange(6)]) == pytest.approx(whole, abs=1e-9)
    assert mean(plain, shuffled) != pytest.approx(whole, abs=1e-2)
    more = [[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 5]]  # two of three are labelled
    told = loss_of(joint, params, labelled=1 / 3, drawn=2 / 3)
    assert mean(told, more) == pytest.approx(whole, abs=1e-9)
    assert mean(plain, more) != pytest.approx(whole, abs=1e-2)
    assert mean(plain, ratio) == pytest.approx(whole, abs=1e-9)  # the ratio of the data


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"labelled": 0.0}, "m2: labelled: got 0.0, expected a share inside"),
        ({"labelled": 0.1, "drawn": 20}, "m2: drawn: got 20, expected a share inside"),
        ({"drawn": 0.5}, "m2: drawn: got 0.5 alone, expected both shares or none"),
    ],
)
def test_shares_that_are_none(shares, message):
    with pytest.raises(ValueError, match=message):
        semisupervised.m2(poor()[0], alpha=0.1, **shares)


def test_the_metrics_of_the_labelled_average_over_batches_of_any_mixture(x64):
    joint, params = poor()
    loss = semisupervised.m2(joint, alpha=ALPHA, draw=at_the_mean)
    y = np.array([0, 1, 2, -1, -1, -1])  # the second batch of three has no label
    for size in (6, 3):
        found = evaluate.mean_loss(loss, params, jax.random.key(0), Batch(X, y=y), batch_size=size)
        logits = X @ np.asarray(params["classifier"]["V"]).T
        wrongly = logits[:3].argmax(axis=1) != y[:3]
        assert 0 < wrongly.mean() < 1 and wrongly.mean() != 0.5
        assert found["error"] == pytest.approx(wrongly.mean())
        cross_entropy = -special.log_softmax(logits, axis=1)[np.arange(3), y[:3]].mean()
        assert found["cross_entropy"] == pytest.approx(cross_entropy)
    unlabelled = Batch(X, y=np.full(6, -1))
    found = evaluate.mean_loss(loss, params, jax.random.key(0), unlabelled, batch_size=6)
    assert np.isnan(found["error"]) and np.isfinite(found["loss"])


def test_weights_count_examples_and_masked_ones_leave_no_trace(x64):
    joint, params = poor()
    loss = jax.jit(
        jax.value_and_grad(semisupervised.m2(joint, alpha=ALPHA, draw=at_the_mean), has_aux=True)
    )
    x = np.concatenate([X[:3], np.full((1, D), np.nan)])
    key, y = jax.random.key(0), np.array([0, -1, 2, 1])
    weight = np.array([2.0, 1.0, 1.0, 0.0])
    weighed = loss(params, key, Batch(x, y=y, weight=weight), 0)
    repeated = loss(params, jax.random.clone(key), Batch(x[[0, 0, 1, 2]], y=y[[0, 0, 1, 2]]), 0)
    for one, other in zip(*map(jax.tree.leaves, (weighed, repeated)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9, rtol=0)


def enumerated(posterior, data, particles):
    """`log_likelihood` of the model with that posterior, and the truth."""
    model, own = gaussian_classes(*posterior)
    joint = semisupervised.Joint(model, Linear(), Categorical(PY))
    found = semisupervised.log_likelihood(
        joint, {"model": own}, jax.random.key(0), data, particles=particles, chunk=particles
    )
    return found, exact_log_pxy(own, X)


def test_log_px_by_enumeration_is_exact_where_the_posterior_is(x64):
    found, exact = enumerated((), X, 2)
    np.testing.assert_allclose(found.log_pxy, exact, atol=1e-9, rtol=0)
    np.testing.assert_allclose(found.log_px, special.logsumexp(exact, axis=1), atol=1e-9)
    masked = Batch(np.where(np.arange(6)[:, None] == 5, np.nan, X), weight=np.arange(6) < 5)
    counted, _ = enumerated((), masked, 2)
    np.testing.assert_allclose(counted.log_px[:5], found.log_px[:5])


@pytest.mark.statistics
def test_log_px_by_enumeration_under_a_poor_posterior(x64):
    found, exact = enumerated((0.3, 1.5), X, 500)
    tolerance = 0.15  # sd of log w about 1, over sqrt(500)
    np.testing.assert_allclose(found.log_pxy, exact, atol=tolerance, rtol=0)
    np.testing.assert_allclose(found.log_px, special.logsumexp(exact, axis=1), atol=tolerance)
    masked = Batch(np.where(np.arange(6)[:, None] == 5, np.nan, X), weight=np.arange(6) < 5)
    counted, _ = enumerated((0.3, 1.5), masked, 500)  # the draws of the others are the same
    np.testing.assert_allclose(counted.log_px[:5], found.log_px[:5])


@pytest.fixture(scope="module")
def images():
    """A joint model of 2x2 images by Linen modules, with parameters."""
    shape = (2, 2, 1)
    model = autoencoder(
        nn.Sequential([networks.MLP(()), heads.Normal(2)]),
        nn.Sequential([networks.MLP(()), heads.Bernoulli(shape)]),
        Normal(np.zeros(2, np.float32), np.ones(2, np.float32)),
    )
    layers = networks.MLP((8,), dropout=0.5)
    classifier = nn.Sequential([layers, heads.Categorical((), CLASSES)])
    joint = semisupervised.Joint(model, classifier, Categorical(np.zeros(CLASSES, np.float32)))
    x = RNG.random((12, *shape)).astype(np.float32)
    return joint, joint.init(jax.random.key(0), x[0]), x, np.arange(12) % CLASSES


@pytest.fixture(scope="module")
def logits(images):
    """The classifier's logits, without dropout."""
    joint, params, x, _ = images
    apply = jax.jit(jax.vmap(joint.classifier.apply, (None, 0)))
    return np.asarray(apply(params["classifier"], x).logits)


def test_the_classifier_alone_is_a_model_of_labels(images, logits):
    joint, params, x, y = images
    model = semisupervised.discriminative(joint.classifier)
    own = params["classifier"]
    wrongly = np.mean(np.argmax(logits, axis=1) != y)
    found = stacked.error_rate(model, own, jax.random.key(0), Batch(x, y=y))
    assert found == pytest.approx(wrongly)
    start = jax.eval_shape(model.init, jax.random.key(1), x[0])
    assert jax.tree.map(np.shape, start) == jax.tree.map(np.shape, own)
    decode = jax.jit(lambda key: model.decode(own, x[0], key=key).logits)
    noisy, quiet = decode(jax.random.key(2)), decode(None)
    np.testing.assert_allclose(quiet, logits[0], rtol=1e-6)
    assert not np.allclose(noisy, quiet)


def test_layer_noise_is_off_in_a_deterministic_joint_model(images, logits):
    joint, params, x, y = images
    quiet = semisupervised.m2(semisupervised.deterministic(joint), alpha=1.0)
    batch = Batch(x, y=np.full_like(y, -1))
    found = evaluate.mean_loss(quiet, params, jax.random.key(0), batch)["rate_y"]
    log_q = special.log_softmax(logits.astype(float), axis=1)
    rate = (np.exp(log_q) * (log_q + np.log(CLASSES))).sum(axis=1).mean()
    assert found == pytest.approx(rate, rel=1e-3)


def test_labelled_ratio_visits_all_of_both_kinds():
    y = np.full(30, -1)
    known = np.array([3, 4, 11, 17, 25, 29])
    y[known] = 1
    indices = semisupervised.labelled_ratio(y, 8, labelled=2)
    drawn = np.asarray(jax.jit(jax.vmap(indices, (None, 0)))(jax.random.key(0), np.arange(12)))
    assert drawn.shape == (12, 8)
    for start in range(0, 12, 3):  # three steps are an epoch of the labelled, four of the others
        assert sorted(drawn[start : start + 3, :2].ravel()) == known.tolist()
    for start in range(0, 12, 4):
        rest = np.flatnonzero(y == -1)
        assert sorted(drawn[start : start + 4, 2:].ravel()) == rest.tolist()
    assert (drawn[0, :2] != drawn[3, :2]).any() or (drawn[1, :2] != drawn[4, :2]).any()
    with pytest.raises(ValueError, match="labelled_ratio: labelled: got 7, expected 1 to 6"):
        semisupervised.labelled_ratio(y, 8, labelled=7)
    with pytest.raises(ValueError, match="labelled_ratio: unlabelled: got 0, expected 1 to 24"):
        semisupervised.labelled_ratio(y, 2, labelled=2)


def test_fit_takes_the_examples_that_indices_choose():
    def loss(params, key, batch, step):
        return jnp.sum(params**2) + 0 * step, {"x": jnp.mean(batch.x), "y": jnp.mean(batch.y)}

    data = Batch(np.arange(10.0, dtype=np.float32), y=np.arange(10))
    fitted = train.fit(
        loss,
        optax.sgd(0.1),
        jnp.ones(1),
        data,
        key=jax.random.key(0),
        epochs=2,
        batch_size=5,
        indices=lambda key, step: jnp.array([7, 8, 9, 8, 8]),
        progress=False,
    )
    np.testing.assert_array_equal(fitted.history["x"], [8, 8])
    np.testing.assert_array_equal(fitted.history["y"], [8, 8])
    assert int(fitted.state.step) == 4


def test_labels_that_are_none(images):
    joint, params, x, y = images
    loss = semisupervised.m2(joint, alpha=1.0)
    key = jax.random.key(0)
    for batch, message in (
        (Batch(x), "m2: batch.y: got no labels"),
        (Batch(x, y=y.astype(float)), "expected one integer per example"),
        (Batch(x, y=np.eye(3, dtype=int)[y]), r"one-hot rows: y\.argmax\(axis=1\)"),
        (Batch(x, y=y[:3]), "expected one integer per example"),
        (Batch(x, c=np.eye(3)[y], y=y), r"m2: batch.c: got conditions \(12, 3\), expected none"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(loss, params, key, batch, 0)
    loss = jax.jit(loss)
    values = [loss(params, key, Batch(x, y=labels), 0)[0] for labels in (y, np.where(y == 2, 3, y))]
    np.testing.assert_array_equal(np.isfinite(values), [True, False])


@pytest.mark.statistics
def test_training_reports_labels_outside_the_classes(images):
    joint, params, x, y = images
    loss = semisupervised.m2(joint, alpha=1.0)
    outside = np.where(y == 2, 3, y)
    with pytest.raises(train.NonFiniteError, match="labels are from 0 to classes - 1"):
        train.fit(
            loss,
            optax.sgd(0.1),
            params,
            Batch(x, y=outside),
            key=jax.random.key(0),
            epochs=1,
            batch_size=12,
            progress=False,
        )


def test_classes_that_do_not_agree(images):
    joint, _, x, _ = images
    keys = jax.random.split(jax.random.key(0))
    with pytest.raises(ValueError, match=r"logits: got \(3,\), expected \(4,\), as p\(y\) has"):
        jax.eval_shape(joint._replace(py=Categorical(np.zeros(4))).init, keys[0], x[0])
    with pytest.raises(ValueError, match=r"Joint: p\(y\)'s logits: got \(\)"):
        jax.eval_shape(joint._replace(py=Categorical(np.zeros(()))).init, keys[1], x[0])
