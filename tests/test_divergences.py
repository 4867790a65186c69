"""Objectives for energies and samples: values and gradients in closed form, contracts, schedules, conditions, refusals."""

import math

import pytest
import torch
from torch import nn

import fluvial as fl
from fluvial.bases import Normal, StudentT, VonMisesFisherMixture
from fluvial.codecs import Bijection
from fluvial.energies import DensityEnergy, DoubleWell, FunctionEnergy, GaussianMixture, MultiWell, Tempered
from fluvial.flow import Flow
from fluvial.flows import coupling, free_form, on_sphere
from fluvial.manifolds import Euclidean, Sphere
from fluvial.objectives import (
    AlphaDivergence,
    Batch,
    LogVariance,
    MaximumLikelihood,
    MaximumMeanDiscrepancy,
    Progress,
    ReverseKL,
    WeightedSum,
)
from fluvial.objectives.energy_target import rows_of, temperature
from fluvial.testing import check_objective


@pytest.fixture(autouse=True)
def _double(double):
    pass


class ShiftScale(Bijection):
    """x = m + e^s z, whose divergences from a Gaussian are known."""

    def __init__(self, loc, scale):
        super().__init__()
        self.domain = self.codomain = Euclidean(len(loc))
        self.loc, self.scale = tuple(loc), tuple(scale)
        self.m = nn.Parameter(torch.tensor(self.loc))
        self.s = nn.Parameter(torch.tensor(self.scale).log())

    def encode(self, x, c=None):
        return (x - self.m) * torch.exp(-self.s)

    def decode(self, z, c=None):
        return self.m + z * torch.exp(self.s)

    def encode_ladj(self, x, c=None):
        return self.encode(x), -self.s.sum().expand(len(x))

    def decode_ladj(self, z, c=None):
        return self.decode(z), self.s.sum().expand(len(z))


TARGET, SIGMA = torch.tensor([0.5, -1.0]), torch.tensor([0.8, 1.5])
ENERGY = {"means": [[0.5, -1.0]], "scales": [[0.8, 1.5]], "offset": 3.0}


def gaussian(loc=(0.9, -0.6), scale=(0.7, 1.2)):
    return Flow(ShiftScale(loc, scale), Normal(2))


def energy():
    return GaussianMixture(**ENERGY)


def empty(n, c=None):
    return Batch(torch.empty(n, 0), c)


def at(fraction=1.0, seed=0):
    return Progress(fraction=fraction, generator=torch.Generator().manual_seed(seed))


def averaged(objective, flow, *, batches=200, rows=1000):
    """Mean and standard error of loss and gradients, in one vector."""
    source, found = torch.Generator().manual_seed(0), []
    for _ in range(batches):
        loss = objective(flow, empty(rows), Progress(fraction=1.0, generator=source))["loss"]
        gradients = torch.autograd.grad(loss, [flow.codec.m, flow.codec.s])
        found.append(torch.cat([loss.detach().view(1), *gradients]))
    table = torch.stack(found)
    return table.mean(0), table.std(0) / math.sqrt(batches)


def reverse_kl(flow):
    m, s = flow.codec.m.detach(), flow.codec.s.detach().exp()
    value = (torch.log(SIGMA / s) + (s**2 + (m - TARGET) ** 2) / (2 * SIGMA**2) - 0.5).sum()
    return torch.cat([value.view(1), (m - TARGET) / SIGMA**2, -1 + s**2 / SIGMA**2])


def renyi(flow, alpha):
    """log ∫ p^α q^{1−α} / (α(α − 1)) of two Gaussians, and its gradient."""
    m, s = flow.codec.m.detach().requires_grad_(), flow.codec.s.detach().requires_grad_()
    variance = s.exp() ** 2
    if alpha == 1:
        value = (torch.log(s.exp() / SIGMA) + (SIGMA**2 + (m - TARGET) ** 2) / (2 * variance) - 0.5).sum()
    else:
        mixed = (1 - alpha) * SIGMA**2 + alpha * variance
        log = alpha * (1 - alpha) / 2 * (m - TARGET) ** 2 / mixed + 0.5 * torch.log(mixed) - (1 - alpha) * torch.log(SIGMA) - alpha * s
        value = -log.sum() / (alpha * (alpha - 1))
    return torch.cat([value.detach().view(1), *torch.autograd.grad(value, [m, s])])


def agrees(found, error, expected, *, bias=0.0):
    assert ((found - expected).abs() <= 5 * error + bias).all(), f"{found} ± {error}, expected {expected}"


# ------------------------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("path_gradient", [True, False])
def test_reverse_kl_of_gaussians(path_gradient):
    flow = gaussian()
    expected = reverse_kl(flow)
    expected[0] -= 3.0  # log Z
    agrees(*averaged(ReverseKL(energy(), path_gradient=path_gradient), flow), expected)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("proposal", [None, StudentT(2, df=3.0)], ids=["own", "mixed"])
