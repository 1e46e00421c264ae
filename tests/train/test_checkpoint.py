"""Checkpoints: those of another run, model or format are refused, and so are damaged ones."""

import errno
import json
import random
import resource
import shutil
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from tests.train.runs import ADAM, DISTANCE, IMAGES, MEAN, equal, quiet_fit
from vaejax import checkpoint, train
from vaejax.arrays import digest

WIDE = {"mean": np.zeros((5, 3), np.float32)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The directory of a finished run of three epochs, of which the last two were kept."""
    folder = tmp_path_factory.mktemp("written") / "run"
    values = iter([3.0, 1.0, 2.0])
    fitted = quiet_fit(directory=folder, epochs=3, evaluate=lambda p, key: {"loss": next(values)})
    return folder, fitted


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(written[0], tmp_path / "copy")


def test_the_newest_checkpoints_are_kept(written):
    assert {path.name for path in written[0].iterdir()} == {"6", "9"}


def test_a_directory_with_another_run_is_not_overwritten(written):
    folder, _ = written
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileExistsError, match="already holds a run; pass resume=True"):
        quiet_fit(directory=folder)
    with pytest.raises(ValueError, match="(?s)checkpoint of another run.*key"):
        quiet_fit(directory=folder, resume=True, seed=4)
    with pytest.raises(ValueError, match="batch_size: checkpoint 16, here 10"):
        quiet_fit(directory=folder, resume=True, batch_size=10)
    with pytest.raises(ValueError, match="(?s)another run.*data: checkpoint"):  # of the same size
        quiet_fit(images=255 - IMAGES, directory=folder, resume=True)
    assert sorted(folder.rglob("*")) == before


def test_a_checkpoint_of_another_model_is_refused_with_the_difference(written):
    with pytest.raises(
        ValueError, match=r"(?s)another model.*float32\[4, 3\], here float32\[5, 3\]"
    ):
        quiet_fit(WIDE, directory=written[0], resume=True)
    refused = pytest.raises(
        ValueError, match=r"(?s)another kind of key; .*\.key: checkpoint uint32"
    )
    with jax.default_prng_impl("rbg"), refused:
        quiet_fit(directory=written[0], resume=True)


def test_a_checkpoint_of_another_format_is_refused_in_words(written, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FORMAT", 99)
    with pytest.raises(ValueError, match=r"(?s)another run; .*format: checkpoint \d, here 99"):
        quiet_fit(directory=written[0], resume=True)


def test_parameters_load_without_the_run(written, tmp_path):
    folder, fitted = written
    equal(checkpoint.load(folder, like=MEAN), fitted.params)
    equal(checkpoint.load(folder, like=MEAN, best=True), fitted.best.params)
    assert int(fitted.best.step) == 6
    with pytest.raises(ValueError, match="another model"):
        checkpoint.load(folder, like=WIDE)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.load(tmp_path / "typo", like=MEAN)


class Pair(NamedTuple):
    second: Any
    first: Any


def test_parameters_in_named_tuples_lists_and_by_number_load_too(tmp_path):
    """In the order of the model's own leaves, not in that of the names in the checkpoint."""
    arrays = iter(np.arange(30, dtype=np.float32).reshape(15, 2))
    params = {
        "pair": Pair(next(arrays), next(arrays)),
        "numbered": {i: next(arrays) for i in range(11)},
        "listed": [next(arrays), (next(arrays),)],
        "none": None,
    }

    def loss(params, key, batch, step):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), {}

    fitted = quiet_fit(
        params, loss=loss, optimizer=optax.sgd(0.1), epochs=1, batch_size=50, directory=tmp_path
    )
    found = checkpoint.load(tmp_path, like=params)
    assert isinstance(found["pair"], Pair)
    equal(found, fitted.params)
    with pytest.raises(ValueError, match=r"(?s)another model.*pair/first: .*\[2\], here .*\[3\]"):
        checkpoint.load(tmp_path, like=params | {"pair": Pair(np.zeros(2), np.zeros(3))})


def test_a_checkpoint_of_an_earlier_format_is_loaded_but_not_resumed(tmp_path):
    """It has a tree where there are lists now, and no checksum of its words."""
    state = train.make_step(DISTANCE, ADAM)[0](jax.random.key(3), MEAN)
    kept = state._replace(key=jax.random.key_data(state.key))
    other = kept._replace(params={"mean": kept.params["mean"] + 1})
    digests = {"state": digest(kept.params), "best": digest(other.params)}
    run = {"format": 2, "examples": 50}
    meta = {"run": run, "signature": {}, "sha256": "", "params": digests, "progress": {}}
    parts = {
        "arrays": ocp.args.StandardSave({"state": kept, "best": other}),
        "meta": ocp.args.JsonSave(meta),
    }
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.Composite(**parts))
    equal(checkpoint.load(tmp_path, like=MEAN), kept.params)
    equal(checkpoint.load(tmp_path, like=MEAN, best=True), other.params)
    with pytest.raises(ValueError, match=r"earlier vaejax \(format 2\).*params=checkpoint.load"):
        quiet_fit(directory=tmp_path, resume=True)


