"""asr.features against librosa, torchaudio, closed forms and plain float64 loops."""

import contextlib
import math
import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchaudio.compliance import kaldi

from asr import batches
from asr.features import CONVENTIONS, MFCC, NORMALIZATIONS, PRIOR_FRAMES, PRIOR_VARIANCE, LogMel, build
from asr.features.normalization import normalized

FIXTURES = sorted((Path(__file__).parent / "data" / "fsdd").glob("*.flac"))
KINDS = [(kind, convention) for kind in ("logmel", "mfcc") for convention in ("slaney", "kaldi")]


def chirp(seconds: float = 2.0, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """A tone rising from 100 Hz to half the rate, under some noise, -1 to 1."""
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * (100 + (rate / 2 - 100) * time / (2 * seconds)) * time
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.3 * np.sin(phase) + 0.01 * noise).astype(np.float32)


def alone(module, samples: np.ndarray) -> np.ndarray:
    """Features `(frames, size)` of one file."""
    features, lengths = module(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    assert lengths.tolist() == [features.shape[1]] == [module.frames(len(samples))]
    return features[0].numpy()


def by_librosa(samples: np.ndarray, rate: int, mels: int, low: float) -> np.ndarray:
    """Mel energies `(frames, mels)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files shorter than the FFT
        return librosa.feature.melspectrogram(
            y=samples,
            sr=rate,
            n_fft=1 << (rate // 40 - 1).bit_length(),
            win_length=rate // 40,
            hop_length=rate // 100,
            n_mels=mels,
            fmin=low,
            power=2,
            htk=False,
            norm="slaney",
            center=True,
            pad_mode="constant",
        ).T


def by_torchaudio(function, samples: np.ndarray, rate: int, **settings) -> np.ndarray:
    scaled = torch.from_numpy(samples)[None] * 32768
    return function(scaled, sample_frequency=rate, dither=0.0, low_freq=20.0, **settings).numpy()


def assert_equal_to_the_libraries(samples: np.ndarray, rate: int) -> None:
    energies = by_librosa(samples, rate, 64, 20.0)
    ours = alone(build("logmel", rate=rate, mels=64, normalize="none"), samples)
    heard = energies > 1e-8 * energies.max()  # below lie the rounding errors of a float32 FFT
    assert heard.mean() > 0.3
    np.testing.assert_allclose(np.exp(ours)[heard], energies[heard], rtol=1e-4)
    np.testing.assert_allclose(np.exp(ours), np.maximum(energies, 1e-10), rtol=1e-5, atol=1e-6 * energies.max())
    expected = by_torchaudio(kaldi.fbank, samples, rate, num_mel_bins=40)
    ours = alone(build("logmel", rate=rate, mels=40, normalize="none", convention="kaldi"), samples)
    np.testing.assert_allclose(ours, expected, atol=1e-4)

    expected = by_torchaudio(kaldi.mfcc, samples, rate, num_mel_bins=23, num_ceps=13)
    settings = {"rate": rate, "mels": 23, "coefficients": 13, "normalize": "none"}
    np.testing.assert_allclose(alone(build("mfcc", convention="kaldi", **settings), samples), expected, atol=1e-3)
    logarithms = np.log(np.maximum(by_librosa(samples, rate, 23, 20.0), 1e-10))
    expected = librosa.feature.mfcc(S=logarithms.T, n_mfcc=13, dct_type=2, norm="ortho").T
    np.testing.assert_allclose(alone(build("mfcc", **settings), samples), expected, atol=1e-3)


@pytest.mark.parametrize("samples", [32000, 16001, 5000, 400])
def test_features_of_a_chirp_are_those_of_librosa_and_torchaudio(samples):
    assert_equal_to_the_libraries(chirp()[:samples], 16000)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100])
def test_features_at_other_rates_are_those_of_librosa_and_torchaudio(rate):
    assert_equal_to_the_libraries(chirp(1.0, rate), rate)


@pytest.mark.parametrize("path", FIXTURES, ids=[path.stem for path in FIXTURES])
def test_features_of_spoken_digits_are_those_of_librosa_and_torchaudio(path):
    samples, rate = soundfile.read(path, dtype="float32")
    assert_equal_to_the_libraries(samples, rate)


def test_features_of_an4_are_those_of_librosa_and_torchaudio(asr_data):
    paths = sorted((asr_data("an4") / "wav").rglob("*.flac"))[::100]
    assert len(paths) > 5
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32")
        assert_equal_to_the_libraries(samples, rate)


def test_short_files_in_kaldis_convention_are_padded_to_one_window():
    samples = chirp()[:100]
    padded = np.concatenate([samples, np.zeros(300, np.float32)])
    ours = alone(LogMel(convention="kaldi", normalize="none"), samples)
    expected = by_torchaudio(kaldi.fbank, padded, 16000, num_mel_bins=80)
    assert ours.shape == (1, 80)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@given(
    st.sampled_from(["slaney", "kaldi"]),
    st.integers(1000, 48000),
    st.integers(16, 100),
    st.floats(0.05, 1),
    st.lists(st.integers(0, 3000), min_size=1, max_size=4),
)
def test_one_formula_counts_the_frames_of_numbers_tensors_and_outputs(convention, rate, window, share, samples):
    window = max(window, 16 + rate // 500)
    hop = max(0.001, share * window / rate)
    module = LogMel(rate=rate, mels=4, window=window / rate, hop=hop, low=0.0, convention=convention)
    hop_samples = round(module.hop * rate)
    lengths = torch.tensor(samples)
    features, frames = module(torch.ones(len(samples), max(samples)), lengths)
    starts = [
        [s for s in range(0, n + 1, hop_samples) if convention == "slaney" or s == 0 or s + window <= n] if n else []
        for n in samples
    ]
    assert frames.dtype == torch.int64
    assert frames.tolist() == module.frames(lengths).tolist() == [len(row) for row in starts]
    assert [module.frames(n) for n in samples] == frames.tolist()
    assert features.shape == (len(samples), module.frames(max(samples)), 4)


def mel_centres(mels: int, low: float, high: float, convention: str) -> np.ndarray:
    """Middle frequencies of the bands in Hz, from the published formulas."""
    if convention == "kaldi":
        to_mel, to_hertz = (
            (lambda f: 1127 * math.log(1 + f / 700)),
            (lambda m: 700 * (math.exp(m / 1127) - 1)),
        )
    else:
        step = math.log(6.4) / 27
        to_mel = lambda f: 3 * f / 200 if f < 1000 else 15 + math.log(f / 1000) / step  # noqa: E731
        to_hertz = lambda m: 200 * m / 3 if m < 15 else 1000 * math.exp(step * (m - 15))  # noqa: E731
    points = np.linspace(to_mel(low), to_mel(high), mels + 2)[1:-1]
    return np.array([to_hertz(point) for point in points])


@pytest.mark.parametrize("convention", ["slaney", "kaldi"])
@pytest.mark.parametrize("frequency", [300.0, 1000.0, 2345.0, 6000.0])
def test_a_pure_tone_is_loudest_in_the_band_around_it(convention, frequency):
    module = LogMel(mels=40, convention=convention, normalize="none")
    time = np.arange(16000) / 16000
    features = alone(module, (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32))
    nearest = np.abs(mel_centres(40, 20.0, 8000.0, convention) - frequency).argmin()
    assert (np.abs(features[5:-5].argmax(1) - nearest) <= (convention == "slaney" and frequency > 5000)).all()


def test_the_level_of_a_tone_on_a_frequency_of_the_fft_follows_from_the_window():
    """A Hann window as long as the FFT spreads it over three frequencies: 1/2, 1, 1/2 of level * n / 4."""
    size, index = 512, 64
    module = LogMel(mels=1, window=size / 16000, low=0.0, high=8000.0, normalize="none")
    time = np.arange(4096) / 16000
    tone = (0.25 * np.cos(2 * np.pi * index * 16000 / size * time)).astype(np.float32)
    centre = mel_centres(1, 0.0, 8000.0, "slaney")[0]
    triangle = lambda f: min(f / centre, (8000 - f) / (8000 - centre)) * 2 / 8000  # noqa: E731
    power = sum(
        (0.25 * size / 4 * part) ** 2 * triangle(bin * 16000 / size)
        for bin, part in ((index - 1, 0.5), (index, 1.0), (index + 1, 0.5))
    )
    np.testing.assert_allclose(alone(module, tone)[5:-5], math.log(power), atol=1e-4)


def test_a_constant_offset_changes_nothing_in_kaldis_convention_once_taken_away():
    module = LogMel(convention="kaldi", normalize="none")
    np.testing.assert_allclose(alone(module, chirp() + np.float32(0.25)), alone(module, chirp()), atol=2e-2)


@pytest.mark.parametrize("convention", ["slaney", "kaldi"])
def test_twice_the_amplitude_adds_the_logarithm_of_four(convention):
    module = LogMel(convention=convention, normalize="none")
    np.testing.assert_allclose(alone(module, 2 * chirp()), alone(module, chirp()) + math.log(4), atol=1e-5)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(("kind", "convention"), KINDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30, "noise"])
def test_a_padded_batch_gives_each_files_own_features(kind, convention, normalize, poison):
    module = build(kind, mels=32, convention=convention, normalize=normalize)
    rows = [chirp(seed=n)[:length] for n, length in enumerate([16000, 15999, 7777, 400, 399, 160, 1, 0])]
    waveforms = torch.randn(len(rows), 40000) if poison == "noise" else torch.full((len(rows), 40000), poison)
    for row, samples in zip(waveforms, rows, strict=True):
        row[: len(samples)] = torch.from_numpy(samples)
    before = waveforms.clone()
    features, lengths = module(waveforms, torch.tensor([len(row) for row in rows]))
    assert features.shape[1] == module.frames(40000)
    torch.testing.assert_close(waveforms, before, rtol=0, atol=0, equal_nan=True)
    tolerance = 1e-6 if kind == "logmel" else 1e-5 * 32  # liftered coefficients sum 32 logarithms, times 12
    for number, samples in enumerate(rows):
        own = alone(module, samples)
        assert lengths[number] == len(own)
        # one sample has a flat spectrum: over its tiny deviation, rounding errors are 1000 times as large
        flat = 1000 if normalize == "level" and len(samples) == 1 else 1
        np.testing.assert_allclose(features[number, : len(own)], own, rtol=2e-6, atol=flat * tolerance)
        assert not features[number, len(own) :].any()


def test_long_files_are_done_in_blocks_that_leave_no_seam():
    samples = chirp(30.0)
    for convention in ("slaney", "kaldi"):
        module = LogMel(convention=convention, normalize="none")
        whole, middle = alone(module, samples), alone(module, samples[160 * 900 : 160 * 1200])
        np.testing.assert_allclose(whole[905:1190], middle[5:290], rtol=1e-6, atol=1e-5)


def test_an_empty_batch_has_empty_features():
    features, lengths = LogMel()(torch.zeros(0, 16000), torch.zeros(0, dtype=torch.int64))
    assert features.shape == (0, 101, 80)
    assert lengths.shape == (0,)
    features, lengths = LogMel()(torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64))
    assert features.shape == (3, 0, 80)
    assert lengths.tolist() == [0, 0, 0]


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(("kind", "convention"), KINDS)
def test_gradients_with_respect_to_the_waveform_are_right(kind, convention, normalize):
    module = build(
        kind,
        rate=8000,
        mels=5,
        window=0.004,
        hop=0.002,
        low=200.0,
        convention=convention,
        normalize=normalize,
        coefficients=3 if kind == "mfcc" else None,
    ).double()
    waveforms = 0.1 * torch.randn(2, 80, dtype=torch.float64)
    lengths = torch.tensor([80, 53])
    waveforms.requires_grad_()
    assert torch.autograd.gradcheck(lambda wave: module(wave, lengths)[0], (waveforms,))
    weights = torch.randn(5 if kind == "logmel" else 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((module(waveforms, lengths)[0] @ weights).square().sum(), waveforms)
    assert gradient[0].abs().min() > 0 or convention == "kaldi"
    assert not gradient[1, 53:].any()


def test_gradients_of_silence_are_finite():
    for kind, convention in KINDS:
        waveforms = torch.zeros(1, 4000, requires_grad=True)
        build(kind, mels=32, convention=convention)(waveforms, torch.tensor([4000]))[0].square().sum().backward()
        assert waveforms.grad.isfinite().all()


def test_float64_gives_what_float32_gives_with_more_digits():
    samples = torch.from_numpy(chirp())[None]
    lengths = torch.tensor([samples.shape[1]])
    for kind, convention in KINDS:
        module = build(kind, mels=32, convention=convention)
        single, _ = module(samples, lengths)
        double, _ = module.double()(samples.double(), lengths)
        assert double.dtype == torch.float64
        assert single.dtype == torch.float32
        # 1e-3: bands far below the tone hold the rounding errors of the float32 FFT
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "convention"), KINDS)
@pytest.mark.parametrize("samples", [1, 200, 400, 16000])
@pytest.mark.parametrize("level", [0.0, 0.5])
def test_silence_and_constants_become_finite(kind, convention, samples, level):
    constant = np.full(samples, level, np.float32)
    for normalize in NORMALIZATIONS:
        features = alone(build(kind, mels=32, convention=convention, normalize=normalize), constant)
        assert np.isfinite(features).all()
        if normalize in ("utterance", "running") and (level == 0 or len(features) == 1):
            assert not features.any()


def test_digital_silence_lies_at_the_floor():
    silence = np.zeros(4000, np.float32)
    assert (alone(LogMel(normalize="none"), silence) == np.float32(math.log(1e-10))).all()
    floor = np.float32(math.log(np.finfo(np.float32).eps))
    assert (alone(LogMel(normalize="none", convention="kaldi"), silence) == floor).all()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_floor_below_the_loudest_is_librosas(convention):
    samples = np.concatenate([np.zeros(4000, np.float32), chirp()])
    powers = np.exp(alone(LogMel(convention=convention, normalize="none"), samples))
    decibels = librosa.power_to_db(powers, amin=1e-30, top_db=40.0)
    ours = alone(LogMel(convention=convention, normalize="none", top_db=40.0), samples)
    np.testing.assert_allclose(ours * 10 / math.log(10), decibels, atol=1e-3)
    assert (ours == ours.min()).sum() > 1000  # the silence


@pytest.mark.parametrize(("kind", "convention"), KINDS)
def test_with_a_floor_a_padded_batch_gives_each_files_own_features_and_a_muted_start_those_of_a_quiet_one(
    kind, convention
):
    module = build(kind, mels=32, convention=convention, top_db=40.0)
    muted = np.concatenate([np.zeros(4000, np.float32), chirp()])
    quiet = np.concatenate([1e-6 * np.random.default_rng(1).standard_normal(4000, np.float32), chirp()])
    features, frames = module(*batches.pad([muted, quiet, muted[:5000]]))
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=0.02)
    own = alone(module, muted[:5000])
    np.testing.assert_allclose(features[2, : frames[2]], own, atol=1e-4)
    assert not features[2, frames[2] :].any()


@pytest.mark.parametrize(("kind", "convention"), KINDS)
def test_normalisation_over_the_utterance_is_mean_0_and_variance_1_of_each_feature(kind, convention):
    raw, ours = (
        alone(build(kind, mels=32, convention=convention, normalize=normalize), chirp()).astype(np.float64)
        for normalize in ("none", "utterance")
    )
    expected = (raw - raw.mean(0)) / np.sqrt(raw.var(0) + 1e-5)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    np.testing.assert_allclose(ours.std(0), 1, atol=1e-3)


@pytest.mark.parametrize(("kind", "convention"), KINDS)
def test_normalisation_of_the_level_is_mean_0_and_variance_1_of_all_features_together(kind, convention):
    samples = [chirp(), chirp()[:500]]
    raw, ours = (
        [alone(build(kind, mels=32, convention=convention, normalize=how), one).astype(float) for one in samples]
        for how in ("none", "level")
    )
    for before, after in zip(raw, ours, strict=True):
        np.testing.assert_allclose(after, (before - before.mean()) / np.sqrt(before.var() + 1e-5), atol=2e-5)


def test_normalisation_of_the_level_hears_no_gain_and_makes_silence_0():
    module = LogMel(normalize="level")
    np.testing.assert_allclose(alone(module, 0.1 * chirp()), alone(module, chirp()), atol=2e-4)
    assert not alone(module, np.zeros(4000, np.float32)).any()


@pytest.mark.parametrize(("kind", "convention"), KINDS)
def test_running_normalisation_is_that_of_a_loop_over_the_past(kind, convention):
    raw, ours = (
        alone(build(kind, mels=32, convention=convention, normalize=normalize), chirp(1.0)).astype(np.float64)
        for normalize in ("none", "running")
    )
    prior = PRIOR_VARIANCE["log-mel" if kind == "logmel" else f"MFCC {convention}"]
    for frame in range(len(raw)):
        past = raw[: frame + 1]
        variance = (len(past) * past.var(0) + PRIOR_FRAMES * prior) / (len(past) + PRIOR_FRAMES)
        expected = (raw[frame] - past.mean(0)) / np.sqrt(variance)
        np.testing.assert_allclose(ours[frame], expected, atol=2e-5)


def test_running_normalisation_of_an_hour_keeps_its_digits():
    features = 3 + 0.01 * np.random.default_rng(0).standard_normal((1, 360_000, 1))
    features[0, 0] = -23.0  # silence first, so that all sums are large
    frames = torch.tensor([360_000])
    ours = normalized(torch.tensor(features, dtype=torch.float32), frames, "running", 0.0)[0, -1000:, 0]
    count = np.arange(1, 360_001)
    mean = features[0, :, 0].cumsum() / count
    variance = ((features[0, :, 0] + 23.0) ** 2).cumsum() / count - (mean + 23.0) ** 2
    variance = variance[-1000:] * (count / (count + PRIOR_FRAMES))[-1000:]
    np.testing.assert_allclose(ours, (features[0, :, 0] - mean)[-1000:] / np.sqrt(variance), atol=1e-4)


def test_running_normalisation_does_not_look_ahead():
    samples = chirp()
    changed = np.concatenate([samples[:16000], 10 * samples[16000:]])
    module = LogMel(normalize="running")
    past = module.frames(16000) - 3  # the last windows reach beyond
    np.testing.assert_array_equal(alone(module, samples)[:past], alone(module, changed)[:past])


@pytest.mark.parametrize("convention", ["slaney", "kaldi"])
def test_running_normalisation_of_speech_stays_in_range_from_the_first_frame(convention):
    for path in FIXTURES:
        samples, rate = soundfile.read(path, dtype="float32")
        for kind in ("logmel", "mfcc"):
            module = build(kind, rate=rate, mels=40, convention=convention, normalize="running")
            assert np.abs(alone(module, np.concatenate([np.zeros(800, np.float32), samples]))).max() < 12


def test_a_model_file_would_carry_nothing_of_the_features():
    assert not LogMel().state_dict()
    assert not MFCC(mels=40).state_dict()


def test_attributes_tell_rate_hop_and_size():
    module = build("mfcc", rate=11025, mels=40, coefficients=20, hop=0.01, high=None)
    assert isinstance(module, MFCC)
    assert (module.rate, module.size) == (11025, 20)
    assert module.hop == 110 / 11025  # whole samples: exactly what stands between two frames
    assert isinstance(build("logmel", coefficients=None), LogMel)
    for samples in range(16, 400):  # n / rate * rate may lie below n
        assert LogMel(rate=11025, window=0.04, hop=samples / 11025, mels=4).hop == samples / 11025


def test_autocast_leaves_features_alone():
    samples, lengths = torch.from_numpy(chirp())[None], torch.tensor([32000])
    for module in (LogMel(), MFCC()):
        with torch.autocast("cpu", torch.bfloat16):
            features, _ = module(samples, lengths)
        torch.testing.assert_close(features, module(samples, lengths)[0], rtol=0, atol=0)


def test_other_devices_need_no_look_at_the_lengths(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no meta device
    for kind, convention in KINDS:
        module = build(kind, convention=convention).to("meta")
        lengths = torch.zeros(2, dtype=torch.int64, device="meta")  # a look at these would fail
        features, frames = module(torch.zeros(2, 16000, device="meta"), lengths)
        assert features.shape == (2, module.frames(16000), module.size)
        assert frames.shape == (2,)


@pytest.mark.gpu
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(("kind", "convention"), KINDS)
def test_a_gpu_gives_the_same_features(kind, convention, normalize):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: the features on it were not compared with the CPU's")
    module = build(kind, mels=32, convention=convention, normalize=normalize)
    waveforms = torch.from_numpy(np.stack([chirp(seed=n) for n in range(3)]))
    waveforms[1, 20000:] = math.nan
    lengths = torch.tensor([32000, 20000, 399])
    expected, frames = module(waveforms, lengths)
    features, lengths = module.cuda()(waveforms.cuda(), lengths.cuda())
    assert lengths.tolist() == frames.tolist()
    torch.testing.assert_close(features.cpu(), expected, rtol=1e-4, atol=1e-3)
