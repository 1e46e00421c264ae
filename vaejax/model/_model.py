"""Model: p(z|c) p(x|z, c) with an amortised q(z|x, c), as four pure functions; and what runs it.

Everything here is written for one example; batch it with `jax.vmap`.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError
from flax.traverse_util import flatten_dict, unflatten_dict

from vaejax.batch import present
from vaejax.distributions import Distribution
from vaejax.errors import check_key, wrong
from vaejax.networks import kernels
from vaejax.types import Array, Decode, Encode, Init, Key, Module, Params, Prior, describe_fields


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


@describe_fields
class Draw(NamedTuple):
    """What one pass of inference produced, for one example.

    A Draw stays inside the function of one example (see `over_batch`).

    Args:
      x: the example.
      z: the code, drawn from q.
      log_q: log q(z|x), nats, `()`.
      q: the posterior, a Distribution over z.
      pz: the prior, a Distribution over z.
      px: the likelihood, a Distribution over x.
    """

    x: Any
    z: Any
    log_q: Array
    q: Any
    pz: Any
    px: Any


@describe_fields
class Generated(NamedTuple):
    """One ancestral sample: z ~ p(z), then x ~ p(x|z).

    Args:
      z: the code.
      x: the sample.
      mean: E[x|z], in the shape of x; `()` where p(x|z) has no mean in closed form.
    """

    z: Any
    x: Any
    mean: Any


def autoencoder(
    encoder: Module, decoder: Module, prior: Distribution | Module | None = None
) -> Model:
    """A Model from two Linen modules that return Distributions, and a prior.

    Any object with `.init(key, *inputs) -> params`, of any structure, and `.apply(params, *inputs,
    rngs=None)` serves as a module. `rngs` is `{"dropout": key}` where encode or decode got a key,
    as in every training step.

    The parameters are `{"encoder": ..., "decoder": ..., "prior": ...}`, the last only for a module.
    `init` is compiled. Inputs of another shape than at `init`, and a prior over events of another
    shape than q's, raise ValueError.

    Args:
      encoder: `encoder(x)` or `encoder(x, c)` gives q(z|x, c).
      decoder: `decoder(z)` or `decoder(z, c)` gives p(x|z, c).
      prior: a Distribution over z; or a module called with c, a learned p(z|c); or None, the
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
    learned = None if prior is None or isinstance(prior, Distribution) else prior

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        check_key("init", key)
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
        return _apply("prior", "condition", learned, params["prior"], c=c)

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        known = partial(_image_shape, decoder, params["decoder"], prior)
        return _apply("encode", "example", encoder, params["encoder"], x, c=c, key=key, known=known)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return _apply("decode", "code", decoder, params["decoder"], z, c=c, key=key)

    return Model(jax.jit(init), prior_of, encode, decode)


def draw(model: Model, params: Params, key: Key, x: Any, c: Any = (), *, given: Any = None) -> Draw:
    """One pass of inference: q = q(z|x, c), z ~ q, then p(x|z, c) and p(z|c).

    The code is reparameterised where q's sample is. For an example see `autoencoder`.

    Args:
      model: the Model.
      params: its parameters.
      key: for z, and for dropout in encode and decode.
      x: one example.
      c: its condition; absent by default.
      given: what the encoder sees instead of x, for instance the corrupted input of a denoising
        model; by default x itself. The Draw's `x` stays the clean target.
    Returns:
      A Draw.
    """
    encode_key, z_key, decode_key = jax.random.split(key, 3)
    q = model.encode(params, x if given is None else given, c, key=encode_key)
    z, log_q = q.sample_and_log_prob(z_key)
    px = model.decode(params, z, c, key=decode_key)
    return Draw(x, z, log_q, q, model.prior(params, c), px)


def reconstruct(
    model: Model, params: Params, x: Any, c: Any = (), *, key: Key | None = None
) -> Any:
    """E[x|z, c] at the posterior's mean, or at a draw z ~ q.

    Args:
      model: the Model.
      params: its parameters.
      x: one example.
      c: its condition; absent by default.
      key: for the draw; without it z is the posterior's mean.
    Returns:
      The reconstruction, in the shape of x.
    """
    q = model.encode(params, x, c)
    return model.decode(params, q.mean if key is None else q.sample(key), c).mean


