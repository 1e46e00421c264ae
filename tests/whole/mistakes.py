"""What people put in the place of each kind of argument, and the models it is tried on."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")

import numpy as np
import optax
import scipy.sparse
from flax import linen as nn
from flax import nnx

from vaejax import (
    Batch,
    autoencoder,
    autoregressive,
    causal,
    data,
    distributions,
    heads,
    networks,
    objectives,
    quantized,
    sources,
    train,
    weights,
)


def fresh() -> Any:
    """A key that nobody has used."""
    return jax.random.key(0)


KEYS = jax.random.split(jax.random.key(1), 2)
X = np.random.default_rng(0).random((12, 4)).astype(np.float32)
Y = np.arange(12) % 3
FOLDER = pathlib.Path(tempfile.mkdtemp())


def parameters(init: Callable[..., Any], *example: Any) -> Any:
    """Some parameters of a model, of the shapes that its init would give; nothing is compiled."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype),
        jax.eval_shape(lambda: init(fresh(), *example)),
    )


def dense(head: Any) -> Any:
    return nn.Sequential([networks.MLP((5,)), head])


def vae(size: int = 4, latent: int = 2, hidden: int = 5) -> Any:
    return autoencoder(
        nn.Sequential([networks.MLP((hidden,)), heads.Normal(latent)]),
        nn.Sequential([networks.MLP((hidden,)), heads.FixedNormal(size, 0.5)]),
        distributions.Normal(jnp.zeros(latent), jnp.ones(latent)),
    )


MODEL = vae()
PARAMS = parameters(MODEL.init, X[0])
ELBO = objectives.elbo(MODEL)
POINTS = autoencoder(dense(heads.Code(2)), dense(heads.FixedNormal(4, 0.5)))
POINTS_PARAMS = parameters(POINTS.init, X[0])
OTHERS = {
    "of a wider model": parameters(vae(hidden=7).init, X[0]),
    "of a model with a larger code": parameters(vae(latent=3).init, X[0]),
    "of a model of other data": parameters(vae(size=6).init, np.zeros(6, np.float32)),
    "of a model with other layers": parameters(
        autoencoder(heads.Normal(2), heads.FixedNormal(4, 0.5)).init, X[0]
    ),
}
STATE = train.make_step(ELBO, optax.adam(1e-3))[0](fresh(), PARAMS)
FITTED = train.Fitted(STATE, STATE, {"loss": np.zeros(1)}, "epochs")
SOURCE = sources.in_memory(Batch(X))
MADE = autoregressive.Causal(causal.MADE((4,), (8,)), (4,))
MADE_PARAMS = parameters(MADE.init)
VQ = quantized.quantize(
    autoencoder(dense(heads.Code((2, 2))), dense(heads.FixedNormal(4, 0.5))), entries=3
)
VQ_PARAMS = parameters(VQ.init, X[0])
MIXTURE = distributions.Mixture(
    jnp.zeros(2), distributions.Normal(jnp.asarray(X[:2]), jnp.ones((2, 4)))
)
NORMAL = distributions.Normal(jnp.zeros(3), jnp.ones(3))
FIT = {"key": ("key", fresh()), "epochs": ("count", 1), "batch_size": ("count", 4)}
weights.save(FOLDER / "w.safetensors", PARAMS)
np.savez(FOLDER / "x.npz", x=X, y=Y)


class Call(NamedTuple):
    """A right call: a function, and each argument with what it is of."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, tuple[str, Any]]


class Wrong(NamedTuple):
    """What stands in the place of an argument: `sure` where it cannot be meant."""

    label: str
    value: Any
    sure: bool = True


class HasArray:
    """A tensor of another library, as numpy sees it."""

    def __init__(self, values: Any):
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.values, dtype)


class Loader:
    """What iterates over batches, as torch's DataLoader."""

    def __iter__(self) -> Any:
        return iter([(X[:4], Y[:4])])

    def __len__(self) -> int:
        return 1


class Rows:
    """What has rows by their number, as torch's Dataset."""

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]

    def __len__(self) -> int:
        return len(X)


class Right(NamedTuple):
    """The right value of an argument in another form: it has to be taken."""

    label: str
    form: Callable[[Any], Any]


def maybe(label: str, value: Any) -> Wrong:
    return Wrong(label, value, sure=False)


def meant(kind: str, *labels: str) -> list[Any]:
    """A kind of which some values have a clear meaning after all."""
    return [
        w._replace(sure=False) if isinstance(w, Wrong) and w.label in labels else w
        for w in KINDS[kind]
    ]


def numpys(value: Any) -> Any:
    return jax.tree.map(np.asarray, value)


