"""CTC prefix beam search: emissions -> the best hypotheses, with language model, lexicon and hot words.

    search = BeamSearch(tokens, lm=NGram.load("words.arpa.gz"))
    best = search.decode(log_probs)[0]

A hypothesis's score is the log-probability of its tokens, summed over all alignments, plus what the language model,
the word bonus and the hot words give; a hypothesis shows the four apart. The loops are in `asr.decode.search`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asr import ctc
from asr.ctc import Hypothesis
from asr.decode import prefixes, search
from asr.decode.exact import log_sums
from asr.decode.lexicon import Lexicon
from asr.decode.ngram import NGram
from asr.decode.search import ALIVE, NEEDED, NODE, USED, Prefixes
from asr.decode.selection import TALLY
from asr.decode.vocabulary import Vocabulary
from asr.errors import InputError

_ROOM = 4096  # nodes to begin with
_KEPT_ROOM = 1 << 16  # a space with more of them is not kept for the next utterance (16 MB)
_KEPT_FRAMES = 1 << 15  # more frames of one utterance are not kept for exact sums (22 minutes at 25 a second)
_HORIZON, _SETTLE = 1000, 500  # frames after which, looked at so often, the best prefix's beginning is settled for all
NEAR, MORE = 0.5, 4  # the exact sum may change the order of hypotheses this near the best (nats), of so many more
_NOTHING = Hypothesis("", -math.inf, -math.inf)  # nothing fits: a frame gave 0 to all that was possible


class BeamSearch:
    """A search for any number of utterances, also in several threads at once.

    Args:
        tokens: the model's tokens, blank first.
        lm: of words, or of the model's tokens themselves (its vocabulary tells).
        lexicon: only these words can come out; without one every word can, at a price where `lm` does not know it.
        hot_words: phrases with their weights, in nats: what each place in the text where a phrase stands adds.
        beam: prefixes kept after every frame.
        nbest: hypotheses that `decode` returns at most.
        token_min: log-probability under which a token is not tried in a frame (the best one always is).
        token_top: tokens tried in a frame at most; 0: any number.
        beam_min: a prefix this many nats (a negative number) under the best is dropped.
        lm_weight: factor on the language model's natural logarithms (0.5).
        word_bonus: nats a word (1.5 with a language model of words, else 0).
        unknown: nats (a negative number) for a word that `lm` does not know, beside its `<unk>` (-10).
        best_path: rank by the best alignment, not by the sum over all.

    Raises:
        InputError: a setting is out of range or has no effect, a word or hot word can't be spelled in the tokens, or no
            word of the language model can (status 2).
    """

    def __init__(
        self,
        tokens: Sequence[str],
        lm: NGram | None = None,
        lexicon: Lexicon | None = None,
        hot_words: Mapping[str, float] | None = None,
        beam: int = 100,
        nbest: int = 1,
        token_min: float = -5.0,
        token_top: int = 0,
        beam_min: float = -10.0,
        lm_weight: float | None = None,
        word_bonus: float | None = None,
        unknown: float | None = None,
        best_path: bool = False,
    ) -> None:
        given: dict[str, Any] = {
            "beam": beam,
            "nbest": nbest,
            "token_min": token_min,
            "token_top": token_top,
            "beam_min": beam_min,
            "lm_weight": lm_weight,
            "word_bonus": word_bonus,
            "unknown": unknown,
            "best_path": best_path,
        }
        self._given = (tokens, lm, lexicon, hot_words), given
        self.vocabulary = Vocabulary(tokens, lm, lexicon, hot_words or {}, given)
        self.settings = {"kind": "beam", **self.vocabulary.settings}
        self._spaces: list[_Space] = []  # left by earlier calls: fresh memory costs as much time as the search

    def with_settings(self, **changes: Any) -> "BeamSearch":
        """The same search with some settings changed."""
        files, given = self._given
        return BeamSearch(*files, **(given | changes))

    def decode(self, log_probs: Tensor | np.ndarray) -> list[Hypothesis]:
        """The hypotheses of one utterance, best first, no two of the same text; at least one.

        Args:
            log_probs: `(frames, tokens)`, log-probabilities.

        Raises:
            InputError: the shape is wrong, a value is NaN, or a frame's probabilities do not sum to 1.
        """
        try:
            space = self._spaces.pop()  # a list's pop and append are safe among threads
        except IndexError:
            space = _Space(self.vocabulary)
        stream = Stream(self.vocabulary, space)
        stream.feed(log_probs)
        found = stream.finish()
        if len(space.nodes) <= _KEPT_ROOM:
            self._spaces.append(space)
        return found

    def stream(self) -> "Stream":
        """A search that takes an utterance's frames in pieces, without end if need be."""
        return Stream(self.vocabulary)


