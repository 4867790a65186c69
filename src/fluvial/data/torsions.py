"""Torsion angles of RNA and proteins, as points of the torus."""

import gzip
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from fluvial.data.dataset import Dataset
from fluvial.data.ramachandran import Ramachandran
from fluvial.manifolds import Torus

RNA_ANGLES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "chi")
RNA_ROWS, RNA_CHECKSUM = 9478, "fb4c4d19e860d28a"
RNA_SOURCE = "fff/data/raw_data/torus/rna.tsv of https://github.com/vislearn/FFF"
# Structures that share so long a run of bases are of one molecule: by chance two of these tables would share one in a hundred times.
SHARED_BASES = 16

# The angles of every residue type that are torsions; further columns of the source are not.
TOP8000_ANGLES = {
    "GLN": ("phi", "psi", "chi1", "chi2", "chi3"),
    "LYS": ("phi", "psi", "chi1", "chi2", "chi3", "chi4"),
    "MET": ("phi", "psi", "chi1", "chi2", "chi3"),
    "HIS": ("phi", "psi", "chi1", "chi2"),
    "TRP": ("phi", "psi", "chi1", "chi2"),
    "CYS": ("phi", "psi", "chi1"),
    "ARG": ("phi", "psi", "chi1", "chi2", "chi3", "chi4"),
    "CISPRO": ("phi", "psi", "chi1", "chi2"),
}
TOP8000_SOURCE = "Top8000/Top8000_filtered_residues_rotarama of https://github.com/rlabduke/reference_data"

# Subtypes of residues, with their numbers in the benchmark.
KINDS = {"General": 138208, "Glycine": 13283, "Proline": 7634, "PrePro": 6910}


def rna_torsions(*, split: str = "random", root: str | Path | None = None, noise: float = 0.0) -> Dataset:
    """9478 nucleotides of 113 RNA structures: seven torsion angles each, on ``Torus(7)``.

    The angles are, in the order and by the names of the published table, alpha, beta, gamma, delta, epsilon, zeta, chi; those called
    epsilon and zeta have not the values of the textbook angles. Densities are per radian in each angle: the uniform one has 12.865 nats.
    The table is complete and has no repeated row, so nothing is left out; one with a missing angle (NaN, 999) is refused.

    Args:
        split: "random" cuts rows at random, as is done in the literature (7582/948/948 rows): the same molecule, even solved twice, is then on
            both sides. "structure" keeps each structure, and all that share 16 consecutive bases with it, on one side, 80/10/10 of the rows.
        root: Folder of the file; default the folder ``torus`` of the environment variable FLUVIAL_DATA, or that folder itself.
        noise: Standard deviation of Gaussian noise in training, in radians.

    Returns:
        A `Dataset` of shape (9478, 7, 2).

    Raises:
        FileNotFoundError: If the file is not there; the message says where to get it.
        ValueError: If it is not the published table, or split is another word.

    References:
        L. J. W. Murray et al., RNA backbone is rotameric, PNAS 100, 2003;
        C.-W. Huang et al., Riemannian diffusion models, 2022, arXiv:2208.07949.
    """
    if split not in ("random", "structure"):
        raise ValueError(f"rna_torsions: split must be 'random' or 'structure', got {split!r}")
    wanted = f"rna.tsv or rna.tsv.gz ({RNA_ROWS} rows: structure, base and seven angles in degrees; {RNA_SOURCE})"
    path = _find("rna_torsions", ("rna.tsv.gz", "rna.tsv"), wanted, root)
    texts, degrees = _table(path, texts=slice(0, 2), angles=slice(2, 9))
    found = hashlib.sha256(degrees.astype("<f8").tobytes()).hexdigest()[:16]
    if len(degrees) != RNA_ROWS or found != RNA_CHECKSUM:
        raise ValueError(
            f"{path}: not the published table ({len(degrees)} rows, checksum {found}; expected {RNA_ROWS} and {RNA_CHECKSUM}); "
            f"fetch {RNA_SOURCE} again"
        )
    return Dataset(
        _points(degrees),
        manifold=Torus(7),
        names=RNA_ANGLES,
        noise=noise,
        official=None if split == "random" else split_by_molecule([row[0] for row in texts], [row[1] for row in texts]),
        name="rna_torsions",
        citation="L. J. W. Murray et al., PNAS 100 (2003); compiled by C.-W. Huang et al., arXiv:2208.07949 (2022)",
        licence="MIT (the compilers' repository)",
    )


