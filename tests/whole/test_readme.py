"""What README and the documentation say is true: their code runs, commands and links exist."""

import ast
import contextlib
import importlib
import io
import re
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").rglob("*.md"))
DOCS = [page for page in DOCS if not {"_build", "copies", "notebooks"} & set(page.parts)]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "experiments").rglob("README.md"),
    *DOCS,
]
name_of = {page: page.relative_to(ROOT).as_posix() for page in PAGES}.get


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def settings():
    """What a snippet sets of JAX for the whole process is set back."""
    names = [
        name for name in jax.config.values if "compilation_cache" in name or "cache_min" in name
    ]
    before = {name: jax.config.values[name] for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def example():
    """README's example, after which the code of the pages goes on: its names, and what it said."""
    names, said = {}, io.StringIO()
    (snippet,) = blocks("python")
    with contextlib.redirect_stdout(said):
        exec(compile(snippet, "README.md", "exec"), names)
    return names, said.getvalue()


def test_the_example_of_readme_runs(example):
    names, said = example
    assert re.search(r"-log p\(x\) = \d\d\.\d nats per image, K = 100", said)
    assert names["log_px"].shape == (len(names["test"]),)


def runs_alone(page):
    return "start.txt" not in page.read_text()


def shapes(names):
    assert names["rebuilt"].shape == (10, 8, 8, 1)
    assert names["samples"].x.shape == (64, 8, 8, 1)


def resumed(names):
    np.testing.assert_array_equal(names["fitted"].history["epoch"], np.arange(1, 7))


def below_zero(names):
    assert -400 < names["elbo"] < 0


def logged(names):
    rows = names["file"].read_text().splitlines()
    assert len(rows) == 2 and '"eval/elbo"' in rows[0]


def figure(names):
    assert names["figure"].axes and names["pictures"].shape == (30, 8, 8, 1)


CHECKS = {
    "docs/how-to/use_a_model.md": shapes,
    "docs/how-to/long_runs.md": resumed,
    "docs/how-to/likelihood.md": below_zero,
    "docs/how-to/logging.md": logged,
    "docs/tutorials/first_steps.md": figure,
}
WITH_CODE = [page for page in DOCS if blocks("python", page.read_text())]


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, example):
    names = {} if runs_alone(page) else dict(example[0])
    for snippet in blocks("python", page.read_text()):
        exec(compile(snippet, name_of(page), "exec"), names)
    CHECKS.get(name_of(page), lambda names: None)(names)


def test_every_check_is_of_a_page_with_code():
    assert set(CHECKS) <= set(map(name_of, WITH_CODE))


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_code_of_other_packages_parses(page):
    for snippet in blocks("py", page.read_text()):
        ast.parse(snippet)


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_commands_name_extras_and_modules_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set()
    for page in PAGES:
        for extras in re.findall(r'"\.\[([\w,]+)\]"', page.read_text()):
            named |= set(extras.split(","))
        for module in re.findall(r"python -m ((?:experiments|vaejax)[\w.]*\w)", page.read_text()):
            if module == "experiments.NAME":
                continue
            place = ROOT / module.replace(".", "/")
            assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    assert {"experiments", "test", "prepare", "cuda13", "cuda12", "tpu", "docs"} <= named
    assert named <= set(project["optional-dependencies"])


def test_the_two_commands_come_first_and_stand_alone():
    first, second = blocks("sh")[:2]
    for command, extra, program in [
        (first, "experiments", "python -m experiments.vae"),
        (second, "test", "python -m pytest"),
    ]:
        assert command.count("\n") == 1
        assert f'pip install -e ".[{extra}]" && {program}' in command


def test_no_number_is_left_to_be_filled_in():
    for page in PAGES:
        for line in page.read_text().splitlines():
            cells = [cell.strip() for cell in line.split("|")] if "|" in line else [line]
            capitals = {cell for cell in cells if re.fullmatch(r"[A-Z]{4,}[A-Z_]*", cell)}
            assert capitals <= {"AUROC", "ELBO", "IWAE"}, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", page.read_text()):
        # The site's copies of the notebooks lie beside its tutorials.
        target = re.sub(r"^(?:(?:\.\./)?tutorials/)?notebooks/", f"{ROOT}/notebooks/", target)
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_links_into_the_experiments_name_a_section():
    sections = re.findall(r"^## (.*)", (ROOT / "experiments" / "README.md").read_text(), re.M)
    known = {section.lower().replace(" ", "-") for section in sections}
    assert set(re.findall(r"experiments/README\.md#([\w-]+)", README)) <= known


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "systems.md"], ids=name_of)
def test_the_tables_list_only_what_exists(page):
    import vaejax

    table = "\n".join(line for line in page.read_text().splitlines() if line.startswith("|"))
    for name in re.findall(r"`([a-z]+\.\w+)`", table):
        module, attribute = name.split(".")
        assert hasattr(getattr(vaejax, module, None), attribute) or name == "torch.compile", name
    for name, preset in re.findall(r"`([a-z]+)(?: (\w+))?`", table.replace("every run", "")):
        if (ROOT / "experiments" / f"{name}.py").exists():
            experiment = importlib.import_module(f"experiments.{name}")
            assert not preset or preset in experiment.PRESETS
