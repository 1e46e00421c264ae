"""Random bits, convolutions and products on a CPU, in the library's way and in JAX's own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import primitives
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

from vaejax.compiling import _lowering

OURS = threefry2x32_p, primitives.conv_general_dilated_p, primitives.dot_general_p


def rules():
    return [mlir._platform_specific_lowerings["cpu"][primitive].rule for primitive in OURS]


@pytest.fixture
def jaxs_own():
    """JAX's rules for one test."""
    ours = rules()

    def use(rules):
        for primitive, rule in zip(OURS, rules, strict=True):
            mlir.register_lowering(primitive, rule, platform="cpu")

    yield lambda: use([rule.before for rule in ours])
    use(ours)


def test_this_version_of_jax_takes_the_rules_once():
    ours = rules()
    assert all(hasattr(rule, "before") for rule in ours)
    _lowering.install()
    assert rules() == ours


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 1), (7, 5), (2, 3, 4), (2, 40), (5000,)])
def test_random_bits_are_those_of_jax(shape, jaxs_own):
    def drawn(seed):
        keys = jax.random.split(jax.random.key(seed), (3, 2))
        some = jax.vmap(jax.vmap(lambda k: jax.random.bits(k, shape)))(keys)
        other = jax.random.key(seed + 1)
        folded = jax.vmap(jax.random.fold_in, (None, 0))(other, jnp.arange(5))
        return some, jax.random.key_data(folded), jax.random.normal(jax.random.key(9), shape)

    ours = jax.jit(lambda seed: drawn(seed))(3)
    jaxs_own()
    theirs = jax.jit(lambda seed: drawn(seed))(3)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_no_loop_over_short_axes_is_left():
    keys = jax.random.split(jax.random.key(0), (20, 5))
    program = jax.jit(jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (3,)))))
    words = program.lower(keys).as_text()
    rounds = [line for line in words.splitlines() if "stablehlo.xor" in line]
    assert len(rounds) > 20
    assert sum("20x5x3xui32" in line for line in rounds) <= 1  # of the two halves of the bits


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv(4, (3, 3), strides=2),
        nn.Conv(4, (3, 2), kernel_dilation=2, feature_group_count=2),
        nn.ConvTranspose(4, (3, 3), strides=(2, 2)),
    ],
    ids=["strided", "dilated in groups", "transposed"],
)
def test_convolutions_and_their_gradients_are_those_of_jax(module, jaxs_own):
    x = jax.random.normal(jax.random.key(0), (5, 7, 8, 2))
    params = module.init(jax.random.key(1), x)
    weight = jax.random.normal(jax.random.key(2), module.apply(params, x).shape)

    def both(params, x):
        def loss(params, x):
            return jnp.sum(jnp.tanh(module.apply(params, x)) * weight)

        return jax.value_and_grad(loss, (0, 1))(params, x)

    def in_a_loop(params, x):
        return jax.lax.scan(lambda c, _: (c, both(params, x)), (), length=2)[1]

    ours = jax.jit(lambda *args: in_a_loop(*args))(params, x)
    words = jax.jit(lambda *args: in_a_loop(*args)).lower(params, x).as_text()
    lines = [line for line in words.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 3
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in lines)
    jaxs_own()
    theirs = jax.jit(lambda *args: in_a_loop(*args))(params, x)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def dense_gradient(params, x):
    """Of a layer's weights, summed over a batch and its particles."""
    return jax.grad(lambda params: jnp.sum(jnp.tanh(x @ params) ** 2))(params)


PRODUCTS = {
    "of a layer": (dense_gradient, (5, 3), (4, 6, 5)),
    "of many layers": (jax.vmap(dense_gradient), (2, 5, 3), (2, 4, 6, 5)),
    "batch behind": (lambda a, b: jnp.einsum("ijk,ijkl->kl", a, b), (4, 6, 5), (4, 6, 5, 3)),
    "batch between": (lambda a, b: jnp.einsum("akij,ijkb->kab", a, b), (7, 5, 4, 6), (4, 6, 5, 3)),
    "in another order": (lambda a, b: jnp.einsum("ijk,jil->kl", a, b), (4, 6, 5), (6, 4, 3)),
    "not neighbours": (lambda a, b: jnp.einsum("ikj,ijl->kl", a, b), (4, 5, 6), (4, 6, 3)),
    "of nothing": (lambda a, b: jnp.einsum("ijk,ijl->kl", a, b), (4, 0, 5), (4, 0, 3)),
    "to one number": (lambda a, b: jnp.einsum("ij,ij->", a, b), (4, 6), (4, 6)),
}


@pytest.mark.parametrize(("product", "one", "other"), PRODUCTS.values(), ids=PRODUCTS)
def test_products_are_those_of_jax(product, one, other, jaxs_own):
    a, b = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate((one, other)))
    ours = jax.jit(lambda *arrays: product(*arrays))(a, b)
    jaxs_own()
    theirs = jax.jit(lambda *arrays: product(*arrays))(a, b)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_layers_gradient_is_summed_over_one_axis():
    arrays = jax.random.normal(jax.random.key(0), (5, 3)), jnp.ones((4, 6, 5))
    words = jax.jit(dense_gradient).lower(*arrays).as_text()
    contracted = re.findall(r"contracting_dims = \[([\d, ]*)\] x \[([\d, ]*)\]", words)
    assert contracted == [("2", "0"), ("0", "0")]
