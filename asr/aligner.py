"""Forced alignment: when each word and token of a known text was said in a recording, and the formats of that.

The text is normalised and encoded as in training, the model's emissions are its probabilities, and `asr.viterbi` finds
the most probable path. Times are seconds from the start of the recording, in whole milliseconds, never decreasing and
inside the recording; nothing lasts less than a millisecond.

============  =================================================================================================
``textgrid``  Praat's TextGrid (long text format, UTF-8): tiers `words` and `tokens`, empty intervals in the gaps
``ctm``       a word a line for NIST's sclite, as `asr.transcript` writes it
``json``      words and tokens with start, end and probability on one line (``docs/data.md``)
============  =================================================================================================
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from asr import ctc, transcript
from asr.errors import InputError
from asr.recognizer import Emissions, Recognizer, Source
from asr.text import BOUNDARY, normalizer, tokenizer
from asr.transcript import Transcript, Word, segments

VERSION = 1  # of the JSON shape


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The times of a text in a recording.

    Args:
        audio_filepath: the recording, as the user named it.
        duration: its seconds.
        text: what was said, as the model's normaliser writes it.
        words: its words, in order; a probability is the geometric mean of the tokens'.
        tokens: its tokens without the word boundary; a probability is the highest of the token's frames.
        avg_logprob: the path's mean log-probability a frame (nats): low where text and recording differ.
        model: name and sha256 of the model.
        notes: remarks for people, as on a resampled recording; not part of the JSON.
    """

    audio_filepath: str
    duration: float
    text: str
    words: tuple[Word, ...]
    tokens: tuple[Word, ...]
    avg_logprob: float
    model: dict[str, Any]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The alignment as JSON (version 1)."""
        return {
            "version": VERSION,
            "audio_filepath": self.audio_filepath,
            "duration": self.duration,
            "text": self.text,
            "avg_logprob": self.avg_logprob,
            "words": [dataclasses.asdict(word) for word in self.words],
            "tokens": [
                {"token": piece.word, "start": piece.start, "end": piece.end, "probability": piece.probability}
                for piece in self.tokens
            ],
            "model": self.model,
        }


def align(recognizer: Recognizer, source: Source, text: str, channel: int | None = None) -> Alignment:
    """Find when each word of `text` was said.

    Args:
        recognizer: the model.
        source: a path, the bytes of a file, an Utterance, or a mono waveform `(samples,)` at the model's rate.
        text: what was said; the model's normaliser is applied to it.
        channel: the channel of the file to take, from 0; None for the mean of all.

    Raises:
        InputError: the recording can't be read; characters (or words) of the text are not among the model's tokens; the
            recording is too short for the text.
    """
    [result] = align_many(recognizer, [source], [text], channel)
    if isinstance(result, InputError):
        raise result
    return result


def align_many(
    recognizer: Recognizer,
    sources: Sequence[Source],
    texts: Sequence[str | InputError],
    channel: int | None = None,
    batch_seconds: float = 120.0,
) -> Iterator[Alignment | InputError]:
    """Align any number of recordings, lazily, results in input order.

    Args:
        recognizer: the model.
        sources: as for `align`.
        texts: what was said in each, or why that is not known: such an error takes the result's place.
        channel: as for `align`.
        batch_seconds: seconds of audio computed together, padding included.

    Yields:
        Alignment, or the InputError of a recording or text that is wrong.
    """
    encoded = [text if isinstance(text, InputError) else _encoded(recognizer, text) for text in texts]
    wanted = (source for source, own in zip(sources, encoded, strict=True) if not isinstance(own, InputError))
    heard = recognizer.emissions_many(wanted, channel, batch_seconds, return_errors=True)
    for own in encoded:
        result = own if isinstance(own, InputError) else next(heard)
        if not isinstance(own, InputError) and isinstance(result, Emissions):
            try:
                result = _aligned(recognizer, result, *own)
            except InputError as error:
                result = error
        yield result


def _encoded(recognizer: Recognizer, text: str) -> tuple[str, list[int]] | InputError:
    """The normalised text and its labels."""
    written = normalizer(recognizer.card["normalizer"])(text)
    try:
        return written, tokenizer(recognizer.tokens).encode(written)
    except InputError as error:
        return InputError(f"the text: {error}; spell it as the model does (`asr info` lists its tokens)")


def _aligned(recognizer: Recognizer, heard: Emissions, text: str, labels: list[int]) -> Alignment:
    from asr.viterbi import best_paths  # not at the top: it compiles, or reads what was compiled

    milliseconds = round(1000 * heard.seconds)
    if milliseconds < max(1, len(labels)):
        raise InputError(f"{heard.name}: {milliseconds} ms are too short for {len(labels)} tokens")
    try:
        [path] = best_paths([heard.log_probs.numpy()], [labels])
    except ValueError as error:
        problem = str(error).removeprefix("utterance 0: ")
        raise InputError(f"{heard.name}: {problem}; was this text said in this recording?") from error
    spans = list(zip(path.starts.tolist(), path.ends.tolist(), strict=True))
    times = _milliseconds(spans, 1000 * recognizer.frame_seconds, milliseconds)
    runs = [(label, *time, peak) for label, time, peak in zip(labels, times, path.peaks.tolist(), strict=True)]
    names = [(recognizer.tokens[label].removeprefix(BOUNDARY), run) for label, run in zip(labels, runs, strict=True)]
    return Alignment(
        audio_filepath=heard.name,
        duration=milliseconds / 1000,
        text=text,
        words=tuple(_word(span) for span in ctc.word_spans(runs, recognizer.tokens)),
        tokens=tuple(_word(ctc.word_span(name, [run])) for name, run in names if name),
        avg_logprob=round(path.score / max(1, len(heard.log_probs)), 4),
        model=recognizer.identity,
        notes=heard.notes,
    )


def _milliseconds(spans: list[tuple[int, int]], frame: float, limit: int) -> list[tuple[int, int]]:
    """Spans of frames in milliseconds; the last frame may begin where the recording ends, but nothing is empty."""
    times = []
    for start, end in reversed(spans):
        stop = min(round(end * frame), limit)
        limit = min(round(start * frame), stop - 1)
        times.append((limit, stop))
    return times[::-1]


def _word(span: ctc.WordSpan) -> Word:
    return Word(span.word, span.start / 1000, span.end / 1000, round(span.probability, 4))


# The formats


def _textgrid(alignment: Alignment) -> str:
    tiers = {"words": alignment.words, "tokens": alignment.tokens}
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {alignment.duration:.3f}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, pieces) in enumerate(tiers.items(), start=1):
        intervals = _intervals(pieces, alignment.duration)
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
            "        xmin = 0",
            f"        xmax = {alignment.duration:.3f}",
            f"        intervals: size = {len(intervals)}",
        ]
        for count, (start, end, text) in enumerate(intervals, start=1):
            lines += [
                f"        intervals [{count}]:",
                f"            xmin = {start:.3f}",
                f"            xmax = {end:.3f}",
                f'            text = "{text}"',
            ]
    return "\n".join(lines) + "\n"


def _intervals(pieces: Sequence[Word], duration: float) -> list[tuple[float, float, str]]:
    """Start, end and text (quotes doubled) of intervals that cover the recording without gap or overlap."""
    intervals = []
    last = 0.0
    for piece in pieces:
        if piece.start > last:
            intervals.append((last, piece.start, ""))
        intervals.append((piece.start, piece.end, piece.word.replace('"', '""')))
        last = piece.end
    if duration > last:
        intervals.append((last, duration, ""))
    return intervals


def _ctm(alignment: Alignment) -> str:
    heard = Transcript(alignment.audio_filepath, alignment.duration, alignment.text, segments(alignment.words))
    return transcript.render(heard, "ctm")


formats: dict[str, Callable[[Alignment], str]] = {
    "textgrid": _textgrid,
    "ctm": _ctm,
    "json": lambda alignment: transcript.json_line(alignment.to_json()),
}
