"""The mixture of several flows."""

import math

import pytest
import torch

import fluvial as fl
from fluvial.bases import Normal
from fluvial.codecs import Bounds, Chain, FreeForm, Standardize
from fluvial.energies import DoubleWell
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, Sphere
from fluvial.objectives import Batch, EachMember, FreeFormLikelihood, MaximumLikelihood, Progress, ReverseKL, natural_objective
from fluvial.testing import check_objective


def gaussian(mean, scale, condition=None):
    """A flow that is a normal distribution."""
    codec = Standardize(len(mean))
    codec.loc.copy_(torch.tensor(mean))
    codec.scale.copy_(torch.tensor(scale))
    codec.is_fitted.fill_(1)
    return Flow(codec, Normal(len(mean)), condition=condition)


def two():
    return fl.Ensemble([gaussian([0.0, 0.0], [1.0, 1.0]), gaussian([5.0, 1.0], [0.5, 2.0])]).eval()


class FollowsCondition(fl.Bijection):
    """X = z + c."""

    def __init__(self, features):
        super().__init__()
        self.features = features
        self.domain = self.codomain = Euclidean(features)

    def encode(self, x, c=None):
        return x - c

    def decode(self, z, c=None):
        return z + c

    def encode_ladj(self, x, c=None):
        return self.encode(x, c), x.new_zeros(len(x))

    def decode_ladj(self, z, c=None):
        return self.decode(z, c), z.new_zeros(len(z))


def following(k=2):
    scaled = [Chain([FollowsCondition(2), Standardize(2)]) for _ in range(k)]
    for j, chain in enumerate(scaled):
        chain.parts[1].scale.fill_(0.1 * (j + 1))
        chain.parts[1].is_fitted.fill_(1)
    return fl.Ensemble([Flow(chain, Normal(2), condition=2) for chain in scaled]).eval()


def test_the_density_is_the_mean_of_the_members():
    ensemble = two().double()
    x = torch.randn(4, 3, 2, dtype=torch.float64) * 3
    by_hand = torch.stack([flow.log_prob(x).exp() for flow in ensemble.flows])
    torch.testing.assert_close(ensemble.log_prob(x), by_hand.mean(0).log())
    torch.testing.assert_close(ensemble(x), ensemble.log_prob(x))
    torch.testing.assert_close(ensemble.members(x), by_hand.log())
    torch.testing.assert_close(ensemble.spread(x), by_hand.log().std(0))
    assert ensemble.members(x).shape == (2, 4, 3)


def test_it_integrates_to_one():
    side = torch.linspace(-12, 12, 601)
    grid = torch.cartesian_prod(side, side)
    mass = two().log_prob(grid).exp().sum() * (side[1] - side[0]) ** 2
    torch.testing.assert_close(mass, torch.tensor(1.0), rtol=0, atol=1e-3)


def test_samples_come_from_the_mixture_in_no_order():
    ensemble = two()
    x = ensemble.sample(20_000, generator=torch.Generator().manual_seed(0))
    near = x[:, 0] > 3.2
    assert abs(near.float().mean() - 0.5) < 0.015
    # Neighbours are independent: a sample says nothing about the member of the next one.
    flips = (near[1:] != near[:-1]).float().mean()
    assert abs(flips - 0.5) < 0.015
    torch.testing.assert_close(x.mean(0), torch.tensor([2.5, 0.5]), rtol=0, atol=0.1)


