"""Valid files of every kind that the library reads, ways to damage one, and what is then said.

`python tests/whole/damaged_files.py SEED FIRST COUNT LOG SECONDS FOLDER` damages and reads so many,
and writes a line of JSON before and after each one. It runs apart from the test, which sees by the
lines that a read crashed the process, or took longer than SECONDS.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

N = 12  # examples of each
GREY = np.random.default_rng(3).integers(0, 256, (N, 6, 5)).astype(np.uint8)
SMOOTH = np.add.outer(np.arange(N), np.add.outer(np.arange(24), np.arange(20))).astype(np.uint8)
LABELS = np.arange(N) % 3
POEM = "Wer reitet so spät durch Nacht und Wind?\nEs ist der Vater mit seinem Kind.\n"
MEMORY = 8 << 30  # bytes of addresses: what a file claims beyond that is an error


def features():
    """What a set of TFDS says of its features, as JSON."""
    home = "tensorflow_datasets.core.features"
    dimensions = {"dimensions": ["6", "5", "1"]}
    image = {"dtype": "uint8", "shape": dimensions, "encodingFormat": "png"}
    label = {"classLabel": {"numClasses": "3"}}
    return {
        "pythonClassName": f"{home}.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "image": {"image": image, "pythonClassName": f"{home}.image_feature.Image"},
                "label": {
                    **label,
                    "pythonClassName": f"{home}.class_label_feature.ClassLabel",
                },
            }
        },
    }


def record(image, label):
    """One example of TFDS: the bytes of TensorFlow's `Example`."""
    import io

    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")

    def field(number, payload):
        size, head = len(payload), bytes([number << 3 | 2])
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return head + bytes([size]) + payload

    values = {
        b"image": field(1, field(1, png.getvalue())),
        b"label": field(3, field(1, bytes([label]))),
    }
    entries = (field(1, field(1, name) + field(2, value)) for name, value in values.items())
    return field(1, b"".join(entries))


def prepared(folder):
    """A set that looks as TFDS prepares one, without TensorFlow."""
    from array_record.python import array_record_module

    place = folder / "tiny" / "1.0.0"
    place.mkdir(parents=True)
    split = {
        "name": "train",
        "numBytes": "999",
        "shardLengths": [str(N)],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"fileFormat": "array_record", "name": "tiny", "splits": [split], "version": "1.0.0"}
    (place / "dataset_info.json").write_text(json.dumps(info))
    (place / "features.json").write_text(json.dumps(features()))
    name = str(place / "tiny-train.array_record-00000-of-00001")
    writer = array_record_module.ArrayRecordWriter(name, "group_size:1")
    for image, label in zip(GREY, LABELS.tolist(), strict=True):
        writer.write(record(image, label))
    writer.close()


def images(folder, suffixes, x=GREY):
    folder.mkdir(parents=True)
    for i, image in enumerate(x):
        Image.fromarray(image).save(folder / f"{i:02d}.{suffixes[i % len(suffixes)]}")


def make(folder):
    """Every kind of valid file, each in a folder of its name."""
    from vaejax import data, weights

    for name in ("npy", "npz", "packed", "arrays", "archives", "text", "cache", "weights"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "npy" / "rows.npy", GREY)
    np.savez(folder / "npz" / "set.npz", x=GREY, y=LABELS)
    np.savez_compressed(folder / "packed" / "set.npz", x=GREY, y=LABELS)
    for i, part in enumerate((slice(0, 7), slice(7, N))):
        np.save(folder / "arrays" / f"images-{i}.npy", GREY[part])
        np.save(folder / "arrays" / f"labels-{i}.npy", LABELS[part])
        np.savez(folder / "archives" / f"{i}.npz", x=GREY[part], y=LABELS[part])
    images(folder / "png", ["png"])
    images(folder / "lossy", ["jpg", "webp", "gif"], np.stack([SMOOTH] * 3, axis=-1))
    images(folder / "plain", ["bmp", "tif"])
    for split in ("train", "test"):
        for label in ("ant", "bee"):
            images(folder / "classes" / split / label, ["png"], GREY[:3])
    (folder / "text" / "poem.txt").write_text(POEM, encoding="utf-8")
    prepared(folder / "tfds")
    prepared(folder / "cache" / "set")
    data.load("tfds:tiny", data_dir=folder / "cache" / "set", cache_dir=folder / "cache" / "copy")
    weights.save(folder / "weights" / "model.safetensors", {"a": GREY, "b": {"c": np.ones(3)}})


