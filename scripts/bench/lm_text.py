"""Train n-gram models on the books, and measure time, memory and perplexity on two books that were held out.

    python scripts/bench/lm_text.py BOOKS.txt.gz [--held-out 12792] [--out docs/results/lm_text.json]

Each command runs in a process of its own: `asr lm train`, then `asr lm perplexity` twice, the first of which parses the
ARPA file and keeps its tables. `load_seconds` is what `NGram.load` takes in a process that has imported it.
"""

import argparse
import datetime
import gzip
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SETTINGS = {
    "3-gram": [],
    "3-gram, pruned": ["--prune", "0", "0", "1"],
    "3-gram, words seen twice": ["--min-count", "2"],
    "4-gram, pruned": ["--order", "4", "--prune", "0", "0", "1"],
    "characters, 6-gram": ["--unit", "character", "--order", "6", "--discount-fallback"],
}
LOAD = (
    "import sys, time; from asr.decode.ngram import NGram; begun = time.perf_counter(); NGram.load(sys.argv[1]); "
    "print(time.perf_counter() - begun)"
)


def main() -> None:
    """Print the figures, and write them where --out says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("books", type=Path)
    parser.add_argument("--held-out", type=int, default=12_792, help="lines at the end (the last two books)")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = gzip.decompress(options.books.read_bytes()).splitlines(keepends=True)
        train, held_out = Path(folder, "train.txt"), Path(folder, "held_out.txt")
        train.write_bytes(b"".join(lines[: -options.held_out]))
        held_out.write_bytes(b"".join(lines[-options.held_out :]))
        models = {name: measure(train, held_out, words) for name, words in SETTINGS.items()}
    record = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": "2 cores of an AMD EPYC, no GPU, shared with other work",
        "versions": {name: version(name) for name in ("numpy", "numba")} | {"python": platform.python_version()},
        "train_lines": len(lines) - options.held_out,
        "held_out_lines": options.held_out,
        "models": models,
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def measure(train: Path, held_out: Path, words: list[str]) -> dict[str, Any]:
    """One model: what training it took, and what it gives on the text held out."""
    arpa = train.with_name("m.arpa")
    trained = run(["-m", "asr.cli", "lm", "train", "-q", str(train), "-o", str(arpa), *words])
    unit = ["--unit", "character"] if "character" in words else []
    loaded = [run(["-c", LOAD, str(arpa)]) for _ in range(2)]
    found = run(["-m", "asr.cli", "lm", "perplexity", "-q", "--json", str(arpa), str(held_out), *unit])
    figures = {
        "settings": " ".join(words),
        "train_seconds": trained["seconds"],
        "train_peak_megabytes": trained["peak_megabytes"],
        "told": trained["out"].splitlines()[:-1],
        "arpa_megabytes": round(arpa.stat().st_size / 1e6, 1),
        "load_seconds": [round(float(one["out"]), 3) for one in loaded],
        "load_peak_megabytes": [one["peak_megabytes"] for one in loaded],
        "perplexity_seconds": found["seconds"],
        "held_out": {key: value for key, value in json.loads(found["out"]).items() if key != "lm"},
    }
    arpa.unlink()
    return figures


def run(words: list[str]) -> dict[str, Any]:
    """Run Python; its standard output, wall-clock seconds and largest resident memory."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"python {shlex.join(words)} failed")
    return {
        "out": out,
        "seconds": round(time.perf_counter() - begun, 1),
        "peak_megabytes": round(used.ru_maxrss / 1024),
    }


if __name__ == "__main__":
    main()
