"""Two texts against each other: units, minimal alignment, counts of substitutions, deletions, insertions.

Every text is brought to NFC with single spaces (`asr.text.normalizers["none"]`) before and after the
normaliser that is asked for. A unit is a word, or a character (a code point; the space between two words is
one).
"""

import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

from asr.errors import InputError
from asr.text import normalizer as named_normalizer
from asr.text import normalizers

Texts: TypeAlias = str | Iterable[str]
Normalizer: TypeAlias = str | Callable[[str], str] | None

UNITS = {"word": "WER", "character": "CER"}
_OPERATIONS = {"equal": "=", "replace": "S", "delete": "D", "insert": "I"}


class Edit(NamedTuple):
    """A step of an alignment: `op` is "=", "S", "D" or "I"; the side that has nothing there is None."""

    op: str
    reference: str | None
    hypothesis: str | None


def align(reference: str, hypothesis: str, unit: str = "word", normalizer: Normalizer = None) -> list[Edit]:
    """A minimal alignment of two texts, the one that `asr.score.score` counts.

    Raises:
        InputError: unit or normaliser are unknown, or one of the two is no text.
    """
    check_unit(unit)
    function, _ = find_normalizer(normalizer)
    (said,), (heard,) = (
        normalize([reference], "reference", function),
        normalize([hypothesis], "hypothesis", function),
    )
    units = [text.split() if unit == "word" else list(text) for text in (said, heard)]
    steps: list[Edit] = []
    for code in Levenshtein.opcodes(*map(_numbers(), units)):
        sides = units[0][code.src_start : code.src_end], units[1][code.dest_start : code.dest_end]
        steps += [Edit(_OPERATIONS[code.tag], *pair) for pair in itertools.zip_longest(*sides)]
    return steps


def format_alignment(alignment: Iterable[Edit]) -> str:
    """An alignment as three lines to read: reference, hypothesis, and a letter below each error.

    Columns are as wide as a terminal shows them (East Asian wide characters two, combining marks none).
    Asterisks stand for nothing, ``␣`` for a space that is itself a unit, U+FFFD for what is not printable, so
    that a text can't send commands to the terminal.
    """
    lines = ["REF:", "HYP:", "    "]
    for op, said, heard in alignment:
        shown = [None if token is None else _visible(token) for token in (said, heard)]
        width = max(_width(token) for token in shown if token is not None)
        cells = ["*" * width if token is None else token for token in shown] + [op.strip("=")]
        padding = [" " * (width - _width(cell)) for cell in cells]
        lines = [" ".join([line, cell + pad]) for line, cell, pad in zip(lines, cells, padding, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def check_unit(unit: str) -> None:
    """Raise InputError (status 2) for an unknown unit."""
    if unit not in UNITS:
        raise InputError(f"unit {unit!r} is unknown; use {' or '.join(map(repr, UNITS))}", status=2)


def find_normalizer(given: Normalizer) -> tuple[Callable[[str], str], str]:
    """The function, and the name to report it by. Raises InputError (status 2) for an unknown name."""
    given = "none" if given is None else given
    if isinstance(given, str):
        return named_normalizer(given), given
    known = [name for name, function in normalizers.items() if function is given]
    return given, known[0] if known else getattr(given, "__name__", type(given).__name__)


def normalize(texts: Texts, what: str, normalizer: Callable[[str], str]) -> list[str]:
    """The texts (a single string is one), plain before and after the normaliser: its result may not be NFC.

    Raises:
        InputError: one is no text; the message calls it `what` and its number.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{what} {number} (from 0) is {text!r:.50}, not a text")
    plain = normalizers["none"]
    texts = [plain(text) for text in texts]
    return texts if normalizer is plain else [plain(normalizer(text)) for text in texts]


def count(references: list[str], hypotheses: list[str], unit: str) -> npt.NDArray[np.int64]:
    """Substitutions, deletions, insertions and reference units of each normalised pair (utterances, 4).

    Raises:
        InputError: the lists are of different lengths, or empty.
    """
    if len(references) != len(hypotheses):
        raise InputError(f"{len(references)} references but {len(hypotheses)} hypotheses; each needs the other")
    if not references:
        raise InputError("no references and no hypotheses: nothing to score")
    pairs = zip(references, hypotheses, strict=True)
    if unit == "character":
        return np.array([_edits(said, heard) for said, heard in pairs], dtype=np.int64)
    number = _numbers()
    return np.array([_edits(number(said.split()), number(heard.split())) for said, heard in pairs], dtype=np.int64)


def _numbers() -> Callable[[list[str]], list[int]]:
    """What turns words into numbers, equal for equal words: rapidfuzz compares hashes, exact for integers."""
    number = defaultdict[str, int](itertools.count().__next__).__getitem__
    return lambda words: list(map(number, words))


def _edits(said: Sequence[Hashable], heard: Sequence[Hashable]) -> tuple[int, int, int, int]:
    """Substitutions, deletions, insertions of a minimal alignment, and the length of `said`.

    As distance = S + D + I and surplus = I - D, S = distance - |surplus| - 2 min(D, I). Where distance -
    |surplus| is below 2, min(D, I) is 0 and S is known; only elsewhere the alignment itself is needed.
    """
    distance = Levenshtein.distance(said, heard)
    surplus = len(heard) - len(said)
    substitutions = distance - abs(surplus)
    if substitutions > 1:
        substitutions = [op.tag for op in Levenshtein.editops(said, heard)].count("replace")
    deletions = (distance - substitutions - surplus) // 2
    return substitutions, deletions, deletions + surplus, len(said)


def _visible(token: str) -> str:
    """The token without what a terminal would obey instead of show; joiners (Persian, Indic, emoji) stay."""
    if token == " ":
        return "␣"
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else "\N{REPLACEMENT CHARACTER}" for c in token)


def _width(text: str) -> int:
    """Terminal columns of a text."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)
