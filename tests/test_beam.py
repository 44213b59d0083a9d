"""The beam search on long and odd input; against enumeration of all that could be said: promises/test_5."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr import ctc
from asr.decode import beam as beam_module
from asr.decode.beam import BeamSearch
from asr.decode.hotwords import HotWords
from asr.decode.lexicon import Lexicon
from asr.decode.ngram import NGram
from asr.decode.search import TOLL, hot_step
from asr.errors import InputError

TOKENS = ["<blank>", "|", "a", "b"]
ALL = {"beam": 100_000, "nbest": 100_000, "token_min": -math.inf, "beam_min": -math.inf}

ARPA = """\\data\\
ngram 1=6
ngram 2=5
ngram 3=2

\\1-grams:
-99\t<s>\t-0.3
-1.2\t</s>
-1.5\t<unk>
-0.6\ta\t-0.2
-0.9\tab\t-0.4
-1.1\tbb\t-0.1

\\2-grams:
-0.3\t<s> a\t-0.15
-0.8\ta ab\t-0.25
-0.7\tab a
-0.5\tab </s>
-1.0\ta a

\\3-grams:
-0.2\t<s> a ab
-0.4\ta ab a

\\end\\
"""


def arpa(tmp_path: Path, text: str = ARPA) -> NGram:
    (tmp_path / "lm.arpa").write_text(text)
    return NGram.load(tmp_path / "lm.arpa")


def emissions(rng: np.random.Generator, frames: int, tokens: int, sharp: float = 2.0) -> np.ndarray:
    logits = rng.normal(0, sharp, (frames, tokens))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def labellings(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Log-probability of every label sequence: the sum over all paths, one by one."""
    found: dict[tuple[int, ...], list[float]] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        labels = tuple(token for token, _ in itertools.groupby(path) if token)
        found.setdefault(labels, []).append(sum(float(row[token]) for row, token in zip(log_probs, path, strict=True)))
    return {labels: float(np.logaddexp.reduce(values)) for labels, values in found.items()}


def best_of_each_text(scored: list[tuple[str, float]]) -> dict[str, float]:
    best: dict[str, float] = {}
    for text, score in scored:
        best[text] = max(score, best.get(text, -math.inf))
    return best


def agree(hypotheses: list[ctc.Hypothesis], expected: dict[str, float], log_probs: np.ndarray) -> None:
    """All texts, each with its score; best first; and every hypothesis adds up."""
    assert {one.text: one.score for one in hypotheses} == pytest.approx(expected, abs=1e-9)
    assert [one.score for one in hypotheses] == sorted((one.score for one in hypotheses), reverse=True)
    acoustic = labellings(log_probs)
    for one in hypotheses:
        assert one.acoustic == pytest.approx(acoustic[one.tokens], abs=1e-9)
        assert one.score == pytest.approx(one.acoustic + one.lm + one.bonus + one.hot, abs=1e-9)


def spelled(word: str, known: set[str]) -> float:
    """How many times `unknown` a word of letters costs: once where it leaves the known words, then a toll a letter."""
    if word in known:
        return 0.0
    inside = max(n for n in range(len(word) + 1) if any(other.startswith(word[:n]) for other in known))
    return 1.0 + TOLL * max(0, len(word) - inside - 1)


def long_emissions(rng: np.random.Generator, frames: int, tokens: list[str]) -> np.ndarray:
    """Emissions that spell random text: peaks on blanks with a token every few frames."""
    logits = rng.normal(-6, 1.5, (frames, len(tokens)))
    logits[:, 0] = 0
    for at in range(2, frames, 3):
        logits[at, 0] = -3
        logits[at, rng.integers(1, len(tokens))] = 2.0
        logits[at, rng.integers(1, len(tokens))] = 1.0
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def test_long_input_keeps_its_memory_and_its_result(monkeypatch):
    log_probs = long_emissions(np.random.default_rng(0), 20_000, TOKENS)
    search = BeamSearch(TOKENS, hot_words={"ab": 1.0}, beam=50)
    small = search.stream()
    small.feed(log_probs)
    assert len(small._space.nodes) <= 65536
    best = small.finish()[0]
    monkeypatch.setattr(beam_module, "_ROOM", 1 << 20)
    assert search.decode(log_probs)[0] == best
    assert len(best.tokens) > 5000


def test_frames_too_many_to_keep_give_the_same_words_with_the_sum_of_the_search(monkeypatch):
    log_probs = long_emissions(np.random.default_rng(1), 300, TOKENS)
    search = BeamSearch(TOKENS, beam=200, beam_min=-30.0, token_min=-20.0)
    exact = search.decode(log_probs)[0]
    monkeypatch.setattr(beam_module, "_KEPT_FRAMES", 100)
    stream = search.stream()
    for begin in range(0, 300, 50):
        stream.feed(log_probs[begin : begin + 50])
    searched = stream.finish()[0]
    assert searched.text == exact.text
    assert searched.acoustic <= exact.acoustic + 1e-9
    assert searched.acoustic == pytest.approx(exact.acoustic, abs=1.0)


