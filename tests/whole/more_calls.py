"""Small right calls of distributions, families, data, files and pictures."""

import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")

import numpy as np

from tests.whole.calls import (
    IMAGES,
    data_of,
    event,
    m2,
    made,
)
from tests.whole.mistakes import (
    FOLDER,
    MIXTURE,
    MODEL,
    NORMAL,
    PARAMS,
    SOURCE,
    VQ,
    VQ_PARAMS,
    Call,
    X,
    Y,
    dense,
    fresh,
    parameters,
    vae,
)
from vaejax import (
    anomaly,
    autoregressive,
    causal,
    checkpoint,
    conditional,
    corruption,
    data,
    disentanglement,
    distributions,
    feed,
    flows,
    heads,
    linear,
    mixtures,
    plot,
    population,
    portable,
    quantized,
    recurrent,
    representation,
    sources,
    sparsity,
    sprites,
    text,
    weights,
)
from vaejax.batch import over_examples

MORE_CALLS = [
    Call(
        "heads.TopK",
        made(heads.TopK),
        {"x": ("example", X[0]), "size": ("count", 3), "k": ("count", 2)},
    ),
    Call(
        "heads.FullNormal", made(heads.FullNormal), {"x": ("example", X[0]), "size": ("count", 3)}
    ),
    Call(
        "causal.MADE",
        lambda shape, hidden: parameters(
            autoregressive.Causal(causal.MADE(shape, hidden), (4,)).init
        ),
        {"shape": ("shape", (4,)), "hidden": ("some widths", (8,))},
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
    Call("recurrent.padded", recurrent.padded, {"sequences": ("sequences", [X, X[:5]])}),
    *(
        Call(
            f"distributions.{d.__name__}",
            event(d),
            {"x": ("field", X[0]), **{n: ("field", v) for n, v in o.items()}},
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
        data=("table", X),
        components=("count", 2),
        key=("key", fresh()),
        iterations=("count", 2),
        restarts=("count", 1),
        floor=("positive", 0.1),
    ),
    data_of(
        mixtures.fit_full_gaussian,
        data=("table", X),
        components=("count", 2),
        key=("key", fresh()),
        iterations=("count", 2),
    ),
    data_of(
        mixtures.fit_bernoulli,
        data=("table", X),
        components=("count", 2),
        key=("key", fresh()),
        iterations=("count", 2),
    ),
    data_of(mixtures.fit, start=("distribution", MIXTURE), x=("table", X), iterations=("count", 2)),
    data_of(linear.ppca, x=("table", X), latent=("count", 2)),
    Call(
        "linear.linear_gaussian",
        lambda **o: parameters(linear.linear_gaussian(**o).init, X[0]),
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
    data_of(quantized.usage, index=("index", Y), entries=("count", 3)),
    data_of(sparsity.l1, z=("event", X)),
    data_of(
        disentanglement.mig,
        codes=("codes", X[:, :2]),
        factors=("factors", np.stack([Y, Y[::-1]], 1)),
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
    data_of(data.load, source=("table", X), split=("split", "train")),
    Call(
        "data.load: a file",
        data.load,
        {"source": ("path", str(FOLDER / "x.npz")), "split": ("split", "all")},
    ),
    data_of(sources.open, source=("table", X), split=("split", "train")),
    Call(
        "sources.open: a file",
        sources.open,
        {"source": ("path", str(FOLDER / "x.npz")), "split": ("split", "all")},
    ),
    data_of(data.scale, key=("no key", fresh()), x=("example", X)),
    data_of(data.quantize, key=("no key", fresh()), x=("example", X), levels=("count", 17)),
    data_of(data.binarize, key=("key", fresh()), x=("example", X)),
    data_of(data.dequantize, key=("key", fresh()), x=("example", IMAGES[0])),
    *(
        Call(
            f"corruption.{f.__name__}",
            lambda amount, x, f=f: f(amount)(fresh(), x),
            {"amount": k, "x": ("example", IMAGES[0] / 255)},
        )
        for f, k in {
            corruption.gaussian: ("positive", 0.1),
            corruption.masking: ("share", 0.1),
            corruption.erased_block: ("count", 2),
            corruption.low_resolution: ("count", 2),
        }.items()
    ),
    data_of(text.encode, text=("text", "abc"), characters=("text", "abcd")),
    data_of(text.vocabulary, text=("all texts", "abc")),
    data_of(text.lines, texts=("texts", ["abc"]), characters=("text", "abcd"), length=("count", 5)),
    data_of(text.windows, codes=("sequence", Y), length=("count", 3)),
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
        {"beta": ("values", [1.0, 2.0]), "seed": ("values", range(2))},
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
        {"path": ("path", FOLDER / "v.safetensors"), "params": ("tree", PARAMS)},
    ),
    Call(
        "portable.export",
        portable.export,
        {
            "path": ("path", FOLDER / "p.vaejax"),
            "model": ("model", MODEL),
            "params": ("params", PARAMS),
            "x": ("example", X[0]),
            "platforms": ("rows", ["cpu"]),
            "batch": ("count or none", 2),
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
            "x": ("array", X),
        },
    ),
]
