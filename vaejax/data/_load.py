"""Names and arrays in, arrays out; and transforms of one stored example into what a model sees.

`load` reads, `stream` reads what does not fit memory; `binarize`, `scale` and `dequantize` are the
`transform` of a training step; `python -m vaejax.data.prepare NAME` prepares a TFDS set for first
use.
"""

import contextlib
import difflib
import hashlib
import numbers
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.data import tfds
from vaejax.errors import at_least_one, wrong
from vaejax.types import Array, Batch, Key

NAMES = ("digits", "mnist", "fashion_mnist", "binarized_mnist")
PathLike = str | os.PathLike
SPLITS = ("train", "valid", "validation", "val", "test")  # that a .npz may name, and its arrays
DATA, LABELS = ("x", "images", "data"), ("y", "labels", "label", "targets")


def load(
    source: Any,
    split: str = "train",
    *,
    data_dir: PathLike | None = None,
    cache_dir: PathLike | None = None,
) -> Batch:
    """Read one split of a data set as `Batch(x, y=labels)`, in numpy arrays.

    One convention for every source: images are `[n, height, width, channels]`, vectors `[n, d]`;
    uint8 always means grey levels 0..255; floats are kept as float32 and never rescaled; binary
    data (bool, or sets stored as 0 and 1) become uint8 0 and 255, so that one transform works
    everywhere. `y` holds int32 labels `[n]`, or is `()` where there are none.

    Args:
      source: `"digits"`, scikit-learn's 1797 scans `[8, 8, 1]`, every sixth (index % 6 == 5) in
        "test"; `"mnist"`, `"fashion_mnist"`, `"binarized_mnist"` or `"tfds:NAME"`, prepared by
        TFDS; a path to a `.npz` or `.npy` file, an array, or a `Batch`. Rank decides: 2 is
        vectors, 3 grey images, 4 images. A `.npz` may name its splits (`x_train` and `y_train`,
        `train_images` and `train_labels`, or `train`); otherwise, as for other arrays, every
        tenth example (index % 10 == 9) is "test", the rest "train", and "all" is everything.
      split: a name, and a slice of it in examples or percent: `"train[:50000]"`, `"test[10%:20%]"`.
      data_dir: where TFDS sets lie; else $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      cache_dir: where decoded copies of TFDS sets are kept, to be memory-mapped at the next read;
        else $VAEJAX_CACHE, $XDG_CACHE_HOME/vaejax or ~/.cache/vaejax.

    Raises: ValueError for an unknown name or split, unsupported types, ranks or values, or nothing
    to return; FileNotFoundError for a missing file or a TFDS set that is not prepared; ImportError
    for a missing optional package.
    """
    name, window = split_of("load", split)
    if isinstance(source, Batch | np.ndarray | jax.Array):
        batch = source if isinstance(source, Batch) else Batch(source)
        batch = _every_nth(10, name, checked(batch, "load: source"))
    elif isinstance(source, str) and source == "digits":
        batch = _every_nth(6, name, _digits())
    elif isinstance(source, str) and (source in NAMES or source.startswith("tfds:")):
        batch = _from_tfds(source.removeprefix("tfds:"), name, data_dir, cache_dir)
    elif isinstance(source, PathLike):
        batch = _from_file(Path(source).expanduser(), name)
    else:
        expected, fix = "a name, a path, an array or a Batch", "pass np.asarray(source)"
        raise wrong("load: source", type(source).__name__, expected, fix)
    chosen = window(len(batch.x))
    return batch if chosen == slice(None) else jax.tree.map(lambda leaf: leaf[chosen], batch)


