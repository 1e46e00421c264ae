"""Flows against the determinant of their Jacobian, their inverse, and the integral of 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vaejax import flows
from vaejax.distributions import Bernoulli, Normal

H = jnp.array([0.3, -1.2])
NETWORKS = {
    "planar": flows.planar(3, layers=3),
    "coupling": flows.coupling(3, layers=3, hidden=(5,)),
    "inverse_autoregressive": flows.inverse_autoregressive(3, layers=2, hidden=(7, 6)),
}
every = pytest.mark.parametrize("name", list(NETWORKS))


def shaken(network, *given, scale=0.7):
    """Parameters far from the start, where most flows are the identity or nearly so."""
    params = jax.jit(network.init)(jax.random.key(1), *given)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: np.asarray(a) + (scale * rng.normal(size=a.shape)).astype(a.dtype), params
    )


@every
def test_the_log_determinant_is_that_of_the_jacobian_and_the_inverse_inverts(name, x64):
    network = NETWORKS[name]
    z = np.array([0.4, -1.1, 2.0])

    def measured(params, z):
        flow = network.apply(params, H)
        x, log_det = flow.forward(z)
        return x, log_det, jax.jacfwd(lambda z: flow.forward(z)[0])(z), flow.inverse(x)

    params = shaken(network, H)
    x, log_det, jacobian, (back, back_log_det) = jax.jit(measured)(params, z)
    assert np.abs(x - z).max() > 0.1
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-10)
    np.testing.assert_allclose(back, z, atol=1e-10)
    np.testing.assert_allclose(back_log_det, -log_det, atol=1e-10)


def test_a_planar_flow_is_a_bijection_by_its_constraint():
    """Checked against a planar layer used with u as it is: two points then have one image."""
    w, u = jnp.array([1.0, 2.0]), jnp.array([-1.0, -1.5])  # w . u = -4

    def check(forward):
        along = np.linspace(-2.0, 2.0, 81, dtype=np.float32)[:, None] * np.asarray(w)[None]
        x, log_det = jax.jit(jax.vmap(forward))(along)
        assert np.all(np.diff(np.asarray(x) @ np.asarray(w)) > 0) and np.isfinite(log_det).all()

    def mistaken(z):
        bend = jnp.tanh(jnp.dot(w, z))
        return z + u * bend, jnp.log(jnp.abs(1 + jnp.dot(w, u) * (1 - bend**2)))

    check(flows.Planar(u, w, jnp.array(0.0)).forward)
    with pytest.raises(AssertionError):
        check(mistaken)


def test_forth_and_back_a_planar_flow_does_not_move_with_its_parameters_nor_its_density(x64):
    """The derivative of the root that the inverse finds, in u, w and b."""

    def measured(flow):
        x, log_det = flow.forward(jnp.array([0.4, -1.1]))
        back, back_log_det = flow.inverse(x)
        return back, log_det + back_log_det

    for u in (jnp.array([3.0, -1.0]), jnp.array([-9.0, 4.0])):  # w . u' is 3.1, and -.9
        flow = flows.Planar(u, jnp.array([1.0, 0.5]), jnp.array(0.7))
        value, moved = jax.jit(lambda f: (measured(f), jax.jacfwd(measured)(f)))(flow)
        np.testing.assert_allclose(value[0], [0.4, -1.1], atol=1e-12)
        for slope in jax.tree.leaves(moved):
            np.testing.assert_allclose(slope, 0, atol=1e-10)


def test_a_planar_flow_of_no_direction_is_the_identity_with_a_finite_gradient():
    def loss(w):
        x, log_det = flows.Planar(jnp.ones(2), w, jnp.array(0.0)).forward(jnp.ones(2))
        return jnp.sum(x) + log_det

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.zeros(2))
    assert value == 2 and np.isfinite(gradient).all()


@pytest.mark.parametrize("size", [1e-2, 1e-6, 1e-12, 1e-18])
def test_a_planar_flow_of_a_short_direction_is_finite_in_single_precision(size):
    """f(z) = z + u' tanh(b) at w -> 0: u loses (1 - m'(0)) of itself along w, m'(0) = 0.632."""
    u = jnp.array([1.0, 2.0])

    def forward(w):
        return flows.Planar(u, w, jnp.array(1.0)).forward(jnp.zeros(2))[0]

    bend, slope = jax.jit(lambda w: (forward(w), jax.jacrev(forward)(w)))(jnp.array([size, 0.0]))
    along = -np.expm1(-0.999) if size < 1e-2 else np.log1p(-np.expm1(-0.999) * np.expm1(0.01)) * 100
    np.testing.assert_allclose(bend, np.array([along, 2.0]) * np.tanh(1), rtol=2e-5)
    assert np.isfinite(slope).all()


