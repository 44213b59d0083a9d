"""The sound files that are let in, decoded by libsndfile in chunks at their own rate.

A file comes from anywhere, and libsndfile knows some 25 containers, a few with open faults, one of which
prints on standard output. So it sees only files whose first bytes are those of a container in `CODINGS`, and
what it makes of them is checked against that closed list before a sample is decoded.

Headers lie. No header sizes an allocation: a chunk holds at most `CHUNK_VALUES` values. What a header
promises is compared with what is there, since libsndfile silently clips a file that lost its end. A recorder
that writes into a pipe can't know the size and writes 0 or a huge number: `STREAM_BYTES` says which numbers
mean "to the end".
"""

import struct
from collections.abc import Iterator

import numpy as np
import soundfile

from asr.audio.source import Source
from asr.errors import InputError

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_CHANNELS = 64
CHUNK_VALUES = 1 << 18  # samples times channels decoded at once: 1 MiB of float32
STREAM_BYTES = 0x7F00_0000  # a size from here on is a stream's (ffmpeg, sox, arecord), in a 64-bit field from 2^62
SLOPPY_BYTES = 64  # by which a header may promise too much: some programs count the header as sound
MAX_CHUNKS = 10_000  # of a header, walked to find the samples
PADDING = 0.1  # seconds by which an MP3 may miss its header's number: encoders pad

