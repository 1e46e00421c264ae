"""The base class of the library's Linen modules."""

import inspect
from typing import Any, Protocol

from flax import linen as nn


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


class _Name(str):
    """Prints without quotes."""

    __repr__ = str.__str__


def _by_name(argument: inspect.Parameter) -> inspect.Parameter:
    """The argument, with a function that is its default shown by name, without an address."""
    default = argument.default
    if not callable(default) or default is argument.empty:
        return argument
    return argument.replace(default=_Name(getattr(default, "__name__", type(default).__name__)))
