"""The loss of the VQ-VAE, and two terms by which the codebook learns."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from vaejax.batch import batch_mean, over_batch, weights_of
from vaejax.families.quantized._codebook import perplexity
from vaejax.families.quantized._model import check_quantized
from vaejax.model import Draw, Model, draw, terms
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params


def vq_vae(
    model: Model,
    *,
    beta: float = 0.25,
    learn: Callable[[Array, Array, Array, Array], Array] | None = None,
    draw: Callable[..., Draw] = draw,
) -> Loss:
    """The VQ-VAE's loss, averaged over the batch: distortion, commitment, and the codebook's term.

    `L = -log p(x|z_q) + beta |z_e - sg(e)|^2 + learn`, sg: no gradient.

    Everything is summed over the event: the distortion in nats, |z_e - e|^2 in squared units of the
    code, so that beta is in nats per squared unit. The gradient of the distortion passes straight
    from z_q to z_e. None of the three terms depends on how many examples the batch holds.

    Args:
      model: from `quantize`.
      beta: weight of the commitment.
      learn: the codebook's term, `(codebook, features [batch, n, size], index [batch, n], weight
        [batch]) -> ()` for examples of n codes each; by default `moving_average`; `codebook_loss`
        is another.
      draw: how a Draw is made.
    Returns:
      the loss. Its metrics are `distortion`, `commitment` (|z_e - e|^2), `codebook` (the term
      `learn`), and `perplexity`, of the use of the entries in the batch. It raises TypeError for a
      model that `quantize` did not make.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import Batch, autoencoder, heads, quantized
      >>> model = autoencoder(heads.Code((2, 3)), heads.Bernoulli(6))  # two codes of size 3
      >>> model = quantized.quantize(model, entries=4)
      >>> params = model.init(jax.random.key(0), jnp.zeros(6))
      >>> loss = quantized.vq_vae(model)
      >>> arguments = params, jax.random.key(1), Batch(jnp.zeros((5, 6))), 0
      >>> _, metrics = jax.eval_shape(loss, *arguments)
      >>> sorted(metrics)
      ['codebook', 'commitment', 'distortion', 'perplexity']

    References:
      Van den Oord et al., 2017, arXiv:1711.00937.
    """
    learn = moving_average if learn is None else learn

    def example(params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array, Array, Array]:
        d = draw(model, params, key, x, c)
        q = check_quantized("vq_vae", d.q)
        apart = jnp.sum((q.features - lax.stop_gradient(q.value)) ** 2)
        return terms.distortion(d), apart, q.features, q.index

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        D, apart, features, index = over_batch(example, params, key, batch)
        D, commitment = batch_mean((D, apart), batch.weight)
        codebook = params["codebook"]
        index = index.reshape(len(index), -1)
        features = lax.stop_gradient(features).reshape(*index.shape, -1)
        weight = weights_of(len(index), batch.weight)
        term = learn(codebook, features, index, weight)
        used = jnp.zeros(len(codebook)).at[index].add(weight[:, None])
        measured = {"distortion": D, "commitment": commitment, "codebook": term}
        return D + beta * commitment + term, {**measured, "perplexity": perplexity(used)}

    return loss


def moving_average(codebook: Array, features: Array, index: Array, weight: Array) -> Array:
    """A loss by which SGD with rate 1 - gamma makes each entry a moving average of its codes.

    `1/2 sum_k |e_k - sg(m_k)|^2`, m_k the mean of the codes that chose entry k, over the entries
    that any code chose. The gradient for e_k is e_k - m_k, so that a step of plain SGD is `e_k <-
    gamma e_k + (1 - gamma) m_k`; the other entries stay. Each entry moves by its own mean, however
    many codes chose it. The paper averages sums and counts apart, so that there a batch with more
    codes of an entry moves it more.

    Args:
      codebook: the entries, `[entries, size]`.
      features: the encoder's outputs, `[batch, n, size]`.
      index: the entry that each chose, `[batch, n]`.
      weight: how much each example counts, `[batch]`.
    Returns:
      the term, `()`, in squared units of the code.
    References:
      Van den Oord et al., 2017, arXiv:1711.00937, appendix A.1.
    """
    each = jnp.broadcast_to(weight[:, None], index.shape)
    counted = jnp.where((each > 0)[..., None], each[..., None] * features, 0.0)
    count = jnp.zeros(len(codebook)).at[index].add(each)[:, None]
    total = jnp.zeros(codebook.shape, counted.dtype).at[index].add(counted)
    mean = total / jnp.where(count > 0, count, 1.0)
    target = lax.stop_gradient(jnp.where(count > 0, mean, codebook))
    return 0.5 * jnp.sum((codebook - target) ** 2)


def codebook_loss(codebook: Array, features: Array, index: Array, weight: Array) -> Array:
    """|sg(z_e) - e|^2 summed over the codes of an example: the codebook learns by any optimizer.

    `sum_i w_i sum_n |sg(z_in) - e_k(in)|^2 / sum_i w_i`. The gradient of an entry grows with the
    number of codes that chose it, unlike that of `moving_average`.

    Args:
      codebook, features, index, weight: as for `moving_average`.
    Returns:
      the term, `()`, in squared units of the code.
    References:
      Van den Oord et al., 2017, arXiv:1711.00937, equation 3.
    """
    apart = (lax.stop_gradient(features) - codebook[index]) ** 2
    return batch_mean(jnp.sum(apart, axis=(1, 2)), weight)
