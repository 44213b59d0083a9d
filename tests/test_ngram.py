import gzip
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.compiled import AVAILABLE
from asr.decode import arpa, scan, tables
from asr.decode.ngram import NGram, build, step
from asr.errors import InputError

LM = Path(__file__).parent / "data" / "lm"
LN10 = math.log(10)

TINY = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=1

\\1-grams:
-99\t<s>\t-0.3
-0.7\t</s>
-1.5\t<unk>
-0.5\tab\t-0.2
-0.6\tb\t-0.4

\\2-grams:
-0.2\t<s> ab\t-0.1
-0.3\tab b\t-0.25
-0.4\tb </s>
-0.9\tb ab

\\3-grams:
-0.05\t<s> ab b

\\end\\
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def load(tmp_path):
    """The model of an ARPA text."""

    def make(text, name="x.arpa"):
        (tmp_path / name).write_text(text)
        return NGram.load(tmp_path / name)

    return make


class Slow:
    """An ARPA file as a dictionary, and the textbook's recursion: the oracle."""

    def __init__(self, text):
        self.logprob, self.backoff = {}, {}
        order = 0
        for line in text.splitlines():
            fields = line.split()
            if line.startswith("\\"):
                order = int(line[1:].split("-")[0]) if "-grams" in line else 0
            elif order and fields:
                gram = tuple(fields[1 : 1 + order])
                self.logprob[gram] = float(fields[0])
                self.backoff[gram] = float(fields[1 + order]) if len(fields) > 1 + order else 0.0

    def score(self, context, word):
        if (*context, word) in self.logprob:
            return self.logprob[(*context, word)]
        return self.backoff.get(context, 0.0) + self.score(context[1:], word) if context else -100.0

    def sentence(self, words, order):
        known = [word if (word,) in self.logprob else "<unk>" for word in words]
        whole = ["<s>", *known, "</s>"]
        return sum(self.score(tuple(whole[max(0, n - order + 1) : n]), whole[n]) for n in range(1, len(whole)))


# Numbers


def test_a_sentence_worked_by_hand(load):
    model = load(TINY)
    # <s> ab: -0.2; <s> ab b: -0.05; then b </s> behind "ab b", which backs off with -0.25
    assert model.logprob(["ab", "b"]) == pytest.approx((-0.2 - 0.05 - 0.25 - 0.4) * LN10, abs=1e-6)  # float32 tables
    # b behind <s>: back-off -0.3 and -0.6; an unknown word behind b: -0.4 and -1.5; the end: -0.7
    assert model.logprob(["b", "what"]) == pytest.approx((-0.3 - 0.6 - 0.4 - 1.5 - 0.7) * LN10, abs=1e-6)
    assert (model.order, model.words[3], model.id("b"), model.id("B")) == (3, "ab", 4, model.unk)


def test_the_oracle_gives_the_sentences_worked_by_hand():
    assert Slow(TINY).sentence(["ab", "b"], 3) == pytest.approx(-0.9)
    assert Slow(TINY).sentence(["b", "what"], 3) == pytest.approx(-3.5)


@pytest.mark.parametrize("name", ["order3", "pruned", "vocabulary"])
def test_scores_are_those_of_kenlm(name, tmp_path):
    (tmp_path / "m.arpa").write_bytes((LM / f"{name}.arpa").read_bytes())
    model = NGram.load(tmp_path / "m.arpa")
    for sentence, score in json.loads((LM / "scores.json").read_text())[name].items():
        assert model.logprob(sentence.split()) / LN10 == pytest.approx(score, abs=1e-5)  # kenlm adds in float32


