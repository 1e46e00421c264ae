"""Where arrays lie: a mesh of devices, batches split over it, parameters copied or sharded.

A run on several devices needs only `fit(..., mesh=devices.mesh())`; the compiler inserts the
communication. On several hosts call `jax.distributed.initialize()` first, then do the same.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vaejax.errors import wrong
from vaejax.types import Array, Key, Params, StepOrder

__all__ = [
    "AXIS",
    "check_divides",
    "copied",
    "mesh",
    "placed",
    "put",
    "sharded",
    "split",
    "splitting",
]

AXIS = "data"
"""Name of the axis of a mesh over which batches, members of a population and shards are split."""


def mesh(count: int | None = None) -> Mesh:
    """A mesh of some of the devices.

    Args:
      count: how many, from the first on; by default all, those of other hosts included.
    Returns:
      A mesh with the one axis `AXIS`.
    Raises:
      ValueError: where there are fewer devices.
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
    """The sharding of arrays whose leading axis is split over a mesh's devices.

    Args:
      mesh: D devices, where D divides the axis.
    Returns:
      A sharding under which each device holds `[batch / D, ...]` of an array `[batch, ...]`.
    """
    return NamedSharding(mesh, PartitionSpec(AXIS))


def copied(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays, of any shape, of which each device has a copy.

    Args:
      mesh: the devices.
    Returns:
      A sharding.
    """
    return NamedSharding(mesh, PartitionSpec())


def sharded(params: Params, mesh: Mesh, *, smallest: int = 2**12) -> Params:
    """Parameters with each large array split over the devices, so that each holds a part (FSDP).

    A large array is split along the longest of its axes that the devices divide; others are copied.
    In `fit(..., mesh=mesh)` the optimizer's moments then lie likewise, and the compiler gathers the
    parameters of a layer when it needs them.

    Args:
      params: the parameters.
      mesh: the devices.
      smallest: entries from which on an array counts as large; by default 4096.
    Returns:
      The parameters, laid on the devices.
    References:
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
    """Place arrays on devices, also on those of several processes.

    Args:
      tree: arrays that every process has whole.
      sharding: where they go.
    Returns:
      The tree, placed.
    """
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
    """Place those leaves of a tree on a mesh that do not lie there yet.

    Args:
      tree: arrays.
      mesh: the devices.
    Returns:
      The tree: leaves that lie on the mesh as they are, others copied to each device.
    """

    def place(leaf: Any) -> Any:
        there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(mesh.devices.flat)
        return leaf if there else put(leaf, copied(mesh))

    return jax.tree.map(place, tree)


def splitting(order: StepOrder, mesh: Mesh) -> StepOrder:
    """An order whose batches are split over the devices, and with them all that follows.

    Args:
      order: `order(key, step) -> [batch]`.
      mesh: the devices.
    Returns:
      The same order, its result sharded.
    """

    def indices(key: Key, step: Array) -> Array:
        return jax.lax.with_sharding_constraint(order(key, step), split(mesh))

    return indices


def check_divides(where: str, count: int, mesh: Mesh) -> None:
    """Refuse what cannot be split evenly over the devices.

    Args:
      where: the function and the argument, for the message.
      count: entries of a batch, or members.
      mesh: the devices.
    Raises:
      ValueError: where the devices do not divide the count.
    """
    if count % mesh.size:
        down, up = count // mesh.size * mesh.size, -(-count // mesh.size) * mesh.size
        fix = f"take {up}" + (f" or {down}" if down else "") + ", or another number of devices"
        raise wrong(where, count, f"a multiple of {mesh.size}, the devices", fix)
