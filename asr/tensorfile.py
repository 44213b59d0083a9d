"""Safetensors files, written in a fixed order and read with suspicion.

A file is 8 bytes with the length of a JSON header (little endian), the header (name -> dtype, shape and byte
range of each tensor, and ``__metadata__``: text -> text), and the tensors' bytes without a gap. The metadata
written here carry the ``sha256`` of those bytes.

Files come from strangers: whatever is allocated is bounded by what was checked before. Both ways are done
here and not by the safetensors package: one descriptor is checked and then read, so that a file changed in
between does no harm; a key that stands twice is refused; and the metadata have a fixed order, so that equal
models are equal files. What is written here, the package reads; what it refuses, is refused here.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from asr import files
from asr.errors import InputError

MAX_HEADER = 4_000_000  # bytes: 100,000 tokens and 10,000 tensors fit; JSON takes up to 25 times its size in memory
MAX_TENSORS = 10_000
MAX_RANK = 8
MAX_BYTES = 8 * 2**30  # of all tensors together

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_FOREIGN = (  # how files begin that are often taken for a model
    (b"\x80", "a PyTorch pickle is never loaded (it can run code)"),
    (b"PK", "a zip, perhaps PyTorch's: a PyTorch pickle is never loaded (it can run code)"),
    (b"", "not a safetensors file"),
)
_DESERVES = "give a model.safetensors that asr wrote"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of a file: its type, its shape and where its bytes lie behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class Header:
    """The checked header: `metadata`, `tensors` in file order, `start` of their bytes, `size` of the file."""

    metadata: dict[str, str]
    tensors: dict[str, Entry]
    start: int
    size: int


def refusal(path: str | os.PathLike[str], reason: str) -> InputError:
    """The error that says why a file of tensors is not taken (status 2: no work was started)."""
    return InputError(f"{path}: {reason}", status=2)


def short(value: object) -> str:
    """A value from a file, cut to what fits in an error message."""
    if isinstance(value, (str, bytes)):
        value = value[:80]
    elif isinstance(value, (dict, list)):
        return f"a {'JSON object' if isinstance(value, dict) else 'list'} of {len(value)}"
    elif isinstance(value, int) and value.bit_length() > 128:
        return "a whole number of more than 38 digits"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, Header]]:
    """Open a safetensors file and check its header.

    Raises:
        InputError: there is no such file, it can't be read, is no ordinary file (a pipe is not waited for),
            no safetensors file, cut, or asks for more than the limits above (status 2).
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # before opening: to open a device can have an effect
            raise refusal(path, f"not an ordinary file; {_DESERVES}")
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise refusal(path, f"{getattr(error, 'strerror', None) or error}; check the path") from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refusal(path, f"not an ordinary file; {_DESERVES}")
        with _read_errors(path):
            header = _header(file, status.st_size, path)
        yield file, header