_PCM = {
    "PCM_U8": 1,
    "PCM_S8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}
CODINGS = {  # container -> coding -> bytes of a sample (0: compressed)
    **dict.fromkeys(("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"), _PCM),
    "FLAC": {"PCM_S8": 0, "PCM_16": 0, "PCM_24": 0},
    "OGG": {"VORBIS": 0, "OPUS": 0},
    "MP3": {"MPEG_LAYER_II": 0, "MPEG_LAYER_III": 0},
}
_PREROLL = {
    "OPUS": 1.0,
    "MPEG_LAYER_II": 1.0,
    "MPEG_LAYER_III": 1.0,
}  # seconds decoded before a place to be exact there
_OGG_PAGE = 27 + 255 + 255 * 255  # the most bytes that a page can have

_STARTS = {
    b"fLaC": "FLAC",
    b"caff": "CAF",
    b"riff\x2e\x91\xcf\x11": "W64",
    b".snd": "AU",
    b"dns.": "AU",
    b"NIST_1A": "NIST",
}
# Chunked containers: the bytes before the first chunk, the layout of a chunk's head (name, size), the
# alignment of chunks, the name of the one with the samples, and the bytes in it before the first sample.
_CHUNKED = {
    "WAV": (12, "<4sI", 2, b"data", 0),
    "RF64": (12, "<4sI", 2, b"data", 0),
    "RIFX": (12, ">4sI", 2, b"data", 0),
    "AIFF": (12, ">4sI", 2, b"SSND", 8),
    "CAF": (8, ">4sq", 1, b"data", 4),
    "W64": (40, "<16sQ", 8, b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 0),
}


def sniff(source: Source) -> str:
    """The container by the first bytes, one of `_STARTS`, WAV, RIFX, RF64, AIFF, MP3; ``""`` for any other.

    Of Ogg only the codings in `CODINGS` count.
    """
    head = source.at(source.after_tags(), 40)
    form = head[8:12]
    if form == b"WAVE" and head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return "WAV" if head[:4] == b"RIFF" else head[:4].decode()
    if head[:4] == b"FORM" and form in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[:4] == b"OggS":
        return "OGG" if head[28:36] == b"OpusHead" or head[28:35] == b"\x01vorbis" else ""
    if head[:2] > b"\xff\xe0" and (head[1] >> 1) & 3 in (1, 2):  # MPEG audio's sync word, layer III or II
        return "MP3"
    return next((kind for start, kind in _STARTS.items() if head.startswith(start)), "")


class _Sound(soundfile.SoundFile):
    """libsndfile's file without soundfile's seek after every read, which costs an MP3 its last bits."""

    def seekable(self) -> bool:
        return False


class SoundFile:
    """A sound file at its own rate, frame after frame. `frames` is None until known.

    Args:
        source: the bytes; stays the caller's.
        kind: what `sniff` said of them.

    Raises:
        InputError: damaged, cut off, a coding not in `CODINGS`, or a rate or number of channels out of
            bounds.
    """

    def __init__(self, source: Source, kind: str) -> None:
        self.name, self._source = source.name, source
        promised, present = _data_bytes(source, kind)
        self._whole = kind != "OGG" or ends_with_page(source)
        source.seek(0)
        try:
            self._file = _Sound(source)
        except (soundfile.SoundFileError, OSError, ValueError) as error:
            source.check()
            raise self._damaged(error) from error
        self.rate, self.channels = self._file.samplerate, self._file.channels
        self.container, self.coding = self._file.format, self._file.subtype
        self.frames: int | None = self._file.frames
        try:
            source.check()
            self._check(promised, present)
        except InputError:
            self.close()
            raise

    def chunks(self, start: int, count: int | None = None) -> Iterator[np.ndarray]:
        """Float32 `(frames, channels)`: `count` frames from `start`, or all. Raises InputError at a break."""
        size = max(1, CHUNK_VALUES // self.channels)
        end = self.frames if count is None else start + count
        begin = self._seek(start)
        done, skip, buffer = begin, start - begin, np.empty((0, self.channels), np.float32)
        try:
            while end is None or done < end:
                wanted = size if end is None else min(size, end - done)
                buffer = np.full((wanted, self.channels), np.nan, np.float32)
                chunk = self._file.read(out=buffer)
                if not len(chunk):
                    break
                done += len(chunk)
                yield chunk[skip:]
                skip = max(0, skip - len(chunk))
        except (soundfile.SoundFileError, OSError, ValueError) as error:
            self._source.check()
            if self.frames is None:
                raise self._damaged(error) from error
            done += int(np.isfinite(buffer[:, 0]).sum())  # what came before the error
            raise cut_off(self.name, self.rate, self.frames, done) from error
        self._source.check()
        if self.frames is None:
            self.frames = done if end is None or done < end else None
        elif end is not None and done < end - (self.container == "MP3") * PADDING * self.rate:
            raise cut_off(self.name, self.rate, self.frames, done)

    def _seek(self, start: int) -> int:
        """Go to frame `start`, or as far before it as decoding needs to be exact there; returns where."""
        begin = max(0, start - int(_PREROLL.get(self.coding, 0) * self.rate))
        if not begin or self.frames is None:
            return 0  # where the length is unknown, seeking behind the end would look like damage
        try:
            self._file.seek(begin)
        except (soundfile.SoundFileError, OSError, ValueError) as error:
            self._source.check()
            raise self._damaged(error) from error
        return begin

    def close(self) -> None:
        """Let go of libsndfile's part; the source stays open."""
        self._file.close()

    def _check(self, promised: int, present: int) -> None:
        if self.coding not in CODINGS.get(self.container, {}):
            raise InputError(
                f"{self.name}: {self.container} with coding {self.coding} is not read; "
                "convert it to FLAC, or to WAV with PCM samples"
            )
        check_limits(self.name, self.rate, self.channels)
        width = CODINGS[self.container][self.coding] * self.channels
        if width and promised > present + SLOPPY_BYTES:
            raise cut_off(self.name, self.rate, promised // width, present // width)
        found = self._file.frames
        if not self._whole:
            raise InputError(
                f"{self.name}: is cut off within its last Ogg page, {found / self.rate:.3f} s are there; "
                "copy or record it again"
            )
        if found >= 1 << 62:
            self.frames = None

    def _damaged(self, error: Exception) -> InputError:
        reason = getattr(error, "error_string", "") or str(error)
        if "does not exist" in reason:
            reason = "no frame of sound found"  # libsndfile has no words of its own for MP3
        return InputError(f"{self.name}: is damaged or cut off ({reason.strip().rstrip('.')}); copy it again")


def check_limits(name: str, rate: int, channels: int, most: int = MAX_CHANNELS) -> None:
    """Raise InputError for a rate or a number of channels that no recording of speech has."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"{name}: a rate of {rate} Hz is not read, only {MIN_RATE} to {MAX_RATE} Hz; is it damaged?")
    if not 1 <= channels <= most:
        raise InputError(f"{name}: {channels} channels are not read, at most {most}; split the file")


def cut_off(name: str, rate: int, promised: int, found: int) -> InputError:
    """The error for a file that holds fewer frames than its header says."""
    return InputError(
        f"{name}: is cut off: its header promises {promised / rate:.3f} s ({promised} frames), "
        f"{found / rate:.3f} s ({found}) are there; copy or record it again"
    )


def _data_bytes(source: Source, kind: str) -> tuple[int, int]:
    """Bytes of samples that an uncompressed file promises and has; (0, 0) where it doesn't say.

    A RIFF file that was never finished has zeros for both its sizes: then the source is patched to show
    libsndfile the size of a stream, which it knows how to read.
    """
    if kind == "NIST":
        return _sphere_bytes(source)
    if kind == "AU":
        head = source.at(0, 12)
        offset, size = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:].ljust(8, b"\0"))
        return _known(size, source.size - offset, STREAM_BYTES)
    if kind not in _CHUNKED:
        return 0, 0
    place, layout, alignment, wanted, extra = _CHUNKED[kind]
    own = struct.calcsize(layout)
    long_size = 0
    for _ in range(MAX_CHUNKS):
        head = source.at(place, own + 16).ljust(own + 16, b"\0")
        if place + own > source.size:
            break
        name, size = struct.unpack(layout, head[:own])
        size -= own if kind == "W64" else 0  # Wave64 counts the head as well
        if name == b"ds64":
            long_size = struct.unpack("<8xQ", head[own:])[0]
        if name == wanted:
            if not size and kind in ("WAV", "RIFX") and _unfinished(source, kind):
                source.patch = place + 4, b"\xff\xff\xff\xff"
            wide = kind in ("W64", "CAF") or (kind == "RF64" and size == 0xFFFF_FFFF)
            promised = long_size if kind == "RF64" and wide else size
            return _known(promised - extra, source.size - place - own - extra, 1 << 62 if wide else STREAM_BYTES)
        place += -(-(own + max(0, size)) // alignment) * alignment
    return 0, 0


def _known(promised: int, present: int, stream: int) -> tuple[int, int]:
    """The two numbers of bytes, or zeros where the promised one only says that nobody knew (a stream)."""
    return (promised, max(0, present)) if 0 <= promised < stream else (0, 0)


def _unfinished(source: Source, kind: str) -> bool:
    """Whether a RIFF header's own size is one that a recorder writes before it knows better."""
    size = struct.unpack("<I" if kind == "WAV" else ">I", source.at(4, 4))[0]
    return size == 0 or size >= STREAM_BYTES


def _sphere_bytes(source: Source) -> tuple[int, int]:
    """As `_data_bytes` of a NIST sphere file: a text header of lines ``name -type value``."""
    head = source.at(0, 4096).split(b"end_head")[0].split(b"\n")
    fields = {parts[0]: parts[2] for parts in map(bytes.split, head) if len(parts) == 3}
    try:
        frames, width = int(fields[b"sample_count"]), int(fields[b"sample_n_bytes"])
        return frames * width * int(fields.get(b"channel_count", b"1")), max(0, source.size - int(head[1]))
    except (KeyError, ValueError, IndexError):
        return 0, 0


def ends_with_page(source: Source) -> bool:
    """Whether an Ogg file ends where its last page does (RFC 3533: 27 bytes, a table of sizes, segments)."""
    tail = source.at(max(0, source.size - _OGG_PAGE), _OGG_PAGE)
    place = tail.rfind(b"OggS")
    while place >= 0:
        table = tail[place + 27 : place + 27 + tail[place + 26]] if place + 27 <= len(tail) else b""
        if table and place + 27 + len(table) + sum(table) == len(tail):
            return True
        place = tail.rfind(b"OggS", 0, place)
    return False
