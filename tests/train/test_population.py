"""Populations: each member what it is alone, one program for all; who fails harms no other."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.runs import ADAM, DISTANCE, IMAGES, MODEL, equal, stopped_after
from vaejax import autoencoder, autoencoders, data, evaluate, heads, population, sources, train
from vaejax.batch import as_batch
from vaejax.objectives import elbo

HYPER = population.grid(beta=[0.5, 4.0], seed=range(2))


def make(hyper):
    """The small loss, weighed by beta."""

    def loss(params, key, batch, step):
        value, metrics = DISTANCE(params, key, batch, step)
        return hyper["beta"] * value, metrics

    return loss, ADAM


def keys_of(hyper):
    return jax.vmap(jax.random.key)(jnp.asarray(hyper["seed"]))


def start(hyper):
    """A mean for each member, by its seed."""
    seeds = np.asarray(hyper["seed"], np.float32)[:, None, None]
    return {"mean": np.broadcast_to(0.1 * seeds, (len(seeds), 4, 3))}


def of_model(hyper):
    """Parameters of the small model for each member."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(hyper["seed"]) + 100)
    return jax.jit(jax.vmap(MODEL.init, (0, None)))(keys, jnp.zeros((4, 3)))


def quiet_fit(make=make, hyper=HYPER, **options):
    settings = {"epochs": 4, "batch_size": 16, "transform": data.scale, **options}
    params = settings.pop("params", start(hyper))
    return population.fit(
        make, hyper, params, IMAGES, keys=keys_of(hyper), progress=False, **settings
    )


def test_each_member_is_its_own_single_run_from_one_compilation(x64):
    """In double precision to 1e-8 after two epochs: what differs is the order of sums."""
    hyper = population.grid(beta=[0.5, 4.0], seed=range(3))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), of_model(hyper))
    traces = []

    def make(hyper):
        loss = elbo(MODEL, beta=hyper["beta"])

        def counted(*arguments):
            traces.append(1)
            return loss(*arguments)

        return counted, ADAM

    options = {"epochs": 2, "batch_size": 16, "transform": data.binarize}
    found = quiet_fit(make, hyper, params=params, **options)
    assert len(traces) == 1
    assert found.history["loss"].shape == (2, 6) and (found.frozen == -1).all()

    @jax.jit
    def alone(hyper, key, params):
        run = train.make_train(*make(hyper), steps=6, batch_size=16, transform=data.binarize)
        return run(key, params, IMAGES)[0].params

    close = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8)
    for i in range(6):
        hyper_i, params_i = jax.tree.map(lambda leaf, i=i: leaf[i], (hyper, params))
        single = alone(hyper_i, jax.random.key(hyper["seed"][i]), params_i)
        jax.tree.map(close, found.member(i).params, single)
    last = train.fit(
        elbo(MODEL, beta=4.0),
        ADAM,
        params_i,
        IMAGES,
        key=jax.random.key(2),
        progress=False,
        **options,
    )
    jax.tree.map(close, found.member(5).params, last.params)
    np.testing.assert_allclose(found.history["loss"][:, 5], last.history["loss"], rtol=1e-8)


def test_a_member_whose_optimizer_spoils_its_parameters_is_frozen_too():
    """At the state before that step, even at the last one of all, after which no loss is seen."""
    hyper = {"beta": np.ones(2), "seed": np.arange(2), "fails": np.array([99, 11])}

    def spoiling(hyper):
        rate = lambda count: jnp.where(count == hyper["fails"], jnp.inf, 1e-2)  # noqa: E731
        return make(hyper)[0], optax.sgd(rate)

    match = r"member 1 of 2 .*frozen before step 11, .*parameters"
    with pytest.warns(UserWarning, match=match) as said:
        found = quiet_fit(spoiling, hyper)
    assert said[0].filename == __file__  # the line that called fit
    np.testing.assert_array_equal(found.frozen, [-1, 11])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.state.params))
    assert found.best_member() == 0