def test_alpha_divergence_of_gaussians(alpha, proposal):
    flow = gaussian(scale=(0.8, 1.3))
    objective = AlphaDivergence(energy(), alpha, proposal=proposal)
    # Weights that are divided by their sum have a bias of the order of one over the number of rows.
    agrees(*averaged(objective, flow, batches=100, rows=8000), renyi(flow, alpha), bias=2e-3)


def test_the_known_value_of_all_orders():
    # Shifted by δ at unit variance the divergence is δ²/2 whatever α.
    flow = Flow(ShiftScale((0.3, 0.0), (1.0, 1.0)), Normal(2))
    for alpha in (0.5, 1.0, 1.5, 2.0):
        loss = AlphaDivergence(GaussianMixture([[0.0, 0.0]], 1.0, offset=-2.0), alpha)(flow, empty(400_000), at())["loss"]
        assert loss.item() == pytest.approx(0.045, abs=2e-3)


def test_log_variance_of_gaussians():
    flow = gaussian()
    m, s = flow.codec.m.detach(), flow.codec.s.detach().exp()
    ratio, shift = s / SIGMA, (m - TARGET) / SIGMA
    value = ((ratio**2 - 1) ** 2 / 4 + ratio**2 * shift**2 / 2).sum()
    # With the points held fixed, the gradient is that of the reverse divergence.
    agrees(*averaged(LogVariance(energy()), flow), torch.cat([value.view(1), reverse_kl(flow)[1:]]))


EXACT = {
    "path gradient": (lambda: ReverseKL(energy()), 0.0),
    "alpha 2": (lambda: AlphaDivergence(energy(), 2.0), 0.0),
    "alpha 1 with a proposal": (lambda: AlphaDivergence(energy(), 1.0, proposal=StudentT(2, df=2.0)), 0.0),
    "log variance": (lambda: LogVariance(energy(), proposal=StudentT(2, df=2.0)), 0.0),
}


@pytest.mark.parametrize(("make", "value"), EXACT.values(), ids=EXACT.keys())
def test_at_the_target_every_gradient_is_zero(make, value):
    flow = gaussian((0.5, -1.0), (0.8, 1.5))
    loss = make()(flow, empty(16), at())["loss"]
    for gradient in torch.autograd.grad(loss, [flow.codec.m, flow.codec.s]):
        assert gradient.abs().max() < 1e-12
    # Without the path gradient it is zero in the mean only.
    noisy = ReverseKL(energy(), path_gradient=False)(flow, empty(16), at())["loss"]
    assert max(g.abs().max() for g in torch.autograd.grad(noisy, [flow.codec.m, flow.codec.s])) > 1e-2


@pytest.mark.parametrize("make", [ReverseKL, AlphaDivergence, LogVariance])
def test_an_exact_flow_is_seen_to_be_one(make):
    flow = gaussian((0.5, -1.0), (0.8, 1.5)).eval()
    with torch.no_grad():
        found = make(energy()).validate(flow, empty(8), at())
    assert found["ess"].item() == pytest.approx(1.0, abs=1e-12)
    assert found["log_z"].item() == pytest.approx(3.0, abs=1e-12)
    assert found["reverse_kl"].item() == pytest.approx(0.0, abs=1e-12)
    assert found["monitor"].item() == pytest.approx(-3.0 if make is ReverseKL else 0.0, abs=1e-12)


# --------------------------------------------------------------------------------------------------------------------- contracts


def moved(flow):
    """Away from the identity, at which networks start."""
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return flow.double()


def tiny(features=2, **arguments):
    return moved(coupling(features, blocks=2, bins=4, hidden=[8], **arguments))


def hot():
    return Tempered(DoubleWell())


