"""asr.score: rates as sums, intervals against enumeration and known truths, comparisons, printed lines."""

import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys

import numpy as np
import pytest

import asr.score
from asr.errors import InputError
from asr.score import align, compare, score, wer


def texts(rows: list[tuple[int, int]]) -> tuple[list[str], list[str]]:
    """References and hypotheses with so many substituted of so many words."""
    return [" ".join("a" * words) for _, words in rows], [" ".join("b" * e + "a" * (n - e)) for e, n in rows]


def test_rates_come_from_sums_and_never_from_means_of_rates():
    assert wer(["a", "b c d e f g h i j"], ["x", "b c d e f g h i j"]).rate == 0.1


def test_an_infinite_rate_is_valid_json():
    result = wer(["", ""], ["a", "a b"])
    assert result.rate == math.inf and result.interval == (math.inf, math.inf)
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["rate"] is None and plain["interval"] == [None, None] and plain["insertions"] == 3
    compared = compare(["", ""], ["a", "a b"], ["", ""])
    assert compared.difference == -math.inf and compared.probability_b_better == 1
    assert json.loads(json.dumps(compared.to_json(), allow_nan=False))["difference"] is None


@pytest.mark.parametrize(
    "arguments, message, status",
    [
        ({"hypotheses": ["a"]}, "2 references but 1 hypotheses", 1),
        ({"references": [], "hypotheses": []}, "nothing to score", 1),
        ({"hypotheses": ["a", None]}, r"hypothesis 1 \(from 0\) is None, not a text", 1),
        ({"references": ["a", 3]}, r"reference 1 \(from 0\) is 3, not a text", 1),
        ({"unit": "phone"}, "unit 'phone' is unknown; use 'word' or 'character'", 2),
        ({"normalizer": "basik"}, "no normaliser 'basik'; known are none", 2),
        ({"bootstrap": -1}, "bootstrap is -1 replications; use 0 for no interval", 2),
        ({"bootstrap": 39}, "from 40 to 1000000", 2),
        ({"bootstrap": 10**12}, "from 40 to 1000000", 2),
        ({"seed": -1}, "seed is -1; use a whole number from 0", 2),
        ({"groups": ["x"]}, "1 group names for 2 utterances", 1),
        ({"groups": ["x", None]}, r"utterance 1 \(from 0\) has no group", 1),
    ],
)
def test_wrong_arguments_get_one_line(arguments, message, status):
    with pytest.raises(InputError, match=message) as caught:
        score(**({"references": ["a", "b"], "hypotheses": ["a", "b"]} | arguments))
    assert caught.value.status == status


def test_align_and_compare_check_their_arguments_too():
    with pytest.raises(InputError, match="unit 'phone'"):
        align("a", "b", "phone")
    with pytest.raises(InputError, match="2 references but 1 hypotheses"):
        compare(["a", "b"], ["a", "b"], ["a"])


# Intervals


def exact_resamples(rows: list[tuple[int, int]]) -> list[float]:
    """The rate of every one of the n**n equally likely resamples, sorted."""
    draws = itertools.product(rows, repeat=len(rows))
    return sorted(sum(e for e, _ in draw) / sum(n for _, n in draw) for draw in draws)


def test_the_interval_of_three_utterances_worked_by_hand():
    # 27 resamples; all three draws of one utterance have 1/27 > 2.5 %: the interval goes from 0/2 to 2/2.
    assert score(*texts([(0, 2), (1, 4), (2, 2)]), bootstrap=4000).interval == (0.0, 1.0)
    assert exact_resamples([(0, 2), (1, 4), (2, 2)])[::26] == [0.0, 1.0]


@pytest.mark.parametrize("replications, low, high", [(40, 1, 38), (100, 2, 97), (1000, 25, 974)])
def test_as_many_replicates_lie_below_the_interval_as_above(replications, low, high):
    assert asr.score._interval(np.arange(replications, dtype=float)) == (low, high)


def test_an_utterance_without_words_is_drawn_as_its_own_kind():
    assert score(["a a", ""], ["a a", "b"]).interval == (0, math.inf)


def test_the_interval_is_the_quantiles_of_all_resamples():
    rows = [(0, 3), (1, 7), (2, 4), (0, 9), (3, 5), (1, 1)]
    exact = exact_resamples(rows)
    low, high = score(*texts(rows), bootstrap=40_000).interval
    # The share of exact resamples outside each end: 2.5 %, within 4 standard errors of 40,000 draws (0.3 %).
    for beyond, at in (
        (sum(x < low for x in exact), exact.count(low)),
        (sum(x > high for x in exact), exact.count(high)),
    ):
        assert beyond / len(exact) < 0.028 and (beyond + at) / len(exact) > 0.022
    assert exact[0] < low < high < exact[-1]


