"""Checkpoints of a run on disk, written by Orbax, checked when they are read.

A checkpoint is a directory named by its step. Beside the arrays it keeps a description of them,
what identifies the run, and checksums of all of it. So a checkpoint that is damaged, or that
belongs to another model or another run, is refused with a message and never loaded in part.

One run at a time uses a directory. A process that is killed leaves no lock behind. The lock holds
between the machines of a shared file system where that file system passes `flock` on, as NFS does;
on Windows there is none. `load` only reads, and may do so while a run goes on.
"""

import contextlib
import functools
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax.arrays import differences, digest
from vaejax.errors import as_path, wrong
from vaejax.train import _identity as identity
from vaejax.train._averaging import named_averages
from vaejax.train._description import (
    by_name,
    checksum,
    is_whole,
    key_words,
    kind,
    signature,
    with_keys,
    without_keys,
)
from vaejax.train._directory import check_free, check_writable, claimed, together

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

_FORMAT = 3  # 1 had whole epochs only, 2 neither a checksum of all nor the run's functions


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
      run: finds, at its first call, what identifies the run that it belongs to, values that JSON
        can hold.
      function: what the user called, for messages.
    """

    path: Path
    manager: Any
    run: Callable[[], dict[str, Any]]
    function: str = "fit"


class SaveError(OSError):
    """A checkpoint that could not be written, on a full disk for instance.

    Those before it are whole. `fitted` holds all there was, where `fit` raised it.
    """

    fitted: Any = None


@contextlib.contextmanager
def opened(
    path: str | Path | None,
    run: dict[str, Any] | Callable[[], dict[str, Any]],
    *,
    resume: bool,
    keep: int = 2,
    function: str = "fit",
) -> Iterator[Store | None]:
    """A directory for a run's checkpoints, open inside a `with`, and for this run alone.

    Args:
      path: the directory, which is made if it is missing; None for no checkpoints.
      run: what identifies the run, values that JSON can hold, or a function that finds them. A
        checkpoint that says otherwise is refused by `restore`.
      resume: whether the directory may hold a run already.
      keep: how many of the newest checkpoints stay.
      function: what the user called, for messages.
    Returns:
      A context that gives a Store, or None where `path` is None.
    Raises:
      FileExistsError: where the directory holds a run already and `resume` is false.
      BlockingIOError: where another run goes on in the directory.
      OSError: where nothing can be written there.
    """
    if path is None:
        yield None
        return
    import orbax.checkpoint as ocp  # lazily: it takes as long to import as the rest together

    path = as_path("fit: directory", path).resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"{function}: expected directory to be a folder, got the file {path}"
        )
    check_free(path, resume, function)
    together("looked")  # before any process writes there
    check_writable(path, function)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=False
    )
    with (
        claimed(path, resume, function),
        ocp.CheckpointManager(path, options=options) as manager,
    ):

        @functools.cache
        def identity() -> dict[str, Any]:
            return {"format": _FORMAT, **(run() if callable(run) else run)}

        yield Store(path, manager, identity, function)


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
        "step": step,
        "run": store.run(),
        "signature": signature(arrays),
        "names": list(by_name(arrays["state"])),
        "sha256": digest(arrays),
        "params": _digests(record),
        "progress": record.progress,
    }
    meta["checksum"] = checksum(meta)
    # Lists of arrays: a tree's nodes that hold none are no part of what is kept.
    # As numpy's, Orbax writes them in half the time; arrays on several processes it needs as JAX's.
    lists = {which: _at_hand(jax.tree.leaves(tree)) for which, tree in arrays.items()}
    parts = {"arrays": ocp.args.StandardSave(lists), "meta": ocp.args.JsonSave(meta)}
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
            f"{store.function}: directory {store.path}",
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
            f"{store.function}: the checkpoint {store.path / str(step)} is damaged "
            f"({damaged[step]}), and no other is good; nothing was changed; start the run again in "
            "another directory"
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
        current = is_whole(meta, step)
    except (MemoryError, PermissionError):  # not the checkpoint's fault
        raise
    except Exception as error:
        raise _Damaged(_short(error)) from error
    if not current:
        raise ValueError(
            f"{store.function}: {where} was written by an earlier vaejax (format "
            f"{stored.get('format', 1)}), which did not keep all that a resume checks; nothing was "
            f"changed. {_new_run(store)}"
        )
    _check_kinds(store, where, found, signature(target))
    _check_run(store, where, stored)
    try:
        shapes = {
            which: [
                jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
                for a in jax.tree.leaves(tree)
            ]
            for which, tree in target.items()
        }
        parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes))
        lists = store.manager.restore(step, args=parts)["arrays"]
        if digest(lists) != meta["sha256"]:
            raise ValueError("its arrays do not match their checksum")
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        raise _Damaged(_short(error)) from error
    state, best = (
        with_keys(jax.tree.unflatten(jax.tree.structure(tree), lists[which]), tree)
        for which, tree in (("state", like.state), ("best", like.best))
    )
    return Record(state, best, meta["progress"])


def load(path: str | Path, *, like: Any, best: bool = False, average: bool = False) -> Any:
    """Parameters from the newest checkpoint in a run's directory, for use without the run.

    Args:
      path: the directory that `fit` was given.
      like: parameters of the model that they are for (`model.init(...)`), whose structure, shapes
        and types must agree.
      best: whether those with the best monitored value are meant instead of the last.
      average: whether the average is meant that `train.averaging` kept of them.
    Returns:
      Parameters in the structure of `like`.
    Raises:
      FileNotFoundError: where there is no checkpoint.
      ValueError: for a checkpoint of another model, for one without an average, and for one whose
        arrays do not match their checksum.
    """
    path = as_path("checkpoint.load: path", path).resolve()
    step, restored = _newest(path)
    which = "best" if best else "state"
    kinds = jax.tree.map(_averaged_kind, like) if average else like
    try:
        is_whole(restored["meta"], step)
        digests = restored["meta"]["params"]
        averages = [name for name in digests if average and name.startswith(f"{which}/")]
        named = next(iter(averages), which)
        place = named.partition("/")[2] or "params"
        found, expected = _params(restored, which, place), by_name(kinds)
        wanted = digests[named]
    except Exception as error:
        raise _unloadable(path / str(step), _short(error)) from error
    if average and len(averages) != 1:
        got, fix = f"{len(averages)} averages in {path / str(step)}", "leave out average=True"
        raise wrong("checkpoint.load: average", got, "one, of train.averaging", fix)
    types = [{name: kind(leaf) for name, leaf in one.items()} for one in (found, expected)]
    if lines := differences(*types, there="checkpoint"):
        raise ValueError(
            f"checkpoint.load: {path / str(step)} holds parameters of another model:\n  {lines}\n"
            "Build the model as the run did (an experiment keeps its config.json)."
        )
    leaves = [found[name] for name in expected]
    if digest(leaves) != wanted:
        raise _unloadable(path / str(step), "its arrays do not match their checksum")
    tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, like) if average else tree


def _averaged_kind(leaf: Any) -> Any:
    """How the average of such an array is kept."""
    return jax.ShapeDtypeStruct(leaf.shape, jax.numpy.promote_types(leaf.dtype, np.float32))


def _newest(path: Path) -> tuple[int, Any]:
    """The newest checkpoint as it is stored, and its step; a run may go on in the directory."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(create=False)  # which writes and removes nothing
    parts = {"arrays": ocp.args.StandardRestore(), "meta": ocp.args.JsonRestore()}
    while True:
        with ocp.CheckpointManager(path, options=options) as manager:
            step = manager.latest_step() if path.is_dir() else None
            if step is None:
                fix = "give the directory that fit was given, DIR/checkpoints of an experiment"
                got = f"no checkpoint in {path}"
                raise wrong("checkpoint.load", got, "one", fix, FileNotFoundError)
            with warnings.catch_warnings():  # that arrays go where they were: on one device they do
                warnings.simplefilter("ignore")
                try:
                    return step, manager.restore(step, args=ocp.args.Composite(**parts))
                except (MemoryError, PermissionError):
                    raise
                except Exception as error:
                    steps = [int(one.name) for one in path.iterdir() if one.name.isdigit()]
                    if max(steps, default=step) <= step and (path / str(step)).exists():
                        raise _unloadable(path / str(step), _short(error)) from error
        # The run has written a newer one meanwhile, and removed this one.


