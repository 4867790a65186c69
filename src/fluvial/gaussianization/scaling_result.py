"""What a study of layers against dimension has found."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fluvial.gaussianization.scaling import FAMILIES, ScalingCurve
from fluvial.gaussianization.scaling_families import SAMPLED
from fluvial.gaussianization.scaling_images import IMAGES
from fluvial.gaussianization.theory import gaussian_loss
from fluvial.metrics.estimate import finite_or_none

FILE = "study.json"
FORMAT = 1
_ORDER = (*FAMILIES, *SAMPLED, *IMAGES)


@dataclass(frozen=True)
class Cell:
    """One experiment: a family in D dimensions, once.

    Attributes:
        family: Its name.
        features: D.
        repeat: Number of the repetition.
        loss: L₀ in nats.
        error: Its standard error; 0 for a covariance.
        lowest: The least loss on the way; NaN for a covariance.
        layers: For every factor f the number of layers with L ≤ L₀/f, infinite where that was not reached.
        followed: Layers that were added.
        stopped: "reached", "layers" or "out of reach", see `Followed`.
        reference: The NLL in nats that stands for the entropy of pictures, None where the density is known.
        seconds: That it took.
    """

    family: str
    features: int
    repeat: int
    loss: float
    error: float
    lowest: float
    layers: Mapping[float, float]
    followed: int
    stopped: str
    reference: float | None = None
    seconds: float = math.nan

    @classmethod
    def of_covariance(cls, family: str, features: int, repeat: int, layers: Mapping[float, float], covariance: Tensor) -> "Cell":
        """That of a Gaussian that was followed without samples."""
        most = max(layers.values())
        stopped = "reached" if math.isfinite(most) else "layers"
        followed = int(most) if math.isfinite(most) else 0
        return cls(family, features, repeat, gaussian_loss(covariance), 0.0, math.nan, layers, followed, stopped)

    @property
    def key(self) -> tuple[str, int, int]:
        """Family, dimension, repetition."""
        return self.family, self.features, self.repeat

    def to_dict(self) -> dict[str, Any]:
        """Plain entries for JSON; what is not finite becomes None."""
        plain = {name: finite_or_none(value) if isinstance(value, float) else value for name, value in vars(self).items()}
        return plain | {"layers": [[factor, finite_or_none(count)] for factor, count in self.layers.items()]}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "Cell":
        """The inverse of `to_dict`."""
        layers = {float(factor): math.inf if count is None else float(count) for factor, count in entries["layers"]}
        numbers = {name: math.nan if entries[name] is None else float(entries[name]) for name in ("loss", "error", "lowest", "seconds")}
        return cls(**{**entries, **numbers, "layers": layers})

    def __str__(self) -> str:
        counts = ", ".join(f"1/{factor:g} after {_number(count)}" for factor, count in self.layers.items())
        return f"{self.family}, D = {self.features}, repetition {self.repeat + 1}: {counts} layers ({self.stopped}), {self.seconds:.1f} s"


@dataclass(frozen=True)
class StudyResult:
    """The cells of a study, and the curves through them.

    Args:
        settings: Of the study, besides families, dimensions and repetitions.
        cells: Finished ones.
        left_out: What could not be studied, and why.
        complete: Whether all cells are finished.
        fitted_from: The smallest D that counts for slope and exponent.
    """

    settings: Mapping[str, Any]
    cells: list[Cell]
    left_out: list[str]
    complete: bool = True
    fitted_from: int = 16

    @property
    def families(self) -> list[str]:
        """Names: Gaussians, other densities, pictures."""
        names = list(dict.fromkeys(cell.family for cell in self.cells))
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))

    @property
    def factors(self) -> list[float]:
        """F."""
        return [float(factor) for factor in self.settings["factors"]]

    @property
    def curves(self) -> list[ScalingCurve]:
        """One for each family and factor that was reached in any dimension."""
        found = [(name, factor) for name in self.families for factor in self.factors]
        return [self.curve(*key) for key in found if self._reached(*key)]

    def curve(self, name: str, factor: float) -> ScalingCurve:
        """Layers against dimension, where all repetitions have reached the factor.

        Raises:
            KeyError: If there is no such dimension.
        """
        reached = self._reached(name, factor)
        if not reached:
            raise KeyError(f"{name!r} has not been divided by {factor:g} in any dimension; there are {self.families} and factors {self.factors}")
        return ScalingCurve.of(name, factor, reached, fitted_from=self.fitted_from)

    def counts(self, name: str, factor: float) -> dict[int, list[float]]:
        """Layers needed in every repetition, infinite where the factor was not reached, by dimension."""
        counts: dict[int, list[float]] = {}
        for cell in sorted(self.cells, key=lambda cell: (cell.features, cell.repeat)):
            if cell.family == name and factor in cell.layers:
                counts.setdefault(cell.features, []).append(cell.layers[factor])
        return counts

    def unreached(self, name: str, factor: float) -> list[int]:
        """Dimensions in which at least one repetition has not reached the factor."""
        return [size for size, counts in self.counts(name, factor).items() if not all(map(math.isfinite, counts))]

    def to_dict(self) -> dict[str, Any]:
        """Plain entries for JSON: what is needed to read it again, and the curves."""
        return {
            "format": FORMAT,
            "settings": dict(self.settings),
            "complete": self.complete,
            "left_out": list(self.left_out),
            "cells": [cell.to_dict() for cell in self.cells],
            "curves": [curve.to_dict() | {"unreached": self.unreached(curve.name, curve.factor)} for curve in self.curves],
        }

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> "StudyResult":
        """What is in study.json of a folder.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file is broken.
        """
        path = Path(directory, FILE)
        if not path.is_file():
            raise FileNotFoundError(f"there is no {FILE} in {os.fspath(directory)}; ScalingStudy(…).run(directory) writes one")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"{path} has format {content['format']}, this version reads {FORMAT}; make it again")
            if not isinstance(content["settings"], dict):
                raise TypeError("its settings are no mapping")
            cells = [Cell.from_dict(entries) for entries in content["cells"]]
            return cls(content["settings"], cells, content["left_out"], complete=content["complete"])
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a whole study ({type(error).__name__}: {error}); remove it, or start afresh with resume=False") from None

    def __str__(self) -> str:
        lines = [f"{'family':<30}{'factor':>7}{'slope':>8}{'theory':>8}{'exponent':>10}   D: layers"]
        for name in self.families:
            for factor in self.factors:
                slope, exponent = self.slopes(name, factor)
                lines.append(f"{name:<30}{factor:>7g}{slope:>8}{math.log(factor) / 2:>8.3f}{exponent:>10}   {self.counted(name, factor)}")
        if not self.complete:
            lines.append("Not all cells are finished.")
        return "\n".join([*lines, *self.left_out])

    def summary(self) -> str:
        """In a sentence: what was done, and the slopes for the largest factor."""
        factor = max(self.factors)
        slopes = [(name, self.slopes(name, factor)[0]) for name in self.families]
        found = [f"{slope} ({name})" for name, slope in slopes if slope != "–"]
        text = f"{len(self.cells)} experiments on {len(self.families)} families of distributions"
        if found:
            text += f"; layers per dimension that divide the loss by {factor:g}: {', '.join(found)}; theory {math.log(factor) / 2:.3f}"
        return f"{text}." if self.complete else f"{text}. Not all cells are finished."

    def slopes(self, name: str, factor: float) -> tuple[str, str]:
        """Slope and exponent in digits, – where fewer than two of the dimensions that count were reached, * where not all of them were."""
        if not self._reached(name, factor):
            return "–", "–"
        curve = self.curve(name, factor)
        mark = "*" if any(size >= self.fitted_from for size in self.unreached(name, factor)) else ""
        digits = [(curve.slope, 3), (curve.exponent, 2)]
        # A slope of 0 has no sign.
        slope, exponent = (f"{round(value, places) + 0.0:.{places}f}{mark}" if math.isfinite(value) else "–" for value, places in digits)
        return slope, exponent

    def counted(self, name: str, factor: float) -> str:
        """Mean numbers of layers at every D in one line."""
        parts = []
        for size, counts in self.counts(name, factor).items():
            parts.append(f"{size}: {_number(sum(counts) / len(counts))}")
        return ", ".join(parts)

    def _reached(self, name: str, factor: float) -> dict[int, list[float]]:
        return {size: counts for size, counts in self.counts(name, factor).items() if all(map(math.isfinite, counts))}


def _number(count: float) -> str:
    return f"{count:.3g}" if math.isfinite(count) else "–"
