"""Layers against dimension by samples: the losses, the study, its file, its figures."""

import dataclasses
import json
import math
import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch

from fluvial.gaussianization import gaussian_scaling
from fluvial.gaussianization.scaling import FAMILIES
from fluvial.gaussianization.scaling_families import SAMPLED
from fluvial.gaussianization.scaling_images import dequantize, digits, shrink
from fluvial.gaussianization.scaling_result import StudyResult
from fluvial.gaussianization.scaling_samples import SampleLayers, follow, reference_rows
from fluvial.gaussianization.scaling_study import ScalingStudy
from fluvial.gaussianization.theory import gaussian_loss, simulate_losses
from fluvial.report.scaling import scaling_figure, scaling_section, scaling_table

SERIES = "AR(1), ρ = 0.9"
SMALL = {"sample_features": (2, 4), "digits_sides": (2,), "mnist_sides": (), "rows": 2000, "held_out": 1000, "max_layers": 25, "repeats": 2}


@pytest.fixture(autouse=True)
def without_mnist(monkeypatch):
    monkeypatch.delenv("FLUVIAL_DATA", raising=False)


@pytest.fixture(scope="module")
def study():
    return ScalingStudy((4, 16, 32), families=[SERIES, "mixture of 8", "digits"], **SMALL)


@pytest.fixture(scope="module")
def result(study):
    return study.run(progress=False)


@pytest.mark.parametrize("name", ["mixture of 8", "bananas in pairs", "banana, one arc", "banana tree", f"{SERIES}, from samples"])
def test_densities_integrate_to_one(name):
    """In two dimensions, over a box of importance samples twice as wide as the rows."""
    rng = np.random.default_rng(0)
    family = SAMPLED[name](2, rng)
    x = family.sample(20_000, rng)
    middle, sd = x.mean(0), 2 * x.std(0)
    points = rng.standard_normal((200_000, 2))
    log_weight = family.log_prob(middle + sd * points) + 0.5 * (points**2).sum(1) + np.log(2 * math.pi * sd.prod())
    weight = np.exp(log_weight)
    assert weight.mean() == pytest.approx(1, abs=4 * weight.std() / math.sqrt(len(weight)) + 0.005)


@pytest.mark.parametrize("name", ["mixture of 8", "bananas in pairs", "banana, one arc", "banana tree"])
def test_rows_come_from_the_density(name):
    """The density cannot be told from one that is fitted to the rows in any direction: the score has mean 0."""
    rng = np.random.default_rng(1)
    family = SAMPLED[name](5, rng)
    x = family.sample(40_000, rng)
    for axis in np.eye(5):
        step = 1e-4 * axis
        score = (family.log_prob(x + step) - family.log_prob(x - step)) / 2e-4
        assert abs(score.mean()) < 5 * score.std() / math.sqrt(len(score))


def test_losses_of_gaussian_samples_are_those_of_their_covariance():
    rng = np.random.default_rng(0)
    family = SAMPLED[f"{SERIES}, from samples"](8, rng)
    x, held_out = family.sample(20_000, rng), family.sample(10_000, rng)
    layers = SampleLayers(x, held_out, family.log_prob(held_out), bins=16)
    covariance = torch.from_numpy(0.9 ** np.abs(np.subtract.outer(np.arange(8), np.arange(8))))
    rows = layers.rows()
    assert rows.mean() == pytest.approx(gaussian_loss(covariance), abs=4 * rows.std() / 100)
    followed = follow(layers, factors=[10.0], max_layers=60, rng=np.random.default_rng(3))
    assert followed.stopped == "reached"
    assert followed.needed(2.0) < followed.needed(10.0) == len(followed.losses) - 1
    # Other rotations of the same kind.
    simulated = [simulate_losses(covariance, 20, seed=seed) for seed in range(20)]
    mean, spread = np.mean(simulated, 0), np.std(simulated, 0)
    assert (np.abs(np.array(followed.losses) - mean[: len(followed.losses)])[:10] < 4 * spread[:10] + 0.1).all()


