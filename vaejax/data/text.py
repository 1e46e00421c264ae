"""Text as arrays of integers: vocabulary, encoding, and the windows or lines to train on."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vaejax.arrays import numbers
from vaejax.errors import at_least_one, wrong

__all__ = ["decode", "encode", "lines", "read", "vocabulary", "windows"]


def read(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8.

    Args:
      path: of the file.
    Returns:
      The text, its ends of lines as "\\n", without a mark of the order of bytes at its start.
    Raises:
      FileNotFoundError: where there is no such file.
      ValueError: for a file that is empty, or no text in UTF-8.
    """
    path = Path(path).expanduser()
    where = f"text.read: path {str(path)!r}"
    if not path.is_file():  # to open a pipe would wait for its writer
        got = "no regular file" if path.exists() else "no such file"
        raise wrong(where, got, "a text file", "correct the path", FileNotFoundError)
    raw, expected = path.read_bytes(), "a text in UTF-8"
    anew = 'write it anew: Path(NEW).write_text(Path(path).read_text("{}"), "utf-8")'
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise wrong(where, "a text in UTF-16", expected, anew.format("utf-16"))
    if not raw or b"\0" in raw:
        got = "a binary file, with zeros" if raw else "an empty file"
        raise wrong(where, got, expected, "give another file")
    try:
        found = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte {raw[error.start]:#x} at position {error.start}, no UTF-8"
        fix = f"give another file, or where it is in Latin-1, {anew.format('latin-1')}"
        raise wrong(where, got, expected, fix) from error
    return found.replace("\r\n", "\n").replace("\r", "\n")


def vocabulary(text: str | Sequence[str]) -> str:
    """The characters that a text uses, each once, sorted: character i has the code i.

    Args:
      text: all that is going to be encoded: one text, or several.
    Returns:
      The characters.
    Raises:
      ValueError: for an empty text.
      TypeError: for what is no text.
    """
    if not isinstance(text, str):
        text = "".join(_text("vocabulary: text", one) for one in _texts("vocabulary", text))
    if not text:
        raise wrong("vocabulary: text", "an empty text", "at least one character", "read a file")
    return "".join(sorted(set(text)))


def encode(text: str, characters: str) -> np.ndarray:
    """The code of every character of a text: its place among `characters`.

    Args:
      text: one text.
      characters: the vocabulary.
    Returns:
      int32 `[n]`.
    Raises:
      ValueError: for an empty text, for `characters` that repeat one, and for a character that is
        not among them, naming it, its position and its line.
      TypeError: for what is no text.
    """
    fix = "encode one at a time, or take lines(texts, characters, length)"
    text, characters = _text("encode: text", text, fix), _text("encode: characters", characters)
    if not text:
        raise wrong("encode: text", "an empty text", "at least one character", "read a file")
    places = {character: i for i, character in enumerate(characters)}
    if len(places) != len(characters):
        fix = "make them by vocabulary(text)"
        raise wrong("encode: characters", "one of them twice", "each once", fix)
    for position, character in enumerate(text):
        if character not in places:
            line = text.count("\n", 0, position) + 1
            got = f"{character!r} at position {position} (line {line})"
            fix = "take the vocabulary of all texts, vocabulary(text), or replace the character"
            raise wrong("encode: text", got, f"one of the {len(characters)} characters", fix)
    return np.fromiter((places[character] for character in text), np.int32, len(text))


def decode(codes: ArrayLike, characters: str) -> str:
    """The text of codes; the inverse of `encode`. The end symbol of `lines` is left out.

    Args:
      codes: whole numbers `[n]`.
      characters: the vocabulary that encoded them.
    Returns:
      The text.
    Raises:
      ValueError: for codes that are neither characters nor the end symbol.
      TypeError: for codes that are no integers.
    """
    characters = _text("decode: characters", characters)
    codes = np.asarray(codes)
    if codes.size and not np.issubdtype(codes.dtype, np.integer):
        fix = "convert them: codes.astype(int)"
        raise wrong("decode: codes", codes.dtype, "integers", fix, TypeError)
    if codes.ndim != 1 or (codes.size and not 0 <= codes.min() <= codes.max() <= len(characters)):
        got = (
            f"codes of shape {codes.shape}" if codes.ndim != 1 else f"{codes.min()}..{codes.max()}"
        )
        fix = "decode one text at a time, by the vocabulary that encoded it"
        raise wrong("decode: codes", got, f"[n] codes in 0..{len(characters)}", fix)
    return "".join((*characters, "")[code] for code in codes)


def windows(codes: np.ndarray, length: int, *, stride: int | None = None) -> np.ndarray:
    """Pieces of a long sequence to train on, as many as fit whole.

    Args:
      codes: the sequence, `[total, ...]`.
      length: of a piece.
      stride: from the start of one piece to that of the next; by default `length`, so that they do
        not overlap.
    Returns:
      `[n, length, ...]`.
    Raises:
      ValueError: for a sequence shorter than `length`.
      TypeError: for a text that is not encoded.
    """
    if isinstance(codes, str):
        fix = "encode it: encode(text, characters)"
        raise wrong("windows: codes", "a text", "its codes", fix, TypeError)
    codes = np.asarray(numbers("windows: codes", codes, "a sequence [total, ...]"))
    stride = length if stride is None else stride
    at_least_one("windows", length=length, stride=stride)
    total = len(codes) if codes.ndim else 0
    if total < length:
        fix = "lower length, or read a longer text"
        raise wrong("windows: codes", f"{total} of them", f"{length} or more", fix)
    return np.stack([codes[i : i + length] for i in range(0, total - length + 1, stride)])


def lines(texts: Sequence[str], characters: str, length: int) -> np.ndarray:
    """Texts of different lengths side by side, each filled up by end symbols.

    The end symbol's code is `len(characters)`, and every text has at least one behind it: the
    vocabulary of a model of them has `len(characters) + 1` symbols. What fills the array counts
    for nothing under `recurrent.Language(end=len(characters))`.

    Args:
      texts: one or more.
      characters: the vocabulary.
      length: of a row, above that of the longest text.
    Returns:
      int32 `[n, length]`.
    Raises:
      ValueError: for no text, for one that is empty or leaves no room for an end symbol, naming it,
        and as `encode` does.
      TypeError: for one text in place of several.
    """
    texts = _texts("lines", texts)
    at_least_one("lines", texts=len(texts), length=length)
    filled = np.full((len(texts), length), len(characters), np.int32)
    for i, one in enumerate(texts):
        if not 1 <= len(_text("lines: texts", one)) < length:
            fix = "leave it out, or raise length"
            raise wrong(
                "lines: texts", f"{len(one)} characters in text {i}", f"1 to {length - 1}", fix
            )
        filled[i, : len(one)] = encode(one, characters)
    return filled


def _text(where: str, value: Any, fix: str = "decode bytes: value.decode()") -> str:
    """A text as it is; TypeError for anything else."""
    if not isinstance(value, str):
        raise wrong(where, _type(value), "a text (str)", fix, TypeError)
    return value


def _texts(function: str, value: Any) -> Sequence[str]:
    """Several texts as a list; TypeError for one text, or for none."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        fix = f"pass a list: {function}(text.splitlines(), ...)"
        raise wrong(f"{function}: texts", _type(value), "a list of texts", fix, TypeError)
    return list(value)


def _type(value: Any) -> str:
    return "None" if value is None else type(value).__name__
