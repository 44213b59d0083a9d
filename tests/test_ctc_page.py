"""docs/ctc.md: each number in it is what the code gives, and each knob turns the way it says."""

import importlib.util
import inspect
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import asr
from asr import ctc
from asr.decode import beam as beam_module
from asr.decode import exact, vocabulary
from asr.decode.beam import BeamSearch
from asr.decode.hotwords import EDGE, HotWords
from asr.decode.ngram import UNK_LOGPROB, NGram
from asr.decode.search import TOLL, hot_step
from asr.errors import InputError
from asr.text import BLANK, tokenizer
from asr.viterbi import best_paths

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "ctc.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

spec = importlib.util.spec_from_file_location("draw_ctc", ROOT / "scripts" / "draw_ctc.py")
draw_ctc = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_ctc)

TWO = np.log([[0.6, 0.4], [0.6, 0.4]])
THREE = np.log([[0.3, 0.6, 0.1], [0.5, 0.3, 0.2], [0.3, 0.6, 0.1]])
TOKENS = [BLANK, "a", "b"]


def table(*header: str) -> list[list[str]]:
    """The cells of the table with these columns, back-ticks taken off."""
    head = "| " + " | ".join(header) + " |\n"
    assert PAGE.count(head) == 1
    rows = itertools.takewhile(lambda line: line.startswith("|"), PAGE.split(head)[1].splitlines()[1:])
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


def said(*sentences: str) -> None:
    """These stand in the page."""
    assert not [sentence for sentence in sentences if sentence not in TEXT]


def paths(log_probs: np.ndarray) -> list[tuple[tuple[int, ...], str, float]]:
    """Every path, what it reads, its probability."""
    found = []
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = "".join(TOKENS[token] for token, _ in itertools.groupby(path) if token)
        found.append((path, text, math.prod(math.exp(row[token]) for row, token in zip(log_probs, path, strict=True))))
    return found


def of(log_probs: np.ndarray, text: str) -> float:
    """The probability of a text, path by path; and the code's three ways to it give the same."""
    total = sum(p for _, other, p in paths(log_probs) if other == text)
    labels = [TOKENS.index(letter) for letter in text]
    rows, length = torch.tensor(log_probs)[None], torch.tensor([len(log_probs)])
    assert math.exp(exact.log_sums(log_probs, [np.array(labels, np.int32)], 0)[0]) == pytest.approx(total, abs=1e-12)
    assert math.exp(ctc.log_probability(rows, length, [labels])[0]) == pytest.approx(total, abs=1e-12)
    [loss] = ctc.loss(rows, length, torch.tensor(labels, dtype=torch.int64), torch.tensor([len(labels)])).tolist()
    assert loss == pytest.approx(-math.log(total), abs=1e-12)
    return total


@pytest.fixture(scope="module")
def heard():
    """The recording of the picture: tokens and emissions."""
    recognizer = asr.load(draw_ctc.MODEL, device="cpu")
    [one] = recognizer.emissions_many([draw_ctc.RECORDING])
    return recognizer.tokens, one.log_probs


def digits(folder: Path, unknown: bool = True) -> NGram:
    """The language model of the page: ten digits, the sentence's end and `<unk>`, whatever stands before."""
    word = math.log10(0.999 / 11)
    entries = [f"{word}\t{name}" for name in ("</s>", *DIGITS)] + ["-99\t<s>"] + ["-3\t<unk>"] * unknown
    path = folder / f"digits{unknown:d}.arpa"
    path.write_text(f"\\data\\\nngram 1={len(entries)}\n\n\\1-grams:\n" + "\n".join(entries) + "\n\n\\end\\\n")
    return NGram.load(path)


def test_the_table_of_all_paths_of_two_frames():
    rows = table("path", "probability", "reads")
    expected = {"".join("–a"[t] for t in path): (text or "nothing", p) for path, text, p in paths(TWO)}
    assert len(rows) == len(expected) == 4
    for path, sum_, reads in rows:
        text, p = expected[path.replace(" ", "")]
        product, value = sum_.split(" = ")
        assert (reads, float(value)) == (text, pytest.approx(p))
        assert math.prod(map(float, product.split(" * "))) == pytest.approx(p)
    said(f"0.24 + 0.24 + 0.16 = {of(TWO, 'a'):.2f}.", f"-ln 0.64 = {-math.log(of(TWO, 'a')):.3f} nats")
    [greedy] = ctc.greedy(torch.tensor(TWO)[None], torch.tensor([2]), TOKENS[:2])
    assert greedy.text == ""
    said(f"is `– –` with {math.exp(greedy.score):.2f}: nothing. But `a` has {of(TWO, 'a'):.2f}.")
    assert BeamSearch(TOKENS[:2]).decode(TWO)[0].text == "a"


