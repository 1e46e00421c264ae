"""Parameters in a file: what comes back, what is refused, and that nothing damaged gets through."""

import errno
import hashlib
import json
import os
import re
import struct
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import vaejax
from vaejax import weights


class Pair(NamedTuple):
    first: Any
    rest: Any = ()


def network(seed, width=3):
    draw = np.random.default_rng(seed).normal
    shapes = {"kernel": (4, width), "bias": (width,), "other": (width,)}
    layer = {name: jnp.asarray(draw(size=s), jnp.float32) for name, s in shapes.items()}
    return {"encoder": {"params": {"layers_0": layer}}, "prior": {}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def by_hand(outer, data, description=None, *, sha256=None):
    """A file as format 1 is defined, from its parts; `outer` may be a text."""
    if description is not None:
        digits = sha256 or hashlib.sha256(json.dumps(description).encode()).hexdigest()
        signed = json.dumps({**description, "sha256": digits})
        outer = {"__metadata__": {"vaejax": signed}, **outer}
    text = (outer if isinstance(outer, str) else json.dumps(outer)).encode()
    return struct.pack("<Q", len(text)) + text + data


OUTER = {
    "bias": {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]},
    "kernel": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
}
DATA = struct.pack("<2f", 0.5, -2.0) + b"\x80\x3f\x00\x40"  # 0.5, -2; and 1, 2 in bfloat16
DESCRIPTION = {
    "format": 1,
    "vaejax": "0.0.1",
    "about": {"experiment": "by hand"},
    "nodes": {"": "dict", "prior": "dict"},
    "tensors": {"bias": "bfloat16[2]", "kernel": "float32[1, 2]"},
    "data": hashlib.sha256(DATA[8:] + DATA[:8]).hexdigest(),
}
LIKE = {"bias": jnp.zeros(2, jnp.bfloat16), "kernel": jnp.zeros((1, 2)), "prior": {}}


def test_what_was_saved_comes_back_bit_for_bit(path, x64):
    kinds = "bfloat16 float16 float32 float64 int8 int32 int64 uint8 uint16 uint32 uint64 bool"
    params = {
        "kinds": {kind: jnp.asarray([[0, 1], [3, 1]], kind) for kind in kinds.split()},
        "strange": jnp.asarray([jnp.nan, -jnp.inf, -0.0, 1e-45], jnp.float32),
        "sizes": [jnp.ones(()), jnp.ones((0, 2)), np.ones((3, 2))[:, 1], np.asarray(3.0)],
        "prior": {},
        "absent": ((), None, [], {"deep": {"deeper": ()}}),
        "pair": Pair(jnp.arange(3), Pair({})),
    }
    weights.save(path, params)
    equal(weights.load(path, like=params), params)
    once = path.read_bytes()
    weights.save(path, params)
    assert path.read_bytes() == once
    weights.save(path, {"n": np.asarray([1, 2], ">i4")})
    np.testing.assert_array_equal(weights.load(path, like={"n": np.zeros(2, "<i4")})["n"], [1, 2])


def test_any_safetensors_reader_opens_it(path):
    params = network(0)
    weights.save(path, params)
    found = safetensors.numpy.load_file(path)
    layer = params["encoder"]["params"]["layers_0"]
    chex.assert_trees_all_equal(
        found, {f"encoder/params/layers_0/{k}": np.asarray(a) for k, a in layer.items()}
    )
    chex.assert_trees_all_equal(weights.tensors(path), found)


def test_about_tells_what_was_noted(path):
    note = {"experiment": "vae", "config": {"widths": (400, 200), "beta": 1.0, "name": 'é"'}}
    weights.save(path, network(0), about=note)
    assert weights.about(path) == {
        "format": 1,
        "vaejax": vaejax.__version__,
        "about": {**note, "config": {**note["config"], "widths": [400, 200]}},
        "tensors": {
            "encoder/params/layers_0/bias": "float32[3]",
            "encoder/params/layers_0/kernel": "float32[4, 3]",
            "encoder/params/layers_0/other": "float32[3]",
        },
    }


def test_a_file_of_format_1_loads(path):
    path.write_bytes(by_hand(OUTER, DATA, DESCRIPTION))
    expected = {
        "bias": jnp.asarray([1, 2], jnp.bfloat16),
        "kernel": jnp.asarray([[0.5, -2.0]]),
        "prior": {},
    }
    equal(weights.load(path, like=LIKE), expected)
    assert weights.about(path)["about"] == {"experiment": "by hand"}


