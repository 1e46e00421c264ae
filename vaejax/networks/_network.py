"""The base class of the library's Linen modules."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, Protocol

from flax import linen as nn
from flax.errors import ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError

from vaejax.errors import wrong
from vaejax.types import describe


class _ListsItsOwn(type(Protocol)):  # type: ignore[misc]  # so that a network may be a protocol
    """A class whose `dir`, by which `help` goes, leaves out what Linen and dataclasses add."""

    def __dir__(cls) -> list[str]:
        if "__signature__" not in vars(cls):  # Linen is still making it, and looks at all there is
            return list(super().__dir__())
        names = {
            name
            for base in cls.__mro__
            if base.__module__.split(".")[0] not in ("flax", "builtins")
            for name, value in vars(base).items()
            if callable(value)
        }
        names -= set(cls.__dataclass_fields__)
        return sorted(name for name in names if name == "__call__" or not name.startswith("_"))


class Network(nn.Module, metaclass=_ListsItsOwn):
    """A Linen module as any other, of which `help` shows what the class adds to Linen's.

    Its signature leaves out `parent` and `name`, which Linen gives every module.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
        own = [_by_name(one) for one in arguments if one.name not in ("parent", "name")]
        cls.__signature__ = inspect.Signature(own)


Network.__signature__ = inspect.Signature()


@contextlib.contextmanager
def of_this_network(where: str) -> Iterator[None]:
    """What Linen says of parameters of another network, in one line.

    Args:
      where: the function and its argument, for the message.
    Raises:
      ValueError: where the parameters are not those of the network that is applied inside.
    """
    try:
        yield
    except (ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError) as error:
        fix = "pass what this network's own init made, or fit returned for it"
        raise wrong(where, "those of another network", "this network's", fix) from error


def check_module(where: str, module: Any, needs: tuple[str, ...] = ("init", "apply")) -> None:
    """Raise unless a value can be a network: it has `init` and `apply`.

    Args:
      where: the function and its argument, for the message.
      module: the value.
      needs: which of the two are needed.
    Raises:
      TypeError: where it can not, naming what to wrap it in.
    """
    expected = "a network with init and apply (types.Module)"
    if isinstance(module, type):
        name = module.__name__
        fix = f"make one of it: {name}(...)"
        for home, noise in (("flax.nnx", "rngs"), ("equinox", "key")):
            if any(base.__module__.startswith(home) for base in module.__mro__):
                fix = f"give a function of {noise}: lambda {noise}: {name}(..., {noise}={noise})"
        raise wrong(where, f"the class {module.__name__}", expected, fix, TypeError)
    if all(callable(getattr(module, name, None)) for name in needs):
        return
    if callable(module) and not hasattr(module, "sample"):
        got = describe(module)
        fix = (
            "make it a layer: networks.sequential(function, heads.Normal(10)); what makes a module "
            "has one argument, `rngs` for NNX or `key` for Equinox"
        )
    else:
        got, fix = (
            describe(module),
            "for instance networks.sequential(networks.MLP((400,)), heads.Normal(10))",
        )
    raise wrong(where, got, expected, fix, TypeError)


class _Name(str):
    """Prints without quotes."""

    __repr__ = str.__str__


def _by_name(argument: inspect.Parameter) -> inspect.Parameter:
    """The argument, with a function that is its default shown by name, without an address."""
    default = argument.default
    if not callable(default) or default is argument.empty:
        return argument
    return argument.replace(default=_Name(getattr(default, "__name__", type(default).__name__)))


__all__ = ["Network", "check_module", "of_this_network"]
