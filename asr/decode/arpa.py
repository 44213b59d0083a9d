r"""ARPA files read into arrays: plain or gzip, any order, in blocks, by loops over the bytes (`asr.decode.scan`).

The format is that of SRILM (ngram-format(5)) as kenlm (lm/read_arpa.cc) reads it: lines before ``\data\`` are left
out, ``ngram N=COUNT`` lines give the header, and each section ``\N-grams:`` holds a line an n-gram: log10 of its
probability, N words, and log10 of its back-off weight where it is a context, between spaces or tabs. ``\end\`` is the
last line. What memory is taken depends on the lines that are there, not on what the header says.
"""

import dataclasses
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from asr.decode import scan
from asr.errors import InputError

BLOCK = 1 << 20  # bytes read at once
LONGEST_LINE = 1 << 20  # bytes
MAX_ENTRIES = 2**31 - 3  # entries are numbered by 32 bits
_HEADER_BYTES = 1 << 20  # within which \data\ stands
_FOREIGN = (
    (b"mmap lm http://kheafield.com/code", "a kenlm binary; give the ARPA file that build_binary made it from"),
    (b"blmt", "an IRSTLM binary; write it as ARPA with `compile-lm --text yes`"),
    (b"iARPA", "an IRSTLM iARPA file; write it as ARPA with `compile-lm --text yes`"),
    (b"SRILM_BINARY_NGRAM", "an SRILM binary; write it as ARPA with `ngram -lm OLD -write-lm NEW`"),
)
_PROBLEMS = {
    scan.NUMBER: "a number is malformed or not finite",
    scan.POSITIVE: "a probability above 1 (its logarithm is positive)",
    scan.FIELDS: "wants a log-probability, {order} word(s) and at most one back-off",
    scan.BACKOFF: "a back-off behind an n-gram of the highest order",
}
_ORPHAN = "its words but the last are no {order}-gram of this file; estimate the model again, contexts included"


@dataclasses.dataclass(frozen=True)
class Arpa:
    """An ARPA file's content: entry 0 is the empty n-gram, entry w + 1 the word w, then come the 2-grams and so on.

    Words are numbered as the file lists them; the n-grams of an order stand by (context's entry, last word).

    Attributes:
        words: the words.
        first: int32 (contexts + 1,): the children of context s are the entries ``first[s]`` to ``first[s + 1] - 1``.
        word: int32 (entries,), the last word of each; -1 for entry 0.
        logprob: float32 (entries,), natural logarithm.
        backoff: float32 (contexts,), natural logarithm; contexts are all entries below the highest order.
        ends: the number of entries up to each order: ``ends[0]`` is 1, ``ends[n]`` counts those of 0 to n words.
    """

    words: list[str]
    first: np.ndarray
    word: np.ndarray
    logprob: np.ndarray
    backoff: np.ndarray
    ends: list[int]


def read(file: BinaryIO, name: str) -> Arpa:
    """Read the ARPA file `name`, open at its start.

    Raises:
        InputError: it is no ARPA file, is cut, holds a malformed or contradictory line (file and line are named), or
            can't be read.
    """
    magic = file.read(2)
    file.seek(0)
    try:
        return _read(_Lines(gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file, name))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name}: cut or damaged gzip ({error}); copy it again") from error
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}; check the disk") from error


class _Lines:
    """Whole lines of a file in blocks; `line` is the number of the line that stands at `at` in `block`."""

    def __init__(self, file: BinaryIO | gzip.GzipFile, name: str) -> None:
        self._file, self.name, self._ended = file, name, False
        self.block, self.at, self.line = b"", 0, 1

    def error(self, problem: str, line: int) -> InputError:
        """The error at a line."""
        return InputError(f"{self.name}: line {line}: {problem}")

    def fill(self) -> bool:
        """Have at least one whole line in the block; False at the file's end."""
        while self.block.find(b"\n", self.at) < 0 and not self._ended:
            rest = self.block[self.at :]
            if len(rest) > LONGEST_LINE:
                raise self.error(f"more than {LONGEST_LINE} bytes long; not an ARPA file", self.line)
            fresh = self._file.read(BLOCK)
            self._ended = not fresh
            self.block, self.at = rest + (fresh or b"\n" * bool(rest)), 0
        return self.at < len(self.block)

    def next(self) -> bytes | None:
        """The next line without white space at its ends; None at the file's end."""
        if not self.fill():
            return None
        end = self.block.index(b"\n", self.at)
        line = self.block[self.at : end].strip()
        self.at, self.line = end + 1, self.line + 1
        return line

    def rest(self) -> np.ndarray:
        """The block's whole lines from the present one on, as uint8."""
        return np.frombuffer(self.block, np.uint8, self.block.rindex(b"\n") + 1 - self.at, self.at)


