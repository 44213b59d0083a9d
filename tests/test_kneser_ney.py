from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.decode import kneser_ney
from asr.decode.kneser_ney import BOS, EOS, UNK
from asr.errors import InputError

LM = Path(__file__).parent / "data" / "lm"
SENTENCES = [line.split() for line in (LM / "text.txt").read_text().splitlines()]


class Slow:
    """The formulas of Chen and Goodman one n-gram at a time, in dictionaries keyed by tuples of words: the oracle."""

    def __init__(self, sentences, order, prune=(), known=None, fallback=(0.5, 1.0, 1.5)):
        self.order = order
        self.counts = Counter()
        for sentence in sentences:
            whole = ("<s>", *sentence, "</s>")
            for n in range(1, order + 1):
                self.counts.update(whole[i : i + n] for i in range(len(whole) - n + 1))
        words = {gram[0] for gram in self.counts if len(gram) == 1} - {"<s>", "</s>"}
        known = words if known is None else known
        self.vocabulary = known & words | {"<unk>", "</s>"}
        thresholds = [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]
        self.kept = {
            gram
            for gram, count in self.counts.items()
            if all(word in self.vocabulary | {"<s>"} for word in gram) and (count > thresholds[len(gram) - 1])
        }
        self.discounts = [self.discount(n, fallback) for n in range(1, order + 1)]

    def adjusted(self, gram):
        if len(gram) == self.order or gram[0] == "<s>":
            return 0 if gram == ("<s>",) else self.counts[gram]
        return sum(other[1:] == gram for other in self.counts if len(other) == len(gram) + 1)

    def discount(self, n, fallback):
        counts = Counter(self.adjusted(gram) for gram in self.counts if len(gram) == n)
        if counts[1] and counts[2] and counts[3]:
            y = counts[1] / (counts[1] + 2 * counts[2])
            found = [j - (j + 1) * y * counts[j + 1] / counts[j] for j in (1, 2, 3)]
            if all(0 <= d <= j for j, d in enumerate(found, 1)):
                return [0, *found]
        return [0, *fallback]

    def of(self, context):
        """The n-grams that a context begins, kept or not."""
        return [gram for gram in self.counts if gram[:-1] == context and gram != ("<s>",)]

    def backoff(self, context):
        grams, discounts = self.of(context), self.discounts[len(context)]
        total = sum(map(self.adjusted, grams))
        free = sum(
            discounts[min(self.adjusted(gram), 3)] if gram in self.kept else self.adjusted(gram) for gram in grams
        )
        return free / total if total else 1.0

    def probability(self, gram):
        """Interpolated, of a gram that is kept; that of the longest kept end times the back-offs of others."""
        context, discounts = gram[:-1], self.discounts[len(gram) - 1]
        lower = self.probability(gram[1:]) if context else 1 / len(self.vocabulary)
        if gram not in self.kept:
            return self.backoff(context) * lower
        total = sum(map(self.adjusted, self.of(context)))
        a = self.adjusted(gram)
        return (a - discounts[min(a, 3)]) / total + self.backoff(context) * lower


def numbered(sentences):
    """The words behind the three special ones, and the text as `count` takes it."""
    words = ["<unk>", "<s>", "</s>", *sorted({word for sentence in sentences for word in sentence})]
    ids = {word: number for number, word in enumerate(words)}
    stream = [number for sentence in sentences for number in (BOS, *map(ids.get, sentence), EOS)]
    return words, np.array(stream, np.int32)


def model_of(sentences, order, **settings):
    """The estimate, and for each order the n-grams as tuples of words."""
    words, stream = numbered(sentences)
    model = kneser_ney.estimate(kneser_ney.count(stream, len(words), order), **settings)
    names, spelled = [()], []
    for estimated in model.orders:
        pairs = zip(estimated.context.tolist(), estimated.word.tolist(), strict=True)
        names = [(*names[context], words[word]) for context, word in pairs]
        spelled.append(names)
    return model, spelled


def test_the_oracle_on_a_case_worked_by_hand():
    """Sentences 'a b' and 'a a', bigrams, discounts 0.5 1 1.5.

    Before a stand <s> and a, before b stands a, before </s> stand a and b: 1-gram a's of 2, 1, 2 of 5 in all.
    p(a) = (2 - 1) / 5 + (1 + .5 + 1) / 5 / 4 = 0.325.
    Behind a stand a, b, </s> once each: p(a | a) = .5 / 3 + .5 * .325.
    """
    slow = Slow([["a", "b"], ["a", "a"]], 2)
    assert slow.probability(("a",)) == pytest.approx(0.325)
    assert slow.probability(("a", "a")) == pytest.approx(0.5 / 3 + 0.5 * 0.325)
    assert slow.backoff(("<s>",)) == pytest.approx(0.5)  # <s> a is seen twice: D2 of 1 from 2


def test_the_case_worked_by_hand():
    model, names = model_of([["a", "b"], ["a", "a"]], 2, fallback=True)
    assert model.orders[0].probability[names[0].index(("a",))] == pytest.approx(0.325)
    assert model.orders[1].probability[names[1].index(("a", "a"))] == pytest.approx(0.5 / 3 + 0.5 * 0.325)
    assert model.orders[0].backoff[BOS] == pytest.approx(0.5)


