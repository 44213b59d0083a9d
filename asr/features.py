"""From waveforms to frames: log-mel energies and MFCC in two conventions, batched, differentiable.

===========  =====================================  ===================================================
convention   ``slaney``                             ``kaldi``
===========  =====================================  ===================================================
equal to     ``librosa.feature.melspectrogram``     ``torchaudio.compliance.kaldi.fbank``, no dither
samples      -1 to 1                                scaled to the range of 16-bit integers
frames       centred at ``t * hop``, zeros outside  whole windows only; a shorter file is zero-padded
             the file: ``1 + samples // hop``       to one: ``1 + max(0, samples - window) // hop``
window       Hann, periodic                         mean removed, pre-emphasis 0.97, Povey
mel scale    Slaney's, triangles of area 1          HTK's, triangles of height 1
logarithm    natural, of at least 1e-10             natural, of at least 2 ** -23
MFCC         orthonormal DCT-II of these            the same, and Kaldi's lifter (22)
===========  =====================================  ===================================================

Both take the power spectrum of an FFT as long as the next power of two. A file of no samples has no frame.

What lies behind a row's own samples (padding, noise, NaN) never matters: it is zeroed here, and the frames
behind a row's own are 0. Statistics of `normalize` are taken over a row's own frames, for each feature apart:

- ``utterance``: zero mean and unit variance over the file; silence and a single frame become 0.
- ``running``: causal. Frame t is taken relative to mean and variance of frames 0 to t, the variance pulled
  towards `PRIOR_VARIANCE` as if `PRIOR_FRAMES` frames with that had gone before (frame 0 is always 0).
- ``none``.

Modules follow from settings alone: a state_dict has no entry of theirs, a model file carries the settings.
"""

import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
import torchaudio
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from asr.errors import InputError

CONVENTIONS = ("slaney", "kaldi")
NORMALIZATIONS = ("utterance", "running", "none")
PRIOR_FRAMES = 20
PRIOR_VARIANCE = 4.0

