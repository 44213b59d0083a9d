"""What `decode.py` decodes: sentences of books, a language model of other books, and simulated emissions.

Emissions at 25 frames a second with a known truth: log-probabilities `(frames, tokens)`, peaked as those of a trained
CTC model. A token stands one frame or two and blanks lie between; the right token has rivals that sound alike; in hard
words the rivals come near or win; some tokens are weak, some come from nowhere. The truth is nearly always among the
first two choices of its frame, so that a language model mends more here than it does with real speech: error rates
show whether decoders search alike, and forecast nothing.
"""

import collections
import dataclasses
import gzip
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from asr import lm

BLANK = "<blank>"
CHARACTERS = [BLANK, "|", "'", *(chr(ord("A") + i) for i in range(26))]
HELD_OUT = 12_792  # last lines of the text: two books that the language model does not see
CHARACTERS_A_FRAME = 14.5 / 25
PIECES = 500
# Letters that sound alike, and how little it takes to hear one for the other.
ALIKE = [
    *((letters, 0.3) for letters in ("PB", "TD", "KGCQ", "SZC", "FV", "MN", "OU", "EIY")),
    *((letters, 0.4) for letters in ("LRW", "JG", "CKX", "UVW")),
    ("AEIOUY", 0.5),
]
FAINT = {"H": 0.4, "E": 0.5, "'": 0.3, "|": 0.7, "W": 0.7}  # what it takes to add or lose one; others 0.9


@dataclasses.dataclass(frozen=True)
class Texts:
    """`train`: sentences of the language model; `test`: those decoded, `hot`: others, each with a rare word in it.

    `rare`: words of `hot`, at most twice in `train`; `others`: rare words that are in neither.
    """

    train: list[str]
    test: list[str]
    hot: list[str]
    rare: list[str]
    others: list[str]


@dataclasses.dataclass(frozen=True)
class Hearing:
    """How well the simulated model hears: medians and spreads in nats, shares."""

    gap: float = 5.0  # from the right token to its best rival
    spread: float = 1.55
    hard: float = 3.3  # smaller by this in hard words
    hard_words: float = 0.14
    weak: float = 0.006
    stray: float = 0.004
    floor: float = -9.5  # of the tokens that nothing speaks for


HEARING = {"characters": Hearing(), "pieces": Hearing(spread=1.7, hard=3.8, hard_words=0.22, stray=0.005, floor=-12.0)}


def read_texts(sentences: int, seed: int = 0) -> Texts:
    """The sentences of ``$ASR_DATA/lm_text/books.txt.gz``: the last two books for the tests, the others to train."""
    with gzip.open(Path(os.environ["ASR_DATA"]) / "lm_text" / "books.txt.gz", "rt", encoding="utf-8") as file:
        return split(file.read().splitlines(), HELD_OUT, sentences, seed)


