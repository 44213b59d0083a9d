"""Language models from text: reads sentences, estimates with `asr.decode.kneser_ney`, writes ARPA.

Text is UTF-8, plain or gzip, one sentence a line, or a manifest; lines without a word are left out. The units of a
model are words, or characters with `asr.text.BOUNDARY` for the space between words, as character models of speech have
them.
"""

import contextlib
import dataclasses
import gzip
import os
import sys
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asr import files, manifest, text
from asr.decode import kneser_ney
from asr.decode.kneser_ney import Estimated
from asr.errors import InputError

units = text.LM_UNITS
MAX_ORDER = 10
SPECIAL = ("<unk>", "<s>", "</s>")  # in the order of `kneser_ney`'s numbers
_MEGABYTE = 1 << 20
_LONGEST = 1_000_000  # bytes of a line
_CHUNK = 1 << 16  # lines written between two signs of progress

Counting = Callable[[str, int], contextlib.AbstractContextManager[Any]]


class _Silent:
    def advance(self) -> None:
        """Nobody is looking."""


def silent(what: str, total: int) -> contextlib.AbstractContextManager[Any]:
    """A `Counting` that shows nothing."""
    return contextlib.nullcontext(_Silent())


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training had and made.

    Attributes:
        sentences, tokens: of the text, sentence ends not counted among the tokens.
        ngrams: how many n-grams of each order were written.
        discounts: D1, D2, D3 of each order.
    """

    sentences: int
    tokens: int
    ngrams: list[int]
    discounts: list[list[float]]


def sentences(
    paths: Sequence[str | os.PathLike[str]],
    unit: str = "word",
    normalizer: str = "none",
    counting: Counting = silent,
) -> Iterator[list[str]]:
    """The sentences of text files as lists of words or characters.

    Args:
        paths: plain or gzip files, ``-`` for standard input; of a manifest (``.jsonl``) the texts.
        unit: one of `units`.
        normalizer: a name in `asr.text.normalizers`.
        counting: called with what is counted and how often; its result's `advance` is called after each (megabytes).

    Raises:
        InputError: a file can't be read, is cut, is not UTF-8, or holds a sign that models need for themselves; file
            and line are named.
    """
    clean = text.normalizer(normalizer)
    if unit not in units:
        raise InputError(f"no unit {unit!r}; known are {', '.join(units)}", status=2)
    total = sum(map(_size, paths))
    with counting("reading, megabytes", total // _MEGABYTE + 1) as counter:
        for path in paths:
            lines = _references(path) if os.fspath(path).endswith(".jsonl") else _lines(path, counter.advance)
            for number, line in lines:
                try:
                    sentence = _split(clean(line), unit)
                except InputError as error:
                    raise InputError(f"{path}: line {number}: {error}") from error
                if sentence:
                    yield sentence


def _split(line: str, unit: str) -> list[str]:
    """The words or characters of a normalised line."""
    if unit == "character":
        if text.BOUNDARY in line:
            raise InputError(f"holds {text.BOUNDARY!r}, the sign between words; remove it")
        return text.split(line, unit)
    words = text.split(line, unit)
    if "<" in line and (special := set(SPECIAL) & set(words)):
        raise InputError(f"holds {min(special)!r} as a word, which models need for themselves; remove it")
    return words


def _size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file; of standard input nobody knows. Raises InputError before work starts."""
    try:
        return 0 if path == "-" else Path(path).stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}; check the path", status=2) from error


def _lines(path: str | os.PathLike[str], advance: Callable[[], None]) -> Iterator[tuple[int, str]]:
    """The lines of a file and their numbers, from 1 on."""
    number, seen = 0, 0
    try:
        with _opened(path) as (raw, content):
            for number, line in enumerate(iter(lambda: content.readline(_LONGEST + 1), b""), 1):
                if len(line) > _LONGEST:
                    raise InputError(f"{path}: line {number}: longer than {_LONGEST} bytes; put a sentence on a line")
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                if number % 1024 == 0:
                    for _ in range(raw.tell() // _MEGABYTE - seen if path != "-" else 0):
                        advance()
                        seen += 1
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: line {number}: not UTF-8; convert the file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: cut or damaged gzip behind line {number} ({error}); copy it again") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; check the path") from error


