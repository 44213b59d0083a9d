"""Which code runs an LSTM, by one rule.

1. Dropout of gates, in training: `reference`, which alone has it.
2. `ASR_LSTM`, where it is set: that path, or an error where it can't be.
3. A GPU that has thread block clusters, fp16 or bf16, a size that the kernels cover: `fused`. Any other GPU: `cudnn`.
   The CPU: `cpu`. Any other device: `reference`.

Kernels that can't be built or loaded are told of in one warning, and that device goes on with `cudnn`.

==============  =====================================================================================================
``reference``   the equations of `asr.lstm.reference`, a frame at a time: any device, any floating type
``cpu``         torch's kernel (oneDNN in float32), a direction at a time, each row reversed in its own length, rows
                sorted by length and only computed while they last
``cudnn``       cuDNN, a direction at a time in the same way, padding included (to leave it out would mean to wait for
                the GPU)
``fused``       `asr.lstm.op`: a layer's recurrence, both directions, as one kernel with its weights in registers
==============  =====================================================================================================

Inside `torch.compile` and `torch.export`, `cpu` and `cudnn` are the op of `asr.lstm.scan`.
"""

import dataclasses
import os
import warnings

import torch

from asr.lstm import op
from asr.lstm.cuda import launch

PATHS = {
    "reference": "the equations, a frame at a time",
    "cpu": "torch's CPU kernel, each direction by itself, rows only as long as they last",
    "cudnn": "cuDNN, each direction by itself",
    "fused": "a layer's recurrence as one kernel",
}
_broken: dict[torch.device, str] = {}  # where the kernels could not be had, and why

VARIABLE = "ASR_LSTM"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A path and the reason for it."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {PATHS[self.path]}; {self.reason}"


def choose(device: torch.device, dtype: torch.dtype, hidden: int, gate_dropout: bool = False) -> Choice:
    """The path for tensors.

    Args:
        device: where they are.
        dtype: of which type (that of autocast, where it is on).
        hidden: units of a direction.
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
    without = _without_kernels(device, dtype, hidden)
    if forced == "fused" and without:
        raise ValueError(f"{VARIABLE}=fused: {without}; set {VARIABLE}=auto")
    if gate_dropout:
        return Choice("reference", "it alone can drop gates")
    if forced != "auto":
        return Choice(forced, f"{VARIABLE} says so")
    if device.type == "cuda":
        return Choice("cudnn", without) if without else Choice("fused", "the GPU and the type are covered")
    if device.type == "cpu":
        kernel = "oneDNN" if dtype == torch.float32 else f"torch's own, as oneDNN has none for {dtype}"
        return Choice("cpu", f"the tensors are on the CPU (its kernel: {kernel})")
    return Choice("reference", f"no other path runs on {device.type}")


def give_up(device: torch.device, reason: str) -> None:
    """Leave the kernels of `device` alone from now on, and say so once."""
    if device not in _broken:
        _broken[device] = reason
        warnings.warn(f"asr.lstm: no fused kernels on {device}, cuDNN runs instead: {reason}", stacklevel=2)


def _without_kernels(device: torch.device, dtype: torch.dtype, hidden: int) -> str | None:
    """Why the fused kernels can't run there; None where they can."""
    if device in _broken:
        return _broken[device]
    if device.type in op.SCANS and device.type != "cuda":  # the host emulation of the tests
        return launch.why_not((9, 0), hidden, dtype)
    if device.type != "cuda":
        return f"the kernels run on NVIDIA GPUs, not on {device.type}"
    if not torch.cuda.is_available():
        return "torch finds no GPU here"
    return launch.why_not(torch.cuda.get_device_capability(device), hidden, dtype)
