"""Stacked autoencoders: levels trained one by one, each on the codes of the one below.

    pretrained = pretrain(levels, key, x, loss=reconstruction, optimizer=adam, steps=1000)
    deep = stack(levels)                            # reconstructs x: any loss and fit fine-tune it
    classify = classifier(deep, classes=10)         # p(y|z) on top of the same code
    params = classify.init(key, x[0]) | {"model": pretrained.params}
    fit(classification(classify), adam, params, Batch(x, y=y), ...)

A level is any Model whose x is the code of the level below.

References:
  Hinton and Salakhutdinov, 2006, Reducing the dimensionality of data with neural networks.
  Bengio, Lamblin, Popovici and Larochelle, 2007, Greedy layer-wise training of deep networks.
  Vincent et al., 2010, Stacked denoising autoencoders.
"""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from vaejax import evaluate
from vaejax.batch import as_batch, labels_of, mean_over, over_batch
from vaejax.distributions import Categorical
from vaejax.errors import at_least_one, takes, wrong
from vaejax.model import Draw, Model, compiled, deterministic, draw
from vaejax.train import NonFiniteError, make_train
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, Transform


class Pretrained(NamedTuple):
    """What `pretrain` returns.

    Args:
      params: those of `stack(levels)`, a tuple of each level's.
      history: for each level the metrics of every step, `[steps]` by name, in nats per example of
        that level.
    """

    params: tuple[Params, ...]
    history: tuple[dict[str, np.ndarray], ...]


def stack(levels: Sequence[Model]) -> Model:
    """One deep Model of several: the encoders upwards, the decoders downwards.

    `q(z|x) = q_L(z | m_{L-1})`, `m_l = E[q_l(. | m_{l-1})]`, `m_0 = x`.

    Downwards it goes the same way, with the means of the decoders. The prior is the top level's. A
    level that decodes to another shape than the code below it is a ValueError at `init`; no level
    at all, and one Model in place of several, are errors at once.

    Args:
      levels: from the data upwards, each a Model whose x is the code of the one below. They may be
        tied, convolutional, or have a condition c, which goes to every level.
    Returns:
      The Model; its parameters are a tuple of the levels' own.
    """
    levels = _levels("stack", levels)
    at_least_one("stack", levels=len(levels))

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        params = []
        for i, level in enumerate(levels):
            params.append(_init("stack", i, level, jax.random.fold_in(key, i), x, c))
            x = level.encode(params[i], x, c).mean
        return tuple(params)

    def prior(params: Params, c: Any = ()) -> Any:
        return levels[-1].prior(params[-1], c)

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        *below, top = zip(levels, params, _keys(key, len(levels)), strict=True)
        for level, own, own_key in below:
            x = level.encode(own, x, c, key=own_key).mean
        level, own, own_key = top
        return level.encode(own, x, c, key=own_key)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        bottom, *above = zip(levels, params, _keys(key, len(levels)), strict=True)
        for level, own, own_key in reversed(above):
            z = level.decode(own, z, c, key=own_key).mean
        level, own, own_key = bottom
        return level.decode(own, z, c, key=own_key)

    return Model(compiled(init), prior, encode, decode)


