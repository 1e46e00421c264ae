"""What the tests of autoencoders share."""

import jax
import numpy as np
import pytest

from tests.families.autoencoders.levels import CLASSIFY, DEEP, LEVELS, pretrain
from tests.families.autoencoders.shared import RELU, UNIT, X
from vaejax.types import Batch


@pytest.fixture(scope="session")
def params():
    return jax.jit(RELU.init)(jax.random.key(0), X[0])


@pytest.fixture(scope="session")
def unit_params():
    return jax.jit(UNIT.init)(jax.random.key(1), X[0])


@pytest.fixture(scope="session")
def clusters():
    """Three classes of 8 grey values around three corners, far apart: x `[120, 8]`, y `[120]`."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    corners = np.array([[0.9] * 4 + [0.1] * 4, [0.1] * 4 + [0.9] * 4, [0.9, 0.1] * 4])
    x = np.clip(corners[y] + 0.08 * rng.normal(size=(120, 8)), 0, 1)
    return Batch(x.astype(np.float32), y=y.astype(np.int32))


@pytest.fixture(scope="session")
def deep_params(clusters):
    """Of the stack, as they are drawn."""
    return DEEP.init(jax.random.key(0), clusters.x[0])


@pytest.fixture(scope="session")
def pretrained(clusters):
    return pretrain(LEVELS, jax.random.key(0), clusters, steps=300)


@pytest.fixture(scope="session")
def start(clusters):
    return CLASSIFY.init(jax.random.key(1), clusters.x[0])
