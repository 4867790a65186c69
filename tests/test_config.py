"""Writing a model down as class paths and arguments, and building it again."""

import json
import math
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from fluvial import bases
from fluvial.codecs import Chain, FreeForm, Inverse, Standardize
from fluvial.codecs.chain import _BijectiveChain, _BijectiveInverse
from fluvial.config import build, describe, verified, writable
from fluvial.flow import Flow
from fluvial.flows import free_form
from fluvial.joint import Joint
from fluvial.manifolds import Euclidean, Sphere
from fluvial.nn import MLP, ConvolutionalDecoder, ConvolutionalEncoder, Residual
from fluvial.objectives import FreeFormLikelihood, MaximumLikelihood, WeightedSum

HERE = [__name__]


class Net(nn.Module):
    """Keeps its arguments, as the rule asks."""

    def __init__(self, width, sizes=(3,), *, options=None, phi=None):
        super().__init__()
        self.width, self.sizes, self.options, self.phi = width, sizes, options, phi
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return self.layer(x)


class Forgetful(Net):
    def __init__(self, width, depth):
        super().__init__(width)


class Doubling(Net):
    def __init__(self, width):
        super().__init__(2 * width)


class Grown(Net):
    def __init__(self, width):
        super().__init__(width)
        if not hasattr(Grown, "first"):
            Grown.first = self
            self.extra = nn.Linear(1, 1)


class Annotated(nn.Module):
    def __init__(self, shape: tuple[int, ...], sizes: list[int], heads: nn.ModuleList):
        super().__init__()
        self.shape, self.sizes, self.heads = shape, sizes, heads


class Starred(nn.Module):
    def __init__(self, first, /, *nets, scale=1.0, **others):
        super().__init__()
        self.first, self.nets, self.scale, self.others = first, nn.ModuleList(nets), scale, others


class Bounded(nn.Module):
    def __init__(self, low):
        super().__init__()
        self.register_buffer("low", low)


class Plain(nn.Module):
    def forward(self, x):
        return torch.sin(x)


# Every layer and container of torch.nn that a network may be made of is one line here.
LAYERS = {
    "linear": lambda: nn.Linear(2, 3, bias=False),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "identity": lambda: nn.Identity(),
    "conv": lambda: nn.Conv2d(2, 4, (3, 1), stride=2, padding="valid", groups=2, bias=False, padding_mode="zeros"),
    "circular conv": lambda: nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"),
    "transposed conv": lambda: nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1, output_padding=1, dilation=2),
    "batch norm": lambda: nn.BatchNorm2d(3, eps=1e-3, momentum=None),
    "batch norm, plain": lambda: nn.BatchNorm1d(3, affine=False, track_running_stats=False),
    "layer norm": lambda: nn.LayerNorm((2, 3), bias=False),
    "group norm": lambda: nn.GroupNorm(2, 4, affine=False),
    "instance norm": lambda: nn.InstanceNorm1d(3, affine=True),
    "rms norm": lambda: nn.RMSNorm(4),
    "embedding": lambda: nn.Embedding(5, 3, padding_idx=1),
    "prelu": lambda: nn.PReLU(3, init=0.5),
    "leaky": lambda: nn.LeakyReLU(0.3),
    "hardtanh": lambda: nn.Hardtanh(-2, 2),
    "softplus": lambda: nn.Softplus(beta=2.0),
    "gelu": lambda: nn.GELU(approximate="tanh"),
    "softmax": lambda: nn.Softmax(dim=-1),
    "sigmoid": lambda: nn.Sigmoid(),
    "dropout": lambda: nn.Dropout(0.3),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 3))),
    "pool": lambda: nn.MaxPool2d(2, stride=(2, 1), ceil_mode=True),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d((None, 7)),
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "shuffle": lambda: nn.PixelShuffle(2),
    "pad": lambda: nn.ZeroPad2d((1, 2, 0, 1)),
    "distance": lambda: nn.PairwiseDistance(p=1.0),
    "gru": lambda: nn.GRU(3, 4, num_layers=2, bias=False, batch_first=True, bidirectional=True),
    "lstm": lambda: nn.LSTM(3, 4, proj_size=2),
    "rnn": lambda: nn.RNN(3, 4, nonlinearity="relu"),
    "gru cell": lambda: nn.GRUCell(3, 4, bias=False),
    "attention": lambda: nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, kdim=4, batch_first=True),
    "transformer": lambda: transformer(),
    "transformer decoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, dim_feedforward=16, bias=False), 2),
    "sequential": lambda: nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 2))),
    "named sequential": lambda: nn.Sequential(OrderedDict(first=nn.Linear(2, 3), second=nn.ReLU())),
    "empty sequential": lambda: nn.Sequential(),
    "list": lambda: nn.ModuleList([nn.Linear(1, 1), nn.ModuleDict({"b": nn.Linear(1, 2), "a": nn.Tanh()})]),
    "repeated": lambda: repeated(nn.Linear(2, 2)),
}