def test_collapse_reads_as_the_page_says():
    for path, text in (("aa-b", "ab"), ("a-a", "aa")):
        said(f"`{' '.join(path).replace('-', '–')}` reads `{text}`")
        rows = np.log(np.eye(3)[["-ab".index(token) for token in path]] + 1e-9)
        assert ctc.greedy(torch.tensor(rows)[None], torch.tensor([len(path)]), TOKENS)[0].text == text


def test_the_table_of_the_forward_recursion():
    blank, label = np.array([1.0, 0.0]), np.array([0.0])
    rows = [[0, *blank[:1], *label, *blank[1:]]]
    for n, row in enumerate(np.exp(TWO), start=1):
        exact._step(row, np.ones(1, np.int64), blank, label, 0, 0, 0)
        rows.append([n, blank[0], label[0], blank[1]])
    written = table("frames taken in", "`blank[0]`", "`label[0]`", "`blank[1]`")
    assert [[float(cell) for cell in row] for row in written] == [pytest.approx(row) for row in rows]
    assert label[0] + blank[1] == pytest.approx(of(TWO, "a"))
    said(f"For `a` in the two frames: {label[0]:.1f} + {blank[1]:.2f}.")


def test_the_table_of_the_beam():
    said("in frames 1 and 3 the blank has 0.3, `a` 0.6 and `b` 0.1, in frame 2 the blank has 0.5, `a` 0.3 and `b` 0.2")
    found = draw_ctc.beams(BeamSearch(TOKENS, beam=3), THREE)
    rows = [
        [str(frame), one.text or "nothing", one.blank, one.label, one.blank + one.label]
        for frame, beam in enumerate(found, start=1)
        for one in beam
    ]
    written = table("frame", "prefix", "blank sum", "label sum", "total")
    assert [row[:2] for row in written] == [row[:2] for row in rows]
    numbers = [[float(cell) for cell in row[2:]] for row in written]
    assert numbers == [pytest.approx(row[2:], abs=1e-6) for row in rows]  # emissions are taken as float32


def test_what_the_page_says_of_the_beam():
    wide = {one.text: one for one in draw_ctc.beams(BeamSearch(TOKENS), THREE)[1]}
    said(f"`ab` with {wide['ab'].label:.2f} fell out of the beam, and so did `ba` with {wide['ba'].label:.2f}.")
    best, second, third = BeamSearch(TOKENS, beam=3, nbest=3).decode(THREE)
    assert [best.text, second.text, third.text] == ["a", "aa", "ba"]
    said(f"it has {of(THREE, 'ba'):.3f}, not 0.078", f"0.3 * 0.6 = {of(THREE, 'aa'):.2f}.")
    assert math.exp(third.acoustic) == pytest.approx(of(THREE, "ba"), abs=1e-6)
    assert ctc.greedy(torch.tensor(THREE)[None], torch.tensor([3]), TOKENS)[0].text == "aa"
    [path] = best_paths([THREE], [[1]])
    assert (path.starts[0], path.ends[0]) == (0, 3)
    said(f"the best alignment of `a` is `a a a` with {math.exp(path.score):.3f}, a quarter of the {of(THREE, 'a'):.3f}")
    assert round(math.exp(path.score) / of(THREE, "a"), 1) in (0.2, 0.3)


def test_the_table_of_scores(heard, tmp_path):
    tokens, log_probs = heard
    kinds = {
        "plain": {},
        "lm": {"lm": digits(tmp_path), "beam_min": -30.0},  # so that what paid for an unknown word can be seen
        "hot word": {"hot_words": {"two": 4.0}},
    }
    found = {
        (kind, one.text): one
        for kind, settings in kinds.items()
        for one in BeamSearch(tokens, nbest=100, **settings).decode(log_probs)
    }
    rows = table("search", "text", "acoustic", "lm", "bonus", "hot", "score")
    assert len(rows) == 6
    for kind, text, *numbers in rows:
        one = found[kind, text]
        values = [one.acoustic, one.lm, one.bonus, one.hot, one.score]
        assert [float(number) for number in numbers] == pytest.approx(values, abs=0.0051)
    for kind, (_, winner, *_) in zip(kinds, rows[::2], strict=True):
        assert BeamSearch(tokens, **kinds[kind]).decode(log_probs)[0].text == winner
    said(f"have the probability {0.999 / 11:.4f}, and `<unk>`, any other word, 0.001")


