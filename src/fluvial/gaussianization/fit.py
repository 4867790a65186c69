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

from fluvial.codecs import Bijection, Bounds, Chain, Encoded, Standardize, Whiten
from fluvial.codecs.spline_loops import choose_engine
from fluvial.data import Dataset, DataSpec
from fluvial.flow import Flow
from fluvial.gaussianization.arguments import alpha_of, bins_of, bounds_of, gain_of, seed_of, share_of, whole, widths_of
from fluvial.gaussianization.columns import dependent_columns, describe_ties, ties_of
from fluvial.gaussianization.conditional import MOST_CLASSES, Conditioning
from fluvial.gaussianization.course import Course
from fluvial.gaussianization.device_store import choose_device
from fluvial.gaussianization.first_look import FirstLook, column_of, first_look, names_of
from fluvial.gaussianization.joint_layers import ConditionRows
from fluvial.gaussianization.layers import LayerwiseFit, Settings
from fluvial.gaussianization.marginals import Marginal, TailKind
from fluvial.gaussianization.rotations import RotationKind, kind_of
from fluvial.gaussianization.shard import WEIGHT_STEPS, Plan, is_training
from fluvial.gaussianization.sources import Appended, RowSource, open_rows
from fluvial.gaussianization.store import parse_size
from fluvial.gaussianization.tree import merge
from fluvial.gaussianization.workers import GroupWorkers, LocalWorkers, Workers, in_group, single_threaded, together
from fluvial.training.history import History, Row

Limit = float | None
_FAR_OUT = 100.0  # distances between the quantiles 16 % and 84 %
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
    whiten: bool = False,
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
    device: str | None = None,
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
        whiten: Begin with a linear map to principal axes of variance 1: for data that are linear mixtures, above all with ``rotation="ica"``. The
            first layer then sees those axes, and not the columns.
        max_layers: No more layers than these.
        patience: Stop after so many layers without gain on the rows held out; the layers after the best one are left out.
        min_gain: What counts as one, in nats; -inf keeps every layer.
        validation: Share of the rows to hold out, 0 for none, or the rows themselves, in any form ``data`` takes.
        dither: Width of uniform noise added to columns of steps, one number or one for each column, None for none; "auto" finds columns with ties
            and warns: to whole numbers, rounded ones and levels it adds noise as wide as their step; to a column with an atom, such as many zeros,
            noise of 1 % of the spread of its other values, so that samples so close above the atom stand for it.
        columns: Of a file, those that are x.
        condition: Of a file, those that are the condition.
        weight: Of a file, that of the weights.
        conditioning: How the splines follow the condition, where there is one: "classes" (splines of their own for each of few different conditions,
            in rotations they share), "kernel" (fitted around anchors, and averaged with weights that fall off with the distance), "network"
            (weights from a network that is trained in every layer), "joint" (splines along lines that lean towards the condition, which a flow of its
            own Gaussianizes: the fit of a block-triangular map of both), "auto" (classes where there are few different conditions, else joint for
            several condition columns and a kernel for one).
        train_rotations: Make the rotations trainable ones, for `fluvial.fit`.
        seed: Of rows held out, rotations and dithering.
        memory: What each process may take, as bytes or "500M": beyond half of it the rows are kept in a scratch file.
        scratch: Folder for that; default the system's.
        threads: How many work in each process; default those of torch.
        device: Where the rows live, and all passes over them run in torch: "cuda", "cuda:1", "mps", "cpu", or "auto" (a CUDA card if there is one).
            They must have room there, four bytes per number and ten to eighteen per row. In a process group "cuda" gives each process a card of its
            own. Rows are read, and first maps fitted, on the processor. None: on the processor, by compiled loops, or in files if memory is short.
            Devices differ in the last digits; a fit that is resumed may go on with another one.
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
        ValueError: If the data hold numbers that are not finite or not of a size that single precision holds, columns or a condition that are
            constant, or too few rows (of positive weight); if an argument makes no sense.
        TypeError: If an argument or the data are of another kind.

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
        bins=bins_of(bins),
        alpha=alpha_of(alpha),
        tail="gaussian" if tail == "bounded" else tail,
        max_layers=whole(max_layers, "max_layers", least=1),
        patience=whole(patience, "patience", least=1),
        min_gain=gain_of(min_gain),
        train_rotations=train_rotations,
        conditioning=conditioning,
        seed=seed_of(seed),
    )
    _check(settings)
    if resume and directory is None:
        raise ValueError("fit: resume=True needs the directory that holds the layers so far")
    threads = None if threads is None else whole(threads, "threads", least=1)
    share = share_of(validation)
    if memory is not None:
        parse_size(memory)
    if device is not None:
        _check_device(device, settings, client)
    place = together(lambda: choose_device(device))
    wishes: dict[str, Any] = {"columns": columns, "condition": condition, "weight": weight}
    given = data.spec if isinstance(data, Dataset) else None
    if given is not None and given.dequantize is not None and isinstance(dither, str):
        dither = given.dequantize
    plan = together(lambda: _plan(open_rows(_noisy(data, seed), **wishes), validation, share, seed, wishes))
    # Of another form than the columns: known before they are read.
    bounds = None if bounds is None else bounds_of(bounds, plan.source.features)
    given_widths = None if isinstance(dither, str) and dither == "auto" else widths_of(0.0 if dither is None else dither, plan.source.features)
    plan = dataclasses.replace(plan, memory=memory, scratch=None if scratch is None else os.fspath(scratch), device=place)
    settings = dataclasses.replace(settings, conditioning=together(lambda: _conditioning(plan, settings)))
    context, interrupted = _context(plan, settings, threads, client) if settings.conditioning == "joint" else (None, False)
    with contextlib.closing(_workers(plan, threads, client)) as workers, single_threaded():
        look = first_look(workers, plan)
        widths = _widths(look, plan) if given_widths is None else given_widths
        _warn_of_dependence(look, widths, plan)
        before, scale, unit = _first_maps(workers, plan, look, widths, bounds, bounded=tail == "bounded", whiten=whiten)
        fitting = LayerwiseFit(workers, plan, before, settings, unit=unit, context=context)
        course = Course(fitting, _spec(plan.source, widths, given), None if directory is None else Path(directory), look, on_layer)
        with course.opened():
            workers.call("load", before, widths, scale, context)
            flow = course.run(resume=resume, shown=progress and workers.leads, interrupted=interrupted)
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


