"""asr.augment: draws keyed by (seed, epoch, utterance, purpose), and what they do to sound and features."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.augment import Augmentation, at_speed, generator
from asr.errors import InputError

STRONG = Augmentation(0.9, 1.1, 6.0, 2, 8, 2, 0.2)


def tone(frequency: float, samples: int = 16000, rate: int = 16000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)).astype(np.float32)


def ones(lengths: list[int], frames: int | None = None, size: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that are 1 in every row's own frames and 0 behind them."""
    own = torch.tensor(lengths)
    features = (torch.arange(frames or max(lengths)) < own[:, None])[:, :, None].expand(-1, -1, size)
    return features.float().contiguous(), own


def test_the_draws_of_a_key_never_change():
    """Should they change, a model can't be trained again by its seed, and an unfinished run can't go on."""
    drawn = generator(1, 2, "u", "x").random(3)
    np.testing.assert_allclose(drawn, [0.28289881, 0.17200207, 0.45401967], atol=1e-8)
    drawn = generator(7, 0, "fsdd/0_george_0", "speed").integers(0, 1000, 5)
    assert drawn.tolist() == [824, 471, 257, 255, 680]


def test_every_part_of_the_key_matters():
    keys = [(s, e, u, p) for s in (0, 1, 12) for e in (0, 1, 2) for u in ("a", "b", "1", "") for p in ("x", "y", "b")]
    keys += [(1, 2, 'a", "b', "x"), (1, 2, "a", 'b", "x'), (-1, 0, "ä", "x"), (0, 0, "a\ud800", "x")]
    draws = {generator(*key).integers(2**62) for key in keys}
    assert len(draws) == len(keys)


@pytest.mark.parametrize("off", [Augmentation(), Augmentation(1.0, 1.0, 0.0, 0, 0, 0, 0.0)])
def test_off_returns_its_input_itself(off):
    samples = tone(440.0)
    features, lengths = ones([30, 20])
    assert off.waveform(samples, 16000, 0, 0, "a") is samples
    assert off.features(features, lengths, 0, 0, ["a", "b"]) is features


@pytest.mark.parametrize("rate", [8000, 11025, 16000])
@pytest.mark.parametrize("speed", [0.8, 0.913, 0.98765, 1.1, 1.25])
def test_speed_moves_the_frequency_of_a_tone_and_its_duration(speed, rate):
    changed = at_speed(tone(1000.0, 2 * rate, rate), rate, speed)
    speed = round(speed, 3)
    assert changed.dtype == np.float32
    assert abs(len(changed) - 2 * rate / speed) <= 1
    inner = changed[1000:-1000].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(inner * np.kaiser(len(inner), 25), 2**20)) ** 2
    assert spectrum.argmax() * rate / 2**20 == pytest.approx(1000 * speed, abs=0.2)
    assert np.std(inner) * math.sqrt(2) == pytest.approx(0.3, rel=1e-2)
    peak = int(spectrum.argmax())
    around = 2**20 // len(inner) * 12
    noise = np.delete(spectrum, np.s_[peak - around : peak + around]).sum()
    assert 10 * math.log10(spectrum.sum() / noise) > 80  # an interpolating resampler would reach 73


def test_what_lies_above_half_the_rate_at_a_higher_speed_is_gone():
    changed = at_speed(tone(7700.0), 16000, 1.1)[1000:-1000]
    assert 20 * math.log10(np.std(changed) / np.std(tone(7700.0))) < -90


def test_speeds_are_drawn_evenly_from_the_range():
    only = Augmentation(speed_min=0.8, speed_max=1.2)
    samples = tone(440.0, 8000)
    speeds = np.array([8000 / len(only.waveform(samples, 16000, 3, 0, str(n))) for n in range(300)])
    assert 0.799 < speeds.min() < 0.82
    assert 1.18 < speeds.max() < 1.201
    assert abs(speeds.mean() - 1) < 0.03
    fixed = Augmentation(speed_min=1.1, speed_max=1.1)
    assert len(fixed.waveform(samples, 16000, 0, 0, "a")) == round(8000 / 1.1)


