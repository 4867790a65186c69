"""Fit a flow layer by layer, without a gradient."""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from fluvial.codecs import Bijection, Bounds, Chain, Encoded, Standardize
from fluvial.codecs.spline_loops import choose_engine
from fluvial.data import Dataset, DataSpec
from fluvial.flow import Flow
from fluvial.gaussianization import keyed
from fluvial.gaussianization.conditional import Conditioning
from fluvial.gaussianization.course import Course
from fluvial.gaussianization.joint_layers import ConditionRows
from fluvial.gaussianization.layers import LayerwiseFit, Settings
from fluvial.gaussianization.marginals import Marginal, TailKind
from fluvial.gaussianization.rotations import RotationKind, kind_of
from fluvial.gaussianization.shard import WEIGHT_STEPS, Plan
from fluvial.gaussianization.sources import Appended, RowSource, open_rows
from fluvial.gaussianization.tree import merge
from fluvial.gaussianization.workers import GroupWorkers, LocalWorkers, Workers, in_group, single_threaded, together
from fluvial.training.history import History, Row

Limit = float | None
_SURVEYED = 20_000  # rows that are looked at for ties
_TIED = 0.5  # a column with fewer distinct values than this share of its rows is one of steps
_ASTRAY = 10.0  # standard deviations, in units of that of the middle two thirds of the rows
_FEWEST = 20  # training rows
_CONTEXT_LAYERS = 30


