"""A discrete distribution, as a factor of a joint."""

import torch
from torch import Tensor, nn

from fluvial.bases.base import sample_shape
from fluvial.conditions import Condition, as_features


class Categorical(nn.Module):
    r"""A distribution over the integers 0 … classes − 1, for use as a factor of `Joint` (a number of jets, a residue type).

    .. math:: p(k|c) = \mathrm{softmax}\bigl(b + h(c)\bigr)_k

    Args:
        classes: Number of values.
        network: Optional module h from conditions (batch, features) to (batch, classes) logits.

    Raises:
        ValueError: If there are no classes.

    Example:
        >>> Categorical(4).log_prob(torch.tensor([0, 3])).exp()
        tensor([0.2500, 0.2500], grad_fn=<ExpBackward0>)
    """

    event_shape: tuple[int, ...] = ()
    has_rsample = False

    def __init__(self, classes: int, *, network: nn.Module | None = None) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"Categorical: classes must be at least 1, got {classes}")
        self.classes = classes
        self.network = network
        self.logits = nn.Parameter(torch.zeros(classes))

    def log_prob(self, k: Tensor, c: Condition = None) -> Tensor:
        r"""Log-probability of integers k (\*batch,), shape (\*batch,); −inf outside 0 … classes − 1."""
        log_p = self._logits(c).log_softmax(-1)
        index = k.long()
        inside = (index >= 0) & (index < self.classes)
        log_p = log_p.expand(*torch.broadcast_shapes(index.shape, log_p.shape[:-1]), self.classes)
        picked = log_p.gather(-1, torch.where(inside, index, 0).expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        return torch.where(inside, picked, -torch.inf)

    def sample(self, n: int | tuple[int, ...] = (), c: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Integers of shape (\*n, \*batch(c))."""
        shape = sample_shape(n, c)
        p = self._logits(c).softmax(-1).expand(*shape, self.classes)
        return torch.multinomial(p.reshape(-1, self.classes), 1, replacement=True, generator=generator).view(shape)

    def _logits(self, c: Condition) -> Tensor:
        return self.logits if self.network is None else self.logits + self.network(as_features(c))
