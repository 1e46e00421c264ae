"""Model: p(z|c) p(x|z, c) with an amortised q(z|x, c), as four pure functions; and what runs it.

Everything here is written for one example; batch it with `jax.vmap`.
"""

import functools
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError
from flax.traverse_util import flatten_dict, unflatten_dict

from vaejax.arrays import examples
from vaejax.batch import present
from vaejax.distributions import Distribution
from vaejax.errors import check_key, wrong
from vaejax.networks import check_state, functional, kernels
from vaejax.types import Decode, Encode, Init, Key, Module, Params, Prior, describe, describe_fields


@describe_fields
class Model(NamedTuple):
    """A latent-variable model as pure functions of its parameters.

    A variation of a model is `model._replace(...)`: priors and posteriors are functions from Model
    to Model.

    Args:
      init: `init(key, x, c=()) -> params`, from one example.
      prior: `prior(params, c=()) -> Distribution` over z, p(z|c).
      encode: `encode(params, x, c=(), *, key=None) -> Distribution` over z, q(z|x, c).
      decode: `decode(params, z, c=(), *, key=None) -> Distribution` over x, p(x|z, c). The `key` of
        both is for dropout and the like; without it they are deterministic.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import Model
      >>> from vaejax.distributions import Normal
      >>> model = Model(  # z ~ N(0, 1), x|z ~ N(w z, 1), with the exact posterior for w = 1
      ...     init=lambda key, x, c=(): {"w": jnp.ones(())},
      ...     prior=lambda params, c=(): Normal(jnp.zeros(()), 1.0),
      ...     encode=lambda params, x, c=(), *, key=None: Normal(x / 2, 0.5**0.5),
      ...     decode=lambda params, z, c=(), *, key=None: Normal(params["w"] * z, 1.0),
      ... )
      >>> params = model.init(jax.random.key(0), jnp.zeros(()))
      >>> model.encode(params, jnp.asarray(3.0))
      Normal(loc=1.5, scale=0.7071067811865476)
    """

    init: Init
    prior: Prior
    encode: Encode
    decode: Decode


def autoencoder(encoder: Any, decoder: Any, prior: Any = None) -> Model:
    """A Model from two networks that return Distributions, and a prior.

    A network is a Linen, an NNX or an Equinox module, a pair `(init, apply)`, or any object with
    `.init(key, *inputs) -> params`, of any structure, and `.apply(params, *inputs, rngs=None)`:
    see `networks.functional`. `rngs` is `{"dropout": key}` where encode or decode got a key, as in
    every training step. `networks.sequential` puts a head behind a network of any kind.

    The parameters are `{"encoder": ..., "decoder": ..., "prior": ...}`, the last only for a module.
    `init` is compiled. Inputs of another shape than at `init`, and a prior over events of another
    shape than q's, raise ValueError.

    Args:
      encoder: `encoder(x)` or `encoder(x, c)` gives q(z|x, c).
      decoder: `decoder(z)` or `decoder(z, c)` gives p(x|z, c).
      prior: a Distribution over z; or a network called with c, a learned p(z|c); or None, the
        default, for a deterministic autoencoder.
    Returns:
      The model.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from vaejax import autoencoder, draw, generate, heads, networks
      >>> from vaejax.distributions import Normal
      >>> model = autoencoder(
      ...     nn.Sequential([networks.MLP((8,)), heads.Normal(2)]),
      ...     nn.Sequential([networks.MLP((8,)), heads.Bernoulli((4, 4, 1))]),
      ...     Normal(jnp.zeros(2), jnp.ones(2)),
      ... )
      >>> x = jnp.zeros((4, 4, 1))
      >>> params = model.init(jax.random.key(0), x)
      >>> draw(model, params, jax.random.key(1), x).px
      Bernoulli(logits=f32[4, 4, 1])
      >>> generate(model, params, jax.random.key(2))
      Generated(z=f32[2], x=f32[4, 4, 1], mean=f32[4, 4, 1])

    References:
      Kingma and Welling, 2014, Auto-encoding variational Bayes, arXiv:1312.6114.
    """
    encoder = functional(encoder, "autoencoder: encoder")
    decoder = functional(decoder, "autoencoder: decoder")
    learned = None if prior is None or isinstance(prior, Distribution) else prior
    if learned is not None:
        learned = functional(learned, "autoencoder: prior")

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        _check_some("init", x)
        encoder_key, decoder_key, prior_key, z_key = jax.random.split(key, 4)
        variables = _init("encoder", encoder, encoder_key, x, *present(c))
        q = jax.eval_shape(lambda: encoder.apply(variables, x, *present(c)))
        _is_distribution("encoder", q)
        z = jax.eval_shape(lambda: encoder.apply(variables, x, *present(c)).sample(z_key))
        z = jnp.zeros(z.shape, z.dtype)
        params = {
            "encoder": variables,
            "decoder": _init("decoder", decoder, decoder_key, z, *present(c)),
        }
        pz: Any = prior
        if learned is not None:
            params["prior"] = _init("prior", learned, prior_key, *present(c))
            pz = jax.eval_shape(lambda: learned.apply(params["prior"], *present(c)))
        if isinstance(pz, Distribution) and pz.event_shape != q.event_shape:
            fix = "for instance Normal(jnp.zeros(latent), jnp.ones(latent))"
            raise wrong(
                "init: prior",
                f"{type(pz).__name__} over events {pz.event_shape}",
                f"{q.event_shape}, as of q(z|x)",
                fix,
            )
        decoded = jax.eval_shape(lambda: decoder.apply(params["decoder"], z, *present(c)))
        _is_distribution("decoder", decoded)
        one, got = decoded.event_shape, jnp.shape(x) if isinstance(x, jax.Array) else ()
        if len(got) == len(one) + 1 and got[1:] == one:
            raise wrong("init: x", f"a batch {got}", f"one example {one}", "pass x[0]")
        return params

    def prior_of(params: Params, c: Any = ()) -> Any:
        if learned is None:
            return prior
        return _apply("prior", "condition", learned, _part("prior", params, "prior"), c=c)

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        own = _part("encode", params, "encoder")
        known = partial(_image_shape, decoder, _part("encode", params, "decoder"), prior)
        x = examples("encode: x", x, "one example")
        _check_some("encode", x)
        return _apply("encode", "example", encoder, own, x, c=c, key=key, known=known)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        own = _part("decode", params, "decoder")
        z = examples("decode: z", z, "one code")
        return _apply("decode", "code", decoder, own, z, c=c, key=key)

    return Model(compiled(init), prior_of, encode, decode)


