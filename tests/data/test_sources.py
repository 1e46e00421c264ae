"""Every kind of source against `data.load` on the same content, and what its errors say."""

import hashlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from vaejax import data, sources
from vaejax.data import tfds
from vaejax.types import Batch

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (25, 4, 3)).astype(np.uint8)
RGB = RNG.integers(0, 256, (25, 4, 3, 3)).astype(np.uint8)
Y = np.arange(25) % 7
PICKED = np.array([3, 0, 1, 1, 19, 7])


def same(source, batch):
    """A source holds what `data.load` read: all at once, a few, and the same digest."""
    assert source.size == len(batch.x)
    jax.tree.map(np.testing.assert_array_equal, source.read(np.arange(source.size)), batch)
    if source.size > PICKED.max():
        picked = source.read(PICKED)
        jax.tree.map(
            np.testing.assert_array_equal, picked, jax.tree.map(lambda a: a[PICKED], batch)
        )
        for a, b in zip(jax.tree.leaves(picked), jax.tree.leaves(batch), strict=True):
            assert a.dtype == b.dtype and type(a) is np.ndarray
    assert sources.digest(source) == sources.digest(sources.in_memory(batch))


def split_of(split, files, batch):
    """A folder's split by its rule, row by row: `files` are names and numbers of rows."""
    kinds = []
    for name, count in files:
        number = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
        kinds += ["test" if (row + number) % 10 == 9 else "train" for row in range(count)]
    name = split.partition("[")[0]
    rows = [row for row, kind in enumerate(kinds) if name in (kind, "all")]
    chosen = jax.tree.map(lambda leaf: leaf[np.array(rows)], batch)
    return data.load(chosen, "all" + split.removeprefix(name))


SPLITS = ("train", "test", "all", "all[3:20]", "train[:50%]")


@pytest.mark.parametrize("split", SPLITS)
def test_files_hold_what_load_reads(split, tmp_path):
    for name, x in {
        "grey": GREY,
        "rgb": RGB,
        "bool": GREY > 99,
        "f2": RGB.astype(np.float16),
        "f8": GREY.reshape(25, 12) / 7,
        "big": GREY.reshape(25, 12).astype(">f4"),
        "columns": np.asfortranarray(GREY.reshape(25, 12).astype(np.float32)),
    }.items():
        np.save(tmp_path / f"{name}.npy", x)
        np.savez(tmp_path / f"{name}.npz", y=Y[:, None], images=x)
        path = tmp_path / f"{name}.npy"
        same(sources.open(path, split), data.load(str(path), split))
        same(sources.open(np.load(path, mmap_mode="r"), split), data.load(path, split))
        path = tmp_path / f"{name}.npz"
        same(sources.open(str(path), split), data.load(path, split))


def test_archives_that_name_their_splits(tmp_path):
    path = tmp_path / "keras.npz"
    np.savez(path, train_images=GREY, train_labels=Y, test_images=RGB)
    for split in ("train", "test", "train[5:9]"):
        same(sources.open(path, split), data.load(path, split))
    with pytest.raises(ValueError, match=r"'valid', expected \['train', 'test'\]"):
        sources.open(path, "valid")


@pytest.mark.parametrize("split", SPLITS)
def test_folders_of_pieces_are_their_concatenation(split, tmp_path):
    for kind in ("npz", "npy", "parts", "days"):
        (tmp_path / kind).mkdir()
    for i, piece in enumerate((slice(0, 9), slice(9, 10), slice(10, 25))):
        np.savez(tmp_path / "npz" / f"part-{i}.npz", x=GREY[piece], labels=Y[piece])
        np.save(tmp_path / "npy" / f"images-{i}-of-3.npy", GREY[piece])
        np.save(tmp_path / "npy" / f"labels-{i}-of-3.npy", Y[piece])
        np.save(tmp_path / "parts" / f"{i:05d}.npy", GREY[piece])
        np.save(tmp_path / "days" / f"{('friday', 'monday', 'sunday')[i]}.npy", GREY[piece])
    (tmp_path / "npz" / ".DS_Store").touch()
    (tmp_path / "npz" / "README.txt").write_text("about them")
    for kind, names, y in (
        ("npz", ("part-0.npz", "part-1.npz", "part-2.npz"), Y),
        ("npy", ("images-0-of-3.npy", "images-1-of-3.npy", "images-2-of-3.npy"), Y),
        ("parts", ("00000.npy", "00001.npy", "00002.npy"), ()),
        ("days", ("friday.npy", "monday.npy", "sunday.npy"), ()),
    ):
        files = zip(names, (9, 1, 15), strict=True)
        same(sources.open(str(tmp_path / kind), split), split_of(split, files, Batch(GREY, y=y)))


