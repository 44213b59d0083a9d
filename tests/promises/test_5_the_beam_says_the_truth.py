"""Promise 5: the beam says the truth.

Scores are the true CTC sums over alignments plus the named terms; a wide beam equals exhaustive search, with and
without language model, lexicon and hot words; feeding frames in pieces equals one call.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_beam import ALL, ARPA, TOKENS, agree, arpa, best_of_each_text, emissions, labellings, spelled

from asr.decode.beam import BeamSearch
from asr.decode.hotwords import count
from asr.decode.lexicon import Lexicon
from asr.text import join


@pytest.mark.parametrize("seed", range(20))
def test_a_wide_beam_finds_every_labelling_with_its_exact_probability(seed):
    rng = np.random.default_rng(seed)
    log_probs = emissions(rng, int(rng.integers(1, 6)), 4)
    expected = [(join([TOKENS[t] for t in labels]), score) for labels, score in labellings(log_probs).items()]
    agree(BeamSearch(TOKENS, **ALL).decode(log_probs), best_of_each_text(expected), log_probs)


@pytest.mark.parametrize("seed", range(20))
def test_words_are_scored_by_the_language_model_and_unknown_ones_pay(seed, tmp_path):
    rng = np.random.default_rng(seed)
    log_probs, lm = emissions(rng, int(rng.integers(1, 6)), 4), arpa(tmp_path)
    weight, bonus, unknown = float(rng.uniform(0.1, 2)), float(rng.normal()), float(-rng.uniform(0, 5))
    hot = {"a": float(rng.uniform(0, 3)), "a ab": 1.5, "ba": float(rng.uniform(0, 3))}
    expected = []
    for labels, acoustic in labellings(log_probs).items():
        words = join([TOKENS[t] for t in labels]).split()
        tolls = unknown * sum(spelled(word, {"a", "ab", "bb", "ba"}) for word in words)
        won = sum(hot[phrase] * n for phrase, n in count(words, hot).items())
        score = acoustic + weight * lm.logprob(words) + tolls + bonus * len(words) + won
        expected.append((" ".join(words), score))
    search = BeamSearch(TOKENS, lm, None, hot, lm_weight=weight, word_bonus=bonus, unknown=unknown, **ALL)
    agree(search.decode(log_probs), best_of_each_text(expected), log_probs)


@pytest.mark.parametrize("seed", range(20))
def test_only_words_of_the_lexicon_come_out(seed, tmp_path):
    rng = np.random.default_rng(seed)
    log_probs, lm = emissions(rng, int(rng.integers(1, 6)), 4), arpa(tmp_path)
    lexicon, hot = Lexicon({"a": [], "ba": [], "bb": []}), {"ba": 1.0, "a bb": 2.0}
    expected = []
    for labels, acoustic in labellings(log_probs).items():
        words = join([TOKENS[t] for t in labels]).split()
        if set(words) <= lexicon.words.keys():
            won = sum(hot[phrase] * n for phrase, n in count(words, hot).items())
            expected.append((" ".join(words), acoustic + 0.7 * lm.logprob(words) + 0.3 * len(words) + won))
    search = BeamSearch(TOKENS, lm, lexicon, hot, lm_weight=0.7, word_bonus=0.3, **ALL)
    agree(search.decode(log_probs), best_of_each_text(expected), log_probs)


@pytest.mark.parametrize("seed", range(20))
def test_pronunciations_without_boundaries_may_be_words_in_any_way_that_the_lexicon_allows(seed, tmp_path):
    rng = np.random.default_rng(seed)
    log_probs, lm = emissions(rng, int(rng.integers(1, 6)), 3), arpa(tmp_path)
    lexicon = Lexicon({"a": [["x"], ["x", "y"]], "ab": [["x", "y"], ["y"]], "bb": [["y", "x"]]})
    spoken = {
        word: [tuple("xy".index(t) + 1 for t in tokens) for tokens in ways] for word, ways in lexicon.words.items()
    }
    acoustic, expected = labellings(log_probs), []
    for n in range(len(log_probs) + 1):
        for words in itertools.product(spoken, repeat=n):
            for ways in itertools.product(*(spoken[word] for word in words)):
                labels = tuple(itertools.chain(*ways))
                if labels in acoustic:
                    score = acoustic[labels] + 0.8 * lm.logprob(words) - 0.4 * n
                    expected.append((" ".join(words), score))
    search = BeamSearch(["<blank>", "x", "y"], lm, lexicon, lm_weight=0.8, word_bonus=-0.4, **ALL)
    agree(search.decode(log_probs), best_of_each_text(expected), log_probs)


@pytest.mark.parametrize("seed", range(10))
def test_whole_words_as_tokens_are_scored_as_words(seed, tmp_path):
    rng = np.random.default_rng(seed)
    log_probs, lm = emissions(rng, int(rng.integers(1, 6)), 4), arpa(tmp_path)
    tokens, hot = ["<blank>", "|a", "|ab", "|c"], {"ab": 0.7, "a c": 1.2}
    expected = []
    for labels, acoustic in labellings(log_probs).items():
        words = join([tokens[t] for t in labels]).split()
        won = sum(hot[phrase] * n for phrase, n in count(words, hot).items())
        expected.append((" ".join(words), acoustic + 0.6 * lm.logprob(words) + 0.2 * len(words) + won))
    search = BeamSearch(tokens, lm, None, hot, lm_weight=0.6, word_bonus=0.2, unknown=-3.0, **ALL)
    found = search.decode(log_probs)
    agree(found, best_of_each_text(expected), log_probs)


@pytest.mark.parametrize("seed", range(10))
def test_a_language_model_of_the_tokens_is_asked_at_every_token(seed, tmp_path):
    rng = np.random.default_rng(seed)
    lm = arpa(tmp_path, ARPA.replace("ab", "|").replace("bb", "b"))
    log_probs, expected = emissions(rng, int(rng.integers(1, 6)), 4), []
    for labels, acoustic in labellings(log_probs).items():
        texts = [TOKENS[t] for t in labels]
        expected.append((join(texts), acoustic + 0.9 * lm.logprob(texts)))
    search = BeamSearch(TOKENS, lm, lm_weight=0.9, **ALL)
    assert search.settings["lm_unit"] == "token"
    agree(search.decode(log_probs), best_of_each_text(expected), log_probs)


@pytest.mark.parametrize("seed", range(10))
def test_the_mode_of_the_best_path_ranks_by_one_alignment(seed):
    rng = np.random.default_rng(seed)
    log_probs = emissions(rng, int(rng.integers(1, 6)), 4)
    best: dict[str, float] = {}
    for path in itertools.product(range(4), repeat=len(log_probs)):
        text = join([TOKENS[token] for token, _ in itertools.groupby(path) if token])
        score = sum(float(row[token]) for row, token in zip(log_probs, path, strict=True))
        best[text] = max(score, best.get(text, -math.inf))
    found = BeamSearch(TOKENS, best_path=True, **ALL).decode(log_probs)
    assert {one.text: one.score for one in found} == pytest.approx(best, abs=1e-9)
    assert all(one.acoustic == pytest.approx(labellings(log_probs)[one.tokens], abs=1e-9) for one in found)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 40), max_size=8))
def test_frames_fed_in_any_pieces_give_the_same_bits(seed, cuts):
    log_probs = emissions(np.random.default_rng(seed), 40, 4, 1.0)
    search = BeamSearch(TOKENS, hot_words={"ab": 1.0, "b a": 2.0}, beam=7, nbest=3)
    stream = search.stream()
    for begin, end in itertools.pairwise([0, *sorted(cuts), 40]):
        stream.feed(log_probs[begin:end])
        stream.partial()
    assert stream.finish() == search.decode(log_probs)
