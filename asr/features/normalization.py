"""Floor and normalisation over time, of an utterance as a whole or of what has been heard of it. See `asr.features`."""

import math

import torch
from torch import Tensor

from asr.errors import InputError
from asr.features.checks import choice

NORMALIZATIONS = ("utterance", "level", "running", "none")
PRIOR_FRAMES = 20
PRIOR_VARIANCE = {
    "log-mel": 9.0,
    "MFCC slaney": 50.0,
    "MFCC kaldi": 500.0,
}  # measured on an4 and fsdd, all features

_SMALLEST_VARIANCE = 1e-5


def check(how: str, top_db: float | None) -> None:
    """Refuse, with an InputError of status 2, an unknown normalisation, and a floor that it can't have."""
    choice("normalize", how, NORMALIZATIONS)
    if how == "running" and top_db is not None:
        raise InputError(
            f"features.top_db={top_db}: normalize=running can't know the file's loudest; set null", status=2
        )


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


def floored(features: Tensor, frames: Tensor, top_db: float) -> Tensor:
    """Log-energies `(batch, frames, bands)`, none more than `top_db` decibels below its row's loudest."""
    loudest = _own(features, frames, -math.inf).amax((1, 2), keepdim=True)
    return features.maximum(loudest - top_db * math.log(10) / 10)


def _own(features: Tensor, frames: Tensor, beyond_them: float = 0.0) -> Tensor:
    """`features` with 0 (or another value) behind each row's own `frames`."""
    if is_full(frames, features.shape[1]):
        return features
    beyond = torch.arange(features.shape[1], device=features.device) >= frames[:, None]
    return features.masked_fill(beyond[:, :, None], beyond_them)


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
