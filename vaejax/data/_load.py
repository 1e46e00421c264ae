"""`load`: one split of a data set, by its name, from a file, or from arrays."""

import importlib.util
from pathlib import Path

import jax
import numpy as np

from vaejax.arrays import numbers
from vaejax.data._arrays import checked
from vaejax.data._cache import from_tfds
from vaejax.data._files import NAMES, PathLike, from_file
from vaejax.data._splits import cut, split_of
from vaejax.errors import missing
from vaejax.types import Batch


def load(
    source: PathLike | Batch | np.ndarray | jax.Array,
    split: str = "train",
    *,
    data_dir: PathLike | None = None,
    cache_dir: PathLike | None = None,
) -> Batch:
    """Read one split of a data set as `Batch(x, y=labels)`, in numpy arrays.

    Every source follows one convention. Images are `[n, height, width, channels]`, vectors
    `[n, d]`. uint8 always means grey levels 0..255. Floats are kept as float32 and never rescaled.
    Binary data (bool, or sets stored as 0 and 1) become uint8 0 and 255, so that one transform
    works everywhere.

    Args:
      source: one of
        - `"digits"`: scikit-learn's 1797 scans `[8, 8, 1]`, of which every sixth
          (index % 6 == 5) is in "test";
        - `"mnist"`, `"fashion_mnist"`, `"binarized_mnist"` or `"tfds:NAME"`: a set that TFDS has
          prepared (`python -m vaejax.data.prepare NAME`);
        - a path to a `.npz` or `.npy` file, an array, or a `Batch`. Rank 2 is vectors, 3 grey
          images, 4 images. A `.npz` may name its splits (`x_train` and `y_train`, `train_images`
          and `train_labels`, or `train`). Otherwise every tenth example (index % 10 == 9) is
          "test", the rest "train", and "all" is everything.
      split: a name, and a slice of it in examples or percent: `"train[:50000]"`, `"test[10%:20%]"`.
      data_dir: where TFDS sets lie; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      cache_dir: where decoded copies of TFDS sets are kept, to be memory-mapped at the next read;
        by default $VAEJAX_CACHE, else $XDG_CACHE_HOME/vaejax, else ~/.cache/vaejax.
    Returns:
      A Batch of x `[n, ...]` and y, int32 labels `[n]`, or `()` where there are none.
    Raises:
      ValueError: for an unknown name or split, unsupported types, ranks or values, or nothing to
        return.
      FileNotFoundError: for a missing file, or a TFDS set that is not prepared.
      ImportError: for a missing optional package.
    Example:
      >>> from vaejax import data
      >>> digits = data.load("digits", "train[:100]")
      >>> digits.x.shape, digits.x.dtype, digits.y.shape
      ((100, 8, 8, 1), dtype('uint8'), (100,))
    """
    name, window = split_of("load", split)
    if not isinstance(source, PathLike):
        if not isinstance(source, Batch | np.ndarray):
            source = numbers("load: source", source, "a name, a path, an array or a Batch")
        batch = source if isinstance(source, Batch) else Batch(source)
        batch = cut(10, name, checked(batch, "load: source"))
    elif isinstance(source, str) and source == "digits":
        batch = cut(6, name, _digits())
    elif isinstance(source, str) and (source in NAMES or source.startswith("tfds:")):
        batch = from_tfds(source.removeprefix("tfds:"), name, data_dir, cache_dir)
    else:
        batch = from_file(Path(source).expanduser(), name)
    chosen = window(len(batch.x))
    return batch if chosen == slice(None) else jax.tree.map(lambda leaf: leaf[chosen], batch)


def _digits() -> Batch:
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise missing('load: source "digits"', "scikit-learn", "experiments")
    table = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if table.exists():  # its own reader imports SciPy's statistics first, which takes a second
        scans = np.loadtxt(table, delimiter=",")
    else:
        from sklearn.datasets import load_digits

        scans = np.column_stack(load_digits(return_X_y=True))
    x = np.rint(scans[:, :-1].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    return checked(Batch(x, y=scans[:, -1].astype(int)), "load: digits")
