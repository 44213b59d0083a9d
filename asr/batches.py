"""Batches by seconds of speech, in an order that is a pure function of (seed, epoch), and their collation.

Utterances of like length share a batch, so that little is padding; which ones exactly, and the order of the batches,
changes every epoch. Since the order follows from two integers alone, a run resumes in the middle of an epoch by
counting, and neither workers nor restarts can change it.
"""

import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import numpy as np
import torch

from asr.augment import generator

S = TypeVar("S")
T = TypeVar("T")

_JITTER = 0.15  # relative: how far an utterance may move among its neighbours in length


@dataclasses.dataclass(frozen=True)
class Batch:
    """Utterances together: features `(batch, frames, size)`, targets `(sum of target_lengths,)`, lengths `(batch,)`.

    `seconds` is the speech in it (padding excluded), `utterances` the ids in batch order.
    """

    utterances: list[str]
    features: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor
    seconds: float

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if field.type is torch.Tensor
        }
        return dataclasses.replace(self, **moved)


def order(durations: Sequence[float], seconds: float, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch as indices into `durations`; every utterance once.

    Args:
        durations: seconds of each utterance.
        seconds: the most seconds of a batch, padding included; a longer utterance is a batch of its own.
        seed: of the run.
        epoch: from 0; other epochs give other batches.
    """
    draw = generator(seed, epoch, "", "batches")
    jittered = np.asarray(durations) * draw.uniform(1 - _JITTER, 1 + _JITTER, len(durations))
    groups = by_length(durations, seconds, np.argsort(jittered, kind="stable"))
    return [groups[number] for number in draw.permutation(len(groups))]


def by_length(
    durations: Sequence[float], seconds: float, sequence: Sequence[int] | np.ndarray | None = None
) -> list[list[int]]:
    """Cut `sequence` (where absent: the utterances by length) into batches of at most `seconds`, padding included."""
    if sequence is None:
        sequence = np.argsort(np.asarray(durations), kind="stable")
    groups: list[list[int]] = []
    longest = 0.0
    for index in (int(number) for number in sequence):
        longest = max(longest, durations[index])
        if not groups or longest * (len(groups[-1]) + 1) > seconds:
            groups.append([])
            longest = durations[index]
        groups[-1].append(index)
    return groups


def deal(seconds: Sequence[float], shares: int) -> list[list[int]]:
    """Deal a batch out by seconds: the longest utterances first, each to the share that has the least so far.

    Args:
        seconds: of each utterance.
        shares: how many; no two differ by more seconds than the longest utterance has.

    Returns:
        The indices of each share, rising; each stands in one share. Shares are empty where utterances are fewer.
    """
    dealt: list[list[int]] = [[] for _ in range(shares)]
    loads = [0.0] * shares
    for index in sorted(range(len(seconds)), key=lambda index: -seconds[index]):
        least = loads.index(min(loads))
        dealt[least].append(index)
        loads[least] += seconds[index]
    return [sorted(share) for share in dealt]


def pad(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms `(samples,)` of any lengths as `(batch, samples)`, zeros behind each, and the lengths `(batch,)`."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    padded = torch.zeros(len(rows), max(map(len, rows), default=0))
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.from_numpy(row)
    return padded, lengths


def prefetch(make: Callable[[S], T], groups: Sequence[S], ahead: int = 2) -> Generator[T, None, None]:
    """Yield ``make(group)`` for each group in order, made by a thread that works up to `ahead` batches in advance.

    An exception in `make` is raised here, in its turn. The thread ends when the iterator is closed.
    """
    ready: queue.Queue[T | BaseException | None] = queue.Queue(ahead)
    stopped = threading.Event()

    def hand_over(item: T | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for group in groups:
                if stopped.is_set():
                    return
                hand_over(make(group))
            hand_over(None)
        except BaseException as error:
            hand_over(error)

    thread = threading.Thread(target=work, name="asr-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
