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
from vaejax.arrays import on_host
from vaejax.distributions import Normal
from vaejax.objectives import elbo

PRIOR = Normal(np.zeros(4, np.float32), np.ones(4, np.float32))  # no device is asked for yet
MODEL = autoencoder(
    nn.Sequential([networks.MLP((64,)), heads.Normal(4)]),
    nn.Sequential([networks.MLP((64,)), heads.Bernoulli((8, 8, 1))]),
    PRIOR,
)
LOSS = elbo(MODEL)
ADAM = optax.adam(1e-3)
EPOCHS = 19  # of 11 steps: 209


def start_of_digits():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((8, 8, 1)))


def digits_fit(epochs=EPOCHS, *, loss=LOSS, optimizer=ADAM, smallest=None, images=None, **options):
    params = start_of_digits()
    if smallest is not None:
        params = devices.sharded(params, options["mesh"], smallest=smallest)
    settings = {"batch_size": 128, "transform": data.binarize, **options}
    return train.fit(
        loss,
        optimizer,
        params,
        data.load("digits").x if images is None else images,
        key=jax.random.key(1),
        epochs=epochs,
        progress=False,
        **settings,
    )


def small_population(**options):
    """Eight members, whose loss is so small that it costs no time to speak of."""
    hyper = population.grid(beta=[1.0, 4.0], seed=range(4))

    def make(hyper):
        def loss(params, key, batch, step):
            noise = jax.random.normal(key, batch.x.shape)
            return jnp.mean((batch.x + noise - params[None]) ** 2), {}

        return loss, optax.sgd(hyper["beta"])

    return population.fit(
        make,
        hyper,
        np.zeros((8, 8, 8, 1), np.float32),
        data.load("digits").x,
        keys=jax.vmap(jax.random.key)(hyper["seed"]),
        epochs=2,
        batch_size=128,
        transform=data.scale,
        progress=False,
        **options,
    )


def on_eight(folder):
    """All that needs eight devices, in one process: what it found, as JSON can hold it."""
    found = {}
    eight = devices.mesh(8)
    seen = []

    def watched(params, key, batch, step):
        jax.debug.inspect_array_sharding(
            batch.x, callback=lambda s: seen.append(s.shard_shape(batch.x.shape))
        )
        return LOSS(params, key, batch, step)

    fitted = digits_fit(loss=watched, mesh=eight)
    found["loss on 8"] = fitted.history["loss"].tolist()
    kernel = fitted.params["encoder"]["params"]["layers_0"]["Dense_0"]["kernel"]
    assert kernel.sharding.is_fully_replicated and len(kernel.sharding.device_set) == 8
    found["shard of a batch"] = seen[0]

    last = train.averaging(ADAM, 0.0)  # of which the average is the parameters themselves
    sharded = digits_fit(3, mesh=eight, smallest=64, optimizer=last, norms=True)
    found["loss sharded"] = sharded.history["loss"].tolist()
    found["norms sharded"] = sharded.history["update_norm"].tolist()
    for what, tree in (
        ("moments", sharded.state.opt_state.inner[0].mu),
        ("average", sharded.average),
    ):
        kernel = tree["encoder"]["params"]["layers_0"]["Dense_0"]["kernel"]
        found[f"shard of the {what}"] = kernel.sharding.shard_shape(kernel.shape)
    pairs = zip(*map(jax.tree.leaves, (sharded.average, sharded.params)), strict=True)
    found["average from params"] = max(float(jnp.abs(a - b).max()) for a, b in pairs)
    streamed = digits_fit(2, mesh=eight, images=sources.open("digits"))
    found["loss streamed"] = streamed.history["loss"].tolist()

    # A run whose first epochs are computed on two devices, the next one on one, the last on eight.
    for count, epochs in ((2, 3), (1, 4), (8, 5)):
        fitted = digits_fit(epochs, directory=folder / "run", resume=True, mesh=devices.mesh(count))
        kernel = fitted.params["encoder"]["params"]["layers_0"]["Dense_0"]["kernel"]
        assert kernel.sharding.is_fully_replicated and len(kernel.sharding.device_set) == count
        found[f"loss until {count}"] = fitted.history["loss"].tolist()

    members = small_population(mesh=eight)
    found["shard of the members"] = members.params.sharding.shard_shape(members.params.shape)
    found["members"] = members.history["loss"].tolist()
    for call in (
        lambda: devices.mesh(9),
        lambda: digits_fit(images=np.zeros((50, 8, 8, 1)), batch_size=20, mesh=eight),
        lambda: small_population(mesh=devices.mesh(3)),
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
        4, mesh=mesh, directory=folder / "of two", checkpoint_every=4, log=logged.append
    )
    shards = digits_fit(2, mesh=mesh, smallest=64, directory=folder / "shards")
    resumed = digits_fit(3, mesh=mesh, smallest=64, directory=folder / "shards", resume=True)
    kernel = on_host(shards.params)["decoder"]["params"]["layers_0"]["Dense_0"]["kernel"]
    return {
        "loss": fitted.history["loss"].tolist(),
        "devices": mesh.size,
        "logged": len(logged),
        "loss sharded": resumed.history["loss"].tolist(),
        "whole": kernel.shape,
    }


def start(*arguments, **environment):
    root = Path(__file__).parents[2]
    # Programs are kept between runs of the suite, as those of its own process are.
    settings = {
        "PYTHONPATH": str(root),
        "JAX_COMPILATION_CACHE_DIR": str(root / ".compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        env=os.environ | settings | environment,
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


def test_200_steps_on_eight_virtual_devices_have_the_losses_of_one(eight, single):
    agrees(eight["loss on 8"], single)


def test_parameters_that_are_sharded_have_the_losses_of_whole_ones(eight, single):
    agrees(eight["loss sharded"], single[:3])
    assert all(0 < norm < 1 for norm in eight["norms sharded"])
    assert eight["average from params"] < 1e-6


def test_batches_that_are_streamed_are_split_too(eight, single):
    agrees(eight["loss streamed"], single[:2])


def test_work_and_memory_are_split(eight):
    assert eight["shard of a batch"] == [16, 8, 8, 1]
    assert eight["shard of the moments"] in ([8, 64], [64, 8])
    assert eight["shard of the average"] == eight["shard of the moments"]
    assert eight["shard of the members"] == [1, 8, 8, 1]


def test_a_checkpoint_of_two_devices_goes_on_on_one_and_on_eight(eight, single):
    agrees(eight["loss until 2"], single[:3])
    agrees(eight["loss until 1"], single[:4])
    agrees(eight["loss until 8"], single[:5])


def test_members_split_over_devices_are_those_of_one(eight):
    agrees(eight["members"], small_population().history["loss"])


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


@pytest.mark.whole
def test_two_processes_are_one_run_and_one_goes_on_with_it(single, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pair = [start("pair", tmp_path, rank, port) for rank in (0, 1)]
    first, second = map(result, pair)
    for found in (first, second):
        assert found["devices"] == 2 and found["whole"] == [4, 64]
        agrees(found["loss"], single[:4])
        agrees(found["loss sharded"], single[:3])
    assert (first["logged"], second["logged"]) == (4, 0)
    longer = digits_fit(5, directory=tmp_path / "of two", resume=True)
    np.testing.assert_array_equal(longer.history["loss"][:4], first["loss"])
    agrees(longer.history["loss"], single[:5])


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    roles = {"eight": on_eight, "pair": as_one_of_two}
    print(json.dumps(roles[what](Path(folder), *map(int, rest))))