def test_the_acoustic_score_is_that_of_the_forward_pass_on_long_input():
    log_probs = long_emissions(np.random.default_rng(2), 2000, TOKENS)
    for one in BeamSearch(TOKENS, beam=20, nbest=5).decode(log_probs):
        [exact] = ctc.log_probability(torch.from_numpy(log_probs)[None], torch.tensor([2000]), [list(one.tokens)])
        assert one.acoustic == pytest.approx(exact, abs=1e-6)


def test_words_that_nobody_said_still_get_their_exact_score():
    log_probs = np.full((400, 2), -8.0)
    log_probs[:, 0] = np.log1p(-np.exp(-8.0))
    stream = BeamSearch(["<blank>", "x"]).stream()
    stream.feed(log_probs)
    for labels in ([1], [1] * 60, [1] * 200):  # the last has e^-1600
        [exact] = ctc.log_probability(torch.from_numpy(log_probs)[None], torch.tensor([400]), [labels])
        rows = beam_module.checked(log_probs, 2)
        assert stream._exact(rows, [np.array(labels)], 0, [exact - 5.0]) == pytest.approx([exact], abs=1e-4)


def test_times_are_those_of_the_most_probable_alignment_within_two_frames():
    log_probs = long_emissions(np.random.default_rng(3), 3000, TOKENS)
    best = BeamSearch(TOKENS, beam=50).decode(log_probs)[0]
    spans = ctc.align(
        torch.from_numpy(log_probs)[None],
        torch.tensor([3000]),
        torch.tensor(best.tokens),
        torch.tensor([len(best.tokens)]),
    )[0]
    near = [abs(a - c) <= 2 and abs(b - d) <= 2 for (a, b), (c, d) in zip(best.frames, spans, strict=True)]
    assert np.mean(near) > 0.95
    assert all(a < b <= c < d for (a, b), (c, d) in itertools.pairwise(best.frames))


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_tokens_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    log_probs = emissions(rng, 30, 6)
    tokens = ["<blank>", "|", "a", "b", "c", "d"]
    order = [0, *(1 + rng.permutation(5))]
    plain = BeamSearch(tokens, beam=20, nbest=5).decode(log_probs)
    mixed = BeamSearch([tokens[i] for i in order], beam=20, nbest=5).decode(log_probs[:, order])
    assert [one.text for one in plain] == [one.text for one in mixed]
    assert [one.score for one in plain] == pytest.approx([one.score for one in mixed], abs=1e-9)


def test_impossible_tokens_and_blank_frames_behind_change_no_text():
    log_probs = emissions(np.random.default_rng(0), 30, 4)
    wide = np.concatenate([log_probs, np.full((30, 2), -np.inf, np.float32)], axis=1)
    quiet = np.full((10, 4), -np.inf, np.float32)
    quiet[:, 0] = 0
    expected = BeamSearch(TOKENS, beam=20).decode(log_probs)[0]
    assert BeamSearch([*TOKENS, "c", "d"], beam=20).decode(wide)[0] == expected
    longer = BeamSearch(TOKENS, beam=20).decode(np.concatenate([log_probs, quiet]))[0]
    assert (longer.text, longer.score) == (expected.text, pytest.approx(expected.score, abs=1e-9))


def test_one_search_serves_several_threads():
    rng = np.random.default_rng(0)
    many = [emissions(rng, 60, 4, 1.0) for _ in range(32)]
    search = BeamSearch(TOKENS, beam=30, nbest=2)
    alone = [search.decode(one) for one in many]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(search.decode, many)) == alone


def test_nothing_heard_is_the_empty_text(tmp_path):
    lm = arpa(tmp_path)
    [best] = BeamSearch(TOKENS, lm).decode(np.zeros((0, 4), np.float32))
    assert (best.text, best.acoustic) == ("", 0.0)
    assert best.score == pytest.approx(0.5 * lm.logprob([]))


def test_a_word_that_the_lexicon_has_no_end_for_is_left_out():
    sure = np.full((3, 4), -30.0)
    sure[[0, 1, 2], [2, 1, 3]] = 0.0
    sure -= np.logaddexp.reduce(sure, axis=1, keepdims=True)
    [best] = BeamSearch(TOKENS, None, Lexicon({"a": [], "ba": []}), beam=1).decode(sure)
    assert (best.text, best.score) == ("a", -math.inf)


