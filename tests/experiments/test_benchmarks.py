"""Benchmarks run and report what they say. No test depends on a time."""

import importlib
import json
import sys
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vaejax
from experiments import common
from experiments.benchmarks import __main__ as compare
from experiments.benchmarks import (
    convolution,
    feeding,
    growth,
    in_growth,
    likelihood,
    memory,
    population,
    processes,
    suite,
    worker,
)
from experiments.benchmarks import report as reporting
from vaejax import contraction, draw, evaluate, heads
from vaejax.batch import over_examples
from vaejax.types import Batch


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "convolution.json"
    config = common.parse(convolution.PRESETS, "", ["--smoke", "--out", str(out)])
    report = convolution.main(config)
    assert json.loads(out.read_text()) == report
    return report


def test_every_program_has_a_rate_and_its_ratio_is_the_quotient(report):
    programs = report["programs"]
    assert list(programs) == ["scan_product", "step_native", "scan_native", "step_flax"]
    ours = np.array(programs["scan_product"]["rate"]["rounds"])
    for program in programs.values():
        rates = np.array(program["rate"]["rounds"])
        assert rates.shape == (2,)
        assert np.all(rates > 0)
        assert program["compile_seconds"] > 0
        np.testing.assert_allclose(program["ratio"]["rounds"], ours / rates)
        for summary in (program["rate"], program["ratio"]):
            assert summary["median"] == pytest.approx(np.median(summary["rounds"]))
            assert summary["lower_quartile"] <= summary["median"] <= summary["upper_quartile"]


def test_the_three_ways_to_train_one_model_do_the_same_mathematics(report):
    ours, *others = (report["programs"][n] for n in ("scan_product", "step_native", "scan_native"))
    for other in others:
        assert other["parameters"] == ours["parameters"]
        assert other["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    assert np.isfinite(report["programs"]["step_flax"]["loss"])


def test_each_program_convolves_by_the_means_that_its_name_says(report):
    native = {name: facts["native_convolution"] for name, facts in report["programs"].items()}
    assert not native.pop("scan_product")
    assert all(native.values())


SMALL = replace(likelihood.Config(), size=(4, 3), hidden=(8,), latent=2, images=7, particles=2000)


def test_likelihood_by_torch_is_the_same_estimate_whatever_its_chunks():
    """Under a posterior made wider than the prior, whose weights are bounded: to their noise."""
    pytest.importorskip("torch", reason="left out: PyTorch is not installed (extra: benchmarks)")
    model, params, x = likelihood.problem(SMALL)
    params["encoder"]["params"]["layers_1"]["scale"]["bias"] += 1.0
    ours, ess = evaluate.log_likelihood(model, params, jax.random.key(0), x, particles=2000)
    np.testing.assert_array_equal(likelihood.in_vaejax(SMALL, model, params, x)(), ours)
    for sizes in [{"batch_size": 3, "chunk": 300}, {"batch_size": 1, "chunk": 2000}]:
        theirs = likelihood.in_torch(replace(SMALL, **sizes), params, x)()
        assert np.all(np.abs(theirs - ours) < 5 * np.sqrt(2 / ess))
        assert np.max(5 * np.sqrt(2 / ess)) < 0.4  # a term left out is more


def test_likelihood_benchmark_reports_every_program(tmp_path):
    pytest.importorskip("torch", reason="left out: PyTorch is not installed (extra: benchmarks)")
    config = replace(likelihood.PRESETS["burda"], smoke=True, out=tmp_path / "report.json")
    programs = likelihood.main(config)["programs"]
    assert list(programs) == ["vaejax", "torch_chunks", "torch_images"]
    assert all(len(row["ratio"]["rounds"]) == 2 for row in programs.values())


def test_likelihood_benchmark_without_torch_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'no PyTorch.*pip install "torch>=2"'):
        likelihood.in_torch(SMALL, {}, None)


def test_the_peak_of_memory_is_seen_after_it_has_gone():
    with memory.peak_memory() as peak:
        time.sleep(0.2)
        before = peak()
        block = np.ones(50_000_000)  # 400 MB
        time.sleep(0.2)
        del block
        time.sleep(0.2)
        assert before > 10
        assert before + 350 < peak() < before + 450


def test_feeding_reports_memory_waiting_and_both_rates(tmp_path):
    config = replace(feeding.Config(), smoke=True, folder=tmp_path, out=tmp_path / "report.json")
    report = feeding.main(config)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["file_gb"] == pytest.approx(2000 * 784 / 1e9, rel=1e-3)
    assert 0 <= report["waited_share"] <= 1
    assert list(report["programs"]) == ["streamed", "in_memory"]
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]


