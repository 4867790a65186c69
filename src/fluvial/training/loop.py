"""Training itself: one optimisation step, and what is due after it."""

import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.objectives.objective import Batch, Objective, Progress
from fluvial.training.batches import Batches
from fluvial.training.checkpoint import Folder
from fluvial.training.guard import ROLLBACKS, Guard
from fluvial.training.interruption import Interruption
from fluvial.training.optimizers import make_optimizers
from fluvial.training.progress import Display, Silent, display
from fluvial.training.schedule import Budget, Rhythm, Validated, learning_rate_factor
from fluvial.training.settings import Settings
from fluvial.training.states import capture, clone, random_state, restore, set_random_state, swapped_in
from fluvial.training.validation import Validation, make_row

READ_EVERY = 10
GOOD_EVERY = 500
# Without a patience of your own: this share of the budget without improvement, and at least so many validations.
PATIENT_SHARE = 0.3
PATIENT_VALIDATIONS = 10


class Loop:
    """The state of a training run. Whoever drives it calls `begin` once, then `step` with every batch until that says no.

    Args:
        flow: What is trained, on the training device.
        objective: What is minimised, prepared.
        batches: Where batches come from.
        validation: Held-out rows.
        settings: What was asked for.
        budget: When it is over.
        folder: Where to keep checkpoints, or None.
        fingerprint: What a checkpoint must agree with to be continued.
        generator: The objective's source of randomness.
        interruption: Whether the user wants to stop.
        n_train: Rows of the training split.
        shown: Whether progress is shown.
        resumed: A checkpoint to go on from.
    """

    def __init__(
        self,
        flow: nn.Module,
        objective: Objective,
        *,
        batches: Batches,
        validation: Validation,
        settings: Settings,
        budget: Budget,
        folder: Folder | None,
        fingerprint: dict[str, Any],
        generator: torch.Generator,
        interruption: Interruption,
        n_train: int,
        shown: bool,
        resumed: dict[str, Any] | None,
    ) -> None:
        self.flow, self.objective, self.batches, self.validation = flow, objective, batches, validation
        self.settings, self.budget, self.folder, self.fingerprint = settings, budget, folder, fingerprint
        self.interruption = interruption
        self.display: Display = Silent()
        self._shown = shown
        self.rhythm = Rhythm.of(budget, settings.validate_every)
        self.warmup = settings.warmup if budget.steps is None else min(settings.warmup, budget.steps // 10)
        self.progress = Progress(n_train=n_train, generator=generator)
        self.optimizers = make_optimizers(objective, flow, settings)
        self.guard = Guard()
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.stopped: str | None = None
        self.disk_error: OSError | None = None
        self._good: dict[str, Any] = {}
        self._good_step = 0
        self._scale = self._factor = 1.0
        self._loss = math.nan
        self._adapted: dict[str, float] = {}
        self._figures: dict[str, float] = {}
        self._last = Validated()
        self._since_best = 0
        self._best_on_disk: int | None = None
        self._clock = time.perf_counter()
        self._earlier = 0.0
        self._checkpointed = 0.0
        self._resumed = resumed
        self._forward = torch.compile(objective) if settings.compile else objective
        self._compile_trial = settings.compile
        self._device = generator.device
        if resumed is not None:
            self._adopt(resumed)

    # ------------------------------------------------------------------------------------------------------------------ driving

    @property
    def seconds(self) -> float:
        """Time spent in training, earlier runs included."""
        return self._earlier + time.perf_counter() - self._clock

    def begin(self) -> None:
        """Start the clock. A resumed run takes up its random streams here, as late as possible."""
        self.interruption.arm()
        self.display = display(self._shown, self.progress.fraction)
        self.flow.train()
        self.objective.train()
        self._clock = time.perf_counter()
        self._checkpointed = self.seconds
        if self._resumed is None:
            self._keep_good()
        else:
            set_random_state(self._resumed["random"], self._device)
            self._resumed = None

    def step(self, batch: Batch) -> bool:
        """One optimisation step and whatever is due after it; False once training is over."""
        try:
            self._optimize(batch)
            self._housekeeping()
        except KeyboardInterrupt:
            # A second Ctrl-C while the first is being obeyed means now.
            if self.interruption.requested:
                raise
            self.stopped = "interrupted"
        return self.stopped is None

    def close(self) -> None:
        """Whatever happened: the display ends, and the flow has the best weights."""
        self.display.close()
        if self.best is not None:
            restore(self.best, self.flow, self.objective)

    def finish(self) -> None:
        """After the last step: a last look, and the last checkpoint."""
        finished = self.stopped is not None and not self.stopped.startswith(("interrupted", "non-finite"))
        if finished and self._last.step != self.progress.step and self.disk_error is None:
            self._validate()
        if math.isnan(self._loss):
            self._loss = self.guard.pending_mean("loss")
        self._show()
        if self.folder is not None and self.disk_error is None:
            self._save()

    # --------------------------------------------------------------------------------------------------------------------- step

    def _optimize(self, batch: Batch) -> None:
        progress = self.progress
        self._factor = self._scale * learning_rate_factor(self.settings.schedule, progress.fraction, progress.step, self.warmup)
        terms = self._gradients(batch)
        norms = [optimizer.norm() for optimizer in self.optimizers]
        skip = self.guard.observe(terms, norms)
        for k, optimizer in enumerate(self.optimizers):
            optimizer.step(norms[k], skip[k], self._factor)
        progress.step += 1
        progress.fraction = self.budget.fraction(progress.step, self.seconds)
        progress.epoch = progress.step / self.batches.steps_per_epoch if self.batches.steps_per_epoch else 0.0

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        if not self._compile_trial:
            return self._forward_and_backward(batch)
        before = random_state(self._device), self._generator.get_state()
        try:
            return self._forward_and_backward(batch)
        except Exception as error:
            # The compiler may refuse the forward pass, or only its derivative.
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            warnings.warn(f"fit: the objective cannot be compiled, going on without ({type(error).__name__}: {first[:200]})", stacklevel=2)
            self._forward = self.objective
            set_random_state(before[0], self._device)
            self._generator.set_state(before[1])
            for optimizer in self.optimizers:
                optimizer.adam.zero_grad(set_to_none=True)
            return self._forward_and_backward(batch)
        finally:
            self._compile_trial = False

    def _forward_and_backward(self, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bf16"):
            terms = self._forward(self.flow, batch, self.progress)
        loss = terms.get("loss") if isinstance(terms, dict) else None
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
            found = sorted(terms) if isinstance(terms, dict) else type(terms).__name__
            raise ValueError(f"fit: {type(self.objective).__name__}.forward must return a scalar 'loss' that depends on the parameters, got {found}")
        loss.backward()
        return {name: torch.as_tensor(value) for name, value in terms.items()}

    @property
    def _generator(self) -> torch.Generator:
        generator = self.progress.generator
        if generator is None:
            raise RuntimeError("training has no source of randomness")
        return generator

    # ------------------------------------------------------------------------------------------------------------- housekeeping

    def _housekeeping(self) -> None:
        step = self.progress.step
        if step % READ_EVERY == 0:
            self._read()
        if self.objective.adapt_every and step % self.objective.adapt_every == 0 and self.stopped is None:
            self._adapted = self.validation.adapt(self.flow, self.objective, self.progress)
        if self.stopped is None and self.rhythm.due(step, self.seconds, self._last):
            self._validate()
        if self.stopped is None:
            self.stopped = "interrupted" if self.interruption.requested else self.budget.used_up(step, self.seconds)
        if self.stopped is None and self.folder is not None and self.seconds - self._checkpointed >= self.settings.checkpoint_every:
            self._save()
        if self.stopped is None and step % READ_EVERY == 0:
            self._show()

    def _show(self) -> None:
        best = None if self.best is None else self.best["row"]
        self.display.update(self.progress.step, self.progress.fraction, self._loss, self._figures, best)

    def _read(self) -> None:
        bad = self.guard.read()
        self._loss = self.guard.means().get("loss", math.nan)
        reason = self.guard.verdict()
        if reason is not None:
            self._roll_back(reason)
        elif bad == 0 and self.progress.step - self._good_step >= GOOD_EVERY:
            self._keep_good()

    def _keep_good(self) -> None:
        self._good = capture(self.flow, self.objective) | {"optimizers": [clone(optimizer.adam.state_dict()) for optimizer in self.optimizers]}
        self._good_step = self.progress.step

    def _roll_back(self, reason: str) -> None:
        what = f"{self.guard.culprit()} was not finite in {reason}"
        restore(self._good, self.flow, self.objective)
        for optimizer, state in zip(self.optimizers, self._good["optimizers"]):
            # Adam keeps the tensors it is given and changes them.
            optimizer.adam.load_state_dict(clone(state))
        if self.guard.rollbacks >= ROLLBACKS:
            likely = (
                "not one step was finite: look at flow.log_prob of a few rows, and at the scale of the data"
                if self.guard.skipped == self.progress.step
                else f"the likely cause is a learning rate of {self.settings.learning_rate:g}, try a tenth; else precision='64' or a smaller clip"
            )
            self.stopped = f"non-finite: {what}, although the learning rate was halved {self.guard.rollbacks} times; {likely}"
            return
        self._scale /= 2
        self.guard.rolled_back()
        self.display.note(f"fit: {what}; back to the weights of step {self._good_step}, learning rate halved")

    # --------------------------------------------------------------------------------------------------------------- validation

    def _validate(self) -> None:
        began = self.seconds
        progress = self.progress
        self.guard.read()
        figures = self.validation.run(self.flow, self.objective, progress)
        known = {
            "step": progress.step,
            "epoch": progress.epoch,
            "seconds": self.seconds,
            "learning_rate": self.settings.learning_rate * self._factor,
            "skipped": self.guard.skipped,
        }
        means = self.guard.means()
        self._loss = means.get("loss", self._loss)
        row = make_row(known, means, self._adapted, figures)
        self.guard.clear_means()
        self._figures = figures
        self.rows.append(row)
        self._last = Validated(progress.step, self.seconds, self.seconds - began)
        if math.isfinite(figures["monitor"]) and (self.best is None or figures["monitor"] < self.best["row"]["monitor"]):
            self.best = capture(self.flow, self.objective) | {"row": row, "fraction": progress.fraction}
            self._since_best = 0
        else:
            self._since_best += 1
        if self.folder is not None:
            self._to_disk(self.folder.append, row)
        if self.stopped is None and self._out_of_patience():
            self.stopped = f"patience: no improvement in {self._since_best} validations"

    def _out_of_patience(self) -> bool:
        if self.settings.patience is not None:
            return self._since_best >= self.settings.patience
        waited = self.progress.fraction - (0.0 if self.best is None else self.best["fraction"])
        return self._since_best >= PATIENT_VALIDATIONS and waited >= PATIENT_SHARE

    # --------------------------------------------------------------------------------------------------------------- checkpoints

    def _save(self) -> None:
        folder = self.folder
        if folder is None:
            return
        if self.best is not None and self._best_on_disk != self.best["row"]["step"]:
            with swapped_in(self.best, self.flow, self.objective):
                self._to_disk(folder.write_model, self.flow)
            self._best_on_disk = self.best["row"]["step"]
        self._to_disk(folder.write, self.state_dict())
        self._checkpointed = self.seconds

    def _to_disk(self, write: Any, what: Any) -> None:
        """A disk that is full ends training, but not before the best weights are back in place."""
        if self.disk_error is not None:
            return
        try:
            write(what)
        except OSError as error:
            self.disk_error = error
            self.stopped = "disk"

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, to be written at once: nothing is copied."""
        return {
            "fingerprint": self.fingerprint,
            "step": self.progress.step,
            "fraction": self.progress.fraction,
            "epoch": self.progress.epoch,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "rows": self.rows,
            "flow": dict(self.flow.state_dict()),
            "objective": dict(self.objective.state_dict()),
            "optimizers": [optimizer.adam.state_dict() for optimizer in self.optimizers],
            "best": self.best,
            "good": self._good,
            "good_step": self._good_step,
            "scale": self._scale,
            "guard": self.guard.state_dict(),
            "batches": self.batches.state_dict(),
            "adapted": self._adapted,
            "figures": self._figures,
            "last": [self._last.step, self._last.seconds, self._last.duration],
            "since_best": self._since_best,
            "best_on_disk": self._best_on_disk,
            "generator": [self._device.type, self._generator.get_state()],
            "random": random_state(self._device),
        }

    def _adopt(self, state: dict[str, Any]) -> None:
        restore(state, self.flow, self.objective)
        for optimizer, adam in zip(self.optimizers, state["optimizers"]):
            optimizer.adam.load_state_dict(adam)
        self.progress.step, self.progress.fraction, self.progress.epoch = state["step"], state["fraction"], state["epoch"]
        self._earlier = state["seconds"]
        self.rows, self._adapted, self._figures = state["rows"], state["adapted"], state["figures"]
        self.best, self._good = clone(state["best"], self._device), clone(state["good"], self._device)
        self._good_step, self._scale, self._since_best = state["good_step"], state["scale"], state["since_best"]
        self._last = Validated(*state["last"])
        self._best_on_disk = state["best_on_disk"]
        self.guard.load_state_dict(state["guard"], self._device)
        self.batches.load_state_dict(state["batches"])
        device, stream = state["generator"]
        if device == self._device.type:
            self._generator.set_state(stream)
        else:
            warnings.warn(f"fit: the checkpoint was made on {device}, going on on {self._device.type}: other noise from here on", stacklevel=4)
        ended = state["stopped"]
        longer = ended is not None and ended.startswith("max_") and self.budget.used_up(state["step"], state["seconds"]) is None
        self.stopped = None if ended == "interrupted" or longer else ended
