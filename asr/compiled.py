"""Loops compiled by numba where it is found, and run as plain Python elsewhere: one source, the same numbers.

    @compiled
    def total(row): ...

The machine code is kept below `NUMBA_CACHE_DIR`, else `XDG_CACHE_HOME` or `~/.cache`, in a folder named by a hash
of all compiled sources: numba itself looks at the time stamp of one file only, and would go on with old code of the
loops that it calls in others. Where the folder can't be written, or a file in it is damaged, a process compiles for
itself. Only the global interpreter lock makes a difference, which compiled loops let go of. `NUMBA_DISABLE_JIT=1` runs
the plain Python.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

numba: Any
try:
    import numba
except ImportError:  # a new Python, for which there is no numba yet
    numba = None

_Function = TypeVar("_Function", bound=Callable[..., Any])

AVAILABLE = numba is not None and not numba.config.DISABLE_JIT


def compiled(function: _Function, **options: Any) -> _Function:
    """The function as machine code without the interpreter lock, from the cache where it is there."""
    if not AVAILABLE:
        return function
    before = numba.config.CACHE_DIR
    folder = cache_folder()
    try:
        if folder is not None:
            numba.config.CACHE_DIR = str(folder)
        jitted: _Function = numba.njit(nogil=True, cache=folder is not None, **options)(function)
    finally:
        numba.config.CACHE_DIR = before
    if folder is not None:
        _forgive(jitted._cache)  # type: ignore[attr-defined]
    return jitted


def _forgive(cache: Any) -> None:
    """Make a function do without its cache where a file of it is damaged or can't be written: numba would raise."""
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception:  # whatever a damaged file makes of it
            with contextlib.suppress(Exception):
                cache.flush()
            return None

    def save_overload(*arguments: Any) -> None:
        with contextlib.suppress(Exception):  # a full disk, or a damaged index that could not be emptied
            save(*arguments)

    cache.load_overload, cache.save_overload = load_overload, save_overload


def bare(function: _Function) -> _Function:
    """As `compiled`, for loops that make no arrays: they do not count references to them, and are twice as fast."""
    return compiled(function, _nrt=False)


def inlined(function: _Function) -> _Function:
    """A function, without arrays of its own, that becomes part of the compiled ones that call it."""
    return numba.njit(nogil=True, inline="always", _nrt=False)(function) if AVAILABLE else function


def is_ready(function: Callable[..., Any]) -> bool:
    """Whether a call would not have to compile first (some 10 seconds): it has run, or is in the cache."""
    if not AVAILABLE:
        return True
    if function.signatures:  # type: ignore[attr-defined]
        return True
    place = function.stats.cache_path  # type: ignore[attr-defined]
    return place is not None and any(Path(place).glob(f"*.{function.__name__}-*.nbi"))


def cache_folder() -> Path | None:
    """The folder of compiled loops, made where it is missing; None where that can't be done."""
    try:
        folder = _root() / "asr" / "loops" / _source_hash()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _root() -> Path:
    cache = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    return Path(cache) if cache else Path.home() / ".cache"


@functools.cache
def _source_hash() -> str:
    """A hash of every source file here that holds compiled loops."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        source = path.read_bytes()
        if b"asr.compiled" in source:
            digest.update(source)
    return digest.hexdigest()[:16]