def read(kind, way, folder):
    """What the library reads of a folder of `make`, as a list of arrays and texts."""
    import jax

    from vaejax import data, sources, text, weights

    files = {
        "npy": "rows.npy",
        "npz": "set.npz",
        "packed": "set.npz",
        "text": "poem.txt",
        "weights": "model.safetensors",
    }
    path = folder / files.get(kind, "")
    if kind == "text":
        return [text.read(path)]
    if kind == "weights":
        return list(jax.tree.leaves(weights.load(path, like={"a": GREY, "b": {"c": np.ones(3)}})))
    if way == "stream":
        return [batch.x for batch in data.stream(path, key=jax.random.key(0), batch_size=4)]
    if kind in ("tfds", "cache"):
        where = {"data_dir": folder / "set" if kind == "cache" else folder}
        if way == "load":
            return list(data.load("tfds:tiny", **where, cache_dir=folder / "copy")[::2])
        source = sources.open("tfds:tiny", **where)
    elif way == "load":
        return list(data.load(path, "all")[::2])
    else:
        source = sources.open(path, "test" if kind == "classes" else "all")
    return list(source.read(np.arange(source.size))[::2])


WAYS = [
    ("npy", "load"),
    ("npy", "open"),
    ("npy", "stream"),
    ("npz", "load"),
    ("npz", "open"),
    ("packed", "load"),
    ("arrays", "open"),
    ("archives", "open"),
    ("png", "open"),
    ("lossy", "open"),
    ("plain", "open"),
    ("classes", "open"),
    ("text", "read"),
    ("tfds", "load"),
    ("tfds", "open"),
    ("cache", "load"),
    ("weights", "load"),
]


def flip(rng, path, others):
    raw = bytearray(path.read_bytes())
    for at in rng.integers(0, len(raw), rng.integers(1, 9)):
        raw[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(raw)


def flip_head(rng, path, others):
    raw = bytearray(path.read_bytes())
    for at in rng.integers(0, min(len(raw), 128), rng.integers(1, 4)):
        raw[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(raw)


def cut(rng, path, others):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(rng.integers(1, len(raw)))])


def magic(rng, path, others):
    raw = path.read_bytes()
    path.write_bytes(rng.bytes(min(8, len(raw))) + raw[8:])


def extend(rng, path, others):
    with path.open("ab") as file:
        file.write(rng.bytes(int(rng.integers(1, 200))))


def blank(rng, path, others):
    raw = bytearray(path.read_bytes())
    start = int(rng.integers(len(raw)))
    part = slice(start, min(start + int(rng.integers(1, 64)), len(raw)))
    raw[part] = bytes(len(raw[part]))
    path.write_bytes(raw)


def swap(rng, path, others):
    shutil.copyfile(others[int(rng.integers(len(others)))], path)


def empty(rng, path, others):
    path.write_bytes(b"")


def pipe(rng, path, others):
    path.unlink()
    os.mkfifo(path)


def as_folder(rng, path, others):
    path.unlink()
    path.mkdir()


def dangling(rng, path, others):
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def gone(rng, path, others):
    path.unlink()


