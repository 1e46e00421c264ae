"""Two models on the same examples: the paired difference and its error; bits per dimension."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.arrays import numbers
from vaejax.batch import as_batch, check_unweighted
from vaejax.data.sources import Source
from vaejax.errors import at_least_one, sizes, wrong
from vaejax.evaluate._each import likelihood_of
from vaejax.model import Model
from vaejax.types import Key, Transform, describe, describe_fields


@describe_fields
class Comparison(NamedTuple):
    """The paired difference of two models; `str` says it in words.

    Args:
      difference: the mean of a - b over the examples, in `unit`.
      se: its standard error over the examples, NaN for a single one. It says nothing of another
        seed of the training.
      n: examples.
      higher: the share of the examples on which a is above b; equal ones count by half.
      names: of a and b.
      unit: of the difference.
    """

    difference: float
    se: float
    n: int
    higher: float
    names: tuple[str, str]
    unit: str

    @property
    def standard_errors(self) -> float:
        """How many standard errors a is above b; NaN where that is not known."""
        if self.difference == 0:
            return 0.0
        return self.difference / self.se if self.se else math.copysign(math.inf, self.difference)

    def __str__(self) -> str:
        (a, b), over = self.names, f"over {self.n} examples"
        if self.difference == 0 and not self.se > 0:
            return f"{a} equals {b} {over}"
        where = "above" if self.difference >= 0 else "below"
        said = f"{a} is {abs(self.difference):.4g} {self.unit} per example {where} {b}"
        if math.isnan(self.se):
            return f"{said}; a single example shows no spread"
        many = abs(self.standard_errors)
        said += f", s.e. {self.se:.2g} {over} ({many:.3g} standard errors)"
        return said if many >= 2 else f"{said}: too few examples to tell them apart"


def compare(
    a: Any, b: Any, *, names: tuple[str, str] = ("a", "b"), unit: str = "nats"
) -> Comparison:
    """The difference of two models on the same examples: the mean of a - b, and how sure it is.

    `se = sd(a_i - b_i) / sqrt(n)`. What the examples have in common cancels in the differences, so
    this is often far below the standard errors of the two means. Give both the same examples in
    the same order, under the same key and transform; two numbers in one unit, both log-densities
    or both log-probabilities.

    Args:
      a, b: numbers of each example, `[n]`, or what a measure returns: the `log_px` of
        `log_likelihood` and `annealing.ais`, the `elbo` of `elbo_terms`.
      names: what the words call them.
      unit: of the numbers, for the words.
    Returns:
      A Comparison: `difference`, `se`, `n`, and the words in its `str`.
    Raises:
      ValueError: for other shapes, for not as many examples in both, for values that are not
        finite, and for an ELBO beside a log p(x).
    Example:
      >>> from vaejax import evaluate
      >>> print(evaluate.compare([-80.0, -90.5, -71.0], [-82.0, -91.0, -73.5]))
      a is 1.667 nats per example above b, s.e. 0.6 over 3 examples (2.77 standard errors)
    """
    (first, kind), (second, other) = _of_each("a", a), _of_each("b", b)
    if kind and other and kind != other:
        fix = "give both from one measure"
        raise wrong("compare: b", f"{other} beside {kind}", f"{kind}, as in a", fix)
    if len(first) != len(second):
        fix = "give both numbers of the same examples, in the same order"
        raise wrong("compare: b", f"{len(second)} examples", f"{len(first)}, as in a", fix)
    if isinstance(names, str) or len(names) != 2:
        raise wrong("compare: names", repr(names), "two of them", 'names=("mine", "theirs")')
    over = first - second
    se = float(np.std(over, ddof=1) / math.sqrt(len(over))) if len(over) > 1 else math.nan
    higher = float(np.mean(over > 0) + np.mean(over == 0) / 2)
    return Comparison(float(over.mean()), se, len(over), higher, (names[0], names[1]), unit)


def compare_models(
    measure: Callable[..., Any],
    a: tuple[Any, Any],
    b: tuple[Any, Any],
    key: Key,
    data: Any,
    *,
    names: tuple[str, str] = ("a", "b"),
    unit: str = "nats",
    transform: Transform | None = None,
    **options: Any,
) -> Comparison:
    """`compare` of two models through one measure: same examples, same key, same transform.

    Args:
      measure: such as `evaluate.log_likelihood`, `evaluate.elbo_terms` or `evaluate.log_prob`.
      a, b: a model and its parameters each, `(model, params)`.
      key: one key, which both get.
      data: a Batch without weights, or the x of one, `[n, ...]`, or a Source.
      names, unit: as in `compare`.
      transform: what is done to stored data first, for both; None: nothing.
      options: others of the measure, such as `particles`.
    Returns:
      A Comparison.
    Raises:
      ValueError: as `compare` and the measure do, for weights, and where one p(x|z) is a density
        and the other a probability, whose nats do not compare.
      TypeError: for what is no pair of a model and its parameters.
    Example:
      >>> import jax
      >>> from vaejax import evaluate, linear
      >>> model = linear.linear_gaussian(3, latent=1)
      >>> x = jax.random.normal(jax.random.key(0), (9, 3))
      >>> start, other = (model.init(jax.random.key(i), x[0]) for i in (1, 2))
      >>> found = evaluate.compare_models(
      ...     evaluate.log_likelihood, (model, start), (model, other), jax.random.key(3), x,
      ...     particles=8,
      ... )
      >>> found.n
      9
    """
    if not callable(measure):
        fix = "such as evaluate.log_likelihood"
        raise wrong("compare_models: measure", describe(measure), "a measure", fix, TypeError)
    for name, pair in (("a", a), ("b", b)):
        if not isinstance(pair, tuple) or isinstance(pair, Model) or len(pair) != 2:
            fix = "give (model, params)"
            expected = "a model and its parameters"
            raise wrong(f"compare_models: {name}", describe(pair), expected, fix, TypeError)
    if isinstance(data, Source):
        at_least_one("compare_models", examples=data.size)
        head = data.read(np.zeros(1, int))
    else:
        data = head = as_batch(data, "compare_models")
        check_unweighted("compare_models", data)
    first, second = (_kind(*pair, transform, head) for pair in (a, b))
    if first and second and first != second:
        fix = "give both one kind of likelihood: bits and nats of a density have another zero"
        raise wrong("compare_models: b", f"{second} of x", f"{first}, as a has", fix)
    found = (
        measure(*pair, jax.random.clone(key), data, transform=transform, **options)
        for pair in (a, b)
    )
    return compare(*found, names=names, unit=unit)


def bits_per_dim(log_px: Any, shape: int | Sequence[int], *, levels: int = 1) -> Any:
    """-log p(x) in bits per dimension, `-log p(x) / (D log 2)`: what a perfect code would spend.

    That is true of a **probability** of discrete x alone (Bernoulli, Categorical,
    DiscretizedLogistic). Of a density it is no length of a code: it changes with the unit of x and
    can be negative. The density of levels that were dequantised (`data.dequantize`) bounds their
    probability: give their number, and log2 levels is added.

    Args:
      log_px: nats, log p(x) or a bound of it, an array of any shape.
      shape: of one example, or how many values it has: D is their product.
      levels: of dequantised data, 256 for `data.dequantize`, where `log_px` is the log of a density
        of x in [0, 1]; 1: of a probability.
    Returns:
      Bits per dimension, in the shape of `log_px`.
    Raises:
      ValueError: for D or levels below 1.
    Example:
      >>> from vaejax import evaluate
      >>> round(float(evaluate.bits_per_dim(-88.72, (8, 8, 1))), 3)
      2.0

    References:
      Theis, van den Oord and Bethge, 2016, arXiv:1511.01844, on the densities.
    """
    at_least_one("bits_per_dim", levels=levels)
    size = math.prod(sizes("bits_per_dim: shape", shape))
    nats = numbers("bits_per_dim: log_px", log_px, "nats, an array")
    return -nats / (size * math.log(2)) + math.log2(levels)


def _of_each(name: str, found: Any) -> tuple[np.ndarray, str]:
    """The number of each example in double precision, and what it is, where that is known."""
    where, kind = f"compare: {name}", ""
    if hasattr(found, "log_px"):
        found, kind = found.log_px, "log p(x)"
    elif isinstance(found, Mapping):
        if "elbo" not in found:
            got = f"numbers named {', '.join(map(str, found))}"
            raise wrong(where, got, "one for each example, [n]", f"name one: {name}[...]")
        found, kind = found["elbo"], "an ELBO"
    values = np.asarray(numbers(where, found, "numbers of each example, [n]"), float)
    if values.ndim != 1 or not len(values):
        fix = "give what a measure returns, not its mean"
        raise wrong(where, f"shape {values.shape}", "numbers of each example, [n]", fix)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        got = f"{values[bad[0]]} for example {bad[0]} ({len(bad)} such of {len(values)})"
        fix = "find out why; leaving such examples out would change what is compared"
        raise wrong(where, got, "finite numbers", fix)
    return values, kind


def _kind(model: Any, params: Any, transform: Transform | None, head: Any) -> str:
    """Whether p(x|z) is a density or a probability; "" where that is not known."""
    if not isinstance(model, Model):
        return ""

    def discrete() -> Any:
        x, c = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], (head.x, head.c))
        seen = x if transform is None else transform(jax.random.key(0), x)
        return likelihood_of(model, params, seen, c)

    try:
        found = jax.eval_shape(discrete)
    except Exception:  # what is wrong there the measure itself will say
        return ""
    return "a probability" if found.discrete else "a density"


__all__ = ["Comparison", "bits_per_dim", "compare", "compare_models"]
