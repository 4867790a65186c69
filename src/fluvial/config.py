"""A model as a tree of class paths and arguments, and the model back from the tree."""

import inspect
import json
import sys
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fluvial.constructors import (
    CONTAINERS,
    check_sizes,
    is_torch,
    kept,
    lists_are_tuples,
    owner_of,
    parameters_of,
    path_of,
    public,
    resolve,
    takes_container,
)
from fluvial.manifolds import Manifold

Config = dict[str, Any]

_MARKS = ("class_path", "same_as", "tuple", "tensor")
_DEPTH = 100  # levels of nesting; a deeper tree is no model
_NUMBERS = 10_000  # longest tensor that is written as text
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "int64": torch.int64, "bool": torch.bool}


def describe(obj: nn.Module | Manifold) -> Config:
    """Write a module or manifold down as ``{"class_path": …, "init_args": {…}}``, the schema of recipes and model files.

    One rule makes it work, for your own classes too: every constructor argument is kept as an attribute of the same name, holding the value
    given or a form of it that the constructor takes again; a list of modules may be kept as a `torch.nn.ModuleList`. The layers and
    containers of torch.nn are known. A module that occurs twice is written once, and referred to by its path afterwards.

    Args:
        obj: A flow, codec, base, network, objective or manifold.

    Raises:
        ValueError: If a part does not keep an argument or holds something that has no name; the message says where, what, and the mend.

    Example:
        >>> describe(nn.Sequential(nn.Linear(2, 3), nn.Tanh()))["init_args"]["args"][0]
        {'class_path': 'torch.nn.Linear', 'init_args': {'in_features': 2, 'out_features': 3}}
    """
    return _Writer().node(obj, "", 0)


def writable(module: nn.Module) -> str | None:
    """Why `module` could not be saved, or None where it can.

    Example:
        >>> writable(nn.Linear(2, 2)) is None
        True
    """
    try:
        verified(module)
    except ValueError as error:
        return str(error)
    return None


def build(config: Config, *, allow: Sequence[str] = ()) -> Any:
    """Make the object that `describe` wrote down, with fresh weights.

    Nothing but classes of modules and manifolds is ever called, and only those of fluvial, of torch.nn, and of what `allow` adds.

    Args:
        config: ``{"class_path": …, "init_args": {…}}``.
        allow: Further packages, modules ("mypkg.nets") or classes ("mypkg.nets.Net") to trust; they are imported.

    Raises:
        ValueError: If a class path is not allowed or is no such class, or if arguments do not fit or are too large to be meant.

    Example:
        >>> build({"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}})
        Linear(in_features=2, out_features=3, bias=True)
    """
    if isinstance(allow, str):
        raise TypeError(f"allow must be a list of packages or classes, got {allow!r}; write allow=[{allow!r}]")
    check_sizes(config)
    return _Reader(tuple(allow)).value(config, "", 0, as_tuple=False, only_node=True)


def verified(module: nn.Module) -> Config:
    """Describe `module` and make sure that what is written builds the same again.

    Raises:
        ValueError: As `describe`; also if the rebuilt module has other arguments or other tensors.
    """
    writer = _Writer()
    config = writer.node(module, "", 0)
    state = {name: tuple(value.shape) if isinstance(value, Tensor) else None for name, value in module.state_dict().items()}
    odd = next((name for name, shape in state.items() if shape is None), None)
    if odd is not None:
        raise ValueError(f"cannot write down {odd}: its extra state is not a tensor; keep it in a buffer")
    try:
        twin_config, twin_state = _twin(json.dumps(config), tuple(writer.classes.items()))
    except ValueError as error:
        raise ValueError(f"cannot write down the model: the arguments that it keeps do not build it again; {error}") from error
    difference = _difference(config, twin_config, "")
    if difference is not None:
        where, name, here, there = difference
        raise ValueError(
            f"cannot write down {where or 'the model'}: its argument {name} is {here}, but {there} once it is built again from that; "
            f"in __init__ keep the value given: self.{name} = {name}"
        )
    for name in (*state, *twin_state):
        if state.get(name) != twin_state.get(name):
            here, there = (f"of shape {shapes[name]}" if name in shapes else "missing" for shapes in (state, twin_state))
            raise ValueError(
                f"cannot write down the model: the tensor {name} is {here}, but {there} once it is built again from its arguments; "
                "make all layers in __init__, from its arguments alone"
            )
    return config


