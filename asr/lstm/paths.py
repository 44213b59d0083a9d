"""Which code runs an LSTM, by one rule.

1. Dropout of gates, in training: `reference`, which alone has it.
2. `ASR_LSTM`, where it is set: that path, or an error where it can't be.
3. A GPU: `cudnn`. The CPU: `cpu`. Any other device: `reference`.

==============  =====================================================================================================
``reference``   the equations of `asr.lstm.reference`, a frame at a time: any device, any floating type
``cpu``         torch's kernel (oneDNN in float32), a direction at a time, each row reversed in its own length, rows
                sorted by length and only computed while they last
``cudnn``       cuDNN, a direction at a time in the same way, padding included (to leave it out would mean to wait for
                the GPU)
==============  =====================================================================================================

Inside `torch.compile` and `torch.export`, `cpu` and `cudnn` are the op of `asr.lstm.scan`.
"""

import dataclasses
import os

import torch

PATHS = {
    "reference": "the equations, a frame at a time",
    "cpu": "torch's CPU kernel, each direction by itself, rows only as long as they last",
    "cudnn": "cuDNN, each direction by itself",
}
VARIABLE = "ASR_LSTM"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A path and the reason for it."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {PATHS[self.path]}; {self.reason}"


def choose(device: torch.device, dtype: torch.dtype, gate_dropout: bool = False) -> Choice:
    """The path for tensors.

    Args:
        device: where they are.
        dtype: of which type.
        gate_dropout: whether gates are dropped (in training).

    Raises:
        ValueError: `ASR_LSTM` names no path, or one that can't run there.
    """
    forced = os.environ.get(VARIABLE, "auto")
    if forced not in ("auto", *PATHS):
        raise ValueError(f"{VARIABLE}={forced}: known are auto, {', '.join(PATHS)}")
    needed = {"cpu": "cpu", "cudnn": "cuda"}.get(forced, device.type)
    if needed != device.type:
        raise ValueError(f"{VARIABLE}={forced}: runs on {needed} only, not on {device.type}; set {VARIABLE}=auto")
    if gate_dropout:
        return Choice("reference", "it alone can drop gates")
    if forced != "auto":
        return Choice(forced, f"{VARIABLE} says so")
    if device.type == "cuda":
        return Choice("cudnn", "the tensors are on a GPU")
    if device.type == "cpu":
        kernel = "oneDNN" if dtype == torch.float32 else f"torch's own, as oneDNN has none for {dtype}"
        return Choice("cpu", f"the tensors are on the CPU (its kernel: {kernel})")
    return Choice("reference", f"no other path runs on {device.type}")
