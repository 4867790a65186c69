"""Blocks of rows through the splines of a layer, whatever these depend on."""

from collections.abc import Callable

import numpy as np
import torch

from fluvial.codecs import AnchorWeights, ConditionalSpline, ShearedSpline
from fluvial.codecs.marginal_spline import Knots, bend_, prepared
from fluvial.codecs.spline_loops import Engine

Bending = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
PIECE = 1024  # rows whose knots are computed at a time


def bending(splines: Knots | ConditionalSpline | ShearedSpline, *, engine: Engine) -> Bending:
    """What sends a block x (D, n) with conditions c (f, n) through splines in place, and adds the logarithms of their slopes to ladj (n,)."""
    if isinstance(splines, ShearedSpline):
        return _sheared(splines, engine)
    if not isinstance(splines, ConditionalSpline):
        tables = prepared(splines)
        return lambda x, c, ladj: bend_(x, splines, tables, ladj, engine=engine)
    if isinstance(splines.weights, AnchorWeights) and splines.weights.bandwidth == 0:
        return _by_class(splines, engine)

    def through(x: np.ndarray, c: np.ndarray, ladj: np.ndarray) -> None:
        # Knots for every row take room; the pieces are the same whatever the workers.
        for start in range(0, x.shape[1], PIECE):
            rows = slice(start, start + PIECE)
            with torch.no_grad():
                z, added = splines.encode_ladj(*(torch.from_numpy(np.ascontiguousarray(part[:, rows].T)) for part in (x, c)))
            x[:, rows] = z.numpy().T
            ladj[rows] += added.double().numpy()

    return through


def _sheared(splines: ShearedSpline, engine: Engine) -> Bending:
    with torch.no_grad():
        cosine, matrix = (part.numpy() for part in splines.shear())
        knots = Knots(*(None if part is None else part.contiguous() for part in splines.spline.knots))
    tables = prepared(knots)

    def through(x: np.ndarray, c: np.ndarray, ladj: np.ndarray) -> None:
        shift = matrix @ c
        x *= cosine[:, None]
        x += shift
        bend_(x, knots, tables, ladj, engine=engine)
        x -= shift
        x /= cosine[:, None]

    return through


def _by_class(splines: ConditionalSpline, engine: Engine) -> Bending:
    """Rows of one class after those of another, each through splines of its own."""
    sets = [Knots(*(None if part is None else part.detach().contiguous() for part in splines.knots_of(k))) for k in range(splines.sets)]
    tables = [prepared(knots) for knots in sets]

    def through(x: np.ndarray, c: np.ndarray, ladj: np.ndarray) -> None:
        chosen = splines.weights(torch.from_numpy(np.ascontiguousarray(c.T))).argmax(-1).numpy()
        for k in np.unique(chosen):
            rows = np.flatnonzero(chosen == k)
            part, added = np.ascontiguousarray(x[:, rows]), np.zeros(len(rows))
            bend_(part, sets[k], tables[k], added, engine=engine)
            x[:, rows] = part
            ladj[rows] += added

    return through
