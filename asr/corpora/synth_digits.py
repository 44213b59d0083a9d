"""Synthetic speech: digit strings spoken by espeak-ng in many voices; English, 8 kHz, made on this machine.

This is the default where there is neither a copy of a corpus nor a network: synthetic speech, from no
human. It shows that the whole path works and learns; it says nothing about accuracy on people. espeak-ng is
GPL-3 and comes with the extra ``synth`` (see `espeak`); its output is no work of anybody's.

One to seven digits a clip; accent, voice variant, speed (130 to 220 words a minute), pitch, gap between
words, level and noise (15 to 40 dB below the speech) are drawn for each clip. The variants of test are in
no other split, nor those of dev. ``OUT/synth_digits/audio/ID.flac`` holds 16-bit FLAC. The same seed gives
the same clips.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asr import audio
from asr.corpora import prepared
from asr.corpora.download import Say
from asr.corpora.espeak import Request, speak
from asr.corpora.fsdd import WORDS
from asr.corpora.fsdd_strings import MAX_DIGITS, generator, write_flac
from asr.corpora.source import progress
from asr.errors import InputError
from asr.manifest import Utterance

VERSION = 1
SEED = 1
RATE = 8000
SIZES = {"train": 1200, "dev": 60, "test": 100}
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-029", "en-us-nyc", "en-gb-x-rp")
VARIANTS = {
    "train": (
        "m1", "m2", "m4", "m5", "m7", "m8", "f1", "f3", "f4", "f5", "Alex", "Alicia", "Andy",
        "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Lee", "Marco", "Michael", "Mike",
        "Nguyen", "Storm", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "edward",
        "grandma", "ian", "john", "klatt3", "marcelo", "max", "miguel", "pablo", "paul", "quincy",
        "rob", "sandro", "shelby", "steph", "travis", "victor",
    ),
    "dev": ("m3", "Mario", "Reed", "steph2", "norbert", "zac"),
    "test": ("m6", "f2", "Jacky", "Andrea", "adam", "grandpa", "linda", "michel", "robert", "announcer"),
}  # fmt: skip


def prepare(out: Path, source: Path | None, fetch: bool, say: Say) -> dict[str, Path]:
    """Speak the clips and write the manifests of ``OUT/synth_digits``; returns train, dev, test."""
    folder = out / "synth_digits"
    if source is not None:
        raise InputError("synth_digits is made here and has no --source; leave the option out", status=2)
    if done := prepared.ready(folder, VERSION, None):
        return done
    total = sum(SIZES.values())
    say(f"synth_digits: {total} clips of synthetic speech (espeak-ng, no human voice), well under a minute")
    prepared.begin(folder)
    splits: dict[str, list[Utterance]] = {split: [] for split in SIZES}
    digest = hashlib.sha256()
    clips = list(plan())
    spoken = zip(clips, speak(request for _, _, request in clips), strict=True)
    for (split, identity, request), (speech, rate) in progress(spoken, "synth_digits: speaking", say, total):
        samples = degrade(speech, rate, generator(SEED, f"noise {identity}"))
        digest.update(samples.tobytes())
        splits[split].append(_write(folder / "audio" / f"{identity}.flac", samples, request, split))
    facts = {
        "corpus": "synth_digits",
        "title": "Digit strings in synthetic speech (espeak-ng); no human voice",
        "home": "https://github.com/espeak-ng/espeak-ng",
        "licence": "made on this machine; espeak-ng itself is GPL-3",
        "version": VERSION,
        "source": "espeakng-loader",
        "complete": True,
        "audio_sha256": digest.hexdigest(),
        "note": "synthetic speech: says nothing about accuracy on people",
        "seed": SEED,
    }
    return prepared.write(folder, facts, splits)


def plan() -> Iterator[tuple[str, str, Request]]:
    """The split, the id and the request of every clip."""
    for split, size in SIZES.items():
        draw = generator(SEED, f"plan {split}")
        for number in range(size):
            variant = VARIANTS[split][number % len(VARIANTS[split])]
            digits = draw.randint(0, 10, size=draw.randint(1, MAX_DIGITS + 1))
            request = Request(
                text=" ".join(WORDS[digit] for digit in digits),
                voice=f"{ACCENTS[draw.randint(len(ACCENTS))]}+{variant}",
                rate=int(draw.randint(130, 221)),
                pitch=int(draw.randint(20, 81)),
                gap=int(draw.randint(0, 16)),
            )
            yield split, f"{split}_{number:04d}_{variant}", request


def degrade(speech: np.ndarray, rate: int, draw: np.random.RandomState) -> np.ndarray:
    """Speech, int16 (n,) at `rate` Hz, as int16 at 8 kHz with another level and light noise."""
    samples = audio.resample(speech.astype(np.float32) / 32768, rate, RATE).astype(np.float64)
    level = draw.uniform(0.05, 0.15) / max(float(np.sqrt(np.mean(samples**2))), 1e-6)
    noise = draw.standard_normal(len(samples)) * 10 ** (-draw.uniform(15, 40) / 20) * 0.1
    loud = samples * level + noise
    return np.rint(np.clip(loud, -0.999, 0.999) * 32767).astype("<i2")


def _write(path: Path, samples: np.ndarray, request: Request, split: str) -> Utterance:
    write_flac(path, samples, RATE)
    return Utterance(
        audio_filepath=str(path.resolve()),
        duration=len(samples) / RATE,
        text=request.text,
        id=path.stem,
        speaker=request.voice,
        split=split,
        extra={"synthetic": True, "rate": request.rate, "pitch": request.pitch},
    )