def test_scores_and_confidences_of_greedy_and_search(heard):
    tokens, log_probs = heard
    [greedy] = ctc.greedy(log_probs[None], torch.tensor([len(log_probs)]), tokens)
    assert greedy.text == "twon"
    said(f"(here {greedy.score:.2f})", f"all alignments ({greedy.acoustic:.2f})", f"of {len(log_probs)} frames")
    found = {one.text: one for one in BeamSearch(tokens, nbest=5).decode(log_probs)}
    two, twon = found["two"], found["twon"]
    said(f"`two` has {two.words[0].probability:.2f} and `twon` {twon.words[0].probability:.2f}")
    assert round(math.exp(twon.acoustic - two.acoustic)) == 3  # "three times as probable"
    assert round(math.exp(0.7)) == 2


def test_the_table_of_a_hot_word(heard):
    said("For `two`, weight 4:")
    spell = tokenizer(heard[0]).encode
    hot = HotWords.build({"two": 4.0}, spell)
    rows = table("heard", "credit", "won")
    assert [row[0] for row in rows] == ["t", "tw", "two", "two and the word's end", "twon"]
    for heard_so_far, credit, won in rows:
        word, *ended = heard_so_far.split(" and ")
        state, total = hot.start, 0.0
        for symbol in [*spell(word), *[EDGE] * len(ended)]:
            state = hot_step(hot.tree.first, hot.tree.token, hot.fail, state, symbol)
            total += hot.won[state]
        assert (float(credit), float(won)) == (hot.credit[state], total)


def test_a_model_without_unk_refuses_hot_words_that_it_does_not_know(heard, tmp_path):
    tokens, _ = heard
    with pytest.raises(InputError, match="hot word 'twon' is not in the language model, which has no <unk>"):
        BeamSearch(tokens, digits(tmp_path, unknown=False), hot_words={"twon": 5.0})
    said(f"without `<unk>` gives it {UNK_LOGPROB:.0f} nats")


def test_defaults_and_limits_are_those_of_the_code():
    written = dict(re.findall(r"`(\w+)` \((-?[0-9.]+)", PAGE))
    defaults = {name: one.default for name, one in inspect.signature(BeamSearch).parameters.items()}
    defaults |= {
        "lm_weight": vocabulary.LM_WEIGHT,
        "word_bonus": vocabulary.WORD_BONUS,
        "unknown": vocabulary.UNKNOWN,
    }
    names = {"beam", "beam_min", "token_min", "token_top", "lm_weight", "word_bonus", "unknown"}
    assert written.keys() == names
    assert {name: float(value) for name, value in written.items()} == {name: defaults[name] for name in names}
    assert len(set(re.findall(r"`(\w+)` \((-?[0-9.]+)", PAGE))) == len(names)  # no setting with two values
    assert TOLL == 1 / 5
    said("a fifth of it for each further token", "pays `unknown` (-10) at once")
    horizon, settle, kept = beam_module._HORIZON, beam_module._SETTLE, beam_module._KEPT_FRAMES
    said(f"every {settle} frames", f"over {horizon:,} frames ago ({horizon / 25:.0f} s at 25 a second)")
    said(f"Behind {kept:,} frames")


@pytest.mark.parametrize("seed", range(3))
def test_knobs_turn_the_way_the_page_says(seed, tmp_path):
    """Up: not fewer words, not less usual ones, not fewer hot ones, not fewer unknown ones."""
    tokens = [BLANK, "|", *"aentwo"]
    logits = np.random.default_rng(seed).normal(0, 2, (6, len(tokens)))
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    exhaustive = {"beam": 100_000, "token_min": -math.inf, "beam_min": -math.inf}
    lm, settings = digits(tmp_path), {"unknown": -0.5, "lm_weight": 0.5, "word_bonus": 0.5}

    def heard_with(**knob) -> list[str]:
        return BeamSearch(tokens, lm, **(settings | knob), **exhaustive).decode(log_probs)[0].text.split()

    turned = {
        "words": [len(heard_with(word_bonus=value)) for value in (-20, -1, 1, 20)],
        "usual": [lm.logprob(heard_with(lm_weight=value)) for value in (0.1, 0.5, 1, 2)],
        "hot": [heard_with(hot_words={"two": value}).count("two") for value in (0.0, 5.0, 20.0)],
        "unknown": [sum(word not in DIGITS for word in heard_with(unknown=value)) for value in (-20, -3, 0)],
    }
    assert not {name: values for name, values in turned.items() if values != sorted(values)}
    assert not [name for name, values in turned.items() if values[0] == values[-1]]  # and they turn something


def test_the_picture_can_be_drawn(heard, tmp_path, monkeypatch):
    out = tmp_path / "picture.png"
    monkeypatch.setattr("sys.argv", ["draw_ctc.py", "--out", str(out)])
    draw_ctc.main()
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert (ROOT / "docs" / "ctc_prefixes.png").is_file()
