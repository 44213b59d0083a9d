"""Interpolated modified Kneser-Ney estimation of n-gram models, with numbers as kenlm's lmplz gives them.

Chen and Goodman (1998), An Empirical Study of Smoothing Techniques for Language Modeling, section 3; Heafield,
Pouzyrevsky, Clark and Koehn (2013), Scalable Modified Kneser-Ney Language Model Estimation. With c(g) how often the
n-gram g occurs, a(g) is c(g) for the highest order and for n-grams that start with ``<s>``, else the number of
different words that stand before g. Each order has discounts D1, D2, D3 by its counts of counts, and

    p(w | h) = (a(h w) - D(a(h w))) / sum_v a(h v) + b(h) p(w | h without its first word)
    b(h) = (D1 N1(h) + D2 N2(h) + D3 N3(h) + pruned(h)) / sum_v a(h v)

where N1, N2, N3 count the words v that are kept behind h with a(h v) of 1, 2, and 3 or more, and pruned(h) sums the
a of those that aren't. 1-grams are interpolated with the uniform distribution over the words and ``<unk>``.

One difference from lmplz (commit 4cb443e): into the counts of counts that one takes the last n-gram of each order
below the highest with its c, not its a. That moves discounts where an order has few n-grams, as 2-grams of characters;
with the words of a text of some size it is beyond the digits written.

Words are numbers here: 0 is ``<unk>``, 1 ``<s>``, 2 ``</s>``.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from asr.errors import InputError

UNK, BOS, EOS = range(3)
FALLBACK = (0.5, 1.0, 1.5)  # of lmplz --discount_fallback


@dataclasses.dataclass(frozen=True)
class Grams:
    """The n-grams of one order, by (context, word).

    Attributes:
        context: int64 (n,), the place of all words but the last in the order below; 0 for 1-grams.
        word: int64 (n,), the last word.
        suffix: int64 (n,), the place of all words but the first in the order below; 0 for 1-grams.
        count: int64 (n,), how often each occurs.
    """

    context: np.ndarray
    word: np.ndarray
    suffix: np.ndarray
    count: np.ndarray


@dataclasses.dataclass(frozen=True)
class Estimated:
    """The kept n-grams of one order.

    Attributes:
        context: int64 (n,), the place of all words but the last among the kept n-grams of the order below.
        word: int64 (n,), the last word.
        probability: float64 (n,), interpolated.
        backoff: float64 (n,), 1 where no n-gram goes on.
    """

    context: np.ndarray
    word: np.ndarray
    probability: np.ndarray
    backoff: np.ndarray


@dataclasses.dataclass(frozen=True)
class Model:
    """An `Estimated` for each order, and the discounts, float64 (4,), that it was made with."""

    orders: list[Estimated]
    discounts: list[np.ndarray]


def count(stream: np.ndarray, words: int, order: int, advance: Callable[[], None] = lambda: None) -> list[Grams]:
    """All n-grams of a text, up to `order` words.

    Args:
        stream: integers (tokens,): each sentence's words between `BOS` and `EOS`, one sentence behind another.
        words: V, the size of the vocabulary.
        order: at least 1.
        advance: called when an order is counted.

    Returns:
        A `Grams` for each order. All words of the vocabulary are 1-grams.
    """
    zeros = np.zeros(words, np.int64)
    grams = [Grams(zeros, np.arange(words), zeros, np.bincount(stream, minlength=words))]
    advance()
    places = stream.astype(np.int64)  # which n-gram stands at each place of the text; -1: the sentence is too short
    for length in range(2, order + 1):
        last = stream[length - 1 :]
        inside = np.flatnonzero((places[: len(last)] >= 0) & (last != BOS))
        key, which, counts = _distinct(places[inside] * words + last[inside], len(grams[-1].word) * words)
        suffix = np.empty(len(key), np.int64)
        suffix[which] = places[inside + 1]
        grams.append(Grams(key // words, key % words, suffix, counts))
        places = np.full(len(last), -1)
        places[inside] = which
        advance()
    return grams


def _distinct(keys: np.ndarray, bound: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different keys in order, the place of each key among them, how often each occurs; all are below `bound`."""
    if bound <= len(keys):  # few units, as characters: a table is much faster than sorting
        table = np.bincount(keys, minlength=bound)
        return np.flatnonzero(table), (np.cumsum(table > 0) - 1)[keys], table[table > 0]
    ranks = np.argsort(keys)
    ordered = keys[ranks]
    new = np.append([True], ordered[1:] != ordered[:-1])[: len(keys)]
    which = np.empty(len(keys), np.int64)
    which[ranks] = np.cumsum(new) - 1
    begins = np.flatnonzero(new)
    return ordered[begins], which, np.diff(np.append(begins, len(keys)))