def read(file: BinaryIO, header: Header, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors behind a checked header, on the CPU, each with its own memory.

    Raises:
        InputError: the file is cut, its bytes are not those that were written, or memory is short (status 2).
    """
    digest = hashlib.sha256()
    tensors = {}
    with _read_errors(path):
        file.seek(header.start)
        for name, entry in header.tensors.items():
            content = bytearray(entry.end - entry.begin)
            if file.readinto(content) != len(content):  # type: ignore[attr-defined]
                raise refusal(path, "cut short while it was read; copy it again")
            digest.update(content)
            flat = torch.frombuffer(content, dtype=entry.dtype) if content else torch.empty(0, dtype=entry.dtype)
            tensors[name] = flat.reshape(entry.shape)
    if header.metadata.get("sha256") != digest.hexdigest():
        raise refusal(path, "damaged: its SHA-256 is not the one it was written with; copy it again")
    return tensors


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, in an order that depends on the names alone.

    Tensors may be on any device, share memory, be transposed, scalar or empty.

    Raises:
        AsrError: the file can't be written; what stood there is untouched.
        InputError: the header would be larger than `MAX_HEADER` (status 2).
    """
    header: dict[str, Any] = {}
    digest = hashlib.sha256()
    end = 0
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # keeps each one aligned
    for name, tensor in ordered:
        content = _bytes(tensor)
        digest.update(content)
        begin, end = end, end + len(content)
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    head = json.dumps({"__metadata__": {**metadata, "sha256": digest.hexdigest()}, **header}).encode()
    head += b" " * (-len(head) % 8)
    if len(head) > MAX_HEADER or len(header) > MAX_TENSORS or end > MAX_BYTES:
        raise refusal(path, f"not written: {len(head)} bytes of header, {len(header)} tensors, {end} bytes of tensors")
    with files.atomic(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, tensor in ordered:
            file.write(_bytes(tensor))


@contextlib.contextmanager
def _read_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system says against reading into an InputError."""
    try:
        yield
    except OSError as error:
        raise refusal(path, f"{error.strerror or error} while it was read; check the disk") from error
    except MemoryError as error:
        raise refusal(path, "more than the memory at hand; a smaller model or a larger machine is needed") from error


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in C order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _header(file: BinaryIO, size: int, path: str | os.PathLike[str]) -> Header:
    start = file.read(9)
    if start[8:] != b"{":
        raise refusal(path, f"{_foreign(start)}; {_DESERVES}")
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise refusal(path, f"a header of {length} bytes in a file of {size} (limit {MAX_HEADER}); cut or no model")
    if size - 8 - length > MAX_BYTES:
        raise refusal(path, f"{size} bytes, more than any model of asr ({MAX_BYTES})")
    fields = parse(b"{" + file.read(length - 1), path)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refusal(path, "the metadata of its header are not all texts; no safetensors file")
    if len(fields) > MAX_TENSORS:
        raise refusal(path, f"{len(fields)} tensors, more than any model of asr ({MAX_TENSORS})")
    entries = {name: _entry(name, field, path) for name, field in fields.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = 0
    for name, entry in ordered.items():
        if entry.begin != end:
            raise refusal(path, f"tensor {short(name)} starts at byte {entry.begin}, not at {end}; damaged")
        end = entry.end
    if end != size - 8 - length:
        raise refusal(path, f"{size - 8 - length} bytes of tensors, its header speaks of {end}; cut or damaged")
    return Header(metadata, ordered, 8 + length, size)


def parse(raw: str | bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object in which no key stands twice. Raises InputError (status 2)."""
    try:
        value = json.loads(raw.decode() if isinstance(raw, bytes) else raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else short(str(error))
        raise refusal(path, f"its header is no valid JSON ({reason[:80]}); damaged or no model") from error
    if not isinstance(value, dict):
        raise refusal(path, f"its header holds {short(value)} instead of a JSON object; damaged or no model")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice")
    return fields


def _entry(name: str, field: Any, path: str | os.PathLike[str]) -> Entry:
    """Check one tensor's dtype, shape and byte range."""
    where = f"tensor {short(name)}"
    if not name.isprintable() or len(name) > 500:
        raise refusal(path, f"{where}: its name is too long or not printable")
    if not isinstance(field, dict) or field.keys() != {"dtype", "shape", "data_offsets"}:
        raise refusal(path, f"{where}: not described by dtype, shape and data_offsets; no safetensors file")
    shape, offsets = field["shape"], field["data_offsets"]
    dtype = _DTYPES.get(field["dtype"]) if isinstance(field["dtype"], str) else None
    if dtype is None:
        raise refusal(path, f"{where}: type {short(field['dtype'])} is none of {', '.join(_DTYPES)}")
    if not _wholes(shape) or len(shape) > MAX_RANK:
        raise refusal(path, f"{where}: its shape is no list of up to {MAX_RANK} sizes")
    if not _wholes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise refusal(path, f"{where}: its byte range does not fit its shape; damaged")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _wholes(values: Any) -> bool:
    """Whether `values` is a list of whole numbers from 0 to 2^48."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= 2**48 for value in values)


def _foreign(start: bytes) -> str:
    if not start:
        return "an empty file"
    return next(reason for magic, reason in _FOREIGN if start.startswith(magic))
