import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from asr.errors import InputError
from asr.model import AcousticModel, cut, device_named, mask

SHAPES = [
    dict(stack=1, convolutions=[]),
    dict(stack=2, convolutions=[]),
    dict(stack=1, convolutions=[1, 2], channels=16),
    dict(stack=2, convolutions=[2], channels=16),
]  # the context is tested apart: it draws


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


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any), st.integers(1, 30), st.integers(0, 2**31))
@example([7], 8, 0)  # a first piece of one frame, then the shortest ones
def test_pieces_hold_every_frame_once_in_order_and_keep_their_lengths(lengths, context, seed):
    torch.manual_seed(seed)
    index, counts = cut(torch.tensor(lengths), context, max(lengths) + 2)
    held = [frame for piece, count in zip(index.tolist(), counts.tolist(), strict=True) for frame in piece[:count]]
    assert held == [row * (max(lengths) + 2) + frame for row, length in enumerate(lengths) for frame in range(length)]
    assert counts.min() >= 1 and counts.max() <= max(1, context // 2, 3 * context // 2)
    assert all(len(set(piece[count - 1 :])) == 1 for piece, count in zip(index.tolist(), counts.tolist(), strict=True))


def test_cuts_fall_everywhere_and_pieces_have_the_length_asked_for():
    torch.manual_seed(0)
    index, counts = cut(torch.full((400,), 100), 10, 100)
    cuts = torch.bincount(index[:, 0] % 100, minlength=100)[1:]
    assert cuts.min() > 20 and cuts.max() < 65  # 40 on average
    assert float(counts.float().mean()) == pytest.approx(10, rel=0.1)


def test_a_context_acts_in_training_only_and_ends_what_the_lstm_knows():
    model = build(stack=1, convolutions=[], context=5)
    whole = build(stack=1, convolutions=[])
    whole.load_state_dict(model.state_dict())
    features, lengths = torch.randn(2, 40, 6), torch.tensor([40, 31])
    assert torch.equal(model(features, lengths)[0], whole(features, lengths)[0])
    model.train().dropout.p = 0.0
    changed = features.clone()
    changed[:, 20] += 1.0
    seen = []
    for one in (features, changed):
        torch.manual_seed(1)
        seen.append(model(one, lengths)[0])
    differs = (seen[0] != seen[1]).any(2)[0].nonzero().flatten()
    assert differs.min() >= 13 and differs.max() <= 27 and 20 in differs


def test_with_a_context_a_row_of_no_frames_and_a_batch_wider_than_its_rows_are_taken():
    model = build(stack=1, convolutions=[], context=1000).train()
    model.dropout.p = 0.0
    features = torch.randn(3, 12, 6)
    lengths = torch.tensor([10, 9, 0])
    torch.manual_seed(2)
    wide, _ = model(features, lengths)
    torch.manual_seed(2)
    tight, _ = model(features[:, :10], lengths)
    torch.testing.assert_close(wide[:, :10], tight)
    assert model(features, torch.zeros(3, dtype=torch.int64))[0].isfinite().all()


def test_a_context_longer_than_the_utterances_cuts_them_at_most_once():
    torch.manual_seed(0)
    _, counts = cut(torch.tensor([30, 20]), 1000, 30)
    assert len(counts) <= 4 and counts.sum() == 50


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
