"""The batched beam search on a GPU, in one command of about a minute: is it right, and how fast.

    python scripts/bench/decode_gpu.py --out docs/results/decode_gpu.json

Utterances of 10 to 40 s at 25 frames a second: peaks of random tokens, each with a rival, between blanks; 127 tokens
and the blank, a 3-gram of the tokens, beam 32. First every text is compared with that of `BeamSearch` under the same
settings, then both are timed in turns: microseconds a valid frame for the whole batch on the device, and for one
utterance behind the other on one CPU core. The medians' ratio says how many cores the device replaces. `--device cpu`
shows that the script works.
"""

import argparse
import datetime
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np
import torch
from recipe import hardware
from torch import Tensor

from asr import files
from asr.decode.batched import BatchedBeamSearch
from asr.decode.beam import BeamSearch
from asr.decode.ngram import NGram
from asr.lm import train

TOKENS = ["<blank>", *(chr(0x4E00 + n) for n in range(127))]
SETTINGS: dict[str, Any] = {"beam": 32, "token_top": 16}


def main() -> int:
    """Compare, measure, print and write it down; returns the number of utterances whose texts differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    lm = language_model(rng)
    many = [utterance(rng, int(rng.integers(250, 1001))) for _ in range(options.batch)]
    log_probs, lengths = together(many, torch.device(options.device))
    batched, single = BatchedBeamSearch(TOKENS, lm, **SETTINGS), BeamSearch(TOKENS, lm, **SETTINGS)
    texts = [found[0].text for found in batched.decode(log_probs, lengths)]  # the first calls warm up both
    wrong = sum(text != single.decode(one)[0].text for text, one in zip(texts, many, strict=True))
    seconds: dict[str, list[float]] = {"device": [], "core": []}
    for _ in range(options.rounds):
        seconds["device"].append(timed(lambda: batched.decode(log_probs, lengths)))
        seconds["core"].append(timed(lambda: [single.decode(one) for one in many]))
    frames = sum(map(len, many))
    each = {name: 1e6 * statistics.median(values) / frames for name, values in seconds.items()}
    result = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if log_probs.is_cuda else options.device,
        "hardware": hardware(),
        "torch": torch.__version__,
        "batch": options.batch,
        "frames": frames,
        "padded_frames": log_probs.shape[0] * log_probs.shape[1],
        "settings": batched.settings,
        "texts_that_differ": wrong,
        "microseconds_a_frame": each,
        "cores_replaced": each["core"] / each["device"],
        "seconds": seconds,
    }
    files.write_text(options.out, json.dumps(result, indent=2) + "\n")
    print(f"{wrong} of {options.batch} texts differ")
    print(f"device {each['device']:.1f} us a frame, one core {each['core']:.1f}: ratio {result['cores_replaced']:.2f}")
    return wrong


def language_model(rng: np.random.Generator) -> NGram:
    """A 3-gram of the tokens, estimated on random text in which some are frequent."""
    with tempfile.TemporaryDirectory() as folder:
        text, arpa = Path(folder, "text"), Path(folder, "lm.arpa")
        shares = 1 / np.arange(1, len(TOKENS))
        drawn = rng.choice(TOKENS[1:], (5000, 30), p=shares / shares.sum())
        text.write_text("\n".join(map(" ".join, drawn)))
        train([text], arpa, order=3, fallback=True)
        return NGram.load(arpa)


def utterance(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Emissions `(frames, tokens)`."""
    logits = rng.normal(-6, 1.5, (frames, len(TOKENS)))
    logits[:, 0] = 0
    for at in range(2, frames, 4):
        logits[at, 0] = -3
        logits[at, rng.integers(1, len(TOKENS))] = 2.0
        logits[at, rng.integers(1, len(TOKENS))] = 1.0
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def together(many: list[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """The utterances as a padded batch with its lengths."""
    lengths = torch.tensor([len(one) for one in many])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(one) for one in many], batch_first=True)
    return padded.to(device), lengths


def timed(work: Callable[[], object]) -> float:
    """The seconds it takes; a search ends with its results on the CPU."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    raise SystemExit(main())
