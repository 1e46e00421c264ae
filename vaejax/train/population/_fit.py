"""Many runs as one compiled program: the members, the scan of their steps, and `fit`."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from vaejax.batch import as_batch, size_of
from vaejax.data.examples import as_examples
from vaejax.data.sources import in_arrays
from vaejax.errors import at_least_one, check_parameters, is_key, wrong
from vaejax.train import _faults as faults
from vaejax.train import _loop as loop
from vaejax.train import _step as train
from vaejax.train import devices
from vaejax.train._advance import Advance
from vaejax.train._bookkeeping import Bookkeeping
from vaejax.train._order import order_of
from vaejax.train._state import TrainState
from vaejax.trees import digest, finite, on_host
from vaejax.types import (
    Array,
    Batch,
    Key,
    Loss,
    Metrics,
    Params,
    StepOrder,
    Transform,
    describe,
    numbers_in,
)

Make = Callable[[Any], tuple[Loss, optax.GradientTransformation]]
"""`make(hyper) -> (loss, optimizer)`, of one member. It is traced: `hyper` holds arrays."""


class Population(NamedTuple):
    """What `fit` returns; every array of `state` and `best` has a leading axis of members.

    Args:
      hyper: the hyperparameters, as given.
      state: after the last step.
      best: the state with the lowest monitored value, for each member by itself.
      history: arrays `[epochs, members]` by name (`epoch` and `step` are `[epochs]`). Those of a
        frozen member are not finite, from the epoch of that step or the next one on.
      stopped: as in `train.Fitted`.
      frozen: the step before which a member was frozen because its loss, metrics, gradient or new
        parameters were not finite there; -1 for the others, `[members]`.
    """

    hyper: Any
    state: TrainState
    best: TrainState
    history: dict[str, np.ndarray]
    stopped: str
    frozen: np.ndarray

    @property
    def params(self) -> Params:
        """Parameters of all members after the last step."""
        return self.state.params

    def __repr__(self) -> str:
        return (
            f"Population(members={len(self.frozen)}, frozen={int((self.frozen >= 0).sum())}, "
            f"stopped={self.stopped!r}, epochs={len(next(iter(self.history.values()), ()))}, "
            f"steps={describe(self.state.step)}, history={list(self.history)}, "
            f"params={numbers_in(self.params)}, hyper={describe(self.hyper)})"
        )

    def member(self, index: int, *, best: bool = False) -> TrainState:
        """The state of one member, as its own run would have it.

        Args:
          index: which member; -1 is the last.
          best: whether the state with its lowest monitored value is meant instead of the last one.
        Returns:
          A TrainState without the axis of members.
        Raises:
          IndexError: where there is no such member.
        """
        members = len(self.frozen)
        if not -members <= index < members:
            raise wrong(
                "member: index",
                index,
                f"{-members} to {members - 1}",
                f"the population has {members} members",
                IndexError,
            )
        state = self.best if best else self.state
        state = state._replace(key=jax.random.clone(state.key))
        return jax.tree.map(lambda leaf: leaf[index], state)

    def best_member(self, metric: str | None = None) -> int:
        """The member with the lowest value of a metric in any epoch, frozen ones left out.

        Args:
          metric: a name in `history`; by default `eval/loss` where it was evaluated, else `loss`.
        Returns:
          The index of the member.
        Raises:
          ValueError: where every member was frozen, for a metric that is not known for each member,
            and for one that is to be maximised.
        """
        name = metric or ("eval/loss" if "eval/loss" in self.history else "loss")
        if name.endswith("elbo"):
            fix = f"metric {name[:-4] + 'loss'!r}, its negative"
            raise wrong("best_member: metric", repr(name), "what is minimised", fix)
        known = [n for n, v in self.history.items() if v.ndim == 2 and not n.endswith("elbo")]
        if name not in known:
            fix = "evaluate returns what eval/... is to be"
            raise wrong("best_member: metric", repr(name), f"one of {known}", fix)
        values = np.where(self.frozen >= 0, np.inf, np.nan_to_num(self.history[name], nan=np.inf))
        if np.isinf(values).all():
            raise wrong(
                "best_member",
                f"no finite {name!r}",
                "a member that was not frozen",
                "lower the learning rate",
            )
        return int(values.min(axis=0).argmin())


def make_scan(
    make: Make, *, steps: int, indices: StepOrder, transform: Transform | None = None
) -> Callable[[TrainState, Any, Array, Any], tuple[TrainState, Metrics]]:
    """Some updates of all members as one pure program.

    A member whose loss, gradient or new parameters are not finite stays at the state before (its
    `step` tells which), and its metrics are NaN from the next step on.

    Args:
      make: `make(hyper) -> (loss, optimizer)`, of one member.
      steps: how many updates.
      indices: `indices(key, step) -> [batch]` chooses the examples of a step.
      transform: as for `train.make_step`.
    Returns:
      `(state, hyper, start, data) -> (state, history)`. `state` and `hyper` have a leading axis of
      members. `start` is the number of the first step, one for all, so that what depends on it
      alone is computed once. `history` holds each metric, `[steps, members]`, nats per example.
    """

    def gradient(hyper: Any, state: TrainState, number: Array, data: Batch) -> Any:
        chosen = indices(train.key_for(state.key, "order"), number)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], data)
        now = state._replace(step=number)
        return train.gradient(make(hyper)[0], now, batch, transform=transform)

    def update(hyper: Any, state: TrainState, grads: Params) -> TrainState:
        return train.update(make(hyper)[1], state, grads)

    def scan(state: TrainState, hyper: Any, start: Array, data: Any) -> tuple[TrainState, Metrics]:
        data = as_batch(data)

        def body(state: TrainState, number: Array) -> tuple[TrainState, Metrics]:
            going = state.step == number
            found = jax.vmap(gradient, (0, 0, None, None))(hyper, state, number, data)
            grads, fine, metrics = found
            old = state._replace(key=())
            new = jax.vmap(update)(hyper, old, grads)
            fine = fine & jax.vmap(finite)(new.params)  # an optimizer can spoil them too
            new = loop.chosen(fine & going, new, old)
            metrics = {name: jnp.where(going, value, jnp.nan) for name, value in metrics.items()}
            return new._replace(key=state.key), metrics

        return lax.scan(body, state, start + jnp.arange(steps, dtype=jnp.int32))

    return scan


def fit(
    make: Make,
    hyper: Any,
    params: Params,
    data: Any,
    *,
    keys: Key,
    epochs: int,
    batch_size: int = 128,
    indices: StepOrder | None = None,
    transform: Transform | None = None,
    evaluate: Callable[[Any, Params, Key], Metrics] | None = None,
    evaluate_every: int = 1,
    monitor: str = "loss",
    patience: int | None = None,
    directory: str | Path | None = None,
    keep: int = 2,
    checkpoint_every: int = 1,
    resume: bool = False,
    chunk: int = 500,
    mesh: Mesh | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
) -> Population:
    """Train a population with progress, evaluation, checkpoints and exact resume.

    A member ends with what `train.fit` with its loss, optimizer, parameters and key gives, up to
    the order of floating-point sums. A member that is not finite is frozen before that step, with a
    warning, and the others go on.

    Args:
      make: `make(hyper) -> (loss, optimizer)`, of one member; it is traced.
      hyper: a tree of arrays `[members, ...]`, such as `grid` makes. `make` need not use all of it
        (seeds, for instance).
      params: with a leading axis of members: `jax.vmap(model.init, (0, None))(keys, x)`.
      data: a Batch, or the x of one, `[n, ...]`; all members see the same.
      keys: the keys of the members' runs, `[members]`, of JAX's default kind, threefry2x32.
      epochs: as for `train.fit`, like all that is not told here.
      batch_size, indices, transform: as for `train.fit`; each member has an order of its own.
      evaluate: `evaluate(hyper, params, key) -> {name: number}`, of one member; it is traced.
        `mean_loss` makes one. By default nothing is evaluated.
      evaluate_every, monitor: as for `train.fit`; `best` is kept for each member.
      patience: as for `train.fit`; the run stops once all members are out of it.
      directory, keep, checkpoint_every, resume: as for `train.fit`; one checkpoint holds all.
      chunk: as for `train.fit`.
      mesh: several devices, which must divide the number of members: these are split over them.
      log: `log(row)` gets each epoch's numbers, a list with one for each member.
      progress: as for `train.fit`.
    Returns:
      Population.
    Raises:
      NonFiniteError: once every member is frozen.
      TypeError: for a Source.
      ValueError: where an argument has no value for each member.
      Exception: else as `train.fit`.
    """
    members = _members(hyper, params, keys)
    examples = as_examples("population.fit", in_arrays("population.fit", data), transform)
    check_parameters("population.fit: params", params)
    order_key = train.key_for(jax.random.clone(keys)[0], "order")
    order = order_of(indices, order_key, examples.size, batch_size)
    book = Bookkeeping(
        epochs=epochs,
        chunk=chunk,
        evaluate_every=evaluate_every,
        monitor=monitor,
        patience=patience,
        directory=directory,
        keep=keep,
        checkpoint_every=checkpoint_every,
        resume=resume,
        hook=None,
        log=log,
        progress=progress,
    )
    hyper = jax.tree.map(jnp.asarray, hyper)
    state = jax.jit(jax.vmap(_member_init(make)))(hyper, keys, params)
    if mesh is None:
        everywhere = jax.tree.map(jnp.asarray, examples.arrays)
    else:
        devices.check_divides("population.fit: members", members, mesh)
        state, hyper = devices.put((state, hyper), devices.split(mesh))
        everywhere = devices.put(examples.arrays, devices.copied(mesh))
    program = loop.Program(
        advance=_advance(make, hyper, order, transform, everywhere),
        inspect=partial(_inspect, hyper, members),
        evaluate=None if evaluate is None else _measure(evaluate, hyper),
        steps=examples.size // batch_size,
        identity={
            "examples": examples.size,
            "data": examples.digest,
            "batch_size": batch_size,
            "members": members,
            "hyper": digest(hyper),
            "keys": digest(jax.random.key_data(keys)),
        },
    )
    fitted = loop.drive(state, program, book)
    reached = on_host(fitted.state.step)
    frozen = np.where(reached < reached.max(), reached, -1)
    return Population(hyper, *fitted, frozen)


def _advance(
    make: Make, hyper: Any, order: StepOrder, transform: Transform | None, data: Batch
) -> Advance:
    """Steps of all members, a chunk of them by one program."""
    scan = partial(make_scan, make, indices=order, transform=transform)
    run_chunk = jax.jit(
        lambda state, hyper, start, data, count: scan(steps=count)(state, hyper, start, data),
        static_argnums=4,
        donate_argnums=0,
    )

    def advance(state: TrainState, start: int, count: int) -> tuple[TrainState, Metrics]:
        number = jnp.asarray(start, jnp.int32)
        state, history = run_chunk(state, hyper, number, data, count)
        return state, on_host(history)

    return advance


def _measure(
    evaluate: Callable[[Any, Params, Key], Metrics], hyper: Any
) -> Callable[[TrainState], Metrics]:
    """What `evaluate` finds of each member, NaN for those that are frozen."""

    def one(hyper: Any, params: Params, key: Key) -> Metrics:
        return evaluate(hyper, params, train.key_for(key, "evaluation"))

    @jax.jit
    def measured(hyper: Any, state: TrainState) -> Metrics:
        found = jax.vmap(one)(hyper, state.params, state.key)
        going = state.step == state.step.max()  # a frozen member's numbers are not a run's
        return {name: jnp.where(going, value, jnp.nan) for name, value in found.items()}

    return lambda state: on_host(measured(hyper, state))


def _member_init(make: Make) -> Callable[[Any, Key, Params], TrainState]:
    """The first state of one member."""

    def init(hyper: Any, key: Key, params: Params) -> TrainState:
        return train.make_step(*make(hyper))[0](key, params)

    return init


def _members(hyper: Any, params: Params, keys: Key) -> int:
    """How many members there are, which all arguments have to agree on."""
    if not is_key(keys):
        fix = "make them: jax.random.split(jax.random.key(0), members)"
        raise wrong("population.fit: keys", describe(keys), "an array of keys", fix, TypeError)
    members = size_of(jax.random.key_data(keys)) if jnp.ndim(keys) else 0
    at_least_one("population.fit", keys=members)
    if (kind := str(jax.random.key_impl(keys))) != "threefry2x32":
        # Mapped over, the others draw other numbers for a member than for its run alone.
        fix = 'make them by jax.random.key(seed, impl="threefry2x32")'
        raise wrong("population.fit: keys", f"{kind} keys", "threefry2x32 keys", fix)
    for name, tree in (("hyper", hyper), ("params", params)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if np.shape(leaf)[:1] != (members,):
                where = f"population.fit: {name}{jax.tree_util.keystr(path)}"
                expected = f"a leading axis of {members}, the keys"
                fix = (
                    "make it with jax.vmap(model.init, (0, None))(keys, x)"
                    if name == "params"
                    else "give one value for each member: population.grid"
                )
                raise wrong(where, f"shape {np.shape(leaf)}", expected, fix)
    return members


def _inspect(
    hyper: Any,
    members: int,
    run: loop.Run,
    history: Metrics,
    start: int,
    last: Callable[[], Path | None],
) -> None:
    """Warn of members that were frozen in this chunk; raise once all are."""
    faults.check_metrics(history, 2)
    reached = on_host(run.state.step)
    steps = len(next(iter(history.values())))
    for member in np.flatnonzero((reached >= start) & (reached < start + steps)):
        first = int(reached[member])
        terms = {name: float(values[first - start, member]) for name, values in history.items()}
        setting = {
            jax.tree_util.keystr(path): np.asarray(on_host(leaf))[member].tolist()
            for path, leaf in jax.tree_util.tree_leaves_with_path(hyper)
        }
        warnings.warn(
            f"population.fit: member {member} of {members} ({setting}) is frozen before step "
            f"{first}, whose loss, gradient or new parameters are not finite ({terms}); the others "
            "go on",
            stacklevel=5,
        )
    if (reached < start + steps).all():
        raise faults.NonFiniteError(
            f"population.fit: none of the {members} members is finite any more; the last was "
            f"frozen before step {int(reached.max())}. {faults.last_good(last())}",
            int(reached.max()),
            {},
            last(),
        )
