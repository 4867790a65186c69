"""A run that was killed and resumed is the run that was not. Called as a script, this file is the process that is killed."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fluvial as fl
from fluvial.training.batches import Batches

STEPS = 150


class Restless(fl.FreeFormLikelihood):
    """The free-form likelihood with noise from torch's own stream on top, and a few bad steps for the guard to count."""

    delay = 0.0

    def forward(self, flow, batch, progress):
        if progress.step > 60:
            time.sleep(self.delay)
        terms = super().forward(flow, batch, progress)
        bad = progress.step % 40 == 39
        return terms | {"loss": terms["loss"] * (0.5 + torch.rand(())) * (math.nan if bad else 1.0)}


def make_flow():
    torch.manual_seed(11)
    nets = [fl.nn.MLP(2, 2, hidden=[8]) for _ in range(2)]
    return fl.Flow(fl.Chain([fl.codecs.Standardize(2), fl.FreeForm(*nets)]), fl.bases.Normal(2))


def data():
    return fl.Dataset(torch.randn(500, 2, generator=torch.Generator().manual_seed(3)) * 2 + 1, noise=0.05)


def train(directory, *, delay=0.0, **options):
    flow, objective = make_flow(), Restless(adapt_every=7)
    objective.delay = delay
    options = {"max_steps": STEPS, "learning_rate": 3e-3, "validate_every": 25} | options
    history = fl.fit(flow, data(), objective, batch_size=64, seed=4, device="cpu", directory=directory, progress=False, **options)
    return flow, objective, history


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same(a, b):
    for one, other in ((a[0], b[0]), (a[1], b[1])):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert timeless(a[2].rows) == timeless(b[2].rows)
    assert a[2].best["step"] == b[2].best["step"]


def test_killed_and_resumed(tmp_path):
    whole = train(tmp_path / "whole")
    assert whole[2].rows[-1]["skipped"] == 3

    process = subprocess.Popen([sys.executable, __file__, str(tmp_path / "killed")])
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    step = 0
    deadline = time.monotonic() + 120
    while step <= 64 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
        step = torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was to be killed in the middle, but ended by itself"
    state = torch.load(checkpoint, weights_only=True)
    assert 64 < state["step"] < STEPS
    assert 0 < state["batches"]["cursor"] < len(state["batches"]["permutation"])

    resumed = train(tmp_path / "killed", resume=True)
    assert_same(whole, resumed)
    lines = [(tmp_path / name / "history.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    assert timeless(map(json.loads, lines[0])) == timeless(map(json.loads, lines[1]))
    last = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")]
    for name, value in last[0]["flow"].items():
        assert torch.equal(value, last[1]["flow"][name]), "the last weights, not only the best"


def test_a_rollback_after_resuming_is_the_same(tmp_path):
    """The last good state is part of the checkpoint."""

    class Bad(Restless):
        def forward(self, flow, batch, progress):
            if progress.step == self.stop_at:
                raise KeyboardInterrupt
            terms = super().forward(flow, batch, progress)
            return terms | {"loss": terms["loss"] * (math.nan if 60 <= progress.step < 85 else 1.0)}

    results = []
    for name, stop_at, resume in (("a", None, False), ("b", 50, False), ("b", None, True)):
        flow, objective = make_flow(), Bad(adapt_every=7)
        objective.stop_at = stop_at
        options = {"max_steps": STEPS, "learning_rate": 3e-3, "validate_every": 25, "checkpoint_every": 1e9, "schedule": "constant"}
        if stop_at is not None:
            # A checkpoint after every step, the last one before the step that fails.
            options["checkpoint_every"] = 0.0
        with pytest.MonkeyPatch.context() as patch:
            if stop_at is not None:
                patch.setattr("fluvial.training.loop.Loop.finish", lambda self: None)
            history = fl.fit(
                flow, data(), objective, batch_size=64, seed=4, device="cpu", directory=tmp_path / name, progress=False, resume=resume, **options
            )
        results.append((flow, objective, history))
    assert results[0][2].rows[-1]["learning_rate"] == 1.5e-3
    assert_same(results[0], results[2])


def test_a_finished_run_is_given_back_at_once(tmp_path):
    first = train(tmp_path, max_steps=30)
    again = train(tmp_path, max_steps=30, resume=True)
    assert_same(first, again)
    assert again[2].stopped == "max_steps"
    with pytest.warns(UserWarning, match="another budget .max_steps 30 → 60"):
        longer = train(tmp_path, max_steps=60, resume=True)
    assert longer[2].rows[-1]["step"] == 60
    assert timeless(longer[2].rows[:2]) == timeless(first[2].rows)


def test_nothing_to_resume_starts_afresh_and_says_so(tmp_path, capsys):
    flow, objective = make_flow(), Restless()
    options = {"max_steps": 5, "batch_size": 64, "device": "cpu", "directory": tmp_path}
    fl.fit(flow, data(), objective, resume=True, **options)
    assert "no checkpoint" in capsys.readouterr().err


def test_without_resume_an_earlier_run_is_replaced(tmp_path):
    train(tmp_path, max_steps=60)
    train(tmp_path, max_steps=30)
    assert [json.loads(line)["step"] for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [25, 30]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.003 and is 0.001 now"),
        ({"validate_every": 10}, "validate_every was 25 and is 10 now"),
        ({"precision": "64"}, "precision was 32 and is 64 now"),
    ],
)
def test_another_run_is_not_continued(tmp_path, change, message):
    train(tmp_path, max_steps=10)
    with pytest.raises(ValueError, match=message):
        train(tmp_path, max_steps=10, resume=True, **change)


def test_other_data_and_other_models_are_not_continued(tmp_path):
    train(tmp_path, max_steps=10)
    options = {"batch_size": 64, "seed": 4, "device": "cpu", "directory": tmp_path, "max_steps": 10, "learning_rate": 3e-3, "validate_every": 25}
    options |= {"resume": True, "progress": False}
    other = fl.Dataset(data().x + 1, noise=0.05)
    with pytest.raises(ValueError, match="training rows was"):
        fl.fit(make_flow(), other, Restless(adapt_every=7), **options)
    with pytest.raises(ValueError, match="objective was"):
        fl.fit(make_flow(), data(), fl.FreeFormLikelihood(beta=3.0), **options)
    nets = [fl.nn.MLP(2, 2, hidden=[9]) for _ in range(2)]
    flow = fl.Flow(fl.Chain([fl.codecs.Standardize(2), fl.FreeForm(*nets)]), fl.bases.Normal(2))
    with pytest.raises(ValueError, match="flow was"):
        fl.fit(flow, data(), Restless(adapt_every=7), **options)


def test_batches_go_on_where_they_were():
    def batches():
        noise = torch.Generator().manual_seed(1)
        return Batches(data(), 64, seed=2, device=torch.device("cpu"), noise=noise)

    one = batches()
    for _ in range(10):
        one.next()
    state = one.state_dict()
    ahead = [one.next().index for _ in range(20)]
    two = batches()
    two.load_state_dict(state)
    assert all(torch.equal(index, two.next().index) for index in ahead)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), delay=0.2, checkpoint_every=0.0)
