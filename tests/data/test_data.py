"""What `load` promises of every source, what its errors say, and the transforms' exact ends."""

import os
import pathlib
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import conditional, data
from vaejax.batch import as_batch
from vaejax.data import _cache, prepare
from vaejax.types import Batch

GREY = (np.arange(25 * 4 * 3).reshape(25, 4, 3) % 256).astype(np.uint8)


def test_digits_are_split_by_every_sixth_and_rescaled():
    from sklearn.datasets import load_digits

    scans = load_digits()
    train, test, everything = (data.load("digits", split) for split in ("train", "test", "all"))
    assert train.x.shape == (1498, 8, 8, 1) and test.x.shape == (299, 8, 8, 1)
    assert train.x.dtype == np.uint8 and train.y.dtype == np.int32 and train.x.max() == 255
    np.testing.assert_array_equal(test.y, scans.target[5::6])
    assert np.abs(everything.x[..., 0] - scans.images * 255 / 16).max() <= 0.5
    assert train.c == () and train.weight == ()


def test_mnist_is_read_once_then_mapped_from_the_cache(mnist_prepared, cache):
    first = data.load("mnist", "test", cache_dir=cache)
    start = time.perf_counter()
    second = data.load("tfds:mnist", "test[:100]", cache_dir=cache)
    assert time.perf_counter() - start < 1
    assert first.x.shape == (10000, 28, 28, 1) and first.x.dtype == np.uint8
    assert first.x.max() == 255 and np.bincount(first.y).tolist()[:3] == [980, 1135, 1032]
    assert isinstance(second.x, np.memmap) and not second.x.flags.writeable
    np.testing.assert_array_equal(first.x[:100], second.x)
    np.testing.assert_array_equal(first.y[:100], second.y)
    assert "tensorflow" not in sys.modules
    assert not list(cache.glob("tmp*")) and len(list(cache.glob("*"))) == 3
    with pytest.raises(ValueError, match=r"'valid', expected train, test; choose"):
        data.load("mnist", "valid", cache_dir=cache)


def test_damaged_and_unwritable_caches(mnist_prepared, cache, tmp_path, monkeypatch):
    decoded = Batch(GREY[..., None], y=np.arange(25))
    calls = []
    monkeypatch.setattr(_cache, "_decode", lambda *a: calls.append(a) or decoded)
    data.load("mnist", "train", cache_dir=tmp_path)
    assert len(data.load("mnist", "train", cache_dir=tmp_path).x) == 25 and len(calls) == 1
    (copy,) = tmp_path.glob("*.x.npy")
    (labels,) = tmp_path.glob("*.y.npy")
    (sums,) = tmp_path.glob("*.json")
    whole = copy.read_bytes()
    other = tmp_path / "other.npy"
    np.save(other, np.arange(25, dtype=np.int32)[::-1])
    for number, (path, raw) in enumerate(
        (
            (copy, whole[:200]),
            (copy, b""),
            (copy, whole[:-1] + bytes([whole[-1] ^ 4])),  # one bit of one pixel
            (copy, whole + b"0"),
            (labels, other.read_bytes()),
            (sums, sums.read_bytes()[:-1]),
            (sums, b"[]"),
        ),
        start=2,
    ):
        path.write_bytes(raw)
        with pytest.warns(UserWarning, match=r"the decoded copy .* is damaged .* made again"):
            found = data.load("mnist", "train", cache_dir=tmp_path)
        assert len(calls) == number and copy.read_bytes() == whole
        np.testing.assert_array_equal(found.x, decoded.x)
    sums.unlink()  # as an older release left a copy
    data.load("mnist", "train", cache_dir=tmp_path)
    assert len(data.load("mnist", "train", cache_dir=tmp_path).x) == 25 and len(calls) == 9
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="no decoded copy of mnist is kept"):
        batch = data.load("mnist", "train", cache_dir=tmp_path / "file" / "inside")
    assert batch is decoded


