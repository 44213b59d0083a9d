"""The search of a whole batch against the search of one utterance, against enumeration, and its promises to callers."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from test_beam import (
    ARPA,
    TOKENS,
    agree,
    arpa,
    best_of_each_text,
    emissions,
    labellings,
    long_emissions,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from asr import ctc
from asr.ctc import Hypothesis
from asr.decode import steps
from asr.decode.batched import BatchedBeamSearch
from asr.decode.beam import BeamSearch
from asr.decode.ngram import NGram
from asr.errors import InputError
from asr.text import join

LETTERS = ["<blank>", "|", *"abcdefgh"]
WIDE = {"beam": 400, "nbest": 400, "token_min": -math.inf, "beam_min": -math.inf, "token_top": 0}  # of 364 labellings


def batch(many: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Utterances together; what lies behind their frames is not a number."""
    lengths = torch.tensor([len(one) for one in many])
    padded = torch.full((len(many), int(lengths.max()) + 2, many[0].shape[1]), math.nan)
    for row, one in zip(padded, many, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    return padded, lengths


def ragged(rng: np.random.Generator, utterances: int, frames: int, tokens: int, sharp: float = 2.0) -> list[np.ndarray]:
    return [emissions(rng, int(rng.integers(1, frames)), tokens, sharp) for _ in range(utterances)]


def random_arpa(rng: np.random.Generator, words: list[str], order: int) -> str:
    """A model that knows some n-grams and lacks others; not a distribution, which no search asks for."""
    grams: list[list[tuple[str, ...]]] = [[("<s>",), ("</s>",), ("<unk>",), *((word,) for word in words)]]
    for _ in range(order - 1):
        longer = [(*one, word) for one in grams[-1] for word in ["</s>", *words] if not {"</s>", "<unk>"} & {*one}]
        grams.append([one for one in longer if rng.random() < 0.4])
    lines = ["\\data\\", *(f"ngram {n + 1}={len(some)}" for n, some in enumerate(grams)), ""]
    for n, some in enumerate(grams):
        backoffs = [f"\t{-rng.random():.4f}" if n < order - 1 and one[-1] != "</s>" else "" for one in some]
        rows = [f"{-3 * rng.random():.4f}\t{' '.join(one)}{b}" for one, b in zip(some, backoffs, strict=True)]
        lines += [f"\\{n + 1}-grams:", *rows, ""]
    return "\n".join([*lines, "\\end\\", ""])


def agree_with_one_by_one(found: list[list[Hypothesis]], many: list[np.ndarray], search: BeamSearch) -> None:
    for hypotheses, one in zip(found, many, strict=True):
        expected = search.decode(one)
        assert [other.tokens for other in hypotheses] == [other.tokens for other in expected]
        assert [other.text for other in hypotheses] == [other.text for other in expected]
        for got, wanted in zip(hypotheses, expected, strict=True):
            for field in ("score", "acoustic", "lm", "bonus", "hot"):  # both sum in float64, in another order
                assert getattr(got, field) == pytest.approx(getattr(wanted, field), abs=1e-6)
            assert [word.word for word in got.words] == [word.word for word in wanted.words]


SETTINGS = [
    {"beam": 1, "nbest": 1},
    {"beam": 2, "nbest": 2, "token_min": -math.inf},
    {"beam": 3, "nbest": 1, "token_top": 2, "token_min": -math.inf},
    {"beam": 8, "nbest": 8, "beam_min": -3.0},
    {"beam": 16, "nbest": 5, "token_top": 0, "beam_min": -math.inf},
    {"beam": 32, "nbest": 1},
    {"beam": 8, "nbest": 2, "token_min": -0.2},
    {"beam": 32, "nbest": 4, "beam_min": -2.0, "token_min": -math.inf, "token_top": 0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_a_ragged_batch_gives_what_its_utterances_give_alone_in_the_other_search(seed, settings):
    rng = np.random.default_rng(seed)
    many = ragged(rng, 6, 50, len(LETTERS), float(rng.uniform(0.5, 4)))
    found = BatchedBeamSearch(LETTERS, **settings).decode(*batch(many))
    agree_with_one_by_one(found, many, BeamSearch(LETTERS, **({"token_top": 16} | settings)))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_so_it_does_with_a_language_model_of_the_tokens(order, settings, tmp_path):
    rng = np.random.default_rng(order)
    lm = arpa(tmp_path, random_arpa(rng, LETTERS[1:-1], order))  # it does not know the last token
    many, given = ragged(rng, 6, 40, len(LETTERS)), {"lm_weight": 0.7} | settings
    found = BatchedBeamSearch(LETTERS, lm, **given).decode(*batch(many))
    agree_with_one_by_one(found, many, BeamSearch(LETTERS, lm, **({"token_top": 16} | given)))


@pytest.mark.parametrize("seed", range(10))
def test_a_wide_beam_finds_every_labelling_with_its_exact_score(seed, tmp_path):
    rng = np.random.default_rng(seed)
    many = ragged(rng, 3, 6, 4)
    lm = arpa(tmp_path, ARPA.replace("ab", "|").replace("bb", "b"))
    plain = BatchedBeamSearch(TOKENS, **WIDE).decode(*batch(many))
    weighted = BatchedBeamSearch(TOKENS, lm, lm_weight=0.9, **WIDE).decode(*batch(many))
    for one, without, with_lm in zip(many, plain, weighted, strict=True):
        spelled = [([TOKENS[t] for t in labels], score) for labels, score in labellings(one).items()]
        agree(without, best_of_each_text([(join(texts), score) for texts, score in spelled]), one)
        expected = [(join(texts), score + 0.9 * lm.logprob(texts)) for texts, score in spelled]
        agree(with_lm, best_of_each_text(expected), one)


def test_company_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    lm = arpa(tmp_path, random_arpa(rng, LETTERS[1:], 3))
    many = [*ragged(rng, 7, 60, len(LETTERS)), np.zeros((0, len(LETTERS)), np.float32)]
    search = BatchedBeamSearch(LETTERS, lm, beam=12, nbest=4)
    together = search.decode(*batch(many))
    assert together == [search.decode(torch.from_numpy(one)[None], torch.tensor([len(one)]))[0] for one in many]
    assert search.decode(*batch(many[::-1])) == together[::-1]


@pytest.mark.parametrize("order", [1, 2, 5])
def test_all_answers_of_the_language_model_are_those_of_its_own_step(order, tmp_path):
    rng = np.random.default_rng(order)
    lm = arpa(tmp_path, random_arpa(rng, ["a", "b", "c"], order))
    model = steps.Model(lm, np.arange(len(lm.words)), torch.device("cpu"))
    states, words = torch.arange(len(lm.tables[3])), torch.arange(len(lm.words))
    scores, entries = model.ask(states[None], words[None])
    expected = [[lm.step(state, word) for word in words.tolist()] for state in states.tolist()]
    assert model.after(entries)[0].tolist() == [[state for _, state in row] for row in expected]
    np.testing.assert_allclose(scores[0], [[score for score, _ in row] for row in expected], rtol=1e-12)


def test_prefixes_of_one_hash_are_seen_and_searched_again(monkeypatch):
    """With 5 bits for the hashes of the first try it goes wrong, and is found out."""
    rng = np.random.default_rng(1)
    padded, lengths = batch(ragged(rng, 4, 40, len(LETTERS)))
    search, answers, mixed, confused = BatchedBeamSearch(LETTERS), [], steps.mixed, steps.confused
    expected = search.decode(padded, lengths)

    def remembered(history: steps.History) -> bool:
        answers.append(confused(history))
        return answers[-1]

    monkeypatch.setattr(steps, "confused", remembered)
    assert search.decode(padded, lengths) == expected
    assert answers == [False]
    answers.clear()
    monkeypatch.setattr(steps, "mixed", lambda *given: mixed(*given) & (-1 if answers else 31))
    assert search.decode(padded, lengths) == expected
    assert answers == [True, False]


@pytest.mark.parametrize("special", [steps.DEAD, steps.ROOT])
def test_a_prefix_with_a_hash_that_stands_for_something_else_is_seen(special, monkeypatch):
    answers, confused = [], steps.confused

    def remembered(history: steps.History) -> bool:
        answers.append(confused(history))
        return answers[-1]

    monkeypatch.setattr(steps, "confused", remembered)
    monkeypatch.setattr(steps, "mixed", lambda hashes, _: hashes * 0 + (3 if answers else special))
    log_probs = torch.tensor([[[0.5, 0.5]]]).log()
    [[best]] = BatchedBeamSearch(["<blank>", "a"]).decode(log_probs, torch.tensor([1]))
    assert answers == [True, False]
    assert best.score == pytest.approx(math.log(0.5))


class Counted(TorchDispatchMode):
    """Counts the operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_no_frame_waits_for_the_device_and_no_utterance_adds_operations(tmp_path):
    rng = np.random.default_rng(0)
    search = BatchedBeamSearch(LETTERS, arpa(tmp_path, random_arpa(rng, LETTERS[1:], 3)))

    def names(utterances: int, frames: int) -> Counter[str]:
        rows = torch.from_numpy(np.stack([emissions(rng, frames, len(LETTERS)) for _ in range(utterances)]))
        search._search(rows, 0)  # from here on the language model's tables are there
        with Counted() as counted:
            search._search(rows, 0)
        return counted.names

    few = names(1, 10)
    assert few == names(9, 10)
    assert not few.keys() & {"_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal"}


def test_times_are_those_of_the_most_probable_alignment_within_two_frames():
    many = [long_emissions(np.random.default_rng(seed), 400, TOKENS) for seed in range(4)]
    near = []
    for [best], one in zip(BatchedBeamSearch(TOKENS).decode(*batch(many)), many, strict=True):
        labels = torch.tensor(best.tokens)
        spans = ctc.align(torch.from_numpy(one)[None], torch.tensor([400]), labels, torch.tensor([len(labels)]))[0]
        near += [abs(a - c) <= 2 and abs(b - d) <= 2 for (a, b), (c, d) in zip(best.frames, spans, strict=True)]
        assert all(a < b <= c < d for (a, b), (c, d) in itertools.pairwise(best.frames))
        assert all(0 < word.probability <= 1 for word in best.words)
    assert np.mean(near) > 0.95


def test_times_and_probabilities_by_hand():
    """Frames: a a - a |b: two letters a, the first of two frames, then a word."""
    probs = np.full((5, 4), 0.01)
    for frame, (token, p) in enumerate([(1, 0.6), (1, 0.9), (0, 0.97), (1, 0.8), (2, 0.7)]):
        probs[frame] = (1 - p) / 3
        probs[frame, token] = p
    [[best]] = BatchedBeamSearch(["<blank>", "a", "|b", "c"]).decode(
        torch.from_numpy(np.log(probs))[None], torch.tensor([5])
    )
    assert (best.text, best.tokens, best.frames) == ("aa b", (1, 1, 2), ((0, 2), (3, 4), (4, 5)))
    assert [(word.word, word.start, word.end) for word in best.words] == [("aa", 0, 4), ("b", 4, 5)]
    assert [word.probability for word in best.words] == pytest.approx([math.sqrt(0.9 * 0.8), 0.7], abs=1e-6)


def test_no_frames_are_the_empty_text_and_no_utterances_nothing(tmp_path):
    lm = arpa(tmp_path, ARPA.replace("ab", "|").replace("bb", "b"))
    for frames in (0, 3):
        padding = torch.full((2, frames, 4), math.nan)
        for [best] in BatchedBeamSearch(TOKENS, lm).decode(padding, torch.tensor([0, 0])):
            assert (best.text, best.acoustic, best.words) == ("", 0.0, ())
            assert best.score == best.lm == pytest.approx(0.5 * lm.logprob([]))
    assert BatchedBeamSearch(TOKENS).decode(torch.zeros(0, 5, 4), torch.zeros(0, dtype=torch.int64)) == []


def test_one_token_is_enough():
    [[best]] = BatchedBeamSearch(["<blank>"]).decode(torch.zeros(1, 3, 1), torch.tensor([3]))
    assert (best.text, best.score) == ("", 0.0)


def test_nothing_is_heard_where_the_language_model_lets_nothing_pass(tmp_path):
    lm = arpa(tmp_path, ARPA.replace("-1.1\tbb", "-99\tb").replace("ab", "|"))
    sure = np.full((2, 4), -np.inf, np.float32)
    sure[:, 3] = 0.0
    given = {"lm": lm, "lm_weight": 20.0}
    expected = BeamSearch(TOKENS, **given).decode(sure)
    assert (expected[0].text, expected[0].score) == ("", -math.inf)
    many = [sure, emissions(np.random.default_rng(0), 5, 4)]
    assert BatchedBeamSearch(TOKENS, **given).decode(*batch(many))[0] == expected


def test_other_kinds_of_numbers_are_taken():
    [one] = ragged(np.random.default_rng(0), 1, 30, 4)
    rows, lengths = torch.from_numpy(one)[None], torch.tensor([len(one)], dtype=torch.int32)
    search = BatchedBeamSearch(TOKENS, nbest=3)
    assert search.decode(rows.double(), lengths) == search.decode(rows, lengths.long())
    assert search.decode(rows.bfloat16().float().log_softmax(2), lengths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.transpose(1, 2), "are the axes swapped?"),
        (lambda x: x[..., :3], "not (frames, 4 tokens)"),
        (lambda x: x[0], "not (batch, frames, 4 tokens)"),
        (lambda x: x.exp(), "utterance 0: emissions, frame 0: these are probabilities; take their logarithms"),
        (lambda x: x + 1, "apply log_softmax"),
        (lambda x: torch.where(torch.arange(6)[:, None] == 3, math.nan, x), "frame 3: a value is not a number"),
        (lambda x: torch.where(torch.arange(6)[:, None] == 2, -math.inf, x), "frame 2: every token has probability 0"),
    ],
)
def test_wrong_emissions_are_refused_in_one_line(change, message):
    log_probs = torch.from_numpy(emissions(np.random.default_rng(0), 6, 4))[None]
    with pytest.raises(InputError) as error:
        BatchedBeamSearch(TOKENS).decode(change(log_probs), torch.tensor([6]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_wrong_utterance_is_named():
    log_probs = torch.from_numpy(emissions(np.random.default_rng(0), 6, 4)).repeat(3, 1, 1)
    log_probs[1, 4:] = math.nan
    assert len(BatchedBeamSearch(TOKENS).decode(log_probs, torch.tensor([6, 4, 6]))) == 3
    with pytest.raises(InputError, match="utterance 1: emissions, frame 4: a value is not a number"):
        BatchedBeamSearch(TOKENS).decode(log_probs, torch.tensor([6, 6, 6]))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([7], "utterance 0: length 7 is not one of 0 to 6 frames"),
        ([-1], "utterance 0: length -1 is not one of 0 to 6 frames"),
        ([6, 6], r"lengths must be whole numbers \(1,\), not torch.int64 \(2,\)"),
        ([6.0], r"lengths must be whole numbers \(1,\), not torch.float32 \(1,\)"),
    ],
)
def test_wrong_lengths_are_refused(lengths, message):
    log_probs = torch.from_numpy(emissions(np.random.default_rng(0), 6, 4))[None]
    with pytest.raises(InputError, match=message):
        BatchedBeamSearch(TOKENS).decode(log_probs, torch.tensor(lengths))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"nbest": 0}, "nbest is 0"),
        ({"token_top": -1}, "token_top is -1"),
        ({"lm_weight": 1.0}, "lm_weight has no effect"),
        ({"tokens": ["|", "a"]}, "not with '<blank>'"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(settings, message):
    with pytest.raises(InputError) as error:
        BatchedBeamSearch(**({"tokens": TOKENS} | settings))
    assert message in str(error.value)
    assert error.value.status == 2


def test_a_language_model_of_words_is_refused(tmp_path: Path):
    lm: NGram = arpa(tmp_path)
    with pytest.raises(InputError, match="the language model is one of words") as error:
        BatchedBeamSearch(TOKENS, lm)
    assert error.value.status == 2
