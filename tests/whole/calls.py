"""Small right calls of the functions that train, measure and build."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")

import numpy as np
import optax

from tests.whole.mistakes import (
    ELBO,
    FIT,
    KEYS,
    MADE,
    MADE_PARAMS,
    MODEL,
    PARAMS,
    POINTS,
    POINTS_PARAMS,
    Call,
    X,
    dense,
    fresh,
    parameters,
)
from vaejax import (
    Batch,
    annealing,
    anomaly,
    autoencoder,
    autoencoders,
    bounds,
    contraction,
    corruption,
    decomposition,
    diagnostics,
    disentangle,
    distributions,
    draw,
    evaluate,
    exact,
    flows,
    generate,
    heads,
    inference,
    interpolate,
    memory,
    networks,
    objectives,
    population,
    posteriors,
    precision,
    priors,
    reconstruct,
    semisupervised,
    sparsity,
    train,
)


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
        loss, batch = make(model, **options), data if isinstance(data, Batch) else Batch(data)
        return as_one_program(lambda: loss(params, key, batch, 0))

    return value


def as_one_program(function: Callable[[], Any]) -> Any:
    """What a function gives, compiled at once and not each of its steps by itself.

    Its arguments are constants in it, so that it sees their values, as it does outside of `jit`.
    """
    return jax.jit(function)()


def built(encoder: Any, decoder: Any, x: Any) -> Any:
    model = autoencoder(encoder, decoder, distributions.Normal(jnp.zeros(2), jnp.ones(2)))
    return parameters(model.init, x)


def made(kind: Callable[..., Any]) -> Callable[..., Any]:
    """Parameters of a network of some sizes."""
    return lambda x, **sizes: parameters(kind(**sizes).init, x)


def event(kind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, **fields: as_one_program(lambda: kind(**fields).log_prob(x))


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
    params = parameters(joint.init, X[0])
    loss = semisupervised.m2(joint, alpha=1.0)
    return as_one_program(lambda: loss(params, fresh(), Batch(X, y=y), 0))


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
            "hook": ("hook", lambda s: s),
            "log": ("hook", lambda r: None),
            "checkpoint_every": ("count", 1),
        },
    ),
    Call(
        "population.fit",
        members,
        {
            "params": ("params", jax.tree.map(lambda p: jnp.stack([p, -p]), PARAMS)),
            "data": ("data", X),
            "keys": ("keys", jax.random.clone(KEYS)),
            "epochs": ("count", 1),
            "batch_size": ("count", 4),
        },
    ),
    Call(
        "make_train",
        lambda loss, optimizer, params, data, **o: train.make_train(loss, optimizer, **o)(
            fresh(), params, data
        ),
        {**RUN, "loss": ("pure loss", ELBO), "steps": ("count", 1), "batch_size": ("count", 4)},
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
        Call(f"objectives.{f.__name__}", loss_of(f), {**of(), "data": ("batch", X), **o})
        for f, o in {
            objectives.elbo: {"beta": ("schedule", 1.0), "samples": ("count", 1)},
            objectives.iwae: K,
            objectives.dreg: K,
            objectives.stl: K,
            objectives.vimco: K,
            objectives.score_function: {"samples": ("count", 2)},
            objectives.renyi: {**K, "alpha": ("number", 0.5)},
            objectives.miwae: {"outer": ("count", 1), "inner": ("count", 2)},
            objectives.reweighted_wake_sleep: K,
            disentangle.beta_tcvae: {"beta": ("schedule", 1.0)},
        }.items()
    ),
    Call(
        "objectives.maximum_likelihood",
        loss_of(objectives.maximum_likelihood),
        {
            **of(),
            "data": ("batch", X),
            "model": ("module", MADE),
            "params": ("params", MADE_PARAMS),
        },
    ),
    *(
        Call(
            f"autoencoders.{f.__name__}",
            loss_of(f),
            {
                **of(),
                "data": ("batch", X),
                "model": ("model", POINTS),
                "params": ("params", POINTS_PARAMS),
                **o,
            },
        )
        for f, o in {
            autoencoders.reconstruction: {},
            autoencoders.sparse: {
                "penalty": ("function", sparsity.l1),
                "weight": ("schedule", 0.1),
            },
            autoencoders.contractive: {
                "norm": ("function", contraction.exact),
                "weight": ("schedule", 0.1),
            },
            autoencoders.denoising: {"corrupt": ("transform", corruption.gaussian(0.1))},
            autoencoders.batch_top_k: {"k": ("count", 1)},
        }.items()
    ),
    Call(
        "memory.accumulate",
        lambda model, parts, **o: loss_of(lambda m: memory.accumulate(m, parts))(model, **o),
        {**of(), "data": ("batch", X), "model": ("loss", ELBO), "parts": ("count", 2)},
    ),
    Call(
        "autoencoder",
        built,
        {
            "encoder": ("module", dense(heads.Normal(2))),
            "decoder": ("module", dense(heads.Normal(4))),
            "x": ("example", X[0]),
        },
    ),
    *(
        Call(
            f"priors.{f.__name__}",
            lambda model, f=f, **o: parameters(f(model, **o).init, X[0]),
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
            f"model.{f.__name__}",
            f,
            {"model": ("model", MODEL), "params": ("any params", PARAMS), **o},
        )
        for f, o in {
            draw: {"key": ("key", fresh()), "x": ("event", X[0])},
            generate: {"key": ("key", fresh())},
            reconstruct: {"x": ("event", X[0])},
            interpolate: {"start": ("event", X[0]), "end": ("event", X[1]), "steps": ("count", 3)},
        }.items()
    ),
    Call(
        "model.init",
        lambda key, x: MODEL.init(key, x),
        {"key": ("key", fresh()), "x": ("example", X[0])},
    ),
    Call("model.encode", MODEL.encode, {"params": ("any params", PARAMS), "x": ("event", X[0])}),
    Call(
        "networks.MLP",
        made(networks.MLP),
        {"x": ("example", X[0]), "features": ("some widths", (3,)), "dropout": ("number", 0.1)},
    ),
    Call(
        "networks.ConvEncoder",
        made(networks.ConvEncoder),
        {"x": ("example", IMAGES[0] / 255), "features": ("some widths", (2, 2))},
    ),
    Call(
        "networks.ConvDecoder",
        made(networks.ConvDecoder),
        {
            "x": ("example", X[0]),
            "shape": ("shape", (8, 8, 1)),
            "features": ("some widths", (2, 2)),
        },
    ),
    Call(
        "networks.Conv",
        made(networks.Conv),
        {
            "x": ("example", IMAGES[0] / 255),
            "features": ("count", 2),
            "kernel_size": ("count", 3),
            "stride": ("count", 2),
        },
    ),
    *(
        Call(f"heads.{h.__name__}", made(h), {"x": ("example", X[0]), "shape": ("shape", 3), **o})
        for h, o in {
            heads.Normal: {"floor": ("positive", 0.1), "scale_init": ("positive", 1.0)},
            heads.Bernoulli: {},
            heads.Code: {},
            heads.FixedNormal: {"scale": ("positive", 0.5)},
            heads.Categorical: {"classes": ("count", 3)},
            heads.DiscretizedLogistic: {"levels": ("count", 8)},
        }.items()
    ),
]
