"""Time asr.score against jiwer on synthetic utterances, and measure how often its intervals hold the truth.

    python scripts/bench/score.py [--utterances 100000] [--out docs/results/score.json]

About 10 words an utterance from a vocabulary of 20,000 with Zipf's frequencies, about 10 % errors. Both sides
get the same lists and run in turn in this process; the best of the rounds counts. The counts must be equal.
Ours include the interval, jiwer has none.

Coverage: simulated speakers with 10 utterances of 8 words and an error rate each, drawn around 0.2 (beta(2,
8)); how often the interval over speakers holds 0.2, of 1,000 trials for each number of speakers.
"""

import argparse
import datetime
import json
import platform
import random
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

import asr.score


def main() -> None:
    """Print the figures, and write them where --out says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    figures = measure(*synthetic(options.utterances, options.seed), options.rounds)
    record = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("jiwer", "rapidfuzz", "numpy")}
        | {"python": platform.python_version()},
        "seed": options.seed,
        **figures,
        "coverage_by_speakers": {speakers: coverage(speakers) for speakers in (4, 6, 10, 20, 40)},
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def synthetic(utterances: int, seed: int) -> tuple[list[str], list[str]]:
    """References of 5 to 15 words, and hypotheses with 6 % substituted, 2 % deleted, 2 % inserted words."""
    draw = random.Random(seed)
    words = [f"word{number}" for number in range(20_000)]
    stream = iter(draw.choices(words, [1 / (rank + 1) for rank in range(len(words))], k=utterances * 20))
    references, hypotheses = [], []
    for _ in range(utterances):
        said = [next(stream) for _ in range(draw.randint(5, 15))]
        heard = []
        for word in said:
            chance = draw.random()
            heard += [] if chance < 0.02 else [draw.choice(words) if chance < 0.08 else word]
            heard += [draw.choice(words)] if draw.random() < 0.02 else []
        references.append(" ".join(said))
        hypotheses.append(" ".join(heard))
    return references, hypotheses


def measure(references: list[str], hypotheses: list[str], rounds: int) -> dict[str, Any]:
    """Seconds of each, best of the rounds, and the ratio."""
    ours, theirs, without = [], [], []
    for _ in range(rounds):
        seconds, score = timed(lambda: asr.score.score(references, hypotheses))
        ours.append(seconds)
        without.append(timed(lambda: asr.score.score(references, hypotheses, bootstrap=0))[0])
        seconds, other = timed(lambda: jiwer.process_words(references, hypotheses))
        theirs.append(seconds)
    if (score.substitutions, score.deletions, score.insertions) != (
        other.substitutions,
        other.deletions,
        other.insertions,
    ):
        raise SystemExit(f"counts differ: {score} and jiwer's {other.wer}")
    return {
        "score": score.to_json(),
        "asr_seconds": round(min(ours), 3),
        "asr_seconds_without_interval": round(min(without), 3),
        "jiwer_seconds_without_interval": round(min(theirs), 3),
        "ratio": round(min(ours) / min(theirs), 3),
    }


def coverage(speakers: int, trials: int = 1000) -> float:
    """The share of trials whose 95 % interval over speakers holds the true rate."""
    draw, covered = np.random.default_rng(speakers), 0
    groups = np.repeat(np.arange(speakers), 10).tolist()
    for _ in range(trials):
        errors = draw.binomial(8, np.repeat(draw.beta(2, 8, speakers), 10))
        heard = [" ".join("b" * error + "a" * (8 - error)) for error in errors]
        interval = asr.score.score(["a a a a a a a a"] * len(heard), heard, groups=groups).interval
        covered += interval is not None and interval[0] <= 0.2 <= interval[1]
    return covered / trials


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def hardware() -> str:
    """The processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
