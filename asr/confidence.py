"""Are words right as often as their probabilities say, and do the probabilities part right words from wrong ones?

A word heard is right if the alignment that the word error rate counts (`asr.alignment`) puts it against the same word.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from asr.alignment import Normalizer, align, find_normalizer, normalize
from asr.ctc import Hypothesis

BINS = 10
_DRAWS, _TAIL = 200, 0.95
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Judged:
    """Words heard: `probability` `(words,)` float64 in [0, 1], and whether each was `right` `(words,)` bool."""

    probability: Floats
    right: npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Confidence:
    """How far the probabilities of `words` words are from the share of them that is right.

    Args:
        calibration_error: the expected calibration error: over bins of equally many words (words of one probability
            stay together), the mean distance of share right and mean probability, weighted by words; from 0 to 1.
        by_chance: the error below which 95 % stay of recognisers whose words are right exactly as often as these
            probabilities say; what lies below it tells nothing. None where no word was heard.
        roc_area: the probability that a right word has a higher probability than a wrong one (equal counts half);
            None where no word is right, or none is wrong.
        bins: for each bin its words, their mean probability, and the share of them that is right.
        words: words heard.
        calibrated: whether the probabilities are fitted to a dev set (`asr.calibration`) or the model's own.
    """

    calibration_error: float
    by_chance: float | None
    roc_area: float | None
    bins: tuple[tuple[int, float, float], ...]
    words: int
    calibrated: bool

    def to_json(self) -> dict[str, Any]:
        """All fields; a bin as an object."""
        names = ("words", "probability", "right")
        return dataclasses.asdict(self) | {"bins": [dict(zip(names, one, strict=True)) for one in self.bins]}

    def __str__(self) -> str:
        """One line: error, what chance gives, area, and what the probabilities are."""
        kind = "calibrated" if self.calibrated else "not calibrated"
        if self.by_chance is None:
            return f"word probabilities ({kind}): no word heard"
        area = "" if self.roc_area is None else f", area under the ROC {self.roc_area:.3f}"
        return (
            f"word probabilities ({kind}): expected calibration error {100 * self.calibration_error:.2f} points "
            f"(below {100 * self.by_chance:.2f} by chance){area}, {self.words} words heard in {len(self.bins)} bins"
        )


def sureness(hypothesis: Hypothesis) -> list[tuple[str, float]]:
    """The words of a hypothesis with their probabilities, for `judge`."""
    return [(span.word, span.probability) for span in hypothesis.words]


def judge(
    references: Iterable[str], heard: Iterable[Sequence[tuple[str, float]]], normalizer: Normalizer = None
) -> Judged:
    """Which of the words heard were said.

    Args:
        references: texts, what was said.
        heard: for each its words, in order, with their probabilities.
        normalizer: as in `asr.score.score`. A word that it makes several of is right if all of them are; one that it
            makes nothing of is left out.
    """
    function, _ = find_normalizer(normalizer)
    probability: list[float] = []
    right: list[bool] = []
    for reference, words in zip(references, heard, strict=True):
        units = [text.split() for text in normalize([word for word, _ in words], "word", function)]
        [said] = normalize([reference], "reference", function)
        edits = align(said, " ".join(unit for word in units for unit in word))
        hits = iter([edit.op == "=" for edit in edits if edit.hypothesis is not None])
        for (_, own), inside in zip(words, units, strict=True):
            found = [next(hits) for _ in inside]
            if found:
                probability.append(own)
                right.append(all(found))
    return Judged(np.array(probability, np.float64), np.array(right, np.bool_))


def measure(judged: Judged, calibrated: bool, seed: int = 0) -> Confidence:
    """How honest the probabilities are; `seed` is that of the draws for `by_chance`."""
    probability, right = judged.probability, judged.right.astype(np.float64)
    count = len(probability)
    if not count:
        return Confidence(0.0, None, None, (), 0, calibrated)
    place = _places(probability)
    generator = np.random.default_rng(seed)
    draws = [_error(probability, generator.random(count) < probability, place) for _ in range(_DRAWS)]
    words = np.bincount(place)
    sums = [np.bincount(place, values) for values in (probability, right)]
    bins = tuple((int(n), float(sure / n), float(hits / n)) for n, sure, hits in zip(words, *sums, strict=True))
    return Confidence(
        _error(probability, right, place),
        float(np.quantile(draws, _TAIL)),
        _roc_area(probability, judged.right),
        bins,
        count,
        calibrated,
    )


def _places(probability: Floats) -> npt.NDArray[np.int64]:
    """The bin of each word, from 0; as many words in each as equal probabilities allow, none empty.

    Bins of equal width would put nine words of ten into the last one, where too sure and not sure enough cancel.
    """
    ordered = np.sort(probability)
    edges = np.unique(ordered[[len(ordered) * number // BINS for number in range(1, BINS)]])
    return np.unique(np.searchsorted(edges, probability, side="right"), return_inverse=True)[1]


def _error(probability: Floats, right: npt.NDArray[Any], place: npt.NDArray[np.int64]) -> float:
    """The expected calibration error of words in bins."""
    return float(np.abs(np.bincount(place, right - probability)).sum() / len(probability))


def _roc_area(probability: Floats, right: npt.NDArray[np.bool_]) -> float | None:
    """By the sum of ranks (Mann and Whitney 1947), equal probabilities sharing the mean of theirs."""
    hits = int(right.sum())
    if hits in (0, len(right)):
        return None
    _, group, repeats = np.unique(probability, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(repeats) - (repeats - 1) / 2)[group]
    return float((ranks[right].sum() - hits * (hits + 1) / 2) / (hits * (len(right) - hits)))
