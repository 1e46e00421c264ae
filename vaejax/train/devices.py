"""Where arrays lie: a mesh of devices, batches split over it, parameters copied or sharded.

`fit(..., mesh=devices.mesh())` is all that a run on several devices needs; the compiler inserts the
communication. Several hosts: `jax.distributed.initialize()` first, then the same.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vaejax.errors import wrong
from vaejax.types import Array, Key, Params, StepOrder

AXIS = "data"
"""Name of the axis of a mesh over which batches, members of a population and shards are split."""


def mesh(count: int | None = None) -> Mesh:
    """A mesh of the first `count` devices, by default of all (those of other hosts included).

    Raises ValueError where there are fewer.
    """
    there = jax.devices()
    count = len(there) if count is None else count
    if not 1 <= count <= len(there):
        flag = "XLA_FLAGS=--xla_force_host_platform_device_count=8"
        fix = f"ask for fewer; a CPU counts as one, or as 8 under {flag}"
        raise wrong("devices.mesh: count", count, f"1 to {len(there)}, the devices", fix)
    # By default make_mesh gives explicit axes, under which each operation has to say its sharding.
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=there[:count])


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose leading axis, `[batch, ...]`, is split over a mesh's devices.

    Each of D devices then holds `[batch / D, ...]`; D has to divide the axis.
    """
    return NamedSharding(mesh, PartitionSpec(AXIS))


def copied(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays, of any shape, of which each device of a mesh has a copy."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(params: Params, mesh: Mesh, *, smallest: int = 2**12) -> Params:
    """Parameters with each large array split over the devices, so that each holds a part (FSDP).

    An array of at least `smallest` entries is split along its longest axis that the devices divide;
    others are copied. Given to `fit(..., mesh=mesh)`, the optimizer's moments lie likewise, and the
    compiler gathers what a layer needs when it needs it.
    Zhao et al., 2023, arXiv:2304.11277.
    """

    def place(leaf: Any) -> Any:
        axes = [i for i, size in enumerate(np.shape(leaf)) if size % mesh.size == 0]
        if np.size(leaf) < smallest or not axes:
            return put(leaf, copied(mesh))
        longest = max(axes, key=lambda i: np.shape(leaf)[i])
        spec = [AXIS if i == longest else None for i in range(np.ndim(leaf))]
        return put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(place, params)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has whole, placed by a sharding, also over several processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = place(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree)


def placed(tree: Any, mesh: Mesh) -> Any:
    """A tree of which every leaf lies on the mesh: as it is where it does already, else copied."""

    def place(leaf: Any) -> Any:
        there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(mesh.devices.flat)
        return leaf if there else put(leaf, copied(mesh))

    return jax.tree.map(place, tree)


def splitting(order: StepOrder, mesh: Mesh) -> StepOrder:
    """An order whose batches are split over the devices: what follows from them is, too."""

    def indices(key: Key, step: Array) -> Array:
        return jax.lax.with_sharding_constraint(order(key, step), split(mesh))

    return indices


def check_divides(where: str, count: int, mesh: Mesh) -> None:
    """Raise ValueError unless `count` batch entries or members divide over the mesh's devices."""
    if count % mesh.size:
        down, up = count // mesh.size * mesh.size, -(-count // mesh.size) * mesh.size
        fix = f"take {up}" + (f" or {down}" if down else "") + ", or another number of devices"
        raise wrong(where, count, f"a multiple of {mesh.size}, the devices", fix)
