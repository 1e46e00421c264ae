"""The workloads by vaejax: its public functions as the experiments call them."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import vae
from experiments.benchmarks import contractive, modules, paired
from experiments.benchmarks.suite import Burst, Sizes, levels
from experiments.common import image_vae
from vaejax import (
    contraction,
    data,
    distributions,
    evaluate,
    heads,
    networks,
    objectives,
    population,
    train,
)
from vaejax.model import Model, autoencoder
from vaejax.train.precision import mixed_precision
from vaejax.types import Array, Loss

OTHERS = {"vaejax_nnx": modules.nnx_layers, "vaejax_equinox": modules.equinox_layers}
Update = Callable[[train.TrainState, Array], tuple[train.TrainState, Any]]


def build(workload: str, variant: str, sizes: Sizes) -> Burst:
    """The variant, compiled."""
    if workload == "W5":
        return _penalty(variant, sizes)
    if workload == "W4":
        return _likelihood(sizes)
    return _training(variant, sizes)


class TransposedDecoder(nn.Module):
    """Transposed convolutions of stride 2 from a code to the logits `[side, side, 1]`.

    The library has no such network. Each layer is the adjoint of `networks.conv`, so on CPU it is a
    matrix product too.
    """

    side: int
    features: tuple[int, int]

    @nn.compact
    def __call__(self, z: Array) -> distributions.Bernoulli:
        quarter, (many, few) = self.side // 4, self.features
        h = nn.relu(nn.Dense(quarter * quarter * many)(z)).reshape(quarter, quarter, many)
        h = nn.relu(self.enlarged("first", h, few))
        return distributions.Bernoulli(self.enlarged("second", h, 1))

    def enlarged(self, name: str, h: Array, features: int) -> Array:
        """One layer: `[height, width, channels]` to `[2 height, 2 width, features]`."""
        height, width, channels = h.shape
        shape, init = (3, 3, features, channels), nn.initializers.lecun_normal()
        kernel = self.param(f"{name}_kernel", init, shape)
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (features,))
        image = jax.ShapeDtypeStruct((2 * height, 2 * width, features), h.dtype)
        adjoint = jax.linear_transpose(lambda y: networks.conv(y, kernel, stride=2), image)
        return adjoint(h)[0] + bias[None, None]


def model_of(sizes: Sizes) -> Model:
    """The model of W1 to W4."""
    shape = (sizes.side, sizes.side, 1)
    if sizes.network == "transposed":
        encoder = nn.Sequential([networks.ConvEncoder(sizes.hidden), heads.Normal(sizes.latent)])
        decoder = TransposedDecoder(sizes.side, (sizes.hidden[1], sizes.hidden[0]))
        prior = distributions.Normal(jnp.zeros(sizes.latent), jnp.ones(sizes.latent))
        return autoencoder(encoder, decoder, prior)
    config = vae.Config(
        network="mlp" if sizes.network == "mlp" else "conv",
        hidden=sizes.hidden,
        activation=sizes.activation,
        latent=sizes.latent,
        likelihood="bernoulli",
    )
    return image_vae.build(config, shape, np.full(shape, 0.5))


def loss_of(model: Model, sizes: Sizes) -> Loss:
    """The loss of the model: minus the ELBO, or minus the importance-weighted bound."""
    if sizes.particles == 1:
        return objectives.elbo(model)
    return objectives.iwae(model, particles=sizes.particles)


def _training(variant: str, sizes: Sizes) -> Burst:
    """A burst is one program. It chooses and gathers its batches, and binarises or scales them."""
    if variant in OTHERS:
        model = modules.model(OTHERS[variant], sizes.side, sizes.hidden, sizes.latent)
    else:
        model = model_of(sizes)
    if variant == "vaejax_bfloat16":
        model = mixed_precision(model)
    grey = levels(sizes)
    one, images = grey[0] / np.float32(255), jnp.asarray(grey)
    del grey  # which was copied
    began = perf_counter()
    if variant == "vaejax_population":
        state, update = _together(model, sizes, one)
        members = sizes.members
    else:
        state, update = _alone(model, sizes, one)
        members = 1
    jax.block_until_ready(state)
    init_seconds, began = perf_counter() - began, perf_counter()
    program = jax.jit(update, donate_argnums=0).lower(state, images).compile()
    facts = {
        "init_seconds": init_seconds,
        "compile_seconds": perf_counter() - began,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)) // members,
        "members": members,
    }

    def run() -> float:
        nonlocal state
        state, history = program(state, images)
        return float(jnp.ravel(history["loss"])[-1])

    return Burst(run, members * sizes.steps * sizes.batch, facts)


def _alone(model: Model, sizes: Sizes, one: Any) -> tuple[train.TrainState, Update]:
    """The state of one model, and the program of a burst. The model sees images like `one`."""
    loss, adam = loss_of(model, sizes), optax.adam(1e-3)
    init, _ = train.make_step(loss, adam)
    init_key, key = jax.random.split(jax.random.key(1))
    state = jax.jit(init)(key, model.init(init_key, one))
    return state, train.make_scan(loss, adam, **_steps(sizes))


def _together(model: Model, sizes: Sizes, one: Any) -> tuple[train.TrainState, Update]:
    """The same for a population of `sizes.members` models."""
    loss, adam = loss_of(model, sizes), optax.adam(1e-3)
    init, _ = train.make_step(loss, adam)
    key = jax.random.key(1)
    init_keys = jax.random.split(key, sizes.members)
    params = jax.vmap(lambda k: model.init(k, one))(init_keys)
    run_keys = jax.random.split(jax.random.fold_in(key, 1), sizes.members)
    state = jax.jit(jax.vmap(init))(run_keys, params)
    scan = population.make_scan(lambda hyper: (loss, adam), **_steps(sizes))

    def update(state: train.TrainState, images: Array) -> tuple[train.TrainState, Any]:
        # All members are at the same step: the first of the burst.
        return scan(state, (), state.step[0], images)

    return state, update


def _steps(sizes: Sizes) -> dict[str, Any]:
    """What a scan is told of its steps: how many, on which rows, and what is done to the pixels."""
    return {
        "steps": sizes.steps,
        "transform": data.binarize if sizes.pixels == "binary" else data.scale,
        "indices": train.shuffled(sizes.images, sizes.batch),
    }


def _likelihood(sizes: Sizes) -> Burst:
    """A burst of importance sampling by `evaluate.log_likelihood`."""
    model, x = model_of(sizes), (levels(sizes) > 127).astype(np.float32)
    params = model.init(jax.random.key(0), x[0])
    images = jnp.asarray(x)

    def run() -> float:
        for _ in range(sizes.steps):
            found = evaluate.log_likelihood(
                model,
                params,
                jax.random.key(1),
                images,
                particles=sizes.particles,
                batch_size=sizes.batch,
                chunk=sizes.chunk,
            )
        return -float(found.log_px.mean())

    facts = {"compile_seconds": paired.seconds_to_compile(run, calls=3)}
    return Burst(run, sizes.steps * sizes.images * sizes.particles, facts)


def _penalty(variant: str, sizes: Sizes) -> Burst:
    """A burst of contractive penalties with their gradients."""
    norm: Callable[..., Array] = {
        "vaejax": contraction.closed_form,
        "vaejax_jacfwd": contractive.whole(jax.jacfwd),
        "vaejax_jacrev": contractive.whole(jax.jacrev),
    }[variant]
    steps = sizes.steps if variant == "vaejax" else sizes.slow_steps
    program = contractive.program(
        contractive.Config(
            size=(sizes.side, sizes.side), units=sizes.hidden[0], batch_size=sizes.batch
        ),
        norm,
        steps,
    )
    return Burst(lambda: float(program.run(None)), program.work, program.facts)
