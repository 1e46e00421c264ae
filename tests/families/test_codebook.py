"""Codebooks alone: entries that are near, alike or used, and the gradient past them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import quantized
from vaejax.distributions import Categorical
from vaejax.families.quantized._codebook import _different


def test_the_gradient_passes_straight_through_and_misses_the_codebook():
    rng = np.random.default_rng(0)
    features, codebook, slope = (np.float32(rng.normal(size=(n, 2))) for n in (5, 4, 5))

    def value(features, codebook):
        q = quantized.VectorQuantized.nearest(features, codebook)
        return jnp.sum(slope * q.value)

    of_features, of_codebook = jax.jit(jax.grad(value, argnums=(0, 1)))(features, codebook)
    np.testing.assert_array_equal(of_features, slope)
    np.testing.assert_array_equal(of_codebook, 0)


def test_perplexity_and_usage():
    perplexity = jax.jit(quantized.perplexity)
    assert perplexity(np.full(7, 3, np.float32)) == pytest.approx(7)
    assert perplexity(np.eye(7, dtype=np.float32)[1]) == pytest.approx(1)
    share = quantized.usage(np.array([[0, 2], [2, 2]]), 4)
    np.testing.assert_array_equal(share, [0.25, 0, 0.75, 0])
    with pytest.raises(ValueError, match=r"usage: index: got 2 codes in 0..4, expected some, in 0"):
        quantized.usage([0, 4], 4)
    with pytest.raises(ValueError, match="got 0 codes"):
        quantized.usage([], 4)


def test_entries_that_lie_close_are_told_apart():
    codebook = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    codebook[1] = codebook[0] * (1 + 2e-7)  # the next numbers
    logits = np.arange(8, dtype=np.float32)
    p = quantized.Entries(Categorical(jnp.asarray(logits)), jnp.asarray(codebook))
    found = jax.jit(jax.vmap(p.log_prob))(jnp.asarray(codebook))
    np.testing.assert_allclose(found, logits - np.log(np.exp(logits).sum()), rtol=1e-5)


def test_entries_start_different_where_most_codes_are_equal(key):
    """As those of an empty background; drawn blindly, most entries were one and the same."""
    codes = np.concatenate([np.zeros((200, 2)), np.arange(12.0).reshape(6, 2)]).astype(np.float32)
    draw = jax.jit(_different, static_argnums=2)
    assert len(np.unique(draw(key, codes, 7), axis=0)) == 7
    assert len(np.unique(draw(jax.random.clone(key), codes, 20), axis=0)) == 7
