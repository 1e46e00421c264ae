"""Disentangled codes: total correlation in the loss.

    KL(q(z|x) || p(z)), averaged over x, = I(x; z) + TC + sum_j KL(q(z_j) || p(z_j))
    TC = KL(q(z) || prod_j q(z_j)),  q(z) = 1/N sum_n q(z|x_n)

`elbo(model, beta=...)` presses on all three parts. `beta_tcvae` and `factor_vae` press on TC alone,
which is 0 where the dimensions are independent. `decomposition.decompose` measures all parts on a
data set, with q(z) exact; report its numbers. `disentanglement.mig` measures what dimensions say
about known factors.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError

from vaejax.batch import batch_mean, over_batch, weights_of
from vaejax.distributions import Normal
from vaejax.errors import wrong
from vaejax.evaluate.decomposition import dimensions_of
from vaejax.model import Draw, Model, draw, terms
from vaejax.networks import functional
from vaejax.objectives import Schedule, players, schedule
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params


def total_correlation(
    z: Array, loc: Array, scale: Array, weight: Any = (), *, size: int | None = None
) -> Array:
    """The total correlation KL(q(z) || prod_j q(z_j)) by the posteriors of one batch.

    `TC = mean_i [log q(z_i) - sum_j log q(z_ij)]`,
    `q(z_i) = sum_m w_im q(z_i|x_m)`, `q(z_ij) = sum_m w_im q(z_ij|x_m)`, z_i ~ q(z|x_i).

    - `size` None, minibatch-weighted: w_im = 1/M, as if the batch of M were all the data. The
      estimator of the paper has 1/(N M) for data of N, which moves no gradient, but moves the value
      by (d-1) log N. That constant is left out here, so that TC of independent dimensions is about
      0.
    - `size` = N, minibatch-stratified: w_ii = 1/N and w_im = (N-1)/N/(M-1), for which q(z_i) is
      unbiased over the choice of the others. (The paper gives one of the others a weight of its
      own; the mean over which one that is has these weights.) M = N is the TC of the data set, at
      one z for each x.

    **Both are too high where a code tells its x among more than M**: I(x; z) is at most log M for
    the first, while that of each dimension is not capped; `decompose` uses all the data.

    Args:
      z: draws of the posteriors, `[batch, latent]`.
      loc, scale: means and standard deviations of the posteriors, diagonal Normals, both
        `[batch, latent]`.
      weight: how much each example counts, `[batch]`; by default all count alike.
      size: the number of examples that the batch comes from, or None; see above.
    Returns:
      the estimate, nats, `()`.
    Raises:
      ValueError: for other shapes, for a batch of 1, whose only z is always independent, and for a
        size below the batch's.
    References:
      Chen, Li, Grosse and Duvenaud, 2018, arXiv:1802.04942.
    """
    shapes = [jnp.shape(one) for one in (z, loc, scale)]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2:
        fix = "give one row for each example, and flatten codes of several axes"
        raise wrong("total_correlation: z, loc, scale", shapes, "[batch, latent] for all", fix)
    batch = shapes[0][0]
    _several("total_correlation", batch)
    if size is not None and size < batch:
        fix = "it is the number of examples that the batch comes from"
        raise wrong("total_correlation: size", size, f"{batch} or more, the batch", fix)

    def log_q(one: Array, loc: Array, scale: Array) -> Array:
        each = jax.vmap(lambda q, value: q.log_prob(value))(dimensions_of(Normal(loc, scale)), one)
        return jnp.append(jnp.sum(each), each)  # jointly, then of each dimension

    pairs = jax.vmap(jax.vmap(log_q, (None, 0, 0)), (0, None, None))(z, loc, scale)
    log_w = _log_weights(batch, weight, size)
    log_qz = jax.nn.logsumexp(log_w[..., None] + pairs, axis=1)
    return batch_mean(log_qz[:, 0] - jnp.sum(log_qz[:, 1:], axis=1), weight)


def beta_tcvae(
    model: Model,
    *,
    beta: Schedule,
    size: int | None = None,
    draw: Callable[..., Draw] = draw,
) -> Loss:
    """The negative ELBO with beta on the total correlation alone, nats per example.

    `L = D + I(x; z) + beta TC + sum_j KL(q(z_j) || p(z_j)) = D + R + (beta - 1) TC`, TC by
    `total_correlation`. At beta = 1 it is the negative ELBO. A TC that is shifted by the constant
    of the estimator has the same gradient; with the TC used here the value is right too.

    Args:
      model: a VAE whose posterior is a diagonal Normal.
      beta: a number or a schedule of the step.
      size: None for minibatch-weighted sampling, or the number of training examples, for
      stratified.
      draw: how a Draw is made.
    Returns:
      the loss, with the metrics `elbo`, `distortion`, `rate`, `total_correlation` and `beta`. It
      raises TypeError for a posterior other than a diagonal Normal, and ValueError for a batch of
      1.
    References:
      Chen, Li, Grosse and Duvenaud, 2018, arXiv:1802.04942.
    """

    def example(params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array, Array, Normal]:
        d = draw(model, params, key, x, c)
        if not isinstance(d.q, Normal):
            expected, fix = "Normal, whose q(z_j|x) are known", "factor_vae takes any posterior"
            raise wrong("beta_tcvae: posterior", type(d.q).__name__, expected, fix, TypeError)
        return terms.distortion(d), terms.rate(d), d.z.ravel(), dimensions_of(d.q)

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        D, R, z, q = over_batch(example, params, key, batch)
        D, R = batch_mean((D, R), batch.weight)
        TC = total_correlation(z, q.loc, q.scale, batch.weight, size=size)
        weight = schedule(beta, step)
        metrics = {"elbo": -(D + R), "distortion": D, "rate": R, "total_correlation": TC}
        return D + R + (weight - 1) * TC, {**metrics, "beta": weight}

    return loss


def factor_vae(
    model: Model, critic: Any, *, gamma: Schedule, draw: Callable[..., Draw] = draw
) -> Loss:
    """The negative ELBO plus gamma times the total correlation as a critic estimates it.

    There are two players (`adversarial.players`), whose params are {"model": ..., "critic": ...}:

        model   D + R + gamma E_q(z)[f(z)]
        critic  1/2 E_q(z)[-log s(f(z))] + 1/2 E_prod_j q(z_j)[-log(1 - s(f(z)))],  s the sigmoid

    The best critic is f = log q(z) - sum_j log q(z_j), whose mean over q(z) is TC. The critic tells
    codes from codes with every dimension permuted over the batch (`permute_dimensions`). Both come
    from the same batch here, while the paper takes a second batch for the permuted ones. The mean
    of the critic's loss is a sum over single codes, so that it is the same, up to the 1/M of codes
    that meet themselves.

    A critic that is no better than chance has the loss log 2 and the accuracy 1/2. One with an
    accuracy near 1 has won, and its estimate of TC is then of no use.

    Args:
      model: a VAE with any posterior.
      critic: a network from z `[latent]` to one logit: any object with `.init(key, z)` and
        `.apply(params, z)`.
      gamma: a number or a schedule of the step.
      draw: how a Draw is made.
    Returns:
      the loss, with the metrics `elbo`, `distortion`, `rate`, `total_correlation` (the critic's
      estimate, the mean of f), `gamma`, `critic_accuracy`, and the loss of each player. It raises
      ValueError for a batch of 1, and TypeError for a critic whose output is not one number.
    References:
      Kim and Mnih, 2018, arXiv:1802.05983.
    """

    critic = functional(critic, "factor_vae: critic", ("apply",))

    def example(params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array, Array]:
        d = draw(model, params, key, x, c)
        return terms.distortion(d), terms.rate(d), d.z.ravel()

    def logits(params: Params, z: Array) -> Array:
        try:
            found = jax.vmap(lambda one: critic.apply(params["critic"], one))(z)
        except ScopeParamShapeError as error:
            fix = "make its parameters by critic.init(key, z), z a flattened code"
            got = f"codes {z.shape[1:]}"
            raise wrong("factor_vae: critic", got, "those of its init", fix) from error
        if not isinstance(found, jax.Array) or found.size != len(z):
            got = f"an output of shape {jax.tree.map(jnp.shape, found)} for {len(z)} codes"
            raise wrong(
                "factor_vae: critic", got, "one logit each", "end it with nn.Dense(1)", TypeError
            )
        return found.reshape(len(z))

    def model_loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        draw_key, _ = jax.random.split(key)
        D, R, z = over_batch(example, params["model"], draw_key, batch)
        D, R, TC = batch_mean((D, R, logits(params, z)), batch.weight)
        weight = schedule(gamma, step)
        metrics = {"elbo": -(D + R), "distortion": D, "rate": R, "total_correlation": TC}
        return D + R + weight * TC, {**metrics, "gamma": weight}

    def critic_loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        draw_key, permute_key = jax.random.split(key)  # the same codes as the model's
        _, _, z = over_batch(example, params["model"], draw_key, batch)
        true = logits(params, z)
        permuted = logits(params, permute_dimensions(permute_key, z, batch.weight))
        losses = (jax.nn.softplus(-true) + jax.nn.softplus(permuted)) / 2
        right = (jnp.where(true > 0, 1.0, 0.0) + jnp.where(permuted > 0, 0.0, 1.0)) / 2
        loss, accuracy = batch_mean((losses, right), batch.weight)
        return loss, {"critic_accuracy": accuracy}

    return players({"model": model_loss, "critic": critic_loss})


def permute_dimensions(key: Key, z: Array, weight: Any = ()) -> Array:
    """Codes whose dimensions are independent: each is permuted over the batch by itself.

    `z'_ij = z_{p_j(i) j}` with a random permutation p_j of the batch for every dimension j: draws
    of about prod_j q(z_j) from draws of q(z).

    Under weights, row i has its share of [0, sum w]. It meets the shares of the rows in a random
    order, and p_j(i) is the row at a random place in it: E[sum_i w_i f(z'_ij)] = sum_i w_i f(z_ij).
    Where all weights are equal or 0, p_j permutes the rows that count. Nothing of a row of weight 0
    reaches another row.

    Args:
      key: random key for the permutations.
      z: the codes, `[batch, latent]`.
      weight: how much each row counts, `[batch]`; by default all count alike.
    Returns:
      the permuted codes, `[batch, latent]`.
    Raises:
      ValueError: for another rank or a batch of 1.
    References:
      Kim and Mnih, 2018, arXiv:1802.05983, algorithm 1.
    """
    if jnp.ndim(z) != 2:
        fix = "give one row for each example, and flatten codes of several axes"
        raise wrong("permute_dimensions: z", f"shape {jnp.shape(z)}", "[batch, latent]", fix)
    _several("permute_dimensions", len(z))
    share = weights_of(len(z), weight)
    share = share / jnp.max(share)  # equal weights are then 1, and their sums exact
    ends = jnp.cumsum(share)

    def permuted(key: Key, values: Array) -> Array:
        order_key, place_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(z))
        bounds = jnp.cumsum(share[order])
        place = ends - share * jax.random.uniform(place_key, share.shape, share.dtype)
        place = jnp.maximum(place, jnp.nextafter(ends - share, ends))  # in its own part, rounded
        return values[order[jnp.searchsorted(bounds, jnp.minimum(place, bounds[-1]))]]

    return jax.vmap(permuted, (0, 1), 1)(jax.random.split(key, z.shape[1]), z)


def _log_weights(batch: int, weight: Any, size: int | None) -> Array:
    """log w_im of `total_correlation`, `[batch, batch]`; the rows sum to 1."""
    share = weights_of(batch, weight)
    total = jnp.sum(share)
    if size is None:
        return jnp.broadcast_to(jnp.log(share / total)[None], (batch, batch))
    own = jnp.eye(batch, dtype=bool)
    # A row is without others only where a single example counts: no 0 / 0 then.
    rest = jnp.where(total > share, total - share, 1.0)
    others = jnp.log(share)[None] - jnp.log(rest)[:, None] + np.log1p(-1 / size).item()
    return jnp.where(own, -np.log(size).item(), others)


def _several(function: str, batch: int) -> None:
    if batch < 2:
        fix = "raise the batch size; a term of the batch compares its examples"
        raise wrong(f"{function}: batch", f"{batch} example", "2 or more", fix)


__all__ = [
    "beta_tcvae",
    "factor_vae",
    "permute_dimensions",
    "total_correlation",
]
