"""Word and character error rates with what belongs to them: counts, interval, paired comparison.

An error rate is (substitutions + deletions + insertions) / reference units, in a minimal alignment of each
utterance (`asr.alignment`), summed over all utterances before dividing.

Intervals are 95 % percentile bootstrap intervals of that ratio of sums (Bisani and Ney, ICASSP 2004), drawn
over utterances, or over groups of them (speakers) where utterances of a group are alike. Two systems are
compared on the same resamples, and by the matched-pairs test of Gillick and Cox (ICASSP 1989), NIST's
MAPSSWE. How the figures differ from those of jiwer and sclite stands in ``docs/scoring.md``.

Rates and intervals are fractions (0.05 is 5 %); they can exceed 1. What reads files (`read_pairs`) and shows
alignments (`align`, `format_alignment`) can be imported from here too.
"""

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from asr.alignment import (
    UNITS,
    Edit,
    Normalizer,
    Texts,
    align,
    check_unit,
    count,
    find_normalizer,
    format_alignment,
    normalize,
)
from asr.errors import InputError
from asr.pairs import Pairs, read_pairs

__all__ = [
    "Comparison",
    "Edit",
    "Pairs",
    "Score",
    "align",
    "compare",
    "format_alignment",
    "read_pairs",
    "score",
    "wer",
]

Integers: TypeAlias = npt.NDArray[np.int64]

_TAIL = 0.025  # outside a 95 % interval, on each side
_MIN_BOOTSTRAP, _MAX_BOOTSTRAP = 40, 1_000_000  # 40: the fewest of which a tail holds one
_DRAWS_IN_MEMORY = 1_000_000  # bounds what the bootstrap holds at a time, 8 bytes each


@dataclasses.dataclass(frozen=True)
class Score:
    """An error rate with its parts; `str` gives them in one line, `to_json` as an object.

    `rate` is errors / `count` (reference units); with empty references 0 if nothing was inserted, else
    infinite. `interval` is None without a bootstrap or where there is only one utterance (group) to draw.
    `groups` is how many groups the interval was drawn over, None for utterances.
    """

    unit: str
    rate: float
    substitutions: int
    deletions: int
    insertions: int
    count: int
    interval: tuple[float, float] | None
    utterances: int
    normalizer: str
    groups: int | None
    replications: int
    seed: int

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    def to_json(self) -> dict[str, Any]:
        """All fields, and `errors`; an infinite number becomes None, for JSON has none."""
        fields = dataclasses.asdict(self) | {"errors": self.errors, "rate": _finite(self.rate)}
        return fields | {"interval": _finite_interval(self.interval)}

    def __str__(self) -> str:
        """One line: rate, interval, the counts, and how the texts were normalised."""
        within = "" if self.groups is None else f" in {self.groups} groups"
        return (
            f"{UNITS[self.unit]} {100 * self.rate:.2f} % {_brackets(self.interval)} "
            f"({self.substitutions} S, {self.deletions} D, {self.insertions} I of {self.count} {self.unit}s, "
            f"{self.utterances} utterances{within}, normaliser {self.normalizer})"
        )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two systems on the same utterances; a negative `difference` (rate of b - rate of a): b is better.

    `a` and `b` are what `score` gives. `probability_b_better` is the share of resamples in which b has the
    lower rate (equal rates count one half). `p_value` is two-sided, for "both make equally many errors"; None
    where the differences of the utterances (groups) are all the same but not 0, which leaves no variance to
    test against.
    """

    a: Score
    b: Score
    difference: float
    interval: tuple[float, float] | None
    probability_b_better: float | None
    p_value: float | None
    utterances: int

    def to_json(self) -> dict[str, Any]:
        """All fields, the two scores as their own objects."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"a": self.a.to_json(), "b": self.b.to_json(), "difference": _finite(self.difference)}
        return fields | {"interval": _finite_interval(self.interval)}

    def __str__(self) -> str:
        """Three lines: both scores, and their difference."""
        parts = [f"b - a: {100 * self.difference:+.2f} % {_brackets(self.interval)}"]
        if self.probability_b_better is not None:
            parts.append(f"b better in {100 * self.probability_b_better:.1f} % of resamples")
        parts.append(f"matched-pairs test p {'undefined' if self.p_value is None else f'{self.p_value:.2g}'}")
        return f"a: {self.a}\nb: {self.b}\n" + ", ".join(parts)


