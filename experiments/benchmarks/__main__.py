"""The library beside PyTorch, pythae and Flax by hand: five workloads, start-up and memory.

    python -m experiments.benchmarks [--only W1 W4] [--variants vaejax torch_eager] [--rounds N]

Each variant is a process of its own. One runs at a time, while the others sleep. Writes
benchmarks.json and benchmarks.png. Method and figures: experiments/benchmarks/README.md.
"""

import json
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import common
from experiments.benchmarks import processes, report, suite
from experiments.benchmarks.processes import Failed, Worker

PARTS = (*suite.WORKLOADS, "epoch")


@dataclass(frozen=True)
class Config:
    only: tuple[str, ...] = ()  # W1, W2, W2-100, W3, W3-preset, W4, W5, epoch; none: all
    variants: tuple[str, ...] = ()  # those to run beside vaejax; none: all
    rounds: int = 11  # times that the variants are run, in turn
    epoch_rounds: int = 5  # the same for whole processes
    pause: float = 0.3  # seconds before each burst, so that the last one's threads fall asleep
    out: Path | None = None  # folder of the results; by default a new one under runs/
    smoke: bool = False  # shrink everything to seconds, accelerators' variants included


def main(config: Config) -> dict[str, Any]:
    """Measure, print, write and draw; returns what benchmarks.json holds."""
    known = {variant for variants in suite.VARIANTS.values() for variant in variants}
    for option, got, expected in (
        ("--only", config.only, PARTS),
        ("--variants", config.variants, sorted(known)),
    ):
        unknown = set(got) - set(expected)
        if unknown:
            raise SystemExit(f"{option}: got {sorted(unknown)}, expected some of {list(expected)}")
    if config.smoke:
        config = replace(config, rounds=2, epoch_rounds=1, pause=0.0)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(config.out or f"runs/benchmarks-{stamp}").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    began, load = time.perf_counter(), _load()
    machine = _machine(config)
    found: dict[str, Any] = {"config": _plain(config), **machine, "rows": [], "left_out": []}
    for name in config.only or PARTS:
        part = _epoch(config) if name == "epoch" else _workload(config, name, machine)
        for key, values in part.items():
            found[key] = found.get(key, []) + values
        report.print_table(name, part["rows"])
    found["bars"] = report.bars(found["rows"], machine["platform"])
    print()
    for bar in found["bars"]:
        print("{met:8s} {what} {bar}: {value:.2f}".format(**bar))
    for left in found["left_out"]:
        print("left out: {workload} {variant}: {why}".format(**left))
    found |= {"seconds": time.perf_counter() - began, "load": [load, _load()]}
    common.write_json(folder / "benchmarks.json", found)
    report.draw(found["rows"], folder / "benchmarks.png")
    print(f"{folder.resolve() / 'benchmarks.json'}, and benchmarks.png beside it")
    return found


def _machine(config: Config) -> dict[str, Any]:
    """What runs here, and the rate that a matrix product and a copy reach.

    The rate is that of the better library.
    """
    size = ["32"] if config.smoke else []
    here = processes.probe("jax", *size)
    probes = {"jax": here}
    try:
        probes["torch"] = processes.probe("torch", *size)
    except Failed as error:
        print(f"peaks are JAX's alone: {error}")
    formats = ("float32", "bfloat16")
    return {
        **{name: here[name] for name in ("platform", "device", "python", "commit")},
        "versions": here["versions"] | probes.get("torch", here)["versions"],
        "processor": _processor(),
        "cores": os.cpu_count(),
        "precision": "TF32 products of float32" if here["platform"] == "gpu" else "float32",
        "peaks": {library: {k: p[k] for k in ("flops", "bytes")} for library, p in probes.items()},
        "peak_flops": {f: max(p["flops"][f] for p in probes.values()) for f in formats},
        "peak_bytes": max(p["bytes"] for p in probes.values()),
    }


def _workload(config: Config, name: str, machine: dict[str, Any]) -> dict[str, list[Any]]:
    """All variants of one workload, started one after the other, then timed in turn."""
    accelerator = machine["platform"] != "cpu"
    sizes = suite.shrunk(name) if config.smoke else suite.on_platform(name, accelerator)
    workers: dict[str, Worker] = {}
    left_out = []
    try:
        for variant in suite.VARIANTS[name]:
            if config.variants and variant not in ("vaejax", *config.variants):
                continue
            try:
                _refuse(variant, machine["platform"], config.smoke)
                request = {"workload": name, "variant": variant, "sizes": asdict(sizes)}
                start = _twice if variant == "vaejax" else Worker
                workers[variant] = start(request, accelerator=accelerator)
            except Failed as error:
                if variant == "vaejax":
                    raise SystemExit(f"{name}: vaejax does not run: {error}") from error
                left_out.append({"workload": name, "variant": variant, "why": str(error)})
        rates = _in_turn(config, workers)
    finally:
        for worker in workers.values():
            worker.stop()
    rows = [_row(name, variant, sizes, workers[variant], rates, machine) for variant in workers]
    return {"rows": rows, "left_out": left_out, "sizes": [{"workload": name, **asdict(sizes)}]}


