"""The library's docstrings as reStructuredText: tables, examples and bars as they are written.

The docstrings are plain text with Markdown's tables and single backticks, for readers of the source
and of `help`. Sphinx reads another markup. What differs is turned here, before napoleon reads the
sections.
"""

import re

ITEM = re.compile(r"\s*(- |\d+\. )")


def indent(line: str) -> int:
    """How far a line is indented."""
    return len(line) - len(line.lstrip())


def escaped(line: str) -> str:
    """A line of prose, whose bars, stars and trailing underscores mean themselves."""
    line = re.sub(r"(: |^\s*)([A-Za-z])\.$", r"\1\2\\.", line)  # "particles: K." is no list
    parts = re.split(r"(`[^`]*`)", line)
    for i in range(0, len(parts), 2):
        parts[i] = parts[i].replace("|", r"\|")
        parts[i] = re.sub(r"(?<=\w)_(?![\w`])", r"\\_", parts[i])
        parts[i] = re.sub(r"(?<!\*)\*(?!\*)", r"\\*", parts[i])
    return "".join(parts)


def table(rows: list[str]) -> list[str]:
    """The rows of a table of Markdown as a list-table."""
    out = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        cells = row.strip()[2:-2].split(" | ")
        for i, cell in enumerate(cells):
            text = escaped(cell.strip().replace(r"\|", "|"))
            out.append(("   * - " if i == 0 else "     - ") + text)
    return [*out, ""]


def converted(lines: list[str]) -> list[str]:
    """A docstring in reStructuredText."""
    out: list[str] = []
    i, section = 0, 0
    while i < len(lines):
        line = lines[i]
        previous = next((text for text in reversed(out) if text.strip()), "")
        if re.match(r"(Args|Returns|Raises|Example|References):$", line):
            section = 2
            if line == "Example:":  # doctests are as they are
                end = next(
                    (j for j in range(i + 1, len(lines)) if lines[j] and not indent(lines[j])),
                    len(lines),
                )
                out += lines[i:end]
                i = end
                continue
            out.append(line)
        elif line.startswith("| ") and i + 1 < len(lines) and lines[i + 1].startswith("| -"):
            end = next(
                (j for j in range(i, len(lines)) if not lines[j].startswith("|")), len(lines)
            )
            out += table(lines[i:end])
            i = end
            continue
        elif section == 0 and indent(line) >= 4 and not (out and out[-1].strip()):
            end = next(
                (j for j in range(i, len(lines)) if lines[j].strip() and indent(lines[j]) < 4),
                len(lines),
            )
            out += [".. code-block:: python", ""] if python(lines[i:end]) else ["::", ""]
            out += lines[i:end]
            i = end
            continue
        elif ITEM.match(line) and previous and not ITEM.match(previous) and out[-1].strip():
            within = indent(previous) > indent(line)  # the end of an item's text
            out += [escaped(line)] if within else ["", escaped(line)]
        elif out and out[-1].strip() and after_list(out, line):
            out += ["", escaped(line)]
        else:
            out.append(escaped(line))
        i += 1
    return out


def after_list(out: list[str], line: str) -> bool:
    """Whether a line goes on with the text above the list that the lines before it are."""
    if not line.strip() or ITEM.match(line):
        return False
    for text in reversed(out):
        if not text.strip():
            return False
        if ITEM.match(text):
            return indent(line) <= indent(text)
    return False


def python(lines: list[str]) -> bool:
    """Whether an indented block is Python and not a formula."""
    text = "\n".join(line[4:] for line in lines)
    try:
        compile(text, "docstring", "exec")
    except SyntaxError:
        return False
    return True
