"""Promise 5, where tokens are pieces of words: a wide beam equals exhaustive search with all that decoding offers.

A word is known (to language model, lexicon, hot words) in the one spelling that the tokenizer gives it.
"""

import numpy as np
import pytest
from test_beam import ALL, agree, arpa, best_of_each_text, emissions, labellings

from asr.decode.beam import BeamSearch
from asr.decode.hotwords import count
from asr.decode.lexicon import Lexicon
from asr.decode.search import TOLL
from asr.text import PieceTokenizer, join, tokenizer

PIECES = ["<blank>", "|a", "b", "|", "a"]  # `ba` begins with a boundary alone
WORDS = {"a": ("|a",), "ab": ("|a", "b"), "bb": ("b", "b"), "ba": ("b", "a")}


def words_of(labels: tuple[int, ...]) -> list[tuple[str, ...]]:
    """The words of a labelling, each as its tokens without the boundaries that stand alone."""
    words: list[list[str]] = [[]]
    for label in labels:
        if PIECES[label].startswith("|"):
            words.append([])
        if PIECES[label] != "|":
            words[-1].append(PIECES[label])
    return [tuple(word) for word in words if word]


def name(word: tuple[str, ...]) -> str:
    """The word that is spelled so, a sign for any other."""
    return next((text for text, spelling in WORDS.items() if spelling == word), "<unk>")


def toll(word: tuple[str, ...]) -> float:
    """How many times `unknown` a word costs: once where it leaves the known ones, then a toll a token."""
    if word in WORDS.values():
        return 0.0
    inside = max(n for n in range(len(word) + 1) if any(known[:n] == word[:n] for known in WORDS.values()))
    return 1.0 + TOLL * max(0, len(word) - inside - 1)


def heard(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return emissions(rng, int(rng.integers(1, 6)), len(PIECES))


def cases(log_probs):
    """Text, words and log-probability of every labelling."""
    for labels, acoustic in labellings(log_probs).items():
        yield join([PIECES[label] for label in labels]), words_of(labels), acoustic


def test_the_words_are_spelled_as_the_tests_below_take_them_to_be():
    pieces = tokenizer(PIECES)
    assert isinstance(pieces, PieceTokenizer)
    for word, spelling in WORDS.items():
        assert [PIECES[number] for number in pieces.encode(word)] == ["|"] * (word[0] == "b") + list(spelling)


@pytest.mark.parametrize("seed", range(15))
def test_words_of_pieces_are_scored_by_the_language_model_and_unknown_ones_pay(seed, tmp_path):
    lm, hot = arpa(tmp_path), {"a": 0.8, "a ab": 1.5, "ba": 2.0}
    log_probs, expected = heard(seed), []
    for text, words, acoustic in cases(log_probs):
        names = [name(word) for word in words]
        won = sum(hot[phrase] * n for phrase, n in count(names, hot).items())
        lm_and_toll = 0.7 * lm.logprob(known(names, lm)) - 2.5 * sum(map(toll, words))
        expected.append((text, acoustic + lm_and_toll + 0.4 * len(words) + won))
    search = BeamSearch(PIECES, lm, None, hot, lm_weight=0.7, word_bonus=0.4, unknown=-2.5, **ALL)
    agree(search.decode(log_probs), best_of_each_text(expected), log_probs)


def known(names: list[str], lm) -> list[str]:
    """`ba` is a hot word that the language model does not know."""
    assert "ba" not in lm.ids and "ab" in lm.ids
    return ["<unk>" if one == "ba" else one for one in names]


@pytest.mark.parametrize("spellings", [{}, WORDS], ids=["whole", "told"])
@pytest.mark.parametrize("seed", range(8))
def test_only_words_of_the_lexicon_come_out_whole_or_with_their_pieces_told(seed, spellings, tmp_path):
    lm, hot = arpa(tmp_path), {"ba": 1.0, "a bb": 2.0}
    lexicon = Lexicon({word: [spellings[word]] if word in spellings else [] for word in WORDS})
    log_probs, expected = heard(seed), []
    for text, words, acoustic in cases(log_probs):
        names = [name(word) for word in words]
        if "<unk>" not in names:
            won = sum(hot[phrase] * n for phrase, n in count(names, hot).items())
            score = acoustic + 0.7 * lm.logprob(known(names, lm)) + 0.3 * len(words) + won
            expected.append((text, score))
            assert " ".join(names) == text
    search = BeamSearch(PIECES, lm, lexicon, hot, lm_weight=0.7, word_bonus=0.3, **ALL)
    agree(search.decode(log_probs), best_of_each_text(expected), log_probs)


@pytest.mark.parametrize("seed", range(8))
def test_a_language_model_of_pieces_is_asked_at_every_piece(seed, tmp_path):
    text = "\\data\\\nngram 1=6\n\n\\1-grams:\n-99\t<s>\n-1.2\t</s>\n-0.5\t|a\n-0.9\tb\n-1.3\t|\n-0.7\ta\n\n\\end\\\n"
    lm, log_probs, expected = arpa(tmp_path, text), heard(seed), []
    for labels, acoustic in labellings(log_probs).items():
        pieces = [PIECES[label] for label in labels]
        expected.append((join(pieces), acoustic + 0.9 * lm.logprob(pieces)))
    search = BeamSearch(PIECES, lm, lm_weight=0.9, **ALL)
    assert search.settings["lm_unit"] == "token"
    agree(search.decode(log_probs), best_of_each_text(expected), log_probs)


def test_a_language_model_of_pieces_need_not_hold_the_boundary_alone(tmp_path):
    text = "\\data\\\nngram 1=4\n\n\\1-grams:\n-99\t<s>\n-1.2\t</s>\n-0.5\t|a\n-0.9\tb\n\n\\end\\\n"
    assert BeamSearch(PIECES, arpa(tmp_path, text)).settings["lm_unit"] == "token"
    assert BeamSearch(PIECES, arpa(tmp_path, text.replace("|a", "a"))).settings["lm_unit"] == "word"
