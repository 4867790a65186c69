"""Which classes a configuration may name, and where their instances keep the arguments they were built from."""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from fluvial.manifolds import Manifold

_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)

# Containers have one argument that holds their parts; the parts are counted, and named in state_dict, without its name.
CONTAINERS: dict[type, str] = {nn.Sequential: "args", nn.ModuleList: "modules", nn.ModuleDict: "modules"}

# What the layers of torch hide: arguments of the constructors that only take *args and **kwargs …
_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
_ARGUMENTS = {"Identity": (), "RNN": (*_RECURRENT, "nonlinearity"), "GRU": _RECURRENT, "LSTM": (*_RECURRENT, "proj_size")}
# … and arguments that are kept under another name.
_TRANSFORMER_LAYER: dict[str, Callable[[Any], Any]] = {
    "d_model": lambda m: m.self_attn.embed_dim,
    "nhead": lambda m: m.self_attn.num_heads,
    "dim_feedforward": lambda m: m.linear1.out_features,
    "dropout": lambda m: m.dropout.p,
    "activation": lambda m: {nn.functional.relu: "relu", nn.functional.gelu: "gelu"}.get(m.activation, m.activation),
    "layer_norm_eps": lambda m: m.norm1.eps,
    "batch_first": lambda m: m.self_attn.batch_first,
    "bias": lambda m: m.linear1.bias is not None,
}
_KEPT_ELSEWHERE: dict[str, dict[str, Callable[[Any], Any]]] = {
    "MultiheadAttention": {"bias": lambda m: m.in_proj_bias is not None, "add_bias_kv": lambda m: m.bias_k is not None},
    "PairwiseDistance": {"p": lambda m: m.norm},
    "TransformerEncoderLayer": _TRANSFORMER_LAYER,
    "TransformerDecoderLayer": _TRANSFORMER_LAYER,
    "TransformerEncoder": {"encoder_layer": lambda m: m.layers[0], "enable_nested_tensor": lambda m: m.use_nested_tensor},
    "TransformerDecoder": {"decoder_layer": lambda m: m.layers[0]},
    "Hardtanh": {"min_value": lambda m: None, "max_value": lambda m: None},  # deprecated names of min_val and max_val
}

# No layer that anyone trains is larger; a file that asks for more would keep the machine busy until its memory is full.
_LARGEST = 10**7  # any whole number among the arguments of torch.nn
_MOST_LAYERS = {"num_layers": 1000, "num_encoder_layers": 1000, "num_decoder_layers": 1000}
_MOST_BLOCKS = {"blocks": 10**4}


def check_sizes(config: Any) -> None:
    """Refuse sizes and repetitions that would take for ever to build, anywhere in a tree and before any of it is built.

    Raises:
        ValueError: Naming class, argument, value and limit.
    """
    remaining = [config]
    while remaining:
        part = remaining.pop()
        if isinstance(part, dict) and isinstance(part.get("class_path"), str) and isinstance(part.get("init_args"), dict):
            for name, value in part["init_args"].items():
                _check_size(part["class_path"], name, value)
        if isinstance(part, dict | list | tuple):
            remaining += part.values() if isinstance(part, dict) else part


def _check_size(class_path: str, name: str, value: Any) -> None:
    package = class_path.partition(".")[0]
    limits, largest = {"torch": (_MOST_LAYERS, _LARGEST), "fluvial": (_MOST_BLOCKS, None)}.get(package, ({}, None))
    largest = limits.get(name, largest)
    plain = value["tuple"] if isinstance(value, dict) and isinstance(value.get("tuple"), list) else value
    for number in plain if isinstance(plain, list | tuple) else [plain]:
        if largest is not None and isinstance(number, int) and abs(number) > largest:
            shown = str(number) if abs(number) < 10**20 else "a number of more than 20 digits"
            raise ValueError(f"configuration: {class_path}: {name} is {shown}, and {largest} is the most that is built")


