"""Networks: layers, heads that return distributions, flows, causal and autoregressive networks."""

from vaejax.networks import autoregressive, causal, flows, heads
from vaejax.networks._door import check_state, entering, functional, sequential, within
from vaejax.networks._layers import (
    MLP,
    Conv,
    ConvDecoder,
    ConvEncoder,
    conv,
    conv_as_product,
    conv_native,
    depth_to_space,
    has_condition,
    join,
    kernels,
)
from vaejax.networks._network import Network, check_module

__all__ = [
    "MLP",
    "Conv",
    "ConvDecoder",
    "ConvEncoder",
    "Network",
    "autoregressive",
    "causal",
    "check_module",
    "check_state",
    "conv",
    "conv_as_product",
    "conv_native",
    "depth_to_space",
    "entering",
    "flows",
    "functional",
    "has_condition",
    "heads",
    "join",
    "kernels",
    "sequential",
    "within",
]
