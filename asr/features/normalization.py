"""Normalisation over time, of an utterance as a whole or of what has been heard of it. See `asr.features`."""

import torch
from torch import Tensor

NORMALIZATIONS = ("utterance", "level", "running", "none")
PRIOR_FRAMES = 20
PRIOR_VARIANCE = {
    "log-mel": 9.0,
    "MFCC slaney": 50.0,
    "MFCC kaldi": 500.0,
}  # measured on an4 and fsdd, all features

_SMALLEST_VARIANCE = 1e-5


def normalized(features: Tensor, frames: Tensor, how: str, prior: float) -> Tensor:
    """Features `(batch, frames, size)` relative to their statistics over time; behind a row's own frames 0.

    Args:
        features: finite in every row's own frames.
        frames: `(batch,)` int64, on the same device.
        how: one of `NORMALIZATIONS`.
        prior: the variance that ``running`` starts from.
    """
    if how == "none":
        return _own(features, frames)
    over = (1, 2) if how == "level" else (1,)
    start = features[:, :1, :1] if how == "level" else features[:, :1]
    features = _own(features - start, frames)  # what is constant becomes 0 exactly
    if how == "running":
        return _own(_relative_to_past(features, prior), frames)
    count = frames.clamp(min=1)[:, None, None] * (features.shape[2] if how == "level" else 1)
    deviation = _own(features - features.sum(over, keepdim=True) / count, frames)
    variance = deviation.square().sum(over, keepdim=True) / count
    return deviation * (variance + _SMALLEST_VARIANCE).rsqrt()


def _own(features: Tensor, frames: Tensor) -> Tensor:
    """`features` with 0 behind each row's own `frames`."""
    if is_full(frames, features.shape[1]):
        return features
    beyond = torch.arange(features.shape[1], device=features.device) >= frames[:, None]
    return features.masked_fill(beyond[:, :, None], 0.0)


def is_full(lengths: Tensor, most: int) -> bool:
    """Whether no row is shorter than `most`; on a GPU never known, since asking would stall it."""
    return lengths.device.type == "cpu" and bool((lengths == most).all())


def _relative_to_past(features: Tensor, prior: float) -> Tensor:
    """``running``, summed in float64, since a mean square less a squared mean loses half the digits."""
    exact = features.double()
    count = torch.arange(1, features.shape[1] + 1, device=features.device)[:, None]
    mean = exact.cumsum(1) / count
    spread = (exact.square().cumsum(1) - count * mean.square()).clamp(min=0.0)
    variance = (spread + PRIOR_FRAMES * prior) / (count + PRIOR_FRAMES)
    return ((exact - mean) * variance.rsqrt()).to(features.dtype)
