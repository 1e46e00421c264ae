"""How programs are compiled: sooner and faster on a CPU, and once."""

from vaejax.compiling._disk import cache_folder, keep_on_disk
from vaejax.compiling._lowering import install
from vaejax.compiling._programs import kept
from vaejax.compiling._traced import Writer

__all__ = ["Writer", "cache_folder", "install", "keep_on_disk", "kept"]
