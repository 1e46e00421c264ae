"""Data: by name, from files, from disk while training; transforms and corruptions.

`load` reads a data set into memory. `stream` reads what does not fit memory by blocks; `sources`
opens what stays on the disk, and `feed` takes its batches to the device. `binarize`, `scale`,
`quantize` and `dequantize` are for the `transform` of a training step. `corruption` holds what a
denoising autoencoder undoes, `sprites` draws images of known factors, and `text` makes arrays of
texts.
`python -m vaejax.data.prepare NAME` prepares a TFDS set for first use; `tfds` reads it.
"""

from vaejax.compiling import cache_folder
from vaejax.data import corruption, feed, sources, sprites, text, tfds
from vaejax.data._files import NAMES, PathLike
from vaejax.data._load import load
from vaejax.data._splits import SPLITS
from vaejax.data._stream import stream
from vaejax.data._transforms import binarize, dequantize, quantize, scale

__all__ = [
    "NAMES",
    "SPLITS",
    "PathLike",
    "binarize",
    "cache_folder",
    "corruption",
    "dequantize",
    "feed",
    "load",
    "quantize",
    "scale",
    "sources",
    "sprites",
    "stream",
    "text",
    "tfds",
]
