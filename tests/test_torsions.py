"""Torsion angles: what the loaders give, how the splits are cut, and what they refuse."""

import gzip
import math
import os

import numpy as np
import pytest
import torch

import fluvial as fl
from fluvial.cli import main
from fluvial.data.torsions import KINDS, TOP8000_ANGLES, split_by_molecule
from fluvial.manifolds import Torus
from fluvial.metrics import kernel_density_nll


@pytest.fixture
def torus_data(real_data):
    if not (real_data / "torus" / "rna.tsv.gz").is_file():
        pytest.skip(f"no torsions: {real_data}/torus does not exist; set FLUVIAL_DATA")
    return real_data


@pytest.fixture
def rna_lines(torus_data):
    return gzip.decompress((torus_data / "torus" / "rna.tsv.gz").read_bytes()).decode().splitlines()


# ------------------------------------------------------------------------------------------------------------------------- RNA


def test_rna(torus_data, rna_lines):
    data = fl.data.rna_torsions(root=torus_data)
    assert data.x.shape == (9478, 7, 2)
    assert data.x.dtype == torch.float32
    assert data.spec.manifold == Torus(7)
    assert data.spec.names == ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "chi")
    assert not data.synthetic
    data.check()
    expected = [[float(field) for field in rna_lines[row].split("\t")[2:]] for row in (0, 5000)]
    torch.testing.assert_close(Torus.to_degrees(data.x[[0, 5000]]), torch.tensor(expected), rtol=0, atol=1e-4)
    assert [len(part) for part in data.split()] == [7582, 948, 948]
    assert torch.equal(fl.data.rna_torsions(root=torus_data / "torus").x, data.x)


def test_rna_split_by_structure(torus_data, rna_lines):
    data = fl.data.rna_torsions(split="structure", root=torus_data)
    structure = np.array([line.split("\t")[0] for line in rna_lines])
    parts = data.official
    assert sorted(np.concatenate(parts).tolist()) == list(range(9478))
    assert all(900 <= len(part) <= 948 for part in parts[1:])
    sides = [set(structure[part]) for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 113
    assert min(map(len, sides[1:])) > 5
    # Three structures of one domain (P4–P6 of the group I intron) are together.
    assert any({"1gid", "1hr2", "1l8v"} <= side for side in sides)
    for rows, part in zip(parts, data.split()):
        torch.testing.assert_close(part.x, data.x[rows])


def test_neighbours_across_molecules_are_farther(torus_data):
    """A kernel on every training row says less of other molecules: what the random split hides."""
    found = []
    for split in ("random", "structure"):
        parts = fl.data.rna_torsions(split=split, root=torus_data).split()
        found.append(kernel_density_nll(parts.train.x, parts.validation.x, parts.test.x, Torus(7), bandwidths=(30.0, 100.0))[0].value)
    assert found[0] < found[1] < math.log(Torus(7).total_volume)


def test_molecules_are_found_by_their_bases():
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list("ACGU"), 40)) for _ in range(60)]
    letters[7] = letters[3][10:30] + letters[7]  # shares 20 bases with another
    structures = [f"s{k}" for k, text in enumerate(letters) for _ in text]
    bases = [letter for text in letters for letter in text]
    train, validation, test = split_by_molecule(structures, bases)
    side = {structures[row]: name for name, rows in (("train", train), ("validation", validation), ("test", test)) for row in rows}
    assert side["s3"] == side["s7"]
    assert len(validation) == len(test) == 240
    again = split_by_molecule(structures, bases)
    assert all(np.array_equal(a, b) for a, b in zip((train, validation, test), again))
    other = split_by_molecule(structures, bases, seed=1)[2]
    assert not np.array_equal(test, other)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[:-1], r"not the published table \(9477 rows"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "not the published table"),
        (
            lambda lines: [*lines[:4], lines[4].rsplit("\t", 1)[0] + "\t999.0", *lines[5:]],
            r"line 5: angle 6 is 999, outside ±180 degrees \(1 such rows\)",
        ),
        (lambda lines: [*lines[:2], lines[2].rsplit("\t", 1)[0] + "\tnan", *lines[3:]], "line 3: angle 6 is nan"),
        (lambda lines: [*lines[:2], lines[2].rsplit("\t", 1)[0], *lines[3:]], "expected 7 angles in every line"),
        (lambda lines: [*lines[:2], lines[2] + "x", *lines[3:]], "expected 7 angles in every line"),
    ],
    ids=["a row missing", "another order", "999", "nan", "a column missing", "a text"],
)
def test_another_table_of_rna_is_refused(tmp_path, rna_lines, edit, message):
    (tmp_path / "rna.tsv").write_text("\n".join(edit(rna_lines)))
    with pytest.raises(ValueError, match=message):
        fl.data.rna_torsions(root=tmp_path)


def test_splits_have_names(torus_data):
    with pytest.raises(ValueError, match="'random' or 'structure', got 'pdb'"):
        fl.data.rna_torsions(split="pdb", root=torus_data)


