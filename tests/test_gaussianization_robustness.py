"""Resumed fits know their data and their checkpoints; rows far out, held out or without weight do no harm."""

import numpy as np
import pytest
import torch

import fluvial as fl
from fluvial.codecs import Standardize, Whiten
from fluvial.gaussianization import entropy, export_numpy, fit, predict_layers
from fluvial.gaussianization.numpy_flow import load as load_numpy
from fluvial.recipes.recipe import Recipe

N = 10_000  # more than a block of rows


def quickly(data, **settings):
    return fit(data, **{"max_layers": 2, "progress": False, **settings})


@pytest.fixture
def rows():
    return fl.data.moons(N, seed=0).x


@pytest.mark.parametrize("row", [9000, 9999])
def test_one_number_changed_anywhere_is_other_data(rows, tmp_path, row):
    quickly(rows, directory=tmp_path)
    other = rows.clone()
    other[row, 1] += 1e-3
    with pytest.raises(ValueError, match="digest of the data was"):
        quickly(other, directory=tmp_path, resume=True, max_layers=3)


def test_other_conditions_and_other_rows_held_out_are_other_data(rows, tmp_path):
    c = torch.randn(N, 1, generator=torch.Generator().manual_seed(0))
    quickly((rows, c), validation=(rows[:500], c[:500]), directory=tmp_path)
    shuffled = torch.cat([c[:9000], c[9000:].flip(0)])
    for data, held_out in (((rows, shuffled), (rows[:500], c[:500])), ((rows, c), (rows[1:501], c[1:501]))):
        with pytest.raises(ValueError, match="was .* and is .* now"):
            quickly(data, validation=held_out, directory=tmp_path, resume=True, max_layers=3)


def damage(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("state"), "not a whole checkpoint"),
        (lambda state: state.update(history=[]), "not a whole checkpoint"),
        (lambda state: state["layers"].append(1), "not a whole checkpoint"),
        (lambda state: state["state"].update({next(iter(state["state"])): torch.zeros(7)}), "not a whole checkpoint"),
        (lambda state: state["history"][-1].update(train_nll=float("nan")), "not a whole checkpoint"),
        (lambda state: state["state"]["codec.parts.1.log_slopes"].add_(0.5), "is damaged: after layer 1 the NLL"),
    ],
)
def test_a_damaged_checkpoint_is_refused(rows, tmp_path, change, message):
    quickly(rows[:2000], directory=tmp_path)
    damage(tmp_path / "checkpoint.pt", change)
    with pytest.raises(ValueError, match=message):
        quickly(rows[:2000], directory=tmp_path, resume=True, max_layers=3)


@pytest.mark.parametrize("far", [1e7, 1e9, 1e12])
def test_a_row_held_out_does_not_move_the_first_map(rows, far):
    held_out = rows[:300].clone()
    held_out[0] = torch.tensor([far, -far / 2])
    with_far, without = (quickly(rows, validation=part).codec.parts[0].parts[0] for part in (held_out, rows[:300]))
    assert isinstance(with_far, Standardize)
    for name in ("loc", "scale"):
        torch.testing.assert_close(getattr(with_far, name), getattr(without, name), rtol=1e-5, atol=1e-5)


def whitening(data, **settings):
    return next(part for part in quickly(data, whiten=True, **settings).codec.modules() if isinstance(part, Whiten))


def test_whitening_looks_at_training_rows_with_weight_alone(rows):
    stretched = rows[:3000] * torch.tensor([30.0, 0.1])
    one, other = (whitening(rows, validation=part) for part in (rows[:3000], stretched))
    assert torch.equal(one.axes, other.axes)
    weight = torch.cat([torch.ones(N), torch.zeros(3000)])
    weighed = whitening((torch.cat([rows, stretched]), None, weight), validation=(rows[:3000], None, torch.ones(3000)))
    torch.testing.assert_close(weighed.axes.abs(), one.axes.abs(), rtol=0, atol=0.05)


@pytest.mark.parametrize("conditioning", ["kernel", "joint"])
def test_rows_without_weight_take_no_part(conditioning):
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(6000, 1, generator=generator)
    x = c + 0.3 * torch.randn(6000, 1, generator=generator)
    weight = (torch.arange(6000) < 3000).double()
    astray = torch.where(weight.unsqueeze(1) > 0, c, c + 8).float()  # so far away that anchors there would have nothing
    flow = quickly((x, astray, weight), validation=(x[:500], c[:500], weight[:500]), conditioning=conditioning, max_layers=6)
    truth = torch.distributions.Normal(c[:500], 0.3).log_prob(x[:500]).mean().item()
    assert flow.log_prob(x[:500], c[:500]).mean().item() > truth - 0.15


def test_whitened_flows_are_exported(rows, tmp_path):
    flow = quickly(rows, whiten=True)
    export_numpy(flow, tmp_path / "flow.npz")
    exported = load_numpy(tmp_path / "flow.npz").log_prob(rows[:100].numpy())
    np.testing.assert_allclose(exported, flow.double().log_prob(rows[:100].double()).numpy(), rtol=1e-10)


def test_what_is_asked_wrongly_is_answered():
    with pytest.raises(ValueError, match="gaussianize must be a mapping of arguments"):
        Recipe.parse("mine", "gaussianize: []\ndata: fluvial.data.moons\n")
    with pytest.raises(ValueError, match="resume=True needs the directory"):
        quickly(torch.randn(100, 2), resume=True)
    with pytest.raises(ValueError, match="rows have the shape"):
        predict_layers(np.random.default_rng(0).normal(size=100))
    half = torch.where(torch.arange(1000) % 2 == 0, 0.0, torch.randn(1000)).unsqueeze(1)
    with pytest.raises(ValueError, match="column 0 has an atom: 50% of its rows are 0"):
        entropy(torch.cat([half, torch.randn(1000, 1)], 1))


@pytest.mark.filterwarnings("ignore:fit. columns")
def test_columns_of_steps_are_known_to_training_and_conditions_to_the_description():
    generator = torch.Generator().manual_seed(0)
    counts = torch.stack([torch.poisson(torch.full((2000,), 4.0), generator=generator), torch.randn(2000, generator=generator)], -1)
    flow = quickly(counts, train_rotations=True)
    assert flow.spec.dequantize == (1.0, 0.0)
    fl.fit(flow, counts, max_steps=3, progress=False)
    assert flow.spec.dequantize == (1.0, 0.0)
    assert fl.metrics.figures(flow, counts)["nll"].value < 5
