"""The workloads by PyTorch: the same models, losses and data. Imports no JAX.

| variant | how |
| --- | --- |
| `torch_loader` | as PyTorch's example: log-variance, probabilities, `loss.item()`, DataLoader |
| `torch_eager` | the same without the loader: levels on the device, a random order |
| `torch_tuned` | written well: logits, softplus, fused Adam, nothing fetched on the way, numbers \
too small for full precision flushed to zero, images channels last |
| `torch_compile` | as tuned, the loss through `torch.compile` |
| `torch_cuda_graphs` | as tuned, the whole step captured once and replayed |
| `torch_bfloat16` | as tuned, under `torch.autocast` |
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from experiments.benchmarks.suite import Burst, Sizes, levels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cuda":  # float32 products in TF32, as the JAX workers are told too
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


AS_THE_EXAMPLE = ("torch_eager", "torch_loader")


class Net(nn.Module):
    """The three networks: `encode` gives loc and scale of q(z|x), `decode` the logits of p(x|z)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[sizes.activation]
        if sizes.network == "mlp":
            inward = [sizes.side**2, *sizes.hidden]
            outward = [sizes.latent, *sizes.hidden[::-1]]
            self.encoder = _dense(inward, activation)
            self.decoder = _dense(outward, activation)
            self.decoder.append(nn.Linear(outward[-1], sizes.side**2))
            features = inward[-1]
        else:
            few, many = sizes.hidden
            quarter = sizes.side // 4
            features = many * quarter * quarter
            self.encoder = nn.Sequential(
                nn.Conv2d(1, few, 3, stride=2, padding=1),
                activation(),
                nn.Conv2d(few, many, 3, stride=2, padding=1),
                activation(),
                nn.Flatten(),
            )
            self.decoder = nn.Sequential(
                nn.Linear(sizes.latent, features),
                activation(),
                nn.Unflatten(1, (many, quarter, quarter)),
                *UPWARD[sizes.network](many, few, activation),
            )
        self.loc, self.scale = (nn.Linear(features, sizes.latent) for _ in range(2))

    def encode(self, x: Any) -> tuple[Any, Any]:
        h = self.encoder(x)
        return self.loc(h), 1e-4 + F.softplus(self.scale(h))

    def decode(self, z: Any) -> Any:
        return self.decoder(z)


def loss_of(net: Net) -> Callable[..., Any]:
    """The function `loss(x, noise)`: minus the ELBO or the importance-weighted bound.

    It takes x `[batch, ...]` of 0 and 1, and noise `[batch, latent]` or
    `[batch, particles, latent]`. It returns nats per image.
    """
    return _elbo(net) if net.sizes.particles == 1 else _iwae(net)


def _elbo(net: Net) -> Callable[..., Any]:
    def loss(x: Any, noise: Any) -> Any:
        loc, scale = net.encode(x)
        logits = net.decode(loc + scale * noise)
        distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        rate = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum()
        return (distortion + rate) / len(x)

    return loss


def _iwae(net: Net) -> Callable[..., Any]:
    def loss(x: Any, noise: Any) -> Any:
        loc, scale = net.encode(x)
        z = loc[:, None] + scale[:, None] * noise
        logits = net.decode(z)
        target = x[:, None].expand_as(logits)
        log_px = -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        log_w = log_px + 0.5 * (noise**2 - z**2).sum(-1) + scale.log().sum(-1, keepdim=True)
        return (math.log(log_w.shape[1]) - torch.logsumexp(log_w, 1)).mean()

    return loss


def build(workload: str, variant: str, sizes: Sizes) -> Burst:
    """The variant, ready to run."""
    torch.manual_seed(0)
    torch.set_flush_denormal(variant not in AS_THE_EXAMPLE)  # before there are threads to tell
    if workload == "W5":
        return _penalty(variant, sizes)
    if workload == "W4":
        return _likelihood(variant, sizes)
    return _training(variant, sizes)


