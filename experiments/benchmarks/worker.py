"""The process of one variant, which its parent tells what to do.

    python -m experiments.benchmarks.worker < ONE LINE OF JSON PER REQUEST

The first request is `{"workload", "variant", "sizes"}`: the process makes the variant ready. Each
further request is `{}`: it runs a burst. Answers are lines of JSON. Between bursts the process
waits in a read and uses no processor.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

from experiments.benchmarks.memory import megabytes, peak_memory
from experiments.benchmarks.suite import INSTALL, Sizes


def main() -> None:
    """Serve until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    request = json.loads(sys.stdin.readline())
    with peak_memory() as peak:
        began = perf_counter()
        try:
            module = importlib.import_module(module_of(request["variant"]))
            imported = perf_counter() - began
            sizes = Sizes(**request["sizes"])
            burst = module.build(request["workload"], request["variant"], sizes)
            first = _timed(burst.run)
        except ImportError as error:
            missing = error.name or ""
            install = INSTALL.get(missing) or INSTALL.get(missing.split(".")[0], "")
            return answer({"left_out": f"{error}" + (f"; install: {install}" if install else "")})
        except Exception as error:  # such as of torch.compile: the parent says it and goes on
            lines = [line for line in str(error).splitlines() if line.strip()]
            return answer({"left_out": f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"})
        facts = {
            **burst.facts,
            "import_seconds": imported,
            "work": burst.work,
            "first_burst_seconds": first["seconds"],
            "rss_anon_peak_mb": peak(),
            "vm_hwm_mb": megabytes("VmHWM"),
            "device_peak_mb": device_peak(),
        }
    answer(facts)
    for _ in sys.stdin:
        answer(_timed(burst.run))


def module_of(variant: str) -> str:
    """The module of a variant: that of `torch_eager` is in_torch.py."""
    return f"experiments.benchmarks.in_{variant.split('_')[0]}"


def device_peak() -> float | None:
    """The most memory that was taken on an accelerator, MB, as this process's library counts it.

    None where there is no accelerator, or where the library does not count.
    """
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
    if "jax" in sys.modules:
        stats = sys.modules["jax"].devices()[0].memory_stats() or {}
        return stats["peak_bytes_in_use"] / 1e6 if "peak_bytes_in_use" in stats else None
    return None


def _timed(run: Callable[[], float]) -> dict[str, float]:
    began = perf_counter()
    loss = run()
    return {"seconds": perf_counter() - began, "loss": loss}


if __name__ == "__main__":
    main()