# As are the parts of fluvial.
PARTS = {
    "mlp": lambda: MLP(2, 3, context=1, hidden=[4, 5], activation="tanh"),
    "residual": lambda: Residual(2, width=8, blocks=1),
    "encoder": lambda: ConvolutionalEncoder((1, 8, 8), 5, channels=[4, 8], width=8, blocks=1),
    "decoder": lambda: ConvolutionalDecoder(5, (1, 8, 8), channels=[4, 8], width=8, blocks=1),
    "free form": lambda: FreeForm(nn.Linear(3, 2), nn.Linear(2, 3)),
    "standardize": lambda: Standardize((1, 8, 8), isotropic=True),
    "chain": lambda: Chain([Standardize(2), Chain([FreeForm(Net(2), Net(2))]), Inverse(Standardize(2))]),
    "normal": lambda: bases.Normal((2, 3)),
    "student": lambda: bases.StudentT(3, df=2.0, learnable=True),
    "uniform": lambda: bases.UniformOn(Sphere(2)),
    "bumps": lambda: bases.VonMisesFisherMixture(Sphere(2), components=3, concentration=5.0, seed=4),
    "categorical": lambda: bases.Categorical(3, network=nn.Linear(2, 3)),
    "wrapped": lambda: bases.WrappedNormal(Sphere(2), scale=0.5, components=3, network=MLP(1, 3, hidden=[4])),
    "flow": lambda: Flow(FreeForm(MLP(3, context=2), MLP(3, context=2)), bases.UniformOn(Sphere(2)), manifold=Sphere(2), condition=2),
    "stack": lambda: free_form((1, 8, 8), latent=3, channels=(4, 8), width=8),
    "joint": lambda: Joint({"n": bases.Categorical(2), "x": bases.Normal(3)}, parents={"x": ["n"]}, present={"x": {"n": [1]}}),
    "objective": lambda: FreeFormLikelihood(beta="auto"),
    "objectives": lambda: WeightedSum({"a": FreeFormLikelihood(beta=3.0), "b": MaximumLikelihood()}, weights={"a": [(0.0, 1.0), (1.0, 0.5)]}),
    "dict of conditions": lambda: Flow(Standardize(2), bases.Normal(2), condition={"T": 1, "field": (8, 8)}, context=Plain()),
    "user": lambda: Net(2, [4, 5], options={"a": (1, 2), "b": None, "c": [True, 0.5, "x", {"d": 1e-300}]}, phi=nn.Tanh()),
    "annotated": lambda: Annotated((1, 2), [3, 4], nn.ModuleList([nn.Linear(1, 1)])),
    "starred": lambda: Starred(1, nn.Linear(1, 2), nn.Tanh(), scale=2.0, colour="red", size=(1, 2)),
    "tensor": lambda: Bounded(torch.tensor([[0.1, -math.inf]], dtype=torch.float64)),
    "no constructor": lambda: Plain(),
}


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.2, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)


