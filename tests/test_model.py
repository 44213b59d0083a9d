import pytest
import torch

from asr.errors import InputError
from asr.model import AcousticModel, device_named, mask

SHAPES = [
    dict(stack=1, convolutions=[]),
    dict(stack=2, convolutions=[]),
    dict(stack=1, convolutions=[1, 2], channels=16),
    dict(stack=2, convolutions=[2], channels=16),
]


def build(**shape):
    return AcousticModel(6, 5, hidden=8, layers=2, dropout=0.5, layer_norm=True, **shape).eval()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_emissions_are_log_probabilities_and_lengths_follow_the_one_formula(shape):
    model = build(**shape)
    lengths = torch.tensor([1, 2, 3, 10, 11, 23])
    log_probs, out = model(torch.randn(6, 23, 6), lengths)
    assert out.tolist() == [model.frames(int(length)) for length in lengths]
    assert log_probs.shape == (6, model.frames(23), 5)
    for row, length in zip(log_probs, out, strict=True):
        torch.testing.assert_close(row[:length].exp().sum(1), torch.ones(int(length)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_is_the_same_alone_in_company_and_with_anything_in_its_padding(shape, training):
    model = build(**shape).double().train(training)
    model.dropout.p = 0.0
    features = torch.randn(4, 30, 6, dtype=torch.float64)
    lengths = torch.tensor([30, 7, 1, 18])
    poisoned = torch.nn.functional.pad(features, (0, 0, 0, 30), value=float("nan"))
    for row, length in enumerate(lengths):
        poisoned[row, length:] = float("nan")
    together, out = model(poisoned, lengths)
    for row, length in enumerate(lengths):
        alone, _ = model(features[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(together[row : row + 1, : out[row]], alone, rtol=0, atol=1e-12 if training else 0.0)


def test_every_parameter_gets_a_gradient():
    model = build(stack=2, convolutions=[1], channels=16).train()
    log_probs, _ = model(torch.randn(2, 20, 6), torch.tensor([20, 13]))
    log_probs[:, :, 1].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_the_mask_zeroes_what_lies_behind_a_length():
    frames = torch.full((2, 3, 1), float("inf"))
    assert mask(frames, torch.tensor([1, 3]))[:, :, 0].tolist() == [[float("inf"), 0, 0], [float("inf")] * 3]


@pytest.mark.parametrize(("name", "problem"), [("tpu", "known are auto"), ("cuda:7", "no GPU")])
def test_a_device_that_is_not_there_is_an_error_in_one_line(name, problem, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=problem) as caught:
        device_named(name)
    assert caught.value.status == 2


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cpu:x", "cpu:", "cuda:x", "cuda:"])
def test_a_device_that_is_no_device_is_an_error_in_one_line(name):
    with pytest.raises(InputError, match="known are auto, cpu, cuda and cuda:N"):
        device_named(name)
