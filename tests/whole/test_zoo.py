"""Every family of the library through one suite: gradients, one trace, shapes, training, storage.

The members are in members.py; what is particular to one is tested where it lives.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.flatten_util import ravel_pytree

from tests.whole.members import EXAMPLES, MEMBERS, RECONSTRUCTION, X
from vaejax import (
    Batch,
    Model,
    checkpoint,
    generate,
    train,
)
from vaejax.train.precision import mixed_precision

every = pytest.mark.parametrize("name", MEMBERS)
member = cache(lambda name: MEMBERS[name]())


def first(tree: Any) -> Any:
    """In numpy: sliced by JAX, every shape would be a program to compile."""
    return jax.tree.map(lambda leaf: leaf[0], jax.device_get(tree))


def first_of(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def last(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[-1], jax.device_get(tree))


def watched() -> optax.GradientTransformation:
    """Gradients as they are; the state sums up how large they were."""

    def update(grads: Any, seen: Any, params: Any = None) -> tuple[Any, Any]:
        return grads, jax.tree.map(lambda total, g: total + jnp.abs(g), seen, grads)

    return optax.GradientTransformation(partial(jax.tree.map, jnp.zeros_like), update)


class Trained(NamedTuple):
    """The first of three before and after 50 steps, gradients, histories, the last at its start."""

    start: Any
    params: Any
    gradients: Any
    losses: np.ndarray
    falling: np.ndarray
    last: Any


WHOLE_BATCH = {"indices": lambda key, step: jnp.arange(EXAMPLES)}


def run_keys() -> Any:
    return jax.random.split(jax.random.key(4), 3)


@pytest.fixture(scope="module")
def trained() -> Callable[[str], Trained]:
    """A member trained three times in one program, once for all the tests of this file."""

    @cache
    def run(name: str) -> Trained:
        family = member(name)
        keys = jax.random.split(jax.random.key(3), 3)
        start = jax.jit(jax.vmap(family.init))(keys)
        chex.clear_trace_counter()
        once = chex.assert_max_traces(family.loss, n=1)
        optimizer = optax.chain(watched(), family.optimizer)
        program = train.make_train(once, optimizer, steps=50, **WHOLE_BATCH)
        keys = run_keys()
        results = jax.jit(jax.vmap(program, (0, 0, None)))(keys, start, family.batch)
        states, history = jax.device_get(results)
        assert states.step.shape == (3,)
        return Trained(
            first(start),
            first(states.params),
            states.opt_state[0],
            np.asarray(history["loss"]),
            np.asarray(history[family.falls]),
            last(start),
        )

    return run


@every
def test_gradients_are_finite_and_reach_every_parameter(name, trained):
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained(name).gradients):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), jax.tree_util.keystr(path)


@every
def test_the_loss_falls_in_fifty_steps_of_one_trace(name, trained):
    """That it is traced once is counted while it trains: a second trace raises."""
    found = trained(name)
    assert np.isfinite(found.losses).all()
    assert (found.falling[:, -5:].mean(axis=1) < found.falling[:, :5].mean(axis=1)).all()


@every
def test_the_members_of_a_population_of_three_are_three_runs(name, trained):
    assert len(np.unique(trained(name).losses[:, 2])) == 3


@every
def test_a_member_of_a_population_of_three_is_what_it_is_alone(name, trained):
    family, found = member(name), trained(name)
    alone = jax.jit(train.make_train(family.loss, family.optimizer, steps=3, **WHOLE_BATCH))
    losses = alone(run_keys()[-1], found.last, family.batch)[1]["loss"]
    np.testing.assert_allclose(found.losses[-1, :3], losses, rtol=2e-4, atol=1e-4)


@every
def test_a_batch_is_mapped_to_what_the_loop_gives(name, trained):
    family, params = member(name), trained(name).params
    x = jax.tree.map(lambda leaf: leaf[:2], family.batch.x)
    mapped = jax.jit(jax.vmap(family.outputs, (None, 0)))(params, x)
    looped = map(partial(jax.jit(family.outputs), params), (first(x), last(x)))
    for from_batch, alone in zip(mapped, looped, strict=True):
        assert np.isfinite(alone).all()
        np.testing.assert_allclose(from_batch, alone, rtol=1e-4, atol=1e-5)


@every
def test_shapes_of_samples(name, trained):
    family, params = member(name), trained(name).params
    if family.sample is None:
        with pytest.raises(ValueError, match="no prior"):
            generate(family.model, params, jax.random.key(1))
    else:
        sample = jax.jit(family.sample)(params, jax.random.key(1))
        expected = jax.tree.leaves(family.batch.x)[0]
        assert sample.shape == expected.shape[1:] and np.isfinite(sample).all()


@every
def test_stored_parameters_come_back_bit_for_bit(name, trained, tmp_path):
    params = trained(name).params
    state = train.make_step(member(name).loss, optax.sgd(0.1))[0](jax.random.key(1), params)
    identity = {"examples": EXAMPLES}
    with checkpoint.opened(tmp_path, identity, resume=False) as store:
        checkpoint.save(store, 1, checkpoint.Record(state, state, {"epoch": 1}))
    chex.assert_trees_all_equal(checkpoint.load(tmp_path, like=trained(name).start), params)


@every
def test_training_and_outputs_lower_for_gpus_and_tpus(name):
    """As far as JAX itself goes: what XLA makes of it there is not seen here."""
    family = member(name)

    def program(params: Any, key: Any, batch: Any) -> Any:
        init, step = train.make_step(family.loss, family.optimizer)
        return step(init(key, params), batch), family.outputs(params, first_of(batch.x))

    params = jax.eval_shape(family.init, jax.random.key(0))
    exported = export.export(jax.jit(program), platforms=("cuda", "tpu"))
    words = exported(params, jax.random.key(1), family.batch).mlir_module()
    assert "stablehlo" in words


@pytest.mark.parametrize(
    "name", ["kl", "semi_supervised", "beta_tcvae", "factor_vae", "vector_quantised"]
)
def test_a_batch_in_which_nothing_counts_moves_nothing(name, trained):
    """Though all of it is NaN, and the loss has more terms than means over examples."""
    family, start = member(name), trained(name).start
    x = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), family.batch.x)
    batch = family.batch._replace(x=x, weight=jnp.zeros(EXAMPLES))
    gradient = jax.jit(jax.value_and_grad(family.loss, has_aux=True))
    (value, metrics), grads = gradient(start, jax.random.key(1), batch, 0)
    assert value == 0 and all(np.isfinite(float(metric)) for metric in metrics.values())
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(jax.device_get(grads)))


@pytest.mark.parametrize(
    "name", ["tied", "top_k", "full_covariance", "vamp_prior", "iaf_posterior"]
)
def test_in_mixed_precision_the_distortion_and_its_gradient_are_those_of_float32(name):
    model = member(name).model

    def measured(model: Model, params: Any, key: Any) -> Any:
        loss = RECONSTRUCTION(model)
        return jax.value_and_grad(lambda p: loss(p, key, Batch(X), 0)[0])(params)

    def both(key: Any) -> Any:
        init_key, noise_key = jax.random.split(key)
        params, again = model.init(init_key, X[0]), jax.random.clone(noise_key)
        mixed = measured(mixed_precision(model), params, again)
        return measured(model, params, noise_key), mixed

    (value, grads), (mixed_value, mixed_grads) = jax.jit(both)(jax.random.key(6))
    np.testing.assert_allclose(mixed_value, value, rtol=0.02)
    chex.assert_trees_all_equal_dtypes(mixed_grads, grads)
    flat, mixed_flat = (ravel_pytree(tree)[0] for tree in (grads, mixed_grads))
    assert np.isfinite(mixed_flat).all()
    assert jnp.linalg.norm(mixed_flat - flat) < 0.2 * jnp.linalg.norm(flat)
