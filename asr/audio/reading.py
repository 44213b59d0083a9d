"""Any recording as mono float32 samples at the rate that is asked for: whole, in blocks, or a segment of it.

Channels are averaged (in float64) or one is picked; soxr (HQ) resamples, as a stream, which gives bit for bit
what it gives of the whole. Where the rates are equal no sample is touched, and any lossless container, from a
path, from bytes or from a file object, gives the same samples. Rates are in hertz, times in seconds, full
scale is 1.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import soxr

from asr.audio import containers, media
from asr.audio.source import Source
from asr.errors import InputError

MAX_SECONDS = 24 * 3600.0  # of sound decoded from one file, unless the caller says otherwise
DURATION_TOLERANCE = 0.05  # seconds by which a segment may end behind its file: manifests round
MAX_AMPLITUDE = 1e9  # above is damage: the features' powers must stay finite in float32
_Recording = containers.SoundFile | media.MediaFile
AudioSource = str | os.PathLike[str] | bytes | BinaryIO


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What a file holds: `frames` of `channels` samples at `rate` Hz, in which container and coding."""

    rate: int
    channels: int
    frames: int
    seconds: float
    container: str
    coding: str


@dataclasses.dataclass(frozen=True)
class Audio:
    """Mono `samples` float32 (n,) at `rate` Hz; what the source had; the channel picked if one was."""

    samples: np.ndarray
    rate: int
    source_rate: int
    source_channels: int
    channel: int | None = None

    @property
    def seconds(self) -> float:
        """How long the samples last."""
        return len(self.samples) / self.rate

    @property
    def note(self) -> str | None:
        """The one line to tell a user what was done to the recording; None where nothing was."""
        notes = []
        if self.source_channels > 1 and self.channel is None:
            notes.append(f"{self.source_channels} channels averaged")
        elif self.source_channels > 1:
            notes.append(f"channel {self.channel} of {self.source_channels} taken (they count from 0)")
        if self.source_rate != self.rate:
            notes.append(f"resampled from {self.source_rate} to {self.rate} Hz")
        return ", ".join(notes) or None


def info(source: AudioSource) -> AudioInfo:
    """What `source` holds, from its header; decoded and counted where the header leaves the length open.

    Raises:
        InputError: the file is missing, damaged, empty, or of a kind that isn't read.
    """
    with _opened(source) as file:
        if file.frames is None:
            for _ in _segment(file, 0.0, None, MAX_SECONDS):
                pass
        if not (frames := file.frames):
            raise InputError(f"{file.name}: holds no samples; record it again")
        return AudioInfo(file.rate, file.channels, frames, frames / file.rate, file.container, file.coding)


def read(
    source: AudioSource,
    rate: int,
    *,
    channel: int | None = None,
    offset: float = 0.0,
    duration: float | None = None,
    max_seconds: float | None = None,
) -> Audio:
    """Decode `source`, or the segment of it from `offset` on that lasts `duration` seconds.

    Args:
        source: a path, bytes or a binary file, which is read from its start.
        rate: of the result, Hz.
        channel: the one to take, counted from 0; None averages all.
        offset: seconds.
        duration: seconds; None reads to the end. Up to `DURATION_TOLERANCE` behind the end is the end.
        max_seconds: most that may be decoded; None is `MAX_SECONDS`.

    Raises:
        InputError: no such file, no audio of a kind that is read, damaged, cut off, no samples, a sample that
            is no number, too long, or a segment or channel that it doesn't have.
    """
    _check_arguments(rate, offset, duration, max_seconds)
    with _opened(source) as file:
        parts = list(_mono_at(file, rate, channel, offset, duration, max_seconds))
        samples = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return Audio(samples, rate, file.rate, file.channels, channel)


def blocks(
    source: AudioSource,
    rate: int,
    *,
    channel: int | None = None,
    offset: float = 0.0,
    duration: float | None = None,
    max_seconds: float | None = None,
    seconds: float = 30.0,
) -> Iterator[np.ndarray]:
    """The samples of `read` in arrays of `seconds` (the last is shorter), in memory that doesn't grow.

    An error in the file is raised where it is met, after the blocks before it. Arguments and errors as of
    `read`.
    """
    _check_arguments(rate, offset, duration, max_seconds)
    if not (math.isfinite(seconds) and seconds * rate >= 1):
        raise InputError(f"blocks of {seconds} s can't be read; give at least a sample's length", 2)
    return _blocks(source, rate, channel, offset, duration, max_seconds, round(seconds * rate))


def resample(samples: np.ndarray, source_rate: int, rate: int) -> np.ndarray:
    """Float32 `samples` (n,) at `source_rate` Hz as ``n * rate / source_rate`` (rounded) at `rate` Hz.

    At least one comes of one or more. Equal rates give `samples` itself. Raises InputError for impossible
    rates.
    """
    for value in (source_rate, rate):
        _check_rate(value)
    if source_rate == rate or not len(samples):
        return samples
    return np.concatenate(list(_resampled([np.asarray(samples, dtype=np.float32)], source_rate, rate)))


def _check_arguments(rate: int, offset: float, duration: float | None, max_seconds: float | None) -> None:
    _check_rate(rate)
    if not (math.isfinite(offset) and offset >= 0):
        raise InputError(f"offset {offset} is no number of seconds from 0", 2)
    for name, value in (("duration", duration), ("max_seconds", max_seconds)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} {value} is no number of seconds above 0", 2)


def _check_rate(rate: int) -> None:
    if not isinstance(rate, (int, np.integer)) or not containers.MIN_RATE <= rate <= containers.MAX_RATE:
        raise InputError(f"rate {rate} is no whole number of {containers.MIN_RATE} to {containers.MAX_RATE} Hz", 2)