def test_a_set_prepared_again_is_not_served_stale(mnist_prepared, tmp_path, monkeypatch):
    source = os.path.join(os.environ["TFDS_DATA_DIR"], "mnist", "3.0.1")
    place = tmp_path / "tfds" / "mnist" / "3.0.1"
    place.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        (place / name).write_bytes(pathlib.Path(source, name).read_bytes())
    calls = []
    monkeypatch.setattr(_cache, "_decode", lambda *a: calls.append(a) or Batch(GREY, y=()))
    for _ in range(2):
        data.load("mnist", data_dir=tmp_path / "tfds", cache_dir=tmp_path)
    assert len(calls) == 1
    os.utime(place / "dataset_info.json", (1, 1))
    data.load("mnist", data_dir=tmp_path / "tfds", cache_dir=tmp_path)
    assert len(calls) == 2


def test_binarized_mnist_comes_out_as_grey_levels(tmp_path):
    place = os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "binarized_mnist")
    if not os.path.isdir(place):
        pytest.skip("left out: binarized_mnist is not prepared under TFDS_DATA_DIR")
    batch = data.load("binarized_mnist", "validation[:500]", cache_dir=tmp_path)
    assert np.unique(batch.x).tolist() == [0, 255] and batch.y == ()
    assert batch.x.shape == (500, 28, 28, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16, jnp.bfloat16, bool])
@pytest.mark.parametrize("shape", [(25, 12), (25, 4, 3), (25, 4, 1, 3)])
def test_arrays_rank_and_type_decide(dtype, shape):
    x = (GREY.reshape(shape) % 5).astype(dtype)
    batch = data.load(x, "all")
    assert batch.x.shape == (shape if len(shape) != 3 else (*shape, 1))
    assert batch.x.dtype == (np.uint8 if dtype in (bool, np.uint8) else np.float32)
    factor = 255 if dtype is bool else 1
    np.testing.assert_array_equal(batch.x.reshape(shape), x.astype(np.float32) * factor)
    np.testing.assert_array_equal(data.load(x, "test").x, batch.x[9::10])
    np.testing.assert_array_equal(data.load(jnp.asarray(x), "train[:5]").x, batch.x[:5])


def test_a_batch_keeps_its_companions():
    batch = Batch(GREY, c={"a": jnp.ones((25, 2))}, y=np.arange(25)[:, None], weight=np.ones(25))
    test = data.load(batch, "test")
    assert test.x.shape == (2, 4, 3, 1) and test.y.tolist() == [9, 19] and test.y.dtype == np.int32
    assert test.c["a"].shape == (2, 2) and test.weight.shape == (2,)