def repeated(layer):
    return nn.Sequential(layer, nn.Tanh(), layer)


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("make", [*LAYERS.values(), *PARTS.values()], ids=[*LAYERS, *PARTS])
def test_description_builds_the_same(make):
    module = make()
    config = verified(module)
    again = build(json.loads(json.dumps(config)), allow=HERE)

    assert type(again) is type(module)
    assert describe(again) == config
    assert shapes(again) == shapes(module)
    assert repr(again) == repr(module)


def test_no_layer_of_torch_is_misread():
    # Either a layer is described so that it builds again, or it is refused by name.
    for make in LAYERS.values():
        module = make()
        again = build(describe(module)).eval()
        again.load_state_dict(module.state_dict())
        for name, value in vars(module.eval()).items():
            if isinstance(value, int | float | str | tuple):
                assert getattr(again, name) == value, f"{module}: {name}"
    assert "argument values is not kept; wrap it in a module of your own" in (writable(nn.ParameterList([torch.zeros(1)])) or "")


@pytest.mark.parametrize("manifold", [Euclidean((2, 3)), Sphere(4)], ids=repr)
def test_manifolds(manifold):
    assert build(describe(manifold)) == manifold


def test_arguments_keep_their_types():
    module = Net(np.int64(2), [1, 2], options={"t": (1, (2, 3)), "l": [(4,)], "n": np.float64(0.1)})
    again = build(json.loads(json.dumps(describe(module))), allow=HERE)
    assert again.sizes == [1, 2]
    assert again.options == {"t": (1, (2, 3)), "l": [(4,)], "n": 0.1}
    assert build(describe(Annotated((1, 2), [3], nn.ModuleList())), allow=HERE).shape == (1, 2)
    assert describe(Annotated((1, 2), [3], nn.ModuleList()))["init_args"]["shape"] == [1, 2]
    tensor = torch.tensor([[0.1, math.nan]], dtype=torch.float64)
    torch.testing.assert_close(build(json.loads(json.dumps(describe(Bounded(tensor)))), allow=HERE).low, tensor, rtol=0, atol=0, equal_nan=True)


def test_public_names_are_written():
    chain = Chain([Standardize(2), Inverse(Standardize(2))])
    assert type(chain) is _BijectiveChain
    config = describe(chain)
    assert config["class_path"] == "fluvial.Chain"
    assert [part["class_path"] for part in config["init_args"]["parts"]] == ["fluvial.codecs.Standardize", "fluvial.Inverse"]
    again = build(config)
    assert type(again) is _BijectiveChain
    assert type(again.parts[1]) is _BijectiveInverse


def test_shared_modules_stay_shared():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    config = describe(Chain([FreeForm(net, net), FreeForm(net[0], nn.Linear(2, 2))]))
    assert config["init_args"]["parts"][0]["init_args"]["decoder"] == {"same_as": "parts.0.encoder"}
    assert config["init_args"]["parts"][1]["init_args"]["encoder"] == {"same_as": "parts.0.encoder.0"}
    again = build(config)
    assert again.parts[0].encoder is again.parts[0].decoder
    assert again.parts[1].encoder is again.parts[0].encoder[0]


def local_class():
    class Local(nn.Module):
        pass

    return Local()


def compiled():
    return torch.compile(nn.Linear(2, 2))


def looped():
    net = Net(2)
    net.phi = nn.Sequential(nn.Tanh(), net)
    return net


