"""The arrays of an n-gram model, and the file that keeps them: mapped into memory, checked, never trusted.

The file: a head of 128 bytes, the words as UTF-8 with a line feed behind each, and the arrays, each from a multiple of
64 bytes on, all little-endian. The head: magic and version (8 bytes), SHA-256 of the ARPA file (32), eight int64
(order, words, bytes of text, contexts, entries, ids of <s>, </s> and <unk>), CRC-32 of all that follows the head,
CRC-32 of the head before it, zeros. A file that differs from this in anything, or whose arrays could lead a
loop out of their bounds, is as good as none. It must not be changed in place; what is written here is renamed over.
"""

import contextlib
import dataclasses
import mmap
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from asr import files
from asr.errors import AsrError

SUFFIX = ".tables"
_MAGIC = b"asr-ng\x00\x01"
_HEAD = struct.Struct("<8s32s8qI")
_CRC = struct.Struct("<I")
_START = 128
_ALIGNED = 64
_KINDS = (np.dtype("<i4"), np.dtype("<i4"), np.dtype("<f4"), np.dtype("<f4"), np.dtype("<i4"), np.dtype("<i4"))

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tables:
    """An n-gram model as arrays; `asr.decode.ngram` tells what they mean.

    Attributes:
        text: the words as UTF-8 with a line feed behind each.
        size: V, the number of words.
        arrays: first, word, logprob, backoff, suffix, follow.
        special: ids of <s>, </s> and <unk>.
        order: the longest n-gram's words.
        sha256: of the ARPA file, in hexadecimal.
    """

    text: bytes
    size: int
    arrays: Arrays
    special: tuple[int, int, int]
    order: int
    sha256: str


def places(path: Path, sha256: str) -> list[Path]:
    """Where the tables of an ARPA file may lie: beside it, and in the user's cache folder under its SHA-256."""
    beside = [path.with_name(path.name + SUFFIX)]
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return [*beside, Path(cache or Path.home() / ".cache") / "asr" / "ngram" / f"{sha256}{SUFFIX}"]
    except RuntimeError:  # nobody's home
        return beside


def keep(content: Tables, where: list[Path]) -> Tables:
    """Write tables to the first place that takes them and map them from there; where none does, give them back."""
    for place in where:
        with contextlib.suppress(AsrError):
            _write(place, content)
            return load(place, content.sha256) or content
    return content


def load(path: Path, sha256: str) -> Tables | None:
    """The tables in a file, mapped into memory; None where it isn't whole, sound and of the ARPA with that SHA-256."""
    try:
        with open(path, "rb") as file:
            # A copy on write: the arrays are as any others, so that loops are compiled for one kind only.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    return _parse(mapped, sha256)


def _layout(text: int, contexts: int, entries: int) -> tuple[list[int], int]:
    """Where each array starts in the file, and the file's size."""
    starts, at = [], _START + text
    for kind, length in zip(_KINDS, (contexts + 1, entries, entries, contexts, contexts, entries), strict=True):
        at += -at % _ALIGNED
        starts.append(at)
        at += kind.itemsize * length
    return starts, at


def _write(path: Path, content: Tables) -> None:
    """Write a file of tables atomically. Raises AsrError as `asr.files.atomic` does."""
    contexts, entries = len(content.arrays[3]), len(content.arrays[1])
    starts, _ = _layout(len(content.text), contexts, entries)
    parts: list[bytes | memoryview] = [content.text]
    at = _START + len(content.text)
    for start, kind, array in zip(starts, _KINDS, content.arrays, strict=True):
        parts += [bytes(start - at), np.ascontiguousarray(array, kind).data.cast("B")]
        at = start + array.nbytes
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    numbers = content.order, content.size, len(content.text), contexts, entries, *content.special
    head = _HEAD.pack(_MAGIC, bytes.fromhex(content.sha256), *numbers, checksum)
    head += _CRC.pack(zlib.crc32(head))
    with files.atomic(path) as file:
        for part in (head.ljust(_START, b"\0"), *parts):
            file.write(part)


def _parse(mapped: mmap.mmap, sha256: str) -> Tables | None:
    if len(mapped) < _START:
        return None
    head = mapped[: _HEAD.size]
    magic, digest, order, size, text, contexts, entries, *special, checksum = _HEAD.unpack(head)
    (head_checksum,) = _CRC.unpack_from(mapped, _HEAD.size)
    if magic != _MAGIC or digest.hex() != sha256 or zlib.crc32(head) != head_checksum:
        return None
    if not 1 <= order <= 100 or min(size, text, contexts) < 1 or not max(size, contexts - 1) < entries < 2**31:
        return None
    starts, total = _layout(text, contexts, entries)
    if total != len(mapped) or zlib.crc32(memoryview(mapped)[_START:]) != checksum:
        return None
    lengths = contexts + 1, entries, entries, contexts, contexts, entries
    first, word, logprob, backoff, suffix, follow = (
        np.frombuffer(mapped, kind, length, start) for kind, length, start in zip(_KINDS, lengths, starts, strict=True)
    )
    words = mapped[_START : _START + text]
    arrays = first, word, logprob, backoff, suffix, follow
    bos, eos, unk = special
    if not (min(special) >= 0 and max(special) < size and _are_words(words, size) and _are_sound(arrays, size)):
        return None
    return Tables(words, size, arrays, (bos, eos, unk), order, sha256)


def _are_words(text: bytes, size: int) -> bool:
    try:
        return text.endswith(b"\n") and text.decode().count("\n") == size
    except UnicodeDecodeError:
        return False


def _are_sound(arrays: Arrays, size: int) -> bool:
    """Whether no walk along the arrays can leave them or go round in a circle."""
    first, word, logprob, backoff, suffix, follow = arrays
    contexts, entries = len(backoff), len(word)
    rows = first[0] == 1 and first[1] == size + 1 and first[-1] == entries and bool((first[1:] >= first[:-1]).all())
    ids = word[0] == -1 and word[1:].min() >= 0 and word.max() < size
    states = follow.min() >= 0 and follow.max() < contexts and suffix.min() >= 0 and suffix[0] == 0
    shorter = bool((suffix[1:] < np.arange(1, contexts)).all())
    return bool(rows and ids and states and shorter and np.isfinite(logprob).all() and np.isfinite(backoff).all())
