"""Numbers that are not finite: skipped, counted, explained, and not trained through."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

IN_A_ROW = 20
WINDOW = 1000
SHARE = 0.05
ROLLBACKS = 3


class Guard:
    """Watches loss, terms and gradient norms without asking the device at every step.

    A step whose loss is not finite is left out; so is the step of any parameter group whose gradient is not finite. Sums and counts stay on the
    device until `read` is called, every few steps. `verdict` then asks for a return to the last good state after 20 bad steps in a row,
    or when more than 5 % of the last 1000 steps were bad.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.rollbacks = 0
        self.blame: dict[str, int] = {}
        self._window: deque[tuple[int, int]] = deque()
        self._in_a_row = 0
        self._clear_pending()
        self.clear_means()

    def _clear_pending(self) -> None:
        self._names: tuple[str, ...] = ()
        self._steps = 0
        self._sums = self._counts = self._bad = self._run = torch.empty(0)

    def clear_means(self) -> None:
        """Begin new averages."""
        self._totals: dict[str, float] = {}
        self._numbers: dict[str, int] = {}

    def observe(self, terms: dict[str, Tensor], norms: list[Tensor]) -> Tensor:
        """Note one step; returns, for each parameter group, 1 where its step must be left out and 0 where not."""
        names = (*terms, *(f"gradient {k}" for k in range(len(norms))))
        if names != self._names:
            self.read()
        loss = terms["loss"]
        dtype = torch.promote_types(loss.dtype, torch.float32)
        values = torch.stack([value.detach().to(device=loss.device, dtype=dtype) for value in (*terms.values(), *norms)])
        finite = values.isfinite()
        skip = ~(finite[names.index("loss")] & finite[len(terms) :])
        bad = skip.any()
        kept = torch.where(finite, values, 0.0)
        if self._steps == 0:
            self._names = names
            self._sums, self._counts, self._bad = kept, finite.to(torch.int64), bad.to(torch.int64)
            self._run = torch.where(bad, self._in_a_row + 1, 0)
        else:
            self._sums = self._sums + kept
            self._counts = self._counts + finite
            self._bad = self._bad + bad
            self._run = torch.where(bad, self._run + 1, 0)
        self._steps += 1
        return skip.to(dtype)

    def read(self) -> int:
        """Fetch what has gathered on the device; returns how many bad steps it contained."""
        if self._steps == 0:
            return 0
        numbers = torch.cat(
            [self._sums.double() if self._sums.device.type != "mps" else self._sums, self._counts, self._bad[None], self._run[None]]
        ).tolist()
        names, steps = self._names, self._steps
        bad, run = int(numbers[-2]), int(numbers[-1])
        for k, name in enumerate(names):
            count = int(numbers[len(names) + k])
            self._totals[name] = self._totals.get(name, 0.0) + numbers[k]
            self._numbers[name] = self._numbers.get(name, 0) + count
            if count < steps:
                self.blame[name] = self.blame.get(name, 0) + steps - count
        self.skipped += bad
        self._in_a_row = run
        self._window.append((steps, bad))
        while sum(steps for steps, _ in self._window) - self._window[0][0] >= WINDOW:
            self._window.popleft()
        self._clear_pending()
        return bad

    def means(self) -> dict[str, float]:
        """Averages of loss and terms over the finite steps since they were last cleared; NaN where there was none."""
        shown = (name for name in self._totals if not name.startswith("gradient "))
        return {name: self._totals[name] / self._numbers[name] if self._numbers[name] else float("nan") for name in shown}

    def pending_mean(self, name: str) -> float:
        """Average of a term over the finite steps that were not read yet, which stay so; NaN where there was none."""
        if name not in self._names or self._steps == 0:
            return float("nan")
        k = self._names.index(name)
        count = int(self._counts[k])
        return float(self._sums[k]) / count if count else float("nan")

    def verdict(self) -> str | None:
        """Why training cannot go on from here, or None."""
        recent = sum(bad for _, bad in self._window)
        if self._in_a_row >= IN_A_ROW:
            return f"{self._in_a_row} steps in a row"
        if recent > SHARE * WINDOW:
            return f"{recent} of the last {sum(steps for steps, _ in self._window)} steps"
        return None

    def rolled_back(self) -> None:
        """Forget the bad steps that led to a return to the last good state, but count the return."""
        self.rollbacks += 1
        self._in_a_row = 0
        self._window.clear()

    def culprit(self) -> str:
        """The term that was most often not finite while the others were, in words."""
        terms = {name: count for name, count in self.blame.items() if not name.startswith("gradient ") and name != "loss"}
        if terms:
            return f"the term {max(terms, key=lambda name: terms[name])!r}"
        if "loss" in self.blame:
            return "the loss"
        group = max(self.blame, key=lambda name: self.blame[name], default="gradient").removeprefix("gradient")
        return f"the gradient of parameter group{group} (the loss itself was finite)"

    def state_dict(self) -> dict[str, Any]:
        """Everything, as it stands between two readings."""
        pending = {name: getattr(self, name).cpu().clone() for name in ("_sums", "_counts", "_bad", "_run")}
        plain = ("skipped", "rollbacks", "_steps", "_in_a_row")
        lists = {"_names": list(self._names), "_window": [list(entry) for entry in self._window]}
        dicts = {name: dict(getattr(self, name)) for name in ("blame", "_totals", "_numbers")}
        return {**pending, **{name: getattr(self, name) for name in plain}, **lists, **dicts}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where `state` was taken."""
        for name, value in state.items():
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)
        self._names = tuple(state["_names"])
        self._window = deque((steps, bad) for steps, bad in state["_window"])
