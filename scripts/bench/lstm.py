"""The LSTM layer on the CPU against torch.nn.LSTM: one bidirectional layer, ragged rows, ratios within one run.

    python scripts/bench/lstm.py --threads 1 2 --out docs/results/lstm_cpu.json

Three ways, in turn, so that what else the machine does meets them alike:

ours      asr.lstm.LSTM with lengths
packed    torch.nn.LSTM over a PackedSequence: what is correct today
padded    torch.nn.LSTM over the padded batch: WRONG for these rows (the backward direction begins in the padding)

A training step is forward and backward of the sum of the outputs; the input is as wide as the layer. A ratio is that
of the shortest times; the middle one of the rounds' own ratios stands beside it.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recipe import hardware
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asr.lstm import LSTM, explain

# units, rows, frames of the longest row, frames of the shortest as a share of that
SHAPES = [(256, 8, 200, 0.5), (256, 8, 800, 0.5), (256, 32, 200, 0.5), (512, 8, 200, 0.5), (256, 16, 200, 0.15)]


def main() -> None:
    """Measure all shapes, print a line each, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for shape in SHAPES:
            rows.append(measure(*shape, rounds=options.rounds) | {"threads": threads})
            print(line(rows[-1]), flush=True)
    record = {
        "command": "python " + " ".join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "torch": torch.__version__,
        "path": explain(LSTM(1, 1)),
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(hidden: int, batch: int, frames: int, shortest: float, rounds: int) -> dict[str, Any]:
    """One shape: seconds of every round and way, forward alone and a training step."""
    torch.manual_seed(0)
    ours, theirs = LSTM(hidden, hidden, bidirectional=True), nn.LSTM(hidden, hidden, bidirectional=True)
    theirs.load_state_dict(ours.state_dict())
    lengths = torch.randint(int(shortest * frames), frames + 1, (batch,))
    lengths[0] = frames
    padded = torch.randn(frames, batch, hidden)

    def packed() -> Tensor:
        return pad_packed_sequence(theirs(pack_padded_sequence(padded, lengths, enforce_sorted=False))[0])[0]

    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(padded, lengths=lengths)[0],
        "packed": packed,
        "padded": lambda: theirs(padded)[0],
    }
    torch.testing.assert_close(ways["ours"](), packed())
    seconds: dict[str, dict[str, list[float]]] = {"forward": {}, "training": {}}
    for kind, times in seconds.items():
        for _ in range(max(3, rounds // (1 + frames // 400))):
            for name, run in ways.items():
                times.setdefault(name, []).append(timed(run, kind == "training"))
    return {
        "hidden": hidden,
        "batch": batch,
        "frames": frames,
        "valid": float(lengths.sum()) / (batch * frames),
        "seconds": seconds,
        "ratios": {
            f"{kind}, {other} / ours": {
                "shortest": min(times[other]) / min(times["ours"]),
                "median": statistics.median(a / b for a, b in zip(times[other], times["ours"], strict=True)),
            }
            for kind, times in seconds.items()
            for other in ("packed", "padded")
        },
    }


def timed(run: Callable[[], Tensor], training: bool) -> float:
    """Seconds of a forward, or of forward and backward."""
    begun = time.perf_counter()
    if training:
        run().sum().backward()
    else:
        with torch.no_grad():
            run()
    return time.perf_counter() - begun


def line(row: dict[str, Any]) -> str:
    """A shape in a line: milliseconds of ours, and the ratios."""
    shape = f"H={row['hidden']} B={row['batch']} T={row['frames']} {row['valid']:.0%} valid, {row['threads']} threads"
    texts = [shape.replace("1 threads", "1 thread")]
    for kind, times in row["seconds"].items():
        ratios = " ".join(
            f"{other} {row['ratios'][f'{kind}, {other} / ours']['shortest']:.2f}x" for other in ("packed", "padded")
        )
        texts.append(f"{kind} {1000 * min(times['ours']):.0f} ms: {ratios}")
    return "; ".join(texts)


if __name__ == "__main__":
    main()
