"""A corpus of recordings: found in a local copy or fetched, read once, compared with its published samples.

The digest of a corpus is the SHA-256 over its recordings in the order of their ids, each as the line ``ID
RATE FRAMES`` and its samples as little-endian 16-bit integers. It does not depend on the container: the WAV
or Sphere files of the publisher and a lossless FLAC copy have the same digest. Durations are seconds.
"""

import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from asr import audio
from asr.corpora.archive import unpack
from asr.corpora.download import Archive, Say, download
from asr.errors import InputError

T = TypeVar("T")
MAX_SECONDS = 60  # no recording of these corpora lasts so long
_CONTAINERS = ("WAV", "WAVEX", "FLAC", "NIST")
_REPORT_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Recording:
    """One recording of a corpus: where it lies, who speaks, what is said."""

    id: str
    path: Path
    text: str
    speaker: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is known of a published corpus before any file of it is seen.

    `folders` are the places (glob patterns) where its files lie below a root; `list` gives the recordings of
    one such folder, none where it is no copy. `sha256` is the digest of all `recordings`; `keep` accepts the
    names of the archive's members that are needed.
    """

    name: str
    title: str
    home: str
    licence: str
    archive: Archive
    recordings: int
    sha256: str
    folders: tuple[str, ...]
    list: Callable[[Path], "list[Recording]"]
    keep: Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy of a corpus that was read; `complete`: every recording is there with the published samples."""

    folder: Path
    recordings: list[Recording]
    seconds: dict[str, float]
    sha256: str
    complete: bool
    note: str


def obtain(corpus: Corpus, out: Path, source: Path | None, fetch: bool, say: Say) -> Copy:
    """Find or fetch `corpus` and read every recording once.

    Looks in `source` (a folder, or the archive itself) if given, else below the folder that the environment
    variable ``ASR_DATA`` names, then in ``OUT/NAME/download``, then asks the public home if `fetch` is true.

    Raises:
        InputError: nothing found (the places are named), or what was fetched isn't the published corpus.
        AsrError: the network or the disk fails.
    """
    kept = out / corpus.name / "download"
    folder, looked = _locate(corpus, kept, source)
    fetched = folder is None
    if folder is None:
        folder = _fetch(corpus, kept, source, fetch, looked, say)
    copy = read_copy(corpus, folder, say)
    if fetched and not copy.complete:
        shutil.rmtree(kept, ignore_errors=True)
        raise InputError(f"{corpus.name}: the archive is not the published corpus ({copy.note}); nothing kept")
    if copy.note:
        say(f"{corpus.name}: {folder}: {copy.note}")
    return copy


def read_copy(corpus: Corpus, folder: Path, say: Say) -> Copy:
    """Decode every recording below `folder`: durations and the digest. Raises InputError."""
    recordings = corpus.list(folder)
    seconds, digest = {}, hashlib.sha256()
    ordered = sorted(recordings, key=lambda one: one.id)
    for recording in progress(ordered, f"{corpus.name}: reading", say, len(ordered)):
        samples, rate = read_samples(recording.path)
        seconds[recording.id] = len(samples) / rate
        digest.update(f"{recording.id} {rate} {len(samples)}\n".encode() + samples.tobytes())
    note = ""
    if len(recordings) != corpus.recordings:
        note = f"{len(recordings)} of {corpus.recordings} recordings; its figures compare with nobody's"
    elif digest.hexdigest() != corpus.sha256:
        note = "the samples differ from the published recordings; its figures compare with nobody's"
    return Copy(folder, recordings, seconds, digest.hexdigest(), not note, note)


def read_samples(path: Path) -> tuple[np.ndarray, int]:
    """The samples of a mono 16-bit WAV, FLAC or Sphere file, little-endian int16 (n,), and its rate in Hz.

    Raises:
        InputError: the file is anything else, damaged, empty, or longer than `MAX_SECONDS`.
    """
    known = audio.info(path)
    right = known.container in _CONTAINERS and known.coding == "PCM_16" and known.channels == 1
    if not right or known.seconds > MAX_SECONDS:
        raise InputError(
            f"{path}: {known.container}, {known.coding}, {known.channels} channels, {known.seconds:.1f} s; "
            f"expected mono 16-bit WAV, FLAC or Sphere of at most {MAX_SECONDS} s; get the corpus again"
        )
    # 16-bit samples divided by 32768 are exact in float32, so this gives them back.
    return (audio.read(path, known.rate).samples * 32768).astype("<i2"), known.rate


def progress(items: Iterable[T], what: str, say: Say, total: int) -> Iterator[T]:
    """Pass `items` on, saying every three seconds how far they are of `total`."""
    told = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - told >= _REPORT_SECONDS:
            told = time.monotonic()
            say(f"{what}: {number} of {total}")
        yield item


def durations(recordings: list[Recording], what: str, say: Say) -> dict[str, float]:
    """Seconds of each recording by its id, from the files' headers. Raises InputError."""
    return {one.id: audio.info(one.path).seconds for one in progress(recordings, what, say, len(recordings))}


def _locate(corpus: Corpus, kept: Path, source: Path | None) -> tuple[Path | None, list[Path]]:
    """The first folder that holds recordings of `corpus`, and the roots that were looked through."""
    if source is not None and not source.exists():
        raise InputError(f"--source {source}: no such folder or archive; check the path", status=2)
    data = os.environ.get("ASR_DATA", "")
    roots = [source] if source is not None else [Path(data), kept] if data else [kept]
    for root in roots:
        if folder := _search(corpus, root):
            return folder, roots
    if source is not None and source.is_dir():
        raise InputError(
            f"--source {source}: no {corpus.name} there (looked in {', '.join(corpus.folders)}); "
            "name the folder of the recordings, or the archive",
            status=2,
        )
    return None, roots


def _search(corpus: Corpus, root: Path) -> Path | None:
    for pattern in corpus.folders:
        for folder in [root] if pattern == "." else sorted(root.glob(pattern)):
            if folder.is_dir() and corpus.list(folder):
                return folder
    return None


def _fetch(corpus: Corpus, kept: Path, source: Path | None, fetch: bool, looked: list[Path], say: Say) -> Path:
    """Unpack the archive (`source`, or downloaded now) to `kept`, and return the folder of its recordings."""
    if source is None and not fetch:
        places = ", ".join(map(str, looked)) + ("" if os.environ.get("ASR_DATA") else "; ASR_DATA is not set")
        raise InputError(f"{corpus.name}: no copy found (looked in {places}); give --source or allow the download")
    archive = source or kept.with_name("download.archive")
    try:
        if source is None:
            download(corpus.archive, archive, licence=corpus.licence, say=say)
        shutil.rmtree(kept, ignore_errors=True)
        unpack(archive, kept, corpus.keep)
    finally:
        if source is None:
            archive.unlink(missing_ok=True)
    return _search(corpus, kept) or kept