def _training(variant: str, sizes: Sizes) -> Burst:
    """A burst of training steps by one of the variants."""
    net, tuned = Net(sizes).to(DEVICE), variant not in AS_THE_EXAMPLE
    if tuned and sizes.network != "mlp":
        module: Any = net  # whose types know no formats
        module.to(memory_format=torch.channels_last)
    graphs = variant == "torch_cuda_graphs"
    fast: dict[str, Any] = {"fused": True, "capturable": graphs} if tuned else {}
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, **fast)
    loss = loss_of(net) if tuned else as_the_example(net)
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in net.parameters())}
    if variant == "torch_compile":
        loss = torch.compile(loss)
    noise_shape = (sizes.latent,) if sizes.particles == 1 else (sizes.particles, sizes.latent)
    loaded = variant == "torch_loader"
    top = 1.0 if loaded else 255.0  # the loader gives images in [0, 1], as the example has them

    def update(grey: Any) -> Any:
        """One step of Adam on a batch of grey images; returns the loss."""
        x = _as_input(sizes, grey, top)
        adam.zero_grad()
        noise = torch.randn(len(x), *noise_shape, device=DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=variant == "torch_bfloat16"):
            value = loss(x, noise)
        value.backward()
        adam.step()
        return value.detach()

    batches = _loaded(sizes) if loaded else _orders(sizes)
    images = None if loaded else torch.from_numpy(_shaped(sizes)).to(DEVICE)

    def step() -> Any:
        batch = next(batches)
        return update(batch.to(DEVICE) if images is None else images[batch])

    began = perf_counter()
    if graphs:
        step = captured(update, images, batches)

    def run() -> float:
        total = 0.0
        for _ in range(sizes.steps):
            value = step()
            if not tuned:
                total += value.item()  # as one writes it, to report a running mean
        return value.item()  # waits for the device

    if variant == "torch_compile" or graphs:
        step()
        facts["compile_seconds"] = perf_counter() - began
    return Burst(run, sizes.steps * sizes.batch, facts)


def _as_input(sizes: Sizes, grey: Any, top: float) -> Any:
    """What the network takes: grey / top, or pixels that are 1 with this probability."""
    if sizes.pixels == "grey":
        x = grey.float().div_(top)
    else:
        x = (torch.rand(grey.shape, device=DEVICE).mul_(top) < grey).float()
    return x if sizes.network == "mlp" else x[:, None]


def as_the_example(net: Net) -> Callable[..., Any]:
    """The loss as in PyTorch's example, from probabilities and log-variances.

    It takes one draw of noise or several.
    """
    several = net.sizes.particles > 1

    def loss(x: Any, noise: Any) -> Any:
        h = net.encoder(x)
        loc, log_var = net.loc(h), net.scale(h)
        if several:
            loc, log_var = loc[:, None], log_var[:, None]
        z = loc + torch.exp(0.5 * log_var) * noise
        mean = torch.sigmoid(net.decode(z))
        if not several:
            distortion = F.binary_cross_entropy(mean, x, reduction="sum")
            return (distortion - 0.5 * torch.sum(1 + log_var - loc**2 - log_var.exp())) / len(x)
        target = x[:, None].expand_as(mean)
        log_px = -F.binary_cross_entropy(mean, target, reduction="none").sum(-1)
        log_w = log_px + 0.5 * (noise**2 - z**2 + log_var).sum(-1)
        return (math.log(noise.shape[1]) - torch.logsumexp(log_w, 1)).mean()

    return loss


def captured(update: Callable[..., Any], images: Any, chosen: Iterator[Any]) -> Callable[[], Any]:
    """The step as one CUDA graph. Its input is copied in place before each replay."""
    grey, side = images[next(chosen)].clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            update(grey)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = update(grey)

    def step() -> Any:
        torch.index_select(images, 0, next(chosen), out=grey)
        graph.replay()
        return value

    return step


