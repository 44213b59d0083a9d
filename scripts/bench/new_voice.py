"""What a few minutes of a new voice do for a model that never heard it (`init_from`), on fsdd.

    python scripts/bench/recipe.py fsdd --leave-out data/fsdd --out docs/results/fsdd_speakers.json
    python scripts/bench/new_voice.py data/fsdd runs/fsdd --speakers lucas --out docs/results/fsdd_new_voice.json

The first command trains a model without each speaker. Here each of them goes on with takes 8 to 28 of every digit of
the speaker left out (210 recordings), dev takes 5 to 7, and hears takes 0 to 4 and 29 to 49 (260 recordings): before,
after, and against a model trained on the 210 alone. The other speakers' test takes tell what was forgotten.
"""

import argparse
import datetime
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipe import hardware, training_seconds

from asr import manifest

ADAPT = ["optim.lr=0.001", "training.epochs=20"]  # a quarter of the recipe's rate, half of its epochs; not tuned


def main() -> None:
    """Train, evaluate, write; print a line a speaker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder with without_SPEAKER/ manifests")
    parser.add_argument("runs", type=Path, help="folder with the runs without_SPEAKER")
    parser.add_argument("--speakers", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for speaker in options.speakers:
        rows.append(measure(options.corpus, options.runs, speaker))
        record = {
            "command": "python " + shlex.join(sys.argv),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": hardware(),
            "speakers": rows,
        }
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        told = {key: f"{100 * one['wer']['rate']:.1f} %" for key, one in rows[-1]["heard"].items()}
        print(speaker, told, flush=True)


def measure(corpus: Path, runs: Path, speaker: str) -> dict[str, Any]:
    """The error rates of the three models."""
    data = split(corpus, speaker)
    base = runs / f"without_{speaker}" / "model.safetensors"
    sets = [f"data.{name}={data / name}.jsonl" for name in ("train", "dev", "test")]
    went_on = train(f"new_voice_{speaker}", [*sets, f"init_from={base}", *ADAPT])
    alone = train(f"new_voice_{speaker}_alone", sets)
    others = data / "others.jsonl"
    return {
        "speaker": speaker,
        "minutes": round(sum(one.duration or 0 for one in manifest.read(data / "train.jsonl")) / 60, 2),
        "training": {"with": went_on["command"], "alone": alone["command"]},
        "training_minutes": {"with": went_on["minutes"], "alone": alone["minutes"]},
        "heard": {
            "before": evaluate(base, data / "test.jsonl"),
            "after": evaluate(went_on["model"], data / "test.jsonl"),
            "alone": evaluate(alone["model"], data / "test.jsonl"),
            "others before": evaluate(base, others),
            "others after": evaluate(went_on["model"], others),
        },
    }


def split(corpus: Path, speaker: str) -> Path:
    """Manifests of the new voice, and of the other speakers' test takes."""
    folder = corpus / f"new_voice_{speaker}"
    folder.mkdir(exist_ok=True)
    voice = manifest.read(corpus / f"without_{speaker}" / "test.jsonl")
    left_out = {one.id for one in manifest.read(corpus / "test.jsonl")} - {one.id for one in voice}
    everything = [one for name in ("train", "dev", "test") for one in manifest.read(corpus / f"{name}.jsonl")]
    own = [one for one in everything if one.speaker == speaker]
    take = {one.id: int(one.id.rsplit("_", 1)[1]) for one in own}
    manifest.write(folder / "train.jsonl", [one for one in own if 8 <= take[one.id] <= 28])
    manifest.write(folder / "dev.jsonl", [one for one in own if 5 <= take[one.id] <= 7])
    manifest.write(folder / "test.jsonl", [one for one in own if take[one.id] <= 4 or take[one.id] >= 29])
    manifest.write(folder / "others.jsonl", [one for one in everything if one.id in left_out])
    return folder


def train(name: str, overrides: list[str]) -> dict[str, Any]:
    """A run of the recipe, where it is not finished yet."""
    folder = Path("runs/fsdd") / name
    command = [sys.executable, "-m", "asr.cli", "train", "recipe=fsdd", f"name={name}", *overrides]
    if not (folder / "result.json").exists():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {
        "command": "asr " + shlex.join(command[3:]),
        "minutes": round(training_seconds(folder) / 60, 1),
        "model": folder / "model.safetensors",
    }


def evaluate(model: Path, path: Path) -> dict[str, Any]:
    """Greedy decoding of a manifest."""
    command = [sys.executable, "-m", "asr.cli", "evaluate", "-q", "-m", str(model), "--manifest", str(path), "--json"]
    found: dict[str, Any] = json.loads(subprocess.check_output(command))
    return found


if __name__ == "__main__":
    main()
