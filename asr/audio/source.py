"""Where the bytes of a recording come from: a path, bytes or a binary file, all seen as one kind of file."""

import io
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from asr.errors import InputError

MAX_PIPE_BYTES = 1 << 30  # what is held in memory of a file object that can't seek

MAX_TAGS = 8


class Source:
    """Random access to the bytes of a recording, with their name and number.

    C code reads through `seek`, `tell` and `readinto`, and no exception can pass it: the error of a file
    object ends the reading and is kept in `error`. Bytes may be shown otherwise than they are: `patch`.

    Args:
        source: a path, bytes, or a binary file (read from its start; one that can't seek is taken into
            memory).

    Raises:
        InputError: nothing there, a folder, a device, no permission, empty, or no source at all.
    """

    def __init__(self, source: object) -> None:
        self.error: Exception | None = None
        self.patch = (0, b"")  # place and content
        self._owned = isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview))
        if isinstance(source, (str, os.PathLike)):
            self.name = os.fsdecode(source)
            self._file: Any = _open(source, self.name)
        elif isinstance(source, (bytes, bytearray, memoryview)):
            self.name = "<bytes>"
            self._file = io.BytesIO(source)
        elif callable(getattr(source, "read", None)):
            name = getattr(source, "name", None)
            self.name = name if isinstance(name, str) else "<stream>"
            self._file = _seekable(source, self.name)
        else:
            raise InputError(f"{type(source).__name__} is no audio source; give a path, bytes or a binary file", 2)
        self.size: int = self._file.seek(0, io.SEEK_END)
        if not self.size:
            self.close()
            raise InputError(f"{self.name}: is empty (0 bytes); record or copy it again")

    def check(self) -> None:
        """Raise InputError if reading has failed since the last call."""
        if self.error is not None:
            raise InputError(f"{self.name}: reading failed ({self.error}); copy it to a local disk") from self.error

    def at(self, place: int, count: int) -> bytes:
        """Up to `count` bytes from `place`."""
        self.seek(place)
        buffer = bytearray(max(0, min(count, self.size - place)))
        return bytes(buffer[: self.readinto(buffer)])

    def after_tags(self) -> int:
        """Where the sound begins: behind ID3 tags, which may stand before MP3, AAC and FLAC."""
        place = 0
        for _ in range(MAX_TAGS):
            head = self.at(place, 10)
            if head[:3] != b"ID3" or len(head) < 10:
                break
            place += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        return place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of a file, but never to outside it: offsets from a damaged header can be anything."""
        if whence != io.SEEK_SET:
            offset += self.tell() if whence == io.SEEK_CUR else self.size
        offset = min(max(0, offset), self.size)
        self._file.seek(offset)
        return offset

    def tell(self) -> int:
        """As of a file."""
        place: int = self._file.tell()
        return place

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the file goes; returns the number of bytes."""
        view, filled = memoryview(buffer).cast("B"), 0
        try:
            place = self._file.tell()
            while filled < len(view) and (part := self._file.read(len(view) - filled)):
                view[filled : filled + len(part)] = part
                filled += len(part)
        except Exception as error:  # whatever a foreign file object raises
            self.error = error
            return filled
        at, content = self.patch
        for index, byte in enumerate(content, at - place):
            if 0 <= index < filled:
                view[index] = byte
        return filled

    def read(self, count: int) -> bytes:
        """As of a file."""
        return self.at(self.tell(), count)

    def close(self) -> None:
        """Close what was opened here; a file that was handed in stays open."""
        if self._owned:
            self._file.close()


def _open(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        mode = Path(path).stat().st_mode  # before opening: a pipe would wait for its writer
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: can't be opened ({reason}); check its path and permissions") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{name}: is a folder; name an audio file in it")
    raise InputError(f"{name}: is a pipe or a device; save the recording as a file")


def _seekable(file: Any, name: str) -> Any:
    """`file` itself at its start, or its content in memory where it can only be read forwards."""
    try:
        if not file.seekable():
            content = file.read(MAX_PIPE_BYTES + 1)
            file = io.BytesIO(content)
            if len(content) > MAX_PIPE_BYTES:
                raise InputError(f"{name}: more than {MAX_PIPE_BYTES} bytes from a pipe; save it as a file first")
        file.seek(0)
        if isinstance(file.read(0), str):
            raise InputError(f"{name}: is opened as text; open it in binary mode ('rb')", 2)
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{name}: can't be read ({error}); give a path, bytes or a binary file") from error
    return file
