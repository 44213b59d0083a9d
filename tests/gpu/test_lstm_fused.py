"""The fused LSTM on the device itself: against torch in float64, repeatable, without a byte of what nobody wrote."""

import random

import pytest
import torch
from emulation.case import Case

from asr.lstm import op
from asr.lstm.cuda import launch

BF16, FP16 = torch.bfloat16, torch.float16


def _why_not():
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    reason = launch.why_not(torch.cuda.get_device_capability(), 64, BF16)
    return reason and f"needs another CUDA device: {reason}"


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))]


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Waits in kernels end; memory that is allocated and not written holds NaN."""
    monkeypatch.setitem(op.SCANS, "cuda", launch.CudaScans(bounded=True))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what that mode wants of cuBLAS
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def ragged(batch, frames):
    random.seed(batch * 1000 + frames)
    lengths = [random.randint(1, frames) for _ in range(batch)]
    lengths[batch // 2] = frames
    return lengths


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("hidden", [8, 64, 100, 192, 256, 320, 384, 448, 512, 600, 640, 700, 768])
@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 3), (7, 2), (8, 17), (9, 40), (16, 5), (33, 30), (64, 100)])
def test_outputs_states_and_gradients_are_those_of_torch_in_float64(hidden, batch, frames, dtype):
    if reason := launch.why_not(torch.cuda.get_device_capability(), hidden, dtype):
        pytest.skip(f"needs another CUDA device: {reason}")
    case = Case(hidden, ragged(batch, frames), dtype, frames=frames + 2, device="cuda")
    assert not case.wrong(case.run(op.layer))


@pytest.mark.parametrize("hidden", [64, 256, 640, 768])
def test_runs_give_the_same_bits_beside_other_work(hidden):
    case = Case(hidden, ragged(32, 100), BF16, device="cuda")
    first = case.run(op.layer)
    other, matrix = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda", dtype=BF16)
    for _ in range(20):
        with torch.cuda.stream(other):
            matrix @ matrix
        again = case.run(op.layer)
        assert all(torch.equal(first[name], again[name]) for name in first)
    torch.cuda.synchronize()


@pytest.mark.parametrize("hidden", [64, 640, 768])
def test_a_captured_layer_replays(hidden):
    case = Case(hidden, ragged(9, 20), BF16, device="cuda")
    with torch.no_grad():
        expected = op.layer(**case.arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = op.layer(**case.arguments)
        graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))


def test_torch_finds_no_fault_in_the_operators():
    case = Case(64, [3, 3], BF16, device="cuda")
    floats = [value.requires_grad_(value.is_floating_point()) for value in case.arguments.values()]
    torch.library.opcheck(op.lstm_layer, (*floats, True), rtol=1e-2, atol=1e-2)
