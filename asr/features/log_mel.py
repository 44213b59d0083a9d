"""Log-mel energies. The conventions: `asr.features`."""

import functools
import math
from typing import overload

import torch
from torch import Tensor, nn

from asr.errors import InputError
from asr.features.checks import choice, number, whole_number
from asr.features.filters import checked_filters, groups, mel_filters, taper
from asr.features.normalization import PRIOR_VARIANCE, check, floored, is_full, normalized

CONVENTIONS = ("slaney", "kaldi")

_FLOORS = {"slaney": 1e-10, "kaldi": 2.0**-23}
_PREEMPHASIS = 0.97
_WINDOW_SAMPLES = (16, 32768)
_SHORTEST_HOP = 0.001  # seconds
_BLOCK = 1024  # frames at a time on a CPU, so that their spectra stay in its cache


class LogMel(nn.Module):
    """Log-mel energies, `mels` a frame.

    Args:
        rate: of the waveforms, 1000 to 768000 Hz.
        mels: bands, 1 to 256 (kaldi: from 4), and no more than the FFT's resolution can fill.
        window: seconds, 16 to 32768 samples (a fraction of a sample is cut off, as of hop).
        hop: seconds from frame to frame, 0.001 to `window`.
        low: lower edge of the lowest band in Hz, from 0.
        high: upper edge of the highest band in Hz, above `low`; None is half the rate, which is the most.
        convention: ``slaney`` or ``kaldi``.
        normalize: ``utterance``, ``level``, ``running`` or ``none``.
        top_db: energies more than so many decibels below the file's loudest are raised to that, 1 to 200; None: not.

    Attributes: `rate` (Hz), `hop` (seconds between frames, exactly), `size` (features a frame).

    Raises:
        InputError: a setting is out of its range (status 2).
    """

    _taper: Tensor
    _filters: Tensor

    def __init__(
        self,
        *,
        rate: int = 16000,
        mels: int = 80,
        window: float = 0.025,
        hop: float = 0.01,
        low: float = 20.0,
        high: float | None = None,
        convention: str = "slaney",
        normalize: str = "utterance",
        top_db: float | None = None,
    ) -> None:
        super().__init__()
        choice("convention", convention, CONVENTIONS)
        check(normalize, top_db)
        whole_number("rate", rate, 1000, 768_000)
        least_mels = 4 if convention == "kaldi" else 1  # torchaudio's rule
        whole_number("mels", mels, least_mels, 256)
        number("window", window, *(samples / rate for samples in _WINDOW_SAMPLES))
        number("hop", hop, _SHORTEST_HOP, window)
        number("low", low, 0, rate / 2)
        high = rate / 2 if high is None else high
        number("high", high, low, rate / 2)
        if not low < high:
            raise InputError(f"features.high={high}: must be above features.low={low}", status=2)
        if top_db is not None:
            number("top_db", top_db, 1, 200)
        self.rate = rate
        self.size = mels
        self.convention = convention
        self.normalize = normalize
        self.top_db = top_db
        self._window = _samples(window, rate)
        self._hop = _samples(hop, rate)
        self.hop = self._hop / rate
        self._fft = 1 << (self._window - 1).bit_length()
        build = functools.partial(mel_filters, rate=rate, fft=self._fft, low=low, high=high, convention=convention)
        bands = checked_filters(build, mels, least_mels).T
        self._groups = groups(bands)
        self.register_buffer("_taper", taper(self._window, self._fft, convention), persistent=False)
        self.register_buffer("_filters", bands.repeat_interleave(2, 0), persistent=False)

    @overload
    def frames(self, samples: int) -> int: ...
    @overload
    def frames(self, samples: Tensor) -> Tensor: ...
    def frames(self, samples: int | Tensor) -> int | Tensor:
        """How many frames so many samples give: a number, or int64 of any shape."""
        beyond = samples - (self._window if self.convention == "kaldi" else 0)
        beyond = beyond.clamp(min=0) if isinstance(beyond, Tensor) else max(0, beyond)
        return (1 + beyond // self._hop) * (samples > 0)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a batch.

        Args:
            waveforms: `(batch, samples)`, floating point, -1 to 1.
            lengths: `(batch,)` int64, samples of each row, at most `samples`.

        Returns:
            Features `(batch, frames, size)` with frames = `frames(samples)`, and how many of them are each
            row's own, `(batch,)` int64.
        """
        _check_batch(waveforms, lengths)
        count, samples = waveforms.shape
        frames = self.frames(lengths)
        features = self._filters.new_empty(count, self.frames(samples), self.size)
        with torch.autocast(waveforms.device.type, enabled=False):
            for rows, longest in self._chunks(lengths, samples, waveforms.device):
                own = self.frames(longest)
                self._fill(features[rows, :own], waveforms[rows, :longest], lengths[rows].to(waveforms.device))
                features[rows, own:] = 0.0
        return features, frames

    def _chunks(self, lengths: Tensor, samples: int, device: torch.device) -> list[tuple[slice, int]]:
        """Rows to do together and how many samples they need: on a CPU few, elsewhere all."""
        if device.type != "cpu":
            return [(slice(0, len(lengths)), samples)]
        step = max(1, _BLOCK // max(1, self.frames(samples)))
        chunks = [lengths[start : start + step] for start in range(0, len(lengths), step)]
        return [(slice(n * step, (n + 1) * step), int(chunk.max())) for n, chunk in enumerate(chunks)]

    def _fill(self, features: Tensor, waveforms: Tensor, lengths: Tensor) -> None:
        """Write features of rows, whose padding may hold anything, to `features` `(batch, frames, size)`."""
        total, samples = features.shape[1], waveforms.shape[1]
        if not total:
            return
        before = self._fft // 2 if self.convention == "slaney" else 0
        width = len(self._taper)
        padded = self._taper.new_zeros(len(waveforms), max(before + samples, (total - 1) * self._hop + width))
        padded[:, before : before + samples] = waveforms
        if not is_full(lengths, samples):
            beyond = torch.arange(padded.shape[1], device=padded.device) >= before + lengths[:, None]
            padded.masked_fill_(beyond, 0.0)
        framed = padded.unfold(1, width, self._hop)
        step = max(1, _BLOCK // len(waveforms)) if waveforms.device.type == "cpu" else total
        for start in range(0, total, step):
            features[:, start : start + step] = self._energies(framed[:, start : start + step])
        own = self.frames(lengths)
        if self.top_db is not None:
            features.copy_(floored(features, own, self.top_db))
        features.copy_(normalized(features, own, self.normalize, PRIOR_VARIANCE["log-mel"]))

    def _energies(self, framed: Tensor) -> Tensor:
        """Log-mel energies `(batch, frames, mels)` of `(batch, frames, width)` samples.

        The filters take squares of real and imaginary parts as they lie, a few bands at a time with only the
        frequencies in these: half the time of adding the squares and one product with everything.
        """
        if self.convention == "kaldi":
            framed = framed - framed.mean(2, keepdim=True)
            previous = torch.cat([framed[:, :, :1], framed[:, :, :-1]], 2)
            framed = framed - _PREEMPHASIS * previous
        spectrum = torch.fft.rfft(framed * self._taper, self._fft)
        squares = torch.view_as_real(spectrum).square_().flatten(0, 1).flatten(1)
        energies = [squares[:, rows] @ self._filters[rows, bands] for rows, bands in self._groups]
        logarithms = torch.cat(energies, 1).clamp_(min=_FLOORS[self.convention]).log_()
        return logarithms.unflatten(0, framed.shape[:2])


def _samples(seconds: float, rate: int) -> int:
    """Whole samples in a time; 1e-6 of a sample is forgiven, for 0.01 s is not a binary fraction."""
    return math.floor(seconds * rate + 1e-6)


def _check_batch(waveforms: Tensor, lengths: Tensor) -> None:
    """Refuse what only a programming error brings; lengths on a GPU are believed (a look would stall it)."""
    if waveforms.dim() != 2 or not waveforms.is_floating_point():
        raise ValueError(
            f"waveforms: want floating point (batch, samples), got {waveforms.dtype} {tuple(waveforms.shape)}"
        )
    if lengths.shape != waveforms.shape[:1] or lengths.dtype != torch.int64:
        raise ValueError(f"lengths: want int64 ({len(waveforms)},), got {lengths.dtype} {tuple(lengths.shape)}")
    if lengths.device.type == "cpu" and len(lengths) and not 0 <= lengths.min() <= lengths.max() <= waveforms.shape[1]:
        raise ValueError(f"lengths: want 0 to {waveforms.shape[1]}, got {int(lengths.min())} to {int(lengths.max())}")