def huge(rng, path, others):
    """A header that claims much more than there is, in the file's own format."""
    raw = path.read_bytes()
    side = int(rng.choice([20_000, 60_000, 2**31 - 1]))
    if path.suffix == ".png":
        head = b"IHDR" + struct.pack(">II", side, side) + raw[24:29]
        raw = raw[:12] + head + struct.pack(">I", zlib.crc32(head)) + raw[33:]
    elif path.suffix == ".bmp":
        raw = raw[:18] + struct.pack("<ii", side, side) + raw[26:]
    elif shape := re.search(rb"'shape': \((\d+),([^)]*)\), } *", raw):
        text = b"'shape': (%d,%s), }" % (10 ** int(rng.integers(9, 30)), shape[2])
        raw = raw[: shape.start()] + text.ljust(len(shape[0])) + raw[shape.end() :]
        if path.suffix == ".npz":  # the archive's own checksum would refuse it
            member = raw[raw.index(b"\x93NUMPY") :][: len(GREY) * 30 + 128]
            raw = raw[:14] + struct.pack("<I", zlib.crc32(member)) + raw[18:]
    else:
        raw = raw[:8] + b"\xff" * 8 + raw[16:]
    path.write_bytes(raw)


DAMAGES = [
    flip,
    flip,
    flip,
    flip_head,
    flip_head,
    cut,
    cut,
    magic,
    extend,
    blank,
    swap,
    empty,
    pipe,
    as_folder,
    dangling,
    gone,
    huge,
]


class Hung(BaseException):
    """A read that takes too long."""


def judged(kind, way, folder, names, expected):
    """What happened: same, clear, warned, silent, raw or hung; and what was said."""
    said = ""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read(kind, way, folder)
        said = " | ".join(str(one.message) for one in caught)
    except Hung:
        return "hung", ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        ours = re.match(r"(load|open|stream|read|text\.read|weights\.load)\b[^\n]*: ", str(error))
        named = any(name in str(error) for name in names)
        kinds = (ValueError, FileNotFoundError, IsADirectoryError)
        return ("clear" if ours and named and isinstance(error, kinds) else "raw"), said
    same = len(found) == len(expected) and all(map(equal, found, expected))
    return ("warned" if said else "same" if same else "silent"), said


def equal(a, b):
    if isinstance(a, str | tuple):
        return a == b
    return np.shape(a) == np.shape(b) and a.dtype == b.dtype and np.array_equal(a, b)


def case(number, seed, valid, place, seconds):
    """Damage one file of a copy of valid ones, and read it."""
    rng = np.random.default_rng([seed, number])
    kind, way = WAYS[number % len(WAYS)]
    damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
    expected = read(kind, way, valid / kind)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(valid / kind, place)
    # Copies of a set of TFDS are found by the age of its files.
    begin = "copy" if kind == "cache" else ""
    if kind == "cache":
        shutil.rmtree(place / "copy")
        read(kind, way, place)
    files = sorted(path for path in (place / begin).rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    others = sorted(p for p in valid.rglob("*") if p.is_file() and p.name != path.name)
    alike = [p for p in others if p.suffix == path.suffix]
    damage(rng, path, alike if alike and rng.integers(2) else others)
    names = [path.name, path.stem, path.parent.name, "tiny", str(place)]
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(seconds)
    try:
        outcome, said = judged(kind, way, place, names, expected)
    except Hung:
        outcome, said = "hung", ""
    finally:
        signal.alarm(0)
    shown = {"kind": kind, "way": way, "damage": damage.__name__, "file": path.name}
    return {"outcome": outcome, "said": said[:400], **shown}


def _late(*_):
    raise Hung


def main(seed, first, count, log, seconds, folder):
    os.environ["JAX_PLATFORMS"] = "cpu"
    folder = Path(folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    valid = folder / "valid"
    with open(log, "a") as file, contextlib.chdir(folder):
        if not valid.exists():
            make(valid)
        for number in range(first, first + count):
            print(json.dumps({"begins": number}), file=file, flush=True)
            found = case(number, seed, valid, folder / "damaged", seconds)
            print(json.dumps({"number": number, **found}), file=file, flush=True)


if __name__ == "__main__":
    first = [int(value) for value in sys.argv[1:4]]
    main(*first, sys.argv[4], int(sys.argv[5]), sys.argv[6])
