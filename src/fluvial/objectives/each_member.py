"""Training the members of an ensemble beside each other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fluvial.codecs import fit_codec_
from fluvial.ensemble import Ensemble
from fluvial.flow import Flow
from fluvial.nn import ConditionScaling
from fluvial.objectives.objective import Batch, Objective, Progress, weighted_mean

if TYPE_CHECKING:
    from fluvial.data.dataset import Dataset


class EachMember(Objective):
    r"""The sum of the members' own objectives, each on the same rows.

    .. math:: L = \sum_{k=1}^K L_k(\theta_k)

    Members share no parameters, so each descends its own objective; each is a parameter group of its own, clipped and guarded apart. The
    monitor is the mean of the members' monitors: best weights are those of the moment at which the members are best on average.

    Args:
        objectives: One for each member, in their order.
        bootstrap: Give every member its own random weights of the rows, Exp(1) with mean 1 (Rubin's Bayesian bootstrap), so that `Ensemble.spread`
            also tells how much hangs on single rows. Rows without an index, as without data, count alike.

    Raises:
        ValueError: If there is no objective.

    Example:
        >>> from fluvial.objectives import FreeFormLikelihood
        >>> EachMember([FreeFormLikelihood(beta=10.0), FreeFormLikelihood(beta=10.0)], bootstrap=True).bootstrap
        True
    """

    row_weights: Tensor

    def __init__(self, objectives: Sequence[Objective], *, bootstrap: bool = False) -> None:
        super().__init__()
        if len(objectives) == 0:
            raise ValueError("EachMember: expected one objective for each member, got none")
        self.objectives = nn.ModuleList(objectives)
        self.bootstrap = bootstrap
        self.adapt_every = max(part.adapt_every for part in objectives)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.adapt_rows = max(part.adapt_rows for part in objectives)  # pyright: ignore[reportIncompatibleVariableOverride]
        # Not in the state: it follows from the number of rows alone.
        self.register_buffer("row_weights", torch.ones(len(objectives), 0), persistent=False)

    def prepare(self, flow: nn.Module, dataset: "Dataset | None") -> None:
        """Fit the members' codecs and condition scalings that want data, prepare every objective, and draw the bootstrap weights."""
        members = self._members(flow)
        for member, part in zip(members, self._parts()):
            if dataset is not None:
                _fit(member, dataset)
            part.prepare(member, dataset)
        if self.bootstrap and dataset is not None:
            # The same for the same rows, so that resumed training goes on with them.
            draw = torch.rand(len(members), len(dataset), generator=torch.Generator().manual_seed(len(dataset)), dtype=torch.float64)
            weight = -torch.log1p(-draw)
            self.row_weights = (weight / weight.mean(1, keepdim=True)).to(dataset.x)

    def forward(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The sum of the losses; entries of member k are logged as k/entry."""
        total, logged = None, {}
        for k, (member, part) in enumerate(zip(self._members(flow), self._parts())):
            figures = part(member, self._weighted(batch, k), progress)
            loss = figures.pop("loss")
            total = loss if total is None else total + loss
            logged |= {f"{k}/loss": loss.detach()} | {f"{k}/{name}": value for name, value in figures.items()}
        return {"loss": total, **logged}  # pyright: ignore[reportReturnType]

    def validate(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """For every member its own scalar figures; where there are data the NLL of the mixture and the mean spread of its log-densities."""
        figures: dict[str, Tensor] = {}
        monitors = []
        for k, (member, part) in enumerate(zip(self._members(flow), self._parts())):
            own = part.validate(member, batch, progress)
            monitors.append(own.pop("monitor"))
            figures |= {f"{k}/{name}": value if value.ndim == 0 else weighted_mean(value, batch.weight) for name, value in own.items()}
        found = {"monitor": torch.stack(monitors).mean()}
        if batch.x.shape[1:] == flow.manifold.event_shape:
            found |= {"nll": -flow.log_prob(batch.x, batch.c), "spread": weighted_mean(flow.spread(batch.x, batch.c), batch.weight)}
        return {**found, **figures}

    def adapt(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Move the controllers of the objectives that have one."""
        moving = [(k, member, part) for k, (member, part) in enumerate(zip(self._members(flow), self._parts())) if part.adapt_every]
        return {f"{k}/{name}": value for k, member, part in moving for name, value in part.adapt(member, batch, progress).items()}

    def param_groups(self, flow: nn.Module) -> list[dict[str, Any]]:
        """The groups of every member."""
        return [group for member, part in zip(self._members(flow), self._parts()) for group in part.param_groups(member)]

    def _parts(self) -> list[Objective]:
        return list(self.objectives)  # pyright: ignore[reportReturnType]

    def _members(self, flow: nn.Module) -> list[Flow]:
        if not isinstance(flow, Ensemble):
            raise TypeError(f"EachMember: expected an Ensemble, got {type(flow).__name__}; train one flow by the objective itself")
        if len(flow.flows) != len(self.objectives):
            raise ValueError(f"EachMember: {len(self.objectives)} objectives for {len(flow.flows)} members; give one for each")
        return list(flow.flows)  # pyright: ignore[reportReturnType]

    def _weighted(self, batch: Batch, k: int) -> Batch:
        if batch.index is None or self.row_weights.shape[1] == 0:
            return batch
        own = self.row_weights[k][batch.index]
        return batch._replace(weight=own if batch.weight is None else own * batch.weight)


def _fit(member: Flow, dataset: "Dataset") -> None:
    """Let the parts of a member that want to see data and have not, see the training rows, with the noise of training."""
    c = dataset.c
    if isinstance(member.context, ConditionScaling) and c is not None and not bool(member.context.is_fitted):
        member.context.fit_(c, dataset.weight)
    with torch.no_grad():
        c = c if member.context is None or c is None else member.context(c)
        x = dataset.spec.perturb(dataset.x, torch.Generator(dataset.x.device).manual_seed(0))
        fit_codec_(member.codec, x, c, dataset.weight)