def test_slope_from_samples_agrees_with_that_of_covariances():
    sampled, sizes, repeats = f"{SERIES}, from samples", (8, 16), (3, 12)
    study = ScalingStudy((), sizes, families=[sampled], factors=[10.0], rows=40_000, held_out=5_000, bins=8, repeats=repeats[0])
    found = dataclasses.replace(study.run(progress=False), fitted_from=8).curve(sampled, 10.0)
    truth = gaussian_scaling(sizes, families={SERIES: FAMILIES[SERIES]}, factors=[10.0], repeats=repeats[1]).curve(SERIES, 10.0)
    error = np.array(truth.spread) * math.sqrt(sum(1 / number for number in repeats))
    # Layers fitted to rows remove a little less than ideal ones do.
    assert (np.abs(np.subtract(found.layers, truth.layers)) < 3 * error + 0.1 * np.array(truth.layers)).all()
    assert found.slope == pytest.approx((truth.layers[1] - truth.layers[0]) / 8, abs=float(3 * np.linalg.norm(error)) / 8)


def test_cells_of_covariances_are_those_of_gaussian_scaling(result):
    other = gaussian_scaling((4, 16, 32), families={SERIES: FAMILIES[SERIES]}, factors=[2.0, 10.0], repeats=2)
    for factor in (2.0, 10.0):
        assert result.curve(SERIES, factor) == other.curve(SERIES, factor)


def test_pictures_are_shrunk_by_area():
    images = digits().images
    assert images.shape == (1797, 8, 8)
    assert images.max() == 16
    np.testing.assert_allclose(shrink(images, 4), images.reshape(-1, 4, 2, 4, 2).mean((2, 4)))
    np.testing.assert_allclose(shrink(images, 3).mean((1, 2)), images.mean((1, 2)))
    np.testing.assert_allclose(shrink(images, 8), images)
    rows = dequantize(shrink(images, 3), np.random.default_rng(0))
    assert rows.shape == (1797, 9)
    assert 0 <= rows.min() < rows.max() < 1


def test_reference_is_better_than_a_normal_distribution():
    rows = dequantize(shrink(digits().images, 4), np.random.default_rng(0))
    train, held_out = rows[360:], rows[:360]
    covariance, mean = np.cov(train.T), train.mean(0)
    root = np.linalg.cholesky(covariance)
    normal = -0.5 * (np.linalg.solve(root, (held_out - mean).T) ** 2).sum(0) - np.log(np.diagonal(root)).sum() - 8 * math.log(2 * math.pi)
    assert reference_rows(train, held_out, bins=12, max_layers=8).mean() > normal.mean() + 1


def test_study_writes_reads_and_prints(study, result, tmp_path):
    again = study.run(tmp_path, progress=False)
    read = ScalingStudy.read(tmp_path)
    assert read == again
    assert [dataclasses.replace(cell, seconds=0.0) for cell in read.cells] == [dataclasses.replace(cell, seconds=0.0) for cell in result.cells]
    assert read.complete
    content = json.loads((tmp_path / "study.json").read_text())
    assert len(content["cells"]) == 2 * (3 + 2 + 1)
    assert os.listdir(tmp_path) == ["study.json"]
    for name in (SERIES, "mixture of 8", "digits", "exponent"):
        assert name in str(read)
    assert "12 experiments on 3 families" in read.summary()
    assert SERIES in read.summary()
    digit_cells = [cell for cell in read.cells if cell.family == "digits"]
    assert all(cell.features == 4 and cell.reference is not None and cell.loss > 0 for cell in digit_cells)


def test_interrupted_study_goes_on_to_the_same_numbers(study, result, tmp_path, monkeypatch, capsys):
    ordinary, calls = StudyResult.to_dict, []

    def interrupting(self):
        calls.append(len(self.cells))
        if len(self.cells) == 5 and len(calls) < 8:
            signal.raise_signal(signal.SIGINT)
        return ordinary(self)

    monkeypatch.setattr(StudyResult, "to_dict", interrupting)
    partial = study.run(tmp_path)
    assert not partial.complete
    assert len(partial.cells) == len(ScalingStudy.read(tmp_path).cells) == 5
    assert "Not all cells" in str(partial)
    assert capsys.readouterr().err.count("\n") == 5
    monkeypatch.undo()
    whole = study.run(tmp_path, resume=True)
    assert capsys.readouterr().err.startswith("6/12")
    assert whole.complete
    assert {cell.key: cell.layers for cell in whole.cells} == {cell.key: cell.layers for cell in result.cells}
    assert {cell.key: cell.loss for cell in whole.cells} == {cell.key: cell.loss for cell in result.cells}
    assert len(study.run(tmp_path, resume=True, progress=False).cells) == 12


