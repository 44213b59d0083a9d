"""Files that are never half written: a temporary beside the target, flushed, synced, renamed over it.

A process that is killed at any moment leaves either the old file or the new one, and perhaps a temporary
(``.NAME.PID.tmp``) which `sweep` removes at the next start.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from asr.errors import AsrError

_SUFFIX = ".tmp"


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only when the block ends without an error.

    Raises:
        AsrError: the folder can't be written, the disk is full, or `path` is a folder, a device or the like; what
            stood there is untouched.
    """
    target = Path(path)
    _ordinary(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}{_SUFFIX}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise AsrError(
            f"{target}: not written ({error.strerror or error}); make room or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse what `atomic` would refuse, before long work whose result is to go there. Raises AsrError as it does."""
    probe = Path(path).with_name(f".{Path(path).name}.probe") if Path(path).name else path
    with atomic(probe):
        pass
    Path(probe).unlink()
    _ordinary(Path(path))


def _ordinary(target: Path) -> None:
    """Refuse a target that `atomic` would put a file in the place of, and that is none."""
    if not target.name or (target.exists() and not target.is_file()):
        raise AsrError(f"{target}: not written (it is no ordinary file); choose another name")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path` atomically. Raises AsrError as `atomic` does."""
    with atomic(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically. Raises AsrError as `atomic` does."""
    write_bytes(path, text.encode())


def sweep(folder: str | os.PathLike[str]) -> int:
    """Remove the temporaries that killed processes left in `folder`; returns how many."""
    strays = [path for path in Path(folder).glob(f".*{_SUFFIX}") if path.is_file() and _is_stray(path.name)]
    for path in strays:
        path.unlink(missing_ok=True)
    return len(strays)


def _is_stray(name: str) -> bool:
    """Whether a file of that name is a temporary of `atomic` whose process is gone."""
    form = re.fullmatch(r"\..+\.([0-9]{1,9})\.tmp", name)
    if not form:
        return False
    if int(form[1]) == os.getpid():
        return True  # of a killed process that had our number
    try:
        os.kill(int(form[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as safetensors do; False where it can't be read, which its reader will say."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False
    return start[8:] == b"{" and b"\0" in start


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure (POSIX; elsewhere a folder can't be opened, and nothing is done)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
