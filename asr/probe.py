"""The longest batch of a run, tried before the first step: memory that does not suffice shows at once, not hours later.

Nothing of the trial stays: gradients are dropped and torch's random state is put back, so that a run's numbers are the
same with it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import torch

from asr.errors import AsrError
from asr.examples import Row
from asr.run import Run


@dataclasses.dataclass(frozen=True)
class Plan:
    """The batches of a run: how many each epoch has, and the one of most seconds, padding included, with its epoch."""

    counts: list[int]
    longest: list[Row]
    epoch: int


def plan(run: Run) -> Plan:
    """Look at the batches of all epochs."""
    counts, longest, of_epoch = [], list[Row](), 0
    for epoch in range(run.config.training.epochs):
        groups = run.groups(epoch)
        counts.append(len(groups))
        first = max(groups, key=lambda group: _padded(run, group))
        if _padded(run, first) > _padded(run, longest):
            longest, of_epoch = first, epoch
    return Plan(counts, longest, of_epoch)


def try_longest(run: Run, longest: list[Row], epoch: int) -> str:
    """Go forward and backward over (this process's share of) the longest batch, and forget it.

    Returns:
        A line with what it took.

    Raises:
        AsrError: memory does not suffice; the line names the setting to lower.
    """
    rows = max((part for parts in run.deal(longest) for part in parts), key=lambda part: _padded(run, part))
    seconds, begun, on_gpu = _padded(run, rows), time.monotonic(), run.device.type == "cuda"
    run.model.train()
    with torch.random.fork_rng([run.device] if on_gpu else []):
        with run.team.together(), memory_told(run, f"the longest batch ({seconds:.1f} s with padding)", len(rows) == 1):
            moments = [torch.empty_like(p) for p in run.model.parameters() for _ in "mv"]  # AdamW's come with its step
            _back_and_forth(run, rows, epoch, is_exchanged=False)
            took = [f"{time.monotonic() - begun:.1f} s"]
            if on_gpu:
                took.append(f"{torch.cuda.max_memory_allocated(run.device) / 2**30:.1f} of {_gigabytes(run):.0f} GiB")
            del moments
        if run.team.size > 1:  # DistributedDataParallel orders its sums by what it sees first; be that always the same
            _back_and_forth(run, longest[:1], epoch, is_exchanged=True)
    return f"the longest batch, {seconds:.1f} s with padding, was tried first and took {', '.join(took)}"


@contextlib.contextmanager
def memory_told(run: Run, what: str, is_single: bool = False) -> Iterator[None]:
    """Turn torch's errors of memory into the line that says which setting to lower. Raises AsrError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        key = "max_seconds" if is_single else "batch_seconds"
        value = getattr(run.config.data, key)
        raise AsrError(f"not enough memory for {what} on {run.device}; lower data.{key} (now {value:g})") from error


def _back_and_forth(run: Run, rows: list[Row], epoch: int, is_exchanged: bool) -> None:
    """Loss and gradients of a batch; the gradients are dropped."""
    batch = run.train.batch(rows, epoch).to(run.device)
    with run.team.summing(run.network, is_exchanged):
        losses, _, _ = run.losses(batch)
        losses.sum().backward()
    float(losses.detach().sum())  # on a GPU: until it is done
    run.optimizer.zero_grad(set_to_none=True)


def _padded(run: Run, rows: list[Row]) -> float:
    """Seconds of a batch, padding included."""
    return len(rows) * max((run.train.seconds(row) for row in rows), default=0.0)


def _gigabytes(run: Run) -> float:
    return torch.cuda.get_device_properties(run.device).total_memory / 2**30
