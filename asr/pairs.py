"""References and hypotheses from files, put together for scoring.

==================  ==============================================================================
``.jsonl .json``    a manifest (`asr.manifest`): `text` is the reference; the hypothesis is
                    `pred_text`, or `text` where no line has a `pred_text`. Matched by `id`.
``.trn``            sclite's transcripts, ``words (utterance-id)``; ``;;`` starts a comment line.
                    Matched by id.
``.txt``            an utterance a line, an empty line is an empty utterance. Matched by line.
==================  ==============================================================================

All are UTF-8, with either line end; .txt and .trn may start with a byte order mark. No utterance is dropped:
one without its partner is an error.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from asr import manifest
from asr.errors import InputError
from asr.manifest import MAX_LINE_BYTES

_KINDS = {".jsonl": ".jsonl", ".json": ".jsonl", ".trn": ".trn", ".txt": ".txt"}


class Pairs(NamedTuple):
    """Texts to score, in the reference file's order; `speakers` is None unless every utterance names one."""

    ids: list[str]
    references: list[str]
    hypotheses: list[str]
    speakers: list[str] | None


def read_pairs(reference: str | os.PathLike[str], hypothesis: str | os.PathLike[str] | None = None) -> Pairs:
    """Read a reference file and its hypothesis file; ids of .txt files are line numbers, from 1.

    A single manifest, named once or twice, must have both `text` and `pred_text`.

    Raises:
        InputError: a file can't be read or is of no known kind, a text is missing, ids or numbers of lines
        differ.
    """
    kind, other = _kind(reference), _kind(reference if hypothesis is None else hypothesis)
    if hypothesis is None and kind != ".jsonl":
        raise InputError(f"{reference}: no hypotheses to score; name their file too", status=2)
    if kind != other and ".txt" in (kind, other):
        raise InputError(f"{reference}, {hypothesis}: .txt goes by lines, the other by ids; give two alike", status=2)
    alone = hypothesis is None or Path(reference).resolve() == Path(hypothesis).resolve()
    hypothesis = reference if hypothesis is None else hypothesis
    said, speakers = _references(reference, kind)
    heard = _manifest_hypotheses(hypothesis, alone) if other == ".jsonl" else _LINES[other](hypothesis)
    if kind == ".txt" and len(said) != len(heard):
        raise InputError(f"{reference} has {len(said)} lines, {hypothesis} {len(heard)}; line by line they must match")
    _check_ids(reference, said, hypothesis, heard)
    return Pairs(list(said), list(said.values()), [heard[key] for key in said], speakers)


def _kind(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in _KINDS:
        raise InputError(f"{path}: {suffix or 'no suffix'} is no known kind; use {', '.join(_KINDS)}", status=2)
    return _KINDS[suffix]


def _references(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, str], list[str] | None]:
    """The texts by id, and the speakers if every utterance has one."""
    if kind != ".jsonl":
        texts, speakers = _LINES[kind](path), []
    else:
        utterances = manifest.read(path)
        texts = _manifest_texts(path, utterances, "text")
        speakers = [utterance.speaker for utterance in utterances if utterance.speaker is not None]
    if not texts:
        raise InputError(f"{path}: no utterance in it, nothing to score")
    return texts, speakers if len(speakers) == len(texts) else None


def _manifest_hypotheses(path: str | os.PathLike[str], alone: bool) -> dict[str, str]:
    """Hypotheses by id: all lines by the same key, so that no reference passes for what was heard."""
    utterances = manifest.read(path)
    predicted = alone or any(utterance.pred_text is not None for utterance in utterances)
    return _manifest_texts(path, utterances, "pred_text" if predicted else "text")


def _manifest_texts(path: str | os.PathLike[str], utterances: list[manifest.Utterance], key: str) -> dict[str, str]:
    texts = {utterance.id: getattr(utterance, key) for utterance in utterances}
    lacking = [name for name, text in texts.items() if text is None]
    if lacking:
        raise InputError(
            f"{path}: {len(lacking)} of {len(texts)} utterances have no {key!r}, the first is {lacking[0]!r}"
        )
    return texts


def _text_lines(path: str | os.PathLike[str]) -> dict[str, str]:
    return {str(number): line for number, line in _lines(path)}


def _trn_lines(path: str | os.PathLike[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in _lines(path):
        if not line.strip() or line.lstrip().startswith(";;"):
            continue
        words, opening, name = line.strip().rpartition("(")
        name, where = name[:-1].strip(), f"{path}: line {number}"
        if not opening or not line.rstrip().endswith(")") or not name:
            raise InputError(f"{where}: does not end in an utterance id in brackets, as in 'the words (speaker-01)'")
        if "{" in words.split():
            raise InputError(f"{where}: alternatives in braces are not supported; keep one of them")
        if name in texts:
            raise InputError(f"{where}: id {name!r} stands twice; give each utterance its own id")
        texts[name] = words.strip()
    return texts


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1, without their ends; only a line feed ends a line."""
    number = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"{path}: line {number}: longer than {MAX_LINE_BYTES} bytes; is this a text?")
                yield (
                    number,
                    line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r"),
                )
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: line {number}: not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; check the path") from error


_LINES: dict[str, Callable[[str | os.PathLike[str]], dict[str, str]]] = {
    ".txt": _text_lines,
    ".trn": _trn_lines,
}


def _check_ids(
    reference: str | os.PathLike[str],
    said: dict[str, str],
    hypothesis: str | os.PathLike[str],
    heard: dict[str, str],
) -> None:
    missing = [name for name in said if name not in heard]
    if missing:
        counts = f"{len(missing)} of {len(said)} utterances of {reference}"
        raise InputError(f"{hypothesis}: no hypothesis for {counts}, the first is {missing[0]!r}; transcribe them too")
    added = [name for name in heard if name not in said]
    if added:
        counts = f"{len(added)} of {len(heard)} utterances"
        raise InputError(f"{hypothesis}: {counts} are not in {reference}, the first is {added[0]!r}; take them out")
