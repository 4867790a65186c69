"""fit from the outside: what it trains, refuses, restores and records."""

import io
import json
import math
import re
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from torch import nn

import fluvial as fl
from fluvial.objectives import Batch, Objective, weighted_mean


class Autoencode(Objective):
    """A cheap objective: reconstruct, with small latents; the monitor can be dictated by step."""

    def __init__(self, monitors=None, patience_of=None):
        super().__init__()
        self.monitors = monitors
        self.seen = []

    def forward(self, flow, batch, progress):
        self.seen.append(batch)
        z = flow.encode(batch.x, batch.c)
        error = (batch.x - flow.decode(z, batch.c)).square().sum(-1)
        loss = weighted_mean(error + 0.01 * z.square().sum(-1), batch.weight)
        return {"loss": loss, "error": error.detach().mean()}

    def validate(self, flow, batch, progress):
        error = (batch.x - flow.reconstruct(batch.x, batch.c)).square().sum(-1)
        if self.monitors is not None:
            return {"monitor": torch.tensor(self.monitors.get(progress.step, 100.0)), "error": error}
        return {"monitor": weighted_mean(error, batch.weight), "error": error, "loss": error.mean()}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def small_flow(features=2, *, width=8, condition=None):
    nets = [fl.nn.MLP(features, features, context=condition or 0, hidden=[width]) for _ in range(2)]
    parts = [fl.codecs.Standardize(features), fl.FreeForm(*nets)]
    return fl.Flow(fl.Chain(parts), fl.bases.Normal(features), condition=condition)


def points(n=400, features=2, seed=1):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed)) * 3 + 5


def quick(flow, data, objective=None, **options):
    options = {"max_steps": 40, "batch_size": 64, "validate_every": 10, "progress": False, "device": "cpu"} | options
    return fl.fit(flow, data, Autoencode() if objective is None else objective, **options)


