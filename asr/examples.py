"""Training examples: manifest lines checked against audio and model, and made into batches of features.

Everything that can be wrong with the data is found before the first step: a missing text or file, a duration that the
file does not have, a character without a token, more labels than emission frames.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch

from asr import audio, batches, manifest
from asr.augment import Augmentation
from asr.ctc import frames_needed
from asr.errors import InputError
from asr.features import MFCC, LogMel
from asr.manifest import Utterance
from asr.text import Tokenizer

_SHOWN = 5  # offenders named in an error
_LOOKED_AT = 50  # recordings whose bandwidth is looked at before training


@dataclasses.dataclass(frozen=True)
class Example:
    """An utterance with its seconds, its normalised text and that text's labels."""

    utterance: Utterance
    seconds: float
    text: str
    labels: tuple[int, ...] = ()


def read_examples(
    path: str | os.PathLike[str], normalize: Callable[[str], str], max_seconds: float, say: Callable[[str], None]
) -> list[Example]:
    """The utterances of a manifest with normalised texts; those longer than `max_seconds` are left out, and said.

    Raises:
        InputError: an unreadable manifest or audio file, a line without text, a duration beyond the file's end, no
            utterance at all; the message names file and line.
    """
    examples = []
    left_out = 0
    for utterance in manifest.read(path):
        where = f"{path}: line {utterance.line}"
        if utterance.text is None:
            raise InputError(f"{where}: key 'text' is missing; training and scoring need the reference")
        seconds = _seconds(utterance, where)
        if seconds <= max_seconds:
            examples.append(Example(utterance, seconds, normalize(utterance.text)))
        else:
            left_out += 1
    if left_out:
        say(f"{path}: {left_out} utterances longer than {max_seconds:g} s are left out (data.max_seconds)")
    if not examples:
        raise InputError(f"{path}: no utterance of at most {max_seconds:g} s (data.max_seconds); nothing to train on")
    return examples


def _seconds(utterance: Utterance, where: str) -> float:
    """The seconds of an utterance, checked against its file."""
    try:
        rest = audio.info(utterance.path).seconds - utterance.offset
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    seconds = rest if utterance.duration is None else utterance.duration
    if seconds > rest + audio.DURATION_TOLERANCE or rest <= 0:
        raise InputError(
            f"{where}: {utterance.path} ends at {rest + utterance.offset:.2f} s, "
            f"before offset {utterance.offset:g} + duration {seconds:.2f} s; correct the line"
        )
    return min(seconds, rest)


def label(examples: Sequence[Example], tokenizer: Tokenizer, path: str | os.PathLike[str]) -> list[Example]:
    """The examples with their labels. Raises InputError naming line, utterance and the character or word unknown."""
    labelled = []
    for example in examples:
        try:
            labels = tokenizer.encode(example.text)
        except InputError as error:
            utterance = example.utterance
            raise InputError(
                f"{path}: line {utterance.line}: utterance {utterance.id!r}: {error}; "
                "correct the text, or choose a normaliser (text.normalizer) or other tokens (text.units)"
            ) from error
        labelled.append(dataclasses.replace(example, labels=tuple(labels)))
    return labelled


def check_frames(examples: Sequence[Example], frames: Callable[[float], int], path: str | os.PathLike[str]) -> None:
    """Refuse utterances that CTC cannot train on.

    Args:
        examples: with labels.
        frames: emission frames of so many seconds.
        path: the manifest, for the message.

    Raises:
        InputError: utterances have fewer frames than labels and repeated neighbours need; names the first ones.
    """
    short = [
        f"line {e.utterance.line} {e.utterance.id!r} ({frames(e.seconds)} frames, {frames_needed(e.labels)} needed)"
        for e in examples
        if frames(e.seconds) < frames_needed(e.labels)
    ]
    if short:
        more = f" and {len(short) - _SHOWN} more" if len(short) > _SHOWN else ""
        raise InputError(
            f"{path}: {len(short)} of {len(examples)} utterances have fewer frames than their labels need: "
            f"{', '.join(short[:_SHOWN])}{more}; leave them out, or use a higher frame rate (model.stack, features.hop)"
        )


