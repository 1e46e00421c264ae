"""Checkpoints of a run on disk, written by Orbax, checked when they are read.

A checkpoint is a directory named by its step. Beside the arrays it keeps a description of them, a
checksum, and what identifies the run. So a checkpoint that is damaged, or that belongs to another
model or another run, is refused with a message and never loaded in part.
"""

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax.errors import as_path, wrong
from vaejax.trees import differences, digest
from vaejax.types import Key

__all__ = [
    "Record",
    "SaveError",
    "Store",
    "check_space",
    "key_words",
    "latest",
    "load",
    "opened",
    "restore",
    "save",
    "signature",
]

_FORMAT = 2  # of what a checkpoint holds; 1 had whole epochs only, and no such entry


class Record(NamedTuple):
    """What is saved of a run.

    Args:
      state: the current train state.
      best: the best train state so far.
      progress: plain values that JSON can hold.
    """

    state: Any
    best: Any
    progress: dict[str, Any]


class Store(NamedTuple):
    """An open directory of checkpoints.

    Args:
      path: where it is.
      manager: Orbax's CheckpointManager.
      run: what identifies the run that it belongs to, values that JSON can hold.
    """

    path: Path
    manager: Any
    run: dict[str, Any]


class SaveError(OSError):
    """A checkpoint that could not be written, on a full disk for instance.

    Those before it are whole. `fitted` holds all there was, where `fit` raised it.
    """

    fitted: Any = None


@contextlib.contextmanager
def opened(
    path: str | Path | None, run: dict[str, Any], *, resume: bool, keep: int = 2
) -> Iterator[Store | None]:
    """A directory for a run's checkpoints, open inside a `with`.

    Args:
      path: the directory, which is made if it is missing; None for no checkpoints.
      run: what identifies the run, values that JSON can hold. A checkpoint that says otherwise is
        refused by `restore`.
      resume: whether the directory may hold a run already.
      keep: how many of the newest checkpoints stay.
    Returns:
      A context that gives a Store, or None where `path` is None.
    Raises:
      FileExistsError: where the directory holds a run already and `resume` is false.
      OSError: where nothing can be written there.
    """
    if path is None:
        yield None
        return
    import orbax.checkpoint as ocp  # lazily: it takes as long to import as the rest together

    path = as_path("fit: directory", path).resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"fit: expected directory to be a folder, got the file {path}")
    if not resume and path.exists() and any(path.iterdir()):
        raise FileExistsError(
            f"fit: {path} already holds a run; pass resume=True to continue it, or another "
            "directory"
        )
    _together("looked")  # before any process writes there
    _check_writable(path)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(path, options=options) as manager:
        yield Store(path, manager, {"format": _FORMAT, **run})


def save(store: Store, step: int, record: Record, *, again: bool = False) -> None:
    """Write one checkpoint. It counts only once it is complete: it is renamed at the end.

    Args:
      store: where to.
      step: its name, the number of steps done.
      record: what is saved.
      again: whether a checkpoint of that step that is there already is replaced; by default it
        stays.
    Raises:
      SaveError: where it cannot be written; those before it stay as they were.
    """
    import orbax.checkpoint as ocp

    if step in store.manager.all_steps():
        if not again:
            return
        store.manager.delete(step)
    arrays = _arrays(record)
    meta = {
        "run": store.run,
        "signature": signature(arrays),
        "sha256": digest(arrays),
        "params": {"state": digest(record.state.params), "best": digest(record.best.params)},
        "progress": record.progress,
    }
    parts = {"arrays": ocp.args.StandardSave(arrays), "meta": ocp.args.JsonSave(meta)}
    try:
        store.manager.save(step, args=ocp.args.Composite(**parts))
    except Exception as error:
        raise _unwritten(store, step, arrays, error) from error


def check_space(store: Store, like: Record) -> None:
    """Look before any work is done whether there is room for a checkpoint.

    Args:
      store: where checkpoints go.
      like: a record of the same size.
    Raises:
      SaveError: where not even one would fit.
    """
    needed, free = _size_of(_arrays(like)), shutil.disk_usage(store.path).free
    if free < needed:
        got, fix = f"{free / 1e6:.0f} MB free", "make room, or use another directory"
        raise wrong(
            f"fit: directory {store.path}",
            got,
            f"{needed / 1e6:.0f} MB for a checkpoint",
            fix,
            SaveError,
        )


def restore(store: Store, *, like: Record) -> Record | None:
    """The newest good checkpoint. A damaged one is renamed, with a warning, for the one before it.

    Args:
      store: where checkpoints lie.
      like: a record of the same structure, shapes and types.
    Returns:
      A Record in the structure of `like`; None where there is no checkpoint yet.
    Raises:
      ValueError: for one of another run or another model, with the entries that differ; and where
        all are damaged.
    """
    found: Record | None = None
    damaged: dict[int, str] = {}
    for step in sorted(store.manager.all_steps(), reverse=True):
        try:
            found = _restored(store, step, like)
            break
        except _Damaged as error:
            damaged[step] = str(error)
    if damaged and found is None:
        step = max(damaged)
        raise ValueError(
            f"fit: the checkpoint {store.path / str(step)} is damaged ({damaged[step]}), and no "
            "other is good; nothing was changed; start the run again in another directory"
        )
    for step, what in damaged.items():
        _set_aside(store, step, what)
    return found