@dataclasses.dataclass
class _Block:
    """N-grams as they stand in a block of lines: `begin` and `end` of the words, the number of the line."""

    data: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    logprob: np.ndarray
    backoff: np.ndarray
    line: np.ndarray


def _read(lines: _Lines) -> Arpa:
    counts = _header(lines)
    vocabulary, tables = _unigrams(lines, counts)
    for order in range(2, len(counts) + 1):
        _ngrams(lines, order, counts, vocabulary, tables)
    _title(lines, "\\end\\")
    while (line := lines.next()) is not None:
        if line:
            raise lines.error("text behind \\end\\", lines.line - 1)
    return tables.result(vocabulary.words())


def _header(lines: _Lines) -> list[int]:
    """The number of n-grams of each order, as the header says; the next line is then that of a section."""
    lines.fill()
    for magic, what in _FOREIGN:
        if lines.block.startswith(magic):
            raise InputError(f"{lines.name}: {what}")
    seen = 0
    while (line := lines.next()) != b"\\data\\":
        seen += len(line or b"") + 1
        if line is None or seen > _HEADER_BYTES:
            raise InputError(f"{lines.name}: line {lines.line - 1}: not an ARPA file: no line \\data\\ up to here")
    counts: list[int] = []
    while lines.fill() and not lines.block.startswith(b"\\", lines.at):
        line = lines.next() or b""
        form = re.fullmatch(rb"ngram[ \t]+(\d{1,3})[ \t]*=[ \t]*(\d{1,18})", line)
        if line and (not form or int(form[1]) != len(counts) + 1):
            raise lines.error(f"wants 'ngram {len(counts) + 1}=COUNT' or a section", lines.line - 1)
        counts += [int(form[2])] if form else []
    if not counts or sum(counts) > MAX_ENTRIES:
        problem = "the header lists no n-grams" if not counts else f"more than {MAX_ENTRIES} n-grams"
        raise lines.error(problem, lines.line)
    return counts


def _title(lines: _Lines, title: str) -> None:
    """Step over the line that has to stand next, and empty ones before it."""
    line: bytes | None = b""
    while line == b"":
        line = lines.next()
    if line is None:
        raise lines.error(f"the file ends before {title}; copy it again", lines.line)
    if line != title.encode():
        text = line.decode(errors="replace")[:60]
        above = " (an order above the header's)" if re.fullmatch(r"\\\d+-grams:", text) and "end" in title else ""
        raise lines.error(f"{text!r}{above} where {title} should stand", lines.line - 1)


def _blocks(lines: _Lines, order: int, counts: list[int]) -> Iterator[_Block]:
    """The n-grams of one section, as many as the header says."""
    _title(lines, f"\\{order}-grams:")
    total, wanted, status = 0, counts[order - 1], scan.MORE
    while status == scan.MORE and lines.fill():
        data = lines.rest()
        room = [np.empty(len(data) // 4 + 1, kind) for kind in (np.int64, np.int64, np.float32, np.float32, np.int32)]
        status, at, passed, count = map(int, scan.scan(data, order, order == len(counts), *room))
        if status not in (scan.MORE, scan.SECTION):
            text = data[at : at + 60].tobytes().split(b"\n")[0].strip().decode(errors="replace")
            raise lines.error(f"{_PROBLEMS[status].format(order=order)}: {text!r}", lines.line + passed)
        block = _Block(data, *(column[:count] for column in room))
        block.line += lines.line
        total += count
        if total > wanted:
            surplus = int(block.line[wanted - total])
            raise lines.error(f"more {order}-grams than the {wanted} of the header", surplus)
        yield block
        lines.at, lines.line = lines.at + at, lines.line + passed
    if total < wanted:
        end = "section" if status == scan.SECTION else "file"
        raise lines.error(f"the {end} ends after {total} of the header's {wanted} {order}-grams; cut?", lines.line)


class _Vocabulary:
    """The words of the 1-grams: their UTF-8 bytes, where each starts in them, and a hash table of their numbers."""

    def __init__(self, pieces: list[np.ndarray], lengths: list[np.ndarray]) -> None:
        self.blob = np.concatenate([np.zeros(0, np.uint8), *pieces])
        self.starts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))
        self.table = np.full(1 << (2 * len(self.starts)).bit_length(), -1, np.int64)
        self.twins = scan.fill_table(self.table, self.blob, self.starts)

    def words(self) -> list[str]:
        content, places = self.blob.tobytes(), self.starts.tolist()
        return [content[begin:end].decode() for begin, end in itertools.pairwise(places)]


