"""Manifests: one utterance a line of JSON (JSONL, UTF-8), with NeMo's keys, so that existing manifests work.

========================  ============================================================================
``audio_filepath``        path of the audio, relative to the manifest's folder or absolute (required)
``duration``              seconds of the utterance
``text``                  the reference, what was said
``pred_text``             a hypothesis, what was heard (what `evaluate` writes and `score` reads)
``id``                    unique in the manifest; where absent, the path of the audio and the offset
``offset``                seconds from the start of the file (0 where absent)
``speaker``, ``split``    names
========================  ============================================================================

Any other key is kept and written back.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asr import files
from asr.errors import InputError

MAX_LINE_BYTES = 1_000_000  # a line longer than this is no utterance
_TEXTS = ("audio_filepath", "text", "pred_text", "id", "speaker", "split")
_SECONDS = ("duration", "offset")


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A line of a manifest (number `line`). `audio_filepath` is as it stands there, `path` is where the audio lies."""

    audio_filepath: str
    duration: float | None = None
    text: str | None = None
    pred_text: str | None = None
    id: str = ""
    offset: float = 0.0
    speaker: str | None = None
    split: str | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    folder: str = ""
    line: int = 0

    @property
    def path(self) -> Path:
        """The audio file: `audio_filepath` seen from the manifest's folder."""
        return Path(self.folder) / self.audio_filepath

    def to_json(self) -> dict[str, Any]:
        """The JSON object of this utterance, without the keys that have no value."""
        fields: dict[str, Any] = {}
        for key in ("id", "audio_filepath", "duration", "offset", "text", "pred_text", "speaker", "split"):
            value = getattr(self, key)
            if value is not None and not (key == "offset" and value == 0):
                fields[key] = value
        return fields | self.extra


def read(path: str | os.PathLike[str]) -> list[Utterance]:
    """Read a manifest, in file order.

    Raises:
        InputError: the file can't be read, a line is no JSON object, a value is of the wrong type or an id stands
            twice; the message names file and line.
    """
    utterances: list[Utterance] = []
    lines: dict[str, int] = {}
    for number, record in read_records(path):
        utterance = _utterance(record, f"{path}: line {number}")
        utterance = dataclasses.replace(utterance, folder=str(Path(path).parent), line=number)
        if utterance.id in lines:
            raise InputError(
                f"{path}: line {number}: id {utterance.id!r} stands already in line {lines[utterance.id]}; "
                "give each utterance its own id"
            )
        lines[utterance.id] = number
        utterances.append(utterance)
    return utterances


def read_records(path: str | os.PathLike[str]) -> Iterable[tuple[int, dict[str, Any]]]:
    """The JSON objects of a JSONL file with their line numbers (from 1), blank lines passed over.

    Raises:
        InputError: the file can't be read, or a line is no JSON object.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}: line {number}"
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"{where}: longer than {MAX_LINE_BYTES} bytes; is this a manifest (JSONL)?")
                if line.strip():
                    yield number, _object(line, where)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; check the path of the manifest") from error


def write(path: str | os.PathLike[str], utterances: Iterable[Utterance]) -> None:
    """Write a manifest atomically, an utterance a line. Raises AsrError where it can't be written."""
    with files.atomic(path) as file:
        for utterance in utterances:
            file.write(json.dumps(utterance.to_json(), ensure_ascii=False).encode() + b"\n")


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error) or "too deeply nested"
        raise InputError(f"{where}: not valid JSON ({reason}); a line holds one JSON object") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: {type(record).__name__} instead of a JSON object")
    return record


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _utterance(record: dict[str, Any], where: str) -> Utterance:
    """Check the types of one record and build its Utterance."""
    if not record.get("audio_filepath"):
        raise InputError(f"{where}: key 'audio_filepath' is missing; it names the utterance's audio")
    for key in _TEXTS:
        value = record.get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where}: {key!r} is {_short(value)}, not a text")
        if value and ("\0" in value or not _is_unicode(value)):
            raise InputError(f"{where}: {key!r} holds a NUL character or half a surrogate pair; remove it")
    for key in _SECONDS:
        value = record.get(key)
        if value is not None and not _is_seconds(value):
            raise InputError(f"{where}: {key!r} is {_short(value)}, not a number of seconds from 0")
    known = {key: record[key] for key in (*_TEXTS, *_SECONDS) if record.get(key) is not None}
    offset = float(known.pop("offset", 0.0))
    known.setdefault("id", record["audio_filepath"] + (f"@{offset:g}" if offset else ""))
    extra = {key: value for key, value in record.items() if key not in (*_TEXTS, *_SECONDS)}
    return Utterance(**known, offset=offset, extra=extra)


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _short(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
