"""Strangers' archives (tar, tar.gz, zip), read as streams: nothing is extracted by the archive's own word.

Every member is looked at before the first byte is written. An archive is refused as a whole where a member
is anything but a regular file or a folder (links, devices, sparse files), where a name is absolute, climbs
(``..``), holds a NUL, a backslash, a colon or a control character, or stands twice, or where members or
bytes exceed their caps. What an archive claims about sizes is never allocated: data moves in blocks of 64
KiB, and the headers between two tar members may take 256 KiB at most.

Files are written to ``FOLDER.partial`` with names made here, and the folder takes its own name when all are
whole.
"""

import contextlib
import dataclasses
import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from asr.errors import AsrError, InputError

MAX_MEMBERS = 5_000
MAX_BYTES = 500_000_000
_MAX_HEADER = 1 << 18  # bytes of headers (long names, extended attributes) before one member
_MAX_DIRECTORY = 4_000_000  # bytes of a zip's central directory
_MAX_NAME = 1024
_MAX_PADDING = 1 << 20  # bytes behind the end of a tar
_BLOCK = 1 << 16
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError,
    OverflowError, NotImplementedError, RuntimeError, KeyError, IndexError, TypeError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Member:
    """One entry of an archive; `wrong` says why it isn't acceptable (empty: it is)."""

    name: str
    size: int
    folder: bool
    wrong: str


