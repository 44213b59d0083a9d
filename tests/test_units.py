"""Pieces of words: learnt by sentencepiece, encoded without it, heard by a model that knows its token list alone."""

import gzip
import io
import random
import re
import sys
from pathlib import Path

import pytest
import tones
from test_train import run_training, settings

from asr import load, manifest, run, units
from asr.errors import InputError
from asr.text import BLANK, CharTokenizer, PieceTokenizer, WordTokenizer, normalizers, tokenizer

ROOT = Path(__file__).parent.parent


def documentation() -> list[str]:
    """Some hundred sentences that stand in this repository."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    return [words for line in re.split(r"[.|\n]", text) if (words := normalizers["basic"](line))]


def an4(folder: Path) -> list[str]:
    lines = []
    for name in ("train", "test"):
        lines += (folder / "etc" / f"an4_{name}.transcription").read_text().splitlines()
    return [normalizers["basic"](re.sub(r"</?s>|\(.*\)", "", line)) for line in lines]


def books(folder: Path) -> list[str]:
    with gzip.open(folder / "books.txt.gz", "rt", encoding="utf-8") as file:
        return [normalizers["basic"](line) for line in file.readlines()[::97]]


def learnt_by_sentencepiece(texts: list[str], pieces: int):
    spm = pytest.importorskip("sentencepiece", reason="needs the extra bpe")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted(texts)), model_writer=model, model_type="bpe", vocab_size=pieces + 1,
        character_coverage=1.0, normalization_rule_name="identity", bos_id=-1, eos_id=-1, minloglevel=3,
        max_sentence_length=1 << 20,
    )  # fmt: skip
    return spm.SentencePieceProcessor(model_proto=model.getvalue())


def agree(pieces: PieceTokenizer, oracle, texts: list[str]) -> int:
    """Compare every text without a character unknown to the oracle; how many there were."""
    known = [text for text in texts if 0 not in oracle.encode(text)]
    for text in known:
        assert pieces.encode(text) == oracle.encode(text), text
        assert pieces.decode(pieces.encode(text)) == text
    return len(known)


@pytest.mark.parametrize("count", [80, 300, 1000])
def test_a_text_has_the_pieces_that_sentencepiece_gives_it(count):
    texts = documentation()
    oracle = learnt_by_sentencepiece(texts, count)
    pieces = units.learn(texts, count)
    assert len(pieces.tokens) == count + 1
    assert agree(pieces, oracle, texts) > 1000
    draw = random.Random(1)
    letters = [token for token in pieces.tokens[1:] if len(token) == 1 and token != "|"]
    made_up = ["".join(draw.choices([*letters[:12], " "], k=40)) for _ in range(300)]
    assert agree(pieces, oracle, [" ".join(text.split()) for text in made_up]) == 300


def test_an4_and_books_have_the_pieces_that_sentencepiece_gives_them(asr_data):
    spoken, read = an4(asr_data("an4")), books(asr_data("lm_text"))
    oracle = learnt_by_sentencepiece(spoken, 256)
    assert agree(units.learn(spoken, 256), oracle, [*spoken, *read]) > 1078 + 1000


def test_pieces_are_joined_in_the_order_of_the_list_the_leftmost_first():
    pieces = PieceTokenizer([BLANK, "ab", "|a", "abc", "ba", "|aba", "|", "a", "b", "c"])
    spelled = lambda text: [pieces.tokens[number] for number in pieces.encode(text)]  # noqa: E731
    assert spelled("abab") == ["|", "ab", "ab"]  # ab goes before |a, though that stands further left
    assert spelled("abcaba") == ["|", "abc", "ab", "a"]
    assert spelled("acba ca") == ["|a", "c", "ba", "|", "c", "a"]
    assert spelled("") == []
    assert pieces.decode([2, 0, 9, 4, 6, 9, 7]) == "acba ca"


def test_the_same_texts_in_any_order_give_the_same_pieces():
    pytest.importorskip("sentencepiece", reason="needs the extra bpe")
    texts = documentation()
    assert units.learn(texts, 200).tokens == units.learn([*texts[::-1], ""], 200).tokens


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [
        ([BLANK, "|", "a", "b"], CharTokenizer),
        ([BLANK, "|a", "|ab"], WordTokenizer),
        ([BLANK, "|a", "|", "a", "b"], PieceTokenizer),
        ([BLANK, "ab", "|", "a", "b"], PieceTokenizer),
    ],
)
def test_a_token_list_tells_its_kind(tokens, kind):
    assert type(tokenizer(tokens)) is kind


@pytest.mark.parametrize("token", ["a|b", "a b", "a|", "||", ""])
def test_a_list_of_pieces_that_is_wrong_is_refused(token):
    with pytest.raises(InputError, match=re.escape(f"the token list is wrong: {token!r} is no piece of a word")):
        PieceTokenizer([BLANK, "ab", "|", "a", "b", token])


def test_a_character_that_is_no_piece_is_named():
    with pytest.raises(InputError, match=r"characters 'é' \(U\+00E9\), 'z' \(U\+007A\) are not among the 5 tokens"):
        PieceTokenizer([BLANK, "ab", "|", "a", "b"]).encode("ab é z")
    with pytest.raises(InputError, match=r"a text holds '\|', which is the word boundary's own sign"):
        PieceTokenizer([BLANK, "ab", "|", "a", "b"]).encode("a|b")


@pytest.mark.parametrize(
    ("texts", "pieces", "problem"),
    [
        ([], 10, "no word in the training texts; text.units=bpe has nothing to learn from"),
        (["", ""], 10, "no word in the training texts; text.units=bpe has nothing to learn from"),
        (["ab abc"], 4, r"text.pieces=4 is too few: the texts have 3 characters, .* set 5 or more"),
        (["ab abc"], 99, r"text.pieces=99 is too many: the training texts give \d+; set \d+ or fewer"),
        (["a|b"], 10, r"a text holds '\|', which is a sign of its own among pieces"),
        (["a\u2581b"], 10, "a text holds '▁', which is a sign of its own among pieces"),
        (["a\u2585b"], 10, "a text holds '▅', which is a sign of its own among pieces"),
        (["a\0b"], 10, r"a text holds '\\x00', which is no printable character"),
        (["a\ud800b"], 10, r"a text holds '\\ud800', which is no printable character"),
        (["<unk> ab"], 10, "character '<' in a text can be no piece; remove it, or use text.units=characters"),
    ],
    ids=["nothing", "empty", "few", "many", "boundary", "space", "unknown", "null", "surrogate", "lost"],
)  # fmt: skip
def test_texts_that_give_no_such_pieces_are_an_error(texts, pieces, problem):
    if "too many" in problem or "can be no piece" in problem:
        pytest.importorskip("sentencepiece", reason="needs the extra bpe")
    with pytest.raises(InputError, match=problem):
        units.learn(texts, pieces)


def test_as_many_pieces_as_the_error_says_can_be_learnt():
    pytest.importorskip("sentencepiece", reason="needs the extra bpe")
    texts = ["ab abc", "cab cabba"]
    for wrong in (4, 99):
        with pytest.raises(InputError) as caught:
            units.learn(texts, wrong)
        [right] = re.findall(r"set (\d+)", str(caught.value))
        assert len(units.learn(texts, int(right)).tokens) == int(right) + 1


def test_without_sentencepiece_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"needs the package sentencepiece; install asr\[bpe\]") as caught:
        units.learn(["ab abc"], 6)
    assert caught.value.status == 2


def test_pieces_are_learnt_and_heard_and_the_model_file_is_enough(tmp_path, monkeypatch):
    pytest.importorskip("sentencepiece", reason="needs the extra bpe")
    corpus = tones.write_corpus(tmp_path / "words", vocabulary=("a", "bc", "cab"))
    chosen = settings(
        corpus, tmp_path, "text.units=bpe", "text.pieces=7", "augment=none", "model.dropout=0.0", epochs=20
    )
    result, _ = run_training(chosen)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    recognizer = load(result.model)
    assert len(recognizer.tokens) == 8 and max(map(len, recognizer.tokens[1:])) > 1
    assert result.dev["rate"] <= 0.1
    heard = recognizer.transcribe(manifest.read(corpus / "dev.jsonl")[0])
    assert [word.word for segment in heard.segments for word in segment.words] == heard.text.split()
    again = tokenizer(recognizer.tokens)
    assert again.decode(again.encode("cab a bc")) == "cab a bc"


def test_joined_utterances_have_the_pieces_of_their_texts_together(tmp_path):
    pytest.importorskip("sentencepiece", reason="needs the extra bpe")
    corpus = tones.write_corpus(tmp_path / "words", vocabulary=("a", "bc", "cab"))
    parts = run.Run(settings(corpus, tmp_path, "augment.join=3", "text.units=bpe", "text.pieces=7"), lambda line: None)
    row = next(row for group in parts.groups(0) for row in group if len(row) == 3)
    together = [label for number in row for label in parts.train.examples[number].labels]
    assert list(parts.train.labels(row)) == together