_FLOORS = {"slaney": 1e-10, "kaldi": 2.0**-23}
_INTEGERS = 32768.0  # kaldi's samples; a power of two, so that it may be applied late without a trace
_PREEMPHASIS = 0.97
_LIFTER = 22
_SMALLEST_VARIANCE = 1e-5
_WINDOW_SAMPLES = (16, 32768)
_SHORTEST_HOP = 0.001  # seconds
_BLOCK = 1024  # frames at a time on a CPU, so that their spectra stay in its cache
_GROUP = 16  # bands at a time


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
        normalize: ``utterance``, ``running`` or ``none``.

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
    ) -> None:
        super().__init__()
        _choice("convention", convention, CONVENTIONS)
        _choice("normalize", normalize, NORMALIZATIONS)
        _integer("rate", rate, 1000, 768_000)
        _integer("mels", mels, 4 if convention == "kaldi" else 1, 256)
        _number("window", window, *(samples / rate for samples in _WINDOW_SAMPLES))
        _number("hop", hop, _SHORTEST_HOP, window)
        _number("low", low, 0, rate / 2)
        high = rate / 2 if high is None else high
        _number("high", high, low, rate / 2)
        if not low < high:
            raise InputError(f"features.high={high}: must be above features.low={low}", status=2)
        self.rate = rate
        self.size = mels
        self.convention = convention
        self.normalize = normalize
        self._window = _samples(window, rate)
        self._hop = _samples(hop, rate)
        self.hop = self._hop / rate
        self._fft = 1 << (self._window - 1).bit_length()
        filters = functools.partial(
            _filters, rate=rate, fft=self._fft, low=low, high=high, convention=convention
        )
        bands = _checked_filters(filters, mels).T
        self._groups = _groups(bands)
        self.register_buffer("_taper", _taper(self._window, self._fft, convention), persistent=False)
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
                self._fill(
                    features[rows, :own], waveforms[rows, :longest], lengths[rows].to(waveforms.device)
                )
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
        if not _is_full(lengths, samples):
            beyond = torch.arange(padded.shape[1], device=padded.device) >= before + lengths[:, None]
            padded.masked_fill_(beyond, 0.0)
        framed = padded.unfold(1, width, self._hop)
        step = max(1, _BLOCK // len(waveforms)) if waveforms.device.type == "cpu" else total
        for start in range(0, total, step):
            features[:, start : start + step] = self._energies(framed[:, start : start + step])
        features.copy_(normalized(features, self.frames(lengths), self.normalize))

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
        _choice("normalize", normalize, NORMALIZATIONS)
        self.log_mel = LogMel(**settings, normalize="none")
        mels = self.log_mel.size
        _integer("coefficients", coefficients, 1, mels)
        self.rate = self.log_mel.rate
        self.hop = self.log_mel.hop
        self.size = coefficients
        self.normalize = normalize
        transform = torchaudio.functional.create_dct(coefficients, mels, "ortho")
        if self.log_mel.convention == "kaldi":
            order = torch.arange(coefficients)
            transform = transform * (1 + 0.5 * _LIFTER * torch.sin(math.pi * order / _LIFTER))
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
            return normalized(energies @ self._transform, frames.to(energies.device), self.normalize), frames


KINDS: dict[str, type[LogMel] | type[MFCC]] = {"logmel": LogMel, "mfcc": MFCC}


def build(kind: str, **settings: Any) -> LogMel | MFCC:
    """The front end of that kind, ``logmel`` or ``mfcc``; settings as in `LogMel` and `MFCC`.

    Raises:
        InputError: no such kind or setting, or a value out of its range (status 2).
    """
    _choice("kind", kind, tuple(KINDS))
    known = list(inspect.signature(LogMel).parameters)
    known += ["coefficients"] if kind == "mfcc" else []
    for name in settings:
        if name not in known:
            raise InputError(
                f"features.{name}: {kind} has no such setting; {_nearest(name, known)}", status=2
            )
    return KINDS[kind](**settings)


def normalized(features: Tensor, frames: Tensor, how: str) -> Tensor:
    """Features `(batch, frames, size)` relative to their statistics over time; behind a row's own frames 0.

    Args:
        features: finite in every row's own frames.
        frames: `(batch,)` int64, on the same device.
        how: ``utterance``, ``running`` or ``none`` (see above).
    """
    if how == "none":
        return _own(features, frames)
    features = _own(features - features[:, :1], frames)  # what is constant becomes 0 exactly
    if how == "running":
        return _own(_relative_to_past(features), frames)
    count = frames.clamp(min=1)[:, None, None]
    deviation = _own(features - features.sum(1, keepdim=True) / count, frames)
    variance = deviation.square().sum(1, keepdim=True) / count
    return deviation * (variance + _SMALLEST_VARIANCE).rsqrt()


def _own(features: Tensor, frames: Tensor) -> Tensor:
    """`features` with 0 behind each row's own `frames`."""
    if _is_full(frames, features.shape[1]):
        return features
    beyond = torch.arange(features.shape[1], device=features.device) >= frames[:, None]
    return features.masked_fill(beyond[:, :, None], 0.0)


def _is_full(lengths: Tensor, most: int) -> bool:
    """Whether no row is shorter than `most`; on a GPU never known, since asking would stall it."""
    return lengths.device.type == "cpu" and bool((lengths == most).all())


def _relative_to_past(features: Tensor) -> Tensor:
    """``running``, summed in float64, since a mean square less a squared mean loses half the digits."""
    exact = features.double()
    count = torch.arange(1, features.shape[1] + 1, device=features.device)[:, None]
    mean = exact.cumsum(1) / count
    spread = (exact.square().cumsum(1) - count * mean.square()).clamp(min=0.0)
    variance = (spread + PRIOR_FRAMES * PRIOR_VARIANCE) / (count + PRIOR_FRAMES)
    return ((exact - mean) * variance.rsqrt()).to(features.dtype)


def _taper(window: int, fft: int, convention: str) -> Tensor:
    """Window function: slaney `(fft,)`, zeros on both sides; kaldi `(window,)`, with the samples' scale."""
    if convention == "kaldi":
        return _INTEGERS * torch.hann_window(window, periodic=False).pow(0.85)
    left = (fft - window) // 2
    return nn.functional.pad(torch.hann_window(window), (left, fft - window - left))


def _filters(mels: int, *, rate: int, fft: int, low: float, high: float, convention: str) -> Tensor:
    """Mel filters `(mels, fft / 2 + 1)`, the libraries' own."""
    if convention == "kaldi":
        bands, _ = kaldi.get_mel_banks(mels, fft, rate, low, high, 100.0, -500.0, 1.0)
        return nn.functional.pad(bands, (0, 1))
    import librosa.filters  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty filters, which are an error here
        return torch.from_numpy(librosa.filters.mel(sr=rate, n_fft=fft, n_mels=mels, fmin=low, fmax=high))


def _checked_filters(filters: Callable[[int], Tensor], mels: int) -> Tensor:
    """``filters(mels)``; refused where a band is so narrow that no frequency of the FFT lies in it."""
    result = filters(mels)
    if _all_filled(result):
        return result
    works, fails = 3, mels
    while fails - works > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if _all_filled(filters(middle)) else (works, middle)
    if not _all_filled(filters(max(1, works))):
        remedy = "widen features.low to features.high or lengthen features.window"
    else:
        remedy = f"at most {works} work with this rate, window, low and high; or lengthen features.window"
    raise InputError(f"features.mels={mels}: some bands hold no frequency of the FFT; {remedy}", status=2)


def _groups(filters: Tensor) -> list[tuple[slice, slice]]:
    """Pairs (rows, bands) of `filters` `(frequencies, mels)`: `_GROUP` bands or more, 2 rows a frequency."""
    starts = list(range(0, max(1, filters.shape[1] - _GROUP + 1), _GROUP))
    groups = []
    for start, end in zip(starts, [*starts[1:], filters.shape[1]], strict=True):
        needed = filters[:, start:end].any(1).nonzero()
        groups.append((slice(2 * int(needed.min()), 2 * int(needed.max()) + 2), slice(start, end)))
    return groups


def _all_filled(filters: Tensor) -> bool:
    return bool((filters > 0).any(1).all())


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
        raise ValueError(
            f"lengths: want int64 ({len(waveforms)},), got {lengths.dtype} {tuple(lengths.shape)}"
        )
    if (
        lengths.device.type == "cpu"
        and len(lengths)
        and not 0 <= lengths.min() <= lengths.max() <= waveforms.shape[1]
    ):
        raise ValueError(
            f"lengths: want 0 to {waveforms.shape[1]}, got {int(lengths.min())} to {int(lengths.max())}"
        )


def _choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"features.{name}={value}: {_nearest(str(value), choices)}", status=2)


def _nearest(value: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, choices, 1)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(choices)}"


def _integer(name: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"features.{name}={value}: choose a whole number from {least} to {most}", status=2)


def _number(name: str, value: Any, least: float, most: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"features.{name}={value}: choose a number from {least:g} to {most:g}", status=2)
