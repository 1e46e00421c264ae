"""Pages that are written when the site is built: the reference, and copies from elsewhere.

The reference has a page for each public module. Pages of the repository outside of docs/ are
copied, and links to them and in them lead to the copies.
"""

import base64
import importlib
import inspect
import json
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

import vaejax

ROOT = Path(__file__).resolve().parents[1]
COPIES = {
    "README.md": "docs/copies/readme.md",
    "CONTRIBUTING.md": "docs/copies/contributing.md",
    "experiments/README.md": "docs/copies/experiments.md",
    "experiments/benchmarks/README.md": "docs/copies/benchmarks.md",
}


def public_modules() -> list[str]:
    """Every module that a user may import: no part of its name begins with an underscore."""
    found = pkgutil.walk_packages(vaejax.__path__, "vaejax.")
    names = [module.name for module in found]
    return ["vaejax", *sorted(n for n in names if not any(p[0] == "_" for p in n.split(".")))]


def first_line(module: str) -> str:
    """The summary of a module, which the map shows."""
    doc = inspect.getdoc(importlib.import_module(module)) or ""
    return doc.split("\n\n")[0].replace("\n", " ")


def page(module: str) -> str:
    """The page of one module, in reStructuredText: what is at home there, then what is not."""
    loaded = importlib.import_module(module)
    own, values, elsewhere = [], [], []
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if inspect.ismodule(value):
            elsewhere.append((name, f":doc:`{value.__name__}`"))
        elif not documented(value):
            values.append((name, value))
        elif home(value, module) == f"{module}.{name}":
            own.append(name)
        else:
            elsewhere.append((name, f":py:obj:`{home(value, module)}`"))
    lines = [module, "=" * len(module), "", f".. automodule:: {module}"]
    lines += [f"   :members: {', '.join(own)}", ""] if own else [""]
    for name, value in values:
        lines += [f".. py:data:: {name}", f"   :module: {module}", f"   :value: {shown(value)}", ""]
    if elsewhere:
        lines += ["Also here", "---------", ""]
        lines += [f"- ``{module}.{name}``: {target}" for name, target in elsewhere]
    return "\n".join(lines) + "\n"


def documented(value: Any) -> bool:
    """Whether a value is a function or a class of the library."""
    return (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__[
        :6
    ] == "vaejax"


def shown(value: Any) -> str:
    """A constant or an alias of types, in one short line."""
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", " ".join(str(value).split()))
    return text if len(text) <= 200 else text[:200] + " ..."


def home(value: Any, module: str) -> str:
    """Where a function or a class is described: where it is from, or in the module that asks."""
    private = value.__module__.split(".")
    parts = [part for part in private if part[0] != "_"]
    public = ".".join(parts)
    name = value.__qualname__
    if name in getattr(importlib.import_module(public), "__all__", ()):
        return f"{public}.{name}"
    return f"{module}.{name}"


def relinked(text: str, written: str, shown: str) -> str:
    """A page's text with links that lead somewhere from the place where it is shown.

    Args:
      text: in Markdown.
      written: the page's path in the repository, to which its links are relative.
      shown: the path of the page that is built.
    """

    def link(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        if target.startswith("http"):
            return found[0]
        path = os.path.normpath(os.path.join(os.path.dirname(written), target))
        path = re.sub(r"^notebooks/", "docs/tutorials/notebooks/", COPIES.get(path, path))
        return f"]({os.path.relpath(path, os.path.dirname(shown))}{anchor})"

    return re.sub(r"\]\(([^)#\s]+)(#[\w-]+)?\)", link, text)


def copies() -> dict[str, str]:
    """The texts of the copied pages, by their paths."""
    return {to: relinked((ROOT / source).read_text(), source, to) for source, to in COPIES.items()}


def pictures() -> dict[str, bytes]:
    """The pictures of the notebooks as PNG, by their paths: `vae-8.png` is of cell 8."""
    found = {}
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for i, cell in enumerate(json.loads(notebook.read_text())["cells"]):
            for output in cell.get("outputs", ()):
                if png := output.get("data", {}).get("image/png"):
                    place = f"docs/copies/{notebook.stem}-{i}.png"
                    found[place] = base64.b64decode(png)
    return found
