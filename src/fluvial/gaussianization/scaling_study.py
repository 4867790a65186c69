"""Layers against dimension for many kinds of distributions: an experiment that can be interrupted."""

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.files import write_atomic
from fluvial.gaussianization.scaling import FAMILIES, layers_needed
from fluvial.gaussianization.scaling_families import SAMPLED
from fluvial.gaussianization.scaling_images import IMAGES, Pictures, dequantize, shrink
from fluvial.gaussianization.scaling_result import FILE, Cell, StudyResult
from fluvial.gaussianization.scaling_samples import Followed, SampleLayers, follow, reference_rows
from fluvial.gaussianization.theory import checked_count, checked_factor
from fluvial.gaussianization.workers import single_threaded
from fluvial.study import Study
from fluvial.training.checkpoint import locked
from fluvial.training.interruption import Interruption

_BY_SAMPLES = ("AR(1), ρ = 0.9, from samples", "mixture of 8", "bananas in pairs", "banana, one arc", "banana tree")
_FEW = 8  # dimensions, up to which projections are so structured that they take twice as many bins
_BINS = 16
_SHARE = 5  # of pictures without an official test set, one in so many is held out


class _Interrupted(Exception):  # noqa: N818 - not an error
    """Between two layers."""


@dataclasses.dataclass(frozen=True)
class ScalingStudy(Study):
    r"""Count the layers with random rotations that divide the loss by given factors, against dimension, for Gaussians, other densities and pictures.

    The loss is :math:`L = \mathrm{KL}(p\,\|\,q)`. A layer is a uniform random rotation, the first one too, followed by one-dimensional maps; n is
    the number of the first layer with :math:`L_n \le L_0/f`. Before layer one are

    - for Gaussians, followed by their covariances without samples (`gaussian_scaling`), the covariance as it is, of mean eigenvalue 1;
    - for samples, columns brought to mean 0 and variance 1. The maps are splines through the quantiles of the training rows, and losses are
      means of log p − log q over other rows. The entropy of pictures is unknown: in place of p stands the best flow of up to 30 layers along
      principal axes, fitted to the same rows, so that L is the distance to that flow, and 0 is not the least there can be.

    A cell (family, D, repetition) ends early where the pace of its later half, kept up, would need more than ``max_layers``.

    Args:
        features: Dimensions D of Gaussians.
        sample_features: Dimensions D of other densities, and of Gaussians from samples.
        digits_sides: Sides k of the digits of scikit-learn (8 × 8), D = k².
        mnist_sides: Sides k of those of MNIST (28 × 28).
        families: Names, of `FAMILIES`, `SAMPLED` and `IMAGES`; default the former, five of the second, and the last.
        factors: f > 1.
        repeats: Repetitions with other rotations, samples, and parameters where these are random.
        rows: Training rows; no more than these of pictures.
        held_out: Rows on which losses are measured; of pictures the official test set, or one in five.
        bins: Of the splines; default 32 up to D = 8 and 16 above, and at most ½√rows.
        max_layers: Layers after which a factor counts as not reached. Gaussians by their covariances have no limit.
        seed: Of everything.

    Raises:
        ValueError: If there is nothing to do, a family is unknown, or a number makes no sense.

    References:
        Draxler, Kühmichel, Rousselot, Müller, Schnörr, Köthe (2023), "On the convergence rate of Gaussianization with random rotations",
        arXiv:2306.13520.

    Example:
        >>> study = ScalingStudy([16, 32], families=["AR(1), ρ = 0.9"], factors=[10.0], repeats=1)
        >>> 1.0 < study.run(progress=False).curve("AR(1), ρ = 0.9", 10.0).slope < 1.6
        True
    """

    features: Sequence[int] = (2, 4, 8, 16, 32, 64, 128)
    sample_features: Sequence[int] = (2, 4, 8, 16, 32, 64)
    digits_sides: Sequence[int] = (2, 3, 4, 6, 8)
    mnist_sides: Sequence[int] = (2, 3, 4, 6, 8, 16)
    families: Sequence[str] | None = None
    factors: Sequence[float] = (1.25, 2.0, 10.0)
    repeats: int = 3
    rows: int = 100_000
    held_out: int = 20_000
    bins: int | None = None
    max_layers: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        known = [*FAMILIES, *SAMPLED, *IMAGES]
        families = (*FAMILIES, *_BY_SAMPLES, *IMAGES) if self.families is None else tuple(self.families)
        unknown = [name for name in families if name not in known]
        if unknown:
            raise ValueError(f"families: {unknown[0]!r} is unknown; there are {', '.join(map(repr, known))}")
        factors = tuple(sorted({float(checked_factor(factor)) for factor in self.factors}))
        if not factors or factors[0] <= 1:
            raise ValueError(f"factors: expected numbers above 1, got {list(self.factors)}")
        for name in ("repeats", "max_layers"):
            checked_count(name, getattr(self, name))
        if self.rows < 100 or self.held_out < 2:
            raise ValueError(f"rows and held_out: expected at least 100 rows to fit quantiles to and 2 held out, got {self.rows} and {self.held_out}")
        if self.bins is not None and self.bins < 2:
            raise ValueError(f"bins: expected at least 2, got {self.bins}")
        settings = {"families": families, "factors": factors}
        for name, least in (("features", 2), ("sample_features", 2), ("digits_sides", 2), ("mnist_sides", 2)):
            settings[name] = tuple(sorted({int(value) for value in getattr(self, name)}))
            if settings[name] and settings[name][0] < least:
                raise ValueError(f"{name}: expected numbers of at least {least}, where there is something to rotate, got {settings[name][0]}")
        for name, most in (("digits_sides", 8), ("mnist_sides", 28)):
            if settings[name] and settings[name][-1] > most:
                raise ValueError(f"{name}: the pictures have {most} × {most} pixels, got a side of {settings[name][-1]}")
        for name, value in settings.items():
            object.__setattr__(self, name, value)
        if not self._keys():
            raise ValueError(f"ScalingStudy: no dimension is given for any of the families {', '.join(map(repr, families))}")

    @property
    def settings(self) -> dict[str, Any]:
        """What a cell depends on, besides its family, dimension and repetition: plain entries for JSON."""
        return {
            "factors": list(self.factors),
            "rows": self.rows,
            "held_out": self.held_out,
            "bins": self.bins,
            "max_layers": self.max_layers,
            "seed": self.seed,
        }

    def run(self, directory: str | os.PathLike[str] | None = None, *, resume: bool = False, progress: bool = True) -> StudyResult:
        """Work on all cells, from the smallest dimension on.

        Args:
            directory: Folder for study.json, which is written after every cell.
            resume: Go on from the cells there, whose settings must be the same; families, dimensions and repetitions may be others.
            progress: Write a line for every cell to standard error.

        Returns:
            What was found. After Ctrl-C or SIGTERM without the cells that were not finished, and with ``complete`` False.

        Raises:
            ValueError: If the cells there were made with other settings, or the file is broken.
        """
        folder = None if directory is None else Path(directory)
        with contextlib.ExitStack() as held:
            if folder is not None:
                held.enter_context(locked(folder))
            found = self._found(folder) if resume and folder is not None else {}
            pictures, left_out = self._pictures()
            keys = [key for key in self._keys() if key[0] not in left_out]
            cells = [found[key] for key in keys if key in found]
            missing = [key for key in keys if key not in found]
            result = StudyResult(self.settings, cells, list(left_out.values()), complete=not missing)
            held.enter_context(single_threaded())
            interruption = held.enter_context(Interruption())

            def check() -> None:
                if interruption.requested:
                    raise _Interrupted

            self._write(result, folder)
            with contextlib.suppress(_Interrupted):
                for number, key in enumerate(missing):
                    check()
                    start = time.perf_counter()
                    cell = dataclasses.replace(self._cell(*key, pictures=pictures, check=check), seconds=time.perf_counter() - start)
                    result = dataclasses.replace(result, cells=[*result.cells, cell], complete=number + 1 == len(missing))
                    self._write(result, folder)
                    if progress:
                        print(f"{len(result.cells)}/{len(keys)}  {cell}", file=sys.stderr, flush=True)  # noqa: T201
        return result

    @staticmethod
    def read(directory: str | os.PathLike[str]) -> StudyResult:
        """What a study has written into a folder.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file is broken.
        """
        return StudyResult.read(directory)

    def _keys(self) -> list[tuple[str, int, int]]:
        """Family, dimension and repetition of every cell: small ones first, so that there is something to see early."""
        sides = {"digits": self.digits_sides, "MNIST": self.mnist_sides}
        dimensions: Mapping[str, Sequence[int]] = {
            **dict.fromkeys(FAMILIES, self.features),
            **dict.fromkeys(SAMPLED, self.sample_features),
            **{name: [side * side for side in sides[name]] for name in IMAGES},
        }
        keys = [(name, size, repeat) for name in self.families or () for size in dimensions[name] for repeat in range(self.repeats)]
        return sorted(keys, key=lambda key: key[1])

    def _pictures(self) -> tuple[dict[str, Pictures], dict[str, str]]:
        """Pictures by name, and why others are not there."""
        pictures, left_out = {}, {}
        for name in {key[0] for key in self._keys()} & IMAGES.keys():
            try:
                pictures[name] = IMAGES[name]()
            except (FileNotFoundError, ModuleNotFoundError) as error:
                left_out[name] = f"{name} is left out: {str(error).removeprefix(f'{name}: ')}"
        return pictures, left_out

    def _cell(self, family: str, features: int, repeat: int, *, pictures: Mapping[str, Pictures], check: Callable[[], None]) -> Cell:
        if family in FAMILIES:
            # The numbers of `gaussian_scaling`.
            key = self.seed * 1_000_003 + features * 1009 + repeat
            covariance = FAMILIES[family](features, key)
            return Cell.of_covariance(family, features, repeat, layers_needed(covariance, self.factors, seed=key, rotation="haar"), covariance)
        rng = np.random.default_rng([self.seed, zlib.crc32(family.encode()), features, repeat])
        settings = {"factors": self.factors, "max_layers": self.max_layers, "rng": rng, "check": check}
        if family in IMAGES:
            train, held_out = _split(pictures[family], round(math.sqrt(features)), self.rows, rng)
            bins = self._bins(features, len(train))
            reference = reference_rows(train, held_out, bins=bins, check=check)
            followed = follow(SampleLayers(train, held_out, reference, bins=bins), **settings)
            return self._told(family, features, repeat, followed, reference=float(-reference.mean()))
        distribution = SAMPLED[family](features, rng)
        train, held_out = distribution.sample(self.rows, rng), distribution.sample(self.held_out, rng)
        layers = SampleLayers(train, held_out, distribution.log_prob(held_out), bins=self._bins(features, len(train)))
        return self._told(family, features, repeat, follow(layers, **settings))

    def _bins(self, features: int, rows: int) -> int:
        wanted = (2 * _BINS if features <= _FEW else _BINS) if self.bins is None else self.bins
        return min(wanted, max(2, int(math.sqrt(rows) / 2)))

    def _told(self, family: str, features: int, repeat: int, followed: Followed, *, reference: float | None = None) -> Cell:
        return Cell(
            family=family,
            features=features,
            repeat=repeat,
            loss=followed.losses[0],
            error=followed.errors[0],
            lowest=min(followed.losses),
            layers={factor: followed.needed(factor) for factor in self.factors},
            followed=len(followed.losses) - 1,
            stopped=followed.stopped,
            reference=reference,
        )

    def _found(self, folder: Path) -> dict[tuple[str, int, int], Cell]:
        """The cells of an earlier run."""
        if not (folder / FILE).exists():
            return {}
        before = StudyResult.read(folder)
        for name, value in self.settings.items():
            if before.settings.get(name) != value:
                raise ValueError(
                    f"ScalingStudy: {folder / FILE} was made with {name} = {before.settings.get(name)}, not {value}; "
                    "resume with the same, or start afresh with resume=False"
                )
        return {cell.key: cell for cell in before.cells}

    @staticmethod
    def _write(result: StudyResult, folder: Path | None) -> None:
        if folder is not None:
            text = json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
            write_atomic(folder / FILE, text.encode())


def _split(pictures: Pictures, side: int, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Training rows and rows held out of shrunken pictures."""
    x = dequantize(shrink(pictures.images, side), rng)
    if pictures.held_out:
        train, held_out = x[: -pictures.held_out], x[-pictures.held_out :]
    else:
        x = x[rng.permutation(len(x))]
        held_out, train = x[: len(x) // _SHARE], x[len(x) // _SHARE :]
    return train[rng.permutation(len(train))[:rows]], held_out
