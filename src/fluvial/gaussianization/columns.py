"""What the columns of a table are like: continuous, of steps, with atoms, of a size that single precision holds, independent of each other."""

from typing import Literal, NamedTuple

import numpy as np

from fluvial.data.problems import DEPENDENT, DISCRETE_REPEATS, DISCRETE_VALUES

_TIED = 0.5  # a column with fewer distinct values than this share of its rows has ties
_ROUNDING = 4 * float(np.finfo(np.float32).eps)  # steps that are no larger, in units of the largest number, are those of single precision
_ON_STEP = 0.05  # how far a difference may be from a whole number of steps
_STEPS_APART = 20  # on a lattice of steps, neighbouring values are typically no farther apart
_LEVELS = 64  # so few different values are levels, even if nothing is common to the distances between them
_ATOM_SHARE, _ATOM_ROWS, _ATOM_CONTRAST = 0.01, 5, 10  # an atom's share of the rows, its rows, and these in units of those of the typical value
_ATOM_WIDTH = 0.01  # of the noise that spreads an atom, in units of the spread of the other values
_LARGEST, _SMALLEST = 1e36, 1e-36  # numbers that single precision holds, with room for what is computed with them
_FREE_ROWS = 2  # rows for every column from which on dependence is told from a lack of rows
_MOST_COLUMNS = 1024  # whose dependence is looked for; the work grows with their cube
_INVOLVED = 0.05  # entry of a direction from which on a column takes part in it


class Ties(NamedTuple):
    """What rows of a column have in common.

    Attributes:
        kind: "none"; "steps": multiples of a step, or a few levels; "atoms": a few values are those of many rows, and the others are continuous;
            "repeated": values occur again and again, but on no common step.
        width: Of uniform noise that makes the column continuous, or 0.
        value: The heaviest atom.
        share: Its share of the rows.
    """

    kind: Literal["none", "steps", "atoms", "repeated"]
    width: float = 0.0
    value: float = 0.0
    share: float = 0.0


def ties_of(column: np.ndarray) -> Ties:
    """Look for ties in some rows of a column, (n,).

    Noise for steps is as wide as they are: then every value has an interval of its own. Noise for an atom is 1 % as wide as half the distance
    between the quantiles 16 % and 84 % of the other values: narrow beside these, wide beside the digits of single precision.

    Example:
        >>> ties_of(np.arange(100) % 5 / 2).width, ties_of(np.linspace(0, 1, 100) ** 2).kind
        (0.5, 'none')
    """
    values, counts = np.unique(column, return_counts=True)
    rows = len(column)
    if len(values) < 2:
        return Ties("none")
    tied = len(values) < _TIED * rows
    if tied and (step := _common_step(values)):
        return Ties("steps", step)
    heavy = counts >= max(_ATOM_ROWS, _ATOM_SHARE * rows, _ATOM_CONTRAST * float(np.median(counts)))
    others = int(counts[~heavy].sum())
    if heavy.any() and others >= _ATOM_ROWS and len(values) - heavy.sum() >= _TIED * others:
        low, high = np.quantile(np.repeat(values[~heavy], counts[~heavy]), [0.159, 0.841])
        top = int(counts.argmax())
        return Ties("atoms", _ATOM_WIDTH * float(high - low) / 2, float(values[top]), float(counts[top]) / rows)
    if not tied:
        return Ties("none")
    if len(values) <= _LEVELS and rows >= DISCRETE_REPEATS * len(values):
        return Ties("steps", float(np.diff(values).min()))
    return Ties("repeated")


