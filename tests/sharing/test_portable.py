"""Models as files: what a program computes is what the model computes, without the model's code."""

import os
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vaejax import autoencoder, distributions, generate, heads, networks, portable, weights
from vaejax.batch import keys_of

STANDARD = distributions.Normal(np.zeros(2, np.float32), np.ones(2, np.float32))
SIZES = (1, 5)  # of batches; each holds the first examples of the largest


def conditional():
    return autoencoder(
        nn.Sequential([networks.MLP(()), heads.FullNormal(2)]),
        nn.Sequential([networks.MLP(()), heads.Bernoulli((3, 2))]),
        STANDARD,
    )


def images(size, shape):
    return np.random.default_rng(0).uniform(size=(max(SIZES), *shape)).astype(np.float32)[:size]


def exported(tmp_path, model, *inputs, **options):
    params = model.init(jax.random.key(1), *inputs)
    x, c = (*inputs, ())[:2]
    portable.export(tmp_path / "model.safetensors", model, params, x=x, c=c, **options)
    return params, tmp_path / "model.safetensors"


def close(got, expected):
    chex.assert_trees_all_close(got, expected, rtol=0, atol=1e-6)


def test_a_conditional_model_computes_the_same_from_its_file(tmp_path):
    model = conditional()
    inputs = jnp.zeros((3, 2)), jnp.zeros(2)
    options = {"platforms": ("cpu",), "about": {"experiment": "cvae"}}
    params, path = exported(tmp_path, model, *inputs, **options)
    loaded = portable.load(path)
    assert loaded.about == {"experiment": "cvae"}
    words = np.asarray(jax.random.key_data(keys_of(jax.random.key(7), np.arange(max(SIZES)))))

    @jax.jit
    @jax.vmap
    def expected(x, c, words):
        encode_key, decode_key, key = map(jax.random.wrap_key_data, [words] * 3)
        q = model.encode(params, x, c)
        px = model.decode(params, q.mean, c)
        stddev = jnp.sqrt(jnp.diag(q.scale_tril @ q.scale_tril.T))
        encoded = {"mean": q.mean, "stddev": stddev, "sample": q.sample(encode_key)}
        decoded = {"mean": px.mean, "sample": px.sample(decode_key)}
        return encoded, decoded, generate(model, params, key, c)._asdict()

    whole = expected(images(max(SIZES), (3, 2)), images(max(SIZES), (2,)), words)
    for size in SIZES:
        x, c = images(size, (3, 2)), images(size, (2,))
        encoded, decoded, drawn = jax.tree.map(lambda a, n=size: np.asarray(a)[:n], whole)
        latent = loaded.encode(x, c, seed=7)
        close(latent, encoded)
        close(loaded.decode(latent["mean"], c, seed=7), decoded)
        close(loaded.sample(size, c, seed=words[:size]), drawn)


WITHOUT_VAEJAX = """
import sys
import jax.export, numpy as np, safetensors.numpy
arrays = safetensors.numpy.load_file(sys.argv[1])
params = {n.removeprefix("params/"): a for n, a in arrays.items() if n.startswith("params/")}
def run(name, *inputs):
    program = jax.export.deserialize(bytearray(arrays["programs/" + name].tobytes()))
    words = np.zeros((len(inputs[0]), 2), np.uint32)
    return {k: np.asarray(v) for k, v in program.call(params, words, *inputs, ()).items()}
found = {}
for x in sys.argv[2:]:
    q = run("encode", np.load(x))
    np.savez(x + ".npz", q_mean=q["mean"], stddev=q["stddev"], **run("decode", q["mean"]))
assert not [m for m in sys.modules if m.split(".")[0] in ("vaejax", "flax")]
"""


