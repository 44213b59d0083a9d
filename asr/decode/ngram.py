"""Back-off n-gram language models: read from ARPA, walked by a compiled step, kept ready in a memory-mapped file.

    model = NGram.load("lm.arpa.gz")
    model.logprob(["THE", "CAT"])
    score, state = model.step(model.start, model.id("THE"))

An n-gram is an entry, a number. Entry 0 is the empty one, entry w + 1 is the word w; then come the 2-grams, 3-grams and
so on, each order by (entry of all words but the last, last word). A state is the entry of the words that still matter:
two states are equal where all that can follow has equal probabilities by the shape of the model, as with kenlm
(Heafield 2011, KenLM: Faster and Smaller Language Model Queries, 4.1). Probabilities are natural logarithms.
"""

import dataclasses
import os
import stat
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from asr import files
from asr.compiled import bare, compiled
from asr.decode import arpa, tables
from asr.decode.scan import LN10, child
from asr.decode.tables import Tables
from asr.errors import InputError
from asr.perplexity import Perplexity

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
UNK_LOGPROB = -100 * LN10  # of a model without <unk>, as kenlm has it


@bare
def step(
    first: np.ndarray,
    word: np.ndarray,
    logprob: np.ndarray,
    backoff: np.ndarray,
    suffix: np.ndarray,
    follow: np.ndarray,
    state: int,
    w: int,
) -> tuple[float, int]:
    """The probability of a word behind a state (Katz 1987, back-off), and the state that follows.

    Args:
        first: int32 (contexts + 1,), the children of context s are the entries ``first[s]`` to ``first[s + 1] - 1``.
        word: int32 (entries,), the last word of each entry.
        logprob: float32 (entries,).
        backoff: float32 (contexts,).
        suffix: int32 (contexts,), the state one is in when the first words of a state are forgotten.
        follow: int32 (entries,), the state behind an entry.
        state: from 0 to contexts - 1.
        w: from 0 to V - 1.

    Returns:
        The natural logarithm of the probability, and the new state.
    """
    total, state = 0.0, int(state)
    while state > 0:
        entry = child(first, word, state, w)
        if entry >= 0:
            return total + float(logprob[entry]), int(follow[entry])
        total += float(backoff[state])
        state = int(suffix[state])
    return total + float(logprob[w + 1]), int(follow[w + 1])


class NGram:
    """A back-off model; `load` makes one.

    Attributes:
        order: the longest n-gram's words.
        words: the vocabulary in the file's order, ``<s>``, ``</s>`` and ``<unk>`` among it; word ids are places in it.
        bos, eos, unk: ids of ``<s>``, ``</s>`` and ``<unk>``.
        start: the state at the start of a sentence.
        tables: the arrays that `step` takes, in its order.
        sha256: of the ARPA file, in hexadecimal.
    """

    def __init__(self, content: Tables) -> None:
        self._content = content
        self.tables = content.arrays
        self.order, self.sha256 = content.order, content.sha256
        self.bos, self.eos, self.unk = content.special
        self.start = int(content.arrays[-1][self.bos + 1])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "NGram":
        """The model of an ARPA file, plain or gzip.

        The first time the file is parsed, and its arrays are kept in ``NAME.tables`` beside it, or below
        ``XDG_CACHE_HOME`` or ``~/.cache`` where that can't be written. From then on they are mapped into memory
        after a look at the ARPA's SHA-256. A file of tables that is damaged or not of this ARPA is made again.

        Raises:
            InputError: there is no such file, it can't be read, is no ARPA, or is a wrong one (file and line named).
        """
        name, digest = os.fspath(path), _digest(path)
        places = tables.places(Path(path), digest)
        for place in places:
            if (kept := tables.load(place, digest)) is not None:
                return cls(kept)
        try:
            with open(path, "rb") as file:
                content = build(arpa.read(file, name), digest, name)
        except OSError as error:
            raise InputError(f"{name}: {error.strerror or error}; check the path", status=2) from error
        if _digest(path) != digest:
            raise InputError(f"{name}: changed while it was read; wait until it is complete")
        return cls(tables.keep(content, places))

    @cached_property
    def words(self) -> list[str]:
        """The vocabulary by id."""
        return self._content.text.decode().split("\n")[:-1]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word -> id."""
        return {word: number for number, word in enumerate(self.words)}

    def id(self, word: str) -> int:
        """The id of a word, exactly as it is spelled; that of ``<unk>`` where the model does not have it."""
        return self.ids.get(word, self.unk)

    def step(self, state: int, w: int) -> tuple[float, int]:
        """As the function `step`, on the model's own tables.

        Raises:
            IndexError: there is no such state or word.
        """
        if not (0 <= state < len(self.tables[3]) and 0 <= w < self._content.size):
            raise IndexError(f"no state {state} or word {w} in this model")
        logprob, follow = step(*self.tables, state, w)
        return logprob, int(follow)

    def logprob(self, words: Sequence[str]) -> float:
        """The natural logarithm of a sentence's probability, its start given and its end included."""
        return float(self._scores(words).sum())

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> Perplexity:
        """How well the model foresees sentences, each a list of words."""
        count = words = unknown = 0
        total = lost = 0.0
        for sentence in sentences:
            scores = self._scores(sentence)
            missing = [place for place, word in enumerate(sentence) if self.id(word) == self.unk]
            count, words, unknown = count + 1, words + len(sentence), unknown + len(missing)
            total, lost = total + float(scores.sum()), lost + float(scores[missing].sum())
        return Perplexity(count, words, unknown, total, lost)

    def _scores(self, words: Sequence[str]) -> np.ndarray:
        """The natural logarithms of each word's probability and of the end's: float64 (words + 1,)."""
        ids = np.array([*map(self.id, words), self.eos], np.int64)
        scores = np.empty(len(ids))
        _walk(*self.tables, self.start, ids, scores)
        return scores