def narrow_band_note(examples: Sequence[Example], rate: int) -> str | None:
    """A warning where recordings could carry sound above 4 kHz and do not; looks at up to `_LOOKED_AT` of them."""
    looked = examples[:: max(1, len(examples) // _LOOKED_AT)][:_LOOKED_AT]
    narrow = [e.utterance.id for e in looked if audio.narrow_band(_whole(e.utterance, rate), rate)]
    if not narrow:
        return None
    return (
        f"{len(narrow)} of {len(looked)} recordings looked at carry nothing above 4 kHz, as a telephone does "
        f"(the first is {narrow[0]!r}): features.rate=8000 would lose nothing, or look where they come from"
    )


def _whole(utterance: Utterance, rate: int) -> np.ndarray:
    """The samples of an utterance at `rate`."""
    return audio.read(utterance.path, rate, offset=utterance.offset, duration=utterance.duration).samples


Row = tuple[int, ...]  # the examples, by number, that stand one behind the other in one row of a batch


class Loader:
    """Makes batches of features from examples; a batch is a pure function of (examples, seed, epoch).

    Args:
        examples: with labels.
        tokenizer: for the labels of joined examples.
        features: the front end.
        augmentation: applied where an epoch is given.
        seed: of every draw.
        model_frames: emission frames of so many feature frames (so that augmentation never makes an utterance too
            short for its labels).
        max_seconds: of the longest row of joined examples.
        cache: decoded audio on disk, or None.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        features: LogMel | MFCC,
        augmentation: Augmentation,
        seed: int,
        model_frames: Callable[[int], int],
        max_seconds: float,
        cache: audio.SampleCache | None,
    ) -> None:
        self.examples = examples
        self._tokenizer = tokenizer
        self._features = features
        self._augmentation = augmentation
        self._seed = seed
        self._model_frames = model_frames
        self._max_seconds = max_seconds
        self._cache = cache

    def rows(self, epoch: int) -> list[Row]:
        """The rows of an epoch, as augmentation joins the examples; without it each example is a row."""
        speakers = [example.utterance.speaker for example in self.examples]
        return self._augmentation.rows(speakers, self._seed, epoch, self._fits)

    def seconds(self, row: Row) -> float:
        """The speech in a row."""
        return sum(self.examples[index].seconds for index in row)

    def labels(self, row: Row) -> Sequence[int]:
        """The labels of a row."""
        if len(row) == 1:
            return self.examples[row[0]].labels
        return self._tokenizer.encode(" ".join(self.examples[index].text for index in row if self.examples[index].text))

    @torch.no_grad()
    def batch(self, rows: Sequence[Row], epoch: int | None = None) -> batches.Batch:
        """A batch of rows, augmented as in `epoch`, or as they are where it is None."""
        ids = ["+".join(self.examples[index].utterance.id for index in row) for row in rows]
        labels = [self.labels(row) for row in rows]
        waveforms, lengths = batches.pad(
            [self._waveform(row, epoch, frames_needed(own)) for row, own in zip(rows, labels, strict=True)]
        )
        features, lengths = self._features(waveforms, lengths)
        if epoch is not None:
            features = self._augmentation.features(features, lengths, self._seed, epoch, ids)
        return batches.Batch(
            utterances=ids,
            features=features,
            lengths=lengths,
            targets=torch.tensor([token for own in labels for token in own], dtype=torch.int64),
            target_lengths=torch.tensor([len(own) for own in labels], dtype=torch.int64),
            seconds=sum(self.seconds(row) for row in rows),
        )

    def _fits(self, row: Row) -> bool:
        """Whether examples may be joined: short enough together, and with the frames that their labels need."""
        seconds = self.seconds(row)
        return seconds <= self._max_seconds and self._frames(round(seconds * self._features.rate)) >= frames_needed(
            self.labels(row)
        )

    def _frames(self, samples: int) -> int:
        return self._model_frames(self._features.frames(samples))

    def _waveform(self, row: Row, epoch: int | None, needed: int) -> np.ndarray:
        """The samples of a row; as recorded where augmentation would leave fewer frames than `needed`."""
        recorded = [self._read(self.examples[index].utterance) for index in row]
        if epoch is not None:
            rate = self._features.rate
            changed = [
                self._augmentation.waveform(samples, rate, self._seed, epoch, self.examples[index].utterance.id)
                for samples, index in zip(recorded, row, strict=True)
            ]
            if self._frames(sum(map(len, changed))) >= needed:
                recorded = changed
        return np.concatenate(recorded)

    def _read(self, utterance: Utterance) -> np.ndarray:
        rate = self._features.rate
        if self._cache is None:
            return _whole(utterance, rate)
        return self._cache.read(utterance.path, rate, offset=utterance.offset, duration=utterance.duration)
