"""One epoch of W1 as a whole program, imports included. The parent times the process.

    python -m experiments.benchmarks.epoch vaejax|torch IMAGES.npy BATCH

Prints JSON: the mean loss of the epoch, and the peak of memory at the end. JAX keeps compiled
programs where the environment says.
"""

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.benchmarks.memory import peak_memory


def by_vaejax(path: str, batch: int) -> float:
    """The mean loss of an epoch by `train.fit`."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn

    from vaejax import autoencoder, data, heads, networks, objectives, train
    from vaejax.distributions import Normal

    images = np.load(path)
    init_key, key = jax.random.split(jax.random.key(0))
    shape = images.shape[1:]
    model = autoencoder(
        nn.Sequential([networks.MLP((400,)), heads.Normal(20)]),
        nn.Sequential([networks.MLP((400,)), heads.Bernoulli(shape)]),
        Normal(jnp.zeros(20), jnp.ones(20)),
    )
    fitted = train.fit(
        objectives.elbo(model),
        optax.adam(1e-3),
        model.init(init_key, images[0] / 255.0),
        images,
        key=key,
        epochs=1,
        batch_size=batch,
        transform=data.scale,
        progress=False,
    )
    return float(fitted.history["loss"][-1])


def by_torch(path: str, batch: int) -> float:
    """The mean loss of an epoch by `torch_eager`, without a loader."""
    import torch

    from experiments.benchmarks.in_torch import DEVICE, Net, as_the_example
    from experiments.benchmarks.suite import WORKLOADS

    images = np.load(path)
    sizes = replace(WORKLOADS["W1"], side=images.shape[1])
    net = Net(sizes).to(DEVICE)
    loss, adam = as_the_example(net), torch.optim.Adam(net.parameters(), lr=1e-3)
    grey = torch.from_numpy(images.reshape(len(images), -1)).to(DEVICE)
    order, total = torch.randperm(len(grey), device=DEVICE), 0.0
    steps = len(grey) // batch
    for chosen in order[: steps * batch].split(batch):
        x = grey[chosen].float().div_(255)
        adam.zero_grad()
        value = loss(x, torch.randn(batch, sizes.latent, device=DEVICE))
        value.backward()
        adam.step()
        total += value.item()
    return total / steps


if __name__ == "__main__":
    library, path, batch = sys.argv[1:]
    train_epoch: Any = {"vaejax": by_vaejax, "torch": by_torch}[library]
    with peak_memory() as peak:
        loss = train_epoch(path, int(batch))
        print(json.dumps({"loss": loss, "rss_anon_peak_mb": peak()}))
