"""Do saves survive a SIGKILL at any moment, and a full disk?

    python scripts/bench/kill_saves.py [--kills 1000] [--limits 50] [--out docs/results/kill_saves.json]

Kills: a process saves a training state and a model file, again and again, each save with its own number in
every tensor, and is killed at a random moment. What it leaves must load, be of one save throughout, and be
the last one that was committed or the next; the next process goes on from there. As a control the same bytes
are written in place: the harness must find files that this leaves unreadable, or it would find nothing.

Limits: a save runs into a limit on the size of files (RLIMIT_FSIZE, which stands in for a full disk); the
limits are spread over the whole file. It must end in one line, and what was saved before must load.

POSIX only. The exit status is 1 where a promise was broken.
"""

import argparse
import datetime
import json
import os
import platform
import random
import resource
import shlex
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads must not be forked

import torch

from asr import checkpoint, files
from asr.errors import AsrError

CARD = {
    "features": {"kind": "logmel"},
    "normalizer": "none",
    "tokens": ["<blank>", "|"],
    "model": {
        "features": 80,
        "tokens": 2,
        "stack": 1,
        "convolutions": [],
        "hidden": 8,
        "layers": 1,
        "dropout": 0.0,
        "layer_norm": False,
    },
    "decoder": {"kind": "greedy"},
    "training": {},
}


def tensors(number: int, megabytes: float) -> dict[str, torch.Tensor]:
    """Tensors of about so many megabytes, `number` in each value."""
    return {f"w{index}": torch.full((int(megabytes * 31_250),), float(number)) for index in range(8)}


def save(folder: Path, number: int, megabytes: float) -> None:
    """Save a state and a model, both of that number."""
    checkpoint.save_state(folder / "state", tensors(number, megabytes), {"number": number})
    checkpoint.save_model(folder / "model.safetensors", tensors(number, megabytes), CARD)


def load(folder: Path) -> tuple[int, int]:
    """The numbers of the saved state and model, 0 where there is none; an error where one can't be read."""
    state = checkpoint.load_state(folder / "state")
    numbers = [0, 0]
    if state is not None:
        numbers[0] = one_number(state[0])
        if state[1]["number"] != numbers[0]:
            raise AsrError("values and tensors are of two saves")
    if (folder / "model.safetensors").exists():
        numbers[1] = one_number(checkpoint.load_model(folder / "model.safetensors")[1])
    return numbers[0], numbers[1]


def one_number(found: dict[str, torch.Tensor]) -> int:
    """The number that stands in all tensors."""
    numbers = torch.cat([tensor.unique() for tensor in found.values()]).unique()
    if len(numbers) != 1:
        raise AsrError("tensors are of more than one save")
    return int(numbers)


def killed(work: Callable[[int], None], seconds: float) -> list[int]:
    """Fork, let the child do `work` and kill it; returns the numbers that it wrote to the given descriptor.

    The clock starts when the child reports its first number, so that every kill falls into its work.
    """
    receive, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        try:
            work(report)
        finally:
            os._exit(3)  # the work never ends by itself
    os.close(report)
    numbers = [struct.unpack("q", os.read(receive, 8))[0]]
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while packet := os.read(receive, 8):
        numbers.append(struct.unpack("q", packet)[0])
    os.close(receive)
    return numbers


def kill_saves(folder: Path, kills: int, megabytes: float, draw: random.Random) -> dict[str, Any]:
    """Kill a saving process `kills` times and count what went wrong."""

    def work(report: int) -> None:
        number = min(load(folder))  # the model's, where the kill came between the two saves
        os.write(report, struct.pack("q", number))
        while True:
            number += 1
            save(folder, number, megabytes)
            os.write(report, struct.pack("q", number))

    begun = time.perf_counter()
    save(folder, 1, megabytes)
    cycle = time.perf_counter() - begun
    counts = {"kills": kills, "unreadable": 0, "lost": 0, "interrupted": 0, "strays": 0, "saves": 0}
    for _ in range(kills):
        numbers = killed(work, draw.uniform(0, 3 * cycle))
        strays = len(list(folder.rglob(".*.tmp")))
        counts["interrupted"] += strays > 0
        counts["saves"] += len(numbers) - 1
        try:
            state, model = load(folder)
        except AsrError as error:
            print(f"unreadable: {error}", file=sys.stderr)
            counts["unreadable"] += 1
            continue
        last = numbers[-1]
        counts["lost"] += not (state in (last, last + 1) and model in (last, last + 1) and model <= state)
        files.sweep(folder)
        counts["strays"] += len(list(folder.rglob(".*.tmp")))
    return counts