def weights(flow):
    return {name: value.clone() for name, value in flow.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------------------------------------- learning


def test_it_learns_and_leaves_the_flow_ready():
    flow = small_flow()
    history = quick(flow, points(), max_steps=300, learning_rate=1e-2)
    assert history.stopped == "max_steps"
    assert history.rows[-1]["step"] == 300
    assert history.best["error"] < 0.5 * history.rows[0]["error"]
    assert not any(module.training for module in flow.modules())
    assert flow.spec.event_shape == (2,)
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_free_form_likelihood_is_the_default_and_reports_exact_figures():
    flow = small_flow(width=16)
    history = fl.fit(flow, points(), max_steps=30, batch_size=64, validate_every=15, progress=False, device="cpu")
    row = history.rows[-1]
    assert {"nll", "nll_error", "reconstruction", "loss", "surrogate", "monitor"} <= row.keys()
    held_out = fl.data.as_dataset(points()).split((0.9, 0.1, 0.0), seed=0).validation
    nll = -flow.log_prob(held_out.x).mean().item()
    assert history.best["nll"] == pytest.approx(nll, abs=1e-4)


def test_codecs_see_the_training_rows_only():
    x = points()
    train = fl.data.as_dataset(x).split((0.9, 0.1, 0.0), seed=3).train
    flow = small_flow()
    quick(flow, x, seed=3, max_steps=1)
    torch.testing.assert_close(flow.codec.parts[0].loc, train.x.mean(0))
    assert not torch.allclose(flow.codec.parts[0].loc, x.mean(0), atol=1e-4)


def test_the_same_seed_gives_the_same_weights_and_leaves_torch_alone():
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(1)
        flow = small_flow()
        before = torch.get_rng_state()
        quick(flow, fl.Dataset(points(), noise=0.1), seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        results.append(weights(flow))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_every_pass_visits_every_row_once():
    objective = Autoencode()
    quick(small_flow(), points(), objective, max_epochs=2, max_steps=None, batch_size=60, validation=0.1)
    assert len(objective.seen) == 12
    for k in (0, 6):
        index = torch.cat([batch.index for batch in objective.seen[k : k + 6]])
        assert sorted(index.tolist()) == list(range(360))
    first, second = (torch.cat([batch.index for batch in objective.seen[k : k + 6]]) for k in (0, 6))
    assert not torch.equal(first, second)


def test_fewer_rows_than_a_batch_are_one_batch():
    objective = Autoencode()
    quick(small_flow(), points(40), objective, max_steps=3, batch_size=512)
    assert [len(batch.x) for batch in objective.seen] == [36, 36, 36]


def test_noise_reaches_the_batches_and_the_clean_rows_stay_known():
    objective = Autoencode()
    quick(small_flow(), fl.Dataset(points(), noise=0.5), objective, max_steps=4)
    difference = torch.cat([batch.x - batch.clean for batch in objective.seen])
    assert difference.std().item() == pytest.approx(0.5, rel=0.15)


def test_conditions_reach_the_networks():
    x = points()
    c = x[:, :1] + 0.1 * points(seed=2)[:, :1]
    objective = Autoencode()
    quick(small_flow(condition=1), (x, c), objective, max_steps=3)
    batch = objective.seen[0]
    train = fl.data.as_dataset((x, c)).split((0.9, 0.1, 0.0), seed=0).train
    assert torch.equal(batch.c, train.c[batch.index])


def test_weights_reach_objective_and_figures():
    x, weight = points(), torch.rand(400, generator=torch.Generator().manual_seed(0))
    objective = Autoencode()
    flow = small_flow()
    history = quick(flow, (x, None, weight), objective, max_steps=10)
    held_out = fl.data.as_dataset((x, None, weight)).split((0.9, 0.1, 0.0), seed=0).validation
    error = (held_out.x - flow.reconstruct(held_out.x)).square().sum(-1)
    assert history.best["error"] == pytest.approx(((held_out.weight * error).sum() / held_out.weight.sum()).item(), rel=1e-4)
    assert all(batch.weight is not None for batch in objective.seen)


def test_precision_64_and_bf16():
    flow = small_flow()
    quick(flow, points(), precision="64", max_steps=5)
    assert {p.dtype for p in flow.parameters()} == {torch.float64}
    flow = small_flow()
    history = quick(flow, points(), precision="bf16", max_steps=5, validate_every=5)
    assert {p.dtype for p in flow.parameters()} == {torch.float32}
    assert math.isfinite(history.rows[-1]["loss"])


class ByItself(Objective):
    """Needs no data: pulls samples towards 3."""

    def forward(self, flow, batch, progress):
        z = torch.randn(len(batch.x), 2, generator=progress.generator)
        return {"loss": (flow.decode(z) - 3).square().mean()}

    def validate(self, flow, batch, progress):
        return {"monitor": self(flow, batch, progress)["loss"]}


def test_objectives_without_data_are_judged_on_fixed_noise():
    flow = small_flow()
    history = quick(flow, None, ByItself(), max_steps=200, learning_rate=1e-2, validate_every=50)
    assert history.best["monitor"] < 0.5 * history.rows[0]["monitor"]
    assert history.best["epoch"] == 0
    frozen = quick(flow, None, ByItself(), max_steps=20, learning_rate=1e-12, validate_every=10)
    assert frozen.rows[0]["monitor"] == pytest.approx(frozen.rows[1]["monitor"], rel=1e-6)


class Controlled(Autoencode):
    """Counts how it is adapted."""

    adapt_every = 7
    adapt_rows = 16

    def __init__(self):
        super().__init__()
        self.register_buffer("strength", torch.tensor(0.0))
        self.rows = []

    def adapt(self, flow, batch, progress):
        assert not torch.is_grad_enabled()
        assert not flow.training
        self.rows.append(batch.x)
        self.strength += 1
        return {"strength": self.strength}


def test_controllers_move_on_the_same_few_rows():
    objective = Controlled()
    history = quick(small_flow(), points(), objective, max_steps=30)
    assert len(objective.rows) == 4
    assert all(torch.equal(rows, objective.rows[0]) and len(rows) == 16 for rows in objective.rows)
    assert [row.get("strength") for row in history.rows] == [1.0, 2.0, 4.0]
    # It belongs to the state that best weights bring back.
    assert objective.strength == history.best["strength"]


def joint_data(n=600):
    count = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(0))
    x = points(n) + 10 * count[:, None]
    x[count == 0] = math.nan
    return {"n": count, "x": x}


def make_joint():
    return fl.Joint({"n": fl.bases.Categorical(2), "x": fl.Flow(fl.codecs.Standardize(2), fl.bases.Normal(2))}, present={"x": {"n": [1]}})


def test_a_joint_is_trained_on_named_parts():
    joint = make_joint()
    x = joint_data()
    weight = 1 + 2.0 * (x["n"] == 1)
    history = fl.fit(joint, (x, None, weight), max_steps=200, batch_size=64, learning_rate=0.05, validate_every=50, progress=False, device="cpu")
    expected = ((x["n"] == 1) * weight).sum() / weight.sum()
    assert joint.factors["n"].log_prob(torch.tensor(1)).exp().item() == pytest.approx(expected.item(), abs=0.05)
    torch.testing.assert_close(joint.factors["x"].codec.loc, x["x"][x["n"] == 1].mean(0), atol=0.3, rtol=0)
    assert math.isfinite(history.best["nll"])


def test_the_factors_of_a_joint_scale_their_conditions():
    joint = fl.Joint({"a": fl.flows.coupling(1, blocks=1, hidden=[4]), "b": fl.flows.coupling(1, 1, blocks=1, hidden=[4])}, parents={"b": ["a"]})
    rows = {"a": 300 + 50 * torch.randn(200, 1), "b": torch.randn(200, 1)}
    fl.fit(joint, rows, max_steps=2, progress=False, device="cpu")
    context = joint.factors["b"].context
    assert context.is_fitted
    torch.testing.assert_close(context.loc, rows["a"].mean(0), rtol=0.1, atol=0)


def test_bad_parts_of_a_joint_are_named():
    x = joint_data()
    row = int((x["n"] == 1).nonzero()[3])
    x["x"][row, 0] = math.inf
    with pytest.raises(ValueError, match=f"row {row} of factor 'x' is not finite"):
        fl.fit(make_joint(), x, device="cpu")
    with pytest.raises(ValueError, match="factors .'n', 'x'., the data have .'n'."):
        fl.fit(make_joint(), {"n": x["n"]}, device="cpu")
    with pytest.raises(ValueError, match=r"factor 'x' must have samples of shape \(2,\), got \(3,\)"):
        fl.fit(make_joint(), {"n": x["n"], "x": torch.zeros(600, 3)}, device="cpu")
    with pytest.raises(ValueError, match="must have 600 rows"):
        fl.fit(make_joint(), {"n": x["n"], "x": torch.zeros(5, 2)}, device="cpu")
    with pytest.raises(TypeError, match="a Joint is trained on a dict"):
        fl.fit(make_joint(), points(), device="cpu")


def test_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(quick(small_flow(), points(), max_steps=10)))
    thread.start()
    thread.join()
    assert results[0].stopped == "max_steps"


