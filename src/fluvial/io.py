"""A flow as one file: weights, and in the header all that is needed to build it again."""

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import fluvial
from fluvial.config import build, describe, verified
from fluvial.data.spec import DataSpec
from fluvial.ensemble import Ensemble
from fluvial.files import write_atomic
from fluvial.flow import Flow
from fluvial.joint import Joint

_FORMAT = 1
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format


def save(flow: Flow | Joint | Ensemble, path: str | os.PathLike[str]) -> None:
    """Store a flow in one ``.safetensors`` file: its weights, its configuration and its data specification.

    The file is written whole or not at all, holds no code and no pickle, and the same flow gives the same bytes.

    Args:
        flow: What to store. Networks of your own must keep every constructor argument as an attribute of the same name.
        path: Where to; must end in .safetensors.

    Raises:
        ValueError: If a part of the flow cannot be written down; the message names it and the mend.
        OSError: If the file cannot be written, by a full disk for instance; an existing file is then untouched.

    Example:
        >>> import tempfile
        >>> import fluvial as fl
        >>> flow = fl.Flow(fl.FreeForm(fl.nn.MLP(2), fl.nn.MLP(2)), fl.bases.Normal(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fl.save(flow, f"{folder}/flow.safetensors")
        ...     again = fl.load(f"{folder}/flow.safetensors")
        >>> x = torch.randn(5, 2)
        >>> torch.equal(flow.encode(x), again.encode(x))
        True
    """
    if not isinstance(flow, Flow | Joint | Ensemble):
        raise TypeError(f"save: expected an Ensemble, a Flow or a Joint, got {type(flow).__name__}; wrap a codec as Flow(codec, base)")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"save: the file must end in .safetensors, got {Path(path).name!r}; write {Path(path).stem + '.safetensors'!r}")
    tensors, tied = _untied(flow.state_dict())
    header = {
        "format": f"fluvial/{_FORMAT}",
        "fluvial": fluvial.__version__,
        "torch": str(torch.__version__),
        "config": json.dumps(verified(flow)),
    }
    dtypes = {t.dtype for t in (*flow.parameters(), *flow.buffers()) if t.is_floating_point()}
    if len(dtypes) == 1:
        header["dtype"] = str(dtypes.pop()).removeprefix("torch.")
    if tied:
        header["tied"] = json.dumps(tied)
    spec = getattr(flow, "spec", None)
    if spec is not None:
        header["spec"] = json.dumps({**spec.to_dict(), "manifold": None if spec.manifold is None else describe(spec.manifold)})
    content = _serialised(tensors, header)

    def write(file: BinaryIO) -> None:
        for piece in content:
            file.write(piece)

    write_atomic(path, write)


def load(path: str | os.PathLike[str], *, allow: Sequence[str] = (), device: torch.device | str | None = None) -> Flow | Joint | Ensemble:
    """Build a flow again from a file that `save` wrote, in evaluation mode and in the precision it was stored in.

    Nothing in the file is executed: classes are taken only from fluvial, from the layers of torch.nn, and from what `allow` adds.

    Args:
        path: The file.
        allow: Packages ("mypkg"), modules or classes of your own that the flow is made of.
        device: Where to put it; default the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a whole flow of this or an earlier format, or names a class that is not allowed.
    """
    path = Path(path)
    _check_kind(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error
    _check_format(path, header)
    config, spec, tied = (_entry(path, header, name) for name in ("config", "spec", "tied"))
    for alias, name in tied.items():
        if not isinstance(name, str) or name not in stored:
            raise ValueError(f"{path}: the tensor {name} is missing, which {alias} shares")
        stored[alias] = stored[name]
    flow = _built(path, config, spec, allow, stored)
    if header.get("dtype") in _DTYPES:
        flow.to(_DTYPES[header["dtype"]])
    _fill(path, flow, stored)
    _tie(flow, tied)
    return flow.eval().to(device)


def _built(path: Path, config: Any, spec: Any, allow: Sequence[str], stored: dict[str, Tensor]) -> Flow | Joint | Ensemble:
    """The flow with fresh weights; the global random state stays as it was."""
    try:
        with torch.random.fork_rng(devices=[]), _Allocations(stored):
            flow = build(config, allow=allow)
        manifold = build(spec["manifold"], allow=allow) if spec.get("manifold") else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(flow, Flow | Joint | Ensemble):
        raise ValueError(f"{path} holds a {type(flow).__name__}, not a flow")
    if spec:
        try:
            flow.spec = DataSpec.from_dict({**spec, "manifold": manifold})
        except Exception as error:
            raise ValueError(f"{path}: the data specification in the header cannot be read: {error}") from error
    return flow


def _untied(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, ready for the disk, and for the names of shared ones the name under which it is stored."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device) if tensor.numel() else name
        first = seen.setdefault(key, name)
        if first != name:
            tied[name] = first
        else:
            # A copy, because a view of another tensor shares its memory, which the format does not have.
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, tied


def _serialised(tensors: dict[str, Tensor], header: dict[str, str]) -> list[bytes | memoryview]:
    """The bytes of the file. safetensors writes its header in random order; sorted, the same flow gives the same file."""
    try:
        content = safetensors.torch.save(tensors, header)
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"save: a tensor cannot be stored as safetensors ({error}); make it dense and real") from error
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, memoryview(content)[8 + length :]]


