import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr import ctc


def collapse(path):
    """What a path of frames reads, by the definition: equal neighbours joined, then blanks (0) dropped."""
    return tuple(token for token, _ in itertools.groupby(path) if token)


def brute_force(log_probs, labels):
    """Log-probability of `labels`, summed over every path of `(frames, tokens)` that reads them."""
    total = 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if collapse(path) == tuple(labels):
            total += math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
    return math.log(total) if total else -math.inf


def emissions(batch, frames, tokens):
    return torch.randn(batch, frames, tokens, dtype=torch.float64).log_softmax(2)


def test_the_oracle_reads_paths_worked_by_hand():
    assert collapse([0, 1, 1, 0, 1, 2, 2]) == (1, 1, 2)
    uniform = torch.full((2, 2), math.log(0.5))
    assert brute_force(uniform, [1]) == pytest.approx(math.log(0.75))  # 1 1, 1 0, 0 1
    assert brute_force(uniform, [1, 1]) == -math.inf


@pytest.mark.parametrize("labels", [[], [1], [1, 1], [1, 2], [2, 1, 2], [1, 1, 1], [2, 2, 1]])
def test_the_loss_is_the_sum_over_all_alignments(labels):
    log_probs = emissions(1, 4, 3)
    loss = ctc.loss(log_probs, torch.tensor([4]), torch.tensor(labels), torch.tensor([len(labels)]))
    assert -loss.item() == pytest.approx(brute_force(log_probs[0], labels), abs=1e-10)


@given(st.lists(st.integers(1, 3), max_size=8))
def test_frames_needed_is_the_shortest_path_that_reads_the_labels(labels):
    needed = ctc.frames_needed(labels)
    infinite = [
        math.isinf(ctc.loss(emissions(1, n, 4), torch.tensor([n]), torch.tensor(labels), torch.tensor([len(labels)])))
        for n in (needed, needed - 1)
        if n > 0
    ]
    assert infinite in ([False, True], [False], [])


def test_greedy_is_the_best_path_collapsed_with_its_times():
    path = [0, 3, 3, 0, 3, 1, 0, 2, 2, 0]
    scores = torch.full((1, 10, 4), -5.0, dtype=torch.float64)
    log_probs = scores.scatter(2, torch.tensor(path)[None, :, None], 2.0).log_softmax(2)
    [heard] = ctc.greedy(log_probs, torch.tensor([10]), ["<blank>", "|", "b", "a"])
    assert heard.text == "aa b"
    assert heard.tokens == (3, 3, 1, 2)
    assert heard.frames == ((1, 3), (4, 5), (5, 6), (7, 9))
    assert [(word.word, word.start, word.end) for word in heard.words] == [("aa", 1, 5), ("b", 7, 9)]
    peak = math.exp(log_probs.max())
    assert [word.probability for word in heard.words] == pytest.approx([peak, peak])
    assert heard.score == pytest.approx(10 * log_probs.max().item())


def test_a_boundary_in_front_of_a_token_begins_a_word_too():
    path = [1, 0, 2, 2, 3, 0, 1]
    log_probs = torch.full((1, 7, 4), -5.0).scatter(2, torch.tensor(path)[None, :, None], 2.0).log_softmax(2)
    [heard] = ctc.greedy(log_probs, torch.tensor([7]), ["<blank>", "|si", "|se", "ven"])
    assert heard.text == "si seven si"
    assert [(word.word, word.start, word.end) for word in heard.words] == [("si", 0, 1), ("seven", 2, 5), ("si", 6, 7)]


def test_greedys_acoustic_score_is_the_exact_sum_over_alignments():
    log_probs = emissions(3, 5, 3)
    for row, heard in zip(log_probs, ctc.greedy(log_probs, torch.tensor([5, 5, 5])), strict=True):
        assert heard.acoustic == pytest.approx(brute_force(row, heard.tokens), abs=1e-9)
        assert heard.acoustic >= heard.score - 1e-9


def test_frames_behind_a_rows_length_are_not_read():
    log_probs = emissions(2, 6, 4)
    alone = ctc.greedy(log_probs[:1, :3], torch.tensor([3]))
    assert ctc.greedy(log_probs, torch.tensor([3, 6]))[0] == alone[0]


def test_nothing_heard_is_an_empty_hypothesis():
    blank = torch.zeros(1, 4, 3).log_softmax(2)
    [heard] = ctc.greedy(blank, torch.tensor([4]), ["<blank>", "|", "a"])
    assert (heard.text, heard.tokens, heard.words) == ("", (), ())
    [empty] = ctc.greedy(torch.zeros(1, 0, 3), torch.tensor([0]), ["<blank>", "|", "a"])
    assert (empty.text, empty.score) == ("", 0.0)


@pytest.mark.parametrize("labels", [[1], [1, 1], [1, 2, 1], [2, 2, 1]])
def test_alignment_is_the_best_of_all_paths_that_read_the_labels(labels):
    log_probs = emissions(1, 6, 3)
    paths = [p for p in itertools.product(range(3), repeat=6) if collapse(p) == tuple(labels)]
    best = max(paths, key=lambda path: sum(float(log_probs[0, t, token]) for t, token in enumerate(path)))
    expected = []
    start = 0
    for token, run in itertools.groupby(best):
        end = start + len(list(run))
        expected += [(start, end)] if token else []
        start = end
    spans = ctc.align(log_probs, torch.tensor([6]), torch.tensor(labels), torch.tensor([len(labels)]))
    assert spans == [expected]


def test_alignment_refuses_too_few_frames():
    with pytest.raises(ValueError, match="2 frames cannot emit 2 labels, 3 are needed"):
        ctc.align(emissions(1, 2, 3), torch.tensor([2]), torch.tensor([1, 1]), torch.tensor([2]))


def test_alignment_of_a_batch_is_that_of_its_rows():
    log_probs = emissions(2, 7, 4)
    spans = ctc.align(log_probs, torch.tensor([7, 4]), torch.tensor([1, 2, 3, 3]), torch.tensor([3, 1]))
    assert spans[0] == ctc.align(log_probs[:1], torch.tensor([7]), torch.tensor([1, 2, 3]), torch.tensor([3]))[0]
    assert spans[1] == ctc.align(log_probs[1:], torch.tensor([4]), torch.tensor([3]), torch.tensor([1]))[0]
    assert len(spans[1]) == 1
