"""Training: one step, a scan of steps, and `fit`, the loop with checkpoints and exact resume."""

from vaejax.train import checkpoint, devices, memory, population, precision
from vaejax.train._averaging import Averaging, average, averaging
from vaejax.train._faults import NonFiniteError
from vaejax.train._fit import fit
from vaejax.train._loop import Fitted, Interrupted, Terminated
from vaejax.train._order import permute, shuffled
from vaejax.train._state import TrainState
from vaejax.train._step import gradient, key_for, make_scan, make_step, make_train, skipping, update
from vaejax.types import StepOrder

__all__ = [
    "Averaging",
    "Fitted",
    "Interrupted",
    "NonFiniteError",
    "StepOrder",
    "Terminated",
    "TrainState",
    "average",
    "averaging",
    "checkpoint",
    "devices",
    "fit",
    "gradient",
    "key_for",
    "make_scan",
    "make_step",
    "make_train",
    "memory",
    "permute",
    "population",
    "precision",
    "shuffled",
    "skipping",
    "update",
]
