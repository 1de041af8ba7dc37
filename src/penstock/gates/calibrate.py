"""Calibration of probabilities, which every threshold on a probability takes for granted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.core import DataError

_LOG_RANGE = 8.0


def _check(who: str, scores: Tensor, labels: Tensor) -> None:
    if scores.shape != labels.shape or not scores.numel():
        raise DataError(
            f"{who}: labels must have the shape of the scores, with one event at least, "
            f"got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if not bool(scores.isfinite().all()):
        raise DataError(
            f"{who}: scores must be finite, got one that is not at {int((~scores.isfinite()).flatten().nonzero()[0])}"
        )
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise DataError(f"{who}: labels must be 0 or 1, got {labels[(labels != 0) & (labels != 1)][0].item()!r}")


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    r"""Return the temperature that makes `sigmoid(logits / temperature)` fit held-out labels best.

    $$ \tau = \arg\min_\tau \; -\sum_i y_i \log \sigma(a_i / \tau) + (1 - y_i) \log(1 - \sigma(a_i / \tau)) $$

    Guo et al., "On Calibration of Modern Neural Networks" (2017). The likelihood is convex in the inverse temperature,
    which is found by bisection; where labels and scores disagree throughout, or agree throughout, it ends at the bounds
    $e^{\pm 8}$.

    Args:
        logits: scores on data that was not trained on.
        labels: what came true, 0 or 1.

    Raises:
        DataError: if there is no event, a score is not finite, or a label is neither 0 nor 1.
    """
    _check("fit_temperature", logits, labels)
    scores, truth = logits.detach().double(), labels.double()
    low, high = torch.tensor(-_LOG_RANGE).double(), torch.tensor(_LOG_RANGE).double()
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((torch.sigmoid(scores * middle.exp()) - truth) * scores).mean()
        low, high = (middle, high) if slope <= 0 else (low, middle)
    return float((-(low + high) / 2).exp())


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error: the mean gap between probability and frequency, over bins of equal width.

    Raises:
        DataError: as `fit_temperature` does.
    """
    _check("calibration_error", probabilities, labels)
    place = (probabilities * bins).long().clamp(0, bins - 1).flatten()
    members = F.one_hot(place, bins).double()
    gaps = members.T @ (probabilities.double() - labels.double()).flatten()
    return float(gaps.abs().sum() / probabilities.numel())
