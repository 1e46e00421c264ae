"""What the tests of training share: two losses, one optimizer, one data set, and a quiet `fit`.

`DISTANCE` has noise, metrics and weights, and is traced in no time; it serves wherever the loop is
tested. `ELBO` is that of a small model, for what depends on a likelihood.
"""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vaejax import autoencoder, data, heads, train
from vaejax.batch import batch_mean
from vaejax.distributions import Normal
from vaejax.objectives import elbo

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 3)).astype(np.uint8)
ADAM = optax.adam(1e-2)

MODEL = autoencoder(heads.Normal(2), heads.Bernoulli((4, 3)), Normal(jnp.zeros(2), jnp.ones(2)))
ELBO = elbo(MODEL)

MEAN = {"mean": np.zeros((4, 3), np.float32)}  # the parameters of DISTANCE


def DISTANCE(params, key, batch, step):
    noise = 0.1 * jax.random.normal(key, batch.x.shape)
    squares = (batch.x + noise - params["mean"][None]) ** 2
    value = batch_mean(jnp.sum(squares, axis=(1, 2)), batch.weight)
    return value, {"distortion": value}


def quiet_fit(params=MEAN, *, loss=DISTANCE, optimizer=ADAM, images=IMAGES, seed=3, **options):
    """4 epochs of 3 steps, unless options say otherwise."""
    settings = {"epochs": 4, "batch_size": 16, "transform": data.scale, **options}
    return train.fit(
        loss, optimizer, params, images, key=jax.random.key(seed), progress=False, **settings
    )


def elbo_fit(params, **options):
    return quiet_fit(params, **{"loss": ELBO, "transform": data.binarize, **options})


def size_of_mean(params, key):
    """An evaluation: how far the mean is from where it started."""
    return {"loss": float(np.abs(params["mean"]).sum())}


def failing_at(step, loss=DISTANCE, *names):
    """A loss that is NaN at one step, and so are the metrics of these names."""

    def failing(params, key, batch, number):
        value, metrics = loss(params, key, batch, number)
        bad = jnp.where(number == step, jnp.nan, 0.0)
        return value + bad, {**metrics, **{name: metrics[name] + bad for name in names}}

    return failing


def stopped_after(epoch):
    """A log that presses Ctrl-C at the end of an epoch."""

    def log(row):
        if row["epoch"] == epoch:
            signal.raise_signal(signal.SIGINT)

    return log


def without_keys(tree):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def equal(a, b):
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, without_keys(a), without_keys(b))
