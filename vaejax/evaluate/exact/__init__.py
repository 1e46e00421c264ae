"""Exact log p(x), for models that are small or simple: what estimates and bounds are tested by.

- Latents of up to three dimensions: `quadrature` sums over a regular grid and says how far it has
  converged; `converged_quadrature` halves the spacing until nothing changes; `local_quadrature`
  gives each example a grid of its own; `gauss_hermite` follows a Gaussian prior; `grid_posterior`
  draws from the posterior.
- Discrete latents: `enumerate_latents` sums over all their values, such as `binary_codes`.
- The linear-Gaussian model, of any size: see `vaejax.linear`.

With the same key and transform these functions and `evaluate.log_likelihood` see the same images.
Layer noise such as dropout is off. An example's randomness depends on the key and its index alone.
Memory stays bounded, and a grid point is decoded once for a whole batch of images.
"""

from vaejax.evaluate.exact._enumeration import Enumeration, binary_codes, enumerate_latents
from vaejax.evaluate.exact._points import Quadrature
from vaejax.evaluate.exact._quadrature import (
    GridPosterior,
    converged_quadrature,
    gauss_hermite,
    grid_posterior,
    local_quadrature,
    quadrature,
)

__all__ = [
    "Enumeration",
    "GridPosterior",
    "Quadrature",
    "binary_codes",
    "converged_quadrature",
    "enumerate_latents",
    "gauss_hermite",
    "grid_posterior",
    "local_quadrature",
    "quadrature",
]
