"""Objectives for energies and samples: values and gradients in closed form, contracts, schedules, conditions, refusals."""

import math

import pytest
import torch
from torch import nn

import fluvial as fl
from fluvial.bases import Normal, StudentT, TruncatedNormal, Uniform, VonMisesFisherMixture
from fluvial.codecs import ActNorm, Angles, Bijection, Chain, Coupling, Cylinder, Permutation, RationalQuadratic, Standardize
from fluvial.energies import DensityEnergy, DoubleWell, FunctionEnergy, GaussianMixture, MultiWell, Tempered
from fluvial.flow import Flow
from fluvial.flows import circular, coupling, free_form, on_sphere, on_torus
from fluvial.manifolds import Euclidean, Sphere, Torus
from fluvial.metrics import squared_mmd
from fluvial.objectives import (
    AlphaDivergence,
    Batch,
    EachMember,
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


# --------------------------------------------------------------------------------------------------------------------------- MMD


def by_hand(x, y, widths, weight):
    def k(a, b):
        return sum(math.exp(-float((a - b).square().sum()) / (2 * h**2)) for h in widths) / len(widths)

    n, m = range(len(x)), range(len(y))
    data = sum(float(weight[i] * weight[j]) * k(x[i], x[j]) for i in n for j in n if i != j)
    data /= sum(float(weight[i] * weight[j]) for i in n for j in n if i != j)
    drawn = sum(k(y[i], y[j]) for i in m for j in m if i != j) / (len(y) * (len(y) - 1))
    return data + drawn - 2 * sum(float(weight[i]) * k(x[i], y[j]) for i in n for j in m) / (float(weight.sum()) * len(y))


def test_mmd_by_hand():
    x, y, weight = torch.randn(5, 1, 2), torch.randn(7, 1, 2) + 3.0, torch.rand(5)
    assert squared_mmd(x, y, bandwidths=(0.5, 2.0), weight=weight).item() == pytest.approx(by_hand(x, y, (0.5, 2.0), weight), abs=1e-12)
    one = squared_mmd(x, y, bandwidths=[0.7], kernel="multiquadric", weight=weight)
    kernel = lambda a, b: 1 / (1 + torch.cdist(a.flatten(1), b.flatten(1)).square() / (2 * 0.49))  # noqa: E731
    outer = weight.outer(weight).fill_diagonal_(0)
    expected = (outer * kernel(x, x)).sum() / outer.sum() + (kernel(y, y).sum() - 7) / 42 - 2 * (weight @ kernel(x, y)).sum() / (weight.sum() * 7)
    torch.testing.assert_close(one, expected)


def test_mmd_has_no_bias():
    generator = torch.Generator().manual_seed(0)
    h, delta = 0.8, 0.7
    values = {0.0: [], delta: []}
    for _ in range(400):
        for shift, found in values.items():
            x, y = torch.randn(30, 1, generator=generator), torch.randn(20, 1, generator=generator) + shift
            found.append(squared_mmd(x, y, bandwidths=[h]))
    for shift, found in values.items():
        table = torch.stack(found)
        # Gaussians in a Gaussian kernel: E k = h/√(h² + 2) · exp(−δ²/2(h² + 2)).
        expected = 2 * h / math.sqrt(h**2 + 2) * (1 - math.exp(-(shift**2) / (2 * (h**2 + 2))))
        assert abs(table.mean().item() - expected) < 5 * table.std().item() / 20


def test_paired_mmd_compares_joint_distributions():
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(2000, 1, generator=generator)
    noise = [0.1 * torch.randn(2000, 1, generator=generator) for _ in range(2)]
    shuffled = c[torch.randperm(2000, generator=generator)]
    alike = squared_mmd(c + noise[0], c + noise[1], bandwidths=[0.3], paired=2 * c)
    apart = squared_mmd(c + noise[0], shuffled + noise[1], bandwidths=[0.3], paired=2 * c)
    assert abs(alike) < 2e-3
    assert apart > 0.05
    assert squared_mmd(c + noise[0], shuffled + noise[1], bandwidths=[0.3]).abs() < 2e-3
    with pytest.raises(ValueError, match="two samples of one event shape"):
        squared_mmd(torch.zeros(3, 2), torch.zeros(3, 1))


def test_mmd_measures_in_units_of_the_data():
    data = fl.data.moons(500)
    objectives = [MaximumMeanDiscrepancy((0.2,)) for _ in range(2)]
    for objective, factor in zip(objectives, (1.0, 100.0)):
        objective.prepare(gaussian(), fl.Dataset(factor * data.x))
    assert objectives[1].unit.item() == pytest.approx(100 * objectives[0].unit.item(), rel=1e-5)
    conditional = MaximumMeanDiscrepancy()
    conditional.prepare(gaussian(), fl.Dataset(data.x, 5 * data.x[:, :1] + 1))
    assert conditional.condition_scale.shape == (1,)


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


# ------------------------------------------------------------------------------------------------- supports, bases, shapes, monitors


def spline(boundary, low=-1.0, high=1.0):
    return RationalQuadratic(4, low=low, high=high, boundary=boundary)


MOVING = {
    "scaled": lambda: Flow(ActNorm(1), Uniform([-1.0], [1.0])),
    "scaled half-line": lambda: Flow(ActNorm(1), TruncatedNormal(0.0, None, event_shape=1)),
    "linear tails": lambda: Flow(Coupling(2, spline("linear"), hidden=[4]), Uniform([-2.0] * 2, [2.0] * 2)),
    "another box": lambda: Flow(Coupling(2, spline("circular"), hidden=[4]), Uniform([-2.0] * 2, [2.0] * 2)),
    "after a fixed shift": lambda: Flow(Chain([Coupling(2, spline("interval"), hidden=[4]), Standardize(2)]), Uniform([-1.0] * 2, [1.0] * 2)),
}
FIXED = {
    "circular": lambda: (circular(2, blocks=2, hidden=[4]), 2),
    "torus": lambda: (on_torus(2, blocks=2, hidden=[4]), Torus(2)),
    "interval": lambda: (
        Flow(Chain([Standardize(2), Coupling(2, spline("interval"), hidden=[4]), Permutation([1, 0])]), Uniform([-1.0] * 2, [1.0] * 2)),
        2,
    ),
    "bounded beside unbounded": lambda: (
        Flow(Chain([Coupling(2, spline("linear"), hidden=[4]), Permutation([1, 0])]), TruncatedNormal([None, -1.0], [None, 1.0])),
        2,
    ),
    "no bounds": lambda: (Flow(ActNorm(1), TruncatedNormal(None, None, event_shape=1)), 1),
    "all of the circle": lambda: (Flow(Angles(1), Uniform([-math.pi], [math.pi])), Torus(1)),
    "nothing trained": lambda: (Flow(Standardize(1), Uniform([-1.0], [1.0])), 1),
}


@pytest.mark.parametrize("make", MOVING.values(), ids=MOVING.keys())
def test_the_path_gradient_is_refused_where_it_is_biased(make):
    flow = make().double()
    bowl = FunctionEnergy(lambda x: x.square().sum(-1) / 2, flow.manifold)
    with pytest.raises(ValueError, match="path gradient is biased; give path_gradient=False"):
        ReverseKL(bowl).prepare(flow, None)
    ReverseKL(bowl, path_gradient=False).prepare(flow, None)


@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED.keys())
def test_the_path_gradient_is_kept_where_the_support_stays(make):
    flow, manifold = make()
    manifold = Euclidean(manifold) if isinstance(manifold, int) else manifold
    axes = tuple(range(-len(manifold.event_shape), 0))
    ReverseKL(FunctionEnergy(lambda x: x.square().sum(axes) / 2, manifold)).prepare(flow.double(), None)


