"""SIGKILL in a run that streams, trains a population and writes checkpoints.

Every resume ends with the parameters of the run that was not stopped, bit for bit. Many kills, at
random moments: VAEJAX_KILLS=50 python -m pytest -m whole tests/whole/test_kills.py
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vaejax import autoencoder, data, heads, population, sources, train
from vaejax.distributions import Normal
from vaejax.objectives import elbo

ADAM = train.averaging(optax.adam(1e-2), 0.9)
KILLS = int(os.environ.get("VAEJAX_KILLS", "2"))


def run(folder, epochs, pause=0.0, dies=0):
    """Two stages, each continued where the last process left it, of `epochs` of 3 steps each.

    After each epoch it waits for `pause` seconds; after `dies` epochs it kills itself.
    """
    seen = []

    def log(row):
        seen.append(row)
        if len(seen) == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)

    def log_step(row):
        with (folder / "steps.txt").open("a") as file:
            file.write(f"{row['step']:.0f} {row['loss']!r}\n")

    prior = Normal(jnp.zeros(2), jnp.ones(2))
    model = autoencoder(heads.Normal(2), heads.Bernoulli((4, 3, 1)), prior)
    images = sources.open(folder.parent / "images.npy", "all")
    options = {
        "epochs": epochs,
        "batch_size": 16,
        "transform": data.binarize,
        "progress": False,
        "resume": True,
        "log": log,
        "chunk": 2,
    }
    print("begins", flush=True)
    params = model.init(jax.random.key(7), jnp.zeros((4, 3, 1)))
    streamed = train.fit(
        elbo(model),
        ADAM,
        params,
        images,
        key=jax.random.key(3),
        evaluate=lambda p, key: {"loss": jnp.abs(p["decoder"]["params"]["logits"]["bias"]).sum()},
        directory=folder / "streamed",
        log_step=log_step,
        **options,
    )

    def make(hyper):
        return elbo(model, beta=hyper["beta"]), ADAM

    hyper = population.grid(beta=[1.0, 4.0], seed=range(2))
    keys = jax.vmap(jax.random.key)(hyper["seed"])
    starts = jax.vmap(model.init, (0, None))(jax.random.clone(keys), jnp.zeros((4, 3, 1)))
    members = population.fit(
        make,
        hyper,
        starts,
        images.read(np.arange(50)).x,
        keys=keys,
        evaluate=population.mean_loss(make, images.read(np.arange(20)).x, transform=data.binarize),
        directory=folder / "population",
        **options,
    )
    found = {"steps": logged(folder / "steps.txt", epochs)}
    for name, fitted in (("streamed", streamed), ("population", members)):
        fitted.history.pop("waiting", None)  # seconds are no part of it
        parts = fitted.params, fitted.state.opt_state, fitted.best.params, fitted.history
        for i, leaf in enumerate(jax.tree.leaves(parts)):
            found[f"{name} {i}"] = np.asarray(leaf)
    np.savez(folder / "part.npz", **found)
    (folder / "part.npz").replace(folder / "result.npz")


def logged(path, epochs):
    """The loss of each step as it was logged, and each time the same one."""
    pairs = sorted({tuple(map(float, line.split())) for line in path.read_text().splitlines()})
    assert [step for step, _ in pairs] == list(range(1, 3 * epochs + 1)), pairs
    return np.array([loss for _, loss in pairs])


def start(folder, *options):
    folder.mkdir(exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, __file__, str(folder), *map(str, options)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def outcome(process):
    _, errors = process.communicate(timeout=600)
    assert process.returncode in (0, -signal.SIGKILL), errors[-3000:]
    return process.returncode


def same(one, two):
    one, two = np.load(one), np.load(two)
    assert one.files == two.files and len(one.files) > 20
    for name in one.files:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.fixture
def images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 3, 1)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(images, tmp_path):
    """In its second stage, as soon as an epoch is done, whose checkpoint may be half written."""
    assert outcome(start(tmp_path / "victim", 5, 0, 5 + 3)) == -signal.SIGKILL
    assert not (tmp_path / "victim" / "result.npz").exists()
    for folder in (tmp_path / "victim", tmp_path / "whole"):
        folder.mkdir(exist_ok=True)
        run(folder, 5)
    same(tmp_path / "whole" / "result.npz", tmp_path / "victim" / "result.npz")


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(images, tmp_path):
    assert outcome(start(tmp_path / "whole", 25)) == 0
    chance = random.Random(0)
    kills = victims = 0
    while kills < KILLS:
        folder = tmp_path / f"victim {victims}"
        victim = start(folder, 25, 0.05)
        victim.stdout.readline()
        killer = threading.Timer(chance.uniform(0, 6), victim.send_signal, [signal.SIGKILL])
        killer.start()
        if outcome(victim) == 0:
            killer.cancel()
            same(tmp_path / "whole" / "result.npz", folder / "result.npz")
            victims += 1
        else:
            kills += 1
    if not (folder / "result.npz").exists():
        assert outcome(start(folder, 25)) == 0
    same(tmp_path / "whole" / "result.npz", folder / "result.npz")
    print(f"{kills} kills of {victims + 1} runs")


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
