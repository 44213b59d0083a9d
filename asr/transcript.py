"""What was heard in one recording, and the formats it is written in.

The JSON shape (`Transcript.to_json`, ``docs/data.md``) is a superset of what Whisper's users know. Times are
seconds from the start of the recording, rounded to a millisecond, never decreasing and inside the recording:
every `Transcript` is made so when it is built.

==========  ==================================================================================================
``txt``     the text on one line
``json``    the JSON shape on one line
``jsonl``   a manifest line with ``pred_text``, what `evaluate` and `score` read
``srt``     SubRip subtitles: numbered, ``HH:MM:SS,mmm``; an arrow in the text becomes ``->``
``vtt``     WebVTT subtitles: ``HH:MM:SS.mmm``; ``&``, ``<`` and ``>`` escaped
``tsv``     a segment a line: start and end in whole milliseconds, text
``ctm``     a word a line for NIST's sclite: recording, channel 1, start, duration, word, probability
==========  ==================================================================================================

White space of any kind in a text is one space in every format but JSON.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asr.errors import InputError
from asr.manifest import Utterance

VERSION = 1  # of the JSON shape

# Where a segment ends: rules of thumb for subtitles that can be read while one listens.
PAUSE = 0.8  # seconds without a word
LINE = 42  # characters in a line
LINES = 2  # lines in a segment
SECONDS = 7.0  # the longest segment; only a single word may be longer

_FLOOR = 1e-10  # probability below which a logarithm is not taken


@dataclasses.dataclass(frozen=True)
class Word:
    """A word with its start and end (seconds) and the probability in [0, 1] that the model gave it."""

    word: str
    start: float
    end: float
    probability: float


@dataclasses.dataclass(frozen=True)
class Segment:
    """Words shown together, as in a subtitle; `avg_logprob`: mean natural log of their probabilities."""

    id: int
    start: float
    end: float
    text: str
    avg_logprob: float
    words: tuple[Word, ...] = ()


@dataclasses.dataclass(frozen=True)
class Alternative:
    """One of several hypotheses, with its score in nats: acoustic + lm + bonus + hot (`asr.ctc.Hypothesis`)."""

    text: str
    score: float
    acoustic: float
    lm: float
    bonus: float
    hot: float


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was heard in a recording.

    Args:
        audio_filepath: the recording, as the user named it.
        duration: its seconds.
        text: what was heard.
        segments: the text in pieces with times, in order (`segments`).
        model: name and sha256 of the model.
        decoder: kind and settings of the decoder.
        rtf: real-time factor, seconds of work a second of recording; None where it was not measured.
        notes: remarks for people, as on a resampled recording; not part of the JSON.
        language: the language where the model knows it.
        alternatives: the best hypotheses, where more than one was asked for; the first one's text is `text`.
    """

    audio_filepath: str
    duration: float
    text: str
    segments: tuple[Segment, ...] = ()
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    decoder: dict[str, Any] = dataclasses.field(default_factory=dict)
    rtf: float | None = None
    notes: tuple[str, ...] = ()
    language: str | None = None
    alternatives: tuple[Alternative, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "duration", round(self.duration, 3))
        object.__setattr__(self, "segments", _in_order(self.segments, self.duration))

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments."""
        return tuple(word for segment in self.segments for word in segment.words)

    def to_json(self) -> dict[str, Any]:
        """The transcript as JSON (version 1)."""
        several = [dataclasses.asdict(alternative) for alternative in self.alternatives]
        return {
            "version": VERSION,
            "audio_filepath": self.audio_filepath,
            "duration": self.duration,
            "language": self.language,
            "text": self.text,
            "segments": [dataclasses.asdict(segment) for segment in self.segments],
            "model": self.model,
            "decoder": self.decoder,
            "rtf": self.rtf,
        } | ({"alternatives": several} if several else {})


def segments(words: Iterable[Word]) -> tuple[Segment, ...]:
    """Group words into segments that can be shown as subtitles.

    A segment ends before a word that follows a pause of `PAUSE` seconds or more, that would not fit into
    `LINES` lines of `LINE` characters, or that would end more than `SECONDS` after the segment's start.
    """
    groups: list[list[Word]] = []
    for word in words:
        if not groups or _ends(groups[-1], word):
            groups.append([])
        groups[-1].append(word)
    return tuple(
        Segment(
            id=number,
            start=group[0].start,
            end=group[-1].end,
            text=" ".join(word.word for word in group),
            avg_logprob=sum(math.log(max(word.probability, _FLOOR)) for word in group) / len(group),
            words=tuple(group),
        )
        for number, group in enumerate(groups)
    )


def _ends(group: list[Word], word: Word) -> bool:
    """Whether a segment of the words in `group` ends before `word`."""
    return (
        word.start - group[-1].end >= PAUSE
        or word.end - group[0].start > SECONDS
        or len(_lines(" ".join(each.word for each in [*group, word]))) > LINES
    )


def _in_order(pieces: Iterable[Segment], duration: float) -> tuple[Segment, ...]:
    """The segments with times that are rounded, never decrease and lie inside the recording."""
    last = 0.0

    def moved(time: float) -> float:
        nonlocal last
        last = max(last, min(round(time, 3), duration))  # NaN: `last` stays, for no comparison with it holds
        return last

    ordered = []
    for number, piece in enumerate(pieces):
        words = tuple(
            Word(word.word, moved(word.start), moved(word.end), round(min(max(word.probability, 0.0), 1.0), 4))
            for word in piece.words
        )
        start, end = (words[0].start, words[-1].end) if words else (moved(piece.start), moved(piece.end))
        ordered.append(Segment(number, start, end, piece.text, round(piece.avg_logprob, 4), words))
    return tuple(ordered)


# The formats


def render(content: Any, form: str, forms: Mapping[str, Callable[[Any], str]] | None = None) -> str:
    """The content of a file in a format, with its last line break.

    Args:
        content: a transcript, or what else `forms` can write.
        form: one of the names in `forms`.
        forms: how each format is written; None: the `formats` of transcripts.

    Raises:
        InputError: there is no such format (status 2).
    """
    known = formats if forms is None else forms
    if form not in known:
        raise InputError(f"no output format {form!r}; known are {', '.join(known)}", status=2)
    return known[form](content)


def suffix(form: str) -> str:
    """What the name of a file in that format ends in: ``.srt``; Praat's files are called ``.TextGrid``."""
    return ".TextGrid" if form == "textgrid" else f".{form}"


