"""What identifies examples, and which split a file of a folder is in, whatever else changes."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vaejax import data, sources
from vaejax.data import _digest
from vaejax.data.examples import as_examples
from vaejax.types import Batch

ROWS = np.random.default_rng(5).normal(size=(9000, 3)).astype(np.float32)


def identity(x, **rest):
    return sources.digest(sources.in_memory(Batch(x, **rest)))


def test_the_same_data_are_the_same_wherever_they_lie(tmp_path):
    expected = identity(ROWS)
    np.save(tmp_path / "a.npy", ROWS.astype(np.float64))
    np.save(tmp_path / "b.npy", ROWS.astype(">f4"))
    np.savez(tmp_path / "c.npz", x=ROWS)
    for name in ("a.npy", "b.npy", "c.npz"):
        assert sources.digest(sources.open(tmp_path / name, "all")) == expected
        assert identity(data.load(tmp_path / name, "all").x) == expected
    for x in (jnp.asarray(ROWS), ROWS.astype(np.float64), ROWS.astype(">f4")):
        assert identity(x) == expected
    assert as_examples("fit", ROWS, None).digest == expected
    assert sources.digest(sources.Source(9000, lambda rows: Batch(ROWS[rows]))) == expected
    assert (
        as_examples("fit", sources.Source(9, lambda rows: Batch(ROWS[rows]), "own"), None)[0].digest
        == "own"
    )


def test_other_data_are_others():
    y = np.arange(9000) % 4
    found = {
        identity(ROWS),
        identity(ROWS[:-1]),
        identity(ROWS.reshape(9000, 3, 1)),
        identity(ROWS, y=y),
        identity(ROWS, c=y),
        identity(ROWS, y=y + 1),
        identity(ROWS.view(np.int32)),
        identity(ROWS[::-1]),
        identity({"a": ROWS}),
    }
    assert len(found) == 9


@pytest.mark.parametrize("seed", range(3))
def test_one_row_of_few_and_one_percent_of_many_do_not_escape(seed):
    rng = np.random.default_rng(seed)
    few = ROWS[:2500].copy()
    few[rng.integers(2500), rng.integers(3)] += 1e-6
    assert identity(few) != identity(ROWS[:2500])
    many = ROWS.copy()
    many[rng.permutation(9000)[:90]] += 1e-6
    assert identity(many) != identity(ROWS)
    block = ROWS.copy()
    start = rng.integers(8900)
    block[start : start + 90] = 0
    assert identity(block) != identity(ROWS)


def test_the_sample_has_one_row_of_each_part_of_any_size():
    for size in (2501, 9000, 10**11):
        rows = _digest._sampled(size)
        starts = np.arange(2501) * size // 2500
        assert len(rows) == 2500 and (starts[:-1] <= rows).all() and (rows < starts[1:]).all()


def test_one_file_of_a_large_folder_does_not_escape(tmp_path, monkeypatch):
    """As with thousands of them: here a sample is of 20 rows."""
    monkeypatch.setattr(_digest, "ROWS", 20)
    for kind in ("images", "arrays"):
        (tmp_path / kind).mkdir()
    for i in range(60):
        Image.fromarray(np.full((3, 2), i, np.uint8)).save(tmp_path / "images" / f"{i:02d}.png")
        np.save(tmp_path / "arrays" / f"{i:02d}.npy", np.full((2, 3), i, np.float32))

    def found(kind, split):
        return sources.digest(sources.open(tmp_path / kind, split))

    before = {(k, s): found(k, s) for k in ("images", "arrays") for s in ("train", "test")}
    is_test = in_test(tmp_path / "images")
    for name in ("17", "33", "59"):
        Image.fromarray(np.full((3, 2), 200, np.uint8)).save(tmp_path / "images" / f"{name}.png")
        np.save(tmp_path / "arrays" / f"{name}.npy", np.full((2, 3), 0.5, np.float32))
        split = "test" if f"{name}.png" in is_test else "train"
        assert found("images", split) != before["images", split]
        assert found("arrays", "train") != before["arrays", "train"]
        before = {key: found(*key) for key in before}


def test_a_digest_is_found_once_and_only_when_it_is_asked_for(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    source = sources.open(tmp_path / "a.npy")
    assert callable(source.digest) and source.digest() is source.digest()


def in_test(folder):
    """The names of a folder's images, whose pixels are their numbers, that are "test"."""
    source = sources.open(folder, "test")
    numbers = source.read(np.arange(source.size)).x[:, 0, 0, 0]
    return {f"{number:02d}.png" for number in numbers}


def test_files_that_come_and_go_move_no_other_to_another_split(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(0, 120, 2):
        Image.fromarray(np.full((3, 2), i, np.uint8)).save(folder / f"{i:02d}.png")
    before = in_test(folder)
    assert 0 < len(before) < 15
    for i in (1, 3, 119):
        Image.fromarray(np.full((3, 2), i, np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "00.png").unlink()
    (folder / "64.png").unlink()
    after = in_test(folder)
    changed = {"00.png", "64.png", "01.png", "03.png", "119.png"}
    assert before - changed == after - changed
    folder.rename(tmp_path / "elsewhere")
    assert in_test(tmp_path / "elsewhere") == after


def test_rows_of_files_stay_where_they_are(tmp_path):
    for name, count in {"a": 23, "b": 4, "c": 31, "d": 1}.items():
        np.save(
            tmp_path / f"{name}.npy",
            np.full((count, 2), ord(name)) + np.arange(count)[:, None] / 64,
        )

    def rows(split):
        source = sources.open(tmp_path, split)
        return set(source.read(np.arange(source.size)).x[:, 0].tolist())

    train, test = rows("train"), rows("test")
    assert not train & test and train | test == rows("all") and 3 <= len(test) <= 9
    (tmp_path / "a.npy").unlink()
    assert rows("train") == {x for x in train if x >= ord("b")}
    assert rows("test") == {x for x in test if x >= ord("b")}
