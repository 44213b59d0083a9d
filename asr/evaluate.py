"""Word and character error rate of a model on a manifest: every utterance is transcribed and compared."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from asr import confidence, manifest
from asr.confidence import Confidence
from asr.errors import InputError
from asr.manifest import Utterance
from asr.recognizer import Decoder, Recognizer
from asr.score import Score, score


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model heard in a manifest, and how right it was.

    `hypotheses` are the manifest's utterances with `pred_text`; `seconds` of audio took `elapsed` seconds of work.
    `failures` are utterances whose audio could not be read, with the reason: they count as nothing heard.
    `confidence` tells how honest the words' probabilities are.
    """

    words: Score
    characters: Score
    hypotheses: list[Utterance]
    failures: list[tuple[Utterance, InputError]]
    seconds: float
    elapsed: float
    confidence: Confidence

    def to_json(self) -> dict[str, Any]:
        """The scores and what they were measured on."""
        return {
            "wer": self.words.to_json(),
            "cer": self.characters.to_json(),
            "confidence": self.confidence.to_json(),
            "failures": [{"id": utterance.id, "error": str(error)} for utterance, error in self.failures],
            "seconds": round(self.seconds, 3),
            "timing": {"elapsed": round(self.elapsed, 3), "rtf": self.elapsed / max(1e-9, self.seconds)},
        }


def evaluate(
    recognizer: Recognizer,
    path: str | os.PathLike[str],
    *,
    decoder: Decoder | None = None,
    normalizer: str | None = None,
    bootstrap: int = 1000,
    by_speaker: bool = False,
    channel: int | None = None,
    batch_seconds: float = 120.0,
    advance: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Transcribe a manifest and score it.

    Args:
        recognizer: the model.
        path: a manifest with references (`text`).
        decoder: None for greedy.
        normalizer: name of the normaliser for both sides; None: the model's own.
        bootstrap: resamples for the intervals.
        by_speaker: draw the interval over speakers instead of utterances.
        channel: of the recordings, from 0; None: the mean of all.
        batch_seconds: seconds of audio computed together.
        advance: called after every utterance.

    Raises:
        InputError: the manifest is unreadable, a line has no reference or (with `by_speaker`) no speaker.
    """
    utterances = manifest.read(path)
    _check(utterances, path, by_speaker)
    score(
        [""], [""], normalizer=normalizer or recognizer.card["normalizer"], bootstrap=bootstrap
    )  # refuses what is wrong
    begun = time.perf_counter()
    hypotheses, heard, failures, seconds = [], [], [], 0.0
    results = recognizer.transcribe_many(utterances, decoder, channel, batch_seconds, return_errors=True)
    for utterance, result in zip(utterances, results, strict=True):
        if isinstance(result, InputError):
            failures.append((utterance, result))
            result = None
        else:
            seconds += result.duration
        hypotheses.append(dataclasses.replace(utterance, pred_text=result.text if result else ""))
        heard.append([(word.word, word.probability) for word in result.words] if result else [])
        advance()
    elapsed = time.perf_counter() - begun
    references = [utterance.text or "" for utterance in utterances]
    judged = confidence.judge(references, heard, normalizer or recognizer.card["normalizer"])
    honesty = confidence.measure(judged, "calibration" in recognizer.settings(decoder))
    words, characters = (
        score(
            references,
            [utterance.pred_text or "" for utterance in hypotheses],
            unit=unit,
            normalizer=normalizer or recognizer.card["normalizer"],
            bootstrap=bootstrap,
            groups=[utterance.speaker for utterance in utterances] if by_speaker else None,
        )
        for unit in ("word", "character")
    )
    return Evaluation(words, characters, hypotheses, failures, seconds, elapsed, honesty)


def _check(utterances: Sequence[Utterance], path: str | os.PathLike[str], by_speaker: bool) -> None:
    """Every utterance has a reference, and a speaker where the interval is drawn over speakers."""
    if not utterances:
        raise InputError(f"{path}: no utterance in it; nothing to evaluate")
    for utterance in utterances:
        if utterance.text is None:
            raise InputError(f"{path}: line {utterance.line}: key 'text' is missing; scoring needs the reference")
        if by_speaker and utterance.speaker is None:
            raise InputError(f"{path}: line {utterance.line}: key 'speaker' is missing; --by speaker needs it")
