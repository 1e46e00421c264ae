"""What an image file and a folder hold beyond plain pixels: read, or refused; never dropped."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vaejax import sources

RNG = np.random.default_rng(4)
GREY = RNG.integers(0, 256, (8, 5, 7)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)


@pytest.fixture
def one(tmp_path):
    """`one(save, name)`: the pixels of a folder with the one file that `save` wrote."""

    def pixels(save, name):
        folder = tmp_path / "one"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        save(folder / name)
        return sources.open(folder, "all").read(np.zeros(1, int)).x[0]

    return pixels


def animated(kind):
    frames = [Image.fromarray(image) for image in GREY[:3]]
    return lambda path: frames[0].save(path, kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_pages_and_frames_after_the_first_are_not_dropped(one, name):
    kind = {"tif": "TIFF"}.get(name[2:], name[2:].upper())
    with pytest.raises(ValueError, match=rf"{name}': got 3 pages or frames, expected one image"):
        one(animated(kind), name)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_images_are_turned_as_viewers_show_them(one, name, orientation):
    image = Image.fromarray(COLOUR)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name.endswith("webp") else {}
    found = one(lambda path: image.save(path, exif=exif, **options), name)
    flipped = {
        1: COLOUR,
        2: COLOUR[:, ::-1],
        3: COLOUR[::-1, ::-1],
        4: COLOUR[::-1],
        5: COLOUR.swapaxes(0, 1),
        6: np.rot90(COLOUR, -1),
        7: COLOUR[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(COLOUR),
    }
    np.testing.assert_array_equal(found, flipped[orientation])


DEEP = (np.arange(35).reshape(5, 7) * 1800).astype(np.uint16)
CLEAR = np.concatenate([COLOUR, COLOUR[..., :1]], axis=-1)


@pytest.mark.parametrize(
    ("image", "name", "message"),
    [
        (DEEP, "a.png", "16 bits grey, .*/ 65535"),
        (DEEP, "a.tif", "16 bits grey, .*/ 65535"),
        (DEEP.astype(np.int32), "a.tif", r"mode I, .*np\.float32"),
        (DEEP.astype(np.float32), "a.tif", r"mode F, floats.*np\.float32"),
        (CLEAR, "a.png", "mode RGBA with transparency.*alpha_composite"),
        (CLEAR, "a.webp", "mode RGBA with transparency"),
        (CLEAR[..., 2:], "a.png", "mode LA with transparency"),
        (Image.fromarray(CLEAR, "CMYK"), "a.tif", "mode CMYK.*profile"),
        (Image.fromarray(CLEAR, "CMYK"), "a.jpg", "mode CMYK"),
        (Image.fromarray(COLOUR, "LAB"), "a.tif", "mode LAB"),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_what_8_bits_do_not_hold_is_refused_with_what_keeps_it(one, image, name, message):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with pytest.raises(ValueError, match=rf"one/{name}': got {message}"):
        one(image.save, name)


def test_the_remedy_for_16_bits_keeps_them(one, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(DEEP + np.uint16(i)).save(path)
    with pytest.raises(ValueError) as caught:
        one(Image.fromarray(DEEP).save, "a.png")
    advice = str(caught.value).split("array of floats: ")[1].removesuffix(" (NEW is another path)")
    exec(
        advice,
        {"np": np, "PIL": __import__("PIL.Image"), "NEW": tmp_path / "x.npy", "paths": paths},
    )
    read = sources.open(tmp_path / "x.npy", "all").read(np.arange(2)).x[..., 0]
    np.testing.assert_array_equal(np.rint(read * 65535), [DEEP, DEEP + 1])


def png(colour, bits, raw):
    """A PNG by hand, of a kind that Pillow reads and does not write."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", raw.shape[1], raw.shape[0], bits, colour, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in raw)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def test_colours_of_16_bits_are_not_cut_to_8(one):
    deep = RNG.integers(0, 2**16, (5, 7, 3)).astype(">u2")
    with pytest.raises(ValueError, match="16 bits a channel, mode RGB, .*Pillow reads 8 of its 16"):
        one(png(2, 16, deep), "a.png")
    np.testing.assert_array_equal(one(png(2, 8, COLOUR), "a.png"), COLOUR)


