"""Words as token sequences, and the prefix tree in which a search walks along them.

A lexicon file has a word a line: ``word<TAB>tokens with spaces``; several lines of a word are several pronunciations
(``word(2)`` as CMUdict writes it is a pronunciation of ``word``; lines from ``;;;`` on are remarks). A line with a word
alone is spelled in the model's own tokens.
"""

import dataclasses
import gzip
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from asr.compiled import compiled
from asr.errors import InputError
from asr.text import BLANK, BOUNDARY

_LARGEST = 1 << 28  # bytes of a lexicon


@dataclasses.dataclass(frozen=True)
class Tree:
    """A prefix tree of token sequences in flat arrays; node 0 is the root, numbers grow with the depth.

    `first` `(nodes + 1,)`: the children of node `n` are the nodes `first[n]` to `first[n + 1]`, in the order of their
    tokens; `token` `(nodes,)`: what leads to a node (-1 at the root); `parent` `(nodes,)`. `ends` `(sequences,)`: the
    node at which each sequence ends.
    """

    first: np.ndarray
    token: np.ndarray
    parent: np.ndarray
    ends: np.ndarray

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]]) -> "Tree":
        """The tree of sequences of token numbers, none of them empty; equal ones end at one node."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        flat = np.fromiter((token for sequence in sequences for token in sequence), np.int64, lengths.sum())
        starts = np.cumsum(lengths) - lengths
        ends = np.zeros(len(sequences), np.int64)
        tokens, parents, count = [np.array([-1])], [np.array([-1])], 1
        for depth in range(int(lengths.max(initial=0))):
            inside = np.flatnonzero(lengths > depth)
            keys = ends[inside] << 32 | flat[starts[inside] + depth]  # this level's nodes: parent and token
            unique, inverse = np.unique(keys, return_inverse=True)
            ends[inside] = count + inverse
            parents.append(unique >> 32)
            tokens.append(unique & 0xFFFFFFFF)
            count += len(unique)
        parent = np.concatenate(parents)
        first = np.searchsorted(parent[1:], np.arange(count + 1)) + 1
        return cls(first.astype(np.int32), np.concatenate(tokens).astype(np.int32), parent.astype(np.int32), ends)

    def __len__(self) -> int:
        """Nodes, the root included."""
        return len(self.token)

    def highest(self, values: np.ndarray) -> np.ndarray:
        """For each node the highest of `values` `(sequences,)` among the sequences that pass or end there."""
        best = np.full(len(self), -np.inf)
        np.maximum.at(best, self.ends, values)
        _raise(self.parent, best)
        return best

    def sequences_at(self) -> tuple[np.ndarray, np.ndarray]:
        """`(first (nodes + 1,), sequence)`: those that end at node `n` are ``sequence[first[n]:first[n + 1]]``."""
        order = np.argsort(self.ends, kind="stable")
        first = np.searchsorted(self.ends[order], np.arange(len(self) + 1))
        return first.astype(np.int32), order.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """The words that may be heard: of each its pronunciations as token texts, none for a word spelled as it is."""

    words: Mapping[str, Sequence[Sequence[str]]]
    name: str = "lexicon"

    @classmethod
    def load(cls, path: str | Path) -> "Lexicon":
        """Read a lexicon, plain or ``.gz``.

        Raises:
            InputError: the file can't be read, is no UTF-8 or holds no word; the message names the line.
        """
        words: dict[str, list[list[str]]] = {}
        for line in _lines(Path(path)):
            word, _, tokens = line.partition("\t") if "\t" in line else line.partition(" ")
            pronunciations = words.setdefault(re.sub(r"(?<=.)\([0-9]+\)$", "", word), [])
            if tokens.split() and tokens.split() not in pronunciations:
                pronunciations.append(tokens.split())
        if not words:
            raise InputError(f"{path}: no word in it; a lexicon has a word a line", status=2)
        return cls(words, str(path))

    def sequences(
        self, ids: Mapping[str, int], spell: Callable[[str], list[int]]
    ) -> tuple[list[str], list[list[int]], list[int]]:
        """The words, all pronunciations as token numbers, and to which word each of them belongs.

        Args:
            ids: the model's tokens and their numbers.
            spell: a word's tokens where the lexicon has none; raises InputError where it can't be spelled.

        Raises:
            InputError: a token is not among the model's, or a word can't be spelled in them.
        """
        allowed = {token: number for token, number in ids.items() if token not in (BLANK, BOUNDARY)}
        sequences, owners = [], []
        for number, (word, pronunciations) in enumerate(self.words.items()):
            for tokens in pronunciations or [()]:
                try:
                    sequences.append([allowed[token] for token in tokens] or spell(word))
                except KeyError as error:
                    raise InputError(
                        f"{self.name}: word {word!r}: {error.args[0]!r} is not among the model's {len(allowed)} tokens",
                        status=2,
                    ) from error
                except InputError as error:
                    raise InputError(f"{self.name}: word {word!r}: {error}", status=2) from error
                owners.append(number)
        return list(self.words), sequences, owners


@compiled
def _raise(parent: np.ndarray, best: np.ndarray) -> None:
    """Every node's value becomes the highest at it or below."""
    for node in range(len(parent) - 1, 0, -1):
        best[parent[node]] = max(best[parent[node]], best[node])


def _lines(path: Path) -> list[str]:
    """The lines that hold something, without white space at their ends."""
    content = b""
    try:
        with open(path, "rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            content = (gzip.GzipFile(fileobj=raw) if packed else raw).read(_LARGEST + 1)
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})", status=2) from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is no UTF-8; save it as UTF-8", status=2) from error
    if len(content) > _LARGEST:
        raise InputError(f"{path}: more than {_LARGEST} bytes; a lexicon has a word a line", status=2)
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(";;;")]