def stream(
    source: Any,
    *,
    key: Key,
    batch_size: int,
    epochs: int | None = 1,
    start: int = 0,
    block: int = 1024,
    mixed: int = 16,
) -> Iterator[Batch]:
    """Batches in a random order from an array that need not fit memory, such as a large `.npy`.

    Each epoch takes blocks of `block` neighbouring rows in a random order, copies `mixed` of them
    into memory and shuffles the rows within: every row once, whole blocks read at a time, and never
    more than some `3 block mixed` rows in anonymous memory. Rows that are similar because they are
    neighbours (tokens of one text) meet in a batch more often than by chance if `mixed` is small.

    The order is a function of the key and the step's number alone: with `start=s` the stream goes
    on exactly where one that had given s batches would. It reads blocks, for rows that cost much
    one by one (HDF5, Zarr, slow disks); `vaejax.feed` gives the batches of a run in memory.

    Args:
      source: a path to a `.npy` file, which is memory-mapped, or anything with a shape `[n, ...]`,
        a dtype and slices of rows: an array, a memory map, an HDF5 or Zarr data set.
      key: of the order; batch_size: rows of a batch; epochs: passes over the rows, None: endless.
      start: batches to leave out, counted over the epochs; nothing of them is read.
      block, mixed: neighbouring rows read at once, and blocks shuffled together.

    Returns: an iterator of numpy `Batch(x [batch_size, ...])`, floats as float32, uint8 as it is,
    `ceil(n / batch_size)` of them per epoch. Where n / batch_size is not whole, every batch has a
    `weight`, and the last of an epoch is filled up with rows of weight 0: one shape, one program.
    Raises: ValueError for other types and for rows with NaN or infinity, when their batch is due,
    naming the row and the file; TypeError for counts that are not whole; FileNotFoundError.
    """
    counts = {"batch_size": batch_size, "epochs": epochs, "block": block, "mixed": mixed}
    for name, value in (counts | {"start": start}).items():
        endless = name == "epochs" and value is None
        if not (endless or isinstance(value, numbers.Integral)):
            raise wrong(f"stream: {name}", repr(value), "a whole number", "pass an int", TypeError)
    at_least_one("stream", **counts)
    if start < 0:
        raise wrong("stream: start", start, "0 or more batches", "pass the number of steps done")
    rows, where = _rows(source)
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return _batches(rows, where, words, batch_size, epochs, start, block, mixed)


def binarize(key: Key, x: Any) -> Array:
    """Draw x ~ Bernoulli(level / 255), anew at each call: dynamic binarisation.

    Args: key; x `[...]`: one example, uint8 levels 0..255, or floats: probabilities in [0, 1].
    Returns: float32 `[...]` of 0 and 1; level 0 gives always 0 and level 255 always 1. A float
    outside [0, 1] is no probability and gives NaN, which training and evaluation report.
    Raises: TypeError for other types. References: Salakhutdinov and Murray, 2008, "On the
    quantitative analysis of deep belief networks", drew it once; Burda et al., 2016,
    arXiv:1509.00519, anew.
    """
    levels = _is_levels("binarize", x)
    # Flat: the same bits as in an image's axes, compiled in half the time.
    flat, top = jnp.ravel(jnp.asarray(x, jnp.float32)), 255.0 if levels else 1.0
    # u * 255 < x and not u < x / 255: compilers turn division by a constant into a product with
    # its rounded reciprocal, and level 255 must stay certain.
    drawn = (jax.random.uniform(key, flat.shape) * top < flat).astype(jnp.float32)
    if not levels:
        drawn = jnp.where((flat >= 0) & (flat <= 1), drawn, jnp.nan)
    return drawn.reshape(jnp.shape(x))


def scale(key: Key, x: Any) -> Array:
    """Divide uint8 levels by 255, giving float32 in [0, 1]; floats pass through unchanged.

    Args: key: not used; x `[...]`: one example, uint8 levels 0..255, or floats in [0, 1].
    Returns: float32 `[...]`. Raises: TypeError for other types. A density fitted to scaled levels
    can grow without bound at the levels: for likelihoods, use `dequantize`.
    """
    return jnp.asarray(x, jnp.float32) / (255.0 if _is_levels("scale", x) else 1.0)


def dequantize(key: Key, x: Any) -> Array:
    """Spread each level over its bin: (x + u) / 256 with u ~ Uniform[0, 1), anew at each call.

    The mean log-density of the result, per unit of the scale [0, 1], bounds the probability of the
    levels from below: for an example of D values, in nats, `log p_levels = log p - D log 256`.

    Args: key; x `[...]`: one example, uint8 levels 0..255.
    Returns: float32 `[...]` in [0, 1), of which `floor(256 * result)` is exactly x.
    Raises: TypeError for anything else. Reference: Theis, van den Oord and Bethge, 2016,
    arXiv:1511.01844.
    """
    if not _is_levels("dequantize", x):
        fix = "use scale: floats have no levels to spread"
        raise wrong("dequantize: x", jnp.result_type(x), "uint8 levels 0..255", fix, TypeError)
    # Sixteen random bits: with the level they fit float32, so that no sum rounds up to the next.
    u = jax.random.bits(key, (jnp.size(x),), jnp.uint16).astype(jnp.float32) / 65536.0
    return ((jnp.ravel(jnp.asarray(x, jnp.float32)) + u) / 256.0).reshape(jnp.shape(x))