def kill_in_place(folder: Path, kills: int, megabytes: float, draw: random.Random) -> dict[str, Any]:
    """The control: the same model is written in place, and the process killed as above."""
    path = folder / "in-place.safetensors"
    checkpoint.save_model(path, tensors(1, megabytes), CARD)
    content = path.read_bytes()

    def work(report: int) -> None:
        os.write(report, struct.pack("q", 0))
        while True:
            with open(path, "wb", buffering=0) as file:
                for begin in range(0, len(content), 65536):
                    file.write(content[begin : begin + 65536])
                os.fsync(file.fileno())

    unreadable = 0
    for _ in range(kills):
        killed(work, draw.uniform(0.001, 0.02))
        try:
            checkpoint.load_model(path)
        except AsrError:
            unreadable += 1
    path.unlink()
    return {"kills": kills, "unreadable": unreadable}


def run_into_limits(folder: Path, limits: int, megabytes: float) -> dict[str, Any]:
    """Let a save run into `limits` limits on the size of a file, and count what went wrong."""
    save(folder, 1, megabytes)
    size = min(path.stat().st_size for path in folder.rglob("*.safetensors"))
    counts = {"limits": limits, "size": size, "not one line": 0, "unreadable": 0, "strays": 0}
    for index in range(limits):
        limit = index * (size - 1) // max(1, limits - 1)
        child = os.fork()
        if child == 0:
            os._exit(limited(folder, limit, megabytes))
        counts["not one line"] += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        counts["strays"] += len(list(folder.rglob(".*.tmp")))
        try:
            counts["unreadable"] += load(folder) != (1, 1)
        except AsrError:
            counts["unreadable"] += 1
    return counts


def limited(folder: Path, limit: int, megabytes: float) -> int:
    """Save a state and a model under the limit; 0 where both end in an error of one line naming the file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    saves: list[Callable[[], Any]] = [
        lambda: checkpoint.save_state(folder / "state", tensors(2, megabytes), {"number": 2}),
        lambda: checkpoint.save_model(folder / "model.safetensors", tensors(2, megabytes), CARD),
    ]
    said = 0
    for attempt in saves:
        try:
            attempt()
        except AsrError as error:
            said += str(folder) in str(error) and "\n" not in str(error) and error.status == 1
        except BaseException as error:
            os.write(2, f"at {limit} bytes: {error!r}\n".encode())
    return 0 if said == len(saves) else 1


def main() -> int:
    """Run kills, control and limits, print the counts and, where asked, write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="SIGKILLs (1000)")
    parser.add_argument("--limits", type=int, default=50, help="limits on the size of a file (50)")
    parser.add_argument("--megabytes", type=float, default=5.0, help="of tensors in a save (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (0)")
    parser.add_argument("--folder", type=Path, help="where to save; a temporary folder where not given")
    parser.add_argument("--out", type=Path, help="write the result as JSON to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(arguments.seed)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        result: dict[str, Any] = {
            "kills": kill_saves(folder / "kills", arguments.kills, arguments.megabytes, draw),
            "control, in place": kill_in_place(folder, max(20, arguments.kills // 10), arguments.megabytes, draw),
            "limits": run_into_limits(folder / "limits", arguments.limits, arguments.megabytes),
        }
    result |= {
        "megabytes": arguments.megabytes,
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "system": f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}",
        "timing": {"seconds": round(time.perf_counter() - begun, 1)},
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        files.write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    broken = ("unreadable", "lost", "strays", "not one line")
    return int(any(result[part].get(kind, 0) for part in ("kills", "limits") for kind in broken))


if __name__ == "__main__":
    sys.exit(main())