def resolve(class_path: Any, allow: tuple[str, ...]) -> type:
    """The class that a path names, if it may be used.

    Raises:
        ValueError: If it is no class path, not allowed, does not exist, or is anything but a class of modules or manifolds.
    """
    if not isinstance(class_path, str) or not _CLASS_PATH.fullmatch(class_path):
        raise ValueError(f"class path {class_path!r:.80} is not of the form package.module.Class")
    if not permitted(class_path, allow):
        trust = f'allow=["{class_path.partition(".")[0]}"] if you trust this file'
        raise ValueError(f"class path {class_path!r} is not allowed; only classes of fluvial and layers of torch.nn are; {trust}")
    # The module is imported by its name and one attribute taken from it, so that no path reaches through a module's own imports.
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ValueError(f"class path {class_path!r} cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module | Manifold)):
        raise ValueError(f"class path {class_path!r} is not allowed; it is not a class of modules or manifolds, and only those are called")
    home = f"{cls.__module__}.{cls.__qualname__}"
    if class_path not in allow and not permitted(home, allow):
        raise ValueError(f'class path {class_path!r} is not allowed; it is {home}, so allow=["{home}"] if you trust this file')
    return cls


def permitted(path: str, allow: Iterable[str]) -> bool:
    """Whether a class path lies in fluvial, among the layers of torch.nn, or in what `allow` lists; private names only in the last."""
    if any(path == entry or path.startswith(f"{entry}.") for entry in allow):
        return True
    parts = path.split(".")
    if any(part.startswith("_") for part in parts):
        return False
    return parts[0] == "fluvial" or (parts[:2] == ["torch", "nn"] and (len(parts) == 3 or parts[2:3] == ["modules"]))


def public(cls: type) -> type:
    """The class to write down: where fluvial picks a private subclass, the public class that picks it again."""
    if cls.__module__.partition(".")[0] != "fluvial":
        return cls
    return next(base for base in cls.__mro__ if not base.__name__.startswith("_"))


def path_of(cls: type) -> str:
    """The shortest import path of a class of fluvial or torch; of any other class the module that defines it."""
    parts = cls.__module__.split(".")
    for k in range({"fluvial": 1, "torch": 2}.get(parts[0], len(parts)), len(parts)):
        module = ".".join(parts[:k])
        if getattr(sys.modules.get(module), cls.__name__, None) is cls:
            return f"{module}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def owner_of(cls: type) -> type:
    """The class whose __init__ a class uses."""
    return next(base for base in cls.__mro__ if "__init__" in vars(base))


def is_torch(owner: type) -> bool:
    """Whether it is a layer of torch.nn."""
    return owner.__module__.startswith("torch.nn.modules.")


def parameters_of(owner: type) -> list[inspect.Parameter]:
    """The constructor arguments of a class that defines its own __init__."""
    if owner in (nn.Module, Manifold, object):
        return []
    if is_torch(owner) and owner.__name__ in _ARGUMENTS:
        return [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in _ARGUMENTS[owner.__name__]]
    arguments = list(inspect.signature(owner.__init__).parameters.values())[1:]
    # Where a layer lives is the business of the loader, not of the file.
    return [a for a in arguments if not (is_torch(owner) and (a.name in ("device", "dtype") or a.name.startswith("_")))]


def lists_are_tuples(owner: type, parameter: inspect.Parameter) -> bool:
    """Whether lists of plain values stand for tuples: in fluvial and torch always, elsewhere where the annotation says so.

    Elsewhere lists and tuples are told apart in writing, because ``[n] + hidden`` works with one of them only.
    """
    if owner.__module__.partition(".")[0] in ("fluvial", "torch"):
        return True
    annotation = str(parameter.annotation)
    return "tuple" in annotation and not re.search("[Ll]ist|Sequence", annotation)


def takes_container(parameter: inspect.Parameter) -> bool:
    """Whether an argument wants a ModuleList or ModuleDict itself, not the list or dict of modules that most constructors turn into one."""
    annotation = str(parameter.annotation)
    return parameter.annotation is nn.Module or re.search(r"Module(List|Dict)|^[\w.]*nn\.Module$", annotation) is not None


def kept(obj: Any, owner: type, name: str) -> Any:
    """The value of the constructor argument `name`, from the attribute of that name or from where torch keeps it.

    Raises:
        AttributeError: If there is none.
    """
    if is_torch(owner):
        reader = _KEPT_ELSEWHERE.get(owner.__name__, {}).get(name)
        if reader is not None:
            return reader(obj)
        if name == "bias" and not isinstance(obj.bias, bool):
            return obj.bias is not None
    value = getattr(obj, name)
    if inspect.ismethod(value):
        raise AttributeError(name)
    return value
