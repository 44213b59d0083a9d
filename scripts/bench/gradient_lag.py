"""Draw how far back a gradient reaches: an LSTM against a plain RNN, both as they are initialised.

    python scripts/bench/gradient_lag.py --out docs/gradient_lag.png

The norm of the gradient of the last output with respect to the input `lag` frames earlier, over the norm at lag 0;
middle and range of 20 seeds, width 64, inputs drawn from a normal distribution.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from torch import nn

from asr.lstm import LSTM

FRAMES, WIDTH, SEEDS = 200, 64, 20


def main() -> None:
    """Compute the curves and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    kinds: dict[str, Callable[[], nn.Module]] = {
        "plain RNN": lambda: nn.RNN(WIDTH, WIDTH),
        "LSTM": lambda: LSTM(WIDTH, WIDTH),
        "LSTM, forget gates open at the start (bias 5)": lambda: LSTM(WIDTH, WIDTH, forget_bias=5.0),
    }
    for name, make in kinds.items():
        curves = torch.stack([norms(make, seed) for seed in range(SEEDS)])
        [drawn] = axes.semilogy(curves.median(0).values, label=name)
        low, high = curves.min(0).values, curves.max(0).values
        axes.fill_between(range(FRAMES), low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="lag, frames", ylabel="norm of the gradient, relative to lag 0", ylim=(1e-12, 10), xlim=(0, FRAMES))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(options.out, dpi=120, metadata={"Software": None})


def norms(make: Callable[[], nn.Module], seed: int) -> torch.Tensor:
    """Norms `(FRAMES,)` of the gradient by lag, relative to lag 0."""
    torch.manual_seed(seed)
    layer = make()
    frames = torch.randn(FRAMES, 1, WIDTH, requires_grad=True)
    output, _ = layer(frames)
    [gradient] = torch.autograd.grad(output[-1].sum(), frames)
    by_lag = gradient[:, 0].norm(dim=1).flip(0)
    return by_lag / by_lag[0]


if __name__ == "__main__":
    main()
