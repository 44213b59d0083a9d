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
    alignments (of a partial result, and of more than 32,768 frames, a beam search gives its own sum, a lower bound);
    `lm`, `bonus` and `hot` are the terms a beam search may add (0 here). `frames` holds for each token the frames
    `(start, end)` that emitted it.
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


def frames_needed(labels: Sequence[object]) -> int:
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
    probability = min(1.0, math.exp(sum([run[3] for run in runs]) / len(runs)))
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
        lengths: `(batch,)` valid frames; what lies behind them is not read.
        targets: `(sum of target_lengths,)`.
        target_lengths: `(batch,)`.

    As torchaudio's `forced_align`, but for batches, with all input checked, and the best path also where two ways into
    a state are equal and better than staying (there torchaudio 2.11 stays). `asr.viterbi` says how, and which of equal
    paths is taken. As many utterances at a time as torch has threads.

    Raises:
        ValueError: the shapes don't fit, a length is out of range; and what `asr.viterbi.best_paths` refuses: NaN or
            +inf, a label that is no token, fewer frames than the labels need, no path with a probability above zero.
    """
    from asr.viterbi import best_paths  # not at the top: it brings numba, half a second for who only trains

    _check_shapes(log_probs, lengths, targets, target_lengths)
    emissions = log_probs.detach().cpu()
    if emissions.dtype not in (torch.float32, torch.float64):
        emissions = emissions.float()
    rows = [row[:n].numpy() for row, n in zip(emissions, lengths.tolist(), strict=True)]
    labels = [own.numpy() for own in targets.cpu().split(target_lengths.tolist())]
    paths = best_paths(rows, labels, threads=torch.get_num_threads())
    return [list(zip(path.starts.tolist(), path.ends.tolist(), strict=True)) for path in paths]


def _check_shapes(log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> None:
    if log_probs.ndim != 3:
        raise ValueError(f"log_probs must be (batch, frames, tokens), not {tuple(log_probs.shape)}")
    batch, frames, _ = log_probs.shape
    for name, given in (("lengths", lengths), ("target_lengths", target_lengths)):
        if given.shape != (batch,):
            raise ValueError(f"{name} must be ({batch},), not {tuple(given.shape)}")
    for number, (length, labels) in enumerate(zip(lengths.tolist(), target_lengths.tolist(), strict=True)):
        if not 0 <= length <= frames:
            raise ValueError(f"utterance {number}: length {length} is not one of 0 to {frames} frames")
        if labels < 0:
            raise ValueError(f"utterance {number}: {labels} labels")
    if targets.shape != (total := int(target_lengths.sum()),):
        raise ValueError(f"targets must be ({total},), the sum of target_lengths, not {tuple(targets.shape)}")
