"""The log-probability of label sequences, summed over all alignments: what a search ranks its best hypotheses by.

The forward recursion over the states blank, label, blank, ... (Graves et al. 2006, equations 5 to 8) in plain numbers,
scaled before they get too small. Too low, or -inf, where labels are so unlikely that states are left aside which were
to matter after all: the sum of a search, a lower bound, shows it. `asr.ctc.log_probability` is slower, and leaves none
aside.
"""

import math
from collections.abc import Sequence

import numpy as np

from asr.compiled import bare
from asr.decode.search import joined_sum

_SMALL = 1e-30  # the likeliest state's probability below which all are scaled
_NOTHING = 1e-30  # share of it below which the first and last states are left alone; a beam is far narrower
_BLOCK = 4096  # frames whose probabilities are taken at once


def log_sums(rows: np.ndarray, labels: Sequence[np.ndarray], best_path: int) -> list[float]:
    """The log-probability of each of `labels` in the emissions `rows` `(frames, tokens)`; of its best path only."""
    used = np.zeros(rows.shape[1], bool)
    used[0] = True
    for one in labels:
        used[one] = True
    kinds, column = np.flatnonzero(used), np.cumsum(used) - 1
    places = [column[one] for one in labels]
    states = [np.zeros((2, len(one) + 1)) for one in labels]
    for state in states:
        state[0, 0] = 1.0
    bands, totals = np.zeros((len(labels), 2), np.int64), np.zeros(len(labels))
    for begin in range(0, len(rows), _BLOCK):
        probs = np.exp(rows[begin : begin + _BLOCK].take(kinds, axis=1), dtype=np.float64)
        for number, state in enumerate(states):
            totals[number] += forward(probs, places[number], state[0], state[1], bands[number], best_path)
    ends = [max(s[0, -1], s[1, -2:-1].max(initial=0.0)) if best_path else s[0, -1] + s[1, -2:-1].sum() for s in states]
    return [float(total) + math.log(end) if end > 0 else -math.inf for total, end in zip(totals, ends, strict=True)]


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
