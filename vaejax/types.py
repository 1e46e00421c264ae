"""Shared type names, the glossary of shapes, and how values print.

Shapes are written in brackets: `[batch, latent]`; `()` is a scalar. A function of one example has
no batch axis; `vmap` adds it. Quantities of probability are in **nats** (natural logarithm).

| name | meaning |
| --- | --- |
| `x` | one example as the model sees it, floating point, for instance `[height, width, channels]` |
| `c` | what the model is conditioned on; `()` where there is nothing |
| `y` | a label, -1 where it is unknown |
| `z` | a latent code, `[latent]` |
| `q`, `pz`, `px` | the distributions q(z\\|x, c), p(z\\|c), p(x\\|z, c) |
| `D`, `R` | distortion -log p(x\\|z) and rate KL(q(z\\|x) \\|\\| p(z)), nats per example |

The Protocols say how the functions that users write are called. No class has to inherit from them:
any function of these arguments will do.
"""

import functools
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

# Annotated: a class would bring its own pages of help into that of each module that names it.
Array: TypeAlias = Annotated[jax.Array, "numbers"]
Key: TypeAlias = Annotated[jax.Array, "a key of randomness"]
PerExample: TypeAlias = Annotated[np.ndarray, "[n]"]
"""A number for each example, `[n]`, in the memory of the host."""
PerUnit: TypeAlias = Annotated[np.ndarray, "[latent]"]
"""A number for each dimension of the code, `[latent]`, in the memory of the host."""
Params: TypeAlias = Any
Metrics: TypeAlias = dict[str, Any]
Initializer: TypeAlias = Callable[..., Array]
"""`initializer(key, shape, dtype) -> Array`, as those of `flax.linen.initializers`."""

MOST_SHOWN = 6  # entries of a list, a tuple or a dictionary


