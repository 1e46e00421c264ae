"""The one shape of the library's error messages: where, got, expected, and what mends it."""

from typing import Any


def wrong(
    where: str, got: Any, expected: Any, fix: str, kind: type[Exception] = ValueError
) -> Exception:
    """An error of `kind` for the function and argument `where`, to be raised by the caller."""
    return kind(f"{where}: got {got}, expected {expected}; {fix}")


def at_least_one(function: str, **counts: int | None) -> None:
    """Raise ValueError naming the first of the counts that is below 1; None is "not given"."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{function}: expected {name} >= 1, got {value}")
