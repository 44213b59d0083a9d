"""Text and tokens: named normalisers, and tokenizers with the CTC blank and the word boundary.

Every text is brought to Unicode NFC with single spaces first, so that the same word is the same characters whatever
wrote the file. Tokens are texts, and a list of them says what kind it is (`tokenizer`): token 0 is the blank, the
others are characters with `BOUNDARY` between words, whole words with `BOUNDARY` in front, or pieces of words, of which
the first one of a word has it in front. `asr.units` makes tokenizers from the texts of a corpus.
"""

import functools
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from asr.errors import InputError

BLANK = "<blank>"
BOUNDARY = "|"
LM_UNITS = ("word", "character")  # what the words of a language model may be
_SHOWN = 10  # unknown characters or words named in an error
_LONGEST_WORD = 99  # with the boundary in front the longest token that a model file holds


def _plain(text: str) -> str:
    """NFC, and any run of Unicode white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _lower(text: str) -> str:
    """As `none`, in lower case."""
    return _plain(text).lower()


def _basic(text: str) -> str:
    """Lower case without punctuation and symbols; apostrophes inside words stay, any other sign parts words."""
    text = _lower(text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    kept = [c if unicodedata.category(c)[0] in "LMN" or c == "'" else " " for c in text]
    words = (word.strip("'") for word in "".join(kept).split())
    return " ".join(word for word in words if word)


normalizers: dict[str, Callable[[str], str]] = {"none": _plain, "lower": _lower, "basic": _basic}


def normalizer(name: str) -> Callable[[str], str]:
    """The normaliser of that name. Raises InputError (status 2) naming the known ones."""
    if name not in normalizers:
        raise InputError(f"no normaliser {name!r}; known are {', '.join(normalizers)}", status=2)
    return normalizers[name]


def join(tokens: Sequence[str]) -> str:
    """The text of a token sequence (no blanks in it): tokens joined, boundaries as single spaces."""
    return " ".join("".join(tokens).replace(BOUNDARY, " ").split())


class CharTokenizer:
    """Characters as tokens; the boundary stands between words only, never at the ends.

    Args:
        tokens: blank first, then the boundary and the characters, each once.

    Raises:
        InputError: the list does not start with the blank, or holds a token twice or one that is no character.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        _check(tokens)
        wrong = [token for token in tokens[1:] if len(token) != 1 or token.isspace()]
        if wrong:
            raise InputError(f"the token list is wrong: {wrong[0]!r} is not one visible character", status=2)
        self.tokens = list(tokens)
        self._ids = {" " if token == BOUNDARY else token: number for number, token in enumerate(tokens) if number}

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "CharTokenizer":
        """The tokenizer of all characters that occur in normalised `texts`, in code point order."""
        characters = {character for text in texts for character in text} - {" "}
        _refuse_boundary(characters)
        return cls([BLANK, BOUNDARY, *sorted(characters)])

    def encode(self, text: str) -> list[int]:
        """Token numbers of a normalised text.

        Raises:
            InputError: characters are not among the tokens; the message names them.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            unknown = [_named(c) for c in dict.fromkeys(text) if c not in self._ids]
            raise InputError(f"{_unknown('character', unknown)} not among the {len(self.tokens)} tokens") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token numbers (blanks left out)."""
        return join([self.tokens[number] for number in ids if number])


class WordTokenizer:
    """Whole words as tokens, for a closed list of them (digits, commands): nothing else can be heard.

    Args:
        tokens: blank first, then the words, each once and with the boundary in front: ``|yes``.

    Raises:
        InputError: the list does not start with the blank, or holds a token twice or one that is no word.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        _check(tokens)
        wrong = [token for token in tokens[1:] if token[:1] != BOUNDARY or token[1:].split() != [token[1:]]]
        if wrong:
            raise InputError(f"the token list is wrong: {wrong[0]!r} is not a word behind {BOUNDARY!r}", status=2)
        self.tokens = list(tokens)
        self._ids = {token[1:]: number for number, token in enumerate(tokens) if number}

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "WordTokenizer":
        """The tokenizer of all words that occur in normalised `texts`, in code point order."""
        words = {word for text in texts for word in text.split()}
        _refuse_boundary({character for word in words for character in word})
        for word in sorted(words):
            if len(word) > _LONGEST_WORD or not word.isprintable():
                problem = (
                    "holds a sign that is not printable"
                    if len(word) <= _LONGEST_WORD
                    else "has more than 99 characters"
                )
                raise InputError(f"word {word[:120]!r} {problem}, too much for a token; use text.units=characters")
        return cls([BLANK, *(BOUNDARY + word for word in sorted(words))])

    def encode(self, text: str) -> list[int]:
        """Token numbers of a normalised text. Raises InputError naming the words that are not among the tokens."""
        try:
            return [self._ids[word] for word in text.split()]
        except KeyError as error:
            unknown = [repr(word) for word in dict.fromkeys(text.split()) if word not in self._ids]
            raise InputError(f"{_unknown('word', unknown)} not among the {len(self._ids)} words") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token numbers (blanks left out)."""
        return join([self.tokens[number] for number in ids if number])