def unpack(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    keep: Callable[[str], bool],
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
) -> list[Path]:
    """Unpack the members whose name `keep` accepts to `folder`, which must not exist; returns their paths.

    Raises:
        InputError: no tar or zip, broken, or refused (see above); one line names the members.
        AsrError: the folder can't be written.
    """
    path, target = Path(path), Path(folder)
    if target.exists():
        raise AsrError(f"{target}: exists already; remove it first")
    members = inspect(path, max_bytes, max_members)
    if not any(keep(member.name) for member in members if not member.folder):
        raise InputError(
            f"{path}: none of its {len(members)} members is a file of this corpus; is it the right archive?"
        )
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with _one_line(path):
            names = [name for name, data in _contents(path) if keep(name) and _copy(data, partial / name)]
        partial.rename(target)
    except OSError as error:
        raise AsrError(
            f"{target}: not written ({error.strerror or error}); make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [target / name for name in names]


def inspect(path: Path, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS) -> list[Member]:
    """Look at every member, without writing, and return them. Raises InputError as `unpack` does."""
    members: list[Member] = []
    seen: dict[str, bool] = {}
    wrong: list[str] = []
    total = 0
    with _one_line(path, OSError):
        for member in _members(path):
            total += member.size
            if total > max_bytes or len(members) == max_members:
                raise InputError(
                    f"{path}: more than {max_members} members or {max_bytes} bytes; refused, nothing unpacked"
                )
            if reason := member.wrong or _clash(member, seen):
                wrong.append(f"{member.name[:80]!r} {reason}")
            members.append(member)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{path}: refused, nothing unpacked: {', '.join(wrong[:3])}{more}")
    return members


def safe_name(name: str) -> str:
    """A member's name as a relative path; `InputError` never: an unacceptable name gives an empty string."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    bad = (
        name.startswith("/")
        or ".." in parts
        or any(ord(character) < 32 or character in "\\:\x7f" or "\ud800" <= character <= "\udfff" for character in name)
        or len(name) > _MAX_NAME
        or any(len(part.encode()) > 255 for part in parts)
    )
    return "" if bad else "/".join(parts)


def _clash(member: Member, seen: dict[str, bool]) -> str:
    """Why `member` can't stand beside those `seen` (name in lower case: is it a folder); notes it there."""
    name = member.name.lower()
    known = seen.get(name)
    if known is not None and not (known and member.folder):
        return "stands twice"
    for parent in PurePosixPath(name).parents:
        if seen.setdefault(str(parent), True) is False:
            return "lies inside a file"
    seen[name] = member.folder
    return ""


def _members(path: Path) -> Iterator[Member]:
    with _opened(path) as archive:
        if isinstance(archive, zipfile.ZipFile):
            yield from map(_zip_member, archive.infolist())
        else:
            yield from map(_tar_member, _tar_infos(archive))


def _contents(path: Path) -> Iterator[tuple[str, "_Whole"]]:
    """Name and data of each regular member, in order; read the data before asking for the next."""
    with _one_line(path, OSError), _opened(path) as archive:
        if isinstance(archive, zipfile.ZipFile):
            for entry in archive.infolist():
                member = _zip_member(entry)
                if not member.folder and not member.wrong:
                    with archive.open(entry) as data:
                        yield member.name, _Whole(data, member.size)
        else:
            for info in _tar_infos(archive):
                member = _tar_member(info)
                data_or_none = archive.extractfile(info) if info.isreg() and not member.wrong else None
                if data_or_none is not None:
                    yield member.name, _Whole(data_or_none, member.size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The archive as a ZipFile or TarFile, told apart by content."""
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(0)
        if head.startswith(b"PK"):
            _check_directory(file, path)
            with zipfile.ZipFile(file) as archive:
                yield archive
        elif head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
            stream = gzip.GzipFile(fileobj=file) if head.startswith(b"\x1f\x8b") else file
            yield tarfile.TarFile(fileobj=_Bounded(stream), mode="r", errorlevel=2)  # type: ignore[arg-type]
        else:
            raise InputError(f"{path}: neither a tar (plain or gzip) nor a zip archive")


@contextlib.contextmanager
def _one_line(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Whatever the content of `path` makes the readers raise (and `more`) becomes one InputError."""
    kinds: tuple[type[Exception], ...] = (*_BROKEN, *more)
    try:
        yield
    except kinds as error:
        reason = f"{type(error).__name__}: {str(error)[:100]}"
        raise InputError(f"{path}: broken archive ({reason}); nothing kept, get it again") from error


def _tar_infos(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, one after the other, each with a fresh allowance of header bytes."""
    reader: Any = archive.fileobj
    reader.headers = _MAX_HEADER
    while info := archive.next():
        reader.headers = None
        yield info
        reader.headers = _MAX_HEADER
    reader.headers = _MAX_PADDING
    while reader.read(_BLOCK):  # to the end of a gzip stream, where its checksum is
        pass


def _tar_member(info: tarfile.TarInfo) -> Member:
    name = safe_name(info.name)
    wrong = "" if name or (info.isdir() and info.name.strip("./") == "") else "is no acceptable name"
    if info.issym() or info.islnk():
        wrong = "is a link"
    elif info.issparse() or not (info.isreg() or info.isdir()):
        wrong = "is no regular file"
    elif info.size < 0:
        wrong = "has a negative size"
    return Member(name or info.name, max(info.size, 0) if info.isreg() else 0, info.isdir(), wrong)


def _zip_member(entry: zipfile.ZipInfo) -> Member:
    name = safe_name(entry.orig_filename)
    wrong = "" if name else "is no acceptable name"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        wrong = "is a link"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        wrong = "is no regular file"
    elif entry.flag_bits & 1:
        wrong = "is encrypted"
    elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        wrong = "uses an unknown compression"
    return Member(name or entry.orig_filename, entry.file_size, entry.is_dir(), wrong)


def _check_directory(file: BinaryIO, path: Path) -> None:
    """Refuse a zip whose list of members alone takes long to read: opening a zip reads all of it."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    size = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if size > _MAX_DIRECTORY:
        raise InputError(f"{path}: its list of members takes {size} bytes; refused, nothing unpacked")
    file.seek(0)


def _copy(data: "_Whole", path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        shutil.copyfileobj(data, file, _BLOCK)
    return True


class _Whole:
    """A member's data that raises where it ends before, or goes on beyond, the size its header gave."""

    def __init__(self, data: IO[bytes], size: int) -> None:
        self._data, self._left = data, size

    def read(self, size: int = _BLOCK) -> bytes:
        try:
            block = self._data.read(min(size, _BLOCK))
        except OSError as error:  # the archive's, to be told from those of the file that is written
            raise EOFError(str(error)) from error
        self._left -= len(block)
        if self._left < 0 or (not block and self._left):
            raise EOFError("a member's data does not have the size that its header gives")
        return block


class _Bounded:
    """A file for `tarfile` whose reads count while headers are read: no header can ask for gigabytes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.headers: int | None = _MAX_HEADER

    def read(self, size: int = -1) -> bytes:
        if self.headers is not None:
            if size < 0 or size > self.headers:
                raise EOFError(f"headers of more than {_MAX_HEADER} bytes")
            self.headers -= size
        return bytes(self._file.read(size))

    def seek(self, position: int) -> int:
        return int(self._file.seek(position))

    def tell(self) -> int:
        return int(self._file.tell())
