"""A flow as one file: round trips to the bit, refusals, and files that are whole or not there."""

import errno
import importlib
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import fluvial
from fluvial import bases
from fluvial.codecs import Chain, FreeForm, Standardize
from fluvial.data import DataSpec
from fluvial.files import write_atomic
from fluvial.flow import Flow
from fluvial.flows import free_form
from fluvial.io import load, save
from fluvial.joint import Joint
from fluvial.manifolds import Sphere
from fluvial.nn import MLP

HERE = [__name__]


class Net(nn.Module):
    def __init__(self, features, hidden, *, phi):
        super().__init__()
        self.features, self.hidden, self.phi = features, hidden, phi
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip([features] + hidden, hidden + [features]))
        self.register_buffer("frequency", torch.arange(features) + 0.1, persistent=False)

    def forward(self, x):
        x = x * self.frequency
        for layer in self.layers:
            x = self.phi(layer(x))
        return x


def small():
    return Flow(FreeForm(MLP(2, hidden=[4]), MLP(2, hidden=[4])), bases.Normal(2))


def fitted():
    flow = free_form(3, latent=2, width=8, blocks=1)
    for module in flow.modules():
        if isinstance(module, Standardize):
            module.fit_(torch.randn(50, *module.event_shape) * 3 + 1)
    return flow


def layers():
    block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2))
    encoder = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.GELU(approximate="tanh"), block)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Softplus(beta=2.0), nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 1, 2), nn.Flatten())
    encoder(torch.randn(20, 3))
    return Flow(FreeForm(encoder, decoder), bases.StudentT(2, df=4.0, learnable=True))


def tied():
    net = MLP(2, hidden=[4])
    return Flow(Chain([Standardize(2), FreeForm(net, net)]), bases.Normal(2))


def tied_weights():
    flow = Flow(FreeForm(nn.Linear(2, 2), nn.Linear(2, 2)), bases.Normal(2))
    flow.codec.decoder.weight = flow.codec.encoder.weight
    return flow


def mixed():
    flow = small()
    flow.codec.encoder.double()
    return flow


def views():
    flow = Flow(FreeForm(nn.Linear(2, 2), nn.Linear(2, 2)), bases.Normal(2))
    memory = torch.randn(6, 2)
    flow.codec.encoder.weight = nn.Parameter(memory[:2].T)
    flow.codec.decoder.weight = nn.Parameter(memory[1:3])
    return flow


def broken():
    flow = small()
    with torch.no_grad():
        flow.codec.encoder.layers[0].bias[:2] = torch.tensor([torch.nan, torch.inf])
    return flow


def joint():
    return Joint({"n": bases.Categorical(3), "x": small()}, parents={"x": []}, present={"x": {"n": [1, 2]}})


