"""One device, several, and two processes: the same run, up to the order of floating-point sums."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vaejax import autoencoder, data, devices, heads, networks, population, sources, train
from vaejax.distributions import Normal
from vaejax.objectives import elbo
from vaejax.trees import on_host

PRIOR = Normal(np.zeros(4, np.float32), np.ones(4, np.float32))  # no device is asked for yet
MODEL = autoencoder(
    nn.Sequential([networks.MLP((64,)), heads.Normal(4)]),
    nn.Sequential([networks.MLP((64,)), heads.Bernoulli((8, 8, 1))]),
    PRIOR,
)
EPOCHS = 19  # of 11 steps: 209


def digits_fit(epochs=EPOCHS, *, smallest=None, images=None, **options):
    params = MODEL.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    if smallest is not None:
        params = devices.sharded(params, options["mesh"], smallest=smallest)
    return train.fit(
        elbo(MODEL),
        optax.adam(1e-3),
        params,
        data.load("digits").x if images is None else images,
        key=jax.random.key(1),
        epochs=epochs,
        batch_size=128,
        transform=data.binarize,
        progress=False,
        **options,
    )


def digits_population(**options):
    hyper = population.grid(beta=[1.0, 4.0], seed=range(4))
    keys = jax.vmap(jax.random.key)(hyper["seed"])
    init = jax.vmap(MODEL.init, (0, None))(jax.random.clone(keys), jnp.zeros((8, 8, 1)))

    def make(hyper):
        return elbo(MODEL, beta=hyper["beta"]), optax.adam(1e-3)

    return population.fit(
        make,
        hyper,
        init,
        data.load("digits").x,
        keys=keys,
        epochs=2,
        batch_size=128,
        transform=data.binarize,
        progress=False,
        **options,
    )


def on_eight(folder):
    """All that needs eight devices, in one process: what it found, as JSON can hold it."""
    found = {}
    for count in (1, 2, 8):
        fitted = digits_fit(mesh=devices.mesh(count))
        found[f"loss {count}"] = fitted.history["loss"].tolist()
        kernel = fitted.params["encoder"]["params"]["layers_0"]["Dense_0"]["kernel"]
        assert kernel.sharding.is_fully_replicated and len(kernel.sharding.device_set) == count
    eight = devices.mesh(8)
    fitted = digits_fit(mesh=eight, smallest=64)
    found["loss sharded"] = fitted.history["loss"].tolist()
    moments = fitted.state.opt_state[0].mu["encoder"]["params"]["layers_0"]["Dense_0"]["kernel"]
    found["shard of the moments"] = moments.sharding.shard_shape(moments.shape)

    seen = []

    def watched(params, key, batch, step):
        jax.debug.inspect_array_sharding(
            batch.x, callback=lambda s: seen.append(s.shard_shape(batch.x.shape))
        )
        return elbo(MODEL)(params, key, batch, step)

    params = MODEL.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    options = {"key": jax.random.key(1), "epochs": 1, "progress": False, "mesh": eight}
    train.fit(
        watched, optax.adam(1e-3), params, data.load("digits").x, transform=data.binarize, **options
    )
    found["shard of a batch"] = seen[0]

    streamed = digits_fit(2, mesh=eight, images=sources.open("digits"))
    found["loss streamed"] = streamed.history["loss"].tolist()
    digits_fit(1, directory=folder / "of two", mesh=devices.mesh(2))
    for count in (1, 8):
        resumed = digits_fit(
            directory=folder / "of two",
            resume=True,
            mesh=devices.mesh(count),
            epochs=2 + (count == 8),
        )
        found[f"resumed on {count}"] = resumed.history["loss"].tolist()
    members = digits_population(mesh=eight)
    kernel = members.params["encoder"]["params"]["layers_0"]["Dense_0"]["kernel"]
    found["shard of the members"] = kernel.sharding.shard_shape(kernel.shape)
    found["members"] = members.history["loss"].tolist()
    for call in (
        lambda: devices.mesh(9),
        lambda: train.fit(
            elbo(MODEL),
            optax.adam(1e-3),
            params,
            np.zeros((50, 8, 8, 1)),
            key=jax.random.key(1),
            epochs=1,
            batch_size=20,
            mesh=eight,
        ),
        lambda: digits_population(mesh=devices.mesh(3)),
    ):
        try:
            call()
        except ValueError as error:
            found.setdefault("errors", []).append(str(error))
    return found


def as_one_of_two(folder, rank, port):
    """A process of two, over gloo; only the first logs."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    logged = []
    mesh = devices.mesh()
    fitted = digits_fit(
        mesh=mesh, directory=folder / "of two", checkpoint_every=EPOCHS, log=logged.append
    )
    shards = digits_fit(2, mesh=mesh, smallest=64, directory=folder / "shards")
    resumed = digits_fit(3, mesh=mesh, smallest=64, directory=folder / "shards", resume=True)
    return {
        "loss": fitted.history["loss"].tolist(),
        "devices": mesh.size,
        "logged": len(logged),
        "loss sharded": resumed.history["loss"].tolist(),
        "whole": on_host(shards.params)["decoder"]["params"]["layers_0"]["Dense_0"]["kernel"].shape,
    }


def start(*arguments, **environment):
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": root} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def result(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def single():
    return digits_fit().history["loss"]


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    return result(start("eight", tmp_path_factory.mktemp("eight"), XLA_FLAGS=flags))


def agrees(found, expected):
    """To five digits."""
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["loss 1", "loss 2", "loss 8", "loss sharded"])
def test_200_steps_on_virtual_devices_have_the_losses_of_one(eight, single, name):
    agrees(eight[name], single)


def test_batches_that_are_streamed_are_split_too(eight, single):
    agrees(eight["loss streamed"], single[:2])


def test_work_and_memory_are_split(eight):
    assert eight["shard of a batch"] == [16, 8, 8, 1]
    assert eight["shard of the moments"] in ([8, 64], [64, 8])
    assert eight["shard of the members"] == [1, 64, 64]


def test_a_checkpoint_of_two_devices_goes_on_on_one_and_on_eight(eight, single):
    agrees(eight["resumed on 1"], single[:2])
    agrees(eight["resumed on 8"], single[:3])


def test_members_split_over_devices_are_those_of_one(eight):
    agrees(eight["members"], digits_population().history["loss"])


def test_what_does_not_fit_the_devices_is_refused_before_any_work(eight):
    for found, message in zip(
        eight["errors"],
        [
            "devices.mesh: count: got 9, expected 1 to 8, the devices",
            "fit: batch_size: got 20, expected a multiple of 8, the devices; take 24 or 16",
            "population.fit: members: got 8, expected a multiple of 3, the devices; take 9 or 6",
        ],
        strict=True,
    ):
        assert message in found


def test_two_processes_are_one_run_and_one_goes_on_with_it(single, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pair = [start("pair", tmp_path, rank, port) for rank in (0, 1)]
    first, second = map(result, pair)
    for found in (first, second):
        assert found["devices"] == 2 and found["whole"] == [4, 64]
        agrees(found["loss"], single)
        agrees(found["loss sharded"], single[:3])
    assert (first["logged"], second["logged"]) == (EPOCHS, 0)
    longer = digits_fit(EPOCHS + 1, directory=tmp_path / "of two", resume=True)
    np.testing.assert_array_equal(longer.history["loss"][:EPOCHS], first["loss"])


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    roles = {"eight": on_eight, "pair": as_one_of_two}
    print(json.dumps(roles[what](Path(folder), *map(int, rest))))
