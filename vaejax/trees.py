"""What is done to any pytree: fetched to the host, compared, digested, looked at for NaN."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.types import Array


def differences(found: dict[str, Any], expected: dict[str, Any], *, there: str) -> str:
    """What two descriptions by name differ in, at most 8 lines for a message; "" where they agree.

    `there`: what `found` is of ("checkpoint", "file"); `expected` is what is here.
    """
    lines = [
        f"{name or 'the whole'}: {there} {found.get(name, 'absent')}, "
        f"here {expected.get(name, 'absent')}"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    return "\n  ".join(lines if len(lines) <= 8 else [*lines[:7], f"... {len(lines) - 7} more"])


def digest(tree: Any) -> str:
    """SHA-256 of the bytes of a tree's arrays, in order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(on_host(tree)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def finite(tree: Any) -> Array:
    """Whether all numbers of a tree of arrays are finite, `()`; may be traced."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def on_host(tree: Any) -> Any:
    """A tree's arrays whole, in numpy, on every process; keys as they are, other leaves untouched.

    Of several processes each has to call it, since parts that lie on others are gathered.
    """

    def fetch(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return jax.device_get(leaf)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)