def test_what_cannot_be_compiled_runs_without(monkeypatch):
    def refuse(module):
        def call(*arguments):
            torch.rand(1)
            raise RuntimeError("unsupported\nand much more")

        return call

    def run(**options):
        torch.manual_seed(0)
        flow = small_flow()
        quick(flow, fl.Dataset(points(), noise=0.1), **options)
        return weights(flow)

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(UserWarning, match=r"cannot be compiled, going on without .RuntimeError: unsupported.$"):
        fallen_back = run(compile=True)
    assert same(fallen_back, run())


class Terminal(io.StringIO):
    """Claims to be one."""

    def isatty(self):
        return True


def test_the_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    quick(small_flow(), points(), progress=True)
    shown = sys.stderr.getvalue()
    last = shown.rstrip("\n").split("\r")[-1]
    assert "100%" in last
    assert "step 40 · loss" in last
    assert "best" in last
    assert re.search(r"error \d+(\.\d+)? ± \d", last)


# ----------------------------------------------------------------------------------------------------------------- best and stopping


def test_the_best_weights_are_restored():
    caught = {}

    class Spy(Autoencode):
        def validate(self, flow, batch, progress):
            caught[progress.step] = weights(flow)
            return super().validate(flow, batch, progress)

    flow = small_flow()
    history = quick(flow, points(), Spy({10: 3.0, 20: 1.0, 30: 2.0, 40: math.nan}))
    assert history.best["step"] == 20
    assert same(weights(flow), caught[20])
    assert not same(weights(flow), caught[40])


