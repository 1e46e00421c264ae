"""A native convolution in a loop on a CPU, where XLA runs it many times slower: told once."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax


def telling(function: str, program: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled program that warns at its first call of native convolutions on a CPU.

    Nothing is traced for it: the program keeps what it traces for its first call. What stands in a
    branch is left out, since `lax.platform_dependent` has its convolutions of other devices there.

    Args:
      function: what the user called, for the message.
      program: of `jax.jit`, which loops over the steps; its first argument is the state.
    Returns:
      The same program.
    """
    told = False

    def run(*arguments: Any) -> Any:
        nonlocal told
        if not told:
            told = True
            if _on_cpu(arguments[0]) and _convolves(program.trace(*arguments).jaxpr.jaxpr):  # type: ignore[attr-defined]
                warnings.warn(
                    f"{function}: got a native convolution (flax.linen.Conv or ConvTranspose) in "
                    "the loss or the transform, expected none on a CPU, where it runs several "
                    "times slower in the loop over the steps; networks.Conv is a matrix product "
                    "there, and networks.ConvDecoder or depth_to_space goes from maps back to "
                    "images",
                    stacklevel=2,
                )
        return program(*arguments)

    return run


def _on_cpu(state: Any) -> bool:
    leaf = next(leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))
    return next(iter(leaf.devices())).platform == "cpu"


def _convolves(jaxpr: Any) -> bool:
    """Whether a native convolution is computed in any case."""
    return any(
        equation.primitive.name == "conv_general_dilated"
        or (equation.primitive.name != "cond" and any(map(_convolves, _inside(equation))))
        for equation in jaxpr.eqns
    )


def _inside(equation: Any) -> Iterator[Any]:
    """The programs that an equation calls."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part