def _unigrams(lines: _Lines, counts: list[int]) -> tuple[_Vocabulary, "_Tables"]:
    pieces, lengths = [], []
    columns = []
    for block in _blocks(lines, 1, counts):
        pieces.append(_words(lines, block))
        lengths.append(block.end - block.begin)
        columns.append((block.logprob, block.backoff, block.line))
    vocabulary = _Vocabulary(pieces, lengths)
    if not columns:
        raise lines.error("a model without words", lines.line)
    logprob, backoff, line = map(np.concatenate, zip(*columns, strict=True))
    first, second = vocabulary.twins
    if second >= 0:
        raise lines.error(f"a 1-gram that stands in line {line[first]} too", int(line[second]))
    return vocabulary, _Tables(logprob, backoff)


def _words(lines: _Lines, block: _Block) -> np.ndarray:
    """The bytes of a block's 1-grams, one behind another."""
    lengths = block.end - block.begin
    before = np.cumsum(lengths) - lengths
    words = block.data[np.arange(lengths.sum()) + np.repeat(block.begin - before, lengths)]
    try:
        words.tobytes().decode()
    except UnicodeDecodeError as error:
        wrong = int(np.searchsorted(before, error.start, side="right")) - 1
        raise lines.error("a word that is not UTF-8; convert the file", int(block.line[wrong])) from error
    return words


def _ngrams(lines: _Lines, order: int, counts: list[int], vocabulary: _Vocabulary, tables: "_Tables") -> None:
    """Read the n-grams of an order above 1 into the tables."""
    columns = [(*np.zeros((2, 0), np.int32), *np.zeros((2, 0), np.float32), np.zeros(0, np.int32))]
    for block in _blocks(lines, order, counts):
        context, word = np.empty(len(block.line), np.int32), np.empty(len(block.line), np.int32)
        known = vocabulary.table, vocabulary.blob, vocabulary.starts
        arrays = block.data, block.begin, block.end, *known, tables.first, tables.word, context, word
        wrong, is_word = scan.resolve(*arrays)
        if wrong >= 0:
            text = block.data[int(block.begin[wrong]) : int(block.end[wrong])].tobytes().decode(errors="replace")
            problem = "a word that is not among the 1-grams" if is_word else _ORPHAN.format(order=order - 1)
            raise lines.error(f"{text[:60]!r}: {problem}", int(block.line[wrong]))
        columns.append((context, word, block.logprob, block.backoff, block.line))
    context, word, logprob, backoff, line = map(np.concatenate, zip(*columns, strict=True))
    ranks = np.argsort(context * np.int64(counts[0]) + word, kind="stable")
    context, word, line = context[ranks], word[ranks], line[ranks]
    twice = np.flatnonzero((context[1:] == context[:-1]) & (word[1:] == word[:-1]))
    if len(twice):
        raise lines.error(f"a {order}-gram that stands in line {line[twice[0]]} too", int(line[twice[0] + 1]))
    tables.add(context, word, logprob[ranks], backoff[ranks])


class _Tables:
    """The orders read so far, as `Arpa` holds them."""

    def __init__(self, logprob: np.ndarray, backoff: np.ndarray) -> None:
        zero, words = np.zeros(1, np.float32), len(logprob)
        self.first = np.array([1, words + 1], np.int32)
        self.word = np.arange(-1, words, dtype=np.int32)
        self._logprob, self._backoff = [zero, logprob], [zero, backoff]
        self._ends = [1, words + 1]

    def add(self, context: np.ndarray, word: np.ndarray, logprob: np.ndarray, backoff: np.ndarray) -> None:
        """Append the n-grams of the next order, sorted."""
        begin, end = self._ends[-2:]
        rows = np.searchsorted(context, np.arange(begin, end + 1, dtype=np.int32)) + end
        self.first = np.concatenate([self.first[:begin], rows.astype(np.int32)])
        self.word = np.concatenate([self.word, word])
        self._logprob.append(logprob)
        self._backoff.append(backoff)
        self._ends.append(len(self.word))

    def result(self, words: list[str]) -> Arpa:
        """All of it."""
        logprob, backoff = np.concatenate(self._logprob), np.concatenate(self._backoff[:-1])
        return Arpa(words, self.first, self.word, logprob, backoff, self._ends)
