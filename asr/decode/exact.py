"""The log-probability of label sequences, summed over all alignments: what a search ranks its best hypotheses by.

The forward recursion over the states blank, label, blank, ... (Graves et al. 2006, equations 5 to 8) in plain numbers,
scaled before they get too small. Too low, or -inf, where labels are so unlikely that states are left aside which were
to matter after all: the sum of a search, a lower bound, shows it. `asr.ctc.log_probability` is slower, and leaves none
aside.
"""

import math
from collections.abc import Sequence

import numpy as np

from asr.compiled import bare, compiled
from asr.decode.search import joined_sum

_SMALL = 1e-30  # the likeliest state's probability below which all are scaled
_NOTHING = 1e-30  # share of it below which the first and last states are left alone; a beam is far narrower
_BLOCK = 256  # frames whose probabilities are taken at once


def log_sums(rows: np.ndarray, labels: Sequence[np.ndarray], best_path: int) -> list[float]:
    """The log-probability of each of `labels` in the emissions `rows` `(frames, tokens)`; of its best path only."""
    ends = np.cumsum([0, *map(len, labels)])
    found: list[float] = _sums(rows, np.concatenate(labels).astype(np.int32, copy=False), ends, best_path).tolist()
    return found


@compiled
def _sums(rows: np.ndarray, labels: np.ndarray, ends: np.ndarray, best_path: int) -> np.ndarray:
    """As `log_sums`, the n-th sequence being ``labels[ends[n]:ends[n + 1]]``."""
    column = np.full(rows.shape[1], -1, np.int64)
    column[0] = 0
    kinds = np.zeros(len(labels) + 1, np.int64)  # the tokens that matter
    several = 1
    for token in labels:
        if column[token] < 0:
            column[token], kinds[several] = several, token
            several += 1
    places = column[labels]
    many, most = len(ends) - 1, len(labels) + 1
    blanks, states, bands = np.zeros((many, most)), np.zeros((many, most)), np.zeros((many, 2), np.int64)
    blanks[:, 0] = 1.0
    totals = np.zeros(many)
    probs = np.empty((min(_BLOCK, len(rows)), several))
    for begin in range(0, len(rows), _BLOCK):
        block = probs[: min(_BLOCK, len(rows) - begin)]
        for t in range(len(block)):
            for k in range(several):
                block[t, k] = math.exp(np.float64(rows[begin + t, kinds[k]]))
        for n in range(many):
            own = places[ends[n] : ends[n + 1]]
            totals[n] += forward(block, own, blanks[n], states[n], bands[n], best_path)
    for n in range(many):
        count = ends[n + 1] - ends[n]
        end = joined_sum(blanks[n, count], states[n, count - 1] if count else 0.0, best_path)
        totals[n] = totals[n] + math.log(end) if end > 0.0 else -math.inf
    return totals


@bare
def forward(
    probs: np.ndarray, labels: np.ndarray, blank: np.ndarray, label: np.ndarray, band: np.ndarray, best_path: int
) -> float:
    """Take in frames: the logarithm of what the states were scaled by.

    `probs` `(frames, kinds)`: column 0 the blank; `labels`: a column each. `blank`, `label`: the states, blank k before
    label k. `band`: the first and last label worth a look.
    """
    count = len(labels)
    total, low, high = 0.0, int(band[0]), int(band[1])
    for t in range(probs.shape[0]):
        best = _step(probs[t], labels, blank, label, low, high, best_path)
        if best < _SMALL:
            if best == 0.0:
                blank[:] = 0.0
                label[:] = 0.0
                return 0.0
            for k in range(low, min(high + 1, count) + 1):
                blank[k] /= best
                label[k] /= best
            total += math.log(best)
            best = 1.0
        while high > low and blank[high + 1] + label[high] < best * _NOTHING:
            blank[high + 1] = label[high] = 0.0
            high -= 1
        high = max(0, min(high + 1, count - 1))
        while low < high and blank[low] + label[low] < best * _NOTHING:
            blank[low] = label[low] = 0.0
            low += 1
    band[0], band[1] = low, high
    return total


@bare
def _step(
    probs: np.ndarray, labels: np.ndarray, blank: np.ndarray, label: np.ndarray, low: int, high: int, best_path: int
) -> float:
    """One frame of `forward`; returns the highest state."""
    best = 0.0
    if len(labels) == 0:
        blank[0] *= probs[0]
        return blank[0]
    for k in range(high, low - 1, -1):
        stay = joined_sum(label[k], blank[k], best_path)
        skip = label[k - 1] if k > low and labels[k] != labels[k - 1] else 0.0
        blank[k + 1] = joined_sum(blank[k + 1], label[k], best_path) * probs[0]
        label[k] = joined_sum(stay, skip, best_path) * probs[labels[k]]
        best = max(best, blank[k + 1], label[k])
    blank[low] *= probs[0]
    return max(best, blank[low])