class _Images(torch.utils.data.Dataset):
    """An image and its label at a time, by the steps of torchvision's MNIST with ToTensor.

    It is written by hand, since torchvision has no build for every build of PyTorch.
    """

    def __init__(self, images: Any):
        self.images = torch.from_numpy(images)
        self.labels = torch.zeros(len(images), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = Image.fromarray(self.images[index].numpy())
        levels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        channels = levels.view(image.height, image.width, 1).permute(2, 0, 1).contiguous()
        return channels.to(torch.float32).div(255), int(self.labels[index])


def _loaded(sizes: Sizes) -> Iterator[Any]:
    """Batches of images from the example's loader, in the shape of the data on the device.

    The loader has one worker where there is a GPU and none otherwise, as the example has it.
    """
    cuda = DEVICE.type == "cuda"
    loader: Any = torch.utils.data.DataLoader(
        _Images(levels(sizes)[..., 0]),
        batch_size=sizes.batch,
        shuffle=True,
        drop_last=True,
        num_workers=int(cuda),
        pin_memory=cuda,
    )
    while True:
        for x, _ in loader:
            yield x.flatten(1) if sizes.network == "mlp" else x[:, 0]


def _orders(sizes: Sizes) -> Iterator[Any]:
    """The indices of each batch, in a new random order every epoch, on the device."""
    while True:
        order = torch.randperm(sizes.images, device=DEVICE)
        yield from order[: sizes.images // sizes.batch * sizes.batch].split(sizes.batch)


def _likelihood(variant: str, sizes: Sizes) -> Burst:
    """log p(x) by importance sampling.

    `torch_images` computes all particles of one image at a time, the others the chunks that
    `evaluate.log_likelihood` takes. All compute from logits except `torch_eager`, which computes
    from probabilities as the example does.
    """
    net = Net(sizes).to(DEVICE)
    data = torch.from_numpy(_shaped(sizes) > 127).float().to(DEVICE)
    at_once = (sizes.batch, sizes.chunk)
    batch, chunk = (1, sizes.particles) if variant == "torch_images" else at_once
    counts = [min(chunk, sizes.particles - i) for i in range(0, sizes.particles, chunk)]

    def log_weights(x: Any, loc: Any, scale: Any, particles: int) -> Any:
        noise = torch.randn(len(x), particles, sizes.latent, device=DEVICE)
        z = loc[:, None] + scale[:, None] * noise
        logits = net.decode(z)
        target = x[:, None].expand_as(logits)
        if variant == "torch_eager":
            distortion = F.binary_cross_entropy(torch.sigmoid(logits), target, reduction="none")
        else:
            distortion = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        distortion = distortion.sum(-1)
        return 0.5 * (noise**2 - z**2).sum(-1) + scale.log().sum(-1, keepdim=True) - distortion

    @torch.no_grad()
    def run() -> float:
        for _ in range(sizes.steps):
            found = []
            for x in data.split(batch):
                loc, scale = net.encode(x)
                log_w = torch.cat([log_weights(x, loc, scale, k) for k in counts], 1)
                found.append(torch.logsumexp(log_w, 1) - math.log(sizes.particles))
            nll = -torch.cat(found).mean().item()
        return nll

    return Burst(run, sizes.steps * sizes.images * sizes.particles, {})


def closed_form(layer: Any, x: Any) -> Any:
    """|dh/dx|_F^2 `[batch]` of h = sigmoid(W x + b): sum_j (h_j (1 - h_j))^2 |W_j|^2."""
    h = torch.sigmoid(layer(x))
    return (h * (1 - h)) ** 2 @ (layer.weight**2).sum(1)


def by_jacrev(layer: Any, x: Any) -> Any:
    """The same from the whole Jacobian of each image, by `torch.func`."""
    jacobian = torch.func.jacrev(lambda one: torch.sigmoid(layer(one)))
    return (torch.func.vmap(jacobian)(x) ** 2).sum((1, 2))


def _penalty(variant: str, sizes: Sizes) -> Burst:
    layer = nn.Linear(sizes.side**2, sizes.hidden[0]).to(DEVICE)
    x = torch.rand(sizes.batch, sizes.side**2, device=DEVICE)
    closed = variant == "torch_closed"
    norm, steps = (closed_form, sizes.steps) if closed else (by_jacrev, sizes.slow_steps)

    def run() -> float:
        for _ in range(steps):
            layer.zero_grad()
            value = norm(layer, x).mean()
            value.backward()
        return value.item()

    return Burst(run, steps * sizes.batch, {})


def _shaped(sizes: Sizes) -> Any:
    """The levels flat for dense layers, `[n, side, side]` for convolutions."""
    shape = (-1,) if sizes.network == "mlp" else (sizes.side, sizes.side)
    return levels(sizes).reshape(sizes.images, *shape)


def _dense(widths: list[int], activation: Any) -> Any:
    layers: list[Any] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers)


def _transposed(many: int, few: int, activation: Any) -> list[Any]:
    first = nn.ConvTranspose2d(many, few, 3, stride=2, padding=1, output_padding=1)
    second = nn.ConvTranspose2d(few, 1, 3, stride=2, padding=1, output_padding=1)
    return [first, activation(), second]


def _subpixel(many: int, few: int, activation: Any) -> list[Any]:
    return [
        nn.Conv2d(many, 4 * few, 3, padding=1),
        nn.PixelShuffle(2),
        activation(),
        nn.Conv2d(few, 4 * 16, 3, padding=1),
        nn.PixelShuffle(2),
        activation(),
        nn.Conv2d(16, 1, 1),
    ]


UPWARD = {"transposed": _transposed, "subpixel": _subpixel}