def _check_device(device: str, settings: Settings, client: Any) -> None:
    """Refuse what is not done on a device, whether there is one or not."""
    if client is not None:
        raise ValueError(
            f"fit: device={device!r} is not for the workers of Dask, which compute on their processors; leave out device, or start one process "
            "for each card (torchrun)"
        )
    if settings.conditioning == "joint":
        raise ValueError(f"fit: conditioning='joint' is not done on a device, got device={device!r}; leave it out, or take 'kernel' or 'network'")


def _plan(source: RowSource, validation: Any, share: float | None, seed: int, wishes: dict[str, Any]) -> Plan:
    train_rows = source.rows
    if share is None:
        source = Appended(source, open_rows(validation, **(wishes if isinstance(validation, str | os.PathLike) else {})))
    held_out = share or 0.0
    if train_rows * (1 - held_out) < _FEWEST:
        less = f" less a share of {held_out:g} that is held out (validation)" if held_out and train_rows >= _FEWEST else ""
        raise ValueError(f"fit: {train_rows} rows{less} are too few to fit marginal distributions to; at least {_FEWEST} are needed for training")
    return Plan(source, train_rows, held_out, seed, choose_engine(source.rows, source.features))


def _conditioning(plan: Plan, settings: Settings) -> Conditioning:
    """What "auto" comes to, as far as it must be known at once: a joint fit where anchors would not fill the space of the conditions."""
    possible = settings.conditioning == "auto" and settings.marginal in ("spline", "affine") and plan.device is None
    if not possible or plan.source.condition_features < 2:
        return settings.conditioning
    conditions = plan.source.read_block(0)[1]
    return "joint" if conditions is not None and len(np.unique(conditions, axis=0)) > MOST_CLASSES else "auto"


