"""What a model must know about the data it was trained on."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fluvial import manifolds
from fluvial.conditions import ConditionShape, condition_shape
from fluvial.manifolds import Euclidean, Manifold, Product, Torus


@dataclass(frozen=True)
class DataSpec:
    r"""The description of a data set that is stored with a model: shapes, names, units, and the noise training adds.

    .. math:: x_\text{train} = \mathrm{project}(x + u + \varepsilon), \qquad u_i \sim U[0, w_i), \quad \varepsilon_i \sim N(0, \sigma_i^2)

    Args:
        event_shape: Shape of one sample; an int n for vectors.
        manifold: Where samples live, or None for flat space.
        condition: Event shape of the condition c, a dict of them where c is a dict, or None.
        names: Column names of x, for vectors; on a torus, the names of the angles.
        condition_names: Column names of c, for a condition that is one vector.
        units: Unit of every column of x, for vectors; on a torus, of the angles.
        noise: Standard deviation σ of the Gaussian noise added to training batches, one number or one per column, in the units of x. On a `Product`
            with flat factors there may also be one per column of these, the others then get none.
        dequantize: Width w of the uniform noise added to training batches, one number or one per column (0: none), or None. On a `Product` with flat
            factors one number is for the columns of these only, and there may be one for each of them.
        dropped: Names of constant columns that were left out of x.

    Raises:
        ValueError: If names, units or noise do not fit the event shape, or a noise is negative or not finite.

    Example:
        >>> spec = DataSpec(2, names=("pt", "eta"), noise=(0.1, 0.0))
        >>> spec.event_shape, DataSpec.from_dict(spec.to_dict()) == spec
        ((2,), True)
    """

    event_shape: tuple[int, ...]
    manifold: Manifold | None = None
    condition: ConditionShape = None
    names: tuple[str, ...] | None = None
    condition_names: tuple[str, ...] | None = None
    units: tuple[str, ...] | None = None
    noise: float | tuple[float, ...] = 0.0
    dequantize: float | tuple[float, ...] | None = None
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (self.event_shape,) if isinstance(self.event_shape, int) else tuple(int(k) for k in self.event_shape)
        named = (self.manifold.dim,) if isinstance(self.manifold, Torus) else shape
        canonical = {
            "event_shape": shape,
            "condition": condition_shape(self.condition),
            "names": _texts(self.names, named, "names"),
            "condition_names": None if self.condition_names is None else tuple(map(str, self.condition_names)),
            "units": _texts(self.units, named, "units"),
            "noise": _widths(_on_flat(self.noise, self.manifold), shape, "noise"),
            "dequantize": None if self.dequantize is None else _widths(_on_flat(self.dequantize, self.manifold, steps=True), shape, "dequantize"),
            "dropped": tuple(map(str, self.dropped)),
        }
        if self.manifold is not None and self.manifold.event_shape != shape:
            raise ValueError(f"data: points on {self.manifold} have shape {self.manifold.event_shape}, got samples of shape {shape}")
        for key, value in canonical.items():
            object.__setattr__(self, key, value)

    def column(self, index: int) -> str:
        """The name of a column of x, counted through the flattened event, for messages."""
        if isinstance(self.manifold, Torus):
            index //= 2  # cosine and sine are of one angle
            return repr(self.names[index]) if self.names is not None else str(index)
        if self.names is not None:
            return repr(self.names[index])
        if len(self.event_shape) == 1:
            return str(index)
        return str(tuple(int(k) for k in torch.unravel_index(torch.tensor(index), self.event_shape)))

    def perturb(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Dequantise, add noise, and return to the manifold: what training does to a batch.

        Args:
            x: Batch of shape (B, \*event).
            generator: Source of randomness on x's device; default the global one.

        Returns:
            A new tensor of the same shape, or x itself where there is nothing to add.
        """
        clean = x
        if self.dequantize is not None and _any(self.dequantize):
            x = x + _scaled(torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device), self.dequantize)
        if _any(self.noise):
            x = x + _scaled(torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device), self.noise)
        return x if x is clean or self.manifold is None else self.manifold.project(x)

    def quantize(self, x: Tensor) -> Tensor:
        r"""Back from dequantised numbers to the steps of the data: ⌊x/w⌋ w where a width w is declared. Shape (\*batch, \*event)."""
        if self.dequantize is None:
            return x
        width = _scaled(torch.ones_like(x), self.dequantize)
        return torch.where(width > 0, torch.floor(x / torch.where(width > 0, width, 1.0)) * width, x)

    def is_perturbed(self) -> Tensor:
        """Which entries of the flattened event get noise of either kind, shape (prod(event),), bool."""
        flat = torch.zeros(math.prod(self.event_shape), dtype=torch.bool)
        for width in (self.noise, self.dequantize):
            if width is not None:
                flat |= torch.as_tensor(width) > 0
        return flat

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, texts, lists and dicts, ready for JSON."""
        shallow = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: _plain(value) for key, value in shallow.items()}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "DataSpec":
        """The inverse of `to_dict`. A manifold may also be given as the object itself.

        Raises:
            ValueError: If an entry is unknown, or the manifold is not one of ``fluvial.manifolds``.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(entries) - known):
            raise ValueError(f"DataSpec: unknown entries {unknown}; known are {sorted(known)}")
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}
        values["manifold"] = _manifold(values.get("manifold"))
        return cls(**values)

    def replace(self, **changes: Any) -> "DataSpec":
        """The same description with some entries changed."""
        return DataSpec(**{field.name: getattr(self, field.name) for field in fields(self)} | changes)


