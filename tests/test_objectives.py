"""Objectives: every term against a formula of a few lines, the controller, weights, schedules, refusals."""

import math

import pytest
import torch
from torch import nn

from fluvial.bases import Normal, UniformOn
from fluvial.codecs import Bijection, Chain, FreeForm, Standardize, fit_codec_
from fluvial.flow import Flow
from fluvial.flows import free_form
from fluvial.manifolds import Euclidean, Sphere
from fluvial.nn import MLP, Residual
from fluvial.objectives import Batch, FreeFormLikelihood, MaximumLikelihood, Objective, Progress, WeightedSum, natural_objective
from fluvial.objectives.free_form import TERMS
from fluvial.testing import check_objective


@pytest.fixture(autouse=True)
def _double(double):
    pass


class Scaling(Bijection):
    """z = x exp(−s): the smallest bijection with a parameter."""

    def __init__(self, n):
        super().__init__()
        self.n = n
        self.domain = self.codomain = Euclidean(n)
        self.s = nn.Parameter(torch.linspace(0.1, 0.5, n))

    def encode(self, x, c=None):
        return x * torch.exp(-self.s)

    def decode(self, z, c=None):
        return z * torch.exp(self.s)

    def encode_ladj(self, x, c=None):
        return self.encode(x), -self.s.sum().expand(len(x))

    def decode_ladj(self, z, c=None):
        return self.decode(z), self.s.sum().expand(len(z))


def standardised(context=0):
    """A small flow behind a standardisation that is not the identity."""
    nets = [Residual(3, width=8, blocks=2, context=context) for _ in range(2)]
    codec = Chain([Standardize(3), FreeForm(*nets)])
    fit_codec_(codec, 2.0 * torch.randn(40, 3) + torch.tensor([1.0, -1.0, 0.5]))
    return Flow(codec, Normal(3), condition=context or None)


def spherical():
    return free_form(manifold=Sphere(2), width=8, blocks=2)


def weights(n):
    """As in training: of mean 1."""
    weight = torch.rand(n) + 0.1
    return weight / weight.mean()


def flat_batch(n=6):
    return Batch(torch.randn(n, 3), weight=weights(n), clean=torch.randn(n, 3))


def sphere_batch(n=6):
    return Batch(Sphere(2).random_uniform(n), weight=weights(n))


ALL = dict.fromkeys(TERMS, 0.7)
FLAT = {name: weight for name, weight in ALL.items() if name != "uniform_reconstruction"}
OBJECTIVES = {
    "default": (FreeFormLikelihood, standardised, flat_batch),
    "all terms": (lambda: FreeFormLikelihood(beta=2.0, terms=FLAT, probe="latent"), standardised, flat_batch),
    "all terms on the sphere": (lambda: FreeFormLikelihood(terms=ALL, geodesic=True, probe="latent_vjp"), spherical, sphere_batch),
    "conditional": (
        lambda: FreeFormLikelihood(beta=2.0, terms=FLAT, probes=2, fraction=0.5),
        lambda: standardised(context=1),
        lambda: flat_batch()._replace(c=torch.randn(6, 1)),
    ),
    "bottleneck": (FreeFormLikelihood, lambda: free_form(3, latent=1, width=8, blocks=1), flat_batch),
    "likelihood": (MaximumLikelihood, lambda: Flow(Scaling(3), Normal(3)), flat_batch),
    "sum": (lambda: WeightedSum({"a": FreeFormLikelihood(), "b": FreeFormLikelihood(beta=1.0)}, weights={"b": 0.5}), standardised, flat_batch),
}


