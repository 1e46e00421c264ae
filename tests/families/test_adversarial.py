"""The adversarial games: whose gradient is whose, against what is known about them exactly."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vaejax import Batch, adversarial, autoencoder, generate, heads, over_batch, reconstruct, train
from vaejax.distributions import Delta, Mixture, Normal
from vaejax.networks import MLP

SHAPE, LATENT = (2, 2, 1), 2
PRIOR = Normal(np.zeros(LATENT, np.float32), np.ones(LATENT, np.float32))
X = np.random.default_rng(7).uniform(size=(5, *SHAPE)).astype(np.float32)
GAMES = ["aae", "vae_gan", "gan"]


def model_of(code=None, prior=PRIOR):
    image = heads.Code(SHAPE, nn.sigmoid)
    return autoencoder(nn.Sequential([MLP(()), code or heads.Normal(LATENT)]), image, prior)


def aae_model(code=None, prior=PRIOR):
    decoder = heads.FixedNormal(SHAPE, 0.3)
    return autoencoder(nn.Sequential([MLP(()), code or heads.Code(LATENT)]), decoder, prior)


CRITIC = adversarial.Critic(MLP((5,), nn.tanh))
TWO = Mixture(np.zeros(2, np.float32), Normal(np.float32([[3, 0], [-3, 0]]), np.full((2, 2), 0.5)))
MODELS = {
    "aae": aae_model(heads.Normal(LATENT), TWO),  # a stochastic encoder, a mixture for the prior
    "aae_of_points": aae_model(),  # a code without noise
    "vae_gan": model_of(),
    "gan": adversarial.implicit(heads.Code(SHAPE, nn.sigmoid), PRIOR),
}
LOSSES = {
    "aae": adversarial.adversarial_autoencoder,
    "aae_of_points": adversarial.adversarial_autoencoder,
    "vae_gan": adversarial.vae_gan,
    "gan": adversarial.gan,
}
WEIGHTS = {
    "aae": {"weight": 3.0},
    "aae_of_points": {"weight": 3.0},
    "vae_gan": {"gamma": 0.7},
    "gan": {},
}


@cache
def start(game, model=None):
    """Parameters of all players, untrained."""
    model_key, critic_key = jax.random.split(jax.random.key(0))
    judged = np.zeros(LATENT, np.float32) if game.startswith("aae") else X[0]
    params = (model or MODELS[game]).init(model_key, X[0])
    return {**params, "critic": jax.jit(CRITIC.init)(critic_key, judged)}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def gradient(loss, params, x=X):
    """(value, gradient) at one key."""

    def value(params, x):
        return loss(params, jax.random.key(1), Batch(x), 0)[0]

    return jax.jit(jax.value_and_grad(value))(params, x)


# ---------------------------------------------------------------- players


def quadratic(name, other):
    """A player's loss on two numbers, which moves the other's too if it is let."""

    def loss(params, key, batch, step):
        noise = jax.random.normal(key)
        value = (params[name] - 2 * params[other] + noise) ** 2
        return value, {"shared": params[name], f"own_{name}": noise}

    return loss


def check_no_leak(players):
    """Every player's gradient is that of its own loss alone."""
    losses = {"a": quadratic("a", "b"), "b": quadratic("b", "a")}
    params = {"a": 0.3, "b": -0.8}

    @jax.jit
    def gradients(params, key):
        def of(loss):
            return jax.grad(lambda p: loss(p, jax.random.clone(key), Batch(X), 0)[0])(params)

        return of(players(losses)), {name: of(loss)[name] for name, loss in losses.items()}

    both, alone = gradients(params, jax.random.key(0))
    for name in losses:
        np.testing.assert_allclose(both[name], alone[name], rtol=1e-6)


def test_no_player_is_moved_by_another_s_loss():
    """Checked against the plain sum of the players' losses."""
    check_no_leak(adversarial.players)

    def summed(losses):
        def loss(params, key, batch, step):
            found = [f(params, jax.random.clone(key), batch, step) for f in losses.values()]
            return sum(value for value, _ in found), {}

        return loss

    with pytest.raises(AssertionError):
        check_no_leak(summed)


def test_players_report_each_loss_and_name_shared_metrics_apart(key):
    loss = adversarial.players({"a": quadratic("a", "b"), "b": quadratic("b", "a")})
    params = {"a": np.float32(0.3), "b": np.float32(-0.8)}
    value, metrics = jax.jit(loss)(params, key, Batch(X), 0)
    np.testing.assert_allclose(value, metrics["a/loss"] + metrics["b/loss"], rtol=1e-6)
    assert (metrics["a/shared"], metrics["b/shared"]) == (params["a"], params["b"])
    assert metrics["own_a"] == metrics["own_b"]  # one key: both see the same draws
    assert set(metrics) == {"a/loss", "b/loss", "a/shared", "b/shared", "own_a", "own_b"}
    for wrong, got in (({"a": 1.0}, r"\['a'\]"), ((1.0,), "tuple")):
        with pytest.raises(ValueError, match=rf"players: params: got {got}, .*\['a', 'b'\]"):
            loss(wrong, jax.random.clone(key), Batch(X), 0)