def test_patience():
    history = quick(small_flow(), points(), Autoencode({20: 1.0}), max_steps=200, patience=3)
    assert history.rows[-1]["step"] == 50
    assert history.stopped == "patience: no improvement in 3 validations"
    history = quick(small_flow(), points(), Autoencode({20: 1.0}), max_steps=400, validate_every=10)
    assert history.rows[-1]["step"] == 140, "30 % of 400 steps after step 20"
    history = quick(small_flow(), points(), Autoencode({20: 1.0}), max_steps=200, patience=math.inf)
    assert history.stopped == "max_steps"


def test_a_monitor_that_is_never_finite_is_said():
    with pytest.warns(UserWarning, match="no validation gave a finite monitor"):
        history = quick(small_flow(), points(), Autoencode(dict.fromkeys(range(50), math.nan)))
    assert history.best is None


def test_max_time_ends_annealed():
    history = quick(small_flow(), points(), max_steps=None, max_time=1.0, validate_every=None, warmup=0)
    assert history.stopped == "max_time"
    assert history.rows[-1]["learning_rate"] < 1e-4
    assert len(history.rows) >= 2
    assert history.rows[-1]["seconds"] >= 1.0


def test_about_fifty_validations_by_default():
    history = quick(small_flow(), points(), max_steps=1500, validate_every=None, patience=math.inf)
    assert [row["step"] for row in history.rows] == list(range(30, 1501, 30))


def test_short_runs_are_not_spent_on_validation():
    history = quick(small_flow(), points(), max_steps=60, validate_every=None, patience=math.inf)
    assert [row["step"] for row in history.rows] == [20, 40, 60]


# ---------------------------------------------------------------------------------------------------------------------- the record


