"""The words of a command line: a preset, options and their values; what is wrong is named."""

import difflib
import typing
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from experiments.common.limits import flag, hints, number_kind, wanted
from vaejax.errors import wrong

__all__ = ["Words", "read"]


class Words(NamedTuple):
    """What a command line says.

    Args:
      preset: its name, or None.
      options: the words without it.
      given: the names of the options.
    """

    preset: str | None
    options: list[str]
    given: frozenset[str]


def read(presets: Mapping[str, Any], arguments: list[str], command: str) -> Words:
    """The preset, wherever it stands, and the options.

    Args:
      presets: configs by name.
      arguments: the words.
      command: the call before them, for messages.
    Raises:
      ValueError: for a word that is no preset, option or value of one; it names the first.
    """
    preset, options, given, at = None, [], set(), 0
    of = type(next(iter(presets.values())))
    while at < len(arguments):
        word = arguments[at]
        if not word.startswith("-") or _is_number(word):
            if word not in presets or preset is not None:
                raise _stray(word, preset, presets, command)
            preset, at = word, at + 1
            continue
        if word in ("-h", "--help"):
            return Words(preset, [word], frozenset())
        name = _option(of, word, command)
        end = at + 1
        if "=" not in word:
            end += _taken(of, name, arguments[at + 1 :], presets)
            _check_values(of, name, arguments[at + 1 : end])
        elif _is_flag(hints(of)[name]):
            raise wrong(flag(name), f"{word!r}", "no value", f"{flag(name)} or {_no(name)}")
        else:
            _check_values(of, name, [word.split("=", 1)[1]])
        options += arguments[at:end]
        given.add(name)
        at = end
    return Words(preset, options, frozenset(given))


def _stray(word: str, preset: str | None, presets: Mapping[str, Any], command: str) -> Exception:
    """The error for a word that stands where an option or a preset should."""
    if preset is not None:
        return wrong(command, repr(word), f"options after {preset!r}", "--help lists them")
    near = difflib.get_close_matches(word, presets, 1)
    fix = f"did you mean {near[0]!r}? " if near else ""
    fix += f"{command} PRESET --OPTION VALUE; --help lists the options"
    return wrong(command, repr(word), f"a preset, one of {', '.join(presets)}", fix)


def _option(of: type, word: str, command: str) -> str:
    """The name of the option that a word spells."""
    spelt = word.split("=", 1)[0].removeprefix("--").replace("-", "_")
    known = hints(of)
    if word.startswith("--") and spelt in known:
        return spelt
    negated = spelt.removeprefix("no_")
    if word.startswith("--no") and negated != spelt and _is_flag(known.get(negated)):
        return negated
    near = difflib.get_close_matches(spelt, known, 1)
    fix = f"did you mean {flag(near[0])}? " if near else ""
    raise wrong(command, f"the option {word}", "one of its own", f"{fix}--help lists them")


def _taken(of: type, name: str, rest: list[str], presets: Mapping[str, Any]) -> int:
    """How many of the words after an option are its values."""
    hint = hints(of)[name]
    if _is_flag(hint):
        return 0
    values = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
    inside = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple:
        return min(1, values)
    if Ellipsis not in inside:
        return min(len(inside), values)
    # A preset that stands behind a list is none of its values.
    fits = (i for i, word in enumerate(rest[:values]) if word in presets and not _fits(hint, word))
    return next(fits, values)


def _check_values(of: type, name: str, values: list[str]) -> None:
    """Raise for values that are not of the option's kind."""
    hint = hints(of)[name]
    if _is_flag(hint):
        return
    listed = typing.get_origin(hint) is tuple
    count = len(typing.get_args(hint)) if listed and Ellipsis not in typing.get_args(hint) else 1
    if len(values) < count and (not listed or count > 1):
        got = "no value" if not values else f"{len(values)} value"
        fix = f"{flag(name)} {' '.join(['VALUE'] * count)}"
        raise wrong(flag(name), got, f"{count}", fix)
    for value in values:
        if not _fits(hint, value):
            raise wrong(flag(name), repr(value), _kind(of, name), "--help says what it does")


def _fits(hint: Any, word: str) -> bool:
    """Whether a word can be a value of such an option, or one of its list."""
    if word == "None" and type(None) in typing.get_args(hint):
        return True
    kind, names = number_kind(hint), _names(hint)
    if kind is not None:
        try:
            kind(word)
        except ValueError:
            return False
    return word in names if names else True


def _kind(of: type, name: str) -> str:
    """What the values of an option are, in words."""
    names = _names(hints(of)[name])
    return f"one of {', '.join(names)}" if names else wanted(of, name)


def _names(hint: Any) -> tuple[str, ...]:
    """The names of which an option takes one, or some; () where it takes anything."""
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is Literal:
            return typing.get_args(part)
    return ()


def _is_flag(hint: Any) -> bool:
    return hint is bool


def _no(name: str) -> str:
    return flag(f"no_{name}")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
