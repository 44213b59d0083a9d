"""The optimiser, its one schedule, and the average of the weights that is kept as the model.

AdamW (Loshchilov and Hutter, 2019); linear warm-up, then cosine decay to a floor; exponential moving average of the
weights (Polyak and Juditsky, 1992, in the form of Szegedy et al., 2016), which is better than the last ones.
"""

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn


def adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over a model's parameters; weight decay on matrices only, not on biases and norms."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


def schedule(step: int, steps: int, warmup: float, floor: float) -> float:
    """Factor of the learning rate at `step` (from 0) of `steps`.

    Args:
        step: optimiser steps taken so far.
        steps: optimiser steps of the whole run.
        warmup: share of the run in which the factor rises linearly to 1.
        floor: factor at the end, reached on half a cosine.
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    progress = min(1.0, (step - rise) / max(1, steps - rise))
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def average_of(model: nn.Module) -> nn.Module:
    """A copy of `model` to hold the average of its weights; it takes no gradients."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What an optimiser remembers of each parameter, as ``optimizer.NUMBER.NAME``, for the state of a training."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{number}.{name}": tensor for number, own in state.items() for name, tensor in own.items()}


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `moments` gave; other tensors of a state may stand beside it."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            state.setdefault(int(number), {})[name] = tensor
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the weights after optimiser step `step` (from 1).

    Args:
        average: of `average_of`.
        model: its weights now.
        decay: share of the old average kept in a step; less in the first ones: `(1 + step) / (10 + step)`.
        step: optimiser steps taken.
    """
    keep = min(decay, (1 + step) / (10 + step))
    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1 - keep)
