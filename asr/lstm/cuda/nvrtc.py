"""Kernel sources of this folder -> machine code, by NVRTC, kept in a cache on disk.

NVRTC and its binding (cuda-bindings) come with torch's CUDA builds; users need no compiler. A cached file is the cubin
and a trailer of 16 bytes: the letters ``ASRC``, the cubin's length (8 bytes) and its CRC-32 (4 bytes), little-endian.
Its name is a hash of all that decides about the code: sources, options, NVRTC's version and the format's number.
The cache is `ASR_LSTM_CACHE`, else `asr/lstm` below `XDG_CACHE_HOME` or `~/.cache`. Where it can't be read or written,
or the variable is empty, kernels are compiled anew in each process (about a second each).
"""

import contextlib
import hashlib
import importlib
import os
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from asr import files
from asr.errors import AsrError

SOURCES = Path(__file__).parent
HEADER = "common.cuh"
FORMAT = 1
_TRAILER = struct.Struct("<4sQI")
_MAGIC = b"ASRC"


class Unavailable(AsrError):
    """The fused kernels can't be had here; the message says why."""


@dataclass(frozen=True)
class Compiled:
    """Machine code of one kernel and what the compiler said about it."""

    cubin: bytes
    log: str

    @property
    def registers(self) -> int:
        """Registers of a thread."""
        return self._figure(r"Used (\d+) registers")

    @property
    def spilled(self) -> int:
        """Bytes of stack and of registers spilled to memory: 0 where everything fits."""
        figures = [r"(\d+) bytes stack frame", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads"]
        return sum(map(self._figure, figures))

    def _figure(self, pattern: str) -> int:
        found = re.search(pattern, self.log)
        if found is None:
            raise ValueError(f"the compiler's log has no {pattern!r}: {self.log!r}")
        return int(found[1])


def architecture(capability: tuple[int, int]) -> str:
    """What to compile for: ``sm_90a`` for compute capability 9.0."""
    return f"sm_{capability[0]}{capability[1]}a"


def compile(kernel: str, macros: Mapping[str, int], arch: str) -> Compiled:
    """Compile ``<kernel>.cu`` of this folder with NVRTC; needs no GPU.

    Args:
        kernel: "forward" or "backward".
        macros: the shape, see common.cuh.
        arch: as `architecture` gives it.

    Raises:
        Unavailable: NVRTC or its binding isn't there, does not know the architecture, or rejects the source.
    """
    nvrtc = _nvrtc()
    source = (SOURCES / f"{kernel}.cu").read_bytes()
    header = (SOURCES / HEADER).read_bytes()
    program = _result(nvrtc, nvrtc.nvrtcCreateProgram(source, f"{kernel}.cu".encode(), 1, [header], [HEADER.encode()]))
    try:
        options = [option.encode() for option in _options(macros, arch)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = b" " * _result(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
        _result(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
        text = log.decode(errors="replace").strip("\0 \n")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise Unavailable(f"NVRTC can't compile {kernel}.cu for {arch}: {text or status.name}")
        cubin = b" " * _result(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        _result(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin))
        return Compiled(cubin, text)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def cubin(kernel: str, macros: Mapping[str, int], arch: str, fresh: bool = False) -> bytes:
    """The cubin of `compile`, from the cache where it is whole (unless `fresh`), else into it. Raises as `compile`."""
    path = _path(kernel, macros, arch)
    if path and not fresh and (code := _read(path)) is not None:
        return code
    code = compile(kernel, macros, arch).cubin
    if path:
        with contextlib.suppress(AsrError):  # a full disk or a folder without write permission: memory only
            files.write_bytes(path, code + _TRAILER.pack(_MAGIC, len(code), zlib.crc32(code)))
    return code


def _read(path: Path) -> bytes | None:
    """The cubin in a cached file; None where there is none or it is damaged, and then the file is removed."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    code, trailer = content[: -_TRAILER.size], content[-_TRAILER.size :]
    if trailer == _TRAILER.pack(_MAGIC, len(code), zlib.crc32(code)):
        return code
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _path(kernel: str, macros: Mapping[str, int], arch: str) -> Path | None:
    """The cached file of a kernel, or None where there is no cache."""
    folder = _folder()
    if folder is None:
        return None
    texts = [(SOURCES / name).read_text() for name in (f"{kernel}.cu", HEADER)]
    nvrtc = _nvrtc()
    version = _result(nvrtc, nvrtc.nvrtcVersion())
    key = repr((FORMAT, kernel, texts, _options(macros, arch), version))
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"


def _folder() -> Path | None:
    if (own := os.environ.get("ASR_LSTM_CACHE")) is not None:
        return Path(own) if own else None
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache, "asr", "lstm")
    try:
        return Path.home() / ".cache" / "asr" / "lstm"
    except RuntimeError:  # nobody's home
        return None


def _options(macros: Mapping[str, int], arch: str) -> list[str]:
    shape = [f"--define-macro={name}={value}" for name, value in sorted(macros.items())]
    return [f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", *shape]


def _nvrtc() -> ModuleType:
    """NVRTC's binding, after a call that needs the library itself. Raises Unavailable."""
    try:
        # by its name: it comes with torch, in CUDA builds only, and is no dependency of asr
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        _result(nvrtc, nvrtc.nvrtcVersion())
    except Unavailable:
        raise
    except Exception as error:  # no package, no library, or one without a function that the binding wants
        raise Unavailable(f"NVRTC is not to be had ({error}): the fused LSTM needs torch's CUDA build") from error
    return nvrtc


def _result(nvrtc: ModuleType, answer: tuple[Any, ...]) -> Any:
    """What a function of the binding returned behind its status: nothing, a value or a tuple. Raises Unavailable."""
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise Unavailable(f"NVRTC: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)
