"""Values print what they are: types and shapes on a line, no whole arrays, no addresses."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vaejax import autoencoder, deterministic, draw, generate, heads
from vaejax.distributions import Delta, DiscretizedLogistic, Mixture, Normal
from vaejax.families.hierarchical import Chain
from vaejax.families.quantized import Entries, VectorQuantized
from vaejax.model import Draw, Generated
from vaejax.networks import MLP, flows
from vaejax.networks.autoregressive import Autoregressive, Causal
from vaejax.train import Fitted
from vaejax.train.population import Population
from vaejax.types import Batch, describe

Q = Normal(np.zeros(10, np.float32), np.ones(10, np.float32))


def test_a_batch_says_its_shapes_and_leaves_out_what_is_absent():
    x, y = np.zeros((64, 8, 8, 1), np.uint8), np.zeros(64, np.int32)
    assert repr(Batch(x, y=y)) == "Batch(x=uint8[64, 8, 8, 1], y=int32[64])"
    assert repr(Batch({"a": x, "b": y})) == "Batch(x={'a': uint8[64, 8, 8, 1], 'b': int32[64]})"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Q, "Normal(loc=f32[10], scale=f32[10])"),
        (Normal(0.0, np.float32(1 / 3)), "Normal(loc=0.0, scale=0.3333)"),
        (jax.tree.map(lambda leaf: None, Q), "Normal(loc=None, scale=None)"),
        (jax.tree.map(lambda leaf: 0, Q), "Normal(loc=0, scale=0)"),
        (
            DiscretizedLogistic(np.zeros(2), 1, levels=16),
            "DiscretizedLogistic(loc=f64[2], scale=1, levels=16)",
        ),
        (
            Mixture(np.zeros(3, np.float16), Q),
            "Mixture(logits=f16[3], components=Normal(loc=f32[10], scale=f32[10]))",
        ),
        (
            Chain(Q, (jax.tree_util.Partial(MLP((3,)).apply, {"params": np.zeros((2, 3))}),)),
            "Chain(first=Normal(loc=f32[10], scale=f32[10]), "
            "links=(partial(MLP.apply, {'params': f64[2, 3]}),), backwards=False)",
        ),
        (
            VectorQuantized(np.zeros((4, 2)), np.zeros(4, np.int32), np.zeros((4, 2))),
            "VectorQuantized(value=f64[4, 2], index=int32[4], features=f64[4, 2])",
        ),
        (
            Entries(Delta(np.zeros(4)), np.zeros((8, 2))),
            "Entries(indices=Delta(value=f64[4]), codebook=f64[8, 2])",
        ),
        (
            Autoregressive(partial(heads.Normal(2).apply, {}), shape=(2,)),
            "Autoregressive(conditionals=partial(Normal.apply, {}), shape=(2,), dtype=float32)",
        ),
        (
            flows.Transformed(Q, flows.Composed((flows.Planar(*[np.zeros(10)] * 3),))),
            "Transformed(base=Normal(loc=f32[10], scale=f32[10]), "
            "flow=Composed(flows=(Planar(u=f64[10], w=f64[10], b=f64[10]),)))",
        ),
        (Causal(MLP((3,)), (4,)), "Causal(net=MLP, shape=(4,), dtype=float32)"),
        (
            flows.Density(flows.planar(2)),
            "Density(flow=PlanarNet)",
        ),
    ],
)
def test_a_distribution_or_a_network_says_its_fields(value, expected):
    assert repr(value) == expected


def test_what_is_no_tree_prints_too():
    """A `repr` is read when something has gone wrong: it never fails itself."""

    class Broken:
        dtype = "f4"

        @property
        def shape(self):
            raise RuntimeError

    inside_itself: list = []
    inside_itself.append(inside_itself)
    nested: dict = {}
    nested["a"] = nested
    assert repr(Batch({1: 2, "b": 3})) == "Batch(x=dict of 2)"
    assert repr(Batch(inside_itself)) == "Batch(x=[...])"
    assert repr(Batch(nested)) == "Batch(x=dict of 1)"
    assert repr(Batch(Broken())) == "Batch(x=Broken)"
    assert repr(Batch(np.float32)) == "Batch(x=float32)"


def test_traced_mapped_and_deleted_values_print_too():
    seen = []
    jax.eval_shape(lambda q: seen.append(repr(Normal(0.5, q.loc))), Normal(jnp.zeros(()), 1.0))
    jax.eval_shape(jax.vmap(lambda q: seen.append(repr(q))), jax.tree.map(lambda a: a[None], Q))
    seen.append(repr(jax.eval_shape(jax.vmap(lambda q: q), jax.tree.map(lambda a: a[None], Q))))
    gone = jnp.zeros(())
    gone.delete()
    seen.append(repr(Delta(gone)))
    assert seen == [
        "Normal(loc=0.5, scale=f32[])",
        "Normal(loc=f32[10], scale=f32[10])",
        "Normal(loc=f32[1, 10], scale=f32[1, 10])",
        "Delta(value=f32[])",
    ]


def test_keys_print_as_keys_and_are_not_used_up(key):
    assert repr(Batch(key, c=jax.eval_shape(lambda k: jax.random.split(k, 3), key))) == (
        "Batch(x=key<fry>[], c=key<fry>[3])"
    )
    jax.random.split(key)


def test_a_model_says_which_functions_it_is_made_of():
    model = autoencoder(nn.Sequential([MLP((8,)), heads.Normal(10)]), heads.Bernoulli(3), Q)
    assert repr(deterministic(model)) == (
        "Model(init=autoencoder.init, prior=autoencoder.prior_of, encode=deterministic.encode, "
        "decode=deterministic.decode)"
    )


def test_a_draw_and_a_sample_name_their_parts():
    z, px = np.zeros(10, np.float32), Delta(np.zeros(3, np.uint8))
    d = Draw(px.value, z, np.float32(-1.5), Q, Q, px)
    assert repr(d) == (
        "Draw(x=uint8[3], z=f32[10], log_q=-1.5, q=Normal(loc=f32[10], scale=f32[10]), "
        "pz=Normal(loc=f32[10], scale=f32[10]), px=Delta(value=uint8[3]))"
    )
    assert repr(Generated(z, px.value, ())) == "Generated(z=f32[10], x=uint8[3])"
    assert repr((d.z.dtype, Batch(d)))[19:26] == "Batch(x"  # a NamedTuple within another


def test_what_fit_returns_says_how_it_ended():
    params = {"encoder": {"kernel": np.zeros((300, 280)), "bias": np.zeros(210)}}
    state = SimpleNamespace(params=params, step=np.int32(42))
    history = {"loss": np.zeros(3), "elbo": np.zeros(3)}
    assert repr(Fitted(state, state, history, "epochs")) == (
        "Fitted(stopped='epochs', state.step=42, history=['loss', 'elbo'] of 3 epochs, "
        "params=84,210 numbers in 2 arrays)"
    )
    population = Population(
        {"beta": np.ones(4)}, state, state, history, "early", np.array([-1, 7, -1, -1])
    )
    assert repr(population) == (
        "Population(members=4, frozen=1, stopped='early', state.step=42, "
        "history=['loss', 'elbo'] of 3 epochs, params=84,210 numbers in 2 arrays, "
        "hyper={'beta': f64[4]})"
    )


def test_long_lists_and_texts_are_cut():
    assert describe(list(range(100))) == "[0, 1, 2, 3, 4, 5, ... 94 more]"
    assert len(describe("a" * 1000)) < 70
    assert describe([draw, generate, None, object()]) == "[draw, generate, None, object]"
    assert describe({i: np.zeros(2) for i in range(9)}) == "18 numbers in 9 arrays"