FLOWS = {
    "free form": small,
    "fitted, bottleneck": fitted,
    "layers of torch": layers,
    "sphere": lambda: free_form(manifold=Sphere(2), context=2, width=8, blocks=1),
    "bumps": lambda: Flow(FreeForm(nn.Linear(3, 3), nn.Linear(3, 3)), bases.VonMisesFisherMixture(Sphere(2), components=3), manifold=Sphere(2)),
    "bijection": lambda: Flow(Chain([Standardize(2), Chain([Standardize(2)])]), bases.Normal(2)),
    "tied": tied,
    "tied weights": tied_weights,
    "double": lambda: small().double(),
    "bfloat": lambda: small().bfloat16(),
    "mixed": mixed,
    "views": views,
    "not finite": broken,
    "user": lambda: Flow(FreeForm(Net(2, [3, 4], phi=nn.Tanh()), Net(2, [], phi=nn.Identity())), bases.Normal(2)).double(),
    "joint": joint,
}


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_round_trip_to_the_bit(make, tmp_path):
    torch.manual_seed(0)
    flow = make()
    save(flow, tmp_path / "flow.safetensors")
    before = torch.get_rng_state()
    again = load(tmp_path / "flow.safetensors", allow=HERE)

    assert torch.equal(torch.get_rng_state(), before)
    assert type(again) is type(flow)
    assert not any(module.training for module in again.modules())
    for read in ("state_dict", "named_buffers"):
        wanted, got = dict(getattr(flow, read)()), dict(getattr(again, read)())
        assert list(got) == list(wanted)
        for name, tensor in wanted.items():
            assert got[name].dtype == tensor.dtype
            # As bytes, because NaN is not equal to itself; numpy has no bfloat16.
            assert got[name].double().numpy(force=True).tobytes() == tensor.double().numpy(force=True).tobytes()
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in flow.parameters()]
    save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "flow.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_density_and_samples_are_the_same(tmp_path):
    flow = fitted().eval()
    save(flow, tmp_path / "flow.safetensors")
    again = load(str(tmp_path / "flow.safetensors"), device="cpu")
    x = torch.randn(7, 3)
    assert torch.equal(flow.log_prob(x), again.log_prob(x))
    assert torch.equal(flow.sample(5, generator=torch.Generator().manual_seed(1)), again.sample(5, generator=torch.Generator().manual_seed(1)))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    save(tied(), tmp_path / "tied.safetensors")
    names = safetensors.torch.load_file(tmp_path / "tied.safetensors")
    assert not any(name.startswith("codec.parts.1.decoder") for name in names)
    flow = load(tmp_path / "tied.safetensors")
    assert flow.codec.parts[1].encoder is flow.codec.parts[1].decoder

    save(tied_weights(), tmp_path / "weights.safetensors")
    assert "codec.decoder.weight" not in safetensors.torch.load_file(tmp_path / "weights.safetensors")
    flow = load(tmp_path / "weights.safetensors")
    assert flow.codec.encoder.weight is flow.codec.decoder.weight
    assert flow.codec.encoder.bias is not flow.codec.decoder.bias


def test_the_data_specification_travels_with_the_flow(tmp_path):
    flow = free_form(manifold=Sphere(2), width=8, blocks=1)
    flow.spec = DataSpec(3, manifold=Sphere(2), condition={"T": 1}, names=("x", "y", "z"), noise=(0.1, 0.0, 0.2), dropped=("w",))
    save(flow, tmp_path / "flow.safetensors")
    assert load(tmp_path / "flow.safetensors").spec == flow.spec
    save(small(), tmp_path / "flow.safetensors")
    assert load(tmp_path / "flow.safetensors").spec is None


MINE = """
from torch import nn

class Mine(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n, self.layer = n, nn.Linear(n, n)

    def forward(self, x):
        return self.layer(x)
"""

READ = """
import sys, fluvial as fl
try:
    fl.load("m.safetensors")
except ValueError as error:
    print(error, "mynets" in sys.modules)
print(fl.load("m.safetensors", allow=["mynets"]).codec.encoder)
"""


