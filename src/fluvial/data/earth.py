"""Catalogues of events on the Earth, as points of the sphere."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fluvial.data.dataset import Dataset
from fluvial.data.latlon import unit_vectors
from fluvial.manifolds import Sphere

SOURCE = "https://github.com/oxcsml/riemannian-score-sde (folder data)"


class Catalogue(NamedTuple):
    """A published table of events.

    Attributes:
        file: Name of the file with the columns latitude, longitude in degrees.
        original: Its name in the public source; either is read.
        rows: Number of events.
        checksum: First 16 hexadecimal digits of the SHA-256 of the numbers (float64, little-endian, row by row), or None where not known.
        provider: Who recorded the events.
    """

    file: str
    original: str
    rows: int
    checksum: str | None
    provider: str


CATALOGUES = {
    "volcanoes": Catalogue("volcano.csv", "volerup.csv", 827, "cb6218041a98f8a9", "NOAA/NCEI significant volcanic eruptions database"),
    "earthquakes": Catalogue("earthquake.csv", "quakes_all.csv", 6120, None, "NOAA/NCEI significant earthquakes database"),
    "floods": Catalogue("flood.csv", "flood.csv", 4875, "61bb4e77ae904e00", "Dartmouth Flood Observatory, G. R. Brakenridge"),
    "fires": Catalogue("fire.csv", "fire.csv", 12809, None, "NASA EOSDIS FIRMS active fire data"),
}


def volcanoes(*, root: str | Path | None = None, noise: float = 0.0) -> Dataset:
    """827 volcanic eruptions at 267 places, on ``Sphere(2)``.

    Two rows of three repeat an earlier one, so no density has a bounded likelihood here: `fluvial.fit` refuses the data without noise,
    and figures without it depend on how far a model is pushed.

    Args:
        root: Folder of the file; default the folder ``earth`` of the environment variable FLUVIAL_DATA, or that folder itself.
        noise: Standard deviation of Gaussian noise in training, in radians: 0.01 is 64 km.

    Returns:
        A `Dataset` of shape (827, 3).

    Raises:
        FileNotFoundError: If the file is not there; the message says where to get it.
        ValueError: If it is not the published table.

    References:
        E. Mathieu, M. Nickel, Riemannian continuous normalizing flows, 2020, arXiv:2006.10605.
    """
    return _load("volcanoes", root, noise)


def earthquakes(*, root: str | Path | None = None, noise: float = 0.0) -> Dataset:
    """6120 earthquakes at 5447 places, on ``Sphere(2)``: one row of nine is a repeat, so training asks for noise. See `volcanoes`."""
    return _load("earthquakes", root, noise)


def floods(*, root: str | Path | None = None, noise: float = 0.0) -> Dataset:
    """4875 floods at 4861 places, on ``Sphere(2)``. See `volcanoes`."""
    return _load("floods", root, noise)


def fires(*, root: str | Path | None = None, noise: float = 0.0) -> Dataset:
    """12 809 fires at 12 802 places, on ``Sphere(2)``. See `volcanoes`."""
    return _load("fires", root, noise)


def _load(name: str, root: str | Path | None, noise: float) -> Dataset:
    catalogue = CATALOGUES[name]
    path = _find(name, catalogue, root)
    places = _degrees(path)
    if len(places) != catalogue.rows:
        raise ValueError(f"{path}: expected {catalogue.rows} events, got {len(places)}; fetch {catalogue.original} again from {SOURCE}")
    found = hashlib.sha256(places.astype("<f8").tobytes()).hexdigest()[:16]
    if catalogue.checksum not in (None, found):
        raise ValueError(
            f"{path}: the numbers differ from the published table (checksum {found}, expected {catalogue.checksum}); "
            f"fetch {catalogue.original} again from {SOURCE}"
        )
    return Dataset(
        unit_vectors(places[:, 0], places[:, 1]),
        manifold=Sphere(2),
        names=("x", "y", "z"),
        noise=noise,
        name=name,
        citation=f"{catalogue.provider}; compiled by E. Mathieu, M. Nickel, arXiv:2006.10605 (2020)",
        licence="none stated by the compilers; credit the provider",
    )


def _find(name: str, catalogue: Catalogue, root: str | Path | None) -> Path:
    wanted = f"{catalogue.file} ({catalogue.rows} rows, latitude and longitude in degrees; {catalogue.original} of {SOURCE})"
    given = root if root is not None else os.environ.get("FLUVIAL_DATA")
    if not given:
        raise FileNotFoundError(f"{name}: set the environment variable FLUVIAL_DATA (or pass root=) to a folder with earth/{wanted}")
    folders = [Path(given), Path(given) / "earth"]
    for path in (folder / file for folder in folders for file in (catalogue.file, catalogue.original)):
        if path.is_file():
            return path
    where = "root" if root is not None else "the environment variable FLUVIAL_DATA"
    raise FileNotFoundError(f"{name}: no such file in {given} or its folder earth, given by {where}: expected {wanted}")


def _degrees(path: Path) -> np.ndarray:
    """Latitude and longitude, shape (n, 2): every line from the first that starts with two numbers."""
    places: list[tuple[float, float]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        fields = line.split(",")
        try:
            places.append((float(fields[0]), float(fields[1])))
        except (ValueError, IndexError):
            # The originals open with up to four lines of comments and names.
            if places and line.strip():
                raise ValueError(f"{path}: line {number} is not latitude, longitude: {line[:40]!r}") from None
    return np.array(places, np.float64).reshape(-1, 2)
