"""Sound from media that libsndfile doesn't read (m4a, mp4, mov, aac, webm, mkv, wma, amr), through PyAV.

PyAV (extra ``media``) brings FFmpeg, and is imported only where such a file is met. FFmpeg gets the bytes and
the name of the one demuxer that the first bytes call for, never a path: no playlist, no protocol, no other
file is opened. Codings are a closed list here as well.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from asr.audio.containers import check_limits, cut_off, ends_with_page
from asr.audio.source import Source
from asr.errors import InputError

_COMPRESSED = "aac alac amrnb amrwb flac mp2 mp2float mp3 mp3float opus speex vorbis wmapro wmav1 wmav2"
CODINGS = {*_COMPRESSED.split(), "pcm_f32le", "pcm_s16be", "pcm_s16le", "pcm_s24le", "pcm_s32le"}
TOLERANCE = 0.25  # seconds that a track may be shorter than its container says: delays, the last packet's padding
MAX_CHANNELS = 8  # PyAV reads beyond its own memory where there are more
_TYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}  # FFmpeg's
_SCALES = {"s16": 32768.0, "s32": 2147483648.0, "flt": 1.0, "dbl": 1.0}


def sniff(source: Source) -> str:
    """FFmpeg's name of the demuxer for the first bytes: mov, matroska, asf, aac, amr, ogg or ``""``."""
    head = source.at(source.after_tags(), 16)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head[:2] in (b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9"):
        return "aac"
    if head[:5] == b"#!AMR":
        return "amr"
    starts = {b"\x1a\x45\xdf\xa3": "matroska", b"\x30\x26\xb2\x75": "asf", b"OggS": "ogg"}
    return starts.get(head[:4], "")


class MediaFile:
    """The first sound track of a media file at its own rate. `frames` is None until all is decoded.

    Args:
        source: the bytes; stays the caller's.
        kind: what `sniff` said of them.

    Raises:
        InputError: PyAV is missing, the file is damaged or has no sound track, a coding not in `CODINGS`, or
            a rate or number of channels out of bounds.
    """

    def __init__(self, source: Source, kind: str) -> None:
        self.name, self.container, self._source = source.name, kind.upper(), source
        try:
            import av
        except ImportError as error:
            raise InputError(f"{self.name}: {self.container} files need PyAV: pip install 'asr[media]'") from error
        self._errors = (av.error.FFmpegError, OSError, ValueError, OverflowError)
        self.frames: int | None = None
        self.rate = self.channels = 0
        self.coding = ""
        self._limit: int | None = None
        self._frame: Any = None
        whole = kind != "ogg" or ends_with_page(source)
        with self._damage():
            source.seek(0)
            self._file: Any = av.open(source, format=kind, metadata_errors="replace")
        try:
            with self._damage():
                self._begin()
            check_limits(self.name, self.rate, self.channels, MAX_CHANNELS)
            if not whole:
                raise InputError(f"{self.name}: is cut off within its last Ogg page; copy or record it again")
        except InputError:
            self.close()
            raise

    def chunks(self, start: int, count: int | None = None) -> Iterator[np.ndarray]:
        """Float32 `(frames, channels)`: `count` frames from `start`, or all. Raises InputError at a break."""
        skip, done = start, 0
        with self._damage():
            while (frame := self._frame) is not None:
                if count is not None and done >= start + count:
                    return
                if (frame.sample_rate, len(frame.layout.channels)) != (self.rate, self.channels):
                    raise InputError(f"{self.name}: changes its rate or channels on the way; convert it to FLAC")
                chunk = _samples(frame, self.channels)
                if self.container == "MOV" and self._limit:  # exact: what its encoder added at the end is cut
                    chunk = chunk[: max(0, self._limit - done)]
                done += len(chunk)
                yield chunk[skip:]
                skip = max(0, skip - len(chunk))
                self._frame = next(self._frames, None)
        self._source.check()
        self.frames = done
        if self._limit is not None and done < self._limit - TOLERANCE * self.rate:
            raise cut_off(self.name, self.rate, self._limit, done)

    def close(self) -> None:
        """Let go of FFmpeg's part; the source stays open."""
        self._file.close()

    def _begin(self) -> None:
        """Choose the track and decode its first frame: only that has the true rate (HE-AAC doubles it)."""
        track = self._file.streams.best("audio")
        if track is None:
            raise InputError(f"{self.name}: has no sound track; name another file")
        self.coding = track.codec_context.name if track.codec_context else "unknown"
        if self.coding not in CODINGS:
            raise InputError(f"{self.name}: {self.container} with coding {self.coding} is not read; convert it to FLAC")
        track.thread_type = "NONE"
        self._frames = iter(self._file.decode(track))
        self._frame = next(self._frames, None)
        if self._frame is None:
            raise InputError(f"{self.name}: holds no samples; record it again")
        self.rate, self.channels = self._frame.sample_rate, len(self._frame.layout.channels)
        self._limit = self._promised(track)

    def _promised(self, track: Any) -> int | None:
        """Frames that the container says the track has, None where it doesn't (a stream, raw AAC and AMR)."""
        if self.container == "MOV":
            seconds = track.duration and track.duration * track.time_base
        else:  # says how long its longest track is: this one if it is alone
            alone = self.container in ("MATROSKA", "ASF") and len(self._file.streams) == 1
            seconds = self._file.duration / 1e6 if alone and self._file.duration else None
        return round(seconds * self.rate) if seconds else None

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """FFmpeg's errors as one line."""
        try:
            yield
        except self._errors as error:
            self._source.check()
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.name}: is damaged or cut off ({reason}); copy it again") from error


def _samples(frame: Any, channels: int) -> np.ndarray:
    """A decoded frame as float32 (frames, channels), full scale 1.

    PyAV's own `to_ndarray` takes planes beyond the last channel from 8 channels on, and crashes on them.
    """
    kind = frame.format.name.removesuffix("p")
    planes = frame.planes[: channels if frame.format.is_planar else 1]
    raw = np.stack([np.frombuffer(plane, _TYPES[kind])[: frame.samples * channels] for plane in planes])
    values = raw[:, : frame.samples].T if frame.format.is_planar else raw.reshape(-1, channels)
    if kind == "u8":
        return (values.astype(np.float32) - 128) / 128
    return (values / _SCALES[kind]).astype(np.float32)