def cache_folder(cache_dir: PathLike | None = None) -> Path:
    """The folder of decoded copies and compiled programs, which may be deleted at any time.

    `cache_dir`, else $VAEJAX_CACHE, $XDG_CACHE_HOME/vaejax or ~/.cache/vaejax.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vaejax")
    return Path(cache_dir or os.environ.get("VAEJAX_CACHE") or home).expanduser()


def split_of(function: str, split: str) -> tuple[str, Callable[[int], slice]]:
    """The name of a split, and `window(n) -> slice`: which of its n examples are meant."""
    parsed = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    where = f"{function}: split"
    if parsed is None:
        fix = 'write for instance "train", "train[:50000]" or "train[10%:20%]"'
        raise wrong(where, repr(split), "a name and at most one slice", fix)
    name, start, stop = parsed.groups()

    def position(text: str | None, n: int) -> int | None:
        if not text:
            return None
        percent, value = text.endswith("%"), int(text.rstrip("%"))
        # Cut short in silence, a paper's 50,000 examples could be fewer.
        if abs(value) > (100 if percent else n):
            fix = "leave the slice open to take all"
            raise wrong(where, repr(split), f"positions up to {n}, all there are", fix)
        return n * value // 100 if percent else value

    def window(n: int) -> slice:
        chosen = slice(position(start, n), position(stop, n))
        if len(range(n)[chosen]) == 0:
            fix = 'widen the slice, or pass split="all" for a small array'
            raise wrong(where, f"{split!r} of {n} examples", "at least one example", fix)
        return chosen

    return name, window


def every_nth(
    function: str, n: int, split: str, size: int
) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """How many of `size` examples a split has, and `rows(i)`, which they are.

    The n-th, 2n-th, ... example is "test", the others "train", and "all" is everything.
    """
    if split == "all":
        return size, lambda i: i
    if split == "test":
        return size // n, lambda i: n * i + n - 1
    if split == "train":
        return size - size // n, lambda i: i + i // (n - 1)
    raise wrong(f"{function}: split", repr(split), "train, test or all", "choose one of these")


def _rows(source: Any) -> tuple[Any, str]:
    """What is sliced by rows, and its name in messages."""
    where, rows = "stream: source", source
    if isinstance(source, PathLike):
        path = Path(source).expanduser()
        where = f"stream: source {str(path)!r}"
        if not path.is_file():
            got, fix = "no such file", "correct the path"
            raise wrong(where, got, path.absolute(), fix, FileNotFoundError)
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(rows, np.ndarray):
                rows.close()
                raise ValueError("an archive of arrays, which cannot be memory-mapped")
        except (ValueError, EOFError) as error:
            fix = "write one array: np.save(path, rows.astype(np.float32))"
            raise wrong(where, f"({error})", "a .npy file of numbers", fix) from error
    shape, dtype = getattr(rows, "shape", None), getattr(rows, "dtype", None)
    if not shape or 0 in shape or dtype is None:
        got, fix = f"{type(rows).__name__} of shape {shape}", "pass a path or np.asarray(rows)"
        raise wrong(where, got, "an array [n, ...] that is not empty", fix)
    if dtype != np.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise wrong(where, dtype, "floats or uint8", "write it as rows.astype(np.float32)")
    return rows, where


def _batches(
    rows: Any,
    where: str,
    words: list[int],
    batch_size: int,
    epochs: int | None,
    start: int,
    block: int,
    mixed: int,
) -> Iterator[Batch]:
    steps = -(-len(rows) // batch_size)
    ragged = len(rows) % batch_size != 0
    epoch, first = divmod(start, steps)
    while epochs is None or epoch < epochs:
        for at, x in _epoch(rows, [*words, epoch], batch_size, first * batch_size, block, mixed):
            check_rows(x, at, lambda row: (where, row))
            missing = batch_size - len(x)
            weight = np.ones(len(x), np.float32)
            if missing:
                x = np.concatenate([x, np.repeat(x[:1], missing, axis=0)])
                weight = np.concatenate([weight, np.zeros(missing, np.float32)])
            yield Batch(x, weight=weight if ragged else ())
        epoch, first = epoch + 1, 0


def _epoch(
    rows: Any, seed: list[int], batch_size: int, skip: int, block: int, mixed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers and rows of each batch of an epoch, after the first `skip` rows of its order."""
    size = len(rows)
    starts = np.random.default_rng(seed).permutation(np.arange(0, size, block))
    at, x = np.empty(0, int), None
    for i in range(0, len(starts), mixed):
        group = starts[i : i + mixed]
        new = np.concatenate([np.arange(s, min(s + block, size)) for s in group])
        if skip >= len(new):
            skip -= len(new)
            continue
        order = np.random.default_rng([*seed, i + 1]).permutation(len(new))[skip:]
        skip = 0
        read = np.concatenate([stored(rows[s : s + block]) for s in group])[order]
        at = np.concatenate([at, new[order]])
        x = read if x is None else np.concatenate([x, read])
        whole = len(at) // batch_size * batch_size
        for j in range(0, whole, batch_size):
            yield at[j : j + batch_size], x[j : j + batch_size]
        at, x = at[whole:], x[whole:].copy()  # a view would hold the whole group
    if x is not None and len(x):
        yield at, x


