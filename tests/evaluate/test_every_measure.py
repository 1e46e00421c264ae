"""Every measure takes every kind of model, or refuses it in one line.

The table is in docs/explanation/compatibility.md.

Only shapes are computed: the compiled loop that measures share stops where it has been traced.
"""

import jax
import numpy as np
import pytest

from tests.kinds import DIFFERENT, kind, shapes
from vaejax.evaluate import _each, bounds, codes, diagnostics, elbo_terms, inference, log_likelihood
from vaejax.evaluate.decomposition import decompose

BOUNDS = {
    "elbo_terms": elbo_terms,
    "log_likelihood": lambda *args, **draw: log_likelihood(*args, particles=2, **draw),
    "ladder": lambda *args, **draw: bounds.ladder(*args, particles=(1, 2), **draw),
}
MEANS = {"codes": codes, "active_units": diagnostics.active_units}
GAUSSIANS = {"implied_beta": diagnostics.implied_beta, "refine": inference.refine}
MEASURES = BOUNDS | MEANS | GAUSSIANS | {"decompose": decompose}
DRAWS = (*BOUNDS, "codes")  # they take a draw

NO_MEAN = r"no mean in closed form|expected one with a mean"
NO_GAUSSIAN = "expected (a )?Normal or (a )?MultivariateNormal"
NO_STEP = r"no past \(c is absent\).*pass draw=vrnn.draw"
NO_PRIOR = "no prior|without a prior"
FLAT = dict.fromkeys(MEANS, NO_MEAN) | dict.fromkeys(GAUSSIANS, NO_GAUSSIAN)
PATH = {name: NO_STEP for name in MEASURES if name not in DRAWS}
REFUSED = {
    **dict.fromkeys(("planar", "IAF", "two layers", "two Bernoulli layers"), FLAT),
    **dict.fromkeys(("VRNN", "VRNN of Bernoullis"), PATH),
    **dict.fromkeys(
        ("mixture posterior", "Bernoulli code", "one of three", "quantised"),
        dict.fromkeys(GAUSSIANS, NO_GAUSSIAN),
    ),
    "deterministic": dict.fromkeys((*BOUNDS, "decompose", "implied_beta"), NO_PRIOR)
    | {"refine": NO_GAUSSIAN},
}


class Traced(Exception):
    """The measure has been traced to its end."""


@pytest.fixture
def by_shapes(monkeypatch):
    loop = _each._loop.__wrapped__

    def traced(program, *args):
        jax.eval_shape(lambda *args: loop(program, *args), *args)
        raise Traced

    monkeypatch.setattr(_each, "_loop", traced)


@pytest.mark.statistics
@pytest.mark.parametrize("name", DIFFERENT)
def test_a_measure_measures_or_says_why_not(name, by_shapes):
    k, x = kind(name), np.zeros((3, *kind(name).x.shape), np.float32)
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes(name, False)[0])
    for measure, function in MEASURES.items():
        draw = {"draw": k.draw} if k.draw is not None and measure in DRAWS else {}
        message = REFUSED.get(name, {}).get(measure)
        expected = Traced if message is None else (TypeError, ValueError, NotImplementedError)
        with pytest.raises(expected, match=message):
            function(k.model, params, jax.random.key(0), x, **draw)
