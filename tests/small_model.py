"""A small untrained model file for tests that ask what a recogniser does, not how well it hears."""

from pathlib import Path

import torch

from asr import checkpoint
from asr.model import AcousticModel

TOKENS = ["<blank>", "|", *"efghinorstuvwxz"]


def write(path: Path, rate: int = 8000, seed: int = 0, loud: float = 3.0) -> Path:
    """A model with large random weights: its emissions differ from frame to frame, and it hears nonsense."""
    torch.manual_seed(seed)
    shape = dict(
        features=20, tokens=len(TOKENS), stack=2, convolutions=[1], channels=16, hidden=24, layers=2, dropout=0.1,
        layer_norm=True,
    )  # fmt: skip
    model = AcousticModel(**shape)
    with torch.no_grad():
        model.head.weight.mul_(loud * 4)
        for layer in model.recurrent:
            for weight in layer.parameters():
                weight.mul_(loud)
    features = dict(
        kind="logmel",
        rate=rate,
        mels=20,
        window=0.025,
        hop=0.01,
        low=20.0,
        convention="slaney",
        normalize="utterance",
    )
    card = {
        "features": features,
        "normalizer": "basic",
        "tokens": TOKENS,
        "model": shape,
        "decoder": {"kind": "greedy"},
        "training": {"recipe": "none"},
    }
    checkpoint.save_model(path, model.state_dict(), card)
    return path