@lru_cache(maxsize=8)
def _twin(text: str, classes: tuple[tuple[str, type], ...]) -> tuple[Config, dict[str, tuple[int, ...]]]:
    # Cached, because training saves the same model many times. The classes are part of the key: a notebook may define one anew.
    with torch.random.fork_rng(devices=[]):
        twin = build(json.loads(text), allow=[path for path, _ in classes])
    state = twin.state_dict() if isinstance(twin, nn.Module) else {}
    return describe(twin), {name: tuple(value.shape) for name, value in state.items()}


def _difference(a: Any, b: Any, path: str, name: str = "") -> tuple[str, str, Any, Any] | None:
    """Path of the module, argument, and both values, where two descriptions first differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.get("class_path") == b.get("class_path") and "init_args" in a and "init_args" in b:
        inner = f"{path}.{name}".strip(".")
        pairs = [(key, a["init_args"].get(key), b["init_args"].get(key)) for key in {**a["init_args"], **b["init_args"]}]
        return next(filter(None, (_difference(x, y, inner, key) for key, x, y in pairs)), None)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        inner = f"{path}.{name}".strip(".")
        if any(isinstance(x, dict) and "class_path" in x for x in a):
            return next(filter(None, (_difference(x, y, inner, str(k)) for k, (x, y) in enumerate(zip(a, b)))), None)
    # As text, because NaN is not equal to itself.
    return None if json.dumps(a) == json.dumps(b) else (path, name, a, b)


class _Writer:
    """One pass of `describe`: remembers which modules are already written, and which classes occur."""

    def __init__(self) -> None:
        self.written: dict[int, tuple[str, object]] = {}  # id -> path, and the object, so that its id is not given away
        self.unfinished: set[int] = set()
        self.classes: dict[str, type] = {}

    def node(self, obj: Any, path: str, depth: int) -> Config:
        if id(obj) in self.unfinished:
            self.refuse(path, obj, "it contains itself; a part must not keep the whole as an argument")
        if id(obj) in self.written:
            return {"same_as": self.written[id(obj)][0]}
        if not isinstance(obj, nn.Module | Manifold):
            self.refuse(path, obj, "it is neither a torch.nn.Module nor a manifold")
        self.check_plain(obj, path)
        self.unfinished.add(id(obj))
        cls = public(type(obj))
        class_path = path_of(cls)
        self.check_importable(cls, class_path, obj, path)
        init_args = self.arguments(obj, owner_of(cls), path, depth + 1)
        self.unfinished.discard(id(obj))
        if isinstance(obj, nn.Module):
            self.written[id(obj)] = (path, obj)
        self.classes[class_path] = cls
        return {"class_path": class_path, "init_args": init_args}

    def arguments(self, obj: Any, owner: type, path: str, depth: int) -> Config:
        home = (path, obj)
        if owner in CONTAINERS:
            parts = dict(obj._modules)
            numbered = list(parts) == [str(k) for k in range(len(parts))] and owner is not nn.ModuleDict
            return {CONTAINERS[owner]: self.value(list(parts.values()) if numbered else parts, path, depth, home)}
        init_args: Config = {}
        for parameter in parameters_of(owner):
            name = parameter.name
            value = self.kept(obj, owner, parameter, path)
            # The defaults of torch.nn do not change; ours and the user's may, so theirs are written out.
            if is_torch(owner) and (value is parameter.default or (type(value) is type(parameter.default) and value == parameter.default)):
                continue
            if type(value) in CONTAINERS and not takes_container(parameter):
                value = list(value) if isinstance(value, nn.ModuleList) else dict(value.items()) if isinstance(value, nn.ModuleDict) else value
            as_tuple = lists_are_tuples(owner, parameter)
            if parameter.kind is parameter.VAR_KEYWORD:
                init_args.update(self.value(value, path, depth, home, as_tuple=as_tuple))
            else:
                init_args[name] = self.value(value, f"{path}.{name}", depth, home, as_tuple=as_tuple)
        return init_args

    def kept(self, obj: Any, owner: type, parameter: inspect.Parameter, path: str) -> Any:
        name = parameter.name
        try:
            return kept(obj, owner, name)
        except AttributeError:
            star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
            mend = "wrap it in a module of your own that keeps them" if is_torch(owner) else f"in __init__ write self.{name} = {name}"
            self.refuse(path, obj, f"its argument {star}{name} is not kept; {mend}")

    def value(self, value: Any, path: str, depth: int, home: tuple[str, Any], *, as_tuple: bool = True) -> Any:  # noqa: RET503
        """An argument as plain JSON; `home` is the module that it belongs to, with its path."""
        path = path.strip(".")
        argument = path.removeprefix(home[0]).strip(".")
        if depth > _DEPTH:
            self.refuse(*home, f"its argument {argument} is nested more than {_DEPTH} levels deep")
        value = value.item() if isinstance(value, np.generic) else value
        # By exact type: members of enumerations pass for numbers and strings, but would not come back.
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, nn.Module | Manifold):
            return self.node(value, path, depth)
        if isinstance(value, Tensor):
            return self.tensor(value, argument, home)
        if isinstance(value, list | tuple):
            items = [self.value(item, f"{path}.{k}", depth + 1, home, as_tuple=as_tuple) for k, item in enumerate(value)]
            return items if as_tuple or isinstance(value, list) else {"tuple": items}
        if isinstance(value, dict):
            odd = next((key for key in value if not isinstance(key, str) or key in _MARKS), None)
            if odd is not None:
                self.refuse(*home, f"its argument {argument} has the key {odd!r}; keys must be strings other than {', '.join(_MARKS)}")
            return {key: self.value(item, f"{path}.{key}", depth + 1, home, as_tuple=as_tuple) for key, item in value.items()}
        if callable(value):
            what, mend = f"the function {getattr(value, '__name__', value)!s}", "pass a torch.nn module, or a name as a string"
        else:
            what, mend = f"a {type(value).__qualname__}", "pass numbers, strings, lists, dicts, tensors or modules"
        self.refuse(*home, f"its argument {argument} is {what}, which has no written form; {mend}")

    def tensor(self, value: Tensor, argument: str, home: tuple[str, Any]) -> Config:
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in _DTYPES or value.numel() > _NUMBERS:
            limit = f"at most {_NUMBERS} of {', '.join(_DTYPES)} are written down"
            mend = "take a shape as the argument and fill a buffer later"
            self.refuse(*home, f"its argument {argument} is a tensor of {value.numel()} numbers of type {dtype}; {limit}, so {mend}")
        return {"tensor": {"dtype": dtype, "shape": list(value.shape), "values": value.detach().cpu().flatten().tolist()}}

    def check_plain(self, obj: Any, path: str) -> None:
        """Refuse modules that something else has altered, or that say themselves why they cannot be written."""
        if isinstance(getattr(obj, "unwritable", None), str):
            self.refuse(path, obj, obj.unwritable)
        if hasattr(obj, "_orig_mod"):
            self.refuse(path, obj, "it is compiled; keep the module itself in the flow and compile after loading")
        if isinstance(obj, nn.Module) and is_parametrized(obj):
            self.refuse(path, obj, "it is parametrized; call torch.nn.utils.parametrize.remove_parametrizations before saving")
        own = (*obj.parameters(recurse=False), *obj.buffers(recurse=False)) if isinstance(obj, nn.Module) else ()
        if any(nn.parameter.is_lazy(tensor) for tensor in own):
            self.refuse(path, obj, "it is lazy and has no weights yet; call the flow once before saving")

    def check_importable(self, cls: type, class_path: str, obj: Any, path: str) -> None:
        if "." in cls.__qualname__:
            self.refuse(path, obj, "its class is defined inside a function or class; move it to the top level of a module")
        module, _, name = class_path.rpartition(".")
        if getattr(sys.modules.get(module), name, None) is not cls:
            self.refuse(path, obj, f"importing {class_path} does not give its class; define the class at the top level of a module")

    def refuse(self, path: str, obj: Any, text: str) -> NoReturn:
        raise ValueError(f"cannot write down {path.strip('.') or 'the model'} ({type(obj).__module__}.{type(obj).__qualname__}): {text}")


class _Reader:
    """One pass of `build`: remembers what is built, for references to it."""

    def __init__(self, allow: tuple[str, ...]) -> None:
        self.allow = allow
        self.built: dict[str, object] = {}

    def value(self, value: Any, path: str, depth: int, *, as_tuple: bool, only_node: bool = False) -> Any:
        path = path.strip(".")
        if depth > _DEPTH:
            raise ValueError(f"configuration: nested more than {_DEPTH} levels deep")
        if isinstance(value, dict) and "class_path" in value:
            return self.node(value, path, depth)
        if only_node:
            raise ValueError(f"configuration: expected {{'class_path': …, 'init_args': …}}, got {_short(value)}")
        if isinstance(value, list | tuple):
            items = [self.value(item, f"{path}.{k}", depth + 1, as_tuple=as_tuple) for k, item in enumerate(value)]
            # Lists of modules stay lists; lists of numbers and names become the tuples they were.
            return tuple(items) if as_tuple and not any(isinstance(item, nn.Module | Manifold) for item in items) else items
        if not isinstance(value, dict):
            return value
        if set(value) == {"same_as"}:
            reference = value["same_as"]
            if not isinstance(reference, str) or reference not in self.built:
                raise ValueError(f"configuration: {path} refers to {_short(reference)}, which is not built before it")
            return self.built[reference]
        if set(value) == {"tuple"} and isinstance(value["tuple"], list):
            return tuple(self.value(item, f"{path}.{k}", depth + 1, as_tuple=as_tuple) for k, item in enumerate(value["tuple"]))
        if set(value) == {"tensor"}:
            return _tensor(value["tensor"], path)
        return {key: self.value(item, f"{path}.{key}", depth + 1, as_tuple=as_tuple) for key, item in value.items()}

    def node(self, config: Config, path: str, depth: int) -> Any:
        where = path or "the model"
        init_args = config.get("init_args", {})
        unknown = set(config) - {"class_path", "init_args"}
        if unknown or not isinstance(init_args, dict) or not all(isinstance(name, str) for name in init_args):
            raise ValueError(f"configuration: {where} must have class_path and a mapping init_args, got {_short(config)}")
        cls = resolve(config["class_path"], self.allow)
        owner = owner_of(cls)
        parameters = {p.name: p for p in parameters_of(owner)}
        extra = next((p for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
        values: Config = {}
        for name, item in init_args.items():
            parameter = parameters.get(name, extra)
            if parameter is None:
                takes = ", ".join(parameters) or "none"
                raise ValueError(f"configuration: {where}: {config['class_path']} has no argument {_short(name)}; it takes {takes}")
            inner = path if owner in CONTAINERS else f"{path}.{name}"
            values[name] = self.value(item, inner, depth + 1, as_tuple=lists_are_tuples(owner, parameter))
        try:
            positional, keyword = _arrange(values, parameters)
            obj = cls(*positional, **keyword)
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ValueError(f"configuration: {where}: {config['class_path']} cannot be built from its arguments: {reason}") from error
        if isinstance(obj, nn.Module):
            self.built[path] = obj
        return obj


def _arrange(values: Config, parameters: dict[str, inspect.Parameter]) -> tuple[list[Any], Config]:
    """Arguments by position and by name: what stands before a filled *args can only go by position."""
    positional: list[Any] = []
    keyword = dict(values)
    starred = any(p.kind is p.VAR_POSITIONAL and p.name in values for p in parameters.values())
    for name, parameter in parameters.items():
        if name not in values or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts = keyword.pop(name)
            positional += [OrderedDict(parts)] if isinstance(parts, dict) else parts
        elif starred or parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(keyword.pop(name))
    return positional, keyword


def _tensor(config: Any, path: str) -> Tensor:
    try:
        return torch.tensor(config["values"], dtype=_DTYPES[config["dtype"]], device="cpu").reshape(config["shape"])
    except Exception as error:
        raise ValueError(f"configuration: {path} is not a tensor: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
