"""Seconds of speech a second: two processes on two cores against one process on one, in turn on the same machine.

    python scripts/bench/processes.py [--rounds 3] [--out docs/results/processes.json] [recipe=an4 key=value ...]

As many cores as processes are used (the thread that makes the batches included), and each process keeps its
`data.batch_seconds`: two take steps of twice the speech. A round is a run of one process and a run of two; the figures
are those that a run writes to its metrics (training and waiting, the dev set apart) of the second epoch (the first also
reads the recordings). The ratio is a round's. Other work on the machine falsifies it: see `load_before`.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from recipe import hardware


def main() -> None:
    """Print the rounds and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", default=["recipe=an4"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    rounds = []
    for number in range(1, options.rounds + 1):
        load = os.getloadavg()[0]
        one, two = (speech_a_second(processes, options.overrides) for processes in (1, 2))
        rounds.append({"load_before": round(load, 2), "one": one, "two": two, "ratio": two / one})
        print(f"round {number}: one {one:.1f}, two {two:.1f}, ratio {two / one:.2f}, load before {load:.2f}")
    record = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": f"{hardware()}, one thread a process",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "unit": "seconds of speech a second of training and waiting for data",
        "rounds": rounds,
        "ratio": {
            "median": statistics.median(turn["ratio"] for turn in rounds),
            "least": min(turn["ratio"] for turn in rounds),
            "most": max(turn["ratio"] for turn in rounds),
        },
    }
    print(json.dumps(record["ratio"]))
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def speech_a_second(processes: int, overrides: list[str]) -> float:
    """Train with so many processes; the speed in the second epoch."""
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        own = ["threads=1", "device=cpu", f"out={folder}", "name=bench", "training.epochs=2"]
        settings = os.environ | {"OMP_NUM_THREADS": "1"}
        cores = sorted(os.sched_getaffinity(0))[:processes]
        done = subprocess.run(
            ["taskset", "-c", ",".join(map(str, cores)), *start, "-m", "asr.train", *overrides, *own],
            env=settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{processes} processes: {done.stderr}")
        [path] = Path(folder).glob("*/bench/metrics.jsonl")
        epochs = [json.loads(line)["timing"] for line in path.read_text(encoding="utf-8").splitlines()][1:]
        speech = sum(epoch["speech_seconds"] for epoch in epochs)
        return float(speech / sum(epoch["training_seconds"] + epoch["waiting_seconds"] for epoch in epochs))


if __name__ == "__main__":
    main()
