"""Speed of the contractive penalty: closed form against whole Jacobians and Hutchinson's estimate.

    python -m experiments.benchmarks.contractive [gradient|value] [--rounds N] [--out FILE.json]

What is compared, and the figures to expect: experiments/benchmarks/README.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments import common
from experiments.benchmarks import paired
from experiments.benchmarks.options import Timed
from vaejax import contraction, heads
from vaejax.batch import over_examples
from vaejax.model import Model, autoencoder
from vaejax.types import Array, Key, Params


@dataclass(frozen=True)
class Config(Timed):
    size: tuple[int, int] = (28, 28)  # height and width of the images
    units: int = 400  # of the one sigmoid layer
    batch_size: int = 128  # images whose mean penalty is one evaluation
    gradient: bool = True  # with its gradient by the parameters, as training needs it
    calls: int = 50  # evaluations by the fast programs in a round; the whole Jacobians make one


PRESETS = {"gradient": Config(), "value": Config(gradient=False)}


def whole(differentiate: Callable[..., Any]) -> contraction.Norm:
    """|df/dx|_F^2 from the whole Jacobian, which `jax.jacrev` or `jax.jacfwd` makes."""

    def norm(
        model: Model, params: Params, key: Key, x: Any, c: Any = (), *, shift: Any = None
    ) -> Array:
        return jnp.sum(differentiate(lambda x: model.encode(params, x).mean)(x) ** 2)

    return norm


def program(config: Config, norm: contraction.Norm, calls: int) -> paired.Program:
    """`calls` evaluations of the mean penalty of one batch (and its gradient), compiled."""
    shape = (*config.size, 1)
    init_key, image_key, key = jax.random.split(jax.random.key(config.seed), 3)
    model = autoencoder(heads.Code(config.units, nn.sigmoid), heads.Bernoulli(shape))
    x = jax.random.uniform(image_key, (config.batch_size, *shape))
    params = model.init(init_key, x[0])

    def penalty(params: Params, key: Key, x: Any) -> Array:
        return jnp.mean(over_examples(lambda k, one: norm(model, params, k, one), key, x))

    began = perf_counter()
    function = jax.value_and_grad(penalty) if config.gradient else penalty
    compiled = jax.jit(function).lower(params, key, x).compile()

    def evaluate(_: Any) -> Any:
        for _ in range(calls):
            result = jax.block_until_ready(compiled(params, jax.random.clone(key), x))
        return result[0] if config.gradient else result

    facts = {"compile_seconds": perf_counter() - began}
    return paired.Program(lambda: None, evaluate, calls * config.batch_size, facts)


def programs(config: Config) -> dict[str, paired.Program]:
    """A program for each norm. The whole Jacobians are evaluated once in a round."""
    return {
        "closed_form": program(config, contraction.closed_form, config.calls),
        "hutchinson": program(config, contraction.hutchinson(1), config.calls),
        "jacfwd": program(config, whole(jax.jacfwd), 1),
        "jacrev": program(config, whole(jax.jacrev), 1),
    }


def main(config: Config) -> dict[str, Any]:
    """Measure, print a table and write it; returns what the JSON file holds."""
    if config.smoke:
        config = replace(config, size=(4, 3), units=5, batch_size=3, calls=2, rounds=2)
    return paired.measure(programs(config), config, unit="images", numerator="closed_form")


if __name__ == "__main__":
    main(common.parse(PRESETS, __doc__ or ""))