def fit(
    data: Any,
    *,
    rotation: RotationKind = "auto",
    marginal: Marginal = "spline",
    bins: int | Literal["auto"] = "auto",
    alpha: float | tuple[float, float] = (0.3, 0.8),
    tail: TailKind | Literal["bounded"] = "pareto",
    bounds: Sequence[tuple[Limit, Limit]] | None = None,
    max_layers: int = 200,
    patience: int = 15,
    min_gain: float = 1e-4,
    validation: Any = 0.1,
    dither: float | Sequence[float] | Literal["auto"] | None = "auto",
    columns: str | Sequence[str] | None = None,
    condition: str | Sequence[str] | None = None,
    weight: str | None = None,
    conditioning: Conditioning = "auto",
    train_rotations: bool = False,
    seed: int = 0,
    memory: int | str | None = None,
    scratch: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    client: Any = None,
    directory: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_layer: Callable[[Row], None] | None = None,
    on_end: Callable[[History], None] | None = None,
    progress: bool = True,
) -> Flow:
    r"""Gaussianize the data: rotate, make every coordinate normal by itself, and again, until rows held out gain nothing more.

    .. math:: z = f_L(Q_L \cdots f_2(Q_2\, f_1(x))), \qquad
              \mathrm{KL}(p \,\|\, N) = \mathrm{KL}\bigl(p \,\|\, \textstyle\prod_i p_i\bigr) + \sum_i \mathrm{KL}(p_i \,\|\, N(0, 1))

    A layer removes the last term, whatever the rotation; the next rotation turns some of the first one into it. Nothing is differentiated: a
    layer is one pass over the rows to count them, and one to transform them. The result does not depend on how many threads or processes work.

    Args:
        data: An array or tensor (n, D), ``(x, c)``, ``(x, c, weight)``, a `Dataset`, or the path of a file or of a folder of Parquet files, which
            are read block by block.
        rotation: Before every layer but the first: "auto" (principal axes and random ones by turns), "haar" (random), "hadamard" (random, for many
            coordinates), "pca", "ica", "max_kswd" (the least normal directions), "learned" (least entropy by gradient), or "none".
        marginal: "spline" (through quantiles), "kde", "mixture" (of smoothed distributions), "affine" (only scales).
        bins: Of the splines; "auto" takes √n/2, within 16 and 64, and half as many with conditioning="joint".
        alpha: Shrinkage of the layers towards affine ones, from 0 to 1, for the first layer and for the others: more layers, less variance.
        tail: "pareto" (as heavy as the data's), "gaussian", or "bounded": data within ``bounds`` are first mapped to the whole line.
        bounds: Lower and upper bound of every column, None where there is none; default with "bounded", a little more than the data's range.
        max_layers: No more layers than these.
        patience: Stop after so many layers without gain on the rows held out; the layers after the best one are left out.
        min_gain: What counts as one, in nats.
        validation: Share of the rows to hold out, 0 for none, or the rows themselves, in any form ``data`` takes.
        dither: Width of uniform noise added to columns of steps, one number or one for each column, None for none; "auto" finds columns with ties.
        columns: Of a file, those that are x.
        condition: Of a file, those that are the condition.
        weight: Of a file, that of the weights.
        conditioning: How the splines follow the condition, where there is one: "classes" (splines of their own for each of few different conditions,
            in rotations they share), "kernel" (fitted around anchors, and averaged with weights that fall off with the distance), "network"
            (weights from a network that is trained in every layer), "joint" (splines along lines that lean towards the condition, which a flow of its
            own Gaussianizes: the fit of a block-triangular map of both), "auto" (the first where it can be, else the second).
        train_rotations: Make the rotations trainable ones, for `fluvial.fit`.
        seed: Of rows held out, rotations and dithering.
        memory: What each process may take, as bytes or "500M": beyond half of it the rows are kept in a scratch file.
        scratch: Folder for that; default the system's.
        threads: How many work in each process; default those of torch.
        client: Dask's, whose workers do the work, or "local" for a cluster on this machine. Without it, and in a process group of torch (torchrun),
            the processes of the group do.
        directory: Folder for checkpoint.pt, history.jsonl and model.safetensors after every layer.
        resume: Go on from the last layer there.
        on_layer: Called after every layer with its row of the history: layer, rotation, nll and train_nll in nats with their errors, seconds.
        on_end: Called at the end with the whole course: a row for every layer, why there are no more, and the row of the best one.
        progress: Show it.

    Returns:
        An ordinary `Flow`, with ``spec``; ``fluvial.fit`` trains it further.

    Raises:
        ValueError: If the data hold numbers that are not finite, columns that are constant, or too few rows; if an argument makes no sense.

    References:
        Laparra, Camps-Valls, Malo (2011), "Iterative Gaussianization: from ICA to random rotations", arXiv:1602.00229;
        Dai, Seljak (2021), "Sliced iterative normalizing flows", arXiv:2007.00674;
        Draxler, Kühmichel, Rousselot, Müller, Schnörr, Köthe (2023), "On the convergence rate of Gaussianization with random rotations",
        arXiv:2306.13520.

    Example:
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> flow = fit(torch.stack([x[:, 0], x[:, 1] + x[:, 0] ** 2], -1), progress=False)
        >>> flow.sample(3).shape, flow.log_prob(torch.zeros(1, 2)).shape
        (torch.Size([3, 2]), torch.Size([1]))
    """
    settings = Settings(
        rotation=rotation,
        marginal=marginal,
        bins=bins,
        alpha=(float(alpha), float(alpha)) if isinstance(alpha, int | float) else (float(alpha[0]), float(alpha[1])),
        tail="gaussian" if tail == "bounded" else tail,
        max_layers=max_layers,
        patience=patience,
        min_gain=min_gain,
        train_rotations=train_rotations,
        conditioning=conditioning,
        seed=seed,
    )
    _check(settings)
    wishes: dict[str, Any] = {"columns": columns, "condition": condition, "weight": weight}
    given = data.spec if isinstance(data, Dataset) else None
    if given is not None and given.dequantize is not None and isinstance(dither, str):
        dither = given.dequantize
    plan = together(lambda: _plan(open_rows(_noisy(data, seed), **wishes), validation, seed, wishes))
    plan = dataclasses.replace(plan, memory=memory, scratch=None if scratch is None else os.fspath(scratch))
    context = _context(plan, settings, threads, client) if conditioning == "joint" else None
    with contextlib.closing(_workers(plan, threads, client)) as workers, single_threaded():
        widths = _widths(workers, plan, dither)
        before, scale, unit, extent = _first_maps(workers, plan, widths, bounds, bounded=tail == "bounded")
        fitting = LayerwiseFit(workers, plan, before, settings, unit=unit, context=context)
        course = Course(fitting, _spec(plan.source, widths, given), None if directory is None else Path(directory), extent, on_layer)
        with course.opened():
            workers.call("load", before, widths, scale, context)
            flow = course.run(resume=resume, shown=progress and workers.leads)
        if on_end is not None:
            on_end(course.history)
        return flow


def _check(settings: Settings) -> None:
    """Refuse settings that make no sense, before anything is read."""
    kind_of(settings.rotation, 0, 1)
    if settings.marginal not in get_args(Marginal) or settings.tail not in get_args(TailKind):
        raise ValueError(
            f"fit: marginal is one of {', '.join(map(repr, get_args(Marginal)))} and tail 'pareto', 'gaussian' or 'bounded', "
            f"got {settings.marginal!r} and {settings.tail!r}"
        )
    if settings.conditioning not in get_args(Conditioning):
        raise ValueError(f"fit: conditioning is one of {', '.join(map(repr, get_args(Conditioning)))}, got {settings.conditioning!r}")
    if settings.conditioning == "joint" and settings.marginal not in ("spline", "affine"):
        raise ValueError(f"fit: conditioning='joint' fits splines or affine maps, not marginal={settings.marginal!r}; take marginal='spline'")
    if settings.bins != "auto" and not (isinstance(settings.bins, int) and settings.bins >= 2):
        raise ValueError(f"fit: bins must be 'auto' or at least 2, got {settings.bins!r}")
    if not all(0 <= value <= 1 for value in settings.alpha):
        raise ValueError(f"fit: alpha must lie within 0 and 1, got {settings.alpha}")
    if settings.max_layers < 1 or settings.patience < 1:
        raise ValueError(f"fit: max_layers and patience must be positive, got {settings.max_layers} and {settings.patience}")


