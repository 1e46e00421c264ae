"""What people have as data, as arrays of numbers: tensors, frames, lists; the rest is refused.

Other libraries are told by what their objects can do, and none of them is imported. Beside it
stands what is done to any tree of arrays: fetched to the host, compared, digested, searched for
NaN.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.errors import is_key, wrong
from vaejax.types import Array, describe

_WORDS = "numbers as words: x.astype(float); classes: np.unique(x, return_inverse=True)[1]"
_SEVERAL_LENGTHS = "cut or fill them; sequences of several lengths are for recurrent.padded"


def numbers(where: str, value: Any, expected: str = "an array of numbers") -> Any:
    """One array of numbers, of whatever holds them.

    JAX's and numpy's arrays come back as they are, traced ones too; numpy's of another byte order
    are swapped. Tensors of other libraries, lists (rows, numbers, tensors) and data frames of
    numeric columns become numpy arrays.

    Args:
      where: the function and its argument, for the messages.
      value: what was given.
      expected: what it should be, for the messages.
    Returns:
      An array of JAX or numpy; booleans count as numbers.
    Raises:
      TypeError: for what holds no numbers: paths, strings, objects, sparse matrices, loaders,
        functions, keys, and complex numbers.
      ValueError: for rows of several lengths, and for columns of a frame with values missing.
    Example:
      >>> import numpy as np
      >>> from vaejax.arrays import numbers
      >>> numbers("fit: data", [[0.0, 1.0], [2.0, 3.0]]).shape
      (2, 2)
    """
    if isinstance(value, jax.Array):
        if is_key(value):
            fix = "the key comes before the data"
            raise wrong(where, "a PRNG key", expected, fix, TypeError)
        return _checked(where, value, expected)
    if isinstance(value, np.ndarray | np.generic):
        return _checked(where, value, expected)
    if hasattr(value, "columns") and hasattr(value, "to_numpy"):
        return _frame(where, value)
    _check_holds_numbers(where, value, expected)
    if hasattr(value, "detach"):  # a torch tensor that a gradient is taken by
        value = value.detach()
    if isinstance(value, list | tuple):
        return _rows(where, value, expected)
    try:
        array = np.asarray(value)
    except Exception as error:
        got, fix = (
            f"{_name(value)} ({_first_line(error)})",
            "make a numpy array of it: x.float().cpu().numpy()",
        )
        raise wrong(where, got, expected, fix, TypeError) from error
    return _checked(where, array, expected, describe(value))


def examples(where: str, tree: Any, expected: str = "examples [n, ...]") -> Any:
    """A tree of such arrays: dictionaries, tuples and other trees hold several, a list is rows.

    Args:
      where: the function and its argument, for the messages.
      tree: what was given.
      expected: what it should be, for the messages.
    Returns:
      The tree, each leaf as `numbers` gives it.
    Raises:
      TypeError: as `numbers` does, and for parameters in place of the data.
      ValueError: as `numbers` does, and for an empty tree.
    """
    if isinstance(tree, jax.Array):  # as in every step of a run
        return numbers(where, tree, expected)
    if isinstance(tree, Mapping) and {"params", "encoder", "decoder"} & set(tree):
        fix = "the order is params, then data (in measures params, key, data)"
        raise wrong(where, "parameters of a model", expected, fix, TypeError)
    if isinstance(tree, tuple) and hasattr(tree, "params"):
        fix = "pass its .params, before the data"
        raise wrong(where, f"a {type(tree).__name__}", expected, fix, TypeError)
    if isinstance(tree, tuple) and any(callable(part) for part in tree):
        raise wrong(where, _name(tree), expected, "the model comes first, the data last", TypeError)
    found = jax.tree.map(
        lambda leaf: numbers(where, leaf, expected), tree, is_leaf=lambda node: not _is_tree(node)
    )
    if not jax.tree.leaves(found):
        raise wrong(where, "nothing", expected, "pass an array, one row for each example")
    return found


def check_unmasked(where: str, array: Any) -> None:
    """Raise ValueError for a masked array of numpy, whose mask JAX would drop.

    Args:
      where: the function and its argument, for the message.
      array: anything; a mask that hides nothing is none.
    Raises:
      ValueError: where it hides something.
    """
    if isinstance(array, np.ma.MaskedArray) and (hidden := int(np.ma.count_masked(array))):
        got, fix = f"{hidden} masked values", "choose what stands for them: array.filled(value)"
        raise wrong(where, got, "an array without a mask", fix)


def differences(found: dict[str, Any], expected: dict[str, Any], *, there: str) -> str:
    """What two descriptions by name differ in, for an error message.

    Args:
      found: name to description, of what was found.
      expected: name to description, of what is here.
      there: what `found` is of ("checkpoint", "file").
    Returns:
      At most 8 lines; "" where they agree.
    """
    lines = [
        f"{name or 'the whole'}: {there} {found.get(name, 'absent')}, "
        f"here {expected.get(name, 'absent')}"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    return "\n  ".join(lines if len(lines) <= 8 else [*lines[:7], f"... {len(lines) - 7} more"])


def digest(tree: Any) -> str:
    """A SHA-256 of the bytes of a tree's arrays, in order.

    Args:
      tree: of arrays.
    Returns:
      Hexadecimal digits.
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(on_host(tree)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def finite(tree: Any) -> Array:
    """Whether all numbers of a tree of arrays are finite; may be traced.

    Args:
      tree: of arrays, at least one.
    Returns:
      A boolean, `()`.
    """
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def on_host(tree: Any) -> Any:
    """A tree's arrays whole, in numpy, on every process.

    Keys stay as they are, and leaves that are no arrays too. Of several processes each has to call
    it, since parts that lie on others are gathered.

    Args:
      tree: of arrays.
    Returns:
      The same tree, of numpy arrays.
    """

    def fetch(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return jax.device_get(leaf)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)


def _is_tree(node: Any) -> bool:
    """Whether what a node holds are arrays of their own, and not rows or numbers of one array."""
    if node is None or isinstance(node, list) or hasattr(node, "todense"):
        return False
    return not jax.tree_util.all_leaves([node])


def _check_holds_numbers(where: str, value: Any, expected: str) -> None:
    """Raise TypeError for the kinds of things that people give and that hold no array."""
    got, fix = _name(value), ""
    if value is None:
        fix = "pass an array, one row for each example"
    elif isinstance(value, str | bytes | os.PathLike):
        got = f"{value!r:.60}"
        fix = "data.load(path) reads a file or a named set, sources.open(path) a folder"
    elif hasattr(value, "todense"):
        got = f"a sparse {_name(value)}"
        fix = f"pass x.{'toarray' if hasattr(value, 'toarray') else 'todense'}()"
    elif getattr(value, "is_sparse", False):
        got, fix = "a sparse tensor", "pass x.to_dense()"
    elif isinstance(value, Mapping):
        fix = "pass its array"
    elif hasattr(value, "__array__") or isinstance(value, list | tuple | int | float | range):
        return
    elif isinstance(value, complex):
        got, fix = "a complex number", "pass its parts: np.stack([z.real, z.imag], -1)"
    elif hasattr(value, "encode") and hasattr(value, "decode"):
        got, fix = "a model", "the model comes before the data"
    elif hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        got = f"{got}, a data set of rows"
        fix = (
            "stack them: np.stack([x for x, *_ in rows]); or make a sources.Source that reads them"
        )
    elif hasattr(value, "__iter__") or hasattr(value, "__next__"):
        got = f"{got}, which gives parts one after the other"
        fix = (
            "join them: np.concatenate([x for x, *_ in loader]); or train by train.make_step in a "
            "loop of your own"
        )
    else:
        fix = "pass an array, one row for each example"
    if fix:
        raise wrong(where, got, expected, fix, TypeError)


def _checked(where: str, array: Any, expected: str, name: str = "") -> Any:
    """An array as it is, once its type is one of numbers."""
    dtype = array.dtype
    if dtype.kind == "b" or (dtype.kind in "iuf" and dtype.isnative):
        return array
    got = f"{name or 'an array'} of {dtype}"
    if dtype.kind in "iufb":
        return array.astype(dtype.newbyteorder("="))
    if jnp.issubdtype(dtype, jnp.complexfloating):
        fix = "pass its parts: np.stack([x.real, x.imag], -1)"
    elif jnp.issubdtype(dtype, jnp.number):  # bfloat16 and such
        return array
    elif dtype.kind in "US":
        fix = _WORDS
    elif dtype.kind == "O":
        missing, fix = _objects(array)
        got += " with values missing" if missing else ""
    elif dtype.kind in "mM":
        fix = "choose a unit: x.astype('datetime64[s]').astype(float)"
    else:
        fix = "pass one array of its numbers: np.stack([x[name] for name in x.dtype.names], -1)"
    raise wrong(where, got, expected, fix, TypeError)


def _objects(array: Any) -> tuple[bool, str]:
    """Whether values are missing in an array of objects, and what makes numbers of it."""
    values = np.asarray(array, object).ravel()
    words = any(isinstance(v, str) for v in values)
    missing = any(v is None or type(v).__name__ == "NAType" for v in values)
    missing |= any(isinstance(v, float) and v != v for v in values)
    if words and missing:
        return (
            missing,
            "drop or fill them; classes: pandas.factorize(x)[0], -1 where one is missing",
        )
    if missing:
        fix = "drop or fill them, labels by -1: fillna(-1), or [-1 if v is None else v for v in y]"
        return missing, fix
    if words:
        return missing, _WORDS
    return (
        missing,
        "make rows of one length and of numbers: np.stack([np.asarray(row) for row in x])",
    )


def _rows(where: str, value: Any, expected: str) -> Any:
    """A list of rows, of numbers, or of lists of them, as one array."""
    nested = value
    while isinstance(nested, list | tuple) and len(nested):
        nested = nested[0]
    if nested is None or isinstance(
        nested, bool | int | float | complex | str | bytes | list | tuple
    ):
        try:
            return _checked(where, np.asarray(value), expected, "a list")
        except ValueError as error:
            got, fix = "rows of several lengths", _SEVERAL_LENGTHS
            raise wrong(where, got, "rows of one shape", fix) from error
    parts = [numbers(f"{where}[{i}]", part, "a row of numbers") for i, part in enumerate(value)]
    shapes = {np.shape(part) for part in parts}
    if len(shapes) > 1:
        got = f"rows of {len(shapes)} shapes, such as {' and '.join(map(str, sorted(shapes)[:2]))}"
        raise wrong(where, got, "rows of one shape", _SEVERAL_LENGTHS)
    if any(isinstance(part, jax.Array) for part in parts):
        return jnp.stack(parts)
    return np.stack(parts)


def _frame(where: str, frame: Any) -> np.ndarray:
    """A data frame as an array, where its columns are numbers; their names are for the messages."""
    names = list(frame.columns)
    columns = [np.asarray(frame[name]) for name in dict.fromkeys(names)]
    if sum(1 if c.ndim == 1 else c.shape[1] for c in columns) != len(names):
        fix = "give each column a name of its own"
        raise wrong(where, "columns of one name", "a name for each", fix)
    bad = {
        str(name): str(getattr(frame[name], "dtype", column.dtype))
        for name, column in zip(dict.fromkeys(names), columns, strict=True)
        if column.dtype.kind not in "biuf"
    }
    if bad:
        got = ", ".join(f"{name!r} of {dtype}" for name, dtype in list(bad.items())[:4])
        fix = "drop them, or turn them into numbers (pandas.get_dummies, fillna)"
        raise wrong(where, f"columns {got}", "columns of numbers without gaps", fix, TypeError)
    for name, column in zip(dict.fromkeys(names), columns, strict=True):
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            rows = np.flatnonzero(~np.isfinite(column))
            got = f"NaN or infinity in column {str(name)!r}, in {len(rows)} rows from {rows[0]} on"
            raise wrong(where, got, "finite numbers", "drop those rows, or fill them: fillna")
    found = np.column_stack(columns) if columns else np.zeros((len(frame), 0))
    return _checked(where, found, "numbers", "a frame")


def _name(value: Any) -> str:
    kind = type(value)
    home = kind.__module__.split(".")[0]
    known = value is None or isinstance(value, bool | int | float | str) or callable(value)
    if known and not isinstance(value, type):
        return describe(value)
    return kind.__name__ if home == "builtins" else f"{home}'s {kind.__name__}"


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:100]


__all__ = [
    "check_unmasked",
    "differences",
    "digest",
    "examples",
    "finite",
    "numbers",
    "on_host",
]