# --------------------------------------------------------------------------------------------------------------------- Top8000


def test_top8000_residues(torus_data):
    source = np.load(torus_data / "torus" / "top8000_residue_torsions.npz")
    for name, angles in TOP8000_ANGLES.items():
        data = fl.data.top8000_torsions(name, angles="all", root=torus_data)
        assert data.x.shape == (len(source[name]), len(angles), 2)
        assert data.spec.manifold == Torus(len(angles))
        turn = Torus.to_degrees(data.x.double()) - torch.as_tensor(source[name][:, : len(angles)]) * 0.01
        assert float((turn - 360 * (turn / 360).round()).abs().max()) < 1e-4
        assert data.spec.names == angles
        data.check()
        plane = fl.data.top8000_torsions(name, root=torus_data)
        assert plane.c is None
        torch.testing.assert_close(plane.x, data.x[:, :2])
        plane.check()


def test_top8000_types_as_a_condition(torus_data):
    data = fl.data.top8000_torsions(["TRP", "CYS"], angles=["psi", "chi1"], root=torus_data)
    assert data.c.shape == (18748 + 16767, 2)
    assert data.spec.condition_names == ("TRP", "CYS")
    assert data.c.sum(0).tolist() == [18748.0, 16767.0]
    one = fl.data.top8000_torsions("CYS", angles="all", root=torus_data)
    torch.testing.assert_close(data.x[data.c[:, 1] == 1], one.x[:, 1:])
    assert fl.data.top8000_torsions(["LYS", "HIS"], angles="all", root=torus_data).spec.manifold == Torus(4)
    data.check()


@pytest.mark.parametrize(
    ("residue", "angles", "message"),
    [
        ("ALA", "all", "no residue type 'ALA'; choose of GLN, LYS"),
        (["LYS", "LYS"], "all", "different residue types"),
        ([], "all", "one or several"),
        ("HIS", ["phi", "chi3"], "HIS have no common angle 'chi3'; choose of phi, psi, chi1, chi2"),
        (["ARG", "CYS"], ["chi2"], "ARG, CYS have no common angle 'chi2'"),
        ("ARG", ["phi", "phi"], "different angles"),
    ],
)
def test_top8000_refuses(torus_data, residue, angles, message):
    with pytest.raises(ValueError, match=message):
        fl.data.top8000_torsions(residue, angles=angles, root=torus_data)


def test_top8000_looks_at_the_numbers(tmp_path):
    np.savez(tmp_path / "top8000_residue_torsions.npz", CYS=np.array([[0, 9000, 99900]], np.int32), scale_deg=0.01)
    with pytest.raises(ValueError, match="row 0 of CYS: angle 2 is 999"):
        fl.data.top8000_torsions("CYS", angles="all", root=tmp_path)
    with pytest.raises(ValueError, match="holds no TRP, only CYS"):
        fl.data.top8000_torsions("TRP", root=tmp_path)


# ------------------------------------------------------------------------------------------------------------------ Ramachandran

# Entropies in nats that were found when the grids were recovered.
ENTROPY = {
    ("top500", "General"): 0.925,
    ("top500", "Glycine"): 1.951,
    ("top500", "Proline"): 0.114,
    ("top500", "PrePro"): 1.169,
    ("top8000", "General"): 0.850,
    ("top8000", "Glycine"): 1.899,
    ("top8000", "Proline"): 0.016,
    ("top8000", "PrePro"): 1.141,
}


@pytest.mark.parametrize(("source", "kind"), ENTROPY.keys())
def test_ramachandran_has_a_known_density(torus_data, source, kind):
    data = fl.data.ramachandran(kind, 20_000, source=source, root=torus_data)
    assert data.synthetic
    assert data.spec.manifold == Torus(2)
    data.check()
    entropy, error = data.truth.entropy()
    assert (entropy, error) == (pytest.approx(ENTROPY[source, kind], abs=6e-4), 0.0)
    log_p = data.truth.log_prob(data.x).double()
    assert torch.isfinite(log_p).all()
    assert float(-log_p.mean()) == pytest.approx(entropy, abs=5 * float(log_p.std()) / math.sqrt(20_000))
    points, weights = fl.metrics.torus_grid(180)
    centres = Torus.from_degrees(Torus.to_degrees(points) + 1)
    assert float((weights * data.truth.log_prob(centres).exp()).sum()) == pytest.approx(1, abs=1e-12)


def test_ramachandran_is_oriented_as_the_plot(torus_data):
    data = fl.data.ramachandran("General", root=torus_data)
    assert len(data) == KINDS["General"]
    helix = Torus.from_degrees(torch.tensor([[-63.0, -43.0], [-43.0, -63.0], [63.0, 43.0], [75.0, -100.0]]))
    alpha, swapped, left, nowhere = data.truth.log_prob(helix).tolist()
    assert alpha > left > nowhere
    assert alpha > swapped
    same = fl.data.ramachandran("General", 100, root=torus_data, seed=3)
    assert torch.equal(same.x, fl.data.ramachandran("General", 100, root=torus_data, seed=3).x)
    assert not torch.equal(same.x, fl.data.ramachandran("General", 100, root=torus_data, seed=4).x)


