"""Time the features of asr against torchaudio's and librosa's own, on one thread.

    python scripts/bench/features.py [--turns 15] [--out docs/results/features.json]

32 files of 10 s (noise) at 16 kHz; 80 mels, windows of 25 ms, a frame every 10 ms. Ours takes them as one
batch, the libraries one file after the other; all with the logarithm, without normalisation unless said.

All run in turn in this process, so that other work on the machine hits them alike. A ratio is their time over
ours: the median over turns, and that of the fastest turns.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import threadpoolctl
import torch
import torchaudio
from torchaudio.compliance import kaldi

from asr import files
from asr.features import LogMel

FILES, SECONDS, RATE = 32, 10, 16000
PAIRS: dict[tuple[str, str], float | None] = {  # ours, theirs: the least ratio of throughputs that is aimed at
    ("slaney", "torchaudio"): 0.95,
    ("slaney", "librosa"): 3.0,
    ("slaney, normalised", "torchaudio"): None,
    ("kaldi", "torchaudio, kaldi"): None,
}


def main() -> None:
    """Print times and ratios, and write them where --out says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    waveforms = 0.1 * torch.randn(FILES, SECONDS * RATE, generator=torch.Generator().manual_seed(0))
    with threadpoolctl.threadpool_limits(1), torch.inference_mode():
        seconds = measure(ours(waveforms) | theirs(waveforms), options.turns)
    figures: dict[str, Any] = {
        "ratios": {f"{our} / {their}": ratio(seconds[our], seconds[their]) for our, their in PAIRS},
        "aims": {f"{our} / {their}": aim for (our, their), aim in PAIRS.items() if aim},
        "milliseconds": {name: [round(1e3 * turn, 1) for turn in turns] for name, turns in seconds.items()},
    }
    for name, turns in seconds.items():
        print(f"{name:22} {1e3 * min(turns):6.1f} ms at best, median {1e3 * statistics.median(turns):6.1f} ms")
    for name, found in figures["ratios"].items():
        aim = f" (aim {figures['aims'][name]})" if name in figures["aims"] else ""
        print(f"{name:40} median {found['median']:5.2f}, of the fastest turns {found['fastest']:5.2f}{aim}")
    if options.out:
        record = {
            "command": "python " + shlex.join(sys.argv),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": {"processor": processor(), "cores": os.cpu_count(), "threads": 1},
            "versions": {name: version(name) for name in ("torch", "torchaudio", "librosa", "numpy")}
            | {"python": platform.python_version()},
            **figures,
        }
        files.write_text(options.out, json.dumps(record, indent=2) + "\n")


def ours(waveforms: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Name to a function that makes the features of `waveforms` `(files, samples)` as a batch."""
    lengths = torch.full((len(waveforms),), waveforms.shape[1])
    modules = {
        "slaney": LogMel(normalize="none"),
        "slaney, normalised": LogMel(),
        "kaldi": LogMel(convention="kaldi", normalize="none"),
    }
    return {name: functools.partial(module, waveforms, lengths) for name, module in modules.items()}


def theirs(waveforms: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Name to a function that makes the features of `waveforms` `(files, samples)` file by file."""
    shared: dict[str, Any] = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80}
    shared |= {"norm": "slaney", "pad_mode": "constant"}
    module = torchaudio.transforms.MelSpectrogram(RATE, f_min=20.0, mel_scale="slaney", **shared)
    arrays, scaled = list(waveforms.numpy()), waveforms * 32768

    def by_librosa(samples: np.ndarray) -> np.ndarray:
        energies = librosa.feature.melspectrogram(y=samples, sr=RATE, fmin=20.0, **shared)
        return np.log(np.maximum(energies, 1e-10))

    return {
        "torchaudio": lambda: [module(row).clamp(min=1e-10).log() for row in waveforms],
        "librosa": lambda: [by_librosa(row) for row in arrays],
        "torchaudio, kaldi": lambda: [kaldi.fbank(row[None], num_mel_bins=80) for row in scaled],
    }


def measure(functions: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each function in each turn, after one turn that doesn't count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(-1, turns):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def ratio(our: list[float], their: list[float]) -> dict[str, float]:
    """How many times as fast ours is."""
    by_turn = [theirs / ours for ours, theirs in zip(our, their, strict=True)]
    return {"median": round(statistics.median(by_turn), 2), "fastest": round(min(their) / min(our), 2)}


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
