"""Compiled programs that a later run of the same mathematics uses again."""

import collections
from collections.abc import Callable
from typing import Any

import jax

from vaejax.compiling._traced import Writer

MOST = 8  # programs that are kept, each of some 20 MB; the one that was not used for longest goes

_KEPT: collections.OrderedDict[Any, Callable[..., Any]] = collections.OrderedDict()


def kept(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
    """`jax.jit(function, **options)`, or such a program of before that does the same.

    The function is traced each time, so that what it reads has its say: another number in a closure
    or in a global variable makes another program. Only compilation is spared.

    Args:
      function: of arrays.
      arguments: what it is called with at first.
      options: of `jax.jit`.
    Returns:
      The compiled function.
    """
    program = jax.jit(function, **options)
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return program
    writer, traced = Writer(), program.trace(*arguments)
    writer.program(traced.jaxpr)
    trees = jax.tree.structure(arguments), jax.tree.structure(traced.out_info)
    key = writer.digest.digest(), trees, *writer.objects, *jax.tree.leaves(options)
    try:
        found = _KEPT.pop(key, program)
    except TypeError:  # of what can not be compared nothing is kept
        return program
    _KEPT[key] = found
    while len(_KEPT) > MOST:
        _KEPT.popitem(last=False)
    return found


__all__ = ["kept"]
