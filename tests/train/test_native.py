"""Native convolutions in the loop of a run on a CPU are told, once, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vaejax import autoencoder, autoencoders, heads, networks, population, train
from vaejax.train import _native
from vaejax.train.memory import accumulate, rematerialize

X = np.random.default_rng(3).normal(size=(8, 6, 6, 1)).astype(np.float32)


def loss_of(net):
    def loss(params, key, batch, step):
        out = jax.vmap(lambda x: net.apply(params, x))(batch.x)
        return jnp.mean(jnp.square(out)), {}

    return loss


def fitted(net, **how):
    params, key = net.init(jax.random.key(0), X[0]), jax.random.key(1)
    how = {"epochs": 2, "batch_size": 4, "progress": False, **how}
    return train.fit(loss_of(net), optax.sgd(0.1), params, X, key=key, **how)


def test_a_native_convolution_in_the_loop_is_told_once_for_a_run(key):
    with pytest.warns(UserWarning, match=r"fit: got a native conv.*networks\.Conv") as said:
        fitted(nn.ConvTranspose(2, (3, 3)), chunk=1)
    assert len(said) == 1

    def make(hyper):
        return loss_of(nn.Conv(2, (3, 3))), optax.sgd(hyper["rate"])

    params = jax.tree.map(lambda p: jnp.stack([p, p]), nn.Conv(2, (3, 3)).init(key, X[0]))
    hyper, keys = {"rate": np.array([0.1, 0.2])}, jax.random.split(jax.random.key(1), 2)
    with pytest.warns(UserWarning, match=r"population.fit: got a native conv"):
        population.fit(make, hyper, params, X, keys=keys, epochs=1, batch_size=4, progress=False)


def test_the_librarys_own_are_no_cause_for_a_warning_nor_is_another_device(monkeypatch):
    """Their convolutions of other devices stand in branches, here recomputed and in a scan."""
    model = rematerialize(
        autoencoder(
            nn.Sequential([networks.ConvEncoder((3,)), heads.Code(2)]),
            nn.Sequential(
                [networks.ConvDecoder((6, 6, 1), (3, 2)), heads.FixedNormal((6, 6, 1), 1.0)]
            ),
        )
    )
    loss = accumulate(autoencoders.reconstruction(model), 2)
    params = model.init(jax.random.key(0), X[0])
    how = {"key": jax.random.key(1), "epochs": 1, "batch_size": 4, "progress": False}
    train.fit(loss, optax.sgd(0.01), params, X, **how)
    monkeypatch.setattr(_native, "_on_cpu", lambda state: False)
    fitted(nn.Conv(2, (3, 3)))


def test_what_is_looked_at_is_the_program_that_runs(monkeypatch):
    """Tracing once is all: the first call of a program finds what was traced for it."""
    traced = []

    def program(state):
        traced.append(1)
        return state + 1

    run = _native.telling("fit", jax.jit(program))
    state = jnp.zeros(3)
    assert run(run(state)).tolist() == [2, 2, 2] and traced == [1]