def test_the_bend_of_a_planar_flow_is_softplus_shifted_to_pass_through_zero():
    products = np.array([-50.0, -5.0, -0.5, 0.0, 0.999, 1.001, 5.0, 200.0], np.float32)
    one = jnp.ones(1)
    flow = jax.vmap(lambda u: flows.Planar(u * one, one, jnp.array(30.0)).forward(0 * one)[0][0])
    shifted = np.logaddexp(0, products.astype(float) + np.log(np.expm1(0.999))) - 0.999
    np.testing.assert_allclose(jax.jit(flow)(products), shifted, rtol=1e-5, atol=1e-6)


def test_features_that_no_layer_would_hear_are_refused():
    with pytest.raises(ValueError, match=r"inverse_autoregressive: hidden: got \(\)"):
        flows.inverse_autoregressive(3, hidden=())


def test_a_gate_that_is_shut_has_an_inverse_and_an_ordinary_one_is_as_it_was():
    z = jnp.array([1.0, -2.0])

    def measured(free):
        net = jax.tree_util.Partial(lambda free, z: jnp.stack([z[::-1] * 0 + 3.0, free], 1), free)
        flow = flows.InverseAutoregressive(net, (), (0, 1))
        x, log_det = flow.forward(z)
        return log_det, flow.inverse(x), jax.grad(lambda f: f.forward(z)[1])(flow).net.args[0]

    for free in (-4.0, 0.0, 30.0):
        log_det, (back, _), _ = jax.jit(measured)(jnp.full(2, free))
        np.testing.assert_allclose(log_det, -2 * np.logaddexp(0, -free - 2), rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(back, z, rtol=1e-4)
    log_det, back, _ = jax.jit(measured)(jnp.full(2, -1e4))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((log_det, back)))


def test_masks_hide_an_entry_from_itself():
    """Checked against output masks with <= for <: the Jacobian keeps its triangle, not its rule."""
    order, z = (2, 0, 3, 1), jnp.array([0.5, -0.3, 1.0, 0.2])

    def check(masks):
        found = np.asarray(jax.jit(jax.jacfwd(lambda z: outputs(masks, z)))(z))
        for i, at in enumerate(order):
            later = list(order[i:])
            assert np.all(found[at][:, later] == 0), "an entry sees itself or a later one"
            assert i == 0 or np.any(found[at][:, list(order[:i])] != 0)

    def outputs(masks, z):
        rng = np.random.default_rng(0)
        h = z
        for mask in [*masks[:-1], np.repeat(masks[-1], 2, axis=1)]:
            h = jnp.tanh(h @ jnp.asarray(rng.normal(size=mask.shape) * mask, h.dtype))
        return h.reshape(len(order), 2)

    masks = flows.autoregressive_masks(order, (9, 8))
    check(masks)
    rank = np.empty(4, int)
    rank[list(order)] = np.arange(1, 5)
    mistaken = [*masks[:-1], (np.arange(8)[:, None] % 4 <= rank[None]).astype(float)]
    with pytest.raises(AssertionError, match="sees itself"):
        check(mistaken)


def test_the_jacobian_of_an_inverse_autoregressive_flow_is_triangular_in_its_order():
    order = (2, 0, 3, 1)
    network = flows.inverse_autoregressive(4, layers=1, hidden=(9,), orders=[order])
    params = shaken(network, H)

    def forward(z, h):
        return network.apply(params, h).flows[0].forward(z)[0]

    by_z, by_h = jax.jit(jax.jacfwd(forward, (0, 1)))(jnp.array([0.5, -0.3, 1.0, 0.2]), H)
    permuted = np.asarray(by_z)[np.ix_(order, order)]
    assert np.all(np.triu(permuted, 1) == 0) and np.all(np.diag(permuted) > 0)
    assert np.any(np.tril(permuted, -1) != 0)
    assert np.all(np.any(by_h != 0, axis=1)), "the features reach every entry, the first one too"


def test_the_last_entry_depends_on_all_others_behind_a_narrow_layer():
    """Three units of degrees 0, 1, 2 would show it the first two of seven entries alone."""
    masks = flows.autoregressive_masks(range(8), (3, 5))
    seen = np.linalg.multi_dot(masks)
    assert np.all(np.triu(seen.T) == 0) and np.all(seen[:7, 7] > 0) and np.all(seen[7] == 0)