def compiled(init: Init) -> Init:
    """The `init` of a model as one compiled program, after its key and its example were checked.

    Args:
      init: `init(key, x, c=()) -> params`.
    Returns:
      The same function, compiled.
    """
    program = jax.jit(init)

    @functools.wraps(init)
    def checked(key: Key, x: Any, c: Any = ()) -> Params:
        check_key("init", key)
        x = examples("init: x", x, "one example")
        return program(key, x, examples("init: c", c, "one condition") if present(c) else c)

    return checked


def check_model(function: str, model: Any, order: str | None = None) -> None:
    """Raise unless a value is a model: it has the four functions of one.

    Args:
      function: the name of the caller, for the message.
      model: the value.
      order: the arguments of the caller, for the message, such as "model, params, key, x".
    Raises:
      TypeError: where it is none.
    """
    if isinstance(model, Model):
        return
    if all(callable(getattr(model, name, None)) for name in Model._fields):
        return
    fix = "for instance autoencoder(encoder, decoder, prior)"
    if order is not None:
        fix = f"the order is {function}({order})"
    if isinstance(getattr(model, "model", None), Model):
        fix = "pass its .model, and its .draw where that is taken"
    elif isinstance(model, nn.Module):
        fix = "join an encoder and a decoder: autoencoder(encoder, decoder, prior)"
    raise wrong(f"{function}: model", describe(model), "a Model", fix, TypeError)


def deterministic(model: Model) -> Model:
    """The same model with dropout and other layer noise off, as evaluation wants it.

    Args:
      model: the Model.
    Returns:
      The Model whose encode and decode ignore their `key`.
    """

    check_model("deterministic", model)

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return model.encode(params, x, c)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return model.decode(params, z, c)

    return model._replace(encode=encode, decode=decode)


