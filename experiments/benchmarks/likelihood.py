"""Speed of importance-sampled log p(x), against PyTorch, and its memory.

    python -m experiments.benchmarks.likelihood [burda|example|memory] [--rounds N]

`burda` and `example` compare two networks with PyTorch (`pip install "torch>=2"`). `memory` runs
K = 5000 once, without PyTorch, and reports the peak of anonymous memory. What is compared, and the
figures to expect: experiments/benchmarks/README.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, vae
from experiments.benchmarks import memory, paired
from experiments.benchmarks.options import Timed
from experiments.common import image_vae
from vaejax import evaluate
from vaejax.errors import wrong
from vaejax.model import Model
from vaejax.types import Params


@dataclass(frozen=True)
class Config(Timed):
    hidden: tuple[int, ...] = (200, 200)  # units of the encoder's layers
    activation: Literal["relu", "tanh"] = "tanh"  # nonlinearity of the hidden layers
    latent: int = 50  # latent dimensions
    size: tuple[int, int] = (28, 28)  # height and width of the binary images
    images: int = 100  # images scored
    particles: int = 1000  # importance samples per image
    batch_size: int = 20  # images at a time, in both libraries
    chunk: int = 50  # particles at a time, in both libraries
    compare: bool = True  # with PyTorch; else one timed call of log_likelihood


PRESETS = {
    "burda": Config(),
    "example": Config(hidden=(400,), activation="relu", latent=20),
    "memory": Config(images=500, particles=5000, compare=False),
}


def problem(config: Config) -> tuple[Model, Params, np.ndarray]:
    """Model, parameters and binary images `[images, height, width, 1]`, from the seed."""
    init_key, image_key = jax.random.split(jax.random.key(config.seed))
    shape = (*config.size, 1)
    options = replace(
        vae.PRESETS["burda"],
        hidden=config.hidden,
        latent=config.latent,
        activation=config.activation,
    )
    model = image_vae.build(options, shape, np.full(shape, 0.5))
    x = jax.random.bernoulli(image_key, 0.13, (config.images, *shape)).astype(jnp.float32)
    return model, model.init(init_key, x[0]), np.asarray(x)


def in_vaejax(
    config: Config, model: Model, params: Params, x: np.ndarray
) -> Callable[[], np.ndarray]:
    """log p(x) `[images]`, nats, by the library."""
    return lambda: (
        evaluate.log_likelihood(
            model,
            params,
            jax.random.key(config.seed),
            x,
            particles=config.particles,
            batch_size=config.batch_size,
            chunk=config.chunk,
        ).log_px
    )


def in_torch(config: Config, params: Any, x: Any) -> Callable[[], np.ndarray]:
    """The same by hand in eager PyTorch: same parameters, flat 2-D products, chunks of particles.

    Args:
      config: sizes; `batch_size` and `chunk` say how much is computed at once.
      params: those of the model in vaejax.
      x: binary images `[images, height, width, 1]`.
    Returns:
      A function that gives log p(x) `[images]`, nats.
    Raises:
      ImportError: where PyTorch is not installed.
    """
    try:
        import torch
        from torch.nn import functional as F
    except ImportError as error:
        fix = 'pip install "torch>=2", or --no-compare for vaejax alone'
        got = "no PyTorch"
        raise wrong("likelihood: --compare", got, "it installed", fix, ImportError) from error

    def tensors(layers: Any, *names: str) -> list[Any]:
        found = [layers[name] for name in names or sorted(layers)]
        return [
            (torch.tensor(np.array(d["kernel"]).T.copy()), torch.tensor(np.array(d["bias"])))
            for d in found
        ]

    encoder, decoder = (params[name]["params"] for name in ("encoder", "decoder"))
    inward, outward = tensors(encoder["layers_0"]), tensors(decoder["layers_0"])
    loc_layer, scale_layer = tensors(encoder["layers_1"], "loc", "scale")
    (logits_layer,) = tensors(decoder["layers_1"], "logits")
    activation, data = getattr(torch, config.activation), torch.tensor(x.reshape(len(x), -1))

    def log_weights(x: Any, loc: Any, scale: Any, particles: int) -> Any:
        noise = torch.randn(len(x), particles, config.latent)
        z = h = loc[:, None] + scale[:, None] * noise
        for layer in outward:
            h = activation(F.linear(h, *layer))
        logits = F.linear(h, *logits_layer)
        target = x[:, None].expand_as(logits)
        distortion = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        return 0.5 * (noise**2 - z**2).sum(-1) + scale.log().sum(-1, keepdim=True) - distortion

    @torch.no_grad()
    def log_likelihood() -> np.ndarray:
        torch.manual_seed(config.seed)
        found = []
        for x in data.split(config.batch_size):
            h = x
            for layer in inward:
                h = activation(F.linear(h, *layer))
            loc, scale = F.linear(h, *loc_layer), 1e-4 + F.softplus(F.linear(h, *scale_layer))
            counts = np.diff([*range(0, config.particles, config.chunk), config.particles])
            log_w = torch.cat([log_weights(x, loc, scale, int(k)) for k in counts], 1)
            found.append(torch.logsumexp(log_w, 1) - math.log(config.particles))
        return torch.cat(found).numpy()

    return log_likelihood


def programs(config: Config) -> dict[str, paired.Program]:
    """vaejax, and PyTorch twice: in the same chunks, and image by image with all particles."""
    model, params, x = problem(config)
    whole = replace(config, batch_size=1, chunk=config.particles)
    functions = {
        "vaejax": in_vaejax(config, model, params, x),
        "torch_chunks": in_torch(config, params, x),
        "torch_images": in_torch(whole, params, x),
    }
    return {name: _program(config, function) for name, function in functions.items()}


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write; returns what the JSON file holds."""
    if config.smoke:
        config = replace(config, size=(4, 3), hidden=(8,), latent=2, images=7)
        config = replace(config, particles=200, batch_size=3, rounds=2)
    if config.compare:
        return paired.measure(programs(config), config, unit="samples", numerator="vaejax")
    return scored_once(config)


def scored_once(config: Config) -> dict[str, Any]:
    """One call of `evaluate.log_likelihood`: its time with compilation, and the peak of memory."""
    with memory.peak_memory() as peak:
        log_likelihood, began = in_vaejax(config, *problem(config)), perf_counter()
        log_px = log_likelihood()
        seconds = perf_counter() - began
        samples = config.images * config.particles
        report = {
            "images": config.images,
            "particles": config.particles,
            "seconds": seconds,
            "samples_per_second": samples / seconds,
            "peak_anonymous_mb": peak(),
            "nll_nats": -float(log_px.mean()),
            **common.circumstances(),
        }
    print(
        f"{samples} samples in {seconds:.1f} s with compilation, {samples / seconds:.0f} "
        f"samples/s; anonymous memory at most {report['peak_anonymous_mb']:.0f} MB"
    )
    if config.out is not None:
        common.write_json(config.out, report)
    return report


def _program(config: Config, function: Callable[[], np.ndarray]) -> paired.Program:
    facts = {"compile_seconds": paired.seconds_to_compile(function, calls=2)}
    work = config.images * config.particles
    return paired.Program(lambda: None, lambda _: -function().mean(), work, facts)


if __name__ == "__main__":
    main(common.parse(PRESETS, __doc__ or ""))