def test_resume_takes_more_dimensions_but_no_other_settings(tmp_path):
    study = ScalingStudy((4,), families=[SERIES], repeats=1)
    study.run(tmp_path, progress=False)
    more = dataclasses.replace(study, features=(4, 8), repeats=2).run(tmp_path, resume=True, progress=False)
    assert [cell.key[1:] for cell in more.cells] == [(4, 0), (4, 1), (8, 0), (8, 1)]
    with pytest.raises(ValueError, match="seed = 0, not 1"):
        dataclasses.replace(study, seed=1).run(tmp_path, resume=True)
    afresh = dataclasses.replace(study, seed=1).run(tmp_path, progress=False)
    assert len(afresh.cells) == 1


def test_broken_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"study\.json"):
        ScalingStudy.read(tmp_path)
    for text in ("{", "[]", '{"format": 1}', '{"format": 99}'):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(ValueError, match=r"study\.json"):
            ScalingStudy.read(tmp_path)
        with pytest.raises(ValueError, match=r"study\.json"):
            ScalingStudy((4,), families=[SERIES]).run(tmp_path, resume=True)


def test_missing_pictures_are_left_out_and_said_so():
    settings = SMALL | {"mnist_sides": (2,)}
    found = ScalingStudy((4,), families=[SERIES, "MNIST"], **settings).run(progress=False)
    assert found.families == [SERIES]
    assert found.complete
    assert "FLUVIAL_DATA" in found.left_out[0]
    assert "MNIST is left out" in str(found)
    assert "MNIST is left out" in scaling_section(found).lead


def test_what_is_not_reached_has_no_point(result):
    assert result.unreached("mixture of 8", 10.0) == [2, 4]
    assert ("mixture of 8", 10.0) not in [(curve.name, curve.factor) for curve in result.curves]
    with pytest.raises(KeyError, match="mixture of 8"):
        result.curve("mixture of 8", 10.0)


def test_figure_has_a_line_for_each_family_and_for_the_theory(result):
    for log in (False, True):
        figure = scaling_figure(result, 2.0, log=log)
        traces = {trace.name: trace for trace in figure.data}
        assert set(traces) == {SERIES, "mixture of 8", "digits", "(D + 2)/2 · ln 2"}
        assert list(traces[SERIES].y) == result.curve(SERIES, 2.0).layers
        assert len({trace.line.color for trace in figure.data}) == 4
        theory = traces["(D + 2)/2 · ln 2"]
        assert theory.line.dash == "dash"
        assert theory.y[-1] == pytest.approx(17 * math.log(2))
        assert all(a < b for a, b in pairwise(theory.y))
        assert figure.layout.xaxis.type == ("log" if log else "linear")
    with pytest.raises(ValueError, match="not 3"):
        scaling_figure(result, 3.0)


def test_section_and_table(result):
    section = scaling_section(result)
    assert len(section.panels) == 6
    assert len(section.tables) == 3
    table = scaling_table(result, 10.0)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert list(table.headers[:3]) == ["f = 10", "slope", "exponent"]
    assert all(len(row) == len(table.headers) - 1 for row in rows.values())
    assert float(rows[SERIES][0]) == pytest.approx(result.curve(SERIES, 10.0).slope, abs=1e-3)
    assert rows["mixture of 8"][:2] == ["–", "–"]
    assert "entropy" in table.caption
    assert scaling_section(StudyResult(result.settings, [], [])).missing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"families": ["banane"]}, "banane"),
        ({"families": []}, "no dimension"),
        ({"features": (), "families": [SERIES]}, "no dimension"),
        ({"features": (1,)}, "features"),
        ({"sample_features": (1,)}, "sample_features"),
        ({"digits_sides": (9,)}, "8 × 8"),
        ({"mnist_sides": (29,)}, "28 × 28"),
        ({"factors": ()}, "factors"),
        ({"factors": (1.0,)}, "factors"),
        ({"factors": (0.5,)}, "factor"),
        ({"repeats": 0}, "repeats"),
        ({"max_layers": 0}, "max_layers"),
        ({"rows": 50}, "rows"),
        ({"bins": 1}, "bins"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScalingStudy(**arguments)
