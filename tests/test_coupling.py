"""Couplings and the flows made of them: the contracts, densities that integrate to 1, and precision."""

import math

import pytest
import torch

import fluvial as fl
from fluvial.bases import Normal, Uniform
from fluvial.codecs import Affine, Chain, Coupling, Cubic, RationalQuadratic, Smooth
from fluvial.flow import Flow
from fluvial.manifolds import Sphere, Torus
from fluvial.metrics import normalisation
from fluvial.testing import check_bijection, check_flow

PI = math.pi


def bent(module, strength=0.5, seed=1):
    """The same, away from the identity at which it starts: every parameter then has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, Coupling):
                last = layer.network.layers[-1].weight if layer.network is not None else layer.theta
                last.add_(strength * torch.randn(last.shape, generator=generator))
    return module


def vectors(n_features):
    return lambda n: torch.randn(n, n_features, dtype=torch.float64)


def angles(n_features):
    return lambda n: 2 * PI * torch.rand(n, n_features, dtype=torch.float64) - PI


def unit(n):
    return torch.rand(n, 2, dtype=torch.float64)


def conditions(length):
    return lambda n: torch.randn(n, length, dtype=torch.float64)


def layer(features, transformer, **options):
    return lambda: bent(Coupling(features, transformer(), hidden=[8], **options))


RQS_CIRCLE = lambda: RationalQuadratic(4, low=-PI, high=PI, boundary="circular")  # noqa: E731
CUBIC_CIRCLE = lambda: Cubic(4, low=-PI, high=PI, boundary="circular")  # noqa: E731
COUPLINGS = {
    "rqs": (layer(3, lambda: RationalQuadratic(4)), vectors(3), {}),
    "cubic": (layer(3, lambda: Cubic(4)), vectors(3), {}),
    "smooth": (layer(3, lambda: Smooth(6)), vectors(3), {}),
    "affine": (layer(3, Affine), vectors(3), {}),
    "rqs with condition": (layer(2, lambda: RationalQuadratic(4), context=2), vectors(2), {"condition": conditions(2)}),
    "cubic with condition": (layer(2, lambda: Cubic(4), context=2), vectors(2), {"condition": conditions(2)}),
    "smooth with condition": (layer(2, lambda: Smooth(6), context=2), vectors(2), {"condition": conditions(2)}),
    "condition in a dict": (
        layer(2, lambda: RationalQuadratic(4), context=2),
        vectors(2),
        {"condition": lambda n: {"a": torch.randn(n, 1, dtype=torch.float64), "b": torch.randn(n, 1, dtype=torch.float64)}},
    ),
    "all coordinates, condition only": (
        layer(2, lambda: RationalQuadratic(4), active=[0, 1], context=1),
        vectors(2),
        {"condition": conditions(1)},
    ),
    "one coordinate, no network": (layer(1, lambda: RationalQuadratic(4)), vectors(1), {}),
    "scattered coordinates": (layer(4, lambda: RationalQuadratic(4), active=[3, 0]), vectors(4), {}),
    "circle": (layer(2, RQS_CIRCLE, periodic=[0, 1]), angles(2), {"base": lambda: Uniform([-PI] * 2, [PI] * 2)}),
    "cubic on the circle": (layer(2, CUBIC_CIRCLE, periodic=[0, 1]), angles(2), {"base": lambda: Uniform([-PI] * 2, [PI] * 2)}),
    "unit square": (
        layer(2, lambda: RationalQuadratic(4, low=0, high=1, boundary="interval")),
        unit,
        {"base": lambda: Uniform([0.0] * 2, [1.0] * 2)},
    ),
    "cubic on the unit square": (
        layer(2, lambda: Cubic(4, low=0, high=1, boundary="interval")),
        unit,
        {"base": lambda: Uniform([0.0] * 2, [1.0] * 2)},
    ),
}
SMALL = {"blocks": 2, "bins": 4, "hidden": [8]}
FLOWS = {
    "coupling": (lambda: fl.flows.coupling(3, **SMALL), None),
    "coupling on a line": (lambda: fl.flows.coupling(1, **SMALL), None),
    "coupling with condition": (lambda: fl.flows.coupling(2, 1, **SMALL), conditions(1)),
    "cubic, rotations": (lambda: fl.flows.coupling(3, transform="cubic", mixing="rotation", **SMALL), None),
    "smooth, lu": (lambda: fl.flows.coupling(3, 2, transform="smooth", mixing="lu", blocks=2, bins=6, hidden=[8]), conditions(2)),
    "affine": (lambda: fl.flows.coupling(3, transform="affine", **SMALL), None),
    "bounded": (lambda: fl.flows.coupling(3, bounds=([0.0, None, -1.0], [1.0, None, None]), **SMALL), None),
    "heavy tails": (lambda: fl.flows.coupling(2, base=fl.bases.StudentT(2), **SMALL), None),
    "circular": (lambda: fl.flows.circular(2, 1, **SMALL), conditions(1)),
    "on_torus": (lambda: fl.flows.on_torus(3, **SMALL), None),
    "on_torus, one circle": (lambda: fl.flows.on_torus(1, **SMALL), None),
    "on_sphere": (lambda: fl.flows.on_sphere(**SMALL), None),
    "on_sphere with condition": (lambda: fl.flows.on_sphere(2, **SMALL), conditions(2)),
}


@pytest.mark.parametrize(("make", "points", "options"), COUPLINGS.values(), ids=COUPLINGS.keys())
def test_coupling(make, points, options):
    check_bijection(make, points, **options)


@pytest.mark.parametrize(("make", "condition"), FLOWS.values(), ids=FLOWS.keys())
def test_flow(make, condition):
    check_flow(lambda: bent(make()), condition=condition)


@pytest.mark.parametrize(
    "make", [make for make, condition in FLOWS.values() if condition is None], ids=[n for n, (_, c) in FLOWS.items() if c is None]
)
def test_starts_as_the_identity(make):
    flow = make().double()
    x = flow.sample(50)
    couplings = [part for part in flow.codec.parts if isinstance(part, Coupling)]
    z = flow.base.sample(50) if not isinstance(flow.manifold, Sphere) else torch.rand(50, 2).double()
    for part in couplings:
        inside = z if z.shape[-1] == part.features and z.ndim == 2 else torch.rand(50, part.features).double()
        moved, ladj = part.encode_ladj(inside)
        torch.testing.assert_close(moved, inside, rtol=1e-6, atol=1e-6)
        assert ladj.abs().max() < 1e-5
    assert torch.isfinite(flow.log_prob(x)).all()


# ------------------------------------------------------------------------------------------------------------------- normalisation


INTEGRALS = {
    "line": lambda: Flow(Chain([Coupling(1, RationalQuadratic(6)), Coupling(1, Cubic(6))]), Normal(1)),
    "plane": lambda: fl.flows.coupling(2, transform="rqs", **SMALL),
    "plane, cubic": lambda: fl.flows.coupling(2, transform="cubic", **SMALL),
    "plane, smooth": lambda: fl.flows.coupling(2, transform="smooth", blocks=2, bins=6, hidden=[8]),
    "circle": lambda: fl.flows.on_torus(1, **SMALL),
    "torus": lambda: fl.flows.on_torus(2, **SMALL),
    "angles": lambda: fl.flows.circular(2, **SMALL),
    "sphere": lambda: fl.flows.on_sphere(**SMALL),
}


@pytest.mark.parametrize("make", INTEGRALS.values(), ids=INTEGRALS.keys())
def test_densities_integrate_to_one(make):
    # Gentle, so that a grid sees all there is to see.
    flow = bent(make(), 0.15).double().eval()
    assert flow.log_prob(flow.sample(500)).std() > 0.05
    assert normalisation(flow, tolerance=1e-4).value == pytest.approx(1, abs=1e-3)


def test_the_density_on_an_interval_integrates_to_one():
    spline = RationalQuadratic(6, low=0, high=1, boundary="interval")
    flow = Flow(bent(Coupling(1, spline), 2.0), Uniform([0.0], [1.0])).double().eval()
    x = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    assert flow.log_prob(x.unsqueeze(1)).exp().mean().item() == pytest.approx(1, abs=1e-6)
    outside = torch.tensor([[-0.1], [1.1]], dtype=torch.float64)
    assert (flow.log_prob(outside) == -torch.inf).all()
    assert torch.isfinite(flow.log_prob(torch.tensor([[0.0], [1.0]], dtype=torch.float64))).all()


def test_no_row_of_a_box_falls_out_of_it_on_the_way():
    torch.manual_seed(0)
    spline = RationalQuadratic(16, low=0, high=1, boundary="interval")
    layers = [bent(Coupling(2, spline, active=[k % 2], hidden=[16])) for k in range(4)]
    flow = Flow(Chain(layers), Uniform([0.0, 0.0], [1.0, 1.0])).eval()
    for _ in range(50):
        assert torch.isfinite(flow.log_prob(1 - 1e-6 * torch.rand(8, 2))).all()


@pytest.mark.parametrize("blocks", [1, 2])
def test_angles_count_modulo_a_turn(blocks):
    flow = bent(fl.flows.circular(2, blocks=blocks, bins=4, hidden=[8])).double().eval()
    x = angles(2)(20)
    for shift in ([2 * PI, 0.0], [0.0, -2 * PI], [4 * PI, 2 * PI]):
        torch.testing.assert_close(flow.log_prob(x + torch.tensor(shift, dtype=torch.float64)), flow.log_prob(x), rtol=0, atol=1e-8)


def test_conditions_of_several_shapes():
    layer = Coupling(2, RationalQuadratic(4), context=5, hidden=[8])
    flow = bent(Flow(layer, Normal(2), condition={"T": 1, "field": (2, 2)}))
    c = {"T": torch.randn(3, 1), "field": torch.randn(3, 2, 2)}
    assert flow.sample(4, c).shape == (4, 3, 2)
    assert torch.isfinite(flow.log_prob(flow.sample((), c), c)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poles_and_seam_of_the_sphere(dtype):
    flow = bent(fl.flows.on_sphere(blocks=3, bins=6, hidden=[16])).to(dtype).eval()
    # The poles and the date line of every block, as well as of the data's own axes.
    corners = torch.cat([torch.eye(3), -torch.eye(3)]).to(dtype)
    seam = torch.tensor([[-1.0, 0.0, 0.0], [-0.6, -0.0, 0.8], [-0.6, 0.0, -0.8], [-1.0, 1e-20, 0.0], [-1.0, -1e-20, 0.0]], dtype=dtype)
    special = [corners, seam]
    for k, part in enumerate(flow.codec.parts):
        if type(part).__name__ == "Cylinder":
            before = Chain(flow.codec.parts[:k])
            special += [Sphere(2).project(before.decode(torch.cat([corners, seam])))]
    x = torch.cat(special).requires_grad_()
    log_p = flow.log_prob(x)
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(torch.autograd.grad(log_p.sum(), x)[0]).all()
    # Across the date line the density is continuous.
    left, right = (Sphere(2).project(torch.tensor([[-0.8, sign * 1e-6, 0.6]], dtype=torch.float64)) for sign in (-1, 1))
    twin = bent(fl.flows.on_sphere(blocks=3, bins=6, hidden=[16])).double().eval()
    assert (twin.log_prob(left) - twin.log_prob(right)).abs() < 1e-4


def test_densities_of_angles_are_continuous_across_the_seam():
    flow = bent(fl.flows.circular(2, blocks=4, bins=6, hidden=[16])).double().eval()
    psi = torch.linspace(-3, 3, 20, dtype=torch.float64)
    below, above = (torch.stack([torch.full_like(psi, angle), psi], -1) for angle in (PI - 1e-9, -PI + 1e-9))
    torch.testing.assert_close(flow.log_prob(below), flow.log_prob(above), rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.log_prob(below + 2 * PI), flow.log_prob(below), rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("strength", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("transform", ["rqs", "cubic", "smooth", "affine"])
def test_whole_flows_stay_finite_in_single_precision(transform, strength):
    flow = bent(fl.flows.coupling(4, transform=transform, blocks=4, hidden=[16]), strength)
    x = 3 * torch.randn(500, 4)
    log_p = flow.log_prob(x)
    assert torch.isfinite(log_p).all()
    log_p.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters() if p.grad is not None)
    drawn, log_q = flow.sample_and_log_prob(500)
    assert torch.isfinite(drawn).all()
    assert torch.isfinite(log_q).all()


def test_far_away_points_have_a_finite_density_and_nan_rows_are_theirs_alone():
    flow = bent(fl.flows.coupling(2, blocks=4, hidden=[16])).eval()
    far = torch.tensor([[1e6, 0.0], [-1e6, 1e6], [0.0, 0.0]], requires_grad=True)
    log_p = flow.log_prob(far)
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(torch.autograd.grad(log_p.sum(), far)[0]).all()
    broken = flow.log_prob(torch.tensor([[math.nan, 0.0], [0.0, 0.0]]))
    assert torch.isnan(broken[0])
    assert torch.isfinite(broken[1])


def test_networks_in_sixteen_bits_leave_the_splines_in_thirty_two():
    flow = bent(fl.flows.coupling(4, blocks=4, hidden=[32]), 0.1).train()
    x = torch.randn(200, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, ladj = flow.codec.encode_ladj(x)
        back, inverse = flow.codec.decode_ladj(z)
        (-flow.log_prob(x).mean()).backward()
    assert z.dtype == ladj.dtype == torch.float32
    # The networks round, but they see the same passive coordinates both ways, up to what rounding of their input makes of 16 bits.
    assert (back - x).abs().median() < 1e-3
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters() if p.grad is not None)
    exact = flow.log_prob(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (flow.log_prob(x) - exact).abs().mean() < 0.2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_a_step_never_waits_for_the_card():
    flow = bent(fl.flows.coupling(4, 1, blocks=4, hidden=[32])).cuda().train()
    x, c = torch.randn(100, 4, device="cuda"), torch.randn(100, 1, device="cuda")
    flow.log_prob(x, c).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (-flow.log_prob(x, c).mean()).backward()
        flow.sample(10, c)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --------------------------------------------------------------------------------------------------------------------- behaviour


def test_bounds_are_kept_by_every_sample():
    flow = bent(fl.flows.coupling(2, bounds=([0.0, None], [1.0, 5.0]), **SMALL), 3.0).eval()
    x = flow.sample(5000)
    assert (x[:, 0] >= 0).all()
    assert (x[:, 0] <= 1).all()
    assert (x[:, 1] <= 5).all()


def test_every_coordinate_is_transformed_and_looked_at():
    for features in (2, 3, 5, 8):
        flow = fl.flows.coupling(features, blocks=4, hidden=[4])
        active = [set(part.active) for part in flow.codec.parts if isinstance(part, Coupling)]
        assert active[0] | active[1] == set(range(features))
        assert not active[0] & active[1]
        assert active[2] | active[3] == set(range(features))


def test_training_learns_a_conditional_scale():
    torch.manual_seed(0)
    c = torch.rand(4000, 1) * 2 - 1
    x = torch.randn(4000, 2) * torch.exp(c)
    flow = fl.flows.coupling(2, 1, blocks=2, bins=6, hidden=[16])
    fl.fit(flow, (x, c), max_steps=300, batch_size=256, learning_rate=5e-3, progress=False)
    test = torch.tensor([[-0.8], [0.8]])
    spread = flow.sample(4000, test).std(0)
    torch.testing.assert_close(spread, torch.exp(test).expand(2, 2), rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Coupling(2, torch.nn.Linear(1, 1)), TypeError, "transformer must be a Transformer"),
        (lambda: Coupling(2, Affine(), active=[]), ValueError, "at least one active"),
        (lambda: Coupling(2, Affine(), active=[0, 0]), ValueError, "different indices"),
        (lambda: Coupling(2, Affine(), active=[2]), ValueError, "from 0 to 1"),
        (lambda: fl.flows.coupling(0), ValueError, "must be positive"),
        (lambda: fl.flows.coupling(2, transform="spline"), ValueError, "transform must be one of 'rqs'"),
        (lambda: fl.flows.coupling(2, mixing="shuffle"), ValueError, "mixing must be"),
        (lambda: fl.flows.coupling(2, bounds=(0, 1)), ValueError, "each with 2 entries"),
        (lambda: fl.flows.coupling(2, hidden=32), TypeError, "hidden must be the widths"),
        (lambda: fl.flows.coupling(2, bounds=([0.0], [1.0])), ValueError, "each with 2 entries"),
        (lambda: Coupling(2, Affine()).encode(torch.zeros(5, 3)), ValueError, r"rows of shape \(batch, 2\)"),
        (lambda: fl.flows.on_sphere(blocks=0), ValueError, "must be positive"),
        (lambda: fl.flows.on_torus(0), ValueError, "positive"),
        (lambda: fl.flows.coupling(2, 1).log_prob(torch.zeros(3, 2)), ValueError, "conditional"),
        (lambda: Coupling(2, Affine(), context=1).encode(torch.zeros(3, 2)), ValueError, "condition of shape"),
        (lambda: fl.flows.coupling(2).log_prob(torch.zeros(3, 3)), ValueError, r"shape \(\*batch, 2\)"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_torus_points_come_from_angles():
    flow = bent(fl.flows.on_torus(2, **SMALL)).double().eval()
    angles = 2 * PI * torch.rand(20, 2, dtype=torch.float64) - PI
    x = Torus.from_angles(angles)
    torch.testing.assert_close(flow.log_prob(x), flow.log_prob(Torus.from_angles(angles + 2 * PI)))