def test_hot_words_of_weight_zero_have_no_effect_and_others_leave_the_acoustic_score(tmp_path):
    lm, log_probs = arpa(tmp_path), emissions(np.random.default_rng(4), 12, 4)
    plain = BeamSearch(TOKENS, lm, nbest=5).decode(log_probs)
    assert BeamSearch(TOKENS, lm, hot_words={"bab": 0.0}, nbest=5).decode(log_probs) == plain
    heard = BeamSearch(TOKENS, lm, hot_words={"bab": 30.0}).decode(log_probs)[0]
    assert "bab" in heard.text.split()
    [exact] = ctc.log_probability(torch.from_numpy(log_probs)[None], torch.tensor([12]), [list(heard.tokens)])
    assert heard.acoustic == pytest.approx(exact, abs=1e-6)


@given(st.dictionaries(st.text("ab", min_size=1, max_size=5), st.floats(0.1, 9.0), min_size=1, max_size=8))
def test_no_step_of_hot_words_adds_more_than_the_bound_by_which_prefixes_are_dropped(phrases):
    hot = HotWords.build(phrases, lambda word: [" ab".index(letter) for letter in word])
    for state, symbol in itertools.product(range(len(hot.tree)), range(3)):
        after = hot_step(hot.tree.first, hot.tree.token, hot.fail, state, symbol)
        assert hot.won[after] + hot.credit[after] - hot.credit[state] <= hot.largest + 1e-9


def test_unknown_words_run_together_do_not_fill_the_beam(tmp_path):
    """A toll only where a word ends would let runs of letters put it off for ever, and keep all else out."""
    words = ["aab", "bba", "abab", "baab"]
    text = "\\data\\\nngram 1=7\n\n\\1-grams:\n-99\t<s>\n-0.9\t</s>\n-6\t<unk>\n"
    lm = arpa(tmp_path, text + "".join(f"-0.9\t{word}\n" for word in words) + "\n\\end\\\n")
    rng = np.random.default_rng(5)
    said = [words[i] for i in rng.integers(0, 4, 60)]
    labels = [TOKENS.index("|" if letter == " " else letter) for letter in " ".join(said)]
    logits = rng.normal(-5, 1, (2 * len(labels), 4))
    logits[::2, 0] = 0.0
    for n, label in enumerate(labels):
        logits[2 * n + 1, label] = 1.0
        logits[2 * n + 1, 0] = rng.normal(-0.5, 1.5)
        if label == 1:
            logits[2 * n + 1, 0] = rng.normal(1.5, 0.5)  # boundaries are hard to hear
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    heard = BeamSearch(TOKENS, lm, beam=50).decode(log_probs)[0].text.split()
    assert sum(word in words for word in heard) >= 0.9 * len(heard)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.T, "are the axes swapped?"),
        (lambda x: x[:, :3], "not (frames, 4 tokens)"),
        (lambda x: x[0], "not (frames, 4 tokens)"),
        (lambda x: np.exp(x), "these are probabilities; take their logarithms"),
        (lambda x: x + 1, "apply log_softmax"),
        (lambda x: np.where(np.arange(6)[:, None] == 3, np.nan, x), "frame 3: a value is not a number"),
        (lambda x: np.where(np.arange(6)[:, None] == 2, -np.inf, x), "frame 2: every token has probability 0"),
    ],
)
def test_wrong_emissions_are_refused_in_one_line(change, message):
    log_probs = emissions(np.random.default_rng(0), 6, 4)
    with pytest.raises(InputError) as error:
        BeamSearch(TOKENS).decode(change(log_probs))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"nbest": 0}, "nbest is 0"),
        ({"beam_min": 1.0}, "beam_min is 1.0"),
        ({"token_min": math.nan}, "token_min is nan"),
        ({"lm_weight": 1.0}, "lm_weight has no effect"),
        ({"unknown": -1.0}, "unknown has no effect"),
        ({"hot_words": {"a": -1.0}}, "hot word 'a': weight -1.0"),
        ({"hot_words": {"a": math.nan}}, "hot word 'a': weight nan"),
        ({"hot_words": {" ": 1.0}}, "a hot word is empty"),
        ({"hot_words": {"b axb": 1.0}}, "hot word 'b axb': character 'x'"),
        ({"lexicon": Lexicon({"ax": []})}, "word 'ax': character 'x'"),
        ({"lexicon": Lexicon({"ab": [["a", "q"]]})}, "word 'ab': 'q' is not among"),
        ({"lexicon": Lexicon({"a": []}), "hot_words": {"b": 1.0}}, "hot word 'b' is not in"),
        ({"tokens": ["|", "a"]}, "not with '<blank>'"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(settings, message):
    with pytest.raises(InputError) as error:
        BeamSearch(**({"tokens": TOKENS} | settings))
    assert message in str(error.value)
    assert error.value.status == 2


def test_a_language_model_of_other_words_is_refused(tmp_path):
    with pytest.raises(InputError, match="no word of it can be spelled"):
        BeamSearch(["<blank>", "|", "A", "B"], arpa(tmp_path))


def test_one_token_and_one_frame_are_enough():
    [best] = BeamSearch(["<blank>"]).decode(np.zeros((3, 1), np.float32))
    assert (best.text, best.score) == ("", 0.0)
