"""Every manifold keeps the contract; a new one is a line in the table."""

import math

import pytest
import torch

from fluvial.manifolds import (
    Euclidean,
    Hyperboloid,
    Manifold,
    PoincareBall,
    Product,
    SpecialOrthogonal,
    Sphere,
    Torus,
    from_projection,
    random_tangent,
    tangent_dual,
)
from fluvial.testing import check_manifold, integrate
from fluvial.testing.quadrature import grid


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def ellipsoid(x):
    return x / (x / torch.tensor([1.0, 1.5, 2.0], dtype=x.dtype)).norm(dim=-1, keepdim=True)


MANIFOLDS = {
    "line": lambda: Euclidean(1),
    "plane": lambda: Euclidean(2),
    "image": lambda: Euclidean((1, 2, 3)),
    "circle": lambda: Sphere(1),
    "sphere": lambda: Sphere(2),
    "three-sphere": lambda: Sphere(3),
    "rotations of the plane": lambda: SpecialOrthogonal(2),
    "rotations": lambda: SpecialOrthogonal(3),
    "rotations in four dimensions": lambda: SpecialOrthogonal(4),
    "hyperbolic line": lambda: PoincareBall(1),
    "disc": lambda: PoincareBall(2),
    "ball": lambda: PoincareBall(3),
    "hyperboloid": lambda: Hyperboloid(2),
    "hyperboloid of three dimensions": lambda: Hyperboloid(3),
    "poses": lambda: Product(SpecialOrthogonal(3), Euclidean(3)),
    "compact product": lambda: Product(Sphere(2), Torus(1)),
    "hyperbolic product": lambda: Product(PoincareBall(2), Sphere(1)),
    "ellipsoid": lambda: from_projection(ellipsoid, 2),
    "sphere known by its projection": lambda: from_projection(unit, 2),
}


@pytest.mark.parametrize("make", MANIFOLDS.values(), ids=MANIFOLDS.keys())
def test_contract(make):
    check_manifold(make())


class Radial(Sphere):
    """The sphere, its tangent basis spoilt."""

    def tangent_basis(self, x):
        basis = super().tangent_basis(x)
        return torch.cat([x.unsqueeze(-1), basis[..., 1:]], -1)


class Unscaled(Sphere):
    """The sphere with tangents of length √(n + 1), as in the published code."""

    def random_tangent(self, x, *, generator=None):
        return super().random_tangent(x, generator=generator) * math.sqrt((self.dim + 1) / self.dim)


class Chordal(Sphere):
    """The sphere with straight-line distances."""

    def distance(self, x, y):
        return torch.linalg.vector_norm(x - y, dim=-1)


@pytest.mark.parametrize(("broken", "message"), [(Radial, "tangent"), (Unscaled, r"\|v\|² = n"), (Chordal, "log")])
def test_contract_finds_what_is_broken(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_manifold(broken(2))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_volume_of_the_sphere(n):
    closed = {1: 2 * math.pi, 2: 4 * math.pi, 3: 2 * math.pi**2}[n]
    assert Sphere(n).total_volume == pytest.approx(closed, rel=1e-12)
    assert integrate(Sphere(n), lambda p: torch.ones(len(p)))[0] == pytest.approx(closed, rel=1e-10)


def test_volume_of_a_sphere_of_many_dimensions_is_finite():
    assert 0 < Sphere(400).total_volume < 1e-200


@pytest.mark.parametrize("make", [Sphere, Euclidean])
@pytest.mark.parametrize("size", [0, -1])
def test_size_must_be_positive(make, size):
    with pytest.raises(ValueError, match=str(size)):
        make(size)


def test_manifolds_differ_by_kind_and_size():
    assert Sphere(2) != Sphere(3)
    assert Sphere(2) != Euclidean(3)
    assert Euclidean((2, 3)) != Euclidean((3, 2))
    assert len({Sphere(2), Sphere(2), Euclidean(2)}) == 2


def test_basis_is_exact_near_both_poles_and_the_equator(double):
    x = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [1e-9, 0.0, -1.0], [0.6, 0.8, -1e-300]])
    basis = Sphere(2).tangent_basis(x)
    torch.testing.assert_close(basis.transpose(1, 2) @ basis, torch.eye(2).expand(5, 2, 2), rtol=0, atol=1e-14)
    assert (x.unsqueeze(1) @ basis).abs().max() < 1e-8


def test_distance_keeps_its_digits_at_both_ends(double):
    x = torch.tensor([[1.0, 0.0]])
    for angle in (1e-9, 1e-3, 1.0, math.pi - 1e-3, math.pi - 1e-9):
        y = torch.tensor([[math.cos(angle), math.sin(angle)]])
        assert Sphere(1).distance(x, y).item() == pytest.approx(angle, rel=1e-6)


def test_log_at_the_antipode_has_length_pi_and_leads_there(double):
    x = Sphere(2).random_uniform(5)
    v = Sphere(2).log(x, -x)
    torch.testing.assert_close(v.norm(dim=-1), torch.full((5,), math.pi))
    torch.testing.assert_close((v * x).sum(-1), torch.zeros(5), atol=1e-12, rtol=0)
    torch.testing.assert_close(Sphere(2).exp(x, v), -x)


def test_orthogonal_probes_give_the_exact_trace_on_images(double):
    manifold = Euclidean((1, 2, 2))
    a = torch.randn(4, 4)
    v = random_tangent(manifold, torch.zeros(3, 1, 2, 2), 4).flatten(2)
    trace = torch.einsum("kbi,ij,kbj->b", v, a, v) / 4
    torch.testing.assert_close(trace, a.trace().expand(3))


def test_projection_without_a_closed_derivative_is_differentiated(double):
    class Bare(Manifold):
        dim, event_shape = 2, (3,)
        project = Sphere(2).project

    for abstract in Manifold.__abstractmethods__ - {"project"}:
        setattr(Bare, abstract, None)
    Bare.__abstractmethods__ = frozenset()
    x, t = torch.randn(4, 3), torch.randn(2, 4, 3)
    for ours, known in zip(tangent_dual(Bare(), x, t), tangent_dual(Sphere(2), x, t)):
        torch.testing.assert_close(ours, known)


def test_grids_exist_where_stated():
    assert grid(Sphere(4)) is None
    assert grid(Euclidean(3)) is None
    with pytest.raises(ValueError, match="no quadrature"):
        integrate(Euclidean(3), lambda p: p[:, 0])