def test_scores_are_those_of_the_kenlm_that_is_installed(tmp_path):
    if importlib.util.find_spec("kenlm") is None:
        pytest.skip("kenlm is not installed")
    import kenlm

    (tmp_path / "m.arpa").write_text(TINY.replace("-1.5\t<unk>\n", "").replace("1=5", "1=4"))
    theirs, ours = kenlm.Model(str(tmp_path / "m.arpa")), NGram.load(tmp_path / "m.arpa")
    for sentence in ("", "ab b", "b what ab", "what what", "ab ab b b"):
        assert ours.logprob(sentence.split()) / LN10 == pytest.approx(theirs.score(sentence), abs=1e-4)


LETTERS = ("<s>", "</s>", "<unk>", "a", "b", "c")


@st.composite
def models(draw):
    """An ARPA text whose n-grams have their contexts but, as with SRILM, not always their suffixes."""
    grams = [[(word,) for word in LETTERS]]
    for _ in range(draw(st.integers(0, 3))):
        longer = [(*gram, word) for gram in grams[-1] if gram[-1] != "</s>" for word in LETTERS[1:]]
        grams.append(sorted(draw(st.sets(st.sampled_from(longer), max_size=12))) if longer else [])
    while len(grams) > 1 and not grams[-1]:
        grams.pop()
    number = st.integers(-3000, 0).map(lambda value: value / 1000)
    lines = ["\\data\\", *(f"ngram {n}={len(order)}" for n, order in enumerate(grams, 1))]
    for n, order in enumerate(grams, 1):
        lines += ["", f"\\{n}-grams:"]
        for gram in draw(st.permutations(order)):
            weight = f"\t{draw(number)}" if n < len(grams) and draw(st.booleans()) else ""
            lines.append(f"{draw(number)}\t{' '.join(gram)}{weight}")
    return "\n".join([*lines, "", "\\end\\", ""])


@given(models(), st.lists(st.sampled_from([*LETTERS[3:], "zzz"]), max_size=8))
def test_any_model_scores_as_the_textbook_says(text, words):
    model = built(text)
    assert model.logprob(words) / LN10 == pytest.approx(Slow(text).sentence(words, model.order), abs=1e-5)  # float32


@given(models(), st.lists(st.sampled_from(LETTERS[3:]), max_size=6))
def test_the_state_is_the_least_that_the_future_depends_on(text, words):
    model, slow = built(text), Slow(text)
    state = model.start
    for word in words:
        _, state = model.step(state, model.id(word))
    useful = {gram[:-1] for gram in slow.logprob} | {gram for gram, weight in slow.backoff.items() if weight}
    past = ["<s>", *words][-model.order + 1 :] if model.order > 1 else []
    suffixes = [tuple(past[n:]) for n in range(len(past))]
    longest = next((s for s in suffixes if s in slow.logprob and s in useful), ())
    assert spelled(model, state) == longest


def spelled(model, entry):
    """The words of an entry, found by looking for it among the children."""
    first, word = model.tables[:2]
    found = []
    while entry:
        found.insert(0, model.words[word[entry]])
        entry = int(np.searchsorted(first, entry, side="right")) - 1
    return tuple(found)


def built(text):
    """A model without a file of tables."""
    return NGram(build(arpa.read(io.BytesIO(text.encode()), "x"), "00", "x"))


def test_a_model_without_unknown_word_gets_one_at_minus_100_as_kenlm_has_it(load):
    model = load(TINY.replace("-1.5\t<unk>\n", "").replace("1=5", "1=4"))
    assert model.step(0, model.id("what"))[0] == pytest.approx(-100 * LN10, abs=1e-4)
    assert model.logprob(["ab", "b"]) == pytest.approx(-0.9 * LN10, abs=1e-6)


def test_a_model_of_single_words_has_one_state(load):
    model = load("\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-2 <UNK>\n-0.5 a\n\n\\end\\\n")
    assert model.start == 0
    assert model.logprob(["a", "b"]) == pytest.approx((-0.5 - 2 - 1) * LN10, abs=1e-6)


