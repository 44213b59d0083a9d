"""Common Voice: sentences read by volunteers, one language a download; MP3, mostly 32 or 48 kHz.

Origin: Mozilla's Common Voice, CC0 1.0. There is no public address for an archive: a language is downloaded in the
browser after accepting the terms (commonvoice.mozilla.org/datasets), and named by ``--source``: the archive as it
came, the folder of a release (``cv-corpus-*``), or that of a language in it.
Layout: ``LANGUAGE/{train,dev,test}.tsv`` beside ``LANGUAGE/clips/``; of the columns client_id, path and sentence
are read; older releases leave ``.mp3`` out of path.

Splits: the official three; no client_id is in two. Texts are the sentences as they stand: recipes normalise them.
"""

import csv
import os
import re
import shutil
from pathlib import Path

from asr.corpora import prepared
from asr.corpora.archive import unpack
from asr.corpora.download import Say
from asr.corpora.source import Recording, durations
from asr.errors import InputError

VERSION = 1
HOME = "https://commonvoice.mozilla.org/datasets"
LICENCE = "CC0 1.0"
_COLUMNS = ("client_id", "path", "sentence")
_FOLDERS = (".", "*", "cv-corpus-*/*", "commonvoice", "commonvoice/*", "commonvoice/cv-corpus-*/*")
_FILES = re.compile(r"(^|/)((train|dev|test)\.tsv|clips/[^/]+\.(mp3|wav|flac))$")
_MAX_BYTES, _MAX_MEMBERS = 200_000_000_000, 5_000_000  # of the largest language, twice over
_SHOWN = 3


def prepare(out: Path, source: Path | None, fetch: bool, say: Say) -> dict[str, Path]:
    """Write the manifests of ``OUT/commonvoice``; returns train, dev, test."""
    folder = out / "commonvoice"
    if done := prepared.ready(folder, VERSION, source):
        return done
    copy = _find(folder / "download", source, say)
    say(f"commonvoice: {copy}; licence: {LICENCE}")
    prepared.begin(folder)
    splits, notes = {}, []
    for split in prepared.SPLITS:
        recordings, missing = read_table(copy / f"{split}.tsv")
        if missing:
            notes.append(
                f"{split}.tsv: {len(missing)} sentences without audio, left out: {', '.join(missing[:_SHOWN])}"
            )
            say(f"commonvoice: {copy}: {notes[-1]}")
        if not recordings:
            raise InputError(f"{copy / f'{split}.tsv'}: no sentence with its audio in clips/; get the language again")
        seconds = durations(recordings, f"commonvoice: reading {split}", say)
        splits[split] = prepared.utterances(recordings, seconds, split)
    facts = {
        "corpus": "commonvoice",
        "title": f"Common Voice, language {copy.resolve().name}",
        "home": HOME,
        "licence": LICENCE,
        "version": VERSION,
        "source": str(copy.resolve()),
        "complete": not notes,
        "note": "; ".join(notes),
    }
    return prepared.write(folder, facts, splits)


def read_table(path: Path) -> tuple[list[Recording], list[str]]:
    """The recordings that a table names, and the names of those whose audio isn't in ``clips/``.

    Raises:
        InputError: no table, no such columns, a clip named twice, or a name that leads out of ``clips/``.
    """
    recordings: dict[str, Recording] = {}
    missing: list[str] = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if absent := [column for column in _COLUMNS if column not in (rows.fieldnames or ())]:
                raise InputError(f"{path}: no column {absent[0]!r} in its first line; is this a table of Common Voice?")
            for row in rows:
                name, text = row["path"] or "", row["sentence"] or ""
                if not re.fullmatch(r"[\w-][\w.-]*", name):
                    raise InputError(f"{path}: line {rows.line_num}: {name[:80]!r} is no name of a clip")
                clip = path.parent / "clips" / (name if Path(name).suffix else f"{name}.mp3")
                if clip.stem in recordings:
                    raise InputError(f"{path}: line {rows.line_num}: {name} stands twice; leave one out")
                if not clip.is_file():
                    missing.append(name)
                elif text.strip():
                    recordings[clip.stem] = Recording(clip.stem, clip, text.strip(), row["client_id"] or "")
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not read ({reason}); get the language again") from error
    return list(recordings.values()), missing


def _find(kept: Path, source: Path | None, say: Say) -> Path:
    """The folder of one language. Raises InputError where there is none, or more than one."""
    data = os.environ.get("ASR_DATA", "")
    roots = [source] if source is not None else [Path(data), kept] if data else [kept]
    if source is not None and not source.exists():
        raise InputError(f"--source {source}: no such folder or archive; check the path", status=2)
    if source is not None and source.is_file():
        say(f"commonvoice: unpacking {source}; licence: {LICENCE}")
        shutil.rmtree(kept, ignore_errors=True)
        unpack(source, kept, lambda name: bool(_FILES.search(name)), _MAX_BYTES, _MAX_MEMBERS)
        roots = [kept]
    for root in roots:
        for pattern in _FOLDERS:
            places = [root] if pattern == "." else sorted(root.glob(pattern))
            found = [place for place in places if (place / "clips").is_dir() and (place / "train.tsv").is_file()]
            if len(found) > 1:
                names = ", ".join(place.name for place in found)
                raise InputError(f"{root}: several languages ({names}); name one folder by --source", status=2)
            if found:
                return found[0]
    looked = ", ".join(map(str, roots))
    raise InputError(
        f"commonvoice: no language found (looked in {looked} for train.tsv beside clips/); download one at {HOME}, "
        "then give --source ARCHIVE or FOLDER",
        status=2 if source is not None else 1,
    )
