"""Flows of zuko as flows of ours."""

import math

import pytest
import torch
from torch import nn

import fluvial as fl
from fluvial.bases import Uniform
from fluvial.testing import check_bijection

zuko = pytest.importorskip("zuko", reason="the extra fluvial[zuko] is not installed")

from fluvial.interop import zuko as of_zuko  # noqa: E402

BISECTED = ("NAF", "UNAF", "SOSPF", "BPF", "GF")


def small(family):
    if family in ("NAF", "UNAF"):
        return {"transforms": 2, "hidden_features": (8,), "signal": 4, "network": {"hidden_features": (8,)}}
    return {"transforms": 2, "components": 4} if family == "GF" else {"transforms": 2, "hidden_features": (8,)}


def points(family):
    if family == "NCSF":
        return lambda n: 2 * math.pi * (torch.rand(n, 3, dtype=torch.float64) - 0.5)
    return lambda n: torch.randn(n, 3, dtype=torch.float64)


def conditions(n):
    return torch.randn(n, 2, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------------- zuko: codecs


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("family", ["NSF", "MAF", "NICE", "NCSF"])
def test_families_with_closed_inverses_keep_the_contract_of_bijections(family, context):
    base = (lambda: Uniform([-math.pi] * 3, [math.pi] * 3)) if family == "NCSF" else None
    check_bijection(
        lambda: of_zuko.ZukoCodec(3, context, family=family, options=small(family)),
        points(family),
        condition=conditions if context else None,
        base=base,
    )


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("family", BISECTED)
def test_families_inverted_by_bisection_are_exact_forwards_and_close_backwards(family, context):
    codec = of_zuko.ZukoCodec(3, context, family=family, options=small(family)).double()
    x, c = 0.5 * points(family)(4), conditions(4) if context else None

    z, ladj = codec.encode_ladj(x, c)
    back, inverse_ladj = codec.decode_ladj(z, c)
    jacobian = torch.autograd.functional.jacobian(lambda rows: codec.encode(rows, c).sum(0), x).movedim(1, 0)

    torch.testing.assert_close(codec.encode(x, c), z)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=0, atol=1e-3)


def test_every_named_family_is_one_of_zuko():
    assert all(issubclass(getattr(zuko.flows, family), zuko.flows.Flow) for family in of_zuko.FAMILIES)


def test_conditions_may_be_dicts_and_unused_ones_are_ignored():
    codec = of_zuko.ZukoCodec(2, 3, family="MAF")
    x, c = torch.randn(4, 2), {"b": torch.randn(4, 1), "a": torch.randn(4, 2)}
    torch.testing.assert_close(codec.encode(x, c), codec.encode(x, torch.cat([c["a"], c["b"]], 1)))
    with pytest.raises(ValueError, match=r"ZukoCodec: expected a condition of shape \(rows, 3\), got none"):
        codec.encode(x)