def _references(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The texts of a manifest and their lines' numbers."""
    for utterance in manifest.read(path):
        if utterance.text is None:
            raise InputError(f"{path}: line {utterance.line}: key 'text' is missing; a language model learns from it")
        yield utterance.line, utterance.text


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, BinaryIO | gzip.GzipFile]]:
    """A file as it lies on the disk, and its content."""
    if path == "-":
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    with open(path, "rb") as raw:
        is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
        yield raw, gzip.GzipFile(fileobj=raw) if is_gzip else raw


def train(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    order: int = 3,
    unit: str = "word",
    normalizer: str = "none",
    prune: Sequence[int] = (),
    vocabulary: int | None = None,
    min_count: int | None = None,
    fallback: bool = False,
    counting: Counting = silent,
) -> Trained:
    """Estimate an n-gram model on text and write it as ARPA. The same text gives the same bytes.

    Args:
        paths: as in `sentences`.
        out: file to write, gzip where its name ends in ``.gz``.
        order: words of the longest n-gram, 1 to 10.
        unit: as in `sentences`.
        normalizer: as in `sentences`.
        prune: for each order the count up to which n-grams are left out, the last also for all longer ones;
            0 for 1-grams, never falling.
        vocabulary: keep this many words, the most frequent.
        min_count: keep words that occur so often.
        fallback: fixed discounts where the text is too small or artificial to compute them.
        counting: as in `sentences`.

    Raises:
        InputError: a setting is wrong (status 2), the text as in `sentences`, is empty, or gives no discounts.
        AsrError: `out` can't be written.
    """
    _check(order, prune, vocabulary, min_count)
    check_output(paths, out)
    words, stream, count = read_stream(sentences(paths, unit, normalizer, counting))
    if not count:
        raise InputError(f"{', '.join(map(str, paths))}: no sentence in it")
    with counting("counting, n-gram lengths", order) as counter:
        grams = kneser_ney.count(stream, len(words), order, counter.advance)
    known = kept_words(grams[0].count, vocabulary, min_count)
    model = kneser_ney.estimate(grams, prune, known, fallback)
    del grams
    write(out, words, model.orders, counting)
    sizes = [len(one.word) for one in model.orders]
    return Trained(count, len(stream) - 2 * count, sizes, [list(map(float, d[1:])) for d in model.discounts])