def test_a_sphere_over_a_box_is_whole():
    parts = [ShiftScaleOnNothing(), Cylinder()]
    flow = Flow(Chain(parts), Uniform([-math.pi, -1.0], [math.pi, 1.0])).double()
    ReverseKL(FunctionEnergy(lambda x: x[..., 2], Sphere(2))).prepare(flow, None)


class ShiftScaleOnNothing(Bijection):
    """The identity of the sphere, with a parameter."""

    def __init__(self):
        super().__init__()
        self.domain = self.codomain = Sphere(2)
        self.weight = nn.Parameter(torch.zeros(()))

    def encode(self, x, c=None):
        return x

    def decode(self, z, c=None):
        return z

    def encode_ladj(self, x, c=None):
        return x, x.new_zeros(len(x))

    def decode_ladj(self, z, c=None):
        return z, z.new_zeros(len(z))


def test_the_whole_gradient_of_a_moving_box_is_right():
    # x = e^s u with u on [−1, 1]: L = −log 2 − s + e^{2s}/6, whose slope at s = 0 is −2/3.
    flow = Flow(ActNorm(1), Uniform([-1.0], [1.0])).double()
    objective = ReverseKL(FunctionEnergy(lambda x: x.square().sum(-1) / 2, 1), path_gradient=False)
    objective(flow, empty(50_000), at())["loss"].backward()
    assert abs(flow.codec.log_scale.grad.item()) == pytest.approx(2 / 3, abs=0.01)


