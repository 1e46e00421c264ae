"""Every family of the library through one suite: gradients, one trace, shapes, training, storage.

A member is a function that builds a model, and the objective that trains it; what is particular to
it is tested where it lives.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vaejax import (
    Batch,
    Model,
    autoencoder,
    autoencoders,
    checkpoint,
    contraction,
    corruption,
    generate,
    heads,
    networks,
    objectives,
    reconstruct,
    sparsity,
    stacked,
    tied,
    train,
)
from vaejax.distributions import Normal

SHAPE, LATENT, EXAMPLES = (4, 4, 1), 3, 32
PRIOR = Normal(jnp.zeros(LATENT), jnp.ones(LATENT))


def images() -> jax.Array:
    """Bright rows and columns with some noise: three numbers say most of what an image holds."""
    position_key, which_key, noise_key = jax.random.split(jax.random.key(0), 3)
    line = jax.nn.one_hot(jax.random.randint(position_key, (EXAMPLES,), 0, 4), 4)
    row = jnp.broadcast_to(line[:, :, None], (EXAMPLES, 4, 4))
    vertical = jax.random.bernoulli(which_key, 0.5, (EXAMPLES, 1, 1))
    x = jnp.where(vertical, row, row.transpose(0, 2, 1))
    return (0.8 * x + 0.2 * jax.random.uniform(noise_key, x.shape))[..., None]


X = images()


def mlp(
    code: Any = None, likelihood: Any = None, prior: Any = None, hidden: tuple[int, ...] = (16,)
) -> Model:
    code, likelihood = code or heads.Code(LATENT), likelihood or heads.FixedNormal(SHAPE, 0.5)
    return autoencoder(
        nn.Sequential([networks.MLP(hidden), code]),
        nn.Sequential([networks.MLP(hidden[::-1]), likelihood]),
        prior,
    )


def linear(code: Any) -> Model:
    return autoencoder(code, heads.FixedNormal(SHAPE, 0.5))


def convolutional() -> Model:
    return autoencoder(
        nn.Sequential([networks.ConvEncoder((4, 4)), heads.Code(LATENT)]),
        nn.Sequential([networks.ConvDecoder(SHAPE, (4, 4)), heads.FixedNormal(SHAPE, 0.5)]),
    )


def wide(activation: Any) -> Model:
    return linear(heads.Code(24, activation))


def two_levels() -> Model:
    top = autoencoder(heads.Code(LATENT), heads.FixedNormal((8,), 0.5))
    return stacked.stack([linear(heads.Code(8, nn.relu)), top])


def sparse(penalty: Any, weight: float) -> Callable[[Model], Any]:
    return partial(autoencoders.sparse, penalty=penalty, weight=weight)


def contractive(norm: Any) -> Callable[[Model], Any]:
    return partial(autoencoders.contractive, norm=norm, weight=0.01)


def vae(posterior: Any = None, likelihood: Any = None) -> Callable[[], Model]:
    return partial(mlp, posterior or heads.Normal(LATENT), likelihood, PRIOR)


RECONSTRUCTION = autoencoders.reconstruction
ZOO = {
    "linear": (partial(linear, heads.Code(LATENT)), RECONSTRUCTION),
    "tied": (lambda: tied(mlp()), RECONSTRUCTION),
    "deep": (partial(mlp, hidden=(16, 8)), RECONSTRUCTION),
    "bernoulli": (partial(mlp, likelihood=heads.Bernoulli(SHAPE)), RECONSTRUCTION),
    "convolutional": (convolutional, RECONSTRUCTION),
    "top_k": (partial(linear, heads.TopK(24, 3)), RECONSTRUCTION),
    "denoising": (mlp, partial(autoencoders.denoising, corrupt=corruption.masking(0.3))),
    "l1": (lambda: sparsity.unit_columns(wide(nn.relu)), sparse(sparsity.l1, 0.1)),
    "kl": (partial(wide, nn.sigmoid), sparse(sparsity.kl(0.1), 0.1)),
    "squared": (partial(wide, nn.relu), sparse(sparsity.squared(0.2), 0.1)),
    "batch_top_k": (partial(wide, nn.relu), partial(autoencoders.batch_top_k, k=4)),
    "contractive": (partial(wide, nn.sigmoid), contractive(contraction.closed_form)),
    "contractive_deep": (mlp, contractive(contraction.exact)),
    "contractive_estimated": (mlp, contractive(contraction.hutchinson(2))),
    "higher_order_contractive": (
        partial(wide, nn.sigmoid),
        partial(
            autoencoders.higher_order_contractive,
            norm=contraction.closed_form,
            weight=0.01,
            curvature=0.01,
            scale=0.1,
        ),
    ),
    "stacked": (two_levels, RECONSTRUCTION),
    "denoising_vae": (
        vae(),
        partial(objectives.elbo, draw=autoencoders.corrupted(corruption.gaussian(0.1))),
    ),
    "vae": (vae(), objectives.elbo),
    "full_covariance": (vae(heads.FullNormal(LATENT)), objectives.elbo),
    "bernoulli_vae": (vae(likelihood=heads.Bernoulli(SHAPE)), objectives.elbo),
    "iwae": (vae(), partial(objectives.iwae, particles=3)),
    "dreg": (vae(), partial(objectives.dreg, particles=3)),
    "miwae": (vae(), partial(objectives.miwae, outer=2, inner=2)),
}
every = pytest.mark.parametrize("name", list(ZOO))


@pytest.fixture(scope="module")
def trained() -> Callable[[str], Any]:
    """A member after 50 steps, trained once for all the tests of this file."""
    found: dict[str, Any] = {}

    def run(name: str) -> Any:
        if name not in found:
            init_key, fit_key, eval_key = jax.random.split(jax.random.key(3), 3)
            build, objective = ZOO[name]
            model = build()
            loss = objective(model)
            params = model.init(init_key, X[0])
            chex.clear_trace_counter()
            traced = chex.assert_max_traces(loss, n=1)
            step = train.make_step(traced, optax.adam(1e-2))
            update = jax.jit(step[1])
            state = step[0](fit_key, params)
            history = []
            for _ in range(50):
                state, metrics = update(state, Batch(X))
                history.append(float(metrics["loss"]))
            gradient = jax.jit(jax.grad(lambda p, k: loss(p, k, Batch(X), 0)[0]))
            found[name] = model, params, state.params, history, gradient(params, eval_key)
        return found[name]

    return run


@every
def test_gradients_are_finite_and_reach_every_parameter(name, trained):
    _, _, _, _, gradient = trained(name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), jax.tree_util.keystr(path)


@every
def test_the_loss_falls_in_fifty_steps_of_one_trace(name, trained):
    """That it is traced once is counted while it trains: a second trace raises."""
    history = trained(name)[3]
    assert np.isfinite(history).all() and np.mean(history[-5:]) < np.mean(history[:5])


@every
def test_shapes_of_reconstructions_and_samples(name, trained):
    model, _, params, _, _ = trained(name)
    rebuilt = jax.jit(jax.vmap(partial(reconstruct, model, params)))(X[:2])
    assert rebuilt.shape == (2, *SHAPE) and np.isfinite(rebuilt).all()
    if model.prior(params) is None:
        with pytest.raises(ValueError, match="no prior"):
            generate(model, params, jax.random.key(1))
    else:
        sample = jax.jit(partial(generate, model, params))(jax.random.key(1))
        assert sample.x.shape == sample.mean.shape == SHAPE


@every
def test_stored_parameters_come_back_bit_for_bit(name, trained, tmp_path):
    model, start, params, _, _ = trained(name)
    state = train.make_step(RECONSTRUCTION(model), optax.sgd(0.1))[0](jax.random.key(1), params)
    identity = {"examples": EXAMPLES}
    with checkpoint.opened(tmp_path, identity, resume=False) as store:
        checkpoint.save(store, 1, checkpoint.Record(state, state, {"epoch": 1}))
    chex.assert_trees_all_equal(checkpoint.load(tmp_path, like=start), params)
