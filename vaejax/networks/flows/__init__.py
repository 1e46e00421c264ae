"""Normalising flows: invertible maps with a known log-determinant, and the densities they make.

    flow = flows.coupling(2, layers=8, hidden=(64,))     # a network: init, apply
    density = flows.Density(flow)                        # p(x) of x = f(z), z ~ N(0, I)
    params = density.init(key)
    px = density.apply(params)                           # a Distribution like any other

A **flow** is a value, a frozen pytree as a Distribution is: `forward(z) -> (x, log|det dx/dz|)` and
`inverse(x) -> (z, log|det dz/dx|)` for one vector, in nats. A **network of flows** makes one from
parameters and, in a posterior, from features h of the example. `planar`, `coupling` and
`inverse_autoregressive` build it; `posteriors` and `priors` put it into a Model.

| flow | density of a given x | draw with its density | expressive |
| --- | --- | --- | --- |
| `Planar` | none | one pass | one bend for each layer |
| `Coupling` | one pass | one pass | half the entries for each layer |
| `InverseAutoregressive` | one pass for each entry | one pass | all entries, in their order |
"""

from vaejax.networks.flows._maps import (
    Composed,
    Coupling,
    Flow,
    InverseAutoregressive,
    Planar,
    Transformed,
)
from vaejax.networks.flows._networks import (
    Conditioner,
    Density,
    Masked,
    MaskedDense,
    PlanarNet,
    Stack,
    autoregressive_masks,
    coupling,
    inverse_autoregressive,
    planar,
)

__all__ = [
    "Composed",
    "Conditioner",
    "Coupling",
    "Density",
    "Flow",
    "InverseAutoregressive",
    "Masked",
    "MaskedDense",
    "Planar",
    "PlanarNet",
    "Stack",
    "Transformed",
    "autoregressive_masks",
    "coupling",
    "inverse_autoregressive",
    "planar",
]
