"""From a model file to transcripts: the Python face of transcription.

    recognizer = asr.load("model.safetensors")
    recognizer.transcribe("speech.flac").text

Everything but the audio comes from the model file: features, tokens and text normaliser cannot disagree with training.
"""

import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from asr import audio, batches, calibration, checkpoint, ctc, features, files
from asr.ctc import Hypothesis
from asr.errors import InputError
from asr.manifest import Utterance
from asr.model import AcousticModel, device_named, weights_of
from asr.transcript import Alternative, Transcript, Word, segments

Source = str | os.PathLike[str] | bytes | np.ndarray | Utterance

_WINDOW = 64  # utterances sorted by length together; results still come in input order


class Decoder(Protocol):
    """What turns emissions into text, such as `asr.decode.beam.BeamSearch`; several threads call it at once.

    Where it has `settings`, a dict, every transcript tells them.
    """

    def decode(self, log_probs: Tensor) -> list[Hypothesis]:
        """The hypotheses of one utterance's log-probabilities `(frames, tokens)`, best first."""


@dataclasses.dataclass(frozen=True)
class Emissions:
    """What a model makes of one recording.

    `log_probs` are `(frames, tokens)` float32 on the CPU, `seconds` the recording's, `name` what it is called; `notes`
    are remarks for people, as on a resampled recording.
    """

    log_probs: Tensor
    seconds: float
    name: str
    notes: tuple[str, ...]


def load(path: str | os.PathLike[str], device: str = "auto") -> "Recognizer":
    """Load a model file for transcription.

    Args:
        path: `model.safetensors`.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: not a model file, damaged, of a newer format (status 2), or no such device.
    """
    return Recognizer(path, device)


