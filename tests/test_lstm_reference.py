"""The equations against numbers worked by hand and against torch."""

import math

import pytest
import torch

from asr.lstm import LSTMCell, reference


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_a_step_is_the_one_worked_by_hand():
    weight_ih, weight_hh = torch.tensor([[0.5], [-1.0], [2.0], [0.25]]), torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    bias = torch.tensor([0.0, 1.0, -0.5, 0.3])
    x, h, c = 0.7, -0.2, 0.9
    state = torch.tensor([[h]]), torch.tensor([[c]])
    new_h, new_c = reference.step(torch.tensor([[x]]), state, (weight_ih, weight_hh, bias, torch.zeros(4)))
    i = sigmoid(0.5 * x + 0.1 * h)
    f = sigmoid(-1.0 * x + 0.2 * h + 1.0)
    g = math.tanh(2.0 * x + 0.3 * h - 0.5)
    o = sigmoid(0.25 * x + 0.4 * h + 0.3)
    assert new_c.item() == pytest.approx(f * c + i * g, rel=1e-6)
    assert new_h.item() == pytest.approx(o * math.tanh(f * c + i * g), rel=1e-6)


def test_a_cell_that_keeps_everything_carries_its_state_and_its_gradient_unchanged():
    """The constant error carousel: forget gate 1, input gate 0."""
    c = torch.tensor([[0.3, -2.0]], dtype=torch.float64, requires_grad=True)
    closed = torch.tensor([-1e4, -1e4, 1e4, 1e4, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    weights = torch.zeros(8, 1, dtype=torch.float64), torch.zeros(8, 2, dtype=torch.float64), closed, None
    frames = torch.randn(1000, 1, 1, dtype=torch.float64)
    _, (_, last) = reference.scan(frames, torch.tensor([1000]), (torch.zeros_like(c), c), weights)
    assert torch.equal(last, c)
    assert torch.equal(torch.autograd.grad(last.sum(), c)[0], torch.ones_like(c))


def test_the_stack_is_torchs_over_whole_rows():
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64)
    frames = torch.randn(6, 2, 3, dtype=torch.float64)
    h, c = torch.randn(2, 4, 2, 4, dtype=torch.float64)
    weights = [tuple(one) for one in theirs.all_weights]
    output, last = reference.lstm(frames, torch.tensor([6, 6]), (h, c), weights, directions=2)
    expected, expected_last = theirs(frames, (h, c))
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, expected_last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_type_is_taken_and_kept(dtype):
    state = torch.zeros(2, 4, dtype=dtype), torch.zeros(2, 4, dtype=dtype)
    weights = tuple(torch.randn(shape, dtype=dtype) for shape in ((16, 3), (16, 4), (16,), (16,)))
    outputs, last = reference.scan(torch.randn(5, 2, 3, dtype=dtype), torch.tensor([5, 2]), state, weights)
    assert {one.dtype for one in (outputs, *last)} == {dtype}
    assert not outputs[2:, 1].any()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_the_cell_is_torchs(bias, given_state, shape):
    ours = LSTMCell(3, 4, bias=bias, dtype=torch.float64)
    theirs = torch.nn.LSTMCell(3, 4, bias=bias, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    frame = torch.randn(shape, dtype=torch.float64)
    hx = tuple(torch.randn(2, *shape[:-1], 4, dtype=torch.float64)) if given_state else None
    torch.testing.assert_close(ours(frame, hx), theirs(frame, hx), rtol=1e-12, atol=1e-12)


def test_the_cell_names_a_wrong_shape():
    with pytest.raises(ValueError, match=r"input: want \(batch, 3\) or \(3,\), got \(2, 4\)"):
        LSTMCell(3, 4)(torch.zeros(2, 4))