# --- damage --------------------------------------------------------------------------------------


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_a_truncated_checkpoint_is_set_aside_and_the_one_before_serves(folder, whole):
    largest = largest_file(folder / "9")
    stored = largest.read_bytes()
    largest.write_bytes(stored[: len(stored) // 2])
    with pytest.warns(UserWarning, match="9 is damaged.*renamed damaged-9.*from the one before"):
        resumed = quiet_fit(directory=folder, resume=True)
    equal(resumed.state, whole.state)
    assert {path.name for path in folder.iterdir()} == {"damaged-9", "9", "12"}
    equal(checkpoint.load(folder, like=MEAN), resumed.params)


def flipped(path, place):
    """Flip one bit of a file, and return what it held."""
    stored = path.read_bytes()
    changed = bytearray(stored)
    changed[place] ^= 16
    path.write_bytes(bytes(changed))
    return stored


def test_a_flipped_bit_in_the_only_checkpoint_is_noticed(folder, written):
    """By a resume: either nothing of what counts was hit, or the damage is said."""
    shutil.rmtree(folder / "6")
    refused = 0
    for path in [p for p in (folder / "9" / "arrays").rglob("*") if p.is_file()]:
        size = path.stat().st_size
        if size < 200:
            continue
        stored = flipped(path, size // 2)
        try:
            equal(quiet_fit(directory=folder, resume=True, epochs=3).state, written[1].state)
        except ValueError as error:
            assert "damaged" in str(error) and "no other is good" in str(error)
            refused += 1
        path.write_bytes(stored)
    assert refused >= 1


def test_a_damaged_checkpoint_is_not_loaded(folder, written):
    largest = largest_file(folder / "9" / "arrays")
    size, refused = largest.stat().st_size, 0
    for place in range(50, size, size // 8):
        stored = flipped(largest, place)
        try:
            equal(checkpoint.load(folder, like=MEAN), written[1].params)
        except ValueError:
            refused += 1
        largest.write_bytes(stored)
    assert refused >= 1


def damaged(stored, chance):
    """The bytes of a file with a bit flipped, another digit, or the end cut off."""
    place = chance.randrange(len(stored))
    digits = [i for i, byte in enumerate(stored) if byte in b"0123456789"]
    match chance.choice(["flip", "cut", "digit", "digit"]):
        case "cut":
            return stored[:place]
        case "digit" if digits:
            place = chance.choice(digits)
            others = [d for d in b"0123456789" if d != stored[place]]
            return stored[:place] + bytes([chance.choice(others)]) + stored[place + 1 :]
    return stored[:place] + bytes([stored[place] ^ 1 << chance.randrange(8)]) + stored[place + 1 :]


def test_whatever_is_damaged_is_noticed_or_counts_for_nothing(folder, written):
    """Every file of a checkpoint, its words of how far the run was among them."""
    shutil.rmtree(folder / "6")
    fitted, chance, refused = written[1], random.Random(5), 0
    words = json.loads((folder / "9" / "meta" / "metadata").read_text())
    run = {name: part for name, part in words["run"].items() if name != "format"}
    state = train.make_step(DISTANCE, ADAM)[0](jax.random.key(3), MEAN)
    files = [path for path in sorted((folder / "9").rglob("*")) if path.is_file()]
    named = [path for path in files if path.name in ("metadata", "_METADATA", "manifest.ocdbt")]
    for path in (*files, *3 * named, *5 * [folder / "9" / "meta" / "metadata"]):
        stored = path.read_bytes()
        if not stored:
            continue
        path.write_bytes(damaged(stored, chance))
        try:
            with checkpoint.opened(folder, run, resume=True) as store:
                found = checkpoint.restore(store, like=checkpoint.Record(state, state, {}))
            equal((found.state, found.best), (fitted.state, fitted.best))
            assert json.dumps(found.progress) == json.dumps(words["progress"])
        except ValueError as error:
            assert "damaged" in str(error) and "no other is good" in str(error)
            refused += 1
        path.write_bytes(stored)
    assert refused >= 6  # the words alone


def test_a_checkpoint_under_another_step_is_damaged(folder):
    (folder / "9").rename(folder / "12")
    with pytest.warns(UserWarning, match="12 is damaged.*from the one before"):
        resumed = quiet_fit(directory=folder, resume=True, epochs=2)
    assert int(resumed.state.step) == 6


# --- disks ---------------------------------------------------------------------------------------


def test_a_disk_that_is_full_stops_the_run_which_goes_on_once_there_is_room(tmp_path, whole):
    """The system refuses to write: what was written before stays whole, what is half goes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(row):
        if row["epoch"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    try:
        with pytest.raises(
            checkpoint.SaveError, match="could not be written.*MB are free"
        ) as caught:
            quiet_fit(directory=tmp_path, log=full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"Last good checkpoint: {tmp_path / '6'}" in str(caught.value)
    assert len(caught.value.fitted.history["loss"]) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"3", "6"}
    equal(quiet_fit(directory=tmp_path, resume=True).state, whole.state)


def test_a_folder_without_permission_or_space_is_refused_before_any_work(tmp_path, monkeypatch):
    worked = []

    def run(match):
        with pytest.raises(OSError, match=match):
            quiet_fit(directory=tmp_path / "run", log=worked.append)

    with monkeypatch.context() as patch:
        tiny = shutil.disk_usage(tmp_path)._replace(free=100)
        patch.setattr(shutil, "disk_usage", lambda path: tiny)
        run("0 MB free, expected .* MB for a checkpoint; make room, or use another directory")
    shutil.rmtree(tmp_path / "run")
    file = tmp_path / "run"
    file.write_text("")
    run("expected directory to be a folder, got the file")
    file.unlink()

    def refused(**options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)  # root may write everywhere
    run("nothing can be written to directory .*Permission denied.*change its permissions")
    assert not worked
