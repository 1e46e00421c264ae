"""The form of the library's error messages: where, what it got, what it expects, what mends it."""

import contextlib
import inspect
import warnings
from typing import Any

import jax
import numpy as np

from vaejax.types import Transform


def wrong(
    where: str, got: Any, expected: Any, fix: str, kind: type[Exception] = ValueError
) -> Exception:
    """An error that says where, what it got, what it expects, and what mends it.

    The caller raises it.

    Args:
      where: the function and its argument, as "fit: epochs".
      got: the value, or a description of it.
      expected: what would be right.
      fix: the line that mends it.
      kind: the class of the error.
    Returns:
      The error.
    """
    return kind(f"{where}: got {got}, expected {expected}; {fix}")


def missing(where: str, package: str, extra: str) -> ImportError:
    """An error that says which package is not installed; the caller raises it.

    Args:
      where: the function that needs it.
      package: its name, by which pip finds it.
      extra: the extra of vaejax that installs it.
    Returns:
      The error.
    """
    return ImportError(f"{where}: {package} is not installed; {installing(extra, package)}")


def installing(extra: str, *packages: str) -> str:
    """The commands that install an extra, or its packages alone.

    `vaejax[extra]` would ask the package index, which need not have vaejax.

    Args:
      extra: of vaejax.
      packages: by which pip finds what is missing.
    Returns:
      Words for a message.
    """
    return f'pip install -e ".[{extra}]" in a clone of vaejax, or pip install {" ".join(packages)}'


def concrete(value: Any) -> bool:
    """Whether a hyperparameter has a value to check, which it has not while JAX traces it.

    Args:
      value: a number or an array.
    Returns:
      False for a traced value.
    """
    return not isinstance(value, jax.core.Tracer)


def takes(where: str, function: Any, arguments: str, fix: str) -> None:
    """Raise unless a function can be called with as many positional arguments.

    Args:
      where: the function and its argument, for the message.
      function: what the user gave.
      arguments: the names of the arguments, such as "key, x".
      fix: the line that mends it.
    Raises:
      TypeError: where it can not.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # not callable; or a built-in, which does not tell
        signature = None
    if signature is not None:
        with contextlib.suppress(TypeError):
            signature.bind(*arguments.split(", "))
            return
    elif callable(function):
        return
    name = getattr(function, "__name__", type(function).__name__)
    got = name if signature is None else f"{name}({', '.join(signature.parameters)})"
    raise wrong(where, got, f"a function of ({arguments})", fix, TypeError)


def is_key(value: Any) -> bool:
    """Whether a value is an array of keys as `jax.random.key` makes them.

    Args:
      value: anything.
    Returns:
      True for such keys; the older `PRNGKey` is none.
    """
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def check_key(function: str, key: Any) -> None:
    """Raise unless a value is one key: of `jax.random.key`, or of the older `PRNGKey`.

    Args:
      function: the name of the caller, for the message.
      key: the value.
    Raises:
      TypeError: where it is not.
    """
    older = getattr(key, "dtype", None) == np.uint32 and np.ndim(key) == 1
    if older or (is_key(key) and key.shape == ()):
        return
    got = f"{key.dtype} {key.shape}" if hasattr(key, "dtype") else repr(key)[:40]
    fix = "jax.random.key(0) makes one, and it comes before the data"
    raise wrong(f"{function}: key", got, "one PRNG key", fix, TypeError)


def unscaled(x: Any) -> str:
    """The first thing to look at where x may be levels 0..255 stored as floats.

    Args:
      x: examples, an array or a tree of them.
    Returns:
      Words for a message, which end in "; else ", or "" where x is nothing of the kind.
    """
    leaf = np.asarray(jax.tree.leaves(x)[0])
    whole = np.issubdtype(leaf.dtype, np.floating) and np.all(leaf == np.floor(leaf))
    if not whole or leaf.min() < 0 or not 1 < leaf.max() <= 255:
        return ""
    return "levels 0..255 as floats have to be divided (x / 255), or stored as uint8; else "


def at_least_one(function: str, **counts: int | None) -> None:
    """Raise unless all counts are at least 1.

    Args:
      function: the name of the caller, for the message.
      counts: name to count; None is "not given".
    Raises:
      ValueError: naming the first that is below 1.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{function}: expected {name} >= 1, got {value}")


def finite_values(function: str, name: str, values: Any, x: Any, *, first: int = 0) -> np.ndarray:
    """The values of a data set in numpy, checked to be finite.

    Args:
      function: the name of the caller, for the message.
      name: of the quantity.
      values: one for each example, `[n]`.
      x: the examples, `[n, ...]`, whose range the message gives.
      first: the index of the first of them in the whole data set.
    Returns:
      The values, `[n]`.
    Raises:
      ValueError: naming the first example whose value is not finite.
    """
    found = np.asarray(values)
    if not np.isfinite(found).all():
        bad = np.flatnonzero(~np.isfinite(found))
        leaf = np.asarray(jax.tree.leaves(x)[0])[bad[0]]
        raise ValueError(
            f"{function}: {name} is {found[bad[0]]} for example {first + bad[0]} ({len(bad)} such "
            f"of {len(found)}), whose x lies in [{leaf.min():.4g}, {leaf.max():.4g}]; "
            f"{unscaled(leaf)}check for NaN and that the likelihood's support holds x (a transform "
            "such as data.binarize or data.scale), then the parameters"
        )
    return found


def warn_of_levels(
    x: Any, transform: Transform | None, function: str = "fit", stacklevel: int = 3
) -> None:
    """Warn (UserWarning) where all of x is uint8 levels 0..255 and no transform scales them.

    Args:
      x: one or more examples, of which only the type counts.
      transform: what is done to an example before the model sees it, or None.
      function: what was called, for the message.
      stacklevel: 3 for a caller that the user calls.
    """
    levels = [getattr(leaf, "dtype", None) == np.uint8 for leaf in jax.tree.leaves(x)]
    if transform is None and levels and all(levels):
        warnings.warn(
            f"{function}: x holds uint8 levels 0..255 and there is no transform, so the model sees "
            "numbers up to 255; pass transform=data.scale (or data.binarize, data.dequantize)",
            stacklevel=stacklevel,
        )


__all__ = [
    "at_least_one",
    "check_key",
    "concrete",
    "finite_values",
    "installing",
    "is_key",
    "missing",
    "takes",
    "unscaled",
    "warn_of_levels",
    "wrong",
]
