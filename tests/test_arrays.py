"""What is taken for data: whatever holds numbers, and one line for the rest."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from vaejax import Batch
from vaejax.arrays import examples, numbers
from vaejax.batch import as_batch
from vaejax.errors import at_least, at_least_one, check_number, check_parameters, sizes

X = np.arange(6.0).reshape(3, 2)


class Tensor:
    """A tensor of another library, which may track gradients."""

    def __init__(self, values, tracked=False):
        self.values, self.tracked = np.asarray(values), tracked

    def detach(self):
        return Tensor(self.values)

    def __array__(self, dtype=None, copy=None):
        if self.tracked:
            raise RuntimeError("call detach() first")
        return self.values


class Frame:
    """Columns by name, as pandas and polars have them."""

    def __init__(self, **columns):
        self.data = {name: np.asarray(column) for name, column in columns.items()}
        self.columns = list(columns)

    def __getitem__(self, name):
        return self.data[name]

    def __len__(self):
        return len(self.data[self.columns[0]])

    def to_numpy(self):
        return np.column_stack(list(self.data.values()))


class Rows:
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X[i]


@pytest.mark.parametrize(
    "value",
    [
        X.tolist(),
        list(X),
        tuple(X.tolist()),
        X.astype(">f8"),
        Tensor(X),
        Tensor(X, tracked=True),
        [Tensor(row) for row in X],
        [jnp.asarray(row) for row in X],
        Frame(a=X[:, 0], b=X[:, 1]),
        np.asfortranarray(X),
    ],
)
def test_what_holds_numbers_is_an_array(value):
    found = numbers("fit: x", value)
    np.testing.assert_array_equal(found, X)
    assert found.dtype.isnative


def test_arrays_stay_what_they_are():
    for array in (X, X.astype(np.uint8), X > 2, jnp.asarray(X, jnp.bfloat16), jnp.zeros(())):
        assert numbers("fit: x", array) is array
    traced = jax.make_jaxpr(lambda x: as_batch(x).x)(X)
    assert len(traced.eqns) == 0


@pytest.mark.parametrize(
    "value, said",
    [
        (None, "got None.*one row for each example"),
        ("folder/file", "data.load"),
        (b"bytes", "data.load"),
        (X.astype(str), "U32.*x.astype"),
        (np.array([X, 2], object), "object.*one length"),
        (np.array(["a", "b"], object), "of object, .*np.unique"),
        (np.array(["a", None], object), "object with values missing.*pandas.factorize"),
        ([None, 1, 2], "a list of object with values missing.*by -1"),
        ([0, 1, float("nan"), None], "values missing.*v is None"),
        ([["a", "b"]], "U1"),
        ([[1.0], [1.0, 2.0]], "several lengths.*padded"),
        ([np.zeros(2), np.zeros(3)], "rows of 2 shapes"),
        (X.astype(complex), "real"),
        (X.astype("datetime64[s]"), "unit"),
        (scipy.sparse.coo_matrix(X), "x.toarray"),
        (types.SimpleNamespace(todense=lambda: X), "x.todense"),
        ((row for row in X), "join them"),
        (Rows(), "stack them"),
        (lambda x: x, "expected"),
        (jax.random.key(0), "a PRNG key"),
        (Frame(a=X[:, 0], town=["x", "y", "z"]), "'town' of <U1"),
        (Frame(a=X[:, 0], age=[1.0, np.nan, 2.0]), "NaN or infinity in column 'age'"),
    ],
)
def test_the_rest_is_refused_in_one_line(value, said):
    with pytest.raises((TypeError, ValueError), match=rf"^fit: x.*{said}") as caught:
        numbers("fit: x", value)
    assert "\n" not in str(caught.value)


def test_trees_hold_arrays_and_lists_are_rows():
    found = examples("fit: x", {"image": X.tolist(), "mask": (Tensor(X), X)})
    assert jax.tree.map(np.shape, found) == {"image": (3, 2), "mask": ((3, 2), (3, 2))}
    with pytest.raises(TypeError, match="parameters of a model, expected.*params, then data"):
        examples("fit: x", {"params": {"kernel": X}})
    with pytest.raises(ValueError, match="got nothing"):
        examples("fit: x", {})


def test_every_part_of_a_batch_is_converted_under_the_callers_name():
    batch = as_batch(
        Batch(X.tolist(), c=Frame(a=[1.0, 2, 3]), y=[0, 1, 2], weight=Tensor([1.0, 0, 1]))
    )
    assert [np.shape(part) for part in batch] == [(3, 2), (3, 1), (3,), (3,)]
    with pytest.raises(TypeError, match=r"population.fit: y: got an array of <U1"):
        as_batch(Batch(X, y=np.array(["a", "b", "c"])), "population.fit")
    with pytest.raises(ValueError, match=r"fit: x: got 3.5, expected examples \[n"):
        as_batch(3.5, "fit")


@pytest.mark.parametrize("value", [2.5, True, "2", None, [2], np.float32(2), X])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(TypeError, match="vae: latent: got .*, expected a whole number >= 1"):
        at_least_one("vae", latent=value)


def test_counts_of_any_integer_type_and_those_left_out_pass():
    at_least_one("vae", ("patience",), a=1, b=np.int8(3), c=jnp.asarray(2), patience=None)
    at_least(0, "fit", skip=0)
    jax.jit(lambda n: at_least_one("vae", n=n))(3)
    with pytest.raises(ValueError, match="fit: expected skip >= 0, got -3"):
        at_least(0, "fit", skip=-3)


@pytest.mark.parametrize("value", [0, (4, -1), (2.5,), "8", (True,), None, ()])
def test_sizes_are_whole_numbers_from_1_on(value):
    with pytest.raises(
        (TypeError, ValueError), match="head: shape: got .*, expected whole numbers"
    ):
        sizes("head: shape", value)
    assert sizes("head: shape", [np.int64(3), 2]) == (3, 2) and sizes("x", (), empty=True) == ()


@pytest.mark.parametrize("value", ["1", None, True, np.nan, np.inf, X, 0.0, -1.0])
def test_a_setting_is_one_finite_number(value):
    with pytest.raises((TypeError, ValueError), match="scale: got .*, expected one number above 0"):
        check_number("scale", value, above=0)


@pytest.mark.parametrize(
    "params", [None, "runs/1", {"a": "b"}, {"a": np.arange(3)}, {"a": object()}]
)
def test_parameters_are_arrays_of_floats(params):
    with pytest.raises(TypeError, match="fit: params: got .*expected parameters"):
        check_parameters("fit: params", params)
    check_parameters("fit: params", {"a": [jnp.zeros(2), 1.0, np.float16(2)], "b": None})