def check_output(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """Refuse to write a model to standard output or over its own text. Raises InputError (status 2)."""
    if os.fspath(out) == "-":
        raise InputError("a model is written to a file, not to standard output; name one with -o", status=2)
    if Path(out).exists() and any(path != "-" and Path(out).samefile(path) for path in paths if Path(path).exists()):
        raise InputError(f"{out}: would take the place of the text it is made of; choose another name", status=2)


def _check(order: int, prune: Sequence[int], vocabulary: int | None, min_count: int | None) -> None:
    """Raise the InputError (status 2) of a wrong setting."""
    if not 1 <= order <= MAX_ORDER:
        raise InputError(f"order {order}: give a whole number from 1 to {MAX_ORDER}", status=2)
    shown = " ".join(map(str, prune))
    if len(prune) > order:
        raise InputError(f"prune {shown}: more thresholds than the order {order}", status=2)
    if prune and (prune[0] != 0 or list(prune) != sorted(prune)):
        raise InputError(f"prune {shown}: start with 0 (--min-count drops words) and never fall", status=2)
    check_vocabulary(vocabulary, min_count)


def check_vocabulary(vocabulary: int | None, min_count: int | None) -> None:
    """Refuse settings of `kept_words` that make no sense. Raises InputError (status 2)."""
    if vocabulary is not None and min_count is not None:
        raise InputError("give --vocab or --min-count, not both", status=2)
    if (vocabulary is not None and vocabulary < 1) or (min_count is not None and min_count < 1):
        raise InputError("--vocab and --min-count are at least 1", status=2)


def read_stream(text_sentences: Iterator[list[str]]) -> tuple[list[str], np.ndarray, int]:
    """The vocabulary (`SPECIAL`, then by code point), the text as `kneser_ney.count` takes it, its sentences."""
    ids: defaultdict[str, int] = defaultdict(lambda: len(ids))
    for word in SPECIAL:
        ids[word]
    stream, count = array("i"), 0
    for sentence in text_sentences:
        stream.append(kneser_ney.BOS)
        stream.extend(map(ids.__getitem__, sentence))
        stream.append(kneser_ney.EOS)
        count += 1
    words = [*SPECIAL, *sorted(list(ids)[len(SPECIAL) :])]
    renumbered = np.empty(len(words), np.int32)
    renumbered[[ids[word] for word in words]] = np.arange(len(words))
    return words, renumbered[np.frombuffer(stream, np.int32)], count


def kept_words(counts: np.ndarray, size: int | None, min_count: int | None) -> np.ndarray:
    """Which words to keep: bool (V,). Of equally frequent ones those first in code point order."""
    known = np.ones(len(counts), bool)
    ordinary = counts[len(SPECIAL) :]
    if size is not None:
        known[len(SPECIAL) + np.argsort(-ordinary, kind="stable")[size:]] = False
    if min_count is not None:
        known[len(SPECIAL) :] = ordinary >= min_count
    return known


def write(
    path: str | os.PathLike[str], words: Sequence[str], orders: Sequence[Estimated], counting: Counting = silent
) -> None:
    """Write a model as ARPA, atomically; gzip where the name ends in ``.gz``. 7 digits: 1e-6 in a common logarithm.

    Raises:
        AsrError: the file can't be written; what stood there is untouched.
    """
    total = sum(len(order.word) // _CHUNK + 1 for order in orders)
    with files.atomic(path) as raw, contextlib.ExitStack() as stack, counting("writing", total) as counter:
        file: Any = raw
        if os.fspath(path).endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
        sizes = "".join(f"ngram {n}={len(order.word)}\n" for n, order in enumerate(orders, 1))
        file.write(f"\\data\\\n{sizes}".encode())
        contexts: list[str] = []
        for n, order in enumerate(orders, 1):
            file.write(f"\n\\{n}-grams:\n".encode())
            names: list[str] = []
            for begin in range(0, len(order.word), _CHUNK):
                chunk = slice(begin, begin + _CHUNK)
                names += (fresh := _names(order, chunk, words, contexts))
                file.write(_rows(order, chunk, fresh, n < len(orders)).encode())
                names = names if n < len(orders) else []
                counter.advance()
            contexts = names
        file.write(b"\n\\end\\\n")


def _names(order: Estimated, chunk: slice, words: Sequence[str], contexts: Sequence[str]) -> list[str]:
    """The n-grams of a chunk, as they stand in the file."""
    last = order.word[chunk].tolist()
    if not contexts:
        return [words[word] for word in last]
    pairs = zip(order.context[chunk].tolist(), last, strict=True)
    return [f"{contexts[context]} {words[word]}" for context, word in pairs]


def _rows(order: Estimated, chunk: slice, names: Sequence[str], is_context: bool) -> str:
    logprob = np.minimum(np.log10(order.probability[chunk]), 0.0).tolist()
    if not is_context:
        return "".join([f"{p:.7g}\t{name}\n" for p, name in zip(logprob, names, strict=True)])
    backoff = np.log10(order.backoff[chunk]).tolist()
    return "".join([f"{p:.7g}\t{name}\t{b:.7g}\n" for p, name, b in zip(logprob, names, backoff, strict=True)])
