"""Resume after any stop, bit for bit the run without one; and the signals that stop a run."""

import os
import signal

import jax
import pytest

from tests.train.runs import IMAGES, MEAN, equal, quiet_fit, size_of_mean, stopped_after
from vaejax import train
from vaejax.train import _loop as loop
from vaejax.train import _signals as signals


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    """Everything: parameters, optimizer, best state, history, and when early stopping strikes."""

    def evaluate(params, key):  # falls, then rises, so that patience runs out
        return {"loss": abs(size_of_mean(params, key)["loss"] - 1.5)}

    options = {
        "evaluate": evaluate,
        "evaluate_every": 2,
        "patience": 2,
        "epochs": 20,
        "hook": lambda s: s._replace(params=jax.tree.map(lambda a: 1.001 * a, s.params)),
    }
    whole = quiet_fit(**options)
    assert whole.stopped == "early" and int(whole.best.step) < int(whole.state.step)
    at = int(whole.history["epoch"][-1]) - 1  # while it waits
    with pytest.raises(train.Interrupted):
        quiet_fit(directory=tmp_path, log=stopped_after(at), checkpoint_every=4, **options)
    resumed = quiet_fit(directory=tmp_path, resume=True, checkpoint_every=4, **options)
    equal((whole.state, whole.best), (resumed.state, resumed.best))
    assert whole.history.keys() == resumed.history.keys()
    equal(whole.history, resumed.history)
    assert resumed.stopped == "early"


def test_a_longer_run_is_the_same_as_one_planned_longer(tmp_path):
    """Though the end of the shorter one was evaluated, too, and that of an epoch of both."""
    options = {"evaluate": size_of_mean, "evaluate_every": 2, "patience": 3}
    whole = quiet_fit(epochs=5, **options)
    quiet_fit(epochs=3, directory=tmp_path, **options)
    longer = quiet_fit(epochs=5, directory=tmp_path, resume=True, **options)
    equal((whole.state, whole.best), (longer.state, longer.best))
    with pytest.warns(UserWarning, match="epochs: got 2, but .* has done 5, .* epochs=5 \\+ n$"):
        done = quiet_fit(epochs=2, directory=tmp_path, resume=True, **options)
    equal((done.state, done.best), (longer.state, longer.best))
    quiet_fit(epochs=5, directory=tmp_path, resume=True, **options)  # a script that is run again


def test_more_patience_continues_a_run_that_stopped_early(tmp_path):
    options = {"evaluate": lambda params, key: {"loss": 1.0}, "directory": tmp_path, "epochs": 9}
    assert quiet_fit(patience=1, **options).history["epoch"][-1] == 2
    assert quiet_fit(patience=3, resume=True, **options).history["epoch"][-1] == 4


def test_parameters_of_numpy_and_of_jax_resume_alike(tmp_path, whole):
    quiet_fit(MEAN, epochs=1, directory=tmp_path)
    resumed = quiet_fit(jax.tree.map(jax.numpy.asarray, MEAN), directory=tmp_path, resume=True)
    equal(resumed.state, whole.state)


def signalling(monkeypatch, number, epoch, done):
    """Send a signal after so many steps of an epoch."""
    gather = loop.Run.gather

    def signalled(run, history):
        gather(run, history)
        if (run.epoch, run.done) == (epoch, done):
            signal.raise_signal(number)

    monkeypatch.setattr(loop.Run, "gather", signalled)


def test_skip_may_differ_between_a_run_and_its_continuation(tmp_path, monkeypatch):
    """Within an epoch too: its steps so far count as not skipped."""

    def loss(params, key, batch, step):
        value = ((batch.x - params["mean"][None]) ** 2).mean()
        return jax.numpy.where(step == 6, jax.numpy.nan, value), {}

    settings = {"loss": loss, "batch_size": 5, "chunk": 2, "epochs": 1}
    whole = quiet_fit(skip=1, **settings)
    signalling(monkeypatch, signal.SIGTERM, 0, 4)
    with pytest.raises(train.Terminated):
        quiet_fit(directory=tmp_path, **settings)
    monkeypatch.undo()
    with pytest.raises(train.NonFiniteError, match="step 6"):
        quiet_fit(directory=tmp_path, resume=True, **settings)
    resumed = quiet_fit(directory=tmp_path, resume=True, skip=1, **settings)
    equal((resumed.state, resumed.history), (whole.state, whole.history))
    assert whole.history["skipped"].tolist() == [1]


# --- signals -------------------------------------------------------------------------------------


def test_ctrl_c_leaves_a_checkpoint_and_all_there_was(tmp_path, whole):
    log, before = stopped_after(2), signal.getsignal(signal.SIGINT)
    with pytest.raises(train.Interrupted, match="stopped by Ctrl-C after epoch 2") as caught:
        quiet_fit(directory=tmp_path, checkpoint_every=100, log=log)
    assert len(caught.value.fitted.history["loss"]) == 2
    assert signal.getsignal(signal.SIGINT) is before
    resumed = quiet_fit(directory=tmp_path, resume=True)
    equal(resumed.state, whole.state)


def test_a_signal_in_the_middle_of_an_epoch_is_heeded_after_the_chunk(tmp_path, monkeypatch):
    """Preempted jobs have seconds: the epoch need not end, and nothing of it is lost."""
    options = {"batch_size": 6, "chunk": 2, "epochs": 2}  # 8 steps an epoch
    signalling(monkeypatch, signal.SIGTERM, 1, 2)
    before = signal.getsignal(signal.SIGTERM)
    message = r"by SIGTERM in epoch 2 \(step 2 of 8\)"
    with pytest.raises(train.Terminated, match=message) as caught:
        quiet_fit(directory=tmp_path, checkpoint_every=100, **options)
    assert signal.getsignal(signal.SIGTERM) is before
    assert int(caught.value.fitted.state.step) == 10
    assert {path.name for path in tmp_path.iterdir()} == {"10"}
    assert caught.value.code == 143
    monkeypatch.undo()
    resumed = quiet_fit(directory=tmp_path, resume=True, **options)
    whole = quiet_fit(batch_size=6, epochs=2)
    equal((whole.state, whole.history), (resumed.state, resumed.history))


def test_a_second_ctrl_c_stops_at_once(capsys):
    with pytest.raises(KeyboardInterrupt), signals.collected() as caught:
        signal.raise_signal(signal.SIGINT)
        assert signals.agreed(caught) == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")
    assert "Ctrl-C again stops at once" in capsys.readouterr().err


def test_a_signal_that_nobody_heeded_is_raised_at_the_end():
    heeded = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heeded.append(number))
    try:
        with signals.collected():
            os.kill(os.getpid(), signal.SIGTERM)
            assert not heeded
        assert heeded == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


# --- data that stay on the disk ------------------------------------------------------------------


def test_a_streamed_run_is_the_run_in_memory_and_either_continues_the_other(
    whole, on_disk, tmp_path
):
    streamed = quiet_fit(images=on_disk, evaluate=size_of_mean)
    equal((whole.state, whole.best), (streamed.state, streamed.best))
    history = dict(streamed.history)
    waiting = history.pop("waiting")
    assert waiting.shape == (4,) and (waiting >= 0).all() and (waiting <= 1).all()
    equal(whole.history, history)
    for first, second, folder in ((IMAGES, on_disk, "a"), (on_disk, IMAGES, "b")):
        quiet_fit(images=first, epochs=2, directory=tmp_path / folder)
        resumed = quiet_fit(images=second, directory=tmp_path / folder, resume=True)
        equal(resumed.state, whole.state)
