"""Losses of deterministic autoencoders: the reconstruction, and what forces structure on the code.

The code is z = f(x), and the distortion is D = -log p(x|z). Under a Normal it is the squared error
over 2 scale^2, under a Bernoulli the cross-entropy; it is summed over the event, in nats. Each loss
is D averaged over the batch, and one thing more:

| loss | what forces structure |
| --- | --- |
| `reconstruction` | the size of the code alone |
| `denoising` | the code is of a corrupted x, the target is the clean one |
| `sparse` | weight * Omega(z), a penalty on the codes of the batch |
| `batch_top_k` | k active units per example in the mean over the batch |
| `contractive` | weight * |df/dx|_F^2 |
| `higher_order_contractive` | that, and how much df/dx changes nearby |

Corruptions are in `corruption`, penalties in `sparsity`, norms of Jacobians in `contraction`. With
a prior on the code in their place the model is a VAE (`objectives.elbo`).
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.batch import batch_mean, checked_loss_batch, over_batch
from vaejax.distributions import Delta, SparseDelta
from vaejax.errors import at_least_one, concrete, takes, wrong
from vaejax.families.autoencoders import sparsity
from vaejax.families.autoencoders.contraction import Norm
from vaejax.families.autoencoders.sparsity import Penalty
from vaejax.model import Draw, Model, check_model, draw, terms
from vaejax.objectives import Schedule, schedule
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, Transform

MakeDraw = Callable[..., Draw]  # (model, params, key, x, c) -> Draw, of one example


def reconstruction(model: Model, *, draw: MakeDraw = draw) -> Loss:
    """The distortion alone, averaged over the batch.

    `D = -log p(x | z = f(x))`.

    While it is traced it warns (UserWarning) of a code larger than x: nothing then keeps the
    autoencoder from the identity, which reconstructs everything and has learned nothing.

    Args:
      model: an autoencoder.
      draw: how a Draw is made; by default as `vaejax.draw` makes it.
    Returns:
      The Loss, nats per example; its metric is `distortion`.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import Batch, autoencoder, autoencoders, heads
      >>> model = autoencoder(heads.Code(2), heads.FixedNormal(3, 1.0))
      >>> params = model.init(jax.random.key(0), jnp.ones(3))
      >>> loss = jax.jit(autoencoders.reconstruction(model))
      >>> value, metrics = loss(params, jax.random.key(1), Batch(jnp.ones((5, 3))), 0)
      >>> value.shape, list(metrics)
      ((), ['distortion'])

    References:
      Rumelhart, Hinton and Williams, 1986. Hinton and Salakhutdinov, 2006.
    """

    def example(params: Params, key: Key, x: Any, c: Any) -> Array:
        d = draw(model, params, key, x, c)
        if draw is _plainly:
            _warn_of_identity(d)
        return terms.distortion(d)

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        D = batch_mean(over_batch(example, params, key, batch), batch.weight)
        return D, {"distortion": D}

    return loss


def denoising(model: Model, *, corrupt: Transform, draw: MakeDraw = draw) -> Loss:
    """The distortion of the clean x given the code of a corrupted one.

    `D = -log p(x | z = f(x~))`, `x~ ~ corrupt(key, x)`, drawn anew for every example and step.

    Args:
      model: an autoencoder.
      corrupt: a pure function `(key, x)` of one example, such as `corruption.masking(0.5)`. At a
        corrupted example of another shape the loss raises ValueError.
      draw: how a Draw is made; it takes `given=`, what the encoder sees.
    Returns:
      The Loss, nats per example; its metric is `distortion`.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import Batch, autoencoder, autoencoders, corruption, heads
      >>> model = autoencoder(heads.Code(2), heads.FixedNormal(3, 1.0))
      >>> params = model.init(jax.random.key(0), jnp.ones(3))
      >>> loss = autoencoders.denoising(model, corrupt=corruption.masking(0.5))
      >>> value, _ = jax.jit(loss)(params, jax.random.key(1), Batch(jnp.ones((5, 3))), 0)
      >>> value.shape
      ()

    References:
      Vincent, Larochelle, Bengio and Manzagol, 2008, Extracting and composing robust features with
      denoising autoencoders; 2010, JMLR 11.
    """
    return reconstruction(model, draw=corrupted(corrupt, draw=draw))


def corrupted(corrupt: Transform, *, draw: MakeDraw = draw) -> MakeDraw:
    """A `draw` whose encoder sees `corrupt(key, x)` while the Draw's x stays the clean target.

    For any loss that takes a draw: `objectives.elbo(model, draw=corrupted(...))` is a denoising
    VAE. A `corrupt` that does not take a key and an x is a TypeError at once. A corrupted x of
    another shape is a ValueError when the draw is made.

    Args:
      corrupt: a pure function `(key, x)` of one example.
      draw: how a Draw is made from the corrupted x; by default as `vaejax.draw` makes it.
    Returns:
      A function with the arguments of `vaejax.draw`, without `given`.
    References:
      Im et al., 2017, arXiv:1511.06406.
    """
    takes("denoising: corrupt", corrupt, "key, x", "call it: corruption.masking(0.5)")

    def corrupted_draw(model: Model, params: Params, key: Key, x: Any, c: Any = ()) -> Draw:
        corrupt_key, draw_key = jax.random.split(key)
        given = corrupt(corrupt_key, x)
        got, expected = (jax.tree.map(jnp.shape, v) for v in (given, x))
        if got != expected:
            fix = "return the corrupted example in the shape of the clean one"
            raise wrong("denoising: corrupt(key, x)", f"shape {got}", f"{expected}", fix)
        return draw(model, params, draw_key, x, c, given=given)

    return corrupted_draw


def sparse(model: Model, *, penalty: Penalty, weight: Schedule, draw: MakeDraw = draw) -> Loss:
    """The distortion and a penalty on the codes of the batch.

    `D + weight Omega(z)`.

    A penalty that is not one number is a ValueError when the loss is called.

    Args:
      model: an autoencoder.
      penalty: `(z, w) -> ()`, of codes `[batch, latent]` and the examples' weights, `[batch]` or
        `()`: `sparsity.l1`, `sparsity.kl(rho)` or `sparsity.squared(rho)`.
      weight: a number, or a schedule of the step.
      draw: how a Draw is made; by default as `vaejax.draw` makes it.
    Returns:
      The Loss. Its metrics are `distortion` (nats per example), `penalty` (Omega), `active` (the
      share of the code's entries that are not zero) and `activation` (the mean of the entries).
    References:
      Lee, Ekanadham and Ng, 2007, Sparse deep belief net model for visual area V2. Ng, 2011.
    """
    check_model("sparse", model)
    takes("sparse: penalty", penalty, "z, weight", "call it: sparsity.kl(0.05)")

    def example(params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array]:
        d = draw(model, params, key, x, c)
        return terms.distortion(d), jnp.ravel(d.z)

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        D, z = over_batch(example, params, key, batch)
        shares = {"active": jnp.mean(z != 0, axis=1), "activation": jnp.mean(z, axis=1)}
        D, Omega = batch_mean(D, batch.weight), penalty(z, batch.weight)
        if jnp.shape(Omega) != ():
            fix = "average it over the batch, or pass sparsity.l1, kl(rho) or squared(rho)"
            raise wrong("sparse: penalty", f"shape {jnp.shape(Omega)}", "one number, ()", fix)
        if not isinstance(batch.weight, tuple):  # of no example there is nothing to penalise
            Omega = jnp.where(jnp.any(batch.weight > 0), Omega, 0)
        metrics = {"distortion": D, "penalty": Omega, **batch_mean(shares, batch.weight)}
        return D + schedule(weight, step) * Omega, metrics

    return loss


def batch_top_k(model: Model, *, k: int) -> Loss:
    """The distortion of codes of which the whole batch keeps its `k batch` largest entries.

    `D = -log p(x|z)`, `z_ij = f(x_i)_j` if it is among the `k batch` largest of the batch, else 0.

    So a harder example gets more active units than another, and k is their mean. Masked examples
    are no part of the batch. An example alone is coded by `sparsity.thresholded(model, theta)`. A k
    outside the code's size is a ValueError when the loss is called.

    Args:
      model: its encoder ends with a code that is not sparse yet, `heads.Code(n, nn.relu)`.
      k: active units per example in the mean, 1 to the code's size.
    Returns:
      The Loss. Its metrics are `distortion` (nats per example), `active` (the share of the code's
      entries that are not zero) and `threshold` (the smallest activation kept; 0 where none is
      above it).
    References:
      Bussmann, Leask and Nanda, 2024, BatchTopK sparse autoencoders, arXiv:2412.06410.
    """

    def code(params: Params, key: Key, x: Any, c: Any) -> Array:
        return model.encode(params, x, c, key=key).mean

    check_model("batch_top_k", model)
    at_least_one("batch_top_k", k=k)

    def example(params: Params, key: Key, x_and_z: Any, c: Any) -> Array:
        x, z = x_and_z
        return -model.decode(params, z, c, key=key).log_prob(x)

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        batch = checked_loss_batch(key, batch)
        code_key, decode_key = jax.random.split(key)
        z = over_batch(code, params, code_key, batch)
        kept = sparsity.largest(z.reshape(len(z), -1), k, batch.weight)
        pairs = batch._replace(x=(batch.x, kept.reshape(z.shape)))
        D = batch_mean(over_batch(example, params, decode_key, pairs), batch.weight)
        active = batch_mean(jnp.mean(kept != 0, axis=1), batch.weight)
        theta = sparsity.smallest_active(kept)
        theta = jnp.where(jnp.isfinite(theta), theta, 0)
        return D, {"distortion": D, "active": active, "threshold": theta}

    return loss


def contractive(model: Model, *, norm: Norm, weight: Schedule, draw: MakeDraw = draw) -> Loss:
    """The distortion and the squared norm of the encoder's Jacobian.

    `D + weight |df/dx|_F^2`.

    Args:
      model: an autoencoder.
      norm: `(model, params, key, x, c) -> ()`: `contraction.closed_form` (an encoder of one layer),
        `contraction.exact` (small codes) or `contraction.hutchinson(probes)` (an unbiased
        estimate).
      weight: a number, or a schedule of the step.
      draw: how a Draw is made; by default as `vaejax.draw` makes it.
    Returns:
      The Loss. Its metrics are `distortion` (nats per example) and `jacobian_NAME`, the mean of
      |df/dx|_F^2, where NAME is that of the norm.
    References:
      Rifai, Vincent, Muller, Glorot and Bengio, 2011, Contractive auto-encoders: explicit
      invariance during feature extraction.
    """
    check_model("contractive", model)
    takes("contractive: norm", norm, *_NORM)

    def example(params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array]:
        draw_key, norm_key = jax.random.split(key)
        d = draw(model, params, draw_key, x, c)
        return terms.distortion(d), norm(model, params, norm_key, x, c)

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        D, J = batch_mean(over_batch(example, params, key, batch), batch.weight)
        metrics = {"distortion": D, f"jacobian_{_name(norm)}": J}
        return D + schedule(weight, step) * J, metrics

    return loss


def higher_order_contractive(
    model: Model,
    *,
    norm: Norm,
    weight: Schedule,
    curvature: Schedule,
    scale: float,
    samples: int = 1,
    draw: MakeDraw = draw,
) -> Loss:
    """The contractive loss, and how much the Jacobian changes nearby: CAE+H.

    `D + weight |J(x)|_F^2 + curvature E_e |J(x) - J(x + e)|_F^2`, `e ~ N(0, scale^2 I)`, J = df/dx.

    For small scale the expectation is `scale^2 |d^2f/dx^2|_F^2`, the Hessian's squared norm, found
    without second derivatives.

    Args:
      model: an autoencoder.
      norm: as for `contractive`; here it is called with `shift=e` too.
      weight: of the Jacobian: a number, or a schedule of the step.
      curvature: the weight of its change: a number, or a schedule of the step.
      scale: the standard deviation of e, in units of x.
      samples: draws of e per example.
      draw: how a Draw is made; by default as `vaejax.draw` makes it.
    Returns:
      The Loss. Its metrics are `distortion` (nats per example), `jacobian_NAME` and
      `curvature_NAME`, the means of the two squared norms, where NAME is that of the norm.
    Raises:
      ValueError: for a scale that is not positive and finite, or samples below 1.
    References:
      Rifai, Mesnil, Vincent, Muller, Bengio, Dauphin and Glorot, 2011, Higher order contractive
      auto-encoder, ECML.
    """
    at_least_one("higher_order_contractive", samples=samples)
    takes("higher_order_contractive: norm", norm, *_NORM)
    if concrete(scale) and not 0 < scale < math.inf:
        fix = "the noise is in units of x"
        raise wrong("higher_order_contractive: scale", scale, "a positive number", fix)

    def example(params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array, Array]:
        draw_key, norm_key, shift_key = jax.random.split(key, 3)

        def change(key: Key) -> Array:
            noise_key, norm_key = jax.random.split(key)
            shift = scale * jax.random.normal(noise_key, jnp.shape(x), x.dtype)
            return norm(model, params, norm_key, x, c, shift=shift)

        d = draw(model, params, draw_key, x, c)
        changes = jax.vmap(change)(jax.random.split(shift_key, samples))
        return terms.distortion(d), norm(model, params, norm_key, x, c), jnp.mean(changes)

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        D, J, H = batch_mean(over_batch(example, params, key, batch), batch.weight)
        name = _name(norm)
        metrics = {"distortion": D, f"jacobian_{name}": J, f"curvature_{name}": H}
        return D + schedule(weight, step) * J + schedule(curvature, step) * H, metrics

    return loss


_plainly = draw  # the default, under a name that the argument `draw` does not hide
# What `takes` says of a norm: its arguments, and what to pass.
_NORM = "model, params, key, x, c", "pass contraction.closed_form, or call it: hutchinson(1)"


def _name(norm: Norm) -> str:
    """What a norm is called in the metrics; a `partial` by the function in it."""
    function: Any = norm
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _warn_of_identity(d: Draw) -> None:
    if not isinstance(d.q, Delta):
        return
    code = d.q.active if isinstance(d.q, SparseDelta) else d.z.size
    size = sum(leaf.size for leaf in jax.tree.leaves(d.x))
    if code > size:
        warnings.warn(
            f"reconstruction: the code has {code} entries for an x of {size} and nothing "
            "regularises it, so the identity is a solution that has learned nothing; make the code "
            "smaller, or use autoencoders.denoising, sparse or contractive, or heads.TopK",
            stacklevel=2,
        )


__all__ = [
    "batch_top_k",
    "contractive",
    "corrupted",
    "denoising",
    "higher_order_contractive",
    "reconstruction",
    "sparse",
]
