"""Measure a recipe: train it with several seeds, or leaving each speaker out, evaluate each, keep the raw output.

    python scripts/bench/recipe.py fsdd --seeds 1 2 3 --out docs/results/fsdd.json
    python scripts/bench/recipe.py fsdd --leave-out data/fsdd --out docs/results/fsdd_speakers.json
    python scripts/bench/recipe.py fsdd --leave-out data/fsdd --out docs/results/fsdd_speakers_plain.json augment=none

Each run is `asr train` and `asr evaluate` as a user types them. A run that is finished is not trained again, one that
was stopped goes on: the same command continues after an interruption, and writes its file after every run.
"""

import argparse
import datetime
import json
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from asr import config


def main() -> None:
    """Train, evaluate, write; print a line a run and the mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--leave-out", type=Path, metavar="CORPUS", help="folder with without_SPEAKER/ manifests")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_intermixed_args()
    runs: list[dict[str, Any]] = []
    for name, overrides in jobs(options):
        runs.append(measure(options.recipe, name, [*overrides, *options.overrides]))
        rates = [run["evaluation"]["wer"]["rate"] for run in runs]
        record = {
            "command": "python " + shlex.join(sys.argv),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": hardware(),
            "wer_mean": statistics.mean(rates),
            "wer_spread": [min(rates), max(rates)],
            "runs": runs,
        }
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(
            f"{name}: WER {100 * rates[-1]:.2f} %, mean so far {100 * statistics.mean(rates):.2f} %",
            flush=True,
        )


def jobs(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Name and overrides of every run."""
    marked = "_".join(item.replace("=", "-").replace("/", "-") for item in options.overrides)
    suffix = f"_{marked}" if marked else ""
    if options.leave_out is None:
        return [(f"seed{seed}{suffix}", [f"seed={seed}"]) for seed in options.seeds]
    folders = sorted(options.leave_out.glob("without_*"))
    return [
        (
            f"{folder.name}{suffix}",
            [f"data.{split}={folder / split}.jsonl" for split in ("train", "dev", "test")],
        )
        for folder in folders
    ]


def measure(recipe: str, name: str, overrides: list[str]) -> dict[str, Any]:
    """Train one run to its end, where it is not there yet, and evaluate its best model on the test set."""
    asr = [sys.executable, "-m", "asr.cli"]
    folder = Path("runs") / recipe / name
    command = [*asr, "train", f"recipe={recipe}", f"name={name}", *overrides]
    if (folder / "result.json").exists():
        done, wanted = config.load(str(folder / "config.yaml"), []), config.load(recipe, command[5:])
        if done != wanted:
            sys.exit(f"{folder}: was trained with other settings than {recipe} has now; move it away")
    else:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    settings = json.loads(subprocess.check_output([*asr, "info", "--json", str(folder / "model.safetensors")]))
    test = settings["training"]["settings"]["data"]["test"]
    evaluate = [*asr, "evaluate", "-q", "-m", str(folder / "model.safetensors"), "--manifest", test, "--json"]
    evaluation = json.loads(subprocess.check_output(evaluate))
    return {
        "train": "asr " + shlex.join(command[3:]),
        "evaluate": "asr " + shlex.join(evaluate[3:]),
        "minutes": round(training_seconds(folder) / 60, 1),
        "parameters": settings["training"]["parameters"],
        "result": json.loads((folder / "result.json").read_text())["dev"],
        "evaluation": evaluation,
    }


def training_seconds(folder: Path) -> float:
    """How long the epochs of a run took, dev sets included, however often it was stopped."""
    timings = [json.loads(line)["timing"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return sum(one["training_seconds"] + one["waiting_seconds"] + one["dev_seconds"] for one in timings)


def hardware() -> str:
    """The processor, and how many of it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()


if __name__ == "__main__":
    main()