def test_bases_out_of_reach_of_their_samples_are_refused():
    def on(base):
        return on_sphere(blocks=1, bins=4, hidden=[4], base=base).double()

    bumps = VonMisesFisherMixture(Sphere(2), components=2)
    target = DensityEnergy(VonMisesFisherMixture(Sphere(2), components=3))
    for options in ({}, {"path_gradient": False}):
        with pytest.raises(ValueError, match="VonMisesFisherMixture carry no gradient .* use AlphaDivergence or LogVariance"):
            ReverseKL(target, **options).prepare(on(bumps), None)
    with pytest.raises(ValueError, match="use MaximumLikelihood"):
        MaximumMeanDiscrepancy().prepare(on(bumps), None)
    for make in (AlphaDivergence, LogVariance):
        make(target).prepare(on(bumps), None)
    ReverseKL(target).prepare(on(VonMisesFisherMixture(Sphere(2), learnable=False)), None)
    ReverseKL(DoubleWell()).prepare(Flow(ShiftScale((0.0, 0.0), (1.0, 1.0)), StudentT(2, learnable=True)), None)


@pytest.mark.parametrize("make", [lambda: StudentT(2, learnable=True), lambda: TruncatedNormal([-1.0] * 2, [2.0] * 2, learnable=True)])
def test_samples_follow_the_parameters_where_a_base_says_so(make):
    base = make().double()
    assert base.has_rsample
    gradients = torch.autograd.grad(base.sample(8).square().sum(), list(base.parameters()))
    assert all((g != 0).all() for g in gradients)


def test_weighted_pairs_have_their_optimum_at_the_conditional():
    # x|c ~ N(c, 0.1²), and rows of large c count more: y from the same conditional is as good as x itself.
    generator = torch.Generator().manual_seed(0)
    c = torch.rand(3000, 1, generator=generator)
    weight = torch.exp(3 * c[:, 0])
    x, y = (c + 0.1 * torch.randn(3000, 1, generator=generator) for _ in range(2))
    assert squared_mmd(x, y, bandwidths=[0.3], weight=weight, paired=c / 0.5).abs() < 2e-4
    # A weight of 3 says what three copies of the row say, up to the few pairs of copies.
    often = torch.tensor([1.0, 3.0]).repeat(300)
    x, y, c = x[:600], y[:600] + 0.3, c[:600]
    repeated = torch.repeat_interleave(torch.arange(600), often.long())
    found = squared_mmd(x, y, bandwidths=[0.3], weight=often, paired=c)
    assert found.item() == pytest.approx(squared_mmd(x[repeated], y[repeated], bandwidths=[0.3], paired=c[repeated]).item(), abs=5e-3)


def test_an_energy_that_is_never_finite():
    flow, nan = gaussian(), FunctionEnergy(lambda x: x.sum(-1) * math.nan, 2)
    found = LogVariance(nan)(flow, empty(16), at())
    assert torch.isnan(found["loss"])
    with torch.no_grad():
        assert not LogVariance(nan).validate(flow.eval(), empty(8), at())["monitor"] <= 0
        found = ReverseKL(nan).validate(flow, empty(8), at())
    assert (found["monitor"].item(), found["dropped"].item(), found["ess"].item()) == (math.inf, 1.0, 0.0)
    for make in (ReverseKL, AlphaDivergence, LogVariance):
        with pytest.raises(ValueError, match="not finite at any of 256 draws of the flow"):
            make(nan).prepare(flow, None)
    far = FunctionEnergy(lambda x: torch.where(x[..., 0] > 50, x.sum(-1), math.inf), 2)
    LogVariance(far, proposal=StudentT(2, df=0.5)).prepare(flow, None)