def _twice(request: dict[str, Any], *, accelerator: bool) -> Worker:
    """A process that finds its programs compiled, since one before it has compiled them.

    Its facts are those of the first process. The second one's own start with `warm_`.
    """
    with tempfile.TemporaryDirectory() as folder:
        cold = Worker(request, accelerator=accelerator, cache=Path(folder))
        cold.stop()
        warm = Worker(request, accelerator=accelerator, cache=Path(folder))
    names = ("ready_seconds", "rss_anon_peak_mb", "vm_hwm_mb")
    warm.facts = cold.facts | {f"warm_{name}": warm.facts[name] for name in names}
    return warm


def _refuse(variant: str, platform: str, smoke: bool) -> None:
    """Raise Failed, with the reason, where a variant makes no sense on this platform."""
    if variant in suite.GPU_ALONE and platform != "gpu":
        raise Failed("needs a GPU")
    if platform == "cpu" and variant in suite.ACCELERATOR_ONLY and not smoke:
        raise Failed("only on a GPU or TPU")


def _in_turn(config: Config, workers: dict[str, Worker]) -> dict[str, np.ndarray]:
    """Units per second of each worker in every round."""
    rates: dict[str, list[float]] = {variant: [] for variant in workers}
    for i in range(config.rounds + 1):
        for variant, worker in workers.items():
            time.sleep(config.pause)
            others = [w for w in workers.values() if w is not worker]
            before = sum(w.processor_seconds() for w in others)
            answer = worker.burst()
            used = sum(w.processor_seconds() for w in others) - before
            share = max(worker.facts.get("others_processor_share", 0.0), used / answer["seconds"])
            worker.facts |= {"loss": answer["loss"], "others_processor_share": share}
            if i > 0:  # round 0 only warms up
                rates[variant].append(worker.facts["work"] / answer["seconds"])
    return {variant: np.array(rounds) for variant, rounds in rates.items()}


def _row(
    name: str,
    variant: str,
    sizes: suite.Sizes,
    worker: Worker,
    rates: dict[str, np.ndarray],
    machine: dict[str, Any],
) -> dict[str, Any]:
    """The entry of one variant in benchmarks.json: rate, ratio, facts, shares of the peaks."""
    rate = suite.summary(rates[variant])
    row = {
        "workload": name,
        "variant": variant,
        "unit": f"{sizes.unit}/s",
        "rate": rate,
        "ratio": suite.summary(rates["vaejax"] / rates[variant]),
        **worker.facts,
    }
    if row.get("members", 1) > 1:
        row["times_one_model"] = row["members"] * row["ratio"]["median"]
    if name != "W5":
        number = "bfloat16" if variant.endswith("bfloat16") else "float32"
        reached = rate["median"] * suite.flops(sizes, training=name != "W4")
        row |= {"flops": reached, "utilisation": reached / machine["peak_flops"][number]}
    if "parameters" in row:  # Adam reads a gradient, and reads and writes three numbers, for each
        moved = 28 * row["parameters"] * rate["median"] / sizes.batch
        row["bandwidth_share_of_adam"] = moved / machine["peak_bytes"]
    return row


def _epoch(config: Config) -> dict[str, list[Any]]:
    """Whole processes that train an epoch of W1.

    They are vaejax with an empty compilation cache, vaejax with a filled one, and PyTorch.
    """
    sizes = suite.shrunk("W1") if config.smoke else suite.WORKLOADS["W1"]
    seconds: dict[str, list[float]] = {"vaejax_cold": [], "vaejax_warm": [], "torch": []}
    facts: dict[str, Any] = {}
    left_out = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "images.npy")
        np.save(path, suite.levels(sizes))
        for i in range(config.epoch_rounds):
            cache = Path(folder, f"cache{i}")  # an empty one for the cold process of each round
            for name in list(seconds):
                time.sleep(config.pause)
                try:
                    library = name.split("_")[0]
                    took, facts[name] = processes.epoch(library, path, sizes.batch, cache)
                    seconds[name].append(took)
                except Failed as error:
                    if name != "torch":
                        raise SystemExit(f"epoch: {name} does not run: {error}") from error
                    del seconds["torch"]
                    left_out.append({"workload": "epoch", "variant": name, "why": str(error)})
    theirs = seconds.get("torch")
    rows = [
        {
            "workload": "epoch",
            "variant": name,
            "unit": "s",
            "rate": suite.summary(np.array(s)),
            "ratio": suite.summary(np.array(s) / np.array(theirs or s)),
            **facts[name],
            "against": "torch" if theirs else name,
        }
        for name, s in seconds.items()
    ]
    return {"rows": rows, "left_out": left_out}


def _plain(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config), default=str))


def _processor() -> str:
    """The name of the CPU, as Linux gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _load() -> float | None:
    """How many programs ran or waited in the last minute, this one included; None if unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    main(common.parse({"all": Config()}, __doc__ or ""))