@reprlib.recursive_repr()
def describe(value: Any) -> str:
    """What a value is, in few words for a `repr`: types and shapes, no whole arrays, no addresses.

    An array is its type and shape, as `f32[10]`, and one of shape `()` its value where it has one.
    A distribution or a NamedTuple names its fields; a function is its name; a large tree is its
    number of numbers.

    Args:
      value: anything: an array, a traced array, a tree of them, a function, a distribution.
    Returns:
      The words, on one line.
    Example:
      >>> import jax.numpy as jnp
      >>> from vaejax.types import describe
      >>> describe({"x": jnp.zeros((64, 8, 8, 1)), "y": jnp.zeros(64)})
      "{'x': f32[64, 8, 8, 1], 'y': f32[64]}"
    """
    if _is_array(value):
        return _array(value)
    if isinstance(value, functools.partial):
        return f"partial({', '.join(map(describe, [value.func, *value.args]))})"
    if type(value).__repr__ is _repr_of_fields:
        return repr(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _repr_of_fields(value)
    if isinstance(value, Mapping):
        few = len(value) <= MOST_SHOWN and all(map(_is_array, value.values()))
        if not few:
            try:
                few = not jax.tree.leaves(value)
            except Exception:  # keys that cannot be sorted, or a dictionary inside itself: no tree
                return f"{type(value).__name__} of {len(value)}"
        inside = ", ".join(f"{name!r}: {describe(v)}" for name, v in value.items())
        return f"{{{inside}}}" if few else numbers_in(value)
    if isinstance(value, tuple | list):
        shown = [describe(v) for v in value[:MOST_SHOWN]]
        if len(value) > MOST_SHOWN:
            shown.append(f"... {len(value) - MOST_SHOWN} more")
        inside = ", ".join(shown)
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
    if callable(value):
        return _function(value)
    return type(value).__name__


def numbers_in(tree: Any) -> str:
    """How much a tree holds, as "84,210 numbers in 8 arrays".

    Args:
      tree: of arrays.
    Returns:
      The words.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    total = sum(math.prod(shape) for shape in shapes)
    numbers = "1 number" if total == 1 else f"{total:,} numbers"
    return f"{numbers} in {len(shapes)} array{'s' if len(shapes) != 1 else ''}"


def describe_fields(cls: Any) -> Any:
    """Decorator: the `repr` of a dataclass or a NamedTuple says what its fields are, by `describe`.

    A field that is absent, `()`, is left out.

    Args:
      cls: the class; one that has fields of its own.
    Returns:
      The same class.
    """
    cls.__repr__ = _repr_of_fields
    return cls


def _repr_of_fields(value: Any) -> str:
    names = value._fields if hasattr(value, "_fields") else value.__dataclass_fields__
    fields = [(name, getattr(value, name)) for name in names]
    absent = [isinstance(field, tuple) and not field for _, field in fields]
    inside = [
        f"{name}={describe(field)}"
        for (name, field), left_out in zip(fields, absent, strict=True)
        if not left_out
    ]
    return f"{type(value).__name__}({', '.join(inside)})"


def _is_array(value: Any) -> bool:
    try:
        return not isinstance(value, type) and hasattr(value, "shape") and hasattr(value, "dtype")
    except Exception:  # of a property: printing a value never fails
        return False


def _array(x: Any) -> str:
    kind = str(x.dtype).replace("float", "f")
    shape = list(x.shape) if isinstance(x.shape, tuple) else x.shape
    if shape or not isinstance(x, jax.Array | np.ndarray | np.generic):
        return f"{kind}{shape}"
    if isinstance(x, jax.Array):
        here = not isinstance(x, jax.core.Tracer) and not x.is_deleted() and x.is_fully_addressable
        if not here or jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return f"{kind}{shape}"
    number = np.asarray(x).item()
    return f"{number:.4g}" if isinstance(number, float) else str(number)


def _function(value: Callable[..., Any]) -> str:
    """Its name, with the class of the object where it is a method: `MADE.apply`."""
    owner = getattr(value, "__self__", None)
    name = getattr(value, "__qualname__", None)
    if name is None:
        return type(value).__name__
    if owner is not None and not isinstance(owner, type) and hasattr(owner, "__dict__"):
        return f"{type(owner).__name__}.{value.__name__}"
    return name.replace(".<locals>", "")


@describe_fields
class Batch(NamedTuple):
    """Examples with a leading axis on every leaf; `()` is "absent" and passes through `vmap`.

    What weights mean is one thing everywhere: an example of weight w counts as w examples.

    - A loss or a mean of a Batch is `sum_i w_i l_i / sum_i w_i` over that Batch. Where no weight is
      above 0 it is 0, and so is its gradient. What lies under a weight of 0 may be anything.
    - Training on data with weights minimises that mean over the **whole data**, at any batch size:
      the gradient of a batch is multiplied by (mean weight of the batch) / (mean weight of the
      data). `fit`, `population.fit`, `make_train` and `make_scan` see the data and do so.
      `make_step` sees batches alone, and needs `mean_weight`.
    - A mean over steps or batches (`history`, `evaluate.mean_loss`) weighs each batch by the sum of
      its weights.

    Args:
      x: data, `[batch, ...]`, an array or a tree of them.
      c: conditions, `[batch, ...]`, classes as one-hot rows; absent by default.
      y: integer labels, `[batch]` (or `[batch, factors]`), -1 for unlabelled; absent by default.
      weight: how much each example counts, `[batch]`, finite and not negative; masks are weights of
        0 and 1. By default all count alike.
    """

    x: Any
    c: Any = ()
    y: Any = ()
    weight: Any = ()


class Weighted(NamedTuple):
    """A metric that is a mean over some of the examples alone, such as the labelled ones.

    A loss puts it among its metrics in place of a number. Means over steps and batches are then
    `sum_b W_b weight_b value_b / sum_b W_b weight_b`, W_b the weight of batch b: a batch without
    such examples has no share. A loss that is such a mean itself has a metric `loss` of this kind,
    which takes the place of its value. `batch.mean_over` makes one. As a number or a numpy array it
    is its value.

    Args:
      value: the mean over those examples; 0 where there is none.
      weight: their share of the batch, in [0, 1].
    Example:
      >>> from vaejax.types import Weighted
      >>> float(Weighted(0.25, weight=0.1))
      0.25
    """

    value: Any
    weight: Any

    def __float__(self) -> float:
        return float(self.value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.value, dtype)


class Estimate(NamedTuple):
    """A number and its standard error, in the same unit.

    Args:
      value: the estimate.
      error: its standard error; 0 for a closed form.
    """

    value: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval, value -+ 1.96 error."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.error:.3f})"


class Module(Protocol):
    """A network: a Linen module, or anything else that has these two functions."""

    def init(self, key: Key, /, *inputs: Any) -> Params:
        """New parameters.

        Args:
          key: for the initial values.
          *inputs: one example of each input, of which only shape and type count.
        Returns:
          The parameters, any tree.
        """

    def apply(self, params: Params, /, *inputs: Any, rngs: Any = None) -> Any:
        """The network at work on one example.

        Args:
          params: of the network.
          *inputs: the inputs.
          rngs: `{"dropout": key}` where layer noise is on; by default there is none.
        Returns:
          An array, or for a network that ends in a head a Distribution.
        """


class Loss(Protocol):
    """What is minimised: one function per paper."""

    def __call__(
        self, params: Params, key: Key, batch: Batch, step: Any, /
    ) -> tuple[Array, Metrics]:
        """The loss of one batch.

        Args:
          params: of the model, any tree.
          key: for all that is random in it.
          batch: the examples.
          step: the number of the optimizer step, which a schedule may read.
        Returns:
          One number for the batch, `()`, and its named parts; both in nats per example. A part that
          concerns some of the examples alone is a `Weighted`.
        """


class Transform(Protocol):
    """What is done to one stored example before the model sees it."""

    def __call__(self, key: Key, x: Any, /) -> Any:
        """Binarise, dequantise or scale one example.

        Args:
          key: for what is random in it, another one at each step.
          x: the example as it is stored, such as uint8 `[height, width, channels]`.
        Returns:
          The example as the model sees it, floating point.
        """


class StepOrder(Protocol):
    """Which examples a training step sees."""

    def __call__(self, key: Key, step: Array, /) -> Array:
        """The rows of the data for one step.

        Args:
          key: of the run.
          step: the number of the step, int32 `()`.
        Returns:
          Rows, int32 `[batch_size]`.
        """


class Init(Protocol):
    """The `init` of a Model."""

    def __call__(self, key: Key, x: Any, c: Any = (), /) -> Params:
        """New parameters.

        Args:
          key: for the initial values.
          x: one example, of which only shape and type count.
          c: its condition; absent by default.
        Returns:
          The parameters, any tree.
        """


class Prior(Protocol):
    """The `prior` of a Model."""

    def __call__(self, params: Params, c: Any = (), /) -> Any:
        """p(z|c).

        Args:
          params: of the model.
          c: the condition; absent by default.
        Returns:
          A Distribution over z, or None for a deterministic autoencoder.
        """


class Encode(Protocol):
    """The `encode` of a Model."""

    def __call__(self, params: Params, x: Any, c: Any = (), /, *, key: Key | None = None) -> Any:
        """q(z|x, c).

        Args:
          params: of the model.
          x: one example.
          c: its condition; absent by default.
          key: for dropout and the like; without it nothing is random.
        Returns:
          A Distribution over z.
        """


class Decode(Protocol):
    """The `decode` of a Model."""

    def __call__(self, params: Params, z: Any, c: Any = (), /, *, key: Key | None = None) -> Any:
        """p(x|z, c).

        Args:
          params, c, key: as for an `Encode`.
          z: one code.
        Returns:
          A Distribution over x.
        """


__all__ = [
    "Array",
    "Batch",
    "Decode",
    "Encode",
    "Estimate",
    "Init",
    "Initializer",
    "Key",
    "Loss",
    "Metrics",
    "Module",
    "Params",
    "PerExample",
    "PerUnit",
    "Prior",
    "StepOrder",
    "Transform",
    "Weighted",
    "describe",
    "describe_fields",
    "numbers_in",
]