def _check_kind(path: Path) -> None:
    """Say what a file is that is no safetensors file, before anything parses it."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the file in it, such as {path / 'model.safetensors'}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(9)
    if size == 0:
        raise ValueError(f"{path} is empty")
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length <= min(size - 8, _LARGEST_HEADER):
        return
    if start[:4] == b"PK\x03\x04":
        raise ValueError(f"{path} is a zip archive, as torch.save writes it around a pickle; fluvial never unpickles, use fluvial.save")
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        raise ValueError(f"{path} is a pickle; fluvial never unpickles, use fluvial.save")
    if start[8:9] != b"{":
        raise ValueError(f"{path} is not a safetensors file")
    raise ValueError(f"{path} is cut off or damaged: it claims a header of {length} bytes (at most {_LARGEST_HEADER}) and has {size} bytes in all")


def _check_format(path: Path, header: dict[str, str]) -> None:
    found = re.fullmatch(r"fluvial/(\d{1,9})", header.get("format", ""))
    if found is None or "config" not in header:
        raise ValueError(f"{path} is a safetensors file without a flow: its header has no configuration; load what fluvial.save wrote")
    if int(found[1]) > _FORMAT:
        by = f"written by fluvial {header.get('fluvial', 'of a later version')}"
        raise ValueError(f"{path} has format {found[1]}, {by}; fluvial {fluvial.__version__} reads up to {_FORMAT}: update it")


def _entry(path: Path, header: dict[str, str], name: str) -> dict[str, Any]:
    """One JSON mapping of the header; empty where there is none."""
    try:
        entry = json.loads(header.get(name, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {name} in the header cannot be read as JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {name} in the header must be a mapping, got a {type(entry).__name__}")
    return entry


def _fill(path: Path, flow: nn.Module, stored: dict[str, Tensor]) -> None:
    """Copy the stored tensors into a freshly built flow, after checking that they are exactly its own."""
    own = flow.state_dict(keep_vars=True)
    for name in (*own, *stored):
        if name not in stored:
            raise ValueError(f"{path}: the tensor {name} of shape {tuple(own[name].shape)} is missing")
        if name not in own:
            raise ValueError(f"{path}: the tensor {name} of shape {tuple(stored[name].shape)} has no place in the flow it describes")
        here, there = own[name], stored[name]
        both_real = here.is_floating_point() and there.is_floating_point()
        if here.shape != there.shape or not (here.dtype == there.dtype or both_real):
            wanted, got = (f"{t.dtype} of shape {tuple(t.shape)}".removeprefix("torch.") for t in (here, there))
            raise ValueError(f"{path}: the tensor {name} must be {wanted}, got {got}")
    for name, tensor in own.items():
        if tensor.dtype != stored[name].dtype:
            tensor.data = tensor.data.to(stored[name].dtype)
    flow.load_state_dict(stored)


def _tie(flow: nn.Module, tied: dict[str, str]) -> None:
    """Make parameters that were one and the same when saved so again."""
    parameters = dict(flow.named_parameters(remove_duplicate=False))
    for alias, name in tied.items():
        if alias in parameters and name in parameters and parameters[alias] is not parameters[name]:
            owner, _, leaf = alias.rpartition(".")
            setattr(flow.get_submodule(owner), leaf, parameters[name])


class _Allocations(TorchFunctionMode):
    """Keeps a small file from filling the memory: what its configuration builds may not dwarf the tensors it holds."""

    def __init__(self, stored: dict[str, Tensor]) -> None:
        super().__init__()
        # Generous: parts may have tables of their own, and try themselves out.
        self.tensors = 20 * len(stored) + 10_000
        self.numbers = 4 * sum(tensor.numel() for tensor in stored.values()) + 2**28

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye):
            given = kwargs.get("size", args[0] if args and isinstance(args[0], list | tuple) else args)
            size = [length for length in given if isinstance(length, int)]
            self.tensors -= 1
            self.numbers -= math.prod(size) ** (2 if func is torch.eye and len(size) == 1 else 1)
            if min(self.tensors, self.numbers) < 0:
                raise ValueError("the header describes a flow far larger than the tensors in the file; it is damaged or hostile")
        return func(*args, **kwargs)
