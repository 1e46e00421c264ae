"""What the tests of data share."""

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder of decoded copies, so that MNIST's test split is decoded once."""
    return tmp_path_factory.mktemp("cache")
