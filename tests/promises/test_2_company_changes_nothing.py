"""Promise 2: an utterance's emissions are the same alone, in any batch, padded, and from any lossless container."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import asr
from asr import audio

DATA = Path(__file__).parent.parent / "data"
FILES = sorted((DATA / "fsdd").glob("*.flac"))[:16]
TOLERANCE = 1e-5  # of log-probabilities, float32 on the CPU


@pytest.fixture(scope="module")
def recognizer():
    return asr.load(DATA / "model_v1.safetensors", "cpu")


@pytest.fixture(scope="module")
def waveforms():
    return [audio.read(path, 8000).samples for path in FILES]


@pytest.fixture(scope="module")
def alone(recognizer, waveforms):
    return [recognizer.emissions([waveform], 8000)[0][0] for waveform in waveforms]


def worst(ours, theirs):
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("size", [2, 7, 16])
def test_in_a_batch(recognizer, waveforms, alone, size):
    order = np.random.default_rng(size).permutation(16)
    for start in range(0, 16, size):
        chosen = order[start : start + size]
        log_probs, lengths = recognizer.emissions([waveforms[n] for n in chosen], 8000)
        for row, length, n in zip(log_probs, lengths, chosen, strict=True):
            assert len(alone[n]) == length
            assert worst(row[:length], alone[n]) <= TOLERANCE


def test_padded_twice_as_long_with_anything(recognizer, waveforms, alone):
    features = [recognizer.front_end(torch.from_numpy(w)[None], torch.tensor([len(w)]))[0][0] for w in waveforms]
    lengths = torch.tensor([len(own) for own in features])
    padded = torch.full((16, 2 * int(lengths.max()), features[0].shape[1]), float("nan"))
    for row, own in zip(padded, features, strict=True):
        row[: len(own)] = own
    with torch.inference_mode():
        log_probs, frames = recognizer.model(padded, lengths)
    for row, length, expected in zip(log_probs, frames, alone, strict=True):
        assert worst(row[:length], expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("suffix", "coding"),
    [
        ("wav", "PCM_16"),
        ("wav", "PCM_24"),
        ("wav", "FLOAT"),
        ("flac", "PCM_16"),
        ("aiff", "PCM_16"),
        ("au", "PCM_16"),
    ],
)
def test_from_any_lossless_container_at_the_models_rate(recognizer, waveforms, alone, tmp_path, suffix, coding):
    for n, waveform in enumerate(waveforms):
        path = tmp_path / f"{n}.{suffix}"
        soundfile.write(path, waveform, 8000, subtype=coding)
        assert torch.equal(torch.from_numpy(audio.read(path, 8000).samples), torch.from_numpy(waveform))
        assert worst(recognizer.emissions([audio.read(path, 8000).samples], 8000)[0][0], alone[n]) <= TOLERANCE


@pytest.mark.parametrize("seconds", [0.5, 3, 1000])
def test_the_text_is_the_same_in_any_batch_and_order(recognizer, seconds):
    expected = {path: recognizer.transcribe(path).text for path in FILES}
    assert len(set(expected.values())) > 8, "equal texts would prove nothing"
    for order in (FILES, FILES[::-1]):
        heard = recognizer.transcribe_many(order, batch_seconds=seconds)
        assert [one.text for one in heard] == [expected[path] for path in order]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_text_is_the_same_with_any_number_of_threads(recognizer, alone, waveforms, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for waveform, expected in zip(waveforms, alone, strict=True):
            assert worst(recognizer.emissions([waveform], 8000)[0][0], expected) <= TOLERANCE
    finally:
        torch.set_num_threads(before)
