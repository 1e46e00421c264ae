"""The form of the library's error messages: where, what it got, what it expects, what mends it."""

import contextlib
import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vaejax.types import Transform, describe

WHOLE_LABELS = "np.where(np.isnan(y), -1, y).astype(int), -1 where unknown"  # of labels in floats


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
    name = getattr(function, "__name__", "None" if function is None else type(function).__name__)
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
    older = getattr(key, "dtype", None) == np.uint32 and np.shape(key) in ((2,), (4,))
    if older or (is_key(key) and key.shape == ()):
        return
    got = f"{key.dtype} {key.shape}" if hasattr(key, "dtype") else describe(key)
    fix = "jax.random.key(0) makes one"
    if not isinstance(key, int | None):  # an argument of its own in the place of the key
        fix += ", and it comes before the data"
    raise wrong(f"{function}: key", got, "one PRNG key", fix, TypeError)


def unscaled(x: Any) -> str:
    """What to do where x lies outside of the support of a likelihood, by the range of x.

    Args:
      x: examples, an array or a tree of them, as they are stored.
    Returns:
      Words for a message: what mends levels stored as floats, numbers below 0 or above 1, and
      numbers in [0, 1].
    """
    leaf = np.asarray(jax.tree.leaves(x)[0])
    low, high = float(leaf.min()), float(leaf.max())
    floats = np.issubdtype(leaf.dtype, np.floating)
    if floats and low >= 0 and 1 < high <= 255 and np.all(leaf == np.floor(leaf)):
        return "levels 0..255 as floats have to be divided (x / 255), or stored as uint8"
    if floats and not 0 <= low <= high <= 1:
        return (
            "numbers outside [0, 1] are for heads.SharedNormal or heads.Normal; for a likelihood "
            "on [0, 1] move them there first, (x - x.min()) / (x.max() - x.min()): the transforms "
            "of vaejax.data leave floats where they are"
        )
    if floats:
        return (
            "floats in [0, 1] are for heads.ContinuousBernoulli, or for heads.Bernoulli after "
            "transform=data.binarize; heads.DiscretizedLogistic wants the grid k / 255: "
            "np.rint(x * 255).astype(np.uint8) with transform=data.scale"
        )
    return "levels need transform=data.binarize or data.scale"


def at_least_one(function: str, optional: tuple[str, ...] = (), /, **counts: Any) -> None:
    """Raise unless all counts are whole numbers from 1 on.

    Args:
      function: the name of the caller, for the message.
      optional: names of those that may be None, "not given".
      counts: name to count.
    Raises:
      ValueError: naming the first that is below 1.
      TypeError: naming the first that is no whole number.
    """
    at_least(1, function, optional, **counts)


def at_least(least: int, function: str, optional: tuple[str, ...] = (), /, **counts: Any) -> None:
    """Raise unless all counts are whole numbers, not below a least one.

    Args:
      least: the smallest that is allowed.
      function: the name of the caller, for the message.
      optional: names of those that may be None, "not given".
      counts: name to count. Traced ones are not looked at.
    Raises:
      ValueError: naming the first that is below.
      TypeError: naming the first that is no whole number, such as 2.5, "2" or True.
    """
    for name, value in counts.items():
        if (value is None and name in optional) or not concrete(value):
            continue
        if not is_whole(value):
            fix = f"pass a whole number, such as {name}={max(least, 1)}"
            got, expected = describe(value), f"a whole number >= {least}"
            raise wrong(f"{function}: {name}", got, expected, fix, TypeError)
        if value < least:
            raise ValueError(f"{function}: expected {name} >= {least}, got {value}")


def is_whole(value: Any) -> bool:
    """Whether a value is one whole number: of Python, numpy or JAX, and no boolean.

    Args:
      value: anything.
    Returns:
      True for such numbers.
    """
    if isinstance(value, int):
        return not isinstance(value, bool)
    dtype = getattr(value, "dtype", None)
    return dtype is not None and np.ndim(value) == 0 and jax.dtypes.issubdtype(dtype, np.integer)


