"""Flows of rotations and splines for NumPy alone."""

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from fluvial.bases import Normal, StudentT
from fluvial.codecs import (
    LU,
    Bounds,
    Chain,
    Hadamard,
    Log,
    Logit,
    MarginalSpline,
    PrincipalAxes,
    Rotation,
    Softplus,
    Standardize,
    TrainableRotation,
)
from fluvial.flow import Flow
from fluvial.gaussianization.export import export_numpy
from fluvial.gaussianization.fit import fit
from fluvial.gaussianization.numpy_flow import NumpyFlow, load
from fluvial.training import fit as train


def rows(n=1500, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    x[:, 1] = 0.5 * x[:, 1] + x[:, 0] ** 2
    x[:, 2] = rng.standard_t(2, size=n)
    return x


def splines(tail):
    """Knots that differ between coordinates, not symmetric, with tails that are none of the identity."""
    codec = MarginalSpline(3, 5, tail=tail)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return codec


def standardize():
    codec = Standardize(3)
    codec.fit_(torch.from_numpy(rows()).float())
    return codec


def principal_axes():
    codec = PrincipalAxes(3)
    codec.fit_(torch.from_numpy(rows()).float() * torch.tensor([1.0, 2.0, 0.5]) + 1)
    return codec


def turned():
    codec = TrainableRotation(3, start="random", seed=2)
    with torch.no_grad():
        codec.weight.normal_()
    return codec


PARTS = {
    "standardize": lambda: [standardize()],
    "bounds": lambda: [Bounds([0.0, None, -1.0], [None, 2.0, 3.0])],
    "logarithmic bounds": lambda: [Bounds([0.5, None, None], [None, 2.0, None], one_sided="log")],
    "logit": lambda: [Logit(3, low=-2.0, high=5.0)],
    "softplus": lambda: [Softplus(3, low=-1.0)],
    "log": lambda: [Log(3)],
    "rotation": lambda: [Rotation(3, seed=3)],
    "hadamard": lambda: [Hadamard(3, seed=4)],
    "trainable rotation": lambda: [turned(), TrainableRotation(3, method="householder", start="random", seed=1)],
    "principal axes": lambda: [principal_axes()],
    "straight splines": lambda: [splines("straight")],
    "Pareto splines": lambda: [splines("pareto")],
    "nested": lambda: [Chain([Standardize(3), Chain([Rotation(3)])]), Bounds([None] * 3, [9.0] * 3), splines("pareto"), turned()],
}


@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS.keys())
def test_numbers_are_those_of_torch(make, tmp_path):
    flow = Flow(Chain(make()), Normal(3)).eval()
    export_numpy(flow, tmp_path / "flow.npz")
    there = load(tmp_path / "flow.npz")
    # Far latents reach into the tails of splines, and near the bounds.
    z = 2 * torch.randn(500, 3, dtype=torch.float64)
    here = flow.double()
    x = here.decode(z)
    np.testing.assert_allclose(there.decode(z.numpy()), x, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(there.encode(x.numpy()), here.encode(x), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(there.log_prob(x.numpy()), here.log_prob(x), rtol=1e-7, atol=1e-7)
    # Nothing was changed in the flow, and other shapes of batches are taken.
    assert there.encode(x.view(5, 100, 3).numpy()).shape == (5, 100, 3)
    assert there.log_prob(x[0].numpy()).shape == ()


@pytest.mark.parametrize("tail", ["pareto", "gaussian", "bounded"])
def test_fitted_flow_agrees_in_single_precision(tail, tmp_path):
    x = rows()
    bounds = [(-8.0, 8.0), (-5.0, None), (None, None)] if tail == "bounded" else None
    flow = fit(x, tail=tail, bounds=bounds, max_layers=6, progress=False)
    export_numpy(flow, tmp_path / "flow.npz")
    there, fresh = load(tmp_path / "flow.npz"), rows(1000, 1)
    single = torch.from_numpy(fresh).float()
    z = flow.encode(single).numpy()
    np.testing.assert_allclose(there.encode(single.numpy()), z, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(there.log_prob(single.numpy()), flow.log_prob(single).numpy(), atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(there.decode(there.encode(fresh)), fresh, rtol=1e-9, atol=1e-7)


def test_trained_further_and_sampled(tmp_path):
    x = rows()[:, :2]
    flow = fit(x, max_layers=3, train_rotations=True, tail="gaussian", progress=False)
    train(flow, x, max_steps=20, validate_every=10, progress=False)
    export_numpy(flow, tmp_path / "flow.npz")
    there = load(tmp_path / "flow.npz")
    drawn = there.sample(4000, seed=0)
    np.testing.assert_array_equal(drawn, there.sample(4000, seed=0))
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.15)
    np.testing.assert_allclose(there.log_prob(drawn[:100]), flow.double().log_prob(torch.from_numpy(drawn[:100])), atol=1e-7)


def test_values_on_and_beyond_bounds(tmp_path):
    flow = Flow(Chain([Bounds([0.0, 0.0], [1.0, None])]), Normal(2)).eval()
    export_numpy(flow, tmp_path / "flow.npz")
    x = np.array([[0.0, 1.0], [1.0, 0.0], [-1e-9, 1.0], [1.5, 1.0], [0.5, -1.0]])
    there = load(tmp_path / "flow.npz")
    want = flow.log_prob(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(there.log_prob(x), want, rtol=1e-5)
    assert np.isneginf(want).tolist() == [False, False, True, True, True]
    assert np.isfinite(there.encode(x)).all()
    extreme = there.decode(np.array([[-800.0, -800.0], [800.0, 800.0]]))
    assert extreme.min() >= 0
    assert extreme[1, 0] == 1.0


def test_tails_far_out(tmp_path):
    codec = MarginalSpline(1, 4, tail="pareto")
    flow = Flow(Chain([codec]), Normal(1)).eval()
    export_numpy(flow, tmp_path / "flow.npz")
    x = np.array([[-1e8], [-50.0], [10.0], [1e6], [1e12]])
    there = load(tmp_path / "flow.npz")
    np.testing.assert_allclose(there.log_prob(x), flow.double().log_prob(torch.from_numpy(x)).detach(), rtol=1e-9)
    np.testing.assert_allclose(there.decode(there.encode(x)), x, rtol=1e-7)


def test_reader_runs_without_torch_and_fluvial(tmp_path):
    flow = fit(rows()[:, :2], max_layers=3, progress=False)
    export_numpy(flow, tmp_path / "flow.npz", module=tmp_path / "reader.py")
    program = """
import sys
sys.modules["torch"] = sys.modules["fluvial"] = sys.modules["scipy"] = None  # importing them fails
import reader
flow = reader.load("flow.npz")
print(float(flow.log_prob([[0.5, 1.0]])[0]), *flow.decode([0.1, -0.2]), flow.sample(3, seed=0).shape)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "fluvial", "scipy"} - {n for n, m in sys.modules.items() if m is None}))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert second == "[]"
    log_p, *x = (float(word) for word in first.split()[:3])
    assert log_p == pytest.approx(flow.double().log_prob(torch.tensor([[0.5, 1.0]], dtype=torch.float64)).item(), abs=1e-8)
    assert x == pytest.approx(flow.decode(torch.tensor([0.1, -0.2], dtype=torch.float64)).tolist(), abs=1e-8)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (lambda: Flow(Chain([Rotation(2), LU(2)]), Normal(2)), "contains a LU, which the NumPy reader does not know; it knows Standardize"),
        (lambda: Flow(Rotation(2), StudentT(2)), "a standard normal base, got samples of shape .* and StudentT"),
        (lambda: Flow(Standardize((2, 2)), Normal((2, 2))), r"expected vectors .* shape \(2, 2\)"),
        (lambda: Flow(Rotation(2), Normal(2), condition={"energy": (1,), "angle": (2,)}), "a condition that is one vector"),
    ],
)
def test_what_cannot_be_exported(flow, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_numpy(flow(), tmp_path / "flow.npz")
    assert not list(tmp_path.iterdir())


def test_only_flows_are_exported(tmp_path):
    with pytest.raises(TypeError, match="expected a Flow, got Rotation"):
        export_numpy(Rotation(2), tmp_path / "flow.npz")


# ------------------------------------------------------------------------------------------------------------------------- files of other origin


@pytest.fixture
def arrays(tmp_path):
    """What is in a good file."""
    flow = Flow(Chain([Standardize(2), Bounds([0.0, None], [1.0, None]), Rotation(2), MarginalSpline(2, 3, tail="pareto")]), Normal(2))
    export_numpy(flow, tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": np.array("another 1")}, "not a flow written by export_numpy"),
        ({"format": None}, "not a flow written by export_numpy"),
        ({"kinds": None}, "'kinds' is missing"),
        ({"features": np.array(2.0)}, "'features' is missing or of the wrong kind"),
        ({"features": np.array(0)}, "features must be positive"),
        ({"features": np.array(3)}, "part 0: affine .* does not fit 3 features"),
        ({"kinds": np.array(["affine", "code", "rotation", "spline"])}, "part 1: unknown kind 'code'"),
        ({"0.scale": None}, r"part 0: expected the arrays loc scale, got \['loc'\]"),
        ({"0.extra": np.ones(2)}, "part 0: expected the arrays"),
        ({"0.scale": np.array([1.0, -1.0])}, "part 0: the arrays of affine are no invertible map"),
        ({"0.loc": np.array([np.nan, 0.0])}, "part 0: affine loc holds numbers that are not finite"),
        ({"1.low": np.array([2.0, 0.0])}, "part 1: the arrays of bounds"),
        ({"2.matrix": np.ones((2, 2))}, "part 2: the arrays of rotation"),
        ({"2.matrix": np.eye(3)}, "part 2: rotation matrix has the shape"),
        ({"3.x": np.zeros((2, 4))}, "part 3: the arrays of spline"),
        ({"3.y": np.zeros((2, 5))}, "part 3: spline y has the shape"),
        ({"3.x": np.zeros((2, 1)), "3.y": np.zeros((2, 1)), "3.slope": np.ones((2, 1))}, "part 3: spline .* has the shape"),
        ({"3.shape": np.zeros((2, 2))}, "part 3: the arrays of spline"),
        ({"3.slope": np.array("text")}, "could not convert|part 3"),
    ],
)
def test_arrays_that_are_no_flow(arrays, change, message, tmp_path):
    changed = {name: array for name, array in (arrays | change).items() if array is not None}
    np.savez(tmp_path / "bad.npz", **changed)
    with pytest.raises(ValueError, match=message) as raised:
        load(tmp_path / "bad.npz")
    assert "bad.npz" in str(raised.value)


def test_objects_are_not_unpickled(arrays, tmp_path):
    objects = np.empty(2, object)
    objects[:] = [print, len]
    np.savez(tmp_path / "bad.npz", **(arrays | {"0.loc": objects}))
    with pytest.raises(ValueError, match=r"0.loc: expected .* plain numbers or text, got dtype object"):
        load(tmp_path / "bad.npz")


def header(shape, dtype="<f8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue()


def test_more_is_claimed_than_there_is(arrays, tmp_path):
    np.savez_compressed(tmp_path / "compressed.npz", **arrays)
    with pytest.raises(ValueError, match="is none that export_numpy writes"):
        load(tmp_path / "compressed.npz")
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("format.npy", header((10**12,)))
    with pytest.raises(ValueError, match=r"expected 0 bytes .* shape \(1000000000000,\)"):
        load(tmp_path / "huge.npz")
    with zipfile.ZipFile(tmp_path / "foreign.npz", "w") as archive:
        archive.writestr("run.py", "print(1)")
    with pytest.raises(ValueError, match="'run.py' is none that export_numpy writes"):
        load(tmp_path / "foreign.npz")


def test_damaged_files(tmp_path):
    export_numpy(Flow(Chain([Rotation(2), MarginalSpline(2, 8)]), Normal(2)), tmp_path / "flow.npz")
    content = (tmp_path / "flow.npz").read_bytes()
    for name, damaged in (("short", content[: len(content) // 2]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}: not a whole .npz file"):
            load(tmp_path / name)
    flipped = bytearray(content)
    flipped[content.index(b"NUMPY") + 200] ^= 0xFF
    (tmp_path / "flipped").write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match="flipped: "):
        load(tmp_path / "flipped")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")


def test_wrong_rows_are_refused():
    with pytest.raises(ValueError, match="expected rows of 2 numbers, got an array of shape"):
        NumpyFlow(2, []).encode(np.zeros((4, 3)))
