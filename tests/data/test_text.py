"""Text as arrays: what goes in comes out, and what cannot is refused by name."""

import os

import numpy as np
import pytest

from vaejax import text

POEM = "Ein Affe,\nzwei Enten"


def test_encode_and_decode_are_each_others_inverse():
    characters = text.vocabulary(POEM)
    codes = text.encode(POEM, characters)
    assert codes.dtype == np.int32
    assert sorted(set(POEM)) == list(characters)
    np.testing.assert_array_equal(codes, [characters.index(one) for one in POEM])
    assert text.decode(codes, characters) == POEM
    assert text.decode(codes[:0], characters) == ""


def test_the_vocabulary_of_several_texts_is_that_of_all_their_characters():
    texts = ["an apple", "two", "three eels"]
    assert text.vocabulary(texts) == text.vocabulary("".join(texts)) == " aehlnoprstw"
    rows = text.lines(texts, text.vocabulary(texts), 11)
    assert [text.decode(row, text.vocabulary(texts)) for row in rows] == texts


def test_files_are_read_or_named(tmp_path):
    (tmp_path / "good.txt").write_bytes("\ufeffgrün\r\nblau".encode())
    assert text.read(str(tmp_path / "good.txt")) == "grün\nblau"
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("grün".encode("utf-16"))
    (tmp_path / "zeros.txt").write_bytes(bytes(9))
    (tmp_path / "empty.txt").touch()
    os.mkfifo(tmp_path / "pipe.txt")
    for name, kind, said in (
        ("latin.txt", ValueError, "byte 0xfc at position 2, no UTF-8, expected .*latin-1"),
        ("wide.txt", ValueError, "a text in UTF-16, .*read_text..utf-16"),
        ("zeros.txt", ValueError, "a binary file"),
        ("empty.txt", ValueError, "an empty file"),
        ("pipe.txt", FileNotFoundError, "no regular file"),
        ("", FileNotFoundError, "no regular file"),
        ("none.txt", FileNotFoundError, "no such file"),
    ):
        with pytest.raises(kind, match=rf"text\.read: path '.*{name}': got {said}"):
            text.read(tmp_path / name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text.vocabulary(["ab", 3]), r"vocabulary: text: got int, expected a text"),
        (lambda: text.vocabulary(b"ab"), "vocabulary: texts: got bytes"),
        (lambda: text.encode(["ab"], "ab"), r"encode: text: got list.*lines\(texts"),
        (lambda: text.encode(b"ab", "ab"), "encode: text: got bytes"),
        (lambda: text.encode("ab", ["a", "b"]), "encode: characters: got list"),
        (lambda: text.decode([0], ["ab", "cd"]), "decode: characters: got list"),
        (lambda: text.encode(None, "ab"), "encode: text: got None, expected a text"),
        (lambda: text.lines(["a"], "a", 2.0), "lines: length: got 2.0, expected a whole number"),
        (lambda: text.windows(None, 2), "windows: codes: got None, expected a sequence"),
        (lambda: text.lines("one line", " einlo", 9), r"lines: texts: got str, .*splitlines\(\)"),
        (lambda: text.lines([b"a"], "a", 9), r"lines: texts: got bytes.*\.decode\(\)"),
        (lambda: text.windows("abcdef", 2), r"windows: codes: got a text, .*encode\("),
    ],
)
def test_what_is_no_text_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_windows_cover_the_text_and_overlap_as_asked():
    codes = np.arange(10)
    np.testing.assert_array_equal(text.windows(codes, 4), [[0, 1, 2, 3], [4, 5, 6, 7]])
    overlapping = text.windows(codes, 4, stride=2)
    np.testing.assert_array_equal(overlapping[:, 0], [0, 2, 4, 6])
    np.testing.assert_array_equal(overlapping[-1], [6, 7, 8, 9])
    assert text.windows(codes, 10).shape == (1, 10)
    np.testing.assert_array_equal(text.windows([0, 1, 2, 3], 2), [[0, 1], [2, 3]])


def test_codes_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match=r"decode: codes: got float64, expected integers; convert"):
        text.decode(np.array([0.0, 1.0]), "ab")
    assert text.decode([], "ab") == ""


def test_lines_are_filled_by_end_symbols():
    rows = text.lines(["ab", "a"], "ab", 4)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 2], [0, 2, 2, 2]])
    assert [text.decode(row, "ab") for row in rows] == ["ab", "a"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text.vocabulary(""), "vocabulary: text: got an empty text"),
        (lambda: text.encode("", "ab"), "encode: text: got an empty text"),
        (lambda: text.encode("ab\naxb", "ab\n"), r"'x' at position 4 \(line 2\)"),
        (lambda: text.encode("ab", "aba"), "expected each once"),
        (lambda: text.decode([0, 5], "ab"), r"got 0..5, expected \[n\] codes in 0..2"),
        (lambda: text.decode([[0]], "ab"), r"got codes of shape \(1, 1\)"),
        (lambda: text.windows(np.arange(3), 4), "got 3 of them, expected 4 or more"),
        (lambda: text.windows(np.arange(3), 0), "expected length >= 1"),
        (lambda: text.lines([], "ab", 3), "expected texts >= 1"),
        (lambda: text.lines(["a", ""], "ab", 3), "got 0 characters in text 1, expected 1 to 2"),
        (lambda: text.lines(["aba"], "ab", 3), "got 3 characters in text 0"),
    ],
)
def test_bad_input_is_refused_with_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
