"""The layer as a torch operator, its scans emulated: registration, gradients, and a model that learns through it."""

import pytest
import torch
from emulation import emulator
from emulation.case import Case
from torch import nn

from asr.lstm import LSTM, explain, op, paths
from asr.lstm.cuda.launch import Unavailable

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture
def emulated(monkeypatch):
    """The kernels on an emulated device, for tensors on the CPU."""
    monkeypatch.setitem(op.SCANS, "cpu", emulator.EmulatedScans())


@emulator.needs_compiler
@pytest.mark.parametrize(("hidden", "directions"), [(64, 2), (24, 1)])
def test_torch_finds_no_fault_in_the_operators(emulated, hidden, directions):
    case = Case(hidden, [3, 3], BF16, directions)  # rows of one length: what is kept behind an end is not defined
    floats = [value.requires_grad_(value.is_floating_point()) for value in case.arguments.values()]
    torch.library.opcheck(op.lstm_layer, (*floats, True), rtol=1e-2, atol=1e-2)
    torch.library.opcheck(op.lstm_layer, (*[value.detach() for value in floats], False), rtol=1e-2, atol=1e-2)
    input, lengths, weight_ih, weight_hh, _, h0, c0 = [value.detach() for value in floats]
    output, _, _, gates, cells, order = op.lstm_layer(*[value.detach() for value in floats], True)
    saved = (input, lengths, weight_ih, weight_hh, h0, c0, output, gates, cells, order)
    for need_input, gradients in ((True, (output, h0, c0)), (False, (output, None, None))):
        torch.library.opcheck(op.lstm_layer_backward, (*gradients, *saved, need_input))


@emulator.needs_compiler
def test_a_graph_that_is_kept_gives_the_same_gradients_twice(emulated):
    case = Case(64, [4, 2], BF16)
    arguments = dict(case.arguments)
    parameters = [arguments[name].requires_grad_() for name in ("input", "weight_ih", "weight_hh", "bias")]
    output, _, _ = op.layer(**arguments)
    first = torch.autograd.grad(output, parameters, case.weights[0], retain_graph=True)
    second = torch.autograd.grad(output, parameters, case.weights[0])
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@emulator.needs_compiler
def test_each_result_has_a_gradient_of_its_own(emulated):
    case = Case(64, [4, 2, 3], FP16)
    arguments = dict(case.arguments)
    names = ["input", "weight_ih", "weight_hh", "bias", "h0", "c0"]
    values = [arguments[name].requires_grad_() for name in names]
    results = op.layer(**arguments)
    parts = [
        torch.autograd.grad(result, values, weight, retain_graph=True)
        for result, weight in zip(results, case.weights, strict=True)
    ]
    for name, *gradients in zip(names, *parts, strict=True):
        total, expected = sum(gradient.double() for gradient in gradients), case.expected[name]
        assert (total - expected).norm() / expected.norm() < 3e-3, name


@emulator.needs_compiler
def test_without_a_gradient_to_come_the_results_are_the_same_and_nothing_is_kept(emulated):
    case = Case(64, [3, 2], BF16)
    kept, bare = (op.lstm_layer(*case.arguments.values(), keep) for keep in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(kept[:3], bare[:3], strict=True))
    assert kept[3].numel() and kept[4].numel()
    assert not bare[3].numel() and not bare[4].numel()
    case.arguments["input"].requires_grad_()
    with pytest.raises(RuntimeError, match="nothing to differentiate"):
        op.lstm_layer(*case.arguments.values(), False)[0].sum().backward()
    with torch.no_grad():
        assert not op.layer(**case.arguments)[0].requires_grad


@emulator.needs_compiler
@pytest.mark.parametrize(("frames", "batch"), [(0, 2), (3, 0)])
def test_no_frames_and_no_rows_are_answered(emulated, frames, batch):
    case = Case(64, [1, 1], BF16)
    arguments = {name: value.detach() for name, value in case.arguments.items()}
    arguments["input"] = torch.zeros(frames, batch, 12, dtype=BF16)
    arguments |= {name: arguments[name][:, :batch] for name in ("h0", "c0")}
    arguments["lengths"] = torch.zeros(batch, dtype=torch.int64)
    arguments["weight_hh"].requires_grad_()
    output, h_n, c_n = op.layer(**arguments)
    assert output.shape == (frames, batch, 128)
    assert torch.equal(h_n, arguments["h0"]) and torch.equal(c_n, arguments["c0"])
    (gradient,) = torch.autograd.grad(h_n.sum() + output.sum(), [arguments["weight_hh"]])
    assert not gradient.any()


@emulator.needs_compiler
def test_strides_do_not_matter(emulated):
    case = Case(64, [4, 2, 3], BF16)
    expected = op.layer(**case.arguments)
    arguments = {name: value.mT.contiguous().mT if value.dim() > 1 else value for name, value in case.arguments.items()}
    arguments["lengths"] = torch.stack([arguments["lengths"]] * 2, dim=1)[:, 0]
    assert all(torch.equal(one, other) for one, other in zip(op.layer(**arguments), expected, strict=True))


