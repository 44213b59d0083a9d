"""The optimiser and its one schedule: AdamW (Loshchilov and Hutter, 2019), linear warm-up, cosine decay to a floor."""

import math

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
