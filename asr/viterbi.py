"""Forced alignment: the most probable path of given labels through emissions, an hour of audio in little memory.

The states are blank, label, blank, ..., label, blank (Graves et al., "Connectionist Temporal Classification",
ICML 2006, section 4.1, with maximum for sum). A path stays, goes one state on, or goes two on where that passes over a
blank between different labels. State 2i is the blank before label i, state 2i + 1 is label i; the two are a *pair*.

Time: only states that can be reached from the first frame and from which the last can still be reached are looked at.
With `slack` the frames beyond the fewest possible, that is a band of slack + 1 pairs a frame.

Memory: back-pointers for all of the band would be a gigabyte for an hour. Instead the row of scores is kept every
`block` frames, and the way back computes each block once more from there, now with back-pointers. It knows the state
at the block's end, so that it needs a triangle of `block` pairs only: the second computation costs a few hundredths of
the first. `block = (8 frames pairs) ** (1/3)` makes the kept rows and the triangle together smallest: 30 MB for 90,000
frames and 50,000 labels.

Scores are sums of float64 in frame order, from float32 or float64 emissions. Of paths with equal scores the one is
taken that is furthest on in the last frame, then in the one before, and so on: a label starts as early as it can.
"""

import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from asr.compiled import compiled


@dataclasses.dataclass(frozen=True)
class Path:
    """The most probable path of an utterance's labels.

    Args:
        score: its log-probability (nats), summed over all frames.
        starts: `(labels,)` int64, the first frame of each label.
        ends: `(labels,)` int64, the frame behind its last.
        peaks: `(labels,)` float64, its highest log-probability in these frames.
    """

    score: float
    starts: np.ndarray
    ends: np.ndarray
    peaks: np.ndarray


def best_paths(
    emissions: Sequence[np.ndarray], labels: Sequence[Sequence[int] | np.ndarray], threads: int = 1
) -> list[Path]:
    """The most probable path of each utterance.

    Args:
        emissions: for each utterance log-probabilities `(frames, tokens)`, float32 or float64; token 0 is the blank.
        labels: for each utterance its tokens `(labels,)`.
        threads: utterances computed at the same time.

    Raises:
        ValueError: of an utterance, named by its number: emissions that are not `(frames, tokens)` in float32 or
            float64, NaN or +inf in them (the frame is named), a label that is no token or the blank, fewer frames than
            the labels need, no path whose probability is above zero.
    """
    rows = [_Row(number, *both) for number, both in enumerate(zip(emissions, labels, strict=True))]
    if threads == 1 or len(rows) < 2:
        return [row.best_path() for row in rows]
    with ThreadPoolExecutor(min(threads, len(rows))) as pool:
        return list(pool.map(_Row.best_path, rows))


