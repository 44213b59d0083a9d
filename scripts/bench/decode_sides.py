"""The sides of `decode.py`: our decoder here and others in a process of their own, in turn on the same emissions."""

import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from asr import ctc, score
from asr.decode.beam import BeamSearch

PACKAGES = {
    "fast-ctc-decode": "0.3.7",
    "ctc-beam-decoder": "0.2.0",
    "flashlight-text": "0.0.7",
    "pyctcdecode": "0.5.0",
    "kenlm": "0.3.0",  # a source package: needs a C++ compiler and cmake
    "numpy": "1.26.4",
}
WORSE = 1e-3  # nats


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One pass over all utterances: CPU seconds of the calling thread, texts, labels where they are told."""

    seconds: float
    texts: list[str]
    labels: list[list[int]] | None = None


@dataclasses.dataclass(frozen=True)
class Side:
    """A decoder with its settings; `rounds`: it runs only so often (0: as often as all)."""

    name: str
    settings: dict[str, Any]
    run: Callable[[], Outcome]
    rounds: int = 0


class Emissions:
    """Utterances' emissions and what was said, kept in a file that the peers read."""

    def __init__(self, arrays: Sequence[np.ndarray], texts: Sequence[str], tokens: list[str], path: Path) -> None:
        self.arrays, self.texts, self.tokens, self.path = list(arrays), list(texts), tokens, path
        self.frames = sum(map(len, arrays))
        np.savez(path, **{str(number): array for number, array in enumerate(self.arrays)})  # type: ignore[arg-type]

    def log_probability(self, labels: list[list[int]]) -> list[float]:
        """The exact log-probability of each utterance's labels."""
        return [
            ctc.log_probability(torch.from_numpy(one)[None], torch.tensor([len(one)]), [of])[0]
            for one, of in zip(self.arrays, labels, strict=True)
        ]


def ours(name: str, emissions: Emissions, **options: Any) -> Side:
    """Our decoder; `options` are those of `BeamSearch`."""
    search = BeamSearch(emissions.tokens, **options)

    def run() -> Outcome:
        gc.collect()
        begun = time.thread_time()
        best = [search.decode(one)[0] for one in emissions.arrays]
        seconds = time.thread_time() - begun
        return Outcome(seconds, [one.text for one in best], [list(one.tokens) for one in best])

    return Side(name, search.settings, run)


class Peers:
    """The process of the other decoders, in the environment `folder`, made where it is not there."""

    def __init__(self, folder: Path) -> None:
        python = folder / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            wanted = [f"{name}=={number}" for name, number in PACKAGES.items()]
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        script = Path(__file__).with_name("decode_peers.py")
        self._process = subprocess.Popen(
            [str(python), "-W", "ignore", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._made = 0

    def side(self, peer: str, emissions: Emissions, label: str = "", rounds: int = 0, **options: Any) -> Side:
        """One of them with its settings; `options` are those of its function in `decode_peers.py`."""
        self._made += 1
        key = f"{peer} {self._made}"
        self._ask({"make": key, "peer": peer, "tokens": emissions.tokens, "options": options})

        def run() -> Outcome:
            order = {"run": key, "emissions": str(emissions.path.absolute()), "first": len(emissions.arrays)}
            return Outcome(**self._ask(order))

        short = {name: value for name, value in options.items() if name not in ("arpa", "words")}
        return Side(f"{peer}{label}", {"version": PACKAGES[peer], **short}, run, rounds)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"decode: the process of the other decoders ended (status {self._process.wait()})")
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def in_turn(sides: Sequence[Side], rounds: int) -> dict[str, tuple[list[float], Outcome]]:
    """The seconds of every round, and what was heard; one pass before does not count."""
    for side in sides:
        if not side.rounds:
            side.run()
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    last: dict[str, Outcome] = {}
    for number in range(rounds):
        for side in sides:
            if not side.rounds or number < side.rounds:
                last[side.name] = side.run()
                seconds[side.name].append(last[side.name].seconds)
    return {name: (times, last[name]) for name, times in seconds.items()}


def compared(sides: Sequence[Side], emissions: Emissions, rounds: int) -> dict[str, Any]:
    """Run all in turn: for each its settings, microseconds a frame and errors; for ours against each the ratio."""
    measured = in_turn(sides, rounds)
    described = {
        side.name: {
            "settings": side.settings,
            "us_a_frame": spread([1e6 * each / emissions.frames for each in measured[side.name][0]]),
            "wer": error_rate(emissions.texts, measured[side.name][1].texts),
        }
        for side in sides
    }
    ratios = {
        f"{own.name} / {other.name}": ratio(measured[own.name][0], measured[other.name][0])
        for own in sides
        for other in sides
        if own.name.startswith("asr") and not other.name.startswith("asr")
    }
    return {"sides": described, "ratios": ratios, "search": searches(measured, emissions)}


def searches(measured: dict[str, tuple[list[float], Outcome]], emissions: Emissions) -> dict[str, Any]:
    """Of those that tell labels: their mean log-probability, and how often one is worse than another."""
    sums = {
        name: np.array(emissions.log_probability(outcome.labels))
        for name, (_, outcome) in measured.items()
        if outcome.labels is not None
    }
    means = {f"{name}, mean": round(float(one.mean()), 5) for name, one in sums.items()}
    worse = {
        f"{name} worse than {other}": int((sums[name] < sums[other] - WORSE).sum())
        for name in sums
        for other in sums
        if name != other
    }
    return means | worse if len(sums) > 1 else {}


def ratio(our: Sequence[float], their: Sequence[float]) -> dict[str, float]:
    """Our time over theirs in the same round."""
    if len(their) < len(our):
        return spread([statistics.median(our) / one for one in their])
    return spread([one / other for one, other in zip(our, their, strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and both quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": round(float(middle), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def error_rate(references: list[str], texts: list[str]) -> float:
    """Word errors in per cent."""
    return round(100 * float(score.score(references, texts, bootstrap=0).rate or 0.0), 2)
