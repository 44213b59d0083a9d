from pathlib import Path

import numpy as np
import pytest
import small_model
import soundfile
import torch

import asr
from asr.ctc import Hypothesis
from asr.errors import InputError
from asr.manifest import Utterance

FSDD = Path(__file__).parent / "data" / "fsdd"
FILES = sorted(FSDD.glob("*.flac"))


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    return asr.load(small_model.write(tmp_path_factory.mktemp("model") / "model.safetensors"), "cpu")


def test_it_knows_its_tokens_rate_and_frames(recognizer):
    assert recognizer.tokens == small_model.TOKENS
    assert recognizer.sample_rate == 8000
    assert recognizer.frame_seconds == pytest.approx(0.02)


def test_emissions_are_log_probabilities_of_each_frame(recognizer):
    waveform = soundfile.read(FILES[0], dtype="float32")[0]
    log_probs, lengths = recognizer.emissions([waveform], 8000)
    assert log_probs.dtype == torch.float32
    assert log_probs.shape == (1, int(lengths[0]), len(small_model.TOKENS))
    torch.testing.assert_close(log_probs.exp().sum(2), torch.ones(1, int(lengths[0])))
    assert abs(int(lengths[0]) * recognizer.frame_seconds - len(waveform) / 8000) < 0.05


def test_path_bytes_waveform_and_utterance_give_one_transcript(recognizer):
    path = FILES[0]
    waveform, rate = soundfile.read(path, dtype="float32")
    expected = recognizer.transcribe(path)
    assert expected.text
    for source, given in (
        (str(path), None),
        (path.read_bytes(), None),
        (waveform, rate),
        (Utterance(str(path)), None),
    ):
        heard = recognizer.transcribe(source, given)
        assert (heard.text, heard.words, heard.duration) == (expected.text, expected.words, expected.duration)
    assert expected.audio_filepath == str(path)


def test_a_segment_of_a_file_is_the_file_cut_there(recognizer, tmp_path):
    samples = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in FILES[:3]])
    soundfile.write(tmp_path / "joined.wav", samples, 8000, subtype="PCM_16")
    first, second = (len(soundfile.read(path)[0]) / 8000 for path in FILES[:2])
    cut = recognizer.transcribe(Utterance(str(tmp_path / "joined.wav"), duration=second, offset=first))
    assert cut.text == recognizer.transcribe(FILES[1]).text


def test_another_rate_is_resampled_and_said(recognizer, tmp_path):
    samples = soundfile.read(FILES[0], dtype="float32")[0]
    soundfile.write(tmp_path / "high.wav", asr.recognizer.audio.resample(samples, 8000, 44100), 44100)
    heard = recognizer.transcribe(tmp_path / "high.wav")
    assert any("44100" in note for note in heard.notes)
    assert not recognizer.transcribe(FILES[0]).notes


def test_a_narrow_band_recording_at_a_wide_rate_is_said(tmp_path):
    wide = asr.load(small_model.write(tmp_path / "wide.safetensors", rate=16000), "cpu")
    samples = soundfile.read(FILES[0], dtype="float32")[0]
    soundfile.write(tmp_path / "telephone.wav", asr.recognizer.audio.resample(samples, 8000, 16000), 16000)
    assert any("above 4 kHz" in note for note in wide.transcribe(tmp_path / "telephone.wav").notes)


def test_a_waveform_needs_its_rate_and_a_file_knows_its_own(recognizer):
    with pytest.raises(InputError, match="sample_rate goes with a waveform"):
        recognizer.transcribe(np.zeros(800, np.float32))
    with pytest.raises(InputError, match="sample_rate goes with a waveform"):
        recognizer.transcribe(FILES[0], 8000)


@pytest.mark.parametrize("samples", [np.zeros((2, 9)), np.zeros(0), np.array([0.0, np.nan])], ids=["2d", "0", "nan"])
def test_a_waveform_must_be_mono_not_empty_and_finite(recognizer, samples):
    with pytest.raises(InputError, match=r"a waveform must be mono \(samples,\), not empty, and finite"):
        recognizer.transcribe(samples.astype(np.float32), 8000)


def test_many_come_lazily_in_input_order(recognizer):
    asked = []

    def sources():
        for path in FILES * 8:
            asked.append(path)
            yield path

    results = recognizer.transcribe_many(sources(), batch_seconds=5)
    first = next(results)
    assert len(asked) < len(FILES) * 8
    texts = [first.text, *(result.text for result in results)]
    assert texts == [recognizer.transcribe(path).text for path in FILES] * 8


def test_a_bad_recording_raises_or_takes_its_place_as_an_error(recognizer, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    sources = [FILES[0], tmp_path / "bad.wav", FILES[1]]
    with pytest.raises(InputError, match=r"bad\.wav"):
        list(recognizer.transcribe_many(sources))
    results = list(recognizer.transcribe_many(sources, return_errors=True))
    assert [isinstance(result, InputError) for result in results] == [False, True, False]
    assert results[2].text == recognizer.transcribe(FILES[1]).text


def test_a_decoder_gets_the_frames_and_its_first_hypothesis_is_taken(recognizer):
    class Fixed:
        def decode(self, log_probs):
            assert log_probs.ndim == 2
            return [Hypothesis("first", -1.0, -1.0), Hypothesis("second", -2.0, -2.0)]

    assert recognizer.transcribe(FILES[0], decoder=Fixed()).text == "first"


def test_silence_and_a_single_sample_are_no_failure(recognizer):
    for samples in (np.zeros(8000, np.float32), np.zeros(1, np.float32)):
        assert recognizer.transcribe(samples, 8000).duration == pytest.approx(len(samples) / 8000, abs=1e-3)
