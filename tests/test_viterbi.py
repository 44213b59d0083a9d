"""Forced alignment against all paths, against torchaudio, and against itself as plain Python."""

import itertools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import ctc
from asr.viterbi import best_paths


def states_of(labels):
    """Blank, label, blank, ... as tokens."""
    return [0, *itertools.chain.from_iterable((label, 0) for label in labels)]


def all_paths(labels, frames):
    """Every path of states that reads the labels, by the definition of CTC."""
    tokens = states_of(labels)
    last = len(tokens) - 1

    def may_follow(a, b):
        return b - a in (0, 1) or (b - a == 2 and tokens[b] != 0 and tokens[b] != tokens[a])

    paths = [(0,), (1,)][: len(tokens)]
    for _ in range(frames - 1):
        paths = [(*path, state) for path in paths for state in range(len(tokens)) if may_follow(path[-1], state)]
    return [path for path in paths if path[-1] >= last - 1]


def score_of(path, labels, emissions):
    tokens = states_of(labels)
    return sum((float(row[tokens[state]]) for state, row in zip(path, emissions, strict=True)), 0.0)


def best_of_all(labels, emissions):
    """The best path by brute force; of equal ones the furthest on, compared from the last frame."""
    paths = all_paths(labels, len(emissions))
    return max(paths, key=lambda path: (score_of(path, labels, emissions), path[::-1]), default=None)


def spans_of(path, labels):
    """Start and end of each label in a path of states."""
    places = [[t for t, state in enumerate(path) if state == 2 * i + 1] for i in range(len(labels))]
    return [(place[0], place[-1] + 1) for place in places]


def spans(path):
    return list(zip(path.starts.tolist(), path.ends.tolist(), strict=True))


def random_emissions(frames, tokens, seed=0, dtype=np.float32):
    scores = torch.randn(frames, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * scores).log_softmax(1).numpy().astype(dtype)


def random_labels(count, tokens, seed=0):
    return np.random.default_rng(seed).integers(1, tokens, count)


def test_the_oracle_gives_what_was_worked_by_hand():
    assert sorted(all_paths([1], 2)) == [(0, 1), (1, 1), (1, 2)]
    assert all_paths([1, 1], 2) == []
    assert all_paths([1, 1], 3) == [(1, 2, 3)]
    assert all_paths([1, 2], 2) == [(1, 3)]
    emissions = np.log([[0.5, 0.5], [0.5, 0.5]])
    assert best_of_all([1], emissions) == (1, 2)  # all three are equal: (1, 2) is furthest on at the end
    assert spans_of((0, 1, 1, 2, 3), [1, 1]) == [(1, 3), (4, 5)]


# Sixteenths: their sums are exact, so that equal scores are equal in any order; -inf is a probability of zero.
SIXTEENTHS = st.one_of(st.integers(-64, 0).map(lambda n: n / 16), st.sampled_from([-math.inf, -1.0, 0.0]))


@st.composite
def lattices(draw):
    frames, tokens = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    labels = draw(st.lists(st.integers(1, tokens - 1), max_size=3))
    values = draw(st.lists(SIXTEENTHS, min_size=frames * tokens, max_size=frames * tokens))
    return np.array(values, dtype=draw(st.sampled_from([np.float32, np.float64]))).reshape(frames, tokens), labels


@settings(max_examples=300)
@given(lattices())
def test_it_is_the_best_of_all_paths_and_of_equal_ones_the_furthest_on(lattice):
    emissions, labels = lattice
    best = best_of_all(labels, emissions)
    if best is None or score_of(best, labels, emissions) == -math.inf:
        with pytest.raises(ValueError, match=r"frames cannot emit|has a probability above zero"):
            best_paths([emissions], [labels])
        return
    [path] = best_paths([emissions], [labels])
    assert path.score == score_of(best, labels, emissions)
    assert spans(path) == spans_of(best, labels)
    peaks = [max(emissions[a:b, label]) for label, (a, b) in zip(labels, spans_of(best, labels), strict=True)]
    assert path.peaks.tolist() == peaks


