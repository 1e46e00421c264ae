"""What a checkpoint says of itself: names, types and shapes of its arrays, and a checksum."""

import hashlib
import json
from typing import Any

import jax
import numpy as np

from vaejax.errors import is_key
from vaejax.types import Key


def signature(tree: Any) -> dict[str, str]:
    """Names, types and shapes of a tree's arrays.

    Args:
      tree: any tree of arrays.
    Returns:
      A dictionary such as `{"['params']['w']": "float32[784, 400]"}`.
    """
    return {
        jax.tree_util.keystr(path): kind(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def key_words(key: Key) -> list[int]:
    """The words of a PRNG key, as JSON can hold them.

    Args:
      key: a typed or raw key.
    Returns:
      A list of integers.
    """
    return np.asarray(without_keys(key)).ravel().tolist()


def kind(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def by_name(tree: Any) -> dict[str, Any]:
    """A tree's leaves, in order, by names that say nothing of what holds them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def without_keys(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def with_keys(tree: Any, like: Any) -> Any:
    return jax.tree.map(
        lambda leaf, old: (
            jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(old)) if is_key(old) else leaf
        ),
        tree,
        like,
    )


def is_whole(meta: dict[str, Any], step: int) -> bool:
    """Whether a checkpoint, whose words agree with their checksum, is of the present format.

    Those of earlier formats had no checksum. Raises ValueError where the words do not agree.
    """
    if "checksum" not in meta:
        if meta["run"].get("format", 1) < 3:
            return False
        raise ValueError("its checksum is missing")
    if checksum(meta) != meta["checksum"] or meta["step"] != step:
        raise ValueError("what it says of the run does not match its checksum")
    return True


def checksum(meta: dict[str, Any]) -> str:
    """A SHA-256 of all but the entry `checksum`."""
    words = {name: value for name, value in meta.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
