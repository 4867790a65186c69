"""What the caller of fit asked for, checked once."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from fluvial.training.schedule import Schedule

Precision = Literal["32", "64", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of a training run; their meaning is that of `fluvial.fit`'s arguments."""

    max_epochs: float | None
    max_steps: int | None
    max_time: float | None
    batch_size: int
    learning_rate: float
    weight_decay: float
    clip: float | None
    warmup: int
    schedule: Schedule
    seed: int
    precision: Precision
    patience: float | None
    validate_every: int | None
    validation_points: int
    checkpoint_every: float
    compile: bool

    def __post_init__(self) -> None:
        for name in ("batch_size", "validation_points"):
            _whole(name, getattr(self, name), 1)
        for name in ("max_steps", "validate_every"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        _whole("warmup", self.warmup, 0)
        _whole("seed", self.seed, 0)
        _real("learning_rate", self.learning_rate)
        for name in ("max_epochs", "max_time", "clip"):
            if getattr(self, name) is not None:
                _real(name, getattr(self, name))
        if self.patience is not None:
            _real("patience", self.patience, infinite=True)
        _real("weight_decay", self.weight_decay, zero=True)
        _real("checkpoint_every", self.checkpoint_every, zero=True, infinite=True)
        _one_of("schedule", self.schedule, get_args(Schedule))
        if self.precision == "16":
            raise ValueError("fit: precision '16' has no range for densities; use 'bf16' for speed, or '32'")
        _one_of("precision", self.precision, get_args(Precision))

    @property
    def dtype(self) -> torch.dtype:
        """The number format of weights and data; bf16 concerns the networks' arithmetic only."""
        return torch.float64 if self.precision == "64" else torch.float32


def training_device(device: str | torch.device, precision: str) -> torch.device:
    """The device that is meant: "auto" takes a CUDA card, else Apple's MPS where single precision is enough, else the processor.

    Raises:
        ValueError: If there is no such device here, or it cannot compute in this precision.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps") if torch.backends.mps.is_available() and precision == "32" else torch.device("cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"fit: device must be 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', got {device!r}") from None
    if found.type == "cuda":
        count = torch.cuda.device_count()
        index = found.index if found.index is not None else 0
        if index >= count:
            raise ValueError(f"fit: device {device!r} does not exist: torch {torch.__version__} sees {count} CUDA cards here; use device='cpu'")
        return torch.device("cuda", index)
    if found.type == "mps" and (not torch.backends.mps.is_available() or precision == "64"):
        raise ValueError(f"fit: device 'mps' is not available in precision {precision!r} here; use device='cpu'")
    if found.type not in ("cpu", "mps"):
        raise ValueError(f"fit: device must be 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', got {device!r}")
    return found


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"fit: {name} must be a whole number of at least {least}, got {value!r}")


def _real(name: str, value: Any, *, zero: bool = False, infinite: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and (value >= 0 if zero else value > 0)
    if not good or (math.isinf(value) and not infinite):
        raise ValueError(f"fit: {name} must be a {'non-negative' if zero else 'positive'} number, got {value!r}")


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"fit: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