def manifest_line(transcript: Transcript, utterance: Utterance | None = None) -> str:
    """A manifest line with `pred_text`; where a manifest named the recording, with all of its keys."""
    if utterance is None:
        heard = {"audio_filepath": transcript.audio_filepath, "duration": transcript.duration}
        return json_line({**heard, "pred_text": _line(transcript.text)})
    seconds = transcript.duration if utterance.duration is None else utterance.duration
    return json_line(dataclasses.replace(utterance, duration=seconds, pred_text=_line(transcript.text)).to_json())


def _txt(transcript: Transcript) -> str:
    return _line(transcript.text) + "\n"


def _srt(transcript: Transcript) -> str:
    cues = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{re.sub('-{2,}>', '->', text)}\n"
        for number, (start, end, text) in enumerate(_cues(transcript), start=1)
    )
    return "\n".join(cues)


def _vtt(transcript: Transcript) -> str:
    escape = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    cues = (
        f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{text.translate(escape)}\n"
        for start, end, text in _cues(transcript)
    )
    return "WEBVTT\n" + "".join(cues)


def _tsv(transcript: Transcript) -> str:
    rows = (
        f"{round(segment.start * 1000)}\t{round(segment.end * 1000)}\t{_line(segment.text)}\n"
        for segment in transcript.segments
    )
    return "start\tend\ttext\n" + "".join(rows)


def _ctm(transcript: Transcript) -> str:
    """The recording is called as its file, less the ending; white space and `;` (a comment) become `_`."""
    name = re.sub(r"[\s;]", "_", _written(_stem(transcript.audio_filepath))) or "_"
    rows = (
        f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {spoken} {word.probability:.4f}\n"
        for word in transcript.words
        if (spoken := "_".join(_written(word.word).split()))
    )
    return "".join(rows)


formats: dict[str, Callable[[Transcript], str]] = {
    "txt": _txt,
    "json": lambda transcript: json_line(transcript.to_json()),
    "jsonl": manifest_line,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
    "ctm": _ctm,
}


def output_paths(
    inputs: Sequence[str | os.PathLike[str]], folder: str | os.PathLike[str], forms: Sequence[str]
) -> list[dict[str, Path]]:
    """Where each input's transcript is written, by format: ``FOLDER/STEM.FORMAT`` (``-`` is called stdin).

    Raises:
        InputError: two inputs would be written to one file, or one would overwrite an input (status 2).
    """
    stems: dict[str, str | os.PathLike[str]] = {}
    sources = {Path(source).resolve(): source for source in inputs}
    paths = []
    for source in inputs:
        stem = _stem(source)
        if stem in stems:
            raise InputError(
                f"{stems[stem]} and {source} would both be written to {Path(folder) / stem}.*; "
                "rename one or give them different output folders",
                status=2,
            )
        stems[stem] = source
        paths.append({form: Path(folder) / (stem + suffix(form)) for form in forms})
        for path in paths[-1].values():
            if path.resolve() in sources:
                raise InputError(f"{path} is an input and would be overwritten; give another output folder", status=2)
    return paths


def _stem(source: str | os.PathLike[str]) -> str:
    return "stdin" if os.fspath(source) == "-" else Path(source).stem


def _line(text: str) -> str:
    """A text on one line, with single spaces and nothing that UTF-8 can't write."""
    return _written(" ".join(text.split()))


def _written(text: str) -> str:
    """A text with `?` for each byte of a file name that is no UTF-8 (Python keeps it as a lone surrogate)."""
    return text.encode(errors="replace").decode()


def json_line(fields: dict[str, Any]) -> str:
    """One line of JSON with its line break; a file name that is no UTF-8 keeps its bytes as escapes."""
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    escaped = text if text == _written(text) else json.dumps(fields, allow_nan=False)
    return escaped + "\n"


def _cues(transcript: Transcript) -> list[tuple[int, int, str]]:
    """Start and end (milliseconds, one apart or more, as players demand) and text of each spoken segment."""
    cues = []
    for segment in transcript.segments:
        if lines := _lines(_written(segment.text)):
            start = round(segment.start * 1000)
            cues.append((start, max(round(segment.end * 1000), start + 1), "\n".join(lines)))
    return cues


def _lines(text: str) -> list[str]:
    """A text in lines of at most `LINE` characters, or of one longer word."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= LINE:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def _clock(milliseconds: int, point: str) -> str:
    seconds, thousandths = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{thousandths:03}"