def test_perplexity_counts_ends_and_tells_what_unknown_words_cost(load):
    found = load(TINY).perplexity([["ab", "b"], ["b", "what"]])
    assert (found.sentences, found.words, found.unknown) == (2, 4, 1)
    assert found.perplexity == pytest.approx(10 ** (4.4 / 6), rel=1e-6)
    assert found.known_perplexity == pytest.approx(10 ** ((4.4 - 1.9) / 5), rel=1e-6)
    assert math.isnan(load(TINY).perplexity([]).perplexity)


def test_compiled_and_plain_loops_give_the_same_bits(tmp_path):
    (tmp_path / "m.arpa").write_bytes((LM / "pruned.arpa").read_bytes())
    code = (
        "import sys; from asr.decode.ngram import NGram; from asr.compiled import AVAILABLE; assert not AVAILABLE\n"
        "m = NGram.load(sys.argv[1]); print(*(m.logprob(s.split()).hex() for s in sys.argv[2:]))"
    )
    sentences = ["ash birch cedar", "baobab elm elm", "oak"]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "XDG_CACHE_HOME": str(tmp_path / "other")}
    command = [sys.executable, "-c", code, str(tmp_path / "m.arpa"), *sentences]
    plain = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    written = (tmp_path / "m.arpa.tables").read_bytes()
    (tmp_path / "m.arpa.tables").unlink()
    model = NGram.load(tmp_path / "m.arpa")
    assert plain == [model.logprob(sentence.split()).hex() for sentence in sentences]
    assert (tmp_path / "m.arpa.tables").read_bytes() == written


@pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")
def test_a_step_called_as_plain_python_is_the_compiled_step():
    model = built(TINY)
    for state in range(len(model.tables[3])):
        for word in range(len(model.words)):
            assert step.py_func(*model.tables, state, word) == step(*model.tables, state, word)


@given(st.floats(-1e29, 1e29), st.integers(0, 17))
def test_numbers_are_read_as_python_reads_them(value, digits):
    for text in (repr(value), f"{value:.{digits}e}", f"{value:+.3f}"):
        data = np.frombuffer(f"{text}\n".encode(), np.uint8)
        found, good = scan.number(data, 0, len(text))
        assert good
        assert found == pytest.approx(float(text), rel=1e-14, abs=1e-300)


def test_what_is_no_state_or_word_is_an_index_error(load):
    model = load(TINY)
    for state, word in ((-1, 0), (len(model.tables[3]), 0), (0, -1), (0, len(model.words))):
        with pytest.raises(IndexError, match="no state"):
            model.step(state, word)


# Files


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_an_arpa_file_may_be_cut_into_any_blocks(monkeypatch, block, load):
    monkeypatch.setattr(arpa, "BLOCK", block)
    assert load(TINY).logprob(["ab", "b"]) == built(TINY).logprob(["ab", "b"])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\t", " "),
        lambda text: "# made by hand\n\n" + text,
        lambda text: text.replace("\n\n", "\n"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.rstrip("\n"),
    ],
)
def test_other_ways_to_write_the_same_model(change):
    model, same = built(change(TINY)), built(TINY)
    assert all(np.array_equal(a, b) for a, b in zip(model.tables, same.tables, strict=True))


