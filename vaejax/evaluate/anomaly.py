"""Anomaly detection by p(x): scores from a trained model, and how well they separate.

A score is `[n]`, in nats where a density gives it, and higher for what is more anomalous.
`auroc` judges scores, `one_class` runs the usual protocol: train on one class, test on all.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.arrays import numbers
from vaejax.batch import as_batch, check_unweighted
from vaejax.distributions import Distribution, Normal
from vaejax.errors import check_number, missing, wrong
from vaejax.evaluate._each import checked_batch, measure
from vaejax.evaluate._measures import elbo_terms, log_likelihood, reconstruction_error
from vaejax.model import Model
from vaejax.types import Array, Key, Params, PerExample, Transform


class Auroc(NamedTuple):
    """Area under the ROC curve, between 0 and 1.

    Args:
      value: the area.
      low, high: the ends of its confidence interval.
    """

    value: float
    low: float
    high: float


class OneClass(NamedTuple):
    """The one-class protocol's result for one score.

    Args:
      mean: over the classes, of the area.
      per_class: the Auroc of each class, by label.
    """

    mean: float
    per_class: dict[int, Auroc]


@measure
def scores(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    train: Any = None,
    background: tuple[Model, Params] | None = None,
    samples: int = 10,
    particles: int = 100,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> dict[str, PerExample]:
    """Every score that the model affords, by name; higher is more anomalous.

    - `reconstruction`: `-log p(x|z)` at the mean code, see `reconstruction_error`;
    - `distortion`: `E_q[-log p(x|z)]`, the mean over draws (An and Cho, 2015, call it the
      reconstruction probability); `negative_elbo`: D + R;
    - `negative_log_px`: `-L_K`, importance-weighted;
    - `typicality`, with `train`: `|-L_K - mean over train of -L_K|`, see `typicality`;
    - `likelihood_ratio`, with `background`: see `likelihood_ratio`.

    A deterministic autoencoder has only the first. The transform is drawn once per example, the
    same for every score and for the background model, so that all judge the same x.

    Args:
      model, params: a Model and its parameters.
      key: for the draws and the `transform`.
      data: a Batch, or the x of one, `[n, ...]`.
      train: training examples, a Batch or the x of one, for `typicality`; None: none.
      background: another model and its parameters, for `likelihood_ratio`; None: none.
      samples: draws of z per example for the bound.
      particles: draws of z per example for log p(x).
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      The scores by name, each `[n]`, nats.
    Raises:
      ValueError: as `evaluate.log_likelihood`, and for `train` or `background` beside a model
        without a prior.
    """
    batch = checked_batch("scores", key, data)
    # One key for every score of the data: each draws the same transformed x from it.
    data_key, train_key = jax.random.split(key)
    size: dict[str, Any] = {"transform": transform, "batch_size": batch_size}
    found = {"reconstruction": reconstruction_error(model, params, data_key, batch, **size)}
    if model.prior(params, jax.tree.map(lambda leaf: leaf[0], batch.c)) is None:
        if train is not None or background is not None:
            got, fix = "a deterministic autoencoder", "give autoencoder(..., prior=...)"
            raise wrong("scores: model", got, "a prior, for log p(x)", fix)
        return found
    parts = elbo_terms(model, params, jax.random.clone(data_key), batch, samples=samples, **size)
    found |= {"distortion": parts["distortion"], "negative_elbo": -parts["elbo"]}

    def nll(a_model: Model, its_params: Params, its_key: Key, examples: Any) -> PerExample:
        estimate = log_likelihood(
            a_model, its_params, its_key, examples, particles=particles, **size
        )
        return -estimate.log_px

    found["negative_log_px"] = nll(model, params, jax.random.clone(data_key), batch)
    if train is not None:
        check_unweighted("scores: train", as_batch(train))
        train_nll = nll(model, params, train_key, train)
        found["typicality"] = typicality(found["negative_log_px"], train_nll)
    if background is not None:
        background_nll = nll(*background, jax.random.clone(data_key), batch)
        found["likelihood_ratio"] = likelihood_ratio(found["negative_log_px"], background_nll)
    return found


def typicality(nll: Any, train_nll: Any) -> PerExample:
    """How far -log p(x) lies from what is typical of the training data.

    `|-log p(x) - mean_train(-log p)|`: in high dimensions a density's samples lie where -log p is
    near the entropy, so that an x that is far too probable is an anomaly as well.

    Args:
      nll: -log p(x), nats, `[n]`.
      train_nll: the same of training examples, under the same model and estimator, `[m]`.
    Returns:
      The distance, nats, `[n]`.
    Raises:
      ValueError: for empty or non-finite input.
    References:
      Nalisnick, Matsukawa, Teh and Lakshminarayanan, 2019, arXiv:1906.02994 (batches of one).
    """
    nll, train_nll = _values("typicality: nll", nll), _values("typicality: train_nll", train_nll)
    return np.abs(nll - train_nll.mean())


def likelihood_ratio(nll: Any, background_nll: Any) -> PerExample:
    """The ratio of a background model's density to the model's, `log p_0(x) - log p(x)`.

    What both explain alike, such as how much of an image is blank, cancels. The background model
    is one trained on data corrupted by `mutate`, or `independent_pixels`.

    Args:
      nll, background_nll: -log p(x) and -log p_0(x) of the same examples, nats, `[n]`.
    Returns:
      The log-ratio, nats, `[n]`.
    Raises:
      ValueError: for unequal shapes, empty or non-finite input.
    References:
      Ren et al., 2019, Likelihood ratios for out-of-distribution detection, arXiv:1906.02845.
    """
    nll = _values("likelihood_ratio: nll", nll)
    background_nll = _values("likelihood_ratio: background_nll", background_nll)
    if nll.shape != background_nll.shape:
        fix = "score the same examples with both models"
        raise wrong("likelihood_ratio: background_nll", background_nll.shape, nll.shape, fix)
    return nll - background_nll


def mutate(key: Key, x: Any, *, rate: float) -> Array:
    """Each entry of x replaced, with probability `rate`, by a level drawn uniformly.

    For one example, as a `transform` before others: it makes the data for a background model.

    Args:
      key: for the choice and the levels.
      x: one example; uint8 gets uint8 levels 0..255; floats, which are to lie in [0, 1], get
        Uniform[0, 1).
      rate: of replacement, in [0, 1]; 0.1 to 0.3 were good in the paper.
    Returns:
      x with some entries replaced, of the same shape and type.
    Raises:
      ValueError: for a rate outside [0, 1].
      TypeError: for other integers.
    References:
      Ren et al., 2019, arXiv:1906.02845.
    """
    if not 0 <= rate <= 1:
        raise wrong("mutate: rate", rate, "a probability in [0, 1]", "0.2 is a good start")
    where_key, level_key = jax.random.split(key)
    x = jnp.asarray(x)
    if x.dtype == jnp.uint8:
        levels = jax.random.bits(level_key, x.shape, jnp.uint8)
    else:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            fix = "x.astype(float)"
            raise wrong("mutate: x", x.dtype, "uint8 levels or floats in [0, 1]", fix, TypeError)
        levels = jax.random.uniform(level_key, x.shape, x.dtype)
    return jnp.where(jax.random.bernoulli(where_key, rate, x.shape), levels, x)


def independent_pixels(px: Distribution) -> tuple[Model, Params]:
    """The simplest background model, `p_0(x) = prod_i p_i(x_i)`, and its parameters.

    As a Model it has a latent of no dimension, so that one particle gives its exact log p(x).

    Args:
      px: a Distribution of independent entries in the shape of x, such as a Bernoulli or a Normal
        with the mean (and the standard deviation) of every training pixel.
    Returns:
      The Model, and its parameters, which are px.
    """
    return _INDEPENDENT, px


def auroc(normal: Any, anomalous: Any, *, level: float = 0.95) -> Auroc:
    """Area under the ROC curve of a score, with a confidence interval.

    `P(s_anomalous > s_normal) + P(equal) / 2`, from all pairs (scikit-learn's metric). Interval:
    DeLong's variance, `Var_n(V_10) / n + Var_m(V_01) / m` with V the share of the other group that
    each score wins against, on the scale of the logit, which keeps it inside [0, 1]. Where nothing
    varies (complete separation, or all scores equal) that is zero: then Clopper and Pearson's exact
    interval for the min(n, m) disjoint pairs, which is wider than it need be.

    Args:
      normal, anomalous: scores, higher meaning more anomalous, `[n]` and `[m]`.
      level: coverage of the interval, inside (0, 1).
    Returns:
      An Auroc.
    Raises:
      ValueError: for fewer than two scores of either label, for scores that are not finite, and for
        a level outside (0, 1).
      ImportError: without scikit-learn.
    Example:
      >>> from vaejax import anomaly
      >>> round(anomaly.auroc([0.1, 0.2, 0.4], [0.3, 0.5, 0.6]).value, 3)
      0.889

    References:
      DeLong, DeLong and Clarke-Pearson, 1988, Biometrics 44; logit: Pepe, 2003, section 5.2.
    """
    from scipy import stats

    normal, anomalous = _values("auroc: normal", normal), _values("auroc: anomalous", anomalous)
    few = min(len(normal), len(anomalous))
    if few < 2:
        got = f"{len(normal)} normal and {len(anomalous)} anomalous scores"
        raise wrong("auroc", got, "at least 2 of each", "test on data with both labels")
    check_number("auroc: level", level)
    if not 0 < level < 1:
        raise wrong("auroc: level", level, "a coverage inside (0, 1)", "the usual one is 0.95")
    value, tail = _area(normal, anomalous), (1 - level) / 2
    wins, losses = _placements(anomalous, normal), 1 - _placements(normal, anomalous)
    variance = wins.var(ddof=1) / len(wins) + losses.var(ddof=1) / len(losses)
    if variance * value * (1 - value) > 0:
        half = stats.norm.isf(tail) * np.sqrt(variance) / (value * (1 - value))
        logit = np.log(value) - np.log1p(-value)
        low, high = 1 / (1 + np.exp(half - logit)), 1 / (1 + np.exp(-half - logit))
    else:
        low = stats.beta.ppf(tail, value * few, few - value * few + 1) if value > 0 else 0.0
        high = stats.beta.isf(tail, value * few + 1, few - value * few) if value < 1 else 1.0
    return Auroc(value, float(low), float(high))


def one_class(
    fit_and_score: Callable[[int, Any, Any], Mapping[str, Any]],
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
) -> dict[str, OneClass]:
    """Train on one class alone, score the whole test set, AUROC of that class against the rest.

    For each label c of `y_train`: `fit_and_score(c, x_train[y_train == c], x_test)` gives the
    scores. Test examples of class c are normal, all others anomalous. Labels are never shown to it,
    but for c, by which it may vary its key.

    Args:
      fit_and_score: returns scores by name, each `[m]`, higher meaning more anomalous.
      x_train, y_train: examples `[n, ...]` and labels `[n]`, numpy arrays.
      x_test, y_test: examples `[m, ...]` and labels `[m]`, numpy arrays.
    Returns:
      For each score, by name, a OneClass: the unweighted mean over classes and the Auroc of each.
    Raises:
      ValueError: for labels that do not fit the data, fewer than two classes, or scores of another
        length.
    References:
      Ruff et al., 2018, Deep one-class classification, ICML.
    """
    y_train, y_test = np.asarray(y_train), np.asarray(y_test)
    for name, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if y.shape != (len(x),):
            fix = "pass one integer label per example"
            raise wrong(f"one_class: y_{name}", y.shape, (len(x),), fix)
        if y.dtype.kind not in "iub" or y.min(initial=0) < 0:
            got, fix = f"{y.dtype} from {y.min(initial=0)}", "drop the unlabelled: x[y >= 0]"
            raise wrong(f"one_class: y_{name}", got, "integers from 0", fix)
    classes = np.unique(y_train)
    missing = sorted(set(classes.tolist()) - set(y_test.tolist()))
    if len(np.unique(y_test)) < 2 or missing:
        got = f"{np.unique(y_test).tolist()}" + (f", without {missing}" if missing else "")
        expected = "every class of y_train, and at least two classes"
        raise wrong("one_class: y_test", got, expected, "test on all classes together")
    found: dict[str, dict[int, Auroc]] = {}
    for label in classes.tolist():
        for name, score in fit_and_score(label, x_train[y_train == label], x_test).items():
            score = np.asarray(score)
            if score.shape != y_test.shape:
                where, fix = f"one_class: score {name!r}", "return one score per test example"
                raise wrong(where, score.shape, y_test.shape, fix)
            area = auroc(score[y_test == label], score[y_test != label])
            found.setdefault(name, {})[label] = area
    for name, areas in found.items():
        if len(areas) != len(classes):
            where, fix = f"one_class: score {name!r}", "return the same scores for every class"
            raise wrong(where, f"classes {list(areas)}", classes.tolist(), fix)
    return {
        name: OneClass(float(np.mean([area.value for area in areas.values()])), areas)
        for name, areas in found.items()
    }


def _no_latent(*_: Any, key: Key | None = None) -> Normal:
    return Normal(jnp.zeros(0), jnp.ones(0))


# Made once: what is compiled for a Model is found again by its functions.
_INDEPENDENT = Model(
    init=lambda key, x, c=(): Normal(jnp.zeros_like(x), jnp.ones_like(x)),
    prior=_no_latent,
    encode=_no_latent,
    decode=lambda params, z, c=(), *, key=None: params,
)


def _values(where: str, values: Any) -> np.ndarray:
    """Finite numbers `[n]`, at least one, in double precision."""
    array = np.asarray(numbers(where, values, "scores [n]"), np.float64)
    if array.ndim != 1 or not array.size:
        raise wrong(where, f"shape {array.shape}", "[n], not empty", "pass one score per example")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        got = f"{array[bad[0]]} at example {bad[0]} ({len(bad)} such of {len(array)})"
        raise wrong(where, got, "finite scores", "look for where they arise: data, then parameters")
    return array


def _area(normal: np.ndarray, anomalous: np.ndarray) -> float:
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise missing("auroc", "scikit-learn", "experiments") from error
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    return float(roc_auc_score(labels, np.concatenate([normal, anomalous])))


def _placements(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of the others that each score exceeds, ties counting half: `[len(scores)]`."""
    others = np.sort(others)
    below, up_to = (np.searchsorted(others, scores, side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(others))


__all__ = [
    "Auroc",
    "OneClass",
    "auroc",
    "independent_pixels",
    "likelihood_ratio",
    "mutate",
    "one_class",
    "reconstruction_error",
    "scores",
    "typicality",
]
