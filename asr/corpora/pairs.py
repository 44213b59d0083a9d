"""Recordings with their texts as people keep them: a ``.txt`` beside each file, or one table of both.

A table is CSV, TSV (the sign between the columns is found by looking) or JSONL. Paths in it are relative to the
table's folder; the ending of an audio file may be left out. A first line that names columns is told by its words,
and without one the audio column is the one whose cells are files.
"""

import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from asr.errors import InputError
from asr.manifest import read_records

AUDIO = (
    ".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".au", ".caf", ".w64", ".sph", ".m4a", ".mp4",
    ".aac", ".webm",
)  # fmt: skip
TABLES = (".csv", ".tsv", ".jsonl")
_NAMES = {
    "audio": (
        "audio_filepath", "audio", "path", "file", "filename", "file_name", "wav", "wav_filename", "audio_path", "clip",
    ),
    "text": ("text", "sentence", "transcript", "transcription", "raw_text", "words"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
}  # fmt: skip
_LOOKED_AT = 50  # rows that tell the columns
_MAX_TEXT = 1_000_000  # bytes of a .txt file


@dataclasses.dataclass(frozen=True)
class Pair:
    """A recording, what is said in it, and by whom where the table says so; `where` it was found, for a message."""

    path: Path
    text: str
    speaker: str | None
    where: str


def read(source: Path) -> tuple[Path, list[Pair], list[tuple[str, str]], str]:
    """The folder that paths are relative to, pairs, (name, why) of what isn't one, and how they were found.

    Args:
        source: a folder, or a table.

    Raises:
        InputError: nothing there, several tables, or a table that can't be read.
    """
    if source.is_file():
        return (source.resolve().parent, *_table(source))
    if not source.is_dir():
        raise InputError(f"{source}: no such folder or table; name the folder of your recordings", status=2)
    tables = sorted(path for path in source.iterdir() if path.suffix.lower() in TABLES)
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise InputError(f"{source}: several tables ({names}); name the one to use instead of the folder", status=2)
    return (source.resolve(), *(_table(tables[0]) if tables else _beside(source)))


def _beside(folder: Path) -> tuple[list[Pair], list[tuple[str, str]], str]:
    """Audio files with a ``.txt`` of the same name beside each."""
    found = sorted(path for path in folder.resolve().rglob("*") if path.is_file() and not path.name.startswith("."))
    recordings = [path for path in found if path.suffix.lower() in AUDIO]
    texts = {path.with_suffix(""): path for path in found if path.suffix.lower() == ".txt"}
    pairs: list[Pair] = []
    lonely: list[tuple[str, str]] = []
    for path in recordings:
        name = path.relative_to(folder.resolve()).as_posix()
        if not _is_text(name):
            lonely.append((ascii(name), "its name is not UTF-8; rename it"))
            continue
        beside = texts.get(path.with_suffix(""))
        if beside is None:
            lonely.append((name, "no .txt beside it"))
            continue
        try:
            if beside.stat().st_size > _MAX_TEXT:
                lonely.append((name, f"its .txt has more than {_MAX_TEXT} bytes"))
                continue
            pairs.append(Pair(path, beside.read_bytes().decode("utf-8-sig"), None, name))
        except (OSError, ValueError) as error:
            lonely.append((name, f"its .txt can't be read ({getattr(error, 'strerror', None) or 'not UTF-8'})"))
    with_audio = {path.with_suffix("") for path in recordings}
    for stem, path in texts.items():
        if stem not in with_audio:
            name = path.relative_to(folder.resolve()).as_posix()
            lonely.append((name if _is_text(name) else ascii(name), "no recording beside it"))
    return pairs, lonely, "audio files with a .txt beside each"


def _is_text(name: str) -> bool:
    """Whether a file's name is one that UTF-8 can write (Python keeps other bytes as surrogates)."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def _table(path: Path) -> tuple[list[Pair], list[tuple[str, str]], str]:
    rows = list(_json_rows(path) if path.suffix.lower() == ".jsonl" else _rows(path))
    if not rows:
        raise InputError(f"{path}: empty; a line holds an audio file and its text", status=2)
    home = path.resolve().parent
    columns, headed = _columns(path, home, [row for _, row in rows[:_LOOKED_AT]])
    pairs: list[Pair] = []
    lonely: list[tuple[str, str]] = []
    for number, row in rows[headed:]:
        name, text, speaker = (row[c] if c is not None and c < len(row) else "" for c in columns)
        where = f"{path.name} line {number}"
        recording = _resolve(home, name.strip())
        if recording is None:
            lonely.append((f"{where}: {name.strip()[:100]}", "no such audio file"))
        else:
            pairs.append(Pair(recording, text, speaker.strip() or None, f"{where}: {name.strip()}"))
    names = [_called(rows[0][1], column, headed) for column in columns if column is not None]
    shown = ", ".join(f"{use} in {name}" for use, name in zip(("audio", "text", "speaker"), names, strict=False))
    return pairs, lonely, f"{path.name}, {shown}"


def _called(first: list[str], column: int, headed: bool) -> str:
    return repr(first[column]) if headed else f"column {column + 1}"


def _json_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The objects of a JSONL file as rows, below a first row of their keys."""
    keys: dict[str, None] = {}
    records = list(read_records(path))
    for _, record in records:
        keys |= dict.fromkeys(record)
    if records:
        yield 0, list(keys)
    for number, record in records:
        yield number, [_cell(record.get(key)) for key in keys]


def _cell(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table that aren't empty, with their numbers."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            head = [line for line in (file.readline(1_000_000) for _ in range(_LOOKED_AT)) if line.strip()]
            file.seek(0)
            sign = max("\t;|,", key=lambda sign: (sum(sign in line for line in head), sign == "\t", sign != ","))
            plain = sign in "\t|"  # where quotation marks are text
            reader = csv.reader(file, delimiter=sign, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
    except (OSError, ValueError, csv.Error) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not read ({reason}); save it as a UTF-8 table", status=2) from error


def _columns(path: Path, home: Path, rows: list[list[str]]) -> tuple[list[int | None], bool]:
    """The columns of audio, text and speaker (None: there is none), and whether the first row names them."""
    heads = [cell.strip().lower() for cell in rows[0]]
    named = {use: next((heads.index(name) for name in known if name in heads), None) for use, known in _NAMES.items()}
    if named["audio"] is not None and named["text"] is not None:
        return [named["audio"], named["text"], named["speaker"]], True
    width = max(map(len, rows))
    files = Counter(c for row in rows for c, cell in enumerate(row) if _resolve(home, cell.strip()))
    if not files or width < 2:
        raise InputError(
            f"{path}: no column of audio files (paths relative to {home}) beside one of texts; name the columns in "
            f"its first line: {_NAMES['audio'][1]},{_NAMES['text'][0]}",
            status=2,
        )
    audio = max(files, key=lambda column: (files[column], -column))
    lengths = {c: sum(len(row[c]) for row in rows if c < len(row)) for c in range(width) if c != audio}
    headed = _resolve(home, rows[0][audio].strip() if audio < len(rows[0]) else "") is None and len(rows) > 1
    return [audio, max(lengths, key=lambda column: lengths[column]), named["speaker"] if headed else None], headed


def _resolve(home: Path, name: str) -> Path | None:
    """The audio file that a cell names."""
    if not name or len(name) > 1000 or "\0" in name:
        return None
    for ending in ("", *AUDIO):
        path = home / f"{name}{ending}"
        try:
            if path.suffix.lower() in AUDIO and path.is_file():
                return path
        except OSError:
            return None
    return None
