"""A layerwise fit from its first layer to its best one."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fluvial.config import build, describe
from fluvial.data import DataSpec
from fluvial.flow import Flow
from fluvial.gaussianization.first_look import FirstLook
from fluvial.gaussianization.layers import LayerwiseFit
from fluvial.metrics.estimate import Estimate
from fluvial.training.checkpoint import Folder, compare, locked
from fluvial.training.history import History, Row
from fluvial.training.interruption import Interruption
from fluvial.training.progress import display

_AGREE = 5e-3  # of NLLs of the same rows under the same layers, on whatever machine or device
_FREE = ("max_layers", "patience", "min_gain")  # may be others when a fit is resumed


class Course:
    """When to stop, what to write, and what to show.

    Args:
        fitting: Whose layers are added.
        spec: Of the data.
        directory: Folder for checkpoint.pt, history.jsonl and model.safetensors, or None.
        look: At the rows, by which a resumed fit knows its data.
        on_layer: Called with every row.

    Attributes:
        best: Number of layers with the least NLL of rows held out, or in all where none are.
        stopped: Why it ended.
    """

    def __init__(
        self, fitting: LayerwiseFit, spec: DataSpec, directory: Path | None, look: FirstLook, on_layer: Callable[[Row], None] | None
    ) -> None:
        self.fitting = fitting
        self.spec = spec
        self.directory = directory
        self.look = look
        self.on_layer = on_layer
        self.best = 0
        self.stopped = ""
        self._folder: Folder | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the folder for this fit; only the process that leads writes."""
        with contextlib.ExitStack() as held:

            def enter() -> None:
                if self.directory is not None and self.fitting.workers.leads:
                    held.enter_context(locked(self.directory))
                    self._folder = Folder(self.directory, model=True)

            self.fitting.workers.jointly(enter)
            yield

    def run(self, *, resume: bool, shown: bool, interrupted: bool = False) -> Flow:
        """Add layers until rows held out gain no more, and give the flow of the best ones.

        Args:
            resume: Go on from the last layer in the folder.
            shown: Whether to show progress.
            interrupted: What was to be done before the first layer was interrupted: no layer is added then, and the folder is left as it is.
        """
        settings, fitting = self.fitting.settings, self.fitting
        begun = time.perf_counter()
        if interrupted:
            fitting.begin()
            self.stopped = "interrupted"
            if shown:
                kept = "" if self.directory is None else f"; what is in {self.directory} stays"
                print(f"0 layers (interrupted while the flow of the condition was fitted){kept}")  # noqa: T201
            return self._flow()
        self._replay(resume=resume)
        screen = display(shown, 0.0, layer_line)
        with Interruption() as interruption:
            try:
                while not self._ended(interruption):
                    fitting.add_layer()
                    row = fitting.history[-1]
                    if self._improves(row):
                        self.best = fitting.layers
                    fitting.workers.jointly(lambda: self._note(fitting.history[-1]))
                    figures = {name: row[name] for name in ("nll", "nll_error") if name in row}
                    best = {"monitor": fitting.history[self.best].get("nll", row["train_nll"]), "step": self.best}
                    screen.update(fitting.layers, min(fitting.layers / settings.max_layers, 1.0), row["train_nll"], figures, best)
            finally:
                screen.close()
        if shown:
            print(f"{self.best} layers ({self.stopped}), {time.perf_counter() - begun:.1f} s")  # noqa: T201
        return self._flow()

    @property
    def history(self) -> History:
        """All layers so far, why there are no more, and the best of them."""
        rows = self.fitting.history
        best = rows[self.best]
        return History(rows[1:], self.stopped, {**best, "monitor": best.get("nll", best.get("train_nll"))})

    def _ended(self, interruption: Interruption) -> bool:
        settings, layers = self.fitting.settings, self.fitting.layers
        # All processes of a group must come to the same decision.
        if any(self.fitting.workers.jointly(lambda: interruption.requested)):
            self.stopped = "interrupted"
        elif layers >= settings.max_layers:
            self.stopped = "max_layers"
        elif self._watches and layers - self.best >= settings.patience:
            self.stopped = f"patience: no gain in {settings.patience} layers"
        return bool(self.stopped)

    @property
    def _watches(self) -> bool:
        return "nll" in self.fitting.history[0]

    def _improves(self, row: Row) -> bool:
        return not self._watches or row["nll"] < self.fitting.history[self.best]["nll"] - self.fitting.settings.min_gain

    def _flow(self) -> Flow:
        flow = self.fitting.flow(self.best)
        flow.spec = self.spec
        return flow.float().eval()

    @functools.cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a fit to go on to the same bits."""
        plan = self.fitting.plan
        settings = {name: value for name, value in dataclasses.asdict(self.fitting.settings).items() if name not in _FREE}
        return {
            **settings,
            "alpha": list(self.fitting.settings.alpha),
            "rows": plan.source.rows,
            "features": plan.source.features,
            "extremes of the data": self.look.extent,
            "digest of the data": self.look.digest,
            "training rows": plan.train_rows,
            "held out": plan.held_out,
            "dither": None if self.spec.dequantize is None else list(self.spec.dequantize),
            # Of bounds and of weights these tell too.
            "first maps": [describe(self.fitting.codecs[0][0]), [value.tolist() for value in self.fitting.codecs[0][0].state_dict().values()]],
        }

    def _note(self, row: Row) -> None:
        self._write(row)
        if self.on_layer is not None:
            self.on_layer(row)

    def _write(self, row: Row) -> None:
        if self._folder is None:
            return
        flow = self.fitting.flow()
        state = {
            "gaussianization": self._fingerprint,
            "layers": [len(layer) for layer in self.fitting.codecs],
            "config": describe(flow),
            "state": flow.state_dict(),
            "history": self.fitting.history,
        }
        self._folder.write(state)
        self._folder.append(row)
        if self.best == self.fitting.layers:
            self._folder.write_model(self._flow())

    def _replay(self, *, resume: bool) -> None:
        """The layers of an interrupted fit, if it is to be gone on with, or a first look at the rows."""
        state = self.fitting.workers.jointly(lambda: self._found(resume=resume))[0]
        if state is None:
            self.fitting.begin()
            return
        path = self.directory or Path()
        if "gaussianization" not in state:
            raise ValueError(f"fit: {path / 'checkpoint.pt'} is not of a layerwise fit; use resume=False to start afresh")
        compare(state["gaussianization"], self._fingerprint, path)
        grouped = _layers_of(state, path)
        self.fitting.codecs = grouped[:1]
        self.fitting.begin()
        for layer in grouped[1:]:
            self.fitting.replay(layer)
        for now, then in zip(self.fitting.history, state["history"]):
            if not abs(now["train_nll"] - then["train_nll"]) <= _AGREE * (1 + abs(then["train_nll"])):
                raise ValueError(
                    f"fit: {path / 'checkpoint.pt'} is damaged: after layer {now['layer']} the NLL of the training rows is {now['train_nll']:.6g}, "
                    f"where it was {then['train_nll']:.6g}; use resume=False to start afresh"
                )
        # The seconds and names are those of the first time.
        self.fitting.history = state["history"]
        for row in state["history"][1:]:
            if self._improves(row):
                self.best = row["layer"]
        self.fitting.workers.jointly(lambda: self._folder and self._folder.rewrite(state["history"][1:]))

    def _found(self, *, resume: bool) -> dict[str, Any] | None:
        """The checkpoint, where there is one to go on from; otherwise an empty folder."""
        if self._folder is None:
            return None
        state = self._folder.read() if resume else None
        if state is None:
            self._folder.clear()
        return state


def _layers_of(state: dict[str, Any], path: Path) -> list[list[Any]]:
    """The codecs of a checkpoint, layer by layer.

    Raises:
        ValueError: If they are not all there.
    """
    try:
        flow = build(state["config"])
        flow.load_state_dict(state["state"])
        parts = list(flow.codec.parts)
        sizes, history = state["layers"], state["history"]
        if sum(sizes) != len(parts) or len(history) != len(sizes) or not all(math.isfinite(row["train_nll"]) for row in history):
            raise ValueError(f"{len(parts)} parts and {len(history)} rows for layers of {sizes}")
        found = iter(parts)
        return [[next(found) for _ in range(size)] for size in sizes]
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"fit: {path / 'checkpoint.pt'} is not a whole checkpoint ({reason}); use resume=False to start afresh") from None


def layer_line(layer: int, train_nll: float, figures: dict[str, float], best: dict[str, Any] | None) -> str:
    """Layer, NLL of rows held out with its error, or of the training rows where none are, and the best of them so far.

    Example:
        >>> layer_line(20, 1.18, {"nll": 1.1923, "nll_error": 0.0151}, {"monitor": 1.187, "step": 18})
        'layer 20 · nll 1.192 ± 0.015 · best 1.187 at 18'
    """
    if "nll" not in figures:
        return f"layer {layer} · train nll {train_nll:.4g}"
    parts = [f"layer {layer}", f"nll {Estimate(figures['nll'], figures.get('nll_error', math.nan))}"]
    return " · ".join(parts + ([] if best is None else [f"best {best['monitor']:.4g} at {best['step']}"]))