def top8000_torsions(
    residue: str | Sequence[str] = "ARG",
    *,
    angles: str | Sequence[str] = ("phi", "psi"),
    conditional: bool = True,
    root: str | Path | None = None,
    noise: float = 0.0,
) -> Dataset:
    """Torsion angles of residues of well-resolved proteins (the Top8000 set), one point of ``Torus(k)`` for each residue.

    Residue types and their torsion angles: GLN (37 152 residues) and MET (18 417) have phi, psi, chi1, chi2, chi3; LYS (34 860) and ARG
    (46 434) chi4 as well; HIS (29 837), TRP (18 748) and CISPRO (2780) phi, psi, chi1, chi2; CYS (16 767) phi, psi, chi1. Angles are rounded
    to 0.01 degree. No angle is missing, so no residue is left out; a table with angles beyond ±180 degrees is refused.

    Args:
        residue: One type, or several: they are put one after the other, with the type as a one-hot condition in the order given.
        angles: Which, or "all" that all the given types have. Default phi and psi, the plane of Ramachandran.
        conditional: Give the type of several as condition; False mixes them, in the same order.
        root: Folder of the file; default the folder ``torus`` of the environment variable FLUVIAL_DATA, or that folder itself.
        noise: Standard deviation of Gaussian noise in training, in radians.

    Returns:
        A `Dataset` of shape (n, k, 2), for several types with a condition (n, types).

    Raises:
        FileNotFoundError: If the file is not there; the message says where the numbers come from.
        ValueError: If a residue type or an angle does not exist, or the file holds what are not angles.

    References:
        B. J. Hintze et al., MolProbity's ultimate rotamer-library distributions for model validation, Proteins 84, 2016.
        Data: Richardson Laboratory, Duke University, Top8000.
    """
    types = [residue] if isinstance(residue, str) else list(residue)
    if unknown := [name for name in types if name not in TOP8000_ANGLES]:
        raise ValueError(f"top8000_torsions: there is no residue type {unknown[0]!r}; choose of {', '.join(TOP8000_ANGLES)}")
    if not types or len(set(types)) < len(types):
        raise ValueError(f"top8000_torsions: expected one or several different residue types, got {types}")
    common = [angle for angle in TOP8000_ANGLES[types[0]] if all(angle in TOP8000_ANGLES[name] for name in types)]
    chosen = common if angles == "all" else [angles] if isinstance(angles, str) else list(angles)
    if missing := [angle for angle in chosen if angle not in common]:
        raise ValueError(f"top8000_torsions: {', '.join(types)} have no common angle {missing[0]!r}; choose of {', '.join(common)}, or 'all'")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"top8000_torsions: expected different angles, got {chosen}")
    wanted = f"top8000_residue_torsions.npz (an array of phi, psi, chi1, … for each residue type, in units of scale_deg, from {TOP8000_SOURCE})"
    path = _find("top8000_torsions", ("top8000_residue_torsions.npz",), wanted, root)
    with np.load(path) as tables:
        if lacking := [name for name in types if name not in tables]:
            raise ValueError(f"{path}: holds no {lacking[0]}, only {', '.join(name for name in tables if tables[name].ndim == 2)}")
        scale = float(tables["scale_deg"])
        parts = [tables[name][:, [TOP8000_ANGLES[name].index(angle) for angle in chosen]] * scale for name in types]
    for name, part in zip(types, parts):
        _check_degrees(part, lambda row: f"{path}, row {row} of {name}")  # noqa: B023
    several = len(types) > 1 and conditional
    return Dataset(
        _points(np.concatenate(parts)),
        np.repeat(np.eye(len(types)), [len(part) for part in parts], axis=0) if several else None,
        manifold=Torus(len(chosen)),
        names=chosen,
        condition_names=types if several else None,
        noise=noise,
        name=f"top8000 {'+'.join(types)} ({', '.join(chosen)})",
        citation="Richardson Laboratory, Duke University, Top8000; B. J. Hintze et al., Proteins 84 (2016)",
        licence="CC BY 4.0",
    )


