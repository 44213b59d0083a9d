"""Settings that follow from the amount of data: tokens, rate, model, augmentation, epochs and batches.

The rules are a table and a few comparisons, carried on from the recipe of AN4 (37 minutes); they are where to start,
not an optimum. A run's config.yaml holds what they gave, and ``data.sizes: given``: it repeats without them.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence

from asr import audio, manifest, text
from asr.ctc import frames_needed
from asr.errors import InputError
from asr.manifest import Utterance

_WORDS = 50  # different words, at most, where words are the tokens
_WORD_HEARD = 10  # times that each of them occurs in training, at least
_LOOKED_AT = 100  # recordings whose rate is looked at
_HOP = 0.01  # seconds between two frames of the recipe


@dataclasses.dataclass(frozen=True)
class Size:
    """A row of the table, for up to `hours` of training speech."""

    hours: float
    hidden: int
    layers: int
    epochs: int
    batch_seconds: float
    augment: str


TABLE = (
    Size(0.2, 128, 2, 150, 20.0, "strong"),
    Size(0.5, 192, 3, 80, 40.0, "strong"),
    Size(1.5, 192, 3, 60, 60.0, "strong"),
    Size(10.0, 320, 4, 60, 100.0, "strong"),
    Size(120.0, 512, 4, 30, 200.0, "light"),
    Size(float("inf"), 640, 5, 15, 400.0, "light"),
)


def choose(train_path: str, dev_path: str) -> tuple[dict[str, str], str]:
    """The choices for two manifests as overrides (key or group -> value), and one line that says why.

    Raises:
        InputError: a manifest or a recording can't be read, or has no text.
    """
    train, dev = manifest.read(train_path), manifest.read(dev_path)
    if not train:
        raise InputError(f"{train_path}: no utterance in it; nothing to choose sizes by")
    seconds = [_seconds(line) for line in train]
    hours = sum(seconds) / 3600
    size = next(size for size in TABLE if hours <= size.hours)
    texts = [line.text or "" for line in train]
    all_texts = [*texts, *(line.text or "" for line in dev)]
    normalizer = "none" if all(_basic(one) == _plain(one) for one in all_texts) else "basic"
    clean = text.normalizer(normalizer)
    units = _units([clean(one) for one in texts], [clean(line.text or "") for line in dev])
    looked = train[:: max(1, len(train) // _LOOKED_AT)][:_LOOKED_AT]
    narrow = max(audio.info(line.path).rate for line in looked) <= 8000
    everyone = [*zip(seconds, texts, strict=True), *((_seconds(line), line.text or "") for line in dev)]
    stride = 3 if all(_fits(clean(one), length, 3) for length, one in everyone) else 2
    chosen = {
        "text.normalizer": normalizer,
        "text.units": units,
        "features.rate": "8000" if narrow else "16000",
        "features.mels": "40" if narrow else "64",
        "augment": "speed" if units == "words" else size.augment,
        "model": "tiny",
        "model.convolutions": f"[1,{stride}]",
        "model.hidden": str(size.hidden),
        "model.layers": str(size.layers),
        "data.batch_seconds": f"{size.batch_seconds:g}",
        "training.epochs": str(size.epochs),
    }
    different = len({word for one in texts for word in clean(one).split()})
    why = f"{60 * hours:.1f} min of training speech" if hours < 2 else f"{hours:.1f} h of training speech"
    return chosen, f"{why}, {len(train)} utterances, {different} different words"


def overrides(chosen: dict[str, str], given: Collection[str]) -> list[str]:
    """`chosen` as ``key=value``, without what the keys and groups `given` on the command line decide."""
    return [
        f"{key}={value}" for key, value in chosen.items() if key not in given and key.partition(".")[0] not in given
    ]


def _units(train: Sequence[str], dev: Sequence[str]) -> str:
    """Words where they are few, each heard often, and dev has no other; else characters."""
    counts = Counter(word for one in train for word in one.split())
    few = 0 < len(counts) <= _WORDS and min(counts.values()) >= _WORD_HEARD
    return "words" if few and all(word in counts for one in dev for word in one.split()) else "characters"


def _fits(said: str, seconds: float, stride: int) -> bool:
    """Whether `stride` leaves the emission frames that CTC needs for the characters of `said`, and two more."""
    return frames_needed(said) + 2 <= seconds / (_HOP * stride)


def _seconds(line: Utterance) -> float:
    return audio.info(line.path).seconds if line.duration is None else line.duration


_basic, _plain = text.normalizer("basic"), text.normalizer("none")
