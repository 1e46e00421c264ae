"""Compiled programs on disk, for the next process."""

import os
from pathlib import Path

import jax


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of decoded copies and compiled programs, which may be deleted at any time.

    Args:
      cache_dir: the folder; by default $VAEJAX_CACHE, else $XDG_CACHE_HOME/vaejax, else
        ~/.cache/vaejax.
    Returns:
      The path. The folder need not exist.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vaejax")
    return Path(cache_dir or os.environ.get("VAEJAX_CACHE") or home).expanduser()


def keep_on_disk(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Keep the programs that JAX compiles on disk, and read those that lie there.

    It is one line at the start of a script or notebook, and holds for all of JAX in the process.
    A program is found again where its operations, JAX and the kind of processor are the same, so
    the numbers are the same too. The experiments do it by themselves.

    Args:
      cache_dir: the folder, as for `cache_folder`; the programs lie in its `compiled`.
    Returns:
      Where they lie.
    Example:
      >>> import tempfile
      >>> from vaejax import compiling
      >>> compiling.keep_on_disk(tempfile.mkdtemp()).name
      'compiled'
    """
    folder = cache_folder(cache_dir) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


__all__ = ["cache_folder", "keep_on_disk"]