def test_folders_may_name_their_splits(tmp_path):
    for split, x in (("train", GREY), ("test", GREY[:4])):
        (tmp_path / "sub" / split).mkdir(parents=True)
        np.savez(tmp_path / "sub" / split / "all.npz", x=x, y=Y[: len(x)])
        (tmp_path / "names").mkdir(exist_ok=True)
        np.save(tmp_path / "names" / f"x_{split}_0.npy", x)
        np.save(tmp_path / "names" / f"y_{split}_0.npy", Y[: len(x)])
    for folder in ("sub", "names"):
        same(sources.open(tmp_path / folder), data.load(Batch(GREY, y=Y), "all"))
        same(sources.open(tmp_path / folder, "test"), data.load(Batch(GREY[:4], y=Y[:4]), "all"))
        with pytest.raises(ValueError, match=r"'valid', expected .*'train'.*choose one of these"):
            sources.open(tmp_path / folder, "valid")


def write_images(folder, images, suffixes=("png",)):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02d}.{suffixes[i % len(suffixes)]}")


@pytest.mark.parametrize("split", SPLITS)
def test_folders_of_images(split, tmp_path):
    for name, images in (("grey", GREY), ("rgb", RGB)):
        write_images(tmp_path / name, images, ("png", "BMP", "tiff"))
        names = [f"{i:02d}.{('png', 'BMP', 'tiff')[i % 3]}" for i in range(25)]
        expected = split_of(split, [(name, 1) for name in names], Batch(images))
        same(sources.open(tmp_path / name, split), expected)
    for label, part in (("0 ant", slice(0, 4)), ("Bee", slice(4, 20)), ("cat", slice(20, 25))):
        write_images(tmp_path / "classes" / label, RGB[part])
    names, y = np.repeat(["0 ant", "Bee", "cat"], [4, 16, 5]), np.repeat([0, 1, 2], [4, 16, 5])
    places = [*range(4), *range(16), *range(5)]
    files = [(f"{name}/{i:02d}.png", 1) for name, i in zip(names, places, strict=True)]
    source = sources.open(tmp_path / "classes", split)
    same(source, split_of(split, files, Batch(RGB, y=y)))
    assert source.classes == ("0 ant", "Bee", "cat")


def test_images_of_two_levels_of_palettes_and_of_jpeg(tmp_path):
    write_images(tmp_path / "two", [image > 99 for image in GREY])
    same(sources.open(tmp_path / "two", "all"), data.load(GREY > 99, "all"))
    (tmp_path / "palette").mkdir()
    Image.fromarray(GREY[0]).convert("P").save(tmp_path / "palette" / "a.gif")
    found = sources.open(tmp_path / "palette", "all").read(np.zeros(2, int)).x
    np.testing.assert_array_equal(found, np.stack([GREY[0]] * 2)[..., None].repeat(3, axis=3))
    (tmp_path / "jpeg").mkdir()
    Image.new("L", (8, 16), 77).save(tmp_path / "jpeg" / "flat.jpeg")
    found = sources.open(tmp_path / "jpeg", "all").read([0]).x
    np.testing.assert_array_equal(found, np.full((1, 16, 8, 1), 77, np.uint8))


def test_images_with_own_splits(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split / "a", GREY[:3])
        write_images(tmp_path / split / "b", GREY[3:5])
    for split in ("train", "test"):
        expected = data.load(Batch(GREY[:5], y=np.array([0, 0, 0, 1, 1])), "all")
        same(sources.open(tmp_path, split), expected)


