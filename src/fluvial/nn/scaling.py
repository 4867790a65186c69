"""Conditions brought to order one."""

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, as_features, as_rows


class ConditionScaling(nn.Module):
    r"""Shift and scale every entry of the condition to mean 0 and standard deviation 1 of the conditions it is fitted on.

    For use as a flow's ``context``: networks learn badly from a year such as 1980 or a temperature of 300 K. It is the identity until
    ``fit_`` is called; `fluvial.fit` does so on the training split. Derivatives with respect to c pass through it. An entry that is the
    same in all rows is shifted only.

    Args:
        features: Number of entries of the condition; a dict counts with all its leaves, in the order of their sorted names.

    Example:
        >>> scaling = ConditionScaling(1)
        >>> scaling.fit_(torch.tensor([[300.0], [500.0]]))
        >>> scaling(torch.tensor([[400.0], [500.0]])).flatten().tolist()
        [0.0, 1.0]
    """

    loc: Tensor
    scale: Tensor
    is_fitted: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"ConditionScaling: features must be positive, got {features}")
        self.features = features
        self.register_buffer("loc", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit_(self, c: Condition, weight: Tensor | None = None) -> None:
        """Take mean and spread from conditions of shape (n, features), each row counting with its weight (n,)."""
        rows = self._features(c).to(torch.float64)
        share = torch.full((len(rows), 1), 1 / len(rows), dtype=torch.float64, device=rows.device)
        if weight is not None:
            share = (weight.to(torch.float64) / weight.sum()).unsqueeze(1)
        loc = (share * rows).sum(0)
        scale = (share * (rows - loc).square()).sum(0).sqrt()
        self.loc.copy_(loc)
        self.scale.copy_(torch.where(scale > 1e-6 * loc.abs().clamp_min(1e-12), scale, 1.0))
        self.is_fitted.fill_(1)

    def forward(self, c: Condition) -> Tensor:
        """Conditions (rows, features), or a dict of such leaves -> (rows, features) of order one."""
        return (self._features(c) - self.loc) / self.scale

    def _features(self, c: Condition) -> Tensor:
        features = as_features(as_rows(c))
        if features is None or features.shape[-1] != self.features:
            got = "none" if features is None else tuple(features.shape)
            raise ValueError(f"ConditionScaling: expected a condition of shape (*batch, {self.features}), got {got}")
        return features.to(self.loc.dtype)

    def extra_repr(self) -> str:
        """How many entries, for repr."""
        return str(self.features)