def _workers(plan: Plan, threads: int | None, client: Any) -> Workers:
    threads = torch.get_num_threads() if threads is None else threads
    if client is not None:
        from fluvial.gaussianization.dask_workers import DaskWorkers

        return DaskWorkers(plan, client, threads=threads)
    if in_group():
        return GroupWorkers(plan, threads=threads)
    return LocalWorkers(plan, threads=threads)


def _context(plan: Plan, settings: Settings, threads: int | None, client: Any) -> tuple[Encoded, bool]:
    """What Gaussianizes the conditions: a flow of their own, fitted to them alone; and whether that was interrupted."""
    if not plan.source.condition_features:
        raise ValueError("fit: conditioning='joint', but the data have no condition; give (x, c), or condition= the columns of a file")
    plan = dataclasses.replace(plan, source=ConditionRows(plan.source))
    settings = Settings(bins=settings.bins, alpha=settings.alpha, max_layers=_CONTEXT_LAYERS, seed=settings.seed)
    with contextlib.closing(_workers(plan, threads, client)) as workers, single_threaded(), warnings.catch_warnings():
        # Where conditions are tied noise is needed to fit, but none is added to those that are encoded.
        warnings.filterwarnings("ignore", "fit: columns with")
        look = first_look(workers, plan)
        widths = _widths(look, plan)
        before, scale, unit = _first_maps(workers, plan, look, widths, None)
        course = Course(LayerwiseFit(workers, plan, before, settings, unit=unit), _spec(plan.source, widths, None), None, look, None)
        workers.call("load", before, widths, scale)
        codec = course.run(resume=False, shown=False).codec
    if widths.any():
        # A condition in the middle of its step.
        codec.parts[0].parts[-1].loc.sub_(torch.from_numpy(widths / 2))
    return Encoded(codec), course.stopped == "interrupted"


def _widths(look: FirstLook, plan: Plan) -> np.ndarray:
    """Width of the noise for every column, found by looking at them."""
    ties = [ties_of(column) for column in look.sample.T]
    for sentence in describe_ties(ties, names_of(plan.source)):
        warnings.warn(sentence, stacklevel=3)
    return np.array([one.width for one in ties])


def _warn_of_dependence(look: FirstLook, widths: np.ndarray, plan: Plan) -> None:
    sample = look.sample[is_training(plan, look.numbers)]
    low, middle, high = np.quantile(sample, [0.159, 0.5, 0.841], axis=0)
    # One row far out lies on a line with all the others.
    reach = np.where(high > low, _FAR_OUT * (high - low), np.inf)
    dependent = dependent_columns(sample[(np.abs(sample - middle) <= reach).all(1)], widths)
    if dependent:
        named = ", ".join(names_of(plan.source)[k] for k in dependent[:6]) + ", …" * (len(dependent) > 6)
        warnings.warn(
            f"fit: columns {named} are linear combinations of each other, so that the data have no density in {plan.source.features} dimensions; "
            "leave one of them out, or add noise (Dataset(noise=…))",
            stacklevel=3,
        )


