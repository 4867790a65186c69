"""Learning from samples alone, by comparing them in a kernel."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fluvial.conditions import Condition, as_features, as_rows
from fluvial.flow import Flow
from fluvial.metrics.mmd import Kernel, squared_mmd
from fluvial.objectives.energy_target import check_samples
from fluvial.objectives.likelihood import check_rows
from fluvial.objectives.objective import Batch, Objective, Progress

if TYPE_CHECKING:
    from fluvial.data.dataset import Dataset

MEDIAN_ROWS = 2000


class MaximumMeanDiscrepancy(Objective):
    r"""The squared maximum mean discrepancy between the data and as many samples of the flow.

    .. math:: L = E\,k(x, x') + E\,k(y, y') - 2\,E\,k(x, y), \qquad y \sim p_\theta

    estimated without bias, with a kernel of several bandwidths. It needs samples of the flow and no density, so that it trains every flow; of a
    free-form flow the decoder alone, which is why it belongs there into a `WeightedSum` beside `FreeFormLikelihood`. With conditions, the joint
    distribution of x and c is compared: y_i is drawn under c_i, and the kernel is multiplied by one of the standardised conditions.

    Args:
        bandwidths: Widths h of the kernel, in units of the median distance between two training rows.
        kernel: "multiquadric", 1/(1 + d²/2h²), whose slope still pulls where samples are far from all data; or "gaussian", exp(−d²/2h²).
        condition_width: Width of the kernel of conditions, in their standard deviations.

    Raises:
        ValueError: If a width is not positive, or kernel is neither of these; in training if there are no data, or the parameters of the base are
            out of reach of its samples, as those of `VonMisesFisherMixture`.

    References:
        Gretton et al. (2012), A kernel two-sample test, JMLR 13; Li, Swersky, Zemel (2015), Generative moment matching networks, arXiv:1502.02761.

    Example:
        >>> MaximumMeanDiscrepancy((0.1, 1.0)).bandwidths
        (0.1, 1.0)
    """

    unit: Tensor
    condition_loc: Tensor
    condition_scale: Tensor

    def __init__(self, bandwidths: Sequence[float] = (0.02, 0.1, 0.5), *, kernel: Kernel = "multiquadric", condition_width: float = 0.5) -> None:
        super().__init__()
        if not isinstance(bandwidths, Sequence) or len(bandwidths) == 0:
            raise ValueError(f"MaximumMeanDiscrepancy: bandwidths are a list of positive widths, such as (0.1, 0.5), got {bandwidths!r}")
        if not all(isinstance(h, int | float) and 0 < h < math.inf for h in (*bandwidths, condition_width)):
            raise ValueError(f"MaximumMeanDiscrepancy: widths must be positive numbers, got {tuple(bandwidths)} and {condition_width}")
        if kernel not in ("gaussian", "multiquadric"):
            raise ValueError(f"MaximumMeanDiscrepancy: kernel is 'gaussian' or 'multiquadric', got {kernel!r}")
        self.bandwidths = tuple(float(h) for h in bandwidths)
        self.kernel: Kernel = kernel
        self.condition_width = condition_width
        # Taken from the training rows; until then widths are in the units of the data.
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("condition_loc", torch.zeros(()))
        self.register_buffer("condition_scale", torch.ones(()))

    def prepare(self, flow: nn.Module, dataset: "Dataset | None") -> None:
        """Take the median distance of the training rows, and mean and spread of their conditions."""
        if not isinstance(flow, Flow):
            raise TypeError(f"MaximumMeanDiscrepancy: expected a Flow, got {type(flow).__name__}; train the factors of a Joint one by one")
        if flow.is_bijective:
            # Of a free-form flow it trains the decoder alone; the rest, the base with it, is left to the likelihood beside it.
            check_samples("MaximumMeanDiscrepancy", flow, "use MaximumLikelihood, or a base of fixed parameters (learnable=False)")
        if dataset is None:
            return
        rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:MEDIAN_ROWS].to(dataset.x.device)
        distance = torch.nn.functional.pdist(dataset.x[rows].flatten(1)).median()
        self.unit.copy_(torch.where(distance > 0, distance, 1.0))
        if dataset.c is not None:
            spread, mean = torch.std_mean(_numbers(dataset.c), 0, correction=0)
            self.condition_loc, self.condition_scale = mean.to(self.unit), torch.where(spread > 0, spread, 1.0).to(self.unit)

    def forward(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The loss between the batch and as many samples."""
        return {"loss": self._discrepancy(flow, batch, progress)}

    def validate(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The same on held-out rows as monitor, and their NLL where it is exact."""
        found = {"monitor": self._discrepancy(flow, batch, progress)}
        return found | ({"nll": -flow.log_prob(batch.x, batch.c)} if isinstance(flow, Flow) and flow.is_bijective else {})

    def _discrepancy(self, flow: nn.Module, batch: Batch, progress: Progress) -> Tensor:
        check_rows("MaximumMeanDiscrepancy", batch)
        y = flow.sample(len(batch.x), generator=progress.source) if batch.c is None else flow.sample((), batch.c, generator=progress.source)
        paired = None if batch.c is None else (_numbers(batch.c) - self.condition_loc) / (self.condition_width * self.condition_scale)
        widths = self.unit * self.unit.new_tensor(self.bandwidths)
        return squared_mmd(batch.x, y, bandwidths=widths, kernel=self.kernel, weight=batch.weight, paired=paired)


def _numbers(c: Condition) -> Tensor:
    """Conditions as rows of numbers."""
    return as_features(as_rows(c))  # pyright: ignore[reportReturnType]