OBJECTIVES = {
    "reverse": (lambda: ReverseKL(DoubleWell()), tiny, lambda: empty(16)),
    "reverse, whole gradient": (lambda: ReverseKL(MultiWell(2), path_gradient=False, anneal=(5.0, 0.5)), tiny, lambda: empty(16)),
    "reverse, conditions from a list": (lambda: ReverseKL(hot(), condition=[[0.5], [1.0]]), lambda: tiny(context=1), lambda: empty(16)),
    "reverse, conditions from data": (
        lambda: ReverseKL(hot(), condition=[[0.5]]),
        lambda: tiny(context=1),
        lambda: empty(16, torch.rand(16, 1) + 0.5),
    ),
    "reverse on the sphere": (
        lambda: ReverseKL(DensityEnergy(VonMisesFisherMixture(Sphere(2), components=2))),
        lambda: moved(on_sphere(blocks=2, bins=4, hidden=[8])),
        lambda: empty(16),
    ),
    "alpha": (lambda: AlphaDivergence(DoubleWell(), anneal=(3.0, 1.0)), tiny, lambda: empty(16)),
    "alpha, conditional with a proposal": (
        lambda: AlphaDivergence(hot(), 1.0, proposal=StudentT(2, df=2.0), condition=StudentT(1, df=50.0), per_condition=8),
        lambda: tiny(context=1),
        lambda: empty(32),
    ),
    "variance": (lambda: LogVariance(DoubleWell(), proposal=StudentT(2, df=2.0), share=0.5), tiny, lambda: empty(16)),
    "variance, conditional": (lambda: LogVariance(hot(), condition=((0.5,), (1.0,)), per_condition=8), lambda: tiny(context=1), lambda: empty(32)),
    "discrepancy": (lambda: MaximumMeanDiscrepancy((0.5, 1.0)), tiny, lambda: Batch(torch.randn(16, 2), weight=torch.rand(16))),
    "discrepancy, conditional": (
        lambda: MaximumMeanDiscrepancy(kernel="multiquadric"),
        lambda: tiny(context=1),
        lambda: Batch(torch.randn(16, 2), torch.randn(16, 1)),
    ),
}


