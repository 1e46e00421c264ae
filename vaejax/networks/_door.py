"""The one door by which every network enters: what it is becomes `init` and `apply` here.

Linen modules have the two functions. NNX and Equinox modules are objects that hold their weights;
here the weights become a plain tree of dictionaries, and the object is made anew around them at
every call. What is behind the door does not know which kind it was.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vaejax.errors import wrong
from vaejax.networks._network import check_module
from vaejax.types import Key, Module, Params, describe

STATELESS = "use LayerNorm or GroupNorm instead of BatchNorm"
CONSTANT = "make it in __call__, or a numpy array where it does not learn"


def functional(
    network: Any,
    where: str = "networks.functional: network",
    needs: tuple[str, ...] = ("init", "apply"),
) -> Any:
    """Any network as `init` and `apply`: whatever takes a network here calls this on it.

    The network is one of these:

    - a Linen module, or any object with `init` and `apply`: returned as it is;
    - a pair `(init, apply)`, `init(key, *inputs) -> params` and `apply(params, *inputs)`; where
      `apply` also takes `key`, it gets the key of dropout, or None;
    - what makes an NNX module: a class or a function whose one argument is `rngs`;
    - what makes an Equinox module: a class or a function whose one argument is `key`;
    - an NNX or an Equinox module itself: `init` returns copies of its weights, at every key.

    The parameters of NNX and Equinox modules are dictionaries in dictionaries, by the names of the
    attributes. `apply` calls the module on one example. With a key for dropout the module is as it
    was made; without one it is in the mode of evaluation (`eval()` in NNX, `inference_mode` in
    Equinox). NNX streams of random numbers start from that key, and an Equinox `__call__` gets it
    as `key`.

    Args:
      network: the network.
      where: the function and its argument, for the messages of errors.
      needs: which of `init` and `apply` an object has to have; both by default.
    Returns:
      An object with `init(key, *inputs) -> params` and `apply(params, *inputs, rngs=None)`.
    Raises:
      TypeError: for what is no network.
      ValueError: for one that keeps state outside its parameters, as BatchNorm does.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from vaejax import networks
      >>> network = networks.functional(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
      >>> params = network.init(jax.random.key(0), jnp.zeros(3))
      >>> sorted(params)
      ['bias', 'kernel']
      >>> network.apply(params, jnp.zeros(3)).shape
      (2,)
    """
    if type(network) is tuple and len(network) == 2 and all(map(callable, network)):
        return _Pair(*network)
    if not isinstance(network, type) and all(
        callable(getattr(network, name, None)) for name in needs
    ):
        _refuse_inside_linen(where, network)
        return network
    if _is_nnx(network):
        return _nnx_module(where, _copier(network), network)
    if _is_equinox(network):
        return _equinox_module(where, lambda key: network, network)
    maker = _maker(where, network)
    if maker is None:
        check_module(where, network, needs)
        return network  # what has the two functions in a way that only this check sees
    kind, make = maker
    return (_nnx_module if kind == "rngs" else _equinox_module)(where, make, None)


def sequential(*parts: Any) -> Module:
    """Networks one after the other, of whatever kind each is, as one network.

    `y = f_n(... f_2(f_1(x, c)))`. The first takes all inputs, the others what the one before
    returned. So a head of the library ends a network of your own, of whatever kind. A function
    without parameters, such as `jnp.tanh` or `lambda x: x / 16`, is a part too.

    Args:
      parts: networks, each as `functional` takes them, and functions.
    Returns:
      The network; its parameters are `{"part_0": ..., "part_1": ...}`, without those that have
      none.
    Raises:
      TypeError: for no part, or for what is no network.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from vaejax import heads, networks
      >>> def features(rngs):
      ...     return nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu)
      >>> encoder = networks.sequential(features, heads.Normal(2))
      >>> params = encoder.init(jax.random.key(0), jnp.zeros(4))
      >>> encoder.apply(params, jnp.zeros(4))
      Normal(loc=f32[2], scale=f32[2])
    """
    if not parts:
        fix = "for instance networks.sequential(network, heads.Normal(10))"
        raise wrong("networks.sequential", "no part", "one network or more", fix, TypeError)
    return _Sequential(
        [_part(part, f"networks.sequential: part {i}") for i, part in enumerate(parts)]
    )


def check_state(where: str, module: Any, params: Params) -> None:
    """Refuse what a Linen module keeps beside its parameters.

    Args:
      where: the function and its argument, for the message.
      module: the network.
      params: what its `init` returned.
    Raises:
      ValueError: where there is such state.
    """
    # Linen sorts its state into collections; a network written by hand names what it likes.
    extra = set(params) - {"params"} if isinstance(module, nn.Module) else set()
    if extra:
        raise ValueError(
            f"{where} keeps state outside its parameters ({sorted(extra)}); {STATELESS}"
        )


def entering(where: str, field: str) -> Callable[[Any], Any]:
    """Decorator of a NamedTuple, a field of which is a network, or a tuple of networks by "nets".

    The field becomes `init` and `apply` when one is made.

    Args:
      where: the name of what is made, for the messages of errors.
      field: the name of the field.
    Returns:
      the decorator.
    """

    def decorate(cls: Any) -> Any:
        new = cls.__new__

        @wraps(new)
        def entered(cls: Any, *args: Any, **kwargs: Any) -> Any:
            made = new(cls, *args, **kwargs)
            given, name = getattr(made, field), f"{where}: {field}"
            if field == "nets":
                return made._replace(nets=tuple(functional(net, name) for net in given))
            return made._replace(**{field: functional(given, name)})

        cls.__new__ = entered
        return cls

    return decorate


def within(module: nn.Module, field: str, *inputs: Any) -> Any:
    """What a network of any kind makes of inputs within a Linen module that has it as a field.

    Args:
      module: the Linen module, in its compact `__call__`.
      field: the name of the field; the parameters stand under it, those of other kinds than Linen
        as `<field>_params`.
      inputs: of the network.
    Returns:
      what the network returns.
    """
    network = getattr(module, field)
    if isinstance(network, nn.Module):
        return network(*inputs)
    network = functional(network, f"{type(module).__name__}: {field}")
    params = module.param(f"{field}_params", network.init, *inputs)
    rngs = {"dropout": module.make_rng("dropout")} if module.has_rng("dropout") else None
    return network.apply(params, *inputs, **({} if rngs is None else {"rngs": rngs}))


class _Pair:
    """Two functions of the user's as a network."""

    def __init__(self, init: Callable[..., Params], apply: Callable[..., Any]) -> None:
        self.init, self._apply = init, apply
        self._takes = [name for name in ("key", "rngs") if _takes(apply, name)]

    def apply(self, params: Params, *inputs: Any, rngs: Any = None) -> Any:
        noise = {"key": _dropout_key(rngs), "rngs": rngs}
        return self._apply(params, *inputs, **{name: noise[name] for name in self._takes})


