"""A tiny corpus for tests: words of tones, learnt by a tiny model in seconds, and a recipe for it."""

from pathlib import Path

import numpy as np
import soundfile

from asr import manifest
from asr.manifest import Utterance

RATE = 8000
HERTZ = {"a": 500.0, "b": 1100.0, "c": 2300.0}
RECIPE = """\
# Words of tones
defaults:
  - base
  - override model: tiny
  - override augment: light
  - _self_
data:
  train: {folder}/train.jsonl
  dev: {folder}/dev.jsonl
  batch_seconds: 6.0
  cache_gigabytes: 0.0
features:
  rate: 8000
  mels: 20
model:
  hidden: 24
  layers: 1
  dropout: 0.1
optim:
  lr: 0.01
training:
  epochs: {epochs}
threads: 1
out: {folder}/runs
"""


def waveform(text: str, draw: np.random.Generator) -> np.ndarray:
    """Each letter a tone of about 0.12 s in light noise, a pause behind it and a longer one between words."""
    pieces = []
    for letter in text:
        seconds = draw.uniform(0.1, 0.14)
        time = np.arange(int(seconds * RATE)) / RATE
        tone = np.sin(2 * np.pi * HERTZ[letter] * draw.uniform(0.97, 1.03) * time) if letter in HERTZ else 0 * time
        pieces += [0.3 * tone, np.zeros(int(0.04 * RATE))]
    samples = np.concatenate(pieces)
    return (samples + 0.003 * draw.standard_normal(len(samples))).astype(np.float32)


def letters(draw: np.random.Generator) -> str:
    """A word of 1 to 3 letters."""
    return "".join(draw.choice(list(HERTZ), draw.integers(1, 4)))


def write_corpus(folder: Path, train: int = 40, dev: int = 8, seed: int = 0, vocabulary: tuple[str, ...] = ()) -> Path:
    """Write FLAC files and manifests train.jsonl, dev.jsonl; returns the folder."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("dev", dev)):
        utterances = []
        for number in range(count):
            words = [draw.choice(vocabulary) if vocabulary else letters(draw) for _ in range(draw.integers(1, 4))]
            samples = waveform(" ".join(words), draw)
            name = f"{split}{number}.flac"
            soundfile.write(folder / name, samples, RATE, subtype="PCM_16")
            speaker = f"s{number % 3}"
            utterances.append(Utterance(name, len(samples) / RATE, " ".join(words), id=name[:-5], speaker=speaker))
        manifest.write(folder / f"{split}.jsonl", utterances)
    return folder


def write_recipe(folder: Path, epochs: int = 2) -> Path:
    """Write tones.yaml for the corpus in `folder`; returns its path."""
    path = folder / "tones.yaml"
    path.write_text(RECIPE.format(folder=folder, epochs=epochs))
    return path