class Recognizer:
    """A trained model with its front end and tokens; made by `asr.load`."""

    def __init__(self, path: str | os.PathLike[str], device: str = "auto") -> None:
        self.device = device_named(device)
        self.card, weights = checkpoint.load_model(path, lambda card: weights_of(**card["model"]))
        self.model = AcousticModel(**self.card["model"])
        self.model.load_state_dict(weights)
        self.model.to(self.device).eval()
        self.front_end = features.build(**self.card["features"])
        self.tokens: list[str] = self.card["tokens"]
        self.sample_rate: int = self.front_end.rate
        self.frame_seconds: float = self.front_end.hop * self.model.stack * math.prod(self.model.strides)
        self.identity = {"name": Path(path).name, "sha256": files.sha256(path)}

    def emissions(self, waveforms: Sequence[np.ndarray] | Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities `(batch, frames, tokens)` float32 and lengths `(batch,)`, on the CPU.

        Args:
            waveforms: mono float32 waveforms `(samples,)` of any lengths, or a tensor `(batch, samples)`.
            sample_rate: of the waveforms, in hertz; resampled where it is not the model's.

        An utterance's log-probabilities are the same alone and in any batch, to 1e-5.
        """
        rows = [np.asarray(waveform, dtype=np.float32) for waveform in waveforms]
        if sample_rate != self.sample_rate:
            rows = [audio.resample(row, sample_rate, self.sample_rate) for row in rows]
        with torch.inference_mode():
            frames = [self.front_end(torch.from_numpy(row)[None], torch.tensor([len(row)]))[0][0] for row in rows]
            lengths = torch.tensor([len(own) for own in frames])
            padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
            log_probs, lengths = self.model(padded.to(self.device), lengths.to(self.device))
        return log_probs.cpu(), lengths.cpu()

    def transcribe(
        self,
        source: Source,
        sample_rate: int | None = None,
        decoder: Decoder | None = None,
        channel: int | None = None,
    ) -> Transcript:
        """Transcribe one recording.

        Args:
            source: a path, the bytes of a file, a manifest's Utterance, or a mono waveform `(samples,)`.
            sample_rate: in hertz, of a waveform (required there, refused elsewhere: files know theirs).
            decoder: None for greedy, else an object such as `asr.decode.beam.BeamSearch`.
            channel: the channel of the file to take, from 0; None for the mean of all.

        Raises:
            InputError: the recording can't be read.
        """
        if isinstance(source, np.ndarray) != (sample_rate is not None):
            raise InputError("sample_rate goes with a waveform, and only with one: files know theirs", status=2)
        given = _Waveform(source, sample_rate) if isinstance(source, np.ndarray) and sample_rate else source
        [result] = self._decode([self._read(given, channel)], decoder)
        return result

    def transcribe_many(
        self,
        sources: Iterable[Source],
        decoder: Decoder | None = None,
        channel: int | None = None,
        batch_seconds: float = 120.0,
        return_errors: bool = False,
    ) -> Iterator[Any]:
        """Transcribe any number of recordings, lazily, results in input order.

        Args:
            sources: as for `transcribe` (waveforms at the model's rate).
            decoder: as for `transcribe`.
            channel: as for `transcribe`.
            batch_seconds: seconds of audio computed together, padding included.
            return_errors: yield the InputError of a recording that can't be read in its place, and go on.

        Yields:
            Transcript, or InputError where `return_errors`.
        """
        yield from self._each(
            sources, channel, batch_seconds, return_errors, lambda inputs: self._decode(inputs, decoder)
        )

    def emissions_many(
        self,
        sources: Iterable[Source],
        channel: int | None = None,
        batch_seconds: float = 120.0,
        return_errors: bool = False,
    ) -> Iterator[Any]:
        """The emissions of any number of recordings; arguments and order as in `transcribe_many`.

        Yields:
            Emissions, or InputError where `return_errors`.
        """
        yield from self._each(sources, channel, batch_seconds, return_errors, self._emissions)

    def _each(
        self,
        sources: Iterable[Source],
        channel: int | None,
        batch_seconds: float,
        return_errors: bool,
        work: Callable[[Sequence["_Input"]], Sequence[Any]],
    ) -> Iterator[Any]:
        """What `work` makes of each recording, batch by batch; results in input order."""
        remaining = iter(sources)
        while window := list(itertools.islice(remaining, _WINDOW)):
            results: dict[int, Any] = {}
            inputs: dict[int, _Input] = {}
            for number, source in enumerate(window):
                try:
                    inputs[number] = self._read(source, channel)
                except InputError as error:
                    if not return_errors:
                        raise
                    results[number] = error
            numbers = list(inputs)
            durations = [inputs[number].seconds for number in numbers]
            for group in batches.by_length(durations, batch_seconds):
                chosen = [numbers[index] for index in group]
                results |= dict(zip(chosen, work([inputs[number] for number in chosen]), strict=True))
            yield from (results[number] for number in range(len(window)))

    def _read(self, source: "Source | _Waveform", channel: int | None) -> "_Input":
        """The samples of a source at the model's rate."""
        rate = self.sample_rate
        if isinstance(source, np.ndarray):
            source = _Waveform(source, rate)
        if isinstance(source, _Waveform):
            samples = np.ascontiguousarray(source.samples, dtype=np.float32)
            if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
                raise InputError("a waveform must be mono (samples,), not empty, and finite")
            return _Input(
                samples if source.rate == rate else audio.resample(samples, source.rate, rate),
                rate,
                "<waveform>",
                (),
            )
        segment: dict[str, Any] = {}
        name = "<bytes>"
        if isinstance(source, Utterance):
            segment = {"offset": source.offset, "duration": source.duration}
            name, source = source.audio_filepath, source.path
        elif not isinstance(source, bytes):
            name = os.fspath(source)
        read = audio.read(source, rate, channel=channel, **segment)
        notes = [read.note] if read.note else []
        if audio.narrow_band(read.samples, rate):
            notes.append(
                "carries nothing above 4 kHz, as a telephone does; expect more errors than on wide-band speech"
            )
        return _Input(read.samples, rate, name, tuple(notes))

    def _emissions(self, inputs: Sequence["_Input"]) -> list[Emissions]:
        """One batch, each row in memory of its own, so that no row keeps the batch."""
        log_probs, lengths = self.emissions([one.samples for one in inputs], self.sample_rate)
        return [
            Emissions(row[:n].clone(), one.seconds, one.name, one.notes)
            for one, row, n in zip(inputs, log_probs, lengths.tolist(), strict=True)
        ]

    def _decode(self, inputs: Sequence["_Input"], decoder: Decoder | None) -> list[Transcript]:
        """One batch: emissions, hypotheses, transcripts."""
        begun = time.perf_counter()
        log_probs, lengths = self.emissions([one.samples for one in inputs], self.sample_rate)
        if decoder is None:
            hypotheses = [[best] for best in ctc.greedy(log_probs, lengths, self.tokens)]
        else:
            rows = [row[:n] for row, n in zip(log_probs, lengths.tolist(), strict=True)]
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                hypotheses = list(pool.map(decoder.decode, rows))
        settings = self.settings(decoder)
        rtf = (time.perf_counter() - begun) / max(1e-9, sum(one.seconds for one in inputs))
        return [self._transcript(one, heard, settings, rtf) for one, heard in zip(inputs, hypotheses, strict=True)]

    def settings(self, decoder: Decoder | None = None) -> dict[str, Any]:
        """The settings of a decoder as a transcript tells them; with ``calibration`` where its words are calibrated.

        The calibration of a decoder that was tuned for another model is left out.
        """
        own = (
            self.card["decoder"] if decoder is None else getattr(decoder, "settings", {"kind": type(decoder).__name__})
        )
        is_for_another = calibration.among(own, self.identity["sha256"]) is None
        return {key: value for key, value in own.items() if not (key == "calibration" and is_for_another)}

    def _transcript(
        self, one: "_Input", hypotheses: Sequence[Hypothesis], settings: dict[str, Any], rtf: float
    ) -> Transcript:
        heard = hypotheses[0]
        curve = calibration.among(settings, self.identity["sha256"]) or float
        words = [
            Word(word.word, word.start * self.frame_seconds, word.end * self.frame_seconds, curve(word.probability))
            for word in heard.words
        ]
        return Transcript(
            audio_filepath=one.name,
            duration=one.seconds,
            text=heard.text,
            segments=segments(words),
            model=self.identity,
            decoder=settings,
            rtf=rtf,
            notes=one.notes,
            alternatives=tuple(
                Alternative(other.text, other.score, other.acoustic, other.lm, other.bonus, other.hot)
                for other in hypotheses
                if len(hypotheses) > 1
            ),
        )


@dataclasses.dataclass(frozen=True)
class _Waveform:
    samples: np.ndarray
    rate: int


@dataclasses.dataclass(frozen=True)
class _Input:
    """A recording at the model's rate, its name, and what was done to it."""

    samples: np.ndarray
    rate: int
    name: str
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate
