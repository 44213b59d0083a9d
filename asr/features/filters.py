"""Window functions and mel filters, taken from librosa and torchaudio. The conventions: `asr.features`."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from asr.errors import InputError

_INTEGERS = 32768.0  # kaldi's samples; a power of two, so that it may be applied late without a trace
_GROUP = 16  # bands


def taper(window: int, fft: int, convention: str) -> Tensor:
    """Window function: slaney `(fft,)`, zeros on both sides; kaldi `(window,)`, with the samples' scale."""
    if convention == "kaldi":
        return _INTEGERS * torch.hann_window(window, periodic=False).pow(0.85)
    left = (fft - window) // 2
    return nn.functional.pad(torch.hann_window(window), (left, fft - window - left))


def mel_filters(mels: int, *, rate: int, fft: int, low: float, high: float, convention: str) -> Tensor:
    """Mel filters `(mels, fft / 2 + 1)`, the libraries' own."""
    if convention == "kaldi":
        bands, _ = kaldi.get_mel_banks(mels, fft, rate, low, high, 100.0, -500.0, 1.0)
        return nn.functional.pad(bands, (0, 1))
    import librosa.filters  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty filters, which are an error here
        return torch.from_numpy(librosa.filters.mel(sr=rate, n_fft=fft, n_mels=mels, fmin=low, fmax=high))


def checked_filters(build: Callable[[int], Tensor], mels: int, least: int) -> Tensor:
    """``build(mels)``, or an InputError where a band is so narrow that no frequency of the FFT lies in it."""
    result = build(mels)
    if _all_filled(result):
        return result
    works, fails = least - 1, mels
    while fails - works > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if _all_filled(build(middle)) else (works, middle)
    if works < least:
        remedy = "move features.low and features.high apart, or lengthen features.window"
    else:
        remedy = f"choose at most {works}, or lengthen features.window"
    raise InputError(f"features.mels={mels}: some bands hold no frequency of the FFT; {remedy}", status=2)


def groups(filters: Tensor) -> list[tuple[slice, slice]]:
    """Bands of `filters` `(frequencies, mels)`, a few at a time, with the frequencies that they need.

    Returns:
        Pairs of slices for a matrix with two rows a frequency (real and imaginary part): rows, bands.
    """
    starts = list(range(0, max(1, filters.shape[1] - _GROUP + 1), _GROUP))
    pairs = []
    for start, end in zip(starts, [*starts[1:], filters.shape[1]], strict=True):
        needed = filters[:, start:end].any(1).nonzero()
        pairs.append((slice(2 * int(needed.min()), 2 * int(needed.max()) + 2), slice(start, end)))
    return pairs


def _all_filled(filters: Tensor) -> bool:
    return bool((filters > 0).any(1).all())
