"""Fixtures of the tests of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import runs
from vaejax import sources
from vaejax.batch import as_batch


@pytest.fixture(scope="session")
def params():
    """Parameters of the small model."""
    return runs.MODEL.init(jax.random.key(7), jnp.zeros((4, 3)))


@pytest.fixture(scope="session")
def whole():
    """The run that the tests of resuming compare with: 4 epochs, nothing in its way."""
    return runs.quiet_fit(evaluate=runs.size_of_mean)


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory):
    """The images as a Source whose rows are read from a file."""
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, runs.IMAGES)
    return sources.in_memory(as_batch(np.load(path, mmap_mode="r")))
