"""One image file as grey or RGB levels of 8 bits, or an error that says what it holds beyond them.

What is read is all that the file holds. What would be lost is refused, with a remedy that keeps it.
"""

import io
import os
import stat
import struct
import zlib
from typing import Any

import numpy as np

from vaejax.errors import wrong

_TURNS = {  # Pillow's, by the EXIF orientation
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION = 0x0112  # the number of that entry

_BACKGROUND = (
    'choose what lies behind: behind = PIL.Image.new("RGBA", image.size, "white"), then '
    'PIL.Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB").save(NEW)'
)
_GREY16 = (
    "keep the bits, in one array of floats: np.save(NEW, np.float32([np.asarray(PIL.Image.open(p)) "
    "/ 65535 for p in paths]))"
)
_COLOUR16 = (
    "Pillow reads 8 of its 16 bits: read it with OpenCV, cv2.imread(path, cv2.IMREAD_UNCHANGED)"
    "[..., ::-1] / 65535, and save one array of floats; or keep the upper 8 bits of each: "
    "PIL.Image.open(path).save(NEW)"
)
_NUMBERS = (
    "save the numbers, scaled as you mean it, in one array of floats: np.save(NEW, "
    "np.float32([np.asarray(PIL.Image.open(p)) for p in paths]))"
)
_COLOURS = (
    'image.convert("RGB").save(NEW); where its colour profile counts, convert it by '
    "PIL.ImageCms.profileToProfile"
)


def pixels(path: str) -> np.ndarray:
    """A grey image as `[height, width, 1]`, a coloured one as `[height, width, 3]`.

    It is turned as its EXIF orientation says, as viewers show it.

    Args:
      path: of the file.
    Returns:
      uint8.
    Raises:
      ValueError: for a file that is damaged or no image; and for one that holds more than grey or
        RGB of 8 bits: further pages, transparency, more bits, other colours.
    """
    from PIL import Image, UnidentifiedImageError

    where = f"open: source {path!r}"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for its writer
            raise ValueError("no regular file")
        with open(path, "rb") as file:
            raw = file.read()
        _check_png(raw)
        with Image.open(io.BytesIO(raw)) as image:
            beyond = _beyond_levels(image)
            found = np.empty(0) if beyond else np.asarray(_levels(image))
    except Exception as error:  # Pillow's, of many classes, for damaged files
        said = str(error) or type(error).__name__
        said = "nothing that Pillow knows" if isinstance(error, UnidentifiedImageError) else said
        fix = "get or write it anew, or take it out of the folder"
        raise wrong(where, f"({said.splitlines()[0]})", "an image", fix) from error
    if beyond:
        fix = f"{beyond[1]} (NEW is another path)"
        raise wrong(where, beyond[0], "one image, grey or RGB of 8 bits", fix)
    return found[..., None] if found.ndim == 2 else found


def _beyond_levels(image: Any) -> tuple[str, str] | None:
    """What an opened image holds that grey or RGB of 8 bits do not, and what keeps it."""
    pages, mode = getattr(image, "n_frames", 1), image.mode
    if pages > 1:
        fix = (
            "write each into a file of its own: for i, page in enumerate("
            'PIL.ImageSequence.Iterator(image)): page.save(f"{NEW}/{i}.png")'
        )
        return f"{pages} pages or frames", fix
    # What Pillow takes the pixels from: of 16 bits a colour it keeps 8, and says nothing.
    stored = [str(tile[-1]) for tile in image.tile]
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        return "16 bits grey", _GREY16
    if any(";16" in kind and "BGR" not in kind for kind in stored):
        return f"16 bits a channel, mode {mode}", _COLOUR16
    if mode in ("I", "F"):
        return f"mode {mode}, {'whole numbers' if mode == 'I' else 'floats'} of 32 bits", _NUMBERS
    if _has_alpha(image) and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        return f"mode {mode} with transparency", _BACKGROUND
    if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        return f"mode {mode}", _COLOURS
    return None


def _has_alpha(image: Any) -> bool:
    return image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info


def _levels(image: Any) -> Any:
    """An image of these modes as L or RGB, turned as it is to be seen."""
    from PIL import Image

    grey = image.mode in ("1", "L", "LA")
    image.load()  # Pillow turns a TIFF here, and forgets its orientation
    opaque = image.convert("RGBA") if _has_alpha(image) and not grey else image
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    found = opaque.convert("L" if grey else "RGB")
    return found.transpose(Image.Transpose[turn]) if turn else found


def _check_png(raw: bytes) -> None:
    """Raise ValueError where a part of a PNG does not match its checksum: Pillow lets it pass."""
    if not raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return
    view, at, name = memoryview(raw), 8, b""
    while name != b"IEND":
        size, name = struct.unpack_from(">I4s", raw, at)
        (stored,) = struct.unpack_from(">I", raw, at + 8 + size)
        if zlib.crc32(view[at + 4 : at + 8 + size]) != stored:
            raise ValueError(f"the part {name.decode('latin-1')!r} does not match its checksum")
        at += 12 + size