def test_one_call_for_memory_reports_its_counts(tmp_path):
    config = replace(SMALL, compare=False, particles=50, out=tmp_path / "report.json")
    report = likelihood.main(config)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (report["images"], report["particles"]) == (7, 50)
    assert np.isfinite(report["nll_nats"])
    assert report["samples_per_second"] == pytest.approx(350 / report["seconds"])


TINY = {name: suite.shrunk(name) for name in suite.WORKLOADS}
LEFT_OUT = "left out: PyTorch is not installed (extra: benchmarks)"


def by_torch(name, params):
    """PyTorch's loss with the parameters of vaejax's model, for images turned by 180 degrees.

    Stride 2 pads an even image at its end in JAX, at its start in PyTorch: turned, it is the same.
    """
    torch = pytest.importorskip("torch", reason=LEFT_OUT)
    from experiments.benchmarks import in_torch

    sizes = TINY[name]
    encoder, decoder = (params[part]["params"] for part in ("encoder", "decoder"))
    heads = encoder["layers_1"]
    quarter, many = sizes.side // 4, sizes.hidden[-1]

    def turned(kernel):
        """`[height, width, in, out]` to `[out, in, height, width]`; of an adjoint, in for out."""
        return np.array(kernel)[::-1, ::-1].transpose(3, 2, 0, 1)

    def maps_last(kernel):
        """The rows of a dense kernel behind a map `[h, w, c]`, for a turned map `[c, h, w]`."""
        rows = np.array(kernel).reshape(quarter, quarter, many, -1)[::-1, ::-1]
        return rows.transpose(2, 0, 1, 3).reshape(quarter * quarter * many, -1)

    def quadruples(values):
        """Channels `(row, column, feature)` of a pixel's quadruple to PyTorch's, turned."""
        values = np.array(values)
        split = values.reshape(*values.shape[:-1], 2, 2, -1)[..., ::-1, ::-1, :]
        return np.moveaxis(split, -1, -3).reshape(values.shape)

    if sizes.network == "mlp":
        inner = decoder["layers_0"]
        layers = [encoder["layers_0"][name] for name in sorted(encoder["layers_0"])]
        inward = [(np.array(d["kernel"]).T, d["bias"]) for d in layers]
        layers = [*(inner[name] for name in sorted(inner)), decoder["layers_1"]["logits"]]
        outward = [(np.array(d["kernel"]).T, d["bias"]) for d in layers]
        codes = [(np.array(heads[n]["kernel"]).T, heads[n]["bias"]) for n in ("loc", "scale")]
    else:
        layers = [encoder["layers_0"][name] for name in ("Conv_0", "Conv_1")]
        inward = [(turned(d["kernel"]), d["bias"]) for d in layers]
        codes = [(maps_last(heads[n]["kernel"]).T, heads[n]["bias"]) for n in ("loc", "scale")]
        whole = decoder if "Dense_0" in decoder else decoder["layers_0"]
        dense = whole["Dense_0"]
        outward = [(maps_last(np.array(dense["kernel"]).T), maps_last(dense["bias"])[:, 0])]
        if sizes.network == "transposed":
            outward += [
                (turned(whole[f"{n}_kernel"]), whole[f"{n}_bias"]) for n in ("first", "second")
            ]
        else:
            outward += [
                (turned(quadruples(whole[n]["kernel"])), quadruples(whole[n]["bias"]))
                for n in ("Conv_0", "Conv_1")
            ]
            head = decoder["layers_1"]["logits"]
            outward += [(np.array(head["kernel"]).T[..., None, None], head["bias"])]
    net = in_torch.Net(sizes)
    layers = [m for m in (*net.encoder, *net.decoder, net.loc, net.scale) if hasattr(m, "weight")]
    with torch.no_grad():
        for layer, (kernel, bias) in zip(layers, [*inward, *outward, *codes], strict=True):
            layer.weight.copy_(torch.tensor(np.array(kernel)))
            layer.bias.copy_(torch.tensor(np.array(bias)))
    return in_torch.loss_of(net)


