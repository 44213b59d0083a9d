"""Digit strings made of FSDD takes: one to seven digits of one speaker, joined with pauses; 8 kHz.

Origin and licence: adapted from the Free Spoken Digit Dataset (see `fsdd`), so CC BY-SA 4.0 too. What was
changed: takes of one speaker stand one after the other, each unchanged to the sample, with 0.05 to 0.4 s of
low noise before, between and after them, which is as loud as the quietest 10 ms of the string's own takes.

A string is made from takes of its own split only (see `fsdd`), so no take is in two splits; within a split
every take of a speaker is used equally often, give or take one. Everything follows from the seed by integer
arithmetic on numpy's `RandomState`, whose stream is frozen for good: the same samples on every platform and
with every version. ``OUT/fsdd_strings/audio/ID.flac`` holds 16-bit FLAC; the key ``takes`` of a manifest
line names the takes.
"""

import functools
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asr.corpora import prepared
from asr.corpora.download import Say
from asr.corpora.fsdd import CORPUS as FSDD
from asr.corpora.fsdd import split_of
from asr.corpora.source import Recording, obtain, progress, read_samples
from asr.errors import AsrError
from asr.manifest import Utterance

VERSION = 1
SEED = 20200812
SIZES = {"train": 2004, "dev": 100, "test": 200}  # strings; train uses each of its takes three or four times
MAX_DIGITS = 7
RATE = 8000
_PAUSE = (RATE // 20, 2 * RATE // 5)  # samples: 0.05 to 0.4 s
_FRAME = RATE // 100  # samples: 10 ms


def prepare(out: Path, source: Path | None, fetch: bool, say: Say) -> dict[str, Path]:
    """Write the strings and the manifests of ``OUT/fsdd_strings``; returns train, dev, test."""
    folder = out / "fsdd_strings"
    if done := prepared.ready(folder, VERSION, source):
        return done
    copy = obtain(FSDD, out, source, fetch, say)
    prepared.begin(folder)
    splits: dict[str, list[Utterance]] = {}
    digest, read = hashlib.sha256(), functools.cache(read_samples)
    for split, size in SIZES.items():
        takes = [one for one in copy.recordings if split_of(one.id) == split]
        strings = list(plan(takes, size, split)) if takes else []
        splits[split] = []
        for identity, chosen in progress(strings, f"fsdd_strings: {split}", say, len(strings)):
            samples = join([read(take.path)[0] for take in chosen], generator(SEED, f"noise {identity}"))
            digest.update(samples.tobytes())
            splits[split].append(_write(folder / "audio" / f"{identity}.flac", samples, chosen, split))
    facts = prepared.about(FSDD, copy, VERSION) | {
        "corpus": "fsdd_strings",
        "title": f"Digit strings made of {FSDD.title}: takes of one speaker joined with pauses",
        "fsdd_sha256": copy.sha256,
        "audio_sha256": digest.hexdigest(),
        "seed": SEED,
    }
    return prepared.write(folder, facts, splits)


def plan(takes: list[Recording], size: int, split: str) -> Iterator[tuple[str, list[Recording]]]:
    """Which takes stand in which string: `size` ids with their takes, the speakers in equal shares."""
    speakers = sorted({take.speaker for take in takes})
    for place, speaker in enumerate(speakers):
        draw = generator(SEED, f"plan {split} {speaker}")
        own = sorted((take for take in takes if take.speaker == speaker), key=lambda take: take.id)
        deck: list[Recording] = []
        for number in range(size * place // len(speakers), size * (place + 1) // len(speakers)):
            chosen: list[Recording] = []
            for _ in range(draw.randint(1, MAX_DIGITS + 1, dtype=np.int64)):
                deck = deck or [own[index] for index in draw.permutation(len(own))]
                fresh = [index for index, take in enumerate(deck) if take not in chosen]
                chosen.append(deck.pop(fresh[-1] if fresh else -1))
            yield f"{split}_{number:04d}_{speaker}", chosen


def join(takes: list[np.ndarray], draw: np.random.RandomState) -> np.ndarray:
    """The takes, int16, with a pause of low noise before, between and after them; int16 (n,)."""
    loudness = _floor(takes)
    parts = []
    for take in [*takes, None]:
        pause = draw.randint(_PAUSE[0], _PAUSE[1] + 1, dtype=np.int64)
        parts.append(draw.randint(-loudness, loudness + 1, size=pause, dtype=np.int64).astype("<i2"))
        if take is not None:
            parts.append(take)
    return np.concatenate(parts).astype("<i2")


def _floor(takes: list[np.ndarray]) -> int:
    """The peak of uniform noise as loud (mean absolute value) as the quietest 10 ms of the takes.

    Takes are cut tightly, and some hold no quiet 10 ms: a quarter of their own loudness is the limit.
    """
    loud = [np.abs(take.astype(np.int64)) for take in takes]
    frames = [one[at : at + _FRAME].sum() for one in loud for at in range(0, len(one) - _FRAME + 1, _FRAME)]
    quietest = int(min(frames, default=0)) // _FRAME
    mean = sum(int(one.sum()) for one in loud) // sum(map(len, loud))
    return 2 * min(quietest, mean // 4)


def generator(seed: int, purpose: str) -> np.random.RandomState:
    """A generator for one purpose, whatever else was drawn before."""
    words = np.frombuffer(hashlib.sha256(f"{seed} {purpose}".encode()).digest(), "<u4")
    return np.random.RandomState(words.astype(np.int64))


def _write(path: Path, samples: np.ndarray, takes: list[Recording], split: str) -> Utterance:
    write_flac(path, samples, RATE)
    return Utterance(
        audio_filepath=str(path.resolve()),
        duration=len(samples) / RATE,
        text=" ".join(take.text for take in takes),
        id=path.stem,
        speaker=takes[0].speaker,
        split=split,
        extra={"takes": [take.id for take in takes]},
    )


def write_flac(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write int16 samples (n,) as 16-bit FLAC. Raises AsrError where the folder can't be written."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, samples, rate, subtype="PCM_16", format="FLAC")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())
    except OSError as error:
        raise AsrError(
            f"{path}: not written ({error.strerror or error}); make room or choose another folder"
        ) from error