def test_files(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    np.savez(tmp_path / "one.npz", Images=GREY, Labels=np.arange(25))
    np.savez(tmp_path / "any.npz", faces=GREY)
    np.savez(tmp_path / "split.npz", x_train=GREY, y_train=np.arange(25), test=GREY[:3])
    np.savez(tmp_path / "keras.npz", train_images=GREY, train_labels=np.arange(25))
    np.testing.assert_array_equal(data.load(tmp_path / "a.npy", "test").x[..., 0], GREY[9::10])
    assert data.load(str(tmp_path / "one.npz"), "test").y.tolist() == [9, 19]
    assert data.load(tmp_path / "any.npz").x.shape == (23, 4, 3, 1)
    assert data.load(tmp_path / "split.npz").y.tolist() == list(range(25))
    assert data.load(tmp_path / "split.npz", "test").x.shape == (3, 4, 3, 1)
    assert data.load(tmp_path / "split.npz", "test").y == ()
    assert data.load(tmp_path / "keras.npz", "train[20%:60%]").y.tolist() == list(range(5, 15))
    with pytest.raises(ValueError, match=r"'valid', expected \['train', 'test'\]"):
        data.load(tmp_path / "split.npz", "valid")


@pytest.mark.parametrize(
    ("split", "index"),
    [
        ("all[:7]", slice(7)),
        ("all[-3:]", slice(-3, None)),
        ("all[10%:20%]", slice(2, 5)),
        ("all[20%:]", slice(5, None)),
        ("all[:]", slice(None)),
        ("all[3:25]", slice(3, 25)),
    ],
)
def test_slices(split, index):
    np.testing.assert_array_equal(data.load(GREY, split).x[..., 0], GREY[index])


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("mnisst", "train", "perhaps 'mnist'"),
        ("cifar10", "train", "perhaps 'tfds:cifar10'"),
        ("tfds:cifar1000", "train", "perhaps cifar100"),
        (None, "train", "None, expected a name, a path"),
        (GREY, "valid", "expected train, test or all"),
        (GREY, "train[5]", "a name and at most one slice"),
        (GREY, "train[:26]", "positions up to 23"),
        (GREY, "train[:101%]", "positions up to 23"),
        (GREY, "train[5:5]", "of 23 examples, expected at least one"),
        (GREY[:5], "test", 'pass split="all"'),
        (GREY.astype(np.int64), "train", r"uint8\) for grey levels.*counts.*astype\(np\.float32\)"),
        (GREY.astype(np.int64) - 1, "train", r"np\.float32"),
        (GREY.astype(complex), "train", r"complex128 .*np\.stack\(\[x\.real, x\.imag\]"),
        (GREY.astype(object), "train", r"object .*np\.array\(x\.tolist\(\), np\.float32\)"),
        (GREY.astype(str), "train", "<U3 .*pass numbers"),
        (np.ma.masked_equal(GREY, 9), "train", r"2 masked values, .*filled\(value\)"),
        (np.zeros(9, [("a", "f4"), ("b", "f4")]), "train", r"fields \('a', 'b'\).*to_unstructured"),
        (np.zeros((9, 2), [("a", "f4")]), "train", r"fields \('a',\)"),
        (np.zeros(()), "train", r"shape \(\), .*pass some examples"),
        (np.zeros(7), "train", r"n numbers, one behind: x\[:, None\]"),
        (GREY % 2, "train", r"x\.astype\(bool\)"),
        (GREY[0, 0], "train", r"shape \(3,\)"),
        (GREY[None, None], "train", r"\(1, 1, 25, 4, 3\)"),
        (GREY[:0], "train", r"\(0, 4, 3\)"),
        (np.where(GREY == 7, np.nan, GREY), "train", r"2 values .* first at \[0, 2, 1\]"),
        (np.full((9, 2), 1e300), "train", r"18 values beyond float32 \(1e\+300\).*scale them"),
        (Batch(GREY, y=np.arange(24)), "train", r"\[\(24,\), \(25,\)\]"),
        (Batch(GREY, y=np.zeros((25, 10), int)), "train", "argmax"),
        (Batch(GREY, y=np.arange(25) / 2), "train", r"labels: got float64 .*\.astype\(int\)"),
        (Batch(GREY, y=np.array(["a"] * 25)), "train", "return_inverse"),
        (Batch(GREY, y=np.arange(25) + 2**31 - 20), "train", "2147483648 at index 20, expected"),
        (
            Batch(GREY, y=np.arange(25, dtype=np.uint64) << 60),
            "train",
            "at index 1, expected class",
        ),
        (Batch(GREY, y=np.arange(25) - 3), "train", "labels: got -3 at index 0"),
        (Batch(GREY, y=np.ma.masked_equal(np.arange(25), 2)), "train", "labels: got 1 masked"),
        (Batch(GREY, c=np.ma.masked_less(np.ones((25, 2)), 2)), "train", "c: got 50 masked values"),
        (Batch(GREY, weight=np.ones(3)), "train", "weights of the 25 examples"),
    ],
)
def test_errors_teach(source, split, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        data.load(source, split)
    assert str(caught.value).startswith("load: ") and "got" in str(caught.value)


def test_a_mask_is_refused_wherever_arrays_enter():
    rows = np.ma.masked_greater(GREY.reshape(25, 12) / 50, 3)
    for enter in (
        lambda: as_batch(rows),
        lambda: as_batch(Batch(rows.data, c={"a": rows})),
        lambda: data.sources.in_memory(Batch(rows)),
        lambda: data.stream(rows, key=jax.random.key(0), batch_size=5),
        lambda: conditional.one_hot(np.ma.masked_equal(np.arange(3), 1), 3),
    ):
        with pytest.raises(ValueError, match=r"got \d+ masked values, .*array\.filled\(value\)"):
            enter()


def test_what_has_one_meaning_is_taken():
    """A mask that hides nothing, bytes in the other order, columns, labels that are unknown."""
    x = np.asfortranarray(GREY.reshape(25, 12) / 7)
    y = np.where(np.arange(25) < 3, -1, np.arange(25))
    weight = np.arange(25).astype(">f8")
    batch = Batch(np.ma.masked_array(x.astype(">f8")), y=y.astype(">i8"), weight=weight)
    found = data.load(batch, "all")
    np.testing.assert_array_equal(found.x, x.astype(np.float32))
    assert found.y.tolist() == y.tolist() and found.weight.dtype == np.dtype("=f8")


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_that_come_first_are_told(channels):
    x = np.arange(25 * channels * 42).reshape(25, channels, 6, 7) % 255
    with pytest.warns(UserWarning, match=r"load: source: .*np\.moveaxis\(x, 1, -1\)"):
        data.load(x.astype(np.uint8))
    for right in (np.moveaxis(x, 1, -1), x[:, :, :, :1], x[:, :, :, :3], x.repeat(2, axis=1)):
        data.load(right.astype(np.uint8))  # without a warning


def test_arrays_that_are_not_read_or_could_be_either(tmp_path):
    np.savez(tmp_path / "more.npz", x=GREY, y=np.arange(25), weights=np.ones(25), z=np.ones(3))
    np.savez(tmp_path / "split.npz", x_train=GREY, x_test=GREY, y_test=np.arange(25), ids=GREY)
    for name, said in (("more", "weights, z"), ("split", "ids")):
        for read in (data.load, data.sources.open):
            with pytest.warns(UserWarning, match=rf"{name}\.npz': the arrays {said} are not read"):
                read(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "either.npz", x=GREY, images=GREY[:, ::-1])
    np.savez(tmp_path / "labels.npz", x=GREY, y=np.arange(25), targets=np.arange(25))
    for name, said in (("either", "x and images"), ("labels", "y and targets")):
        for read in (data.load, data.sources.open):
            with pytest.raises(ValueError, match=rf"{name}\.npz': got {said}, expected one of"):
                read(tmp_path / f"{name}.npz")


def test_headers_that_claim_more_than_there_is(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    np.savez(tmp_path / "a.npz", x=GREY)
    for name in ("a.npy", "a.npz"):
        raw = (
            (tmp_path / name)
            .read_bytes()
            .replace(b"(25, 4, 3), }            ", b"(%d, 4, 3), }" % 10**13)
        )
        (tmp_path / f"huge-{name}").write_bytes(raw)
        (tmp_path / f"more-{name}").write_bytes(raw.replace(b"%d" % 10**13, b"24            "))
        for damaged in ("huge", "more"):
            for read in (data.load, data.sources.open):
                with pytest.raises(
                    ValueError, match=rf"{damaged}-{name}': got \(.*plain numpy arr"
                ):
                    read(tmp_path / f"{damaged}-{name}")


def test_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz.*correct the path"):
        data.load(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError, match=r"'none\.parquet': got no such file or folder"):
        data.load("none.parquet")  # a bare name that ends like a file is no set of TFDS
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "two.npz", a=GREY, b=GREY)
    np.savez(tmp_path / "objects.npz", x=np.array([{}]))
    (tmp_path / "table.csv").write_text("1,2")
    for name in ("pickled.npy", "text.npz", "empty.npy", "objects.npz"):
        with pytest.raises(ValueError, match=r"plain numpy arrays; write it anew"):
            data.load(tmp_path / name)
    with pytest.raises(ValueError, match="one array of data, or named splits"):
        data.load(tmp_path / "two.npz")
    with pytest.raises(ValueError, match=r"another kind of file, .* path to \.npz or \.npy"):
        data.load(tmp_path / "table.csv")
    with pytest.raises(ValueError, match=r"got a folder, .*; read it by vaejax\.sources\.open"):
        data.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(FileNotFoundError, match=r"pipe\.npz': got no regular file"):
        data.load(tmp_path / "pipe.npz")


def test_unprepared_set_names_the_one_command(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist", data_dir=tmp_path / "nothing")
    for needed in (
        "pip install tensorflow importlib_resources",
        'pip install -e ".[prepare]"',
        "python -m vaejax.data.prepare mnist --data_dir",
        "TFDS_DATA_DIR",
    ):
        assert needed in str(caught.value)
    assert not (tmp_path / "nothing").exists()


def test_prepare_says_what_is_missing(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="perhaps"):
        prepare.prepare("mnisst")
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"tensorflow importlib_resources is not.*\[prepare\]"):
        prepare.prepare("mnist", tmp_path)
    monkeypatch.setattr(sys, "argv", ["vaejax.data", "mnist", "--data_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        prepare._main()
    assert 'pip install -e ".[prepare]"' in capsys.readouterr().err


def test_images_of_differing_sizes():
    import tensorflow_datasets as tfds

    class Rows(list):
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    rows = Rows({"photo": GREY[i, ..., None], "label": i} for i in range(3))
    features = {"photo": tfds.features.Image(), "label": tfds.features.ClassLabel()}
    info = SimpleNamespace(features=features, file_format=SimpleNamespace(value="array_record"))
    builder = SimpleNamespace(info=info, as_data_source=lambda split: rows)
    assert _cache._decode(builder, "set", "train").y.tolist() == [0, 1, 2]
    rows.append({"photo": GREY[0, :2, :, None], "label": 0})
    with pytest.raises(ValueError, match=r"sizes \[\(2, 3, 1\), \(4, 3, 1\)\], expected one size"):
        _cache._decode(builder, "set", "train")
    info.file_format.value = "tfrecord"
    with pytest.raises(ValueError, match="stored as tfrecord"):
        _cache._decode(builder, "set", "train")


def over_keys(transform, x, n=2000):
    keys = jax.random.split(jax.random.key(1), n)
    return jax.jit(jax.vmap(transform, in_axes=(0, None)))(keys, x)


@pytest.mark.parametrize("transform", [data.binarize, data.dequantize])
def test_what_is_drawn_does_not_depend_on_the_axes(transform, key):
    x = np.arange(70, dtype=np.uint8).reshape(7, 5, 2) * 3
    drawn = jax.jit(transform)
    flat = drawn(jax.random.clone(key), x.ravel())
    np.testing.assert_array_equal(drawn(key, x), flat.reshape(x.shape))


@pytest.mark.parametrize("levels", [True, False])
def test_binarize_has_the_right_mean_and_exact_ends(levels):
    x = np.array([0, 64, 191, 255], np.uint8)
    draws = over_keys(data.binarize, x if levels else x / np.float32(255), 200_000)
    assert draws.dtype == jnp.float32 and set(np.unique(draws)) == {0.0, 1.0}
    mean = draws.mean(0)
    assert mean[0] == 0 and mean[3] == 1
    np.testing.assert_allclose(mean, x / 255, atol=0.005)
    assert not jnp.array_equal(draws[0::2], draws[1::2])


@pytest.fixture(scope="module")
def dequantized():
    """2000 draws of each of the 256 levels, `[2000, 256]`."""
    return over_keys(data.dequantize, np.arange(256, dtype=np.uint8))


def test_dequantize_keeps_every_level_and_is_uniform_in_it(dequantized):
    x = np.arange(256)
    assert dequantized.dtype == jnp.float32 and dequantized.min() >= 0 and dequantized.max() < 1
    draws = np.asarray(dequantized, np.float64)
    np.testing.assert_array_equal(np.floor(draws * 256), np.broadcast_to(x, draws.shape))
    u = draws * 256 - x
    np.testing.assert_allclose([u.mean(), u.var()], [1 / 2, 1 / 12], atol=2e-3)


def test_a_mean_density_per_unit_bounds_the_probability_of_a_level(dequantized):
    """Of p(x) = 2 x, by which level k has the probability ((k + 1)^2 - k^2) / 256^2."""
    levels = np.arange(1, 256)
    log_p = np.log(2 * np.asarray(dequantized, np.float64)[:, 1:]) - np.log(256)
    error = log_p.std(axis=0) / np.sqrt(len(log_p))
    gap = np.log((2 * levels + 1) / 256**2) - log_p.mean(axis=0)
    assert (gap > -5 * error).all()
    assert (gap < 0.02 + 5 * error).all()  # log 3 - log 2 - E[log(1 + u)] = 0.0192 at level 1


def test_scale(key):
    x = np.arange(256, dtype=np.uint8)
    scaled = jax.jit(data.scale)(key, x)
    np.testing.assert_allclose(scaled, x / 255, rtol=2e-7)
    assert scaled.dtype == jnp.float32 and scaled[255] == 1 and scaled[0] == 0
    np.testing.assert_array_equal(data.scale(key, scaled), scaled)


def test_transforms_refuse_other_types(key):
    for transform in (data.scale, data.binarize, data.dequantize):
        with pytest.raises(TypeError, match=rf"{transform.__name__}: x: got int32"):
            jax.jit(transform)(key, jnp.zeros(3, jnp.int32))
    with pytest.raises(TypeError, match="leave the transform out"):
        jax.jit(data.dequantize)(key, jnp.zeros(3))