def split(lines: list[str], held_out: int, sentences: int, seed: int) -> Texts:
    """So many test sentences of at most 30 words, and half as many with rare words of five letters and more."""
    rng = np.random.default_rng(seed)
    train, held = lines[:-held_out], [line for line in lines[-held_out:] if len(line.split()) <= 30]
    seen = collections.Counter(word for line in train for word in line.split())
    order = [held[i] for i in rng.permutation(len(held))]
    test, rest = order[:sentences], order[sentences:]
    said = {word for line in test for word in line.split()}

    def rare_in(line: str) -> list[str]:
        return [word for word in line.split() if len(word) >= 5 and seen[word] <= 2 and word not in said]

    hot = [line for line in rest if rare_in(line)][: sentences // 2]
    rare = sorted({word for line in hot for word in rare_in(line)})
    said |= {word for line in hot for word in line.split()}
    others = sorted(word for word, times in seen.items() if times <= 3 and len(word) >= 5 and word not in said)
    return Texts(train, test, hot, rare, [others[i] for i in rng.permutation(len(others))])


def language_model(train: list[str], path: Path, order: int = 3) -> Path:
    """The ARPA file of an n-gram model of words, made where it is not there; n-grams of 3 words and more seen twice."""
    if not path.exists():
        text = path.with_suffix(".txt")
        text.write_text("\n".join(train) + "\n", encoding="utf-8")
        unfinished = path.with_suffix(".part")
        lm.train([text], unfinished, order=order, prune=(0, 0, 1), fallback=True)
        unfinished.rename(path)
    return path


class Pieces:
    """Pieces of words by byte-pair merges (Sennrich et al. 2016); `|` stands in front of those that begin a word."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        self.merges = merges
        letters = CHARACTERS[2:]
        self.tokens = [BLANK, *letters, *("|" + letter for letter in letters), *(a + b for a, b in merges)]
        self._ids = {token: number for number, token in enumerate(self.tokens)}
        self._known: dict[str, list[int]] = {}

    @classmethod
    def learn(cls, sentences: list[str], pieces: int = PIECES, words: int = 3000) -> "Pieces":
        """So many pieces of the most frequent words."""
        counts = collections.Counter(word for line in sentences for word in line.split()).most_common(words)
        spelled = [(["|" + word[0], *word[1:]], times) for word, times in counts]
        merges: list[tuple[str, str]] = []
        while len(merges) < pieces - 2 * len(CHARACTERS[2:]):
            pairs: collections.Counter[tuple[str, str]] = collections.Counter()
            for parts, times in spelled:
                for pair in itertools.pairwise(parts):
                    pairs[pair] += times
            if not pairs:
                break
            made = {a + b for a, b in merges}  # two pairs can make the same piece; once is enough
            merges.append(next(pair for pair, _ in pairs.most_common() if "".join(pair) not in made))
            spelled = [(_merged(parts, merges[-1]), times) for parts, times in spelled]
        return cls(merges)

    @classmethod
    def kept(cls, sentences: list[str], path: Path) -> "Pieces":
        """Those learned before, or learned now and kept."""
        if not path.exists():
            path.write_text(json.dumps(cls.learn(sentences).merges), encoding="utf-8")
        return cls([(a, b) for a, b in json.loads(path.read_text(encoding="utf-8"))])

    def encode(self, text: str) -> list[int]:
        """The token numbers of a text."""
        return [number for word in text.split() for number in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            parts = ["|" + word[0], *word[1:]]
            for pair in self.merges:
                parts = _merged(parts, pair)
            self._known[word] = [self._ids[part] for part in parts]
        return self._known[word]


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts with every such pair as one."""
    found, at = [], 0
    while at < len(parts):
        both = tuple(parts[at : at + 2]) == pair
        found.append(pair[0] + pair[1] if both else parts[at])
        at += 2 if both else 1
    return found


def encode_characters(text: str) -> list[int]:
    """The token numbers of a text, the boundary between its words."""
    return [CHARACTERS.index("|" if letter == " " else letter) for letter in text]


class Simulator:
    """Emissions of texts.

    Args:
        tokens: blank first; `|` is the boundary, or in front of the tokens that begin a word.
        encode: the token numbers of a text.
        hearing: how well it hears.
    """

    def __init__(self, tokens: list[str], encode: Callable[[str], list[int]], hearing: Hearing) -> None:
        self.tokens, self.encode, self.hearing = tokens, encode, hearing
        self._rivals = [rivals(number, tokens) for number in range(len(tokens))]

    def __call__(self, texts: list[str], seed: int) -> list[np.ndarray]:
        """Log-probabilities `(frames, tokens)`, float32, of each text."""
        rng = np.random.default_rng(seed)
        return [self._utterance(text, rng) for text in texts]

    def _utterance(self, text: str, rng: np.random.Generator) -> np.ndarray:
        labels = self.encode(text)
        places = np.array(list(self._places(labels, len(text), rng)))  # the label of each frame, -1 a blank
        logits = rng.normal(self.hearing.floor, 1.3, (len(places), len(self.tokens)))
        logits[:, 0] = rng.normal(-4.0, 1.0, len(places))
        self._blanks(logits, places, labels, rng)
        hard = False
        for place, label in enumerate(labels):
            if place == 0 or self.tokens[label].startswith("|"):
                hard = rng.random() < self.hearing.hard_words
            self._spike(logits, np.flatnonzero(places == place), label, hard, rng)
        logits /= rng.uniform(0.9, 1.25)
        logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return np.ascontiguousarray(logits, np.float32)

    def _places(self, labels: list[int], letters: int, rng: np.random.Generator) -> Iterator[int]:
        """Silence, every label for a frame or two and blanks behind it, silence."""
        frames_each = letters / CHARACTERS_A_FRAME / max(1, len(labels))
        yield from [-1] * int(rng.integers(4, 12))
        for place, label in enumerate(labels):
            stay = 1 + int(rng.random() < (0.12 if frames_each < 2.5 else 0.35))
            blanks = int(rng.geometric(1 / (1 + max(frames_each - stay, 0.05)))) - 1
            behind = labels[place + 1 : place + 2]
            if behind == [label]:
                blanks = max(blanks, 1)
            if behind and self.tokens[behind[0]].startswith("|") and rng.random() < 0.06:
                blanks += int(rng.integers(5, 15))  # a pause
            yield from [place] * stay + [-1] * blanks
        yield from [-1] * int(rng.integers(4, 12))

    def _blanks(self, logits: np.ndarray, places: np.ndarray, labels: list[int], rng: np.random.Generator) -> None:
        """Frames of blanks: their neighbours leak into them, and sometimes a token comes from nowhere."""
        for t in np.flatnonzero(places < 0):
            logits[t, 0] = 0.0
            for near in (t - 1, t + 1):
                if 0 <= near < len(places) and places[near] >= 0:
                    label = labels[places[near]]
                    logits[t, label] = max(logits[t, label], rng.normal(-4.5, 1.2))
            if rng.random() < self.hearing.stray:
                label = int(rng.integers(1, len(self.tokens)))
                logits[t, label] = max(logits[t, label], rng.normal(-0.8, 1.5))

    def _spike(self, logits: np.ndarray, at: np.ndarray, label: int, hard: bool, rng: np.random.Generator) -> None:
        """The frames of one label: it, its rivals, and where it is weak the blank above both."""
        own = self.hearing
        others, chances = self._rivals[label]
        chosen = rng.choice(others, int(rng.integers(2, 5)), replace=False, p=chances)
        gaps = rng.normal(own.gap - own.hard * hard, own.spread, len(chosen))
        gaps[1:] = np.maximum(gaps[1:], gaps[0] - 0.3) + rng.exponential(1.0, len(gaps) - 1)
        logits[at, label] = 0.0
        for t in at:
            logits[t, chosen] = np.maximum(logits[t, chosen], rng.normal(0, 0.25, len(chosen)) - gaps)
        if rng.random() < own.weak * (4 if hard else 1):
            logits[at, 0] = rng.normal(1.2, 0.8, len(at))


def rivals(label: int, tokens: list[str], count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that sound most like one, and how probably each is heard for it."""
    costs = np.full(len(tokens), np.inf)
    for other in range(1, len(tokens)):
        if other != label:
            costs[other] = difference(tokens[label], tokens[other])
    nearest = np.argsort(costs, kind="stable")[:count]
    chances = np.exp(-3 * (costs[nearest] - costs[nearest[0]]))
    return nearest, chances / chances.sum()


def difference(one: str, other: str) -> float:
    """How much it takes to hear `other` for `one`: an edit distance with costs by sound."""
    before = [0.0]
    for b in other:
        before.append(before[-1] + FAINT.get(b, 0.9))
    for a in one:
        row = [before[0] + FAINT.get(a, 0.9)]
        for j, b in enumerate(other, start=1):
            swap = 0.0 if a == b else min((cost for group, cost in ALIKE if a in group and b in group), default=1.0)
            row.append(min(before[j] + FAINT.get(a, 0.9), row[-1] + FAINT.get(b, 0.9), before[j - 1] + swap))
        before = row
    return before[-1] + 0.05 * abs(len(one) - len(other))


def arpa_words(path: Path) -> list[str]:
    """The words of an ARPA file, without its `<s>`, `</s>` and `<unk>`."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("\\1-grams:"):
                break
        found = []
        for line in file:
            if line.startswith("\\"):
                break
            if (parts := line.split("\t"))[1:] and not re.fullmatch(r"</?s>|<unk>", parts[1].strip()):
                found.append(parts[1].strip())
    return found


def concatenated(emissions: list[np.ndarray], boundary: int, frames: int) -> np.ndarray:
    """One input of utterances behind one another, a sure boundary between them, cut to so many frames."""
    width = emissions[0].shape[1]
    sure = np.full((1, width), -12.0, np.float32)
    sure[0, boundary] = np.log1p(-(width - 1) * np.exp(-12.0))
    whole = np.concatenate([part for one in emissions for part in (one, sure)])
    return np.ascontiguousarray(whole[:frames])