def test_a_class_of_ones_own_loads_in_another_process(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("mynets").Mine
    save(Flow(FreeForm(mine(2), mine(2)), bases.Normal(2)), tmp_path / "m.safetensors")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "class path 'mynets.Mine' is not allowed" in done.stdout
    assert 'allow=["mynets"] if you trust this file False' in done.stdout
    assert "(layer): Linear" in done.stdout


def test_save_refuses(tmp_path):
    with pytest.raises(TypeError, match="Flow or a Joint, got MLP"):
        save(MLP(2), tmp_path / "flow.safetensors")
    with pytest.raises(ValueError, match=r"must end in .safetensors, got 'flow.pt'; write 'flow.safetensors'"):
        save(small(), tmp_path / "flow.pt")
    with pytest.raises(FileNotFoundError, match="there is no folder .*absent; create it first"):
        save(small(), tmp_path / "absent" / "flow.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        save(small(), tmp_path / "folder.safetensors")
    with pytest.raises(ValueError, match=r"codec.encoder \(.*Net\): its argument phi is the function tanh"):
        save(Flow(FreeForm(Net(2, [3], phi=torch.tanh), MLP(2)), bases.Normal(2)), tmp_path / "flow.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


# ------------------------------------------------------------------------------------------------------------------- hostile files


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def rewritten(path, *, tensors=None, **changes):
    """A file like that of a small flow, with other header entries (None: absent) or other tensors."""
    save(small(), path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"] | changes
    stored = safetensors.torch.load_file(path) | (tensors or {})
    safetensors.torch.save_file(
        {name: t for name, t in stored.items() if t is not None}, path, {k: v for k, v in header.items() if v is not None} or None
    )


def flow_config(**encoder):
    mlp = {"class_path": "fluvial.nn.MLP", "init_args": {"features": 2, "hidden": [4]}}
    codec = {"class_path": "fluvial.FreeForm", "init_args": {"encoder": encoder or mlp, "decoder": mlp}}
    base = {"class_path": "fluvial.bases.Normal", "init_args": {"event_shape": 2}}
    return json.dumps({"class_path": "fluvial.Flow", "init_args": {"codec": codec, "base": base}})


def nested(depth):
    return '{"class_path": "torch.nn.Sequential", "init_args": {"args": [' * depth + "]}}" * depth


REFUSED = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "a few bytes": (lambda path: path.write_bytes(b"abc"), "not a safetensors file"),
    "text": (lambda path: path.write_text("class_path: os.system\n" * 10), "not a safetensors file"),
    "numpy": (lambda path: (np.savez(path.with_suffix(".npz"), a=np.zeros(3)), path.with_suffix(".npz").rename(path)), "zip archive"),
    "torch.save": (lambda path: torch.save(small().state_dict(), path), "zip archive.*around a pickle; fluvial never unpickles"),
    "old torch.save": (lambda path: torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False), "pickle; fluvial never unpickles"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb(path.with_name("created")))), "is a pickle; fluvial never unpickles"),
    "pickle, protocol 0": (lambda path: path.write_bytes(pickle.dumps(Bomb(path.with_name("created")), 0)), "not a safetensors file"),
    "huge header": (lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}" * 100), "claims a header of 4611686018427387904 bytes"),
    "no header": (lambda path: path.write_bytes((2).to_bytes(8, "little") + b"{}"), "its header has no configuration"),
    "bad header": (lambda path: path.write_bytes((8).to_bytes(8, "little") + b"{" * 8), "is damaged or cut off"),
    "other safetensors": (lambda path: safetensors.torch.save_file({"a": torch.zeros(2)}, path, {"format": "pt"}), "header has no configuration"),
    "no configuration": (lambda path: rewritten(path, config=None), "header has no configuration"),
    "later format": (
        lambda path: rewritten(path, format="fluvial/2", fluvial="9.1"),
        "format 2, written by fluvial 9.1; fluvial .* reads up to 1: update",
    ),
    "odd format": (lambda path: rewritten(path, format="fluvial/-1"), "header has no configuration"),
    "not JSON": (lambda path: rewritten(path, config="{'class_path'"), "config in the header cannot be read as JSON"),
    "a list": (lambda path: rewritten(path, config="[]"), "config in the header must be a mapping, got a list"),
    "no class": (lambda path: rewritten(path, config="{}"), "expected {'class_path'"),
    "foreign class": (lambda path: rewritten(path, config=flow_config(class_path="os.system")), "class path 'os.system' is not allowed"),
    "foreign module": (lambda path: rewritten(path, config=flow_config(class_path="fluvial.io.os.system")), "cannot be imported"),
    "not a flow": (lambda path: rewritten(path, config='{"class_path": "torch.nn.Tanh"}'), "holds a Tanh, not a flow"),
    "deep": (lambda path: rewritten(path, config=nested(100)), "nested more than"),
    "very deep": (lambda path: rewritten(path, config=nested(100_000)), "nested more than|cannot be read as JSON"),
    "large": (
        lambda path: rewritten(path, config=flow_config(class_path="torch.nn.Linear", init_args={"in_features": 10**5, "out_features": 10**5})),
        "far larger than the tensors",
    ),
    "overflow": (
        lambda path: rewritten(path, config=flow_config(class_path="torch.nn.Linear", init_args={"in_features": 10**30, "out_features": 2})),
        "is the most that is built",
    ),
    "endless": (
        lambda path: rewritten(path, config=flow_config(class_path="fluvial.nn.MLP", init_args={"features": 2, "hidden": [1] * 50_000})),
        "far larger than the tensors",
    ),
    "wrong type": (
        lambda path: rewritten(path, config=flow_config(class_path="fluvial.nn.MLP", init_args={"features": "2"})),
        "codec.encoder: fluvial.nn.MLP cannot be built",
    ),
    "bad specification": (lambda path: rewritten(path, spec='{"event_shape": "x"}'), "data specification in the header"),
    "foreign manifold": (
        lambda path: rewritten(path, spec='{"event_shape": [3], "manifold": {"class_path": "os.system"}}'),
        "class path 'os.system' is not allowed",
    ),
    "missing tensor": (
        lambda path: rewritten(path, tensors={"codec.encoder.layers.0.weight": None}),
        r"tensor codec.encoder.layers.0.weight of shape \(4, 2\) is missing",
    ),
    "unexpected tensor": (lambda path: rewritten(path, tensors={"extra": torch.zeros(2)}), r"extra of shape \(2,\) has no place"),
    "mis-shaped tensor": (
        lambda path: rewritten(path, tensors={"codec.encoder.layers.0.bias": torch.zeros(5)}),
        r"layers.0.bias must be float32 of shape \(4,\), got float32 of shape \(5,\)",
    ),
    "mis-typed tensor": (lambda path: rewritten(path, tensors={"codec.encoder.layers.0.bias": torch.zeros(4, dtype=torch.int64)}), "got int64"),
    "tied to nothing": (lambda path: rewritten(path, tied='{"a": "b"}'), "tensor b is missing, which a shares"),
    "tied to a list": (lambda path: rewritten(path, tied='{"a": [1]}'), "missing, which a shares"),
}


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_clear_line(write, message, tmp_path):
    path = tmp_path / "flow.safetensors"
    write(path)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["flow.safetensors"]


