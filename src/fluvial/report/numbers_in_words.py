"""Figures as text."""

import math
from collections.abc import Mapping
from typing import Any

from fluvial.metrics.estimate import Estimate

# Key -> (what to call it, what it is).
KNOWN = {
    "ess": ("effective samples", "share of the flow's draws that count when weighed by the energy; 1 for an exact flow"),
    "ess_forward": ("effective samples, by exact samples", "the same by exact samples of the energy, which sees modes that the flow misses"),
    "log_z": ("log Z", "logarithm of the normalisation, by the flow's weighed draws"),
    "log_z_error": ("|log Z − exact|", "mean over the conditions"),
    "coverage": ("mass covered", "share of the energy's mass that the flow's draws account for"),
    "reverse_kl": ("KL(flow ‖ energy)", "nats; small also for a flow that misses modes"),
    "forward_kl": ("KL(energy ‖ flow)", "nats, by exact samples of the energy"),
    "pareto_k": ("Pareto k", "tail of the weights; from 0.7 effective samples and log Z are not to be trusted"),
    "nll": ("test NLL", "mean negative log-likelihood of held-out rows, nats; the density that samples come from; lower is better"),
    "nll_preimage": ("test NLL (decoder, at the preimage)", "the decoder's density at the data themselves, where decode(z) = x is solved"),
    "nll_encoder": ("test NLL (encoder)", "the same with the encoder's change of volume: a check on the first, not a density"),
    "gap_rows": ("gap", "mean |NLL encoder − NLL decoder| of single rows, nats; 0 where the networks are inverses"),
    "reconstruction": ("reconstruction", "root mean square of |x − decode(encode(x))|, in the units of the data"),
    "n": ("rows", "number of held-out rows"),
    "c2st": ("C2ST", "accuracy of a classifier that tells samples from data; 0.5 if it cannot"),
    "c2st_auc": ("C2ST, area under the curve", "the same classifier; 0.5 if it cannot"),
    "c2st_rounded": ("C2ST, rounded", "the same after samples went back to the steps and the range of the data"),
    "c2st_auc_rounded": ("C2ST, rounded, area under the curve", "the same classifier; 0.5 if it cannot"),
    "gap": ("NLL encoder − NLL decoder", "mean over the rows, nats"),
    "reconstruction_mean": ("reconstruction, mean", "mean of |x − decode(encode(x))|, in the units of the data"),
    "excess": ("NLL above the true density", "mean over the rows of the difference to the true density, nats; 0 is perfect"),
    "entropy": ("entropy of the truth", "the NLL of a perfect model, nats"),
    "normalisation": ("∫ p", "integral of the density by quadrature; 1 for a density"),
}
REFERENCES = {"exact": "exact", "truth": "true density", "uniform": "uniform", "kernel_density": "kernel density estimate", "pca": "PCA + Gaussian"}


def estimate_of(entry: Any) -> Estimate | None:
    """A number, an `Estimate` or its dict as an `Estimate`; None for anything else."""
    if isinstance(entry, Estimate):
        return entry
    if isinstance(entry, bool):
        return None
    if isinstance(entry, int | float):
        return Estimate(float(entry))
    if isinstance(entry, Mapping) and "value" in entry and not isinstance(entry["value"], str | Mapping):
        value, error = entry["value"], entry.get("standard_error", entry.get("error"))
        note = str(entry.get("note") or entry.get("source") or "")
        return Estimate(math.nan if value is None else float(value), math.nan if error is None else float(error), note=note)
    return None


def in_words(estimate: Estimate) -> str:
    """Value and error; whole numbers without decimals."""
    if not math.isfinite(estimate.value):
        return "not finite"
    if math.isnan(estimate.standard_error) and estimate.value == int(estimate.value) and abs(estimate.value) < 1e9:
        return f"{int(estimate.value):,}".replace(",", " ")
    return str(estimate)