def test_samples_follow_the_generator():
    first, again, other = (two().sample((3, 4), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 4, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert two().sample().shape == (2,)
    assert two().sample(0).shape == (0, 2)
    assert two().sample_and_log_prob(0)[1].shape == (0,)


def test_every_sample_has_its_own_condition():
    ensemble, c = following(3), 100 * torch.randn(5, 2)
    x, log_p = ensemble.sample_and_log_prob((40, 2), c)
    assert x.shape == (40, 2, 5, 2)
    assert log_p.shape == (40, 2, 5)
    assert (x - c).abs().max() < 3
    torch.testing.assert_close(ensemble.log_prob(x, c), log_p, rtol=0, atol=1e-2)
    torch.testing.assert_close(ensemble.spread(x, c), ensemble.members(x, c).std(0))
    assert ensemble.sample((), c).shape == (5, 2)
    with pytest.raises(ValueError, match="its flows are conditional; give c of event shape"):
        ensemble.sample(3)


def test_the_member_that_drew_a_sample_is_taken_at_its_own_latent():
    torch.manual_seed(0)
    ensemble = fl.Ensemble([fl.flows.free_form(2, width=8, blocks=1) for _ in range(2)]).double().eval()
    x, log_p = ensemble.sample_and_log_prob(50, generator=torch.Generator().manual_seed(0))
    again = ensemble.sample(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x, again)
    # Untrained networks are no inverses: reconstructions are elsewhere, and so are densities there.
    assert (ensemble.log_prob(x) - log_p).abs().max() > 1e-6
    assert torch.isfinite(log_p).all()


def test_where_no_member_has_density_there_is_none_and_no_nan():
    inside = Flow(Bounds((0.0,), (1.0,)), Normal(1))
    further = Flow(Bounds((0.0,), (2.0,)), Normal(1))
    ensemble = fl.Ensemble([inside, further]).eval()
    x = torch.tensor([[0.5], [1.5], [2.5]], requires_grad=True)
    log_p = ensemble.log_prob(x)
    assert torch.isfinite(log_p).tolist() == [True, True, False]
    torch.testing.assert_close(log_p[1], further.log_prob(x[1]) - math.log(2))
    log_p[:2].sum().backward()
    assert torch.isfinite(x.grad).all()
    x.grad = None
    torch.where(torch.isfinite(log_p := ensemble.log_prob(x)), log_p, 0.0).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert ensemble.spread(x).detach()[1:].tolist() == [torch.inf, 0.0]
    assert fl.Ensemble([inside]).spread(x).tolist() == [0, 0, 0]


def test_it_is_described_like_a_flow():
    ensemble = two()
    assert (ensemble.manifold, ensemble.dim, ensemble.condition, ensemble.is_bijective, ensemble.is_bottleneck) == (
        Euclidean(2),
        2,
        None,
        True,
        False,
    )
    assert following().condition == (2,)
    mixed = fl.Ensemble([gaussian([0.0, 0.0], [1.0, 1.0]), fl.flows.free_form(2, width=8)])
    assert not mixed.is_bijective
    narrow = fl.Ensemble([fl.flows.free_form(3, latent=2, width=8) for _ in range(2)])
    assert narrow.is_bottleneck


@pytest.mark.parametrize(
    ("flows", "error", "message"),
    [
        (lambda: [], ValueError, "at least one flow"),
        (lambda: [fl.nn.MLP(2)], TypeError, "member 0 must be a Flow, got MLP"),
        (lambda: [gaussian([0.0], [1.0]), gaussian([0.0, 0.0], [1.0, 1.0])], ValueError, r"member 1 lives on Euclidean\(2\), member 0 on"),
        (lambda: [gaussian([0.0], [1.0]), gaussian([0.0], [1.0], condition=1)], ValueError, "member 1 takes a condition"),
        (lambda: [fl.flows.free_form(3, width=8), fl.flows.free_form(3, latent=2, width=8)], ValueError, "latent of dimension 2"),
        (lambda: [gaussian([0.0], [1.0])] * 2, ValueError, "member 1 is in the list twice"),
    ],
)
def test_members_that_do_not_fit_are_refused(flows, error, message):
    with pytest.raises(error, match=message):
        fl.Ensemble(flows())


def test_distribution():
    d = two().distribution()
    assert not d.has_rsample
    x = d.sample((5,))
    torch.testing.assert_close(d.log_prob(x), two().log_prob(x))
    with pytest.raises(NotImplementedError, match="involves a choice"):
        d.rsample()
    c = torch.randn(3, 2)
    assert following().distribution(c).expand((4, 3)).sample((5,)).shape == (5, 4, 3, 2)


def test_save_and_load(tmp_path):
    ensemble = fl.Ensemble([fl.flows.free_form(2, width=8, context=1), fl.flows.free_form(2, width=16, context=1)]).eval()
    fl.save(ensemble, tmp_path / "both.safetensors")
    again = fl.load(tmp_path / "both.safetensors")
    assert isinstance(again, fl.Ensemble)
    x, c = torch.randn(5, 2), torch.randn(5, 1)
    assert torch.equal(again.members(x, c), ensemble.members(x, c))


# ------------------------------------------------------------------------------------------------------------------------- training


def test_fit_standardises_and_trains_every_member(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(600, 2) * torch.tensor([3.0, 0.1]) + torch.tensor([100.0, 0.0])
    ensemble = fl.Ensemble([fl.flows.free_form(2, width=16, blocks=1) for _ in range(3)])
    history = fl.fit(ensemble, x, max_steps=80, validate_every=20, batch_size=128, progress=False, directory=tmp_path)
    assert history.best["monitor"] < history.rows[0]["monitor"]
    assert history.rows[-1]["nll"] < history.rows[0]["nll"]
    assert {"0/nll", "1/gap", "2/reconstruction", "spread"} <= set(history.rows[-1])
    scales = [flow.codec.parts[0].scale for flow in ensemble.flows]
    assert all(torch.equal(scale, scales[0]) for scale in scales)
    torch.testing.assert_close(scales[0], torch.tensor([3.0, 0.1]), rtol=0.15, atol=0)
    assert ensemble.spec.event_shape == (2,)
    assert ensemble.spread(x[:5]).min() > 0
    again = fl.load(tmp_path / "model.safetensors")
    assert again.spec == ensemble.spec
    assert torch.isfinite(again.log_prob(x[:5])).all()


def test_fit_trains_each_member_as_if_it_were_alone():
    torch.manual_seed(0)
    x = torch.randn(400, 2)
    flow = fl.flows.free_form(2, width=8, blocks=1, standardize=False)
    alone = fl.io.build(fl.io.describe(flow))
    alone.load_state_dict(flow.state_dict())
    other = fl.flows.free_form(2, width=8, blocks=1, standardize=False)
    # The probes of a batch are drawn by the first member first, so that this one sees what it would see alone.
    options = {"max_steps": 1, "validate_every": 1, "batch_size": 100, "progress": False, "clip": 0.01}
    fl.fit(fl.Ensemble([flow, other]), x, **options)
    fl.fit(alone, x, **options)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(flow.state_dict()[name], value, rtol=0, atol=1e-7)


def test_conditions_are_scaled_for_every_member():
    x = torch.randn(300, 2)
    ensemble = fl.Ensemble([fl.flows.free_form(2, width=8, blocks=1, context=1) for _ in range(2)])
    fl.fit(ensemble, (x, 300 + x[:, :1]), max_steps=5, batch_size=64, progress=False)
    for flow in ensemble.flows:
        assert abs(float(flow.context.loc) - 300) < 1


def test_resumed_training_is_the_same(tmp_path):
    def make():
        torch.manual_seed(0)
        ensemble = fl.Ensemble([fl.flows.free_form(2, width=8, blocks=1) for _ in range(2)])
        return ensemble, EachMember([FreeFormLikelihood(), FreeFormLikelihood()], bootstrap=True)

    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    options = {"validate_every": 10, "batch_size": 100, "progress": False, "schedule": "constant", "warmup": 0}
    whole, objective = make()
    fl.fit(whole, x, objective, max_steps=40, directory=tmp_path / "whole", **options)
    torch.manual_seed(0)
    part, objective = make()

    class Stop(Exception):
        pass

    calls = []
    forward = objective.forward
    objective.forward = lambda *arguments: (calls.append(1), forward(*arguments))[1] if len(calls) < 25 else (_ for _ in ()).throw(Stop)
    with pytest.raises(Stop):
        fl.fit(part, x, objective, max_steps=40, directory=tmp_path / "part", checkpoint_every=0.0, **options)
    part, objective = make()
    fl.fit(part, x, objective, max_steps=40, directory=tmp_path / "part", resume=True, **options)
    for (name, a), b in zip(whole.state_dict().items(), part.state_dict().values()):
        assert torch.equal(a, b), name


def test_natural_objectives():
    assert [type(part) for part in natural_objective(two()).objectives] == [MaximumLikelihood, MaximumLikelihood]
    mixed = fl.Ensemble([gaussian([0.0, 0.0], [1.0, 1.0]), fl.flows.free_form(2, width=8)])
    assert [type(part) for part in natural_objective(mixed).objectives] == [MaximumLikelihood, FreeFormLikelihood]


@pytest.mark.parametrize("bootstrap", [False, True])
def test_the_objective_keeps_its_contract(bootstrap):
    check_objective(
        lambda: EachMember([FreeFormLikelihood(beta=1.0), FreeFormLikelihood()], bootstrap=bootstrap),
        lambda: fl.Ensemble([fl.flows.free_form(2, width=8, blocks=1) for _ in range(2)]),
        Batch(torch.randn(8, 2, dtype=torch.float64)),
    )


def test_bootstrapped_members_see_other_weights_of_the_same_mean():
    objective = EachMember([MaximumLikelihood(), MaximumLikelihood()], bootstrap=True)
    flow = gaussian([0.0, 0.0], [1.0, 1.0])
    ensemble = fl.Ensemble([flow, gaussian([0.0, 0.0], [1.0, 1.0])])
    x = torch.randn(500, 2)
    objective.prepare(ensemble, fl.Dataset(x))
    torch.testing.assert_close(objective.row_weights.mean(1), torch.ones(2))
    assert abs(float(objective.row_weights.std()) - 1) < 0.15
    index = torch.arange(0, 500, 2)
    figures = objective(ensemble, Batch(x[index], index=index), Progress())
    expected = -(objective.row_weights[1][index] * flow.log_prob(x[index])).mean()
    torch.testing.assert_close(figures["1/loss"], expected)
    assert figures["0/loss"] != figures["1/loss"]


def test_each_member_needs_an_ensemble_of_its_size():
    with pytest.raises(TypeError, match="expected an Ensemble, got Flow"):
        EachMember([MaximumLikelihood()]).prepare(gaussian([0.0], [1.0]), None)
    with pytest.raises(ValueError, match="3 objectives for 2 members"):
        EachMember([MaximumLikelihood()] * 3).prepare(two(), None)
    with pytest.raises(ValueError, match="one objective for each member"):
        EachMember([])


def test_members_learn_an_energy_without_data():
    torch.manual_seed(0)
    ensemble = fl.Ensemble([fl.flows.coupling(2, blocks=2, bins=4, hidden=[8], standardize=False) for _ in range(2)])
    objective = EachMember([ReverseKL(DoubleWell(), validation_samples=64) for _ in range(2)])
    history = fl.fit(ensemble, None, objective, max_steps=4, validate_every=2, batch_size=32, progress=False)
    assert {"0/ess", "1/ess"} <= set(history.rows[-1])
    assert "nll" not in history.rows[-1]


def test_the_mixture_may_be_trained_as_one_density():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(300, 1) - 4, torch.randn(300, 1) + 4])
    zuko = pytest.importorskip("fluvial.interop.zuko", reason="the extra fluvial[zuko] is not installed")
    ensemble = fl.Ensemble([Flow(zuko.ZukoCodec(1, family="MAF", options={"transforms": 1}), Normal(1)) for _ in range(2)])
    fl.fit(ensemble, x, MaximumLikelihood(), max_steps=300, batch_size=200, learning_rate=3e-2, progress=False)
    centres = sorted(float(flow.sample(2000).median()) for flow in ensemble.flows)
    # Each member takes one half, which no member could describe alone.
    assert centres[0] < -2
    assert centres[1] > 2


def test_a_sphere():
    ensemble = fl.Ensemble([fl.flows.free_form(manifold=Sphere(2), width=8) for _ in range(2)])
    x = ensemble.sample(5)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(5))
    assert ensemble.log_prob(x).shape == (5,)


def test_free_form_members_take_the_volume_they_are_asked_for():
    ensemble = fl.Ensemble([Flow(FreeForm(fl.nn.Residual(2, width=8), fl.nn.Residual(2, width=8)), Normal(2)) for _ in range(2)])
    x = torch.randn(4, 2)
    members = torch.stack([flow.log_prob(x, volume="encoder") for flow in ensemble.flows])
    torch.testing.assert_close(ensemble.log_prob(x, volume="encoder"), members.logsumexp(0) - math.log(2))