def _plan(source: RowSource, validation: Any, seed: int, wishes: dict[str, Any]) -> Plan:
    share = validation if isinstance(validation, int | float) else 0.0
    if not 0 <= share < 1:
        raise ValueError(f"fit: validation must be a share of the rows within 0 and 1, or rows, got {validation}")
    train_rows = source.rows
    if not isinstance(validation, int | float):
        source = Appended(source, open_rows(validation, **(wishes if isinstance(validation, str | os.PathLike) else {})))
    if train_rows * (1 - share) < _FEWEST:
        raise ValueError(f"fit: {train_rows} rows are too few to fit marginal distributions to; at least {_FEWEST} are needed for training")
    return Plan(source, train_rows, float(share), seed, choose_engine(source.rows, source.features))


def _workers(plan: Plan, threads: int | None, client: Any) -> Workers:
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"fit: threads must be positive, got {threads}")
    if client is not None:
        from fluvial.gaussianization.dask_workers import DaskWorkers

        return DaskWorkers(plan, client, threads=threads)
    if in_group():
        return GroupWorkers(plan, threads=threads)
    return LocalWorkers(plan, threads=threads)


def _context(plan: Plan, settings: Settings, threads: int | None, client: Any) -> Encoded:
    """What Gaussianizes the conditions: a flow of their own, fitted to them alone."""
    if not plan.source.condition_features:
        raise ValueError("fit: conditioning='joint', but the data have no condition; give (x, c), or condition= the columns of a file")
    plan = dataclasses.replace(plan, source=ConditionRows(plan.source))
    settings = Settings(bins=settings.bins, alpha=settings.alpha, max_layers=_CONTEXT_LAYERS, seed=settings.seed)
    with contextlib.closing(_workers(plan, threads, client)) as workers, single_threaded(), warnings.catch_warnings():
        # Where conditions are tied noise is needed to fit, but none is added to those that are encoded.
        warnings.filterwarnings("ignore", "fit: columns with ties")
        widths = _widths(workers, plan, "auto")
        before, scale, unit, extent = _first_maps(workers, plan, widths, None, bounded=False)
        course = Course(LayerwiseFit(workers, plan, before, settings, unit=unit), _spec(plan.source, widths, None), None, extent, None)
        workers.call("load", before, widths, scale)
        codec = course.run(resume=False, shown=False).codec
    if course.stopped == "interrupted":
        raise KeyboardInterrupt
    if widths.any():
        # A condition in the middle of its step.
        codec.parts[0].parts[-1].loc.sub_(torch.from_numpy(widths / 2))
    return Encoded(codec)


def _widths(workers: Workers, plan: Plan, dither: float | Sequence[float] | str | None) -> np.ndarray:
    """Width of the noise for every column."""
    features = plan.source.features
    if dither is None:
        return np.zeros(features)
    if dither != "auto":
        widths = np.broadcast_to(np.asarray(dither, np.float64), (features,)).copy()
        if not bool((widths >= 0).all() and np.isfinite(widths).all()):
            raise ValueError(f"fit: dither must be 'auto', None, or widths that are not negative, got {dither}")
        return widths
    numbers = keyed.sample_rows(plan.seed, plan.source.rows, _SURVEYED, "survey")
    parts = workers.call("survey", None, numbers)
    sample = np.concatenate([part.sample[1] for part in parts])
    widths = np.array([_step(column) for column in sample.T])
    if widths.any():
        named = ", ".join(f"{_name(plan.source, k)} (steps of {widths[k]:g})" for k in np.flatnonzero(widths)[:5])
        warnings.warn(
            f"fit: columns with ties get uniform noise as wide as their steps: {named}{', …' if (widths > 0).sum() > 5 else ''}; "
            "dither=None leaves them as they are",
            stacklevel=3,
        )
    return widths


def _step(column: np.ndarray) -> float:
    """The step of a column that has ties; 0 where it has none."""
    values = np.unique(column)
    if len(values) < 2 or len(values) >= _TIED * len(column):
        return 0.0
    return float(np.diff(values).min())


