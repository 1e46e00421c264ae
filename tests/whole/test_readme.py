"""What the README says is true: its snippets run, its commands and links exist."""

import importlib
import re
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


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


@pytest.mark.usefixtures("settings")
def test_every_snippet_runs_in_order(capsys):
    namespace = {}
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), namespace)
    assert re.search(r"-log p\(x\) = \d\d\.\d nats per image, K = 100", capsys.readouterr().out)
    assert namespace["rebuilt"].shape == (10, 8, 8, 1)
    assert namespace["samples"].x.shape == (64, 8, 8, 1)
    np.testing.assert_array_equal(namespace["fitted"].history["epoch"], np.arange(1, 7))


def test_commands_name_extras_and_modules_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r'"\.\[(\w+)\]"', README))
    assert {"experiments", "test", "prepare", "cuda", "tpu"} <= extras
    assert extras <= set(project["optional-dependencies"])
    for module in re.findall(r"python -m ((?:experiments|vaejax)[\w.]*)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists()


def test_the_two_commands_come_first_and_stand_alone():
    first, second = blocks("sh")[:2]
    for command, extra, program in [
        (first, "experiments", "python -m experiments.vae"),
        (second, "test", "python -m pytest"),
    ]:
        assert command.count("\n") == 1
        assert f'pip install -e ".[{extra}]" && {program}' in command


def test_no_number_is_left_to_be_filled_in():
    for page in [ROOT / "README.md", *(ROOT / "experiments").rglob("README.md")]:
        for line in page.read_text().splitlines():
            cells = [cell.strip() for cell in line.split("|")] if "|" in line else [line]
            capitals = {cell for cell in cells if re.fullmatch(r"[A-Z]{4,}[A-Z_]*", cell)}
            assert capitals <= {"AUROC", "ELBO", "IWAE"}, line


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "experiments").rglob("README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_table_lists_only_what_exists():
    import vaejax

    table = README.split("## What there is")[1].split("##")[0]
    for name in re.findall(
        r"`([a-z]+\.\w+)`",
        table,
    ):
        module, attribute = name.split(".")
        assert hasattr(getattr(vaejax, module), attribute)
    for name, preset in re.findall(r"`([a-z]+)(?: (\w+))?`", table.replace("every run", "")):
        if (ROOT / "experiments" / f"{name}.py").exists():
            experiment = importlib.import_module(f"experiments.{name}")
            assert not preset or preset in experiment.PRESETS
