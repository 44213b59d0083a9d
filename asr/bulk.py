"""Many recordings at once: what a user names -> recordings -> transcripts, with the failures kept apart.

A bad recording does not stop the others. What a user may name: an audio file, a folder (its audio files, with those
of its sub-folders, in name order), a manifest (``.jsonl``), or ``-`` for one recording from standard input.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from asr import aligner, files, manifest
from asr.aligner import Alignment
from asr.errors import InputError
from asr.manifest import Utterance
from asr.recognizer import Recognizer, Source
from asr.transcript import Transcript, formats, manifest_line, output_paths, render

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".sph", ".aiff", ".aif", ".au", ".caf", ".w64"}
    | {".m4a", ".mp4", ".aac", ".webm", ".mkv", ".mov", ".wma"}
)

_LONGEST_NAME = 255  # bytes


@dataclasses.dataclass(frozen=True)
class Recording:
    """One recording to transcribe: what it is called, and where its samples come from."""

    name: str
    source: Source

    @property
    def utterance(self) -> Utterance | None:
        """The manifest line it comes from."""
        return self.source if isinstance(self.source, Utterance) else None

    def outputs_as(self) -> str:
        """The path that its output files are named after; a segment of a longer file goes by its id."""
        if self.utterance is None:
            return self.name
        if self.utterance.offset == 0 and self.utterance.duration is None:
            return self.name
        name = self.utterance.id.replace("/", "_")
        return name if Path(name).suffix.lower() in AUDIO_SUFFIXES else f"{name}.wav"  # the ending is cut off again


def collect(inputs: Sequence[str], read_stdin: Callable[[], bytes]) -> list[Recording]:
    """The recordings that the user's words name, in order.

    Raises:
        InputError: a folder holds no audio file, a manifest is wrong (a missing audio file is told later, in its turn).
    """
    recordings: list[Recording] = []
    for item in inputs:
        path = Path(item)
        if len(os.fsencode(path.name)) > _LONGEST_NAME:
            raise InputError(f"{item[:80]}...: no file system has a name this long; is it a path?")
        if item == "-":
            recordings.append(Recording("-", read_stdin()))
        elif path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
            if not found:
                raise InputError(f"{item}: no audio file in this folder; name files, or another folder")
            recordings += [Recording(str(file), file) for file in found]
        elif path.suffix.lower() == ".jsonl":
            recordings += [Recording(str(utterance.path), utterance) for utterance in manifest.read(path)]
        else:
            recordings.append(Recording(item, path))
    return recordings


def choose_formats(names: Sequence[str] | None, known: Collection[str] = formats) -> list[str]:
    """The output formats asked for, the first one known where none is, all for `all`. Raises InputError (status 2)."""
    chosen = list(known) if names and "all" in names else list(dict.fromkeys(names or list(known)[:1]))
    for name in chosen:
        if name not in known:
            raise InputError(f"no output format {name!r}; known are {', '.join(known)}, all", status=2)
    return chosen


def transcribe(
    recognizer: Recognizer, recordings: Sequence[Recording], **settings: Any
) -> Iterator[tuple[Recording, Transcript | InputError]]:
    """Each recording with its transcript, or with the reason why there is none, in order.

    Args:
        recognizer: the model.
        recordings: see `collect`.
        settings: of `Recognizer.transcribe_many`.
    """
    sources = (recording.source for recording in recordings)
    results = recognizer.transcribe_many(sources, return_errors=True, **settings)
    for recording, result in zip(recordings, results, strict=True):
        if isinstance(result, Transcript):
            result = dataclasses.replace(result, audio_filepath=recording.name)
        yield recording, result


def reference(recording: Recording, given: str | None = None) -> str:
    """What was said in a recording: its manifest line's `text`; else `given`; else the ``.txt`` file beside the audio.

    Raises:
        InputError: none of them is there, or the file can't be read.
    """
    if recording.utterance:
        if recording.utterance.text is None:
            raise InputError(f"line {recording.utterance.line}: key 'text' is missing; alignment needs what was said")
        return recording.utterance.text
    if given is not None:
        return given
    if recording.name == "-":
        raise InputError("what was said on standard input stands in --text; give it")
    path = Path(recording.name).with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8; save the text in that encoding") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; what was said stands there, or in --text") from error


def align(
    recognizer: Recognizer, recordings: Sequence[Recording], given: str | None = None, **settings: Any
) -> Iterator[tuple[Recording, Alignment | InputError]]:
    """Each recording with the times of its text, or with the reason why there are none, in order.

    Args:
        recognizer: the model.
        recordings: see `collect`.
        given: what was said, see `reference`.
        settings: of `asr.aligner.align_many`.
    """
    texts: list[str | InputError] = []
    for recording in recordings:
        try:
            texts.append(reference(recording, given))
        except InputError as error:
            texts.append(error)
    results = aligner.align_many(recognizer, [recording.source for recording in recordings], texts, **settings)
    for recording, result in zip(recordings, results, strict=True):
        if isinstance(result, Alignment):
            result = dataclasses.replace(result, audio_filepath=recording.name)
        yield recording, result


class OutputFolder:
    """Transcripts or alignments as files, `FOLDER/STEM.FORMAT`, and the failures of a call in `failures.jsonl`.

    Args:
        folder: made where it does not exist.
        recordings: all of the call.
        forms: formats to write.

    Raises:
        InputError: two recordings would be written to one file (status 2).
    """

    def __init__(self, folder: Path, recordings: Sequence[Recording], forms: Sequence[str]) -> None:
        self._folder = folder
        paths = output_paths([recording.outputs_as() for recording in recordings], folder, forms)
        if any(path.name == "failures.jsonl" for each in paths for path in each.values()):
            raise InputError(f"{folder / 'failures.jsonl'} lists failures; rename the input 'failures'", status=2)
        self._paths = dict(zip(map(id, recordings), paths, strict=True))
        files.sweep(folder)

    def has(self, recording: Recording) -> bool:
        """Whether all files of a recording are there."""
        return all(path.exists() for path in self._paths[id(recording)].values())

    def write(self, recording: Recording, content: Callable[[str], str]) -> None:
        """Write a recording's files, with the `content` that each format has."""
        for form, path in self._paths[id(recording)].items():
            files.write_text(path, content(form))

    def write_failures(self, failures: Sequence[tuple[Recording, InputError]]) -> None:
        """Write `failures.jsonl`, or remove one that is out of date."""
        path = self._folder / "failures.jsonl"
        lines = [json.dumps({"audio_filepath": recording.name, "error": str(error)}) for recording, error in failures]
        if lines:
            files.write_text(path, "\n".join(lines) + "\n")
        else:
            path.unlink(missing_ok=True)


def rendered(recording: Recording, transcript: Transcript, form: str) -> str:
    """A transcript in a format; a manifest line keeps the keys of the one that it comes from."""
    if form == "jsonl":
        return manifest_line(transcript, recording.utterance)
    return render(transcript, form)
