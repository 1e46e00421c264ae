"""The experiment runs and leaves what it promises; its n-grams are the formula's."""

import json

import numpy as np
import pytest

from experiments import charmodel
from experiments.common import characters


def test_smoke_run_leaves_its_numbers_pictures_and_samples(tmp_path):
    config = charmodel.Config(smoke=True, out=tmp_path / "run", progress=False, prompt="the ")
    summary = charmodel.main(config)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert 2 < summary["validation_nats_per_character"] < np.log(summary["vocabulary"]) + 0.5
    assert len(summary["ngram_nats_per_character"]) == 3
    assert {f.stem for f in (tmp_path / "run" / "figures").iterdir()} == {"curves", "context"}
    samples = (tmp_path / "run" / "samples.txt").read_text()
    assert samples.count("the |") == 3


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