def _part(part: Any, where: str) -> Module:
    """A part of `sequential`: a network, or a function without parameters."""
    is_object = any(hasattr(part, name) for name in ("init", "apply", "sample"))
    is_module = isinstance(part, type) or _is_nnx(part) or _is_equinox(part)
    if callable(part) and not is_object and not is_module and _maker(where, part) is None:
        return _Pair(lambda key, *inputs: {}, lambda params, *inputs: part(*inputs))
    return functional(part, where)


class _Sequential:
    """What `sequential` makes."""

    def __init__(self, parts: list[Module]) -> None:
        self._parts = parts

    def init(self, key: Key, *inputs: Any) -> Params:
        params = {}
        for i, part in enumerate(self._parts):
            # The key is folded inside, so that one part gets what it gets alone in another place.
            own = part.init(jax.random.fold_in(key, i), *inputs)
            check_state(f"networks.sequential: part {i}", part, own)
            if own:
                params[f"part_{i}"] = own
            if i + 1 < len(self._parts):
                made = jax.eval_shape(partial(part.apply, own), *inputs)
                inputs = (jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made),)
        return params

    def apply(self, params: Params, *inputs: Any, rngs: Any = None) -> Any:
        key = _dropout_key(rngs)
        for i, part in enumerate(self._parts):
            noise = {} if key is None else {"rngs": {"dropout": jax.random.fold_in(key, i)}}
            inputs = (part.apply(params.get(f"part_{i}", {}), *inputs, **noise),)
        return inputs[0]


