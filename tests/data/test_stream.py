"""Streamed rows: each once an epoch, an order that can be entered anywhere, and errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import autoencoders, data, heads, train
from vaejax.model import autoencoder
from vaejax.types import Batch

KEY = jax.random.key(5)
ROWS = np.arange(1000, dtype=np.float32)[:, None] * np.ones(3, np.float32)
SIZES = {"batch_size": 64, "block": 50, "mixed": 4}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "rows.npy"
    np.save(path, ROWS)
    return path


def numbers(batch):
    """Which rows a batch holds, without those that fill it up."""
    kept = slice(None) if isinstance(batch.weight, tuple) else batch.weight > 0
    return batch.x[kept, 0].astype(int).tolist()


@pytest.mark.parametrize("rows", [1000, 960, 30])
def test_every_row_comes_once_an_epoch_in_batches_of_one_shape(rows):
    batches = list(data.stream(ROWS[:rows], key=KEY, epochs=2, **SIZES))
    steps = -(-rows // 64)
    assert len(batches) == 2 * steps
    assert {b.x.shape for b in batches} == {(64, 3)}
    structures = {jax.tree.structure(b) for b in batches}
    assert len(structures) == 1
    assert isinstance(batches[0].weight, tuple) == (rows % 64 == 0)
    epochs = [
        [*itertools.chain.from_iterable(map(numbers, part))]
        for part in (batches[:steps], batches[steps:])
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(rows))
    assert epochs[0] != epochs[1]
    if rows % 64:
        assert batches[steps - 1].weight.sum() == rows % 64
        assert np.isfinite(batches[steps - 1].x).all()


def check_mixed(batches):
    """Rows of one batch come from many places, in no order."""
    rows = numbers(batches[3])
    assert len({row // 50 for row in rows}) >= 3
    assert rows != sorted(rows)
    assert abs(np.corrcoef(np.arange(len(rows)), rows)[0, 1]) < 0.5


def test_neighbours_are_mixed():
    """Checked against blocks that are read in a random order and given on as they are."""
    check_mixed(list(data.stream(ROWS, key=KEY, **SIZES)))
    mistaken = [Batch(part) for part in np.split(ROWS[:960], 15)]
    with pytest.raises(AssertionError):
        check_mixed(mistaken)
    everything = data.stream(ROWS, key=KEY, batch_size=64, block=1, mixed=1000)
    positions = [*itertools.chain.from_iterable(map(numbers, everything))]
    assert abs(np.corrcoef(np.arange(1000), positions)[0, 1]) < 0.15


def check_blocks_in_another_order(epochs):
    """Of each epoch the blocks that its batches are; every block once, in an order of its own."""
    for blocks in epochs:
        assert sorted(blocks) == list(range(20))
    assert len({tuple(blocks) for blocks in epochs}) == len(epochs)


def test_each_epoch_reads_the_blocks_in_another_order():
    """Checked against one order for all epochs, of which only the rows within blocks differ."""
    batches = data.stream(ROWS, key=KEY, batch_size=50, block=50, mixed=1, epochs=3)
    blocks = [{row // 50 for row in numbers(batch)} for batch in batches]
    assert all(len(block) == 1 for block in blocks)
    order = [block.pop() for block in blocks]
    check_blocks_in_another_order([order[:20], order[20:40], order[40:]])
    with pytest.raises(AssertionError):
        check_blocks_in_another_order([order[:20], order[:20], order[40:]])


def test_the_order_is_that_of_the_key_and_the_step_alone(path):
    whole = list(data.stream(path, key=KEY, epochs=3, **SIZES))
    for start in (1, 3, 15, 16, 17, 40, 47):
        rest = list(data.stream(ROWS, key=KEY, epochs=3, start=start, **SIZES))
        assert len(rest) == len(whole) - start
        for one, other in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(one.x, other.x)
            np.testing.assert_array_equal(one.weight, other.weight)
    assert list(data.stream(path, key=KEY, epochs=3, start=48, **SIZES)) == []
    another = next(data.stream(path, key=jax.random.key(6), **SIZES))
    assert numbers(another) != numbers(whole[0])
    endless = data.stream(path, key=KEY, epochs=None, **SIZES)
    np.testing.assert_array_equal(list(itertools.islice(endless, 48))[47].x, whole[47].x)


def test_what_is_left_out_is_not_read():
    class Counting:
        shape, dtype, ndim = ROWS.shape, ROWS.dtype, 2

        def __init__(self):
            self.read = 0

        def __len__(self):
            return len(ROWS)

        def __getitem__(self, rows):
            self.read += len(ROWS[rows])
            return ROWS[rows]

    source = Counting()
    next(data.stream(source, key=KEY, start=13, **SIZES))
    assert source.read == 200  # the last of five groups; 13 x 64 rows lie before


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_floats_become_float32_and_levels_stay(dtype, tmp_path):
    stored = (ROWS % 200).astype(dtype)
    np.save(tmp_path / "rows.npy", stored)
    (batch,) = data.stream(tmp_path / "rows.npy", key=KEY, batch_size=1000)
    assert batch.x.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    assert not isinstance(batch.x, np.memmap)
    np.testing.assert_array_equal(np.sort(batch.x[:, 0]), np.sort(stored[:, 0]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_file_with_nan_is_refused_by_row_and_name(value, tmp_path):
    rows = ROWS.copy()
    rows[437, 1] = value
    np.save(tmp_path / "bad.npy", rows)
    seen = []
    message = r"bad\.npy': got NaN or infinity in row 437 \(1 such .*, expected finite numbers"
    with pytest.raises(ValueError, match=message):
        seen.extend(data.stream(tmp_path / "bad.npy", key=KEY, **SIZES))
    good = list(data.stream(ROWS, key=KEY, **SIZES))
    assert 437 in numbers(good[len(seen)])  # the batches before are given


def test_float64_that_float32_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="infinity in row 7 "):
        list(data.stream(np.eye(20)[:, [7]] * 1e300, key=KEY, batch_size=20))


def test_other_sources_and_counts_are_refused(tmp_path):
    np.savez(tmp_path / "many.npz", x=ROWS)
    (tmp_path / "text.npy").write_text("not an array")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "empty.npy", ROWS[:0])
    for source, kind, message in (
        (tmp_path / "many.npz", ValueError, "an archive of arrays.*expected plain numpy arrays"),
        (tmp_path / "text.npy", ValueError, "expected plain numpy arrays; write it anew"),
        (tmp_path / "words.npy", ValueError, "got <U1, expected floats or uint8"),
        (tmp_path / "empty.npy", ValueError, r"shape \(0, 3\), expected an array \[n, ...\]"),
        (tmp_path / "none.npy", FileNotFoundError, "got no such file"),
        ([1.0, 2.0], ValueError, "got list of shape None"),
    ):
        with pytest.raises(kind, match=message):
            data.stream(source, key=KEY, batch_size=4)
    for name in ("batch_size", "epochs", "block", "mixed"):
        with pytest.raises(ValueError, match=f"stream: expected {name} >= 1, got 0"):
            data.stream(ROWS, key=KEY, **(SIZES | {name: 0}))
    for name in ("batch_size", "epochs", "block", "mixed", "start"):
        with pytest.raises(TypeError, match=rf"stream: {name}: got 4\.0, expected a whole number"):
            data.stream(ROWS, key=KEY, **(SIZES | {name: 4.0}))
    with pytest.raises(ValueError, match="stream: start: got -1"):
        data.stream(ROWS, key=KEY, start=-1, **SIZES)


def test_a_step_takes_its_batches_as_they_come(path):
    """One program for all batches, the last included; a stopped run goes on bit for bit."""
    model = autoencoder(heads.Code(2), heads.FixedNormal(3, 1.0))
    init, step = train.make_step(
        autoencoders.reconstruction(model), optax.adam(1e-3), transform=lambda key, x: x / 1000
    )
    step = jax.jit(step)
    begin = init(jax.random.key(0), model.init(jax.random.key(1), jnp.zeros(3)))

    def run(state, **options):
        for batch in data.stream(path, key=KEY, epochs=2, **SIZES, **options):
            state, metrics = step(state, batch)
            assert jnp.isfinite(metrics["loss"])
        return state

    whole = run(begin)
    assert step._cache_size() == 1
    assert whole.step == 32
    half = begin
    for batch in itertools.islice(data.stream(path, key=KEY, **SIZES), 9):
        half, _ = step(half, batch)
    for a, b in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(run(half, start=9).params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