def test_cells_of_a_density():
    truth = fl.data.Ramachandran(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    x = Torus.from_degrees(torch.tensor([[-90.0, -90.0], [-90.0, 90.0], [90.0, 90.0], [-180.0, 179.999]], dtype=torch.float64))
    cell = math.pi**2
    expected = torch.tensor([math.log(0.25 / cell), math.log(0.75 / cell), -math.inf, math.log(0.75 / cell)], dtype=torch.float64)
    torch.testing.assert_close(truth.log_prob(x), expected)
    torch.testing.assert_close(truth.log_prob(x.view(2, 2, 2, 2).float()), expected.view(2, 2).float())
    drawn = truth.sample(4000, torch.Generator().manual_seed(0))
    assert torch.isfinite(truth.log_prob(drawn)).all()
    assert float((Torus.to_angles(drawn)[:, 1] > 0).float().mean()) == pytest.approx(0.75, abs=0.04)
    for wrong in (torch.ones(3), torch.tensor([[1.0, -1.0]]), torch.zeros(2, 2), torch.tensor([[math.nan]])):
        with pytest.raises(ValueError, match="expected probabilities"):
            fl.data.Ramachandran(wrong)
    with pytest.raises(ValueError, match=r"shape \(\*batch, 2, 2\), got \(3, 2\)"):
        truth.log_prob(torch.ones(3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda root: fl.data.ramachandran("Alanine", root=root), "General, Glycine, Proline, PrePro, got 'Alanine'"),
        (lambda root: fl.data.ramachandran(source="top5000", root=root), "'top500' or 'top8000', got 'top5000'"),
        (lambda root: fl.data.protein_torsions("Pre-Pro", root=root), "got 'Pre-Pro'"),
    ],
)
def test_kinds_have_names(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


# ----------------------------------------------------------------------------------------------------------------- the benchmark


def test_protein_table(tmp_path):
    """The format of the published table, with its number of rows."""
    rng = np.random.default_rng(0)
    degrees = rng.uniform(-180, 180, (KINDS["PrePro"] + 3, 2)).round(1)
    kinds = ["General"] * 3 + ["Pre-Pro"] * KINDS["PrePro"]
    lines = [f"1abc A {k}\t{phi}\t{psi}\t{kind}" for k, ((phi, psi), kind) in enumerate(zip(degrees, kinds))]
    (tmp_path / "protein.tsv").write_text("\n".join(lines))
    data = fl.data.protein_torsions("PrePro", root=tmp_path)
    assert [len(part) for part in data.split()] == [5528, 691, 691]
    torch.testing.assert_close(data.x, Torus.from_degrees(torch.as_tensor(degrees[3:])).float())
    with pytest.raises(ValueError, match="expected 138208 rows of subtype General, got 3"):
        fl.data.protein_torsions("General", root=tmp_path)


# ---------------------------------------------------------------------------------------------------------------- missing files


@pytest.mark.parametrize("name", ["rna_torsions", "top8000_torsions", "protein_torsions", "ramachandran"])
def test_missing_files_name_their_source(tmp_path, monkeypatch, name):
    monkeypatch.setenv("FLUVIAL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"given by the environment variable FLUVIAL_DATA: expected .*github\.com"):
        getattr(fl.data, name)()
    with pytest.raises(FileNotFoundError, match="given by root: expected"):
        getattr(fl.data, name)(root=tmp_path / "elsewhere")
    monkeypatch.delenv("FLUVIAL_DATA")
    with pytest.raises(FileNotFoundError, match="set the environment variable FLUVIAL_DATA"):
        getattr(fl.data, name)()


def test_the_folder_comes_from_the_environment(torus_data, monkeypatch):
    monkeypatch.setenv("FLUVIAL_DATA", os.fspath(torus_data))
    assert len(fl.data.rna_torsions()) == 9478


def test_evaluate_prints_what_a_flow_of_angles_must_beat(torus_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLUVIAL_DATA", os.fspath(torus_data))
    monkeypatch.chdir(tmp_path)
    recipe = """\
title: Angles
flow: {class_path: fluvial.flows.on_torus, init_args: {dim: 2, blocks: 2, hidden: [16]}}
data: {class_path: fluvial.data.ramachandran, init_args: {kind: Proline, n: 3000}}
fit: {max_steps: 20}
"""
    (tmp_path / "angles.yaml").write_text(recipe)
    assert main(["fit", "angles.yaml"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "angles"]) == 0
    printed = capsys.readouterr().out
    assert "synthetic on Torus(2): 300 test rows" in printed
    for part in ("uniform 3.6758", "kernel density", "its entropy is 0.11425", "integral of the density"):
        assert part in printed
    assert main(["report", "angles"]) == 0
    assert "True log-density of the angles" in next(tmp_path.glob("runs/angles/*/report.html")).read_text()