def protein_torsions(kind: str = "General", *, root: str | Path | None = None, noise: float = 0.0) -> Dataset:
    """The protein benchmark: phi and psi of the residues of the Top500 set, on ``Torus(2)``; published figures are on this table.

    Args:
        kind: "General" (138 208 residues), "Glycine" (13 283), "Proline" (7634) or "PrePro" (6910).
        root: Folder of the file ``protein.tsv``; default the folder ``torus`` of the environment variable FLUVIAL_DATA, or that folder itself.
        noise: Standard deviation of Gaussian noise in training, in radians.

    Returns:
        A `Dataset` of shape (n, 2, 2).

    Raises:
        FileNotFoundError: If the file is not there; the message says where to get it.
        ValueError: If a row has a missing angle, or the number of rows is not the published one.

    References:
        S. C. Lovell et al., Structure validation by Cα geometry: φ, ψ and Cβ deviation, Proteins 50, 2003;
        C.-W. Huang et al., Riemannian diffusion models, 2022, arXiv:2208.07949.
    """
    _check_kind("protein_torsions", kind)
    wanted = (
        "protein.tsv (tab-separated without header: name, phi, psi in degrees, subtype; "
        "fff/data/raw_data/torus/protein.tsv of https://github.com/vislearn/FFF); ramachandran() is a synthetic stand-in"
    )
    path = _find("protein_torsions", ("protein.tsv", "protein.tsv.gz"), wanted, root)
    texts, degrees = _table(path, texts=slice(3, 4), angles=slice(1, 3))
    degrees = degrees[[row[0].replace("-", "").strip().casefold() == kind.casefold() for row in texts]]
    if len(degrees) != KINDS[kind]:
        raise ValueError(f"{path}: expected {KINDS[kind]} rows of subtype {kind}, got {len(degrees)}; fetch the table again")
    return Dataset(
        _points(degrees),
        manifold=Torus(2),
        names=("phi", "psi"),
        noise=noise,
        name=f"protein {kind}",
        citation="S. C. Lovell et al., Proteins 50 (2003); compiled by C.-W. Huang et al., arXiv:2208.07949 (2022)",
        licence="none stated by the compilers",
    )


def ramachandran(
    kind: str = "General", n: int | None = None, *, source: str = "top500", seed: int = 0, root: str | Path | None = None, noise: float = 0.0
) -> Dataset:
    """Synthetic phi and psi drawn from the published density of protein backbones, on ``Torus(2)``, with that density as truth.

    The density is constant in cells of 2 × 2 degrees, so the entropy is known: no model reaches a lower mean NLL on fresh rows. It stands in for
    `protein_torsions`; figures on it are not figures on that benchmark.

    Args:
        kind: "General", "Glycine" (symmetrised), "Proline" or "PrePro".
        n: Number of rows; default that of the benchmark (138 208, 13 283, 7634, 6910).
        source: "top500" or "top8000": of which set of proteins the density is.
        seed: Of the draw.
        root: Folder of the file; default the folder ``torus`` of the environment variable FLUVIAL_DATA, or that folder itself.
        noise: Standard deviation of Gaussian noise in training, in radians.

    Returns:
        A `Dataset` of shape (n, 2, 2) whose ``truth`` is a `Ramachandran` with log_prob, sample and entropy.

    Raises:
        FileNotFoundError: If the file is not there; the message says where the numbers come from.
        ValueError: If kind or source does not exist.

    References:
        S. C. Lovell et al., Structure validation by Cα geometry: φ, ψ and Cβ deviation, Proteins 50, 2003;
        B. J. Hintze et al., MolProbity's ultimate rotamer-library distributions for model validation, Proteins 84, 2016.
    """
    _check_kind("ramachandran", kind)
    if source not in ("top500", "top8000"):
        raise ValueError(f"ramachandran: source must be 'top500' or 'top8000', got {source!r}")
    wanted = (
        "rama_density_grids.npz (180 × 180 cell probabilities for each kind, recovered from the percentile grids "
        "of MolProbity; Top8000 in https://github.com/rlabduke/reference_data)"
    )
    path = _find("ramachandran", ("rama_density_grids.npz",), wanted, root)
    with np.load(path) as grids:
        truth = Ramachandran(torch.as_tensor(grids[f"{source}_{kind}"], dtype=torch.float64))
    return Dataset(
        truth.sample(KINDS[kind] if n is None else n, torch.Generator().manual_seed(seed)),
        manifold=Torus(2),
        names=("phi", "psi"),
        noise=noise,
        truth=truth,
        name=f"ramachandran {kind} ({source})",
        citation=f"drawn from MolProbity's {source.capitalize()} density; S. C. Lovell et al., Proteins 50 (2003)",
        licence="CC BY 4.0" if source == "top8000" else "none stated for the density",
        synthetic=True,
    )