def test_a_member_whose_gradient_would_spoil_its_optimizers_state_is_frozen_too():
    """Its square overflows, so that Adam would never move that member again."""
    hyper = {"beta": np.ones(2), "seed": np.arange(2), "fails": np.array([99, 4])}

    def steep(hyper):
        loss, optimizer = make(hyper)

        def steep_loss(params, key, batch, step):
            value, metrics = loss(params, key, batch, step)
            slope = jnp.where(step == hyper["fails"], 1e25, 0.0)
            far = params["mean"] - jax.lax.stop_gradient(params["mean"])
            return value + slope * jnp.sum(far), metrics

        return steep_loss, optimizer

    with pytest.warns(
        UserWarning, match="member 1 of 2 .*frozen before step 4, .*optimizer's state"
    ):
        found = quiet_fit(steep, hyper, epochs=2)
    np.testing.assert_array_equal(found.frozen, [-1, 4])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.state.opt_state))


def test_a_member_that_is_not_finite_is_frozen_and_the_rest_go_on():
    """As if it had not been there; and it stays at the state before the step that failed."""
    hyper = {"beta": np.ones(3), "seed": np.arange(3), "fails": np.array([99, 5, 99])}

    def failing(hyper):
        loss, optimizer = make(hyper)

        def failing_loss(params, key, batch, step):
            value, metrics = loss(params, key, batch, step)
            bad = jnp.where(step == hyper["fails"], jnp.nan, 0.0)
            return value + bad, metrics

        return failing_loss, optimizer

    valid = population.mean_loss(make, IMAGES[:10], transform=data.scale)
    options = {"evaluate": valid, "epochs": 2}
    with pytest.warns(UserWarning, match=r"member 1 of 3 .*frozen before step 5, .*'loss': nan"):
        found = quiet_fit(failing, hyper, **options)
    np.testing.assert_array_equal(np.isnan(found.history["eval/loss"][-1]), [False, True, False])
    np.testing.assert_array_equal(found.frozen, [-1, 5, -1])
    np.testing.assert_array_equal(found.state.step, [6, 5, 6])
    healthy = quiet_fit(failing, hyper | {"fails": np.full(3, 99)}, **options)
    for i in (0, 2):
        equal(found.member(i), healthy.member(i))
    assert np.isnan(found.history["loss"][1:, 1]).all()
    assert np.isfinite(found.history["loss"][:, [0, 2]]).all()
    scan = population.make_scan(make, steps=5, indices=train.shuffled(50, 16), transform=data.scale)
    init = jax.vmap(lambda h, key, params: train.make_step(*make(h))[0](key, params))
    state = init(hyper, keys_of(hyper), start(hyper))
    equal(
        found.member(1),
        jax.tree.map(lambda leaf: leaf[1], jax.jit(scan)(state, hyper, 0, IMAGES)[0]),
    )
    assert found.best_member() in (0, 2)
    with (
        warnings.catch_warnings(),
        pytest.raises(train.NonFiniteError, match="none of the 3 members.* before step 5"),
    ):
        warnings.simplefilter("ignore")  # one for each member
        quiet_fit(failing, hyper | {"fails": np.array([3, 5, 4])}, epochs=2)


def test_a_population_resumes_to_the_same_bits(tmp_path):
    valid = population.mean_loss(make, IMAGES[:21], transform=data.scale, batch_size=10)
    options = {"evaluate": valid, "epochs": 4, "patience": 3, "chunk": 2}
    whole = quiet_fit(**options)

    stop = stopped_after(2)

    def log(row):
        assert np.shape(row["loss"]) == (4,)
        stop(row)

    with pytest.raises(train.Interrupted):
        quiet_fit(directory=tmp_path, log=log, **options)
    resumed = quiet_fit(directory=tmp_path, resume=True, **options)
    equal((whole.state, whole.best), (resumed.state, resumed.best))
    equal(whole.history, resumed.history)
    with pytest.raises(ValueError, match="(?s)another run.*hyper: checkpoint"):
        quiet_fit(hyper=HYPER | {"beta": np.ones(4)}, directory=tmp_path, resume=True)


