"""Shared type names, and the glossary of shapes.

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
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
Params: TypeAlias = Any
Metrics: TypeAlias = dict[str, Any]


class Batch(NamedTuple):
    """Examples with a leading axis on every leaf; `()` is "absent" and passes through `vmap`.

    `x`: data `[batch, ...]`; `c`: conditions `[batch, ...]`, classes as one-hot rows; `y`: integer
    labels `[batch]`, -1 for unlabelled; `weight`: `[batch]`, how much each example counts in the
    mean over the batch (masks and ragged ends).
    """

    x: Any
    c: Any = ()
    y: Any = ()
    weight: Any = ()


class Estimate(NamedTuple):
    """A number and its standard error, in the same unit; an error of 0 is a closed form."""

    value: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval, value -+ 1.96 error."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.error:.3f})"


Loss: TypeAlias = Callable[[Params, Key, Batch, Any], tuple[Array, Metrics]]
"""`(params, key, batch, step) -> (scalar, metrics)`: what is minimised, and its named parts."""

Transform: TypeAlias = Callable[[Key, Any], Any]
"""`(key, x) -> x` for one example: binarise, dequantise or scale stored data."""