def score(
    references: Texts,
    hypotheses: Texts,
    unit: str = "word",
    normalizer: Normalizer = None,
    bootstrap: int = 1000,
    groups: Iterable[Hashable] | None = None,
    seed: int = 0,
) -> Score:
    """The error rate of `hypotheses`, one for each of `references`.

    Args:
        references: texts, what was said (a single string is one text).
        hypotheses: texts, what was heard.
        unit: "word" or "character".
        normalizer: a name in `asr.text.normalizers`, a function from text to text, or None.
        bootstrap: replications of the interval, 40 to 1,000,000; 0 for no interval.
        groups: a name for each utterance (its speaker); the interval is then drawn over groups.
        seed: of the bootstrap. The interval does not depend on the order of the utterances.

    Raises:
        InputError: the numbers of texts differ, there are none, or an argument has no meaning.
    """
    _check(unit, bootstrap, seed)
    function, name = find_normalizer(normalizer)
    pairs = normalize(references, "reference", function), normalize(hypotheses, "hypothesis", function)
    counts = count(*pairs, unit)
    return _score(counts, _clusters(groups, len(counts)), unit, name, bootstrap, seed)


def wer(references: Texts, hypotheses: Texts) -> Score:
    """The word error rate with its interval: `score` with its defaults, of two lists or two single texts."""
    return score(references, hypotheses)


