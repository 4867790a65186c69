"""Surfaces of the user's own that can be saved, points beside a surface, and what check advises on curved spaces."""

import importlib
import pickle
import re
import sys

import pytest
import torch

import fluvial as fl
from fluvial.bases import UniformByProjection, UniformOn
from fluvial.check import _gap_verdict, _mass, _standardising
from fluvial.codecs import Chain, FreeForm, Standardize
from fluvial.config import build, describe, writable
from fluvial.flows import free_form
from fluvial.manifolds import Euclidean, Product, Projected, SpecialOrthogonal, Sphere, from_projection
from fluvial.metrics import figures, nll
from fluvial.metrics.estimate import Estimate
from fluvial.metrics.likelihood import Gap
from fluvial.testing import check_manifold

OWN_SPACE = '''
import torch
from fluvial.manifolds import Projected


class Ring(Projected):
    """A torus of revolution with a tube of radius 1."""

    def __init__(self, radius=2.0):
        super().__init__(dim=2, event_shape=3)
        self.radius = radius

    def project(self, x):
        core = self.radius * unit(torch.cat([x[..., :2], torch.zeros_like(x[..., 2:])], -1))
        return core + unit(x - core)


class Unit(Projected):
    """Takes its dimension and shape as they come."""

    def project(self, x):
        return unit(x)


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own that Python can import."""
    (tmp_path / "own_space.py").write_text(OWN_SPACE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own_space")
    sys.modules.pop("own_space")


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def on_ring(ring):
    base = UniformByProjection(ring, low=(-4.0, -4.0, -2.0), high=(4.0, 4.0, 2.0), reach=0.5, points=5000)
    return free_form(manifold=ring, base=base, width=8, blocks=1).eval()


@pytest.mark.parametrize("make", [lambda own: own.Ring(), lambda own: own.Unit(2, 3)], ids=["own arguments", "no constructor"])
def test_a_class_with_a_projection_alone_is_a_manifold(own, make):
    torch.manual_seed(0)
    space = make(own)
    check_manifold(space, draws=2000)
    assert build(describe(space), allow=["own_space"]) == space
    assert pickle.loads(pickle.dumps(space)) == space


def test_arguments_tell_spaces_apart(own):
    assert own.Ring(2.0) == own.Ring()
    assert hash(own.Ring(2.0)) == hash(own.Ring())
    assert own.Ring(3.0) != own.Ring()
    assert own.Unit(2, 3) != from_projection(unit, 2)


def test_a_flow_on_a_class_of_ones_own_is_saved_and_loaded(own, tmp_path):
    torch.manual_seed(0)
    flow = on_ring(own.Ring(2.5))
    flow.spec = fl.data.DataSpec(3, manifold=own.Ring(2.5))
    fl.save(flow, tmp_path / "ring.safetensors")
    again = fl.load(tmp_path / "ring.safetensors", allow=["own_space"])
    assert again.manifold == again.spec.manifold == own.Ring(2.5)
    x = flow.sample(4)
    torch.testing.assert_close(again.log_prob(x), flow.log_prob(x))
    with pytest.raises(ValueError, match=r"own_space\.Ring.* is not allowed"):
        fl.load(tmp_path / "ring.safetensors")


def test_a_function_has_no_written_form_and_the_error_names_the_class_that_has(tmp_path):
    space = from_projection(unit, 2)
    assert isinstance(space, Projected)
    assert repr(space) == "from_projection(unit, 2)"
    assert pickle.loads(pickle.dumps(space)) == space == from_projection(unit, 2)
    base = UniformByProjection(space, low=-1.5, high=1.5, reach=0.4, points=5000)
    flow = free_form(manifold=space, base=base, width=8, blocks=1)
    assert "project(self, x)" in str(writable(flow))
    with pytest.raises(ValueError, match=r"subclass of fluvial\.manifolds\.Projected .*allow="):
        fl.save(flow, tmp_path / "flow.safetensors")


def test_a_projection_must_be_written_and_dimensions_must_fit(own):
    with pytest.raises(TypeError, match="project"):
        Projected(2, 3)  # pyright: ignore[reportAbstractUsage]
    with pytest.raises(ValueError, match="Unit: no image in space of shape"):
        own.Unit(4, 3)
    with pytest.raises(TypeError, match="float"):
        own.Unit(2.5, 3)


def test_likelihoods_refuse_rows_beside_the_manifold():
    torch.manual_seed(0)
    sphere = Sphere(2)
    flow = free_form(manifold=sphere, width=8, blocks=1)
    x = sphere.random_uniform(50)
    assert torch.isfinite(torch.tensor(nll(flow, x * 1.005).value))
    for beside in (1.5 * x[7], 0 * x[7], -0.9 * x[7]):
        y = x.clone()
        y[7] = beside
        with pytest.raises(ValueError, match=re.escape("row 7 lies")):
            nll(flow, y)
        with pytest.raises(ValueError, match=re.escape("row 7 lies")):
            figures(flow, fl.data.Dataset(y))
    # Shapes are refused in the flow's own words, and rows that are not finite are counted.
    with pytest.raises(ValueError, match="expected"):
        nll(flow, x[:, :2])
    x[3] = torch.nan
    assert nll(flow, x).bad_rows == 1


def test_a_large_flat_factor_excuses_no_other():
    torch.manual_seed(0)
    space = Product(SpecialOrthogonal(3), Euclidean(3))
    flow = free_form(manifold=space, width=8, blocks=1)
    turn = SpecialOrthogonal(3).random_uniform(20)
    assert nll(flow, space.join(turn, torch.full((20, 3), 1e3))).n == 20
    with pytest.raises(ValueError, match=r"row 0 lies 0\.\d+ away from SpecialOrthogonal\(3\)"):
        nll(flow, space.join(1.3 * turn, torch.full((20, 3), 1e3)))


class Facts:
    """What the rows about the gap and the normalisation look at."""

    def __init__(self, flow, gap):
        self.flow, self.c, self.x, self.seed = flow, None, flow.manifold.random_uniform(400), 0
        self.gap = Gap(Estimate(gap, 0.001, 400), Estimate(gap, 0.001, 400))


def test_advice_for_a_normalisation_that_is_off_although_the_networks_agree():
    torch.manual_seed(0)
    sphere = Sphere(2)
    flow = free_form(manifold=sphere, width=8, blocks=1).eval()
    agreeing, quarrelling = Facts(flow, 0.001), Facts(flow, 3.0)
    assert (_gap_verdict(agreeing), _gap_verdict(quarrelling)) == ("good", "bad")
    (row,), (other,) = _mass(agreeing), _mass(quarrelling)
    assert row.value == other.value
    for term in ("x_projection", "z_projection", "uniform_reconstruction", "train longer"):
        assert term in row.advice
    assert "raise beta" not in row.advice
    assert "raise beta" in other.advice


def test_only_flat_data_that_are_not_standardised_are_told_to_be():
    flat, sphere, pose = Euclidean(2), Sphere(2), Product(Sphere(2), Euclidean(2))
    codec = FreeForm(torch.nn.Identity(), torch.nn.Identity())
    flow = free_form(2, width=8, blocks=1)
    assert _standardising(flow) == ""
    plain = fl.Flow(codec, fl.bases.Normal(2), manifold=flat)
    assert "flows.free_form does" in _standardising(plain)
    assert _standardising(fl.Flow(Chain([Standardize(2), codec]), fl.bases.Normal(2), manifold=flat)) == ""
    assert _standardising(fl.Flow(codec, UniformOn(sphere), manifold=sphere)) == ""
    base = fl.bases.Independent([UniformOn(sphere), fl.bases.Normal(2)])
    advice = _standardising(fl.Flow(codec, base, manifold=pose))
    assert "flat factors" in advice
    assert "free_form" not in advice