class _Row:
    """One utterance, checked."""

    def __init__(self, number: int, emissions: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
        self.where = f"utterance {number}"
        self.emissions = np.ascontiguousarray(emissions)
        self.labels = np.asarray(labels)
        self._check()
        self.labels = self.labels.astype(np.int64)
        again = np.append(False, self.labels[1:] == self.labels[:-1])[: len(self.labels)]
        self.earliest = np.arange(len(self.labels)) + np.cumsum(again)  # a repeated label has a blank in front
        needed = int(self.earliest[-1]) + 1 if len(self.labels) else 0
        frames = len(self.emissions)
        self.slack = frames - needed
        if self.slack < 0:
            raise ValueError(
                f"{self.where}: {frames} frames cannot emit {len(self.labels)} labels, {needed} are needed"
            )

    def _check(self) -> None:
        if self.emissions.ndim != 2 or self.emissions.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"{self.where}: emissions must be (frames, tokens) in float32 or float64, "
                f"not {self.emissions.shape} in {self.emissions.dtype}"
            )
        if self.labels.ndim != 1 or (self.labels.size and self.labels.dtype.kind not in "iu"):
            raise ValueError(
                f"{self.where}: labels must be whole numbers (labels,), not {self.labels.shape} in {self.labels.dtype}"
            )
        tokens = self.emissions.shape[1]
        wrong = self.labels[(self.labels < 1) | (self.labels >= tokens)]
        if len(wrong):
            raise ValueError(f"{self.where}: label {wrong[0]} is not one of 1 to {tokens - 1} (0 is the blank)")
        frame = _first_not_usable(self.emissions)
        if frame >= 0:
            raise ValueError(f"{self.where}: NaN or +inf in the emissions of frame {frame}")

    def best_path(self) -> Path:
        """Forward, then block by block back."""
        frames, count = len(self.emissions), len(self.labels)
        path = np.zeros(frames, dtype=np.int64)
        score = 0.0
        if frames:
            # The blank behind the last label is a pair too: its label has a token, but nothing follows it.
            tokens = np.append(self.labels, 0)
            skips = np.full(count + 1, -math.inf)
            skips[1:count][self.labels[1:] != self.labels[:-1]] = 0.0
            pairs = min(count, self.slack + 1) + 1
            kept = np.empty(((frames - 1) // (block := _block(frames, pairs)) + 1, 2, pairs))
            lows = np.zeros(len(kept), dtype=np.int64)
            path[-1], score = _forward(self.emissions, tokens, skips, self.earliest, self.slack, block, kept, lows)
            _back(self.emissions, tokens, skips, block, kept, lows, path)
        if not math.isfinite(score):
            raise ValueError(f"{self.where}: no path of its {count} labels has a probability above zero")
        starts, ends = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        peaks = np.full(count, -math.inf)
        _spans(path, self.emissions, self.labels, starts, ends, peaks)
        return Path(score, starts, ends, peaks)


def _block(frames: int, pairs: int) -> int:
    """Frames between kept rows that take the least memory with the triangle: see the module's text."""
    return min(frames, math.ceil((8 * pairs * frames) ** (1 / 3)))


@compiled
def _first_not_usable(emissions: np.ndarray) -> int:
    """The first frame with NaN or +inf, or -1."""
    for frame in range(emissions.shape[0]):
        for token in range(emissions.shape[1]):
            if not emissions[frame, token] < np.inf:
                return frame
    return -1


@compiled
def _forward(
    emissions: np.ndarray,
    tokens: np.ndarray,
    skips: np.ndarray,
    earliest: np.ndarray,
    slack: int,
    block: int,
    kept: np.ndarray,
    lows: np.ndarray,
) -> tuple[int, float]:
    """The last state and the score of the best path; keeps a row of scores every `block` frames.

    Args:
        emissions: `(frames, tokens)`, at least one frame.
        tokens: `(pairs,)` of all labels, and 0 for the last blank.
        skips: `(pairs,)`, 0 where a pair's label may follow the label before at once, else -inf.
        earliest: `(labels,)`, the first frame that can hold each label; `slack` frames later is the last one.
        slack: frames beyond the fewest that the labels need.
        block: frames between kept rows.
        kept: `(rows, 2, pairs of the band)`, written: scores of blanks and of labels.
        lows: `(rows,)`, written: the first pair of each row; behind the band stands -inf.
    """
    last = tokens.shape[0] - 1
    row = np.empty(emissions.shape[1])
    # Below the band old scores stay. Only states that can't reach the end any more ever look at them.
    blanks = np.full(last + 1, -np.inf)
    labels = np.full(last + 1, -np.inf)
    kept[:] = -np.inf
    low = high = 0
    for frame in range(emissions.shape[0]):
        row[:] = emissions[frame]
        while low < last and earliest[low] + slack < frame:
            low += 1
        while high < last and earliest[high] < frame:
            high += 1
        if frame == 0:
            blanks[0] = row[0]
            labels[0] = row[tokens[0]]
        else:
            before = labels[low - 1] if low > 0 else -np.inf
            band = slice(low, high + 1)
            _advance(row, tokens[band], skips[band], before, blanks[band], labels[band])
        if frame % block == 0:
            lows[frame // block] = low
            kept[frame // block, 0, : high + 1 - low] = blanks[low : high + 1]
            kept[frame // block, 1, : high + 1 - low] = labels[low : high + 1]
    if last > 0 and labels[last - 1] > blanks[last]:
        return 2 * last - 1, labels[last - 1]
    return 2 * last, blanks[last]


@compiled
def _advance(
    row: np.ndarray, tokens: np.ndarray, skips: np.ndarray, before: float, blanks: np.ndarray, labels: np.ndarray
) -> None:
    """Scores one frame on, in place; `before` is the label's score in the pair before the first.

    Without branches and with one array element a turn carried over, so that the compiler makes vector code of it.
    """
    blank_row = row[0]
    for pair in range(blanks.shape[0]):
        blank, label = blanks[pair], labels[pair]
        passed = before + skips[pair]
        best = blank if blank > label else label
        best = passed if passed > best else best
        labels[pair] = best + row[tokens[pair]]
        blanks[pair] = (before if before > blank else blank) + blank_row
        before = label


@compiled
def _back(
    emissions: np.ndarray,
    tokens: np.ndarray,
    skips: np.ndarray,
    block: int,
    kept: np.ndarray,
    lows: np.ndarray,
    path: np.ndarray,
) -> None:
    """Writes the state of each frame into `path` `(frames,)`, whose last one is given. Arguments: see `_forward`."""
    row = np.empty(emissions.shape[1])
    steps = np.empty((block, block + 1), dtype=np.uint8)
    for number in range(kept.shape[0] - 1, -1, -1):
        first = number * block
        end = min(first + block, path.shape[0] - 1)
        count = end - first
        # In `count` frames a path comes from at most so many pairs below, and none of them lies above.
        top = path[end] // 2
        bottom = max(0, top - count)
        blanks = np.full(top - bottom + 1, -np.inf)
        labels = np.full(top - bottom + 1, -np.inf)
        for pair in range(max(bottom, lows[number]), min(top + 1, lows[number] + kept.shape[2])):
            blanks[pair - bottom] = kept[number, 0, pair - lows[number]]
            labels[pair - bottom] = kept[number, 1, pair - lows[number]]
        for frame in range(first + 1, end + 1):
            row[:] = emissions[frame]
            low = max(bottom, top - (end - frame))
            before = labels[low - 1 - bottom] if low > bottom else -np.inf
            _advance_with_steps(
                row,
                tokens[low : top + 1],
                skips[low : top + 1],
                before,
                blanks[low - bottom :],
                labels[low - bottom :],
                steps[frame - first - 1, low - bottom :],
            )
        for frame in range(end, first, -1):
            state = path[frame]
            step = steps[frame - first - 1, state // 2 - bottom]
            path[frame - 1] = state - (step // 2 if state % 2 else step % 2)


@compiled
def _advance_with_steps(
    row: np.ndarray,
    tokens: np.ndarray,
    skips: np.ndarray,
    before: float,
    blanks: np.ndarray,
    labels: np.ndarray,
    steps: np.ndarray,
) -> None:
    """The same sums as `_advance`; writes how many states back the best path came from: blank's + 2 label's."""
    blank_row = row[0]
    for pair in range(blanks.shape[0]):
        blank, label = blanks[pair], labels[pair]
        passed = before + skips[pair]
        step = 2 if blank > label else 0
        best = blank if blank > label else label
        step = 4 if passed > best else step
        best = passed if passed > best else best
        steps[pair] = step + 1 if before > blank else step
        labels[pair] = best + row[tokens[pair]]
        blanks[pair] = (before if before > blank else blank) + blank_row
        before = label


@compiled
def _spans(
    path: np.ndarray,
    emissions: np.ndarray,
    labels: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    peaks: np.ndarray,
) -> None:
    """Writes first frame, frame behind the last and highest log-probability of each label: all `(labels,)`."""
    for frame in range(path.shape[0]):
        state = path[frame]
        if state % 2 == 0:
            continue
        label = state // 2
        if ends[label] == 0:
            starts[label] = frame
        ends[label] = frame + 1
        peaks[label] = max(peaks[label], np.float64(emissions[frame, labels[label]]))