def test_gzip_is_read(tmp_path, load):
    (tmp_path / "m.gz").write_bytes(gzip.compress(TINY.encode()))
    assert NGram.load(tmp_path / "m.gz").logprob(["b"]) == load(TINY).logprob(["b"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: "hello\n", "line 1: not an ARPA file"),
        (lambda t: "", "not an ARPA file"),
        (lambda t: "mmap lm http://kheafield.com/code format version 5\n", "a kenlm binary; give the ARPA"),
        (lambda t: t.replace("ngram 2=4\n", ""), "line 3: wants 'ngram 2=COUNT'"),
        (
            lambda t: t.replace("ngram 3=1\n", "").replace("\t-0.1", "").replace("\t-0.25", ""),
            r"line 18: .*an order above the header's",
        ),
        (lambda t: t.replace("2=4", "2=5"), "line 19: the section ends after 4 of the header's 5 2-grams"),
        (lambda t: t.replace("2=4", "2=3"), "line 17: more 2-grams than the 3 of the header"),
        (lambda t: t.replace("2=4", f"2={10**17}"), "more than 2147483645 n-grams"),
        (lambda t: t.replace("-0.6\tb", "-0.6x\tb"), "line 11: a number is malformed or not finite: '-0.6x"),
        (lambda t: t.replace("-0.6\tb", "nan\tb"), "line 11: a number is malformed"),
        (lambda t: t.replace("-0.6\tb", "-inf\tb"), "line 11: a number is malformed"),
        (lambda t: t.replace("-0.6\tb", "-1e99\tb"), "line 11: a number is malformed"),
        (lambda t: t.replace("-0.6\tb", "0.6\tb"), "line 11: a probability above 1"),
        (lambda t: t.replace("-0.6\tb\t-0.4", "-0.6\tb\t1e"), "line 11: a number is malformed"),
        (lambda t: t.replace("-0.4\tb </s>", "-0.4\tb"), "line 16: wants a log-probability, 2 word"),
        (lambda t: t.replace("-0.4\tb </s>", "-0.4\tb </s> x y"), "line 16: wants a log-probability, 2 word"),
        (lambda t: t.replace("b </s>", "b c"), "line 16: 'b c': a word that is not among the 1-grams"),
        (lambda t: t.replace("<s> ab b", "ab ab b"), "line 20: 'ab ab b': its words but the last are no 2-gram"),
        (lambda t: t.replace("b ab\n", "ab b\n"), "line 17: a 2-gram that stands in line 15 too"),
        (lambda t: t.replace("\tb\t-0.4", "\tab\t-0.4"), "line 11: a 1-gram that stands in line 10 too"),
        (lambda t: t.replace("<s> ab b", "<s> ab b\t-0.5"), "line 20: a back-off behind an n-gram of the highest"),
        (lambda t: t.replace("\\2-grams:", "\\4-grams:"), r"line 13: .*where \\2-grams: should stand"),
        (lambda t: t + "more\n", r"line 23: text behind \\end\\"),
        (lambda t: t.replace("<s>", "<sos>"), "no <s> among its 1-grams"),
        (lambda t: t.replace("</s>", "<eos>"), "no </s> among its 1-grams"),
    ],
)
def test_a_wrong_line_is_named(load, change, problem):
    with pytest.raises(InputError, match=problem):
        load(change(TINY))


def test_a_word_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "x.arpa").write_bytes(TINY.encode().replace(b"\tb\t-0.4", b"\t\xff\t-0.4"))
    with pytest.raises(InputError, match="line 11: a word that is not UTF-8"):
        NGram.load(tmp_path / "x.arpa")


def test_an_endless_line_is_refused(monkeypatch, load):
    monkeypatch.setattr(arpa, "LONGEST_LINE", 100)
    monkeypatch.setattr(arpa, "BLOCK", 64)
    with pytest.raises(InputError, match="line 4: more than 100 bytes long"):
        load("\\data\\\nngram 1=1\n\n" + "x" * 1000)


def test_an_arpa_file_cut_anywhere_is_refused_with_a_line(tmp_path):
    whole = TINY.encode()
    for length in range(len(whole) - len("\\end\\\n") + 5):
        (tmp_path / "x.arpa").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"x\.arpa: line \d+: |not an ARPA"):
            NGram.load(tmp_path / "x.arpa")
    assert not (tmp_path / "x.arpa.tables").exists()


