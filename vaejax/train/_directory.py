"""A directory that one run uses at a time: looked at, and locked while the run goes on.

The system holds the lock for an open file, so a process that is killed leaves none behind. On a
file system that several machines share it holds between them where that system passes `flock` on,
as NFS does. Where a system has no such locks (Windows, some network file systems) there is none.
"""

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax
import numpy as np

from vaejax.errors import wrong

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
"""The file in a directory that is locked; what it says is for people."""

_open: set[IO[str]] = set()


def _forget() -> None:
    """In a process that was forked: it could outlive the run, and would hold the lock as well."""
    for file in _open:
        file.close()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def claimed(path: Path, resume: bool, function: str) -> Iterator[None]:
    """Keep every other run out of a directory; of several processes the first does it for all."""
    refused: Exception | None = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(alone_in(path, function))
                check_free(path, resume, function)  # a run may have come and gone meanwhile
            except OSError as error:
                refused = error
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            said = multihost_utils.broadcast_one_to_all(np.array(refused is not None))
            if said and refused is None:
                refused = OSError(f"{function}: the first process refused {path}; it says why")
        if refused is not None:
            raise refused
        yield


def check_free(path: Path, resume: bool, function: str) -> None:
    """Raise FileExistsError where there is something in a directory that has to be empty."""
    if resume or not path.exists():
        return
    if any(found.name != NAME for found in path.iterdir()):
        raise FileExistsError(
            f"{function}: {path} already holds a run; pass resume=True to continue it, or another "
            "directory"
        )


def check_writable(path: Path, function: str) -> None:
    """Raise OSError where checkpoints could not be written, before any work is lost."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise type(error)(
            error.errno,
            f"{function}: nothing can be written to directory {path} ({error.strerror}); change "
            "its permissions, make room, or use another directory",
        ) from error


def together(what: str) -> None:
    """Wait until every process of the run is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"vaejax: {what}")


@contextlib.contextmanager
def alone_in(folder: Path, function: str) -> Iterator[None]:
    """Hold the lock of a directory inside a `with`; its file is removed at the end.

    Args:
      folder: the directory, which exists.
      function: what the user called, for the message.
    Raises:
      BlockingIOError: where another run holds it, in this process or in another one.
    """
    path = folder / NAME
    file = _locked(path, function)
    if file is None:
        yield
        return
    _open.add(file)
    try:
        with contextlib.suppress(OSError):  # a full disk: nobody needs to read it
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield
    finally:
        _open.discard(file)
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            file.close()


def _locked(path: Path, function: str) -> IO[str] | None:
    """The file, open and locked; None where the system has no locks."""
    if fcntl is None:
        return None
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            got = f"{path}, which cannot be opened ({error.strerror or error})"
            fix = "remove it where no run goes on in the directory"
            raise wrong(f"{function}: directory", got, "a file to lock", fix, type(error)) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    return None
                file.seek(0)
                holder = file.read(200).strip() or "another process"
            raise wrong(
                f"{function}: directory",
                f"{path.parent}, in which another run goes on ({holder})",
                "one of this run alone",
                "wait for the other run, or use another directory",
                BlockingIOError,
            ) from None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the run before removed it meanwhile: a lock on it would bind nobody
