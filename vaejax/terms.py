"""Terms: numbers in nats from a Draw, for one example. A Term never sees a Model."""

from vaejax.distributions import kl
from vaejax.model import Draw
from vaejax.types import Array


def distortion(d: Draw) -> Array:
    """D = -log p(x|z) at the drawn z, nats, `()`: summed over the whole event, never averaged."""
    return -d.px.log_prob(d.x)


def rate(d: Draw) -> Array:
    """R = KL(q(z|x) || p(z)), nats, `()`.

    In closed form where `kl` has one, else the one-sample estimate log q(z|x) - log p(z).
    Raises ValueError for a deterministic autoencoder, whose KL is not defined.
    """
    if d.pz is None:
        raise ValueError(
            "rate: a deterministic autoencoder has no prior, so no KL; use the distortion alone, "
            "or give autoencoder(..., prior=...)"
        )
    return kl(d.q, d.pz, sample=(d.z, d.log_q))


def sampled_rate(d: Draw) -> Array:
    """log q(z|x) - log p(z) at the drawn z, nats, `()`: unbiased for the KL, at every pair.

    With the exact posterior, `-distortion - sampled_rate` equals log p(x) at every draw.
    """
    return d.log_q - d.pz.log_prob(d.z)
