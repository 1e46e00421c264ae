"""Convolutions by both means agree; encoders and decoders take any size."""

import abc
import inspect
import pydoc
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vaejax import causal, heads, networks, types


@pytest.mark.parametrize("size", [(8, 7), (1, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("side", [3, 4, 1])
def test_product_and_native_convolution_agree(size, stride, side):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(*size, 2)), rng.normal(size=(side, side, 2, 3))
    shape = (-(-size[0] // stride), -(-size[1] // stride), 3)
    weight = rng.normal(size=shape)

    def value_and_gradients(convolution, x, kernel):
        def scalar(x, kernel):
            y = convolution(x, kernel, stride=stride)
            return jnp.sum(y * weight), y

        return jax.value_and_grad(scalar, (0, 1), has_aux=True)(x, kernel)

    @jax.jit  # one program rather than some forty: most of the time here is compilation
    def both(x, kernel):
        convolutions = networks.conv_as_product, networks.conv_native
        return [value_and_gradients(one, x, kernel) for one in convolutions]

    ((_, y), gradients), ((_, native), native_gradients) = both(jnp.asarray(x), jnp.asarray(kernel))
    assert y.shape == shape
    np.testing.assert_allclose(y, native, atol=1e-5)
    for ours, theirs in zip(gradients, native_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_on_cpu_no_native_convolution_is_compiled_even_under_vmap_grad_and_scan():
    def step(kernel, x):
        def loss(kernel):
            return jnp.sum(jax.vmap(lambda one: networks.conv(one, kernel, stride=2))(x) ** 2)

        return kernel - 0.1 * jax.grad(loss)(kernel), None

    program = jax.jit(lambda kernel, x: jax.lax.scan(step, kernel, x)[0])
    arguments = jnp.zeros((3, 3, 1, 4)), jnp.zeros((5, 2, 8, 8, 1))
    assert "convolution(" not in program.lower(*arguments).compile().as_text()
    native = jax.jit(jax.vmap(networks.conv_native, (0, None)))
    text = native.lower(jnp.zeros((2, 8, 8, 1)), arguments[0]).compile().as_text()
    assert "convolution" in text  # the check above can fail


@pytest.mark.parametrize("shape", [(6, 9, 2), (1, 1, 1)])
def test_encoder_and_decoder_take_any_size(shape, key):
    encoder, decoder = networks.ConvEncoder((4, 6)), networks.ConvDecoder(shape, (6, 4, 5))

    @jax.jit
    def used(encode_key, decode_key):
        features, _ = encoder.init_with_output(encode_key, jnp.ones(shape))
        return features, decoder.init_with_output(decode_key, jnp.ones(3))[0]

    features, decoded = used(*jax.random.split(key))
    quarter = [(n + 3) // 4 for n in shape[:2]]  # two halvings, each rounded up
    assert features.shape == (quarter[0] * quarter[1] * 6,)
    assert decoded.shape == (*shape[:2], 5)


def test_the_condition_reaches_every_network(key):
    cases = [
        (networks.MLP((4,)), jnp.ones(3)),
        (networks.ConvEncoder((2,)), jnp.ones((4, 4, 1))),
        (networks.ConvDecoder((4, 4), (2, 2)), jnp.ones(3)),
    ]

    @jax.jit
    def under_two_conditions(keys):
        found = []
        for (network, x), own in zip(cases, keys, strict=True):
            one, variables = network.init_with_output(own, x, jnp.ones(2))
            found.append((one, network.apply(variables, x, -jnp.ones(2))))
        return found

    for one, other in under_two_conditions(list(jax.random.split(key, 3))):
        assert np.abs(one - other).max() > 0


def test_depth_to_space_places_every_quadruple():
    x = np.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    y = np.asarray(networks.depth_to_space(jnp.asarray(x)))
    for i, j, a, b, f in np.ndindex(2, 3, 2, 2, 2):
        assert y[2 * i + a, 2 * j + b, f] == x[i, j, (2 * a + b) * 2 + f]


def test_dropout_acts_only_where_a_key_is_given(key):
    network = networks.MLP((64,), dropout=0.5)
    init_key, one, two = jax.random.split(key, 3)
    variables = jax.jit(network.init)(init_key, jnp.ones(3))
    apply = jax.jit(lambda rngs: network.apply(variables, jnp.ones(3), rngs=rngs))
    quiet, again = apply({}), apply({})
    noisy = [apply({"dropout": k}) for k in (one, two)]
    np.testing.assert_array_equal(quiet, again)
    assert jnp.any(noisy[0] != noisy[1])
    assert jnp.any(noisy[0] != quiet)


def test_a_batch_of_images_is_refused_by_name(key):
    with pytest.raises(ValueError, match=r"ConvEncoder: expected one image.*got \(5, 8, 8, 1\)"):
        jax.eval_shape(networks.ConvEncoder().init, key, jnp.zeros((5, 8, 8, 1)))


def test_networks_train_in_scan_under_vmap(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(networks.ConvEncoder((4,))(x))

    init_key, data_key = jax.random.split(key)
    x = jax.random.normal(data_key, (16, 5, 7, 1))
    target = jnp.mean(x, axis=(1, 2, 3))
    variables = jax.jit(Net().init)(init_key, x[0])

    def loss(v):
        return jnp.mean((jax.vmap(lambda one: Net().apply(v, one)[0])(x) - target) ** 2)

    def step(v, _):
        value, gradient = jax.value_and_grad(loss)(v)
        return jax.tree.map(lambda a, g: a - 0.05 * g, v, gradient), value

    _, values = jax.jit(lambda v: jax.lax.scan(step, v, length=50))(variables)
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.float16, jnp.float64])
def test_stored_pixels_and_double_precision_are_taken(dtype, x64, key):
    x = jnp.ones((5, 7, 1), dtype)
    y, variables = jax.eval_shape(networks.ConvEncoder((3,)).init_with_output, key, x)
    assert jnp.issubdtype(y.dtype, jnp.floating)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("thing", "most"),
    [(heads, 400), (networks, 340), (types, 1150), (causal, 300), (networks.MLP, 40)],
)
def test_help_shows_what_a_network_adds_and_not_what_linen_does(thing, most):
    lines = pydoc.plain(pydoc.render_doc(thing)).splitlines()
    assert len(lines) <= most
    text = "\n".join(lines)
    assert "__call__" in text and "tabulate" not in text and "parent:" not in text
    assert " at 0x" not in text


def test_what_linen_adds_is_still_there():
    assert list(inspect.signature(heads.Normal).parameters)[:2] == ["shape", "floor"]
    assert heads.Normal(3, name="z").name == "z"
    assert heads.Normal(3).clone(shape=4).shape == 4
    assert {"init", "apply", "shape"} <= set(dir(heads.Normal(3)))


def test_a_network_can_be_an_abstract_class_and_a_protocol_too():
    class Scored(Protocol):
        def score(self, x): ...

    class Network(networks.MLP, Scored):
        def score(self, x):
            return self(x).sum()

    class Abstract(networks.MLP, abc.ABC):
        @abc.abstractmethod
        def score(self, x): ...

    x = np.ones(3, np.float32)
    params = Network((4,)).init(jax.random.key(0), x)
    assert Network((4,)).apply(params, x, method="score").shape == ()
    with pytest.raises(TypeError, match="abstract"):
        Abstract((4,))


@pytest.mark.parametrize(
    "net",
    [
        networks.MLP((4,)),
        networks.ConvEncoder((2,)),
        networks.ConvDecoder((6, 6), (2, 2)),
        causal.MADE((6, 6, 1), (4,)),
    ],
    ids=lambda net: type(net).__name__,
)
def test_a_class_number_is_no_size(net, key):
    """Class 2 would count twice as much as class 1."""
    x = jnp.zeros((6, 6, 1))
    for c in (jnp.int32(2), np.array([2], np.uint8)):
        with pytest.raises(ValueError, match=r"condition c: got the class number .*one_hot\(y, cl"):
            jax.eval_shape(net.init, key, x, c)
    for c in (jnp.float32(2), jnp.zeros(3, jnp.int32), jnp.bool_(True)):
        jax.eval_shape(net.init, key, x, c)
