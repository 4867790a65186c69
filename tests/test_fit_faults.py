"""fit when things go wrong: numbers that are not finite, interruption, a full disk."""

import contextlib
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import fluvial as fl
from fluvial.cli import main
from fluvial.objectives import Objective
from fluvial.training.guard import Guard


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class Autoencode(Objective):
    """Reconstruct; `trouble(step, terms)` may change what is returned."""

    def __init__(self, trouble=None):
        super().__init__()
        self._trouble = trouble

    def forward(self, flow, batch, progress):
        z = flow.encode(batch.x)
        terms = {"loss": (batch.x - flow.decode(z)).square().sum(-1).mean(), "size": z.detach().square().mean()}
        return terms if self._trouble is None else self._trouble(progress.step, terms)

    def validate(self, flow, batch, progress):
        return {"monitor": (batch.x - flow.reconstruct(batch.x)).square().sum(-1).mean()}


def small_flow():
    nets = [fl.nn.MLP(2, 2, hidden=[8]) for _ in range(2)]
    return fl.Flow(fl.Chain([fl.codecs.Standardize(2), fl.FreeForm(*nets)]), fl.bases.Normal(2))


def points(n=400):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1)) * 3 + 5


def quick(flow, objective, **options):
    options = {"max_steps": 60, "batch_size": 64, "validate_every": 10, "progress": False, "device": "cpu"} | options
    return fl.fit(flow, points(), objective, **options)


def weights(flow):
    return {name: value.clone() for name, value in flow.state_dict().items()}


def finite(flow):
    return all(bool(value.isfinite().all()) for value in flow.state_dict().values())


# ----------------------------------------------------------------------------------------------------------------------- non-finite


def test_a_bad_step_is_left_out_and_counted():
    def trouble(step, terms):
        return terms | {"loss": terms["loss"] * math.nan, "size": torch.tensor(math.inf)} if step in (5, 6) else terms

    flow = small_flow()
    history = quick(flow, Autoencode(trouble))
    assert history.stopped == "max_steps"
    assert [row["skipped"] for row in history.rows] == [2] * 6
    assert finite(flow)
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["size"]) for row in history.rows)


def test_a_skipped_step_moves_nothing_not_even_moments():
    states = []

    def trouble(step, terms):
        return terms | {"loss": terms["loss"] * math.nan} if step == 3 else terms

    class Spy(Autoencode):
        def forward(self, flow, batch, progress):
            states.append(weights(flow))
            return super().forward(flow, batch, progress)

    quick(small_flow(), Spy(trouble), max_steps=6, validate_every=6)
    assert all(torch.equal(states[3][name], states[4][name]) for name in states[3])
    assert not all(torch.equal(states[4][name], states[5][name]) for name in states[3])


def test_only_the_group_with_the_bad_gradient_is_left_out():
    class Split(Autoencode):
        def param_groups(self, flow):
            nets = flow.codec.parts[1]
            return [{"params": list(nets.encoder.parameters())}, {"params": list(nets.decoder.parameters())}]

        def forward(self, flow, batch, progress):
            # √|w − w| has value 0 and derivative NaN.
            encoder = flow.codec.parts[1].encoder
            spoilt = sum(torch.sqrt((p - p.detach()).abs()).sum() for p in encoder.parameters())
            return {"loss": (batch.x - flow.reconstruct(batch.x)).square().mean() + spoilt}

    flow = small_flow()
    before = weights(flow)
    with pytest.warns(UserWarning, match="in all 5 steps"):
        history = quick(flow, Split(), max_steps=5, validate_every=5)
    assert history.rows[-1]["skipped"] == 5
    for name, value in flow.state_dict().items():
        if ".encoder." in name:
            assert torch.equal(value, before[name])
        if ".decoder." in name and "weight" in name:
            assert not torch.equal(value, before[name])


def test_rollback_halves_the_learning_rate_and_training_goes_on():
    def trouble(step, terms):
        return terms | {"loss": terms["loss"] * math.nan, "size": torch.tensor(math.nan)} if 25 <= step < 50 else terms

    flow = small_flow()
    history = quick(flow, Autoencode(trouble), max_steps=80, schedule="constant", warmup=0)
    assert history.stopped == "max_steps"
    rates = history.column("learning_rate")
    assert rates[0] == 1e-3
    assert rates[-1] == 5e-4
    assert history.rows[-1]["skipped"] == 25
    assert finite(flow)


def test_hopeless_training_stops_with_a_usable_model():
    def trouble(step, terms):
        return terms | {"loss": terms["loss"] * math.nan, "size": torch.tensor(math.nan)} if step >= 25 else terms

    flow = small_flow()
    with pytest.warns(UserWarning, match="training stopped at step .*'size' was not finite"):
        history = quick(flow, Autoencode(trouble), max_steps=1000)
    assert history.stopped.startswith("non-finite: the term 'size' was not finite in")
    assert "learning rate" in history.stopped
    assert history.rows[-1]["step"] < 150
    assert finite(flow)
    assert history.best["monitor"] == pytest.approx(Autoencode().validate(flow, held_out(), None)["monitor"].item(), rel=1e-5)


