"""The folder of one training run, and what is written into it."""

import contextlib
import hashlib
import inspect
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fluvial.conditions import leaves
from fluvial.files import write_atomic
from fluvial.objectives.objective import Objective
from fluvial.training.history import Row, append_row, rewrite_rows

if TYPE_CHECKING:
    from fluvial.data import Dataset
    from fluvial.training.joint_rows import JointRows

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

FORMAT = 1
HASHED_ROWS = 1000
BUDGET = ("max_steps", "max_epochs", "max_time")

_NAMES = ("checkpoint.pt", "history.jsonl", "model.safetensors")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep the folder of a run for this process while it trains, so that no two runs mix their files.

    The folder itself carries the lock, no file in it, and the system takes the lock back however the process ends. Where the system or the
    file system knows no such locks, nothing is locked.

    Args:
        path: The folder; it is made if it is not there.

    Raises:
        ValueError: If another run has it.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"fit: directory {path} is a file; give the path of a folder")
    path.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"fit: another fit is running in {path}; wait for it, or take another folder") from None
        except OSError:  # on a file system without locks
            yield
            return
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # for child processes too, which hold the folder open as long as they live
    finally:
        os.close(descriptor)


class Folder:
    """checkpoint.pt (to go on from), history.jsonl (one line per validation) and model.safetensors (the best so far).

    Every file is whole at every moment: a process that is killed, or a disk that is full, leaves the previous one.

    Args:
        path: The folder; it is made if it is not there.
        model: Whether the flow can be written down, so that model.safetensors is written.

    Raises:
        ValueError: If the path is not a folder.
    """

    def __init__(self, path: Path, *, model: bool) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"fit: directory {path} is a file; give the path of a folder")
        path.mkdir(parents=True, exist_ok=True)
        # What a process that was killed in the middle of writing could not remove itself.
        for name in _NAMES:
            for part in path.glob(f".{name}.*.part"):
                part.unlink(missing_ok=True)
        self.checkpoint = path / "checkpoint.pt"
        self.history = path / "history.jsonl"
        self.model = path / "model.safetensors" if model else None

    def clear(self) -> None:
        """Remove what an earlier run left, so that nothing of it is ever taken for this one's."""
        for name in _NAMES:
            self.checkpoint.with_name(name).unlink(missing_ok=True)

    def read(self) -> dict[str, Any] | None:
        """The checkpoint, or None where there is none.

        Raises:
            ValueError: If the file is not a whole checkpoint of this library.
        """
        if not self.checkpoint.exists():
            return None
        mend = "remove it, or start afresh with resume=False"
        with open(self.checkpoint, "rb") as file:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:
                raise ValueError(f"fit: {self.checkpoint} is not a whole checkpoint ({type(error).__name__}); {mend}") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            found = state.get("format") if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"fit: {self.checkpoint} has format {found}, this version reads {FORMAT}; {mend}")
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        write_atomic(self.checkpoint, lambda file: torch.save({"format": FORMAT, **state}, file))

    def append(self, row: Row) -> None:
        """Add a row to the history."""
        append_row(self.history, row)

    def rewrite(self, rows: list[Row]) -> None:
        """Cut the history back to what a checkpoint knows."""
        rewrite_rows(self.history, rows)

    def write_model(self, flow: nn.Module) -> None:
        """Replace the model file, where the flow can be written down."""
        if self.model is not None:
            from fluvial.io import save

            save(flow, self.model)


def fingerprint(
    flow: nn.Module, objective: Objective, train: "Dataset | JointRows | None", held_out: "Dataset | JointRows | None", settings: dict[str, Any]
) -> dict[str, Any]:
    """What must be the same for training to continue as if it had never stopped."""
    return {
        **settings,
        "flow": _configuration(flow),
        "objective": _configuration(objective),
        "training rows": _digest(train),
        "validation rows": _digest(held_out),
    }


def compare(then: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Refuse to continue another run; another budget is allowed, with a warning.

    Raises:
        ValueError: Naming the first thing that differs, then and now.
    """
    differing = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    for name in differing:
        if name not in BUDGET:
            raise ValueError(
                f"fit: cannot resume {path}: {name} was {_short(then.get(name))} and is {_short(now.get(name))} now; "
                "use the same again, or resume=False to start afresh"
            )
    if differing:
        changes = ", ".join(f"{name} {then.get(name)} → {now.get(name)}" for name in differing)
        warnings.warn(f"fit: resuming with another budget ({changes}): the learning rate follows the new one from here on", stacklevel=4)


def _digest(data: "Dataset | JointRows | None") -> str | None:
    """Shapes, and a hash of the first rows."""
    if data is None:
        return None
    digest = hashlib.sha256()
    tensors: dict[str, Tensor] = {f"x {name}": leaf for name, leaf in leaves(data.x).items()}
    tensors |= {f"c {name}": leaf for name, leaf in leaves(data.c).items()}
    tensors |= {} if data.weight is None else {"weight": data.weight}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor[:HASHED_ROWS].contiguous().cpu().numpy().tobytes())
    return f"{len(data)} rows with hash {digest.hexdigest()[:16]}"


def _configuration(module: nn.Module) -> str:
    """A hash of the classes, of the constructor arguments kept as plain attributes, and of the shapes of the weights."""
    described: list[Any] = []
    for name, part in module.named_modules():
        # Where a class was defined does not count: a script may be resumed from a notebook.
        arguments = {key: vars(part)[key] for key in inspect.signature(type(part).__init__).parameters if key in vars(part)}
        described.append((name, type(part).__qualname__, {key: repr(value) for key, value in arguments.items() if _is_plain(value)}))
    shapes = [(name, tuple(value.shape)) for name, value in module.state_dict().items() if isinstance(value, Tensor)]
    return f"{type(module).__name__} {hashlib.sha256(repr((described, shapes)).encode()).hexdigest()[:16]}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return value is None or isinstance(value, bool | int | float | str)


def _short(value: Any) -> str:
    return "absent" if value is None else str(value)
