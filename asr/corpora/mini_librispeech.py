"""Mini LibriSpeech: five hours of read English books for training, two more speakers' hours for dev; 16 kHz.

Origin: OpenSLR resource 31 (openslr.org/31), a subset of LibriSpeech (see `librispeech`); CC BY 4.0. The MD5
sums are those that OpenSLR gives beside the archives, as two independent programs repeat them.
Layout: that of `librispeech`, parts train-clean-5 (1,519 utterances, 28 speakers) and dev-clean-2 (1,089); or
a split of one's own by speaker in folders ``train`` and ``dev``, as copies in circulation have it.

Splits: train and dev are the two parts, no speaker is in both, and there is no test set. For figures on
speakers that chose nothing, dev stands in two halves as well, by speaker in the order of their numbers, one to
``dev_a``, the next to ``dev_b``, and so on: choose (the epoch, the decoder's settings) on one half, report the
other, swap, and give the mean.
"""

from pathlib import Path

from asr.corpora import prepared
from asr.corpora.download import Archive, Say
from asr.corpora.librispeech import FOLDERS, Finder, Part, about, read_splits
from asr.manifest import Utterance

VERSION = 1
NAME = "mini_librispeech"
HOME = "https://www.openslr.org/31/"
_URL = "https://www.openslr.org/resources/31"
TRAIN = Part(
    "train-clean-5",
    Archive(f"{_URL}/train-clean-5.tar.gz", 332_000_000, md5="5df7d4e78065366204ca6845bb08f490"),
    1519,
    ("train",),
)
DEV = Part(
    "dev-clean-2",
    Archive(f"{_URL}/dev-clean-2.tar.gz", 126_000_000, md5="6d7ab67ac6a1d2c993d050e16d61080d"),
    1089,
    ("dev",),
)


def prepare(out: Path, source: Path | None, fetch: bool, say: Say) -> dict[str, Path]:
    """Write the manifests of ``OUT/mini_librispeech``; returns train, dev, dev_a, dev_b."""
    folder = out / NAME
    if done := prepared.ready(folder, VERSION, source):
        return done
    places = (*FOLDERS, NAME, f"{NAME}/LibriSpeech")
    found = Finder(NAME, places, folder / "download", source, fetch, say).find((TRAIN, DEV))
    prepared.begin(folder)
    wanted = {"train": [(TRAIN, found[TRAIN.name])], "dev": [(DEV, found[DEV.name])]}
    splits, notes = read_splits(NAME, wanted, say)
    if found[TRAIN.name].name == "train":
        notes.append("a split of the copy's own: its dev is not dev-clean-2")
        say(f"{NAME}: {notes[-1]}")
    splits["dev_a"], splits["dev_b"] = halves(splits["dev"])
    return prepared.write(folder, about(NAME, "Mini LibriSpeech", HOME, found, notes, VERSION, source), splits)


def halves(lines: list[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
    """The utterances of every other speaker, in the order of their numbers, and those of the others."""
    speakers = sorted({line.speaker or "" for line in lines}, key=lambda name: (len(name), name))
    first = set(speakers[::2])
    return [line for line in lines if line.speaker in first], [line for line in lines if line.speaker not in first]
