"""Promise 6: an error rate comes with counts, normaliser and interval, a comparison with a paired test."""

import dataclasses
import json
import re

import pytest

from asr.score import Comparison, Score, compare, score, wer

SAID = ["the cat sat on the mat", "a dog ran", "it is late", "good night"]
HEARD = ["the cat sat on mat", "a dog ran far", "it is light", "good night"]
OTHER = ["the cat sat on the mat", "a dog ran far", "it was light", "good night"]
CARRIED = {
    "rate",
    "substitutions",
    "deletions",
    "insertions",
    "count",
    "interval",
    "utterances",
    "normalizer",
}


@pytest.mark.parametrize("unit", ["word", "character"])
def test_a_printed_error_rate_carries_counts_interval_and_normaliser(unit):
    line = str(score(SAID, HEARD, unit, normalizer="basic"))
    assert re.fullmatch(
        rf"[WC]ER \d+\.\d\d % \[\d+\.\d\d, \d+\.\d\d\] \(\d+ S, \d+ D, \d+ I of \d+ {unit}s, "
        r"4 utterances, normaliser basic\)",
        line,
    )


def test_an_error_rate_as_json_carries_the_same_and_how_the_interval_was_drawn():
    written = json.loads(json.dumps(score(SAID, HEARD, groups=["x", "x", "y", "z"], seed=3).to_json(), allow_nan=False))
    assert CARRIED | {"errors", "unit", "groups", "seed", "replications"} == set(written)
    assert (written["groups"], written["seed"], written["replications"]) == (3, 3, 1000)
    assert written["interval"][0] <= written["rate"] <= written["interval"][1]


def test_the_shortest_call_gives_an_interval_too_and_no_bare_number():
    result = wer(SAID, HEARD)
    assert isinstance(result, Score) and result.interval is not None
    assert not isinstance(result, float)


def test_what_a_score_says_can_be_recomputed_from_its_counts():
    result = wer(SAID, HEARD)
    assert result.rate == (result.substitutions + result.deletions + result.insertions) / result.count == 3 / 14


def test_a_missing_interval_is_said():
    assert "[no interval]" in str(score(SAID, HEARD, bootstrap=0))
    assert "[no interval]" in str(wer("one", "two"))


def test_two_systems_are_compared_in_pairs_with_interval_and_test():
    result = compare(SAID, HEARD, OTHER)
    assert isinstance(result, Comparison)
    assert None not in (result.interval, result.probability_b_better, result.p_value)
    assert {"a", "b", "difference", "interval", "probability_b_better", "p_value"} <= set(result.to_json())
    assert set(result.to_json()["a"]) >= CARRIED
    assert "matched-pairs test p" in str(result)


def test_results_cannot_be_changed_after_the_fact():
    with pytest.raises(dataclasses.FrozenInstanceError):
        wer(SAID, HEARD).rate = 0.0
