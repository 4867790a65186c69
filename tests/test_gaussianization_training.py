"""Flows fitted layer by layer, trained further by gradient."""

import pytest
import torch

import fluvial as fl
from fluvial import gaussianization
from fluvial.recipes import text
from fluvial.recipes.recipe import Recipe


def nll(flow, rows):
    with torch.no_grad():
        return -flow.log_prob(rows).double().mean().item()


@pytest.fixture(scope="module")
def rows():
    return fl.data.moons(6000, seed=0).x, fl.data.moons(2000, seed=1).x


def layers(x, **settings):
    return gaussianization.fit(x, max_layers=6, bins=8, train_rotations=True, progress=False, **settings)


def test_training_starts_from_the_layers_and_gains(rows):
    x, test = rows
    flow = layers(x)
    fitted = nll(flow, test)
    history = fl.fit(flow, x, max_steps=150, validate_every=50, learning_rate=0.01, batch_size=1024, progress=False)
    assert history.rows[0]["nll"] < fitted  # which networks that begin anew would not reach in 50 steps
    assert nll(flow, test) < fitted - 0.15


def test_rotations_are_trained_where_they_were_made_trainable(rows):
    x, _ = rows
    for trainable in (True, False):
        flow = gaussianization.fit(x, max_layers=2, rotation="haar", bins=8, train_rotations=trainable, progress=False)
        turn = flow.codec.parts[-2]
        before = turn.encode(torch.eye(2)).detach().clone()
        fl.fit(flow, x, max_steps=5, learning_rate=0.01, progress=False)
        assert torch.equal(turn.encode(torch.eye(2)), before) != trainable


def test_layers_are_the_beginning_of_a_deeper_flow(rows):
    x, test = rows
    flow = layers(x)
    more = fl.flows.coupling(2, blocks=2, hidden=[16])
    deeper = fl.Flow(fl.Chain([flow.codec, more.codec]), more.base)
    fitted = nll(flow, test)
    assert nll(deeper, test) == pytest.approx(fitted, abs=1e-4)
    fl.fit(deeper, x, max_steps=100, validate_every=50, learning_rate=3e-3, progress=False)
    assert nll(deeper, test) < fitted - 0.1


@pytest.mark.long
def test_trained_moons_come_near_the_truth(tmp_path):
    """Of 20 000 rows, by the packaged recipe: −1.05 at least."""
    recipe = Recipe.parse("moons-gaussianization-tuned", text("moons-gaussianization-tuned"))
    splits = recipe.splits()
    flow = gaussianization.fit(splits.train, validation=splits.validation, progress=False, **recipe.gaussianize)
    fl.fit(flow, splits.train, validation=splits.validation, **{**recipe.fit, "progress": False})
    assert nll(flow, splits.test.x) <= 1.05
