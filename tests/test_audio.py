"""Reading: every container and rate against the samples written, channels, segments, blocks, resampling."""

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr

from asr import audio
from asr.errors import InputError

RATES = (8000, 16000, 44100, 48000)
CHUNKED = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF")
LOSSLESS = [(kind, "PCM_16") for kind in (*CHUNKED, "NIST", "FLAC")] + [("WAV", "PCM_24"), ("FLAC", "PCM_24")]
EXACT_FLOAT = [("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAVEX", "FLOAT"), ("W64", "FLOAT"), ("AU", "DOUBLE")]
LOSSY = {  # coding -> least ratio of signal to noise, dB: mu-law has 38 for speech, transform coders less
    ("WAV", "ULAW"): 30,
    ("WAV", "ALAW"): 30,
    ("NIST", "ULAW"): 30,
    ("AU", "ULAW"): 30,
    ("WAV", "PCM_U8"): 30,
    ("OGG", "VORBIS"): 12,
    ("OGG", "OPUS"): 8,
    ("MP3", "MPEG_LAYER_III"): 12,
}


def chirp(rate: int, seconds: float = 1.5, channels: int = 1) -> np.ndarray:
    """A rising tone in the band that every coding keeps, different in each channel; 16-bit values."""
    time = np.arange(round(rate * seconds)) / rate
    tones = [0.4 * np.sin(2 * np.pi * (300 + 40 * channel + 300 * time) * time) for channel in range(channels)]
    return np.round(np.stack(tones, axis=1) * 32768).astype(np.int16)


def encode(samples: np.ndarray, rate: int, kind: str = "FLAC", coding: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=coding)
    return file.getvalue()


def floats(samples: np.ndarray) -> np.ndarray:
    """What 16-bit samples are in float32: the independent statement of the scale."""
    return samples[:, 0].astype(np.float32) / np.float32(32768)


def snr(reference: np.ndarray, heard: np.ndarray) -> float:
    """Signal to noise in dB."""
    return 10 * np.log10(np.mean(reference**2) / np.mean((reference - heard) ** 2))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("kind", "coding"), LOSSLESS)
def test_lossless_files_give_the_samples_written_bit_for_bit(kind, coding, rate):
    samples = chirp(rate)
    heard = audio.read(encode(samples, rate, kind, coding), rate)
    assert heard.samples.dtype == np.float32
    np.testing.assert_array_equal(heard.samples, floats(samples))
    assert (heard.rate, heard.source_rate, heard.source_channels, heard.note) == (rate, rate, 1, None)
    assert heard.seconds == 1.5


@pytest.mark.parametrize(("kind", "coding"), EXACT_FLOAT)
def test_float_files_give_the_samples_written_bit_for_bit_and_unclipped(kind, coding):
    samples = (np.random.default_rng(0).standard_normal((3000, 1)) * 2).astype(np.float32)
    assert np.abs(samples).max() > 1
    np.testing.assert_array_equal(audio.read(encode(samples, 16000, kind, coding), 16000).samples, samples[:, 0])


@pytest.mark.parametrize(
    ("kind", "coding", "rate"),
    [(*form, rate) for form in LOSSY for rate in RATES if not (form[1] == "OPUS" and rate == 44100)],  # it has none
)
def test_lossy_files_have_the_length_and_the_sound_written(kind, coding, rate):
    samples = chirp(rate)
    heard = audio.read(encode(samples, rate, kind, coding), rate).samples
    assert len(heard) == len(samples)
    assert snr(floats(samples), heard) > LOSSY[kind, coding]