@pytest.mark.parametrize(("make", "flow", "batch"), OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_objective(make, flow, batch):
    check_objective(make, flow, batch())


# ---------------------------------------------------------------------------------------------------- schedules, conditions, bad rows


def test_the_temperature_falls_geometrically():
    assert temperature(None, 0.0) == 1.0
    assert [temperature((16.0, 0.5), t) for t in (0.0, 0.25, 0.5, 1.0)] == [16.0, 4.0, 1.0, 1.0]
    flow = gaussian()
    objective = ReverseKL(energy(), anneal=(10.0, 0.5))
    warm, cold = (objective(flow, empty(64), at(fraction)) for fraction in (0.0, 0.5))
    assert [warm["temperature"].item(), cold["temperature"].item()] == [10.0, 1.0]
    x = flow.sample(64, generator=torch.Generator().manual_seed(0)).detach()
    torch.testing.assert_close(warm["loss"], (flow.log_prob(x) + energy()(x) / 10).mean())


def test_rows_come_in_groups_of_one_condition():
    flow, batch = tiny(context=1), empty(30, torch.rand(30, 1))
    rows = rows_of(flow, batch, None, 10, None)
    assert (rows.n, rows.c.shape) == (10, (3, 1))
    torch.testing.assert_close(rows.c, batch.c[:3])
    rows = rows_of(flow, empty(30), ((0.5,), (1.0,)), 1, None)
    assert (rows.n, rows.c.shape, sorted(set(rows.c.flatten().tolist()))) == (1, (30, 1), [0.5, 1.0])
    assert rows_of(tiny(), empty(30), None, 10, None)[:2] == (30, None)


def test_points_without_energy_are_left_out_and_counted():
    half = FunctionEnergy(lambda x: torch.where(x[..., 0] > 0, -x[..., 0].clamp_min(0).log() + x.square().sum(-1) / 2, math.inf), 2)
    flow = gaussian((0.0, 0.0), (1.0, 1.0))
    for make in (ReverseKL, LogVariance):
        found = make(half)(flow, empty(1000), at())
        assert 0.4 < found["dropped"].item() < 0.6
        found["loss"].backward()
        assert all(torch.isfinite(p.grad).all() for p in flow.parameters())
    loss = AlphaDivergence(half)(flow, empty(1000), at())["loss"]
    assert torch.isfinite(loss)
    nowhere = FunctionEnergy(lambda x: x.sum(-1) + math.inf, 2)
    assert torch.isnan(ReverseKL(nowhere)(flow, empty(10), at())["loss"])


def test_the_energy_is_not_trained():
    target = DensityEnergy(gaussian())
    objective, flow = ReverseKL(target), tiny()
    objective(flow, empty(16), at())["loss"].backward()
    assert all(p.grad is None for p in target.parameters())
    assert not {id(p) for p in target.parameters()} & {id(p) for group in objective.param_groups(flow) for p in group["params"]}


# ---------------------------------------------------------------------------------------------------------------------- training


def test_training_without_data(tmp_path):
    torch.set_default_dtype(torch.float32)

    def trained(steps, **arguments):
        torch.manual_seed(0)
        flow = coupling(2, blocks=2, bins=6, hidden=[16], standardize=False)
        history = fl.fit(
            flow,
            None,
            ReverseKL(DoubleWell(), validation_samples=512),
            max_steps=steps,
            batch_size=128,
            validate_every=20,
            progress=False,
            **arguments,
        )
        return flow, history

    flow, history = trained(60)
    assert {"monitor", "ess", "log_z", "reverse_kl", "dropped"} <= set(history.rows[0])
    assert history.rows[-1]["monitor"] < history.rows[0]["monitor"]
    trained(40, directory=tmp_path, schedule="constant")
    with pytest.warns(UserWarning, match="another budget"):
        resumed, _ = trained(60, directory=tmp_path, resume=True, schedule="constant")
    straight, _ = trained(60, schedule="constant", warmup=4)
    assert all(torch.isfinite(p).all() for p in resumed.parameters())
    assert straight.sample(3).shape == (3, 2)


def test_training_needs_something_to_learn():
    with pytest.raises(ValueError, match="without data say what to learn"):
        fl.fit(tiny(), None)


def test_an_energy_beside_data():
    torch.set_default_dtype(torch.float32)
    both = WeightedSum({"data": MaximumLikelihood(), "energy": ReverseKL(DoubleWell(), validation_samples=256)}, weights={"energy": 0.5})
    rows = DoubleWell().sample(400)
    history = fl.fit(coupling(2, blocks=2, bins=4, hidden=[8]), fl.Dataset(rows), both, max_steps=10, batch_size=64, validate_every=5, progress=False)
    assert {"nll", "ess"} <= set(history.rows[-1])


# ---------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("make", [ReverseKL, AlphaDivergence, LogVariance])
def test_flows_that_an_energy_cannot_train(make):
    with pytest.raises(TypeError, match="free-form, and an energy would train its decoder alone"):
        make(DoubleWell()).prepare(free_form(2, width=8, blocks=1), None)
    with pytest.raises(ValueError, match=r"energy lives on Euclidean\(3\), the flow on Euclidean\(2\)"):
        make(MultiWell(3)).prepare(tiny(), None)
    with pytest.raises(ValueError, match="say which with condition="):
        make(DoubleWell()).prepare(tiny(context=1), None)
    with pytest.raises(TypeError, match="wrap a function as energies.FunctionEnergy"):
        make(lambda x: x)
    make(hot(), condition=[[1.0]]).prepare(tiny(context=1), None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AlphaDivergence(DoubleWell(), 0.0), "alpha must be positive, got 0.0; its limit at 0 is the reverse divergence"),
        (lambda: AlphaDivergence(DoubleWell(), per_condition=1), "at least 2 points"),
        (lambda: LogVariance(DoubleWell(), per_condition=1), "at least 2 points"),
        (lambda: LogVariance(DoubleWell(), share=1.0), "between 0 and 1"),
        (lambda: ReverseKL(DoubleWell(), anneal=(0.0, 0.5)), "anneal must be"),
        (lambda: ReverseKL(DoubleWell(), anneal=(2.0, 1.5)), "anneal must be"),
        (lambda: ReverseKL(DoubleWell(), anneal=3.0), "anneal must be .* got 3.0"),
        (lambda: ReverseKL(DoubleWell(), anneal=(math.inf, 0.5)), "anneal must be"),
        (lambda: LogVariance(DoubleWell(), anneal=(math.nan, 0.5)), "anneal must be"),
        (lambda: ReverseKL(DoubleWell(), condition=2.0), "rows of shape"),
        (lambda: ReverseKL(DoubleWell(), condition=[[1.0], [math.nan]]), "finite numbers, got .* in row 1"),
        (lambda: MaximumMeanDiscrepancy(0.1), r"bandwidths are a list .* got 0.1"),
        (lambda: MaximumMeanDiscrepancy((math.nan,)), "widths must be positive"),
        (lambda: MaximumMeanDiscrepancy(()), "bandwidths are a list"),
        (lambda: ReverseKL(DoubleWell(), condition=[1.0, 2.0]), r"rows of shape \(conditions, numbers of each\)"),
        (lambda: ReverseKL(DoubleWell(), validation_samples=1), "at least 2"),
        (lambda: MaximumMeanDiscrepancy((0.0,)), "widths must be positive"),
        (lambda: MaximumMeanDiscrepancy(kernel="cubic"), "'gaussian' or 'multiquadric'"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_proposal_must_be_a_distribution_on_the_same_manifold():
    with pytest.raises(TypeError, match="proposal must be a base or a flow"):
        AlphaDivergence(DoubleWell(), proposal=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"proposal lives on Euclidean\(3\)"):
        AlphaDivergence(DoubleWell(), proposal=StudentT(3)).prepare(tiny(), None)


def test_an_energy_without_gradient_is_told_from_one_that_has_it():
    table = FunctionEnergy(lambda x: x.detach().square().sum(-1), 2)
    with pytest.raises(ValueError, match="no gradient in x; .* AlphaDivergence or LogVariance"):
        ReverseKL(table)(tiny(), empty(8), at())
    LogVariance(table)(tiny(), empty(8), at())["loss"].backward()