def check_rows(x: np.ndarray, at: Any, place: Callable[[int], tuple[str, int]]) -> None:
    """Raise ValueError where rows of x are not finite, naming the first of them.

    `place(row)`, for one of the numbers `at` of the rows: the file, and its number there.
    """
    bad = at[~np.isfinite(x).all(axis=tuple(range(1, x.ndim)))]
    if len(bad):
        where, row = place(int(bad[0]))
        got = f"NaN or infinity in row {row} ({len(bad)} such rows in the batch)"
        raise wrong(where, got, "finite numbers", "write the file again without such rows")


def stored(x: Any) -> np.ndarray:
    """Bool as levels 0 and 255, and floats as float32: what overflows is infinity from then on."""
    x = np.asarray(x)
    if x.dtype == bool:
        return x * np.uint8(255)
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _digits() -> Batch:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        fix = 'pip install "vaejax[experiments]"'
        raise wrong("load: source", '"digits"', "scikit-learn with it", fix, ImportError) from error
    scans = load_digits()
    x = np.rint(scans.images * 255 / 16).astype(np.uint8)
    return checked(Batch(x, y=scans.target), "load: digits")


def _from_file(path: Path, split: str) -> Batch:
    where = f"load: source {str(path)!r}"
    check_file(path, where)
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _every_nth(10, split, checked(Batch(loaded), where))
        with loaded:
            key, label, own_splits = npz_keys(loaded.files, split, where)
            batch = checked(Batch(loaded[key], y=loaded[label] if label else ()), where)
            return batch if own_splits else _every_nth(10, split, batch)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if str(error).startswith("load:"):
            raise
        fix = "write it anew: np.savez(path, x=images.astype(np.uint8), y=labels)"
        raise wrong(where, f"({error})", "plain numpy arrays", fix) from error


def check_file(path: Path, where: str, kinds: str = "a path to .npz or .npy") -> None:
    """Raise ValueError for what is neither a name nor such a path, FileNotFoundError for none."""
    if path.suffix not in (".npz", ".npy"):
        near = (difflib.get_close_matches(str(path), NAMES, 1) or [f"tfds:{path}"])[0]
        expected = f'one of {", ".join(NAMES)}, "tfds:NAME", or {kinds}'
        raise wrong(where, "an unknown name", expected, f"perhaps {near!r}")
    if not path.is_file():
        raise wrong(where, "no such file", path.absolute(), "correct the path", FileNotFoundError)


def npz_keys(files: list[str], split: str, where: str) -> tuple[str, str | None, bool]:
    """Which arrays of an archive are a split's examples and labels, by their names.

    `files`: the arrays' names; `where`: for messages. Returns the name of x, that of y or None, and
    whether the names tell splits apart (else x is all there is, to be cut by `every_nth`).
    Raises ValueError where no array is x, or the archive names splits but not this one.
    """
    keys = {key.lower(): key for key in files}

    def find(stems: tuple[str, ...], *forms: str) -> str | None:
        names = [form.format(stem) for form in forms for stem in stems]
        return next((keys[name] for name in names if name in keys), None)

    named = {s: find(DATA, s, "{}_" + s, s + "_{}") for s in SPLITS}
    splits = {s: key for s, key in named.items() if key}
    if splits:
        if split not in splits:
            raise wrong(f"{where}: split", repr(split), list(splits), "choose one of these")
        return splits[split], find(LABELS, "{}_" + split, split + "_{}"), True
    others = [key for low, key in keys.items() if low not in LABELS]
    key = find(DATA, "{}") or (others[0] if len(others) == 1 else None)
    if key is None:
        fix = "np.savez(path, x=images, y=labels), or x_train, y_train, x_test, ..."
        raise wrong(where, f"arrays {files}", "one array of data, or named splits", fix)
    return key, find(LABELS, "{}"), False


def _every_nth(n: int, split: str, batch: Batch) -> Batch:
    count, rows = every_nth("load", n, split, len(batch.x))
    chosen = rows(np.arange(count))
    return batch if split == "all" else jax.tree.map(lambda leaf: leaf[chosen], batch)


