import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr import batches

DURATIONS = st.lists(st.floats(0.05, 20), min_size=1, max_size=60)


@given(DURATIONS, st.floats(1, 40), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_has_every_utterance_once_in_batches_no_longer_than_asked(durations, seconds, seed, epoch):
    groups = batches.order(durations, seconds, seed, epoch)
    assert sorted(index for group in groups for index in group) == list(range(len(durations)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(durations[index] for index in group) <= seconds


def test_the_order_is_a_function_of_seed_and_epoch():
    durations = np.linspace(0.5, 9, 200).tolist()
    assert batches.order(durations, 60, 1, 2) == batches.order(durations, 60, 1, 2)
    assert batches.order(durations, 60, 1, 2) != batches.order(durations, 60, 1, 3)
    assert batches.order(durations, 60, 1, 2) != batches.order(durations, 60, 2, 2)


def test_little_of_a_batch_is_padding():
    durations = np.random.default_rng(0).uniform(0.5, 10, 1000).tolist()
    groups = batches.order(durations, 100, 0, 0)
    padded = sum(len(group) * max(durations[index] for index in group) for group in groups)
    assert sum(durations) / padded > 0.8


def test_sorted_batches_go_from_short_to_long():
    assert batches.by_length([3.0, 1.0, 2.0, 9.0], 6) == [[1, 2], [0], [3]]


def test_padding_is_zero_and_lengths_are_the_rows_own():
    padded, lengths = batches.pad([np.ones(3, np.float32), np.ones(1, np.float32)])
    assert padded.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert lengths.tolist() == [3, 1]


def test_prefetched_batches_come_in_order():
    def make(group):
        time.sleep(0.01 * (group[0] % 3))
        return group[0]

    assert list(batches.prefetch(make, [[n] for n in range(20)])) == list(range(20))


def test_an_error_in_making_a_batch_is_raised_in_its_turn():
    def make(group):
        if group == [2]:
            raise ValueError("bad batch")
        return group

    got = []
    with pytest.raises(ValueError, match="bad batch"):
        for item in batches.prefetch(make, [[0], [1], [2], [3]]):
            got.append(item)
    assert got == [[0], [1]]


def test_the_thread_ends_with_the_iterator():
    before = threading.active_count()
    iterator = batches.prefetch(lambda group: group, [[n] for n in range(1000)])
    next(iterator)
    iterator.close()
    assert threading.active_count() == before


def test_a_batch_moves_to_a_device_with_all_its_tensors():
    one = torch.ones(1, dtype=torch.int64)
    batch = batches.Batch(["a"], torch.ones(1, 1, 1), one, one, one, 1.0).to(torch.device("meta"))
    tensors = (batch.features, batch.lengths, batch.targets, batch.target_lengths)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.utterances == ["a"]
