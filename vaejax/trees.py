"""What is done to any pytree: fetched to the host, compared, digested, searched for NaN."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.types import Array


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


__all__ = [
    "differences",
    "digest",
    "finite",
    "on_host",
]
