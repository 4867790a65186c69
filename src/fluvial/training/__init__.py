"""Training: one function, and the record it leaves."""

from fluvial.training.fit import fit
from fluvial.training.history import History

__all__ = ["History", "fit"]
