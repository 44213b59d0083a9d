"""What LSTMs are for: four tasks that need a long memory or a good forecast, each against its baselines.

    python scripts/bench/lstm_tasks.py --out docs/results/lstm_tasks.json

adding      two marked numbers of a long sequence are to be added (Hochreiter and Schmidhuber 1997, experiment 4),
            against a plain tanh RNN of the same width, steps and optimiser; always to say 1 is an error of 1/6
lag         the first symbol is to be repeated after `lag` others (the same paper, experiment 2a), against the same RNN
characters  the next character of a text, against its 3-gram model with the best add-k smoothing (bits a character)
forecast    the Mackey-Glass equation 6 time units ahead (Mackey and Glass 1977: beta 0.2, gamma 0.1, n 10, tau 17),
            against the last value and the best linear forecast from the last 18 values
"""

import argparse
import collections
import datetime
import itertools
import json
import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asr.lstm import LSTM

ROOT = Path(__file__).resolve().parents[2]


class Reader(nn.Module):
    """A recurrent layer and a linear read-out of its outputs `(frames, batch, features)`.

    The forget gates start so far open that a cell remembers about `memory` frames: bias = log(memory) (Tallec and
    Ollivier, "Can recurrent neural networks warp time?", ICLR 2018).
    """

    def __init__(self, kind: str, size: int, hidden: int, features: int, memory: int = 3) -> None:
        super().__init__()
        self.recurrent = LSTM(size, hidden, forget_bias=math.log(memory)) if kind == "lstm" else nn.RNN(size, hidden)
        self.head = nn.Linear(hidden, features)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `(frames, batch, size)` -> `(frames, batch, features)`."""
        return self.head(self.recurrent(frames)[0])


def train(model: nn.Module, loss_of: Callable[[], Tensor], steps: int, lr: float) -> None:
    """Adam with clipped gradients and a rate that falls to 0 along a half cosine."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def adding(kind: str, lag: int = 100, steps: int = 1500, seed: int = 1) -> float:
    """Mean square error of the sum of two marked numbers, one in each half of `lag` frames; 1/6 is chance."""
    torch.manual_seed(seed)
    model = Reader(kind, 2, 64, 1)

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        numbers, marks = torch.rand(lag, rows), torch.zeros(lag, rows)
        for half in range(2):
            at = torch.randint(lag // 2, (1, rows)) + half * (lag // 2)
            marks.scatter_(0, at, 1.0)
        return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(0)

    def loss_of() -> Tensor:
        frames, sums = batch(64)
        return (model(frames)[-1, :, 0] - sums).square().mean()

    train(model, loss_of, steps, 0.01)
    with torch.no_grad():
        frames, sums = batch(2000)
        return float((model(frames)[-1, :, 0] - sums).square().mean())


def lag_task(kind: str, lag: int = 100, steps: int = 600, seed: int = 1) -> float:
    """Share of sequences x or y, a1 ... a(lag-1), x or y whose last symbol is foretold; 0.5 is chance."""
    torch.manual_seed(seed)
    model = Reader(kind, lag + 1, 32, lag + 1, memory=lag)
    middle = torch.arange(2, lag + 1)[:, None]

    def batch(rows: int) -> Tensor:
        first = torch.randint(2, (1, rows))
        return torch.cat([first, middle.expand(lag - 1, rows), first])

    def loss_of() -> Tensor:
        symbols = batch(32)
        scores = model(nn.functional.one_hot(symbols[:-1], lag + 1).float())
        others = nn.functional.cross_entropy(scores[:-1].flatten(0, 1), symbols[1:-1].flatten())
        return others + nn.functional.cross_entropy(scores[-1], symbols[-1])  # the last one counts as all the others

    train(model, loss_of, steps, 0.01)
    with torch.no_grad():
        symbols = batch(500)
        scores = model(nn.functional.one_hot(symbols[:-1], lag + 1).float())
        return float((scores[-1].argmax(1) == symbols[-1]).float().mean())


def text() -> str:
    """The English of this repository's own pages, in a fixed order: letters, digits and punctuation, spaces merged."""
    pages = [ROOT / "LICENSE", *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    merged = " ".join(" ".join(page.read_text(encoding="utf-8").lower().split()) for page in pages)
    return "".join(character for character in merged if character.isascii())


def trigram_bits(train_text: str, test_text: str, alphabet: int) -> float:
    """Bits a character of the 3-gram model with the add-k smoothing that is best on the test text itself."""
    triples = collections.Counter(zip(train_text, train_text[1:], train_text[2:], strict=False))
    pairs = collections.Counter(itertools.pairwise(train_text))
    found = []
    for k in (0.003, 0.01, 0.03, 0.1, 0.3):
        total = 0.0
        for a, b, c in zip(test_text, test_text[1:], test_text[2:], strict=False):
            total -= math.log2((triples[a, b, c] + k) / (pairs[a, b] + k * alphabet))
        found.append(total / (len(test_text) - 2))
    return min(found)


def characters(steps: int = 1200, hidden: int = 192, seed: int = 1) -> dict[str, float]:
    """Bits a character on the last tenth of `text`, of the LSTM and of the 3-gram model."""
    torch.manual_seed(seed)
    whole = text()
    alphabet = sorted(set(whole))
    numbers = torch.tensor([alphabet.index(character) for character in whole])
    cut = len(numbers) * 9 // 10
    model = nn.Sequential(nn.Embedding(len(alphabet), 32), Reader("lstm", 32, hidden, len(alphabet)))

    def loss_of() -> Tensor:
        starts = torch.randint(cut - 101, (32,))
        rows = numbers[starts + torch.arange(101)[:, None]]
        return nn.functional.cross_entropy(model(rows[:-1]).flatten(0, 1), rows[1:].flatten())

    train(model, loss_of, steps, 0.01)
    with torch.no_grad():
        held = numbers[cut:, None]
        loss = nn.functional.cross_entropy(model(held[:-1]).flatten(0, 1), held[1:].flatten())
    return {"lstm": float(loss) / math.log(2), "3-gram": trigram_bits(whole[:cut], whole[cut:], len(alphabet))}


def mackey_glass(points: int, tau: int = 17, step: float = 0.1) -> np.ndarray:
    """The series at whole time units after 500 units of warm-up, by Runge-Kutta of order 4 with a held delay."""
    delay = round(tau / step)
    history = [1.2] * (delay + 1)

    def slope(now: float, then: float) -> float:
        return 0.2 * then / (1 + then**10) - 0.1 * now

    for _ in range(round((500 + points) / step)):
        now, then = history[-1], history[-1 - delay]
        k1 = slope(now, then)
        k2 = slope(now + step / 2 * k1, then)
        k3 = slope(now + step / 2 * k2, then)
        k4 = slope(now + step * k3, then)
        history.append(now + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return np.asarray(history[:: -round(1 / step)][::-1][-points:])


def forecast(steps: int = 1500, ahead: int = 6, seed: int = 1) -> dict[str, float]:
    """Root mean square error over the series' deviation, of the second half forecast `ahead` units ahead."""
    torch.manual_seed(seed)
    series = mackey_glass(3000)
    mean, deviation = series[:1500].mean(), series[:1500].std()
    values = torch.tensor((series - mean) / deviation, dtype=torch.float32)
    model = Reader("lstm", 1, 48, 1)
    skipped = 50  # frames that the LSTM listens before it is asked

    def loss_of() -> Tensor:
        starts = torch.randint(1500 - 150 - ahead, (32,))
        rows = values[starts + torch.arange(150 + ahead)[:, None]]
        return (model(rows[:-ahead, :, None])[skipped:, :, 0] - rows[skipped + ahead :]).square().mean()

    train(model, loss_of, steps, 0.01)
    with torch.no_grad():
        told = model(values[1500:-ahead, None, None])[skipped:, 0, 0].numpy()
    truth = values[1500 + skipped + ahead :].numpy()
    rows = np.lib.stride_tricks.sliding_window_view(values.numpy(), 18)
    known = np.c_[rows[: 1500 - 18 - ahead], np.ones(1500 - 18 - ahead)]
    learnt = np.linalg.lstsq(known, values[17 + ahead : 1499].numpy(), None)[0]
    asked = rows[1500 + skipped - 17 : -ahead]
    errors = {
        "lstm": told - truth,
        "linear": np.c_[asked, np.ones(len(asked))] @ learnt - truth,
        "last value": values[1500 + skipped : -ahead].numpy() - truth,
    }
    return {name: float(np.sqrt(np.mean(error**2)) / truth.std()) for name, error in errors.items()}


def main() -> None:
    """Run all tasks and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks: dict[str, Callable[[], Any]] = {
        "adding, lag 100, mean square error": lambda: {kind: adding(kind) for kind in ("lstm", "rnn")},
        "adding, lag 200, mean square error": lambda: {kind: adding(kind, 200, 3000) for kind in ("lstm", "rnn")},
        "lag 100, share right": lambda: {kind: lag_task(kind) for kind in ("lstm", "rnn")},
        "characters, bits": characters,
        "forecast, relative error": forecast,
    }
    found = {}
    for name, run in tasks.items():
        found[name] = run()
        print(name, {key: round(value, 4) for key, value in found[name].items()}, flush=True)
    record = {
        "command": "python " + " ".join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "seed": 1,
        "tasks": found,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
