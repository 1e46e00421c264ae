"""What the tests of autoencoders share."""

import jax
import pytest

from tests.families.autoencoders.shared import RELU, UNIT, X


@pytest.fixture(scope="session")
def params():
    return jax.jit(RELU.init)(jax.random.key(0), X[0])


@pytest.fixture(scope="session")
def unit_params():
    return jax.jit(UNIT.init)(jax.random.key(1), X[0])
