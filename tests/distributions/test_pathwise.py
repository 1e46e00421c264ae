"""By which parameters a sample has a derivative, and what is refused where it has none."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from vaejax import Batch, Draw, Model, flows, hierarchical, objectives, quantized, terms
from vaejax.distributions import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Delta,
    DiscretizedLogistic,
    Distribution,
    Laplace,
    Mixture,
    MultivariateNormal,
    Normal,
    Steps,
    Uniform,
    distribution,
    pathwise,
)
from vaejax.networks.autoregressive import Autoregressive

NORMAL = Normal(jnp.zeros(2), jnp.ones(2))
BITS = Bernoulli(jnp.zeros(2))
PAIR = Mixture(jnp.zeros(3), Normal(jnp.zeros((3, 2)), jnp.ones((3, 2))))


@distribution
class Rounded(Distribution):
    """A Normal on a grid that declares nothing."""

    loc: Any
    width: Any

    def sample(self, key):
        return jnp.round(self.loc + jax.random.normal(key, (2,)) * self.width)

    def log_prob(self, x):
        return jnp.zeros(())

    @property
    def event_shape(self):
        return (2,)


@distribution
class Straight(Bernoulli):
    """A Bernoulli whose sample has the gradient of its mean."""

    def sample(self, key):
        return Bernoulli(self.logits).sample(key) + self.mean - jax.lax.stop_gradient(self.mean)


@distribution
class Unsampled(Distribution):
    """Nothing can be drawn from it."""

    logits: Any


def bits_of(p, h):
    return Bernoulli(p["w"] * h)


LINK = jax.tree_util.Partial(bits_of, {"w": jnp.ones(2)})
ROWS = jax.vmap(lambda i: PAIR)(jnp.arange(4))
LOST = {
    "Normal": (NORMAL, []),
    "numbers": (Normal(0.0, 1.0), []),
    "MultivariateNormal": (MultivariateNormal(jnp.zeros(2), jnp.eye(2)), []),
    "Laplace": (Laplace(jnp.zeros(2), 1.0), []),
    "Uniform": (Uniform(jnp.zeros(2), 1.0), []),
    "ContinuousBernoulli": (ContinuousBernoulli(jnp.zeros(2)), []),
    "Delta": (Delta(jnp.zeros(2)), []),
    "VectorQuantized": (
        quantized.VectorQuantized.nearest(jnp.zeros((3, 2)), jnp.ones((4, 2))),
        [],
    ),
    "Bernoulli": (BITS, ["logits"]),
    "Categorical": (Categorical(jnp.zeros(3)), ["logits"]),
    "DiscretizedLogistic": (DiscretizedLogistic(jnp.zeros(2), 1.0), ["loc", "scale"]),
    "Mixture": (PAIR, ["logits"]),
    "Mixture of bits": (
        Mixture(jnp.zeros(3), Bernoulli(jnp.zeros((3, 2)))),
        ["logits", "components.logits"],
    ),
    "Steps": (Steps(ROWS), ["each.logits"]),
    "Transformed": (flows.Transformed(PAIR, flows.Composed(())), ["base.logits"]),
    "Chain": (hierarchical.Chain(NORMAL, (LINK,)), ["h_2.logits"]),
    "Chain of bits": (
        hierarchical.Chain(BITS, (LINK,)),
        ["h_1.logits", "h_2.logits"],
    ),
    "Autoregressive": (
        Autoregressive(jax.tree_util.Partial(bits_of, {"w": jnp.ones(2)}), shape=(2,)),
        ["conditionals"],
    ),
    "of one's own": (Rounded(jnp.zeros(2), 1.0), ["loc", "width"]),
    "straight through": (Straight(jnp.zeros(2)), []),
    "never sampled": (Unsampled(jnp.zeros(2)), []),
}


@pytest.mark.parametrize("name", LOST)
def test_the_parameters_that_move_a_sample_by_jumps_alone_are_named(name):
    q, expected = LOST[name]
    found = q.without_derivative()
    assert [one.split("[<")[0] for one in found] == expected


def model_of(posterior):
    """A model whose params are a tree of q's parameters; `posterior(params)` is q."""
    return Model(
        lambda key, x, c=(): {},
        lambda params, c=(): (
            BITS if posterior(params).discrete else Normal(jnp.zeros(2), params["width"])
        ),
        lambda params, x, c=(), *, key=None: posterior(params),
        lambda params, z, c=(), *, key=None: Normal(params["width"] * z, jnp.ones(2)),
    )


PARAMS = {"logits": jnp.zeros(2), "loc": jnp.zeros((2, 2)), "width": jnp.ones(2)}
LOSSES = {
    "elbo": objectives.elbo,
    "iwae": functools.partial(objectives.iwae, particles=2),
    "stl": objectives.stl,
    "dreg": functools.partial(objectives.dreg, particles=2),
    "piwae": functools.partial(objectives.piwae, outer=1, inner=2),
}
FREE = {
    "score_function": functools.partial(objectives.score_function, samples=2),
    "vimco": functools.partial(objectives.vimco, particles=2),
    "reweighted_wake_sleep": functools.partial(objectives.reweighted_wake_sleep, particles=2),
}


