"""The workloads by pythae: its models and its trainer's epochs, with the layers of the workload.

Its data set draws a binary image anew whenever it is asked for one. Its losses need probabilities.
"""

import atexit
import itertools
import logging
import shutil
import tempfile
from typing import Any

import pythae.models
import torch
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import nn

from experiments.benchmarks.in_torch import DEVICE, Net
from experiments.benchmarks.suite import Burst, Sizes, levels


class Encoder(BaseEncoder):
    """The encoder of `in_torch.Net`, as pythae takes it."""

    def __init__(self, net: Net):
        super().__init__()
        self.layers, self.loc, self.scale = net.encoder, net.loc, net.scale

    def forward(self, x: Any) -> Any:
        h = self.layers(x)
        return ModelOutput(embedding=self.loc(h), log_covariance=self.scale(h))


class Decoder(BaseDecoder):
    """The decoder of `in_torch.Net`, as pythae takes it: it gives probabilities."""

    def __init__(self, net: Net):
        super().__init__()
        self.layers = nn.Sequential(net.decoder, nn.Sigmoid())

    def forward(self, z: Any) -> Any:
        return ModelOutput(reconstruction=self.layers(z))


class Binarized(BaseDataset):
    """Images whose pixels are drawn anew each time that one is asked for."""

    def __getitem__(self, index: int) -> Any:
        return DatasetOutput(data=torch.bernoulli(self.data[index]), labels=self.labels[index])


def build(workload: str, variant: str, sizes: Sizes) -> Burst:
    """An epoch of the trainer over as many images as a burst has, or `get_nll`."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    name = "VAE" if sizes.particles == 1 or workload == "W4" else "IWAE"
    options: dict[str, Any] = {
        "input_dim": (sizes.side**2,),
        "latent_dim": sizes.latent,
        "reconstruction_loss": "bce",
    }
    if name == "IWAE":
        options["number_samples"] = sizes.particles
    config = getattr(pythae.models, f"{name}Config")(**options)
    net = Net(sizes)
    model = getattr(pythae.models, name)(config, Encoder(net), Decoder(net)).to(DEVICE)
    grey = torch.from_numpy(levels(sizes).reshape(sizes.images, -1))
    if workload == "W4":
        x = (grey > 127).float().to(DEVICE)

        @torch.no_grad()
        def nll() -> float:
            return -float(model.get_nll(x, n_samples=sizes.particles))

        return Burst(nll, sizes.images * max(sizes.particles // 100, 1) * 100, {})  # by hundreds
    shown = min(sizes.images, sizes.steps * sizes.batch)
    dataset = Binarized if sizes.pixels == "binary" else BaseDataset
    data = dataset(grey[:shown].float() / 255, torch.zeros(shown))
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    trainer = BaseTrainer(
        model,
        data,
        training_config=BaseTrainerConfig(
            output_dir=folder,
            learning_rate=1e-3,
            per_device_train_batch_size=sizes.batch,
            no_cuda=DEVICE.type != "cuda",
        ),
    )
    trainer.prepare_training()
    epochs = itertools.count(1)
    facts = {"parameters": sum(p.numel() for p in model.parameters())}

    def epoch() -> float:
        return float(trainer.train_step(next(epochs)))

    return Burst(epoch, shown, facts)
