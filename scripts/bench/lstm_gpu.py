"""The fused LSTM's first run on a GPU, in one command of half an hour at most: is it right, is it repeatable, how fast.

    python scripts/bench/lstm_gpu.py --out docs/results/lstm_gpu.json [--steps facts,smallest] [--again]

Every step runs in a child process of bounded time, and kernels end waits that last too long: a fault costs one step.
All that a child says is kept in the JSON file line by line; a step that was finished is not run again (without
--again), one that was cut off goes on behind its last line. `--card cpu` runs the first item of each step on the
emulated device of the tests, which shows that the script works.

Times are medians of CUDA events over inputs that alternate, so that they do not stay in the L2 cache. Baselines are
torch.nn.LSTM on packed rows (right) and on padded rows (faster, but wrong in the reverse direction of ragged rows).
"""

import argparse
import itertools
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from emulation.case import Case

from asr import files
from asr.lstm import op
from asr.lstm.cuda import launch

BF16, FP16 = torch.bfloat16, torch.float16
TYPES = {"bf16": BF16, "fp16": FP16}
SCANS = ("forward", "backward")
Record = dict[str, Any]
Item = dict[str, Any]


def main() -> int:
    """Run the steps that are not finished yet; returns the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file of all results; a run goes on where it stopped"
    )
    parser.add_argument("--steps", default=",".join(STEPS), help="which, in this order (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="run finished steps again")
    parser.add_argument("--card", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.card == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "lstm_gpu: there is no CUDA device here\n")
    if options.child:
        return child(options.child, options.card, options.skip)
    results = json.loads(options.out.read_text()) if options.out.exists() else {"steps": {}}
    results["command"] = "python " + shlex.join(sys.argv)
    failed = 0
    for name in options.steps.split(","):
        before = results["steps"].get(name, {})
        if before.get("status") == "ok" and not options.again:
            print(f"{name}: finished before")
            continue
        step = {"records": [] if options.again else before.get("records", [])}
        results["steps"][name] = step
        run_step(name, options, step, lambda: files.write_text(options.out, json.dumps(results, indent=1)))
        failed += step["status"] != "ok"
    return failed


def run_step(name: str, options: argparse.Namespace, step: Record, save: Callable[[], None]) -> None:
    """Run one step in a child process; its lines go to `step["records"]` as they come."""
    limit, _, _ = STEPS[name]
    print(f"{name}: at most {limit} s", flush=True)
    command = [sys.executable, __file__, "--out", str(options.out), "--card", options.card, "--child", name]
    start = time.monotonic()
    with (
        open(options.out.with_suffix(f".{name}.log"), "w+") as log,
        subprocess.Popen(
            [*command, "--skip", str(len(step["records"]))], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        clock = threading.Timer(limit, process.kill)
        clock.start()
        assert process.stdout
        for line in process.stdout:
            print("  " + line, end="", flush=True)
            step["records"].append(json.loads(line))
            save()
        process.wait()
        clock.cancel()
        log.seek(0)
        step["error"] = log.read()[-4000:] if process.returncode else ""
    wrong = [record for record in step["records"] if not record.get("ok", True)]
    step["seconds"] = round(time.monotonic() - start, 1)
    step["status"] = "wrong" if wrong else {0: "ok", -9: "out of time"}.get(process.returncode, "failed")
    save()
    print(f"{name}: {step['status']} after {step['seconds']} s, {len(wrong)} wrong\n{step['error']}", flush=True)


def child(name: str, card: str, skip: int) -> int:
    """Run the items of a step behind the first `skip` ones; prints a JSON object a line."""
    torch.manual_seed(0)
    if card == "cpu":
        from emulation.emulator import EmulatedScans

        op.SCANS["cpu"] = EmulatedScans()
    else:
        op.SCANS["cuda"] = launch.CudaScans(bounded=name not in ("timing", "scans"))
    _, items, work = STEPS[name]
    for item in itertools.islice(items(card), skip, None):
        print(json.dumps(item | work(card, item)), flush=True)
    return 0


def ragged(batch: int, frames: int, shortest: int = 1) -> list[int]:
    """Lengths of `batch` rows, one of them `frames`; the same at every call."""
    draw = random.Random(batch * 10007 + frames)
    lengths = [draw.randint(min(shortest, frames), frames) for _ in range(batch)]
    lengths[batch // 2] = frames
    return lengths


def rounded(errors: dict[str, float]) -> dict[str, float]:
    """Errors with two digits."""
    return {name: float(f"{error:.1e}") for name, error in errors.items()}


def facts(card: str, item: Item) -> Record:
    """Versions, the device, and how many clusters of each shape it runs at once."""
    if card == "cpu":
        return {"torch": torch.__version__}
    clusters = {}
    for hidden, kernel, tiles in itertools.product((64, 256, 320, 384, 448, 512, 640, 768), SCANS, (1, 2)):
        if tiles > launch.most_tiles(hidden):
            continue
        start = time.monotonic()
        try:
            shape = launch.shape_for(hidden, tiles, BF16)
            fit: int | str = launch.CudaScans().kernel(kernel, shape, torch.device("cuda", 0)).fit
        except launch.Unavailable as error:
            fit = str(error)
        clusters[f"{kernel}, {hidden} units, {tiles} tiles"] = [fit, round(time.monotonic() - start, 2)]
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.draw",
        "--format=csv,noheader",
    ]
    return {
        "device": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvidia-smi": subprocess.run(query, capture_output=True, text=True).stdout.strip(),
        "clusters that fit, seconds to load": clusters,
    }


def correctness(card: str, item: Item) -> Record:
    """All results and gradients against float64; memory that nobody wrote, and padding, hold NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty gives with NaN
    lengths = ragged(item["batch"], item["frames"])
    case = Case(
        item["hidden"], lengths, TYPES[item["type"]], item["directions"], frames=item["frames"] + 2, device=card
    )
    results = case.run(op.layer)
    return {"ok": not case.wrong(results), "errors": rounded(case.errors(results))}


