"""LibriSpeech: read English books, 16 kHz, 100, 460 or 960 hours of training speech and four official test sets.

Origin: OpenSLR resource 12 (openslr.org/12), by Vassil Panayotov with Guoguo Chen, Daniel Povey and Sanjeev
Khudanpur; readings by LibriVox volunteers; CC BY 4.0. One archive a part; the checksums are those of
torchaudio's data set.
Layout: ``PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac`` (or ``.opus``, ``.wav``) beside
``SPEAKER-CHAPTER.trans.txt``, a line an utterance: id, space, text in capitals.

Splits: train is train-clean-100 (`librispeech`), with train-clean-360 (`librispeech_460`), with
train-other-500 (`librispeech_960`); dev and test are dev-clean and test-clean, dev_other and test_other the
harder ones. No speaker is in two parts. Parts that were fetched are kept once, in ``OUT/librispeech/download``.

Hours of speech are not decoded here: headers give the durations, counts tell whether a part is whole.
"""

import dataclasses
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from asr.corpora import prepared
from asr.corpora.archive import unpack
from asr.corpora.download import Archive, Say, download
from asr.corpora.source import Recording, durations
from asr.errors import AsrError, InputError
from asr.manifest import Utterance

VERSION = 1
LICENCE = "CC BY 4.0 (LibriSpeech, copyright 2014 Vassil Panayotov)"
FOLDERS = (".", "LibriSpeech", "librispeech", "librispeech/LibriSpeech", "LibriSpeech/LibriSpeech")
_SUFFIXES = (".flac", ".opus", ".wav")
_LINE = re.compile(r"([0-9]+-[0-9]+-[0-9]+) (.*)")
_FILES = re.compile(r"(^|/)([0-9]+-[0-9]+(-[0-9]+\.(flac|opus|wav)|\.trans\.txt)|(SPEAKERS|LICENSE)\.TXT)$")
_UNPACKED = 2  # an archive of FLAC files holds about its own size; twice that is refused
_SHOWN = 3  # utterances named in a remark


@dataclasses.dataclass(frozen=True)
class Part:
    """A published part: its folder's name and others it goes by, its archive, its number of utterances."""

    name: str
    archive: Archive
    utterances: int
    also: tuple[str, ...] = ()


def _part(name: str, megabytes: int, utterances: int, sha256: str) -> Part:
    url = f"https://www.openslr.org/resources/12/{name}.tar.gz"
    return Part(name, Archive(url, megabytes * 1_000_000, sha256), utterances)


