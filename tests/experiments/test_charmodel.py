"""The character model: its numbers and texts; its n-grams are the formula's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import charmodel
from experiments.common import characters
from vaejax import recurrent
from vaejax.networks.autoregressive import Causal


def test_a_run_compares_the_network_with_ngrams_and_writes_samples(finished):
    one = finished("charmodel", "python")
    assert one.summary["validation_nats_per_character"] > 2
    assert one.summary["validation_nats_per_character"] < np.log(one.summary["vocabulary"]) + 0.5
    assert len(one.summary["ngram_nats_per_character"]) == 3
    assert (one.folder / "samples.txt").read_text().count("--- continuation") == 3


def test_a_prompt_of_ones_own_is_continued(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("the and " * 100)
    sizes = {"features": 4, "length": 5, "window": 16, "batch_size": 8, "context": 8}
    config = charmodel.Config(text=file, prompt="the ", **sizes)
    said = charmodel.load(config)
    language = recurrent.Language(len(said.vocabulary), config.features)
    net = Causal(language, (config.window,), jnp.int32)
    written = charmodel.continuations(config, net, net.init(jax.random.key(0)), said)
    assert re.findall("the \\|(.*)\n", written) and written.count("the |") == 3
    assert all(len(one) == 5 for one in re.findall("the \\|(.*)\n", written))


def test_a_text_of_ones_own_is_read_and_a_foreign_prompt_refused(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("ab" * 300)
    assert characters.read(file) == "ab" * 300
    config = charmodel.Config(text=file, smoke=True, out=tmp_path / "run", prompt="abc")
    with pytest.raises(ValueError, match="'c' at position 2"):
        charmodel.main(config)
    assert not (tmp_path / "run").exists()


def test_ngrams_equal_the_formula_one_character_at_a_time():
    rng = np.random.default_rng(0)
    codes = rng.choice(4, size=120, p=[0.5, 0.3, 0.15, 0.05])
    split, order = 90, 2

    def p(x, before, k):
        if k < 0:
            return 1 / 4
        u = tuple(before[len(before) - k :])
        seen = [codes[i] for i in range(k, split) if tuple(codes[i - k : i]) == u]
        lower = p(x, before, k - 1)
        if not seen:
            return lower
        kinds = len(set(seen))
        return (seen.count(x) + kinds * lower) / (len(seen) + kinds)

    found = characters.witten_bell(codes, split, 4, order)
    for k in range(order + 1):
        expected = [np.log(p(codes[i], codes[:i], k)) for i in range(split, len(codes))]
        np.testing.assert_allclose(found[k], expected, rtol=1e-12)
    whole = [sum(p(x, codes[:split], k) for x in range(4)) for k in range(order + 1)]
    np.testing.assert_allclose(whole, 1)
