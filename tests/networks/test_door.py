"""Networks of every kind enter by one door, and do the same behind it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from vaejax import (
    Batch,
    adversarial,
    autoencoder,
    autoregressive,
    conditional,
    flows,
    heads,
    networks,
    objectives,
    train,
)
from vaejax.distributions import Bernoulli, Normal

X = jax.random.normal(jax.random.key(1), (6,))
PRIOR = Normal(jnp.zeros(2), jnp.ones(2))


class Linen(nn.Module):
    """Dense, tanh, layer norm, dropout, dense."""

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(name="norm")(nn.tanh(nn.Dense(8, name="first")(x)))
        h = nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(h)
        return nn.Dense(4, name="last")(h)


class Flax(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(jnp.tanh(self.first(x)))))


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        one, other = jax.random.split(key)
        self.first = eqx.nn.Linear(6, 8, key=one)
        self.norm = eqx.nn.LayerNorm(8, eps=1e-6)  # as Flax has it
        self.dropout = eqx.nn.Dropout(0.5)
        self.last = eqx.nn.Linear(8, 4, key=other)

    def __call__(self, x, *, key=None):
        return self.last(self.dropout(self.norm(jnp.tanh(self.first(x))), key=key))


def pair_init(key, x):
    return {"w": jax.random.normal(key, (4, x.size))}


def pair_apply(params, x):
    return params["w"] @ x


def as_equinox(params):
    """The arrays of the Linen twin under Equinox's names, its matrices transposed."""
    dense = {n: {"weight": params[n]["kernel"].T, "bias": params[n]["bias"]} for n in LAYERS}
    return {**dense, "norm": {"weight": params["norm"]["scale"], "bias": params["norm"]["bias"]}}


LAYERS = ("first", "last")
KINDS = {"nnx": Flax, "equinox": Equinox, "pair": (pair_init, pair_apply)}
kinds = pytest.mark.parametrize("kind", KINDS)