def pretrain(
    levels: Sequence[Model],
    key: Key,
    data: Any,
    *,
    loss: Callable[[Model], Loss] | Sequence[Callable[[Model], Loss]],
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int = 128,
    transform: Transform | None = None,
) -> Pretrained:
    """Train the levels greedily: each alone, on the codes of the one below, from the data up.

    `params_l = argmin loss(level_l)` on `x_l = evaluate.codes(level_{l-1}, ..., x_{l-1})`, by
    `train.make_train`, jitted.

    Args:
      levels: as for `stack`.
      key: of the parameters, the training and the transform.
      data: a Batch, or the x of one, `[n, ...]`. Its labels are not used; its conditions and
        weights are those of every level.
      loss: a function from Model to Loss, such as `autoencoders.reconstruction` or
        `partial(autoencoders.denoising, corrupt=...)`; or one for each level.
      optimizer: of each level; its state starts afresh at each.
      steps, batch_size: of each level.
      transform: of stored data, at the bottom only: drawn anew at every step there, and once per
        example for the codes. By default none.
    Returns:
      The Pretrained.
    Raises:
      ValueError: for no level, counts below 1, or losses not as many as levels.
      TypeError: for one Model in place of levels, or a Loss in place of a function that makes it.
      NonFiniteError: for a loss that becomes infinite or NaN, naming the level.
    References:
      Bengio, Lamblin, Popovici and Larochelle, 2007.
    """
    levels = _levels("pretrain", levels)
    losses = (loss,) * len(levels) if callable(loss) else tuple(loss)
    at_least_one("pretrain", levels=len(levels), steps=steps, batch_size=batch_size)
    if len(losses) != len(levels):
        fix = "give one function Model -> Loss for all levels, or one for each"
        raise wrong("pretrain: loss", f"{len(losses)} losses", f"{len(levels)}, one a level", fix)
    for one in losses:
        takes("pretrain: loss", one, "model", "pass the function, autoencoders.reconstruction")
    data = jax.tree.map(jnp.asarray, as_batch(data))
    params, histories = [], []
    for i, (level, loss_of) in enumerate(zip(levels, losses, strict=True)):
        init_key, see_key, train_key, codes_key = jax.random.split(jax.random.fold_in(key, i), 4)
        x, c = jax.tree.map(lambda leaf: leaf[0], (data.x, data.c))
        seen = x if transform is None else transform(see_key, x)
        start = _init("pretrain", i, level, init_key, seen, c)
        train = make_train(
            loss_of(level), optimizer, steps=steps, batch_size=batch_size, transform=transform
        )
        state, history = jax.jit(train)(train_key, start, data)
        history = jax.device_get(history)
        _check_history(i, history)
        params.append(state.params)
        histories.append(history)
        if i + 1 < len(levels):
            x = evaluate.codes(level, state.params, codes_key, data, transform=transform)
            data, transform = data._replace(x=x), None
    return Pretrained(tuple(params), tuple(histories))


def classifier(model: Model, classes: int) -> Model:
    """A Model of labels on top of a code: the same encoder, and a decoder that gives p(y|z).

    `p(y|z) = Categorical(softmax(W z + b))`, y an integer `()` from 0 to `classes - 1`.

    The parameters are `{"model": ..., "classes": ...}`, of which the first are those of `model`. So
    a classifier starts from pretrained ones by `classify.init(key, x) | {"model": pretrained}`.
    The decoder of `model` is not used. Its parameters get a gradient of zero, so plain optimizers
    leave them as they are (weight decay does not).

    Args:
      model: whose encoder gives the code z.
      classes: how many, 2 or more; labels count from 0.
    Returns:
      The Model of labels.
    Raises:
      ValueError: for fewer than two classes, or a number that is no integer.
    """
    if not isinstance(classes, Integral) or classes < 2:
        expected = "2 or more, an integer"
        raise wrong("classifier: classes", classes, expected, "count the labels, from 0")
    layer = nn.Dense(classes)

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        model_key, classes_key = jax.random.split(key)
        params = model.init(model_key, x, c)
        z = model.encode(params, x, c).mean
        return {"model": params, "classes": layer.init(classes_key, jnp.ravel(z))["params"]}

    def prior(params: Params, c: Any = ()) -> Any:
        return model.prior(params["model"], c)

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return model.encode(params["model"], x, c, key=key)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Categorical:
        return Categorical(layer.apply({"params": params["classes"]}, jnp.ravel(z)))

    return Model(compiled(init), prior, encode, decode)


def classification(model: Model, *, draw: Callable[..., Draw] = draw) -> Loss:
    """The cross-entropy of a `classifier`.

    `-log p(y | z)`, `z ~ q(z|x)`.

    Examples with label -1 are not counted, whatever their x; without a labelled one the loss and
    its gradient are 0. Other labels that are no class make the loss infinite, which `fit` reports.
    A batch without labels, or with labels that are not one integer per example, is a ValueError.

    The loss and the metrics are means over the labelled examples (`types.Weighted`), and so are
    those of `history` and `mean_loss`: a batch has the share of its labelled examples. Where the
    data have weights, `fit` takes an unlabelled example for one of loss 0: the optimum is that of
    the labelled ones, and the gradient is smaller by their share of the data.

    Args:
      model: a `classifier`.
      draw: how a Draw is made (`autoencoders.corrupted(...)` classifies corrupted inputs); by
        default as `vaejax.draw` makes it.
    Returns:
      The Loss, nats per labelled example. Its metrics are `cross_entropy` and `error`, the share of
      labelled examples whose likeliest class is wrong.
    """

    def example(params: Params, key: Key, x: Any, known: Any) -> tuple[Array, Array]:
        c, y = known
        py = draw(model, params, key, x, c).px
        return -py.log_prob(y), (jnp.argmax(py.logits) != y).astype(float)

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        y = labels_of("classification: y", batch)
        known = y != -1
        counts = known.astype(float)
        if not isinstance(batch.weight, tuple):
            counts = counts * batch.weight
        weighed = batch._replace(c=(batch.c, y), weight=counts)
        H, error = mean_over(over_batch(example, params, key, weighed), known, batch.weight)
        return H.value, {"loss": H, "cross_entropy": H, "error": error}

    return loss