def held_out():
    return fl.Batch(fl.data.as_dataset(points()).split((0.9, 0.1, 0.0), seed=0).validation.x)


def test_weights_that_run_away_are_brought_back():
    """An infinite weight gives finite gradients nowhere; without a return to good weights nothing would ever be finite again."""

    class Poison(Autoencode):
        def forward(self, flow, batch, progress):
            if progress.step == 30:
                with torch.no_grad():
                    next(flow.codec.parts[1].parameters()).fill_(math.inf)
            return super().forward(flow, batch, progress)

    flow = small_flow()
    history = quick(flow, Poison(), max_steps=100)
    assert history.stopped == "max_steps"
    assert history.rows[-1]["skipped"] >= 20
    assert finite(flow)
    assert math.isfinite(history.rows[-1]["monitor"])


def test_guard_counts():
    guard = Guard()

    def observe(loss, norm):
        return guard.observe({"loss": torch.tensor(loss), "other": torch.tensor(1.0)}, [torch.tensor(norm), torch.tensor(1.0)]).tolist()

    assert observe(1.0, 1.0) == [0, 0]
    assert observe(1.0, math.inf) == [1, 0]
    assert observe(math.nan, 1.0) == [1, 1]
    assert guard.read() == 2
    assert guard.means() == {"loss": 1.0, "other": 1.0}
    assert guard.skipped == 2
    assert guard.verdict() is None
    for k in range(52):
        observe(math.nan if k % 2 else 1.0, 1.0)
        observe(1.0, math.nan)
        observe(1.0, 1.0)
        guard.read()
    assert guard.verdict() == "80 of the last 159 steps"
    guard.rolled_back()
    assert guard.verdict() is None
    for _ in range(20):
        observe(math.nan, 1.0)
    guard.read()
    assert guard.verdict() == "20 steps in a row"


# ---------------------------------------------------------------------------------------------------------------------- interruption

main_thread_only = pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread only")


def at(wanted, action):
    def trouble(step, terms):
        if step == wanted:
            action()
        return terms

    return trouble


@main_thread_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_the_best_so_far(number, tmp_path):
    handler = signal.getsignal(number)
    flow = small_flow()
    history = quick(flow, Autoencode(at(25, lambda: os.kill(os.getpid(), number))), directory=tmp_path)
    assert history.stopped == "interrupted"
    assert [row["step"] for row in history.rows] == [10, 20]
    assert not flow.training
    assert signal.getsignal(number) is handler
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 26
    assert history.best["monitor"] == pytest.approx(Autoencode().validate(flow, held_out(), None)["monitor"].item(), rel=1e-5)
    again = quick(flow, Autoencode(), directory=tmp_path, resume=True)
    assert again.stopped == "max_steps"
    assert [row["step"] for row in again.rows] == [10, 20, 30, 40, 50, 60]


@main_thread_only
def test_a_second_ctrl_c_aborts():
    def twice():
        # To this very thread, one after the other: two signals that are pending at once count as one.
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    flow = small_flow()
    with pytest.raises(KeyboardInterrupt):
        quick(flow, Autoencode(at(25, twice)))
    assert signal.getsignal(signal.SIGINT) is handler
    assert not flow.training


def test_an_interrupt_raised_inside_a_step():
    def stop():
        raise KeyboardInterrupt

    history = quick(small_flow(), Autoencode(at(25, stop)))
    assert history.stopped == "interrupted"
    assert history.best["step"] == 20


# ---------------------------------------------------------------------------------------------------------------------------- disk


@contextlib.contextmanager
def small_disk(folder):
    """A file system of 300 kB, or, where mounting is not permitted, None."""
    mounted = (
        shutil.which("mount")
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True).returncode == 0
    )
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def check_full(directory, full, relieve, mention):
    flow = small_flow()
    with pytest.raises(OSError, match=mention) as caught:
        quick(flow, Autoencode(at(33, full)), directory=directory, checkpoint_every=0, max_steps=100)
    relieve()
    assert "best weights" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    state = torch.load(directory / "checkpoint.pt", weights_only=True)
    assert 20 <= state["step"] <= 40
    assert sorted(path.name for path in directory.iterdir()) == ["checkpoint.pt", "history.jsonl", "model.safetensors"]
    assert not flow.training
    assert state["best"]["row"]["monitor"] == pytest.approx(Autoencode().validate(flow, held_out(), None)["monitor"].item(), rel=1e-5)
    fl.load(directory / "model.safetensors")
    again = quick(small_flow(), Autoencode(), directory=directory, max_steps=100, resume=True)
    assert again.stopped == "max_steps"
    assert [row["step"] for row in again.rows] == list(range(10, 101, 10))
    assert len((directory / "history.jsonl").read_text().splitlines()) == 10


