"""Calibrated probabilities of words, against a grid of all curves, cases worked by hand, and a simulated recogniser."""

import json
import math

import numpy as np
import pytest
from small_model import write

import asr
from asr import calibration, card, confidence
from asr.calibration import Calibration, fit
from asr.confidence import Judged
from asr.decode import settings
from asr.errors import InputError


def logistic(odds):
    return 1 / (1 + math.exp(-odds))


def likelihood(slope, offset, heard, right):
    """Of words and prior, term by term, by the formula of the docstring."""
    words = [(math.log(p / (1 - p)), float(r), 1.0) for p, r in zip(heard, right, strict=True)]
    words += [(odds, logistic(odds), calibration.PRIOR / 9) for odds in range(-4, 5)]
    total = 0.0
    for odds, target, weight in words:
        q = logistic(slope * odds + offset)
        total += weight * (target * math.log(q) + (1 - target) * math.log(1 - q))
    return total


def simulated(words, seed=0):
    """A recogniser that is too sure: right words by the true odds, its own odds twice those and more."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(1.5, 1.5, words)
    right = generator.random(words) < 1 / (1 + np.exp(-odds))
    return 1 / (1 + np.exp(-(2 * odds + 1))), right


@pytest.mark.parametrize("kind", ["sure", "all right", "upside down"])
def test_the_curve_is_the_best_of_a_grid(kind):
    heard, right = simulated(60)
    right = {"sure": right, "all right": right | True, "upside down": heard < 0.9}[kind]
    found = fit(heard, right)
    slopes, offsets = np.linspace(0.05, 2.05, 41), np.linspace(-6, 6, 61)
    best = max(likelihood(a, b, heard, right) for a in slopes for b in offsets)
    assert likelihood(found.slope, found.offset, heard, right) >= best - 1e-9
    for a, b in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        if found.slope + a >= 0.05:
            better = likelihood(found.slope + a, found.offset + b, heard, right)
            assert better < likelihood(found.slope, found.offset, heard, right)
    assert (found.slope == 0.05) is (kind == "upside down")


def test_no_words_change_nothing_and_few_change_little():
    assert fit([], []) == Calibration(1.0, 0.0, 0)
    at = np.linspace(0.01, 0.99, 99)
    assert Calibration()(at) == pytest.approx(at, abs=1e-12)
    assert np.abs(fit([0.9], [True])(at) - at).max() < 0.05  # a word against ten
    assert np.abs(fit([0.9], [False])(at) - at).max() < 0.2  # the most surprising of words


@pytest.mark.parametrize("right", [True, False])
def test_words_that_are_all_right_or_all_wrong_lead_to_no_certainty(right):
    found = fit(np.full(500, 0.9), np.full(500, right))
    assert 0.001 < found(0.9) < 0.999


def test_the_order_of_words_stays_and_all_are_probabilities():
    found = fit(*simulated(300))
    at = np.concatenate([[0.0, 1e-300], np.linspace(1e-6, 1 - 1e-6, 1001), [1.0]])
    assert (np.diff(found(at)) >= 0).all()
    assert (np.diff(found(at[2:-1])) > 0).all()
    for curve in (found, Calibration(20.0, 20.0, 1), Calibration(20.0, -20.0, 1)):
        assert ((curve(at) >= 0) & (curve(at) <= 1)).all()
        assert isinstance(curve(0.5), float)


def test_it_makes_a_recogniser_that_is_too_sure_honest_on_words_it_was_not_fitted_on():
    heard, right = simulated(4000)
    found = fit(heard[:2000], right[:2000])
    before = confidence.measure(Judged(heard[2000:], right[2000:]), False)
    after = confidence.measure(Judged(found(heard[2000:]), right[2000:]), True)
    assert before.calibration_error > 2 * before.by_chance
    assert after.calibration_error < after.by_chance
    assert after.roc_area == pytest.approx(before.roc_area)  # the order of words is what it was


def test_the_error_of_cases_worked_by_hand():
    """Ten bins of two; in the first ten words two wrong at 0.2 and 0.4: |sum(right - p)| by bin, over 20 words."""
    heard = np.repeat(np.arange(1, 11) / 10 - 0.05, 2)
    right = np.array([0, 0] * 5 + [1, 1] * 5, bool)
    by_hand = sum(2 * min(p, 1 - p) for p in np.arange(1, 11) / 10 - 0.05) / 20
    found = confidence.measure(Judged(heard, right), False)
    assert found.calibration_error == pytest.approx(by_hand)
    assert len(found.bins) == 10 and sum(n for n, *_ in found.bins) == found.words == 20
    assert found.roc_area == 1.0
    one = confidence.measure(Judged(np.full(4, 0.5), np.array([1, 1, 1, 0], bool)), False)
    assert (one.calibration_error, one.bins, one.roc_area) == (0.25, ((4, 0.5, 0.75),), 0.5)
    two = confidence.measure(Judged(np.array([0.2, 0.6, 0.4]), np.array([0, 1, 1], bool)), False)
    assert two.roc_area == 1.0
    assert confidence.measure(Judged(np.array([0.2, 0.6, 0.4]), np.array([1, 0, 1], bool)), False).roc_area == 0.0


def test_nothing_heard_and_nothing_wrong_are_no_failure():
    nothing = confidence.measure(confidence.judge(["a"], [[]]), False)
    assert nothing.by_chance is None and "no word heard" in str(nothing)
    assert confidence.measure(confidence.judge(["a"], [[("a", 0.9)]]), True).roc_area is None


def test_words_are_judged_by_the_alignment_that_the_error_rate_counts():
    judged = confidence.judge(["One two THREE", "x"], [[("one", 0.9), ("five", 0.5), ("three", 0.8)], []], "lower")
    assert judged.right.tolist() == [True, False, True]
    assert judged.probability.tolist() == [0.9, 0.5, 0.8]
    split = confidence.judge(["a b c"], [[("a-b", 0.7), ("-", 0.1), ("c", 0.6)]], "basic")
    assert (split.right.tolist(), split.probability.tolist()) == ([True, True], [0.7, 0.6])


WRONG = [
    {"slope": 1.0, "offset": 0.0},
    {"slope": -1.0, "offset": 0.0, "words": 1},
    {"slope": math.nan, "offset": 0.0, "words": 1},
    {"slope": 1.0, "offset": math.inf, "words": 1},
    {"slope": True, "offset": 0.0, "words": 1},
    {"slope": "1", "offset": 0.0, "words": 1},
    {"slope": 1.0, "offset": 0.0, "words": 1.5},
    {"slope": 1.0, "offset": 0.0, "words": 1, "more": 1},
    [1.0, 0.0, 1],
    None,
]


@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
def test_a_hostile_calibration_is_one_line_in_a_card_and_in_a_decoder_file(value, tmp_path):
    good = asr.load(write(tmp_path / "m.safetensors"), "cpu").card
    hostile = good | {"decoder": {"kind": "greedy", "calibration": value}}
    with pytest.raises(InputError, match=r"calibration|no number of JSON") as refused:
        card.check_card(hostile, "m")
    assert "\n" not in str(refused.value)
    own = value | {"model": "0"} if isinstance(value, dict) else value
    (tmp_path / "decoder.json").write_text(json.dumps({"kind": "beam", "calibration": own}))
    with pytest.raises(InputError, match=r"calibration is .* which is of the wrong kind"):
        settings.read(tmp_path / "decoder.json")


def test_a_transcript_has_the_calibrated_probability_and_says_so(tmp_path):
    recognizer = asr.load(write(tmp_path / "m.safetensors"), "cpu")
    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    plain = recognizer.transcribe(wave, 8000)
    assert plain.words and "calibration" not in plain.decoder
    curve = Calibration(0.5, -1.0, 9)
    recognizer.card["decoder"]["calibration"] = curve.to_json()
    card.check_card(recognizer.card, "m")
    found = recognizer.transcribe(wave, 8000)
    assert found.decoder["calibration"] == curve.to_json()
    assert [word.probability for word in found.words] == pytest.approx(
        [curve(word.probability) for word in plain.words],
        abs=2e-4,  # a transcript rounds to four places
    )
    search = {
        model: settings.build(recognizer.tokens, {"calibration": curve.to_json() | {"model": model}})
        for model in (recognizer.identity["sha256"], "another")
    }
    mine, other = (recognizer.transcribe(wave, 8000, decoder=one) for one in search.values())
    assert "calibration" in mine.decoder and "calibration" not in other.decoder
    assert [word.probability for word in mine.words] == pytest.approx(
        [curve(word.probability) for word in other.words], abs=2e-4
    )
