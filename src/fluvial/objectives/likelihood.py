"""Maximum likelihood of densities that are known exactly."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from fluvial.flow import Flow
from fluvial.joint import Joint
from fluvial.objectives.objective import Batch, Objective, Progress, training_mean, weighted_mean

if TYPE_CHECKING:
    from fluvial.data.dataset import Dataset


class MaximumLikelihood(Objective):
    r"""The negative log-likelihood of the data, weighted where rows carry weights.

    .. math:: L = -\frac{\sum_i w_i \log p(x_i|c_i)}{\sum_i w_i}

    Free-form flows are refused: trained on the exact log-determinant of one network their encoder and decoder drift apart, and a
    bottleneck collapses onto the direction of least variance.

    Raises:
        TypeError: In training, if the likelihood is not exact.
        ValueError: In training, if there are no data.
    """

    def prepare(self, flow: nn.Module, dataset: "Dataset | None") -> None:
        """Refuse flows whose likelihood is not exact."""
        if isinstance(flow, Flow) and not flow.is_bijective:
            raise TypeError(
                "MaximumLikelihood: this flow is free-form; train it with FreeFormLikelihood, which also keeps its two networks consistent"
            )
        if isinstance(flow, Joint) and not flow.is_bijective:
            raise TypeError("MaximumLikelihood: this joint has a free-form factor; train such factors one by one, each with fit(factor, (x, c))")

    def forward(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The mean NLL, as loss."""
        check_rows("MaximumLikelihood", batch)
        return {"loss": -training_mean(flow.log_prob(batch.x, batch.c), batch.weight)}

    def validate(self, flow: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The NLL of every row; its mean is the monitor."""
        check_rows("MaximumLikelihood", batch)
        nll = -flow.log_prob(batch.x, batch.c)
        return {"monitor": weighted_mean(nll, batch.weight), "nll": nll}


def check_rows(name: str, batch: Batch) -> None:
    """Refuse the empty rows, of shape (B, 0), that training without data hands out.

    Raises:
        ValueError: If the batch has such rows.
    """
    if isinstance(batch.x, Tensor) and batch.x.shape[1:] == (0,):
        raise ValueError(f"{name}: needs data, and got none; give them as fit(flow, data, …), or learn from an energy, as by ReverseKL(energy)")