# ---------------------------------------------------------------- the two losses on logits


def test_the_critic_s_loss_is_the_cross_entropy_of_real_and_fake():
    real, fake = np.float32([-2.0, 0.0, 3.0]), np.float32([1.0, 0.0, -4.0])
    D = 1 / (1 + np.exp(-np.stack([real, fake])))
    expected = -np.log(D[0]) - np.log(1 - D[1])
    np.testing.assert_allclose(adversarial.logistic(real, fake), expected, rtol=1e-5)
    np.testing.assert_allclose(adversarial.non_saturating(fake), -np.log(D[1]), rtol=1e-5)
    np.testing.assert_allclose(adversarial.saturating(fake), np.log(1 - D[1]), rtol=1e-5)
    assert np.isclose(adversarial.logistic(0.0, 0.0), 2 * np.log(2))  # a coin
    huge = jax.jit(jax.grad(lambda logit: adversarial.logistic(-logit, logit)))(1e4)
    assert huge == 2  # no overflow where the critic is quite wrong


@cache
def towards_a_better_critic():
    """The gradient of the critic's loss by the generator's parameters."""
    model, params = MODELS["gan"], start("gan")

    def critic_alone(decoder):
        def example(params, key, x, c):
            prior_key, _, _ = jax.random.split(key, 3)
            fake = model.decode(params, PRIOR.sample(prior_key)).mean
            logit = lambda one: CRITIC.apply(params["critic"], one)[1]  # noqa: E731
            return adversarial.logistic(logit(x), logit(fake))

        return jnp.mean(over_batch(example, {**params, "decoder": decoder}, K, Batch(X)))

    K = jax.random.key(1)
    return jax.jit(jax.grad(critic_alone))(params["decoder"])


def check_opposed(fooling):
    """Fooling the critic is exactly minus the critic's own loss, in value and in direction."""
    loss, other = adversarial.gan(MODELS["gan"], CRITIC, fooling=fooling), towards_a_better_critic()
    found = gradient(loss, start("gan"))[1]["decoder"]
    one, other = flat(found), flat(other)
    assert np.linalg.norm(other) > 1e-2
    cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    np.testing.assert_allclose(cosine, -1, atol=1e-6)


def test_the_generator_works_against_the_critic():
    """Checked against a generator that lowers the critic's loss, by a forgotten sign."""
    check_opposed(adversarial.saturating)
    with pytest.raises(AssertionError):
        check_opposed(lambda fake: -adversarial.saturating(fake))


def test_not_saturating_points_the_same_way_for_every_fake():
    logits = np.linspace(-9, 9, 7, dtype=np.float32)
    slopes = [
        np.asarray(jax.jit(jax.vmap(jax.grad(f)))(logits))
        for f in (adversarial.saturating, adversarial.non_saturating)
    ]
    assert (slopes[0] < 0).all() and (slopes[1] < 0).all()
    assert slopes[1][0] < -0.99 and slopes[0][0] > -1e-3  # where the critic is sure it still learns
    np.testing.assert_allclose(slopes[0][3], slopes[1][3], rtol=1e-6)  # and they agree at a coin


# ---------------------------------------------------------------- each player's own loss


def by_hand(game, params, x=X, fooling=adversarial.non_saturating):
    """Every player's loss written out, with the draws that the library's uses: name -> loss."""
    model = MODELS[game]

    def look(one):
        return CRITIC.apply(params["critic"], one)

    def example(params, key, x, c):
        keys = jax.random.split(key, 4 if game == "vae_gan" else 3)
        if game == "gan":
            real, fake = look(x)[1], look(model.decode(params, PRIOR.sample(keys[0])).mean)[1]
            return {"decoder": fooling(fake), "critic": adversarial.logistic(real, fake)}
        q = model.encode(params, x)
        noise_key = jax.random.split(keys[0], 3)[1]
        z = q.sample(noise_key)
        if game == "aae_of_points":
            code = params["encoder"]["params"]["layers_1"]["code"]
            z = jnp.ravel(x) @ code["kernel"] + code["bias"]
        px, z_prior = model.decode(params, z), model.prior(params).sample(keys[1])
        if game.startswith("aae"):
            D, real, fake = -px.log_prob(x), look(z_prior)[1], look(z)[1]
            critic = adversarial.logistic(real, fake)
            return {"encoder": D + 3.0 * fooling(fake), "decoder": D, "critic": critic}
        (h, real), (h_seen, seen) = look(x), look(px.mean)
        drawn = look(model.decode(params, z_prior).mean)[1]
        D = 0.5 * jnp.sum((h - h_seen) ** 2) + 0.5 * h.size * jnp.log(2 * jnp.pi)
        R = 0.5 * jnp.sum(q.loc**2 + q.scale**2 - 1) - jnp.sum(jnp.log(q.scale))
        fake = jax.nn.softplus(seen) + jax.nn.softplus(drawn)
        return {
            "encoder": R + D,
            "decoder": 0.7 * D + fooling(seen) + fooling(drawn),
            "critic": jax.nn.softplus(-real) + fake,
        }

    return jax.tree.map(jnp.mean, over_batch(example, params, jax.random.key(1), Batch(x)))