def test_a_set_of_tfds_is_read_from_its_records(mnist_prepared, cache, tmp_path, monkeypatch):
    expected = data.load("mnist", "test[3000:3400]", cache_dir=cache)
    calls = []
    reader = tfds.reader

    def counted(*arguments):
        size, read = reader(*arguments)
        return size, lambda rows: calls.append(len(rows)) or read(rows)

    monkeypatch.setattr(tfds, "reader", counted)
    source = sources.open("mnist", "test[3000:3400]")
    assert sum(calls) == 512  # to see whether it is binary, and to check the first
    same(source, expected)
    assert calls[2:4] == [400, 6]
    assert source.classes == tuple("0123456789")
    assert "tensorflow" not in sys.modules
    with pytest.raises(ValueError, match="open: split of mnist: got 'valid', expected train, test"):
        sources.open("tfds:mnist", "valid")
    with pytest.raises(
        FileNotFoundError, match=r"open: source 'mnist'.*vaejax\.data\.prepare mnist"
    ):
        sources.open("mnist", data_dir=tmp_path)


def test_a_binary_set_of_tfds_has_levels_and_no_others_later(monkeypatch):
    x = (GREY > 99).astype(np.uint8)[..., None].repeat(40, axis=0)
    monkeypatch.setattr(tfds, "open_set", lambda *a: None)
    monkeypatch.setattr(tfds, "classes", lambda *a: ())
    monkeypatch.setattr(tfds, "reader", lambda *a: (len(x), lambda rows: Batch(x[rows])))
    same(sources.open("tfds:some"), data.load(x > 0, "all"))
    x[700, 1, 1] = 9
    source = sources.open("tfds:some")
    with pytest.raises(
        ValueError, match=r"levels up to 9 in row 700, expected 0 and 1.*data\.load"
    ):
        source.read(np.array([5, 700, 6]))


def test_what_lies_in_memory_is_taken_too():
    batch = Batch(GREY, c=np.ones((25, 2), np.float32), y=Y, weight=np.ones(25, np.float32))
    same(sources.open(batch, "test"), data.load(batch, "test"))
    same(sources.open(RGB), data.load(RGB))
    same(sources.open("digits"), data.load("digits"))


def test_opening_reads_no_more_than_256_rows(tmp_path, monkeypatch):
    """A file with holes, of 100 GB, of which the machine holds nothing."""
    shape = (10**8, 10, 100)
    with open(tmp_path / "huge.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + np.prod(shape))
    seen = []
    monkeypatch.setattr(sources, "_checked_rows", _counting(sources._checked_rows, seen))
    source = sources.open(tmp_path / "huge.npy", "train")
    assert source.size == 9 * 10**7 and seen == [256]
    assert source.read(np.array([0, source.size - 1])).x.shape == (2, 10, 100, 1)


def _counting(function, seen):
    def counted(found, rows, where):
        seen.append(len(rows))
        return function(found, rows, where)

    return counted


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_named_by_row_and_file(value, tmp_path):
    rows = np.ones((2000, 3), np.float32)
    np.save(tmp_path / "a.npy", rows)
    rows[1999, 1] = value
    np.save(tmp_path / "b.npy", rows)
    source = sources.open(tmp_path, "all")
    assert source.read(np.arange(3999)).x.shape == (3999, 3)
    message = r"open: source '.*b\.npy': got NaN or infinity in row 1999 \(1 such rows in the batch"
    with pytest.raises(ValueError, match=message):
        source.read(np.arange(3900, 4000))
    np.save(tmp_path / "c.npy", rows[1990:].astype(np.float64))
    with pytest.raises(ValueError, match=r"c\.npy': got NaN or infinity in row 9 "):
        sources.open(tmp_path / "c.npy", "all")


def test_a_file_that_is_written_to_meanwhile_is_no_crash(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((9000, 4)))
    opened = sources.open(path, "all")
    np.save(path, np.ones((2, 4)))  # the rest of the mapping is nowhere now
    with pytest.raises(
        ValueError, match=r"a\.npy': got a file that was written to since, expected"
    ):
        opened.read(np.array([8999]))
    np.save(tmp_path / "b.npy", np.zeros((9000, 4)))
    kept = sources.open(tmp_path / "b.npy", "all")
    (tmp_path / "a.npy").replace(tmp_path / "b.npy")  # another file: the mapping has the old one
    assert kept.read(np.array([8999])).x.tolist() == [[0.0] * 4]


def test_files_that_cannot_be_streamed(tmp_path):
    def refused(message, name, split="train", kind=ValueError):
        with pytest.raises(kind, match=message) as caught:
            sources.open(tmp_path / name, split)
        assert str(caught.value).startswith("open: ")

    np.savez_compressed(tmp_path / "small.npz", x=GREY)
    refused(r"small\.npz': got a compressed file, .*mapped; write it by np\.savez,", "small.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}]))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npy").touch()
    for name in ("objects.npz", "objects.npy", "text.npz", "empty.npy"):
        refused("expected plain numpy arrays; write it anew", name)
    np.savez(tmp_path / "two.npz", a=GREY, b=GREY)
    refused("one array of data, or named splits", "two.npz")
    np.save(tmp_path / "cut.npy", GREY)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-9])
    refused("expected plain numpy arrays", "cut.npy")
    np.savez(tmp_path / "none.npz", x=GREY[:0])
    refused(r"shape \(0, 4, 3\), expected an array \[n, ...\] that is not empty", "none.npz")
    np.save(tmp_path / "int.npy", GREY.astype(np.int64))
    refused(r"pass x\.astype\(np\.uint8\)", "int.npy")
    np.save(tmp_path / "binary.npy", GREY % 2)
    refused(r"x\.astype\(bool\)", "binary.npy")
    np.save(tmp_path / "ranks.npy", GREY[None, None])
    refused("vectors .* or images", "ranks.npy")
    np.savez(tmp_path / "onehot.npz", x=GREY, y=np.eye(25))
    refused("labels: got float64.*argmax", "onehot.npz")
    np.savez(tmp_path / "fewer.npz", x=GREY, y=Y[:24])
    refused("24 labels for 25 examples, expected as many", "fewer.npz")
    refused("no such file", "missing.npy", kind=FileNotFoundError)
    refused("no such file or folder", "missing/folder", kind=FileNotFoundError)
    (tmp_path / "table.csv").touch()
    refused("another kind of file, .* or a folder; write its numbers", "table.csv")
    np.savez(tmp_path / "good.npz", x=GREY)
    refused("train, test or all", "good.npz", split="valid")
    refused("positions up to 23", "good.npz", split="train[:24]")