def tied(model: Model) -> Model:
    """The same autoencoder with each of the decoder's dense layers the transpose of the encoder's.

    `W'_l = W_{L+1-l}^T` for the L layers of both. The decoder keeps its biases; its kernels are
    None in the parameters. It is for Linen modules of dense layers in `nn.Sequential` and `MLP`,
    whose names tell their order. The new `init` raises ValueError where the names do not, or where
    the layers are not each other's mirror image.

    Args:
      model: a Model of two Linen modules.
    Returns:
      The Model with tied weights.
    References:
      Vincent et al., 2010, Stacked denoising autoencoders, JMLR 11.
    """

    check_model("tied", model)

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        params = model.init(key, x, c)
        for part in ("encoder", "decoder"):
            ranks = [
                jnp.ndim(k) for p, k in flatten_dict(params[part]).items() if p[-1] == "kernel"
            ]
            if any(rank != 2 for rank in ranks):
                fix = "use it for an encoder and a decoder of dense layers"
                raise wrong(f"tied: the {part}", "convolutions", "dense layers alone", fix)
            _check_order(part, list(kernels(params[part])))
        own = kernels(params["decoder"])
        mirrored = [k.shape[::-1] for k in kernels(params["encoder"]).values()][::-1]
        if not own or [k.shape for k in own.values()] != mirrored:
            got = f"kernels {[k.shape for k in own.values()]}"
            fix = "mirror the encoder's widths, and end the decoder with one dense layer"
            raise wrong("tied: the decoder", got, f"{mirrored}, as the encoder has", fix)
        decoder = flatten_dict(params["decoder"]) | dict.fromkeys(own)
        return {**params, "decoder": unflatten_dict(decoder)}

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        last_first = list(kernels(params["encoder"]).values())[::-1]
        places = kernels(params["decoder"])
        mirrored = {path: k.T for path, k in zip(places, last_first, strict=True)}
        decoder = unflatten_dict(flatten_dict(params["decoder"]) | mirrored)
        return model.decode({**params, "decoder": decoder}, z, c, key=key)

    return model._replace(init=init, decode=decode)


def _check_some(name: str, x: Any) -> None:
    """Raise ValueError for an example without numbers."""
    if not all(map(jnp.size, jax.tree.leaves(x))):
        raise wrong(
            f"{name}: x", describe(x), "one example", "pass x[0] of data that are not empty"
        )


def _check_order(part: str, paths: list[tuple[str, ...]]) -> None:
    """Refuse names that do not say which layer is first, such as Code_0 and Dense_0."""
    for one, other in pairwise(paths):
        first, second = next(
            names for names in zip(one, other, strict=False) if names[0] != names[1]
        )
        if first.rstrip("0123456789") != second.rstrip("0123456789"):
            got = f"layers {'/'.join(one)} and {'/'.join(other)}"
            fix = "build it as nn.Sequential([...]) of one module per layer, or of MLP and a head"
            raise wrong(f"tied: the {part}", got, "names that tell the order of the layers", fix)


def _apply(
    name: str,
    what: str,
    module: Module,
    params: Params,
    *inputs: Any,
    c: Any = (),
    key: Key | None = None,
    known: Callable[[], Any] = lambda: None,
) -> Any:
    """The module at work; its complaint about a kernel's shape becomes one about the input's."""
    rngs = {} if key is None else {"rngs": {"dropout": key}}
    try:
        return module.apply(params, *inputs, *present(c), **rngs)
    except (ScopeParamNotFoundError, ScopeCollectionNotFound) as error:
        raise _of_another(name, _misfits(module, params, inputs, c)) from error
    except ScopeParamShapeError as error:
        misfits = _misfits(module, params, inputs, c)
        shape = known()
        if misfits or isinstance(shape, Exception):
            raise _of_another(name, misfits or str(shape)) from error
        raise _of_input(name, what, inputs, c, shape) from error
    except TypeError as error:
        _check_condition(name, error, c)
        shape = known()
        # What Linen says in the errors above, JAX says of a product in other modules.
        known_shape = isinstance(shape, tuple) and not isinstance(module, nn.Module)
        if known_shape and getattr(inputs[0], "shape", shape) != shape:
            raise _of_input(name, what, inputs, c, shape) from error
        raise


def _of_another(name: str, where: str) -> Exception:
    """The error for parameters that do not fit the model, whatever its input is."""
    got = f"those of another model ({where})" if where else "those of another model"
    fix = "pass what this model's own init made, or fit returned for it"
    return wrong(f"{name}: params", got, "this model's", fix)