def test_arrays_go_where_those_of_like_are(path):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = network(0)
    weights.save(path, params)
    loaded = weights.load(path, like=jax.device_put(params, sharding))
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(loaded))
    assert not any(leaf.committed for leaf in jax.tree.leaves(weights.load(path, like=params)))
    equal(weights.load(path, like=jax.eval_shape(lambda: params)), params)


def test_another_models_parameters_are_refused_with_what_differs(path):
    weights.save(path, network(0))
    here = network(0, width=5)
    here["encoder"]["params"]["layers_0"].pop("other")
    here["encoder"]["params"]["head"] = {"bias": jnp.zeros(1, jnp.bfloat16)}
    here["prior"] = ()
    with pytest.raises(ValueError, match="another model") as error:
        weights.load(path, like=here)
    assert str(error.value).splitlines()[1:-1] == [
        "  encoder/params/head/bias: file absent, here bfloat16[1]",
        "  encoder/params/layers_0/bias: file float32[3], here float32[5]",
        "  encoder/params/layers_0/kernel: file float32[4, 3], here float32[4, 5]",
        "  encoder/params/head: file absent, here dict",
        "  prior: file dict, here tuple",
        "  encoder/params/layers_0/other: file float32[3], here absent",
    ]
    with pytest.raises(ValueError, match=r"\.\.\. 15 more") as error:
        weights.load(path, like=[jnp.zeros(1)] * 14)
    assert len(str(error.value).splitlines()) == 10


@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        ({"w": 1.0}, TypeError, "got w float, expected arrays"),
        ({"w": np.asarray(["a"])}, TypeError, "got w <U1"),
        ({"w": object()}, TypeError, "got w object"),
        ({"w": np.zeros(2, complex)}, TypeError, "complex128"),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, ValueError, "two parts named 'a/b'"),
        ({"a": {"b": {}}, "a/b": np.ones(1)}, ValueError, "two parts named 'a/b'"),
        ({"__metadata__": np.ones(1)}, ValueError, "__metadata__"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(path, params, kind, message):
    with pytest.raises(kind, match=message):
        weights.save(path, params)
    assert not path.exists()


def test_keys_are_refused_with_the_way_to_save_them(path, key):
    with pytest.raises(TypeError, match=r"key<fry>.*jax.random.key_data"):
        weights.save(path, {"key": key})


@pytest.mark.parametrize("about", [{"at": os}, {"nan": float("nan")}, {1: 2, "1": 3}, {(1, 2): 3}])
def test_a_note_that_json_cannot_hold_is_refused(path, about):
    with pytest.raises(ValueError, match="weights.save: about: .* expected JSON values"):
        weights.save(path, {}, about=about)


def test_paths_that_are_no_file_are_refused(path):
    for function in (weights.save, lambda p, like: weights.load(p, like=like)):
        with pytest.raises(IsADirectoryError, match="expected a file"):
            function(path.parent, {})
    with pytest.raises(FileNotFoundError, match="which is not there"):
        weights.load(path, like={})
    with pytest.raises(FileNotFoundError, match=r"absent/x was not written.*No such file"):
        weights.save(path.parent / "absent" / "x", {})


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(path, monkeypatch, step):
    weights.save(path, network(0))
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match=r"was not written.*No space left") as error:
        weights.save(path, network(1))
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def resized(entry, **changes):
    return {**OUTER, entry: {**OUTER[entry], **changes}}


