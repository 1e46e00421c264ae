"""Parameters in one file that is safe to share: safetensors, with a description and a checksum.

`save(path, params)` and `load(path, like=model.init(...))`. A file holds numbers and names, and
loading it executes nothing: whoever loads it builds the model. A file that was damaged, cut off or
swapped, or that belongs to another model, is refused with an error that says why, and is never
loaded in part. The checksum is against damage; it does not say who made the file.

Any safetensors reader opens it, with names such as "encoder/params/layers_0/kernel". The entry
"vaejax" of its metadata is a JSON text: `format`, the `vaejax` that wrote it, `about` (the
caller's), `nodes` and `tensors` (the tree by name), `data` (SHA-256 of the tensors' bytes in the
order of their names), and `sha256`, last, of the same text without it. Every format keeps to that.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from vaejax._version import __version__
from vaejax.arrays import differences, digest
from vaejax.errors import as_path, wrong
from vaejax.types import Params

FORMAT = 1

_DTYPES = {
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype(bool),
}

_HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library


def save(path: str | Path, params: Params, *, about: Any = None) -> None:
    """Write parameters to one safetensors file, completely or not at all.

    An existing file is replaced at the end, by a rename.

    Args:
      path: the file to write.
      params: a pytree of arrays: floats of 16 to 64 bits and bfloat16, integers, booleans.
      about: JSON values that `about(path)` gives back, for instance
        `{"experiment": "vae", "config": {...}}`.
    Raises:
      TypeError: for a leaf that is no such array.
      ValueError: for two leaves with one name, or an `about` that JSON cannot hold.
      OSError: where the file cannot be written.
    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> from vaejax import weights
      >>> params = {"decoder": {"kernel": np.zeros((2, 3), np.float32)}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "model.safetensors"
      ...     weights.save(path, params, about={"experiment": "vae"})
      ...     loaded = weights.load(path, like=params)
      ...     note = weights.about(path)
      >>> loaded["decoder"]["kernel"].shape
      (2, 3)
      >>> note["about"], note["tensors"]
      ({'experiment': 'vae'}, {'decoder/kernel': 'float32[2, 3]'})
    """
    path = as_path("weights.save: path", path).resolve()
    if path.exists() and not path.is_file():  # the rename would take the place of a device, too
        fix = 'give a file in it, such as "model.safetensors"'
        raise wrong("weights.save: path", f"{path}, no file", "a file", fix, IsADirectoryError)
    nodes, leaves = _named("weights.save", params)
    arrays = {name: _little_endian(leaf) for name, leaf in jax.device_get(leaves).items()}
    _write(path, _serialized(nodes, arrays, about))


def load(path: str | Path, *, like: Params) -> Params:
    """The parameters in a file, in the structure of `like` and where its arrays are.

    Nothing is read before the header agrees.

    Args:
      path: the file to read.
      like: parameters of the model that they are for (`model.init(...)`, or `jax.eval_shape` of
        it), whose structure, names, shapes and types must agree. The loaded arrays go on the
        shardings of its arrays; where it has NumPy arrays, they are NumPy arrays.
    Returns:
      the parameters.
    Raises:
      ValueError: for a file that is not of `save`, is truncated or damaged, is of a newer format,
        or is of another model (with the entries that differ).
      FileNotFoundError: where there is none.
    """
    nodes, leaves = _named("weights.load", like)
    with _opened("weights.load", path) as (file, header):
        here = {name: _described(leaf) for name, leaf in leaves.items()} | nodes
        if lines := differences(header["tensors"] | header["nodes"], here, there="file"):
            raise ValueError(
                f"weights.load: {path} holds parameters of another model:\n  {lines}\n"
                "Build the model that they are for; weights.about(path) tells what was noted."
            )
        arrays = _tensors("weights.load", path, file, header)
    placed = [_placed(arrays[name], leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def about(path: str | Path) -> dict[str, Any]:
    """What a file says of itself, its checksum verified: of the header only, no tensor is read.

    Args:
      path: the file to read.
    Returns:
      `format`, `vaejax` (the version that wrote it), `about` as it was saved, and `tensors`:
      `{"encoder/params/layers_0/kernel": "float32[784, 400]"}`.
    Raises:
      ValueError, FileNotFoundError: as for `load`.
    """
    with _opened("weights.about", path) as (_, header):
        return {name: header[name] for name in ("format", "vaejax", "about", "tensors")}


def tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, checked as `load` checks them, without a model to compare with.

    Args:
      path: the file to read.
    Returns:
      the NumPy arrays, by names such as "encoder/params/layers_0/kernel".
    Raises:
      ValueError, FileNotFoundError: as for `load`.
    """
    with _opened("weights.tensors", path) as (file, header):
        return _tensors("weights.tensors", path, file, header)


def name_of(path: Any) -> str:
    """The name of a leaf by its key path in the tree: "encoder/params/layers_0/kernel".

    Args:
      path: a key path of JAX, as `jax.tree_util.tree_leaves_with_path` gives it.
    Returns:
      the keys, with "/" between them.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(where: str, tree: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """The kinds of a tree's inner nodes by name, empty ones too, and its leaves, in JAX's order."""
    nodes: dict[str, str] = {}
    leaves: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if name in nodes or name in leaves or name == "__metadata__":
            fix = 'rename a key: a level of the tree adds "/"'
            raise wrong(where, f"two parts named {name!r}", "a name for each", fix)
        one_level = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda n: n is not node)
        if [child for _, child in one_level if child is node]:
            leaves[name] = node
            _check_array(where, name, node)
            return
        nodes[name] = _kind(node)
        for key, child in one_level:
            visit(f"{name}/{name_of(key)}" if name else name_of(key), child)

    visit("", tree)
    return nodes, leaves


def _kind(node: Any) -> str:
    """What a node is, but for the class names of mappings and named tuples, whose keys say it."""
    if isinstance(node, Mapping):
        return "dict"
    if node is None:
        return "None"
    named = isinstance(node, tuple) and hasattr(node, "_fields")
    return "NamedTuple" if named else type(node).__name__


def _check_array(where: str, name: str, leaf: Any) -> None:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or dtype.name not in {known.name for known in _DTYPES.values()}:
        got = f"{name or 'the whole'} {type(leaf).__name__ if dtype is None else dtype}"
        key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        fix = "save jax.random.key_data(key)" if key else "make it one, by jnp.asarray, or drop it"
        raise wrong(where, got, "arrays of floats, integers or booleans", fix, TypeError)


def _described(leaf: Any) -> str:
    return f"{leaf.dtype.name}{list(leaf.shape)}"


def _little_endian(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf, order="C")
    return array.astype(array.dtype.newbyteorder("<")) if array.dtype.str[0] == ">" else array


def _serialized(nodes: dict[str, str], arrays: dict[str, np.ndarray], about: Any) -> bytes:
    import safetensors.numpy

    header = {
        "format": FORMAT,
        "vaejax": __version__,
        "about": about,
        "nodes": nodes,
        "tensors": {name: _described(array) for name, array in arrays.items()},
        "data": digest(arrays),
    }
    try:
        header["sha256"] = _sha256(header)
        text = json.dumps(header)
        _json(text)  # {1: ..., "1": ...} would be one name twice
    except (TypeError, ValueError, RecursionError) as error:
        fix = "make arrays lists, paths strings, NaN None"
        raise wrong("weights.save: about", error, "JSON values", fix) from error
    return safetensors.numpy.save(arrays, {"vaejax": text})


def _sha256(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, allow_nan=False).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        message = f"weights.save: {path} was not written, and what was there is as it was"
        raise OSError(error.errno, f"{message} ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def _opened(where: str, path: str | Path) -> Iterator[tuple[BinaryIO, dict[str, Any]]]:
    """A file and its header, which agree with each other and with the file's size."""
    path = as_path(f"{where}: path", path)
    if not path.is_file():
        there = path.exists()
        got = f"{path}, which is {'no file' if there else 'not there'}"
        fix = "a run's folder is for checkpoint.load" if there else "check the path"
        kind: type[Exception] = IsADirectoryError if there else FileNotFoundError
        raise wrong(f"{where}: path", got, "a file of weights.save", fix, kind)
    with path.open("rb") as file:
        yield file, _header(where, path, file)


def _header(where: str, path: Path, file: BinaryIO) -> dict[str, Any]:
    """The verified header. No number in the file is trusted before it was compared to the file."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > _HEADER_LIMIT or file.read(1) != b"{":
        raise ValueError(f"{where}: {path} is not a safetensors file; give one of weights.save")
    if length > size - 8:
        raise ValueError(f"{where}: {path} is truncated: {size} bytes, a header of {length}")
    file.seek(8)
    try:
        outer = _json(file.read(length).decode())
        metadata = outer.pop("__metadata__", {})
        end = 8 + length + max((entry["data_offsets"][1] for entry in outer.values()), default=0)
        short, long = size < end, size > end
        text = metadata.get("vaejax")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(where, path, f"its header is not safetensors' ({error})") from error
    if text is None:
        raise ValueError(
            f"{where}: {path} is a safetensors file of something else, without the header of "
            "weights.save; read it by safetensors.numpy.load_file, put its arrays where "
            "model.init(...) has them, and weights.save the result"
        )
    if short:
        raise ValueError(f"{where}: {path} is truncated: {size} of {end} bytes; get it again")
    if long:
        raise _damaged(where, path, f"{size - end} bytes too many")
    header = _verified(where, path, text)
    if set(outer) != set(header["tensors"]):
        raise _damaged(where, path, "its tensors are not those of its description")
    return header


def _verified(where: str, path: Path, text: Any) -> dict[str, Any]:
    """The description, from the JSON text that has its checksum."""
    try:
        header = _json(text)
        stored = header.pop("sha256")
        same = stored == _sha256(header) and text == json.dumps({**header, "sha256": stored})
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(where, path, f"its description does not read ({error})") from error
    if not same:
        raise _damaged(where, path, "its description does not match its checksum")
    if isinstance(found := header.get("format"), int) and found > FORMAT:
        raise ValueError(
            f"{where}: {path} has format {found}, of vaejax {header.get('vaejax')}; this one reads "
            f"up to {FORMAT}: take a newer vaejax"
        )
    match header:
        case {"format": int(), "vaejax": str(), "about": _, "nodes": dict(), "tensors": dict()}:
            named = [*header["nodes"].values(), *header["tensors"].values(), header.get("data")]
            if all(isinstance(value, str) for value in named):
                return header
    raise _damaged(where, path, "its description lacks an entry")


def _json(text: str) -> Any:
    """JSON in which no object has a name twice, of which readers choose one or the other."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise ValueError("a name twice")
        return entries

    return json.loads(text, object_pairs_hook=unique)


def _tensors(
    where: str, path: str | Path, file: BinaryIO, header: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The arrays by name, of the shapes, types and bytes that the header has the checksums of."""
    import safetensors

    file.seek(0)
    try:
        # Its reader checks that the tensors lie inside, side by side and without a gap.
        entries = safetensors.deserialize(file.read())
        found = {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in entries
        }
    except (safetensors.SafetensorError, LookupError, ValueError) as error:
        raise _damaged(where, path, f"its tensors do not read ({error})") from error
    described = {name: _described(array) for name, array in found.items()}
    if described != header["tensors"]:
        raise _damaged(where, path, "its tensors are not those of its description")
    if digest(found) != header["data"]:
        raise _damaged(where, path, "its tensors do not match their checksum")
    return found


def _placed(array: np.ndarray, like: Any) -> Any:
    if isinstance(like, np.ndarray | np.generic):
        return array.copy()
    # What was on no device in particular stays free to follow what it is used with.
    anywhere = isinstance(like, jax.Array) and not like.committed
    return jax.device_put(array, None if anywhere else getattr(like, "sharding", None))


def _damaged(where: str, path: str | Path, why: str) -> ValueError:
    return ValueError(f"{where}: {path} is damaged: {why}; get it again")


__all__ = ["about", "load", "name_of", "save", "tensors"]