@evaluate.measure
def error_rate(
    model: Model,
    params: Params,
    key: Key,
    data: Batch,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> float:
    """The share of labelled examples to which a `classifier` gives a wrong class.

    The class is the likeliest under p(y | z = E[q(z|x)]).

    Args:
      model, params: a `classifier` and its parameters.
      key: of the transform, which alone uses it.
      data: Batch(x, y=labels), -1 for unlabelled examples. Neither they nor examples of weight 0
        are counted, whatever their x. Where there are weights, the share is one of weights.
      transform: of stored data, drawn once per example; by default none.
      batch_size: examples that are held in memory at a time.
    Returns:
      The share, in [0, 1].
    Raises:
      ValueError: where nothing is counted, and where an example that counts has a label that is no
        class, or logits that are not finite.
    """
    data = evaluate.checked_batch("error_rate", key, data, batch_size=batch_size)
    y = np.asarray(labels_of("error_rate: y", data))
    weight = np.where(y == -1, 0, 1 if isinstance(data.weight, tuple) else np.asarray(data.weight))
    if not np.any(weight > 0):
        got, fix = "no label but -1, or of weight 0", "give labelled data"
        raise wrong("error_rate: y", got, "a labelled example", fix)
    logits = evaluate.measure_each(_logits, (model,), transform, batch_size, params, key, data)
    largest = jnp.max(logits, axis=1)
    evaluate.check_counted("error_rate", "the largest logit", largest, data.x, weight)
    classes = logits.shape[1]
    bad = np.flatnonzero((weight > 0) & ((y < 0) | (y >= classes)))
    if len(bad):
        got = f"{y[bad[0]]} at example {bad[0]}"
        fix = "build classifier(model, classes) for all labels, and count them from 0"
        raise wrong("error_rate: y", got, f"0 to {classes - 1}, or -1 for unlabelled", fix)
    return float(np.average(np.argmax(np.asarray(logits), axis=1) != y, weights=weight))


def _logits(model: Model, params: Params, key: Key, x: Any, c: Any) -> Array:
    model = deterministic(model)
    return model.decode(params, model.encode(params, x, c).mean, c).logits


def _levels(function: str, levels: Sequence[Model]) -> tuple[Model, ...]:
    """The levels as a tuple; a Model alone, which is a tuple of functions too, is refused."""
    if isinstance(levels, Model):
        fix = "give a sequence, from the data upwards: [model]"
        raise wrong(f"{function}: levels", "one Model", "several", fix, TypeError)
    return tuple(levels)


def _init(function: str, i: int, level: Model, key: Key, x: Any, c: Any) -> Params:
    """Parameters of a level, after a check that it reconstructs what the level below encodes."""
    params = level.init(key, x, c)
    if i > 0:
        decoded = jax.eval_shape(lambda: level.decode(params, level.encode(params, x, c).mean, c))
        if decoded.event_shape != jnp.shape(x):
            expected = f"{jnp.shape(x)}, the code of level {i - 1}"
            fix = "let each level's decoder give the code of the level below"
            got = f"a decoder to {decoded.event_shape}"
            raise wrong(f"{function}: level {i}", got, expected, fix)
    return params


def _keys(key: Key | None, levels: int) -> Any:
    return (None,) * levels if key is None else jax.random.split(key, levels)


def _check_history(i: int, history: dict[str, np.ndarray]) -> None:
    bad = ~np.all([np.isfinite(values) for values in jax.tree.leaves(history)], axis=0)
    if bad.any():
        step = int(np.argmax(bad))
        terms = {name: np.asarray(values).T[step].tolist() for name, values in history.items()}
        raise NonFiniteError(
            f"pretrain: level {i}: {terms} at step {step}; check the level's likelihood against "
            "what it sees (a Bernoulli's support is [0, 1]), then try a lower learning rate",
            step,
            terms,
            None,
        )


__all__ = [
    "Pretrained",
    "classification",
    "classifier",
    "error_rate",
    "pretrain",
    "stack",
]
