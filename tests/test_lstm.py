import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asr.lstm import LSTM

LENGTHS = torch.tensor([9, 1, 4, 12, 12, 7])


def packed(layer, frames, lengths):
    """The oracle: torch.nn.LSTM over a PackedSequence."""
    sequence = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
    output, _ = torch.nn.LSTM.forward(layer, sequence)
    return pad_packed_sequence(output, batch_first=True)[0]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_padded_rows_with_lengths_equal_a_packed_sequence_in_outputs_and_all_gradients(bidirectional, layers, bias):
    layer = LSTM(5, 7, layers, bias=bias, bidirectional=bidirectional, batch_first=True).double()
    frames = torch.randn(6, 12, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 12, 14 if bidirectional else 7, dtype=torch.float64)
    results = []
    for run in (lambda: layer(frames, lengths=LENGTHS)[0], lambda: packed(layer, frames, LENGTHS)):
        output = run()
        gradients = torch.autograd.grad((output * weight).sum(), [frames, *layer.parameters()])
        results.append([output, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_whatever_stands_in_the_padding_changes_nothing():
    layer = LSTM(5, 7, 2, bidirectional=True, batch_first=True)
    frames = torch.randn(6, 12, 5)
    poisoned = frames.clone()
    for row, length in enumerate(LENGTHS):
        poisoned[row, length:] = 1e3
    clean, _ = layer(frames, lengths=LENGTHS)
    torch.testing.assert_close(layer(poisoned, lengths=LENGTHS)[0], clean, rtol=0, atol=1e-6)
    for row, length in enumerate(LENGTHS):
        assert not clean[row, length:].any()


def test_frames_first_is_the_same_transposed():
    first = LSTM(5, 7, bidirectional=True)
    batch = LSTM(5, 7, bidirectional=True, batch_first=True)
    batch.load_state_dict(first.state_dict())
    frames = torch.randn(12, 6, 5)
    expected, _ = batch(frames.transpose(0, 1), lengths=LENGTHS)
    torch.testing.assert_close(first(frames, lengths=LENGTHS)[0].transpose(0, 1), expected)


def test_without_lengths_it_is_torchs_own():
    ours = LSTM(5, 7, 2, batch_first=True)
    theirs = torch.nn.LSTM(5, 7, 2, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    frames = torch.randn(2, 4, 5)
    torch.testing.assert_close(ours(frames), theirs(frames))


def test_dropout_between_layers_acts_in_training_only():
    layer = LSTM(5, 7, 2, dropout=0.5, batch_first=True)
    frames = torch.randn(6, 12, 5)
    a, b = (layer(frames, lengths=LENGTHS)[0] for _ in range(2))
    assert not torch.equal(a, b)
    layer.eval()
    a, b = (layer(frames, lengths=LENGTHS)[0] for _ in range(2))
    assert torch.equal(a, b)


def test_states_together_with_lengths_are_refused():
    with pytest.raises(ValueError, match="initial states and lengths together"):
        LSTM(5, 7)(torch.zeros(3, 1, 5), (torch.zeros(1, 1, 7),) * 2, torch.tensor([3]))


def test_autocast_on_the_cpu_leaves_the_recurrence_in_float32():
    layer = LSTM(5, 7, bidirectional=True, batch_first=True).eval()
    frames = torch.randn(6, 12, 5)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(frames, lengths=LENGTHS)
    torch.testing.assert_close(output, layer(frames, lengths=LENGTHS)[0])