@pytest.mark.parametrize("name", ["W1", "W2", "W3", "W3-preset"])
def test_torch_computes_the_same_loss(name):
    """Of the same parameters, binary images and noise, to 1e-4 of its value."""
    torch = pytest.importorskip("torch", reason=LEFT_OUT)
    from experiments.benchmarks import in_vaejax

    sizes = TINY[name]
    model = in_vaejax.model_of(sizes)
    x = (suite.levels(sizes)[: sizes.batch] > 60).astype(np.float32)
    params = model.init(jax.random.key(0), x[0])
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases too are something
    key = jax.random.key(1)
    loss = in_vaejax.loss_of(model, sizes)
    ours = loss(params, jax.random.clone(key), Batch(x), 0)[0]

    def noise_of(key, x):
        def one(key):
            d = draw(model, params, key, x)
            return (d.z - d.q.loc) / d.q.scale

        return jax.vmap(one)(jax.random.split(key, sizes.particles))

    noise = over_examples(noise_of, key, x)  # by the keys that the loss derives
    seen = x.reshape(len(x), -1) if sizes.network == "mlp" else x[:, None, ::-1, ::-1, 0]
    noise = noise[:, 0] if sizes.particles == 1 else noise
    inputs = [torch.tensor(np.array(values)) for values in (seen, noise)]
    theirs = by_torch(name, params)(*inputs)
    assert theirs.item() == pytest.approx(float(ours), rel=1e-4)


def test_torch_takes_the_same_contractive_penalty():
    torch = pytest.importorskip("torch", reason=LEFT_OUT)
    from experiments.benchmarks import in_torch

    layer, x = torch.nn.Linear(12, 5), torch.rand(3, 12)
    closed = in_torch.closed_form(layer, x)
    np.testing.assert_allclose(closed.detach(), in_torch.by_jacrev(layer, x).detach(), rtol=1e-4)
    model = vaejax.autoencoder(heads.Code(5, jax.nn.sigmoid), heads.Bernoulli(12))
    params = model.init(jax.random.key(0), jnp.zeros(12))
    weight, bias = (layer.state_dict()[name].numpy() for name in ("weight", "bias"))
    params["encoder"] = {"params": {"code": {"kernel": weight.T, "bias": bias}}}
    for one, theirs in zip(x.numpy(), closed.tolist(), strict=True):
        ours = contraction.closed_form(model, params, jax.random.key(1), one)
        assert float(ours) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    ("workload", "variant"),
    [
        (w, v)
        for w in ("W1", "W2", "W3", "W3-preset", "W4", "W5")
        for v in suite.VARIANTS[w]
        if v.startswith("torch") and v not in ("torch_compile", "torch_cuda_graphs")
    ],
)
def test_a_burst_by_torch_does_its_work(workload, variant):
    pytest.importorskip("torch", reason=LEFT_OUT)
    from experiments.benchmarks import in_torch

    burst = in_torch.build(workload, variant, TINY[workload])
    assert burst.work > 0
    assert np.isfinite([burst.run(), burst.run()]).all()


@pytest.mark.parametrize(
    ("workload", "variant", "work"),
    [
        ("W1", "vaejax_population", 2 * 2 * 5),
        ("W1", "vaejax_bfloat16", 2 * 5),
        ("W1", "vaejax_nnx", 2 * 5),
        ("W1", "vaejax_equinox", 2 * 5),
        ("W2", "flax_step", 2 * 5),
        ("W3", "vaejax", 2 * 5),
        ("W4", "vaejax", 2 * 40 * 4),
        ("W5", "vaejax_jacfwd", 5),
    ],
)
def test_a_burst_does_its_work(workload, variant, work):
    """One variant of each kind, in this process. W1 runs as a process of its own below."""
    burst = importlib.import_module(worker.module_of(variant)).build(
        workload, variant, TINY[workload]
    )
    assert burst.work == work
    losses = [burst.run(), burst.run()]
    assert np.isfinite(losses).all()
    if workload in ("W1", "W2", "W3"):
        assert losses[0] != losses[1]  # it trains