@pytest.mark.parametrize(
    ("make", "messages"),
    [
        (lambda: FreeForm(Forgetful(2, 3), Net(2)), ["encoder", "Forgetful", "argument depth is not kept", "self.depth = depth"]),
        (
            lambda: Chain([FreeForm(Net(2), nn.Sequential(Net(2, phi=torch.tanh)))]),
            ["parts.0.decoder.0", "phi is the function tanh", "torch.nn module"],
        ),
        (lambda: Net(2, options={"f": lambda x: x}), ["options.f is the function <lambda>"]),
        (lambda: Net(2, options={1: 2}), ["options has the key 1"]),
        (lambda: Net(2, options={"class_path": "x"}), ["key 'class_path'"]),
        (lambda: Net(2, options=object()), ["options is a object"]),
        (lambda: Net(2, options=torch.float32), ["options is a dtype"]),
        (lambda: Bounded(torch.zeros(20_000)), ["low is a tensor of 20000 numbers", "fill a buffer"]),
        (lambda: Doubling(2), ["the model", "width is 4, but 8", "self.width = width"]),
        (lambda: FreeForm(nn.Linear(2, 2), Doubling(2)), ["decoder", "width is 4"]),
        (lambda: Grown(2), ["tensor extra.weight is of shape (1, 1), but missing", "make all layers in __init__"]),
        (lambda: FreeForm(Net(2), local_class()), ["decoder", "inside a function"]),
        (lambda: FreeForm(compiled(), Net(2)), ["encoder", "compiled"]),
        (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))), ["0 (", "parametrized", "remove_parametrizations"]),
        (lambda: nn.Sequential(nn.LazyLinear(2)), ["0 (", "lazy"]),
        (looped, ["contains itself"]),
    ],
)
def test_what_cannot_be_written_is_named(make, messages):
    Grown.__dict__.get("first") and delattr(Grown, "first")
    text = writable(make())
    assert text is not None
    assert "\n" not in text
    for message in messages:
        assert message in text


def test_verification_leaves_the_random_state_alone():
    torch.manual_seed(0)
    module = nn.Linear(3, 7)
    before = torch.get_rng_state()
    assert writable(module) is None
    assert torch.equal(torch.get_rng_state(), before)


LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("os.system", "class path 'os.system' is not allowed; .*allow=\\[\"os\"\\] if you trust this file"),
        ("builtins.eval", "not allowed"),
        ("fluvial.io.os.system", "cannot be imported"),
        ("fluvial.config.torch.nn.Linear", "cannot be imported"),
        ("fluvial.files.os", "not a class of modules or manifolds"),
        ("fluvial.files.write_atomic", "not a class"),
        ("fluvial.files.Path", "not a class"),
        ("fluvial.codecs.chain._BijectiveChain", "not allowed"),
        ("fluvial.__main__.Main", "not allowed"),
        ("fluvial.nn.__builtins__", "not allowed"),
        ("fluvial.nothing.Net", "cannot be imported"),
        ("fluvial.Nothing", "cannot be imported"),
        ("fluviale.Net", "not allowed"),
        ("torch.load", "not allowed"),
        ("torch.nn.init.torch", "not allowed"),
        ("torch.nn.DataParallel", "it is torch.nn.parallel"),
        ("torch.nn.parallel.DataParallel", "not allowed"),
        ("torch.nn.functional", "not a class"),
        ("torch.nn.modules.linear.init", "not a class"),
        ("torch.nn", "not allowed"),
        ("Linear", "not of the form"),
        ("torch.nn.Linear()", "not of the form"),
        ("torch..nn.Linear", "not of the form"),
        ("", "not of the form"),
        (["torch.nn.Linear"], "not of the form"),
        (None, "not of the form"),
    ],
)
def test_foreign_class_paths_are_refused(class_path, message):
    with pytest.raises(ValueError, match=message):
        build({"class_path": class_path, "init_args": {"args": [LINEAR]}})


def test_allow_trusts_what_it_lists_and_no_more():
    config = describe(Net(2))
    for allow in ([], ["os"], [f"{__name__}.Other"], [__name__[:-1]]):
        with pytest.raises(ValueError, match="is not allowed"):
            build(config, allow=allow)
    for allow in ([__name__], [f"{__name__}.Net"]):
        assert isinstance(build(config, allow=allow), Net)
    with pytest.raises(TypeError, match="write allow="):
        build(config, allow=__name__)
    # Functions are not called even where their module is trusted, nor classes that only pass through it.
    with pytest.raises(ValueError, match="not a class of modules"):
        build({"class_path": f"{__name__}.local_class"}, allow=HERE)
    with pytest.raises(ValueError, match="not a class of modules"):
        build({"class_path": "os.system", "init_args": {"command": "true"}}, allow=["os"])
    sys.modules[__name__].Imported = torch.nn.DataParallel
    with pytest.raises(ValueError, match="it is torch.nn.parallel"):
        build({"class_path": f"{__name__}.Imported", "init_args": {"module": LINEAR}}, allow=HERE)


