"""`asr.lstm.LSTM` against `torch.nn.LSTM` over packed sequences, on every path."""

import copy
import io
import os
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from asr.lstm import LSTM, explain
from asr.lstm import layer as layer_module

LENGTHS = [9, 1, 4, 12, 12, 7]
PATHS = ["reference", "cpu", "compiled"]
LONG = [37, 5, 90, 64, 64, 12, 90, 1, 30]  # so long that the staircase cuts


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Each path that runs on a CPU; `compiled` is what a compiler sees."""
    if request.param == "compiled":
        monkeypatch.setattr(layer_module, "_is_traced", lambda: True)
    else:
        monkeypatch.setenv("ASR_LSTM", request.param)
    return request.param


def pair(*arguments, dtype=torch.float64, **settings):
    """Ours, and torch's with the same weights."""
    ours = LSTM(*arguments, dtype=dtype, **settings)
    theirs = torch.nn.LSTM(*arguments, dtype=dtype, **settings)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def states(layer, batch, dtype=torch.float64):
    shape = layer.num_layers * (1 + layer.bidirectional), batch, layer.hidden_size
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2))


def packed(layer, frames, lengths, hx):
    """The oracle: torch.nn.LSTM over a PackedSequence."""
    sequence = pack_padded_sequence(frames, lengths, batch_first=layer.batch_first, enforce_sorted=False)
    output, last = layer(sequence, hx)
    return pad_packed_sequence(output, batch_first=layer.batch_first)[0], last


def everything(output, last, layer, inputs):
    """Outputs, last states and the gradients of a weighted sum of them for all inputs and parameters."""
    torch.manual_seed(5)
    total = sum((one * torch.randn(one.shape, dtype=one.dtype)).sum() for one in (output, *last))
    return [output, *last, *torch.autograd.grad(total, [*inputs, *layer.parameters()])]


