"""Small right calls of the public functions, and what people put in the place of each argument."""

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
    annealing,
    anomaly,
    autoencoder,
    autoencoders,
    autoregressive,
    bounds,
    causal,
    checkpoint,
    conditional,
    contraction,
    corruption,
    data,
    decomposition,
    diagnostics,
    disentangle,
    disentanglement,
    distributions,
    draw,
    evaluate,
    exact,
    feed,
    flows,
    generate,
    heads,
    inference,
    interpolate,
    linear,
    memory,
    mixtures,
    networks,
    objectives,
    plot,
    population,
    portable,
    posteriors,
    precision,
    priors,
    quantized,
    reconstruct,
    recurrent,
    representation,
    semisupervised,
    sources,
    sparsity,
    sprites,
    text,
    train,
    weights,
)
from vaejax.batch import over_examples


def fresh() -> Any:
    """A key that nobody has used."""
    return jax.random.key(0)


KEYS = jax.random.split(jax.random.key(1), 2)
X = np.random.default_rng(0).random((12, 4)).astype(np.float32)
Y = np.arange(12) % 3
FOLDER = pathlib.Path(tempfile.mkdtemp())


def dense(head: Any) -> Any:
    return nn.Sequential([networks.MLP((5,)), head])


def vae(size: int = 4, latent: int = 2, hidden: int = 5) -> Any:
    return autoencoder(
        nn.Sequential([networks.MLP((hidden,)), heads.Normal(latent)]),
        nn.Sequential([networks.MLP((hidden,)), heads.FixedNormal(size, 0.5)]),
        distributions.Normal(jnp.zeros(latent), jnp.ones(latent)),
    )


MODEL = vae()
PARAMS = MODEL.init(fresh(), X[0])
ELBO = objectives.elbo(MODEL)
POINTS = autoencoder(dense(heads.Code(2)), dense(heads.FixedNormal(4, 0.5)))
POINTS_PARAMS = POINTS.init(fresh(), X[0])
OTHERS = {
    "of a wider model": vae(hidden=7).init(fresh(), X[0]),
    "of a model with a larger code": vae(latent=3).init(fresh(), X[0]),
    "of a model of other data": vae(size=6).init(fresh(), np.zeros(6, np.float32)),
    "of a model with other layers": autoencoder(heads.Normal(2), heads.FixedNormal(4, 0.5)).init(
        fresh(), X[0]
    ),
}
STATE = train.make_step(ELBO, optax.adam(1e-3))[0](fresh(), PARAMS)
FITTED = train.Fitted(STATE, STATE, {"loss": np.zeros(1)}, "epochs")
SOURCE = sources.in_memory(Batch(X))
MADE = autoregressive.Causal(causal.MADE((4,), (8,)), (4,))
MADE_PARAMS = MADE.init(fresh())
VQ = quantized.quantize(
    autoencoder(dense(heads.Code((2, 2))), dense(heads.FixedNormal(4, 0.5))), entries=3
)
VQ_PARAMS = VQ.init(fresh(), X[0])
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


