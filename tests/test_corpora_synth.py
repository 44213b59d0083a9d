"""Synthetic digits: repeatable, in voices that no two splits share, and always called synthetic."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr import corpora, manifest
from asr.corpora import espeak, synth_digits
from asr.corpora.espeak import Request, speak
from asr.errors import AsrError, InputError

needs_espeak = pytest.mark.skipif(
    not __import__("importlib.util", fromlist=["util"]).find_spec("espeakng_loader"),
    reason="needs the extra synth (espeakng-loader)",
)
BREATHY = Request("three seven nine", "en-us+f5", 170, 50, 3)  # this voice draws noise while it speaks
PLAIN = Request("zero one", "en+m6", 150, 40, 0)


@needs_espeak
def test_a_clip_is_a_function_of_its_request_alone() -> None:
    first = [samples for samples, _ in speak([BREATHY, PLAIN, BREATHY])]
    again = [samples for samples, _ in speak([PLAIN, BREATHY])]
    assert np.array_equal(first[0], first[2]) and np.array_equal(first[0], again[1])
    assert np.array_equal(first[1], again[0])
    assert len(first[0]) > 15_000 and np.abs(first[0]).max() > 3000


@needs_espeak
def test_voice_rate_pitch_and_gap_are_heard() -> None:
    import dataclasses

    changes = [{}, {"voice": "en+f2"}, {"rate": 220}, {"pitch": 80}, {"gap": 20}, {"text": "zero nine"}]
    clips = [samples.tobytes() for samples, _ in speak(dataclasses.replace(PLAIN, **change) for change in changes)]
    assert len(set(clips)) == len(clips)
    assert len(clips[2]) < len(clips[0]) < len(clips[4])


@needs_espeak
def test_a_voice_that_does_not_exist_is_named() -> None:
    with pytest.raises(AsrError, match=r"could not say 'zero one' as xx-none .*does not speak"):
        list(speak([Request("zero one", "xx-none", 150, 40, 0)]))


def test_without_the_package_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match=r"needs the package espeakng-loader; install asr\[synth\]") as caught:
        corpora.prepare("synth_digits", tmp_path / "out")
    assert caught.value.status == 2


def test_a_system_that_cannot_fork_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(espeak.os, "fork")
    with pytest.raises(AsrError, match=r"needs a system that can fork"):
        list(speak([PLAIN]))


def test_a_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"synth_digits is made here and has no --source"):
        corpora.prepare("synth_digits", tmp_path, tmp_path)


def test_no_voice_variant_is_in_two_splits_and_digits_are_balanced() -> None:
    planned = list(synth_digits.plan())
    assert planned == list(synth_digits.plan())
    assert len({identity for _, identity, _ in planned}) == 1360
    variants: dict[str, set[str]] = {}
    for split, _, request in planned:
        variants.setdefault(split, set()).add(request.voice.split("+")[1])
    assert {split: len(names) for split, names in variants.items()} == {"train": 48, "dev": 6, "test": 10}
    assert len(set.union(*variants.values())) == 64
    words = [word for split, _, request in planned if split == "train" for word in request.text.split()]
    assert all(400 < words.count(word) < 600 for word in synth_digits.WORDS) and len(words) > 4500
    assert {len(request.text.split()) for _, _, request in planned} == set(range(1, 8))


@needs_espeak
def test_small_set_is_made_described_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth_digits, "SIZES", {"train": 6, "dev": 2, "test": 3})
    said: list[str] = []
    paths = corpora.prepare("synth_digits", tmp_path, download=False, say=said.append)
    assert "synthetic speech (espeak-ng, no human voice)" in said[0]
    folder = tmp_path / "synth_digits"
    known = json.loads((folder / "corpus.json").read_text())
    assert "synthetic speech" in known["title"] and known["note"].startswith("synthetic speech")
    for split, count in (("train", 6), ("dev", 2), ("test", 3)):
        found = manifest.read(paths[split])
        assert len(found) == count
        for line in found:
            samples, rate = soundfile.read(line.path, dtype="int16")
            assert rate == 8000 and line.duration == len(samples) / 8000 and line.extra["synthetic"] is True
            assert 0.02 < np.sqrt(np.mean((samples / 32768) ** 2)) < 0.25
            assert len(samples) / 8000 > 0.15 * len((line.text or "").split())
    corpora.prepare("synth_digits", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "synth_digits" / "corpus.json").read_text())
    assert again["audio_sha256"] == known["audio_sha256"]
    said.clear()
    corpora.prepare("synth_digits", tmp_path, say=said.append)
    assert said == [f"synth_digits: prepared already, in {folder}"]


def test_noise_lies_15_to_40_db_below_the_speech() -> None:
    speech = (8000 * np.sin(np.arange(22050) * 2 * np.pi * 300 / 22050)).astype("<i2")
    for seed in range(5):
        samples = synth_digits.degrade(speech, 22050, np.random.RandomState(seed)).astype(float)
        assert len(samples) == 8000
        phase = np.exp(-2j * np.pi * 300 / 8000 * np.arange(8000))
        tone = 2 * np.real(np.mean(samples * phase) * phase.conj())
        decibels = 10 * np.log10(np.mean(tone**2) / np.mean((samples - tone) ** 2))
        assert 5 < decibels < 45  # the noise is set against 0.1, the level drawn between 0.05 and 0.15
        assert 0.04 < np.sqrt(np.mean((samples / 32768) ** 2)) < 0.17


def test_espeak_is_never_loaded_into_this_process(tmp_path: Path) -> None:
    if "espeakng_loader" in sys.modules:
        pytest.skip("another test imported it")
    maps = Path("/proc/self/maps")
    assert not maps.exists() or "espeak" not in maps.read_text()
