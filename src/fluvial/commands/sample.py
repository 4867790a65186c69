"""fluvial sample: draw from a trained flow into a file."""

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluvial.commands.arguments import add_device, add_run, command, count
from fluvial.outputs import Block, Layout, check_ending, column_names, write_samples
from fluvial.runs import Run

if TYPE_CHECKING:
    from torch import Tensor

    from fluvial.ensemble import Ensemble
    from fluvial.flow import Flow

BATCH = 65_536
NUMBERS_AT_A_TIME = 2**24  # of one batch: images come in shorter ones
PROGRESS_INTERVAL = 0.5
QUATERNION = ("qx", "qy", "qz", "qw")
ROTATION_VECTOR = ("rx", "ry", "rz")
_NEGATIVE = re.compile(r"-[\d.][\d.,eE_+-]*")


def add(parsers: Any) -> None:
    """Declare the command."""
    parser = command(
        parsers,
        "sample",
        summary="draw samples into a .parquet, .csv, .npy or .npz file",
        description="""\
Draw independent samples from a trained flow, one pass through the decoder each.

Writes one file, whose ending says how: .parquet and .csv with a named column for each number, .npy and .npz with arrays. It appears
under its name when it is whole; an interrupt or a full disk leaves what was there before. Memory stays bounded by the batch
(but .npz is put together in memory). The same seed, number and batch give the same file on the same machine.

Conditional flows need --condition: numbers (0.5,1 or -0.5,1), or a file (.csv .parquet .npy .npz) with one condition in each row; -n samples
are drawn for every row, and the conditions stand in columns beside them. RUN may also be a model.safetensors.""",
        examples="  fluvial sample airports -n 1_000_000 -o airports.parquet --latlon\n"
        "  fluvial sample runs/mine/2 -n 10 --condition temperatures.csv -o out.npz --seed 1",
    )
    add_run(parser)
    parser.add_argument("-n", "--number", metavar="N", type=count, required=True, help="how many samples; for each condition, where there are any")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="where to; replaced if it is there")
    parser.add_argument(
        "--condition",
        metavar="C",
        action="append",
        default=[],
        help="numbers such as -0.5,1, or a file; NAME=numbers for conditions in several parts",
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--batch", metavar="N", type=count, help=f"samples drawn and written at a time; default {BATCH}, fewer for large ones")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--latlon", action="store_true", help="points of the sphere as latitude and longitude in degrees")
    shown.add_argument("--degrees", action="store_true", help="points of the torus as angles in degrees")
    shown.add_argument("--quaternion", action="store_true", help=f"rotations of space as {', '.join(QUATERNION)}, also those in a product")
    shown.add_argument(
        "--rotation-vector", action="store_true", help=f"rotations of space as axis times angle in radians, {', '.join(ROTATION_VECTOR)}"
    )
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw and write."""
    output = Path(arguments.output)
    check_ending(output)
    if arguments.seed < 0:
        raise ValueError(f"sample: seed must not be negative, got {arguments.seed}")
    flow = _flow(arguments)
    conditions = _conditions(flow, arguments.condition)
    each = arguments.number
    rows = each if conditions is None else each * len(next(iter(_leaves(conditions).values())))
    form = QUATERNION if arguments.quaternion else ROTATION_VECTOR if arguments.rotation_vector else None
    layout = _layout(flow, rows, latlon=arguments.latlon, degrees=arguments.degrees, form=form)
    shown: Callable[[np.ndarray], np.ndarray] | None = latitude_longitude if arguments.latlon else angles if arguments.degrees else None
    if form is not None:
        from fluvial.commands.rotation_columns import rotations

        shown = partial(rotations, manifold=flow.manifold, form=form)
    batch = arguments.batch or max(1, min(BATCH, NUMBERS_AT_A_TIME // len(layout.names)))
    began = time.perf_counter()
    drawing = _Drawing(flow, conditions, each, arguments.seed, shown)
    try:
        write_samples(output, _shown(drawing.blocks(rows, batch), rows), layout)
    except KeyboardInterrupt as interrupt:
        interrupt.args = (f"{output} {'is what it was before' if output.exists() else 'was not written'}",)
        raise
    size = output.stat().st_size / 1e6
    print(
        f"{f'{rows:,}'.replace(',', ' ')} samples ({', '.join(layout.columns[:6])}{', …' if len(layout.columns) > 6 else ''}) in {output}: "
        f"{size:.3g} MB, {time.perf_counter() - began:.1f} s"
    )
    if drawing.not_finite:
        print(
            f"fluvial: warning: {drawing.not_finite} of {rows} samples are not finite; fluvial check says why to distrust the flow", file=sys.stderr
        )
    return 0


def with_signs(words: Sequence[str]) -> list[str]:
    """The words of the command line, with conditions that begin with a minus kept from being taken for an option.

    Example:
        >>> with_signs(["sample", "mine", "--condition", "-0.5,0.5", "-n", "3"])
        ['sample', 'mine', '--condition=-0.5,0.5', '-n', '3']
    """
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--condition" and _NEGATIVE.fullmatch(word):
            joined[-1] = f"--condition={word}"
        else:
            joined.append(word)
    return joined


class _Drawing:
    """Draws block after block."""

    def __init__(self, flow: "Flow | Ensemble", conditions: Any, each: int, seed: int, shown: Callable[[np.ndarray], np.ndarray] | None) -> None:
        self.flow, self.conditions, self.each, self.seed, self.shown = flow, conditions, each, seed, shown
        self.not_finite = 0

    def blocks(self, rows: int, batch: int) -> Iterator[Block]:
        """Blocks of `batch` rows; row k has condition k // each."""
        import torch

        from fluvial.conditions import transform
        from fluvial.metrics.likelihood import float_of

        like = float_of(self.flow)
        generator = torch.Generator(like.device).manual_seed(self.seed)
        for start in range(0, rows, batch):
            stop = min(start + batch, rows)
            with torch.no_grad():
                if self.conditions is None:
                    c, x = None, self.flow.sample(stop - start, generator=generator)
                else:
                    index = torch.arange(start, stop) // self.each
                    c = transform(self.conditions, lambda leaf: leaf[index])  # noqa: B023
                    x = self.flow.sample((), transform(c, lambda leaf: leaf.to(like)), generator=generator)
            self.not_finite += int((~torch.isfinite(x).flatten(1).all(1)).sum())
            points = x.cpu().numpy()
            table = None if c is None else np.concatenate([leaf.reshape(len(leaf), -1).numpy() for leaf in _leaves(c).values()], 1)
            yield (points if self.shown is None else self.shown(points)), table