def test_a_channel_of_transparency_that_hides_nothing_is_no_obstacle(one):
    opaque = np.concatenate([COLOUR, np.full((5, 7, 1), 255, np.uint8)], axis=-1)
    np.testing.assert_array_equal(one(Image.fromarray(opaque).save, "a.png"), COLOUR)
    grey = np.stack([GREY[0], np.full((5, 7), 255, np.uint8)], axis=-1)
    np.testing.assert_array_equal(one(Image.fromarray(grey).save, "a.png"), GREY[0][..., None])
    palette = Image.fromarray(GREY[0] % 3).convert("P")
    unused = one(lambda path: palette.save(path, transparency=250), "a.gif")
    assert unused.shape == (5, 7, 3)
    with pytest.raises(ValueError, match="mode P with transparency"):
        one(lambda path: palette.save(path, transparency=1), "a.png")


def test_a_png_whose_pixels_do_not_match_their_checksum_is_refused(one):
    def damaged(path):
        Image.fromarray(GREY[0]).save(path, compress_level=0)
        raw = bytearray(path.read_bytes())
        raw[raw.index(b"IDAT") + 30] ^= 1
        path.write_bytes(raw)

    with pytest.raises(ValueError, match=r"a\.png': got \(the part 'IDAT' does not match its che"):
        one(damaged, "a.png")


def test_bombs_and_pipes_are_named(one):
    def bomb(path):
        head = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
        body = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        png(0, 8, GREY[0])(path)
        path.write_bytes(path.read_bytes()[:8] + body + path.read_bytes()[33:])

    with pytest.raises(
        ValueError, match=r"a\.png': got \(Image size \(1600000000 pixels\) exceeds"
    ):
        one(bomb, "a.png")
    with pytest.raises(ValueError, match=r"a\.png': got a pipe, .*move it out of the folder"):
        one(os.mkfifo, "a.png")
    with pytest.raises(ValueError, match=r"a\.npy': got a pipe"):
        one(lambda path: path.symlink_to("nowhere"), "a.npy")


def save_images(folder, count):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(GREY[i]).save(folder / f"{i}.png")


def test_classes_are_numbered_over_all_splits(tmp_path):
    for split, names in {"train": "abc", "test": "ac", "valid": "bd"}.items():
        for name in names:
            save_images(tmp_path / split / name, 2)
    for split, y in {
        "train": [0, 0, 1, 1, 2, 2],
        "test": [0, 0, 2, 2],
        "valid": [1, 1, 3, 3],
    }.items():
        source = sources.open(tmp_path, split)
        assert source.read(np.arange(source.size)).y.tolist() == y
        assert source.classes == tuple("abcd")


def test_one_class_of_two_spellings_is_not_two_classes(tmp_path):
    for case, (train, test) in enumerate([("Cat", "cat"), ("é", "e\u0301"), ("dog ", "dog")]):
        folder = tmp_path / str(case)
        save_images(folder / "train" / train, 1)
        save_images(folder / "test" / test, 1)
        with pytest.raises(ValueError, match="got the classes .* and .*, each in another split"):
            sources.open(folder, "test")
        save_images(folder / "train" / test, 1)  # two classes, then
        assert len(sources.open(folder, "test").classes) == 2


def test_splits_beside_other_folders_are_not_taken_for_classes(tmp_path):
    for name in ("train", "test", "notes"):
        save_images(tmp_path / "a" / name, 1)
    with pytest.raises(
        ValueError, match=r"splits \['test', 'train'\] beside \['notes'\], expected"
    ):
        sources.open(tmp_path / "a")
    for name in ("bus", "train", "tram"):
        save_images(tmp_path / "vehicles" / name, 1)
    assert sources.open(tmp_path / "vehicles", "all").read(np.arange(3)).y.tolist() == [0, 1, 2]
    save_images(tmp_path / "vehicles" / "bus" / "red", 1)
    with pytest.raises(ValueError, match=r"bus': got subfolders \['red'\] in a class"):
        sources.open(tmp_path / "vehicles", "all")


def test_files_that_are_not_read_are_named_once(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            save_images(tmp_path / split / name, 1)
    for quiet in (".DS_Store", "Thumbs.db", "README.md", "train/._0.png", "test/labels.csv"):
        (tmp_path / quiet).touch()
    assert sources.open(tmp_path, "train").size == 2  # without a warning
    for said in ("train/a/1.heic", "train/labels.csv", "train/b/.2.png"):
        (tmp_path / said).touch()
    with pytest.warns(UserWarning) as caught:
        sources.open(tmp_path, "train")
    (warning,) = caught
    assert (
        "3 of its files not read: 'train/labels.csv', 'train/a/1.heic', 'train/b/.2.png';"
        in str(warning.message)
    )
