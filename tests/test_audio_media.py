"""Media files through PyAV (skipped where it is missing), and what is said where it is missing."""

import base64
import io
import subprocess
import sys
import zlib

import numpy as np
import pytest

from asr import audio
from asr.errors import InputError

av = pytest.importorskip("av", reason="needs PyAV (extra media)")

RATE = 48000  # every codec here takes it
FILES = {  # container, codec -> least signal to noise in dB (16-bit codings keep 80, lossless ones all)
    ("mp4", "aac"): 12,
    ("ipod", "aac"): 12,
    ("mov", "pcm_s16le"): 80,
    ("mp4", "alac"): 80,
    ("webm", "libopus"): 12,
    ("matroska", "flac"): 80,
    ("matroska", "pcm_s16le"): 80,
    ("mp4", "libmp3lame"): 12,
    ("ogg", "flac"): 80,
}


def tone(seconds: float = 2.0, channels: int = 1) -> np.ndarray:
    time = np.arange(round(RATE * seconds)) / RATE
    rising = 0.3 * np.sin(2 * np.pi * (300 + 200 * time) * time)
    return np.tile(rising.astype(np.float32), (channels, 1))


def encode(container: str, codec: str, samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 8: "7.1"}[len(samples)]
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if codec == "wmav2":
            stream.bit_rate = 96000  # its encoder takes no less
        frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="flt", layout=layout)
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, stream.frame_size or 1024)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


def snr(reference: np.ndarray, heard: np.ndarray) -> float:
    return 10 * np.log10(np.mean(reference**2) / np.mean((reference - heard) ** 2))


@pytest.mark.parametrize(("container", "codec"), FILES)
def test_media_files_have_the_length_and_the_sound_written(container, codec, tmp_path):
    content = encode(container, codec, tone())
    path = tmp_path / "a.media"
    path.write_bytes(content)
    heard = audio.read(path, RATE)
    assert len(heard.samples) == 2 * RATE  # the encoder's padding is cut
    assert snr(tone()[0], heard.samples) > FILES[container, codec]
    np.testing.assert_array_equal(audio.read(content, RATE).samples, heard.samples)
    info = audio.info(content)
    assert (info.rate, info.channels, info.frames) == (RATE, 1, 2 * RATE)


@pytest.mark.parametrize(("container", "codec"), [("adts", "aac"), ("asf", "wmav2")])
def test_media_without_a_length_are_read_to_their_end(container, codec):
    content = encode(container, codec, tone())
    heard = audio.read(content, RATE).samples
    assert len(heard) == pytest.approx(2 * RATE, abs=3000)  # packets are not trimmed: these containers can't say
    assert audio.info(content).frames == len(heard)
    spectrum = np.abs(np.fft.rfft(heard))
    assert spectrum[600:2400].sum() > 0.8 * spectrum.sum()  # 300 to 1100 Hz, in steps of 0.5 Hz


def test_amr_is_read():
    encoder = "libopencore_amrnb"
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {encoder}")
    heard = audio.read(encode("amr", encoder, tone(), 8000), 8000)
    assert (heard.source_rate, len(heard.samples)) == (8000, pytest.approx(16000, abs=400))
    spectrum = np.abs(np.fft.rfft(heard.samples))
    assert spectrum[600:2400].sum() > 0.5 * spectrum.sum()


def test_blocks_channels_segments_and_resampling_are_those_of_sound_files():
    content = encode("mov", "pcm_s16le", np.concatenate([tone(), tone() / 2]))
    whole = audio.read(content, 16000)
    assert whole.note == "2 channels averaged, resampled from 48000 to 16000 Hz"
    np.testing.assert_array_equal(np.concatenate(list(audio.blocks(content, 16000, seconds=0.3))), whole.samples)
    second = audio.read(content, RATE, channel=1).samples
    np.testing.assert_allclose(second, tone()[0] / 2, atol=1e-4)
    segment = audio.read(content, RATE, channel=1, offset=0.5, duration=0.25).samples
    np.testing.assert_array_equal(segment, second[24000:36000])
    with pytest.raises(InputError, match="has no channel 2: it has 2, counted from 0"):
        audio.read(content, RATE, channel=2)
    with pytest.raises(InputError, match=r"ends at 2\.000 s, before the segment at offset 3 s"):
        audio.read(content, RATE, offset=3.0)
    with pytest.raises(InputError, match=r"ends at 2\.000 s, before the end of the segment at 3\.000 s"):
        audio.read(content, RATE, offset=1.0, duration=2.0)
    with pytest.raises(InputError, match="lasts more than 1 s, and at most 1 s are read"):
        audio.read(content, RATE, max_seconds=1.0)