def _restored(store: Store, step: int, like: Record) -> Record:
    import orbax.checkpoint as ocp

    where, target = store.path / str(step), _arrays(like)
    try:
        parts = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = store.manager.restore(step, args=parts)["meta"]
        found, stored = meta["signature"], meta["run"]
    except (MemoryError, PermissionError):  # not the checkpoint's fault
        raise
    except Exception as error:
        raise _Damaged(_short(error)) from error
    _check_same("model or optimizer", where, found, signature(target))
    _check_same("run", where, stored, store.run)
    try:
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), target
        )
        parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes))
        arrays = store.manager.restore(step, args=parts)["arrays"]
        if digest(arrays) != meta["sha256"]:
            raise ValueError("its arrays do not match their checksum")
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        raise _Damaged(_short(error)) from error
    return Record(
        _with_keys(arrays["state"], like.state),
        _with_keys(arrays["best"], like.best),
        meta["progress"],
    )


def load(path: str | Path, *, like: Any, best: bool = False) -> Any:
    """Parameters from the newest checkpoint in a run's directory, for use without the run.

    Args:
      path: the directory that `fit` was given.
      like: parameters of the model that they are for (`model.init(...)`), whose structure, shapes
        and types must agree.
      best: whether those with the lowest monitored value are meant instead of the last.
    Returns:
      Parameters in the structure of `like`.
    Raises:
      FileNotFoundError: where there is no checkpoint.
      ValueError: for a checkpoint of another model, and for one whose arrays do not match their
        checksum.
    """
    import orbax.checkpoint as ocp

    path = as_path("checkpoint.load: path", path).resolve()
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(create=False)) as manager:
        step = manager.latest_step() if path.is_dir() else None
        if step is None:
            fix = "give the directory that fit was given, DIR/checkpoints of an experiment"
            raise wrong(
                "checkpoint.load", f"no checkpoint in {path}", "one", fix, FileNotFoundError
            )
        parts = {"arrays": ocp.args.StandardRestore(), "meta": ocp.args.JsonRestore()}
        with warnings.catch_warnings():  # that arrays go where they were: on one device they do
            warnings.simplefilter("ignore")
            try:
                restored = manager.restore(step, args=ocp.args.Composite(**parts))
            except (MemoryError, PermissionError):
                raise
            except Exception as error:
                raise _unloadable(path / str(step), _short(error)) from error
    which = "best" if best else "state"
    # Without a target Orbax gives dicts of strings for named tuples and for keys of other types.
    found, expected = _by_name(restored["arrays"][which]["params"]), _by_name(like)
    types = [{name: _type(leaf) for name, leaf in one.items()} for one in (found, expected)]
    if lines := differences(*types, there="checkpoint"):
        raise ValueError(
            f"checkpoint.load: {path / str(step)} holds parameters of another model:\n  {lines}\n"
            "Build the model as the run did (an experiment keeps its config.json)."
        )
    leaves = [found[name] for name in expected]
    if digest(leaves) != restored["meta"]["params"][which]:
        raise _unloadable(path / str(step), "its arrays do not match their checksum")
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def latest(store: Store | None) -> Path | None:
    """The newest complete checkpoint.

    Args:
      store: an open directory, or None.
    Returns:
      Its path, or None where there is none yet.
    """
    step = None if store is None else store.manager.latest_step()
    return None if store is None or step is None else store.path / str(step)


def signature(tree: Any) -> dict[str, str]:
    """Names, types and shapes of a tree's arrays.

    Args:
      tree: any tree of arrays.
    Returns:
      A dictionary such as `{"['params']['w']": "float32[784, 400]"}`.
    """
    return {
        jax.tree_util.keystr(path): _type(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def key_words(key: Key) -> list[int]:
    """The words of a PRNG key, as JSON can hold them.

    Args:
      key: a typed or raw key.
    Returns:
      A list of integers.
    """
    return np.asarray(_without_keys(key)).ravel().tolist()


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _by_name(tree: Any) -> dict[str, Any]:
    """A tree's leaves, in order, by names that say nothing of what holds them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


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


def _unloadable(where: Path, what: str) -> ValueError:
    return ValueError(
        f"checkpoint.load: {where} is damaged ({what}); move it away to load the one before it"
    )


class _Damaged(Exception):
    """A checkpoint whose files are not what was written."""


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _set_aside(store: Store, step: int, what: str) -> None:
    """Rename a damaged checkpoint, so that its step can be written again and nothing is lost."""
    path = store.path / str(step)
    aside = path.with_name(f"damaged-{step}")
    first = jax.process_index() == 0
    if first:
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
    _together(aside.name)
    store.manager.reload()
    if not first:
        return
    warnings.warn(
        f"fit: the checkpoint {path} is damaged ({what}); it was renamed {aside.name}, and the "
        "run goes on from the one before",
        stacklevel=2,
    )


def _together(what: str) -> None:
    """Wait until every process of the run is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"vaejax: {what}")


def _check_writable(path: Path) -> None:
    """Raise OSError where checkpoints could not be written, before any work is lost."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise type(error)(
            error.errno,
            f"fit: nothing can be written to directory {path} ({error.strerror}); change its "
            "permissions, make room, or use another directory",
        ) from error


def _unwritten(store: Store, step: int, arrays: Any, error: Exception) -> SaveError:
    """The error that says why a checkpoint was not written; what there is of it is removed."""
    for part in store.path.glob(f"{step}.*"):
        shutil.rmtree(part, ignore_errors=True)
    last, free = latest(store), shutil.disk_usage(store.path).free
    before = "No checkpoint has been written." if last is None else f"Last good checkpoint: {last}"
    return SaveError(
        f"fit: the checkpoint {store.path / str(step)} could not be written ({_short(error)}): it "
        f"takes {_size_of(arrays) / 1e6:.3g} MB, {free / 1e6:.3g} MB are free; make room and pass "
        f"resume=True. {before}"
    )


def _size_of(arrays: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
