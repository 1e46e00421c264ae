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

from typing import Any, NamedTuple, Protocol, TypeAlias

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


class Loss(Protocol):
    """What is minimised: one function per paper."""

    def __call__(
        self, params: Params, key: Key, batch: Batch, step: Any, /
    ) -> tuple[Array, Metrics]:
        """One number for the batch, `()`, and its named parts; both in nats per example.

        `step`: the number of the optimizer step, which a schedule may read.
        """


class Transform(Protocol):
    """What is done to one stored example before the model sees it."""

    def __call__(self, key: Key, x: Any, /) -> Any:
        """Binarise, dequantise or scale `x`; drawn anew at each step."""


class StepOrder(Protocol):
    """Which examples a training step sees."""

    def __call__(self, key: Key, step: Array, /) -> Array:
        """The rows of the data for one step: int32 `[batch_size]`."""


class Init(Protocol):
    """The `init` of a Model."""

    def __call__(self, key: Key, x: Any, c: Any = (), /) -> Params:
        """New parameters, from one example `x` and its condition `c`."""


class Prior(Protocol):
    """The `prior` of a Model."""

    def __call__(self, params: Params, c: Any = (), /) -> Any:
        """p(z|c), a Distribution."""


class Encode(Protocol):
    """The `encode` of a Model."""

    def __call__(self, params: Params, x: Any, c: Any = (), /, *, key: Key | None = None) -> Any:
        """q(z|x, c), a Distribution; `key` is for dropout, and without it nothing is random."""


class Decode(Protocol):
    """The `decode` of a Model."""

    def __call__(self, params: Params, z: Any, c: Any = (), /, *, key: Key | None = None) -> Any:
        """p(x|z, c), a Distribution; `key` is for dropout, and without it nothing is random."""
