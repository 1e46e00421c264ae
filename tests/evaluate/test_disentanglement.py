"""The mutual information gap against closed forms, and numbers by hand."""

import numpy as np
import pytest

from vaejax import disentanglement


def two_factors(values=10):
    """All pairs of two factors, `values` each, and 20 times over: `[n, 2]`."""
    return np.tile(np.indices((values, values)).reshape(2, -1).T, (20, 1))


def test_a_perfect_code_has_1_and_a_rotated_one_about_0():
    """Checked against reshape where a transpose is meant, which mixes examples."""
    factors = two_factors()
    noise = np.random.default_rng(0).normal(size=(len(factors), 1))
    perfect = np.concatenate([noise, np.exp(factors[:, :1]), -factors[:, 1:]], axis=1)

    def check(mig):
        found = mig(perfect, factors)
        assert found.value == pytest.approx(1, abs=0.1)  # of the noise: 19 x 9 / 2n = 0.04 nats
        assert (found.information.argmax(axis=1) == [1, 2]).all()

    check(disentanglement.mig)
    exactly = disentanglement.mig(perfect[:, 1:], factors)
    assert exactly.value == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(exactly.information, np.log(10) * np.eye(2), atol=1e-12)
    np.testing.assert_allclose(exactly.entropy, np.log(10), rtol=1e-12)
    with pytest.raises(AssertionError):
        check(lambda z, v: disentanglement.mig(z.reshape(3, -1).T, v))

    rotated = factors @ np.array([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    assert disentanglement.mig(rotated, factors).value < 0.02


def test_each_gap_is_a_share_of_the_entropy_of_its_own_factor():
    """Factors of 2 and of 5 values, each said in full: both gaps are 1.

    Checked against entropies of the reshaped table, and of another factor.
    """
    factors = np.tile(np.indices((2, 5)).reshape(2, -1).T, (4, 1))
    found = disentanglement.mig(factors.astype(float), factors)
    np.testing.assert_allclose(found.gaps, 1, rtol=1e-12)
    np.testing.assert_allclose(found.entropy, np.log([2, 5]), rtol=1e-12)


def test_the_discretisation_is_its_own_and_stays():
    """Golden values by hand, and checked against bins of equal width, that one code stretches."""

    def check(information):
        # Bins of two codes each: (2, 0), (1, 1), (0, 2), (0, 2) of a factor that is 3 x 0, 5 x 1.
        codes, factors = np.arange(8.0)[:, None], np.array([0, 0, 0, 1, 1, 1, 1, 1])[:, None]
        expected = -(3 / 8 * np.log(3 / 8) + 5 / 8 * np.log(5 / 8)) - np.log(2) / 4
        for last in (7.0, 1e6):
            codes[-1] = last
            assert information(codes, factors)[0, 0] == pytest.approx(expected, rel=1e-12)

    def equal_width(codes, factors):
        edges = np.histogram_bin_edges(codes, 4)[1:-1]
        binned = np.searchsorted(edges, codes[:, 0], side="right")
        return np.array([[disentanglement._shared(binned, factors[:, 0])]])

    check(lambda codes, factors: disentanglement.mutual_information(codes, factors, bins=4))
    with pytest.raises(AssertionError):
        check(equal_width)


def test_the_edges_are_codes_where_the_bins_cannot_be_equal():
    """8 codes in 3 bins are 2, 3 and 3; checked against interpolated quantiles: 3, 2 and 3."""
    codes, factors = np.arange(8.0)[:, None], np.array([0, 0, 1, 1, 1, 2, 2, 2])[:, None]
    found = disentanglement.mutual_information(codes, factors, bins=3)
    entropy = -(2 / 8 * np.log(2 / 8) + 6 / 8 * np.log(3 / 8))
    np.testing.assert_allclose(found, [[entropy]], rtol=1e-12)


def test_the_gap_of_codes_that_are_flipped_now_and_then():
    """A binary factor; two dimensions say it wrongly in 1/8 and 1/4 of cases: closed forms."""

    def shared(p):
        return np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)

    factor = np.tile([0, 1], 32)
    wrong = [np.arange(64) // 2 % 8 < 1, np.arange(64) // 2 % 4 < 1]
    codes = np.stack([np.where(one, 1 - factor, factor) for one in wrong], axis=1)
    found = disentanglement.mig(codes, factor[:, None], bins=2)
    np.testing.assert_allclose(found.information, [[shared(1 / 8), shared(1 / 4)]], rtol=1e-12)
    assert found.value == pytest.approx((shared(1 / 8) - shared(1 / 4)) / np.log(2), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda z, v: (z[:, :1], v), {}, "got 1 dimension"),
        (lambda z, v: (z, v * [1, 0]), {}, "got factor 1 with one value in all 2000 rows"),
        (lambda z, v: (z[1:], v), {}, "codes and factors: got"),
        (lambda z, v: (z, v / 3), {}, "got fractions or NaN"),
        (
            lambda z, v: (np.where(z == 3, np.nan, z), v),
            {},
            "mig: the sum of the code is nan for example",
        ),
        (lambda z, v: (z, v), {"bins": 1}, "bins: got 1, expected 2"),
    ],
)
def test_codes_and_factors_that_do_not_fit_are_refused(change, options, message):
    factors = two_factors()
    codes, factors = change(factors.astype(float), factors)
    with pytest.raises(ValueError, match=message):
        disentanglement.mig(codes, factors, **options)
