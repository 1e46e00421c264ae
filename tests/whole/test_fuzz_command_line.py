"""Whatever is typed at an experiment's command line starts work or is refused in one clear line.

Each case is a recipe and its arguments, drawn with a fixed seed: for every option a value that
nobody can mean, and for every recipe some that are right. Nothing is trained: a case has started
once its folder is opened, which comes after all checks. `python -m pytest -s` shows the counts.
"""

import contextlib
import importlib
import io
import json
import os
import re
import signal
import sys
import typing
import warnings
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from experiments import common
from experiments.common import folder, options
from vaejax import train
from vaejax.data import _load

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if p.stem != "__init__")
MODULES = {name: importlib.import_module(f"experiments.{name}") for name in NAMES}

BAD = {
    int: ["-3", "2.5", "many", "", "1e3", "nan", "9" * 30],
    float: ["nan", "inf", "-1", "much", "", "1,5"],
}
ZERO = {"seed", "profile", "order", "warmup_epochs", "decay_epochs"}  # where 0 has a meaning
BAD_SPLITS = ["train[:0]", "nope", "train[a:b]", "train[", ""]
BAD_DATA = ["nope", "mnits", "missing.npz", "folder", "binary.npy", "text.npz", "empty.npy", ""]
BAD_SWEEPS = ["nope=1,2", "learning_rate=", "learning_rate=1,two", "learning_rate", "=1", ""]
BAD_SWEEPS += ["learning_rate=nan", "learning_rate=-1,1", "learning_rate=1,1", "epochs=1,2"]
OPTION_FREE = [["nope"], ["help"], ["--nope"], ["--nope", "3"], ["--epcohs", "3"], ["-x"], ["--"]]
TOGETHER = [  # each value could be meant, but not with the data, or with one another
    "vae --batch-size 5000",
    "vae --network conv --dataset activations.npy",
    "vae --likelihood bernoulli --sweep scale=1,2",
    "vae --seeds 3 --seed 4294967295",
    "sparse --k 500",
    "sparse --batch-size 5000",
    "activations --k 500 --latent 20",
    "adversarial --prior ring --latent 3",
    "adversarial --sweep gamma=1,2",
    "autoregressive --levels 1",
    "autoregressive --dataset activations.npy",
    "gradients --particles 4",
    "anomaly --classes 11",
    "anomaly --blur 1 --dataset activations.npy",
    "stacked --labels 5",
    "stacked --valid 5000",
    "semisupervised --labels-per-class 900",
    "semisupervised --labelled 500",
    "charmodel --text short.txt",
    "charmodel --window 9999999",
    "charmodel --batch-size 9999999",
    "recurrent --text short.txt",
    "recurrent sentences --shortest 90",
    "recurrent sentences --text short.txt",
    "recurrent --dataset activations.npy",
    "recurrent --batch-size 9999",
    "autoencoder --network conv --tie",
    "autoencoder --dataset large.npy",
    "denoising --level 3",
    "denoising --corruption erased_block --level 50",
    "cvae --condition block --block 99",
    "cvae --dataset activations.npy",
    "disentangle --batch-size 9999",
    "density --batch-size 99999",
    "score_field --chains 1",
    "score_field --batch-size 99999",
    "contractive --labels 99999",
    "contractive --batch-size 99999",
    "em --batch-size 99999",
    "em --components 99999",
    "priors --components 99999",
    "representation --preset nope",
    "representation --sweep epochs=1,2",
    "structure --dataset activations.npy",
    "structure --others mnits",
    "vq --dataset activations.npy",
    "vq --batch-size 99999",
    "sandwich --batch-size 99999",
    "vae digits mnist",
    "vae --epochs",
    "hierarchical --hidden 20",
    "hierarchical --hidden 20 20 20",
    "collapse --betas",
    "iwae --objectives elbo elbo",
]
DAMAGE = [b"", b"{", b"[]", b"5", b"\xff\xfe\x00", b'{"options": 3}', b'{"versions": {}}']
ROWS = [b"\xff\xfe\n", b"5\n", b'{"epoch": 1}\n', b'{"epoch": "a", "seconds": 1}\n', b"{\n{}\n"]

