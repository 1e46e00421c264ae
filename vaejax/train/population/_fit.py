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

from vaejax.arrays import digest, finite, on_host
from vaejax.batch import as_batch, mean_weight_of
from vaejax.compiling import kept
from vaejax.data.examples import as_examples
from vaejax.data.sources import in_arrays
from vaejax.errors import check_parameters, wrong
from vaejax.train import _callbacks as callbacks
from vaejax.train import _faults as faults
from vaejax.train import _identity as identity
from vaejax.train import _loop as loop
from vaejax.train import _step as train
from vaejax.train import devices
from vaejax.train._advance import Advance
from vaejax.train._averaging import average, named_averages, with_average
from vaejax.train._bookkeeping import Bookkeeping, check_direction
from vaejax.train._order import order_of
from vaejax.train._state import TrainState
from vaejax.train.population._arguments import check_functions, members_of
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
      best: the state with the best monitored value, for each member by itself.
      history: arrays `[epochs, members]` by name (`epoch` and `step` are `[epochs]`). Those of a
        frozen member are not finite, from the epoch of that step or the next one on.
      stopped: as in `train.Fitted`.
      frozen: the step before which a member was frozen because its loss, metrics, gradient, new
        parameters or optimizer's state were not finite there; -1 for the others, `[members]`.
      monitor, maximize: by which number `best` was chosen, as given to `fit`.
    """

    hyper: Any
    state: TrainState
    best: TrainState
    history: dict[str, np.ndarray]
    stopped: str
    frozen: np.ndarray
    monitor: str = "loss"
    maximize: bool = False

    @property
    def params(self) -> Params:
        """Parameters of all members after the last step."""
        return self.state.params

    @property
    def average(self) -> Params:
        """The averages of all members' parameters, of optimizers by `train.averaging`."""
        return average(self.state)

    def __repr__(self) -> str:
        return (
            f"Population(members={len(self.frozen)}, frozen={int((self.frozen >= 0).sum())}, "
            f"stopped={self.stopped!r}, state.step={describe(self.state.step)}, "
            f"history={list(self.history)} of {len(next(iter(self.history.values()), ()))} epochs, "
            f"params={numbers_in(self.params)}, hyper={describe(self.hyper)})"
        )

    def member(self, index: int, *, best: bool = False) -> TrainState:
        """The state of one member, as its own run would have it.

        Args:
          index: which member; -1 is the last.
          best: whether the state with its best monitored value is meant instead of the last one.
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

    def best_member(self, metric: str | None = None, *, maximize: bool | None = None) -> int:
        """The member with the best value of a metric in any epoch, frozen ones left out.

        Warns (UserWarning) where losses of different beta are compared: D + beta R is another
        number for each beta. What compares is the bound.

        Args:
          metric: a name in `history`; by default the monitored number where it was evaluated, else
            `loss`.
          maximize: whether the highest value is best; by default as for `fit` where `metric` is the
            monitored number, else the lowest.
        Returns:
          The index of the member.
        Raises:
          ValueError: where every member was frozen, for a metric that is not known for each member,
            and for an ELBO that would be minimised.
        """
        monitored = f"eval/{self.monitor}"
        name = metric or (monitored if monitored in self.history else "loss")
        if maximize is None:
            maximize = self.maximize and name == monitored
        check_direction("best_member: metric", name, maximize)
        known = [n for n, v in self.history.items() if v.ndim == 2]
        if name not in known:
            fix = "evaluate returns what eval/... is to be"
            raise wrong("best_member: metric", repr(name), f"one of {known}", fix)
        self._check_one_beta(name)
        values = -self.history[name] if maximize else self.history[name]
        values = np.where((self.frozen >= 0) | ~np.isfinite(values), np.inf, values)
        if np.isinf(values).all():
            raise wrong(
                "best_member",
                f"no finite {name!r}",
                "a member that was not frozen",
                "lower the learning rate",
            )
        return int(values.min(axis=0).argmin())

    def _check_one_beta(self, name: str) -> None:
        """Warn of a loss whose weight of the rate, the metric `beta` beside it, differs."""
        start, _, metric = name.rpartition("/")
        start = f"{start}/" if start else ""
        beta = self.history.get(f"{start}beta")
        if metric != "loss" or beta is None or f"{start}elbo" not in self.history:
            return
        last = beta[-1][self.frozen < 0]
        if len(last) and np.ptp(last) > 0:
            warnings.warn(
                f"best_member: got {name!r} of members whose beta goes from {last.min():g} to "
                f"{last.max():g}, expected a number that compares across them; "
                f"best_member({start + 'elbo'!r}, maximize=True) takes the bound",
                stacklevel=3,
            )


def make_scan(
    make: Make,
    *,
    steps: int,
    indices: StepOrder,
    transform: Transform | None = None,
    norms: bool = False,
) -> Callable[[TrainState, Any, Array, Any], tuple[TrainState, Metrics]]:
    """Some updates of all members as one pure program.

    A member whose loss, gradient, new parameters or optimizer's state are not finite stays at the
    state before (its `step` tells which), and its metrics are NaN from the next step on. Weights
    count as in `train.make_scan`.

    Args:
      make: `make(hyper) -> (loss, optimizer)`, of one member.
      steps: how many updates.
      indices: `indices(key, step) -> [batch]` chooses the examples of a step.
      transform, norms: as for `train.make_step`.
    Returns:
      `(state, hyper, start, data) -> (state, history)`. `state` and `hyper` have a leading axis of
      members. `start` is the number of the first step, one for all, so that what depends on it
      alone is computed once. `history` holds each metric, `[steps, members]`, nats per example,
      as in `train.make_scan`.
    """
    members = _scan_of(make, steps=steps, indices=indices, transform=transform, norms=norms)

    def scan(state: TrainState, hyper: Any, start: Array, data: Any) -> tuple[TrainState, Metrics]:
        state, history = members(state, hyper, start, data)
        return state, train.values_of(history)

    return scan


def _scan_of(
    make: Make, *, steps: int, indices: StepOrder, transform: Transform | None, norms: bool
) -> Callable[[TrainState, Any, Array, Any], tuple[TrainState, Metrics]]:
    """`make_scan`, whose history keeps what share of its batch a metric is of (`Weighted`)."""

    def gradient(
        hyper: Any, state: TrainState, number: Array, data: Batch, mean_weight: Any
    ) -> Any:
        chosen = indices(train.key_for(state.key, "order"), number)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], data)
        now = state._replace(step=number)
        loss = make(hyper)[0]
        return train.gradient(loss, now, batch, transform=transform, mean_weight=mean_weight)

    def update(hyper: Any, state: TrainState, grads: Params) -> TrainState:
        return train.update(make(hyper)[1], state, grads)

    def scan(state: TrainState, hyper: Any, start: Array, data: Any) -> tuple[TrainState, Metrics]:
        data = as_batch(data)
        mean_weight = mean_weight_of(data)

        def body(state: TrainState, number: Array) -> tuple[TrainState, Metrics]:
            going = state.step == number
            shared = number, data, mean_weight
            found = jax.vmap(gradient, (0, 0, None, None, None))(hyper, state, *shared)
            grads, fine, metrics = found
            old = state._replace(key=())
            new = jax.vmap(update)(hyper, old, grads)
            # An optimizer can spoil the parameters too, and a huge gradient its state.
            fine = fine & jax.vmap(finite)(new.params)
            fine = fine & lax.cond(
                jnp.all(jax.vmap(train.moderate)(grads, old.opt_state)),
                lambda new, old: jnp.ones_like(fine),
                jax.vmap(train.unspoilt),
                (new.params, new.opt_state),
                (old.params, old.opt_state),
            )
            new = loop.chosen(fine & going, new, old)
            if norms:
                metrics = jax.vmap(train.with_norms)(metrics, grads, old.params, new.params)
            metrics = jax.tree.map(lambda value: jnp.where(going, value, jnp.nan), metrics)
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
    maximize: bool = False,
    patience: int | None = None,
    directory: str | Path | None = None,
    keep: int = 2,
    checkpoint_every: int = 1,
    resume: bool = False,
    norms: bool = False,
    chunk: int = 500,
    mesh: Mesh | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    log_step: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
) -> Population:
    """Train a population with progress, evaluation, checkpoints and exact resume.

    A member ends with what `train.fit` with its loss, optimizer, parameters and key gives, up to
    the order of floating-point sums. A member that is not finite is frozen before that step, with a
    warning, and the others go on.

    Args:
      make: `make(hyper) -> (loss, optimizer)`, of one member; it is traced. With `train.averaging`
        around the optimizer each member has an average, as in `train.fit`.
      hyper: a tree of arrays `[members, ...]`, such as `grid` makes. `make` need not use all of it
        (seeds, for instance).
      params: with a leading axis of members: `jax.vmap(model.init, (0, None))(keys, x)`.
      data: a Batch, or the x of one, `[n, ...]`; all members see the same.
      keys: the keys of the members' runs, `[members]`, of JAX's default kind, threefry2x32.
      epochs: as for `train.fit`, like all that is not told here.
      batch_size, indices, transform: as for `train.fit`; each member has an order of its own.
      evaluate: `evaluate(hyper, params, key) -> {name: number}`, of one member; it is traced.
        `mean_loss` makes one. By default nothing is evaluated.
      evaluate_every, monitor, maximize: as for `train.fit`; `best` is kept for each member.
      patience: as for `train.fit`; the run stops once all members are out of it.
      directory, keep, checkpoint_every, resume: as for `train.fit`; one checkpoint holds all.
      norms, chunk: as for `train.fit`.
      mesh: several devices, which must divide the number of members: these are split over them.
      log: `log(row)` gets each epoch's numbers, a list with one for each member.
      log_step: as for `train.fit`, with such lists.
      progress: as for `train.fit`.
    Returns:
      Population.
    Raises:
      NonFiniteError: once every member is frozen.
      TypeError: for a Source.
      ValueError: where an argument has no value for each member.
      Exception: else as `train.fit`.
    """
    check_functions(make, transform, evaluate, log, log_step)
    members = members_of(hyper, params, keys)
    examples = as_examples("population.fit", in_arrays("population.fit", data), transform)
    check_parameters("population.fit: params", params)
    order_key = train.key_for(jax.random.clone(keys)[0], "order")
    order = order_of(indices, order_key, examples.size, batch_size, "population.fit")
    book = Bookkeeping(
        function="population.fit",
        epochs=epochs,
        chunk=chunk,
        evaluate_every=evaluate_every,
        monitor=monitor,
        maximize=maximize,
        patience=patience,
        directory=directory,
        keep=keep,
        checkpoint_every=checkpoint_every,
        resume=resume,
        hook=None,
        log=log,
        log_step=log_step,
        progress=progress,
    )
    hyper = jax.tree.map(jnp.asarray, hyper)
    start = jax.vmap(_member_init(make))
    state = kept(start, hyper, keys, params)(hyper, keys, params)
    if mesh is None:
        everywhere = jax.tree.map(jnp.asarray, examples.arrays)
    else:
        devices.check_divides("population.fit: members", members, mesh)
        state, hyper = devices.put((state, hyper), devices.split(mesh))
        everywhere = devices.put(examples.arrays, devices.copied(mesh))

    def identified() -> dict[str, Any]:
        one, start = jax.eval_shape(lambda tree: jax.tree.map(lambda a: a[0], tree), (hyper, state))
        example = examples.source.read(np.zeros(1, int))
        return {
            "examples": examples.size,
            "data": examples.digest,
            "batch_size": batch_size,
            "members": members,
            "hyper": digest(hyper),
            "keys": digest(jax.random.key_data(keys)),
            "functions": identity.of_members(
                make, one, start, transform, order, example, batch_size
            ),
            "versions": identity.versions(),
        }

    program = loop.Program(
        advance=_advance(make, hyper, order, transform, norms, everywhere),
        inspect=partial(_inspect, hyper, members),
        evaluate=None if evaluate is None else _measure(evaluate, hyper),
        steps=examples.size // batch_size,
        identity=identified,
    )
    fitted = loop.drive(state, program, book)
    reached = on_host(fitted.state.step)
    frozen = np.where(reached < reached.max(), reached, -1)
    return Population(hyper, *fitted, frozen, monitor, maximize)


def _advance(
    make: Make,
    hyper: Any,
    order: StepOrder,
    transform: Transform | None,
    norms: bool,
    data: Batch,
) -> Advance:
    """Steps of all members, a chunk of them by one program."""
    scan = partial(_scan_of, make, indices=order, transform=transform, norms=norms)
    programs: dict[int, Callable[..., Any]] = {}

    def advance(state: TrainState, start: int, count: int) -> tuple[TrainState, Metrics]:
        arguments = state, hyper, jnp.asarray(start, jnp.int32), data
        if count not in programs:
            programs[count] = kept(scan(steps=count), *arguments, donate_argnums=0)
        state, history = programs[count](*arguments)
        return state, on_host(history)

    return advance


def _measure(
    evaluate: Callable[[Any, Params, Key], Metrics], hyper: Any
) -> Callable[[TrainState], Metrics]:
    """What `evaluate` finds of each member, NaN for those that are frozen."""

    def one(hyper: Any, params: Params, key: Key) -> Metrics:
        found = evaluate(hyper, params, train.key_for(key, "evaluation"))
        return callbacks.numbers("population.fit", found, ())

    def measured(hyper: Any, state: TrainState) -> Metrics:
        found = jax.vmap(one)(hyper, state.params, state.key)
        if named_averages(state):
            found = with_average(found, jax.vmap(one)(hyper, average(state), state.key))
        going = state.step == state.step.max()  # a frozen member's numbers are not a run's
        return {name: jnp.where(going, value, jnp.nan) for name, value in found.items()}

    program: Callable[..., Any] | None = None

    def measure(state: TrainState) -> Metrics:
        nonlocal program
        if program is None:
            program = kept(measured, hyper, state)
        return on_host(program(hyper, state))

    return measure


def _member_init(make: Make) -> Callable[[Any, Key, Params], TrainState]:
    """The first state of one member."""

    def init(hyper: Any, key: Key, params: Params) -> TrainState:
        made = make(hyper)
        callbacks.check_member(made)
        return train.make_step(*made)[0](key, params)

    return init


def _inspect(
    hyper: Any,
    members: int,
    run: loop.Run,
    history: Metrics,
    start: int,
    last: Callable[[], Path | None],
) -> None:
    """Warn of members that were frozen in this chunk; raise once all are."""
    faults.check_metrics(history, 2, "population.fit")
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
            f"{first}, whose loss, gradient, new parameters or optimizer's state are not finite "
            f"({terms}); the others go on",
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
