"""AN4, the CMU Census database: spelled names, numbers, dates and commands; English, 16 kHz, 48 minutes.

Origin: Carnegie Mellon University, about 1991; free for any use if its notice stays (BSD-like). The CMU
Sphinx group distributed it as NIST Sphere files; that archive is mirrored for NVIDIA NeMo, which is where
it is fetched from.
Layout: ``etc/an4_{train,test}.{fileids,transcription}`` beside ``wav/`` with the files that ``.fileids``
names, as ``.sph``, ``.flac`` or ``.wav``. A transcription line holds the words in capitals (the training
ones between ``<s>`` and ``</s>``) and the utterance's id in brackets. Texts stay in capitals, A to Z only.

Splits: the official 130 test utterances (10 speakers) and 948 training utterances, of which the 104 of
eight speakers (four women, four men) are dev. The corpus marks women by an f before a speaker's name; names
that end in 2 look like second visits, so no dev speaker has a namesake. 26 test sentences also occur in
training.
"""

import re
from pathlib import Path

from asr.corpora import prepared
from asr.corpora.download import Archive, Say
from asr.corpora.source import Corpus, Recording, obtain
from asr.errors import InputError

VERSION = 1
DEV_SPEAKERS = ("fbbh", "fkai", "fplp", "ftmj", "mblb", "mewl", "mjhp", "mtje")
_LINE = re.compile(r"\s*(?:<s>\s*)?(.*?)\s*(?:</s>)?\s*\(([\w-]+)\)\s*")
_SUFFIXES = (".sph", ".flac", ".wav")


def recordings(folder: Path) -> list[Recording]:
    """The utterances that ``FOLDER/etc`` lists, training before test, in its order. Raises InputError."""
    found: list[Recording] = []
    for part in ("train", "test"):
        listed = folder / "etc" / f"an4_{part}.fileids"
        if not listed.is_file():
            return []
        texts = _texts(folder / "etc" / f"an4_{part}.transcription")
        for line in listed.read_text(encoding="utf-8", errors="replace").split():
            identity = line.rsplit("/", 1)[-1]
            if identity not in texts:
                raise InputError(f"{listed}: {identity} has no line in an4_{part}.transcription; get the corpus again")
            found.append(Recording(identity, _audio(folder, line, listed), texts[identity], identity.split("-")[1]))
    return found


def split_of(recording: Recording) -> str:
    """The split of an utterance: by the folder of its speaker, and the list of dev speakers."""
    if recording.path.parent.parent.name == "an4test_clstk":
        return "test"
    return "dev" if recording.speaker in DEV_SPEAKERS else "train"


def _texts(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; get the corpus again") from error
    matches = [_LINE.fullmatch(line) for line in lines]
    return {match[2]: " ".join(match[1].split()) for match in matches if match}


def _audio(folder: Path, line: str, listed: Path) -> Path:
    if re.fullmatch(r"an4(test)?_clstk/\w+/[\w]+-\w+-[\w-]+", line):
        for suffix in _SUFFIXES:
            if (path := folder / "wav" / f"{line}{suffix}").is_file():
                return path
    raise InputError(f"{listed}: no audio file for {line!r} below {folder / 'wav'}; get the corpus again")


CORPUS = Corpus(
    name="an4",
    title="CMU Census database (AN4)",
    home="http://www.speech.cs.cmu.edu/databases/an4/",
    licence="free for any use if the notice stays (BSD-like), copyright 1991-2005 Carnegie Mellon University",
    archive=Archive("https://dldata-public.s3.us-east-2.amazonaws.com/an4_sphere.tar.gz", 64_300_000),
    recordings=1078,
    sha256="d18a8f2c956be6da7198444cee5a468b8a89ba498d508f1a5dac5f3ae95714c1",
    folders=(".", "an4", "an4/an4"),
    list=recordings,
    keep=lambda name: (
        re.search(r"(^|/)(etc/an4_\w+\.(fileids|transcription)|LICENSE|wav/.*\.(sph|wav|flac))$", name) is not None
    ),
)


def prepare(out: Path, source: Path | None, fetch: bool, say: Say) -> dict[str, Path]:
    """Write the manifests of ``OUT/an4``; returns train, dev, test."""
    folder = out / CORPUS.name
    if done := prepared.ready(folder, VERSION, source):
        return done
    copy = obtain(CORPUS, out, source, fetch, say)
    prepared.begin(folder)
    splits = {
        split: prepared.utterances([one for one in copy.recordings if split_of(one) == split], copy.seconds, split)
        for split in prepared.SPLITS
    }
    return prepared.write(folder, prepared.about(CORPUS, copy, VERSION), splits)
