"""Hot words: phrases that count for more, all looked for at once by one automaton.

A phrase counts where its words stand whole: `art` is not heard in `party`. It is spelled with a boundary in front and
behind, and so is the utterance. While a phrase is being spelled its prefix carries a share of the weight as credit, so
that the search does not lose it; what comes to nothing is given back. At the end an utterance has the sum of the
weights of all places where a phrase stands, and nothing else. (Aho and Corasick 1975.)
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from asr.decode.lexicon import Tree
from asr.errors import InputError

HIGHEST = 50  # weight, nats
EDGE = 0  # the symbol for a word's edge; the blank, whose number it is, is no part of a phrase


@dataclasses.dataclass(frozen=True)
class HotWords:
    """The automaton in flat arrays; its states are the nodes of a `Tree`.

    `tree`: of the spelled phrases; `fail` `(nodes,)`: where a state goes on when it has no child for a symbol;
    `won` `(nodes,)`: the weights of all phrases that end there; `credit` `(nodes,)`: what the phrases begun there give
    in advance. `start`: the state behind an edge. `largest`: the most that one step can add.
    """

    tree: Tree
    fail: np.ndarray
    won: np.ndarray
    credit: np.ndarray
    start: int
    largest: float

    @classmethod
    def build(cls, phrases: Mapping[str, float], spell: Callable[[str], list[int]]) -> "HotWords":
        """The automaton of `phrases` and their weights (nats); those of weight 0 are left out.

        Args:
            phrases: of one word or several.
            spell: a word's token numbers; raises InputError where it can't be spelled.

        Raises:
            InputError: a weight is not from 0 to `HIGHEST`, a phrase is empty or can't be spelled (status 2).
        """
        sequences, weights = [], []
        for phrase, weight in phrases.items():
            if not 0 <= weight <= HIGHEST:
                raise InputError(f"hot word {phrase!r}: weight {weight} is not from 0 to {HIGHEST}", status=2)
            if not phrase.split():
                raise InputError("a hot word is empty; remove it", status=2)
            if weight > 0:
                sequences.append(_spelled(phrase, spell))
                weights.append(float(weight))
        tree = Tree.build(sequences)
        fail = _failures(tree)
        won, credit = _won(tree, fail, np.array(weights)), _credit(tree, fail, sequences, weights)
        start = int(tree.first[0]) if sequences else 0
        gained = (won + credit - credit[tree.parent])[1:]  # a step by way of `fail` adds no more: that has less credit
        return cls(tree, fail, won, credit, start, float(gained.max(initial=0.0)))

    @classmethod
    def load(cls, path: str | Path, weight: float) -> dict[str, float]:
        """The phrases of a file: one a line, its weight behind a tab, or else `weight`.

        Raises:
            InputError: the file can't be read or is empty, or a weight is no number; the line is named (status 2).
        """
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: no UTF-8; save it as UTF-8", status=2) from error
        except OSError as error:
            raise InputError(f"{path}: can't be read ({error.strerror or error})", status=2) from error
        phrases: dict[str, float] = {}
        for number, line in enumerate(lines, start=1):
            phrase, tab, value = line.strip().partition("\t")
            try:
                if phrase:
                    phrases[phrase] = float(value) if tab else weight
            except ValueError as error:
                raise InputError(f"{path}: line {number}: weight {value!r} is no number", status=2) from error
        if not phrases:
            raise InputError(f"{path}: no phrase in it; a list of hot words has one a line", status=2)
        return phrases


def count(words: list[str], phrases: Mapping[str, float]) -> Counter[str]:
    """How often each phrase stands in `words`, overlapping places included: what the automaton must agree with."""
    found: Counter[str] = Counter()
    for phrase in phrases:
        wanted = phrase.split()
        found[phrase] = sum(words[at : at + len(wanted)] == wanted for at in range(len(words)))
    return found


def _spelled(phrase: str, spell: Callable[[str], list[int]]) -> list[int]:
    """The symbols of a phrase: every word between edges."""
    symbols = [EDGE]
    for word in phrase.split():
        try:
            symbols += [*spell(word), EDGE]
        except InputError as error:
            raise InputError(f"hot word {phrase!r}: {error}", status=2) from error
    return symbols


def _failures(tree: Tree) -> np.ndarray:
    """For each state the longest proper suffix that is a state too."""
    fail = np.zeros(len(tree), np.int32)
    children = {(int(tree.parent[node]), int(tree.token[node])): node for node in range(1, len(tree))}
    for (parent, symbol), node in children.items():  # in the order of their depth
        state = int(fail[parent])
        while state and (state, symbol) not in children:
            state = int(fail[state])
        found = children.get((state, symbol), 0)
        fail[node] = found if found != node else 0
    return fail


def _won(tree: Tree, fail: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weights of the phrases that end in each state, those that are suffixes of others included."""
    won = np.zeros(len(tree))
    np.add.at(won, tree.ends, weights)
    for node in range(1, len(tree)):
        won[node] += won[fail[node]]
    return won


def _credit(tree: Tree, fail: np.ndarray, sequences: list[list[int]], weights: list[float]) -> np.ndarray:
    """The highest share of a weight that a phrase begun in each state has come to; none where it ends."""
    credit = np.zeros(len(tree))
    for end, sequence, weight in zip(tree.ends, sequences, weights, strict=True):
        node = int(tree.parent[end])
        for depth in range(len(sequence) - 2, 0, -1):  # symbols behind the first edge
            credit[node] = max(credit[node], weight * depth / (len(sequence) - 1))
            node = int(tree.parent[node])
    for node in range(1, len(tree)):
        credit[node] = max(credit[node], credit[fail[node]])
    return credit
