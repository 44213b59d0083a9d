"""Decoded recordings on disk, so that training decodes each file once.

A file of the cache is ``KEY.samples``: a head of 24 bytes (magic, bytes of a sample, CRC-32 of key and
content, number of samples; little-endian) and the samples, as int16 where that is exact (half the size), else
as float32. The key is a hash of all that the samples depend on: absolute path, size and time of change of the
recording, rate, channel, segment, and the versions of the decoders. Anything in the folder may be deleted at
any time, by anyone.
"""

import contextlib
import hashlib
import json
import logging
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import soundfile
import soxr

from asr.audio.reading import read

_HEAD = struct.Struct("<8sB3xIQ")
_MAGIC = b"asr-pcm1"
_TYPES: dict[int, np.dtype] = {2: np.dtype("<i2"), 4: np.dtype("<f4")}
_SUFFIX = ".samples"
STRAY_SECONDS = 3600.0  # a temporary older than this was left by a killed process
_log = logging.getLogger(__name__)


class SampleCache:
    """Samples of recordings, read from `folder` where they lie there, decoded and kept there where not.

    The files of `folder` take up at most `max_bytes` (several processes at once may pass that by a few per
    cent for a moment); those used least recently go first. A damaged file is decoded again. Where the folder
    can't be written, that is logged once, and recordings are decoded each time.

    Args:
        folder: made when first needed.
        max_bytes: 0 keeps nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._room = 0  # bytes that may be written before the folder is looked through again
        self._writing = max_bytes > 0

    def read(
        self,
        path: str | os.PathLike[str],
        rate: int,
        channel: int | None = None,
        offset: float = 0.0,
        duration: float | None = None,
    ) -> np.ndarray:
        """The samples that `asr.audio.read` gives, float32 (n,), bit for bit. Raises as it does."""
        key = _key(path, rate, channel, offset, duration)
        kept = self._load(key) if key else None
        if kept is not None:
            return kept
        samples = read(path, rate, channel=channel, offset=offset, duration=duration).samples
        if key and self._writing:
            self._store(key, samples)
        return samples

    def _load(self, key: str) -> np.ndarray | None:
        path = self._path(key)
        try:
            samples = _unpack(key, path.read_bytes())
            if samples is not None:
                with contextlib.suppress(OSError):
                    os.utime(path)  # used now: the last to be deleted
                return samples
        except OSError:
            return None
        _delete(path)
        return None

    def _store(self, key: str, samples: np.ndarray) -> None:
        content = _pack(key, samples)
        if len(content) > self.max_bytes:
            return
        try:
            if len(content) > self._room:
                self._room = self._make_room(len(content))
            self._room -= len(content)
            _write(self._path(key), content)
        except FileNotFoundError:
            pass  # the folder was deleted this very moment
        except OSError as error:
            self._writing = False
            reason = error.strerror or error
            _log.warning("%s: not written (%s); going on without keeping decoded audio", self.folder, reason)

    def _make_room(self, wanted: int) -> int:
        """Delete what was used longest ago until `wanted` bytes fit; returns what fits till the next look."""
        found = self._files()
        total = sum(size for _, size, _ in found)
        goal = self.max_bytes - wanted
        if total > goal:
            goal -= self.max_bytes // 8  # a little more, so that this is done seldom
        for _, size, path in sorted(found):
            if total <= goal:
                break
            _delete(path)
            total -= size
        return max(wanted, min(self.max_bytes - total, self.max_bytes // 64))

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use, size and path of the cache's own files. Strays of killed processes are deleted."""
        found = []
        for path in (*self.folder.glob(f"[!.]*{_SUFFIX}"), *self.folder.glob(f".*{_SUFFIX}.*.tmp")):
            with contextlib.suppress(OSError):  # deleted this very moment
                facts = path.stat()
                if path.suffix == ".tmp" and facts.st_mtime < time.time() - STRAY_SECONDS:
                    _delete(path)
                else:
                    found.append((facts.st_mtime, facts.st_size, path))
        return found

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


def _key(
    path: str | os.PathLike[str], rate: int, channel: int | None, offset: float, duration: float | None
) -> str | None:
    """The name under which these samples are kept; None where there is no such file."""
    try:
        facts = Path(path).stat()
    except (OSError, ValueError):
        return None  # `read` says what is wrong
    versions = [soundfile.__libsndfile_version__, soxr.__version__]
    parts = [
        str(Path(path).absolute()),
        facts.st_size,
        facts.st_mtime_ns,
        rate,
        channel,
        offset,
        duration,
        versions,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def _pack(key: str, samples: np.ndarray) -> bytes:
    scaled = samples * np.float32(32768)
    width = 4
    if len(samples) and scaled.min() >= -32768 and scaled.max() <= 32767:
        whole = scaled.astype("<i2")
        if (_to_float(whole).view(np.uint32) == samples.view(np.uint32)).all():  # the bits: -0.0 is not 0
            samples, width = whole, 2
    content = samples.astype(_TYPES[width], copy=False).tobytes()
    return _HEAD.pack(_MAGIC, width, _checksum(key, content), len(samples)) + content


def _unpack(key: str, content: bytes) -> np.ndarray | None:
    """The samples in a file of the cache, None if it is damaged."""
    if len(content) < _HEAD.size:
        return None
    magic, width, checksum, count = _HEAD.unpack_from(content)
    body = memoryview(content)[_HEAD.size :]
    if magic != _MAGIC or width not in _TYPES or len(body) != count * width or _checksum(key, body) != checksum:
        return None
    stored = np.frombuffer(body, _TYPES[width])
    return _to_float(stored) if width == 2 else stored.astype(np.float32)


def _to_float(whole: np.ndarray) -> np.ndarray:
    """16-bit samples as libsndfile gives them in float32, exact."""
    return whole.astype(np.float32) * np.float32(1 / 32768)


def _checksum(key: str, content: bytes | memoryview) -> int:
    return zlib.crc32(content, zlib.crc32(key.encode()))


def _write(path: Path, content: bytes) -> None:
    """Put a file in place whole, as `asr.files` does but without its syncs: they cost 20 times the decoding.

    What a power failure leaves of it the checksum finds out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        _delete(temporary)


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone already, or not ours to delete
        path.unlink()
