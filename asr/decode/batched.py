"""The CTC prefix beam search of `asr.decode.beam` for a whole batch at once, in torch operations on any device.

    search = BatchedBeamSearch(tokens, lm=NGram.load("tokens.arpa.gz"))
    best = [hypotheses[0] for hypotheses in search.decode(log_probs, lengths)]

The same search without lexicon, hot words and word bonus; the language model is one of the model's tokens. One frame is
in `asr.decode.steps`; between the first frame and the last nothing waits for the device.

Times: as in `asr.decode.search`, a token begins where what entered it last outweighed what had. Here a prefix goes back
to just those alignments, so that its times never run backwards; `asr.ctc.align` would need the emissions on the CPU and
a second pass over them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asr import ctc
from asr.ctc import Hypothesis
from asr.decode import steps
from asr.decode.beam import MORE, NEAR, checked
from asr.decode.ngram import NGram
from asr.decode.search import NODE
from asr.decode.vocabulary import Vocabulary
from asr.errors import InputError

_TRIES = 5  # already the second is not to be expected: of 50,000 prefixes, two have one hash once in 10^10 times


class BatchedBeamSearch:
    """A search for any number of batches, also in several threads at once.

    Args:
        tokens: the model's tokens, blank first.
        lm: of the model's tokens.
        beam: prefixes kept after every frame.
        nbest: hypotheses an utterance that `decode` returns at most.
        token_min: log-probability under which a token is not tried in a frame (the best one always is).
        token_top: tokens tried in a frame at most; 0: any number.
        beam_min: a prefix this many nats (a negative number) under the best is dropped.
        lm_weight: factor on the language model's natural logarithms (0.5).

    Raises:
        InputError: a setting is out of range or has no effect, or the language model is one of words (status 2).
    """

    def __init__(
        self,
        tokens: Sequence[str],
        lm: NGram | None = None,
        beam: int = 32,
        nbest: int = 1,
        token_min: float = -5.0,
        token_top: int = 16,
        beam_min: float = -10.0,
        lm_weight: float | None = None,
    ) -> None:
        given = {
            "beam": beam,
            "nbest": nbest,
            "token_min": token_min,
            "token_top": token_top,
            "beam_min": beam_min,
            "lm_weight": lm_weight,
            "word_bonus": None,
            "unknown": None,
            "best_path": False,
        }
        self.vocabulary = Vocabulary(tokens, lm, None, {}, given)
        if lm is not None and not self.vocabulary.knobs.by_token:
            raise InputError(
                "the language model is one of words, and a batch is searched with one of the model's tokens only; "
                "estimate one of tokens, or decode utterance by utterance with BeamSearch",
                status=2,
            )
        self.settings = {"kind": "batched_beam", **self.vocabulary.settings}
        self._lm = lm
        self._models: dict[torch.device, steps.Model] = {}

    @torch.no_grad()
    def decode(self, log_probs: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """The hypotheses of each utterance as `BeamSearch.decode` gives them: best first, no text twice, at least one.

        The labelling is that of `BeamSearch` with the same settings below 1,500 frames (a minute at 25 a second); from
        there on that one settles the beginning of an utterance for all its hypotheses, and this one never does.

        Args:
            log_probs: `(batch, frames, tokens)`, log-probabilities, on the device that is to do the work.
            lengths: `(batch,)` valid frames; what lies behind them is not read.

        Raises:
            InputError: a shape is wrong, a length out of range, a value NaN, or a frame's probabilities do not sum to
                1.
        """
        counts, rows = self._checked(log_probs, lengths)
        if not counts:
            return []
        for salt in range(_TRIES):
            beam, history = self._search(rows, salt)
            if not steps.confused(history):
                return self._hypotheses(rows, counts, beam, history)
        raise RuntimeError(f"different prefixes had the same 64-bit hash in {_TRIES} searches with different numbers")

    def _checked(self, log_probs: Tensor, lengths: Tensor) -> tuple[list[int], Tensor]:
        """The lengths, and float32 emissions `(B, T, V)` in which all frames behind them are blank with certainty."""
        size = len(self.vocabulary.tokens.starts)
        if log_probs.ndim != 3:
            raise InputError(f"emissions have the shape {tuple(log_probs.shape)}, not (batch, frames, {size} tokens)")
        if len(log_probs) and log_probs.shape[2] != size:
            checked(log_probs[0], size)
        batch, frames, _ = log_probs.shape
        if lengths.shape != (batch,) or lengths.is_floating_point():
            raise InputError(f"lengths must be whole numbers ({batch},), not {lengths.dtype} {tuple(lengths.shape)}")
        counts = lengths.tolist()
        for number, count in enumerate(counts):
            if not 0 <= count <= frames:
                raise InputError(f"utterance {number}: length {count} is not one of 0 to {frames} frames")
        rows = log_probs.detach()[:, : max(counts, default=0)].float()
        padding = torch.arange(rows.shape[1], device=rows.device) >= lengths.to(rows.device)[:, None]
        rows = rows.masked_fill(padding[..., None], -math.inf)
        rows[..., 0].masked_fill_(padding, 0.0)
        wrong = ((rows.exp().sum(2) - 1).abs() < 0.0099).logical_not().any(1)  # a little below what `checked` lets pass
        for number in wrong.nonzero().flatten().tolist():
            try:
                checked(rows[number], size)
            except InputError as error:
                raise InputError(f"utterance {number}: {error}") from error
        return counts, rows

    def _search(self, rows: Tensor, salt: int) -> tuple[steps.Beam, steps.History]:
        """The beam behind the last of the frames `rows` `(B, T, V)`, and how it came about; `salt` makes the hashes."""
        own, (batch, frames, size) = self.vocabulary.knobs, rows.shape
        model = self._model(rows.device)
        draw = torch.Generator().manual_seed(salt)
        codes = torch.randint(-(2**63), 2**63 - 1, (size,), generator=draw).to(rows.device)
        beam = steps.start(batch, own.width, model.start if model is not None else 0, rows.device)
        shape = frames + 1, batch, own.width
        history = steps.History(
            *(torch.zeros(shape, dtype=kind, device=rows.device) for kind in (torch.int64, torch.int32, torch.int32))
        )
        history.hashes[0] = beam.hash
        heard = steps.heard(rows, own)
        for t in range(frames):
            beam, slots, tokens = steps.step(beam, steps.Heard(*(part[t] for part in heard)), own, model, codes)
            history.hashes[t + 1], history.slots[t + 1], history.tokens[t + 1] = beam.hash, slots, tokens
        return beam, history

    def _model(self, device: torch.device) -> steps.Model | None:
        """The language model's tables on a device, kept for the next batch."""
        if self._lm is None:
            return None
        if device not in self._models:
            self._models[device] = steps.Model(self._lm, self.vocabulary.tokens.lm, device)
        return self._models[device]

    def _hypotheses(
        self, rows: Tensor, counts: list[int], beam: steps.Beam, history: steps.History
    ) -> list[list[Hypothesis]]:
        """End the sentences, choose the best prefixes, and give each its exact score."""
        own, model = self.vocabulary.knobs, self._model(rows.device)
        score, given = beam.total.log(), beam.given
        if model is not None:
            ends = torch.full((len(counts), 1), own.eos, device=rows.device)
            end = own.lm_weight * model.ask(beam.state, ends)[0][..., 0]
            score, given = score + end, given + end
        nbest = self.settings["nbest"]
        many = own.width if nbest > 1 else min(own.width, nbest + MORE)
        score, order = score.sort(dim=1, descending=True, stable=True)
        order = order[:, :many]
        events, heard = (part.cpu().numpy() for part in steps.trace(history, order, rows))
        scores, parts = score[:, :many].tolist(), given.gather(1, order).tolist()
        chosen = [
            self._choose(scores[b], parts[b], events[: counts[b], b], heard[: counts[b], b]) for b in range(len(counts))
        ]
        exact = _exact(rows, counts, [[one.nodes["token"].tolist() for one in own] for own in chosen])
        found = []
        for paths, values in zip(chosen, exact, strict=True):
            some = [
                self.vocabulary.hypothesis(path.nodes, -1, value + path.given, value, (path.given, 0.0, 0.0))
                for path, value in zip(paths, values, strict=True)
            ]
            some.sort(key=lambda one: -one.score)
            found.append(some[:nbest] or [Hypothesis("", -math.inf, -math.inf)])
        return found

    def _choose(self, scores: list[float], given: list[float], events: np.ndarray, heard: np.ndarray) -> "list[_Path]":
        """The prefixes of one utterance that may be among its best, of those of one text only the best.

        Args:
            scores: of its prefixes, best first.
            given: what the language model gave them.
            events: `(T, prefixes)`, see `steps.trace`.
            heard: `(T, prefixes)`.
        """
        nbest = self.settings["nbest"]
        found: dict[str | int, _Path] = {}
        for m, score in enumerate(scores):
            near = score > scores[0] - NEAR and len(found) < nbest + MORE
            if score == -math.inf or not (near or len(found) < nbest):
                break
            nodes = _nodes(events[:, m], heard[:, m])
            text = self.vocabulary.text(nodes, -1) if nbest > 1 else m
            found.setdefault(text, _Path(nodes, given[m]))
        return list(found.values())


