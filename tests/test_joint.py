"""A product of conditional factors: its density is that of what it draws, and absent factors count for nothing."""

import math

import pytest
import torch

import fluvial as fl


def conditional_flow(features, context, condition):
    nets = [fl.nn.Residual(features, context=context, width=16, blocks=1) for _ in range(2)]
    return fl.Flow(fl.FreeForm(*nets), fl.bases.Normal(features), condition=condition)


@pytest.fixture
def joint():
    torch.manual_seed(0)
    return fl.Joint(
        {"n": fl.bases.Categorical(3), "x1": conditional_flow(2, 1, {"n": 1}), "x2": conditional_flow(3, 4, {"n": 1, "x1": 2, "t": 1})},
        parents={"x1": ["n"], "x2": ["n", "x1", "t"]},
        present={"x1": {"n": [1, 2]}, "x2": {"n": [2]}},
    )


def test_samples_have_the_shape_of_n_and_conditions_and_zeros_where_absent(joint):
    sample = joint.sample((6, 2), {"t": torch.rand(5, 1)})
    assert {name: tuple(value.shape) for name, value in sample.items()} == {"n": (6, 2, 5), "x1": (6, 2, 5, 2), "x2": (6, 2, 5, 3)}
    assert (sample["x1"][sample["n"] == 0] == 0).all()
    assert (sample["x2"][sample["n"] < 2] == 0).all()
    assert (sample["x2"][sample["n"] == 2] != 0).any()


def test_log_prob_is_the_sum_over_present_factors(joint):
    c = {"t": torch.rand(1, 1)}
    x = {"n": torch.tensor([0, 1, 2]), "x1": torch.randn(3, 2), "x2": torch.randn(3, 3)}
    n = x["n"].unsqueeze(-1).float()
    first = joint.factors["x1"].log_prob(x["x1"], {"n": n})
    second = joint.factors["x2"].log_prob(x["x2"], {"n": n, "x1": x["x1"], "t": c["t"].expand(3, 1)})
    expected = -math.log(3) + torch.stack([torch.zeros(()), first[1], first[2] + second[2]])
    torch.testing.assert_close(joint.log_prob(x, c), expected)


def test_what_stands_in_absent_entries_does_not_matter(joint):
    c = {"t": torch.rand(1, 1)}
    x = {"n": torch.tensor([0, 1]), "x1": torch.randn(2, 2), "x2": torch.full((2, 3), torch.nan)}
    before = joint.log_prob(x, c)
    x["x1"][0] = torch.inf
    torch.testing.assert_close(joint.log_prob(x, c), before)
    assert torch.isfinite(before).all()


def test_density_of_draws_sums_to_one_over_a_discrete_product():
    joint = fl.Joint(
        {"a": fl.bases.Categorical(2), "b": fl.bases.Categorical(3, network=fl.nn.MLP(1, 3, hidden=[4]))},
        parents={"b": ["a"]},
        present={"b": {"a": [1]}},
    )
    states = {"a": torch.tensor([0, 1, 1, 1]), "b": torch.tensor([0, 0, 1, 2])}
    assert joint.log_prob(states).exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    sample, log_p = joint.sample_and_log_prob(2000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(joint.log_prob(sample), log_p)
    assert sample["a"].float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_draws_and_their_density_come_from_one_latent(joint):
    c = {"t": torch.rand(4, 1)}
    sample, log_p = joint.sample_and_log_prob(7, c, generator=torch.Generator().manual_seed(3))
    assert log_p.shape == (7, 4)
    with torch.no_grad():
        exact = -math.log(3) * torch.ones(7, 4)
        n = sample["n"].unsqueeze(-1).float()
        exact += torch.where(sample["n"] > 0, joint.factors["x1"].log_prob(sample["x1"], {"n": n}, at="preimage"), 0.0)
        third = {"n": n, "x1": sample["x1"], "t": c["t"].expand(7, 4, 1)}
        exact += torch.where(sample["n"] == 2, joint.factors["x2"].log_prob(sample["x2"], third, at="preimage"), 0.0)
    torch.testing.assert_close(log_p, exact, rtol=1e-4, atol=1e-4)


def test_decode_follows_encode_through_parents(joint):
    c = {"t": torch.rand(1, 1)}
    x = joint.sample(5, c)
    x = {name: value[:, 0] for name, value in x.items()}
    z = joint.encode(x, c)
    assert torch.equal(z["n"], x["n"])
    direct = joint.factors["x1"].reconstruct(x["x1"], {"n": x["n"].unsqueeze(-1).float()})
    back = joint.reconstruct(x, c)
    torch.testing.assert_close(back["x1"], torch.where((x["n"] > 0).unsqueeze(-1), direct, 0.0))


def test_gradients_reach_every_factor(joint):
    joint.train()
    x = {"n": torch.tensor([1, 2, 2]), "x1": torch.randn(3, 2), "x2": torch.randn(3, 3)}
    joint.log_prob(x, {"t": torch.rand(1, 1)}).sum().backward()
    # A shift of the decoder's output changes no volume.
    silent = [name for name, p in joint.named_parameters() if p.grad is None]
    assert silent == ["factors.x1.codec.decoder.last.bias", "factors.x2.codec.decoder.last.bias"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parents": {"y": ["x"]}}, "'y' is not a factor"),
        ({"parents": {"a": ["x"]}}, "do not come earlier"),
        ({"present": {"a": {"x": [1]}}}, "not an earlier factor"),
    ],
)
def test_wrong_structure_is_named(arguments, message):
    factors = {"a": fl.bases.Categorical(2), "x": fl.Flow(fl.codecs.Standardize(1), fl.bases.Normal(1))}
    with pytest.raises(ValueError, match=message):
        fl.Joint(factors, **arguments)


def test_missing_entries_are_named(joint):
    with pytest.raises(ValueError, match=r"lacks the entries \['x2'\]"):
        joint.log_prob({"n": torch.tensor([0]), "x1": torch.zeros(1, 2)})


def test_one_draw_has_no_batch():
    joint = fl.Joint({"n": fl.bases.Categorical(3), "x": fl.Flow(fl.codecs.Standardize(2), fl.bases.Normal(2))})
    sample, log_p = joint.sample_and_log_prob()
    assert (sample["n"].shape, sample["x"].shape, log_p.shape) == ((), (2,), ())
    assert joint.sample()["x"].shape == (2,)


def test_a_flow_of_one_condition_tensor_sees_its_parents_side_by_side():
    joint = fl.Joint(
        {"n": fl.bases.Categorical(3), "x": fl.flows.free_form(2, context=2, width=8, blocks=1)},
        parents={"x": ["n", "t"]},
    )
    sample = joint.sample(5, {"t": torch.rand(5, 1)})
    x = {name: value[0] for name, value in sample.items()}
    t = torch.rand(5, 1)
    expected = joint.factors["x"].log_prob(x["x"], torch.cat([x["n"].unsqueeze(-1).float(), t], -1)) - math.log(3)
    torch.testing.assert_close(joint.log_prob(x, {"t": t}), expected)
