"""How much faster than `torch.nn.LSTM` packed a training step could be, if it were matrix products and nothing else.

    python scripts/bench/lstm_bound.py --out docs/results/lstm_bound.json

A bidirectional layer over ragged rows needs, whoever computes it, for each direction: the input's product, its gradient
and both weight gradients (four large products over all valid frames), and two small products a step, forward and back.
Here they are timed alone, by torch, into memory that is there already, beside the whole step of `torch.nn.LSTM` on
packed rows. `bound` is the ratio; `bound_at_best_rate` the one if the small products ran at the rate of the large ones.
"""

import argparse
import datetime
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recipe import hardware

SHAPES = ((256, 8, 200), (256, 8, 800), (256, 32, 200), (512, 8, 200))  # units, rows, frames


def main() -> None:
    """Measure every shape; print a line each and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for units, batch, frames in SHAPES:
        rows.append(measure(units, batch, frames, options.rounds))
        print(json.dumps(rows[-1]), flush=True)
    record = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "torch": torch.__version__,
        "threads": 1,
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(units: int, batch: int, frames: int, rounds: int) -> dict[str, Any]:
    """Best CPU times of the packed step and of its products, taken in turn."""
    torch.manual_seed(0)
    lengths = torch.linspace(frames / 2, frames, batch).long().flip(0)
    valid = int(lengths.sum())
    alive = [int((lengths > step).sum()) for step in range(frames)]
    work = [packed_step(units, lengths, frames), large_products(units, valid), small_products(units, batch, alive)]
    times = [[clock(one) for one in work] for _ in range(rounds)]
    packed, large, small = (min(column) for column in zip(*times, strict=True))
    large_rate = 2 * 4 * 2 * valid * units * 4 * units / large
    small_rate = 2 * 2 * 2 * valid * units * 4 * units / small
    return {
        "shape": [units, batch, frames],
        "packed_ms": 1e3 * packed,
        "large_products_ms": 1e3 * large,
        "small_products_ms": 1e3 * small,
        "large_gflops": large_rate / 1e9,
        "small_gflops": small_rate / 1e9,
        "bound": packed / (large + small),
        "bound_at_best_rate": packed / (large + small * small_rate / large_rate),
    }


def packed_step(units: int, lengths: torch.Tensor, frames: int) -> Callable[[], None]:
    """Forward and backward of `torch.nn.LSTM` on packed rows, as people write it."""
    layer = torch.nn.LSTM(units, units, bidirectional=True, batch_first=True)
    rows = torch.randn(len(lengths), frames, units)

    def step() -> None:
        output, _ = layer(torch.nn.utils.rnn.pack_padded_sequence(rows, lengths, batch_first=True))
        output.data.sum().backward()

    return step


def large_products(units: int, valid: int) -> Callable[[], None]:
    """Of both directions, over all valid frames at once."""
    inputs, states, gates = torch.randn(valid, units), torch.randn(valid, units), torch.randn(valid, 4 * units)
    weights, back = torch.randn(units, 4 * units), torch.randn(4 * units, units)

    def step() -> None:
        for _ in range(2):
            _ = inputs @ weights, gates @ back, inputs.t() @ gates, states.t() @ gates

    return step


def small_products(units: int, batch: int, alive: list[int]) -> Callable[[], None]:
    """Of both directions, one a frame forward and one back, with the rows that are still alive."""
    weights, back = torch.randn(units, 4 * units), torch.randn(4 * units, units)
    states, gates = torch.randn(batch, units), torch.randn(batch, 4 * units)
    forward, backward = torch.empty(batch, 4 * units), torch.empty(batch, units)

    def step() -> None:
        for _ in range(2):
            for rows in alive:
                torch.mm(states[:rows], weights, out=forward[:rows])
            for rows in alive:
                torch.mm(gates[:rows], back, out=backward[:rows])

    return step


def clock(work: Callable[[], None]) -> float:
    """Seconds of this thread's CPU time."""
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


if __name__ == "__main__":
    main()