def _digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of an ordinary file (a pipe is not waited for). Raises InputError."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError(f"{os.fspath(path)}: not an ordinary file; give an ARPA file", status=2)
        return files.sha256(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{os.fspath(path)}: {reason}; check the path", status=2) from error


@compiled
def _walk(
    first: np.ndarray,
    word: np.ndarray,
    logprob: np.ndarray,
    backoff: np.ndarray,
    suffix: np.ndarray,
    follow: np.ndarray,
    state: int,
    ids: np.ndarray,
    scores: np.ndarray,
) -> None:
    """Fill `scores` with what each step from `state` along `ids` gives."""
    for place in range(len(ids)):
        scores[place], state = step(first, word, logprob, backoff, suffix, follow, state, int(ids[place]))


def build(source: arpa.Arpa, sha256: str, name: str) -> Tables:
    """The tables of an ARPA file's content: links to suffixes, states without a future taken out.

    Raises:
        InputError: the file (`name`) has no ``<s>`` or no ``</s>``.
    """
    for special in (BOS, EOS):
        if special not in source.words:
            raise InputError(f"{name}: no {special} among its 1-grams; estimate the model with sentence ends")
    if UNK not in source.words and "<UNK>" in source.words:  # kenlm takes both
        source = dataclasses.replace(source, words=[UNK if w == "<UNK>" else w for w in source.words])
    if UNK not in source.words:
        source = _with_unknown(source)
    contexts = len(source.backoff)
    suffix = np.zeros(len(source.word), np.int32)
    _link(source.first, source.word, suffix, len(source.words) + 1)
    useful = (source.first[1:] > source.first[:-1]) | (source.backoff != 0)
    useful[0] = True
    follow = np.where(np.append(useful, np.zeros(len(suffix) - contexts, bool)), np.arange(len(suffix)), suffix)
    for begin, end in zip(source.ends, source.ends[1:], strict=False):  # those that a suffix leads to come first
        part = follow[begin:end]
        shortened = part != np.arange(begin, end)
        part[shortened] = follow[part[shortened]]
    arrays = (
        source.first,
        source.word,
        source.logprob,
        source.backoff,
        follow[suffix[:contexts]].astype(np.int32),
        follow.astype(np.int32),
    )
    bos, eos, unk = (source.words.index(word) for word in (BOS, EOS, UNK))
    text = "".join(f"{word}\n" for word in source.words).encode()
    return Tables(text, len(source.words), arrays, (bos, eos, unk), len(source.ends) - 1, sha256)


def _with_unknown(source: arpa.Arpa) -> arpa.Arpa:
    """The same with ``<unk>`` as the last word: all entries behind the 1-grams move on by one."""
    words = len(source.words)
    first = source.first + 1
    first[0] = 1
    backoff = source.backoff
    if len(source.ends) > 2:
        first = np.insert(first, words + 1, first[words + 1])
        backoff = np.insert(backoff, words + 1, np.float32(0))
    return arpa.Arpa(
        [*source.words, UNK],
        first,
        np.insert(source.word, words + 1, words).astype(np.int32),
        np.insert(source.logprob, words + 1, np.float32(UNK_LOGPROB)),
        backoff,
        [1, *(end + 1 for end in source.ends[1:])],
    )


@compiled
def _link(first: np.ndarray, word: np.ndarray, suffix: np.ndarray, behind: int) -> None:
    """Fill `suffix` with the longest n-gram that each entry from `behind` on ends with: SRILM leaves some out."""
    for context in range(1, len(first) - 1):
        for entry in range(max(behind, int(first[context])), int(first[context + 1])):
            shorter, found = int(suffix[context]), -1
            while shorter > 0 and found < 0:
                found = child(first, word, shorter, int(word[entry]))
                shorter = int(suffix[shorter])
            suffix[entry] = found if found >= 0 else int(word[entry]) + 1