def compare(
    references: Texts,
    a: Texts,
    b: Texts,
    unit: str = "word",
    normalizer: Normalizer = None,
    bootstrap: int = 1000,
    groups: Iterable[Hashable] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare the hypotheses of two systems for the same references; arguments and errors as in `score`.

    The resamples are paired: each draws utterances (groups) and takes both systems' errors in them. The test
    is MAPSSWE with utterances (groups) as segments: Z the n differences of errors, W = mean(Z) / (sd(Z) /
    sqrt(n)), sd with n - 1, and p = erfc(|W| / sqrt(2)), two tails of the normal distribution. It wants some
    30 segments.
    """
    _check(unit, bootstrap, seed)
    function, name = find_normalizer(normalizer)
    said = normalize(references, "reference", function)
    counts = [count(said, normalize(texts, "hypothesis", function), unit) for texts in (a, b)]
    clusters = _clusters(groups, len(said))
    score_a, score_b = (_score(part, clusters, unit, name, bootstrap, seed) for part in counts)
    rows = np.stack([counts[1][:, :3].sum(1) - counts[0][:, :3].sum(1), counts[0][:, 3]], axis=1)
    rows = _sum_clusters(rows, clusters)
    replicates = _replicates(rows, bootstrap, seed)
    better = None if replicates is None else float((replicates < 0).mean() + (replicates == 0).mean() / 2)
    difference = float(_rates(rows.sum(0, keepdims=True))[0])
    return Comparison(
        score_a, score_b, difference, _interval(replicates), better, _matched_pairs(rows[:, 0]), len(said)
    )


def _check(unit: str, bootstrap: int, seed: int) -> None:
    check_unit(unit)
    if bootstrap != 0 and not _MIN_BOOTSTRAP <= bootstrap <= _MAX_BOOTSTRAP:
        limits = f"from {_MIN_BOOTSTRAP} to {_MAX_BOOTSTRAP}"
        raise InputError(f"bootstrap is {bootstrap} replications; use 0 for no interval, or {limits}", status=2)
    if seed < 0:
        raise InputError(f"seed is {seed}; use a whole number from 0", status=2)


def _score(counts: Integers, clusters: Integers | None, unit: str, name: str, bootstrap: int, seed: int) -> Score:
    rows = _sum_clusters(np.stack([counts[:, :3].sum(1), counts[:, 3]], axis=1), clusters)
    substitutions, deletions, insertions, units = map(int, counts.sum(0))
    return Score(
        unit=unit,
        rate=float(_rates(rows.sum(0, keepdims=True))[0]),
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        count=units,
        interval=_interval(_replicates(rows, bootstrap, seed)),
        utterances=len(counts),
        normalizer=name,
        groups=None if clusters is None else len(rows),
        replications=bootstrap,
        seed=seed,
    )


def _clusters(groups: Iterable[Hashable] | None, utterances: int) -> Integers | None:
    """The number of each utterance's group (utterances,), from 0."""
    if groups is None:
        return None
    names = list(groups)
    if len(names) != utterances:
        raise InputError(f"{len(names)} group names for {utterances} utterances; each utterance needs one")
    if None in names:
        raise InputError(f"utterance {names.index(None)} (from 0) has no group; name its group or leave groups out")
    number: defaultdict[Hashable, int] = defaultdict(itertools.count().__next__)
    return np.array([number[name] for name in names], dtype=np.int64)


def _sum_clusters(rows: Integers, clusters: Integers | None) -> Integers:
    """Rows (utterances, columns) summed within groups (groups, columns)."""
    if clusters is None:
        return rows
    sums = np.zeros((int(clusters.max()) + 1, rows.shape[1]), dtype=np.int64)
    np.add.at(sums, clusters, rows)
    return sums


def _rates(sums: Integers) -> npt.NDArray[np.float64]:
    """Errors by units, of rows (n, 2): without units 0 where there are no errors, else infinite."""
    errors, units = sums[:, 0], sums[:, 1]
    limits = np.where(errors == 0, 0.0, np.copysign(np.inf, errors))
    return np.divide(errors, units, out=limits, where=units > 0)


def _replicates(rows: Integers, replications: int, seed: int) -> npt.NDArray[np.float64] | None:
    """Sorted bootstrap replicates of the rate: each draws as many rows as there are, with replacement.

    Equal rows are drawn together: how often each kind comes is multinomial, and kinds are few (as many errors
    in as many words), so that 100,000 utterances cost little more than 1,000. The sums are of integers, hence
    exact in any order.
    """
    if replications == 0 or len(rows) < 2:
        return None
    key = rows[:, 0] * (rows[:, 1].max() + 1) + rows[:, 1]  # one number a kind: np.unique of rows is slow
    _, first, repeats = np.unique(key, return_index=True, return_counts=True)
    kinds = rows[first]
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS_IN_MEMORY // len(kinds))
    sizes = [min(step, replications - start) for start in range(0, replications, step)]
    shares = repeats / len(rows)
    draws = (generator.multinomial(len(rows), shares, size=size) for size in sizes)
    return np.sort(np.concatenate([_rates(draw @ kinds) for draw in draws]))


def _interval(replicates: npt.NDArray[np.float64] | None) -> tuple[float, float] | None:
    """The 95 % percentile interval of sorted replicates: order statistics, as many outside on either side."""
    if replicates is None:
        return None
    outside = int(_TAIL * len(replicates))
    return float(replicates[outside]), float(replicates[-1 - outside])


def _matched_pairs(differences: Integers) -> float | None:
    """The two-sided p-value of the matched-pairs test on differences of errors (segments,)."""
    deviation = differences.std(ddof=1) if len(differences) > 1 else 0.0
    if deviation == 0:
        return None if differences.any() or len(differences) < 2 else 1.0
    return math.erfc(abs(differences.mean()) / (deviation / math.sqrt(len(differences))) / math.sqrt(2))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite_interval(interval: tuple[float, float] | None) -> list[float | None] | None:
    return None if interval is None else [_finite(value) for value in interval]


def _brackets(interval: tuple[float, float] | None) -> str:
    return "[no interval]" if interval is None else f"[{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"
