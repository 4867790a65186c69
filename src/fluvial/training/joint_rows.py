"""The data of a joint density: rows of named parts."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.conditions import Condition, leaves, transform
from fluvial.data.problems import check_weight
from fluvial.flow import Flow
from fluvial.joint import Joint
from fluvial.training.fitted import fit_parts_


class JointRows:
    r"""Rows whose parts are named after the factors of a `Joint`, with a condition and a weight each where there are any.

    Args:
        x: One tensor of shape (n, \*event) for each factor; what stands in the rows where a factor is absent does not matter.
        c: Condition, leaves of shape (n, \*condition event), or None.
        weight: Shape (n,), or None.
    """

    spec = None
    official = None

    def __init__(self, x: dict[str, Tensor], c: Condition = None, weight: Tensor | None = None) -> None:
        self.x, self.c, self.weight = x, c, weight

    @classmethod
    def of(cls, joint: Joint, data: Any) -> "JointRows":
        """From a dict of arrays by factor, (dict, c) or (dict, c, weight).

        Raises:
            TypeError: If the data are none of these.
            ValueError: If a part is missing or unknown, shapes differ, or a row where a factor is present is not finite.
        """
        if isinstance(data, cls):
            return data
        parts = data if isinstance(data, tuple) else (data,)
        if not 1 <= len(parts) <= 3 or not isinstance(parts[0], dict):
            raise TypeError(f"fit: a Joint is trained on a dict of arrays by factor, (dict, c) or (dict, c, weight), got {type(parts[0]).__name__}")
        given: dict[str, Any] = parts[0]
        c, weight = (*parts[1:], None, None)[:2]
        if set(given) != set(joint.factors):
            raise ValueError(f"fit: the joint has the factors {list(joint.factors)}, the data have {list(given)}")
        named = {name: _tensor(given[name]) for name in joint.factors}
        rows = cls(named, transform(c, _tensor), None if weight is None else _tensor(weight))
        rows._check(joint)
        return rows

    def _check(self, joint: Joint) -> None:
        n = len(self)
        others = {f"condition {name!r}": leaf for name, leaf in leaves(self.c).items()} | ({} if self.weight is None else {"weight": self.weight})
        for what, leaf in {**{f"factor {name!r}": leaf for name, leaf in self.x.items()}, **others}.items():
            if leaf.ndim == 0 or len(leaf) != n:
                raise ValueError(f"fit: {what} must have {n} rows as the first factor has, got shape {tuple(leaf.shape)}")
        check_weight(self.weight)
        for name, factor in joint.factors.items():
            space = getattr(factor, "manifold", factor)
            if tuple(self.x[name].shape[1:]) != tuple(space.event_shape):
                raise ValueError(f"fit: factor {name!r} must have samples of shape {tuple(space.event_shape)}, got {tuple(self.x[name].shape[1:])}")
            bad = ~torch.isfinite(self.x[name]).reshape(n, -1).all(1) & self.present(joint, name)
            if bool(bad.any()):
                raise ValueError(f"fit: row {int(bad.nonzero()[0])} of factor {name!r} is not finite ({int(bad.sum())} such rows of {n})")

    def present(self, joint: Joint, name: str) -> Tensor:
        """Where a factor is present, shape (n,)."""
        return joint._is_present(name, self.x, (len(self),)).to(self.x[name].device)

    def fit_codecs(self, joint: Joint) -> None:
        """Let every flow take what it needs from the rows where it is present."""
        for name, factor in joint.factors.items():
            if isinstance(factor, Flow):
                there = self.present(joint, name)
                c = transform(joint._condition(name, self.x, self.c, (len(self),)), lambda leaf: leaf[there])  # noqa: B023
                fit_parts_(factor, self.x[name][there], c, None if self.weight is None else self.weight[there])

    def __len__(self) -> int:
        return len(next(iter(self.x.values())))

    def __getitem__(self, index: Tensor) -> "JointRows":
        def pick(leaf: Tensor) -> Tensor:
            return leaf[index]

        return JointRows(transform(self.x, pick), transform(self.c, pick), None if self.weight is None else self.weight[index])  # pyright: ignore

    def to(self, target: torch.device | torch.dtype) -> "JointRows":
        """On another device, or with another floating-point format; whole numbers stay whole."""

        def move(leaf: Tensor) -> Tensor:
            return leaf.to(target) if isinstance(target, torch.device) or leaf.is_floating_point() else leaf

        return JointRows(transform(self.x, move), transform(self.c, move), None if self.weight is None else move(self.weight))  # pyright: ignore

    def cut(self, share: float, seed: int) -> tuple["JointRows", "JointRows"]:
        """Training rows and a share of held-out rows, by seed."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        held_out = max(1, round(share * len(self)))
        return self[order[held_out:]], self[order[:held_out]]


def _tensor(values: Any) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
