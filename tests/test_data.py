"""Data sets: what they keep, how they split, and what their check refuses."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fluvial import data
from fluvial.data import Dataset, DataSpec, as_dataset
from fluvial.manifolds import Euclidean, Sphere

ROOT = Path(os.environ.get("FLUVIAL_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
COUNTS = {"volcanoes": ("volcano.csv", 827, 267), "earthquakes": ("earthquake.csv", 6120, 5447), "floods": ("flood.csv", 4875, 4861)}
COUNTS["fires"] = ("fire.csv", 12809, 12802)


def earth(name, **options):
    if not (ROOT / "earth" / COUNTS[name][0]).is_file():
        pytest.skip(f"{COUNTS[name][0]} is not in the folder of FLUVIAL_DATA ({ROOT})")
    return getattr(data, name)(root=ROOT, **options)


def gauss(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Data sets and what they hold ---------------------------------------------------------------------------------------------------------------


def test_shapes_dtypes_and_defaults():
    ds = Dataset(np.arange(6.0), c=[1, 2, 3, 4, 5, 6], weight=np.ones(6))
    assert ds.x.shape == (6, 1)
    assert ds.c.shape == (6, 1)
    assert ds.x.dtype == ds.c.dtype == ds.weight.dtype == torch.float32
    assert ds.spec == DataSpec(1, condition=1)

    x = gauss(4, 2, dtype=torch.float64)
    ds = Dataset(x, {"T": np.ones(4), "mask": torch.ones(4, 3, dtype=torch.bool)})
    assert ds.x.data_ptr() == x.data_ptr()
    assert ds.c["T"].dtype == torch.float64
    assert ds.c["mask"].dtype == torch.bool
    assert ds.spec.condition == {"T": (1,), "mask": (3,)}
    moved = ds.to(torch.float32).to("cpu")
    assert moved.x.dtype == moved.c["T"].dtype == torch.float32
    assert moved.c["mask"].dtype == torch.bool
    assert ds.x.dtype == torch.float64


def test_rows_stay_together():
    x = torch.arange(20.0).view(10, 2)
    ds = Dataset(x, {"T": x[:, :1], "field": x.view(10, 1, 2)}, x[:, 0], name="rows")
    for index in (3, slice(2, 8, 2), [1, 1, 5], np.array([9, 0]), torch.arange(10) > 6, -1):
        part = ds[index]
        torch.testing.assert_close(part.x[:, 0], part.weight)
        torch.testing.assert_close(part.x[:, :1], part.c["T"])
        torch.testing.assert_close(part.x, part.c["field"][:, 0])
        assert part.spec is ds.spec
    assert ds[3].x.tolist() == [[6.0, 7.0]]
    assert len(ds) == 10
    with pytest.raises(IndexError, match="row 10"):
        ds[10]


def test_iterating_ends():
    assert [len(row) for row in Dataset(gauss(3, 2))] == [1, 1, 1]


def test_split_is_a_seeded_partition():
    ds = Dataset(torch.arange(100.0), weight=torch.arange(100.0))
    parts = ds.split()
    assert [len(part) for part in parts] == [80, 10, 10]
    assert sorted(torch.cat([part.x for part in parts]).flatten().tolist()) == list(range(100))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert parts.train.x.flatten().tolist() == order[:80].tolist()
    assert parts.test.x.flatten().tolist() == parts.test.weight.tolist() == order[90:].tolist()
    assert ds.split(seed=1).train.x.tolist() != parts.train.x.tolist()
    assert [len(part) for part in Dataset(torch.arange(10.0)).split()] == [8, 1, 1]
    assert [len(part) for part in ds.split((0.9, 0.1, 0.0))] == [90, 10, 0]


def test_official_split_is_kept_unless_fractions_are_given():
    ds = Dataset(torch.arange(6.0), official=([5, 4, 3], [2], [0, 1]))
    assert [part.x.flatten().tolist() for part in ds.split(seed=7)] == [[5, 4, 3], [2], [0, 1]]
    assert len(ds.split((0.5, 0.5, 0.0)).validation) == 3
    assert ds[1:].official is None


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5)])
def test_wrong_fractions(fractions):
    with pytest.raises(ValueError, match="split: "):
        Dataset(gauss(10, 2)).split(fractions)


def test_repr_is_one_short_line():
    ds = Dataset(gauss(5, 6), gauss(5, 2), torch.ones(5), names="abcdef", condition_names=["T", "P"], noise=[0.1] * 6, name="six", synthetic=True)
    assert repr(ds) == "Dataset six (synthetic): 5 rows of 6 (a, b, c, d, …), condition ['T', 'P'], weighted, noise per column"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros((0, 2)),), {}, "no rows"),
        ((torch.zeros(3, 0),), {}, "no entries"),
        ((1.0,), {}, "single number"),
        (([[1.0, 2.0], [3.0]],), {}, "ragged"),
        ((gauss(5, 2), gauss(4, 1)), {}, "condition: expected one entry per row of x"),
        ((gauss(5, 2), {"T": gauss(4, 1)}), {}, "condition 'T'"),
        ((gauss(5, 2), None, torch.ones(5, 1)), {}, r"weight: expected one number per row, shape \(5,\), got \(5, 1\)"),
        ((gauss(5, 2), None, [1, 1, math.nan, 1, 1]), {}, "weight of row 2 is nan"),
        ((gauss(5, 2),), {"names": ["a"]}, "one entry of names per column"),
        ((gauss(5, 2),), {"names": ["a", "a"]}, "'a' occurs 2 times"),
        ((gauss(5, 2), gauss(5, 2)), {"condition_names": ["T"]}, "condition_names"),
        ((gauss(5, 2),), {"manifold": Sphere(2)}, r"points on Sphere\(2\) have shape \(3,\)"),
        ((gauss(5, 2),), {"noise": -1.0}, "noise must be non-negative"),
        ((gauss(5, 2),), {"dequantize": [1.0, 1.0, 1.0]}, "dequantize must be one number, or one per column"),
        ((gauss(5, 2),), {"spec": DataSpec(3)}, "description says samples of shape"),
        ((gauss(5, 2), gauss(5, 1)), {"spec": DataSpec(2)}, "description says a condition"),
        ((1.7e9 + np.arange(10.0),), {}, "float32 does not resolve"),
    ],
)
def test_wrong_data_sets_are_refused_at_the_door(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Dataset(*arguments, **options)


@pytest.mark.parametrize("x", [np.array(["a", "b"]), np.array([object()]), torch.zeros(3, 2, dtype=torch.complex64), np.zeros(3, complex)])
def test_what_is_not_numbers_is_a_type_error(x):
    with pytest.raises(TypeError, match="x: expected"):
        Dataset(x)


# The description ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        DataSpec((1, 8, 8), noise=0.01, dequantize=1),
        DataSpec(3, manifold=Sphere(2), condition={"T": 1, "field": (8, 8)}, names=("x", "y", "z")),
        DataSpec(
            2, manifold=Euclidean(2), condition=1, condition_names=("T",), units=("GeV", ""), noise=(0.1, 0.0), dequantize=(0, 1), dropped=("e",)
        ),
    ],
)
def test_spec_survives_json(spec):
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_spec_takes_manifolds_from_the_library_only():
    entries = DataSpec(3, manifold=Sphere(2)).to_dict()
    assert entries["manifold"] == {"class_path": "fluvial.manifolds.Sphere", "init_args": {"dim": 2}}
    for path in ("os.system", "fluvial.manifolds.random_tangent", "fluvial.manifolds.math", "Sphere"):
        with pytest.raises(ValueError, match="not a manifold"):
            DataSpec.from_dict(entries | {"manifold": {"class_path": path, "init_args": {}}})
    with pytest.raises(ValueError, match="unknown entries"):
        DataSpec.from_dict(entries | {"colour": "red"})
    assert DataSpec.from_dict(entries | {"manifold": Sphere(2)}).manifold == Sphere(2)


def test_perturbation_has_the_declared_moments():
    x = torch.zeros(200_000, 3)
    spec = DataSpec(3, noise=(0.5, 0.0, 0.0), dequantize=(0.0, 2.0, 0.0))
    y = spec.perturb(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(y.mean(0), torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=5e-3)
    torch.testing.assert_close(y.std(0), torch.tensor([0.5, 2 / math.sqrt(12), 0.0]), rtol=0, atol=5e-3)
    assert y[:, 1].min() >= 0
    assert y[:, 1].max() < 2
    assert spec.is_perturbed().tolist() == [True, True, False]
    torch.testing.assert_close(spec.perturb(x, torch.Generator().manual_seed(0)), y)
    assert DataSpec(3).perturb(x) is x


def test_perturbation_stays_on_the_manifold():
    x = Sphere(2).random_uniform(10_000, generator=torch.Generator().manual_seed(0))
    y = DataSpec(3, manifold=Sphere(2), noise=0.1).perturb(x, torch.Generator().manual_seed(1))
    torch.testing.assert_close(y.norm(dim=1), torch.ones(10_000))
    # Of three noisy directions the radial one is projected away.
    assert Sphere(2).distance(x, y).square().mean().sqrt() == pytest.approx(0.1 * math.sqrt(2), rel=0.05)


# The check ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 20, 1000])
@pytest.mark.parametrize("columns", [1, 3])
def test_continuous_data_never_fails(n, columns):
    for seed in range(20):
        x = gauss(n, columns, seed=seed)
        for sample in (x, x.exp(), 1 / x, 100 + x, x.double(), torch.special.ndtr(x)):
            Dataset(sample).check()


@pytest.mark.parametrize("transform", [lambda x: x, lambda x: 1000 + x, torch.special.ndtr, lambda x: 1e6 * x, lambda x: torch.stack([x, x * x], 1)])
def test_rounding_of_float32_is_not_mistaken_for_atoms(transform):
    # In a sample this long many rows are equal, only because float32 has no more numbers.
    x = transform(gauss(1_000_000))
    Dataset(x).check()


def test_bad_rows_are_named():
    x = gauss(50, 2)
    x[17, 1] = math.nan
    x[30, 0] = math.inf
    with pytest.raises(ValueError, match=r"data tracks: row 17, column 'eta' is nan \(2 such rows of 50\)"):
        Dataset(x, names=("pt", "eta"), name="tracks").check()
    with pytest.raises(ValueError, match="row 17, condition 'c', column 'T' is nan"):
        Dataset(gauss(50, 3), x[:, 1:], condition_names=["T"]).check()
    with pytest.raises(ValueError, match="row 30, condition 'field', column 0 is inf"):
        Dataset(gauss(50, 3), {"field": x[:, :1]}).check()
    image = gauss(20, 1, 4, 4)
    image[3, 0, 2, 1] = -math.inf
    with pytest.raises(ValueError, match=r"row 3, column \(0, 2, 1\) is -inf"):
        Dataset(image).check()


def test_weights():
    x = gauss(10, 2)
    with pytest.raises(ValueError, match=r"weight of row 4 is -2 \(1 negative of 10\).*weight > 0"):
        Dataset(x, weight=torch.tensor([1.0, 1, 1, 1, -2, 1, 1, 1, 1, 1])).check()
    with pytest.raises(ValueError, match="all 10 weights are 0"):
        Dataset(x, weight=torch.zeros(10)).check()
    weight = torch.zeros(10)
    weight[3] = 1
    with pytest.raises(ValueError, match=r"at least 2 rows \(of positive weight\), got 1"):
        Dataset(x, weight=weight).check()
    Dataset(x, weight=torch.linspace(0, 1, 10)).check()


def test_rows_of_no_weight_do_not_count():
    x = gauss(1000, 2)
    x[500:] = 3.0
    weight = torch.ones(1000)
    with pytest.raises(ValueError, match="atom"):
        Dataset(x, weight=weight).check()
    weight[500:] = 0
    Dataset(x, weight=weight).check()
    weight[500:] = 1e-6
    Dataset(x, weight=weight).check()


def test_constant_columns():
    x = torch.cat([gauss(100, 2), torch.full((100, 1), 7.0)], 1)
    with pytest.raises(ValueError, match=r"column 'b' is constant \(7 in every row\).*drop_constant=True"):
        Dataset(x[:, [0, 2, 1]], names="abc").check()
    dropped = Dataset(x[:, [0, 2, 1]], names="abc", units=["m", "s", "kg"], noise=[0.1, 0.2, 0.3], drop_constant=True)
    dropped.check()
    assert dropped.spec == DataSpec(2, names=("a", "c"), units=("m", "kg"), noise=(0.1, 0.3), dropped=("b",))
    torch.testing.assert_close(dropped.x, x[:, :2])
    assert Dataset(x, drop_constant=True).spec.names == ("x0", "x1")
    assert Dataset(x, drop_constant=True).spec.dropped == ("x2",)
    assert Dataset(x[:, :2], drop_constant=True).spec == DataSpec(2)
    Dataset(x, noise=[0, 0, 0.1]).check()
    x[0, 2] = 8.0
    weight = torch.ones(100)
    weight[0] = 0
    assert Dataset(x, weight=weight, drop_constant=True).spec.dropped == ("x2",)
    x[0, 2] = 7.0
    Dataset(x, dequantize=0.1).check()
    with pytest.raises(ValueError, match="column 2 is constant"):
        Dataset(x, noise=[0.1, 0.1, 0]).check()
    with pytest.raises(ValueError, match="all 2 columns are constant"):
        Dataset(torch.ones(5, 2), drop_constant=True)
    with pytest.raises(ValueError, match="vectors in flat space only"):
        Dataset(gauss(5, 1, 4, 4), drop_constant=True)


def test_constant_on_the_sphere_cannot_be_dropped():
    equator = torch.cat([Sphere(1).random_uniform(100), torch.zeros(100, 1)], 1)
    with pytest.raises(ValueError, match="column 2 is constant") as caught:
        Dataset(equator, manifold=Sphere(2)).check()
    assert "drop_constant" not in str(caught.value)
    with pytest.raises(ValueError, match=r"not of points on Sphere\(2\)"):
        Dataset(equator, manifold=Sphere(2), drop_constant=True)


@pytest.mark.parametrize(
    ("column", "step"),
    [
        (torch.poisson(torch.full((1000,), 3.0), generator=torch.Generator().manual_seed(0)), "1"),
        ((100 * gauss(1000)).round() * 25, "25"),
        ((gauss(1000) * 10).round() / 10, "0.1"),
        ((torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 255).round() / 255, "0.00392"),
    ],
    ids=["counts", "integers", "rounded", "grey values"],
)
def test_discrete_columns(column, step):
    x = torch.stack([gauss(len(column)), column], 1)
    with pytest.raises(ValueError, match=rf"column 'n' is discrete .*dequantize={step} .*noise="):
        Dataset(x, names=("v", "n")).check()
    Dataset(x, dequantize=[0, float(step)]).check()
    Dataset(x, noise=[0, 0.01]).check()


def test_atoms_of_one_column():
    x = gauss(10_000, 2)
    x[::50, 1] = 0
    with pytest.raises(ValueError, match=r"column 1 has an atom: 200 of 10000 rows \(2 % of the weight\) are exactly 0.*noise="):
        Dataset(x).check()
    Dataset(x, noise=[0, 0.1]).check()
    with pytest.raises(ValueError, match=r"column 0 has an atom: .* exactly -1"):
        Dataset(gauss(10_000, 2).clamp(min=-1.0)).check()
    rare = torch.zeros(1_000_000)
    rare[3] = 1
    with pytest.raises(ValueError, match="column 0 is discrete"):
        Dataset(rare).check()


def test_repeated_rows():
    x = gauss(1000, 3)
    Dataset(torch.cat([x, x[:20]])).check()
    for repeated in (torch.cat([x, x]), torch.cat([x, x[:1].expand(20, 3)]), torch.cat([x, x])[:, :1], x[:300, :1].repeat(3, 1)):
        with pytest.raises(ValueError, match="atom"):
            Dataset(repeated).check()
        Dataset(repeated, noise=0.01).check()
    with pytest.raises(ValueError, match=r"atoms: 1000 of 2000 rows repeat an earlier one \(1000 distinct; row \d+ occurs 2 times\).*noise=0.01"):
        Dataset(torch.cat([x, x])).check()


def test_different_rows_of_round_numbers_are_told_apart():
    # Few distinct numbers with many trailing zero bits, all rows different: columns are discrete, rows are not repeated.
    grid = torch.cartesian_prod(*[torch.arange(32.0)] * 3)
    noisy = torch.cat([grid, gauss(len(grid), 1)], 1)
    from fluvial.data.problems import _row_keys

    for dtype in (torch.float32, torch.float64):
        assert len(_row_keys(noisy[:, :3].to(dtype)).unique()) == len(grid)


def test_points_off_the_sphere():
    x = Sphere(2).random_uniform(100)
    Dataset(x, manifold=Sphere(2)).check()
    x[4] *= 1.5
    with pytest.raises(ValueError, match=r"row 4 lies 0.5 away from Sphere\(2\) \(1 such rows of 100\).*project"):
        Dataset(x, manifold=Sphere(2)).check()


# as_dataset ---------------------------------------------------------------------------------------------------------------------------------


def test_as_dataset_takes_what_holds_samples():
    x, c, w = gauss(10, 2), gauss(10, 1), torch.ones(10)
    assert as_dataset(x).c is None
    assert as_dataset((x, c)).spec.condition == (1,)
    assert as_dataset((x, None, w)).weight is not None
    assert as_dataset(x.numpy()).x.dtype == torch.float32
    assert as_dataset(x.tolist()).spec.event_shape == (2,)
    ds = Dataset(x, c, names=("a", "b"), name="d")
    assert as_dataset(ds) is ds
    changed = as_dataset(ds, noise=0.1, manifold=Euclidean(2))
    assert changed.spec == DataSpec(2, manifold=Euclidean(2), condition=1, names=("a", "b"), noise=0.1)
    assert ds.spec.noise == 0
    with pytest.raises(TypeError, match="tuple of 4"):
        as_dataset((x, c, w, w))
    with pytest.raises(TypeError, match="name columns of a DataFrame or file, got Tensor"):
        as_dataset(x, condition="T")


def test_frames_keep_their_names():
    frame = pd.DataFrame(
        {"pt": [1.0, 2.0, 4.0], "T": [1, 2, 2], "w": [1.0, 0.5, 1.0], "who": list("abc"), "eta": pd.array([1, None, 3], dtype="Int64")}
    )
    ds = as_dataset(frame, columns=["eta", "pt"], condition="T", weight="w")
    assert ds.spec.names == ("eta", "pt")
    assert ds.spec.condition_names == ("T",)
    assert ds.c.flatten().tolist() == [1, 2, 2]
    assert ds.weight.tolist() == [1, 0.5, 1]
    with pytest.raises(ValueError, match="row 1, column 'eta' is nan"):
        ds.check()
    with pytest.raises(ValueError, match="column 'who', row 0: 'a' is not a number"):
        as_dataset(frame)
    with pytest.raises(ValueError, match="no column 'x'; there are 'pt', 'T'"):
        as_dataset(frame, columns="x")
    assert as_dataset(frame[["pt", "T"]]).spec.names == ("pt", "T")
    assert as_dataset(pd.DataFrame({0: [1.0, 2.0]})).spec.names == ("0",)


# Packaged and real data ---------------------------------------------------------------------------------------------------------------------


def test_airports_pass_without_noise():
    ds = data.airports()
    ds.check()
    assert ds.spec.manifold == Sphere(2)
    torch.testing.assert_close(ds.x.norm(dim=1), torch.ones(len(ds)))
    torch.testing.assert_close(ds.x, data.airports().x, rtol=0, atol=0)
    assert ds.licence == "MIT"
    if "20260905" in ds.citation:
        assert len(ds) == 28_298
        assert [len(part) for part in ds.split()] == [22_638, 2830, 2830]
        assert len(ds.x.unique(dim=0)) <= 28_293


def test_digits_need_dequantisation():
    ds = data.digits()
    assert ds.x.shape == (1797, 64)
    assert (ds.x.min(), ds.x.max()) == (0, 16)
    ds.check()
    with pytest.raises(ValueError, match="'pixel_0_0', 'pixel_4_0', 'pixel_4_7' are constant"):
        data.digits(dequantize=None).check()
    with pytest.raises(ValueError, match="discrete"):
        data.digits(dequantize=None, drop_constant=True).check()
    data.digits(dequantize=None, noise=0.5).check()
    assert data.digits(drop_constant=True).x.shape == (1797, 61)
    images = data.digits(condition="label", event_shape=(1, 8, 8))
    images.check()
    assert images.x.shape == (1797, 1, 8, 8)
    assert images.c.sum(0).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    with pytest.raises(ValueError, match="64 entries"):
        data.digits(event_shape=(7, 7))
    with pytest.raises(ValueError, match="'label' or None"):
        data.digits(condition="digit")


@pytest.mark.parametrize("name", COUNTS)
def test_earth(name):
    ds = earth(name)
    _, rows, distinct = COUNTS[name]
    assert ds.x.shape == (rows, 3)
    assert ds.x.dtype == torch.float32
    assert ds.spec.manifold == Sphere(2)
    # float32 may merge neighbours, never part equals.
    assert distinct - 20 <= len(ds.x.unique(dim=0)) <= distinct
    assert ds.citation
    assert ds.licence


def test_floods_pass_and_volcanoes_need_noise():
    earth("floods").check()
    with pytest.raises(ValueError, match=r"data volcanoes: atoms: 560 of 827 rows repeat an earlier one \(267 distinct.*noise="):
        earth("volcanoes").check()
    earth("volcanoes", noise=0.01).check()


def test_earth_says_where_to_get_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.delenv("FLUVIAL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"^volcanoes: set .*FLUVIAL_DATA .*earth/volcano.csv \(827 rows.*oxcsml/riemannian-score-sde"):
        data.volcanoes()
    monkeypatch.setenv("FLUVIAL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"FLUVIAL_DATA: expected earthquake.csv \(6120 rows.*quakes_all.csv") as caught:
        data.earthquakes()
    assert "\n" not in str(caught.value)


def test_earth_reads_the_originals_and_refuses_other_tables(tmp_path):
    header = "# NOAA significant earthquakes\n# fetched\nlatitude,longitude\n\n"
    rows = [f"{lat:.3f},{lon:.3f}" for lat, lon in zip(np.linspace(-60, 60, 6120), np.linspace(-180, 180, 6120))]
    original = tmp_path / "quakes_all.csv"
    original.write_text(header + "\n".join(rows))
    assert len(data.earthquakes(root=tmp_path)) == 6120
    original.write_text(header + "\n".join(rows[:-1]))
    with pytest.raises(ValueError, match="expected 6120 events, got 6119"):
        data.earthquakes(root=tmp_path)
    original.write_text("\n".join([*rows[:10], "somewhere", *rows[11:]]))
    with pytest.raises(ValueError, match="line 11 is not latitude, longitude: 'somewhere'"):
        data.earthquakes(root=tmp_path)
    (tmp_path / "flood.csv").write_text("\n".join(rows[:4875]))
    with pytest.raises(ValueError, match="differ from the published table"):
        data.floods(root=tmp_path)


def test_importing_data_stays_light():
    heavy = ["pandas", "pyarrow", "sklearn", "scipy", "matplotlib", "lightning", "airportsdata"]
    code = f"import sys, fluvial.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_centre_of_a_sphere_is_not_on_it():
    x = Sphere(2).random_uniform(20)
    x[3] = 0
    with pytest.raises(ValueError, match=r"row 3 lies 1 away from Sphere\(2\)"):
        Dataset(x, manifold=Sphere(2)).check()
