"""The cache of decoded audio: equal to the bit, bounded, safe to delete or damage, calm on a full disk."""

import errno
import logging
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr import audio
from asr.audio import cache as cache_module
from asr.errors import InputError

FRAMES = 4000  # of a recording; 16-bit, so that its file in the cache has 8024 bytes
ENTRY = 2 * FRAMES + 24


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    """Ten recordings, each of its own noise."""
    paths = [tmp_path / f"{number}.flac" for number in range(10)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(-9000, 9000, FRAMES, dtype=np.int16)
        soundfile.write(path, noise, 8000)
    return paths


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that had to be decoded."""
    seen: list[str] = []
    real = cache_module.read

    def read(path: Path, *arguments: object, **named: object) -> audio.Audio:
        seen.append(str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(cache_module, "read", read)
    return seen


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal to the bit: -0.0 is not 0.0."""
    return left.dtype == right.dtype == np.float32 and left.tobytes() == right.tobytes()


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.samples"))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("segment", [{}, {"channel": 0}, {"offset": 0.1}, {"offset": 0.1, "duration": 0.2}])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_recording_is_decoded_once_and_the_same_to_the_bit(tmp_path, recordings, decoded, rate, segment):
    expected = audio.read(recordings[0], rate, **segment).samples
    for _ in range(3):
        cache = audio.SampleCache(tmp_path / "cache", 10**6)
        samples = cache.read(recordings[0], rate, **segment)
        assert same(samples, expected)
        samples[:] = 0  # a caller may write into what it got
    assert decoded == [str(recordings[0])]


def test_samples_of_16_bits_take_two_bytes_and_others_four(tmp_path, recordings):
    cache = audio.SampleCache(tmp_path / "cache", 10**6)
    cache.read(recordings[0], 8000)
    assert size(tmp_path / "cache") == ENTRY
    cache.read(recordings[0], 16000)
    assert size(tmp_path / "cache") == ENTRY + 4 * 2 * FRAMES + 24


@pytest.mark.parametrize(
    "samples",
    [
        np.float32([-1, -32767 / 32768, 0, 1 / 32768, 32767 / 32768]),
        np.float32([1.0, 0.5]),
        np.float32([-1.5, 0.5]),
        np.float32([-0.0, 0.5]),
        np.float32([0.1, 0.3]),
        np.float32([1e9, -1e9, 1e-40]),
    ],
)
def test_any_samples_come_back_to_the_bit(tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    cache = audio.SampleCache(tmp_path / "cache", 10**6)
    for _ in range(2):
        assert same(cache.read(tmp_path / "a.wav", 8000), samples)
    assert len(kept(tmp_path / "cache")) == 1


def test_a_changed_recording_is_decoded_again(tmp_path, recordings, decoded):
    cache = audio.SampleCache(tmp_path / "cache", 10**6)
    before = cache.read(recordings[0], 8000)
    facts = recordings[0].stat()
    recordings[0].write_bytes(recordings[1].read_bytes())
    os.utime(recordings[0], ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert not same(cache.read(recordings[0], 8000), before)
    assert len(decoded) == 2


def test_what_asks_for_something_else_gets_something_else(tmp_path, recordings, decoded):
    cache = audio.SampleCache(tmp_path / "cache", 10**6)
    wanted = [{}, {"channel": 0}, {"offset": 0.1}, {"duration": 0.2}, {"offset": 0.1, "duration": 0.2}]
    for rate in (8000, 16000):
        for segment in wanted:
            assert same(cache.read(recordings[0], rate, **segment), audio.read(recordings[0], rate, **segment).samples)
    assert len(kept(tmp_path / "cache")) == len(decoded) == 10


def test_a_relative_path_is_its_file_wherever_one_stands(tmp_path, recordings, decoded, monkeypatch):
    cache = audio.SampleCache(tmp_path / "cache", 10**6)
    monkeypatch.chdir(tmp_path)
    cache.read("0.flac", 8000)
    cache.read(recordings[0], 8000)
    assert len(decoded) == 1


def test_bad_recordings_are_the_errors_of_reading(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no audio")
    cache = audio.SampleCache(tmp_path / "cache", 10**6)
    for name, message in (
        ("none.wav", "no such file"),
        ("a.wav", "is no audio"),
        ("a\0b", "null"),
    ):
        with pytest.raises(InputError, match=message):
            cache.read(tmp_path / name, 8000)
    assert not (tmp_path / "cache").exists()


def test_the_folder_stays_within_its_bound_and_forgets_what_was_used_longest_ago(tmp_path, recordings, decoded):
    folder = tmp_path / "cache"
    cache = audio.SampleCache(folder, 4 * ENTRY)
    now = time.time() - 1000
    for number, path in enumerate(recordings[:4]):
        cache.read(path, 8000)
        newest = max(kept(folder), key=lambda one: one.stat().st_mtime)
        os.utime(newest, (now + number, now + number))
    cache.read(recordings[0], 8000)  # used now
    cache.read(recordings[4], 8000)
    assert size(folder) <= 4 * ENTRY
    decoded.clear()
    cache.read(recordings[0], 8000)
    cache.read(recordings[4], 8000)
    assert not decoded
    cache.read(recordings[1], 8000)
    assert decoded == [str(recordings[1])]
    for _ in range(3):
        for path in recordings:
            assert same(cache.read(path, 8000), audio.read(path, 8000).samples)
            assert size(folder) <= 4 * ENTRY


def test_what_lay_there_before_counts(tmp_path, recordings):
    folder = tmp_path / "cache"
    for path in recordings:
        audio.SampleCache(folder, 3 * ENTRY).read(path, 8000)
        assert size(folder) <= 3 * ENTRY


@pytest.mark.parametrize("bound", [0, ENTRY - 1])
def test_what_is_larger_than_the_bound_is_not_kept(tmp_path, recordings, bound, caplog):
    cache = audio.SampleCache(tmp_path / "cache", bound)
    assert same(cache.read(recordings[0], 8000), audio.read(recordings[0], 8000).samples)
    assert not (tmp_path / "cache").exists()
    assert not caplog.records


def test_files_of_others_are_left_alone(tmp_path, recordings):
    folder = tmp_path / "cache"
    folder.mkdir()
    others = [folder / name for name in ("thesis.tex", ".notes", "a.samples.bak", ".x.tmp")]
    for other in others:
        other.write_bytes(b"x" * 100000)
        os.utime(other, (0, 0))
    cache = audio.SampleCache(folder, 2 * ENTRY)
    for path in recordings:
        cache.read(path, 8000)
    assert all(other.exists() for other in others)


def test_temporaries_of_killed_processes_are_swept_and_those_of_living_ones_not(tmp_path, recordings):
    folder = tmp_path / "cache"
    folder.mkdir()
    old, new = folder / ".a.samples.1.2.tmp", folder / ".b.samples.3.4.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    audio.SampleCache(folder, 10**6).read(recordings[0], 8000)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "header", "empty", "longer", "other"])
def test_a_damaged_file_is_decoded_again(tmp_path, recordings, decoded, damage):
    cache = audio.SampleCache(tmp_path / "cache", 10**6)
    expected = cache.read(recordings[0], 8000)
    [path] = kept(tmp_path / "cache")
    content = bytearray(path.read_bytes())
    if damage == "other":  # a file of the cache under another's name
        cache.read(recordings[1], 8000)
        [other] = set(kept(tmp_path / "cache")) - {path}
        content = other.read_bytes()
    elif damage == "flip":
        content[1000] ^= 1
    elif damage == "header":
        content[:8] = b"asr-pcm9"
    path.write_bytes({"cut": content[:-2], "empty": b"", "longer": content + b"xx"}.get(damage, content))
    decoded.clear()
    for _ in range(2):
        assert same(cache.read(recordings[0], 8000), expected)
    assert decoded == [str(recordings[0])]


def test_the_folder_may_be_deleted_at_any_time(tmp_path, recordings):
    import shutil

    folder = tmp_path / "cache"
    done = threading.Event()

    def delete() -> None:
        while not done.is_set():
            shutil.rmtree(folder, ignore_errors=True)

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        cache = audio.SampleCache(folder, 5 * ENTRY)
        expected = [audio.read(path, 8000).samples for path in recordings]
        for _ in range(30):
            for path, samples in zip(recordings, expected, strict=True):
                assert same(cache.read(path, 8000), samples)
    finally:
        done.set()
        thread.join()


def test_a_folder_deleted_between_two_steps_is_no_reason_to_give_up(tmp_path, recordings, monkeypatch, caplog):
    def gone(source: Path, target: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    cache = audio.SampleCache(tmp_path / "cache", 10**6)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", gone)
        cache.read(recordings[0], 8000)
    cache.read(recordings[1], 8000)
    assert len(kept(tmp_path / "cache")) == 1
    assert not caplog.records


def test_a_full_disk_is_said_once_and_reading_goes_on(tmp_path, recordings, decoded, monkeypatch, caplog):
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = audio.SampleCache(tmp_path / "cache", 10**6)
    cache.read(recordings[0], 8000)
    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING):
        for path in recordings * 2:
            assert same(cache.read(path, 8000), audio.read(path, 8000).samples)
    [record] = caplog.records
    assert record.message == (
        f"{tmp_path / 'cache'}: not written (No space left on device); going on without keeping decoded audio"
    )
    assert decoded.count(str(recordings[0])) == 1  # what was kept is still read
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".samples"]


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path, recordings, caplog):
    (tmp_path / "file").write_text("")
    cache = audio.SampleCache(tmp_path / "file" / "cache", 10**6)
    for path in recordings:
        assert same(cache.read(path, 8000), audio.read(path, 8000).samples)
    assert len(caplog.records) == 1


def work(folder: str, paths: list[str], seed: int, problems: "multiprocessing.Queue[int]") -> None:
    cache = audio.SampleCache(folder, 5 * ENTRY)
    wrong = 0
    for index in np.random.default_rng(seed).integers(0, len(paths), 300):
        wrong += not same(cache.read(paths[index], 8000), audio.read(paths[index], 8000).samples)
    problems.put(wrong)


def test_several_processes_share_one_folder(tmp_path, recordings):
    context = multiprocessing.get_context("spawn")
    problems = context.Queue()
    arguments = (str(tmp_path / "cache"), [str(path) for path in recordings])
    processes = [context.Process(target=work, args=(*arguments, seed, problems)) for seed in range(3)]
    for process in processes:
        process.start()
    assert [problems.get(timeout=100) for _ in processes] == [0, 0, 0]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert size(tmp_path / "cache") <= 8 * ENTRY  # 5, and at most one more for each process at work
