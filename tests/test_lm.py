import gzip
import io
import json
import math
import re
import sys
from pathlib import Path

import pytest

from asr import lm
from asr.cli import main
from asr.decode import kneser_ney
from asr.decode.ngram import NGram
from asr.errors import AsrError

LM = Path(__file__).parent / "data" / "lm"
TEXT = LM / "text.txt"


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """As `run` elsewhere, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return run


# Train


def test_a_trained_model_scores_as_that_of_lmplz(run, tmp_path):
    status, out, _ = run("lm", "train", TEXT, "-o", "m.arpa")
    assert (status, out.splitlines()[-1]) == (0, "m.arpa")
    assert "91 sentences, 355 words" in out
    assert "3-grams: 206, discounts 0.6887 1.1861 2.5762" in out
    model = NGram.load("m.arpa")
    for sentence, score in json.loads((LM / "scores.json").read_text())["order3"].items():
        assert model.logprob(sentence.split()) / 2.302585 == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "name"), [(["--prune", "0", "0", "1"], "pruned"), (["--min-count", "10"], "vocabulary")]
)
def test_pruning_and_a_smaller_vocabulary_are_those_of_lmplz(run, words, name):
    run("lm", "train", TEXT, "-o", "m.arpa", *words)
    for sentence, score in json.loads((LM / "scores.json").read_text())[name].items():
        assert NGram.load("m.arpa").logprob(sentence.split()) / 2.302585 == pytest.approx(score, abs=1e-5)


def test_the_most_frequent_words_are_kept_and_of_equals_the_first(run):
    run("lm", "train", TEXT, "-o", "m.arpa", "--vocab", "5")
    words = {"alder", "ash", "birch", "cedar", "elm"}  # alder and fir occur 20 times each
    assert set(NGram.load("m.arpa").words) == words | {"<s>", "</s>", "<unk>"}


def test_the_same_text_gives_the_same_bytes_in_whatever_files(run, tmp_path):
    lines = TEXT.read_text().splitlines()
    (tmp_path / "a.txt").write_text("\n".join(lines[:40]) + "\r\n\n  \n")
    (tmp_path / "b.gz").write_bytes(gzip.compress("\n".join(lines[40:]).encode()))
    run("lm", "train", TEXT, "-o", "one.arpa.gz")
    run("lm", "train", "a.txt", "b.gz", "-o", "two.arpa.gz")
    content = (tmp_path / "one.arpa.gz").read_bytes()
    assert content == (tmp_path / "two.arpa.gz").read_bytes()
    assert gzip.decompress(content).endswith(b"\n\\end\\\n")


def test_text_comes_from_standard_input(run, monkeypatch, tmp_path):
    run("lm", "train", TEXT, "-o", "one.arpa")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.read_bytes())))
    run("lm", "train", "-", "-o", "two.arpa")
    assert (tmp_path / "one.arpa").read_bytes() == (tmp_path / "two.arpa").read_bytes()


def test_digits_written_are_read_back_to_a_millionth(tmp_path):
    words, stream, _ = lm.read_stream(lm.sentences([TEXT]))
    model = kneser_ney.estimate(kneser_ney.count(stream, len(words), 2))
    lm.write(tmp_path / "m.arpa", words, model.orders)
    read = NGram.load(tmp_path / "m.arpa")
    for word, probability in zip(words, model.orders[0].probability, strict=True):
        logprob = read.step(0, read.id(word))[0]
        assert logprob == pytest.approx(math.log(probability), abs=2.4e-6)


def test_a_character_model_has_the_boundary_for_spaces(run, tmp_path):
    status, out, _ = run(
        "lm", "train", TEXT, "-o", "c.arpa", "--unit", "character", "--order", 4, "--discount-fallback"
    )
    assert (status, "characters" in out) == (0, True)
    model = NGram.load("c.arpa")
    assert {"|", "a"} < set(model.words)
    assert not [word for word in model.words if len(word) > 1 and word not in ("<s>", "</s>", "<unk>")]
    assert model.logprob(list("ash|birch")) > model.logprob(list("birhc|sa"))


def test_a_normaliser_is_applied_to_text(run, tmp_path):
    (tmp_path / "t.txt").write_text("Ash, BIRCH!\n")
    assert list(lm.sentences(["t.txt"], normalizer="basic")) == [["ash", "birch"]]
    assert list(lm.sentences(["t.txt"])) == [["Ash,", "BIRCH!"]]
    assert list(lm.sentences(["t.txt"], unit="character", normalizer="basic")) == [list("ash|birch")]


def test_progress_is_told_as_it_happens(tmp_path):
    seen = []

    class Counter:
        def __init__(self, what, total):
            self.what, self.total, self.done = what, total, 0

        def __enter__(self):
            seen.append(self)
            return self

        def __exit__(self, *_):
            pass

        def advance(self):
            self.done += 1

    (tmp_path / "t.txt").write_text(TEXT.read_text() * 2000)
    lm.train([tmp_path / "t.txt"], tmp_path / "m.arpa", fallback=True, counting=Counter)
    assert [counter.what.split(",")[0] for counter in seen] == ["reading", "counting", "writing"]
    assert all(counter.total - 1 <= counter.done <= counter.total for counter in seen)
    assert seen[0].total == (tmp_path / "t.txt").stat().st_size // 2**20 + 1 > 3


# Perplexity


def test_perplexity_is_told_with_and_without_unknown_words(run, tmp_path):
    run("lm", "train", TEXT, "-o", "m.arpa")
    (tmp_path / "t.txt").write_text("ash birch\nash baobab\n")
    status, out, _ = run("lm", "perplexity", "m.arpa", "t.txt")
    assert status == 0
    assert out.splitlines()[1] == "2 sentences, 4 words, 1 unknown (25.00 %)"
    told = json.loads(run("lm", "perplexity", "m.arpa", "t.txt", "--json")[1])
    model = NGram.load("m.arpa")
    total = model.logprob(["ash", "birch"]) + model.logprob(["ash", "baobab"])
    assert told["perplexity"] == pytest.approx(2.718281828 ** (-total / 6), rel=1e-6)
    assert told["known_perplexity"] < told["perplexity"]
    assert told["lm"] == {"name": "m.arpa", "sha256": model.sha256, "order": 3}
    (tmp_path / "t.txt").write_text("\n")
    assert json.loads(run("lm", "perplexity", "m.arpa", "t.txt", "--json")[1])["perplexity"] is None


# What is wrong is one line


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (["none.txt"], 2, "none.txt: No such file"),
        (["TEXT", "--order", "0"], 2, "order 0: give a whole number from 1 to 10"),
        (["TEXT", "--order", "2", "--prune", "0", "0", "1"], 2, "prune 0 0 1: more thresholds than the order 2"),
        (["TEXT", "--prune", "1"], 2, "prune 1: start with 0"),
        (["TEXT", "--prune", "0", "2", "1"], 2, "prune 0 2 1: start with 0 .* and never fall"),
        (["TEXT", "--vocab", "9", "--min-count", "2"], 2, "--vocab or --min-count, not both"),
        (["TEXT", "--vocab", "0"], 2, "at least 1"),
        (["TEXT", "--normalizer", "bsaic"], 2, "no normaliser 'bsaic'"),
        (["TEXT", "--unit", "letter"], 2, "no unit 'letter'; known are word, character"),
        (["TEXT", "--ordre", "2"], 2, "did you mean --order?"),
        (["empty.txt"], 1, "empty.txt: no sentence in it"),
        (["bytes.txt"], 1, "bytes.txt: line 2: not UTF-8"),
        (["special.txt"], 1, "special.txt: line 2: holds '</s>' as a word"),
        (["bar.txt", "--unit", "character"], 1, r"bar.txt: line 1: holds '\|', the sign between words"),
        (["cut.gz"], 1, "cut.gz: cut or damaged gzip behind line"),
        (["folder"], 1, "folder: Is a directory"),
        (["bar.txt"], 1, "no discounts for 1-grams"),
    ],
)
def test_what_is_wrong_is_one_line(run, tmp_path, words, status, problem):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"good\nb\xffd\n")
    (tmp_path / "special.txt").write_text("good\n</s> bad\n")
    (tmp_path / "bar.txt").write_text("a|b a\n")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(TEXT.read_bytes())[:-20])
    words = [TEXT if word == "TEXT" else word for word in words]
    found, out, [error] = run("lm", "train", "-q", *words, "-o", "m.arpa")
    assert (found, out) == (status, "")
    assert re.search(problem, error)
    assert not (tmp_path / "m.arpa").exists()


def test_a_model_that_cannot_be_written_is_one_line(run, tmp_path):
    (tmp_path / "m.arpa").mkdir()
    status, _, [error] = run("lm", "train", "-q", TEXT, "-o", "m.arpa")
    assert (status, "m.arpa: not written" in error) == (1, True)
    with pytest.raises(AsrError, match="not written"):
        lm.train([TEXT], tmp_path / "m.arpa")


def test_a_text_is_not_overwritten_by_its_model(run, tmp_path):
    (tmp_path / "t.txt").write_bytes(TEXT.read_bytes())
    status, _, [error] = run("lm", "train", "-q", "t.txt", "-o", tmp_path / "t.txt")
    assert (status, "would take the place of the text" in error) == (2, True)
    assert (tmp_path / "t.txt").read_bytes() == TEXT.read_bytes()


def test_lm_wants_a_verb_and_has_help(run, capsys):
    assert run("lm")[0] == 2
    assert "train" in run("lm", "trian")[2][0]
    for verb in ("train", "perplexity"):
        with pytest.raises(SystemExit):
            main(["lm", verb, "--help"])
        assert f"asr lm {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("spelling", ["text", "folder/../text", "link"])
def test_a_model_never_takes_the_place_of_its_own_text(tmp_path, capsys, spelling):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("a b\n" * 5)
    (tmp_path / "link").symlink_to(tmp_path / "text")
    flags = ["lm", "train", "-q", str(tmp_path / "text"), "--discount-fallback", "-o"]
    assert main([*flags, str(tmp_path / spelling)]) == 2
    assert "would take the place of the text" in capsys.readouterr().err
    assert (tmp_path / "text").read_text() == "a b\n" * 5
    assert main([*flags, "-"]) == 2
    assert "not to standard output" in capsys.readouterr().err


def test_one_endless_line_is_refused_by_its_number(tmp_path, capsys):
    (tmp_path / "text").write_text("a b\n" + "a " * 600_000)
    assert main(["lm", "train", "-q", str(tmp_path / "text"), "-o", str(tmp_path / "lm.arpa")]) == 1
    assert "line 2: longer than 1000000 bytes" in capsys.readouterr().err