def generate(model: Model, params: Params, key: Key, c: Any = ()) -> Generated:
    """One ancestral sample from the model: z ~ p(z|c), then x ~ p(x|z, c), and E[x|z, c].

    For an example see `autoencoder`; for many samples map it over keys by `jax.vmap`.

    Args:
      model: the Model.
      params: its parameters.
      key: one PRNG key.
      c: the condition; absent by default.
    Returns:
      A Generated.
    Raises:
      ValueError: for a deterministic autoencoder, which has no prior to sample from.
      TypeError: where key is no key.
    """
    check_key("generate", key)
    z_key, x_key = jax.random.split(key)
    pz = model.prior(params, c)
    if pz is None:
        raise ValueError(
            "generate: a deterministic autoencoder has no prior; give autoencoder(..., prior=...)"
        )
    z = pz.sample(z_key)
    px = model.decode(params, z, c)
    try:
        mean = px.mean
    except NotImplementedError:
        mean = ()
    return Generated(z, px.sample(x_key), mean)


def interpolate(
    model: Model, params: Params, start: Any, end: Any, c: Any = (), *, steps: int = 7
) -> Any:
    """Decoded means along the straight line between two examples' mean codes.

    Args:
      model: the Model.
      params: its parameters.
      start, end: two examples.
      c: the condition of both; absent by default.
      steps: how many points, both ends among them.
    Returns:
      The means, `[steps, ...]`.
    Raises:
      ValueError: where steps is below 2.
    """
    if steps < 2:
        raise ValueError(f"interpolate: expected steps >= 2, got {steps}")
    first, last = (model.encode(params, x, c).mean for x in (start, end))
    weights = jnp.linspace(0.0, 1.0, steps, dtype=first.dtype)
    return jax.vmap(lambda w: model.decode(params, (1 - w) * first + w * last, c).mean)(weights)


def deterministic(model: Model) -> Model:
    """The same model with dropout and other layer noise off, as evaluation wants it.

    Args:
      model: the Model.
    Returns:
      The Model whose encode and decode ignore their `key`.
    """

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
    except ScopeParamNotFoundError as error:
        fix = "pass what this model's own init made, or fit returned for it"
        raise wrong(f"{name}: params", "those of another model", "this model's", fix) from error
    except ScopeParamShapeError as error:
        got = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(inputs or c)) or "none"
        given = f" with c {jax.tree.map(jnp.shape, c)}" if inputs and jax.tree.leaves(c) else ""
        alone = " with no c" if inputs else ""  # the prior's input is c itself
        shape = known()
        images = f" (this model's images are {shape})" if shape else ""
        fixes = [
            f"map a batch: jax.vmap(model.{name}, (None, 0))(params, ...)",
            "another size needs parameters of its own: model.init",
        ]
        condition = "a conditional model needs the c it was made for: Batch(x, c=...)"
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
        if shape is None or shapes == [shape]:  # with that shape it is not x
            fixes.insert(0 if alone and not given else 2, condition)
        raise ValueError(
            f"{name}: expected one {what} as at init{images}, got {got}{given or alone}; "
            + "; ".join(fixes)
        ) from error
    except TypeError as error:
        _check_condition(name, error, c)
        raise


def _image_shape(decoder: Module, params: Params, prior: Any) -> tuple[int, ...] | None:
    """What the decoder makes of a code, for the message above; None where that is not known."""
    try:
        decoded = jax.eval_shape(lambda: decoder.apply(params, prior.sample(jax.random.key(0))))
    except Exception:  # no prior to sample from, or a decoder that needs a condition
        return None
    return decoded.event_shape


def _is_distribution(name: str, output: Any) -> None:
    if not isinstance(output, Distribution):
        fix = "end it with a head, for instance nn.Sequential([network, heads.Normal(10)])"
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
    # Linen sorts its state into collections; a network written by hand names what it likes.
    extra = set(variables) - {"params"} if isinstance(module, nn.Module) else set()
    if extra:
        raise ValueError(
            f"autoencoder: the {name} keeps state outside its parameters ({sorted(extra)}); "
            "use LayerNorm or GroupNorm instead of BatchNorm"
        )
    return variables
