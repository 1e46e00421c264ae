"""What an option may be: checked before anything is read, made or trained."""

import math
import typing
from collections import Counter
from dataclasses import MISSING, fields
from numbers import Integral, Real
from typing import Any

from vaejax.errors import wrong

__all__ = ["check", "check_batch", "check_number", "flag", "hints", "number_kind", "wanted"]

MAY_BE_ZERO = {"seed", "profile", "order", "warmup_epochs", "decay_epochs", "classes"}
"""The whole numbers of which 0 means something: none, never, the first."""

ABOVE_ZERO = {"scale", "spacing", "width", "share"}
"""The numbers that 0 would make nonsense of; so it would of step sizes, which are called rates."""

SHARES = {"dropout", "word_dropout", "masked", "momentum", "nu", "share", "ema"}
"""The numbers that are probabilities or parts of a whole."""

LAYERS = {"hidden", "iaf_hidden", "critic", "features"}
"""The lists of widths of layers, which may repeat one."""

MAY_BE_EMPTY = {"hidden", "iaf_hidden", "critic"}
"""The lists that may be empty, beside those that are so by default."""

WIDTHS = LAYERS | {
    *("latent", "code", "small", "large", "dimensions", "units", "atoms", "entries", "components"),
    *("prior_features", "size", "window", "length", "classes"),
}
"""The whole numbers that are the length of an axis of parameters or of an example."""

MADE = {"examples", "points", "sample", "chains", "positions", "scales", "rotations"}
"""The whole numbers that say how much data is made, or held in memory at once."""

LARGEST = 2**31 - 1
LARGEST_WIDTH = 2**20  # a layer of 1000 units takes 4 GB beside one of so many
LARGEST_DATA = 2**24
LARGEST_SEED = 2**32 - 1  # JAX's keys take 32 bits: a larger seed would give the key of a smaller


def check(config: Any) -> None:
    """Raise unless every option of a config is one that can be meant.

    Args:
      config: a dataclass of options.
    Raises:
      ValueError: naming the first option that is not, as it is spelt on the command line.
    """
    for name, hint in hints(type(config)).items():
        value = getattr(config, name)
        parts = value if isinstance(value, tuple) else () if value is None else (value,)
        if number_kind(hint) is not None:
            for part in parts:
                check_number(type(config), name, part)
        if isinstance(value, tuple) and Ellipsis in typing.get_args(hint):
            _check_list(type(config), name, value)
    if hasattr(config, "seeds"):  # the last seed, too
        check_number(type(config), "seed", config.seed + config.seeds - 1)


def check_batch(config: Any, examples: int) -> None:
    """Raise unless there are examples enough for a batch.

    Args:
      config: with `batch_size`.
      examples: to train on.
    Raises:
      ValueError: where there are fewer.
    """
    if config.batch_size > examples:
        expected = f"1 to {examples}, the examples to train on"
        raise wrong("--batch-size", config.batch_size, expected, f"--batch-size {max(1, examples)}")


def check_number(of: type, name: str, value: Any) -> None:
    """Raise unless a number can be meant for an option of the config class `of`.

    Args:
      of: the class of the config.
      name: of the option, one of whole numbers or of numbers, or of a list of such.
      value: of the option, or of one entry in its list.
    Raises:
      ValueError: for anything else.
    """
    if isinstance(value, Integral) and int(value) > (most := _largest(name)):
        expected = f"a whole number from {int(name not in MAY_BE_ZERO)} to {most}"
        raise _refused(of, name, repr(value), expected)
    if not _possible(of, name, value):
        raise _refused(of, name, repr(value), wanted(of, name))


def wanted(of: type, name: str) -> str:
    """What an option of numbers has to be, in words."""
    if number_kind(hints(of)[name]) is int:
        most = f"0 to {LARGEST_SEED}" if name == "seed" else "0 up"
        return f"a whole number from {most if name in MAY_BE_ZERO else '1 up'}"
    if name in SHARES:
        return "a share above 0 and below 1" if name in ABOVE_ZERO else "a share in [0, 1)"
    return "a number above 0" if _above_zero(name) else "a number from 0 up"


def flag(name: str) -> str:
    """An option as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def hints(of: type) -> dict[str, Any]:
    """The types of the options of a config class, by their names."""
    found = typing.get_type_hints(of)
    return {field.name: found[field.name] for field in fields(of)}


def number_kind(hint: Any) -> type | None:
    """int or float for an option that holds such numbers, one or a list of them; else None."""
    inside = typing.get_args(hint) or (hint,)
    return next((kind for kind in (int, float) if kind in inside), None)


def _check_list(of: type, name: str, values: tuple[Any, ...]) -> None:
    if not values and name not in MAY_BE_EMPTY and _default(of, name) != ():
        raise _refused(of, name, "nothing", "one value or more")
    if name not in LAYERS and name != "sweep" and len(set(values)) < len(values):
        twice = Counter(values).most_common(1)[0][0]
        raise _refused(of, name, f"{twice} twice", "every value once")


def _possible(of: type, name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if number_kind(hints(of)[name]) is int:
        return isinstance(value, Integral) and int(value) >= int(name not in MAY_BE_ZERO)
    if not isinstance(value, Real) or not math.isfinite(value):
        return False
    if name in SHARES and float(value) >= 1:
        return False
    return float(value) > 0 or (value == 0 and not _above_zero(name))


def _largest(name: str) -> int:
    """The largest whole number that an option may be."""
    if name == "seed":
        return LARGEST_SEED
    return LARGEST_WIDTH if name in WIDTHS else LARGEST_DATA if name in MADE else LARGEST


def _above_zero(name: str) -> bool:
    return name in ABOVE_ZERO or name.rsplit("_", 1)[-1] in ("rate", "rates")


def _refused(of: type, name: str, got: str, expected: str) -> Exception:
    default = _default(of, name)
    if default is MISSING or default is None or default == ():
        fix = "leave it out for the default"
    else:
        values = default if isinstance(default, tuple) else (default,)
        fix = f"{flag(name)} {' '.join(map(str, values))} is the default"
    return wrong(flag(name), got, expected, fix)


def _default(of: type, name: str) -> Any:
    return next(field.default for field in fields(of) if field.name == name)
