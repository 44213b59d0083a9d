"""Digit strings: the same samples everywhere, takes unchanged and dealt evenly, no take in two splits."""

import collections
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr import corpora, manifest
from asr.corpora import fsdd, fsdd_strings
from asr.corpora.source import Recording
from asr.errors import AsrError

DATA = Path(__file__).parent / "data"
# SHA-256 of the samples of all strings: those that the fixtures give, and those of the whole corpus.
FIXTURE_SHA256 = "a63de7ae178b302984cfffae91ca87d0b3a8fca1f5ec5f60249e2b2ab712c293"
FSDD_SHA256 = "a8f22a6c72be76c81fa6cbfcfd79510a8b5985c6734b4d7fdaa7b66b3e3ff64d"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The strings of the fixture recordings, 24 + 8 + 12 of them."""
    monkeypatch.setattr(fsdd_strings, "SIZES", {"train": 24, "dev": 8, "test": 12})
    corpora.prepare("fsdd_strings", tmp_path, DATA)
    return tmp_path / "fsdd_strings"


def strings(folder: Path) -> list[manifest.Utterance]:
    return [line for split in ("train", "dev", "test") for line in manifest.read(folder / f"{split}.jsonl")]


def runs(samples: np.ndarray, line: manifest.Utterance, source: Path) -> list[np.ndarray]:
    """The pauses of a string: what is left when its takes are found, unchanged, one after the other."""
    pauses, at = [], 0
    content = samples.tobytes()
    for take in line.extra["takes"]:
        part = soundfile.read(source / f"{take}.flac", dtype="int16")[0]
        begin = content.find(part.tobytes(), 2 * at)
        assert begin >= 0 and begin % 2 == 0, f"{take} does not stand in {line.id} unchanged"
        pauses.append(samples[at : begin // 2])
        at = begin // 2 + len(part)
    return [*pauses, samples[at:]]


def test_takes_stand_unchanged_between_pauses_of_low_noise(small: Path) -> None:
    for line in strings(small):
        samples, rate = soundfile.read(line.path, dtype="int16")
        assert rate == 8000 and soundfile.info(line.path).subtype == "PCM_16"
        assert line.duration == len(samples) / 8000
        pauses = runs(samples, line, DATA / "fsdd")
        assert len(pauses) == len(line.extra["takes"]) + 1
        assert all(400 <= len(pause) <= 3200 for pause in pauses)
        noise = np.abs(np.concatenate(pauses).astype(int))
        speech = (np.abs(samples.astype(int)).sum() - noise.sum()) / (len(samples) - len(noise))
        assert 0 < noise.mean() < 0.26 * speech


def test_text_speaker_and_takes_agree_and_no_take_is_in_two_splits(small: Path) -> None:
    for line in strings(small):
        assert 1 <= len(line.extra["takes"]) <= 7
        digits, speakers, _ = zip(*(take.split("_") for take in line.extra["takes"]), strict=True)
        assert line.text == " ".join(fsdd.WORDS[int(digit)] for digit in digits)
        assert set(speakers) == {line.speaker}
        assert {fsdd.split_of(take) for take in line.extra["takes"]} == {line.split}


def test_the_strings_of_the_fixtures_are_the_same_on_every_machine(small: Path) -> None:
    digest = hashlib.sha256()
    for line in strings(small):
        digest.update(soundfile.read(line.path, dtype="int16")[0].astype("<i2").tobytes())
    known = json.loads((small / "corpus.json").read_text())
    assert known["audio_sha256"] == digest.hexdigest() == FIXTURE_SHA256
    assert known["licence"].startswith("CC BY-SA 4.0") and "takes of one speaker joined" in known["title"]


def test_a_second_call_touches_nothing(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    said: list[str] = []
    corpora.prepare("fsdd_strings", small.parent, DATA, say=said.append)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before
    assert said == [f"fsdd_strings: prepared already, in {small}"]


def test_every_take_is_used_equally_often_and_never_twice_in_a_string() -> None:
    takes = [Recording(f"{digit}_{name}_{take}", Path(), fsdd.WORDS[digit], name)
             for name in ("a", "b", "c") for digit in range(10) for take in range(5)]  # fmt: skip
    planned = list(fsdd_strings.plan(takes, 200, "test"))
    assert [identity for identity, _ in planned] == sorted({identity for identity, _ in planned})
    assert collections.Counter(chosen[0].speaker for _, chosen in planned) == {"a": 66, "b": 67, "c": 67}
    for name in "abc":
        used = collections.Counter(take.id for _, chosen in planned for take in chosen if take.speaker == name)
        assert len(used) == 50 and max(used.values()) - min(used.values()) <= 1
    assert all(len(set(chosen)) == len(chosen) for _, chosen in planned)
    lengths = collections.Counter(len(chosen) for _, chosen in planned)
    assert sorted(lengths) == [1, 2, 3, 4, 5, 6, 7] and min(lengths.values()) >= 10


def test_the_plan_of_a_speaker_does_not_depend_on_the_others() -> None:
    takes = [Recording(f"{digit}_{name}_0", Path(), "", name) for name in ("a", "b") for digit in range(10)]
    forward = [[take.id for take in chosen] for _, chosen in fsdd_strings.plan(takes, 20, "dev")]
    backward = [[take.id for take in chosen] for _, chosen in fsdd_strings.plan(takes[::-1], 20, "dev")]
    assert forward == backward
    assert forward != [[take.id for take in chosen] for _, chosen in fsdd_strings.plan(takes, 20, "test")]


def test_pauses_of_silent_takes_are_silent_and_noise_has_the_loudness_of_the_quietest_frames() -> None:
    draw = np.random.RandomState(0)
    assert not fsdd_strings.join([np.zeros(800, "<i2")], draw).any()
    take = np.concatenate([np.tile(np.array([10, -10], "<i2"), 400), np.full(8000, 3000, "<i2")])
    joined = fsdd_strings.join([take], draw)
    pause = joined[:400].astype(int)
    assert np.abs(pause).max() <= 20 and np.abs(pause).mean() == pytest.approx(10, rel=0.15)
    pause = fsdd_strings.join([np.full(800, 4000, "<i2")], draw)[:400].astype(int)  # nothing quiet: a quarter
    assert np.abs(pause).max() <= 2000 and np.abs(pause).mean() == pytest.approx(1000, rel=0.15)
    assert joined.dtype == np.dtype("<i2")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AsrError, match=r"file/a.flac: not written"):
        fsdd_strings.write_flac(tmp_path / "file" / "a.flac", np.zeros(9, "<i2"), 8000)


@pytest.mark.slow
def test_the_strings_of_the_whole_corpus_are_the_published_ones(
    asr_data: Callable[[str], Path], tmp_path: Path
) -> None:
    asr_data("fsdd")
    paths = corpora.prepare("fsdd_strings", tmp_path, download=False)
    splits = {split: manifest.read(path) for split, path in paths.items()}
    assert {split: len(found) for split, found in splits.items()} == {"train": 2004, "dev": 100, "test": 200}
    assert json.loads((tmp_path / "fsdd_strings" / "corpus.json").read_text())["audio_sha256"] == FSDD_SHA256
    used = {
        split: collections.Counter(take for line in found for take in line.extra["takes"])
        for split, found in splits.items()
    }
    assert {split: len(counts) for split, counts in used.items()} == {"train": 2520, "dev": 180, "test": 300}
    assert max(used["train"].values()) <= 4 and min(used["train"].values()) >= 2