def test_a_cut_gzip_is_refused(tmp_path):
    whole = gzip.compress((LM / "order3.arpa").read_bytes())
    for length in (3, 20, len(whole) // 2, len(whole) - 4):
        (tmp_path / "x.gz").write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut or damaged gzip"):
            NGram.load(tmp_path / "x.gz")


def test_what_is_no_file_is_one_line(tmp_path):
    for path, problem in ((tmp_path, "not an ordinary file"), (tmp_path / "no", "No such file"), ("a\0b", "null")):
        with pytest.raises(InputError, match=problem) as caught:
            NGram.load(path)
        assert caught.value.status == 2
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not an ordinary file"):
        NGram.load(tmp_path / "pipe")


# The file of tables


def test_tables_are_kept_beside_the_arpa_and_used(load, tmp_path, monkeypatch):
    score = load(TINY).logprob(["ab"])
    monkeypatch.setattr(arpa, "read", lambda *_: pytest.fail("parsed again"))
    assert load(TINY).logprob(["ab"]) == score


def test_tables_of_another_arpa_are_made_again(load):
    load(TINY)
    changed = load(TINY.replace("-0.2\t<s> ab", "-0.3\t<s> ab"))
    assert changed.logprob(["ab", "b"]) == pytest.approx(-1.0 * LN10, abs=1e-6)


def test_where_the_folder_cannot_be_written_the_users_cache_keeps_them(load, tmp_path, monkeypatch):
    (tmp_path / "x.arpa.tables").mkdir()  # in the way
    model = load(TINY)
    assert (tmp_path / "cache" / "asr" / "ngram" / f"{model.sha256}.tables").exists()
    monkeypatch.setattr(arpa, "read", lambda *_: pytest.fail("parsed again"))
    load(TINY)


def test_where_nothing_can_be_kept_the_model_works_all_the_same(load, tmp_path):
    (tmp_path / "x.arpa.tables").mkdir()
    (tmp_path / "cache").write_text("no folder")
    assert load(TINY).logprob(["ab", "b"]) == pytest.approx(-0.9 * LN10, abs=1e-6)


def test_tables_cut_or_damaged_anywhere_are_never_trusted(load, tmp_path):
    model = load(TINY)
    path = tmp_path / "x.arpa.tables"
    whole = path.read_bytes()
    for length in [*range(0, 160), *range(160, len(whole), 13)]:
        path.write_bytes(whole[:length])
        assert tables.load(path, model.sha256) is None
    padding = range(tables._HEAD.size + 4, tables._START)  # zeros without meaning
    for place in set(range(len(whole))) - set(padding):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert tables.load(path, model.sha256) is None
    path.write_bytes(whole + b"\0")
    assert tables.load(path, model.sha256) is None
    assert load(TINY).logprob(["ab"]) == model.logprob(["ab"])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("value", [-1, -(2**31), 2**31 - 1, 10**6])
def test_tables_of_a_stranger_can_lead_no_loop_out_of_them(tmp_path, which, value):
    """Every number of every array forged, the checksums right."""
    model = built(TINY)
    for place in range(len(model.tables[which])):
        arrays = [array.copy() for array in model.tables]
        arrays[which][place] = value if arrays[which].dtype == np.int32 else np.float32(np.nan)
        forged = tables.Tables(model._content.text, model._content.size, tuple(arrays), (0, 1, 2), 3, "00" * 32)
        tables._write(tmp_path / "t", forged)
        assert (tables.load(tmp_path / "t", "00" * 32) is None) == (value != model.tables[which][place])


def test_forged_numbers_of_the_head_are_refused(tmp_path):
    content = built(TINY)._content
    for special in ((-1, 1, 2), (0, 5, 2), (0, 1, 2**40)):
        tables._write(tmp_path / "t", tables.Tables(content.text, content.size, content.arrays, special, 3, "00" * 32))
        assert tables.load(tmp_path / "t", "00" * 32) is None
    for size, text in ((4, content.text), (6, content.text), (5, b"\xff\n" * 5)):
        tables._write(tmp_path / "t", tables.Tables(text, size, content.arrays, (0, 1, 2), 3, "00" * 32))
        assert tables.load(tmp_path / "t", "00" * 32) is None