class _Names:
    """The leaves of a tree by names, as dictionaries in dictionaries, and back."""

    def __init__(self, where: str, tree: Any) -> None:
        with_path, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        self._where = where
        self._shapes = {_names(path): jnp.shape(leaf) for path, leaf in with_path}

    def plain(self, tree: Any) -> Params:
        found: dict[str, Any] = {}
        for path, leaf in zip(self._shapes, jax.tree.leaves(tree), strict=True):
            inner = found
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            inner[path[-1]] = leaf
        return found

    def whole(self, params: Params) -> Any:
        """The tree that a module is made of; parameters of another network raise ValueError."""
        given = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        for path in {**self._shapes, **given}:
            here, there = self._shapes.get(path), given.get(path)
            if here is None or there is None or jnp.shape(there) != here:
                got = "missing" if there is None else f"of shape {jnp.shape(there)}"
                expected = "none of this name" if here is None else f"shape {here}"
                fix = "pass what this network's own init made, or fit returned for it"
                raise wrong(f"{self._where}: params: {'/'.join(path)}", got, expected, fix)
        return jax.tree.unflatten(self._structure, [given[path] for path in self._shapes])


class _Object:
    """A network that is an object around its weights.

    `made(key)` gives new weights as a tree; `module(tree, key)` the object around them, and what
    its methods are given beside their inputs, for a function that says what they take.
    """

    def __init__(
        self,
        names: _Names,
        made: Callable[[Key], Any],
        module: Callable[[Any, Key | None], Any],
        methods: Any,
        noise: str,
    ) -> None:
        self._names, self._made, self._module, self._noise = names, made, module, noise
        if callable(getattr(methods, "step", None)):  # which `autoregressive.Causal` looks for
            self.step = methods.step

    def init(self, key: Key, *inputs: Any) -> Params:
        return self._names.plain(self._made(key))

    def apply(
        self, params: Params, *inputs: Any, rngs: Any = None, method: str = "__call__"
    ) -> Any:
        key = _dropout_key(rngs)
        module = self._module(self._names.whole(params), key)
        call = module if method == "__call__" else getattr(module, method)
        noise = {}
        if _takes(module.__call__ if method == "__call__" else call, self._noise):
            noise[self._noise] = _rngs(key) if self._noise == "rngs" else key
        return call(*inputs, **noise)


def _nnx_module(where: str, make: Callable[..., Any], instance: Any) -> _Object:
    """An NNX module as a network; `make(rngs)` makes one."""
    from flax import nnx

    kinds = (nnx.Param, nnx.RngKey, nnx.RngCount, ...)
    module = nnx.eval_shape(lambda: _of_kind(where, make(nnx.Rngs(0)), _is_nnx))
    parts: Any = nnx.split(module, *kinds)
    training, weights, keys, counts, rest = parts
    module.eval()
    evaluation = nnx.split(module, *kinds)[0]
    _refuse(f"{where}: {type(module).__name__}", rest)
    key_leaves, key_tree = jax.tree.flatten(keys)
    count_leaves, count_tree = jax.tree.flatten(counts)

    def made(key: Key) -> Any:
        if instance is not None:
            own = nnx.split(instance, *kinds)[1]
            return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), own)
        return nnx.split(make(nnx.Rngs(key)), *kinds)[1]

    def around(tree: Any, key: Key | None) -> Any:
        root = jax.random.key(0) if key is None else key
        own = [jax.random.fold_in(root, i) for i in range(len(key_leaves))]
        zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in count_leaves]
        streams = jax.tree.unflatten(key_tree, own), jax.tree.unflatten(count_tree, zeros)
        return nnx.merge(evaluation if key is None else training, tree, *streams)

    return _Object(_Names(where, weights), made, around, module, "rngs")