@emulator.needs_compiler
def test_autocast_to_another_type_changes_nothing(emulated):
    case = Case(64, [4, 2, 3], FP16)
    expected = case.run(op.layer)
    with torch.autocast("cpu", torch.bfloat16):
        results = case.run(op.layer)
    assert all(torch.equal(results[name], expected[name]) for name in expected)


@emulator.needs_compiler
def test_a_ctc_model_learns_through_the_kernels(emulated):
    random = torch.Generator().manual_seed(0)
    frames, batch, hidden, tokens = 8, 3, 16, 4
    targets = torch.tensor([[1, 2], [3, 1], [2, 3]])
    lengths = torch.tensor([8, 6, 7])
    input = torch.randn(frames, batch, 6, generator=random)
    shapes = [(2, 4 * hidden, 6), (2, 4 * hidden, hidden), (2, 4 * hidden), (2 * hidden, tokens)]
    parameters = [nn.Parameter(torch.randn(shape, generator=random) * 0.2) for shape in shapes]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    state = torch.zeros(2, batch, hidden)
    losses = []
    for _ in range(30):
        weight_ih, weight_hh, bias = (parameter.bfloat16() for parameter in parameters[:3])
        output, _, _ = op.layer(input.bfloat16(), lengths, weight_ih, weight_hh, bias, state.bfloat16(), state)
        log_probs = (output.float() @ parameters[3]).log_softmax(2)
        loss = nn.functional.ctc_loss(log_probs, targets, lengths, torch.full((batch,), 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("input", lambda value: value.float(), r"input: .*float32, not \(frames, batch, size\)"),
        ("lengths", lambda value: value.int(), r"lengths: \(2,\) torch.int32 .* torch.int64"),
        ("weight_ih", lambda value: value[:, :8], r"weight_ih: \(2, 8, 12\) .*, not \(2, 256, 12\)"),
        ("weight_hh", lambda value: value.repeat(2, 1, 1), "weight_hh: 4 directions"),
        ("bias", lambda value: value.half(), r"bias: .*float16 .*, not \(2, 256\) torch.bfloat16"),
        ("h0", lambda value: value.float(), "h0: .*float32"),
        ("c0", lambda value: value.double(), "c0: .*float64 .* torch.bfloat16 or torch.float32"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(name, change, words):
    arguments = Case(64, [2, 1], BF16).arguments
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=words):
        op.layer(**arguments)


def test_a_device_without_kernels_is_named():
    with pytest.raises(Unavailable, match="no fused LSTM kernels for a cpu device"):
        op.layer(**Case(64, [2, 1], BF16).arguments)


def test_wide_and_narrow_layouts_are_inverse():
    weight = torch.arange(2 * 12 * 5.0).view(2, 12, 5)
    wide = op._unit_major(weight, 64)
    assert torch.equal(op._gate_major(wide, 3), weight)
    assert torch.equal(wide[1, 2, 3], weight[1, 3 * 3 + 2])  # unit 2, gate o
    assert not wide[:, 3:].any()


@emulator.needs_compiler
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}], ids=str)
def test_the_layer_runs_on_the_fused_path_as_torch_does_on_packed_rows(monkeypatch, emulated, settings):
    monkeypatch.setenv("ASR_LSTM", "fused")
    ours = LSTM(12, 40, dtype=torch.bfloat16, **settings)
    exact = torch.nn.LSTM(12, 40, dtype=torch.float64, **settings)
    exact.load_state_dict(ours.state_dict())
    lengths = torch.tensor([3, 7, 1, 5])
    frames = torch.randn(7, 4, 12, dtype=torch.bfloat16)
    output, (h, c) = ours(frames, None, lengths)
    (output.float().sum() + c.float().sum()).backward()
    sequence = torch.nn.utils.rnn.pack_padded_sequence(frames.double(), lengths, enforce_sorted=False)
    expected, last = exact(sequence)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(expected)
    (expected.sum() + last[1].sum()).backward()
    pairs = [(output, expected), (h, last[0]), (c, last[1])]
    pairs += [(one.grad, other.grad) for one, other in zip(ours.parameters(), exact.parameters(), strict=True)]
    for one, other in pairs:
        assert (one.double() - other).norm() < 0.02 * other.norm()


def test_kernels_that_can_not_be_had_are_told_of_once_and_the_next_path_is_chosen(monkeypatch):
    class Scans:
        def why_not(self, device, hidden, dtype):
            return "libnvrtc is not there" if hidden == 40 else None

    monkeypatch.setattr(paths, "_asked", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(op, "scans_for", lambda device: Scans())
    layer = LSTM(12, 40)
    with pytest.warns(UserWarning, match="no fused kernels on cuda:1, cuDNN runs instead: libnvrtc") as warned:
        said = {explain(layer, device, BF16) for device in ("cuda", "cuda:1", "cuda:1")}
    assert len(warned) == 1
    assert said == {"cudnn: cuDNN, each direction by itself; libnvrtc is not there"}
    assert explain(LSTM(12, 41), "cuda", BF16).startswith("fused: ")
    monkeypatch.setenv("ASR_LSTM", "fused")
    with pytest.raises(ValueError, match="ASR_LSTM=fused: libnvrtc is not there; set ASR_LSTM=auto"):
        explain(layer, "cuda", BF16)
