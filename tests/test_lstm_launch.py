"""What the launcher asks of the CUDA driver, seen by a driver that only writes it down; which layers it covers."""

import contextlib
import ctypes
from types import SimpleNamespace

import pytest
import torch

from asr.lstm import op
from asr.lstm.cuda import launch, nvrtc


class Status(SimpleNamespace):
    pass


SUCCESS, FAILURE = Status(name="CUDA_SUCCESS"), Status(name="CUDA_ERROR_NO_BINARY_FOR_GPU")


class Driver:
    """Answers like cuda.bindings.driver; `calls` holds what was asked, `fit` clusters run at once."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=SUCCESS)
    CUlaunchAttributeID = SimpleNamespace(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION="cluster")
    CUfunction_attribute = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared",
        CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED="large",
    )
    CUdevice_attribute = SimpleNamespace(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN="most shared")
    CUlaunchConfig = SimpleNamespace

    def __init__(self, fit=7, loads=(SUCCESS,), launches=SUCCESS, shared=227 << 10):
        self.fit, self.loads, self.launches, self.shared = fit, list(loads), launches, shared
        self.calls, self.current = [], 0

    def CUlaunchAttribute(self):
        return SimpleNamespace(value=SimpleNamespace(clusterDim=SimpleNamespace()))

    def cuCtxGetCurrent(self):
        return SUCCESS, self.current

    def cuDeviceGet(self, index):
        return SUCCESS, f"device {index}"

    def cuDeviceGetAttribute(self, attribute, device):
        assert (attribute, device) == ("most shared", "device 0")
        return SUCCESS, self.shared

    def cuDevicePrimaryCtxRetain(self, device):
        return SUCCESS, 99

    def cuCtxSetCurrent(self, context):
        self.current = context
        return (SUCCESS,)

    def cuLibraryLoadData(self, code, *options):
        self.calls.append(("load", code))
        return self.loads.pop(0) if len(self.loads) > 1 else self.loads[0], "library"

    def cuLibraryGetKernel(self, library, name):
        return SUCCESS, name.decode()

    def cuKernelSetAttribute(self, attribute, value, kernel, device):
        self.calls.append((attribute, value, kernel, device))
        return (SUCCESS,)

    def cuKernelGetFunction(self, kernel):
        return SUCCESS, f"function {kernel}"

    def cuOccupancyMaxActiveClusters(self, function, config):
        self.calls.append(("occupancy", function, config))
        return SUCCESS, self.fit

    def cuLaunchKernelEx(self, config, function, parameters, extra):
        assert self.current == 99
        self.calls.append(("launch", function, config, parameters))
        return (self.launches,)

    def named(self, name):
        return [call for call in self.calls if call[0] == name]


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Torch's side of a device of capability 9.0, and a compiler that gives the kernel's name."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1234))
    monkeypatch.setattr(nvrtc, "cubin", lambda kernel, macros, arch, fresh=False: (kernel, macros, arch, fresh))


def forward(driver, hidden=512, batch=20, keep=True, **options):
    """Launch a forward scan; returns its tensors by name, in the kernel's order."""
    state = torch.zeros(2, batch, hidden)
    half = state.bfloat16()
    gates, output = torch.zeros(3, batch, 2, hidden, 4).bfloat16(), torch.zeros(3, batch, 2, hidden).bfloat16()
    tensors = {
        "weight_hh": torch.zeros(2, 4, 1, 1), "gates": gates, "cells": output.float() if keep else None,
        "output": output, "h0": half, "c0": state, "h_n": half.clone(), "c_n": state.clone(),
        "order": torch.arange(batch), "lengths": torch.ones(batch, dtype=torch.int64),
    }  # fmt: skip
    launch.CudaScans(driver, **options).forward(**tensors)
    return tensors


def test_the_arguments_are_the_kernels_in_their_order():
    driver = Driver()
    tensors = forward(driver)
    ((_, function, _, (values, types)),) = driver.named("launch")
    assert function == "function lstm_forward"
    assert values == (*(tensor.data_ptr() for tensor in tensors.values()), 3, 20, 2, 3)
    assert types == (*[ctypes.c_void_p] * 10, *[ctypes.c_int] * 4)
    declared = parameters("forward")
    assert [name for _, name in declared[:10]] == list(tensors)
    assert declared[10:] == [("int", name) for name in ("frames", "batch", "directions", "groups")]
    assert [kind for kind, _ in declared[8:10]] == ["i64*", "i64*"]