class Stream:
    """One utterance in pieces; how it is cut changes nothing, not a bit. Made by `BeamSearch.stream`.

    On long input the hypotheses are made to agree on what lies `_HORIZON` frames back (40 s at 25 a second): else the
    beam would fill with ways to hear words long past, and memory with their continuations.
    """

    def __init__(self, vocabulary: Vocabulary, space: "_Space | None" = None) -> None:
        self._own = vocabulary
        self._space = space or _Space(vocabulary)
        self._space.clear(vocabulary)
        self._counts, self._scale = np.array([1, 1, 0, 0]), np.zeros(1)
        self._frames = 0
        self._rows: list[np.ndarray] = []  # none of them where they became too many to keep
        self._settled: list[np.ndarray] = []  # the nodes with which all hypotheses begin

    def feed(self, log_probs: Tensor | np.ndarray) -> None:
        """Take in frames: `(frames, tokens)`, log-probabilities. Raises InputError as `BeamSearch.decode` does."""
        rows, done = checked(log_probs, len(self._own.tokens.starts), self._frames), 0
        while done < len(rows):
            limit = min(len(rows), done + _SETTLE - (self._frames + done) % _SETTLE)
            done = self._search(rows[:limit], done)
            if done < limit:
                self._make_room()
            elif (self._frames + done) % _SETTLE == 0:
                prefixes.settle(self._space.nodes, self._space.beam, self._counts, self._frames + done - _HORIZON)
        self._frames += len(rows)
        self._rows.append(rows)
        if self._frames > _KEPT_FRAMES:
            self._rows.clear()

    def partial(self) -> Hypothesis:
        """What is heard so far: the best prefix as it stands, its last word perhaps not at its end.

        Its `acoustic` is the sum of the search, a lower bound.
        """
        if not self._counts[ALIVE]:
            return _NOTHING
        best = int(self._space.beam.total[: self._counts[ALIVE]].argmax())
        node = self._space.nodes[self._space.beam.node[best]]
        given = self._own.parts(node)
        acoustic = math.log(self._space.beam.total[best]) + self._scale[0] - self._own.potential(node)
        return self._own.hypothesis(self._path(best), -1, acoustic + sum(given), acoustic, given)

    def finish(self) -> list[Hypothesis]:
        """The hypotheses, best first; the stream is at its end."""
        alive, own = int(self._counts[ALIVE]), self._own
        if not alive:
            return [_NOTHING]
        room = alive * own.knobs.choices
        whose, word = np.zeros((2, room), np.int64)
        score, parts = np.zeros(room), np.zeros((room, 3))
        many = prefixes.finish(
            own.arrays, self._space.nodes, self._space.beam, self._counts, self._scale, whose, score, word, parts
        )
        if not many:
            return [self._unfinished()]
        chosen = self._candidates(score[:many], whose, word)
        labels = [path["token"] for _, path in chosen]
        given = [parts[k].tolist() for k, _ in chosen]
        searched = [float(score[k]) - sum(three) for (k, _), three in zip(chosen, given, strict=True)]
        rows = _joined(self._rows)
        acoustic = self._exact(rows, labels, 0, searched)
        ranked = self._exact(rows, labels, 1, searched) if own.knobs.best_path else acoustic
        totals = [one + sum(three) for one, three in zip(ranked, given, strict=True)]
        best = sorted(range(len(chosen)), key=lambda n: -totals[n])[: own.settings["nbest"]]
        return [own.hypothesis(chosen[n][1], int(word[chosen[n][0]]), totals[n], acoustic[n], given[n]) for n in best]

    def _candidates(self, score: np.ndarray, whose: np.ndarray, word: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """The hypotheses, with their nodes, that may be among the best once they have their exact sums."""
        nbest, order = self._own.settings["nbest"], np.argsort(-score, kind="stable").tolist()
        least = score[order[0]] - NEAR
        found: dict[str | int, tuple[int, np.ndarray]] = {}
        for k in order:
            if len(found) >= nbest + (MORE if score[k] > least else 0):
                break
            path = self._path(int(whose[k]))
            found.setdefault(self._own.text(path, int(word[k])) if nbest > 1 else k, (k, path))
        return list(found.values())

    def _search(self, rows: np.ndarray, done: int) -> int:
        space = self._space
        return search.search(
            rows, done, self._frames, self._own.arrays, space.nodes, space.slots, space.keys, space.ids,
            space.beam, space.found, space.sorting, space.picks, space.probs, self._counts, self._scale,
        )  # fmt: skip

    def _make_room(self) -> None:
        """Drop the prefixes that no living one begins with, settle what all begin with, and grow where it is little."""
        own, space, chain = self._own, self._space, np.zeros(self._counts[USED], NODE)
        length = prefixes.compact(
            own.tokens, own.knobs, space.nodes, space.keys, space.ids, space.beam, self._counts, chain
        )
        settled = chain[:length]
        self._settled.append(settled[settled["token"] >= 0])
        wanted = max(2 * int(self._counts[USED]), int(self._counts[USED] + self._counts[NEEDED]))
        if wanted > len(space.nodes):
            space.grow(1 << (wanted - 1).bit_length())
            prefixes.index(own.tokens, own.knobs, space.nodes, space.keys, space.ids, self._counts)

    def _path(self, i: int) -> np.ndarray:
        """The nodes of prefix `i` of the beam from the first on, one a token."""
        path: np.ndarray = prefixes.path(self._space.nodes, int(self._space.beam.node[i]))
        return np.concatenate([self._beginning(), path]) if self._settled else path

    def _beginning(self) -> np.ndarray:
        """The settled nodes."""
        if len(self._settled) > 1:
            self._settled = [np.concatenate(self._settled)]
        return self._settled[0]

    def _exact(
        self, rows: np.ndarray | None, labels: Sequence[np.ndarray], best_path: int, searched: Sequence[float]
    ) -> list[float]:
        """The log-probability of labels over all frames; `searched`, a lower bound, where these were not kept."""
        if rows is None:
            return list(searched) if self._frames else [0.0] * len(labels)
        totals = log_sums(rows, labels, best_path)
        for number, (one, bound) in enumerate(zip(labels, searched, strict=True)):
            if best_path:
                totals[number] = max(totals[number], bound)
            elif totals[number] < bound - 1e-6:  # it lost states on the way that were to matter
                emissions = torch.from_numpy(rows.copy())[None]
                [totals[number]] = ctc.log_probability(emissions, torch.tensor([len(rows)]), [one.tolist()])
        return totals

    def _unfinished(self) -> Hypothesis:
        """The best prefix without its last word, which the lexicon has no end for."""
        best = int(self._space.beam.total[: self._counts[ALIVE]].argmax())
        path = self._path(best)
        ends = np.flatnonzero(path["word"] >= 0)
        if not len(ends):
            return self._own.hypothesis(path[:0], -1, -math.inf, -math.inf, (0.0, 0.0, 0.0))
        last = path[ends[-1]]
        return self._own.hypothesis(path[: ends[-1]], int(last["word"]), -math.inf, -math.inf, self._own.parts(last))


class _Space:
    """The arrays that a search works in: the tree of prefixes with its table, and what one frame's work needs."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        tokens = len(vocabulary.tokens.starts)
        self.nodes = np.zeros(0, NODE)
        self.beam = _prefixes(vocabulary.knobs.width)
        self.picks, self.probs = np.zeros(tokens, np.int32), np.full(tokens, -1.0)
        self.grow(_ROOM)

    def clear(self, vocabulary: Vocabulary) -> None:
        """Nothing heard: one prefix, the root."""
        self.nodes[0] = vocabulary.root
        self.keys.fill(-1)
        beam = self.beam
        beam.node[0], beam.last[0], beam.spot[0] = 0, -1, 0
        beam.blank[0], beam.label[0], beam.total[0] = 1.0, 0.0, 1.0

    def grow(self, room: int) -> None:
        """Room for so many nodes; the table is to be filled anew."""
        nodes = np.zeros(room, NODE)
        nodes[: len(self.nodes)] = self.nodes
        self.nodes = nodes
        self.keys, self.ids = np.full(2 * room, -1, np.int64), np.zeros(2 * room, np.int32)
        self.slots, self.found = np.full(room, -1, np.int32), _prefixes(room)
        self.sorting = self.found.total.view(np.int64), np.zeros(TALLY, np.int32), np.zeros(room + len(self.probs))


def _prefixes(count: int) -> Prefixes:
    """Room for so many."""
    return Prefixes(np.zeros(count, np.int32), *np.zeros((3, count)), *np.zeros((2, count), np.int32))


def checked(log_probs: Tensor | np.ndarray, tokens: int, before: int = 0) -> np.ndarray:
    """Emissions as a read-only float32 array `(frames, tokens)`, `before` frames in front of them.

    Raises:
        InputError: the shape is wrong, a value is NaN, or a frame's probabilities do not sum to 1; the message says
            what may have been given instead.
    """
    if isinstance(log_probs, Tensor):
        log_probs = log_probs.detach().to("cpu", torch.float32).numpy()
    rows = np.ascontiguousarray(log_probs, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != tokens:
        swapped = rows.ndim == 2 and rows.shape[0] == tokens
        hint = "; are the axes swapped?" if swapped else ""
        raise InputError(f"emissions have the shape {rows.shape}, not (frames, {tokens} tokens){hint}")
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.exp(rows).sum(1)
    wrong = np.flatnonzero(~(np.abs(sums - 1) < 0.01))
    if len(wrong):
        raise InputError(f"emissions, frame {before + int(wrong[0])}: {_fault(rows[wrong[0]])}")
    rows = rows.view()
    rows.flags.writeable = False
    return rows


def _fault(row: np.ndarray) -> str:
    """What is wrong with a frame whose probabilities do not sum to 1."""
    if np.isnan(row).any():
        return "a value is not a number (NaN)"
    if (row == -np.inf).all():
        return "every token has probability 0"
    if abs(row.sum() - 1) < 0.01 and (row >= 0).all():
        return "these are probabilities; take their logarithms"
    return f"the probabilities sum to {np.exp(row.astype(np.float64)).sum():.4g}, not to 1; apply log_softmax"


def _joined(rows: list[np.ndarray]) -> np.ndarray | None:
    return np.concatenate(rows) if len(rows) > 1 else rows[0] if rows else None
