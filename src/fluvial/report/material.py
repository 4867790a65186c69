"""Everything that a page shows, computed once."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.conditions import Condition
from fluvial.data import Dataset, as_dataset
from fluvial.flow import Flow
from fluvial.manifolds import Euclidean, SpecialOrthogonal, Sphere, Torus
from fluvial.metrics.likelihood import placed
from fluvial.report.draws import MOST_DRAWN, base_draws, condition_of, decode, draw, encode
from fluvial.report.settings import Setting, settings
from fluvial.report.theme import generator

MOST_ROWS = 5000  # of data, for everything but the figures that were computed elsewhere


@dataclass(frozen=True)
class Hints:
    """How to make what is missing: one sentence each."""

    history: str = "There is no history: pass history=fluvial.fit(…) to see the course of training."
    check: str = "There is no check: pass check=fluvial.check(flow, data)."
    metrics: str = "There are no figures: pass metrics=fluvial.metrics.figures(flow, data)."
    configuration: str = ""


@dataclass(frozen=True)
class Material:
    """A flow, held-out rows, and what was made of both."""

    flow: Flow
    dataset: Dataset
    x: Tensor
    c: Condition
    weight: Tensor | None
    z: Tensor
    base: Tensor
    rebuilt: Tensor
    samples: Tensor
    settings: list[Setting]
    title: str
    seed: int
    history: list[dict[str, Any]]
    history_note: str = ""
    best: dict[str, Any] | None = None
    stopped: str = ""
    check: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    published: Any = None
    rows_in_all: int = 0
    which: str = "rows"
    note: str = ""
    configuration: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    hints: Hints = field(default_factory=Hints)

    @staticmethod
    def of(
        flow: Flow,
        dataset: Any,
        *,
        history: Any = None,
        check: Any = None,
        metrics: dict[str, Any] | None = None,
        title: str = "",
        seed: int = 0,
        **more: Any,
    ) -> "Material":
        """Encode, decode and draw; `dataset` are held-out rows."""
        if not isinstance(flow, Flow):
            raise TypeError(f"report: expected a Flow, got {type(flow).__name__}; make a page for each factor of a Joint")
        data = as_dataset(dataset)
        if tuple(data.x.shape[1:]) != flow.manifold.event_shape:
            wanted = ", ".join(map(str, flow.manifold.event_shape))
            raise ValueError(f"report: expected data of shape (n, {wanted}) for this flow, got {tuple(data.x.shape)}")
        if flow.condition is not None and data.c is None:
            raise ValueError(f"report: this flow is conditional; give data with a condition of shape {flow.condition}: (x, c)")
        total = len(data)
        if total > MOST_ROWS:
            data = data[np.sort(np.random.default_rng(seed).permutation(total)[:MOST_ROWS])]
        x, c, weight = placed(flow, data, seed=seed)
        c = condition_of(flow, x, c)
        z = encode(flow, x, c)
        count = max(len(x), MOST_DRAWN) if c is None else len(x)
        rows = getattr(history, "rows", history) or []
        return Material(
            flow=flow,
            dataset=data,
            x=x,
            c=c,
            weight=weight,
            z=z,
            base=base_draws(flow, count, c, seed=seed + 1),
            rebuilt=decode(flow, z, c),
            samples=draw(flow, count, c, seed=seed),
            settings=settings(c, len(x), names=data.spec.condition_names),
            title=title or data.name or "Flow",
            seed=seed,
            history=list(rows),
            best=getattr(history, "best", None),
            stopped=getattr(history, "stopped", ""),
            check=check.to_dict() if hasattr(check, "to_dict") else check,
            metrics=metrics,
            rows_in_all=total,
            **more,
        )

    @property
    def distance(self) -> Tensor:
        """Distance of every row to its reconstruction, in a straight line where the space knows no other, shape (n,)."""
        try:
            return self.flow.manifold.distance(self.x, self.rebuilt)
        except NotImplementedError:
            return (self.x - self.rebuilt).flatten(1).norm(dim=1)

    @property
    def measure(self) -> str:
        """What `distance` measures: along the space where that is curved, in radians where geodesics are counted in angles."""
        manifold = self.flow.manifold
        if isinstance(manifold, Euclidean):
            return "distance"
        try:
            manifold.distance(self.x[:1], self.x[:1])
        except NotImplementedError:
            return "straight-line distance (chord)"
        return "geodesic distance" + (", radians" if isinstance(manifold, Sphere | Torus | SpecialOrthogonal) else "")

    @property
    def spread(self) -> float:
        """How far the rows lie apart, to compare distances with: root mean square distance from their mean, or 1/√2 of that between two of them."""
        flat = self.x.flatten(1).double()
        share = torch.ones_like(flat[:, 0]) if self.weight is None else self.weight.double()
        share = share / share.sum()
        if not isinstance(self.flow.manifold, Euclidean):
            try:
                # There is no mean on a curved space, but the two are the same in flat space.
                first, second = torch.multinomial(share, 2 * len(share), replacement=True, generator=generator(share, self.seed)).chunk(2)
                return float((self.flow.manifold.distance(self.x[first], self.x[second]).double().square().mean() / 2).sqrt())
            except NotImplementedError:
                pass
        share = share.unsqueeze(1)
        return float((share * (flat - (share * flat).sum(0)).square()).sum().clamp_min(0).sqrt())
