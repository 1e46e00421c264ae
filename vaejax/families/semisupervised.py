"""Learning from few labels: p(y) p(z|y) p(x|z, y) with q(y|x) q(z|x, y), every class enumerated.

    joint = semisupervised.Joint(model, classifier, py)    # model: p(x|z, c), c the one-hot class
    params = joint.init(key, x)
    loss = semisupervised.m2(joint, alpha=0.1)
    indices = semisupervised.labelled_ratio(y, 100, labelled=10)         # y: -1 where unknown
    train.fit(loss, optimizer, params, Batch(x, y=y), indices=indices, batch_size=100, ...)
    semisupervised.log_likelihood(joint, params, key, x, particles=100)
    evaluate.mean_loss(semisupervised.m2(deterministic(joint), alpha=0.1), ...)  # dropout off

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
from vaejax.batch import batch_mean, labels_of, mean_over, over_batch, size_of
from vaejax.distributions import Categorical, Delta, kl
from vaejax.errors import check_key, concrete, wrong
from vaejax.model import Draw, Model, check_model, compiled, draw, terms
from vaejax.networks import check_module, entering, functional
from vaejax.objectives import Schedule, schedule
from vaejax.train import shuffled
from vaejax.types import (
    Array,
    Batch,
    Key,
    Loss,
    Metrics,
    Params,
    StepOrder,
    Transform,
    describe_fields,
)


@entering("m2", "classifier")
class Joint(NamedTuple):
    """A joint model of images and classes, and its inference networks.

    Args:
      model: p(z|c) p(x|z, c) and q(z|x, c), where c is the class as a one-hot row `[classes]`.
      classifier: q(y|x), any object with `.init(key, x) -> params` and
        `.apply(params, x, rngs=None) -> Categorical`, such as
        `networks.sequential(networks.MLP((300,)), heads.Categorical((), 10))`.
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


@describe_fields
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
    labelled: float | None = None,
    drawn: float | None = None,
    rate: Callable[..., Array] = terms.rate,
    draw: Callable[..., Draw] = draw,
) -> Loss:
    """The semi-supervised bound and classification loss of M2, nats per example.

    With `E(x, y) = E_q[log p(x|z, y)] - KL(q(z|x, y) || p(z|y))`, one draw of z for each class (of
    the same noise for all),

    - labelled: `log p(x, y) >= L(x, y) = E(x, y) + log p(y)`;
    - unlabelled: `log p(x) >= U(x) = sum_y q(y|x) L(x, y) + H(q(y|x))`,
      computed as `E_q(y|x)[E(x, y)] - KL(q(y|x) || p(y))`.

    The loss is `- mean_all[L or U] - alpha mean_labelled[log q(y|x)]`. Both are means over examples
    (over their weights, where there are any): the first over all, the second over the **labelled**
    ones. So alpha is the weight of Kingma et al. over n, which they recommend to be 0.1, whatever
    share is labelled.

    Of a batch of any kind alpha weighs the mean over the labelled examples in it. That of
    `labelled_ratio` has as many in each batch, and the classification loss is on average that of
    the data. What is left to tell is how a batch differs from the data:

    - With `shuffled` batches some may hold no label, and add nothing, and with weights the labelled
      ones of a batch may weigh more or less than usual. Give `labelled`, the share of
      labelled examples in the data: then the labelled of a batch are summed over
      `labelled * batch`, which is the loss of the data on average.
    - With `labelled_ratio` the bound has more of L, and less of U, than the data. Give `labelled`,
      and `drawn=labelled_per_batch / batch_size`, the share in a batch: then L and U are weighed as
      the data hold them.

    Args:
      joint: the joint model.
      alpha: weight of the classification loss, a number or a schedule; 0.1 is recommended.
      beta: weight of KL(q(y|x) || p(y)) in the loss, a number or a schedule. 1 is the bound; above
        it, q(y|x) stays softer. The metric `elbo` is always at 1.
      labelled: the share of labelled examples in the data (of weights, where there are any), inside
        (0, 1). By default batches are taken as they come, each as if it were the data.
      drawn: the share of labelled examples in a batch on average, where the order of steps chooses
        it; by default that of the data.
      rate: `terms.rate` or `terms.sampled_rate`.
      draw: how a Draw is made.
    Returns:
      the loss of batches with labels `batch.y`, -1 where unknown. A label that is no class makes
      the loss infinite, which `fit` reports. It raises ValueError for a batch without labels, or
      with conditions. Its metrics are `elbo` (the mean of L and U), `labelled` (the share in the
      batch), `cross_entropy` and `error` (means over the labelled examples), `rate_y` (that KL, the
      mean over the unlabelled ones) and `alpha`. A batch without labelled examples has no share in
      the mean of `cross_entropy` and `error` over batches (`types.Weighted`).
    Raises:
      ValueError: for shares outside of (0, 1), and for `drawn` without `labelled`.
    References:
      Kingma, Rezende, Mohamed and Welling, 2014, Semi-supervised learning with deep generative
      models, arXiv:1406.5298.
    """
    _check_shares(labelled, drawn)
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
        y = _labels("m2", batch)
        known = y != -1
        values = over_batch(example, params, key, batch._replace(c=y))
        *bounds, cross_entropy, wrongly = values
        H, error = mean_over((cross_entropy, wrongly), known, batch.weight)
        rate_y = mean_over(bounds[1], ~known, batch.weight)
        summed = H.value  # its mean over the labelled examples, as the batch or the data have them
        if labelled is not None:
            share = labelled if drawn is None else drawn
            summed = H.value * H.weight / share
            factor = jnp.where(known, labelled / share, (1 - labelled) / (1 - share))
            bounds = [factor * bound for bound in bounds]
        elbo, R = batch_mean(tuple(bounds), batch.weight)
        weight = schedule(alpha, step)
        metrics = {"elbo": elbo, "labelled": H.weight, "cross_entropy": H, "error": error}
        value = weight * summed - elbo + (schedule(beta, step) - 1) * R
        return value, {**metrics, "rate_y": rate_y, "alpha": weight}

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
    that a few labels take part in every step. A batch then holds another share of labelled examples
    than the data; `m2` says what follows.

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
    classifier = functional(classifier, "discriminative: classifier")

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Delta:
        return Delta(x)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return classifier.apply(params, z, rngs={} if key is None else {"dropout": key})

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        return classifier.init(key, x)

    return Model(compiled(init), lambda params, c=(): None, encode, decode)


@evaluate.measure
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
    batch, log_pxy = evaluate.checked_batch("log_likelihood", key, data), []
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


def _check_shares(labelled: Any, drawn: Any) -> None:
    for name, share in (("labelled", labelled), ("drawn", drawn)):
        if share is not None and concrete(share) and not 0 < float(share) < 1:
            fix = "np.mean(y != -1) of the data, or labelled / batch_size of labelled_ratio"
            raise wrong(f"m2: {name}", share, "a share inside (0, 1)", fix)
    if drawn is not None and labelled is None:
        fix = "give labelled=np.mean(y != -1), the share in the data, too"
        raise wrong("m2: drawn", f"{drawn} alone", "both shares or none", fix)


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
