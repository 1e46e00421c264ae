"""Learning from few labels: p(y) p(z|y) p(x|z, y) with q(y|x) q(z|x, y), every class enumerated.

    joint = semisupervised.Joint(model, classifier, py)    # model: p(x|z, c), c the one-hot class
    params = joint.init(key, x)
    loss = semisupervised.m2(joint, alpha=50.0)
    train.fit(loss, optimizer, params, Batch(x, y=y), ...)               # y: -1 where unknown
    semisupervised.log_likelihood(joint, params, key, x, particles=100)
    evaluate.mean_loss(semisupervised.m2(deterministic(joint), alpha=50.0), ...)  # dropout off

The classifier alone is trained and measured as a Model of labels: use `discriminative(classifier)`
with `stacked.classification` and `stacked.error_rate`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax import evaluate
from vaejax import model as models
from vaejax.batch import as_batch, batch_mean, labels_of, over_batch, size_of
from vaejax.distributions import Categorical, Delta, kl
from vaejax.errors import check_key, wrong
from vaejax.model import Draw, Model, check_model, compiled, draw, terms
from vaejax.networks import check_module
from vaejax.objectives import Schedule, schedule
from vaejax.train import shuffled
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, StepOrder, Transform


class Joint(NamedTuple):
    """A joint model of images and classes, and its inference networks.

    Args:
      model: p(z|c) p(x|z, c) and q(z|x, c), where c is the class as a one-hot row `[classes]`.
      classifier: q(y|x), any object with `.init(key, x) -> params` and
        `.apply(params, x, rngs=None) -> Categorical`, such as
        `nn.Sequential([networks.MLP((300,)), heads.Categorical((), 10)])`.
      py: p(y), a Categorical of one choice, which says how many classes there are:
        `Categorical(jnp.zeros(10))` is uniform.
    """

    model: Model
    classifier: Any
    py: Categorical

    def init(self, key: Key, x: Any) -> Params:
        """The parameters of both parts.

        Args:
          key: random key.
          x: one example.
        Returns:
          `{"model": ..., "classifier": ...}`.
        Raises:
          ValueError: for a classifier of other classes than p(y) has.
        """
        check_model("m2", self.model)
        check_module("m2: classifier", self.classifier)
        check_key("init", key)
        model_key, classifier_key = jax.random.split(key)
        parts = {
            "model": self.model.init(model_key, x, self.classes[0]),
            "classifier": jax.jit(self.classifier.init)(classifier_key, x),
        }
        logits = jax.eval_shape(lambda: self.classifier.apply(parts["classifier"], x).logits)
        if logits.shape != jnp.shape(self.py.logits):
            expected = f"{jnp.shape(self.py.logits)}, as p(y) has"
            fix = "end it with heads.Categorical((), classes)"
            raise wrong("Joint: the classifier's logits", logits.shape, expected, fix)
        return parts

    @property
    def classes(self) -> Array:
        """Every class as a condition: the one-hot rows `[classes, classes]`."""
        if jnp.ndim(self.py.logits) != 1:
            fix = "Categorical(jnp.zeros(10)) is uniform over ten classes"
            raise wrong("Joint: p(y)'s logits", jnp.shape(self.py.logits), "[classes]", fix)
        return jnp.eye(jnp.size(self.py.logits))


class Enumerated(NamedTuple):
    """What `log_likelihood` returns, for n examples.

    Args:
      log_px: log p(x), nats, `[n]`.
      log_pxy: log p(x, y) of every class, nats, `[n, classes]`.
    """

    log_px: np.ndarray
    log_pxy: np.ndarray


def m2(
    joint: Joint,
    *,
    alpha: Schedule,
    beta: Schedule = 1.0,
    rate: Callable[..., Array] = terms.rate,
    draw: Callable[..., Draw] = draw,
) -> Loss:
    """The semi-supervised bound and classification loss of M2, averaged over the batch, nats.

    With `E(x, y) = E_q[log p(x|z, y)] - KL(q(z|x, y) || p(z|y))`, one draw of z for each class (of
    the same noise for all),

    - labelled: `log p(x, y) >= L(x, y) = E(x, y) + log p(y)`;
    - unlabelled: `log p(x) >= U(x) = sum_y q(y|x) L(x, y) + H(q(y|x))`,
      computed as `E_q(y|x)[E(x, y)] - KL(q(y|x) || p(y))`.

    The loss is `1/n [sum_labelled (-L(x, y) - alpha log q(y|x)) - sum_unlabelled U(x)]`, the mean
    over **all** n examples of the batch (of their weights, where it has any), whatever share is
    labelled. So batches of any mixture average to the loss of the whole data set. The weight of
    Kingma et al., 0.1 n for a *mean* over the labelled, is `alpha = 0.1 n / labelled` here.

    Args:
      joint: the joint model.
      alpha: weight of the classification loss, a number or a schedule.
      beta: weight of KL(q(y|x) || p(y)) in the loss, a number or a schedule. 1 is the bound; above
        it, q(y|x) stays softer. The metric `elbo` is always at 1.
      rate: `terms.rate` or `terms.sampled_rate`.
      draw: how a Draw is made.
    Returns:
      the loss of batches with labels `batch.y`, -1 where unknown. A label that is no class makes
      the loss infinite, which `fit` reports. It raises ValueError for a batch without labels, or
      with conditions. Its metrics are `elbo` (the mean of L and U), `labelled` (the share),
      `rate_y` (that KL), `cross_entropy`, `error` and `alpha`. **All are means over all n**, of
      zeros where they do not apply, so that they average over batches: divide `cross_entropy` and
      `error` by `labelled` for those of the labelled examples.
    References:
      Kingma, Rezende, Mohamed and Welling, 2014, Semi-supervised learning with deep generative
      models, arXiv:1406.5298.
    """
    py = joint.py

    def example(params: Params, key: Key, x: Any, y: Array) -> tuple[Array, ...]:
        draw_key, classifier_key = jax.random.split(key)
        q = joint.classifier.apply(params["classifier"], x, rngs={"dropout": classifier_key})

        def elbo(c: Array) -> Array:
            d = draw(joint.model, params["model"], draw_key, x, c)
            return -terms.distortion(d) - rate(d)

        E = jax.vmap(elbo)(joint.classes)
        labelled = jnp.where(y == -1, 0, y)  # an index for where that branch is not taken
        L = E[labelled] + py.log_prob(labelled)
        R = jnp.where(y == -1, kl(q, py), 0.0)
        U = jnp.sum(q.mean * E) - R
        wrongly = (jnp.argmax(q.logits) != y).astype(float)
        return jnp.where(y == -1, U, L), R, -q.log_prob(labelled), wrongly

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        known = _labels("m2", batch) != -1
        values = over_batch(example, params, key, batch._replace(c=batch.y))
        *bounds, H, wrongly = values
        only = (jnp.where(known, v, 0.0) for v in (H, wrongly, jnp.ones(known.shape)))
        elbo, R, H, wrongly, share = batch_mean((*bounds, *only), batch.weight)
        weight = schedule(alpha, step)
        metrics = {"elbo": elbo, "labelled": share, "cross_entropy": H, "error": wrongly}
        value = weight * H - elbo + (schedule(beta, step) - 1) * R
        return value, {**metrics, "rate_y": R, "alpha": weight}

    return loss


class _Deterministic(NamedTuple):
    """A classifier that is given no keys for its layer noise."""

    classifier: Any

    def init(self, key: Key, x: Any) -> Params:
        return self.classifier.init(key, x)

    def apply(self, params: Params, x: Any, rngs: Any = None) -> Any:
        return self.classifier.apply(params, x)


def deterministic(joint: Joint) -> Joint:
    """The same joint model with dropout and other layer noise off, as evaluation wants it.

    Args:
      joint: the joint model.
    Returns:
      a joint model with the same parameters.
    """
    quiet = _Deterministic(joint.classifier)
    return joint._replace(model=models.deterministic(joint.model), classifier=quiet)


def labelled_ratio(y: Any, batch_size: int, *, labelled: int) -> StepOrder:
    """An order of steps in which every batch has the same number of labelled examples.

    Both the labelled and the others (y = -1) are visited in new random orders, each by itself, so
    that a few labels take part in every step.

    Args:
      y: the labels of the data, `[n]`, -1 where unknown.
      batch_size: examples in a batch.
      labelled: how many of them are labelled; these come first in the batch.
    Returns:
      `indices(key, step) -> [batch_size]`, for `train`.
    Raises:
      ValueError: where one of the kinds has no part of the batch, or too few examples to fill its
      part.
    """
    y = np.asarray(y)
    known, unknown = np.flatnonzero(y != -1), np.flatnonzero(y == -1)
    for name, found, count in (
        ("labelled", known, labelled),
        ("unlabelled", unknown, batch_size - labelled),
    ):
        if not 1 <= count <= len(found):
            fix = "change labelled or batch_size"
            raise wrong(f"labelled_ratio: {name}", count, f"1 to {len(found)}, as there are", fix)
    first, rest = shuffled(len(known), labelled), shuffled(len(unknown), batch_size - labelled)

    def indices(key: Key, step: Array) -> Array:
        one, other = (jax.random.fold_in(key, i) for i in range(2))  # the same key at every step
        chosen = jnp.asarray(known)[first(one, step)], jnp.asarray(unknown)[rest(other, step)]
        return jnp.concatenate(chosen)

    return indices


def discriminative(classifier: Any) -> Model:
    """A network q(y|x) as a Model of labels whose code is x itself, for the functions of `stacked`.

    `stacked.classification(discriminative(classifier))` trains it on the labels alone, and
    `stacked.error_rate` measures it. `params` are those of the network, the `"classifier"` of a
    `Joint`. There is no prior.

    Args:
      classifier: q(y|x), as in a `Joint`.
    Returns:
      the Model.
    """

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Delta:
        return Delta(x)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return classifier.apply(params, z, rngs={} if key is None else {"dropout": key})

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        return classifier.init(key, x)

    return Model(compiled(init), lambda params, c=(): None, encode, decode)


def log_likelihood(
    joint: Joint,
    params: Params,
    key: Key,
    data: Any,
    *,
    particles: int,
    transform: Transform | None = None,
    batch_size: int = 20,
    chunk: int = 50,
) -> Enumerated:
    """log p(x) = log sum_y p(y) p(x|y) of every example, with all classes enumerated.

    Each `log p(x|y)` is the estimate of `evaluate.log_likelihood` with `particles` draws from
    q(z|x, y), from the same noise for every class. The sum over classes is exact. The result is a
    lower bound in expectation. `log_pxy - log_px[:, None]` is the model's own log p(y|x), the
    classifier by Bayes' rule, beside q(y|x).

    It raises what `evaluate.log_likelihood` raises.

    Args:
      joint: the joint model.
      params: its parameters.
      key: random key.
      data: a Batch, or the x of one, `[n, ...]`; labels are not looked at.
      particles: number of draws for each example and class.
      transform: what is done to each stored example first, if anything.
      batch_size: examples at a time.
      chunk: particles at a time.
    Returns:
      `log_px` `[n]` and `log_pxy` `[n, classes]`, nats.
    """
    batch, log_pxy = as_batch(data), []
    for c, log_py in zip(joint.classes, jax.nn.log_softmax(joint.py.logits), strict=True):
        conditions = jnp.broadcast_to(c, (size_of(batch.x), *c.shape))
        found = evaluate.log_likelihood(
            joint.model,
            params["model"],
            jax.random.clone(key),
            batch._replace(c=conditions),
            particles=particles,
            transform=transform,
            batch_size=batch_size,
            chunk=chunk,
        )
        log_pxy.append(found.log_px + np.asarray(log_py))
    stacked = np.stack(log_pxy, axis=1)
    with np.errstate(invalid="ignore"):  # rows of weight 0 may be NaN
        return Enumerated(np.logaddexp.reduce(stacked, axis=1), stacked)


def _labels(function: str, batch: Batch) -> Array:
    """The labels `[batch]` of a batch that has nothing but x and them, or ValueError."""
    if jax.tree.leaves(batch.c):
        fix = "pass Batch(x, y=labels) with integers from 0, -1 where unknown"
        got = f"conditions {jax.tree.map(jnp.shape, batch.c)}"
        raise wrong(f"{function}: batch.c", got, "none, since c is the class", fix)
    return labels_of(f"{function}: batch.y", batch)


__all__ = [
    "Enumerated",
    "Joint",
    "deterministic",
    "discriminative",
    "labelled_ratio",
    "log_likelihood",
    "m2",
]