@pytest.fixture(scope="module")
def densities():
    """Of the plane, with parameters as they come."""
    made = {
        "coupling": flows.Density(flows.coupling(2, layers=3, hidden=(6,))),
        "inverse_autoregressive": flows.Density(flows.inverse_autoregressive(2, hidden=(6,))),
    }
    return {name: network.apply(shaken(network, scale=0.4)) for name, network in made.items()}


@pytest.mark.parametrize("name", ["coupling", "inverse_autoregressive"])
def test_a_density_integrates_to_one_and_its_samples_have_its_moments(name, densities):
    p = densities[name]
    side = jnp.arange(-12, 12, 0.1)
    grid = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log_prob = jax.jit(jax.vmap(p.log_prob))
    mass = np.exp(np.asarray(log_prob(grid), float)) * 0.1**2
    assert mass.sum() == pytest.approx(1, abs=2e-3)
    keys = jax.random.split(jax.random.key(2), len(grid))  # as many: one program scores both
    x, log_p = jax.jit(jax.vmap(p.sample_and_log_prob))(keys)
    np.testing.assert_allclose(log_prob(x)[:50], log_p[:50], atol=2e-3)
    one = jax.jit(p.sample)(jax.random.split(jax.random.key(2), len(grid))[0])
    np.testing.assert_allclose(one, x[0], rtol=1e-5)
    error = np.std(x, axis=0) / len(x) ** 0.5
    assert np.all(np.abs(x.mean(axis=0) - mass @ np.asarray(grid)) < 5 * error)


def test_the_density_of_a_planar_draw_integrates_to_one_too():
    """E[g(x) / p(x)] = 1 for every density g inside the support; log_prob is found by inversion."""
    network = flows.planar(2, layers=3)
    p = flows.Transformed(Normal(jnp.zeros(2), jnp.ones(2)), network.apply(shaken(network)))
    keys = jax.random.split(jax.random.key(0), 20_000)
    x, log_p = jax.jit(jax.vmap(p.sample_and_log_prob))(keys)
    log_g = stats.norm.logpdf(x, np.mean(x, axis=0), 0.7).sum(axis=1)
    ratio = np.exp(log_g - log_p)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5 < 0.1
    np.testing.assert_allclose(jax.jit(jax.vmap(p.log_prob))(x[:1000]), log_p[:1000], atol=2e-3)
    with pytest.raises(NotImplementedError, match="sample_and_log_prob"):
        flows.Flow().inverse(jnp.zeros(2))


@every
def test_a_batch_under_vmap_equals_the_loop(name):
    network = NETWORKS[name]
    params = shaken(network, H)
    z, h = (np.random.default_rng(3).normal(size=(3, n)).astype(np.float32) for n in (3, 2))

    @jax.jit
    def mapped_and_looped(z, h):
        def forward(zh):
            return network.apply(params, zh[1]).forward(zh[0])

        return jax.vmap(forward)((z, h)), jax.lax.map(forward, (z, h))

    mapped, looped = mapped_and_looped(z, h)
    for one, other in zip(mapped, looped, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_flow_is_one_structure_at_every_call():
    network = NETWORKS["coupling"]
    params = jax.eval_shape(network.init, jax.random.key(0))
    one, other = (jax.tree.structure(network.apply(params)) for _ in range(2))
    assert one == other


def test_bad_input_is_refused_with_the_fix():
    with pytest.raises(ValueError, match=r"coupling: size: got 1, expected 2 or more; .*autoreg"):
        flows.coupling(1)
    with pytest.raises(ValueError, match="planar: expected layers >= 1, got 0"):
        flows.planar(2, layers=0)
    for orders in ([(0, 0)], [(0, 1), (1, 0)]):
        with pytest.raises(ValueError, match=r"orders.*1 permutations of 0 to 1"):
            flows.inverse_autoregressive(2, layers=1, orders=orders)
    network = flows.Density(flows.coupling(2))
    p = network.apply(jax.eval_shape(network.init, jax.random.key(0)))
    with pytest.raises(ValueError, match=r"Transformed.log_prob: x.*one vector.*jax.vmap"):
        p.log_prob(np.zeros((5, 2)))
    coin = flows.Transformed(Bernoulli(jnp.zeros(2)), p.flow)
    with pytest.raises(TypeError, match="Transformed: base: got Bernoulli, expected a density"):
        coin.log_prob(jnp.zeros(2))
