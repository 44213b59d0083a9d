"""What a search needs beside the frames, in the flat arrays that its loops read: tokens, words, phrases, settings."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asr import ctc
from asr.ctc import WordSpan
from asr.decode import ngram
from asr.decode.hotwords import HotWords
from asr.decode.lexicon import Lexicon, Tree
from asr.decode.ngram import NGram
from asr.decode.search import NODE, Knobs, Phrases, Tokens, Words, potential
from asr.errors import InputError
from asr.text import BLANK, BOUNDARY, Tokenizer, join, tokenizer

_SPECIAL = {ngram.BOS, ngram.EOS, ngram.UNK}

_NO_LM = tuple(np.zeros(2, kind) for kind in (np.int32, np.int32, np.float32, np.float32, np.int32, np.int32))

# To begin with, for a language model of words; `asr tune` finds better.
LM_WEIGHT, WORD_BONUS, UNKNOWN = 0.5, 1.5, -10.0


class Vocabulary:
    """One combination of tokens, language model, lexicon, hot words and settings.

    `tokens`, `words`, `lm`, `phrases`, `knobs`: as `asr.decode.search` reads them, together `arrays`. `root`: the node
    of nothing heard. `settings`: every setting with its value. `left_out`: words of `lm` that can't be spelled.
    Arguments and errors: `asr.decode.beam.BeamSearch`.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        lm: NGram | None,
        lexicon: Lexicon | None,
        hot_words: Mapping[str, float],
        settings: Mapping[str, Any],
    ) -> None:
        if not tokens or tokens[0] != BLANK or len(set(tokens)) < len(tokens):
            raise InputError(
                f"the token list starts with {list(tokens[:1])}, not with {BLANK!r}, or has one twice", status=2
            )
        self._texts, self._lexicon = list(tokens), lexicon
        self.left_out: list[str] = []
        self._ids = {token: number for number, token in enumerate(tokens)}
        by_token = lm is not None and lexicon is None and _of_tokens(lm, self._ids)
        self.settings = _completed(settings, lm, by_token)
        if lm is not None:
            self.settings |= {"lm_unit": "token" if by_token else "word", "lm_sha256": lm.sha256}
        if lexicon is not None:
            self.settings["lexicon_words"] = len(lexicon.words)
        if hot_words:
            self.settings["hot_words"] = len(hot_words)
        names, sequences, owners = self._known(None if by_token else lm, hot_words)
        self._names = names
        hot = HotWords.build(hot_words, self._spell)
        edge = np.array([token == BOUNDARY for token in tokens])
        starts = np.array([token.startswith(BOUNDARY) for token in tokens])
        numbers = np.array([lm.id(token) for token in tokens] if lm is not None and by_token else [0] * len(tokens))
        self.tokens = Tokens(*map(_frozen, (starts, edge, numbers.astype(np.int32))))
        self.words = self._tree(lm, sequences, owners)
        self.lm = tuple(map(_frozen, lm.tables if lm is not None else _NO_LM))
        self.phrases = Phrases(*map(_frozen, (hot.tree.first, hot.tree.token, hot.fail, hot.won, hot.credit)))
        self.knobs = Knobs(
            width=int(settings["beam"]),
            token_min=float(settings["token_min"]),
            token_top=int(settings["token_top"]),
            ratio=math.exp(settings["beam_min"]),
            reach=math.exp(min(600.0, max(0.0, self.settings["word_bonus"]) + 2 * hot.largest)),  # an edge, a token
            lm_weight=float(self.settings["lm_weight"]),
            bonus=float(self.settings["word_bonus"]),
            unknown=float(self.settings["unknown"]),
            closed=int(lexicon is not None),
            whole=int(starts[1:].all() and not edge.any() and len(tokens) > 1),
            joined=int(lexicon is not None and not starts.any()),
            by_token=int(by_token),
            plain=int(lm is None and lexicon is None and not hot_words and not self.settings["word_bonus"]),
            choices=int(np.diff(self.words.word_first).max(initial=0)) + 2,
            unk=lm.unk if lm is not None else 0,
            eos=lm.eos if lm is not None else 0,
            best_path=int(settings["best_path"]),
        )
        self.arrays = self.tokens, self.words, self.lm, self.phrases, self.knobs
        self.root = np.zeros((), NODE)
        self.root["parent"] = self.root["token"] = self.root["word"] = -1
        self.root["state"], self.root["hot"], self.root["gain"] = lm.start if lm is not None else 0, hot.start, 1.0

    def _known(self, lm: NGram | None, hot_words: Mapping[str, float]) -> tuple[list[str], list[list[int]], list[int]]:
        """The words of the tree, their token sequences, and to which word each sequence belongs."""
        hot = [word for phrase, weight in hot_words.items() if weight > 0 for word in phrase.split()]
        if self._lexicon is not None:
            if missing := [word for word in hot if word not in self._lexicon.words]:
                raise InputError(f"hot word {missing[0]!r} is not in {self._lexicon.name}; it can't be heard", status=2)
            return self._lexicon.sequences(self._ids, self._spell)
        if lm is None:
            return [], [], []
        if lm.tables[2][lm.unk + 1] <= ngram.UNK_LOGPROB and (new := [word for word in hot if word not in lm.ids]):
            raise InputError(
                f"hot word {new[0]!r} is not in the language model, which has no <unk>; `asr lm train` writes one",
                status=2,
            )
        names, sequences = [], []
        for word in dict.fromkeys([*lm.words, *hot]):
            if word not in _SPECIAL:
                try:
                    sequences.append(self._spell(word))
                    names.append(word)
                except InputError:
                    self.left_out.append(word)
        if not names:
            raise InputError(
                f"language model: no word of it can be spelled in the model's tokens ({', '.join(self.left_out[:5])}); "
                "do they differ in case or normaliser?",
                status=2,
            )
        return names, sequences, list(range(len(names)))

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return tokenizer(self._texts)

    def _spell(self, word: str) -> list[int]:
        """A word's tokens; where pieces begin it with a boundary alone, without that, which stands between words."""
        numbers = self._tokenizer.encode(word)
        return numbers[1:] if [self._texts[number] for number in numbers[:1]] == [BOUNDARY] else numbers

    def _tree(self, lm: NGram | None, sequences: list[list[int]], owners: list[int]) -> Words:
        """The tree of words; `ahead` is what the best word at or below a node gets without its context."""
        tree = Tree.build(sequences)
        first, order = tree.sequences_at()
        owner = np.array(owners, np.int64)
        numbers = np.array(
            [lm.id(name) for name in self._names] if lm is not None else [0] * len(self._names), np.int32
        )
        alone = np.full(len(sequences), self.settings["word_bonus"], np.float64)
        if lm is not None and len(sequences):
            alone += self.settings["lm_weight"] * lm.tables[2][numbers[owner] + 1]
        ahead = tree.highest(alone) if len(sequences) else np.zeros(1)
        return Words(*map(_frozen, (tree.first, tree.token, first, owner[order].astype(np.int32), numbers, ahead)))

    def text(self, path: np.ndarray, ended: int) -> str:
        """The text of a prefix (its nodes) whose last word ended as `ended` (-1: no word was open)."""
        if self._lexicon is not None:
            return " ".join(self._names[word] for word in [*path["word"].tolist(), ended] if word >= 0)
        return join([self._texts[token] for token in path["token"].tolist()])

    def spans(self, path: np.ndarray, ended: int) -> tuple[WordSpan, ...]:
        """The words of a prefix with their frames and probabilities."""
        runs = list(
            zip(
                path["token"].tolist(),
                path["start"].tolist(),
                path["end"].tolist(),
                np.log(path["peak"]).tolist(),
                strict=True,
            )
        )
        if self._lexicon is None:
            return ctc.word_spans(runs, self._texts)
        spans, inside = [], []
        for run, word in [*zip(runs, path["word"].tolist(), strict=True), (None, ended)]:
            if run is not None and self.knobs.whole:
                inside.append(run)
            if word >= 0 and inside:
                spans.append(ctc.word_span(self._names[word], inside))
                inside = []
            if run is not None and not self.knobs.whole and not self.tokens.edge[run[0]]:
                inside.append(run)
        return tuple(spans)

    def parts(self, node: np.void) -> tuple[float, float, float]:
        """What language model, word bonus and hot words gave a prefix until now."""
        return float(node["lm"]), self.knobs.bonus * int(node["words"]), float(node["won"])

    def potential(self, node: np.void) -> float:
        """All that is multiplied into a prefix's sums beside the frames, in nats."""
        spot, hot = int(node["spot"]), int(node["hot"])
        given, count, won = float(node["lm"]), int(node["words"]), float(node["won"])
        return float(potential(spot, hot, given, count, won, self.words, self.phrases, self.knobs))