def test_one_condition_without_points_does_not_spoil_the_others():
    half = FunctionEnergy(lambda x, c: torch.where(c[..., 0] > 0, x.square().sum(-1) / 2, math.nan), 2, condition=1)
    flow = tiny(context=1)
    batch = empty(32, torch.tensor([[1.0], [-1.0]]).repeat(16, 1))
    loss = LogVariance(half, per_condition=8)(flow, batch, at())["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters() if p.grad is not None)


@pytest.mark.parametrize("make", [ReverseKL, LogVariance, AlphaDivergence])
def test_the_monitor_prefers_the_flow_inside_the_support(make):
    half = FunctionEnergy(lambda x: torch.where(x[..., 0] > 0, x.square().sum(-1) / 2, math.inf), 2)
    # Of the one 99.4 % lie outside, and the rest is close to the target; the other covers it whole.
    outside, inside = gaussian((-2.5, 0.0), (1.0, 1.0)).eval(), gaussian((1.0, 0.0), (0.6, 1.0)).eval()
    with torch.no_grad():
        bad, good = (make(half).validate(flow, empty(8), at()) for flow in (outside, inside))
    assert bad["dropped"].item() == pytest.approx(0.994, abs=0.003)
    assert good["dropped"].item() < 0.08
    assert good["monitor"] < bad["monitor"]


@pytest.mark.parametrize("function", [lambda x: x.square().sum(-1, keepdim=True), lambda x: x.square().sum()], ids=["column", "scalar"])
def test_energies_of_another_shape_are_refused(function):
    class Own(DoubleWell):
        def forward(self, x, c=None):
            return function(x)

    flow = tiny()
    for make in (ReverseKL, AlphaDivergence, LogVariance):
        for energy in (Own(), FunctionEnergy(function, 2)):
            with pytest.raises(ValueError, match=r"expected one energy for each point, shape \(16,\)"):
                make(energy)(flow, empty(16), at())
            with pytest.raises(ValueError, match="expected one energy for each point"):
                make(energy).validate(flow, empty(16), at())
    with pytest.raises(ValueError, match="expected one energy for each point"):
        fl.energies.grad_c(FunctionEnergy(lambda x, c: x * c, 2, condition=1), torch.zeros(3, 2), torch.ones(3, 1))


def test_conditions_that_only_the_energy_takes_are_refused():
    with pytest.raises(ValueError, match=r"takes a condition of shape \(1,\), the flow none"):
        ReverseKL(hot(), condition=[[1.0]]).prepare(tiny(), None)


def test_proposals_that_cannot_be_compared_are_refused():
    for make in (AlphaDivergence, LogVariance):
        with pytest.raises(ValueError, match=r"proposal takes a condition of shape \(1,\)"):
            make(DoubleWell(), proposal=tiny(context=1)).prepare(tiny(), None)
        with pytest.raises(TypeError, match="proposal is a free-form flow"):
            make(DoubleWell(), proposal=free_form(2, width=8, blocks=1)).prepare(tiny(), None)


@pytest.mark.parametrize("make", [MaximumLikelihood, MaximumMeanDiscrepancy])
def test_objectives_that_need_data_say_so(make):
    with pytest.raises(ValueError, match=f"{make.__name__}: needs data"):
        fl.fit(tiny(), None, make(), max_steps=2, progress=False)


def test_an_ensemble_is_referred_to_its_members():
    ensemble = fl.Ensemble([tiny(), tiny()])
    with pytest.raises(TypeError, match=r"EachMember\(\[ReverseKL"):
        ReverseKL(DoubleWell()).prepare(ensemble, None)
    EachMember([ReverseKL(DoubleWell()), ReverseKL(DoubleWell())]).prepare(ensemble, None)
