"""One run at a time in a directory, by a lock that ends with the process that holds it."""

import os
import subprocess
import sys

import pytest

from tests.train.runs import MEAN, equal, quiet_fit
from vaejax import checkpoint
from vaejax.train._directory import alone_in

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 1 on another host")
file.flush()
print("locked", flush=True)
time.sleep(600)
"""


def test_a_second_run_is_refused_in_one_line_while_the_first_goes_on(tmp_path, whole):
    """In the same process too; and what the first has written can be read meanwhile."""
    seen = []

    def log(row):
        if row["epoch"] != 3:
            return
        for given in ({}, {"resume": True}):
            with pytest.raises(OSError) as caught:
                quiet_fit(directory=tmp_path, **given)
            seen.append(str(caught.value))
        seen.append(checkpoint.load(tmp_path, like=MEAN))

    fitted = quiet_fit(directory=tmp_path, log=log)
    equal(fitted.state, whole.state)
    assert "already holds a run" in seen[0]
    assert seen[1].startswith(f"fit: directory: got {tmp_path}, in which another run goes on (proc")
    assert "wait for the other run, or use another directory" in seen[1] and "\n" not in seen[1]
    assert (seen[2]["mean"] != fitted.params["mean"]).any()  # those of the epoch before
    assert {path.name for path in tmp_path.iterdir()} == {"9", "12"}


def test_two_runs_that_begin_at_once_in_an_empty_directory_are_one(tmp_path):
    """The second one found nothing in it when it looked; so it looks again under the lock."""
    with checkpoint.opened(tmp_path, {}, resume=False) as store:
        assert store is not None
        with pytest.raises(BlockingIOError), checkpoint.opened(tmp_path, {}, resume=False):
            pass
    with checkpoint.opened(tmp_path, {}, resume=False):  # nothing is left behind
        pass


def test_a_lock_that_is_no_file_is_named(tmp_path):
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("/nowhere/at/all", path)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        make(folder / ".lock")
        refused = pytest.raises(
            OSError, match=r"got .*\.lock, which cannot be opened .*; remove it"
        )
        with refused, alone_in(folder, "fit"):
            pass


def test_a_process_that_is_killed_leaves_no_lock_behind(tmp_path, whole):
    quiet_fit(directory=tmp_path, epochs=2)
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            other.stdout.readline()
            with pytest.raises(BlockingIOError, match=r"goes on \(process 1 on another host\)"):
                quiet_fit(directory=tmp_path, resume=True)
        finally:
            other.kill()
    assert (tmp_path / ".lock").exists()
    equal(quiet_fit(directory=tmp_path, resume=True).state, whole.state)
    assert not (tmp_path / ".lock").exists()