def test_adjusted_counts_worked_by_hand():
    words, stream = numbered([["a", "b", "a"], ["a", "b"]])
    grams = kneser_ney.count(stream, len(words), 3)
    unigrams, bigrams, trigrams = kneser_ney.adjust(grams)
    assert dict(zip(words, unigrams.tolist(), strict=True)) == {"<unk>": 0, "<s>": 0, "</s>": 2, "a": 2, "b": 1}
    named = [(words[grams[1].context[n]], words[grams[1].word[n]]) for n in range(len(bigrams))]
    assert dict(zip(named, bigrams.tolist(), strict=True)) == {
        ("<s>", "a"): 2,  # raw: nothing stands before <s>
        ("a", "b"): 1,
        ("b", "a"): 1,
        ("b", "</s>"): 1,
        ("a", "</s>"): 1,
    }
    assert sorted(trigrams.tolist()) == [1, 1, 1, 2]


def test_discounts_by_the_closed_form():
    adjusted = np.repeat([0, 1, 2, 3, 4, 9], [7, 40, 20, 10, 5, 3])
    y = 40 / 80
    expected = [0, 1 - 2 * y * 20 / 40, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10]
    assert kneser_ney.discounts(adjusted, 1).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("counts", [[], [1, 2], [1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]])
def test_a_text_without_discounts_is_refused_or_has_those_of_lmplz(counts):
    with pytest.raises(InputError, match=r"no discounts for 2-grams \(\d+ seen 1 time, .*--discount-fallback"):
        kneser_ney.discounts(np.array(counts, np.int64), 2)
    assert kneser_ney.discounts(np.array(counts, np.int64), 2, fallback=True).tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("order3", {}),
        ("pruned", {"prune": (0, 0, 1)}),
        ("vocabulary", {"vocabulary": 10}),
    ],
)
def test_numbers_are_those_of_lmplz(name, settings):
    """To 2e-6 in the common logarithm: lmplz computes in float32."""
    if "vocabulary" in settings:
        words, stream = numbered(SENTENCES)
        settings = {"vocabulary": np.bincount(stream, minlength=len(words)) >= settings["vocabulary"]}
    model, names = model_of(SENTENCES, 3, **settings)
    order, expected = 0, [{}, {}, {}, {}]
    for line in (LM / f"{name}.arpa").read_text().splitlines():
        order = int(line[1]) if line[1:2].isdigit() and line.startswith("\\") else order
        if "\t" in line:
            logprob, gram, *backoff = line.split("\t")
            expected[order][tuple(gram.split())] = (float(logprob), float(backoff[0]) if backoff else 0.0)
    for estimated, found, wanted in zip(model.orders, names, expected[1:], strict=True):
        assert set(found) == set(wanted)
        numbers = np.stack([np.log10(estimated.probability), np.log10(estimated.backoff)], 1)
        assert np.abs(numbers - [wanted[gram] for gram in found]).max() < 2e-6


texts = st.lists(st.lists(st.sampled_from("abcd"), max_size=5), min_size=1, max_size=8)
prunes = st.sampled_from([(), (0, 1), (0, 0, 1), (0, 1, 2)])


@given(texts, st.integers(1, 4), prunes, st.sampled_from([None, "ab", "a"]))
def test_any_small_text_gives_the_oracles_numbers(text, order, prune, known):
    prune = prune[:order]
    vocabulary = None if known is None else np.isin(numbered(text)[0], list(known))
    model, names = model_of(text, order, prune=prune, vocabulary=vocabulary, fallback=True)
    slow = Slow(text, order, prune, None if known is None else set(known))
    for n, (estimated, grams) in enumerate(zip(model.orders, names, strict=True), 1):
        assert set(grams) - {("<unk>",), ("<s>",)} == {gram for gram in slow.kept if len(gram) == n} - {("<s>",)}
        for gram, probability, backoff in zip(grams, estimated.probability, estimated.backoff, strict=True):
            if gram != ("<s>",):
                assert probability == pytest.approx(slow.probability(gram), abs=1e-12)
            assert backoff == pytest.approx(slow.backoff(gram) if n < order else 1.0, abs=1e-12)


@pytest.mark.parametrize("settings", [{}, {"prune": (0, 0, 1)}, {"prune": (0, 1, 2, 4)}])
def test_probabilities_behind_any_context_sum_to_one(settings):
    model, names = model_of(SENTENCES, 4, fallback=True, **settings)
    table = {
        gram: number
        for n, order in enumerate(names)
        for gram, number in zip(
            order, zip(model.orders[n].probability, model.orders[n].backoff, strict=True), strict=True
        )
    }
    words = [gram[0] for gram in names[0] if gram != ("<s>",)]

    def probability(gram):
        if gram in table:
            return table[gram][0]
        return table.get(gram[:-1], (0, 1.0))[1] * probability(gram[1:])

    contexts = [(), *names[0], *names[1][::7], *names[2][::11], ("<unk>", "ash"), ("ash", "<unk>")]
    for context in contexts:
        if context[-1:] != ("</s>",):
            assert sum(probability((*context, word)) for word in words) == pytest.approx(1, abs=1e-9)


def test_the_unknown_word_has_its_share_and_the_start_is_certain():
    orders = model_of(SENTENCES, 3)[0].orders
    weight = orders[0].probability[UNK] * (len(orders[0].word) - 1)
    assert 0 < weight < 1
    assert orders[0].probability[BOS] == 1
    assert orders[0].backoff[[UNK, EOS]].tolist() == [1, 1]