@pytest.mark.parametrize(("container", "codec"), [("webm", "libopus"), ("matroska", "flac"), ("asf", "wmav2")])
def test_media_that_lost_their_end_are_not_silently_short(container, codec):
    content = encode(container, codec, tone(6.0))
    with pytest.raises(InputError, match=r"is cut off: its header promises|is damaged or cut off"):
        audio.read(content[: len(content) // 2], RATE)


def test_an_ogg_that_lost_its_end_is_not_silently_short():
    content = encode("ogg", "flac", tone())
    with pytest.raises(InputError, match="<bytes>: is cut off within its last Ogg page; copy or record it again"):
        audio.read(content[:-10], RATE)


def test_damaged_media_are_one_line():
    content = encode("mp4", "aac", tone())
    for part in (content[: len(content) // 2], content[:40], b"\0\0\0\x18ftypmp42" + b"\0" * 100):
        with pytest.raises(InputError, match=r"<bytes>: is damaged or cut off \(.*\); copy it again") as caught:
            audio.read(part, 16000)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "pcm_s16le"), ("matroska", "flac")])
def test_eight_channels_are_read(container, codec):
    samples = tone(0.5, 8) * np.arange(1, 9, dtype=np.float32)[:, None] / 8
    content = encode(container, codec, samples)
    for channel in (0, 7) if codec != "aac" else (0,):  # AAC's channel 3 is for low tones only
        assert snr(samples[channel], audio.read(content, RATE, channel=channel).samples) > 10
    assert audio.read(content, RATE).note == "8 channels averaged"


# An AAC frame that says it has 41 channels, found by fuzzing: PyAV crashed on it.
MANY_CHANNELS = zlib.decompress(
    base64.b64decode(
        "eNpdkVtIkwEAhT8v4CVEU/BCitAmI9JerCnJX5KohHiBzUXig+YFkSaKDvKySTKTvFBuiejD5p4CpXwwEtH5MFRSfJBBePnVhUIy"
        "3FzD8CHR3/ngSwfOy+HAx+FI/qrcLNgP5n9NVTQ264Xes0nj7+e6NL9p5JPp/T2CFVXw+Rm7NF6X7gc8iRpqq6lGDzHr8hy8CGsL"
        "c0KI+VjADyl2EWNT3FJ9y538Zs0vcffR2xxdgGkbLPM4+/odRUHvTPEQPwfJ3m/psDdLAY8b8paJIotbDEIslLwWbcWeTsjwXqNr"
        "NSpC66iI0jJlsVFPRiCMUJJADXypaVBhPqD8p0/jgkSUb3yOf9BTKOMh3T82GJpPwJ1/gnl2ET7IZC1sTgy9VN9VjnHoQX6hFcN1"
        "EnE77VgHWsmmhw7rtrErGqIJDQw18JfIRWSr8zzoPXCmIlByCR8vGT5tc3S51ISNc4Thts/Sp/jzYkV+akDhdhEjtr5KqhxO0mOd"
        "sVO6lsIoXwtV+6vnT5eTJT+5mRJBTyxbdqei+PuZ2Km1d0+nuq3TO5V7N89IXAHgEpjN"
    )
)


def test_more_channels_are_refused():
    with pytest.raises(InputError, match="<bytes>: 41 channels are not read, at most 8; split the file"):
        audio.read(MANY_CHANNELS, 16000)


def test_codings_outside_the_closed_list_are_refused():
    with pytest.raises(InputError, match="<bytes>: MOV with coding ac3 is not read; convert it to FLAC"):
        audio.read(encode("mp4", "ac3", tone()), RATE)


def test_a_file_without_sound_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode(None))
    with pytest.raises(InputError, match="<bytes>: has no sound track; name another file"):
        audio.read(file.getvalue(), 16000)


def test_playlists_and_scripts_open_nothing(tmp_path):
    for text in (
        "#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        "ffconcat version 1.0\nfile /etc/passwd\n",
        "v=0\nc=IN IP4 1.2.3.4",
    ):
        with pytest.raises(InputError, match="is no audio of a known container"):
            audio.read(text.encode(), 16000)


MISSING = """
import sys
sys.modules["av"] = None
from asr import audio
from asr.errors import InputError
for content in (b"\\0\\0\\0\\x18ftypM4A ", b"\\x1a\\x45\\xdf\\xa3 ", b"\\xff\\xf1 "):
    try:
        audio.read(content, 16000)
    except InputError as error:
        print(error)
"""


def test_without_pyav_one_line_names_the_extra():
    run = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, check=True, timeout=100)
    assert run.stdout.splitlines() == [
        f"<bytes>: {kind} files need PyAV: pip install 'asr[media]'" for kind in ("MOV", "MATROSKA", "AAC")
    ]


def test_pyav_is_imported_only_for_a_media_file():
    code = "import sys; from asr import audio; print('av' in sys.modules, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert run.stdout.split() == ["False", "False"]