class _Path(NamedTuple):
    """A prefix on the CPU: a `search.NODE` a token, and what the language model gave."""

    nodes: np.ndarray
    given: float


def _nodes(events: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """The tokens of a prefix with their times and highest probabilities, from its `steps.trace` `(T,)`."""
    starts = np.flatnonzero(events > 0)
    nodes = np.zeros(len(starts), NODE)
    if len(starts):
        inside = events != 0
        nodes["token"], nodes["start"] = events[starts], starts
        nodes["end"] = np.maximum.reduceat(np.where(inside, np.arange(1, len(events) + 1), 0), starts)
        nodes["peak"] = np.exp(np.maximum.reduceat(np.where(inside, heard.astype(np.float64), -np.inf), starts))
    return nodes


def _exact(rows: Tensor, counts: list[int], labels: list[list[list[int]]]) -> list[list[float]]:
    """The log-probability of each label sequence of each utterance, summed over its alignments, on the rows' device."""
    found: list[list[float]] = [[] for _ in counts]
    if not rows.shape[1]:
        return [[0.0] * len(own) for own in labels]
    precise, lengths = rows.double(), torch.tensor(counts).clamp(min=1)  # no frames: the first is blank with certainty
    for rank in range(max(map(len, labels))):
        some = [own[rank] if rank < len(own) else [] for own in labels]
        flat = torch.tensor([token for one in some for token in one], dtype=torch.int64, device=rows.device)
        losses = ctc.loss(precise, lengths, flat, torch.tensor([len(one) for one in some])).tolist()
        for own, values, one in zip(labels, found, losses, strict=True):
            if rank < len(own):
                values.append(0.0 - one)
    return found