def _of_input(name: str, what: str, inputs: Any, c: Any, shape: Any) -> Exception:
    """The error for an input of another shape than the parameters are for.

    `shape` is that of what the decoder makes, or None.
    """
    got = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(inputs or c)) or "none"
    given = f" with c {jax.tree.map(jnp.shape, c)}" if inputs and jax.tree.leaves(c) else ""
    alone = " with no c" if inputs else ""  # the prior's input is c itself
    images = f" (this model's x has shape {shape})" if shape else ""
    fixes = [
        f"map a batch: jax.vmap(model.{name}, (None, 0))(params, ...)",
        "another size needs parameters of its own: model.init",
    ]
    condition = "a conditional model needs the c it was made for: Batch(x, c=...)"
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    if shape is not None and len(shapes) > 1:  # as in (x, y)
        fixes = ["labels and weights go beside x: Batch(x, y=..., weight=...)"]
    elif shape is not None and shapes and len(shapes[0]) <= len(shape):  # no batch of such
        fixes = fixes[1:]
    if shape is None or shapes == [shape]:  # with that shape it is not x
        fixes.insert(0 if alone and not given else len(fixes), condition)
    return ValueError(
        f"{name}: expected one {what} as at init{images}, got {got}{given or alone}; "
        + "; ".join(fixes)
    )


def _misfits(module: Module, params: Params, inputs: Any, c: Any) -> str:
    """Where parameters differ from those that the module would make for this input.

    A kernel's last axis but one is that of its input, and tells nothing about the model: if nothing
    else differs this is "".
    """
    try:
        made = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, *present(c)))
        own, given = (
            {
                "/".join(str(getattr(k, "key", k)) for k in path): jnp.shape(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }
            for tree in (made, params)
        )
    except Exception:  # the module does not take this input at all
        return ""
    lines = []
    for path in {**own, **given}:
        here, there = own.get(path), given.get(path)
        if here is None or there is None:
            lines.append(f"{path} {'is there' if here is None else 'is missing'}")
        elif here[:-2] + here[-1:] != there[:-2] + there[-1:] or len(here) != len(there):
            lines.append(f"{path} is {there}, not {here}")
    return ", ".join(lines if len(lines) <= 3 else [*lines[:2], f"and {len(lines) - 2} more"])


def _part(name: str, params: Params, part: str) -> Params:
    """The parameters of one of the model's modules."""
    if isinstance(params, Mapping) and part in params:
        return params[part]
    got = describe(params)
    if isinstance(params, Mapping):
        got = f"a dictionary of {', '.join(map(repr, sorted(map(str, params)))) or 'nothing'}"
    fix = "pass what this model's own init made, or fit returned for it"
    if isinstance(params, tuple) and hasattr(params, "params"):
        got, fix = f"a {type(params).__name__}", "pass its .params"
    expected = f"this model's, a dictionary with {part!r}"
    raise wrong(f"{name}: params", got, expected, fix, TypeError)


def _image_shape(decoder: Module, params: Params, prior: Any) -> Any:
    """The shape of what the decoder makes of a code; None where that is not known.

    Where its parameters differ from its own in more than their input, an error says where.
    """
    try:
        decoded = jax.eval_shape(lambda: decoder.apply(params, prior.sample(jax.random.key(0))))
    except ScopeParamShapeError:
        misfits = _misfits(decoder, params, (jnp.zeros(prior.event_shape),), ())
        return ValueError(f"decoder: {misfits}") if misfits else None
    except Exception:  # no prior to sample from, or a decoder that needs a condition
        return None
    return decoded.event_shape


def _is_distribution(name: str, output: Any) -> None:
    if not isinstance(output, Distribution):
        fix = "end it with a head, for instance networks.sequential(network, heads.Normal(10))"
        raise wrong(f"autoencoder: {name}", type(output).__name__, "a Distribution", fix, TypeError)


def _check_condition(name: str, error: TypeError, c: Any) -> None:
    """Say so where a module misses an argument, and that can only be the condition."""
    if not present(c) and "missing" in str(error):
        fix = "pass one: Batch(x, c=...), model.init(key, x, c), generate(model, params, key, c)"
        raise wrong(f"{name}: c", "none", "a condition, as this module takes one", fix) from error


def _init(name: str, module: Module, key: Key, *inputs: Any) -> Params:
    try:
        variables = module.init(key, *inputs)
    except TypeError as error:
        _check_condition(f"init, {name}", error, inputs[1:] if name != "prior" else inputs)
        raise
    check_state(f"autoencoder: the {name}", module, variables)
    return variables
