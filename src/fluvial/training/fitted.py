"""What a flow takes from its data before training."""

import torch
from torch import Tensor

from fluvial.codecs import fit_codec_
from fluvial.conditions import Condition
from fluvial.flow import Flow
from fluvial.nn import ConditionScaling


@torch.no_grad()
def fit_parts_(flow: Flow, x: Tensor, c: Condition = None, weight: Tensor | None = None) -> None:
    """Fit the scaling of the condition, then every codec on what the parts before it make of x, unless that was done before."""
    context = flow.context
    if isinstance(context, ConditionScaling) and c is not None and not bool(context.is_fitted):
        context.fit_(c, weight)
    fit_codec_(flow.codec, x, c if context is None or c is None else context(c), weight)