class PieceTokenizer:
    """Pieces of words as tokens, joined from characters in the order of the list (byte-pair encoding).

    A word is spelled as characters with the boundary in front. Of all neighbours that are a piece together the pair
    whose piece comes first in the list is joined, the leftmost of equals, until no pair is left (Sennrich, Haddow and
    Birch 2016). So the list is all that it takes to encode, and gives what sentencepiece gives, which learns it.

    Args:
        tokens: blank first, then pieces in the order in which they were learnt, among them the boundary and all
            characters, each once; a boundary stands in front of a piece only.

    Raises:
        InputError: the list does not start with the blank, or holds a token twice or one that is no piece.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        _check(tokens)
        wrong = [token for token in tokens[1:] if not token or BOUNDARY in token[1:] or "".join(token.split()) != token]
        if wrong:
            raise InputError(f"the token list is wrong: {wrong[0]!r} is no piece of a word", status=2)
        self.tokens = list(tokens)
        self._ids = {token: number for number, token in enumerate(tokens) if number}
        self._word = functools.lru_cache(1 << 16)(self._encode_word)  # most words of a corpus come again

    def encode(self, text: str) -> list[int]:
        """Token numbers of a normalised text.

        Raises:
            InputError: characters are not among the tokens; the message names them.
        """
        if BOUNDARY in text:
            _refuse_boundary({BOUNDARY})
        try:
            return [number for word in text.split() for number in self._word(word)]
        except KeyError as error:
            unknown = [_named(c) for c in dict.fromkeys(text.replace(" ", "")) if c not in self._ids]
            raise InputError(f"{_unknown('character', unknown)} not among the {len(self.tokens)} tokens") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token numbers (blanks left out)."""
        return join([self.tokens[number] for number in ids if number])

    def _encode_word(self, word: str) -> tuple[int, ...]:
        parts = [BOUNDARY, *word]
        never = len(self.tokens)
        ranks = [self._ids.get(one + other, never) for one, other in itertools.pairwise(parts)]
        while ranks and (best := min(ranks)) < never:
            place = ranks.index(best)
            parts[place : place + 2] = [self.tokens[best]]
            del ranks[place]
            for near in (place - 1, place):
                if 0 <= near < len(ranks):
                    ranks[near] = self._ids.get(parts[near] + parts[near + 1], never)
        return tuple(self._ids[part] for part in parts)


Tokenizer = CharTokenizer | WordTokenizer | PieceTokenizer


def tokenizer(tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer of a token list: of words where each has the boundary in front, of pieces where any is longer.

    Raises:
        InputError: the list is wrong.
    """
    if len(tokens) > 1 and all(token[:1] == BOUNDARY != token for token in tokens[1:]):
        return WordTokenizer(tokens)
    return PieceTokenizer(tokens) if any(len(token) > 1 for token in tokens[1:]) else CharTokenizer(tokens)


def _named(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X})"


def split(line: str, unit: str) -> list[str]:
    """What a language model of that unit sees in a normalised line: its words, or its characters and boundaries."""
    return list(line.replace(" ", BOUNDARY)) if unit == "character" else line.split()


def _unknown(kind: str, items: list[str]) -> str:
    """``word 'a' is`` or ``words 'a', 'b' and 3 more are``."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{kind} {items[0]} is" if len(items) == 1 else f"{kind}s {', '.join(items[:_SHOWN])}{more} are"


def _check(tokens: Sequence[str]) -> None:
    if not tokens or tokens[0] != BLANK:
        raise InputError(f"the token list starts with {tokens[:1]}, not with {BLANK!r}", status=2)
    if len(set(tokens)) != len(tokens):
        raise InputError("the token list is wrong: a token stands twice", status=2)


def _refuse_boundary(characters: set[str]) -> None:
    if BOUNDARY in characters:
        raise InputError(f"a text holds {BOUNDARY!r}, which is the word boundary's own sign; remove it")
