"""Which code runs an LSTM, by one rule.

1. Dropout of gates, in training: `reference`, which alone has it.
2. `ASR_LSTM`, where it is set: that path, or an error where it can't be.
3. A GPU that has thread block clusters, fp16 or bf16, a size that the kernels cover: `fused`. Any other GPU: `cudnn`.
   The CPU: `cpu`. Any other device: `reference`.

Kernels are compiled and loaded when the path is chosen; where they can't be, one warning says why, and `cudnn` runs.

==============  =====================================================================================================
``reference``   the equations of `asr.lstm.reference`, a frame at a time: any device, any floating type
``cpu``         torch's kernel (oneDNN in float32), a direction at a time, each row reversed in its own length, rows
                sorted by length and only computed while they last
``cudnn``       cuDNN, a direction at a time in the same way, padding included (to leave it out would mean to wait for
                the GPU)
``fused``       `asr.lstm.op`: a layer's recurrence, both directions, as one kernel that holds its weights
==============  =====================================================================================================

Inside `torch.compile` and `torch.export`, `cpu` and `cudnn` are the op of `asr.lstm.scan`.
"""

import dataclasses
import os
import warnings
from typing import cast

import torch

from asr.lstm import op
from asr.lstm.cuda import launch

PATHS = {
    "reference": "the equations, a frame at a time",
    "cpu": "torch's CPU kernel, each direction by itself, rows only as long as they last",
    "cudnn": "cuDNN, each direction by itself",
    "fused": "a layer's recurrence as one kernel",
}
_asked: dict[tuple[torch.device, torch.dtype, int], str | None] = {}  # GPU, type and size: why not fused

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
    if gate_dropout:
        return Choice("reference", "it alone can drop gates")
    if forced == "fused" and (without := _without_kernels(device, dtype, hidden)):
        raise ValueError(f"{VARIABLE}=fused: {without}; set {VARIABLE}=auto")
    if forced != "auto":
        return Choice(forced, f"{VARIABLE} says so")
    if device.type == "cuda":
        without = _without_kernels(device, dtype, hidden)
        return Choice("cudnn", without) if without else Choice("fused", "the GPU and the type are covered")
    if device.type == "cpu":
        kernel = "oneDNN" if dtype == torch.float32 else f"torch's own, as oneDNN has none for {dtype}"
        return Choice("cpu", f"the tensors are on the CPU (its kernel: {kernel})")
    return Choice("reference", f"no other path runs on {device.type}")


def _without_kernels(device: torch.device, dtype: torch.dtype, hidden: int) -> str | None:
    """Why the fused kernels can't run there; None where they can, and are compiled and loaded."""
    if device.type in op.SCANS and device.type != "cuda":  # the host emulation of the tests
        return launch.why_not((9, 0), hidden, dtype)
    if device.type != "cuda":
        return f"the kernels run on NVIDIA GPUs, not on {device.type}"
    if not torch.cuda.is_available():
        return "torch finds no GPU here"
    index = torch.cuda.current_device() if device.index is None else device.index
    return _on_gpu(torch.device("cuda", index), dtype, hidden)


def _on_gpu(device: torch.device, dtype: torch.dtype, hidden: int) -> str | None:
    """As `_without_kernels`, asked once of each GPU, type and size."""
    key = device, dtype, hidden
    if key not in _asked:
        _asked[key] = launch.why_not(torch.cuda.get_device_capability(device), hidden, dtype)
        if _asked[key] is None:
            _asked[key] = cast(launch.CudaScans, op.scans_for(device)).why_not(device, hidden, dtype)
            if _asked[key]:
                warnings.warn(
                    f"asr.lstm: no fused kernels on {device}, cuDNN runs instead: {_asked[key]}", stacklevel=2
                )
    return _asked[key]
