"""Columns of files as angles, rotations and poses: what they become, and one clear line for those that are none."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation

from fluvial.data import Dataset, DataSpec, load
from fluvial.data.coordinates import from_quaternion, from_rotation_matrix, from_rotation_vector
from fluvial.manifolds import Euclidean, Mesh, PoincareBall, Product, SpecialOrthogonal, Sphere, Torus
from fluvial.recipes.recipe import Recipe

MATRIX = [f"r{i}{j}" for i in range(3) for j in range(3)]


@pytest.fixture
def write(tmp_path):
    def write(frame, name="poses.csv"):
        path = tmp_path / name
        if name.endswith(".csv"):
            frame.to_csv(path, index=False)
        elif name.endswith(".parquet"):
            frame.to_parquet(path, index=False)
        elif name.endswith(".npz"):
            np.savez(path, **{column: frame[column].to_numpy() for column in frame})
        else:
            np.save(path, frame.to_records(index=False))
        return path

    return write


@pytest.fixture
def turns():
    return Rotation.random(12, random_state=np.random.RandomState(0))


@pytest.fixture
def frame(turns):
    """The same rotations in every form, quaternions of other lengths and signs, with positions and a label."""
    rng = np.random.default_rng(0)
    size = rng.choice([-3.0, 0.5, 1.0], 12)[:, None]
    table = pd.DataFrame(turns.as_quat() * size, columns=["qx", "qy", "qz", "qw"])
    table[["vx", "vy", "vz"]] = turns.as_rotvec()
    table[MATRIX] = turns.as_matrix().reshape(-1, 9)
    table[["x", "y", "z"]] = rng.normal(size=(12, 3))
    table[["phi", "psi"]] = rng.uniform(-180, 180, (12, 2))
    table["grip"] = rng.normal(size=12)
    table["w"] = rng.uniform(size=12)
    return table


FORMS = {
    "quaternion": {"quaternion": ["qx", "qy", "qz", "qw"]},
    "scalar first": {"quaternion": ["qw", "qx", "qy", "qz"], "scalar_first": True},
    "rotation vector": {"rotation_vector": ["vx", "vy", "vz"]},
    "rotation matrix": {"rotation_matrix": MATRIX},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("ending", ["csv", "parquet", "npz", "npy"])
def test_rotations_in_every_form_and_format(write, frame, turns, form, ending):
    ds = load(write(frame, f"turns.{ending}"), **form, condition="grip", weight="w")
    assert ds.spec.manifold == SpecialOrthogonal(3)
    assert ds.x.shape == (12, 3, 3)
    assert ds.x.dtype == torch.float32
    torch.testing.assert_close(ds.x, torch.tensor(turns.as_matrix(), dtype=torch.float32))
    assert ds.spec.condition_names == ("grip",)
    assert ds.weight is not None
    assert ds.name == "turns"


def test_columns_of_an_array_by_number(tmp_path, turns):
    np.save(tmp_path / "q.npy", turns.as_quat())
    ds = load(tmp_path / "q.npy", quaternion=["x0", "x1", "x2", "x3"])
    torch.testing.assert_close(ds.x, torch.tensor(turns.as_matrix(), dtype=torch.float32))
    np.savez(tmp_path / "q.npz", x=turns.as_quat(), names=["a", "b", "c", "d"], weight=np.ones(12))
    ds = load(tmp_path / "q.npz", quaternion=["a", "b", "c", "d"])
    assert ds.x.shape == (12, 3, 3)
    assert ds.weight is not None


def test_poses_are_a_product(write, frame, turns):
    ds = load(write(frame), columns=["x", "y", "z"], quaternion=["qx", "qy", "qz", "qw"], condition=["grip"])
    manifold = Product(SpecialOrthogonal(3), Euclidean(3))
    assert ds.spec.manifold == manifold
    assert ds.spec.names == (*(f"R_{i}_{j}" for i in range(3) for j in range(3)), "x", "y", "z")
    rotation, position = manifold.split(ds.x)
    torch.testing.assert_close(rotation, torch.tensor(turns.as_matrix(), dtype=torch.float32))
    torch.testing.assert_close(position, torch.tensor(frame[["x", "y", "z"]].to_numpy(), dtype=torch.float32))
    ds.check()


def test_factors_come_in_the_stated_order(write, frame):
    frame = frame.assign(lat=frame.phi / 2, lon=frame.psi, tilt=frame.phi / 60)
    path = write(frame)
    ds = load(
        path,
        rotation_matrix=MATRIX,
        radians="tilt",
        rotation_vector=["vx", "vy", "vz"],
        degrees=["phi", "psi"],
        latlon=["lat", "lon"],
    )
    rotations = SpecialOrthogonal(3)
    manifold = Product(Sphere(2), Torus(2), Torus(1), rotations, rotations)
    assert ds.spec.manifold == manifold
    assert ds.spec.names is not None
    assert ds.spec.names[:9] == ("n_x", "n_y", "n_z", "cos phi", "sin phi", "cos psi", "sin psi", "cos tilt", "sin tilt")
    assert ds.spec.names[9::9] == ("R_0_0", "R2_0_0")
    place, angles, tilt, first, second = manifold.split(ds.x)
    torch.testing.assert_close(place, load(path, latlon=["lat", "lon"]).x)
    torch.testing.assert_close(angles, load(path, degrees=["phi", "psi"]).x)
    torch.testing.assert_close(tilt, load(path, radians=["tilt"]).x)
    torch.testing.assert_close(first, second)
    assert load(path, degrees=["phi"], columns="x").spec.manifold == Product(Torus(1), Euclidean(1))


def test_angles(write):
    path = write(pd.DataFrame({"phi": [-60.0, 350.0, 180.0, -180.0], "t": [1.0, 2.0, 3.0, 4.0], "chi": [0.0, math.pi, -6.0, 6.0]}))
    ds = load(path, degrees=["phi"], condition="t")
    assert ds.spec.manifold == Torus(1)
    assert ds.spec.names == ("phi",)
    torch.testing.assert_close(Torus.to_angles(ds.x.double())[:2, 0], torch.deg2rad(torch.tensor([-60.0, -10.0])).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(ds.x[2], ds.x[3])
    ds = load(path, radians="chi")
    torch.testing.assert_close(ds.x[:, 0, 0], torch.cos(torch.tensor([0.0, math.pi, -6.0, 6.0])))
    with pytest.raises(ValueError, match="angle 'phi' of row 1 is nan: 1 such rows of 3"):
        load(write(pd.DataFrame({"phi": [1.0, np.nan, 3.0]})), degrees="phi")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quaternion": ["qx", "qy", "qz"]}, r"quaternion: expected the names of four columns \(x, y, z, w\), got \['qx', 'qy', 'qz'\]"),
        ({"quaternion": "qx"}, "quaternion: expected the names of four columns"),
        ({"rotation_vector": ["qx"]}, "rotation_vector: expected the names of three columns"),
        ({"rotation_matrix": MATRIX[:8]}, r"rotation_matrix: expected the names of nine columns \(entries row by row\)"),
        ({"degrees": []}, "degrees: expected the names of one or more columns"),
        ({"quaternion": ["qx", "qy", "qz", "q0"]}, "no column 'q0'; there are 'qx', 'qy'"),
        ({"quaternion": ["qx", "qy", "qz", "qx"]}, "column 'qx' is given two uses"),
        ({"degrees": ["x"], "columns": ["x", "y"]}, "column 'x' is given two uses"),
        ({"degrees": ["x"], "condition": ["x"]}, "column 'x' is given two uses"),
        ({"scalar_first": True}, "give quaternion= too"),
        ({"scalar_first": True, "degrees": ["x"]}, "give quaternion= too"),
        ({"degrees": ["x"], "manifold": Torus(1)}, r"manifold=Torus\(1\) and degrees= both say where the samples live"),
        ({"latlon": ["x", "y"], "columns": ["z"]}, "latlon: expected the names of two columns .* and no columns="),
    ],
)
def test_wrong_columns_are_named(write, frame, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(write(frame), **arguments)


@pytest.mark.parametrize(
    ("column", "row", "value", "arguments", "message"),
    [
        ("qw", 5, np.nan, FORMS["quaternion"], r"poses.csv: quaternion of row 5 is \(.*nan\): 1 such rows of 12"),
        ("vx", 3, np.inf, FORMS["rotation vector"], r"rotation vector of row 3 is \(inf, "),
        ("r12", 4, np.nan, FORMS["rotation matrix"], "rotation matrix of row 4 is"),
        ("r12", 4, 0.9, FORMS["rotation matrix"], r"rotation matrix of row 4 is not orthogonal: .*\(1 such rows\); are the nine columns"),
        ("phi", 2, 999.0, {"degrees": ["psi", "phi"]}, r"angle 'phi' of row 2 is 999, outside ±360 degrees \(1 such rows\); does it mark a missing"),
        ("phi", 0, 90.0, {"radians": ["phi"]}, r"angle 'phi' of row 0 is 90, outside ±6.283 radians \(12 such rows\); are these degrees\?"),
    ],
)
def test_wrong_numbers_name_their_row(write, frame, column, row, value, arguments, message):
    frame["phi"] = 45.0 + frame.index
    frame.loc[row, column] = value
    with pytest.raises(ValueError, match=message):
        load(write(frame), **arguments)


def test_a_zero_quaternion_and_a_reflection(write, frame):
    frame.loc[7, ["qx", "qy", "qz", "qw"]] = 0.0
    frame.loc[2, ["r00", "r01", "r02"]] *= -1
    with pytest.raises(ValueError, match="quaternion of row 7 is 0, which stands for no rotation"):
        load(write(frame), **FORMS["quaternion"])
    with pytest.raises(ValueError, match=r"rotation matrix of row 2 is a reflection, its determinant is −1 \(1 such rows\)"):
        load(write(frame), **FORMS["rotation matrix"])


def test_conversions_of_arrays_against_scipy(turns):
    np.testing.assert_allclose(from_quaternion(turns.as_quat()), turns.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(from_quaternion(1e-200 * turns.as_quat()), turns.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(from_quaternion(-1e200 * turns.as_quat()), turns.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(from_rotation_vector(turns.as_rotvec()), turns.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(from_rotation_vector(np.zeros((1, 3)))[0], np.eye(3))
    # More than a turn is less of one.
    np.testing.assert_allclose(from_rotation_vector([[0, 0, 2 * math.pi + 0.5]]), Rotation.from_rotvec([[0, 0, 0.5]]).as_matrix(), atol=1e-14)
    rounded = from_rotation_matrix(turns.as_matrix().reshape(-1, 9).round(4))
    np.testing.assert_allclose(rounded, turns.as_matrix(), atol=1e-4)
    np.testing.assert_allclose(rounded.transpose(0, 2, 1) @ rounded, np.tile(np.eye(3), (12, 1, 1)), atol=1e-14)
    with pytest.raises(ValueError, match=r"quaternion: expected shape \(n, 4\), got \(12, 3\)"):
        from_quaternion(turns.as_rotvec())


def test_files_of_poses_in_recipes(write, frame):
    path = write(frame)
    text = f"""\