@cache
def expected(game):
    """Every player's loss, and its gradient by all parameters."""

    def twice(params):
        losses = by_hand(game, params)
        return losses, losses

    own, losses = jax.jit(jax.jacrev(twice, has_aux=True))(start(game))
    return losses, own


def check_players(game, build):
    """The value is the sum of the players' losses; each one's gradient is its own loss's."""
    params = start(game)
    value, found = gradient(build(MODELS[game], CRITIC, **WEIGHTS[game]), params)
    losses, own = expected(game)
    np.testing.assert_allclose(value, sum(losses.values()), rtol=1e-5)
    for name in params:
        chex.assert_trees_all_close(found[name], own[name][name], rtol=1e-4, atol=1e-6)
        assert np.linalg.norm(flat(found[name])) > 1e-3
    return found


@pytest.mark.parametrize("game", [*GAMES, "aae_of_points"])
def test_each_player_s_gradient_is_that_of_its_own_loss(game):
    found = check_players(game, LOSSES[game])
    if game == "aae":  # the noise of q is part of the game
        scale = found["encoder"]["params"]["layers_1"]["scale"]["kernel"]
        assert np.abs(np.asarray(scale)).max() > 1e-4


@pytest.mark.parametrize("game", GAMES)
def test_a_sum_of_all_losses_would_be_seen(game, monkeypatch):
    """The check of the test above, against one backward pass through the sum of the losses."""

    def summed(losses):
        def loss(params, key, batch, step):
            found = [own(params, jax.random.clone(key), batch, step)[0] for own in losses.values()]
            return sum(found), {}

        return loss

    monkeypatch.setattr(adversarial, "players", summed)
    with pytest.raises(AssertionError):
        check_players(game, LOSSES[game])


@pytest.mark.statistics
def test_a_linear_critic_learns_the_log_ratio_of_two_gaussians(key):
    """log N(x; 0, 1) - log N(x; m, 1) = m^2 / 2 - m x, at the minimum of the critic's loss."""
    m = 1.5

    class Shift:
        def init(self, key, z):
            return {}

        def apply(self, params, z, rngs=None):
            return Delta(z + m)

    data_key, init_key, train_key = jax.random.split(key, 3)
    x = jax.random.normal(data_key, (8192, 1))
    model = adversarial.implicit(Shift(), Normal(jnp.zeros(1), jnp.ones(1)))
    critic = adversarial.Critic(nn.Sequential([jnp.asarray]))
    params = {**model.init(init_key, x[0]), "critic": critic.init(jax.random.key(3), x[0])}
    loss = adversarial.gan(model, critic)
    adam = optax.adam(optax.linear_schedule(0.05, 0.0, 400))
    run = jax.jit(train.make_train(loss, adam, steps=400, batch_size=512))
    state, history = run(train_key, params, x)
    logit = state.params["critic"]["params"]["logit"]
    np.testing.assert_allclose(logit["kernel"].ravel(), -m, atol=0.15)
    np.testing.assert_allclose(logit["bias"], m**2 / 2, atol=0.15)
    # Right where x < m / 2 is said of what comes from N(0, 1): Phi(m / 2) of both.
    np.testing.assert_allclose(history["critic_accuracy"][-100:].mean(), 0.7734, atol=0.02)


# ---------------------------------------------------------------- what they report and take


def test_critic_accuracy_counts_right_answers_on_both_sides(key):
    class Sum:
        def apply(self, sign, z, rngs=None):
            return z, sign * jnp.sum(z)

    far = Normal(jnp.full(LATENT, 50.0), jnp.ones(LATENT))  # of where the codes are
    model = aae_model(prior=far)
    params = model.init(key, X[0])
    model = model._replace(encode=lambda *_, **__: Delta(jnp.full(LATENT, -1.0)))
    loss = jax.jit(adversarial.adversarial_autoencoder(model, Sum()))
    for sign, accuracy in ((1.0, 1.0), (-1.0, 0.0), (0.0, 0.5)):
        _, metrics = loss({**params, "critic": sign}, jax.random.key(1), Batch(X), 0)
        assert metrics["critic_accuracy"] == accuracy


