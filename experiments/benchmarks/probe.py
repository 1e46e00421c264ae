"""What the machine can do: matrix products and copies by one library, in a process of its own.

    python -m experiments.benchmarks.probe jax|torch [SIZE]

Prints one line of JSON: the operations per second of the product of two SIZE x SIZE matrices in
each number format, the bytes per second of reading and writing a large array, and what runs here.
On a GPU products of float32 are in TF32, as in the benchmark.
"""

import json
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any


def by_jax(size: int | None) -> dict[str, Any]:
    """The numbers by XLA."""
    import jax
    import jax.numpy as jnp

    from experiments import common

    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    if jax.default_backend() == "gpu":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")

    @jax.jit
    def chain(a: Any, b: Any) -> Any:  # ten products, so that no launch counts
        return jax.lax.fori_loop(0, 10, lambda _, a: (a @ b).astype(a.dtype), a)

    def product(dtype: Any) -> float:
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        b = jnp.eye(size, dtype=dtype)
        return 10 * 2 * size**3 / best(lambda: chain(a, b).block_until_ready())

    add = jax.jit(lambda x: x + 1)
    x = jnp.zeros(16 * size**2)
    flops = {"float32": product(jnp.float32), "bfloat16": product(jnp.bfloat16)}
    moved = 2 * x.nbytes / best(lambda: add(x).block_until_ready())
    return {"flops": flops, "bytes": moved, **common.circumstances()}


def by_torch(size: int | None) -> dict[str, Any]:
    """The numbers by PyTorch."""
    import torch

    from experiments.benchmarks.in_torch import DEVICE

    size = size or (1024 if DEVICE.type == "cpu" else 8192)

    def waited(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            function()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        return run

    def product(dtype: Any) -> float:
        a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))

        def chain() -> None:
            for _ in range(10):
                torch.matmul(a, b)

        return 10 * 2 * size**3 / best(waited(chain))

    x = torch.zeros(16 * size**2, device=DEVICE)
    y = torch.zeros_like(x)
    flops = {"float32": product(torch.float32), "bfloat16": product(torch.bfloat16)}
    moved = 2 * x.nbytes / best(waited(lambda: torch.add(x, 1, out=y)))
    versions = {"torch": torch.__version__}
    return {
        "flops": flops,
        "bytes": moved,
        "versions": versions,
        "threads": torch.get_num_threads(),
    }


def best(function: Callable[[], Any], repeats: int = 5) -> float:
    """The shortest of a few runs after one that warms up, seconds."""
    seconds = []
    for _ in range(repeats + 1):
        began = perf_counter()
        function()
        seconds.append(perf_counter() - began)
    return min(seconds[1:])


if __name__ == "__main__":
    library, *sizes = sys.argv[1:]
    measure = {"jax": by_jax, "torch": by_torch}[library]
    print(json.dumps(measure(int(sizes[0]) if sizes else None)))
