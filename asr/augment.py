"""Augmentation: speed, gain, SpecAugment, joined utterances, each a function of (seed, epoch, utterance) alone.

Order of an epoch, workers, ranks, batch composition and restarts cannot change what an utterance becomes:
every draw comes from a generator of its own, keyed by a hash.

Speed perturbation resamples, so pitch and tempo change together (Ko et al., "Audio augmentation for speech
recognition", Interspeech 2015). Masks are those of SpecAugment (Park et al., Interspeech 2019), without its
time warping; the longest time mask is a share of the utterance (Park et al., ICASSP 2020).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import soxr
import torch

from asr.errors import InputError

_RANGES = {
    "speed_min": (0.5, 2.0),
    "speed_max": (0.5, 2.0),
    "gain_db": (0.0, 60.0),
    "frequency_masks": (0, 20),
    "frequency_width": (0, 256),
    "time_masks": (0, 100),
    "time_share": (0.0, 1.0),
    "join": (1, 100),
}
# Of soxr's qualities the quickest with a full pass band (0.2 dB down at 0.8 of half the rate; images: -110).
# It resamples by a ratio of small whole numbers exactly (noise at -96 dB), by any other through interpolation
# (-73 dB), so speeds are whole thousandths.
_QUALITY = "MQ"
_SPEED_STEPS = 1000


def generator(seed: int, epoch: int, utterance: str, purpose: str) -> np.random.Generator:
    """The source of the draws for one purpose on one utterance in one epoch; the same on every machine.

    Args:
        seed: of the run.
        epoch: from 0.
        utterance: its id.
        purpose: what is drawn (``speed``, ``masks``, ``batches``), so that draws don't depend on one another.
    """
    key = json.dumps([int(seed), int(epoch), utterance, purpose])
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What may be done to an utterance; the defaults do nothing.

    Args:
        speed_min: slowest speed, 0.5 to 2 (1: as recorded); duration and pitch change by the factor.
        speed_max: fastest speed, from `speed_min` to 2.
        gain_db: level changes by up to so many decibels up or down, 0 to 60.
        frequency_masks: bands of features set to 0, 0 to 20.
        frequency_width: the widest of them, in features, 0 to 256.
        time_masks: stretches of frames set to 0, 0 to 100.
        time_share: the longest of them, as a share of the utterance's frames, 0 to 1.
        join: utterances of one speaker that may be joined into one, 1 to 100.

    Raises:
        InputError: a value is out of its range, or has no effect (status 2).
    """

    speed_min: float = 1.0
    speed_max: float = 1.0
    gain_db: float = 0.0
    frequency_masks: int = 0
    frequency_width: int = 0
    time_masks: int = 0
    time_share: float = 0.0
    join: int = 1

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            _check(name, getattr(self, name), least, most)
        if self.speed_min > self.speed_max:
            raise InputError(
                f"augment.speed_min={self.speed_min}: is above augment.speed_max={self.speed_max}", status=2
            )
        for masks, extent in (("frequency_masks", "frequency_width"), ("time_masks", "time_share")):
            if bool(getattr(self, masks)) != bool(getattr(self, extent)):
                zero, other = (extent, masks) if getattr(self, masks) else (masks, extent)
                value = getattr(self, other)
                raise InputError(
                    f"augment.{other}={value}: has no effect while augment.{zero} is 0; set both or neither",
                    status=2,
                )

    def rows(
        self, speakers: Sequence[str | None], seed: int, epoch: int, fits: Callable[[tuple[int, ...]], bool]
    ) -> list[tuple[int, ...]]:
        """Which utterances of an epoch are joined: 1 to `join` of one speaker, each utterance once.

        Args:
            speakers: of the utterances; those without a name count as one speaker.
            seed: of the run.
            epoch: from 0.
            fits: whether so many utterances may be one; those that may not stay apart.
        """
        if self.join == 1:
            return [(number,) for number in range(len(speakers))]
        draw = generator(seed, epoch, "", "join")
        rows: list[tuple[int, ...]] = []
        room = 0
        for number in sorted(draw.permutation(len(speakers)).tolist(), key=lambda number: speakers[number] or ""):
            same = rows and speakers[rows[-1][0]] == speakers[number]
            if same and room and fits((*rows[-1], number)):
                rows[-1] = (*rows[-1], number)
                room -= 1
            else:
                rows.append((number,))
                room = int(draw.integers(self.join))
        return rows

    def waveform(self, samples: np.ndarray, rate: int, seed: int, epoch: int, utterance: str) -> np.ndarray:
        """`samples` `(n,)` float32 at `rate` Hz at another speed and level, `(about n / speed,)` float32."""
        if self.speed_min != 1 or self.speed_max != 1:
            drawn = generator(seed, epoch, utterance, "speed").uniform(self.speed_min, self.speed_max)
            samples = at_speed(samples, rate, drawn)
        if self.gain_db:
            gain = generator(seed, epoch, utterance, "gain").uniform(-self.gain_db, self.gain_db)
            samples = samples * np.float32(10 ** (gain / 20))
        return samples

    def features(
        self, features: torch.Tensor, lengths: torch.Tensor, seed: int, epoch: int, utterances: Sequence[str]
    ) -> torch.Tensor:
        """Normalised features with masks set to 0, their mean.

        At least one frame and one feature of an utterance is never masked.

        Args:
            features: `(batch, frames, size)`; not changed.
            lengths: `(batch,)` int64, the rows' own frames.
            seed: of the run.
            epoch: from 0.
            utterances: ids of the rows.

        Returns:
            `(batch, frames, size)`; `features` itself where there is nothing to mask.
        """
        if not (self.frequency_masks or self.time_masks) or not features.numel():
            return features
        _, frames, size = features.shape
        keep_time = np.ones((len(utterances), frames, 1), bool)
        keep_feature = np.ones((len(utterances), 1, size), bool)
        for row, (utterance, own) in enumerate(zip(utterances, lengths.tolist(), strict=True)):
            draw = generator(seed, epoch, utterance, "masks")
            _mask(keep_feature[row, 0], draw, self.frequency_masks, min(self.frequency_width, size - 1))
            _mask(keep_time[row, :own, 0], draw, self.time_masks, int(self.time_share * own))
        time, feature = (torch.from_numpy(~keep).to(features.device) for keep in (keep_time, keep_feature))
        return features.masked_fill(time, 0.0).masked_fill_(feature, 0.0)