def test_the_backward_arguments_are_the_kernels_in_their_order():
    driver = Driver()
    state = torch.zeros(1, 5, 64)
    gates = torch.zeros(2, 5, 1, 64, 4).half()
    tensors = [
        torch.zeros(1), gates, torch.zeros(2, 5, 1, 64), torch.zeros(2, 5, 1, 64).half(), state, None, None,
        gates.clone(), state.clone(), state.clone(), torch.arange(5), torch.ones(5, dtype=torch.int64),
    ]  # fmt: skip
    launch.CudaScans(driver).backward(*tensors)
    ((_, function, config, (values, types)),) = driver.named("launch")
    assert function == "function lstm_backward"
    assert values == (*(0 if tensor is None else tensor.data_ptr() for tensor in tensors), 2, 5, 1, 1)
    assert len(types) == len(values) == len(parameters("backward"))
    assert [name for _, name in parameters("backward")][:10] == (
        ["weight_hh", "gates", "cells", "d_output", "c0", "d_h_n", "d_c_n", "dgates", "d_h0", "d_c0"]
    )
    assert (config.gridDimX, config.attrs[0].value.clusterDim.x) == (2, 2)


def parameters(kernel):
    """(type, name) of a kernel's parameters, from its source."""
    header = (nvrtc.SOURCES / "common.cuh").read_text().split("#define ROWS_PARAMETERS ")[1].split("\n")[0]
    text = (nvrtc.SOURCES / f"{kernel}.cu").read_text().split("KERNEL ")[1].split(") {")[0].split("(")[1]
    found = []
    for item in text.replace("ROWS_PARAMETERS", header).split(","):
        words = item.replace("const ", "").replace("__restrict__ ", "").replace(" *", "* ").split()
        found.append((words[0], words[-1]))
    return found


def test_the_grid_counts_blocks_and_names_the_cluster():
    driver = Driver(fit=7)
    forward(driver, hidden=320, batch=20)  # 3 groups of at most 8 rows in 2 directions: 6 clusters
    ((_, _, config, _),) = driver.named("launch")
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (60, 1, 1)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (256, 1, 1)
    assert config.hStream == 1234
    (attribute,) = config.attrs
    size = attribute.value.clusterDim
    assert (attribute.id, size.x, size.y, size.z, config.numAttrs) == ("cluster", 10, 1, 1, 1)
    assert config.sharedMemBytes == launch.Shape(10, 1, False).shared_bytes("forward")


def test_the_drivers_own_binding_takes_the_launch():
    driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings, a part of torch's CUDA build")
    config = launch._config(driver, launch.Shape(16, 1, False, 48), 6, 1000)
    config.hStream = 1234
    size = config.attrs[0].value.clusterDim
    assert (config.gridDimX, config.blockDimX, config.sharedMemBytes, int(config.hStream)) == (96, 384, 1000, 1234)
    assert config.attrs[0].id == driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    assert (size.x, size.y, size.z) == (16, 1, 1)


class Probe:
    """The real binding where no driver is: arguments are converted before it finds that out, then an answer is made."""

    def __init__(self, binding):
        self.binding, self.called = binding, []
        self.answers = {
            "cuCtxGetCurrent": binding.CUcontext(0),
            "cuDeviceGet": binding.CUdevice(0),
            "cuDeviceGetAttribute": 227 << 10,
            "cuDevicePrimaryCtxRetain": binding.CUcontext(9),
            "cuLibraryLoadData": binding.CUlibrary(9),
            "cuLibraryGetKernel": binding.CUkernel(9),
            "cuKernelGetFunction": binding.CUfunction(9),
            "cuOccupancyMaxActiveClusters": 7,
        }

    def __getattr__(self, name):
        real = getattr(self.binding, name)
        if not name.startswith("cu"):
            return real

        def call(*arguments):
            with pytest.raises(Exception, match="cuda") as failure:  # which one depends on the binding's version
                real(*arguments)
            assert not isinstance(failure.value, TypeError | ValueError | OverflowError), failure.value
            self.called.append(name)
            success = self.binding.CUresult.CUDA_SUCCESS
            return (success, self.answers[name]) if name in self.answers else (success,)

        return call