def _params(restored: Any, which: str, place: str) -> dict[str, Any]:
    """What is at a place of a checkpoint, by names that say nothing of what holds it."""
    tree = restored["arrays"][which]
    if "names" not in restored["meta"]:
        # Without a target Orbax gives dicts of strings for named tuples and keys of other types.
        return by_name(tree["params"])
    named = zip(restored["meta"]["names"], tree, strict=True)
    inside = {name: leaf for name, leaf in named if f"{name}/".startswith(f"{place}/")}
    return {name.removeprefix(place).removeprefix("/"): a for name, a in inside.items()}


def latest(store: Store | None) -> Path | None:
    """The newest complete checkpoint.

    Args:
      store: an open directory, or None.
    Returns:
      Its path, or None where there is none yet.
    """
    step = None if store is None else store.manager.latest_step()
    return None if store is None or step is None else store.path / str(step)


def _digests(record: Record) -> dict[str, str]:
    """Digests of what `load` reads: parameters, and averages of them by their places."""
    found: dict[str, str] = {}
    for which, state in (("state", record.state), ("best", record.best)):
        averages = named_averages(state)
        found |= {which: digest(state.params)}
        found |= {f"{which}/{place}": digest(tree) for place, tree in averages.items()}
    return found


def _arrays(record: Record) -> dict[str, Any]:
    return {"state": without_keys(record.state), "best": without_keys(record.best)}


