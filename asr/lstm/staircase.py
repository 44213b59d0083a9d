"""The staircase: rows sorted by length, time cut where rows end, so that padding is hardly ever computed.

Each cut costs a call; `steps` weighs that against the padding that it saves.
"""

import dataclasses
import itertools

import torch
from torch import Tensor

_CALL = 40  # a further call costs about as much as so many frames of one row (measured: 30 at 256 units, 50 at 512)
_MOST_ENDS = 64  # lengths looked at as places to cut


@dataclasses.dataclass(frozen=True)
class Step:
    """The first `rows` rows from frame `start` to frame `end`."""

    start: int
    end: int
    rows: int


def steps(lengths: list[int]) -> list[Step]:
    """The cheapest steps for rows of these lengths, the longest first; rows of no frames are in none."""
    ends = sorted({length for length in lengths if length})
    if len(ends) > _MOST_ENDS:
        ends = [ends[-1 - (number * len(ends)) // _MOST_ENDS] for number in range(_MOST_ENDS)][::-1]
    alive = [sum(length > start for length in lengths) for start in (0, *ends)]
    cost, came_from = [0.0], [0]
    for number, end in enumerate(ends, 1):
        ways = [cost[i] + _CALL + (end - (ends[i - 1] if i else 0)) * alive[i] for i in range(number)]
        cost.append(min(ways))
        came_from.append(ways.index(cost[-1]))
    found: list[Step] = []
    number = len(ends)
    while number:
        i = came_from[number]
        found.append(Step(ends[i - 1] if i else 0, ends[number - 1], alive[i]))
        number = i
    return found[::-1]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a ragged batch is run: rows in `order`, `steps` over them, `lengths (batch,)` in that order.

    `frozen` says that some row ends within a step: its state has to stand still to the step's end.
    """

    order: Tensor | None
    lengths: Tensor
    steps: list[Step]
    frozen: bool

    @property
    def end(self) -> int:
        """Frames of the longest row."""
        return self.steps[-1].end if self.steps else 0


def plan(lengths: Tensor, frames: int, look: bool) -> Plan:
    """The plan for rows of `lengths (batch,)` in a batch of so many frames.

    Args:
        lengths: of the rows.
        frames: of the longest that may be.
        look: whether to read the lengths (not on a GPU, which that would stall, and not in a compiler): without, all
            rows run to the end.
    """
    if not look:
        return Plan(None, lengths, [Step(0, frames, lengths.shape[0])], True)
    known = lengths.tolist()
    order = None
    if any(a < b for a, b in itertools.pairwise(known)):
        lengths, order = torch.sort(lengths, descending=True, stable=True)
        known = lengths.tolist()
    found = steps(known)
    ends = {step.end for step in found}
    return Plan(order, lengths, found, any(length and length not in ends for length in known))
