"""The folder of a prepared corpus: manifests, and ``corpus.json``, which describes them and is written last.

``corpus.json``: ``corpus``, ``title``, ``home``, ``licence``, ``version`` (of the way the manifests are
made), ``source`` (the folder read), ``complete`` (every published recording is there, samples equal),
``audio_sha256``, ``note``, and for each manifest its ``utterances``, ``seconds`` and ``sha256``.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from asr import files, manifest
from asr.corpora.source import Copy, Corpus, Recording
from asr.errors import AsrError, InputError
from asr.manifest import Utterance

FACTS = "corpus.json"
SPLITS = ("train", "dev", "test")


def utterances(recordings: Iterable[Recording], seconds: Mapping[str, float], split: str) -> list[Utterance]:
    """One manifest line for each recording; `audio_filepath` is absolute until `write` shortens it."""
    return [
        Utterance(
            audio_filepath=str(recording.path.resolve()),
            duration=seconds[recording.id],
            text=recording.text,
            id=recording.id,
            speaker=recording.speaker,
            split=split,
        )
        for recording in recordings
    ]


def about(corpus: Corpus, copy: Copy, version: int) -> dict[str, Any]:
    """What ``corpus.json`` says of a corpus and the copy of it that was read."""
    return {
        "corpus": corpus.name,
        "title": corpus.title,
        "home": corpus.home,
        "licence": corpus.licence,
        "version": version,
        "source": str(copy.folder.resolve()),
        "complete": copy.complete,
        "audio_sha256": copy.sha256,
        "note": copy.note,
    }


def write(folder: Path, facts: Mapping[str, Any], splits: Mapping[str, list[Utterance]]) -> dict[str, Path]:
    """Write ``FOLDER/SPLIT.jsonl`` for each of `splits`, then ``corpus.json``; returns those of `FOLDER` itself.

    Audio below `folder` is named relative to its manifest, other audio by its absolute path.

    Raises:
        AsrError: the folder can't be written.
    """
    listed = {}
    for split, lines in splits.items():
        path = manifest_path(folder, split)
        manifest.write(path, [_relative(line, folder.resolve(), path.parent.resolve()) for line in lines])
        listed[split] = {
            "utterances": len(lines),
            "seconds": round(sum(line.duration or 0.0 for line in lines), 3),
            "sha256": files.sha256(path),
        }
    files.write_text(folder / FACTS, json.dumps({**facts, "manifests": listed}, indent=1, ensure_ascii=False) + "\n")
    return _paths(folder, listed)


def ready(folder: Path, version: int, source: Path | None) -> dict[str, Path] | None:
    """The manifests of `folder` if ``corpus.json`` agrees with them, and the audio is there."""
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        agrees = facts["version"] == version and all(
            files.sha256(manifest_path(folder, split)) == known["sha256"] for split, known in facts["manifests"].items()
        )
        if source is not None and source.is_dir():
            below = Path(facts["source"]).is_relative_to(source.resolve())
            agrees = agrees and (below or facts.get("given") == str(source.resolve()))
        paths = _paths(folder, facts["manifests"])
        present = agrees and all(line.path.is_file() for path in paths.values() for line in manifest.read(path))
        return paths if present else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, InputError):
        return None


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``corpus.json`` says; empty where there is none that can be read."""
    try:
        facts = json.loads((folder / FACTS).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def begin(folder: Path) -> None:
    """Make the folder, without ``corpus.json``: unfinished until `write` ends. Raises AsrError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FACTS).unlink(missing_ok=True)
        files.sweep(folder)
    except OSError as error:
        raise AsrError(
            f"{folder}: not written ({error.strerror or error}); choose another folder (--out, in training data.train)"
        ) from error


def manifest_path(folder: Path, split: str) -> Path:
    """Where the manifest of `split` stands."""
    return folder / f"{split}.jsonl"


def _paths(folder: Path, splits: Iterable[str]) -> dict[str, Path]:
    """The manifests in `folder` itself by their splits, those of its folders left out."""
    return {split: manifest_path(folder, split) for split in splits if "/" not in split}


def _relative(line: Utterance, folder: Path, home: Path) -> Utterance:
    path = Path(line.audio_filepath)
    if not path.is_relative_to(folder):
        return line
    return dataclasses.replace(line, audio_filepath=Path(os.path.relpath(path, home)).as_posix())