LARGE = {
    "torch.nn.Linear: out_features is 10000001, and 10000000": {
        "class_path": "torch.nn.Linear",
        "init_args": {"in_features": 1, "out_features": 10**7 + 1},
    },
    "torch.nn.LSTM: num_layers is 1001": {"class_path": "torch.nn.LSTM", "init_args": {"input_size": 1, "hidden_size": 1, "num_layers": 1001}},
    "torch.nn.LayerNorm: normalized_shape is a number of more": {
        "class_path": "torch.nn.LayerNorm",
        "init_args": {"normalized_shape": [2, 10**5000]},
    },
    "fluvial.nn.Residual: blocks is 10001": {"class_path": "fluvial.nn.Residual", "init_args": {"in_features": 2, "blocks": 10001}},
}


@pytest.mark.parametrize("message", LARGE)
def test_sizes_beyond_all_bounds_are_refused_before_anything_is_built(message, monkeypatch):
    monkeypatch.setattr(torch.nn.Tanh, "__init__", lambda self: pytest.fail("built"))
    with pytest.raises(ValueError, match=message) as caught:
        build({"class_path": "torch.nn.Sequential", "init_args": {"args": [{"class_path": "torch.nn.Tanh"}, LARGE[message]]}})
    assert "\n" not in str(caught.value)


def nested(depth):
    config = LINEAR
    for _ in range(depth):
        config = {"class_path": "torch.nn.Sequential", "init_args": {"args": [config]}}
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "expected {'class_path'"),
        ([LINEAR], "expected {'class_path'"),
        (3, "expected"),
        ({**LINEAR, "code": "1"}, "must have class_path and a mapping init_args"),
        ({"class_path": "torch.nn.Linear", "init_args": [1, 2]}, "mapping init_args"),
        (
            {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out": 1}},
            "has no argument 'out'; it takes in_features, out_features, bias$",
        ),
        ({"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1, "device": "meta"}}, "has no argument 'device'"),
        ({"class_path": "torch.nn.Linear", "init_args": {"in_features": "1", "out_features": 1}}, "the model: torch.nn.Linear cannot be built"),
        ({"class_path": "torch.nn.Linear", "init_args": {"in_features": -1, "out_features": 1}}, "cannot be built"),
        ({"class_path": "torch.nn.Linear"}, "cannot be built"),
        ({"class_path": "torch.nn.Sequential", "init_args": {"args": 3}}, "cannot be built"),
        ({"class_path": "torch.nn.Sequential", "init_args": {"args": ["relu"]}}, "cannot be built"),
        ({"class_path": "torch.nn.Sequential", "init_args": {"args": [{"same_as": "1"}, LINEAR]}}, "'1', which is not built before it"),
        ({"class_path": "torch.nn.Sequential", "init_args": {"args": [{"same_as": ["0"]}]}}, "not built before"),
        ({"class_path": "torch.nn.Sequential", "init_args": {"args": [{"tensor": {"dtype": "x", "values": 0}}]}}, "0 is not a tensor"),
        ({"class_path": "fluvial.codecs.Codec"}, "cannot be built"),
        ({"class_path": "fluvial.Sphere", "init_args": {"dim": -1}}, "dim must be at least 1"),
        (nested(60), "nested more than 100 levels"),
        (nested(5000), "nested more than 100 levels"),
    ],
)
def test_wrong_configurations_are_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(config)
    assert "\n" not in str(caught.value)


def test_what_can_be_written_can_be_read_however_deep():
    def deep(depth):
        module = nn.Linear(1, 1)
        for _ in range(depth):
            module = nn.Sequential(module)
        return module

    assert writable(deep(40)) is None
    assert "nested more than 100 levels" in (writable(deep(60)) or "")