def test_the_drivers_own_binding_takes_the_arguments_of_every_call(monkeypatch):
    driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings, a part of torch's CUDA build")
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA driver")
    monkeypatch.setattr(nvrtc, "cubin", lambda *arguments: b"code")
    probe = Probe(driver)
    forward(probe)
    assert {*probe.answers, "cuCtxSetCurrent", "cuKernelSetAttribute", "cuLaunchKernelEx"} == set(probe.called)
    with pytest.raises(AssertionError, match="incorrect type"):
        probe.cuLaunchKernelEx("no configuration", None, None, 0)


def test_large_clusters_and_shared_memory_are_allowed_before_they_are_asked_about():
    driver = Driver()
    forward(driver)
    shared = launch.Shape(16, 1, False).shared_bytes("forward")
    names = [call[0] for call in driver.calls]
    assert names == ["load", "shared", "large", "occupancy", "launch"]
    assert driver.calls[1] == ("shared", shared, "lstm_forward", "device 0")
    assert driver.calls[2] == ("large", 1, "lstm_forward", "device 0")
    assert driver.calls[3][2].sharedMemBytes == shared
    assert driver.calls[0][1] == ("forward", launch.Shape(16, 1, False).macros("forward"), "sm_90a", False)


def test_a_kernel_is_loaded_once_and_a_second_tile_only_where_it_pays():
    driver = Driver(fit=7)
    scans = launch.CudaScans(driver)
    cpu = torch.device("cpu")
    assert scans.kernel("forward", launch.SHAPES[0], cpu) is scans.kernel("forward", launch.SHAPES[0], cpu)
    assert len(driver.named("load")) == 1
    driver = Driver(fit=7)
    forward(driver, batch=32)
    assert [call[1][1]["LSTM_TILES"] for call in driver.named("load")] == [1, 2]
    assert driver.named("launch")[0][3][0][-1] == 3


@pytest.mark.parametrize(
    ("hidden", "batch", "groups", "shape"),
    [
        (640, 8, 1, launch.Shape(16, 1, False, 40, (3, 4))),
        (640, 32, 3, launch.Shape(16, 2, False, 40, (5, 6))),
        (768, 32, 4, launch.Shape(16, 1, False, 48, (5, 6))),
    ],
)
def test_wide_layers_have_larger_blocks(hidden, batch, groups, shape):
    driver = Driver(fit=7)
    forward(driver, hidden, batch)
    ((_, _, config, (values, _)),) = driver.named("launch")
    assert driver.named("load")[-1][1][1] == shape.macros("forward")
    assert (config.gridDimX, config.blockDimX) == (groups * 32, shape.units * 8)
    assert config.sharedMemBytes == shape.shared_bytes("forward")
    assert values[-1] == groups


def test_a_device_with_less_shared_memory_is_refused_before_anything_is_compiled():
    driver = Driver(shared=99 << 10)
    with pytest.raises(launch.Unavailable, match=r"the forward scan needs .* the device has 101376"):
        forward(driver, hidden=768)
    assert not driver.calls


def test_nothing_is_kept_where_there_is_no_backward():
    driver = Driver()
    forward(driver, keep=False)
    assert driver.named("launch")[0][3][0][2] == 0


def test_no_rows_are_no_launch():
    driver = Driver()
    forward(driver, batch=0)
    assert not driver.calls


def test_bounded_kernels_are_other_kernels():
    driver = Driver()
    forward(driver, bounded=True)
    assert driver.named("load")[0][1][1]["LSTM_BOUNDED"] == 1


