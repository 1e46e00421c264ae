"""A model in one file that runs without its code: compiled functions of plain arrays.

`export(path, model, params, x=x)` writes what encode, decode and sample compute, as StableHLO
programs for several kinds of device, beside the parameters. `load(path)` gives functions of
batches. The file is one of `vaejax.weights`, with its checksum. JAX alone can run it too:

    arrays = safetensors.numpy.load_file(path)
    params = {n.removeprefix("params/"): a for n, a in arrays.items() if n.startswith("params/")}
    program = jax.export.deserialize(bytearray(arrays["programs/encode"].tobytes()))
    program.call(params, words, x, ())  # words: uint32 [batch, 2], random bits for each example

A program is not Python and cannot call Python. But it is run, and may take as much time and memory
as it likes. Load programs only from those whom you trust; `weights` alone are safe from anyone.
JAX keeps such programs running for six months of releases after the one that wrote them.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from vaejax.arrays import examples
from vaejax.batch import keys_of, size_of
from vaejax.distributions import Distribution, MultivariateNormal, Normal
from vaejax.errors import at_least_one, check_parameters, wrong
from vaejax.model import Model, check_model, generate
from vaejax.sharing import weights
from vaejax.types import Array, Params, describe


class Portable(NamedTuple):
    """A model as functions of batches of plain arrays, without its code.

    Each function returns a dict of arrays with a leading batch axis, without what has no closed
    form. Its argument `seed` is an integer, of which each example makes its own key, or the words
    of these keys, uint32 `[batch, 2]`.

    Args:
      encode: `encode(x, c=(), *, seed=0)` gives `mean`, `stddev` and a `sample` of q(z|x, c).
      decode: `decode(z, c=(), *, seed=0)` gives the same of p(x|z, c).
      sample: `sample(size, c=(), *, seed=0)` gives `z ~ p(z|c)`, `x ~ p(x|z, c)` and the `mean` of
        the latter; None for a model without a prior.
      about: what `export` was given to note.
    """

    encode: Callable[..., dict[str, Array]]
    decode: Callable[..., dict[str, Array]]
    sample: Callable[..., dict[str, Array]] | None
    about: Any


def export(
    path: str | Path,
    model: Model,
    params: Params,
    *,
    x: Any,
    c: Any = (),
    batch: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    about: Any = None,
) -> None:
    """Write what a model computes with these parameters, for use without its code (see `load`).

    Dropout and other layer noise is off.

    Args:
      path: the file to write.
      model: the Model.
      params: its parameters.
      x, c: one example and its condition, as for `model.init`: arrays, or their shapes and types as
        `jax.ShapeDtypeStruct`.
      batch: the one size of batches to run; by default any size.
      platforms: the devices to run on, by JAX's names.
      about: JSON values to note in the file.
    Raises:
      ValueError: with JAX's reason, where a function cannot be exported so; otherwise as
        `weights.save`.
    """
    check_model("portable.export", model)
    check_parameters("portable.export: params", params)
    examples("portable.export: x", x, "one example")
    at_least_one("portable.export", ("batch",), batch=batch)
    if isinstance(platforms, str) or not isinstance(platforms, list | tuple):
        fix = 'such as ("cpu", "cuda")'
        raise wrong("portable.export: platforms", describe(platforms), "a tuple", fix, TypeError)
    size = jax.export.symbolic_shape("b")[0] if batch is None else batch

    def batched(tree: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape), a.dtype), tree)

    named = {weights.name_of(path): a for path, a in jax.tree_util.tree_leaves_with_path(params)}
    functions = _functions(model, jax.tree.structure(params), list(named))
    x, c = jax.eval_shape(lambda *inputs: inputs, x, c)
    words = jax.ShapeDtypeStruct((2,), jnp.uint32)
    z = jax.eval_shape(functions["encode"], named, words, x, c)["sample"]
    inputs = {"encode": (x, c), "decode": (z, c), "sample": (c,)}
    if jax.eval_shape(model.prior, params, c) is None:
        del inputs["sample"]
    programs = {}
    for name, specs in inputs.items():
        mapped = jax.vmap(functions[name], (None, *[0] * (1 + len(specs))))
        try:
            with _exporting():
                exporter = jax.export.export(jax.jit(mapped), platforms=tuple(platforms))
                program = exporter(named, *batched((words, *specs))).serialize()
        except Exception as error:  # of many kinds: what cannot be lowered, or not for any batch
            fix = 'give batch=N for one size alone, or fewer platforms, such as ("cpu",)'
            got = f"one that does not export: {error}"
            of = f"a function for {', '.join(platforms)}"
            raise wrong(f"portable.export: {name}", got, of, fix) from error
        programs[name] = jnp.frombuffer(program, jnp.uint8)
    note = {"portable": 1, "jax": jax.__version__, "about": about}
    weights.save(path, {"params": params, "programs": programs}, about=note)


def load(path: str | Path) -> Portable:
    """A model that `export` wrote, as functions of batches of arrays.

    They are compiled at their first use, for the device that JAX has.

    Args:
      path: the file to read.
    Returns:
      the functions, and the note.
    Raises:
      ValueError: for a file of other contents, or a program that calls Python; otherwise as
        `weights.tensors`.
    """
    note = weights.about(path)["about"]
    if not isinstance(note, dict) or "portable" not in note:
        fix = "parameters are for weights.load"
        raise wrong("portable.load", f"{path} without programs", "one of export", fix)
    params: dict[str, Array] = {}
    programs = {}
    for name, array in weights.tensors(path).items():
        kind, _, name = name.partition("/")
        if kind == "programs":
            programs[name] = _program(path, name, array.tobytes())
        else:
            params[name] = jnp.asarray(array)

    if missing := {"encode", "decode"} - set(programs):
        fix = "export writes both"
        raise wrong(f"portable.load: {path}", f"no {sorted(missing)}", "both", fix)

    def function(name: str) -> Callable[..., dict[str, Array]]:
        program = jax.jit(programs[name].call)
        (_, _, *known), _ = jax.tree.unflatten(programs[name].in_tree, programs[name].in_avals)

        def call(first: Any, c: Any = (), *, seed: Any = 0) -> dict[str, Array]:
            inputs = (c,) if name == "sample" else (first, c)
            words = _words(seed, first if name == "sample" else size_of(first))
            try:
                return program(params, words, *inputs)
            except (TypeError, ValueError) as error:
                got, expected = _described(inputs), _described(known)
                raise wrong(f"{name}: inputs", got, expected, f"JAX says: {error}") from error

        return call

    sample = function("sample") if "sample" in programs else None
    return Portable(function("encode"), function("decode"), sample, note.get("about"))


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """JAX's settings for programs that go elsewhere."""
    paths = "jax_hlo_source_file_canonicalization_regex"  # what of the sources' paths to leave out
    before = getattr(jax.config, paths)
    jax.config.update(paths, ".*")
    try:
        with jax.debug_key_reuse(False):  # which takes a slice of symbolic size for the whole
            yield
    finally:
        jax.config.update(paths, before)


