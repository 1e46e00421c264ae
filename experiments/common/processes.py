"""The processes and devices of a run. All of them train and measure; the first alone writes."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vaejax.arrays import on_host
from vaejax.errors import wrong
from vaejax.train import devices

__all__ = ["first", "joined", "local", "mesh"]


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """This process as one of the run's, of which the first alone prints; before any JAX call.

    JAX finds Slurm, MPI, Kubernetes and TPU pods itself; elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who. Raises ValueError where nothing does.
    """
    # JAX reads the first of the three itself. CPUs talk over gloo, which is its default.
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if index is None else int(index),
        )
    except ValueError as error:
        raise wrong(
            "--distributed",
            f"no cluster ({error})",
            "Slurm, MPI, a TPU pod or the like",
            "or set JAX_COORDINATOR_ADDRESS=HOST:PORT JAX_NUM_PROCESSES=N JAX_PROCESS_ID=I, "
            "with I = 0 to N - 1, for each process",
        ) from error
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if not first():
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def mesh(count: int | None) -> Mesh | None:
    """The devices of a run: `count` of them, all of several processes, or None for one."""
    several, there = jax.process_count() > 1, jax.device_count()
    if several and count not in (None, there):
        fix = "leave it out, or start fewer processes"
        raise wrong("--devices", count, f"{there}, all that the processes have", fix)
    return devices.mesh(count) if several or count is not None else None


def local(tree: Any) -> Any:
    """Arrays of a mesh whole on one device of this process; every process has to take part."""
    return jax.tree.map(jnp.asarray, on_host(tree))
