"""Data that are surely not meant as they are are warned of once; others never."""

import warnings

import numpy as np
import pytest

from vaejax import Batch, data, sources
from vaejax.data.examples import as_examples

RANDOM = np.random.default_rng(4)
GREY = RANDOM.integers(0, 256, (20, 7, 5, 1))
TABLE = RANDOM.normal(size=(60, 3)) * [1.0, 3e-4, 5e6]
TIMES = 1.7e9 + RANDOM.uniform(0, 3600, (60, 2)) * [1e4, 1.0]  # seconds: of a year, of an hour


def half(key, x):
    return x / 256


@pytest.mark.parametrize(
    "x, transform, said",
    [
        (GREY.astype(np.float64), None, r"levels 0..255.*pass x / 255"),
        (GREY[..., 0].astype(np.float16), data.scale, r"levels 0..255"),
        (RANDOM.integers(0, 65536, (9, 6, 6)).astype(np.uint16), None, r"0..65535.*x / 65535"),
        (GREY.reshape(20, -1).clip(1) * 1.0 - 1 + (GREY.reshape(20, -1) == 255), None, "levels"),
        (TABLE, None, r"column 1 of x spreads over .*column 2 .*standardise"),
        (
            TIMES,
            data.scale,
            r"column 1 of x .* around 1\.7e\+09, and float32 moves .*standardise x",
        ),
        (TIMES.astype(np.int64), None, r"column 1 of x .*float32 moves .* by up to 6"),
        (GREY * 0.97 + RANDOM.uniform(0, 8, GREY.shape), data.scale, r"x holds numbers.*levels"),
        ({"left": GREY / 255, "right": GREY * 1.0}, None, r"x\['right'\] holds whole.*levels"),
        ((TABLE[:, 0], TABLE), None, r"column 1 of x\[1\] spreads"),
    ],
)
def test_what_is_surely_not_meant_is_warned_of_once(x, transform, said):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        as_examples("fit", x, transform)
    assert len(seen) == 1 and "fit: " in str(seen[0].message)
    for same in (Batch(x), sources.in_memory(Batch(x))):
        with pytest.warns(UserWarning, match=said):
            as_examples("fit", same, transform)


def test_columns_are_named_where_they_have_names():
    class Frame:
        columns = ("height", "weight", "income")

        def __getitem__(self, name):
            return TABLE[:, self.columns.index(name)]

        def __len__(self):
            return len(TABLE)

        def to_numpy(self):
            return TABLE

    with pytest.warns(UserWarning, match="column 'weight' of x .* column 'income'"):
        as_examples("fit", Frame(), None)


@pytest.mark.parametrize(
    "x, transform",
    [
        (RANDOM.normal(size=(200, 9)), None),
        (RANDOM.poisson(3.0, (300, 30)).astype(np.float32), None),
        (RANDOM.poisson(90.0, (300, 30)).astype(np.float32), None),
        (RANDOM.poisson(5.0, (40, 8, 8)).astype(np.float32), None),
        (np.eye(7)[RANDOM.integers(0, 7, 50)], None),
        (RANDOM.integers(0, 2, (50, 8, 8, 1)).astype(float), None),
        (GREY / 255, None),
        (RANDOM.uniform(-1, 1, (30, 400)), None),
        (RANDOM.integers(-32768, 32767, (8, 100)).astype(np.int16) / 32768, None),
        (RANDOM.integers(55, 190, (40, 20, 4)).astype(np.float32), None),  # heart rates
        (RANDOM.integers(0, 17, (90, 8, 8)).astype(np.float32), None),
        (RANDOM.integers(0, 200, (50, 30)).astype(np.int32), None),  # words
        (GREY.astype(np.float32), half),
        (TABLE, lambda key, x: x / np.array([1.0, 3e-4, 5e6])),
        (np.exp(RANDOM.normal(size=(100, 4))) * [1e-2, 1, 30, 600], None),
        (GREY.astype(np.uint8), data.dequantize),
        (TIMES[:, :1], None),
        (TIMES - TIMES.mean(axis=0), None),
        (np.where(GREY > 99, 0.1 + 0.2, 0.3), None),  # one number, but for rounding
        (np.float32(TIMES) - np.float32(1.7e9), None),
        (RANDOM.normal(280, 9, (40, 8, 8)), None),  # kelvin
        (RANDOM.uniform(0, 3000, (40, 8, 8, 1)), None),  # heights
        (
            np.c_[TABLE[:, 0], 0.1 + 1e-17 * (TABLE[:, 1] > 0), TABLE[:, 0]],
            None,
        ),  # a constant
    ],
)
def test_right_data_are_not_warned_of(x, transform):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_examples("fit", x, transform)
        as_examples("fit", sources.in_memory(Batch(x)), transform)


def test_what_float32_cannot_tell_apart_is_warned_of_where_it_is_read(tmp_path):
    np.save(tmp_path / "times.npy", TIMES)
    for read in (data.load, sources.open):
        with pytest.warns(UserWarning, match=r"times\.npy': column 1 of x .*float32 moves"):
            read(tmp_path / "times.npy", "all")
    with pytest.raises(ValueError, match=r"data.x holds values beyond float32 in 1 of 60 .*scale"):
        as_examples("fit", np.where(TIMES[7, 0] == TIMES, 1e39, 0), None)


def test_a_source_of_levels_is_not_read_for_it():
    read = []

    def rows(indices):
        read.append(len(indices))
        return Batch(GREY.astype(np.uint8)[indices])

    as_examples("fit", sources.Source(len(GREY), rows), data.binarize)
    assert read == [1]
