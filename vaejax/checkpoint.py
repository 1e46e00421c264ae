"""Checkpoints of a run on disk, written by Orbax, checked on the way back in.

A checkpoint is a directory named by its epoch. Beside the arrays it keeps a description of them, a
checksum, and what identifies the run, so that another model's, another run's or a damaged
checkpoint is refused in words and never loaded in part.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax.errors import wrong
from vaejax.types import Key


class Record(NamedTuple):
    """What is saved: the current and the best train state, and plain values that JSON can hold."""

    state: Any
    best: Any
    progress: dict[str, Any]


class Store(NamedTuple):
    """An open checkpoint directory: `path`, Orbax `manager`, and the `run` it belongs to."""

    path: Path
    manager: Any
    run: dict[str, Any]


@contextlib.contextmanager
def opened(
    path: str | Path | None, run: dict[str, Any], *, resume: bool, keep: int = 2
) -> Iterator[Store | None]:
    """A directory for a run's checkpoints while it is needed, or None where `path` is None.

    The newest `keep` checkpoints stay. `run` identifies the run (JSON values); a checkpoint that
    says otherwise is refused later. Raises FileExistsError where the directory holds a run already
    and `resume` is false.
    """
    if path is None:
        yield None
        return
    import orbax.checkpoint as ocp  # lazily: it takes as long to import as the rest together

    path = Path(path).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"fit: expected directory to be a folder, got the file {path}")
    if not resume and path.exists() and any(path.iterdir()):
        raise FileExistsError(
            f"fit: {path} already holds a run; pass resume=True to continue it, or another "
            "directory"
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(path, options=options) as manager:
        yield Store(path, manager, run)


def save(store: Store, epoch: int, record: Record) -> None:
    """Write one checkpoint; it counts only once it is complete (a rename at the end)."""
    import orbax.checkpoint as ocp

    if epoch in store.manager.all_steps():
        return
    arrays = _arrays(record)
    meta = {
        "run": store.run,
        "signature": signature(arrays),
        "sha256": digest(arrays),
        "progress": record.progress,
    }
    store.manager.save(
        epoch,
        args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)),
    )


def restore(store: Store, *, like: Record) -> Record | None:
    """The newest checkpoint, in the structure of `like`; None where there is none yet.

    Raises ValueError for one of another run or another model (with the differing entries), or one
    that is damaged.
    """
    import orbax.checkpoint as ocp

    epoch = store.manager.latest_step()
    if epoch is None:
        return None
    where = store.path / str(epoch)
    target = _arrays(like)
    try:
        meta = store.manager.restore(epoch, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]
        found, stored = meta["signature"], meta["run"]
    except Exception as error:
        raise _damaged(store, where, error) from error
    _check_same("model or optimizer", where, found, signature(target))
    _check_same("run", where, stored, store.run)
    try:
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), target
        )
        arrays = store.manager.restore(
            epoch, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes))
        )["arrays"]
        if digest(arrays) != meta["sha256"]:
            raise ValueError("its arrays do not match their checksum")
    except Exception as error:
        raise _damaged(store, where, error) from error
    return Record(
        _with_keys(arrays["state"], like.state),
        _with_keys(arrays["best"], like.best),
        meta["progress"],
    )


def load(path: str | Path, *, like: Any, best: bool = False) -> Any:
    """Parameters from the newest checkpoint in a run's directory, for use without the run.

    `like`: parameters of the model that they are for (`model.init(...)`), whose structure, shapes
    and types must agree; `best`: those with the lowest monitored value instead of the last.
    Raises FileNotFoundError where there is no checkpoint, ValueError for another model's.
    """
    import orbax.checkpoint as ocp

    path = Path(path).expanduser().resolve()
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(create=False)) as manager:
        epoch = manager.latest_step() if path.is_dir() else None
        if epoch is None:
            fix = "give the directory that fit was given, DIR/checkpoints of an experiment"
            raise wrong(
                "checkpoint.load", f"no checkpoint in {path}", "one", fix, FileNotFoundError
            )
        with warnings.catch_warnings():  # that arrays go where they were: on one device they do
            warnings.simplefilter("ignore")
            arrays = manager.restore(
                epoch, args=ocp.args.Composite(arrays=ocp.args.StandardRestore())
            )["arrays"]
    found = arrays["best" if best else "state"]["params"]
    if lines := differences(signature(found), signature(like), there="checkpoint"):
        raise ValueError(
            f"checkpoint.load: {path / str(epoch)} holds parameters of another model:\n  {lines}\n"
            "Build the model as the run did (an experiment keeps its config.json)."
        )
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(found))


def latest(store: Store | None) -> Path | None:
    """Path of the newest complete checkpoint of an open store, or None where there is none yet."""
    epoch = None if store is None else store.manager.latest_step()
    return None if store is None or epoch is None else store.path / str(epoch)


def signature(tree: Any) -> dict[str, str]:
    """Names, types and shapes of a tree's arrays: `{"['params']['w']": "float32[784, 400]"}`."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


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


def key_words(key: Key) -> list[int]:
    """The words of a typed or raw PRNG key, as JSON can hold them."""
    return np.asarray(_without_keys(key)).ravel().tolist()


def digest(tree: Any) -> str:
    """SHA-256 of the bytes of a tree's arrays, in order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _arrays(record: Record) -> dict[str, Any]:
    return {"state": _without_keys(record.state), "best": _without_keys(record.best)}


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _with_keys(tree: Any, like: Any) -> Any:
    return jax.tree.map(
        lambda leaf, old: (
            jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(old)) if _is_key(old) else leaf
        ),
        tree,
        like,
    )


def _check_same(what: str, where: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    if lines := differences(found, expected, there="checkpoint"):
        raise ValueError(
            f"fit: {where} is a checkpoint of another {what}; nothing was changed:\n  {lines}\n"
            "Resume with what it was started with, or use another directory."
        )


def _damaged(store: Store, where: Path, error: Exception) -> ValueError:
    others = sorted(step for step in store.manager.all_steps() if str(step) != where.name)
    back = f"delete it to continue from epoch {others[-1]}" if others else "start the run again"
    return ValueError(
        f"fit: the checkpoint {where} is damaged ({type(error).__name__}: {str(error)[:200]}); "
        f"nothing was changed; {back}"
    )