def test_the_comparison_reports_every_variant_and_why_one_is_left_out(tmp_path, capsys):
    options = [
        "--smoke",
        "--only",
        "W1",
        "--variants",
        "flax_step",
        "torch_cuda_graphs",
        "--out",
        str(tmp_path),
    ]
    found = compare.main(common.parse({"all": compare.Config()}, "", options))
    assert json.loads((tmp_path / "benchmarks.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000
    ours, theirs = found["rows"]
    assert [ours["variant"], theirs["variant"]] == ["vaejax", "flax_step"]
    for row in found["rows"]:
        rates, ratios = (np.array(row[name]["rounds"]) for name in ("rate", "ratio"))
        np.testing.assert_allclose(ratios, np.array(ours["rate"]["rounds"]) / rates)
        assert rates.shape == (2,)
        assert min(row["compile_seconds"], row["vm_hwm_mb"], row["rss_anon_peak_mb"]) > 0
        assert row["work"] == 10
        assert np.isfinite(row["loss"])
        assert row["utilisation"] > 0
    assert found["left_out"] == [
        {"workload": "W1", "variant": "torch_cuda_graphs", "why": "needs a GPU"}
    ]
    assert "left out: W1 torch_cuda_graphs: needs a GPU" in capsys.readouterr().out


def test_a_library_that_is_not_there_is_left_out_with_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch', name='torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    request = {"workload": "W1", "variant": "torch_eager", "sizes": vars(TINY["W1"])}
    with pytest.raises(
        processes.Failed, match=r'No module named torch; install: pip install "torch'
    ):
        processes.Worker(request)


def test_the_arithmetic_of_a_workload_is_that_of_its_layers():
    """By hand, in MFLOP: W1 per image, W2 and W3 per step, in round numbers."""
    flops = {name: suite.flops(sizes) / 1e6 for name, sizes in suite.WORKLOADS.items()}
    dense = 784 * 400 + 2 * 400 * 20 + 20 * 400 + 400 * 784
    assert flops["W1"] == pytest.approx(2 * (3 * dense - 784 * 400) / 1e6)
    assert 20 * flops["W2"] == pytest.approx(1260, rel=1e-2)
    assert 128 * flops["W3"] == pytest.approx(1690, rel=1e-2)
    once = suite.flops(suite.WORKLOADS["W4"], training=False)
    assert once == 2 * (20 * 400 + 400 * 784)


def test_bars_are_judged_by_the_median_and_for_cpus_alone():
    def row(workload, variant, ratio, memory):
        return {
            "workload": workload,
            "variant": variant,
            "ratio": {"median": ratio},
            "rss_anon_peak_mb": memory,
            "against": "torch",
        }

    rows = [
        row("W1", "vaejax", 1.0, 300.0),
        row("W1", "torch_eager", 2.2, 100.0),
        row("W1", "pythae", 3.5, 100.0),
        row("epoch", "vaejax_warm", 0.7, None),
    ]
    rows[0]["warm_rss_anon_peak_mb"] = 150.0
    found = reporting.bars(rows, "cpu")
    assert [bar["met"] for bar in found] == ["missed", "met", "met", "missed", "met"]
    assert [bar["value"] for bar in found] == [2.2, 3.5, 0.7, 3.0, 1.5]
    assert {bar["met"] for bar in reporting.bars(rows, "gpu")} == {"no bar"}


def test_the_population_benchmark_counts_what_all_members_see(tmp_path):
    config = replace(population.PRESETS["mnist"], smoke=True, out=tmp_path / "report.json")
    programs = population.main(config)["programs"]
    assert list(programs) == ["alone", "members_2"]
    assert all(len(row["ratio"]["rounds"]) == 2 for row in programs.values())


def test_growth_reports_each_size_its_exponents_and_a_picture(tmp_path, capsys):
    options = ["--smoke", "--only", "likelihood-K", "mig", "--out", str(tmp_path / "growth.png")]
    found = growth.main(common.parse({"all": growth.Config()}, "", options))
    assert json.loads((tmp_path / "growth.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "growth.png").stat().st_size > 1000
    for curve, places in zip(found["curves"], [[4, 8], [40, 80]], strict=True):
        assert [row["place"] for row in curve["rows"]] == curve["fitted"] == places
        rounds = np.array([row["seconds"]["rounds"] for row in curve["rows"]])
        np.testing.assert_allclose(curve["exponent"]["rounds"], np.log2(rounds[1] / rounds[0]))
    printed = capsys.readouterr().out
    assert all(growth.CURVES[name].what in printed for name in ("likelihood-K", "mig"))


def test_growth_marks_what_grows_faster_than_expected():
    def row(n, power):
        return {"place": n, "seconds": suite.summary([n**power] * 3), "mb": 90 + n**power}

    curve = growth.CURVES["mig"]  # expected: 1
    for power, marked in [(1.1, False), (1.3, True)]:
        fitted = growth.fitted("mig", curve, [row(n, power) for n in (4, 1000, 2000, 4000)])
        assert fitted["fitted"] == [1000, 2000, 4000]
        assert fitted["exponent"]["median"] == pytest.approx(power)
        assert fitted["memory_exponent"] == pytest.approx(power, abs=0.02)
        cells = growth.exponents_table([fitted]).splitlines()[-1].split(" | ")
        assert (cells[2].startswith("**"), cells[5].startswith("**")) == (marked, marked)


def test_memory_of_growth_is_that_of_the_size():
    sizes = replace(growth.CURVES["mig"].sizes[-1], images=30_000)
    numbers = sizes.images * (sizes.latent + len(in_growth.VALUES))
    assert in_growth.build("mig", "growth", sizes).facts["mb"] > 8 * numbers / 1e6
