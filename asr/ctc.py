"""Connectionist temporal classification: loss, collapse, greedy decoding, forced alignment.

Graves et al., "Connectionist Temporal Classification", ICML 2006. Emissions are log-probabilities
`(batch, frames, tokens)`, token 0 is the blank. A path of frames is read by joining equal neighbours and dropping
blanks; so a label sequence needs a frame a label, and a blank between equal neighbours.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from asr.text import BOUNDARY, join


@dataclasses.dataclass(frozen=True)
class WordSpan:
    """A word heard in frames `start` to `end` (exclusive); `probability` in [0, 1], see `greedy`."""

    word: str
    start: int
    end: int
    probability: float


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """What a decoder heard in one utterance.

    `score` is what the decoder maximised; `acoustic` the exact log-probability of the tokens, summed over all
    alignments; `lm`, `bonus` and `hot` are the terms a beam search may add (0 here). `frames` holds for each token the
    frames `(start, end)` that emitted it.
    """

    text: str
    score: float
    acoustic: float
    lm: float = 0.0
    bonus: float = 0.0
    hot: float = 0.0
    tokens: tuple[int, ...] = ()
    frames: tuple[tuple[int, int], ...] = ()
    words: tuple[WordSpan, ...] = ()


def frames_needed(labels: Sequence[int]) -> int:
    """The fewest frames that can emit `labels`: one each, and a blank between equal neighbours."""
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


def loss(log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """The negative log-probability of each utterance's labels, in nats: `(batch,)`.

    Args:
        log_probs: `(batch, frames, tokens)`.
        lengths: `(batch,)` valid frames.
        targets: `(sum of target_lengths,)`, the labels of all utterances one after the other.
        target_lengths: `(batch,)`.

    An utterance with fewer frames than `frames_needed` has no alignment and gets infinity: check before training.
    """
    return functional.ctc_loss(log_probs.transpose(0, 1), targets, lengths, target_lengths, reduction="none")


def greedy(log_probs: Tensor, lengths: Tensor, tokens: Sequence[str] | None = None) -> list[Hypothesis]:
    """The most probable path of each utterance, collapsed; on the device of `log_probs`.

    Args:
        log_probs: `(batch, frames, tokens)`.
        lengths: `(batch,)` valid frames.
        tokens: the tokens' texts; without them `text` and `words` stay empty.

    A token's time is the run of frames that carries it. A word's probability is the geometric mean over its tokens of
    each one's highest frame probability.
    """
    if not log_probs.numel():
        return [Hypothesis("", 0.0, 0.0) for _ in lengths]
    best, path = log_probs.max(dim=2)
    valid = torch.arange(path.shape[1], device=path.device) < lengths.to(path.device)[:, None]
    scores = (best.double() * valid).sum(1).tolist()
    rows = [_collapse(p[:n], b[:n]) for p, b, n in zip(path.tolist(), best.tolist(), lengths.tolist(), strict=True)]
    exact = log_probability(log_probs, lengths, [[token for token, *_ in row] for row in rows])
    return [
        Hypothesis(
            text=join([tokens[token] for token, *_ in row]) if tokens else "",
            score=score,
            acoustic=acoustic,
            tokens=tuple(token for token, *_ in row),
            frames=tuple((start, end) for _, start, end, _ in row),
            words=word_spans(row, tokens) if tokens else (),
        )
        for row, score, acoustic in zip(rows, scores, exact, strict=True)
    ]


Run = tuple[int, int, int, float]  # token, first frame, frame behind the last, highest log-probability


def _collapse(path: list[int], best: list[float]) -> list[Run]:
    """The runs of equal tokens in a path of frames, blanks left out."""
    runs: list[Run] = []
    start = 0
    for token, frames in itertools.groupby(path):
        end = start + len(list(frames))
        if token:
            runs.append((token, start, end, max(best[start:end])))
        start = end
    return runs


def word_spans(runs: Sequence[Run], tokens: Sequence[str]) -> tuple[WordSpan, ...]:
    """Group a token sequence into words; a boundary, alone or in front of a token, begins the next one."""
    groups: list[list[Run]] = [[]]
    for run in runs:
        if tokens[run[0]].startswith(BOUNDARY):
            groups.append([])
        if tokens[run[0]] != BOUNDARY:
            groups[-1].append(run)
    return tuple(word_span(join([tokens[run[0]] for run in inside]), inside) for inside in groups if inside)


def word_span(word: str, runs: Sequence[Run]) -> WordSpan:
    """A word of these tokens; its probability is the geometric mean of theirs."""
    probability = min(1.0, math.exp(sum(run[3] for run in runs) / len(runs)))
    return WordSpan(word, runs[0][1], runs[-1][2], probability)


def log_probability(log_probs: Tensor, lengths: Tensor, labels: list[list[int]]) -> list[float]:
    """The exact log-probability of each label sequence, summed over its alignments, in float64 on the CPU.

    Args:
        log_probs: `(batch, frames, tokens)`.
        lengths: `(batch,)` valid frames.
        labels: of each utterance its token numbers.
    """
    flat = torch.tensor([label for row in labels for label in row], dtype=torch.int64)
    counts = torch.tensor([len(row) for row in labels], dtype=torch.int64)
    return (-loss(log_probs.detach().double().cpu(), lengths.cpu(), flat, counts)).tolist()


def align(log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> list[list[tuple[int, int]]]:
    """The most probable frames of given labels: for each utterance a span `(start, end)` a label.

    Args:
        log_probs: `(batch, frames, tokens)`.
        lengths: `(batch,)` valid frames.
        targets: `(sum of target_lengths,)`.
        target_lengths: `(batch,)`.

    Raises:
        ValueError: an utterance has fewer frames than its labels need.
    """
    rows = targets.cpu().split(target_lengths.tolist())
    emissions = log_probs.detach().double().cpu()
    return [_align(e[:n], row.tolist()) for e, n, row in zip(emissions, lengths.tolist(), rows, strict=True)]


def _align(emissions: Tensor, labels: list[int]) -> list[tuple[int, int]]:
    """Viterbi over the states blank, label, blank, ... of one utterance: `(frames, tokens)`."""
    if len(emissions) < frames_needed(labels):
        raise ValueError(
            f"{len(emissions)} frames cannot emit {len(labels)} labels, {frames_needed(labels)} are needed"
        )
    if not labels:
        return []
    states = torch.zeros(2 * len(labels) + 1, dtype=torch.int64)
    states[1::2] = torch.tensor(labels)
    can_skip = torch.zeros(len(states), dtype=torch.bool)
    can_skip[3::2] = states[3::2] != states[1:-2:2]
    infinity = torch.tensor(-math.inf, dtype=emissions.dtype)
    score = torch.where(torch.arange(len(states)) < 2, emissions[0, states], infinity)
    steps = []
    for frame in emissions[1:]:
        one = functional.pad(score, (1, 0), value=-math.inf)[:-1]
        two = torch.where(can_skip, functional.pad(score, (2, 0), value=-math.inf)[:-2], infinity)
        score, step = torch.stack([score, one, two]).max(dim=0)
        score = score + frame[states]
        steps.append(step.tolist())
    state = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    path = [state]
    for step in reversed(steps):
        state -= step[state]
        path.append(state)
    path.reverse()
    return [(path.index(s), len(path) - path[::-1].index(s)) for s in range(1, len(states), 2)]