def _first_maps(
    workers: Workers, plan: Plan, widths: np.ndarray, bounds: Sequence[tuple[Limit, Limit]] | None, *, bounded: bool
) -> tuple[Chain, float, float, list[float]]:
    """The codec before the first layer; the factor that makes weights integers, the sum of integers worth a row, and the extremes of the data."""
    parts = workers.call("survey", None, np.empty(0, np.int64))
    low, high = np.minimum.reduce([part.low for part in parts]), np.maximum.reduce([part.high for part in parts])
    constant = np.flatnonzero((high <= low) & (widths == 0))
    if len(constant):
        named = ", ".join(_name(plan.source, k) for k in constant[:5])
        raise ValueError(
            f"fit: {'columns' if len(constant) > 1 else 'column'} {named} holding one value only; leave them out (Dataset(drop_constant=True))"
        )
    codecs: list[Bijection] = []
    if bounds is not None or bounded:
        codecs.append(_bounds(bounds, low, high + widths, plan.source))
    first = codecs[0].double() if codecs else None
    extremes = workers.call("survey", first, np.empty(0, np.int64)) if codecs else parts
    centre = (np.minimum.reduce([part.low for part in extremes]) + np.maximum.reduce([part.high for part in extremes])) / 2
    sums: Any = merge(workers.call("moments", first, centre, widths), plan.source.blocks)
    number, number2 = sums["number"]
    if not number > 0:
        raise ValueError("fit: the weights of the training rows sum to 0")
    mean = sums["sum"] / number
    sd = np.sqrt(np.maximum(sums["square"] / number - mean**2, 0.0))
    if not bool((sd > 0).all()):
        raise ValueError(f"fit: column {_name(plan.source, int(np.argmin(sd)))} holds one value only in the training rows; leave it out")
    # A few rows far out would leave no digits of single precision to the others.
    numbers = keyed.sample_rows(plan.seed, plan.source.rows, _SURVEYED, "scale")
    some = np.concatenate([part.sample[1] for part in workers.call("survey", None, numbers)])
    some = some if first is None else first.encode(torch.from_numpy(some)).numpy()
    low, middle, high = np.quantile(some, [0.159, 0.5, 0.841], axis=0)
    astray = sd > _ASTRAY * (high - low) / 2
    astray &= high > low
    mean, sd = np.where(astray, middle - centre, mean), np.where(astray, (high - low) / 2, sd)
    standardize = Standardize(plan.source.features).double()
    # As the flow will hold them.
    standardize.loc.copy_(torch.from_numpy(centre + mean).float())
    standardize.scale.copy_(torch.from_numpy(sd).float())
    standardize.is_fitted.fill_(1)
    codecs.append(standardize)
    largest, whole = max(part.weight[0] for part in parts), all(part.weight[1] for part in parts)
    if not plan.source.has_weight or (whole and largest <= WEIGHT_STEPS):
        scale, unit = 1.0, 1.0
    else:
        scale = WEIGHT_STEPS / largest
        unit = scale * number2 / number  # Kish's effective number of rows is (Σw)²/Σw²
    return Chain(codecs), scale, unit, [*low.tolist(), *high.tolist()]


def _bounds(bounds: Sequence[tuple[Limit, Limit]] | None, low: np.ndarray, high: np.ndarray, source: RowSource) -> Bounds:
    if bounds is None:
        margin = (high - low) / source.rows
        return Bounds((low - margin).tolist(), (high + margin).tolist())
    if len(bounds) != source.features:
        raise ValueError(f"fit: expected bounds of {source.features} columns, got {len(bounds)}")
    for k, (least, most) in enumerate(bounds):
        if (least is not None and low[k] < least) or (most is not None and high[k] > most):
            raise ValueError(f"fit: column {_name(source, k)} goes from {low[k]:g} to {high[k]:g}, beyond its bounds {least} and {most}")
    return Bounds([pair[0] for pair in bounds], [pair[1] for pair in bounds])


def _spec(source: RowSource, widths: np.ndarray, given: DataSpec | None) -> DataSpec:
    dequantize = tuple(widths.tolist()) if widths.any() else None
    if given is not None:
        return given.replace(dequantize=dequantize)
    return DataSpec((source.features,), names=source.names, dequantize=dequantize)


def _noisy(data: Any, seed: int) -> Any:
    """Data with the noise that their description asks for, drawn once."""
    if not isinstance(data, Dataset) or not np.any(data.spec.noise):
        return data
    spec = data.spec.replace(dequantize=None)
    x = spec.perturb(data.x, torch.Generator().manual_seed(seed))
    return Dataset(x, data.c, data.weight, spec=data.spec, name=data.name, synthetic=data.synthetic)


def _name(source: RowSource, column: int) -> str:
    return repr(source.names[column]) if source.names is not None else str(column)
