"""Time the beam search against other decoders of Python, on the same emissions and the same ARPA file.

    python scripts/bench/decode.py --peers build/peers --out docs/results/decode.json [--rows characters_16 ...]

Peers: fast-ctc-decode, ctc-beam-decoder, flashlight-text, pyctcdecode, in an environment of their own that the first
run makes in the folder `--peers` (Python up to 3.12, a C++ compiler and cmake); without it ours runs alone. Emissions
are simulated (`decode_data.py`) from sentences of ``$ASR_DATA/lm_text``, 200 of two books; the language model is of the
other books.

All decoders of a row run in turn in every round, in processes that stay up; one round before does not count. A time is
CPU time of the calling thread; medians of 9 rounds stand with their quartiles, ratios are those of one round. Each row
is written as soon as it is finished; a row that is there is left alone unless `--rows` names it.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import torch
from decode_data import read_texts
from decode_rows import ROWS, Bench
from decode_sides import PACKAGES, Peers
from recipe import hardware

from asr import files


def main() -> None:
    """Measure the rows that are wanted, print them, write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder of the peers' environment, made where it is not there")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path("build/decode"), help="folder of what is made once")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    done = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    wanted = options.rows or [name for name in ROWS if name not in done]
    with Peers(options.peers) if options.peers else contextlib.nullcontext() as peers:
        bench = Bench(options.work, peers, read_texts(options.sentences), options.rounds)
        for name in wanted:
            done[name] = measure(name, bench)
            print("\n".join(lines(name, done[name])), flush=True)
            if options.out:
                ordered = {row: done[row] for row in ROWS if row in done}
                files.write_text(options.out, json.dumps(ordered, indent=2) + "\n")


def measure(name: str, bench: Bench) -> dict[str, Any]:
    """One row, with what belongs to its numbers."""
    load = average_load()
    row = ROWS[name](bench)
    return {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "load_before_and_after": [load, average_load()],
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("numpy", "numba", "torch")},
            **({f"peers: {package}": number for package, number in PACKAGES.items()} if bench.peers else {}),
        },
        "sentences": len(bench.texts.test),
        "rounds": bench.rounds,
        **row,
    }


def average_load() -> float:
    """Of the last minute; on a machine with fewer cores than that other work takes part of the time."""
    return round(os.getloadavg()[0], 2)


def lines(name: str, row: dict[str, Any]) -> list[str]:
    """A row for the terminal."""
    found = [f"{name} (load {row['load_before_and_after']})"]
    for side, each in row.get("sides", {}).items():
        found.append(f"  {side:40} {each['us_a_frame']['median']:8.2f} us a frame, WER {each['wer']:.2f} %")
    for of, each in (row.get("ratios", {}) | row.get("search", {})).items():
        value = f"{each['median']:.3f} ({each['low']:.3f} to {each['high']:.3f})" if isinstance(each, dict) else each
        found.append(f"  {of}: {value}")
    for each in row["goals"]:
        limit = f"at least {each['at least']:g}" if "at least" in each else f"at most {each['at most']:g}"
        found.append(f"  {'reached' if each['reached'] else 'MISSED '} {each['what']}: {each['value']:g} ({limit})")
    return found


if __name__ == "__main__":
    main()