def _completed(settings: Mapping[str, Any], lm: NGram | None, by_token: bool) -> dict[str, Any]:
    """The settings with their defaults; refuses what is out of range or has no effect."""
    ranges: dict[str, tuple[float, float]] = {
        "beam": (1, 1_000_000),
        "nbest": (1, 1_000_000),
        "token_min": (-math.inf, 0),
        "token_top": (0, 1_000_000),
        "beam_min": (-math.inf, 0),
        "lm_weight": (0, 20),
        "word_bonus": (-50, 50),
        "unknown": (-1000, 0),
    }
    for key, (low, high) in ranges.items():
        value = settings[key]
        if value is not None and not low <= value <= high:
            raise InputError(f"{key} is {value}; it goes from {low:g} to {high:g}", status=2)
    for key in ("lm_weight", "unknown"):
        if settings[key] is not None and (lm is None or (by_token and key == "unknown")):
            raise InputError(f"{key} has no effect without a language model of words; leave it out", status=2)
    words = lm is not None and not by_token
    defaults = {
        "lm_weight": LM_WEIGHT if lm is not None else 0.0,
        "word_bonus": WORD_BONUS if words else 0.0,
        "unknown": UNKNOWN if words else 0.0,
    }
    return {key: defaults[key] if value is None else value for key, value in settings.items()}


def _of_tokens(lm: NGram, ids: Mapping[str, int]) -> bool:
    """Whether a language model is one of the model's tokens, boundaries among them, and not one of words.

    Words of a letter each are tokens too; but who spells them out as words has no boundary among them.
    """
    ordinary = [word for word in lm.words if word not in _SPECIAL]
    if not ordinary:
        raise InputError("the language model has no words but its own signs; estimate it on more text", status=2)
    parted = BOUNDARY not in ids or any(word.startswith(BOUNDARY) for word in ordinary)
    return parted and all(word in ids for word in ordinary)


def _frozen(array: np.ndarray) -> np.ndarray:
    """The array, contiguous and read-only: the compiled loops are made for one kind of array."""
    view = np.ascontiguousarray(array).view(np.ndarray)
    view.flags.writeable = False
    return view
