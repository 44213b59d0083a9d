"""yesno: sixty recordings of eight words, each a yes or a no, by one man; 8 kHz, 6.1 minutes.

Origin: OpenSLR resource 1 (openslr.org/1), made for Kaldi by a contributor who stays anonymous. There is no
formal licence; OpenSLR says that it may be used for any purpose. The words are Hebrew according to OpenSLR,
English according to the README inside the archive; the texts here say "yes" and "no" either way.
Layout: ``waves_yesno/0_1_....wav`` (or ``.flac``), the name is the transcript: 1 is yes, 0 is no.

Splits: nothing official. By name, the first 24 are train, the next 6 dev, the last 30 test (240 words).
"""

import re
from pathlib import Path

from asr.corpora import prepared
from asr.corpora.download import Archive, Say
from asr.corpora.source import Corpus, Recording, obtain

VERSION = 1
_NAME = re.compile(r"([01](?:_[01]){7})\.(?:wav|flac)")
_FIRST_OF_DEV, _FIRST_OF_TEST = "0_1_1_0_0_1_1_0", "0_1_1_1_1_1_1_1"  # the 25th and the 31st name


def recordings(folder: Path) -> list[Recording]:
    """The recordings that lie in `folder` itself, by name."""
    found: dict[str, Recording] = {}
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            text = " ".join("yes" if digit == "1" else "no" for digit in match[1].split("_"))
            found.setdefault(path.stem, Recording(path.stem, path, text, "yesno"))
    return [found[key] for key in sorted(found)]


def split_of(identity: str) -> str:
    """The split of a recording: by its name alone, so that it is the same in a partial copy."""
    return "train" if identity < _FIRST_OF_DEV else "dev" if identity < _FIRST_OF_TEST else "test"


CORPUS = Corpus(
    name="yesno",
    title="yesno (OpenSLR resource 1)",
    home="https://www.openslr.org/1/",
    licence="no formal licence; OpenSLR: free to use for any purpose",
    archive=Archive(
        "https://www.openslr.org/resources/1/waves_yesno.tar.gz",
        4_700_000,
        "30301975fd8c5cac4040c261c0852f57cfa8adbbad2ce78e77e4986957445f27",  # as torchaudio's YESNO has it
    ),
    recordings=60,
    sha256="29a54af8b3ceca1ee04e3f4a05febf4c46edcb0193633188ca82f6f2c1c617bb",
    folders=(".", "waves_yesno", "yesno", "yesno/waves_yesno"),
    list=recordings,
    keep=lambda name: _NAME.fullmatch(name.rsplit("/", 1)[-1]) is not None,
)


def prepare(out: Path, source: Path | None, fetch: bool, say: Say) -> dict[str, Path]:
    """Write the manifests of ``OUT/yesno``; returns train, dev, test."""
    folder = out / CORPUS.name
    if done := prepared.ready(folder, VERSION, source):
        return done
    copy = obtain(CORPUS, out, source, fetch, say)
    prepared.begin(folder)
    splits = {
        split: prepared.utterances([one for one in copy.recordings if split_of(one.id) == split], copy.seconds, split)
        for split in prepared.SPLITS
    }
    return prepared.write(folder, prepared.about(CORPUS, copy, VERSION), splits)
