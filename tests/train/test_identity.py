"""A run goes on only as what it was: its functions are told apart by what they compute."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.runs import ADAM, DISTANCE, MEAN, equal, quiet_fit
from vaejax import data, train
from vaejax.train import _identity as identity
from vaejax.train.population import _fit as members

X = jax.ShapeDtypeStruct((4, 3), np.float32)


def digest(function, *kinds):
    return identity.fingerprint(function, *(kinds or (X,)))["sha256"]


def weighted(weight):
    """A function with a number, an array in its closure, and a compiled part."""
    table = np.arange(3, dtype=np.float32)

    def function(x):
        return jax.nn.relu(weight * x) @ jnp.asarray(table), jax.jit(jnp.sort)(x)

    return function


def test_the_same_program_has_the_same_digest_whatever_it_is_called():
    first = digest(weighted(0.5))
    assert first == digest(weighted(0.5)) == digest(partial(weighted(0.5)))
    renamed = weighted(0.5)
    renamed.__name__ = "another"
    assert first == digest(renamed) == digest(jax.jit(renamed)) != digest(weighted(0.25))


@jax.custom_vjp
def straight(x):
    return jnp.round(x)


@jax.custom_vjp
def reversed_straight(x):
    return jnp.round(x)


straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
reversed_straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (-g,))


def test_what_differs_by_a_number_an_array_or_its_gradient_alone_is_told_apart():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    other = table.copy()
    other[3, 1] += 1e-6
    key = jax.random.key(5)
    pairs = [
        (lambda x: x * 2.0, lambda x: x * 2.5),
        (lambda x: x + table, lambda x: x + other),
        (jax.jit(lambda x: x + jnp.asarray(table)), jax.jit(lambda x: x + jnp.asarray(other))),
        (lambda x: jnp.sum(x, 0), lambda x: jnp.sum(x, 1)),
        (lambda x: jax.lax.scan(lambda c, r: (c + r, ()), 0 * x[0], x)[0], lambda x: x.sum(0)),
        (
            lambda x: x * jax.random.normal(key, (4, 3)),
            lambda x: x * jax.random.normal(key, (1, 3)),
        ),
        (
            jax.grad(lambda x: jnp.sum(straight(x))),
            jax.grad(lambda x: jnp.sum(reversed_straight(x))),
        ),
        (
            jax.grad(lambda x: jnp.sum(x * x)),
            jax.grad(lambda x: jnp.sum(jax.lax.stop_gradient(x) * x)),
        ),
    ]
    for one, another in pairs:
        assert digest(one) == digest(one) != digest(another)
    assert digest(jnp.sin) != digest(jnp.sin, jax.ShapeDtypeStruct((3, 4), np.float32))


def run_parts():
    """The digests of a run's functions, of which the loss is one with noise and a cosine."""
    init, _ = train.make_step(DISTANCE, ADAM)
    state = jax.eval_shape(init, jax.random.key(0), MEAN)
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-2, 12), weight_decay=1e-3)
    state = state._replace(opt_state=jax.eval_shape(optimizer.init, MEAN))
    example = train.population._fit.as_batch(np.zeros((1, 4, 3), np.uint8))
    found = identity.of_functions(
        DISTANCE, optimizer, data.scale, train.shuffled(50, 16), state, example, 16
    )
    return " ".join(part["sha256"] for part in found.values())