PARTS = {
    part.name: part
    for part in (
        _part("train-clean-100", 6_400, 28_539, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
        _part("train-clean-360", 23_100, 104_014, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
        _part("train-other-500", 30_600, 148_688, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
        _part("dev-clean", 340, 2_703, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
        _part("dev-other", 320, 2_864, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
        _part("test-clean", 350, 2_620, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
        _part("test-other", 330, 2_939, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    )
}
TRAINING = {
    "librispeech": ("train-clean-100",),
    "librispeech_460": ("train-clean-100", "train-clean-360"),
    "librispeech_960": ("train-clean-100", "train-clean-360", "train-other-500"),
}
_HELD_OUT = {"dev": "dev-clean", "test": "test-clean", "dev_other": "dev-other", "test_other": "test-other"}


def prepare(out: Path, source: Path | None, fetch: bool, say: Say, name: str = "librispeech") -> dict[str, Path]:
    """Write the manifests of ``OUT/NAME``; returns train, dev, test, dev_other, test_other."""
    folder = out / name
    if done := prepared.ready(folder, VERSION, source):
        return done
    wanted = {"train": TRAINING[name]} | {split: (part,) for split, part in _HELD_OUT.items()}
    finder = Finder(name, FOLDERS, out / "librispeech" / "download", source, fetch, say)
    found = finder.find(PARTS[part] for parts in wanted.values() for part in parts)
    prepared.begin(folder)
    splits, notes = read_splits(name, {s: [(PARTS[p], found[p]) for p in parts] for s, parts in wanted.items()}, say)
    hours = sum(int(part.rpartition("-")[2]) for part in TRAINING[name])
    facts = about(name, f"LibriSpeech, {hours} hours", "https://www.openslr.org/12/", found, notes, VERSION, source)
    return prepared.write(folder, facts, splits)


def about(
    name: str,
    title: str,
    home: str,
    found: dict[str, Path],
    notes: list[str],
    version: int,
    given: Path | None,
) -> dict[str, Any]:
    """What ``corpus.json`` says; `source` is the folder that all parts lie in, `given` what the user named."""
    return {
        "corpus": name,
        "title": title,
        "home": home,
        "licence": LICENCE,
        "version": version,
        "source": os.path.commonpath([folder.resolve() for folder in found.values()]),
        "given": str(given.resolve()) if given else None,
        "complete": not notes,
        "note": "; ".join(notes),
    }


def read_splits(
    name: str, wanted: dict[str, list[tuple[Part, Path]]], say: Say
) -> tuple[dict[str, list[Utterance]], list[str]]:
    """The manifest lines of each split from the folders of its parts, and what is to be said of them.

    Raises:
        InputError: a split would be empty, or audio can't be read.
    """
    splits: dict[str, list[Utterance]] = {}
    notes: list[str] = []
    for split, parts in wanted.items():
        splits[split] = []
        for part, folder in parts:
            recordings, faults = read_part(folder)
            counted = f"{part.name}: {len(recordings)} of {part.utterances} utterances; figures compare with nobody's"
            told = [*faults, counted] if len(recordings) != part.utterances else faults
            for note in told:
                say(f"{name}: {folder}: {note}")
            notes += told
            seconds = durations(recordings, f"{name}: reading {part.name}", say)
            splits[split] += prepared.utterances(recordings, seconds, split)
        if not splits[split]:
            raise InputError(f"{name}: no utterance for {split} in {parts[0][1]}; get {parts[0][0].name} again")
    return splits, notes


def read_part(folder: Path) -> tuple[list[Recording], list[str]]:
    """The utterances below `folder` that have text and audio, by id, and lines about those that have only one.

    Raises:
        InputError: a transcript can't be read, or an utterance stands twice.
    """
    audio_files: dict[str, Path] = {}
    texts: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(".trans.txt"):
            for identity, text in _transcripts(path):
                if identity in texts:
                    raise InputError(f"{path}: {identity} stands twice; get the corpus again")
                texts[identity] = text
        elif path.suffix in _SUFFIXES:
            audio_files.setdefault(path.stem, path)
    both = sorted(texts.keys() & audio_files.keys())
    recordings = [Recording(one, audio_files[one], texts[one], one.split("-")[0]) for one in both]
    faults = [
        f"{len(lonely)} {what}, left out: {', '.join(sorted(lonely)[:_SHOWN])}"
        for what, lonely in (
            ("transcripts without audio", texts.keys() - audio_files.keys()),
            ("recordings without transcript", audio_files.keys() - texts.keys()),
        )
        if lonely
    ]
    return recordings, faults


def _transcripts(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not read ({getattr(error, 'strerror', None) or error}); get it again") from error
    for number, line in enumerate(filter(str.strip, lines), 1):
        match = _LINE.fullmatch(line)
        if not match:
            raise InputError(f"{path}: line {number}: no 'SPEAKER-CHAPTER-NUMBER TEXT'; get the corpus again")
        yield match[1], " ".join(match[2].split())


@dataclasses.dataclass(frozen=True)
class Finder:
    """Looks for parts below `source`, or else ``ASR_DATA`` and `kept`; fetches to `kept` what is nowhere.

    Below a root a part is its folder in one of `folders`, or its archive under the published name.
    """

    corpus: str
    folders: tuple[str, ...]
    kept: Path
    source: Path | None
    fetch: bool
    say: Say

    def find(self, parts: Iterable[Part]) -> dict[str, Path]:
        """The folder of each part by its name.

        Raises:
            InputError: a part is nowhere and may not be fetched, an archive is broken or refused (see `archive`).
            AsrError: the network or the disk fails; the message says where files go that came another way.
        """
        if self.source is not None and not self.source.exists():
            raise InputError(f"--source {self.source}: no such folder or archive; check the path", status=2)
        return {part.name: self._local(part) or self._fetched(part) for part in parts}

    def _roots(self) -> list[Path]:
        data = os.environ.get("ASR_DATA", "")
        if self.source is not None:
            return [self.source, self.kept] if self.source.is_file() else [self.source]
        return [Path(data), self.kept] if data else [self.kept]

    def _local(self, part: Part) -> Path | None:
        for root in self._roots():
            archive = root if root.is_file() else root / f"{part.name}.tar.gz"
            places = [self.kept / part.name] if root == self.kept else []
            for place in [*(root / folder for folder in self.folders), *places]:
                for name in (part.name, *part.also, f"LibriSpeech/{part.name}"):
                    if any((place / name).glob("*/*/*.trans.txt")):
                        return place / name
            if archive.is_file() and archive.name.startswith(part.name):
                return self._unpacked(archive, part)
        return None

    def _fetched(self, part: Part) -> Path:
        archive = self.kept / f"{part.name}.tar.gz"
        where = f"put {archive.name} (from {part.archive.url}) into {self.kept}, or name a folder that holds it"
        if self.source is not None or not self.fetch:
            looked = ", ".join(map(str, self._roots()))
            raise InputError(
                f"{self.corpus}: no {part.name} found (looked in {looked}); {where}, packed or unpacked, by --source",
                status=2 if self.source is not None else 1,
            )
        try:
            download(part.archive, archive, licence=LICENCE, say=self.say)
        except InputError:
            raise
        except AsrError as error:
            raise AsrError(f"{error}; {where} by --source", error.status) from error
        found = self._unpacked(archive, part)
        archive.unlink(missing_ok=True)  # only now: where unpacking fails, for want of room, it need not come again
        return found

    def _unpacked(self, archive: Path, part: Part) -> Path:
        self.say(f"{self.corpus}: unpacking {archive}; licence: {LICENCE}")
        target = self.kept / part.name
        shutil.rmtree(target, ignore_errors=True)
        limit = max(500_000_000, _UNPACKED * archive.stat().st_size)
        unpack(archive, target, lambda name: bool(_FILES.search(name)), limit, 3 * part.utterances + 5_000)
        folder = next((path.parents[2] for path in sorted(target.rglob("*.trans.txt")) if len(path.parts) > 3), None)
        if folder is None:
            shutil.rmtree(target, ignore_errors=True)
            raise InputError(f"{archive}: no transcripts in it; is it the archive of {part.name}?")
        return folder
