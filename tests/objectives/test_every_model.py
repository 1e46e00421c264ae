"""Every loss takes every kind of model, or refuses it in one line of the library's own.

This is the table in the docstring of `vaejax.objectives`, entry by entry. Only shapes are computed.
"""

import pytest

from tests.kinds import DIFFERENT, KINDS, traced

THROUGH = ("elbo", "dreg", "factor_vae", "m2", "reconstruction")
SCORED = ("score_function", "reweighted_wake_sleep")
GAMES = ("adversarial_autoencoder",)
JUMPS = r"q\(z\|x\): got \w+, whose sample has no derivative by .*; train it by objectives.score_fu"
POINT = r"q\(z\|x\): got \w+, expected one whose log_prob has a gradient.*by elbo"
PLAYERS = r"players: params: got .*expected \['critic', 'decoder', 'encoder'\]"
NO_PRIOR = "no prior|without a prior"
DIAGONAL = r"beta_tcvae: posterior: got \w+, expected Normal.*factor_vae takes any posterior"


def all_of(losses, message):
    return dict.fromkeys(losses, message)


DISCRETE = all_of(THROUGH, JUMPS) | {"beta_tcvae": DIAGONAL}
REFUSED = {
    "diagonal": {},
    "full covariance": {"beta_tcvae": DIAGONAL},
    "planar": {"beta_tcvae": DIAGONAL},
    "IAF": {"beta_tcvae": DIAGONAL},
    "two layers": all_of(GAMES, PLAYERS) | {"beta_tcvae": DIAGONAL},
    "VRNN": all_of(GAMES, PLAYERS) | {"beta_tcvae": DIAGONAL},
    "VampPrior": all_of(GAMES, PLAYERS),
    "flow prior": all_of(GAMES, PLAYERS),
    "autoregressive prior": all_of(GAMES, PLAYERS),
    "mixture posterior": DISCRETE | all_of(GAMES, JUMPS),
    "Bernoulli code": DISCRETE | all_of(GAMES, JUMPS),
    "one of three": DISCRETE | all_of(GAMES, JUMPS),
    "two Bernoulli layers": DISCRETE | all_of(GAMES, PLAYERS),
    "VRNN of Bernoullis": DISCRETE | all_of(GAMES, PLAYERS),
    "quantised": all_of(GAMES, PLAYERS) | all_of(SCORED, POINT) | {"beta_tcvae": DIAGONAL},
    "deterministic": all_of(("elbo", "dreg", "factor_vae", "m2", *GAMES), NO_PRIOR)
    | all_of(SCORED, POINT)
    | {"beta_tcvae": DIAGONAL},
}
FIRST = ("elbo", "score_function")
REST = [loss for loss in (*THROUGH, *SCORED, *GAMES, "beta_tcvae") if loss not in FIRST]


def check(name, loss):
    message = REFUSED[name].get(loss)
    if message is None:
        traced(name, loss)
    else:
        with pytest.raises((TypeError, ValueError), match=message):
            traced(name, loss)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("loss", FIRST)
def test_a_loss_has_a_gradient_or_says_why_not(name, loss):
    check(name, loss)


@pytest.mark.statistics
@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("loss", REST)
def test_the_other_losses_have_a_gradient_or_say_why_not(name, loss):
    check(name, loss)
