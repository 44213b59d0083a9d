"""Tokenizers made from the texts that a model is trained on: characters, words, and pieces of words.

Pieces are learnt by sentencepiece (extra `bpe`; Kudo and Richardson 2018), which only training needs: what it has
learnt is the order of the pieces, and a model's token list holds them in that order.
"""

import io
from collections.abc import Iterable

from asr.errors import InputError
from asr.text import BLANK, BOUNDARY, CharTokenizer, PieceTokenizer, Tokenizer, WordTokenizer

NAMES = ("characters", "words", "bpe")
_SPACE = "\u2581"  # sentencepiece's sign for the boundary
_RESERVED = (BOUNDARY, _SPACE, "\u2585")  # by the last it knows unknown characters
_LONGEST_TEXT = 1 << 30  # bytes; by itself sentencepiece leaves out texts of more than 4,192


def build(units: str, texts: Iterable[str], pieces: int | None = None) -> Tokenizer:
    """The tokenizer of normalised texts.

    Args:
        units: one of `NAMES`.
        texts: of the training utterances.
        pieces: how many there are to be, with `bpe`.

    Raises:
        InputError: the texts hold the boundary's sign, or words or pieces that no token can be, or don't give so many
            pieces; or sentencepiece is not installed.
    """
    if units == "bpe":
        return learn(texts, pieces or 0)
    return WordTokenizer.from_texts(texts) if units == "words" else CharTokenizer.from_texts(texts)


def learn(texts: Iterable[str], pieces: int) -> PieceTokenizer:
    """The tokenizer of `pieces` pieces (the blank not counted) that byte-pair encoding learns from normalised texts.

    The same texts, in any order, give the same pieces; all characters are among them.

    Raises:
        InputError: as `build`.
    """
    ordered = sorted(text for text in texts if text)
    characters = {character for text in ordered for character in text} - {" "}
    if not characters:
        raise InputError("no word in the training texts; text.units=bpe has nothing to learn from")
    for sign in sorted(characters):
        if sign in _RESERVED or not sign.isprintable():
            why = "no printable character" if sign not in _RESERVED else "a sign of its own among pieces"
            raise InputError(f"a text holds {sign!r}, which is {why}; remove it")
    least = len(characters) + 2  # with the boundary, and one piece that is no character
    if pieces < least:
        raise InputError(
            f"text.pieces={pieces} is too few: the texts have {len(characters)} characters, and each is a piece, as is "
            f"the word boundary; set {least} or more",
            status=2,
        )
    found = _sentencepiece(ordered, pieces)
    if lost := sorted(characters - set(found)):
        raise InputError(f"character {lost[0]!r} in a text can be no piece; remove it, or use text.units=characters")
    if len(found) < pieces:
        raise InputError(
            f"text.pieces={pieces} is too many: the training texts give {len(found)}; set {len(found)} or fewer",
            status=2,
        )
    return PieceTokenizer([BLANK, *found])


def _sentencepiece(texts: list[str], pieces: int) -> list[str]:
    """The pieces in the order in which they were learnt, then the characters; fewer where the texts give no more."""
    try:
        import sentencepiece
    except ImportError as error:
        raise InputError(
            "text.units=bpe needs the package sentencepiece; install asr[bpe], or use text.units=characters", status=2
        ) from error
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces + 1,  # with the one for unknown characters
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        max_sentence_length=_LONGEST_TEXT,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=3,
    )
    learnt = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [learnt.id_to_piece(number).replace(_SPACE, BOUNDARY) for number in range(1, learnt.get_piece_size())]
