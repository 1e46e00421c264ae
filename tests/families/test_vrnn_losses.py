"""Losses and measures of a VRNN that score a path, hold it, or follow its means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.test_vrnn import (
    BLUR,
    FILTER,
    LINEAR_PARAMS,
    MIX,
    NOISE,
    SMOOTHER,
    A,
    sequences,
    smoothed,
)
from vaejax import Batch, autoencoders, corruption, evaluate, objectives
from vaejax.data.examples import as_examples
from vaejax.distributions import Normal


def shifted(model):
    """The model, with a parameter of q alone: all its means are moved by it."""

    def encode(params, seen, c=(), *, key=None):
        q = model.encode(params, seen, c)
        return Normal(q.loc + params["shift"], q.scale)

    return model._replace(encode=encode)


def slopes(loss, shift, x, keys):
    """The gradient by the shift, once for every key."""

    def slope(key):
        params = {**LINEAR_PARAMS, "shift": jnp.full(1, shift)}
        return jax.grad(lambda p: loss(p, key, Batch(x), 0)[0])(params)["shift"][0]

    return np.asarray(jax.jit(jax.vmap(slope))(keys))


def test_at_the_exact_posterior_dreg_has_no_noise_along_a_path_and_stl_some(x64):
    x, keys = jnp.asarray(sequences(2, 4, seed=3)), jax.random.split(jax.random.key(0), 5)
    model = shifted(SMOOTHER.model)
    doubly = objectives.dreg(model, particles=3, draw=smoothed)
    np.testing.assert_allclose(slopes(doubly, 0.0, x, keys), 0, atol=1e-9)
    stuck = objectives.stl(model, particles=3, draw=smoothed)
    assert np.abs(slopes(stuck, 0.0, x, keys)).min() > 1e-3


@pytest.mark.statistics
def test_gradients_at_held_and_at_scored_paths_have_the_mean_of_those_through_the_draws():
    x = jnp.asarray(sequences(1, 3, seed=4), jnp.float32)
    model, draw = shifted(FILTER.model), FILTER.draw
    pairs = [
        (objectives.iwae(model, particles=3, draw=draw), objectives.dreg, {"particles": 3}),
        (objectives.iwae(model, particles=3, draw=draw), objectives.vimco, {"particles": 3}),
        (objectives.elbo(model, draw=draw), objectives.score_function, {"samples": 4}),
    ]
    for reference, build, options in pairs:
        keys = jax.random.split(jax.random.key(5), 2 * 8000)
        known = slopes(reference, 0.4, x, keys[:8000])
        found = slopes(build(model, draw=draw, **options), 0.4, x, keys[8000:])
        error = np.hypot(known.std(), found.std()) / 8000**0.5
        assert abs(known.mean() - found.mean()) < 4 * error < 0.1 * abs(known.mean())


def test_codes_and_reconstructions_follow_the_means_and_what_is_masked_is_zero():
    x = sequences(3, 4, seed=5).astype(np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]], bool)
    expected = np.zeros((3, 4, 1))
    for row, seen, counted in zip(expected, x, mask, strict=True):
        h = 0.0
        for t in np.flatnonzero(counted):
            precision = NOISE**-2 + MIX @ MIX / BLUR**2
            h = (A * h / NOISE**2 + MIX @ seen[t] / BLUR**2) / precision
            row[t] = h
    given = np.where(mask[..., None], x, np.nan), mask
    options = {"draw": FILTER.draw}
    args = FILTER.model, LINEAR_PARAMS, jax.random.key(0), given
    codes = evaluate.codes(*args, **options)
    np.testing.assert_allclose(codes, expected, atol=1e-5)
    made = np.asarray(evaluate.reconstructions(*args, **options))
    np.testing.assert_allclose(made[mask], (expected * MIX)[mask], atol=1e-5)


def test_the_data_of_a_run_may_be_nan_where_the_mask_leaves_them_out():
    x, mask = np.ones((3, 4, 2), np.float32), np.ones((3, 4), bool)
    x[1, 2:], mask[1, 2:] = np.nan, False
    for counts in (mask, mask.astype(np.float32)):
        assert as_examples("fit", Batch((x, counts)), None).size == 3
    x[2, 0, 1] = np.inf
    with pytest.raises(ValueError, match="in 1 of 3 examples, the first at index 2"):
        as_examples("fit", Batch((x, mask)), None)
    with pytest.raises(ValueError, match="in 2 of 3 examples, the first at index 1"):
        as_examples("fit", Batch((x, x[..., 0])), None)  # no mask


def test_what_has_no_path_to_hold_or_score_is_refused_with_the_fix():
    model = shifted(FILTER.model)
    x, key = jnp.ones((2, 3, 2)), jax.random.key(0)
    noisy = autoencoders.corrupted(corruption.gaussian(0.1), draw=FILTER.draw)
    with pytest.raises(TypeError, match=r"dreg: draw: got one without z, expected draw\(..., z=z"):
        objectives.dreg(model, particles=2, draw=noisy)
    with pytest.raises(ValueError, match="got 0.5, expected 0 where there is a draw; pass sleep=0"):
        objectives.reweighted_wake_sleep(model, particles=2, draw=noisy)

    def by_hand(model, params, key, x, c=()):
        return model.encode(params, x[0], jnp.zeros(1)).loc

    loss = objectives.vimco(model, particles=2, draw=by_hand)
    with pytest.raises(AttributeError, match="got one that reads loc of q.*q.sample_and_log_prob"):
        jax.eval_shape(loss, {**LINEAR_PARAMS, "shift": jnp.zeros(1)}, key, Batch(x), 0)
