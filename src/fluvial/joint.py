"""A product of conditional factors as one density."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, as_features, batch_shape, draw_shape, leaves, transform
from fluvial.flow import Flow

Sample = dict[str, Tensor]


class Joint(nn.Module):
    r"""An ordered product of named factors, each conditioned on earlier ones and present only for given values of them.

    .. math:: p(x|c) = \prod_k p_k\bigl(x_k \mid x_{\mathrm{parents}(k)}, c\bigr)^{[k\ \mathrm{present}]}

    For instance p(n) p(x₁|n) p(x₂|x₁, n), the last factor present for n = 2 only. A sample is a dict of tensors; the entry of an absent
    factor is 0 and counts for nothing.

    Args:
        factors: Flows, bases or discrete distributions by name, in order.
        parents: For a factor, the names of the earlier factors (and of entries of c) that it is conditioned on; it sees them as a dict. A
            factor that is not named here sees nothing.
        present: For a factor, ``{earlier factor: values}``: it is present where every named discrete factor has one of its values.

    Raises:
        TypeError: If a factor has no density and samples.
        ValueError: If a name is unknown or does not come earlier.

    Example:
        >>> import fluvial as fl
        >>> joint = Joint({"n": fl.bases.Categorical(2), "x": Flow(fl.codecs.Standardize(3), fl.bases.Normal(3))}, present={"x": {"n": [1]}})
        >>> sample = joint.sample(4)
        >>> {name: tuple(value.shape) for name, value in sample.items()}
        {'n': (4,), 'x': (4, 3)}
    """

    def __init__(
        self,
        factors: Mapping[str, nn.Module],
        *,
        parents: Mapping[str, Sequence[str]] | None = None,
        present: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    ) -> None:
        super().__init__()
        self.factors = nn.ModuleDict(dict(factors))
        self.parents = {name: tuple(of) for name, of in (parents or {}).items()}
        self.present = {name: {k: tuple(v) for k, v in rule.items()} for name, rule in (present or {}).items()}
        self.spec: Any = None
        names = list(self.factors)
        for name, factor in self.factors.items():
            if not (hasattr(factor, "log_prob") and hasattr(factor, "sample")):
                raise TypeError(f"Joint: factor {name!r} must have log_prob and sample, got {type(factor).__name__}")
        for name in (*self.parents, *self.present):
            if name not in names:
                raise ValueError(f"Joint: {name!r} is not a factor; the factors are {names}")
        for name, rule in self.present.items():
            for earlier in rule:
                if earlier not in names[: names.index(name)]:
                    raise ValueError(f"Joint: {name!r} is present by the value of {earlier!r}, which is not an earlier factor; the order is {names}")
        for name, of in self.parents.items():
            later = [p for p in of if p in names and names.index(p) >= names.index(name)]
            if later:
                raise ValueError(f"Joint: {name!r} has the parents {later}, which do not come earlier; the order is {names}")
        for name, factor in self.factors.items():
            if getattr(factor, "condition", None) is not None and not self.parents.get(name):
                raise ValueError(
                    f"Joint: factor {name!r} takes a condition but has no parents; name what it depends on, as parents={{{name!r}: [...]}}: "
                    "earlier factors, or entries of the joint's own condition ('c' where that is one tensor)"
                )

    @property
    def is_bijective(self) -> bool:
        """Whether every factor's density is exact."""
        return all(not isinstance(factor, Flow) or factor.is_bijective for factor in self.factors.values())

    def log_prob(self, x: Sample, c: Condition = None) -> Tensor:
        r"""Log-density of a dict of entries (\*batch, \*event), shape (\*batch,); absent entries count for nothing.

        Raises:
            ValueError: If an entry is missing.
        """
        total = None
        for name, value in self.log_prob_factors(x, c).items():
            del name
            total = value if total is None else total + value
        return total  # pyright: ignore[reportReturnType]

    def log_prob_factors(self, x: Sample, c: Condition = None) -> dict[str, Tensor]:
        r"""The summands of `log_prob` by factor, each (\*batch,) and 0 where the factor is absent."""
        missing = [name for name in self.factors if name not in x]
        if missing:
            raise ValueError(f"Joint: the sample lacks the entries {missing}; it has {sorted(x)}")
        batch = self._batch(x)
        found = {}
        for name, factor in self.factors.items():
            there = self._is_present(name, x, batch)
            rows = there.reshape(-1).nonzero().squeeze(-1)
            # Only the rows where it is present pass through a factor: what stands in the others may be anything.
            value = x[name]
            event = value.ndim - len(batch)
            flat = value.reshape(-1, *value.shape[value.ndim - event :] if event else ())[rows]
            condition = transform(self._condition(name, x, c, batch), lambda leaf: leaf[rows])  # noqa: B023
            log_p = factor.log_prob(flat, condition)
            found[name] = log_p.new_zeros(there.numel()).index_copy(0, rows, log_p).view(batch)
        return found

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Sample:
        r"""Draw every factor in order: a dict of entries (\*n, \*batch(c), \*event), 0 where absent."""
        shape = (*draw_shape(n), *batch_shape(c))
        drawn: Sample = {}
        for name, factor in self.factors.items():
            there = self._is_present(name, drawn, shape)
            rows = there.reshape(-1).nonzero().squeeze(-1)
            condition = transform(self._condition(name, drawn, c, shape), lambda leaf: leaf[rows])  # noqa: B023
            value = factor.sample(() if condition is not None else len(rows), condition, generator=generator)
            event = value.shape[1:]
            drawn[name] = value.new_zeros(there.numel(), *event).index_copy(0, rows, value).view((*shape, *event))
        return drawn

    def sample_and_log_prob(
        self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None
    ) -> tuple[Sample, Tensor]:
        r"""Draws, and the log-density of exactly these draws (that of their own latent for free-form factors), shape (\*n, \*batch(c))."""
        shape = (*draw_shape(n), *batch_shape(c))
        drawn: Sample = {}
        total = None
        for name, factor in self.factors.items():
            there = self._is_present(name, drawn, shape)
            rows = there.reshape(-1).nonzero().squeeze(-1)
            condition = transform(self._condition(name, drawn, c, shape), lambda leaf: leaf[rows])  # noqa: B023
            count = () if condition is not None else len(rows)
            if hasattr(factor, "sample_and_log_prob"):
                value, log_p = factor.sample_and_log_prob(count, condition, generator=generator)
            else:
                value = factor.sample(count, condition, generator=generator)
                log_p = factor.log_prob(value, condition)
            event = value.shape[1:]
            drawn[name] = value.new_zeros(there.numel(), *event).index_copy(0, rows, value).view((*shape, *event))
            part = log_p.new_zeros(there.numel()).index_copy(0, rows, log_p).view(shape)
            total = part if total is None else total + part
        return drawn, total  # pyright: ignore[reportReturnType]

    def encode(self, x: Sample, c: Condition = None) -> Sample:
        """Latents of every flow among the factors; other factors are their own latent."""
        return self._through("encode", x, x, c)

    def decode(self, z: Sample, c: Condition = None) -> Sample:
        """Latents -> data, in order, every factor seeing the decoded values of its parents."""
        return self._through("decode", z, None, c)

    def reconstruct(self, x: Sample, c: Condition = None) -> Sample:
        """decode(encode(x))."""
        return self.decode(self.encode(x, c), c)

    def forward(self, x: Sample, c: Condition = None) -> Tensor:
        """The same as `log_prob`."""
        return self.log_prob(x, c)

    def _through(self, side: str, values: Sample, known: Sample | None, c: Condition) -> Sample:
        """Apply one side of every flow on the rows where it is present; parents are read from `known`, or else from what is done so far."""
        batch = self._batch(values)
        done: Sample = {}
        for name, factor in self.factors.items():
            seen = done if known is None else known
            value = values[name]
            if not isinstance(factor, Flow):
                done[name] = value
                continue
            there = self._is_present(name, seen, batch)
            rows = there.reshape(-1).nonzero().squeeze(-1)
            condition = transform(self._condition(name, seen, c, batch), lambda leaf: leaf[rows])  # noqa: B023
            out = getattr(factor, side)(value.reshape(-1, *value.shape[len(batch) :])[rows], condition)
            done[name] = out.new_zeros(there.numel(), *out.shape[1:]).index_copy(0, rows, out).view((*batch, *out.shape[1:]))
        return done

    def _batch(self, x: Sample) -> tuple[int, ...]:
        """The common batch shape, read off the first factor, whose event shape is known."""
        name, factor = next(iter(self.factors.items()))
        event = factor.manifold.event_shape if hasattr(factor, "manifold") else factor.event_shape
        return tuple(x[name].shape[: x[name].ndim - len(event)])

    def _is_present(self, name: str, x: Sample, batch: tuple[int, ...]) -> Tensor:
        device = next((p.device for p in (*self.parameters(), *self.buffers())), None)
        there = torch.ones(batch, dtype=torch.bool, device=device)
        for other, values in self.present.get(name, {}).items():
            there = there & torch.isin(x[other], torch.tensor(values, device=x[other].device, dtype=x[other].dtype))
        return there

    def _condition(self, name: str, x: Sample, c: Condition, batch: tuple[int, ...]) -> Condition:
        """What a factor sees: its parents and entries of c as rows (prod(batch), features), by name; None for a factor without parents."""
        if name not in self.parents:
            return None
        given = leaves(c)
        seen = {}
        # Labels and other integers enter a factor as numbers of its own kind.
        dtype = next((t.dtype for t in (*self.factors[name].parameters(), *self.factors[name].buffers()) if t.is_floating_point()), None)
        for parent in self.parents[name]:
            if parent not in x and parent not in given:
                raise ValueError(
                    f"Joint: {name!r} is conditioned on {parent!r}, which is neither an earlier factor nor an entry of c ({sorted(given)})"
                )
            leaf = x[parent] if parent in x else given[parent]
            features = leaf.shape[len(batch) :] if parent in x else leaf.shape[-1:]
            seen[parent] = leaf.to(dtype or torch.get_default_dtype()).expand(*batch, *features).reshape(-1, *(features or (1,)))
        factor = self.factors[name]
        # A flow that declares one tensor sees its parents side by side, in the order of their names.
        return as_features(seen) if isinstance(factor, Flow) and isinstance(factor.condition, tuple) else seen
