"""Coupling layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fluvial.codecs.codec import Bijection
from fluvial.codecs.transformer import Transformer
from fluvial.conditions import Condition, as_features, as_rows
from fluvial.manifolds import Euclidean
from fluvial.nn import MLP


class Coupling(Bijection):
    r"""Some coordinates are transformed, the others say how and stay as they are.

    .. math:: z_A = f\bigl(x_A;\ \theta(x_P, c)\bigr), \quad z_P = x_P, \qquad \log|\det| = \sum_{i \in A} \log f'(x_i; \theta_i)

    It is the identity before training. The network computes in whatever precision it is given (16 bits under autocast); the transformer always
    computes in that of x.

    Args:
        features: Number of coordinates.
        transformer: The increasing maps f, such as ``RationalQuadratic(16)``.
        active: Indices A of the coordinates to transform; default the second half. All of them, if there is none to look at.
        periodic: Indices of coordinates that are angles; the network sees their cosine and sine.
        context: Length of the condition, 0 for none.
        hidden: Widths of the network's hidden layers.
        activation: As of `fluvial.nn.MLP`. "silu" is smooth, so that derivatives in c are too.

    Raises:
        ValueError: If indices are out of range or repeated, or nothing would be transformed.
        TypeError: If transformer is no `Transformer`.

    References:
        Dinh, Krueger, Bengio (2014), "NICE: Non-linear independent components estimation", arXiv:1410.8516.
        Durkan, Bekasov, Murray, Papamakarios (2019), "Neural spline flows", arXiv:1906.04032.

    Example:
        >>> from fluvial.codecs import RationalQuadratic
        >>> layer = Coupling(2, RationalQuadratic(8), hidden=[16])
        >>> z, ladj = layer.encode_ladj(torch.randn(5, 2))
        >>> z.shape, ladj.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    _active: Tensor
    _passive: Tensor
    _back: Tensor

    def __init__(
        self,
        features: int,
        transformer: Transformer,
        *,
        active: Sequence[int] | None = None,
        periodic: Sequence[int] = (),
        context: int = 0,
        hidden: Sequence[int] = (128, 128, 128),
        activation: str = "silu",
    ) -> None:
        super().__init__()
        if not isinstance(transformer, Transformer):
            raise TypeError(f"Coupling: transformer must be a Transformer such as RationalQuadratic(16), got {type(transformer).__name__}")
        self.features = features
        self.transformer = transformer
        self.active = _indices("active", range(features // 2, features) if active is None else active, features)
        self.periodic = _indices("periodic", periodic, features)
        self.context = context
        if isinstance(hidden, int | str):
            raise TypeError(f"Coupling: hidden must be the widths of the hidden layers, such as [64, 64], got {hidden!r}")
        self.hidden = tuple(hidden)
        self.activation = activation
        if not self.active or context < 0:
            raise ValueError(f"Coupling: expected at least one active coordinate and context ≥ 0, got active={self.active}, context={context}")
        self.domain = self.codomain = Euclidean(features)
        passive = [i for i in range(features) if i not in self.active]
        turning = [k for k, i in enumerate(passive) if i in self.periodic]
        straight = [k for k, i in enumerate(passive) if i not in self.periodic]
        order = torch.tensor(passive + list(self.active))
        buffers = {"_passive": passive, "_active": self.active, "_back": torch.argsort(order), "_turning": turning, "_straight": straight}
        for name, index in buffers.items():
            self.register_buffer(name, torch.as_tensor(index, dtype=torch.int64), persistent=False)
        inputs = len(straight) + 2 * len(turning) + context
        start = transformer.start().repeat_interleave(len(self.active))
        if inputs:
            # The condition counts as part of the input: feature-major, the network sees one array.
            self.network: MLP | None = MLP(inputs, len(start), hidden=self.hidden, activation=activation)
            last = self.network.layers[-1]
            nn.init.zeros_(last.weight)
            with torch.no_grad():
                last.bias.copy_(start)
        else:
            self.network = None
            self.theta = nn.Parameter(start)

    def encode(self, x: Tensor, c: Condition = None) -> Tensor:
        """X of shape (batch, features) -> z."""
        return self.encode_ladj(x, c)[0]

    def decode(self, z: Tensor, c: Condition = None) -> Tensor:
        """The inverse; it costs what encode costs."""
        return self.decode_ladj(z, c)[0]

    def encode_ladj(self, x: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """Z of shape (batch, features) and log|det ∂z/∂x| of shape (batch,)."""
        passive, active, theta = self._read(x, c)
        moved, log_slope = self.transformer.encode(theta, active)
        return self._joined(passive, moved), log_slope.sum(0)

    def decode_ladj(self, z: Tensor, c: Condition = None) -> tuple[Tensor, Tensor]:
        """X of shape (batch, features) and log|det ∂x/∂z| of shape (batch,)."""
        passive, active, theta = self._read(z, c)
        moved, log_slope = self.transformer.decode(theta, active)
        return self._joined(passive, moved), log_slope.sum(0)

    def _read(self, x: Tensor, c: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Passive and active coordinates, (·, B), and the parameters (P, F, B) of the maps of the active ones."""
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"Coupling: expected rows of shape (batch, {self.features}), got {tuple(x.shape)}")
        # A coupling hands on the transpose of a feature-major array, so that in a chain of them nothing is rearranged here.
        columns = x.t()
        passive, active = columns.index_select(0, self._passive), columns.index_select(0, self._active)
        size = (self.transformer.n_parameters, *active.shape)
        if self.network is None:
            return passive, active, self.theta.unsqueeze(1).expand(-1, len(x)).unflatten(0, size[:2])
        return passive, active, self.network.columns(self._inputs(passive, c, len(x))).view(size)

    def _inputs(self, passive: Tensor, c: Condition, rows: int) -> Tensor:
        pieces = [passive]
        if self.periodic:
            angle = passive.index_select(0, self._turning)
            pieces = [passive.index_select(0, self._straight), torch.cos(angle), torch.sin(angle)]
        if self.context:
            condition = as_features(as_rows(c))
            if condition is None or condition.shape[-1] != self.context:
                got = "none" if condition is None else tuple(condition.shape)
                raise ValueError(f"Coupling: expected a condition of shape (*batch, {self.context}), got {got}")
            pieces.append(condition.to(passive.dtype).expand(rows, self.context).t())
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _joined(self, passive: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([passive, moved]).index_select(0, self._back).t()


def _indices(name: str, given: Sequence[int], features: int) -> tuple[int, ...]:
    indices = tuple(int(i) for i in given)
    if len(set(indices)) < len(indices) or any(not 0 <= i < features for i in indices):
        raise ValueError(f"Coupling: {name} must be different indices from 0 to {features - 1}, got {indices}")
    return indices