@contextmanager
def _opened(source: AudioSource) -> Iterator[_Recording]:
    """The recording behind `source`, closed at the end."""
    content = Source(source)
    try:
        file = _recording(content)
        try:
            yield file
        finally:
            file.close()
    finally:
        content.close()


def _recording(content: Source) -> _Recording:
    if kind := containers.sniff(content):
        return containers.SoundFile(content, kind)
    if kind := media.sniff(content):
        return media.MediaFile(content, kind)
    content.check()
    raise InputError(
        f"{content.name}: is no audio of a known container (wav, flac, ogg, opus, mp3, NIST sphere, aiff, "
        "au, w64, caf; m4a, mp4, aac, webm, mkv, wma, amr); convert it to FLAC or WAV"
    )


def _blocks(
    source: AudioSource,
    rate: int,
    channel: int | None,
    offset: float,
    duration: float | None,
    max_seconds: float | None,
    size: int,
) -> Iterator[np.ndarray]:
    waiting: list[np.ndarray] = []
    count = 0
    with _opened(source) as file:
        for part in _mono_at(file, rate, channel, offset, duration, max_seconds):
            waiting.append(part)
            count += len(part)
            if count >= size:
                joined = np.concatenate(waiting)
                whole = len(joined) // size * size
                for begin in range(0, whole, size):
                    yield joined[begin : begin + size]
                waiting, count = [joined[whole:]], len(joined) - whole
    if count:
        yield np.concatenate(waiting)


def _mono_at(
    file: _Recording,
    rate: int,
    channel: int | None,
    offset: float,
    duration: float | None,
    max_seconds: float | None,
) -> Iterator[np.ndarray]:
    """The chunks of a segment, checked, mixed and resampled: at least one sample in all."""
    if channel is not None and not 0 <= channel < file.channels:
        raise InputError(
            f"{file.name}: has no channel {channel}: it has {file.channels}, counted from 0; choose another"
        )
    chunks = _segment(file, offset, duration, MAX_SECONDS if max_seconds is None else max_seconds)
    mono = (_mix(chunk, channel) for chunk in _finite(file, chunks, offset))
    return mono if file.rate == rate else _resampled(mono, file.rate, rate)


def _segment(file: _Recording, offset: float, duration: float | None, limit: float) -> Iterator[np.ndarray]:
    """The chunks of the segment, and an error where it isn't there."""
    begin = round(offset * file.rate)
    count = None if duration is None else max(1, round(duration * file.rate))
    if file.frames is not None:
        _check_segment(file, file.frames, offset, duration)
        left = file.frames - begin
        count = left if count is None else min(count, left)
        if count > limit * file.rate:
            raise _too_long(file.name, f"{count / file.rate:.0f} s", limit)
    found = 0
    for chunk in file.chunks(begin, count):
        part = chunk if count is None else chunk[: count - found]
        found += len(part)
        if found > limit * file.rate:
            raise _too_long(file.name, f"more than {limit:g} s", limit)
        if len(part):
            yield part
        if found == count:
            return
    _check_segment(file, file.frames or 0, offset, duration)


def _check_segment(file: _Recording, frames: int, offset: float, duration: float | None) -> None:
    """Raise InputError if a file of `frames` doesn't hold the segment."""
    end = frames / file.rate
    if not frames and not offset:
        raise InputError(f"{file.name}: holds no samples; record it again")
    if round(offset * file.rate) >= frames:
        raise InputError(
            f"{file.name}: ends at {end:.3f} s, before the segment at offset {offset:g} s; correct the offset"
        )
    if duration is not None and offset + duration > end + DURATION_TOLERANCE:
        raise InputError(
            f"{file.name}: ends at {end:.3f} s, before the end of the segment at {offset + duration:.3f} s "
            f"(offset {offset:g} s and duration {duration:g} s); correct the segment"
        )


def _too_long(name: str, length: str, limit: float) -> InputError:
    return InputError(f"{name}: lasts {length}, and at most {limit:g} s are read; cut it into shorter files")


def _finite(file: _Recording, chunks: Iterable[np.ndarray], offset: float) -> Iterator[np.ndarray]:
    place = round(offset * file.rate)
    for chunk in chunks:
        if not (np.abs(chunk).max() <= MAX_AMPLITUDE):  # false for what is no number, too
            frame, track = (int(index) for index in np.argwhere(~(np.abs(chunk) <= MAX_AMPLITUDE))[0])
            raise InputError(
                f"{file.name}: the sample at {(place + frame) / file.rate:.4f} s (frame {place + frame}, "
                f"channel {track}) is {chunk[frame, track]:g}, no sound; record or convert it again"
            )
        place += len(chunk)
        yield chunk


def _mix(chunk: np.ndarray, channel: int | None) -> np.ndarray:
    """(frames, channels) -> (frames,) float32. The mean of equal channels is each of them, exactly."""
    if chunk.shape[1] == 1:
        return chunk[:, 0]
    if channel is not None:
        return np.ascontiguousarray(chunk[:, channel])
    mean: np.ndarray = chunk.mean(axis=1, dtype=np.float64)
    return mean.astype(np.float32)


def _resampled(chunks: Iterable[np.ndarray], source_rate: int, rate: int) -> Iterator[np.ndarray]:
    """The chunks at `rate`. Samples too few to become one become one: no recording vanishes."""
    stream = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")
    found, first = 0, np.zeros(0, np.float32)
    for chunk in itertools.chain(chunks, [None]):
        if chunk is None:
            part = stream.resample_chunk(first[:0], last=True)
        else:
            first = chunk[:1]
            part = stream.resample_chunk(chunk)
        found += len(part)
        if len(part):
            yield part
    if not found and len(first):
        yield first.copy()