def test_the_example_pickle_would_have_done_harm(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "created"))).close()
    assert (tmp_path / "created").exists()


def test_a_valid_header_of_any_length_is_not_taken_for_a_pickle(tmp_path):
    # 0x0480 bytes of header begin with the two bytes of a pickle.
    path = tmp_path / "flow.safetensors"
    save(small(), path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    target = next(n for n in range(0x80, 10**6, 0x100) if n >= length and (n >> 8) % 256 in (2, 3, 4, 5))
    path.write_bytes(target.to_bytes(8, "little") + content[8 : 8 + length] + b" " * (target - length) + content[8 + length :])
    assert path.read_bytes()[:1] == b"\x80"
    load(path)


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "flow.safetensors"
    save(small(), path)
    content = path.read_bytes()
    for length in (1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut off|not a safetensors file"):
            load(path)


def test_missing_files_are_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*absent.safetensors"):
        load(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match="is a folder; name the file in it"):
        load(tmp_path)
    save(small(), tmp_path / "flow.safetensors")
    with pytest.raises(TypeError, match="write allow="):
        load(tmp_path / "flow.safetensors", allow="mypkg")


# ------------------------------------------------------------------------------------------------------------------- whole files


SAVE = """
import torch, fluvial as fl
torch.manual_seed(0)
fl.save(fl.Flow(fl.FreeForm(fl.nn.MLP(2, hidden=[4]), fl.nn.MLP(2, hidden=[4])), fl.bases.Normal(2)), "flow.safetensors")
"""


def test_the_same_flow_gives_the_same_bytes_in_another_process(tmp_path):
    subprocess.run([sys.executable, "-c", SAVE], cwd=tmp_path, check=True)
    torch.manual_seed(0)
    save(small(), tmp_path / "here.safetensors")
    assert (tmp_path / "here.safetensors").read_bytes() == (tmp_path / "flow.safetensors").read_bytes()
    with safetensors.safe_open(tmp_path / "here.safetensors", framework="pt") as file:
        header = file.metadata()
    assert {**header, "config": None} == {
        "format": "fluvial/1", "fluvial": fluvial.__version__, "torch": torch.__version__, "dtype": "float32", "config": None
    }  # fmt: skip


def full(file):
    file.write(b"part")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def wrapped(file):
    try:
        full(file)
    except OSError:
        raise RuntimeError("unexpected pos 64 vs 0")  # as torch.save does it


@pytest.mark.parametrize("writer", [full, wrapped])
def test_full_disk(writer, tmp_path):
    path = tmp_path / "out.bin"
    with pytest.raises(OSError, match=f"disk full while writing {path}; nothing was left behind") as caught:
        write_atomic(path, writer)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"before")
    with pytest.raises(OSError, match=f"disk full while writing {path}; the previous file is untouched"):
        write_atomic(path, writer)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError("in the writer"), FileNotFoundError(errno.ENOENT, "missing", "other.txt")])
