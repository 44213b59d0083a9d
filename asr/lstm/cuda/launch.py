"""Launches the fused scans: which shapes there are, how rows are shared out, and the calls of the CUDA driver.

A shape is a padded hidden size (so many blocks a cluster, so many units a block), one or two tiles of 8 rows, and a
type. Up to 512 units, a block has 32 and its registers hold their weights. Above, each of 16 blocks has 40 or 48, whose
weights are too many: a part lies in shared memory, which in turn leaves no room for a second tile at 48.

How many clusters a device runs at once differs from part to part (a cluster never crosses a GPC) and is asked for.
Nothing here waits for the device: a launch can be captured in a graph once a shape has been used before.
"""

import ctypes
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from asr.lstm.cuda import nvrtc
from asr.lstm.cuda.nvrtc import Unavailable

__all__ = ["SHAPES", "CudaScans", "Kernel", "Plan", "Shape", "Unavailable", "plan", "shape_for", "why_not"]

ROWS = 8  # of a tile: as in common.cuh
LARGEST = 768  # hidden units
_TWO_TILES = 1.5  # what a step with two tiles takes, in steps with one: a guess until it is measured


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for."""

    cluster: int
    tiles: int
    fp16: bool
    units: int = 32
    parts: tuple[int, int] = (0, 0)  # of the weights, in shared memory: forward, backward

    @property
    def threads(self) -> int:
        """Threads of a block: one for each cell of a tile."""
        return ROWS * self.units

    def macros(self, kernel: str) -> dict[str, int]:
        """The shape as common.cuh wants it."""
        return {
            "LSTM_CLUSTER": self.cluster,
            "LSTM_TILES": self.tiles,
            "LSTM_FP16": int(self.fp16),
            "LSTM_UNITS": self.units,
            "LSTM_PARTS": self.parts[kernel == "backward"],
        }

    def shared_bytes(self, kernel: str) -> int:
        """Size of `Shared` in forward.cu or backward.cu."""
        parts, hidden = self.parts[kernel == "backward"], self.cluster * self.units
        fragments = 4 if kernel == "forward" else 2 * -(-self.cluster // 8)
        size = parts * fragments * self.threads * 16 if parts else 16
        if kernel == "forward":
            sharing = 2 if self.cluster % 4 or self.cluster < 8 else 4
            size += self.tiles * ROWS * (2 * hidden * 2 + 2 * self.units * 2 + self.units * 16)
            size += 2 * self.cluster // sharing * 8
        else:
            size += self.tiles * (2 * self.cluster * self.threads * 4 + 2 * self.units * 64) + 2 * 8
        return -(-size // 16) * 16


# By units and tiles: as few parts as let no register spill, of 10 at 40 units and of 12 at 48. A thread has 168
# registers in both: 10 or 12 warps mean 3 on a quarter of the multiprocessor, which shares 512 registers a lane.
_WIDE = {(40, 1): (3, 4), (40, 2): (5, 6), (48, 1): (5, 6)}
SHAPES = [Shape(cluster, tiles, fp16) for cluster in range(2, 17, 2) for tiles in (1, 2) for fp16 in (False, True)]
SHAPES += [Shape(16, tiles, fp16, units, parts) for (units, tiles), parts in _WIDE.items() for fp16 in (False, True)]


def shape_for(hidden: int, tiles: int, dtype: torch.dtype) -> Shape:
    """The shape for a hidden size, which is padded as `asr.lstm.op.padded` does."""
    fp16 = dtype == torch.float16
    if hidden <= 512:
        return Shape(-(-hidden // 64) * 2, tiles, fp16)
    units = 40 if hidden <= 640 else 48
    return Shape(16, tiles, fp16, units, _WIDE[units, tiles])


def most_tiles(hidden: int) -> int:
    """Tiles of 8 rows that a cluster can work on."""
    return 2 if hidden <= 640 else 1


def why_not(capability: tuple[int, int], hidden: int, dtype: torch.dtype, max_cluster: int | None = None) -> str | None:
    """Why the fused kernels do not cover a layer, in words for the user; None where they do.

    Args:
        capability: the device's compute capability.
        hidden: units of one direction.
        dtype: of the activations.
        max_cluster: most blocks a cluster may have; the default is what that capability allows.
    """
    if capability < (9, 0):
        return f"compute capability {capability[0]}.{capability[1]} has no thread block clusters (9.0 or newer has)"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the kernels compute in float16 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
    if not 1 <= hidden <= LARGEST:
        return f"hidden size {hidden}: the kernels hold 1 to {LARGEST} units"
    if max_cluster is None:
        max_cluster = 16 if capability < (12, 0) else 8  # consumer parts take the portable size only
    cluster = shape_for(hidden, 1, dtype).cluster
    if cluster > max_cluster:
        return f"hidden size {hidden} needs clusters of {cluster} blocks, the device takes {max_cluster}"
    return None


@dataclass(frozen=True)
class Plan:
    """Rows in `groups` groups of nearly the same size, each at most `tiles` tiles of 8 rows; a cluster a direction."""

    groups: int
    tiles: int


def plan(batch: int, directions: int, fit: int, tiles: int = 2) -> Plan:
    """Share out `batch` rows (at least 1) where `fit` clusters run at once; more clusters than fit run one by one.

    Two tiles a cluster make each step longer, but fewer clusters; where a cluster can have two `tiles`, the faster of
    both by estimate is taken.
    """
    small = -(-batch // ROWS)
    if tiles == 1:
        return Plan(small, 1)
    plans = [Plan(small, 1), Plan(max(-(-small // 2), min(small, fit // directions)), 2)]
    return min(plans, key=lambda p: -(-p.groups * directions // fit) * (1 if p.tiles == 1 else _TWO_TILES))


@dataclass(frozen=True)
class Kernel:
    """A kernel loaded on a device; `fit` clusters of it run at once."""

    function: Any
    shape: Shape
    shared_bytes: int
    fit: int


class CudaScans:
    """`asr.lstm.op.Scans` on CUDA devices.

    Args:
        driver: the binding of the CUDA driver; the default is cuda-bindings'.
        bounded: whether a wait inside a kernel gives up after two seconds with an error of the device.
    """

    def __init__(self, driver: ModuleType | None = None, bounded: bool = False) -> None:
        self._own_driver, self._bounded = driver, bounded
        self._kernels: dict[tuple[int, str, Shape], Kernel] = {}
        self._lock = threading.Lock()  # autograd runs backward in a thread of its own

    def forward(
        self,
        weight_hh: Tensor,
        gates: Tensor,
        cells: Tensor | None,
        output: Tensor,
        h0: Tensor,
        c0: Tensor,
        h_n: Tensor,
        c_n: Tensor,
        order: Tensor,
        lengths: Tensor,
    ) -> None:
        """Launch the forward scan on the current stream; the tensors are those of `Scans.forward`."""
        tensors = [weight_hh, gates, cells, output, h0, c0, h_n, c_n, order, lengths]
        self._scan("forward", gates, tensors)

    def backward(
        self,
        weight_hh: Tensor,
        gates: Tensor,
        cells: Tensor,
        d_output: Tensor,
        c0: Tensor,
        d_h_n: Tensor | None,
        d_c_n: Tensor | None,
        dgates: Tensor,
        d_h0: Tensor,
        d_c0: Tensor,
        order: Tensor,
        lengths: Tensor,
    ) -> None:
        """Launch the backward scan on the current stream; the tensors are those of `Scans.backward`."""
        tensors = [weight_hh, gates, cells, d_output, c0, d_h_n, d_c_n, dgates, d_h0, d_c0, order, lengths]
        self._scan("backward", gates, tensors)

    def kernel(self, name: str, shape: Shape, device: torch.device) -> Kernel:
        """The kernel "forward" or "backward" of a shape, compiled and loaded on its first use.

        Raises:
            Unavailable: it can't be compiled or loaded, or no cluster of it fits on the device.
        """
        index = device.index or 0
        with self._lock:
            key = (index, name, shape)
            if key not in self._kernels:
                with self._context(device):
                    self._kernels[key] = self._load(name, shape, index)
            return self._kernels[key]

    def why_not(self, device: torch.device, hidden: int, dtype: torch.dtype) -> str | None:
        """As the function `why_not`, and whether the kernels can be compiled and loaded here, which it does."""
        if reason := why_not(torch.cuda.get_device_capability(device), hidden, dtype):
            return reason
        try:
            for name in ("forward", "backward"):
                self.kernel(name, shape_for(hidden, 1, dtype), device)
        except Unavailable as error:
            return str(error)
        return None

    def _scan(self, name: str, gates: Tensor, tensors: list[Tensor | None]) -> None:
        frames, batch, directions, hidden, _ = gates.shape
        if not batch:
            return
        if reason := why_not(torch.cuda.get_device_capability(gates.device), hidden, gates.dtype):
            raise Unavailable(reason)
        fit = self.kernel(name, shape_for(hidden, 1, gates.dtype), gates.device).fit
        chosen = plan(batch, directions, fit, most_tiles(hidden))
        kernel = self.kernel(name, shape_for(hidden, chosen.tiles, gates.dtype), gates.device)
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        values = (*pointers, frames, batch, directions, chosen.groups)
        types = (*[ctypes.c_void_p] * len(pointers), *[ctypes.c_int] * 4)
        clusters = chosen.groups * directions
        driver = self._driver()
        with self._context(gates.device):
            config = _config(driver, kernel.shape, clusters, kernel.shared_bytes)
            config.hStream = torch.cuda.current_stream(gates.device).cuda_stream
            (status,) = driver.cuLaunchKernelEx(config, kernel.function, (values, types), 0)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"the fused LSTM's {name} scan was not launched: {status.name}")

    def _load(self, name: str, shape: Shape, index: int) -> Kernel:
        driver = self._driver()
        device = self._result(driver.cuDeviceGet(index))
        arch = nvrtc.architecture(torch.cuda.get_device_capability(index))
        shared = shape.shared_bytes(name)
        limit = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        if shared > (most := self._result(driver.cuDeviceGetAttribute(limit, device))):
            raise Unavailable(f"the {name} scan needs {shared} bytes of shared memory a block, the device has {most}")
        macros = shape.macros(name) | ({"LSTM_BOUNDED": 1} if self._bounded else {})
        try:
            library = self._library(nvrtc.cubin(name, macros, arch))
        except Unavailable:  # a cached file that is whole and yet can't be loaded
            library = self._library(nvrtc.cubin(name, macros, arch, fresh=True))
        kernel = self._result(driver.cuLibraryGetKernel(library, f"lstm_{name}".encode()))
        attributes = driver.CUfunction_attribute
        for attribute, value in (
            (attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared),
            (attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
        ):
            self._result(driver.cuKernelSetAttribute(attribute, value, kernel, device))
        function = self._result(driver.cuKernelGetFunction(kernel))
        config = _config(driver, shape, 1, shared)
        fit = self._result(driver.cuOccupancyMaxActiveClusters(function, config))
        if fit < 1:
            raise Unavailable(f"no cluster of {shape.cluster} thread blocks fits on this device")
        return Kernel(function, shape, shared, fit)

    def _library(self, code: bytes) -> Any:
        return self._result(self._driver().cuLibraryLoadData(code, [], [], 0, [], [], 0))

    def _driver(self) -> ModuleType:
        if self._own_driver is None:
            try:
                self._own_driver = importlib.import_module("cuda.bindings.driver")
            except ImportError as error:
                raise Unavailable(f"cuda-bindings is not to be had ({error}); torch's CUDA build brings it") from error
        return self._own_driver

    @contextmanager
    def _context(self, device: torch.device) -> Iterator[None]:
        """Makes the device's context current: a thread of autograd may not have touched the device yet."""
        driver = self._driver()
        with torch.cuda.device(device):
            if not int(self._result(driver.cuCtxGetCurrent())):
                handle = self._result(driver.cuDeviceGet(device.index or 0))
                self._result(driver.cuCtxSetCurrent(self._result(driver.cuDevicePrimaryCtxRetain(handle))))
            yield

    def _result(self, answer: tuple[Any, ...]) -> Any:
        """What a function of the driver returned behind its status. Raises Unavailable where that isn't success."""
        status, *values = answer
        if status != self._driver().CUresult.CUDA_SUCCESS:
            raise Unavailable(f"the CUDA driver refuses the fused LSTM: {status.name}")
        return values[0] if values else None


def _config(driver: ModuleType, shape: Shape, clusters: int, shared_bytes: int) -> Any:
    """A launch of `clusters` clusters; the driver counts the grid in blocks."""
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    size = attribute.value.clusterDim
    size.x, size.y, size.z = shape.cluster, 1, 1
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = clusters * shape.cluster, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = shape.threads, 1, 1
    config.sharedMemBytes = shared_bytes
    config.attrs = [attribute]
    config.numAttrs = 1
    return config