RAW = re.compile(  # words of Python, numpy or JAX, which say nothing of what was typed
    r"Traceback|invalid literal|could not convert|unsupported operand|has no attribute|Errno|"
    r"NoneType|Tracer|codec can't|Expecting value|broadcast|not callable|_\w+Error|out of range|"
    r"unexpected keyword|must be (real|str)|JSONDecode|KeyError|shape \(0"
)


class Started(BaseException):
    """What the command line asked for would begin now."""


class Hung(BaseException):
    """A case that took too long."""


class Answer(NamedTuple):
    """What came of a case, and what was said.

    "started", "clear" (one line), "boxed" (several lines), "raw" (a traceback, or words of Python),
    "crashed" or "hung".
    """

    kind: str
    said: str


class Case(NamedTuple):
    """Arguments of a recipe, and whether they can be meant."""

    recipe: str
    words: tuple[str, ...]
    meant: bool


def answer(case, argv):
    """Run a case in this process."""
    module, printed = MODULES[case.recipe], io.StringIO()
    argv.setattr(sys, "argv", [f"experiments.{case.recipe}", *case.words])
    signal.alarm(60)
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            common.command_line(module.main, module.PRESETS, module.__doc__)
    except Started:
        return Answer("started", "")
    except Hung:
        return Answer("hung", "")
    except SystemExit as error:
        said = error.code if isinstance(error.code, str) else printed.getvalue()
        if error.code in (0, None):
            return Answer("started", "")
    except Exception as error:
        return Answer("raw", f"{type(error).__name__}: {error}")
    except BaseException as error:
        return Answer("crashed", f"{type(error).__name__}: {error}")
    else:
        return Answer("started", "")
    finally:
        signal.alarm(0)
    lines = [line for line in said.splitlines() if line.strip()]
    if RAW.search(said):
        return Answer("raw", said)
    return Answer("clear" if len(lines) == 1 else "boxed", said)


def number_of(hint):
    """int or float where an option holds such numbers, else None."""
    inside = typing.get_args(hint) or (hint,)
    return next((kind for kind in (int, float) if kind in inside), None)


def wrong_values(name, hint):
    """Values of an option that nobody can mean, each a list of words."""
    kind = number_of(hint)
    if kind is not None:
        alone = [[word] for word in BAD[kind]]
        if kind is int and name not in (*ZERO, "classes"):
            alone.append(["0"])
        if typing.get_origin(hint) is tuple:
            alone += [["2", word] for word in BAD[kind]]
        return alone
    if hint is bool:
        return [["maybe"], ["3"]]
    if name == "dataset":
        return [[word] for word in BAD_DATA]
    if name == "others":
        return [[word] for word in BAD_DATA[:4]]
    if name.endswith("_split"):
        return [[word] for word in BAD_SPLITS]
    if name == "sweep":
        return [[word] for word in BAD_SWEEPS]
    if name == "text":
        return [["missing.txt"], ["folder"], ["binary.npy"], ["empty.npy"], ["pipe"], []]
    if name == "prompt":
        return [["\u2603"], [""]]
    if name == "out":
        return [["text.npz"], ["text.npz/run"], ["used"], ["/proc/no/such"], []]
    if name in ("trained", "params"):
        return [["missing"], ["folder"], ["text.npz"], []]
    return [["nope"], [""], []]  # one of some names


def right_values(module, rng):
    """Arguments that are meant: a preset and some of its own options, in any order."""
    own = {n: c for n, c in module.PRESETS.items() if "mnist" not in str(vars(c))}
    name = rng.choice(list(own) or list(module.PRESETS))
    config, words = own[name], []
    for field in rng.permutation([f.name for f in fields(config)]).tolist():
        value = getattr(config, field)
        if field in ("dataset", "batch_size"):  # --smoke has fewer examples than a batch
            continue
        if type(value) in (int, float, str) and len(words) < 3:
            flag = f"--{field}" if rng.random() < 0.5 else f"--{field.replace('_', '-')}"
            words.append([f"{flag}={value}"] if rng.random() < 0.3 else [flag, str(value)])
    flat = ["--smoke", *(word for part in words for word in part)]
    place = rng.choice([0, 1, len(flat)])
    return flat if name == next(iter(module.PRESETS)) else [*flat[:place], name, *flat[place:]]