def at_speed(samples: np.ndarray, rate: int, speed: float) -> np.ndarray:
    """`samples` `(n,)` float32 played `speed` times as fast (to a thousandth); 2 is half as long."""
    steps = round(speed * _SPEED_STEPS)
    if steps == _SPEED_STEPS or not len(samples):
        return samples
    return soxr.resample(samples, rate * steps, rate * _SPEED_STEPS, _QUALITY)


def _mask(keep: np.ndarray, draw: np.random.Generator, count: int, widest: int) -> None:
    """Clear `count` stretches of `keep` `(n,)` of 0 to `widest` elements; one at least, at an end, stays set."""
    if widest <= 0:
        return
    *places, spared = draw.random(2 * count + 1).tolist()  # one call: integers() would cost ten times as much
    for extent, place in zip(places[::2], places[1::2], strict=True):
        width = int(extent * (widest + 1))
        start = int(place * (len(keep) - width + 1))
        keep[start : start + width] = False
    if not keep.any():
        keep[-1 if spared < 0.5 else 0] = True


def _check(name: str, value: Any, least: float, most: float) -> None:
    kind = int if isinstance(least, int) else int | float
    if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value) or not least <= value <= most:
        number = "a whole number" if isinstance(least, int) else "a number"
        raise InputError(f"augment.{name}={value}: choose {number} from {least:g} to {most:g}", status=2)