flow: {{class_path: fluvial.flows.free_form, init_args: {{features: 2}}}}
data:
  class_path: fluvial.data.load
  init_args:
    path: {path}
    quaternion: [qw, qx, qy, qz]
    scalar_first: true
    columns: [x, y, z]
    degrees: [phi]
    condition: [grip]
"""
    recipe = Recipe.parse("mine", text)
    ds = recipe.dataset()
    assert ds.spec.manifold == Product(Torus(1), SpecialOrthogonal(3), Euclidean(3))
    again = Recipe.parse("again", recipe.to_yaml()).dataset()
    torch.testing.assert_close(again.x, ds.x)
    assert Recipe.parse("one", text, ["--data.init_args.degrees", "psi"]).dataset().spec.names[:2] == ("cos psi", "sin psi")


@pytest.mark.parametrize(
    ("names", "scalar_first", "message"),
    [
        (["qw", "qx", "qy", "qz"], False, "columns qw, qx, qy, qz look scalar first; say scalar_first=True"),
        (["Q_W", "qx", "qy", "qz"], False, "look scalar first"),
        (["qx", "qy", "qz", "qw"], True, "columns qx, qy, qz, qw look scalar last; leave scalar_first=True out"),
    ],
)
def test_names_of_quaternions_show_their_order(write, frame, names, scalar_first, message):
    with pytest.raises(ValueError, match=message):
        load(write(frame.rename(columns={"qw": names[0]} if names[0] == "Q_W" else {})), quaternion=names, scalar_first=scalar_first)


def test_rotation_vectors_in_degrees(write, frame):
    vector = ["vx", "vy", "vz"]
    turns = frame.copy()
    turns.loc[:4, vector] *= (1 + 2 * math.pi / np.linalg.norm(frame.loc[:4, vector], axis=1))[:, None]
    longer = load(write(turns), rotation_vector=vector)
    torch.testing.assert_close(longer.x, load(write(frame), rotation_vector=vector).x, rtol=0, atol=1e-5)
    frame[vector] = np.rad2deg(frame[vector])
    with pytest.raises(ValueError, match=r"rotation vector of row 0 is .* long \(12 of 12 rows .* are these degrees\? .*57.3"):
        load(write(frame), rotation_vector=vector)


def test_steps_and_noise_of_the_flat_columns_of_a_product(write, frame):
    frame[["x", "y", "z"]] = frame[["x", "y", "z"]].round(1)
    path, pose = write(pd.concat([frame] * 20)), {"quaternion": ["qx", "qy", "qz", "qw"], "columns": ["x", "y", "z"]}
    ds = load(path, **pose, dequantize=0.1)
    assert ds.spec.dequantize == (0.0,) * 9 + (0.1,) * 3
    assert load(path, **pose, dequantize=[0.1, 0.2, 0.0]).spec.dequantize == (0.0,) * 9 + (0.1, 0.2, 0.0)
    assert load(path, **pose, noise=[0.1, 0.2, 0.0]).spec.noise == (0.0,) * 9 + (0.1, 0.2, 0.0)
    assert load(path, **pose, noise=0.1).spec.noise == 0.1
    torch.testing.assert_close(ds.spec.perturb(ds.x)[:, :9], ds.x[:, :9], rtol=0, atol=1e-6)
    assert bool((ds.spec.perturb(ds.x)[:, 9:] > ds.x[:, 9:]).any())
    assert DataSpec.from_dict(ds.spec.to_dict()) == ds.spec
    with pytest.raises(ValueError, match="dequantize must be one number, or one per column"):
        load(path, **pose, dequantize=[0.1, 0.2])
    # Repeated rotations are mended by noise, not by steps of their entries.
    with pytest.raises(ValueError, match="'R_0_0', .*discrete .*has no bound; noise= adds Gaussian noise; or"):
        load(path, **pose).check()
    inner = Product(Product(Torus(1), Euclidean(1)), Euclidean(2))
    assert DataSpec(5, manifold=inner, dequantize=1.0).dequantize == (0.0, 0.0, 1.0, 1.0, 1.0)
    assert DataSpec(4, manifold=Product(Torus(1), Torus(1)), dequantize=1.0).dequantize == 1.0


@pytest.mark.parametrize(
    ("manifold", "row", "message", "absent"),
    [
        (
            SpecialOrthogonal(3),
            torch.diag(torch.tensor([1.0, 1.0, -1.0])),
            "it is a reflection, its determinant is −1, .*swapping two axes",
            "project",
        ),
        (SpecialOrthogonal(3), 2 * torch.eye(3), r"call SpecialOrthogonal\(3\).project\(x\) first.*for quaternions or", "degrees"),
        (PoincareBall(2), torch.tensor([1.5, 0.0]), "it has norm 1.5, and points of norm ≥ 1 are no points", "project"),
        (PoincareBall(2), torch.tensor([1.0, 0.0]), "it has norm 1, and points of norm ≥ 1 are", "project"),
        (Torus(1), torch.tensor([[2.0, 0.0]]), r"call Torus\(1\).project\(x\) first.*for degrees", "quaternion"),
        (Product(PoincareBall(1), Euclidean(1)), torch.tensor([1.0, 5.0]), r"its part on PoincareBall\(1\) has norm 1, and", "project"),
        (
            Product(SpecialOrthogonal(2), Euclidean(1)),
            torch.tensor([1.0, 0.0, 0.0, -1.0, 5.0]),
            r"its part on SpecialOrthogonal\(2\) is a reflection",
            "project",
        ),
        (Product(Euclidean(1), Sphere(1)), torch.tensor([5.0, 0.0, 0.0]), r"no one point of Sphere\(1\) is nearest to its part there", "project"),
        (Product(Sphere(1), Euclidean(1)), torch.tensor([2.0, 0.0, 5.0]), r"call Product\(.*\).project\(x\) first.*for degrees", "quaternion"),
    ],
)
def test_the_advice_fits_the_manifold(manifold, row, message, absent):
    with pytest.raises(ValueError, match=r"row 0 lies .* away from .*\(2 such rows of 2\); " + message) as raised:
        Dataset(torch.stack([row, row]), manifold=manifold).check()
    assert absent not in str(raised.value)


def test_points_beside_their_manifold_are_projected(write):
    corners = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    mesh = Mesh(corners, [[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    points = mesh.random_uniform(50, generator=torch.Generator().manual_seed(0)) + 0.05
    path = write(pd.DataFrame(points.numpy(), columns=["x", "y", "z"]))
    with pytest.raises(ValueError, match=r"away from Mesh.*project=True of fluvial.data.load"):
        load(path, manifold=mesh).check()
    ds = load(path, manifold=mesh, project=True)
    ds.check()
    torch.testing.assert_close(ds.x, mesh.project(points))
    # What has no nearest point, or is not finite, stays as it is for the check to name.
    mirrored = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    np.save(path.with_suffix(".npy"), torch.stack([1.1 * torch.eye(3), mirrored]).numpy())
    ds = load(path.with_suffix(".npy"), manifold=SpecialOrthogonal(3), project=True)
    torch.testing.assert_close(ds.x, torch.stack([torch.eye(3), mirrored]))
    with pytest.raises(ValueError, match="row 1 .*it is a reflection"):
        ds.check()
    with pytest.raises(ValueError, match=r"row 0 .*no one point of Sphere\(1\) is nearest to it: leave such rows out"):
        Dataset([[0.0, 0.0], [1.0, 0.0]], manifold=Sphere(1)).check()
    path = write(pd.DataFrame({"x": [3.0, np.nan], "y": [4.0, 1.0]}))
    ds = load(path, manifold=Sphere(1), project=True)
    torch.testing.assert_close(ds.x[0], torch.tensor([0.6, 0.8]))
    with pytest.raises(ValueError, match="row 1, column 'x' is nan"):
        ds.check()
    with pytest.raises(ValueError, match="project=True moves rows .*give manifold= too"):
        load(path, project=True)


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz"])
def test_labels_become_conditions(write, frame, ending):
    frame["residue"] = (["GLY", "ALA"] * 6) if ending != "npz" else np.array(["GLY", "ALA"] * 6)
    frame["chain"] = [10, 2, 1] * 4
    path = write(frame, f"torsions.{ending}")
    if ending == "npz":  # text as numpy holds it, not as Python objects
        np.savez(path, **{name: frame[name].to_numpy(str if name == "residue" else None) for name in ("phi", "grip", "residue", "chain")})
    ds = load(path, degrees="phi", condition="grip", categorical=["residue", "chain"])
    assert ds.spec.condition_names == ("grip", "residue=ALA", "residue=GLY", "chain=1", "chain=2", "chain=10")
    assert ds.c.shape == (12, 6)
    torch.testing.assert_close(ds.c[:, 0], torch.tensor(frame.grip.to_numpy(), dtype=torch.float32))
    assert ds.c[:2, 1:].tolist() == [[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]]
    ds = load(path, columns="phi", condition=["chain", "grip"], categorical="chain")
    assert ds.spec.condition_names == ("chain=1", "chain=2", "chain=10", "grip")
    with pytest.raises(ValueError, match="column 'residue'.*GLY.*make it a condition.*categorical="):
        load(path, columns=["phi"], condition=["residue"])
    with pytest.raises(ValueError, match="column 'grip', row 0: the label is .*, neither text nor a whole number"):
        load(write(frame, "g.parquet"), columns="phi", categorical="grip")


def test_odd_labels_name_their_row(write):
    with pytest.raises(ValueError, match="column 'a', row 1: the label is missing"):
        load(write(pd.DataFrame({"x": [1.0, 2.0], "a": ["u", None]})), categorical="a")
    with pytest.raises(ValueError, match="column 'a': 1001 levels in 1001 rows, more than 1000; is it a label"):
        load(write(pd.DataFrame({"x": np.arange(1001.0), "a": np.arange(1001)})), categorical="a")
    with pytest.raises(ValueError, match="no column 'b'"):
        load(write(pd.DataFrame({"x": [1.0, 2.0]})), categorical="b")
    with pytest.raises(ValueError, match="column 'x' is given two uses"):
        load(write(pd.DataFrame({"x": [1.0, 2.0]})), columns="x", categorical="x")