def _equinox_module(where: str, make: Callable[..., Any], instance: Any) -> _Object:
    """An Equinox module as a network; `make(key)` makes one."""
    import equinox as eqx

    seen: list[Any] = []

    def parts(key: Key) -> Any:
        module = make(key)
        if isinstance(module, tuple) and any(isinstance(m, eqx.nn.State) for m in module):
            raise ValueError(f"{where}: it keeps state outside its parameters; {STATELESS}")
        weights, rest = eqx.partition(_of_kind(where, module, _is_equinox), eqx.is_inexact_array)
        seen[:] = [rest]
        return weights

    weights = jax.eval_shape(parts, jax.random.key(0))
    rest = seen[0]
    name = f"{where}: {type(rest).__name__}"
    stateful = lambda leaf: isinstance(leaf, eqx.nn.StateIndex)  # noqa: E731
    if any(map(stateful, jax.tree.leaves(weights, is_leaf=stateful))):
        raise ValueError(f"{name} keeps state outside its parameters; {STATELESS}")
    _refuse(name, eqx.filter(rest, eqx.is_array) if instance is None else ())

    def made(key: Key) -> Any:
        if instance is not None:
            own = eqx.filter(instance, eqx.is_inexact_array)
            return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), own)
        return eqx.filter(make(key), eqx.is_inexact_array)

    def around(tree: Any, key: Key | None) -> Any:
        module = eqx.combine(tree, rest)
        return eqx.nn.inference_mode(module) if key is None else module

    return _Object(_Names(where, weights), made, around, rest, "key")


def _maker(where: str, network: Any) -> tuple[str, Callable[..., Any]] | None:
    """Whether it takes `rngs` or `key`, and a function of it; None for what makes no network."""
    if not callable(network) or hasattr(network, "sample"):
        return None
    try:  # what NNX and Equinox put before `__init__` takes anything
        is_class = isinstance(network, type)
        signature = inspect.signature(network.__init__ if is_class else network)
    except (TypeError, ValueError):  # a function that is not written in Python
        return None
    arguments = list(signature.parameters.values())[is_class:]
    needed = [one.name for one in arguments if one.default is one.empty and one.kind not in (2, 4)]
    names = needed or [one.name for one in arguments if one.name in ("rngs", "key")]
    if names not in (["rngs"], ["key"]):
        return None
    return names[0], lambda value: network(**{names[0]: value})


def _of_kind(where: str, module: Any, is_kind: Callable[[Any], bool]) -> Any:
    """What a constructor made, which has to be a module of the kind that its argument says."""
    if is_kind(module):
        return module
    fix = "name the argument `rngs` and return an NNX module, or `key` and an Equinox module"
    raise wrong(where, f"a function that returns {describe(module)}", "a network", fix, TypeError)


def _refuse(where: str, rest: Any) -> None:
    """Raise ValueError for arrays that are no parameters."""
    found = jax.tree_util.tree_leaves_with_path(rest)
    if found:
        names = ", ".join("/".join(_names(path)) for path, _ in found[:4])
        raise ValueError(
            f"{where} keeps state outside its parameters ({names}); {STATELESS}; an array that "
            f"is constant: {CONSTANT}"
        )


def _refuse_inside_linen(where: str, network: Any) -> None:
    """Raise TypeError for a module in Linen's Sequential that Linen would not train."""
    if not isinstance(network, nn.Sequential):
        return
    for layer in network.layers:
        if _is_nnx(layer) or _is_equinox(layer) or _is_maker(layer):
            got = f"nn.Sequential with {describe(layer)}"
            fix = (
                "join networks of several kinds by networks.sequential(...); for weights that do "
                "not learn: lambda x: network(x)"
            )
            raise wrong(where, got, "modules of Linen and functions", fix, TypeError)


def _is_maker(layer: Any) -> bool:
    return not isinstance(layer, nn.Module) and _maker("", layer) is not None


def _copier(module: Any) -> Callable[..., Any]:
    """A function that returns a copy of an NNX module, so that the user's own is not changed."""
    from flax import nnx

    return lambda rngs: nnx.clone(module)


def _is_nnx(value: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")  # whoever has such a module has imported it
    return nnx is not None and isinstance(value, nnx.Module)


def _is_equinox(value: Any) -> bool:
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(value, equinox.Module)


def _rngs(key: Key | None) -> Any:
    from flax import nnx

    return None if key is None else nnx.Rngs(key)


def _dropout_key(rngs: Any) -> Key | None:
    return rngs.get("dropout") if isinstance(rngs, Mapping) else None


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has an argument of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """A path in a tree as words; NNX ends each with the field that holds the variable's array."""
    words = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    last = path[-1] if path else None
    if isinstance(last, jax.tree_util.GetAttrKey) and last.name in ("value", "raw_value"):
        words = words[:-1]
    return tuple(words)


__all__ = ["check_state", "entering", "functional", "sequential", "within"]