def test_gain_scales_by_the_same_factor_throughout_evenly_in_decibels():
    only = Augmentation(gain_db=6.0)
    samples = tone(440.0)
    decibels = []
    for number in range(300):
        ratio = only.waveform(samples, 16000, 0, number, "a")[1:] / samples[1:]
        assert np.ptp(ratio[np.abs(samples[1:]) > 0.01]) < 1e-5
        decibels.append(20 * math.log10(np.median(ratio)))
    assert -6.001 <= min(decibels) < -5.5
    assert 5.5 < max(decibels) <= 6.001
    assert abs(np.mean(decibels)) < 0.7


def test_waveforms_of_any_length_survive_and_are_not_changed_in_place():
    assert len(at_speed(tone(440.0, 1), 8000, 2.0)) == 1  # not half a sample
    samples = tone(440.0)
    assert at_speed(samples, 8000, 1.0004) is samples
    for length in (0, 1, 2, 3, 160, 1148):
        samples = tone(440.0, length)
        samples.setflags(write=False)  # as a file mapped into memory is
        changed = STRONG.waveform(samples, 8000, 0, 0, "a")
        assert abs(len(changed) - length) <= 1 + 0.12 * length
        assert bool(len(changed)) == bool(length)
        assert changed.dtype == np.float32
        assert np.isfinite(changed).all()


def test_an_utterance_becomes_the_same_in_any_company_and_order():
    samples = tone(440.0)
    first = STRONG.waveform(samples, 16000, 5, 2, "b")
    features, lengths = ones([100, 70, 15])
    together = STRONG.features(features, lengths, 5, 2, ["a", "b", "c"])
    STRONG.waveform(samples, 16000, 5, 2, "a")
    np.testing.assert_array_equal(STRONG.waveform(samples, 16000, 5, 2, "b"), first)
    others = [STRONG.waveform(samples, 16000, *key) for key in ((6, 2, "b"), (5, 3, "b"), (5, 2, "c"))]
    assert len({len(other) for other in [first, *others]}) == 4  # other speeds
    wide, wide_lengths = ones([15, 70], frames=200)
    other = STRONG.features(wide, wide_lengths, 5, 2, ["c", "b"])
    assert torch.equal(other[1, :70], together[1, :70])
    assert torch.equal(other[0, :15], together[2, :15])
    assert not torch.equal(STRONG.features(features, lengths, 5, 3, ["a", "b", "c"]), together)
    assert not torch.equal(STRONG.features(features, lengths, 6, 2, ["a", "b", "c"]), together)


@given(
    st.lists(st.sampled_from(["ann", "bob", None]), max_size=30),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(1, 6),
)
def test_joined_utterances_are_each_there_once_of_one_speaker_and_no_more_than_may_be(speakers, join, epoch, most):
    rows = Augmentation(join=join).rows(speakers, 1, epoch, lambda row: len(row) <= most)
    assert sorted(number for row in rows for number in row) == list(range(len(speakers)))
    assert all(len({speakers[number] for number in row}) == 1 for row in rows)
    assert all(1 <= len(row) <= min(join, most) for row in rows)
    assert rows == Augmentation(join=join).rows(speakers, 1, epoch, lambda row: len(row) <= most)