def test_masked_examples_leave_no_trace_and_a_batch_of_one_is_enough():
    params = start("gan")
    loss = jax.jit(adversarial.gan(MODELS["gan"], CRITIC))
    holes = np.where(np.arange(5)[:, None, None, None] < 1, X, np.nan)
    masked = Batch(holes, weight=np.float32([1.0, 0, 0, 0, 0]))
    expected, metrics = loss(params, jax.random.key(1), Batch(X[:1]), 0)
    found, _ = loss(params, jax.random.key(1), masked, 0)
    assert np.isfinite(found) and all(np.isfinite(v) for v in metrics.values())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_model_s_functions_read_the_players_parameters_as_they_are(key):
    keys = jax.random.split(key, 3)
    for game, one in zip(GAMES, keys, strict=True):
        params = start(game)
        made = jax.eval_shape(partial(generate, MODELS[game]), params, one)
        assert made.mean.shape == SHAPE
        if game != "gan":
            seen = jax.eval_shape(partial(reconstruct, MODELS[game]), params, X[0])
            assert seen.shape == SHAPE


def test_the_critic_sees_the_condition():
    generator = nn.Sequential([MLP(()), heads.Code(SHAPE, nn.sigmoid)])
    model = adversarial.implicit(generator, PRIOR)
    c = np.eye(3, dtype=np.float32)[np.arange(5) % 3]
    params = {
        **model.init(jax.random.key(0), X[0], c[0]),
        "critic": jax.jit(CRITIC.init)(jax.random.key(1), X[0], c[0]),
    }
    loss = adversarial.gan(model, CRITIC)
    found = jax.jit(jax.grad(lambda p: loss(p, jax.random.key(2), Batch(X, c), 0)[0]))(params)
    seen = np.asarray(found["critic"]["params"]["net"]["Dense_0"]["kernel"])[-3:]
    assert (np.abs(seen).max(axis=1) > 1e-4).all()
    with pytest.raises(ValueError, match="decode: expected one code as at init.* with no c"):
        jax.eval_shape(loss, params, jax.random.key(2), Batch(X), 0)


def test_bad_input_is_refused_with_what_mends_it(key):
    def run(loss, params, x=X):
        return jax.eval_shape(
            lambda p, k: loss(p, k, Batch(x), 0)[0], params, jax.random.clone(key)
        )

    def shapes(game, model=None):
        return jax.eval_shape(lambda: start.__wrapped__(game, model))

    no_prior = aae_model(prior=None)
    for game, build in (("aae", no_prior), ("vae_gan", model_of(prior=None))):
        message = r"model: got one without a prior, .*give autoencoder\(..., prior=...\)"
        with pytest.raises(ValueError, match=message):
            run(LOSSES[game](build, CRITIC), shapes(game, build))
    codes, images = shapes("aae"), shapes("gan")
    with pytest.raises(ValueError, match=r"critic: got an input of shape \(2,\).*init\(key, z\)"):
        run(LOSSES["aae"](MODELS["aae"], CRITIC), {**codes, "critic": images["critic"]})
    with pytest.raises(ValueError, match=r"players: params: got \['critic', 'decoder'\], expected"):
        run(LOSSES["vae_gan"](MODELS["vae_gan"], CRITIC), images)
    learned = {**codes, "prior": {}}
    with pytest.raises(ValueError, match=r"got \['prior'\], of no player.* a learned prior is not"):
        run(LOSSES["aae"](MODELS["aae"], CRITIC), learned)
    plain = nn.Sequential([MLP((5,)), nn.Dense(1)])
    judge = jax.eval_shape(plain.init, jax.random.clone(key), X[0])
    with pytest.raises(TypeError, match=r"critic: got shapes .*wrap the network: adversarial.Cri"):
        run(LOSSES["gan"](MODELS["gan"], plain), {**images, "critic": judge})
    with pytest.raises(ValueError, match=r"gan: the decoder's mean: got \(2, 2, 1\), expected \(4"):
        run(LOSSES["gan"](MODELS["gan"], CRITIC), images, X.reshape(5, 4))
    with pytest.raises(TypeError, match="encode: got a model made by implicit"):
        reconstruct(MODELS["gan"], images, X[0])
    with pytest.raises(TypeError, match="implicit: prior: got None, expected a Distribution"):
        adversarial.implicit(nn.Dense(3), None)
