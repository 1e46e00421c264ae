"""Strict settings for every test: no broadcasting of ranks, no key used twice, no warning."""

import gc
import os
import pathlib

# Most of a test's time is compilation of programs that run once: a third of it without optimising,
# a third of that without MLIR's emitters of fusions and without cutting each program into parts.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# A tenth of tracing to compiling is spent on where each operation was written, which no test reads.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
if "TFDS_DATA_DIR" not in os.environ and (SHARED / "tfds").is_dir():
    os.environ["TFDS_DATA_DIR"] = str(SHARED / "tfds")

jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


# Programs that were compiled once are read from here, also by the next run of the suite.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

WHOLE = ("experiments", "whole")  # folders whose tests are all of the kind `whole`
MOST_MAPS = 30_000  # of some 65,000 that Linux grants a process; every compiled program holds some


def pytest_ignore_collect(collection_path, config):
    """Leave out, before it is imported, what the default kinds do not run."""
    by_default = config.option.markexpr == "not statistics and not whole"
    if by_default and collection_path.parent == ROOT / "tests" and collection_path.name in WHOLE:
        return True
    return None  # pytest decides


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what lies in the folders of `whole`; the longest files come first."""
    for item in items:
        if item.path.relative_to(ROOT / "tests").parts[0] in WHOLE:
            item.add_marker(pytest.mark.whole)
    items.sort(key=place)


def place(item):
    """The longest files first; side by side the tests of a recipe, which look at the same runs.

    So that these tests fall to one process, which runs each preset once.
    """
    first = ["test_notebooks.py", "test_readme.py", "test_kills.py", "test_zoo.py"]
    first += ["test_recipes.py", "test_devices.py"]
    name, recipe = item.path.name, ""
    if item.path.parent.name == "experiments":
        own = {"experiments": "vae"}.get(stem := item.path.stem.removeprefix("test_"), stem)
        recipe = item.callspec.params.get("recipe", own) if hasattr(item, "callspec") else own
        name = "test_recipes.py"
    return (first.index(name) if name in first else 9, recipe)


def pytest_collection_finish():
    """What was imported stays: the collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Programs are kept for the next file, until they hold too many memory maps."""
    yield
    drop_programs()


def drop_programs():
    """Where compiled programs hold too many memory maps, none of them is kept."""
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Double precision for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def optimised(function, *args):
    """A program that runs for longer than it takes to compile well, against the flags above."""
    options = {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
        "xla_cpu_use_fusion_emitters": True,
    }
    return jax.jit(function).lower(*args).compile(compiler_options=options)(*args)


@pytest.fixture
def key():
    return jax.random.key(0)


def is_prepared(name: str) -> bool:
    """Whether a TFDS data set lies ready under TFDS_DATA_DIR."""
    return (
        pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser() / name
    ).is_dir()


@pytest.fixture
def mnist_prepared():
    if not is_prepared("mnist"):
        pytest.skip(
            "left out: MNIST is not prepared under TFDS_DATA_DIR (see README, Installation)"
        )
