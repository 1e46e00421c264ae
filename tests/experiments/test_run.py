"""What every experiment's command line can do: signals, full disks, processes, records."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import common, density, vae
from experiments.common import folder, image_vae, options
from vaejax import checkpoint, evaluate, exact, train
from vaejax.batch import as_batch
from vaejax.distributions import Normal
from vaejax.model import Model

ROOT = Path(__file__).resolve().parents[2]
SMALL = replace(vae.DENSITY, smoke=True, progress=False, hidden=(16,), latent=2)


def least_squares(config):
    """An experiment of no size: `w` towards the mean of sixteen rows."""
    rows = np.random.default_rng(config.seed).normal(size=(16, 3)).astype(np.float32)

    def loss(params, key, batch, step):
        value = jnp.mean(jnp.sum((batch.x - params[None]) ** 2, axis=1))
        return value, {"norm": jnp.linalg.norm(params)}

    folder = common.open_folder(config, name="least-squares")
    fitted = common.fit(
        config,
        folder,
        loss,
        optax.adam(0.1),
        jnp.zeros(3),
        rows,
        key=jax.random.key(config.seed),
        epochs=3,
        batch_size=4,
        evaluate=partial(evaluate.mean_loss, loss, data=rows),
    )
    summary = {
        "w": np.asarray(fitted.params).tolist(),
        "seconds": common.seconds(folder),
        "loss": fitted.history["eval/loss"].tolist(),
        "devices": jax.device_count(),
    }
    common.write_json(folder / "summary.json", summary)
    common.report(folder, summary, "no units")
    return summary


def started(*command, **environment):
    environment = {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | environment,
        text=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def command_line(monkeypatch):
    """`common.command_line` of a function of a preset, without options."""
    monkeypatch.setattr(sys, "argv", ["experiments.vae"])
    monkeypatch.setattr(options.compiling, "keep_on_disk", lambda: None)
    return lambda main: common.command_line(main, {"small": SMALL}, "about")


def test_sigterm_saves_all_says_how_to_go_on_and_ends_with_143(tmp_path):
    folder = tmp_path / "run"
    options = "-m", "experiments.vae", "digits", "--no-progress", "--epochs", 10**6
    options += "--hidden", 8, "--latent", 2, "--train-split", "train[:64]"
    options += "--tensorboard", "--profile", 2
    running = started(*options, "--out", folder)
    try:
        until = time.monotonic() + 300
        while len(common.rows(folder)) < 4 and running.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        errors = running.communicate(timeout=300)[1]
    finally:
        running.kill()
    assert running.returncode == 143
    assert "Traceback" not in errors
    assert "SIGTERM" in errors and errors.strip().endswith("add --resume --out FOLDER")
    assert list((folder / "checkpoints").iterdir())
    (events,) = folder.glob("events.out.tfevents.*")
    assert b"elbo" in events.read_bytes()
    assert [path for path in (folder / "profile").rglob("*.xplane.pb") if path.stat().st_size]


def test_a_full_disk_is_told_without_a_traceback(command_line, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(SystemExit, match="error: .*0 MB free"):
        command_line(lambda config: least_squares(replace(config, out=tmp_path / "run")))


@pytest.mark.parametrize(
    "error, said",
    [
        (NotADirectoryError(20, "Not a directory", "runs/mine"), "^error: runs/mine: Not a dir"),
        (MemoryError(), "^error: the memory is full; lower --batch-size"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes"), "^error: the memory is full"),
    ],
)
def test_what_the_machine_lacks_is_told_in_one_line_wherever_it_was_met(error, said, command_line):
    def main(config):
        json.loads("1", object_hook=None, parse_int=lambda _: raised())  # deep in another package

    def raised():
        raise error

    with pytest.raises(SystemExit, match=said):
        command_line(main)


def test_what_was_saved_before_an_error_is_told_too(command_line):
    def failing(config):
        try:
            evaluate.mean_loss(None, None, None, None, batch_size=0)
        except TypeError as error:
            error.add_note("fit: saved before step 7")
            error.add_note("For simplicity, JAX has removed its internal frames")
            raise

    with pytest.raises(SystemExit, match=r"error: [^\n]*\nfit: saved before step 7$"):
        command_line(failing)


def test_an_error_raised_deep_in_a_folder_of_the_library_is_told_in_one_line(command_line):
    def too_wide(config):
        prior = Normal(jnp.zeros(4), jnp.ones(4))
        model = Model(None, lambda *_: prior, None, None)
        exact.quadrature(model, {}, jax.random.key(0), np.zeros((1, 2)))

    with pytest.raises(SystemExit, match="error: quadrature: latent: got shape .4,"):
        command_line(too_wide)


@pytest.mark.parametrize(
    "line",
    ["int('not a number')", "len()", "np.zeros(3).reshape(2, 2)", "jnp.zeros(3) @ jnp.zeros(2)"],
)
def test_a_bug_in_a_recipe_keeps_its_traceback(line, command_line):
    place = str(ROOT / "experiments" / "recipe_with_a_bug.py")
    names = {"np": np, "jnp": jnp}
    exec(compile(f"def main(config):\n    {line}\n", place, "exec"), names)
    with pytest.raises((ValueError, TypeError)):
        command_line(names["main"])


def test_an_interrupted_or_terminated_run_says_how_to_go_on(command_line, capsys):
    def interrupted(config):
        raise train.Interrupted("fit: stopped by Ctrl-C", fitted=None)

    def terminated(config):
        raise train.Terminated("fit: stopped by SIGTERM", fitted=None)

    with pytest.raises(SystemExit, match="stopped by Ctrl-C: add --resume --out FOLDER"):
        command_line(interrupted)
    with pytest.raises(SystemExit) as caught:
        command_line(terminated)
    assert caught.value.code == 143
    assert capsys.readouterr().err == "fit: stopped by SIGTERM: add --resume --out FOLDER\n"


def test_two_processes_train_one_run_and_the_first_alone_writes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    pair = [
        started(
            __file__, "--distributed", "--out", tmp_path / "two", **where, JAX_PROCESS_ID=str(i)
        )
        for i in (0, 1)
    ]
    (first, first_errors), (second, second_errors) = (p.communicate(timeout=500) for p in pair)
    assert [p.returncode for p in pair] == [0, 0], first_errors + second_errors
    assert "no units" in first and "no units" not in second
    assert "epoch" in first_errors and "epoch" not in second_errors  # the progress bar
    found = json.loads((tmp_path / "two" / "summary.json").read_text())
    alone = least_squares(common.Options(out=tmp_path / "one", progress=False))
    assert (found["devices"], alone["devices"]) == (2, 1)
    for name in ("w", "loss"):
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-5)
    assert [row["epoch"] for row in common.rows(tmp_path / "two")] == [1, 2, 3]
    one = least_squares(common.Options(out=tmp_path / "mesh", progress=False, devices=1))
    assert one["w"] == alone["w"]


def test_processes_are_told_apart_by_variables_where_no_cluster_is_found(monkeypatch):
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: told.append(given))
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with common.joined():
        pass
    monkeypatch.setenv("JAX_PROCESS_ID", "two")
    with pytest.raises(ValueError, match="--distributed: got no cluster .*JAX_PROCESS_ID=I"):
        common.joined().__enter__()
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    monkeypatch.delenv("JAX_PROCESS_ID")
    with common.joined():
        pass
    assert [tuple(given.values()) for given in told] == [(3, 0), (None, None)]


def test_what_is_asked_for_in_vain_leaves_no_folder(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="devices.mesh: count: got 99, expected 1 to"):
        vae.main(replace(SMALL, devices=99, out=tmp_path / "run"))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r'--tensorboard: tensorboardX.* -e "\.\[tensorboard\]"'):
        common.open_folder(replace(SMALL, tensorboard=True, out=tmp_path / "run"), name="vae")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit, match="give --out"):
        common.open_folder(SMALL, name="vae")
    with pytest.raises(ValueError, match="--devices: got 7, expected .*all that the processes"):
        common.open_folder(replace(SMALL, devices=7, out=tmp_path / "run"), name="vae")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_other_devices_and_options_that_it_did_not_have_yet(tmp_path):
    config = replace(SMALL, out=tmp_path / "run")
    stored = common.open_folder(config, name="vae") / "config.json"
    old = json.loads(stored.read_text())
    del old["options"]["precision"], old["options"]["devices"]
    stored.write_text(json.dumps(old))
    again = replace(config, resume=True, devices=1, tensorboard=True, profile=3, distributed=True)
    assert common.open_folder(again, name="vae") == tmp_path / "run"
    stored.write_text(json.dumps(old))
    with pytest.raises(SystemExit, match="precision: then float32, now bfloat16"):
        common.open_folder(replace(again, precision="bfloat16"), name="vae")


def test_a_full_disk_or_a_kill_at_the_start_leaves_what_a_run_can_begin_or_go_on_from(
    tmp_path, monkeypatch
):
    config = replace(SMALL, out=tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(config):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                common.open_folder(config, name="vae")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    full(config)
    (tmp_path / "run" / "config.json.part").write_text('{"opti')  # of one that was killed
    (tmp_path / "run" / "figures").mkdir()
    stored = common.open_folder(config, name="vae") / "config.json"
    written = stored.read_bytes()
    monkeypatch.setattr(folder, "circumstances", lambda: {"commit": "another"})
    traced = replace(config, resume=True, profile=7)
    full(traced)
    assert stored.read_bytes() == written
    common.open_folder(replace(config, resume=True), name="vae")
    assert stored.read_bytes() == written
    common.open_folder(traced, name="vae")
    before, now = json.loads(written), json.loads(stored.read_bytes())
    assert now == before | {"options": before["options"] | {"profile": 7}}
    (tmp_path / "other" / "figures").mkdir(parents=True)
    (tmp_path / "other" / "figures" / "mine.png").touch()
    with pytest.raises(SystemExit, match="is not an empty folder"):
        common.open_folder(replace(config, out=tmp_path / "other"), name="vae")


def test_more_epochs_are_the_same_run_only_where_no_schedule_spans_them(tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        raise InterruptedError

    monkeypatch.setattr(train, "fit", stopped)
    flow = replace(density.MOONS, layers=1, hidden=(4,), examples=100, batch_size=50)
    own = replace(SMALL, smoke=False, train_split="train[:64]", batch_size=16)
    refused = (
        "epochs: then 2, now 4; .*another run: resume with --epochs 2, or choose another --out"
    )
    for main, config, kind, message in (
        (vae.main, own, InterruptedError, None),
        (density.main, flow, SystemExit, refused),
    ):
        config = replace(config, epochs=2, progress=False, out=tmp_path / kind.__name__)
        with pytest.raises(InterruptedError):
            main(config)
        with pytest.raises(kind, match=message):
            main(replace(config, epochs=4, resume=True))


def test_networks_in_bfloat16_are_those_of_training_alone(key):
    x_key, init_key, loss_key = jax.random.split(key, 3)
    model = image_vae.build(SMALL, (8, 8, 1), None)
    x = jax.random.uniform(x_key, (4, 8, 8, 1))
    params = model.init(init_key, x[0])
    values = [
        vae.objective(replace(SMALL, precision=precision), model, 1)[0](
            params, jax.random.clone(loss_key), as_batch(x), 0
        )[0].item()
        for precision in ("float32", "bfloat16")
    ]
    assert values[0] != values[1] and values[1] == pytest.approx(values[0], rel=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


if __name__ == "__main__":
    common.command_line(least_squares, {"small": common.Options()}, "about")