def _functions(model: Model, tree: Any, names: list[str]) -> dict[str, Callable[..., Any]]:
    """What is exported, for one example: parameters by name, the key's words, the inputs."""

    def restore(named: Any) -> Params:
        return jax.tree.unflatten(tree, [named[name] for name in names])

    def key_of(words: Array) -> Any:
        return jax.random.wrap_key_data(words, impl="threefry2x32")

    def encode(named: Any, words: Array, x: Any, c: Any) -> dict[str, Any]:
        return _summary(model.encode(restore(named), x, c), key_of(words))

    def decode(named: Any, words: Array, z: Any, c: Any) -> dict[str, Any]:
        return _summary(model.decode(restore(named), z, c), key_of(words))

    def sample(named: Any, words: Array, c: Any) -> dict[str, Any]:
        drawn = generate(model, restore(named), key_of(words), c)
        absent = {"mean"} if isinstance(drawn.mean, tuple) else set()
        return {name: value for name, value in drawn._asdict().items() if name not in absent}

    return {"encode": encode, "decode": decode, "sample": sample}


def _summary(d: Distribution, key: Any) -> dict[str, Any]:
    """A distribution as plain arrays: which it is, JAX has no portable way to say."""
    summary = {"sample": d.sample(key)}
    with contextlib.suppress(NotImplementedError):
        summary["mean"] = d.mean
    match d:
        case Normal():
            summary["stddev"] = jnp.broadcast_to(d.scale, d.event_shape)
        case MultivariateNormal():
            summary["stddev"] = jnp.sqrt(jnp.sum(jnp.tril(d.scale_tril) ** 2, axis=-1))
    return summary


def _program(path: str | Path, name: str, serialized: bytes) -> Any:
    """A program, if this JAX reads it and it calls nothing in the process that runs it."""
    try:
        program = jax.export.deserialize(bytearray(serialized))
        text = program.mlir_module()
    except Exception as error:  # a reader of bytes by someone else: of any kind
        fix = "export it with this one, or use the JAX that weights.about(path) names"
        got = f"one that JAX {jax.__version__} does not read ({error})"
        raise wrong(f"portable.load: {name} in {path}", got, "a program", fix) from error
    if re.search(r"custom_call.*callback", text):  # these point into the memory of the process
        fix = "do not use it: export makes none such"
        raise wrong(f"portable.load: {name} in {path}", "a call of Python", "none", fix)
    return program


def _described(inputs: Any) -> str:
    """Types and shapes of inputs, for messages; b is any size of a batch."""
    described = jax.tree.map(lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}", tuple(inputs))
    return str(described).replace("'", "")


def _words(seed: Any, size: int) -> Array:
    """The words of each example's key, uint32 `[size, 2]`, as they are or from an integer."""
    if np.ndim(seed) == 0:
        key = jax.random.key(seed, impl="threefry2x32")
        return jax.random.key_data(keys_of(key, jnp.arange(size)))
    if np.shape(seed) != (size, 2):
        fix = "give an integer, or two uint32 words for each example"
        raise wrong("seed", f"shape {np.shape(seed)}", f"({size}, 2)", fix)
    return jnp.asarray(seed, jnp.uint32)


__all__ = ["Portable", "export", "load"]