def sizes(where: str, values: Any, *, empty: bool = False) -> tuple[int, ...]:
    """Sizes of a shape or widths of layers, checked: whole numbers from 1 on.

    Args:
      where: the function and its argument, for the message.
      values: one size, or a sequence of them.
      empty: whether there may be none.
    Returns:
      All of them.
    Raises:
      TypeError: for what is no whole number.
      ValueError: for one below 1, and for none.
    """
    found = (values,) if is_whole(values) else values
    expected = "whole numbers from 1 on"
    fix = "such as (400, 200), or (28, 28, 1) for a shape"
    if not isinstance(found, tuple | list) or not all(map(is_whole, found)):
        raise wrong(where, describe(values), expected, fix, TypeError)
    if any(size < 1 for size in found) or not (found or empty):
        raise wrong(where, describe(values), expected, fix)
    return tuple(found)


def check_number(where: str, value: Any, *, above: float | None = None) -> None:
    """Raise unless a setting is one finite number.

    Args:
      where: the function and its argument, for the message.
      value: a number, or an array `()`. A traced one is not looked at.
      above: what it has to be larger than; None for any number.
    Raises:
      TypeError: for what is no number.
      ValueError: for NaN, infinity, and a number that is not above.
    """
    if not concrete(value):
        return
    expected = "one number" if above is None else f"one number above {above:g}"
    dtype = getattr(value, "dtype", None)
    number = isinstance(value, int | float) or (
        dtype is not None and np.ndim(value) == 0 and jax.dtypes.issubdtype(dtype, np.number)
    )
    if isinstance(value, bool) or not number:
        raise wrong(where, describe(value), expected, "such as 1.0", TypeError)
    if not np.isfinite(value) or (above is not None and not value > above):
        raise wrong(where, describe(value), expected, "such as 1.0")


def checked_result(function: str, result: Any) -> Any:
    """What a loss returned, as it is.

    Args:
      function: the name of the caller, for the message.
      result: what the loss returned, also while it is traced.
    Returns:
      The result: one number and a dictionary.
    Raises:
      TypeError: where there is no dictionary of metrics.
      ValueError: where the value is not one number.
    """
    expected = "one number and a dictionary of metrics"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        fix = "return value, {}"
        raise wrong(f"{function}: loss", f"{describe(result)} of it", expected, fix, TypeError)
    if np.shape(result[0]) != ():
        got, fix = (
            f"a value of shape {np.shape(result[0])}",
            "take the mean: batch_mean(values, batch.weight)",
        )
        raise wrong(f"{function}: loss", got, expected, fix)
    return result


def as_path(where: str, path: Any) -> Path:
    """A path as one of `pathlib`, with `~` for the home folder.

    Args:
      where: the function and its argument, for the message.
      path: the path, or a string.
    Returns:
      The path.
    Raises:
      TypeError: for anything else.
    """
    if isinstance(path, str | os.PathLike) and not isinstance(os.fspath(path), bytes):
        return Path(path).expanduser()
    raise wrong(where, describe(path), "a path", "such as 'runs/first'", TypeError)


def check_parameters(where: str, params: Any) -> None:
    """Raise unless a value can be parameters: a tree of arrays, whatever the model.

    Args:
      where: the function and its argument, for the message.
      params: the value.
    Raises:
      TypeError: for `Fitted`, a state, a model, a key, strings, whole numbers and the like.
    """
    expected = "parameters, a tree of arrays of floats"
    if isinstance(params, tuple) and hasattr(params, "params"):
        name = type(params).__name__
        raise wrong(where, f"a {name}", expected, "pass its .params", TypeError)
    if hasattr(params, "encode") and hasattr(params, "decode"):
        raise wrong(where, "a model", expected, "make them: model.init(key, x)", TypeError)
    fix = "pass what model.init(key, x) made, or .params of what fit returned"
    leaves = jax.tree.leaves(params)
    if params is None or isinstance(params, str):
        raise wrong(where, describe(params), expected, fix, TypeError)
    for leaf in leaves:
        dtype = getattr(leaf, "dtype", np.dtype(float) if isinstance(leaf, float) else None)
        if dtype is None or not jax.dtypes.issubdtype(dtype, np.floating):
            raise wrong(where, f"{describe(leaf)} among them", expected, fix, TypeError)


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
            f"of {len(found)}), whose x lies in [{leaf.min():.4g}, {leaf.max():.4g}]; check for "
            f"NaN, that the likelihood's support holds x ({unscaled(leaf)}), then the parameters"
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
    "as_path",
    "at_least",
    "at_least_one",
    "check_key",
    "check_number",
    "check_parameters",
    "checked_result",
    "concrete",
    "finite_values",
    "installing",
    "is_key",
    "is_whole",
    "missing",
    "sizes",
    "takes",
    "unscaled",
    "warn_of_levels",
    "wrong",
]
