"""Time a training epoch against the bare work on the same batches: what loading, features and counting cost.

    python scripts/bench/epoch.py recipe=fsdd [key=value ...] [--rounds 3] [--out docs/results/epoch.json]

An epoch is `asr.train.train_epoch`: reading, augmentation, features, loss, gradient, optimiser, counts; dev decoding is
apart. The bare work is forward, backward and optimiser step on the very batches of that epoch, made before and held in
memory. Both run in turn in this process; throughput is seconds of speech a second, the ratio that of the medians.
"""

import argparse
import datetime
import json
import math
import platform
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from asr import config, optim, train
from asr.progress import Clock
from asr.run import Position, Run
from asr.run_folder import RunFolder


def main() -> None:
    """Print both throughputs and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="+", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    recipe = next(item.removeprefix("recipe=") for item in options.overrides if item.startswith("recipe="))
    settings = config.load(recipe, [item for item in options.overrides if not item.startswith("recipe=")])
    run = Run(settings, print)
    epoch(run, settings, Position())  # decodes every file into the cache
    whole, bare = [], []
    for number in range(1, options.rounds + 1):
        whole.append(epoch(run, settings, Position(epoch=number)))
        bare.append(bare_epoch(run, settings, number))
        print(f"round {number}: epoch {whole[-1]:.1f} s, bare work {bare[-1]:.1f} s")
    speech = sum(example.seconds for example in run.train.examples)
    record = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "recipe": recipe,
        "epoch_seconds": whole,
        "bare_seconds": bare,
        "epoch_times_real_time": speech / statistics.median(whole),
        "bare_times_real_time": speech / statistics.median(bare),
        "ratio": statistics.median(bare) / statistics.median(whole),
    }
    print(json.dumps(record, indent=2))
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def epoch(run: Run, settings: config.Config, position: Position) -> float:
    """Seconds of one epoch of training, as it is."""
    with tempfile.TemporaryDirectory() as folder:
        runs = RunFolder(Path(folder) / "run", settings, lambda line: None)
        clock = Clock(begun_at=position.epoch)
        begun = time.perf_counter()
        for _ in train.train_epoch(run, position, 1000, runs, clock, lambda: None):
            pass
        return time.perf_counter() - begun


def bare_epoch(run: Run, settings: config.Config, number: int) -> float:
    """Seconds of forward, backward and step on the same batches from memory."""
    held = [run.train.batch(group, number).to(run.device) for group in run.groups(number)]
    run.model.train()
    begun = time.perf_counter()
    for step, batch in enumerate(held):
        losses, _, _ = run.losses(batch)
        (losses.sum() / max(1, len(batch.targets))).backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), settings.optim.clip or math.inf)
        run.optimizer.step()
        if settings.optim.average:
            optim.update_average(run.averaged, run.model, settings.optim.average, step + 1)
        run.optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