@cache
def cases():
    """All cases; each option of each recipe is there."""
    rng, found = np.random.default_rng(18), []
    for recipe, module in MODULES.items():
        first = next(iter(module.PRESETS.values()))
        hints = typing.get_type_hints(type(first))
        for field in fields(first):
            if field.name == "distributed":  # JAX would look for a cluster
                continue
            values = wrong_values(field.name, hints[field.name])
            for i in rng.permutation(len(values))[: 2 if number_of(hints[field.name]) else 1]:
                flag = f"--{field.name.replace('_', '-')}"
                words = [flag, *values[i]]
                if rng.random() < 0.25:
                    words.append("--smoke")
                found.append(Case(recipe, tuple(words), False))
        chosen = OPTION_FREE[rng.integers(len(OPTION_FREE))]
        found.append(Case(recipe, tuple(chosen), False))
        found.append(Case(recipe, tuple(right_values(module, rng)), True))
    found += [Case(line.split()[0], tuple(line.split()[1:]), False) for line in TOGETHER]
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with files of all kinds, in which what would train stops."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary.npy").write_bytes(bytes(range(256)))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    rows = np.random.default_rng(0).normal(size=(700, 12)).astype(np.float32)
    np.save(tmp_path / "activations.npy", rows)
    np.save(tmp_path / "large.npy", 16 * np.ones((200, 8, 8), np.float32))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "short.txt").write_text("to be")
    begin = folder._begin

    def started(*arguments):
        begin(*arguments)
        raise Started

    def hung(*_):
        raise Hung

    monkeypatch.setattr(_load, "_digits", cache(_load._digits))
    monkeypatch.setattr(options.compiling, "keep_on_disk", lambda: None)
    monkeypatch.setattr(folder, "_begin", started)
    signal.signal(signal.SIGALRM, hung)
    yield tmp_path
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def counted(title, found):
    """The cases by what came of them, printed."""
    counts = Counter(kind for _, kind, _ in found)
    print(f"\n{title}: {dict(counts)}")
    for case, kind, said in found:
        if kind not in ("clear", "started"):
            print(f"  {kind}: {case.recipe} {' '.join(map(repr, case.words))}: {said[-300:]!r}")
    return counts


def test_what_nobody_can_mean_is_refused_in_one_line(place, monkeypatch):
    found = []
    for i, case in enumerate(case for case in cases() if not case.meant):
        own = case if "--out" in case.words else case._replace(
            words=(*case.words, "--out", f"runs/{i}")
        )  # fmt: skip
        kind, said = answer(own, monkeypatch)
        found.append((case, "silent" if kind == "started" else kind, said))
    counts = counted("what nobody can mean", found)
    assert not counts["crashed"] and not counts["hung"]
    assert not counts["silent"]
    assert counts["raw"] + counts["boxed"] <= 0.05 * len(found)


def test_what_is_meant_is_not_refused(place, monkeypatch):
    found = []
    for i, case in enumerate(case for case in cases() if case.meant):
        own = case._replace(words=(*case.words, "--out", f"runs/{i}"))
        found.append((case, *answer(own, monkeypatch)))
    counts = counted("what is meant", found)
    assert counts["started"] == len(found)


def test_damaged_records_of_a_run_are_refused_in_one_line(place, monkeypatch):
    run = place / "run"
    words = ("--smoke", "--no-progress", "--out", str(run))
    assert answer(Case("vae", words, True), monkeypatch).kind == "started"
    whole, found = (run / "config.json").read_bytes(), []
    for damage in DAMAGE:
        (run / "config.json").write_bytes(damage)
        case = Case("vae", (*words, "--resume"), False)
        found.append((case, *answer(case, monkeypatch)))
    (run / "config.json").write_bytes(whole)
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setattr(options.compiling, "keep_on_disk", lambda: None)

    def started(*_, **__):
        raise Started

    monkeypatch.setattr(train, "fit", started)
    good = json.dumps({"epoch": 1.0, "seconds": 2.0}).encode() + b"\n"
    for damage in ROWS:
        (run / "metrics.jsonl").write_bytes(good + damage + good)
        found.append((case, *answer(case, monkeypatch)))
    counts = counted("damaged records", found)
    assert counts["clear"] == len(found)
    (run / "metrics.jsonl").write_bytes(good + b'{"epoch": 2.0, "sec')  # of one that was killed
    assert answer(case, monkeypatch).kind == "started"