def test_folders_that_cannot_be_streamed(tmp_path):
    def refused(message, name, split="train"):
        with pytest.raises(ValueError, match=message) as caught:
            sources.open(tmp_path / name, split)
        assert str(caught.value).startswith("open: source '")

    write_images(tmp_path / "mixed", GREY[:2])
    np.save(tmp_path / "mixed" / "a.npy", GREY)
    refused(r"got a folder of \.npy and images, expected", "mixed")
    write_images(tmp_path / "both" / "a", GREY[:2])
    write_images(tmp_path / "both", GREY[:2])
    refused("got a folder of images and subfolders", "both")
    (tmp_path / "empty").mkdir()
    refused("got an empty folder", "empty")
    write_images(tmp_path / "class" / "a", GREY[:2])
    (tmp_path / "class" / "b").mkdir()
    refused(r"b': got no images, expected some; a subfolder is a class", "class")
    for name, x in (("shapes", GREY[:, :3]), ("types", GREY / 255)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "1.npy", GREY)
        np.save(tmp_path / name / "2.npy", x)
        refused(rf"2\.npy': got {x.dtype} of shape .*uint8 \[n, 4, 3\] as in '.*1\.npy'", name)


def test_images_that_cannot_be_streamed(tmp_path):
    write_images(tmp_path / "sizes", [*GREY[:3], GREY[3, :3]])
    source = sources.open(tmp_path / "sizes", "all[:3]")
    assert source.read(np.arange(3)).x.shape == (3, 4, 3, 1)
    message = r"03\.png': got an image \[3, 3, 1\], expected \[4, 3, 1\] as in .*00\.png'; resize"
    with pytest.raises(ValueError, match=message):
        sources.open(tmp_path / "sizes", "all")
    write_images(tmp_path / "channels", [GREY[0], RGB[0]])
    with pytest.raises(
        ValueError, match=r"01\.png': got an image \[4, 3, 3\], expected \[4, 3, 1\]"
    ):
        sources.open(tmp_path / "channels", "all")
    write_images(tmp_path / "damaged", RGB[:3])
    damaged = tmp_path / "damaged" / "02.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"02\.png': got \(.*, expected an image; get or write"):
        sources.open(tmp_path / "damaged", "all")


def test_indices_beyond_a_split_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    source = sources.open(tmp_path / "a.npy", "train[:5]")
    for indices in ([0, 5], [-1]):
        with pytest.raises(IndexError, match="read: indices: got .*expected 0 to 4, the examples"):
            source.read(np.array(indices))
    with pytest.raises(IndexError):
        sources.open(GREY).read(np.array([-1]))
