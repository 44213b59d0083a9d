"""Several processes train one model: who they are, what they tell each other, and how the end of one ends all.

``torchrun`` starts the processes and tells each its number (``RANK``, of ``WORLD_SIZE``). Gradients are summed by
torch's DistributedDataParallel (NCCL between GPUs, gloo between CPUs). Whatever else the processes have to tell each
other is JSON and goes over gloo; each of these exchanges is one that all processes come to. A team of one process
exchanges nothing: what is told comes back as it is. How a run is shared out stands in ``docs/distributed.md``.
"""

import contextlib
import dataclasses
import datetime
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from asr.errors import AsrError, InputError

T = TypeVar("T")
State = tuple[dict[str, Tensor], dict[str, Any]]  # of a run: tensors by name, and JSON

_LONGEST_WAIT = datetime.timedelta(minutes=10)  # for another process, before its silence is an error
_SHORT = 504  # bytes of an exchange that need no second one


class ToldElsewhere(AsrError):
    """Another process failed, or was stopped, and tells it: this one ends with the same status and says nothing."""


@dataclasses.dataclass(frozen=True)
class Team:
    """This process among those of a run: number `rank` of `size`, number `local` on its machine, all from 0."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The setting `device` for this process: of several on a machine each gets a GPU of its own.

        Raises:
            InputError: several processes would share a GPU (status 2).
        """
        if self.size == 1 or name == "cpu" or not torch.cuda.is_available():
            return name
        if name.startswith("cuda:"):
            raise InputError(
                f"device={name}: one GPU for {self.size} processes; device=auto gives each its own", status=2
            )
        if self.local >= torch.cuda.device_count():
            raise InputError(
                f"more processes than the {torch.cuda.device_count()} GPUs here; lower --nproc-per-node, or device=cpu",
                status=2,
            )
        return f"cuda:{self.local}"

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to train with: `model`, its gradients averaged over the processes where there are several."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        devices = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def summing(self, network: nn.Module, now: bool) -> contextlib.AbstractContextManager[None]:
        """Where forward and backward run: gradients meet those of the other processes only where `now`."""
        if now or not isinstance(network, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return network.no_sync()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank. A value is JSON (floats come back as the same floats)."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        heads = self._exchange(len(text).to_bytes(8, "big") + text[:_SHORT], 8 + _SHORT)
        lengths = [int.from_bytes(head[:8], "big") for head in heads]
        rest = max(lengths) - _SHORT
        rests = self._exchange(text[_SHORT:], rest) if rest > 0 else [b""] * self.size
        texts = ((head[8:] + more)[:length] for head, more, length in zip(heads, rests, lengths, strict=True))
        return [json.loads(text) for text in texts]

    def share(self, value: Any) -> Any:
        """The first process's value."""
        return self.gather(value if self.is_first else None)[0]

    def share_state(self, state: State | None) -> State | None:
        """The first process's state, on the CPU."""
        if self.size == 1:
            return state
        tensors, values = state or ({}, None)
        outline = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
        outline, values = self.share([outline, values])
        if values is None:
            return None
        received = {}
        for name, dtype, shape in outline:
            received[name] = (
                tensors[name].contiguous() if self.is_first else torch.empty(shape, dtype=getattr(torch, dtype))
            )
            distributed.broadcast(received[name], 0)
        return received, values

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block, without exchanges in it, in all processes; an AsrError of one ends it in all.

        Raises:
            AsrError: the block's own, in the first of the processes that it failed in.
            ToldElsewhere: in all others.
        """
        if self.size == 1:
            yield
            return
        failure: AsrError | None = None
        try:
            yield
        except AsrError as error:
            failure = error
        statuses = self.gather(failure and failure.status)
        failed = [rank for rank, status in enumerate(statuses) if status is not None]
        if failed:
            self.part()
        if failed and failed[0] != self.rank:
            raise ToldElsewhere(f"told by process {failed[0]}", statuses[failed[0]])
        if failure:
            raise failure

    def side_by_side(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items` (none is None), of which every process has as many; an AsrError in making one ends all."""
        iterator = iter(items)
        while True:
            with self.together():
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def part(self) -> None:
        """The last exchange: none leaves, and closes its connections, before all have read what was said till now."""
        with contextlib.suppress(RuntimeError):  # who comes last may find the others gone already
            self._exchange(b"", 1)

    def check_same(self, value: Any, what: str) -> None:
        """Raise InputError (status 2) in all processes where `value`, JSON, is not the same in all of them."""
        values = self.gather(value)
        with self.together():
            if self.is_first and any(other != values[0] for other in values):
                raise InputError(f"the processes differ in {what}; start all of them alike", status=2)

    def _exchange(self, content: bytes, size: int) -> list[bytes]:
        """`content` of every process, zeros behind it to `size` bytes."""
        sent = torch.frombuffer(bytearray(content.ljust(size, b"\0")), dtype=torch.uint8)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        distributed.all_gather(received, sent)
        return [tensor.numpy().tobytes() for tensor in received]


def is_one_of_many() -> bool:
    """Whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


@contextlib.contextmanager
def joined() -> Iterator[Team]:
    """Meet the other processes that torchrun started.

    Raises:
        InputError: this process was told that it is one of several, but not which (status 2).
        AsrError: another process is gone, or silent for ten minutes.
    """
    if not is_one_of_many():
        yield Team()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {missing[0]} is not set; "
            "start with torchrun --nproc-per-node N -m asr.train ..., or unset WORLD_SIZE",
            status=2,
        )
    if wrong := [f"{name}={value}" for name, value in _numbers() if not value.isdecimal()]:
        raise InputError(f"{wrong[0]}: not a whole number; start with torchrun --nproc-per-node N", status=2)
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available() and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=_LONGEST_WAIT)
        team = Team(distributed.get_rank(), distributed.get_world_size(), local)
        yield team
        team.part()
        distributed.destroy_process_group()
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise AsrError(
            f"process {os.environ['RANK']}: another process of this run is gone, or silent for ten minutes; "
            "the last state is whole: run the same command to go on"
        ) from error


def _numbers() -> list[tuple[str, str]]:
    """What torchrun tells in numbers."""
    return [(name, os.environ[name]) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")]


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error says that another process can't be reached."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