def test_a_convolutional_model_needs_no_code_but_jax(tmp_path):
    """Its convolutions differ by device, and all devices' are in the one file."""
    shape = (5, 6, 1)
    model = autoencoder(
        nn.Sequential([networks.ConvEncoder((2,)), heads.Normal(2)]),
        nn.Sequential([networks.ConvDecoder(shape, (2, 2)), heads.Bernoulli(shape)]),
        STANDARD,
    )
    params, path = exported(tmp_path, model, np.zeros(shape, np.float32))
    assert not re.search(rb"\.py\b", path.read_bytes())  # nothing of where the sources lie
    files = [tmp_path / f"{size}.npy" for size in SIZES]
    for file, size in zip(files, SIZES, strict=True):
        np.save(file, images(size, shape))
    command = [sys.executable, "-c", WITHOUT_VAEJAX, str(path), *map(str, files)]
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})

    @jax.jit
    @jax.vmap
    def expected(x):
        q = model.encode(params, x)
        return q.loc, q.scale, model.decode(params, q.loc).mean

    whole = expected(images(max(SIZES), shape))
    for file, size in zip(files, SIZES, strict=True):
        found = np.load(f"{file}.npz")
        got = found["q_mean"], found["stddev"], found["mean"]
        close(got, tuple(np.asarray(one)[:size] for one in whole))
        assert set(np.unique(found["sample"])) <= {0.0, 1.0}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A deterministic autoencoder, for batches of two on a CPU."""
    model = autoencoder(heads.Code(2), heads.FixedNormal((3,), 1.0))
    options = {"batch": 2, "platforms": ("cpu",)}
    return exported(tmp_path_factory.mktemp("plain"), model, jnp.zeros(3), **options)[1]


def test_without_a_prior_there_is_nothing_to_sample(plain):
    loaded = portable.load(plain)
    assert loaded.sample is None
    assert set(loaded.encode(np.zeros((2, 3), np.float32))) == {"mean", "sample"}


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((4, 3), np.float32), {}, r"float32\[4, 3\], \(\)\), expected \(float32\[2, 3\]"),
        (np.zeros((2, 3), np.uint8), {}, r"encode: inputs: got \(uint8\[2, 3\]"),
        (np.zeros((2, 3), np.float32), {"c": np.zeros(2)}, "encode: inputs: .*JAX says"),
        (np.zeros((2, 3), np.float32), {"seed": [[1, 2]]}, r"seed: got shape \(1, 2\)"),
        (np.float32(0), {}, "leading axis"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(plain, x, options, message):
    with pytest.raises(ValueError, match=message):
        portable.load(plain).encode(x, **options)


def test_a_function_that_cannot_be_exported_is_an_error_that_says_why(tmp_path):
    model = autoencoder(heads.Code(2), heads.FixedNormal((3,), 1.0))

    def encode(params, x, c=(), *, key=None):
        x = jax.pure_callback(np.asarray, x, x, vmap_method="sequential")
        return model.encode(params, x, c)

    with pytest.raises(ValueError, match="portable.export: encode: .*callback.*give batch=N"):
        exported(tmp_path, model._replace(encode=encode), jnp.zeros(3), platforms=("cpu",))
    assert not list(tmp_path.iterdir())


def test_files_of_other_contents_are_refused(plain, tmp_path):
    path = tmp_path / "other.safetensors"
    weights.save(path, {"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match="parameters are for weights.load"):
        portable.load(path)
    damaged = bytearray(plain.read_bytes())
    damaged[-100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="do not match their checksum"):
        portable.load(path)
    programs = {"programs": {"encode": jnp.arange(100, dtype=jnp.uint8)}}
    weights.save(path, programs, about={"portable": 1, "jax": "0.0.1"})
    with pytest.raises(ValueError, match="encode in .* does not read"):
        portable.load(path)
    weights.save(path, {"w": jnp.zeros(2)}, about={"portable": 1})
    with pytest.raises(ValueError, match=r"no \['decode', 'encode'\]"):
        portable.load(path)


def test_a_program_that_calls_python_is_refused(plain, monkeypatch):
    """JAX writes none such; a file that has one is made to mislead."""

    def call(x):
        return jax.pure_callback(lambda x: x, x, x)

    class Program:
        def mlir_module(self):
            return str(jax.jit(call).lower(jnp.zeros(2)).compiler_ir())

    monkeypatch.setattr(jax.export, "deserialize", lambda _: Program())
    with pytest.raises(ValueError, match="got a call of Python, expected none"):
        portable.load(plain)