def _first_maps(
    workers: Workers,
    plan: Plan,
    look: FirstLook,
    widths: np.ndarray,
    bounds: Sequence[tuple[Limit, Limit]] | None,
    *,
    bounded: bool = False,
    whiten: bool = False,
) -> tuple[Chain, float, float]:
    """The codec before the first layer, the factor that makes weights integers, and the sum of integers worth a row."""
    low, high = look.low, look.high
    kind, names = column_of(plan.source), names_of(plan.source)
    constant = np.flatnonzero((high <= low) & (widths == 0))
    if len(constant):
        named = ", ".join(names[k] for k in constant[:5]) + ", …" * (len(constant) > 5)
        hold, them = (f"{kind}s {named} hold", "them") if len(constant) > 1 else (f"{kind} {named} holds", "it")
        raise ValueError(f"fit: {hold} one value only; leave {them} out{' (Dataset(drop_constant=True))' * (kind == 'column')}")
    codecs: list[Bijection] = []
    if bounds is not None or bounded:
        codecs.append(_bounds(bounds, low, high + widths, plan.source))
    first = codecs[0].double() if codecs else None
    some = look.sample if first is None else first.encode(torch.from_numpy(look.sample)).numpy()
    # Near most rows, so that no row far out, held out perhaps, takes the digits of the sums of distances to it.
    centre = np.median(some, axis=0)
    sums: Any = merge(workers.call("moments", first, centre, widths, look.heaviest), plan.source.blocks)
    number, number2, positive = sums["number"]
    _check_weights(number, number2, positive, whole=look.whole)
    mean = sums["sum"] / number
    sd = np.sqrt(np.maximum(sums["square"] / number - mean**2, 0.0))
    if not bool((sd > 0).all()):
        raise ValueError(f"fit: {kind} {names[int(np.argmin(sd))]} holds one value only in the training rows; leave it out")
    # A few rows far out would leave no digits of single precision to the others.
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
    if whiten:
        noisy = look.sample + widths * np.random.default_rng(plan.seed).random((len(some), len(widths)))
        kept = is_training(plan, look.numbers) & (look.weight > 0)
        rows, weight = torch.from_numpy(noisy[kept]), torch.from_numpy(look.weight[kept] / look.weight.max())
        whitening = Whiten(plan.source.features).double()
        whitening.fit_(standardize.encode(rows if first is None else first.encode(rows)), weight=weight)
        codecs.append(whitening.float())
    if look.whole:
        return Chain(codecs), 1.0, 1.0
    # Kish's effective number of rows is (Σw)²/Σw²; weights were counted in units of the largest.
    return Chain(codecs), WEIGHT_STEPS / look.heaviest, WEIGHT_STEPS * number2 / number


def _check_weights(number: float, number2: float, positive: float, *, whole: bool) -> None:
    """Refuse training rows of too little weight, from the sums of weights, of their squares, and of the rows that have any."""
    if not number > 0:
        raise ValueError("fit: the weights of the training rows sum to 0")
    needed = f"too few to fit marginal distributions to; at least {_FEWEST} are needed"
    if positive < _FEWEST:
        raise ValueError(f"fit: only {positive:.0f} of the training rows have a weight above 0, {needed}")
    # Whole weights are rows that are repeated, and one of them counts as often.
    if not whole and number**2 / number2 < _FEWEST:
        raise ValueError(f"fit: by their weights the training rows are worth {number**2 / number2:.3g} rows (Kish's effective number), {needed}")


def _bounds(bounds: Sequence[tuple[Limit, Limit]] | None, low: np.ndarray, high: np.ndarray, source: RowSource) -> Bounds:
    if bounds is None:
        margin = (high - low) / source.rows
        return Bounds((low - margin).tolist(), (high + margin).tolist())
    for k, (least, most) in enumerate(bounds):
        if (least is not None and low[k] < least) or (most is not None and high[k] > most):
            given = f"{_told(least)} and {_told(most)}"
            raise ValueError(f"fit: column {names_of(source)[k]} goes from {low[k]:g} to {high[k]:g}, beyond its bounds {given}")
    return Bounds([pair[0] for pair in bounds], [pair[1] for pair in bounds])


def _told(bound: Limit) -> str:
    return "None" if bound is None else f"{bound:g}"


def _spec(source: RowSource, widths: np.ndarray, given: DataSpec | None) -> DataSpec:
    dequantize = tuple(widths.tolist()) if widths.any() else None
    if given is not None:
        return given.replace(dequantize=dequantize)
    condition = (source.condition_features,) if source.condition_features else None
    return DataSpec((source.features,), names=source.names, condition=condition, condition_names=source.condition_names, dequantize=dequantize)


def _noisy(data: Any, seed: int) -> Any:
    """Data with the noise that their description asks for, drawn once."""
    if not isinstance(data, Dataset) or not np.any(data.spec.noise):
        return data
    spec = data.spec.replace(dequantize=None)
    x = spec.perturb(data.x, torch.Generator().manual_seed(seed))
    return Dataset(x, data.c, data.weight, spec=data.spec, name=data.name, synthetic=data.synthetic)
