"""Files that can't be read, or not as they are asked for: one line each, with the name of the file."""

import io
import os
import re
import struct
import sys

import numpy as np
import pytest
import soundfile

from asr import audio
from asr.audio import containers, reading, source
from asr.errors import InputError

CHUNKED = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF")
CUT_OFF = r"is cut off: its header promises 2\.000 s \(32000 frames\), 1\.\d+ s \(\d+\) are there; copy or record"


def encode(samples: np.ndarray, rate: int = 16000, kind: str = "WAV", coding: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=coding)
    return file.getvalue()


def sound(frames: int = 32000, channels: int = 1) -> np.ndarray:
    """Noise of 16-bit values: incompressible, so that half of a file is half of the sound."""
    return np.random.default_rng(0).integers(-9000, 9000, (frames, channels), dtype=np.int16)


def changed(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def refusal(given: object, rate: int = 16000, **arguments: object) -> InputError:
    """The error of `read`, the same as that of `blocks`, and one line."""
    with pytest.raises(InputError) as caught:
        audio.read(given, rate, **arguments)
    with pytest.raises(InputError) as again:
        list(audio.blocks(given, rate, **arguments))
    assert str(caught.value) == str(again.value)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_no_file_is_named(tmp_path):
    assert str(refusal(tmp_path / "none.wav")) == f"{tmp_path}/none.wav: no such file; check the path"
    assert str(refusal(tmp_path)) == f"{tmp_path}: is a folder; name an audio file in it"
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: is a pipe or a device; save the recording as a file" in str(refusal(tmp_path / "pipe"))
    assert "/dev/zero: is a pipe or a device" in str(refusal("/dev/zero"))
    assert re.search(r"can't be opened \(.*null.*\); check its path", str(refusal("a\0b")))
    assert "can't be opened (File name too long)" in str(refusal("x" * 5000))
    assert "can't be opened (Not a directory)" in str(refusal(f"{__file__}/a.wav"))
    assert refusal(tmp_path).status == 1


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "secret.wav"
    path.write_bytes(encode(sound()))

    def refuse(*arguments: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")  # the tests may run as root, whom nothing is denied

    monkeypatch.setattr(source, "open", refuse, raising=False)
    expected = f"{path}: can't be opened (Permission denied); check its path and permissions"
    assert str(refusal(path)) == expected


def test_empty_files_and_other_files_are_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    assert str(refusal(tmp_path / "a.wav")) == f"{tmp_path}/a.wav: is empty (0 bytes); record or copy it again"
    assert "<bytes>: is empty" in str(refusal(b""))
    assert "<stream>: is empty" in str(refusal(io.BytesIO()))
    for content in (b"x", b"hello, world", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"#!/bin/sh\n", b"\0" * 1000):
        assert "<bytes>: is no audio of a known container (wav, flac, ogg" in str(refusal(content))


@pytest.mark.parametrize("given", [5, None, 1.5, ["a.wav"], np.zeros(5)])
def test_what_is_no_source_is_refused(given):
    error = refusal(given)
    assert "is no audio source; give a path, bytes or a binary file" in str(error)
    assert error.status == 2


class Broken(io.BytesIO):
    """A file on a disk that goes away."""

    name = "disk"

    def read(self, count: int = -1) -> bytes:
        if self.tell() > 10000:
            raise OSError("the disk is gone")
        return super().read(count)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_file_object_that_fails_is_no_short_recording(kind, capfd):
    assert "disk: reading failed (the disk is gone); copy it to a local disk" in str(
        refusal(Broken(encode(sound(), kind=kind)))
    )
    assert capfd.readouterr() == ("", "")


def test_a_text_file_object_is_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(encode(sound()))
    with open(tmp_path / "a.wav", encoding="latin-1") as file:
        error = refusal(file)
    assert "a.wav: is opened as text; open it in binary mode ('rb')" in str(error)
    assert error.status == 2


class Strange:
    def read(self, count: int = -1) -> bytes:
        return b""


def test_a_file_object_without_the_usual_methods_is_refused():
    assert "<stream>: can't be read (" in str(refusal(Strange()))


def test_a_pipe_is_taken_into_memory_up_to_a_limit(monkeypatch):
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    content = encode(sound())
    monkeypatch.setattr(source, "MAX_PIPE_BYTES", len(content))
    assert len(audio.read(Pipe(content), 16000).samples) == 32000
    monkeypatch.setattr(source, "MAX_PIPE_BYTES", len(content) - 1)
    with pytest.raises(InputError, match="<stream>: more than 64043 bytes from a pipe; save it as a file first"):
        audio.read(Pipe(content), 16000)


@pytest.mark.parametrize(
    ("kind", "coding"),
    [("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("AU", "G721_32"), ("CAF", "ALAC_16")],
)
def test_codings_outside_the_closed_list_are_refused(kind, coding):
    rate = 8000 if coding == "GSM610" else 16000
    content = encode(sound(), rate, kind, coding)
    assert f"<bytes>: {kind} with coding {coding} is not read; convert it to FLAC" in str(refusal(content))


@pytest.mark.parametrize("kind", ["SDS", "SVX", "VOC", "PAF", "IRCAM", "MAT5", "PVF", "HTK", "AVR", "MPC2K"])
def test_containers_outside_the_closed_list_never_reach_libsndfile(kind, monkeypatch):
    content = encode(sound(), kind=kind)
    monkeypatch.delattr(containers, "_Sound")
    assert "is no audio of a known container" in str(refusal(content))


def test_an_id3_tag_hides_no_other_container():
    tag = b"ID3\x04\x00\x00\x00\x00\x00\x00"
    assert "is no audio of a known container" in str(refusal(tag + encode(sound(), kind="SDS")))
    assert "is no audio of a known container" in str(refusal(tag * 1000))


@pytest.mark.parametrize("kind", [*CHUNKED, "NIST", "FLAC"])
def test_a_file_that_lost_its_end_is_not_silently_short(kind):
    content = encode(sound(), kind=kind)
    for part in (content[: len(content) * 3 // 4], content[:-70]):
        message = f"(?:{CUT_OFF}|malformed)" if kind == "CAF" else CUT_OFF  # libsndfile sees it by itself there
        assert re.search(message, str(refusal(part)))
    if kind != "FLAC":  # whose header can't tell
        with pytest.raises(InputError, match=CUT_OFF):
            audio.info(content[:-70])


def test_the_seconds_found_are_those_that_are_there():
    content = encode(sound())
    assert "2.000 s (32000 frames), 1.500 s (24000) are there" in str(refusal(content[: 44 + 48000]))
    flac = str(refusal(encode(sound(), kind="FLAC")[:-100]))
    assert 24000 < int(flac.split("s (")[-1].split(")")[0]) < 32000


def test_a_cut_file_may_still_be_read_where_it_is_whole():
    flac = encode(sound(), kind="FLAC")[:-100]
    assert len(audio.read(flac, 16000, duration=1.0).samples) == 16000


@pytest.mark.parametrize(
    ("kind", "coding", "message"),
    [
        ("OGG", "VORBIS", r"is cut off within its last Ogg page, \d\.\d+ s are there"),
        ("OGG", "OPUS", r"is cut off within its last Ogg page, \d\.\d+ s are there"),
        ("MP3", "MPEG_LAYER_III", r"header promises 2\.000 s \(32000 frames\), \d\.\d+ s \(\d+\) are there"),
    ],
)
def test_a_compressed_file_that_lost_its_end_is_not_silently_short(kind, coding, message):
    content = encode(sound(), kind=kind, coding=coding)
    with pytest.raises(InputError, match=message):
        audio.read(content[: len(content) * 3 // 4], 16000)


def test_a_header_alone_is_damaged_or_holds_nothing():
    for kind, coding in [
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
        ("NIST", "PCM_16"),
    ]:
        content = encode(sound(), kind=kind, coding=coding)
        assert "<bytes>: is damaged or cut off (" in str(refusal(content[:60]))
    assert "(no frame of sound found)" in str(refusal(encode(sound(), kind="MP3", coding="MPEG_LAYER_III")[:60]))


@pytest.mark.parametrize("kind", [*CHUNKED, "NIST"])
def test_no_samples_are_no_recording(kind):
    content = encode(sound(0), kind=kind)
    with pytest.raises(InputError, match="<bytes>: holds no samples; record it again"):
        audio.read(content, 16000)
    with pytest.raises(InputError, match="holds no samples"):
        audio.info(content)


def test_a_hundred_bytes_that_promise_hours_are_cut_off():
    content = encode(sound(28))
    assert len(content) == 100
    lie = changed(content, 40, struct.pack("<I", 16000 * 2 * 3600 * 10))
    message = "header promises 36000.000 s (576000000 frames), 0.002 s (28) are there"
    assert message in str(refusal(lie))
    with pytest.raises(InputError, match="header promises 36000"):
        audio.info(lie)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFF000, 0x80000000, 0x7FFFFFFF - 36])
def test_a_wav_written_into_a_pipe_is_read_to_its_end(size):
    content = encode(sound())
    streamed = changed(changed(content, 40, struct.pack("<I", size)), 4, struct.pack("<I", min(size + 36, 2**32 - 1)))
    np.testing.assert_array_equal(audio.read(streamed, 16000).samples, audio.read(content, 16000).samples)
    assert audio.info(streamed).frames == 32000


@pytest.mark.parametrize("whole", [0, 8, 0xFFFFFFFF])
def test_a_wav_that_was_never_finished_is_read_to_its_end(whole, tmp_path):
    content = encode(sound())
    unfinished = changed(changed(content, 40, bytes(4)), 4, struct.pack("<I", whole))
    (tmp_path / "a.wav").write_bytes(unfinished)
    for given in (unfinished, tmp_path / "a.wav"):
        np.testing.assert_array_equal(audio.read(given, 16000).samples, audio.read(content, 16000).samples)


def test_a_size_that_counts_the_header_too_is_forgiven():
    content = encode(sound())
    sloppy = changed(content, 40, struct.pack("<I", 64000 + 44))
    assert len(audio.read(sloppy, 16000).samples) == 32000


def with_total(content: bytes, total: int) -> bytes:
    """A FLAC file whose header gives that number of samples (36 bits, from bit 4 of byte 21)."""
    return changed(content, 21, bytes([content[21] & 0xF0 | total >> 32]) + (total & 0xFFFFFFFF).to_bytes(4, "big"))


def test_a_flac_header_may_lie_or_be_silent_about_the_length():
    content = encode(sound(), kind="FLAC")
    np.testing.assert_array_equal(audio.read(with_total(content, 0), 16000).samples, audio.read(content, 16000).samples)
    assert audio.info(with_total(content, 0)).frames == 32000
    assert "header promises 36000.000 s (576000000 frames), 2.000 s (32000) are" in str(
        refusal(with_total(content, 576000000))
    )
    few = with_total(content, 32100)  # 0.006 s more than there are
    assert "header promises 2.006 s (32100 frames), 2.000 s (32000) are there" in str(refusal(few))
    assert "<bytes>: lasts 4294967 s, and at most 86400 s are read" in str(refusal(with_total(content, 2**36 - 1)))
    assert len(audio.read(with_total(content, 2**36 - 1), 16000, duration=1.5).samples) == 24000


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e30, "1e\\+30")])
def test_samples_that_are_no_sound_are_named_with_their_place(value, shown):
    samples = np.zeros((400000, 2))
    samples[300000, 1] = value
    content = encode(samples, kind="WAV", coding="FLOAT")
    message = rf"<bytes>: the sample at 18\.7500 s \(frame 300000, channel 1\) is {shown}, no sound; record or"
    for arguments in ({}, {"offset": 5.0}, {"channel": 0}):
        with pytest.raises(InputError, match=message):
            audio.read(content, 16000, **arguments)
    assert len(audio.read(content, 16000, duration=18.0).samples) == 288000


def test_rates_and_channels_out_of_bounds_are_refused():
    content = encode(sound())
    for rate in (1, 999, 768001, 2**31 - 1):
        with pytest.raises(InputError, match=rf"a rate of {rate} Hz is not read, only 1000 to 768000 Hz"):
            audio.read(changed(content, 24, struct.pack("<I", rate)), 16000)
    with pytest.raises(InputError, match="65 channels are not read, at most 64; split the file"):
        audio.read(encode(sound(10, 65)), 16000)


def test_a_channel_that_is_not_there_is_refused():
    for channel in (-1, 2, 100):
        error = refusal(encode(sound(channels=2)), channel=channel)
        assert str(error) == f"<bytes>: has no channel {channel}: it has 2, counted from 0; choose another"


def test_a_segment_behind_the_end_is_refused():
    content = encode(sound())
    assert "ends at 2.000 s, before the segment at offset 2 s; correct the offset" in str(refusal(content, offset=2.0))
    assert "ends at 2.000 s, before the end of the segment at 3.000 s (offset 1 s and duration 2 s)" in str(
        refusal(content, offset=1.0, duration=2.0)
    )
    streamed = with_total(encode(sound(), kind="FLAC"), 0)
    assert "ends at 2.000 s, before the segment at offset 5 s" in str(refusal(streamed, offset=5.0))
    assert "ends at 2.000 s, before the end of the segment at 3.000 s" in str(
        refusal(streamed, offset=1.0, duration=2.0)
    )


def test_a_recording_that_is_too_long_is_refused_and_a_part_of_it_read():
    for content in (encode(sound()), with_total(encode(sound(), kind="FLAC"), 0)):
        assert "and at most 1.5 s are read; cut it into shorter files" in str(refusal(content, max_seconds=1.5))
        assert len(audio.read(content, 16000, max_seconds=2.0).samples) == 32000
        assert len(audio.read(content, 16000, max_seconds=1.5, duration=1.0).samples) == 16000
    assert reading.MAX_SECONDS == 86400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offset": -1.0}, r"offset -1\.0 is no number of seconds from 0"),
        ({"offset": float("nan")}, "offset nan is no number of seconds from 0"),
        ({"offset": float("inf")}, "offset inf is no number of seconds from 0"),
        ({"duration": 0.0}, r"duration 0\.0 is no number of seconds above 0"),
        ({"duration": float("inf")}, "duration inf is no number of seconds above 0"),
        ({"max_seconds": 0.0}, r"max_seconds 0\.0 is no number of seconds above 0"),
        ({"rate": 0}, "rate 0 is no whole number of 1000 to 768000 Hz"),
        ({"rate": 16000.0}, r"rate 16000\.0 is no whole number"),
    ],
)
def test_wrong_arguments_are_refused_before_work(arguments, message):
    for function in (audio.read, audio.blocks):
        with pytest.raises(InputError, match=message) as caught:
            function("none.wav", **({"rate": 16000} | arguments))
        assert caught.value.status == 2


def test_blocks_and_resampling_check_their_own_arguments():
    for seconds in (0.0, 1e-6, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"blocks of .* s can't be read; give at least a sample's length"):
            audio.blocks("none.wav", 16000, seconds=seconds)
    with pytest.raises(InputError, match="rate 0 is no whole number"):
        audio.resample(np.zeros(5, np.float32), 0, 16000)


def test_no_file_stays_open():
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0  # noqa: PTH208
    if not before:
        pytest.skip("needs /proc")
    for _ in range(20):
        with pytest.raises(InputError):
            audio.read(__file__, 16000)
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208