def test_other_failures_pass_through_and_leave_nothing(error, tmp_path):
    path = tmp_path / "out.bin"
    path.write_bytes(b"before")

    def writer(file):
        file.write(b"part")
        raise error

    with pytest.raises(type(error)) as caught:
        write_atomic(path, writer)
    assert caught.value is error
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


def test_failing_replacement_keeps_the_old_model(tmp_path, monkeypatch):
    path = tmp_path / "flow.safetensors"
    save(small(), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied", *map(str, args[:1]))))
    with pytest.raises(PermissionError, match=f"cannot write {path}: Permission denied; the previous file is untouched"):
        save(small(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["flow.safetensors"]


def test_writers_of_every_kind(tmp_path):
    array = np.arange(5.0)
    write_atomic(tmp_path / "a.npy", lambda file: np.save(file, array))
    write_atomic(tmp_path / "a.npz", lambda file: np.savez(file, a=array))
    write_atomic(tmp_path / "a.pt", lambda file: torch.save({"a": torch.zeros(2)}, file))
    write_atomic(str(tmp_path / "a.bin"), b"bytes")
    write_atomic(tmp_path / "closed.bin", lambda file: (file.write(b"closed"), file.close()))
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    assert np.array_equal(np.load(tmp_path / "a.npz")["a"], array)
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["a"], torch.zeros(2))
    assert (tmp_path / "a.bin").read_bytes() == b"bytes"
    assert (tmp_path / "closed.bin").read_bytes() == b"closed"
    assert len(list(tmp_path.iterdir())) == 5


def test_links_modes_and_devices_survive(tmp_path):
    real = tmp_path / "real.bin"
    real.write_bytes(b"old")
    real.chmod(0o640)
    (tmp_path / "link.bin").symlink_to(real)
    write_atomic(tmp_path / "link.bin", b"new")
    assert (tmp_path / "link.bin").is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640
    write_atomic(os.devnull, b"gone")
    assert not Path(os.devnull).is_file()


# The writers whose messages differ: plain writes, numpy (no error number), torch.save (another exception), save itself.
SMALL_DISK = """
import sys, numpy as np, torch, fluvial as fl
from fluvial.files import write_atomic
folder = sys.argv[1]
flow = fl.Flow(fl.FreeForm(fl.nn.MLP(2), fl.nn.MLP(2)), fl.bases.Normal(2))
if sys.argv[2] == "limit":
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
writers = {
    "bytes": lambda path: write_atomic(path, bytes(2**20)),
    "pieces": lambda path: write_atomic(path, lambda file: [file.write(bytes(1000)) for _ in range(1000)]),
    "numpy": lambda path: write_atomic(path, lambda file: np.save(file, np.zeros(2**17))),
    "npz": lambda path: write_atomic(path, lambda file: np.savez(file, a=np.zeros(2**17))),
    "torch": lambda path: write_atomic(path, lambda file: torch.save(torch.zeros(2**17), file)),
    "model.safetensors": lambda path: fl.save(flow, path),
}
for name, write in writers.items():
    try:
        write(f"{folder}/{name}")
    except OSError as error:
        print(name, "|", error)
"""


def run_on_small_disk(folder, how):
    names = ["bytes", "pieces", "numpy", "npz", "torch", "model.safetensors"]
    for name in names:
        (folder / name).write_bytes(b"whole")
    done = subprocess.run([sys.executable, "-c", SMALL_DISK, str(folder), how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert list(lines) == names
    assert all((folder / name).read_bytes() == b"whole" for name in names)
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    return lines


def test_a_disk_that_fills_leaves_whole_files(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)], capture_output=True) if os.geteuid() == 0 else None
    if mounted is None or mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root; the test with a limit on the file size stands in for it")
    try:
        for name, line in run_on_small_disk(tmp_path, "tmpfs").items():
            assert f"disk full while writing {tmp_path}/{name}; the previous file is untouched" in line
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_limit_on_the_file_size_leaves_whole_files(tmp_path):
    assert resource.RLIMIT_FSIZE is not None
    for name, line in run_on_small_disk(tmp_path, "limit").items():
        assert f"cannot write {tmp_path}/{name}: " in line
        assert line.endswith("the previous file is untouched")