def right(label: str, value: Any) -> Wrong:
    return Wrong(label, value, sure=False)


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
        right("list of lists", X.tolist()),
        right("list of rows", list(X)),
        right("big-endian", X.astype(">f4")),
        right("float64", X.astype(float)),
        right("another library's", HasArray(X)),
        right("rows of another library", [HasArray(x) for x in X]),
        right("jax", jnp.asarray(X)),
        right("zeros", np.zeros_like(X)),
        right("integers", (X * 5).astype(int)),
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
        right("params in numpy", jax.tree.map(np.asarray, PARAMS)),
    ],
    "key": [
        *ANYTHING,
        Wrong("seed", 0),
        Wrong("several keys", KEYS),
        Wrong("data", X),
        right("older key", jax.random.PRNGKey(3)),
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
        right("numpy's", np.int64(2)),
    ],
    "number": [
        *ANYTHING[:2],
        *ANYTHING[3:],
        Wrong("NaN", float("nan")),
        Wrong("a string", "0.5"),
        Wrong("data", X),
        right("1", 1),
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
        Wrong("an NNX module", nnx.Linear(4, 2, rngs=nnx.Rngs(0))),
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
        right("none", None),
    ],
    "labels": [
        *ANYTHING,
        Wrong("floats", Y + 0.5),
        Wrong("strings", Y.astype(str)),
        Wrong("fewer", Y[:5]),
        Wrong("one-hot rows", np.eye(3)[Y]),
        Wrong("negative", Y - 2),
        right("a list", Y.tolist()),
        right("another library's", HasArray(Y)),
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
        right("a list", [4]),
    ],
    "widths": [
        *ANYTHING,
        Wrong("one number", 5),
        Wrong("0", (0,)),
        Wrong("-3", (-3, 4)),
        Wrong("floats", (2.5,)),
        Wrong("strings", ("5",)),
        right("a list", [4]),
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
        right("a list", X[:, :2].tolist()),
    ],
}


def of(model: str = "model", **more: tuple[str, Any]) -> dict[str, tuple[str, Any]]:
    """The arguments of a measure."""
    return {
        "model": (model, MODEL),
        "params": ("params", PARAMS),
        "key": ("key", fresh()),
        "data": ("data", X),
        **more,
    }


def loss_of(make: Callable[..., Any]) -> Callable[..., Any]:
    """One value of a loss, whose options are arguments too."""

    def value(model: Any, params: Any, key: Any, data: Any, **options: Any) -> Any:
        return make(model, **options)(
            params, key, data if isinstance(data, Batch) else Batch(data), 0
        )

    return value


def built(encoder: Any, decoder: Any, x: Any) -> Any:
    return autoencoder(encoder, decoder, distributions.Normal(jnp.zeros(2), jnp.ones(2))).init(
        fresh(), x
    )


def made(kind: Callable[..., Any]) -> Callable[..., Any]:
    """Parameters of a network of some sizes."""
    return lambda x, **sizes: kind(**sizes).init(fresh(), x)