def latitude_longitude(x: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 3) to latitude and longitude in degrees (n, 2), float64.

    Example:
        >>> latitude_longitude(np.array([[0.0, 1.0, 0.0]])).tolist()
        [[0.0, 90.0]]
    """
    x = x.astype(np.float64)
    return np.rad2deg(np.stack([np.arctan2(x[:, 2], np.hypot(x[:, 0], x[:, 1])), np.arctan2(x[:, 1], x[:, 0])], 1))


def angles(x: np.ndarray) -> np.ndarray:
    """Points of the torus (n, k, 2) to angles in degrees (n, k), float64.

    Example:
        >>> angles(np.array([[[0.0, 1.0], [-1.0, 0.0]]])).tolist()
        [[90.0, 180.0]]
    """
    x = x.astype(np.float64)
    return np.rad2deg(np.arctan2(x[..., 1], x[..., 0]))


def _flow(arguments: argparse.Namespace) -> "Flow | Ensemble":
    from fluvial.ensemble import Ensemble
    from fluvial.flow import Flow
    from fluvial.io import load
    from fluvial.training.settings import training_device

    path = Path(arguments.name)
    run = None if path.suffix == ".safetensors" else Run.find(path)
    device = training_device(arguments.device, "32")
    flow = load(path, device=device) if run is None else run.flow(device=device)
    if not isinstance(flow, Flow | Ensemble):
        raise ValueError(f"sample: {path} holds a {type(flow).__name__}; only a Flow or an Ensemble is sampled from here")
    return flow


def _layout(flow: "Flow | Ensemble", rows: int, *, latlon: bool, degrees: bool, form: tuple[str, ...] | None) -> Layout:
    from fluvial.manifolds import Sphere, Torus
    from fluvial.metrics.likelihood import float_of

    shape, spec = flow.manifold.event_shape, flow.spec
    given = None if spec is None else spec.names
    names = given if given is not None else column_names(shape)
    if isinstance(flow.manifold, Torus) and given is not None:
        names = [f"{part} {name}" for name in given for part in ("cos", "sin")]
    dtype = str(float_of(flow).dtype).removeprefix("torch.")
    if latlon:
        if flow.manifold != Sphere(2):
            raise ValueError(f"sample: --latlon is for points of Sphere(2), this flow lives on {flow.manifold}")
        shape, names, dtype = (2,), ("latitude", "longitude"), "float64"
    if degrees:
        if not isinstance(flow.manifold, Torus):
            raise ValueError(f"sample: --degrees is for points of a Torus, this flow lives on {flow.manifold}")
        shape, dtype = (flow.manifold.dim,), "float64"
        names = given if given is not None else column_names(shape)
    if form is not None:
        from fluvial.commands.rotation_columns import rotation_names

        names, dtype = rotation_names(tuple(names), flow.manifold, form=form), "float64"
        shape = (len(names),)
    return Layout(rows, shape, tuple(names), _condition_names(flow), "float64" if dtype == "float64" else "float32")


def _condition_shape(flow: "Flow | Ensemble") -> Any:
    """What the flow declares, else what its data had."""
    return flow.condition if flow.condition is not None or flow.spec is None else flow.spec.condition


def _condition_names(flow: "Flow | Ensemble") -> tuple[str, ...]:
    declared = _condition_shape(flow)
    if declared is None:
        return ()
    if flow.spec is not None and flow.spec.condition_names is not None:
        return tuple(flow.spec.condition_names)
    if isinstance(declared, dict):
        return tuple(name for key, shape in declared.items() for name in (column_names(shape, key) if shape else (key,)))
    return column_names(declared, "c")


def _conditions(flow: "Flow | Ensemble", given: list[str]) -> Any:
    """The conditions as rows, on the CPU; None for an unconditional flow."""
    shape = _condition_shape(flow)
    if shape is None:
        if given:
            raise ValueError("sample: this flow has no condition; leave out --condition")
        return None
    if not given:
        names = ", ".join(_condition_names(flow))
        raise ValueError(
            f"sample: this flow is conditional; give --condition, {len(_condition_names(flow))} numbers ({names}) or a file with such rows"
        )
    if not isinstance(shape, dict):
        if len(given) > 1:
            raise ValueError("sample: --condition can be given once; a file holds several conditions")
        names = None if flow.spec is None else flow.spec.condition_names
        return _rows(given[0], shape, names)
    texts = dict(text.partition("=")[::2] for text in given)
    if set(texts) != set(shape):
        raise ValueError(f"sample: the condition has the parts {', '.join(shape)}, each given as --condition NAME=…; got {', '.join(texts)}")
    parts = {name: _rows(texts[name], shape[name], None) for name in shape}
    longest = max(map(len, parts.values()))
    for name, part in parts.items():
        if len(part) not in (1, longest):
            raise ValueError(f"sample: the parts of the condition must have one number of rows, {name} has {len(part)} and another {longest}")
    return {name: part.expand(longest, *part.shape[1:]) for name, part in parts.items()}


def _rows(text: str, shape: tuple[int, ...], names: tuple[str, ...] | None) -> "Tensor":
    """Numbers or a file -> conditions of shape (m, *shape)."""
    import torch

    from fluvial.data import load

    try:
        rows = torch.tensor([[float(number) for number in text.split(",")]])
    except ValueError:
        if not Path(text).suffix:
            raise ValueError(f"sample: --condition must be numbers such as 0.5,1 or a file, got {text!r}") from None
        # A table may hold more than the condition; without names it must hold nothing else.
        rows = load(text, columns=names).x
    size = int(np.prod(shape, dtype=int))
    if rows[0].numel() != size:
        raise ValueError(f"sample: a condition has {size} numbers, got {rows[0].numel()} in {text}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"sample: the conditions in {text} must be finite")
    return rows.reshape(len(rows), *shape)


def _leaves(c: Any) -> dict[str, Any]:
    from fluvial.conditions import leaves

    return leaves(c)


def _shown(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """The blocks, with a line of progress on a terminal."""
    done, due = 0, time.perf_counter() + PROGRESS_INTERVAL
    shown = False
    for block in blocks:
        yield block
        done += len(block[0])
        if sys.stderr.isatty() and time.perf_counter() > due:
            due, shown = time.perf_counter() + PROGRESS_INTERVAL, True
            print(
                f"\r{done / rows:4.0%}  {f'{done:,}'.replace(',', ' ')} of {f'{rows:,}'.replace(',', ' ')} samples",
                end="",
                file=sys.stderr,
                flush=True,
            )
    if shown:
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
