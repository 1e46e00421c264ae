"""The state of a training run."""

from typing import Any, NamedTuple

from vaejax.types import Array, Params, describe_fields


@describe_fields
class TrainState(NamedTuple):
    """All that a run is, between two of its steps.

    Args:
      params: the parameters.
      opt_state: the optimizer's state.
      key: the run's key, from which and from `step` every random number comes.
      step: the number of steps done, int32 `()`.
    """

    params: Params
    opt_state: Any
    key: Any
    step: Array