def test_a_disk_that_fills(tmp_path):
    with small_disk(tmp_path) as disk:
        if disk is None:
            pytest.skip("mounting a file system is not permitted here")
        directory, filler = disk / "run", disk / "filler"

        def fill():
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(b"0" * 4096)

        check_full(directory, fill, filler.unlink, "disk full")


def test_files_that_may_not_grow(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        check_full(
            Path(tmp_path),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard)),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
            "cannot write",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    quick(small_flow(), Autoencode(), directory=tmp_path, max_steps=10)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        quick(small_flow(), Autoencode(), directory=tmp_path, max_steps=10, resume=True)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="has format None"):
        quick(small_flow(), Autoencode(), directory=tmp_path, max_steps=10, resume=True)
    torch.save(Path("x"), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        quick(small_flow(), Autoencode(), directory=tmp_path, max_steps=10, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give the path of a folder"):
        quick(small_flow(), Autoencode(), directory=tmp_path / "file")


def test_parts_that_a_killed_process_left_are_removed(tmp_path):
    for name in (".checkpoint.pt.0123456789ab.part", ".model.safetensors.0123456789ab.part"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".mine.part").write_bytes(b"kept")
    quick(small_flow(), Autoencode(), directory=tmp_path, max_steps=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.part", "checkpoint.pt", "history.jsonl", "model.safetensors"]


def test_two_runs_cannot_share_a_folder(tmp_path, capsys):
    quick(small_flow(), Autoencode(), directory=tmp_path, max_steps=10)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code = f"import time; from pathlib import Path; from fluvial.training.checkpoint import locked\nwith locked(Path({str(tmp_path)!r})):\n"
    code += "    print('locked', flush=True)\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            for resume in (False, True):
                with pytest.raises(ValueError, match="another fit is running in"):
                    quick(small_flow(), Autoencode(), directory=tmp_path, max_steps=20, resume=resume)
            assert main(["fit", "moons", "-o", str(tmp_path), "--overwrite"]) == 2
            assert "another fit is running in" in capsys.readouterr().err
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        finally:
            process.kill()
    # The system has taken the lock back from the killed process.
    quick(small_flow(), Autoencode(), directory=tmp_path, max_steps=20)


# ------------------------------------------------------------------------------------------------------------------- out of bounds


def test_rows_outside_the_bounds_are_named_before_anything_is_trained():
    def flow(low, high):
        return fl.Flow(fl.Chain([fl.codecs.Bounds(low, high), fl.codecs.ActNorm(2)]), fl.bases.Normal(2))

    def fit(low, high, data, **options):
        fl.fit(flow(low, high), data, max_steps=1, progress=False, device="cpu", **options)

    x = torch.rand(400, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 1.2])
    n = int((x[:, 1] > 1).sum())
    with pytest.raises(ValueError, match=rf"{n} of 400 rows of the data are outside the bounds low=0, high=1 of Bounds in column 'width'"):
        fit((0, 0), (1, 1), fl.Dataset(x, names=("height", "width")))
    with pytest.raises(ValueError, match=rf"{400 - n} of 400 rows of the data are outside the bounds low=1 of Bounds in column 1"):
        fit((0, 1), (1, None), x)
    inside = x[x[:, 1] < 1]
    with pytest.raises(ValueError, match="rows of the validation are outside"):
        fit((0, 0), (1, 1), inside, validation=x)
    with pytest.raises(ValueError, match="noise that training adds"):
        fit((0, 0), (1, 1), fl.Dataset(inside, noise=0.1))
    fit((0, 0), (1, None), x)


@pytest.mark.parametrize("words", [["moons-splines", "--flow.hidden", "[1000000000000000]"], ["moons-splines", "--flow.hidden", f"[{10**21}]"]])
def test_sizes_beyond_memory_are_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert len(lines[0]) < 300
    assert lines[0].startswith("fluvial: error: ")


def test_an_error_that_is_ours_is_not_hidden(monkeypatch):
    def broken(words):
        raise RuntimeError("input tensors refer to a single memory location")

    monkeypatch.setattr("fluvial.cli._run", broken)
    with pytest.raises(RuntimeError, match="single memory location"):
        main(["recipes"])


def test_a_condition_that_nothing_reads_is_refused():
    x, c = torch.randn(100, 2), torch.randn(100, 1)
    with pytest.raises(ValueError, match=r"built without one; build it with context="):
        fl.fit(fl.flows.coupling(2, blocks=1, hidden=[4]), (x, c), max_steps=1, progress=False)


def test_a_conditional_factor_without_parents_is_refused():
    with pytest.raises(ValueError, match="factor 'p' takes a condition but has no parents"):
        fl.Joint({"p": fl.flows.coupling(2, 1, blocks=1, hidden=[4])})