def drawn(params):
    """Other numbers than those at the start, where biases are zero."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(
        tree, [jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    )


def test_nnx_gives_the_bits_of_its_linen_twin():
    twin, network = Linen(), networks.functional(Flax)
    arrays = drawn(network.init(jax.random.key(0), X))
    expected = jax.jit(twin.apply)({"params": arrays}, X)
    np.testing.assert_array_equal(jax.jit(network.apply)(arrays, X), expected)


def test_equinox_gives_the_numbers_of_its_linen_twin():
    twin, network = Linen(), networks.functional(Equinox)
    params = drawn(twin.init(jax.random.key(0), X)["params"])
    got = jax.jit(network.apply)(as_equinox(params), X)
    # Equinox multiplies W x, Flax x W: sums in another order, so not to the bit.
    np.testing.assert_allclose(got, jax.jit(twin.apply)({"params": params}, X), rtol=2e-6)


def test_equinox_gives_the_bits_of_its_own_call():
    module, network = Equinox(jax.random.key(0)), networks.functional(Equinox)
    plain = eqx.nn.inference_mode(module)
    np.testing.assert_array_equal(network.apply(network.init(jax.random.key(0), X), X), plain(X))


@kinds
def test_parameters_are_a_plain_tree_of_arrays(kind):
    network = networks.functional(KINDS[kind])
    params = network.init(jax.random.key(0), X)

    def plain(node):
        if type(node) is dict:
            return all(map(plain, node.values()))
        return isinstance(node, jax.Array)

    assert plain(params)
    other = network.init(jax.random.key(9), X)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (params, other)), strict=True))


@pytest.mark.parametrize("kind", ["nnx", "equinox"])
def test_dropout_acts_where_there_is_a_key(kind):
    model = autoencoder(networks.sequential(KINDS[kind], heads.Normal(2)), heads.Bernoulli((6,)))
    params = model.init(jax.random.key(0), X)
    still = [model.encode(params, X).mean for _ in range(2)]
    one, same, other = (model.encode(params, X, key=jax.random.key(i)).mean for i in (1, 1, 2))
    np.testing.assert_array_equal(*still)
    np.testing.assert_array_equal(one, same)
    assert np.all(one != still[0]) and np.all(one != other)


@kinds
def test_a_network_of_each_kind_trains_under_a_head(kind):
    network = networks.sequential(KINDS[kind], heads.Normal(2))
    model = autoencoder(
        network, networks.sequential(networks.MLP((8,)), heads.Bernoulli((6,))), PRIOR
    )
    loss = objectives.elbo(model)
    init, step = train.make_step(loss, optax.adam(1e-2))
    state, step = init(jax.random.key(0), model.init(jax.random.key(1), X)), jax.jit(step)
    before = state.params["encoder"]["part_0"]
    x = jax.random.bernoulli(jax.random.key(3), 0.3, (5, 6)).astype(jnp.float32)
    for _ in range(2):
        state, metrics = step(state, Batch(x))
    after = state.params["encoder"]["part_0"]
    assert np.isfinite(metrics["loss"])
    for one, other in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert np.any(one != other)


def test_a_function_is_a_part_of_sequential():
    network = networks.sequential(lambda x: x / 2, jnp.tanh, nn.Dense(3))
    params = network.init(jax.random.key(0), X)
    assert list(params) == ["part_2"]
    expected = nn.Dense(3).apply(params["part_2"], jnp.tanh(X / 2))
    np.testing.assert_array_equal(network.apply(params, X), expected)


def test_sequential_is_linens_with_the_same_arrays():
    parts = (networks.MLP((5,)), heads.Normal(2))
    ours, linens = networks.sequential(*parts), nn.Sequential(list(parts))
    params = linens.init(jax.random.key(0), X)["params"]
    split = {f"part_{i}": {"params": params[f"layers_{i}"]} for i in range(2)}
    got, expected = ours.apply(split, X), linens.apply({"params": params}, X)
    np.testing.assert_array_equal(got.loc, expected.loc)
    np.testing.assert_array_equal(got.scale, expected.scale)


def test_a_module_of_your_own_may_return_the_distribution():
    class Encoder(nnx.Module):
        def __init__(self, rngs):
            self.mean, self.log_scale = (nnx.Linear(6, 2, rngs=rngs) for _ in range(2))

        def __call__(self, x, c):
            return Normal(self.mean(x) + c, jnp.exp(self.log_scale(x)))

    decoder = networks.sequential(networks.MLP((4,)), heads.Bernoulli((6,)))
    model = autoencoder(Encoder, decoder, PRIOR)
    params = model.init(jax.random.key(0), X, jnp.ones(2))
    got = model.encode(params, X, jnp.ones(2)).loc
    weights = params["encoder"]["mean"]
    np.testing.assert_allclose(got, X @ weights["kernel"] + weights["bias"] + 1, rtol=1e-6)


@pytest.mark.parametrize(
    "module",
    [nnx.Linear(6, 4, rngs=nnx.Rngs(0)), eqx.nn.Linear(6, 4, key=jax.random.key(0))],
    ids=["nnx", "eqx"],
)
def test_an_instance_brings_its_weights_and_keeps_them(module):
    network = networks.functional(module)
    params = network.init(jax.random.key(7), X)
    np.testing.assert_array_equal(network.apply(params, X), module(X))
    kept = [np.array(leaf) for leaf in jax.tree.leaves(params)]
    jax.jit(lambda p: jax.tree.map(lambda a: a + 1, p), donate_argnums=0)(params)
    for leaf, was in zip(jax.tree.leaves(network.init(jax.random.key(0), X)), kept, strict=True):
        np.testing.assert_array_equal(leaf, was)


def stateful_equinox(key):
    return eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode="ema")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda rngs: nnx.BatchNorm(6, rngs=rngs), "BatchNorm keeps state.*LayerNorm or GroupNorm"),
        (stateful_equinox, "keeps state outside its parameters.*LayerNorm or GroupNorm"),
    ],
    ids=["nnx", "equinox"],
)
def test_state_outside_the_parameters_is_refused(network, said):
    with pytest.raises(ValueError, match=f"autoencoder: encoder.*{said}"):
        autoencoder(network, heads.Bernoulli((6,)))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nnx.Linear, "the class Linear.*lambda rngs: Linear\\(..., rngs=rngs\\)"),
        (eqx.nn.Linear, "the class Linear.*lambda key: Linear\\(..., key=key\\)"),
        (lambda rngs: jnp.tanh, "name the argument `rngs` and return an NNX module"),
        (lambda key: Flax(nnx.Rngs(key)), "name the argument `rngs` and return an NNX module"),
        (lambda x: x, "one argument, `rngs` for NNX or `key` for Equinox"),
        ((pair_init, 3), "a network with init and apply"),
    ],
)
def test_what_makes_no_network_is_refused_with_the_remedy(network, said):
    with pytest.raises(TypeError, match=f"autoencoder: encoder: got .*{said}"):
        autoencoder(network, heads.Bernoulli((6,)))


def test_parameters_of_another_network_are_refused_by_name():
    network = networks.functional(Flax)
    params = network.init(jax.random.key(0), X)
    wrong = {**params, "last": {**params["last"], "kernel": jnp.zeros((8, 3))}}
    with pytest.raises(
        ValueError, match=r"last/kernel: got of shape \(8, 3\), expected .*\(8, 4\)"
    ):
        network.apply(wrong, X)


NATURES = {
    "convolution": (
        nn.Conv(4, (3, 3), 2),
        lambda rngs: nnx.Conv(2, 4, (3, 3), 2, rngs=rngs),
        (jnp.reshape(jnp.arange(70.0), (5, 7, 2)) / 9,),
    ),
    "recurrent": (nn.SimpleCell(4), lambda rngs: nnx.SimpleCell(6, 4, rngs=rngs), (X[:4], X)),
}


@pytest.mark.parametrize("nature", NATURES)
def test_nnx_gives_the_bits_of_its_linen_twin_in_every_nature(nature):
    twin, network, inputs = NATURES[nature]
    network = networks.functional(network)
    params = drawn(twin.init(jax.random.key(0), *inputs)["params"])
    names = {"i": "dense_i", "h": "dense_h"}  # of a recurrent cell
    arrays = {names.get(name, name): params[name] for name in params}
    got, expected = network.apply(arrays, *inputs), twin.apply({"params": params}, *inputs)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_causal_network_of_nnx_gives_the_bits_of_its_linen_twin():
    class LinenCausal(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Bernoulli(jnp.tril(self.param("w", nn.initializers.normal(), (6, 6)), -1) @ x)

    class NNXCausal(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jax.random.normal(rngs.params(), (6, 6)))

        def __call__(self, x):
            return Bernoulli(jnp.tril(self.w[...], -1) @ x)

    twin, own = (autoregressive.Causal(net, (6,)) for net in (LinenCausal(), NNXCausal))
    params = own.init(jax.random.key(0))
    p, q = own.apply(params), twin.apply({"params": params})
    np.testing.assert_array_equal(p.sample(jax.random.key(1)), q.sample(jax.random.key(1)))
    np.testing.assert_array_equal(p.log_prob(jnp.ones(6)), q.log_prob(jnp.ones(6)))


def test_a_critic_and_a_completing_decoder_hold_networks_of_every_kind():
    net = networks.functional(Flax)
    critic = adversarial.Critic(Flax)
    params = critic.init(jax.random.key(0), X)
    features, logit = critic.apply(params, X)
    own = params["params"]["net_params"]
    np.testing.assert_array_equal(features, net.apply(own, X))
    noisy, _ = critic.apply(params, X, rngs={"dropout": jax.random.key(1)})
    assert logit.shape == () and np.all(noisy != features)

    known = jnp.array([1.0, 0, 1, 0, 0, 0])
    decoder = conditional.Completing(Hidden)
    c = (X * known, known)
    p = decoder.apply(decoder.init(jax.random.key(0), c), c)
    assert p.log_prob(X).shape == ()
    np.testing.assert_array_equal(p.sample(jax.random.key(1))[::2][:2], X[::2][:2])


class Hidden(nnx.Module):
    def __init__(self, rngs):
        self.loc = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, c):
        return Normal(self.loc(c[0]), jnp.ones(6))


def test_a_flow_has_a_conditioner_of_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(2, 4, rngs=rngs)

        def __call__(self, x):
            return self.layer(x)

    flow = flows.Stack(flows.Coupling, (Net,), ((0, 1, 2, 3),))
    made = flow.apply(flow.init(jax.random.key(0)))
    y, log_det = made.forward(X[:4])
    np.testing.assert_allclose(made.inverse(y)[0], X[:4], atol=1e-6)
    jacobian = jax.jacobian(lambda x: made.forward(x)[0])(X[:4])
    np.testing.assert_allclose(log_det, jnp.linalg.slogdet(jacobian)[1], atol=1e-6)


@pytest.mark.parametrize("layer", [nnx.Linear(6, 4, rngs=nnx.Rngs(0)), Flax, Equinox])
def test_linens_sequential_with_what_it_would_not_train_is_refused(layer):
    with pytest.raises(TypeError, match="nn.Sequential with .*networks.sequential"):
        autoencoder(nn.Sequential([layer, heads.Normal(2)]), heads.Bernoulli((6,)))


@kinds
def test_an_input_of_another_size_is_refused_as_with_linen(kind):
    decoder = networks.sequential(networks.MLP((4,)), heads.Bernoulli((6,)))
    model = autoencoder(networks.sequential(KINDS[kind], heads.Normal(2)), decoder, PRIOR)
    params = model.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"as at init \(this model's x has shape \(6,\)\)"):
        model.encode(params, jnp.zeros(7))