def test_utterances_are_joined_anew_in_every_epoch_in_all_sizes_alike():
    epochs = [Augmentation(join=3).rows(["ann"] * 3000, 1, epoch, lambda row: True) for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    sizes = np.bincount([len(row) for row in epochs[0]])[1:]
    assert len(sizes) == 3
    assert abs(sizes / sizes.sum() - 1 / 3).max() < 0.05


def runs(hidden: np.ndarray) -> list[int]:
    """Lengths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hidden, [False]]).astype(int)))
    return (edges[1::2] - edges[::2]).tolist()


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    size=st.integers(1, 40),
    frequency=st.tuples(st.integers(1, 4), st.integers(1, 60)),
    time=st.tuples(st.integers(1, 5), st.floats(0.01, 1.0)),
    epoch=st.integers(0, 10**6),
)
def test_masks_keep_within_their_bounds(lengths, size, frequency, time, epoch):
    (frequency_masks, frequency_width), (time_masks, time_share) = frequency, time
    masks = dict(frequency_masks=frequency_masks, frequency_width=frequency_width)
    masks |= dict(time_masks=time_masks, time_share=time_share)
    features, own = ones(lengths, frames=max(lengths) + 3, size=size)
    features += torch.rand_like(features) * (features > 0)
    before = features.clone()
    masked = Augmentation(**masks).features(features, own, 0, epoch, [str(n) for n in range(len(lengths))])
    assert torch.equal(features, before)
    assert ((masked == features) | (masked == 0)).all()
    for row, length in zip((masked == 0).numpy(), lengths, strict=True):
        assert row[length:].all()
        if not length:
            continue
        frames, bands = row[:length].all(1), row[:length].all(0)
        assert not frames.all() and not bands.all()
        assert (row[:length] == (frames[:, None] | bands[None])).all()
        assert frames.sum() <= time_masks * int(time_share * length)
        assert bands.sum() <= frequency_masks * min(frequency_width, size - 1)
        assert len(runs(frames)) <= time_masks
        assert len(runs(bands)) <= frequency_masks


def test_masks_reach_every_frame_every_band_and_their_full_width():
    one = Augmentation(frequency_masks=1, frequency_width=5, time_masks=1, time_share=0.25)
    names = [str(n) for n in range(2000)]
    features, lengths = ones([20] * len(names), size=12)
    hidden = (one.features(features, lengths, 0, 0, names) == 0).numpy()
    frames, bands = hidden.all(2), hidden.all(1)
    assert np.bincount(frames.sum(1)).tolist() == pytest.approx([2000 / 6] * 6, rel=0.25)
    assert np.bincount(bands.sum(1)).tolist() == pytest.approx([2000 / 6] * 6, rel=0.25)
    assert frames.any(0).all() and bands.any(0).all()
    assert frames.sum(0)[5:15].std() < 0.15 * frames.sum(0)[5:15].mean()


def test_fifteen_frames_keep_most_of_what_they_say():
    features, lengths = ones([15] * 200, size=40)
    kept = STRONG.features(features, lengths, 0, 0, [str(n) for n in range(200)]).mean((1, 2))
    assert kept.min() > 0.3
    assert kept.mean() < 0.95


def test_values_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STRONG.gain_db = 3.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed_min": 0.4}, r"augment\.speed_min=0\.4: choose a number from 0\.5 to 2"),
        ({"speed_max": 2.5}, r"augment\.speed_max=2\.5: choose a number from 0\.5 to 2"),
        ({"speed_min": 1.2}, r"augment\.speed_min=1\.2: is above augment\.speed_max=1\.0"),
        ({"speed_max": "fast"}, r"augment\.speed_max=fast: choose a number"),
        ({"gain_db": -1.0}, r"augment\.gain_db=-1\.0: choose a number from 0 to 60"),
        ({"gain_db": math.nan}, r"augment\.gain_db=nan: choose a number"),
        ({"frequency_masks": 1.5}, r"augment\.frequency_masks=1\.5: choose a whole number from 0 to 20"),
        ({"frequency_masks": True}, r"augment\.frequency_masks=True: choose a whole number"),
        ({"frequency_width": 257}, r"augment\.frequency_width=257: choose a whole number from 0 to 256"),
        ({"time_masks": 101}, r"augment\.time_masks=101: choose a whole number from 0 to 100"),
        ({"join": 0}, r"augment\.join=0: choose a whole number from 1 to 100"),
        ({"time_share": 1.5}, r"augment\.time_share=1\.5: choose a number from 0 to 1"),
        ({"time_masks": 2}, r"augment\.time_masks=2: has no effect while augment\.time_share is 0"),
        ({"time_share": 0.1}, r"augment\.time_share=0\.1: has no effect while augment\.time_masks is 0"),
        ({"frequency_masks": 2}, r"augment\.frequency_masks=2: .* while augment\.frequency_width is 0"),
        ({"frequency_width": 8}, r"augment\.frequency_width=8: .* while augment\.frequency_masks is 0"),
    ],
)
def test_a_wrong_setting_is_named_with_its_range(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        Augmentation(**settings)
    assert caught.value.status == 2