ANYTHING = [
    Wrong("None", None),
    Wrong("a string", "elbo"),
    Wrong("2.5", 2.5),
    Wrong("an object", object()),
    Wrong("a function", lambda x: x),
    Wrong("a dictionary", {"a": 1}),
    Wrong("a model", MODEL),
]
KINDS: dict[str, list[Wrong]] = {
    "data": [
        *ANYTHING,
        Wrong("empty", X[:0]),
        Wrong("a list of nothing", []),
        Wrong("one example", X[0]),
        Wrong("strings", X.astype(str)),
        Wrong("objects", np.array([object()] * 12)),
        Wrong("ragged rows", [[1.0, 2.0], [1.0]]),
        Wrong("complex", X.astype(complex)),
        Wrong("dates", np.zeros((12, 4), "datetime64[s]")),
        Wrong("another size", np.tile(X, 2)),
        Wrong("one more axis", np.tile(X[:, None], (1, 3, 1))),
        Wrong("keys", KEYS),
        Wrong("a path", pathlib.Path("images")),
        Wrong("a loader", Loader()),
        Wrong("a data set of rows", Rows()),
        Wrong("a generator", (x for x in X)),
        Wrong("sparse", scipy.sparse.csr_matrix(X)),
        Wrong("parameters", PARAMS),
        Wrong("fitted", FITTED),
        Wrong("NaN", np.where(X > 0.9, np.nan, X)),
        Wrong("infinite", np.where(X > 0.9, np.inf, X)),
        Wrong("more labels", Batch(X, y=np.arange(7))),
        Wrong("fewer conditions", Batch(X, c=X[:5])),
        Wrong("labels as conditions", Batch(X, c=Y)),
        Wrong("strings as conditions", Batch(X, c=Y.astype(str))),
        Wrong("negative weights", Batch(X, weight=-np.ones(12, np.float32))),
        Wrong("weights of no number", Batch(X, weight="equal")),
        Right("list of lists", lambda x: x.tolist()),
        Right("list of rows", list),
        Right("big-endian", lambda x: x.astype(x.dtype.newbyteorder(">"))),
        Right("float64", lambda x: x.astype(float) / (255 if x.dtype == np.uint8 else 1)),
        Right("another library's", HasArray),
        Right("rows of another library", lambda x: [HasArray(row) for row in x]),
        Right("jax", jnp.asarray),
        maybe("zeros", np.zeros_like(X)),
        maybe("integers", (X * 5).astype(int)),
    ],
    "params": [
        *ANYTHING,
        *(Wrong(f"params {label}", value) for label, value in OTHERS.items()),
        Wrong("fitted", FITTED),
        Wrong("a state", STATE),
        Wrong("empty", {}),
        Wrong("data", X),
        Wrong("a part", PARAMS["encoder"]),
        Wrong("a list", jax.tree.leaves(PARAMS)),
        Wrong("params of integers", jax.tree.map(lambda p: p.astype(int), PARAMS)),
        Right("params in numpy", numpys),
    ],
    "key": [
        *ANYTHING,
        Wrong("seed", 0),
        Wrong("several keys", KEYS),
        Wrong("data", X),
        Right("older key", lambda key: jax.random.key_data(jax.random.clone(key))),
    ],
    "count": [
        *ANYTHING,
        Wrong("0", 0),
        Wrong("-3", -3),
        Wrong("1.5", 1.5),
        Wrong("True", True),
        Wrong("a number as a string", "3"),
        Wrong("NaN", float("nan")),
        Wrong("infinity", float("inf")),
        Wrong("a list", [2]),
        Right("numpy's", np.int64),
    ],
    "number": [
        *ANYTHING[:2],
        *ANYTHING[3:],
        Wrong("NaN", float("nan")),
        Wrong("a string", "0.5"),
        Wrong("data", X),
        Right("numpy's", np.float32),
    ],
    "positive": [
        Wrong("-1", -1.0),
        Wrong("0", 0.0),
        Wrong("NaN", float("nan")),
        *ANYTHING[:2],
        *ANYTHING[3:],
    ],
    "model": [
        *ANYTHING[:-1],
        Wrong("parameters", PARAMS),
        Wrong("a network", dense(heads.Normal(2))),
        Wrong("the part of a model", MODEL.encode),
        Wrong("a loss", ELBO),
        Wrong("fitted", FITTED),
    ],
    "module": [
        *ANYTHING,
        Wrong("an NNX class", nnx.Linear),
        Wrong("a class", networks.MLP),
        Wrong("parameters", PARAMS),
        Wrong("no head", networks.MLP((3,))),
        Wrong("a distribution", NORMAL),
    ],
    "loss": [
        *ANYTHING,
        Wrong("no metrics", lambda params, key, batch, step: jnp.mean(batch.x)),
        Wrong("a value per example", lambda params, key, batch, step: (jnp.sum(batch.x, 1), {})),
        Wrong("metrics of examples", lambda p, k, b, s: (jnp.mean(b.x), {"each": b.x[:, 0]})),
        Wrong("metrics in a list", lambda p, k, b, s: (jnp.mean(b.x), [1.0])),
        Wrong("two arguments", lambda params, batch: jnp.mean(batch)),
        Wrong("the maker of a loss", objectives.elbo),
    ],
    "optimizer": [*ANYTHING, Wrong("a maker", optax.adam), Wrong("a rate", 1e-3)],
    "transform": [
        *ANYTHING[1:],
        Wrong("its result", data.scale(fresh(), X)),
        Wrong("one argument", jnp.sqrt),
        maybe("none", None),
    ],
    "labels": [
        *ANYTHING,
        Wrong("floats", Y + 0.5),
        Wrong("strings", Y.astype(str)),
        Wrong("fewer", Y[:5]),
        Wrong("one-hot rows", np.eye(3)[Y]),
        Wrong("negative", Y - 2),
        Right("a list", lambda y: y.tolist()),
        Right("another library's", HasArray),
    ],
    "path": [
        *ANYTHING[:1],
        *ANYTHING[2:],
        Wrong("a missing file", str(FOLDER / "missing")),
        Wrong("a folder", FOLDER),
        Wrong("nothing", ""),
        Wrong("bytes", b"x"),
    ],
    "split": [
        *ANYTHING,
        Wrong("nothing", ""),
        Wrong("unknown", "train[:"),
        Wrong("empty", "all[5:5]"),
    ],
    "text": [
        *ANYTHING[:1],
        *ANYTHING[2:],
        Wrong("bytes", b"abc"),
        Wrong("nothing", ""),
        Wrong("data", X),
    ],
    "shape": [
        *ANYTHING,
        Wrong("0", 0),
        Wrong("-3", (-3,)),
        Wrong("(0,)", (0,)),
        Wrong("floats", (2.5,)),
        Wrong("a size as a string", "4"),
        Wrong("True", True),
        Right("a list", lambda shape: [*np.atleast_1d(shape).tolist()]),
    ],
    "widths": [
        *ANYTHING,
        Wrong("one number", 5),
        Wrong("0", (0,)),
        Wrong("-3", (-3, 4)),
        Wrong("floats", (2.5,)),
        Wrong("strings", ("5",)),
        Right("a list", list),
    ],
    "rows": [*ANYTHING, Wrong("empty", {}), Wrong("strings", ["a", "b"])],
    "distribution": [*ANYTHING, Wrong("an array", X), Wrong("a class", distributions.Normal)],
    "function": [w for w in ANYTHING if w.label != "a function"],
    "codes": [
        *ANYTHING,
        Wrong("NaN", np.full((12, 2), np.nan)),
        Wrong("strings", np.full((12, 2), "a")),
        Wrong("empty", X[:0]),
        Wrong("no axis", np.float32(1)),
        Right("a list", lambda x: np.asarray(x).tolist()),
    ],
}
KINDS |= {
    # Of what says nothing of the shape of an example.
    "table": meant("data", "another size", "one more axis", "labels as conditions"),
    "array": meant("data", "another size", "one more axis", "NaN", "infinite"),
    # A loss is such a function too.
    "batch": meant("data", "NaN", "infinite"),
    "index": meant("labels", "fewer"),
    "hook": meant("function", "None"),
    "some widths": meant("widths", "one number"),
    "sequences": [
        *(
            w
            for w in meant(
                "data", "one more axis", "another size", "NaN", "infinite", "ragged rows"
            )
            if isinstance(w, Wrong)
        ),
        Right("a tuple", tuple),
    ],
    # What a pure function gives for NaN is NaN, which training and measures report.
    "event": meant("codes", "NaN"),
    # A network without parameters yet takes any shape; so does what is done to single numbers.
    "example": meant("codes", "NaN", "no axis", "2.5", "empty", "a dictionary"),
    # JAX takes the numbers of a list for so many parameters.
    "field": [w for w in meant("codes", "NaN", "no axis", "2.5") if w.label != "a list"],
    "factors": meant("labels", "one-hot rows"),
    "sequence": meant("labels", "one-hot rows", "floats", "negative"),
    # What is saved or called by itself is of any model; a network by hand may count in integers.
    "tree": meant("params", *(f"params {label}" for label in OTHERS), "a part", "a list", "empty"),
    "any params": meant("params", "params of integers"),
    "keys": [w for w in KINDS["key"] if w.label not in ("several keys", "older key")],
    "no key": meant("key", *(w.label for w in KINDS["key"])),
    "count or none": meant("count", "None"),
    "schedule": meant("number", "a function"),
    "pure loss": meant("loss", "metrics of examples"),  # a scan stacks metrics of any shape
    "share": [*meant("positive", "0"), Wrong("2", 2.0)],
    "values": meant("rows", "strings"),
    "all texts": [w for w in KINDS["text"] if w.label != "a dictionary"],  # of its keys
    "texts": [w for w in KINDS["rows"] if w.label != "strings"] + [Wrong("numbers", [1, 2])],
}