@pytest.mark.parametrize("seed", range(60))
def test_it_is_torchaudios_where_that_works(seed):
    random = np.random.default_rng(seed)
    frames, tokens = int(random.integers(20, 400)), int(random.integers(2, 30))
    labels = random_labels(int(random.integers(1, frames // 2)), tokens, seed)
    emissions = torch.from_numpy(random_emissions(frames, tokens, seed, np.float64))
    theirs, scores = torchaudio.functional.forced_align(emissions[None], torch.from_numpy(labels)[None], blank=0)
    [path] = best_paths([emissions.numpy()], [labels])
    mine = np.zeros(frames, dtype=np.int64)
    for label, (start, end) in zip(labels, spans(path), strict=True):
        mine[start:end] = label
    assert mine.tolist() == theirs[0].tolist()
    assert path.score == pytest.approx(float(scores.sum()), abs=1e-9)


@pytest.mark.parametrize(("frames", "count"), [(60, 20), (300, 290), (997, 3), (2000, 700)])
def test_kept_rows_and_bands_change_nothing(frames, count):
    """Against the same recursion over all states in plain NumPy, without band, block or second computation."""
    emissions = random_emissions(frames, 30, dtype=np.float64)
    labels = random_labels(count, 30)
    if frames - count < 50:
        labels = np.resize([1, 2, 3], count)  # no repeats: it fits
    tokens = np.array(states_of(labels))
    skip = np.append([False, False], (tokens[2:] != 0) & (tokens[2:] != tokens[:-2]))
    scores = np.where(np.arange(len(tokens)) < 2, emissions[0, tokens], -np.inf)
    steps = []
    for row in emissions[1:]:
        one = np.append(-np.inf, scores[:-1])
        two = np.where(skip, np.append([-np.inf, -np.inf], scores[:-2]), -np.inf)
        steps.append(np.argmax([scores, one, two], axis=0))
        scores = np.max([scores, one, two], axis=0) + row[tokens]
    path = [len(tokens) - 1 - int(scores[-2] > scores[-1])]
    for step in reversed(steps):
        path.append(path[-1] - int(step[path[-1]]))
    [found] = best_paths([emissions], [labels])
    assert found.score == scores[-2:].max()
    assert spans(found) == spans_of(path[::-1], labels)


# Batches


def test_rows_of_a_batch_are_the_rows_alone_and_padding_is_not_read():
    lengths, counts = [50, 0, 31, 80, 1], [20, 0, 7, 0, 1]
    batch = np.full((5, 80, 6), np.nan, dtype=np.float32)
    for number, length in enumerate(lengths):
        batch[number, :length] = random_emissions(length, 6, seed=number)
    labels = [random_labels(count, 6, seed=number) for number, count in enumerate(counts)]
    tensors = torch.from_numpy(batch), torch.tensor(lengths)
    together = ctc.align(*tensors, torch.from_numpy(np.concatenate(labels)), torch.tensor(counts))
    for number, (length, own) in enumerate(zip(lengths, labels, strict=True)):
        [alone] = best_paths([batch[number, :length]], [own])
        assert together[number] == spans(alone)
    assert [len(row) for row in together] == counts


def test_threads_change_nothing():
    emissions = [random_emissions(40 + n, 6, seed=n) for n in range(12)]
    labels = [random_labels(10, 6, seed=n) for n in range(12)]
    alone, together = best_paths(emissions, labels), best_paths(emissions, labels, threads=3)
    assert [spans(path) for path in alone] == [spans(path) for path in together]
    assert [path.score for path in alone] == [path.score for path in together]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_layouts_are_read_as_they_are(dtype):
    emissions = torch.from_numpy(random_emissions(30, 6)).to(dtype)
    labels = torch.from_numpy(random_labels(8, 6))
    strided = emissions.t().contiguous().t()[None].requires_grad_()
    found = ctc.align(strided, torch.tensor([30]), labels.int(), torch.tensor([8]))
    [expected] = best_paths([emissions.double().numpy()], [labels])
    assert found == [spans(expected)]


def test_nothing_to_align_is_empty():
    [path] = best_paths([np.zeros((0, 4), np.float32)], [[]])
    assert (path.score, spans(path)) == (0.0, [])
    [silence] = best_paths([np.full((3, 4), -2.0)], [[]])
    assert (silence.score, spans(silence)) == (-6.0, [])
    assert best_paths([], []) == []
    assert ctc.align(torch.zeros(0, 5, 4), *[torch.zeros(0, dtype=torch.int64)] * 3) == []


# What is wrong is told


GOOD = random_emissions(6, 4, dtype=np.float64)


def changed(frame, token, value):
    emissions = GOOD.copy()
    emissions[frame, token] = value
    return emissions


@pytest.mark.parametrize(
    ("emissions", "labels", "problem"),
    [
        (changed(3, 2, np.nan), [1], r"utterance 1: NaN or \+inf in the emissions of frame 3"),
        (changed(0, 3, np.inf), [1], r"utterance 1: NaN or \+inf in the emissions of frame 0"),
        (np.full((6, 4), np.nan), [1], r"utterance 1: NaN or \+inf in the emissions of frame 0"),
        (changed(2, slice(None), -np.inf), [1], "utterance 1: no path of its 1 labels has a probability above zero"),
        (changed(slice(None), 2, -np.inf), [1, 2], "no path of its 2 labels has a probability above zero"),
        (changed(4, 0, -np.inf), [], "no path of its 0 labels has a probability above zero"),
        (GOOD, [1, 0], r"utterance 1: label 0 is not one of 1 to 3 \(0 is the blank\)"),
        (GOOD, [-1], "label -1 is not one of 1 to 3"),
        (GOOD, [1, 4], "label 4 is not one of 1 to 3"),
        (GOOD, [[1]], r"labels must be whole numbers \(labels,\), not \(1, 1\) in int64"),
        (GOOD, [1.5], r"labels must be whole numbers \(labels,\), not \(1,\) in float64"),
        (GOOD, [1, 2, 3, 1, 2, 3, 1], "utterance 1: 6 frames cannot emit 7 labels, 7 are needed"),
        (GOOD, [1, 1, 1, 1], "6 frames cannot emit 4 labels, 7 are needed"),
        (GOOD[:0], [1], "0 frames cannot emit 1 labels, 1 are needed"),
        (GOOD[0], [1], r"emissions must be \(frames, tokens\) in float32 or float64, not \(4,\) in float64"),
        (GOOD.astype(np.int64), [1], r"not \(6, 4\) in int64"),
    ],
)
def test_what_cannot_be_aligned_is_one_line(emissions, labels, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        best_paths([GOOD, emissions], [[1], labels], threads=2)
    assert "\n" not in str(caught.value)


def test_a_token_of_zero_probability_that_no_path_needs_is_no_error():
    [path] = best_paths([changed(slice(None), 3, -np.inf)], [[1, 2]])
    assert math.isfinite(path.score)


@pytest.mark.parametrize(
    ("shape", "lengths", "targets", "counts", "problem"),
    [
        ((6, 4), [6], [1], [1], r"log_probs must be \(batch, frames, tokens\), not \(6, 4\)"),
        ((1, 6, 4), [6, 6], [1], [1], r"lengths must be \(1,\), not \(2,\)"),
        ((1, 6, 4), [6], [1], [[1]], r"target_lengths must be \(1,\), not \(1, 1\)"),
        ((2, 6, 4), [6, 7], [1, 1], [1, 1], "utterance 1: length 7 is not one of 0 to 6 frames"),
        ((1, 6, 4), [-1], [1], [1], "utterance 0: length -1 is not one of 0 to 6 frames"),
        ((1, 6, 4), [6], [1], [-1], "utterance 0: -1 labels"),
        ((1, 6, 4), [6], [1, 2], [1], r"targets must be \(1,\), the sum of target_lengths, not \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shape, lengths, targets, counts, problem):
    with pytest.raises(ValueError, match=problem):
        ctc.align(torch.zeros(shape), torch.tensor(lengths), torch.tensor(targets), torch.tensor(counts))


# The same without numba, and for an hour


FIGURES = """
import json, sys
import numpy as np
from asr import compiled
from asr.viterbi import best_paths

random = np.random.default_rng(0)
told = [compiled.AVAILABLE]
for dtype in (np.float32, np.float64):
    for frames, count in ((1, 1), (9, 4), (70, 30), (120, 9)):
        emissions = np.log(random.dirichlet(np.ones(7), frames)).astype(dtype)
        [path] = best_paths([emissions], [random.integers(1, 7, count)])
        peaks = [peak.hex() for peak in path.peaks.tolist()]
        told.append([path.score.hex(), path.starts.tolist(), path.ends.tolist(), peaks])
json.dump(told, sys.stdout)
"""


def test_compiled_and_plain_give_the_same_bits():
    def figures(**variables):
        done = subprocess.run(
            [sys.executable, "-c", FIGURES], env=os.environ | variables, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    (here, *mine), (there, *plain) = figures(NUMBA_DISABLE_JIT="0"), figures(NUMBA_DISABLE_JIT="1")
    assert (here, there) == (True, False)
    assert mine == plain


# Emissions with a spike every second frame, where a label is; so the true alignment is known.
LONG = """
import pathlib, re, resource, sys, time
import numpy as np
from asr.viterbi import best_paths

def peak():
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss of a new process begins with that of pytest, which started it
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

frames, count = map(int, sys.argv[1:])
random = np.random.default_rng(0)
labels = np.cumsum(random.integers(1, 28, count)) % 28 + 1  # no equal neighbours
places = np.sort(random.choice(frames, count, replace=False))
emissions = random.random((frames, 29), dtype=np.float32)
emissions -= 9
emissions[:, 0] = -0.5
emissions[places, labels] = -0.25
best_paths([emissions[:9]], [[]])  # what compiled code and its libraries take
before, begun = peak(), time.perf_counter()
[path] = best_paths([emissions], [labels])
print(peak() - before, time.perf_counter() - begun, float((path.starts == places).mean()))
"""


def growth(frames, count):
    """Megabytes that the peak of memory rises by in an alignment, and the share of labels found in their places."""
    command = [sys.executable, "-c", LONG, str(frames), str(count)]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    megabytes, _, right = map(float, done.stdout.split())
    return megabytes, right


def test_memory_stays_small():
    megabytes, right = growth(20_000, 8_000)
    assert right == 1.0
    assert megabytes < 20  # back-pointers of two bits would take 40 MB, of a byte 160


@pytest.mark.slow
def test_an_hour_takes_little_memory():
    megabytes, right = growth(90_000, 50_000)
    assert right == 1.0
    assert megabytes < 60  # back-pointers of two bits for the band would take 1,000 MB
