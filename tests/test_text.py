import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import InputError
from asr.text import BLANK, BOUNDARY, CharTokenizer, WordTokenizer, join, normalizer, normalizers

WORDS = st.lists(st.text(st.characters(exclude_categories=["Z", "C", "M"], exclude_characters="|"), min_size=1))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("none", "  Two\u00a0 words\t\n", "Two words"),
        ("none", "e\u0301", "\u00e9"),
        ("lower", "ÉCOLE  Two", "école two"),
        ("basic", "Don\u2019t stop -- it's 'quoted', isn't it?!", "don't stop it's quoted isn't it"),
        ("basic", "well-known 3.5 naïve", "well known 3 5 naïve"),
        ("basic", "...", ""),
    ],
)
def test_a_normaliser_gives_the_text_written_by_hand(name, text, expected):
    assert normalizers[name](text) == expected


@given(st.text(), st.sampled_from(sorted(normalizers)))
def test_normalising_twice_changes_nothing_more(text, name):
    once = normalizers[name](text)
    assert normalizers[name](once) == once
    assert once == " ".join(once.split())
    assert unicodedata.is_normalized("NFC", normalizers["none"](text))


def test_an_unknown_normaliser_is_named_with_the_known_ones():
    with pytest.raises(InputError, match="no normaliser 'baisc'; known are none, lower, basic") as caught:
        normalizer("baisc")
    assert caught.value.status == 2


@given(st.lists(WORDS, min_size=1), st.sampled_from([CharTokenizer, WordTokenizer]))
def test_decoding_gives_back_what_was_encoded(texts, kind):
    sentences = [normalizers["none"](" ".join(words)) for words in texts]
    tokenizer = kind.from_texts(sentences)
    for sentence in sentences:
        assert tokenizer.decode(tokenizer.encode(sentence)) == sentence


def test_tokens_are_blank_boundary_and_the_characters_in_order():
    tokenizer = CharTokenizer.from_texts(["one two", "ten"])
    assert tokenizer.tokens == [BLANK, BOUNDARY, "e", "n", "o", "t", "w"]
    assert tokenizer.encode("one two") == [4, 3, 2, 1, 5, 6, 4]
    assert tokenizer.decode([0, 4, 3, 0, 2, 1, 1, 5, 6, 4, 1]) == "one two"


def test_words_as_tokens_are_the_blank_and_the_words_in_order():
    tokenizer = WordTokenizer.from_texts(["two one", "ten two"])
    assert tokenizer.tokens == [BLANK, "|one", "|ten", "|two"]
    assert tokenizer.encode("two ten") == [3, 2]
    assert tokenizer.decode([0, 3, 0, 2]) == "two ten"
    with pytest.raises(InputError, match=r"word 'six' is not among the 3 words"):
        tokenizer.encode("one six")


@pytest.mark.parametrize("tokens", [["|a"], [BLANK, "a"], [BLANK, "|"], [BLANK, "|a b"], [BLANK, "|a", "|a"]])
def test_a_list_of_words_that_is_wrong_is_refused(tokens):
    with pytest.raises(InputError, match="the token list"):
        WordTokenizer(tokens)


def test_join_gives_single_spaces_and_none_at_the_ends():
    assert join(["|", "a", "|", "|", "b", "|"]) == "a b"


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        (["a", "b"], "starts with"),
        ([], "starts with"),
        ([BLANK, "|", "ab"], "'ab' is not one visible character"),
        ([BLANK, "|", " "], "is not one visible character"),
        ([BLANK, "|", "a", "a"], "a token stands twice"),
    ],
)
def test_a_wrong_token_list_is_refused(tokens, problem):
    with pytest.raises(InputError, match=problem):
        CharTokenizer(tokens)


def test_an_unknown_character_is_named():
    with pytest.raises(InputError, match=r"character 'é' \(U\+00E9\) is not among the 4 tokens"):
        CharTokenizer([BLANK, "|", "a", "b"]).encode("a é")


@pytest.mark.parametrize("kind", [CharTokenizer, WordTokenizer])
def test_the_boundary_sign_in_a_text_is_an_error(kind):
    with pytest.raises(InputError, match="which is the word boundary's own sign"):
        kind.from_texts(["a|b"])