@pytest.mark.parametrize("lengths", [LENGTHS, LONG], ids=["short", "long"])
@pytest.mark.parametrize("given_states", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(num_layers=2, bidirectional=True),
        dict(num_layers=3, bidirectional=True, bias=False, batch_first=True),
        dict(bidirectional=True, batch_first=True),
    ],
    ids=str,
)
def test_padded_rows_with_lengths_equal_a_packed_sequence_in_outputs_states_and_all_gradients(
    path, settings, given_states, lengths
):
    ours, theirs = pair(5, 7, **settings)
    lengths = torch.tensor(lengths)
    shape = (len(lengths), int(lengths.max()), 5)
    frames = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    oriented = frames if ours.batch_first else frames.transpose(0, 1)
    hx = states(ours, len(lengths)) if given_states else None
    inputs = [frames, *(hx or ())]
    found = everything(*ours(oriented, hx, lengths), ours, inputs)
    expected = everything(*packed(theirs, oriented, lengths, hx), theirs, inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@example([0, 0], 1, 1, False, 0)
@given(
    st.lists(st.integers(0, 130), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(0, 20),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_ragged_batch_gives_the_rows_run_alone(lengths, layers, behind, bidirectional, seed):
    torch.manual_seed(seed)
    ours, theirs = pair(3, 4, layers, bidirectional=bidirectional)
    frames = torch.randn(max(lengths) + behind, len(lengths), 3, dtype=torch.float64)
    hx = states(ours, len(lengths))
    for row, length in enumerate(lengths):
        frames[length:, row] = float("nan")
    output, (h, c) = ours(frames, hx, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        own = tuple(one[:, row : row + 1].contiguous() for one in hx)
        expected = (frames[:0, row : row + 1], own) if not length else theirs(frames[:length, row : row + 1], own)
        if length:
            torch.testing.assert_close(output[:length, row : row + 1], expected[0], rtol=1e-12, atol=1e-12)
        assert not output[length:, row].any()
        torch.testing.assert_close((h[:, row : row + 1], c[:, row : row + 1]), expected[1], rtol=1e-12, atol=1e-12)


def test_float32_is_as_near_to_float64_as_torchs_own(path):
    ours, theirs = pair(40, 64, 2, bidirectional=True, dtype=torch.float32)
    exact = copy.deepcopy(theirs).double()
    lengths = torch.tensor(LONG)
    frames = torch.randn(90, len(LONG), 40, requires_grad=True)
    errors = []
    truth = everything(*packed(exact, frames.double(), lengths, None), exact, [frames])
    for layer, run in (
        (ours, lambda: ours(frames, None, lengths)),
        (theirs, lambda: packed(theirs, frames, lengths, None)),
    ):
        found = everything(*run(), layer, [frames])
        errors.append([((a - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True)])
    assert all(one < 2 * other + 1e-7 for one, other in zip(*errors, strict=True)), errors


@pytest.mark.parametrize("sorted_rows", [False, True])
def test_a_packed_sequence_comes_back_packed_as_from_torch(path, sorted_rows):
    ours, theirs = pair(5, 7, 2, bidirectional=True)
    lengths = sorted(LENGTHS, reverse=True) if sorted_rows else LENGTHS
    rows = [torch.randn(length, 5, dtype=torch.float64) for length in lengths]
    sequence = pack_sequence(rows, enforce_sorted=sorted_rows)
    hx = states(ours, 6)
    (output, last), (expected, expected_last) = ours(sequence, hx), theirs(sequence, hx)
    torch.testing.assert_close(output.data, expected.data, rtol=1e-12, atol=1e-12)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        one, other = getattr(output, name), getattr(expected, name)
        assert one is other is None or torch.equal(one, other)
    torch.testing.assert_close(last, expected_last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 5), (1, 1, 5)])
def test_without_lengths_it_is_torchs_own_with_a_batch_and_without(path, batch_first, shape):
    ours, theirs = pair(5, 7, 2, bidirectional=True, batch_first=batch_first)
    frames = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = everything(*ours(frames), ours, [frames])
    for one, other in zip(found, everything(*theirs(frames), theirs, [frames]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences(path):
    layer = LSTM(2, 3, bidirectional=True, dtype=torch.float64)
    frames = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    hx = states(layer, 3)

    def run(frames, h, c, *weights):
        named = dict(zip([name for name, _ in layer.named_parameters()], weights, strict=True))
        output, last = torch.func.functional_call(layer, named, (frames, (h, c), torch.tensor([4, 0, 2])))
        return output, *last

    assert torch.autograd.gradcheck(run, (frames, *hx, *layer.parameters()))


def test_nan_in_one_row_stays_there(path):
    ours, _ = pair(5, 7, 2, bidirectional=True)
    lengths = torch.tensor(LONG)
    frames = torch.randn(90, len(LONG), 5, dtype=torch.float64)
    clean, clean_last = ours(frames, None, lengths)
    frames[3, 2] = float("nan")
    output, last = ours(frames, None, lengths)
    others = [row for row in range(len(LONG)) if row != 2]
    torch.testing.assert_close(output[:, others], clean[:, others], rtol=0, atol=1e-14)
    for one, other in zip(last, clean_last, strict=True):
        torch.testing.assert_close(one[:, others], other[:, others], rtol=0, atol=1e-14)
    assert output[5, 2].isnan().any()


def test_strides_do_not_matter(path):
    ours, _ = pair(5, 7, bidirectional=True)
    lengths = torch.tensor(LENGTHS)
    wide = torch.randn(24, 5, 12, dtype=torch.float64)
    frames = wide.permute(2, 0, 1)[:, ::4]
    torch.testing.assert_close(ours(frames, None, lengths), ours(frames.contiguous(), None, lengths), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (0, 0, 5)])
def test_no_frames_and_no_rows_give_empty_outputs_and_the_first_states(path, shape):
    layer = LSTM(5, 7, 2, bidirectional=True, dtype=torch.float64)
    hx = states(layer, shape[1])
    for lengths in (None, torch.zeros(shape[1], dtype=torch.int64)):
        output, last = layer(torch.randn(shape, dtype=torch.float64), hx, lengths)
        assert output.shape == (*shape[:2], 14)
        assert not output.any()
        if not shape[0] or lengths is not None:
            torch.testing.assert_close(last, hx)


def test_two_backward_passes_over_one_graph_add_up(path):
    layer = LSTM(5, 7, bidirectional=True, dtype=torch.float64)
    output, _ = layer(torch.randn(12, 6, 5, dtype=torch.float64), None, torch.tensor(LENGTHS))
    output.sum().backward(retain_graph=True)
    once = [p.grad.clone() for p in layer.parameters()]
    output.sum().backward()
    for parameter, gradient in zip(layer.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_weights_go_both_ways_and_survive_copies_and_files():
    ours, theirs = pair(5, 7, 2, bidirectional=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.all_weights[1][2] is ours.bias_ih_l0_reverse
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(ours).state_dict(), buffer)
    buffer.seek(0)
    other = LSTM(5, 7, 2, bidirectional=True, dtype=torch.float64)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    frames = torch.randn(4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(other(frames), theirs(frames))
    hooked = []
    other.register_state_dict_post_hook(lambda module, state, prefix, metadata: hooked.append(len(state)))
    other.state_dict()
    assert hooked == [16]


def test_dropout_between_layers_acts_in_training_only_and_not_behind_the_last():
    layer = LSTM(5, 7, 2, dropout=0.5, batch_first=True)
    frames, lengths = torch.randn(6, 12, 5), torch.tensor(LENGTHS)
    a, b = (layer(frames, None, lengths)[0] for _ in range(2))
    assert not torch.equal(a, b)
    assert all(row[:length].all() for row, length in zip(a, LENGTHS, strict=True))
    layer.eval()
    a, b = (layer(frames, None, lengths)[0] for _ in range(2))
    assert torch.equal(a, b)


def test_the_forget_gates_can_start_open():
    layer = LSTM(5, 7, 2, bidirectional=True, forget_bias=1.5)
    for name, parameter in layer.named_parameters():
        if name.startswith("bias"):
            assert parameter[7:14].tolist() == [1.5 if "_ih_" in name else 0.0] * 7
            assert parameter[:7].abs().max() > 0


def test_recurrent_weights_are_dropped_once_a_call_in_training_only(path):
    layer = LSTM(5, 50, bidirectional=True, weight_dropout=0.3)
    frames, lengths = torch.randn(12, 6, 5), torch.tensor(LENGTHS)
    torch.manual_seed(3)
    output, _ = layer(frames, None, lengths)
    torch.manual_seed(3)
    masked = copy.deepcopy(layer)
    with torch.no_grad():
        for name in ("weight_hh_l0", "weight_hh_l0_reverse"):
            weight = getattr(masked, name)
            weight.copy_(torch.nn.functional.dropout(weight, 0.3))
    masked.weight_dropout = 0.0
    torch.testing.assert_close(masked(frames, None, lengths)[0], output)
    assert abs(float((masked.weight_hh_l0 == 0).float().mean()) - 0.3) < 0.05
    layer.eval()
    whole, _ = layer(frames, None, lengths)
    layer.weight_dropout = 0.0
    assert torch.equal(layer(frames, None, lengths)[0], whole)


def test_gates_are_dropped_whole_frame_by_frame_in_training_only():
    layer = LSTM(5, 20, gate_dropout=0.4, dtype=torch.float64)
    frames, lengths = torch.randn(200, 30, 5, dtype=torch.float64), torch.full((30,), 200)
    assert explain(layer).startswith("reference: ") and "drop gates" in explain(layer)
    output, _ = layer(frames, None, lengths)
    dropped = (output == 0).all(dim=2)
    assert torch.equal(dropped, (output == 0).any(dim=2))
    # The output gate is dropped, or the cell state is 0: the forget gate was, and the input gate since.
    empty = 0.4 * 0.4 / (1 - 0.4 * 0.6)
    assert abs(float(dropped.double().mean()) - (0.4 + 0.6 * empty)) < 0.02
    layer.eval()
    assert explain(layer).startswith("cpu: ")
    assert not (layer(frames, None, lengths)[0] == 0).any()


def test_gates_can_not_be_dropped_where_a_compiler_looks_on(monkeypatch):
    monkeypatch.setattr(layer_module, "_is_traced", lambda: True)
    layer = LSTM(5, 7, gate_dropout=0.2)
    with pytest.raises(ValueError, match=r"gate_dropout=0\.2: not inside torch\.compile"):
        layer(torch.zeros(3, 1, 5))
    layer.eval()(torch.zeros(3, 1, 5))


def test_autocast_on_the_cpu_leaves_the_recurrence_in_float32(path):
    layer = LSTM(5, 7, bidirectional=True, batch_first=True).eval()
    frames, lengths = torch.randn(6, 12, 5), torch.tensor(LENGTHS)
    expected, _ = layer(frames, None, lengths)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for given_frames in (frames, frames.bfloat16().float()):
            output, _ = layer(given_frames, None, lengths)
            assert output.dtype == torch.float32
        output, _ = layer(frames, None, lengths)
    torch.testing.assert_close(output, expected)


WRONG = [
    (lambda layer, frames: layer(frames[..., :4]), "input: has 4 features, input_size is 5"),
    (lambda layer, frames: layer(frames[None]), r"input: want 3 dimensions, or 2 without a batch, got \(1, 12, 6, 5\)"),
    (lambda layer, frames: layer(frames.double()), r"input: is torch.float64, the weights are torch.float32"),
    (lambda layer, frames: layer(frames.to("meta")), "input: is on meta, the weights are on cpu"),
    (lambda layer, frames: layer(frames, (torch.zeros(2, 5, 7),) * 2), r"hx: want h of \(2, 6, 7\), got \(2, 5, 7\)"),
    (lambda layer, frames: layer(frames, (torch.zeros(2, 6, 7).double(),) * 2), "hx: h is torch.float64 on cpu"),
    (
        lambda layer, frames: layer(frames, None, torch.tensor([1.0] * 6)),
        r"lengths: want int64 \(6,\), got torch.float32",
    ),
    (lambda layer, frames: layer(frames, None, torch.tensor([3] * 5)), r"lengths: want int64 \(6,\), got .* \(5,\)"),
    (lambda layer, frames: layer(frames, None, torch.tensor([3] * 5 + [13])), "lengths: want 0 to 12, got 3 to 13"),
    (lambda layer, frames: layer(frames, None, torch.tensor([3] * 5 + [-1])), "lengths: want 0 to 12, got -1 to 3"),
    (lambda layer, frames: layer(frames[:, 0], None, torch.tensor([3])), "lengths: input without a batch has none"),
    (
        lambda layer, frames: layer(pack_sequence([frames[:, 0]]), None, torch.tensor([3])),
        "a PackedSequence has its own",
    ),
]


@pytest.mark.parametrize(("call", "problem"), WRONG)
def test_wrong_input_is_named(call, problem):
    layer = LSTM(5, 7, bidirectional=True)
    with pytest.raises(ValueError, match=problem):
        call(layer, torch.zeros(12, 6, 5))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (dict(proj_size=3), "proj_size=3: asr.lstm.LSTM has no projection; use torch.nn.LSTM"),
        (dict(weight_dropout=1.0), "weight_dropout=1.0: want a probability from 0 to below 1"),
        (dict(gate_dropout=-0.1), "gate_dropout=-0.1: want a probability"),
        (dict(bias=False, forget_bias=1.0), "forget_bias=1.0: needs bias=True"),
    ],
)
def test_wrong_arguments_are_named(settings, problem):
    with pytest.raises(ValueError, match=problem):
        LSTM(5, 7, **settings)


def test_explain_names_the_path_and_the_reason(monkeypatch):
    layer = LSTM(5, 7)
    assert explain(layer) == (
        "cpu: torch's CPU kernel, each direction by itself, rows only as long as they last; "
        "the tensors are on the CPU (its kernel: oneDNN)"
    )
    assert "torch's own, as oneDNN has none for torch.float64" in explain(layer, dtype=torch.float64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(layer_module.paths, "_asked", {(torch.device("cuda:0"), torch.bfloat16, 7): None})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert explain(layer, "cuda", torch.bfloat16) == (
        "fused: a layer's recurrence as one kernel; the GPU and the type are covered"
    )
    assert explain(layer, "cuda").startswith("cudnn: cuDNN, each direction by itself; the kernels compute in float16")
    assert explain(LSTM(5, 769), "cuda", torch.bfloat16) == (
        "cudnn: cuDNN, each direction by itself; hidden size 769: the kernels hold 1 to 768 units"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(layer_module.paths, "_asked", {})
    assert "compute capability 8.0 has no thread block clusters" in explain(layer, "cuda", torch.bfloat16)
    assert explain(layer, "mps").startswith("reference: ")
    monkeypatch.setenv("ASR_LSTM", "reference")
    assert explain(layer, "cuda").endswith("; ASR_LSTM says so")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("fast", "ASR_LSTM=fast: known are auto, reference"),
        ("cudnn", "ASR_LSTM=cudnn: runs on cuda only, not on cpu"),
        ("fused", "ASR_LSTM=fused: the kernels run on NVIDIA GPUs, not on cpu"),
    ],
)
def test_a_path_that_is_not_there_is_named(monkeypatch, value, problem):
    monkeypatch.setenv("ASR_LSTM", value)
    with pytest.raises(ValueError, match=problem):
        LSTM(5, 7)(torch.zeros(3, 1, 5))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_takes_it_in_one_graph(backend):
    torch.compiler.reset()
    ours, theirs = pair(5, 7, 2, bidirectional=True)
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    for length in (12, 9):
        lengths = torch.tensor([min(length, one) for one in LENGTHS])
        frames = torch.randn(length, 6, 5, dtype=torch.float64, requires_grad=True)
        found = everything(*compiled(frames, None, lengths), ours, [frames])
        for one, other in zip(found, everything(*packed(theirs, frames, lengths, None), theirs, [frames]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_torch_export_takes_it_with_free_lengths():
    layer = LSTM(5, 7, bidirectional=True, batch_first=True).eval()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, frames, lengths):
            return self.layer(frames, lengths=lengths)[0]

    frames, lengths = torch.randn(6, 12, 5), torch.tensor(LENGTHS)
    shapes = {
        "frames": {0: torch.export.Dim("batch"), 1: torch.export.Dim("frames")},
        "lengths": {0: torch.export.Dim("batch")},
    }
    program = torch.export.export(Model(), (frames, lengths), dynamic_shapes=shapes)
    longer, fewer = torch.randn(2, 20, 5), torch.tensor([20, 3])
    torch.testing.assert_close(program.module()(longer, fewer), layer(longer, lengths=fewer)[0])


def test_distributed_data_parallel_averages_its_gradients(tmp_path):
    program = """
import sys, torch
from torch import distributed
from asr.lstm import LSTM
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
layer = LSTM(3, 4, bidirectional=True)
frames, lengths = torch.randn(5, 4, 3), torch.tensor([5, 2, 3, 1])
parallel = torch.nn.parallel.DistributedDataParallel(layer)
parallel(frames[:, 2 * rank : 2 * rank + 2], None, lengths[2 * rank : 2 * rank + 2])[0].sum().backward()
shared = [p.grad.clone() for p in layer.parameters()]
layer.zero_grad()
(layer(frames, None, lengths)[0].sum() / 2).backward()
for one, parameter in zip(shared, layer.parameters(), strict=True):
    torch.testing.assert_close(one, parameter.grad)
distributed.destroy_process_group()
"""
    command = [sys.executable, "-c", program]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


def test_a_model_of_torchs_layer_gives_the_same_after_the_swap(monkeypatch):
    """A stranger's tagger: embedding, packed LSTM, last states into a classifier; only the layer's name changes."""

    class Tagger(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.embed = torch.nn.Embedding(20, 6)
            self.lstm = layer(input_size=6, hidden_size=8, num_layers=2, batch_first=True, bidirectional=True)
            self.tags = torch.nn.Linear(16, 5)
            self.kind = torch.nn.Linear(32, 3)

        def forward(self, words, lengths):
            sequence = pack_padded_sequence(self.embed(words), lengths, batch_first=True, enforce_sorted=False)
            output, (h, c) = self.lstm(sequence)
            self.lstm.flatten_parameters()
            output, _ = pad_packed_sequence(output, batch_first=True)
            return self.tags(output), self.kind(torch.cat([h[-2], h[-1], c[-2], c[-1]], dim=1))

    models = [Tagger(torch.nn.LSTM), Tagger(LSTM)]
    models[1].load_state_dict(models[0].state_dict())
    words, lengths = torch.randint(0, 20, (6, 12)), torch.tensor(LENGTHS)
    losses = []
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(20):
            tags, kind = model(words, lengths)
            loss = tags.square().mean() + (kind - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_nothing_warns(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = LSTM(5, 7, 2, bidirectional=True)
        layer(torch.randn(12, 6, 5), None, torch.tensor(LENGTHS))[0].sum().backward()