def checked(batch: Batch, where: str) -> Batch:
    """The one convention: uint8 levels or finite float32, of rank 2 or 4; labels int32."""
    x, y = np.asarray(batch.x), batch.y
    got = f"{x.dtype} of shape {x.shape}"
    if x.ndim not in (2, 3, 4) or not x.size:
        expected = "vectors [n, d] or images [n, height, width] or [n, height, width, channels]"
        raise wrong(where, got, expected, "one example needs an axis in front: x[None]")
    binary, x = x.dtype == bool, stored(x)
    if x.dtype == np.float32:
        bad = np.argwhere(~np.isfinite(x))
        if len(bad):
            got += f" with {len(bad)} values not finite, the first at {bad[0].tolist()}"
            fix = "drop them: x[np.isfinite(x).reshape(len(x), -1).all(axis=1)]"
            raise wrong(where, got, "finite values", fix)
    elif x.dtype != np.uint8:
        levels = x.dtype.kind in "iu" and x.min() >= 0 and x.max() <= 255
        fix = "x.astype(np.uint8)" if levels else "x.astype(np.float32), scaled as you mean it"
        raise wrong(where, got, "uint8 (grey levels 0..255), bool or floats", f"pass {fix}")
    elif not binary and x.max() == 1:
        fix = "pass bool for binary images: x.astype(bool)"
        raise wrong(where, f"{got} holding only 0 and 1", "grey levels 0..255", fix)
    y = y if isinstance(y, tuple) else labels(y, where)
    batch = jax.tree.map(np.asarray, batch._replace(x=x[..., None] if x.ndim == 3 else x, y=y))
    rows = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(rows) > 1:
        expected = f"labels, conditions and weights of the {len(x)} examples"
        raise wrong(where, f"leaves of lengths {sorted(rows)}", expected, "cut or complete them")
    return batch


def labels(y: Any, where: str) -> np.ndarray:
    """Labels `[n]` or `[n, 1]`, whole numbers or bool, as int32 `[n]`; -1 is "unknown".

    `where`: for messages. Raises ValueError for other types and shapes, such as one-hot rows.
    """
    y = np.asarray(y)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.dtype.kind not in "iub" or y.ndim != 1:
        got, fix = f"{y.dtype} of shape {y.shape}", "for one-hot rows: y.argmax(axis=1)"
        raise wrong(f"{where}: labels", got, "integers [n]", fix)
    return y.astype(np.int32)


def _from_tfds(name: str, split: str, data_dir: Any, cache_dir: Any) -> Batch:
    """A prepared set from its decoded copy, which the first read makes."""
    builder = tfds.open_set("load", name, split, data_dir)
    place = Path(builder.data_path).resolve()
    state = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(place.iterdir())]
    digest = hashlib.sha256(repr((place, state)).encode()).hexdigest()[:16]
    folder = cache_folder(cache_dir)
    stem = f"{re.sub('[^a-z0-9_.]', '-', name)}-{builder.info.version}-{split}-{digest}"
    x_path, y_path = folder / f"{stem}.x.npy", folder / f"{stem}.y.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # absent, or damaged
        x, y = np.load(x_path, mmap_mode="r"), np.load(y_path)
        return Batch(x, y=y if y.size else ())
    batch = _decode(builder, name, split)
    try:
        _write(y_path, np.asarray(batch.y, np.int32))
        _write(x_path, batch.x)
    except OSError as error:
        warnings.warn(
            f"load: cache_dir: no decoded copy of {name} is kept ({error}), so that every read "
            "decodes it anew; pass a folder that can be written",
            stacklevel=3,
        )
    return batch


def _decode(builder: Any, name: str, split: str) -> Batch:
    from tqdm import tqdm

    size, read = tfds.reader("load", builder, name, split)
    whole = jax.tree.map(lambda leaf: np.empty((size, *leaf.shape[1:]), leaf.dtype), read([0]))
    for start in tqdm(range(0, size, 4096), f"decoding {name}", leave=False, delay=2):
        part = read(range(start, min(start + 4096, size)))
        for leaf, piece in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
            leaf[start : start + len(piece)] = piece
    binary = whole.x.dtype == np.uint8 and whole.x.max() == 1
    return checked(whole._replace(x=whole.x.astype(bool)) if binary else whole, f"load: {name}")


def _write(path: Path, array: np.ndarray) -> None:
    """Write under a temporary name first, so that no process ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        np.save(Path(folder, "part.npy"), array)
        os.replace(Path(folder, "part.npy"), path)


def _is_levels(function: str, x: Any) -> bool:
    dtype = jnp.result_type(x)
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        expected, fix = "uint8 levels 0..255 or floats in [0, 1]", "read it with vaejax.data.load"
        raise wrong(f"{function}: x", dtype, expected, fix, TypeError)
    return dtype == jnp.uint8