def test_equal_utterances_drawn_together_are_drawn_as_often_as_apart():
    rows = [(0, 5)] * 80 + [(1, 5)] * 20
    low, high = score(*texts(rows), bootstrap=20_000).interval
    # Errors among 100 drawn are binomial (100, 0.2): quantiles 12 and 28; the rate is errors / 500.
    assert low == pytest.approx(12 / 500, abs=1 / 500 + 1e-9) and high == pytest.approx(28 / 500, abs=1 / 500 + 1e-9)


def test_intervals_cover_the_truth_as_often_as_they_say():
    draw = np.random.default_rng(7)
    words = draw.integers(1, 20, 5000)
    errors = draw.binomial(words, np.minimum(1, draw.gamma(1.0, 0.1, 5000)))
    truth, covered, trials = errors.sum() / words.sum(), 0, 300
    for _ in range(trials):
        picked = draw.integers(0, 5000, 80)
        low, high = score(*texts(list(zip(errors[picked], words[picked], strict=True))), bootstrap=400).interval
        covered += low <= truth <= high
    assert 0.90 <= covered / trials <= 0.98  # 95 % less what 80 utterances and 300 trials (1.3 %) allow


def test_groups_cover_the_truth_where_utterances_of_a_speaker_are_alike():
    draw, trials, covered = np.random.default_rng(11), 200, {"speaker": 0, "utterance": 0}
    for _ in range(trials):
        rates = draw.beta(2, 8, 40)  # one for each speaker, mean 0.2: the truth
        errors = draw.binomial(8, np.repeat(rates, 10))
        pairs, speakers = texts([(int(error), 8) for error in errors]), np.repeat(np.arange(40), 10).tolist()
        for over, groups in ("speaker", speakers), ("utterance", None):
            low, high = score(*pairs, bootstrap=200, groups=groups).interval
            covered[over] += low <= 0.2 <= high
    assert 0.88 <= covered["speaker"] / trials <= 0.99
    assert covered["utterance"] / trials < 0.75


def test_the_interval_depends_on_the_seed_and_on_nothing_else(monkeypatch):
    draw = random.Random(3)
    rows = [(draw.randint(0, 3), draw.randint(3, 12)) for _ in range(60)]
    first = score(*texts(rows), seed=5)
    assert score(*texts(rows), seed=5) == first
    assert score(*texts(rows), seed=6).interval != first.interval
    assert score(*texts(rows[::-1]), seed=5) == first
    assert score(*texts(rows), seed=5, groups=range(60)).interval == first.interval
    monkeypatch.setattr(asr.score, "_DRAWS_IN_MEMORY", 100)
    assert score(*texts(rows), seed=5) == first


def test_the_interval_is_the_same_with_any_number_of_threads():
    program = "import asr.score as s; print(s.wer(['a b c', 'd e', 'f'] * 50, ['a x c', 'd', 'f'] * 50))"
    lines = set()
    for threads in "1", "4":
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        lines.add(done.stdout)
    assert len(lines) == 1 and b"150 utterances" in lines.pop()


def test_groups_are_summed_before_they_are_drawn():
    result = score(["a a", "a", "a a a"], ["b a", "b", "a a a"], groups=["x", "y", "x"], bootstrap=4000)
    assert result.groups == 2 and result.utterances == 3
    assert result.interval == (0.2, 1.0)  # x: 1 of 5, y: 1 of 1; both alone have a quarter of the resamples


def test_one_utterance_or_group_has_no_interval():
    assert wer("a", "b").interval is None
    assert score(["a", "b"], ["a", "c"], groups=["x", "x"]).interval is None
    assert score(["a", "b"], ["a", "c"], bootstrap=0).interval is None
    assert "[no interval]" in str(wer("a", "b"))


# Two systems


def test_comparing_a_system_with_itself_finds_no_difference():
    result = compare(["a b", "c d"] * 20, ["a x", "c d"] * 20, ["a x", "c d"] * 20)
    assert (result.difference, result.interval, result.p_value) == (0, (0, 0), 1)
    assert result.probability_b_better == 0.5


def test_a_comparison_holds_what_score_says_of_each_system():
    said, a, b = ["a b c", "d e", "f"] * 10, ["a x c", "d e", ""] * 10, ["a b c", "d", "f"] * 10
    result = compare(said, a, b, groups=list(range(15)) * 2, seed=4)
    assert result.a == score(said, a, groups=list(range(15)) * 2, seed=4)
    assert result.b == score(said, b, groups=list(range(15)) * 2, seed=4)
    assert result.difference == pytest.approx(result.b.rate - result.a.rate, abs=1e-15)
    assert result.utterances == 30