def mixture(logits, loc):
    return Mixture(logits, Normal(loc, jnp.ones((2, 2))))


def gradient(loss, params=PARAMS):
    """The shapes of the gradient, or what is raised on the way; under jit, as training has it."""
    x, key = jnp.zeros((3, 2)), jax.random.key(0)
    return jax.eval_shape(
        lambda p: jax.grad(jax.jit(loss), has_aux=True)(p, key, Batch(x), 0), params
    )


MISSING = {
    "mixture": lambda p: mixture(p["logits"], p["loc"]),
    "bits": lambda p: Bernoulli(p["logits"]),
    "of one's own": lambda p: Rounded(p["logits"], p["width"]),
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_through_the_draws_refuses_what_they_have_no_derivative_by(name, loss):
    with pytest.raises(TypeError, match=r"q\(z\|x\).*score_function, vimco or reweighted_wake_sl"):
        gradient(LOSSES[loss](model_of(MISSING[name])))


@pytest.mark.parametrize("loss", FREE)
def test_losses_without_a_gradient_through_the_draws_take_them(loss):
    for name in ("mixture", "bits"):
        gradient(FREE[loss](model_of(MISSING[name])))


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_not_learned_is_not_refused(loss):
    """Constants, what is held, and what stands in the prior alone, whose density has all."""

    def held(p):
        return mixture(jax.lax.stop_gradient(p["logits"]), p["loc"])

    for posterior in (lambda p: mixture(jnp.zeros(2), p["loc"]), held):
        gradient(LOSSES[loss](model_of(posterior)))
    in_prior = model_of(lambda p: Normal(p["loc"][0], p["width"]))
    in_prior = in_prior._replace(prior=lambda p, c=(): mixture(p["logits"], p["loc"]))
    gradient(LOSSES[loss](in_prior))


def test_without_a_gradient_nothing_is_refused():
    x, key = jnp.zeros((3, 2)), jax.random.key(0)
    for posterior in MISSING.values():
        loss = objectives.elbo(model_of(posterior))
        assert jax.eval_shape(loss, PARAMS, key, Batch(x), 0)[0].shape == ()


def test_a_draw_of_ones_own_may_relax_a_discrete_posterior():
    """The KL of the Bernoullis, and a z that moves with their logits (Maddison et al., 2017)."""
    model = model_of(MISSING["bits"])

    def relaxed(model, params, key, x, c=()):
        q = model.encode(params, x, c)
        z = jax.nn.sigmoid((q.logits + jax.random.logistic(key, (2,))) / 0.5)
        return Draw(x, z, jnp.zeros(()), q, model.prior(params, c), model.decode(params, z, c))

    gradient(objectives.elbo(model, draw=relaxed))


def test_a_loss_of_ones_own_is_refused_too_unless_it_holds_q():
    q = mixture(PARAMS["logits"], PARAMS["loc"])

    def score(logits, hold):
        q = mixture(logits, PARAMS["loc"])
        z = jax.lax.stop_gradient(q.sample(jax.random.key(0)))
        px = Normal(z, 1.0)
        d = Draw(jnp.zeros(2), z, q.log_prob(z), q, NORMAL, px)
        D = terms.distortion(d._replace(q=jax.lax.stop_gradient(q)) if hold else d)
        return D + jax.lax.stop_gradient(D) * d.log_q

    jax.eval_shape(jax.grad(lambda logits: score(logits, True)), q.logits)
    with pytest.raises(TypeError, match="has no derivative by logits, expected one by all"):
        jax.eval_shape(jax.grad(lambda logits: score(logits, False)), q.logits)


def test_the_derivative_of_what_is_not_refused_is_the_plain_one():
    """Also under vmap, and forwards."""
    logits = jnp.array([0.3, -0.3])

    def through(loc, guard):
        q = mixture(logits, loc)
        z = jax.vmap(q.sample)(jax.random.split(jax.random.key(0), 4))
        f = jax.vmap(lambda z: jnp.sum(jnp.sin(z)))
        return jnp.sum(jax.vmap(pathwise, (None, 0, 0))(q, z, f(z)) if guard else f(z))

    loc = jnp.array([[0.1, 0.2], [2.0, -1.0]])
    for derivative in (jax.grad, jax.jacfwd):
        plain, guarded = (derivative(lambda loc, g=g: through(loc, g)) for g in (False, True))
        one, other = jax.jit(lambda loc, of=(plain, guarded): [f(loc) for f in of])(loc)
        assert jnp.array_equal(one, other) and jnp.any(one != 0)


def by_the_first(h):
    """A mixture whose weights are the variable before it: no parameter stands between."""
    return mixture(h, jnp.ones((2, 2)))


def test_a_choice_by_the_variable_before_is_refused_too():
    def through(loc):
        q = hierarchical.Chain(Normal(loc, 1.0), (jax.tree_util.Partial(by_the_first),))
        z = q.sample(jax.random.key(0))
        return pathwise(q, z, jnp.sum(z))

    with pytest.raises(TypeError, match=r"got Chain, whose sample has no derivative by h_2.logits"):
        jax.eval_shape(jax.grad(through), jnp.zeros(2))
