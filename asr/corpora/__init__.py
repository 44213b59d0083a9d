"""Corpora: from a local copy or a download to ``OUT/NAME/{train,dev,test}.jsonl``; one file a corpus."""

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path

from asr.errors import InputError

_SIZES = ("librispeech_460", "librispeech_960")  # of the module `librispeech`, with more hours of training
NAMES = (
    "fsdd", "fsdd_strings", "yesno", "an4", "synth_digits", "mini_librispeech", "librispeech", *_SIZES,
    "commonvoice", "folder",
)  # fmt: skip


def prepare(
    name: str,
    out: str | Path = Path("data"),
    source: str | Path | None = None,
    download: bool = True,
    say: Callable[[str], None] | None = None,
) -> dict[str, Path]:
    """Prepare the corpus `name`: manifests and ``corpus.json`` in ``OUT/NAME``; a second call does nothing.

    Args:
        name: one of `NAMES`.
        out: the folder of all prepared corpora.
        source: a folder that holds a copy of the corpus, or its archive; else ``ASR_DATA``, an earlier
            download and the corpus's public home are asked in turn.
        download: whether the public home may be asked.
        say: takes each line of progress.

    Returns:
        The paths of the manifests ``train``, ``dev`` and, as far as the corpus has them, ``test`` and more.

    Raises:
        InputError: an unknown name or source (status 2), no copy found, a file that isn't what it should be.
        AsrError: the network or the disk fails.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1, 0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"no corpus {name!r}; {hint}There are {', '.join(NAMES)}", status=2)
    said = say or _silent
    root, copy = Path(out), None if source is None else Path(source)
    before = _stamp(root / name)
    extra = {"name": name} if name in _SIZES else {}
    module = importlib.import_module(f"asr.corpora.{'librispeech' if extra else name}")
    paths: dict[str, Path] = module.prepare(root, copy, download, said, **extra)
    if before is not None and before == _stamp(root / name):
        said(f"{name}: prepared already, in {root / name}")
    return paths


def _silent(line: str) -> None:
    """Say nothing."""


def _stamp(folder: Path) -> int | None:
    """When the corpus in `folder` was prepared, in nanoseconds."""
    try:
        return (folder / "corpus.json").stat().st_mtime_ns
    except OSError:
        return None