def repeatability(card: str, item: Item) -> Record:
    """Bits of many runs, some of them beside matrix products in another stream."""
    case = Case(item["hidden"], ragged(item["batch"], item["frames"]), BF16, device=card)
    first = case.run(op.layer)
    different = 0
    matrix = torch.randn(2048, 2048, device=card, dtype=BF16)
    for number in range(item["runs"]):
        if card == "cuda" and number % 2:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(20):
                    matrix @ matrix
        again = case.run(op.layer)
        different += any(not torch.equal(first[name], again[name]) for name in first)
    return {"ok": not different, "different": different}


def capture(card: str, item: Item) -> Record:
    """A captured forward pass gives the same bits as an eager one."""
    if card == "cpu":
        return {}
    case = Case(item["hidden"], ragged(9, 40), BF16, device=card)
    with torch.no_grad():
        expected = op.layer(**case.arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = op.layer(**case.arguments)
        graph.replay()
    return {"ok": all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))}


def milliseconds(card: str, work: Callable[[int], object], rounds: int) -> float:
    """Median time of `work(round)`."""
    times = []
    for number in range(-min(rounds, 10), rounds):
        if card == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work(number % 4)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            work(number % 4)
            times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[-rounds:])


def timing(card: str, item: Item) -> Record:
    """One bidirectional layer as it is used, with its matrix products: fused, and torch's on packed and padded rows."""
    hidden, batch, frames, dtype = item["hidden"], item["batch"], item["frames"], TYPES[item["type"]]
    lengths = torch.tensor(ragged(batch, frames, frames // 2))
    on_device, rounds = lengths.to(card), 30 if card == "cuda" else 1
    module = nn.LSTM(2 * hidden, hidden, bidirectional=True).to(card, dtype)
    inputs = [torch.randn(frames, batch, 2 * hidden, device=card, dtype=dtype, requires_grad=True) for _ in range(4)]
    weights = [torch.randn(frames, batch, 2 * hidden, device=card, dtype=dtype) for _ in range(2)]
    pairs = zip(module.all_weights[0], module.all_weights[1], strict=True)
    weight_ih, weight_hh, bias_ih, bias_hh = (torch.stack(pair).detach() for pair in pairs)
    own = [weight.requires_grad_() for weight in (weight_ih, weight_hh, bias_ih + bias_hh)]
    state = torch.zeros(2, batch, hidden, device=card, dtype=dtype)

    def fused(input: Tensor) -> Tensor:
        return op.layer(input, on_device, own[0], own[1], own[2], state, state.float())[0]

    def padded(input: Tensor) -> Tensor:
        return module(input)[0]

    def packed(input: Tensor) -> Tensor:
        rows = nn.utils.rnn.pack_padded_sequence(input, lengths, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(module(rows)[0], total_length=frames)[0]

    def infer(layer: Callable[[Tensor], Tensor]) -> Callable[[int], object]:
        return torch.no_grad()(lambda number: layer(inputs[number]))

    def train(layer: Callable[[Tensor], Tensor], parameters: list[Tensor]) -> Callable[[int], object]:
        return lambda number: torch.autograd.grad(
            layer(inputs[number]), [inputs[number], *parameters], weights[number % 2]
        )

    record: Record = {}
    layers: dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]] = {
        "fused": (fused, own),
        "packed": (packed, list(module.parameters())),
        "padded": (padded, list(module.parameters())),
    }
    for name, (layer, parameters) in layers.items():
        record[f"{name} forward ms"] = milliseconds(card, infer(layer), rounds)
        record[f"{name} training ms"] = milliseconds(card, train(layer, parameters), rounds)
    for kind in ("forward", "training"):
        ours = record[f"fused {kind} ms"]
        best = min(record[f"packed {kind} ms"], record[f"padded {kind} ms"])
        record[f"fused {kind} us a step"] = ours / frames * 1e3
        record[f"{kind}, packed over fused"] = record[f"packed {kind} ms"] / ours
        record[f"{kind}, best of torch over fused"] = best / ours
    return {name: round(value, 3) for name, value in record.items()}


def scans(card: str, item: Item) -> Record:
    """The two scans alone, without matrix products: microseconds a step of rows of one length."""
    hidden, batch, frames, dtype = item["hidden"], item["batch"], item["frames"], TYPES[item["type"]]
    wide, kernels = op.padded(hidden), op.scans_for(torch.device(card))
    weight = (torch.randn(2, 4, wide, wide, device=card) * hidden**-0.5).to(dtype)
    gates = [torch.randn(frames, batch, 2, wide, 4, device=card).to(dtype) for _ in range(2)]
    cells = torch.zeros(frames, batch, 2, wide, device=card)
    output, dgates = cells.to(dtype), torch.empty_like(gates[0])
    c0, c_n, d_h0, d_c0 = (torch.zeros(2, batch, wide, device=card) for _ in range(4))
    h0, h_n = c0.to(dtype), c0.to(dtype)
    order, lengths = torch.arange(batch, device=card), torch.full((batch,), frames, device=card)

    def forward(number: int) -> None:
        kernels.forward(weight, gates[number % 2], cells, output, h0, c0, h_n, c_n, order, lengths)

    def backward(number: int) -> None:
        kernels.backward(weight, gates[0], cells, output, c0, None, None, dgates, d_h0, d_c0, order, lengths)

    rounds = 30 if card == "cuda" else 1
    return {
        f"{name} us a step": round(milliseconds(card, work, rounds) / frames * 1e3, 4)
        for name, work in zip(SCANS, (forward, backward), strict=True)
    }


def items(card: str, **values: list[Any]) -> Iterator[Item]:
    """All combinations; on the emulated device the first one only."""
    for number, combination in enumerate(itertools.product(*values.values())):
        if card == "cuda" or not number:
            yield dict(zip(values, combination, strict=True))


def matrix(card: str) -> Iterator[Item]:
    """What `correctness` covers: every size of cluster, rows around a tile's border, one step to many."""
    sizes = [8, 64, 100, 128, 192, 256, 320, 384, 448, 512, 600, 640, 768]
    return items(
        card, type=["bf16", "fp16"], directions=[2], frames=[3, 1, 2, 17, 100], batch=[7, 1, 8, 9, 16, 33], hidden=sizes
    )


def fuzz(card: str) -> Iterator[Item]:
    """Random shapes."""
    draw = random.Random(0)
    for _ in range(400 if card == "cuda" else 1):
        large = draw.random() < 0.3
        yield {
            "hidden": draw.randint(8, launch.LARGEST if card == "cuda" else 64),
            "batch": draw.randint(1, 70 if large else 12),
            "frames": draw.randint(1, 300 if large and card == "cuda" else 20),
            "directions": draw.randint(1, 2),
            "type": draw.choice(["bf16", "fp16"]),
        }


def smallest(card: str) -> Iterator[Item]:
    """From two blocks of units to the largest."""
    return items(card, hidden=[64, 256, 320, 512, 640, 768], batch=[3], frames=[5], directions=[1, 2], type=["bf16"])


def shapes(card: str) -> Iterator[Item]:
    """What is timed."""
    if card == "cpu":
        return iter([{"type": "bf16", "hidden": 64, "frames": 3, "batch": 2}])
    return items(card, type=["bf16"], hidden=[512, 256, 320, 640, 768], frames=[800, 200], batch=[16, 1, 8, 32, 64])


# seconds at most, what to do it with, what to do
STEPS: dict[str, tuple[int, Callable[[str], Iterator[Item]], Callable[[str, Item], Record]]] = {
    "facts": (120, lambda card: iter([{}]), facts),
    "smallest": (120, smallest, correctness),
    "scans": (240, shapes, scans),
    "timing": (480, shapes, timing),
    "correctness": (320, matrix, correctness),
    "repeatability": (
        150,
        lambda card: items(card, hidden=[64, 512, 640, 768], batch=[5, 32], frames=[4, 200], runs=[20]),
        repeatability,
    ),
    "capture": (60, lambda card: items(card, hidden=[64, 512, 640, 768]), capture),
    "fuzz": (240, fuzz, correctness),
}

if __name__ == "__main__":
    sys.exit(main())