def test_every_member_keeps_its_own_best_and_is_measured_by_its_own_loss():
    values = jnp.array([[3.0, 1.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0]])

    def evaluate_member(hyper, params, key):  # by the count of steps, 3 in each epoch
        epoch = (params["count"] / 3 - 1).astype(jnp.int32)
        return {"loss": values[hyper["row"], epoch]}

    def counting(hyper):
        return (lambda params, key, batch, step: (params["count"], {})), optax.sgd(-1.0)

    hyper = {"row": np.array([0, 1]), "seed": np.arange(2)}
    counts = {"count": np.zeros(2, np.float32)}
    found = quiet_fit(counting, hyper, params=counts, evaluate=evaluate_member)
    highest = quiet_fit(
        counting,
        hyper,
        params=counts,
        evaluate=lambda *given: {"gain": evaluate_member(*given)["loss"]},
        monitor="gain",
        maximize=True,
        epochs=3,
    )
    np.testing.assert_array_equal(highest.best.params["count"], [3, 9])
    assert highest.best_member() == 0 and highest.best_member("eval/gain", maximize=False) == 0
    np.testing.assert_array_equal(found.best.params["count"], [6, 3])
    np.testing.assert_array_equal(found.best.step, [6, 3])
    np.testing.assert_array_equal(found.params["count"], [12, 12])
    np.testing.assert_array_equal(found.history["eval/loss"], values.T)
    assert found.best_member() == 0 and int(found.member(0, best=True).step) == 6


def test_the_mean_loss_of_a_member_is_that_of_evaluate():
    """A ragged end counts by its size; where nothing is drawn, to the rounding of sums."""
    model = autoencoder(heads.Code(2), heads.FixedNormal((4, 3), 1.0))
    loss = autoencoders.reconstruction(model)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((4, 3)))
    key = jax.random.key(1)
    expected = evaluate.mean_loss(loss, params, key, IMAGES[:21], transform=data.scale)
    for batch_size in (10, 500):
        one = population.mean_loss(
            lambda hyper: (loss, None), IMAGES[:21], transform=data.scale, batch_size=batch_size
        )
        found = jax.jit(one)((), params, jax.random.clone(key))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_a_hyperparameter_may_be_an_array_a_mask_of_latents():
    """Masked latents carry nothing: their posterior is the prior, whatever the encoder says."""

    def masked(hyper):
        def decode(params, z, c=(), *, key=None):
            return MODEL.decode(params, z * hyper["mask"], c, key=key)

        return elbo(MODEL._replace(decode=decode)), ADAM

    hyper = {"mask": np.array([[1.0, 1.0], [1.0, 0.0]], np.float32), "seed": np.zeros(2, int)}
    params = of_model(hyper)
    found = quiet_fit(masked, hyper, params=params, transform=data.binarize, epochs=1)
    kernel = [found.member(i).params["decoder"]["params"]["logits"]["kernel"] for i in (0, 1)]
    first = params["decoder"]["params"]["logits"]["kernel"][0]
    np.testing.assert_array_equal(kernel[1][1], first[1])
    assert (kernel[0][1] != first[1]).all()


def test_members_are_asked_for_by_what_there_is():
    """Not the worst one by its ELBO, nor the last for an index past it."""
    numbers = np.array([[3.0, 1.0, 2.0]])
    history = {"epoch": np.ones(1), "loss": numbers, "eval/elbo": -numbers, "eval/gap": -numbers}
    state = train.TrainState(np.arange(3), (), jax.random.split(jax.random.key(0), 3), np.arange(3))
    found = population.Population((), state, state, history, "epochs", np.full(3, -1))
    assert (found.best_member(), found.best_member("eval/gap")) == (1, 0)
    assert found.best_member("eval/elbo", maximize=True) == 1
    for name, beta in (("eval/elbo", {"eval/beta": numbers}), ("elbo", {"beta": numbers})):
        swept = found._replace(
            history=history | {name: -numbers, name[:-4] + "loss": numbers} | beta
        )
        with pytest.warns(
            UserWarning, match=f"beta goes from 1 to 3, .*best_member\\('{name}', max"
        ):
            assert swept.best_member(name[:-4] + "loss") == 1
        assert swept.best_member(name, maximize=True) == 1
    same = found._replace(history=history | {"elbo": -numbers, "beta": np.full((1, 3), 4.0)})
    assert same.best_member() == 1
    by_gap = found._replace(monitor="gap", maximize=True)  # as it was trained
    assert (by_gap.best_member(), by_gap.best_member("loss")) == (1, 1)
    for metric, message in (
        ("eval/elbo", "got 'eval/elbo', minimised, expected it to be maximised; add maximize=True"),
        ("eval/typo", r"got 'eval/typo', expected one of \['loss', 'eval/elbo', 'eval/gap'\]"),
        ("epoch", "got 'epoch', expected one of"),
    ):
        with pytest.raises(ValueError, match=f"best_member: metric: {message}"):
            found.best_member(metric)
    assert [int(found.member(i).params) for i in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"member: index: got {index}, expected -3 to 2"):
            found.member(index)