@pytest.mark.parametrize(("make", "flow", "batch"), OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_contract(make, flow, batch):
    check_objective(make, flow, batch())


# ------------------------------------------------------------------------------------------------- terms of the free-form loss


def by_hand(name, flow, batch, z_prior, order, uniform):
    """One term for every row, from its definition, in the coordinates of the networks."""
    before, core, _, space, latent = flow.parts
    h = batch.x if before is None else before.encode(batch.x)
    z_raw = core.encode(h)
    z = latent.project(z_raw)
    x_raw = core.decode(z)
    x = space.project(x_raw)

    def square(a, b):
        return (a - b).square().sum(-1)

    if name == "reconstruction":
        return square(batch.x if batch.clean is None else before.encode(batch.clean), x)
    if name in ("z_reconstruction", "z_reconstruction_encoder"):
        return square(z, latent.project(core.encode(x)))
    if name == "z_sample_reconstruction":
        return square(z_prior, latent.project(core.encode(space.project(core.decode(z_prior)))))
    if name == "x_sample_reconstruction":
        x_prior = space.project(core.decode(z_prior))
        return square(x_prior, space.project(core.decode(latent.project(core.encode(x_prior)))))
    if name == "uniform_reconstruction":
        return square(uniform, space.project(core.decode(latent.project(core.encode(uniform)))))
    if name == "shuffled_reconstruction":
        return square(h[order], space.project(core.decode(latent.project(core.encode(h[order])))))
    if name == "intermediate_reconstruction":
        up, down = core.encoder.states(h), core.decoder.states(z)
        return square(up[0], down[2]) + square(up[1], down[1]) + square(up[2], down[0])
    return square(z_raw, z) if name == "z_projection" else square(x_raw, x)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(("flow", "batch"), [(standardised, flat_batch), (spherical, sphere_batch)], ids=["plane", "sphere"])
def test_terms_are_what_their_names_say(name, flow, batch):
    flow, batch = flow(), batch()
    if name == "uniform_reconstruction" and isinstance(flow.parts.manifold, Euclidean):
        with pytest.raises(ValueError, match="finite volume"):
            FreeFormLikelihood(terms={name: 0.5}).prepare(flow, None)
        return
    objective = FreeFormLikelihood(beta=3.0, terms={name: 0.5}, probe="data", sample_fraction=0.5).double()
    figures = objective(flow, batch, Progress(generator=torch.Generator().manual_seed(5)))
    # The probe is drawn first, then whatever the term draws.
    generator = torch.Generator().manual_seed(5)
    torch.randn(batch.x.shape, generator=generator)
    state = generator.get_state()
    z_prior = flow.base.sample(len(batch.x) // 2, generator=generator)
    order = torch.randperm(len(batch.x), generator=generator.set_state(state))
    uniform = Sphere(2).random_uniform(len(batch.x) // 2, generator=generator.set_state(state), dtype=torch.float64)
    rows = by_hand(name, flow, batch, z_prior, order, uniform)
    # Draws from the base carry no weights.
    expected = rows.mean() if "sample" in name or "uniform" in name else (batch.weight * rows).sum() / batch.weight.sum()
    found = figures["clean_reconstruction" if name == "reconstruction" else name]
    torch.testing.assert_close(found, expected.detach())
    total = 3.0 * figures["reconstruction"] + figures["surrogate"] + 0.5 * found
    torch.testing.assert_close(figures["loss"].detach(), total)


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("z_reconstruction", True, True),
        ("z_reconstruction_encoder", True, False),
        ("z_sample_reconstruction", True, True),
        ("x_sample_reconstruction", True, True),
        ("uniform_reconstruction", True, True),
        ("z_projection", True, False),
        ("x_projection", True, True),
    ],
)
def test_terms_send_gradients_where_they_should(name, encoder, decoder):
    flow, batch = spherical(), sphere_batch()
    losses = []
    for weight in (0.0, 1.0):
        objective = FreeFormLikelihood(beta=1.0, terms={name: weight}).double()
        losses.append(objective(flow, batch, Progress(generator=torch.Generator().manual_seed(5)))["loss"])
    for net, wanted in ((flow.codec.encoder, encoder), (flow.codec.decoder, decoder)):
        parameters = list(net.parameters())
        with_term, without = (torch.autograd.grad(loss, parameters, retain_graph=True) for loss in reversed(losses))
        moved = any(not torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(with_term, without))
        assert moved == wanted


def test_geodesic_takes_squared_arcs():
    flow, batch = spherical(), sphere_batch()
    figures = FreeFormLikelihood(beta=3.0, geodesic=True).double()(flow, batch, Progress())
    arcs = Sphere(2).distance(batch.x, flow.reconstruct(batch.x)).square()
    torch.testing.assert_close(figures["reconstruction"], ((batch.weight * arcs).sum() / batch.weight.sum()).detach())


@pytest.mark.parametrize("make", [standardised, lambda: free_form(3, latent=2, width=8, blocks=1)])
@pytest.mark.parametrize("probe", ["data", "latent", "latent_vjp"])
def test_gradient_is_that_of_the_exact_loss_with_the_decoder_held_in_the_volume(make, probe):
    flow, batch = make(), flat_batch()
    count = 3 if probe == "data" else flow.dim
    loss = FreeFormLikelihood(beta=2.0, probe=probe, probes=count).double()(flow, batch, Progress())["loss"]
    before, core, _, _, _ = flow.parts
    h = before.encode(batch.x)
    z = core.encode(h)
    j_g = torch.func.vmap(torch.func.jacrev(core.decode))(z).detach()
    j_f = torch.func.vmap(torch.func.jacrev(core.encode))(h)
    trace = (j_f @ j_g).diagonal(dim1=-2, dim2=-1).sum(-1)
    rows = 2.0 * (h - core.decode(z)).square().sum(-1) - Normal(flow.dim).log_prob(z) - trace
    exact = (batch.weight * rows).sum() / batch.weight.sum()
    parameters = list(flow.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(exact, parameters))


@pytest.mark.parametrize(
    ("make", "flow"),
    [
        (lambda: FreeFormLikelihood(beta=2.0, probes=3, terms={"z_reconstruction": 1.0}), standardised),
        (MaximumLikelihood, lambda: Flow(Scaling(3), Normal(3))),
    ],
)
def test_weights_are_repeated_rows(make, flow):
    objective, flow = make().double(), flow()
    x, times = torch.randn(5, 3), torch.tensor([1, 3, 0, 2, 1])
    weight = times.double() / times.double().mean()  # of mean 1, as in training
    weighted, repeated = Batch(x, weight=weight), Batch(x.repeat_interleave(times, 0))
    losses = [objective(flow, batch, Progress())["loss"] for batch in (weighted, repeated)]
    torch.testing.assert_close(losses[0], losses[1])
    gradients = [torch.autograd.grad(loss, list(flow.parameters())) for loss in losses]
    torch.testing.assert_close(gradients[0], gradients[1])
    flow.eval()
    with torch.no_grad():
        monitors = [objective.validate(flow, batch, Progress())["monitor"] for batch in (weighted, repeated)]
    torch.testing.assert_close(monitors[0], monitors[1])


def test_warmup_raises_the_likelihood_from_nothing():
    flow, batch = standardised(), flat_batch()
    objective = FreeFormLikelihood(beta=2.0, probes=3, warmup=(1.0, 3.0)).double()
    for epoch, weight in ((0.0, 0.0), (1.0, 0.0), (2.0, 0.5), (3.0, 1.0), (9.0, 1.0)):
        figures = objective(flow, batch, Progress(epoch=epoch))
        torch.testing.assert_close(figures["loss"].detach(), 2.0 * figures["reconstruction"] + weight * figures["surrogate"])


# ------------------------------------------------------------------------------------------------------ monitors, controller


def test_monitor_is_the_larger_nll_and_more_where_they_disagree():
    flow, batch = standardised().eval(), flat_batch()
    objective = FreeFormLikelihood(gap_tolerance=100.0).double()
    with torch.no_grad():
        found = objective.validate(flow, batch, Progress())
        mean = (batch.weight * -flow.log_prob(batch.x)).sum() / batch.weight.sum()
        torch.testing.assert_close(found["nll"], -flow.log_prob(batch.x))
        torch.testing.assert_close(found["nll_encoder"], -flow.log_prob(batch.x, volume="encoder"))
        larger = (batch.weight * torch.maximum(found["nll"], found["nll_encoder"])).sum() / batch.weight.sum()
        torch.testing.assert_close(found["monitor"], larger)
        assert found["monitor"] > mean
        square = (batch.x - flow.reconstruct(batch.x)).square().sum(-1)
        torch.testing.assert_close(found["reconstruction"], ((batch.weight * square).sum() / batch.weight.sum()).sqrt())
        strict = FreeFormLikelihood(gap_tolerance=1e-9).double().validate(flow, batch, Progress())
    torch.testing.assert_close(strict["monitor"], larger + 2 * found["gap"], rtol=1e-6, atol=1e-6)


def test_monitor_of_a_bottleneck_is_its_joint_likelihood():
    flow, batch = free_form(3, latent=1, width=8, blocks=1).eval(), flat_batch()
    with torch.no_grad():
        found = FreeFormLikelihood().double().validate(flow, batch, Progress())
    share = batch.weight / batch.weight.sum()
    expected = (share * found["nll"]).sum() + (share * (batch.x - flow.reconstruct(batch.x)).square().sum(-1)).sum().log()
    torch.testing.assert_close(found["monitor"], expected.detach())
    assert "nll_encoder" not in found


def test_controller_measures_the_gap_of_the_two_likelihoods():
    flow = standardised().eval()
    x = flow.sample(40).detach()
    moved = FreeFormLikelihood().double().adapt(flow, Batch(x), Progress())
    torch.testing.assert_close(moved["gap"], (flow.log_prob(x) - flow.log_prob(x, volume="encoder")).mean().abs())


def test_controller_finds_no_gap_in_exact_inverses_on_the_sphere():
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    nets = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    nets[0].weight.data.copy_(turn)
    nets[1].weight.data.copy_(turn.T)
    flow = Flow(FreeForm(*nets), UniformOn(Sphere(2)), manifold=Sphere(2)).eval()
    moved = FreeFormLikelihood().double().adapt(flow, Batch(Sphere(2).random_uniform(1)), Progress())
    assert moved["gap"] < 1e-12
    assert torch.isfinite(moved["beta"])


def test_controller_moves_up_when_inconsistent_down_when_consistent_and_never_when_fixed():
    identity = Flow(FreeForm(nn.Identity(), nn.Identity()), Normal(2)).eval()
    bad = Flow(FreeForm(nn.Linear(2, 2), nn.Linear(2, 2)), Normal(2)).eval()
    batch = Batch(torch.randn(20, 2))
    for flow, sign in ((identity, -1), (bad, 1)):
        objective = FreeFormLikelihood(beta_start=10.0)
        objective.adapt(flow, batch, Progress())
        assert math.copysign(1, objective.log_beta.exp().item() - 10.0) == sign
    fixed = WeightedSum({"fixed": FreeFormLikelihood(beta=10.0), "free": FreeFormLikelihood(beta_start=10.0)})
    assert fixed.adapt_every == FreeFormLikelihood().adapt_every > 0
    fixed.adapt(bad, batch, Progress())
    assert fixed.objectives["fixed"].log_beta.exp().item() == pytest.approx(10.0)
    assert fixed.objectives["free"].log_beta.exp().item() > 10.0


def test_controller_survives_a_gap_that_is_not_finite():
    objective = FreeFormLikelihood(beta_start=10.0)
    flow = Flow(FreeForm(nn.Linear(2, 2), nn.Linear(2, 2)), Normal(2)).eval()
    objective.adapt(flow, Batch(torch.full((4, 2), torch.nan)), Progress())
    nn.init.zeros_(flow.codec.decoder.weight)
    objective.adapt(flow, Batch(torch.randn(4, 2)), Progress())
    assert objective.log_beta.exp().item() == pytest.approx(10.0)


def test_controller_keeps_a_bottleneck_on_its_plateau():
    flow = free_form(4, latent=2, width=8, blocks=1).eval()
    x = torch.randn(50, 4)
    square = (x - flow.reconstruct(x)).square().sum(-1).mean().item()
    for start in (1e-2, 1e5):
        objective = FreeFormLikelihood(beta_start=start).double()
        for _ in range(40):
            objective.adapt(flow, Batch(x), Progress())
        assert objective.log_beta.exp().item() == pytest.approx(10 * 0.5 * (4 - 2) / square, rel=1e-3)
        objective.adapt(flow, Batch(torch.full((4, 4), torch.inf)), Progress())
        assert objective.log_beta.exp().item() == pytest.approx(10 * 0.5 * (4 - 2) / square, rel=1e-3)


def mixture(n, generator):
    angle = math.pi / 2 * torch.randint(0, 4, (n,), generator=generator) + 0.4
    return 1.5 * torch.stack([angle.cos(), angle.sin()], -1) + 0.35 * torch.randn(n, 2, generator=generator)


@pytest.mark.parametrize("start", [0.1, 1e5])
def test_controller_ends_with_encoder_and_decoder_agreed_wherever_it_starts(start):
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(1)
    flow, x, held_out = free_form(2, width=64, blocks=2), mixture(20_000, generator), Batch(mixture(256, generator))
    fit_codec_(flow.codec, x)
    objective, steps = FreeFormLikelihood(beta_start=start, adapt_every=25), 1500
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    progress = Progress(generator=generator)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        objective(flow, Batch(x[torch.randint(0, len(x), (256,), generator=generator)]), progress)["loss"].backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step % objective.adapt_every == 0:
            objective.adapt(flow, held_out, progress)
    flow.eval()
    test = mixture(4000, generator)
    gap = (flow.log_prob(test) - flow.log_prob(test, volume="encoder")).mean().abs().item()
    assert gap < 0.02 * 2
    assert 1.0 < objective.log_beta.exp().item() < 1e5


# ------------------------------------------------------------------------------------------------ likelihood, sums, refusals


def test_likelihood_finds_the_scale_of_the_data():
    flow, x = Flow(Scaling(2), Normal(2)), torch.randn(500, 2) * torch.tensor([0.3, 4.0])
    optimizer = torch.optim.LBFGS(flow.parameters(), line_search_fn="strong_wolfe", max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = MaximumLikelihood()(flow, Batch(x), Progress())["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(flow.codec.s.exp(), x.square().mean(0).sqrt(), rtol=1e-4, atol=1e-6)


def test_natural_objective():
    assert isinstance(natural_objective(standardised()), FreeFormLikelihood)
    assert isinstance(natural_objective(Flow(Scaling(2), Normal(2))), MaximumLikelihood)


def test_each_objective_refuses_the_other_kind_of_flow():
    with pytest.raises(TypeError, match="free-form; train it with FreeFormLikelihood"):
        MaximumLikelihood().prepare(standardised(), None)
    with pytest.raises(TypeError, match="use MaximumLikelihood"):
        FreeFormLikelihood().prepare(Flow(Scaling(2), Normal(2)), None)
    with pytest.raises(TypeError, match="use MaximumLikelihood"):
        FreeFormLikelihood()(Flow(Scaling(2), Normal(2)), Batch(torch.zeros(2, 2)), Progress())


@pytest.mark.parametrize(
    ("flow", "options", "message"),
    [
        (
            lambda: Flow(FreeForm(MLP(2), MLP(2)), Normal(2)),
            {"terms": {"intermediate_reconstruction": 1.0}},
            "needs a FreeForm of networks with states",
        ),
        (
            lambda: Flow(FreeForm(Residual(2, width=8), Residual(2, width=9)), Normal(2)),
            {"terms": {"intermediate_reconstruction": 1.0}},
            "as wide and deep",
        ),
        (lambda: free_form(3, latent=2, width=8), {"probes": 3}, "3 orthogonal probes do not exist in dimension 2"),
        (spherical, {"probes": 3, "probe": "data"}, "dimension 2"),
    ],
)
def test_flows_that_do_not_fit_are_refused_before_training(flow, options, message):
    with pytest.raises(ValueError, match=message):
        FreeFormLikelihood(**options).prepare(flow(), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta must be a positive number or 'auto', got -1.0"),
        ({"beta": "high"}, "'high'"),
        ({"beta": math.inf}, "inf"),
        ({"probe": "both"}, "'both'"),
        ({"probe_scale": "big"}, "'big'"),
        ({"probes": 0}, "at least 1"),
        ({"fraction": 0.0}, r"within \(0, 1\]"),
        ({"sample_fraction": 2.0}, r"within \(0, 1\]"),
        ({"terms": {"rec": 1.0}}, "unknown term 'rec'; the terms are reconstruction"),
        ({"terms": {"z_projection": -1.0}}, "weight of z_projection"),
        ({"warmup": (2.0, 1.0)}, "two epochs"),
        ({"gap_tolerance": 0.0}, "positive"),
        ({"beta_start": 0.0}, "positive"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FreeFormLikelihood(**options)


class Constant(Objective):
    """A loss that is a number, and counts how often it is asked."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.asked = 0

    def forward(self, flow, batch, progress):
        self.asked += 1
        return {"loss": torch.tensor(self.value, requires_grad=True) * 1.0, "extra": torch.tensor(2 * self.value)}

    def validate(self, flow, batch, progress):
        return {"monitor": torch.tensor(self.value), "nll": torch.tensor([self.value])}


def test_weighted_sum_follows_its_schedules():
    a, b = Constant(1.0), Constant(10.0)
    both = WeightedSum({"a": a, "b": b}, weights={"a": [(0.2, 0.0), (0.6, 2.0)], "b": 0.5})
    flow, batch = standardised(), flat_batch()
    for fraction, weight in ((0.0, 0.0), (0.2, 0.0), (0.4, 1.0), (0.6, 2.0), (1.0, 2.0)):
        figures = both(flow, batch, Progress(fraction=fraction))
        assert figures["loss"].item() == pytest.approx(weight + 5.0)
    assert a.asked == 3
    assert set(figures) == {"loss", "a/loss", "a/extra", "b/loss", "b/extra"}
    assert not figures["a/loss"].requires_grad
    found = both.validate(flow, batch, Progress())
    assert found["monitor"].item() == pytest.approx(2.0 + 5.0)
    assert set(found) == {"monitor", "nll", "b/nll"}
    with pytest.raises(ValueError, match="all weights are 0"):
        WeightedSum({"a": a}, weights={"a": 0.0})(flow, batch, Progress())


@pytest.mark.parametrize(
    ("objectives", "weights", "message"),
    [
        ({}, None, "at least one"),
        ({"a": Constant(1.0)}, {"b": 1.0}, r"weights name \['b'\]"),
        ({"a": Constant(1.0)}, {"a": [(1.0, 0.0), (0.0, 1.0)]}, "rising t"),
    ],
)
def test_weighted_sums_that_make_no_sense_are_refused(objectives, weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedSum(objectives, weights=weights)


def test_parameters_shared_by_parts_are_optimised_once():
    flow = standardised()
    groups = WeightedSum({"a": FreeFormLikelihood(), "b": MaximumLikelihood()}).param_groups(flow)
    named = [p for group in groups for p in group["params"]]
    assert len(named) == len({id(p) for p in named}) == len(list(flow.parameters()))


def test_surrogate_nll_agrees_with_the_metric_of_uniform_bases():
    """On the sphere, base and metric are constants: what is left of the surrogate's value is s itself, n for exact inverses."""
    flow = Flow(FreeForm(nn.Identity(), nn.Identity()), UniformOn(Sphere(2)), manifold=Sphere(2))
    figures = FreeFormLikelihood(beta=1.0).double()(flow, sphere_batch(), Progress())
    assert figures["surrogate"].item() == pytest.approx(math.log(4 * math.pi) - 2)
    assert figures["reconstruction"].item() == pytest.approx(0, abs=1e-20)


def test_a_batch_without_weight_teaches_nothing():
    flow, batch = standardised(), flat_batch()
    batch = Batch(batch.x.clone(), weight=torch.zeros(len(batch.x)))
    batch.x[0] = torch.inf
    loss = FreeFormLikelihood(beta=2.0).double()(flow, batch, Progress())["loss"]
    loss.backward()
    assert loss.item() == 0