def test_code_that_cannot_be_loaded_is_compiled_once_more():
    driver = Driver(loads=(FAILURE, SUCCESS))
    forward(driver)
    assert [call[1][3] for call in driver.named("load")] == [False, True]
    with pytest.raises(launch.Unavailable, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
        forward(Driver(loads=(FAILURE,)))


def test_a_device_where_no_cluster_fits_is_refused():
    with pytest.raises(launch.Unavailable, match="no cluster of 16 thread blocks fits"):
        forward(Driver(fit=0))


def test_a_device_says_why_not_after_trying():
    driver, cuda = Driver(), torch.device("cuda", 0)
    assert launch.CudaScans(driver).why_not(cuda, 100, torch.float16) is None
    assert [call[1][:2] for call in driver.named("load")] == [
        (name, launch.Shape(4, 1, True).macros(name)) for name in ("forward", "backward")
    ]
    assert "float32" in launch.CudaScans(Driver()).why_not(cuda, 100, torch.float32)
    assert "refuses" in launch.CudaScans(Driver(loads=(FAILURE,))).why_not(cuda, 100, torch.float16)


def test_a_failed_launch_is_an_error():
    with pytest.raises(RuntimeError, match="forward scan was not launched"):
        forward(Driver(launches=FAILURE))


def test_the_table_has_every_size_once():
    assert len(set(launch.SHAPES)) == len(launch.SHAPES) == 38
    for hidden in range(1, 769):
        width = op.padded(hidden)
        for tiles in range(1, launch.most_tiles(hidden) + 1):
            shape = launch.shape_for(hidden, tiles, torch.bfloat16)
            assert shape in launch.SHAPES
            assert shape == launch.shape_for(width, tiles, torch.bfloat16)
            assert shape.cluster * shape.units == width >= hidden
    for shape in launch.SHAPES:
        for kernel in ("forward", "backward"):
            assert shape.shared_bytes(kernel) <= (99 if shape.units == 32 else 227) << 10


@pytest.mark.parametrize(
    ("batch", "directions", "fit", "groups", "tiles"),
    [
        (1, 2, 7, 1, 1),
        (8, 2, 7, 1, 1),
        (24, 2, 7, 3, 1),
        (32, 2, 7, 3, 2),
        (64, 2, 7, 8, 1),
        (32, 2, 15, 4, 1),
        (64, 2, 15, 7, 2),
        (16, 1, 1, 1, 2),
        (9, 2, 1, 1, 2),
    ],
)
def test_rows_are_shared_out_among_the_clusters_that_fit(batch, directions, fit, groups, tiles):
    assert launch.plan(batch, directions, fit) == launch.Plan(groups, tiles)


def test_where_a_cluster_has_one_tile_there_are_as_many_clusters_as_it_takes():
    assert [launch.plan(batch, 2, 7, tiles=1) for batch in (8, 32, 64)] == [launch.Plan(n, 1) for n in (1, 4, 8)]


def test_no_cluster_gets_more_rows_than_its_tiles_hold():
    for batch in range(1, 200):
        for fit in (1, 2, 3, 7, 15, 66):
            plan = launch.plan(batch, 2, fit)
            sizes = [(i + 1) * batch // plan.groups - i * batch // plan.groups for i in range(plan.groups)]
            assert 0 < min(sizes) <= max(sizes) <= plan.tiles * 8
            assert sum(sizes) == batch


@pytest.mark.parametrize(
    ("capability", "hidden", "dtype", "max_cluster", "reason"),
    [
        ((9, 0), 512, torch.bfloat16, None, None),
        ((10, 0), 512, torch.float16, None, None),
        ((12, 0), 256, torch.float16, None, None),
        ((9, 0), 1, torch.float16, None, None),
        ((9, 0), 768, torch.bfloat16, None, None),
        ((8, 6), 64, torch.float16, None, "8.6 has no thread block clusters"),
        ((9, 0), 769, torch.float16, None, "hidden size 769: the kernels hold 1 to 768 units"),
        ((12, 0), 640, torch.float16, None, "clusters of 16 blocks, the device takes 8"),
        ((9, 0), 0, torch.float16, None, "hidden size 0"),
        ((9, 0), 64, torch.float32, None, "not in float32"),
        ((12, 0), 257, torch.float16, None, "clusters of 10 blocks, the device takes 8"),
        ((9, 0), 512, torch.float16, 14, "clusters of 16 blocks, the device takes 14"),
    ],
)
def test_a_layer_is_covered_or_the_reason_is_said(capability, hidden, dtype, max_cluster, reason):
    got = launch.why_not(capability, hidden, dtype, max_cluster)
    assert got is None if reason is None else reason in got