def _at_hand(leaves: list[Any]) -> list[Any]:
    """Arrays in numpy where all of them lie on this process alone."""
    several = jax.process_count() > 1
    return leaves if several else [np.asarray(leaf) for leaf in leaves]


def _check_kinds(
    store: Store, where: Path, found: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Raise ValueError where a checkpoint's arrays are of other names, shapes or types."""
    lines = differences(found, expected, there="checkpoint")
    if not lines:
        return
    changed = [n for n in {*found, *expected} if found.get(n) != expected.get(n)]
    params = any(".params" in name for name in changed)
    what = "optimizer" if any(".opt_state" in name for name in changed) else "kind of key"
    what = "model" if params else what
    raise ValueError(
        f"{store.function}: {where} is a checkpoint of another {what}; nothing was changed:\n  "
        f"{lines}\nResume with what it was started with, or use another directory."
        f"{'' if params else ' ' + _new_run(store)}"
    )


def _check_run(store: Store, where: Path, found: dict[str, Any]) -> None:
    """Raise ValueError for a checkpoint of another run; warn where versions leave it open."""
    lines, doubtful = identity.words_for(found, store.run())
    if lines:
        raise ValueError(
            f"{store.function}: {where} is a checkpoint of another run; nothing was changed:\n  "
            f"{lines}\nResume with what it was started with, or use another directory. "
            f"{_new_run(store)}"
        )
    if doubtful:
        warnings.warn(
            f"{store.function}: {where} was written by other versions, under which JAX makes other "
            "programs of the run's functions, so that they cannot be compared; the run goes on:\n  "
            f"{doubtful}",
            stacklevel=2,
        )


def _new_run(store: Store) -> str:
    return (
        "To train on from its parameters on purpose, start a new run in another directory with "
        f"params=checkpoint.load({str(store.path)!r}, like=params)."
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
    together(aside.name)
    store.manager.reload()
    if not first:
        return
    warnings.warn(
        f"{store.function}: the checkpoint {path} is damaged ({what}); it was renamed "
        f"{aside.name}, and the run goes on from the one before",
        stacklevel=2,
    )


def _unwritten(store: Store, step: int, arrays: Any, error: Exception) -> SaveError:
    """The error that says why a checkpoint was not written; what there is of it is removed."""
    for part in store.path.glob(f"{step}.*"):
        shutil.rmtree(part, ignore_errors=True)
    last, free = latest(store), shutil.disk_usage(store.path).free
    before = "No checkpoint has been written." if last is None else f"Last good checkpoint: {last}"
    return SaveError(
        f"{store.function}: the checkpoint {store.path / str(step)} could not be written "
        f"({_short(error)}): it takes {_size_of(arrays) / 1e6:.3g} MB, {free / 1e6:.3g} MB are "
        f"free; make room and pass resume=True. {before}"
    )


def _size_of(arrays: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
