"""Builds the unchanged kernels for the host (emulation.h) and runs them as the scans of a CPU device."""

import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from asr.lstm import op
from asr.lstm.cuda import launch

HERE = Path(__file__).parent
KERNELS = Path(op.__file__).parent / "cuda"
BUILDS = tempfile.TemporaryDirectory(prefix="asr-emulation-")

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="needs g++ on Linux to emulate the kernels"
)


@functools.lru_cache
def build(kernel: str, shape: launch.Shape, edits: tuple[tuple[str, str], ...] = ()) -> str:
    """Compile one kernel ("forward", "backward") of one shape; returns the library's path.

    `edits` are replacements in the sources of the kernel, for tests that plant a fault.
    """
    folder = Path(tempfile.mkdtemp(dir=BUILDS.name))
    texts = {name: (KERNELS / name).read_text() for name in (f"{kernel}.cu", "common.cuh")}
    for old, new in edits:
        assert any(old in text for text in texts.values()), f"the kernels have no text {old!r}"
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    for name, text in texts.items():
        (folder / name).write_text(text)
    library = folder / "kernel.so"
    options = [f"-D{name}={value}" for name, value in shape.macros(kernel).items()]
    options += [f'-DKERNEL_FILE="{folder / kernel}.cu"', f"-I{HERE}"] + ["-DBACKWARD"] * (kernel == "backward")
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", *options]
    done = subprocess.run([*command, str(HERE / "main.cc"), "-o", str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr or edits, done.stderr
    return str(library)


class EmulationError(Exception):
    """A kernel broke a rule of the machine, or waits for ever."""


class EmulatedScans:
    """`asr.lstm.op.Scans` on the host; `tiles` of 8 rows a cluster, under the schedule of `seed`.

    `shape` is another one than the launcher would take for a size: wide blocks in a small cluster.
    """

    def __init__(
        self,
        tiles: int = 1,
        seed: int = 0,
        edits: dict[str, tuple[tuple[str, str], ...]] | None = None,
        shape: launch.Shape | None = None,
    ):
        self.tiles, self.seed, self.edits, self.shape = tiles, seed, edits or {}, shape

    def forward(self, weight_hh, gates, cells, output, h0, c0, h_n, c_n, order, lengths):
        for result in (cells, output, h_n, c_n):
            poison(result)
        self._run("forward", gates, [weight_hh, gates, cells, output, h0, c0, h_n, c_n], order, lengths)

    def backward(
        self, weight_hh, gates, cells, d_output, c0, d_h_n, d_c_n, dgates, d_h0, d_c0, order, lengths
    ):  # fmt: skip
        for result in (dgates, d_h0, d_c0):
            poison(result)
        tensors = [weight_hh, gates, cells, d_output, c0, d_h_n, d_c_n, dgates, d_h0, d_c0]
        self._run("backward", gates, tensors, order, lengths)

    def _run(self, kernel, gates, tensors, order, lengths):
        frames, batch, directions, hidden, _ = gates.shape
        shape = self.shape or launch.shape_for(hidden, self.tiles, gates.dtype)
        assert (shape.cluster * shape.units, shape.fp16) == (hidden, gates.dtype == torch.float16)
        library = ctypes.CDLL(build(kernel, shape, self.edits.get(kernel, ())))
        groups = -(-batch // (8 * shape.tiles))
        assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
        pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
        rows = [ctypes.c_void_p(order.data_ptr()), ctypes.c_void_p(lengths.data_ptr())]
        library.run.restype = ctypes.c_char_p
        fault = library.run(
            groups * directions, ctypes.c_uint64(self.seed), *pointers, *rows, frames, batch, directions, groups
        )
        if fault:
            raise EmulationError(f"{kernel}: {fault.decode()}")


def poison(result):
    """NaN where a kernel must write."""
    if result is not None:
        result.fill_(float("nan"))
