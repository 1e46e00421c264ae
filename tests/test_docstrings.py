"""Docstrings have one form: sections in order, every argument named, examples that run."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest

import vaejax

SECTIONS = ["Args", "Returns", "Raises", "Example", "References"]
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(vaejax.__path__, "vaejax.")
    if not any(part.startswith("_") for part in name.split("."))
)


def public(module):
    """The functions and classes that a module offers, each once: where its name is shortest."""
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if (inspect.isfunction(value) or inspect.isclass(value)) and not name.startswith("_"):
            home = value.__module__
            parts = [p for p in home.split(".") if not p.startswith("_")]
            if ".".join(parts) == module.__name__:
                yield name, value


def sections(doc):
    """The text of each section of a docstring, in the order in which they stand."""
    found = re.split(rf"(?m)^({'|'.join(SECTIONS)}):", inspect.cleandoc(doc))
    return dict(zip(found[1::2], found[2::2], strict=True))


def raises(function):
    """Whether the function itself, not one that it defines, has a statement that raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            todo += ast.iter_child_nodes(node)
    return False


def faults(name, function):
    """What the docstring of a function lacks."""
    doc = function.__doc__ or ""
    parts = sections(doc)
    signature = inspect.signature(function)
    wanted = [n for n in signature.parameters if n not in ("self", "cls")]
    if list(parts) != [s for s in SECTIONS if s in parts]:
        yield f"{name}: sections stand in another order than {SECTIONS}"
    if not re.match(r"[^\n]+[.:](\n|$)", inspect.cleandoc(doc) or "?"):
        yield f"{name}: the summary is no sentence on one line"
    if wanted and "Args" not in parts:
        yield f"{name}: no Args"
    for argument in wanted if "Args" in parts else ():
        if not re.search(rf"(?m)^\s+(\w+, )*{argument}(, \w+)*:", parts["Args"]):
            yield f"{name}: Args does not name {argument}"
    if signature.return_annotation not in (None, "None") and "Returns" not in parts:
        yield f"{name}: no Returns"
    if raises(inspect.unwrap(function)) and "Raises" not in parts:
        yield f"{name}: no Raises"


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_have_their_sections_and_name_every_argument(module):
    found = []
    for name, value in public(importlib.import_module(module)):
        if inspect.isfunction(value):
            found += faults(name, value)
        else:
            fields = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", ())
            doc = value.__doc__ or ""
            found += [f"{name}: no docstring"] * (not doc.strip())
            own = [f for f in fields if f not in ("parent", "name")]
            found += [f"{name}: {f} is not told" for f in own if not re.search(rf"\b{f}\b", doc)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_offers_is_listed(module):
    assert hasattr(importlib.import_module(module), "__all__")


def examples():
    finder = doctest.DocTestFinder(recurse=False)
    for name in MODULES:
        module = importlib.import_module(name)
        for found in [module, *(value for _, value in public(module))]:
            for example in finder.find(found, getattr(found, "__qualname__", name), globs={}):
                if example.examples:
                    yield pytest.param(example, id=f"{name}.{example.name}")


@pytest.mark.parametrize("example", list(examples()))
def test_examples_run_and_print_what_they_say(example):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)