def test_resamples_are_paired():
    # Utterances differ widely, yet b has always one error more: paired, the difference has next to no spread.
    draw = random.Random(0)
    errors = [draw.randint(0, 10) for _ in range(50)]
    said, a = texts([(error, 12) for error in errors])
    result = compare(said, a, texts([(error + 1, 12) for error in errors])[1])
    assert result.interval == pytest.approx((1 / 12, 1 / 12), abs=1e-12)
    assert result.a.interval[1] - result.a.interval[0] > 0.1
    assert result.probability_b_better == 0
    assert result.p_value is None  # differences of 1 throughout: nothing to estimate their variance from


def test_the_probability_is_the_share_of_all_resamples():
    rows = [(0, 1, 5), (2, 0, 3), (1, 1, 4), (0, 2, 6), (3, 1, 8)]  # errors of a, of b, words
    said = texts([(0, words) for _, _, words in rows])[0]
    a, b = (texts([(row[side], row[2]) for row in rows])[1] for side in (0, 1))
    draws = [sum(row[1] - row[0] for row in draw) for draw in itertools.product(rows, repeat=5)]
    exact = (sum(x < 0 for x in draws) + draws.count(0) / 2) / len(draws)
    assert compare(said, a, b, bootstrap=40_000).probability_b_better == pytest.approx(exact, abs=0.01)


def test_the_matched_pairs_test_worked_by_hand():
    # Differences 2, 0, 1, 1: mean 1, variance 2/3, W = 1 / sqrt(2/3 / 4) = 2.4495.
    said, a = texts([(0, 5), (0, 5), (0, 5), (0, 5)])
    result = compare(said, a, texts([(2, 5), (0, 5), (1, 5), (1, 5)])[1])
    assert result.p_value == pytest.approx(2 * (1 - statistics.NormalDist().cdf(math.sqrt(6))), rel=1e-9)
    assert result.p_value == pytest.approx(0.01431, abs=5e-6)


def test_the_matched_pairs_test_rejects_equal_systems_one_time_in_twenty():
    draw, rejected = np.random.default_rng(5), 0
    for _ in range(400):
        said, a = texts([(int(error), 10) for error in draw.binomial(10, 0.2, 60)])
        b = texts([(int(error), 10) for error in draw.binomial(10, 0.2, 60)])[1]
        rejected += compare(said, a, b, bootstrap=0).p_value < 0.05
    assert 8 <= rejected <= 36  # 20 expected; 4 standard deviations are 17


def test_the_matched_pairs_test_goes_by_groups():
    said, a = texts([(0, 5)] * 4)
    b = texts([(2, 5), (0, 5), (1, 5), (1, 5)])[1]
    assert compare(said, a, b, groups=["x", "x", "y", "y"]).p_value is None  # 2 and 2
    expected = 2 * (1 - statistics.NormalDist().cdf(2))  # 3 and 1: W = 2 / (sqrt(2) / sqrt(2))
    assert compare(said, a, b, groups=["x", "y", "x", "y"]).p_value == pytest.approx(expected, rel=1e-9)
    assert compare(said, a, b, groups=["x"] * 4).p_value is None


# To read


def test_a_score_is_one_line_with_all_that_belongs_to_it():
    said, heard = ["the cat sat", "the red mat"], ["the bat sat", "red mat now"]
    assert str(score(said, heard, normalizer="basic", bootstrap=100, seed=1)) == (
        "WER 50.00 % [33.33, 66.67] (1 S, 1 D, 1 I of 6 words, 2 utterances, normaliser basic)"
    )
    assert str(score("ab", "ac", "character")) == (
        "CER 50.00 % [no interval] (1 S, 0 D, 0 I of 2 characters, 1 utterances, normaliser none)"
    )
    assert "2 utterances in 2 groups" in str(score(said, heard, groups=["x", "y"]))


def test_a_comparison_reads_as_three_lines():
    said, a, b = ["a b", "c d", "e f"], ["a b", "c x", "y f"], ["a b", "c d", "y f"]
    lines = str(compare(said, a, b)).split("\n")
    assert [line[:3] for line in lines] == ["a: ", "b: ", "b -"]
    assert "-16.67 % [" in lines[2] and "of resamples, matched-pairs test p 0.32" in lines[2]
    assert str(compare("a", "a", "b")).endswith("b - a: +100.00 % [no interval], matched-pairs test p undefined")
