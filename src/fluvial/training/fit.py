"""The one way in: data and a flow go in, a trained flow comes out."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fluvial.config import writable
from fluvial.objectives.objective import Objective
from fluvial.training.batches import Batches
from fluvial.training.checkpoint import Folder, compare, fingerprint, locked
from fluvial.training.history import History
from fluvial.training.interruption import Interruption
from fluvial.training.loop import Loop
from fluvial.training.schedule import Budget, Schedule
from fluvial.training.settings import Precision, Settings, training_device
from fluvial.training.splits import Rows, fit_codec, make_validation, split_data
from fluvial.training.states import generator, seeded


def fit(
    flow: nn.Module,
    data: Any,
    objective: Objective | None = None,
    *,
    validation: float | Any = 0.1,
    max_epochs: float | None = None,
    max_steps: int | None = None,
    max_time: float | None = None,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    clip: float | None = 10.0,
    warmup: int = 200,
    schedule: Schedule = "cosine",
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: Precision | None = None,
    patience: float | None = None,
    validate_every: int | None = None,
    validation_points: int = 4096,
    directory: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 30.0,
    progress: bool = True,
    compile: bool = False,
) -> History:
    r"""Train a flow on data, in place: afterwards it holds the best weights seen and is in evaluation mode.

    In this order: the data are checked (a bad row is named before anything is trained), their shapes compared with the flow's, rows set aside
    for validation, codecs that want to see data (standardisation) fitted on the training rows alone, and the networks trained with Adam.
    Steps with a loss or gradient that is not finite are skipped and counted; if that goes on, training returns to its last good state with half
    the learning rate, and after three times it stops with the best weights. Ctrl-C and SIGTERM end training in good order after the present step.

    Args:
        flow: A `Flow` or `Joint`; it returns to the device it came from.
        data: An array or tensor of shape (n, \*event), a tuple (x, c) or (x, c, weight), a DataFrame, the path of a file, or a `Dataset`;
            None for objectives that need none. For a `Joint`: a dict of arrays by factor, (dict, c) or (dict, c, weight).
        objective: What to minimise; default ``natural_objective(flow)``: `MaximumLikelihood` for bijections, `FreeFormLikelihood` for
            free-form pairs.
        validation: Share of the rows set aside, 0 … 1 exclusive, or the held-out data themselves. A data set with an official split keeps it.
        max_epochs: Passes over the training rows.
        max_steps: Optimisation steps. Without any limit, 10 000.
        max_time: Seconds of training; it ends annealed. Where several limits are given, the first one reached ends training.
        batch_size: Rows per step; an incomplete last batch of a pass is left out.
        learning_rate: Peak learning rate of Adam.
        weight_decay: Strength λ of the term λθ added to the gradient.
        clip: Largest norm of the gradient of each parameter group, or None.
        warmup: Steps of linear rise of the learning rate, at most a tenth of all steps.
        schedule: "cosine" (to 0 at the end of the budget), "one-cycle" (published for the earth data sets), or "constant".
        seed: Of the split, the order of rows, noise and probes. torch's own random state is left as it was.
        device: "auto" (a CUDA card where there is one), "cpu", "cuda", "cuda:1", "mps".
        precision: "32", "64", or "bf16" (networks compute in 16 bits, weights have 32); default that of the flow's own weights.
        patience: Validations without improvement after which to stop; inf never stops. Default: 30 % of the budget, at least 10 validations.
        validate_every: Steps between validations. Default: about 50 over the budget, and every pass where one has 1000 steps or more.
        validation_points: Validate on at most so many rows, the same every time.
        directory: Folder for ``checkpoint.pt``, ``history.jsonl`` and ``model.safetensors`` (the best so far). What an earlier run left there is
            replaced, unless `resume`.
        resume: Go on exactly where the checkpoint in `directory` ends: the same weights, bit for bit, as without a stop (on one machine, with
            a budget in steps or epochs). Where there is no checkpoint, training starts afresh.
        checkpoint_every: Seconds between checkpoints.
        progress: Show one line of progress on standard error.
        compile: Compile the objective with torch.compile; takes minutes, and pays in long runs only.

    Returns:
        The course of training, why it stopped, and the row of the best weights.

    Raises:
        ValueError: If arguments, data and flow do not fit together, a checkpoint belongs to another run, or another process trains in `directory`.
        TypeError: If flow or objective are of the wrong kind.
        OSError: If the disk is full: the last whole checkpoint is kept, and the flow holds the best weights.

    Example:
        >>> import fluvial as fl
        >>> nets = [fl.nn.Residual(2, width=16, blocks=1) for _ in range(2)]
        >>> flow = fl.Flow(fl.Chain([fl.codecs.Standardize(2), fl.FreeForm(*nets)]), fl.bases.Normal(2))
        >>> fl.fit(flow, fl.data.moons(500), max_steps=20, validate_every=10, progress=False)
        History(2 rows, stopped by max_steps at step 20, best ...)
    """
    if not isinstance(flow, nn.Module):
        raise TypeError(f"fit: flow must be a Flow, got {type(flow).__name__}; fit(flow, data) is the order")
    settings = Settings(
        max_epochs=max_epochs,
        max_steps=max_steps,
        max_time=max_time,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        clip=clip,
        warmup=warmup,
        schedule=schedule,
        seed=seed,
        precision=precision if precision is not None else _own_precision(flow),
        patience=patience,
        validate_every=validate_every,
        validation_points=validation_points,
        checkpoint_every=checkpoint_every,
        compile=compile,
    )
    if objective is not None and not isinstance(objective, Objective):
        raise TypeError(f"fit: objective must be a fluvial Objective, got {type(objective).__name__}; wrap a loss by subclassing Objective")
    if resume and directory is None:
        raise ValueError("fit: resume=True needs the directory that holds the checkpoint")
    if data is None and objective is None:
        raise ValueError("fit: without data say what to learn: give an objective with an energy, such as objectives.ReverseKL(energy)")
    if data is None and max_epochs is not None:
        raise ValueError("fit: without data there are no epochs; give max_steps or max_time")
    where = training_device(device, settings.precision)
    train, held_out = split_data(flow, data, validation, seed, settings.dtype)
    if objective is None:
        from fluvial.objectives import natural_objective

        objective = natural_objective(flow)
    with ExitStack() as stack:
        if directory is not None:
            stack.enter_context(locked(Path(directory)))
        stack.enter_context(seeded(seed, where))
        interruption = stack.enter_context(Interruption())
        for module in (flow, objective):
            stack.enter_context(_lent(module, where, settings))
        train, held_out = (None if part is None else part.to(where).to(settings.dtype) for part in (train, held_out))
        loop = _prepare(flow, objective, train, held_out, settings, directory, where, interruption, resume=resume, shown=progress)
        _run(loop, where)
    return _conclude(loop, directory)


def _own_precision(flow: nn.Module) -> Precision:
    """The precision of the weights that are trained."""
    return "64" if any(p.dtype == torch.float64 for p in flow.parameters()) else "32"


def _prepare(
    flow: nn.Module,
    objective: Objective,
    train: Rows | None,
    held_out: Rows | None,
    settings: Settings,
    directory: str | Path | None,
    device: torch.device,
    interruption: Interruption,
    *,
    resume: bool,
    shown: bool,
) -> Loop:
    """Everything up to the first step."""
    reason = writable(flow)
    if reason is not None:
        warnings.warn(f"fit: this flow can be trained but not saved as a model file: {reason}", stacklevel=3)
    folder = None if directory is None else Folder(Path(directory), model=reason is None)
    saved = folder.read() if folder is not None and resume else None
    settled = {name: value for name, value in asdict(settings).items() if name != "checkpoint_every"}
    marks = fingerprint(flow, objective, train, held_out, settled)
    if folder is not None and saved is not None:
        compare(saved["fingerprint"], marks, folder.checkpoint)
        # Codecs that were fitted then are not fitted again.
        flow.load_state_dict(saved["flow"])
    elif folder is not None:
        folder.clear()
        if resume:
            print(f"fit: no checkpoint in {directory}, starting afresh", file=sys.stderr)
    if train is not None:
        if saved is None:
            fit_codec(flow, train, settings.seed)
        flow.spec = train.spec
    objective.prepare(flow, train)
    noise = generator(settings.seed, "noise", device)
    batches = Batches(train, settings.batch_size, seed=settings.seed, device=device, noise=noise)
    loop = Loop(
        flow,
        objective,
        batches=batches,
        validation=make_validation(held_out, batches, settings, device),
        settings=settings,
        budget=Budget(settings.max_steps, settings.max_epochs, settings.max_time, batches.steps_per_epoch),
        folder=folder,
        fingerprint=marks,
        generator=noise,
        interruption=interruption,
        n_train=0 if train is None else len(train),
        shown=shown,
        resumed=saved,
    )
    if folder is not None and saved is not None:
        folder.rewrite(loop.rows)
    return loop


def _run(loop: Loop, device: torch.device) -> None:
    """Train, unless a resumed run was over already; whatever happens, the flow ends with the best weights."""
    try:
        if loop.stopped is None:
            from fluvial.training.module import run_lightning

            run_lightning(loop, device)
    except SystemExit:
        # How Lightning passes on a second Ctrl-C.
        if loop.interruption.requested:
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.close()


def _conclude(loop: Loop, directory: str | Path | None) -> History:
    """The record of training; what went wrong is said once, here."""
    error = loop.disk_error
    if error is not None:
        kept = "the last whole checkpoint is kept" if Path(directory or ".", "checkpoint.pt").exists() else "there was no checkpoint yet"
        raise OSError(
            error.errno,
            f"fit: training stopped at step {loop.progress.step}: {error.strerror or error}; {kept} in {directory}, and the flow holds "
            "the best weights so far; make room and go on with resume=True",
        ) from None
    stopped = loop.stopped or ""
    if stopped.startswith("non-finite"):
        warnings.warn(f"fit: training stopped at step {loop.progress.step}, {stopped}", stacklevel=3)
    elif loop.rows and loop.rows[-1].get("skipped", 0) >= loop.progress.step > 0:
        warnings.warn(
            f"fit: in all {loop.progress.step} steps loss or gradients were not finite; what they concern was not trained, look at History.rows",
            stacklevel=3,
        )
    elif loop.best is None and loop.rows:
        warnings.warn(
            "fit: no validation gave a finite monitor, so the flow holds the last weights, not the best; look at History.rows", stacklevel=3
        )
    return History(loop.rows, stopped, None if loop.best is None else loop.best["row"])


@contextmanager
def _lent(module: nn.Module, device: torch.device, settings: Settings) -> Iterator[None]:
    """The module on the training device in the training precision inside; back where it came from, in evaluation mode, afterwards."""
    tensors = [*module.parameters(), *module.buffers()]
    home = tensors[0].device if tensors else torch.device("cpu")
    # float() and double() leave complex numbers alone, which to(dtype) would cut.
    (module.double() if settings.precision == "64" else module.float()).to(device)
    try:
        yield
    finally:
        module.to(home).eval()