def test_another_process_finds_the_same_digests():
    """With other addresses, and another seed of Python's hashes."""
    root = Path(__file__).parents[2]
    command = "from tests.train.test_identity import run_parts; print(run_parts())"
    found = subprocess.run(
        [sys.executable, "-c", command],
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": "77"},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == run_parts().split() and len(found.stdout.split()) == 4


# --- a run that goes on --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The directory of a run of one epoch."""
    folder = tmp_path_factory.mktemp("begun")
    quiet_fit(epochs=1, directory=folder)
    return folder


def doubled(*arguments):
    value, metrics = DISTANCE(*arguments)
    return 2.5 * value, metrics


def in_order(key, step):
    return (16 * step + jnp.arange(16)) % 50


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"optimizer": optax.adam(3e-2)},
            "optimizer: checkpoint one with -0.01, here one with -0.03",
        ),
        ({"optimizer": optax.adam(optax.linear_schedule(1e-2, 0, 90))}, "optimizer; .*count: "),
        ({"optimizer": optax.sgd(1e-2)}, "optimizer; "),
        ({"optimizer": optax.chain(ADAM)}, "optimizer; "),
        ({"loss": doubled}, "loss: checkpoint one of digest .*, here one with 2.5"),
        ({"transform": lambda key, x: x / 128}, "transform: .* with 255, here one with 128"),
        ({"indices": in_order}, "indices: checkpoint .*another order of the examples"),
        ({"hook": lambda state: state}, "hook: checkpoint none, here one"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_another_run_does_otherwise_is_said(begun, change, line):
    before = sorted(begun.rglob("*"))
    with pytest.raises(ValueError, match=f"(?s)fit: .*another .*{line}") as caught:
        quiet_fit(directory=begun, resume=True, **change)
    said = str(caught.value)
    names = [name for name in identity.MEANING if f"\n  {name}: " in said]
    assert names in ([], [next(iter(change))]) and "nothing was changed" in said
    if names:
        assert f"params=checkpoint.load('{begun}', like=params)" in said
    assert sorted(begun.rglob("*")) == before


def test_what_only_looks_different_goes_on(begun, tmp_path, whole):
    folder = shutil.copytree(begun, tmp_path / "copy")
    resumed = quiet_fit(
        loss=partial(DISTANCE),
        optimizer=optax.adam(learning_rate=1e-2, b1=0.9),
        indices=train.shuffled(50, 16),
        transform=lambda key, x: data.scale(key, x),
        directory=folder,
        resume=True,
        patience=None,
        chunk=2,
    )
    equal(resumed.state, whole.state)


def test_under_another_version_a_difference_is_a_warning(begun, tmp_path, monkeypatch):
    same, changed = (shutil.copytree(begun, tmp_path / name) for name in ("same", "changed"))
    other = identity.versions() | {"jax": "99.9"}
    monkeypatch.setattr(identity, "versions", lambda: other)
    quiet_fit(directory=same, resume=True, epochs=2)  # of the same program: nothing is said
    with pytest.raises(ValueError, match="key: checkpoint"):
        quiet_fit(directory=changed, resume=True, epochs=2, seed=4)
    with pytest.warns(UserWarning, match="(?s)other versions.*optimizer: .*jax: checkpoint .*99.9"):
        quiet_fit(directory=changed, resume=True, epochs=2, optimizer=optax.adam(0.5))


def test_the_functions_of_a_population_are_compared_too():
    """By the program of one member, whatever the values of its hyperparameters."""
    hyper = {"beta": np.ones(2, np.float32)}

    def parts(make):
        first = jax.tree.map(lambda leaf: leaf[0], hyper)
        init = lambda key: members._member_init(make)(first, key, MEAN)  # noqa: E731
        state = jax.eval_shape(init, jax.random.key(0))
        example = members.as_batch(np.zeros((1, 4, 3), np.uint8))
        order = train.shuffled(50, 16)
        return identity.of_members(make, first, state, data.scale, order, example, 16)

    def make(hyper, rate=1e-2, power=1):
        def loss(*arguments):
            value, metrics = DISTANCE(*arguments)
            return hyper["beta"] ** power * value, metrics

        return loss, optax.adam(rate)

    base = parts(make)
    for changed, name in ((partial(make, rate=0.5), "optimizer"), (partial(make, power=3), "loss")):
        said, doubtful = identity.words_for({"functions": base}, {"functions": parts(changed)})
        assert said.startswith(f"{name}: ") and "\n" not in said and not doubtful
    assert identity.words_for({"functions": base}, {"functions": parts(partial(make))}) == ("", "")