@pytest.mark.parametrize("coding", ["PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_samples_are_those_of_soundfile(coding):
    content = encode(chirp(16000), 16000, "WAV", coding)
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    np.testing.assert_array_equal(audio.read(content, 16000).samples, expected)


def test_path_bytes_and_file_objects_give_the_same(tmp_path):
    samples = chirp(16000)
    content = encode(samples, 16000)
    path = tmp_path / "a file, with = and é.flac"
    path.write_bytes(content)
    pipe = io.BufferedReader(Unseekable(content))
    with path.open("rb") as opened, path.open("rb", buffering=0) as raw:
        opened.seek(100)  # a file object is read from its start
        for source in (path, str(path), content, bytearray(content), memoryview(content), opened, raw, pipe):
            np.testing.assert_array_equal(audio.read(source, 16000).samples, floats(samples))
        assert not opened.closed
        assert audio.info(opened) == audio.info(path)


class Unseekable(io.RawIOBase):
    """A pipe, as standard input is one."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self._content.readinto(memoryview(buffer)[:100])


def test_names_of_files_need_not_be_utf8(tmp_path):
    import os

    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.wav")  # noqa: PTH118 (bytes)
    with open(path, "wb") as file:
        file.write(encode(chirp(8000), 8000, "WAV"))
    assert len(audio.read(os.fsdecode(path), 8000).samples) == 12000


@pytest.mark.parametrize(("kind", "coding"), [("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_info_tells_what_a_file_holds(kind, coding):
    info = audio.info(encode(chirp(44100, channels=2), 44100, kind, coding))
    assert info == audio.AudioInfo(44100, 2, 66150, 1.5, kind, coding)


def test_id3_tags_before_the_sound_are_passed_over():
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 5]) + b"\0" * (128 + 5)
    for kind, coding in (("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16")):
        content = encode(chirp(16000), 16000, kind, coding)
        np.testing.assert_array_equal(audio.read(tag + content, 16000).samples, audio.read(content, 16000).samples)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 192000])
def test_resampled_is_what_soxr_gives_of_the_whole(rate):
    samples = chirp(rate, seconds=3)  # several chunks at 192 kHz
    heard = audio.read(encode(samples, rate), 16000)
    np.testing.assert_array_equal(heard.samples, soxr.resample(floats(samples), rate, 16000, quality="HQ"))
    np.testing.assert_array_equal(heard.samples, audio.resample(floats(samples), rate, 16000))
    assert heard.note == f"resampled from {rate} to 16000 Hz"


def test_resampling_keeps_a_tone_and_its_level():
    time = np.arange(48000) / 48000
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    expected = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    np.testing.assert_allclose(audio.resample(tone, 48000, 16000)[500:-500], expected[500:-500], atol=1e-4)


def test_equal_rates_touch_no_sample():
    samples = floats(chirp(16000))
    assert audio.resample(samples, 16000, 16000) is samples
    assert len(audio.resample(samples[:0], 8000, 16000)) == 0


@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.0, 30.0])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_blocks_joined_are_exactly_what_read_gives(seconds, rate):
    content = encode(chirp(16000, seconds=20, channels=2), 16000)
    blocks = list(audio.blocks(content, rate, seconds=seconds))
    assert {len(block) for block in blocks[:-1]} <= {round(seconds * rate)}
    assert 0 < len(blocks[-1]) <= round(seconds * rate)
    np.testing.assert_array_equal(np.concatenate(blocks), audio.read(content, rate).samples)


def test_blocks_own_their_memory():
    blocks = list(audio.blocks(encode(chirp(16000), 16000), 16000, seconds=0.5))
    assert all(block.flags.writeable for block in blocks)
    blocks[0][:] = 7
    assert not (blocks[1] == 7).any()


def test_channels_are_averaged_or_one_is_picked():
    samples = chirp(16000, channels=8)
    content = encode(samples, 16000, "WAV")
    scaled = samples.astype(np.float64) / 32768
    heard = audio.read(content, 16000)
    np.testing.assert_array_equal(heard.samples, scaled.mean(axis=1).astype(np.float32))
    assert (heard.source_channels, heard.note) == (8, "8 channels averaged")
    for channel in range(8):
        picked = audio.read(content, 16000, channel=channel)
        np.testing.assert_array_equal(picked.samples, scaled[:, channel].astype(np.float32))
        assert picked.note == f"channel {channel} of 8 taken (they count from 0)"
    assert audio.read(content, 8000).note == "8 channels averaged, resampled from 16000 to 8000 Hz"


@pytest.mark.parametrize("channels", [2, 3, 7])
def test_the_mean_of_equal_channels_is_each_of_them(channels):
    one = np.random.default_rng(0).standard_normal((5000, 1)).astype(np.float32)  # all 24 bits in use
    content = encode(np.repeat(one, channels, axis=1), 16000, "WAV", "FLOAT")
    np.testing.assert_array_equal(audio.read(content, 16000).samples, one[:, 0])


def test_channel_0_of_a_mono_file_is_the_file():
    heard = audio.read(encode(chirp(16000), 16000), 16000, channel=0)
    np.testing.assert_array_equal(heard.samples, floats(chirp(16000)))
    assert heard.note is None


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "NIST"])
@pytest.mark.parametrize(("offset", "duration"), [(0.0, 0.5), (0.25, 0.5), (1.0, None), (1.25, 0.25), (1.4999, None)])
def test_a_segment_is_that_part_of_the_whole(kind, offset, duration):
    content = encode(chirp(16000), 16000, kind)
    begin = round(offset * 16000)
    end = None if duration is None else begin + round(duration * 16000)
    heard = audio.read(content, 16000, offset=offset, duration=duration).samples
    np.testing.assert_array_equal(heard, floats(chirp(16000))[begin:end])
    blocks = list(audio.blocks(content, 16000, offset=offset, duration=duration, seconds=0.1))
    np.testing.assert_array_equal(np.concatenate(blocks), heard)


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS", "MPEG_LAYER_III"])
def test_a_segment_of_a_lossy_file_is_that_part_of_the_whole(coding):
    content = encode(chirp(16000, seconds=12), 16000, "MP3" if coding == "MPEG_LAYER_III" else "OGG", coding)
    whole = audio.read(content, 16000).samples
    for offset in (0.001, 0.7, 3.123, 9.9):
        begin = round(offset * 16000)
        heard = audio.read(content, 16000, offset=offset, duration=1.5).samples
        np.testing.assert_allclose(heard, whole[begin : begin + 24000], atol=1e-6)  # a decoder's own rounding


def test_a_duration_may_exceed_the_end_by_its_rounding():
    content = encode(chirp(16000), 16000)
    assert len(audio.read(content, 16000, offset=0.5, duration=1.0499).samples) == 16000
    with pytest.raises(InputError, match=r"ends at 1\.500 s, before the end of the segment at 1\.560 s"):
        audio.read(content, 16000, offset=0.5, duration=1.06)


def test_silence_and_one_sample_are_recordings():
    silence = np.zeros((16000, 1), np.int16)
    assert not audio.read(encode(silence, 16000), 16000).samples.any()
    assert not audio.read(encode(silence, 16000), 8000).samples.any()
    for kind in (*CHUNKED, "NIST", "FLAC"):
        one = audio.read(encode(np.array([[1000]], np.int16), 16000, kind), 16000).samples
        np.testing.assert_array_equal(one, np.float32([1000 / 32768]))


@pytest.mark.parametrize(("rate", "wanted", "length"), [(192000, 16000, 1), (8000, 16000, 2), (44100, 16000, 1)])
def test_a_recording_never_vanishes_in_resampling(rate, wanted, length):
    assert len(audio.read(encode(np.array([[1000]], np.int16), rate, "WAV"), wanted).samples) == length


def test_rates_and_channels_up_to_the_limits_are_read():
    assert len(audio.read(encode(chirp(1000), 1000, "WAV"), 16000).samples) == 24000
    assert len(audio.read(encode(chirp(768000, seconds=0.1), 768000, "WAV"), 16000).samples) == 1600
    many = np.repeat(chirp(8000), 64, axis=1)
    np.testing.assert_array_equal(audio.read(encode(many, 8000, "WAV"), 8000).samples, floats(many))


PEAK = """
import resource, sys
from asr import audio
list(audio.blocks({short!r}, 16000))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
before, samples = peak(), 0
for block in audio.blocks({long!r}, {rate}):
    samples += len(block)
print(samples, peak() - before)
"""


@pytest.mark.parametrize("rate", [16000, 8000])
def test_an_hour_is_read_in_blocks_in_little_memory(tmp_path, rate):
    for name, seconds in (("short", 10), ("long", 3600)):
        with soundfile.SoundFile(tmp_path / f"{name}.flac", "w", 16000, 1, "PCM_16") as file:
            for _ in range(seconds // 10):
                file.write(np.zeros(160000, np.int16))
    code = PEAK.format(short=str(tmp_path / "short.flac"), long=str(tmp_path / "long.flac"), rate=rate)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    samples, grown = map(int, run.stdout.split())
    assert samples == 3600 * rate
    assert grown < 20_000_000  # the hour itself would be 230 MB in float32


def test_real_recordings_of_both_kinds(asr_data):
    path = sorted((asr_data("fsdd") / "recordings").glob("*.flac"))[0]
    expected, rate = soundfile.read(path, dtype="float32")
    heard = audio.read(path, 8000)
    assert rate == 8000
    np.testing.assert_array_equal(heard.samples, expected)


def noise(rate: int, low: float, high: float) -> np.ndarray:
    """Two seconds of noise of level 0.05 in a band, built from its spectrum."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(2 * rate))
    frequencies = np.fft.rfftfreq(2 * rate, 1 / rate)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    samples = np.fft.irfft(spectrum)
    return (0.05 * samples / samples.std()).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_sound_with_nothing_above_4_khz_is_narrow_band(rate):
    assert audio.narrow_band(noise(rate, 100, 3900), rate)
    assert not audio.narrow_band(noise(rate, 100, 7900), rate)
    assert not audio.narrow_band(noise(rate, 100, 3900) + noise(rate, 5000, 7000) / 100, rate)  # -40 dB above
    assert audio.narrow_band(noise(rate, 100, 3900) + noise(rate, 5000, 7000) / 1000, rate)  # -60 dB


def test_silence_short_sound_and_low_rates_are_not_narrow_band():
    tone = noise(16000, 100, 3900)
    assert not audio.narrow_band(np.zeros(16000, np.float32), 16000)
    assert not audio.narrow_band(np.full(16000, 0.5, np.float32), 16000)  # a constant is silence
    assert not audio.narrow_band(tone[:511], 16000)
    assert not audio.narrow_band(tone[:0], 16000)
    assert not audio.narrow_band(noise(8000, 100, 3900), 8000)


def test_telephone_recordings_at_16_khz_are_narrow_band_and_others_are_not(asr_data):
    digits = sorted((asr_data("fsdd") / "recordings").glob("*.flac"))[::10]
    samples = [audio.read(path, 16000).samples for path in digits]
    sixteen_bit = [np.round(one * 32768) / np.float32(32768) for one in samples if len(one) >= 512]
    assert all(audio.narrow_band(one, 16000) for one in sixteen_bit)
    wide = sorted(asr_data("an4").rglob("*.flac"))[::20]
    assert not any(audio.narrow_band(audio.read(path, 16000).samples, 16000) for path in wide)