def test_a_grid_has_every_combination():
    found = population.grid(beta=[1.0, 4.0], seed=range(3))
    np.testing.assert_array_equal(found["beta"], [1, 1, 1, 4, 4, 4])
    np.testing.assert_array_equal(found["seed"], [0, 1, 2, 0, 1, 2])
    with pytest.raises(ValueError, match="grid: expected beta >= 1, got 0"):
        population.grid(beta=[], seed=[1])
    with pytest.raises(TypeError, match="grid: beta: got .*, expected a list of values"):
        population.grid(beta={"a": 1.0})
    with pytest.raises(TypeError, match="grid: loss: got .*, expected numbers"):
        population.grid(loss=[len, sum])
    masks = population.grid(mask=[np.array([1, 0]), np.array([1, 1])], name=["a", "b"])
    assert masks["mask"].shape == (4, 2)
    for twice in ({"beta": [1, 4, 1.0]}, {"mask": [np.ones(2), np.ones(2)]}, {"seed": [3, 3]}):
        with pytest.raises(ValueError, match=rf"grid: {next(iter(twice))}: got .*each value once"):
            population.grid(**twice)


def test_the_summary_is_over_the_seeds_that_are_finite():
    hyper = population.grid(beta=[1.0, 4.0], seed=range(3))
    rows = population.summarize(hyper, {"nll": [1.0, 2.0, 6.0, np.nan, 3.0, 5.0]})
    sd = [pytest.approx(7**0.5), pytest.approx(2**0.5)]
    assert rows[0] == {"beta": 1.0, "members": 3, "finite": 3, "nll": 3.0, "nll_sd": sd[0]}
    assert rows[1] == {"beta": 4.0, "members": 3, "finite": 2, "nll": 4.0, "nll_sd": sd[1]}
    assert population.table(rows).splitlines() == [
        "beta  finite      nll",
        " 1.0  3 of 3  3 (2.6)",
        " 4.0  2 of 3  4 (1.4)",
    ]
    assert np.isnan(population.summarize({"seed": [0]}, {"nll": [1.0]})[0]["nll_sd"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hyper": HYPER | {"beta": np.ones(3)}}, r"hyper\['beta'\]: got shape \(3,\).*of 4.*grid"),
        ({"hyper": HYPER | {"beta": 1.0}}, r"hyper\['beta'\]: got shape \(\)"),
        ({"params": start({"seed": [0, 1]})}, r"params\['mean'\]: got shape \(2, .*of 4.*jax.vmap"),
        ({"batch_size": 51}, "batch_size: got 51, expected 1 to 50"),
        ({"keys": jax.random.key(0)}, "expected keys >= 1"),
        (
            {"keys": jax.random.split(jax.random.key(0, impl="rbg"), 4)},
            "population.fit: keys: got rbg keys, expected threefry2x32 keys; .*impl=",
        ),
    ],
)
def test_what_does_not_have_a_value_for_each_member_is_refused(change, message):
    arguments = {"hyper": HYPER, "params": start(HYPER), "keys": keys_of(HYPER), "epochs": 1}
    arguments |= {"batch_size": 16, "transform": data.scale, "progress": False} | change
    with pytest.raises(ValueError, match=message):
        population.fit(make, arguments.pop("hyper"), arguments.pop("params"), IMAGES, **arguments)


def test_data_that_stay_on_the_disk_are_refused():
    source = sources.in_memory(as_batch(IMAGES))
    message = r"{}: data: got a Source, expected arrays in memory; .*source.read\(np.arange"
    keys = keys_of(HYPER)
    with pytest.raises(TypeError, match=message.format("population.fit")):
        population.fit(make, HYPER, HYPER, source, keys=keys, epochs=1)
    with pytest.raises(TypeError, match=message.format("population.mean_loss")):
        population.mean_loss(make, source)
