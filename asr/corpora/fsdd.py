"""Free Spoken Digit Dataset: ten digits, six men, fifty takes each; English, 8 kHz, 21.9 minutes.

Origin: github.com/Jakobovski/free-spoken-digit-dataset, by Zohar Jackson and contributors; CC BY-SA 4.0.
The archive of the tag v1.0.10 holds the same recordings as the later commit 26eb9aa.
Layout: ``recordings/DIGIT_SPEAKER_TAKE.wav`` (or ``.flac``); the text is the digit as an English word.

Splits: the official test set is takes 0 to 4 (300), of the same speakers as the rest; dev is takes 5 to 7
(180), train takes 8 to 49 (2,520). For voices that were never heard, ``without_SPEAKER/`` leaves a speaker
out: test is all 500 recordings of that speaker (none is known to the model, and 50 would give an error rate
to 3 or 4 percentage points only), dev and train are the dev and train takes of the other five (150 and
2,100), whose official test takes stay unused, so that nothing is ever trained or chosen on a test take.
"""

import re
from pathlib import Path

from asr.corpora import prepared
from asr.corpora.download import Archive, Say
from asr.corpora.source import Copy, Corpus, Recording, obtain
from asr.manifest import Utterance

VERSION = 1
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]{1,3})\.(?:wav|flac)")


def recordings(folder: Path) -> list[Recording]:
    """The recordings that lie in `folder` itself, by speaker, digit and take."""
    found: dict[tuple[str, int, int], Recording] = {}
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            digit, speaker, take = int(match[1]), match[2], int(match[3])
            found.setdefault((speaker, digit, take), Recording(path.stem, path, WORDS[digit], speaker))
    return [found[key] for key in sorted(found)]


def split_of(identity: str) -> str:
    """The split of the recording with the id ``DIGIT_SPEAKER_TAKE``: by its take alone."""
    take = int(identity.rsplit("_", 1)[1])
    return "test" if take < 5 else "dev" if take < 8 else "train"


CORPUS = Corpus(
    name="fsdd",
    title="Free Spoken Digit Dataset",
    home="https://github.com/Jakobovski/free-spoken-digit-dataset",
    licence="CC BY-SA 4.0 (Zohar Jackson and contributors)",
    archive=Archive(
        "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip",
        16_419_872,
        "c680098f5d2355ba7cc4bd8b0ca9e0a24c00ebe3b4c552208889a4d28d4fbc2b",
    ),
    recordings=3000,
    sha256="cd555b78662b4cfe2433680678a6daec98b58fcdd4b88293b3e015abbadea681",
    folders=(
        ".", "recordings", "fsdd", "fsdd/recordings", "free-spoken-digit-dataset*/recordings",
        "fsdd/free-spoken-digit-dataset*/recordings",
    ),
    list=recordings,
    keep=lambda name: _NAME.fullmatch(name.rsplit("/", 1)[-1]) is not None,
)  # fmt: skip


def prepare(out: Path, source: Path | None, fetch: bool, say: Say) -> dict[str, Path]:
    """Write the manifests of ``OUT/fsdd`` and its ``without_SPEAKER``; returns train, dev, test."""
    folder = out / CORPUS.name
    if done := prepared.ready(folder, VERSION, source):
        return done
    copy = obtain(CORPUS, out, source, fetch, say)
    prepared.begin(folder)
    splits = {split: _lines(copy, split) for split in prepared.SPLITS}
    for speaker in sorted({one.speaker for one in copy.recordings}):
        others = {split: [one for one in splits[split] if one.speaker != speaker] for split in ("train", "dev")}
        alone = [one for one in copy.recordings if one.speaker == speaker]
        splits |= {f"without_{speaker}/{split}": lines for split, lines in others.items()}
        splits[f"without_{speaker}/test"] = prepared.utterances(alone, copy.seconds, "test")
    return prepared.write(folder, prepared.about(CORPUS, copy, VERSION), splits)


def _lines(copy: Copy, split: str) -> list[Utterance]:
    chosen = [one for one in copy.recordings if split_of(one.id) == split]
    return prepared.utterances(chosen, copy.seconds, split)
