"""asr.alignment: counts against jiwer, brute force, published and hand-worked values; alignments to read."""

import functools
import math

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.alignment import Edit, align, format_alignment
from asr.score import score, wer
from asr.text import normalizers

WORDS = st.lists(st.sampled_from(["a", "b", "c", "é", "日本"]), max_size=9).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6)


def brute_force(said: tuple[str, ...], heard: tuple[str, ...]) -> int:
    """The edit distance by its definition, all three choices tried at every step."""

    @functools.cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        keep = distance(i - 1, j - 1) + (said[i - 1] != heard[j - 1])
        return min(keep, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(said), len(heard))


@pytest.mark.parametrize(
    "said, heard, distance",
    [
        ("", "", 0),
        ("abc", "", 3),
        ("", "ab", 2),
        ("ab", "ba", 2),
        ("abcd", "bcde", 2),
        ("kitten", "sitting", 3),
    ],
)
def test_the_brute_force_oracle_gives_hand_worked_distances(said, heard, distance):
    assert brute_force(tuple(said), tuple(heard)) == distance


# Morris, Maier, Green: From WER and RIL to MER and WIL (ICSLP 2004).
@pytest.mark.parametrize(
    "said, heard, rate",
    [("X", "X", 0), ("X", "X X Y Y", 3), ("X Y X", "X Z", 2 / 3), ("X", "Y", 1), ("X", "Y Z", 2)],
)
def test_published_word_error_rates(said, heard, rate):
    assert wer(said, heard).rate == pytest.approx(rate, abs=1e-15)


@pytest.mark.parametrize(
    "said, heard, s, d, i",
    [
        ("the cat sat", "the cat sat", 0, 0, 0),
        ("the cat sat", "the bat sat", 1, 0, 0),
        ("the cat sat", "cat sat", 0, 1, 0),
        ("the cat sat", "oh the cat sat down", 0, 0, 2),
        ("a b c d", "b c d e", 0, 1, 1),
        ("a b c d", "x c d y z", 1, 1, 2),
        ("a b c", "x", 1, 2, 0),
    ],
)
def test_hand_worked_counts(said, heard, s, d, i):
    result = wer(said, heard)
    assert (result.substitutions, result.deletions, result.insertions) == (s, d, i)
    assert (result.errors, result.count) == (s + d + i, len(said.split()))


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_counts_are_jiwers_after_the_normaliser(pairs):
    said, heard = map(list, zip(*pairs, strict=True))
    for unit, process in ("word", jiwer.process_words), ("character", jiwer.process_characters):
        ours, theirs = score(said, heard, unit=unit, bootstrap=0), process(said, heard)
        for field in "substitutions", "deletions", "insertions":
            assert getattr(ours, field) == getattr(theirs, field), (unit, field)
        assert ours.count == theirs.hits + theirs.substitutions + theirs.deletions
        if ours.count:
            assert ours.rate == pytest.approx(theirs.wer if unit == "word" else theirs.cer, rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS)
def test_alignments_are_minimal_complete_and_what_score_counts(said, heard):
    for unit, split in ("word", str.split), ("character", list):
        steps = align(said, heard, unit)
        assert [step.reference for step in steps if step.op != "I"] == split(said)
        assert [step.hypothesis for step in steps if step.op != "D"] == split(heard)
        assert all((step.reference == step.hypothesis) == (step.op == "=") for step in steps)
        assert sum(step.op != "=" for step in steps) == brute_force(tuple(split(said)), tuple(split(heard)))
        result = score(said, heard, unit, bootstrap=0)
        ops = "".join(step.op for step in steps)
        assert [ops.count(op) for op in "SDI"] == [result.substitutions, result.deletions, result.insertions]


@pytest.mark.parametrize(
    "said, heard, rate, insertions, deletions",
    [
        ([""], [""], 0, 0, 0),
        ([""], ["a b"], math.inf, 2, 0),
        (["a b"], [""], 1, 0, 2),
        (["", "a b"], ["x y z", "a b"], 1.5, 3, 0),
        (["   ", "a"], ["\n", "a"], 0, 0, 0),
    ],
)
def test_an_empty_reference_counts_its_insertions(said, heard, rate, insertions, deletions):
    result = wer(said, heard)
    assert (result.rate, result.insertions, result.deletions) == (rate, insertions, deletions)


def test_composed_and_decomposed_letters_and_all_white_space_are_the_same():
    said, heard = "caf\u00e9 noir  tr\u00e8s\u3000bon", "\tcafe\u0301\u00a0noir\r\ntre\u0300s bon\u2028"
    for unit in "word", "character":
        assert score(said, heard, unit).errors == 0
    assert score("cafe\u0301", "cafe", "character").count == 4


def test_characters_count_single_spaces_and_no_ends():
    result = score("  a  b ", "ab", "character")
    assert (result.count, result.deletions, result.errors) == (3, 1, 1)


def test_normalisers_by_name_or_function_are_applied_and_named():
    assert score("Hello, World!", "hello world", normalizer="basic").errors == 0
    assert score("Hello, World!", "hello world").errors == 2
    assert score("Hello", "hello", normalizer=str.lower).errors == 0
    names = [score("a", "a", normalizer=given).normalizer for given in (None, "basic", str.lower)]
    assert names == ["none", "basic", "lower"]
    assert score("a", "a", normalizer=normalizers["basic"]).normalizer == "basic"
    assert score("a", "a", normalizer=lambda text: text.upper()).normalizer == "<lambda>"


def test_what_a_normaliser_returns_is_made_nfc_again():
    assert score("e- \u0301", "\u00e9", normalizer=lambda text: text.replace("- ", "")).errors == 0


def test_single_texts_and_iterators_are_accepted():
    assert wer("a b", "a c") == wer(["a b"], iter(["a c"]))


def test_alignments_stand_in_columns():
    assert format_alignment(align("the cat sat", "the big bat")) == (
        "REF: the cat sat\nHYP: the big bat\n         S   S"
    )
    assert format_alignment(align("the cat sat here", "cat sat down there")) == (
        "REF: the cat sat **** here\nHYP: *** cat sat down there\n     D           I    S"
    )


def test_columns_are_as_wide_as_a_terminal_shows_them():
    steps = [("=", "日Ｂ", "日Ｂ"), ("S", "x\u0323", "long"), ("D", "ab", None), ("I", None, "日")]
    assert format_alignment([Edit(*step) for step in steps]) == (
        "REF: 日Ｂ x\u0323    ab **\nHYP: 日Ｂ long ** 日\n          S    D  I"
    )


def test_spaces_as_units_are_visible_and_controls_never_reach_the_terminal():
    assert format_alignment(align("a b", "ab", "character")).split("\n") == [
        "REF: a ␣ b",
        "HYP: a * b",
        "       D",
    ]
    shown = format_alignment([Edit("S", "\x1b[31m", "\u202eabc")])
    assert "\x1b" not in shown and "\u202e" not in shown and shown.count("\ufffd") == 2
    assert format_alignment([]) == "REF:\nHYP:\n"