HUGE = {**DESCRIPTION["tensors"], "kernel": f"float32[{2**40}, {2**40}]"}
HANDMADE = {
    "nothing": (b"", "not a safetensors file"),
    "text": (b"PK\x03\x04 no tensors here", "not a safetensors file"),
    "a huge header": (struct.pack("<Q", 2**63) + b"{}", "not a safetensors file"),
    "a header past the end": (struct.pack("<Q", 2**20) + b"{}", "truncated"),
    "an array": (by_hand("[]", b""), "not a safetensors file"),
    "a deep header": (by_hand('{"a":' + "[" * 100_000, b""), "damaged: its header"),
    "numbers for entries": (by_hand('{"a": 1}', b""), "damaged: its header"),
    "a name twice": (by_hand('{"a": {}, "a": {}}', b""), "a name twice"),
    "no text": (by_hand('{"a": "\xff"}', b"").replace(b"\xc3", b"\xff"), "damaged: its header"),
    "someone else's": (by_hand(OUTER, DATA), "weights.save the result"),
    "a newer format": (
        by_hand(OUTER, DATA, {**DESCRIPTION, "format": 2}),
        "of vaejax 0.0.1.*newer",
    ),
    "no format": (by_hand(OUTER, DATA, {"data": ""}), "lacks an entry"),
    "a deep description": (
        by_hand({"__metadata__": {"vaejax": "[" * 100_000}}, b""),
        "description does not read",
    ),
    "another checksum": (by_hand(OUTER, DATA, DESCRIPTION, sha256="0" * 64), "its checksum"),
    "cut short": (by_hand(OUTER, DATA, DESCRIPTION)[:-1], r"truncated: \d+ of \d+ bytes"),
    "something behind": (by_hand(OUTER, DATA, DESCRIPTION) + b"\0", "1 bytes too many"),
    "a tensor more": (
        by_hand({**OUTER, "more": OUTER["bias"]}, DATA, DESCRIPTION),
        "not those of its description",
    ),
    "overlap": (
        by_hand(resized("bias", data_offsets=[4, 8]), DATA[:8], DESCRIPTION),
        "do not read",
    ),
    "gap": (by_hand(resized("bias", data_offsets=[10, 14]), DATA + b"..", DESCRIPTION), "not read"),
    "past the end": (by_hand(resized("bias", data_offsets=[8, 2**60]), DATA, DESCRIPTION), "trunc"),
    "backwards": (
        by_hand(resized("bias", data_offsets=[12, 8]), DATA[:8], DESCRIPTION),
        "not read",
    ),
    "larger than its bytes": (
        by_hand(resized("bias", shape=[2**40]), DATA, DESCRIPTION),
        "not read",
    ),
    "of another shape": (by_hand(resized("bias", shape=[2, 1]), DATA, DESCRIPTION), "description"),
    "of another type": (by_hand(resized("bias", dtype="F16"), DATA, DESCRIPTION), "description"),
    "claimed larger than here": (
        by_hand(OUTER, DATA, {**DESCRIPTION, "tensors": HUGE}),
        r"file float32\[1099511627776, 1099511627776\], here",
    ),
    "other bytes": (by_hand(OUTER, DATA[:-1] + b"\0", DESCRIPTION), "match their checksum"),
}


@pytest.mark.parametrize("name", HANDMADE)
def test_files_made_to_mislead_are_refused_in_words(path, name):
    data, message = HANDMADE[name]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        weights.load(path, like=LIKE)


def mutated(rng, files):
    """One of the files with one thing wrong with it."""
    data = bytearray(files[0])
    start = 8 + struct.unpack("<Q", data[:8])[0]
    match rng.integers(7):
        case 0:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        case 1:
            data = data[: rng.integers(len(data))]
        case 2:  # the header of one on the tensors of another
            data[start:] = files[rng.integers(1, len(files))][start:]
        case 3:  # two tensors in each other's place, now and then of one size
            one, other = rng.permutation(re.findall(rb"\[\d+,\d+\]", data[:start]))[:2]
            moved = data[:start].replace(one, b"?").replace(other, one).replace(b"?", other)
            data[:start] = moved
        case 4:
            data += rng.bytes(rng.integers(1, 50))
        case 5:
            first = rng.integers(len(data))
            data[first : first + 16] = bytes(len(data[first : first + 16]))
        case 6:  # many bits
            for place in rng.integers(len(data), size=20):
                data[place] ^= 1 << rng.integers(8)
    return bytes(data)


def test_no_damaged_file_gets_through(path):
    """A thousand files, each damaged in one of seven ways, give a ValueError and nothing else."""
    files = []
    for seed in range(5):
        weights.save(path, network(seed), about={"experiment": "vae"})
        files.append(path.read_bytes())
    like, told = network(0), weights.about(path)
    rng = np.random.default_rng(0)
    tried = 0
    while tried < 1000:
        damaged = mutated(rng, files)
        if damaged in files:
            continue
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="weights.load: "):
            weights.load(path, like=like)
        try:  # of the header it says what is true, or nothing
            assert weights.about(path) == told
        except ValueError as error:
            assert "weights.about: " in str(error)
        tried += 1