def event(kind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, **fields: kind(**fields).log_prob(x)


def members(params: Any, data: Any, keys: Any, **options: Any) -> Any:
    return population.fit(
        lambda h: (objectives.elbo(MODEL, beta=h["beta"]), optax.adam(1e-3)),
        population.grid(beta=[1.0, 2.0]),
        params,
        data,
        keys=keys,
        progress=False,
        **options,
    )


def fitted(loss: Any, optimizer: Any, params: Any, data: Any, **options: Any) -> Any:
    return train.fit(loss, optimizer, params, data, progress=False, **options)


def m2(model: Any, classifier: Any, y: Any) -> Any:
    joint = semisupervised.Joint(model, classifier, distributions.Categorical(jnp.zeros(3)))
    params = joint.init(fresh(), X[0])
    return semisupervised.m2(joint, alpha=1.0)(params, fresh(), Batch(X, y=y), 0)


def data_of(function: Callable[..., Any], **more: tuple[str, Any]) -> Call:
    name = function.__module__.rpartition(".")[2].strip("_")
    return Call(f"{name}.{function.__name__}", function, more)


RUN = {
    "loss": ("loss", ELBO),
    "optimizer": ("optimizer", optax.adam(1e-3)),
    "params": ("params", PARAMS),
    "data": ("data", X),
}
K = {"particles": ("count", 2)}
IMAGES = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
CALLS = [
    Call("fit", fitted, {**RUN, **FIT, "transform": ("transform", None)}),
    Call(
        "fit: options",
        fitted,
        {**RUN, **FIT, "skip": ("count", 1), "chunk": ("count", 2), "keep": ("count", 1)},
    ),
    Call(
        "fit: evaluation",
        lambda evaluate, **o: fitted(**o, evaluate=evaluate),
        {
            **RUN,
            **FIT,
            "evaluate": ("function", lambda p, k: {"loss": 1.0}),
            "patience": ("count", 1),
            "evaluate_every": ("count", 1),
            "monitor": ("split", "loss"),
        },
    ),
    Call(
        "fit: files",
        fitted,
        {
            **RUN,
            **FIT,
            "hook": ("function", lambda s: s),
            "log": ("function", lambda r: None),
            "checkpoint_every": ("count", 1),
        },
    ),
    Call(
        "population.fit",
        members,
        {
            "params": ("params", jax.vmap(MODEL.init, (0, None))(KEYS, X[0])),
            "data": ("data", X),
            "keys": ("key", jax.random.clone(KEYS)),
            "epochs": ("count", 1),
            "batch_size": ("count", 4),
        },
    ),
    Call(
        "make_train",
        lambda loss, optimizer, params, data, **o: train.make_train(loss, optimizer, **o)(
            fresh(), params, data
        ),
        {**RUN, "steps": ("count", 1), "batch_size": ("count", 4)},
    ),
    data_of(train.shuffled, size=("count", 12), batch_size=("count", 4)),
    *(
        data_of(f, **of())
        for f in (
            evaluate.codes,
            evaluate.reconstructions,
            evaluate.squared_error,
            evaluate.elbo_terms,
            anomaly.reconstruction_error,
            anomaly.scores,
            diagnostics.active_units,
            diagnostics.calibration,
        )
    ),
    data_of(
        evaluate.elbo_terms,
        **of(samples=("count", 1), batch_size=("count", 5), transform=("transform", None)),
    ),
    data_of(
        evaluate.log_likelihood,
        **of(particles=("count", 2), batch_size=("count", 5), chunk=("count", 2)),
    ),
    data_of(
        evaluate.mean_loss,
        loss=("loss", ELBO),
        params=("params", PARAMS),
        key=("key", fresh()),
        data=("data", X),
        batch_size=("count", 5),
    ),
    data_of(
        evaluate.log_prob,
        network=("module", MADE),
        params=("params", MADE_PARAMS),
        key=("key", fresh()),
        data=("data", X),
    ),
    data_of(bounds.ladder, **of(particles=("widths", (1, 2)))),
    data_of(
        annealing.ais,
        **of(chains=("count", 2), temperatures=("count", 3), leapfrog_steps=("count", 1)),
    ),
    data_of(exact.quadrature, **of(spacing=("positive", 1.0), width=("positive", 3.0))),
    data_of(decomposition.decompose, **of(draws=("count", 4), components=("count", 4))),
    data_of(
        inference.inference_gap,
        **of(particles=("count", 2), steps=("count", 2), samples=("count", 2)),
    ),
    *(
        Call(f"objectives.{f.__name__}", loss_of(f), {**of(), **o})
        for f, o in {
            objectives.elbo: {"beta": ("number", 1.0), "samples": ("count", 1)},
            objectives.iwae: K,
            objectives.dreg: K,
            objectives.stl: K,
            objectives.vimco: K,
            objectives.score_function: {"samples": ("count", 2)},
            objectives.renyi: {**K, "alpha": ("number", 0.5)},
            objectives.miwae: {"outer": ("count", 1), "inner": ("count", 2)},
            objectives.reweighted_wake_sleep: K,
            disentangle.beta_tcvae: {"beta": ("number", 1.0)},
        }.items()
    ),
    Call(
        "objectives.maximum_likelihood",
        loss_of(objectives.maximum_likelihood),
        {**of(), "model": ("module", MADE), "params": ("params", MADE_PARAMS)},
    ),
    *(
        Call(
            f"autoencoders.{f.__name__}",
            loss_of(f),
            {**of(), "model": ("model", POINTS), "params": ("params", POINTS_PARAMS), **o},
        )
        for f, o in {
            autoencoders.reconstruction: {},
            autoencoders.sparse: {"penalty": ("function", sparsity.l1), "weight": ("number", 0.1)},
            autoencoders.contractive: {
                "norm": ("function", contraction.exact),
                "weight": ("number", 0.1),
            },
            autoencoders.denoising: {"corrupt": ("transform", corruption.gaussian(0.1))},
            autoencoders.batch_top_k: {"k": ("count", 1)},
        }.items()
    ),
    Call(
        "memory.accumulate",
        lambda model, parts, **o: loss_of(lambda m: memory.accumulate(m, parts))(model, **o),
        {**of(), "model": ("loss", ELBO), "parts": ("count", 2)},
    ),
    Call(
        "autoencoder",
        built,
        {
            "encoder": ("module", dense(heads.Normal(2))),
            "decoder": ("module", dense(heads.Normal(4))),
            "x": ("codes", X[0]),
        },
    ),
    *(
        Call(
            f"priors.{f.__name__}",
            lambda model, f=f, **o: f(model, **o).init(fresh(), X[0]),
            {"model": ("model", MODEL), **o},
        )
        for f, o in {
            priors.mixture_prior: {"components": ("count", 2)},
            priors.vamp_prior: {"components": ("count", 2)},
            priors.flow_prior: {"flow": ("module", flows.coupling(2, layers=1, hidden=(4,)))},
            posteriors.planar_posterior: {"latent": ("count", 2), "layers": ("count", 1)},
            posteriors.iaf_posterior: {"latent": ("count", 2)},
            precision.mixed_precision: {"dtype": ("split", jnp.bfloat16)},
        }.items()
    ),
    *(
        Call(
            f"model.{f.__name__}", f, {"model": ("model", MODEL), "params": ("params", PARAMS), **o}
        )
        for f, o in {
            draw: {"key": ("key", fresh()), "x": ("codes", X[0])},
            generate: {"key": ("key", fresh())},
            reconstruct: {"x": ("codes", X[0])},
            interpolate: {"start": ("codes", X[0]), "end": ("codes", X[1]), "steps": ("count", 3)},
        }.items()
    ),
    Call(
        "model.init",
        lambda key, x: MODEL.init(key, x),
        {"key": ("key", fresh()), "x": ("codes", X[0])},
    ),
    Call("model.encode", MODEL.encode, {"params": ("params", PARAMS), "x": ("codes", X[0])}),
    Call(
        "networks.MLP",
        made(networks.MLP),
        {"x": ("codes", X[0]), "features": ("widths", (3,)), "dropout": ("number", 0.1)},
    ),
    Call(
        "networks.ConvEncoder",
        made(networks.ConvEncoder),
        {"x": ("codes", IMAGES[0] / 255), "features": ("widths", (2, 2))},
    ),
    Call(
        "networks.ConvDecoder",
        made(networks.ConvDecoder),
        {"x": ("codes", X[0]), "shape": ("shape", (8, 8, 1)), "features": ("widths", (2, 2))},
    ),
    Call(
        "networks.Conv",
        made(networks.Conv),
        {
            "x": ("codes", IMAGES[0] / 255),
            "features": ("count", 2),
            "kernel_size": ("count", 3),
            "stride": ("count", 2),
        },
    ),
    *(
        Call(f"heads.{h.__name__}", made(h), {"x": ("codes", X[0]), "shape": ("shape", 3), **o})
        for h, o in {
            heads.Normal: {"floor": ("positive", 0.1), "scale_init": ("positive", 1.0)},
            heads.Bernoulli: {},
            heads.Code: {},
            heads.FixedNormal: {"scale": ("positive", 0.5)},
            heads.Categorical: {"classes": ("count", 3)},
            heads.DiscretizedLogistic: {"levels": ("count", 8)},
        }.items()
    ),
    Call(
        "heads.TopK",
        made(heads.TopK),
        {"x": ("codes", X[0]), "size": ("count", 3), "k": ("count", 2)},
    ),
    Call("heads.FullNormal", made(heads.FullNormal), {"x": ("codes", X[0]), "size": ("count", 3)}),
    Call(
        "causal.MADE",
        lambda shape, hidden: autoregressive.Causal(causal.MADE(shape, hidden), (4,)).init(fresh()),
        {"shape": ("shape", (4,)), "hidden": ("widths", (8,))},
    ),
    Call(
        "flows.coupling",
        flows.coupling,
        {"size": ("count", 3), "layers": ("count", 1), "hidden": ("widths", (4,))},
    ),
    Call(
        "recurrent.vrnn",
        recurrent.vrnn,
        {
            "model": ("model", MODEL),
            "cell": ("module", recurrent.Cell(4)),
            "features": ("count", 4),
        },
    ),
    Call("recurrent.padded", recurrent.padded, {"sequences": ("data", [X, X[:5]])}),
    *(
        Call(
            f"distributions.{d.__name__}",
            event(d),
            {"x": ("codes", X[0]), **{n: ("codes", v) for n, v in o.items()}},
        )
        for d, o in {
            distributions.Normal: {"loc": X[0], "scale": X[1] + 1},
            distributions.Laplace: {"loc": X[0], "scale": X[1] + 1},
            distributions.Bernoulli: {"logits": X[1]},
            distributions.Uniform: {"low": X[1] - 2, "high": X[1] + 2},
        }.items()
    ),
    Call(
        "distributions.kl",
        distributions.kl,
        {"q": ("distribution", NORMAL), "p": ("distribution", NORMAL)},
    ),
    data_of(conditional.one_hot, y=("labels", Y), classes=("count", 3)),
    Call(
        "semisupervised.m2",
        m2,
        {
            "model": ("model", vae(latent=2)),
            "classifier": ("module", dense(heads.Categorical((), 3))),
            "y": ("labels", Y),
        },
    ),
    data_of(
        mixtures.fit_gaussian,
        data=("data", X),
        components=("count", 2),
        key=("key", fresh()),
        iterations=("count", 2),
        restarts=("count", 1),
        floor=("positive", 0.1),
    ),
    data_of(
        mixtures.fit_full_gaussian,
        data=("data", X),
        components=("count", 2),
        key=("key", fresh()),
        iterations=("count", 2),
    ),
    data_of(
        mixtures.fit_bernoulli,
        data=("data", X),
        components=("count", 2),
        key=("key", fresh()),
        iterations=("count", 2),
    ),
    data_of(mixtures.fit, start=("distribution", MIXTURE), x=("data", X), iterations=("count", 2)),
    data_of(linear.ppca, x=("data", X), latent=("count", 2)),
    Call(
        "linear.linear_gaussian",
        lambda **o: linear.linear_gaussian(**o).init(fresh(), X[0]),
        {"size": ("count", 4), "latent": ("count", 2), "scale": ("positive", 1.0)},
    ),
    *(
        data_of(
            f,
            model=("model", VQ),
            params=("params", VQ_PARAMS),
            key=("key", fresh()),
            data=("data", X),
        )
        for f in (quantized.indices, quantized.from_data)
    ),
    data_of(quantized.usage, index=("labels", Y), entries=("count", 3)),
    data_of(sparsity.l1, z=("codes", X)),
    data_of(
        disentanglement.mig,
        codes=("codes", X[:, :2]),
        factors=("labels", np.stack([Y, Y[::-1]], 1)),
        bins=("count", 4),
    ),
    data_of(
        anomaly.auroc,
        normal=("codes", X[:, 0]),
        anomalous=("codes", X[:, 1]),
        level=("number", 0.9),
    ),
    data_of(anomaly.typicality, nll=("codes", X[:, 0]), train_nll=("codes", X[:, 1])),
    data_of(
        representation.principal_components, x=("codes", X), test_x=("codes", X), size=("count", 2)
    ),
    data_of(data.load, source=("data", X), split=("split", "train")),
    Call(
        "data.load: a file",
        data.load,
        {"source": ("path", str(FOLDER / "x.npz")), "split": ("split", "all")},
    ),
    data_of(sources.open, source=("data", X), split=("split", "train")),
    Call(
        "sources.open: a file",
        sources.open,
        {"source": ("path", str(FOLDER / "x.npz")), "split": ("split", "all")},
    ),
    data_of(data.scale, key=("key", fresh()), x=("codes", X)),
    data_of(data.binarize, key=("key", fresh()), x=("codes", X)),
    data_of(data.dequantize, key=("key", fresh()), x=("codes", IMAGES[0])),
    *(
        Call(
            f"corruption.{f.__name__}",
            lambda amount, x, f=f: f(amount)(fresh(), x),
            {"amount": k, "x": ("codes", IMAGES[0] / 255)},
        )
        for f, k in {
            corruption.gaussian: ("positive", 0.1),
            corruption.masking: ("positive", 0.1),
            corruption.erased_block: ("count", 2),
            corruption.low_resolution: ("count", 2),
        }.items()
    ),
    data_of(text.encode, text=("text", "abc"), characters=("text", "abcd")),
    data_of(text.vocabulary, text=("text", "abc")),
    data_of(text.lines, texts=("rows", ["abc"]), characters=("text", "abcd"), length=("count", 5)),
    data_of(text.windows, codes=("labels", Y), length=("count", 3)),
    Call(
        "sprites.sample",
        sprites.sample,
        {"key": ("key", fresh()), "n": ("count", 2), "size": ("count", 8)},
    ),
    Call(
        "feed.feed",
        lambda source, **o: list(feed.feed(source, np.zeros((2, 3), int), start=0, **o)),
        {
            "source": ("module", SOURCE),
            "stop": ("count", 1),
            "workers": ("count", 1),
            "prefetch": ("count", 1),
        },
    ),
    Call(
        "population.grid",
        lambda **o: population.grid(**o),
        {"beta": ("rows", [1.0, 2.0]), "seed": ("rows", range(2))},
    ),
    Call(
        "checkpoint.load",
        checkpoint.load,
        {"path": ("path", FOLDER / "none"), "like": ("params", PARAMS)},
    ),
    Call(
        "weights.load",
        weights.load,
        {"path": ("path", FOLDER / "w.safetensors"), "like": ("params", PARAMS)},
    ),
    Call(
        "weights.save",
        weights.save,
        {"path": ("path", FOLDER / "v.safetensors"), "params": ("params", PARAMS)},
    ),
    Call(
        "portable.export",
        portable.export,
        {
            "path": ("path", FOLDER / "p.vaejax"),
            "model": ("model", MODEL),
            "params": ("params", PARAMS),
            "x": ("codes", X[0]),
            "platforms": ("rows", ["cpu"]),
            "batch": ("count", 2),
        },
    ),
    Call("portable.load", portable.load, {"path": ("path", FOLDER / "w.safetensors")}),
    Call("plot.images", plot.images, {"x": ("data", IMAGES), "columns": ("count", 2)}),
    Call("plot.latent", plot.latent, {"z": ("codes", X[:, :2]), "y": ("labels", Y)}),
    Call(
        "plot.reconstructions",
        plot.reconstructions,
        {"originals": ("data", IMAGES), "reconstructed": ("data", IMAGES)},
    ),
    Call("plot.curves", plot.curves, {"history": ("rows", {"loss": X[:, 0]})}),
    Call(
        "over_examples",
        lambda function, key, x: over_examples(function, key, x),
        {
            "function": ("function", lambda k, x: jnp.sum(x)),
            "key": ("key", fresh()),
            "x": ("data", X),
        },
    ),
]