def split_by_molecule(
    structures: Sequence[str], bases: Sequence[str], *, share: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of training, validation and test split, such that structures of one molecule are on one side.

    Structures that have a run of 16 bases in common (or, if shorter, all their bases) are one group. The groups, in random order, fill the
    test split and then the validation split up to their share, but none that takes more than half of it; the others are for training.

    Args:
        structures: Name of the structure of every row; rows of one structure in order.
        bases: Letter of the base of every row.
        share: Of the rows for test, and for validation.
        seed: Of the order.

    Returns:
        Three arrays of row numbers, ascending.

    Example:
        >>> [part.tolist() for part in split_by_molecule(["a", "a", "b", "c", "c"], ["A", "G", "U", "A", "G"], share=0.4)]
        [[0, 1, 3, 4], [], [2]]
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(structures):
        rows.setdefault(name, []).append(row)
    group = {name: name for name in rows}

    def head(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    first: dict[str, str] = {}
    for name, members in rows.items():
        sequence = "".join(bases[row] for row in members)
        for start in range(max(1, len(sequence) - SHARED_BASES + 1)):
            group[head(name)] = head(first.setdefault(sequence[start : start + SHARED_BASES], name))
    together: dict[str, list[int]] = {}
    for name, members in rows.items():
        together.setdefault(head(name), []).extend(members)
    target = share * len(structures)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    names = list(together)
    for k in np.random.default_rng(seed).permutation(len(names)):
        members = together[names[k]]
        side = next((part for part in (2, 1) if len(members) <= target / 2 and len(parts[part]) + len(members) <= target), 0)
        parts[side].extend(members)
    train, validation, test = (np.array(sorted(part), np.int64) for part in parts)
    return train, validation, test


def _points(degrees: np.ndarray) -> np.ndarray:
    """Angles (n, k) in degrees -> points (n, k, 2) in float64."""
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], -1)


def _table(path: Path, *, texts: slice, angles: slice) -> tuple[list[list[str]], np.ndarray]:
    """The texts and the angles in degrees of every line of a tab-separated file."""
    raw = path.read_bytes()
    lines = [line.split("\t") for line in (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").splitlines() if line.strip()]
    try:
        degrees = np.array([[float(field) for field in line[angles]] for line in lines], np.float64).reshape(len(lines), angles.stop - angles.start)
    except ValueError as error:
        raise ValueError(f"{path}: expected {angles.stop - angles.start} angles in every line ({error})") from None
    _check_degrees(degrees, lambda row: f"{path}, line {row + 1}")
    return [line[texts] for line in lines], degrees


def _check_degrees(degrees: np.ndarray, where: Callable[[int], str]) -> None:
    bad = ~(np.abs(degrees) <= 180.0)
    if bad.any():
        row, column = (int(k) for k in np.argwhere(bad)[0])
        raise ValueError(
            f"{where(row)}: angle {column} is {degrees[row, column]:g}, outside ±180 degrees ({int(bad.any(1).sum())} such rows); "
            "remove the rows in which an angle is missing"
        )


def _check_kind(name: str, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{name}: kind must be one of {', '.join(KINDS)}, got {kind!r}")


def _find(name: str, files: Sequence[str], wanted: str, root: str | Path | None) -> Path:
    given = root if root is not None else os.environ.get("FLUVIAL_DATA")
    if not given:
        raise FileNotFoundError(f"{name}: set the environment variable FLUVIAL_DATA (or pass root=) to a folder with torus/{wanted}")
    for path in (folder / file for folder in (Path(given), Path(given) / "torus") for file in files):
        if path.is_file():
            return path
    where = "root" if root is not None else "the environment variable FLUVIAL_DATA"
    raise FileNotFoundError(f"{name}: no such file in {given} or its folder torus, given by {where}: expected {wanted}")
