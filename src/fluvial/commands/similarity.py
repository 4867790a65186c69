"""Samples against data, by classifiers."""

import math
from typing import Any

import torch
from torch import Tensor

from fluvial.conditions import leaves
from fluvial.data import Dataset
from fluvial.metrics import Estimate, c2st

CLASSIFIER_NUMBERS = 640_000  # rows × columns of each set of a two-sample test


def similarity(samples: Tensor, x: Tensor, c: Any, weight: Tensor | None, seed: int) -> dict[str, Estimate]:
    """Accuracy and AUC of a classifier between samples and data; nothing where there are too few rows, NaN where samples are not finite."""
    if len(x) < 20:
        return {}
    if not bool(torch.isfinite(samples).all()):
        return {"c2st": Estimate(math.nan, note="some samples are not finite")}
    columns = x[0].numel() + sum(leaf[0].numel() for leaf in leaves(c).values())
    rows = max(500, CLASSIFIER_NUMBERS // columns)
    score = c2st(samples, x, c=c, reference_c=c, reference_weight=weight, max_rows=rows, seed=seed)
    return {"c2st": score.accuracy, "c2st_auc": score.auc}


def discrete_similarity(samples: Tensor, test: Dataset, c: Any, weight: Tensor | None, seed: int) -> dict[str, Estimate]:
    """The same after samples of dequantised data have gone back to the steps and the range of the data."""
    if test.spec.dequantize is None:
        return {}
    raw = test.x.to(samples)
    rounded = test.spec.quantize(samples).clamp(raw.amin(), raw.amax())
    return {f"{name}_rounded": estimate for name, estimate in similarity(rounded, raw, c, weight, seed).items()}