def test_history(tmp_path, capsys):
    history = quick(small_flow(), points(), directory=tmp_path / "new" / "run", progress=True)
    assert [row["step"] for row in history.rows] == [10, 20, 30, 40]
    row = history.rows[0]
    assert {"step", "epoch", "seconds", "learning_rate", "skipped", "loss", "train_error", "monitor", "error", "error_error"} <= row.keys()
    assert row["validation_loss"] == pytest.approx(row["error"], rel=1e-5)
    assert row["epoch"] == pytest.approx(10 / 5)
    lines = (tmp_path / "new" / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.rows
    history.to_csv(tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_text().splitlines()[0].startswith("step,epoch,seconds,learning_rate,skipped,loss,train_error")
    assert history.column("step") == [10, 20, 30, 40]
    with pytest.raises(KeyError, match="no column 'nll'"):
        history.column("nll")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert " 50%  step 20" in shown.err
    assert len(shown.err.splitlines()) == 4, "a line at every tenth that a reading meets, and not a word from Lightning"


def test_the_model_file_holds_the_best_weights(tmp_path):
    flow = small_flow()
    quick(flow, points(), Autoencode({20: 1.0}), directory=tmp_path, checkpoint_every=0)
    assert same(weights(fl.load(tmp_path / "model.safetensors")), weights(flow))
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_silence(capfd, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(small_flow(), points())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_lightning_is_loaded_by_fit_only():
    code = "import sys, fluvial; fluvial.fit; print({'lightning', 'sklearn', 'pandas', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


# -------------------------------------------------------------------------------------------------------------------- param groups


class TwoGroups(Autoencode):
    """Encoder and decoder apart."""

    def __init__(self, encoder=None, decoder=None):
        super().__init__()
        self.groups = {"encoder": encoder or {}, "decoder": decoder or {}}

    def param_groups(self, flow):
        nets = flow.codec.parts[1]
        return [{"params": list(getattr(nets, name).parameters()), **options} for name, options in self.groups.items()]


def moved(flow, before, part):
    return max((flow.state_dict()[name] - value).abs().max().item() for name, value in before.items() if f".{part}." in name)


def test_groups_have_learning_rates_of_their_own():
    flow = small_flow()
    before = weights(flow)
    quick(flow, points(), TwoGroups(encoder={"lr_scale": 1e-4}), max_steps=1, validate_every=1, warmup=0, schedule="constant", learning_rate=1e-2)
    assert moved(flow, before, "decoder") == pytest.approx(1e-2, rel=0.01)
    assert moved(flow, before, "encoder") == pytest.approx(1e-6, rel=0.2)


def test_clipping_is_by_group_norm():
    torch.manual_seed(0)
    flow = small_flow()
    optimizer = fl.training.optimizers.GuardedAdam(list(flow.parameters()), learning_rate=0.1, weight_decay=0.0, clip=0.5)
    flow.decode(flow.encode(points())).square().sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in flow.parameters()])
    norm = optimizer.norm()
    assert norm.item() == pytest.approx(gradient.norm().item(), rel=1e-5)
    optimizer.step(norm, torch.tensor(0.0), 1.0)
    momentum = torch.cat([optimizer.adam.state[p]["exp_avg"].flatten() for p in flow.parameters()])
    torch.testing.assert_close(momentum, 0.1 * gradient * 0.5 / norm)


# ------------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number, got -1.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a positive number, got nan"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1"),
        ({"max_time": 0.0}, "max_time must be a positive number"),
        ({"schedule": "linear"}, "schedule must be one of 'cosine', 'one-cycle', 'constant', got 'linear'"),
        ({"precision": "16"}, "precision '16' has no range"),
        ({"precision": "8"}, "precision must be one of"),
        ({"device": "cuda:99"}, "device 'cuda:99' does not exist"),
        ({"device": "tpu"}, "device must be 'auto'"),
        ({"validation": 1.5}, "validation must be a share"),
        ({"validation": 0}, "validation must be a share"),
        ({"resume": True}, "needs the directory"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        quick(small_flow(), points(), **options)


def test_shapes_are_checked_before_training():
    with pytest.raises(ValueError, match=r"data must have samples of shape \(2,\) on Euclidean\(2\), got \(3,\)"):
        quick(small_flow(), points(features=3))
    with pytest.raises(ValueError, match=r"the flow takes a condition of shape \(1,\), the data have none"):
        quick(small_flow(condition=1), points())
    with pytest.raises(ValueError, match=r"condition of shape \(1,\), the data have one of shape \(2,\)"):
        quick(small_flow(condition=1), (points(), points()))
    with pytest.raises(ValueError, match=r"validation must have samples of shape \(2,\)"):
        quick(small_flow(), points(), validation=points(features=3))
    with pytest.raises(ValueError, match="no row of 400 is left to validate on"):
        quick(small_flow(), fl.Dataset(points(), official=[torch.arange(300), torch.arange(0), torch.arange(300, 400)]))


def test_bad_rows_are_named_before_training():
    x = points()
    x[17, 1] = math.nan
    objective = Autoencode()
    with pytest.raises(ValueError, match="17"):
        quick(small_flow(), x, objective)
    assert not objective.seen
    with pytest.raises(ValueError, match="17"):
        quick(small_flow(), points(), objective, validation=x)


def test_wrong_kinds():
    with pytest.raises(TypeError, match="flow must be a Flow, got Tensor"):
        fl.fit(points(), small_flow())
    with pytest.raises(TypeError, match="objective must be a fluvial Objective, got MSELoss"):
        quick(small_flow(), points(), nn.MSELoss())
    with pytest.raises(ValueError, match="without data there are no epochs"):
        quick(small_flow(), None, ByItself(), max_steps=None, max_epochs=2)
    flow = small_flow()
    for parameter in flow.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train"):
        quick(flow, points())


def test_a_network_that_cannot_be_written_down_is_named(tmp_path):
    class Odd(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.net = nn.Linear(width, width)

        def forward(self, x):
            return self.net(x)

    flow = fl.Flow(fl.FreeForm(Odd(2), Odd(2)), fl.bases.Normal(2))
    with pytest.warns(UserWarning, match="trained but not saved"):
        quick(flow, points(), directory=tmp_path, max_steps=10)
    assert (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "model.safetensors").exists()


class NoMonitor(Autoencode):
    def validate(self, flow, batch, progress):
        return {"error": torch.tensor(1.0)}


class NoLoss(Autoencode):
    def forward(self, flow, batch, progress):
        return {"los": batch.x.sum()}


def test_objectives_must_keep_their_word():
    with pytest.raises(ValueError, match="NoMonitor.validate must return a 'monitor'.*got .'error'"):
        quick(small_flow(), points(), NoMonitor())
    with pytest.raises(ValueError, match="NoLoss.forward must return a scalar 'loss'.*got .'los'"):
        quick(small_flow(), points(), NoLoss())


def test_an_error_of_the_objective_passes_and_the_best_weights_are_back():
    class Fails(Autoencode):
        def forward(self, flow, batch, progress):
            if progress.step == 25:
                raise RuntimeError("out of cheese")
            return super().forward(flow, batch, progress)

        def validate(self, flow, batch, progress):
            self.kept = weights(flow)
            return {"monitor": torch.tensor(-float(progress.step))}

    flow, objective = small_flow(), Fails()
    with pytest.raises(RuntimeError, match="out of cheese"):
        quick(flow, points(), objective)
    assert same(weights(flow), objective.kept)
    assert not flow.training


def test_batch_is_exported():
    assert Batch(x=torch.zeros(1, 2)).weight is None


# ------------------------------------------------------------------------------------------------------------------- at the door


class Shift(fl.Bijection):
    """x − shift, the least that maximum likelihood can train."""

    def __init__(self):
        super().__init__()
        self.domain = self.codomain = fl.Euclidean(1)
        self.shift = torch.nn.Parameter(torch.zeros(1))

    def encode(self, x, c=None):
        return x - self.shift

    def decode(self, z, c=None):
        return z + self.shift

    def encode_ladj(self, x, c=None):
        return self.encode(x), x.new_zeros(len(x))

    def decode_ladj(self, z, c=None):
        return self.decode(z), z.new_zeros(len(z))


def test_uneven_weights_count_in_every_batch_size():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=generator)
    weight = torch.ones(4000)
    x[::10] += 4
    weight[::10] = 20
    # Most batches of 16 have one or two heavy rows; dividing by the batch's own weight would pull the answer to 2.3.
    flow = fl.Flow(Shift(), fl.bases.Normal(1))
    fl.fit(flow, (x, None, weight), max_steps=1500, batch_size=16, learning_rate=0.02, validate_every=1500, progress=False)
    assert flow.codec.shift.item() == pytest.approx(float((weight[:, None] * x).sum() / weight.sum()), abs=0.15)


def test_dependent_columns_are_named_unless_there_is_a_bottleneck():
    x = fl.data.moons(300).x
    x = torch.cat([x, x.sum(1, keepdim=True)], 1)
    with pytest.raises(ValueError, match="columns 0, 1, 2 are linear combinations"):
        fl.fit(fl.flows.free_form(3, width=8, blocks=1), x, max_steps=2, progress=False)
    fl.fit(fl.flows.free_form(3, latent=2, width=8, blocks=1), x, max_steps=2, progress=False)


def test_a_condition_nobody_takes_is_named():
    x = fl.data.moons(300).x
    with pytest.raises(ValueError, match="the flow was built without one"):
        fl.fit(fl.flows.free_form(2, width=8, blocks=1), (x, x[:, :1]), max_steps=2, progress=False)


def test_conditions_are_brought_to_order_one_on_the_training_rows():
    x = fl.data.moons(400).x
    c = 1900 + 120 * torch.rand(400, 1)
    flow = fl.flows.free_form(2, context=1, width=8, blocks=1)
    fl.fit(flow, (x, c), max_steps=2, validation=(x[:20], c[:20]), progress=False)
    seen = flow.context(c)
    assert seen.mean().abs() < 1e-4
    assert seen.std() == pytest.approx(1, abs=1e-2)


def test_float64_data_that_float32_cannot_tell_apart_are_refused_unless_trained_in_float64():
    x = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e9
    with pytest.raises(ValueError, match="float32 does not resolve"):
        fl.fit(fl.flows.free_form(2, width=8, blocks=1), x, max_steps=2, progress=False)
    flow = fl.flows.free_form(2, width=8, blocks=1)
    fl.fit(flow, x, max_steps=2, progress=False, precision="64")
    assert flow.sample(100).std(0).min() > 0.1


def test_a_run_of_skipped_steps_says_so():
    class Broken(Autoencode):
        def forward(self, flow, batch, progress):
            return {"loss": super().forward(flow, batch, progress)["loss"] * math.nan}

    with pytest.warns(UserWarning, match="in all 5 steps loss or gradients were not finite"):
        quick(small_flow(), points(), objective=Broken(), max_steps=5)
