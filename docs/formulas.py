"""Formulas in the part of LaTeX that docutils turns into MathML."""

import re


def prepared(text: str) -> str:
    """The same formula without sizes of brackets, and with labels under their braces.

    Args:
      text: a formula in LaTeX.
    """
    text = re.sub(r"\\[bB]igg?(?![a-z])", "", text).replace(r"\dots", r"\ldots")
    return labelled(text)


def labelled(text: str) -> str:
    r"""`\underbrace{a}_{b}` as `\underset{b}{\underbrace{a}}`, everywhere in a formula."""
    start = text.find(r"\underbrace{")
    if start < 0:
        return text
    end = closed(text, start + len(r"\underbrace"))
    if not text.startswith("_{", end):
        return text[:end] + labelled(text[end:])
    stop = closed(text, end + 1)
    brace = rf"\underset{text[end + 1 : stop]}{{{text[start:end]}}}"
    return text[:start] + brace + labelled(text[stop:])


def closed(text: str, start: int) -> int:
    """Where the group that a brace opens has ended."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    raise ValueError(f"a brace is not closed in {text!r}")