def _common_step(values: np.ndarray) -> float:
    """The step of which all distances between values, increasing, are multiples; 0 where there is none."""
    apart = np.diff(values)
    rounding = _ROUNDING * float(np.abs(values).max())
    apart = apart[apart > rounding]
    if not len(apart):
        return 0.0
    multiple = apart / apart.min()
    # Of large multiples the rounding of the step leaves no digit.
    near = multiple < 1 / _ON_STEP * _STEPS_APART
    off = np.abs(multiple - np.rint(multiple))[near]
    allowed = _ON_STEP + rounding / apart.min()
    if np.median(multiple) > _STEPS_APART or allowed > 5 * _ON_STEP or (off <= allowed).mean() < 1 - _ON_STEP:
        return 0.0
    step = float(np.median(apart[near] / np.rint(multiple[near])))
    short = float(f"{step:.4g}")
    return short if abs(short - step) <= rounding else step


def describe_ties(ties: list[Ties], names: list[str]) -> list[str]:
    """What to warn of: a sentence for every kind of ties there is."""
    found: dict[str, list[str]] = {}
    for tie, name in zip(ties, names):
        if tie.kind == "steps":
            found.setdefault(tie.kind, []).append(f"{name} (steps of {tie.width:g})")
        elif tie.kind == "atoms":
            found.setdefault(tie.kind, []).append(f"{name} ({tie.share:.3g} of its rows are {tie.value:g}; width {tie.width:.3g})")
        elif tie.kind == "repeated":
            found.setdefault(tie.kind, []).append(name)
    sentences = {
        "steps": "fit: columns with ties get uniform noise as wide as their steps: {}; dither=None leaves them as they are",
        "atoms": "fit: columns with atoms, where a density is a spike, get uniform noise that spreads them: {}; samples so close above an atom "
        "stand for it; dither= sets other widths, and a model of these rows apart does without",
        "repeated": "fit: columns with ties on no common step are left as they are: {}; if rows are repeated, give them weights instead, "
        "so that none is both trained on and held out",
    }
    return [text.format(", ".join(found[kind][:5]) + ", …" * (len(found[kind]) > 5)) for kind, text in sentences.items() if kind in found]


def check_extent(low: np.ndarray, high: np.ndarray, names: list[str], *, what: str = "column") -> None:
    """Refuse columns of numbers that single precision does not hold, or does not tell apart.

    Args:
        low: Smallest number of every column.
        high: Largest.
        names: What to call the columns.
        what: What they are.

    Raises:
        ValueError: Naming the first such column, its range, and the mend.
    """
    largest, spread = np.maximum(np.abs(low), np.abs(high)), high / 2 - low / 2
    problems = (
        (largest > _LARGEST, "numbers beyond 1e36, which single precision does not hold with what is computed from them; divide by"),
        ((spread > 0) & (spread < _SMALLEST), "a spread below 1e-36, which single precision does not hold; divide by"),
        ((spread > 0) & (2 * spread < DISCRETE_VALUES * np.finfo(np.float32).eps * largest), "which single precision does not resolve; subtract"),
    )
    for bad, why in problems:
        if bad.any():
            k = int(np.argmax(bad))
            size = low[k] if why.endswith("subtract") else 2 * spread[k] if 0 < spread[k] < _LARGEST else largest[k]
            raise ValueError(f"fit: {what} {names[k]} goes from {low[k]:.6g} to {high[k]:.6g}, {why} {size:.3g} first, say")


def dependent_columns(sample: np.ndarray, widths: np.ndarray) -> list[int]:
    """Columns that are linear combinations of each other, up to rounding; none where rows are too few to tell.

    Args:
        sample: Some rows, (n, D).
        widths: Of uniform noise that each column will get.
    """
    rows, columns = sample.shape
    if columns < 2 or columns > _MOST_COLUMNS or rows < _FREE_ROWS * columns + 2:
        return []
    centred = sample - sample.mean(0)
    variance = np.square(centred).mean(0) + widths**2 / 12
    if not (variance > 0).all():
        return []
    centred /= np.sqrt(variance)
    correlation = centred.T @ centred / rows + np.diag(widths**2 / 12 / variance)
    sizes, directions = np.linalg.eigh(correlation)
    empty = directions[:, sizes <= DEPENDENT * sizes[-1]]
    return np.flatnonzero(np.square(empty).sum(1) > _INVOLVED**2).tolist()
