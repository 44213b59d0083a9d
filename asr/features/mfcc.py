"""Mel-frequency cepstral coefficients. The conventions: `asr.features`."""

import math
from typing import Any, overload

import torch
import torchaudio
from torch import Tensor, nn

from asr.features.checks import whole_number
from asr.features.log_mel import LogMel
from asr.features.normalization import PRIOR_VARIANCE, check, normalized

_LIFTER = 22


class MFCC(nn.Module):
    """Mel-frequency cepstral coefficients: DCT-II, orthonormal, of log-mel energies (kaldi: with lifter 22).

    The first stands for the frame's level. In the ``slaney`` convention these are ``librosa.feature.mfcc`` of
    natural logarithms (where librosa itself takes decibels: a factor 10 / ln 10, and another floor).

    Args:
        coefficients: 1 to `mels`.
        normalize: of the coefficients.
        settings: the others of `LogMel`.

    Attributes: `rate` (Hz), `hop` (seconds between frames, exactly), `size` (features a frame).

    Raises:
        InputError: a setting is out of its range (status 2).
    """

    _transform: Tensor

    def __init__(self, *, coefficients: int = 13, normalize: str = "utterance", **settings: Any) -> None:
        super().__init__()
        check(normalize, settings.get("top_db"))
        self.log_mel = LogMel(**settings, normalize="none")
        mels = self.log_mel.size
        whole_number("coefficients", coefficients, 1, mels)
        self.rate = self.log_mel.rate
        self.hop = self.log_mel.hop
        self.size = coefficients
        self.normalize = normalize
        transform = torchaudio.functional.create_dct(coefficients, mels, "ortho")
        if self.log_mel.convention == "kaldi":
            order = torch.arange(coefficients)
            transform = transform * (1 + 0.5 * _LIFTER * torch.sin(math.pi * order / _LIFTER))
        self._prior = PRIOR_VARIANCE[f"MFCC {self.log_mel.convention}"]
        self.register_buffer("_transform", transform, persistent=False)

    @overload
    def frames(self, samples: int) -> int: ...
    @overload
    def frames(self, samples: Tensor) -> Tensor: ...
    def frames(self, samples: int | Tensor) -> int | Tensor:
        """How many frames so many samples give: a number, or int64 of any shape."""
        return self.log_mel.frames(samples)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a batch; arguments and results as in `LogMel.forward`."""
        energies, frames = self.log_mel(waveforms, lengths)
        with torch.autocast(waveforms.device.type, enabled=False):
            coefficients = energies @ self._transform
            return normalized(coefficients, frames.to(energies.device), self.normalize, self._prior), frames