def adjust(grams: Sequence[Grams]) -> list[np.ndarray]:
    """a(g) of all n-grams: int64 (n,) an order; 0 for ``<unk>`` and, as a 1-gram, ``<s>``."""
    adjusted = [order.count for order in grams]
    adjusted[0] = np.where(np.arange(len(adjusted[0])) == BOS, 0, adjusted[0])
    starts = np.arange(len(grams[0].word)) == BOS
    for place in range(len(grams) - 1):
        before = np.bincount(grams[place + 1].suffix, minlength=len(starts))
        adjusted[place] = np.where(starts, adjusted[place], before)
        starts = starts[grams[place + 1].context]
    return adjusted


def discounts(adjusted: np.ndarray, order: int, fallback: bool = False) -> np.ndarray:
    """D(0) = 0, D1, D2, D3 of one order by its counts of counts (Chen and Goodman, equation 26): float64 (4,).

    Raises:
        InputError: the text is too small or artificial, and no `fallback` to 0.5, 1 and 1.5 was asked for.
    """
    n = np.bincount(np.minimum(adjusted, 5), minlength=6)[:5].astype(float)
    if n[1:4].all():
        y = n[1] / (n[1] + 2 * n[2])
        found = np.array([0.0, *(j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3))])
        if ((found >= 0) & (found <= np.arange(4))).all():
            return found
    if fallback:
        return np.array([0.0, *FALLBACK])
    seen = ", ".join(f"{int(n[j])} seen {j} time{'s'[: j > 1]}" for j in (1, 2, 3, 4))
    raise InputError(
        f"the text gives no discounts for {order}-grams ({seen}): too small, or repeated; "
        "add text, lower the order, or take fixed ones with --discount-fallback"
    )


def estimate(
    grams: Sequence[Grams],
    prune: Sequence[int] = (),
    vocabulary: np.ndarray | None = None,
    fallback: bool = False,
) -> Model:
    """The model of counted n-grams.

    Args:
        grams: as `count` gives them.
        prune: for each order the count up to which its n-grams are left out; 0 for 1-grams, never falling.
        vocabulary: bool (V,): n-grams with any other word are left out (lmplz --limit_vocab_file); None keeps all.
        fallback: fixed discounts where an order's can't be computed.

    Returns:
        The model; behind each context the probabilities of all words but ``<s>`` sum to 1. ``<s>`` itself has 1, as
        lmplz writes it.

    Raises:
        InputError: as `discounts`.
    """
    adjusted = adjust(grams)
    amounts = [discounts(a, place + 1, fallback) for place, a in enumerate(adjusted)]
    known = np.ones(len(grams[0].word), bool) if vocabulary is None else vocabulary.copy()
    known[:3] = True
    thresholds = [*prune, *[prune[-1] if prune else 0] * (len(grams) - len(prune))]
    kept, lower = np.ones(1, bool), np.full(1, 1 / (known.sum() - 1))  # of the order below: here the empty n-gram
    orders: list[Estimated] = []
    for order, a, amount, threshold in zip(grams, adjusted, amounts, thresholds, strict=True):
        places = np.cumsum(kept) - 1
        wanted = known[order.word] & kept[order.context] & ((order.count > threshold) | (len(orders) == 0))
        initial, weight = _initial(order.context, a, amount, wanted, len(lower))
        probability = initial + weight[order.context] * lower[order.suffix]
        if orders:
            orders[-1] = dataclasses.replace(orders[-1], backoff=weight[kept])
        else:
            probability[BOS] = 1.0
        content = places[order.context[wanted]], order.word[wanted], probability[wanted]
        orders.append(Estimated(*content, np.ones(len(content[0]))))
        kept, lower = wanted, probability
    return Model(orders, amounts)


def _initial(
    context: np.ndarray, a: np.ndarray, amount: np.ndarray, kept: np.ndarray, contexts: int
) -> tuple[np.ndarray, np.ndarray]:
    """What each n-gram has of its context's mass before interpolation, and each context's weight of the order below."""
    total = np.bincount(context, a, contexts)
    less = amount[np.minimum(a, 3)]
    free = np.bincount(context, np.where(kept, less, a), contexts)
    with np.errstate(invalid="ignore"):
        return (a - less) / total[context], np.where(total > 0, free / total, 1.0)