def _texts(texts: Sequence[str] | None, shape: tuple[int, ...], what: str) -> tuple[str, ...] | None:
    if texts is None:
        return None
    texts = tuple(map(str, texts))
    if len(shape) != 1 or len(texts) != shape[0]:
        raise ValueError(f"data: expected one entry of {what} per column of samples of shape {shape}, got {len(texts)}: {texts}")
    if what == "names" and len(set(texts)) < len(texts):
        twice = next(name for name in texts if texts.count(name) > 1)
        raise ValueError(f"data: column name {twice!r} occurs {texts.count(twice)} times; give every column its own name")
    return texts


def flat_columns(manifold: Manifold) -> list[bool]:
    """Which entries of the flattened points are numbers of flat space, through nested products."""
    if isinstance(manifold, Product):
        return [flat for factor in manifold.factors for flat in flat_columns(factor)]
    return [isinstance(manifold, Euclidean)] * math.prod(manifold.event_shape)


def _on_flat(width: Any, manifold: Manifold | None, *, steps: bool = False) -> Any:
    """Widths for the flat columns of a product as one per column; any others as they are."""
    flat = flat_columns(manifold) if isinstance(manifold, Product) else []
    if not any(flat) or all(flat):
        return width
    given = torch.as_tensor(width, dtype=torch.float64)
    if given.ndim == 1 and len(given) == sum(flat):
        values = iter(given.tolist())
        return tuple(next(values) if is_flat else 0.0 for is_flat in flat)
    # Rotations are not rounded to steps of their entries, but Gaussian noise can be projected back to them.
    return tuple(float(given) if is_flat else 0.0 for is_flat in flat) if steps and given.ndim == 0 and float(given) != 0 else width


def _widths(width: float | Sequence[float], shape: tuple[int, ...], what: str) -> float | tuple[float, ...]:
    flat = torch.as_tensor(width, dtype=torch.float64)
    if flat.ndim > 1 or (flat.ndim == 1 and (len(shape) != 1 or len(flat) != shape[0])):
        raise ValueError(f"data: {what} must be one number, or one per column of samples of shape {shape}; got shape {tuple(flat.shape)}")
    if not (torch.isfinite(flat).all() and (flat >= 0).all()):
        raise ValueError(f"data: {what} must be non-negative and finite, got {width}")
    return float(flat) if flat.ndim == 0 else tuple(flat.tolist())


def _any(width: float | tuple[float, ...]) -> bool:
    return any(width) if isinstance(width, tuple) else width > 0


def _scaled(unit: Tensor, width: float | tuple[float, ...]) -> Tensor:
    return unit * (torch.tensor(width, dtype=unit.dtype, device=unit.device) if isinstance(width, tuple) else width)


def _plain(value: Any) -> Any:
    if isinstance(value, Manifold):
        arguments = [name for name in inspect.signature(type(value).__init__).parameters if name != "self"]
        module = type(value).__module__
        path = "fluvial.manifolds" if module.startswith("fluvial.manifolds.") else module
        return {"class_path": f"{path}.{type(value).__name__}", "init_args": {name: _plain(getattr(value, name)) for name in arguments}}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


def _manifold(entry: Any) -> Manifold | None:
    if entry is None or isinstance(entry, Manifold):
        return entry
    path, _, name = str(entry["class_path"]).rpartition(".")
    found = getattr(manifolds, name, None) if path == "fluvial.manifolds" and name in manifolds.__all__ else None
    if not (inspect.isclass(found) and issubclass(found, Manifold)):
        raise ValueError(f"DataSpec: {entry['class_path']!r} is not a manifold of fluvial.manifolds; pass the object itself instead")
    arguments = {key: _argument(value) for key, value in entry.get("init_args", {}).items()}
    # What a constructor takes as *arguments is written down under their common name.
    starred = [p.name for p in inspect.signature(found.__init__).parameters.values() if p.kind is p.VAR_POSITIONAL]
    positional = [value for name in starred for value in arguments.pop(name, ())]
    return found(*positional, **arguments)


def _argument(value: Any) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        return _manifold(value)
    return tuple(_argument(entry) for entry in value) if isinstance(value, list) else value
