"""The arguments of `population.fit`, checked before anything is computed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.batch import size_of
from vaejax.errors import at_least_one, is_key, takes, wrong
from vaejax.train import _callbacks as callbacks
from vaejax.types import Key, Params, describe


def check_functions(make: Any, transform: Any, evaluate: Any, log: Any, log_step: Any) -> None:
    """Raise TypeError unless these are functions of the right arguments."""
    fix = (
        "for instance lambda hyper: (objectives.elbo(model, beta=hyper['beta']), optax.adam(1e-3))"
    )
    takes("population.fit: make", make, "hyper", fix)
    callbacks.check_transform_and_logs("population.fit", transform, log, log_step)
    if evaluate is not None:
        fix = "for instance population.mean_loss(make, data)"
        takes("population.fit: evaluate", evaluate, "hyper, params, key", fix)


def members_of(hyper: Any, params: Params, keys: Key) -> int:
    """How many members there are, which all arguments have to agree on."""
    if not is_key(keys):
        fix = "make them: jax.random.split(jax.random.key(0), members)"
        raise wrong("population.fit: keys", describe(keys), "an array of keys", fix, TypeError)
    members = size_of(jax.random.key_data(keys)) if jnp.ndim(keys) else 0
    at_least_one("population.fit", keys=members)
    if (kind := str(jax.random.key_impl(keys))) != "threefry2x32":
        # Mapped over, the others draw other numbers for a member than for its run alone.
        fix = 'make them by jax.random.key(seed, impl="threefry2x32")'
        raise wrong("population.fit: keys", f"{kind} keys", "threefry2x32 keys", fix)
    for name, tree in (("hyper", hyper), ("params", params)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if np.shape(leaf)[:1] != (members,):
                where = f"population.fit: {name}{jax.tree_util.keystr(path)}"
                expected = f"a leading axis of {members}, the keys"
                fix = (
                    "make it with jax.vmap(model.init, (0, None))(keys, x)"
                    if name == "params"
                    else "give one value for each member: population.grid"
                )
                raise wrong(where, f"shape {np.shape(leaf)}", expected, fix)
    return members