def test_angles_outside_the_circle_have_no_density_and_the_rest_integrates_to_one():
    flow = of_zuko.flow(1, family="NCSF", transforms=2, bins=4).double().eval()
    side = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64).unsqueeze(1)
    density = flow.log_prob(side).exp()
    torch.testing.assert_close(torch.trapezoid(density, side[:, 0]), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(density[0], density[-1])
    outside = torch.tensor([[3.2], [-4.0]], dtype=torch.float64, requires_grad=True)
    log_p = flow.log_prob(outside)
    assert (log_p == -torch.inf).all()
    assert torch.isfinite(flow.codec.encode(outside)).all()
    x = flow.sample(1000)
    assert x.abs().max() <= math.pi
    assert torch.isfinite(flow.log_prob(x)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "os.system"}, "family must be one of NSF"),
        ({"options": {"colour": 3}}, "zuko.flows.NSF does not take the options"),
        ({"options": {"activation": "eval"}}, "activation must be one of ReLU"),
        ({"options": {"transforms": 10**9}}, "transforms must be a number from 1 to 1000"),
        ({"options": {"features": 3}}, "arguments of their own"),
        ({"context": -1}, "context not negative"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        of_zuko.ZukoCodec(2, **arguments)


def test_a_hostile_family_in_a_file_is_refused():
    config = fl.io.describe(of_zuko.ZukoCodec(2))
    config["init_args"]["family"] = "__init__"
    with pytest.raises(ValueError, match="family must be one of"):
        fl.io.build(config)


def test_a_flow_by_name_is_fitted_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(1000, 2) * 3 + 5
    c = x[:, :1] + 0.1 * torch.randn(1000, 1)
    flow = of_zuko.flow(2, 1, family="NSF", transforms=2, hidden_features=[16], passes=2, activation="ELU", randperm=True)
    history = fl.fit(flow, (x, c), max_steps=60, batch_size=256, learning_rate=1e-2, progress=False)
    assert history.rows[-1]["nll"] < history.rows[0]["nll"] - 0.2
    fl.save(flow, tmp_path / "flow.safetensors")
    again = fl.load(tmp_path / "flow.safetensors")
    assert torch.equal(again.log_prob(x, c), flow.log_prob(x, c))
    seed = torch.Generator().manual_seed(3)
    assert torch.equal(again.sample(5, c[:2], generator=seed), flow.sample(5, c[:2], generator=torch.Generator().manual_seed(3)))


# ------------------------------------------------------------------------------------------------------------ zuko: existing flows


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("family", [*of_zuko.FAMILIES, "CNF"])
def test_an_existing_flow_keeps_its_density(family, context):
    theirs = getattr(zuko.flows, family)(2, context)
    ours = of_zuko.from_zuko(theirs, context)
    x, c = 2 * torch.rand(5, 2) - 1, torch.randn(5, context) if context else None
    torch.testing.assert_close(ours.log_prob(x, c), theirs(c).log_prob(x))
    torch.testing.assert_close(ours.reconstruct(x, c), x, rtol=0, atol=1e-3)
    assert ours.sample(3, c).shape == (3, *(() if c is None else (5,)), 2)


def test_an_existing_flow_is_trained_in_place():
    theirs = zuko.flows.MAF(2, hidden_features=(16,))
    x = 0.3 * torch.randn(500, 2)
    ours = of_zuko.from_zuko(theirs)
    before = theirs().log_prob(x).mean()
    with pytest.warns(UserWarning, match="can be trained but not saved as a model file: cannot write down codec .* built by code"):
        fl.fit(ours, x, max_steps=40, learning_rate=1e-2, batch_size=128, progress=False)
    assert theirs().log_prob(x).mean() > before + 0.3


def test_an_existing_flow_is_saved_under_the_name_of_its_family(tmp_path):
    theirs = zuko.flows.NCSF(2, 1, bins=5)
    with pytest.raises(ValueError, match="cannot write down codec .*from_zuko\\(flow, family="):
        fl.save(of_zuko.from_zuko(theirs, 1), tmp_path / "flow.safetensors")
    ours = of_zuko.from_zuko(theirs, 1, family="NCSF", options={"bins": 5})
    fl.save(ours, tmp_path / "flow.safetensors")
    x, c = torch.rand(5, 2), torch.rand(5, 1)
    torch.testing.assert_close(fl.load(tmp_path / "flow.safetensors").log_prob(x, c), theirs(c).log_prob(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of_zuko.from_zuko(zuko.flows.MAF(2, 3)), r"cannot be called at a condition of length 0 .* give from_zuko\(flow, context\)"),
        (lambda: of_zuko.from_zuko(zuko.flows.MAF(2), 3), "cannot be called at a condition of length 3"),
        (lambda: of_zuko.from_zuko(zuko.flows.NSF(2), family="NSF", options={"bins": 4}), r"is of shape \(46, 64\), not \(22, 64\)"),
        (lambda: of_zuko.from_zuko(zuko.flows.NSF(2, slope=0.3), family="NSF"), "is another map"),
    ],
)
def test_flows_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_objects_of_zuko_are_refused():
    with pytest.raises(TypeError, match="expected a zuko.flows.Flow, got GMM"):
        of_zuko.from_zuko(zuko.mixtures.GMM(2, components=2))
    skewed = zuko.lazy.UnconditionalDistribution(torch.distributions.Gamma, torch.ones(2), torch.ones(2))
    with pytest.raises(TypeError, match="only DiagNormal and BoxUniform bases"):
        of_zuko.ZukoBase(skewed)


class Shifted(zuko.lazy.LazyDistribution):
    """A base whose mean is trained and depends on the condition."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, c=None):
        return zuko.distributions.DiagNormal(self.layer(c), torch.full((2,), 0.5).to(c).expand(*c.shape[:-1], 2))


def test_trained_and_conditional_bases_are_taken_over():
    flow = of_zuko.from_zuko(zuko.flows.Flow(zuko.flows.MAF(2, 3).transform, Shifted()), 3)
    c = torch.randn(4, 3)
    x, log_p = flow.sample_and_log_prob(6, c, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob(x, c), log_p, rtol=0, atol=1e-4)
    flow.train().log_prob(x, c).sum().backward()
    assert flow.base.base.layer.weight.grad.abs().sum() > 0


def test_a_box_of_zuko_is_uniform_within_its_bounds():
    box = zuko.lazy.UnconditionalDistribution(zuko.distributions.BoxUniform, torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0]), buffer=True)
    base = of_zuko.ZukoBase(box)
    x = base.sample(1000)
    assert (x >= torch.tensor([-1.0, 0.0])).all()
    assert (x <= torch.tensor([1.0, 3.0])).all()
    torch.testing.assert_close(base.log_prob(x), torch.full((1000,), -math.log(6)))
    assert base.log_prob(torch.tensor([[0.0, -0.1]])) == -torch.inf
