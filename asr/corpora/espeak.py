"""espeak-ng in a process of its own: texts in, synthetic speech out, the same for the same request.

espeak-ng (GPL-3) comes with the package ``espeakng-loader`` (the extra ``synth``) and is loaded at run
time, in a child process only: ``python -m asr.corpora.espeak`` reads one JSON request a line and answers
each with the number of bytes (8 bytes, little-endian) and the samples. A process that has spoken once does
not repeat itself: the same sentence comes out different the second time. So for every clip a child is
forked from a process that has never spoken; with that a clip is a function of its request alone.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asr.errors import AsrError, InputError

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS; retrieval mode runs a thread, and a fork after it hangs
_UTF8 = 1  # espeakCHARS_UTF8
_PARAMETERS = {"rate": 1, "pitch": 3, "gap": 7}  # espeakRATE, espeakPITCH, espeakWORDGAP
_MISSING = 3  # exit status of the child without the package
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclasses.dataclass(frozen=True)
class Request:
    """What to say and how: `voice` (``en-us+f2``), `rate` (words a minute), `pitch` (0-99), `gap` (10 ms)."""

    text: str
    voice: str
    rate: int
    pitch: int
    gap: int


def speak(requests: Iterable[Request]) -> Iterator[tuple[np.ndarray, int]]:
    """The samples, int16 (n,), and the rate in Hz of each request, in order.

    Raises:
        InputError: the package isn't there (status 2: the line names the extra).
        AsrError: espeak-ng fails, or this system can't fork.
    """
    if not hasattr(os, "fork"):
        raise AsrError("synthetic speech needs a system that can fork (Linux, macOS); prepare fsdd or yesno instead")
    places = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        [sys.executable, "-m", "asr.corpora.espeak"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )
    with child, contextlib.suppress(BrokenPipeError):
        for request in requests:
            yield _ask(child, request)


def _ask(child: "subprocess.Popen[bytes]", request: Request) -> tuple[np.ndarray, int]:
    if child.stdin is None or child.stdout is None:
        raise AsrError("espeak-ng: no pipe to the speaking process")
    try:
        child.stdin.write(json.dumps(dataclasses.asdict(request)).encode() + b"\n")
        child.stdin.flush()
        head = child.stdout.read(8)
    except BrokenPipeError:
        head = b""
    if len(head) < 8:
        if child.wait() == _MISSING:
            raise InputError("synthetic speech needs the package espeakng-loader; install asr[synth]", status=2)
        reason = child.stderr.read().decode(errors="replace").strip().splitlines() if child.stderr else []
        raise AsrError(
            f"espeak-ng: could not say {request.text!r} as {request.voice} ({(reason or ['no answer'])[-1]})"
        )
    size, rate = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
    return np.frombuffer(child.stdout.read(size), "<i2"), rate


def _serve(requests: BinaryIO, answers: BinaryIO) -> int:
    """Answer every request line; the exit status of the speaking process."""
    try:
        import espeakng_loader
    except ImportError:
        return _MISSING
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    for line in requests:
        samples = _forked(library, Request(**json.loads(line)))
        answers.write(len(samples).to_bytes(4, "little") + int(rate).to_bytes(4, "little") + samples)
        answers.flush()
    return 0


def _forked(library: Any, request: Request) -> bytes:
    """The samples of one clip, spoken by a child that is forked for it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(_samples(library, request))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        samples = pipe.read()
    if os.waitpid(child, 0)[1] != 0 or not samples:
        raise SystemExit(f"voice {request.voice!r} does not speak")
    return samples


def _samples(library: Any, request: Request) -> bytes:
    heard: list[bytes] = []

    @_CALLBACK
    def collect(samples: Any, count: int, events: Any) -> int:
        if count > 0:
            heard.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(collect)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breathy voices draw noise; unset, the clock is the seed
    if library.espeak_SetVoiceByName(request.voice.encode()) != 0:
        raise ValueError(request.voice)
    for name, number in _PARAMETERS.items():
        library.espeak_SetParameter(number, getattr(request, name), 0)
    text = request.text.encode() + b"\0"
    library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 0, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return b"".join(heard)


if __name__ == "__main__":
    sys.exit(_serve(sys.stdin.buffer, sys.stdout.buffer))
